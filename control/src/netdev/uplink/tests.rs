//! Which devices are taken and which are refused, on views made by hand.

use proptest::prelude::*;

use super::super::fixtures::{default_route, link};
use super::super::route::{Route, RouteKind};
use super::super::view::{Address, Scope};
use super::*;

fn view(links: &[Link], routes: &[Route]) -> NetView {
    NetView {
        links: links.iter().map(|l| (l.index, l.clone())).collect(),
        routes: routes.iter().cloned().collect(),
        ..NetView::default()
    }
}

/// The uplinks, where nothing is wrong.
fn chosen(view: &NetView, names: &[&str]) -> Vec<Uplink> {
    let (uplinks, errors) = select_uplinks(view, names, &[], 1500);
    assert_eq!(errors, []);
    uplinks
}

fn names(uplinks: &[Uplink]) -> Vec<&str> {
    uplinks.iter().map(|u| u.link.name.as_str()).collect()
}

#[test]
fn by_name_in_the_order_given_and_once() {
    let v = view(&[link(2, "eth0", LinkKind::Device), link(3, "eth1", LinkKind::Veth)], &[]);
    let up = chosen(&v, &["eth1", "eth0", "eth1"]);
    assert_eq!(names(&up), ["eth1", "eth0"]);
    assert!(up.iter().all(|u| u.by == ChosenBy::Name));
}

#[test]
fn without_names_the_best_default_routes_devices() {
    let links = [2, 3, 4, 5].map(|i| link(i, &format!("eth{i}"), LinkKind::Device));
    let v = view(&links, &[default_route(false, &[2], 200), default_route(false, &[3], 100)]);
    assert_eq!(v.default_route_device(), Some(3));
    let up = chosen(&v, &[]);
    assert_eq!(names(&up), ["eth3"]);
    assert_eq!(up[0].by, ChosenBy::DefaultRoute);
    // Multipath, and another device for IPv6.
    let v = view(&links, &[default_route(false, &[3, 2], 0), default_route(true, &[4, 3], 1024)]);
    assert_eq!(names(&chosen(&v, &[])), ["eth3", "eth2", "eth4"]);
    // A dead next hop does not count, nor a route that refuses.
    let mut dead = default_route(false, &[2], 10);
    dead.hops[0].dead = true;
    let refuses = Route { kind: RouteKind::Unreachable, ..default_route(true, &[4], 1) };
    let v = view(&links, &[dead, default_route(false, &[5], 20), refuses]);
    assert_eq!(names(&chosen(&v, &[])), ["eth5"]);
}

fn with_addresses(mut view: NetView, addresses: &[(u32, &str)]) -> NetView {
    view.addresses = addresses
        .iter()
        .map(|(link, net)| Address {
            link: *link,
            net: net.parse().unwrap(),
            peer: None,
            scope: Scope::Global,
            state: AddressState::Usable,
            permanent: true,
        })
        .collect();
    view
}

#[test]
fn by_network_beside_names() {
    let links = [
        link(1, "lo", LinkKind::Loopback),
        link(2, "eth0", LinkKind::Device),
        link(3, "eth1", LinkKind::Device),
        link(4, "eth2", LinkKind::Device),
        link(5, "dummy0", LinkKind::Other("dummy".to_owned())),
        link(6, "br0", LinkKind::Bridge),
    ];
    let v = with_addresses(
        view(&links, &[default_route(false, &[4], 0)]),
        &[
            (1, "192.0.2.250/32"),
            (2, "192.0.2.1/24"),
            (2, "2001:db8::1/64"),
            (3, "192.0.2.130/25"),
            (4, "198.51.100.1/24"),
            (5, "192.0.2.251/32"),
            (6, "10.0.0.1/8"),
        ],
    );
    let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<IpNet>>();
    let by = |given: &[&str], cidrs: &[&str]| {
        let (up, errors) = select_uplinks(&v, given, &nets(cidrs), 1500);
        (names(&up).join(" "), errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(by(&[], &["192.0.2.0/24"]), ("eth0 eth1".to_owned(), vec![]));
    assert_eq!(by(&[], &["2001:db8::/32", "192.0.2.128/25"]), ("eth0 eth1".to_owned(), vec![]));
    assert_eq!(by(&["eth2", "eth0"], &["192.0.2.0/24"]), ("eth2 eth0 eth1".to_owned(), vec![]));
    let (up, errors) = by(&[], &["203.0.113.0/24", "192.0.2.0/25"]);
    assert_eq!((&*up, errors.len()), ("eth0", 1));
    assert!(errors[0].contains("no device has an address in 203.0.113.0/24"), "{errors:?}");
    // What has the address but cannot be one is told, not passed over.
    let (up, errors) = by(&[], &["10.0.0.0/8"]);
    assert!(up.is_empty() && errors[0].starts_with("uplink 'br0' is a bridge"), "{errors:?}");
    let (up, _) = select_uplinks::<&str>(&v, &[], &nets(&["192.0.2.0/25"]), 1500);
    assert_eq!(up[0].by, ChosenBy::Cidr);
    assert!(UplinkError::NoAddressIn { cidr: nets(&["10.0.0.0/8"])[0] }.keeps("eth0"));
}

/// The host's end of our own pair has an address of link scope, and every device has one of IPv6.
#[test]
fn by_network_never_the_host_port() {
    let links = [link(2, "eth0", LinkKind::Device), link(3, "fp-host", LinkKind::Veth)];
    let of = [(2, "192.0.2.1/24"), (2, "fe80::2/64"), (3, "169.254.1.2/32"), (3, "fe80::3/64")];
    let mut v = with_addresses(view(&links, &[]), &of);
    v.addresses = v
        .addresses
        .iter()
        .map(|a| {
            let global = a.net.to_string() == "192.0.2.1/24";
            Address { scope: if global { Scope::Global } else { Scope::Link }, ..a.clone() }
        })
        .collect();
    for cidrs in [["0.0.0.0/0", "::/0"], ["169.254.0.0/16", "192.0.2.0/24"], ["fe80::/10", "192.0.2.1/32"]] {
        let (up, _) = select_uplinks::<&str>(&v, &[], &cidrs.map(|c| c.parse().unwrap()), 1500);
        assert_eq!(names(&up), ["eth0"], "{cidrs:?}");
    }
}

#[test]
fn refusals_name_the_device_and_what_to_do() {
    let mut down = link(10, "down0", LinkKind::Device);
    down.up = false;
    let mut port = link(11, "port0", LinkKind::Device);
    port.master = Some(12);
    let mut big = link(13, "big0", LinkKind::Device);
    big.mtu = 9000;
    let mut tun = link(14, "tun0", LinkKind::Other("tun".to_owned()));
    tun.mac = None;
    let mut lo = link(1, "lo", LinkKind::Loopback);
    lo.mtu = 65536;
    let v = view(
        &[
            lo,
            down,
            port,
            link(12, "bond0", LinkKind::Bond),
            big,
            tun,
            link(15, "br0", LinkKind::Bridge),
            link(16, "eth0.5", LinkKind::Vlan(5)),
            link(17, "vxlan0", LinkKind::Vxlan),
            link(18, "team0", LinkKind::Team),
            Link { mac: None, ..link(19, "wg0", LinkKind::Other("wireguard".to_owned())) },
        ],
        &[],
    );
    let message = |name: &str| match &select_uplinks(&v, &[name], &[], 1500) {
        (uplinks, errors) if uplinks.is_empty() && errors.len() == 1 => errors[0].to_string(),
        other => panic!("{name}: {other:?}"),
    };
    for (name, part) in [
        ("lo", "'lo' is a loopback"),
        ("down0", "ip link set down0 up"),
        ("port0", "a port of 'bond0'"),
        ("bond0", "'bond0' is a bond"),
        ("big0", "MTU of 9000, frames hold 1500"),
        ("tun0", "no Ethernet address"),
        ("br0", "'br0' is a bridge"),
        ("eth0.5", "'eth0.5' is a vlan 5"),
        ("vxlan0", "'vxlan0' is a vxlan"),
        ("team0", "'team0' is a team"),
        ("wg0", "'wg0' is a wireguard: it carries IP packets without Ethernet"),
        ("nosuch", "there are down0, port0, bond0"),
    ] {
        assert!(message(name).contains(part), "{name}: {}", message(name));
    }
    assert_eq!(select_uplinks::<&str>(&v, &[], &[], 1500), (vec![], vec![UplinkError::NoDefaultRoute]));
    let (_, nothing) = select_uplinks(&NetView::default(), &["eth0"], &[], 1500);
    assert!(nothing[0].to_string().contains("there are none"), "{nothing:?}");
}

#[test]
fn one_bad_uplink_does_not_cost_the_others() {
    let mut down = link(3, "eth1", LinkKind::Device);
    down.up = false;
    let links = [link(2, "eth0", LinkKind::Device), down, link(4, "eth2", LinkKind::Device)];
    let v = view(&links, &[default_route(false, &[3, 4], 0)]);
    let (up, errors) = select_uplinks(&v, &["eth0", "eth1", "nosuch", "eth1", "eth2"], &[], 1500);
    assert_eq!(names(&up), ["eth0", "eth2"]);
    assert!(
        matches!(&errors[..], [UplinkError::Down { .. }, UplinkError::NotFound { .. }]),
        "each once: {errors:?}"
    );
    let (up, errors) = select_uplinks::<&str>(&v, &[], &[], 1500);
    assert_eq!(names(&up), ["eth2"]);
    assert_eq!(errors, [UplinkError::Down { name: "eth1".to_owned() }]);
}

#[test]
fn what_passes_detaches_no_uplink() {
    let down = UplinkError::Down { name: "eth0".to_owned() };
    let mtu = UplinkError::Mtu { name: "eth0".to_owned(), mtu: 9000, max: 3000 };
    for error in [&down, &mtu] {
        assert!(error.keeps("eth0") && !error.keeps("eth1"), "{error}");
    }
    assert!(UplinkError::NoDefaultRoute.keeps("eth0"));
    let gone = UplinkError::NotFound { name: "eth0".to_owned(), present: String::new() };
    let taken = UplinkError::Enslaved { name: "eth0".to_owned(), master: "bond0".to_owned() };
    assert!(!gone.keeps("eth0") && !taken.keeps("eth0"));
}

proptest! {
    /// Whatever is named, what is chosen is named, up, Ethernet, nobody's port, and fits.
    #[test]
    fn what_is_chosen_will_do(
        kinds in proptest::collection::vec((0usize..7, any::<bool>(), any::<bool>(), 1000u32..2000), 1..5),
        max in 1000u32..2000,
    ) {
        let links: Vec<Link> = kinds.iter().zip(1u32..).map(|((kind, up, port, mtu), index)| {
            let kind = [
                LinkKind::Device, LinkKind::Veth, LinkKind::Bond, LinkKind::Bridge, LinkKind::Vlan(1),
                LinkKind::Loopback, LinkKind::Other("macvlan".to_owned()),
            ][*kind].clone();
            Link { up: *up, master: port.then_some(99), mtu: *mtu, ..link(index, &format!("d{index}"), kind) }
        }).collect();
        let v = view(&links, &[]);
        for l in &links {
            let ok = matches!(l.kind, LinkKind::Device | LinkKind::Veth | LinkKind::Other(_))
                && l.up && l.master.is_none() && l.mtu <= max;
            let (uplinks, errors) = select_uplinks(&v, &[&l.name], &[], max);
            prop_assert_eq!((uplinks.len(), errors.len()), (usize::from(ok), usize::from(!ok)));
        }
    }
}
