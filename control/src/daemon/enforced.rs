//! What the API tells of policies and services: which rule, which service, how often.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use fastpath::graph::DropReason;
use fastpath::packet::FlowKey;
use fastpath::snapshot::Snapshot;
use fastpath::tables::flow::{Pair, Transform};
use fastpath::tables::policy::Direction;

use crate::api::types::{BackendRow, DropDetail, PolicyRow, ServiceRow};
use crate::compile::policy::Decider;
use crate::compile::service::{Backend, Frontend, FrontendKind};
use crate::compile::tables::Tables;
use crate::explain::Outcome;
use crate::model::{ObjectName, Protocol};

/// How an isolation is named, as `explain` does.
const ISOLATED: &str = "isolated: no policy allows";

/// Rules in force and isolations, with what they counted.
pub(super) fn policies(tables: &Tables) -> Vec<PolicyRow> {
    let rows = tables.counters().rows().into_iter().map(|(info, count)| {
        let (policies, direction, rule, decides) = match &info.decider {
            Decider::Rule { policy, direction, index } => {
                (vec![policy.to_string()], direction, Some(*index), format!("rule {index}"))
            }
            Decider::Isolated { direction, policies } => {
                (policies.iter().map(ToString::to_string).collect(), direction, None, ISOLATED.to_owned())
            }
        };
        PolicyRow {
            policy: policies.first().cloned().unwrap_or_default(),
            policies,
            direction: direction.to_string(),
            rule,
            verdict: if rule.is_some() { Outcome::Allow } else { Outcome::Deny },
            decides,
            packets: count.packets,
            bytes: count.bytes,
            flows: count.flows,
            origin: info.origin.to_string(),
        }
    });
    rows.collect()
}

/// The isolations that denied packets of this reason, most packets first.
pub(super) fn drop_details(tables: &Tables, reason: DropReason) -> Vec<DropDetail> {
    let dropped = match reason {
        DropReason::PolicyDeniedIngress => Direction::Ingress,
        DropReason::PolicyDeniedEgress => Direction::Egress,
        _ => return Vec::new(),
    };
    let details = tables.counters().rows().into_iter().filter_map(|(info, count)| match &info.decider {
        Decider::Isolated { direction, policies } if *direction == dropped && count.packets > 0 => {
            let policies: Vec<String> = policies.iter().map(ToString::to_string).collect();
            let detail = format!("{ISOLATED} ({})", policies.join(", "));
            Some(DropDetail { detail, packets: count.packets, origin: info.origin.to_string() })
        }
        _ => None,
    });
    let mut details: Vec<DropDetail> = details.collect();
    details.sort_by_key(|d| std::cmp::Reverse(d.packets));
    details
}

/// Every port of every service, by kind of address and family.
pub(super) fn services(tables: &Tables, snapshot: &Snapshot) -> Vec<ServiceRow> {
    let all = tables.services();
    let own = |ipv4: bool| snapshot.node.addresses.iter().copied().filter(move |ip| ip.is_v4() == ipv4);
    let mut rows = BTreeMap::new();
    for ((address, proto, port), f) in &all.frontends {
        // Without those that are not in force, as the address of a pod.
        if snapshot.services.frontends.contains_key(&((*address).into(), *proto, *port)) {
            row(&mut rows, f, address.is_ipv4(), *proto, *port).addresses.push(*address);
        }
    }
    for ((ipv4, proto, port), f) in &all.node_ports {
        row(&mut rows, f, *ipv4, *proto, *port).addresses.extend(own(*ipv4).map(IpAddr::from));
    }
    let sorted = rows.into_values().map(|mut row| {
        row.addresses.sort_unstable();
        row
    });
    sorted.collect()
}

/// Service, its port's name, kind of address, whether IPv6, protocol number, port.
type Key<'a> = (&'a ObjectName, &'a str, FrontendKind, bool, u8, u16);

fn row<'a, 'r>(
    rows: &'r mut BTreeMap<Key<'a>, ServiceRow>,
    frontend: &'a Frontend,
    ipv4: bool,
    proto: u8,
    port: u16,
) -> &'r mut ServiceRow {
    let Frontend { service, port_name, kind, backends, local, affinity_seconds, .. } = frontend;
    rows.entry((service, port_name, *kind, !ipv4, proto, port)).or_insert_with(|| ServiceRow {
        service: service.to_string(),
        port_name: port_name.clone(),
        kind: kind.name().to_owned(),
        addresses: Vec::new(),
        protocol: Protocol::from_number(proto).map_or("", Protocol::name).to_owned(),
        port,
        ready: backends.all().iter().filter(|b| b.ready).count(),
        backends: backends.all().iter().map(|b| backend(b, &backends.usable(None))).collect(),
        affinity_s: *affinity_seconds,
        local: *local,
    })
}

fn backend(backend: &Backend, usable: &[&Backend]) -> BackendRow {
    let state = match (backend.ready, backend.terminating) {
        (true, _) => "ready",
        (false, true) => "terminating",
        (false, false) => "not-ready",
    };
    BackendRow {
        address: backend.address,
        port: backend.port,
        node: backend.node.clone(),
        state: state.to_owned(),
        used: usable.contains(&backend),
    }
}

/// What the first packet of a flow became, where that is not what it was.
pub(super) fn translated(pair: &Pair) -> Option<FlowKey> {
    let translated = pair.reply.reversed();
    (translated != pair.original).then_some(translated)
}

/// The service that a flow was translated by.
pub(super) fn service_of(tables: &Tables, pair: &Pair) -> Option<String> {
    let (original, translated) = (pair.original, translated(pair)?);
    if (original.dst, original.dport) == (translated.dst, translated.dport) {
        return None;
    }
    let services = tables.services();
    let own = services.frontends.get(&(original.dst.into(), original.proto, original.dport));
    let node_port = || services.node_ports.get(&(original.dst.is_v4(), original.proto, original.dport));
    let frontend = own.or_else(node_port)?;
    let name = &frontend.service;
    Some(match frontend.port_name.as_str() {
        "" => name.to_string(),
        port => format!("{name}:{port}"),
    })
}

/// Whether its packets are let through.
pub(super) fn verdict(pair: &Pair) -> Outcome {
    if pair.original_transform.bits & Transform::DENY == 0 { Outcome::Allow } else { Outcome::Deny }
}

/// The rules that decide on a flow, egress first.
pub(super) fn rules_of(tables: &Tables, pair: &Pair) -> Vec<String> {
    let rules = pair.original_transform.rules;
    let named = |counter: u16| tables.counters().decider(counter, pair.generation).map(ToString::to_string);
    [rules.egress, rules.ingress].into_iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests;
