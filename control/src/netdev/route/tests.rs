//! Lookup against a naive scan; the comparison with the kernel is in `tests/netdev`.

use proptest::prelude::*;

use super::*;

/// Every usable route that covers `ip`, the best of them, by the words of the rule: longest prefix, least metric,
/// highest preference, first listed.
fn naive(routes: &[Route], ip: IpAddr, failed: &dyn Fn(&Hop) -> bool) -> Lookup {
    for table in [TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT] {
        for strict in [true, false] {
            let skip = |h: &Hop| strict && ip.is_ipv6() && failed(h);
            let best = routes
                .iter()
                .enumerate()
                .filter(|(_, r)| r.table == table && r.dst.contains(&ip) && r.selector == Selector::default())
                .filter(|(_, r)| r.kind != RouteKind::Unicast || r.hops.iter().any(|h| !h.dead && !skip(h)))
                .min_by_key(|(i, r)| (u8::MAX - r.dst.prefix_len(), r.metric, -i32::from(r.preference), *i));
            let Some((_, r)) = best else { continue };
            match r.kind {
                RouteKind::Unicast => {
                    let mut usable: Vec<&Hop> = r.hops.iter().filter(|h| !h.dead && !skip(h)).collect();
                    usable.sort_by_key(|h| h.no_carrier);
                    let hop = usable[0];
                    return Lookup::Forward(ResolvedRoute {
                        link: hop.link,
                        gateway: hop.gateway,
                        prefsrc: r.prefsrc,
                    });
                }
                RouteKind::Local | RouteKind::Broadcast | RouteKind::Multicast => return Lookup::Local,
                RouteKind::Throw => break,
                kind => return Lookup::Refused(kind),
            }
        }
    }
    Lookup::Nothing
}

fn an_ip(v6: bool) -> BoxedStrategy<IpAddr> {
    // Few values, so that prefixes nest.
    if v6 {
        (0u128..16, 0u128..4).prop_map(|(hi, lo)| IpAddr::V6((0xfd00 << 112 | hi << 60 | lo).into())).boxed()
    } else {
        (0u32..16, 0u32..4).prop_map(|(hi, lo)| IpAddr::V4((0x0a00_0000 | hi << 12 | lo).into())).boxed()
    }
}

fn a_route() -> impl Strategy<Value = Route> {
    any::<bool>()
        .prop_flat_map(|v6| {
            let longest = if v6 { 128u8 } else { 32 };
            let hop = (1u32..5, any::<bool>(), any::<bool>(), 0u8..4).prop_map(
                move |(link, gateway, dead, flags)| Hop {
                    link,
                    gateway: gateway
                        .then(|| if v6 { "fe80::1".parse().unwrap() } else { "10.9.9.9".parse().unwrap() }),
                    weight: 1,
                    dead: dead && flags == 0,
                    no_carrier: flags == 1,
                },
            );
            let kinds = [
                RouteKind::Unicast,
                RouteKind::Local,
                RouteKind::Blackhole,
                RouteKind::Throw,
                RouteKind::Unicast,
                RouteKind::Unicast,
            ];
            let tables = [TABLE_LOCAL, TABLE_MAIN, TABLE_MAIN, TABLE_MAIN, TABLE_DEFAULT, 100];
            (
                an_ip(v6),
                0..=longest,
                proptest::sample::select(tables.to_vec()),
                0u32..3,
                -1i8..2,
                proptest::sample::select(kinds.to_vec()),
                proptest::collection::vec(hop, 0..3),
                prop_oneof![9 => Just(0u8), 1 => Just(8u8)],
            )
        })
        .prop_map(|(ip, len, table, metric, preference, kind, hops, tos)| Route {
            table,
            dst: IpNet::new(ip, len).unwrap().trunc(),
            selector: Selector { src: None, tos },
            metric,
            preference,
            kind,
            prefsrc: None,
            hops,
            protocol: 4,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn lookup_is_the_naive_scan(
        routes in proptest::collection::vec(a_route(), 0..24),
        ips in proptest::collection::vec(any::<bool>().prop_flat_map(an_ip), 1..12),
        failed_link in 0u32..5,
    ) {
        let failed = |h: &Hop| h.gateway.is_some() && h.link == failed_link;
        let table: Routes = routes.iter().cloned().collect();
        prop_assert_eq!(table.len(), routes.len());
        for ip in ips {
            prop_assert_eq!(table.lookup(ip, failed), naive(&routes, ip, &failed), "{}", ip);
        }
    }

    #[test]
    fn choices_are_the_lookup_longest_prefix_first(
        routes in proptest::collection::vec(a_route(), 0..24),
        ips in proptest::collection::vec(any::<bool>().prop_flat_map(an_ip), 1..12),
        failed_link in 0u32..5,
    ) {
        let failed = |h: &Hop| h.gateway.is_some() && h.link == failed_link;
        let routes: Vec<Route> = routes.into_iter().filter(|r| r.table != TABLE_LOCAL).collect();
        let table: Routes = routes.iter().cloned().collect();
        let choices: Vec<(IpNet, Lookup)> = table.choices(failed).collect();
        for ip in ips {
            let longest = choices.iter().filter(|(net, _)| net.contains(&ip)).max_by_key(|(net, _)| net.prefix_len());
            let choice = longest.map_or(Lookup::Nothing, |(_, choice)| *choice);
            prop_assert_eq!(choice, naive(&routes, ip, &failed), "{}", ip);
        }
    }
}

#[test]
fn the_neighbor_is_the_gateway_or_the_destination() {
    let dst: IpAddr = "10.0.0.9".parse().unwrap();
    let on_link = ResolvedRoute { link: 3, gateway: None, prefsrc: None };
    assert_eq!(on_link.neighbor(dst), (3, dst));
    // An IPv4 destination behind an IPv6 router (RFC 5549).
    let gateway: IpAddr = "fe80::1".parse().unwrap();
    assert_eq!(ResolvedRoute { gateway: Some(gateway), ..on_link }.neighbor(dst), (3, gateway));
}
