//! `neighbor`: last node before `tx`. Fills in the link-layer addresses of the next hop, pod or host.
//!
//! The kernel resolves neighbours of the uplink; an unresolved one is a named drop. A gateway or VTEP the control
//! thread has asked the kernel for since the snapshot that first named it; for a destination on the link it is
//! asked from here.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Event, Lists, Next, Node, NodeId};
use crate::packet::{Ip, Mac, NO_INDEX, PortId};
use crate::snapshot::GATEWAY_MAC;
use crate::tables::flow::Millis;

/// How many packets ahead headers are fetched into the cache.
const AHEAD: usize = 8;
/// Ports that packets come in by are told apart up to this many.
const ASKERS: usize = 256;
/// How often the packets of one port may ask, in milliseconds: about as often as the control thread listens, ...
const WINDOW_MS: u32 = 100;
/// ... and for how many destinations each time.
const MOST: u32 = 32;

/// The node, with what each port's packets asked for lately.
#[derive(Debug)]
pub struct Neighbor {
    askers: Box<[Asker; ASKERS]>,
}

#[derive(Clone, Copy, Debug)]
struct Asker {
    since: Millis,
    asked: u32,
    last: Ip,
}

impl Default for Neighbor {
    fn default() -> Self {
        let nothing = Asker { since: Millis(0), asked: 0, last: Ip::from_bits(0) };
        Self { askers: Box::new([nothing; ASKERS]) }
    }
}

impl Neighbor {
    /// Asks for a destination on the link: not for each packet, and not for so many that a pod which tries one address
    /// after the other fills the queue, where others ask for what does answer.
    fn ask(&mut self, cx: &Context<'_>, ingress: PortId, port: PortId, addr: Ip) {
        let Some(asker) = self.askers.get_mut(usize::from(ingress.0) % ASKERS) else { return };
        if cx.now.since(asker.since) >= WINDOW_MS {
            (asker.since, asker.asked) = (cx.now, 0);
        }
        if asker.asked >= MOST || asker.asked > 0 && asker.last == addr {
            return;
        }
        (asker.asked, asker.last) = (asker.asked + 1, addr);
        // A full queue loses the request; a later packet repeats it.
        let _ = cx.events.push(Event::Resolve { port, addr });
    }
}

/// Writes the addresses of an Ethernet header; nothing, when there is no room for them.
#[inline]
pub(super) fn write_link(frame: &mut [u8], dst: Mac, src: Mac) {
    if let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = frame.first_chunk_mut::<12>() {
        [*a, *b, *c, *d, *e, *f] = dst.0;
        [*g, *h, *i, *j, *k, *l] = src.0;
    }
}

impl Node for Neighbor {
    const ID: NodeId = NodeId::Neighbor;

    #[inline]
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        let snap = cx.snap;
        // The pod's end that the last packet went to.
        let (mut egress, mut peer) = (PortId::NONE, None);
        input.iter().take(AHEAD).for_each(|i| cx.packets.prefetch(*i));
        for (n, &i) in input.iter().enumerate() {
            if let Some(ahead) = input.get(n + AHEAD) {
                cx.packets.prefetch(*ahead);
            }
            let meta = cx.packets.meta(i);
            if meta.egress != egress {
                (egress, peer) = (meta.egress, snap.port(meta.egress).and_then(|port| port.peer_mac));
            }
            match peer {
                Some(dst) if meta.next_hop == NO_INDEX => {
                    write_link(cx.packets.data_mut(i), dst, GATEWAY_MAC);
                    lists.push(cx, i, Next::Tx);
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
                self.ask(cx, meta.ingress, port, cx.packets.transform(i).dst);
            }
            return Next::Drop(DropReason::NeighborUnresolved);
        };
        write_link(cx.packets.data_mut(i), dst, src);
        cx.packets.meta_mut(i).egress = port;
        Next::Tx
    }
}
