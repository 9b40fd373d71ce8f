//! Our own IPAM: addresses from the node's pod CIDRs, one of each family for an attachment.
//!
//! [`Pools`] decides, [`Ipam`] keeps: one file, read, changed and replaced whole under a lock. A plugin killed at any
//! point has either given out its addresses or not, and a lock of a dead process is nobody's. The disk is not waited
//! for: what a power loss takes from the file are addresses that no pod has after it, because no pod is left.
//!
//! Never-used addresses are given out first, then those freed longest ago: what still talks to an address that was
//! freed lately is not to meet another pod there.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::record::Key;
use super::types::{Code, Error};
use crate::netdev::saved;

/// Version of the file.
const VERSION: u32 = 1;
/// Its name in the data folder.
const FILE: &str = "ipam.json";
/// The lock beside it.
const LOCK: &str = "ipam.lock";
/// So many addresses of a range are used once before any is used again; more only when none is free among them. It
/// bounds the list of freed ones where the range itself does not (an IPv6 /64).
const REUSE_FROM: u64 = 4096;

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// Name of the network.
    pub network: String,
    /// The attachment.
    #[serde(flatten)]
    pub key: Key,
}

/// One range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pool {
    /// Offset of the first address that was never given out.
    next: u64,
    /// Addresses given out.
    taken: BTreeMap<IpAddr, Owner>,
    /// Addresses given back, longest ago first.
    freed: VecDeque<IpAddr>,
}

/// The ranges, and who has what of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pools(BTreeMap<IpNet, Pool>);

impl Pools {
    /// One address of each family that `cidrs` have, never one of `reserved`. An owner that has its addresses already
    /// keeps them.
    ///
    /// # Errors
    /// The family and ranges of which no address is free; nothing is given out then.
    pub fn allocate(
        &mut self,
        owner: &Owner,
        cidrs: &[IpNet],
        reserved: &BTreeSet<IpAddr>,
    ) -> Result<Vec<IpAddr>, Exhausted> {
        let families: Vec<bool> =
            [true, false].into_iter().filter(|v4| cidrs.iter().any(|c| is_v4(c) == *v4)).collect();
        let has = self.of(owner);
        let in_range = |ip: &IpAddr| cidrs.iter().any(|c| c.contains(ip)) && !reserved.contains(ip);
        if has.len() == families.len() && !has.is_empty() && has.iter().all(in_range) {
            return Ok(has);
        }
        self.free(owner);
        // Ranges that the node no longer has, once their last address is free.
        self.0.retain(|cidr, pool| cidrs.contains(cidr) || !pool.taken.is_empty());
        let mut given = Vec::new();
        for v4 in families {
            let ranges: Vec<IpNet> = cidrs.iter().filter(|c| is_v4(c) == v4).map(IpNet::trunc).collect();
            let Some(ip) = ranges.iter().find_map(|range| self.take(*range, owner, reserved)) else {
                self.free(owner);
                return Err(Exhausted { ranges });
            };
            given.push(ip);
        }
        Ok(given)
    }

    fn take(&mut self, range: IpNet, owner: &Owner, reserved: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        // A node's range can be enlarged: an address may be taken in the old one.
        let elsewhere: BTreeSet<IpAddr> =
            self.0.iter().filter(|(r, _)| **r != range).flat_map(|(_, p)| p.taken.keys().copied()).collect();
        let pool = self.0.entry(range).or_default();
        let free = |ip: &IpAddr, taken: &BTreeMap<IpAddr, Owner>| {
            !reserved.contains(ip) && !elsewhere.contains(ip) && !taken.contains_key(ip)
        };
        let mut found = None;
        if pool.next < REUSE_FROM {
            found = pool.never_used(range, REUSE_FROM, |ip, taken| free(ip, taken));
        }
        if found.is_none()
            && let Some(at) = pool.freed.iter().position(|ip| free(ip, &pool.taken))
        {
            found = pool.freed.remove(at);
        }
        let ip = found.or_else(|| pool.never_used(range, u64::MAX, |ip, taken| free(ip, taken)))?;
        pool.taken.insert(ip, owner.clone());
        Some(ip)
    }

    /// Takes back what an owner has; nothing is no error.
    pub fn free(&mut self, owner: &Owner) {
        for pool in self.0.values_mut() {
            let theirs: Vec<IpAddr> =
                pool.taken.iter().filter(|(_, o)| *o == owner).map(|(ip, _)| *ip).collect();
            for ip in theirs {
                pool.taken.remove(&ip);
                pool.freed.push_back(ip);
            }
        }
    }

    /// The addresses of an owner, IPv4 first.
    #[must_use]
    pub fn of(&self, owner: &Owner) -> Vec<IpAddr> {
        let all = self.0.values().flat_map(|p| &p.taken);
        let mut theirs: Vec<IpAddr> = all.filter(|(_, o)| *o == owner).map(|(ip, _)| *ip).collect();
        theirs.sort();
        theirs
    }

    /// Every owner of an address.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<Owner> {
        self.0.values().flat_map(|p| p.taken.values().cloned()).collect()
    }

    /// Every address given out, and to whom.
    pub fn taken(&self) -> impl Iterator<Item = (IpAddr, &Owner)> {
        self.0.values().flat_map(|p| p.taken.iter().map(|(ip, o)| (*ip, o)))
    }
}

impl Pool {
    /// The first address before offset `end` that was never given out; those passed over wait with the freed ones.
    fn never_used(
        &mut self,
        range: IpNet,
        end: u64,
        free: impl Fn(&IpAddr, &BTreeMap<IpAddr, Owner>) -> bool,
    ) -> Option<IpAddr> {
        while self.next < end {
            let offset = self.next;
            let ip = at(range, offset)?;
            self.next += 1;
            if is_special(range, offset) {
                continue;
            }
            if free(&ip, &self.taken) {
                return Some(ip);
            }
            self.freed.push_back(ip);
        }
        None
    }
}

fn is_v4(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}

/// The address at an offset; `None` past the end of the range.
fn at(range: IpNet, offset: u64) -> Option<IpAddr> {
    let ip: IpAddr = match range.network() {
        IpAddr::V4(a) => Ipv4Addr::from(u32::from(a).checked_add(u32::try_from(offset).ok()?)?).into(),
        IpAddr::V6(a) => Ipv6Addr::from(u128::from(a).checked_add(u128::from(offset))?).into(),
    };
    range.contains(&ip).then_some(ip)
}

/// Network, broadcast, and the first address, which is a gateway's by convention (and a bridge's of whichever plugin was
/// here before); in IPv6 the first is the routers' anycast address (RFC 4291 2.6.1). A range of one or two has none.
fn is_special(range: IpNet, offset: u64) -> bool {
    let bits = range.max_prefix_len() - range.prefix_len();
    let last = 1u64.checked_shl(u32::from(bits)).unwrap_or(0).wrapping_sub(1);
    bits > 1 && (offset <= 1 || is_v4(&range) && offset == last)
}

/// No address is free.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address is free in {}", list(ranges))]
pub struct Exhausted {
    /// The ranges of the family that has none.
    pub ranges: Vec<IpNet>,
}

fn list(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    ranges: Pools,
}

/// The pools on disk.
#[derive(Clone, Debug)]
pub struct Ipam {
    folder: PathBuf,
}

impl Ipam {
    /// Of a data folder; it need not exist.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { folder: data_dir.to_owned() }
    }

    /// Gives addresses to an owner: see [`Pools::allocate`].
    ///
    /// # Errors
    /// [`Code::Exhausted`], [`Code::Io`].
    pub fn allocate(
        &self,
        owner: &Owner,
        cidrs: &[IpNet],
        reserved: &BTreeSet<IpAddr>,
    ) -> Result<Vec<IpAddr>, Error> {
        self.change(|pools| {
            pools.allocate(owner, cidrs, reserved).map_err(|e| {
                let held = pools.taken().count();
                Error::new(Code::Exhausted, e.to_string()).with(format!(
                    "{held} are given out: more pods need a larger pod CIDR, or GC of what leaked"
                ))
            })
        })
    }

    /// Takes back what the owners have.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub fn free(&self, owners: &[Owner]) -> Result<(), Error> {
        if owners.is_empty() || !self.folder.join(FILE).exists() {
            return Ok(());
        }
        self.change(|pools| {
            owners.iter().for_each(|o| pools.free(o));
            Ok(())
        })
    }

    /// What is given out now.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub fn read(&self) -> Result<Pools, Error> {
        let path = self.folder.join(FILE);
        let content = saved::load_for_boot::<Content>(&path).map_err(io)?;
        match content {
            Some(c) if c.version != VERSION => Err(io(saved::wrong_version(&path, c.version, VERSION))),
            Some(c) => Ok(c.ranges),
            None => Ok(Pools::default()),
        }
    }

    fn change<T>(&self, work: impl FnOnce(&mut Pools) -> Result<T, Error>) -> Result<T, Error> {
        let _lock = self.lock()?;
        let mut pools = self.read()?;
        let before = pools.clone();
        // What failed half way changes nothing.
        let done = work(&mut pools)?;
        if pools != before {
            let content = Content { version: VERSION, ranges: pools };
            saved::save_for_boot(&self.folder.join(FILE), Some(&content)).map_err(io)?;
        }
        Ok(done)
    }

    fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.folder.join(LOCK);
        let failed = |e: std::io::Error| Error::new(Code::Io, format!("{}: {e}", path.display()));
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = options.open(&path).map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))
    }
}

fn io(e: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, e.to_string())
}

#[cfg(test)]
mod tests;
