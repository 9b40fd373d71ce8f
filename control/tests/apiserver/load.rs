//! A cluster of thousands of objects.

use serde_json::{Value, json};

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Pods, each with two addresses.
    pub(crate) pods: usize,
    /// Services, each selecting an equal part of the pods.
    pub(crate) services: usize,
    /// NetworkPolicies, each selecting the pods of one service.
    pub(crate) policies: usize,
}

/// Namespaces and nodes of the cluster.
const NAMESPACES: usize = 20;
const NODES: usize = 10;

/// Namespaces and nodes.
pub(crate) fn base() -> Vec<Value> {
    let namespace = |i| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("load-{i}"), "labels": {"team": format!("t{}", i % 5)}}});
    let node =
        |i| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("load-node-{i}")}});
    (0..NAMESPACES).map(namespace).chain((0..NODES).map(node)).collect()
}

/// Pods without status, as they are created.
pub(crate) fn pods(size: Size) -> Vec<Value> {
    let pod = |i| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{i}"), "namespace": format!("load-{}", i % NAMESPACES),
                "labels": {"app": format!("a{}", i % size.services), "tier": format!("l{}", i % 7)}},
            "spec": {"nodeName": format!("load-node-{}", i % NODES), "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}]},
        })
    };
    (0..size.pods).map(pod).collect()
}

/// Namespace, name and patch that makes each pod run; `round` is part of the addresses, so that each differs.
pub(crate) fn running(size: Size, round: usize) -> Vec<(String, String, Value)> {
    let patch = |i: usize| {
        let (v4, v6) = (
            format!("10.{}.{}.{}", 200 + round, i / 250, i % 250 + 2),
            format!("fd00:{}:{:x}::{:x}", 200 + round, i / 250, i % 250 + 2),
        );
        let status = json!({"status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
            "conditions": [{"type": "Ready", "status": "True"}]}});
        (format!("load-{}", i % NAMESPACES), format!("p{i}"), status)
    };
    (0..size.pods).map(patch).collect()
}

/// Services of both families, by selector.
pub(crate) fn services(size: Size) -> Vec<Value> {
    let service = |i| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": format!("s{i}"), "namespace": format!("load-{}", i % NAMESPACES)},
            "spec": {"selector": {"app": format!("a{i}")}, "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        })
    };
    (0..size.services).map(service).collect()
}

/// NetworkPolicies with selectors, networks, named ports and ranges.
pub(crate) fn policies(size: Size) -> Vec<Value> {
    let policy = |i| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("n{i}"), "namespace": format!("load-{}", i % NAMESPACES)},
            "spec": {"podSelector": {"matchLabels": {"app": format!("a{}", i % size.services)}}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": format!("t{}", i % 5)}}},
                    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                    "ports": [{"port": "http"}, {"port": 9000 + i, "endPort": 9100 + i}]}],
                "egress": [{"to": [{"podSelector": {"matchLabels": {"tier": format!("l{}", i % 7)}}}]}]},
        })
    };
    (0..size.policies).map(policy).collect()
}
