use serde_json::{Value, json};

use super::*;
use crate::model::{Labels, Namespace, Origin};
use crate::source::convert::network_policy;

fn pod(model: &mut Model, name: &str, labels: &[(&str, &str)], address: &str, ports: &[(&str, u8, u16)]) {
    let (namespace, short) = name.split_once('/').unwrap();
    let name = ObjectName { namespace: namespace.into(), name: short.into() };
    let pod = Pod {
        name: name.clone(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        node: None,
        addresses: vec![address.parse().unwrap()],
        host_network: false,
        finished: false,
        ports: ports.iter().map(|(n, p, port)| ((*n).to_owned(), *p, *port)).collect(),
        host_ports: std::collections::BTreeSet::new(),
        interface: None,
        netns: None,
        uid: None,
        mac: None,
        origin: Origin::Api,
    };
    model.pods.insert(name, Arc::new(pod));
    let labels = Labels::from([("kubernetes.io/metadata.name".into(), namespace.into())]);
    let ns = Namespace { name: namespace.into(), labels, origin: Origin::Implied };
    model.namespaces.insert(namespace.into(), Arc::new(ns));
}

fn cluster() -> Model {
    let mut model = Model::default();
    pod(&mut model, "shop/web", &[("app", "web")], "10.0.0.1", &[("http", 6, 8080)]);
    pod(&mut model, "shop/db", &[("app", "db")], "10.0.0.2", &[]);
    model
}

fn findings(model: &mut Model, spec: Value) -> Vec<String> {
    let object = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec});
    let policy = network_policy(&serde_json::from_value(object).unwrap(), |_| Origin::Api).unwrap();
    model.policies.insert(policy.name.clone(), Arc::new(policy));
    lint(model).iter().map(|f| format!("{} {}", f.kind.name(), f.path)).collect()
}

#[test]
fn what_is_found() {
    let web = json!({"matchLabels": {"app": "web"}});
    let none = json!({"matchLabels": {"app": "none"}});
    let ingress = |rule: Value| json!({"podSelector": web, "ingress": [rule]});
    // Everything else would find DNS missing.
    let egress = |rule: Value| json!({"podSelector": web, "policyTypes": ["Egress"], "egress": [rule, {"ports": [{"protocol": "UDP", "port": 53}]}]});
    for (spec, want) in [
        (json!({"podSelector": web}), vec![]),
        (ingress(json!({})), vec![]),
        (json!({"podSelector": none}), vec!["selects-nothing spec.podSelector"]),
        (
            json!({"podSelector": web, "policyTypes": ["Ingress"], "egress": [{}]}),
            vec!["ignored-rules spec.egress"],
        ),
        (
            ingress(json!({"from": [{"podSelector": none}, {"podSelector": {}}]})),
            vec!["selects-nothing spec.ingress[0].from[0].podSelector"],
        ),
        (
            ingress(json!({"from": [{"podSelector": none}]})),
            vec!["selects-nothing spec.ingress[0].from[0].podSelector", "never-matches spec.ingress[0]"],
        ),
        (
            ingress(
                json!({"from": [{"namespaceSelector": {"matchLabels": {"x": "y"}}}, {"podSelector": web}]}),
            ),
            vec!["selects-nothing spec.ingress[0].from[0].namespaceSelector"],
        ),
        (
            ingress(json!({"from": [{"namespaceSelector": {}, "podSelector": none}, {"podSelector": web}]})),
            vec!["selects-nothing spec.ingress[0].from[0].podSelector"],
        ),
        (
            ingress(
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/9", "10.128.0.0/9"]}}]}),
            ),
            vec!["selects-nothing spec.ingress[0].from[0].ipBlock", "never-matches spec.ingress[0]"],
        ),
        (ingress(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/9"]}}]})), vec![]),
        (ingress(json!({"ports": [{"port": "http"}]})), vec![]),
        (
            ingress(json!({"ports": [{"port": "http", "protocol": "UDP"}, {"port": 80}]})),
            vec!["unknown-port spec.ingress[0].ports[0]"],
        ),
        (
            ingress(json!({"ports": [{"port": "https"}]})),
            vec!["unknown-port spec.ingress[0].ports[0]", "never-matches spec.ingress[0]"],
        ),
        (egress(json!({"ports": [{"port": "http"}]})), vec![]),
        (
            egress(
                json!({"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "http"}]}),
            ),
            vec!["unknown-port spec.egress[0].ports[0]", "never-matches spec.egress[0]"],
        ),
        (
            egress(json!({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": "http"}]})),
            vec!["unknown-port spec.egress[0].ports[0]", "never-matches spec.egress[0]"],
        ),
        (
            egress(
                json!({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"podSelector": web}], "ports": [{"port": "http"}]}),
            ),
            vec![],
        ),
        (json!({"podSelector": web, "policyTypes": ["Egress"]}), vec!["no-dns spec.egress"]),
        (json!({"podSelector": web, "egress": [{"ports": [{"port": 53}]}]}), vec!["no-dns spec.egress"]),
        (json!({"podSelector": web, "egress": [{"to": [{"podSelector": {}}]}]}), vec![]),
    ] {
        assert_eq!(findings(&mut cluster(), spec.clone()), want, "{spec}");
    }
}

/// When the cluster's DNS is known it is that which must be reached, by the union of all policies.
#[test]
fn dns_that_is_known() {
    let mut model = cluster();
    pod(&mut model, "kube-system/dns", &[("k8s-app", "kube-dns")], "10.0.9.9", &[("dns", 17, 5353)]);
    let web = json!({"matchLabels": {"app": "web"}});
    let to_port = |port: u16| json!({"podSelector": web, "policyTypes": ["Egress"], "egress": [{"ports": [{"protocol": "UDP", "port": port}]}]});
    assert_eq!(findings(&mut model, to_port(53)), ["no-dns spec.egress"]);
    assert!(findings(&mut model, to_port(5353)).is_empty());
    let own =
        json!({"podSelector": web, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]});
    assert_eq!(findings(&mut model, own.clone()), ["no-dns spec.egress"]);
    // Another policy for the same pods lets them.
    let object = json!({"metadata": {"namespace": "shop", "name": "dns"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]}]}});
    let dns = network_policy(&serde_json::from_value(object).unwrap(), |_| Origin::Api).unwrap();
    model.policies.insert(dns.name.clone(), Arc::new(dns));
    assert!(findings(&mut model, own).is_empty());
}
