//! The lab proves itself: its nodes forward by the kernel alone, and every helper must see what it claims
//! to see there.

use std::io;
use std::time::{Duration, Instant};

use crate::harness::lab::Lab;
use crate::harness::node::{default_routes, plug};
use crate::harness::spec::{
    Encap, Family, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, LabSpec, NodeSpec, UPLINK, VNI,
};
use crate::traffic::capture::{Capture, Injector, views};
use crate::traffic::frame::{self, Addresses};
use crate::traffic::icmp::{self, Icmp, Kind};
use crate::traffic::{PATIENCE, SILENCE, tcp, udp};

fn kernel_pair() -> LabSpec {
    LabSpec { nodes: vec![NodeSpec::kernel("a", 2), NodeSpec::kernel("b", 1)], ..LabSpec::default() }
}

/// TCP, UDP and ICMP echo between pods, by every kind of encapsulation the kernel does.
#[test]
fn kernel_nodes_reach_each_other() {
    for (encap, outer) in [
        (Encap::Vxlan, Family::V4),
        (Encap::Vxlan, Family::V6),
        (Encap::None, Family::V4),
        (Encap::CrossSubnet, Family::V4),
    ] {
        let nodes = vec![
            NodeSpec::kernel("a", 2),
            NodeSpec::kernel("b", 1),
            NodeSpec::kernel("c", 1).in_other_subnet(),
        ];
        let lab = Lab::wire(LabSpec { nodes, encap, outer, ..LabSpec::default() });
        for family in Family::BOTH {
            for (from, to) in [("a1", "a2"), ("a1", "b1"), ("b1", "c1"), ("c1", "a2")] {
                let what = format!("{encap:?} {outer:?} {family:?} {from} to {to}");
                let (a, b, ip) = lab.between(from, to, family);
                assert_eq!(icmp::echo(a, ip, 3, 1000, PATIENCE).unwrap(), 3, "{what}");
                udp::exchange(a, b, ip, &[8, 100, 1200]).unwrap_or_else(|e| panic!("{what}: {e}"));
                tcp::transfer(a, b, ip, 300_000, 300_000).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
        }
    }
}

/// The checks fail when packets do not pass, and say so in time.
#[test]
fn silence_is_noticed() {
    let lab = Lab::wire(kernel_pair());
    let (a, b, ip) = lab.between("a1", "b1", Family::V4);
    let stream = tcp::Stream::start(a, b, ip).unwrap();
    let flow = udp::Flow::start(a, b, ip, 64, Duration::from_millis(1)).unwrap();
    stream.must_progress("before", PATIENCE);
    flow.must_progress("before", 50);
    lab.fabric.ip(["link set to-b down"]);
    std::thread::sleep(SILENCE);
    assert!(icmp::unreachable(a, ip));
    assert!(!stream.progresses_within(SILENCE));
    let start = Instant::now();
    assert!(udp::exchange(a, b, ip, &[64]).is_err());
    assert!(start.elapsed() < PATIENCE * 2);
    lab.fabric.ip(["link set to-b up"]);
    assert!(icmp::reachable(a, ip));
    stream.must_progress("after", PATIENCE * 2);
    let counts = flow.stop().unwrap();
    assert!(counts.lost() > 0 && counts.received > 50, "{counts:?}");
}

/// 1 GB, every byte compared, and the time it took; many connections at once.
#[test]
fn large_transfers_are_compared() {
    let lab = Lab::wire(kernel_pair());
    let (a, b, ip) = lab.between("a1", "b1", Family::V4);
    let took = tcp::transfer(a, b, ip, 1 << 30, 0).unwrap();
    eprintln!("1 GiB over kernel VXLAN without offloads in {took:?}");
    tcp::transfer_many(a, b, ip, 16, 200_000).unwrap();
}

/// Loss accounting is exact when nothing is lost.
#[test]
fn a_quiet_path_loses_nothing() {
    let lab = Lab::wire(kernel_pair());
    for family in Family::BOTH {
        let (a, b, ip) = lab.between("a1", "b1", family);
        let flow = udp::Flow::start(a, b, ip, 200, Duration::from_millis(1)).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let counts = flow.stop().unwrap();
        assert!(counts.sent > 500 && counts.lost() == 0 && counts.wrong == 0, "{counts:?}");
    }
}

/// Hops, ports, MTU: ICMP errors are told apart.
#[test]
fn icmp_errors_are_understood() {
    let lab = Lab::wire(LabSpec { pod_mtu: Some(1500), ..kernel_pair() });
    for family in Family::BOTH {
        let (a, b, ip) = lab.between("a1", "b1", family);
        let hops = icmp::traceroute(a, ip, 5).unwrap();
        let kinds: Vec<_> = hops.iter().map(|h| h.map(|h| h.kind)).collect();
        assert_eq!(
            kinds,
            [Some(Kind::TimeExceeded), Some(Kind::TimeExceeded), Some(Kind::PortUnreachable)],
            "{hops:?}"
        );
        let watch = Icmp::open(a, ip).unwrap();
        drop(udp::exchange(a, b, ip, &[1440]));
        let error = watch.error(PATIENCE).unwrap().expect("an ICMP error");
        assert_eq!(error.kind(), Kind::TooBig(1450));
        tcp::transfer(a, b, ip, 300_000, 300_000).unwrap();
    }
}

/// The capture sees tunnel packets from both sides, and checks what it sees.
#[test]
fn captures_show_the_tunnel() {
    let lab = Lab::wire(kernel_pair());
    let capture = Capture::start(&lab.fabric, "to-b").unwrap();
    let (a, b, ip) = lab.between("a1", "b1", Family::V6);
    udp::exchange(a, b, ip, &[500]).unwrap();
    let seen = capture.stop();
    let inner: Vec<_> = views(&seen)
        .filter_map(|(outgoing, v)| v.vxlan().map(|(vni, inner)| (outgoing, v.checksum_ok, vni, inner)))
        .collect();
    assert_eq!(inner.len(), 2, "{inner:?}");
    assert!(inner.iter().all(|(_, outer_ok, vni, i)| *outer_ok && *vni == VNI && i.checksum_ok));
    assert!(inner[0].0 && !inner[1].0, "to b and back");
    assert!(inner[0].3.is_between(lab.pod("a1").ip(Family::V6), ip));
}

/// A frame made by hand reaches its socket: the builder's checksums are right, also inside VXLAN.
#[test]
fn injected_frames_arrive() {
    let lab = Lab::wire(kernel_pair());
    let (a1, a2) = (lab.pod("a1"), lab.pod("a2"));
    let plain = Injector::open(&a1.ns, "eth0").unwrap();
    let tunnel = Injector::open(&lab.node("b").ns, UPLINK).unwrap();
    for family in Family::BOTH {
        let receiver = a2.ns.run(|| std::net::UdpSocket::bind((a2.ip(family), 7777))).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 64];
        let direct =
            Addresses { from_mac: a1.mac(), to_mac: GATEWAY_MAC, from: a1.ip(family), to: a2.ip(family) };
        plain.send(&frame::udp(direct, (5555, 7777), b"direct")).unwrap();
        assert_eq!(receiver.recv(&mut buffer).map(|n| buffer[..n].to_vec()).unwrap(), b"direct");

        let vtep = |n| crate::harness::spec::vtep_mac(n, Family::V4);
        let inner = Addresses {
            from_mac: vtep(2),
            to_mac: vtep(1),
            from: lab.pod("b1").ip(family),
            to: a2.ip(family),
        };
        let outer = Addresses {
            from_mac: lab.node("b").ns.mac(UPLINK),
            to_mac: lab.node("a").ns.mac(UPLINK),
            from: lab.node("b").ip(Family::V4),
            to: lab.node("a").ip(Family::V4),
        };
        tunnel.send(&frame::vxlan(outer, VNI, &frame::udp(inner, (5555, 7777), b"tunnel"))).unwrap();
        assert_eq!(receiver.recv(&mut buffer).map(|n| buffer[..n].to_vec()).unwrap(), b"tunnel");
    }
}

/// ARP requests and neighbour solicitations made by hand are answered as the kernel answers them.
#[test]
fn gateways_answer() {
    let lab = Lab::wire(kernel_pair());
    let pod = lab.pod("a1");
    let capture = Capture::start(&pod.ns, "eth0").unwrap();
    let injector = Injector::open(&pod.ns, "eth0").unwrap();
    let (std::net::IpAddr::V4(v4), std::net::IpAddr::V6(v6)) = (pod.ip(Family::V4), pod.ip(Family::V6))
    else {
        panic!("one of each family")
    };
    injector.send(&frame::arp_request(pod.mac(), v4, GATEWAY_V4)).unwrap();
    let from_gateway = |v: &frame::View| v.macs == (pod.mac(), GATEWAY_MAC);
    assert!(capture.wait(PATIENCE, |s, v| !s.outgoing && v.ip.is_none() && from_gateway(v)).is_some());
    injector.send(&frame::neighbor_solicitation(pod.mac(), v6, GATEWAY_V6)).unwrap();
    assert!(capture.wait(PATIENCE, |s, v| !s.outgoing && v.ip.is_some() && from_gateway(v)).is_some());
}

/// A second machine on the underlay, and the namespaces it leaves: none.
#[test]
fn nothing_is_left() {
    let names = || -> Vec<String> {
        std::fs::read_dir("/run/netns")
            .map(|dir| dir.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
            .unwrap_or_default()
    };
    let (root, prefix) = {
        let lab = Lab::wire(kernel_pair());
        let guest = crate::harness::ns::NetNs::create(&format!("{}-guest", lab.fabric.name()));
        plug(&lab.spec, &guest, UPLINK, &lab.fabric, "to-guest", 1, 7);
        default_routes(&guest, 1);
        assert!(icmp::reachable(&guest, lab.node("a").ip(Family::V4)));
        let prefix = lab.fabric.name().trim_end_matches("fabric").to_owned();
        assert!(names().iter().filter(|n| n.starts_with(&prefix)).count() >= 7);
        (lab.root().to_owned(), prefix)
    };
    assert!(!names().iter().any(|n| n.starts_with(&prefix)), "{:?}", names());
    assert_eq!(root.metadata().map_err(|e| e.kind()).err(), Some(io::ErrorKind::NotFound));
}
