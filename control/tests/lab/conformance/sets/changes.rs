//! What changes takes effect: policies, labels of pods, labels of namespaces.

use serde_json::json;

use super::super::cluster::Change;
use super::{Set, block, both, egress_of, has, ingress_of, namespaces, pods, policy, port};

pub(in crate::conformance) fn sets() -> Vec<Set> {
    let a = || has("pod", "a");
    vec![
        Set::steps(
            "a policy is created, replaced, deleted",
            vec![
                vec![Change::NamespaceLabels("x", &[("ns", "x"), ("touched", "yes")])],
                vec![policy("x", "policy", ingress_of(a(), json!([])))],
                vec![policy("x", "policy", ingress_of(a(), json!([{"from": [namespaces(has("ns", "y"))]}])))],
                vec![policy("x", "policy", ingress_of(a(), json!([{"ports": [port("TCP", 81)]}])))],
                vec![policy("x", "policy", egress_of(a(), json!([{"ports": [port("UDP", 80)]}])))],
                vec![Change::NoPolicy("x", "policy")],
            ],
        ),
        Set::steps(
            "one of several policies is deleted",
            vec![
                vec![
                    policy("x", "none", ingress_of(json!({}), json!([]))),
                    policy("x", "z", ingress_of(json!({}), json!([{"from": [namespaces(has("ns", "z"))]}]))),
                ],
                vec![Change::NoPolicy("x", "z")],
                vec![Change::NoPolicy("x", "none")],
            ],
        ),
        Set::steps(
            "a peer's labels change",
            vec![
                vec![policy(
                    "x",
                    "policy",
                    ingress_of(json!({}), json!([{"from": [both(json!({}), has("role", "client"))]}])),
                )],
                vec![Change::PodLabels("y", "a", &[("pod", "a"), ("role", "client")])],
                vec![Change::PodLabels("z", "b", &[("pod", "b"), ("role", "client")])],
                vec![Change::PodLabels("y", "a", &[("pod", "a"), ("role", "other")])],
            ],
        ),
        Set::steps(
            "a pod comes under a policy by its labels, and leaves it",
            vec![
                vec![
                    policy("y", "policy", ingress_of(has("locked", "in"), json!([]))),
                    policy("y", "out", egress_of(has("locked", "out"), json!([]))),
                ],
                vec![Change::PodLabels("y", "b", &[("pod", "b"), ("locked", "in")])],
                vec![Change::PodLabels("y", "b", &[("pod", "b"), ("locked", "out")])],
                vec![Change::PodLabels("y", "b", &[("pod", "b")])],
            ],
        ),
        Set::steps(
            "a namespace's labels change",
            vec![
                vec![policy(
                    "x",
                    "policy",
                    ingress_of(json!({}), json!([{"from": [namespaces(has("team", "blue"))]}])),
                )],
                vec![Change::NamespaceLabels("y", &[("ns", "y"), ("team", "blue")])],
                vec![Change::NamespaceLabels("z", &[("team", "blue")])],
                vec![Change::NamespaceLabels("y", &[("ns", "y"), ("team", "red")])],
            ],
        ),
        Set::steps(
            "egress follows the labels of namespaces",
            vec![
                vec![policy(
                    "z",
                    "policy",
                    egress_of(json!({}), json!([{"to": [both(has("team", "blue"), has("pod", "a"))]}])),
                )],
                vec![Change::NamespaceLabels("x", &[("team", "blue")])],
                vec![Change::NamespaceLabels("y", &[("team", "blue")]), Change::NamespaceLabels("x", &[])],
            ],
        ),
        Set::steps(
            "an exception moves",
            vec![
                vec![policy(
                    "x",
                    "policy",
                    ingress_of(json!({}), json!([{"from": [block("10.77.0.0/16", &["10.77.1.0/24"])]}])),
                )],
                vec![policy(
                    "x",
                    "policy",
                    ingress_of(json!({}), json!([{"from": [block("10.77.0.0/16", &["10.77.2.0/24"])]}])),
                )],
                vec![policy(
                    "x",
                    "policy",
                    ingress_of(json!({}), json!([{"from": [block("fd00:77::/32", &["fd00:77:2::/64"])]}])),
                )],
            ],
        ),
        Set::steps(
            "what selects changes, and what is selected",
            vec![
                vec![policy("x", "policy", ingress_of(a(), json!([{"from": [pods(has("pod", "b"))]}])))],
                vec![policy(
                    "x",
                    "policy",
                    ingress_of(has("pod", "b"), json!([{"from": [pods(has("pod", "c"))]}])),
                )],
                vec![Change::PodLabels("x", "c", &[("pod", "b")])],
            ],
        ),
    ]
}
