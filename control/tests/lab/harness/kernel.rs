//! A node of Linux alone: forwarding, a VXLAN device, routes to the other nodes' pods.
//!
//! With two of them the lab's own helpers are proved before any daemon is involved; with one, a daemon
//! is proved to speak what the kernel speaks.

use super::ns::NetNs;
use super::spec::{Encap, Family, LabSpec, UPLINK, VNI, mac_text, pod_cidr, underlay, vtep_mac};

/// VXLAN device of a kernel node.
pub(crate) const VXLAN_DEVICE: &str = "vx0";

/// Lets the kernel of node `number` (from 1) forward, and join the lab's overlay.
pub(crate) fn join(lab: &LabSpec, number: u16, ns: &NetNs) {
    ns.sysctl("ipv4/ip_forward", "1");
    ns.sysctl("ipv6/conf/all/forwarding", "1");
    let me = &lab.nodes[usize::from(number) - 1];
    let peers: Vec<_> = (1..).zip(&lab.nodes).filter(|(n, _)| *n != number).collect();
    let tunnelled = |peer_subnet: u8| match lab.encap {
        Encap::Vxlan => true,
        Encap::None => false,
        Encap::CrossSubnet => peer_subnet != me.subnet,
    };
    if peers.iter().any(|(_, p)| tunnelled(p.subnet)) {
        let overhead = if lab.outer == Family::V4 { 50 } else { 70 };
        ns.ip([
            format!(
                "link add {VXLAN_DEVICE} address {mac} mtu {mtu} type vxlan id {VNI} dstport 4789 local {local} \
                 dev {UPLINK} nolearning",
                mac = mac_text(vtep_mac(number, lab.outer)),
                mtu = lab.mtu - overhead,
                local = underlay(me.subnet, number, lab.outer),
            ),
            format!("link set {VXLAN_DEVICE} up"),
        ]);
    }
    for (peer, spec) in peers {
        if tunnelled(spec.subnet) {
            let mac = mac_text(vtep_mac(peer, lab.outer));
            let remote = underlay(spec.subnet, peer, lab.outer);
            // Next hops of the overlay that only these static entries know.
            let (via4, via6) = (format!("169.254.64.{peer}"), format!("fe80::64:{peer}"));
            ns.ip([
                format!("neigh add {via4} lladdr {mac} dev {VXLAN_DEVICE} nud permanent"),
                format!("neigh add {via6} lladdr {mac} dev {VXLAN_DEVICE} nud permanent"),
                format!("route add {} via {via4} dev {VXLAN_DEVICE} onlink", pod_cidr(peer, Family::V4)),
                format!("route add {} via {via6} dev {VXLAN_DEVICE} onlink", pod_cidr(peer, Family::V6)),
            ]);
            ns.exec("bridge", &["fdb", "append", &mac, "dev", VXLAN_DEVICE, "dst", &remote.to_string()]);
        } else if spec.subnet == me.subnet {
            ns.ip(direct_routes(spec.subnet, peer));
        }
    }
}

/// Routes to the pods of node `peer` through its underlay address, as a routing daemon would install.
pub(crate) fn direct_routes(subnet: u8, peer: u16) -> [String; 2] {
    [Family::V4, Family::V6]
        .map(|f| format!("route add {} via {}", pod_cidr(peer, f), underlay(subnet, peer, f)))
}
