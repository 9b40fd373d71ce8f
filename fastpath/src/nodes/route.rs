//! `route`: after `flow`, for packets without a current flow entry. Decides where both directions go and
//! installs (or renews) the flow.
//!
//! What arrived by the tunnel leaves only to a pod of this node: a node never forwards for two others, so
//! nodes that disagree about where a pod lives cannot make a loop.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next, Node, NodeId, Setup};
use crate::packet::{FlowKey, flags};
use crate::snapshot::{Egress, Unroutable};
use crate::tables::flow::{Inserted, NewFlow, Transform};
use crate::wire::checksum;
use crate::wire::icmp::ErrorKind;

/// The node.
#[derive(Debug, Default)]
pub struct Route;

impl Node for Route {
    const ID: NodeId = NodeId::Route;

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let setup = *cx.packets.setup(i);
        let meta = *cx.packets.meta(i);
        let (original, translated) = (setup.original, setup.translated);

        let forward = match cx.snap.egress(translated.dst) {
            Ok(egress) => egress,
            Err(why) => return unroutable(cx, &setup, why),
        };
        let ahead = if setup.reply { cx.snap.egress(original.src).ok() } else { Some(forward) };
        if meta.has(flags::DECAPPED) && !ahead.is_some_and(|e| is_local(cx, &e)) {
            return Next::Drop(DropReason::TunnelNotLocal);
        }
        let there = transform(&original, &translated, &forward);
        // A source outside every route (an external client) is answered by whatever way exists then.
        let back = cx.snap.egress(original.src).ok();
        let back = back.map(|e| transform(&translated.reversed(), &original.reversed(), &e));

        *cx.packets.transform_mut(i) = match (setup.reply, back) {
            (false, _) => there,
            (true, Some(back)) => back,
            (true, None) => return Next::Drop(DropReason::NoRoute),
        };
        if meta.flags & (flags::ICMP_ERROR | flags::LATER_FRAGMENT) == 0
            && let Some(back) = back
        {
            install(cx, &setup, there, back, meta.tcp_flags);
        }
        Next::Rewrite
    }
}

fn is_local(cx: &Context<'_>, egress: &Egress) -> bool {
    cx.snap.port(egress.port).is_some_and(|p| p.role != crate::snapshot::PortRole::Uplink)
}

/// No way on: the flow, if there was one, ends; the sender of a first packet is told.
fn unroutable(cx: &mut Context<'_>, setup: &Setup, why: Unroutable) -> Next {
    if let Some(at) = setup.stale {
        // Gone already is as good.
        let _ = cx.flows.remove(at);
    }
    match why {
        Unroutable::NoRoute => Next::Icmp(DropReason::NoRoute, ErrorKind::NoRoute),
        Unroutable::NoEndpoint => Next::Icmp(DropReason::NoEndpoint, ErrorKind::HostUnreachable),
        Unroutable::NoHostPort => Next::Icmp(DropReason::HostUnreachable, ErrorKind::HostUnreachable),
    }
}

/// The compiled transform that turns `from` into `to` and sends it by `egress`.
fn transform(from: &FlowKey, to: &FlowKey, egress: &Egress) -> Transform {
    let (l3_delta, l4_delta) = checksum::rewrite_deltas(from, to);
    let src = if (from.src, from.sport) == (to.src, to.sport) { 0 } else { Transform::REWRITE_SRC };
    let dst = if (from.dst, from.dport) == (to.dst, to.dport) { 0 } else { Transform::REWRITE_DST };
    Transform {
        l3_delta,
        l4_delta,
        egress: egress.port,
        tunnel: egress.tunnel,
        next_hop: egress.next_hop,
        mtu: egress.mtu,
        bits: src | dst,
        ..Transform::identity(to)
    }
}

fn install(cx: &mut Context<'_>, setup: &Setup, there: Transform, back: Transform, tcp_flags: u8) {
    let generation = cx.snap.generation;
    // A stale flow that is gone by now is installed anew.
    if setup.stale.is_some_and(|at| cx.flows.refresh(at, there, back, generation)) {
        return;
    }
    let new = NewFlow {
        original: setup.original,
        original_transform: there,
        reply: setup.translated.reversed(),
        reply_transform: back,
        generation,
        tcp_flags,
    };
    match cx.flows.insert(&new, cx.now) {
        Inserted::New(_, evicted) => {
            cx.stats.flows_installed.add(1);
            cx.stats.flows_evicted.add(evicted.iter().flatten().count() as u64);
        }
        Inserted::Exists(_) => {}
        // The packet was decided by the same tables: it is forwarded, the next one tries again.
        Inserted::Conflict(_) | Inserted::Full | Inserted::Busy | Inserted::MixedFamilies => {
            cx.stats.flows_bypassed.add(1);
        }
    }
}
