//! Kubernetes objects as JSON values, and the YAML of them.

use std::fmt::Write as _;

use fastpath_control::model::Labels;
use serde_json::{Value, json};

use super::lab::Lab;
use super::manifest::node_name;
use super::pod::Pod;
use super::spec::{Family, mac_text};

/// A named port of a pod: name, protocol, number.
pub(crate) type NamedPort = (&'static str, &'static str, u16);

/// Labels from pairs.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A Namespace.
pub(crate) fn namespace(name: &str, labels: &Labels) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A Pod object for a pod of the lab, under any name.
pub(crate) fn pod(
    lab: &Lab,
    pod: &Pod,
    (namespace, name): (&str, &str),
    labels: &Labels,
    ports: &[NamedPort],
) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "containerPort": port}))
        .collect();
    let ips: Vec<_> = Family::BOTH.iter().map(|f| json!({"ip": pod.ip(*f).to_string()})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {
                "fastpath.io/interface": pod.interface,
                "fastpath.io/mac": mac_text(pod.mac()),
            },
        },
        "spec": {
            "nodeName": node_name(lab.nodes[pod.node].spec.name),
            "containers": [{"name": "main", "image": "none", "ports": ports}],
        },
        "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
    })
}

/// A NetworkPolicy.
pub(crate) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// The objects as documents of one YAML file, in block style.
pub(crate) fn yaml(objects: &[Value]) -> String {
    let mut out = String::new();
    for object in objects {
        out.push_str("---\n");
        block(&mut out, object, 0);
    }
    out
}

/// `value` from a fresh line on; scalars and what is empty stay on the line of their key, as JSON.
fn block(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                write!(out, "{:indent$}{}:", "", Value::from(key.as_str())).expect("writing to memory");
                if is_block(value) {
                    out.push('\n');
                    block(out, value, indent + 2);
                } else {
                    writeln!(out, " {value}").expect("writing to memory");
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let dash = out.len() + indent;
                block(out, item, indent + 2);
                out.replace_range(dash..=dash, "-");
            }
        }
        // JSON's are YAML's.
        scalar => writeln!(out, "{:indent$}{scalar}", "").expect("writing to memory"),
    }
}

/// Whether it has lines of its own.
fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A Service.
pub(crate) fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// An EndpointSlice of a service, of one family; `ports` and `endpoints` as in the API.
pub(crate) fn slice(
    (namespace, service): (&str, &str),
    family: Family,
    ports: &Value,
    endpoints: &[Value],
) -> Value {
    let (suffix, kind) = if family == Family::V4 { ("4", "IPv4") } else { ("6", "IPv6") };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{suffix}"),
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": kind,
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Ready, serving.
    Ready,
    /// Fails its readiness probe.
    NotReady,
    /// About to go, still serving.
    Terminating,
    /// About to go, no longer serving.
    Gone,
}

/// One endpoint: a pod of the lab.
pub(crate) fn endpoint(lab: &Lab, pod: &Pod, family: Family, condition: Condition) -> Value {
    let (ready, serving, terminating) = match condition {
        Condition::Ready => (true, true, false),
        Condition::NotReady => (false, false, false),
        Condition::Terminating => (false, true, true),
        Condition::Gone => (false, false, true),
    };
    json!({
        "addresses": [pod.ip(family).to_string()],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": node_name(lab.nodes[pod.node].spec.name),
        "targetRef": {"kind": "Pod", "namespace": "default", "name": pod.name},
    })
}
