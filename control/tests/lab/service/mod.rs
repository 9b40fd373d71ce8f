//! Services: who answers, whom it sees, and what becomes of it when backends come and go.
//!
//! The service of these tests is `web`: TCP, UDP and SCTP on port 80 to 8080, and TCP on 81 to 8081.

mod backends;
mod cluster_ip;
pub(crate) mod external;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::harness::lab::Lab;
use crate::harness::ns::NetNs;
use crate::harness::object::{self, Condition, endpoint};
use crate::harness::spec::{Family, LabSpec, NodeSpec};
use crate::traffic::named::{self, Answer, Server};

/// `services.cidrs` of these labs.
pub(crate) const CONFIG: &str = "[services]\ncidrs = [\"10.96.0.0/16\", \"fd00:96::/112\"]\n";

/// The port of `web`, and of its backends.
pub(crate) const PORT: u16 = 80;
/// See [`PORT`].
pub(crate) const TARGET: u16 = 8080;

const FILE: &str = "web.yaml";

/// Three pods on node a, two on node b.
pub(crate) fn lab() -> Lab {
    let nodes = vec![NodeSpec::fastpath("a", 3), NodeSpec::fastpath("b", 2)];
    Lab::start(LabSpec { nodes, more_config: CONFIG.to_owned(), ..LabSpec::default() })
}

/// Cluster address of `web`.
pub(crate) fn cluster_ip(family: Family) -> IpAddr {
    let text = if family == Family::V4 { "10.96.0.10" } else { "fd00:96::10" };
    text.parse().unwrap()
}

/// A port of it.
pub(crate) fn web(family: Family) -> SocketAddr {
    (cluster_ip(family), PORT).into()
}

/// The objects: `more` overrides and adds to the service's spec.
pub(crate) fn objects(lab: &Lab, backends: &[(&str, Condition)], more: &Value) -> Vec<Value> {
    let ports = |target: bool| {
        [
            ("http", "TCP", PORT, TARGET),
            ("query", "UDP", PORT, TARGET),
            ("signal", "SCTP", PORT, TARGET),
            ("admin", "TCP", 81, 8081),
        ]
        .map(|(name, protocol, port, to)| {
            let mut value =
                json!({"name": name, "protocol": protocol, "port": if target { to } else { port }});
            if !target {
                // A name of the pods' or a number: the slices have it resolved.
                value["targetPort"] = if name == "http" { json!("web") } else { json!(to) };
            }
            value
        })
    };
    let mut spec = json!({
        "clusterIP": cluster_ip(Family::V4),
        "clusterIPs": Family::BOTH.map(cluster_ip),
        "ipFamilyPolicy": "RequireDualStack",
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
        "ports": ports(false),
    });
    for (key, value) in more.as_object().expect("fields of a spec") {
        spec[key] = value.clone();
    }
    let mut all = vec![object::service("default", "web", &spec)];
    for family in Family::BOTH {
        let endpoints: Vec<_> =
            backends.iter().map(|(pod, c)| endpoint(lab, lab.pod(pod), family, *c)).collect();
        all.push(object::slice(("default", "web"), family, &json!(ports(true)), &endpoints));
    }
    all
}

/// Puts `web` in force with these backends.
pub(crate) fn serve(lab: &Lab, backends: &[(&str, Condition)], more: &Value) {
    lab.apply(FILE, &objects(lab, backends, more));
}

/// The same, all of them ready.
pub(crate) fn serve_ready(lab: &Lab, backends: &[&str], more: &Value) {
    let ready: Vec<_> = backends.iter().map(|b| (*b, Condition::Ready)).collect();
    serve(lab, &ready, more);
}

/// Servers on both ports of each pod; those of port 8081 are called `<pod>-admin`.
pub(crate) fn servers(lab: &Lab, pods: &[&str]) -> Vec<Server> {
    pods.iter()
        .flat_map(|pod| {
            let ns = &lab.pod(pod).ns;
            [
                Server::start(ns, pod, TARGET).unwrap(),
                Server::start(ns, &format!("{pod}-admin"), 8081).unwrap(),
            ]
        })
        .collect()
}

/// How often each server answered `count` new TCP connections and as many new UDP sockets.
/// Every one of them is answered and `check`ed.
pub(crate) fn shares(
    client: &NetNs,
    to: SocketAddr,
    count: usize,
    check: impl Fn(&Answer),
) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for i in 0..count {
        for (protocol, answer) in [("TCP", named::ask_tcp(client, to)), ("UDP", named::ask_udp(client, to))] {
            let answer =
                answer.unwrap_or_else(|e| panic!("{protocol}, {} to {to}, number {i}: {e}", client.name()));
            check(&answer);
            *shares.entry(answer.name).or_default() += 1;
        }
    }
    shares
}
