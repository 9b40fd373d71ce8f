//! What of the API is used: neither more nor less is to be allowed to the daemon's account.
#![forbid(unsafe_code)]

use std::fmt;

use super::super::kinds::KINDS;

/// A verb on a resource, in the words of RBAC.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Right {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Resource, as `pods`; with its subresource, as `nodes/status`.
    pub resource: &'static str,
    /// Verb, as `watch`.
    pub verb: &'static str,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

/// Everything that [`KubernetesSource`](super::KubernetesSource) does: it reads the kinds it knows, in all namespaces,
/// and writes Events; with `node_condition`, also a condition of its own Node.
#[must_use]
pub fn rights(node_condition: bool) -> Vec<Right> {
    let read = |verb| KINDS.iter().map(move |k| Right { group: k.group, resource: k.plural, verb });
    let events = Right { group: "events.k8s.io", resource: "events", verb: "create" };
    let condition = Right { group: "", resource: "nodes/status", verb: "patch" };
    let condition = node_condition.then_some(condition);
    read("list").chain(read("watch")).chain([events]).chain(condition).collect()
}
