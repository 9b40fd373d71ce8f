//! The view is what `ip` shows, and follows what changes.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use fastpath_control::netdev::view::{AddressState, Scope};
use fastpath_control::netdev::{
    LinkKind, Lookup, NetView, Netlink, NudState, UplinkError, Watcher, select_uplinks,
};

use crate::lab::{Ns, until};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Everything `ip` shows of links, addresses and neighbours is in the view, and nothing else is.
fn same_as_ip_shows(ns: &Ns, view: &NetView) {
    let shown: BTreeSet<_> = ns
        .json("link show")
        .iter()
        .map(|l| {
            let flags: Vec<&str> =
                l["flags"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
            (
                l["ifindex"].as_u64().unwrap(),
                l["ifname"].as_str().unwrap().to_owned(),
                l["address"].as_str().unwrap().to_owned(),
                l["mtu"].as_u64().unwrap(),
                flags.contains(&"UP"),
            )
        })
        .collect();
    let ours: BTreeSet<_> = view
        .links
        .values()
        .map(|l| (u64::from(l.index), l.name.clone(), l.mac.unwrap().to_string(), u64::from(l.mtu), l.up))
        .collect();
    assert_eq!(ours, shown);
    let shown: BTreeSet<String> = ns
        .json("addr show")
        .iter()
        .flat_map(|l| {
            let index = l["ifindex"].clone();
            let info = l["addr_info"].as_array().unwrap().clone();
            info.into_iter()
                .map(move |a| format!("{index} {}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
        })
        .collect();
    let ours: BTreeSet<String> = view.addresses.iter().map(|a| format!("{} {}", a.link, a.net)).collect();
    assert_eq!(ours, shown);
    let shown: BTreeSet<String> = ns
        .json("neigh show nud all")
        .iter()
        .filter(|n| !ip(n["dst"].as_str().unwrap()).is_multicast())
        .map(|n| format!("{} {} {}", n["dev"], n["dst"], n["lladdr"]))
        .collect();
    let ours: BTreeSet<String> = view
        .neighbors
        .iter()
        .map(|((link, ip), n)| {
            let mac = n.mac.map_or("null".to_owned(), |m| format!("\"{m}\""));
            format!("\"{}\" \"{ip}\" {mac}", view.links[link].name)
        })
        .collect();
    assert_eq!(ours, shown);
}

#[test]
fn the_view_is_what_ip_shows() {
    let (a, b) = (Ns::new("va"), Ns::new("vb"));
    a.veth("up0", &b, "eth0");
    a.ip("link add name br0 type bridge");
    a.ip("link add name port0 type veth peer name port1");
    a.ip("link set port0 master br0 mtu 1400");
    a.ip("link add name vx0 type vxlan id 7 dstport 4789 local 10.0.0.1");
    a.ip("link add name mv0 link up0 type macvlan");
    a.ip("addr add 10.0.0.1/24 dev up0");
    a.ip("addr add 10.0.0.9 peer 10.0.0.10/32 dev up0");
    a.ip("addr add fd00::1/64 dev up0 nodad");
    a.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev up0");
    a.ip("neigh add fd00::2 lladdr 02:00:00:00:00:03 dev up0 nud reachable");
    a.ip("neigh add 10.0.0.3 dev up0 nud failed");
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        // The kernel's own address and its neighbours settle within two seconds.
        let v = until(&mut views, "no address tentative", |v| {
            v.addresses.iter().all(|a| a.state == AddressState::Usable)
        })
        .await;
        same_as_ip_shows(&a, &v);
        let link = |name: &str| v.link_by_name(name).unwrap();
        assert_eq!(link("lo").kind, LinkKind::Loopback);
        assert_eq!(link("br0").kind, LinkKind::Bridge);
        assert_eq!(link("vx0").kind, LinkKind::Vxlan);
        assert_eq!(link("mv0").kind, LinkKind::Other("macvlan".to_owned()));
        assert_eq!(link("mv0").lower.unwrap().index, link("up0").index);
        assert_eq!(link("port0").master, Some(link("br0").index));
        assert_eq!((link("port0").kind.clone(), link("port0").mtu), (LinkKind::Veth, 1400));
        let pair = link("port0").lower.unwrap();
        assert_eq!((pair.index, pair.netns), (link("port1").index, None));
        let up0 = link("up0");
        assert_eq!((up0.rx_queues, up0.tx_queues), (4, 4));
        assert_eq!(up0.lower.unwrap().index, b.index("eth0"));
        assert!(up0.lower.unwrap().netns.is_some());
        let peer = v.addresses.iter().find(|a| a.net.addr() == ip("10.0.0.9")).unwrap();
        assert_eq!(peer.peer, Some(ip("10.0.0.10")));
        let scopes: BTreeSet<Scope> = v.addresses_of(up0.index).map(|a| a.scope).collect();
        assert_eq!(scopes, [Scope::Global, Scope::Link].into());
        assert_eq!(v.node_addresses(), ["10.0.0.1", "10.0.0.9", "fd00::1"].map(ip));
        assert_eq!(v.mac_of(up0.index, ip("10.0.0.2")).unwrap().to_string(), "02:00:00:00:00:02");
        assert_eq!(v.neighbors[&(up0.index, ip("10.0.0.2"))].state, NudState::Permanent);
        assert_eq!(v.mac_of(up0.index, ip("10.0.0.3")), None);
        assert!(matches!(select_uplinks(&v, &["br0"], &[], 1500).1[..], [UplinkError::Kind { .. }]));
        assert!(matches!(select_uplinks(&v, &["port0"], &[], 1500).1[..], [UplinkError::Enslaved { .. }]));
        assert!(matches!(select_uplinks(&v, &["up0"], &[], 1499).1[..], [UplinkError::Mtu { .. }]));
        assert_eq!(select_uplinks(&v, &["up0"], &[], 1500).0[0].link, *up0);
    });
}

#[test]
fn the_view_follows() {
    let (a, b) = (Ns::new("fa"), Ns::new("fb"));
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        assert!(watcher.view().link_by_name("up0").is_none());

        a.veth("up0", &b, "eth0");
        let v =
            until(&mut views, "up0 running", |v| v.link_by_name("up0").is_some_and(|l| l.up && l.running))
                .await;
        let up0 = v.link_by_name("up0").unwrap().index;
        a.ip("link set up0 mtu 1300");
        until(&mut views, "the MTU", |v| v.links[&up0].mtu == 1300).await;
        a.ip("link set up0 address 02:aa:00:00:00:01");
        until(&mut views, "the MAC", |v| v.links[&up0].mac.unwrap().to_string() == "02:aa:00:00:00:01").await;

        // An IPv6 address is tentative first, then not; before that it is no address of the node.
        a.ip("addr add fd00::1/64 dev up0");
        let tentative = |v: &NetView, state| {
            v.addresses.iter().any(|a| a.net.addr() == ip("fd00::1") && a.state == state)
        };
        let v = until(&mut views, "tentative", |v| tentative(v, AddressState::Tentative)).await;
        assert!(!v.node_addresses().contains(&ip("fd00::1")));
        let v = until(&mut views, "usable", |v| tentative(v, AddressState::Usable)).await;
        assert_eq!(v.node_addresses(), [ip("fd00::1")]);
        assert_eq!(v.addresses.iter().filter(|a| a.net.addr() == ip("fd00::1")).count(), 1);

        a.ip("addr add 10.0.0.1/24 dev up0");
        a.ip("route add default via 10.0.0.2");
        let out = ip("8.8.8.8");
        let v = until(&mut views, "the default route", |v| v.route_to(out).is_some()).await;
        let route = v.route_to(out).unwrap();
        assert_eq!((route.link, route.neighbor(out)), (up0, (up0, ip("10.0.0.2"))));
        assert_eq!(v.lookup(ip("10.0.0.1")), Lookup::Local);
        a.ip("route replace default via 10.0.0.3");
        until(&mut views, "the new gateway", |v| {
            v.route_to(out).is_some_and(|r| r.gateway == Some(ip("10.0.0.3")))
        })
        .await;

        // The kernel drops IPv4 routes of a link that goes down without a word.
        a.ip("link set up0 down");
        let v = until(&mut views, "no route", |v| !v.links[&up0].up && v.route_to(out).is_none()).await;
        assert_eq!(v.default_route_device(), None);
        a.ip("link set up0 up");
        a.ip("route add default via 10.0.0.2");
        until(&mut views, "the route again", |v| v.route_to(out).is_some()).await;
        a.ip("addr del 10.0.0.1/24 dev up0");
        until(&mut views, "no route without address", |v| v.route_to(out).is_none()).await;

        a.ip("neigh add 10.0.0.7 lladdr 02:00:00:00:00:07 dev up0");
        until(&mut views, "the neighbour", |v| v.mac_of(up0, ip("10.0.0.7")).is_some()).await;
        a.ip("neigh del 10.0.0.7 dev up0");
        until(&mut views, "no neighbour", |v| v.mac_of(up0, ip("10.0.0.7")).is_none()).await;

        a.ip("link set up0 name up1");
        until(&mut views, "the new name", |v| v.link_by_name("up1").is_some_and(|l| l.index == up0)).await;
        a.ip("neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev up1");
        until(&mut views, "the neighbour", |v| v.mac_of(up0, ip("10.0.0.8")).is_some()).await;
        a.ip("link del up1");
        let v = until(&mut views, "no link", |v| v.link_by_name("up1").is_none()).await;
        assert!(v.neighbors.keys().all(|(link, _)| *link != up0));
        assert!(v.addresses.iter().all(|a| a.link != up0) && !v.peers.contains_key(&up0));
    });
}

/// A device that leaves for another namespace is gone, with all that was on it.
#[test]
fn a_moved_device_is_gone() {
    let (a, b) = (Ns::new("ma"), Ns::new("mb"));
    a.ip("link add name x0 type veth peer name x1");
    a.ip("link set x0 up");
    a.ip("addr add 10.3.0.1/24 dev x0");
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        let x1 = a.index("x1");
        until(&mut views, "x0", |v| v.node_addresses() == [ip("10.3.0.1")]).await;
        a.ip(&format!("link set x0 netns {}", b.name));
        let v = until(&mut views, "x0 gone", |v| v.link_by_name("x0").is_none()).await;
        assert_eq!(v.node_addresses(), Vec::<IpAddr>::new());
        // Its other end says where it went, when asked.
        let at = Netlink::route().unwrap().peer_of(x1).unwrap().at;
        assert!(at.netns.is_some());
    });
}

/// Nothing is sent when nothing changed, and a neighbour's state alone does not change forwarding.
#[test]
fn only_changes_are_sent() {
    let (a, b) = (Ns::new("ca"), Ns::new("cb"));
    a.veth("up0", &b, "eth0");
    a.ip("addr add 10.0.0.1/24 dev up0");
    a.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev up0 nud reachable");
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        let up0 = a.index("up0");
        let key = (up0, ip("10.0.0.2"));
        let settled = |v: &NetView| v.addresses.iter().all(|a| a.state == AddressState::Usable);
        let first = until(&mut views, "settled", |v| settled(v) && v.neighbors.contains_key(&key)).await;
        a.ip("neigh change 10.0.0.2 lladdr 02:00:00:00:00:02 dev up0 nud stale");
        let second = until(&mut views, "stale", |v| v.neighbors[&key].state == NudState::Stale).await;
        assert_ne!(first, second);
        assert!(first.forwarding_eq(&second));
        a.ip("neigh change 10.0.0.2 lladdr 02:00:00:00:00:09 dev up0 nud stale");
        let third =
            until(&mut views, "the MAC", |v| v.neighbors[&key].mac != second.neighbors[&key].mac).await;
        assert!(!second.forwarding_eq(&third));
        a.ip("neigh change 10.0.0.2 dev up0 nud failed");
        let fourth = until(&mut views, "failed", |v| v.neighbors[&key].state == NudState::Failed).await;
        assert!(!third.forwarding_eq(&fourth));
        // Set to what it is: messages without a change.
        views.mark_unchanged();
        for _ in 0..20 {
            a.ip("link set up0 mtu 1500");
            a.ip("link set up0 alias x");
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        if views.has_changed().unwrap() {
            assert_ne!(*views.borrow_and_update(), fourth, "sent though nothing changed");
        }
    });
}

/// More messages than the socket holds, while nobody reads: afterwards the view is right again.
#[test]
fn an_overrun_is_recovered_from() {
    let (a, b) = (Ns::new("oa"), Ns::new("ob"));
    a.veth("up0", &b, "eth0");
    a.ip("neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev up0");
    a.ip("addr add 10.77.0.1/24 dev up0");
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        let up0 = a.index("up0");
        until(&mut views, "the neighbour", |v| v.mac_of(up0, ip("10.0.0.1")).is_some()).await;
        // The thread does not run the watcher meanwhile.
        let mut lines = String::new();
        for n in 0..40_000u32 {
            let address = IpAddr::V4((0x0a01_0000 + n).into());
            writeln!(lines, "neigh add {address} lladdr 02:00:00:00:00:01 dev up0").unwrap();
        }
        a.batch("-4", &lines);
        a.ip("neigh del 10.0.0.1 dev up0");
        a.ip("addr del 10.77.0.1/24 dev up0");
        a.ip("route add 10.78.0.0/16 dev up0");
        assert!(dropped() > 0, "the burst must overrun the socket, or nothing is tested");
        let v = until(&mut views, "all again", |v| {
            v.mac_of(up0, ip("10.0.0.1")).is_none()
                && v.node_addresses().is_empty()
                && v.route_to(ip("10.78.0.1")).is_some()
        })
        .await;
        let count = v.neighbors.keys().filter(|(_, ip)| ip.is_ipv4()).count();
        assert_eq!(count, a.json("-4 neigh show").len());
        // And it still follows.
        a.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev up0");
        until(&mut views, "the next neighbour", |v| v.mac_of(up0, ip("10.0.0.2")).is_some()).await;
    });
}

/// Messages dropped on netlink sockets of this namespace (column `Drops` of /proc/net/netlink).
fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let column = text.lines().next().unwrap().split_whitespace().position(|w| w == "Drops").unwrap();
    text.lines().skip(1).map(|l| l.split_whitespace().nth(column).unwrap().parse::<u64>().unwrap()).sum()
}
