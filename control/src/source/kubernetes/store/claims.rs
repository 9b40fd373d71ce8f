//! Who claims what: addresses and devices belong to one owner each, the first in an order that does not depend on time.
#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::model::{Node, ObjectName, Origin, Pod};

/// Who claims something.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    /// A node: before every pod.
    Node(Arc<Node>),
    /// A pod; one that is being deleted comes after those that are not.
    Pod {
        /// The pod as the API has it.
        pod: Arc<Pod>,
        /// It is being deleted.
        leaving: bool,
    },
}

impl Owner {
    /// The pod, if it is one.
    pub(super) fn pod(&self) -> Option<&Pod> {
        match self {
            Owner::Node(_) => None,
            Owner::Pod { pod, .. } => Some(pod),
        }
    }

    /// Kind and name.
    pub(super) fn name(&self) -> String {
        match self {
            Owner::Node(node) => format!("Node {}", node.name),
            Owner::Pod { pod, .. } => format!("Pod {}", pod.name),
        }
    }

    /// Where it was read.
    pub(super) fn origin(&self) -> &Origin {
        match self {
            Owner::Node(node) => &node.origin,
            Owner::Pod { pod, .. } => &pod.origin,
        }
    }

    /// The origin that names it.
    pub(super) fn api_object(&self) -> Origin {
        match self {
            Owner::Node(node) => {
                let name = ObjectName { namespace: String::new(), name: node.name.clone() };
                node.origin.of("Node", &name)
            }
            Owner::Pod { pod, .. } => pod.origin.of("Pod", &pod.name),
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Owner::Node(a), Owner::Node(b)) => a.name.cmp(&b.name),
            (Owner::Node(_), Owner::Pod { .. }) => Ordering::Less,
            (Owner::Pod { .. }, Owner::Node(_)) => Ordering::Greater,
            (Owner::Pod { pod: a, leaving: first }, Owner::Pod { pod: b, leaving: second }) => {
                (first, &a.name).cmp(&(second, &b.name))
            }
        }
    }
}

/// Claims on things of one sort.
#[derive(Debug)]
pub(super) struct Claims<K> {
    /// In the order of precedence.
    by: HashMap<K, Vec<Owner>>,
    /// What several claim.
    contested: BTreeSet<K>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self { by: HashMap::new(), contested: BTreeSet::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Claims<K> {
    /// Makes (`add`) or withdraws a claim.
    pub(super) fn change(&mut self, key: &K, owner: Owner, add: bool) {
        if !self.by.contains_key(key) {
            if !add {
                return;
            }
            self.by.insert(key.clone(), Vec::with_capacity(1));
        }
        let Some(owners) = self.by.get_mut(key) else { return };
        match (owners.binary_search_by(|o| o.order(&owner)), add) {
            (Ok(at), true) => {
                if let Some(place) = owners.get_mut(at) {
                    *place = owner;
                }
            }
            (Err(at), true) => owners.insert(at, owner),
            (Ok(at), false) => drop(owners.remove(at)),
            (Err(_), false) => {}
        }
        match owners.len() {
            0 => {
                self.by.remove(key);
            }
            1 => drop(self.contested.remove(key)),
            _ => drop(self.contested.insert(key.clone())),
        }
    }

    /// Who claims `key`; the first has it.
    pub(super) fn of(&self, key: &K) -> &[Owner] {
        self.by.get(key).map_or(&[], Vec::as_slice)
    }

    /// Calls `each` with every claim that is not granted: what, who has it, who does not.
    pub(super) fn contested(&self, mut each: impl FnMut(&K, &Owner, &Owner)) {
        for key in &self.contested {
            if let Some((first, losers)) = self.of(key).split_first() {
                losers.iter().for_each(|loser| each(key, first, loser));
            }
        }
    }
}
