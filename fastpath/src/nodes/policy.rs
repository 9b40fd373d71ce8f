//! `policy`: after `service`. Asks the policies of both ends of a new flow, and of flows of an older generation.
//!
//! Policies see the backend and its port, and the source before it is translated (NetworkPolicy v1). A flow is asked
//! about as its first packet went, so that replies of an allowed connection are always allowed. A flow whose
//! permission was taken away stays in the table as denied until it is idle: its replies cannot open it again, and it
//! goes on if the policy is taken back.
//!
//! A TCP segment in the middle of a connection is asked about as it goes. For [`PICKUP_WINDOW`](crate::graph::Graph::PICKUP_WINDOW) after the engine's start it
//! may be of either direction: it is taken to go to the lower port first, and the other way if policies do not allow
//! that. Later a segment that claims to answer an unknown connection would be a way around isolation.
#![forbid(unsafe_code)]

use super::snat::leaves;
use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId, Setup, VECTOR, count_flow, count_rules};
use crate::packet::{FlowKey, Ip, Meta, proto};
use crate::snapshot::Snapshot;
use crate::tables::flow::Transform;
use crate::tables::policy::{Asked, Direction, GroupId, RuleId, Rules, Spot};
use crate::wire::icmp::ErrorKind;
use crate::wire::tcp::control;

/// The node, with room for what is known of each packet of a vector between its steps.
#[derive(Debug)]
pub struct Policy {
    expected: Vec<Ends<Spot>>,
    asked: Vec<Ends<Asked>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { expected: Vec::with_capacity(VECTOR), asked: Vec::with_capacity(VECTOR) }
    }
}

impl Node for Policy {
    const ID: NodeId = NodeId::Policy;

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let setup = cx.packets.setup(i);
        let verdict = judge(cx.snap, &setup.original, &setup.translated);
        conclude(cx, i, verdict)
    }

    /// Step by step: what one packet waits for from memory, all do at once.
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        self.expected.clear();
        self.asked.clear();
        for &i in input {
            let setup = cx.packets.setup(i);
            self.expected.push(Ends::fetch(cx.snap, setup.original.src, setup.translated.dst));
        }
        for (&i, ends) in input.iter().zip(&self.expected) {
            let setup = cx.packets.setup(i);
            self.asked.push(ends.ask(cx.snap, setup.original.src, setup.translated.dst));
        }
        for (&i, ends) in input.iter().zip(&self.asked) {
            let setup = cx.packets.setup(i);
            let verdict = ends.answer(cx.snap, setup.original.proto, setup.translated.dport);
            let next = conclude(cx, i, verdict);
            lists.push(cx, i, next);
        }
    }
}

/// What becomes of a packet on which policies, asked as it goes, gave this verdict.
#[inline]
fn conclude(cx: &mut Context<'_>, i: u16, verdict: Result<Rules, Denied>) -> Next {
    if cx.restarted {
        let (setup, meta) = (*cx.packets.setup(i), *cx.packets.meta(i));
        if may_turn(cx.snap, &setup, &meta) {
            let (setup, verdict) = pick_up(cx.snap, setup, &meta);
            if verdict.is_ok() {
                *cx.packets.setup_mut(i) = setup;
            }
            return settle(cx, i, verdict);
        }
    }
    settle(cx, i, verdict)
}

/// Takes over the verdict on a packet.
#[inline]
fn settle(cx: &mut Context<'_>, i: u16, verdict: Result<Rules, Denied>) -> Next {
    match verdict {
        Ok(rules) => {
            cx.packets.setup_mut(i).rules = rules;
            Next::Snat
        }
        Err(denied) => {
            let (setup, len) = (*cx.packets.setup(i), cx.packets.meta(i).l3_len);
            if setup.stale.is_some() {
                revoke(cx, &setup, denied);
            }
            count_rules(cx.rules, denied.rules, len);
            count_flow(cx.rules, denied.rules);
            refuse(cx.snap, denied.reason())
        }
    }
}

/// A segment that either end's connection may be, as one of the direction that policies allow.
fn pick_up(snap: &Snapshot, setup: Setup, meta: &Meta) -> (Setup, Result<Rules, Denied>) {
    let oriented = if likely_answers(&setup, meta) { turned(&setup) } else { setup };
    let verdict = judge(snap, &oriented.original, &oriented.translated);
    if verdict.is_err() {
        let other = turned(&oriented);
        if let Ok(rules) = judge(snap, &other.original, &other.translated) {
            return (other, Ok(rules));
        }
    }
    (oriented, verdict)
}

/// What is known of both ends of a connection before the rules are asked; `None` for an end that is no pod here.
#[derive(Clone, Copy, Debug)]
struct Ends<T> {
    egress: Option<(GroupId, T)>,
    ingress: Option<(GroupId, T)>,
}

impl Ends<Spot> {
    #[inline]
    fn fetch(snap: &Snapshot, src: Ip, dst: Ip) -> Self {
        let end = |own, peer| Some((snap.group(own)?, snap.policy.fetch(peer)));
        Self { egress: end(src, dst), ingress: end(dst, src) }
    }

    #[inline]
    fn ask(&self, snap: &Snapshot, src: Ip, dst: Ip) -> Ends<Asked> {
        let ask = |end: Option<(GroupId, Spot)>, direction, own, peer| {
            let (group, spot) = end?;
            Some((group, snap.policy.ask_at(group, direction, own, peer, spot)))
        };
        Ends {
            egress: ask(self.egress, Direction::Egress, src, dst),
            ingress: ask(self.ingress, Direction::Ingress, dst, src),
        }
    }
}

impl Ends<Asked> {
    #[inline]
    fn answer(&self, snap: &Snapshot, proto: u8, dport: u16) -> Result<Rules, Denied> {
        let mut rules = Rules::NONE;
        for (direction, end) in [(Direction::Egress, self.egress), (Direction::Ingress, self.ingress)] {
            let Some((group, asked)) = end else { continue };
            let verdict = snap.policy.answer(asked, group, direction, proto, dport);
            if !verdict.allow {
                return Err(Denied { direction, rules: Rules::NONE.with(direction, verdict.rule) });
            }
            // The others are no rules: nothing is counted for them.
            if verdict.rule >= RuleId::FIRST {
                rules = rules.with(direction, verdict.rule);
            }
        }
        Ok(rules)
    }
}

/// The rule that denies, in its direction.
#[derive(Clone, Copy, Debug)]
struct Denied {
    direction: Direction,
    rules: Rules,
}

impl Denied {
    fn reason(self) -> DropReason {
        match self.direction {
            Direction::Egress => DropReason::PolicyDeniedEgress,
            Direction::Ingress => DropReason::PolicyDeniedIngress,
        }
    }
}

/// What becomes of a denied packet, by configuration.
pub(super) fn refuse(snap: &Snapshot, reason: DropReason) -> Next {
    if snap.settings.reject_denied {
        Next::Refuse(reason, ErrorKind::AdminProhibited)
    } else {
        Next::Drop(reason)
    }
}

/// The rules that allow a connection, or the one that denies it.
fn judge(snap: &Snapshot, original: &FlowKey, translated: &FlowKey) -> Result<Rules, Denied> {
    let (src, dst) = (original.src, translated.dst);
    Ends::fetch(snap, src, dst).ask(snap, src, dst).answer(snap, original.proto, translated.dport)
}

/// Whether the packet is of a connection whose beginning was not seen, and that either end may have opened.
fn may_turn(snap: &Snapshot, setup: &Setup, meta: &Meta) -> bool {
    let key = &setup.original;
    setup.stale.is_none()
        && meta.proto == proto::TCP
        && meta.tcp_flags & (control::SYN | control::ACK) != control::SYN
        && *key == setup.translated
        // Such a connection of a pod's is masked, and found by its mask: the pod's own address never was in it.
        && !leaves(snap, key.src, key.dst)
        && !leaves(snap, key.dst, key.src)
}

/// Whether a segment in the middle of a connection most likely goes to the end that opened it.
fn likely_answers(setup: &Setup, meta: &Meta) -> bool {
    meta.tcp_flags & control::SYN != 0 || setup.original.sport < setup.original.dport
}

/// The same packet as one of the other direction's flow. There is no translation.
fn turned(setup: &Setup) -> Setup {
    let original = setup.translated.reversed();
    Setup { original, translated: original, reply: !setup.reply, ..*setup }
}

/// Leaves the flow in the table as denied, by the tables of this generation.
fn revoke(cx: &mut Context<'_>, setup: &Setup, denied: Denied) {
    let deny =
        |key: &FlowKey| Transform { rules: denied.rules, bits: Transform::DENY, ..Transform::identity(key) };
    let (there, back) = (deny(&setup.translated), deny(&setup.original.reversed()));
    if let Some(at) = setup.stale {
        // Gone, or busy with another worker's packet: then the next packet is asked about anew.
        let _ = cx.flows.refresh(at, there, back, cx.snap.generation);
    }
}

/// The reason by which packets of a flow that was revoked are dropped.
pub(super) fn revoked(rules: Rules) -> DropReason {
    if rules.egress == 0 { DropReason::PolicyDeniedIngress } else { DropReason::PolicyDeniedEgress }
}
