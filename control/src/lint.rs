//! `policy lint`: what NetworkPolicies say that cannot be meant.
//!
//! Everything is judged against the pods and namespaces of the model: a selector that selects nothing today may
//! select something tomorrow, so all of it is advice.
#![forbid(unsafe_code)]

mod dns;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use fastpath::tables::policy::Direction;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::model::{
    IpBlock, Model, NamespaceScope, NetworkPolicy, ObjectName, Peer, Pod, PortMatch, PortSpec, Rule, Selector,
};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Rules of a direction that `policyTypes` does not name.
    IgnoredRules,
    /// A selector that nothing meets.
    SelectsNothing,
    /// A rule that can never match.
    NeverMatches,
    /// A named port that no pod has.
    UnknownPort,
    /// Restricted egress without DNS.
    NoDns,
}

impl FindingKind {
    /// As JSON has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::IgnoredRules => "ignored-rules",
            FindingKind::SelectsNothing => "selects-nothing",
            FindingKind::NeverMatches => "never-matches",
            FindingKind::UnknownPort => "unknown-port",
            FindingKind::NoDns => "no-dns",
        }
    }
}

/// Something that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The policy.
    #[serde(serialize_with = "text")]
    pub policy: ObjectName,
    /// What it is about.
    pub kind: FindingKind,
    /// The part of the policy, as `spec.ingress[0].from[1]`.
    pub path: String,
    /// Where that was read.
    pub at: String,
    /// What is wrong with it.
    pub message: String,
}

fn text<S: Serializer>(name: &ObjectName, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(name)
}

/// All findings, by policy and in the order of its parts.
#[must_use]
pub fn lint(model: &Model) -> Vec<Finding> {
    let pods = || model.pods.values().filter(|p| !p.host_network && !p.finished);
    let pods: Vec<_> = pods().collect();
    let mut findings = Vec::new();
    let mut dns = dns::Dns::new(model);
    // Of one with mistakes, those are said elsewhere, and its rules are not counted as written.
    for policy in model.policies.values().filter(|p| !p.closed) {
        let mut lint = Lint { model, pods: &pods, policy, findings: &mut findings };
        let selected = lint.selected();
        lint.ignored_rules();
        for direction in Direction::BOTH {
            for (i, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
                lint.rule(direction, i, rule, &selected);
            }
        }
        if let Some(message) = dns.missing(policy, &selected) {
            lint.add(FindingKind::NoDns, "spec.egress", message);
        }
    }
    findings
}

struct Lint<'a> {
    model: &'a Model,
    /// Pods that policies see.
    pods: &'a [&'a Arc<Pod>],
    policy: &'a NetworkPolicy,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Lint<'a> {
    fn add(&mut self, kind: FindingKind, path: &str, message: String) {
        let at = self.policy.origin.part(path).to_string();
        self.findings.push(Finding {
            policy: self.policy.name.clone(),
            kind,
            path: path.to_owned(),
            at,
            message,
        });
    }

    /// The pods the policy isolates.
    fn selected(&mut self) -> Vec<&'a Arc<Pod>> {
        let (namespace, selector) = (&self.policy.name.namespace, &self.policy.pod_selector);
        let meets = |p: &Pod| p.name.namespace == *namespace && selector.matches(&p.labels);
        let selected: Vec<_> = self.pods.iter().copied().filter(|p| meets(p)).collect();
        if selected.is_empty() {
            let others = self.model.pods.values().filter(|p| meets(p)).count();
            let mut message = format!("podSelector {selector} selects no pod in namespace {namespace}");
            if others > 0 {
                message +=
                    &format!(" ({others} on the host network or ended, which policies do not apply to)");
            }
            self.add(FindingKind::SelectsNothing, "spec.podSelector", message);
        }
        selected
    }

    fn ignored_rules(&mut self) {
        let p = self.policy;
        let unused = [
            ("spec.ingress", "Ingress", !p.isolates_ingress && !p.ingress.is_empty()),
            ("spec.egress", "Egress", !p.isolates_egress && !p.egress.is_empty()),
        ];
        for (path, name, unused) in unused {
            if unused {
                self.add(
                    FindingKind::IgnoredRules,
                    path,
                    format!("policyTypes has no {name}: these rules do nothing"),
                );
            }
        }
    }

    fn rule(&mut self, direction: Direction, index: usize, rule: &Rule, selected: &[&'a Arc<Pod>]) {
        let (name, side) = match direction {
            Direction::Ingress => ("ingress", "from"),
            Direction::Egress => ("egress", "to"),
        };
        let path = format!("spec.{name}[{index}]");
        let mut peers: Vec<&Arc<Pod>> = Vec::new();
        let mut alive = rule.peers.is_empty();
        for (i, peer) in rule.peers.iter().enumerate() {
            let at = format!("{path}.{side}[{i}]");
            match peer {
                Peer::Pods { namespaces, pods } => {
                    let found = self.peer_pods(namespaces, pods, &at);
                    alive |= !found.is_empty();
                    peers.extend(found);
                }
                Peer::Block(block) if empty(block) => {
                    let message = format!("{block}: the exceptions leave nothing of it");
                    self.add(FindingKind::SelectsNothing, &format!("{at}.ipBlock"), message);
                }
                Peer::Block(_) => alive = true,
            }
        }
        if !alive {
            self.add(FindingKind::NeverMatches, &path, "none of its peers matches anything".to_owned());
        }
        let destinations: Vec<&Arc<Pod>> = match direction {
            Direction::Ingress => selected.to_vec(),
            Direction::Egress if rule.peers.is_empty() => self.pods.to_vec(),
            Direction::Egress => peers,
        };
        let unknown: Vec<bool> = rule.ports.iter().map(|p| unresolvable(p, &destinations)).collect();
        // A name is unknown when there is somebody who could have it; else the selector is what is wrong.
        let blocks = direction == Direction::Egress && rule.peers.iter().any(|p| matches!(p, Peer::Block(_)));
        if destinations.is_empty() && !(blocks && alive) {
            return;
        }
        for (i, port) in rule.ports.iter().enumerate().filter(|(i, _)| unknown.get(*i) == Some(&true)) {
            let whom = match direction {
                Direction::Ingress => "no pod that the policy selects has this port",
                Direction::Egress if destinations.is_empty() => {
                    "a named port matches pods only, never an ipBlock"
                }
                Direction::Egress => "no pod among the peers has this port",
            };
            self.add(FindingKind::UnknownPort, &format!("{path}.ports[{i}]"), format!("{port}: {whom}"));
        }
        if !unknown.is_empty() && unknown.iter().all(|u| *u) {
            self.add(FindingKind::NeverMatches, &path, "none of its ports exists".to_owned());
        }
    }

    fn peer_pods(&mut self, scope: &NamespaceScope, selector: &Selector, at: &str) -> Vec<&'a Arc<Pod>> {
        let own = &self.policy.name.namespace;
        let labels = |name: &str| self.model.namespaces.get(name).map(|n| &n.labels);
        let within = |p: &Pod| match scope {
            NamespaceScope::Own => p.name.namespace == *own,
            NamespaceScope::Matching(ns) => labels(&p.name.namespace).is_some_and(|l| ns.matches(l)),
        };
        let found: Vec<_> =
            self.pods.iter().copied().filter(|p| within(p) && selector.matches(&p.labels)).collect();
        if !found.is_empty() {
            return found;
        }
        let (part, message) = match scope {
            NamespaceScope::Matching(ns)
                if !self.model.namespaces.values().any(|n| ns.matches(&n.labels)) =>
            {
                ("namespaceSelector", format!("namespaceSelector {ns} selects no namespace"))
            }
            NamespaceScope::Matching(ns) => {
                ("podSelector", format!("podSelector {selector} selects no pod in namespaces {ns}"))
            }
            NamespaceScope::Own => {
                ("podSelector", format!("podSelector {selector} selects no pod in namespace {own}"))
            }
        };
        self.add(FindingKind::SelectsNothing, &format!("{at}.{part}"), message);
        Vec::new()
    }
}

/// Whether the exceptions cover the whole block.
fn empty(block: &IpBlock) -> bool {
    IpNet::aggregate(&block.except).contains(&block.cidr)
}

/// Whether this is a name that none of the pods has.
fn unresolvable(port: &PortMatch, pods: &[&Arc<Pod>]) -> bool {
    let PortSpec::Named(name) = &port.port else { return false };
    let has = |p: &Pod| p.ports.iter().any(|(n, proto, _)| n == name && *proto == port.protocol.number());
    !pods.iter().any(|p| has(p))
}
