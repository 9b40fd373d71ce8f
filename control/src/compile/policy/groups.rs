//! Endpoints under the same policies to groups, and their policies to matrices.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastpath::tables::policy::{Direction, Group, GroupId, Matrix, NodeIndex, RuleId};
use hashbrown::HashMap;

use super::classes::{Classes, NameId, PeerSetId, Resolution};
use super::matrix::{self, CompiledRule, Met};
use super::pods::Slot;
use super::{Compiler, Decider, InForce};
use crate::model::ObjectName;

/// What a matrix depends on besides the classes: the contents of its policies in order, and for ingress what
/// their port names stand for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct MatrixKey {
    direction: Direction,
    policies: Vec<u64>,
    own: Resolution,
}

#[derive(Debug)]
pub(super) struct CachedMatrix {
    pub(super) matrix: Arc<Matrix>,
    isolated: RuleId,
    /// Sorted.
    sets: Vec<PeerSetId>,
    names: BTreeSet<NameId>,
    /// The peers of each rule, and which classes they are.
    peers: Vec<Option<PeerSetId>>,
    met: Arc<Met>,
}

impl CachedMatrix {
    /// Whether no class came to its peers or port names.
    fn untouched(&self, classes: &Classes) -> bool {
        let sets = if classes.touched_sets.len() < self.sets.len() {
            !classes.touched_sets.iter().any(|s| self.sets.binary_search(s).is_ok())
        } else {
            !self.sets.iter().any(|s| classes.touched_sets.contains(s))
        };
        sets && !self.names.iter().any(|n| classes.touched_names.contains(n))
    }
}

/// From so many rules on it is worth a look whether only their ports differ from those of another matrix.
const MANY: usize = 64;

impl Compiler {
    /// One group for each (node, ingress matrix, egress matrix), in order of the endpoints' names.
    pub(super) fn build_groups(&mut self) -> BTreeMap<ObjectName, GroupId> {
        let mut before = std::mem::take(&mut self.matrices);
        let mut known = HashMap::<(NodeIndex, Option<MatrixKey>, Option<MatrixKey>), GroupId>::new();
        let mut endpoints = BTreeMap::new();
        self.table.groups.clear();
        self.rule_ids.begin_isolations();
        let here = std::mem::take(&mut self.here);
        for (name, slot) in &here {
            let Some(entry) = self.pods.entry(*slot) else { continue };
            let node = entry.pod.node.as_ref().and_then(|n| self.node_indices.get(n)).copied();
            let policies = self.subject_to(*slot);
            let [ingress, egress] = Direction::BOTH.map(|d| self.matrix(*slot, d, &policies, &mut before));
            let groups = &mut self.table.groups;
            let matrices = &self.matrices;
            let group = *known.entry((node.unwrap_or_default(), ingress, egress)).or_insert_with_key(
                |(node, ingress, egress)| {
                    let matrix =
                        |key: &Option<MatrixKey>| matrices.get(key.as_ref()?).map(|c| c.matrix.clone());
                    groups.push(Group { node: *node, ingress: matrix(ingress), egress: matrix(egress) });
                    GroupId(u32::try_from(groups.len() - 1).unwrap_or(u32::MAX))
                },
            );
            endpoints.insert(name.clone(), group);
        }
        self.here = here;
        self.rule_ids.end_isolations();
        self.classes.touched_sets.clear();
        self.classes.touched_names.clear();
        endpoints
    }

    /// Names of the policies in force that select a pod, in order.
    fn subject_to(&self, slot: Slot) -> BTreeSet<ObjectName> {
        let of_set = |set| self.by_selector.get(set).into_iter().flatten().cloned();
        self.selections.of(slot).iter().flat_map(of_set).collect()
    }

    /// Key of the matrix for one direction, which is then among `self.matrices`; `None` when no policy isolates.
    fn matrix(
        &mut self,
        slot: Slot,
        direction: Direction,
        policies: &BTreeSet<ObjectName>,
        before: &mut HashMap<MatrixKey, CachedMatrix>,
    ) -> Option<MatrixKey> {
        let isolating: Vec<&InForce> = policies
            .iter()
            .filter_map(|name| self.in_force.get(name))
            .filter(|f| f.policy.rules(direction).is_some())
            .collect();
        let first = isolating.first()?;
        let own = match direction {
            Direction::Ingress if isolating.iter().any(|f| !f.side(direction).names.is_empty()) => {
                self.resolve(slot, |name| isolating.iter().any(|f| f.side(direction).names.contains(&name)))
            }
            _ => Vec::new(),
        };
        let key = MatrixKey { direction, policies: isolating.iter().map(|f| f.content).collect(), own };
        if self.matrices.contains_key(&key) {
            return Some(key);
        }
        let decider = Decider::Isolated {
            direction,
            policies: isolating.iter().map(|f| f.policy.name.clone()).collect(),
        };
        let isolated = self.rule_ids.isolation(decider, &first.policy.origin);
        let classes = &self.classes;
        let cached = before
            .remove(&key)
            .filter(|c| c.isolated == isolated && c.untouched(classes))
            .unwrap_or_else(|| {
                let own = (direction == Direction::Ingress).then_some(&key.own[..]);
                let sides = isolating.iter().map(|f| f.side(direction));
                let rules: Vec<&CompiledRule> = sides.clone().flat_map(|s| &s.rules).collect();
                let mut sets: Vec<PeerSetId> = sides.clone().flat_map(|s| &s.sets).copied().collect();
                if isolating.len() > 1 {
                    sets.sort_unstable();
                    sets.dedup();
                }
                let names: BTreeSet<NameId> = sides.flat_map(|s| &s.names).copied().collect();
                let peers: Vec<_> = rules.iter().map(|rule| rule.peers).collect();
                // One of the same rules but for their ports knows the classes.
                let like = |(of, c): &(&MatrixKey, &CachedMatrix)| {
                    of.direction == direction
                        && c.names.is_empty()
                        && c.peers == peers
                        && c.untouched(classes)
                };
                let like = before.iter().filter(|_| rules.len() >= MANY && names.is_empty()).find(like);
                let met = like.map_or_else(
                    || Arc::new(matrix::meet(&rules, own.is_some(), classes)),
                    |(_, cached)| Arc::clone(&cached.met),
                );
                let matrix = Arc::new(matrix::build(&rules, isolated, own, classes, &met));
                CachedMatrix { matrix, isolated, sets, names, peers, met }
            });
        self.matrices.insert(key.clone(), cached);
        Some(key)
    }
}
