use std::sync::Arc;

use super::*;
use crate::compile::tables::{SnatSettings, Tables};
use crate::explain::tests::Folder;
use crate::netdev::view::{Address, AddressState, Scope};
use crate::netdev::{Link, LinkKind};
use crate::source::load_dir;

const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: a}
spec: {podCIDRs: [10.0.0.0/24, "fd00:1::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}
---
apiVersion: v1
kind: Node
metadata: {name: b}
spec: {podCIDRs: [10.0.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.1, "fd96::1"]
  externalIPs: [198.51.100.9, 192.0.2.254, 192.0.2.1, 192.0.2.2]
  loadBalancerIP: "2001:db8:1::9"
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {nodeName: a, containers: [{name: c, ports: [{containerPort: 53, protocol: UDP, hostPort: 53}]}]}
status: {podIPs: [{ip: 10.0.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: q}
spec: {nodeName: b, containers: [{name: c, ports: [{containerPort: 53, hostPort: 9053}]}]}
status: {podIPs: [{ip: 10.9.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: h}
spec: {nodeName: b, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 9100, hostPort: 9100}]}]}
status: {podIPs: [{ip: 192.0.2.2}]}
"#;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A kernel with these addresses, each on a device of its own, and a default route by 192.0.2.254.
fn kernel(addresses: &[&str]) -> NetView {
    let mut net = NetView::default();
    for (index, address) in (1..).zip(addresses) {
        let link = Link {
            index,
            name: format!("eth{index}"),
            mac: None,
            mtu: 1500,
            up: true,
            running: true,
            kind: LinkKind::Device,
            lower: None,
            master: None,
            rx_queues: 1,
            tx_queues: 1,
        };
        net.links.insert(index, link);
        net.addresses.insert(Address {
            link: index,
            net: address.parse().unwrap(),
            peer: None,
            scope: Scope::Global,
            state: AddressState::Usable,
            permanent: true,
        });
    }
    let hop = crate::netdev::route::Hop {
        link: 1,
        gateway: Some(ip("192.0.2.254")),
        weight: 1,
        dead: false,
        no_carrier: false,
    };
    net.routes = [crate::netdev::Route {
        table: 254,
        dst: "0.0.0.0/0".parse().unwrap(),
        selector: crate::netdev::route::Selector::default(),
        metric: 0,
        preference: 0,
        kind: crate::netdev::route::RouteKind::Unicast,
        prefsrc: None,
        hops: vec![hop],
        protocol: 3,
    }]
    .into_iter()
    .collect();
    net
}

fn planned(manifests: &str, config: &str, net: &NetView) -> (HostPlan, Vec<String>) {
    let model = load_dir(&Folder::new(manifests).0).unwrap().model;
    let config = Config::parse(config).unwrap();
    let mut tables =
        Tables::new("a", 1, SnatSettings { outgoing: true, ports: (40_000, 41_000), inside: vec![] });
    let mut snapshot = Snapshot::default();
    snapshot.node.addresses = net.node_addresses().into_iter().map(Ip::from).collect();
    let model = Arc::clone(&model);
    tables.fill(&model, &BTreeMap::new(), &mut snapshot);
    plan(&Inputs {
        config: &config,
        node: "a",
        model: &model,
        net,
        snapshot: &snapshot,
        services: tables.services(),
        pair: ["fp-host", "fp-host-xdp"],
        mtu: Some(1500),
    })
}

fn texts<T: ToString>(all: impl IntoIterator<Item = T>) -> Vec<String> {
    all.into_iter().map(|t| t.to_string()).collect()
}

const OWN: [&str; 3] = ["192.0.2.1/24", "2001:db8::1/64", "172.17.0.1/16"];

#[test]
fn what_is_led_into_the_pair() {
    let (plan, problems) = planned(CLUSTER, "[services]\ncidrs = [\"10.96.0.0/16\"]", &kernel(&OWN));
    assert_eq!(problems, [""; 0]);
    assert_eq!((plan.mtu, plan.path_mtu), (Some(1500), Some(1450)));
    assert_eq!(texts(&plan.sources), ["192.0.2.1", "2001:db8::1"]);
    // Pods outside their node's networks, and cluster addresses outside the configured ones, one by one.
    assert_eq!(
        texts(&plan.nets),
        ["10.0.0.0/24", "10.0.1.0/24", "10.9.0.5/32", "10.96.0.0/16", "fd00:1::/64", "fd96::1/128"]
    );
    // By ports: no gateway and no address of another node.
    let shared: Vec<String> = plan.shared.iter().map(|(a, own)| format!("{a} {own}")).collect();
    assert_eq!(
        shared,
        [
            "172.17.0.1 true",
            "192.0.2.1 true",
            "198.51.100.9 false",
            "2001:db8::1 true",
            "2001:db8:1::9 false"
        ]
    );
    let ports: Vec<_> = plan.ports.iter().copied().collect();
    assert_eq!(ports, [(false, 6, 80), (false, 6, 30_080), (true, 6, 80), (true, 6, 30_080), (true, 17, 53)]);
    let (plan, _) =
        planned(CLUSTER, "[host]\nnode_ports = false\n[overlay]\nencap = \"none\"", &kernel(&OWN));
    assert_eq!((plan.shared.len(), plan.ports.len(), plan.path_mtu), (0, 0, Some(1500)));
}

#[test]
fn what_is_the_kernels_stays() {
    let objections = |cidr: &str, net: &NetView| {
        let (plan, problems) = planned(&CLUSTER.replace("10.0.1.0/24", cidr), "", net);
        (texts(&plan.nets).contains(&cidr.to_owned()), problems.join("; "))
    };
    let net = kernel(&OWN);
    for (cidr, why) in [
        ("192.0.0.0/16", "192.0.2.1 in it is an address of node a"),
        ("172.17.128.0/17", "it overlaps 172.17.0.0/16, which is on the link of eth3"),
        ("172.16.0.0/12", "172.17.0.1 in it is an address of node a"),
        ("192.0.2.128/25", "it overlaps 192.0.2.0/24, which is on the link of eth1"),
    ] {
        let (routed, said) = objections(cidr, &net);
        assert!(!routed, "{cidr}");
        assert_eq!(said, format!("host port: {cidr} is not routed to it: {why}"));
    }
    assert_eq!(objections("10.44.0.0/16", &net), (true, String::new()));

    // An InternalIP that no device has cannot be sent from.
    let (plan, problems) = planned(CLUSTER, "", &kernel(&["192.0.2.1/24"]));
    assert_eq!(texts(&plan.sources), ["192.0.2.1"]);
    assert!(problems.len() == 1 && problems[0].contains("2001:db8::1"), "{problems:?}");
    // A node that nobody knows leads nothing anywhere.
    assert_eq!(planned("", "", &net), (HostPlan::default(), Vec::new()));
}
