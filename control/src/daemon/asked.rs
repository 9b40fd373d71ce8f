//! Neighbours on the uplinks' links that are resolved because a pod sent to them.
//!
//! Pods choose these addresses, so what they can make the kernel keep is bounded: only destinations that are on the
//! link by its routes, [`MAX`] at a time, and those that do not answer only while somebody sends to them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::netdev::{NeighborKey, NetView};

/// Neighbours at a time; of those that do not answer the one not asked for longest gives way, and only without any
/// of these one that answers.
const MAX: usize = 256;
/// How long one that does not answer is remembered after it was last asked for.
const UNANSWERED: Duration = Duration::from_secs(60);

/// What workers asked for, and when last.
#[derive(Debug, Default)]
pub(super) struct Asked(BTreeMap<NeighborKey, Instant>);

impl Asked {
    /// Takes a request; returns whether it is a new one.
    pub(super) fn ask(&mut self, key: NeighborKey, net: &NetView, now: Instant) -> bool {
        if let Some(last) = self.0.get_mut(&key) {
            *last = now;
            return false;
        }
        if !on_link(key, net) {
            return false;
        }
        if self.0.len() >= MAX {
            // Nobody asks again for one that answers: that it was not asked for long does not say that it is idle.
            let rank = |((link, addr), last): &(&NeighborKey, &Instant)| {
                (net.mac_of(*link, *addr).is_some(), **last)
            };
            let oldest = self.0.iter().min_by_key(rank).map(|(key, _)| *key);
            oldest.and_then(|key| self.0.remove(&key));
        }
        self.0.insert(key, now);
        true
    }

    /// Forgets what is no longer on the link, or does not answer and was not asked for lately; returns whether there
    /// was any. One that answers stays: the kernel's upkeep is how a change of its MAC address is noticed.
    pub(super) fn expire(&mut self, net: &NetView, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|key, last| {
            let fresh = now.duration_since(*last) < UNANSWERED;
            (fresh || net.mac_of(key.0, key.1).is_some()) && on_link(*key, net)
        });
        self.0.len() != before
    }

    /// The neighbours.
    pub(super) fn iter(&self) -> impl Iterator<Item = NeighborKey> {
        self.0.keys().copied()
    }
}

fn on_link((link, addr): NeighborKey, net: &NetView) -> bool {
    net.route_to(addr).is_some_and(|r| r.link == link && r.gateway.is_none())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use fastpath::packet::Mac;

    use super::*;
    use crate::netdev::route::{Hop, Route, RouteKind, Selector, TABLE_LOCAL, TABLE_MAIN};
    use crate::netdev::{Neighbor, NudState};

    const UPLINK: u32 = 2;

    fn route(table: u32, dst: &str, kind: RouteKind, link: u32, gateway: Option<&str>) -> Route {
        let gateway = gateway.map(|g| g.parse().unwrap());
        Route {
            table,
            dst: dst.parse().unwrap(),
            selector: Selector::default(),
            metric: 0,
            preference: 0,
            kind,
            prefsrc: None,
            hops: vec![Hop { link, gateway, weight: 1, dead: false, no_carrier: false }],
            protocol: 2,
        }
    }

    /// `10.0.0.0/16` and `fd00::/64` on the uplink, `10.1.0.0/16` on another device, the rest by a gateway.
    fn net() -> NetView {
        NetView {
            routes: [
                route(TABLE_MAIN, "0.0.0.0/0", RouteKind::Unicast, UPLINK, Some("10.0.0.1")),
                route(TABLE_MAIN, "10.0.0.0/16", RouteKind::Unicast, UPLINK, None),
                route(TABLE_MAIN, "10.1.0.0/16", RouteKind::Unicast, 3, None),
                route(TABLE_MAIN, "fd00::/64", RouteKind::Unicast, UPLINK, None),
                route(TABLE_LOCAL, "10.0.255.255/32", RouteKind::Broadcast, UPLINK, None),
            ]
            .into_iter()
            .collect(),
            ..NetView::default()
        }
    }

    fn key(addr: &str) -> NeighborKey {
        (UPLINK, addr.parse().unwrap())
    }

    #[test]
    fn only_what_is_on_the_link() {
        let (net, now) = (net(), Instant::now());
        for (addr, taken) in [
            ("10.0.0.9", true),
            ("fd00::9", true),
            ("10.1.0.9", false),
            ("10.0.255.255", false),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            let mut asked = Asked::default();
            assert_eq!(asked.ask(key(addr), &net, now), taken, "{addr}");
            assert!(!asked.ask(key(addr), &net, now), "{addr} again");
            assert_eq!(asked.iter().count(), usize::from(taken));
        }
    }

    #[test]
    fn the_unanswered_are_forgotten_and_the_others_kept() {
        let (mut net, start) = (net(), Instant::now());
        let mut asked = Asked::default();
        for addr in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            assert!(asked.ask(key(addr), &net, start));
        }
        let neighbor = |mac, state| Neighbor { mac, state, managed: true, protocol: 0 };
        net.neighbors.insert(key("10.0.0.1"), neighbor(Some(Mac([2; 6])), NudState::Reachable));
        net.neighbors.insert(key("10.0.0.2"), neighbor(None, NudState::Failed));
        assert!(!asked.expire(&net, start + UNANSWERED / 2));
        assert!(!asked.ask(key("10.0.0.3"), &net, start + UNANSWERED / 2));
        assert!(asked.expire(&net, start + UNANSWERED));
        assert_eq!(asked.iter().collect::<Vec<_>>(), [key("10.0.0.1"), key("10.0.0.3")]);
        assert!(asked.expire(&NetView::default(), start + UNANSWERED), "no longer on the link");
        assert_eq!(asked.iter().count(), 0);
    }

    #[test]
    fn a_scan_takes_no_place_of_what_answers() {
        let (mut net, start) = (net(), Instant::now());
        let mut asked = Asked::default();
        let addr =
            |n: usize| IpAddr::from([10, 0, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap()]);
        for n in 0..10 {
            assert!(asked.ask((UPLINK, addr(n)), &net, start));
            let neighbor =
                Neighbor { mac: Some(Mac([2; 6])), state: NudState::Reachable, managed: true, protocol: 0 };
            net.neighbors.insert((UPLINK, addr(n)), neighbor);
        }
        for n in 10..3 * MAX {
            let now = start + Duration::from_millis(n as u64);
            assert!(asked.ask((UPLINK, addr(n)), &net, now));
        }
        let kept: Vec<NeighborKey> = asked.iter().collect();
        assert_eq!(kept.len(), MAX);
        for n in (0..10).chain(2 * MAX + 10..3 * MAX) {
            assert!(kept.contains(&(UPLINK, addr(n))), "{n}");
        }
    }

    #[test]
    fn the_oldest_gives_way() {
        let (net, start) = (net(), Instant::now());
        let mut asked = Asked::default();
        let addr =
            |n: usize| IpAddr::from([10, 0, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap()]);
        for n in 0..MAX + 10 {
            let now = start + Duration::from_millis(n as u64);
            assert!(asked.ask((UPLINK, addr(n)), &net, now));
            // The first one is asked for all the time.
            asked.ask((UPLINK, addr(0)), &net, now);
        }
        let kept: Vec<NeighborKey> = asked.iter().collect();
        assert_eq!(kept.len(), MAX);
        assert!(kept.contains(&(UPLINK, addr(0))));
        assert!((1..=10).all(|n| !kept.contains(&(UPLINK, addr(n)))));
    }
}
