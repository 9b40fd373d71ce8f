//! Address → peer class.
#![forbid(unsafe_code)]

use core::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashMap};

use super::BlockTable;
use super::lines::Lines;
use crate::packet::Ip;
use crate::tables::Prefix;

/// A class of addresses that no rule in force tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u32);

impl ClassId {
    /// Addresses that no selector and no block holds.
    pub const OTHER: ClassId = ClassId(0);
    /// The largest.
    pub const MAX: ClassId = ClassId(u32::MAX >> 1);
}

/// A node, as an index that control gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIndex(pub u32);

impl NodeIndex {
    /// No node.
    pub const NONE: NodeIndex = NodeIndex(u32::MAX);
}

impl Default for NodeIndex {
    fn default() -> Self {
        Self::NONE
    }
}

/// What the classifier knows of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its class, at most [`ClassId::MAX`].
    pub class: ClassId,
    /// The node it is an address of, [`NodeIndex::NONE`] for all others.
    pub node: NodeIndex,
}

/// Exact addresses (pods, nodes, blocks of one address) in shards that are copied one at a time, so that one pod more
/// costs the same in a large cluster as in a small one; everything else by longest prefix.
#[derive(Clone, Debug)]
pub struct PeerTable {
    hasher: DefaultHashBuilder,
    shards: Box<[Shard]>,
    /// The nodes' own addresses, which are among the exact ones too, marked.
    nodes: Arc<HashMap<Ip, NodeIndex>>,
    blocks: BlockTable,
}

/// The addresses of one shard; IPv4 by 32 bits, so that seven of them and not three share a cache line.
#[derive(Clone, Debug, Default)]
struct Shard {
    v4: Lines<u32, 7>,
    v6: Lines<u128, 3>,
}

const SHARDS: usize = 256;
/// Marks a class in a shard as that of a node's own address.
const OF_NODE: u32 = 1 << 31;

/// Where an address lies, if it is an exact one: worked out once, for [`PeerTable::prefetch`] and for the lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot(u64);

impl Default for PeerTable {
    fn default() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            shards: vec![Shard::default(); SHARDS].into_boxed_slice(),
            nodes: Arc::default(),
            blocks: BlockTable::default(),
        }
    }
}

/// Tables are the same when they say the same of every address.
impl PartialEq for PeerTable {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Shard, &Shard)| {
            a.v4.is_same(&b.v4) && a.v6.is_same(&b.v6)
                || a.v4.len() + a.v6.len() == b.v4.len() + b.v6.len()
                    && a.iter().all(|(ip, value)| other.raw(ip) == Some(value))
        };
        // Of two tables without a common origin the shards may be cut otherwise.
        let alike =
            |a: &Self| a.shards.iter().flat_map(Shard::iter).all(|(ip, value)| other.raw(ip) == Some(value));
        self.blocks == other.blocks
            && (Arc::ptr_eq(&self.nodes, &other.nodes) || self.nodes == other.nodes)
            && self.len() == other.len()
            && (self.shards.iter().zip(&other.shards).all(same) || alike(self))
    }
}

impl Eq for PeerTable {}

impl Shard {
    /// Every address and what is kept of it.
    fn iter(&self) -> impl Iterator<Item = (Ip, u32)> {
        let v4 = self.v4.iter().map(|(bits, value)| (Ip::v4(bits.to_be_bytes()), value));
        v4.chain(self.v6.iter().map(|(bits, value)| (Ip::from_bits(bits), value)))
    }
}

/// The 32 bits of an IPv4 address.
#[inline]
pub(super) fn low(ip: Ip) -> u32 {
    u32::from_be_bytes(ip.v4_bytes())
}

#[inline]
fn narrow(hasher: &DefaultHashBuilder, bits: u32) -> u64 {
    hasher.hash_one(bits)
}

/// One half after the other: the hasher would multiply them with each other, and where both vary little by little that
/// leaves some of its bits nearly the same.
#[inline]
fn wide(hasher: &DefaultHashBuilder, bits: u128) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bits.to_be_bytes();
    let upper = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let lower = u64::from_be_bytes([i, j, k, l, m, n, o, p]);
    hasher.hash_one(lower ^ hasher.hash_one(upper).rotate_left(32))
}

/// Number of the shard of a hash; the lines go by its low bits.
#[inline]
fn shard(spot: Spot) -> usize {
    usize::from(spot.0.to_be_bytes()[0])
}

impl PeerTable {
    /// Class and node of an address.
    #[inline]
    #[must_use]
    pub fn lookup(&self, ip: Ip) -> PeerInfo {
        self.lookup_at(ip, self.spot(ip))
    }

    /// Where an address would lie.
    #[inline]
    #[must_use]
    pub fn spot(&self, ip: Ip) -> Spot {
        Spot(if ip.is_v4() { narrow(&self.hasher, low(ip)) } else { wide(&self.hasher, ip.bits()) })
    }

    /// Starts to bring into the cache what [`PeerTable::lookup_at`] will read.
    #[inline]
    pub fn prefetch(&self, ip: Ip, spot: Spot) {
        let Some(shard) = self.shards.get(shard(spot)) else { return };
        if ip.is_v4() { shard.v4.prefetch(spot.0) } else { shard.v6.prefetch(spot.0) }
    }

    /// Class and node of an address, by its [`PeerTable::spot`].
    #[inline]
    #[must_use]
    pub fn lookup_at(&self, ip: Ip, spot: Spot) -> PeerInfo {
        match self.raw_at(ip, spot) {
            Some(value) => self.info(ip, value),
            None => PeerInfo { class: self.blocks.lookup(ip), node: NodeIndex::NONE },
        }
    }

    #[inline]
    fn raw_at(&self, ip: Ip, spot: Spot) -> Option<u32> {
        let shard = self.shards.get(shard(spot))?;
        if ip.is_v4() { shard.v4.get(spot.0, low(ip)) } else { shard.v6.get(spot.0, ip.bits()) }
    }

    fn raw(&self, ip: Ip) -> Option<u32> {
        self.raw_at(ip, self.spot(ip))
    }

    #[inline]
    fn info(&self, ip: Ip, value: u32) -> PeerInfo {
        let node = if value & OF_NODE == 0 { None } else { self.nodes.get(&ip).copied() };
        PeerInfo { class: ClassId(value & !OF_NODE), node: node.unwrap_or_default() }
    }

    /// Adds or replaces an address; copies its shard when an older table still shares it.
    pub fn insert(&mut self, ip: Ip, info: PeerInfo) {
        let is_node = info.node != NodeIndex::NONE;
        if self.nodes.get(&ip).copied().unwrap_or_default() != info.node {
            let nodes = Arc::make_mut(&mut self.nodes);
            if is_node {
                nodes.insert(ip, info.node)
            } else {
                nodes.remove(&ip)
            };
        }
        let value = info.class.0 & !OF_NODE | if is_node { OF_NODE } else { 0 };
        let (at, hasher) = (shard(self.spot(ip)), &self.hasher);
        let Some(shard) = self.shards.get_mut(at) else { return };
        if ip.is_v4() {
            shard.v4.insert(|bits| narrow(hasher, bits), low(ip), value);
        } else {
            shard.v6.insert(|bits| wide(hasher, bits), ip.bits(), value);
        }
    }

    /// Removes an address.
    pub fn remove(&mut self, ip: Ip) {
        if self.nodes.contains_key(&ip) {
            Arc::make_mut(&mut self.nodes).remove(&ip);
        }
        let (at, hasher) = (shard(self.spot(ip)), &self.hasher);
        let Some(shard) = self.shards.get_mut(at) else { return };
        if ip.is_v4() {
            shard.v4.remove(|bits| narrow(hasher, bits), low(ip));
        } else {
            shard.v6.remove(|bits| wide(hasher, bits), ip.bits());
        }
    }

    /// The entry of an exact address.
    #[inline]
    #[must_use]
    pub fn get(&self, ip: Ip) -> Option<PeerInfo> {
        self.raw(ip).map(|value| self.info(ip, value))
    }

    /// Gives every address of a block a class, but for those with an entry of their own; see [`BlockTable::paint`].
    pub fn paint(&mut self, block: Prefix, class: ClassId) {
        self.blocks.paint(block, class);
    }

    /// The class an address has if it has no entry of its own.
    #[must_use]
    pub fn block(&self, ip: Ip) -> ClassId {
        self.blocks.lookup(ip)
    }

    /// Number of exact addresses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.v4.len() + s.v6.len()).sum()
    }

    /// Whether there is no exact address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory it holds, shared ones too.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |s: &Shard| size_of::<Shard>() + s.v4.bytes() + s.v6.bytes();
        self.shards.iter().map(of).sum::<usize>() + self.nodes.allocation_size() + self.blocks.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever addresses differ, no shard gets more than a few times its share.
    #[test]
    fn shards_share_evenly_whichever_bits_differ() {
        const COUNT: u128 = 1 << 13;
        let table = PeerTable::default();
        let net = u128::from_be_bytes([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let most = |ip: &dyn Fn(u128) -> Ip| {
            let mut shards = [0; SHARDS];
            (0..COUNT).for_each(|n| shards[shard(table.spot(ip(n)))] += 1);
            shards.iter().max().copied().unwrap()
        };
        let share = COUNT / SHARDS as u128;
        for shift in 0..=112 {
            assert!(most(&|n| Ip::from_bits(net ^ n << shift)) <= share * 4, "differing from bit {shift} on");
        }
        for shift in 0..=19 {
            let v4 = |n: u128| Ip::from_bits(Ip::v4([10, 0, 0, 0]).bits() ^ n << shift);
            assert!(most(&v4) <= share * 4, "IPv4 differing from bit {shift} on");
        }
        assert!(most(&|n| Ip::from_bits(net ^ (n | n << 64))) <= share * 4, "both halves change alike");
    }
}
