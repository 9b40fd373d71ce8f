//! `decap`: after `parse`, for packets from an uplink. Takes VXLAN packets to this node out of their tunnel.
//!
//! RFC 7348: UDP to our VTEP address and port, I flag set, our VNI, from a VTEP of the cluster; anything else
//! with that address and port is dropped by name. The outer ECN is combined into the inner header (RFC 6040).
//! The outer UDP checksum is not verified (RFC 7348 4.3 leaves that to the receiver): the device has, and the inner
//! packet has its own.
//! Limit: fragmented outer packets are not reassembled, but dropped by name (the tunnel's MTU keeps them from arising).
//!
//! ICMP errors that say a tunnel packet of this node was too big become the same error about the packet inside
//! (`too_big`).
#![forbid(unsafe_code)]

use super::too_big;
use crate::graph::{Context, DropReason, Next, Node, NodeId};
use crate::io::Frame;
use crate::packet::{Meta, flags, proto};
use crate::wire::parse::{Parsed, parse};
use crate::wire::{ecn, translate, vxlan};

/// The node.
#[derive(Debug, Default)]
pub struct Decap;

impl Node for Decap {
    const ID: NodeId = NodeId::Decap;

    #[inline]
    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let (meta, key) = (*cx.packets.meta(i), *cx.packets.key(i));
        if let Some(tunnel) = too_big::tunnel(cx.snap, &meta, &key) {
            return too_big::relay(cx, i, tunnel);
        }
        let to_vtep = key.proto == proto::UDP
            && key.dport == cx.snap.settings.vxlan_port
            && meta.flags & (flags::ICMP_ERROR | flags::LATER_FRAGMENT) == 0
            && cx.snap.node.vteps.contains(&key.dst);
        if !to_vtep {
            return Next::Source;
        }
        let Some(&tunnel) = cx.snap.vteps.get(&key.src) else {
            return Next::Drop(DropReason::UnknownVtep);
        };
        if meta.frag != 0 {
            return Next::Drop(DropReason::TunnelFragment);
        }
        let Ok(found) = vxlan::inner(cx.packets.data(i), &meta) else {
            return Next::Drop(DropReason::MalformedVxlan);
        };
        if found.vni != cx.snap.settings.vni {
            return Next::Drop(DropReason::WrongVni);
        }
        // Padding behind the outer packet is not part of the inner frame.
        let cut = |frame: &mut Frame| frame.set_len(found.end) && frame.pull(found.start);
        if !cx.packets.frame_mut(i).is_some_and(cut) {
            return Next::Drop(DropReason::MalformedVxlan);
        }
        inner(cx, i, tunnel, meta.tos)
    }
}

/// Parses the inner frame, which now starts the packet.
#[inline]
fn inner(cx: &mut Context<'_>, i: u16, tunnel: u16, outer_tos: u8) -> Next {
    let seed = cx.flows.seed();
    let (data, meta, key) = cx.packets.parts(i);
    *meta = Meta { ingress: meta.ingress, ..Meta::default() };
    match parse(data, 0, meta, key) {
        Parsed::Ip => {}
        // Pods are reached by routing: no ARP or NDP crosses the tunnel.
        Parsed::Punt(_) => return Next::Drop(DropReason::TunnelNotLocal),
        Parsed::Drop(reason) => return Next::Drop(reason),
    }
    meta.flags |= flags::DECAPPED;
    meta.tunnel = tunnel;
    meta.hash = key.hash(seed);
    match ecn::decap(outer_tos, meta.tos) {
        None => return Next::Drop(DropReason::CongestionExperienced),
        Some(tos) if tos != meta.tos => translate::set_tos(data, meta, tos),
        Some(_) => {}
    }
    Next::Source
}
