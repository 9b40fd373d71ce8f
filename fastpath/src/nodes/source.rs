//! `source`: after `parse` and `decap`. A packet may come only from where its source address lives.
//!
//! A pod sends only from its own addresses; the uplink and the tunnel never bring an address of a pod on
//! this node. Runs on every packet, also of known flows, so that no flow of a pod here can be joined from elsewhere.
//! Whether a pod of another node came through that node's tunnel is `route`'s to see, once a flow.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next, Node, NodeId};
use crate::packet::{Ip, Meta, flags};
use crate::snapshot::PortRole;

/// The node.
#[derive(Debug, Default)]
pub struct Source;

impl Node for Source {
    const ID: NodeId = NodeId::Source;

    #[inline]
    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let meta = cx.packets.meta(i);
        let Some(port) = cx.snap.port(meta.ingress) else { return Next::Drop(DropReason::PortGone) };
        // The key of an ICMP error is the quoted packet's, so its own source is read from the header.
        let src = if meta.has(flags::ICMP_ERROR) {
            let Some(src) = addresses(cx.packets.data(i), meta).map(|(src, _)| src) else {
                return Next::Drop(DropReason::MalformedTransport);
            };
            src
        } else {
            cx.packets.key(i).src
        };
        match port.role {
            PortRole::Pod if !port.addrs.contains(&src) => Next::Drop(DropReason::SourceNotOwn),
            PortRole::Uplink if cx.snap.local.contains_key(&src) => Next::Drop(DropReason::SourceIsLocal),
            _ => Next::Flow,
        }
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
