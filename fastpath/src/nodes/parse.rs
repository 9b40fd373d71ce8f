//! `parse`: first node. Finds headers, fills `Meta` and the flow key.
//!
//! Three outcomes (RFC 894, 791, 8200): parsed; not forwarded as IP (ARP, NDP: `punt`); malformed (named drop).
//! The destination MAC must be the device's own on uplinks, so that frames a switch floods are not forwarded twice,
//! and the gateway's elsewhere: the one that pods and the host resolve next hops to.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next, Node, NodeId};
use crate::packet::Mac;
use crate::snapshot::{GATEWAY_MAC, PortInfo, PortRole};
use crate::wire::parse::{Parsed, parse};

/// The node.
#[derive(Debug, Default)]
pub struct Parse;

impl Node for Parse {
    const ID: NodeId = NodeId::Parse;

    #[inline]
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

/// Whether the frame was not addressed to this port.
#[inline]
fn wrong_mac(frame: &[u8], port: &PortInfo) -> Option<DropReason> {
    let dst = Mac(*frame.first_chunk::<6>()?);
    let own = if port.role == PortRole::Uplink { port.mac } else { GATEWAY_MAC };
    if dst == own {
        None
    } else if dst.0.first().is_some_and(|b| b & 1 == 1) {
        Some(DropReason::Multicast)
    } else {
        Some(DropReason::WrongMac)
    }
}
