use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::source::assemble::{FileObjects, assemble};
use crate::source::kinds::KINDS;
use crate::source::kubernetes::decode::decode;

/// One thing that happens to the API.
#[derive(Clone, Debug)]
enum Step {
    Put(&'static str, Value),
    Remove(&'static str, &'static str, String),
}

fn seen(kind: &'static str, object: Value) -> Seen {
    let kind = KINDS.iter().find(|k| k.kind == kind).expect("a kind we follow");
    decode(kind, object, true).expect("it has a name")
}

const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "fd00::3"];

/// Few names and few addresses, so that they meet.
fn step() -> impl Strategy<Value = Step> {
    let addresses = || prop::sample::subsequence(&ADDRESSES[..], 0..3);
    let namespace = || prop::sample::select(&["a", "b"][..]);
    let node = (0..3u8, addresses(), 0..3u8).prop_map(|(n, addresses, cidr)| {
        let addresses: Vec<_> =
            addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        Step::Put(
            "Node",
            json!({"metadata": {"name": format!("n{n}"), "uid": format!("n{n}")},
                "spec": {"podCIDR": format!("10.{cidr}.0.0/{}", 14 + cidr)}, "status": {"addresses": addresses}}),
        )
    });
    let pod = (namespace(), 0..4u8, addresses(), 0..2u8, prop::option::of(0..2u8), 0..8u8).prop_map(
        |(namespace, p, addresses, node, interface, mode)| {
            let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            let annotations = interface.map(|i| json!({"fastpath.io/interface": format!("veth{i}")}));
            Step::Put(
                "Pod",
                json!({"metadata": {"name": format!("p{p}"), "namespace": namespace, "annotations": annotations},
                    "spec": {"containers": [], "nodeName": format!("n{node}"), "hostNetwork": mode == 0},
                    "status": {"phase": if mode == 1 { "Failed" } else { "Running" }, "podIPs": ips}}),
            )
        },
    );
    let other = (namespace(), 0..4u8, 0..2u8).prop_map(|(namespace, which, version)| match which {
        0 => Step::Put("Namespace", json!({"metadata": {"name": namespace, "labels": {"v": version.to_string()}}})),
        1 => Step::Put(
            "NetworkPolicy",
            json!({"metadata": {"name": "x", "namespace": namespace}, "spec": {"podSelector": {"matchLabels": {"v": version.to_string()}}}}),
        ),
        2 => Step::Put(
            "Service",
            json!({"metadata": {"name": "x", "namespace": namespace}, "spec": {"ports": [{"port": u16::from(version) + 1}]}}),
        ),
        _ => Step::Put(
            "EndpointSlice",
            json!({"metadata": {"name": "x", "namespace": namespace}, "addressType": "IPv4", "endpoints": []}),
        ),
    });
    let remove = (0..6usize, namespace(), 0..4u8).prop_map(|(kind, namespace, n)| match kind {
        0 => Step::Remove("Node", "", format!("n{n}")),
        1 => Step::Remove("Namespace", "", namespace.to_owned()),
        2 => Step::Remove("Pod", namespace, format!("p{n}")),
        3 => Step::Remove("NetworkPolicy", namespace, "x".to_owned()),
        4 => Step::Remove("Service", namespace, "x".to_owned()),
        _ => Step::Remove("EndpointSlice", namespace, "x".to_owned()),
    });
    prop_oneof![4 => pod, 2 => node, 2 => other, 3 => remove]
}

fn key(kind: &'static str, namespace: &str, name: &str) -> Key {
    Key { kind, name: ObjectName { namespace: namespace.to_owned(), name: name.to_owned() } }
}

proptest! {
    /// After any history the model is the one that all present objects together give, and so is what is wrong.
    #[test]
    fn one_change_at_a_time_is_all_at_once(steps in prop::collection::vec(step(), 1..60)) {
        let mut store = Store::default();
        let mut present: BTreeMap<Key, Object> = BTreeMap::new();
        for step in steps {
            let before = store.model().clone();
            let wrong = store.wrong();
            let changed = match step {
                Step::Put(kind, object) => {
                    let seen = seen(kind, object);
                    let object = seen.object.clone();
                    present.insert(seen.key.clone(), object.expect("the generator makes valid objects"));
                    store.put(seen)
                }
                Step::Remove(kind, namespace, name) => {
                    present.remove(&key(kind, namespace, &name));
                    store.remove(&key(kind, namespace, &name))
                }
            };
            let objects = FileObjects { good: present.clone().into_iter().collect(), ..FileObjects::default() };
            let files = BTreeMap::from([(Arc::from("all"), Arc::new(objects))]);
            let want = assemble(&files, &BTreeMap::new());
            prop_assert_eq!(store.model(), &want.model);
            let mut got: Vec<String> = store.wrong().into_iter().map(|w| w.problem.reason).collect();
            let mut all: Vec<String> = want.problems.into_iter().map(|p| p.reason).collect();
            got.sort();
            all.sort();
            prop_assert_eq!(got, all);
            // Silence about a change would never be published.
            if before != *store.model() {
                prop_assert!(changed, "{:?}", wrong);
            }
            for kind in KINDS {
                let names: BTreeSet<ObjectName> = store.names(kind.kind).into_iter().collect();
                let want: BTreeSet<ObjectName> =
                    present.keys().filter(|k| k.kind == kind.kind).map(|k| k.name.clone()).collect();
                prop_assert_eq!(names, want, "{}", kind.kind);
            }
        }
    }
}

fn pod(name: &str, address: &str, leaving: bool) -> Seen {
    let gone = leaving.then_some("2026-01-01T00:00:00Z");
    seen(
        "Pod",
        json!({"metadata": {"name": name, "namespace": "a", "uid": format!("uid-{name}"), "deletionTimestamp": gone},
            "spec": {"containers": [], "nodeName": "n"}, "status": {"podIPs": [{"ip": address}]}}),
    )
}

/// An address is given to a new pod while the object of the old one lingers.
#[test]
fn a_pod_that_goes_gives_its_address_away() {
    let mut store = Store::default();
    store.put(pod("a", "10.0.0.1", false));
    store.put(pod("b", "10.0.0.1", false));
    let addresses = |store: &Store, name: &str| {
        store.model().pods[&ObjectName { namespace: "a".into(), name: name.into() }].addresses.len()
    };
    assert_eq!((addresses(&store, "a"), addresses(&store, "b")), (1, 0), "the first by name");
    let wrong = store.wrong();
    assert_eq!(wrong.len(), 1);
    assert_eq!(&*wrong[0].uid, "uid-b");
    assert_eq!(
        wrong[0].problem.to_string(),
        "Pod a/b: address 10.0.0.1 belongs to Pod a/a (api); Pod a/b is not given it"
    );
    assert!(store.put(pod("a", "10.0.0.1", true)));
    assert_eq!((addresses(&store, "a"), addresses(&store, "b")), (0, 1), "the one that stays");
    assert!(store.remove(&key("Pod", "a", "a")));
    assert_eq!((addresses(&store, "b"), store.wrong().len()), (1, 0));
}

/// What cannot be honoured leaves the last good state in force, is reported once, and is gone when it is gone.
#[test]
fn the_last_good_state_stays() {
    let policy = |label: &str| {
        seen(
            "NetworkPolicy",
            json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"podSelector": {"matchLabels": {"k": label}}}}),
        )
    };
    let mut store = Store::default();
    assert!(store.put(policy("v")));
    assert!(!store.put(policy("v")), "the same again is no news");
    let good = store.model().clone();
    assert!(store.put(policy("not a label value")));
    assert_eq!(*store.model(), good);
    assert_eq!((store.wrong().len(), &*store.wrong()[0].uid), (1, "u"));
    assert!(!store.put(policy("not a label value")), "nor is the same mistake");
    assert!(store.put(policy("v")));
    assert!(store.wrong().is_empty());
    store.put(policy("not a label value"));
    assert!(store.remove(&key("NetworkPolicy", "a", "p")));
    assert!(
        store.wrong().is_empty() && store.model().policies.is_empty() && store.model().namespaces.is_empty()
    );
    // Never good: it is not in force, but known, so that a list without it takes it away.
    assert!(store.put(policy("not a label value")));
    assert_eq!(store.names("NetworkPolicy").len(), 1);
    assert!(store.remove(&key("NetworkPolicy", "a", "p")));
    assert!(store.names("NetworkPolicy").is_empty());
}

/// An object that was deleted while nobody looked, and made anew with a mistake: the old one's state is not its own.
#[test]
fn the_last_good_state_is_the_objects_own() {
    let object = |kind: &'static str, uid: &str, good: bool| {
        let meta =
            |namespaced: bool| json!({"name": "p", "namespace": namespaced.then_some("a"), "uid": uid});
        let label = if good { "v" } else { "not a label value" };
        match kind {
            "Pod" => json!({"metadata": meta(true), "spec": {"containers": [], "nodeName": "n"},
                "status": {"podIPs": [{"ip": if good { "10.0.0.1" } else { "127.0.0.1" }}]}}),
            "Node" => {
                json!({"metadata": meta(false), "spec": {"podCIDR": if good { "10.0.0.0/24" } else { "x" }}})
            }
            "NetworkPolicy" => {
                json!({"metadata": meta(true), "spec": {"podSelector": {"matchLabels": {"k": label}}}})
            }
            "Service" => json!({"metadata": meta(true), "spec": {"ports": [{"port": u16::from(good)}]}}),
            _ => {
                json!({"metadata": meta(true), "addressType": if good { "IPv4" } else { "x" }, "endpoints": []})
            }
        }
    };
    for kind in ["Pod", "Node", "NetworkPolicy", "Service", "EndpointSlice"] {
        let in_force = |store: &Store| {
            let m = store.model();
            let policies = m.policies.values().filter(|p| !p.closed).count();
            m.pods.len() + m.nodes.len() + policies + m.services.len() + m.slices.len()
        };
        let mut store = Store::default();
        assert!(store.put(seen(kind, object(kind, "first", true))), "{kind}");
        assert_eq!(in_force(&store), 1, "{kind}");
        assert!(store.put(seen(kind, object(kind, "first", false))), "{kind}");
        assert_eq!((in_force(&store), store.wrong().len()), (1, 1), "{kind}: its own last good state");
        assert!(store.put(seen(kind, object(kind, "second", false))), "{kind}");
        assert_eq!((in_force(&store), store.wrong().len()), (0, 1), "{kind}: not another's");
        assert_eq!(&*store.wrong()[0].uid, "second", "{kind}");
        assert_eq!(store.names(kind).len(), 1, "{kind}");
        assert!(store.put(seen(kind, object(kind, "second", true))), "{kind}");
        assert_eq!((in_force(&store), store.wrong().len()), (1, 0), "{kind}");
    }
}

/// A policy that never was good isolates all the same; the newest such state does, and a good one wins over all of them.
#[test]
fn a_policy_that_never_was_good_isolates() {
    let policy = |label: &str, cidr: &str| {
        seen(
            "NetworkPolicy",
            json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"podSelector": {"matchLabels": {"k": label}},
                "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}}),
        )
    };
    let mut store = Store::default();
    let name = ObjectName { namespace: "a".into(), name: "p".into() };
    let in_force = |store: &Store| {
        let p = &store.model().policies[&name];
        (p.closed, p.pod_selector.to_string(), p.ingress.len(), store.wrong().len())
    };
    assert!(store.put(policy("v", "ten")));
    assert_eq!(in_force(&store), (true, "k=v".to_owned(), 0, 1));
    assert!(store.model().namespaces.contains_key("a"));
    assert!(store.put(policy("w", "ten")));
    assert_eq!(in_force(&store), (true, "k=w".to_owned(), 0, 1), "no last good state: the newest");
    assert!(store.put(policy("x", "10.0.0.0/8")));
    assert_eq!(in_force(&store), (false, "k=x".to_owned(), 1, 0));
    assert!(store.put(policy("y", "ten")));
    assert_eq!(in_force(&store), (false, "k=x".to_owned(), 1, 1), "the last good state");
    assert!(store.remove(&key("NetworkPolicy", "a", "p")));
    assert!(store.model().policies.is_empty() && store.model().namespaces.is_empty());
}
