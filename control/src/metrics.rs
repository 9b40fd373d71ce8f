//! Metrics in the text formats that Prometheus reads: OpenMetrics 1.0 where the scraper asks for it, else the older one.
//!
//! What is counted lives with those who count; a scrape gathers it as [`Family`]s. Names follow the ecosystem's
//! conventions: prefix `fastpath_`, base units, `_total` on counters (added here).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

#[cfg(test)]
pub(crate) mod checker;
#[cfg(test)]
mod tests;

/// Most series of one family. What is beyond is added to one series whose labels are all [`OTHER`].
pub const MOST_SERIES: usize = 2000;

/// Value of the labels of the series that holds what is beyond [`MOST_SERIES`].
pub const OTHER: &str = "_other";

/// Content type of OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Content type of the format before it.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, but for a restart.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Count(u64),
    Level(f64),
}

/// Metrics of one name.
#[derive(Clone, Debug)]
pub struct Family {
    name: &'static str,
    help: String,
    kind: Kind,
    labels: &'static [&'static str],
    series: BTreeMap<Vec<String>, Value>,
}

impl Family {
    /// A counter; `name` is without `_total`.
    #[must_use]
    pub fn counter(name: &'static str, help: impl Into<String>, labels: &'static [&'static str]) -> Self {
        Self { name, help: help.into(), kind: Kind::Counter, labels, series: BTreeMap::new() }
    }

    /// A gauge.
    #[must_use]
    pub fn gauge(name: &'static str, help: impl Into<String>, labels: &'static [&'static str]) -> Self {
        Self { kind: Kind::Gauge, ..Self::counter(name, help, labels) }
    }

    /// Adds to the series of these label values, in the order of the labels.
    pub fn add<const N: usize>(&mut self, values: [&str; N], n: u64) {
        self.put(values, Value::Count(n));
    }

    /// As [`Family::add`], for times and ratios.
    pub fn add_f64<const N: usize>(&mut self, values: [&str; N], x: f64) {
        self.put(values, Value::Level(x));
    }

    /// With another help text.
    #[must_use]
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: help.into(), ..self }
    }

    /// With a first series.
    #[must_use]
    pub fn with<const N: usize>(mut self, values: [&str; N], n: u64) -> Self {
        self.add(values, n);
        self
    }

    /// As [`Family::with`], for times and ratios.
    #[must_use]
    pub fn with_f64<const N: usize>(mut self, values: [&str; N], x: f64) -> Self {
        self.add_f64(values, x);
        self
    }

    fn put<const N: usize>(&mut self, values: [&str; N], value: Value) {
        debug_assert_eq!(N, self.labels.len(), "{}", self.name);
        let mut key: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        if !self.series.contains_key(&key) && self.series.len() >= MOST_SERIES {
            key = vec![OTHER.to_owned(); N];
        }
        match self.series.entry(key) {
            Entry::Vacant(new) => drop(new.insert(value)),
            Entry::Occupied(mut known) => {
                let sum = match (*known.get(), value) {
                    (Value::Count(a), Value::Count(b)) => Value::Count(a.wrapping_add(b)),
                    (a, b) => Value::Level(a.as_f64() + b.as_f64()),
                };
                known.insert(sum);
            }
        }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (kind, (base, unit)) = (self.kind, unit(self.name));
        let kind = if kind == Kind::Counter { MetricType::Counter } else { MetricType::Gauge };
        let mut metric = encoder.encode_descriptor(base, &self.help, unit.as_ref(), kind)?;
        for (values, value) in &self.series {
            let labels: Vec<(&str, &str)> =
                self.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            if labels.is_empty() {
                // With an empty set it would write empty braces.
                value.encode(self.kind, &mut metric)?;
            } else {
                value.encode(self.kind, &mut metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(&self, kind: Kind, to: &mut MetricEncoder<'_>) -> fmt::Result {
        match (kind, self) {
            (Kind::Counter, Value::Count(n)) => to.encode_counter::<NoLabelSet, u64, u64>(n, None),
            (Kind::Counter, Value::Level(x)) => to.encode_counter::<NoLabelSet, f64, u64>(x, None),
            (Kind::Gauge, Value::Count(n)) => to.encode_gauge(n),
            (Kind::Gauge, Value::Level(x)) => to.encode_gauge(x),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "what is added to a time or ratio is one")]
    fn as_f64(self) -> f64 {
        match self {
            Value::Count(n) => n as f64,
            Value::Level(x) => x,
        }
    }
}

/// A name's unit, which OpenMetrics says apart, and what comes before it.
fn unit(name: &str) -> (&str, Option<Unit>) {
    for (suffix, unit) in [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)] {
        if let Some(base) = name.strip_suffix(suffix) {
            return (base, Some(unit));
        }
    }
    (name, None)
}

/// Families to be shown together.
#[derive(Clone, Debug)]
struct Gathered(Vec<Family>);

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.iter().filter(|f| !f.series.is_empty()).try_for_each(|f| f.encode(&mut encoder))
    }
}

/// The families as text, and its content type; `accept` is what the scraper takes.
#[must_use]
pub fn exposition(families: Vec<Family>, accept: &str) -> (&'static str, String) {
    let open = accept.contains("application/openmetrics-text");
    let counters: Vec<&'static str> =
        families.iter().filter(|f| f.kind == Kind::Counter).map(|f| f.name).collect();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Gathered(families)));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut out, &registry);
    if open { (OPEN_METRICS, out) } else { (PLAIN, plain(&out, &counters)) }
}

/// OpenMetrics as the format before it: counters are named with `_total` in HELP and TYPE too; no UNIT, no EOF.
fn plain(open: &str, counters: &[&str]) -> String {
    let mut out = String::with_capacity(open.len() + 1024);
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        let (Some("#"), Some(what)) = (words.next(), words.next()) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        if let ("HELP" | "TYPE", Some(name), Some(rest)) = (what, words.next(), words.next()) {
            let total = if counters.contains(&name) { "_total" } else { "" };
            out.push_str(&format!("# {what} {name}{total} {rest}\n"));
        }
    }
    out
}
