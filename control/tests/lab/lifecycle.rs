//! The daemon's life: restart, graceful stop, and several on one machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::forwarding::everything_crosses;
use crate::harness::cli::BINARY;
use crate::harness::lab::Lab;
use crate::harness::spec::{Family, LabSpec, UPLINK};
use crate::traffic::{PATIENCE, eventually, icmp, tcp};

const DEVICES: [&str; 3] = [UPLINK, "fp-a1", "fp-a2"];

/// Offloads of the node's devices and of the pods' ends, as ethtool tells.
fn offloads(lab: &Lab) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for device in DEVICES {
        all.insert(device.to_owned(), lab.node("a").ns.exec("ethtool", &["-k", device]));
    }
    for pod in ["a1", "a2"] {
        all.insert(format!("eth0 of {pod}"), lab.pod(pod).ns.exec("ethtool", &["-k", "eth0"]));
    }
    all
}

fn pins(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Ports that the kernel of node `a` gives to nobody.
fn reserved(lab: &Lab) -> String {
    let list = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    lab.node("a").ns.run(|| std::fs::read_to_string(list)).unwrap().trim_end().to_owned()
}

fn programs_on(lab: &Lab) -> Vec<&'static str> {
    DEVICES.into_iter().filter(|d| !lab.node("a").ns.link_json(d)["xdp"].is_null()).collect()
}

fn loaded_maps() -> Vec<u32> {
    aya::maps::loaded_maps().filter_map(|m| m.ok().map(|m| m.id())).collect()
}

fn loaded_programs() -> Vec<u32> {
    aya::programs::loaded_programs().filter_map(|p| p.ok().map(|p| p.id())).collect()
}

/// SIGTERM: programs, maps, pins, socket gone; offloads as they were; and it can start again.
#[test]
fn graceful_stop_leaves_nothing() {
    for on_failure in ["drop", "pass"] {
        let mut lab = Lab::wire(LabSpec { on_failure, partial_checksums: true, ..LabSpec::default() });
        let before = offloads(&lab);
        lab.node("a").ns.sysctl("ipv4/ip_local_reserved_ports", "8080,41000");
        lab.start_daemons();
        everything_crosses(&lab, "a1", "b1");
        assert_eq!(programs_on(&lab), DEVICES);
        assert_eq!(reserved(&lab), "8080,40000-56383");
        let (maps, programs) = {
            let daemon = lab.node_mut("a").daemon();
            (daemon.bpf_ids("map_id"), daemon.bpf_ids("prog_id"))
        };
        assert!(!maps.is_empty() && !programs.is_empty(), "the daemon holds maps and programs");

        let status = lab.node_mut("a").daemon().stop();
        assert!(status.success(), "{status}");
        assert!(programs_on(&lab).is_empty(), "XDP still on {:?}", programs_on(&lab));
        assert_eq!(pins(&lab.node("a").pin_dir), [""; 0]);
        assert_eq!(offloads(&lab), before);
        assert_eq!(reserved(&lab), "8080,41000");
        assert!(!lab.node("a").state_dir.join("fastpath.sock").exists());
        // The kernel frees them after a grace period.
        eventually("maps and programs are freed", PATIENCE, || {
            let (left_maps, left_programs) = (loaded_maps(), loaded_programs());
            (!maps.iter().any(|id| left_maps.contains(id))
                && !programs.iter().any(|id| left_programs.contains(id)))
            .then_some(())
        });

        lab.node_mut("a").start_daemon();
        lab.wait_pods(0);
        everything_crosses(&lab, "a1", "b1");
        assert!(lab.node_mut("a").daemon().stop().success());
        assert_eq!(offloads(&lab), before, "after the second stop");
    }
}

/// After kill -9 the next daemon takes over; a TCP connection opened before goes on.
#[test]
fn restart_after_kill() {
    let mut lab = Lab::start(LabSpec::default());
    let (a, b, ip) = lab.between("a1", "b1", Family::V4);
    let across = tcp::Stream::start(a, b, ip).unwrap();
    let (a, b, ip) = lab.between("a2", "a1", Family::V6);
    let inside = tcp::Stream::start(a, b, ip).unwrap();
    for round in 0..2 {
        lab.node_mut("a").daemon().kill();
        std::thread::sleep(Duration::from_millis(300));
        lab.node_mut("a").start_daemon();
        lab.wait_pods(0);
        // TCP backs off while nothing answers.
        across.must_progress(&format!("round {round}, across"), PATIENCE * 3);
        inside.must_progress(&format!("round {round}, inside"), PATIENCE * 3);
        everything_crosses(&lab, "a1", "b1");
    }
    across.stop().unwrap();
    inside.stop().unwrap();
    // What the killed ones left is gone with the last one's graceful stop.
    assert_eq!(reserved(&lab), "40000-56383");
    assert!(lab.node_mut("a").daemon().stop().success());
    assert_eq!(reserved(&lab), "");
    assert!(programs_on(&lab).is_empty(), "XDP still on {:?}", programs_on(&lab));
    assert_eq!(pins(&lab.node("a").pin_dir), [""; 0]);
}

/// A killed daemon, never started again, whose settings changed meanwhile from drop to pass.
#[test]
fn settings_change_between_two_lives() {
    let mut lab = Lab::start(LabSpec::default());
    lab.node_mut("a").daemon().kill();
    lab.spec.on_failure = "pass";
    lab.node("a").write_config(&lab.spec, &lab.manifests);
    lab.node_mut("a").start_daemon();
    lab.wait_pods(0);
    everything_crosses(&lab, "a1", "b1");
    lab.node_mut("a").daemon().kill();
    eventually("with pass nothing stays attached to a dead daemon", PATIENCE, || {
        programs_on(&lab).is_empty().then_some(())
    });
}

/// Two daemons do not share a state folder: the second says so and leaves the first alone.
#[test]
fn one_state_folder_one_daemon() {
    let mut lab = Lab::start(LabSpec::default());
    let config = lab.node("a").config().to_str().unwrap().to_owned();
    let mut second = lab
        .node("a")
        .ns
        .command(BINARY.as_str())
        .args(["run", "--config", &config])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut code = None;
    let ended = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        code = second.try_wait().unwrap();
        code.is_some()
    });
    if !ended {
        second.kill().unwrap();
        second.wait().unwrap();
    }
    assert!(code.is_some_and(|c| !c.success()), "the second daemon: {code:?}");
    assert!(lab.node_mut("a").daemon().alive());
    assert!(lab.node("a").cli().status().ready());
    everything_crosses(&lab, "a1", "b1");
}

/// Daemons of other nodes on the same machine do not notice that one goes.
#[test]
fn several_daemons_on_one_machine() {
    let nodes = vec![
        crate::harness::spec::NodeSpec::fastpath("a", 1),
        crate::harness::spec::NodeSpec::fastpath("b", 1),
        crate::harness::spec::NodeSpec::fastpath("c", 1),
    ];
    let mut lab = Lab::start(LabSpec { nodes, ..LabSpec::default() });
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "a1")] {
        everything_crosses(&lab, from, to);
    }
    let (b, c, ip) = lab.between("b1", "c1", Family::V4);
    let stream = tcp::Stream::start(b, c, ip).unwrap();
    assert!(lab.node_mut("a").daemon().stop().success());
    stream.must_progress("without a", PATIENCE);
    assert!(icmp::unreachable(&lab.pod("b1").ns, lab.pod("a1").ip(Family::V4)));
    for node in ["b", "c"] {
        assert!(lab.node(node).cli().status().ready());
    }
    stream.must_progress("still", PATIENCE);
    stream.stop().unwrap();
}
