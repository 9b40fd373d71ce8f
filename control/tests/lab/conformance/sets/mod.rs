//! The sets of policies, as tables.

pub(super) mod changes;
pub(super) mod combined;
pub(super) mod egress;
pub(super) mod ingress;
pub(super) mod selectors;

use serde_json::{Value, json};

use super::cluster::Change;

/// What is done to a fresh cluster, probed after every step.
#[derive(Clone, Debug)]
pub(super) struct Set {
    /// What it is about; distinct.
    pub(super) name: &'static str,
    /// Changes made at once.
    pub(super) steps: Vec<Vec<Change>>,
    /// Nothing is denied at any step, and that is what it shows.
    pub(super) open: bool,
}

impl Set {
    fn steps(name: &'static str, steps: Vec<Vec<Change>>) -> Self {
        Set { name, steps, open: false }
    }

    /// One policy in namespace `x`.
    fn of(name: &'static str, spec: Value) -> Self {
        Set::steps(name, vec![vec![policy("x", "policy", spec)]])
    }

    fn open(mut self) -> Self {
        self.open = true;
        self
    }
}

/// A policy created or replaced.
fn policy(namespace: &'static str, name: &'static str, spec: Value) -> Change {
    Change::Policy(namespace, name, spec)
}

/// A selector: objects with this label.
fn has(key: &str, value: &str) -> Value {
    json!({"matchLabels": {key: value}})
}

/// A selector of one expression.
fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    if values.is_empty() {
        json!({"matchExpressions": [{"key": key, "operator": operator}]})
    } else {
        json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
    }
}

/// A peer: pods of the policy's namespace.
fn pods(selector: Value) -> Value {
    json!({"podSelector": selector})
}

/// A peer: all pods of namespaces.
fn namespaces(selector: Value) -> Value {
    json!({"namespaceSelector": selector})
}

/// A peer: pods of namespaces.
fn both(namespace: Value, pod: Value) -> Value {
    json!({"namespaceSelector": namespace, "podSelector": pod})
}

/// A peer: addresses.
fn block(cidr: &str, except: &[&str]) -> Value {
    if except.is_empty() {
        json!({"ipBlock": {"cidr": cidr}})
    } else {
        json!({"ipBlock": {"cidr": cidr, "except": except}})
    }
}

/// A port by number or name.
fn port(protocol: &str, port: impl Into<Value>) -> Value {
    json!({"protocol": protocol, "port": port.into()})
}

/// A policy for ingress of the pods `selector` selects.
fn ingress_of(selector: Value, rules: Value) -> Value {
    json!({"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules})
}

/// A policy for egress of the pods `selector` selects.
fn egress_of(selector: Value, rules: Value) -> Value {
    json!({"podSelector": selector, "policyTypes": ["Egress"], "egress": rules})
}
