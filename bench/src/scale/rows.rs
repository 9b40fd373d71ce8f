//! Results as rows, and where they go.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

/// One result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Number of the goal; 0 for what has none.
    pub(crate) goal: u8,
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    pub(crate) peer: &'static str,
    pub(crate) theirs: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) goal_value: Option<f64>,
    /// `higher` or `lower`.
    pub(crate) better: &'static str,
    pub(crate) met: bool,
    pub(crate) runs: Vec<f64>,
}

impl Row {
    /// A figure without a goal.
    pub(crate) fn of(name: impl Into<String>, unit: &'static str, ours: f64, runs: Vec<f64>) -> Self {
        Self {
            goal: 0,
            name: name.into(),
            unit,
            ours,
            peer: "",
            theirs: None,
            ratio: None,
            goal_value: None,
            better: "lower",
            met: true,
            runs,
        }
    }

    /// With a goal that `ours` is to stay below.
    pub(crate) fn at_most(self, goal: u8, value: f64) -> Self {
        Self { goal, goal_value: Some(value), met: self.ours <= value, ..self }
    }

    /// With a goal that `ours` is to reach.
    pub(crate) fn at_least(self, goal: u8, value: f64) -> Self {
        Self { goal, goal_value: Some(value), better: "higher", met: self.ours >= value, ..self }
    }

    /// One line for people.
    pub(crate) fn print(&self) {
        let goal = self.goal_value.map_or_else(String::new, |v| {
            format!("  goal {}: {v} {}", self.goal, if self.met { "met" } else { "MISSED" })
        });
        println!("{}: {:.3} {}{goal}", self.name, self.ours, self.unit);
    }
}

/// Writes the rows.
pub(crate) fn write(path: &Path, rows: &[Row]) -> Result<()> {
    Ok(std::fs::write(path, serde_json::to_string_pretty(rows)? + "\n")?)
}

/// The value that `share` of 100 do not exceed.
pub(crate) fn percentile(runs: &[f64], share: usize) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) * share / 100).copied().unwrap_or(f64::NAN)
}
