//! Node ports and external addresses, from the node's own processes.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use super::{
    Backend, NODE_PORT, PORT, ask, each_backend, gateway, must_answer, outside, pod, serve, three_nodes,
};
use crate::harness::lab::Lab;
use crate::harness::object;
use crate::harness::spec::Family;
use crate::traffic::named::{self, Server};
use crate::traffic::tcp;

/// A node's own process asks the node port of its own address and of another node's: the backend is a pod here, a pod
/// there, or a process of either node.
#[test]
fn node_ports_of_every_node() {
    let lab = Lab::start(three_nodes());
    each_backend(&lab, |&Backend { at: backend, is_pod, ref name }| {
        for family in Family::BOTH {
            for from in ["a", "b", "c"] {
                for at in ["a", "b", "c"] {
                    eprintln!("node {from} to the node port of node {at} by {family:?}: {name}");
                    for answer in ask(&lab.node(from).ns, (lab.node(at).ip(family), NODE_PORT).into()) {
                        assert_eq!(answer.name, *name);
                        if from == at && is_pod {
                            assert_eq!(answer.client.ip(), lab.node(from).ip(family));
                        }
                    }
                }
            }
            for from in ["a2", "b1"].into_iter().filter(|f| *f != backend) {
                for at in ["a", "b", "c"] {
                    must_answer(
                        &lab.pod(from).ns,
                        (lab.node(at).ip(family), NODE_PORT).into(),
                        name,
                        lab.pod(from).ip(family),
                    );
                }
            }
            for at in ["a", "b", "c"] {
                for answer in ask(&lab.outside, (lab.node(at).ip(family), NODE_PORT).into()) {
                    assert_eq!(answer.name, *name, "from outside to node {at} by {family:?}");
                    if !is_pod && at == backend {
                        assert_eq!(answer.client.ip(), gateway(family));
                    }
                }
            }
        }
    });
}

/// Other ports of the node's own addresses stay the kernel's, and so do they all once there is no node port.
#[test]
fn other_ports_are_the_kernels() {
    let lab = Lab::start(three_nodes());
    let node = lab.node("a");
    let _server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
    let rules = || ["-4", "-6"].map(|f| node.ns.exec("ip", &[f, "rule"]));
    // What the kernel gives to no connection of the node's own: the SNAT range, and the node ports there are.
    let reserved = || node.ns.exec("sysctl", &["-n", "net.ipv4.ip_local_reserved_ports"]).trim().to_owned();
    let before = rules();
    assert_eq!(reserved(), "40000-56383");
    assert!(before.iter().all(|r| r.starts_with("0:\tfrom all lookup local")), "{before:?}");
    serve(&lab, |f| vec![pod(&lab, "a1", f)]);
    let during = rules();
    assert_eq!(reserved(), "30090,40000-56383");
    for text in &during {
        assert!(text.contains("dport 30090"), "{text}");
        assert!(text.contains("\n2:\tfrom all lookup local") && !text.contains("\n0:"), "{text}");
        assert!(!text.starts_with("0:"), "{text}");
    }
    for family in Family::BOTH {
        must_answer(&node.ns, (node.ip(family), NODE_PORT).into(), "a1", node.ip(family));
        tcp::transfer(&node.ns, &node.ns, node.ip(family), 300_000, 300_000).unwrap();
        tcp::transfer(&lab.outside, &node.ns, node.ip(family), 300_000, 300_000).unwrap();
        // The same number on another machine is no service of ours.
        let _theirs = Server::start(&lab.outside, "outside", NODE_PORT).unwrap();
        must_answer(&node.ns, (outside(family), NODE_PORT).into(), "outside", node.ip(family));
    }
    lab.withdraw("own.yaml");
    assert_eq!(rules(), before);
    assert_eq!(reserved(), "40000-56383");
}

/// External addresses: from the node itself the service answers at once, by its ports alone.
#[test]
fn external_addresses() {
    let lab = Lab::start(three_nodes());
    let _server = Server::start(&lab.pod("b1").ns, "b1", PORT).unwrap();
    let external: [IpAddr; 2] = ["203.0.113.30", "2001:db8:30::1"].map(|a| a.parse().unwrap());
    let port = |p: u16| json!([{"name": "t", "protocol": "TCP", "port": p}]);
    let mut ports = port(80);
    ports[0]["targetPort"] = json!(PORT);
    let spec = json!({
        "clusterIP": "10.96.0.30",
        "clusterIPs": ["10.96.0.30", "fd00:96::30"],
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "RequireDualStack",
        "externalIPs": external,
        "ports": ports,
    });
    let mut all = vec![object::service("default", "ext", &spec)];
    for family in Family::BOTH {
        all.push(object::slice(("default", "ext"), family, &port(PORT), &[pod(&lab, "b1", family)]));
    }
    // The address is a machine's too: its other ports are reached there.
    lab.outside
        .ip([format!("addr add {}/32 dev lo", external[0]), format!("addr add {}/128 dev lo", external[1])]);
    let _theirs = Server::start(&lab.outside, "outside", 8000).unwrap();
    lab.apply("ext.yaml", &all);
    let node = lab.node("a");
    for (address, family) in external.into_iter().zip(Family::BOTH) {
        node.ns.ip([format!("route add {address} via {}", outside(family))]);
        let answer = named::ask_tcp(&node.ns, SocketAddr::new(address, 80)).unwrap();
        assert_eq!((answer.name.as_str(), answer.client.ip()), ("b1", node.ip(family)));
        let answer = named::ask_tcp(&node.ns, SocketAddr::new(address, 8000)).unwrap();
        assert_eq!((answer.name.as_str(), answer.client.ip()), ("outside", node.ip(family)));
    }
}
