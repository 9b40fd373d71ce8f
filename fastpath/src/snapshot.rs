//! What the control thread publishes: immutable tables of one generation.
//!
//! Indices (`PortId`, tunnel, next hop) mean something only within their generation; a flow entry of an
//! older one is re-evaluated before they are used.
#![forbid(unsafe_code)]

use std::sync::Arc;

use hashbrown::HashMap;

use crate::packet::{Ip, Mac, PortId};
use crate::tables::Lpm;

/// The state of the node's world that workers forward by.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up by one per published snapshot; 0 is "nothing published yet".
    pub generation: u32,
    /// This node.
    pub node: NodeInfo,
    /// Ports by id; `None` for an id not in use.
    pub ports: Vec<Option<PortInfo>>,
    /// Addresses of pods on this node, and the port each is behind.
    pub local: HashMap<Ip, PortId>,
    /// Everything else.
    pub routes: Lpm<Route>,
    /// Other nodes reached by encapsulation.
    pub tunnels: Vec<Tunnel>,
    /// Tunnel by its remote VTEP address: the VTEPs that `decap` accepts.
    pub vteps: HashMap<Ip, u16>,
    /// Next hops on the uplinks.
    pub next_hops: Vec<NextHop>,
    /// Settings workers follow.
    pub settings: Settings,
}

/// This node, as the packet path needs to know it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Source of ICMP errors made here.
    pub icmp_v4: Option<Ip>,
    /// Source of ICMPv6 errors made here.
    pub icmp_v6: Option<Ip>,
    /// All addresses of the node, for telling host-bound packets.
    pub addresses: Vec<Ip>,
    /// Addresses that tunnel packets to this node are sent to.
    pub vteps: Vec<Ip>,
}

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortRole {
    /// The host side of a pod's veth.
    Pod,
    /// A device towards other nodes.
    Uplink,
    /// The pair `fp-host` into the host's stack.
    Host,
}

/// One port, as the packet path needs to know it.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Device name.
    pub name: Arc<str>,
    /// Role.
    pub role: PortRole,
    /// The device's own MAC address.
    pub mac: Mac,
    /// MAC address of the other end (pods and host), if known.
    pub peer_mac: Option<Mac>,
    /// MTU of IP packets towards this port.
    pub mtu: u16,
    /// Addresses of the pod behind it (the only ones it may send from).
    pub addrs: Vec<Ip>,
    /// Who owns each of the device's queues: worker number by queue; packets for the port go to one of them.
    pub queues: Vec<u16>,
}

/// Where packets for a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Encapsulated to another node: index into [`Snapshot::tunnels`].
    Tunnel(u16),
    /// Unencapsulated by the uplink: index into [`Snapshot::next_hops`].
    NextHop(u16),
    /// The node itself.
    Host,
    /// This node's pod CIDR: an address that no pod has.
    NoEndpoint,
}

/// A next hop on an uplink's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Address the kernel resolves: the gateway, or the destination itself when on link.
    pub addr: Ip,
    /// Port it is behind.
    pub port: PortId,
    /// MAC address to send from.
    pub src_mac: Mac,
    /// MAC address to send to, `None` while unresolved.
    pub dst_mac: Option<Mac>,
}

/// Another node's VXLAN tunnel endpoint.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Name of the node.
    pub node: Arc<str>,
    /// Our VTEP address.
    pub local: Ip,
    /// Its VTEP address.
    pub remote: Ip,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source of the inner Ethernet header: our VTEP's MAC address.
    pub src_mac: Mac,
    /// Destination of the inner Ethernet header: the remote VTEP's MAC address.
    pub dst_mac: Mac,
    /// Index into [`Snapshot::next_hops`]; `NO_INDEX` while there is no route to the VTEP.
    pub next_hop: u16,
    /// MTU of inner packets.
    pub mtu: u16,
}

/// Settings workers follow; each is a config key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// VXLAN network identifier expected on decapsulation.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Fill in the outer UDP checksum over IPv6 (RFC 6935 allows zero).
    pub outer_udp6_checksum: bool,
    /// TCP segments in the middle of a connection may open a flow.
    pub tcp_pickup: bool,
    /// ICMP errors a worker may send each second.
    pub icmp_rate: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { vni: 4096, vxlan_port: 4789, outer_udp6_checksum: true, tcp_pickup: true, icmp_rate: 1000 }
    }
}

/// The gateway every pod routes through: IPv4 link-local `169.254.1.1`.
pub const GATEWAY_V4: Ip = Ip::from_bits(0xffff_a9fe_0101);
/// The gateway every pod routes through: `fe80::ecee:eeff:feee:eeee`.
pub const GATEWAY_V6: Ip = Ip::from_bits(0xfe80_0000_0000_0000_ecee_eeff_feee_eeee);
/// The gateway's MAC address, `ee:ee:ee:ee:ee:ee`.
pub const GATEWAY_MAC: Mac = Mac([0xee; 6]);
