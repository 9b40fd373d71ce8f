//! [`Resolver`]: has the kernel resolve the neighbours the dataplane sends to, and keep them resolved.
//!
//! The kernel speaks ARP and NDP for us. Since Linux 5.16 an entry can be marked managed (`NTF_EXT_MANAGED`): the
//! kernel then probes it for ever. Before, the resolver asks for it to be used (`NTF_USE`) whenever it is not
//! reachable. Entries set by the administrator are left alone. What the kernel finds shows in the
//! [`NetView`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::decode::{self, NDA_DST, NDA_FLAGS_EXT, NDA_PROTOCOL, NTF_EXT_MANAGED, NTF_USE};
use super::view::{Neighbor, NeighborKey as Key, NetView, NudState};
use super::wire::{NLM_F_ACK, NLM_F_CREATE, RTM_GETNEIGH, RTM_NEWNEIGH, Request, family, ip_bytes};
use super::{Error, Netlink};

/// Marks our entries (`NDA_PROTOCOL`), to tell those a killed daemon left. Not in `rt_protos` of iproute2.
pub const PROTOCOL: u8 = 0xfa;

/// The same neighbour is asked for again no sooner than this.
const RETRY: Duration = Duration::from_secs(2);
/// The same for one the kernel has no entry of, or has dropped: the view may be a moment behind.
const RETRY_ABSENT: Duration = Duration::from_millis(100);

/// Keeps a set of neighbours resolved.
#[derive(Debug)]
pub struct Resolver {
    netlink: Netlink,
    wanted: BTreeMap<Key, Option<Instant>>,
    /// Wanted no longer, and not yet released for certain.
    unwanted: BTreeSet<Key>,
    managed: bool,
}

impl Resolver {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::route()?,
            wanted: BTreeMap::new(),
            unwanted: BTreeSet::new(),
            managed: true,
        })
    }

    /// As [`Resolver::new`], but without the kernel's own upkeep, as on Linux before 5.16.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn without_managed() -> Result<Self, Error> {
        Ok(Self { managed: false, ..Self::new()? })
    }

    /// Sets which neighbours to keep resolved; the others that were wanted are left to the kernel's ageing.
    ///
    /// Call [`Resolver::maintain`] afterwards: it does the work.
    pub fn want(&mut self, neighbors: impl IntoIterator<Item = Key>) {
        let neighbors: BTreeSet<Key> = neighbors.into_iter().collect();
        self.unwanted.extend(self.wanted.keys().filter(|k| !neighbors.contains(k)));
        self.unwanted.retain(|k| !neighbors.contains(k));
        self.wanted.retain(|k, _| neighbors.contains(k));
        for key in neighbors {
            self.wanted.entry(key).or_insert(None);
        }
    }

    /// The neighbours wanted.
    pub fn wanted(&self) -> impl Iterator<Item = Key> {
        self.wanted.keys().copied()
    }

    /// Asks the kernel for what is wanted and not as it should be in `view`, and releases what is not wanted.
    ///
    /// Call it after [`Resolver::want`], on every new view, and every few seconds. Each error is of one neighbour
    /// and named; it is tried again at the next call.
    pub fn maintain(&mut self, view: &NetView) -> Vec<Error> {
        let mut errors = Vec::new();
        self.adopt(view);
        for key in std::mem::take(&mut self.unwanted) {
            if let Err(e) = self.release(key)
                && !e.is_gone()
            {
                self.unwanted.insert(key);
                errors.push(e);
            }
        }
        let now = Instant::now();
        let managed = self.managed;
        let due: Vec<Key> = self
            .wanted
            .iter()
            .filter(|(key, last)| {
                view.links.get(&key.0).is_some_and(|l| l.up)
                    && view.neighbors.get(key).is_none_or(|n| needs_asking(n, managed))
                    && last.is_none_or(|last| {
                        let rest = if view.neighbors.contains_key(key) { RETRY } else { RETRY_ABSENT };
                        now.duration_since(last) >= rest
                    })
            })
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            match self.ask(key) {
                Ok(()) => {
                    self.wanted.insert(key, Some(now));
                }
                Err(e) if e.is_gone() => {}
                Err(e) => errors.push(e),
            }
        }
        errors
    }

    /// Ends the upkeep of everything, as at a graceful stop.
    pub fn release_all(&mut self) -> Vec<Error> {
        self.want([]);
        let mut errors = Vec::new();
        for key in std::mem::take(&mut self.unwanted) {
            match self.release(key) {
                Err(e) if !e.is_gone() => errors.push(e),
                _ => {}
            }
        }
        errors
    }

    /// Takes over what an earlier daemon marked on the links we use: wanted again, or to be released.
    fn adopt(&mut self, view: &NetView) {
        let links: BTreeSet<u32> = self.wanted.keys().map(|(link, _)| *link).collect();
        for (key, n) in &view.neighbors {
            if n.managed && n.protocol == PROTOCOL && links.contains(&key.0) && !self.wanted.contains_key(key)
            {
                self.unwanted.insert(*key);
            }
        }
    }

    fn ask(&mut self, key: Key) -> Result<(), Error> {
        // To use or manage an administrator's entry would make an ordinary one of it, and to manage what another
        // program manages would make it ours: look first, for the view may be behind.
        if self.read(key)?.is_some_and(|n| is_fixed(&n) || self.managed && n.managed) {
            return Ok(());
        }
        self.write(key, self.managed)?;
        if self.managed && !self.read(key)?.is_some_and(|n| n.managed || is_fixed(&n)) {
            tracing::info!(
                "the kernel does not manage neighbours by itself (Linux 5.16 does): asking again and again"
            );
            self.managed = false;
        }
        Ok(())
    }

    fn release(&mut self, key: Key) -> Result<(), Error> {
        match self.read(key)? {
            // A write without the flag clears it, and the entry ages like any other. Others may manage some too.
            Some(n) if n.managed && n.protocol == PROTOCOL && !is_fixed(&n) => self.write(key, false),
            _ => Ok(()),
        }
    }

    fn write(&mut self, (link, ip): Key, managed: bool) -> Result<(), Error> {
        let mut request = Request::new(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE, &header((link, ip), NTF_USE));
        request.attr(NDA_DST, &ip_bytes(ip)).attr(NDA_PROTOCOL, &[PROTOCOL]);
        if managed {
            request.u32(NDA_FLAGS_EXT, NTF_EXT_MANAGED);
        }
        self.netlink.call(|| format!("resolve the neighbour {ip} on device #{link}"), request, |_| {})
    }

    fn read(&mut self, (link, ip): Key) -> Result<Option<Neighbor>, Error> {
        let mut request = Request::new(RTM_GETNEIGH, NLM_F_ACK, &header((link, ip), 0));
        request.attr(NDA_DST, &ip_bytes(ip));
        let mut found = None;
        let what = || format!("read the neighbour {ip} on device #{link}");
        match self.netlink.call(what, request, |m| found = decode::neighbor(m.payload).map(|(_, n)| n)) {
            Ok(()) => Ok(found),
            Err(e) if e.errno() == Some(nix::libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// `struct ndmsg`.
fn header((link, ip): Key, flags: u8) -> [u8; 12] {
    let [a, b, c, d] = link.to_ne_bytes();
    [family(ip), 0, 0, 0, a, b, c, d, 0, 0, flags, 0]
}

/// Set by the administrator, or by nature without resolution.
fn is_fixed(n: &Neighbor) -> bool {
    matches!(n.state, NudState::Permanent | NudState::NoArp)
}

fn needs_asking(n: &Neighbor, managed: bool) -> bool {
    if is_fixed(n) {
        return false;
    }
    if managed {
        return !n.managed;
    }
    matches!(n.state, NudState::None | NudState::Stale | NudState::Failed)
}
