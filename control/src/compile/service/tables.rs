//! Frontends as the packet path has them, kept from one compilation to the next.
//!
//! Tables of backends are the costly part: they are kept by their list of backends, so that a change of one service
//! rebuilds those of that service.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::service::{self as table, Known, ServiceTable};
use fastpath::tables::{Lpm, Prefix};

use super::{Backend, Backends, Frontend, FrontendKind, Services, compile, with_host_ports};
use crate::model::{Model, ObjectName};

/// Makes the [`ServiceTable`] of one node from one model after the other.
#[derive(Debug)]
pub struct ServiceTables {
    node: String,
    seen: Option<Seen>,
    services: Arc<Services>,
    table: Arc<ServiceTable>,
    spreads: Spreads,
    problems: Vec<String>,
}

type Spreads = HashMap<Vec<table::Backend>, Arc<table::Spread>>;

/// What the table was made from.
#[derive(Debug)]
struct Seen {
    model: Arc<Model>,
    own: Vec<Ip>,
    taken: BTreeSet<IpAddr>,
}

impl ServiceTables {
    /// For the node of this name.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            seen: None,
            services: Arc::default(),
            table: Arc::default(),
            spreads: HashMap::new(),
            problems: Vec::new(),
        }
    }

    /// Brings the table in line with the model; `own` are all addresses of this node. Nothing is done when neither
    /// services nor their endpoints nor nodes changed.
    pub fn update(&mut self, model: &Arc<Model>, own: &[Ip]) {
        let known = self.seen.as_ref().is_some_and(|seen| {
            Arc::ptr_eq(&seen.model, model)
                || same(&seen.model.services, &model.services)
                    && same(&seen.model.slices, &model.slices)
                    && same_host_ports(&seen.model, model)
        });
        let known = known && self.seen.as_ref().is_some_and(|seen| seen.own == own);
        if !known {
            let services = compile(model);
            let addresses: Vec<IpAddr> = own.iter().map(|ip| IpAddr::from(*ip)).collect();
            self.services = Arc::new(services.with_own(model, &self.node, &addresses).unwrap_or(services));
            self.seen = None;
        }
        let taken = taken(&self.services, model);
        let current = self.seen.as_ref().is_some_and(|seen| {
            seen.own == own && seen.taken == taken && same(&seen.model.nodes, &model.nodes)
        });
        if !current {
            let table = self.build(model, own, &taken);
            // What looks the same is the same: snapshots compare it by address.
            if *self.table != table {
                self.table = Arc::new(table);
            }
        }
        self.seen = Some(Seen { model: Arc::clone(model), own: own.to_vec(), taken });
    }

    /// The table, as of the last [`ServiceTables::update`].
    #[must_use]
    pub fn table(&self) -> &Arc<ServiceTable> {
        &self.table
    }

    /// Every frontend with the names that the table does without.
    #[must_use]
    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// What could not be honoured, one line each.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn build(&mut self, model: &Model, own: &[Ip], taken: &BTreeSet<IpAddr>) -> ServiceTable {
        let services = Arc::clone(&self.services);
        let mut making = Making { node: &self.node, before: &self.spreads, spreads: HashMap::new() };
        let addresses = model.nodes.values().flat_map(|n| n.addresses.iter().copied().map(Ip::from));
        let mut table =
            ServiceTable { nodes: addresses.chain(own.iter().copied()).collect(), ..ServiceTable::default() };
        for ((address, proto, port), frontend) in &services.frontends {
            if !taken.contains(address) {
                let made = making.frontend(frontend, address.is_ipv4());
                table.frontends.insert((Ip::from(*address), *proto, *port), Arc::new(made));
            }
        }
        for ((ipv4, proto, port), frontend) in &services.node_ports {
            table.node_ports.insert((*ipv4, *proto, *port), Arc::new(making.frontend(frontend, *ipv4)));
        }
        let free = services.cluster_addresses.keys().filter(|a| !taken.contains(a)).map(|a| Ip::from(*a));
        table.addresses = free.filter(|ip| !table.nodes.contains(ip)).collect();
        self.spreads = making.spreads;
        self.problems = problems(&services, taken);
        table
    }
}

/// Addresses of services that pods have: they stay the pods', so that no service takes what is sent to a pod.
fn taken(services: &Services, model: &Model) -> BTreeSet<IpAddr> {
    let pods = model.pods.values().filter(|p| !p.host_network && !p.finished);
    pods.flat_map(|p| &p.addresses).filter(|a| services.addresses.contains_key(a)).copied().collect()
}

fn problems(services: &Services, taken: &BTreeSet<IpAddr>) -> Vec<String> {
    let mut out: Vec<String> = services
        .conflicts
        .iter()
        .map(|(service, what, other)| format!("service {service}: {what} is that of service {other}"))
        .collect();
    out.extend(services.kept.iter().chain(&services.host_port_problems).cloned());
    out.extend(taken.iter().filter_map(|address| {
        let service = services.addresses.get(address)?;
        Some(format!("service {service}: {address} is the address of a pod, which keeps it"))
    }));
    out
}

/// Whether two maps hold the same objects.
fn same<K: Ord, V>(a: &BTreeMap<K, Arc<V>>, b: &BTreeMap<K, Arc<V>>) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| Arc::ptr_eq(v, w) && k == l)
}

/// Whether the same pods have the same ports of the same nodes.
fn same_host_ports(a: &Model, b: &Model) -> bool {
    let mut pods = with_host_ports(a).zip(with_host_ports(b));
    with_host_ports(a).count() == with_host_ports(b).count()
        && pods.all(|(p, q)| Arc::ptr_eq(p, q))
        && (with_host_ports(a).next().is_none() || same(&a.nodes, &b.nodes))
}

/// A table in the making: spreads of before are used again, those not used are forgotten.
struct Making<'a> {
    node: &'a str,
    before: &'a Spreads,
    spreads: Spreads,
}

impl Making<'_> {
    fn frontend(&mut self, frontend: &Frontend, ipv4: bool) -> table::Frontend {
        let known = |b: &Backend| Known { backend: b.compiled(), serves: b.ready || b.terminating };
        let mut all: Vec<Known> = frontend.backends.all().iter().map(known).collect();
        all.sort_unstable();
        let local = frontend.local.then(|| self.spread(&frontend.backends, Some(self.node))).flatten();
        table::Frontend {
            id: id(&frontend.service, &frontend.port_name, ipv4),
            external: frontend.kind != FrontendKind::ClusterIp,
            local_only: frontend.local,
            source_ranges: ranges(frontend),
            affinity_ms: frontend.affinity_seconds.map_or(0, |s| s.saturating_mul(1000)),
            all: self.spread(&frontend.backends, None),
            local,
            known: all.into(),
        }
    }

    fn spread(&mut self, backends: &Backends, node: Option<&str>) -> Option<Arc<table::Spread>> {
        let key: Vec<table::Backend> = backends.usable(node).into_iter().map(Backend::compiled).collect();
        if let Some(known) = self.spreads.get(&key) {
            return Some(Arc::clone(known));
        }
        let spread = match self.before.get(&key) {
            Some(known) => Arc::clone(known),
            None => Arc::new(table::Spread::new(key.clone())?),
        };
        self.spreads.insert(key, Arc::clone(&spread));
        Some(spread)
    }
}

fn ranges(frontend: &Frontend) -> Option<Arc<Lpm<()>>> {
    let mut lpm = Lpm::default();
    for net in &frontend.source_ranges {
        if let Some(prefix) = Prefix::new(net.addr(), net.prefix_len()) {
            lpm.insert(prefix, ());
        }
    }
    (!frontend.source_ranges.is_empty()).then(|| Arc::new(lpm))
}

/// The same number for a service port and family in every compilation and after a restart: FNV-1a, then mixed
/// (splitmix64).
fn id(service: &ObjectName, port: &str, ipv4: bool) -> u64 {
    let text = format!("{service}:{port}/{}", if ipv4 { 4 } else { 6 });
    let mut h = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    h = (h ^ h >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ h >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ h >> 31
}

#[cfg(test)]
mod tests;
