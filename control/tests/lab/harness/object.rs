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

/// `value` from a fresh line on; scalars and what is empty stay on their own line as JSON.
fn block(out: &mut String, value: &Value, indent: usize) {
    let entry = |out: &mut String, head: &str, value: &Value| {
        write!(out, "{:indent$}{head}", "").expect("writing to memory");
        if is_block(value) {
            out.push('\n');
            block(out, value, indent + 2);
        } else {
            writeln!(out, " {value}").expect("writing to memory");
        }
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                entry(out, &format!("{}:", Value::from(key.as_str())), value);
            }
        }
        Value::Array(items) => {
            for item in items {
                entry(out, "-", item);
            }
        }
        // JSON's scalars are YAML's.
        scalar => writeln!(out, "{:indent$}{scalar}", "").expect("writing to memory"),
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}
