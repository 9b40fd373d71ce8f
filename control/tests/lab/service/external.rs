//! From outside: node ports, external and load balancer addresses, through the uplink's pinhole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{TARGET, lab, objects, serve, serve_ready, servers, shares};
use crate::harness::lab::Lab;
use crate::harness::object::Condition::{self, Ready};
use crate::harness::spec::{Family, OUTSIDE, underlay};
use crate::traffic::named::{self, Asker, Conversation, SctpServer};
use crate::traffic::{PATIENCE, SILENCE, icmp, tcp, udp};

/// `nodePort` of TCP, UDP and SCTP port 80.
const NODE_PORT: u16 = 30_080;

fn outside(family: Family) -> IpAddr {
    underlay(0, OUTSIDE, family)
}

/// The node port of a node.
pub(crate) fn node_port(lab: &Lab, node: &str, family: Family) -> SocketAddr {
    (lab.node(node).ip(family), NODE_PORT).into()
}

/// `web` as NodePort, with more of the spec.
pub(crate) fn spec(more: &Value) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 80, "targetPort": TARGET, "nodePort": NODE_PORT});
    let mut spec = json!({
        "type": "NodePort",
        "ports": [port("http", "TCP"), port("query", "UDP"), port("signal", "SCTP")],
    });
    for (key, value) in more.as_object().expect("fields of a spec") {
        spec[key] = value.clone();
    }
    spec
}

/// Address of the load balancer.
fn balancer(family: Family) -> IpAddr {
    let text = if family == Family::V4 { "203.0.113.20" } else { "2001:db8::20" };
    text.parse().unwrap()
}

/// `web` as LoadBalancer with these backends, all ready.
fn balance(lab: &Lab, backends: &[&str], more: &Value) {
    let ready: Vec<(&str, Condition)> = backends.iter().map(|b| (*b, Ready)).collect();
    let mut spec = spec(more);
    spec["type"] = json!("LoadBalancer");
    let mut objects = objects(lab, &ready, &spec);
    let ingress = Family::BOTH.map(|f| json!({"ip": balancer(f).to_string()}));
    objects[0]["status"] = json!({"loadBalancer": {"ingress": ingress}});
    lab.apply("web.yaml", &objects);
}

/// The outside reaches addresses that are no node's through node `via`.
fn route_through(lab: &Lab, via: &str) {
    for (net, family) in [("203.0.113.0/24", Family::V4), ("2001:db8::/64", Family::V6)] {
        lab.outside.ip([format!("route replace {net} via {}", lab.node(via).ip(family))]);
    }
}

/// Nodes and outside know each other's MAC addresses: what is sent once is not lost to a neighbour unresolved.
pub(crate) fn acquaint(lab: &Lab) {
    for pod in ["a1", "b1"] {
        for family in Family::BOTH {
            assert!(icmp::reachable(&lab.pod(pod).ns, outside(family)), "{pod} to the outside, {family:?}");
        }
    }
}

/// Nothing answers, by TCP or UDP.
fn must_be_silent(lab: &Lab, to: SocketAddr, what: &str) {
    let error = lab.outside.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(900)));
    assert_eq!(error.expect_err(what).kind(), io::ErrorKind::TimedOut, "{what}: {to}");
    let error = Asker::open(&lab.outside, to).unwrap().ask(SILENCE).expect_err(what);
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{what}: {to}");
}

/// Any node, backends on it and on the other: both answer, from the address that was asked, and see the node.
#[test]
fn node_ports() {
    let lab = lab();
    let backends = ["a2", "b2"];
    let _servers = servers(&lab, &backends);
    serve_ready(&lab, &backends, &spec(&json!({})));
    for via in ["a", "b"] {
        for family in Family::BOTH {
            let to = node_port(&lab, via, family);
            let node = lab.node(via).ip(family);
            let shares = shares(&lab.outside, to, 20, |a| assert_eq!(a.client.ip(), node, "{a:?}"));
            assert!(shares.len() == 2 && shares.values().all(|n| *n >= 5), "{to}: {shares:?}");
            let mut long = Conversation::open(&lab.outside, to).unwrap();
            let first = long.ask().unwrap();
            assert!((0..50).all(|_| long.ask().unwrap() == first));
        }
    }
    // The node's other ports are still the node's.
    for family in Family::BOTH {
        let node = lab.node("a");
        tcp::transfer(&lab.outside, &node.ns, node.ip(family), 300_000, 300_000).unwrap();
        udp::exchange(&lab.outside, &node.ns, node.ip(family), &[8, 1400]).unwrap();
        assert!(icmp::reachable(&lab.outside, node.ip(family)));
    }
}

/// The same by SCTP.
#[test]
fn node_ports_by_sctp() {
    let lab = lab();
    let _servers: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|f| [("a2", 2), ("b2", 12)].map(|(pod, n)| (lab.pod(pod), n, f)))
        .map(|(pod, n, f)| SctpServer::start(&pod.ns, pod.ip(f), TARGET, n).unwrap())
        .collect();
    serve_ready(&lab, &["a2", "b2"], &spec(&json!({})));
    acquaint(&lab);
    for via in ["a", "b"] {
        for family in Family::BOTH {
            let to = node_port(&lab, via, family);
            let numbers: BTreeSet<_> = (0..20)
                .map(|i| {
                    let own = outside(family);
                    let answer = named::ask_sctp(&lab.outside, own, 6000 + i, to, PATIENCE).unwrap();
                    answer.unwrap_or_else(|| panic!("{to} number {i} is not answered"))
                })
                .collect();
            assert_eq!(numbers, [2, 12].into(), "{to}");
        }
    }
}

/// `externalTrafficPolicy: Local`: only backends of the node that was asked, which see the client itself.
#[test]
fn external_traffic_policy_local() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "a3", "b2"]);
    let local = spec(&json!({"externalTrafficPolicy": "Local"}));
    serve_ready(&lab, &["a2", "a3", "b2"], &local);
    for family in Family::BOTH {
        for (via, here) in [("a", &["a2", "a3"][..]), ("b", &["b2"])] {
            let to = node_port(&lab, via, family);
            let shares =
                shares(&lab.outside, to, 15, |a| assert_eq!(a.client.ip(), outside(family), "{a:?}"));
            assert!(shares.keys().map(String::as_str).eq(here.iter().copied()), "{to}: {shares:?}");
        }
    }
    // Without a backend of its own a node drops: it neither sends on nor refuses.
    serve_ready(&lab, &["a2"], &local);
    for family in Family::BOTH {
        let before = lab.node("b").cli().drop_count("no_local_backend");
        must_be_silent(&lab, node_port(&lab, "b", family), "no backend on b");
        assert!(lab.node("b").cli().drop_count("no_local_backend") >= before + 2);
        assert_eq!(named::ask_tcp(&lab.outside, node_port(&lab, "a", family)).unwrap().name, "a2");
    }
}

/// No backend anywhere: refused. A backend that is removed: reset.
#[test]
fn outside_clients_are_told() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    for family in Family::BOTH {
        for (backend, other) in [("a2", "b2"), ("b2", "a2")] {
            serve_ready(&lab, &[backend], &spec(&json!({})));
            let to = node_port(&lab, "a", family);
            let mut long = Conversation::open(&lab.outside, to).unwrap();
            let socket = Asker::open(&lab.outside, to).unwrap();
            assert_eq!(long.ask().unwrap().name, backend);
            assert_eq!(socket.ask(PATIENCE).unwrap().name, backend);
            serve_ready(&lab, &[other], &spec(&json!({})));
            assert_eq!(long.ask().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(socket.ask(PATIENCE).unwrap().name, other);
            serve(&lab, &[], &spec(&json!({})));
            let error = named::ask_tcp(&lab.outside, to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
            let error = named::ask_udp(&lab.outside, to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
        }
    }
}

/// `externalIPs`: addresses that a router sends to some node.
#[test]
fn external_ips() {
    let lab = lab();
    let backends = ["a2", "b2"];
    let _servers = servers(&lab, &backends);
    let addresses = ["203.0.113.10", "2001:db8::10"];
    let cluster_only = json!({"externalIPs": addresses});
    serve_ready(&lab, &backends, &cluster_only);
    for via in ["a", "b"] {
        route_through(&lab, via);
        for (address, family) in addresses.iter().zip(Family::BOTH) {
            let node = lab.node(via).ip(family);
            let to = SocketAddr::new(address.parse().unwrap(), 80);
            let shares = shares(&lab.outside, to, 20, |a| assert_eq!(a.client.ip(), node, "{a:?}"));
            assert_eq!(shares.len(), 2, "{to} through {via}: {shares:?}");
            // From inside nothing leaves the cluster, and the client keeps its address.
            let own = lab.pod("a1").ip(family);
            let answer = named::ask_tcp(&lab.pod("a1").ns, to).unwrap();
            assert_eq!(answer.client.ip(), own);
        }
    }
}

/// Load balancer addresses, Local and Cluster, from outside and from pods.
#[test]
fn load_balancer_addresses() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    for local in [false, true] {
        let policy = if local { "Local" } else { "Cluster" };
        balance(&lab, &["a2", "b2"], &json!({"externalTrafficPolicy": policy}));
        for (via, here) in [("a", "a2"), ("b", "b2")] {
            route_through(&lab, via);
            for family in Family::BOTH {
                let to = SocketAddr::new(balancer(family), 80);
                let seen = if local { outside(family) } else { lab.node(via).ip(family) };
                let shares = shares(&lab.outside, to, 20, |a| assert_eq!(a.client.ip(), seen, "{a:?}"));
                let want: &[&str] = if local { &[here] } else { &["a2", "b2"] };
                assert!(
                    shares.keys().map(String::as_str).eq(want.iter().copied()),
                    "{policy} {to}: {shares:?}"
                );
                // Its node port answers too.
                assert!(named::ask_udp(&lab.outside, node_port(&lab, via, family)).is_ok());
            }
        }
        // A pod's connection stays inside, and for it every backend is as good as a local one.
        balance(&lab, &["b2"], &json!({"externalTrafficPolicy": policy}));
        for family in Family::BOTH {
            let to = SocketAddr::new(balancer(family), 80);
            let own = lab.pod("a1").ip(family);
            let shares = shares(&lab.pod("a1").ns, to, 3, |a| assert_eq!(a.client.ip(), own, "{a:?}"));
            assert_eq!(shares, [("b2".to_owned(), 6)].into(), "{policy}");
        }
    }
}

/// `loadBalancerSourceRanges` is about the balancer's addresses only.
#[test]
fn load_balancer_source_ranges() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    route_through(&lab, "a");
    let ranges = |ranges: &[&str]| json!({"loadBalancerSourceRanges": ranges});
    let cases: [(&[&str], [bool; 2]); 4] = [
        (&["192.168.77.0/24", "fd77::/64"], [true, true]),
        (&["192.168.77.192/26"], [true, false]),
        (&["fd77::200/128", "192.0.2.0/24"], [false, true]),
        (&["192.168.77.0/25", "fd78::/64"], [false, false]),
    ];
    for (list, admitted) in cases {
        balance(&lab, &["a2", "b2"], &ranges(list));
        for (family, admitted) in Family::BOTH.into_iter().zip(admitted) {
            let to = SocketAddr::new(balancer(family), 80);
            if admitted {
                assert_eq!(shares(&lab.outside, to, 8, |_| ()).values().sum::<usize>(), 16, "{list:?}");
            } else {
                let before = lab.node("a").cli().drop_count("source_range_denied");
                must_be_silent(&lab, to, &format!("{list:?}"));
                assert!(lab.node("a").cli().drop_count("source_range_denied") >= before + 2, "{list:?}");
            }
            assert!(named::ask_tcp(&lab.outside, node_port(&lab, "a", family)).is_ok(), "{list:?}");
        }
    }
}

/// Pods may use node ports too: of their own node and of the other.
#[test]
fn pods_use_node_ports() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    serve_ready(&lab, &["a2", "b2"], &spec(&json!({})));
    for client in ["a1", "b1"] {
        for via in ["a", "b"] {
            for family in Family::BOTH {
                let shares = shares(&lab.pod(client).ns, node_port(&lab, via, family), 15, |_| ());
                assert_eq!(shares.len(), 2, "{client} to {via} {family:?}: {shares:?}");
            }
        }
    }
}

/// Hundreds of clients at the same time: each hears its own server only, and no two look alike to one.
#[test]
fn many_outside_clients() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    serve_ready(&lab, &["a2", "b2"], &spec(&json!({})));
    for family in Family::BOTH {
        let to = node_port(&lab, "a", family);
        let mut open: Vec<_> = (0..150)
            .map(|_| (Conversation::open(&lab.outside, to).unwrap(), Asker::open(&lab.outside, to).unwrap()))
            .collect();
        let mut seen: BTreeMap<(String, &str), BTreeSet<SocketAddr>> = BTreeMap::new();
        let mut first = Vec::new();
        for (conversation, socket) in &mut open {
            let (tcp, udp) = (conversation.ask().unwrap(), socket.ask(PATIENCE).unwrap());
            for (protocol, answer) in [("tcp", &tcp), ("udp", &udp)] {
                assert!(
                    seen.entry((answer.name.clone(), protocol)).or_default().insert(answer.client),
                    "{answer:?}"
                );
                // Out of the range that is kept from the node's own sockets.
                assert!((40_000..=56_383).contains(&answer.client.port()), "{answer:?}");
            }
            first.push((tcp, udp));
        }
        for ((conversation, socket), (tcp, udp)) in open.iter_mut().zip(&first) {
            assert_eq!((&conversation.ask().unwrap(), &socket.ask(PATIENCE).unwrap()), (tcp, udp));
        }
        assert!(seen.len() == 4, "{:?}", seen.keys());
    }
}
