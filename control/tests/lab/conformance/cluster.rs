//! Nine pods in three namespaces on two nodes: as manifests, and as the evaluator's world.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fastpath_control::model::{Labels, Node, ObjectName, Origin, Pod};
use serde_json::Value;

use crate::harness::lab::Lab;
use crate::harness::object::{self, NamedPort, labels};
use crate::harness::spec::Family;
use crate::oracle::World;
use crate::traffic::matrix::Proto;

/// Namespace and name of a pod, and the pod of the lab that it is: pairs on one node and across two.
pub(super) const PODS: [(&str, &str, &str); 9] = [
    ("x", "a", "a1"),
    ("x", "b", "b1"),
    ("x", "c", "a2"),
    ("y", "a", "b2"),
    ("y", "b", "a3"),
    ("y", "c", "b3"),
    ("z", "a", "a4"),
    ("z", "b", "b4"),
    ("z", "c", "a5"),
];

/// Ports every pod serves, by TCP, UDP and SCTP.
pub(super) const PORTS: [u16; 2] = [80, 81];

const FILE: &str = "cluster.yaml";

/// Something that happens to the cluster.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A policy is created or replaced: namespace, name, `spec`.
    Policy(&'static str, &'static str, Value),
    /// A policy is deleted.
    NoPolicy(&'static str, &'static str),
    /// A namespace gets these labels instead of those it had.
    NamespaceLabels(&'static str, &'static [(&'static str, &'static str)]),
    /// A pod gets these labels instead of those it had.
    PodLabels(&'static str, &'static str, &'static [(&'static str, &'static str)]),
}

/// The state of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    namespaces: BTreeMap<&'static str, Labels>,
    pods: Vec<Labels>,
    policies: BTreeMap<(&'static str, &'static str), Value>,
}

impl Cluster {
    /// Without policies; every namespace has the label `ns`, every pod the label `pod`.
    pub(super) fn new() -> Self {
        Cluster {
            namespaces: ["x", "y", "z"].into_iter().map(|n| (n, labels(&[("ns", n)]))).collect(),
            pods: PODS.iter().map(|(_, name, _)| labels(&[("pod", name)])).collect(),
            policies: BTreeMap::new(),
        }
    }

    pub(super) fn change(&mut self, change: &Change) {
        match change {
            Change::Policy(namespace, name, spec) => {
                self.policies.insert((namespace, name), spec.clone());
            }
            Change::NoPolicy(namespace, name) => {
                self.policies.remove(&(*namespace, *name)).expect("a policy that is there");
            }
            Change::NamespaceLabels(name, new) => {
                *self.namespaces.get_mut(name).expect("a namespace of the cluster") = labels(new);
            }
            Change::PodLabels(namespace, name, new) => {
                let index = PODS.iter().position(|p| (p.0, p.1) == (*namespace, *name));
                self.pods[index.expect("a pod of the cluster")] = labels(new);
            }
        }
    }

    /// One file, so that no daemon ever sees half of a change.
    pub(super) fn apply(&self, lab: &Lab) {
        let namespaces = self.namespaces.iter().map(|(name, labels)| object::namespace(name, labels));
        let pods = PODS.iter().zip(&self.pods).map(|((namespace, name, of), labels)| {
            object::pod(lab, lab.pod(of), (namespace, name), labels, &ports(namespace))
        });
        let policies =
            self.policies.iter().map(|((namespace, name), spec)| object::policy(namespace, name, spec));
        lab.apply(FILE, &namespaces.chain(pods).chain(policies).collect::<Vec<_>>());
    }

    /// Writes the file before any daemon runs.
    pub(super) fn write(&self, lab: &Lab) {
        for (_, _, of) in PODS {
            lab.manifests.remove(&format!("pod-{of}.yaml"));
        }
        self.apply(lab);
    }

    /// The same for the evaluator.
    pub(super) fn world(&self, lab: &Lab) -> World {
        let node = |n: &crate::harness::node::Node| {
            Arc::new(Node {
                name: crate::harness::manifest::node_name(n.spec.name),
                labels: Labels::new(),
                addresses: Family::BOTH.map(|f| n.ip(f)).into(),
                pod_cidrs: Vec::new(),
                vtep_v4: None,
                vtep_v6: None,
                tunnel_addresses: Vec::new(),
                vtep_mac_v4: None,
                vtep_mac_v6: None,
                origin: Origin::Api,
            })
        };
        let pod = |((namespace, name, of), labels): (&(&str, &str, &str), &Labels)| {
            let pod = lab.pod(of);
            Arc::new(Pod {
                name: ObjectName { namespace: (*namespace).into(), name: (*name).into() },
                labels: labels.clone(),
                node: Some(crate::harness::manifest::node_name(lab.nodes[pod.node].spec.name)),
                addresses: Family::BOTH.map(|f| pod.ip(f)).into(),
                host_network: false,
                finished: false,
                ports: ports(namespace)
                    .iter()
                    .map(|(n, p, port)| (n.to_string(), number(p), *port))
                    .collect(),
                host_ports: std::collections::BTreeSet::new(),
                interface: None,
                mac: None,
                netns: None,
                uid: None,
                origin: Origin::Api,
            })
        };
        let policy = |((namespace, name), spec): (&(&str, &str), &Value)| {
            serde_json::from_value(object::policy(namespace, name, spec)).expect("a NetworkPolicy")
        };
        World {
            nodes: lab.nodes.iter().map(node).collect(),
            namespaces: self.namespaces.iter().map(|(n, l)| ((*n).to_owned(), l.clone())).collect(),
            pods: PODS.iter().zip(&self.pods).map(pod).collect(),
            policies: self.policies.iter().map(policy).collect(),
        }
    }
}

/// Named ports of the pods of a namespace: the same name is not the same number everywhere.
fn ports(namespace: &str) -> Vec<NamedPort> {
    let (web, other) = if namespace == "z" { (81, 80) } else { (80, 81) };
    vec![
        ("web", "TCP", web),
        ("other", "TCP", other),
        ("query", "UDP", web),
        ("signal", "SCTP", web),
        ("signal-2", "SCTP", other),
    ]
}

fn number(protocol: &str) -> u8 {
    match protocol {
        "TCP" => Proto::Tcp.number(Family::V4),
        "UDP" => Proto::Udp.number(Family::V4),
        "SCTP" => Proto::Sctp.number(Family::V4),
        other => panic!("protocol {other}"),
    }
}

/// Addresses of a pod of [`PODS`].
pub(super) fn addresses(lab: &Lab, index: usize) -> [IpAddr; 2] {
    Family::BOTH.map(|f| lab.pod(PODS[index].2).ip(f))
}
