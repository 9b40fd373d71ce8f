//! Every address in sight to its class.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use fastpath::packet::Ip;
use fastpath::tables::policy::{ClassId, PeerInfo};

use super::Compiler;
use super::blocks::is_host;
use super::classes::{Member, NameId, Resolution, Signature};
use super::pods::{Changes, Slot};

impl Compiler {
    /// Puts every address and block that may differ from before into its class.
    pub(super) fn sync_classes(&mut self, mut changes: Changes) {
        let [fresh, gone] = self.interner.take_changed();
        for (_, members) in fresh.iter().chain(&gone) {
            for member in members.iter() {
                if let Member::Pods(set) = member {
                    changes.slots.extend(self.selections.members(*set));
                }
            }
        }
        for (id, members) in &gone {
            self.blocks.remove(*id);
            for member in members.iter() {
                if let Member::Pods(set) = member {
                    self.selections.release(*set);
                }
            }
        }
        for (id, members) in &fresh {
            for member in members.iter() {
                if let Member::Block(block) = member {
                    self.blocks.add(*id, block);
                }
            }
        }
        let mut addresses = changes.addresses;
        // An address may have gone to a pod that did not change itself.
        for slot in &changes.slots {
            addresses.extend(self.pods.entry(*slot).into_iter().flat_map(|e| e.addresses()));
        }
        if std::mem::take(&mut self.egress_names_changed) {
            addresses.extend(self.pods.addresses());
        }
        self.sync_blocks(&mut addresses);
        for ip in addresses {
            self.classify(ip);
        }
    }

    /// Classes of address blocks; adds the addresses with entries of their own that lie in blocks that changed.
    fn sync_blocks(&mut self, addresses: &mut BTreeSet<Ip>) {
        for region in self.blocks.settle() {
            for (prefix, class) in region.gone {
                self.classes.release(class);
                if is_host(prefix) {
                    addresses.insert(prefix.addr());
                }
            }
            if is_host(region.prefix) {
                addresses.insert(region.prefix.addr());
                continue;
            }
            addresses.extend(self.pods.addresses_in(region.prefix));
            addresses
                .extend(self.nodes.range(region.prefix.addr()..=region.prefix.last()).map(|(ip, _)| *ip));
            let around = self.blocks.parent(region.prefix).map_or(ClassId::OTHER, |(_, e)| e.class);
            self.table.peers.paint(region.prefix, around);
            let (classes, peers) = (&mut self.classes, &mut self.table.peers);
            for (prefix, edge) in self.blocks.within(region.prefix) {
                if is_host(prefix) {
                    addresses.insert(prefix.addr());
                    continue;
                }
                let class = classes.acquire(Signature { sets: edge.sets.clone(), ports: Vec::new() });
                classes.release(std::mem::replace(&mut edge.class, class));
                peers.paint(prefix, class);
            }
        }
    }

    fn classify(&mut self, ip: Ip) {
        let owner = self.pods.owner(ip);
        let node = self.nodes.get(&ip).copied();
        let before = self.table.peers.get(ip);
        if owner.is_none() && node.is_none() && !self.blocks.has_host(ip) {
            self.table.peers.remove(ip);
        } else {
            let mut signature = Signature { sets: self.blocks.sets(ip).to_vec(), ports: Vec::new() };
            if let Some(slot) = owner {
                let sets = self.selections.of(slot).iter();
                signature.sets.extend(sets.flat_map(|set| self.interner.sets_of(*set)));
                signature.sets.sort_unstable();
                signature.sets.dedup();
                signature.ports = self.resolve(slot, |name| self.egress_names.contains_key(&name));
            }
            let class = self.classes.acquire(signature);
            let info = PeerInfo { class, node: node.unwrap_or_default() };
            if before != Some(info) {
                self.table.peers.insert(ip, info);
            }
        }
        if let Some(before) = before {
            self.classes.release(before.class);
        }
    }

    /// What those port names in use that `wanted` picks stand for on a pod.
    pub(super) fn resolve(&self, slot: Slot, wanted: impl Fn(NameId) -> bool) -> Resolution {
        let Some(entry) = self.pods.entry(slot) else { return Vec::new() };
        let number = |(name, proto, port): &(String, u8, u16)| {
            let name = self.interner.known_name(name, *proto)?;
            wanted(name).then_some((name, *port))
        };
        let mut resolution: Resolution = entry.pod.ports.iter().filter_map(number).collect();
        resolution.sort_unstable();
        resolution
    }
}
