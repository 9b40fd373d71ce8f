//! Pods that talk to the outside: the node's address, a port of the reserved range, and back.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::SockProtocol;
use serde_json::json;

use crate::harness::lab::Lab;
use crate::harness::object;
use crate::harness::spec::{Family, LabSpec, OUTSIDE, UPLINK, underlay};
use crate::traffic::capture::{Capture, Injector, views};
use crate::traffic::frame::{self, Addresses};
use crate::traffic::named::{self, Asker, Conversation, Server};
use crate::traffic::{PATIENCE, SILENCE, eventually, icmp, raw_here, tcp, udp};

/// `snat.port_range` by default.
const RANGE: std::ops::RangeInclusive<u16> = 40_000..=56_383;

fn outside(family: Family) -> IpAddr {
    underlay(0, OUTSIDE, family)
}

fn lab(more_config: &str) -> Lab {
    Lab::start(LabSpec { more_config: more_config.to_owned(), ..LabSpec::default() })
}

/// TCP, UDP and echo, both families, from both nodes: the outside sees nodes only, and ports of the range.
#[test]
fn pods_reach_the_outside() {
    for cores in [vec![], vec![0, 1]] {
        let lab = Lab::start(LabSpec { cores, ..LabSpec::default() });
        let _server = Server::start(&lab.outside, "outside", 9000).unwrap();
        let capture = Capture::start(&lab.outside, UPLINK).unwrap();
        for (pod, node) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            let ns = &lab.pod(pod).ns;
            for family in Family::BOTH {
                let to = SocketAddr::new(outside(family), 9000);
                let own = lab.node(node).ip(family);
                for answer in [named::ask_tcp(ns, to).unwrap(), named::ask_udp(ns, to).unwrap()] {
                    assert!(answer.client.ip() == own && RANGE.contains(&answer.client.port()), "{answer:?}");
                }
                assert_eq!(icmp::echo(ns, to.ip(), 5, 1000, PATIENCE).unwrap(), 5, "{pod} {family:?}");
                tcp::transfer(ns, &lab.outside, to.ip(), 3_000_000, 3_000_000).unwrap();
                udp::exchange(ns, &lab.outside, to.ip(), &[8, 100, 1402]).unwrap();
            }
        }
        let seen = capture.stop();
        let pods: BTreeSet<IpAddr> = lab.pods.iter().flat_map(|p| Family::BOTH.map(|f| p.ip(f))).collect();
        for (_, view) in views(&seen) {
            assert!(view.checksum_ok, "{view:?}");
            if let Some((from, to, _)) = view.ip {
                assert!(!pods.contains(&from) && !pods.contains(&to), "{from} to {to} on the outside");
            }
        }
        // Pods among themselves keep their addresses, also across the tunnel.
        let _inside = Server::start(&lab.pod("b2").ns, "b2", 9000).unwrap();
        let to = SocketAddr::new(lab.pod("b2").ip(Family::V4), 9000);
        assert_eq!(named::ask_tcp(&lab.pod("a1").ns, to).unwrap().client.ip(), lab.pod("a1").ip(Family::V4));
    }
}

/// Two pods ping with one identifier at the same time, and the node itself with it too.
#[test]
fn echo_identifiers_are_translated() {
    let lab = lab("");
    for family in Family::BOTH {
        let to = outside(family);
        let protocol = if family == Family::V4 { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
        let sockets: Vec<_> = [
            (&lab.pod("a1").ns, lab.pod("a1").ip(family)),
            (&lab.pod("a2").ns, lab.pod("a2").ip(family)),
            (&lab.node("a").ns, lab.node("a").ip(family)),
        ]
        .into_iter()
        .map(|(ns, own)| {
            // The first packet of all may wait for a neighbour to be resolved.
            assert!(icmp::reachable(ns, to), "{family:?}");
            ns.run(|| raw_here(own, protocol)).unwrap()
        })
        .collect();
        for sequence in 0..10 {
            for socket in &sockets {
                let request = icmp::echo_request(family == Family::V4, 77, sequence, b"whose?");
                socket.send_to(&request, SocketAddr::new(to, 0)).unwrap();
            }
            for (index, socket) in sockets.iter().enumerate() {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let answer = icmp::echo_reply(socket);
                assert_eq!(answer, Some((to, 77)), "{family:?} socket {index}, sequence {sequence}");
            }
        }
    }
}

/// Exempt destinations see the pod itself; without SNAT everybody does.
#[test]
fn exempt_and_disabled() {
    let exempt = "[snat]\nexempt_cidrs = [\"192.168.77.200/32\", \"fd77::200/128\"]\n";
    for (config, both) in [(exempt, false), ("[snat]\nenabled = false\n", true)] {
        let lab = lab(config);
        // The outside knows the way back to pods.
        lab.outside.ip(crate::harness::kernel::direct_routes(0, 1));
        lab.outside.ip([
            format!("addr add 192.168.77.201/24 dev {UPLINK}"),
            format!("addr add fd77::201/64 dev {UPLINK} nodad"),
        ]);
        let other: [IpAddr; 2] = ["192.168.77.201", "fd77::201"].map(|a| a.parse().unwrap());
        for (other, family) in other.into_iter().zip(Family::BOTH) {
            let pod = lab.pod("a1").ip(family);
            let node = lab.node("a").ip(family);
            for (to, seen) in [(outside(family), pod), (other, if both { pod } else { node })] {
                // Bound to the address, or the answer comes from the first one.
                let listener = tcp::listen_on(&lab.outside, (to, 9001).into()).unwrap();
                tcp::transfer_by(&lab.pod("a1").ns, &listener, (to, 9001).into(), 200_000, 200_000).unwrap();
                let _open = tcp::connect(&lab.pod("a1").ns, (to, 9001).into()).unwrap();
                let (_, from) = listener.accept().unwrap();
                assert_eq!(from.ip(), seen, "{to}, {config}");
            }
        }
    }
}

/// Each destination has the whole range; when it is used up, new connections are dropped by that name.
#[test]
fn exhaustion_is_named() {
    let lab = lab("[snat]\nport_range = \"40000-40007\"\n[flow.timeouts]\nudp = 3\n");
    let _servers = [9000, 9001].map(|port| Server::start(&lab.outside, "outside", port).unwrap());
    let cli = lab.node("a").cli();
    let exhausted = || cli.drop_count("snat_exhausted");
    for family in Family::BOTH {
        let to = |port| SocketAddr::new(outside(family), port);
        // From two pods, so that the preferred ports of some are those of others.
        let pod = |i: usize| &lab.pod(["a1", "a2"][i % 2]).ns;
        for port in [9000, 9001] {
            let mut open: Vec<_> = (0..8).map(|i| Conversation::open(pod(i), to(port)).unwrap()).collect();
            let ports: BTreeSet<u16> = open.iter_mut().map(|c| c.ask().unwrap().client.port()).collect();
            assert_eq!(ports, (40_000..=40_007).collect(), "{family:?} TCP to {port}");
            let before = exhausted();
            let ninth = pod(0).run(|| std::net::TcpStream::connect_timeout(&to(port), SILENCE));
            assert_eq!(ninth.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(exhausted() > before, "TCP to {port}");
            assert!(open.iter_mut().all(|c| c.ask().is_ok()), "{family:?} TCP to {port}: all go on");

            let sockets: Vec<_> = (0..8).map(|i| Asker::open(pod(i), to(port)).unwrap()).collect();
            let ports: BTreeSet<u16> =
                sockets.iter().map(|s| s.ask(PATIENCE).unwrap().client.port()).collect();
            assert_eq!(ports, (40_000..=40_007).collect(), "{family:?} UDP to {port}");
            let before = exhausted();
            let ninth = Asker::open(pod(0), to(port)).unwrap();
            assert!(ninth.ask(SILENCE).is_err());
            assert!(exhausted() > before, "UDP to {port}");
            // One that ends makes room for one.
            let last = Instant::now();
            eventually("the ninth takes the place of one that is idle", Duration::from_secs(30), || {
                let busy = sockets[1..].iter().all(|s| s.ask(PATIENCE).is_ok());
                assert!(busy, "those in use are kept");
                ninth.ask(SILENCE).ok()
            });
            eprintln!("{family:?} UDP to {port}: room after {:?}", last.elapsed());
        }
    }
}

/// The range is kept from the node's own sockets while the daemon runs, and what was there before comes back.
#[test]
fn the_range_is_reserved() {
    let mut lab = Lab::wire(LabSpec::default());
    let reserved = |lab: &Lab| {
        let path = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        lab.node("a").ns.run(|| std::fs::read_to_string(path)).unwrap().trim().to_owned()
    };
    lab.node("a").ns.sysctl("ipv4/ip_local_reserved_ports", "8080,30000-30010");
    lab.start_daemons();
    assert_eq!(reserved(&lab), "8080,30000-30010,40000-56383");
    // A kill leaves it reserved; the next run still knows what was there before.
    lab.node_mut("a").daemon().kill();
    assert_eq!(reserved(&lab), "8080,30000-30010,40000-56383");
    lab.node_mut("a").start_daemon();
    lab.wait_pods(0);
    assert!(lab.node_mut("a").daemon().stop().success());
    assert_eq!(reserved(&lab), "8080,30000-30010");
}

/// The node's own connections and the pods' to one server, at the same time: no port of one is the other's.
#[test]
fn the_nodes_own_sockets_do_not_collide() {
    let lab = Lab::wire(LabSpec::default());
    // Most of what the node may choose from is the pods'.
    lab.node("a").ns.sysctl("ipv4/ip_local_port_range", "39500 56500");
    let mut lab = lab;
    lab.start_daemons();
    let _server = Server::start(&lab.outside, "outside", 9000).unwrap();
    for family in Family::BOTH {
        let to = SocketAddr::new(outside(family), 9000);
        let mut open: Vec<_> = (0..120)
            .map(|i| {
                let (ns, own) = match i % 3 {
                    0 => (&lab.node("a").ns, true),
                    n => (&lab.pod(["a1", "a2"][n - 1]).ns, false),
                };
                let mut conversation = Conversation::open(ns, to).unwrap();
                let answer = conversation.ask().unwrap();
                assert_eq!(answer.client.ip(), lab.node("a").ip(family));
                assert_eq!(RANGE.contains(&answer.client.port()), !own, "{answer:?}");
                (conversation, answer)
            })
            .collect();
        let clients: BTreeSet<_> = open.iter().map(|(_, answer)| answer.client).collect();
        assert_eq!(clients.len(), open.len());
        for (conversation, answer) in &mut open {
            assert_eq!(conversation.ask().unwrap(), *answer);
        }
        tcp::transfer(&lab.node("a").ns, &lab.outside, to.ip(), 500_000, 500_000).unwrap();
        tcp::transfer(&lab.outside, &lab.node("a").ns, lab.node("a").ip(family), 500_000, 500_000).unwrap();
    }
}

/// A socket of the node may ask for a port of the range by number (WireGuard's 51820): whose answers came there before
/// gets another port, nobody gets it anew, and what is sent to the socket arrives.
#[test]
fn a_socket_of_the_node_keeps_its_port() {
    let mut lab = lab("");
    let _servers = [9000, 9001].map(|port| Server::start(&lab.outside, "outside", port).unwrap());
    for (family, sport) in Family::BOTH.into_iter().zip([7001, 7002]) {
        let any = if family == Family::V4 { "0.0.0.0" } else { "::" };
        let to = |port| SocketAddr::new(outside(family), port);
        let ask_at = |lab: &Lab, port| Asker::open_at(&lab.pod("a1").ns, sport, to(port)).unwrap();
        // Neighbours are resolved, and the only question that is sent is not lost to that.
        assert!(icmp::reachable(&lab.pod("a1").ns, outside(family)));
        // One port, whatever the destination.
        let port = ask_at(&lab, 9001).ask(PATIENCE).unwrap().client.port();
        let asker = ask_at(&lab, 9000);
        assert_eq!(asker.ask(PATIENCE).unwrap().client.port(), port);
        let node = lab.node("a");
        let socket = node.ns.run(|| UdpSocket::bind((any, port))).unwrap();
        let other = eventually("the flow has another port", Duration::from_secs(30), || {
            asker.ask(SILENCE).ok().map(|a| a.client.port()).filter(|now| *now != port)
        });
        assert!(RANGE.contains(&other));
        drop(asker);
        let hear = |lab: &Lab| {
            let sender = lab.outside.run(|| UdpSocket::bind((any, 0))).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            sender.send_to(b"handshake", (lab.node("a").ip(family), port)).unwrap();
            let mut buffer = [0; 256];
            // The pod's answers that came here before are still in it.
            while socket.recv(&mut buffer).expect("what is sent to the socket") != b"handshake".len() {}
        };
        hear(&lab);
        // A daemon that starts beside the socket knows from the first flow on.
        assert!(lab.node_mut("a").daemon().stop().success());
        lab.node_mut("a").start_daemon();
        lab.wait_pods(0);
        assert!(icmp::reachable(&lab.pod("a1").ns, outside(family)));
        for server in [9000, 9001] {
            assert_ne!(ask_at(&lab, server).ask(PATIENCE).unwrap().client.port(), port);
        }
        hear(&lab);
    }
}

/// From outside to a port of the range that belongs to no flow: dropped by its name, and to nobody.
#[test]
fn nobodys_ports() {
    let lab = lab("");
    let injector = Injector::open(&lab.outside, UPLINK).unwrap();
    let node = lab.node("a");
    for family in Family::BOTH {
        let addresses = Addresses {
            from_mac: lab.outside.mac(UPLINK),
            to_mac: node.ns.mac(UPLINK),
            from: outside(family),
            to: node.ip(family),
        };
        let before = node.cli().drop_count("nat_no_flow");
        for port in [40_000, 45_000, 56_383] {
            injector.send(&frame::udp(addresses, (53, port), b"whose?")).unwrap();
        }
        eventually("nat_no_flow counts", PATIENCE, || {
            (node.cli().drop_count("nat_no_flow") >= before + 3).then_some(())
        });
        // Beside the range it is the node's.
        for port in [39_999, 56_384] {
            let echo = udp::Echo::start(&node.ns, (node.ip(family), port).into()).unwrap();
            udp::exchange_with(&lab.outside, (node.ip(family), echo.port()).into(), &[100]).unwrap();
        }
    }
}

/// Egress policies see the outside's own address and the pod's, before it is translated.
#[test]
fn policies_decide_before_translation() {
    let lab = lab("");
    let _server = Server::start(&lab.outside, "outside", 9000).unwrap();
    let egress = |cidrs: [&str; 2]| {
        let to: Vec<_> = cidrs.iter().map(|c| json!({"ipBlock": {"cidr": c}})).collect();
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "a1"}},
            "policyTypes": ["Egress"],
            "egress": [{"to": to}],
        });
        [object::policy("default", "egress", &spec)]
    };
    let mut open: Vec<_> = Family::BOTH
        .into_iter()
        .map(|f| Conversation::open(&lab.pod("a1").ns, (outside(f), 9000).into()).unwrap())
        .collect();
    for (cidrs, allowed) in [
        (["192.168.77.200/32", "fd77::200/128"], true),
        (["192.168.77.0/25", "fd77:0:0:1::/64"], false),
        (["192.168.77.0/24", "fd77::/64"], true),
    ] {
        lab.apply("policy.yaml", &egress(cidrs));
        for (family, conversation) in Family::BOTH.into_iter().zip(&mut open) {
            let to = SocketAddr::new(outside(family), 9000);
            let asked = Asker::open(&lab.pod("a1").ns, to).unwrap().ask(SILENCE);
            assert_eq!(asked.is_ok(), allowed, "{cidrs:?} {family:?}");
            assert_eq!(icmp::reachable(&lab.pod("a1").ns, to.ip()), allowed, "{cidrs:?} {family:?}");
            if allowed {
                assert!(conversation.ask().is_ok(), "{cidrs:?} {family:?}");
            }
            assert!(named::ask_tcp(&lab.pod("a2").ns, to).is_ok());
        }
    }
}
