//! One thing at a time.

use std::sync::Arc;

use fastpath::packet::{Ip, NO_INDEX, PortId};
use fastpath::snapshot::{PortRole, Route};
use fastpath::tables::Prefix;

use super::world::{ETH0, UPLINK, World, first, ip, mac, net, way};
use crate::compile::{Compiled, vtep_mac};
use crate::config::Encap;
use crate::netdev::NudState;
use crate::netdev::route::{RouteKind, Selector, TABLE_DEFAULT};

/// Asserts the ways to addresses, given as `address => way`.
#[track_caller]
fn goes(world: &mut World, ways: &[(&str, &str)]) -> Vec<String> {
    let compiled = world.compile();
    for (addr, want) in ways {
        assert_eq!(way(&compiled.snapshot, ip(addr)), *want, "{addr}");
    }
    compiled.problems
}

#[test]
fn vxlan_reaches_every_node_by_tunnel() {
    for outer_v6 in [false, true] {
        let mut world = World::new(Encap::Vxlan, outer_v6);
        world.neighbor_node();
        world.distant_node();
        let (b, c) = if outer_v6 { ("fd77::2", "fd77::fe") } else { ("192.168.77.2", "192.168.77.254") };
        let (to_b, to_c) = (format!("tunnel b via {b}"), format!("tunnel c via {c}"));
        let problems = goes(
            &mut world,
            &[
                ("10.77.2.9", &to_b),
                ("fd00:77:2::9", &to_b),
                ("10.77.3.9", &to_c),
                ("fd00:77:3::9", &to_c),
                ("10.77.1.9", "no endpoint"),
                ("fd00:77:1::9", "no endpoint"),
                ("192.168.77.1", "host"),
                ("fd77::1", "host"),
                ("192.168.77.254", "via itself"),
                ("8.8.8.8", "via 192.168.77.254"),
                ("2001:db8::1", "via fd77::fe"),
            ],
        );
        assert!(problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn annotations_lead_tunnels_and_name_addresses_inside() {
    let mut world = World::new(Encap::Vxlan, false);
    let b = world.neighbor_node();
    b.vtep_v4 = Some(ip("192.168.77.102"));
    b.tunnel_addresses = vec![ip("10.99.2.64"), ip("10.77.2.0")];
    // What others send to is no address of ours: it is translated on its way.
    Arc::make_mut(world.model.nodes.get_mut("a").unwrap()).vtep_v4 = Some(ip("203.0.113.1"));
    let Compiled { snapshot, problems, .. } = world.compile();
    assert_eq!(problems, [""; 0]);
    let tunnel = &snapshot.tunnels[0];
    assert_eq!((tunnel.local, tunnel.remote), (ip("192.168.77.1").into(), ip("192.168.77.102").into()));
    assert_eq!(tunnel.dst_mac, vtep_mac(ip("192.168.77.102")));
    assert_eq!(snapshot.vteps, [(tunnel.remote, 0)].into_iter().collect());
    assert_eq!(snapshot.node.vteps, [Ip::from(ip("192.168.77.1"))]);
    for address in ["10.99.2.64", "10.77.2.0"] {
        let address = Ip::from(ip(address));
        assert_eq!(snapshot.routes.lookup(address), Some(&Route::Tunnel(0)));
        assert_eq!(snapshot.node_tunnels.get(&address), Some(&0));
    }
    // An address that is ours is taken.
    let a = Arc::make_mut(world.model.nodes.get_mut("a").unwrap());
    a.addresses.push(ip("192.168.77.101"));
    a.vtep_v4 = Some(ip("192.168.77.101"));
    let snapshot = world.compile().snapshot;
    assert_eq!(snapshot.tunnels[0].local, ip("192.168.77.101").into());
    assert_eq!(snapshot.node.vteps, [Ip::from(ip("192.168.77.101"))]);
    // Without encapsulation nothing leads there.
    world.overlay.encap = Encap::None;
    let snapshot = world.compile().snapshot;
    assert_ne!(snapshot.routes.lookup(ip("10.99.2.64").into()), Some(&Route::Tunnel(0)));
}

#[test]
fn a_tunnel_has_the_addresses_and_settings_of_its_ends() {
    let mut world = World::new(Encap::Vxlan, false);
    world.overlay.settings.vni = 77;
    world.overlay.settings.vxlan_port = 8472;
    world.neighbor_node().vtep_mac_v4 = Some(mac(0xb4));
    world.distant_node().vtep_mac_v6 = Some(mac(0xc6));
    let snapshot = world.compile().snapshot;
    let [b, c] = snapshot.tunnels.as_slice() else { panic!("{:?}", snapshot.tunnels) };
    assert_eq!((&*b.node, b.local, b.remote), ("b", ip("192.168.77.1").into(), ip("192.168.77.2").into()));
    assert_eq!((b.vni, b.port, b.mtu), (77, 8472, 1450));
    assert_eq!((b.src_mac, b.dst_mac), (vtep_mac(ip("192.168.77.1")), mac(0xb4)));
    // The annotation is of the other family: made from the address.
    assert_eq!((&*c.node, c.dst_mac), ("c", vtep_mac(ip("192.168.88.3"))));
    let vteps = [(b.remote, 0), (c.remote, 1)].into_iter().collect();
    assert_eq!(snapshot.vteps, vteps);
    assert_eq!(snapshot.node.vteps, [Ip::from(ip("192.168.77.1"))]);

    world.overlay.outer_v6 = true;
    let snapshot = world.compile().snapshot;
    let [b, c] = snapshot.tunnels.as_slice() else { panic!("{:?}", snapshot.tunnels) };
    assert_eq!((b.local, b.remote, b.mtu), (ip("fd77::1").into(), ip("fd77::2").into(), 1430));
    assert_eq!((b.dst_mac, c.dst_mac), (vtep_mac(ip("fd77::2")), mac(0xc6)));
    assert_eq!(snapshot.node.vteps, [Ip::from(ip("fd77::1"))]);
}

#[test]
fn without_encapsulation_pods_are_routed() {
    let mut world = World::new(Encap::None, false);
    world.neighbor_node();
    world.distant_node();
    let ways = [
        ("10.77.2.9", "via 192.168.77.2"),
        ("fd00:77:2::9", "via fd77::2"),
        ("10.77.3.9", "via 192.168.77.254"),
        ("fd00:77:3::9", "via fd77::fe"),
        ("10.77.1.9", "no endpoint"),
    ];
    let problems = goes(&mut world, &ways);
    assert!(problems.is_empty(), "{problems:?}");
    let snapshot = world.compile().snapshot;
    assert!(snapshot.tunnels.is_empty() && snapshot.vteps.is_empty() && snapshot.node.vteps.is_empty());

    // The kernel knows better: for the whole CIDR, and for a part of it. Less metric wins.
    world.route("10.77.2.0/24", ETH0, Some("192.168.77.8"));
    world.route("10.77.2.0/24", ETH0, Some("192.168.77.7")).metric = 300;
    world.route("10.77.3.128/25", ETH0, Some("192.168.77.9"));
    goes(
        &mut world,
        &[
            ("10.77.2.9", "via 192.168.77.8"),
            ("10.77.3.9", "via 192.168.77.254"),
            ("10.77.3.200", "via 192.168.77.9"),
        ],
    );
    // By a device that is no uplink: not for pods.
    world.route("10.77.2.64/26", 9, None);
    world.route("10.77.2.128/26", 9, None).kind = RouteKind::Blackhole;
    goes(&mut world, &[("10.77.2.70", "via 192.168.77.8"), ("10.77.2.130", "via 192.168.77.8")]);
}

#[test]
fn across_subnets_only_is_encapsulated() {
    let mut world = World::new(Encap::CrossSubnet, false);
    world.neighbor_node();
    world.distant_node();
    // On the link by IPv4, behind the gateway by IPv6: each family its way.
    world.node("d", &["192.168.77.4", "fd88::4"], &["10.77.4.0/24", "fd00:77:4::/64"]);
    let problems = goes(
        &mut world,
        &[
            ("10.77.2.9", "via 192.168.77.2"),
            ("fd00:77:2::9", "via fd77::2"),
            ("10.77.3.9", "tunnel c via 192.168.77.254"),
            ("fd00:77:3::9", "tunnel c via 192.168.77.254"),
            ("10.77.4.9", "via 192.168.77.4"),
            ("fd00:77:4::9", "tunnel d via 192.168.77.4"),
        ],
    );
    assert!(problems.is_empty(), "{problems:?}");
    // Whoever is reached unencapsulated may still send through the tunnel.
    let snapshot = world.compile().snapshot;
    assert!(snapshot.vteps.contains_key(&Ip::from(ip("192.168.77.2"))));
}

#[test]
fn a_pod_outside_its_nodes_cidrs_has_a_route_of_its_own() {
    for encap in [Encap::Vxlan, Encap::CrossSubnet, Encap::None] {
        let mut world = World::new(encap, false);
        world.distant_node();
        world.pod("in", Some("c"), &[ip("10.77.3.5")]);
        world.pod("out", Some("c"), &[ip("10.99.0.5"), ip("fd00:99::5")]);
        // Even in this node's CIDR: addresses may move with a pod.
        world.pod("moved", Some("c"), &[ip("10.77.1.5")]);
        world.pod("host", Some("c"), &[ip("10.99.0.6")]).host_network = true;
        world.pod("done", Some("c"), &[ip("10.99.0.7")]).finished = true;
        world.pod("nowhere", None, &[ip("10.99.0.8")]);
        world.pod("unknown", Some("z"), &[ip("10.99.0.9")]);
        let (v4, v6) = match encap {
            Encap::None => ("via 192.168.77.254", "via fd77::fe"),
            _ => ("tunnel c via 192.168.77.254", "tunnel c via 192.168.77.254"),
        };
        let outside = "via 192.168.77.254";
        goes(
            &mut world,
            &[
                ("10.99.0.5", v4),
                ("fd00:99::5", v6),
                ("10.77.1.5", v4),
                ("10.77.1.6", "no endpoint"),
                ("10.99.0.6", outside),
                ("10.99.0.7", outside),
                ("10.99.0.8", outside),
                ("10.99.0.9", outside),
            ],
        );
        let routes = world.compile().snapshot.routes;
        let host = |a| routes.iter().any(|(p, _)| p == Prefix::host(ip(a).into()));
        assert!(host("10.99.0.5") && host("10.77.1.5"));
        assert!(!host("10.77.3.5"), "its node's CIDR holds it");
    }
}

#[test]
fn pods_of_this_node_are_behind_their_ports() {
    let mut world = World::new(Encap::Vxlan, false);
    world.neighbor_node();
    world.attached(PortId(3), "x", &[ip("10.77.1.3"), ip("fd00:77:1::3")]);
    // In another node's CIDR.
    world.attached(PortId(5), "y", &[ip("10.77.2.3")]);
    // Attached before its manifest is there.
    world.port(PortId(6), 106, "fp-z", PortRole::Pod, Some("z"));
    let problems = goes(
        &mut world,
        &[("10.77.1.3", "port fp-x"), ("fd00:77:1::3", "port fp-x"), ("10.77.2.3", "port fp-y")],
    );
    assert!(problems.is_empty(), "{problems:?}");
    let snapshot = world.compile().snapshot;
    assert_eq!(snapshot.generation, 7);
    assert_eq!(snapshot.ports.len(), 7);
    let used: Vec<usize> = (0..7).filter(|i| snapshot.ports[*i].is_some()).collect();
    assert_eq!(used, [0, 3, 5, 6]);
    let x = snapshot.port(PortId(3)).unwrap();
    assert_eq!((&*x.name, x.role, x.mac, x.mtu), ("fp-x", PortRole::Pod, mac(3), 1500));
    assert_eq!(x.addrs, [Ip::from(ip("10.77.1.3")), Ip::from(ip("fd00:77:1::3"))]);
    assert!(snapshot.port(PortId(6)).unwrap().addrs.is_empty(), "it may send from nowhere");
}

#[test]
fn the_node_is_reached_by_the_host_port() {
    let mut world = World::new(Encap::Vxlan, false);
    world.neighbor_node();
    world.port(PortId(1), 50, "fp-host", PortRole::Host, None);
    // Known to the kernel only, known to the Node object only, in the CIDR of another node.
    let mut other = world.net.addresses.first().cloned().unwrap();
    other.net = net("10.77.2.1/32");
    world.net.addresses.insert(other);
    world.neighbor_node();
    world.node("a", &["192.168.77.1", "fd77::1", "203.0.113.1"], &["10.77.1.0/24"]);
    // What the kernel forwards by devices that are no uplinks is the host's too, but not pods.
    world.route("172.17.0.0/16", 9, None);
    world.route("10.77.2.0/28", 9, None);
    goes(
        &mut world,
        &[
            ("192.168.77.1", "port fp-host"),
            ("fd77::1", "port fp-host"),
            ("203.0.113.1", "port fp-host"),
            ("10.77.2.1", "port fp-host"),
            ("172.17.3.3", "port fp-host"),
            ("10.77.2.2", "tunnel b via 192.168.77.2"),
        ],
    );
    let node = world.compile().snapshot.node;
    assert_eq!(node.icmp_v4, Some(ip("192.168.77.1").into()));
    assert_eq!(node.icmp_v6, Some(ip("fd77::1").into()));
    assert_eq!(node.addresses.len(), 4);
}

#[test]
fn addresses_of_services_are_not_the_nodes() {
    let mut world = World::new(Encap::Vxlan, false);
    // What kube-proxy's IPVS mode leaves on a device of its own.
    for address in ["10.96.0.1/32", "203.0.113.1/32"] {
        world.net.addresses.insert(crate::netdev::view::Address {
            link: 9,
            net: net(address),
            peer: None,
            scope: crate::netdev::view::Scope::Global,
            state: crate::netdev::view::AddressState::Usable,
            permanent: true,
        });
    }
    assert_eq!(world.compile().snapshot.node.addresses.len(), 4);
    let object = serde_json::json!({"metadata": {"name": "web"},
        "spec": {"clusterIPs": ["10.96.0.1"], "externalIPs": ["203.0.113.1"], "ports": [{"port": 80}]}});
    let service = crate::source::convert::service(&serde_json::from_value(object).unwrap(), |_| {
        crate::model::Origin::Api
    });
    let service = service.unwrap();
    world.model.services.insert(service.name.clone(), std::sync::Arc::new(service));
    let addresses = world.compile().snapshot.node.addresses;
    assert_eq!(addresses, ["192.168.77.1", "203.0.113.1", "fd77::1"].map(|a| ip(a).into()));
}

#[test]
fn what_the_kernel_refuses_has_no_route() {
    let mut world = World::new(Encap::Vxlan, false);
    for (dst, kind) in [
        ("10.0.0.0/8", RouteKind::Blackhole),
        ("10.1.0.0/16", RouteKind::Unicast),
        ("10.1.2.0/24", RouteKind::Prohibit),
        ("2001:db8::/32", RouteKind::Unreachable),
    ] {
        world.route(dst, ETH0, Some("192.168.77.9")).kind = kind;
    }
    goes(
        &mut world,
        &[
            ("10.0.0.1", "no route"),
            ("10.1.0.1", "via 192.168.77.9"),
            ("10.1.2.1", "no route"),
            ("2001:db8::1", "no route"),
            ("2001:db9::1", "via fd77::fe"),
            ("10.77.1.9", "no endpoint"),
        ],
    );
}

#[test]
fn routes_of_other_tables_and_for_some_packets_only_do_not_count() {
    let mut world = World::new(Encap::Vxlan, false);
    // As `wg-quick` has it, and as policy routing does.
    world.route("0.0.0.0/0", 9, None).table = 51_820;
    world.route("198.51.100.0/24", ETH0, Some("192.168.77.9")).table = 100;
    world.route("198.51.100.0/24", ETH0, Some("192.168.77.9")).selector = Selector { src: None, tos: 8 };
    let dead = world.route("203.0.113.0/24", ETH0, Some("192.168.77.9"));
    dead.metric = 1;
    dead.hops[0].dead = true;
    world.route("203.0.113.0/24", ETH0, Some("192.168.77.10")).metric = 2;
    // The default table speaks where the main one is silent: never, beside a default route.
    world.route("192.0.2.0/24", ETH0, Some("192.168.77.9")).table = TABLE_DEFAULT;
    goes(
        &mut world,
        &[
            ("8.8.8.8", "via 192.168.77.254"),
            ("198.51.100.1", "via 192.168.77.254"),
            ("203.0.113.1", "via 192.168.77.10"),
            ("192.0.2.1", "via 192.168.77.254"),
        ],
    );
    world.routes.retain(|r| r.dst != net("0.0.0.0/0"));
    goes(&mut world, &[("192.0.2.1", "via 192.168.77.9"), ("8.8.8.8", "no route")]);
}

#[test]
fn the_overlay_is_not_bypassed_by_the_kernels_routes() {
    let mut world = World::new(Encap::Vxlan, false);
    world.neighbor_node();
    world.route("10.77.2.0/24", ETH0, Some("192.168.77.9"));
    world.route("10.77.2.64/26", ETH0, Some("192.168.77.9"));
    world.route("10.77.2.32/32", ETH0, None);
    world.resolved(ETH0, "10.77.2.32", NudState::Reachable, 9);
    let tunnel = "tunnel b via 192.168.77.2";
    goes(&mut world, &[("10.77.2.1", tunnel), ("10.77.2.70", tunnel), ("10.77.2.32", tunnel)]);
}

#[test]
fn a_node_without_a_tunnel_is_unreachable_not_reached_in_the_clear() {
    // No address of the outer family.
    let mut world = World::new(Encap::Vxlan, false);
    world.node("b", &["fd77::2"], &["10.77.2.0/24", "fd00:77:2::/64"]);
    world.pod("out", Some("b"), &[ip("10.99.0.5")]);
    let ways = [("10.77.2.9", "no route"), ("fd00:77:2::9", "no route"), ("10.99.0.5", "no route")];
    let problems = goes(&mut world, &ways);
    assert_eq!(problems, ["node b: no IPv4 InternalIP: its pods cannot be reached by tunnel"]);

    // No route to it by an uplink; what it sends is still accepted.
    let mut world = World::new(Encap::Vxlan, false);
    world.distant_node();
    world.routes.retain(|r| r.dst != net("0.0.0.0/0"));
    let problems = goes(&mut world, &[("10.77.3.9", "no route"), ("fd00:77:3::9", "no route")]);
    assert_eq!(problems, ["node c: no route to its address 192.168.88.3 by an uplink"]);
    let snapshot = world.compile().snapshot;
    assert_eq!(snapshot.tunnels[0].next_hop, NO_INDEX);
    assert_eq!(snapshot.vteps.get(&Ip::from(ip("192.168.88.3"))), Some(&0));
    world.route("0.0.0.0/0", 9, Some("192.168.99.1"));
    let problems = goes(&mut world, &[("10.77.3.9", "no route"), ("8.8.8.8", "host")]);
    assert_eq!(problems.len(), 1, "the way is not by an uplink: {problems:?}");

    // This node has no address of the outer family.
    let mut world = World::new(Encap::Vxlan, true);
    world.neighbor_node();
    world.node("a", &["192.168.77.1"], &["10.77.1.0/24"]);
    let problems = goes(&mut world, &[("10.77.2.9", "no route")]);
    assert_eq!(problems, ["node b: this node has no IPv6 InternalIP to tunnel from"]);

    // Across subnets, the same; on one link nothing is needed.
    let mut world = World::new(Encap::CrossSubnet, true);
    world.neighbor_node().addresses.pop();
    world.distant_node().addresses.pop();
    let problems = goes(
        &mut world,
        &[
            ("10.77.2.9", "via 192.168.77.2"),
            ("fd00:77:2::9", "no route"),
            ("10.77.3.9", "no route"),
            ("fd00:77:3::9", "no route"),
        ],
    );
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn without_encapsulation_a_node_without_a_way_is_a_problem() {
    let mut world = World::new(Encap::None, false);
    world.node("b", &["192.168.77.2"], &["10.77.2.0/24", "fd00:77:2::/64"]);
    let problems = goes(&mut world, &[("10.77.2.9", "via 192.168.77.2")]);
    assert_eq!(problems, ["node b: no route to fd00:77:2::/64 by an uplink"]);
}

#[test]
fn without_its_node_object_a_node_says_so_and_tunnels_nothing() {
    let mut world = World::new(Encap::Vxlan, false);
    world.neighbor_node();
    world.model.nodes.remove("a");
    world.attached(PortId(3), "x", &[ip("10.77.1.3")]);
    let problems = goes(
        &mut world,
        &[
            ("10.77.1.3", "port fp-x"),
            ("10.77.2.9", "no route"),
            // The kernel's address.
            ("192.168.77.1", "host"),
            ("8.8.8.8", "via 192.168.77.254"),
        ],
    );
    let [missing, tunnel] = problems.as_slice() else { panic!("{problems:?}") };
    assert!(missing.starts_with("node a: no Node object of this name"), "{missing}");
    assert_eq!(tunnel, "node b: this node is not known yet");
    let snapshot = world.compile().snapshot;
    assert_eq!((snapshot.node.icmp_v4, snapshot.node.icmp_v6), (None, None));
    assert!(snapshot.node.vteps.is_empty());

    // Unencapsulated, nothing of this node is needed to reach the others.
    world.overlay.encap = Encap::None;
    let problems = goes(&mut world, &[("10.77.2.9", "via 192.168.77.2")]);
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn conflicts_are_problems_and_the_first_keeps_what_it_has() {
    let mut world = World::new(Encap::Vxlan, false);
    world.attached(PortId(3), "x", &[ip("10.77.1.3"), ip("fd00:77:1::3")]);
    world.attached(PortId(4), "y", &[ip("10.77.1.3"), ip("10.77.1.4")]);
    let problems = goes(&mut world, &[("10.77.1.3", "port fp-x"), ("10.77.1.4", "port fp-y")]);
    assert_eq!(problems, ["fp-y: address 10.77.1.3 is already that of port 3"]);
    world.model.pods.clear();

    // Two nodes with one CIDR; one with this node's; host bits do not matter.
    world.neighbor_node();
    world.node("c", &["192.168.77.3"], &["10.77.2.7/24", "10.77.3.0/24"]);
    world.node("d", &["192.168.77.4"], &["10.77.1.0/24"]);
    let problems = goes(
        &mut world,
        &[
            ("10.77.2.9", "tunnel b via 192.168.77.2"),
            ("10.77.3.9", "tunnel c via 192.168.77.3"),
            ("10.77.1.9", "no endpoint"),
        ],
    );
    let want =
        ["node c: 10.77.2.7/24 is already that of node b", "node d: 10.77.1.0/24 is already that of node a"];
    assert_eq!(problems, want);
    world.model.nodes.remove("d");

    // Pods of two nodes with one address; two nodes with one address.
    world.node("c", &["192.168.77.2"], &["10.77.3.0/24"]);
    world.pod("p", Some("b"), &[ip("10.99.0.1")]);
    world.pod("q", Some("c"), &[ip("10.99.0.1")]);
    let problems = goes(&mut world, &[("10.99.0.1", "tunnel b via 192.168.77.2")]);
    let want = [
        "node c: address 192.168.77.2 is already that of node b",
        "node c: 10.99.0.1/32 is already that of node b",
    ];
    assert_eq!(problems, want);
    let snapshot = world.compile().snapshot;
    assert_eq!(&*snapshot.tunnels[usize::from(snapshot.vteps[&Ip::from(ip("192.168.77.2"))])].node, "b");
}

#[test]
fn next_hops_are_resolved_by_the_kernel_or_asked_for() {
    let mut world = World::new(Encap::Vxlan, false);
    world.neighbor_node();
    world.distant_node();
    world.resolved(ETH0, "192.168.77.2", NudState::Stale, 2);
    world.resolved(ETH0, "192.168.77.254", NudState::Failed, 0xfe);
    // On the link, and known: reached by itself. Elsewhere, or not on that link: not.
    world.resolved(ETH0, "192.168.77.50", NudState::Reachable, 50);
    world.resolved(ETH0, "172.16.0.1", NudState::Reachable, 51);
    world.resolved(9, "192.168.77.51", NudState::Reachable, 52);
    let compiled = world.compile();
    let snapshot = &compiled.snapshot;
    let hop = |to: &str| {
        let hop = snapshot.next_hops.iter().find(|h| h.addr == Some(ip(to).into())).unwrap();
        assert_eq!((hop.port, hop.src_mac), (UPLINK, mac(0)));
        hop.dst_mac
    };
    assert_eq!(hop("192.168.77.2"), Some(mac(2)));
    assert_eq!(hop("192.168.77.254"), None, "it does not answer");
    assert_eq!(hop("192.168.77.50"), Some(mac(50)));
    assert_eq!(way(snapshot, ip("192.168.77.50")), "via 192.168.77.50");
    assert_eq!(way(snapshot, ip("192.168.77.51")), "via itself");
    assert_eq!(way(snapshot, ip("172.16.0.1")), "via 192.168.77.254");
    let asked: Vec<String> = compiled.neighbors.iter().map(|(link, a)| format!("{link} {a}")).collect();
    let want = ["2 192.168.77.2", "2 192.168.77.50", "2 192.168.77.254", "2 fd77::fe"];
    assert_eq!(asked, want);

    // Dropped by the kernel: until it is there again, the old address is the best there is.
    world.net.neighbors.clear();
    world.remembered.insert((ETH0, ip("192.168.77.2")), mac(0x22));
    let snapshot = world.compile().snapshot;
    let hop = snapshot.next_hops.iter().find(|h| h.addr == first(&[ip("192.168.77.2")], true).map(Ip::from));
    assert_eq!(hop.unwrap().dst_mac, Some(mac(0x22)));
    // Known anew: that counts.
    world.resolved(ETH0, "192.168.77.2", NudState::Reachable, 2);
    let snapshot = world.compile().snapshot;
    let hop = snapshot.next_hops.iter().find(|h| h.addr == Some(ip("192.168.77.2").into()));
    assert_eq!(hop.unwrap().dst_mac, Some(mac(2)));
}

#[test]
fn each_uplink_has_its_next_hops() {
    let mut world = World::new(Encap::Vxlan, false);
    world.distant_node();
    world.port(PortId(1), 3, "eth1", PortRole::Uplink, None);
    world.ports.get_mut(&PortId(1)).unwrap().mtu = 9000;
    world.route("192.168.88.0/24", 3, None);
    let snapshot = world.compile().snapshot;
    let tunnel = &snapshot.tunnels[0];
    let hop = &snapshot.next_hops[usize::from(tunnel.next_hop)];
    assert_eq!((hop.port, hop.addr, hop.src_mac), (PortId(1), Some(ip("192.168.88.3").into()), mac(1)));
    assert_eq!(tunnel.mtu, 8950);
    assert_eq!(snapshot.egress(ip("10.77.3.9").into()).unwrap().port, PortId(1));
    assert_eq!(snapshot.egress(ip("8.8.8.8").into()).unwrap().port, UPLINK);
    // The uplink is gone: so is the way.
    world.ports.remove(&PortId(1));
    let problems = goes(&mut world, &[("10.77.3.9", "no route"), ("192.168.88.9", "host")]);
    assert_eq!(problems, ["node c: no route to its address 192.168.88.3 by an uplink"]);
}

#[test]
fn without_uplinks_pods_of_this_node_still_talk() {
    let mut world = World::new(Encap::Vxlan, false);
    world.neighbor_node();
    world.attached(PortId(3), "x", &[ip("10.77.1.3")]);
    world.ports.remove(&UPLINK);
    let problems = goes(
        &mut world,
        &[("10.77.1.3", "port fp-x"), ("10.77.2.9", "no route"), ("10.77.1.4", "no endpoint")],
    );
    assert_eq!(problems, ["node b: no route to its address 192.168.77.2 by an uplink"]);
    let compiled = world.compile();
    assert!(compiled.neighbors.is_empty() && compiled.snapshot.next_hops.is_empty());
    assert!(compiled.snapshot.routes.iter().all(|(_, r)| !matches!(r, Route::NextHop(_))));
}

#[test]
fn made_vtep_addresses_are_unicast_and_local() {
    for addr in ["192.168.77.1", "192.168.77.2", "fd77::1", "fd77::2", "::"] {
        let [first, ..] = vtep_mac(ip(addr)).0;
        assert_eq!(first & 3, 2, "{addr}: locally administered, not a group");
    }
    assert_ne!(vtep_mac(ip("fd77::1")), vtep_mac(ip("fd77::2")));
    assert_ne!(vtep_mac(ip("192.168.77.1")), vtep_mac(ip("192.168.77.2")));
    // What the other nodes compute must stay what it is.
    assert_eq!(vtep_mac(ip("192.168.77.1")).to_string(), "02:fb:c0:a8:4d:01");
}
