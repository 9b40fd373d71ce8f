//! One daemon process: started in its node's namespace, watched, signalled and ended by its pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cli::{BINARY, Cli};
use super::ns::NetNs;

/// The longest a daemon may take from its start to readiness, or to its end after SIGTERM.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);

/// What a runtime makes of the DaemonSet's container, as far as the daemon can tell: a root, `/sys` and `/proc/sys` that
/// are read-only, the host's `/sys/fs/bpf` and, elsewhere, its `/proc/sys/net`. First argument: a folder for the root; the
/// rest: what to run.
const CONTAINER: &str = r#"
set -eu
root=$1
shift
mount -t tmpfs root "$root"
for path in /*; do
    if [ -L "$path" ]; then
        cp -P "$path" "$root$path"
    elif [ -d "$path" ]; then
        mkdir "$root$path"
        mount --rbind "$path" "$root$path"
    fi
done
mkdir -p "$root/host/proc/sys/net"
mount --bind /proc/sys/net "$root/host/proc/sys/net"
mount --bind /proc/sys "$root/proc/sys"
for path in /proc/sys /sys ""; do
    mount -o remount,bind,ro "$root$path"
done
exec chroot "$root" "$@"
"#;

/// A running (or ended) daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
    ended: bool,
}

impl Daemon {
    /// Starts it, with these capabilities or all, in a container whose root is made in this folder or in none; the log is
    /// appended to `log`.
    pub(crate) fn spawn(
        ns: &NetNs,
        (config, log): (&Path, &Path),
        capabilities: Option<&[&str]>,
        container: Option<&Path>,
    ) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("open the log");
        let errors = out.try_clone().expect("two handles of the log");
        // When the test process is killed, its daemons go with it.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", ns.path().display())).arg("--");
        if let Some(root) = container {
            std::fs::create_dir_all(root).expect("make the container's root");
            command
                .args(["unshare", "--mount", "--propagation", "slave", "sh", "-c", CONTAINER, "sh"])
                .arg(root);
        }
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        if let Some(names) = capabilities {
            let bounded: String = names.iter().map(|name| format!(",+{name}")).collect();
            command.args(["--bounding-set", &format!("-all{bounded}")]);
        }
        let child = command
            .args([&**BINARY, "run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .expect("setpriv and nsenter start (package util-linux)");
        Daemon { child, log: log.to_owned(), ended: false }
    }

    /// Process id: `setpriv` and `nsenter` replace themselves, so it is the daemon's own.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `status` says it is ready; panics when it ends before or takes too long.
    pub(crate) fn wait_ready(&mut self, cli: &Cli) {
        let end = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
                self.ended = true;
                panic!("the daemon ended before it was ready: {status}\n{}", self.log_text());
            }
            let status = cli.try_status();
            if status.as_ref().is_some_and(super::cli::Status::ready) {
                return;
            }
            assert!(
                Instant::now() < end,
                "the daemon is not ready after {START_LIMIT:?}; status {status:?}\n{}",
                self.log_text()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid"));
        kill(pid, signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
    }

    /// SIGTERM, then waits for the end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
                self.ended = true;
                return status;
            }
            assert!(Instant::now() < end, "the daemon did not end after SIGTERM\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if !self.ended {
            self.signal(Signal::SIGKILL);
            self.child.wait().expect("wait for the daemon");
            self.ended = true;
        }
    }

    /// Whether it still runs.
    pub(crate) fn alive(&mut self) -> bool {
        !self.ended && self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Ids that `/proc/<pid>/fdinfo` names for `key`: `map_id` or `prog_id`.
    pub(crate) fn bpf_ids(&self, key: &str) -> Vec<u32> {
        let Ok(dir) = std::fs::read_dir(format!("/proc/{}/fdinfo", self.pid())) else { return Vec::new() };
        let mut ids: Vec<u32> = dir
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The end of its log.
    pub(crate) fn log_text(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(80)..];
        format!("--- {}\n{}\n---", self.log.display(), last.join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended {
            // A stopped process dies of SIGKILL too. Errors: it is gone already.
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
