//! Node `a` runs the dataplane, node `b` only Linux: one overlay.

use crate::forwarding::everything_crosses;
use crate::harness::lab::Lab;
use crate::harness::spec::{Encap, Family, LabSpec, NodeSpec};
use crate::traffic::tcp;

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
