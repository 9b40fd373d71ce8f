//! A pod's veth: both ends made at once, the pod's end set up as its processes are to find it, and looked at again.
//!
//! The host's end has no IPv6 of its own: it would only speak to the dataplane. The pod's end stays down until
//! [`set_up_pod`]: nothing leaves the pod before the dataplane has the other end.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use fastpath::packet::Mac;
use fastpath::snapshot::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6};
use ipnet::IpNet;

use super::decode::{
    IFA_ADDRESS, IFA_FLAGS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND,
    IFLA_LINKINFO, IFLA_MTU, IFLA_NUM_RX_QUEUES, IFLA_NUM_TX_QUEUES, LINK_HEADER, NDA_DST, NDA_LLADDR,
    RTA_DST, RTA_GATEWAY, RTA_OIF,
};
use super::prepare::switch_off;
use super::view::{Address, Link, LinkKind};
use super::wire::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH,
    RTM_NEWROUTE, Request, family, ip_bytes,
};
use super::{Error, Netlink, Plan, netns};

// linux/if_link.h, linux/veth.h, linux/if_addr.h, linux/neighbour.h, linux/rtnetlink.h.
const IFLA_NET_NS_FD: u16 = 28;
const VETH_INFO_PEER: u16 = 1;
const IFA_F_NODAD: u32 = 0x02;
const NUD_PERMANENT: u16 = 0x80;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;

/// A veth to be made.
#[derive(Debug)]
pub struct NewVeth<'a> {
    /// Name of the host's end.
    pub host: &'a str,
    /// Its Ethernet address. Named, so that no program of the host's gives it another (udev's `MACAddressPolicy`).
    pub host_mac: Mac,
    /// Name of the pod's end.
    pub pod: &'a str,
    /// Its Ethernet address.
    pub pod_mac: Mac,
    /// The pod's network namespace.
    pub netns: &'a File,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Queues of both ends, each way.
    pub queues: u32,
}

/// A pod's end, as it is to be.
#[derive(Clone, Debug)]
pub struct PodEnd {
    /// Its namespace.
    pub netns: PathBuf,
    /// Its name there.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The gateway that pods see, of the family of `ip`.
#[must_use]
pub fn gateway(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

impl Netlink {
    /// Makes a veth: the host's end in this namespace, up; the pod's end in its own, down.
    ///
    /// # Errors
    /// [`Error::Kernel`], as when one of the names is taken (`EEXIST`); nothing is left then.
    pub fn create_veth(&mut self, veth: &NewVeth<'_>) -> Result<Link, Error> {
        let end = |request: &mut Request, name: &str, mac: Mac| {
            request
                .text(IFLA_IFNAME, name)
                .attr(IFLA_ADDRESS, &mac.0)
                .u32(IFLA_MTU, veth.mtu)
                .u32(IFLA_NUM_TX_QUEUES, veth.queues)
                .u32(IFLA_NUM_RX_QUEUES, veth.queues);
        };
        let fd = u32::try_from(veth.netns.as_raw_fd()).unwrap_or(u32::MAX);
        let mut request = Request::new(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &[0; LINK_HEADER]);
        end(&mut request, veth.host, veth.host_mac);
        request.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&[0; LINK_HEADER]);
                    end(peer, veth.pod, veth.pod_mac);
                    peer.u32(IFLA_NET_NS_FD, fd);
                });
            });
        });
        let what = || format!("make the veth '{}' with '{}' in the pod", veth.host, veth.pod);
        self.call(what, request, |_| {})?;
        self.raise_host(veth.host).inspect_err(|_| drop(self.delete_link(veth.host)))
    }

    fn raise_host(&mut self, name: &str) -> Result<Link, Error> {
        let link = self.link_named(name)?;
        sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        self.set_up(&link, true)?;
        self.link(link.index)
    }

    /// Removes a device, a veth with its other end; says whether there was one.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn delete_link(&mut self, name: &str) -> Result<bool, Error> {
        let mut request = Request::new(RTM_DELLINK, NLM_F_ACK, &[0; LINK_HEADER]);
        request.text(IFLA_IFNAME, name);
        match self.call(|| format!("remove the device '{name}'"), request, |_| {}) {
            Ok(()) => Ok(true),
            Err(e) if e.is_gone() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Names of the veths of this namespace.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn veth_names(&mut self) -> Result<Vec<String>, Error> {
        Ok(self.links()?.into_iter().filter(|l| l.kind == LinkKind::Veth).map(|l| l.name).collect())
    }

    fn add_address(&mut self, link: &Link, ip: IpAddr) -> Result<(), Error> {
        let [a, b, c, d] = link.index.to_ne_bytes();
        let header = [family(ip), host_length(ip), 0, RT_SCOPE_UNIVERSE, a, b, c, d];
        let mut request = Request::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &header);
        request.attr(IFA_LOCAL, &ip_bytes(ip)).attr(IFA_ADDRESS, &ip_bytes(ip)).u32(IFA_FLAGS, IFA_F_NODAD);
        self.call(|| format!("give {ip} to '{}'", link.name), request, |_| {})
    }

    /// A route to `dst` on the link, or, where `dst` is `None`, the default route by the gateway `via`.
    fn add_route(&mut self, link: &Link, dst: Option<IpAddr>, via: IpAddr) -> Result<(), Error> {
        let length = dst.map_or(0, host_length);
        let scope = if dst.is_some() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        let header =
            [family(via), length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
        let mut request = Request::new(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &header);
        match dst {
            Some(dst) => request.attr(RTA_DST, &ip_bytes(dst)),
            None => request.attr(RTA_GATEWAY, &ip_bytes(via)),
        };
        request.u32(RTA_OIF, link.index);
        self.call(|| format!("add the route by {via} on '{}'", link.name), request, |_| {})
    }

    fn add_neighbor(&mut self, link: &Link, ip: IpAddr, mac: Mac) -> Result<(), Error> {
        let ([a, b, c, d], [s, t]) = (link.index.to_ne_bytes(), NUD_PERMANENT.to_ne_bytes());
        let header = [family(ip), 0, 0, 0, a, b, c, d, s, t, 0, 0];
        let mut request = Request::new(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &header);
        request.attr(NDA_DST, &ip_bytes(ip)).attr(NDA_LLADDR, &mac.0);
        self.call(|| format!("name the gateway {ip} to '{}'", link.name), request, |_| {})
    }
}

/// Sets up the pod's end, offloads as `plan` says: addresses, routes by the gateway, no address detection, no router
/// advertisements; and loopback. Only then it is up.
///
/// # Errors
/// [`Error::Netns`], [`Error::NoDevice`], [`Error::Kernel`], [`Error::Record`] where a sysctl is refused.
pub fn set_up_pod(end: &PodEnd, plan: &Plan) -> Result<(), Error> {
    netns::enter(&end.netns, || {
        let mut netlink = Netlink::route()?;
        let lo = netlink.link_named("lo")?;
        netlink.set_up(&lo, true)?;
        let link = netlink.link_named(&end.name)?;
        let name = &end.name;
        let v6 = end.addresses.iter().any(IpAddr::is_ipv6);
        // Where the runtime has switched IPv6 off, only an IPv6 address of ours is a reason to switch it on.
        for (key, value) in
            [("disable_ipv6", if v6 { "0" } else { "1" }), ("accept_dad", "0"), ("accept_ra", "0")]
        {
            sysctl(&format!("ipv6/conf/{name}/{key}"), value)?;
        }
        switch_off(link.index, plan)?;
        for ip in &end.addresses {
            netlink.add_address(&link, *ip)?;
        }
        netlink.set_up(&link, true)?;
        let gateways: BTreeSet<IpAddr> = end.addresses.iter().map(|ip| gateway(*ip)).collect();
        for via in gateways {
            netlink.add_neighbor(&link, via, GATEWAY_MAC)?;
            netlink.add_route(&link, Some(via), via)?;
            netlink.add_route(&link, None, via)?;
        }
        Ok(())
    })
}

/// What is not as [`set_up_pod`] left it, one sentence each. More addresses and routes are no fault: a plugin that came
/// later may have added them.
///
/// # Errors
/// [`Error::Netns`], [`Error::Kernel`].
pub fn check_pod(end: &PodEnd) -> Result<Vec<String>, Error> {
    netns::enter(&end.netns, || {
        let mut netlink = Netlink::route()?;
        let link = match netlink.link_named(&end.name) {
            Err(Error::NoDevice { .. }) => return Ok(vec![format!("the pod has no device '{}'", end.name)]),
            link => link?,
        };
        let mut wrong = Vec::new();
        let name = &end.name;
        if link.kind != LinkKind::Veth {
            wrong.push(format!("'{name}' of the pod is a {}, not a veth", link.kind));
        }
        if link.mac != Some(end.mac) {
            wrong.push(format!("'{name}' of the pod has not the MAC address {}", end.mac));
        }
        if !link.up {
            wrong.push(format!("'{name}' of the pod is down"));
        }
        let (addresses, routes) = (netlink.addresses()?, netlink.routes()?);
        for ip in &end.addresses {
            let is_it = |a: &Address| a.link == link.index && a.net.addr() == *ip;
            if !addresses.iter().any(is_it) {
                wrong.push(format!("'{name}' of the pod has not the address {ip}"));
            }
            let via = gateway(*ip);
            let by_us = |r: &super::Route| {
                r.table == u32::from(RT_TABLE_MAIN)
                    && is_default(r.dst, ip.is_ipv4())
                    && r.hops.iter().any(|h| h.link == link.index && h.gateway == Some(via))
            };
            if !routes.iter().any(by_us) {
                wrong.push(format!("the pod has no default route by {via} on '{name}'"));
            }
        }
        Ok(wrong)
    })
}

fn is_default(net: IpNet, v4: bool) -> bool {
    net.prefix_len() == 0 && net.addr().is_ipv4() == v4
}

/// The prefix length of a single address.
#[must_use]
pub fn host_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// Writes a sysctl of the calling thread's namespace. One of IPv6 on a kernel without it needs no writing.
fn sysctl(key: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net").join(key);
    match fs::write(&path, value) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| Error::Record { what: "write", path, source }),
    }
}
