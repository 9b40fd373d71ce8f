//! `encap`: after `rewrite` and `icmp`, for packets to another node's pods. Puts the VXLAN header in front.
//!
//! RFC 7348; the source port is the flow's hash in 49152-65535 (so that switches spread flows and never
//! reorder one), DF as the inner, ECN and DSCP copied out (RFC 6040 normal mode). The outer UDP checksum is zero over
//! IPv4 and, by setting, over IPv6 (RFC 6935). The header goes into the frame's headroom: no payload moves.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next, Node, NodeId};
use crate::packet::{Mac, flags};
use crate::wire::{ecn, vxlan};

/// TTL and hop limit of outer headers.
const OUTER_TTL: u8 = 64;

/// The node.
#[derive(Debug, Default)]
pub struct Encap {
    ident: u16,
}

impl Encap {
    /// Outer identification: differs from packet to packet, for the fragments of those without DF (RFC 6864).
    fn next_ident(&mut self) -> u16 {
        self.ident = self.ident.wrapping_add(1);
        self.ident
    }
}

impl Node for Encap {
    const ID: NodeId = NodeId::Encap;

    #[inline]
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
            src_mac: Mac::default(),
            dst_mac: Mac::default(),
            src: tunnel.local,
            dst: tunnel.remote,
            src_port: vxlan::source_port(meta.hash),
            dst_port: tunnel.port,
            vni: tunnel.vni,
            tos: ecn::encap(meta.tos),
            ttl: OUTER_TTL,
            df: meta.flags & (flags::DF | flags::V6) != 0,
            ident: self.next_ident(),
            inner_src_mac: tunnel.src_mac,
            inner_dst_mac: tunnel.dst_mac,
            inner_v6: meta.has(flags::V6),
            inner_len: meta.l3_len,
            udp6_checksum: cx.snap.settings.outer_udp6_checksum,
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
