//! [`NetView`]: the kernel's network configuration as plain data, and what can be asked of it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use fastpath::packet::Mac;
use ipnet::IpNet;

use super::peer::Peer;
use super::route::{Hop, Lookup, ResolvedRoute, Routes};
use super::rule::Rule;

/// Links, addresses, routes, rules and neighbours of one network namespace at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetView {
    /// Links by interface index.
    pub links: BTreeMap<u32, Link>,
    /// The other ends of this namespace's veths, by the index of the end that is here.
    pub peers: BTreeMap<u32, Peer>,
    /// Addresses.
    pub addresses: BTreeSet<Address>,
    /// Routes of all tables.
    pub routes: Routes,
    /// Routing rules of both families, in their order.
    pub rules: Vec<Rule>,
    /// Neighbours by interface index and address; no multicast, no proxy entries.
    pub neighbors: BTreeMap<NeighborKey, Neighbor>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Its Ethernet address; `None` for another link layer (a tunnel, PPP).
    pub mac: Option<Mac>,
    /// MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Operational: up, and with a carrier (`IFF_RUNNING`).
    pub running: bool,
    /// What it is.
    pub kind: LinkKind,
    /// The link it belongs to: a veth's other end, a VLAN's or macvlan's parent (`IFLA_LINK`).
    pub lower: Option<LinkRef>,
    /// Bridge or bond it is a port of.
    pub master: Option<u32>,
    /// Receive queues allocated. How many are in use only ethtool tells: [`super::Ethtool::queues`].
    pub rx_queues: u32,
    /// Transmit queues allocated.
    pub tx_queues: u32,
}

/// A link named by index, perhaps in another network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkRef {
    /// Interface index there.
    pub index: u32,
    /// The other namespace, by the id this one knows it by; `None` when it is this one.
    pub netns: Option<i32>,
}

/// What a link is, by `IFLA_INFO_KIND`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A device of a driver: no kind is given.
    Device,
    /// The loopback device.
    Loopback,
    /// One end of a pair.
    Veth,
    /// IEEE 802.1Q or 802.1ad, with its id.
    Vlan(u16),
    /// A bonding master.
    Bond,
    /// A team master.
    Team,
    /// A bridge.
    Bridge,
    /// A VXLAN tunnel of the kernel's.
    Vxlan,
    /// Another, by the kernel's name for it.
    Other(String),
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("device"),
            Self::Loopback => f.write_str("loopback"),
            Self::Veth => f.write_str("veth"),
            Self::Vlan(id) => write!(f, "vlan {id}"),
            Self::Bond => f.write_str("bond"),
            Self::Team => f.write_str("team"),
            Self::Bridge => f.write_str("bridge"),
            Self::Vxlan => f.write_str("vxlan"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// Scope of an address (`rtnetlink(7)`, `ifa_scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Valid everywhere.
    Global,
    /// Valid in this site.
    Site,
    /// Valid on this link.
    Link,
    /// Valid on this host.
    Host,
    /// Another value.
    Other(u8),
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Link it is on.
    pub link: u32,
    /// The address and its prefix length (host bits kept).
    pub net: IpNet,
    /// The other end's address on a point-to-point link.
    pub peer: Option<IpAddr>,
    /// Scope.
    pub scope: Scope,
    /// Usable as a source now, or why not.
    pub state: AddressState,
    /// Set by hand or by a network manager for good, as against by router advertisement or DHCP lease.
    pub permanent: bool,
}

/// Whether an address may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressState {
    /// In use.
    Usable,
    /// Valid for what is open, not for what is new (RFC 4862 5.5.4).
    Deprecated,
    /// Duplicate address detection is under way: not to be used yet (RFC 4862 5.4).
    Tentative,
    /// Somebody else has it.
    Duplicate,
}

/// Names a neighbour: the link it is on, and its address.
pub type NeighborKey = (u32, IpAddr);

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Ethernet address, where one is known.
    pub mac: Option<Mac>,
    /// State of its resolution.
    pub state: NudState,
    /// The kernel keeps it resolved by itself (`NTF_EXT_MANAGED`).
    pub managed: bool,
    /// Who made it (`NDA_PROTOCOL`); 0 is not said.
    pub protocol: u8,
}

impl Neighbor {
    /// The address to send to, if the state allows sending.
    #[must_use]
    pub fn usable_mac(&self) -> Option<Mac> {
        match self.state {
            NudState::Reachable
            | NudState::Stale
            | NudState::Delay
            | NudState::Probe
            | NudState::NoArp
            | NudState::Permanent => self.mac,
            NudState::None | NudState::Incomplete | NudState::Failed => None,
        }
    }
}

/// Neighbour unreachability detection state (RFC 4861 7.3.2; `ndm_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NudState {
    /// Nothing done yet.
    None,
    /// Being resolved for the first time.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Usable, not confirmed lately.
    Stale,
    /// Usable, about to be probed.
    Delay,
    /// Usable, being probed.
    Probe,
    /// Does not answer.
    Failed,
    /// Needs no resolution.
    NoArp,
    /// Set by the administrator.
    Permanent,
}

impl NetView {
    /// The link of that name.
    #[must_use]
    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|l| l.name == name)
    }

    /// Where the kernel would send a packet for `ip`: `None` when it is its own, refused, or has no route.
    ///
    /// Tables local, main and default in this order, longest prefix, then metric. Routes selected by more than the
    /// destination (rules, TOS, source) are outside this view.
    #[must_use]
    pub fn route_to(&self, ip: IpAddr) -> Option<ResolvedRoute> {
        match self.lookup(ip) {
            Lookup::Forward(route) => Some(route),
            Lookup::Local | Lookup::Refused(_) | Lookup::Nothing => None,
        }
    }

    /// As [`NetView::route_to`], and why not.
    #[must_use]
    pub fn lookup(&self, ip: IpAddr) -> Lookup {
        self.routes.lookup(ip, |hop| self.is_failed(hop))
    }

    /// Where the kernel would send packets for those addresses of `net` that no longer prefix holds, and the
    /// length of the prefix it does so by; `None` as in [`NetView::route_to`].
    #[must_use]
    pub fn route_to_net(&self, net: IpNet) -> Option<(u8, ResolvedRoute)> {
        match self.routes.lookup_net(net, |hop| self.is_failed(hop)) {
            (len, Lookup::Forward(route)) => Some((len, route)),
            _ => None,
        }
    }

    /// Every prefix the kernel has a route for, and what it does with packets for those of its addresses that no
    /// longer prefix holds ([`super::route::Routes::choices`]).
    pub fn choices(&self) -> impl Iterator<Item = (IpNet, Lookup)> {
        self.routes.choices(|hop| self.is_failed(hop))
    }

    /// Whether the next hop's neighbour is known not to answer.
    fn is_failed(&self, hop: &Hop) -> bool {
        hop.gateway
            .and_then(|gateway| self.neighbors.get(&(hop.link, gateway)))
            .is_some_and(|n| n.state == NudState::Failed)
    }

    /// The devices of the best default routes: IPv4's first, then IPv6's where it is another; more for multipath.
    #[must_use]
    pub fn default_route_devices(&self) -> Vec<u32> {
        let mut out = Vec::new();
        for route in self.routes.defaults() {
            for hop in route.hops.iter().filter(|h| !h.dead) {
                if !out.contains(&hop.link) {
                    out.push(hop.link);
                }
            }
        }
        out
    }

    /// The device of the best default route, IPv4's before IPv6's.
    #[must_use]
    pub fn default_route_device(&self) -> Option<u32> {
        self.default_route_devices().first().copied()
    }

    /// The node's own addresses: global or site scope on any link, not tentative, not duplicate; sorted.
    #[must_use]
    pub fn node_addresses(&self) -> Vec<IpAddr> {
        let set: BTreeSet<IpAddr> = self
            .addresses
            .iter()
            .filter(|a| matches!(a.scope, Scope::Global | Scope::Site))
            .filter(|a| matches!(a.state, AddressState::Usable | AddressState::Deprecated))
            .map(|a| a.net.addr())
            .collect();
        set.into_iter().collect()
    }

    /// Addresses of one link, in order.
    pub fn addresses_of(&self, link: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.link == link)
    }

    /// The Ethernet address to send to for a neighbour, if it is resolved.
    #[must_use]
    pub fn mac_of(&self, link: u32, ip: IpAddr) -> Option<Mac> {
        self.neighbors.get(&(link, ip))?.usable_mac()
    }

    /// Whether both views forward alike: as `==`, but of a neighbour only its address and whether it failed count.
    ///
    /// A neighbour goes from reachable to stale and back all day; nobody needs new tables for that.
    #[must_use]
    pub fn forwarding_eq(&self, other: &Self) -> bool {
        fn essence(view: &NetView) -> impl Iterator<Item = (&NeighborKey, Option<Mac>, bool)> {
            view.neighbors
                .iter()
                .map(|(key, n)| (key, n.usable_mac(), n.state == NudState::Failed))
                .filter(|(_, mac, failed)| mac.is_some() || *failed)
        }
        self.links == other.links
            && self.peers == other.peers
            && self.addresses == other.addresses
            && self.routes == other.routes
            && self.rules == other.rules
            && essence(self).eq(essence(other))
    }
}
