//! Everybody reaches everybody: pods of one node and of two, both families, every encapsulation.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::lab::Lab;
use crate::harness::spec::{Encap, Family, LabSpec, NodeSpec, OUTSIDE, UPLINK, VNI, underlay};
use crate::traffic::capture::{Capture, views};
use crate::traffic::frame::{Transport, View};
use crate::traffic::{PATIENCE, icmp, tcp, udp};

/// TCP both ways at once, UDP of several sizes and ICMP echo, in both families.
pub(crate) fn everything_crosses(lab: &Lab, from: &str, to: &str) {
    let mtu = lab.pod_mtu() as usize;
    for family in Family::BOTH {
        let what = format!("{:?} outer {:?}: {from} to {to}, {family:?}", lab.spec.encap, lab.spec.outer);
        let headers = if family == Family::V4 { 28 } else { 48 };
        let (a, b, ip) = lab.between(from, to, family);
        assert!(icmp::reachable(a, ip), "{what}: ICMP echo");
        assert_eq!(icmp::echo(a, ip, 5, mtu - headers, PATIENCE).unwrap(), 5, "{what}: full-size ICMP echo");
        let sizes = [8, 9, 18, 64, 511, 1000, mtu - headers - 1, mtu - headers];
        udp::exchange(a, b, ip, &sizes).unwrap_or_else(|e| panic!("{what}: UDP: {e}"));
        tcp::transfer(a, b, ip, 2_000_000, 2_000_000).unwrap_or_else(|e| panic!("{what}: TCP: {e}"));
    }
}

/// Pairs on one node and across two, both directions.
fn matrix(lab: &Lab) {
    for (from, to) in [("a1", "a2"), ("a2", "a1"), ("a1", "b1"), ("b2", "a2")] {
        everything_crosses(lab, from, to);
    }
}

/// Tunnel packets among what a device carried, with their outer headers.
fn tunnelled(capture: Capture) -> Vec<(View, u32, View)> {
    let seen = capture.stop();
    views(&seen)
        .filter_map(|(_, outer)| outer.vxlan().map(|(vni, inner)| (outer.clone(), vni, inner)))
        .collect()
}

/// Outer IPv4, inner IPv4 and IPv6.
#[test]
fn vxlan_outer_ipv4() {
    matrix(&Lab::start(LabSpec::default()));
}

/// Outer IPv6, inner IPv4 and IPv6.
#[test]
fn vxlan_outer_ipv6() {
    matrix(&Lab::start(LabSpec { outer: Family::V6, ..LabSpec::default() }));
}

/// XDP in generic mode does the same.
#[test]
fn vxlan_generic_mode() {
    let lab = Lab::start(LabSpec { xdp_mode: "generic", ..LabSpec::default() });
    matrix(&lab);
    let modes = lab.node("a").cli().modes();
    assert!(!modes.is_empty() && modes.values().all(|m| m.contains("generic")), "{modes:?}");
}

/// A veth takes native mode, and the mode obtained is reported, not the one asked for.
#[test]
fn native_mode_is_reported() {
    let lab = Lab::start(LabSpec { xdp_mode: "native", ..LabSpec::default() });
    everything_crosses(&lab, "a1", "b1");
    let modes = lab.node("a").cli().modes();
    for device in ["fp-a1", "fp-a2", UPLINK] {
        assert!(modes.get(device).is_some_and(|m| m.contains("native")), "{device}: {modes:?}");
        let link = lab.node("a").ns.link_json(device);
        // IFLA_XDP_ATTACHED: 1 is the driver, 2 is generic.
        assert_eq!(link["xdp"]["mode"], 1, "{device}: {link}");
    }
}

/// Without a tunnel: pods among themselves, and with a machine that is no node.
#[test]
fn without_encapsulation() {
    let lab = Lab::start(LabSpec { encap: Encap::None, ..LabSpec::default() });
    let capture = Capture::start(&lab.fabric, "to-b").unwrap();
    matrix(&lab);
    assert!(tunnelled(capture).is_empty(), "nothing is tunnelled");
    for family in Family::BOTH {
        let outside = underlay(0, OUTSIDE, family);
        let pod = lab.pod("a1");
        udp::exchange(&pod.ns, &lab.outside, outside, &[100]).unwrap();
        tcp::transfer(&lab.outside, &pod.ns, pod.ip(family), 500_000, 500_000).unwrap();
        assert!(icmp::reachable(&lab.outside, pod.ip(family)));
    }
}

/// A tunnel only where the subnets differ.
#[test]
fn cross_subnet() {
    for outer in Family::BOTH {
        let nodes = vec![
            NodeSpec::fastpath("a", 1),
            NodeSpec::fastpath("b", 1),
            NodeSpec::fastpath("c", 1).in_other_subnet(),
        ];
        let lab = Lab::start(LabSpec { nodes, outer, encap: Encap::CrossSubnet, ..LabSpec::default() });
        let near = Capture::start(&lab.fabric, "to-b").unwrap();
        everything_crosses(&lab, "a1", "b1");
        assert!(tunnelled(near).is_empty(), "a and b share a subnet");
        let far = Capture::start(&lab.fabric, "to-c").unwrap();
        everything_crosses(&lab, "a1", "c1");
        everything_crosses(&lab, "c1", "b1");
        assert!(!tunnelled(far).is_empty(), "c is in another subnet");
    }
}

/// What is on the wire: VNI, outer addresses and checksums, inner TTL, a source port per flow.
#[test]
fn the_tunnel_is_as_rfc_7348_says() {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { outer, ..LabSpec::default() });
        let (from, to) = (lab.node("a").ip(outer), lab.node("b").ip(outer));
        for family in Family::BOTH {
            let (a, b, ip) = lab.between("a1", "b1", family);
            let capture = Capture::start(&lab.fabric, "to-b").unwrap();
            for _ in 0..12 {
                udp::exchange(a, b, ip, &[200]).unwrap();
            }
            let packets: Vec<_> =
                tunnelled(capture).into_iter().filter(|(o, ..)| o.is_between(from, to)).collect();
            assert!(packets.len() >= 12, "{} packets", packets.len());
            let mut ports = BTreeSet::new();
            for (o, vni, inner) in &packets {
                assert_eq!(*vni, VNI);
                assert!(o.checksum_ok && inner.checksum_ok, "{o:?} {inner:?}");
                assert_eq!(inner.ip, Some((lab.pod("a1").ip(family), ip, 63)), "one hop taken");
                let Some((Transport::Udp, source, _)) = o.ports else { panic!("{o:?}") };
                assert!(source >= 49_152, "source port {source} is dynamic");
                ports.insert(source);
            }
            assert!(ports.len() > 3, "12 flows share {ports:?}");
        }
    }
}

/// One flow keeps one source port, so that the underlay does not reorder it.
#[test]
fn a_flow_keeps_its_source_port() {
    let lab = Lab::start(LabSpec::default());
    let (a, b, ip) = lab.between("a1", "b1", Family::V4);
    let capture = Capture::start(&lab.fabric, "to-b").unwrap();
    udp::exchange(a, b, ip, &[64; 20]).unwrap();
    let ports: BTreeSet<_> = tunnelled(capture)
        .into_iter()
        .filter(|(_, _, inner)| inner.ip.is_some_and(|(_, to, _)| to == ip))
        .filter_map(|(outer, ..)| outer.ports.map(|(_, source, _)| source))
        .collect();
    assert_eq!(ports.len(), 1, "{ports:?}");
}

/// 1 GiB across the tunnel, every byte compared.
#[test]
fn a_gigabyte_crosses() {
    let lab = Lab::start(LabSpec::default());
    let (a, b, ip) = lab.between("a1", "b1", Family::V4);
    let took = tcp::transfer(a, b, ip, 1 << 30, 0).unwrap();
    eprintln!("1 GiB across VXLAN in {took:?}");
    let (a, b, ip) = lab.between("b1", "a2", Family::V6);
    tcp::transfer(a, b, ip, 64 << 20, 64 << 20).unwrap();
}

/// Many connections at the same time, on one node and across.
#[test]
fn connections_at_the_same_time() {
    let lab = Lab::start(LabSpec::default());
    for (to, family) in [("a2", Family::V4), ("b1", Family::V6)] {
        let (a, b, ip) = lab.between("a1", to, family);
        tcp::transfer_many(a, b, ip, 50, 100_000).unwrap();
    }
    assert!(lab.node("a").cli().flow_count() >= 50, "flows are shown");
}

/// Pods that leave tx checksum offload on send only the pseudo-header's sum: it is finished on the way.
#[test]
fn partial_checksums_are_finished() {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { partial_checksums: true, outer, ..LabSpec::default() });
        matrix(&lab);
        let (a, b, ip) = lab.between("a1", "b1", Family::V6);
        let capture = Capture::start(&lab.fabric, "to-b").unwrap();
        udp::exchange(a, b, ip, &[300]).unwrap();
        let packets = tunnelled(capture);
        assert!(packets.len() >= 2);
        assert!(packets.iter().all(|(o, _, i)| o.checksum_ok && i.checksum_ok), "{packets:?}");
    }
}

/// Two workers: the ports of a pair are on different ones, so are the two directions of its flows.
#[test]
fn two_workers() {
    let nodes = vec![NodeSpec::fastpath("a", 4), NodeSpec::fastpath("b", 2)];
    let lab = Lab::start(LabSpec { nodes, cores: vec![0, 1], ..LabSpec::default() });
    let cli = lab.node("a").cli();
    let worker = |pod: &str| cli.worker_of(&format!("fp-{pod}")).expect("show ports names the worker");
    let pods = ["a1", "a2", "a3", "a4"];
    let other = pods.into_iter().find(|p| worker(p) != worker("a1")).expect("pods are spread over workers");
    everything_crosses(&lab, "a1", other);
    everything_crosses(&lab, other, "a1");
    // The uplink is on one worker only: one of the two pods is on the other.
    let uplink = cli.worker_of(UPLINK).expect("show ports names the uplink's worker");
    let away = if worker("a1") == uplink { other } else { "a1" };
    assert_ne!(worker(away), uplink);
    everything_crosses(&lab, away, "b1");
    everything_crosses(&lab, "b2", away);
    let (a, b, ip) = lab.between(away, "b1", Family::V4);
    tcp::transfer(a, b, ip, 100 << 20, 20 << 20).unwrap();
    let flow = udp::Flow::start(a, b, ip, 100, Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let counts = flow.stop().unwrap();
    assert!(counts.sent > 300 && counts.lost() == 0 && counts.wrong == 0, "{counts:?}");
}

/// Nodes whose objects name no VTEP MAC address agree on them all the same.
#[test]
fn vtep_macs_are_derived() {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { outer, announce_vtep_macs: false, ..LabSpec::default() });
        everything_crosses(&lab, "a1", "b1");
        everything_crosses(&lab, "b2", "a2");
    }
}

/// Pods whose manifests name no MAC address are reached all the same.
#[test]
fn pod_macs_are_learned() {
    let lab = Lab::start(LabSpec { announce_pod_macs: false, ..LabSpec::default() });
    // The pod that is asked first has not sent anything.
    everything_crosses(&lab, "a1", "b1");
    everything_crosses(&lab, "b2", "a2");
}

/// Larger frames than 1500 bytes, as far as one frame of the pool holds them.
#[test]
fn another_mtu() {
    let more_config = "[memory]\nframe_size = 4096\n".to_owned();
    let lab = Lab::start(LabSpec { mtu: 3000, more_config, ..LabSpec::default() });
    matrix(&lab);
}
