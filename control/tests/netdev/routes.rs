//! The choice of a route, against the kernel's own (`ip route get`) for tables made at random.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use fastpath_control::netdev::{Lookup, NetView, Netlink, Watcher};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::lab::Ns;

/// Devices `d0`..`d2` up, `d3` down; each a veth whose other end is up.
fn devices() -> (Ns, Ns) {
    let (ns, other) = (Ns::new("rt"), Ns::new("rto"));
    for i in 0..4 {
        ns.veth(&format!("d{i}"), &other, &format!("o{i}"));
        ns.ip(&format!("addr add 10.250.{i}.1/24 dev d{i}"));
        ns.ip(&format!("addr add fd00:250:{i}::1/64 dev d{i} nodad"));
    }
    ns.ip("link set d3 down");
    (ns, other)
}

fn view(ns: &Ns) -> NetView {
    ns.block_on(|| async { (*Watcher::start().unwrap().view()).clone() })
}

/// Few addresses, that share long and short prefixes.
fn address(v6: bool) -> impl Strategy<Value = IpAddr> {
    let v4 = [
        "10.1.2.3",
        "10.1.2.4",
        "10.1.3.1",
        "10.129.0.1",
        "172.16.0.1",
        "172.16.5.6",
        "192.0.2.1",
        "8.8.8.8",
    ];
    let six = ["2001:db8::1", "2001:db8::2", "2001:db8:1::1", "2001:db8:8000::1", "fd00:1::1", "2600::1"];
    let all: Vec<IpAddr> = (if v6 { &six[..] } else { &v4[..] }).iter().map(|a| a.parse().unwrap()).collect();
    select(all)
}

/// The words after `ip route add`. Gateways of one multipath route share their last but one number.
fn route(v6: bool) -> impl Strategy<Value = String> {
    let longest = if v6 { 128u8 } else { 32 };
    let gateway = move |group: u8, hop: u8| {
        if v6 { format!("via fe80::{group:x}:{hop:x}") } else { format!("via 10.251.{group}.{hop}") }
    };
    let device = || select(vec!["d0", "d1", "d2", "d3"]);
    let what = prop_oneof![
        3 => device().prop_map(|d| (String::new(), format!("dev {d}"))),
        4 => (device(), any::<u8>()).prop_map(move |(d, g)| {
            (String::new(), format!("{} dev {d} onlink", gateway(g, 1)))
        }),
        1 => (device(), device(), any::<u8>()).prop_map(move |(a, b, g)| {
            let (first, second) = (gateway(g, 1), gateway(g, 2));
            (String::new(), format!("nexthop {first} dev {a} onlink nexthop {second} dev {b} onlink"))
        }),
        1 => select(vec!["blackhole", "unreachable", "prohibit", "throw"])
            .prop_map(|k| (k.to_owned(), String::new())),
    ];
    (address(v6), 0..=longest, what, 1u32..4).prop_map(move |(ip, len, (kind, path), metric)| {
        let net = ipnet::IpNet::new(ip, len).unwrap().trunc();
        format!("{kind} {net} metric {metric} {path}")
    })
}

/// Alike, or hops of the same multipath route: which of them the kernel takes is a matter of its hash.
fn alike(ours: Lookup, kernels: Lookup) -> bool {
    let (Lookup::Forward(a), Lookup::Forward(b)) = (ours, kernels) else { return ours == kernels };
    let source = a.prefsrc.is_none() || a.prefsrc == b.prefsrc;
    match (a.gateway, b.gateway) {
        (Some(x), Some(y)) if x != y => source && group(x) == group(y),
        _ => source && (a.link, a.gateway) == (b.link, b.gateway),
    }
}

fn group(gateway: IpAddr) -> u128 {
    match gateway {
        IpAddr::V4(a) => u128::from(u32::from(a) >> 8),
        IpAddr::V6(a) => u128::from(a) >> 16,
    }
}

fn agrees_with_the_kernel(v6: bool) {
    let (ns, _other) = devices();
    let family = if v6 { "-6" } else { "-4" };
    let strategy = (
        proptest::collection::vec(route(v6), 1..40),
        proptest::collection::vec(address(v6), 4),
        proptest::collection::vec(any::<u32>(), 8),
    );
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let kinds = std::cell::RefCell::new(BTreeSet::new());
    let result = runner.run(&strategy, |(routes, mut ips, noise)| {
        let mut lines = String::new();
        for r in &routes {
            writeln!(lines, "route add {r}").unwrap();
        }
        ns.batch(family, &lines);
        for n in noise {
            // Neighbours of the addresses, near and far.
            let (base, bit) = (ips[n as usize % 4], n >> 8);
            ips.push(match base {
                IpAddr::V4(a) => IpAddr::V4((u32::from(a) ^ 1 << (bit % 24)).into()),
                IpAddr::V6(a) => IpAddr::V6((u128::from(a) ^ 1 << (bit % 112)).into()),
            });
        }
        ips.push(if v6 { "fd00:250:1::1" } else { "10.250.1.1" }.parse().unwrap());
        ips.push(if v6 { "fd00:250:2::9" } else { "10.250.2.9" }.parse().unwrap());
        let view = view(&ns);
        let answers = ns.within(|| {
            let mut netlink = Netlink::route().unwrap();
            ips.iter().map(|ip| netlink.kernel_route(*ip).unwrap()).collect::<Vec<_>>()
        });
        let table = ns.ip(&format!("{family} route show table main"));
        ns.batch(family, &lines.replace("route add", "route del"));
        for (ip, kernels) in ips.iter().zip(answers) {
            let ours = view.lookup(*ip);
            prop_assert!(alike(ours, kernels), "{ip}: ours {ours:?}, the kernel's {kernels:?}\n{table}");
            let forward = match kernels {
                Lookup::Forward(_) => view.route_to(*ip).is_some(),
                _ => view.route_to(*ip).is_none(),
            };
            prop_assert!(forward, "route_to({ip})");
            kinds.borrow_mut().insert(match kernels {
                Lookup::Forward(r) if r.gateway.is_some() => "gateway",
                Lookup::Forward(_) => "on link",
                Lookup::Local => "local",
                Lookup::Refused(_) => "refused",
                Lookup::Nothing => "nothing",
            });
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    // The test is worth something only if it went everywhere.
    assert_eq!(
        kinds.into_inner().into_iter().collect::<Vec<_>>(),
        ["gateway", "local", "nothing", "on link", "refused"]
    );
}

#[test]
fn ipv4_routes_agree_with_the_kernel() {
    agrees_with_the_kernel(false);
}

#[test]
fn ipv6_routes_agree_with_the_kernel() {
    agrees_with_the_kernel(true);
}

/// What the tool `ip` shows, which has a decoder of its own.
#[test]
fn routes_are_those_ip_shows() {
    let (ns, _other) = devices();
    ns.ip("route add default via 10.250.0.254 dev d0 metric 5 src 10.250.0.1");
    ns.ip("route add 10.9.0.0/16 nexthop via 10.250.0.2 dev d0 weight 3 nexthop via 10.250.1.2 dev d1");
    ns.ip("route add 10.8.0.0/16 via inet6 fe80::8 dev d1");
    ns.ip("route add 10.7.0.0/16 dev d2 table 1234");
    ns.ip("-6 route add 2001:db8::/32 via fe80::9 dev d2 metric 7");
    let v = view(&ns);
    let find = |net: &str| {
        let net = net.parse().unwrap();
        v.routes.iter().find(|r| r.dst == net).unwrap().clone()
    };
    let default = find("0.0.0.0/0");
    assert_eq!((default.metric, default.prefsrc), (5, Some("10.250.0.1".parse().unwrap())));
    let multi = find("10.9.0.0/16");
    let hops: Vec<_> =
        multi.hops.iter().map(|h| (h.link, h.gateway.unwrap().to_string(), h.weight)).collect();
    assert_eq!(
        hops,
        [(ns.index("d0"), "10.250.0.2".to_owned(), 3), (ns.index("d1"), "10.250.1.2".to_owned(), 1)]
    );
    assert_eq!(find("10.8.0.0/16").hops[0].gateway, Some("fe80::8".parse().unwrap()));
    assert_eq!(find("10.7.0.0/16").table, 1234);
    assert_eq!(
        v.route_to("10.7.1.1".parse().unwrap()).unwrap().link,
        ns.index("d0"),
        "another table is not consulted"
    );
    for family in ["-4", "-6"] {
        let shown: BTreeSet<String> = ns
            .json(&format!("{family} route show table main"))
            .iter()
            .map(|r| {
                let dst = r["dst"].as_str().unwrap();
                let metric = r["metric"].as_u64().unwrap_or(0);
                let dst =
                    if dst == "default" { if family == "-4" { "0.0.0.0/0" } else { "::/0" } } else { dst };
                format!("{dst} {metric}")
            })
            .collect();
        let ours: BTreeSet<String> = v
            .routes
            .iter()
            .filter(|r| r.table == 254 && r.dst.addr().is_ipv4() == (family == "-4"))
            .map(|r| format!("{} {}", r.dst, r.metric))
            .collect();
        assert_eq!(ours, shown);
    }
    assert_eq!(v.default_route_device(), Some(ns.index("d0")));
}

/// A router that does not answer is passed over for another (RFC 4861 6.3.6), by the kernel and by us.
#[test]
fn ipv6_avoids_a_failed_router() {
    let (ns, _other) = devices();
    ns.ip("-6 route add default via fe80::1 dev d0 metric 10");
    ns.ip("-6 route add default via fe80::2 dev d1 metric 20");
    let dst: IpAddr = "2001:db8::1".parse().unwrap();
    let both = || {
        let kernels = ns.within(|| Netlink::route().unwrap().kernel_route(dst).unwrap());
        (view(&ns).lookup(dst), kernels)
    };
    let link = |l: Lookup| match l {
        Lookup::Forward(r) => r.link,
        other => panic!("{other:?}"),
    };
    let (ours, kernels) = both();
    assert_eq!((link(ours), link(kernels)), (ns.index("d0"), ns.index("d0")));
    ns.ip("-6 neigh replace fe80::1 dev d0 nud failed");
    let (ours, kernels) = both();
    assert_eq!((link(ours), link(kernels)), (ns.index("d1"), ns.index("d1")));
    ns.ip("-6 neigh replace fe80::2 dev d1 nud failed");
    let (ours, kernels) = both();
    assert_eq!(link(ours), link(kernels), "all failed: the first again");
}
