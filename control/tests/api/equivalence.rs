//! The API gives the model that the same objects in a folder give.

use fastpath_control::model::{Model, Origin, Table};
use fastpath_control::source::load_dir;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use super::*;

/// Namespaces that are ours.
const OURS: [&str; 3] = ["shop", "db", "bare"];

fn object(api_version: &str, kind: &str, place: (&str, &str), more: Value) -> Value {
    let mut metadata = json!({"name": place.1});
    if !place.0.is_empty() {
        metadata["namespace"] = place.0.into();
    }
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
    for (key, value) in more.as_object().expect("fields") {
        if key == "metadata" {
            for (key, value) in value.as_object().expect("fields") {
                object["metadata"][key] = value.clone();
            }
        } else {
            object[key] = value.clone();
        }
    }
    object
}

/// Every field the model is made of, in more than one form.
fn objects() -> Vec<Value> {
    let mut out = Vec::new();
    for (i, namespace) in OURS.iter().enumerate() {
        out.push(object(
            "v1",
            "Namespace",
            ("", namespace),
            json!({"metadata": {"labels": {"team": format!("t{i}"), "x.io/env": ""}}}),
        ));
    }
    let addresses = |list: &[&str]| {
        let one = |a: &&str| json!({"type": "InternalIP", "address": a});
        json!({"addresses": list.iter().map(one).chain([json!({"type": "Hostname", "address": "h"})]).collect::<Vec<_>>()})
    };
    out.push(object("v1", "Node", ("", "n1"), json!({
        "metadata": {"labels": {"rack": "r1"}, "annotations": {
            "projectcalico.org/VXLANTunnelMACAddr": "66:00:00:00:00:01", "projectcalico.org/VXLANTunnelMACAddrV6": "66:00:00:00:00:02"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]}, "status": addresses(&["192.0.2.1", "2001:db8::1"])})));
    out.push(object("v1", "Node", ("", "n2"), json!({
        "metadata": {"annotations": {"flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"66:00:00:00:00:03\"}"}},
        "spec": {"podCIDR": "10.2.0.0/24", "podCIDRs": ["10.2.0.0/24"]}, "status": addresses(&["192.0.2.2"])})));
    out.push(object("v1", "Node", ("", "bare"), json!({})));

    let pod = |namespace, name, labels: Value, spec: Value, status: Value| {
        let mut full = json!({"containers": [{"name": "c", "image": "none"}], "nodeName": "n1"});
        for (key, value) in spec.as_object().expect("fields") {
            full[key] = value.clone();
        }
        let annotations = json!({"fastpath.io/interface": format!("fp-{name}"), "fastpath.io/mac": "02:00:00:00:00:05", "fastpath.io/netns": "/run/netns/x"});
        let metadata = if name == "web" {
            json!({"labels": labels, "annotations": annotations})
        } else {
            json!({"labels": labels})
        };
        object("v1", "Pod", (namespace, name), json!({"metadata": metadata, "spec": full, "status": status}))
    };
    let ips = |list: &[&str], phase: &str| {
        let all: Vec<_> = list.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"phase": phase, "podIP": list[0], "podIPs": all})
    };
    let ports = json!([{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"containerPort": 9}]);
    out.push(pod(
        "shop",
        "web",
        json!({"app": "web", "tier": ""}),
        json!({"containers": [{"name": "c", "image": "none", "ports": ports}]}),
        ips(&["10.1.0.2", "fd00:1::2"], "Running"),
    ));
    out.push(pod("shop", "done", json!({"app": "web"}), json!({}), ips(&["10.1.0.2"], "Succeeded")));
    out.push(pod("db", "host", json!({}), json!({"hostNetwork": true}), ips(&["192.0.2.1"], "Running")));
    out.push(pod("db", "pending", json!({"app": "db"}), json!({}), json!({"phase": "Pending"})));
    // Two that claim one address: the conflict is settled, and reported, alike.
    out.push(pod("db", "twin", json!({}), json!({}), ips(&["10.1.0.2"], "Running")));

    let service = |name, spec: Value, status: Value| {
        object("v1", "Service", ("shop", name), json!({"spec": spec, "status": status}))
    };
    let both = |n: u8| json!([format!("10.96.2.{n}"), format!("fd00:96::2{n:02}")]);
    out.push(service("plain", json!({"clusterIP": "10.96.2.1", "clusterIPs": both(1), "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "dns", "protocol": "UDP", "port": 53}]}), json!({})));
    out.push(service(
        "sticky",
        json!({"clusterIP": "10.96.2.2", "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local",
        "trafficDistribution": "PreferClose", "externalIPs": ["203.0.113.7"], "ports": [{"port": 80}]}),
        json!({}),
    ));
    out.push(service(
        "headless",
        json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]}),
        json!({}),
    ));
    out.push(service("alias", json!({"type": "ExternalName", "externalName": "example.org"}), json!({})));
    out.push(service("node", json!({"type": "NodePort", "clusterIP": "10.96.2.3", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]}), json!({})));
    out.push(service("balanced", json!({"type": "LoadBalancer", "clusterIP": "10.96.2.4", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        "loadBalancerSourceRanges": ["198.51.100.0/24"], "ports": [{"port": 80, "nodePort": 30081}]}),
        json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "VIP"}, {"ip": "203.0.113.10", "ipMode": "Proxy"}]}})));

    let slice = |name, kind: &str, endpoints: Value| {
        object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            ("shop", name),
            json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "plain"}}, "addressType": kind,
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}], "endpoints": endpoints}),
        )
    };
    out.push(slice("plain-4", "IPv4", json!([
        {"addresses": ["10.1.0.2"], "conditions": {"ready": true}, "nodeName": "n1", "zone": "z1", "hints": {"forZones": [{"name": "z1"}]},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web"}},
        {"addresses": ["10.1.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.1.0.4"]}])));
    out.push(slice("plain-6", "IPv6", json!([{"addresses": ["fd00:1::2"], "conditions": {"ready": false}}])));
    out.push(slice("names", "FQDN", json!([{"addresses": ["example.org"]}])));
    out.push(object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        ("shop", "alone"),
        json!({"addressType": "IPv4", "endpoints": []}),
    ));

    // Random policies, as many as the classifier's own properties are tested with; in our namespaces.
    let mut runner = TestRunner::deterministic();
    for i in 0..60 {
        let policy = worlds::policy().new_tree(&mut runner).expect("a policy").current();
        let mut value = serde_json::to_value(&policy).expect("JSON");
        without_host_bits(&mut value);
        value["metadata"] = json!({"name": format!("policy-{i}"), "namespace": OURS[i % OURS.len()]});
        out.push(value);
    }
    out
}

/// The API server of today refuses what it has of old: networks with host bits.
fn without_host_bits(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Ok(net) = text.parse::<ipnet::IpNet>() {
                *text = net.trunc().to_string();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(without_host_bits),
        Value::Object(fields) => fields.values_mut().for_each(without_host_bits),
        _ => {}
    }
}

/// Without origins, and without what the server itself makes.
fn plain(model: &Model) -> Model {
    let ours = |namespace: &str| OURS.contains(&namespace);
    let mut model = model.clone();
    model.namespaces.retain(|name, _| ours(name));
    model.services.retain(|name, _| ours(&name.namespace));
    fn each<K: Ord, V: Clone>(map: &mut Table<K, V>, set: impl Fn(&mut V)) {
        map.values_mut().for_each(|v| set(Arc::make_mut(v)));
    }
    each(&mut model.nodes, |o| o.origin = Origin::Api);
    each(&mut model.namespaces, |o| o.origin = Origin::Api);
    each(&mut model.pods, |o| {
        o.origin = Origin::Api;
        o.uid = None;
    });
    each(&mut model.services, |o| o.origin = Origin::Api);
    each(&mut model.slices, |o| o.origin = Origin::Api);
    each(&mut model.policies, |o| {
        o.origin = Origin::Api;
        o.ingress.iter_mut().chain(&mut o.egress).for_each(|r| r.origin = Origin::Api);
    });
    model
}

#[test]
fn the_same_objects_give_the_same_model() {
    let server = server(Options::default());
    let objects = objects();
    let dir = server.dir().join("manifests");
    std::fs::create_dir_all(&dir).unwrap();
    for (i, object) in objects.iter().enumerate() {
        std::fs::write(dir.join(format!("{i:03}.json")), object.to_string()).unwrap();
    }
    let folder = load_dir(&dir).unwrap();
    // Applied before the source starts, all by lists; then by watch, object by object, to a second one.
    let watching = Source::synced(&server);
    let after = server.client().apply(&objects);
    let listing = Source::synced(&server);
    for (how, source) in [("by watch", watching), ("by list", listing)] {
        let update = source.has(&after);
        for applied in after.iter().filter(|o| o["kind"] == "Pod") {
            let meta = |field: &str| applied["metadata"][field].as_str().unwrap();
            let pod = &update.model.pods[&name(meta("namespace"), meta("name"))];
            assert_eq!(pod.uid.as_deref(), Some(meta("uid")), "{how}");
        }
        let (want, got) = (plain(&folder.model), plain(&update.model));
        for (name, pod) in &want.pods {
            assert_eq!(got.pods.get(name), Some(pod), "{how}");
        }
        for (name, service) in &want.services {
            assert_eq!(got.services.get(name), Some(service), "{how}");
        }
        for (name, policy) in &want.policies {
            assert_eq!(got.policies.get(name), Some(policy), "{how}");
        }
        assert_eq!(got, want, "{how}");
        // Who has the address differs in nothing but where the objects were read.
        let texts: Vec<String> = update.problems.iter().map(|p| p.reason.clone()).collect();
        assert_eq!(texts.len(), folder.problems.len(), "{texts:?} and {:?}", folder.problems);
        assert!(texts.iter().any(|t| t.contains("address 10.1.0.2 belongs to Pod db/twin")), "{texts:?}");
    }
}
