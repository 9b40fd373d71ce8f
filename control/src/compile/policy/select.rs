//! Which pods each distinct selector selects, and which selectors select each pod.
//!
//! A selector is filed under one thing that every pod it selects has (a label's value, a label, its namespace), so that
//! for a pod that changed only those few are looked at that may select it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::{HashMap, HashSet};

use super::pods::{Entry, Pods, Slot};
use crate::model::{NamespaceScope, Operator, Selector};

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

    fn members(&self, pods: &Pods) -> HashSet<Slot> {
        let namespace = match &self.namespaces {
            Namespaces::Named(name) => Some(name.as_str()),
            Namespaces::Matching(_) => None,
        };
        let candidates = pods.candidates(namespace, &self.pods).into_iter();
        candidates.filter(|slot| pods.entry(*slot).is_some_and(|e| self.holds(e))).collect()
    }

    /// What all of its pods have one of.
    fn places(&self) -> Vec<Place> {
        let of = |want: fn(&Operator) -> bool| self.pods.requirements().iter().find(|r| want(&r.operator));
        if let Some(r) = of(|o| matches!(o, Operator::In(_)))
            && let Operator::In(values) = &r.operator
        {
            return values.iter().map(|v| Place::Value(r.key.clone(), v.clone())).collect();
        }
        if let Some(r) = of(|o| matches!(o, Operator::Exists)) {
            return vec![Place::Key(r.key.clone())];
        }
        match &self.namespaces {
            Namespaces::Named(name) => vec![Place::Namespace(name.clone())],
            Namespaces::Matching(_) => vec![Place::Any],
        }
    }
}

/// Where a set is filed.
#[derive(Clone, Debug)]
enum Place {
    Value(String, String),
    Key(String),
    Namespace(String),
    Any,
}

/// The sets by where they are filed.
#[derive(Debug, Default)]
struct Filed {
    by_label: HashMap<String, ByValue>,
    by_namespace: HashMap<String, BTreeSet<SetId>>,
    any: BTreeSet<SetId>,
}

/// Those filed under one label.
#[derive(Debug, Default)]
struct ByValue {
    any: BTreeSet<SetId>,
    by_value: HashMap<String, BTreeSet<SetId>>,
}

impl Filed {
    fn of(&mut self, place: Place) -> &mut BTreeSet<SetId> {
        match place {
            Place::Value(key, value) => {
                self.by_label.entry(key).or_default().by_value.entry(value).or_default()
            }
            Place::Key(key) => &mut self.by_label.entry(key).or_default().any,
            Place::Namespace(name) => self.by_namespace.entry(name).or_default(),
            Place::Any => &mut self.any,
        }
    }

    fn remove(&mut self, place: Place, id: SetId) {
        let sets = self.of(place.clone());
        sets.remove(&id);
        if !sets.is_empty() {
            return;
        }
        match place {
            Place::Value(key, value) => {
                if let Some(of_key) = self.by_label.get_mut(&key) {
                    of_key.by_value.remove(&value);
                    if of_key.by_value.is_empty() && of_key.any.is_empty() {
                        self.by_label.remove(&key);
                    }
                }
            }
            Place::Key(key) => {
                if self.by_label.get(&key).is_some_and(|of_key| of_key.by_value.is_empty()) {
                    self.by_label.remove(&key);
                }
            }
            Place::Namespace(name) => drop(self.by_namespace.remove(&name)),
            Place::Any => {}
        }
    }
}

/// A pod set in use. Never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SetId(u32);

/// Every pod set in use with its members.
#[derive(Debug, Default)]
pub(super) struct Selections {
    ids: HashMap<PodSet, SetId>,
    sets: HashMap<SetId, InUse>,
    /// The sets that hold a pod, sorted; nothing for a pod that is in none.
    of_slot: HashMap<Slot, Vec<SetId>>,
    filed: Filed,
    next: u32,
}

#[derive(Debug)]
struct InUse {
    set: PodSet,
    members: HashSet<Slot>,
    users: usize,
}

impl Selections {
    /// The number of a set, with one user more. Its members are worked out the first time.
    pub(super) fn acquire(&mut self, pods: &Pods, set: PodSet) -> SetId {
        if let Some(id) = self.ids.get(&set) {
            if let Some(known) = self.sets.get_mut(id) {
                known.users += 1;
            }
            return *id;
        }
        self.next += 1;
        let id = SetId(self.next);
        let members = set.members(pods);
        for slot in &members {
            // Its number is larger than all others: the list stays sorted.
            self.of_slot.entry(*slot).or_default().push(id);
        }
        for place in set.places() {
            self.filed.of(place).insert(id);
        }
        self.ids.insert(set.clone(), id);
        self.sets.insert(id, InUse { set, members, users: 1 });
        id
    }

    /// One user less; a set without users is forgotten.
    pub(super) fn release(&mut self, id: SetId) {
        let Some(known) = self.sets.get_mut(&id) else { return };
        known.users = known.users.saturating_sub(1);
        if known.users > 0 {
            return;
        }
        let Some(gone) = self.sets.remove(&id) else { return };
        self.ids.remove(&gone.set);
        for slot in &gone.members {
            if let Some(sets) = self.of_slot.get_mut(slot) {
                sets.retain(|set| *set != id);
                if sets.is_empty() {
                    self.of_slot.remove(slot);
                }
            }
        }
        for place in gone.set.places() {
            self.filed.remove(place, id);
        }
    }

    /// Brings the members up to date with pods that changed. Gives the sets that hold, or held, one of those that
    /// `watched` says yes to.
    pub(super) fn sync(
        &mut self,
        pods: &Pods,
        changed: &[Slot],
        watched: impl Fn(Slot) -> bool,
    ) -> BTreeSet<SetId> {
        let mut seen = BTreeSet::new();
        for slot in changed {
            let before = self.of_slot.remove(slot).unwrap_or_default();
            let now = pods.entry(*slot).map(|e| self.holding(e)).unwrap_or_default();
            for id in before.iter().filter(|id| now.binary_search(id).is_err()) {
                if let Some(set) = self.sets.get_mut(id) {
                    set.members.remove(slot);
                }
            }
            for id in now.iter().filter(|id| before.binary_search(id).is_err()) {
                if let Some(set) = self.sets.get_mut(id) {
                    set.members.insert(*slot);
                }
            }
            if watched(*slot) {
                seen.extend(before.iter().chain(&now));
            }
            if !now.is_empty() {
                self.of_slot.insert(*slot, now);
            }
        }
        seen
    }

    /// The sets that hold a pod, sorted.
    fn holding(&self, entry: &Entry) -> Vec<SetId> {
        if self.sets.is_empty() {
            return Vec::new();
        }
        let filed = &self.filed;
        let by_label = entry.pod.labels.iter().filter_map(|(key, value)| {
            let of_key = filed.by_label.get(key)?;
            Some(of_key.any.iter().chain(of_key.by_value.get(value).into_iter().flatten()))
        });
        let by_namespace = filed.by_namespace.get(&entry.pod.name.namespace).into_iter().flatten();
        let mut out: Vec<SetId> = by_label
            .flatten()
            .chain(by_namespace)
            .chain(&filed.any)
            .filter(|id| self.sets.get(*id).is_some_and(|s| s.set.holds(entry)))
            .copied()
            .collect();
        out.sort_unstable();
        out
    }

    /// The members of a set in use, in any order.
    pub(super) fn members(&self, id: SetId) -> impl Iterator<Item = Slot> + '_ {
        self.sets.get(&id).into_iter().flat_map(|s| s.members.iter().copied())
    }

    /// The sets that hold a pod, sorted.
    pub(super) fn of(&self, slot: Slot) -> &[SetId] {
        self.of_slot.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// Whether a set holds one of these pods.
    pub(super) fn holds_any<K>(&self, id: SetId, of: &BTreeMap<K, Slot>) -> bool {
        let Some(set) = self.sets.get(&id) else { return false };
        of.values().any(|slot| set.members.contains(slot))
    }

    /// How many numbers were given out.
    pub(super) fn given_out(&self) -> u32 {
        self.next
    }
}
