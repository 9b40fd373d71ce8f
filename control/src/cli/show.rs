//! Answers of the daemon as tables.
#![forbid(unsafe_code)]

use std::fmt::{Display, Write as _};

use super::table::{Columns, clean};
use crate::api::types::{
    Drop, Endpoint, Flows, Neighbor, Node, Ports, RouteRow, Runtime, SourceStatus, Status, Sync,
};

mod enforced;

pub(super) use enforced::{policies, services};

fn optional(value: Option<&impl Display>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

fn list(values: impl IntoIterator<Item = impl Display>) -> String {
    values.into_iter().map(|v| v.to_string()).collect::<Vec<_>>().join(",")
}

/// Seconds as `3d4h`, `5h6m`, `7m8s` or `9s`.
pub(super) fn duration(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

pub(super) fn status(s: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:<12}{}", format!("{name}:"), clean(&text));
    };
    let state = match (s.ready, s.degraded.is_empty()) {
        (true, true) => "ready",
        (true, false) => "ready, degraded",
        (false, _) => "not ready",
    };
    line("State", state.to_owned());
    line("Node", s.node.clone());
    line("Daemon", format!("version {}, pid {}, up {}", s.version, s.pid, duration(s.uptime_s)));
    line("Snapshot", format!("generation {}, acknowledged {}", s.generation, s.acked_generation));
    let sync = s.last_sync.as_ref().map(|l| format!("{}, {} ago", l.at, duration(l.age_s)));
    line("Last sync", sync.unwrap_or_else(|| "never".to_owned()));
    if let Some(source) = &s.source {
        line("Source", origin(source));
    }
    for reason in &s.degraded {
        line("Degraded", reason.clone());
    }
    for p in &s.problems {
        line("Problem", format!("{}: {}: {}", p.severity, p.origin, p.reason));
    }
    for (port, note) in s.ports.iter().flat_map(|p| p.notes.iter().map(move |n| (&p.name, n))) {
        line("Note", format!("{port}: {note}"));
    }
    if !s.ports.is_empty() {
        let mut t = Columns::new(&["PORT", "ROLE", "MODE", "ZERO-COPY", "QUEUES>", "WORKERS", "STATE"]);
        for p in &s.ports {
            let zero_copy = if p.zero_copy { "yes" } else { "no" };
            t.row([
                p.name.clone(),
                p.role.clone(),
                optional(p.mode.as_ref()),
                zero_copy.to_owned(),
                p.queues.to_string(),
                list(&p.workers),
                p.state.clone(),
            ]);
        }
        let _ = write!(out, "\n{}", t.text());
    }
    if !s.workers.is_empty() {
        let mut t = Columns::new(&["WORKER>", "CORE>", "POLLING", "TRANSMIT", "PORTS>", "HEARTBEAT"]);
        for w in &s.workers {
            t.row([
                w.id.to_string(),
                optional(w.core.as_ref()),
                w.polling.clone(),
                w.transmit.clone(),
                w.ports.to_string(),
                format!("{} ms ago", w.heartbeat_age_ms),
            ]);
        }
        let _ = write!(out, "\n{}", t.text());
    }
    out
}

/// The source, and how the connection to it is.
fn origin(s: &SourceStatus) -> String {
    let age = |at: &Option<Sync>| at.as_ref().map_or_else(|| "never".to_owned(), |a| duration(a.age_s));
    let mut text = s.kind.clone();
    if s.kind == "directory" {
        return text;
    }
    if s.connected {
        let _ = write!(text, ", connected for {}, last heard {} ago", age(&s.since), age(&s.last_contact));
    } else {
        let _ = write!(text, ", away for {}", age(&s.since));
    }
    if let Some(saved) = &s.saved_at {
        let _ = write!(text, ", state saved at {} in force", saved.at);
    }
    text
}

pub(super) fn endpoints(rows: &[Endpoint]) -> String {
    let mut t =
        Columns::new(&["NAMESPACE", "POD", "ADDRESSES", "INTERFACE", "PORT>", "MAC", "WORKER>", "STATE"]);
    for e in rows {
        t.row([
            e.namespace.clone(),
            e.pod.clone(),
            list(&e.addresses),
            optional(e.interface.as_ref()),
            optional(e.port.as_ref()),
            optional(e.mac.as_ref()),
            optional(e.worker.as_ref()),
            e.state.clone(),
        ]);
    }
    t.text()
}

pub(super) fn nodes(rows: &[Node]) -> String {
    let mut t = Columns::new(&["NAME", "ADDRESSES", "POD-CIDRS", "REACH", "VTEP", "VTEP-MAC"]);
    for n in rows {
        t.row([
            n.name.clone(),
            list(&n.addresses),
            list(&n.pod_cidrs),
            n.reach.to_string(),
            optional(n.vtep.as_ref()),
            optional(n.vtep_mac.as_ref()),
        ]);
    }
    t.text()
}

pub(super) fn flows(answer: &Flows) -> String {
    let mut t = Columns::new(&[
        "PROTO",
        "ORIGINAL",
        "TRANSLATED",
        "STATE",
        "VERDICT",
        "IDLE>",
        "GEN>",
        "EGRESS",
        "SERVICE",
        "RULES",
    ]);
    for f in &answer.flows {
        t.row([
            f.proto.clone(),
            f.original.to_string(),
            optional(f.translated.as_ref()),
            f.state.clone(),
            f.verdict.name().to_owned(),
            format!("{}.{}s", f.idle_ms / 1000, f.idle_ms % 1000 / 100),
            f.generation.to_string(),
            f.egress.clone(),
            optional(f.service.as_ref()),
            f.rules.join("; "),
        ]);
    }
    let mut out = t.text();
    let shown = answer.flows.len() as u64;
    if shown < answer.total {
        let _ = writeln!(out, "({shown} of {} flows; more with --limit)", answer.total);
    }
    out
}

pub(super) fn routes(rows: &[RouteRow]) -> String {
    let mut t = Columns::new(&["PREFIX", "KIND", "VIA", "DEVICE", "NODE"]);
    for r in rows {
        t.row([
            r.prefix.clone(),
            r.kind.clone(),
            optional(r.via.as_ref()),
            optional(r.device.as_ref()),
            optional(r.node.as_ref()),
        ]);
    }
    t.text()
}

pub(super) fn neighbors(rows: &[Neighbor]) -> String {
    let mut t = Columns::new(&["ADDRESS", "DEVICE", "MAC", "STATE"]);
    for n in rows {
        t.row([n.address.to_string(), n.device.clone(), optional(n.mac.as_ref()), n.state.clone()]);
    }
    t.text()
}

pub(super) fn drops(rows: &[Drop], all: bool) -> String {
    let mut t = Columns::new(&["REASON", "PACKETS>", "MEANING"]);
    for d in rows.iter().filter(|d| all || d.packets > 0) {
        t.row([d.reason.clone(), d.packets.to_string(), d.help.clone()]);
        for of in &d.details {
            let what = format!("{} [{}]", of.detail, of.origin);
            t.row(["  of which".to_owned(), of.packets.to_string(), what]);
        }
    }
    t.text()
}

pub(super) fn ports(answer: &Ports) -> String {
    let mut t = Columns::new(&[
        "PORT>",
        "NAME",
        "ROLE",
        "MODE",
        "QUEUE>",
        "WORKER>",
        "RX>",
        "RX-BYTES>",
        "TX>",
        "TX-BYTES>",
        "KICKS>",
        "RETRIES>",
        "TX-FULL>",
        "TX-INVALID>",
        "TX-ERRORS>",
        "RECEIVER-FULL>",
        "RX-DROP>",
        "RX-FULL>",
        "FILL-EMPTY>",
        "BAD-DESC>",
    ]);
    for p in &answer.ports {
        for (n, q) in p.queues.iter().enumerate() {
            t.row([
                p.port.to_string(),
                p.name.clone(),
                p.role.clone(),
                optional(p.mode.as_ref()),
                q.queue.to_string(),
                q.worker.to_string(),
                q.rx_packets.to_string(),
                q.rx_bytes.to_string(),
                q.tx_packets.to_string(),
                q.tx_bytes.to_string(),
                q.tx_kicks.to_string(),
                q.tx_retries.to_string(),
                q.tx_ring_full.to_string(),
                q.tx_invalid.to_string(),
                q.tx_errors.to_string(),
                // Of the device: the kernel does not tell the queue.
                if n == 0 { p.receiver_full.to_string() } else { String::new() },
                q.kernel_rx_dropped.to_string(),
                q.kernel_rx_ring_full.to_string(),
                q.kernel_fill_empty.to_string(),
                q.kernel_tx_invalid.to_string(),
            ]);
        }
    }
    let mut out = t.text();
    if answer.xdp.iter().any(|c| c.packets > 0) {
        let mut t = Columns::new(&["XDP-PROGRAM", "OUTCOME", "PACKETS>", "MEANING"]);
        for c in answer.xdp.iter().filter(|c| c.packets > 0) {
            t.row([c.program.clone(), c.outcome.clone(), c.packets.to_string(), c.help.clone()]);
        }
        let _ = write!(out, "\n{}", t.text());
    }
    out
}

pub(super) fn runtime(answer: &Runtime) -> String {
    let mut t = Columns::new(&[
        "WORKER",
        "NODE",
        "CALLS>",
        "VECTORS>",
        "PACKETS>",
        "PACKETS/VECTOR>",
        "CLOCKS/PACKET>",
    ]);
    let workers = answer.workers.iter().map(|w| (w.worker.to_string(), &w.nodes));
    let total = std::iter::once(("total".to_owned(), &answer.total));
    for (worker, nodes) in workers.chain(total) {
        for n in nodes {
            t.row([
                worker.clone(),
                n.node.clone(),
                n.calls.to_string(),
                n.vectors.to_string(),
                n.packets.to_string(),
                format!("{:.2}", n.packets_per_vector),
                format!("{:.1}", n.clocks_per_packet),
            ]);
        }
    }
    t.text()
}
