//! Random clusters against the rules in words: where a pod's packets go by its node's addresses alone.

use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Ip, NO_INDEX, PortId};
use fastpath::snapshot::Route;
use proptest::prelude::*;

use super::world::{ETH0, World, first, ip, way};
use crate::config::Encap;

/// Where a node's address of a family is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// On the uplink's link.
    Link,
    /// Behind the gateway.
    Distant,
    /// The node has none.
    Nowhere,
}

/// A pod and what may be odd about it.
#[derive(Clone, Debug)]
struct SomePod {
    /// Its node, by number; 0 is this one.
    node: usize,
    /// Outside its node's CIDRs.
    outside: bool,
    v6: bool,
    host_network: bool,
    finished: bool,
    /// For one of this node's: its port is there.
    attached: bool,
}

#[derive(Clone, Debug)]
struct Cluster {
    encap: Encap,
    outer_v6: bool,
    /// A default route for IPv4, for IPv6.
    default: [bool; 2],
    /// The other nodes: their places by IPv4 and IPv6.
    nodes: Vec<[Place; 2]>,
    pods: Vec<SomePod>,
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let place = prop_oneof![3 => Just(Place::Link), 2 => Just(Place::Distant), 1 => Just(Place::Nowhere)];
    let encap = prop_oneof![Just(Encap::Vxlan), Just(Encap::None), Just(Encap::CrossSubnet)];
    let nodes = prop::collection::vec([place.clone(), place], 0..5);
    let often = prop::bool::weighted(0.8);
    let rarely = prop::bool::weighted(0.2);
    (encap, any::<bool>(), [often, often], nodes).prop_flat_map(move |(encap, outer_v6, default, nodes)| {
        let pod = (0..=nodes.len(), any::<bool>(), any::<bool>(), rarely, rarely, often).prop_map(
            |(node, outside, v6, host_network, finished, attached)| SomePod {
                node,
                outside,
                v6,
                host_network,
                finished,
                attached,
            },
        );
        (prop::collection::vec(pod, 0..12), Just(nodes)).prop_map(move |(pods, nodes)| Cluster {
            encap,
            outer_v6,
            default,
            nodes,
            pods,
        })
    })
}

fn name(node: usize) -> String {
    ["a", "b", "c", "d", "e"][node].to_owned()
}

/// The node's addresses: of node 0 both, of others what their places say.
fn addresses(cluster: &Cluster, node: usize) -> Vec<IpAddr> {
    let places = node.checked_sub(1).map_or([Place::Link; 2], |i| cluster.nodes[i]);
    let n = node + 1;
    let texts = [
        (places[0], format!("192.168.77.{n}"), format!("192.168.88.{n}")),
        (places[1], format!("fd77::{n}"), format!("fd88::{n}")),
    ];
    let at = texts.into_iter().filter_map(|(place, link, distant)| match place {
        Place::Link => Some(ip(&link)),
        Place::Distant => Some(ip(&distant)),
        Place::Nowhere => None,
    });
    at.collect()
}

/// Address of pod `n` of the cluster; each has its own.
fn address(pod: &SomePod, n: usize) -> IpAddr {
    let (node, n) = (pod.node + 1, n + 1);
    match (pod.v6, pod.outside) {
        (false, false) => ip(&format!("10.77.{node}.{n}")),
        (false, true) => ip(&format!("10.99.0.{n}")),
        (true, false) => ip(&format!("fd00:77:{node}::{n}")),
        (true, true) => ip(&format!("fd00:99::{n}")),
    }
}

fn world(cluster: &Cluster) -> World {
    let mut world = World::new(cluster.encap, cluster.outer_v6);
    world.routes.retain(|r| r.dst.prefix_len() > 0 || cluster.default[usize::from(r.dst.addr().is_ipv6())]);
    for node in 1..=cluster.nodes.len() {
        let cidrs = [format!("10.77.{}.0/24", node + 1), format!("fd00:77:{}::/64", node + 1)];
        let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
        world.node(&name(node), &[], &cidrs).addresses = addresses(cluster, node);
    }
    for (n, pod) in cluster.pods.iter().enumerate() {
        let pod_name = format!("p{n}");
        if pod.node == 0 && pod.attached {
            world.attached(PortId(u16::try_from(n + 1).unwrap()), &pod_name, &[address(pod, n)]);
        }
        let made = world.pod(&pod_name, Some(&name(pod.node)), &[address(pod, n)]);
        (made.host_network, made.finished) = (pod.host_network, pod.finished);
    }
    world
}

/// The way to another node's address; `None` without a route.
fn hop(cluster: &Cluster, to: Option<IpAddr>) -> Option<String> {
    let to = to?;
    let text = to.to_string();
    if text.starts_with("192.168.77.") || text.starts_with("fd77:") {
        return Some(format!("via {to}"));
    }
    let gateway = if to.is_ipv4() { "192.168.77.254" } else { "fd77::fe" };
    cluster.default[usize::from(to.is_ipv6())].then(|| format!("via {gateway}"))
}

/// The rule in words. What is nobody's goes the way of all addresses outside.
fn expected(cluster: &Cluster, pod: &SomePod, n: usize) -> String {
    let outside = || {
        let gateway = if pod.v6 { "via fd77::fe" } else { "via 192.168.77.254" };
        if cluster.default[usize::from(pod.v6)] { gateway } else { "no route" }.to_owned()
    };
    if pod.node == 0 {
        return match (pod.attached, pod.outside) {
            (true, _) => format!("port fp-p{n}"),
            (false, false) => "no endpoint".to_owned(),
            (false, true) => outside(),
        };
    }
    if pod.outside && (pod.host_network || pod.finished) {
        return outside();
    }
    let at = addresses(cluster, pod.node);
    let own = first(&at, !pod.v6);
    let direct = hop(cluster, own);
    let tunnel = hop(cluster, first(&at, !cluster.outer_v6))
        .map_or_else(|| "no route".to_owned(), |via| format!("tunnel {} {via}", name(pod.node)));
    let on_link = direct.is_some() && direct == own.map(|a| format!("via {a}"));
    match cluster.encap {
        Encap::Vxlan => tunnel,
        Encap::None => direct.unwrap_or_else(outside),
        Encap::CrossSubnet if on_link => direct.unwrap_or_default(),
        Encap::CrossSubnet => tunnel,
    }
}

proptest! {
    #[test]
    fn every_pod_is_reached_as_its_node_is(cluster in cluster()) {
        let mut world = world(&cluster);
        let compiled = world.compile();
        let snapshot = &compiled.snapshot;
        for (n, pod) in cluster.pods.iter().enumerate() {
            let found = way(snapshot, address(pod, n));
            prop_assert_eq!(found, expected(&cluster, pod, n), "{:?}", pod);
        }
        prop_assert_eq!(way(snapshot, ip("192.168.77.1")), "host");

        // A problem for each node that cannot be reached in some way it should be, and no other.
        for node in 1..=cluster.nodes.len() {
            let at = addresses(&cluster, node);
            let lost = if cluster.encap == Encap::None {
                [true, false].iter().any(|v4| hop(&cluster, first(&at, *v4)).is_none())
            } else {
                hop(&cluster, first(&at, !cluster.outer_v6)).is_none()
            };
            let told = compiled.problems.iter().any(|p| p.starts_with(&format!("node {}: ", name(node))));
            prop_assert_eq!(told, lost, "{} {:?}", name(node), compiled.problems);
        }

        // Whatever the world: indices point at something, and all that has no MAC address is asked for.
        for (prefix, route) in snapshot.routes.iter() {
            match route {
                Route::NextHop(i) => prop_assert!(usize::from(*i) < snapshot.next_hops.len(), "{prefix}"),
                Route::Tunnel(i) => prop_assert!(*i == NO_INDEX || usize::from(*i) < snapshot.tunnels.len(), "{prefix}"),
                Route::Host | Route::NoEndpoint => {}
            }
        }
        for tunnel in &snapshot.tunnels {
            prop_assert!(tunnel.next_hop == NO_INDEX || usize::from(tunnel.next_hop) < snapshot.next_hops.len());
            let by = snapshot.vteps.get(&tunnel.remote).map(|i| &snapshot.tunnels[usize::from(*i)]);
            prop_assert_eq!(by, Some(tunnel));
        }
        prop_assert_eq!(snapshot.vteps.len(), snapshot.tunnels.len());
        for hop in snapshot.next_hops.iter().filter_map(|h| h.addr) {
            prop_assert!(compiled.neighbors.contains(&(ETH0, IpAddr::from(hop))), "{hop}");
        }
        for (addr, port) in &snapshot.local {
            prop_assert!(snapshot.port(*port).unwrap().addrs.contains(addr));
        }
        prop_assert!(!snapshot.local.contains_key(&Ip::from(ip("192.168.77.1"))));
        let mut again = world.compile();
        // Compared as the one thing it is, and put in by somebody else.
        again.snapshot.rule_counters = Arc::clone(&snapshot.rule_counters);
        prop_assert_eq!(&again.snapshot, snapshot);
        prop_assert_eq!((again.neighbors, again.problems), (compiled.neighbors, compiled.problems));
    }
}
