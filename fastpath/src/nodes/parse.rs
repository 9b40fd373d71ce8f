//! `parse`: first node. Finds headers, fills `Meta` and the flow key.
//!
//! Three outcomes (RFC 894, 791, 8200): parsed; not forwarded as IP (ARP, NDP: `punt`); malformed (named drop).
//! The destination MAC must be the device's own on uplinks, so that frames a switch floods are not forwarded twice,
//! and the gateway's elsewhere: the one that pods and the host resolve next hops to.
#![forbid(unsafe_code)]

use super::source::refused_by;
use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId};
use crate::packet::{Mac, PortId};
use crate::snapshot::{GATEWAY_MAC, PortInfo, PortRole};
use crate::wire::parse::{Parsed, common, parse};

/// How many packets ahead headers are fetched into the cache: the first bytes of a packet come from the cache of the core on
/// which the kernel wrote them, which takes some 300 cycles.
const AHEAD: usize = 16;

/// The node.
#[derive(Debug, Default)]
pub struct Parse;

impl Node for Parse {
    const ID: NodeId = NodeId::Parse;

    #[inline]
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        let (snap, seed) = (cx.snap, cx.flows.seed());
        // Packets of a port come together.
        let (mut ingress, mut port, mut own, mut uplink) = (PortId::NONE, None, Mac::default(), false);
        input.iter().take(AHEAD).for_each(|i| cx.packets.prefetch(*i));
        for (n, &i) in input.iter().enumerate() {
            if let Some(ahead) = input.get(n + AHEAD) {
                cx.packets.prefetch(*ahead);
            }
            let (data, meta, key) = cx.packets.parts(i);
            if meta.ingress != ingress {
                (ingress, port) = (meta.ingress, snap.port(meta.ingress));
                (own, uplink) = port.map_or((own, uplink), |p| (own_mac(p), p.role == PortRole::Uplink));
            }
            match port {
                Some(port) if data.first_chunk::<6>() == Some(&own.0) && common(data, seed, meta, key) => {
                    // What `source` would say, while port and address are at hand.
                    if uplink {
                        lists.push(cx, i, Next::Decap);
                    } else if refused_by(snap, port, key.src).is_none() {
                        lists.push(cx, i, Next::Flow);
                    } else {
                        lists.push(cx, i, Next::Source);
                    }
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
        let Some(port) = cx.snap.port(cx.packets.meta(i).ingress) else {
            return Next::Drop(if cx.snap.generation == 0 {
                DropReason::NotReady
            } else {
                DropReason::PortGone
            });
        };
        let (data, meta, key) = cx.packets.parts(i);
        match parse(data, 0, meta, key) {
            Parsed::Ip => {}
            Parsed::Punt(_) => return Next::Punt,
            Parsed::Drop(reason) => return Next::Drop(reason),
        }
        if let Some(reason) = wrong_mac(data, port) {
            return Next::Drop(reason);
        }
        meta.hash = key.hash(cx.flows.seed());
        if port.role == PortRole::Uplink { Next::Decap } else { Next::Source }
    }
}

/// The address that frames to this port have.
#[inline]
fn own_mac(port: &PortInfo) -> Mac {
    if port.role == PortRole::Uplink { port.mac } else { GATEWAY_MAC }
}

/// Whether the frame was not addressed to this port.
#[inline]
fn wrong_mac(frame: &[u8], port: &PortInfo) -> Option<DropReason> {
    let dst = Mac(*frame.first_chunk::<6>()?);
    if dst == own_mac(port) {
        None
    } else if dst.0.first().is_some_and(|b| b & 1 == 1) {
        Some(DropReason::Multicast)
    } else {
        Some(DropReason::WrongMac)
    }
}
