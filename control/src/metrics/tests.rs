//! What is written is what was gathered, and strict readers take it.

use proptest::prelude::*;

use super::checker::check;
use super::*;

const OPEN: &str = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";

fn families() -> Vec<Family> {
    let mut drops = Family::counter("fastpath_drops", "Packets dropped.", &["reason"]);
    drops.add(["odd \"name\"\\\n"], 3);
    drops.add(["no_route"], 4);
    drops.add(["no_route"], 5);
    vec![
        drops,
        Family::counter("fastpath_port_receive_bytes", "Bytes received.", &["device"])
            .with(["eth0"], u64::MAX),
        Family::gauge("fastpath_ready", "Whether the node forwards.", &[]).with([], 1),
        Family::gauge("fastpath_snapshot_age_seconds", "Age.", &[]).with_f64([], 0.25),
        Family::gauge("fastpath_nothing", "Without series it is left out.", &["x"]),
    ]
}

#[test]
fn open_metrics() {
    let (content_type, text) = exposition(families(), OPEN);
    assert_eq!(content_type, OPEN_METRICS);
    let samples = check(&text, true).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(samples["fastpath_drops_total"].len(), 2);
    assert_eq!(samples["fastpath_drops_total"][0].0["reason"], "no_route");
    assert_eq!(samples["fastpath_drops_total"].iter().map(|(_, v)| *v).sum::<f64>(), 12.0);
    assert!(text.contains("# UNIT fastpath_port_receive_bytes bytes\n"), "{text}");
    assert!(
        text.contains("fastpath_port_receive_bytes_total{device=\"eth0\"} 18446744073709551615\n"),
        "{text}"
    );
    assert!(!samples.contains_key("fastpath_nothing"));
}

#[test]
fn the_format_before_it() {
    for accept in ["", "text/plain", "*/*"] {
        let (content_type, text) = exposition(families(), accept);
        assert_eq!(content_type, PLAIN);
        let samples = check(&text, false).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(samples["fastpath_drops_total"].len(), 2);
        assert!(text.contains("# TYPE fastpath_drops_total counter\n"), "{text}");
        assert!(text.contains("fastpath_snapshot_age_seconds 0.25\n"), "{text}");
    }
}

#[test]
fn the_checker_finds_mistakes() {
    for (text, open, part) in [
        ("# TYPE fastpath_a gauge\nfastpath_a 1\n", false, "without HELP"),
        ("# HELP fastpath_a A.\n# TYPE fastpath_a gauge\nfastpath_b 1\n", false, "another family"),
        ("# HELP fastpath_a A.\n# TYPE fastpath_a counter\nfastpath_a 1\n", false, "_total"),
        ("# HELP fastpath_a A.\n# TYPE fastpath_a gauge\nfastpath_a 1\nfastpath_a 1\n", false, "twice"),
        ("# HELP fastpath_a A.\n# TYPE fastpath_a gauge\nfastpath_a 1\n", true, "EOF"),
        ("# HELP fastpath_a_ms A.\n", false, "name"),
        ("# HELP fastpath_a A.\n# TYPE fastpath_a gauge\nfastpath_a{x=\"1} 1\n", false, "quote"),
        ("# HELP fastpath_a A.\n# TYPE fastpath_a gauge\nfastpath_a one\n", false, "value"),
        ("# HELP fastpath_a A.\n# TYPE fastpath_a gauge\nfastpath_a 1", false, "newline"),
    ] {
        let why = check(text, open).unwrap_err();
        assert!(why.contains(part), "{text}: {why}");
    }
}

#[test]
fn cardinality_is_bounded_and_nothing_is_lost() {
    let mut many = Family::counter("fastpath_many", "Many.", &["a", "b"]);
    for n in 0..MOST_SERIES as u64 + 100 {
        many.add([&n.to_string(), "x"], 1);
    }
    let (_, text) = exposition(vec![many], "");
    let samples = &check(&text, false).unwrap()["fastpath_many_total"];
    assert_eq!(samples.len(), MOST_SERIES + 1);
    let (_, beyond) = samples.iter().find(|(labels, _)| labels.values().all(|v| v == OTHER)).unwrap();
    assert_eq!(*beyond, 100.0);
}

proptest! {
    /// Whatever a label holds comes back as it was.
    #[test]
    fn labels_survive(values in prop::collection::btree_map(any::<String>(), any::<u32>(), 1..20)) {
        let clean = |v: &str| !v.chars().any(|c| c != '\n' && c.is_control() || c.is_whitespace() && c != ' ' && c != '\n');
        let mut family = Family::counter("fastpath_any", "Any.", &["v"]);
        let mut expected = Vec::new();
        for (value, n) in values.iter().filter(|(v, _)| clean(v)) {
            family.add([value], (*n).into());
            expected.push((value.clone(), f64::from(*n)));
        }
        prop_assume!(!expected.is_empty());
        for accept in ["", OPEN] {
            let (_, text) = exposition(vec![family.clone()], accept);
            let samples = check(&text, !accept.is_empty()).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            let mut found: Vec<(String, f64)> =
                samples["fastpath_any_total"].iter().map(|(l, v)| (l["v"].clone(), *v)).collect();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(&found, &expected);
        }
    }
}
