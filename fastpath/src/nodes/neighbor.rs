//! `neighbor`: last node before `tx`. Fills in the link-layer addresses of the next hop, pod or host.
//!
//! The kernel resolves neighbours of the uplink; an unresolved one is a named drop. A gateway or VTEP the control
//! thread has asked the kernel for since the snapshot that first named it; for a destination on the link it is
//! asked from here.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Event, Next, Node, NodeId};
use crate::packet::NO_INDEX;
use crate::snapshot::GATEWAY_MAC;
use crate::wire::eth;

/// The node.
#[derive(Debug, Default)]
pub struct Neighbor;

impl Node for Neighbor {
    const ID: NodeId = NodeId::Neighbor;

    #[inline]
    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let meta = *cx.packets.meta(i);
        let (port, src, dst, on_link) = if meta.next_hop == NO_INDEX {
            let Some(port) = cx.snap.port(meta.egress) else { return Next::Drop(DropReason::PortGone) };
            (meta.egress, GATEWAY_MAC, port.peer_mac, false)
        } else {
            let Some(hop) = cx.snap.next_hops.get(usize::from(meta.next_hop)) else {
                return Next::Drop(DropReason::NoRoute);
            };
            (hop.port, hop.src_mac, hop.dst_mac, hop.addr.is_none())
        };
        let Some(dst) = dst else {
            // A hop with an address of its own is being resolved already.
            if on_link && meta.tunnel == NO_INDEX {
                let addr = cx.packets.transform(i).dst;
                // A full queue loses the request; the next packet repeats it.
                let _ = cx.events.push(Event::Resolve { port, addr });
            }
            return Next::Drop(DropReason::NeighborUnresolved);
        };
        let mut header = eth::Packet::new_unchecked(cx.packets.data_mut(i));
        header.set_src(src);
        header.set_dst(dst);
        cx.packets.meta_mut(i).egress = port;
        Next::Tx
    }
}
