//! The node's own traffic goes through the kernel untouched, whatever becomes of the daemon; what
//! becomes of the pods' is said by `on_failure`.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::forwarding::everything_crosses;
use crate::harness::lab::Lab;
use crate::harness::spec::{Family, GATEWAY_MAC, LabSpec, OUTSIDE, STALE_AFTER_MS, UPLINK, underlay};
use crate::traffic::capture::{Capture, views};
use crate::traffic::frame::{Addresses, VXLAN_PORT};
use crate::traffic::{PATIENCE, eventually, icmp, tagged, tcp, udp};

const VLAN: u16 = 7;

/// Connections of the node itself, open through everything that happens.
struct NodeTraffic {
    streams: Vec<(String, tcp::Stream)>,
    flows: Vec<(String, udp::Flow)>,
    tagged: Vec<(String, tagged::Flow)>,
}

/// An address that no node, pod or route of the lab knows.
fn vlan_address(family: Family) -> std::net::IpAddr {
    match family {
        Family::V4 => [10, 7, 0, 1].into(),
        Family::V6 => "fd07::1".parse().unwrap(),
    }
}

impl NodeTraffic {
    fn start(lab: &Lab) -> Self {
        let (node, outside) = (&lab.node("a").ns, &lab.outside);
        let (mut streams, mut flows, mut tagged) = (Vec::new(), Vec::new(), Vec::new());
        for family in Family::BOTH {
            let here = lab.node("a").ip(family);
            let there = underlay(0, OUTSIDE, family);
            let pace = Duration::from_millis(5);
            streams.push((format!("{family:?} TCP in"), tcp::Stream::start(outside, node, here).unwrap()));
            streams.push((format!("{family:?} TCP out"), tcp::Stream::start(node, outside, there).unwrap()));
            flows
                .push((format!("{family:?} UDP"), udp::Flow::start(outside, node, here, 300, pace).unwrap()));
            // In a VLAN the same addresses mean other machines: also those of our pods.
            for (what, to) in [("unrelated", vlan_address(family)), ("a pod's", lab.pod("a1").ip(family))] {
                let from = underlay(1, OUTSIDE, family);
                let macs = (outside.mac(UPLINK), node.mac(UPLINK));
                let inbound = Addresses { from_mac: macs.0, to_mac: macs.1, from, to };
                let outbound = Addresses { from_mac: macs.1, to_mac: macs.0, from: to, to: from };
                let start = |ends, addresses| tagged::Flow::start(ends, UPLINK, VLAN, addresses).unwrap();
                tagged.push((format!("{family:?} VLAN in, {what} address"), start((outside, node), inbound)));
                tagged
                    .push((format!("{family:?} VLAN out, {what} address"), start((node, outside), outbound)));
            }
        }
        NodeTraffic { streams, flows, tagged }
    }

    /// Everything open goes on, and everything new works: connections, neighbours, datagrams, the VLAN.
    fn must_flow(&self, lab: &Lab, when: &str) {
        for (what, stream) in &self.streams {
            stream.must_progress(&format!("{when}: {what}"), PATIENCE);
        }
        for (what, flow) in &self.flows {
            flow.must_progress(&format!("{when}: {what}"), 20);
        }
        for (what, flow) in &self.tagged {
            flow.must_progress(&format!("{when}: {what}"), 20);
        }
        let (node, outside) = (&lab.node("a").ns, &lab.outside);
        for ns in [node, outside] {
            // ARP and NDP start again from nothing.
            ns.exec("ip", &["neigh", "flush", "all"]);
        }
        for family in Family::BOTH {
            let (here, there) = (lab.node("a").ip(family), underlay(0, OUTSIDE, family));
            for (from, to, address) in [(outside, node, here), (node, outside, there)] {
                assert!(icmp::reachable(from, address), "{when}: ping {address}");
                udp::exchange(from, to, address, &[8, 1400])
                    .unwrap_or_else(|e| panic!("{when}: UDP {address}: {e}"));
                tcp::transfer(from, to, address, 200_000, 200_000)
                    .unwrap_or_else(|e| panic!("{when}: TCP {address}: {e}"));
            }
        }
    }

    /// Ends all of it: nothing was lost on the way.
    fn finish(self) {
        for (what, stream) in self.streams {
            stream.stop().unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        for (what, flow) in self.flows {
            let counts = flow.stop().unwrap_or_else(|e| panic!("{what}: {e}"));
            // Flushing neighbours may cost the datagrams that wait for the answer.
            assert!(counts.wrong == 0 && counts.lost() * 100 <= counts.sent, "{what}: {counts:?}");
        }
    }
}

/// What reaches the kernel of node `a` while pods talk: frames of pod `a1`, and tunnel packets.
fn passed_to_kernel(lab: &Lab) -> (usize, usize) {
    let pod_mac = lab.pod("a1").mac();
    let pod_side = Capture::start(&lab.node("a").ns, "fp-a1").unwrap();
    let wire_side = Capture::start(&lab.node("a").ns, UPLINK).unwrap();
    for family in Family::BOTH {
        for (from, to) in [("a1", "a2"), ("a1", "b1"), ("b1", "a1")] {
            let (ns, _, ip) = lab.between(from, to, family);
            assert!(icmp::unreachable(ns, ip), "{from} still reaches {to} ({family:?})");
        }
    }
    let from_pod = views(&pod_side.stop()).filter(|(outgoing, v)| !outgoing && v.macs.1 == pod_mac).count();
    let tunnelled = views(&wire_side.stop())
        .filter(|(outgoing, v)| !outgoing && v.ports.is_some_and(|(_, _, to)| to == VXLAN_PORT))
        .count();
    (from_pod, tunnelled)
}

fn survives(on_failure: &'static str) {
    let mut lab = Lab::wire(LabSpec { on_failure, ..LabSpec::default() });
    let traffic = NodeTraffic::start(&lab);
    traffic.must_flow(&lab, "before the daemon");
    lab.start_daemons();
    traffic.must_flow(&lab, "attached");
    everything_crosses(&lab, "a1", "b1");
    everything_crosses(&lab, "a1", "a2");
    pods_know_their_gateway(&lab);

    let check = |lab: &Lab, when: &str| {
        traffic.must_flow(lab, when);
        let (from_pod, tunnelled) = passed_to_kernel(lab);
        if on_failure == "drop" {
            assert_eq!((from_pod, tunnelled), (0, 0), "{when}: pod packets passed to the kernel");
        } else {
            assert!(from_pod > 0, "{when}: pod packets pass to the kernel");
        }
        traffic.must_flow(lab, when);
    };

    lab.node_mut("a").daemon().signal(Signal::SIGSTOP);
    traffic.must_flow(&lab, "just stopped");
    std::thread::sleep(Duration::from_millis(STALE_AFTER_MS * 2));
    check(&lab, "stopped");
    lab.node_mut("a").daemon().signal(Signal::SIGCONT);
    pods_recover(&lab, "continued");
    traffic.must_flow(&lab, "continued");
    // What was dropped meanwhile has a name: by program where the ports are, as one sum where the drops are.
    let cli = lab.node("a").cli();
    let stale = ["endpoint", "uplink"].map(|program| cli.xdp_count(program, "stale_dropped"));
    assert_eq!(cli.drop_count("xdp_stale_dropped"), stale.iter().sum::<u64>(), "{stale:?}");
    assert_eq!(stale.map(|n| n > 0), [on_failure == "drop"; 2], "{stale:?}");

    lab.node_mut("a").daemon().kill();
    traffic.must_flow(&lab, "just killed");
    std::thread::sleep(Duration::from_millis(STALE_AFTER_MS * 2));
    check(&lab, "killed");
    lab.node_mut("a").start_daemon();
    pods_recover(&lab, "restarted");
    everything_crosses(&lab, "a1", "b1");
    traffic.must_flow(&lab, "restarted");

    assert!(lab.node_mut("a").daemon().stop().success());
    traffic.must_flow(&lab, "stopped for good");
    traffic.finish();
}

fn pods_recover(lab: &Lab, when: &str) {
    for family in Family::BOTH {
        for (from, to) in [("a1", "a2"), ("a1", "b1"), ("b1", "a1")] {
            let (ns, _, ip) = lab.between(from, to, family);
            eventually(&format!("{when}: {from} reaches {to}"), PATIENCE * 2, || {
                icmp::reachable(ns, ip).then_some(())
            });
        }
    }
}

/// Pods go on sending to their gateway, whether it answers or not.
fn pods_know_their_gateway(lab: &Lab) {
    for pod in ["a1", "a2"] {
        lab.pod(pod).ns.ip([format!(
            "neigh replace 169.254.1.1 lladdr {} dev eth0 nud permanent",
            crate::harness::spec::mac_text(GATEWAY_MAC)
        )]);
    }
}

/// After kill -9 a daemon that does not know its pods yet, or not all of them, opens nothing.
#[test]
fn late_manifests_open_nothing() {
    let mut lab = Lab::start(LabSpec::default());
    everything_crosses(&lab, "a1", "b1");
    pods_know_their_gateway(&lab);
    lab.node_mut("a").daemon().kill();
    let all = lab.manifests.take_all();
    lab.node_mut("a").spawn_daemon();
    let complains = |lab: &Lab, of: &str| {
        eventually(&format!("status tells of {of}"), PATIENCE * 4, || {
            lab.node("a").cli().try_status().filter(|s| s.complaints().contains(of))
        })
    };
    assert!(!complains(&lab, "no Node object").ready());
    std::thread::sleep(Duration::from_millis(STALE_AFTER_MS * 2));
    assert_eq!(passed_to_kernel(&lab), (0, 0), "an empty folder");

    // The node is there, a pod cannot be read: it and the other one are as they were.
    for (file, text) in &all {
        match file.as_str() {
            "pod-a1.yaml" => {
                lab.manifests.write(file, &text.replace("ip: \"10.77.1.11\"", "ip: \"10.77.1.311\""))
            }
            "pod-a2.yaml" => {}
            _ => lab.manifests.write(file, text),
        }
    }
    complains(&lab, "pod-a1.yaml");
    eventually("ready without its pods", PATIENCE, || lab.node("a").cli().status().ready().then_some(()));
    std::thread::sleep(Duration::from_millis(STALE_AFTER_MS));
    assert_eq!(passed_to_kernel(&lab).0, 0, "a pod's manifest is wrong");

    for (file, text) in &all {
        lab.manifests.write(file, text);
    }
    lab.wait_pods(0);
    pods_recover(&lab, "with all manifests");
    everything_crosses(&lab, "a1", "b1");
}

/// The default: no packet of a pod passes while nobody looks at it.
#[test]
fn on_failure_drop() {
    survives("drop");
}

/// The other way: pod packets go to the kernel.
#[test]
fn on_failure_pass() {
    survives("pass");
}

/// UDP to the VXLAN port of another address of the node is not ours, nor is another port of the tunnel's.
#[test]
fn other_vxlan_is_not_ours() {
    let lab = Lab::start(LabSpec::default());
    let node = &lab.node("a").ns;
    node.ip([format!("addr add 192.168.77.61/24 dev {UPLINK}")]);
    // Not on every address: the answer would leave from the first one.
    let echo = udp::Echo::start(node, ([192, 168, 77, 61], VXLAN_PORT).into()).unwrap();
    udp::exchange_with(&lab.outside, ([192, 168, 77, 61], echo.port()).into(), &[64, 900]).unwrap();
    udp::exchange(&lab.outside, node, lab.node("a").ip(Family::V4), &[64, 900]).unwrap();
}
