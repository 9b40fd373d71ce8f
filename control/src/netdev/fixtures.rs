//! Parts of a view made by hand, for tests.
#![forbid(unsafe_code)]

use fastpath::packet::Mac;

use super::route::{Hop, Route, RouteKind, Selector, TABLE_MAIN};
use super::{Link, LinkKind};

/// A device that is up.
pub(crate) fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: 1500,
        up: true,
        running: true,
        kind,
        lower: None,
        master: None,
        rx_queues: 1,
        tx_queues: 1,
    }
}

/// A default route by these devices, without gateway.
pub(crate) fn default_route(v6: bool, hops: &[u32], metric: u32) -> Route {
    let hop = |link: &u32| Hop { link: *link, gateway: None, weight: 1, dead: false, no_carrier: false };
    Route {
        table: TABLE_MAIN,
        dst: if v6 { "::/0".parse().unwrap() } else { "0.0.0.0/0".parse().unwrap() },
        selector: Selector::default(),
        metric,
        preference: 0,
        kind: RouteKind::Unicast,
        prefsrc: None,
        hops: hops.iter().map(hop).collect(),
        protocol: 4,
    }
}
