//! Objects of all files to one model: duplicates, conflicting claims, and what stays in force when a
//! document is bad.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::document::{self, Fault};
use super::kinds::{KINDS, Key, Kind, Object, closed};
use super::{Problem, Severity};
use crate::model::{Model, Namespace, ObjectName, Origin, Pod, Table};

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct FileObjects {
    /// Decoded objects.
    pub(super) good: Vec<(Key, Object)>,
    /// Objects that could not be decoded but say which they are.
    pub(super) bad: BTreeSet<Key>,
    /// What is in force of some of those that never were good.
    pub(super) closed: Vec<(Key, Object)>,
    /// Whether something could not be read that does not even say which object it is.
    pub(super) unknown_bad: bool,
    /// What is wrong in it.
    pub(super) problems: Vec<Problem>,
}

impl FileObjects {
    /// A file none of which can be read.
    pub(super) fn unreadable(path: &Arc<str>, reason: String) -> Self {
        let problems = vec![Problem::in_file(Severity::Error, path, 0, reason)];
        Self { unknown_bad: true, problems, ..Self::default() }
    }

    /// Reads a file's text.
    pub(super) fn read(path: &Arc<str>, text: &str) -> Self {
        let mut out = Self::default();
        for document in document::read(path, text) {
            let doc = match document {
                Ok(doc) => doc,
                Err(Fault { line, reason }) => {
                    out.unknown_bad = true;
                    out.problems.push(Problem::in_file(Severity::Error, path, line, reason));
                    continue;
                }
            };
            let kind = match known(&doc.api_version, &doc.kind) {
                Known::Kind(kind) => kind,
                Known::OtherVersion(kind) => {
                    out.unknown_bad = true;
                    let (line, of) = (doc.line("apiVersion"), doc.kind.as_str());
                    let reason = format!(
                        "apiVersion: {:?} of {of} is not known; want {}",
                        doc.api_version,
                        kind.api()
                    );
                    out.problems.push(Problem::in_file(Severity::Error, path, line, reason));
                    continue;
                }
                Known::No => {
                    let reason = format!("{} {} is not used by the dataplane", doc.api_version, doc.kind);
                    out.problems.push(doc.problem(Severity::Ignored, Fault { line: doc.line(""), reason }));
                    continue;
                }
            };
            let key = doc.identity(kind.namespaced).map(|name| Key { kind: kind.kind, name });
            match ((kind.load)(&doc, &mut out.problems), key) {
                (Ok(object), Some(key)) => out.good.push((key, object)),
                (Ok(_), None) => out.unknown_bad = true,
                (Err(faults), key) => {
                    match key {
                        Some(key) => {
                            out.closed.extend(closed(kind, &doc).map(|object| (key.clone(), object)));
                            out.bad.insert(key);
                        }
                        None => out.unknown_bad = true,
                    }
                    out.problems.extend(faults.into_iter().map(|f| doc.problem(Severity::Error, f)));
                }
            }
        }
        out
    }
}

enum Known {
    Kind(&'static Kind),
    OtherVersion(&'static Kind),
    No,
}

fn known(api_version: &str, kind: &str) -> Known {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    match KINDS.iter().find(|k| k.group == group && k.kind == kind) {
        Some(k) if k.version == version => Known::Kind(k),
        Some(k) => Known::OtherVersion(k),
        None => Known::No,
    }
}

/// The objects in force, and what is wrong across files.
#[derive(Debug)]
pub(super) struct Assembled {
    /// Objects in force, before conflicts are settled.
    pub(super) objects: BTreeMap<Key, Object>,
    /// The model of them.
    pub(super) model: Model,
    /// Duplicates and conflicts.
    pub(super) problems: Vec<Problem>,
}

/// Makes one model of `files`; `last` is what was in force before.
///
/// A bad document leaves its object's last good state in force; a policy that never was good isolates all the same. One that does not say which object it is leaves
/// in force all that its file held before and no longer shows.
pub(super) fn assemble(
    files: &BTreeMap<Arc<str>, Arc<FileObjects>>,
    last: &BTreeMap<Key, Object>,
) -> Assembled {
    let mut problems = Vec::new();
    let mut objects: BTreeMap<Key, Object> = BTreeMap::new();
    let mut doubled: BTreeSet<Key> = BTreeSet::new();
    for (key, object) in files.values().flat_map(|f| &f.good) {
        match objects.get(key) {
            None => drop(objects.insert(key.clone(), object.clone())),
            Some(first) => {
                doubled.insert(key.clone());
                let reason =
                    format!("{key} is there twice, also at {}; this one is not in force", first.origin());
                problems.push(Problem { origin: object.origin().clone(), severity: Severity::Error, reason });
            }
        }
    }
    // A second claim to a name must not replace what was in force.
    for key in doubled {
        if let Some(object) = last.get(&key) {
            objects.insert(key, object.clone());
        }
    }
    for key in files.values().flat_map(|f| &f.bad) {
        if let (false, Some(object)) = (objects.contains_key(key), last.get(key))
            && !object.is_closed()
        {
            objects.insert(key.clone(), object.clone());
        }
    }
    for (key, object) in files.values().flat_map(|f| &f.closed) {
        objects.entry(key.clone()).or_insert_with(|| object.clone());
    }
    for (key, object) in last {
        let keeps = |path: &Arc<str>| files.get(path).is_some_and(|f| f.unknown_bad);
        if matches!(object.origin(), Origin::File { path, .. } if keeps(path)) && !objects.contains_key(key) {
            objects.insert(key.clone(), object.clone());
        }
    }
    let mut model = Model::default();
    for object in objects.values() {
        object.insert(&mut model);
    }
    imply_namespaces(&objects, &mut model);
    settle_addresses(&mut model, &mut problems);
    settle_interfaces(&mut model, &mut problems);
    overlapping_cidrs(&model, &mut problems);
    Assembled { objects, model, problems }
}

/// Every namespace that an object lives in exists, with its name as label, also without a manifest.
fn imply_namespaces(objects: &BTreeMap<Key, Object>, model: &mut Model) {
    for name in objects.values().filter_map(Object::namespace) {
        if !model.namespaces.contains_key(name) {
            let labels = [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into();
            let namespace = Namespace { name: name.to_owned(), labels, origin: Origin::Implied };
            model.namespaces.insert(name.to_owned(), Arc::new(namespace));
        }
    }
}

pub(super) fn warn(origin: &Origin, reason: String) -> Problem {
    Problem { origin: origin.clone(), severity: Severity::Warning, reason }
}

/// An address belongs to one: a node before a pod, then the pod whose namespace and name come first.
fn settle_addresses(model: &mut Model, problems: &mut Vec<Problem>) {
    let mut owners: HashMap<IpAddr, (String, Origin)> = HashMap::new();
    for node in model.nodes.values() {
        for a in &node.addresses {
            if let Some((other, at)) = owners.get(a) {
                problems.push(warn(&node.origin, format!("address {a} is also that of {other} ({at})")));
            } else {
                owners.insert(*a, (format!("Node {}", node.name), node.origin.clone()));
            }
        }
    }
    for pod in model.pods.values_mut().filter(|p| !p.host_network && !p.finished) {
        let mut lost = Vec::new();
        for a in &pod.addresses {
            if let Some((other, at)) = owners.get(a) {
                let reason =
                    format!("address {a} belongs to {other} ({at}); Pod {} is not given it", pod.name);
                problems.push(warn(&pod.origin, reason));
                lost.push(*a);
            } else {
                owners.insert(*a, (format!("Pod {}", pod.name), pod.origin.clone()));
            }
        }
        if !lost.is_empty() {
            Arc::make_mut(pod).addresses.retain(|a| !lost.contains(a));
        }
    }
}

/// A device belongs to one pod of a node: the one whose namespace and name come first.
fn settle_interfaces(model: &mut Model, problems: &mut Vec<Problem>) {
    let mut owners: HashMap<(Option<String>, String), (ObjectName, Origin)> = HashMap::new();
    let live = |p: &&mut Arc<Pod>| !p.host_network && !p.finished;
    for pod in model.pods.values_mut().filter(live) {
        let Some(interface) = pod.interface.clone() else { continue };
        let device = (pod.node.clone(), interface);
        if let Some((other, at)) = owners.get(&device) {
            let reason = format!(
                "interface {} belongs to Pod {other} ({at}); Pod {} is not given it",
                device.1, pod.name
            );
            problems.push(warn(&pod.origin, reason));
            Arc::make_mut(pod).interface = None;
        } else {
            owners.insert(device, (pod.name.clone(), pod.origin.clone()));
        }
    }
}

/// Nodes whose pod CIDRs overlap: routes to them cannot both be right.
pub(super) fn overlapping_cidrs(model: &Model, problems: &mut Vec<Problem>) {
    let mut all: Vec<_> = model
        .nodes
        .values()
        .flat_map(|n| n.pod_cidrs.iter().map(move |c| (c.network(), c.prefix_len(), *c, n)))
        .collect();
    // By first address, larger first: a CIDR overlaps an earlier one iff it lies in the last open one.
    all.sort_by_key(|(first, len, _, n)| (*first, *len, n.name.clone()));
    let mut open: Option<(ipnet::IpNet, &str)> = None;
    for (_, _, cidr, node) in &all {
        match open {
            Some((outer, other)) if outer.contains(cidr) => {
                let reason =
                    format!("pod CIDR {cidr} of Node {} overlaps {outer} of Node {other}", node.name);
                let name = ObjectName { namespace: String::new(), name: node.name.clone() };
                problems.push(warn(&node.origin.of("Node", &name), reason));
            }
            _ => open = Some((*cidr, &node.name)),
        }
    }
}

/// Keeps the `Arc`s of `old` for objects that are equal in `new`, and what its tables share.
pub(super) fn reuse(old: &Model, new: &mut Model) {
    /// What is left of `old` when all that differs is as in `new`: chunks without a difference stay shared.
    fn each<K: Ord + Clone, V: PartialEq>(old: &Table<K, V>, new: &mut Table<K, V>) {
        let mut kept = old.clone();
        for (key, before, after) in old.diff(new) {
            match after {
                Some(after) if before.is_some_and(|b| b == after) => {}
                Some(after) => drop(kept.insert(key.clone(), after.clone())),
                None => drop(kept.remove(key)),
            }
        }
        *new = kept;
    }
    each(&old.nodes, &mut new.nodes);
    each(&old.namespaces, &mut new.namespaces);
    each(&old.pods, &mut new.pods);
    each(&old.policies, &mut new.policies);
    each(&old.services, &mut new.services);
    each(&old.slices, &mut new.slices);
}
