//! Processes of nodes and pods among each other, by their own addresses and by cluster addresses.

use std::io;
use std::net::SocketAddr;

use serde_json::json;

use super::{
    Backend, PORT, ask, cluster_ip, each_backend, gateway, lab, must_answer, must_reach, outside, serve,
    spec, three_nodes,
};
use crate::harness::lab::Lab;
use crate::harness::object;
use crate::harness::spec::{Encap, Family, LabSpec, NodeSpec};
use crate::service::PORT as SERVICE_PORT;
use crate::traffic::named::{self, Asker, Server};
use crate::traffic::{PATIENCE, SILENCE, icmp, tcp, udp};

/// The node reaches pods of its own and of other nodes, whatever lies between the nodes, and they see its address.
#[test]
fn node_to_pods() {
    let distant = vec![NodeSpec::fastpath("a", 2), NodeSpec::fastpath("b", 2).in_other_subnet()];
    let near = LabSpec::default().nodes;
    for (encap, outer, nodes) in [
        (Encap::Vxlan, Family::V4, near.clone()),
        (Encap::Vxlan, Family::V6, near.clone()),
        (Encap::None, Family::V4, near.clone()),
        (Encap::CrossSubnet, Family::V4, near),
        (Encap::CrossSubnet, Family::V4, distant),
    ] {
        let lab = Lab::start(LabSpec { nodes, outer, ..spec(encap) });
        for pod in ["a1", "b1"] {
            let to = lab.pod(pod);
            let _server = Server::start(&to.ns, pod, PORT).unwrap();
            let from = lab.node("a");
            for family in Family::BOTH {
                eprintln!("{encap:?}, outer {outer:?}: node a to {pod} by {family:?}");
                must_reach(&from.ns, &to.ns, to.ip(family));
                must_answer(&from.ns, (to.ip(family), PORT).into(), pod, from.ip(family));
                udp::exchange(&from.ns, &to.ns, to.ip(family), &[8, 1400, 5000]).unwrap();
            }
        }
    }
}

/// Pods reach processes of their own node and of another, which see the pod itself.
#[test]
fn pods_to_nodes() {
    for encap in [Encap::Vxlan, Encap::None] {
        let lab = Lab::start(spec(encap));
        for node in ["a", "b"] {
            let to = lab.node(node);
            let _server = Server::start(&to.ns, node, PORT).unwrap();
            let from = lab.pod("a1");
            for family in Family::BOTH {
                eprintln!("{encap:?}: a1 to node {node} by {family:?}");
                must_reach(&from.ns, &to.ns, to.ip(family));
                must_answer(&from.ns, (to.ip(family), PORT).into(), node, from.ip(family));
                udp::exchange(&from.ns, &to.ns, to.ip(family), &[8, 1400, 5000]).unwrap();
                // A closed port is refused by the node's own kernel.
                let closed: SocketAddr = (to.ip(family), 9).into();
                let error = named::ask_tcp(&from.ns, closed).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{node} {family:?}");
                let error = Asker::open(&from.ns, closed).unwrap().ask(PATIENCE).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{node} {family:?}");
            }
        }
    }
}

/// Probes of a pod's own node pass a policy that denies everything; nobody else's do, not even another node's.
#[test]
fn probes_pass_policies() {
    let lab = lab();
    let _server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    lab.apply("deny.yaml", &[object::policy("default", "deny", &spec)]);
    for family in Family::BOTH {
        let to: SocketAddr = (lab.pod("a1").ip(family), PORT).into();
        let own = lab.node("a");
        must_answer(&own.ns, to, "a1", own.ip(family));
        assert!(icmp::reachable(&own.ns, to.ip()));
        for ns in [&lab.pod("a2").ns, &lab.pod("b1").ns, &lab.node("b").ns] {
            let answer = Asker::open(ns, to).unwrap().ask(SILENCE);
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::WouldBlock, "{} {family:?}", ns.name());
        }
    }
    assert!(lab.node("a").cli().drop_count("policy_denied_ingress") >= 6);
}

/// Policies of pods hold towards node addresses: by address blocks, and for nobody's pods.
#[test]
fn egress_policies_hold_towards_nodes() {
    let lab = lab();
    let _servers = ["a", "b"].map(|n| Server::start(&lab.node(n).ns, n, PORT).unwrap());
    let nets = Family::BOTH.map(|f| {
        let len = if f == Family::V4 { 32 } else { 128 };
        json!({"ipBlock": {"cidr": format!("{}/{len}", lab.node("b").ip(f))}})
    });
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": nets}]});
    lab.apply("only-b.yaml", &[object::policy("default", "only-b", &spec)]);
    for family in Family::BOTH {
        let from = lab.pod("a1");
        must_answer(&from.ns, (lab.node("b").ip(family), PORT).into(), "b", from.ip(family));
        let denied = Asker::open(&from.ns, (lab.node("a").ip(family), PORT).into()).unwrap();
        assert_eq!(denied.ask(SILENCE).unwrap_err().kind(), io::ErrorKind::WouldBlock, "{family:?}");
    }
    assert!(lab.node("a").cli().drop_count("policy_denied_egress") >= 2);
}

/// A cluster address from nodes and pods, its backend a pod of this node, of another, or a process of either.
#[test]
fn cluster_addresses() {
    let lab = Lab::start(three_nodes());
    each_backend(&lab, |&Backend { at: backend, is_pod, ref name }| {
        for family in Family::BOTH {
            let to: SocketAddr = (cluster_ip(family), SERVICE_PORT).into();
            for node in ["a", "b", "c"] {
                eprintln!("node {node} to the service of {name} by {family:?}");
                let node = lab.node(node);
                for answer in ask(&node.ns, to) {
                    // A process of the same node is asked by the gateway: its answer must not pass us by.
                    let own = !is_pod && node.spec.name == backend;
                    let client = if own { gateway(family) } else { node.ip(family) };
                    assert_eq!((answer.name.as_str(), answer.client.ip()), (name.as_str(), client));
                }
            }
            for client in ["a2", "b1"].into_iter().filter(|c| *c != backend) {
                eprintln!("{client} to the service of {name} by {family:?}");
                must_answer(&lab.pod(client).ns, to, name, lab.pod(client).ip(family));
            }
        }
    });
    // Without a backend the node is refused, as a pod is.
    serve(&lab, |_| Vec::new());
    for family in Family::BOTH {
        let to: SocketAddr = (cluster_ip(family), SERVICE_PORT).into();
        let error = named::ask_tcp(&lab.node("a").ns, to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{family:?}");
        let error = Asker::open(&lab.node("a").ns, to).unwrap().ask(PATIENCE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{family:?}");
    }
}

/// What the host sends has whole checksums and fits, though its stack would leave both to the device.
#[test]
fn bulk_from_the_host_needs_no_mending() {
    let lab = lab();
    for pod in ["a1", "b1"] {
        for family in Family::BOTH {
            let to = lab.pod(pod);
            tcp::transfer(&lab.node("a").ns, &to.ns, to.ip(family), 20_000_000, 20_000_000).unwrap();
        }
    }
    let cli = lab.node("a").cli();
    assert_eq!(cli.drop_count("mtu_exceeded"), 0);
    let offloads = lab.node("a").ns.exec("ethtool", &["-k", "fp-host"]);
    for off in ["tx-checksumming: off", "tcp-segmentation-offload: off"] {
        assert!(offloads.contains(off), "{off}\n{offloads}");
    }
}

/// A ping of the node's own whose identifier lies in the range of translated sources, beside a pod's with the same.
#[test]
fn ping_with_an_identifier_of_the_range() {
    let lab = lab();
    let node = lab.node("a");
    for family in Family::BOTH {
        let to = outside(family);
        assert!(icmp::reachable(&node.ns, to) && icmp::reachable(&lab.pod("a1").ns, to));
        let pods = icmp::ping_as(&lab.pod("a1").ns, lab.pod("a1").ip(family), to, 47_000, 56).unwrap();
        let own = icmp::ping_as(&node.ns, node.ip(family), to, 47_000, 56).unwrap();
        let large = icmp::ping_as(&node.ns, node.ip(family), to, 47_001, 1400).unwrap();
        assert_eq!((pods, own, large), (true, true, true), "{family:?}");
    }
    // And of the node by others: from outside, from pods of either node.
    for family in Family::BOTH {
        for (ns, own) in [
            (&lab.outside, outside(family)),
            (&lab.pod("a1").ns, lab.pod("a1").ip(family)),
            (&lab.pod("b1").ns, lab.pod("b1").ip(family)),
        ] {
            assert!(icmp::ping_as(ns, own, node.ip(family), 48_000, 56).unwrap(), "{} {family:?}", ns.name());
        }
    }
    // The node's UDP to a closed port outside is told so, from a port of the range too.
    for family in Family::BOTH {
        let socket = node.ns.run(|| std::net::UdpSocket::bind((node.ip(family), 47_002))).unwrap();
        socket.connect((outside(family), 9)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send(b"closed?").unwrap();
        let error = socket.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{family:?}");
    }
}

/// The node sees its pods' gateway as its first hop, and hears of what is too big for the way.
#[test]
fn errors_reach_the_host() {
    let lab = lab();
    let node = lab.node("a");
    for family in Family::BOTH {
        let to = lab.pod("b1").ip(family);
        let hops = icmp::traceroute(&node.ns, to, 6).unwrap();
        let [Some(first), Some(second), Some(last)] = hops[..] else { panic!("{family:?}: {hops:?}") };
        assert_eq!(first.address, gateway(family));
        assert_eq!(second.address, lab.node("b").ip(family));
        assert_eq!(last.address, to);
    }
    assert!(node.cli().drop_count("ttl_exceeded") >= 2);
}
