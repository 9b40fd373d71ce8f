//! A cluster as YAML: pods over nodes of 100, services of both ports and families of policies.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::Options;

/// Objects in one file.
const A_FILE: u32 = 100;
const NAMESPACES: u32 = 20;

/// What the n-th change makes of a file.
type Text = fn(u32) -> String;

/// Kinds of change: name, and the text of the changed file at the n-th change.
pub(super) const CHANGES: [(&str, Text); 3] =
    [("policy", changed_policy), ("endpoints", changed_endpoints), ("pod", changed_pod)];

/// Writes everything.
pub(super) fn write(dir: &Path, o: &Options) -> Result<()> {
    let nodes = o.here.max(1);
    let count = o.pods.div_ceil(nodes);
    each(dir, "node", count, node)?;
    each(dir, "namespace", NAMESPACES, |n| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{n}, labels: {{group: g{}}}}}\n",
            n % 4
        )
    })?;
    each(dir, "pod", o.pods, |n| pod(n, n / nodes, n % nodes, o.here))?;
    each(dir, "service", o.services, |n| service(n, o, nodes))?;
    each(dir, "policy", o.policies, policy)?;
    std::fs::write(dir.join("forwarding.yaml"), super::swap::pods())?;
    std::fs::write(dir.join("swapped.json"), super::swap::policy(o.rules, 0, false))?;
    for (name, text) in CHANGES {
        std::fs::write(dir.join(format!("change-{name}.yaml")), text(u32::MAX))?;
    }
    Ok(())
}

fn each(dir: &Path, kind: &str, count: u32, text: impl Fn(u32) -> String) -> Result<()> {
    for first in (0..count).step_by(usize::try_from(A_FILE)?) {
        let documents: Vec<String> = (first..count.min(first + A_FILE)).map(&text).collect();
        std::fs::write(dir.join(format!("{kind}-{first}.yaml")), documents.join("---\n"))?;
    }
    Ok(())
}

fn node(n: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{}}}\nspec: {{podCIDR: 10.{}.0.0/16}}\nstatus:\n  \
         addresses: [{{type: InternalIP, address: 192.168.0.{}}}]\n",
        n + 1,
        n + 1,
        n + 1
    )
}

fn address(node: u32, n: u32) -> String {
    format!("10.{}.{}.{}", node + 1, n / 250, n % 250 + 1)
}

fn pod(n: u32, node: u32, at: u32, here: u32) -> String {
    let annotations = if node == 0 && at < here {
        format!(", annotations: {{fastpath.io/interface: fp{}}}", at + 1)
    } else {
        String::new()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{n}, namespace: ns-{}, labels: {{app: a{}, tier: t{}}}{annotations}}}\n\
         spec:\n  nodeName: node-{}\n  containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]\n\
         status: {{phase: Running, podIP: {}}}\n",
        n % NAMESPACES,
        n % 50,
        n % 3,
        node + 1,
        address(node, at)
    )
}

fn service(n: u32, o: &Options, nodes: u32) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: ns-{}}}\nspec:\n  clusterIP: 10.255.{}.{}\n  \
         ports: [{{name: http, port: 80}}]\n---\n",
        n % NAMESPACES,
        n / 250,
        n % 250 + 1
    );
    text += &slice(&format!("s{n}"), n, o.backends, |i| {
        let pod = (n * 7 + i * 13) % o.pods.max(1);
        address(pod / nodes, pod % nodes)
    });
    text
}

fn slice(service: &str, n: u32, backends: u32, address: impl Fn(u32) -> String) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-x, namespace: ns-{}, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n",
        n % NAMESPACES
    );
    for i in 0..backends {
        let _ = writeln!(text, "- {{addresses: [{}], conditions: {{ready: true}}}}", address(i));
    }
    text
}

fn policy(n: u32) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{n}, namespace: ns-{}}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: a{}}}}}\n  policyTypes: [Ingress, Egress]\n  ingress:\n  - from:\n    - podSelector: \
         {{matchLabels: {{app: a{}}}}}\n    - namespaceSelector: {{matchLabels: {{group: g{}}}}}\n    ports: [{{port: http}}, \
         {{port: {}}}]\n  egress:\n  - to: [{{ipBlock: {{cidr: 10.{}.0.0/16, except: [10.{}.1.0/24]}}}}]\n  - ports: \
         [{{protocol: UDP, port: 53}}]\n",
        n % NAMESPACES,
        n % 50,
        (n + 1) % 50,
        n % 4,
        1000 + n,
        n % 10 + 1,
        n % 10 + 1
    )
}

/// The policy of one pod here, with another port each time.
fn changed_policy(n: u32) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: changed, namespace: ns-0}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: a0}}}}\n  ingress: [{{ports: [{{port: {}}}]}}]\n",
        2000 + n % 1000
    )
}

/// A service with one backend more or less.
fn changed_endpoints(n: u32) -> String {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: changed, namespace: ns-0}\nspec:\n  clusterIP: \
                   10.255.200.1\n  ports: [{name: http, port: 80}]\n---\n";
    service.to_owned() + &slice("changed", 0, 2 + n % 2, |i| address(0, i))
}

/// A pod of another node whose label and address change.
fn changed_pod(n: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: changed, namespace: ns-0, labels: {{app: a{}}}}}\nspec: {{nodeName: \
         node-2, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIP: 10.2.9.{}}}\n",
        n % 2,
        n % 200 + 1
    )
}
