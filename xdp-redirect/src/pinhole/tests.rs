use super::*;
use proptest::prelude::*;

const SIZES: Sizes = Sizes { sockets: 4, local_prefixes: 4, exact: 4, snat: 2 };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(ip(addr), len.parse().unwrap()).unwrap()
}

#[test]
fn prefixes_are_canonical() {
    assert_eq!(prefix("10.1.2.3/16"), prefix("10.1.0.0/16"));
    assert_eq!(prefix("fd00:1::7/32").to_string(), "fd00:1::/32");
    assert_eq!(prefix("1.2.3.4/0").to_string(), "0.0.0.0/0");
    assert_eq!(prefix("1::/0").to_string(), "::/0");
    assert_eq!(Prefix::host(ip("10.0.0.1")), prefix("10.0.0.1/32"));
    assert!(Prefix::new(ip("10.0.0.1"), 33).is_err());
    assert!(Prefix::new(ip("::1"), 129).is_err());
    assert!(prefix("10.1.0.0/16").contains(ip("10.1.255.1")));
    assert!(!prefix("10.1.0.0/16").contains(ip("10.2.0.1")));
    assert!(!prefix("::/0").contains(ip("10.2.0.1")));
}

#[test]
fn nonsense_is_refused() {
    let node = ip("192.0.2.1");
    let mut empty_range = Pinhole::default();
    empty_range.snat.insert(node, SnatPorts { lo: 2, hi: 1 });
    assert!(matches!(Entries::compile(&empty_range, SIZES), Err(XdpError::Invalid(_))));

    let mut mapped = Pinhole::default();
    mapped.tunnels.insert(Tunnel { addr: ip("::ffff:192.0.2.1"), port: 4789 });
    assert!(matches!(Entries::compile(&mapped, SIZES), Err(XdpError::Invalid(_))));

    let mut many = Pinhole::default();
    many.local.extend((0..5).map(|i| Prefix::host(IpAddr::V4(Ipv4Addr::new(10, 0, 0, i)))));
    assert!(matches!(Entries::compile(&many, SIZES), Err(XdpError::TooMany { wanted: 5, max: 4, .. })));
}

#[test]
fn a_tunnel_wins_over_a_frontend_of_the_same_port() {
    let endpoint = Endpoint { addr: ip("192.0.2.1"), proto: Protocol::Udp, port: 4789 };
    let mut pinhole = Pinhole::default();
    pinhole.frontends.insert(endpoint);
    pinhole.node_ports.insert(endpoint);
    pinhole.tunnels.insert(Tunnel { addr: endpoint.addr, port: endpoint.port });
    let entries = Entries::compile(&pinhole, SIZES).unwrap();
    assert_eq!(entries.exact.values().collect::<Vec<_>>(), [&CLASS_VXLAN]);
}

#[test]
fn node_addresses_are_excepted_where_a_pod_prefix_holds_them() {
    let mut pinhole = Pinhole::default();
    pinhole.local.extend([prefix("10.1.0.0/16"), prefix("10.1.0.0/24"), prefix("fd00::/64")]);
    pinhole.node.extend([ip("10.1.0.1"), ip("10.1.7.1"), ip("192.0.2.1"), ip("fd00::1"), ip("fd01::1")]);
    let sizes = Sizes { local_prefixes: 4, ..SIZES };
    let entries = Entries::compile(&pinhole, sizes).unwrap();
    assert_eq!(
        entries.local4.into_iter().collect::<Vec<_>>(),
        [
            ((16, [10, 1, 0, 0]), CLASS_POD),
            ((24, [10, 1, 0, 0]), CLASS_POD),
            ((32, [10, 1, 0, 1]), CLASS_NODE),
            ((32, [10, 1, 7, 1]), CLASS_NODE),
        ]
    );
    assert_eq!(entries.local6.values().collect::<Vec<_>>(), [&CLASS_POD, &CLASS_NODE]);
    let reported = pinhole.node_addresses_of_pods();
    assert_eq!(
        reported,
        [
            (ip("10.1.0.1"), prefix("10.1.0.0/24")),
            (ip("10.1.7.1"), prefix("10.1.0.0/16")),
            (ip("fd00::1"), prefix("fd00::/64")),
        ]
    );
    // They take room like any other entry.
    pinhole.node.insert(ip("10.1.0.2"));
    assert!(matches!(Entries::compile(&pinhole, sizes), Err(XdpError::TooMany { wanted: 5, max: 4, .. })));
}

#[test]
fn a_node_address_is_excepted_before_and_as_long_as_a_prefix_holds_it() {
    let mut pinhole = Pinhole::default();
    pinhole.local.insert(prefix("10.1.0.0/24"));
    pinhole.node.insert(ip("10.1.0.1"));
    let with = Entries::compile(&pinhole, SIZES).unwrap().local4;
    let without = BTreeMap::new();
    // Also where not both fit.
    for max in [4, 1] {
        let mut held = BTreeMap::new();
        let mut map = BTreeMap::new();
        for desired in [&with, &without, &with] {
            sync(&mut held, desired, max, |change| {
                match change {
                    Change::Put(key, value) => drop(map.insert(*key, *value)),
                    Change::Remove(key) => drop(map.remove(key)),
                }
                let cidr = map.contains_key(&(24, [10, 1, 0, 0]));
                assert!(!cidr || map.get(&(32, [10, 1, 0, 1])) == Some(&CLASS_NODE), "{map:?}");
                Ok(())
            })
            .unwrap();
            assert_eq!(map, *desired);
        }
    }
}

proptest! {
    /// Against a map with room for `MAX`: ends at what was desired, never touches what stays the same,
    /// never overflows, and never removes before it has added when both fit.
    #[test]
    fn sync_reaches_the_desired_state_without_a_gap(
        held in proptest::collection::btree_map(0u8..12, 0u8..3, 0..=8),
        desired in proptest::collection::btree_map(0u8..12, 0u8..3, 0..=8),
        fail_at in proptest::option::of(0usize..10),
    ) {
        const MAX: usize = 8;
        let start = held.clone();
        let mut map = held.clone();
        let mut held = held;
        let mut writes = 0;
        let union = start.keys().chain(desired.keys()).collect::<BTreeSet<_>>().len();
        let mut run = |held: &mut BTreeMap<u8, u8>, map: &mut BTreeMap<u8, u8>, fail_at: Option<usize>| {
            sync(held, &desired, 8, |change| {
                if fail_at == Some(writes) {
                    writes += 1;
                    return Err(MapError::OutOfBounds { index: 0, max_entries: 0 });
                }
                writes += 1;
                match change {
                    Change::Put(key, value) => {
                        assert_ne!(map.get(key), Some(value), "a write that changes nothing");
                        map.insert(*key, *value);
                        assert!(map.len() <= MAX, "overflow");
                    }
                    Change::Remove(key) => {
                        assert!(!desired.contains_key(key), "removed what is wanted");
                        map.remove(key);
                        if union <= MAX {
                            assert!(desired.keys().all(|key| map.contains_key(key)), "a gap");
                        }
                    }
                }
                Ok(())
            })
        };
        let first = run(&mut held, &mut map, fail_at);
        prop_assert_eq!(&held, &map, "the shadow is what the map holds, also after an error");
        if first.is_err() {
            run(&mut held, &mut map, None).unwrap();
        }
        prop_assert_eq!(&map, &desired);
        prop_assert_eq!(&held, &desired);
    }
}
