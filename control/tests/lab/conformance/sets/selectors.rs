//! Which objects a selector selects: every operator, on pods and on namespaces.

use serde_json::{Value, json};

use super::super::cluster::Change;
use super::{Set, both, egress_of, expression, has, ingress_of, namespaces, pods, policy};

/// The operators are told apart by a label that not all have: `tier`.
fn tiers() -> Vec<Change> {
    vec![
        Change::PodLabels("x", "b", &[("pod", "b"), ("tier", "front")]),
        Change::PodLabels("y", "b", &[("pod", "b"), ("tier", "front")]),
        Change::PodLabels("y", "c", &[("pod", "c"), ("tier", "back")]),
        Change::PodLabels("z", "c", &[("pod", "c"), ("tier", "")]),
        Change::NamespaceLabels("y", &[("ns", "y"), ("tier", "front")]),
        Change::NamespaceLabels("z", &[("ns", "z")]),
    ]
}

fn with_tiers(name: &'static str, spec: Value) -> Set {
    let mut step = tiers();
    step.push(policy("x", "policy", spec));
    Set::steps(name, vec![step])
}

/// Ingress of all pods of `x` from pods anywhere that the selector selects.
fn from_pods(name: &'static str, selector: Value) -> Set {
    with_tiers(name, ingress_of(json!({}), json!([{"from": [both(json!({}), selector)]}])))
}

/// Ingress of all pods of `x` from namespaces that the selector selects.
fn from_namespaces(name: &'static str, selector: Value) -> Set {
    with_tiers(name, ingress_of(json!({}), json!([{"from": [namespaces(selector)]}])))
}

pub(in crate::conformance) fn sets() -> Vec<Set> {
    vec![
        from_pods("pods by In", expression("tier", "In", &["front", "middle"])),
        from_pods("pods by NotIn: also those without the key", expression("tier", "NotIn", &["front"])),
        from_pods("pods by Exists: also with an empty value", expression("tier", "Exists", &[])),
        from_pods("pods by DoesNotExist", expression("tier", "DoesNotExist", &[])),
        from_namespaces("namespaces by In", expression("ns", "In", &["y"])),
        from_namespaces("namespaces by NotIn", expression("tier", "NotIn", &["front"])),
        from_namespaces("namespaces by Exists", expression("tier", "Exists", &[])),
        from_namespaces("namespaces by DoesNotExist", expression("tier", "DoesNotExist", &[])),
        from_namespaces(
            "namespaces by the name every one has",
            expression("kubernetes.io/metadata.name", "NotIn", &["x", "z"]),
        ),
        from_pods(
            "expressions and labels must all match",
            json!({
                "matchLabels": {"pod": "b"},
                "matchExpressions": [
                    {"key": "tier", "operator": "Exists"},
                    {"key": "tier", "operator": "NotIn", "values": ["back", ""]},
                ],
            }),
        ),
        with_tiers(
            "the pods a policy isolates, by expression",
            ingress_of(
                expression("tier", "DoesNotExist", &[]),
                json!([{"from": [pods(has("tier", "front"))]}]),
            ),
        ),
        with_tiers(
            "the pods egress is allowed to, by expression",
            egress_of(
                json!({}),
                json!([{"to": [both(expression("tier", "Exists", &[]), expression("pod", "In", &["a", "c"]))]}]),
            ),
        ),
        with_tiers(
            "a selector that selects nobody isolates nobody",
            ingress_of(expression("tier", "In", &["nowhere"]), json!([])),
        )
        .open(),
        from_pods("a peer that selects nobody allows nobody", expression("tier", "In", &["nowhere"])),
    ]
}
