//! Mistakes that dataplanes have made, each as a test that would show it.
//!
//! | Mistake | Test |
//! |---|---|
//! | endpoints that are not ready are used; `externalTrafficPolicy: Local` goes to other nodes | here |
//! | an established flow keeps its first verdict | `policy` |
//! | the ICMP error of an allowed flow is taken for traffic of its own, and denied | here |
//! | ICMP errors come from the wrong address, or never reach the backend | `nat::errors`, `nat::pmtu` |
//! | a rule with ports lets ICMP pass | `conformance` |
//! | IPv6 fragments are dropped; later fragments escape the policy | `nat::fragments` |
//! | an answer is taken for a new connection once the policy has changed | here |
//! | a node port's client is taken for the node itself, which policies always let in | here |

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use serde_json::json;

use crate::harness::lab::Lab;
use crate::harness::object::Condition::{self, Gone, NotReady, Ready, Terminating};
use crate::harness::object::{self, endpoint};
use crate::harness::spec::{Family, LabSpec};
use crate::service::external::{node_port, spec};
use crate::service::{lab, serve, servers, shares, web};
use crate::traffic::icmp::{self, Icmp, Kind};
use crate::traffic::named::{Asker, Conversation, Server};
use crate::traffic::{PATIENCE, SILENCE};

/// What the API says of these endpoints: those that are ready; when there is none, those that terminate and
/// still serve.
fn usable<'a>(backends: &[(&'a str, Condition)], node: Option<&str>) -> BTreeSet<&'a str> {
    let of = |wanted| {
        let here = backends.iter().filter(move |(pod, _)| node.is_none_or(|n| pod.starts_with(n)));
        here.filter(move |(_, c)| *c == wanted).map(|(pod, _)| *pod).collect::<BTreeSet<_>>()
    };
    if of(Ready).is_empty() { of(Terminating) } else { of(Ready) }
}

/// Endpoints change their state again and again: at any time exactly the usable ones answer, those of the
/// node where the service is Local.
#[test]
fn endpoints_that_flap() {
    let lab = lab();
    let pods = ["a2", "a3", "b2"];
    let _servers = servers(&lab, &pods);
    let local = spec(&json!({"externalTrafficPolicy": "Local"}));
    let states = [Ready, NotReady, Terminating, Gone, Ready];
    let mut random = 12_345_usize;
    for round in 0..12 {
        let backends = pods.map(|pod| {
            random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            (pod, states[(random >> 16) % states.len()])
        });
        serve(&lab, &backends, &local);
        let family = Family::BOTH[round % 2];
        let what = format!("round {round}, {backends:?}, {family:?}");
        for client in ["a1", "b1"] {
            let want = usable(&backends, None);
            if want.is_empty() {
                let error = Asker::open(&lab.pod(client).ns, web(family)).unwrap().ask(PATIENCE);
                assert_eq!(error.expect_err(&what).kind(), io::ErrorKind::ConnectionRefused, "{what}");
                continue;
            }
            let got = shares(&lab.pod(client).ns, web(family), 15, |_| ());
            assert!(got.keys().map(String::as_str).eq(want.iter().copied()), "{what}: {client}: {got:?}");
        }
        for via in ["a", "b"] {
            let want = usable(&backends, Some(via));
            let to = node_port(&lab, via, family);
            if want.is_empty() {
                let answer = Asker::open(&lab.outside, to).unwrap().ask(SILENCE);
                assert!(answer.is_err(), "{what}: through {via}: {answer:?}");
                continue;
            }
            let got = shares(&lab.outside, to, 15, |_| ());
            assert!(
                got.keys().map(String::as_str).eq(want.iter().copied()),
                "{what}: through {via}: {got:?}"
            );
        }
    }
}

/// Only UDP 8080 may pass: so may the errors about it, and no ICMP of its own.
fn only_udp(lab: &Lab) {
    let ports = json!([{"protocol": "UDP", "port": 8080}]);
    let spec = json!({
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"ports": ports}],
        "egress": [{"ports": ports}],
    });
    lab.apply("policy.yaml", &[object::policy("default", "udp-only", &spec)]);
}

/// Errors belong to the flow they are about.
#[test]
fn errors_of_allowed_flows_pass() {
    let lab = Lab::start(LabSpec { pod_mtu: Some(1500), ..LabSpec::default() });
    only_udp(&lab);
    for to in ["a2", "b1"] {
        for family in Family::BOTH {
            let (a, _, ip) = lab.between("a1", to, family);
            let target = SocketAddr::new(ip, 8080);
            assert!(icmp::unreachable(a, ip), "no rule allows echo");
            let error = Asker::open(a, target).unwrap().ask(PATIENCE).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to} {family:?}");
        }
    }
    // The hop that has a smaller MTU may say so: here it is the node itself.
    for family in Family::BOTH {
        let (a, _, ip) = lab.between("a1", "b1", family);
        let watch = Icmp::open(a, ip).unwrap();
        let socket = a.run(|| UdpSocket::bind((crate::traffic::unspecified(ip), 0))).unwrap();
        socket.send_to(&[0; 1440], (ip, 8080)).unwrap();
        let error = watch.error(PATIENCE).unwrap().expect("too big");
        assert_eq!(error.kind(), Kind::TooBig(1450), "{family:?}");
    }
}

/// After a change of policies the first packet may be an answer: it still belongs to the connection.
#[test]
fn answers_stay_answers() {
    let lab = Lab::start(LabSpec::default());
    let _servers = ["a2", "b1"].map(|pod| Server::start(&lab.pod(pod).ns, pod, 9000).unwrap());
    let one_way = |n: usize| {
        // Servers may not open connections, clients may not be reached; the number makes each text another.
        let spec = |direction: &str, names: [&str; 2]| {
            json!({
                "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": names}]},
                "policyTypes": [direction],
            })
        };
        [
            object::policy("default", &format!("servers-{n}"), &spec("Egress", ["a2", "b1"])),
            object::policy("default", &format!("clients-{n}"), &spec("Ingress", ["a1", "b2"])),
        ]
    };
    for family in Family::BOTH {
        let mut open: Vec<_> = ["a1", "b2"]
            .into_iter()
            .flat_map(|client| ["a2", "b1"].map(|server| (client, server)))
            .map(|(client, server)| {
                let to = SocketAddr::new(lab.pod(server).ip(family), 9000);
                let ns = &lab.pod(client).ns;
                (server, Conversation::open(ns, to).unwrap(), Asker::open(ns, to).unwrap())
            })
            .collect();
        // A server that speaks first after each change.
        let (a, b, ip) = lab.between("b2", "a2", family);
        let listener = crate::traffic::tcp::listen(b, ip).unwrap();
        let target = SocketAddr::new(ip, listener.local_addr().unwrap().port());
        let mut client = crate::traffic::tcp::connect(a, target).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        for n in 0..4 {
            lab.apply("policy.yaml", &one_way(n));
            io::Write::write_all(&mut server, b"news").unwrap();
            let mut buffer = [0; 4];
            io::Read::read_exact(&mut client, &mut buffer).unwrap_or_else(|e| panic!("{family:?} {n}: {e}"));
            for (name, conversation, socket) in &mut open {
                assert_eq!(conversation.ask().unwrap().name, *name, "{family:?} {n}");
                assert_eq!(socket.ask(PATIENCE).unwrap().name, *name, "{family:?} {n}");
            }
            // And the other way round nothing opens.
            let ns = &lab.pod("a2").ns;
            let back = SocketAddr::new(lab.pod("b2").ip(family), 9000);
            let error = ns.run(|| std::net::TcpStream::connect_timeout(&back, SILENCE)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{family:?} {n}");
        }
        lab.withdraw("policy.yaml");
    }
}

/// A service's endpoints need not be pods we know, nor have a node: they are used all the same.
#[test]
fn endpoints_without_a_node() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b2"]);
    let mut objects = crate::service::objects(&lab, &[("a2", Ready), ("b2", Ready)], &json!({}));
    for slice in &mut objects[1..] {
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            let fields = endpoint.as_object_mut().unwrap();
            fields.remove("nodeName");
            fields.remove("targetRef");
            // Unknown conditions count as ready.
            fields.remove("conditions");
        }
    }
    // The same endpoint in two slices is one endpoint.
    let mut again = objects[1].clone();
    again["metadata"]["name"] = json!("web-again");
    again["endpoints"] = json!([endpoint(&lab, lab.pod("a2"), Family::V4, Ready)]);
    objects.push(again);
    lab.apply("web.yaml", &objects);
    for client in ["a1", "b1"] {
        for family in Family::BOTH {
            let got = shares(&lab.pod(client).ns, web(family), 20, |_| ());
            assert!(got.len() == 2 && got.values().all(|n| *n >= 8), "{client} {family:?}: {got:?}");
        }
    }
}

/// A node port translates its clients to the node's address: policies let the node in, and none of them.
#[test]
fn node_ports_are_no_way_around_policies() {
    let lab = lab();
    crate::service::external::acquaint(&lab);
    let _servers = servers(&lab, &["a2", "b2"]);
    let ingress = |rules: serde_json::Value| {
        let pods = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a2", "b2"]}]});
        [object::policy(
            "default",
            "web",
            &json!({"podSelector": pods, "policyTypes": ["Ingress"], "ingress": rules}),
        )]
    };
    let asked = |via: &str, family| {
        let answer = Asker::open(&lab.outside, node_port(&lab, via, family)).unwrap().ask(SILENCE);
        if let Err(e) = &answer {
            assert_eq!(e.kind(), io::ErrorKind::WouldBlock, "denied is silent");
        }
        answer.is_ok()
    };
    let outside = json!([{"from": [
        {"ipBlock": {"cidr": "192.168.77.200/32"}},
        {"ipBlock": {"cidr": "fd77::200/128"}},
    ]}]);
    let others = json!([{"from": [
        {"ipBlock": {"cidr": "192.168.77.0/24", "except": ["192.168.77.200/32", "192.168.77.1/32", "192.168.77.2/32"]}},
        {"podSelector": {}},
    ]}]);
    for backend in ["a2", "b2"] {
        for family in Family::BOTH {
            for policy in ["Cluster", "Local"] {
                serve(&lab, &[(backend, Ready)], &spec(&json!({"externalTrafficPolicy": policy})));
                let what = format!("{backend} {family:?} {policy}");
                let here = &backend[..1];
                assert!(asked(here, family), "{what}: nothing is isolated");
                for rules in [json!([]), others.clone()] {
                    lab.apply("policy.yaml", &ingress(rules.clone()));
                    for via in ["a", "b"] {
                        assert!(!asked(via, family), "{what} through {via}: {rules}");
                    }
                }
                // On the backend's node the client is seen as what it is.
                lab.apply("policy.yaml", &ingress(outside.clone()));
                assert!(asked(here, family), "{what}: the client is allowed");
                lab.withdraw("policy.yaml");
            }
        }
    }
}
