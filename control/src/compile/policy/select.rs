//! Which pods each distinct selector selects, kept between compilations.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use super::pods::{Changes, Entry, Pods, Slot};
use crate::model::{NamespaceScope, Selector};

/// Pods by namespace and labels, as the rules of policies name them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PodSet {
    pub(super) namespaces: Namespaces,
    pub(super) pods: Selector,
}

/// In which namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Namespaces {
    Named(String),
    Matching(Selector),
}

impl PodSet {
    /// Pods of one namespace.
    pub(super) fn in_namespace(namespace: &str, pods: &Selector) -> Self {
        Self { namespaces: Namespaces::Named(namespace.to_owned()), pods: pods.clone() }
    }

    /// A peer of a policy of `namespace`.
    pub(super) fn peer(namespace: &str, scope: &NamespaceScope, pods: &Selector) -> Self {
        match scope {
            NamespaceScope::Own => Self::in_namespace(namespace, pods),
            NamespaceScope::Matching(ns) => {
                Self { namespaces: Namespaces::Matching(ns.clone()), pods: pods.clone() }
            }
        }
    }

    fn holds(&self, entry: &Entry) -> bool {
        let namespace = match &self.namespaces {
            Namespaces::Named(name) => entry.pod.name.namespace == *name,
            Namespaces::Matching(selector) => selector.matches(&entry.namespace_labels),
        };
        namespace && self.pods.matches(&entry.pod.labels)
    }

    fn members(&self, pods: &Pods) -> Vec<Slot> {
        let namespace = match &self.namespaces {
            Namespaces::Named(name) => Some(name.as_str()),
            Namespaces::Matching(_) => None,
        };
        let mut members = pods.candidates(namespace, &self.pods);
        members.retain(|slot| pods.entry(*slot).is_some_and(|e| self.holds(e)));
        members.sort_unstable();
        members
    }
}

/// Members of every pod set in use, by slot, sorted.
#[derive(Debug, Default)]
pub(super) struct Selections {
    sets: HashMap<PodSet, Cached>,
    round: u64,
}

#[derive(Debug)]
struct Cached {
    members: Arc<Vec<Slot>>,
    used: u64,
}

impl Selections {
    /// Brings the members up to date with pods that changed.
    pub(super) fn sync(&mut self, pods: &Pods, changes: &Changes) {
        self.round += 1;
        // Looking at every changed pod for every set stops paying when most pods changed.
        if changes.slots.len() * 4 > pods.len() {
            self.sets.clear();
            return;
        }
        for (set, cached) in &mut self.sets {
            for slot in &changes.slots {
                let holds = pods.entry(*slot).is_some_and(|e| set.holds(e));
                match cached.members.binary_search(slot) {
                    Ok(at) if !holds => {
                        Arc::make_mut(&mut cached.members).remove(at);
                    }
                    Err(at) if holds => Arc::make_mut(&mut cached.members).insert(at, *slot),
                    _ => {}
                }
            }
        }
    }

    /// The members of a set, worked out the first time it is asked for.
    pub(super) fn members(&mut self, pods: &Pods, set: &PodSet) -> Arc<Vec<Slot>> {
        if let Some(cached) = self.sets.get_mut(set) {
            cached.used = self.round;
            return cached.members.clone();
        }
        let members = Arc::new(set.members(pods));
        self.sets.insert(set.clone(), Cached { members: members.clone(), used: self.round });
        members
    }

    /// Forgets the sets that nothing asked for since the last [`Selections::sync`].
    pub(super) fn forget_unused(&mut self) {
        let round = self.round;
        self.sets.retain(|_, cached| cached.used == round);
    }
}
