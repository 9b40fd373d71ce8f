//! Medians, ratios and the JSON file.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::topology::Path;
use super::traffic::Run;
use super::{Contender, Options, netns};

/// The generator may sleep this part of the time: timer ticks, the sink's counters.
const ASLEEP: f64 = 0.1;
/// From this part of what was sent on, what was delivered does not show the forwarder's limit.
const ALL: f64 = 0.98;
/// From this part of what generator and sink do alone, a rate may be theirs.
const NEAR: f64 = 0.9;

/// All runs over one path, by contender in the order of [`Contender::ALL`].
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) path: Path,
    runs: [Vec<Run>; 3],
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// One round.
#[derive(Debug, Serialize)]
struct Round {
    ours: f64,
    ours_sent: f64,
    ours_asleep: f64,
    theirs: f64,
    theirs_sent: f64,
    theirs_asleep: f64,
}

/// Us against one peer on one path.
#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    unit: &'static str,
    ours: Spread,
    peer: &'static str,
    theirs: Spread,
    /// Of ours to theirs, round by round.
    ratio: Spread,
    /// Why the ratio may not be that of the forwarders; empty when nothing is known against it.
    doubts: Vec<String>,
    runs: Vec<Round>,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: String,
    cores: usize,
    kernel: String,
    commit: String,
    date: String,
    load_average: String,
    rounds: u32,
    seconds_a_run: f64,
    generator_batch: u32,
    /// Mpps that generator and sink do without a forwarder.
    ceiling: f64,
    results: Vec<Entry>,
}

impl Comparison {
    /// None so far.
    pub(crate) fn new(path: Path) -> Self {
        Self { path, runs: Default::default() }
    }

    /// Adds the run of a round.
    pub(crate) fn add(&mut self, contender: Contender, run: Run) {
        for (who, runs) in Contender::ALL.iter().zip(&mut self.runs) {
            if *who == contender {
                runs.push(run);
            }
        }
    }

    fn entries(&self, ceiling: f64) -> Vec<Entry> {
        let [ours, peers @ ..] = &self.runs;
        let of = |peer: Contender, theirs: &[Run]| {
            let pairs = || ours.iter().zip(theirs);
            Entry {
                name: self.path.name(),
                unit: "Mpps delivered",
                ours: spread(ours.iter().map(|r| r.delivered)),
                peer: peer.name(self.path),
                theirs: spread(theirs.iter().map(|r| r.delivered)),
                ratio: spread(pairs().map(|(a, b)| a.delivered / b.delivered)),
                doubts: [(Contender::Fastpath, ours.as_slice()), (peer, theirs)]
                    .into_iter()
                    .flat_map(|(who, runs)| doubts(who, self.path, runs, ceiling))
                    .collect(),
                runs: pairs()
                    .map(|(a, b)| Round {
                        ours: a.delivered,
                        ours_sent: a.sent,
                        ours_asleep: a.asleep,
                        theirs: b.delivered,
                        theirs_sent: b.sent,
                        theirs_asleep: b.asleep,
                    })
                    .collect(),
            }
        };
        Contender::ALL.iter().skip(1).zip(peers).map(|(peer, runs)| of(*peer, runs)).collect()
    }
}

/// What speaks against taking the runs of a contender as what it can forward.
fn doubts(who: Contender, path: Path, runs: &[Run], ceiling: f64) -> Vec<String> {
    // On one core with the generator, what is sent is what is forwarded: nothing to see in it.
    let own_core = who != Contender::Kernel;
    let count = |is: &dyn Fn(&Run) -> bool| runs.iter().filter(|r| is(r)).count();
    [
        (
            count(&|r| r.asleep > ASLEEP),
            format!("the generator slept over {:.0} % of the time", ASLEEP * 100.0),
        ),
        (
            count(&|r| own_core && r.delivered >= ALL * r.sent),
            "nothing was lost: the generator was the limit, the rate is a lower bound".to_owned(),
        ),
        (
            count(&|r| r.delivered >= NEAR * ceiling),
            format!("near the {ceiling:.3} Mpps of generator and sink alone"),
        ),
    ]
    .into_iter()
    .filter(|(rounds, _)| *rounds > 0)
    .map(|(rounds, why)| format!("{}, {rounds} of {} rounds: {why}", who.name(path), runs.len()))
    .collect()
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    let last = values.len().saturating_sub(1);
    Spread { median: f64::midpoint(at(last / 2), at(last.div_ceil(2))), min: at(0), max: at(last) }
}

/// The table for people.
pub(crate) fn print(comparisons: &[Comparison], ceiling: f64) {
    println!("\nMpps delivered: median (min - max); {ceiling:.3} without a forwarder");
    for e in comparisons.iter().flat_map(|c| c.entries(ceiling)) {
        let text = |s: Spread| format!("{:.3} ({:.3} - {:.3})", s.median, s.min, s.max);
        println!(
            "{}: fastpath {}; {} {}; ratio {}",
            e.name,
            text(e.ours),
            e.peer,
            text(e.theirs),
            text(e.ratio)
        );
        for doubt in e.doubts {
            println!("  DOUBTFUL: {doubt}");
        }
    }
}

/// The file for programs.
pub(crate) fn write(
    file: &PathBuf,
    options: &Options,
    comparisons: &[Comparison],
    ceiling: f64,
) -> Result<()> {
    let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned());
    let cpu = read("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    let report = Report {
        machine: model.trim_start_matches(['\t', ' ', ':']).to_owned(),
        cores: std::thread::available_parallelism()?.get(),
        kernel: read("/proc/sys/kernel/osrelease")?,
        commit: netns::command("git", &["describe", "--always", "--dirty", "--abbrev=12"])?.trim().to_owned(),
        date: netns::command("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])?.trim().to_owned(),
        load_average: read("/proc/loadavg")?,
        rounds: options.rounds,
        seconds_a_run: options.millis as f64 / 1e3,
        generator_batch: options.batch,
        ceiling,
        results: comparisons.iter().flat_map(|c| c.entries(ceiling)).collect(),
    };
    let text = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_runs_are_named() {
        let run = |delivered, sent, asleep| Run { delivered, sent, asleep };
        let of = |who, runs: &[Run]| doubts(who, Path::SameNode, runs, 4.0);
        let steered = Contender::KernelSteered;
        let sound = [run(1.0, 3.0, 0.01), run(3.5, 4.0, 0.09)];
        assert!(of(Contender::Fastpath, &sound).is_empty());
        // The generator's own core forwards: all that is sent arrives.
        assert!(of(Contender::Kernel, &[run(1.0, 1.0, 0.0)]).is_empty());
        for (runs, want) in [
            (
                &[sound[0], run(0.13, 0.13, 0.95)][..],
                &["1 of 2 rounds: the generator slept", "1 of 2 rounds: nothing was lost"][..],
            ),
            (&[run(1.0, 1.5, 0.5)], &["1 of 1 rounds: the generator slept over 10 %"]),
            (&[run(2.0, 2.01, 0.0)], &["1 of 1 rounds: nothing was lost"]),
            (&[run(3.7, 4.0, 0.0)], &["1 of 1 rounds: near the 4.000 Mpps"]),
        ] {
            for who in [Contender::Fastpath, steered] {
                let found = of(who, runs);
                assert_eq!(found.len(), want.len(), "{found:?}");
                for (found, want) in found.iter().zip(want) {
                    assert!(found.starts_with(who.name(Path::SameNode)) && found.contains(want), "{found}");
                }
            }
        }
    }

    #[test]
    fn spreads() {
        let s = spread([3.0, 1.0, 2.0].into_iter());
        assert_eq!((s.median, s.min, s.max), (2.0, 1.0, 3.0));
        let s = spread([4.0, 1.0, 2.0, 3.0].into_iter());
        assert_eq!((s.median, s.min, s.max), (2.5, 1.0, 4.0));
    }
}
