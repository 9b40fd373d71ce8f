//! The control plane at scale: how long a daemon takes to become ready, how much memory it has then, how long
//! a changed file takes to be in force on every worker, how long a policy of many rules does while packets flow, and, in
//! this process, how many updates a second go through the compilation.
#![forbid(unsafe_code)]

mod manifests;
mod rows;
mod swap;
mod updates;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rows::{Row, percentile};
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
    /// Rules of the policy that is replaced while packets flow.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    rules: u32,
    /// Times it is replaced, in each of two ways.
    #[arg(long, default_value_t = 200)]
    swaps: u32,
    /// Does only what needs no daemon.
    #[arg(long)]
    only_updates: bool,
    /// Leaves out what needs no daemon.
    #[arg(long)]
    no_updates: bool,
    /// Also writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The daemon.
    #[arg(long, default_value = "target/release/fastpath")]
    daemon: PathBuf,
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

    let mut rows = if options.no_updates { Vec::new() } else { updates::run() };
    if options.only_updates {
        rows.iter().for_each(Row::print);
        return Ok(());
    }
    let start = Instant::now();
    let daemon = Daemon::start(&node, &binary, &dir)?;
    daemon.wait(|s| s.ready && s.ports == u64::from(options.here) + 3)?;
    let scale = format!(
        "{} pods here of {}, {} services of {} backends, {} policies",
        options.here, options.pods, options.services, options.backends, options.policies
    );
    rows.push(Row::of(format!("start to ready: {scale}"), "s", start.elapsed().as_secs_f64(), Vec::new()));
    rows.push(Row::of("resident memory then", "MiB", daemon.resident_mib()?, Vec::new()));
    for (name, text) in manifests::CHANGES {
        let file = dir.join("manifests").join(format!("change-{name}.yaml"));
        let (mut whole, mut applied) = (Vec::new(), Vec::new());
        for n in 0..options.changes {
            let start = Instant::now();
            applied.push(daemon.applied(Duration::ZERO, || daemon.replace(&file, &text(n)))?);
            whole.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let row = |of: &str, runs: Vec<f64>| {
            Row::of(format!("changed {name}, {of}"), "ms", percentile(&runs, 50), runs)
        };
        rows.push(row("from the file's rename", whole));
        rows.push(row("from the source's new model", applied));
    }
    rows.extend(swap::run(options, &daemon, &pods, &dir.join("manifests"))?);
    rows.iter().for_each(Row::print);
    if let Some(path) = &options.json {
        rows::write(path, &rows)?;
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
    for (ours, theirs) in swap::DEVICES {
        node.ip(&format!("link add {ours} type veth peer name {theirs} netns {}", pods.name()))?;
        node.ip(&format!("link set {ours} up"))?;
        pods.ip(&format!("link set {theirs} up"))?;
        pods.exec(&format!("ethtool -K {theirs} tx off"))?;
    }
    Ok(())
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    for (byte, part) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).with_context(|| text.to_owned())?;
    }
    Ok(mac)
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
    /// Changes that came into force, and how long the last one took.
    applied: u64,
    applied_us: f64,
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
        let child = node.daemon(binary, &config, &dir.join("daemon.log"))?;
        Ok(Self { child, binary: binary.to_owned(), dir: dir.to_owned(), pins })
    }

    fn status(&self) -> Option<Status> {
        let json = self.ask(&["status", "-o", "json"])?;
        Some(Status {
            ready: json.get("ready")?.as_bool()?,
            generation: json.get("generation")?.as_u64()?,
            acked: json.get("acked_generation")?.as_u64()?,
            ports: u64::try_from(json.get("ports")?.as_array()?.len()).ok()?,
            applied: json.pointer("/applied/count")?.as_u64()?,
            applied_us: json.pointer("/applied/last_us")?.as_f64()?,
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
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Changes a file at once, as an editor does.
    fn replace(&self, file: &Path, text: &str) -> Result<()> {
        let draft = self.dir.join("draft");
        std::fs::write(&draft, text)?;
        Ok(std::fs::rename(&draft, file)?)
    }

    /// Makes a change; milliseconds from the source's new model to the last worker's acknowledgement, by the daemon's
    /// own clock. Whether it is so is asked after `pause`: asking costs what the daemon would have of its core.
    fn applied(&self, pause: Duration, change: impl FnOnce() -> Result<()>) -> Result<f64> {
        let before = self.wait(|s| s.generation == s.acked)?.applied;
        change()?;
        std::thread::sleep(pause);
        let after = self.wait(|s| s.applied > before && s.acked >= s.generation)?;
        Ok(after.applied_us / 1e3)
    }

    /// Drops by name, as one line.
    fn drops(&self) -> Result<String> {
        let out = self.ask(&["show", "drops", "-o", "json"]).context("show drops")?;
        let rows = out.as_array().cloned().unwrap_or_default();
        let some = rows.iter().filter_map(|r| {
            let (reason, packets) = (r.get("reason")?.as_str()?, r.get("packets")?.as_u64()?);
            (packets > 0).then(|| format!("{reason} {packets}"))
        });
        Ok(some.collect::<Vec<_>>().join(", "))
    }

    /// Counters of a port's one queue.
    fn port(&self, name: &str) -> Result<serde_json::Value> {
        let all = self.ask(&["show", "ports", "-o", "json"]).context("show ports")?;
        let ports = all.get("ports").and_then(serde_json::Value::as_array);
        let port = ports.into_iter().flatten().find(|p| p.get("name").is_some_and(|n| n == name));
        port.and_then(|p| p.pointer("/queues/0").cloned()).with_context(|| format!("show ports: no {name}"))
    }

    fn ask(&self, words: &[&str]) -> Option<serde_json::Value> {
        let out = Command::new(&self.binary)
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .args(words)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        serde_json::from_slice(&out.stdout).ok()
    }

    fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
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
