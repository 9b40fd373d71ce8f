//! Why a connection is allowed or not, rule by rule, out of what was compiled.
#![forbid(unsafe_code)]

use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::policy::Direction;

use super::Compiler;
use crate::model::{ObjectName, Origin, Pod};

/// One policy that isolates the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyReasons {
    /// Its name.
    pub policy: ObjectName,
    /// Where it was read.
    pub origin: Origin,
    /// Its rules in order.
    pub rules: Vec<RuleReason>,
}

/// What one rule makes of a connection; it allows when both match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleReason {
    /// Which rule, from 0.
    pub index: usize,
    /// Where it was read.
    pub origin: Origin,
    /// Whether one of its peers matches.
    pub peer: bool,
    /// Whether one of its ports matches.
    pub port: bool,
}

impl Compiler {
    /// The pod that owns an address, as of the last [`Compiler::update`]: not one on the host network, not one
    /// that has ended. Of several claimants the first by name.
    #[must_use]
    pub fn owner(&self, ip: Ip) -> Option<&Arc<Pod>> {
        self.pods.owner(ip).and_then(|slot| self.pods.entry(slot)).map(|e| &e.pod)
    }

    /// Every policy that isolates `endpoint` in this direction, as of the last [`Compiler::update`]; none for an
    /// endpoint out of scope.
    #[must_use]
    pub fn reasons(
        &self,
        endpoint: &ObjectName,
        direction: Direction,
        peer: Ip,
        proto: u8,
        dport: u16,
    ) -> Vec<PolicyReasons> {
        let Some((slot, entry)) = self.pods.find(endpoint) else { return Vec::new() };
        if !self.in_scope(&entry.pod) {
            return Vec::new();
        }
        let class = self.table.peers.lookup(peer).class;
        let signature = self.classes.signature(class);
        let resolution = match (direction, signature) {
            (Direction::Ingress, _) => self.resolve(slot, |_| true),
            (Direction::Egress, signature) => signature.map(|s| s.ports.clone()).unwrap_or_default(),
        };
        let of_namespace = self.in_force.values().filter(|f| f.policy.name.namespace == endpoint.namespace);
        of_namespace
            .filter(|f| f.policy.pod_selector.matches(&entry.pod.labels))
            .filter_map(|f| {
                let rules = f.policy.rules(direction)?.iter().zip(&f.side(direction).rules).enumerate();
                let reason =
                    |(index, (rule, compiled)): (usize, (&crate::model::Rule, &super::CompiledRule))| {
                        let holds = |set| signature.is_some_and(|s| s.sets.binary_search(&set).is_ok());
                        RuleReason {
                            index,
                            origin: rule.origin.clone(),
                            peer: compiled.peers.is_none_or(holds),
                            port: compiled.allows_port(&resolution, proto, dport),
                        }
                    };
                let origin = f.policy.origin.clone();
                Some(PolicyReasons {
                    policy: f.policy.name.clone(),
                    origin,
                    rules: rules.map(reason).collect(),
                })
            })
            .collect()
    }
}
