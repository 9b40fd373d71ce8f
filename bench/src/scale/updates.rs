//! Endpoint updates a second through model and compilation, in this process: what the control thread does for a batch of
//! changes as the Kubernetes source hands them on.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastpath::snapshot::{NodeInfo, Snapshot};
use fastpath_control::compile::tables::{SnatSettings, Tables};
use fastpath_control::model::{
    Endpoint, EndpointPort, EndpointSlice, IpBlock, Labels, Model, Namespace, NamespaceScope, NetworkPolicy,
    Node, ObjectName, Origin, Peer, Pod, PortMatch, PortSpec, Protocol, Rule, Selector, Service, ServiceKind,
    ServicePort,
};

use ipnet::IpNet;

use super::rows::{Row, percentile};

/// What comes within the 80 ms that the Kubernetes source gathers, at 100,000 a second.
const BATCH: u32 = 8_000;
const BATCHES: u32 = 25;
const NAMESPACES: u32 = 20;
const HERE: u32 = 100;
const POLICIES: u32 = 1_000;
const SERVICES: u32 = 1_000;

fn name(n: u32, kind: &str) -> ObjectName {
    ObjectName { namespace: format!("ns-{}", n % NAMESPACES), name: format!("{kind}-{n}") }
}

fn address(n: u32) -> IpAddr {
    let [_, b, c, d] = n.to_be_bytes();
    IpAddr::from([10, b, c, d])
}

fn labels(app: u32, tier: u32) -> Labels {
    [("app".to_owned(), format!("a{app}")), ("tier".to_owned(), format!("t{tier}"))].into()
}

fn pod(n: u32, version: u32) -> Arc<Pod> {
    let node = if n < HERE { 0 } else { 1 + n / 256 };
    Arc::new(Pod {
        name: name(n, "pod"),
        uid: Some(format!("uid-{n}")),
        labels: labels((n + version) % 50, n % 3),
        node: Some(format!("node-{node}")),
        // Another address with every version: the pod was made anew.
        addresses: vec![address((n | (version % 2) << 23) & 0xff_ffff)],
        host_network: false,
        finished: false,
        ports: BTreeSet::from([("http".to_owned(), 6, 8080)]),
        host_ports: BTreeSet::new(),
        interface: None,
        mac: None,
        netns: None,
        origin: Origin::Api,
    })
}

fn node(n: u32) -> Arc<Node> {
    // Both versions of its pods' addresses lie in the first prefix.
    let cidrs = if n == 0 { vec!["10.0.0.0/8"] } else { Vec::new() };
    Arc::new(Node {
        name: format!("node-{n}"),
        labels: Labels::new(),
        addresses: vec![IpAddr::from([192, 168, 0, 1])],
        pod_cidrs: cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
        vtep_v4: None,
        vtep_v6: None,
        tunnel_addresses: Vec::new(),
        vtep_mac_v4: None,
        vtep_mac_v6: None,
        origin: Origin::Api,
    })
}

fn policy(n: u32) -> Arc<NetworkPolicy> {
    let app = |n: u32| -> Selector { [("app".to_owned(), format!("a{}", n % 50))].into_iter().collect() };
    let tier: Selector = [("tier".to_owned(), format!("t{}", n % 3))].into_iter().collect();
    let own = Peer::Pods { namespaces: NamespaceScope::Own, pods: app(n + 1) };
    let others = Peer::Pods { namespaces: NamespaceScope::Matching(Selector::default()), pods: tier };
    let ports = vec![PortMatch {
        protocol: Protocol::Tcp,
        port: PortSpec::Range(u16::try_from(1000 + n).unwrap_or(1), u16::try_from(1000 + n).unwrap_or(1)),
    }];
    Arc::new(NetworkPolicy {
        name: name(n, "policy"),
        pod_selector: app(n),
        isolates_ingress: true,
        isolates_egress: false,
        ingress: vec![Rule { peers: vec![own, others], ports, origin: Origin::Api }],
        egress: Vec::new(),
        closed: false,
        origin: Origin::Api,
    })
}

fn service(n: u32) -> Arc<Service> {
    let [_, _, c, d] = n.to_be_bytes();
    Arc::new(Service {
        name: name(n, "service"),
        kind: ServiceKind::ClusterIp,
        cluster_ips: vec![IpAddr::from([172, 20, c, d])],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        affinity_seconds: None,
        external_local: false,
        internal_local: false,
        health_check_node_port: None,
        traffic_distribution: None,
        origin: Origin::Api,
    })
}

/// Ten backends; the version says which of them is another.
fn slice(n: u32, version: u32) -> Arc<EndpointSlice> {
    let endpoint = |i: u32| Endpoint {
        address: address((n * 10 + i + if i == version % 10 { version << 15 } else { 0 }) & 0xff_ffff),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        pod: None,
    };
    Arc::new(EndpointSlice {
        name: name(n, "slice"),
        service: Some(name(n, "service")),
        ipv4: Some(true),
        ports: vec![EndpointPort { name: String::new(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..10).map(endpoint).collect(),
        origin: Origin::Api,
    })
}

fn cluster(pods: u32) -> Model {
    let mut model = Model::default();
    for n in 0..NAMESPACES {
        let name = format!("ns-{n}");
        let labels = [("kubernetes.io/metadata.name".to_owned(), name.clone())].into();
        model.namespaces.insert(name.clone(), Arc::new(Namespace { name, labels, origin: Origin::Api }));
    }
    model.nodes = (0..=pods / 256 + 1).map(|n| (format!("node-{n}"), node(n))).collect();
    model.pods = (0..pods).map(|n| (name(n, "pod"), pod(n, 0))).collect();
    model.policies = (0..POLICIES).map(|n| (name(n, "policy"), policy(n))).collect();
    model.services = (0..SERVICES).map(|n| (name(n, "service"), service(n))).collect();
    model.slices = (0..SERVICES).map(|n| (name(n, "slice"), slice(n, 0))).collect();
    model
}

/// The control thread's tables.
struct Rig {
    model: Model,
    tables: Tables,
}

impl Rig {
    fn new(pods: u32) -> Self {
        let settings = SnatSettings { outgoing: true, ports: (40_000, 56_383), inside: Vec::new() };
        let mut rig = Self { model: cluster(pods), tables: Tables::new("node-0", 1, settings) };
        rig.compile();
        rig
    }

    fn compile(&mut self) -> Snapshot {
        let snapshot = self.compile_only();
        self.tables.tidy();
        snapshot
    }

    fn compile_only(&mut self) -> Snapshot {
        let mut snapshot = Snapshot {
            node: NodeInfo { addresses: vec![IpAddr::from([192, 168, 0, 1]).into()], ..NodeInfo::default() },
            ..Snapshot::default()
        };
        self.tables.fill(&Arc::new(self.model.clone()), &BTreeMap::new(), &mut snapshot);
        snapshot
    }

    /// Updates a second, batch by batch; `change` makes the n-th update of version `version`.
    fn measure(&mut self, per_batch: u32, change: impl Fn(&mut Model, u32, u32)) -> Vec<f64> {
        let mut last = self.compile();
        let mut runs = Vec::new();
        for version in 1..=BATCHES {
            let start = Instant::now();
            for n in 0..per_batch {
                change(&mut self.model, n, version);
            }
            let snapshot = self.compile();
            let took = start.elapsed();
            assert!(snapshot != last, "an update makes a difference");
            last = snapshot;
            runs.push(f64::from(per_batch) / took.max(Duration::from_nanos(1)).as_secs_f64());
        }
        runs
    }
}

/// A policy of so many rules over the pods here, each for an address and a port that versions change.
fn large(rules: u32, version: u32, all: bool) -> Arc<NetworkPolicy> {
    let rule = |n: u32| {
        let [_, b, c, d] = (if all { n + version * rules } else { n }).to_be_bytes();
        let cidr = IpNet::new(IpAddr::from([100, b, c, d]), 32).unwrap_or_default();
        let port = u16::try_from(1 + (n + version) % 60_000).unwrap_or(1);
        Rule {
            peers: vec![Peer::Block(IpBlock { cidr, except: Vec::new() })],
            ports: vec![PortMatch { protocol: Protocol::Tcp, port: PortSpec::Range(port, port) }],
            origin: Origin::Api,
        }
    };
    Arc::new(NetworkPolicy {
        name: name(0, "large"),
        pod_selector: [("app".to_owned(), "large".to_owned())].into_iter().collect(),
        isolates_ingress: true,
        isolates_egress: false,
        ingress: (0..rules).map(rule).collect(),
        egress: Vec::new(),
        closed: false,
        origin: Origin::Api,
    })
}

/// Milliseconds of compilations that take over another version of a policy of so many rules.
fn swaps(rules: u32, all: bool) -> Vec<f64> {
    let mut rig = Rig::new(1_000);
    let subject = Pod {
        name: name(0, "subject"),
        labels: [("app".to_owned(), "large".to_owned())].into(),
        ..(*pod(0, 1)).clone()
    };
    rig.model.pods.insert(subject.name.clone(), Arc::new(subject));
    let mut last = rig.compile();
    let mut runs = Vec::new();
    for version in 0..40 {
        let policy = large(rules, version, all);
        rig.model.policies.insert(policy.name.clone(), policy);
        let start = Instant::now();
        let snapshot = rig.compile_only();
        let differs = snapshot != last;
        runs.push(start.elapsed().as_secs_f64() * 1e3);
        assert!(differs, "a version makes a difference");
        rig.tables.tidy();
        last = snapshot;
    }
    // The first one is new, not swapped.
    runs.remove(0);
    runs
}

/// Measures everything.
pub(crate) fn run() -> Vec<Row> {
    let mut rows = Vec::new();
    for (all, what) in [(false, "every port"), (true, "every port and peer")] {
        let runs = swaps(10_000, all);
        let title = format!("compilation of 10000 rules swapped, {what} another");
        rows.push(Row::of(format!("{title}: p50"), "ms", percentile(&runs, 50), Vec::new()));
        rows.push(Row::of(format!("{title}: p99"), "ms", percentile(&runs, 99), runs));
    }
    for pods in [10_000, 100_000] {
        let mut rig = Rig::new(pods);
        let spread = pods / BATCH.min(pods);
        let runs = rig.measure(BATCH.min(pods / 2), |model, n, version| {
            let n = (n * spread.max(1)) % pods;
            model.pods.insert(name(n, "pod"), pod(n, version));
        });
        let title = format!("pod updates, {pods} pods, {POLICIES} policies, in batches");
        rows.push(Row::of(title, "updates/s", percentile(&runs, 50), runs).at_least(6, 100_000.0));
        let runs = rig.measure(1, |model, _, version| {
            model.pods.insert(name(pods / 2, "pod"), pod(pods / 2, version));
        });
        let us: Vec<f64> = runs.iter().map(|r| 1e6 / r).collect();
        rows.push(Row::of(
            format!("one pod more in a known class, {pods} pods"),
            "us",
            percentile(&us, 50),
            us,
        ));
        // Ten thousand endpoints, each of them another in ten batches.
        let runs = rig.measure(BATCH, |model, n, version| {
            let (n, version) = (n % SERVICES, version * (BATCH / SERVICES) + n / SERVICES);
            model.slices.insert(name(n, "slice"), slice(n, version));
        });
        let title = format!("endpoint updates of {SERVICES} services, {pods} pods, in batches");
        rows.push(Row::of(title, "updates/s", percentile(&runs, 50), runs).at_least(6, 100_000.0));
    }
    rows
}
