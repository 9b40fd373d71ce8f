//! Host ports of pods: from outside, from other nodes, from pods, from the node itself.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::{NODE_PORT, PORT, lab, must_answer, outside, pod, serve};
use crate::harness::lab::Lab;
use crate::harness::spec::Family;
use crate::traffic::named::{self, Asker, Server};
use crate::traffic::{SILENCE, eventually, tcp};

const HOST_PORT: u16 = 8443;

/// Gives a pod these container ports, and waits until that is in force.
fn with_ports(lab: &Lab, name: &str, ports: &Value) {
    let mut text = lab.pod_manifest(lab.pod(name));
    text = text.replace("    image: none\n", &format!("    image: none\n    ports: {ports}\n"));
    lab.change(|| lab.manifests.write(&format!("pod-{name}.yaml"), &text));
}

fn both(host: u16, more: &Value) -> Value {
    let port = |protocol: &str| {
        let mut port = json!({"containerPort": PORT, "hostPort": host, "protocol": protocol});
        for (key, value) in more.as_object().unwrap() {
            port[key] = value.clone();
        }
        port
    };
    json!([port("TCP"), port("UDP")])
}

/// Everybody reaches it by any address of the pod's node, and the pod sees who asks.
#[test]
fn everybody_reaches_a_host_port() {
    let lab = lab();
    let node = lab.node("a");
    let _server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
    node.ns.ip(["addr add 172.31.9.1/32 dev lo".to_owned()]);
    with_ports(&lab, "a1", &both(HOST_PORT, &json!({})));
    for family in Family::BOTH {
        let to: SocketAddr = (node.ip(family), HOST_PORT).into();
        must_answer(&lab.outside, to, "a1", outside(family));
        must_answer(&lab.node("b").ns, to, "a1", lab.node("b").ip(family));
        must_answer(&node.ns, to, "a1", node.ip(family));
        for client in ["a2", "b1"] {
            must_answer(&lab.pod(client).ns, to, "a1", lab.pod(client).ip(family));
        }
        // Itself, as a stranger.
        assert_eq!(named::ask_tcp(&lab.pod("a1").ns, to).unwrap().name, "a1");
        // Another node does not have it, and other ports are the node's.
        let error = named::ask_tcp(&lab.outside, (lab.node("b").ip(family), HOST_PORT).into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        tcp::transfer(&lab.outside, &node.ns, node.ip(family), 100_000, 100_000).unwrap();
    }
    // An address that only the node's kernel knows.
    must_answer(&node.ns, "172.31.9.1:8443".parse().unwrap(), "a1", node.ip(Family::V4));

    let rows = node.cli().json(&["show", "services"]);
    let rows = crate::harness::cli::rows(&rows);
    let row = rows.iter().find(|r| r["kind"] == "hostPort" && r["protocol"] == "TCP").expect("a row");
    assert_eq!((row["service"].as_str(), row["port"].as_u64()), (Some("default/a1"), Some(HOST_PORT.into())));

    // The pod's policies see the client.
    let deny = json!({"podSelector": {"matchLabels": {"app": "a1"}}, "policyTypes": ["Ingress"]});
    lab.apply("deny.yaml", &[crate::harness::object::policy("default", "deny", &deny)]);
    for family in Family::BOTH {
        let to: SocketAddr = (node.ip(family), HOST_PORT).into();
        must_answer(&node.ns, to, "a1", node.ip(family));
        for ns in [&lab.outside, &lab.pod("a2").ns, &lab.pod("b1").ns] {
            let answer = Asker::open(ns, to).unwrap().ask(SILENCE);
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::WouldBlock, "{} {family:?}", ns.name());
        }
    }
    lab.withdraw("deny.yaml");

    // Without it the port is the node's again.
    with_ports(&lab, "a1", &json!([{"containerPort": PORT}]));
    for family in Family::BOTH {
        let to: SocketAddr = (node.ip(family), HOST_PORT).into();
        for ns in [&lab.outside, &node.ns, &lab.pod("a2").ns] {
            let error = named::ask_tcp(ns, to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{} {family:?}", ns.name());
        }
    }
}

/// `hostIP` picks an address; one that is not the node's, and a port that another has, are reported.
#[test]
fn host_ips_and_conflicts() {
    let lab = lab();
    let node = lab.node("a");
    let _servers = ["a1", "a2"].map(|p| Server::start(&lab.pod(p).ns, p, PORT).unwrap());
    let only_v4 = json!({"hostIP": node.ip(Family::V4).to_string()});
    with_ports(&lab, "a1", &both(HOST_PORT, &only_v4));
    with_ports(&lab, "a2", &both(HOST_PORT, &json!({"hostIP": "::"})));
    must_answer(&lab.outside, (node.ip(Family::V4), HOST_PORT).into(), "a1", outside(Family::V4));
    must_answer(&lab.outside, (node.ip(Family::V6), HOST_PORT).into(), "a2", outside(Family::V6));
    assert_eq!(node.cli().status().0["degraded"], json!([]));

    // The other pod wants it too; the first by name has it.
    with_ports(&lab, "a2", &both(HOST_PORT, &json!({})));
    must_answer(&lab.outside, (node.ip(Family::V4), HOST_PORT).into(), "a1", outside(Family::V4));
    must_answer(&lab.outside, (node.ip(Family::V6), HOST_PORT).into(), "a2", outside(Family::V6));
    let said = |what: &str| {
        eventually(what, crate::traffic::PATIENCE, || {
            node.cli().status().complaints().contains(what).then_some(())
        });
    };
    said("pod default/a2: hostPort TCP 8443 of 192.168.77.1 is that of pod default/a1");

    // A service's node port stays the service's.
    serve(&lab, |f| vec![pod(&lab, "b1", f)]);
    let _b1 = Server::start(&lab.pod("b1").ns, "b1", PORT).unwrap();
    with_ports(&lab, "a2", &both(NODE_PORT, &json!({})));
    said("pod default/a2: hostPort TCP 30090 of 192.168.77.1 is that of service default/own");
    assert_eq!(named::ask_tcp(&lab.outside, (node.ip(Family::V4), NODE_PORT).into()).unwrap().name, "b1");

    let nobody: IpAddr = "192.0.2.77".parse().unwrap();
    with_ports(&lab, "a2", &both(HOST_PORT, &json!({"hostIP": nobody.to_string()})));
    said("pod default/a2: hostPort TCP 8443: hostIP 192.0.2.77 is no address of node node-a");
}
