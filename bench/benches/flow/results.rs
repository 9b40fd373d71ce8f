//! Rows of results, shared by the benches of the flow table.
#![forbid(unsafe_code)]

/// Puts `rows` into `bench/results/flow.json`, in place of those of `goal`.
pub(crate) fn write(goal: u32, rows: Vec<serde_json::Value>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/results/flow.json");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    // Of what this run measured; other sizes stay.
    let measured = |row: &serde_json::Value| rows.iter().any(|r| r["name"] == row["name"]);
    all.retain(|row| row["goal"] != goal || !measured(row));
    all.extend(rows);
    let lines: Vec<_> = all.iter().map(ToString::to_string).collect();
    std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n"))).expect("bench/results is there");
}
