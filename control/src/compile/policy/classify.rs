//! Every address in sight to its class.
#![forbid(unsafe_code)]

use fastpath::packet::Ip;
use fastpath::tables::policy::{ClassId, PeerInfo};

use super::Compiler;
use super::blocks::is_host;
use super::classes::{NameId, Peers, Resolution, Signature};
use super::pods::{Changes, Slot};

impl Compiler {
    /// Puts every address and block that may differ from before into its class.
    pub(super) fn sync_classes(&mut self, mut changes: Changes) {
        let [fresh, gone] = self.interner.take_changed();
        for set in fresh.iter().chain(&gone).flat_map(|(_, peers)| peers.pods()) {
            changes.slots.extend(self.selections.members(set));
        }
        for (id, peers) in &gone {
            peers.pods().for_each(|set| self.selections.release(set));
            match peers {
                Peers::Host(ip) => self.blocks.remove_host(*id, *ip),
                Peers::Members(_) => peers.blocks().for_each(|block| self.blocks.remove(*id, block)),
            }
        }
        for (id, peers) in &fresh {
            match peers {
                Peers::Host(ip) => self.blocks.add_host(*id, *ip),
                Peers::Members(_) => peers.blocks().for_each(|block| self.blocks.add(*id, block)),
            }
        }
        if !fresh.is_empty() || !gone.is_empty() {
            self.class_of.clear();
        }
        let mut addresses = changes.addresses;
        // An address may have gone to a pod that did not change itself.
        for slot in &changes.slots {
            addresses.extend(self.pods.entry(*slot).into_iter().flat_map(|e| e.addresses()));
        }
        if std::mem::take(&mut self.egress_names_changed) {
            self.class_of.clear();
            addresses.extend(self.pods.addresses());
        }
        self.sync_blocks(&mut addresses);
        // Lists that are mostly in order, one after the other.
        addresses.sort();
        addresses.dedup();
        for ip in addresses {
            self.classify(ip);
        }
    }

    /// Classes of address blocks; adds the addresses with entries of their own that lie in blocks that changed.
    fn sync_blocks(&mut self, addresses: &mut Vec<Ip>) {
        addresses.extend(self.blocks.take_dirty_hosts());
        for region in self.blocks.settle() {
            for (prefix, class) in region.gone {
                self.classes.release(class);
                if is_host(prefix) {
                    addresses.push(prefix.addr());
                }
            }
            if is_host(region.prefix) {
                addresses.push(region.prefix.addr());
                continue;
            }
            addresses.extend(self.pods.addresses_in(region.prefix));
            addresses.extend(self.blocks.hosts_in(region.prefix));
            addresses
                .extend(self.nodes.range(region.prefix.addr()..=region.prefix.last()).map(|(ip, _)| *ip));
            let around = self.blocks.parent(region.prefix).map_or(ClassId::OTHER, |(_, e)| e.class);
            self.table.peers.paint(region.prefix, around);
            let (classes, peers) = (&mut self.classes, &mut self.table.peers);
            for (prefix, edge) in self.blocks.within(region.prefix) {
                if is_host(prefix) {
                    addresses.push(prefix.addr());
                    continue;
                }
                let class = classes.acquire(&Signature { sets: edge.sets.clone(), ports: Vec::new() });
                classes.release(std::mem::replace(&mut edge.class, class));
                peers.paint(prefix, class);
            }
        }
    }

    fn classify(&mut self, ip: Ip) {
        let owner = self.pods.owner(ip);
        let node = self.nodes.get(&ip).copied();
        let before = self.table.peers.get(ip);
        let mut signature = std::mem::take(&mut self.signature);
        signature.sets.clear();
        signature.ports.clear();
        let (peers, classes) = (&self.table.peers, &self.classes);
        let painted = || classes.signature(peers.block(ip)).map_or(&[][..], |around| &around.sets[..]);
        if self.blocks.sets(ip, owner.is_some() || node.is_some(), painted, &mut signature.sets) {
            let class = match owner {
                Some(slot) if signature.sets.is_empty() && self.egress_names.is_empty() => {
                    self.class_of_pod(slot)
                }
                Some(slot) => {
                    let sets = self.selections.of(slot).iter();
                    signature.sets.extend(sets.flat_map(|set| self.interner.sets_of(*set)));
                    signature.sets.sort_unstable();
                    signature.sets.dedup();
                    signature.ports = self.resolve(slot, |name| self.egress_names.contains_key(&name));
                    self.classes.acquire(&signature)
                }
                None => self.classes.acquire(&signature),
            };
            let info = PeerInfo { class, node: node.unwrap_or_default() };
            if before != Some(info) {
                self.table.peers.insert(ip, info);
            }
        } else if before.is_some() {
            self.table.peers.remove(ip);
        }
        self.signature = signature;
        if let Some(before) = before {
            self.classes.release(before.class);
        }
    }

    /// The class of a pod's address that lies in no block, with one user more; pods in the same sets are in the same class.
    fn class_of_pod(&mut self, slot: Slot) -> ClassId {
        let pod_sets = self.selections.of(slot);
        if let Some(class) = self.class_of.get(pod_sets)
            && self.classes.acquire_known(*class)
        {
            return *class;
        }
        let mut sets: Vec<_> = pod_sets.iter().flat_map(|set| self.interner.sets_of(*set)).collect();
        sets.sort_unstable();
        sets.dedup();
        let class = self.classes.acquire(&Signature { sets, ports: Vec::new() });
        self.class_of.insert(pod_sets.into(), class);
        class
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
