//! Changes a parsed packet in place: TTL, addresses, ports, with their checksums (RFC 1624).
#![forbid(unsafe_code)]

use super::{checksum, get16, icmp, ipv4, ipv6, put, sctp, tcp, udp};
use crate::packet::{Meta, flags, proto};
use crate::tables::flow::Transform;

/// Lowers TTL (with the IPv4 header checksum) or hop limit by one; `false`, and nothing changed, when it may not.
#[inline]
#[must_use]
pub fn decrement_ttl(frame: &mut [u8], meta: &Meta) -> bool {
    let ip = frame.get_mut(usize::from(meta.l3)..).unwrap_or_default();
    if meta.has(flags::V6) {
        ipv6::Packet::new_unchecked(ip).decrement_hop_limit()
    } else {
        ipv4::Packet::new_unchecked(ip).decrement_ttl()
    }
}

/// Sets DSCP and ECN, with the IPv4 header checksum.
#[inline]
pub fn set_tos(frame: &mut [u8], meta: &mut Meta, tos: u8) {
    let Some(ip) = frame.get_mut(usize::from(meta.l3)..) else { return };
    if meta.has(flags::V6) {
        ipv6::Packet::new_unchecked(ip).set_traffic_class(tos);
    } else {
        ipv4::Packet::new_unchecked(ip).rewrite_tos(tos);
    }
    meta.tos = tos;
}

/// Puts the transform's addresses and ports into the packet.
#[inline]
pub fn apply(frame: &mut [u8], meta: &Meta, t: &Transform) {
    let l3 = usize::from(meta.l3);
    let l4 = usize::from(meta.l4);
    if meta.has(flags::V6) {
        let Some(ip) = frame.get_mut(l3..).and_then(|f| f.first_chunk_mut::<40>()) else { return };
        ip[8..24].copy_from_slice(&t.src.bytes());
        ip[24..40].copy_from_slice(&t.dst.bytes());
    } else {
        let Some(ip) = frame.get_mut(l3..).and_then(|f| f.first_chunk_mut::<20>()) else { return };
        ip[12..16].copy_from_slice(&t.src.v4_bytes());
        ip[16..20].copy_from_slice(&t.dst.v4_bytes());
        update(ip, 10, |c| checksum::apply(c, t.l3_delta));
    }
    if meta.has(flags::LATER_FRAGMENT) {
        return;
    }
    let Some(transport) = frame.get_mut(l4..) else { return };
    match meta.proto {
        proto::TCP => {
            put_ports(transport, t);
            update(transport, tcp::CHECKSUM_AT, |c| checksum::apply(c, t.l4_delta));
        }
        proto::UDP => {
            put_ports(transport, t);
            update(transport, udp::CHECKSUM_AT, |c| checksum::apply_udp(c, t.l4_delta));
        }
        proto::SCTP => {
            put_ports(transport, t);
            let end = usize::from(meta.l3_len).saturating_sub(l4 - l3).min(transport.len());
            sctp::Packet::new_unchecked(transport.get_mut(..end).unwrap_or_default()).fill_checksum();
        }
        proto::ICMP | proto::ICMPV6 => {
            if icmp::has_ident(meta.has(flags::V6), meta.icmp_type) {
                icmp::Packet::new_unchecked(&mut *transport).set_ident(t.sport);
            }
            update(transport, icmp::CHECKSUM_AT, |c| checksum::apply(c, t.l4_delta));
        }
        _ => {}
    }
}

#[inline]
fn put_ports(transport: &mut [u8], t: &Transform) {
    put(transport, 0, &t.sport.to_be_bytes());
    put(transport, 2, &t.dport.to_be_bytes());
}

#[inline]
fn update(bytes: &mut [u8], at: usize, change: impl FnOnce(u16) -> u16) {
    if bytes.len() >= at + 2 {
        put(bytes, at, &change(get16(bytes, at)).to_be_bytes());
    }
}
