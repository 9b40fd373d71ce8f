//! ClusterIP: the choice among backends, affinity, refusals, hairpin, and what policies see of it.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use super::{PORT, TARGET, cluster_ip, lab, serve, serve_ready, servers, shares, web};
use crate::harness::object::{self, Condition};
use crate::harness::spec::{Family, GATEWAY_V4, GATEWAY_V6};
use crate::traffic::icmp::{Icmp, Kind};
use crate::traffic::named::{self, Answer, Asker, Conversation, SctpServer};
use crate::traffic::{PATIENCE, SILENCE, icmp, tcp};

/// Backends of both nodes get their shares, whoever asks, and see the client's own address.
#[test]
fn connections_are_spread() {
    let lab = lab();
    let backends = ["a2", "a3", "b2"];
    let _servers = servers(&lab, &backends);
    serve_ready(&lab, &backends, &json!({}));
    for client in ["a1", "b1"] {
        for family in Family::BOTH {
            let own = lab.pod(client).ip(family);
            let shares = shares(&lab.pod(client).ns, web(family), 45, |a| assert_eq!(a.client.ip(), own));
            eprintln!("{client} {family:?}: {shares:?}");
            // 90 questions, a third each on average: fewer than 12 is not chance.
            assert!(
                shares.len() == 3 && shares.values().all(|n| *n >= 12),
                "{client} {family:?}: {shares:?}"
            );
        }
    }
}

/// Each port has its own backends' port, by the port's name.
#[test]
fn every_port_is_its_own() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b1"]);
    serve_ready(&lab, &["a2", "b1"], &json!({}));
    for family in Family::BOTH {
        for (port, suffix) in [(PORT, ""), (81, "-admin")] {
            let answer = named::ask_tcp(&lab.pod("a1").ns, (cluster_ip(family), port).into()).unwrap();
            assert!(["a2", "b1"].map(|p| format!("{p}{suffix}")).contains(&answer.name), "{answer:?}");
        }
        // 81 is TCP's only.
        let error = Asker::open(&lab.pod("a1").ns, (cluster_ip(family), 81).into()).unwrap().ask(PATIENCE);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

/// SCTP: translated with a right checksum both ways.
#[test]
fn sctp_is_a_service_too() {
    let lab = lab();
    let backends = [("a2", 2), ("b1", 11), ("b2", 12)];
    let _servers: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|f| backends.map(|(pod, n)| (pod, n, f)))
        .map(|(pod, n, f)| SctpServer::start(&lab.pod(pod).ns, lab.pod(pod).ip(f), TARGET, n).unwrap())
        .collect();
    serve_ready(&lab, &backends.map(|b| b.0), &json!({}));
    let a1 = lab.pod("a1");
    for family in Family::BOTH {
        let numbers: BTreeSet<_> = (0..40)
            .map(|i| {
                let answer = named::ask_sctp(&a1.ns, a1.ip(family), 5000 + i, web(family), PATIENCE).unwrap();
                answer.unwrap_or_else(|| panic!("{family:?} number {i} is not answered"))
            })
            .collect();
        assert_eq!(numbers, backends.map(|b| b.1).into(), "{family:?}");
    }
}

/// `sessionAffinity: ClientIP`: one client, one backend, for as long as it keeps asking.
#[test]
fn client_ip_affinity() {
    let lab = lab();
    let backends = ["a2", "a3", "b2"];
    let _servers = servers(&lab, &backends);
    let affinity = |seconds: u32| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    serve_ready(&lab, &backends, &affinity(10_800));
    for client in ["a1", "b1"] {
        for family in Family::BOTH {
            let shares = shares(&lab.pod(client).ns, web(family), 20, |_| ());
            assert_eq!(shares.len(), 1, "{client} {family:?}: {shares:?}");
        }
    }
    // The backend goes: the client moves, and stays where it moved to.
    let ask = || named::ask_tcp(&lab.pod("a1").ns, web(Family::V4)).unwrap().name;
    let first = ask();
    let rest: Vec<_> = backends.into_iter().filter(|b| *b != first).collect();
    serve_ready(&lab, &rest, &affinity(10_800));
    let second = ask();
    assert!(rest.contains(&&second[..]));
    assert!((0..20).all(|_| ask() == second));
    // It comes back: nobody moves for it, as long as it keeps asking.
    serve_ready(&lab, &backends, &affinity(2));
    assert!((0..20).all(|_| ask() == second));
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(ask(), first, "after the timeout it is as one never seen");
}

/// A service without endpoints, and a port that it does not have, refuse at once.
#[test]
fn refused_at_once() {
    let lab = lab();
    let _servers = servers(&lab, &["a2"]);
    let refuses = |port: u16, reason: &str| {
        for family in Family::BOTH {
            let to = SocketAddr::new(cluster_ip(family), port);
            let what = format!("{to}, {reason}");
            let a1 = &lab.pod("a1").ns;
            let before = lab.node("a").cli().drop_count(reason);
            // Before the first retransmission: the answer was to the first SYN.
            let limit = Duration::from_millis(900);
            let error = a1.run(|| std::net::TcpStream::connect_timeout(&to, limit)).expect_err(&what);
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{what}");
            let watch = Icmp::open(a1, to.ip()).unwrap();
            let error = Asker::open(a1, to).unwrap().ask(PATIENCE).expect_err(&what);
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{what}");
            let message = watch.error(PATIENCE).unwrap().expect("an ICMP error");
            assert_eq!(message.kind(), Kind::PortUnreachable, "{what}");
            assert!(lab.node("a").cli().drop_count(reason) >= before + 2, "{what} counts");
        }
    };
    serve(&lab, &[], &json!({}));
    refuses(PORT, "no_backend");
    serve(&lab, &[("a2", Condition::NotReady), ("b1", Condition::Gone)], &json!({}));
    refuses(PORT, "no_backend");
    serve_ready(&lab, &["a2"], &json!({}));
    refuses(4321, "service_port_unknown");
    assert_eq!(named::ask_tcp(&lab.pod("a1").ns, web(Family::V4)).unwrap().name, "a2");
}

/// A pod that is its own backend sees an address of the gateway, not its own, also when nothing else may
/// reach it.
#[test]
fn hairpin() {
    let lab = lab();
    let _servers = servers(&lab, &["a1", "b1"]);
    // The gateway's address of IPv6 is link-local: a pod answers that from its own link-local address unless the
    // socket says otherwise. The node's address is as good.
    let gateway = |pod: &str, family, seen: IpAddr| match family {
        Family::V4 => seen == GATEWAY_V4,
        Family::V6 => seen == GATEWAY_V6 || seen == lab.node(&pod[..1]).ip(family),
    };
    for pod in ["a1", "b1"] {
        serve_ready(&lab, &[pod], &json!({}));
        for family in Family::BOTH {
            let seen_as = |a: &Answer| assert!(gateway(pod, family, a.client.ip()), "{a:?}");
            let shares = shares(&lab.pod(pod).ns, web(family), 5, seen_as);
            assert_eq!(shares, [(pod.to_owned(), 10)].into());
            let mut long = Conversation::open(&lab.pod(pod).ns, web(family)).unwrap();
            assert!((0..50).all(|_| long.ask().unwrap().name == pod));
        }
    }
    // Both: some connections go to itself, some to the other.
    serve_ready(&lab, &["a1", "b1"], &json!({}));
    for family in Family::BOTH {
        let own = lab.pod("a1").ip(family);
        let shares = shares(&lab.pod("a1").ns, web(family), 30, |a| {
            let seen = a.client.ip();
            assert!(if a.name == "a1" { gateway("a1", family, seen) } else { seen == own }, "{a:?}");
        });
        assert_eq!(shares.len(), 2, "{shares:?}");
    }
    // A pod can always reach itself.
    serve_ready(&lab, &["a1"], &json!({}));
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    lab.apply("policy.yaml", &[object::policy("default", "none", &spec)]);
    for family in Family::BOTH {
        assert_eq!(named::ask_tcp(&lab.pod("a1").ns, web(family)).unwrap().name, "a1");
        assert_eq!(named::ask_udp(&lab.pod("a1").ns, web(family)).unwrap().name, "a1");
    }
}

/// Policies see the backend and its port, never the service's.
#[test]
fn policies_see_the_backend() {
    let lab = lab();
    let _servers = servers(&lab, &["a2", "b1"]);
    serve_ready(&lab, &["a2", "b1"], &json!({}));
    let app = |name: &str| json!({"matchLabels": {"app": name}});
    let tcp = |port: u16| json!([{"protocol": "TCP", "port": port}]);
    let block = |family| match family {
        Family::V4 => json!({"ipBlock": {"cidr": "10.96.0.0/16"}}),
        Family::V6 => json!({"ipBlock": {"cidr": "fd00:96::/112"}}),
    };
    let pods = |names: [&str; 2]| json!([{"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": names}]}}]);
    let egress = |rules: serde_json::Value| json!({"podSelector": app("a1"), "policyTypes": ["Egress"], "egress": rules});
    let cases = [
        ("egress to the backends' port", true, egress(json!([{"ports": tcp(TARGET)}]))),
        ("egress to the service's port", false, egress(json!([{"ports": tcp(PORT)}]))),
        ("egress to the backends", true, egress(json!([{"to": pods(["a2", "b1"])}]))),
        ("egress to the service's address", false, egress(json!([{"to": Family::BOTH.map(block)}]))),
        (
            "ingress of the backends from the client",
            true,
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": pods(["a1", "a1"])}]}),
        ),
        (
            "ingress of the backends on the service's port",
            false,
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": tcp(PORT)}]}),
        ),
    ];
    for (what, allowed, spec) in cases {
        lab.apply("policy.yaml", &[object::policy("default", "policy", &spec)]);
        for family in Family::BOTH {
            for i in 0..8 {
                let limit = if allowed { PATIENCE } else { SILENCE };
                let ns = &lab.pod("a1").ns;
                let answer = ns.run(|| std::net::TcpStream::connect_timeout(&web(family), limit));
                assert_eq!(answer.is_ok(), allowed, "{what}, {family:?}, number {i}: {answer:?}");
            }
        }
        lab.withdraw("policy.yaml");
    }
}

/// What the service's address does not serve it is not: no echo, and a pod is still itself.
#[test]
fn only_ports_are_translated() {
    let lab = lab();
    let _servers = servers(&lab, &["b1"]);
    serve_ready(&lab, &["b1"], &json!({}));
    for family in Family::BOTH {
        let (a, b, ip) = lab.between("a1", "b1", family);
        tcp::transfer(a, b, ip, 100_000, 100_000).unwrap();
        assert!(icmp::reachable(a, ip));
        // By its own address the backend is seen as itself, not as the service.
        assert_eq!(named::ask_tcp(a, (ip, TARGET).into()).unwrap().name, "b1");
        assert_eq!(named::ask_udp(a, (ip, TARGET).into()).unwrap().name, "b1");
    }
}
