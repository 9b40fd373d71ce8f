//! Medians, ratios and the JSON file.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::topology::Path;
use super::traffic::Run;
use super::{Contender, Options, netns};

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
    theirs: f64,
    theirs_sent: f64,
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

    fn entries(&self) -> Vec<Entry> {
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
                runs: pairs()
                    .map(|(a, b)| Round {
                        ours: a.delivered,
                        ours_sent: a.sent,
                        theirs: b.delivered,
                        theirs_sent: b.sent,
                    })
                    .collect(),
            }
        };
        Contender::ALL.iter().skip(1).zip(peers).map(|(peer, runs)| of(*peer, runs)).collect()
    }
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    let last = values.len().saturating_sub(1);
    Spread { median: f64::midpoint(at(last / 2), at(last.div_ceil(2))), min: at(0), max: at(last) }
}

/// The table for people.
pub(crate) fn print(comparisons: &[Comparison]) {
    println!("\nMpps delivered: median (min - max)");
    for e in comparisons.iter().flat_map(Comparison::entries) {
        let text = |s: Spread| format!("{:.3} ({:.3} - {:.3})", s.median, s.min, s.max);
        println!(
            "{}: fastpath {}; {} {}; ratio {}",
            e.name,
            text(e.ours),
            e.peer,
            text(e.theirs),
            text(e.ratio)
        );
    }
}

/// The file for programs.
pub(crate) fn write(file: &PathBuf, options: &Options, comparisons: &[Comparison]) -> Result<()> {
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
        results: comparisons.iter().flat_map(Comparison::entries).collect(),
    };
    let text = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        let s = spread([3.0, 1.0, 2.0].into_iter());
        assert_eq!((s.median, s.min, s.max), (2.0, 1.0, 3.0));
        let s = spread([4.0, 1.0, 2.0, 3.0].into_iter());
        assert_eq!((s.median, s.min, s.max), (2.5, 1.0, 4.0));
    }
}
