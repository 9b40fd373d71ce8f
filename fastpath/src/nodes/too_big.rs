//! Part of `decap`: path MTU discovery through the tunnel (RFC 1191, RFC 8201; after RFC 2003 5.1 and RFC 4459 3.2).
//!
//! A router between the nodes says that a VXLAN packet of this node was too big. Its error quotes the tunnel's headers
//! and the beginning of the packet inside; it becomes the same error about that packet, for the MTU that is left
//! inside, from this node. From there it is an ICMP error as any other: `flow` finds the flow it is about and
//! translates it back to what the sender sent.
//!
//! Nobody can make a flow slower than it is: the error must quote a packet of ours to a VTEP of the cluster that is larger
//! than the MTU it tells (RFC 5927 7.2), and a live flow inside; nothing below the smallest MTU of each family is told.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next};
use crate::io::Frame;
use crate::packet::{FlowKey, Meta, flags, proto};
use crate::snapshot::{Snapshot, Tunnel};
use crate::wire::icmp::{self, ErrorKind};
use crate::wire::parse::quoted;
use crate::wire::{eth, ipv4, ipv6, len16, udp, vxlan};

/// Smallest MTU that IPv4 senders are told: what every host can receive (RFC 791 3.1).
const MIN_V4: u16 = 576;
/// Smallest MTU that IPv6 links have (RFC 8200 5).
const MIN_V6: u16 = 1280;

/// The tunnel whose packets an ICMP error says to be too big; `None` for any other packet.
#[inline]
pub(super) fn tunnel<'a>(snap: &'a Snapshot, meta: &Meta, key: &FlowKey) -> Option<&'a Tunnel> {
    if !meta.has(flags::ICMP_ERROR) || key.proto != proto::UDP {
        return None;
    }
    let too_big = if meta.has(flags::V6) {
        meta.icmp_type == icmp::v6::TOO_BIG
    } else {
        (meta.icmp_type, meta.icmp_code) == (icmp::v4::UNREACHABLE, icmp::v4::FRAG_NEEDED)
    };
    // The key is that of the answers: from the remote VTEP.
    let tunnel = snap.tunnels.get(usize::from(*snap.vteps.get(&key.src)?))?;
    (too_big && tunnel.local == key.dst && tunnel.port == key.sport).then_some(tunnel)
}

/// Turns the error about a packet in the tunnel into one about what was inside.
pub(super) fn relay(cx: &mut Context<'_>, i: u16, tunnel: &Tunnel) -> Next {
    let meta = *cx.packets.meta(i);
    let inside = match inside(cx.packets.data(i), &meta, tunnel) {
        Ok(inside) => inside,
        Err(reason) => return Next::Drop(reason),
    };
    // A masked source stands for somebody else, to whom `flow` translates it back.
    let (node, snat, from) = (&cx.snap.node, &cx.snap.snat, inside.key.src);
    let own = if from.is_v4() { node.icmp_v4 } else { node.icmp_v6 };
    let masked = own.filter(|_| snat.holds(from, inside.key.sport));
    let Some(source) = masked.or_else(|| cx.snap.icmp_source(from)) else {
        return Next::Drop(DropReason::IcmpUnrelated);
    };
    let v6 = !source.is_v4();
    let (header, most, ethertype) = if v6 {
        (ipv6::HEADER_LEN, icmp::MAX_ERROR_V6, eth::ethertype::IPV6)
    } else {
        (ipv4::HEADER_LEN, icmp::MAX_ERROR_V4, eth::ethertype::IPV4)
    };
    // The quoted packet stays where it is: the tunnel's headers, quoted in front of it, make room for the error's.
    let front = eth::HEADER_LEN + header + icmp::HEADER_LEN;
    let len = len16((inside.end - inside.start + front).min(eth::HEADER_LEN + most));
    let place = |frame: &mut Frame| {
        let pull = u16::try_from(inside.start.checked_sub(front)?).ok()?;
        (frame.pull(pull) && frame.set_len(len)).then_some(())
    };
    if cx.packets.frame_mut(i).and_then(place).is_none() {
        return Next::Drop(DropReason::MalformedTransport);
    }
    let (seed, told) = (cx.flows.seed(), ErrorKind::FragNeeded { mtu: inside.mtu });
    let (data, meta, key) = cx.packets.parts(i);
    icmp::head_error(data.get_mut(eth::HEADER_LEN..).unwrap_or_default(), told, source, inside.key.src);
    eth::Packet::new_unchecked(&mut *data).set_ethertype(ethertype);
    // As `parse` finds an error: its key is that of the quoted packet's answers.
    *key = inside.key.reversed();
    let made = icmp::Packet::new_unchecked(data.get(front - icmp::HEADER_LEN..).unwrap_or_default());
    *meta = Meta {
        hash: key.hash(seed),
        ingress: meta.ingress,
        l3: len16(eth::HEADER_LEN),
        l4: len16(front - icmp::HEADER_LEN),
        l3_len: len - len16(eth::HEADER_LEN),
        proto: if v6 { proto::ICMPV6 } else { proto::ICMP },
        flags: flags::ICMP_ERROR | if v6 { flags::V6 } else { flags::DF },
        icmp_type: made.kind(),
        icmp_code: made.code(),
        ttl: icmp::HOPS,
        tos: if v6 { 0 } else { icmp::INTERNETWORK_CONTROL },
        ..Meta::default()
    };
    Next::Flow
}

/// The packet in the tunnel, as far as it is quoted.
struct Inside {
    /// Offset of its IP header in the frame, and of the quote's end.
    start: usize,
    end: usize,
    /// Its flow key, as it was in the tunnel.
    key: FlowKey,
    /// MTU it could have passed with.
    mtu: u16,
}

fn inside(frame: &[u8], meta: &Meta, tunnel: &Tunnel) -> Result<Inside, DropReason> {
    const SHORT: DropReason = DropReason::TunnelErrorShort;
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let end = l3 + usize::from(meta.l3_len);
    let message = frame.get(l4..end).ok_or(DropReason::MalformedTransport)?;
    let view = icmp::Packet::new_unchecked(message);
    // The error that is made of it has a right checksum, which must not hide that this one is wrong.
    let (intact, told) = if meta.has(flags::V6) {
        let ip = ipv6::Packet::new_unchecked(frame.get(l3..).unwrap_or_default());
        (view.verify_checksum_v6(ip.src(), ip.dst()), view.rest())
    } else {
        (view.verify_checksum_v4(), u32::from(view.mtu_v4()))
    };
    if !intact {
        return Err(DropReason::MalformedTransport);
    }
    let quote = view.body();
    let outer = quoted(quote, meta.has(flags::V6))?;
    let (length, overhead) = if meta.has(flags::V6) {
        (ipv6::Packet::new_unchecked(quote).total_len(), 70)
    } else {
        (usize::from(ipv4::Packet::new_unchecked(quote).total_len()), 50)
    };
    // A router that names no MTU (RFC 1191 5) leaves the smallest one.
    let told = u16::try_from(told).unwrap_or(u16::MAX);
    if usize::from(told) >= length {
        return Err(DropReason::IcmpUnrelated);
    }
    let at_vxlan = usize::from(outer.l4) + udp::HEADER_LEN;
    let header = vxlan::Packet::new_checked(quote.get(at_vxlan..).ok_or(SHORT)?).map_err(|_| SHORT)?;
    if header.vni() != tunnel.vni {
        return Err(DropReason::WrongVni);
    }
    let ethernet = eth::Packet::new_checked(header.payload()).map_err(|_| SHORT)?;
    let (v6, min) = match ethernet.ethertype() {
        eth::ethertype::IPV4 => (false, MIN_V4),
        eth::ethertype::IPV6 => (true, MIN_V6),
        _ => return Err(DropReason::IcmpUnrelated),
    };
    let packet = ethernet.payload();
    let inner = quoted(packet, v6).map_err(|why| match why {
        DropReason::MalformedTransport => SHORT,
        other => other,
    })?;
    Ok(Inside { start: end - packet.len(), end, key: inner.key, mtu: told.saturating_sub(overhead).max(min) })
}
