//! Settings of the configuration against one another: one topology, a daemon for each setting, in turn (A B A B).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use toml::{Table, Value};

use super::clean;
use super::daemon::{Daemon, TOGETHER};
use super::latency::{self, Asking, Way};
use super::topology::{MOST_PODS, Topology};
use super::traffic::{self, Workload};
use crate::results;

/// Time between two bursts, and between two questions of [`Measure::Seldom`].
const PAUSE: Duration = Duration::from_millis(5);
/// Million packets a second beside [`Measure::Loaded`]'s questions.
const LOAD: f64 = 0.2;

/// What `fastpath-bench keys` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Settings, each measured in its turn: keys and values as `memory.rx_ring=256;memory.tx_ring=256`, or `default`.
    #[arg(required = true)]
    settings: Vec<Overrides>,
    /// What to measure.
    #[arg(long, value_delimiter = ',', required = true)]
    measure: Vec<Measure>,
    /// Keys and values that all settings have.
    #[arg(long, default_value = "default")]
    with: Overrides,
    /// Rounds; in each, every setting is measured once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Milliseconds of each measurement.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    millis: u64,
    /// Pods that count what they receive.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_PODS)))]
    pods: u16,
    /// Packets of a burst.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=4096))]
    burst: u32,
    /// Full vectors leave in one call, unless a setting says otherwise; the default is by sockets.
    #[arg(long)]
    together: bool,
    /// Also writes all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The daemon.
    #[arg(long, default_value = "target/release/fastpath")]
    daemon: PathBuf,
}

/// What is measured of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Measure {
    /// Packets of 60 bytes to one pod, as fast as can be.
    Rate,
    /// Packets of 1464 bytes to one pod.
    Large,
    /// Datagrams of a socket.
    Socket,
    /// Packets of 60 bytes in VXLAN.
    Vxlan,
    /// Packets of 60 bytes to all pods in turn.
    Spread,
    /// A million flows to all pods.
    Flows,
    /// Packets lost of bursts to one pod.
    Bursts,
    /// Round trips, one after the other.
    Trips,
    /// Round trips with pauses between them, and the worker's time.
    Seldom,
    /// Round trips beside other traffic.
    Loaded,
    /// The worker's time without traffic.
    Idle,
    /// The process's memory, and all that the machine has less since before its start.
    Memory,
    /// From the start to all pods attached.
    Start,
}

/// Keys of the configuration and their values.
#[derive(Clone, Debug, Default)]
pub(super) struct Overrides {
    text: String,
    keys: Vec<(Vec<String>, Value)>,
}

impl FromStr for Overrides {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for one in text.split(';').map(str::trim).filter(|one| !one.is_empty() && *one != "default") {
            let (key, value) =
                one.split_once('=').with_context(|| format!("`{one}`: KEY=VALUE is wanted"))?;
            let value = value.trim();
            let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
            // A word needs no quotes.
            let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
            keys.push((key.trim().split('.').map(str::to_owned).collect(), value));
        }
        Ok(Self { text: text.to_owned(), keys })
    }
}

impl Overrides {
    /// A configuration with these keys in it.
    pub(super) fn over(&self, text: &str) -> Result<String> {
        let mut whole: Table = text.parse().context("the lab's configuration")?;
        for (path, value) in &self.keys {
            let Some((key, sections)) = path.split_last() else { continue };
            let mut table = &mut whole;
            for section in sections {
                let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
                let Value::Table(inner) = entry else { bail!("{section} is no section") };
                table = inner;
            }
            table.insert(key.clone(), value.clone());
        }
        Ok(whole.to_string())
    }

    fn and(&self, more: &Self) -> Self {
        let keys = self.keys.iter().chain(&more.keys).cloned().collect();
        Self { text: more.text.clone(), keys }
    }
}

/// Figures by setting (its place) and by what they are, one a round.
type Figures = BTreeMap<(usize, String), Vec<f64>>;

/// Measures each setting in each round and prints medians and extremes.
///
/// # Errors
/// When something cannot be set up, or a daemon does not start with a setting.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces and XDP need root");
    let binary = options.daemon.canonicalize().with_context(|| format!("{}", options.daemon.display()))?;
    clean();
    let topology = Topology::create(options.pods)?;
    let mut figures = Figures::new();
    for _ in 0..options.rounds {
        for (place, setting) in options.settings.iter().enumerate() {
            for (name, figure) in turn(options, &topology, &binary, &options.with.and(setting))? {
                figures.entry((place, name)).or_default().push(figure);
            }
        }
    }
    print(options, &figures);
    if let Some(file) = &options.json {
        let rows: Vec<_> = figures
            .iter()
            .map(|((place, name), runs)| {
                let setting = options.settings.get(*place).map_or("", |s| s.text.as_str());
                serde_json::json!({"setting": setting, "with": options.with.text, "name": name,
                    "median": results::median(runs.iter().copied()), "runs": runs})
            })
            .collect();
        fs::write(file, serde_json::to_string_pretty(&rows)?).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// One daemon, from its start to its end.
fn turn(
    options: &Options,
    topology: &Topology,
    binary: &Path,
    overrides: &Overrides,
) -> Result<Vec<(String, f64)>> {
    let time = Duration::from_millis(options.millis);
    let says = |key: &str| overrides.keys.iter().any(|(path, _)| path.join(".") == key);
    let workers = if options.together && !says("workers.transmit") { TOGETHER } else { "" };
    let (free, start) = (meminfo()?, Instant::now());
    let daemon = Daemon::start_with(topology, binary, workers, overrides)?;
    let ready = start.elapsed().as_secs_f64() * 1e3;
    let mut out: Vec<(String, f64)> = Vec::new();
    let mut say = |name: &str, figure: f64| out.push((name.to_owned(), figure));
    let rate = |workload| Ok::<_, anyhow::Error>(traffic::measure(topology, workload, time, 4096)?.delivered);
    for measure in &options.measure {
        match measure {
            Measure::Rate => say("60 B, Mpps", rate(Workload::SMALL)?),
            Measure::Large => say("1464 B, Mpps", rate(Workload::Pods(1464))?),
            Measure::Socket => say("socket, Mpps", rate(Workload::Sockets)?),
            Measure::Vxlan => say("VXLAN, Mpps", rate(Workload::Vxlan)?),
            Measure::Spread => say("all pods in turn, Mpps", rate(Workload::Spread(options.pods))?),
            Measure::Flows => say("1M flows, Mpps", rate(Workload::Flows(1_000_000))?),
            Measure::Bursts => {
                say("bursts, % lost", traffic::bursts(topology, time, options.burst, PAUSE)?);
            }
            Measure::Trips | Measure::Loaded | Measure::Seldom => {
                let (way, name) = match measure {
                    Measure::Loaded => (Way::Loaded, "trips under load"),
                    Measure::Seldom => (Way::Paused, "trips every 5 ms"),
                    _ => (Way::Alone, "trips"),
                };
                let asking = Asking { way, time, trips: 1, load: LOAD, pause: PAUSE };
                let (start, before) = (Instant::now(), latency::worker_time(daemon.id())?);
                let trips = latency::measure(topology, asking)?;
                let took = latency::worker_time(daemon.id())?.saturating_sub(before);
                say(&format!("{name}, p50 µs"), trips.p50);
                say(&format!("{name}, p99 µs"), trips.p99);
                if way != Way::Loaded {
                    let share = took.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
                    say(&format!("{name}, worker %"), share);
                }
            }
            Measure::Idle => {
                std::thread::sleep(Duration::from_millis(500));
                say("idle, worker %", latency::idle(daemon.id(), time)?);
            }
            Measure::Memory => {
                say("process, MiB", resident(daemon.id())?);
                say("machine, MiB", free - meminfo()?);
            }
            Measure::Start => say("start, ms", ready),
        }
    }
    Ok(out)
}

fn print(options: &Options, figures: &Figures) {
    let mut names: Vec<&str> = Vec::new();
    for (_, name) in figures.keys() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    println!("| {} pods; {} | {} |", options.pods, options.with.text, names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for (place, setting) in options.settings.iter().enumerate() {
        let cell = |name: &&str| {
            let Some(runs) = figures.get(&(place, (*name).to_owned())) else { return String::new() };
            let least = runs.iter().copied().fold(f64::INFINITY, f64::min);
            let most = runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let digits = if most < 10.0 { 3 } else { 1 };
            let median = results::median(runs.iter().copied()).unwrap_or(f64::NAN);
            format!("{median:.digits$} ({least:.digits$} - {most:.digits$})")
        };
        let cells: Vec<String> = names.iter().map(cell).collect();
        println!("| {} | {} |", setting.text, cells.join(" | "));
    }
}

/// MiB of memory that the machine has left.
fn meminfo() -> Result<f64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

/// MiB of memory that a process has.
fn resident(pid: u32) -> Result<f64> {
    kilobytes(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// A line of a file of `/proc`, in kB there and in MiB here.
fn kilobytes(file: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(file).context(file.to_owned())?;
    let line =
        text.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("{file}: no {name}"))?;
    let number: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(number / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_over_what_the_lab_says() {
        let text = "[workers]\ncores = [1]\n[flow]\nentries_v4 = 4194304\n";
        let over: Overrides =
            "workers.transmit=together; flow.entries_v4=1024;flow.timeouts.udp=5".parse().unwrap();
        let whole: Table = over.over(text).unwrap().parse().unwrap();
        let wanted: Table = "[workers]\ncores = [1]\ntransmit = \"together\"\n[flow]\nentries_v4 = 1024\n\
                             [flow.timeouts]\nudp = 5\n"
            .parse()
            .unwrap();
        assert_eq!(whole, wanted);
        assert!("memory.rx_ring".parse::<Overrides>().is_err());
        let none: Overrides = "default".parse().unwrap();
        assert_eq!(none.over(text).unwrap().parse::<Table>().unwrap(), text.parse().unwrap());
        let cores: Overrides = "workers.cores=[0, 1]".parse().unwrap();
        assert!(cores.over(text).unwrap().contains("cores = [0, 1]"));
    }
}
