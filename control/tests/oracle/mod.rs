//! A NetworkPolicy evaluator written from the API's text: slow, literal, and without a line of the compiler.
//!
//! It reads the API's own objects, so that conversion, defaults and compilation are all under test. Use it
//! with `#[path = ".../oracle/mod.rs"] mod oracle;`.

use std::net::IpAddr;
use std::sync::Arc;

use fastpath_control::model::{Labels, Node, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    /// Nodes.
    pub(crate) nodes: Vec<Arc<Node>>,
    /// Namespaces: name and labels as written.
    pub(crate) namespaces: Vec<(String, Labels)>,
    /// Pods.
    pub(crate) pods: Vec<Arc<Pod>>,
    /// Policies.
    pub(crate) policies: Vec<NetworkPolicy>,
}

/// The answer for one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allow: bool,
    /// Policies that isolate the pod, by name.
    pub(crate) isolated_by: Vec<String>,
    /// Every rule that allows: policy and index.
    pub(crate) allowed_by: Vec<(String, usize)>,
}

/// A connection as seen by the pod at one end of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection<'a> {
    pub(crate) pod: &'a Pod,
    /// Address of the pod that the connection uses.
    pub(crate) own: IpAddr,
    pub(crate) peer: IpAddr,
    /// IP protocol number.
    pub(crate) proto: u8,
    /// Destination port.
    pub(crate) port: u16,
}

impl World {
    /// May the peer open this connection to the pod?
    pub(crate) fn ingress(&self, c: Connection) -> Decision {
        // Traffic from the pod's own node is always allowed.
        let own_node = self.nodes.iter().find(|n| Some(&n.name) == c.pod.node.as_ref());
        let always = own_node.is_some_and(|n| n.addresses.contains(&c.peer));
        self.decide(c, "Ingress", always)
    }

    /// May the pod open this connection to the peer?
    pub(crate) fn egress(&self, c: Connection) -> Decision {
        self.decide(c, "Egress", false)
    }

    fn decide(&self, c: Connection, direction: &str, always: bool) -> Decision {
        let mut d = Decision { allow: false, isolated_by: vec![], allowed_by: vec![] };
        for policy in &self.policies {
            let namespace = namespace_of(policy);
            let spec = policy.spec.as_ref().expect("a policy has a spec");
            let selects = namespace == c.pod.name.namespace
                && !c.pod.host_network
                && spec.pod_selector.as_ref().is_none_or(|s| selected(s, &c.pod.labels));
            if !selects || !types(spec).contains(&direction) {
                continue;
            }
            let name = format!("{namespace}/{}", policy.metadata.name.as_deref().unwrap());
            let mut rule =
                |i: usize, peers: Option<&Vec<NetworkPolicyPeer>>, ports: Option<&Vec<NetworkPolicyPort>>| {
                    let peers = peers.map(Vec::as_slice).unwrap_or_default();
                    let ports = ports.map(Vec::as_slice).unwrap_or_default();
                    let peer_matches =
                        peers.is_empty() || peers.iter().any(|p| self.peer_matches(p, namespace, c.peer));
                    let port_matches =
                        ports.is_empty() || ports.iter().any(|p| self.port_matches(p, direction, c));
                    if peer_matches && port_matches {
                        d.allowed_by.push((name.clone(), i));
                    }
                };
            if direction == "Ingress" {
                for (i, r) in spec.ingress.iter().flatten().enumerate() {
                    rule(i, r.from.as_ref(), r.ports.as_ref());
                }
            } else {
                for (i, r) in spec.egress.iter().flatten().enumerate() {
                    rule(i, r.to.as_ref(), r.ports.as_ref());
                }
            }
            d.isolated_by.push(name);
        }
        d.isolated_by.sort();
        d.allow = d.isolated_by.is_empty() || !d.allowed_by.is_empty() || always || c.peer == c.own;
        d
    }

    /// The pod an address belongs to: not one on the host network, not one that is finished. Two pods with one
    /// address are not a state Kubernetes means to have; the first by name counts here.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        let mut owners: Vec<_> = self
            .pods
            .iter()
            .filter(|p| !p.host_network && !p.finished && p.addresses.contains(&ip))
            .collect();
        owners.sort_by_key(|p| (&p.name.namespace, &p.name.name));
        owners.first().copied()
    }

    fn peer_matches(&self, peer: &NetworkPolicyPeer, policy_namespace: &str, ip: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            return in_block(block, ip);
        }
        let Some(pod) = self.owner(ip) else { return false };
        let namespace = &pod.name.namespace;
        let namespace_ok = match &peer.namespace_selector {
            None => namespace == policy_namespace,
            Some(selector) => selected(selector, &self.namespace_labels(namespace)),
        };
        namespace_ok && peer.pod_selector.as_ref().is_none_or(|s| selected(s, &pod.labels))
    }

    fn namespace_labels(&self, name: &str) -> Labels {
        let mut labels =
            self.namespaces.iter().find(|(n, _)| n == name).map(|(_, l)| l.clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        labels
    }

    fn port_matches(&self, port: &NetworkPolicyPort, direction: &str, c: Connection) -> bool {
        let number = match port.protocol.as_deref() {
            None | Some("TCP") => 6,
            Some("UDP") => 17,
            Some("SCTP") => 132,
            Some(other) => panic!("protocol {other}"),
        };
        if number != c.proto {
            return false;
        }
        match (&port.port, port.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), end) => {
                let (first, last) = (*first, end.unwrap_or(*first));
                first <= i32::from(c.port) && i32::from(c.port) <= last
            }
            (Some(IntOrString::String(name)), _) => {
                // On the destination: the pod itself, or whoever owns the address it connects to.
                let named = |pod: &Pod| {
                    pod.ports.iter().any(|(n, p, port)| n == name && *p == c.proto && *port == c.port)
                };
                match direction {
                    "Ingress" => named(c.pod),
                    _ => self.owner(c.peer).is_some_and(|p| named(p)),
                }
            }
        }
    }
}

fn namespace_of(policy: &NetworkPolicy) -> &str {
    policy.metadata.namespace.as_deref().unwrap_or("default")
}

fn types(spec: &NetworkPolicySpec) -> Vec<&str> {
    match &spec.policy_types {
        Some(types) if !types.is_empty() => types.iter().map(String::as_str).collect(),
        _ if spec.egress.as_ref().is_some_and(|e| !e.is_empty()) => vec!["Ingress", "Egress"],
        _ => vec!["Ingress"],
    }
}

fn selected(selector: &LabelSelector, labels: &Labels) -> bool {
    for (key, value) in selector.match_labels.iter().flatten() {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    for e in selector.match_expressions.iter().flatten() {
        let values = e.values.clone().unwrap_or_default();
        let ok = match (&e.operator[..], labels.get(&e.key)) {
            ("In", Some(v)) => values.contains(v),
            ("In", None) => false,
            ("NotIn", Some(v)) => !values.contains(v),
            ("NotIn", None) => true,
            ("Exists", v) => v.is_some(),
            ("DoesNotExist", v) => v.is_none(),
            (other, _) => panic!("operator {other}"),
        };
        if !ok {
            return false;
        }
    }
    true
}

fn in_block(block: &IPBlock, ip: IpAddr) -> bool {
    in_cidr(&block.cidr, ip) && !block.except.iter().flatten().any(|e| in_cidr(e, ip))
}

/// Compares the leading bits, one by one.
fn in_cidr(cidr: &str, ip: IpAddr) -> bool {
    let (addr, len) = cidr.split_once('/').unwrap();
    let bits = |a: IpAddr| -> Vec<bool> {
        let bytes = match a {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1 == 1)).collect()
    };
    let addr: IpAddr = addr.parse().unwrap();
    let len: usize = len.parse().unwrap();
    addr.is_ipv4() == ip.is_ipv4() && bits(addr)[..len] == bits(ip)[..len]
}
