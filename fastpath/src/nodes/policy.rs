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
use crate::graph::{Context, DropReason, Next, Node, NodeId, Setup, count_flow, count_rules};
use crate::packet::{FlowKey, Meta, proto};
use crate::snapshot::Snapshot;
use crate::tables::flow::Transform;
use crate::tables::policy::{Direction, RuleId, Rules};
use crate::wire::icmp::ErrorKind;
use crate::wire::tcp::control;

/// The node.
#[derive(Debug, Default)]
pub struct Policy;

impl Node for Policy {
    const ID: NodeId = NodeId::Policy;

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let (setup, meta) = (*cx.packets.setup(i), *cx.packets.meta(i));
        let either = cx.restarted && may_turn(cx.snap, &setup, &meta);
        let oriented = if either && likely_answers(&setup, &meta) { turned(&setup) } else { setup };
        let verdict = judge(cx.snap, &oriented.original, &oriented.translated);
        let (setup, verdict) = match verdict {
            Err(_) if either => {
                let other = turned(&oriented);
                match judge(cx.snap, &other.original, &other.translated) {
                    Ok(rules) => (other, Ok(rules)),
                    Err(_) => (oriented, verdict),
                }
            }
            _ => (oriented, verdict),
        };
        match verdict {
            Ok(rules) => {
                *cx.packets.setup_mut(i) = Setup { rules, ..setup };
                Next::Snat
            }
            Err(denied) => {
                if setup.stale.is_some() {
                    revoke(cx, &setup, denied);
                }
                count_rules(cx.rules, denied.rules, meta.l3_len);
                count_flow(cx.rules, denied.rules);
                refuse(cx.snap, denied.reason())
            }
        }
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
    let (src, dst, dport) = (original.src, translated.dst, translated.dport);
    let mut rules = Rules::NONE;
    for (direction, own, peer) in [(Direction::Egress, src, dst), (Direction::Ingress, dst, src)] {
        let Some(group) = snap.group(own) else { continue };
        let verdict = snap.policy.evaluate(group, direction, own, peer, original.proto, dport);
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
