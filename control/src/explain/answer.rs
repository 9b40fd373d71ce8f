//! The answer to a query, as JSON shows it.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::model::{ObjectName, Origin};

/// What becomes of a connection, or of it at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is opened.
    Allow,
    /// It is dropped.
    Deny,
    /// It is refused: TCP reset, or ICMP port unreachable.
    Reject,
}

impl Outcome {
    /// As JSON has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Allow => "allow",
            Outcome::Deny => "deny",
            Outcome::Reject => "reject",
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What becomes of the connection.
    pub verdict: Outcome,
    /// What the policies of its source say.
    pub egress: Side,
    /// What the policies of its destination say.
    pub ingress: Side,
    /// Translation by a service.
    pub nat: Option<Nat>,
    /// Where it goes, step by step.
    pub path: Vec<String>,
}

/// What the policies of one end say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Allow or deny.
    pub verdict: Outcome,
    /// The policy that allows; on deny the first, by name, of those that isolate; none when no policy is in play.
    #[serde(with = "name")]
    pub policy: Option<ObjectName>,
    /// The rule that allows: its index in the policy's list for this direction, from 0.
    pub rule: Option<usize>,
    /// Where the rule, or the isolating policy, was read.
    #[serde(skip)]
    pub origin: Option<Origin>,
    /// In words what decided.
    #[serde(skip)]
    pub by: String,
}

impl Side {
    /// No policy in play.
    pub(super) fn free(by: &str) -> Self {
        Self { verdict: Outcome::Allow, policy: None, rule: None, origin: None, by: by.to_owned() }
    }
}

/// Translation by a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// `ADDR:PORT` the connection is sent on to (IPv6 in brackets).
    pub backend: String,
    /// `ADDR:PORT` it was for.
    pub frontend: String,
    /// The service.
    pub service: String,
    /// Kind of the frontend's address.
    pub kind: String,
    /// Pod that owns the backend's address.
    pub pod: Option<String>,
    /// Number of backends the choice was between.
    pub backends: usize,
}

/// `"ns/name"` or null.
mod name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::ObjectName;

    pub(super) fn serialize<S: Serializer>(name: &Option<ObjectName>, s: S) -> Result<S::Ok, S::Error> {
        match name {
            Some(name) => s.collect_str(name),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ObjectName>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
        let (namespace, name) = text.split_once('/').ok_or_else(|| D::Error::custom("want ns/name"))?;
        Ok(Some(ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }))
    }
}
