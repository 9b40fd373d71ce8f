//! The command line: what a script can rely on.

use serde_json::Value;

use crate::forwarding::everything_crosses;
use crate::harness::cli::{TOPICS, fastpath, rows};
use crate::harness::lab::Lab;
use crate::harness::spec::{Family, LabSpec, UPLINK};
use crate::traffic::{PATIENCE, eventually};

/// A policy on pod `a1` that allows everything, and a service of it.
const ENFORCED: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, namespace: default}
spec: {podSelector: {matchLabels: {app: a1}}, ingress: [{}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
";

/// Every topic, as a table and as JSON, while traffic has passed.
#[test]
fn every_topic_is_shown() {
    let lab = Lab::start(LabSpec::default());
    lab.manifests.write("enforced.yaml", ENFORCED);
    eventually("the policy is in force", PATIENCE, || {
        let policies = lab.node("a").cli().json(&["show", "policies"]);
        (!rows(&policies).is_empty()).then_some(())
    });
    everything_crosses(&lab, "a1", "b1");
    everything_crosses(&lab, "a1", "a2");
    let cli = lab.node("a").cli();
    for topic in TOPICS {
        let table = cli.run(&["show", topic]);
        assert_eq!(table.code, 0, "{topic}: {}", table.stderr);
        // A header; and rows, unless there may be none: drops that did not happen are not in the table.
        let least = if topic == "drops" { 1 } else { 2 };
        assert!(table.stdout.lines().count() >= least, "{topic}: {}", table.stdout);
        let same = cli.run(&["show", topic, "-o", "table"]);
        assert_eq!(same.code, 0, "{topic}: {}", same.stderr);
        let json = cli.json(&["show", topic]);
        assert!(!rows(&json).is_empty(), "{topic}: {json}");
        assert!(rows(&json).iter().all(Value::is_object), "{topic}: {json}");
    }
    let named = |topic: &str, wanted: &str| {
        let json = cli.json(&["show", topic]).to_string();
        assert!(json.contains(wanted), "show {topic} names {wanted}: {json}");
    };
    named("endpoints", "a1");
    named("endpoints", "10.77.1.11");
    named("endpoints", "fd00:77:1::11");
    named("nodes", "node-b");
    named("nodes", "192.168.77.2");
    named("flows", "10.77.2.11");
    named("routes", "10.77.2.0/24");
    named("neighbors", "192.168.77.2");
    named("policies", "default/open");
    named("policies", "enforced.yaml:4");
    named("services", "default/web");
    named("services", "10.96.0.1");
    named("ports", UPLINK);
    named("ports", "fp-a2");
    for node in ["parse", "decap", "flow", "rewrite", "encap", "tx"] {
        named("runtime", node);
    }
}

/// `status`: ready, generation, workers, modes, as table and JSON.
#[test]
fn status_says_how_it_is() {
    let lab = Lab::start(LabSpec::default());
    let cli = lab.node("a").cli();
    let status = cli.status();
    assert!(status.ready() && status.generation() > 0, "{status:?}");
    let text = status.0.to_string();
    for wanted in ["node-a", "worker", "mode", UPLINK] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let table = cli.run(&["status"]);
    assert_eq!(table.code, 0);
    assert!(table.stdout.contains("node-a") && table.stdout.contains(UPLINK), "{}", table.stdout);
}

/// Drops are listed with their help, those that never happened too or not, but never without a name.
#[test]
fn drops_have_names_and_help() {
    let lab = Lab::start(LabSpec::default());
    let pod = lab.pod("a1");
    let injector = crate::traffic::capture::Injector::open(&pod.ns, "eth0").unwrap();
    let frame = crate::traffic::frame::udp(
        crate::traffic::frame::Addresses {
            from_mac: pod.mac(),
            to_mac: crate::harness::spec::GATEWAY_MAC,
            from: lab.pod("a2").ip(Family::V4),
            to: lab.pod("b1").ip(Family::V4),
        },
        (1, 2),
        b"spoofed",
    );
    injector.send(&frame).unwrap();
    let cli = lab.node("a").cli();
    crate::traffic::eventually("source_not_own is counted", crate::traffic::PATIENCE, || {
        (cli.drop_count("source_not_own") == 1).then_some(())
    });
    let table = cli.run(&["show", "drops"]).stdout;
    let line = table.lines().find(|l| l.contains("source_not_own")).unwrap_or_else(|| panic!("{table}"));
    assert!(line.contains("not its own"), "help beside the name: {line}");
}

/// Without a daemon: a message on stderr that says where it looked, nothing on stdout, a code of its own.
#[test]
fn no_daemon_is_an_error() {
    for args in [vec!["status"], vec!["show", "ports"], vec!["status", "-o", "json"]] {
        let mut all = vec!["--state-dir", "/nonexistent/fastpath"];
        all.extend(args);
        let out = fastpath(&all);
        assert_eq!(out.code, 3, "{out:?}");
        assert!(out.stdout.is_empty(), "{out:?}");
        assert!(out.stderr.contains("/nonexistent/fastpath"), "{out:?}");
        assert!(!out.stderr.contains("panicked"), "{out:?}");
    }
}

/// Wrong usage is told apart from failure, help teaches, the version is the crate's.
#[test]
fn usage_help_and_version() {
    for args in [&["show", "nonsense"][..], &["nonsense"], &["status", "-o", "xml"]] {
        let out = fastpath(args);
        assert_eq!(out.code, 2, "{args:?}: {out:?}");
        assert!(out.stderr.contains("--help"), "{args:?}: {out:?}");
    }
    let version = fastpath(&["version"]);
    assert_eq!(version.code, 0);
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    for args in [&["--help"][..], &["run", "--help"], &["show", "--help"], &["config", "check", "--help"]] {
        let out = fastpath(args);
        assert!(out.code == 0 && out.stdout.lines().count() > 5, "{args:?}: {out:?}");
    }
    let help = fastpath(&["show", "--help"]).stdout;
    for topic in TOPICS {
        assert!(help.contains(topic), "{topic}: {help}");
    }
}

/// `config check`: silent success, or file, line, key and what is allowed.
#[test]
fn config_check() {
    let lab = Lab::wire(LabSpec::default());
    let good = lab.node("a").config().to_str().unwrap().to_owned();
    let out = fastpath(&["config", "check", &good]);
    assert_eq!(out.code, 0, "{out:?}");

    let text = std::fs::read_to_string(&good).unwrap();
    let bad = lab.root().join("bad.toml");
    let path = bad.to_str().unwrap();
    for (from, to, wanted) in [
        ("on_failure = \"drop\"", "on_failure = \"explode\"", vec!["on_failure", "explode", "drop", "pass"]),
        ("vni = 4096", "vni = 16777216", vec!["vni"]),
        ("vni = 4096", "vni = \"many\"", vec!["vni"]),
        ("vni = 4096", "vnii = 4096", vec!["vnii"]),
        ("[overlay]", "[overlays]", vec!["overlays"]),
        ("encap = \"vxlan\"", "encap = vxlan", vec![]),
    ] {
        assert!(text.contains(from));
        let changed = text.replace(from, to);
        let line = changed.lines().position(|l| l.contains(to)).unwrap() + 1;
        std::fs::write(&bad, &changed).unwrap();
        let out = fastpath(&["config", "check", path]);
        assert_eq!(out.code, 1, "{to}: {out:?}");
        assert!(out.stderr.contains(&format!("{path}:{line}")), "{to} is in line {line}: {out:?}");
        for word in wanted {
            assert!(out.stderr.contains(word), "{to}: {word} is named: {out:?}");
        }
        let run = lab
            .node("a")
            .ns
            .command(crate::harness::cli::BINARY.as_str())
            .args(["run", "--config", path])
            .output()
            .unwrap();
        assert!(!run.status.success(), "{to}: the daemon does not start");
    }
    let out = fastpath(&["config", "check", "/nonexistent/fastpath.toml"]);
    assert!(out.code > 0 && out.stderr.contains("/nonexistent/fastpath.toml"), "{out:?}");
}
