//! What `show` and `explain` tell of policies and services is what the packets got.

use std::io;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::cli::rows;
use crate::harness::lab::Lab;
use crate::harness::object;
use crate::harness::object::Condition::{NotReady, Ready};
use crate::harness::spec::{Family, LabSpec};
use crate::service::{self, TARGET, cluster_ip, serve, servers};
use crate::traffic::named::{self, Asker, Server};
use crate::traffic::{PATIENCE, SILENCE, icmp};

const FILE: &str = "policy.yaml";
const PORT: u16 = 9000;

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

/// The row of `show policies` on a node for a rule of a policy, or for the isolation by it.
fn row(lab: &Lab, node: &str, policy: &str, rule: Option<u64>) -> Value {
    let all = rows(&lab.node(node).cli().json(&["show", "policies"]));
    let wanted = |r: &&Value| r["policy"] == policy && r["rule"].as_u64() == rule;
    all.iter().find(wanted).cloned().unwrap_or_else(|| panic!("{policy} {rule:?} in {all:?}"))
}

/// Packets, bytes and flows of a row.
fn counts(row: &Value) -> [u64; 3] {
    ["packets", "bytes", "flows"].map(|key| row[key].as_u64().unwrap_or_else(|| panic!("{key} in {row}")))
}

/// The line of the file that `FILE:LINE` names.
fn cited(lab: &Lab, origin: &Value) -> String {
    let origin = origin.as_str().expect("an origin is text");
    let (file, line) = origin.rsplit_once(':').expect("FILE:LINE");
    assert_eq!(file, lab.manifests.dir().join(FILE).to_str().unwrap());
    let text = std::fs::read_to_string(file).unwrap();
    let line: usize = line.parse().unwrap();
    text.lines().nth(line - 1).unwrap_or_default().to_owned()
}

/// UDP from a1 by the first rule, anything from a2 by the second.
fn two_rules() -> Value {
    let spec = json!({
        "podSelector": app("b1"),
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": app("a1")}], "ports": [{"protocol": "UDP", "port": PORT}]},
            {"from": [{"podSelector": app("a2")}]},
        ],
    });
    object::policy("default", "clients", &spec)
}

/// Packets, bytes and new flows of each rule, exactly; denied ones count for the isolation, and name it.
#[test]
fn rules_count_what_they_allow() {
    for cores in [vec![], vec![0, 1]] {
        let lab = Lab::start(LabSpec { cores, ..LabSpec::default() });
        let _server = Server::start(&lab.pod("b1").ns, "b1", PORT).unwrap();
        lab.apply(FILE, &[two_rules()]);
        let rule = |n: u64| counts(&row(&lab, "b", "default/clients", Some(n)));
        let mut want = [0; 3];
        for family in Family::BOTH {
            let to = SocketAddr::new(lab.pod("b1").ip(family), PORT);
            let header = if family == Family::V4 { 28 } else { 48 };
            assert!(icmp::reachable(&lab.pod("a2").ns, to.ip()), "neighbours are resolved");
            for _ in 0..3 {
                let asker = Asker::open(&lab.pod("a1").ns, to).unwrap();
                for _ in 0..5 {
                    let answer = asker.ask(PATIENCE).unwrap();
                    let length = format!("{} {}\n", answer.name, answer.client).len() as u64;
                    want[0] += 2;
                    want[1] += header + 4 + header + length;
                }
                want[2] += 1;
            }
            assert_eq!(rule(0), want, "{family:?}");
        }
        // The other rule has its own.
        let before = rule(1);
        assert!(before[0] > 0, "the echo requests were its");
        for _ in 0..4 {
            named::ask_tcp(&lab.pod("a2").ns, (lab.pod("b1").ip(Family::V4), PORT).into()).unwrap();
        }
        let after = rule(1);
        assert_eq!(after[2], before[2] + 4);
        assert!(after[0] >= before[0] + 4 * 6 && after[1] > before[1], "{before:?} {after:?}");
        assert_eq!(rule(0), want, "nothing of it is the first rule's");
        assert!(cited(&lab, &row(&lab, "b", "default/clients", Some(1))["origin"]).trim().starts_with('-'));

        // Denied: nothing allows a1 by TCP, or b2 at all.
        let isolation = || row(&lab, "b", "default/clients", None);
        assert_eq!(isolation()["verdict"], "deny");
        assert_eq!(isolation()["direction"], "ingress");
        let before = counts(&isolation());
        let drops = lab.node("b").cli().drop_count("policy_denied_ingress");
        for (pod, family) in [("a1", Family::V4), ("b2", Family::V4), ("a1", Family::V6)] {
            let ns = &lab.pod(pod).ns;
            let to = SocketAddr::new(lab.pod("b1").ip(family), PORT);
            let error = ns.run(|| std::net::TcpStream::connect_timeout(&to, SILENCE)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        let after = counts(&isolation());
        assert_eq!((after[0], after[2]), (before[0] + 3, before[2] + 3), "one SYN each");
        assert_eq!(lab.node("b").cli().drop_count("policy_denied_ingress"), drops + 3);
        assert!(cited(&lab, &isolation()["origin"]).contains("apiVersion"));
        let all = rows(&lab.node("b").cli().json(&["show", "drops"]));
        let denied = all.iter().find(|r| r["reason"] == "policy_denied_ingress").expect("a row of drops");
        let text = denied.to_string();
        assert!(text.contains("isolated: no policy allows") && text.contains("default/clients"), "{text}");
        assert!(lab.node("b").cli().run(&["show", "drops"]).stdout.contains("default/clients"));

        // What another policy does takes nothing away.
        let other = json!({"podSelector": app("a2"), "policyTypes": ["Egress"], "egress": [{}]});
        lab.apply("other.yaml", &[object::policy("default", "other", &other)]);
        assert_eq!(rule(0), want);
        assert_eq!(counts(&isolation()), after);
        // Two policies that isolate one pod are named both.
        let none = json!({"podSelector": app("b1"), "policyTypes": ["Ingress"]});
        lab.apply("none.yaml", &[object::policy("default", "none", &none)]);
        assert_eq!(isolation()["policies"], json!(["default/clients", "default/none"]));
    }
}

/// `explain` of the running daemon: the rule, or the isolation, that packets meet.
#[test]
fn explanations_are_what_packets_get() {
    let lab = service::lab();
    let _servers = servers(&lab, &["a2", "b1"]);
    serve(&lab, &[("a2", Ready), ("b1", Ready)], &json!({}));
    let spec = json!({
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a2", "b1"]}]},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": app("a3")}]},
            {"from": [{"podSelector": app("a1")}], "ports": [{"protocol": "TCP", "port": TARGET}]},
        ],
    });
    lab.apply(FILE, &[object::policy("default", "web", &spec)]);
    let explain = |from: &str, to: &str, proto: &str, dport: &str| {
        let (from, to) = (format!("default/{from}"), to.to_owned());
        let query = ["explain", "--from", &from, "--to", &to, "--proto", proto, "--dport", dport];
        let live = lab.node("a").cli().json(&query);
        let dir = lab.manifests.dir().to_str().unwrap().to_owned();
        let mut offline = query.to_vec();
        offline.extend(["--manifests", &dir, "-o", "json"]);
        let offline: Value =
            serde_json::from_str(&crate::harness::cli::fastpath(&offline).stdout).expect("JSON");
        assert_eq!(live["verdict"], offline["verdict"], "{query:?}");
        assert_eq!(live["ingress"], offline["ingress"], "{query:?}");
        live
    };
    for (from, rule) in [("a1", Some(1)), ("a3", Some(0)), ("b2", None)] {
        for (to, target) in [("default/svc/web", "80"), ("default/b1", "8080"), ("default/a2", "8080")] {
            let answer = explain(from, to, "tcp", target);
            let want = if rule.is_some() { "allow" } else { "deny" };
            assert_eq!(answer["verdict"], want, "{from} to {to}: {answer}");
            assert_eq!(answer["ingress"]["policy"], "default/web", "{answer}");
            assert_eq!(answer["ingress"]["rule"].as_u64(), rule, "{answer}");
            assert_eq!(answer["egress"]["policy"], Value::Null, "{answer}");
            if to == "default/svc/web" {
                let backend = answer["nat"]["backend"].as_str().unwrap_or_default().to_owned();
                let of = ["a2", "b1"].map(|p| SocketAddr::new(lab.pod(p).ip(Family::V4), TARGET).to_string());
                assert!(of.contains(&backend), "{answer}");
            }
        }
        // The packets agree.
        let ns = &lab.pod(from).ns;
        let to = service::web(Family::V4);
        let connected = ns.run(|| std::net::TcpStream::connect_timeout(&to, SILENCE * 2));
        assert_eq!(connected.is_ok(), rule.is_some(), "{from}");
        assert_eq!(explain(from, "default/a2", "udp", "8080")["verdict"] == "allow", from == "a3");
        assert_eq!(
            Asker::open(ns, (lab.pod("a2").ip(Family::V4), TARGET).into()).unwrap().ask(SILENCE).is_ok(),
            from == "a3"
        );
    }
    // A service without backends rejects, and the explanation says so.
    serve(&lab, &[("a2", NotReady)], &json!({}));
    assert_eq!(explain("a1", "default/svc/web", "tcp", "80")["verdict"], "reject");
}

/// `show services` and `show flows` name the service, its backends, and what a flow was translated to.
#[test]
fn services_and_flows_are_shown() {
    let lab = service::lab();
    let _servers = servers(&lab, &["a2"]);
    serve(&lab, &[("a2", Ready), ("b1", NotReady)], &service::external::spec(&json!({})));
    let cli = lab.node("a").cli();
    let services = rows(&cli.json(&["show", "services"]));
    for family in Family::BOTH {
        let cluster = services.iter().find(|s| {
            s["kind"] == "ClusterIP"
                && s["protocol"] == "TCP"
                && s["addresses"] == json!([cluster_ip(family)])
        });
        let cluster = cluster.unwrap_or_else(|| panic!("{family:?}: {services:?}"));
        assert_eq!((&cluster["service"], &cluster["port"]), (&json!("default/web"), &json!(80)));
        let backend = |pod: &str| {
            let ip = json!(lab.pod(pod).ip(family));
            let all = cluster["backends"].as_array().expect("backends");
            all.iter().find(|b| b["address"] == ip).cloned().unwrap_or_else(|| panic!("{pod} in {cluster}"))
        };
        assert_eq!((&backend("a2")["state"], &backend("a2")["used"]), (&json!("ready"), &json!(true)));
        assert_eq!((&backend("b1")["state"], &backend("b1")["used"]), (&json!("not-ready"), &json!(false)));
        let node = json!(lab.node("a").ip(family));
        let node_port = services
            .iter()
            .any(|s| s["kind"] == "NodePort" && s["addresses"].as_array().is_some_and(|a| a.contains(&node)));
        assert!(node_port, "{family:?}: {services:?}");

        let mut open = named::Conversation::open(&lab.pod("a1").ns, service::web(family)).unwrap();
        open.ask().unwrap();
        let flows = cli.json(&["show", "flows", "--limit", "1000"]);
        let wanted = json!(lab.pod("a2").ip(family));
        let flow = rows(&flows)
            .into_iter()
            .find(|f| f["original"]["dst"] == json!(cluster_ip(family)) && f["translated"]["dst"] == wanted);
        let flow = flow.unwrap_or_else(|| panic!("{flows}"));
        assert_eq!(flow["translated"]["dport"], TARGET);
        assert!(flow["service"].as_str().is_some_and(|s| s.starts_with("default/web")), "{flow}");
    }
}
