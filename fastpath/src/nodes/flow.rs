//! `flow`: after `source`. Looks the whole vector up in the flow table at once.
//!
//! Hit of this generation: `rewrite` applies the entry's transform. Miss, or an entry of an older generation:
//! `route` decides. ICMP errors must quote a known flow and follow it (RFC 5508 in spirit). Later fragments have no
//! ports and are routed by address.
#![forbid(unsafe_code)]

use super::source::addresses;
use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId, Setup, VECTOR};
use crate::packet::{FlowKey, flags, proto};
use crate::tables::flow::Hit;
use crate::wire::tcp;

/// The node.
#[derive(Debug)]
pub struct Flow {
    keys: Vec<FlowKey>,
    hashes: Vec<u64>,
    hits: Vec<Option<Hit>>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            keys: Vec::with_capacity(VECTOR),
            hashes: Vec::with_capacity(VECTOR),
            hits: Vec::with_capacity(VECTOR),
        }
    }
}

impl Node for Flow {
    const ID: NodeId = NodeId::Flow;

    fn run(&mut self, cx: &mut Context<'_>, input: &mut Vec<u16>, lists: &mut Lists) {
        self.keys.clear();
        self.hashes.clear();
        for &i in input.iter() {
            self.keys.push(*cx.packets.key(i));
            self.hashes.push(cx.packets.meta(i).hash);
        }
        cx.flows.lookup_batch(&self.keys, &self.hashes, cx.now, &mut self.hits);
        for (i, hit) in input.drain(..).zip(&self.hits) {
            let next = decide(cx, i, hit.as_ref());
            lists.push(cx, i, next);
        }
    }

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let hit = cx.flows.lookup(cx.packets.key(i), cx.packets.meta(i).hash, cx.now);
        decide(cx, i, hit.as_ref())
    }
}

#[inline]
fn decide(cx: &mut Context<'_>, i: u16, hit: Option<&Hit>) -> Next {
    let (meta, key) = (*cx.packets.meta(i), *cx.packets.key(i));
    if meta.flags & (flags::ICMP_ERROR | flags::LATER_FRAGMENT) != 0 {
        return without_entry(cx, i, hit);
    }
    let Some(hit) = hit else {
        *cx.packets.setup_mut(i) =
            Setup { original: key, translated: key, stale: None, reply: false, error: None };
        let mid_stream = meta.proto == proto::TCP
            && meta.tcp_flags & (tcp::control::SYN | tcp::control::ACK) != tcp::control::SYN;
        if mid_stream && !cx.snap.settings.tcp_pickup {
            return Next::Drop(DropReason::TcpNoFlow);
        }
        return Next::Route;
    };
    cx.flows.observe(hit, meta.tcp_flags, cx.now);
    // An entry of a newer generation was decided by a worker that is ahead of this one: it stands.
    if hit.generation.wrapping_sub(cx.snap.generation).cast_signed() >= 0 {
        *cx.packets.transform_mut(i) = hit.transform;
        return Next::Rewrite;
    }
    let Some(pair) = cx.flows.pair(hit.at) else {
        *cx.packets.setup_mut(i) =
            Setup { original: key, translated: key, stale: None, reply: false, error: None };
        return Next::Route;
    };
    cx.stats.flows_reevaluated.add(1);
    *cx.packets.setup_mut(i) = Setup {
        original: pair.original,
        translated: pair.reply.reversed(),
        stale: Some(hit.at),
        reply: hit.reply,
        error: None,
    };
    Next::Route
}

/// Packets that follow a flow, or an address, without being part of a flow's life.
fn without_entry(cx: &mut Context<'_>, i: u16, hit: Option<&Hit>) -> Next {
    let meta = *cx.packets.meta(i);
    let Some((src, dst)) = addresses(cx.packets.data(i), &meta) else {
        return Next::Drop(DropReason::MalformedTransport);
    };
    if meta.has(flags::ICMP_ERROR) {
        // It goes where the quoted packet came from; an error sent elsewhere is not about this flow.
        if hit.is_none() || dst != cx.packets.key(i).dst {
            return Next::Drop(DropReason::IcmpUnrelated);
        }
    }
    let key = FlowKey { src, dst, sport: 0, dport: 0, proto: meta.proto };
    *cx.packets.setup_mut(i) =
        Setup { original: key, translated: key, stale: None, reply: false, error: None };
    Next::Route
}
