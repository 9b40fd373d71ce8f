//! What the folder of manifests says, applied to a real API server in the underlay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::ns::NetNs;
use crate::apiserver::client::{identity, plural};
use crate::apiserver::{Options, Server};

/// Kind, namespace, name.
type Id = (String, String, String);

/// The server, and what each file holds.
#[derive(Debug)]
pub(crate) struct Mirror {
    server: Server,
    kubeconfig: PathBuf,
    written: Mutex<Written>,
}

/// What the server has been given.
#[derive(Debug)]
struct Written {
    files: BTreeMap<String, Vec<Value>>,
    /// Namespaces that exist, whether a file has them or not.
    namespaces: BTreeSet<String>,
    /// Counts what is written to the markers.
    marks: u64,
}

/// Whether labs are to run so.
pub(crate) fn wanted() -> bool {
    match std::env::var("FASTPATH_LAB_SOURCE").as_deref() {
        Ok("kubernetes") => true,
        Ok("directory") | Err(_) => false,
        Ok(other) => panic!("FASTPATH_LAB_SOURCE={other}: want directory or kubernetes"),
    }
}

/// One object of each kind that nothing depends on: a change of it, once seen, shows that all before it is seen.
fn markers(mark: u64) -> Vec<Value> {
    let meta = |namespace: &str| {
        let mut meta = json!({"name": "marker", "annotations": {"lab/mark": mark.to_string()}});
        if !namespace.is_empty() {
            meta["namespace"] = namespace.into();
        }
        meta
    };
    let none = json!({"matchLabels": {"lab/none": "none"}});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta("")}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": meta("")}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("marker"), "spec": {"containers": [{"name": "c", "image": "none"}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("marker"), "spec": {"podSelector": none}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("marker"), "spec": {"type": "ExternalName", "externalName": "none.invalid"}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta("marker"), "addressType": "FQDN", "endpoints": []}),
    ]
}

impl Mirror {
    /// Starts a server in `fabric`, on one of its addresses.
    pub(crate) fn start(fabric: &NetNs, address: IpAddr) -> Self {
        let server = Server::start(Options { netns: Some(fabric.path()), address, ..Options::default() });
        server.client().apply(&markers(0));
        let namespaces = ["default", "marker"].map(str::to_owned).into();
        let written = Written { files: BTreeMap::new(), namespaces, marks: 0 };
        Mirror { kubeconfig: server.account_config(), server, written: Mutex::new(written) }
    }

    /// The kubeconfig for daemons: they may do what `configs/k8s/install.yaml` allows, and no more.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The server.
    pub(crate) fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// A file holds `text` now; empty when it is gone.
    pub(crate) fn put(&self, file: &str, text: &str) {
        let objects = parse(text).unwrap_or_else(|e| panic!("{file}: {e}\n{text}"));
        let mut written = self.written.lock().expect("no test panics in here and goes on");
        let Written { files, namespaces, .. } = &mut *written;
        let old = if objects.is_empty() {
            files.remove(file)
        } else {
            files.insert(file.to_owned(), objects.clone())
        };
        let old = old.unwrap_or_default();
        let client = self.server.client();
        let new: Vec<Value> = objects.iter().filter(|o| !old.contains(o)).cloned().collect();
        let named: BTreeSet<String> =
            new.iter().map(identity).filter(|i| i.0 == "Namespace").map(|i| i.2).collect();
        for (_, namespace, _) in new.iter().map(identity) {
            if !namespace.is_empty() && !named.contains(&namespace) && namespaces.insert(namespace.clone()) {
                client.apply(&[
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
                ]);
            }
        }
        namespaces.extend(named);
        client.apply(&new);
        let kept: BTreeSet<Id> = files.values().flatten().map(identity).collect();
        for gone in old.iter().filter(|o| !kept.contains(&identity(o))) {
            match identity(gone) {
                // It cannot go, and is as without a manifest without labels.
                (kind, _, name) if kind == "Namespace" && name == "default" => {
                    client.apply(&[
                        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
                    ]);
                }
                (kind, _, name) => {
                    if kind == "Namespace" {
                        namespaces.remove(&name);
                    }
                    client.delete(gone);
                }
            }
        }
    }

    /// Versions that a daemon has seen when it has seen everything, by kind as the API's paths name it.
    pub(crate) fn versions(&self) -> BTreeMap<String, u64> {
        let mut written = self.written.lock().expect("no test panics in here and goes on");
        written.marks += 1;
        let version = |o: &Value| o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok());
        let kind = |o: &Value| plural(o["kind"].as_str().expect("kind"));
        let after = self.server.client().apply(&markers(written.marks));
        after.iter().map(|o| (kind(o), version(o).expect("a number"))).collect()
    }
}

/// The documents of a YAML text.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| e.to_string())?;
    let mut out = Vec::new();
    for document in documents.into_iter().filter(|d| !d.is_null()) {
        match document["items"].as_array() {
            Some(items) => out.extend(items.iter().cloned()),
            None => out.push(document),
        }
    }
    out.iter_mut().for_each(clear_host_bits);
    out.iter_mut().filter(|o| o["kind"] == "NetworkPolicy").for_each(say_types);
    Ok(out)
}

/// `policyTypes` as the server fills them in where they are missing. They would stay when the policy is applied again
/// with other rules, for nobody owns them: `kubectl apply` does so too.
fn say_types(policy: &mut Value) {
    let spec = &mut policy["spec"];
    if spec["policyTypes"].as_array().is_none_or(Vec::is_empty) {
        let egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
        spec["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    }
}

/// Networks of `ipBlock`s as the server wants them: newer ones refuse bits beyond the prefix length, which older ones
/// took, and manifests may have.
fn clear_host_bits(value: &mut Value) {
    let truncate = |net: &mut Value| {
        if let Some(exact) = net.as_str().and_then(|n| n.parse::<ipnet::IpNet>().ok()) {
            *net = exact.trunc().to_string().into();
        }
    };
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), field) {
                    ("ipBlock", Value::Object(block)) => {
                        block.get_mut("cidr").into_iter().for_each(truncate);
                        let except = block.get_mut("except").and_then(Value::as_array_mut);
                        except.into_iter().flatten().for_each(truncate);
                    }
                    (_, field) => clear_host_bits(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clear_host_bits),
        _ => {}
    }
}
