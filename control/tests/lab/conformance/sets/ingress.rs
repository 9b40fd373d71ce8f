//! Ingress: who may reach the pods of namespace `x`, and where.

use serde_json::json;

use super::{Set, block, both, has, ingress_of, namespaces, pods, policy, port};

pub(in crate::conformance) fn sets() -> Vec<Set> {
    let a = || has("pod", "a");
    vec![
        Set::of("deny all of a namespace", ingress_of(json!({}), json!([]))),
        Set::of("deny all, rules and types left out", json!({"podSelector": {}})),
        Set::of("deny all to one pod", ingress_of(a(), json!([]))),
        Set::of("no selector at all selects every pod", json!({"policyTypes": ["Ingress"]})),
        Set::of("allow all: an empty rule", ingress_of(json!({}), json!([{}]))).open(),
        Set::of("allow all: empty lists", ingress_of(json!({}), json!([{"from": [], "ports": []}]))).open(),
        Set::of(
            "from every pod of the own namespace",
            ingress_of(json!({}), json!([{"from": [pods(json!({}))]}])),
        ),
        Set::of(
            "from one pod of the own namespace",
            ingress_of(a(), json!([{"from": [pods(has("pod", "b"))]}])),
        ),
        Set::of("from every namespace", ingress_of(a(), json!([{"from": [namespaces(json!({}))]}]))).open(),
        Set::of(
            "from a namespace by label",
            ingress_of(a(), json!([{"from": [namespaces(has("ns", "y"))]}])),
        ),
        Set::of(
            "from a namespace by its name, which is always a label",
            ingress_of(a(), json!([{"from": [namespaces(has("kubernetes.io/metadata.name", "z"))]}])),
        ),
        Set::of(
            "from pods of a namespace: both selectors in one entry",
            ingress_of(a(), json!([{"from": [both(has("ns", "y"), has("pod", "b"))]}])),
        ),
        Set::of(
            "from a namespace or from pods: two entries",
            ingress_of(a(), json!([{"from": [namespaces(has("ns", "y")), pods(has("pod", "b"))]}])),
        ),
        Set::of(
            "from pods of all namespaces",
            ingress_of(a(), json!([{"from": [both(json!({}), has("pod", "c"))]}])),
        ),
        Set::of("one port", ingress_of(a(), json!([{"ports": [port("TCP", 80)]}]))),
        Set::of("the protocol is TCP unless said", ingress_of(a(), json!([{"ports": [{"port": 81}]}]))),
        Set::of("UDP on one port", ingress_of(a(), json!([{"ports": [port("UDP", 80)]}]))),
        Set::of("SCTP on one port", ingress_of(a(), json!([{"ports": [port("SCTP", 81)]}]))),
        Set::of(
            "a protocol without a port: all its ports",
            ingress_of(json!({}), json!([{"ports": [{"protocol": "UDP"}]}])),
        ),
        Set::of(
            "every protocol by rules: ICMP still is not allowed",
            ingress_of(
                json!({}),
                json!([{"ports": [{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]}]),
            ),
        ),
        Set::of(
            "a named port is the number the pod gives it",
            ingress_of(json!({}), json!([{"ports": [port("TCP", "other")]}])),
        ),
        Set::of(
            "a name of another protocol does not match",
            ingress_of(json!({}), json!([{"ports": [port("UDP", "web"), port("SCTP", "signal")]}])),
        ),
        Set::of("a name no pod has", ingress_of(a(), json!([{"ports": [port("TCP", "nothing")]}]))),
        Set::steps(
            "the same name in two namespaces",
            vec![vec![
                policy("x", "web", ingress_of(json!({}), json!([{"ports": [port("TCP", "web")]}]))),
                policy("z", "web", ingress_of(json!({}), json!([{"ports": [port("TCP", "web")]}]))),
            ]],
        ),
        Set::of(
            "a range of ports",
            ingress_of(a(), json!([{"ports": [{"protocol": "TCP", "port": 70, "endPort": 80}]}])),
        ),
        Set::of(
            "a range that holds both, of UDP",
            ingress_of(a(), json!([{"ports": [{"protocol": "UDP", "port": 80, "endPort": 81}]}])),
        ),
        Set::of(
            "peer and port must match in one rule",
            ingress_of(a(), json!([{"from": [namespaces(has("ns", "y"))], "ports": [port("TCP", 80)]}])),
        ),
        Set::of(
            "two rules are a union, not a cross product",
            ingress_of(
                a(),
                json!([
                    {"from": [namespaces(has("ns", "y"))], "ports": [port("TCP", 80)]},
                    {"from": [namespaces(has("ns", "z"))], "ports": [port("UDP", 81), port("SCTP", 80)]},
                ]),
            ),
        ),
        Set::of(
            "from addresses, with exceptions",
            ingress_of(
                a(),
                json!([{"from": [
                    block("10.77.1.0/24", &["10.77.1.13/32"]),
                    block("fd00:77:2::/64", &["fd00:77:2::12/127", "fd00:77:2::14/128"]),
                ]}]),
            ),
        ),
        Set::of("from one family only", ingress_of(json!({}), json!([{"from": [block("0.0.0.0/0", &[])]}]))),
        Set::of(
            "a block with bits of the host set is its network",
            ingress_of(a(), json!([{"from": [block("10.77.2.99/24", &[]), block("fd00:77:1::99/64", &[])]}])),
        ),
        Set::of(
            "what one block excepts another entry may allow",
            ingress_of(
                a(),
                json!([{"from": [block("10.77.0.0/16", &["10.77.2.0/24"]), block("10.77.2.12/32", &[])]}]),
            ),
        ),
        Set::of(
            "an exception is nothing to a selector",
            ingress_of(
                a(),
                json!([{"from": [
                    block("::/0", &["fd00:77::/32"]),
                    block("0.0.0.0/0", &["10.0.0.0/8"]),
                    namespaces(has("ns", "z")),
                ]}]),
            ),
        ),
    ]
}
