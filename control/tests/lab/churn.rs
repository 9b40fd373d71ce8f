//! Things that come, go and change under traffic, and many of them.

use std::time::Duration;

use crate::forwarding::everything_crosses;
use crate::harness::lab::Lab;
use crate::harness::ns::NetNs;
use crate::harness::spec::{Encap, Family, LabSpec, NodeSpec, UPLINK, mac_text};
use crate::traffic::capture::{Capture, views};
use crate::traffic::{PATIENCE, eventually, icmp, tcp, udp};

/// A flow between each pair, a datagram a millisecond.
fn flows(lab: &Lab, pairs: &[(&str, &str, Family)]) -> Vec<(String, udp::Flow)> {
    pairs
        .iter()
        .map(|&(from, to, family)| {
            let (a, b, ip) = lab.between(from, to, family);
            // The first packet of a pair may wait for a neighbour to be resolved.
            assert!(icmp::reachable(a, ip));
            let flow = udp::Flow::start(a, b, ip, 200, Duration::from_millis(2)).unwrap();
            (format!("{from} to {to} {family:?}"), flow)
        })
        .collect()
}

fn lost_nothing(flows: Vec<(String, udp::Flow)>) {
    for (what, flow) in flows {
        let counts = flow.stop().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(counts.sent > 200 && counts.lost() == 0 && counts.wrong == 0, "{what}: {counts:?}");
    }
}

/// A few packets of everything.
fn lightly_crosses(lab: &Lab, from: &str, to: &str) {
    for family in Family::BOTH {
        let (a, b, ip) = lab.between(from, to, family);
        let what = format!("{from} to {to} {family:?}");
        assert!(icmp::reachable(a, ip), "{what}");
        udp::exchange(a, b, ip, &[64, 1300]).unwrap_or_else(|e| panic!("{what}: {e}"));
        tcp::transfer(a, b, ip, 50_000, 50_000).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

/// Pods are added and removed, object first or device first, and the others lose no packet.
#[test]
fn pods_come_and_go_without_loss() {
    for cores in [vec![], vec![0, 1]] {
        let mut lab = Lab::start(LabSpec { cores, ..LabSpec::default() });
        let running = flows(
            &lab,
            &[
                ("a1", "b1", Family::V4),
                ("a1", "a2", Family::V6),
                ("b2", "a2", Family::V6),
                ("b1", "b2", Family::V4),
            ],
        );
        let (a, b, ip) = lab.between("a2", "b2", Family::V4);
        let stream = tcp::Stream::start(a, b, ip).unwrap();
        for round in 0..6 {
            let added = lab.add_pod("a");
            // Little at a time: a burst that overruns a ring is no loss of churn.
            lightly_crosses(&lab, "a2", &added);
            lightly_crosses(&lab, &added, "b2");
            stream.must_progress("with the new pod", PATIENCE);
            lab.remove_pod(&added, round % 2 == 1);
        }
        stream.must_progress("at the end", PATIENCE);
        stream.stop().unwrap();
        lost_nothing(running);
        let complaints = lab.node("a").cli().status().complaints();
        assert!(!complaints.contains("fp-a3"), "{complaints}");
    }
}

/// A pod that goes while packets are on their way to it and from it.
#[test]
fn a_busy_pod_is_torn_out() {
    let mut lab = Lab::start(LabSpec::default());
    let others = flows(&lab, &[("a1", "b1", Family::V4), ("a1", "a2", Family::V6)]);
    for _ in 0..3 {
        let added = lab.add_pod("a");
        let (a, b, ip) = lab.between("b2", &added, Family::V4);
        let into = tcp::Stream::start(a, b, ip).unwrap();
        let (a, b, ip) = lab.between(&added, "a2", Family::V6);
        let from = udp::Flow::start(a, b, ip, 1000, Duration::from_millis(1)).unwrap();
        into.must_progress("before", PATIENCE);
        from.must_progress("before", 50);
        lab.remove_pod(&added, true);
        drop(into);
        drop(from.stop());
    }
    lost_nothing(others);
    assert!(lab.node("a").cli().status().ready());
}

/// The object may come before the device: the endpoint is attached when the device appears.
#[test]
fn the_device_may_come_later() {
    let mut lab = Lab::start(LabSpec::default());
    let added = lab.add_pod("a");
    let text = lab.pod_manifest(lab.pod(&added));
    lab.remove_pod(&added, false);
    lab.manifests.write(&format!("pod-{added}.yaml"), &text);
    eventually("the missing device is reported", PATIENCE * 2, || {
        lab.node("a").cli().status().complaints().contains("fp-a3").then_some(())
    });
    let again = lab.add_pod("a");
    assert_eq!(again, added);
    everything_crosses(&lab, &again, "b1");
    eventually("nothing is degraded", PATIENCE * 2, || {
        (!lab.node("a").cli().status().complaints().contains("fp-a3")).then_some(())
    });
}

/// Another MAC address, or another pod behind the device: the port goes on, and nobody loses a packet.
#[test]
fn what_is_behind_a_device_changes_without_loss() {
    let mut lab = Lab::start(LabSpec::default());
    let running =
        flows(&lab, &[("a1", "b1", Family::V4), ("b2", "a2", Family::V6), ("a2", "a1", Family::V4)]);
    let text = lab.pod_manifest(lab.pod("a2"));
    let mac = mac_text(lab.pod("a2").mac());
    let without = text.replace(&format!("\n    fastpath.io/mac: \"{mac}\""), "");
    assert_ne!(text, without);
    lab.manifests.write("pod-a2.yaml", &without);
    lab.manifests.write("other.yaml", &text.replace("name: a2\n  namespace", "name: other\n  namespace"));
    lab.manifests.remove("pod-a2.yaml");
    eventually("the device is the other pod's", PATIENCE * 2, || {
        let endpoints = lab.node("a").cli().json(&["show", "endpoints"]).to_string();
        (endpoints.contains("\"other\"") && !endpoints.contains("\"a2\"")).then_some(())
    });
    lab.manifests.write("pod-a2.yaml", &without);
    lab.manifests.remove("other.yaml");
    eventually("and the first one's again, of unknown MAC address", PATIENCE * 2, || {
        lab.node("a").cli().endpoint_ready("10.77.1.12").then_some(())
    });
    eventually("which is learned", PATIENCE * 2, || {
        let endpoints = lab.node("a").cli().json(&["show", "endpoints"]).to_string();
        (endpoints.contains("\"a2\"") && endpoints.contains(&mac)).then_some(())
    });
    for (what, flow) in &running {
        flow.must_progress(what, 150);
    }
    lost_nothing(running);
    assert_eq!(lab.node("a").detached("fp-a2"), 0);
    // The other way round: a device that is attached anew is told so.
    lab.remove_pod("a2", false);
    assert_eq!(lab.node("a").detached("fp-a2"), 1);
}

/// The uplink is down for a while, or the default route that chose it is gone: it stays attached.
#[test]
fn an_uplink_is_not_let_go() {
    for uplink_by_route in [false, true] {
        let lab = Lab::start(LabSpec { uplink_by_route, ..LabSpec::default() });
        let node = lab.node("a");
        everything_crosses(&lab, "a1", "b1");
        let complains = |of: &str| {
            eventually(&format!("status tells: {of}"), PATIENCE * 2, || {
                node.cli().status().complaints().contains(of).then_some(())
            });
        };
        let routes = || node.ns.exec("sh", &["-c", "ip -4 route show default; ip -6 route show default"]);
        if uplink_by_route {
            for family in ["-4", "-6"] {
                node.ns.exec("ip", &[family, "route", "del", "default"]);
            }
            assert_eq!(routes(), "");
            complains("there is no default route");
            // Nothing that is on the link needs it.
            everything_crosses(&lab, "a1", "b1");
        } else {
            node.ns.ip([format!("link set {UPLINK} down")]);
            complains("is down");
            assert!(icmp::unreachable(&lab.pod("a1").ns, lab.pod("b1").ip(Family::V4)));
            everything_crosses(&lab, "a1", "a2");
            node.ns.ip([format!("link set {UPLINK} up")]);
            // The kernel forgets IPv6 addresses with the link.
            let address = node.ip(Family::V6);
            node.ns.exec("ip", &["addr", "replace", &format!("{address}/64"), "dev", UPLINK, "nodad"]);
        }
        crate::harness::node::default_routes(&node.ns, 0);
        eventually("nothing is degraded", PATIENCE * 2, || {
            (!node.cli().status().complaints().contains("uplink")).then_some(())
        });
        for family in Family::BOTH {
            let (a, _, ip) = lab.between("a1", "b1", family);
            eventually("the other node is reached", PATIENCE * 2, || icmp::reachable(a, ip).then_some(()));
        }
        everything_crosses(&lab, "a1", "b1");
        assert_eq!(node.detached(UPLINK), 0);
    }
}

/// An annotation that names something else than a veth takes nothing from the node.
#[test]
fn only_a_veth_is_a_pods_device() {
    let lab = Lab::start(LabSpec::default());
    let node = lab.node("a");
    for (kind, device, how) in [("vxlan", "nic0", "id 9 dstport 9999"), ("bridge", "br7", "")] {
        node.ns.ip([format!("link add {device} type {kind} {how}"), format!("link set {device} up")]);
        let wrong = lab
            .pod_manifest(lab.pod("a1"))
            .replace("name: a1\n  namespace", &format!("name: {device}\n  namespace"))
            .replace("interface: fp-a1", &format!("interface: {device}"))
            .replace(".11\"", ".99\"")
            .replace("::11\"", "::99\"");
        lab.manifests.write("wrong.yaml", &wrong);
        let said = format!("'{device}' is a {kind}, not a veth");
        eventually(&said, PATIENCE * 2, || node.cli().status().complaints().contains(&said).then_some(()));
        assert!(node.ns.link_json(device)["xdp"].is_null(), "{device} has been taken");
        assert!(node.cli().status().ready(), "one wrong pod keeps nobody waiting");
        let endpoints = node.cli().json(&["show", "endpoints"]).to_string();
        assert!(endpoints.contains(&said), "{endpoints}");
    }
    everything_crosses(&lab, "a1", "b1");
}

/// 100 pods on one node: pairs among them, and with the other node, sampled.
#[test]
fn a_hundred_pods() {
    let nodes = vec![NodeSpec::fastpath("a", 100), NodeSpec::fastpath("b", 2)];
    let lab = Lab::start(LabSpec { nodes, cores: vec![0, 1], ..LabSpec::default() });
    // Every pod sends to and hears from a few others: 7, 31 and 59 steps away on the ring of all pods.
    let count = lab.pods.len();
    for (index, from) in lab.pods.iter().enumerate() {
        for (step, family) in [(7, Family::V4), (31, Family::V6), (59, Family::V4)] {
            let to = &lab.pods[(index + step) % count];
            assert!(icmp::reachable(&from.ns, to.ip(family)), "{} to {} {family:?}", from.name, to.name);
        }
        let to = &lab.pods[(index + 43) % count];
        let family = if index % 2 == 0 { Family::V4 } else { Family::V6 };
        let what = format!("{} to {} {family:?}", from.name, to.name);
        udp::exchange(&from.ns, &to.ns, to.ip(family), &[64, 1300]).unwrap_or_else(|e| panic!("{what}: {e}"));
        if index % 5 == 0 {
            tcp::transfer(&from.ns, &to.ns, to.ip(family), 200_000, 200_000)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
    // Twenty streams at the same time.
    let streams: Vec<_> = (0..20)
        .map(|i| {
            let (from, to) = (&lab.pods[i], &lab.pods[count - 1 - i]);
            tcp::Stream::start(&from.ns, &to.ns, to.ip(Family::V4)).unwrap()
        })
        .collect();
    for stream in &streams {
        stream.must_progress("one of twenty", PATIENCE * 2);
    }
    for stream in streams {
        stream.stop().unwrap();
    }
}

/// The other node changes its MAC address: the kernel learns it, and so does the dataplane.
#[test]
fn a_next_hop_changes_its_mac() {
    for outer in Family::BOTH {
        let lab = Lab::start(LabSpec { outer, ..LabSpec::default() });
        everything_crosses(&lab, "a1", "b1");
        let new = [0x02, 0xaa, 0, 0, 0, 0x42];
        // A neighbour entry may not be overwritten within a second of its last update (`locktime`).
        std::thread::sleep(Duration::from_millis(1200));
        // The kernel of b announces it (arp_notify, ndisc_notify).
        lab.node("b").ns.ip([format!("link set {UPLINK} address {}", mac_text(new))]);
        // A packet or two may be lost on the way, and from some moment on both sides use it and nothing else.
        eventually("every packet is addressed to and from the new MAC", PATIENCE * 4, || {
            let capture = Capture::start(&lab.fabric, "to-b").unwrap();
            let (a, _, ip) = lab.between("a1", "b1", Family::V4);
            let answered = icmp::reachable(a, ip);
            let seen = capture.stop();
            let mut tunnelled = views(&seen).filter(|(_, v)| v.vxlan().is_some()).peekable();
            let all = tunnelled.peek().is_some()
                && tunnelled.all(|(outgoing, v)| new == if outgoing { v.macs.0 } else { v.macs.1 });
            (answered && all).then_some(())
        });
        everything_crosses(&lab, "a1", "b1");
        everything_crosses(&lab, "b2", "a2");
    }
}

/// The way to the other node's subnet changes from one router to another.
#[test]
fn a_route_changes() {
    let nodes = vec![NodeSpec::fastpath("a", 1), NodeSpec::fastpath("b", 1).in_other_subnet()];
    let lab = Lab::start(LabSpec { nodes, encap: Encap::CrossSubnet, ..LabSpec::default() });
    // A second router between the subnets.
    let router = NetNs::create(&format!("{}2", lab.fabric.name()));
    for subnet in [0, 1] {
        crate::harness::node::plug(
            &lab.spec,
            &router,
            &format!("r{subnet}"),
            &lab.fabric,
            &format!("to-r{subnet}"),
            subnet,
            253,
        );
    }
    router.sysctl("ipv4/ip_forward", "1");
    everything_crosses(&lab, "a1", "b1");
    let carried = || router.link_counter("r0", "rx", "packets");
    let before = carried();
    everything_crosses(&lab, "a1", "b1");
    assert!(carried() < before + 50, "the second router carries nothing yet");
    lab.node("a").ns.exec("ip", &["route", "replace", "192.168.78.0/24", "via", "192.168.77.253"]);
    let before = carried();
    // The first packet of all waits for nobody to be resolved.
    let asks = || {
        let (a, _, ip) = lab.between("a1", "b1", Family::V4);
        icmp::reachable(a, ip)
    };
    eventually("the second router is asked", PATIENCE * 2, || {
        (asks() && carried() > before + 5).then_some(())
    });
    everything_crosses(&lab, "a1", "b1");
    assert!(carried() > before + 100, "the second router carries it");
    lab.node("a").ns.exec("ip", &["route", "del", "192.168.78.0/24"]);
    eventually("the second router is left", PATIENCE * 2, || {
        let before = carried();
        (asks() && asks() && carried() == before).then_some(())
    });
    everything_crosses(&lab, "a1", "b1");
}
