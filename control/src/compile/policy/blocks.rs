//! Address blocks: for every prefix that a rule names, the peer sets that hold its addresses.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use fastpath::packet::Ip;
use fastpath::tables::{Lpm, Prefix};
use ipnet::IpNet;

use super::classes::PeerSetId;
use crate::model::IpBlock;

/// The prefixes of all blocks in force. The longest one that holds an address says everything of it.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    prefixes: Lpm<Vec<PeerSetId>>,
}

#[derive(Default)]
struct Edge {
    opens: Vec<u32>,
    closes: Vec<u32>,
}

impl Blocks {
    /// From every block of every peer set.
    pub(super) fn new<'a>(blocks: impl Iterator<Item = (PeerSetId, &'a IpBlock)>) -> Self {
        // Ordered by first address, then length: a prefix comes after those that hold it.
        let mut edges = BTreeMap::<(bool, u128, u8), (Prefix, Edge)>::new();
        let mut owners = Vec::new();
        for (set, block) in blocks {
            if block.except.iter().any(|e| e.contains(&block.cidr)) {
                continue;
            }
            let id = u32::try_from(owners.len()).unwrap_or(u32::MAX);
            owners.push(set);
            if let Some(edge) = edge(&mut edges, &block.cidr) {
                edge.opens.push(id);
            }
            for e in &block.except {
                if let Some(edge) = edge(&mut edges, e) {
                    edge.closes.push(id);
                }
            }
        }
        let mut prefixes = Lpm::default();
        let mut around: Vec<(Prefix, Vec<u32>)> = Vec::new();
        for (prefix, edge) in edges.into_values() {
            while around.last().is_some_and(|(p, _)| !p.contains(prefix.addr())) {
                around.pop();
            }
            let mut active = around.last().map(|(_, a)| a.clone()).unwrap_or_default();
            active.extend(&edge.opens);
            active.retain(|id| edge.closes.binary_search(id).is_err());
            let mut sets: Vec<_> =
                active.iter().filter_map(|id| owners.get(usize::try_from(*id).ok()?).copied()).collect();
            sets.sort_unstable();
            sets.dedup();
            prefixes.insert(prefix, sets);
            around.push((prefix, active));
        }
        Self { prefixes }
    }

    /// The peer sets that hold an address by a block, sorted.
    pub(super) fn sets(&self, ip: Ip) -> &[PeerSetId] {
        self.prefixes.lookup(ip).map_or(&[], Vec::as_slice)
    }

    /// Every prefix with its peer sets.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Prefix, &[PeerSetId])> {
        self.prefixes.iter().map(|(p, sets)| (p, sets.as_slice()))
    }
}

fn edge<'a>(edges: &'a mut BTreeMap<(bool, u128, u8), (Prefix, Edge)>, net: &IpNet) -> Option<&'a mut Edge> {
    let prefix = Prefix::new(net.addr(), net.prefix_len())?;
    let key = (prefix.is_v4(), prefix.addr().bits(), prefix.len());
    Some(&mut edges.entry(key).or_insert_with(|| (prefix, Edge::default())).1)
}
