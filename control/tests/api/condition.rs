//! The condition on the own Node: written when asked for, by its rights, kept over an outage, and ended at the end.

use std::collections::BTreeSet;
use std::path::Path;

use fastpath_control::source::kubernetes::{CONDITION, NodeReadiness};

use super::*;

/// What is shipped for it.
const NODE_CONDITION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/k8s/node-condition.yaml");
const NODE: &str = "node-under-test";

fn ready() -> NodeReadiness {
    NodeReadiness { ready: true, reason: "Forwarding", message: "all is well".to_owned() }
}

fn not_ready(why: &str) -> NodeReadiness {
    NodeReadiness { ready: false, reason: "NotForwarding", message: why.to_owned() }
}

fn start(kubeconfig: &Path) -> Source {
    let settings = KubernetesSettings { node_condition: true, ..settings(kubeconfig, None) };
    Source { source: KubernetesSource::start(settings).expect("the kubeconfig is good") }
}

fn make_node(server: &Server) {
    let kubelets = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "posting"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
        "status": {"conditions": [kubelets], "capacity": {"pods": "110"}}});
    server.client().apply(&[node]);
}

/// The condition, once `wanted` finds it as it should be.
fn until(server: &Server, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + LIMIT;
    loop {
        let node = server.client().get("v1", "Node", "", NODE).expect("the Node");
        let all = node["status"]["conditions"].as_array().expect("conditions").clone();
        assert!(all.iter().any(|c| c["type"] == "Ready" && c["reason"] == "KubeletReady"), "{node:#}");
        assert_eq!(node["status"]["capacity"]["pods"], "110", "what others wrote stays");
        let found = all.iter().find(|c| c["type"] == CONDITION);
        if let Some(found) = found.filter(|c| wanted(c)) {
            return found.clone();
        }
        assert!(Instant::now() < end, "{what}: {found:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn it_follows_readiness_beside_the_conditions_of_others() {
    let server = Server::start(Options::default());
    server.kubectl(&["apply", "--validate=strict", "-f", NODE_CONDITION]);
    make_node(&server);
    let source = start(&server.account_config());
    source.until("the first state", |u, s| (u.synced && s.connected).then_some(()));
    let updates = source.state().updates;
    source.source.tell(ready());
    let first = until(&server, "ready", |c| c["status"] == "True");
    assert_eq!(first["reason"], "Forwarding");
    assert!(first["message"].as_str().is_some_and(|m| m.starts_with("all is well (said again")), "{first}");
    assert_eq!(first["lastTransitionTime"], first["lastHeartbeatTime"]);
    // What is told again without a change is not written again.
    (0..20).for_each(|_| source.source.tell(ready()));
    source.source.tell(not_ready("uplink: none attached"));
    let second = until(&server, "not ready", |c| c["status"] == "False");
    assert_eq!(second["message"], "uplink: none attached");
    let times =
        |c: &Value| ["lastTransitionTime", "lastHeartbeatTime"].map(|t| c[t].as_str().unwrap().to_owned());
    assert!(times(&second)[0] > times(&first)[0], "{second}");
    // A condition is nothing that forwarding goes by.
    assert_eq!(source.state().updates, updates);
    // At its end the daemon says so, at once.
    source.source.tell(NodeReadiness {
        ready: false,
        reason: "Stopped",
        message: "the daemon was stopped".to_owned(),
    });
    drop(source);
    let last = until(&server, "stopped", |c| c["reason"] == "Stopped");
    assert_eq!(times(&last)[0], times(&second)[0], "the status is the same since");

    // The next daemon finds it so.
    let source = start(&server.account_config());
    source.source.tell(not_ready("starting"));
    let found = until(&server, "the next", |c| c["message"] == "starting");
    assert_eq!(times(&found)[0], times(&second)[0], "{found}");

    // One that is killed leaves its word, which the next one takes back before it knows better.
    source.source.tell(ready());
    until(&server, "ready again", |c| c["status"] == "True");
    drop(source);
    let source = start(&server.account_config());
    let doubted = until(&server, "doubted", |c| c["status"] == "Unknown");
    assert_eq!(doubted["reason"], "Restarted");
    source.source.tell(ready());
    until(&server, "and ready", |c| c["status"] == "True");

    let mut patches = BTreeSet::new();
    for event in server.audit() {
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(200);
        assert!(code != 401 && code != 403, "{event:#}");
        let (verb, object) = (&event["verb"], &event["objectRef"]);
        if verb == "patch" {
            assert_eq!((&object["resource"], &object["subresource"]), (&json!("nodes"), &json!("status")));
            patches.insert(event["auditID"].as_str().expect("an id").to_owned());
        }
    }
    assert_eq!(patches.len(), 7, "each change once");
}

/// Without the right it is said once and everything else goes on; so it does while the API is away.
#[test]
fn without_right_or_api_all_else_goes_on() {
    let mut server = Server::start(Options::default());
    make_node(&server);
    let source = start(&server.account_config());
    source.source.tell(ready());
    source.until("the first state", |u, s| (u.synced && s.connected).then_some(()));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "none"}]}});
    source.has(&server.client().apply(&[pod]));
    let refused = |event: &Value| event["verb"] == "patch" && event["responseStatus"]["code"] == 403;
    let end = Instant::now() + LIMIT;
    while !server.audit().iter().any(refused) {
        assert!(Instant::now() < end, "it was not tried");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(source);

    server.kubectl(&["apply", "-f", NODE_CONDITION]);
    let config = server.account_config();
    server.kill_apiserver();
    let source = start(&config);
    source.source.tell(not_ready("before the API"));
    source.source.tell(ready());
    source.until("the API is away", |_, s| (s.errors > 0).then_some(()));
    server.start_apiserver();
    until(&server, "it is written when the API is back", |c| c["status"] == "True");
}
