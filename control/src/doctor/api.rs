//! The API server: whether it answers, whether this account may do what the daemon does, whether it knows this node.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use kube::api::{ListParams, PostParams};
use kube::core::Request;
use kube::{Client, Error};
use serde_json::{Value, json};

use super::{ApiFacts, Facts, Findings};
use crate::config::{Config, SourceKind};
use crate::source::KubernetesSettings;
use crate::source::kubernetes::{Right, client, configuration, reason, rights};

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What is known of the API server; `None` when the configuration has no use for one.
pub(super) async fn ask(config: &Config) -> Option<ApiFacts> {
    if config.source.kind != SourceKind::Kubernetes {
        return None;
    }
    let node = config.node_name().unwrap_or_default();
    let mut facts = ApiFacts {
        server: config.source.api_server.clone().unwrap_or_else(|| "the API server".to_owned()),
        version: Err(String::new()),
        denied: Ok(Vec::new()),
        node_exists: None,
    };
    let found = configuration(&KubernetesSettings::of(config, &node)).await.and_then(|way| {
        facts.server = way.cluster_url.to_string().trim_end_matches('/').to_owned();
        client(way)
    });
    let client = match found {
        Ok(client) => client,
        Err(e) => {
            facts.version = Err(e.to_string());
            return Some(facts);
        }
    };
    facts.version = version(&client).await;
    if facts.version.is_ok() {
        facts.denied = denied(&client, config.source.node_condition).await;
        facts.node_exists = node_exists(&client, &node).await;
    }
    Some(facts)
}

async fn version(client: &Client) -> Result<String, String> {
    let request = Request::new("").get("version", &kube::api::GetParams::default());
    let version = answer(client, request.map_err(|e| e.to_string())?).await?;
    version["gitVersion"].as_str().map(str::to_owned).ok_or_else(|| "it does not tell its version".to_owned())
}

/// Of what the daemon does, what this account may not do. Every account may ask that of itself.
async fn denied(client: &Client, node_condition: bool) -> Result<Vec<String>, String> {
    let mut denied = Vec::new();
    for right in rights(node_condition) {
        let Right { group, resource, verb } = &right;
        let resource = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {
                "group": group, "resource": resource.0, "subresource": resource.1, "verb": verb,
            }},
        });
        let request = Request::new("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
            .create(&PostParams::default(), review.to_string().into_bytes())
            .map_err(|e| e.to_string())?;
        if answer(client, request).await?["status"]["allowed"] != true {
            denied.push(right.to_string());
        }
    }
    Ok(denied)
}

/// By a list, since that is what the daemon may do.
async fn node_exists(client: &Client, node: &str) -> Option<bool> {
    let params = ListParams::default().fields(&format!("metadata.name={node}"));
    let list = answer(client, Request::new("/api/v1/nodes").list(&params).ok()?).await.ok()?;
    Some(!list["items"].as_array()?.is_empty())
}

async fn answer(client: &Client, request: hyper::Request<Vec<u8>>) -> Result<Value, String> {
    match tokio::time::timeout(ANSWER, client.request::<Value>(request)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e @ Error::Api(_))) => Err(format!("it refuses: {}", reason(&e))),
        Ok(Err(e)) => Err(reason(&e)),
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

pub(super) fn check(facts: &Facts, config: &Config, out: &mut Findings) {
    let Some(api) = &facts.api else { return };
    let server = &api.server;
    match &api.version {
        Ok(version) => out.ok(format!("{server} answers: {version}")),
        Err(e) => {
            return out.error(
                format!("{server} cannot be reached: {e}"),
                "correct the server's address and the credentials (source.api_server, source.kubeconfig)",
            );
        }
    }
    if let Some(address) = host(server).filter(|a| config.services.cidrs.iter().any(|net| net.contains(a))) {
        out.warning(
            format!("{address} is a service's address, which without kube-proxy nobody but the daemon itself serves"),
            "set source.api_server to an address of the control plane",
        );
    }
    match &api.denied {
        Ok(denied) => denied.iter().for_each(|what| {
            out.error(
                format!("may not {what}"),
                "bind the ClusterRole of configs/k8s/install.yaml to this account, and for source.node_condition that of \
                 configs/k8s/node-condition.yaml",
            );
        }),
        Err(e) => out.warning(
            format!("which rights this account has cannot be asked: {e}"),
            "kubectl auth can-i --list, with the daemon's credentials",
        ),
    }
    if api.node_exists == Some(false) {
        let node = config.node_name().unwrap_or_default();
        out.error(
            format!("there is no Node {node}"),
            "set node.name, or NODE_NAME by the downward API (spec.nodeName)",
        );
    }
}

/// The address in a URL, if it names one.
fn host(url: &str) -> Option<IpAddr> {
    let url: hyper::Uri = url.parse().ok()?;
    url.host()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
