//! The daemon of the node: started for its turn, ended after it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::keys::Overrides;
use super::topology::Topology;

/// Longest start, and longest end before it is killed.
const LIMIT: Duration = Duration::from_secs(30);

/// As in `configs/profiles/throughput.toml`: full vectors leave in one call. The default sends by each port's socket.
pub(crate) const TOGETHER: &str = "transmit = \"together\"\n";

/// The profile `latency` as keys of `[workers]`, and sections behind them.
pub(crate) fn latency() -> Result<&'static str> {
    let text = include_str!("../../../configs/profiles/latency.toml");
    let (_, keys) = text.split_once("[workers]\n").context("the profile has no section workers")?;
    Ok(keys)
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pins: String,
    state: PathBuf,
}

impl Daemon {
    /// Starts it, with these keys of `[workers]` too (sections may follow them), and waits until all pods are attached.
    pub(crate) fn start(topology: &Topology, binary: &Path, workers: &str) -> Result<Self> {
        Self::start_with(topology, binary, workers, &Overrides::default())
    }

    /// The same with any keys over what the lab says.
    pub(super) fn start_with(
        topology: &Topology,
        binary: &Path,
        workers: &str,
        overrides: &Overrides,
    ) -> Result<Self> {
        let dir = topology.dir.display();
        let (config, state) = (topology.dir.join("fastpath.toml"), topology.dir.join("state"));
        let pins = format!("/sys/fs/bpf/{}{}", super::netns::PREFIX, std::process::id());
        let text = format!(
            "[node]\nname = \"node-1\"\n[daemon]\nstate_dir = \"{dir}/state\"\n[source]\nkind = \"directory\"\n\
             path = \"{dir}/manifests\"\n[xdp]\nmode = \"native\"\npin_dir = \"{pins}\"\n[uplink]\n\
             interfaces = [\"up0\"]\n[overlay]\nencap = \"vxlan\"\nfamily = \"ipv4\"\nvni = 4096\n[workers]\n\
             cores = [1]\n{workers}[flow]\nentries_v4 = 4194304\n[http]\nlisten = \"\"\n[services]\ncidrs = [\"10.96.0.0/16\"]\n"
        );
        std::fs::write(&config, overrides.over(&text)?)?;
        let log = topology.dir.join("daemon.log");
        let child = topology.node.daemon(binary, &config, &log)?;
        let mut daemon = Self { child, pins, state: state.clone() };
        let end = Instant::now() + LIMIT;
        loop {
            let shown = Command::new(binary)
                .arg("--state-dir")
                .arg(&state)
                .args(["show", "endpoints", "-o", "json"])
                .stdin(Stdio::null())
                .output()?;
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            if shown.matches("\"attached\"").count() == usize::from(topology.pods) + 3 {
                return Ok(daemon);
            }
            if daemon.child.try_wait()?.is_some() || Instant::now() > end {
                bail!("the daemon is not ready: {shown}\n{}", std::fs::read_to_string(&log)?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What `fastpath show runtime` says.
    pub(crate) fn runtime(&self, binary: &Path) -> Result<String> {
        let out =
            Command::new(binary).arg("--state-dir").arg(&self.state).args(["show", "runtime"]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let end = Instant::now() + LIMIT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                bail!("the daemon does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
            // Both fail only when it is gone already.
            drop(self.child.kill());
            drop(self.child.wait());
        }
        // Not there after a graceful end.
        drop(std::fs::remove_dir_all(&self.pins));
    }
}
