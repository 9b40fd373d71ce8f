//! From rtnetlink messages to the view's types, and the dumps that ask for them.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::libc;

use super::route::{Hop, Lookup, ResolvedRoute, Route, RouteKind, Selector};
use super::view::{Address, AddressState, Link, LinkKind, LinkRef, Neighbor, NeighborKey, NudState, Scope};
use super::wire::{
    AF_INET, AF_INET6, AF_UNSPEC, Attr, Message, NLM_F_ACK, NLM_F_DUMP, RTM_GETADDR, RTM_GETLINK,
    RTM_GETNEIGH, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, Request, attrs,
    attrs_after, i32_at, ip, ip_bytes, u16_at, u32_at,
};
use super::{Error, Netlink};

// linux/if_link.h
pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_NUM_TX_QUEUES: u16 = 31;
pub(super) const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_LINK_NETNSID: u16 = 37;
pub(super) const IFLA_TARGET_NETNSID: u16 = 46;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
/// Length of `struct ifinfomsg`.
pub(super) const LINK_HEADER: usize = 16;

// linux/if.h
pub(super) const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
const IFF_RUNNING: u32 = 0x40;

// linux/if_addr.h
pub(super) const IFA_ADDRESS: u16 = 1;
pub(super) const IFA_LOCAL: u16 = 2;
pub(super) const IFA_FLAGS: u16 = 8;
const IFA_F_OPTIMISTIC: u32 = 0x04;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFA_F_PERMANENT: u32 = 0x80;
const ADDRESS_HEADER: usize = 8;

// linux/rtnetlink.h
pub(super) const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
pub(super) const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
pub(super) const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_LINKDOWN: u32 = 16;
pub(super) const ROUTE_HEADER: usize = 12;
const HOP_HEADER: usize = 8;

// linux/neighbour.h
pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
pub(super) const NDA_PROTOCOL: u16 = 12;
pub(super) const NDA_FLAGS_EXT: u16 = 15;
pub(super) const NTF_USE: u8 = 1;
const NTF_PROXY: u8 = 8;
pub(super) const NTF_EXT_MANAGED: u32 = 1;
/// Length of `struct ndmsg`.
pub(super) const NEIGHBOR_HEADER: usize = 12;

impl Netlink {
    /// All links of the namespace.
    pub(super) fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = || Request::new(RTM_GETLINK, NLM_F_DUMP, &[0; LINK_HEADER]);
        self.dump("list the links", request, |m| (m.kind == RTM_NEWLINK).then(|| link(m.payload)).flatten())
    }

    /// All addresses.
    pub(super) fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = || Request::new(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_HEADER]);
        self.dump("list the addresses", request, |m| {
            (m.kind == RTM_NEWADDR).then(|| address(m.payload)).flatten()
        })
    }

    /// All routes of both families and all tables, each family in the kernel's order.
    pub(super) fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut out = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let request = || {
                let mut header = [0; ROUTE_HEADER];
                if let Some(f) = header.first_mut() {
                    *f = family;
                }
                Request::new(RTM_GETROUTE, NLM_F_DUMP, &header)
            };
            let each = |m: Message<'_>| (m.kind == RTM_NEWROUTE).then(|| route(m.payload)).flatten();
            match self.dump("list the routes", request, each) {
                Ok(routes) => out.extend(routes),
                // A kernel without IPv6.
                Err(Error::Kernel { source, .. })
                    if family == AF_INET6 && source.kind() == std::io::ErrorKind::Unsupported => {}
                Err(e) => return Err(e),
            }
        }
        Ok(out)
    }

    /// Where the kernel itself would send a packet for `ip` now, all rules considered (`ip route get`).
    ///
    /// # Errors
    /// What the kernel says, but for refusals, which are an answer.
    pub fn kernel_route(&mut self, ip: IpAddr) -> Result<Lookup, Error> {
        let (family, len) = if ip.is_ipv4() { (AF_INET, 32) } else { (AF_INET6, 128) };
        let mut request = Request::new(RTM_GETROUTE, NLM_F_ACK, &[family, len, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        request.attr(RTA_DST, &ip_bytes(ip));
        let mut found = None;
        match self.call(|| format!("ask for the route to {ip}"), request, |m| found = any_route(m.payload)) {
            Ok(()) => {}
            // The errors of refusing routes (fib_props of the kernel).
            Err(e) => {
                return match e.errno() {
                    Some(libc::EINVAL) => Ok(Lookup::Refused(RouteKind::Blackhole)),
                    Some(libc::EHOSTUNREACH) => Ok(Lookup::Refused(RouteKind::Unreachable)),
                    Some(libc::EACCES) => Ok(Lookup::Refused(RouteKind::Prohibit)),
                    Some(libc::ENETUNREACH) => Ok(Lookup::Nothing),
                    _ => Err(e),
                };
            }
        }
        Ok(match found {
            Some(Route { kind: RouteKind::Unicast, prefsrc, hops, .. }) => match hops.first() {
                Some(hop) => Lookup::Forward(ResolvedRoute { link: hop.link, gateway: hop.gateway, prefsrc }),
                None => Lookup::Nothing,
            },
            Some(_) => Lookup::Local,
            None => Lookup::Nothing,
        })
    }

    /// All neighbours that [`neighbor`] accepts.
    pub(super) fn neighbors(&mut self) -> Result<Vec<(NeighborKey, Neighbor)>, Error> {
        let request = || Request::new(RTM_GETNEIGH, NLM_F_DUMP, &[0; NEIGHBOR_HEADER]);
        self.dump("list the neighbours", request, |m| {
            (m.kind == RTM_NEWNEIGH).then(|| neighbor(m.payload)).flatten()
        })
    }
}

/// A link from `struct ifinfomsg` and its attributes; `None` for a message of another family (a bridge's port).
pub(super) fn link(payload: &[u8]) -> Option<Link> {
    let index = link_index(payload)?;
    let flags = u32_at(payload, 8)?;
    let mut out = Link {
        index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        kind: if flags & IFF_LOOPBACK != 0 { LinkKind::Loopback } else { LinkKind::Device },
        lower: None,
        master: None,
        rx_queues: 1,
        tx_queues: 1,
    };
    let (mut lower, mut netns) = (None, None);
    for a in attrs_after(payload, LINK_HEADER) {
        match a.kind {
            IFLA_ADDRESS => out.mac = a.mac(),
            IFLA_IFNAME => out.name = a.string(),
            IFLA_MTU => out.mtu = a.u32().unwrap_or(0),
            IFLA_LINK => lower = a.u32().filter(|i| *i != 0),
            IFLA_LINK_NETNSID => netns = a.i32(),
            IFLA_MASTER => out.master = a.u32().filter(|i| *i != 0),
            IFLA_NUM_RX_QUEUES => out.rx_queues = a.u32().unwrap_or(1),
            IFLA_NUM_TX_QUEUES => out.tx_queues = a.u32().unwrap_or(1),
            IFLA_LINKINFO => out.kind = link_kind(a).unwrap_or(out.kind),
            _ => {}
        }
    }
    out.lower = lower.map(|index| LinkRef { index, netns });
    // Wireless events and the like are of this type too, and say nothing of the link.
    (!out.name.is_empty()).then_some(out)
}

/// The index of the link a message is about; `None` for one of another family.
pub(super) fn link_index(payload: &[u8]) -> Option<u32> {
    (*payload.first()? == AF_UNSPEC).then(|| u32_at(payload, 4)).flatten()
}

/// The other end of the link a message is about, by index.
pub(super) fn link_lower(payload: &[u8]) -> Option<u32> {
    attrs_after(payload, LINK_HEADER).find(|a| a.kind == IFLA_LINK)?.u32()
}

fn link_kind(info: Attr<'_>) -> Option<LinkKind> {
    let kind = info.nested().find(|a| a.kind == IFLA_INFO_KIND)?.string();
    Some(match kind.as_str() {
        "veth" => LinkKind::Veth,
        "vlan" => {
            let data = info.nested().find(|a| a.kind == IFLA_INFO_DATA);
            let id = data.and_then(|d| d.nested().find(|a| a.kind == IFLA_VLAN_ID)?.u16());
            LinkKind::Vlan(id.unwrap_or(0))
        }
        "bond" => LinkKind::Bond,
        "team" => LinkKind::Team,
        "bridge" => LinkKind::Bridge,
        "vxlan" => LinkKind::Vxlan,
        _ => LinkKind::Other(kind),
    })
}

/// An address from `struct ifaddrmsg` and its attributes.
pub(super) fn address(payload: &[u8]) -> Option<Address> {
    let [_family, prefix, flags, scope, ..] = *payload else { return None };
    let link = u32_at(payload, 4)?;
    let (mut addr, mut local, mut flags) = (None, None, u32::from(flags));
    for a in attrs_after(payload, ADDRESS_HEADER) {
        match a.kind {
            IFA_ADDRESS => addr = a.ip(),
            IFA_LOCAL => local = a.ip(),
            IFA_FLAGS => flags = a.u32().unwrap_or(flags),
            _ => {}
        }
    }
    // IFA_ADDRESS is the other end's address when IFA_LOCAL differs (linux/if_addr.h).
    let own = local.or(addr)?;
    Some(Address {
        link,
        net: IpNet::new(own, prefix).ok()?,
        peer: addr.filter(|a| *a != own),
        scope: match scope {
            0 => Scope::Global,
            200 => Scope::Site,
            253 => Scope::Link,
            254 => Scope::Host,
            other => Scope::Other(other),
        },
        state: if flags & IFA_F_DADFAILED != 0 {
            AddressState::Duplicate
        } else if flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0 {
            AddressState::Tentative
        } else if flags & IFA_F_DEPRECATED != 0 {
            AddressState::Deprecated
        } else {
            AddressState::Usable
        },
        permanent: flags & IFA_F_PERMANENT != 0,
    })
}

/// A route from `struct rtmsg` and its attributes; `None` for other families and for cached results.
pub(super) fn route(payload: &[u8]) -> Option<Route> {
    if u32_at(payload, 8)? & RTM_F_CLONED != 0 { None } else { any_route(payload) }
}

fn any_route(payload: &[u8]) -> Option<Route> {
    let [family, dst_len, src_len, tos, table, protocol, _scope, kind, ..] = *payload else { return None };
    let flags = u32_at(payload, 8)?;
    let any: IpAddr = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut out = Route {
        table: u32::from(table),
        dst: IpNet::new(any, dst_len).ok()?,
        selector: Selector { src: None, tos },
        metric: 0,
        preference: 0,
        kind: route_kind(kind),
        prefsrc: None,
        hops: Vec::new(),
        protocol,
    };
    if src_len != 0 {
        out.selector.src = IpNet::new(any, src_len).ok();
    }
    let (mut link, mut gateway) = (None, None);
    for a in attrs_after(payload, ROUTE_HEADER) {
        match a.kind {
            RTA_DST => out.dst = IpNet::new(a.ip()?, dst_len).ok()?.trunc(),
            RTA_SRC => out.selector.src = IpNet::new(a.ip()?, src_len).ok(),
            RTA_OIF => link = a.u32(),
            RTA_GATEWAY | RTA_VIA => gateway = hop_gateway(a).or(gateway),
            RTA_PRIORITY => out.metric = a.u32().unwrap_or(0),
            RTA_PREFSRC => out.prefsrc = a.ip(),
            RTA_TABLE => out.table = a.u32().unwrap_or(out.table),
            // ICMPv6 router preference (RFC 4191): 1 high, 0 medium, 3 low.
            RTA_PREF => {
                out.preference = [0, 1, 0, -1].get(usize::from(a.u8().unwrap_or(0) & 3)).copied().unwrap_or(0)
            }
            RTA_MULTIPATH => out.hops = hops(a.value),
            _ => {}
        }
    }
    if let (Some(link), true) = (link, out.hops.is_empty()) {
        let (dead, no_carrier) = (flags & RTNH_F_DEAD != 0, flags & RTNH_F_LINKDOWN != 0);
        out.hops.push(Hop { link, gateway, weight: 1, dead, no_carrier });
    }
    Some(out)
}

fn hop_gateway(a: Attr<'_>) -> Option<IpAddr> {
    match a.kind {
        RTA_GATEWAY => a.ip(),
        // struct rtvia: the family, then the address.
        RTA_VIA => ip(a.value.get(2..)?),
        _ => None,
    }
}

/// The `struct rtnexthop`s of `RTA_MULTIPATH`.
fn hops(mut buf: &[u8]) -> Vec<Hop> {
    let mut out = Vec::new();
    while let (Some(len), Some(&[_, _, flags, weight, ..])) = (u16_at(buf, 0), buf.first_chunk::<8>()) {
        let Some(hop) = buf.get(HOP_HEADER..usize::from(len)) else { break };
        let flags = u32::from(flags);
        out.push(Hop {
            link: u32_at(buf, 4).unwrap_or(0),
            gateway: attrs(hop).find_map(hop_gateway),
            weight: u16::from(weight) + 1,
            dead: flags & RTNH_F_DEAD != 0,
            no_carrier: flags & RTNH_F_LINKDOWN != 0,
        });
        buf = buf.get(usize::from(len).next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

fn route_kind(kind: u8) -> RouteKind {
    match kind {
        1 => RouteKind::Unicast,
        2 | 4 => RouteKind::Local,
        3 => RouteKind::Broadcast,
        5 => RouteKind::Multicast,
        6 => RouteKind::Blackhole,
        7 => RouteKind::Unreachable,
        8 => RouteKind::Prohibit,
        9 => RouteKind::Throw,
        other => RouteKind::Other(other),
    }
}

/// A neighbour from `struct ndmsg` and its attributes; `None` for bridge entries, proxies and multicast.
pub(super) fn neighbor(payload: &[u8]) -> Option<(NeighborKey, Neighbor)> {
    let family = *payload.first()?;
    let link = u32::try_from(i32_at(payload, 4)?).ok()?;
    let state = u16_at(payload, 8)?;
    let flags = *payload.get(10)?;
    if !matches!(family, AF_INET | AF_INET6) || flags & NTF_PROXY != 0 {
        return None;
    }
    let (mut dst, mut mac, mut ext, mut protocol) = (None, None, 0, 0);
    for a in attrs_after(payload, NEIGHBOR_HEADER) {
        match a.kind {
            NDA_DST => dst = a.ip(),
            NDA_LLADDR => mac = a.mac(),
            NDA_FLAGS_EXT => ext = a.u32().unwrap_or(0),
            NDA_PROTOCOL => protocol = a.u8().unwrap_or(0),
            _ => {}
        }
    }
    let dst = dst.filter(|d| !d.is_multicast())?;
    let state = match state {
        0x01 => NudState::Incomplete,
        0x02 => NudState::Reachable,
        0x04 => NudState::Stale,
        0x08 => NudState::Delay,
        0x10 => NudState::Probe,
        0x20 => NudState::Failed,
        0x40 => NudState::NoArp,
        0x80 => NudState::Permanent,
        _ => NudState::None,
    };
    Some(((link, dst), Neighbor { mac, state, managed: ext & NTF_EXT_MANAGED != 0, protocol }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Bytes that are not what they should be are left out, never a panic. The header is often plausible, so that
        /// the attributes are reached.
        #[test]
        fn any_bytes_are_read_without_panic(
            family in proptest::sample::select(vec![0u8, 2, 10, 7]),
            mut bytes in proptest::collection::vec(any::<u8>(), 0..128),
            small in any::<bool>(),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = family;
            }
            if small {
                for b in bytes.iter_mut().skip(1) {
                    *b %= 24;
                }
            }
            let _ = (link(&bytes), link_lower(&bytes), address(&bytes), route(&bytes), neighbor(&bytes), hops(&bytes));
        }
    }

    #[test]
    fn a_bridge_port_is_not_a_link() {
        let mut r = Request::new(RTM_NEWLINK, 0, &[7, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        r.attr(IFLA_IFNAME, b"p0\0");
        let bytes = r.finish(1).to_vec();
        let payload = bytes.get(super::super::wire::HEADER..).unwrap();
        assert_eq!(link(payload), None);
        assert_eq!(link_index(payload), None);
        let mut same = payload.to_vec();
        same[0] = AF_UNSPEC;
        assert_eq!(link(&same).unwrap().name, "p0");
    }
}
