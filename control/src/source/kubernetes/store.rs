//! Objects of the API to the model, one change at a time.
//!
//! The same as `assemble` makes of the same objects (`tests` compare them), but a change costs what it touches: of
//! what two objects claim (an address, a device) every claimant is kept, and a change decides its claims anew.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::Problem;
use super::super::assemble::{overlapping_cidrs, warn};
use super::super::kinds::{Key, Object};
use super::decode::Seen;
use crate::model::{Model, Namespace, Node, ObjectName, Origin, Pod, Table};

mod claims;
#[cfg(test)]
mod tests;

use claims::{Claims, Owner};

/// What is wrong with an object of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The object's `metadata.uid`.
    pub(super) uid: Box<str>,
    /// What; its origin names the object.
    pub(super) problem: Problem,
}

/// A pod as the API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ApiPod {
    pod: Arc<Pod>,
    /// It is being deleted: another that has its address already is preferred.
    leaving: bool,
    uid: Box<str>,
}

/// Every object that was seen, and the model of them.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// In force: claims are settled, namespaces implied.
    model: Model,
    /// As the API has them.
    pods: BTreeMap<ObjectName, ApiPod>,
    nodes: BTreeMap<String, Box<str>>,
    /// `metadata.uid` of what is in force of the other kinds.
    uids: BTreeMap<Key, Box<str>>,
    addresses: Claims<IpAddr>,
    /// By node and device.
    devices: Claims<(Option<String>, String)>,
    /// How many objects live in each namespace.
    members: BTreeMap<String, usize>,
    /// Objects with mistakes of their own.
    faulty: BTreeMap<Key, Vec<Wrong>>,
    /// Pod CIDRs of nodes that overlap.
    overlaps: Vec<Problem>,
}

impl Store {
    /// What is in force.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Takes an object as it is now. Whether anything is different now.
    ///
    /// One that cannot be honoured leaves its last good state in force: its own, not that of another of its name.
    /// A policy that has none isolates all the same.
    pub(super) fn put(&mut self, seen: Seen) -> bool {
        let Seen { key, object, closed, leaving, uid, problems } = seen;
        let replaced = object.is_none() && self.is_another(&key, &uid) && self.remove(&key);
        let good = self.model.policies.get(&key.name).is_some_and(|p| !p.closed);
        let object = object.or(closed.filter(|_| !good));
        if object.is_some() && !matches!(key.kind, "Pod" | "Node") {
            self.uids.insert(key.clone(), uid.clone());
        }
        let wrong: Vec<Wrong> =
            problems.into_iter().map(|problem| Wrong { uid: uid.clone(), problem }).collect();
        let before = if wrong.is_empty() {
            self.faulty.remove(&key).unwrap_or_default()
        } else {
            self.faulty.insert(key.clone(), wrong.clone()).unwrap_or_default()
        };
        let changed = match object {
            None => Change::None,
            Some(Object::Pod(pod)) => self.put_pod(ApiPod { pod, leaving, uid }),
            Some(Object::Node(node)) => self.put_node(node, uid),
            Some(Object::Namespace(ns)) => replace(&mut self.model.namespaces, ns.name.clone(), ns),
            Some(Object::NetworkPolicy(o)) => {
                let changed = replace(&mut self.model.policies, o.name.clone(), o);
                self.entered(changed, &key)
            }
            Some(Object::Service(o)) => {
                let changed = replace(&mut self.model.services, o.name.clone(), o);
                self.entered(changed, &key)
            }
            Some(Object::EndpointSlice(o)) => {
                let changed = replace(&mut self.model.slices, o.name.clone(), o);
                self.entered(changed, &key)
            }
        };
        replaced || changed != Change::None || before != wrong
    }

    /// Forgets an object. Whether anything is different now.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        let known = match key.kind {
            "Node" => self.remove_node(&key.name.name),
            "Namespace" => self.remove_namespace(&key.name.name),
            "Pod" => self.remove_pod(&key.name),
            "NetworkPolicy" => self.model.policies.remove(&key.name).is_some(),
            "Service" => self.model.services.remove(&key.name).is_some(),
            _ => self.model.slices.remove(&key.name).is_some(),
        };
        if known && !matches!(key.kind, "Node" | "Namespace") {
            self.left(&key.name.namespace);
        }
        self.uids.remove(key);
        known | self.faulty.remove(key).is_some()
    }

    /// Whether what is in force by this name has another uid: it was deleted, and this made in its place.
    fn is_another(&self, key: &Key, uid: &str) -> bool {
        let in_force = match key.kind {
            "Pod" => self.pods.get(&key.name).map(|p| &p.uid),
            "Node" => self.nodes.get(&key.name.name),
            _ => self.uids.get(key),
        };
        in_force.is_some_and(|u| !u.is_empty() && !uid.is_empty() && **u != *uid)
    }

    /// Names of the objects of a kind.
    pub(super) fn names(&self, kind: &'static str) -> HashSet<ObjectName> {
        let cluster = |name: &String| ObjectName { namespace: String::new(), name: name.clone() };
        let mut all: HashSet<ObjectName> = match kind {
            "Node" => self.model.nodes.keys().map(cluster).collect(),
            "Namespace" => {
                let named = self.model.namespaces.values().filter(|n| n.origin != Origin::Implied);
                named.map(|n| cluster(&n.name)).collect()
            }
            "Pod" => self.pods.keys().cloned().collect(),
            "NetworkPolicy" => self.model.policies.keys().cloned().collect(),
            "Service" => self.model.services.keys().cloned().collect(),
            _ => self.model.slices.keys().cloned().collect(),
        };
        all.extend(self.faulty.keys().filter(|k| k.kind == kind).map(|k| k.name.clone()));
        all
    }

    /// Everything that is wrong now.
    pub(super) fn wrong(&self) -> Vec<Wrong> {
        let mut out: Vec<Wrong> = self.faulty.values().flatten().cloned().collect();
        self.addresses.contested(|address, first, loser| {
            let (owner, at) = (first.name(), first.origin());
            let reason = match loser {
                Owner::Node(_) => format!("address {address} is also that of {owner} ({at})"),
                Owner::Pod { pod, .. } => {
                    format!("address {address} belongs to {owner} ({at}); Pod {} is not given it", pod.name)
                }
            };
            out.push(self.claimed(loser, reason));
        });
        self.devices.contested(|(_, device), first, loser| {
            let (owner, at) = (first.name(), first.origin());
            let reason =
                format!("interface {device} belongs to {owner} ({at}); {} is not given it", loser.name());
            out.push(self.claimed(loser, reason));
        });
        out.extend(self.overlaps.iter().map(|problem| {
            let uid = match &problem.origin {
                Origin::ApiObject { name, .. } => self.nodes.get(&name.name).cloned(),
                _ => None,
            };
            Wrong { uid: uid.unwrap_or_default(), problem: problem.clone() }
        }));
        out
    }

    fn claimed(&self, loser: &Owner, reason: String) -> Wrong {
        let uid = match loser {
            Owner::Node(node) => self.nodes.get(&node.name).cloned(),
            Owner::Pod { pod, .. } => self.pods.get(&pod.name).map(|p| p.uid.clone()),
        };
        Wrong { uid: uid.unwrap_or_default(), problem: warn(&loser.api_object(), reason) }
    }

    fn put_node(&mut self, node: Arc<Node>, uid: Box<str>) -> Change {
        self.nodes.insert(node.name.clone(), uid);
        let old = self.model.nodes.get(&node.name).cloned();
        if old.as_ref() == Some(&node) {
            return Change::None;
        }
        let mut touched = BTreeSet::new();
        for (owner, add) in [(old, false), (Some(node.clone()), true)] {
            for address in owner.iter().flat_map(|n| n.addresses.iter().copied().map(move |a| (a, n.clone())))
            {
                self.addresses.change(&address.0, Owner::Node(address.1), add);
                touched.insert(address.0);
            }
        }
        let change = replace(&mut self.model.nodes, node.name.clone(), node);
        self.settle(&touched, &BTreeSet::new(), None);
        self.overlap();
        change
    }

    fn remove_node(&mut self, name: &str) -> bool {
        self.nodes.remove(name);
        let Some(old) = self.model.nodes.remove(name) else { return false };
        for address in &old.addresses {
            self.addresses.change(address, Owner::Node(old.clone()), false);
        }
        self.settle(&old.addresses.iter().copied().collect(), &BTreeSet::new(), None);
        self.overlap();
        true
    }

    fn overlap(&mut self) {
        self.overlaps.clear();
        overlapping_cidrs(&self.model, &mut self.overlaps);
    }

    fn put_pod(&mut self, new: ApiPod) -> Change {
        let name = new.pod.name.clone();
        let old = self.pods.get(&name).cloned();
        if old.as_ref() == Some(&new) {
            return Change::None;
        }
        let (mut addresses, mut devices) = (BTreeSet::new(), BTreeSet::new());
        if let Some(old) = &old {
            self.claim(old, false, &mut addresses, &mut devices);
        }
        self.claim(&new, true, &mut addresses, &mut devices);
        self.pods.insert(name.clone(), new);
        let change = if old.is_some() { Change::Other } else { Change::New };
        if change == Change::New {
            self.joined(&name.namespace);
        }
        if self.settle(&addresses, &devices, Some(&name)) { change } else { Change::None }
    }

    fn remove_pod(&mut self, name: &ObjectName) -> bool {
        let Some(old) = self.pods.remove(name) else { return false };
        self.model.pods.remove(name);
        let (mut addresses, mut devices) = (BTreeSet::new(), BTreeSet::new());
        self.claim(&old, false, &mut addresses, &mut devices);
        self.settle(&addresses, &devices, None);
        true
    }

    /// Makes or withdraws the claims of a pod; adds what they are about.
    fn claim(
        &mut self,
        pod: &ApiPod,
        add: bool,
        addresses: &mut BTreeSet<IpAddr>,
        devices: &mut BTreeSet<(Option<String>, String)>,
    ) {
        if pod.pod.host_network || pod.pod.finished {
            return;
        }
        let owner = || Owner::Pod { pod: pod.pod.clone(), leaving: pod.leaving };
        for address in &pod.pod.addresses {
            self.addresses.change(address, owner(), add);
            addresses.insert(*address);
        }
        if let Some(device) = &pod.pod.interface {
            let device = (pod.pod.node.clone(), device.clone());
            self.devices.change(&device, owner(), add);
            devices.insert(device);
        }
    }

    /// Brings every pod with a claim on these in line, and the pod `name`. Whether one is different now.
    fn settle(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        devices: &BTreeSet<(Option<String>, String)>,
        name: Option<&ObjectName>,
    ) -> bool {
        let mut names: BTreeSet<ObjectName> = name.cloned().into_iter().collect();
        let claimants = addresses.iter().flat_map(|a| self.addresses.of(a));
        let claimants = claimants.chain(devices.iter().flat_map(|d| self.devices.of(d)));
        names.extend(claimants.filter_map(|o| o.pod().map(|p| p.name.clone())));
        let mut changed = false;
        for name in names {
            let Some(pod) = self.pods.get(&name).map(|p| p.pod.clone()) else { continue };
            let settled = self.settled(pod);
            changed |= replace(&mut self.model.pods, name, settled) != Change::None;
        }
        changed
    }

    /// A pod with those of its claims that it has.
    fn settled(&self, mut pod: Arc<Pod>) -> Arc<Pod> {
        if pod.host_network || pod.finished {
            return pod;
        }
        let wins =
            |owners: &[Owner]| owners.first().is_none_or(|o| o.pod().is_some_and(|p| p.name == pod.name));
        let keeps: Vec<IpAddr> =
            pod.addresses.iter().copied().filter(|a| wins(self.addresses.of(a))).collect();
        let device = pod.interface.as_ref().map(|d| (pod.node.clone(), d.clone()));
        let loses_device = device.is_some_and(|d| !wins(self.devices.of(&d)));
        if keeps.len() < pod.addresses.len() {
            Arc::make_mut(&mut pod).addresses = keeps;
        }
        if loses_device {
            Arc::make_mut(&mut pod).interface = None;
        }
        pod
    }

    fn entered(&mut self, change: Change, key: &Key) -> Change {
        if change == Change::New {
            self.joined(&key.name.namespace);
        }
        change
    }

    /// An object more in a namespace, which so exists.
    fn joined(&mut self, namespace: &str) {
        match self.members.get_mut(namespace) {
            Some(count) => *count += 1,
            None => drop(self.members.insert(namespace.to_owned(), 1)),
        }
        if !self.model.namespaces.contains_key(namespace) {
            self.imply(namespace);
        }
    }

    fn imply(&mut self, namespace: &str) {
        let labels = [("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())].into();
        let implied = Namespace { name: namespace.to_owned(), labels, origin: Origin::Implied };
        self.model.namespaces.insert(namespace.to_owned(), Arc::new(implied));
    }

    /// An object less in a namespace.
    fn left(&mut self, namespace: &str) {
        let Some(count) = self.members.get_mut(namespace) else { return };
        *count -= 1;
        if *count == 0 {
            self.members.remove(namespace);
            if self.model.namespaces.get(namespace).is_some_and(|n| n.origin == Origin::Implied) {
                self.model.namespaces.remove(namespace);
            }
        }
    }

    fn remove_namespace(&mut self, name: &str) -> bool {
        let known = self.model.namespaces.get(name).is_some_and(|n| n.origin != Origin::Implied);
        if known {
            self.model.namespaces.remove(name);
            if self.members.contains_key(name) {
                self.imply(name);
            }
        }
        known
    }
}

/// What became of a place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    New,
    Other,
}

/// Puts `value` in place of what is there, which stays if it is equal.
fn replace<K: Ord, V: PartialEq>(map: &mut Table<K, V>, key: K, value: Arc<V>) -> Change {
    // Looked at first: a place that is given out to be changed is one that is copied.
    match map.get(&key) {
        Some(old) if *old == value => return Change::None,
        _ => {}
    }
    if map.insert(key, value).is_some() { Change::Other } else { Change::New }
}
