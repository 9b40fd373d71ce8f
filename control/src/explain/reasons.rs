//! Why nothing allowed: which policies isolate, and what each of their rules lacked.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use fastpath::packet::Ip;
use fastpath::tables::policy::Direction;
use serde::{Deserialize, Serialize};

use super::journey::{End, Journey, Service};
use super::{Answer, Explainer, Outcome, Query, QueryError};
use crate::model::{Pod, PortSpec, Rule};

/// An answer with all that a reader wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The answer.
    pub answer: Answer,
    /// What decided at each step.
    pub steps: Vec<Step>,
    /// For each end that denies, why nothing allowed.
    pub lacking: Vec<Lacking>,
}

/// One step of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `service`, `egress` or `ingress`.
    pub name: String,
    /// What became of it here.
    pub verdict: Outcome,
    /// What decided, in words.
    pub by: String,
    /// Where that was read: file and line, or `api`.
    pub at: Option<String>,
}

/// Why no policy allowed a connection at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// The pod.
    pub pod: String,
    /// `ingress` or `egress`, as seen from it.
    pub direction: String,
    /// The other end, in words.
    pub peer: String,
    /// Protocol and port, in words.
    pub port: String,
    /// All policies that isolate the pod.
    pub policies: Vec<PolicyLacks>,
}

/// One isolating policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyLacks {
    /// Its namespace and name.
    pub policy: String,
    /// Where it was read.
    pub at: String,
    /// What each of its rules lacked.
    pub rules: Vec<RuleLacks>,
}

/// One rule that did not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleLacks {
    /// Which, from 0.
    pub index: usize,
    /// Where it was read.
    pub at: String,
    /// What the peer would have to be, if it is not.
    pub peer: Option<String>,
    /// What the port would have to be, if it is not.
    pub port: Option<String>,
}

impl Explainer {
    /// The answer to a query with the reasons for it.
    ///
    /// # Errors
    /// As [`Explainer::answer`].
    pub fn explain(&mut self, query: &Query) -> Result<Explanation, QueryError> {
        let journey = self.journey(query)?;
        let answer = self.judge(query, &journey);
        let mut steps = Vec::new();
        match &journey.service {
            Service::None => {}
            Service::Translated { nat, name } => {
                let by = format!(
                    "{} {}: {} -> {} (one of {})",
                    nat.service, nat.kind, nat.frontend, nat.backend, nat.backends
                );
                let at = self.model.services.get(name).map(|s| s.origin.to_string());
                steps.push(Step { name: "service".to_owned(), verdict: Outcome::Allow, by, at });
            }
            Service::Refused { outcome, why } => {
                steps.push(Step { name: "service".to_owned(), verdict: *outcome, by: why.clone(), at: None });
                return Ok(Explanation { answer, steps, lacking: Vec::new() });
            }
        }
        let mut lacking = Vec::new();
        let ends = [
            (Direction::Egress, &answer.egress, &journey.from, &journey.to, journey.to.address),
            (Direction::Ingress, &answer.ingress, &journey.to, &journey.from, journey.seen),
        ];
        for (direction, side, end, other, peer) in ends {
            let at = side.origin.as_ref().map(ToString::to_string);
            let name = direction.name().to_owned();
            steps.push(Step { name, verdict: side.verdict, by: side.by.clone(), at });
            if side.verdict == Outcome::Deny
                && let Some(pod) = end.policed()
            {
                lacking.push(self.lacking(query, &journey, pod, direction, other, peer));
            }
        }
        Ok(Explanation { answer, steps, lacking })
    }

    fn lacking(
        &self,
        query: &Query,
        journey: &Journey,
        pod: &Pod,
        direction: Direction,
        other: &End,
        peer: IpAddr,
    ) -> Lacking {
        let proto = query.proto.number(peer.is_ipv4());
        let port = if super::Proto::Icmp == query.proto {
            query.proto.name().to_owned()
        } else {
            format!("{} {}", query.proto.name(), journey.dport)
        };
        let destination = match direction {
            Direction::Ingress => Some(pod),
            Direction::Egress => other.policed().map(AsRef::as_ref),
        };
        let reasons = self.compiler.reasons(&pod.name, direction, Ip::from(peer), proto, journey.dport);
        let policies = reasons.into_iter().map(|reason| {
            let rules =
                self.model.policies.get(&reason.policy).and_then(|p| p.rules(direction)).unwrap_or_default();
            let lacks = reason.rules.into_iter().zip(rules).map(|(r, rule)| RuleLacks {
                index: r.index,
                at: r.origin.to_string(),
                peer: (!r.peer).then(|| list(rule.peers.iter().map(ToString::to_string))),
                port: (!r.port).then(|| wanted_ports(rule, destination)),
            });
            PolicyLacks {
                rules: lacks.collect(),
                policy: reason.policy.to_string(),
                at: reason.origin.to_string(),
            }
        });
        let peer = if other.address == peer { other.to_string() } else { format!("{peer} (by source NAT)") };
        Lacking {
            pod: pod.name.to_string(),
            direction: direction.name().to_owned(),
            peer,
            port,
            policies: policies.collect(),
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join("; ")
}

/// The ports of a rule, names with what they stand for on the destination.
fn wanted_ports(rule: &Rule, destination: Option<&Pod>) -> String {
    list(rule.ports.iter().map(|p| {
        let PortSpec::Named(name) = &p.port else { return p.to_string() };
        let Some(pod) = destination else {
            return format!("{p} (the destination is no pod: it has no named ports)");
        };
        let ports: Vec<_> = pod
            .ports
            .iter()
            .filter(|(n, proto, _)| n == name && *proto == p.protocol.number())
            .map(|(_, _, port)| port.to_string())
            .collect();
        match &ports[..] {
            [] => format!("{p} (which {} does not have)", pod.name),
            some => format!("{p} ({} on {})", some.join(", "), pod.name),
        }
    }))
}
