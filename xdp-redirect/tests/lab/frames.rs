//! Frames, header by header, from the inside out.

use std::net::IpAddr;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// Unicast destination, then source.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// Ethernet II around a payload.
pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&MACS[..], &ethertype.to_be_bytes(), payload].concat()
}

/// A tag of type `tpid` put into a frame.
pub(crate) fn tagged(frame: &[u8], tpid: u16, vlan: u16) -> Vec<u8> {
    [&frame[..12], &tpid.to_be_bytes(), &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// An IPv4 or IPv6 packet, by the addresses' family.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) => ipv4(src, dst, proto, &[], 0, payload),
        _ => ipv6(src, dst, proto, payload),
    }
}

/// An IPv4 packet with options and a flags/fragment field. The header checksum is left zero: the
/// programs do not look at it.
pub(crate) fn ipv4(
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    options: &[u8],
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4));
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (src, dst) else { panic!("not IPv4") };
    let header = 20 + options.len();
    let mut out = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    out.extend(u16::try_from(header + payload.len()).unwrap().to_be_bytes());
    out.extend([0, 7]);
    out.extend(fragment.to_be_bytes());
    out.extend([64, proto, 0, 0]);
    out.extend(src.octets());
    out.extend(dst.octets());
    out.extend(options);
    out.extend(payload);
    out
}

/// An IPv6 packet; extension headers are part of the payload.
pub(crate) fn ipv6(src: IpAddr, dst: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let octets = |addr| match addr {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
    };
    let mut out = vec![0x60, 0, 0, 0];
    out.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend([next, 64]);
    out.extend(octets(src));
    out.extend(octets(dst));
    out.extend(payload);
    out
}

/// An IPv6 extension header before `payload`: hop-by-hop, routing, destination options (8-byte units)
/// or authentication (4-byte units). `extra` is its length field beyond the least.
pub(crate) fn extension(kind: u8, next: u8, extra: u8, payload: &[u8]) -> Vec<u8> {
    let (field, size) = match kind {
        // RFC 4302: the field is the length in 4-byte words, less 2; at least 8 bytes of them here.
        51 => (extra, (usize::from(extra) + 2) * 4),
        _ => (extra, (usize::from(extra) + 1) * 8),
    };
    let mut out = vec![0u8; size];
    out[0] = next;
    out[1] = field;
    out.extend(payload);
    out
}

/// An IPv6 fragment header before `payload`; `offset` in units of 8 bytes.
pub(crate) fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let word = offset << 3 | u16::from(more);
    [&[next, 0][..], &word.to_be_bytes(), &[0, 0, 0, 9], payload].concat()
}

/// One fragment of a datagram of either family; `id` is cut to 16 bits for IPv4, `offset` in units of 8 bytes.
pub(crate) fn piece(
    (src, dst): (IpAddr, IpAddr),
    proto: u8,
    id: u32,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = if src.is_ipv4() {
        ipv4(src, dst, proto, &[], offset | u16::from(more) << 13, payload)
    } else {
        ipv6(src, dst, 44, &fragment(proto, offset, more, payload))
    };
    let (at, id) = match packet[0] >> 4 {
        4 => (4..6, &id.to_be_bytes()[2..]),
        _ => (44..48, &id.to_be_bytes()[..]),
    };
    packet[at].copy_from_slice(id);
    ip_frame(&packet)
}

/// A TCP, UDP or SCTP header, whole, with a little data.
pub(crate) fn transport(proto: u8, sport: u16, dport: u16) -> Vec<u8> {
    let size = match proto {
        TCP => 20,
        SCTP => 12,
        _ => 8,
    };
    let mut out = vec![0u8; size];
    out[0..2].copy_from_slice(&sport.to_be_bytes());
    out[2..4].copy_from_slice(&dport.to_be_bytes());
    match proto {
        TCP => out[12] = 0x50,
        UDP => out[4..6].copy_from_slice(&12u16.to_be_bytes()),
        _ => {}
    }
    out.extend(b"data");
    out
}

/// An ICMP or ICMPv6 message: type, code 0, identifier, body.
pub(crate) fn icmp(kind: u8, identifier: u16, body: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &identifier.to_be_bytes(), &[0, 1], body].concat()
}

/// A whole frame: Ethernet, IP, transport header.
pub(crate) fn packet(src: IpAddr, dst: IpAddr, proto: u8, sport: u16, dport: u16) -> Vec<u8> {
    ip_frame(&ip(src, dst, proto, &transport(proto, sport, dport)))
}

/// Ethernet around an IP packet, by its version.
pub(crate) fn ip_frame(packet: &[u8]) -> Vec<u8> {
    ethernet(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}
