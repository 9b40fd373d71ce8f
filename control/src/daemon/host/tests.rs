use super::*;
use crate::daemon::fixtures::{cluster, ip, tables};
use crate::netdev::LinkKind;
use crate::netdev::fixtures::{default_route, link};
use crate::netdev::view::{Address, AddressState, Scope};

const MORE: &str = r#"apiVersion: v1
kind: Node
metadata: {name: b}
spec: {podCIDRs: [10.0.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
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

fn world() -> String {
    let external = "[198.51.100.9, 192.0.2.254, 192.0.2.1, 192.0.2.2]";
    cluster("[10.0.0.0/24, \"fd00:1::/64\"]", external, "[{name: http, port: 80, nodePort: 30080}]", MORE)
}

/// A kernel with these addresses, each on a device of its own, and a default route by 192.0.2.254.
fn kernel(addresses: &[&str]) -> NetView {
    let mut net = NetView::default();
    for (index, address) in (1..).zip(addresses) {
        let link = link(index, &format!("eth{index}"), LinkKind::Device);
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
    let mut route = default_route(false, &[1], 0);
    route.hops[0].gateway = Some(ip("192.0.2.254"));
    net.routes = [route].into_iter().collect();
    net
}

fn planned(manifests: &str, config: &str, net: &NetView) -> (HostPlan, Vec<String>) {
    let config = Config::parse(config).unwrap();
    let mut snapshot = Snapshot::default();
    snapshot.node.addresses = net.node_addresses().into_iter().map(Ip::from).collect();
    let (model, tables) = tables(manifests, &mut snapshot);
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
    let (plan, problems) = planned(&world(), "[services]\ncidrs = [\"10.96.0.0/16\"]", &kernel(&OWN));
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
        planned(&world(), "[host]\nnode_ports = false\n[overlay]\nencap = \"none\"", &kernel(&OWN));
    assert_eq!((plan.shared.len(), plan.ports.len(), plan.path_mtu), (0, 0, Some(1500)));
}

#[test]
fn what_is_the_kernels_stays() {
    let objections = |cidr: &str, net: &NetView| {
        let (plan, problems) = planned(&world().replace("10.0.1.0/24", cidr), "", net);
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
    let (plan, problems) = planned(&world(), "", &kernel(&["192.0.2.1/24"]));
    assert_eq!(texts(&plan.sources), ["192.0.2.1"]);
    assert!(problems.len() == 1 && problems[0].contains("2001:db8::1"), "{problems:?}");
    // A node that nobody knows leads nothing anywhere.
    assert_eq!(planned("", "", &net), (HostPlan::default(), Vec::new()));
}
