//! NetworkPolicies → the classifier of the packet path.
//!
//! ```text
//!  pods, namespaces ─► members of each distinct selector ─┐
//!  policies ─► those that select a pod here ─► peer sets ─┴► peer classes ─► matrix per (policies, direction)
//! ```
//!
//! A [`Compiler`] keeps the steps between compilations and redoes what a change touches. What that is it finds by the
//! difference between two models ([`Table::diff`](crate::model::Table::diff)): of selectors only those are looked at that a changed pod may be in, of addresses
//! those whose pod, selectors or blocks changed; matrices are rebuilt only when their policies or the classes they
//! tell apart changed. [`compile`] does it once, from nothing; both give the same verdicts.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::policy::{ClassId, Direction, GroupId, NodeIndex, PolicyTable, RuleId};
use hashbrown::HashMap;

use crate::model::{Model, NetworkPolicy, ObjectName, Pod, PortSpec, Rule};

mod blocks;
mod classes;
mod classify;
mod counters;
mod few;
mod groups;
mod matrix;
mod pods;
mod reasons;
mod rules;
mod select;
#[cfg(test)]
mod tests;

use blocks::Blocks;
use classes::{Classes, Interner, NameId, PeerSetId, Peers, Signature};
use groups::{CachedMatrix, MatrixKey};
use matrix::{CompiledPort, CompiledRule};
use pods::{Changes, Pods, Slot};
use select::{PodSet, Selections, SetId};

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
    pub endpoints: Arc<BTreeMap<ObjectName, GroupId>>,
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
    ingress: Side,
    egress: Side,
}

impl InForce {
    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The rules of one direction as they were written, and as they were compiled.
    fn rules(&mut self, direction: Direction) -> (&[Rule], &mut [CompiledRule]) {
        let side = match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        };
        (self.policy.rules(direction).unwrap_or_default(), &mut side.rules)
    }
}

/// The rules of one direction.
#[derive(Debug, Default)]
struct Side {
    rules: Vec<CompiledRule>,
    /// The peer sets of all, sorted, each once.
    sets: Vec<PeerSetId>,
    /// The port names of all.
    names: BTreeSet<NameId>,
}

/// Compiles one model after the other, reusing what did not change.
#[derive(Debug)]
pub struct Compiler {
    scope: Scope,
    own_addresses: Vec<IpAddr>,
    /// The model compiled last.
    seen: Model,
    pods: Pods,
    selections: Selections,
    interner: Interner,
    classes: Classes,
    rule_ids: rules::RuleIds,
    /// The pods in scope by name.
    here: BTreeMap<ObjectName, Slot>,
    /// The same by number.
    here_names: HashMap<Slot, ObjectName>,
    /// The pods that each policy selects, in force or not.
    selectors: HashMap<ObjectName, SetId>,
    by_selector: HashMap<SetId, BTreeSet<ObjectName>>,
    in_force: BTreeMap<ObjectName, InForce>,
    /// Port names that egress rules in force have, and how many have each: the classes tell them apart.
    egress_names: HashMap<NameId, usize>,
    egress_names_changed: bool,
    blocks: Blocks,
    /// The class of pods that are in these sets, whose addresses lie in no block and have no port names.
    class_of: HashMap<Box<[SetId]>, ClassId>,
    node_indices: HashMap<String, NodeIndex>,
    nodes: BTreeMap<Ip, NodeIndex>,
    matrices: HashMap<MatrixKey, CachedMatrix>,
    table: PolicyTable,
    endpoints: Arc<BTreeMap<ObjectName, GroupId>>,
    next_content: u64,
    /// Used for one address after the other.
    signature: Signature,
}

impl Compiler {
    /// A compiler that has seen nothing yet.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            own_addresses: Vec::new(),
            seen: Model::default(),
            pods: Pods::default(),
            selections: Selections::default(),
            interner: Interner::default(),
            classes: Classes::default(),
            rule_ids: rules::RuleIds::default(),
            here: BTreeMap::new(),
            here_names: HashMap::new(),
            selectors: HashMap::new(),
            by_selector: HashMap::new(),
            in_force: BTreeMap::new(),
            egress_names: HashMap::new(),
            egress_names_changed: false,
            blocks: Blocks::default(),
            class_of: HashMap::new(),
            node_indices: HashMap::new(),
            nodes: BTreeMap::new(),
            matrices: HashMap::new(),
            table: PolicyTable::default(),
            endpoints: Arc::default(),
            next_content: 0,
            signature: Signature::default(),
        }
    }

    /// Addresses of this node beyond those its Node object names (host port, other interfaces): they too may
    /// always reach its pods. Of account from the next [`Compiler::update`] on, in [`Scope::Node`] only.
    pub fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.own_addresses = addresses;
    }

    /// Compiles the model as it is now. Costs what differs from the last one, but for a step a chunk of its tables.
    pub fn update(&mut self, model: &Model) -> Compiled {
        let given_out = [self.interner.given_out(), self.classes.given_out(), self.selections.given_out()];
        self.rule_ids.begin();
        if given_out.iter().any(|n| *n > ClassId::MAX.0 / 2) {
            self.begin_anew();
        }
        let before = std::mem::replace(&mut self.seen, model.clone());
        let mut changes = self.pods.sync(&before, model);
        let here = self.sync_scope(&changes);
        let touched = self.selections.sync(&self.pods, &changes.slots, |slot| here.contains(&slot));
        let nodes = !before.nodes.is_same(&model.nodes);
        self.sync_nodes(model, &mut changes);
        let policies = self.sync_policies(&before, model, &touched);
        self.sync_classes(changes);
        let classes = !self.classes.touched_sets.is_empty() || !self.classes.touched_names.is_empty();
        if nodes || policies || classes || !here.is_empty() {
            self.endpoints = Arc::new(self.build_groups());
        }
        Compiled {
            table: self.table.clone(),
            endpoints: Arc::clone(&self.endpoints),
            rules: self.rule_ids.end(),
        }
    }

    /// Work that no verdict waits for: forgets what has been out of use for a while.
    pub fn tidy(&mut self) {
        self.classes.tidy();
    }

    /// Numbers are never reused; long before they run out, begins anew.
    fn begin_anew(&mut self) {
        let mut rule_ids = std::mem::take(&mut self.rule_ids);
        for side in self.in_force.values().flat_map(|f| [&f.ingress, &f.egress]) {
            side.rules.iter().for_each(|rule| rule_ids.retire(rule.id));
        }
        let own_addresses = std::mem::take(&mut self.own_addresses);
        *self = Self { rule_ids, own_addresses, ..Self::new(self.scope.clone()) };
    }

    /// Which pods are in scope; gives those that changed and are, or were.
    fn sync_scope(&mut self, changes: &Changes) -> BTreeSet<Slot> {
        let mut here = BTreeSet::new();
        for slot in &changes.slots {
            if let Some(name) = self.here_names.remove(slot) {
                if self.here.get(&name) == Some(slot) {
                    self.here.remove(&name);
                }
                here.insert(*slot);
            }
            if let Some(entry) = self.pods.entry(*slot).filter(|e| self.in_scope(&e.pod)) {
                let name = entry.pod.name.clone();
                self.here.insert(name.clone(), *slot);
                self.here_names.insert(*slot, name);
                here.insert(*slot);
            }
        }
        here
    }

    /// Numbers of nodes and their addresses.
    fn sync_nodes(&mut self, model: &Model, changes: &mut Changes) {
        let mut nodes = BTreeMap::new();
        match &self.scope {
            Scope::Node(own) => {
                let own = own.clone();
                let index = self.node_index(&own);
                let known = model.nodes.get(&own).map(|n| n.addresses.clone()).unwrap_or_default();
                nodes.extend(known.iter().chain(&self.own_addresses).map(|a| (Ip::from(*a), index)));
            }
            Scope::Cluster => {
                for (name, node) in &model.nodes {
                    let index = self.node_index(name);
                    nodes.extend(node.addresses.iter().map(|a| (Ip::from(*a), index)));
                }
            }
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

    /// Takes policies over that changed, or of which `touched` says that they may select other pods in scope than
    /// before. Returns whether another is in force, or says something else.
    fn sync_policies(&mut self, before: &Model, model: &Model, touched: &BTreeSet<SetId>) -> bool {
        let mut names = BTreeSet::new();
        for (name, _, now) in before.policies.diff(&model.policies) {
            let set = now.map(|policy| {
                let set = PodSet::in_namespace(&name.namespace, &policy.pod_selector);
                self.selections.acquire(&self.pods, set)
            });
            let known = match set {
                Some(set) => self.selectors.insert(name.clone(), set),
                None => self.selectors.remove(name),
            };
            if known != set {
                if let Some(known) = known
                    && let Some(policies) = self.by_selector.get_mut(&known)
                {
                    policies.remove(name);
                    if policies.is_empty() {
                        self.by_selector.remove(&known);
                    }
                }
                if let Some(set) = set {
                    self.by_selector.entry(set).or_default().insert(name.clone());
                }
            }
            if let Some(known) = known {
                self.selections.release(known);
            }
            names.insert(name.clone());
        }
        names.extend(touched.iter().flat_map(|set| self.by_selector.get(set).into_iter().flatten().cloned()));
        let mut changed = false;
        for name in names {
            let selects =
                self.selectors.get(&name).is_some_and(|s| self.selections.holds_any(*s, &self.here));
            let wanted = model.policies.get(&name).filter(|_| selects);
            let known = self.in_force.remove(&name);
            let in_force = match (wanted, known) {
                (Some(policy), Some(known)) if same(&known.policy, policy) => {
                    // Where an isolation is said to come from.
                    changed |= known.policy.origin != policy.origin;
                    self.moved(policy, known)
                }
                (Some(policy), known) => {
                    changed = true;
                    self.number(policy, known)
                }
                (None, known) => {
                    if let Some(known) = known {
                        changed = true;
                        self.retire(known, [0, 0]);
                    }
                    continue;
                }
            };
            self.in_force.insert(name, in_force);
        }
        changed
    }

    /// A policy that says the same, perhaps in other lines.
    fn moved(&mut self, policy: &Arc<NetworkPolicy>, known: InForce) -> InForce {
        if !Arc::ptr_eq(&known.policy, policy) {
            for direction in Direction::BOTH {
                let rules = policy.rules(direction).unwrap_or_default();
                for (rule, compiled) in rules.iter().zip(&known.side(direction).rules) {
                    self.rule_ids.keep(compiled.id, &rule.origin);
                }
            }
        }
        InForce { policy: policy.clone(), ..known }
    }

    /// Numbers the rules of a policy. Those of an index that it had before keep their ids.
    fn number(&mut self, policy: &Arc<NetworkPolicy>, mut known: Option<InForce>) -> InForce {
        let mut sides = [Side::default(), Side::default()];
        let mut lens = [0, 0];
        // Peers that no rule in force has.
        let mut missing: Vec<(usize, usize, Peers)> = Vec::new();
        for (of, direction) in Direction::BOTH.into_iter().enumerate() {
            let (Some(out), Some(len)) = (sides.get_mut(of), lens.get_mut(of)) else { continue };
            let rules = policy.rules(direction).unwrap_or_default();
            let (before, ids) = known.as_mut().map(|k| k.rules(direction)).unwrap_or_default();
            *len = rules.len();
            out.rules.reserve_exact(rules.len());
            for (index, rule) in rules.iter().enumerate() {
                let (mut same, mut peers) = (false, None);
                let id = match ids.get_mut(index) {
                    Some(known) => {
                        self.rule_ids.keep(known.id, &rule.origin);
                        same = before.get(index).is_some_and(|b| b.peers == rule.peers);
                        if same {
                            // It passes from the one to the other.
                            peers = known.peers.take();
                        }
                        known.id
                    }
                    None => {
                        let decider = Decider::Rule { policy: policy.name.clone(), direction, index };
                        self.rule_ids.give(decider, &rule.origin)
                    }
                };
                if !same && !rule.peers.is_empty() {
                    let (selections, namespace) = (&mut self.selections, &policy.name.namespace);
                    match self.interner.peer_set(selections, &self.pods, namespace, &rule.peers) {
                        Ok(set) => peers = Some(set),
                        Err(peers) => missing.push((of, index, peers)),
                    }
                }
                let compiled = self.compile_rule(direction, rule, id, peers);
                out.names.extend(compiled.names());
                out.rules.push(compiled);
            }
        }
        // After the new rules have taken what they share with the old ones.
        if let Some(known) = known {
            self.retire(known, lens);
        }
        for (of, index, peers) in missing {
            let set = self.interner.add(&mut self.selections, peers);
            if let Some(rule) = sides.get_mut(of).and_then(|side| side.rules.get_mut(index)) {
                rule.peers = Some(set);
            }
        }
        for side in &mut sides {
            side.sets.extend(side.rules.iter().filter_map(|rule| rule.peers));
            side.sets.sort_unstable();
            side.sets.dedup();
        }
        self.next_content += 1;
        let [ingress, egress] = sides;
        InForce { policy: policy.clone(), content: self.next_content, ingress, egress }
    }

    fn compile_rule(
        &mut self,
        direction: Direction,
        rule: &Rule,
        id: RuleId,
        peers: Option<PeerSetId>,
    ) -> CompiledRule {
        let ports = rule.ports.iter().map(|p| {
            let port = match &p.port {
                PortSpec::Any => CompiledPort::Any,
                PortSpec::Range(first, last) => CompiledPort::Range(*first, *last),
                PortSpec::Named(name) => CompiledPort::Named(self.interner.name(name, p.protocol)),
            };
            (p.protocol, port)
        });
        let compiled = CompiledRule { id, peers, ports: ports.collect() };
        if direction == Direction::Egress {
            for name in compiled.names() {
                let users = self.egress_names.entry(name).or_default();
                *users += 1;
                self.egress_names_changed |= *users == 1;
            }
        }
        compiled
    }

    /// Lets go of what the rules of a policy have, and of the ids from index `from` on.
    fn retire(&mut self, known: InForce, from: [usize; 2]) {
        for (direction, from) in Direction::BOTH.into_iter().zip(from) {
            for (index, rule) in known.side(direction).rules.iter().enumerate() {
                if index >= from {
                    self.rule_ids.retire(rule.id);
                }
                if let Some(set) = rule.peers {
                    self.interner.release(set);
                }
                for name in rule.names() {
                    if direction == Direction::Egress
                        && let Some(users) = self.egress_names.get_mut(&name)
                    {
                        *users -= 1;
                        if *users == 0 {
                            self.egress_names.remove(&name);
                            self.egress_names_changed = true;
                        }
                    }
                    self.interner.release_name(name);
                }
            }
        }
    }

    /// How large the tables are, for `status` and benches.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let functions = self.matrices.values().map(|c| c.matrix.size().1).sum();
        Sizes {
            policies: self.in_force.len(),
            classes: self.classes.len(),
            peer_sets: self.interner.len(),
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
    /// Rows of all matrices that are more than one range of ports.
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
