//! The vector of packets and the order in which nodes see it.
//!
//! A node takes packet numbers from its own list and puts each on the list of the next node ([`Next`]).
//! The order stands in [`Graph::run`] and nowhere else.
#![forbid(unsafe_code)]

mod drop;
mod packets;

pub use drop::DropReason;
pub use packets::{Answer, Lookup, Packets, Setup, Source, VECTOR};

use core::mem;
use core::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::io::Frame;
use crate::nodes;
use crate::packet::{Ip, PortId};
use crate::snapshot::Snapshot;
use crate::stats::{RuleCounter, WorkerStats};
use crate::tables::flow::{FlowTable, Millis};
use crate::tables::policy::Rules;
use crate::wire::icmp::ErrorKind;

macro_rules! node_ids {
    ($($variant:ident = $name:literal,)+) => {
        /// The nodes, as counters and `show runtime` name them, in graph order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is documented in its own file under nodes/")]
        #[repr(u8)]
        pub enum NodeId { $($variant,)+ }

        impl NodeId {
            /// All nodes, in graph order.
            pub const ALL: &'static [NodeId] = &[$(NodeId::$variant,)+];

            /// Name in `show runtime`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(NodeId::$variant => $name,)+ }
            }
        }
    };
}

node_ids! {
    Rx = "rx",
    Parse = "parse",
    Decap = "decap",
    Source = "source",
    Fragment = "fragment",
    Flow = "flow",
    Service = "service",
    Policy = "policy",
    Snat = "snat",
    Route = "route",
    Rewrite = "rewrite",
    Punt = "punt",
    Icmp = "icmp",
    Encap = "encap",
    Neighbor = "neighbor",
    Tx = "tx",
}

/// Where a packet goes after a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// From the uplink: may carry a tunnel.
    Decap,
    /// Check the source address.
    Source,
    /// A fragment: find the flow of its datagram.
    Fragment,
    /// Look the flow up.
    Flow,
    /// No flow, or one of an older generation: choose a backend, if it is for a service.
    Service,
    /// Ask the policies of both ends.
    Policy,
    /// Decide what the source becomes.
    Snat,
    /// Decide where both directions go.
    Route,
    /// Apply the flow's transform.
    Rewrite,
    /// ARP, NDP, host-bound.
    Punt,
    /// Drop the packet and tell its sender why.
    Icmp(DropReason, ErrorKind),
    /// Drop the packet and refuse its sender: a reset to TCP, the ICMP error to other protocols.
    Refuse(DropReason, ErrorKind),
    /// Into a tunnel.
    Encap,
    /// Fill in the link-layer addresses.
    Neighbor,
    /// Complete: send by `Meta::egress`.
    Tx,
    /// Drop the packet.
    Drop(DropReason),
    /// The packet ends here and is counted already.
    Done,
}

/// What a worker asks of the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A destination on an uplink's link whose MAC address is not known.
    Resolve {
        /// Port of the uplink.
        port: PortId,
        /// The destination.
        addr: Ip,
    },
}

/// What nodes work with during one vector.
#[derive(Debug)]
pub struct Context<'a> {
    /// The tables in force.
    pub snap: &'a Snapshot,
    /// The flow table.
    pub flows: &'a FlowTable,
    /// Now.
    pub now: Millis,
    /// The engine started less than [`Graph::PICKUP_WINDOW`] ago: what it sees may be older than it.
    pub restarted: bool,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
    /// The worker's counters of policy rules.
    pub rules: &'a [RuleCounter],
    /// What the control thread is asked to do.
    pub events: &'a ArrayQueue<Event>,
    /// The packets.
    pub packets: &'a mut Packets,
}

/// A graph node: one packet at a time by `one`, unless it overrides `run` to work on the vector.
pub trait Node {
    /// Its name and counters.
    const ID: NodeId;

    /// Whether there is something to do without a packet on its list.
    #[inline]
    fn is_due(&self, _now: Millis) -> bool {
        false
    }

    /// The logic on one packet.
    fn one(&mut self, cx: &mut Context<'_>, packet: u16) -> Next;

    /// The loop and bookkeeping.
    #[inline]
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        for &packet in input {
            let next = self.one(cx, packet);
            lists.push(cx, packet, next);
        }
    }
}

/// Packet numbers that wait for a node. It has room for the whole vector, and a packet waits for one node at a time:
/// adding one needs no check.
#[derive(Debug)]
struct List {
    numbers: Box<[u16; VECTOR]>,
    len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { numbers: Box::new([0; VECTOR]), len: 0 }
    }
}

impl List {
    #[inline]
    fn push(&mut self, packet: u16) {
        self.numbers[self.len % VECTOR] = packet;
        self.len += 1;
    }

    #[inline]
    fn as_slice(&self) -> &[u16] {
        self.numbers.get(..self.len).unwrap_or(&self.numbers[..])
    }
}

/// The packet numbers waiting for each node.
#[derive(Debug, Default)]
pub struct Lists {
    parse: List,
    decap: List,
    source: List,
    fragment: List,
    flow: List,
    service: List,
    policy: List,
    snat: List,
    route: List,
    rewrite: List,
    punt: List,
    icmp: List,
    encap: List,
    neighbor: List,
    tx: List,
}

impl Lists {
    /// Puts a packet on the list that `next` names; drops are counted here.
    ///
    /// Where a node's answer is known, only the branch that it takes is left.
    #[inline(always)]
    pub fn push(&mut self, cx: &mut Context<'_>, packet: u16, next: Next) {
        match next {
            Next::Decap => self.decap.push(packet),
            Next::Source => self.source.push(packet),
            Next::Fragment => self.fragment.push(packet),
            Next::Flow => self.flow.push(packet),
            Next::Service => self.service.push(packet),
            Next::Policy => self.policy.push(packet),
            Next::Snat => self.snat.push(packet),
            Next::Route => self.route.push(packet),
            Next::Rewrite => self.rewrite.push(packet),
            Next::Punt => self.punt.push(packet),
            Next::Icmp(reason, kind) => self.answer(cx, packet, reason, Answer::Error(kind)),
            Next::Refuse(reason, kind) => self.answer(cx, packet, reason, Answer::Refuse(kind)),
            Next::Encap => self.encap.push(packet),
            Next::Neighbor => self.neighbor.push(packet),
            Next::Tx => self.tx.push(packet),
            Next::Drop(reason) => count_drop(cx.stats, reason),
            Next::Done => {}
        }
    }

    /// [`Next::Rewrite`] for a packet whose transform is there: needs no context.
    #[inline]
    pub fn push_rewrite(&mut self, packet: u16) {
        self.rewrite.push(packet);
    }

    /// [`Next::Encap`], likewise.
    #[inline]
    pub fn push_encap(&mut self, packet: u16) {
        self.encap.push(packet);
    }

    /// [`Next::Neighbor`], likewise.
    #[inline]
    pub fn push_neighbor(&mut self, packet: u16) {
        self.neighbor.push(packet);
    }

    /// [`Next::Tx`], likewise.
    #[inline]
    pub fn push_tx(&mut self, packet: u16) {
        self.tx.push(packet);
    }

    #[cold]
    fn answer(&mut self, cx: &mut Context<'_>, packet: u16, reason: DropReason, answer: Answer) {
        count_drop(cx.stats, reason);
        cx.packets.setup_mut(packet).answer = Some(answer);
        self.icmp.push(packet);
    }
}

/// Counts one dropped packet.
#[inline]
pub fn count_drop(stats: &WorkerStats, reason: DropReason) {
    if let Some(c) = stats.drops.get(reason as usize) {
        c.add(1);
    }
}

/// Counts one packet of `bytes` for the rules that decided on it.
#[inline]
pub fn count_rules(counters: &[RuleCounter], rules: Rules, bytes: u16) {
    if rules != Rules::NONE {
        count_packets(counters, rules, 1, bytes.into());
    }
}

/// Counts packets of `bytes` in all for the rules that decided on them.
pub fn count_packets(counters: &[RuleCounter], rules: Rules, packets: u64, bytes: u64) {
    for c in deciders(counters, rules) {
        c.packets.add(packets);
        c.bytes.add(bytes);
    }
}

/// Counts one new flow for the rules that decided on it.
pub fn count_flow(counters: &[RuleCounter], rules: Rules) {
    deciders(counters, rules).for_each(|c| c.flows.add(1));
}

fn deciders(counters: &[RuleCounter], rules: Rules) -> impl Iterator<Item = &RuleCounter> {
    let ids = [rules.egress, rules.ingress].into_iter().filter(|rule| *rule != 0);
    ids.filter_map(|rule| counters.get(usize::from(rule)))
}

/// One worker's graph: every node is a plain field.
#[derive(Debug, Default)]
pub struct Graph {
    lists: Lists,
    /// Of the node at work, whose own list may grow meanwhile.
    input: List,
    parse: nodes::Parse,
    decap: nodes::Decap,
    source: nodes::Source,
    fragment: nodes::Fragment,
    flow: nodes::Flow,
    service: nodes::Service,
    policy: nodes::Policy,
    snat: nodes::Snat,
    route: nodes::Route,
    rewrite: nodes::Rewrite,
    punt: nodes::Punt,
    icmp: nodes::Icmp,
    encap: nodes::Encap,
    neighbor: nodes::Neighbor,
}

impl Graph {
    /// How long after its start the engine takes a segment in the middle of a connection for one of either direction.
    ///
    /// Long enough for connections that a restart found, also those that say something only every few minutes; bounded,
    /// because until then isolation in one direction does not hold against a sender that makes up such segments.
    pub const PICKUP_WINDOW: Duration = Duration::from_secs(600);

    /// Runs all packets of the vector through the graph; `clock` tells the time of each node.
    ///
    /// Afterwards [`Graph::sent`] gives the packets to transmit, and frames of dropped packets lie in
    /// the vector still, to be given back to the pool.
    pub fn run(&mut self, clock: &quanta::Clock, cx: &mut Context<'_>) {
        let (lists, input) = (&mut self.lists, &mut self.input);
        lists.tx.len = 0;
        cx.packets.numbers().for_each(|packet| lists.parse.push(packet));

        step(clock, cx, lists, input, |l| &mut l.parse, &mut self.parse);
        step(clock, cx, lists, input, |l| &mut l.decap, &mut self.decap);
        step(clock, cx, lists, input, |l| &mut l.source, &mut self.source);
        step(clock, cx, lists, input, |l| &mut l.fragment, &mut self.fragment);
        step(clock, cx, lists, input, |l| &mut l.flow, &mut self.flow);
        step(clock, cx, lists, input, |l| &mut l.service, &mut self.service);
        step(clock, cx, lists, input, |l| &mut l.policy, &mut self.policy);
        step(clock, cx, lists, input, |l| &mut l.snat, &mut self.snat);
        step(clock, cx, lists, input, |l| &mut l.route, &mut self.route);
        step(clock, cx, lists, input, |l| &mut l.rewrite, &mut self.rewrite);
        step(clock, cx, lists, input, |l| &mut l.punt, &mut self.punt);
        step(clock, cx, lists, input, |l| &mut l.icmp, &mut self.icmp);
        step(clock, cx, lists, input, |l| &mut l.encap, &mut self.encap);
        step(clock, cx, lists, input, |l| &mut l.neighbor, &mut self.neighbor);
    }

    /// Packets that the graph has held back and takes up again in the next vectors that have room for them.
    #[must_use]
    pub fn backlog(&self, now: Millis) -> usize {
        self.fragment.backlog(now)
    }

    /// Milliseconds until the graph has something to do without a packet; `None` is never.
    #[must_use]
    pub fn due(&self, now: Millis) -> Option<u32> {
        self.fragment.due(now)
    }

    /// Gives all frames that the graph holds to `put`.
    pub fn release(&mut self, put: impl FnMut(Frame)) {
        self.fragment.release(put);
    }

    /// Numbers of the packets to transmit after [`Graph::run`], each by its `Meta::egress`.
    #[must_use]
    pub fn sent(&self) -> &[u16] {
        self.lists.tx.as_slice()
    }
}

/// Runs one node on its list, if there is anything to do, and counts what it took.
#[inline]
fn step<N: Node>(
    clock: &quanta::Clock,
    cx: &mut Context<'_>,
    lists: &mut Lists,
    input: &mut List,
    list: fn(&mut Lists) -> &mut List,
    node: &mut N,
) {
    let waiting = list(lists);
    if waiting.len > 0 || node.is_due(cx.now) {
        input.len = 0;
        mem::swap(waiting, input);
        let packets = input.len as u64;
        let start = clock.raw();
        node.run(cx, input.as_slice(), lists);
        record(cx.stats, N::ID, packets, clock.raw().wrapping_sub(start));
    }
}

/// Adds one vector to a node's runtime counters.
#[inline]
pub fn record(stats: &WorkerStats, id: NodeId, packets: u64, clocks: u64) {
    if let Some(n) = stats.nodes.get(id as usize) {
        n.vectors.add(1);
        n.packets.add(packets);
        n.clocks.add(clocks);
    }
}
