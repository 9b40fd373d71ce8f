//! A pod: a namespace with one veth, dual stack, everything through the gateway.

use std::net::IpAddr;

use super::ns::NetNs;
use super::spec::{Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Kind, mac_text, pod_address};

/// Device inside a pod.
pub(crate) const POD_DEVICE: &str = "eth0";

/// A pod.
#[derive(Debug)]
pub(crate) struct Pod {
    /// Name of the object, e.g. `a1`.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) ns: NetNs,
    /// Its number on its node, from 1.
    pub(crate) number: u16,
    /// Index of its node in the lab.
    pub(crate) node: usize,
    /// Host side of its veth.
    pub(crate) interface: String,
    v4: IpAddr,
    v6: IpAddr,
}

/// How the veth of a pod is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wiring {
    /// Who forwards on the node.
    pub(crate) kind: Kind,
    /// MTU on both sides.
    pub(crate) mtu: u32,
    /// Leaves tx checksum offload on.
    pub(crate) partial_checksums: bool,
}

impl Pod {
    /// Makes namespace and veth; the host side is left in `host`, up.
    pub(crate) fn create(
        prefix: &str,
        name: &str,
        (node, number): (usize, u16),
        host: &NetNs,
        wiring: Wiring,
    ) -> Self {
        let node_number = u16::try_from(node + 1).expect("few nodes");
        let ns = NetNs::create(&format!("{prefix}-{name}"));
        let pod = Pod {
            interface: format!("fp-{name}"),
            name: name.to_owned(),
            number,
            node,
            v4: pod_address(node_number, number, Family::V4),
            v6: pod_address(node_number, number, Family::V6),
            ns,
        };
        let Wiring { kind, mtu, partial_checksums } = wiring;
        let (host_side, pod_ns) = (&pod.interface, pod.ns.name());
        let mut lines = vec![
            format!(
                "link add {host_side} mtu {mtu} type veth peer name {POD_DEVICE} mtu {mtu} netns {pod_ns}"
            ),
            format!("link set {host_side} up"),
        ];
        if kind == Kind::Kernel {
            let gateway_mac = mac_text(GATEWAY_MAC);
            lines.push(format!("link set {host_side} address {gateway_mac}"));
            lines.push(format!("addr add {GATEWAY_V4}/32 dev {host_side} scope link"));
            lines.push(format!("addr add {GATEWAY_V6}/64 dev {host_side} nodad"));
            lines.push(format!("route add {} dev {host_side}", pod.v4));
            lines.push(format!("route add {} dev {host_side}", pod.v6));
        }
        host.ip(lines);
        pod.ns.ip([
            format!("addr add {}/32 dev {POD_DEVICE}", pod.v4),
            format!("addr add {}/128 dev {POD_DEVICE} nodad", pod.v6),
            format!("link set {POD_DEVICE} up"),
            format!("route add {GATEWAY_V4} dev {POD_DEVICE} scope link"),
            format!("route add default via {GATEWAY_V4} dev {POD_DEVICE}"),
            format!("route add {GATEWAY_V6} dev {POD_DEVICE}"),
            format!("route add default via {GATEWAY_V6} dev {POD_DEVICE}"),
        ]);
        if !partial_checksums {
            pod.ns.exec("ethtool", &["-K", POD_DEVICE, "tx", "off"]);
        }
        pod
    }

    /// Its address of a family.
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// MAC address of its side of the veth.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.ns.mac(POD_DEVICE)
    }
}
