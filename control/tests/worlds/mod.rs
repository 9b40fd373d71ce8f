//! Random clusters, small enough that everything in them meets: few labels, few ports, nested address blocks.

use std::net::IpAddr;
use std::sync::Arc;

use fastpath_control::model::{Labels, Model, Namespace, Node, ObjectName, Origin, Pod};
use fastpath_control::source::convert::network_policy;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use crate::oracle::World;

const NAMESPACES: [&str; 4] = ["default", "shop", "db", "bare"];
const NODES: usize = 3;
const PODS: usize = 9;
const KEYS: [&str; 3] = ["app", "tier", "x.io/env"];
const VALUES: [&str; 3] = ["a", "b", ""];
const PORT_NAMES: [&str; 3] = ["http", "dns", "alt"];

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(select(&KEYS[..]), select(&VALUES[..]), 0..=3)
        .prop_map(|m| m.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn selector(keys: &'static [&'static str], values: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let expression =
        (select(keys), 0u8..4, subsequence(values, 1..=2)).prop_map(|(key, op, values)| match op {
            0 => json!({"key": key, "operator": "In", "values": values}),
            1 => json!({"key": key, "operator": "NotIn", "values": values}),
            2 => json!({"key": key, "operator": "Exists"}),
            _ => json!({"key": key, "operator": "DoesNotExist"}),
        });
    let one = (select(keys), select(values)).prop_map(|(k, v)| json!({"matchLabels": {k: v}}));
    prop_oneof![
        2 => Just(json!({})),
        4 => one,
        4 => prop::collection::vec(expression.clone(), 1..3).prop_map(|e| json!({"matchExpressions": e})),
        1 => (select(keys), select(values), expression)
            .prop_map(|(k, v, e)| json!({"matchLabels": {k: v}, "matchExpressions": [e]})),
    ]
}

fn pod_selector() -> impl Strategy<Value = Value> {
    selector(&KEYS, &VALUES)
}

fn namespace_selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => selector(&KEYS, &VALUES),
        1 => selector(&["kubernetes.io/metadata.name"], &NAMESPACES),
    ]
}

type Block = (&'static str, &'static [&'static str]);

/// Blocks around pods, nodes and the outside, nested, some with host bits; and what may be taken out of each.
const BLOCKS: [Block; 10] = [
    ("0.0.0.0/0", &["10.244.0.0/16", "192.0.2.0/30", "10.244.1.0/24", "128.0.0.0/1"]),
    ("10.244.0.0/16", &["10.244.1.0/24", "10.244.0.2/31", "10.244.0.3/32", "10.244.2.7/25"]),
    ("10.244.1.9/24", &["10.244.1.0/30", "10.244.1.3/32"]),
    ("10.244.0.3/32", &[]),
    ("192.0.2.0/24", &["192.0.2.1/32", "192.0.2.2/31"]),
    ("198.51.100.7/32", &[]),
    ("::/0", &["fd00:244::/32", "fd00:244:0:1::/64", "2001:db8::/32"]),
    ("fd00:244::/32", &["fd00:244:0:1::/64", "fd00:244::3/128"]),
    ("fd00:244:0:1::9/64", &["fd00:244:0:1::/126"]),
    ("2001:db8::/64", &["2001:db8::1/128"]),
];

fn block() -> impl Strategy<Value = Value> {
    select(&BLOCKS[..]).prop_flat_map(|(cidr, excepts)| {
        subsequence(excepts, 0..=excepts.len()).prop_map(move |except| match except.len() {
            0 => json!({"cidr": cidr}),
            _ => json!({"cidr": cidr, "except": except}),
        })
    })
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => pod_selector().prop_map(|p| json!({"podSelector": p})),
        2 => namespace_selector().prop_map(|n| json!({"namespaceSelector": n})),
        2 => (pod_selector(), namespace_selector()).prop_map(|(p, n)| json!({"podSelector": p, "namespaceSelector": n})),
        2 => block().prop_map(|b| json!({"ipBlock": b})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = prop::option::of(select(&["TCP", "UDP", "SCTP"][..]));
    let port = prop_oneof![
        3 => select(&[80, 53, 443, 8080, 1, 65535][..]).prop_map(|p| json!({"port": p})),
        3 => select(&PORT_NAMES[..]).prop_map(|p| json!({"port": p})),
        2 => select(&[(80, 80), (80, 443), (1, 65535), (8080, 8085), (60000, 65535)][..])
            .prop_map(|(a, b)| json!({"port": a, "endPort": b})),
        1 => Just(json!({})),
    ];
    (protocol, port).prop_map(|(protocol, mut port)| {
        if let Some(p) = protocol {
            port["protocol"] = json!(p);
        }
        port
    })
}

fn rules(side: &'static str) -> impl Strategy<Value = Value> {
    let list = |s: BoxedStrategy<Value>| prop::option::weighted(0.8, prop::collection::vec(s, 0..3));
    let rule = (list(peer().boxed()), list(port().boxed())).prop_map(move |(peers, ports)| {
        let mut rule = json!({});
        if let Some(p) = peers {
            rule[side] = json!(p);
        }
        if let Some(p) = ports {
            rule["ports"] = json!(p);
        }
        rule
    });
    prop::collection::vec(rule, 0..4).prop_map(Value::from)
}

type Policy = NetworkPolicy;

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let types = prop_oneof![Just(None), subsequence(vec!["Ingress", "Egress"], 0..=2).prop_map(Some),];
    let rules = (prop::option::weighted(0.8, rules("from")), prop::option::weighted(0.8, rules("to")));
    let name = (select(&NAMESPACES[..3]), 0usize..8);
    (name, prop::option::weighted(0.9, pod_selector()), types, rules).prop_map(
        |((namespace, n), selector, types, (ingress, egress))| {
            let mut metadata = json!({"name": format!("policy-{n}")});
            if namespace != "default" {
                metadata["namespace"] = json!(namespace);
            }
            let spec =
                json!({"podSelector": selector, "policyTypes": types, "ingress": ingress, "egress": egress});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
        },
    )
}

/// Its addresses come from its number, but now and then it has another pod's.
pub(crate) fn pod(number: usize) -> impl Strategy<Value = Arc<Pod>> {
    let port = (select(&PORT_NAMES[..]), select(&[6u8, 17, 132][..]), select(&[80u16, 443, 8080, 53][..]));
    let ports = prop::collection::btree_set(port, 0..4);
    let odd = prop_oneof![12 => Just((false, false)), 1 => Just((true, false)), 1 => Just((false, true))];
    let host = prop_oneof![9 => Just(number), 1 => 0..PODS];
    let node = prop_oneof![9 => Just(Some(number % NODES)), 1 => Just(None)];
    (select(&NAMESPACES[..]), labels(), ports, odd, host, node).prop_map(
        move |(namespace, labels, ports, (host_network, finished), host, node)| {
            let at = node.unwrap_or(0);
            let addresses = if host_network { node_addresses(at) } else { pod_addresses(host) };
            Arc::new(Pod {
                name: ObjectName { namespace: namespace.into(), name: format!("pod-{number}") },
                labels,
                node: node.map(|n| format!("node-{n}")),
                addresses,
                host_network,
                finished,
                ports: ports.into_iter().map(|(n, p, port)| (n.to_owned(), p, port)).collect(),
                host_ports: std::collections::BTreeSet::new(),
                interface: None,
                netns: None,
                uid: None,
                mac: None,
                origin: Origin::Api,
            })
        },
    )
}

fn pod_addresses(number: usize) -> Vec<IpAddr> {
    let (net, host) = (number % NODES, number / NODES + 1);
    let v4 = IpAddr::from([10, 244, u8::try_from(net).unwrap(), u8::try_from(host).unwrap()]);
    let v6 = format!("fd00:244:0:{net:x}::{host:x}").parse().unwrap();
    match number % 4 {
        3 => vec![v6],
        2 => vec![v4],
        _ => vec![v4, v6],
    }
}

fn node_addresses(number: usize) -> Vec<IpAddr> {
    vec![
        format!("192.0.2.{}", number + 1).parse().unwrap(),
        format!("2001:db8::{}", number + 1).parse().unwrap(),
    ]
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let pods: Vec<_> = (0..PODS).map(pod).collect();
    let namespaces: Vec<_> =
        NAMESPACES[..3].iter().map(|n| labels().prop_map(|l| (n.to_string(), l))).collect();
    let policies = prop::collection::vec(policy(), 0..7);
    (pods, namespaces, policies).prop_map(|(pods, namespaces, policies)| {
        let node = |n: usize| {
            Arc::new(Node {
                name: format!("node-{n}"),
                labels: Labels::new(),
                addresses: node_addresses(n),
                pod_cidrs: Vec::new(),
                vtep_v4: None,
                vtep_v6: None,
                tunnel_addresses: Vec::new(),
                vtep_mac_v4: None,
                vtep_mac_v6: None,
                origin: Origin::Api,
            })
        };
        let mut world = World { nodes: (0..NODES).map(node).collect(), namespaces, ..World::default() };
        policies.into_iter().for_each(|p| apply(&mut world, Change::Policy(Box::new(p))));
        pods.into_iter().for_each(|p| apply(&mut world, Change::Pod(p)));
        world
    })
}

/// One change of a world.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Pod(Arc<Pod>),
    PodGone(usize),
    Policy(Box<Policy>),
    PolicyGone(usize),
    Namespace(&'static str, Labels),
    NamespaceGone(&'static str),
    Node(usize, bool),
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..PODS).prop_flat_map(pod).prop_map(Change::Pod),
        1 => (0..PODS).prop_map(Change::PodGone),
        4 => policy().prop_map(|p| Change::Policy(Box::new(p))),
        1 => (0usize..8).prop_map(Change::PolicyGone),
        2 => (select(&NAMESPACES[..]), labels()).prop_map(|(n, l)| Change::Namespace(n, l)),
        1 => select(&NAMESPACES[..]).prop_map(Change::NamespaceGone),
        1 => (0..NODES, any::<bool>()).prop_map(|(n, moved)| Change::Node(n, moved)),
    ]
}

pub(crate) fn apply(world: &mut World, change: Change) {
    match change {
        Change::Pod(pod) => {
            world.pods.retain(|p| p.name.name != pod.name.name);
            world.pods.push(pod);
        }
        Change::PodGone(n) => world.pods.retain(|p| p.name.name != format!("pod-{n}")),
        Change::Policy(policy) => {
            let id = |p: &Policy| (p.metadata.namespace.clone(), p.metadata.name.clone());
            world.policies.retain(|p| id(p) != id(&policy));
            world.policies.push(*policy);
        }
        Change::PolicyGone(n) => {
            world.policies.retain(|p| p.metadata.name.as_deref() != Some(&format!("policy-{n}")));
        }
        Change::Namespace(name, labels) => {
            world.namespaces.retain(|(n, _)| n != name);
            world.namespaces.push((name.to_owned(), labels));
        }
        Change::NamespaceGone(name) => world.namespaces.retain(|(n, _)| n != name),
        Change::Node(n, moved) => {
            let mut node = (*world.nodes[n]).clone();
            node.addresses = node_addresses(if moved { n + 7 } else { n });
            world.nodes[n] = Arc::new(node);
        }
    }
}

/// What a source makes of it.
pub(crate) fn model(world: &World) -> Model {
    let namespace = |(name, labels): &(String, Labels)| {
        let mut labels = labels.clone();
        labels.insert("kubernetes.io/metadata.name".into(), name.clone());
        (name.clone(), Arc::new(Namespace { name: name.clone(), labels, origin: Origin::Api }))
    };
    let policy = |p: &Policy| {
        let p = network_policy(p, |_| Origin::Api).expect("the generator makes valid policies");
        (p.name.clone(), Arc::new(p))
    };
    Model {
        nodes: world.nodes.iter().map(|n| (n.name.clone(), n.clone())).collect(),
        namespaces: world.namespaces.iter().map(namespace).collect(),
        pods: world.pods.iter().map(|p| (p.name.clone(), p.clone())).collect(),
        policies: world.policies.iter().map(policy).collect(),
        services: Default::default(),
        slices: Default::default(),
    }
}

/// All addresses of pods and nodes, and others at the edges of the blocks.
pub(crate) fn probe_addresses(world: &World) -> Vec<IpAddr> {
    let outside = [
        "10.244.0.0",
        "10.244.2.127",
        "10.243.255.255",
        "10.245.0.1",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.3",
        "198.51.100.7",
        "203.0.113.1",
        "127.255.255.255",
        "fd00:244::3",
        "fd00:244:0:1::3",
        "fd00:244:0:1::4",
        "fd00:245::1",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:1::1",
        "2600::1",
    ];
    let mut all: Vec<IpAddr> = outside.iter().map(|a| a.parse().unwrap()).collect();
    all.extend(world.pods.iter().flat_map(|p| p.addresses.iter().copied()));
    all.extend(world.nodes.iter().flat_map(|n| n.addresses.iter().copied()));
    all.sort();
    all.dedup();
    all
}
