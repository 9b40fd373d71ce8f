//! The ends of a connection, and what a service makes of its destination.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fastpath::packet::{FlowKey, Ip};

use super::{Explainer, Nat, Outcome, Query, QueryError, Target};
use crate::compile::service::{Backends, Frontend, FrontendKind, Spread};
use crate::model::{ObjectName, Pod, Protocol};

/// One end: an address, whose it is, and on which node.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) address: IpAddr,
    pub(super) pod: Option<Arc<Pod>>,
    pub(super) node: Option<String>,
}

impl End {
    /// The pod, if policies apply to it: pods on the host network are their node.
    pub(super) fn policed(&self) -> Option<&Arc<Pod>> {
        self.pod.as_ref().filter(|p| !p.host_network)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.address;
        match (&self.pod, &self.node) {
            (Some(p), Some(n)) if p.host_network => {
                write!(f, "pod {} ({address}, host network of node {n})", p.name)
            }
            (Some(p), Some(n)) => write!(f, "pod {} ({address}, node {n})", p.name),
            (Some(p), None) => write!(f, "pod {} ({address})", p.name),
            (None, Some(n)) => write!(f, "node {n} ({address})"),
            (None, None) => write!(f, "address {address}"),
        }
    }
}

/// A connection after translation.
#[derive(Debug)]
pub(super) struct Journey {
    pub(super) from: End,
    /// Where it ends: the backend behind a service.
    pub(super) to: End,
    /// The source address that the destination's policies see.
    pub(super) seen: IpAddr,
    /// Destination port after translation.
    pub(super) dport: u16,
    pub(super) service: Service,
}

/// What the services say to a destination.
#[derive(Debug)]
pub(super) enum Service {
    /// It is none of theirs.
    None,
    /// It is sent on.
    Translated { nat: Nat, name: ObjectName },
    /// It ends here.
    Refused { outcome: Outcome, why: String },
}

impl Explainer {
    pub(super) fn journey(&mut self, query: &Query) -> Result<Journey, QueryError> {
        let sources = self.addresses(&query.from)?;
        let inside = |e: &End| e.pod.is_some() || e.node.is_some();
        let targets = match &query.to {
            Target::Service(name) => self.frontends(name, sources.iter().any(inside))?,
            other => self.addresses(other)?,
        };
        let pair = targets.into_iter().find_map(|to| {
            let from = sources.iter().find(|f| f.address.is_ipv4() == to.address.is_ipv4())?;
            Some((from.clone(), to))
        });
        let (from, to) =
            pair.ok_or_else(|| QueryError::NoCommonFamily(query.from.clone(), query.to.clone()))?;
        Ok(self.translate(query, from, to))
    }

    /// The addresses of a pod in its order, or the one address.
    fn addresses(&self, target: &Target) -> Result<Vec<End>, QueryError> {
        match target {
            Target::Service(name) => Err(QueryError::FromService(name.clone())),
            Target::Address(address) => Ok(vec![self.end(*address)]),
            Target::Pod(name) => {
                let pod = self.model.pods.get(name).ok_or_else(|| QueryError::NoPod(name.clone()))?;
                if pod.finished {
                    return Err(QueryError::Finished(name.clone()));
                }
                let mut addresses = pod.addresses.clone();
                if addresses.is_empty() && pod.host_network {
                    let node = pod.node.as_ref().and_then(|n| self.model.nodes.get(n));
                    addresses = node.map(|n| n.addresses.clone()).unwrap_or_default();
                }
                if addresses.is_empty() {
                    return Err(QueryError::NoAddress(name.clone()));
                }
                let end = |address| End { address, pod: Some(pod.clone()), node: pod.node.clone() };
                Ok(addresses.into_iter().map(end).collect())
            }
        }
    }

    /// Whose an address is.
    fn end(&self, address: IpAddr) -> End {
        match self.compiler.owner(Ip::from(address)) {
            Some(pod) => End { address, node: pod.node.clone(), pod: Some(pod.clone()) },
            None => End { address, pod: None, node: self.nodes.get(&address).cloned() },
        }
    }

    /// The addresses a client uses a service by: from outside those that are for the outside first.
    fn frontends(&self, name: &ObjectName, inside: bool) -> Result<Vec<End>, QueryError> {
        let service = self.model.services.get(name).ok_or_else(|| QueryError::NoService(name.clone()))?;
        let outer = service.load_balancer_ips.iter().chain(&service.external_ips);
        let all: Vec<IpAddr> = if inside {
            service.cluster_ips.iter().chain(outer).copied().collect()
        } else {
            outer.chain(&service.cluster_ips).copied().collect()
        };
        if all.is_empty() {
            return Err(QueryError::NoFrontend(name.clone()));
        }
        Ok(all.into_iter().map(|address| End { address, pod: None, node: None }).collect())
    }

    fn translate(&mut self, query: &Query, from: End, to: End) -> Journey {
        let seen = from.address;
        let refused = |from, to, outcome, why: String| Journey {
            from,
            to,
            seen,
            dport: query.dport,
            service: Service::Refused { outcome, why },
        };
        let protocol = Protocol::from_number(query.proto.number(to.address.is_ipv4()));
        let pod = to.pod.is_some();
        let on_node = self.nodes.get(&to.address).cloned();
        let frontend = protocol.filter(|_| !pod).and_then(|p| {
            let node_port = || self.services.node_port(to.address.is_ipv4(), p, query.dport);
            let own = self.services.frontend(to.address, p, query.dport);
            own.or_else(|| on_node.as_ref().and_then(|_| node_port())).cloned()
        });
        let Some(frontend) = frontend else {
            return match self.services.cluster_addresses.get(&to.address) {
                // Anything else on a node's address is the node's own.
                Some(service) if !pod && on_node.is_none() => {
                    let port = if protocol.is_some() { format!("{} ", query.dport) } else { String::new() };
                    let why = format!("{service} has no port {port}for {}", query.proto.name());
                    refused(from, to, Outcome::Reject, why)
                }
                _ => Journey { from, to, seen, dport: query.dport, service: Service::None },
            };
        };
        let inside = from.pod.is_some() || from.node.is_some();
        let allowed =
            |ranges: &[ipnet::IpNet]| ranges.is_empty() || ranges.iter().any(|r| r.contains(&from.address));
        if !allowed(&frontend.source_ranges) {
            let why =
                format!("{} is not in the loadBalancerSourceRanges of {}", from.address, frontend.service);
            return refused(from, to, Outcome::Deny, why);
        }
        // Clients inside the cluster are not held to the external policy; from outside it is the receiving node
        // that counts, which for an address of no node can be any.
        let on = match (frontend.local, frontend.kind) {
            (false, _) => None,
            (true, FrontendKind::ClusterIp) => from.node.clone(),
            (true, _) if inside => None,
            (true, _) => on_node.clone(),
        };
        let spread = self.spread(&frontend.backends, on.as_deref());
        let dst = SocketAddr::new(to.address, query.dport);
        let number = query.proto.number(to.address.is_ipv4());
        let key =
            FlowKey { src: seen.into(), dst: to.address.into(), sport: 0, dport: query.dport, proto: number };
        let affinity = frontend.affinity_seconds.is_some();
        let chosen = spread.as_ref().and_then(|s| Some((s, s.choose(&key, affinity)?)));
        let Some((spread, backend)) = chosen else {
            let whose = on.as_ref().map_or_else(String::new, |n| format!(" on node {n}"));
            let why = format!("{} has no usable backend{whose}", frontend.service);
            let held = frontend.local && frontend.kind != FrontendKind::ClusterIp && on.is_some();
            let dropped = held && self.spread(&frontend.backends, None).is_some();
            let outcome = if dropped { Outcome::Deny } else { Outcome::Reject };
            return refused(from, to, outcome, why);
        };
        let backends = spread.backends.len();
        let mut behind = self.end(backend.address);
        behind.node = behind.node.or_else(|| backend.node.clone());
        // From outside, a backend on another node sees the node that received the connection.
        let elsewhere =
            on_node.as_ref().filter(|n| !inside && !frontend.local && behind.node.as_ref() != Some(n));
        let masked = elsewhere.and_then(|n| {
            let node = self.model.nodes.get(n)?;
            node.addresses.iter().copied().find(|a| a.is_ipv4() == to.address.is_ipv4())
        });
        let nat = nat(&frontend, dst, SocketAddr::new(backend.address, backend.port), &behind, backends);
        let dport = backend.port;
        Journey {
            from,
            to: behind,
            seen: masked.unwrap_or(seen),
            dport,
            service: Service::Translated { nat, name: frontend.service.clone() },
        }
    }

    fn spread(&mut self, backends: &Arc<Backends>, node: Option<&str>) -> Option<Arc<Spread>> {
        // The frontends keep the backends alive, so their address identifies them.
        let key = (Arc::as_ptr(backends).addr(), node.map(str::to_owned));
        self.spreads.entry(key).or_insert_with(|| backends.spread(node).map(Arc::new)).clone()
    }
}

fn nat(frontend: &Frontend, dst: SocketAddr, backend: SocketAddr, behind: &End, backends: usize) -> Nat {
    Nat {
        backend: backend.to_string(),
        frontend: dst.to_string(),
        service: frontend.service.to_string(),
        kind: frontend.kind.name().to_owned(),
        pod: behind.pod.as_ref().map(|p| p.name.to_string()),
        backends,
    }
}
