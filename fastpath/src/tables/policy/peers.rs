//! Address → peer class.
#![forbid(unsafe_code)]

use std::sync::Arc;

use hashbrown::HashMap;

use super::BlockTable;
use crate::packet::Ip;
use crate::tables::Prefix;

/// A class of addresses that no rule in force tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u32);

impl ClassId {
    /// Addresses that no selector and no block holds.
    pub const OTHER: ClassId = ClassId(0);
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
    /// Its class.
    pub class: ClassId,
    /// The node it is an address of, [`NodeIndex::NONE`] for all others.
    pub node: NodeIndex,
}

/// Exact addresses (pods, nodes, blocks of one address) in shards that are copied one at a time, so that one pod more
/// costs the same in a large cluster as in a small one; everything else by longest prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTable {
    shards: Box<[Arc<Shard>]>,
    blocks: BlockTable,
}

/// The addresses of one shard; IPv4 by 32 bits, so that four entries and not two share a cache line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shard {
    v4: HashMap<u32, PeerInfo>,
    v6: HashMap<u128, PeerInfo>,
}

const SHARDS: usize = 256;

impl Default for PeerTable {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: vec![empty; SHARDS].into_boxed_slice(), blocks: BlockTable::default() }
    }
}

impl Shard {
    #[inline]
    fn get(&self, ip: Ip) -> Option<PeerInfo> {
        match ip.is_v4() {
            true => self.v4.get(&low(ip)).copied(),
            false => self.v6.get(&ip.bits()).copied(),
        }
    }
}

/// The 32 bits of an IPv4 address.
#[inline]
fn low(ip: Ip) -> u32 {
    let [.., a, b, c, d] = ip.bytes();
    u32::from_be_bytes([a, b, c, d])
}

impl PeerTable {
    /// Class and node of an address.
    #[inline]
    #[must_use]
    pub fn lookup(&self, ip: Ip) -> PeerInfo {
        if let Some(exact) = self.get(ip) {
            return exact;
        }
        PeerInfo { class: self.blocks.lookup(ip), node: NodeIndex::NONE }
    }

    /// Adds or replaces an address; copies its shard when an older table still shares it.
    pub fn insert(&mut self, ip: Ip, info: PeerInfo) {
        let Some(shard) = self.shards.get_mut(shard(ip)).map(Arc::make_mut) else { return };
        if ip.is_v4() {
            shard.v4.insert(low(ip), info);
        } else {
            shard.v6.insert(ip.bits(), info);
        }
    }

    /// Removes an address.
    pub fn remove(&mut self, ip: Ip) {
        let Some(shard) = self.shards.get_mut(shard(ip)).filter(|s| s.get(ip).is_some()) else { return };
        let shard = Arc::make_mut(shard);
        if ip.is_v4() {
            shard.v4.remove(&low(ip));
        } else {
            shard.v6.remove(&ip.bits());
        }
    }

    /// The entry of an exact address.
    #[inline]
    #[must_use]
    pub fn get(&self, ip: Ip) -> Option<PeerInfo> {
        self.shards.get(shard(ip))?.get(ip)
    }

    /// Gives every address of a block a class, but for those with an entry of their own; see [`BlockTable::paint`].
    pub fn paint(&mut self, block: Prefix, class: ClassId) {
        self.blocks.paint(block, class);
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
        let of = |s: &Arc<Shard>| size_of::<Shard>() + s.v4.allocation_size() + s.v6.allocation_size();
        self.shards.iter().map(of).sum::<usize>()
            + self.shards.len() * size_of::<usize>()
            + self.blocks.bytes()
    }
}

/// Pods of one node differ in the low bits, nodes in those above, and hosts of an IPv6 network anywhere: the upper half is
/// mixed before it joins the lower, as equal changes in both would else cancel, and the product mixes into the top bits.
#[inline]
fn shard(ip: Ip) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.bytes();
    let upper = u64::from_be_bytes([a, b, c, d, e, f, g, h]).wrapping_mul(ODD).rotate_left(32);
    let low = u64::from_be_bytes([i, j, k, l, m, n, o, p]) ^ upper;
    usize::from(low.wrapping_mul(ODD).to_be_bytes()[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever addresses differ, no shard gets more than a few times its share.
    #[test]
    fn shards_share_evenly_whichever_bits_differ() {
        const COUNT: u128 = 1 << 14;
        let net = u128::from_be_bytes([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        for shift in 0..=112 {
            let mut shards = [0; SHARDS];
            for n in 0..COUNT {
                shards[shard(Ip::v6((net ^ n << shift).to_be_bytes()))] += 1;
            }
            let (most, share) = (shards.iter().max().copied().unwrap(), COUNT / SHARDS as u128);
            assert!(most <= share * 4, "differing from bit {shift} on: {most} of {share}");
        }
        let mut shards = [0; SHARDS];
        for n in 0..COUNT {
            let both = n | n << 64;
            shards[shard(Ip::v6((net ^ both).to_be_bytes()))] += 1;
        }
        assert!(shards.iter().all(|n| *n <= COUNT / 64), "both halves change alike: {shards:?}");
    }
}
