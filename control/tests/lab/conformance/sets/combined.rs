//! Several policies, several pods, both directions.

use serde_json::json;

use super::{Set, block, both, egress_of, expression, has, ingress_of, namespaces, pods, policy, port};

pub(in crate::conformance) fn sets() -> Vec<Set> {
    let a = || has("pod", "a");
    vec![
        Set::of(
            "one policy for both directions",
            json!({
                "podSelector": a(),
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [namespaces(has("ns", "y"))]}],
                "egress": [{"to": [namespaces(has("ns", "z"))]}],
            }),
        ),
        Set::of("nothing in, nothing out", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
        Set::steps(
            "both ends must allow: only one does",
            vec![
                vec![policy("x", "out", egress_of(json!({}), json!([{"to": [namespaces(has("ns", "y"))]}])))],
                vec![policy(
                    "y",
                    "in",
                    ingress_of(json!({}), json!([{"from": [namespaces(has("ns", "z"))]}])),
                )],
                vec![policy(
                    "y",
                    "in",
                    ingress_of(json!({}), json!([{"from": [namespaces(has("ns", "x"))]}])),
                )],
            ],
        ),
        Set::steps(
            "both ends must allow: ports that meet, and ports that do not",
            vec![vec![
                policy(
                    "x",
                    "out",
                    egress_of(json!({}), json!([{"ports": [port("TCP", 80), port("UDP", 80)]}])),
                ),
                policy(
                    "z",
                    "in",
                    ingress_of(json!({}), json!([{"ports": [port("TCP", 81), port("UDP", 80)]}])),
                ),
            ]],
        ),
        Set::steps(
            "several policies of one pod are a union",
            vec![
                vec![policy("x", "none", ingress_of(json!({}), json!([])))],
                vec![policy("x", "y", ingress_of(a(), json!([{"from": [namespaces(has("ns", "y"))]}])))],
                vec![policy("x", "port", ingress_of(json!({}), json!([{"ports": [port("TCP", 81)]}])))],
                vec![policy(
                    "x",
                    "block",
                    ingress_of(has("pod", "b"), json!([{"from": [block("10.77.1.14/31", &[])]}])),
                )],
            ],
        ),
        Set::steps(
            "an empty rule in any policy opens all",
            vec![
                vec![policy("x", "none", ingress_of(json!({}), json!([])))],
                vec![policy("x", "all", ingress_of(a(), json!([{}])))],
            ],
        ),
        Set::steps(
            "policies of one name in two namespaces are two",
            vec![vec![
                policy("x", "same", ingress_of(a(), json!([{"from": [pods(json!({}))]}]))),
                policy("y", "same", ingress_of(has("pod", "b"), json!([{"from": [pods(json!({}))]}]))),
            ]],
        ),
        Set::steps(
            "replies of an allowed connection need no rule",
            vec![vec![
                policy("x", "out", egress_of(json!({}), json!([{"to": [namespaces(has("ns", "y"))]}]))),
                policy("x", "in", ingress_of(json!({}), json!([]))),
                policy("y", "in", ingress_of(json!({}), json!([{"from": [namespaces(has("ns", "x"))]}]))),
                policy("y", "out", egress_of(json!({}), json!([]))),
            ]],
        ),
        Set::steps(
            "namespaces that keep to themselves",
            vec![
                ["x", "y", "z"]
                    .map(|n| {
                        let own = || json!([{"to": [pods(json!({}))]}]);
                        policy(
                            n,
                            "own",
                            json!({
                                "podSelector": {},
                                "policyTypes": ["Ingress", "Egress"],
                                "ingress": [{"from": [pods(json!({}))]}],
                                "egress": own(),
                            }),
                        )
                    })
                    .into(),
            ],
        ),
        Set::steps(
            "three tiers: front to middle to back",
            vec![vec![
                policy(
                    "x",
                    "front",
                    egress_of(
                        json!({}),
                        json!([{"to": [namespaces(has("ns", "y"))], "ports": [port("TCP", "web")]}]),
                    ),
                ),
                policy(
                    "y",
                    "middle-in",
                    ingress_of(
                        json!({}),
                        json!([{"from": [namespaces(has("ns", "x"))], "ports": [port("TCP", 80)]}]),
                    ),
                ),
                policy(
                    "y",
                    "middle-out",
                    egress_of(
                        json!({}),
                        json!([{"to": [both(has("ns", "z"), expression("pod", "NotIn", &["a"]))], "ports": [port("TCP", "web"), port("UDP", 80)]}]),
                    ),
                ),
                policy("z", "back", ingress_of(json!({}), json!([{"from": [namespaces(has("ns", "y"))]}]))),
            ]],
        ),
        Set::of(
            "a pod's own address is always its own",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [block("192.0.2.0/24", &[])]}], "egress": []}),
        ),
    ]
}
