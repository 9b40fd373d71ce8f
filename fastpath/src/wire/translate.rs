//! Changes a parsed packet in place: TTL, addresses, ports, with their checksums (RFC 1624).
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::parse::quoted;
use super::{checksum, get, get16, icmp, ipv4, ipv6, len16, put, sctp, tcp, udp};
use crate::packet::{FlowKey, Ip, Meta, flags, proto};
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

/// All that `rewrite` does to a common packet in one step: TTL or hop limit down by one, and addresses and ports, if
/// the transform changes them, with one change of each checksum.
///
/// A common packet is a whole TCP or UDP packet without IP options or extension headers that is no ICMP error and may
/// be passed on, with a transport checksum its sender has finished. Does to it what [`decrement_ttl`],
/// [`partial::finish`](super::partial::finish) and [`apply`] do; `false`, and nothing changed, when it is another.
#[inline(always)]
#[must_use]
pub fn forward(frame: &mut [u8], meta: &Meta, t: &Transform) -> bool {
    const ODD: u8 = flags::ICMP_ERROR | flags::LATER_FRAGMENT;
    let l4_offset = meta.l4.wrapping_sub(meta.l3);
    if meta.flags & ODD != 0 || meta.frag != 0 || meta.ttl <= 1 {
        return false;
    }
    let packet = frame.get_mut(usize::from(meta.l3)..).unwrap_or_default();
    match (meta.flags & flags::V6 != 0, meta.proto) {
        (false, proto::UDP) if l4_offset == 20 => forward_v4::<28, false>(packet, meta, t),
        (false, proto::TCP) if l4_offset == 20 => forward_v4::<38, true>(packet, meta, t),
        (true, proto::UDP) if l4_offset == 40 => forward_v6::<48, false>(packet, meta, t),
        (true, proto::TCP) if l4_offset == 40 => forward_v6::<58, true>(packet, meta, t),
        _ => false,
    }
}

/// Whether the transform changes the packet.
#[inline(always)]
fn rewrites(t: &Transform) -> bool {
    t.bits & (Transform::REWRITE_SRC | Transform::REWRITE_DST) != 0
}

/// [`forward`] over IPv4; the first `N` bytes end with the transport checksum.
#[inline(always)]
fn forward_v4<const N: usize, const TCP: bool>(packet: &mut [u8], meta: &Meta, t: &Transform) -> bool {
    // One's complement sums may be taken together: adding both changes at once gives what one after the other does.
    const TTL: u16 = !0x0100;
    let Some(head) = packet.first_chunk_mut::<N>() else { return false };
    let Some(check) = forward_l4::<N, TCP>(head, ipv4::HEADER_LEN, meta, t) else { return false };
    head[8] = head[8].wrapping_sub(1);
    let l3 = u16::from_be_bytes([head[10], head[11]]);
    if rewrites(t) {
        [head[10], head[11]] = checksum::apply(l3, checksum::add(TTL, t.l3_delta)).to_be_bytes();
        [head[12], head[13], head[14], head[15]] = t.src.v4_bytes();
        [head[16], head[17], head[18], head[19]] = t.dst.v4_bytes();
        set_ports::<N, TCP>(head, ipv4::HEADER_LEN, t, check);
    } else {
        [head[10], head[11]] = checksum::apply(l3, TTL).to_be_bytes();
    }
    true
}

/// [`forward`] over IPv6; the first `N` bytes end with the transport checksum.
#[inline(always)]
fn forward_v6<const N: usize, const TCP: bool>(packet: &mut [u8], meta: &Meta, t: &Transform) -> bool {
    let Some(head) = packet.first_chunk_mut::<N>() else { return false };
    let Some(check) = forward_l4::<N, TCP>(head, ipv6::HEADER_LEN, meta, t) else { return false };
    head[7] = head[7].wrapping_sub(1);
    if rewrites(t) {
        if let Some(src) = head.get_mut(8..24) {
            src.copy_from_slice(&t.src.bytes());
        }
        if let Some(dst) = head.get_mut(24..40) {
            dst.copy_from_slice(&t.dst.bytes());
        }
        set_ports::<N, TCP>(head, ipv6::HEADER_LEN, t, check);
    }
    true
}

/// The transport checksum as the transform leaves it; `None` when the sender may not have finished it.
#[inline(always)]
fn forward_l4<const N: usize, const TCP: bool>(
    head: &[u8; N],
    l4: usize,
    meta: &Meta,
    t: &Transform,
) -> Option<u16> {
    let found = u16::from_be_bytes([head[N - 2], head[N - 1]]);
    let len = if TCP {
        meta.l3_len.wrapping_sub(len16(l4))
    } else {
        u16::from_be_bytes([head[l4 + 4], head[l4 + 5]])
    };
    // The pseudo-header, from the packet: its addresses are the key's.
    let numbers = Sum::ZERO.word(if TCP { proto::TCP } else { proto::UDP }.into()).word(len);
    let pseudo = if l4 == ipv4::HEADER_LEN {
        numbers.eight(get(head, 12))
    } else {
        numbers.eight(get(head, 8)).eight(get(head, 16)).eight(get(head, 24)).eight(get(head, 32))
    };
    if pseudo.folds_to(found) {
        return None;
    }
    Some(if TCP { checksum::apply(found, t.l4_delta) } else { checksum::apply_udp(found, t.l4_delta) })
}

#[inline(always)]
fn set_ports<const N: usize, const TCP: bool>(head: &mut [u8; N], l4: usize, t: &Transform, check: u16) {
    [head[l4], head[l4 + 1]] = t.sport.to_be_bytes();
    [head[l4 + 2], head[l4 + 3]] = t.dport.to_be_bytes();
    [head[N - 2], head[N - 1]] = check.to_be_bytes();
}

/// Puts the transform's addresses and ports into the packet; the ports of a fragmented SCTP packet stay.
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
        // The CRC is over the whole packet and knows no addresses: a fragment's stays, with its ports.
        proto::SCTP if meta.frag != 0 => {}
        // Where the ports stay, it stays: right or wrong, as its sender made it.
        proto::SCTP if (get16(transport, 0), get16(transport, 2)) == (t.sport, t.dport) => {}
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

/// Whether the checksum of an SCTP packet is right.
#[must_use]
pub fn is_sctp_intact(frame: &[u8], meta: &Meta) -> bool {
    let end = usize::from(meta.l3) + usize::from(meta.l3_len);
    let packet = frame.get(usize::from(meta.l4)..end).unwrap_or_default();
    sctp::Packet::new_checked(packet).is_ok_and(|p| p.verify_checksum())
}

/// Translates an ICMP error whose quoted packet belongs to a flow that is translated; its new source and
/// destination. `key` is as `parse` found it (the quoted packet's, reversed), `t` what is done to packets with that key.
///
/// The quoted packet is made to look as its sender sent it; its own transport checksum is adjusted where it is quoted.
/// The error's source becomes the translated one only if it is the translated host itself: a router on the way
/// keeps its own (RFC 5508 4.2). `None`, and perhaps the packet changed, when the error is malformed or its checksum wrong.
#[must_use]
pub fn error(frame: &mut [u8], meta: &Meta, key: &FlowKey, t: &Transform) -> Option<(Ip, Ip)> {
    let v6 = meta.has(flags::V6);
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let packet = frame.get_mut(l3..l3 + usize::from(meta.l3_len))?;
    let (src, dst) = if v6 {
        let ip = ipv6::Packet::new_checked(&packet[..]).ok()?;
        (ip.src(), ip.dst())
    } else {
        let ip = ipv4::Packet::new_checked(&packet[..]).ok()?;
        (ip.src(), ip.dst())
    };
    let message = packet.get_mut(l4 - l3..)?;
    let intact = {
        let m = icmp::Packet::new_checked(&message[..]).ok()?;
        if v6 { m.verify_checksum_v6(src, dst) } else { m.verify_checksum_v4() }
    };
    // A checksum that is computed anew must not hide that the old one was wrong.
    if !intact {
        return None;
    }
    // As sent: from where answers are delivered to, towards where they seem to come from.
    let sent = FlowKey { src: t.dst, dst: t.src, sport: t.dport, dport: t.sport, proto: key.proto };
    quote(message.get_mut(icmp::HEADER_LEN..)?, v6, &key.reversed(), &sent)?;
    let ends = (if src == key.src { t.src } else { src }, t.dst);
    if v6 {
        let mut ip = ipv6::Packet::new_unchecked(&mut *packet);
        ip.set_src(ends.0);
        ip.set_dst(ends.1);
    } else {
        let mut ip = ipv4::Packet::new_unchecked(&mut *packet);
        ip.set_src(ends.0);
        ip.set_dst(ends.1);
        ip.fill_checksum();
    }
    icmp::Packet::new_unchecked(packet.get_mut(l4 - l3..)?).fill_checksum(ends.0, ends.1);
    Some(ends)
}

/// Turns a quoted packet, likely cut short, from `from` to `to`.
fn quote(quote: &mut [u8], v6: bool, from: &FlowKey, to: &FlowKey) -> Option<()> {
    let l4 = usize::from(quoted(quote, v6).ok()?.l4);
    let (l3_delta, l4_delta) = checksum::rewrite_deltas(from, to);
    if v6 {
        let mut ip = ipv6::Packet::new_unchecked(&mut *quote);
        ip.set_src(to.src);
        ip.set_dst(to.dst);
    } else {
        let mut ip = ipv4::Packet::new_unchecked(&mut *quote);
        ip.set_src(to.src);
        ip.set_dst(to.dst);
        ip.apply_delta(l3_delta);
    }
    let upper = quote.get_mut(l4..)?;
    match from.proto {
        proto::TCP | proto::UDP | proto::SCTP => {
            put(upper, 0, &to.sport.to_be_bytes());
            put(upper, 2, &to.dport.to_be_bytes());
        }
        _ => {}
    }
    match from.proto {
        proto::TCP => update(upper, tcp::CHECKSUM_AT, |c| checksum::apply(c, l4_delta)),
        proto::UDP => update(upper, udp::CHECKSUM_AT, |c| checksum::apply_udp(c, l4_delta)),
        proto::ICMP | proto::ICMPV6 => {
            icmp::Packet::new_unchecked(&mut *upper).set_ident(to.sport);
            update(upper, icmp::CHECKSUM_AT, |c| checksum::apply(c, l4_delta));
        }
        _ => {}
    }
    Some(())
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

#[cfg(test)]
mod tests;
