use serde_json::{Value, json};

use super::*;
use crate::model::{Labels, Node, Origin, Pod};
use crate::source::convert;

fn ip(text: &str) -> Ip {
    Ip::from(text.parse::<IpAddr>().unwrap())
}

/// A world to change: each change is a new model that shares what stays.
struct World {
    model: Arc<Model>,
    tables: ServiceTables,
}

impl World {
    fn new() -> Self {
        Self { model: Arc::default(), tables: ServiceTables::new("a") }
    }

    fn change(&mut self, change: impl FnOnce(&mut Model)) {
        change(Arc::make_mut(&mut self.model));
    }

    fn service(&mut self, name: &str, spec: Value) {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let s = convert::service(&serde_json::from_value(object).unwrap(), |_| Origin::Api).unwrap();
        self.change(|m| drop(m.services.insert(s.name.clone(), Arc::new(s))));
    }

    fn slice(&mut self, service: &str, family: &str, endpoints: &Value) {
        let object = json!({"metadata": {"name": format!("{service}-{family}").to_lowercase(),
            "labels": {"kubernetes.io/service-name": service}}, "addressType": family,
            "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints});
        let s = convert::endpoint_slice(&serde_json::from_value(object).unwrap(), |_| Origin::Api).unwrap();
        self.change(|m| drop(m.slices.insert(s.name.clone(), Arc::new(s))));
    }

    fn node(&mut self, name: &str, address: &str) {
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
        self.change(|m| drop(m.nodes.insert(name.into(), Arc::new(node))));
    }

    fn pod(&mut self, name: &str, address: &str) {
        let name = ObjectName { namespace: "default".into(), name: name.into() };
        let pod = Pod {
            name: name.clone(),
            labels: Labels::new(),
            node: Some("a".into()),
            addresses: vec![address.parse().unwrap()],
            host_network: false,
            finished: false,
            ports: BTreeSet::new(),
            host_ports: BTreeSet::new(),
            interface: None,
            mac: None,
            netns: None,
            uid: None,
            origin: Origin::Api,
        };
        self.change(|m| drop(m.pods.insert(name, Arc::new(pod))));
    }

    fn table(&mut self, own: &[&str]) -> Arc<ServiceTable> {
        let own: Vec<Ip> = own.iter().map(|a| ip(a)).collect();
        self.tables.update(&self.model, &own);
        Arc::clone(self.tables.table())
    }
}

fn endpoint(address: &str, node: &str, ready: bool, terminating: bool) -> Value {
    json!({"addresses": [address], "nodeName": node,
        "conditions": {"ready": ready, "serving": true, "terminating": terminating}})
}

/// One service of every kind, dual stack, with Local policies; its IPv4 backends on two nodes.
fn everything() -> World {
    let mut world = World::new();
    world.node("a", "192.0.2.1");
    world.node("b", "192.0.2.2");
    world.service(
        "web",
        json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd96::1"], "externalIPs": ["192.0.2.1", "198.51.100.9"],
            "loadBalancerIP": "203.0.113.1", "loadBalancerSourceRanges": ["198.18.0.0/15"],
            "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
    );
    let endpoints = [
        endpoint("10.0.0.1", "a", true, false),
        endpoint("10.0.1.1", "b", true, false),
        endpoint("10.0.1.2", "b", false, true),
        endpoint("10.0.1.3", "b", false, false),
    ];
    world.slice("web", "IPv4", &json!(endpoints));
    world.slice("web", "IPv6", &json!([{"addresses": ["fd01::1"], "nodeName": "b"}]));
    world
}

fn backends(spread: Option<&Arc<table::Spread>>) -> Vec<String> {
    let list = spread.map(|s| s.backends().to_vec()).unwrap_or_default();
    list.into_iter().map(|b| format!("{} {}", b.addr, b.port)).collect()
}

#[test]
fn frontends_carry_what_the_packet_path_decides_by() {
    let table = everything().table(&["192.0.2.1", "172.17.0.1"]);
    let at = |address: &str| table.frontends[&(ip(address), 6, 80)].clone();
    let [cluster, cluster6, external, balanced] =
        ["10.96.0.1", "fd96::1", "198.51.100.9", "203.0.113.1"].map(at);
    let port = &table.node_ports[&(true, 6, 30080)];

    assert_eq!((cluster.external, cluster.local_only), (false, false));
    assert_eq!((external.external, external.local_only, port.external), (true, true, true));
    assert_eq!(backends(cluster.all.as_ref()), ["10.0.0.1 8080", "10.0.1.1 8080"]);
    assert_eq!(backends(external.local.as_ref()), ["10.0.0.1 8080"]);
    assert!(cluster.local.is_none(), "no Local policy is in force for it");
    assert_eq!(backends(cluster6.all.as_ref()), ["fd01::1 8080"]);
    assert!(Arc::ptr_eq(cluster.all.as_ref().unwrap(), port.all.as_ref().unwrap()), "shared");

    let serves: Vec<_> = cluster.known.iter().map(|k| (k.backend.addr.to_string(), k.serves)).collect();
    let want = [("10.0.0.1", true), ("10.0.1.1", true), ("10.0.1.2", true), ("10.0.1.3", false)];
    assert_eq!(serves, want.map(|(a, s)| (a.to_owned(), s)));
    assert_eq!(cluster.affinity_ms, 60_000);

    assert!(balanced.admits(ip("198.19.0.1")) && !balanced.admits(ip("198.20.0.1")));
    assert!(external.admits(ip("198.20.0.1")), "source ranges are for load balancer addresses");

    assert_eq!(cluster.id, balanced.id);
    assert_eq!(cluster.id, port.id);
    assert_ne!(cluster.id, cluster6.id);
    assert_eq!(table.nodes.len(), 3, "nodes, and this node's other address");
    let mut addresses: Vec<_> = table.addresses.iter().map(ToString::to_string).collect();
    addresses.sort();
    assert_eq!(addresses, ["10.96.0.1", "fd96::1"], "none that a machine may have");
}

#[test]
fn ids_never_change() {
    let name = |name: &str| ObjectName { namespace: "shop".into(), name: name.into() };
    assert_eq!(id(&name("web"), "http", true), 6_955_908_990_714_067_809);
    let mut all =
        vec![id(&name("web"), "http", false), id(&name("web"), "", true), id(&name("we"), "b", true)];
    all.push(id(&name("web"), "http", true));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4);
}

#[test]
fn what_does_not_change_is_not_made_again() {
    let mut world = everything();
    for n in 0..20 {
        let name = format!("s{n}");
        world.service(
            &name,
            json!({"clusterIP": format!("10.96.1.{n}"), "ports": [{"name": "http", "port": 80}]}),
        );
        world.slice(&name, "IPv4", &json!([endpoint(&format!("10.1.0.{n}"), "b", true, false)]));
    }
    let first = world.table(&[]);
    let services = Arc::clone(world.tables.services());

    // A pod is no matter of services.
    world.pod("p", "10.9.9.9");
    assert!(Arc::ptr_eq(&first, &world.table(&[])));
    assert!(Arc::ptr_eq(&services, world.tables.services()));
    // The same objects read again: compiled, but the same table.
    world.change(|m| m.services.values_mut().for_each(|s| *s = Arc::new(s.as_ref().clone())));
    assert!(Arc::ptr_eq(&first, &world.table(&[])));
    world.node("c", "192.0.2.3");
    let second = world.table(&[]);
    assert!(!Arc::ptr_eq(&first, &second) && second.nodes.contains(&ip("192.0.2.3")));

    // One service's backends: the spreads of the others stay.
    world.slice(
        "s3",
        "IPv4",
        &json!([endpoint("10.1.0.3", "b", true, false), endpoint("10.1.0.103", "b", true, false)]),
    );
    let third = world.table(&[]);
    for (key, frontend) in &third.frontends {
        let same = Arc::ptr_eq(frontend.all.as_ref().unwrap(), second.frontends[key].all.as_ref().unwrap());
        assert_eq!(same, key.0 != ip("10.96.1.3"), "{key:?}");
    }
    for n in 0..2 * SPARE {
        let [a, b] = u16::try_from(n).unwrap().to_be_bytes();
        let address = format!("10.2.{a}.{b}");
        world.slice("s3", "IPv4", &json!([endpoint(&address, "b", true, false)]));
        world.table(&[]);
        world.tables.tidy();
    }
    let frontends = world.table(&[]).frontends.len();
    assert!(world.tables.spreads.len() <= SPARE + 4 * frontends, "those of before are forgotten");
}

/// Changes one after the other give what the last model gives to somebody who saw nothing before.
#[test]
fn changes_give_what_the_whole_gives() {
    use proptest::prelude::*;
    let change = (0u8..8, 0u8..4, prop::collection::vec((0u8..6, any::<bool>(), any::<bool>()), 0..4));
    proptest!(|(changes in prop::collection::vec(prop::collection::vec(change, 1..3), 1..12))| {
        let mut world = World::new();
        world.node("a", "192.0.2.1");
        for batch in changes {
            for (kind, n, endpoints) in batch {
                let name = format!("s{n}");
                let list: Vec<Value> = endpoints
                    .iter()
                    .map(|(host, ready, here)| {
                        endpoint(&format!("10.1.0.{host}"), if *here { "a" } else { "b" }, *ready, !*ready)
                    })
                    .collect();
                match kind {
                    0 => world.service(&name, json!({"type": "LoadBalancer", "clusterIP": format!("10.96.0.{}", n / 2),
                        "externalIPs": [format!("198.51.100.{n}")], "externalTrafficPolicy": if list.len() > 1 { "Local" } else { "Cluster" },
                        "ports": [{"name": "http", "port": 80, "nodePort": 30_000 + u16::from(n / 2)}]})),
                    1 => world.change(|m| m.services.retain(|s, _| s.name != name)),
                    2 => world.change(|m| m.slices.retain(|s, _| !s.name.starts_with(&name))),
                    3 => world.pod(&name, &format!("198.51.100.{}", list.len())),
                    4 => world.change(|m| m.pods.retain(|p, _| p.name != name)),
                    5 if list.len() == 1 => world.node("b", &format!("192.0.2.{}", 2 + n)),
                    _ => world.slice(&name, "IPv4", &json!(list)),
                }
            }
            let table = world.table(&["192.0.2.9"]);
            let mut fresh = ServiceTables::new("a");
            fresh.update(&world.model, &[ip("192.0.2.9")]);
            prop_assert_eq!(&table, fresh.table());
            prop_assert_eq!(world.tables.problems(), fresh.problems());
            for (key, frontend) in &fresh.services().frontends {
                prop_assert_eq!(Some(frontend), world.tables.services().frontends.get(key));
            }
        }
    });
}

#[test]
fn what_is_sent_to_a_pod_is_no_services() {
    let mut world = everything();
    world.table(&[]);
    assert!(world.tables.problems().is_empty());
    world.pod("victim", "198.51.100.9");
    let table = world.table(&[]);
    assert!(!table.frontends.contains_key(&(ip("198.51.100.9"), 6, 80)));
    assert!(!table.addresses.contains(&ip("198.51.100.9")));
    assert!(table.frontends.contains_key(&(ip("203.0.113.1"), 6, 80)));
    let want = "service default/web: 198.51.100.9 is the address of a pod, which keeps it";
    assert_eq!(world.tables.problems(), [want]);
    world.change(|m| m.pods.clear());
    assert!(world.table(&[]).frontends.contains_key(&(ip("198.51.100.9"), 6, 80)));
    world.service("zz", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    world.table(&[]);
    assert_eq!(
        world.tables.problems(),
        ["service default/zz: 10.96.0.1 TCP 80 is that of service default/web"]
    );
}

#[test]
fn explain_and_the_packet_path_choose_alike() {
    use fastpath::packet::FlowKey;
    let mut world = everything();
    let table = world.table(&[]);
    let frontend = &table.frontends[&(ip("10.96.0.1"), 6, 80)];
    let named = &world.tables.services().frontends[&("10.96.0.1".parse().unwrap(), 6, 80)];
    let spread = named.backends.spread(None).unwrap();
    let mut chosen = BTreeSet::new();
    for sport in 0..200 {
        let key = FlowKey { src: ip("10.0.0.7"), dst: ip("10.96.0.1"), sport, dport: 80, proto: 6 };
        let own = frontend.all.as_ref().unwrap();
        assert_eq!(spread.choose(&key, false).map(Backend::compiled), own.choose(&key));
        assert_eq!(spread.choose(&key, true).map(Backend::compiled), own.choose_for_client(key.src));
        chosen.insert(spread.choose(&key, false).map(|b| b.address));
    }
    assert_eq!(chosen.len(), 2);
}

#[test]
fn the_nodes_own_ports_are_kept() {
    let mut world = World::new();
    world.node("a", "192.0.2.1");
    let spec = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1", "198.51.100.9"],
        "ports": [{"name": "ssh", "port": 22, "nodePort": 10250}, {"name": "http", "port": 80, "nodePort": 30080},
            {"name": "udp", "port": 22, "protocol": "UDP", "nodePort": 2379}]});
    world.service("web", spec);
    let table = world.table(&["192.0.2.1"]);
    let mut ports: Vec<String> =
        table.frontends.keys().map(|(addr, proto, port)| format!("{addr} {proto} {port}")).collect();
    ports.sort_unstable();
    assert_eq!(
        ports,
        [
            "10.96.0.1 17 22",
            "10.96.0.1 6 22",
            "10.96.0.1 6 80",
            "192.0.2.1 17 22",
            "192.0.2.1 6 80",
            "198.51.100.9 17 22",
            "198.51.100.9 6 22",
            "198.51.100.9 6 80"
        ]
    );
    let mut node_ports: Vec<(u8, u16)> =
        table.node_ports.keys().map(|(_, proto, port)| (*proto, *port)).collect();
    node_ports.sort_unstable();
    assert_eq!(node_ports, [(6, 30080), (17, 2379)]);
    assert_eq!(
        world.tables.problems(),
        [
            "service default/web: TCP 22 of 192.0.2.1 stays the node's own",
            "service default/web: node port TCP 10250 stays the nodes' own"
        ]
    );
}

/// Not by its Node's status alone: an address that only the kernel knows is the node's as well, and no other node's.
#[test]
fn ports_of_addresses_that_only_the_kernel_knows_are_kept() {
    let mut world = World::new();
    world.node("a", "192.0.2.1");
    let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["172.17.0.1", "198.51.100.9"],
        "loadBalancerIP": "172.17.0.2",
        "ports": [{"name": "ssh", "port": 22}, {"name": "http", "port": 80}, {"name": "dhcp", "port": 68, "protocol": "UDP"}]});
    world.service("web", spec);
    let mut ports = |own: &[&str]| {
        let table = world.table(own);
        let has = |addr: &str, proto, port| table.frontends.contains_key(&(ip(addr), proto, port));
        let at = |addr: &str| [has(addr, 6, 22), has(addr, 6, 80), has(addr, 17, 68)];
        let by_address = ["172.17.0.1", "172.17.0.2", "198.51.100.9", "10.96.0.1"].map(at);
        (by_address, world.tables.problems().to_vec())
    };
    let (free, kept) = ([true; 3], [false, true, false]);
    assert_eq!(ports(&["192.0.2.1"]), ([free; 4], vec![]));
    let lines = |addr: &str| {
        ["TCP 22", "UDP 68"].map(|p| format!("service default/web: {p} of {addr} stays the node's own"))
    };
    // A cluster address on a device of the node is that of a proxy beside us.
    let (first, second) = (lines("172.17.0.1"), lines("172.17.0.2"));
    assert_eq!(
        ports(&["192.0.2.1", "172.17.0.1", "172.17.0.2", "10.96.0.1"]),
        ([kept, kept, free, free], [first.clone(), second].concat())
    );
    assert_eq!(ports(&["192.0.2.1", "172.17.0.1"]), ([kept, free, free, free], first.to_vec()));
    // Also while the node is not known by name.
    world.change(|m| m.nodes.clear());
    let table = world.table(&["172.17.0.1"]);
    assert!(!table.frontends.contains_key(&(ip("172.17.0.1"), 6, 22)));
}
