//! Frames made by hand and taken apart again, by etherparse: an opinion other than our own parser's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, LinkSlice, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// Everybody.
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// UDP port of VXLAN.
pub(crate) const VXLAN_PORT: u16 = 4789;

/// Addresses of a frame, both layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// Source MAC.
    pub(crate) from_mac: Mac,
    /// Destination MAC.
    pub(crate) to_mac: Mac,
    /// Source.
    pub(crate) from: IpAddr,
    /// Destination.
    pub(crate) to: IpAddr,
}

/// An Ethernet frame with a UDP datagram.
pub(crate) fn udp(a: Addresses, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let ether = PacketBuilder::ethernet2(a.from_mac, a.to_mac);
    let builder = match (a.from, a.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ether.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ether.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{} and {} are of two families", a.from, a.to),
    }
    .udp(ports.0, ports.1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("writing to memory");
    frame
}

/// A VXLAN packet around `inner`, from a UDP source port of 50000.
pub(crate) fn vxlan(outer: Addresses, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend(&vni.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(inner);
    udp(outer, (50_000, VXLAN_PORT), &payload)
}

/// The frame with an 802.1Q tag of this VLAN.
pub(crate) fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    [macs, &[0x81, 0], &vlan.to_be_bytes(), rest].concat()
}

/// An ARP request, as a host on the link sends it.
pub(crate) fn arp_request(from_mac: Mac, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &from_mac,
        &from.octets(),
        &[0; 6],
        &target.octets(),
    )
    .expect("lengths fit");
    let builder = PacketBuilder::ethernet2(from_mac, BROADCAST).arp(arp);
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).expect("writing to memory");
    frame
}

/// A neighbour solicitation (RFC 4861 §4.3) to the solicited-node multicast address.
pub(crate) fn neighbor_solicitation(from_mac: Mac, from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let low = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, low[13], low[14], low[15]]);
    let to_mac = [0x33, 0x33, 0xff, low[13], low[14], low[15]];
    let mut body = target.octets().to_vec();
    body.extend([1, 1]);
    body.extend(from_mac);
    let builder = PacketBuilder::ethernet2(from_mac, to_mac)
        .ipv6(from.octets(), group.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4]);
    let mut frame = Vec::with_capacity(builder.size(body.len()));
    builder.write(&mut frame, &body).expect("writing to memory");
    frame
}

/// A frame as the tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Destination MAC, source MAC.
    pub(crate) macs: (Mac, Mac),
    /// Source and destination, TTL or hop limit; `None` when it is no IP packet.
    pub(crate) ip: Option<(IpAddr, IpAddr, u8)>,
    /// Protocol and ports, for TCP and UDP.
    pub(crate) ports: Option<(Transport, u16, u16)>,
    /// What follows the last header that was parsed.
    pub(crate) payload: Vec<u8>,
    /// False when the transport checksum is there but wrong.
    pub(crate) checksum_ok: bool,
}

/// Transport protocols with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Takes a frame apart; `None` when etherparse refuses it.
pub(crate) fn view(frame: &[u8]) -> Option<View> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(LinkSlice::Ethernet2(ether)) = &sliced.link else { return None };
    let ip = match &sliced.net {
        Some(NetSlice::Ipv4(v4)) => {
            let h = v4.header();
            Some((h.source_addr().into(), h.destination_addr().into(), h.ttl()))
        }
        Some(NetSlice::Ipv6(v6)) => {
            let h = v6.header();
            Some((h.source_addr().into(), h.destination_addr().into(), h.hop_limit()))
        }
        _ => None,
    };
    let (ports, payload) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (Some((Transport::Tcp, tcp.source_port(), tcp.destination_port())), tcp.payload().to_vec())
        }
        Some(TransportSlice::Udp(udp)) => {
            (Some((Transport::Udp, udp.source_port(), udp.destination_port())), udp.payload().to_vec())
        }
        _ => (None, sliced.ip_payload().map(|p| p.payload.to_vec()).unwrap_or_default()),
    };
    let checksum_ok = checksum_ok(&sliced);
    Some(View { macs: (ether.destination(), ether.source()), ip, ports, payload, checksum_ok })
}

fn checksum_ok(sliced: &SlicedPacket<'_>) -> bool {
    let (Some(net), Some(transport)) = (&sliced.net, &sliced.transport) else { return true };
    let expected = match (net, transport) {
        (NetSlice::Ipv4(v4), TransportSlice::Udp(udp)) => {
            if udp.checksum() == 0 {
                return true;
            }
            let h = v4.header();
            udp.to_header().calc_checksum_ipv4_raw(h.source(), h.destination(), udp.payload()).ok()
        }
        (NetSlice::Ipv6(v6), TransportSlice::Udp(udp)) => {
            let h = v6.header();
            udp.to_header().calc_checksum_ipv6_raw(h.source(), h.destination(), udp.payload()).ok()
        }
        (NetSlice::Ipv4(v4), TransportSlice::Tcp(tcp)) => {
            let h = v4.header();
            tcp.calc_checksum_ipv4(h.source(), h.destination()).ok()
        }
        (NetSlice::Ipv6(v6), TransportSlice::Tcp(tcp)) => {
            let h = v6.header();
            tcp.calc_checksum_ipv6(h.source(), h.destination()).ok()
        }
        _ => return true,
    };
    let found = match transport {
        TransportSlice::Udp(udp) => udp.checksum(),
        TransportSlice::Tcp(tcp) => tcp.checksum(),
        _ => return true,
    };
    // In one's complement both are zero (RFC 1071); Linux sends 0xffff in TCP where etherparse calculates 0.
    let zero = |sum: u16| if sum == 0xffff { 0 } else { sum };
    expected.map(zero) == Some(zero(found))
}

impl View {
    /// VNI and inner frame, when this is a VXLAN packet.
    pub(crate) fn vxlan(&self) -> Option<(u32, View)> {
        match self.ports {
            Some((Transport::Udp, _, VXLAN_PORT)) if self.payload.len() > 8 && self.payload[0] == 8 => {
                let vni = u32::from_be_bytes([0, self.payload[4], self.payload[5], self.payload[6]]);
                Some((vni, view(&self.payload[8..])?))
            }
            _ => None,
        }
    }

    /// Whether it is an IP packet from `from` to `to`.
    pub(crate) fn is_between(&self, from: IpAddr, to: IpAddr) -> bool {
        self.ip.is_some_and(|(source, destination, _)| source == from && destination == to)
    }
}
