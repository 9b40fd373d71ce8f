//! Policies and services as tables.
#![forbid(unsafe_code)]

use super::super::table::Columns;
use super::list;
use crate::api::types::{PolicyRow, ServiceRow};

pub(in crate::cli) fn policies(rows: &[PolicyRow]) -> String {
    let mut t = Columns::new(&[
        "POLICY",
        "DIRECTION",
        "RULE>",
        "VERDICT",
        "DECIDES",
        "PACKETS>",
        "BYTES>",
        "FLOWS>",
        "ORIGIN",
    ]);
    for p in rows {
        t.row([
            list(&p.policies),
            p.direction.clone(),
            p.rule.map_or_else(String::new, |r| r.to_string()),
            p.verdict.name().to_owned(),
            p.decides.clone(),
            p.packets.to_string(),
            p.bytes.to_string(),
            p.flows.to_string(),
            p.origin.clone(),
        ]);
    }
    t.text()
}

pub(in crate::cli) fn services(rows: &[ServiceRow]) -> String {
    let mut t = Columns::new(&[
        "SERVICE",
        "PORT",
        "KIND",
        "ADDRESSES",
        "PROTOCOL",
        "NUMBER>",
        "BACKENDS>",
        "AFFINITY>",
        "POLICY",
    ]);
    for s in rows {
        t.row([
            s.service.clone(),
            s.port_name.clone(),
            s.kind.clone(),
            list(&s.addresses),
            s.protocol.clone(),
            s.port.to_string(),
            format!("{}/{}", s.ready, s.backends.len()),
            s.affinity_s.map_or_else(String::new, |a| format!("{a}s")),
            if s.local { "local" } else { "cluster" }.to_owned(),
        ]);
    }
    t.text()
}
