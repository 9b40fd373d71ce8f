//! NetworkPolicies → the classifier of the packet path.
//!
//! ```text
//!  pods, namespaces ─► members of each distinct selector ─┐
//!  policies ─► those that select a pod here ─► peer sets ─┴► peer classes ─► matrix per (policies, direction)
//! ```
//!
//! A [`Compiler`] keeps the steps between compilations and redoes what a change touches: selectors are looked
//! at again only for pods that changed, matrices are rebuilt only when their policies or the classes they
//! tell apart changed. [`compile`] does it once, from nothing; both give the same verdicts.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::policy::{ClassId, Direction, GroupId, NodeIndex, PolicyTable};

use crate::model::{Model, NetworkPolicy, ObjectName, Pod, PortSpec};

mod blocks;
mod classes;
mod classify;
mod counters;
mod groups;
mod matrix;
mod pods;
mod reasons;
mod rules;
mod select;
#[cfg(test)]
mod tests;

use blocks::Blocks;
use classes::{Classes, Interner, NameId, PeerSetId};
use groups::{CachedMatrix, MatrixKey};
use matrix::{CompiledPort, CompiledRule};
use pods::{Changes, Pods, Slot};
use select::{PodSet, Selections};

pub use counters::{Count, Counters};
pub use reasons::{PolicyReasons, RuleReason};
pub use rules::{Decider, RuleInfo, RuleNames};

/// For which endpoints tables are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The pods of one node: what its dataplane needs.
    Node(String),
    /// All pods, each under the rules that its own node would hold it to: what `explain` needs.
    Cluster,
}

/// What a compilation gives.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The tables of the packet path.
    pub table: PolicyTable,
    /// Group of every endpoint in scope.
    pub endpoints: BTreeMap<ObjectName, GroupId>,
    /// What the rule ids in the table mean.
    pub rules: RuleNames,
}

/// Compiles a model once. The same model gives the same tables.
#[must_use]
pub fn compile(model: &Model, scope: Scope) -> Compiled {
    Compiler::new(scope).update(model)
}

/// One policy that isolates an endpoint in scope.
#[derive(Debug)]
struct InForce {
    policy: Arc<NetworkPolicy>,
    /// Changes with everything but the lines it was read from.
    content: u64,
    ingress: Vec<CompiledRule>,
    egress: Vec<CompiledRule>,
}

impl InForce {
    fn rules(&self, direction: Direction) -> &[CompiledRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// Compiles one model after the other, reusing what did not change.
#[derive(Debug)]
pub struct Compiler {
    scope: Scope,
    own_addresses: Vec<IpAddr>,
    pods: Pods,
    selections: Selections,
    interner: Interner,
    classes: Classes,
    rule_ids: rules::RuleIds,
    in_force: BTreeMap<ObjectName, InForce>,
    /// Egress port names and peer sets that the classes tell apart.
    egress_names: BTreeSet<NameId>,
    peer_sets: BTreeSet<PeerSetId>,
    blocks: Blocks,
    block_classes: Vec<ClassId>,
    node_indices: HashMap<String, NodeIndex>,
    nodes: BTreeMap<Ip, NodeIndex>,
    matrices: HashMap<MatrixKey, CachedMatrix>,
    table: PolicyTable,
    next_content: u64,
}

impl Compiler {
    /// A compiler that has seen nothing yet.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            own_addresses: Vec::new(),
            pods: Pods::default(),
            selections: Selections::default(),
            interner: Interner::default(),
            classes: Classes::default(),
            rule_ids: rules::RuleIds::default(),
            in_force: BTreeMap::new(),
            egress_names: BTreeSet::new(),
            peer_sets: BTreeSet::new(),
            blocks: Blocks::default(),
            block_classes: Vec::new(),
            node_indices: HashMap::new(),
            nodes: BTreeMap::new(),
            matrices: HashMap::new(),
            table: PolicyTable::default(),
            next_content: 0,
        }
    }

    /// Addresses of this node beyond those its Node object names (host port, other interfaces): they too may
    /// always reach its pods. Of account from the next [`Compiler::update`] on, in [`Scope::Node`] only.
    pub fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.own_addresses = addresses;
    }

    /// Compiles the model as it is now.
    pub fn update(&mut self, model: &Model) -> Compiled {
        if self.interner.given_out().max(self.classes.given_out()) > u32::MAX / 2 {
            // Numbers are never reused; long before they run out, begin anew.
            let rule_ids = std::mem::take(&mut self.rule_ids);
            let own_addresses = std::mem::take(&mut self.own_addresses);
            *self = Self { rule_ids, own_addresses, ..Self::new(self.scope.clone()) };
        }
        let mut changes = self.pods.sync(model);
        self.selections.sync(&self.pods, &changes);
        self.sync_nodes(model, &mut changes);
        self.rule_ids.begin();
        let subjects = self.sync_policies(model);
        self.sync_classes(&changes);
        let endpoints = self.build_groups(&subjects);
        self.selections.forget_unused();
        Compiled { table: self.table.clone(), endpoints, rules: self.rule_ids.end() }
    }

    /// Numbers of nodes and their addresses.
    fn sync_nodes(&mut self, model: &Model, changes: &mut Changes) {
        let mut nodes = BTreeMap::new();
        for (name, node) in &model.nodes {
            if matches!(&self.scope, Scope::Node(own) if own != name) {
                continue;
            }
            let index = self.node_index(name);
            nodes.extend(node.addresses.iter().map(|a| (Ip::from(*a), index)));
        }
        if let Scope::Node(own) = &self.scope {
            let index = self.node_index(&own.clone());
            nodes.extend(self.own_addresses.iter().map(|a| (Ip::from(*a), index)));
        }
        let differs = |(ip, index): (&Ip, &NodeIndex), other: &BTreeMap<Ip, NodeIndex>| {
            (other.get(ip) != Some(index)).then_some(*ip)
        };
        changes.addresses.extend(nodes.iter().filter_map(|n| differs(n, &self.nodes)));
        changes.addresses.extend(self.nodes.iter().filter_map(|n| differs(n, &nodes)));
        self.nodes = nodes;
    }

    fn node_index(&mut self, name: &str) -> NodeIndex {
        if let Some(index) = self.node_indices.get(name) {
            return *index;
        }
        let index = NodeIndex(u32::try_from(self.node_indices.len()).unwrap_or(u32::MAX));
        self.node_indices.insert(name.to_owned(), index);
        index
    }

    fn in_scope(&self, pod: &Pod) -> bool {
        match &self.scope {
            Scope::Node(own) => pod.node.as_ref() == Some(own),
            Scope::Cluster => true,
        }
    }

    /// Numbers the rules of policies that select a pod in scope. Gives the policies of every such pod, by name.
    fn sync_policies(&mut self, model: &Model) -> HashMap<Slot, Vec<ObjectName>> {
        let mut subjects = HashMap::<Slot, Vec<ObjectName>>::new();
        let mut before = std::mem::take(&mut self.in_force);
        for (name, policy) in &model.policies {
            let set = PodSet::in_namespace(&name.namespace, &policy.pod_selector);
            let members = self.selections.members(&self.pods, &set);
            let mut any = false;
            for slot in members.iter() {
                if self.pods.entry(*slot).is_some_and(|e| self.in_scope(&e.pod)) {
                    any = true;
                    subjects.entry(*slot).or_default().push(name.clone());
                }
            }
            if any {
                let known = before.remove(name).filter(|f| same(&f.policy, policy));
                let in_force = self.number(policy, known);
                self.in_force.insert(name.clone(), in_force);
            }
        }
        subjects
    }

    fn number(&mut self, policy: &Arc<NetworkPolicy>, known: Option<InForce>) -> InForce {
        let mut rules = [Vec::new(), Vec::new()];
        for (direction, out) in Direction::BOTH.into_iter().zip(&mut rules) {
            for (index, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
                let decider = Decider::Rule { policy: policy.name.clone(), direction, index };
                let id = self.rule_ids.id(decider, &rule.origin);
                if known.is_some() {
                    continue;
                }
                let namespace = &policy.name.namespace;
                let some = !rule.peers.is_empty();
                let peers = some.then(|| self.interner.peer_set(namespace, &rule.peers));
                let ports = rule.ports.iter().map(|p| {
                    let port = match &p.port {
                        PortSpec::Any => CompiledPort::Any,
                        PortSpec::Range(first, last) => CompiledPort::Range(*first, *last),
                        PortSpec::Named(name) => CompiledPort::Named(self.interner.name(name, p.protocol)),
                    };
                    (p.protocol, port)
                });
                out.push(CompiledRule { id, peers, ports: ports.collect() });
            }
        }
        if let Some(known) = known {
            return InForce { policy: policy.clone(), ..known };
        }
        self.next_content += 1;
        let [ingress, egress] = rules;
        InForce { policy: policy.clone(), content: self.next_content, ingress, egress }
    }

    /// How large the tables are, for `status` and benches.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let functions = self.matrices.values().map(|c| c.matrix.size().1).sum();
        Sizes {
            policies: self.in_force.len(),
            classes: self.classes.len(),
            peer_sets: self.peer_sets.len(),
            groups: self.table.groups.len(),
            matrices: self.matrices.len(),
            functions,
        }
    }
}

/// How large the compiled tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Policies that isolate an endpoint in scope.
    pub policies: usize,
    /// Classes of peer addresses.
    pub classes: usize,
    /// Distinct lists of peers.
    pub peer_sets: usize,
    /// Groups of endpoints.
    pub groups: usize,
    /// Distinct (policies, direction).
    pub matrices: usize,
    /// Distinct rows of all matrices.
    pub functions: usize,
}

/// Whether two versions of a policy differ in nothing but where they were read.
fn same(a: &Arc<NetworkPolicy>, b: &Arc<NetworkPolicy>) -> bool {
    let rules = |p: &NetworkPolicy, q: &NetworkPolicy| {
        [(&p.ingress, &q.ingress), (&p.egress, &q.egress)].into_iter().all(|(x, y)| {
            x.len() == y.len() && x.iter().zip(y).all(|(r, s)| r.peers == s.peers && r.ports == s.ports)
        })
    };
    Arc::ptr_eq(a, b)
        || (a.pod_selector == b.pod_selector
            && a.isolates_ingress == b.isolates_ingress
            && a.isolates_egress == b.isolates_egress
            && rules(a, b))
}
