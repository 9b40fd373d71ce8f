//! Every kind: created, changed, deleted; and what cannot be honoured.

use fastpath_control::model::Model;
use fastpath_control::source::Severity;
use serde_json::{Value, json};

use super::*;

/// An object of each kind, in a first and in a second form, and what of it the model shows.
type Case = (Value, Value, fn(&Model) -> Option<String>);

fn cases() -> Vec<Case> {
    let meta = |name: &str, labels: Value| json!({"name": name, "namespace": "shop", "labels": labels});
    vec![
        (
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other", "labels": {"v": "1"}}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other", "labels": {"v": "2"}}}),
            |m| m.namespaces.get("other").map(|n| n.labels["v"].clone()),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]}}),
            |m| m.nodes.get("n1").and_then(|n| n.addresses.first()).map(ToString::to_string),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("web", json!({"app": "1"})),
                "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": 80}]}]},
                "status": {"podIPs": [{"ip": "10.1.0.2"}], "podIP": "10.1.0.2"}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("web", json!({"app": "2"})),
                "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": 80}]}]},
                "status": {"podIPs": [{"ip": "10.1.0.3"}], "podIP": "10.1.0.3"}}),
            |m| {
                m.pods
                    .get(&name("shop", "web"))
                    .and_then(|p| Some(format!("{} {}", p.labels["app"], p.addresses.first()?)))
            },
        ),
        (
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("p", json!({})), "spec": {"podSelector": {}}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta("p", json!({})),
                "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}}),
            |m| m.policies.get(&name("shop", "p")).map(|p| p.ingress.len().to_string()),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("s", json!({})), "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 80}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("s", json!({})), "spec": {"clusterIP": "10.96.1.1", "ports": [{"port": 81}]}}),
            |m| m.services.get(&name("shop", "s")).map(|s| s.ports[0].port.to_string()),
        ),
        (
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta("s-1", json!({"kubernetes.io/service-name": "s"})),
                "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.1.0.2"]}]}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta("s-1", json!({"kubernetes.io/service-name": "s"})),
                "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.1.0.9"]}]}),
            |m| {
                m.slices
                    .get(&name("shop", "s-1"))
                    .and_then(|s| s.endpoints.first())
                    .map(|e| e.address.to_string())
            },
        ),
    ]
}

#[test]
fn every_kind_is_created_changed_and_deleted() {
    let server = server(Options::default());
    let source = Source::synced(&server);
    let client = server.client();
    client.apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})]);
    for (first, second, shows) in cases() {
        let kind = first["kind"].clone();
        assert_eq!(shows(&source.update().model), None, "{kind}: nothing yet");
        let mut shown = Vec::new();
        for object in [&first, &second] {
            let after = client.apply(std::slice::from_ref(object));
            shown.push(
                shows(&source.has(&after).model).unwrap_or_else(|| panic!("{kind} is not in the model")),
            );
        }
        assert_ne!(shown[0], shown[1], "{kind}");
    }
    // Backwards: what lives in a namespace goes before it.
    for (first, _, shows) in cases().into_iter().rev() {
        client.delete(&first);
        source.until("the object is gone", |u, _| shows(&u.model).is_none().then_some(()));
    }
    let state = source.state();
    assert_eq!((state.connected, state.relists, state.errors), (true, 0, 0), "{state:?}");
    assert!(source.update().problems.is_empty(), "{:?}", source.update().problems);
}

/// Labels alone, of pods and of namespaces: what selectors go by.
#[test]
fn labels_change() {
    let server = server(Options::default());
    let source = Source::synced(&server);
    let client = server.client();
    let pod = |label: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default", "labels": {"app": label}},
            "spec": {"containers": [{"name": "c", "image": "none"}]}})
    };
    for label in ["a", "b", "a"] {
        let update = source.has(&client.apply(&[pod(label)]));
        assert_eq!(update.model.pods[&name("default", "web")].labels["app"], label);
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"team": label}}});
        let update = source.has(&client.apply(&[namespace]));
        let labels = &update.model.namespaces["default"].labels;
        assert_eq!((&*labels["team"], &*labels["kubernetes.io/metadata.name"]), (label, "default"));
    }
}

/// The last good state stays in force, and an Event on the object says why; once, however often it changes.
#[test]
fn what_cannot_be_honoured_is_told_by_an_event() {
    let server = server(Options::default());
    let source = Source::synced(&server);
    let client = server.client();
    let pod = |mac: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "annotations": {"fastpath.io/mac": mac}},
            "spec": {"containers": [{"name": "c", "image": "none"}]}})
    };
    source.has(&client.apply(&[pod("02:00:00:00:00:01")]));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": {"fastpath.io/vtep-mac": "nonsense"}}});
    let bad = client.apply(&[pod("01:00:00:00:00:01"), node]);
    let update = source.has(&bad);
    let good = &update.model.pods[&name("default", "web")];
    assert_eq!(good.mac.map(|m| m.to_string()).as_deref(), Some("02:00:00:00:00:01"), "the last good state");
    assert!(!update.model.nodes.contains_key("n"), "there never was a good one");
    let said: Vec<String> = update.problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(update.problems.iter().all(|p| p.severity == Severity::Error));
    assert!(said[0].starts_with("Node n: metadata.annotations.fastpath.io/vtep-mac"), "{said:?}");
    assert!(said[1].starts_with("Pod default/web: metadata.annotations.fastpath.io/mac"), "{said:?}");

    source.until("two Events are written", |_, s| (s.reported == 2).then_some(()));
    let events = client.list("events.k8s.io/v1", "Event", "default");
    for (kind, object) in [("Pod", &bad[0]), ("Node", &bad[1])] {
        let event: Vec<_> = events.iter().filter(|e| e["regarding"]["kind"] == kind).collect();
        assert_eq!(event.len(), 1, "{events:#?}");
        assert_eq!(
            event[0]["regarding"]["uid"], object["metadata"]["uid"],
            "kubectl describe finds it by that"
        );
        assert_eq!((&event[0]["reason"], &event[0]["type"]), (&json!("NotInForce"), &json!("Warning")));
        assert!(
            event[0]["note"].as_str().unwrap().contains("metadata.annotations.fastpath.io/"),
            "{event:#?}"
        );
    }

    // A change beside the mistake is no new Event, nor is a second daemon; well again, nothing is left.
    let second = Source::synced(&server);
    second.until("the second daemon sees it too", |u, _| (u.problems.len() == 2).then_some(()));
    let touched = client.merge("v1", ("Pod", "default", "web"), json!({"metadata": {"labels": {"x": "y"}}}));
    source.has(&[touched]);
    let update = source.has(&client.apply(&[pod("02:00:00:00:00:02")]));
    assert_eq!(update.problems.len(), 1, "{:?}", update.problems);
    assert_eq!(update.model.pods[&name("default", "web")].labels["x"], "y");
    assert_eq!(client.list("events.k8s.io/v1", "Event", "default").len(), 2);
    assert_eq!((source.state().reported, second.state().reported), (2, 0));
}

/// Without permission to write Events all else works; without permission to see a kind nothing is acted on.
#[test]
fn permissions() {
    let server = server(Options::default());
    let client = server.client();
    let role = client.get("rbac.authorization.k8s.io/v1", "ClusterRole", "", "fastpath").expect("the role");
    let without = |resource: &str| {
        let mut role = role.clone();
        let rules = role["rules"].as_array_mut().unwrap();
        rules.retain(|r| r["resources"] != json!([resource]));
        let rules = rules.clone();
        client.merge(
            "rbac.authorization.k8s.io/v1",
            ("ClusterRole", "", "fastpath"),
            json!({"rules": rules}),
        );
    };
    without("events");
    let source = Source::synced(&server);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": {"fastpath.io/vtep-mac": "nonsense"}}});
    let update = source.has(&client.apply(&[node]));
    assert_eq!(update.problems.len(), 1);
    assert_eq!((source.state().reported, source.state().connected), (0, true));
    drop(source);

    without("networkpolicies");
    let source = Source::start(&server.agent_config(), None);
    let trouble = source.until("it says what is missing", |u, s| {
        assert!(!u.synced, "pods without their policies");
        let kinds = s.versions.len() + usize::try_from(s.lists).unwrap();
        (s.error.is_some() && kinds >= 5).then(|| s.trouble())
    });
    assert!(trouble[0].contains("networkpolicies") && trouble[0].contains("(403)"), "{trouble:?}");
}
