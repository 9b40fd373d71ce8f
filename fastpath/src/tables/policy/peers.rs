//! Address → peer class.
#![forbid(unsafe_code)]

use std::sync::Arc;

use hashbrown::HashMap;

use crate::packet::Ip;
use crate::tables::Lpm;

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

/// Exact addresses (pods, nodes) in shards that are copied one at a time, so that one pod more costs the same
/// in a large cluster as in a small one; everything else by longest prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTable {
    shards: Box<[Arc<HashMap<Ip, PeerInfo>>]>,
    blocks: Arc<Lpm<ClassId>>,
}

const SHARDS: usize = 256;

impl Default for PeerTable {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { shards: vec![empty; SHARDS].into_boxed_slice(), blocks: Arc::default() }
    }
}

impl PeerTable {
    /// Class and node of an address.
    #[inline]
    #[must_use]
    pub fn lookup(&self, ip: Ip) -> PeerInfo {
        if let Some(exact) = self.shards.get(shard(ip)).and_then(|s| s.get(&ip)) {
            return *exact;
        }
        PeerInfo { class: self.blocks.lookup(ip).copied().unwrap_or_default(), node: NodeIndex::NONE }
    }

    /// Adds or replaces an address; copies its shard when an older table still shares it.
    pub fn insert(&mut self, ip: Ip, info: PeerInfo) {
        if let Some(s) = self.shards.get_mut(shard(ip)) {
            Arc::make_mut(s).insert(ip, info);
        }
    }

    /// Removes an address.
    pub fn remove(&mut self, ip: Ip) {
        if let Some(s) = self.shards.get_mut(shard(ip)).filter(|s| s.contains_key(&ip)) {
            Arc::make_mut(s).remove(&ip);
        }
    }

    /// The entry of an exact address.
    #[must_use]
    pub fn get(&self, ip: Ip) -> Option<PeerInfo> {
        self.shards.get(shard(ip))?.get(&ip).copied()
    }

    /// Replaces the classes of address blocks. A block's class holds its addresses that no longer prefix has.
    pub fn set_blocks(&mut self, blocks: Lpm<ClassId>) {
        self.blocks = Arc::new(blocks);
    }

    /// Number of exact addresses and of blocks.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.shards.iter().map(|s| s.len()).sum(), self.blocks.len())
    }
}

/// Pods of one node differ in the low bits, nodes in those above: the product mixes both into the top bits.
#[inline]
fn shard(ip: Ip) -> usize {
    let [.., a, b, c, d, e, f, g, h] = ip.bytes();
    let low = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    usize::from(low.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0])
}
