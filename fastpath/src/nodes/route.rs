//! `route`: after `snat`. Decides where both directions go and installs (or renews) the flow.
//!
//! No two flows share a translated tuple: when another flow has it, the source takes another port. When all that are
//! tried are taken, one whose flow was not answered for two seconds gives way, so that a sender who takes them all
//! without an answer does not keep others from a destination. What is answered never does.
//! What arrived by the tunnel leaves only to a pod of this node: a node never forwards for two others, so
//! nodes that disagree about where a pod lives cannot make a loop.
//! A vector goes through in stages, some packets apart, each of which fetches what the next one needs of the flow table.
#![forbid(unsafe_code)]

use super::snat::Candidates;
use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId, Setup, Source, count_flow};
use crate::packet::{FlowKey, Meta, NO_INDEX, flags, proto};
use crate::snapshot::{Egress, PortRole, Unroutable};
use crate::tables::flow::{Claim, Inserted, Millis, NewFlow, Plan, Transform};
use crate::wire::checksum;
use crate::wire::icmp::ErrorKind;

/// Destinations that are remembered to have no port left.
const EXHAUSTED: usize = 256;
/// How long no port is looked for after all of the range were seen taken, in milliseconds.
const PAUSE_MS: u32 = 10;
/// Ports a flow may take from one that nobody has answered, when none of all that were tried is free.
const LAST_RESORT: usize = 8;
/// Seed of the hash a destination is remembered by.
const DESTINATION: u64 = 0xd5;

/// Packets by which each of the two steps that fetch a flow's place in the table is ahead of the next.
const AHEAD: usize = 4;

/// The node.
#[derive(Debug)]
pub struct Route {
    exhausted: Exhausted,
}

impl Default for Route {
    fn default() -> Self {
        Self { exhausted: Exhausted { slots: vec![(0, Millis(0)); EXHAUSTED].into() } }
    }
}

impl Node for Route {
    const ID: NodeId = NodeId::Route;

    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        // A ring: a plan is made, completed some packets later, and used some more packets later.
        let mut plans = [None; 4 * AHEAD];
        let at = |n: usize| n % (4 * AHEAD);
        for turn in 0..input.len() + 3 * AHEAD {
            if let Some(i) = input.get(turn) {
                plans[at(turn)] = plan(cx, *i);
            }
            if let Some(Some(planned)) = turn.checked_sub(AHEAD).and_then(|n| plans.get_mut(at(n))) {
                cx.flows.fetch_slots(&mut planned.plan, cx.now);
            }
            if let Some(Some(planned)) = turn.checked_sub(2 * AHEAD).and_then(|n| plans.get(at(n))) {
                cx.flows.fetch_partners(&planned.plan);
            }
            if let Some((n, i)) = turn.checked_sub(3 * AHEAD).and_then(|n| Some((n, *input.get(n)?))) {
                let next = self.decide(cx, i, plans[at(n)].take());
                lists.push(cx, i, next);
            }
        }
    }

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let planned = plan(cx, i);
        self.decide(cx, i, planned)
    }
}

/// A flow that will most likely be installed, and what it then looks like after translation.
#[derive(Clone, Copy, Debug)]
struct Planned {
    translated: FlowKey,
    plan: Plan,
}

/// Begins to install what a packet opens; `None` when it most likely opens nothing.
fn plan(cx: &Context<'_>, i: u16) -> Option<Planned> {
    let (setup, meta) = (cx.packets.setup(i), cx.packets.meta(i));
    if setup.stale.is_some() || meta.flags & (flags::ICMP_ERROR | flags::LATER_FRAGMENT) != 0 {
        return None;
    }
    let (original, source) = (&setup.original, setup.source);
    let translated = Candidates::new(original, &setup.translated, source, &cx.snap.snat).next()?;
    Some(Planned { translated, plan: cx.flows.plan(original, &translated.reversed()) })
}

impl Route {
    fn decide(&mut self, cx: &mut Context<'_>, i: u16, planned: Option<Planned>) -> Next {
        let setup = *cx.packets.setup(i);
        let meta = *cx.packets.meta(i);
        let (original, translated) = (setup.original, setup.translated);

        let forward = match cx.snap.egress_from(translated.src, translated.dst) {
            Ok(egress) => egress,
            Err(why) => return unroutable(cx, &setup, why),
        };
        // A source outside every route (an external client) is answered by whatever way exists then.
        let backward = cx.snap.egress_from(original.dst, original.src).ok();
        let (behind, ahead) = if setup.reply { (Some(forward), backward) } else { (backward, Some(forward)) };
        // Answers to what this node translated go on to where the question came from.
        let answer = setup.reply && original != translated;
        if meta.has(flags::DECAPPED) && !answer && !ahead.is_some_and(|e| is_local(cx, &e)) {
            return Next::Drop(DropReason::TunnelNotLocal);
        }
        if behind.is_some_and(|e| is_spoofed(cx, &meta, &e)) {
            return Next::Drop(DropReason::SourceWrongWay);
        }
        let ways = Ways { forward, backward };
        // They follow a flow that exists: a packet of its own renews it.
        if meta.flags & (flags::ICMP_ERROR | flags::LATER_FRAGMENT) != 0 {
            return send(cx, i, &setup, &ways.transforms(&setup, &translated));
        }
        if original != translated && ways.backward.is_none() {
            return Next::Drop(DropReason::NoRoute);
        }
        // Only now: what the packet is denied for must not end the flow whose key it has.
        if setup.replaces.is_some_and(|at| !cx.flows.remove(at) && cx.flows.pair(at).is_some()) {
            return Next::Drop(DropReason::FlowBusy);
        }
        let snat = &cx.snap.snat;
        let free = Candidates::new(&original, &translated, setup.source, snat);
        let lately = self.exhausted.lately(&translated, cx.now);
        let searched = match (lately, setup.source) {
            (false, _) => usize::MAX,
            (true, Source::Node | Source::Port) => 0,
            // Its own port.
            (true, Source::Keep | Source::Gateway) => 1,
        };
        let last = Candidates::new(&original, &translated, setup.source, snat).take(LAST_RESORT);
        let free = free.take(searched).map(|key| (key, Claim::Free));
        for (translated, claim) in free.chain(last.map(|key| (key, Claim::HalfOpen))) {
            if claim == Claim::HalfOpen && !lately {
                self.exhausted.now(&setup.translated, cx.now);
            }
            let transforms = ways.transforms(&setup, &translated);
            let plan = planned.as_ref().filter(|p| p.translated == translated).map(|p| &p.plan);
            match install(cx, &setup, &translated, &transforms, &meta, claim, plan) {
                Installed::Taken => {}
                Installed::Yes => return send(cx, i, &setup, &transforms),
                Installed::Before(transform) => {
                    *cx.packets.transform_mut(i) = transform;
                    return Next::Rewrite;
                }
                // Without an entry nothing could translate the answers.
                Installed::No if original == translated => return send(cx, i, &setup, &transforms),
                Installed::No => return Next::Drop(DropReason::FlowTableFull),
            }
        }
        Next::Drop(DropReason::SnatExhausted)
    }
}

/// Destinations, with the source as they see it, towards which every port was taken a moment ago: a flood of new
/// flows does not make the worker search the range for each of them, while what is established waits.
#[derive(Debug)]
struct Exhausted {
    slots: Box<[(u64, Millis)]>,
}

impl Exhausted {
    fn slot(&mut self, translated: &FlowKey) -> Option<(u64, &mut (u64, Millis))> {
        let icmp = matches!(translated.proto, proto::ICMP | proto::ICMPV6);
        // An identifier is no part of the destination.
        let dport = if icmp { 0 } else { translated.dport };
        // Never zero, which is an empty slot.
        let hash = FlowKey { sport: 0, dport, ..*translated }.hash(DESTINATION) | 1;
        let at = usize::try_from((hash >> 8) % EXHAUSTED as u64).ok()?;
        Some((hash, self.slots.get_mut(at)?))
    }

    fn lately(&mut self, translated: &FlowKey, now: Millis) -> bool {
        self.slot(translated).is_some_and(|(hash, slot)| slot.0 == hash && now.since(slot.1) < PAUSE_MS)
    }

    fn now(&mut self, translated: &FlowKey, now: Millis) {
        if let Some((hash, slot)) = self.slot(translated) {
            *slot = (hash, now);
        }
    }
}

/// The ways of both directions; there may be none back.
struct Ways {
    forward: Egress,
    backward: Option<Egress>,
}

/// What is done to packets of the original direction, and to the answers.
struct Transforms {
    there: Transform,
    back: Option<Transform>,
}

impl Ways {
    fn transforms(&self, setup: &Setup, translated: &FlowKey) -> Transforms {
        let compile = |from: &FlowKey, to: &FlowKey, egress: &Egress| Transform {
            rules: setup.rules,
            ..transform(from, to, egress)
        };
        let (answer, back) = (translated.reversed(), setup.original.reversed());
        Transforms {
            there: compile(&setup.original, translated, &self.forward),
            back: self.backward.map(|e| compile(&answer, &back, &e)),
        }
    }
}

/// Sends the packet at hand by the transform of its direction.
fn send(cx: &mut Context<'_>, i: u16, setup: &Setup, transforms: &Transforms) -> Next {
    let transform = if setup.reply { transforms.back } else { Some(transforms.there) };
    let Some(transform) = transform else { return Next::Drop(DropReason::NoRoute) };
    *cx.packets.transform_mut(i) = transform;
    Next::Rewrite
}

/// Whether a packet from the uplink has a source that is reached by a tunnel it did not come through.
fn is_spoofed(cx: &Context<'_>, meta: &Meta, behind: &Egress) -> bool {
    let tunnel = if meta.has(flags::DECAPPED) { meta.tunnel } else { NO_INDEX };
    let uplink = cx.snap.port(meta.ingress).is_some_and(|p| p.role == PortRole::Uplink);
    uplink && behind.tunnel != NO_INDEX && behind.tunnel != tunnel
}

fn is_local(cx: &Context<'_>, egress: &Egress) -> bool {
    cx.snap.port(egress.port).is_some_and(|p| p.role != PortRole::Uplink)
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

/// What became of a flow that was to be installed.
enum Installed {
    /// It is in the table, by the tables of this generation.
    Yes,
    /// Another worker, or an earlier packet of the vector, was first: this is what it does to the packet.
    Before(Transform),
    /// Another flow has its translated tuple.
    Taken,
    /// There was no room, or no way back; the next packet tries again.
    No,
}

fn install(
    cx: &mut Context<'_>,
    setup: &Setup,
    translated: &FlowKey,
    transforms: &Transforms,
    meta: &Meta,
    claim: Claim,
    plan: Option<&Plan>,
) -> Installed {
    let Some(back) = transforms.back else { return Installed::No };
    let generation = cx.snap.generation;
    // A stale flow that is gone by now is installed anew.
    if setup.stale.is_some_and(|at| cx.flows.refresh(at, transforms.there, back, generation)) {
        return Installed::Yes;
    }
    let new = NewFlow {
        original: setup.original,
        original_transform: transforms.there,
        reply: translated.reversed(),
        reply_transform: back,
        generation,
        tcp_flags: meta.tcp_flags,
    };
    let inserted = match plan {
        Some(plan) => cx.flows.insert_planned(&new, claim, plan, cx.now),
        None => cx.flows.insert_by(&new, claim, cx.now),
    };
    match inserted {
        Inserted::New(_, evicted) => {
            cx.stats.flows_installed.add(1);
            for class in evicted.into_iter().flatten() {
                if let Some(counter) = cx.stats.flows_evicted.get(class as usize) {
                    counter.add(1);
                }
            }
            count_flow(cx.rules, setup.rules);
            Installed::Yes
        }
        Inserted::Exists(hit) if hit.generation == generation && !setup.reply => {
            Installed::Before(hit.transform)
        }
        // Of another generation, so its indices mean nothing here; but it is translated the same way.
        Inserted::Exists(hit) if gives(&hit.transform, translated) => Installed::Yes,
        Inserted::Exists(_) => Installed::No,
        Inserted::Conflict(_) => Installed::Taken,
        // The packet was decided by the same tables: it is forwarded, the next one tries again.
        Inserted::Full | Inserted::Busy | Inserted::MixedFamilies => {
            cx.stats.flows_bypassed.add(1);
            Installed::No
        }
    }
}

/// Whether a transform makes packets look like `key`.
fn gives(t: &Transform, key: &FlowKey) -> bool {
    (t.src, t.dst, t.sport, t.dport) == (key.src, key.dst, key.sport, key.dport)
}
