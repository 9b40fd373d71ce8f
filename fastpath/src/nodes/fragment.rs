//! `fragment`: between `source` and `flow`, for fragments only. Gives later fragments, which have no ports, the flow key
//! of their datagram's first one, so that they are filtered, translated and tunnelled as it is.
//!
//! Fragments that come before their first one are held, within [`LIMITS`]; those that come in one vector with it wait
//! for the next vector, when its flow is installed. Nothing is reassembled; overlaps are dropped (RFC 5722). A frame that
//! is let go after all re-enters the vector and is dropped there, so that it is counted and goes back to the pool as any
//! other.
//!
//! Limits: each worker remembers its own datagrams, so all fragments of one must come in by one queue, as they do on a
//! pod's veth and, by the hash of addresses alone, from a network card.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};

use super::source::refused;
use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId};
use crate::io::Frame;
use crate::packet::{FlowKey, Meta, flags};
use crate::tables::flow::Millis;
use crate::tables::frag::{Added, DatagramId, Fragment as Piece, Fragments, Limits};
use crate::wire::fragment;

/// Bounds of each worker. The frames held are at most 512 of its pool, 1 MiB of 2048 bytes each; reordering is a
/// matter of milliseconds, so what is held for a second has lost its first fragment. The table itself takes 0.8 MB.
const LIMITS: Limits =
    Limits { datagrams: 1024, held: 512, held_per_datagram: 64, hold_ms: 1000, life_ms: 30_000 };

/// A packet out of its vector.
#[derive(Debug)]
struct Held {
    frame: Option<Frame>,
    meta: Meta,
    key: FlowKey,
}

/// The node, with the datagrams its worker knows.
#[derive(Debug)]
pub struct Fragment {
    table: Fragments<Held>,
}

impl Default for Fragment {
    fn default() -> Self {
        // Each map's random state differs: nobody outside can fill one bucket.
        Self { table: Fragments::new(LIMITS, RandomState::new().hash_one(0)) }
    }
}

impl Node for Fragment {
    const ID: NodeId = NodeId::Fragment;

    fn is_due(&self, now: Millis) -> bool {
        self.table.due(now) == Some(0)
    }

    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        self.table.begin(cx.now);
        self.resume(cx, lists);
        for &packet in input {
            let next = self.one(cx, packet);
            lists.push(cx, packet, next);
        }
    }

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let (meta, key) = (*cx.packets.meta(i), *cx.packets.key(i));
        // An error fits every link's MTU (RFC 1812 4.3.2.3, RFC 4443 2.4 (c)): none is sent in fragments.
        if meta.has(flags::ICMP_ERROR) {
            return Next::Drop(DropReason::MalformedTransport);
        }
        let v6 = meta.has(flags::V6);
        let Some(found) = fragment::read(cx.packets.data(i), &meta) else {
            return Next::Drop(if v6 { DropReason::MalformedIpv6 } else { DropReason::MalformedIpv4 });
        };
        let later = meta.has(flags::LATER_FRAGMENT);
        let piece = Piece {
            id: DatagramId {
                src: key.src,
                dst: key.dst,
                ident: found.ident,
                proto: if v6 { 0 } else { meta.proto },
                ingress: meta.ingress,
                tunnel: meta.tunnel,
            },
            start: found.start,
            end: found.end,
            last: found.last,
            key: (!later).then_some(key),
        };
        let packets = &mut *cx.packets;
        match self.table.add(&piece, cx.now, || Held { frame: packets.take(i), meta, key }) {
            Added::Pass(key) if later => {
                follow(cx, i, key);
                Next::Flow
            }
            Added::Pass(_) => Next::Flow,
            Added::Held(None) => Next::Done,
            Added::Held(Some(evicted)) => {
                if let Some(frame) = evicted.frame {
                    cx.packets.put(i, frame);
                }
                Next::Drop(DropReason::FragmentLimit)
            }
            Added::Duplicate => Next::Drop(DropReason::FragmentDuplicate),
            Added::Overlap => Next::Drop(DropReason::FragmentOverlap),
            Added::Limit => Next::Drop(DropReason::FragmentLimit),
        }
    }
}

impl Fragment {
    /// Packets held back that could go on now.
    pub(crate) fn backlog(&self, now: Millis) -> usize {
        self.table.backlog(now)
    }

    /// Milliseconds until the node has something to do without a packet.
    pub(crate) fn due(&self, now: Millis) -> Option<u32> {
        self.table.due(now)
    }

    /// Gives all frames that are held to `put`.
    pub(crate) fn release(&mut self, mut put: impl FnMut(Frame)) {
        while let Some(held) = self.table.any() {
            held.frame.into_iter().for_each(&mut put);
        }
    }

    /// Takes what waits no longer into the vector, as far as there is room.
    fn resume(&mut self, cx: &mut Context<'_>, lists: &mut Lists) {
        while cx.packets.room() > 0 {
            let (held, key) = match self.table.ready() {
                Some((held, Some(key))) => (held, Ok(key)),
                Some((held, None)) => (held, Err(DropReason::FragmentOverlap)),
                None => match self.table.expired(cx.now) {
                    Some(held) => (held, Err(DropReason::FragmentUnmatched)),
                    None => return,
                },
            };
            let Some(frame) = held.frame else { continue };
            // There is room.
            let Ok(i) = cx.packets.resume(frame, held.meta, held.key) else { return };
            // The tables may have changed since it came in.
            let gone = refused(cx.snap, held.meta.ingress, held.key.src);
            let next = match (key, gone) {
                (Ok(key), None) => {
                    follow(cx, i, key);
                    Next::Flow
                }
                (Ok(_), Some(reason)) | (Err(reason), _) => Next::Drop(reason),
            };
            lists.push(cx, i, next);
        }
    }
}

/// Gives a later fragment the key of its first one.
fn follow(cx: &mut Context<'_>, i: u16, first: FlowKey) {
    let seed = cx.flows.seed();
    let (_, meta, key) = cx.packets.parts(i);
    *key = first;
    meta.hash = first.hash(seed);
    // In IPv6 only the first fragment says what follows its headers (RFC 8200 4.5).
    meta.proto = first.proto;
}
