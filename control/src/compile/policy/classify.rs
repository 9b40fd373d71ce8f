//! Every address in sight to its class.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};

use fastpath::packet::Ip;
use fastpath::tables::policy::PeerInfo;

use super::Compiler;
use super::blocks::Blocks;
use super::classes::{Member, NameId, PeerSetId, Resolution, Signature};
use super::matrix::CompiledRule;
use super::pods::{Changes, Slot};

impl Compiler {
    /// Puts every address and block that may differ from before into its class.
    pub(super) fn sync_classes(&mut self, changes: &Changes) {
        let policies = self.in_force.values();
        let egress_names: BTreeSet<_> =
            policies.clone().flat_map(|f| &f.egress).flat_map(CompiledRule::names).collect();
        let all_names: BTreeSet<_> = policies
            .clone()
            .flat_map(|f| f.ingress.iter().chain(&f.egress))
            .flat_map(|r| r.names())
            .collect();
        let peer_sets: BTreeSet<_> =
            policies.flat_map(|f| f.ingress.iter().chain(&f.egress)).filter_map(|r| r.peers).collect();
        self.interner.retain(&peer_sets, &all_names);
        let other_rules = egress_names != self.egress_names || peer_sets != self.peer_sets;
        self.egress_names = egress_names;
        self.peer_sets = peer_sets;
        self.classes.touched_sets.clear();
        self.classes.touched_names.clear();

        let sets = self.interner.sets();
        // An address may have gone to a pod that did not change itself.
        let mut slots_changed = changes.slots.clone();
        slots_changed.extend(changes.addresses.iter().filter_map(|ip| self.pods.owner(*ip)));
        let mut of_pod = HashMap::<Slot, Vec<PeerSetId>>::new();
        for (id, members) in &sets {
            for member in *members {
                let Member::Pods(set) = member else { continue };
                let slots = self.selections.members(&self.pods, set);
                let mut push = |slot: Slot| {
                    let of_pod = of_pod.entry(slot).or_default();
                    if of_pod.last() != Some(id) {
                        of_pod.push(*id);
                    }
                };
                if other_rules {
                    slots.iter().for_each(|slot| push(*slot));
                } else {
                    slots_changed.iter().filter(|s| slots.binary_search(s).is_ok()).for_each(|s| push(*s));
                }
            }
        }
        let addresses: BTreeSet<Ip> = if other_rules {
            let blocks = sets.iter().flat_map(|(id, members)| {
                members.iter().filter_map(|m| match m {
                    Member::Block(block) => Some((*id, block)),
                    Member::Pods(_) => None,
                })
            });
            self.blocks = Blocks::new(blocks);
            self.pods
                .addresses()
                .chain(self.nodes.keys().copied())
                .chain(changes.addresses.iter().copied())
                .collect()
        } else {
            changes.addresses.clone()
        };
        for ip in addresses {
            self.classify(ip, &of_pod);
        }
        if other_rules {
            self.classify_blocks();
        }
        self.classes.settle();
    }

    fn classify(&mut self, ip: Ip, of_pod: &HashMap<Slot, Vec<PeerSetId>>) {
        let owner = self.pods.owner(ip);
        let node = self.nodes.get(&ip).copied();
        let before = self.table.peers.get(ip);
        if owner.is_none() && node.is_none() {
            self.table.peers.remove(ip);
        } else {
            let mut signature = Signature { sets: self.blocks.sets(ip).to_vec(), ports: Vec::new() };
            if let Some(slot) = owner {
                signature.sets.extend(of_pod.get(&slot).into_iter().flatten());
                signature.sets.sort_unstable();
                signature.sets.dedup();
                signature.ports = self.resolve(slot, |name| self.egress_names.contains(&name));
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

    fn classify_blocks(&mut self) {
        let mut prefixes: Vec<_> = self.blocks.iter().collect();
        prefixes.sort_unstable();
        let mut classes = Vec::new();
        let mut acquire = |sets: &[PeerSetId]| {
            let class = self.classes.acquire(Signature { sets: sets.to_vec(), ports: Vec::new() });
            classes.push(class);
            class
        };
        let blocks = prefixes.into_iter().map(|(prefix, sets)| (prefix, acquire(sets))).collect();
        self.table.peers.set_blocks(blocks);
        for class in std::mem::replace(&mut self.block_classes, classes) {
            self.classes.release(class);
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
