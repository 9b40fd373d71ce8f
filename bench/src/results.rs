//! Results as a list of rows, the same for every benchmark: one JSON file each, and all of them together.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Deserializer, Serialize};

use crate::command;
use crate::plot;

/// Which way a ratio is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// At least the goal's value.
    #[default]
    Higher,
    /// At most the goal's value.
    Lower,
}

/// Us against one peer in one thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Number of the goal in the table of goals.
    pub(crate) goal: u8,
    /// What was measured.
    pub(crate) name: String,
    pub(crate) unit: String,
    /// Medians; none when it was not measured.
    pub(crate) ours: Option<f64>,
    /// Empty where the goal is an absolute one.
    #[serde(deserialize_with = "text_or_nothing")]
    pub(crate) peer: String,
    pub(crate) theirs: Option<f64>,
    /// Median of the rounds' ratios of ours to theirs.
    pub(crate) ratio: Option<f64>,
    /// What the ratio should be: at least, or at most.
    pub(crate) goal_value: f64,
    pub(crate) met: bool,
    #[serde(default)]
    pub(crate) better: Better,
    /// Least and greatest ratio of a round.
    #[serde(default)]
    pub(crate) spread: Option<[f64; 2]>,
    /// Each round: at least `ours` and `theirs`.
    #[serde(default)]
    pub(crate) runs: Vec<serde_json::Value>,
    /// Why the ratio may not be that of the two.
    #[serde(default)]
    pub(crate) doubts: Vec<String>,
    /// Why it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<String>,
}

fn text_or_nothing<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Row {
    /// A row of rounds: ours, theirs, and what else is known of the round.
    pub(crate) fn new(
        (goal, goal_value, better): (u8, f64, Better),
        (name, unit): (String, &str),
        peer: String,
        rounds: Vec<(f64, f64, serde_json::Value)>,
        doubts: Vec<String>,
    ) -> Self {
        let ratios = || rounds.iter().map(|(ours, theirs, _)| ours / theirs);
        let ratio = median(ratios());
        Self {
            goal,
            name,
            unit: unit.to_owned(),
            ours: median(rounds.iter().map(|r| r.0)),
            peer,
            theirs: median(rounds.iter().map(|r| r.1)),
            ratio,
            goal_value,
            met: ratio.is_some_and(|ratio| match better {
                Better::Higher => ratio >= goal_value,
                Better::Lower => ratio <= goal_value,
            }),
            better,
            spread: ratio.map(|_| {
                [ratios().fold(f64::INFINITY, f64::min), ratios().fold(f64::NEG_INFINITY, f64::max)]
            }),
            runs: rounds
                .iter()
                .map(|(ours, theirs, more)| {
                    let mut run = serde_json::json!({"ours": ours, "theirs": theirs});
                    if let (Some(run), Some(more)) = (run.as_object_mut(), more.as_object()) {
                        run.extend(more.clone());
                    }
                    run
                })
                .collect(),
            doubts,
            skipped: None,
        }
    }

    /// One that was not measured.
    pub(crate) fn skipped(
        (goal, goal_value, better): (u8, f64, Better),
        (name, unit): (String, &str),
        peer: String,
        why: String,
    ) -> Self {
        Self {
            skipped: Some(why),
            ..Self::new((goal, goal_value, better), (name, unit), peer, Vec::new(), Vec::new())
        }
    }
}

/// The middle value; of two in the middle their mean.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(f64::midpoint(*values.get(last / 2)?, *values.get(last.div_ceil(2))?))
}

/// Writes rows to a file.
pub(crate) fn write(file: &Path, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows)? + "\n";
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

/// Files of rows in the folder of results.
const PARTS: [&str; 6] = ["graph", "flow", "policy", "scale", "tcp", "lab"];

/// What `fastpath-bench report` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The folder of results.
    #[arg(long, default_value = "bench/results")]
    dir: PathBuf,
}

/// Puts the benchmarks' rows together into `latest.json`, `table.md` and plots, and says what they were measured on.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn report(options: &Options) -> Result<()> {
    let mut rows = Vec::new();
    for part in PARTS {
        let file = options.dir.join(format!("{part}.json"));
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        // What is no goal's (0) is told where it was measured.
        let lines = serde_json::from_str::<Vec<serde_json::Value>>(&text);
        let of_goals = lines.map(|all| all.into_iter().filter(|row| row["goal"] != 0));
        match of_goals.and_then(|all| all.map(serde_json::from_value::<Row>).collect::<Result<Vec<_>, _>>()) {
            Ok(more) => rows.extend(more),
            Err(error) => eprintln!("{}: left out, it is no list of rows: {error}", file.display()),
        }
    }
    rows.sort_by_key(|row| row.goal);
    write(&options.dir.join("latest.json"), &rows)?;
    let machine = machine()?;
    std::fs::write(options.dir.join("machine.json"), serde_json::to_string_pretty(&machine)? + "\n")?;
    let table = table(&rows);
    println!("{machine}\n\n{table}");
    std::fs::write(options.dir.join("table.md"), &table)?;
    plot::draw(&options.dir, &rows, &machine)
}

fn machine() -> Result<serde_json::Value> {
    let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned());
    let cpu = read("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("unknown");
    Ok(serde_json::json!({
        "machine": model.trim_start_matches(['\t', ' ', ':']),
        "cores": std::thread::available_parallelism()?.get(),
        "kernel": read("/proc/sys/kernel/osrelease")?,
        "commit": command("git", &["describe", "--always", "--dirty", "--abbrev=12"])?.trim(),
        "date": command("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])?.trim(),
        "load_average": read("/proc/loadavg")?,
    }))
}

/// The table for people, in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| Goal | What | Unit | fastpath | Peer | Theirs | Ratio (min - max) | Wanted | Verdict |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let number = |n: Option<f64>| n.map_or("-".to_owned(), figure);
        let wanted = match row.better {
            Better::Higher => format!("≥ {}", figure(row.goal_value)),
            Better::Lower => format!("≤ {}", figure(row.goal_value)),
        };
        let verdict = match &row.skipped {
            Some(why) => format!("skipped: {}", why.replace('|', "/")),
            None if row.met => "met".to_owned(),
            None => "**missed**".to_owned(),
        };
        let spread = row
            .spread
            .map_or(String::new(), |[least, most]| format!(" ({} - {})", figure(least), figure(most)));
        let doubtful = if row.doubts.is_empty() { "" } else { ", DOUBTFUL" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {}{spread} | {wanted} | {verdict}{doubtful} |",
            row.goal,
            row.name,
            row.unit,
            number(row.ours),
            row.peer,
            number(row.theirs),
            number(row.ratio)
        );
    }
    for row in rows.iter().filter(|row| !row.doubts.is_empty()) {
        let _ = writeln!(text, "\nDOUBTFUL: {}, {}: {}", row.name, row.peer, row.doubts.join("; "));
    }
    text
}

/// Three digits that count.
fn figure(n: f64) -> String {
    match n.abs() {
        size if size >= 100.0 || n == 0.0 => format!("{n:.0}"),
        size if size >= 10.0 => format!("{n:.1}"),
        size if size >= 0.1 => format!("{n:.2}"),
        _ => format!("{n:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median([].into_iter()), None);
    }

    #[test]
    fn a_row_says_whether_its_goal_is_met() {
        let row = |better, value| {
            let rounds =
                vec![(2.0, 1.0, serde_json::json!({"sent": 3})), (6.0, 2.0, serde_json::Value::Null)];
            Row::new((7, value, better), ("n".to_owned(), "u"), "p".to_owned(), rounds, Vec::new())
        };
        let one = row(Better::Higher, 2.5);
        assert_eq!((one.ours, one.theirs, one.ratio), (Some(4.0), Some(1.5), Some(2.5)));
        assert_eq!(one.spread, Some([2.0, 3.0]));
        assert!(one.met && !row(Better::Higher, 2.6).met && row(Better::Lower, 2.5).met);
        assert!(!row(Better::Lower, 2.4).met);
        assert_eq!(one.runs[0], serde_json::json!({"ours": 2.0, "theirs": 1.0, "sent": 3}));
        let back: Row = serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap();
        assert_eq!(back.ratio, one.ratio);
        let none =
            Row::skipped((7, 1.0, Better::Higher), ("n".to_owned(), "u"), "p".to_owned(), "why".to_owned());
        assert!(!none.met && none.ratio.is_none());
        assert!(table(&[one, none]).contains("skipped: why"));
    }
}
