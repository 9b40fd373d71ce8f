//! What the control thread publishes: immutable tables of one generation.
//!
//! Indices (`PortId`, tunnel, next hop) mean something only within their generation; a flow entry of an
//! older one is re-evaluated before they are used.
#![forbid(unsafe_code)]

use core::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::packet::{Ip, Mac, NO_INDEX, PortId, proto};
use crate::stats::RuleCounters;
use crate::tables::Lpm;
use crate::tables::policy::{GroupId, PolicyTable};
use crate::tables::service::ServiceTable;
use crate::wire::vxlan::{OuterRepr, Prepared};

/// The state of the node's world that workers forward by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Counts up by one with each published snapshot that may decide otherwise ([`Snapshot::succeed`]); 0 is "nothing
    /// published yet".
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
    /// Addresses of nodes that are behind a tunnel: what pods send there goes through it, and is answered through it.
    pub node_tunnels: HashMap<Ip, u16>,
    /// Next hops on the uplinks.
    pub next_hops: Vec<NextHop>,
    /// Which connections the pods of this node may open and accept.
    pub policy: PolicyTable,
    /// Services.
    pub services: Arc<ServiceTable>,
    /// Source address translation.
    pub snat: Arc<Snat>,
    /// What policy rules count.
    pub rule_counters: Arc<RuleCounters>,
    /// Settings workers follow.
    pub settings: Settings,
}

/// Translation of sources: pods that talk to the outside, clients outside that talk to services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// Pods of this node reach the outside by the node's address (`nat_outgoing`).
    pub outgoing: bool,
    /// The address IPv4 sources become.
    pub v4: Option<Ip>,
    /// The address IPv6 sources become.
    pub v6: Option<Ip>,
    /// First port (ICMP: identifier) that sources become.
    pub first: u16,
    /// Last one.
    pub last: u16,
    /// UDP ports that sockets of the node are bound to, sorted: what comes back there is the socket's, so no source
    /// becomes one of them. (Of TCP a listening socket takes only what opens a connection, and that is no answer.)
    pub bound_udp: Vec<u16>,
    /// Destinations that see a pod's own address: pods, services, nodes, and those exempt by configuration.
    pub inside: Lpm<()>,
}

impl Default for Snat {
    fn default() -> Self {
        Self {
            outgoing: false,
            v4: None,
            v6: None,
            first: 40_000,
            last: 56_383,
            bound_udp: Vec::new(),
            inside: Lpm::default(),
        }
    }
}

impl Snat {
    /// The address that sources of a family become.
    #[inline]
    #[must_use]
    pub fn address(&self, v4: bool) -> Option<Ip> {
        if v4 { self.v4 } else { self.v6 }
    }

    /// Whether answers to a port of the node's go to a socket of the node.
    #[must_use]
    pub fn is_bound(&self, protocol: u8, port: u16) -> bool {
        protocol == proto::UDP && self.bound_udp.binary_search(&port).is_ok()
    }

    /// Whether an address and port is one that sources are translated to.
    #[inline]
    #[must_use]
    pub fn holds(&self, addr: Ip, port: u16) -> bool {
        self.address(addr.is_v4()) == Some(addr) && (self.first..=self.last).contains(&port)
    }
}

/// This node, as the packet path needs to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Source of ICMP errors made here.
    pub icmp_v4: Option<Ip>,
    /// Source of ICMPv6 errors made here.
    pub icmp_v6: Option<Ip>,
    /// All addresses of the node, for telling host-bound packets; sorted.
    pub addresses: Vec<Ip>,
    /// Addresses that tunnel packets to this node are sent to.
    pub vteps: Vec<Ip>,
}

impl NodeInfo {
    /// Whether an address is one of this node's. There may be thousands, and this is asked for each packet.
    #[inline]
    #[must_use]
    pub fn has(&self, addr: Ip) -> bool {
        self.addresses.binary_search(&addr).is_ok()
    }
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The policies its pod is under; `None` for a port that is no pod's.
    pub group: Option<GroupId>,
    /// Who owns each of the device's queues: worker number by queue; packets for the port go to one of them.
    pub queues: Vec<u16>,
    /// The device's index, if frames may be redirected to it, so that a worker's
    /// [`Outbox`](crate::io::xsk::Outbox) may send there.
    pub redirect: Option<NonZeroU32>,
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
    /// Address the kernel resolves: the gateway, or a neighbour on the link; `None` for "whoever has the
    /// destination address", which stays unresolved until the kernel knows that neighbour.
    pub addr: Option<Ip>,
    /// Port it is behind.
    pub port: PortId,
    /// MAC address to send from.
    pub src_mac: Mac,
    /// MAC address to send to, `None` while unresolved.
    pub dst_mac: Option<Mac>,
}

/// Another node's VXLAN tunnel endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Its headers, as far as they are the same for every packet, over IPv4: see [`Tunnel::prepared`].
    pub headers: Option<Prepared>,
}

impl Tunnel {
    /// TTL and hop limit of outer headers.
    const TTL: u8 = 64;

    /// With its headers made: without them each packet's are made from the fields above, which costs more.
    #[must_use]
    pub fn prepared(mut self) -> Self {
        self.headers = Prepared::new(&self.outer());
        self
    }

    /// The headers of a packet into this tunnel but for what differs from packet to packet, which is zero, and the
    /// outer link's addresses.
    #[inline]
    #[must_use]
    pub fn outer(&self) -> OuterRepr {
        OuterRepr {
            src_mac: Mac::default(),
            dst_mac: Mac::default(),
            src: self.local,
            dst: self.remote,
            src_port: 0,
            dst_port: self.port,
            vni: self.vni,
            tos: 0,
            ttl: Self::TTL,
            df: false,
            ident: 0,
            inner_src_mac: self.src_mac,
            inner_dst_mac: self.dst_mac,
            inner_v6: false,
            inner_len: 0,
            udp6_checksum: false,
        }
    }
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
    /// What a policy denies is answered (TCP: reset, others: ICMP administratively prohibited), not dropped in silence.
    pub reject_denied: bool,
    /// ICMP errors and resets a worker may send each second, and as many "too big".
    pub icmp_rate: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            vni: 4096,
            vxlan_port: 4789,
            outer_udp6_checksum: true,
            tcp_pickup: true,
            reject_denied: false,
            icmp_rate: 1000,
        }
    }
}

/// The gateway every pod routes through: IPv4 link-local `169.254.1.1`.
pub const GATEWAY_V4: Ip = Ip::from_bits(0xffff_a9fe_0101);
/// The gateway every pod routes through: `fe80::ecee:eeff:feee:eeee`.
pub const GATEWAY_V6: Ip = Ip::from_bits(0xfe80_0000_0000_0000_ecee_eeff_feee_eeee);
/// The gateway's MAC address, `ee:ee:ee:ee:ee:ee`.
pub const GATEWAY_MAC: Mac = Mac([0xee; 6]);

/// Whether an address is the gateway's.
#[inline]
#[must_use]
pub fn is_gateway(addr: Ip) -> bool {
    addr == GATEWAY_V4 || addr == GATEWAY_V6
}

/// How a packet leaves: what [`Snapshot::egress`] finds for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Port it leaves by.
    pub port: PortId,
    /// Tunnel it goes into, or `NO_INDEX`.
    pub tunnel: u16,
    /// Next hop on an uplink, or `NO_INDEX` for a pod or the host.
    pub next_hop: u16,
    /// Largest IP packet that fits this way.
    pub mtu: u16,
}

/// Why there is no way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unroutable {
    /// No prefix holds it.
    NoRoute,
    /// In this node's pod CIDR, but no pod has it.
    NoEndpoint,
    /// The node itself, and there is no host port.
    NoHostPort,
}

impl Snapshot {
    /// Gives it the generation that it is to be published under after `last`. Returns whether it is to be published at
    /// all: not when nothing differs.
    ///
    /// A generation more has every flow decided again. So what only says by which way frames are handed to a device
    /// ([`PortInfo::redirect`]) is published under the same generation.
    pub fn succeed(&mut self, last: &Self) -> bool {
        self.generation = last.generation;
        let mut redirects = Vec::with_capacity(self.ports.len());
        for (at, port) in self.ports.iter_mut().enumerate() {
            let other = last.ports.get(at).and_then(Option::as_ref).and_then(|p| p.redirect);
            let own = port.as_mut().and_then(|p| core::mem::replace(&mut p.redirect, other));
            redirects.push((own, own != other));
        }
        let same = last.generation != 0 && *self == *last;
        let differs = redirects.iter().any(|(_, differs)| *differs);
        for (port, (redirect, _)) in self.ports.iter_mut().zip(redirects) {
            if let Some(port) = port {
                port.redirect = redirect;
            }
        }
        if !same {
            self.generation = last.generation.wrapping_add(1).max(1);
        }
        !same || differs
    }

    /// A port in use.
    #[inline]
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&PortInfo> {
        self.ports.get(usize::from(id.0))?.as_ref()
    }

    /// The way to `dst`.
    ///
    /// # Errors
    /// Says why there is none.
    #[inline]
    pub fn egress(&self, dst: Ip) -> Result<Egress, Unroutable> {
        let direct = |port: PortId| {
            let mtu = self.port(port).map_or(0, |p| p.mtu);
            Egress { port, tunnel: NO_INDEX, next_hop: NO_INDEX, mtu }
        };
        if let Some(port) = self.local.get(&dst) {
            return Ok(direct(*port));
        }
        // Only flows lead there; without one the gateway is nobody.
        if is_gateway(dst) {
            return Err(Unroutable::NoHostPort);
        }
        match self.routes.lookup(dst).copied().ok_or(Unroutable::NoRoute)? {
            Route::Tunnel(index) => self.through(index).ok_or(Unroutable::NoRoute),
            Route::NextHop(index) => {
                let hop = self.next_hops.get(usize::from(index)).ok_or(Unroutable::NoRoute)?;
                Ok(Egress { next_hop: index, ..direct(hop.port) })
            }
            Route::NoEndpoint => Err(Unroutable::NoEndpoint),
            Route::Host => self.host_port().map(direct).ok_or(Unroutable::NoHostPort),
        }
    }

    /// The way of a packet from `src` to `dst`, as it is sent.
    ///
    /// Between a pod and another node packets go through that node's tunnel, both ways, because a pod's address is
    /// never on the underlay while there are tunnels; nodes speak to each other without.
    ///
    /// # Errors
    /// Says why there is none.
    #[inline]
    pub fn egress_from(&self, src: Ip, dst: Ip) -> Result<Egress, Unroutable> {
        match self.node_tunnels.get(&dst) {
            Some(index) if self.local.contains_key(&src) => self.through(*index).ok_or(Unroutable::NoRoute),
            _ => self.egress(dst),
        }
    }

    /// The way through the tunnel of another node that has this address.
    #[inline]
    #[must_use]
    pub fn tunnel_to(&self, node: Ip) -> Option<Egress> {
        self.node_tunnels.get(&node).and_then(|index| self.through(*index))
    }

    /// Whether an address is one of this node's own.
    #[inline]
    #[must_use]
    pub fn is_own(&self, addr: Ip) -> bool {
        self.node.has(addr)
    }

    /// Whether packets to an address go into the host's stack.
    #[must_use]
    pub fn is_for_host(&self, dst: Ip) -> bool {
        let port = self.egress(dst).ok().and_then(|e| self.port(e.port));
        port.is_some_and(|p| p.role == PortRole::Host)
    }

    fn through(&self, index: u16) -> Option<Egress> {
        let tunnel = self.tunnels.get(usize::from(index))?;
        let hop = self.next_hops.get(usize::from(tunnel.next_hop))?;
        Some(Egress { port: hop.port, tunnel: index, next_hop: tunnel.next_hop, mtu: tunnel.mtu })
    }

    /// The port into the host's stack.
    #[must_use]
    pub fn host_port(&self) -> Option<PortId> {
        let is_host = |p: &Option<PortInfo>| p.as_ref().is_some_and(|p| p.role == PortRole::Host);
        let at = self.ports.iter().position(is_host)?;
        u16::try_from(at).ok().map(PortId)
    }

    /// The policies of the pod that has an address; `None` for an address that is no pod's of this node.
    #[inline]
    #[must_use]
    pub fn group(&self, addr: Ip) -> Option<GroupId> {
        self.port(*self.local.get(&addr)?)?.group
    }

    /// The source of ICMP errors to a receiver of `ip`'s family.
    #[must_use]
    pub fn icmp_source(&self, to: Ip) -> Option<Ip> {
        let (own, gateway) =
            if to.is_v4() { (self.node.icmp_v4, GATEWAY_V4) } else { (self.node.icmp_v6, GATEWAY_V6) };
        // The node itself hears of its own address from nobody else; a node without an address of the family speaks
        // to its own pods as their gateway.
        if self.is_own(to) {
            return Some(gateway);
        }
        own.or_else(|| self.local.contains_key(&to).then_some(gateway))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(redirect: Option<u32>, mtu: u16) -> Option<PortInfo> {
        Some(PortInfo {
            name: "fp1".into(),
            role: PortRole::Pod,
            mac: Mac::default(),
            peer_mac: None,
            mtu,
            addrs: Vec::new(),
            group: None,
            queues: vec![0],
            redirect: redirect.and_then(NonZeroU32::new),
        })
    }

    fn after(last: &Snapshot, ports: Vec<Option<PortInfo>>) -> (bool, Snapshot) {
        let mut snapshot = Snapshot { ports, ..Snapshot::default() };
        (snapshot.succeed(last), snapshot)
    }

    #[test]
    fn a_generation_more_is_for_what_flows_are_decided_by() {
        let (publish, first) = after(&Snapshot::default(), Vec::new());
        assert_eq!((publish, first.generation), (true, 1), "the first, though empty");
        let (publish, last) = after(&first, vec![None, port(None, 1500)]);
        assert_eq!((publish, last.generation), (true, 2));
        assert!(!after(&last, last.ports.clone()).0, "nothing differs");

        let (publish, sent) = after(&last, vec![None, port(Some(7), 1500)]);
        assert_eq!((publish, sent.generation), (true, 2), "another way to the same device");
        assert_eq!(sent.ports, vec![None, port(Some(7), 1500)]);
        let (publish, back) = after(&sent, last.ports.clone());
        assert_eq!((publish, back.generation, &back.ports), (true, 2, &last.ports));

        for ports in [
            vec![None, port(Some(8), 1400)],
            vec![port(Some(7), 1500)],
            vec![port(Some(9), 1500), port(Some(7), 1500)],
            vec![None, port(Some(7), 1500), None],
            Vec::new(),
        ] {
            let (publish, next) = after(&sent, ports.clone());
            assert_eq!((publish, next.generation, next.ports), (true, 3, ports));
        }
        let wrapped = Snapshot { generation: u32::MAX, ..Snapshot::default() };
        assert_eq!(after(&wrapped, vec![None]).1.generation, 1, "0 is nothing published yet");
    }
}
