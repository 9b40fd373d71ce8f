//! `flow`: after `source`. Looks the whole vector up in the flow table at once.
//!
//! Hit of this generation: common packets are rewritten and encapsulated in the lookup's loop, by the code of those nodes, while
//! the entry is at hand; of others `rewrite` applies the entry's transform, or the packet is dropped if the flow's permission
//! was taken away; but a SYN that opens another connection than the flow's is a first packet. Miss, or an entry of an older generation: `service`, `policy`, `snat` and `route` decide. ICMP errors
//! must quote a known flow; they follow it, and are translated with what they quote (RFC 5508 4.2). Later fragments have
//! the key of their first one and follow its flow, but never begin one.
#![forbid(unsafe_code)]

use super::encap::{Idents, wrap};
use super::policy::{refuse, revoked};
use super::rewrite::{Counted, forward};
use super::source::addresses;
use crate::graph::{
    Context, DropReason, Lists, Lookup, Next, Node, NodeId, Setup, VECTOR, count_drop, count_rules,
};
use crate::io::Frame;
use crate::packet::{FlowKey, Meta, NO_INDEX, flags, proto};
use crate::snapshot::PortRole;
use crate::tables::flow::{FlowState, Hit, Transform};
use crate::wire::tcp::control;
use crate::wire::translate;

/// How many packets ahead headers, and the room in front of them, are fetched into the cache.
const AHEAD: usize = 8;

/// The node.
#[derive(Debug)]
pub struct Flow {
    keys: Vec<FlowKey>,
    hashes: Vec<u64>,
    /// What is not settled by the lookup alone.
    rest: Vec<(u16, Option<Hit>)>,
    idents: Idents,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            keys: Vec::with_capacity(VECTOR),
            hashes: Vec::with_capacity(VECTOR),
            rest: Vec::with_capacity(VECTOR),
            idents: Idents::odd(),
        }
    }
}

impl Node for Flow {
    const ID: NodeId = NodeId::Flow;

    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        self.hashes.clear();
        self.hashes.extend(input.iter().map(|i| cx.packets.meta(*i).hash));
        // The whole vector in its order, as it is when nothing was dropped on the way, needs no copy of its keys.
        let whole = input.len() == cx.packets.len() && input.iter().zip(0..).all(|(i, n)| *i == n);
        if !whole {
            self.keys.clear();
            self.keys.extend(input.iter().map(|i| *cx.packets.key(*i)));
        }
        let (snap, stats, rules) = (cx.snap, cx.stats, cx.rules);
        let Lookup { keys, frames, meta: metas, transform: transforms } = cx.packets.lookup();
        let keys = if whole { keys } else { &self.keys };
        let (rest, idents) = (&mut self.rest, &mut self.idents);
        rest.clear();
        let fetch = |frames: &[Option<Frame>; VECTOR], n: usize| {
            if let Some(frame) = input.get(n).and_then(|i| frames[usize::from(*i) % VECTOR].as_ref()) {
                frame.prefetch();
                frame.prefetch_headroom();
            }
        };
        (0..AHEAD).for_each(|n| fetch(frames, n));
        // Once a TCP or UDP packet is left to `rewrite`, so are those behind it: none of a flow overtakes another. Packets of other
        // protocols always are.
        let (mut counted, mut at_once) = (Counted::default(), true);
        let settle = |n: usize, hit: &Hit| {
            fetch(frames, n + AHEAD);
            let i = *input.get(n)?;
            let place = usize::from(i) % VECTOR;
            let (meta, t) = (&mut metas[place], &hit.transform);
            if !is_settled(snap.generation, meta, hit) {
                return None;
            }
            let frame = if at_once { frames[place].as_mut() } else { None };
            let forwarded = frame
                .and_then(|frame| forward(rules, &mut counted, frame.data_mut(), meta, t).then_some(frame));
            if let Some(frame) = forwarded {
                if t.tunnel == NO_INDEX {
                    if t.next_hop != NO_INDEX {
                        // What `neighbor` asks for when the hop is the link itself.
                        transforms[place].dst = t.dst;
                    }
                    lists.push_neighbor(i);
                } else {
                    match wrap(snap, idents, frame, meta) {
                        Some(true) => lists.push_tx(i),
                        Some(false) => count_drop(stats, DropReason::NoHeadroom),
                        None => lists.push_encap(i),
                    }
                }
            } else {
                at_once &= !matches!(meta.proto, proto::TCP | proto::UDP);
                transforms[place] = *t;
                lists.push_rewrite(i);
            }
            Some(meta.tcp_flags)
        };
        let other = |n: usize, hit| rest.extend(input.get(n).map(|i| (*i, hit)));
        cx.flows.follow_each(keys, &self.hashes, cx.now, settle, other);
        counted.flush(rules);
        for (i, hit) in &self.rest {
            let next = decide(cx, *i, hit.as_ref());
            lists.push(cx, *i, next);
        }
    }

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let hit = cx.flows.lookup(cx.packets.key(i), cx.packets.meta(i).hash, cx.now);
        decide(cx, i, hit.as_ref())
    }
}

/// Whether the flow that a packet hits says all that is done to it: what nearly every packet meets, and nothing that
/// [`decide`] would not say too.
#[inline]
fn is_settled(generation: u32, meta: &Meta, hit: &Hit) -> bool {
    hit.generation == generation
        && hit.transform.bits & Transform::DENY == 0
        && !meta.has(flags::ICMP_ERROR)
        && !opens_another(meta, hit)
}

#[inline(never)]
fn decide(cx: &mut Context<'_>, i: u16, hit: Option<&Hit>) -> Next {
    let (meta, key) = (*cx.packets.meta(i), *cx.packets.key(i));
    if meta.has(flags::ICMP_ERROR) {
        return error(cx, i, hit);
    }
    let Some(hit) = hit else { return miss(cx, i) };
    if opens_another(&meta, hit) {
        *cx.packets.setup_mut(i) = Setup { replaces: Some(hit.at), ..Setup::first(key) };
        return Next::Service;
    }
    cx.flows.observe(hit, meta.tcp_flags, cx.now);
    let ahead = hit.generation.wrapping_sub(cx.snap.generation).cast_signed();
    if ahead >= 0 {
        if hit.transform.bits & Transform::DENY != 0 {
            count_rules(cx.rules, hit.transform.rules, meta.l3_len);
            return refuse(cx.snap, revoked(hit.transform.rules));
        }
        if ahead == 0 {
            *cx.packets.transform_mut(i) = hit.transform;
            return Next::Rewrite;
        }
    }
    let Some(pair) = cx.flows.pair(hit.at) else {
        // To be decided as a first packet it must have no flow: as one, an answer would go out untranslated.
        return match cx.flows.lookup(&key, meta.hash, cx.now) {
            None => miss(cx, i),
            Some(_) => Next::Drop(DropReason::FlowBusy),
        };
    };
    if ahead > 0 {
        // Decided by a worker that has newer tables: that stands, but its indices mean nothing in these.
        *cx.packets.setup_mut(i) = Setup {
            original: pair.original,
            translated: pair.reply.reversed(),
            reply: hit.reply,
            ..Setup::first(pair.original)
        };
        return Next::Route;
    }
    cx.stats.flows_reevaluated.add(1);
    *cx.packets.setup_mut(i) = Setup {
        original: pair.original,
        translated: pair.reply.reversed(),
        stale: Some(hit.at),
        reply: hit.reply,
        ..Setup::first(pair.original)
    };
    Next::Service
}

/// A packet without a flow: perhaps the first of one.
fn miss(cx: &mut Context<'_>, i: u16) -> Next {
    let meta = cx.packets.meta(i);
    if meta.has(flags::LATER_FRAGMENT) {
        return Next::Drop(DropReason::FragmentUnmatched);
    }
    if meta.proto == proto::TCP && !opens(meta) && !cx.snap.settings.tcp_pickup {
        return Next::Drop(DropReason::TcpNoFlow);
    }
    *cx.packets.setup_mut(i) = Setup::first(*cx.packets.key(i));
    Next::Service
}

/// Whether a packet opens a TCP connection.
#[inline]
fn opens(meta: &Meta) -> bool {
    meta.proto == proto::TCP && meta.tcp_flags & (control::SYN | control::ACK) == control::SYN
}

/// Whether a packet opens another connection than the one whose flow it hits: nothing of that flow's verdict, backend
/// or translation holds for it. From the end that answers it is a connection of the other direction; after the end
/// of one it is the next one with the same ports (RFC 9293 3.6.1).
#[inline]
fn opens_another(meta: &Meta, hit: &Hit) -> bool {
    opens(meta) && (hit.reply || matches!(hit.state, FlowState::Closing | FlowState::Reset))
}

/// ICMP errors: they follow the flow they quote without being part of its life.
fn error(cx: &mut Context<'_>, i: u16, hit: Option<&Hit>) -> Next {
    let meta = *cx.packets.meta(i);
    let Some((src, dst)) = addresses(cx.packets.data(i), &meta) else {
        return Next::Drop(DropReason::MalformedTransport);
    };
    let mut key = FlowKey { src, dst, sport: 0, dport: 0, proto: meta.proto };
    // It goes where the quoted packet came from; an error sent elsewhere is not about this flow.
    let about_sender = dst == cx.packets.key(i).dst;
    let Some(hit) = hit.filter(|_| about_sender) else {
        let passes = match cx.snap.port(meta.ingress).map(|p| p.role) {
            // About a packet of the node's own whose port is in our range: the kernel's to judge.
            Some(PortRole::Uplink) => {
                !meta.has(flags::DECAPPED) && cx.snap.is_own(dst) && cx.snap.is_for_host(dst)
            }
            // About one that came to the kernel straight from the link, as without a tunnel.
            Some(PortRole::Host) => true,
            Some(PortRole::Pod) | None => false,
        };
        if !(about_sender && passes) {
            return Next::Drop(DropReason::IcmpUnrelated);
        }
        *cx.packets.setup_mut(i) = Setup::first(key);
        return Next::Route;
    };
    if hit.transform.bits & Transform::DENY != 0 {
        return Next::Drop(revoked(hit.transform.rules));
    }
    if hit.transform.bits & (Transform::REWRITE_SRC | Transform::REWRITE_DST) != 0 {
        let (data, meta, quoted) = cx.packets.parts(i);
        match translate::error(data, meta, quoted, &hit.transform) {
            Some((src, dst)) => (key.src, key.dst) = (src, dst),
            None => return Next::Drop(DropReason::MalformedTransport),
        }
    }
    if hit.generation == cx.snap.generation {
        // The way of the flow, which may lead back into a tunnel where no route does.
        let Transform { egress, tunnel, next_hop, mtu, .. } = hit.transform;
        *cx.packets.transform_mut(i) =
            Transform { egress, tunnel, next_hop, mtu, ..Transform::identity(&key) };
        return Next::Rewrite;
    }
    *cx.packets.setup_mut(i) = Setup::first(key);
    Next::Route
}
