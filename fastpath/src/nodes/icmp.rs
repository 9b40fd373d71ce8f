//! `icmp`: after every node that refuses, for packets whose sender must be told. Turns the packet into an ICMP
//! error about itself (RFC 792, RFC 4443) or a TCP reset (RFC 9293 3.10.7.1), and sends it back the way its sender is
//! reached. The packet is as it came: nothing of it has been translated yet.
//!
//! The source of an error is the node's address, that of a reset the address the segment was for. The rate is bounded
//! per worker (RFC 1812 4.3.2.8, RFC 4443 2.4 (f)), once for "too big", on which path MTU discovery depends, and
//! once for all others; one receiver gets an eighth of it. Errors about errors, multicast and later fragments are never sent.
#![forbid(unsafe_code)]

use super::source::addresses;
use crate::graph::{Answer, Context, DropReason, Next, Node, NodeId};
use crate::packet::{FlowKey, Meta, NO_INDEX, flags, proto};
use crate::tables::flow::{Millis, Transform};
use crate::wire::{eth, icmp, tcp};

/// Length of the Ethernet header.
const ETHERNET: u16 = 14;
/// Longest error: RFC 4443 2.4 (c), the IPv6 minimum MTU.
const LONGEST: usize = 1280;

/// Receivers are told apart by a hash with so many values.
const RECEIVERS: usize = 64;
/// The part of the rate that one receiver may have, ...
const SHARE: u64 = 8;
/// ... but at least so many a second.
const LEAST: u64 = 100;
/// What one message costs, in tokens.
const COST: u64 = 1000;

/// The node, with its token buckets.
#[derive(Debug)]
pub struct Icmp {
    /// "Too big", without which connections hang: nothing else uses their rate up.
    too_big: Limit,
    others: Limit,
    scratch: Box<[u8; LONGEST]>,
}

impl Default for Icmp {
    fn default() -> Self {
        Self { too_big: Limit::default(), others: Limit::default(), scratch: Box::new([0; LONGEST]) }
    }
}

/// How many messages may be sent: in all, and to one receiver, so that what one asks for is not taken from others.
#[derive(Debug)]
struct Limit {
    all: Bucket,
    receivers: Box<[Bucket; RECEIVERS]>,
}

impl Default for Limit {
    fn default() -> Self {
        Self { all: Bucket::FULL, receivers: Box::new([Bucket::FULL; RECEIVERS]) }
    }
}

impl Limit {
    /// Takes the tokens for a message to `receiver`, a hash, if there are any; `rate` is in messages a second.
    fn admit(&mut self, now: Millis, rate: u32, receiver: u64) -> bool {
        let rate = u64::from(rate);
        let share = (rate / SHARE).max(LEAST).min(rate);
        let at = usize::try_from(receiver % RECEIVERS as u64).unwrap_or(0);
        let Some(own) = self.receivers.get_mut(at) else { return false };
        let admitted = own.fill(now, share) && self.all.fill(now, rate);
        if admitted {
            own.tokens -= COST;
            self.all.tokens -= COST;
        }
        admitted
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u64,
    filled: Millis,
}

impl Bucket {
    /// Cut to one second's worth when it is first used.
    const FULL: Self = Self { tokens: u64::MAX, filled: Millis(0) };

    /// Adds what has come since the last time, `rate` thousandths each millisecond and at most one second's worth;
    /// whether there is enough for a message then.
    fn fill(&mut self, now: Millis, rate: u64) -> bool {
        let elapsed = u64::from(now.0.wrapping_sub(self.filled.0));
        self.filled = now;
        self.tokens = self.tokens.saturating_add(elapsed.saturating_mul(rate)).min(rate * COST);
        self.tokens >= COST
    }
}

impl Node for Icmp {
    const ID: NodeId = NodeId::Icmp;

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let meta = *cx.packets.meta(i);
        let Some(answer) = cx.packets.setup(i).answer else { return Next::Drop(DropReason::IcmpUnrelated) };
        let start = usize::from(meta.l3);
        let offending = cx.packets.data(i).get(start..start + usize::from(meta.l3_len)).unwrap_or_default();
        let Some((receiver, target)) = addresses(cx.packets.data(i), &meta) else {
            return Next::Drop(DropReason::MalformedTransport);
        };
        let reset =
            matches!(answer, Answer::Refuse(_)) && meta.proto == proto::TCP && !meta.has(flags::ICMP_ERROR);
        // A reset comes from the address asked, perhaps a pod's; an error from this node, which speaks to another one
        // without a tunnel, but answers what came through one by it.
        let by_tunnel = || cx.snap.tunnel_to(receiver).filter(|_| meta.has(flags::DECAPPED));
        let way = match by_tunnel() {
            Some(way) => Ok(way),
            None if reset => cx.snap.egress_from(target, receiver),
            None => cx.snap.egress(receiver),
        };
        // The offending packet is counted already; only an error held back for its rate has a reason of its own.
        let Ok(egress) = way else { return Next::Done };
        let icmp_proto = if receiver.is_v4() { proto::ICMP } else { proto::ICMPV6 };
        let built = match answer {
            Answer::Refuse(_) if reset => {
                let len = tcp::build_reset(offending, self.scratch.as_mut_slice());
                len.map(|len| (len, target, proto::TCP))
            }
            Answer::Refuse(kind) | Answer::Error(kind) => cx.snap.icmp_source(receiver).and_then(|source| {
                let len = icmp::build_error(offending, kind, source, self.scratch.as_mut_slice())?;
                Some((len, source, icmp_proto))
            }),
        };
        let Some((len, source, made)) = built else { return Next::Done };
        let too_big = matches!(answer, Answer::Error(icmp::ErrorKind::FragNeeded { .. }));
        let limit = if too_big { &mut self.too_big } else { &mut self.others };
        let to = FlowKey { src: receiver, dst: receiver, ..FlowKey::EMPTY }.hash(cx.flows.seed());
        if !limit.admit(cx.now, cx.snap.settings.icmp_rate, to) {
            return Next::Drop(DropReason::IcmpRateLimited);
        }
        let Some(frame) = cx.packets.frame_mut(i) else { return Next::Done };
        let Some(error) = self.scratch.get(..len) else { return Next::Done };
        if !frame.fill(error) || !frame.push(ETHERNET) {
            return Next::Drop(DropReason::NoHeadroom);
        }
        let ethertype = if receiver.is_v4() { eth::ethertype::IPV4 } else { eth::ethertype::IPV6 };
        eth::Packet::new_unchecked(frame.data_mut()).set_ethertype(ethertype);

        // As it was made: a tunnel copies it out.
        let tos = if made == proto::ICMP { icmp::INTERNETWORK_CONTROL } else { 0 };
        let key = FlowKey { src: source, dst: receiver, sport: 0, dport: 0, proto: made };
        *cx.packets.meta_mut(i) = Meta {
            hash: key.hash(cx.flows.seed()),
            ingress: meta.ingress,
            egress: egress.port,
            l3: ETHERNET,
            l3_len: u16::try_from(len).unwrap_or(0),
            tunnel: egress.tunnel,
            next_hop: egress.next_hop,
            proto: made,
            tos,
            flags: flags::DF | (meta.flags & flags::V6),
            ..Meta::default()
        };
        // `neighbor` may have to ask for it.
        *cx.packets.transform_mut(i) = Transform::identity(&key);
        cx.stats.icmp_errors.add(1);
        if egress.tunnel == NO_INDEX { Next::Neighbor } else { Next::Encap }
    }
}
