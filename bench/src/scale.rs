//! The control plane at scale: how long a daemon takes to become ready, how much memory it has then, and how long
//! a changed file takes to be in force on every worker.
#![forbid(unsafe_code)]

mod manifests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::lab::netns::{NetNs, PREFIX};

/// Longest wait for the daemon to become ready, or for a change.
const LIMIT: Duration = Duration::from_secs(120);

/// What `fastpath-bench scale` takes.
#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct Options {
    /// Pods of the cluster.
    #[arg(long, default_value_t = 1000)]
    pods: u32,
    /// Pods of them on this node, each with a veth.
    #[arg(long, default_value_t = 100)]
    here: u32,
    /// Services.
    #[arg(long, default_value_t = 1000)]
    services: u32,
    /// Backends of each service.
    #[arg(long, default_value_t = 10)]
    backends: u32,
    /// NetworkPolicies.
    #[arg(long, default_value_t = 500)]
    policies: u32,
    /// Changes of each kind.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Also writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The daemon.
    #[arg(long, default_value = "target/release/fastpath")]
    daemon: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    options: &'a Options,
    /// From the daemon's start to ready with all pods attached, seconds.
    ready_s: f64,
    /// Resident memory then, MiB.
    memory_mib: u64,
    changes: Vec<Change>,
}

/// From the rename of a changed file to the acknowledgement of the last worker, milliseconds.
#[derive(Debug, Serialize)]
struct Change {
    name: &'static str,
    median_ms: f64,
    max_ms: f64,
}

/// Runs it.
///
/// # Errors
/// When something cannot be set up, or the daemon does not become ready.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces and XDP need root");
    ensure!(
        options.here <= options.pods && options.here <= 250,
        "at most 250 pods on the node, and no more than all"
    );
    let binary = options.daemon.canonicalize().with_context(|| format!("{}", options.daemon.display()))?;
    crate::lab::clean();
    let node = NetNs::create("node")?;
    let pods = NetNs::create("pods")?;
    devices(&node, &pods, options.here)?;
    let dir = PathBuf::from(format!("/tmp/{PREFIX}{}-scale", std::process::id()));
    std::fs::create_dir_all(dir.join("manifests"))?;
    let _folder = Folder(dir.clone());
    manifests::write(&dir.join("manifests"), options)?;

    let start = Instant::now();
    let daemon = Daemon::start(&node, &binary, &dir)?;
    daemon.wait(|s| s.ready && s.ports == u64::from(options.here) + 1)?;
    let ready_s = start.elapsed().as_secs_f64();
    println!(
        "ready after {ready_s:.2} s: {} pods here of {}, {} services of {} backends, {} policies",
        options.here, options.pods, options.services, options.backends, options.policies
    );
    let memory_mib = daemon.resident_mib()?;
    println!("resident memory {memory_mib} MiB");
    let mut changes = Vec::new();
    for (name, text) in manifests::CHANGES {
        let file = dir.join("manifests").join(format!("change-{name}.yaml"));
        let mut times = Vec::new();
        for n in 0..options.changes {
            times.push(daemon.change(&file, &text(n))?);
        }
        times.sort_by(f64::total_cmp);
        let (median_ms, max_ms) =
            (times.get(times.len() / 2).copied().unwrap_or(0.0), times.last().copied().unwrap_or(0.0));
        println!(
            "{name}: in force on every worker after {median_ms:.1} ms (longest of {}: {max_ms:.1})",
            times.len()
        );
        changes.push(Change { name, median_ms, max_ms });
    }
    if let Some(path) = &options.json {
        let report = Report { options, ready_s, memory_mib, changes };
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}

fn devices(node: &NetNs, pods: &NetNs, here: u32) -> Result<()> {
    node.ip(&format!("link add up0 type veth peer name up0 netns {}", pods.name()))?;
    node.ip("addr add 192.168.0.1/16 dev up0")?;
    node.ip("link set up0 up")?;
    pods.ip("link set up0 up")?;
    for n in 1..=here {
        node.ip(&format!("link add fp{n} type veth peer name eth{n} netns {}", pods.name()))?;
        node.ip(&format!("link set fp{n} up"))?;
        pods.ip(&format!("link set eth{n} up"))?;
    }
    Ok(())
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// What `fastpath status` says of interest here.
#[derive(Debug)]
struct Status {
    ready: bool,
    generation: u64,
    acked: u64,
    ports: u64,
}

struct Daemon {
    child: Child,
    binary: PathBuf,
    dir: PathBuf,
    pins: PathBuf,
}

impl Daemon {
    fn start(node: &NetNs, binary: &Path, dir: &Path) -> Result<Self> {
        let pins = PathBuf::from(format!("/sys/fs/bpf/{PREFIX}{}", std::process::id()));
        let (at, pin_dir) = (dir.display(), pins.display());
        let text = format!(
            "[node]\nname = \"node-1\"\n[daemon]\nstate_dir = \"{at}/state\"\n[source]\npath = \"{at}/manifests\"\n\
             [xdp]\npin_dir = \"{pin_dir}\"\n[uplink]\ninterfaces = [\"up0\"]\n[memory]\nframes_per_worker = 65536\n"
        );
        let config = dir.join("fastpath.toml");
        std::fs::write(&config, text)?;
        let out = File::create(dir.join("daemon.log"))?;
        // When this process is killed, the daemon goes with it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", &format!("--net={}", node.path()), "--"])
            .arg(binary)
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("setpriv and nsenter of util-linux")?;
        Ok(Self { child, binary: binary.to_owned(), dir: dir.to_owned(), pins })
    }

    fn status(&self) -> Option<Status> {
        let out = Command::new(&self.binary)
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .args(["status", "-o", "json"])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
        Some(Status {
            ready: json.get("ready")?.as_bool()?,
            generation: json.get("generation")?.as_u64()?,
            acked: json.get("acked_generation")?.as_u64()?,
            ports: u64::try_from(json.get("ports")?.as_array()?.len()).ok()?,
        })
    }

    fn wait(&self, done: impl Fn(&Status) -> bool) -> Result<Status> {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.status();
            match status {
                Some(status) if done(&status) => return Ok(status),
                _ if Instant::now() > end => {
                    let log = std::fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default();
                    bail!("the daemon does not get there: {status:?}\n{log}");
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Changes a file at once, as an editor does; milliseconds until every worker forwards by it.
    fn change(&self, file: &Path, text: &str) -> Result<f64> {
        let before = self.wait(|s| s.generation == s.acked)?.generation;
        let draft = self.dir.join("draft");
        std::fs::write(&draft, text)?;
        let start = Instant::now();
        std::fs::rename(&draft, file)?;
        self.wait(|s| s.generation > before && s.acked >= s.generation)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn resident_mib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Fails only when it is gone already.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.pins));
    }
}
