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
use fastpath::tables::policy::{
    ClassId, Direction, Group, GroupId, Matrix, NodeIndex, PeerInfo, PolicyTable, RuleId,
};

use crate::model::{Model, NetworkPolicy, ObjectName, Pod, PortSpec};

mod blocks;
mod classes;
mod matrix;
mod pods;
mod reasons;
mod rules;
mod select;
#[cfg(test)]
mod tests;

use blocks::Blocks;
use classes::{Classes, Interner, Member, NameId, PeerSetId, Resolution, Signature};
use matrix::{CompiledPort, CompiledRule};
use pods::{Changes, Pods, Slot};
use select::{PodSet, Selections};

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

/// What a matrix depends on besides the classes: the contents of its policies in order, and for ingress what
/// their port names stand for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct MatrixKey {
    direction: Direction,
    policies: Vec<u64>,
    own: Resolution,
}

#[derive(Debug)]
struct CachedMatrix {
    matrix: Arc<Matrix>,
    isolated: RuleId,
    sets: BTreeSet<PeerSetId>,
    names: BTreeSet<NameId>,
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

    /// Puts every address and block that may differ from before into its class.
    fn sync_classes(&mut self, changes: &Changes) {
        let policies = self.in_force.values();
        let egress_names: BTreeSet<_> =
            policies.clone().flat_map(|f| &f.egress).flat_map(CompiledRule::names).collect();
        let all_names: BTreeSet<_> = policies
            .clone()
            .flat_map(|f| f.ingress.iter().chain(&f.egress))
            .flat_map(|r| r.names())
            .collect();
        let peer_sets: BTreeSet<_> =
            policies.flat_map(|f| f.ingress.iter().chain(&f.egress)).filter_map(|r| r.peers).collect();
        self.interner.retain(&peer_sets, &all_names);
        let other_rules = egress_names != self.egress_names || peer_sets != self.peer_sets;
        self.egress_names = egress_names;
        self.peer_sets = peer_sets;
        self.classes.touched_sets.clear();
        self.classes.touched_names.clear();

        let sets = self.interner.sets();
        // An address may have gone to a pod that did not change itself.
        let mut slots_changed = changes.slots.clone();
        slots_changed.extend(changes.addresses.iter().filter_map(|ip| self.pods.owner(*ip)));
        let mut of_pod = HashMap::<Slot, Vec<PeerSetId>>::new();
        for (id, members) in &sets {
            for member in *members {
                let Member::Pods(set) = member else { continue };
                let slots = self.selections.members(&self.pods, set);
                let mut push = |slot: Slot| {
                    let of_pod = of_pod.entry(slot).or_default();
                    if of_pod.last() != Some(id) {
                        of_pod.push(*id);
                    }
                };
                if other_rules {
                    slots.iter().for_each(|slot| push(*slot));
                } else {
                    slots_changed.iter().filter(|s| slots.binary_search(s).is_ok()).for_each(|s| push(*s));
                }
            }
        }
        let addresses: BTreeSet<Ip> = if other_rules {
            let blocks = sets.iter().flat_map(|(id, members)| {
                members.iter().filter_map(|m| match m {
                    Member::Block(block) => Some((*id, block)),
                    Member::Pods(_) => None,
                })
            });
            self.blocks = Blocks::new(blocks);
            self.pods
                .addresses()
                .chain(self.nodes.keys().copied())
                .chain(changes.addresses.iter().copied())
                .collect()
        } else {
            changes.addresses.clone()
        };
        for ip in addresses {
            self.classify(ip, &of_pod);
        }
        if other_rules {
            self.classify_blocks();
        }
        self.classes.settle();
    }

    fn classify(&mut self, ip: Ip, of_pod: &HashMap<Slot, Vec<PeerSetId>>) {
        let owner = self.pods.owner(ip);
        let node = self.nodes.get(&ip).copied();
        let before = self.table.peers.get(ip);
        if owner.is_none() && node.is_none() {
            self.table.peers.remove(ip);
        } else {
            let mut signature = Signature { sets: self.blocks.sets(ip).to_vec(), ports: Vec::new() };
            if let Some(slot) = owner {
                signature.sets.extend(of_pod.get(&slot).into_iter().flatten());
                signature.sets.sort_unstable();
                signature.sets.dedup();
                signature.ports = self.resolve(slot, |name| self.egress_names.contains(&name));
            }
            let class = self.classes.acquire(signature);
            let info = PeerInfo { class, node: node.unwrap_or_default() };
            if before != Some(info) {
                self.table.peers.insert(ip, info);
            }
        }
        if let Some(before) = before {
            self.classes.release(before.class);
        }
    }

    fn classify_blocks(&mut self) {
        let mut prefixes: Vec<_> = self.blocks.iter().collect();
        prefixes.sort_unstable();
        let mut classes = Vec::new();
        let mut acquire = |sets: &[PeerSetId]| {
            let class = self.classes.acquire(Signature { sets: sets.to_vec(), ports: Vec::new() });
            classes.push(class);
            class
        };
        let blocks = prefixes.into_iter().map(|(prefix, sets)| (prefix, acquire(sets))).collect();
        self.table.peers.set_blocks(blocks);
        for class in std::mem::replace(&mut self.block_classes, classes) {
            self.classes.release(class);
        }
    }

    /// What those port names in use that `wanted` picks stand for on a pod.
    fn resolve(&self, slot: Slot, wanted: impl Fn(NameId) -> bool) -> Resolution {
        let Some(entry) = self.pods.entry(slot) else { return Vec::new() };
        let number = |(name, proto, port): &(String, u8, u16)| {
            let name = self.interner.known_name(name, *proto)?;
            wanted(name).then_some((name, *port))
        };
        let mut resolution: Resolution = entry.pod.ports.iter().filter_map(number).collect();
        resolution.sort_unstable();
        resolution
    }

    /// One group for each (node, ingress matrix, egress matrix), in order of the endpoints' names.
    fn build_groups(&mut self, subjects: &HashMap<Slot, Vec<ObjectName>>) -> BTreeMap<ObjectName, GroupId> {
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
