//! [`HostPair`]: the veth pair between the host's stack and the dataplane, with the routes and rules that lead there.
//!
//! One end (`fp-host`) is the host's; the other (`fp-host-xdp`) becomes the host port. What the pair is for is decided
//! elsewhere ([`HostPlan`]); here the kernel is brought in line with it:
//!
//! - **Pods and cluster addresses** stand in a routing table of our own, which is asked before the main one and after
//!   that of the node's own addresses. So no route of ours hides or replaces one of anybody else's, and a node's own
//!   address is never taken away.
//! - **Ports of services on addresses that are not only theirs** (node ports, host ports, external addresses) stand in
//!   a second table, which is asked for those destination ports only, and only for what the node itself sends. It must
//!   be asked before the table of the node's own addresses, whose rule has preference 0, the first there is: so that
//!   rule is moved behind ours while there are such ports on the node's own addresses. The new rule is there
//!   before the old one goes, and the other way round at the end: at no moment is the node without it. It is moved no
//!   further than need be, and not at all where somebody else's rule would come before it by that.
//!
//! Others remove rules they do not know (`ip rule flush`, systemd-networkd but for the kernel's own). So the moved rule is
//! marked as the kernel's, the kernel's rules are read at every sync, which a lost rule causes, and a family without
//! any rule for the node's own addresses gets one whatever else is wanted.
//!
//! The other rules, routes and neighbours bear a protocol number of ours. Whatever becomes of this process, what it
//! leaves behind leads pod and service traffic of the node's own processes into a pair whose program drops it; nothing
//! else is touched. The next one adopts or removes it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fastpath::snapshot::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use ipnet::IpNet;

use super::decode::{
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_NUM_RX_QUEUES,
    IFLA_NUM_TX_QUEUES, LINK_HEADER, NDA_DST, NDA_LLADDR, NDA_PROTOCOL, NEIGHBOR_HEADER,
};
use super::ethtool::{Ethtool, Offload};
use super::neighbor::PROTOCOL;
use super::route::TABLE_LOCAL;
use super::view::{Link, LinkKind, NetView, NudState};
use super::wire::{
    AF_INET, AF_INET6, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RTM_DELLINK, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWNEIGH, Request, family, ip_bytes,
};
use super::{Error, Netlink, Rule};

mod routes;
mod rules;

pub use rules::Port;

/// Table of pods and cluster addresses.
pub const TABLE_PODS: u32 = 64_250;
/// Table of addresses that are a service's at some ports only.
pub const TABLE_PORTS: u32 = 64_251;
/// Preference of the rules for [`TABLE_PORTS`]: the first that there is behind the kernel's own.
pub const PREF_PORTS: u32 = 1;
/// Preference the rule for the node's own addresses is moved to: what others have put behind it stays behind it.
pub const PREF_LOCAL: u32 = 2;
/// Preference of the rule for [`TABLE_PODS`].
pub const PREF_PODS: u32 = 2000;

/// Longest name of the host's end, so that ours fits the kernel's 15 bytes.
pub const MAX_NAME: usize = 15 - SUFFIX.len();
const SUFFIX: &str = "-xdp";

/// Name of the dataplane's end of the pair whose end in the host's stack has this name.
#[must_use]
pub fn ours(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// MTU until the uplink's is known.
const FIRST_MTU: u32 = 1500;

// linux/veth.h, linux/if_link.h
const VETH_INFO_PEER: u16 = 1;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const NUD_PERMANENT: u8 = 0x80;
// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const SCOPE_LINK: u8 = 253;
/// An address for the host's end, which nobody speaks to: the kernel refuses packets from the node's own addresses
/// on a device without one, however loose `rp_filter` is.
const OWN: [u8; 4] = [169, 254, 1, 2];

/// What the pair is to lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// MTU of the pair in bytes; `None` leaves it.
    pub mtu: Option<u32>,
    /// Largest packet towards pods and services, in bytes; `None` is the pair's MTU.
    pub path_mtu: Option<u32>,
    /// The node's address that its processes send from, of each family.
    pub sources: Vec<IpAddr>,
    /// Pods and cluster addresses.
    pub nets: BTreeSet<IpNet>,
    /// Addresses of which some ports are a service's, and whether each is the node's own.
    pub shared: BTreeMap<IpAddr, bool>,
    /// Those ports.
    pub ports: BTreeSet<Port>,
    /// Ports that stay the node's, by IP protocol number: no range of ports holds them.
    pub kept: BTreeSet<(u8, u16)>,
}

impl HostPlan {
    fn source(&self, ipv4: bool) -> Option<IpAddr> {
        self.sources.iter().copied().find(|s| s.is_ipv4() == ipv4)
    }
}

/// The pair, and what was put into the kernel for it.
#[derive(Debug)]
pub struct HostPair {
    netlink: Netlink,
    ethtool: Ethtool,
    name: String,
    ours: String,
    queues: u32,
    index: u32,
    /// Routes that the kernel was last asked for.
    routes: BTreeMap<(u32, IpNet), routes::Spec>,
}

impl HostPair {
    /// Makes the pair `name` with so many queues, or takes over the one that a killed daemon left.
    ///
    /// # Errors
    /// [`Error::NotVeth`] when the name is another device's; [`Error::Kernel`], [`Error::Socket`].
    pub fn open(name: &str, queues: u32) -> Result<Self, Error> {
        let (netlink, ethtool) = (Netlink::route()?, Ethtool::open()?);
        let mut pair = Self {
            netlink,
            ethtool,
            name: name.to_owned(),
            ours: ours(name),
            queues,
            index: 0,
            routes: BTreeMap::new(),
        };
        // Whatever comes of the rest, the node is to be reached.
        pair.keep_local().into_iter().next().map_or(Ok(()), Err)?;
        pair.ensure()?;
        Ok(pair)
    }

    /// Removes what a killed daemon left of a pair of this name, with its routes and rules.
    pub fn remove_leftovers(name: &str) -> Vec<Error> {
        let remove = || -> Result<Vec<Error>, Error> {
            let mut netlink = Netlink::route()?;
            let mut errors = rules::remove_all(&mut netlink);
            match netlink.link_named(name) {
                // Another's device of that name stays.
                Ok(link) if is_pair(&mut netlink, &link, &ours(name)) => {
                    errors.extend(delete(&mut netlink, &link).err());
                }
                Ok(_) => {}
                Err(e) if e.is_gone() => {}
                Err(e) => errors.push(e),
            }
            Ok(errors)
        };
        remove().unwrap_or_else(|e| vec![e])
    }

    /// Name of our end.
    #[must_use]
    pub fn ours(&self) -> &str {
        &self.ours
    }

    /// Name of the host's end.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Brings the kernel in line with the plan; `view` tells what of it is there still. What cannot be done is
    /// returned, one error each, and tried again at the next call.
    pub fn sync(&mut self, plan: &HostPlan, view: &NetView) -> Vec<Error> {
        let mut errors = Vec::new();
        // Somebody may have removed it; the view may only be behind.
        let seen = view.links.get(&self.index).is_some_and(|l| l.name == self.name && l.up);
        if !seen && let Err(e) = self.ensure() {
            errors.push(e);
            errors.extend(self.keep_local());
            return errors;
        }
        let link = view.links.get(&self.index);
        if let Some(mtu) = plan.mtu.filter(|mtu| link.is_some_and(|l| l.mtu != *mtu)) {
            errors.extend(self.set_mtu(mtu).err());
        }
        for gateway in [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()] {
            let known = view.neighbors.get(&(self.index, gateway));
            let right = |n: &super::Neighbor| n.state == NudState::Permanent && n.mac == Some(GATEWAY_MAC);
            if !known.is_some_and(right) {
                errors.extend(self.set_gateway(gateway).err());
            }
        }
        // A packet that a rule sends to a table is to find its route there.
        errors.extend(self.sync_routes(plan, view));
        errors.extend(self.sync_rules(plan));
        errors
    }

    /// Gives each family that has lost its rule for the node's own addresses one, and looks at nothing else.
    pub fn keep_local(&mut self) -> Vec<Error> {
        rules::keep_local(&mut self.netlink)
    }

    /// Leaves the kernel as it was found.
    pub fn remove(mut self) -> Vec<Error> {
        let mut errors = rules::remove_all(&mut self.netlink);
        // Its routes and neighbours go with it.
        let deleted = self.netlink.link(self.index).and_then(|link| delete(&mut self.netlink, &link));
        errors.extend(deleted.err().filter(|e| !e.is_gone()));
        errors
    }

    /// Makes the pair if it is not there, and sets what is independent of the plan.
    fn ensure(&mut self) -> Result<(), Error> {
        let found = match self.netlink.link_named(&self.name) {
            Ok(link) if link.kind != LinkKind::Veth => {
                return Err(Error::NotVeth { device: self.name.clone(), kind: link.kind.to_string() });
            }
            Ok(link) => {
                let enough = link.rx_queues >= self.queues && link.tx_queues >= self.queues;
                let usable = enough && is_pair(&mut self.netlink, &link, &self.ours);
                if !usable {
                    delete(&mut self.netlink, &link)?;
                }
                usable.then_some(link)
            }
            Err(e) if e.is_gone() => None,
            Err(e) => return Err(e),
        };
        if found.is_none() {
            self.create()?;
        }
        let host = self.netlink.link_named(&self.name)?;
        let ours = self.netlink.link_named(&self.ours)?;
        if host.index != self.index {
            self.index = host.index;
            self.routes.clear();
        }
        for link in [&host, &ours] {
            self.no_addresses(link);
        }
        // A kernel without one of them has no use for it either.
        for (family, key, value) in [
            // Answers from services come from addresses that the kernel routes elsewhere.
            ("ipv4", "rp_filter", "2"),
            // A node port answers from the node's own address.
            ("ipv4", "accept_local", "1"),
            ("ipv6", "accept_ra", "0"),
        ] {
            sysctl(family, &self.name, key, value)?;
        }
        sysctl("ipv6", &self.ours, "disable_ipv6", "1")?;
        self.finish_here(&host)?;
        for link in [&ours, &host] {
            if !link.up {
                self.netlink.set_up(link, true)?;
            }
        }
        self.set_address()?;
        for gateway in [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()] {
            self.set_gateway(gateway)?;
        }
        Ok(())
    }

    fn create(&mut self) -> Result<(), Error> {
        let queues = self.queues;
        let end = |request: &mut Request, name: &str| {
            request
                .attr(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat())
                .u32(IFLA_MTU, FIRST_MTU)
                .u32(IFLA_NUM_TX_QUEUES, queues)
                .u32(IFLA_NUM_RX_QUEUES, queues);
        };
        let mut request = Request::new(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &[0; LINK_HEADER]);
        end(&mut request, &self.name);
        request.nest(IFLA_LINKINFO, |info| {
            info.attr(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&[0; LINK_HEADER]);
                    end(peer, &self.ours);
                });
            });
        });
        let what = || format!("make the veth pair '{}' and '{}'", self.name, self.ours);
        self.netlink.call(what, request, |_| {})
    }

    fn set_address(&mut self) -> Result<(), Error> {
        let [a, b, c, d] = self.index.to_ne_bytes();
        let body = [AF_INET, 32, 0, SCOPE_LINK, a, b, c, d];
        let mut request = Request::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &body);
        request.attr(IFA_LOCAL, &OWN).attr(IFA_ADDRESS, &OWN);
        self.netlink.call(|| format!("give '{}' an address", self.name), request, |_| {})
    }

    /// No link-local address: nothing speaks on this link by itself.
    fn no_addresses(&mut self, link: &Link) {
        let mut request = Request::new(RTM_NEWLINK, NLM_F_ACK, &header(link.index));
        request.nest(IFLA_AF_SPEC, |spec| {
            spec.nest(u16::from(AF_INET6), |v6| {
                v6.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        });
        let what = || format!("keep '{}' from making addresses", link.name);
        // A kernel without IPv6 refuses, and makes none.
        if let Err(e) = self.netlink.call(what, request, |_| {}) {
            tracing::debug!("{e}");
        }
    }

    /// Has the kernel finish checksums and cut segments before they cross: AF_XDP sees frames only.
    fn finish_here(&mut self, link: &Link) -> Result<(), Error> {
        let features = self.ethtool.features(link.index)?;
        let is_off = |name: &str| Offload::TxChecksum.includes(name) || Offload::Segmentation.includes(name);
        let on = features.wanted.iter().filter(|name| is_off(name) && features.changeable.contains(*name));
        let off: BTreeMap<String, bool> = on.map(|name| (name.clone(), false)).collect();
        if off.is_empty() { Ok(()) } else { self.ethtool.set_features(link.index, &off) }
    }

    fn set_mtu(&mut self, mtu: u32) -> Result<(), Error> {
        for name in [&self.ours, &self.name] {
            let link = self.netlink.link_named(name)?;
            let mut request = Request::new(RTM_NEWLINK, NLM_F_ACK, &header(link.index));
            request.u32(IFLA_MTU, mtu);
            self.netlink.call(|| format!("give '{name}' the MTU {mtu}"), request, |_| {})?;
        }
        Ok(())
    }

    fn set_gateway(&mut self, gateway: IpAddr) -> Result<(), Error> {
        let mut body = [0; NEIGHBOR_HEADER];
        let [a, b, c, d] = self.index.to_ne_bytes();
        body.copy_from_slice(&[family(gateway), 0, 0, 0, a, b, c, d, NUD_PERMANENT, 0, 0, 0]);
        let mut request = Request::new(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &body);
        request
            .attr(NDA_DST, &ip_bytes(gateway))
            .attr(NDA_LLADDR, &GATEWAY_MAC.0)
            .attr(NDA_PROTOCOL, &[PROTOCOL]);
        let what = || format!("set the neighbour {gateway} on '{}'", self.name);
        ignoring_no_v6(gateway.is_ipv4(), self.netlink.call(what, request, |_| {}))
    }
}

/// What a kernel without IPv6 refuses of IPv6 is no error.
fn ignoring_no_v6(ipv4: bool, done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(e) if !ipv4 && matches!(e.errno(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EOPNOTSUPP)) => {
            Ok(())
        }
        done => done,
    }
}

fn header(index: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    if let Some(place) = header.get_mut(4..8) {
        place.copy_from_slice(&index.to_ne_bytes());
    }
    header
}

/// Whether the other end of `link` is the device `ours`, here.
fn is_pair(netlink: &mut Netlink, link: &Link, ours: &str) -> bool {
    let other = link.lower.filter(|l| l.netns.is_none() && link.kind == LinkKind::Veth);
    other.is_some_and(|l| netlink.link(l.index).is_ok_and(|l| l.name == ours))
}

fn delete(netlink: &mut Netlink, link: &Link) -> Result<(), Error> {
    let request = Request::new(RTM_DELLINK, NLM_F_ACK, &header(link.index));
    netlink.call(|| format!("remove the device '{}'", link.name), request, |_| {})
}

/// Writes a setting of one device, unless the kernel has no such setting.
fn sysctl(family: &str, device: &str, key: &str, value: &str) -> Result<(), Error> {
    let path = super::sysctl::path(&format!("{family}/conf/{device}/{key}"));
    match std::fs::read_to_string(&path) {
        Ok(now) if now.trim_end() == value => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    std::fs::write(&path, value).map_err(|source| Error::Record { what: "write", path, source })
}
