//! `explain`: what becomes of a connection, and which rule decides, by the compiler and the classifier that the
//! packet path runs.
//!
//! | Module | Holds |
//! |---|---|
//! | `query` | what is asked |
//! | `answer` | the answer, as JSON shows it |
//! | `journey` | the ends of a connection and what a service makes of it |
//! | `reasons` | why nothing allowed: what each rule lacked |
//! | `batch` | many queries, a line each |
#![forbid(unsafe_code)]

mod answer;
mod batch;
mod journey;
mod query;
mod reasons;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::Ip;
use fastpath::tables::policy::{Direction, RuleId};

use crate::compile::policy::{Compiled, Compiler, Decider, Scope};
use crate::compile::service::{self, Services, Spread};
use crate::model::Model;
use journey::{End, Journey, Service};

pub use answer::{Answer, Nat, Outcome, Side};
pub use batch::run_batch;
pub use query::{Proto, Query, QueryError, Target};
pub use reasons::{Explanation, Lacking, PolicyLacks, RuleLacks, Step};

/// An [`Explainer`] that follows a model that changes: compiled anew only when it is asked after a change.
#[derive(Debug, Default)]
pub struct LiveExplainer(Option<Explainer>);

impl LiveExplainer {
    /// The explainer for the model as it is now.
    pub fn at(&mut self, model: &Arc<Model>) -> &mut Explainer {
        let known = self.0.take().filter(|e| Arc::ptr_eq(&e.model, model));
        self.0.insert(known.unwrap_or_else(|| Explainer::new(Arc::clone(model))))
    }
}

/// Answers queries about one state of the cluster.
#[derive(Debug)]
pub struct Explainer {
    model: Arc<Model>,
    compiler: Compiler,
    compiled: Compiled,
    services: Services,
    nodes: HashMap<IpAddr, String>,
    /// Usable backends by (backends, node they must be on).
    spreads: HashMap<(usize, Option<String>), Option<Arc<Spread>>>,
}

impl Explainer {
    /// Compiles the model for every pod in it.
    #[must_use]
    pub fn new(model: Arc<Model>) -> Self {
        let mut compiler = Compiler::new(Scope::Cluster);
        let compiled = compiler.update(&model);
        let services = service::compile(&model);
        let addresses = |n: &Arc<crate::model::Node>| {
            n.addresses.iter().map(|a| (*a, n.name.clone())).collect::<Vec<_>>()
        };
        let nodes = model.nodes.values().flat_map(addresses).collect();
        Self { compiler, compiled, services, nodes, spreads: HashMap::new(), model }
    }

    /// What becomes of a connection.
    ///
    /// # Errors
    /// One end does not exist or has no usable address.
    pub fn answer(&mut self, query: &Query) -> Result<Answer, QueryError> {
        self.journey(query).map(|j| self.judge(query, &j))
    }

    fn judge(&self, query: &Query, journey: &Journey) -> Answer {
        let Journey { from, to, seen, dport, service } = journey;
        let ipv4 = to.address.is_ipv4();
        let proto = query.proto.number(ipv4);
        let mut path = vec![from.to_string()];
        let (egress, ingress, outcome) = match service {
            Service::Refused { outcome, why } => {
                path.push(format!("service: {why}"));
                (Side::free("not asked"), Side::free("not asked"), Some(*outcome))
            }
            Service::None | Service::Translated { .. } => {
                let egress = self.side(from, Direction::Egress, to.address, proto, *dport);
                let ingress = self.side(to, Direction::Ingress, *seen, proto, *dport);
                (egress, ingress, None)
            }
        };
        let nat = match service {
            Service::Translated { nat, .. } => {
                path.push(format!(
                    "service {} {}: {} -> {}",
                    nat.service, nat.kind, nat.frontend, nat.backend
                ));
                Some(nat.clone())
            }
            _ => None,
        };
        if outcome.is_none() {
            path.push(format!("egress: {}", egress.by));
            let denied = egress.verdict == Outcome::Deny;
            match (&from.node, &to.node) {
                (Some(a), Some(b)) if a != b && !denied => path.push(format!("node {a} -> node {b}")),
                (Some(a), None) if !denied && to.pod.is_none() => {
                    path.push(format!("node {a} -> outside, by source NAT"))
                }
                _ => {}
            }
            path.push(format!("ingress: {}", ingress.by));
            path.push(to.to_string());
        }
        let denied = egress.verdict == Outcome::Deny || ingress.verdict == Outcome::Deny;
        let verdict = outcome.unwrap_or(if denied { Outcome::Deny } else { Outcome::Allow });
        Answer { verdict, egress, ingress, nat, path }
    }

    /// What the policies of `end` say on a connection with `peer`.
    fn side(&self, end: &End, direction: Direction, peer: IpAddr, proto: u8, dport: u16) -> Side {
        let group = end.policed().and_then(|pod| self.compiled.endpoints.get(&pod.name));
        let Some(group) = group else { return Side::free("no pod: no policy") };
        let verdict = self.compiled.table.evaluate(
            *group,
            direction,
            Ip::from(end.address),
            Ip::from(peer),
            proto,
            dport,
        );
        let by = match verdict.rule {
            RuleId::SELF => "a pod may always reach itself",
            RuleId::OWN_NODE => "its own node may always reach a pod",
            RuleId::NOT_ISOLATED => "not under any policy",
            RuleId::UNKNOWN_GROUP => "unknown",
            _ => "",
        };
        let outcome = if verdict.allow { Outcome::Allow } else { Outcome::Deny };
        let Some(info) = self.compiled.rules.get(verdict.rule) else {
            return Side { verdict: outcome, ..Side::free(by) };
        };
        let (policy, rule, by) = match &info.decider {
            Decider::Rule { policy, index, .. } => {
                (Some(policy), Some(*index), format!("{policy} rule {index}"))
            }
            Decider::Isolated { policies, .. } => {
                (policies.first(), None, "isolated: no policy allows".to_owned())
            }
        };
        Side { verdict: outcome, policy: policy.cloned(), rule, origin: Some(info.origin.clone()), by }
    }
}
