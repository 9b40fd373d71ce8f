//! Measures the dataplane and the kernel in turn on one topology, and reports the ratios.
#![forbid(unsafe_code)]

mod daemon;
pub(crate) mod netns;
mod report;
mod topology;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub(crate) use netns::clean;
use report::Comparison;
use topology::{Path, Topology};

/// What `fastpath-bench lab` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also writes the results to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds; in each, every contender is measured once on every path.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Milliseconds of traffic of each measurement.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    millis: u64,
    /// Frames the generator sends at a time, at most 4096.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// The daemon.
    #[arg(long, default_value = "target/release/fastpath")]
    daemon: PathBuf,
}

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// The daemon, its worker on core 1.
    Fastpath,
    /// The kernel, where the packets arrive: on the generator's core.
    Kernel,
    /// The kernel, with receive packet steering to core 1.
    KernelSteered,
}

impl Contender {
    const ALL: [Self; 3] = [Self::Fastpath, Self::Kernel, Self::KernelSteered];

    fn name(self, path: Path) -> &'static str {
        match (self, path) {
            (Self::Fastpath, _) => "fastpath",
            (Self::Kernel, Path::SameNode) => "kernel routing",
            (Self::Kernel, Path::Vxlan) => "kernel vxlan",
            (Self::KernelSteered, Path::SameNode) => "kernel routing, steered to core 1",
            (Self::KernelSteered, Path::Vxlan) => "kernel vxlan, steered to core 1",
        }
    }
}

/// Makes the topology, measures, reports, and removes everything.
///
/// # Errors
/// When something cannot be set up, or a contender delivers nothing.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces and XDP need root");
    ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "the generator and the worker need a core each"
    );
    let daemon = options.daemon.canonicalize().with_context(|| format!("{}", options.daemon.display()))?;
    clean();
    let topology = Topology::create()?;
    let time = Duration::from_millis(options.millis);
    let ceiling = traffic::ceiling(&topology, time, options.batch)?;
    println!(
        "no forwarder: {:.3} Mpps delivered of {:.3} sent, {:.0} % asleep",
        ceiling.delivered,
        ceiling.sent,
        ceiling.asleep * 100.0
    );
    let mut comparisons = Path::ALL.map(Comparison::new);
    for round in 1..=options.rounds {
        for contender in Contender::ALL {
            // Held during the measurements.
            let _daemon = if contender == Contender::Fastpath {
                topology.leave_kernel()?;
                Some(daemon::Daemon::start(&topology, &daemon)?)
            } else {
                topology.forward_by_kernel(contender == Contender::KernelSteered)?;
                None
            };
            for comparison in &mut comparisons {
                let path = comparison.path;
                let run = traffic::measure(&topology, path, time, options.batch)?;
                let name = contender.name(path);
                println!(
                    "round {round}: {}: {name}: {:.3} Mpps delivered of {:.3} sent, {:.0} % asleep",
                    path.name(),
                    run.delivered,
                    run.sent,
                    run.asleep * 100.0
                );
                ensure!(run.delivered > 0.0, "{name} delivered nothing");
                comparison.add(contender, run);
            }
        }
    }
    report::print(&comparisons, ceiling.delivered);
    if let Some(file) = &options.json {
        report::write(file, options, &comparisons, ceiling.delivered)?;
    }
    Ok(())
}
