//! TOML text to [`Config`]: finds every mistake, not only the first.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{
    Daemon, Encap, Flow, Host, Http, Icmp, Memory, NodeSection, Overlay, Pods, Policy, Services, Snat,
    Source, Timeouts, Uplink, Workers, Xdp,
};
use super::value::Check;
use super::{Config, Wrong};

/// Every section: name and keys.
pub(super) const SECTIONS: &[(&str, &[&str])] = &[
    (NodeSection::TABLE, NodeSection::KEYS),
    (Daemon::TABLE, Daemon::KEYS),
    (Http::TABLE, Http::KEYS),
    (Source::TABLE, Source::KEYS),
    (Pods::TABLE, Pods::KEYS),
    (Xdp::TABLE, Xdp::KEYS),
    (Uplink::TABLE, Uplink::KEYS),
    (Host::TABLE, Host::KEYS),
    (Overlay::TABLE, Overlay::KEYS),
    (Workers::TABLE, Workers::KEYS),
    (Memory::TABLE, Memory::KEYS),
    (Flow::TABLE, Flow::KEYS),
    (Timeouts::TABLE, Timeouts::KEYS),
    (Icmp::TABLE, Icmp::KEYS),
    (Policy::TABLE, Policy::KEYS),
    (Services::TABLE, Services::KEYS),
    (Snat::TABLE, Snat::KEYS),
];

/// The known keys that the file has, and the mistakes so far.
pub(super) struct Found<'t> {
    text: &'t str,
    values: BTreeMap<(&'static str, &'static str), (usize, &'t DeValue<'t>)>,
    wrong: Vec<Wrong>,
}

/// Reads `text`; all mistakes, in the order of the lines, if there are any.
pub(super) fn read(text: &str) -> Result<Config, Vec<Wrong>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut found = Found { text, values: BTreeMap::new(), wrong: Vec::new() };
    for error in &errors {
        let line = error.span().map_or(1, |s| found.line(&s));
        found.wrong.push(Wrong { line: Some(line), message: one_line(error.message()) });
    }
    // What a file with broken syntax seems to say is not worth judging.
    if !found.wrong.is_empty() {
        found.wrong.sort();
        found.wrong.dedup();
        return Err(found.wrong);
    }
    found.walk(root.get_ref(), "");
    let config = Config {
        node: NodeSection::read(&mut found),
        daemon: Daemon::read(&mut found),
        http: Http::read(&mut found),
        source: Source::read(&mut found),
        pods: Pods::read(&mut found),
        xdp: Xdp::read(&mut found),
        uplink: Uplink::read(&mut found),
        host: Host::read(&mut found),
        overlay: Overlay::read(&mut found),
        workers: Workers::read(&mut found),
        memory: Memory::read(&mut found),
        flow: Flow::read(&mut found),
        timeouts: Timeouts::read(&mut found),
        icmp: Icmp::read(&mut found),
        policy: Policy::read(&mut found),
        services: Services::read(&mut found),
        snat: Snat::read(&mut found),
    };
    if found.wrong.is_empty() {
        found.check_together(&config);
    }
    if found.wrong.is_empty() {
        return Ok(config);
    }
    found.wrong.sort();
    Err(found.wrong)
}

impl<'t> Found<'t> {
    fn line(&self, span: &Range<usize>) -> usize {
        let end = span.start.min(self.text.len());
        1 + self.text.as_bytes().iter().take(end).filter(|b| **b == b'\n').count()
    }

    /// Sorts the entries of `table` (section `path`) into sections, keys and unknown ones.
    fn walk(&mut self, table: &'t DeTable<'t>, path: &str) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let known = SECTIONS
                .iter()
                .find(|(section, _)| *section == path)
                .and_then(|(section, keys)| keys.iter().find(|k| **k == name).map(|k| (*section, *k)));
            if let Some(known) = known {
                let line = self.line(&value.span());
                self.values.insert(known, (line, value.get_ref()));
            } else if SECTIONS.iter().any(|(section, _)| *section == full) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.walk(inner, &full),
                    _ => self
                        .unknown(value, format!("{full} is a section: write [{full}] and its keys below it")),
                }
            } else {
                self.unknown(key, unknown_key(path, name, matches!(value.get_ref(), DeValue::Table(_))));
            }
        }
    }

    fn unknown<T>(&mut self, at: &Spanned<T>, message: String) {
        let line = Some(self.line(&at.span()));
        self.wrong.push(Wrong { line, message });
    }

    /// Puts the file's value of a key into `out`, if the file has the key and the value is allowed.
    pub(super) fn take<T>(
        &mut self,
        table: &'static str,
        key: &'static str,
        check: &impl Check<T>,
        out: &mut T,
    ) {
        let Some((line, value)) = self.values.get(&(table, key)) else { return };
        match check.read(value) {
            Ok(value) => *out = value,
            Err(reason) => {
                self.wrong.push(Wrong { line: Some(*line), message: format!("{table}.{key}: {reason}") });
            }
        }
    }

    /// What no key can be judged by alone.
    fn check_together(&mut self, config: &Config) {
        let m = &config.memory;
        if m.frames_per_worker < m.rx_ring + m.tx_ring {
            let line = [("memory", "frames_per_worker"), ("memory", "rx_ring"), ("memory", "tx_ring")]
                .iter()
                .find_map(|k| self.values.get(k))
                .map(|(line, _)| *line);
            let message = format!(
                "memory.frames_per_worker: {} is less than one socket's rings hold (rx_ring {} + tx_ring {})",
                m.frames_per_worker, m.rx_ring, m.tx_ring
            );
            self.wrong.push(Wrong { line, message });
        }
        let (range, port) = (config.snat.port_range, config.overlay.port);
        if config.overlay.encap != Encap::None && (range.first..=range.last).contains(&port) {
            let line = [("snat", "port_range"), ("overlay", "port")]
                .iter()
                .find_map(|k| self.values.get(k))
                .map(|(line, _)| *line);
            let message = format!("snat.port_range: {range} holds {port}, which is overlay.port");
            self.wrong.push(Wrong { line, message });
        }
    }
}

/// The message for a key or section that does not exist, with the nearest one that does.
fn unknown_key(path: &str, name: &str, is_table: bool) -> String {
    if path.is_empty() && is_table {
        let sections = || SECTIONS.iter().map(|(s, _)| *s);
        return match nearest(name, sections()) {
            Some(s) => format!("unknown section [{name}]; did you mean [{s}]?"),
            None => format!(
                "unknown section [{name}]; there are [{}]",
                sections().collect::<Vec<_>>().join("], [")
            ),
        };
    }
    if path.is_empty() {
        let homes: Vec<String> =
            SECTIONS.iter().filter(|(_, keys)| keys.contains(&name)).map(|(s, _)| format!("[{s}]")).collect();
        if !homes.is_empty() {
            return format!(
                "unknown key {name} outside any section; it belongs below {}",
                homes.join(" or ")
            );
        }
        return format!("unknown key {name}: every key stands below its section, as [xdp] or [overlay]");
    }
    let keys: &[&str] = SECTIONS.iter().find(|(s, _)| *s == path).map_or(&[], |(_, keys)| *keys);
    if let Some(key) = nearest(name, keys.iter().copied()) {
        return format!("unknown key {path}.{name}; did you mean {path}.{key}?");
    }
    match SECTIONS.iter().find(|(_, keys)| keys.contains(&name)) {
        Some((section, key)) if !key.is_empty() => {
            format!("unknown key {path}.{name}; did you mean {section}.{name}?")
        }
        _ => format!("unknown key {path}.{name}; [{path}] has {}", keys.join(", ")),
    }
}

/// The candidate a slip of the keyboard away from `name`.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::damerau_levenshtein(name, c), c))
        .filter(|(distance, c)| *distance <= (c.len() / 3).max(1))
        .min()
        .map(|(_, c)| c)
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
