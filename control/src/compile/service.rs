//! Services and EndpointSlices, and host ports of pods → frontends and the backends behind each.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{FlowKey, Ip};
use fastpath::tables::service as table;
use ipnet::IpNet;

use crate::model::{EndpointSlice, HostPort, Model, Node, ObjectName, Pod, Protocol, Service, ServicePort};

mod tables;
#[cfg(test)]
mod tests;

pub use tables::ServiceTables;

/// One endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Takes new connections.
    pub ready: bool,
    /// Still serves.
    pub serving: bool,
    /// Is about to go.
    pub terminating: bool,
    /// The node it is on, if known.
    pub node: Option<String>,
}

impl Backend {
    /// As the packet path knows it.
    fn compiled(&self) -> table::Backend {
        table::Backend { addr: Ip::from(self.address), port: self.port }
    }
}

/// All endpoints of one service port in one family, by address and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    all: Vec<Backend>,
}

impl Backends {
    /// Every endpoint, usable or not.
    #[must_use]
    pub fn all(&self) -> &[Backend] {
        &self.all
    }

    /// The endpoints for new connections, of all nodes or of one: those that are ready, and when there are
    /// none those that still serve while they terminate.
    #[must_use]
    pub fn usable(&self, node: Option<&str>) -> Vec<&Backend> {
        let here = |b: &&Backend| node.is_none_or(|n| b.node.as_deref() == Some(n));
        let ready: Vec<_> = self.all.iter().filter(here).filter(|b| b.ready).collect();
        if !ready.is_empty() {
            return ready;
        }
        self.all.iter().filter(here).filter(|b| b.serving && b.terminating).collect()
    }

    /// [`Backends::usable`] with the table that spreads connections over them; `None` when there are none.
    #[must_use]
    pub fn spread(&self, node: Option<&str>) -> Option<Spread> {
        let backends: Vec<Backend> = self.usable(node).into_iter().cloned().collect();
        let choice = table::Spread::new(backends.iter().map(Backend::compiled).collect())?;
        Some(Spread { choice, backends })
    }
}

/// Usable backends and the packet path's choice between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    choice: table::Spread,
    /// The backends.
    pub backends: Vec<Backend>,
}

impl Spread {
    /// The backend for a connection; the same for all of a client's where there is affinity.
    #[must_use]
    pub fn choose(&self, connection: &FlowKey, affinity: bool) -> Option<&Backend> {
        let chosen = if affinity {
            self.choice.choose_for_client(connection.src)
        } else {
            self.choice.choose(connection)
        }?;
        self.backends.iter().find(|b| b.compiled() == chosen)
    }
}

/// What kind of address a frontend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// A cluster IP.
    ClusterIp,
    /// An external IP.
    ExternalIp,
    /// A load balancer's address.
    LoadBalancer,
    /// A node port on a node's address.
    NodePort,
    /// A pod's port on its node's address.
    HostPort,
}

impl FrontendKind {
    /// As the API calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::ExternalIp => "externalIP",
            FrontendKind::LoadBalancer => "LoadBalancer",
            FrontendKind::NodePort => "NodePort",
            FrontendKind::HostPort => "hostPort",
        }
    }
}

/// One port of one service, seen by one kind of address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The service; of a host port the pod.
    pub service: ObjectName,
    /// Name of its port; of a host port its protocol.
    pub port_name: String,
    /// Kind of address.
    pub kind: FrontendKind,
    /// Its backends, of the address's family.
    pub backends: Arc<Backends>,
    /// `internalTrafficPolicy: Local` for a cluster IP, `externalTrafficPolicy: Local` for the others; a host port is
    /// local by nature.
    pub local: bool,
    /// Clients that may use it; empty means all (load balancer addresses only).
    pub source_ranges: Vec<IpNet>,
    /// `sessionAffinity: ClientIP`: its timeout in seconds.
    pub affinity_seconds: Option<u32>,
}

/// Ports of a node's own addresses (by its Node or its kernel) that no service and no host port gets, whatever asks for them: without them nobody
/// could mend the node. SSH, BGP, etcd, the API server, the kubelet; DHCP.
const KEPT: [(Protocol, u16, u16); 6] = [
    (Protocol::Tcp, 22, 22),
    (Protocol::Tcp, 179, 179),
    (Protocol::Tcp, 2379, 2380),
    (Protocol::Tcp, 6443, 6443),
    (Protocol::Tcp, 10250, 10250),
    (Protocol::Udp, 68, 68),
];

/// Whether a port of a node's own addresses stays the node's; see [`KEPT`].
fn is_kept(protocol: Protocol, port: u16) -> bool {
    KEPT.iter().any(|(p, first, last)| *p == protocol && (*first..=*last).contains(&port))
}

/// The ports of [`KEPT`], by IP protocol number.
pub(crate) fn kept_ports() -> impl Iterator<Item = (u8, u16)> {
    KEPT.iter().flat_map(|(p, first, last)| (*first..=*last).map(|port| (p.number(), port)))
}

/// (address, protocol number, port).
pub type FrontendKey = (IpAddr, u8, u16);

/// Every frontend of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// Frontends with an address of their own.
    pub frontends: HashMap<FrontendKey, Arc<Frontend>>,
    /// Frontends on every address of every node: (IPv4, protocol number, port).
    pub node_ports: HashMap<(bool, u8, u16), Arc<Frontend>>,
    /// The service that each address with frontends belongs to, whatever the port.
    pub addresses: HashMap<IpAddr, ObjectName>,
    /// The same of those that only services have, cluster addresses: others may be machines', which serve other ports.
    pub cluster_addresses: HashMap<IpAddr, ObjectName>,
    /// Frontends that another service, which comes first by name, had already: (service, what, that service).
    pub conflicts: Vec<(ObjectName, String, ObjectName)>,
    /// Frontends that would take a port from the node itself, one line each.
    pub kept: Vec<String>,
    /// Host ports that cannot be had, one line each.
    pub host_port_problems: Vec<String>,
}

/// Frontends of all services. Of two services that claim one frontend the first by name has it.
#[must_use]
pub fn compile(model: &Model) -> Services {
    let mut slices = BTreeMap::<&ObjectName, Vec<&EndpointSlice>>::new();
    for slice in model.slices.values() {
        if let Some(service) = &slice.service {
            slices.entry(service).or_default().push(slice);
        }
    }
    let mut services = Services::default();
    let nodes: HashSet<IpAddr> = model.nodes.values().flat_map(|n| n.addresses.iter().copied()).collect();
    for (name, service) in &model.services {
        let slices = slices.get(name).map(Vec::as_slice).unwrap_or_default();
        for port in &service.ports {
            for ipv4 in [true, false] {
                services.add(service, port, ipv4, slices, &nodes);
            }
        }
    }
    for pod in with_host_ports(model) {
        if let Some(node) = pod.node.as_ref().and_then(|n| model.nodes.get(n)) {
            services.add_host_ports(pod, node, &node.addresses);
        }
    }
    services
}

/// The pods that have ports of their nodes.
fn with_host_ports(model: &Model) -> impl Iterator<Item = &Arc<Pod>> {
    model.pods.values().filter(|p| !p.host_ports.is_empty() && !p.host_network && !p.finished)
}

impl Services {
    fn add(
        &mut self,
        service: &Service,
        port: &ServicePort,
        ipv4: bool,
        slices: &[&EndpointSlice],
        nodes: &HashSet<IpAddr>,
    ) {
        let addresses = [
            (FrontendKind::ClusterIp, &service.cluster_ips),
            (FrontendKind::ExternalIp, &service.external_ips),
            (FrontendKind::LoadBalancer, &service.load_balancer_ips),
        ];
        // Node ports are open in the families the service has.
        let family =
            service.cluster_ips.is_empty() || service.cluster_ips.iter().any(|a| a.is_ipv4() == ipv4);
        let mut backends = None;
        let mut frontend = |kind: FrontendKind| {
            let backends = backends.get_or_insert_with(|| Arc::new(backends_of(port, ipv4, slices)));
            Arc::new(Frontend {
                service: service.name.clone(),
                port_name: port.name.clone(),
                kind,
                backends: backends.clone(),
                local: match kind {
                    FrontendKind::ClusterIp => service.internal_local,
                    _ => service.external_local,
                },
                source_ranges: match kind {
                    FrontendKind::LoadBalancer => service.load_balancer_source_ranges.clone(),
                    _ => Vec::new(),
                },
                affinity_seconds: service.affinity_seconds,
            })
        };
        let protocol = port.protocol;
        for (kind, list) in addresses {
            for address in list.iter().filter(|a| a.is_ipv4() == ipv4) {
                self.addresses.entry(*address).or_insert_with(|| service.name.clone());
                if kind == FrontendKind::ClusterIp {
                    self.cluster_addresses.entry(*address).or_insert_with(|| service.name.clone());
                }
                let key = (*address, protocol.number(), port.port);
                if nodes.contains(address) && is_kept(protocol, port.port) {
                    self.kept.push(format!(
                        "service {}: {protocol} {} of {address} stays the node's own",
                        service.name, port.port
                    ));
                    continue;
                }
                match self.frontends.get(&key) {
                    None => drop(self.frontends.insert(key, frontend(kind))),
                    Some(other) if other.service == service.name => {}
                    Some(other) => {
                        let what = format!("{address} {protocol} {}", port.port);
                        self.conflicts.push((service.name.clone(), what, other.service.clone()));
                    }
                }
            }
        }
        if let Some(number) = port.node_port.filter(|_| family) {
            if is_kept(protocol, number) {
                let line =
                    format!("service {}: node port {protocol} {number} stays the nodes' own", service.name);
                if !self.kept.contains(&line) {
                    self.kept.push(line);
                }
                return;
            }
            let key = (ipv4, protocol.number(), number);
            match self.node_ports.get(&key) {
                None => drop(self.node_ports.insert(key, frontend(FrontendKind::NodePort))),
                Some(other) if other.service == service.name => {}
                Some(other) => {
                    let what = format!("node port {protocol} {number}");
                    self.conflicts.push((service.name.clone(), what, other.service.clone()));
                }
            }
        }
    }

    /// The host ports of a pod on these addresses of its node. A port that a service or another pod has stays theirs.
    fn add_host_ports(&mut self, pod: &Pod, node: &Node, addresses: &[IpAddr]) {
        for port in &pod.host_ports {
            if is_kept(port.protocol, port.port) {
                let line = format!(
                    "pod {}: hostPort {} {} stays the node's own",
                    pod.name, port.protocol, port.port
                );
                if !self.host_port_problems.contains(&line) {
                    self.host_port_problems.push(line);
                }
                continue;
            }
            let on: Vec<IpAddr> = addresses.iter().copied().filter(|a| port.is_on(*a)).collect();
            let named = port.address.filter(|a| !a.is_unspecified());
            if named.is_some() && on.is_empty() && addresses == node.addresses {
                let line = format!("{} no address of node {}", not_internal(pod, port), node.name);
                self.host_port_problems.push(line);
            }
            for address in on {
                let Some(frontend) = host_port(pod, port, address.is_ipv4()) else { continue };
                let key = (address, port.protocol.number(), port.port);
                let node_port = self.node_ports.get(&(address.is_ipv4(), key.1, key.2));
                match self.frontends.get(&key).or(node_port) {
                    None => drop(self.frontends.insert(key, Arc::new(frontend))),
                    Some(other) if other.service == pod.name && other.kind == FrontendKind::HostPort => {}
                    Some(other) => self.host_port_problems.push(format!(
                        "pod {}: hostPort {} {} of {address} is that of {} {}",
                        pod.name,
                        port.protocol,
                        port.port,
                        if other.kind == FrontendKind::HostPort { "pod" } else { "service" },
                        other.service,
                    )),
                }
            }
        }
    }

    /// The same services with all addresses that the kernel of a node has, `own`: its pods' host ports are on them too,
    /// and external and load balancers' addresses among them lose the ports that stay the node's (those of `kept_ports`). `None`
    /// when nothing is other by them.
    #[must_use]
    pub fn with_own(&self, model: &Model, node: &str, own: &[IpAddr]) -> Option<Self> {
        let kept = self.kept_from(own);
        let node = model.nodes.get(node);
        let more: Vec<IpAddr> =
            own.iter().copied().filter(|a| node.is_some_and(|n| !n.addresses.contains(a))).collect();
        let pods: Vec<&Arc<Pod>> = match node {
            Some(n) if !more.is_empty() => {
                with_host_ports(model).filter(|p| p.node.as_ref() == Some(&n.name)).collect()
            }
            _ => Vec::new(),
        };
        if kept.is_empty() && pods.is_empty() {
            return None;
        }
        let mut services = self.clone();
        for (key, line) in kept {
            services.frontends.remove(&key);
            services.kept.push(line);
        }
        if let Some(node) = node {
            pods.iter().for_each(|pod| services.add_host_ports(pod, node, &more));
        }
        // A hostIP may be one of these.
        let is_had = |p: &HostPort| p.address.is_some_and(|a| more.contains(&a));
        let had: Vec<String> = pods
            .iter()
            .flat_map(|pod| pod.host_ports.iter().filter(|p| is_had(p)).map(|p| not_internal(pod, p)))
            .collect();
        services.host_port_problems.retain(|line| !had.iter().any(|h| line.starts_with(h)));
        Some(services)
    }

    /// The frontends at these addresses of the node whose ports stay the node's, each with the line that says so. A
    /// cluster address is no machine's, even where a proxy beside us has it on a device.
    fn kept_from(&self, own: &[IpAddr]) -> Vec<(FrontendKey, String)> {
        let mut kept: Vec<(FrontendKey, String)> = self
            .frontends
            .iter()
            .filter(|(_, f)| matches!(f.kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer))
            .filter_map(|((address, number, port), f)| {
                let protocol = Protocol::from_number(*number).filter(|p| is_kept(*p, *port))?;
                let line =
                    format!("service {}: {protocol} {port} of {address} stays the node's own", f.service);
                own.contains(address).then_some(((*address, *number, *port), line))
            })
            .collect();
        kept.sort();
        kept
    }

    /// The frontend at an address that is not a node's.
    #[must_use]
    pub fn frontend(&self, address: IpAddr, protocol: Protocol, port: u16) -> Option<&Arc<Frontend>> {
        self.frontends.get(&(address, protocol.number(), port))
    }

    /// The frontend on a node's address.
    #[must_use]
    pub fn node_port(&self, ipv4: bool, protocol: Protocol, port: u16) -> Option<&Arc<Frontend>> {
        self.node_ports.get(&(ipv4, protocol.number(), port))
    }
}

/// How the line begins that says a host port's address is none of its node's.
fn not_internal(pod: &Pod, port: &HostPort) -> String {
    let address = port.address.map_or_else(String::new, |a| a.to_string());
    format!("pod {}: hostPort {} {}: hostIP {address} is", pod.name, port.protocol, port.port)
}

/// The frontend of a pod's host port; `None` when the pod has no address of the family.
fn host_port(pod: &Pod, port: &HostPort, ipv4: bool) -> Option<Frontend> {
    let address = pod.addresses.iter().copied().find(|a| a.is_ipv4() == ipv4)?;
    let backend = Backend {
        address,
        port: port.target,
        ready: true,
        serving: true,
        terminating: false,
        node: pod.node.clone(),
    };
    Some(Frontend {
        service: pod.name.clone(),
        port_name: port.protocol.name().to_lowercase(),
        kind: FrontendKind::HostPort,
        backends: Arc::new(Backends { all: vec![backend] }),
        local: true,
        source_ranges: Vec::new(),
        affinity_seconds: None,
    })
}

/// Endpoints of the slices of one family that have this port, by its name. An endpoint may be in two slices for
/// a moment: then it is what the better of the two says.
fn backends_of(port: &ServicePort, ipv4: bool, slices: &[&EndpointSlice]) -> Backends {
    let mut all = BTreeMap::<(IpAddr, u16), Backend>::new();
    for slice in slices.iter().filter(|s| s.ipv4 == Some(ipv4)) {
        let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in ports.map(|p| p.port) {
            for e in &slice.endpoints {
                let backend = Backend {
                    address: e.address,
                    port: number,
                    ready: e.ready,
                    serving: e.serving,
                    terminating: e.terminating,
                    node: e.node.clone(),
                };
                let rank = |b: &Backend| (b.ready, b.serving && b.terminating);
                match all.get(&(e.address, number)) {
                    Some(known) if rank(known) >= rank(&backend) => {}
                    _ => drop(all.insert((e.address, number), backend)),
                }
            }
        }
    }
    Backends { all: all.into_values().collect() }
}
