//! What the host port leaves in the kernel: nothing after a graceful stop, nothing harmful after a kill.

use std::net::SocketAddr;

use serde_json::json;

use super::{NODE_PORT, PORT, lab, must_answer, outside, pod, serve, spec};
use crate::harness::lab::Lab;
use crate::harness::spec::{Encap, Family, LabSpec};
use crate::traffic::named::{self, Conversation, Server};
use crate::traffic::{PATIENCE, eventually, icmp, tcp};

/// Everything of the node's network configuration that may be changed.
fn configuration(lab: &Lab) -> Vec<String> {
    let ns = &lab.node("a").ns;
    let mut all: Vec<String> = ["-4", "-6"]
        .iter()
        .flat_map(|f| [ns.exec("ip", &[f, "rule"]), ns.exec("ip", &[f, "route", "show", "table", "all"])])
        .collect();
    all.push(
        ns.exec("ip", &["-o", "link"])
            .lines()
            .map(|l| l.split(':').nth(1).unwrap_or("").to_owned())
            .collect(),
    );
    all.push(ns.exec("sysctl", &["-a", "-r", r"^net\.ipv[46]\.conf\."]));
    // Order and lifetimes are no part of it.
    all.iter()
        .map(|text| {
            let mut lines: Vec<_> =
                text.lines().map(|l| l.split(" expires ").next().unwrap_or(l).trim_end()).collect();
            lines.sort_unstable();
            lines.join("\n")
        })
        .collect()
}

/// A lab whose node a has a node port, asked by the node itself.
fn in_use(lab: &Lab) {
    serve(lab, |f| vec![pod(lab, "a1", f)]);
    asked(lab);
}

fn asked(lab: &Lab) {
    let node = lab.node("a");
    for family in Family::BOTH {
        must_answer(&node.ns, (node.ip(family), NODE_PORT).into(), "a1", node.ip(family));
        must_answer(&node.ns, (lab.pod("a1").ip(family), PORT).into(), "a1", node.ip(family));
        assert!(icmp::reachable(&node.ns, lab.pod("b1").ip(family)));
    }
}

#[test]
fn graceful_stop_leaves_nothing() {
    let mut lab = Lab::wire(spec(Encap::Vxlan));
    let before = configuration(&lab);
    for round in 0..2 {
        lab.start_daemons();
        let server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
        in_use(&lab);
        assert_ne!(configuration(&lab), before);
        drop(server);
        assert!(lab.node_mut("a").daemon().stop().success());
        assert_eq!(configuration(&lab), before, "round {round}");
        lab.node_mut("a").daemon = None;
    }
}

/// After kill -9 the node's own traffic goes on, and the next daemon takes over what is there.
#[test]
fn killed_and_started_again() {
    let mut lab = lab();
    let _server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
    in_use(&lab);
    let to: SocketAddr = (lab.pod("a1").ip(Family::V4), PORT).into();
    let mut open = Conversation::open(&lab.node("a").ns, to).unwrap();
    open.ask().unwrap();
    for _ in 0..2 {
        lab.node_mut("a").daemon().kill();
        reached(&lab);
        lab.node_mut("a").start_daemon();
        lab.wait_pods(0);
        asked(&lab);
        open.ask().unwrap();
    }
    // What a killed one left, one that is to have no host port removes.
    lab.node_mut("a").daemon().kill();
    lab.spec.more_config = format!("{}[host]\nenabled = false\n", lab.spec.more_config);
    lab.node("a").write_config(&lab.spec, &lab.manifests);
    lab.node_mut("a").start_daemon();
    let ns = &lab.node("a").ns;
    for family in ["-4", "-6"] {
        let rules = ns.exec("ip", &[family, "rule"]);
        assert!(rules.starts_with("0:\tfrom all lookup local") && !rules.contains("6425"), "{rules}");
    }
    assert!(!ns.exec("ip", &["-o", "link"]).contains("fp-host"));
    let before = lab.node("a").cli().drop_count("host_unreachable");
    assert!(icmp::unreachable(&lab.pod("a1").ns, lab.node("a").ip(Family::V4)));
    assert!(lab.node("a").cli().drop_count("host_unreachable") > before);
}

/// Rules are anybody's to delete. The node keeps or gets back its own addresses, and the rest comes back too; at the end
/// the rules are those of the beginning.
#[test]
fn deleted_rules_come_back() {
    let mut lab = Lab::wire(spec(Encap::Vxlan));
    let before = configuration(&lab);
    lab.start_daemons();
    let server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
    in_use(&lab);
    let during = rules(&lab);
    let ns = &lab.node("a").ns;
    let come_back = |what: &str| {
        eventually(what, PATIENCE, || (rules(&lab) == during).then_some(()));
        reached(&lab);
        asked(&lab);
    };
    for family in ["-4", "-6"] {
        let local = ns.exec("ip", &["-d", family, "rule", "show", "pref", "2"]);
        assert!(local.contains("lookup local") && local.contains("proto kernel"), "{local}");
        ns.exec("ip", &[family, "rule", "del", "pref", "2"]);
        come_back("the rule for the node's own addresses is back");
        // As systemd-networkd does: all that are not the kernel's.
        ns.exec("ip", &[family, "rule", "flush", "protocol", "250"]);
        come_back("our rules are back");
        flush(&lab, family);
        come_back("all rules are back");
    }
    // While no daemon runs, too: the next one sees to it.
    lab.node_mut("a").daemon().kill();
    for family in ["-4", "-6"] {
        flush(&lab, family);
    }
    lab.node_mut("a").start_daemon();
    lab.wait_pods(0);
    eventually("the rules are back", PATIENCE, || (rules(&lab) == during).then_some(()));
    reached(&lab);
    asked(&lab);
    drop(server);
    assert!(lab.node_mut("a").daemon().stop().success());
    assert_eq!(configuration(&lab), before);
}

/// A rule that is first stays so: node ports are not had from the node itself then, which is said; all else is.
#[test]
fn the_first_rule_of_somebody_else() {
    let mut lab = Lab::wire(spec(Encap::Vxlan));
    lab.node("a").ns.ip(["rule add pref 1 from 203.0.113.0/24 lookup 100"]);
    let before = configuration(&lab);
    lab.start_daemons();
    let _server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
    serve(&lab, |f| vec![pod(&lab, "a1", f)]);
    let node = lab.node("a");
    let in_the_way = || {
        eventually("the rule is reported", PATIENCE, || {
            node.cli().status().complaints().contains("has one of the first preferences").then_some(())
        });
        let [v4, v6] = rules(&lab);
        assert!(
            v4.starts_with("0:\tfrom all lookup local") && !v4.contains("2:\tfrom all lookup local"),
            "{v4}"
        );
        assert!(v6.starts_with("1:\t") && v6.contains("2:\tfrom all lookup local"), "{v6}");
        reached(&lab);
        for family in Family::BOTH {
            must_answer(&node.ns, (lab.pod("a1").ip(family), PORT).into(), "a1", node.ip(family));
        }
        assert!(named::ask_tcp(&node.ns, (node.ip(Family::V4), NODE_PORT).into()).is_err());
        must_answer(&node.ns, (node.ip(Family::V6), NODE_PORT).into(), "a1", node.ip(Family::V6));
    };
    in_the_way();
    node.ns.ip(["rule del pref 1 from 203.0.113.0/24 lookup 100"]);
    eventually("all is well", PATIENCE, || (node.cli().status().0["degraded"] == json!([])).then_some(()));
    reached(&lab);
    asked(&lab);
    // One that comes later counts as much.
    node.ns.ip(["rule add pref 1 from 203.0.113.0/24 lookup 100"]);
    in_the_way();
    assert!(lab.node_mut("a").daemon().stop().success());
    assert_eq!(configuration(&lab), before);
}

/// The rules of both families.
fn rules(lab: &Lab) -> [String; 2] {
    ["-4", "-6"].map(|family| lab.node("a").ns.exec("ip", &[family, "rule"]))
}

/// Removes all rules that can be removed, and puts the kernel's own for other tables back.
fn flush(lab: &Lab, family: &str) {
    let ns = &lab.node("a").ns;
    ns.exec("ip", &[family, "rule", "flush"]);
    ns.exec("ip", &[family, "rule", "add", "pref", "32766", "lookup", "main"]);
    if family == "-4" {
        ns.exec("ip", &[family, "rule", "add", "pref", "32767", "lookup", "default"]);
    }
}

/// The node itself is: from outside, from itself, and outside from it.
fn reached(lab: &Lab) {
    let node = lab.node("a");
    for family in Family::BOTH {
        tcp::transfer(&lab.outside, &node.ns, node.ip(family), 100_000, 100_000).unwrap();
        tcp::transfer(&node.ns, &node.ns, node.ip(family), 100_000, 100_000).unwrap();
        tcp::transfer(&node.ns, &lab.outside, outside(family), 100_000, 100_000).unwrap();
    }
}

/// The pair is somebody's to delete, and comes back.
#[test]
fn a_deleted_pair_comes_back() {
    let lab = lab();
    let _server = Server::start(&lab.pod("a1").ns, "a1", PORT).unwrap();
    in_use(&lab);
    let node = lab.node("a");
    node.ns.ip(["link del fp-host"]);
    let to: SocketAddr = (lab.pod("a1").ip(Family::V6), PORT).into();
    eventually("the pair is back", PATIENCE * 3, || named::ask_tcp(&node.ns, to).ok());
    asked(&lab);
    // So do its routes.
    for family in ["-4", "-6"] {
        node.ns.exec("ip", &[family, "route", "flush", "table", "64250"]);
    }
    eventually("the routes are back", PATIENCE * 3, || named::ask_tcp(&node.ns, to).ok());
    eventually("all is well", PATIENCE, || (node.cli().status().0["degraded"] == json!([])).then_some(()));
}

/// A pod network that holds the node's own addresses or its link is not taken from the kernel.
#[test]
fn what_is_the_kernels_is_not_taken() {
    let lab = Lab::start(LabSpec::default());
    let node = lab.node("a");
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: greedy}\nspec: {podCIDRs: [192.168.0.0/16]}\nstatus: {addresses: [{type: InternalIP, address: 198.51.100.3}]}\n";
    lab.change(|| lab.manifests.write("greedy.yaml", text));
    eventually("the overlap is reported", PATIENCE, || {
        let said = node.cli().status().complaints();
        said.contains("192.168.0.0/16 is not routed to it").then_some(())
    });
    let routes = node.ns.exec("ip", &["route", "show", "table", "64250"]);
    assert!(!routes.lines().any(|l| l.starts_with("192.168")), "{routes}");
    tcp::transfer(&node.ns, &lab.outside, outside(Family::V4), 100_000, 100_000).unwrap();
}
