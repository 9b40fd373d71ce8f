//! The pods that policies can tell apart, numbered, and found by namespace and label.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use fastpath::packet::Ip;

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
    by_name: BTreeMap<ObjectName, Slot>,
    by_namespace: HashMap<String, Vec<Slot>>,
    by_label: HashMap<String, HashMap<String, Vec<Slot>>>,
    owners: HashMap<Ip, Vec<Slot>>,
    namespaces: HashMap<String, (Option<Arc<Namespace>>, Arc<Labels>)>,
}

/// What one [`Pods::sync`] found changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Slots whose pod came, went, or has other labels, ports or addresses.
    pub(super) slots: BTreeSet<Slot>,
    /// Addresses whose owner may be another, or may look different.
    pub(super) addresses: BTreeSet<Ip>,
}

impl Pods {
    /// Takes over the model's pods and namespaces.
    pub(super) fn sync(&mut self, model: &Model) -> Changes {
        let mut changes = Changes::default();
        let relabelled = self.sync_namespaces(model);
        let live = |p: &Pod| !p.host_network && !p.finished;
        let gone: Vec<_> = self
            .by_name
            .iter()
            .filter(|(name, _)| !model.pods.get(name).is_some_and(|p| live(p)))
            .map(|(_, slot)| *slot)
            .collect();
        for slot in gone {
            self.remove(slot, &mut changes);
        }
        for (name, pod) in model.pods.iter().filter(|(_, p)| live(p)) {
            let known = self.by_name.get(name).copied();
            if let Some(slot) = known {
                let Some(entry) = self.entry(slot) else { continue };
                if !relabelled.contains(&name.namespace)
                    && (Arc::ptr_eq(&entry.pod, pod) || same(&entry.pod, pod))
                {
                    continue;
                }
                self.remove(slot, &mut changes);
            }
            self.add(pod, &mut changes);
        }
        changes
    }

    /// Names of the namespaces whose labels are others now.
    fn sync_namespaces(&mut self, model: &Model) -> HashSet<String> {
        let mut changed = HashSet::new();
        let mut used: HashSet<&str> = model.namespaces.keys().map(String::as_str).collect();
        used.extend(model.pods.keys().map(|n| n.namespace.as_str()));
        self.namespaces.retain(|name, _| used.contains(name.as_str()));
        for name in used {
            let object = model.namespaces.get(name);
            let known = self.namespaces.get(name);
            if let (Some((Some(old), _)), Some(new)) = (known, object)
                && Arc::ptr_eq(old, new)
            {
                continue;
            }
            // A namespace that only its pods tell of has the one label every namespace has.
            let labels = object.map_or_else(
                || Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]),
                |ns| ns.labels.clone(),
            );
            let same = known.filter(|k| *k.1 == labels).map(|k| k.1.clone());
            if same.is_none() {
                changed.insert(name.to_owned());
            }
            let labels = same.unwrap_or_else(|| Arc::new(labels));
            self.namespaces.insert(name.to_owned(), (object.cloned(), labels));
        }
        changed
    }

    fn add(&mut self, pod: &Arc<Pod>, changes: &mut Changes) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Slot::try_from(self.entries.len() - 1).unwrap_or(Slot::MAX)
        });
        let namespace = &pod.name.namespace;
        let namespace_labels = self.namespaces.get(namespace).map(|n| n.1.clone()).unwrap_or_default();
        insert(self.by_namespace.entry(namespace.clone()).or_default(), slot);
        for (key, value) in &pod.labels {
            insert(self.by_label.entry(key.clone()).or_default().entry(value.clone()).or_default(), slot);
        }
        self.by_name.insert(pod.name.clone(), slot);
        let entry = Entry { pod: pod.clone(), namespace_labels };
        for ip in entry.addresses() {
            insert(self.owners.entry(ip).or_default(), slot);
            changes.addresses.insert(ip);
        }
        if let Some(place) = usize::try_from(slot).ok().and_then(|s| self.entries.get_mut(s)) {
            *place = Some(entry);
        }
        changes.slots.insert(slot);
    }

    fn remove(&mut self, slot: Slot, changes: &mut Changes) {
        let place = usize::try_from(slot).ok().and_then(|s| self.entries.get_mut(s));
        let Some(entry) = place.and_then(Option::take) else { return };
        let name = &entry.pod.name;
        self.by_name.remove(name);
        if let Some(list) = self.by_namespace.get_mut(&name.namespace) {
            remove(list, slot);
            if list.is_empty() {
                self.by_namespace.remove(&name.namespace);
            }
        }
        for (key, value) in &entry.pod.labels {
            let Some(values) = self.by_label.get_mut(key) else { continue };
            if let Some(list) = values.get_mut(value) {
                remove(list, slot);
                if list.is_empty() {
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
            changes.addresses.insert(ip);
        }
        self.free.push(slot);
        changes.slots.insert(slot);
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

    /// All pods in order of namespace and name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        self.by_name.values().filter_map(|s| Some((*s, self.entry(*s)?)))
    }

    pub(super) fn find(&self, name: &ObjectName) -> Option<(Slot, &Entry)> {
        let slot = *self.by_name.get(name)?;
        Some((slot, self.entry(slot)?))
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Pods of one namespace, or of all, among which are all that `selector` selects: the shortest list at hand.
    pub(super) fn candidates(&self, namespace: Option<&str>, selector: &Selector) -> Vec<Slot> {
        let mut best: Option<Vec<&Vec<Slot>>> =
            namespace.map(|ns| self.by_namespace.get(ns).into_iter().collect());
        let size = |lists: &[&Vec<Slot>]| lists.iter().map(|l| l.len()).sum::<usize>();
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
