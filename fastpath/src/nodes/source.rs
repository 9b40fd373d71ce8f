//! `source`: after `parse` and `decap`. A packet may come only from where its source address lives.
//!
//! A pod sends only from its own addresses; the uplink and the tunnel never bring an address of this node or of
//! a pod on it, nor the gateway's, which only this node sends from. The host sends from whatever it forwards, but for
//! what is a pod's here: that would be a pod's own packet coming round. Runs on every packet, also of known flows, so that no flow of a pod here can be joined from elsewhere.
//! Whether a pod of another node came through that node's tunnel is `route`'s to see, once a flow.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId};
use crate::packet::{Ip, Meta, PortId, flags};
use crate::snapshot::{PortInfo, PortRole, Snapshot, is_gateway};

/// The node.
#[derive(Debug, Default)]
pub struct Source;

impl Node for Source {
    const ID: NodeId = NodeId::Source;

    #[inline]
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        let snap = cx.snap;
        // Packets of a port come together.
        let (mut ingress, mut port) = (PortId::NONE, None);
        for &i in input {
            let meta = cx.packets.meta(i);
            if meta.ingress != ingress {
                (ingress, port) = (meta.ingress, snap.port(meta.ingress));
            }
            let plain = !meta.has(flags::ICMP_ERROR) && meta.frag == 0;
            match port {
                Some(port) if plain && refused_by(snap, port, cx.packets.key(i).src).is_none() => {
                    lists.push(cx, i, Next::Flow);
                }
                _ => {
                    let next = self.one(cx, i);
                    lists.push(cx, i, next);
                }
            }
        }
    }

    #[inline(never)]
    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let meta = cx.packets.meta(i);
        // The key of an ICMP error is the quoted packet's, so its own source is read from the header.
        let src = if meta.has(flags::ICMP_ERROR) {
            let Some(src) = addresses(cx.packets.data(i), meta).map(|(src, _)| src) else {
                return Next::Drop(DropReason::MalformedTransport);
            };
            src
        } else {
            cx.packets.key(i).src
        };
        match refused(cx.snap, meta.ingress, src) {
            Some(reason) => Next::Drop(reason),
            None if meta.frag != 0 => Next::Fragment,
            None => Next::Flow,
        }
    }
}

/// Why a packet from `src` may not come in by a port.
#[inline]
pub(super) fn refused(snap: &Snapshot, ingress: PortId, src: Ip) -> Option<DropReason> {
    match snap.port(ingress) {
        Some(port) => refused_by(snap, port, src),
        None => Some(DropReason::PortGone),
    }
}

/// [`refused`] by the port itself.
#[inline(always)]
pub(super) fn refused_by(snap: &Snapshot, port: &PortInfo, src: Ip) -> Option<DropReason> {
    match port.role {
        PortRole::Pod if !port.addrs.contains(&src) => Some(DropReason::SourceNotOwn),
        // Least of all as the node, which policies always let in.
        PortRole::Uplink if snap.local.contains_key(&src) || snap.is_own(src) || is_gateway(src) => {
            Some(DropReason::SourceIsLocal)
        }
        PortRole::Host if snap.local.contains_key(&src) || is_gateway(src) => Some(DropReason::SourceIsLocal),
        _ => None,
    }
}

/// Source and destination of the packet's own IP header.
#[inline]
pub(super) fn addresses(frame: &[u8], meta: &Meta) -> Option<(Ip, Ip)> {
    let ip = frame.get(usize::from(meta.l3)..)?;
    if meta.has(flags::V6) {
        let src = ip.get(8..24)?.first_chunk::<16>()?;
        let dst = ip.get(24..40)?.first_chunk::<16>()?;
        Some((Ip::v6(*src), Ip::v6(*dst)))
    } else {
        let src = ip.get(12..16)?.first_chunk::<4>()?;
        let dst = ip.get(16..20)?.first_chunk::<4>()?;
        Some((Ip::v4(*src), Ip::v4(*dst)))
    }
}
