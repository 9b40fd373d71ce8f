use serde_json::{Value, json};

use super::*;
use crate::model::Origin;
use crate::source::convert;

fn model(services: &[(&str, Value)], slices: &[(&str, &str, Value)]) -> Model {
    let mut model = Model::default();
    for (name, spec) in services {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let s = convert::service(&serde_json::from_value(object).unwrap(), |_| Origin::Api).unwrap();
        model.services.insert(s.name.clone(), Arc::new(s));
    }
    for (i, (service, family, body)) in slices.iter().enumerate() {
        let mut object = json!({"metadata": {"name": format!("s{i}"), "labels": {"kubernetes.io/service-name": service}},
            "addressType": family});
        object.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let s = convert::endpoint_slice(&serde_json::from_value(object).unwrap(), |_| Origin::Api).unwrap();
        model.slices.insert(s.name.clone(), Arc::new(s));
    }
    model
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn usable(f: &Frontend, node: Option<&str>) -> Vec<String> {
    f.backends.usable(node).iter().map(|b| std::net::SocketAddr::new(b.address, b.port).to_string()).collect()
}

#[test]
fn backends_are_matched_by_port_name_protocol_and_family() {
    let m = model(
        &[(
            "web",
            json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "type": "NodePort", "ports": [
            {"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        )],
        &[
            (
                "web",
                "IPv4",
                json!({"ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
                "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]}),
            ),
            (
                "web",
                "IPv4",
                json!({"ports": [{"name": "http", "port": 8081}], "endpoints": [{"addresses": ["10.0.0.3"]}]}),
            ),
            (
                "web",
                "IPv6",
                json!({"ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["fd01::1"]}]}),
            ),
            (
                "other",
                "IPv4",
                json!({"ports": [{"name": "http", "port": 1}], "endpoints": [{"addresses": ["10.0.0.9"]}]}),
            ),
        ],
    );
    let s = compile(&m);
    let at = |a: &str, p, port| usable(s.frontend(ip(a), p, port).unwrap(), None);
    assert_eq!(at("10.96.0.1", Protocol::Tcp, 80), ["10.0.0.1:8080", "10.0.0.3:8081"]);
    assert_eq!(at("10.96.0.1", Protocol::Udp, 53), ["10.0.0.1:5353"]);
    assert_eq!(at("fd00::1", Protocol::Tcp, 80), ["[fd01::1]:8080"]);
    assert!(at("fd00::1", Protocol::Udp, 53).is_empty());
    assert!(s.frontend(ip("10.96.0.1"), Protocol::Udp, 80).is_none());
    assert_eq!(usable(s.node_port(true, Protocol::Tcp, 30080).unwrap(), None).len(), 2);
    assert_eq!(usable(s.node_port(false, Protocol::Tcp, 30080).unwrap(), None).len(), 1);
    assert_eq!(s.addresses.len(), 2);
}

#[test]
fn terminating_ones_serve_only_when_none_is_ready() {
    let endpoint = |host: u8, ready: bool, serving: bool, terminating: bool, node: &str| {
        json!({"addresses": [format!("10.0.0.{host}")], "nodeName": node,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    };
    let of = |endpoints: &[Value], node: Option<&str>| {
        let m = model(
            &[("s", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}))],
            &[("s", "IPv4", json!({"ports": [{"port": 80}], "endpoints": endpoints}))],
        );
        usable(compile(&m).frontend(ip("10.96.0.1"), Protocol::Tcp, 80).unwrap(), node)
    };
    let all = [
        endpoint(1, true, true, false, "a"),
        endpoint(2, false, true, true, "b"),
        endpoint(3, false, true, false, "b"),
        endpoint(4, false, false, true, "b"),
    ];
    assert_eq!(of(&all, None), ["10.0.0.1:80"]);
    assert_eq!(of(&all[1..], None), ["10.0.0.2:80"]);
    assert!(of(&all[2..], None).is_empty());
    assert_eq!(of(&all, Some("a")), ["10.0.0.1:80"]);
    assert_eq!(of(&all, Some("b")), ["10.0.0.2:80"]);
    assert!(of(&all, Some("c")).is_empty());
    // In two slices at once.
    assert_eq!(
        of(&[endpoint(1, false, false, false, "a"), endpoint(1, true, true, false, "a")], None),
        ["10.0.0.1:80"]
    );
}

#[test]
fn which_frontends_there_are() {
    let lb = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.9"],
        "loadBalancerIP": "198.51.100.1", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "ports": [{"port": 80, "nodePort": 30080}]});
    let m = model(
        &[
            ("lb", lb.clone()),
            ("none", json!({"clusterIP": "None", "ports": [{"port": 80}]})),
            (
                "later",
                json!({"clusterIP": "10.96.0.2", "externalIPs": ["198.51.100.1"], "ports": [{"port": 80}, ]}),
            ),
            (
                "zz",
                json!({"type": "NodePort", "clusterIP": "10.96.0.3", "ports": [{"port": 81, "nodePort": 30080}]}),
            ),
        ],
        &[],
    );
    let s = compile(&m);
    let mut all: Vec<_> = s
        .frontends
        .iter()
        .map(|((a, _, _), f)| (a.to_string(), f.kind, f.local, f.source_ranges.len()))
        .collect();
    all.sort();
    let later = all.iter().find(|f| f.0 == "198.51.100.1").unwrap();
    assert_eq!(later.1, FrontendKind::ExternalIp, "`later` comes before `lb`");
    assert_eq!(
        all.iter().map(|f| (f.0.as_str(), f.2)).collect::<Vec<_>>(),
        [
            ("10.96.0.1", false),
            ("10.96.0.2", false),
            ("10.96.0.3", false),
            ("192.0.2.9", true),
            ("198.51.100.1", false)
        ]
    );
    let conflicts: Vec<_> = s.conflicts.iter().map(|(s, w, o)| format!("{s}: {w}: {o}")).collect();
    assert_eq!(
        conflicts,
        ["default/lb: 198.51.100.1 TCP 80: default/later", "default/zz: node port TCP 30080: default/lb"]
    );
    let only = compile(&model(&[("lb", lb)], &[]));
    let f = only.frontend(ip("198.51.100.1"), Protocol::Tcp, 80).unwrap();
    assert_eq!((f.kind, f.local, f.source_ranges.len()), (FrontendKind::LoadBalancer, true, 1));
    assert!(f.backends.spread(None).is_none());
    assert!(only.node_port(false, Protocol::Tcp, 30080).is_none(), "no IPv6 cluster IP");
}
