//! `rewrite`: after `flow` and `route`. Applies the transform: TTL, addresses, ports, checksums.
//!
//! What it does to the common packets of known flows `flow` does itself, by [`forward`].
//!
//! TTL and hop limit go down by one (RFC 1812 5.3.1, RFC 8200 3); what does not fit the way's MTU goes back
//! as "too big" (RFC 1191, RFC 8201). Checksums follow by RFC 1624. Checksums a sender left to its device are
//! finished here, because AF_XDP does not carry the kernel's checksum state.
//! Limit: IPv4 packets without DF are not fragmented on the way; their sender gets "fragmentation needed" as well.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId, count_packets, count_rules};
use crate::packet::{Meta, NO_INDEX, flags, proto};
use crate::stats::RuleCounter;
use crate::tables::flow::Transform;
use crate::tables::policy::Rules;
use crate::wire::icmp::ErrorKind;
use crate::wire::{partial, translate};

/// How many packets ahead headers are fetched into the cache.
const AHEAD: usize = 8;

/// The node.
#[derive(Debug, Default)]
pub struct Rewrite;

/// Packets of successive flows that the same rules decided on, counted once.
#[derive(Debug, Default)]
pub(super) struct Counted {
    rules: Rules,
    packets: u64,
    bytes: u64,
}

impl Counted {
    #[inline]
    fn add(&mut self, counters: &[RuleCounter], rules: Rules, bytes: u16) {
        if rules != self.rules {
            self.flush(counters);
            *self = Self { rules, packets: 0, bytes: 0 };
        }
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }

    pub(super) fn flush(&self, counters: &[RuleCounter]) {
        count_packets(counters, self.rules, self.packets, self.bytes);
    }
}

/// All that is done to a common packet; `false`, and nothing changed, for one that takes more ([`Node::one`]).
#[inline(always)]
pub(super) fn forward(
    counters: &[RuleCounter],
    counted: &mut Counted,
    data: &mut [u8],
    meta: &mut Meta,
    t: &Transform,
) -> bool {
    let done = meta.l3_len <= t.mtu && translate::forward(data, meta, t);
    if done {
        meta.egress = t.egress;
        meta.tunnel = t.tunnel;
        meta.next_hop = t.next_hop;
        counted.add(counters, t.rules, meta.l3_len);
    }
    done
}

impl Node for Rewrite {
    const ID: NodeId = NodeId::Rewrite;

    #[inline]
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        let mut counted = Counted::default();
        input.iter().take(AHEAD).for_each(|i| cx.packets.prefetch(*i));
        for (n, &i) in input.iter().enumerate() {
            if let Some(ahead) = input.get(n + AHEAD) {
                cx.packets.prefetch(*ahead);
            }
            let (data, meta, t) = cx.packets.decided(i);
            if forward(cx.rules, &mut counted, data, meta, t) {
                let next = if t.tunnel == NO_INDEX { Next::Neighbor } else { Next::Encap };
                lists.push(cx, i, next);
            } else {
                let next = self.one(cx, i);
                lists.push(cx, i, next);
            }
        }
        counted.flush(cx.rules);
    }

    #[inline(never)]
    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let t = *cx.packets.transform(i);
        let (data, meta, key) = cx.packets.parts(i);
        if meta.l3_len > t.mtu && meta.ttl > 1 {
            return Next::Icmp(DropReason::MtuExceeded, ErrorKind::FragNeeded { mtu: t.mtu });
        }
        // RFC 9260 6.8: its CRC is over the whole packet, so that new ports cannot be reckoned in.
        let ports_change = (t.sport, t.dport) != (key.sport, key.dport);
        if meta.frag != 0 && key.proto == proto::SCTP && ports_change {
            return Next::Drop(DropReason::SctpFragment);
        }
        meta.egress = t.egress;
        meta.tunnel = t.tunnel;
        meta.next_hop = t.next_hop;
        // Before the packet is touched: an ICMP error quotes it as it came.
        if !translate::decrement_ttl(data, meta) {
            return Next::Icmp(DropReason::TtlExceeded, ErrorKind::TtlExceeded);
        }
        let finished = partial::finish(data, meta, key);
        // What is computed anew must not hide that it was wrong (RFC 9260 6.8).
        if meta.proto == proto::SCTP && ports_change && !finished && !translate::is_sctp_intact(data, meta) {
            return Next::Drop(DropReason::MalformedTransport);
        }
        if t.bits & (Transform::REWRITE_SRC | Transform::REWRITE_DST) != 0 && !meta.has(flags::ICMP_ERROR) {
            translate::apply(data, meta, &t);
        }
        count_rules(cx.rules, t.rules, cx.packets.meta(i).l3_len);
        let tunnelled = t.tunnel != NO_INDEX;
        if finished {
            cx.stats.checksums_finished.add(1);
        }
        if tunnelled { Next::Encap } else { Next::Neighbor }
    }
}
