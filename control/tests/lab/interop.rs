//! Node `a` runs the dataplane, node `b` only Linux: one overlay.

use std::net::IpAddr;

use crate::forwarding::everything_crosses;
use crate::harness::lab::Lab;
use crate::harness::ns::NetNs;
use crate::harness::overlay::Overlay;
use crate::harness::spec::{Encap, Family, LabSpec, NodeSpec};
use crate::traffic::{PATIENCE, icmp, tcp, udp};

fn mixed() -> LabSpec {
    LabSpec { nodes: vec![NodeSpec::fastpath("a", 2), NodeSpec::kernel("b", 2)], ..LabSpec::default() }
}

fn both_ways(lab: &Lab) {
    everything_crosses(lab, "a1", "b1");
    everything_crosses(lab, "b2", "a2");
    let (a, b, ip) = lab.between("b1", "a1", Family::V4);
    tcp::transfer(a, b, ip, 50 << 20, 50 << 20).unwrap();
    tcp::transfer_many(a, b, ip, 10, 100_000).unwrap();
}

/// The kernel's VXLAN over IPv4, inner IPv4 and IPv6.
#[test]
fn kernel_vxlan_outer_ipv4() {
    both_ways(&Lab::start(mixed()));
}

/// The kernel's VXLAN over IPv6 (with UDP checksums), inner IPv4 and IPv6.
#[test]
fn kernel_vxlan_outer_ipv6() {
    both_ways(&Lab::start(LabSpec { outer: Family::V6, ..mixed() }));
}

/// Plain routing on both sides.
#[test]
fn kernel_routing() {
    both_ways(&Lab::start(LabSpec { encap: Encap::None, ..mixed() }));
}

/// The kernel node in another subnet, behind a router.
#[test]
fn kernel_vxlan_behind_a_router() {
    let nodes = vec![NodeSpec::fastpath("a", 2), NodeSpec::kernel("b", 2).in_other_subnet()];
    both_ways(&Lab::start(LabSpec { nodes, ..LabSpec::default() }));
}

/// TCP, UDP of several sizes and ICMP echo from one namespace to another.
fn crosses(what: &str, mtu: usize, from: &NetNs, to: &NetNs, ip: IpAddr) {
    let headers = if ip.is_ipv4() { 28 } else { 48 };
    assert!(icmp::reachable(from, ip), "{what}: ICMP echo");
    assert_eq!(icmp::echo(from, ip, 5, mtu - headers, PATIENCE).unwrap(), 5, "{what}: full-size ICMP echo");
    udp::exchange(from, to, ip, &[8, 64, 1000, mtu - headers]).unwrap_or_else(|e| panic!("{what}: UDP: {e}"));
    tcp::transfer(from, to, ip, 2_000_000, 2_000_000).unwrap_or_else(|e| panic!("{what}: TCP: {e}"));
}

/// Pods both ways; processes of the other node to our pods, from its tunnel address, and back.
fn with_the_nodes_of(overlay: Overlay) {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { outer, overlay: Some(overlay), ..mixed() });
        let mtu = lab.pod_mtu() as usize;
        let what = |detail: &str| format!("{overlay:?}, {outer:?}: {detail}");
        for (from, to) in [("a1", "b1"), ("b2", "a2")] {
            let (a, b, ip) = lab.between(from, to, outer);
            crosses(&what(&format!("{from} to {to}")), mtu, a, b, ip);
        }
        let (node, tunnel) = (&lab.node("b").ns, overlay.tunnel_address(2, outer));
        let (pod, ip) = (&lab.pod("a1").ns, lab.pod("a1").ip(outer));
        let route: serde_json::Value =
            serde_json::from_str(&node.exec("ip", &["-j", "route", "get", &ip.to_string()])).unwrap();
        assert_eq!(
            route[0]["prefsrc"],
            tunnel.to_string(),
            "{}",
            what("the node speaks from its tunnel address")
        );
        crosses(&what("node b to a1"), mtu, node, pod, ip);
        crosses(&what("a1 to node b's tunnel address"), mtu, pod, node, tunnel);
        // The tunnel leads to the annotated address, not to the InternalIP.
        let nodes = lab.node("a").cli().json(&["show", "nodes"]);
        let vtep = Overlay::outer_address(0, 2, outer).to_string();
        assert!(nodes.to_string().contains(&vtep), "{}: {nodes}", what("VTEP"));
        assert_eq!(lab.node("a").cli().status().0["degraded"], serde_json::json!([]), "{}", what("degraded"));
    }
}

/// A node as Calico's VXLAN sets it up: `vxlan.calico`, VNI 4096, a tunnel address outside every pod CIDR.
#[test]
fn calico_vxlan() {
    with_the_nodes_of(Overlay::Calico);
}

/// A node as flannel's VXLAN sets it up: `flannel.1`, VNI 1, port 8472, the subnet's first address.
#[test]
fn flannel_vxlan() {
    with_the_nodes_of(Overlay::Flannel);
}
