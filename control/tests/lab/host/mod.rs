//! The node's own processes: what they reach, who reaches them, and what the host port leaves in the kernel.

mod contained;
mod life;
mod node_ports;
mod ports;
mod processes;

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::harness::lab::Lab;
use crate::harness::manifest::node_name;
use crate::harness::ns::NetNs;
use crate::harness::object;
use crate::harness::spec::{Encap, Family, LabSpec, NodeSpec, OUTSIDE, underlay};
use crate::service::CONFIG;
use crate::traffic::named::{self, Answer, Server};
use crate::traffic::{icmp, tcp};

/// Where the servers of these tests listen.
const PORT: u16 = 8080;

/// Two pods on each of two nodes, and service addresses.
fn spec(encap: Encap) -> LabSpec {
    LabSpec { encap, more_config: CONFIG.to_owned(), ..LabSpec::default() }
}

/// The same as a running lab.
fn lab() -> Lab {
    Lab::start(spec(Encap::Vxlan))
}

fn outside(family: Family) -> IpAddr {
    underlay(0, OUTSIDE, family)
}

/// The gateway, as the node's own processes see whom they must answer by the host port.
fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => crate::harness::spec::GATEWAY_V4.into(),
        Family::V6 => crate::harness::spec::GATEWAY_V6.into(),
    }
}

/// TCP and UDP are both answered; the two answers.
fn ask(from: &NetNs, to: SocketAddr) -> [Answer; 2] {
    let what = |protocol: &str, e| format!("{protocol}, {} to {to}: {e}", from.name());
    let tcp = named::ask_tcp(from, to).unwrap_or_else(|e| panic!("{}", what("TCP", e)));
    let udp = named::ask_udp(from, to).unwrap_or_else(|e| panic!("{}", what("UDP", e)));
    [tcp, udp]
}

/// The server `name` answers by TCP and UDP and sees the client as `client`.
fn must_answer(from: &NetNs, to: SocketAddr, name: &str, client: IpAddr) {
    for answer in ask(from, to) {
        assert_eq!((answer.name.as_str(), answer.client.ip()), (name, client), "{} to {to}", from.name());
    }
}

/// Everything that a client may want of a server's address: questions, bulk both ways, echo.
fn must_reach(from: &NetNs, to: &NetNs, address: IpAddr) {
    assert!(icmp::reachable(from, address), "{} pings {address}", from.name());
    tcp::transfer(from, to, address, 2_000_000, 2_000_000)
        .unwrap_or_else(|e| panic!("{} to {address}: {e}", from.name()));
}

/// A service `own` on port 80 of 10.96.0.20 and fd00:96::20 with these endpoints; node port 30090.
fn serve(lab: &Lab, endpoints: impl Fn(Family) -> Vec<Value>) {
    let port = |p: Value| json!([{"name": "t", "protocol": "TCP", "port": p}, {"name": "u", "protocol": "UDP", "port": p}]);
    let mut ports = port(json!(80));
    for p in ports.as_array_mut().unwrap() {
        p["targetPort"] = json!(PORT);
        p["nodePort"] = json!(NODE_PORT);
    }
    let spec = json!({
        "type": "NodePort",
        "clusterIP": cluster_ip(Family::V4),
        "clusterIPs": Family::BOTH.map(cluster_ip),
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
        "ports": ports,
    });
    let mut all = vec![object::service("default", "own", &spec)];
    for family in Family::BOTH {
        all.push(object::slice(("default", "own"), family, &port(json!(PORT)), &endpoints(family)));
    }
    lab.apply("own.yaml", &all);
}

/// Node port of the service of [`serve`].
const NODE_PORT: u16 = 30_090;

fn cluster_ip(family: Family) -> IpAddr {
    let text = if family == Family::V4 { "10.96.0.20" } else { "fd00:96::20" };
    text.parse().unwrap()
}

/// An endpoint that is a process of a node, as those of a pod on the host network are.
fn process(lab: &Lab, node: &str, family: Family) -> Value {
    json!({
        "addresses": [lab.node(node).ip(family).to_string()],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node_name(node),
    })
}

/// An endpoint that is a pod.
fn pod(lab: &Lab, name: &str, family: Family) -> Value {
    object::endpoint(lab, lab.pod(name), family, object::Condition::Ready)
}

/// Calls `what` with the answering server's name for each backend of [`three_nodes`] in turn, the service of [`serve`] having it
/// alone: a pod of each of two nodes, a process of each.
fn each_backend(lab: &Lab, what: impl Fn(&Backend<'_>)) {
    let _servers = [
        Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap(),
        Server::start(&lab.pod("b1").ns, "b1", PORT).unwrap(),
        Server::start(&lab.node("a").ns, "node-a", PORT).unwrap(),
        Server::start(&lab.node("b").ns, "node-b", PORT).unwrap(),
    ];
    for (at, is_pod) in [("a1", true), ("b1", true), ("a", false), ("b", false)] {
        serve(lab, |f| vec![if is_pod { pod(lab, at, f) } else { process(lab, at, f) }]);
        let name = if is_pod { at.to_owned() } else { format!("node-{at}") };
        what(&Backend { at, is_pod, name });
    }
}

/// The one backend of the service.
struct Backend<'a> {
    /// Its pod or node.
    at: &'a str,
    is_pod: bool,
    /// What its server answers.
    name: String,
}

/// A node with two pods, one with one, and a third without.
fn three_nodes() -> LabSpec {
    let nodes = vec![NodeSpec::fastpath("a", 2), NodeSpec::fastpath("b", 1), NodeSpec::fastpath("c", 0)];
    LabSpec { nodes, ..spec(Encap::Vxlan) }
}
