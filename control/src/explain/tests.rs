use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::source::load_dir;

pub(crate) const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: a}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}
---
apiVersion: v1
kind: Node
metadata: {name: b}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: a, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: b, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: six, namespace: shop, labels: {app: six}}
spec: {nodeName: b, containers: [{name: c}]}
status: {podIPs: [{ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: shop, labels: {app: web}}
spec: {nodeName: b, hostNetwork: true, containers: [{name: c}]}
status: {podIPs: [{ip: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
spec: {nodeName: b, containers: [{name: c}]}
status: {phase: Succeeded, podIPs: [{ip: 10.0.1.9}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pending, namespace: shop}
spec: {containers: [{name: c}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{ipBlock: {cidr: 203.0.113.0/24}}]
  - from:
    - podSelector: {matchLabels: {app: web}}
    ports:
    - port: 5432
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {}}]
    ports: [{port: 5432}, {port: http}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  loadBalancerIP: 198.51.100.1
  loadBalancerSourceRanges: [203.0.113.0/24]
  ports: [{port: 1, nodePort: 30001}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{port: 5432}]
endpoints: [{addresses: [10.0.1.1], nodeName: b}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.2, externalTrafficPolicy: Local, internalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1], nodeName: a}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
"#;

/// A folder of its own with these manifests, gone when dropped.
pub(crate) struct Folder(pub(crate) std::path::PathBuf);

impl Folder {
    pub(crate) fn new(manifests: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("fastpath-explain-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("all.yaml"), manifests).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn explainer() -> Explainer {
    let folder = Folder::new(CLUSTER);
    let update = load_dir(&folder.0).unwrap();
    assert_eq!(update.problems, []);
    Explainer::new(update.model)
}

fn query(from: &str, to: &str, proto: &str, dport: u16) -> Query {
    Query::new(from, to, proto, Some(dport)).unwrap()
}

fn line_of(text: &str) -> usize {
    CLUSTER.lines().position(|l| l.contains(text)).unwrap() + 1
}

/// verdict, egress, ingress (`allow`, `deny`, with policy and rule), backend.
fn short(a: &Answer) -> [String; 4] {
    let side = |s: &Side| {
        let policy = s.policy.as_ref().map(|p| format!(" {p}")).unwrap_or_default();
        let rule = s.rule.map(|r| format!(" {r}")).unwrap_or_default();
        format!("{}{policy}{rule}", s.verdict.name())
    };
    let backend = a.nat.as_ref().map_or_else(String::new, |n| n.backend.clone());
    [a.verdict.name().to_owned(), side(&a.egress), side(&a.ingress), backend]
}

#[test]
fn verdicts() {
    let mut e = explainer();
    for (from, to, proto, port, want) in [
        // Pod to pod.
        ("shop/web", "shop/db", "tcp", 5432, ["allow", "allow shop/web 0", "allow shop/db 1", ""]),
        ("shop/web", "shop/db", "tcp", 5433, ["deny", "deny shop/web", "deny shop/db", ""]),
        ("shop/db", "shop/web", "tcp", 1, ["allow", "allow", "allow", ""]),
        ("shop/web", "shop/db", "icmp", 0, ["deny", "deny shop/web", "deny shop/db", ""]),
        // The only family both have.
        ("shop/web", "shop/six", "tcp", 5432, ["allow", "allow shop/web 0", "allow", ""]),
        // A named port of egress stands for the peer's.
        ("shop/web", "shop/six", "tcp", 8080, ["deny", "deny shop/web", "allow", ""]),
        // A pod's address is the pod; itself is always reached.
        ("10.0.0.1", "10.0.1.1", "tcp", 5432, ["allow", "allow shop/web 0", "allow shop/db 1", ""]),
        ("shop/web", "fd00::1", "udp", 9, ["allow", "allow", "allow", ""]),
        // From and to the outside.
        ("203.0.113.5", "shop/db", "icmp", 0, ["allow", "allow", "allow shop/db 0", ""]),
        ("203.0.114.5", "shop/db", "tcp", 5432, ["deny", "allow", "deny shop/db", ""]),
        ("shop/web", "8.8.8.8", "tcp", 5432, ["deny", "deny shop/web", "allow", ""]),
        ("shop/db", "8.8.8.8", "udp", 53, ["allow", "allow", "allow", ""]),
        ("9.9.9.9", "8.8.8.8", "udp", 53, ["allow", "allow", "allow", ""]),
        // Nodes: its own reaches a pod, another does not; a pod on the host network is its node.
        ("192.0.2.2", "shop/db", "tcp", 1, ["allow", "allow", "allow", ""]),
        ("192.0.2.1", "shop/db", "tcp", 1, ["deny", "allow", "deny shop/db", ""]),
        ("shop/agent", "shop/db", "tcp", 1, ["allow", "allow", "allow", ""]),
        ("shop/web", "shop/agent", "tcp", 5432, ["deny", "deny shop/web", "allow", ""]),
        // An address of a pod that ended is nobody's.
        ("shop/web", "10.0.1.9", "tcp", 5432, ["deny", "deny shop/web", "allow", ""]),
        // Services: policies see backend and port.
        (
            "shop/web",
            "shop/svc/db",
            "tcp",
            1,
            ["allow", "allow shop/web 0", "allow shop/db 1", "10.0.1.1:5432"],
        ),
        (
            "shop/web",
            "10.96.0.1",
            "tcp",
            1,
            ["allow", "allow shop/web 0", "allow shop/db 1", "10.0.1.1:5432"],
        ),
        ("shop/db", "shop/svc/db", "tcp", 1, ["allow", "allow", "allow", "10.0.1.1:5432"]),
        (
            "shop/web",
            "192.0.2.1",
            "tcp",
            30001,
            ["allow", "allow shop/web 0", "allow shop/db 1", "10.0.1.1:5432"],
        ),
        ("shop/db", "shop/svc/empty", "tcp", 80, ["reject", "allow", "allow", ""]),
        ("shop/db", "shop/svc/db", "tcp", 2, ["reject", "allow", "allow", ""]),
        ("shop/db", "shop/svc/db", "udp", 1, ["reject", "allow", "allow", ""]),
        ("shop/db", "10.96.0.1", "icmp", 0, ["reject", "allow", "allow", ""]),
        // A port of a node that is no node port is the node's.
        ("shop/db", "192.0.2.1", "tcp", 22, ["allow", "allow", "allow", ""]),
        // internalTrafficPolicy Local: from the other node there is no backend.
        ("shop/db", "shop/svc/web", "tcp", 80, ["reject", "allow", "allow", ""]),
        ("192.0.2.1", "10.96.0.2", "tcp", 80, ["allow", "allow", "allow", "10.0.0.1:8080"]),
        // externalTrafficPolicy Local: dropped where no backend is; clients inside are not held to it.
        ("203.0.113.5", "192.0.2.1", "tcp", 30080, ["allow", "allow", "allow", "10.0.0.1:8080"]),
        ("203.0.113.5", "192.0.2.2", "tcp", 30080, ["deny", "allow", "allow", ""]),
        ("shop/db", "192.0.2.2", "tcp", 30080, ["allow", "allow", "allow", "10.0.0.1:8080"]),
        // From outside by a node port: the backend's own node may, another node's address is not in the block.
        ("203.0.113.5", "192.0.2.2", "tcp", 30001, ["allow", "allow", "allow shop/db 0", "10.0.1.1:5432"]),
        ("203.0.113.5", "192.0.2.1", "tcp", 30001, ["deny", "allow", "deny shop/db", "10.0.1.1:5432"]),
        // Load balancer: its source ranges.
        ("203.0.113.5", "shop/svc/db", "tcp", 1, ["allow", "allow", "allow shop/db 0", "10.0.1.1:5432"]),
        ("198.51.100.9", "shop/svc/db", "tcp", 1, ["deny", "allow", "allow", ""]),
    ] {
        let answer = e.answer(&query(from, to, proto, port)).unwrap();
        assert_eq!(short(&answer), want.map(str::to_owned), "{from} {to} {proto} {port}: {:?}", answer.path);
    }
}

#[test]
fn services_refuse_what_nobody_else_can_have() {
    const MORE: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.9.9
  externalIPs: [198.51.100.77]
  externalTrafficPolicy: Local
  ports: [{port: 80, nodePort: 30999}]
"#;
    let update = load_dir(&Folder::new(&format!("{CLUSTER}{MORE}")).0).unwrap();
    assert_eq!(update.problems, []);
    let mut e = Explainer::new(update.model);
    for (from, to, proto, port, want) in [
        // No backend anywhere: refused, though it is held to those of one node.
        ("203.0.113.5", "192.0.2.1", "tcp", 30999, "reject"),
        ("shop/db", "10.96.9.9", "tcp", 81, "reject"),
        // A machine may have that address and serve other ports.
        ("shop/db", "198.51.100.77", "tcp", 22, "allow"),
    ] {
        let answer = e.answer(&query(from, to, proto, port)).unwrap();
        assert_eq!(short(&answer)[0], want, "{from} {to} {port}: {:?}", answer.path);
    }
}

#[test]
fn queries_that_cannot_be_answered() {
    let mut e = explainer();
    for (line, want) in [
        (r#"{"from":"shop/nobody","to":"shop/db","proto":"tcp","dport":1}"#, "no pod shop/nobody"),
        (r#"{"from":"shop/web","to":"shop/svc/nobody","proto":"tcp","dport":1}"#, "no service shop/nobody"),
        (
            r#"{"from":"shop/web","to":"shop/done","proto":"tcp","dport":1}"#,
            "pod shop/done has ended: it no longer has an address",
        ),
        (
            r#"{"from":"shop/pending","to":"shop/db","proto":"tcp","dport":1}"#,
            "pod shop/pending has no address",
        ),
        (
            r#"{"from":"shop/web","to":"shop/svc/headless","proto":"tcp","dport":80}"#,
            "service shop/headless has no address of its own (headless, ExternalName, or none given yet)",
        ),
        (
            r#"{"from":"shop/db","to":"shop/six","proto":"tcp","dport":1}"#,
            "shop/db and shop/six have no address of the same family",
        ),
        (
            r#"{"from":"shop/svc/db","to":"shop/db","proto":"tcp","dport":1}"#,
            "shop/db is a service: a connection comes from a pod or an address",
        ),
        (
            r#"{"from":"shop/web","to":"shop/db","proto":"gre","dport":1}"#,
            "unknown protocol \"gre\": want tcp, udp, sctp or icmp",
        ),
        (
            r#"{"from":"shop/web","to":"shop/db","proto":"tcp","dport":0}"#,
            "port 0 is not a number from 1 to 65535",
        ),
        (
            r#"{"from":"shop/web","to":"shop/db","proto":"tcp","dport":65536}"#,
            "port 65536 is not a number from 1 to 65535",
        ),
        (
            r#"{"from":"shop/web","to":"shop/db","proto":"tcp","dport":-1}"#,
            "port -1 is not a number from 1 to 65535",
        ),
        (
            r#"{"from":"shop/web","to":"shop/db","proto":"tcp","dport":1.5}"#,
            "port 1.5 is not a number from 1 to 65535",
        ),
        (
            r#"{"from":"shop/web","to":"shop/db","proto":"tcp","dport":"http"}"#,
            "port \"http\" is not a number from 1 to 65535",
        ),
        (r#"{"from":"shop/web","to":"shop/db","proto":"tcp"}"#, "\"dport\" is missing"),
        (r#"{"to":"shop/db","proto":"tcp","dport":1}"#, "\"from\" is missing"),
        (r#"{"from":7,"to":"shop/db","proto":"tcp","dport":1}"#, "\"from\" is not a string"),
        (
            r#"{"from":"web","to":"shop/db","proto":"tcp","dport":1}"#,
            "\"web\" is neither NS/POD nor NS/svc/NAME nor an address",
        ),
        (
            r#"{"from":"shop/","to":"shop/db","proto":"tcp","dport":1}"#,
            "\"shop/\" is neither NS/POD nor NS/svc/NAME nor an address",
        ),
        (
            r#"{"from":"a/b/c","to":"shop/db","proto":"tcp","dport":1}"#,
            "\"a/b/c\" is neither NS/POD nor NS/svc/NAME nor an address",
        ),
    ] {
        let got = Query::from_json(line.as_bytes()).and_then(|q| e.answer(&q));
        assert_eq!(got.unwrap_err().to_string(), want);
    }
}

/// One line for each, in order, whatever is wrong with one.
#[test]
fn a_batch_answers_line_by_line() {
    let good = r#"{"from":"shop/web","to":"shop/db","proto":"TCP","dport":5432}"#;
    let icmp = r#"{"from":"shop/db","to":"shop/web","proto":"icmp"}"#;
    let input = format!("{good}\nnonsense\n\n[1]\n{icmp}\n{good}");
    let mut input = input.into_bytes();
    input.extend(b"\n\xff\xfe\n");
    let mut output = Vec::new();
    run_batch(&mut explainer(), &input[..], &mut output).unwrap();
    let lines: Vec<Value> = output
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    let kinds: Vec<_> = lines
        .iter()
        .map(|l| l.get("verdict").or(l.get("error").map(|_| &Value::Null)).unwrap().clone())
        .collect();
    assert_eq!(
        kinds,
        [json!("allow"), Value::Null, Value::Null, Value::Null, json!("allow"), json!("allow"), Value::Null]
    );
    let mut first = lines[0].clone();
    assert!(first["path"].is_array());
    first["path"] = json!([]);
    assert_eq!(
        first,
        json!({"verdict": "allow", "egress": {"verdict": "allow", "policy": "shop/web", "rule": 0},
        "ingress": {"verdict": "allow", "policy": "shop/db", "rule": 1}, "nat": null, "path": []})
    );
    assert_eq!(lines[4]["egress"], json!({"verdict": "allow", "policy": null, "rule": null}));
}

#[test]
fn reasons_say_what_each_rule_lacked_and_where() {
    let mut e = explainer();
    let x = e.explain(&query("shop/web", "shop/db", "tcp", 80)).unwrap();
    assert_eq!(x.lacking.len(), 2);
    let egress = &x.lacking[0];
    assert_eq!((&egress.pod[..], &egress.direction[..], &egress.port[..]), ("shop/web", "egress", "TCP 80"));
    let [policy] = &egress.policies[..] else { panic!("{egress:?}") };
    let [rule] = &policy.rules[..] else { panic!("{policy:?}") };
    assert!(policy.policy == "shop/web" && rule.peer.is_none());
    assert_eq!(rule.port.as_deref(), Some("TCP 5432; TCP \"http\" (which shop/db does not have)"));
    let [ingress] = &x.lacking[1].policies[..] else { panic!("{x:?}") };
    let [block, pods] = &ingress.rules[..] else { panic!("{ingress:?}") };
    assert_eq!((block.peer.as_deref(), block.port.as_deref()), (Some("ipBlock 203.0.113.0/24"), None));
    assert_eq!((pods.peer.as_deref(), pods.port.as_deref()), (None, Some("TCP 5432")));
    let line = line_of("  - from: [{ipBlock");
    assert!(block.at.ends_with(&format!("all.yaml:{line}")), "{} {line}", block.at);
    let names: Vec<_> = x.steps.iter().map(|s| (&s.name[..], s.verdict)).collect();
    assert_eq!(names, [("egress", Outcome::Deny), ("ingress", Outcome::Deny)]);

    let allowed = e.explain(&query("shop/web", "shop/svc/db", "tcp", 1)).unwrap();
    assert!(allowed.lacking.is_empty());
    let at = |i: usize| allowed.steps[i].at.clone().unwrap();
    assert_eq!(allowed.steps[0].name, "service");
    let rule = line_of("    - podSelector: {matchLabels: {app: web}}") - 1;
    assert!(at(2).ends_with(&format!("all.yaml:{rule}")), "{} {rule}", at(2));
    // A rule with a named port that an address cannot have.
    let out = e.explain(&query("shop/web", "8.8.8.8", "tcp", 80)).unwrap();
    let port = out.lacking[0].policies[0].rules[0].port.clone().unwrap();
    assert!(port.contains("the destination is no pod"), "{port}");
}

/// What the API carries to the client is what it was.
#[test]
fn explanations_survive_json() {
    let mut e = explainer();
    for q in [query("shop/web", "shop/svc/db", "tcp", 1), query("shop/web", "shop/db", "udp", 1)] {
        let x = e.explain(&q).unwrap();
        let back: Explanation = serde_json::from_str(&serde_json::to_string(&x).unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&back).unwrap(), serde_json::to_value(&x).unwrap());
    }
    let asked: crate::api::Request = (&query("shop/web", "shop/svc/db", "tcp", 1)).into();
    let crate::api::Request::Explain { from, to, proto, dport } = asked else { panic!("{asked:?}") };
    assert_eq!(Query::new(&from, &to, &proto, dport).unwrap(), query("shop/web", "shop/svc/db", "tcp", 1));
}

#[test]
fn a_live_explainer_follows_the_model() {
    let first = explainer().model;
    let mut second = (*first).clone();
    second.policies.clear();
    let second = Arc::new(second);
    let mut live = LiveExplainer::default();
    let q = query("shop/web", "shop/db", "tcp", 1);
    assert_eq!(live.at(&first).answer(&q).unwrap().verdict, Outcome::Deny);
    assert_eq!(live.at(&second).answer(&q).unwrap().verdict, Outcome::Allow);
    assert_eq!(live.at(&first).answer(&q).unwrap().verdict, Outcome::Deny);
}

/// Connections spread over the backends, and a client keeps to the same table on every run.
#[test]
fn every_usable_backend_gets_clients() {
    let mut model = (*explainer().model).clone();
    let slice = model.slices.values_mut().find(|s| s.name.name == "db-1").unwrap();
    let slice = Arc::make_mut(slice);
    let one = slice.endpoints[0].clone();
    slice.endpoints = (1..=5)
        .map(|i| crate::model::Endpoint { address: IpAddr::from([10, 0, 1, i]), ..one.clone() })
        .collect();
    slice.endpoints[4].ready = false;
    let model = Arc::new(model);
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for host in 0..=255u8 {
        let q = query(&format!("203.0.113.{host}"), "shop/svc/db", "tcp", 1);
        let nat = Explainer::answer(&mut Explainer::new(model.clone()), &q).unwrap().nat.unwrap();
        assert_eq!(nat.backends, 4);
        *seen.entry(nat.backend).or_default() += 1;
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen.values().all(|n| *n > 30), "{seen:?}");
}
