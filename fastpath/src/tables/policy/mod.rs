//! The policy classifier: which rule decides on the first packet of a flow.
//!
//! ```text
//!  peer address ─► peer class ─┐
//!  endpoint's group, direction ┴► row ─► (protocol, port) ─► allow or deny, rule id
//! ```
//!
//! * The **peer class** of an address stands for all selectors and address blocks in force on this node that
//!   hold it: one exact lookup for pods and nodes, longest-prefix match for everything else ([`peers`]).
//! * Endpoints that are under the same policies share a **group**, and a group has one [`Matrix`] for each
//!   direction it is isolated in.
//! * A matrix has one **row** for each set of rules that some peer class meets, and a row is a function of
//!   the port ([`ports`]) in which the union of the rules is already worked out.
//!
//! The cost of a lookup is one hash probe, one indexed row and one port lookup, whatever the number of rules, pods and address
//! blocks. Most rows say one range of ports and lie in the probed entry itself ([`Row`]). The `policy` node asks for a
//! whole vector of packets step by step ([`PolicyTable::fetch`], [`PolicyTable::ask_at`], [`PolicyTable::answer`]): each step
//! has the lines fetched that the next one reads, so that the misses of all packets overlap. Nothing here knows of labels or names: control compiles those away and keeps the table that says
//! what each [`RuleId`] means.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::packet::Ip;

pub mod blocks;
mod lines;
pub mod peers;
pub mod ports;
pub mod rows;
#[cfg(test)]
mod tests;

pub use blocks::BlockTable;
pub use peers::{ClassId, NodeIndex, PeerInfo, PeerTable, Spot};
pub use ports::{PortFn, PortMap};
pub use rows::{Matrix, Row, Rows};

/// Which side of a connection an endpoint is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Connections that others open to it.
    Ingress,
    /// Connections that it opens.
    Egress,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    /// The label used by tables and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

impl core::fmt::Display for Direction {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// What decided: an index for counters. Control knows what those from [`RuleId::FIRST`] on mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No policy isolates the endpoint in this direction.
    pub const NOT_ISOLATED: RuleId = RuleId(0);
    /// An endpoint may always reach itself.
    pub const SELF: RuleId = RuleId(1);
    /// An endpoint's own node may always reach it.
    pub const OWN_NODE: RuleId = RuleId(2);
    /// The group is not in the table: denied.
    pub const UNKNOWN_GROUP: RuleId = RuleId(3);
    /// The first id that control gives out.
    pub const FIRST: RuleId = RuleId(4);
    /// The largest id.
    pub const MAX: RuleId = RuleId((1 << 31) - 1);

    /// Its counter: rules beyond 65,534 share the last one.
    #[inline]
    #[must_use]
    pub fn counter(self) -> u16 {
        u16::try_from(self.0).unwrap_or(u16::MAX)
    }
}

/// The rules that decided on a flow, one for each of its ends on this node, as indices of
/// [`RuleCounters`](crate::stats::RuleCounters). 0 is "no rule": the end is not here or not isolated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Of the source's policies.
    pub egress: u16,
    /// Of the destination's policies.
    pub ingress: u16,
}

impl Rules {
    /// No rule at either end.
    pub const NONE: Rules = Rules { egress: 0, ingress: 0 };

    /// Both in one word.
    #[inline]
    #[must_use]
    pub fn bits(self) -> u32 {
        u32::from(self.egress) << 16 | u32::from(self.ingress)
    }

    /// From the word that [`Rules::bits`] gives.
    #[inline]
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        let [a, b, c, d] = bits.to_be_bytes();
        Self { egress: u16::from_be_bytes([a, b]), ingress: u16::from_be_bytes([c, d]) }
    }

    /// With the rule of one direction set.
    #[must_use]
    pub fn with(self, direction: Direction, rule: RuleId) -> Self {
        match direction {
            Direction::Egress => Self { egress: rule.counter(), ..self },
            Direction::Ingress => Self { ingress: rule.counter(), ..self },
        }
    }
}

/// Endpoints that are under the same policies; an index into [`PolicyTable::groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// The classifier's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// Whether the connection may be opened.
    pub allow: bool,
    /// What decided.
    pub rule: RuleId,
}

impl Verdict {
    const fn allow(rule: RuleId) -> Self {
        Verdict { allow: true, rule }
    }
}

/// A verdict in four bytes: the rule id, and the highest bit set for allow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell(u32);

impl Cell {
    const ALLOW: u32 = 1 << 31;

    /// Allowed by a rule. Ids above [`RuleId::MAX`] lose their highest bit.
    #[must_use]
    pub const fn allow(rule: RuleId) -> Self {
        Cell(rule.0 | Self::ALLOW)
    }

    /// Denied, with the id that stands for the isolation.
    #[must_use]
    pub const fn deny(rule: RuleId) -> Self {
        Cell(rule.0 & !Self::ALLOW)
    }

    /// As a [`Verdict`].
    #[inline]
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        Verdict { allow: self.0 & Self::ALLOW != 0, rule: RuleId(self.0 & !Self::ALLOW) }
    }
}

impl core::fmt::Debug for Cell {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let v = self.verdict();
        write!(f, "{}({})", if v.allow { "allow" } else { "deny" }, v.rule.0)
    }
}

/// One group of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The node its endpoints are on: its addresses are always let in.
    pub node: NodeIndex,
    /// Rules on connections to them; `None` when they are not isolated.
    pub ingress: Option<Arc<Matrix>>,
    /// Rules on connections from them; `None` when they are not isolated.
    pub egress: Option<Arc<Matrix>>,
}

impl Group {
    #[inline]
    fn matrix(&self, direction: Direction) -> Option<&Matrix> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

const UNKNOWN: Verdict = Verdict { allow: false, rule: RuleId::UNKNOWN_GROUP };

/// The whole classifier. Cloning it copies no table: parts that did not change are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyTable {
    /// Peer classes.
    pub peers: PeerTable,
    /// Groups by [`GroupId`].
    pub groups: Vec<Group>,
}

impl PolicyTable {
    /// Whether an endpoint of `group` with the address `own` may open a connection to `peer` (egress) or accept
    /// one from it (ingress).
    ///
    /// `proto` is the IP protocol number; `dport` the destination port after DNAT, host order, of no account
    /// for protocols other than TCP, UDP and SCTP. A group that is not in the table is denied everything but
    /// its own address.
    #[inline]
    #[must_use]
    pub fn evaluate(
        &self,
        group: GroupId,
        direction: Direction,
        own: Ip,
        peer: Ip,
        proto: u8,
        dport: u16,
    ) -> Verdict {
        self.answer(self.ask(group, direction, own, peer), group, direction, proto, dport)
    }

    /// The first half of [`PolicyTable::evaluate`]: who the peer is.
    #[inline]
    #[must_use]
    pub fn ask(&self, group: GroupId, direction: Direction, own: Ip, peer: Ip) -> Asked {
        self.ask_at(group, direction, own, peer, self.peers.spot(peer))
    }

    /// Starts to bring into the cache what [`PolicyTable::ask_at`] will read of a peer.
    #[inline]
    #[must_use]
    pub fn fetch(&self, peer: Ip) -> Spot {
        let spot = self.peers.spot(peer);
        self.peers.prefetch(peer, spot);
        spot
    }

    /// [`PolicyTable::ask`] of a peer whose spot is known; starts to bring into the cache what [`PolicyTable::answer`]
    /// will read.
    #[inline]
    #[must_use]
    pub fn ask_at(&self, group: GroupId, direction: Direction, own: Ip, peer: Ip, spot: Spot) -> Asked {
        if own == peer {
            return Asked::Decided(Verdict::allow(RuleId::SELF));
        }
        let Some(group) = self.group(group) else { return Asked::Decided(UNKNOWN) };
        let Some(matrix) = group.matrix(direction) else {
            return Asked::Decided(Verdict::allow(RuleId::NOT_ISOLATED));
        };
        let peer = self.peers.lookup_at(peer, spot);
        if direction == Direction::Ingress && peer.node == group.node && peer.node != NodeIndex::NONE {
            return Asked::Decided(Verdict::allow(RuleId::OWN_NODE));
        }
        matrix.prefetch(peer.class);
        Asked::Class(peer.class)
    }

    /// The second half: what the rules say, to the same `group` and `direction`.
    #[inline]
    #[must_use]
    pub fn answer(
        &self,
        asked: Asked,
        group: GroupId,
        direction: Direction,
        proto: u8,
        dport: u16,
    ) -> Verdict {
        match asked {
            Asked::Decided(verdict) => verdict,
            Asked::Class(class) => self
                .group(group)
                .and_then(|g| g.matrix(direction))
                .map_or(UNKNOWN, |matrix| matrix.evaluate(class, proto, dport)),
        }
    }

    #[inline]
    fn group(&self, group: GroupId) -> Option<&Group> {
        usize::try_from(group.0).ok().and_then(|g| self.groups.get(g))
    }

    /// Bytes of memory it holds; what is shared with other tables too, but each matrix once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let both = self.groups.iter().flat_map(|g| [&g.ingress, &g.egress]).flatten();
        let mut matrices: Vec<&Arc<Matrix>> = both.collect();
        matrices.sort_unstable_by_key(|m| Arc::as_ptr(m));
        matrices.dedup_by_key(|m| Arc::as_ptr(m));
        self.peers.bytes()
            + self.groups.capacity() * size_of::<Group>()
            + matrices.into_iter().map(|m| m.bytes()).sum::<usize>()
    }
}

/// What [`PolicyTable::ask`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// No rule is to be asked.
    Decided(Verdict),
    /// The rules decide on a peer of this class.
    Class(ClassId),
}
