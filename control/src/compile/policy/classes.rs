//! Peer sets (the peers of one rule) and peer classes (addresses that are in the same peer sets).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use fastpath::tables::policy::ClassId;

use super::select::PodSet;
use crate::model::{IpBlock, Peer, Protocol};

/// One distinct list of peers. Never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerSetId(u32);

/// One distinct (port name, protocol). Never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NameId(u32);

/// A peer with its namespace worked in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Member {
    Pods(PodSet),
    Block(IpBlock),
}

/// Gives numbers to peer sets and port names.
#[derive(Debug, Default)]
pub(super) struct Interner {
    sets: HashMap<Vec<Member>, PeerSetId>,
    names: HashMap<(String, Protocol), NameId>,
    next: u32,
}

impl Interner {
    /// The set of a rule's peers; the order they are written in is of no account.
    pub(super) fn peer_set(&mut self, namespace: &str, peers: &[Peer]) -> PeerSetId {
        let member = |peer: &Peer| match peer {
            Peer::Pods { namespaces, pods } => Member::Pods(PodSet::peer(namespace, namespaces, pods)),
            Peer::Block(block) => Member::Block(block.clone()),
        };
        let mut members: Vec<_> = peers.iter().map(member).collect();
        members.sort_unstable();
        members.dedup();
        let next = &mut self.next;
        *self.sets.entry(members).or_insert_with(|| {
            *next += 1;
            PeerSetId(*next)
        })
    }

    pub(super) fn name(&mut self, name: &str, protocol: Protocol) -> NameId {
        let next = &mut self.next;
        *self.names.entry((name.to_owned(), protocol)).or_insert_with(|| {
            *next += 1;
            NameId(*next)
        })
    }

    /// The number of a name in use, `None` for a name that no rule has.
    pub(super) fn known_name(&self, name: &str, protocol: u8) -> Option<NameId> {
        self.names.get(&(name.to_owned(), Protocol::from_number(protocol)?)).copied()
    }

    /// The sets of `used` with their members; all others are forgotten.
    pub(super) fn retain(&mut self, sets: &BTreeSet<PeerSetId>, names: &BTreeSet<NameId>) {
        self.sets.retain(|_, id| sets.contains(id));
        self.names.retain(|_, id| names.contains(id));
    }

    /// Every set, by number.
    pub(super) fn sets(&self) -> BTreeMap<PeerSetId, &[Member]> {
        self.sets.iter().map(|(members, id)| (*id, members.as_slice())).collect()
    }

    /// How many numbers were given out.
    pub(super) fn given_out(&self) -> u32 {
        self.next
    }
}

/// Port names of a pod that rules use, and the numbers they stand for; sorted.
pub(super) type Resolution = Vec<(NameId, u16)>;

/// What rules can tell of an address: all that makes a class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Signature {
    /// Peer sets that hold it, sorted.
    pub(super) sets: Vec<PeerSetId>,
    /// What the port names of egress rules stand for on it.
    pub(super) ports: Resolution,
}

/// Classes in use and how many addresses and prefixes each has.
#[derive(Debug, Default)]
pub(super) struct Classes {
    ids: HashMap<Arc<Signature>, ClassId>,
    live: HashMap<ClassId, (Arc<Signature>, usize)>,
    by_set: HashMap<PeerSetId, BTreeSet<ClassId>>,
    by_name: HashMap<NameId, BTreeSet<ClassId>>,
    next: u32,
    /// Sets and names whose classes changed since the last [`Classes::settle`].
    pub(super) touched_sets: HashSet<PeerSetId>,
    pub(super) touched_names: HashSet<NameId>,
}

impl Classes {
    /// The class of a signature, with one user more.
    pub(super) fn acquire(&mut self, signature: Signature) -> ClassId {
        if signature == Signature::default() {
            return ClassId::OTHER;
        }
        if let Some(id) = self.ids.get(&signature) {
            if let Some((_, users)) = self.live.get_mut(id) {
                *users += 1;
            }
            return *id;
        }
        self.next += 1;
        let id = ClassId(self.next);
        for set in &signature.sets {
            self.by_set.entry(*set).or_default().insert(id);
            self.touched_sets.insert(*set);
        }
        for (name, _) in &signature.ports {
            self.by_name.entry(*name).or_default().insert(id);
            self.touched_names.insert(*name);
        }
        let signature = Arc::new(signature);
        self.ids.insert(signature.clone(), id);
        self.live.insert(id, (signature, 1));
        id
    }

    /// One user less.
    pub(super) fn release(&mut self, id: ClassId) {
        if let Some((_, users)) = self.live.get_mut(&id) {
            *users = users.saturating_sub(1);
        }
    }

    /// Forgets classes without users.
    pub(super) fn settle(&mut self) {
        let dead: Vec<_> =
            self.live.iter().filter(|(_, (_, users))| *users == 0).map(|(id, _)| *id).collect();
        for id in dead {
            let Some((signature, _)) = self.live.remove(&id) else { continue };
            self.ids.remove(&signature);
            for set in &signature.sets {
                self.touched_sets.insert(*set);
                if let Some(classes) = self.by_set.get_mut(set) {
                    classes.remove(&id);
                    if classes.is_empty() {
                        self.by_set.remove(set);
                    }
                }
            }
            for (name, _) in &signature.ports {
                self.touched_names.insert(*name);
                if let Some(classes) = self.by_name.get_mut(name) {
                    classes.remove(&id);
                    if classes.is_empty() {
                        self.by_name.remove(name);
                    }
                }
            }
        }
    }

    pub(super) fn with_set(&self, set: PeerSetId) -> impl Iterator<Item = ClassId> + '_ {
        self.by_set.get(&set).into_iter().flatten().copied()
    }

    pub(super) fn with_name(&self, name: NameId) -> impl Iterator<Item = ClassId> + '_ {
        self.by_name.get(&name).into_iter().flatten().copied()
    }

    /// What is known of the addresses of a class; `None` for [`ClassId::OTHER`].
    pub(super) fn signature(&self, id: ClassId) -> Option<&Signature> {
        self.live.get(&id).map(|(s, _)| s.as_ref())
    }

    /// Number of classes, without [`ClassId::OTHER`].
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// How many numbers were given out.
    pub(super) fn given_out(&self) -> u32 {
        self.next
    }
}
