//! The endpoints that the CNI plugin made, laid over what the source says.
//!
//! The source learns a pod's addresses only after the plugin has returned, and never its device: both come from the
//! plugin's record. A record and a pod belong together by namespace, name and, where both have one, uid, so that an
//! older pod of the same name is not taken for the new one.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use crate::cni::record::{Key, Record, RecordFile, Store, StoreError, boot_id};
use crate::model::{Model, ObjectName, Pod, Table};

/// The records, and the model with them.
#[derive(Debug)]
pub(super) struct Endpoints {
    store: Store,
    boot: String,
    /// Those that are served: of this boot, not being taken down.
    records: BTreeMap<Key, Arc<Record>>,
    /// The pod of each, once the source shows it; of several records for one pod the newest has it.
    pods: BTreeMap<Key, ObjectName>,
    /// What each file held when it was read.
    read: BTreeMap<RecordFile, Content>,
    /// Records that cannot be read.
    problems: Vec<String>,
    /// The source's model, and what it became.
    overlaid: Option<(Arc<Model>, Arc<Model>)>,
    /// The source's pods of this node.
    here: BTreeSet<ObjectName>,
    /// What there is before the source's first model.
    nothing: Arc<Model>,
    /// Records have changed since.
    stale: bool,
}

/// What a file holds.
#[derive(Debug)]
enum Content {
    /// A record that is served.
    Served(Arc<Record>),
    /// One that is not, or nothing any more.
    Nothing,
    /// What makes no sense.
    Wrong(String),
}

impl Endpoints {
    /// Those that earlier plugins recorded in `data_dir`.
    pub(super) fn open(data_dir: &Path) -> Self {
        let mut endpoints = Self {
            store: Store::of(data_dir),
            boot: boot_id(),
            records: BTreeMap::new(),
            pods: BTreeMap::new(),
            read: BTreeMap::new(),
            problems: Vec::new(),
            overlaid: None,
            here: BTreeSet::new(),
            nothing: Arc::default(),
            stale: false,
        };
        endpoints.reload();
        endpoints
    }

    /// Reads the records that are new since the last time: what a plugin could not tell the daemon, because it was away or
    /// slow, shows there. Returns whether anything is other now.
    pub(super) fn reload(&mut self) -> bool {
        let before = (self.records.clone(), self.problems.clone());
        match self.store.files() {
            Ok(files) => self.follow(files),
            // What is known stays in force.
            Err(e) => self.problems = vec![format!("endpoint records: {e}")],
        }
        let differs = before != (self.records.clone(), self.problems.clone());
        self.stale |= differs;
        differs
    }

    fn follow(&mut self, files: BTreeSet<RecordFile>) {
        let (mut read, mut unread) = (BTreeMap::new(), Vec::new());
        for file in files {
            let known = self.read.remove(&file);
            let content = known.map_or_else(|| self.look(&file), Ok);
            match content {
                Ok(content) => {
                    read.insert(file, content);
                }
                Err(e) => unread.push((file, e)),
            }
        }
        self.read = read;
        self.problems.clear();
        let known = std::mem::take(&mut self.records);
        for (file, e) in unread {
            self.problems.push(format!("endpoint record: {e}"));
            // What is known stays in force, and the file is read again the next time.
            let stays = known.values().find(|r| Some(r.device.as_str()) == file.device());
            self.records.extend(stays.map(|r| (r.key.clone(), Arc::clone(r))));
        }
        for content in self.read.values() {
            match content {
                Content::Served(record) => {
                    self.records.insert(record.key.clone(), Arc::clone(record));
                }
                Content::Nothing => {}
                Content::Wrong(problem) => self.problems.push(problem.clone()),
            }
        }
    }

    /// Reads a file; an error is one of reading, and may be another the next time.
    fn look(&self, file: &RecordFile) -> Result<Content, StoreError> {
        match self.store.open(file) {
            Ok(Some(record)) if self.is_served(&record) => Ok(Content::Served(Arc::new(record))),
            Ok(_) => Ok(Content::Nothing),
            Err(e @ StoreError::Wrong { .. }) => Ok(Content::Wrong(format!("endpoint record: {e}"))),
            Err(e) => Err(e),
        }
    }

    fn is_served(&self, record: &Record) -> bool {
        !record.deleting && record.boot == self.boot
    }

    /// Takes a record over.
    pub(super) fn insert(&mut self, record: Record) {
        self.records.insert(record.key.clone(), Arc::new(record));
        self.stale = true;
    }

    /// Forgets a record; returns whether it was there.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        let known = self.records.remove(key).is_some();
        self.stale |= known;
        known
    }

    /// A record.
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Record>> {
        self.records.get(key)
    }

    /// Every record that is served.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values().map(AsRef::as_ref)
    }

    /// The record of a pod.
    pub(super) fn of_pod(&self, pod: &ObjectName) -> Option<&Record> {
        let key = self.pods.iter().find(|(_, name)| *name == pod).map(|(key, _)| key)?;
        self.records.get(key).map(AsRef::as_ref)
    }

    /// The pod of a record, if the source shows it.
    pub(super) fn pod_of(&self, key: &Key) -> Option<&ObjectName> {
        self.pods.get(key)
    }

    /// Names of the source's pods of this node, as of the last [`Endpoints::overlay`].
    pub(super) fn here(&self) -> impl Iterator<Item = &ObjectName> {
        self.here.iter()
    }

    /// The records of which the source shows no pod: whatever is behind them is under no policy, and denied all.
    pub(super) fn strangers(&self) -> impl Iterator<Item = &Record> {
        self.records.values().filter(|r| !self.pods.contains_key(&r.key)).map(AsRef::as_ref)
    }

    /// Records that cannot be read or make no sense, one sentence each.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Addresses that live pods of this node have by the source, and that are in no record.
    pub(super) fn foreign_addresses(&self, source: &Model, node: &str) -> BTreeSet<IpAddr> {
        let ours = source.pods.values().filter(|p| p.node.as_deref() == Some(node));
        let live = ours.filter(|p| !p.host_network && !p.finished);
        let mut all: BTreeSet<IpAddr> = live.flat_map(|p| p.addresses.iter().copied()).collect();
        for ip in self.records.values().flat_map(|r| &r.addresses) {
            all.remove(ip);
        }
        all
    }

    /// The source's model with the records laid over it. The same `Arc` when neither has changed, or nothing came of it,
    /// and each object in it.
    ///
    /// `netns`: pods get their namespace too, for the daemon to enter.
    pub(super) fn overlay(&mut self, source: &Arc<Model>, node: &str, netns: bool) -> Arc<Model> {
        if let Some((from, to)) = &self.overlaid
            && !self.stale
            && Arc::ptr_eq(from, source)
        {
            return Arc::clone(to);
        }
        self.stale = false;
        let last = self.overlaid.take();
        let (from, before) = last.as_ref().map_or((&self.nothing, &self.nothing), |(from, to)| (from, to));
        // What differs in the source, on top of what was made of it last: all else stays shared with that.
        let mut pods = before.pods.clone();
        for (name, _, now) in from.pods.diff(&source.pods) {
            match now {
                Some(pod) => drop(pods.insert(name.clone(), Arc::clone(pod))),
                None => drop(pods.remove(name)),
            }
            if now.is_some_and(|p| p.node.as_deref() == Some(node)) {
                self.here.insert(name.clone());
            } else {
                self.here.remove(name);
            }
        }
        let mut claims: HashMap<&ObjectName, &Arc<Record>> = HashMap::new();
        for record in self.records.values() {
            let name = record.pod.object_name();
            let Some((name, _)) = source.pods.get_key_value(&name).filter(|(_, p)| belongs(record, p, node))
            else {
                continue;
            };
            let newest = claims.entry(name).or_insert(record);
            if record.created_us > newest.created_us {
                *newest = record;
            }
        }
        self.pods = claims.iter().map(|(name, r)| (r.key.clone(), (*name).clone())).collect();
        let to = if self.records.is_empty() {
            Arc::clone(source)
        } else {
            lay_over(source, &claims, &self.records, &self.here, netns, &mut pods);
            let model = Model { pods, ..(**source).clone() };
            if last.is_some() && **before == model { Arc::clone(before) } else { Arc::new(model) }
        };
        self.overlaid = Some((Arc::clone(source), Arc::clone(&to)));
        to
    }
}

/// Whether a record is of this pod.
fn belongs(record: &Record, pod: &Pod, node: &str) -> bool {
    let same_uid = match (&record.pod.uid, &pod.uid) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    same_uid && pod.node.as_deref() == Some(node) && !pod.host_network && !pod.finished
}

fn lay_over(
    source: &Model,
    claims: &HashMap<&ObjectName, &Arc<Record>>,
    records: &BTreeMap<Key, Arc<Record>>,
    here: &BTreeSet<ObjectName>,
    netns: bool,
    pods: &mut Table<ObjectName, Pod>,
) {
    // An address that IPAM has given out anew is no longer that of a pod the API still shows with it.
    let mut owners: HashMap<IpAddr, &Record> = HashMap::new();
    for record in records.values() {
        for ip in &record.addresses {
            let owner = owners.entry(*ip).or_insert(record);
            if record.created_us > owner.created_us {
                *owner = record;
            }
        }
    }
    for (name, pod) in here.iter().filter_map(|name| source.pods.get_key_value(name)) {
        let claim = claims.get(name);
        let is_theirs = |ip: &IpAddr| owners.get(ip).is_none_or(|o| claim.is_some_and(|c| o.key == c.key));
        let object = match claim {
            Some(record) => laid_over(
                pod,
                Pod {
                    addresses: record.addresses.iter().copied().filter(|ip| is_theirs(ip)).collect(),
                    interface: Some(record.device.clone()),
                    mac: Some(record.mac),
                    netns: netns.then(|| record.netns.clone()),
                    ..(**pod).clone()
                },
            ),
            None if pod.host_network || pod.addresses.iter().all(is_theirs) => Arc::clone(pod),
            None => laid_over(
                pod,
                Pod {
                    addresses: pod.addresses.iter().copied().filter(|ip| is_theirs(ip)).collect(),
                    ..(**pod).clone()
                },
            ),
        };
        // The object that was there, if it is equal: what reads the model sees that it is the same.
        if pods.get(name) != Some(&object) {
            pods.insert(name.clone(), object);
        }
    }
}

/// The pod as the source has it, if it is that.
fn laid_over(pod: &Arc<Pod>, other: Pod) -> Arc<Pod> {
    if **pod == other { Arc::clone(pod) } else { Arc::new(other) }
}

#[cfg(test)]
pub(super) mod tests;
