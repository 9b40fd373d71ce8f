//! Network namespaces that live as long as a test.

use std::future::Future;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fastpath_control::netdev::NetView;
use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;

/// A namespace; removed when dropped.
pub(crate) struct Ns {
    pub(crate) name: String,
}

impl Ns {
    pub(crate) fn new(what: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("fpnd-{}-{}-{what}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let ns = Self { name };
        ns.ip("link set lo up");
        ns
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` with these words in the namespace; gives its output.
    pub(crate) fn ip(&self, words: &str) -> String {
        let mut args = vec!["-n", &self.name];
        args.extend(words.split_whitespace());
        run("ip", &args)
    }

    /// `ip -json` in the namespace.
    pub(crate) fn json(&self, words: &str) -> Vec<serde_json::Value> {
        let text = self.ip(&format!("-json {words}"));
        if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
    }

    /// Runs many `ip` commands at once, one a line, going on after those that fail. `family` is `-4` or `-6`.
    pub(crate) fn batch(&self, family: &str, lines: &str) {
        let file = std::env::temp_dir().join(&self.name);
        std::fs::write(&file, lines).unwrap();
        let _ = Command::new("ip")
            .args(["-n", &self.name, family, "-force", "-batch"])
            .arg(&file)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let _ = std::fs::remove_file(&file);
    }

    /// Runs a program in the namespace; gives its output.
    pub(crate) fn exec(&self, words: &str) -> String {
        let mut args = vec!["netns", "exec", &self.name];
        args.extend(words.split_whitespace());
        run("ip", &args)
    }

    /// Runs `work` on a thread of its own in the namespace.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(self.path()).unwrap();
        let done = std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                    work()
                })
                .join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs async `work` on a thread and runtime of its own in the namespace.
    pub(crate) fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work().await })
        })
    }

    /// A veth from `name` here to `other_name` in `other`, both up, with so many queues of each kind.
    pub(crate) fn veth(&self, name: &str, other: &Ns, other_name: &str) {
        self.ip(&format!(
            "link add name {name} numrxqueues 4 numtxqueues 4 type veth \
             peer name {other_name} numrxqueues 4 numtxqueues 4 netns {}",
            other.name
        ));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {other_name} up"));
    }

    /// Index of a device.
    pub(crate) fn index(&self, name: &str) -> u32 {
        u32::try_from(self.json(&format!("link show {name}"))[0]["ifindex"].as_u64().unwrap()).unwrap()
    }

    pub(crate) fn mac(&self, name: &str) -> String {
        self.json(&format!("link show {name}"))[0]["address"].as_str().unwrap().to_owned()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(
        out.status.success(),
        "{program} {}: {} (these tests need root)",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Awaits a view that satisfies `good`. The limit is only there so that a failure ends.
pub(crate) async fn until(
    views: &mut watch::Receiver<Arc<NetView>>,
    what: &str,
    good: impl Fn(&NetView) -> bool,
) -> Arc<NetView> {
    let wait = views.wait_for(|v| good(v));
    match tokio::time::timeout(Duration::from_secs(60), wait).await {
        Ok(view) => view.unwrap().clone(),
        Err(_) => panic!("never seen: {what}"),
    }
}
