//! Measures the dataplane and its peers in turn on one topology, and reports the ratios.
#![forbid(unsafe_code)]

mod daemon;
mod frame;
pub(crate) mod keys;
mod latency;
mod manifests;
pub(crate) mod netns;
mod peers;
mod rows;
mod topology;
mod traffic;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::results;
use latency::{Asking, Trips, Way};
pub(crate) use netns::clean;
use peers::{Peer, Running};
use topology::{MOST_PODS, Topology};
use traffic::{Run, Workload};

/// What `fastpath-bench lab` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds; in each, every peer is measured once with everything it takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Milliseconds of traffic of each measurement.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    millis: u64,
    /// Frames the generator sends at a time, at most 4096.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Only peers whose name has this in it; the dataplane is always one of them.
    #[arg(long)]
    peer: Option<String>,
    /// Only traffic whose name has this in it.
    #[arg(long)]
    traffic: Option<String>,
    /// Fewest round trips of a measurement, unless they take more than four times as long as it should.
    #[arg(long, default_value_t = 10_000)]
    round_trips: usize,
    /// Microseconds before each question, of round trips with pauses.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pause_us: u64,
    /// Leave out the part with one pod, the one about latency, the one with 250 pods.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Part>,
    /// The daemon.
    #[arg(long, default_value = "target/release/fastpath")]
    daemon: PathBuf,
}

/// Parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Rates,
    Latency,
    Pods,
}

/// What goes from one pod.
const WORKLOADS: [Workload; 8] = [
    Workload::SMALL,
    Workload::Pods(512),
    Workload::Pods(1464),
    Workload::Imix,
    Workload::Known,
    Workload::Service,
    Workload::Sockets,
    Workload::Vxlan,
];
/// What goes to many pods, each against the first.
const SPREADS: [Workload; 7] = [
    Workload::Spread(1),
    Workload::Spread(10),
    Workload::Spread(100),
    Workload::Spread(MOST_PODS),
    Workload::Flows(1000),
    Workload::Flows(64_000),
    Workload::Flows(1_000_000),
];

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    runs: BTreeMap<(Peer, Workload), Vec<Run>>,
    /// Of each peer, in each way.
    trips: BTreeMap<(Peer, Way), Vec<Trips>>,
    /// Per cent of a core, with 250 idle pods.
    idle: Vec<f64>,
    skipped: BTreeMap<Peer, String>,
    /// Mpps that generator and sink do without a forwarder.
    ceiling: f64,
}

/// Makes the topology, measures, reports, and removes everything.
///
/// # Errors
/// When something cannot be set up, or the dataplane delivers nothing.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces and XDP need root");
    ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "the generator and the worker need a core each"
    );
    let daemon = options.daemon.canonicalize().with_context(|| format!("{}", options.daemon.display()))?;
    let lab = Lab { options, daemon, time: Duration::from_millis(options.millis) };
    clean();
    let mut all = Measured::default();
    let with = |part| !options.without.contains(&part);
    if with(Part::Rates) || with(Part::Latency) {
        let topology = Topology::create(1)?;
        if with(Part::Rates) {
            lab.rates(&topology, &mut all)?;
        }
        if with(Part::Latency) {
            lab.latency(&topology, &mut all)?;
        }
    }
    if with(Part::Pods) {
        lab.pods(&Topology::create(MOST_PODS)?, &mut all)?;
    }
    let rows = rows::of(&all);
    if let Some(file) = &options.json {
        results::write(file, &rows)?;
    }
    print!("\n{}", results::table(&rows));
    Ok(())
}

struct Lab<'a> {
    options: &'a Options,
    daemon: PathBuf,
    time: Duration,
}

impl Lab<'_> {
    /// Whether a peer is among those asked for.
    fn wants(&self, peer: Peer) -> bool {
        peer == Peer::Fastpath || self.options.peer.as_ref().is_none_or(|part| peer.name().contains(part))
    }

    /// Packets a second, from one pod.
    fn rates(&self, topology: &Topology, all: &mut Measured) -> Result<()> {
        let ceiling = traffic::ceiling(topology, self.time, self.options.batch)?;
        println!("no forwarder: {:.3} Mpps delivered of {:.3} sent", ceiling.delivered, ceiling.sent);
        all.ceiling = ceiling.delivered;
        for round in 1..=self.options.rounds {
            for peer in Peer::ALL {
                let takes: Vec<Workload> = WORKLOADS.into_iter().filter(|w| peer.takes(*w)).collect();
                self.turn(topology, round, peer, &takes, all)?;
            }
        }
        Ok(())
    }

    /// One peer's turn; a peer that does not start, or delivers nothing, has no other.
    fn turn(
        &self,
        topology: &Topology,
        round: u32,
        peer: Peer,
        workloads: &[Workload],
        all: &mut Measured,
    ) -> Result<()> {
        let asked = |w: &&Workload| self.options.traffic.as_ref().is_none_or(|part| w.name().contains(part));
        if !self.wants(peer) || all.skipped.contains_key(&peer) || !workloads.iter().any(|w| asked(&w)) {
            return Ok(());
        }
        let running = match peer.start(topology, &self.daemon) {
            Ok(running) => running,
            Err(error) if peer == Peer::Fastpath => return Err(error),
            Err(error) => {
                println!("{}: skipped: {error:#}", peer.name());
                all.skipped.insert(peer, format!("{error:#}"));
                return Ok(());
            }
        };
        for workload in workloads.iter().filter(asked) {
            let run = traffic::measure(topology, *workload, self.time, self.options.batch)?;
            let name = peer.name();
            println!(
                "round {round}: {}: {name}: {:.3} Mpps delivered of {:.3} sent, {:.0} % asleep",
                workload.name(),
                run.delivered,
                run.sent,
                run.asleep * 100.0
            );
            if run.delivered <= 0.0 {
                ensure!(peer != Peer::Fastpath, "{name} delivered nothing");
                all.skipped.insert(peer, "it delivered nothing".to_owned());
                break;
            }
            all.runs.entry((peer, *workload)).or_default().push(run);
        }
        if let (Running::Fastpath(daemon), true) =
            (&running, std::env::var_os("FASTPATH_BENCH_RUNTIME").is_some())
        {
            println!("{}", daemon.runtime(&self.daemon)?);
        }
        Ok(())
    }

    /// Round trips in each way; other traffic is half of what the kernel forwards at most.
    fn latency(&self, topology: &Topology, all: &mut Measured) -> Result<()> {
        let most = all.runs.get(&(Peer::Kernel, Workload::SMALL));
        let load =
            most.and_then(|runs| results::median(runs.iter().map(|r| r.delivered))).unwrap_or(0.8) / 2.0;
        for round in 1..=self.options.rounds {
            for peer in Peer::ASKED {
                if !self.wants(peer) {
                    continue;
                }
                let _running = peer.start(topology, &self.daemon)?;
                let ways = Way::ALL
                    .into_iter()
                    .filter(|way| self.options.traffic.as_ref().is_none_or(|part| way.name().contains(part)));
                for way in ways {
                    let asking = Asking {
                        way,
                        time: self.time * 2,
                        trips: self.options.round_trips,
                        load,
                        pause: Duration::from_micros(self.options.pause_us),
                    };
                    let trips = latency::measure(topology, asking)?;
                    println!(
                        "round {round}: round trips, {}: {}: p50 {:.1} p99 {:.1} p99.9 {:.1} µs, {:.0}/s, {:.0} of a million lost",
                        way.name(),
                        peer.name(),
                        trips.p50,
                        trips.p99,
                        trips.p999,
                        trips.rate,
                        trips.lost
                    );
                    all.trips.entry((peer, way)).or_default().push(trips);
                }
            }
        }
        Ok(())
    }

    /// With 250 pods: idle, and packets a second to more and more of them.
    fn pods(&self, topology: &Topology, all: &mut Measured) -> Result<()> {
        let running = daemon::Daemon::start(topology, &self.daemon, daemon::TOGETHER)?;
        std::thread::sleep(Duration::from_secs(2));
        for _ in 0..2 {
            let idle = latency::idle(running.id(), self.time.max(Duration::from_secs(2)) * 2)?;
            println!("{} idle pods: the worker takes {idle:.3} % of a core", topology.pods);
            all.idle.push(idle);
        }
        drop(running);
        for round in 1..=self.options.rounds {
            self.turn(topology, round, Peer::Fastpath, &SPREADS, all)?;
            self.turn(topology, round, Peer::KernelRules(50), &[SPREADS[0], SPREADS[3]], all)?;
        }
        Ok(())
    }
}
