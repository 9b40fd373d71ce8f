//! Goals 1 and 2 of the design: which case is which goal's, whether it is met, and as JSON.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::Measured;

/// VPP 26.06 on such a machine, as the design's performance note has it: the sum of its nodes for the same chain.
/// Not measured here, so the ratio is between two runs.
const VPP: &str = "VPP 26.06 (figures of the design note, another run)";

/// Cycles a packet that goal 1 allows, by case.
const CYCLES: [(&str, f64); 3] = [
    ("service-vxlan/64k-flows", 100.0),
    ("service-vxlan/1M-flows", 150.0),
    ("service-vxlan/10M-flows", 220.0),
];
/// Cycles a packet that VPP takes, by case, and how many times ours goal 2 wants that to be.
const THEIRS: [(&str, f64); 2] = [("service-vxlan/32k-flows", 853.0), ("service-vxlan/512k-flows", 1003.0)];
const TIMES: f64 = 5.0;

/// A row as `fastpath-bench report` reads it.
#[derive(Serialize)]
struct Row {
    goal: u8,
    name: String,
    unit: &'static str,
    /// Parse to encapsulation, without the memory port's receive and transmit.
    ours: f64,
    /// With them, and with the worker's loop.
    ours_with_ports: f64,
    peer: &'static str,
    theirs: Option<f64>,
    /// Theirs through ours.
    ratio: Option<f64>,
    goal_value: f64,
    better: &'static str,
    met: bool,
    /// Medians of successive parts of the run.
    runs: Vec<f64>,
}

fn round(v: f64) -> f64 {
    (v * 10.0).round() / 10.0
}

fn row(goal: u8, m: &Measured, bound: f64, theirs: Option<f64>) -> Row {
    let runs: Vec<_> = m.parts.iter().map(|v| round(*v)).collect();
    let ratio = theirs.map(|theirs| theirs / m.graph);
    let name =
        format!("chain in memory, 64 B: parse, flow, policy, service NAT, VXLAN; {} flows", m.load.flows);
    Row {
        goal,
        name,
        unit: "cycles a packet",
        ours: round(m.graph),
        ours_with_ports: round(m.chain),
        peer: if theirs.is_some() { VPP } else { "none: cycles at most" },
        theirs,
        ratio: ratio.map(|ratio| (ratio * 100.0).round() / 100.0),
        goal_value: bound,
        better: if theirs.is_some() { "higher" } else { "lower" },
        met: ratio.map_or(m.graph <= bound, |ratio| ratio >= bound),
        runs,
    }
}

/// Prints the goals that were measured; all of them are written to `bench/results/graph.json`.
pub(super) fn report(measured: &[Measured]) {
    let find = |name: &str| measured.iter().find(|m| m.name == name);
    let mut rows: Vec<_> =
        CYCLES.iter().filter_map(|(name, bound)| Some(row(1, find(name)?, *bound, None))).collect();
    rows.extend(THEIRS.iter().filter_map(|(name, theirs)| Some(row(2, find(name)?, TIMES, Some(*theirs)))));
    println!("| Goal | Case | cycles a packet (parts of the run) | with ports | wanted | |");
    println!("|---|---|---|---|---|---|");
    for r in &rows {
        let wanted = match r.theirs {
            Some(theirs) => format!("{theirs:.0} / {:.0} = {:.0}", r.goal_value, theirs / r.goal_value),
            None => format!("{:.0}", r.goal_value),
        };
        let (min, max) = (
            r.runs.iter().copied().fold(f64::INFINITY, f64::min),
            r.runs.iter().copied().fold(0.0, f64::max),
        );
        let median = r.ours;
        let met = if r.met { "met" } else { "missed" };
        let flows = r.name.rsplit("; ").next().unwrap_or_default();
        println!(
            "| {} | {flows} | {median} ({min} - {max}) | {} | {wanted} | {met} |",
            r.goal, r.ours_with_ports
        );
    }
    // A run of some of them only does not take the place of one of all.
    if rows.len() == CYCLES.len() + THEIRS.len() {
        let mut text = serde_json::to_string_pretty(&rows).unwrap();
        text.push('\n');
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/results/graph.json"), text).unwrap();
    }
}
