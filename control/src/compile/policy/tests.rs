use fastpath::tables::policy::RuleId;
use serde_json::{Value, json};

use super::*;
use crate::model::{Labels, Namespace, Node, Origin, Table};
use crate::source::convert::network_policy;

fn pod(model: &mut Model, name: &str, labels: &[(&str, &str)], node: &str, address: &str) {
    let (namespace, short) = name.split_once('/').unwrap();
    let name = ObjectName { namespace: namespace.into(), name: short.into() };
    let pod = Pod {
        name: name.clone(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        node: Some(node.into()),
        addresses: vec![address.parse().unwrap()],
        host_network: false,
        finished: false,
        ports: BTreeSet::from([("http".to_owned(), 6, 8080)]),
        host_ports: BTreeSet::new(),
        interface: None,
        netns: None,
        uid: None,
        mac: None,
        origin: Origin::Api,
    };
    model.pods.insert(name, Arc::new(pod));
}

fn policy(model: &mut Model, name: &str, line: u32, spec: Value) {
    let (namespace, short) = name.split_once('/').unwrap();
    let object = json!({"metadata": {"namespace": namespace, "name": short}, "spec": spec});
    let origin = |_: &str| Origin::File { path: "p.yaml".into(), line, parts: None };
    let policy = network_policy(&serde_json::from_value(object).unwrap(), origin).unwrap();
    model.policies.insert(policy.name.clone(), Arc::new(policy));
}

fn cluster() -> Model {
    let mut model = Model::default();
    for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2")] {
        let node = Node {
            name: name.into(),
            labels: Labels::new(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: Vec::new(),
            vtep_v4: None,
            vtep_v6: None,
            tunnel_addresses: Vec::new(),
            vtep_mac_v4: None,
            vtep_mac_v6: None,
            origin: Origin::Api,
        };
        model.nodes.insert(name.into(), Arc::new(node));
    }
    let labels = Labels::from([("kubernetes.io/metadata.name".into(), "shop".into())]);
    let shop = Namespace { name: "shop".into(), labels, origin: Origin::Api };
    model.namespaces.insert("shop".into(), Arc::new(shop));
    pod(&mut model, "shop/web", &[("app", "web")], "a", "10.0.0.1");
    pod(&mut model, "shop/db", &[("app", "db")], "a", "10.0.0.2");
    pod(&mut model, "shop/job", &[("app", "job")], "b", "10.0.1.1");
    let from_web = json!({"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}]});
    policy(&mut model, "shop/db", 1, from_web);
    model
}

fn ask(c: &Compiled, endpoint: &str, direction: Direction, peer: &str, port: u16) -> (bool, String) {
    let (namespace, name) = endpoint.split_once('/').unwrap();
    let group = c.endpoints[&ObjectName { namespace: namespace.into(), name: name.into() }];
    let ip = |s: &str| Ip::from(s.parse::<IpAddr>().unwrap());
    let v = c.table.evaluate(group, direction, ip("10.9.9.9"), ip(peer), 6, port);
    (v.allow, c.rules.get(v.rule).map(|i| i.decider.to_string()).unwrap_or_default())
}

#[test]
fn a_verdict_names_its_rule_or_the_isolation() {
    let c = compile(&cluster(), Scope::Node("a".into()));
    assert_eq!(
        ask(&c, "shop/db", Direction::Ingress, "10.0.0.1", 5432),
        (true, "shop/db ingress rule 0".into())
    );
    let isolated = "isolated: no policy allows (ingress: shop/db)";
    assert_eq!(ask(&c, "shop/db", Direction::Ingress, "10.0.0.1", 80), (false, isolated.into()));
    assert_eq!(ask(&c, "shop/db", Direction::Ingress, "10.0.1.1", 5432), (false, isolated.into()));
    assert_eq!(ask(&c, "shop/web", Direction::Ingress, "10.0.1.1", 1), (true, String::new()));
    // The own node is let in, another is not.
    assert_eq!(ask(&c, "shop/db", Direction::Ingress, "192.0.2.1", 80), (true, String::new()));
    assert_eq!(ask(&c, "shop/db", Direction::Ingress, "192.0.2.2", 80), (false, isolated.into()));
    // Pods of other nodes are peers, not endpoints.
    assert_eq!(c.endpoints.len(), 2);
}

#[test]
fn further_addresses_of_the_own_node_are_let_in() {
    let mut compiler = Compiler::new(Scope::Node("a".into()));
    let model = cluster();
    assert!(!ask(&compiler.update(&model), "shop/db", Direction::Ingress, "172.16.0.1", 80).0);
    compiler.set_own_addresses(vec!["172.16.0.1".parse().unwrap()]);
    assert!(ask(&compiler.update(&model), "shop/db", Direction::Ingress, "172.16.0.1", 80).0);
    compiler.set_own_addresses(Vec::new());
    assert!(!ask(&compiler.update(&model), "shop/db", Direction::Ingress, "172.16.0.1", 80).0);
}

/// Two pods claim an address; when the first by name goes, the other has it, though it did not change itself.
#[test]
fn an_address_passes_to_the_next_claimant() {
    let mut model = cluster();
    pod(&mut model, "shop/another", &[("app", "x")], "b", "10.0.0.1");
    let mut compiler = Compiler::new(Scope::Node("a".into()));
    assert!(!ask(&compiler.update(&model), "shop/db", Direction::Ingress, "10.0.0.1", 5432).0);
    model.pods.remove(&ObjectName { namespace: "shop".into(), name: "another".into() });
    // Enough other pods that the selectors are not simply worked out anew.
    for i in 0..9u8 {
        pod(&mut model, &format!("shop/other-{i}"), &[], "b", &format!("10.0.2.{i}"));
    }
    let with_others = model.clone();
    pod(&mut model, "shop/another", &[("app", "x")], "b", "10.0.0.1");
    let mut compiler = Compiler::new(Scope::Node("a".into()));
    assert!(!ask(&compiler.update(&model), "shop/db", Direction::Ingress, "10.0.0.1", 5432).0);
    assert!(ask(&compiler.update(&with_others), "shop/db", Direction::Ingress, "10.0.0.1", 5432).0);
}

#[test]
fn rule_ids_stay_and_rest_before_they_mean_something_else() {
    let mut model = cluster();
    let mut compiler = Compiler::new(Scope::Node("a".into()));
    let first = compiler.update(&model);
    let ids = |c: &Compiled| c.rules.iter().map(|(id, i)| (id, i.decider.to_string())).collect::<Vec<_>>();
    assert_eq!(ids(&first).len(), 2);
    assert_eq!(first.rules.iter().next().unwrap().0, RuleId::FIRST);

    // Another line: same ids, new origin. Another rule in front of the same policy: the ids of the indices stay.
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}]});
    policy(&mut model, "shop/db", 7, spec);
    let moved = compiler.update(&model);
    assert_eq!(ids(&moved), ids(&first));
    assert_eq!(moved.rules.get(RuleId::FIRST).unwrap().origin.to_string(), "p.yaml:7");

    let none = Model { policies: Table::default(), ..model.clone() };
    assert!(ids(&compiler.update(&none)).is_empty());
    policy(&mut model, "shop/other", 1, json!({"podSelector": {}}));
    model.policies.retain(|n, _| n.name == "other");
    let other = compiler.update(&model);
    assert!(other.rules.iter().all(|(id, _)| id.0 >= RuleId::FIRST.0 + 2), "{:?}", ids(&other));
    compiler.update(&none);
    policy(&mut model, "shop/third", 1, json!({"podSelector": {}}));
    let third = compiler.update(&model);
    assert!(third.rules.iter().any(|(id, _)| id == RuleId::FIRST), "{:?}", ids(&third));
}

/// What a change does not touch is the same table, not an equal one.
#[test]
fn unrelated_changes_rebuild_nothing() {
    let mut model = cluster();
    for i in 0..9u8 {
        pod(&mut model, &format!("shop/other-{i}"), &[("app", "other")], "b", &format!("10.0.2.{i}"));
    }
    let mut compiler = Compiler::new(Scope::Node("a".into()));
    let group = |c: &Compiled| {
        let name = ObjectName { namespace: "shop".into(), name: "db".into() };
        c.table.groups[usize::try_from(c.endpoints[&name].0).unwrap()].ingress.clone().unwrap()
    };
    let first = group(&compiler.update(&model));
    pod(&mut model, "shop/one-more", &[("app", "other")], "b", "10.0.3.1");
    pod(&mut model, "shop/web-2", &[("app", "web")], "b", "10.0.3.2");
    let more = compiler.update(&model);
    assert!(Arc::ptr_eq(&first, &group(&more)), "pods of known classes");
    assert!(ask(&more, "shop/db", Direction::Ingress, "10.0.3.2", 5432).0);
    policy(&mut model, "shop/web", 1, json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    assert!(Arc::ptr_eq(&first, &group(&compiler.update(&model))), "another pod's policy");
    policy(&mut model, "shop/db-2", 1, json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    assert!(!Arc::ptr_eq(&first, &group(&compiler.update(&model))), "its own policy");
}

/// Classes that are forgotten change nothing that is in force: a new table would have every flow decided again.
#[test]
fn forgotten_classes_rebuild_nothing() {
    let with_tiers = |count: u8| {
        let mut model = cluster();
        let peers: Vec<Value> =
            (0..count).map(|i| json!({"podSelector": {"matchLabels": {"tier": format!("t{i}")}}})).collect();
        let rules: Vec<Value> = peers.iter().map(|p| json!({"from": [p]})).collect();
        let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": rules,
            "egress": [{"ports": [{"port": "http"}]}]});
        policy(&mut model, "shop/tiers", 1, spec);
        model
    };
    let mut model = with_tiers(200);
    let unrelated = model.clone();
    for i in 0..200u8 {
        let tier = format!("t{i}");
        pod(&mut model, &format!("shop/tier-{i}"), &[("tier", &tier)], "b", &format!("10.0.2.{i}"));
    }
    let mut compiler = Compiler::new(Scope::Node("a".into()));
    let known = compiler.update(&model);
    assert!(ask(&known, "shop/db", Direction::Ingress, "10.0.2.7", 80).0);
    let before = compiler.update(&unrelated);
    let (len, dead) = (compiler.sizes().classes, compiler.classes.known());
    assert!(dead > len + 100, "{dead} of which {len} in use");
    compiler.tidy();
    assert_eq!(compiler.classes.known(), len, "they are forgotten");
    // A pod that no rule tells of.
    let mut after = unrelated.clone();
    pod(&mut after, "shop/other", &[("app", "other")], "b", "10.0.3.1");
    let after = compiler.update(&after);
    for (x, y) in before.table.groups.iter().zip(&after.table.groups) {
        for (x, y) in [(&x.ingress, &y.ingress), (&x.egress, &y.egress)] {
            assert_eq!(x.as_ref().map(Arc::as_ptr), y.as_ref().map(Arc::as_ptr));
        }
    }
    // And their pods come back as what they were.
    let again = compiler.update(&model);
    assert!(ask(&again, "shop/db", Direction::Ingress, "10.0.2.7", 80).0);
    assert!(!ask(&after, "shop/db", Direction::Ingress, "10.0.2.7", 80).0);
}

#[test]
fn endpoints_under_the_same_policies_share_a_group() {
    let mut model = cluster();
    pod(&mut model, "shop/web-2", &[("app", "web")], "a", "10.0.0.3");
    pod(&mut model, "shop/db-2", &[("app", "db")], "a", "10.0.0.4");
    let c = compile(&model, Scope::Node("a".into()));
    let of = |name: &str| c.endpoints[&ObjectName { namespace: "shop".into(), name: name.into() }];
    assert_eq!(of("web"), of("web-2"));
    assert_eq!(of("db"), of("db-2"));
    assert_ne!(of("web"), of("db"));
    assert_eq!(c.table.groups.len(), 2);
}

#[test]
fn reasons_tell_what_each_rule_lacked() {
    let mut compiler = Compiler::new(Scope::Cluster);
    compiler.update(&cluster());
    let db = ObjectName { namespace: "shop".into(), name: "db".into() };
    let ask = |peer: &str, port| {
        let peer = Ip::from(peer.parse::<IpAddr>().unwrap());
        let reasons = compiler.reasons(&db, Direction::Ingress, peer, 6, port);
        let [policy] = &reasons[..] else { panic!("{reasons:?}") };
        let [rule] = &policy.rules[..] else { panic!("{policy:?}") };
        assert_eq!(
            (policy.policy.to_string(), rule.origin.to_string()),
            ("shop/db".into(), "p.yaml:1".into())
        );
        (rule.peer, rule.port)
    };
    assert_eq!(ask("10.0.0.1", 5432), (true, true));
    assert_eq!(ask("10.0.0.1", 80), (true, false));
    assert_eq!(ask("10.0.1.1", 5432), (false, true));
    assert_eq!(ask("198.51.100.1", 80), (false, false));
    assert!(compiler.reasons(&db, Direction::Egress, Ip::v4([10, 0, 0, 1]), 6, 80).is_empty());
}
