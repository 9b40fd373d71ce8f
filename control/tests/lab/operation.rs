//! What an operator of a node relies on: health, metrics, health checks of services, uplinks by network, capabilities, the
//! doctor.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::forwarding::everything_crosses;
use crate::harness::cli::BINARY;
use crate::harness::lab::Lab;
use crate::harness::ns::{NetNs, run_ok};
use crate::harness::object::{self, Condition};
use crate::harness::spec::{Family, LabSpec, ROUTER, UPLINK, underlay};
use crate::metrics_checker::{Samples, check};
use crate::traffic::{PATIENCE, eventually};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// An answer: status, head, body.
pub(crate) type Answer = (u16, String, String);

/// `GET`s a path from inside a namespace.
fn get(from: &NetNs, to: SocketAddr, path: &str, accept: &str) -> io::Result<Answer> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE * 2))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, head.to_lowercase(), body.to_owned()))
    })
}

/// Of the daemon of node `a`.
pub(crate) fn ask(lab: &Lab, path: &str) -> Answer {
    get(&lab.node("a").ns, (Ipv4Addr::LOCALHOST, 9990).into(), path, "*/*").expect("the daemon answers")
}

pub(crate) fn metrics(lab: &Lab) -> Samples {
    let to = (Ipv4Addr::LOCALHOST, 9990).into();
    let mut last = Samples::new();
    for accept in ["text/plain", OPEN_METRICS] {
        let (status, head, body) = get(&lab.node("a").ns, to, "/metrics", accept).expect("metrics");
        let open = accept == OPEN_METRICS;
        assert_eq!(status, 200);
        let content_type =
            if open { "content-type: application/openmetrics-text;" } else { "content-type: text/plain;" };
        assert!(head.contains(content_type), "{head}");
        last = check(&body, open).unwrap_or_else(|e| panic!("{e}\n{body}"));
    }
    last
}

/// The value of the series with these labels.
pub(crate) fn value(samples: &Samples, name: &str, labels: &[(&str, &str)]) -> f64 {
    let all = samples.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", samples.keys()));
    let fits = |of: &std::collections::BTreeMap<String, String>| labels.iter().all(|(k, v)| of[*k] == *v);
    let found: Vec<f64> = all.iter().filter(|(of, _)| fits(of)).map(|(_, v)| *v).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?} in {all:?}");
    found[0]
}

/// `/livez` and `/readyz` as Kubernetes' components have them, and what makes a node unready.
#[test]
fn health() {
    let lab = Lab::start(LabSpec::default());
    assert_eq!(ask(&lab, "/livez").0, 200);
    let (status, _, body) = ask(&lab, "/readyz");
    assert_eq!((status, body.as_str()), (200, "ok"));
    let (_, _, verbose) = ask(&lab, "/readyz?verbose");
    for line in ["[+]node ok", "[+]source ok", "[+]uplink ok", "[+]snapshot ok", "[+]workers ok"] {
        assert!(verbose.lines().any(|l| l == line), "{line}: {verbose}");
    }
    assert!(verbose.ends_with("readyz check passed\n"), "{verbose}");
    assert_eq!(ask(&lab, "/nothing").0, 404);

    // A node that nobody knows is not ready, and says so by name; it lives all the same.
    lab.manifests.remove("node-a.yaml");
    let (_, _, body) = eventually("not ready", PATIENCE, || {
        Some(ask(&lab, "/readyz")).filter(|(status, ..)| *status == 503)
    });
    assert!(body.contains("[-]node failed: no Node object node-a"), "{body}");
    assert!(body.ends_with("readyz check failed\n"), "{body}");
    assert_eq!(ask(&lab, "/livez").0, 200);
    assert_eq!(ask(&lab, "/readyz?exclude=node").0, 200);
    assert_eq!(ask(&lab, "/readyz/workers").0, 200);
}

/// Without a listener it is degraded, forwards all the same, and listens as soon as it can.
#[test]
fn the_address_may_be_taken() {
    let mut lab = Lab::wire(LabSpec::default());
    let addr: SocketAddr = (Ipv4Addr::LOCALHOST, 9990).into();
    let taken = lab.node("a").ns.run(|| std::net::TcpListener::bind(addr)).unwrap();
    lab.start_daemons();
    assert!(lab.node("a").cli().status().complaints().contains("http.listen 127.0.0.1:9990"));
    everything_crosses(&lab, "a1", "b1");
    drop(taken);
    eventually("it listens", PATIENCE * 2, || get(&lab.node("a").ns, addr, "/livez", "*/*").ok());
    eventually("all is well", PATIENCE, || {
        (lab.node("a").cli().status().0["degraded"] == json!([])).then_some(())
    });
}

/// What is counted is what was sent; strict readers take both formats.
#[test]
fn metrics_tell_what_happened() {
    let lab = Lab::start(LabSpec::default());
    lab.manifests.write(
        "enforced.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: open, namespace: default}\nspec: \
         {podSelector: {matchLabels: {app: a1}}, ingress: [{}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: \
         web, namespace: default}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n",
    );
    eventually("the policy is in force", PATIENCE, || {
        metrics(&lab).contains_key("fastpath_policy_packets_total").then_some(())
    });
    everything_crosses(&lab, "b1", "a1");
    let samples = metrics(&lab);
    let of = |name: &str, labels: &[(&str, &str)]| value(&samples, name, labels);
    assert_eq!(of("fastpath_ready", &[]), 1.0);
    for direction in ["receive", "transmit"] {
        for device in ["fp-a1", UPLINK] {
            let packets = of(&format!("fastpath_port_{direction}_packets_total"), &[("device", device)]);
            let bytes = of(&format!("fastpath_port_{direction}_bytes_total"), &[("device", device)]);
            assert!(packets > 1000.0 && bytes > 4e6, "{device} {direction}: {packets} {bytes}");
        }
    }
    let port = [("device", "fp-a1"), ("role", "pod"), ("namespace", "default"), ("pod", "a1")];
    assert_eq!(of("fastpath_port_info", &port), 1.0);
    assert!(of("fastpath_flows", &[("family", "ipv4"), ("state", "established")]) > 0.0);
    assert!(of("fastpath_flow_inserts_total", &[]) > 0.0);
    let rule = [("policy", "default/open"), ("direction", "ingress"), ("rule", "0"), ("verdict", "allow")];
    assert!(of("fastpath_policy_packets_total", &rule) > 1000.0);
    assert_eq!(of("fastpath_service_backends", &[("service", "default/web"), ("state", "ready")]), 0.0);
    assert_eq!(of("fastpath_source_objects", &[("kind", "Node")]), 2.0);
    assert_eq!(of("fastpath_problems", &[("part", "attach")]), 0.0);
    assert!(of("fastpath_worker_cpu_seconds_total", &[("worker", "0")]) > 0.0);
    assert!(of("fastpath_worker_heartbeat_age_seconds", &[("worker", "0")]) < 60.0);
    assert!(of("fastpath_snapshot_generation", &[]) >= 1.0);
    assert_eq!(of("fastpath_drops_total", &[("reason", "source_not_own")]), 0.0);
    // Every reason is explained where a reader looks for it.
    let (_, _, text) = ask(&lab, "/metrics");
    let help = text.lines().find(|l| l.starts_with("# HELP fastpath_drops_total ")).expect("help");
    assert!(help.contains(" source_not_own: A pod sent from an address that is not its own."), "{help}");
    // Prometheus' own reader, where it is installed.
    if let Ok(mut promtool) = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
    {
        promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
        let out = promtool.wait_with_output().expect("promtool ends");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

fn web(port: u16) -> Value {
    object::service(
        "default",
        "web",
        &json!({
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port,
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        }),
    )
}

fn endpoint(address: &str, node: &str, condition: Condition) -> Value {
    let ready = condition == Condition::Ready;
    json!({"addresses": [address], "nodeName": format!("node-{node}"), "conditions": {"ready": ready}})
}

/// `healthCheckNodePort` on every address of every node, from outside, as kube-proxy answers it.
#[test]
fn load_balancers_learn_which_nodes_have_a_backend() {
    const PORT: u16 = 30_500;
    let lab = Lab::start(LabSpec::default());
    let slice = |endpoints: &[Value]| {
        let ports = json!([{"name": "http", "port": 8080}]);
        object::slice(("default", "web"), Family::V4, &ports, endpoints)
    };
    let a1 = lab.pod("a1").ip(Family::V4).to_string();
    let asked = |node: &str, address: IpAddr| {
        let answer = get(&lab.outside, (address, PORT).into(), "/healthz", "*/*");
        answer.unwrap_or_else(|e| panic!("node {node} {address}: {e}"))
    };
    let told = |node: &str, status: u16, local: usize| {
        for family in Family::BOTH {
            let (found, head, body) = asked(node, lab.node(node).ip(family));
            let body: Value = serde_json::from_str(&body).unwrap();
            let want = json!({
                "service": {"namespace": "default", "name": "web"},
                "localEndpoints": local,
                "serviceProxyHealthy": true,
            });
            assert_eq!((found, &body), (status, &want), "node {node}, {family:?}");
            assert!(head.contains(&format!("x-load-balancing-endpoint-weight: {local}")), "{head}");
        }
    };
    lab.apply("web.yaml", &[web(PORT), slice(&[endpoint(&a1, "a", Condition::Ready)])]);
    told("a", 200, 1);
    told("b", 503, 0);
    lab.apply("web.yaml", &[web(PORT), slice(&[endpoint(&a1, "a", Condition::NotReady)])]);
    eventually("the backend is gone", PATIENCE, || {
        (asked("a", lab.node("a").ip(Family::V4)).0 == 503).then_some(())
    });
    told("a", 503, 0);

    // Another port: the old one is closed. One that is taken is told by name.
    let taken = lab.node("b").ns.run(|| std::net::TcpListener::bind(("0.0.0.0", PORT + 1))).unwrap();
    lab.apply("web.yaml", &[web(PORT + 1), slice(&[endpoint(&a1, "a", Condition::Ready)])]);
    let of_a: SocketAddr = (lab.node("a").ip(Family::V4), PORT + 1).into();
    eventually("it moved", PATIENCE, || {
        let moved = get(&lab.outside, of_a, "/", "*/*").is_ok_and(|(status, ..)| status == 200);
        let closed = get(&lab.outside, (of_a.ip(), PORT).into(), "/", "*/*").is_err();
        (moved && closed).then_some(())
    });
    let complaints = lab.node("b").cli().status().complaints();
    assert!(
        complaints.contains("service default/web: healthCheckNodePort 30501 is not served on 0.0.0.0"),
        "{complaints}"
    );
    drop(taken);
    eventually("it is served", PATIENCE * 2, || {
        (lab.node("b").cli().status().0["degraded"] == json!([])).then_some(())
    });
    lab.withdraw("web.yaml");
    eventually("closed", PATIENCE, || get(&lab.outside, of_a, "/", "*/*").is_err().then_some(()));
}

/// Uplinks are found by the network their address is in, and nothing else is one.
#[test]
fn uplinks_by_network() {
    let lab = Lab::start(LabSpec { uplink_cidrs: vec!["192.168.77.0/24"], ..LabSpec::default() });
    everything_crosses(&lab, "a1", "b1");
    let modes = lab.node("a").cli().modes();
    let devices: Vec<&str> = modes.keys().map(String::as_str).filter(|d| !d.starts_with("fp-")).collect();
    assert_eq!(devices, [UPLINK]);
}

/// Without any of these the daemon does not come to forward: none is given in vain.
#[test]
fn no_capability_is_given_in_vain() {
    let without: [(&str, &[&str]); 4] = [
        ("net_admin", &["net_raw", "bpf", "perfmon", "ipc_lock", "net_broadcast"]),
        ("net_raw", &["net_admin", "bpf", "perfmon", "ipc_lock", "net_broadcast"]),
        ("bpf", &["net_admin", "net_raw", "perfmon", "ipc_lock", "net_broadcast"]),
        ("perfmon", &["net_admin", "net_raw", "bpf", "ipc_lock", "net_broadcast"]),
    ];
    let works = without.iter().filter(|(_, capabilities)| {
        let nodes = vec![crate::harness::spec::NodeSpec::fastpath("a", 1)];
        let mut lab = Lab::wire(LabSpec { nodes, capabilities: Some(capabilities), ..LabSpec::default() });
        lab.node_mut("a").spawn_daemon();
        let mut ready = None;
        eventually("it ends, or says how it is", PATIENCE * 4, || {
            let status = lab.node("a").cli().try_status();
            let alive = lab.node_mut("a").daemon().alive();
            ready = status.as_ref().map(|s| s.ready());
            (!alive || status.is_some()).then_some(())
        });
        ready == Some(true)
    });
    let names: Vec<&str> = works.map(|(name, _)| *name).collect();
    assert_eq!(names, [""; 0], "it forwards without these");
}

/// The doctor on a node of the lab: nothing wrong, every line with what to do where it is not good.
#[test]
fn doctor() {
    let lab = Lab::wire(LabSpec::default());
    let node = lab.node("a");
    let config = node.config().to_str().unwrap();
    let run = |args: &[&str]| node.ns.command(BINARY.as_str()).args(args).output().expect("it starts");
    let out = run(&["doctor", "--config", config, "-o", "json"]);
    let findings: Vec<Value> = serde_json::from_slice(&out.stdout).expect("JSON");
    let wrong: Vec<&Value> = findings.iter().filter(|f| f["level"] == "error").collect();
    assert_eq!(wrong, [&Value::Null; 0]);
    let warned = findings.iter().any(|f| f["level"] == "warning");
    assert_eq!(out.status.code(), Some(if warned { 4 } else { 0 }));
    let of = |check: &str| {
        let found = findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}"));
        found["found"].as_str().unwrap_or("").to_owned()
    };
    assert!(of("uplink").starts_with("up0 (driver veth"), "{}", of("uplink"));
    assert!(of("uplink").contains("native XDP"), "{}", of("uplink"));
    assert_eq!(of("MTU"), "uplink 1500, pods 1450");
    assert_eq!(of("XDP"), "the programs load");

    // Another plugin's leftovers, kube-proxy's rules, and no way out.
    node.ns.ip([
        "link add vxlan.calico type vxlan id 4096 dstport 4789".to_owned(),
        "link add kube-ipvs0 type bridge".to_owned(),
    ]);
    node.ns.ip(Family::BOTH.map(|f| format!("route del default via {}", underlay(0, ROUTER, f))));
    run_ok(node.ns.command("nft").arg("add table ip nat; add chain ip nat KUBE-SERVICES"));
    let table = run(&["doctor"]);
    assert_eq!(table.status.code(), Some(1));
    // However wide its columns are.
    let words: Vec<&str> = std::str::from_utf8(&table.stdout).unwrap().split_whitespace().collect();
    let text = words.join(" ");
    for part in [
        "✘ uplink no uplink",
        "! network plugins devices of Calico: vxlan.calico",
        "! kube-proxy iptables rules of kube-proxy: chain KUBE-SERVICES",
        "✘ kube-proxy device kube-ipvs0",
        "→ stop kube-proxy, then ip link del kube-ipvs0",
        "✔ kernel Linux ",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    // It left nothing behind.
    assert!(!std::path::Path::new("/sys/fs/bpf/fastpath-doctor").exists());
}
