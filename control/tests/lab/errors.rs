//! ICMP errors the dataplane owes its pods, and what the gateway answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::harness::lab::Lab;
use crate::harness::node::Node;
use crate::harness::spec::{Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, LabSpec, pod_address};
use crate::traffic::capture::{Capture, Injector};
use crate::traffic::frame::{self, View};
use crate::traffic::icmp::{self, Icmp, Kind};
use crate::traffic::{PATIENCE, SILENCE, tcp, udp};

/// Addresses a node may put on the ICMP errors it sends to its own pods.
fn own_hop(node: &Node, family: Family) -> Vec<IpAddr> {
    let gateway = match family {
        Family::V4 => IpAddr::V4(GATEWAY_V4),
        Family::V6 => IpAddr::V6(GATEWAY_V6),
    };
    vec![gateway, node.ip(family)]
}

/// The hops of traceroute answer, with addresses that tell where they are.
#[test]
fn traceroute_shows_the_hops() {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { outer, ..LabSpec::default() });
        let (near, far) = (lab.node("a"), lab.node("b"));
        for family in Family::BOTH {
            let (a, _, ip) = lab.between("a1", "b1", family);
            let hops = icmp::traceroute(a, ip, 6).unwrap();
            let [Some(first), Some(second), Some(last)] = hops[..] else { panic!("{family:?}: {hops:?}") };
            assert!(own_hop(near, family).contains(&first.address), "{hops:?}");
            assert_eq!((first.kind, second.kind), (Kind::TimeExceeded, Kind::TimeExceeded));
            assert_eq!(second.address, far.ip(family), "{hops:?}");
            assert_eq!((last.address, last.kind), (ip, Kind::PortUnreachable));

            let (a, _, ip) = lab.between("a1", "a2", family);
            let hops = icmp::traceroute(a, ip, 6).unwrap();
            let [Some(first), Some(last)] = hops[..] else { panic!("{family:?}: {hops:?}") };
            assert!(own_hop(near, family).contains(&first.address), "{hops:?}");
            assert_eq!((last.address, last.kind), (ip, Kind::PortUnreachable));
        }
        assert!(near.cli().drop_count("ttl_exceeded") >= 4);
    }
}

/// The tool itself, as a user runs it.
#[test]
fn traceroute_tool_agrees() {
    let lab = Lab::start(LabSpec::default());
    for (family, flag) in [(Family::V4, "-4"), (Family::V6, "-6")] {
        let (a, _, ip) = lab.between("a1", "b1", family);
        for method in ["--udp", "--icmp"] {
            let text = a.exec("traceroute", &[flag, "-n", "-q1", "-w2", "-m6", method, &ip.to_string()]);
            let hops: Vec<_> = text.lines().skip(1).collect();
            assert!(hops.len() == 3 && !text.contains('*') && hops[2].contains(&ip.to_string()), "{text}");
        }
    }
}

/// Each node takes one from TTL and hop limit, no more.
#[test]
fn ttl_falls_by_one_a_node() {
    let lab = Lab::start(LabSpec::default());
    for family in Family::BOTH {
        for (to, left) in [("a2", 63), ("b1", 62)] {
            let (a, b, ip) = lab.between("a1", to, family);
            let capture = Capture::start(b, "eth0").unwrap();
            udp::exchange(a, b, ip, &[32]).unwrap();
            let from = lab.pod("a1").ip(family);
            let packet =
                capture.wait(PATIENCE, |s, v| !s.outgoing && v.ports.is_some() && v.is_between(from, ip));
            let packet = packet.expect("the datagram was captured");
            assert_eq!(packet.ip.map(|(_, _, ttl)| ttl), Some(left), "{family:?} to {to}");
            assert_eq!(packet.macs.1, GATEWAY_MAC);
        }
    }
}

/// A pod with too large an MTU is told, and its TCP goes on with the size that fits.
#[test]
fn path_mtu_is_learned() {
    for (outer, fits) in [(Family::V4, 1450), (Family::V6, 1430)] {
        let lab = Lab::start(LabSpec { outer, pod_mtu: Some(1500), ..LabSpec::default() });
        for family in Family::BOTH {
            let (a, b, ip) = lab.between("a1", "b1", family);
            let watch = Icmp::open(a, ip).unwrap();
            // UDP sockets set DF until they know better. The datagram itself is lost.
            drop(udp::exchange(a, b, ip, &[1440]));
            let error = watch.error(PATIENCE).unwrap().expect("frag-needed or too-big");
            assert_eq!(error.kind(), Kind::TooBig(fits), "outer {outer:?} inner {family:?}");
            assert!(own_hop(lab.node("a"), family).contains(&error.from), "{error:?}");
            tcp::transfer(a, b, ip, 5_000_000, 5_000_000).unwrap();
        }
        // Pods that have learned nothing yet.
        let (a, b, ip) = lab.between("b2", "a2", Family::V6);
        tcp::transfer(a, b, ip, 5_000_000, 5_000_000).unwrap();
        assert!(lab.node("a").cli().drop_count("mtu_exceeded") >= 2);
    }
}

/// An address of the pod CIDR no pod has, and one nobody knows.
#[test]
fn unreachable_is_said() {
    let lab = Lab::start(LabSpec::default());
    let a1 = lab.pod("a1");
    for family in Family::BOTH {
        let nobody = pod_address(1, 180, family);
        let watch = Icmp::open(&a1.ns, nobody).unwrap();
        assert_eq!(icmp::echo(&a1.ns, nobody, 1, 56, SILENCE).unwrap(), 0);
        let error = watch.error(PATIENCE).unwrap().expect("an unreachable");
        assert!(matches!(error.kind(), Kind::Unreachable(_)), "{error:?}");
        assert!(own_hop(lab.node("a"), family).contains(&error.from), "{error:?}");
    }
    assert!(lab.node("a").cli().drop_count("no_endpoint") >= 2);

    // Without a default route the rest of the world is unknown.
    for family in ["-4", "-6"] {
        lab.node("a").ns.exec("ip", &[family, "route", "del", "default"]);
    }
    let nobodies = [IpAddr::from([203, 0, 113, 9]), "2001:db8::9".parse().unwrap()];
    for (nobody, family) in nobodies.into_iter().zip(Family::BOTH) {
        let watch = Icmp::open(&a1.ns, nobody).unwrap();
        crate::traffic::eventually("no route is said", PATIENCE, || {
            drop(icmp::echo(&a1.ns, nobody, 1, 56, SILENCE / 4));
            let error = watch.error(SILENCE).unwrap()?;
            // The router says it too, as long as the route is there.
            let own = own_hop(lab.node("a"), family).contains(&error.from);
            (own && matches!(error.kind(), Kind::Unreachable(_))).then_some(())
        });
    }
    assert!(lab.node("a").cli().drop_count("no_route") >= 2);
}

/// The gateway answers ARP and NDP for itself, and for nothing else.
#[test]
fn only_the_gateway_is_answered() {
    let lab = Lab::start(LabSpec::default());
    let pod = lab.pod("a1");
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (pod.ip(Family::V4), pod.ip(Family::V6)) else {
        panic!("one of each family")
    };
    let (IpAddr::V4(other4), IpAddr::V6(other6)) =
        (lab.pod("a2").ip(Family::V4), lab.pod("a2").ip(Family::V6))
    else {
        panic!("one of each family")
    };
    let injector = Injector::open(&pod.ns, "eth0").unwrap();
    let capture = Capture::start(&pod.ns, "eth0").unwrap();
    let mac = pod.mac();
    let answer = |v: &View| v.macs == (mac, GATEWAY_MAC) && v.ip.is_none_or(|(_, _, hops)| hops == 255);

    injector.send(&frame::arp_request(mac, v4, GATEWAY_V4)).unwrap();
    assert!(capture.wait(PATIENCE, |s, v| !s.outgoing && v.ip.is_none() && answer(v)).is_some(), "ARP");
    injector.send(&frame::neighbor_solicitation(mac, v6, GATEWAY_V6)).unwrap();
    assert!(capture.wait(PATIENCE, |s, v| !s.outgoing && v.ip.is_some() && answer(v)).is_some(), "NDP");

    let before = lab.node("a").cli().drop_count("not_gateway");
    for target in [other4, Ipv4Addr::new(169, 254, 1, 2), Ipv4Addr::new(192, 168, 77, 2)] {
        injector.send(&frame::arp_request(mac, v4, target)).unwrap();
    }
    for target in [other6, "fe80::1".parse::<Ipv6Addr>().unwrap()] {
        injector.send(&frame::neighbor_solicitation(mac, v6, target)).unwrap();
    }
    let wrong = capture.wait(SILENCE, |s, v| !s.outgoing && answer(v));
    assert!(wrong.is_none(), "answered: {wrong:?}");
    assert_eq!(lab.node("a").cli().drop_count("not_gateway"), before + 5);
    // Duplicate address detection and gratuitous ARP are questions about the pod itself: no answer either.
    injector.send(&frame::arp_request(mac, v4, v4)).unwrap();
    injector.send(&frame::neighbor_solicitation(mac, v6, v6)).unwrap();
    let wrong = capture.wait(SILENCE, |s, v| !s.outgoing && answer(v));
    assert!(wrong.is_none(), "answered: {wrong:?}");
}
