//! Peer sets (the peers of one rule) and peer classes (addresses that are in the same peer sets).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::policy::ClassId;
use hashbrown::{HashMap, HashSet};

use super::blocks::host_of;
use super::few::Few;
use super::pods::Pods;
use super::select::{PodSet, Selections, SetId};
use crate::model::{IpBlock, Peer, Protocol};

/// One distinct list of peers. Never given out again while anything knows it; but in the place of a list that goes, one
/// that comes may have its number: its members changed, which is less than a set and its classes made and forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerSetId(u32);

/// One distinct (port name, protocol). Never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NameId(u32);

/// A peer with its namespace worked in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Member {
    Pods(SetId),
    Block(IpBlock),
}

/// The peers of a peer set. Long policies are mostly of rules for one address, which needs no memory of its own.
#[derive(Clone, Debug)]
pub(super) enum Peers {
    /// A block of one address, nothing excepted.
    Host(Ip),
    /// Anything else, sorted, each once.
    Members(Arc<[Member]>),
}

impl Peers {
    fn members(&self) -> &[Member] {
        match self {
            Peers::Host(_) => &[],
            Peers::Members(members) => members,
        }
    }

    /// The pod sets among them.
    pub(super) fn pods(&self) -> impl Iterator<Item = SetId> + '_ {
        self.members().iter().filter_map(|member| match member {
            Member::Pods(set) => Some(*set),
            Member::Block(_) => None,
        })
    }

    /// The blocks among them, but for [`Peers::Host`].
    pub(super) fn blocks(&self) -> impl Iterator<Item = &IpBlock> {
        self.members().iter().filter_map(|member| match member {
            Member::Pods(_) => None,
            Member::Block(block) => Some(block),
        })
    }
}

/// Gives numbers to peer sets and port names, for as long as rules have them.
#[derive(Debug, Default)]
pub(super) struct Interner {
    hosts: HashMap<Ip, PeerSetId>,
    ids: HashMap<Arc<[Member]>, PeerSetId>,
    sets: HashMap<PeerSetId, Users>,
    /// The peer sets that a pod set is in.
    of_pods: HashMap<SetId, BTreeSet<PeerSetId>>,
    /// Numbers of port names by protocol, and how many rules have each.
    names: HashMap<(String, Protocol), (NameId, usize)>,
    by_name: HashMap<NameId, (String, Protocol)>,
    next: u32,
    /// Peer sets that are new since [`Interner::take_changed`], or have other members.
    fresh: Vec<PeerSetId>,
    /// The members that some of them had before.
    changed: Vec<(PeerSetId, Peers)>,
    /// Those that lost their last user since; they may have another.
    idle: VecDeque<PeerSetId>,
    /// Emptied after each use.
    members: Vec<Member>,
}

#[derive(Debug)]
struct Users {
    peers: Peers,
    count: usize,
    /// It is in [`Interner::fresh`].
    fresh: bool,
}

impl Interner {
    /// The set of a rule's peers, with one user more; the order they are written in is of no account.
    ///
    /// # Errors
    /// When there is none, with its members, for [`Interner::add`] once the sets that are no longer wanted are released.
    pub(super) fn peer_set(
        &mut self,
        selections: &mut Selections,
        pods: &Pods,
        namespace: &str,
        peers: &[Peer],
    ) -> Result<PeerSetId, Peers> {
        if let [Peer::Block(block)] = peers
            && let Some(ip) = host_of(block)
        {
            return self.known_host(ip);
        }
        let mut member = |peer: &Peer| match peer {
            Peer::Pods { namespaces, pods: labels } => {
                Member::Pods(selections.acquire(pods, PodSet::peer(namespace, namespaces, labels)))
            }
            Peer::Block(block) => Member::Block(block.clone()),
        };
        let mut members = std::mem::take(&mut self.members);
        members.clear();
        members.extend(peers.iter().map(&mut member));
        members.sort_unstable();
        members.dedup_by(|a, b| {
            let double = a == b;
            if let (true, Member::Pods(set)) = (double, &a) {
                selections.release(*set);
            }
            double
        });
        let found = if let [Member::Block(block)] = &members[..]
            && let Some(ip) = host_of(block)
        {
            self.known_host(ip)
        } else if let Some(id) = self.ids.get(&members[..]).copied() {
            release_pods(&members, selections);
            self.more(id);
            Ok(id)
        } else {
            Err(Peers::Members(members.drain(..).collect()))
        };
        self.members = members;
        found
    }

    fn known_host(&mut self, ip: Ip) -> Result<PeerSetId, Peers> {
        let id = self.hosts.get(&ip).copied().ok_or(Peers::Host(ip))?;
        self.more(id);
        Ok(id)
    }

    /// One user more.
    fn more(&mut self, id: PeerSetId) {
        if let Some(users) = self.sets.get_mut(&id) {
            users.count += 1;
        }
    }

    /// The set of the peers that [`Interner::peer_set`] gave, with one user more.
    pub(super) fn add(&mut self, selections: &mut Selections, peers: Peers) -> PeerSetId {
        let known = match &peers {
            Peers::Host(ip) => self.hosts.get(ip),
            Peers::Members(members) => self.ids.get(members),
        };
        if let Some(id) = known.copied() {
            release_pods(peers.members(), selections);
            self.more(id);
            return id;
        }
        while let Some(id) = self.idle.pop_front() {
            let Some(users) = self.sets.get_mut(&id).filter(|users| users.count == 0) else { continue };
            let before = std::mem::replace(users, Users { peers: peers.clone(), count: 1, fresh: true });
            self.unfile(id, &before.peers);
            self.file(id, &peers);
            if before.fresh {
                // It came and went before anything heard of it.
                release_pods(before.peers.members(), selections);
            } else {
                self.changed.push((id, before.peers));
                self.fresh.push(id);
            }
            return id;
        }
        self.next += 1;
        let id = PeerSetId(self.next);
        self.file(id, &peers);
        self.sets.insert(id, Users { peers, count: 1, fresh: true });
        self.fresh.push(id);
        id
    }

    /// Has a set found by its peers.
    fn file(&mut self, id: PeerSetId, peers: &Peers) {
        match peers {
            Peers::Host(ip) => self.hosts.insert(*ip, id),
            Peers::Members(members) => self.ids.insert(Arc::clone(members), id),
        };
        for set in peers.pods() {
            self.of_pods.entry(set).or_default().insert(id);
        }
    }

    fn unfile(&mut self, id: PeerSetId, peers: &Peers) {
        match peers {
            Peers::Host(ip) => self.hosts.remove(ip),
            Peers::Members(members) => self.ids.remove(members),
        };
        for set in peers.pods() {
            if let Some(sets) = self.of_pods.get_mut(&set) {
                sets.remove(&id);
                if sets.is_empty() {
                    self.of_pods.remove(&set);
                }
            }
        }
    }

    /// One user less. The set is there until [`Interner::take_changed`].
    pub(super) fn release(&mut self, id: PeerSetId) {
        if let Some(users) = self.sets.get_mut(&id) {
            users.count = users.count.saturating_sub(1);
            if users.count == 0 {
                self.idle.push_back(id);
            }
        }
    }

    /// Peer sets that came and went since the last call, with their peers. The pod sets in the second list
    /// are still to be released.
    pub(super) fn take_changed(&mut self) -> [Vec<(PeerSetId, Peers)>; 2] {
        let (mut fresh, mut gone) = (std::mem::take(&mut self.fresh), std::mem::take(&mut self.changed));
        let mut idle: Vec<_> = self.idle.drain(..).collect();
        idle.sort_unstable();
        idle.dedup();
        for id in idle {
            if self.sets.get(&id).is_none_or(|users| users.count > 0) {
                continue;
            }
            if let Some(users) = self.sets.remove(&id) {
                self.unfile(id, &users.peers);
                gone.push((id, users.peers));
            }
        }
        let mut known = |id: PeerSetId| {
            let users = self.sets.get_mut(&id)?;
            users.fresh = false;
            Some((id, users.peers.clone()))
        };
        [fresh.drain(..).filter_map(&mut known).collect(), gone]
    }

    /// The peer sets that the pods of a pod set are in.
    pub(super) fn sets_of(&self, set: SetId) -> impl Iterator<Item = PeerSetId> + '_ {
        self.of_pods.get(&set).into_iter().flatten().copied()
    }

    /// The number of a port name, with one user more.
    pub(super) fn name(&mut self, name: &str, protocol: Protocol) -> NameId {
        let next = &mut self.next;
        let by_name = &mut self.by_name;
        let (id, users) = self.names.entry((name.to_owned(), protocol)).or_insert_with(|| {
            *next += 1;
            by_name.insert(NameId(*next), (name.to_owned(), protocol));
            (NameId(*next), 0)
        });
        *users += 1;
        *id
    }

    /// One user less of a port name.
    pub(super) fn release_name(&mut self, id: NameId) {
        let Some(key) = self.by_name.get(&id) else { return };
        let Some((_, users)) = self.names.get_mut(key) else { return };
        *users = users.saturating_sub(1);
        if *users == 0 {
            self.names.remove(key);
            self.by_name.remove(&id);
        }
    }

    /// The number of a name in use, `None` for a name that no rule has.
    pub(super) fn known_name(&self, name: &str, protocol: u8) -> Option<NameId> {
        if self.names.is_empty() {
            return None;
        }
        self.names.get(&(name.to_owned(), Protocol::from_number(protocol)?)).map(|(id, _)| *id)
    }

    /// Number of peer sets.
    pub(super) fn len(&self) -> usize {
        self.sets.len()
    }

    /// How many numbers were given out.
    pub(super) fn given_out(&self) -> u32 {
        self.next
    }
}

fn release_pods(members: &[Member], selections: &mut Selections) {
    for member in members {
        if let Member::Pods(set) = member {
            selections.release(*set);
        }
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

impl Signature {
    /// The one set that is all there is.
    fn one(&self) -> Option<PeerSetId> {
        match self.sets[..] {
            [set] if self.ports.is_empty() => Some(set),
            _ => None,
        }
    }
}

/// Unused classes are forgotten when there are more of them than this and than a half of those in use.
const SPARE: usize = 64;

/// Classes and how many addresses and prefixes each has.
///
/// A class that has lost its last address is kept for a while: pods come and go, and the rows of the matrices that name
/// it would be rebuilt each time.
#[derive(Debug, Default)]
pub(super) struct Classes {
    /// Those of one set and no port names, which most are.
    ones: HashMap<PeerSetId, ClassId>,
    ids: HashMap<Arc<Signature>, ClassId>,
    live: HashMap<ClassId, (Arc<Signature>, usize)>,
    by_set: HashMap<PeerSetId, Few<ClassId>>,
    by_name: BTreeMap<NameId, BTreeSet<ClassId>>,
    unused: usize,
    next: u32,
    /// Sets and names whose classes changed since the matrices were looked at.
    pub(super) touched_sets: HashSet<PeerSetId>,
    pub(super) touched_names: HashSet<NameId>,
}

impl Classes {
    /// The class of a signature, with one user more.
    pub(super) fn acquire(&mut self, signature: &Signature) -> ClassId {
        if signature.sets.is_empty() && signature.ports.is_empty() {
            return ClassId::OTHER;
        }
        let one = signature.one();
        let known = one.map_or_else(|| self.ids.get(signature), |set| self.ones.get(&set));
        if let Some(id) = known.copied() {
            self.acquire_known(id);
            return id;
        }
        self.next += 1;
        let id = ClassId(self.next);
        for set in &signature.sets {
            self.by_set.entry(*set).or_default().push(id);
            self.touched_sets.insert(*set);
        }
        for (name, _) in &signature.ports {
            self.by_name.entry(*name).or_default().insert(id);
            self.touched_names.insert(*name);
        }
        let signature = Arc::new(signature.clone());
        match one {
            Some(set) => self.ones.insert(set, id),
            None => self.ids.insert(signature.clone(), id),
        };
        self.live.insert(id, (signature, 1));
        id
    }

    /// One user more of a class, if it is there still.
    pub(super) fn acquire_known(&mut self, id: ClassId) -> bool {
        let Some((_, users)) = self.live.get_mut(&id) else { return id == ClassId::OTHER };
        self.unused -= usize::from(*users == 0);
        *users += 1;
        true
    }

    /// One user less.
    pub(super) fn release(&mut self, id: ClassId) {
        if let Some((_, users)) = self.live.get_mut(&id)
            && *users > 0
        {
            *users -= 1;
            self.unused += usize::from(*users == 0);
        }
    }

    /// Forgets classes without users, if they are many. No address is in them and no class has their numbers again, so
    /// their rows say nothing to anybody and stay in the matrices until these are rebuilt for another reason.
    pub(super) fn tidy(&mut self) {
        if self.unused <= SPARE.max((self.live.len() - self.unused) / 2) {
            return;
        }
        self.unused = 0;
        let dead: Vec<_> =
            self.live.iter().filter(|(_, (_, users))| *users == 0).map(|(id, _)| *id).collect();
        let mut sets = HashSet::new();
        for id in dead {
            let Some((signature, _)) = self.live.remove(&id) else { continue };
            match signature.one() {
                Some(set) => self.ones.remove(&set),
                None => self.ids.remove(&signature),
            };
            sets.extend(signature.sets.iter().copied());
            for (name, _) in &signature.ports {
                if let Some(classes) = self.by_name.get_mut(name) {
                    classes.remove(&id);
                    if classes.is_empty() {
                        self.by_name.remove(name);
                    }
                }
            }
        }
        for set in sets {
            if let Some(classes) = self.by_set.get_mut(&set) {
                classes.retain(|id| self.live.contains_key(id));
                if classes.is_empty() {
                    self.by_set.remove(&set);
                }
            }
        }
    }

    pub(super) fn with_set(&self, set: PeerSetId) -> impl Iterator<Item = ClassId> + '_ {
        self.by_set.get(&set).into_iter().flat_map(|classes| classes.iter().copied())
    }

    pub(super) fn with_name(&self, name: NameId) -> impl Iterator<Item = ClassId> + '_ {
        self.by_name.get(&name).into_iter().flatten().copied()
    }

    /// What is known of the addresses of a class; `None` for [`ClassId::OTHER`].
    pub(super) fn signature(&self, id: ClassId) -> Option<&Signature> {
        self.live.get(&id).map(|(s, _)| s.as_ref())
    }

    /// Number of classes in use, without [`ClassId::OTHER`].
    pub(super) fn len(&self) -> usize {
        self.live.len() - self.unused
    }

    /// Number of classes that are not forgotten, in use or not.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.live.len()
    }

    /// How many numbers were given out.
    pub(super) fn given_out(&self) -> u32 {
        self.next
    }
}
