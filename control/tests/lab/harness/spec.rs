//! What a lab is made of, and the addresses that follow from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::overlay::Overlay;

/// Who forwards on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our daemon.
    Fastpath,
    /// Linux alone: routes, and a VXLAN device with static neighbours and FDB.
    Kernel,
}

/// How pod packets cross the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encap {
    /// Always in VXLAN.
    Vxlan,
    /// Never: the underlay routes pod addresses.
    None,
    /// In VXLAN only between nodes of different subnets.
    CrossSubnet,
}

impl Encap {
    /// As in the config file.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Encap::Vxlan => "vxlan",
            Encap::None => "none",
            Encap::CrossSubnet => "cross-subnet",
        }
    }
}

/// Address family: of the outer header, or of what a test sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// As in the config file.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct NodeSpec {
    /// Short name; pods are called by it and a number: `a1`, `a2`.
    pub(crate) name: &'static str,
    /// Who forwards.
    pub(crate) kind: Kind,
    /// Underlay subnet it is in: 0 or 1.
    pub(crate) subnet: u8,
    /// Pods it starts with.
    pub(crate) pods: u16,
}

impl NodeSpec {
    /// A node of ours in subnet 0.
    pub(crate) fn fastpath(name: &'static str, pods: u16) -> Self {
        NodeSpec { name, kind: Kind::Fastpath, subnet: 0, pods }
    }

    /// A node of Linux alone in subnet 0.
    pub(crate) fn kernel(name: &'static str, pods: u16) -> Self {
        NodeSpec { name, kind: Kind::Kernel, subnet: 0, pods }
    }

    /// The same in subnet 1, behind the router.
    pub(crate) fn in_other_subnet(mut self) -> Self {
        self.subnet = 1;
        self
    }
}

/// A lab; what a test does not say is as in `Default`.
#[derive(Clone, Debug)]
pub(crate) struct LabSpec {
    /// Nodes, in the order of their numbers (from 1).
    pub(crate) nodes: Vec<NodeSpec>,
    /// `overlay.encap`.
    pub(crate) encap: Encap,
    /// `overlay.family`.
    pub(crate) outer: Family,
    /// MTU of the underlay.
    pub(crate) mtu: u32,
    /// MTU of the pods; `None` is what fits into the tunnel.
    pub(crate) pod_mtu: Option<u32>,
    /// Leaves tx checksum offload on in the pods: their packets carry unfinished checksums.
    pub(crate) partial_checksums: bool,
    /// Writes the MAC addresses of VTEPs into the Node manifests. Nodes of Linux alone need it.
    pub(crate) announce_vtep_macs: bool,
    /// Writes `fastpath.io/mac` into the Pod manifests.
    pub(crate) announce_pod_macs: bool,
    /// `xdp.mode`.
    pub(crate) xdp_mode: &'static str,
    /// `xdp.on_failure`.
    pub(crate) on_failure: &'static str,
    /// `xdp.stale_after_ms`.
    pub(crate) stale_after_ms: u64,
    /// Leaves `uplink.interfaces` empty: the device of the default route is taken.
    pub(crate) uplink_by_route: bool,
    /// `workers.cores`.
    pub(crate) cores: Vec<usize>,
    /// `workers.transmit`.
    pub(crate) transmit: &'static str,
    /// Nodes of Linux alone are as this network plugin makes them, of the family `outer` alone.
    pub(crate) overlay: Option<Overlay>,
    /// `uplink.cidrs`, and then no `uplink.interfaces`.
    pub(crate) uplink_cidrs: Vec<&'static str>,
    /// Capabilities of the daemons, as `setpriv` names them; `None` is root's.
    pub(crate) capabilities: Option<&'static [&'static str]>,
    /// The daemons run in a container, as the DaemonSet of `configs/k8s/install.yaml` has it.
    pub(crate) contained: bool,
    /// `http.listen`.
    pub(crate) http: &'static str,
    /// More of the config file: whole sections.
    pub(crate) more_config: String,
    /// The daemons follow a real API server instead of the folder.
    pub(crate) by_api: bool,
}

impl Default for LabSpec {
    fn default() -> Self {
        LabSpec {
            nodes: vec![NodeSpec::fastpath("a", 2), NodeSpec::fastpath("b", 2)],
            encap: Encap::Vxlan,
            outer: Family::V4,
            mtu: 1500,
            pod_mtu: None,
            partial_checksums: false,
            announce_vtep_macs: true,
            announce_pod_macs: true,
            xdp_mode: "auto",
            on_failure: "drop",
            stale_after_ms: STALE_AFTER_MS,
            uplink_by_route: false,
            cores: Vec::new(),
            transmit: "sockets",
            overlay: None,
            uplink_cidrs: Vec::new(),
            capabilities: None,
            contained: false,
            http: HTTP,
            more_config: String::new(),
            by_api: super::mirror::wanted(),
        }
    }
}

/// `http.listen` by default: each node has a network namespace of its own.
pub(crate) const HTTP: &str = "127.0.0.1:9990";

/// `overlay.vni` of every lab but those of other plugins.
pub(crate) const VNI: u32 = 4096;

/// `xdp.stale_after_ms` by default: short, so that tests of a dead daemon need not wait.
pub(crate) const STALE_AFTER_MS: u64 = 500;

/// The gateway every pod sees.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway every pod sees.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// Its MAC address.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0xee; 6];

/// Underlay device of every node.
pub(crate) const UPLINK: &str = "up0";

/// Number (in addresses) of the router between the subnets, and of the outside host.
pub(crate) const ROUTER: u16 = 254;
/// See [`ROUTER`].
pub(crate) const OUTSIDE: u16 = 200;

/// Underlay address of host `number` in `subnet`.
pub(crate) fn underlay(subnet: u8, number: u16, family: Family) -> IpAddr {
    let text = match family {
        Family::V4 => format!("192.168.{}.{number}", 77 + subnet),
        Family::V6 => format!("fd{}::{number}", 77 + subnet),
    };
    text.parse().expect("an address")
}

/// Address of pod `pod` (from 1) on node `node` (from 1).
pub(crate) fn pod_address(node: u16, pod: u16, family: Family) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.77.{node}.{}", 10 + pod),
        // The digits are the same in both families, so that addresses are easy to tell apart.
        Family::V6 => format!("fd00:77:{node}::{}", 10 + pod),
    };
    text.parse().expect("an address")
}

/// `spec.podCIDRs` of node `node`.
pub(crate) fn pod_cidr(node: u16, family: Family) -> String {
    match family {
        Family::V4 => format!("10.77.{node}.0/24"),
        Family::V6 => format!("fd00:77:{node}::/64"),
    }
}

/// MAC address of the VTEP of node `node`, by the outer family.
pub(crate) fn vtep_mac(node: u16, outer: Family) -> [u8; 6] {
    let family = match outer {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    [0x66, 0x77, 0, family, 0, node.to_le_bytes()[0]]
}

/// A MAC address as text.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
