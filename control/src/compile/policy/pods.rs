//! The pods that policies can tell apart, numbered, and found by namespace and label.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::Prefix;
use hashbrown::{HashMap, HashSet};

use crate::model::{Labels, Model, Namespace, ObjectName, Operator, Pod, Selector};

/// A pod's number; reused after the pod is gone.
pub(super) type Slot = u32;

/// One pod and the labels of its namespace.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) pod: Arc<Pod>,
    pub(super) namespace_labels: Arc<Labels>,
}

impl Entry {
    /// Addresses it owns, without doubles.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ip> + '_ {
        self.pod.addresses.iter().map(|a| Ip::from(*a))
    }
}

/// All pods that are not on the host network and not finished: only those are selected, as subject or as peer.
#[derive(Debug, Default)]
pub(super) struct Pods {
    entries: Vec<Option<Entry>>,
    free: Vec<Slot>,
    by_name: HashMap<ObjectName, Slot>,
    by_namespace: HashMap<String, HashSet<Slot>>,
    by_label: HashMap<String, HashMap<String, HashSet<Slot>>>,
    owners: BTreeMap<Ip, Vec<Slot>>,
    /// Labels of the namespaces that have pods.
    labels: HashMap<String, Arc<Labels>>,
}

/// What one [`Pods::sync`] found changed; each list sorted, nothing in it twice.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Slots whose pod came, went, or has other labels, ports or addresses.
    pub(super) slots: Vec<Slot>,
    /// Addresses whose owner may be another, or may look different.
    pub(super) addresses: Vec<Ip>,
}

impl Changes {
    fn sort(&mut self) {
        self.slots.sort_unstable();
        self.slots.dedup();
        self.addresses.sort_unstable();
        self.addresses.dedup();
    }
}

impl Pods {
    /// Takes over what differs between two models, of which `before` is the one taken over last.
    pub(super) fn sync(&mut self, before: &Model, model: &Model) -> Changes {
        let mut changes = Changes::default();
        for (name, _, now) in before.namespaces.diff(&model.namespaces) {
            self.relabel(name, now.map(AsRef::as_ref), &mut changes);
        }
        for (name, _, now) in before.pods.diff(&model.pods) {
            let now = now.filter(|p| !p.host_network && !p.finished);
            let known = self.by_name.get(name).copied();
            if let (Some(slot), Some(pod)) = (known, now)
                && self.entry(slot).is_some_and(|e| same(&e.pod, pod))
            {
                continue;
            }
            if let Some(slot) = known {
                self.remove(slot, &mut changes);
                if now.is_none() {
                    self.by_name.remove(name);
                    self.free.push(slot);
                }
            }
            if let Some(pod) = now {
                let slot = known.unwrap_or_else(|| self.take_slot(name));
                self.add(slot, pod, model, &mut changes);
            }
        }
        changes.sort();
        changes
    }

    /// Takes over the labels of a namespace, if it has pods.
    fn relabel(&mut self, name: &str, now: Option<&Namespace>, changes: &mut Changes) {
        let Some(known) = self.labels.get_mut(name) else { return };
        let labels = labels_of(name, now);
        if **known == labels {
            return;
        }
        *known = Arc::new(labels);
        for slot in self.by_namespace.get(name).into_iter().flatten() {
            let entry = usize::try_from(*slot).ok().and_then(|s| self.entries.get_mut(s));
            let Some(entry) = entry.and_then(Option::as_mut) else { continue };
            entry.namespace_labels = Arc::clone(known);
            changes.slots.push(*slot);
            changes.addresses.extend(entry.addresses());
        }
    }

    fn take_slot(&mut self, name: &ObjectName) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Slot::try_from(self.entries.len() - 1).unwrap_or(Slot::MAX)
        });
        self.by_name.insert(name.clone(), slot);
        slot
    }

    fn add(&mut self, slot: Slot, pod: &Arc<Pod>, model: &Model, changes: &mut Changes) {
        let namespace = &pod.name.namespace;
        let namespace_labels = match self.labels.get(namespace) {
            Some(labels) => Arc::clone(labels),
            None => {
                let object = model.namespaces.get(namespace).map(AsRef::as_ref);
                let labels = Arc::new(labels_of(namespace, object));
                self.labels.insert(namespace.clone(), Arc::clone(&labels));
                labels
            }
        };
        self.by_namespace.entry_ref(namespace).or_default().insert(slot);
        for (key, value) in &pod.labels {
            self.by_label.entry_ref(key).or_default().entry_ref(value).or_default().insert(slot);
        }
        let entry = Entry { pod: pod.clone(), namespace_labels };
        for ip in entry.addresses() {
            insert(self.owners.entry(ip).or_default(), slot);
            changes.addresses.push(ip);
        }
        if let Some(place) = usize::try_from(slot).ok().and_then(|s| self.entries.get_mut(s)) {
            *place = Some(entry);
        }
        changes.slots.push(slot);
    }

    fn remove(&mut self, slot: Slot, changes: &mut Changes) {
        let place = usize::try_from(slot).ok().and_then(|s| self.entries.get_mut(s));
        let Some(entry) = place.and_then(Option::take) else { return };
        let name = &entry.pod.name;
        if let Some(slots) = self.by_namespace.get_mut(&name.namespace) {
            slots.remove(&slot);
            if slots.is_empty() {
                self.by_namespace.remove(&name.namespace);
                self.labels.remove(&name.namespace);
            }
        }
        for (key, value) in &entry.pod.labels {
            let Some(values) = self.by_label.get_mut(key) else { continue };
            if let Some(slots) = values.get_mut(value) {
                slots.remove(&slot);
                if slots.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.by_label.remove(key);
            }
        }
        for ip in entry.addresses() {
            if let Some(list) = self.owners.get_mut(&ip) {
                remove(list, slot);
                if list.is_empty() {
                    self.owners.remove(&ip);
                }
            }
            changes.addresses.push(ip);
        }
        changes.slots.push(slot);
    }

    pub(super) fn entry(&self, slot: Slot) -> Option<&Entry> {
        usize::try_from(slot).ok().and_then(|s| self.entries.get(s))?.as_ref()
    }

    /// The pod that owns an address: when several claim it, the first by namespace and name.
    pub(super) fn owner(&self, ip: Ip) -> Option<Slot> {
        let claims = self.owners.get(&ip)?;
        claims.iter().copied().min_by_key(|s| self.entry(*s).map(|e| &e.pod.name))
    }

    /// Every address that a pod owns.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ip> + '_ {
        self.owners.keys().copied()
    }

    /// Those of a prefix.
    pub(super) fn addresses_in(&self, prefix: Prefix) -> impl Iterator<Item = Ip> + '_ {
        self.owners.range(prefix.addr()..=prefix.last()).map(|(ip, _)| *ip)
    }

    pub(super) fn find(&self, name: &ObjectName) -> Option<(Slot, &Entry)> {
        let slot = *self.by_name.get(name)?;
        Some((slot, self.entry(slot)?))
    }

    /// Pods of one namespace, or of all, among which are all that `selector` selects: the shortest list at hand.
    pub(super) fn candidates(&self, namespace: Option<&str>, selector: &Selector) -> Vec<Slot> {
        let mut best: Option<Vec<&HashSet<Slot>>> =
            namespace.map(|ns| self.by_namespace.get(ns).into_iter().collect());
        let size = |lists: &[&HashSet<Slot>]| lists.iter().map(|l| l.len()).sum::<usize>();
        for requirement in selector.requirements() {
            let values = self.by_label.get(&requirement.key);
            let lists: Vec<_> = match &requirement.operator {
                Operator::In(wanted) => wanted.iter().filter_map(|v| values?.get(v)).collect(),
                Operator::Exists => values.into_iter().flat_map(HashMap::values).collect(),
                Operator::NotIn(_) | Operator::DoesNotExist => continue,
            };
            if best.as_ref().is_none_or(|b| size(&lists) < size(b)) {
                best = Some(lists);
            }
        }
        match best {
            Some(lists) => lists.into_iter().flatten().copied().collect(),
            None => self.by_name.values().copied().collect(),
        }
    }
}

/// Labels of a namespace. One that only its pods tell of has the one label every namespace has.
fn labels_of(name: &str, object: Option<&Namespace>) -> Labels {
    let implied = || Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
    object.map_or_else(implied, |ns| ns.labels.clone())
}

/// Whether nothing that policies look at differs.
fn same(a: &Pod, b: &Pod) -> bool {
    a.labels == b.labels && a.addresses == b.addresses && a.ports == b.ports && a.node == b.node
}

fn insert(list: &mut Vec<Slot>, slot: Slot) {
    if let Err(at) = list.binary_search(&slot) {
        list.insert(at, slot);
    }
}

fn remove(list: &mut Vec<Slot>, slot: Slot) {
    if let Ok(at) = list.binary_search(&slot) {
        list.remove(at);
    }
}
