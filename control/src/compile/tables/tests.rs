use fastpath::packet::Mac;
use fastpath::snapshot::{NodeInfo, PortInfo};
use fastpath::tables::policy::Direction;

use super::*;
use crate::explain::tests::{CLUSTER, Folder};
use crate::model::ObjectName;
use crate::source::load_dir;

fn settings() -> SnatSettings {
    SnatSettings { outgoing: true, ports: (40_000, 50_000), inside: Vec::new() }
}

fn ip(text: &str) -> Ip {
    Ip::from(text.parse::<IpAddr>().unwrap())
}

/// A port of node `a`, as attachment and `compile` leave it.
fn port(id: u16, role: PortRole, pod: Option<&str>) -> (PortId, Port) {
    let pod = pod.map(|name| ObjectName { namespace: "shop".into(), name: name.into() });
    let port = Port {
        id: PortId(id),
        ifindex: u32::from(id) + 10,
        name: format!("fp-{id}").into(),
        role,
        pod,
        mac: Mac([2; 6]),
        peer_mac: None,
        mtu: 1500,
        queues: vec![0],
        redirect: false,
    };
    (port.id, port)
}

fn ports() -> BTreeMap<PortId, Port> {
    let pod = PortRole::Pod;
    [port(0, PortRole::Uplink, None), port(1, pod, Some("web")), port(2, pod, Some("nobody"))].into()
}

fn snapshot(ports: &BTreeMap<PortId, Port>, own: &[&str]) -> Snapshot {
    let info = |p: &Port| PortInfo {
        name: p.name.clone(),
        role: p.role,
        mac: p.mac,
        peer_mac: None,
        mtu: p.mtu,
        addrs: Vec::new(),
        group: None,
        queues: Vec::new(),
        redirect: None,
    };
    Snapshot {
        node: NodeInfo { addresses: own.iter().map(|a| ip(a)).collect(), ..NodeInfo::default() },
        ports: ports.values().map(|p| Some(info(p))).collect(),
        ..Snapshot::default()
    }
}

#[test]
fn every_pod_has_a_group_and_nobody_else() {
    let model = load_dir(&Folder::new(CLUSTER).0).unwrap().model;
    let mut tables = Tables::new("a", 1, settings());
    let ports = ports();
    let mut snapshot = snapshot(&ports, &["192.0.2.1", "172.17.0.1"]);
    let problems = tables.fill(&model, &ports, &mut snapshot);
    assert_eq!(problems, ["fp-2: pod shop/nobody is not known to the policies: its connections are denied"]);
    let groups: Vec<_> = snapshot.ports.iter().flatten().map(|p| p.group).collect();
    assert_eq!((groups[0], groups[2]), (None, Some(UNKNOWN)));
    let web = groups[1].unwrap();
    let ask = |group, direction, own: &str, peer: &str, dport| {
        snapshot.policy.evaluate(group, direction, ip(own), ip(peer), 6, dport).allow
    };
    assert!(ask(web, Direction::Egress, "10.0.0.1", "10.0.1.1", 5432));
    assert!(!ask(web, Direction::Egress, "10.0.0.1", "10.0.1.1", 5433));
    assert!(ask(web, Direction::Ingress, "10.0.0.1", "203.0.113.5", 1));
    for direction in Direction::BOTH {
        for peer in ["10.0.1.1", "192.0.2.1", "203.0.113.5"] {
            assert!(!ask(UNKNOWN, direction, "10.9.9.9", peer, 80), "{direction} {peer}");
        }
    }
    assert!(snapshot.services.nodes.contains(&ip("172.17.0.1")));
    assert!(snapshot.snat.inside.lookup(ip("172.17.0.1")).is_some());
    assert!(snapshot.rule_counters.rules() > 4);
}

#[test]
fn own_addresses_reach_own_pods_whatever_policies_say() {
    let isolate = "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: none, namespace: shop}\nspec: {podSelector: {}}\n";
    let model = load_dir(&Folder::new(&format!("{CLUSTER}{isolate}")).0).unwrap().model;
    let mut tables = Tables::new("a", 1, settings());
    let ports = ports();
    let mut ask = |own: &[&str], peer: &str| {
        let mut snapshot = snapshot(&ports, own);
        tables.fill(&model, &ports, &mut snapshot);
        let group = snapshot.ports[1].as_ref().unwrap().group.unwrap();
        snapshot.policy.evaluate(group, Direction::Ingress, ip("10.0.0.1"), ip(peer), 6, 80).allow
    };
    assert!(ask(&["192.0.2.1"], "192.0.2.1"));
    assert!(!ask(&["192.0.2.1"], "172.17.0.1"));
    assert!(ask(&["192.0.2.1", "172.17.0.1"], "172.17.0.1"));
    assert!(!ask(&["192.0.2.1", "172.17.0.1"], "192.0.2.2"), "another node");
}

/// Equality of snapshots must cost nothing when nothing changed, and flows are decided again only on a change.
#[test]
fn nothing_changed_gives_an_equal_snapshot_of_the_same_parts() {
    let folder = Folder::new(CLUSTER);
    let model = load_dir(&folder.0).unwrap().model;
    let mut tables = Tables::new("a", 1, settings());
    let ports = ports();
    let own = ["192.0.2.1"];
    let mut made = |model: &Arc<Model>| {
        let mut snapshot = snapshot(&ports, &own);
        tables.fill(model, &ports, &mut snapshot);
        snapshot
    };
    let first = made(&model);
    // Once as it is, once read anew: other objects that say the same.
    for model in [Arc::clone(&model), load_dir(&folder.0).unwrap().model] {
        let again = made(&model);
        assert_eq!(first, again);
        assert!(Arc::ptr_eq(&first.services, &again.services));
        assert!(Arc::ptr_eq(&first.snat, &again.snat));
        assert!(Arc::ptr_eq(&first.rule_counters, &again.rule_counters));
        let (a, b) = (first.policy.groups.iter(), again.policy.groups.iter());
        for (a, b) in a.zip(b).flat_map(|(a, b)| [(&a.ingress, &b.ingress), (&a.egress, &b.egress)]) {
            assert!(match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (a, b) => a.is_none() && b.is_none(),
            });
        }
    }
    let mut other = model.as_ref().clone();
    other.policies.clear();
    assert_ne!(first, made(&Arc::new(other)));
}

#[test]
fn bound_ports_change_nothing_but_when_there_is_a_new_one() {
    let model = load_dir(&Folder::new(CLUSTER).0).unwrap().model;
    let mut tables = Tables::new("a", 1, settings());
    let ports = ports();
    let fill = |tables: &mut Tables, own: &[&str]| {
        let mut snapshot = snapshot(&ports, own);
        tables.fill(&model, &ports, &mut snapshot);
        snapshot.snat
    };
    assert!(!tables.set_bound_udp(&[53, 51_820]), "none of the range");
    let before = fill(&mut tables, &["192.0.2.1"]);
    assert!(tables.set_bound_udp(&[53, 41_000, 50_000]));
    let bound = fill(&mut tables, &["192.0.2.1"]);
    assert_eq!(*bound, Snat { bound_udp: vec![41_000, 50_000], ..(*before).clone() });
    for fewer in [&[41_000, 50_000][..], &[50_000], &[]] {
        assert!(!tables.set_bound_udp(fewer), "{fewer:?}");
        assert!(Arc::ptr_eq(&bound, &fill(&mut tables, &["192.0.2.1"])));
    }
    // Also when all is compiled anew.
    assert_eq!(fill(&mut tables, &["192.0.2.1", "172.17.0.1"]).bound_udp, [41_000, 50_000]);
    assert!(tables.set_bound_udp(&[40_000, 50_000]));
    assert_eq!(
        fill(&mut tables, &["192.0.2.1"]).bound_udp,
        [40_000, 50_000],
        "what was let go is free again"
    );
}
