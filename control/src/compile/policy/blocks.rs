//! Address blocks: for every prefix that a rule names, the peer sets that hold its addresses.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use fastpath::packet::Ip;
use fastpath::tables::Prefix;
use fastpath::tables::policy::ClassId;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use ipnet::IpNet;

use super::classes::PeerSetId;
use super::few::Few;
use crate::model::IpBlock;

/// The prefixes of all blocks in force. The longest one that holds an address says everything of it.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// By family, first address, then length: a prefix comes after those that hold it.
    edges: BTreeMap<Place, Edge>,
    /// How many prefixes there are of each family and length.
    lengths: BTreeMap<(bool, u8), usize>,
    /// The peer set of each block.
    owners: HashMap<BlockId, PeerSetId>,
    /// The blocks of each peer set.
    of_set: HashMap<PeerSetId, Vec<(BlockId, IpBlock)>>,
    next: BlockId,
    /// Blocks of one address and nothing excepted, apart from the others: nothing can lie in them. Those of a set go all at once.
    hosts: HashMap<Ip, Few<PeerSetId>>,
    /// Their addresses in order, as they were when last asked for; empty when others came since.
    sorted_hosts: Vec<Ip>,
    /// Addresses that such blocks came to or went from.
    dirty_hosts: Vec<Ip>,
    /// Prefixes that blocks came to or went from since [`Blocks::settle`].
    dirty: BTreeSet<Place>,
}

type Place = (bool, u128, u8);
type BlockId = u64;

/// A prefix where blocks begin, or where they except something.
#[derive(Debug)]
pub(super) struct Edge {
    opens: Vec<BlockId>,
    closes: Vec<BlockId>,
    /// Blocks that hold it.
    active: Vec<BlockId>,
    /// Their peer sets, sorted.
    pub(super) sets: Vec<PeerSetId>,
    /// The class of its addresses, once they have one.
    pub(super) class: ClassId,
}

/// What [`Blocks::settle`] has worked out anew: a prefix with all in it.
#[derive(Debug)]
pub(super) struct Region {
    /// The prefix.
    pub(super) prefix: Prefix,
    /// Prefixes in it that are gone, and the class of each, which is to be released.
    pub(super) gone: Vec<(Prefix, ClassId)>,
}

impl Blocks {
    /// Adds a block of a peer set.
    pub(super) fn add(&mut self, set: PeerSetId, block: &IpBlock) {
        if block.except.iter().any(|e| e.contains(&block.cidr)) {
            return;
        }
        if let Some(ip) = host_of(block) {
            return self.add_host(set, ip);
        }
        self.next += 1;
        let id = self.next;
        self.owners.insert(id, set);
        self.of_set.entry(set).or_default().push((id, block.clone()));
        if let Some(edge) = self.edge(&block.cidr) {
            edge.opens.push(id);
        }
        for except in &block.except {
            if let Some(edge) = self.edge(except)
                && !edge.closes.contains(&id)
            {
                edge.closes.push(id);
            }
        }
    }

    /// Removes a block of a peer set that [`Blocks::add`] was told of. All blocks of a set go together.
    pub(super) fn remove(&mut self, set: PeerSetId, block: &IpBlock) {
        if let Some(ip) = host_of(block) {
            return self.remove_host(set, ip);
        }
        for (id, block) in self.of_set.remove(&set).unwrap_or_default() {
            self.owners.remove(&id);
            for net in std::iter::once(&block.cidr).chain(&block.except) {
                if let Some(edge) = self.edge(net) {
                    edge.opens.retain(|b| *b != id);
                    edge.closes.retain(|b| *b != id);
                }
            }
        }
    }

    /// Adds the block of one address.
    pub(super) fn add_host(&mut self, set: PeerSetId, ip: Ip) {
        self.hosts.entry(ip).or_default().push(set);
        self.sorted_hosts.clear();
        self.dirty_hosts.push(ip);
    }

    /// Removes a block of one address that a set was added with.
    pub(super) fn remove_host(&mut self, set: PeerSetId, ip: Ip) {
        if let Entry::Occupied(mut sets) = self.hosts.entry(ip) {
            sets.get_mut().retain(|s| *s != set);
            if sets.get().is_empty() {
                sets.remove();
                self.sorted_hosts.clear();
            }
        }
        self.dirty_hosts.push(ip);
    }

    /// The edge of a prefix, made if there is none, and to be looked at.
    fn edge(&mut self, net: &IpNet) -> Option<&mut Edge> {
        let place = place(Prefix::new(net.addr(), net.prefix_len())?);
        self.dirty.insert(place);
        let lengths = &mut self.lengths;
        Some(self.edges.entry(place).or_insert_with(|| {
            *lengths.entry((place.0, place.2)).or_default() += 1;
            Edge {
                opens: Vec::new(),
                closes: Vec::new(),
                active: Vec::new(),
                sets: Vec::new(),
                class: ClassId::OTHER,
            }
        }))
    }

    /// Works out what changed: which blocks hold each prefix that blocks came to or went from, and all prefixes in those.
    pub(super) fn settle(&mut self) -> Vec<Region> {
        let mut regions: Vec<Region> = Vec::new();
        for place in std::mem::take(&mut self.dirty) {
            let Some(prefix) = prefix(place) else { continue };
            if regions.last().is_some_and(|r| r.prefix.contains(prefix.addr())) {
                continue;
            }
            let around = self.parent(prefix).map(|(_, e)| e.active.clone()).unwrap_or_default();
            let gone = self.work_out(prefix, around);
            regions.push(Region { prefix, gone });
        }
        regions
    }

    /// Works out every prefix in `region`, which the blocks `around` hold but for what its own edges say.
    fn work_out(&mut self, region: Prefix, around: Vec<BlockId>) -> Vec<(Prefix, ClassId)> {
        let mut stack: Vec<(Prefix, Vec<BlockId>)> = Vec::new();
        let (mut gone, mut empty) = (Vec::new(), Vec::new());
        for (at, edge) in self.edges.range_mut(range(region)) {
            let Some(prefix) = prefix(*at) else { continue };
            if edge.opens.is_empty() && edge.closes.is_empty() {
                empty.push(*at);
                gone.push((prefix, edge.class));
                continue;
            }
            while stack.last().is_some_and(|(p, _)| !p.contains(prefix.addr())) {
                stack.pop();
            }
            let outer = stack.last().map_or(&around, |(_, active)| active);
            let mut active: Vec<BlockId> =
                outer.iter().filter(|id| !edge.closes.contains(id)).copied().collect();
            active.extend(edge.opens.iter().filter(|id| !edge.closes.contains(id)));
            edge.sets = active.iter().filter_map(|id| self.owners.get(id).copied()).collect();
            edge.sets.sort_unstable();
            edge.sets.dedup();
            if !is_host(prefix) {
                stack.push((prefix, active.clone()));
            }
            edge.active = active;
        }
        for at in empty {
            self.edges.remove(&at);
            if let Some(count) = self.lengths.get_mut(&(at.0, at.2)) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&(at.0, at.2));
                }
            }
        }
        gone
    }

    /// The longest prefix around `prefix`, itself not counted.
    pub(super) fn parent(&self, prefix: Prefix) -> Option<(Prefix, &Edge)> {
        let (v4, bits, len) = place(prefix);
        self.longest(v4, bits, len)
    }

    /// The longest prefix shorter than `len` that holds an address.
    fn longest(&self, v4: bool, bits: u128, len: u8) -> Option<(Prefix, &Edge)> {
        self.lengths.range((v4, 0)..(v4, len)).rev().find_map(|((_, len), _)| {
            let prefix = Prefix::new(Ip::from_bits(bits).into(), *len)?;
            self.edges.get(&place(prefix)).map(|edge| (prefix, edge))
        })
    }

    /// The addresses that blocks of one address came to or went from since the last call.
    pub(super) fn take_dirty_hosts(&mut self) -> Vec<Ip> {
        std::mem::take(&mut self.dirty_hosts)
    }

    /// Addresses in `region` that have blocks of their own.
    pub(super) fn hosts_in(&mut self, region: Prefix) -> impl Iterator<Item = Ip> + '_ {
        if self.sorted_hosts.len() != self.hosts.len() {
            self.sorted_hosts = self.hosts.keys().copied().collect();
            self.sorted_hosts.sort_unstable();
        }
        let from = self.sorted_hosts.partition_point(|ip| *ip < region.addr());
        let rest = self.sorted_hosts.get(from..).unwrap_or_default();
        rest.iter().copied().take_while(move |ip| *ip <= region.last())
    }

    /// Whether an address has to have an entry of its own, because a block of one address begins or ends here, or because
    /// it is `known` for other reasons; if so, `sets` is added the peer sets that hold it by a block, sorted. `painted`
    /// gives those of the longest block around it, as the tables say it that [`Blocks::within`] was painted into.
    pub(super) fn sets<'a>(
        &self,
        ip: Ip,
        known: bool,
        painted: impl FnOnce() -> &'a [PeerSetId],
        sets: &mut Vec<PeerSetId>,
    ) -> bool {
        let own = self.hosts.get(&ip);
        // Edges of one address are not painted.
        let edges = self.lengths.contains_key(&(ip.is_v4(), if ip.is_v4() { 32 } else { 128 }));
        if !known && own.is_none() && !(edges && self.edges.contains_key(&place(Prefix::host(ip)))) {
            return false;
        }
        if !edges {
            sets.extend_from_slice(painted());
        } else if let Some((_, around)) = self.longest(ip.is_v4(), ip.bits(), u8::MAX) {
            sets.extend_from_slice(&around.sets);
        }
        if let Some(own) = own {
            sets.extend_from_slice(own);
            sets.sort_unstable();
            sets.dedup();
        }
        true
    }

    /// Every prefix in `region`, shorter ones before those in them.
    pub(super) fn within(&mut self, region: Prefix) -> impl Iterator<Item = (Prefix, &mut Edge)> {
        self.edges.range_mut(range(region)).filter_map(|(at, edge)| Some((prefix(*at)?, edge)))
    }
}

/// The address of a block that has one, and excepts nothing.
pub(super) fn host_of(block: &IpBlock) -> Option<Ip> {
    let one = block.cidr.prefix_len() == block.cidr.max_prefix_len() && block.except.is_empty();
    let prefix = Prefix::new(block.cidr.addr(), block.cidr.prefix_len()).filter(|_| one)?;
    Some(prefix.addr())
}

/// Whether a prefix holds one address.
pub(super) fn is_host(prefix: Prefix) -> bool {
    prefix == Prefix::host(prefix.addr())
}

fn place(prefix: Prefix) -> Place {
    (prefix.is_v4(), prefix.addr().bits(), prefix.len())
}

fn prefix((_, bits, len): Place) -> Option<Prefix> {
    Prefix::new(Ip::from_bits(bits).into(), len)
}

/// The places of a prefix and of all prefixes in it. (One with the same first address that is shorter lies before.)
fn range(prefix: Prefix) -> std::ops::RangeInclusive<Place> {
    place(prefix)..=(prefix.is_v4(), prefix.last().bits(), u8::MAX)
}
