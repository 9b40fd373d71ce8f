//! A whole frame into metadata and flow key, in one pass.
//!
//! Three outcomes: parsed, not ours to forward ([`Punt`]), malformed (a named drop). Two arms: the fast one takes what
//! nearly every frame is (Ethernet, IPv4 without options or IPv6 without extension headers, TCP or UDP, whole, between
//! unicast addresses) and decides nothing else; all that is different, malformed frames too, goes to the general one.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::{Error, address, eth, get, get8, get16, icmp, ipv4, ipv6, len16, sctp, tcp, udp};
use crate::graph::DropReason;
use crate::packet::{FlowKey, Ip, Meta, flags, proto};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IP packet to forward: metadata and key are filled.
    Ip,
    /// Not for forwarding. `Meta::l3` is where the payload of Ethernet starts; for [`Punt::Ndp`], [`Punt::Mld`] and
    /// [`Punt::Igmp`] all metadata is filled, the key never.
    Punt(Punt),
    /// Malformed, or never to be forwarded. Metadata and key have no meaning.
    Drop(DropReason),
}

/// What a frame is that is not forwarded but may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Punt {
    /// ARP, not looked into.
    Arp,
    /// Neighbour discovery: router or neighbour solicitation or advertisement, redirect.
    Ndp,
    /// Multicast listener discovery.
    Mld,
    /// IGMP.
    Igmp,
    /// A VLAN tag.
    Vlan,
    /// Another EtherType, or an 802.3 length (below 0x0600).
    EtherType(u16),
}

/// Reads the frame whose Ethernet header starts at `offset`; offsets in `meta` count from `frame[0]`.
///
/// Sets in `meta` all it can know and leaves `hash`, ports, tunnel, next hop and the flag `DECAPPED` as they are.
/// The hash is the caller's. Bytes behind the IP packet are padding.
///
/// - ICMP echo and the other queries have their identifier in both ports.
/// - An ICMP error's key is that of the packet it quotes, reversed (RFC 5508 4): travelling towards the quoted
///   packet's source, it looks up the direction answers take. Its `meta.proto` is ICMP, its `key.proto` the quoted
///   one. One whose destination did not send the quoted packet is `IcmpUnrelated`, as is a redirect, which is for
///   its own link only.
/// - The transport header is there as a whole, except in later fragments, whose ports are 0.
#[inline]
#[must_use]
pub fn parse(frame: &[u8], offset: u16, meta: &mut Meta, key: &mut FlowKey) -> Parsed {
    if frame.len() <= usize::from(u16::MAX)
        && let Some(rest) = frame.get(usize::from(offset)..)
        && fast::<false>(rest, offset, 0, meta, key)
    {
        return Parsed::Ip;
    }
    general(frame, offset, meta, key)
}

/// The fast arm alone, with the key's hash: whether the frame is a common one, for which [`parse`] says [`Parsed::Ip`]
/// and the same. Of any other frame nothing has been set. It has at most 65535 bytes.
#[inline(always)]
#[must_use]
pub fn common(frame: &[u8], seed: u64, meta: &mut Meta, key: &mut FlowKey) -> bool {
    fast::<true>(frame, 0, seed, meta, key)
}

/// Flags that are not this node's to set.
const KEPT: u8 = flags::DECAPPED;

/// Ethernet and the smallest IPv4 and IPv6 packets with a UDP header.
const FAST_V4: usize = eth::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN;
const FAST_V6: usize = eth::HEADER_LEN + ipv6::HEADER_LEN + udp::HEADER_LEN;

/// What addresses begin with that the fast arm takes: of IPv4 neither 0 nor 127, and below 224.
const UNICAST_V4: [bool; 256] = {
    let mut table = [true; 256];
    let mut first = 224;
    while first < 256 {
        table[first] = false;
        first += 1;
    }
    (table[0], table[127]) = (false, false);
    table
};

/// Whether the frame is a common one; then `meta` and `key` are filled, the hash too if asked for.
#[inline(always)]
fn fast<const HASH: bool>(frame: &[u8], offset: u16, seed: u64, meta: &mut Meta, key: &mut FlowKey) -> bool {
    let Some(head) = frame.first_chunk::<FAST_V4>() else { return false };
    match get16(head, 12) {
        eth::ethertype::IPV4 => {
            let found = fast_v4(head, frame);
            found.is_some_and(|found| found.fill::<HASH>(offset, seed, meta, key))
        }
        eth::ethertype::IPV6 => {
            let found = fast_v6(frame);
            found.is_some_and(|found| found.fill::<HASH>(offset, seed, meta, key))
        }
        _ => false,
    }
}

/// What the fast arm found.
struct Common {
    key: FlowKey,
    l4: usize,
    l3_len: u16,
    bits: u8,
    tcp_flags: u8,
    ttl: u8,
    tos: u8,
}

impl Common {
    #[inline(always)]
    fn fill<const HASH: bool>(&self, offset: u16, seed: u64, meta: &mut Meta, key: &mut FlowKey) -> bool {
        *key = self.key;
        fill(meta, offset, self.l4, self.l3_len, self.bits, self.ttl, self.tos);
        meta.proto = self.key.proto;
        meta.tcp_flags = self.tcp_flags;
        if HASH {
            meta.hash = self.key.hash(seed);
        }
        true
    }
}

#[inline(always)]
fn fast_v4(head: &[u8; FAST_V4], frame: &[u8]) -> Option<Common> {
    // The header in three words, each read once.
    let (first, second, dst) = (get::<8>(head, 14), get::<8>(head, 22), get::<4>(head, 30));
    let [version, tos, len_high, len_low, _, _, fragment_high, fragment_low] = first;
    let [ttl, proto, _, _, src @ ..] = second;
    let l3_len = u16::from_be_bytes([len_high, len_low]);
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]);
    let is_common = (version == 0x45)
        & (fragment & (ipv4::MF | ipv4::OFFSET_MASK) == 0)
        & (usize::from(l3_len) <= frame.len() - eth::HEADER_LEN)
        & UNICAST_V4[usize::from(src[0])]
        & UNICAST_V4[usize::from(dst[0])]
        & Sum::ZERO.four(dst).eight(first).eight(second).verifies();
    if !is_common {
        return None;
    }
    let l4 = eth::HEADER_LEN + ipv4::HEADER_LEN;
    let (ports, tcp_flags) = fast_transport(frame, l4, get(head, l4), proto, l3_len.saturating_sub(20))?;
    Some(Common {
        key: FlowKey { src: Ip::v4(src), dst: Ip::v4(dst), sport: ports[0], dport: ports[1], proto },
        l4,
        l3_len,
        bits: if fragment & ipv4::DF != 0 { flags::DF } else { 0 },
        tcp_flags,
        ttl,
        tos,
    })
}

#[inline(always)]
fn fast_v6(frame: &[u8]) -> Option<Common> {
    let head = frame.first_chunk::<FAST_V6>()?;
    let payload = get16(head, 18);
    let (src, dst) = (get::<16>(head, 22), get::<16>(head, 38));
    // Unicast by its first byte: neither in ::/8 (unspecified, loopback, mapped) nor link-local nor multicast.
    let unicast = |a: u8| (a != 0) & (a < 0xfe);
    let is_common = (get8(head, 14) >> 4 == 6)
        & (usize::from(payload) <= frame.len() - eth::HEADER_LEN - ipv6::HEADER_LEN)
        & unicast(src[0])
        & unicast(dst[0]);
    if !is_common {
        return None;
    }
    let proto = get8(head, 20);
    let l4 = eth::HEADER_LEN + ipv6::HEADER_LEN;
    let (ports, tcp_flags) = fast_transport(frame, l4, get(head, l4), proto, payload)?;
    Some(Common {
        key: FlowKey { src: Ip::v6(src), dst: Ip::v6(dst), sport: ports[0], dport: ports[1], proto },
        l4,
        l3_len: payload + len16(ipv6::HEADER_LEN),
        bits: flags::V6,
        tcp_flags,
        ttl: get8(head, 21),
        tos: get8(head, 14) << 4 | get8(head, 15) >> 4,
    })
}

/// The fields both families and both arms set the same way. `l4` counts from the Ethernet header.
#[inline(always)]
fn fill(meta: &mut Meta, offset: u16, l4: usize, l3_len: u16, bits: u8, ttl: u8, tos: u8) {
    meta.l3 = offset + len16(eth::HEADER_LEN);
    meta.l4 = offset + len16(l4);
    meta.l3_len = l3_len;
    meta.flags = meta.flags & KEPT | bits;
    meta.icmp_type = 0;
    meta.icmp_code = 0;
    meta.ttl = ttl;
    meta.tos = tos;
    meta.frag = 0;
}

/// Ports and TCP flags of TCP or UDP at `l4`, `len` bytes to the packet's end: a `len` that is too small ends here.
/// `head` is its first 8 bytes.
#[inline(always)]
fn fast_transport(frame: &[u8], l4: usize, head: [u8; 8], proto: u8, len: u16) -> Option<([u16; 2], u8)> {
    let [a, b, c, d, length @ .., _, _] = head;
    let tcp_flags = match proto {
        proto::UDP => {
            let length = u16::from_be_bytes(length);
            if length < 8 || length > len {
                return None;
            }
            0
        }
        proto::TCP => {
            let [offset, control] = get(frame, l4 + 12);
            let header = u16::from(offset >> 4) * 4;
            if header < 20 || header > len {
                return None;
            }
            control
        }
        _ => return None,
    };
    Some(([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])], tcp_flags))
}

/// The arm for everything, the common frames too.
#[inline(never)]
fn general(frame: &[u8], offset: u16, meta: &mut Meta, key: &mut FlowKey) -> Parsed {
    ethernet(frame, offset, meta, key).unwrap_or_else(Parsed::Drop)
}

fn ethernet(frame: &[u8], offset: u16, meta: &mut Meta, key: &mut FlowKey) -> Result<Parsed, DropReason> {
    let rest = frame.get(usize::from(offset)..).unwrap_or_default();
    let header = eth::Packet::new_checked(rest).map_err(|_| DropReason::MalformedEthernet)?;
    // Behind this every offset into the frame fits 16 bits.
    if frame.len() > usize::from(u16::MAX) {
        return Err(DropReason::MalformedEthernet);
    }
    fill(meta, offset, eth::HEADER_LEN, 0, 0, 0, 0);
    meta.tcp_flags = 0;
    meta.proto = 0;
    match header.ethertype() {
        eth::ethertype::IPV4 => v4(header.payload(), offset, meta, key),
        eth::ethertype::IPV6 => v6(header.payload(), offset, meta, key),
        eth::ethertype::ARP => Ok(Parsed::Punt(Punt::Arp)),
        eth::ethertype::VLAN | eth::ethertype::QINQ | eth::ethertype::QINQ_OLD => {
            Ok(Parsed::Punt(Punt::Vlan))
        }
        other => Ok(Parsed::Punt(Punt::EtherType(other))),
    }
}

/// Largest value of IPv4's total length and IPv6's payload length, in bytes: what reassembly may not exceed.
const MAX_LEN: usize = 65_535;

fn v4(bytes: &[u8], offset: u16, meta: &mut Meta, key: &mut FlowKey) -> Result<Parsed, DropReason> {
    const IGMP: u8 = 2;
    const MALFORMED: DropReason = DropReason::MalformedIpv4;
    let ip = ipv4::Packet::new_checked(bytes).map_err(|_| MALFORMED)?;
    if !ip.verify_checksum() {
        return Err(MALFORMED);
    }
    let (df, frag) = ipv4::meta_fragment(ip.flags_offset());
    let header = ip.header_len();
    check_fragment(frag, ip.payload().len(), MAX_LEN - header).ok_or(MALFORMED)?;
    fill(meta, offset, eth::HEADER_LEN + header, ip.total_len(), df, ip.ttl(), ip.tos());
    meta.frag = frag;
    meta.proto = ip.protocol();
    if ip.protocol() == IGMP {
        return Ok(Parsed::Punt(Punt::Igmp));
    }
    key.src = ip.src();
    key.dst = ip.dst();
    address::check(address::scope(key.src), address::scope(key.dst))?;
    transport(ip.payload(), meta, key)
}

fn v6(bytes: &[u8], offset: u16, meta: &mut Meta, key: &mut FlowKey) -> Result<Parsed, DropReason> {
    const MALFORMED: DropReason = DropReason::MalformedIpv6;
    let ip = ipv6::Packet::new_checked(bytes).map_err(|_| MALFORMED)?;
    let packet = bytes.get(..ip.total_len()).ok_or(MALFORMED)?;
    let chain = ipv6::walk(packet).map_err(|_| MALFORMED)?;
    let upper = packet.get(chain.offset..).ok_or(MALFORMED)?;
    let frag = chain.fragment_offset() >> 3 | u16::from(chain.more_fragments()) << 15;
    // The fragment header, which reassembly takes out, is in the payload length.
    check_fragment(frag, ip.payload().len(), MAX_LEN + 8).ok_or(MALFORMED)?;
    let l4 = eth::HEADER_LEN + chain.offset;
    fill(meta, offset, l4, len16(packet.len()), flags::V6, ip.hop_limit(), ip.traffic_class());
    meta.frag = frag;
    meta.proto = chain.proto;
    if chain.proto == proto::ICMPV6
        && chain.fragment_offset() == 0
        && let Some(punt) = link_scoped(get8(upper, 0), upper.len())
    {
        // RFC 6980: neighbour discovery in fragments is to be ignored.
        return if frag == 0 { Ok(Parsed::Punt(punt)) } else { Err(DropReason::MalformedTransport) };
    }
    let (src, dst) = (ip.src(), ip.dst());
    address::check(address::scope_v6(src.bits()), address::scope_v6(dst.bits()))?;
    key.src = src;
    key.dst = dst;
    transport(upper, meta, key)
}

/// `None` for a fragment that no reassembly takes: a middle one that is no multiple of 8 bytes, or one that ends
/// behind the longest packet (RFC 791 3.2, RFC 8200 4.5). `frag` is as in [`Meta::frag`].
fn check_fragment(frag: u16, len: usize, max: usize) -> Option<()> {
    let more = frag & 0x8000 != 0;
    let end = usize::from(frag & ipv4::OFFSET_MASK) * 8 + len;
    ((!more || len.is_multiple_of(8)) && (frag == 0 || end <= max)).then_some(())
}

/// ICMPv6 messages that stay on their link.
fn link_scoped(kind: u8, len: usize) -> Option<Punt> {
    if len < icmp::HEADER_LEN {
        return None;
    }
    match kind {
        icmp::v6::ROUTER_SOLICIT..=icmp::v6::REDIRECT => Some(Punt::Ndp),
        icmp::v6::MLD_QUERY..=icmp::v6::MLD_DONE | icmp::v6::MLD2_REPORT => Some(Punt::Mld),
        _ => None,
    }
}

/// The transport header and the key's other half. `upper` starts with it and ends with the packet.
fn transport(upper: &[u8], meta: &mut Meta, key: &mut FlowKey) -> Result<Parsed, DropReason> {
    let ipv6 = meta.has(flags::V6);
    key.proto = meta.proto;
    key.sport = 0;
    key.dport = 0;
    let offset = usize::from(meta.frag & ipv4::OFFSET_MASK) * 8;
    if offset != 0 {
        meta.flags |= flags::LATER_FRAGMENT;
        // It would overwrite the header its first fragment was judged by (RFC 1858 4.2.2, RFC 3128).
        return if offset < header_len(meta.proto, ipv6) {
            Err(DropReason::MalformedTransport)
        } else {
            Ok(Parsed::Ip)
        };
    }
    let malformed = |_: Error| DropReason::MalformedTransport;
    match meta.proto {
        proto::TCP => {
            let p = tcp::Packet::new_checked(upper).map_err(malformed)?;
            meta.tcp_flags = p.flags();
            (key.sport, key.dport) = (p.src_port(), p.dst_port());
        }
        proto::UDP => {
            let p = udp::Packet::new_unchecked(upper);
            // A first fragment has only a part of the datagram.
            let whole = meta.frag == 0;
            let length = usize::from(p.length());
            if upper.len() < udp::HEADER_LEN || length < udp::HEADER_LEN || whole && length > upper.len() {
                return Err(DropReason::MalformedTransport);
            }
            (key.sport, key.dport) = (p.src_port(), p.dst_port());
        }
        proto::SCTP => {
            let p = sctp::Packet::new_checked(upper).map_err(malformed)?;
            (key.sport, key.dport) = (p.src_port(), p.dst_port());
        }
        proto::ICMP if !ipv6 => icmp(upper, meta, key)?,
        proto::ICMPV6 if ipv6 => icmp(upper, meta, key)?,
        _ => {}
    }
    Ok(Parsed::Ip)
}

/// Bytes of transport header that policy and flow lookups read; 0 for a protocol that has none of them.
fn header_len(protocol: u8, ipv6: bool) -> usize {
    match protocol {
        proto::TCP => tcp::HEADER_LEN,
        proto::UDP => udp::HEADER_LEN,
        proto::SCTP => sctp::HEADER_LEN,
        proto::ICMP if !ipv6 => icmp::HEADER_LEN,
        proto::ICMPV6 if ipv6 => icmp::HEADER_LEN,
        _ => 0,
    }
}

fn icmp(upper: &[u8], meta: &mut Meta, key: &mut FlowKey) -> Result<(), DropReason> {
    let p = icmp::Packet::new_checked(upper).map_err(|_| DropReason::MalformedTransport)?;
    let ipv6 = meta.has(flags::V6);
    meta.icmp_type = p.kind();
    meta.icmp_code = p.code();
    if icmp::is_error(ipv6, p.kind()) {
        let quoted = quoted(p.body(), ipv6)?;
        if quoted.key.src != key.dst {
            return Err(DropReason::IcmpUnrelated);
        }
        *key = quoted.key.reversed();
        meta.flags |= flags::ICMP_ERROR;
    } else if !ipv6 && p.kind() == icmp::v4::REDIRECT {
        return Err(DropReason::IcmpUnrelated);
    } else if icmp::has_ident(ipv6, p.kind()) {
        key.sport = p.ident();
        key.dport = p.ident();
    }
    Ok(())
}

/// The packet an ICMP error quotes, as far as it is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its flow key, in the direction it was sent.
    pub key: FlowKey,
    /// Offset of its transport header from its first byte.
    pub l4: u16,
}

/// Reads the packet that an ICMP error quotes; `quote` starts with its IP header and is likely cut short.
///
/// # Errors
/// [`DropReason::MalformedTransport`] when it is cut off before 8 bytes of transport header (RFC 792, RFC 4443 2.4 (c))
/// or its IP header is malformed; [`DropReason::IcmpUnrelated`] when no flow can match it: it is an ICMP error
/// itself, or its addresses are of the other family.
pub fn quoted(quote: &[u8], ipv6: bool) -> Result<Quoted, DropReason> {
    const MALFORMED: DropReason = DropReason::MalformedTransport;
    let (src, dst, proto, l4, later) = if ipv6 {
        let ip = ipv6::Packet::new_unchecked(quote);
        if quote.len() < ipv6::HEADER_LEN || ip.version() != 6 {
            return Err(MALFORMED);
        }
        if ip.src().is_v4() || ip.dst().is_v4() {
            return Err(DropReason::IcmpUnrelated);
        }
        let chain = ipv6::walk(quote).map_err(|_| MALFORMED)?;
        (ip.src(), ip.dst(), chain.proto, chain.offset, chain.fragment_offset() != 0)
    } else {
        let ip = ipv4::Packet::new_unchecked(quote);
        if quote.len() < ipv4::HEADER_LEN || ip.version() != 4 || ip.header_len() < ipv4::HEADER_LEN {
            return Err(MALFORMED);
        }
        let later = ip.flags_offset() & ipv4::OFFSET_MASK != 0;
        (ip.src(), ip.dst(), ip.protocol(), ip.header_len(), later)
    };
    let mut key = FlowKey { src, dst, sport: 0, dport: 0, proto };
    let upper = quote.get(l4..).ok_or(MALFORMED)?;
    if !later && header_len(proto, ipv6) > 0 {
        let head = upper.first_chunk::<8>().ok_or(MALFORMED)?;
        let kind = get8(head, 0);
        match proto {
            proto::ICMP | proto::ICMPV6 if icmp::has_ident(ipv6, kind) => {
                key.sport = get16(head, 4);
                key.dport = key.sport;
            }
            proto::ICMP | proto::ICMPV6 => return Err(DropReason::IcmpUnrelated),
            _ => (key.sport, key.dport) = (get16(head, 0), get16(head, 2)),
        }
    }
    Ok(Quoted { key, l4: len16(l4) })
}

#[cfg(test)]
mod tests;
