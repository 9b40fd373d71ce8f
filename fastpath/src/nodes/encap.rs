//! `encap`: after `rewrite` and `icmp`, for packets to another node's pods. Puts the VXLAN header in front.
//!
//! RFC 7348; the source port is the flow's hash in 49152-65535 (so that switches spread flows and never
//! reorder one), DF as the inner, ECN and DSCP copied out (RFC 6040 normal mode). The outer UDP checksum is zero over
//! IPv4 and, by setting, over IPv6 (RFC 6935). The header goes into the frame's headroom: no payload moves.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId};
use crate::io::Frame;
use crate::packet::{Mac, Meta, PortId, flags};
use crate::snapshot::Snapshot;
use crate::wire::vxlan::Prepared;
use crate::wire::{ecn, vxlan};

/// How many packets ahead the room for headers is fetched into the cache.
const AHEAD: usize = 8;

/// The node.
#[derive(Debug, Default)]
pub struct Encap {
    idents: Idents,
}

/// Outer identifications: they differ from packet to packet, for the fragments of those without DF (RFC 6864).
#[derive(Debug, Default)]
pub(super) struct Idents(u16);

impl Idents {
    /// Those that `encap` does not use: for the node that encapsulates beside it.
    pub(super) const fn odd() -> Self {
        Self(1)
    }

    #[inline(always)]
    fn next(&mut self) -> u16 {
        self.0 = self.0.wrapping_add(2);
        self.0
    }
}

impl Node for Encap {
    const ID: NodeId = NodeId::Encap;

    #[inline]
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        let snap = cx.snap;
        input.iter().take(AHEAD).for_each(|i| cx.packets.prefetch_headroom(*i));
        for (n, &i) in input.iter().enumerate() {
            if let Some(ahead) = input.get(n + AHEAD) {
                cx.packets.prefetch_headroom(*ahead);
            }
            let (frame, meta) = cx.packets.framed(i);
            let wrapped = frame.and_then(|frame| wrap(snap, &mut self.idents, frame, meta));
            let next = match wrapped {
                Some(true) => Next::Tx,
                Some(false) => Next::Drop(DropReason::NoHeadroom),
                None => self.one(cx, i),
            };
            lists.push(cx, i, next);
        }
    }

    #[inline(never)]
    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let meta = *cx.packets.meta(i);
        let Some(tunnel) = cx.snap.tunnels.get(usize::from(meta.tunnel)) else {
            return Next::Drop(DropReason::NoRoute);
        };
        let Some(frame) = cx.packets.frame_mut(i) else { return Next::Drop(DropReason::NoFrame) };
        // Padding of short frames is not carried through the tunnel.
        if !frame.set_len(meta.l3 + meta.l3_len) {
            return Next::Drop(DropReason::MalformedEthernet);
        }
        let outer = vxlan::OuterRepr {
            src_port: vxlan::source_port(meta.hash),
            tos: ecn::encap(meta.tos),
            df: meta.flags & (flags::DF | flags::V6) != 0,
            ident: self.idents.next(),
            inner_v6: meta.has(flags::V6),
            inner_len: meta.l3_len,
            udp6_checksum: cx.snap.settings.outer_udp6_checksum,
            ..tunnel.outer()
        };
        // The frame's own Ethernet header makes room for the inner one.
        let written = frame.push(outer.overhead()) && outer.emit(frame.data_mut());
        if !written {
            return Next::Drop(DropReason::NoHeadroom);
        }
        let meta = cx.packets.meta_mut(i);
        meta.next_hop = tunnel.next_hop;
        Next::Neighbor
    }
}

/// Encapsulates a packet for `meta.tunnel` if the headers are prepared: complete then, or `false` if they could not be
/// written. `None`, and nothing changed, for a packet that takes more.
#[inline(always)]
pub(super) fn wrap(snap: &Snapshot, idents: &mut Idents, frame: &mut Frame, meta: &mut Meta) -> Option<bool> {
    // Looked up for each packet, which costs less than to foresee whether the next one has another tunnel.
    let way = Way::of(snap, meta.tunnel)?;
    way.fits(frame, meta).then(|| way.take(frame, meta, idents.next()))
}

/// A tunnel whose headers are prepared, and the link's addresses: `neighbor` has nothing to add.
struct Way<'a> {
    headers: &'a Prepared,
    dst: &'a Mac,
    src: &'a Mac,
    egress: PortId,
}

impl<'a> Way<'a> {
    /// `None` for a tunnel that is not prepared or has no neighbour yet.
    #[inline(always)]
    fn of(snap: &'a Snapshot, tunnel: u16) -> Option<Self> {
        let tunnel = snap.tunnels.get(usize::from(tunnel))?;
        let hop = snap.next_hops.get(usize::from(tunnel.next_hop))?;
        Some(Self {
            headers: tunnel.headers.as_ref()?,
            dst: hop.dst_mac.as_ref()?,
            src: &hop.src_mac,
            egress: hop.port,
        })
    }

    /// Whether the packet is all there, with room in front of it and for its length in the outer headers.
    #[inline(always)]
    fn fits(&self, frame: &Frame, meta: &Meta) -> bool {
        usize::from(meta.l3) + usize::from(meta.l3_len) <= frame.len()
            && frame.headroom() >= usize::from(Prepared::OVERHEAD)
            && meta.l3_len <= u16::MAX - Prepared::OVERHEAD
    }

    #[inline(always)]
    fn take(&self, frame: &mut Frame, meta: &mut Meta, ident: u16) -> bool {
        let varying = vxlan::Varying {
            src_port: vxlan::source_port(meta.hash),
            tos: ecn::encap(meta.tos),
            df: meta.flags & (flags::DF | flags::V6) != 0,
            ident,
            inner_v6: meta.has(flags::V6),
            inner_len: meta.l3_len,
        };
        // Padding of short frames is not carried through the tunnel.
        let written = frame.set_len(meta.l3 + meta.l3_len)
            && frame.push(Prepared::OVERHEAD)
            && self.headers.emit(frame.data_mut(), self.dst, self.src, &varying);
        meta.egress = self.egress;
        written
    }
}
