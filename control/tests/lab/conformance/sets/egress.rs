//! Egress: whom the pods of namespace `x` may reach, and where.

use serde_json::json;

use super::{Set, block, both, egress_of, has, namespaces, pods, policy, port};

pub(in crate::conformance) fn sets() -> Vec<Set> {
    let a = || has("pod", "a");
    vec![
        Set::of("deny all of a namespace", egress_of(json!({}), json!([]))),
        Set::of("deny all of one pod", egress_of(a(), json!([]))),
        Set::of("allow all: an empty rule", egress_of(json!({}), json!([{}]))).open(),
        Set::of("to every pod of the own namespace", egress_of(json!({}), json!([{"to": [pods(json!({}))]}]))),
        Set::of("to a namespace by label", egress_of(a(), json!([{"to": [namespaces(has("ns", "y"))]}]))),
        Set::of("to pods of a namespace", egress_of(a(), json!([{"to": [both(has("ns", "z"), has("pod", "c"))]}]))),
        Set::of("to one port", egress_of(json!({}), json!([{"ports": [port("TCP", 80)]}]))),
        Set::of(
            "as name service is allowed: UDP and TCP on one port, to pods anywhere",
            egress_of(
                a(),
                json!([{
                    "to": [both(json!({}), has("pod", "c"))],
                    "ports": [port("UDP", 81), port("TCP", 81)],
                }]),
            ),
        ),
        Set::of(
            "a named port is the number the peer gives it",
            egress_of(json!({}), json!([{"ports": [port("TCP", "web")]}])),
        ),
        Set::of(
            "a named port of pods that are selected",
            egress_of(json!({}), json!([{"to": [namespaces(has("ns", "z"))], "ports": [port("SCTP", "signal")]}])),
        ),
        Set::of(
            "a named port and an address that a pod owns",
            egress_of(a(), json!([{"to": [block("10.77.0.0/16", &[])], "ports": [port("TCP", "web")]}])),
        ),
        Set::of(
            "a range of ports",
            egress_of(a(), json!([{"ports": [{"protocol": "TCP", "port": 81, "endPort": 65535}]}])),
        ),
        Set::of(
            "to addresses, with exceptions",
            egress_of(
                json!({}),
                json!([{"to": [
                    block("10.77.0.0/16", &["10.77.2.12/30"]),
                    block("fd00:77::/32", &["fd00:77:1::/64"]),
                ]}]),
            ),
        ),
        Set::of("to one family only", egress_of(a(), json!([{"to": [block("::/0", &[])]}]))),
        Set::of(
            "rules are a union",
            egress_of(
                a(),
                json!([
                    {"to": [namespaces(has("ns", "y"))], "ports": [port("TCP", 80)]},
                    {"to": [pods(has("pod", "b"))]},
                    {"to": [block("10.77.1.15/32", &[])], "ports": [port("UDP", 80), port("SCTP", 81)]},
                ]),
            ),
        ),
        Set::of(
            "egress rules without types isolate for both",
            json!({"podSelector": a(), "egress": [{"to": [namespaces(has("ns", "y"))]}]}),
        ),
        Set::of("an empty list of egress rules without types is ingress only", json!({"podSelector": a(), "egress": []})),
        Set::of(
            "egress rules count for nothing where only Ingress is named",
            json!({"podSelector": a(), "policyTypes": ["Ingress"], "ingress": [{}], "egress": [{"ports": [port("TCP", 80)]}]}),
        )
        .open(),
        Set::steps(
            "UDP only, everywhere",
            ["x", "y", "z"]
                .map(|n| vec![policy(n, "udp", egress_of(json!({}), json!([{"ports": [{"protocol": "UDP"}]}])))])
                .into(),
        ),
    ]
}
