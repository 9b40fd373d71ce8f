//! Routes, and the kernel's choice among them.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// `RT_TABLE_DEFAULT`.
pub const TABLE_DEFAULT: u32 = 253;
/// `RT_TABLE_MAIN`.
pub const TABLE_MAIN: u32 = 254;
/// `RT_TABLE_LOCAL`.
pub const TABLE_LOCAL: u32 = 255;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Table id.
    pub table: u32,
    /// Destination prefix.
    pub dst: IpNet,
    /// Only for packets from here, or of this type of service.
    pub selector: Selector,
    /// Metric: less is better.
    pub metric: u32,
    /// Preference of the router that advertised it (RFC 4191); 0 for other routes.
    pub preference: i8,
    /// What to do.
    pub kind: RouteKind,
    /// Source address to prefer.
    pub prefsrc: Option<IpAddr>,
    /// Next hops; empty for a route that refuses.
    pub hops: Vec<Hop>,
    /// Who installed it (`rtm_protocol`).
    pub protocol: u8,
}

/// What besides the destination a route asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Source prefix.
    pub src: Option<IpNet>,
    /// Type of service; 0 is any.
    pub tos: u8,
}

/// What a route does with a packet (`rtm_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Delivers it here; anycast too.
    Local,
    /// Delivers it here and to all on the link.
    Broadcast,
    /// Multicast.
    Multicast,
    /// Drops it.
    Blackhole,
    /// Answers host unreachable.
    Unreachable,
    /// Answers administratively prohibited.
    Prohibit,
    /// Looks on in the next table.
    Throw,
    /// Another value.
    Other(u8),
}

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Link to send by.
    pub link: u32,
    /// Router; `None` when the destination is on the link. May be of the other family (`RTA_VIA`, RFC 5549).
    pub gateway: Option<IpAddr>,
    /// Weight among the hops, from 1.
    pub weight: u16,
    /// Its link is down (`RTNH_F_DEAD`).
    pub dead: bool,
    /// Its link has no carrier (`RTNH_F_LINKDOWN`).
    pub no_carrier: bool,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedRoute {
    /// Link to send by.
    pub link: u32,
    /// Router; `None` when the destination itself is the neighbour.
    pub gateway: Option<IpAddr>,
    /// Source address the route prefers.
    pub prefsrc: Option<IpAddr>,
}

impl ResolvedRoute {
    /// The address whose MAC is needed: the router, or the destination itself.
    #[must_use]
    pub fn neighbor(&self, dst: IpAddr) -> (u32, IpAddr) {
        (self.link, self.gateway.unwrap_or(dst))
    }
}

/// What the tables say of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Sent on.
    Forward(ResolvedRoute),
    /// This node's own (broadcast and multicast too).
    Local,
    /// A route refuses it.
    Refused(RouteKind),
    /// No route.
    Nothing,
}

/// The routes of all tables, ordered for lookup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Sorted by (table, prefix, metric, preference), otherwise in the kernel's order.
    list: Vec<Route>,
}

fn order(route: &Route) -> (u32, IpNet, u32, std::cmp::Reverse<i8>) {
    (route.table, route.dst, route.metric, std::cmp::Reverse(route.preference))
}

impl FromIterator<Route> for Routes {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        let mut list: Vec<Route> = routes.into_iter().collect();
        // Stable: among equals the kernel takes the one it lists first.
        list.sort_by_key(order);
        Self { list }
    }
}

impl Routes {
    /// All routes, in order of table and prefix.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.list.iter()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The best default route of each family in the main table, IPv4's first.
    pub fn defaults(&self) -> impl Iterator<Item = &Route> {
        [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())].into_iter().filter_map(
            |net| {
                self.at(TABLE_MAIN, net)
                    .iter()
                    .filter(|r| r.selector == Selector::default() && r.kind == RouteKind::Unicast)
                    .find(|r| r.hops.iter().any(|h| !h.dead))
            },
        )
    }

    /// The routes of one table for exactly this prefix, best first.
    fn at(&self, table: u32, net: IpNet) -> &[Route] {
        let start = self.list.partition_point(|r| (r.table, r.dst) < (table, net));
        let rest = self.list.get(start..).unwrap_or_default();
        let len = rest.partition_point(|r| (r.table, r.dst) == (table, net));
        rest.get(..len).unwrap_or_default()
    }

    /// The kernel's choice for `ip`. `failed` says whether a next hop's router is known not to answer.
    #[must_use]
    pub fn lookup(&self, ip: IpAddr, failed: impl Fn(&Hop) -> bool) -> Lookup {
        self.find(&[TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT], ip.into(), failed).1
    }

    /// The kernel's choice for those addresses of `net` that no longer prefix than `net` itself holds, and the length
    /// of the prefix it is by. The table of the node's own addresses is left out.
    #[must_use]
    pub fn lookup_net(&self, net: IpNet, failed: impl Fn(&Hop) -> bool) -> (u8, Lookup) {
        self.find(&[TABLE_MAIN, TABLE_DEFAULT], net, failed)
    }

    /// Every prefix of the main and default tables with its [`Routes::lookup_net`]: taken together, longest
    /// prefix first, they say of an address what [`Routes::lookup`] says, but for the node's own.
    pub fn choices(&self, failed: impl Fn(&Hop) -> bool) -> impl Iterator<Item = (IpNet, Lookup)> {
        let tables = self.list.iter().filter(|r| [TABLE_MAIN, TABLE_DEFAULT].contains(&r.table));
        let prefixes: BTreeSet<IpNet> = tables.map(|r| r.dst).collect();
        prefixes.into_iter().map(move |net| (net, self.lookup_net(net, &failed).1))
    }

    fn find(&self, tables: &[u32], net: IpNet, failed: impl Fn(&Hop) -> bool) -> (u8, Lookup) {
        for table in tables {
            // IPv6 looks first among routers that answer, then among all (RFC 4861 6.3.6, RFC 4191 3.2);
            // the kernel's IPv4 does not care.
            let found = match net {
                IpNet::V4(_) => self.find_in(*table, net, |_| false),
                IpNet::V6(_) => match self.find_in(*table, net, &failed) {
                    (_, Lookup::Nothing) => self.find_in(*table, net, |_| false),
                    found => found,
                },
            };
            match found.1 {
                Lookup::Nothing | Lookup::Refused(RouteKind::Throw) => {}
                _ => return found,
            }
        }
        (0, Lookup::Nothing)
    }

    fn find_in(&self, table: u32, net: IpNet, skip: impl Fn(&Hop) -> bool) -> (u8, Lookup) {
        for len in (0..=net.prefix_len()).rev() {
            let Ok(shorter) = IpNet::new(net.addr(), len) else { continue };
            for route in self.at(table, shorter.trunc()) {
                if route.selector != Selector::default() {
                    continue;
                }
                match route.kind {
                    RouteKind::Unicast => {
                        if let Some(hop) = route.hop(&skip) {
                            let found = ResolvedRoute {
                                link: hop.link,
                                gateway: hop.gateway,
                                prefsrc: route.prefsrc,
                            };
                            return (len, Lookup::Forward(found));
                        }
                    }
                    RouteKind::Local | RouteKind::Broadcast | RouteKind::Multicast => {
                        return (len, Lookup::Local);
                    }
                    kind => return (len, Lookup::Refused(kind)),
                }
            }
        }
        (0, Lookup::Nothing)
    }
}

impl Route {
    /// The first next hop to use: alive and not skipped, with a carrier before without.
    fn hop(&self, skip: impl Fn(&Hop) -> bool) -> Option<&Hop> {
        let usable = || self.hops.iter().filter(|h| !h.dead && !skip(h));
        usable().find(|h| !h.no_carrier).or_else(|| usable().next())
    }
}

#[cfg(test)]
mod tests;
