use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as net;
use serde_json::{Value, json};

use super::*;
use crate::model::*;

fn origin(path: &str) -> Origin {
    Origin::File { path: path.into(), line: 1, parts: None }
}

fn policy(spec: Value) -> Result<NetworkPolicy, FieldError> {
    let object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    network_policy(&serde_json::from_value::<net::NetworkPolicy>(object).unwrap(), origin)
}

#[test]
fn policy_types_default_to_ingress_and_to_egress_with_rules() {
    for (spec, want) in [
        (json!({"podSelector": {}}), (true, false)),
        (json!({}), (true, false)),
        (json!({"egress": []}), (true, false)),
        (json!({"egress": [{}]}), (true, true)),
        (json!({"policyTypes": []}), (true, false)),
        (json!({"policyTypes": ["Egress"], "ingress": [{}]}), (false, true)),
        (json!({"policyTypes": ["Ingress"], "egress": [{}]}), (true, false)),
        (json!({"policyTypes": ["Egress", "Ingress"]}), (true, true)),
    ] {
        let p = policy(spec.clone()).unwrap();
        assert_eq!((p.isolates_ingress, p.isolates_egress), want, "{spec}");
        assert_eq!(p.rules(Direction::Egress).is_some(), want.1);
    }
}

use fastpath::tables::policy::Direction;

#[test]
fn rules_peers_and_ports() {
    let p = policy(json!({
        "podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [
            {},
            {"from": [], "ports": []},
            {"from": [
                {"podSelector": {}},
                {"namespaceSelector": {"matchLabels": {"team": "a"}}},
                {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}},
                {"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.2.3.4/16", "10.1.0.0/16", "10.2.0.0/16"]}},
            ], "ports": [
                {}, {"protocol": "UDP", "port": 53}, {"protocol": "SCTP", "port": 7, "endPort": 9}, {"port": "http"},
            ]},
        ],
    }))
    .unwrap();
    assert_eq!(p.name.to_string(), "shop/p");
    assert_eq!(p.pod_selector.to_string(), "app=db");
    assert_eq!(p.origin, origin(""));
    let [all, empty, rule] = &p.ingress[..] else { panic!("{p:?}") };
    assert!(all.peers.is_empty() && all.ports.is_empty() && empty.peers.is_empty() && empty.ports.is_empty());
    assert_eq!((&all.origin, &rule.origin), (&origin("spec.ingress[0]"), &origin("spec.ingress[2]")));
    let text = |v: &[String]| v.join(" | ");
    assert_eq!(
        text(&rule.peers.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "pods {} | pods {} in namespaces team=a | pods x in namespaces {} | \
         ipBlock 10.0.0.0/8 except 10.1.0.0/16, 10.2.0.0/16"
    );
    assert_eq!(
        text(&rule.ports.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "TCP | UDP 53 | SCTP 7-9 | TCP \"http\""
    );
}

/// What the API server refuses is refused, and the field is named.
#[test]
fn refused_policies() {
    let peer = |p: Value| json!({"ingress": [{"from": [p]}]});
    let block = |cidr: &str, except: &[&str]| peer(json!({"ipBlock": {"cidr": cidr, "except": except}}));
    let port = |p: Value| json!({"egress": [{"ports": [p]}]});
    let expression = |e: Value| json!({"podSelector": {"matchExpressions": [e]}});
    for (spec, path) in [
        (json!({"policyTypes": ["ingress"]}), "spec.policyTypes[0]"),
        (json!({"policyTypes": ["Ingress", "Egress", "Egress"]}), "spec.policyTypes"),
        (peer(json!({})), "spec.ingress[0].from[0]"),
        (peer(json!({"ipBlock": {"cidr": "::/0"}, "podSelector": {}})), "spec.ingress[0].from[0].ipBlock"),
        (block("10.0.0.0", &[]), "spec.ingress[0].from[0].ipBlock.cidr"),
        (block("10.0.0.0/33", &[]), "spec.ingress[0].from[0].ipBlock.cidr"),
        (block("10.0.0.0/+8", &[]), "spec.ingress[0].from[0].ipBlock.cidr"),
        (block("10.0.0/8", &[]), "spec.ingress[0].from[0].ipBlock.cidr"),
        (block("", &[]), "spec.ingress[0].from[0].ipBlock.cidr"),
        (block("10.0.0.0/8", &["10.0.0.0/8"]), "spec.ingress[0].from[0].ipBlock.except[0]"),
        (block("10.0.0.0/8", &["10.1.0.0/16", "0.0.0.0/0"]), "spec.ingress[0].from[0].ipBlock.except[1]"),
        (block("10.0.0.0/8", &["fd00::/64"]), "spec.ingress[0].from[0].ipBlock.except[0]"),
        (port(json!({"port": 0})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": 65536})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": "80"})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": "Http"})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": "a--b"})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": "sixteen-letters-"})), "spec.egress[0].ports[0].port"),
        (port(json!({"port": 80, "endPort": 79})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"port": 80, "endPort": 70000})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"endPort": 79})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"port": "http", "endPort": 79})), "spec.egress[0].ports[0].endPort"),
        (port(json!({"protocol": "tcp"})), "spec.egress[0].ports[0].protocol"),
        (port(json!({"protocol": "ICMP"})), "spec.egress[0].ports[0].protocol"),
        (expression(json!({"key": "a", "operator": "In"})), "spec.podSelector.matchExpressions[0].values"),
        (
            expression(json!({"key": "a", "operator": "NotIn", "values": []})),
            "spec.podSelector.matchExpressions[0].values",
        ),
        (
            expression(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
            "spec.podSelector.matchExpressions[0].values",
        ),
        (
            expression(json!({"key": "a", "operator": "Gt", "values": []})),
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (expression(json!({"key": "-", "operator": "Exists"})), "spec.podSelector.matchExpressions[0].key"),
        (
            expression(json!({"key": "A.b/c", "operator": "Exists"})),
            "spec.podSelector.matchExpressions[0].key",
        ),
        (json!({"podSelector": {"matchLabels": {"a": "b c"}}}), "spec.podSelector.matchLabels"),
    ] {
        let error = policy(spec.clone()).expect_err(&spec.to_string());
        assert_eq!(error.path, path, "{spec}: {error}");
    }
    assert_eq!(network_policy(&net::NetworkPolicy::default(), origin).unwrap_err().path, "metadata.name");
}

#[test]
fn networks_are_read_as_the_api_server_reads_them() {
    for (text, want) in [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("010.001.0.0/016", "10.1.0.0/16"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::1/64", "fd00::/64"),
        ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(cidr(text, "x").unwrap().to_string(), want);
    }
    assert_eq!(address("::ffff:10.0.0.1", "x").unwrap().to_string(), "10.0.0.1");
    assert!(
        address("10.0.0.256", "x").is_err()
            && address("10.0.0.1.2", "x").is_err()
            && address("a", "x").is_err()
    );
}

fn svc(spec: Value, status: Value) -> Result<Service, FieldError> {
    let object = json!({"metadata": {"name": "s"}, "spec": spec, "status": status});
    service(&serde_json::from_value::<core::Service>(object).unwrap(), origin)
}

#[test]
fn services() {
    let s = svc(
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["192.0.2.9/24"],
            "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
            "trafficDistribution": "PreferClose", "loadBalancerIP": "198.51.100.9",
            "ports": [{"name": "a", "port": 80, "nodePort": 30080, "targetPort": "http"},
                      {"name": "b", "port": 80, "protocol": "UDP"}]}),
        json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"hostname": "x"}]}}),
    )
    .unwrap();
    assert_eq!(s.name.to_string(), "default/s");
    assert_eq!(s.kind, ServiceKind::LoadBalancer);
    assert_eq!(s.cluster_ips, ["10.96.0.1", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap()));
    assert_eq!(s.load_balancer_ips, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(s.load_balancer_source_ranges, ["192.0.2.0/24".parse::<IpNet>().unwrap()]);
    assert_eq!((s.affinity_seconds, s.external_local, s.internal_local), (Some(10_800), true, false));
    assert_eq!(
        (s.health_check_node_port, s.ports[0].node_port, s.ports[1].node_port),
        (Some(31000), Some(30080), None)
    );
    assert_eq!(s.ports[1].protocol, Protocol::Udp);
    assert_eq!(s.traffic_distribution, Some(TrafficDistribution::PreferSameZone));

    let headless = svc(json!({"clusterIP": "None", "ports": [{"port": 1}]}), Value::Null).unwrap();
    assert_eq!((headless.kind, headless.cluster_ips.len()), (ServiceKind::Headless, 0));
    let alias = svc(json!({"type": "ExternalName", "externalName": "example.org"}), Value::Null).unwrap();
    assert_eq!((alias.kind, alias.ports.len()), (ServiceKind::ExternalName, 0));
    // A ClusterIP service has no node ports, even when left over from another type.
    let left = svc(json!({"clusterIP": "10.96.0.2", "ports": [{"port": 1, "nodePort": 30000}]}), Value::Null)
        .unwrap();
    assert_eq!((left.kind, left.ports[0].node_port), (ServiceKind::ClusterIp, None));
    // No controller filled in the status: the address asked for is used.
    let asked = svc(json!({"type": "LoadBalancer", "loadBalancerIP": "198.51.100.9"}), Value::Null).unwrap();
    assert_eq!(asked.load_balancer_ips.len(), 1);
}

#[test]
fn refused_services() {
    for (spec, path) in [
        (json!({"type": "Cluster"}), "spec.type"),
        (json!({"type": "NodePort", "clusterIP": "None"}), "spec.clusterIP"),
        (json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]}), "spec.clusterIPs"),
        (json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}), "spec.clusterIPs"),
        (json!({"clusterIP": "ten"}), "spec.clusterIP"),
        (json!({"externalIPs": ["x"]}), "spec.externalIPs[0]"),
        (json!({"ports": [{"port": 0}]}), "spec.ports[0].port"),
        (json!({"ports": [{"port": 1}, {"port": 2}]}), "spec.ports[0].name"),
        (json!({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]}), "spec.ports[1].name"),
        (json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]}), "spec.ports[1].port"),
        (json!({"ports": [{"port": 1, "protocol": "HTTP"}]}), "spec.ports[0].protocol"),
        (json!({"sessionAffinity": "Cookie"}), "spec.sessionAffinity"),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        (json!({"internalTrafficPolicy": "Node"}), "spec.internalTrafficPolicy"),
        (json!({"loadBalancerSourceRanges": ["1.2.3.4"]}), "spec.loadBalancerSourceRanges[0]"),
        (json!({"trafficDistribution": "Far"}), "spec.trafficDistribution"),
    ] {
        assert_eq!(svc(spec.clone(), Value::Null).expect_err(&spec.to_string()).path, path, "{spec}");
    }
}

fn slice(body: Value) -> Result<EndpointSlice, FieldError> {
    let mut object = json!({"metadata": {"name": "s-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "endpoints": []});
    object.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    endpoint_slice(&serde_json::from_value::<discovery::EndpointSlice>(object).unwrap(), origin)
}

#[test]
fn endpoint_slices() {
    let s = slice(json!({
        "ports": [{"name": "http", "port": 8080}, {"name": "all"}, {"port": 53, "protocol": "UDP"}],
        "endpoints": [
            {"addresses": ["10.0.0.1", "10.0.0.9"], "nodeName": "a", "zone": "z", "hints": {"forZones": [{"name": "z"}]},
             "targetRef": {"kind": "Pod", "name": "web-1"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ],
    }))
    .unwrap();
    assert_eq!(s.service.unwrap().to_string(), "shop/s");
    assert_eq!(s.ports.iter().map(|p| (&p.name[..], p.port)).collect::<Vec<_>>(), [("http", 8080), ("", 53)]);
    let states: Vec<_> = s.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(states, [(true, true, false), (false, false, false), (false, true, true)]);
    assert_eq!(s.endpoints[0].address, "10.0.0.1".parse::<IpAddr>().unwrap());
    assert_eq!(s.endpoints[0].pod.as_ref().unwrap().to_string(), "shop/web-1");
    assert_eq!(s.endpoints[0].for_zones, ["z"]);

    let names = slice(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]})).unwrap();
    assert!(names.ipv4.is_none() && names.endpoints.is_empty());
    for (body, path) in [
        (json!({"addressType": "ipv4"}), "addressType"),
        (json!({"endpoints": [{"addresses": []}]}), "endpoints[0].addresses"),
        (json!({"endpoints": [{"addresses": ["fd00::1"]}]}), "endpoints[0].addresses[0]"),
        (json!({"ports": [{"port": 99999}]}), "ports[0].port"),
        (json!({"ports": [{"port": 1}, {"port": 2}]}), "ports[1].name"),
    ] {
        assert_eq!(slice(body.clone()).expect_err(&body.to_string()).path, path, "{body}");
    }
}

fn closed(spec: &Value) -> NetworkPolicy {
    let object = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    let name = ObjectName { namespace: "shop".into(), name: "p".into() };
    super::policy::closed(name, &object, origin)
}

/// What cannot be read of a policy widens what it isolates, and never what it allows.
#[test]
fn what_a_refused_policy_isolates() {
    for (spec, selects, types) in [
        (json!({"podSelector": {"matchLabels": {"a": "b"}}}), "a=b", (true, false)),
        (
            json!({"podSelector": {"matchLabels": {"a": "b c"}}, "policyTypes": ["Egress"]}),
            "{}",
            (false, true),
        ),
        (json!({"podSelector": "web"}), "{}", (true, false)),
        (json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}), "{}", (true, false)),
        (json!({"podSelector": {}, "policyTypes": ["ingress"]}), "{}", (true, true)),
        (json!({"policyTypes": "Egress"}), "{}", (true, true)),
        (json!({"policyTypes": ["Egress", 1]}), "{}", (true, true)),
        (json!({"policyTypes": [], "egress": [{}]}), "{}", (true, true)),
        (json!({"policyTypes": null, "egress": []}), "{}", (true, false)),
        (json!({"egress": "all"}), "{}", (true, true)),
        (json!({"policyTypes": ["Ingress"], "egress": "all"}), "{}", (true, false)),
        (json!("nothing"), "{}", (true, false)),
        (Value::Null, "{}", (true, false)),
    ] {
        let p = closed(&spec);
        let got = (p.pod_selector.to_string(), (p.isolates_ingress, p.isolates_egress));
        assert_eq!(got, (selects.to_owned(), types), "{spec}");
        assert!(p.closed && p.ingress.len() <= 1 && p.egress.len() <= 1, "{spec}");
    }
}

/// Peers and ports, `true` for those that can be honoured.
fn entries() -> impl proptest::strategy::Strategy<Value = Vec<(bool, Value, Value)>> {
    use proptest::prelude::*;
    let good = prop::sample::select(vec![
        (json!({"podSelector": {}}), json!({"port": 80})),
        (json!({"namespaceSelector": {"matchLabels": {"a": "b"}}}), json!({"protocol": "UDP"})),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}),
            json!({"port": 1, "endPort": 9}),
        ),
    ]);
    let bad = prop::sample::select(vec![
        (json!({}), json!({"port": 0})),
        (Value::Null, Value::Null),
        (json!({"selectorOfTheFuture": {}}), json!({"protocol": "QUIC"})),
        (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}), json!({"port": "Http"})),
        (json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}), json!({"port": 9, "endPort": 1})),
        (json!({"podSelector": {"matchLabels": {"a": 1}}}), json!({"port": [80]})),
        (json!("all"), json!("all")),
    ]);
    let entry = prop_oneof![good.prop_map(|(p, q)| (true, p, q)), bad.prop_map(|(p, q)| (false, p, q))];
    prop::collection::vec(entry, 0..4)
}

proptest::proptest! {
    /// The oracle is the conversion of the same policy without its wrong entries, and without rules that have none left.
    #[test]
    fn what_a_refused_policy_allows(rules in proptest::collection::vec((entries(), entries(), proptest::bool::ANY), 0..4)) {
        let list = |entries: &[(bool, Value, Value)], peers: bool, all: bool| -> Vec<Value> {
            let entries = entries.iter().filter(|e| all || e.0);
            entries.map(|(_, peer, port)| if peers { peer.clone() } else { port.clone() }).collect()
        };
        let spec = |all: bool| {
            let (mut ingress, mut egress) = (Vec::new(), Vec::new());
            for (peers, ports, is_ingress) in &rules {
                let left = |e: &[(bool, Value, Value)]| e.is_empty() || e.iter().any(|e| e.0);
                let matches_something = left(peers) && left(ports);
                if !(all || matches_something) {
                    continue;
                }
                let (peers, ports) = (list(peers, true, all), list(ports, false, all));
                if *is_ingress {
                    ingress.push(json!({"from": peers, "ports": ports}));
                } else {
                    egress.push(json!({"to": peers, "ports": ports}));
                }
            }
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress})
        };
        let plain = |mut p: NetworkPolicy| {
            p.closed = false;
            p.origin = Origin::Api;
            p.ingress.iter_mut().chain(&mut p.egress).for_each(|r| r.origin = Origin::Api);
            p
        };
        proptest::prop_assert_eq!(plain(closed(&spec(true))), plain(policy(spec(false)).unwrap()));
    }
}
