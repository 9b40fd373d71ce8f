//! Frontends as the packet path has them, kept from one compilation to the next.
//!
//! Tables of backends are the costly part: they are kept by their list of backends, so that a change of one service
//! rebuilds those of that service.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::service::{self as table, Known, ServiceTable};
use fastpath::tables::{Lpm, Prefix};

use super::{Backend, Backends, Frontend, FrontendKind, Services, backends_of, compile};
use crate::model::{EndpointSlice, Model, ObjectName, Pod, Table};

/// Makes the [`ServiceTable`] of one node from one model after the other.
#[derive(Debug)]
pub struct ServiceTables {
    node: String,
    seen: Option<Seen>,
    /// The slices of each service.
    slices: HashMap<ObjectName, BTreeSet<ObjectName>>,
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
            slices: HashMap::new(),
            services: Arc::default(),
            table: Arc::default(),
            spreads: HashMap::new(),
            problems: Vec::new(),
        }
    }

    /// Brings the table in line with the model; `own` are all addresses of this node. Nothing is done when neither
    /// services nor their endpoints nor nodes changed; where only endpoints did, it is done for their services.
    pub fn update(&mut self, model: &Arc<Model>, own: &[Ip]) {
        let nothing = Arc::default();
        let before = self.seen.as_ref().map_or(&nothing, |seen| &seen.model);
        let mut services: BTreeSet<ObjectName> = BTreeSet::new();
        for (name, was, now) in before.slices.diff(&model.slices) {
            let was = was.and_then(|s| s.service.as_ref());
            let now = now.and_then(|s| s.service.as_ref());
            if let Some(slices) = was.and_then(|s| self.slices.get_mut(s)) {
                slices.remove(name);
            }
            if let Some(service) = now {
                self.slices.entry(service.clone()).or_default().insert(name.clone());
            }
            services.extend(was.into_iter().chain(now).cloned());
        }
        self.slices.retain(|_, slices| !slices.is_empty());
        let Some(seen) = self.seen.take().filter(|seen| seen.own == own) else {
            return self.all_anew(model, own);
        };
        let is_host_port = |p: Option<&Arc<Pod>>| p.is_some_and(|p| !p.host_ports.is_empty());
        let is_served = |p: Option<&Arc<Pod>>| {
            p.is_some_and(|p| p.addresses.iter().any(|a| self.services.addresses.contains_key(a)))
        };
        let mut pods_matter = false;
        for (_, was, now) in seen.model.pods.diff(&model.pods) {
            if is_host_port(was) || is_host_port(now) {
                return self.all_anew(model, own);
            }
            pods_matter |= is_served(was) || is_served(now);
        }
        if !same(&seen.model.services, &model.services) || !same(&seen.model.nodes, &model.nodes) {
            return self.all_anew(model, own);
        }
        for name in &services {
            self.change_backends(model, name, &seen.taken);
        }
        let taken = if pods_matter { taken(&self.services, model) } else { seen.taken.clone() };
        if taken != seen.taken {
            self.build_anew(model, own, &taken);
        }
        self.seen = Some(Seen { model: Arc::clone(model), own: own.to_vec(), taken });
    }

    fn all_anew(&mut self, model: &Arc<Model>, own: &[Ip]) {
        let services = compile(model);
        let addresses: Vec<IpAddr> = own.iter().map(|ip| IpAddr::from(*ip)).collect();
        self.services = Arc::new(services.with_own(model, &self.node, &addresses).unwrap_or(services));
        let taken = taken(&self.services, model);
        self.build_anew(model, own, &taken);
        self.seen = Some(Seen { model: Arc::clone(model), own: own.to_vec(), taken });
    }

    fn build_anew(&mut self, model: &Model, own: &[Ip], taken: &BTreeSet<IpAddr>) {
        let table = self.build(model, own, taken);
        // What looks the same is the same: snapshots compare it by address.
        if *self.table != table {
            self.table = Arc::new(table);
        }
    }

    /// Takes over the endpoints of one service, whose frontends stay.
    fn change_backends(&mut self, model: &Model, name: &ObjectName, taken: &BTreeSet<IpAddr>) {
        let Some(service) = model.services.get(name) else { return };
        let slices = self.slices.get(name).into_iter().flatten();
        let slices: Vec<&EndpointSlice> =
            slices.filter_map(|s| model.slices.get(s)).map(AsRef::as_ref).collect();
        let services = Arc::make_mut(&mut self.services);
        let mut made = Vec::new();
        for port in &service.ports {
            for ipv4 in [true, false] {
                let backends = Arc::new(backends_of(port, ipv4, &slices));
                let replace = |frontend: &mut Arc<Frontend>| {
                    let ours = frontend.service == *name
                        && frontend.port_name == port.name
                        && frontend.kind != FrontendKind::HostPort;
                    let changed = ours && *frontend.backends != *backends;
                    if changed {
                        Arc::make_mut(frontend).backends = Arc::clone(&backends);
                    }
                    changed
                };
                let number = port.protocol.number();
                for address in service.addresses().filter(|a| a.is_ipv4() == ipv4) {
                    let key = (address, number, port.port);
                    if let Some(frontend) = services.frontends.get_mut(&key)
                        && replace(frontend)
                        && !taken.contains(&address)
                    {
                        made.push((
                            Key::Address(Ip::from(address), number, port.port),
                            Arc::clone(frontend),
                            ipv4,
                        ));
                    }
                }
                let key = port.node_port.map(|node_port| (ipv4, number, node_port));
                if let Some(key) = key
                    && let Some(frontend) = services.node_ports.get_mut(&key)
                    && replace(frontend)
                {
                    made.push((Key::NodePort(key), Arc::clone(frontend), ipv4));
                }
            }
        }
        if made.is_empty() {
            return;
        }
        let table = Arc::make_mut(&mut self.table);
        let mut making =
            Making { node: &self.node, before: &HashMap::new(), spreads: std::mem::take(&mut self.spreads) };
        for (key, frontend, ipv4) in made {
            let frontend = Arc::new(making.frontend(&frontend, ipv4));
            match key {
                Key::Address(ip, number, port) => drop(table.frontends.insert((ip, number, port), frontend)),
                Key::NodePort(key) => drop(table.node_ports.insert(key, frontend)),
            }
        }
        self.spreads = making.spreads;
    }

    /// Forgets tables of backends that no frontend has any more.
    pub fn tidy(&mut self) {
        if self.spreads.len() > SPARE + 2 * (self.table.frontends.len() + self.table.node_ports.len()) {
            self.spreads.retain(|_, spread| Arc::strong_count(spread) > 1);
        }
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
fn same<K: Ord, V>(a: &Table<K, V>, b: &Table<K, V>) -> bool {
    a.is_same(b) || a.diff(b).is_empty()
}

/// A frontend of the packet path's table.
enum Key {
    Address(Ip, u8, u16),
    NodePort((bool, u8, u16)),
}

/// So many tables of backends may be out of use before they are forgotten.
const SPARE: usize = 256;

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
