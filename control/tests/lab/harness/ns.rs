//! Network namespaces: made, entered from dedicated threads, removed on drop.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

/// A named network namespace; everything in it goes when it is dropped.
#[derive(Debug)]
pub(crate) struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes the namespace, loopback up, duplicate address detection off.
    pub(crate) fn create(name: &str) -> Self {
        run_ok(Command::new("ip").args(["netns", "add", name]));
        let ns = NetNs { name: name.to_owned() };
        for (key, value) in [
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/dad_transmits", "0"),
            ("ipv6/conf/all/accept_ra", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/default/arp_notify", "1"),
            ("ipv6/conf/default/ndisc_notify", "1"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            ns.sysctl(key, value);
        }
        ns.ip(["link set lo up"]);
        ns
    }

    /// Name as in `ip netns list`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// File that stands for the namespace.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `f` inside, on a thread of its own, and returns its value; sockets opened there stay there.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let handle = scope.spawn(|| {
                self.enter();
                f()
            });
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside.
    ///
    /// `nsenter`, not `ip netns exec`: the latter makes a private mount namespace, in which what is
    /// pinned in bpffs vanishes with the process.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command inside and panics with its output when it fails.
    pub(crate) fn exec(&self, program: &str, args: &[&str]) -> String {
        run_ok(self.command(program).args(args))
    }

    /// Runs lines of `ip` (without the word `ip`) inside; panics when one fails.
    pub(crate) fn ip<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) {
        let mut text = String::new();
        for line in lines {
            text.push_str(line.as_ref());
            text.push('\n');
        }
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip(8) starts (package iproute2)");
        child.stdin.take().expect("stdin is piped").write_all(text.as_bytes()).expect("ip reads its batch");
        let out = child.wait_with_output().expect("ip ends");
        assert!(
            out.status.success(),
            "in {}: ip -batch: {}\n{text}",
            self.name,
            String::from_utf8_lossy(&out.stderr)
        );
    }

    /// Writes `/proc/sys/net/<key>` of this namespace.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| std::fs::write(&path, value)).unwrap_or_else(|e| panic!("{path} in {}: {e}", self.name));
    }

    /// MAC address of a device inside.
    pub(crate) fn mac(&self, device: &str) -> [u8; 6] {
        let link = self.link_json(device);
        let text = link["address"].as_str().expect("a link has an address").to_owned();
        let mut mac = [0; 6];
        for (byte, part) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(part, 16).expect("a MAC address is hexadecimal");
        }
        mac
    }

    /// What `ip -d -j link show dev` says of a device.
    pub(crate) fn link_json(&self, device: &str) -> serde_json::Value {
        let text =
            run_ok(Command::new("ip").args(["-n", &self.name, "-d", "-j", "link", "show", "dev", device]));
        let value: serde_json::Value = serde_json::from_str(&text).expect("ip -j prints JSON");
        value[0].clone()
    }

    /// Value of a received/sent counter of a device, e.g. `rx.packets`.
    pub(crate) fn link_counter(&self, device: &str, direction: &str, counter: &str) -> u64 {
        let text =
            run_ok(Command::new("ip").args(["-n", &self.name, "-s", "-j", "link", "show", "dev", device]));
        let value: serde_json::Value = serde_json::from_str(&text).expect("ip -j prints JSON");
        value[0]["stats64"][direction][counter].as_u64().expect("ip -s prints counters")
    }

    fn enter(&self) {
        let file = File::open(self.path()).unwrap_or_else(|e| panic!("{}: {e}", self.path().display()));
        setns(&file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("setns to {}: {e}", self.name));
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes a namespace by name; nothing happens when it is gone already.
pub(crate) fn remove(name: &str) {
    let path = PathBuf::from("/run/netns").join(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(e) => eprintln!("lab: unmount {}: {e}", path.display()),
    }
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => eprintln!("lab: remove {}: {e}", path.display()),
    }
}

/// Runs a command to its end, returns its output, panics with both streams when it fails.
pub(crate) fn run_ok(command: &mut Command) -> String {
    let out = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", command.get_program().display()));
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}
