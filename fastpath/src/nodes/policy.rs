//! `policy`: after `service`. Asks the policies of both ends of a new flow, and of flows of an older generation.
//!
//! Policies see the backend and its port, and the source before it is translated (NetworkPolicy v1). A flow is asked
//! about as its first packet went, so that replies of an allowed connection are always allowed. A flow whose
//! permission was taken away stays in the table as denied until it is idle: its replies cannot open it again, and it
//! goes on if the policy is taken back.
//!
//! A TCP segment in the middle of a connection may be of either direction. It is taken to go to the lower port
//! first, and the other way if policies do not allow that.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next, Node, NodeId, Setup, count_flow, count_rules};
use crate::packet::{FlowKey, Meta, flags, proto};
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
        // It follows a flow, which has been asked about.
        if meta.has(flags::ICMP_ERROR) {
            return Next::Snat;
        }
        let oriented = orient(cx.snap, &setup, &meta);
        let other = Setup { original: oriented.translated.reversed(), ..oriented };
        let other = Setup { translated: other.original, reply: !oriented.reply, ..other };
        let verdict = judge(cx.snap, &oriented.original, &oriented.translated);
        let (setup, verdict) = match verdict {
            Err(_) if is_pickup(&setup, &meta) => match judge(cx.snap, &other.original, &other.translated) {
                Ok(rules) => (other, Ok(rules)),
                Err(_) => (oriented, verdict),
            },
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

/// Whether the packet is of a connection whose beginning was not seen.
fn is_pickup(setup: &Setup, meta: &Meta) -> bool {
    setup.stale.is_none()
        && meta.proto == proto::TCP
        && meta.tcp_flags & (control::SYN | control::ACK) != control::SYN
        && setup.original == setup.translated
}

/// The direction a new flow most likely has.
fn orient(snap: &Snapshot, setup: &Setup, meta: &Meta) -> Setup {
    let key = setup.original;
    // From a pod to the outside nearly all connections are the pod's, and only as its own they are translated.
    let answers = meta.tcp_flags & control::SYN != 0
        || key.sport < key.dport && !super::snat::leaves(snap, key.src, key.dst);
    if is_pickup(setup, meta) && answers {
        let original = key.reversed();
        Setup { original, translated: original, reply: true, ..*setup }
    } else {
        *setup
    }
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
