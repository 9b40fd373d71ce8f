//! Endpoints under the same policies to groups, and their policies to matrices.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fastpath::tables::policy::{Direction, Group, GroupId, Matrix, NodeIndex, RuleId};

use super::classes::{NameId, PeerSetId, Resolution};
use super::matrix::{self, CompiledRule};
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
    sets: BTreeSet<PeerSetId>,
    names: BTreeSet<NameId>,
}

impl Compiler {
    /// One group for each (node, ingress matrix, egress matrix), in order of the endpoints' names.
    pub(super) fn build_groups(
        &mut self,
        subjects: &HashMap<Slot, Vec<ObjectName>>,
    ) -> BTreeMap<ObjectName, GroupId> {
        let mut before = std::mem::take(&mut self.matrices);
        let mut known = HashMap::<(NodeIndex, Option<MatrixKey>, Option<MatrixKey>), GroupId>::new();
        let mut endpoints = BTreeMap::new();
        self.table.groups.clear();
        let pods: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, e)| self.in_scope(&e.pod))
            .map(|(s, e)| (s, e.pod.clone()))
            .collect();
        for (slot, pod) in pods {
            let names = subjects.get(&slot).map(Vec::as_slice).unwrap_or_default();
            let [ingress, egress] = Direction::BOTH.map(|d| self.matrix(slot, d, names, &mut before));
            let node = pod.node.as_ref().and_then(|n| self.node_indices.get(n)).copied().unwrap_or_default();
            let groups = &mut self.table.groups;
            let matrices = &self.matrices;
            let group =
                *known.entry((node, ingress, egress)).or_insert_with_key(|(node, ingress, egress)| {
                    let matrix =
                        |key: &Option<MatrixKey>| matrices.get(key.as_ref()?).map(|c| c.matrix.clone());
                    groups.push(Group { node: *node, ingress: matrix(ingress), egress: matrix(egress) });
                    GroupId(u32::try_from(groups.len() - 1).unwrap_or(u32::MAX))
                });
            endpoints.insert(pod.name.clone(), group);
        }
        endpoints
    }

    /// Key of the matrix for one direction, which is then among `self.matrices`; `None` when no policy isolates.
    fn matrix(
        &mut self,
        slot: Slot,
        direction: Direction,
        policies: &[ObjectName],
        before: &mut HashMap<MatrixKey, CachedMatrix>,
    ) -> Option<MatrixKey> {
        let isolating: Vec<&InForce> = policies
            .iter()
            .filter_map(|name| self.in_force.get(name))
            .filter(|f| f.policy.rules(direction).is_some())
            .collect();
        let first = isolating.first()?;
        let rules: Vec<&CompiledRule> = isolating.iter().flat_map(|f| f.rules(direction)).collect();
        let names: BTreeSet<NameId> = rules.iter().flat_map(|r| r.names()).collect();
        let own = match direction {
            Direction::Ingress => self.resolve(slot, |name| names.contains(&name)),
            Direction::Egress => Vec::new(),
        };
        let key = MatrixKey { direction, policies: isolating.iter().map(|f| f.content).collect(), own };
        if self.matrices.contains_key(&key) {
            return Some(key);
        }
        let sets: BTreeSet<PeerSetId> = rules.iter().filter_map(|r| r.peers).collect();
        let decider = Decider::Isolated {
            direction,
            policies: isolating.iter().map(|f| f.policy.name.clone()).collect(),
        };
        let isolated = self.rule_ids.id(decider, &first.policy.origin);
        let untouched = |c: &CachedMatrix| {
            c.isolated == isolated
                && !c.sets.iter().any(|s| self.classes.touched_sets.contains(s))
                && !c.names.iter().any(|n| self.classes.touched_names.contains(n))
        };
        let cached = before.remove(&key).filter(untouched).unwrap_or_else(|| {
            let own = (direction == Direction::Ingress).then_some(&key.own[..]);
            let matrix = Arc::new(matrix::build(&rules, isolated, own, &self.classes));
            CachedMatrix { matrix, isolated, sets, names }
        });
        self.matrices.insert(key.clone(), cached);
        Some(key)
    }
}
