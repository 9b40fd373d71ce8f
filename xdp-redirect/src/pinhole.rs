//! Which of the uplink's frames are ours, as desired state, kept in step with the maps.
//!
//! The caller hands over the whole [`Pinhole`]; only what differs from the maps is written. What stays
//! is never touched, so traffic of it sees no gap, and new entries go in before old ones leave (unless
//! the map is too full for both), so that a prefix can be replaced by a wider one under traffic.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;

use crate::abi::{CLASS_FRONTEND, CLASS_NODE, CLASS_NODE_PORT, CLASS_POD, CLASS_VXLAN, ExactKey, SnatRange};
use crate::error::XdpError;
use crate::object::{RedirectObject, Sizes};

/// What of the uplink's traffic goes to the socket. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinhole {
    /// Local pod addresses and CIDRs: whatever is sent there, later fragments included.
    pub local: BTreeSet<Prefix>,
    /// Addresses of the node itself: never a pod's, though `local` may hold them. What is sent there is the
    /// kernel's, but for the ports below.
    pub node: BTreeSet<IpAddr>,
    /// VXLAN endpoints of this node: UDP to that address and port.
    pub tunnels: BTreeSet<Tunnel>,
    /// Service frontends reachable from outside: external and load balancer addresses.
    pub frontends: BTreeSet<Endpoint>,
    /// NodePorts, one for every node address.
    pub node_ports: BTreeSet<Endpoint>,
    /// Ports (ICMP: echo identifiers) that pods' connections are translated to, by node address.
    pub snat: BTreeMap<IpAddr, SnatPorts>,
}

impl Pinhole {
    /// The node addresses that lie in a pod prefix, each with the longest such prefix.
    ///
    /// No pod can have them: something to report.
    #[must_use]
    pub fn node_addresses_of_pods(&self) -> Vec<(IpAddr, Prefix)> {
        let longest = |addr| self.local.iter().filter(|p| p.contains(addr)).max_by_key(|p| p.len);
        self.node.iter().filter_map(|addr| Some((*addr, *longest(*addr)?))).collect()
    }
}

/// An address prefix in canonical form: host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// The first `len` bits of `addr`; the others are cleared.
    ///
    /// # Errors
    /// [`XdpError::Invalid`] when `len` exceeds the address' bits.
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, XdpError> {
        let addr = match addr {
            IpAddr::V4(v4) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return Err(XdpError::Invalid(format!("prefix length {len} is too long for {addr}"))),
        };
        Ok(Self { addr, len })
    }

    /// The prefix that holds one address: `/32` or `/128`.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether the prefix holds `addr`.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4() && Self::new(addr, self.len).is_ok_and(|prefix| prefix == *self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// A VXLAN endpoint of this node (RFC 7348).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tunnel {
    /// The outer destination address.
    pub addr: IpAddr,
    /// The outer UDP destination port.
    pub port: u16,
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// Its IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A transport endpoint: a service frontend or a NodePort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Destination address.
    pub addr: IpAddr,
    /// Protocol.
    pub proto: Protocol,
    /// Destination port.
    pub port: u16,
}

/// A range of ports, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnatPorts {
    /// First port.
    pub lo: u16,
    /// Last port.
    pub hi: u16,
}

/// The pinhole as the maps hold it; also what they hold now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    local4: BTreeMap<(u8, [u8; 4]), u32>,
    local6: BTreeMap<(u8, [u8; 16]), u32>,
    exact: BTreeMap<([u8; 16], u8, u16), u32>,
    snat: BTreeMap<[u8; 16], (u16, u16)>,
}

impl Entries {
    /// Checks `pinhole` and turns it into map entries.
    pub(crate) fn compile(pinhole: &Pinhole, sizes: Sizes) -> Result<Self, XdpError> {
        let mut entries = Self::default();
        let pods = pinhole.local.iter().map(|prefix| (*prefix, CLASS_POD));
        // Last, so that it also replaces a pod's entry for the very address.
        let node = pinhole.node_addresses_of_pods();
        let node = node.into_iter().map(|(addr, _)| (Prefix::host(addr), CLASS_NODE));
        for (Prefix { addr, len }, class) in pods.chain(node) {
            match addr {
                IpAddr::V4(v4) => drop(entries.local4.insert((len, v4.octets()), class)),
                IpAddr::V6(v6) => drop(entries.local6.insert((len, v6.octets()), class)),
            }
        }
        // A later class replaces an earlier one: a tunnel that is also declared a frontend is a tunnel.
        for endpoint in &pinhole.node_ports {
            entries.exact.insert(exact_key(*endpoint)?, CLASS_NODE_PORT);
        }
        for endpoint in &pinhole.frontends {
            entries.exact.insert(exact_key(*endpoint)?, CLASS_FRONTEND);
        }
        for tunnel in &pinhole.tunnels {
            let endpoint = Endpoint { addr: tunnel.addr, proto: Protocol::Udp, port: tunnel.port };
            entries.exact.insert(exact_key(endpoint)?, CLASS_VXLAN);
        }
        for (addr, ports) in &pinhole.snat {
            if ports.lo > ports.hi {
                return Err(XdpError::Invalid(format!(
                    "SNAT ports of {addr}: {} to {} is an empty range",
                    ports.lo, ports.hi
                )));
            }
            entries.snat.insert(address(*addr)?, (ports.lo, ports.hi));
        }
        for (what, wanted, max) in [
            ("local IPv4 prefixes", entries.local4.len(), sizes.local_prefixes),
            ("local IPv6 prefixes", entries.local6.len(), sizes.local_prefixes),
            ("frontends, NodePorts and tunnels", entries.exact.len(), sizes.exact),
            ("SNAT addresses", entries.snat.len(), sizes.snat),
        ] {
            if u32::try_from(wanted).unwrap_or(u32::MAX) > max {
                return Err(XdpError::TooMany { what, wanted, max });
            }
        }
        Ok(entries)
    }

    /// Brings the maps from `self`, what they hold, to `desired`. On an error `self` is still what they
    /// hold, so that another try goes on from there.
    pub(crate) fn apply(
        &mut self,
        desired: &Self,
        object: &mut RedirectObject,
        sizes: Sizes,
    ) -> Result<(), XdpError> {
        let RedirectObject { local4, local6, exact, snat, .. } = object;
        sync(&mut self.local4, &desired.local4, sizes.local_prefixes, |change| match change {
            Change::Put(&(len, addr), class) => local4.insert(&Key::new(u32::from(len), addr), class, 0),
            Change::Remove(&(len, addr)) => local4.remove(&Key::new(u32::from(len), addr)),
        })
        .map_err(XdpError::map("update the local IPv4 prefixes"))?;
        sync(&mut self.local6, &desired.local6, sizes.local_prefixes, |change| match change {
            Change::Put(&(len, addr), class) => local6.insert(&Key::new(u32::from(len), addr), class, 0),
            Change::Remove(&(len, addr)) => local6.remove(&Key::new(u32::from(len), addr)),
        })
        .map_err(XdpError::map("update the local IPv6 prefixes"))?;
        let key = |&(addr, proto, port): &([u8; 16], u8, u16)| ExactKey {
            addr,
            port: port.to_be_bytes(),
            proto,
            zero: 0,
        };
        sync(&mut self.exact, &desired.exact, sizes.exact, |change| match change {
            Change::Put(entry, class) => exact.insert(key(entry), class, 0),
            Change::Remove(entry) => exact.remove(&key(entry)),
        })
        .map_err(XdpError::map("update the frontends, NodePorts and tunnels"))?;
        sync(&mut self.snat, &desired.snat, sizes.snat, |change| match change {
            Change::Put(addr, &(lo, hi)) => snat.insert(addr, SnatRange { lo, hi }, 0),
            Change::Remove(addr) => snat.remove(addr),
        })
        .map_err(XdpError::map("update the SNAT ranges"))
    }
}

fn exact_key(endpoint: Endpoint) -> Result<([u8; 16], u8, u16), XdpError> {
    Ok((address(endpoint.addr)?, endpoint.proto.number(), endpoint.port))
}

/// Sixteen bytes, IPv4 mapped. An IPv6 address that is itself mapped would collide and is refused.
fn address(addr: IpAddr) -> Result<[u8; 16], XdpError> {
    match addr {
        IpAddr::V4(v4) => Ok(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(XdpError::Invalid(format!("{addr} is an IPv4 address in IPv6 form: write it as IPv4")))
        }
        IpAddr::V6(v6) => Ok(v6.octets()),
    }
}

/// One write to a map.
enum Change<'a, K, V> {
    Put(&'a K, &'a V),
    Remove(&'a K),
}

/// Writes the difference between `held` and `desired`, and keeps `held` true on the way.
///
/// The last key is put first and removed last: a node address, which has the longest of prefixes, is excepted
/// before a pod prefix holds it, and as long as one does.
fn sync<K: Ord + Clone, V: Clone + PartialEq>(
    held: &mut BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
    max: u32,
    mut write: impl FnMut(Change<'_, K, V>) -> Result<(), MapError>,
) -> Result<(), MapError> {
    let added = desired.keys().filter(|key| !held.contains_key(key)).count();
    let both_fit = u32::try_from(held.len() + added).unwrap_or(u32::MAX) <= max;
    if !both_fit {
        remove_old(held, desired, &mut write)?;
    }
    for (key, value) in desired.iter().rev() {
        if held.get(key) != Some(value) {
            write(Change::Put(key, value))?;
            held.insert(key.clone(), value.clone());
        }
    }
    remove_old(held, desired, &mut write)
}

fn remove_old<K: Ord + Clone, V>(
    held: &mut BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
    mut write: impl FnMut(Change<'_, K, V>) -> Result<(), MapError>,
) -> Result<(), MapError> {
    let old: Vec<K> = held.keys().filter(|key| !desired.contains_key(key)).cloned().collect();
    for key in old {
        match write(Change::Remove(&key)) {
            Ok(()) | Err(MapError::KeyNotFound) => drop(held.remove(&key)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
