//! Network namespaces with a name of this process, removed on drop.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command;

/// Names are `fpbench-<pid>-<name>`.
pub(crate) const PREFIX: &str = "fpbench-";

/// A named network namespace.
#[derive(Debug)]
pub(crate) struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes one, without IPv6: nothing but what is sent is on its devices.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        command("ip", &["netns", "add", &name])?;
        let ns = Self { name };
        ns.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        ns.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        for devices in ["all", "default"] {
            ns.sysctl(&format!("ipv4/conf/{devices}/rp_filter"), "0")?;
        }
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Name as in `ip netns list`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// File that stands for it.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `f` inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(self.path()).with_context(|| self.path())?;
                setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", self.name))?;
                f()
            });
            thread.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// Runs one `ip` command line, given without the word `ip`.
    pub(crate) fn ip(&self, line: &str) -> Result<String> {
        let mut args = vec!["-n", &self.name];
        args.extend(line.split(' '));
        command("ip", &args)
    }

    /// Runs a program inside.
    pub(crate) fn exec(&self, line: &str) -> Result<String> {
        let net = format!("--net={}", self.path());
        let mut args = vec![net.as_str(), "--"];
        args.extend(line.split(' '));
        command("nsenter", &args)
    }

    /// Starts the daemon inside, what it says into the file `log`.
    pub(crate) fn daemon(&self, binary: &Path, config: &Path, log: &Path) -> Result<Child> {
        let out = File::create(log)?;
        // When this process is killed, the daemon goes with it.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", &format!("--net={}", self.path()), "--"])
            .arg(binary)
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("setpriv and nsenter of util-linux")
    }

    /// Writes `/proc/sys/net/<key>`.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| std::fs::write(&path, value).with_context(|| path.clone()))
    }

    /// MAC address of a device.
    pub(crate) fn mac(&self, device: &str) -> Result<String> {
        let text = self.ip(&format!("-br link show dev {device}"))?;
        text.split_whitespace().nth(2).map(str::to_owned).with_context(|| format!("no MAC address in {text}"))
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if let Err(error) = command("ip", &["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes namespaces, folders and pins of runs whose process is gone.
pub(crate) fn clean() {
    let abandoned = |name: &str| {
        name.strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
    };
    for dir in ["/run/netns", "/tmp", "/sys/fs/bpf"] {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for name in
            entries.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(|n| abandoned(n))
        {
            let done = if dir == "/run/netns" {
                command("ip", &["netns", "del", &name]).map(|_| ())
            } else {
                std::fs::remove_dir_all(format!("{dir}/{name}")).map_err(Into::into)
            };
            if let Err(error) = done {
                eprintln!("{dir}/{name}: {error:#}");
            }
        }
    }
}
