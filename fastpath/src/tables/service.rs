//! Services: (address, protocol, port) → frontend → backend.
//!
//! A frontend is an exact match, on an address of its own or on every node's address (NodePort); its backends are
//! chosen by [`Maglev`], so that every node, and a node after a restart, makes the same choice. Which backends are
//! usable, and which policy holds, is worked out by control.
#![forbid(unsafe_code)]

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::Lpm;
use super::flow::prefetch;
use super::maglev::Maglev;
use crate::packet::{FlowKey, Ip};

/// Seed of the hash a backend is chosen by: the same on every node and after a restart.
const CHOICE: u64 = 0;

/// Where a connection to a service is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Address, of the frontend's family.
    pub addr: Ip,
    /// Port, host order.
    pub port: u16,
}

/// Usable backends and the choice between them. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    maglev: Maglev,
    backends: Box<[Backend]>,
}

impl Spread {
    /// `None` without backends. `backends` in any order; of the same address and port one counts.
    #[must_use]
    pub fn new(mut backends: Vec<Backend>) -> Option<Self> {
        backends.sort_unstable();
        backends.dedup();
        let keys: Vec<[u8; 18]> = backends.iter().map(identity).collect();
        Some(Self { maglev: Maglev::new(&keys)?, backends: backends.into() })
    }

    /// The backend for a connection.
    #[inline]
    #[must_use]
    pub fn choose(&self, key: &FlowKey) -> Option<Backend> {
        self.backend(key.hash(CHOICE)).copied()
    }

    #[inline]
    fn backend(&self, hash: u64) -> Option<&Backend> {
        self.backends.get(usize::from(self.maglev.lookup(hash)))
    }

    /// The backend for every connection of a client.
    #[inline]
    #[must_use]
    pub fn choose_for_client(&self, client: Ip) -> Option<Backend> {
        self.choose(&FlowKey { src: client, dst: client, ..FlowKey::EMPTY })
    }

    /// Whether it is one of them.
    #[inline]
    #[must_use]
    pub fn contains(&self, backend: Backend) -> bool {
        self.backends.binary_search(&backend).is_ok()
    }

    /// The backends, in order.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }
}

/// What [`Maglev`] knows a backend by, the same on every node.
fn identity(backend: &Backend) -> [u8; 18] {
    let mut key = [0; 18];
    let (addr, port) = key.split_at_mut(16);
    addr.copy_from_slice(&backend.addr.bytes());
    port.copy_from_slice(&backend.port.to_be_bytes());
    key
}

/// A backend that still exists, usable for new connections or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Known {
    /// The backend.
    pub backend: Backend,
    /// Ready or terminating: its flows of every protocol go on. Otherwise only connections do (TCP).
    pub serves: bool,
}

/// One port of one service, as one kind of address shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The same number for every frontend of one service port and family, in every snapshot.
    pub id: u64,
    /// NodePort, external or load balancer address: clients from outside may use it.
    pub external: bool,
    /// Only backends of this node: for all clients of a cluster IP (`internalTrafficPolicy`), for those from
    /// outside of the others (`externalTrafficPolicy`).
    pub local_only: bool,
    /// The clients that may use it; `None` for all.
    pub source_ranges: Option<Arc<Lpm<()>>>,
    /// How long a client stays with its backend after its last new connection, in milliseconds; 0 for not at all.
    pub affinity_ms: u32,
    /// Usable backends of all nodes.
    pub all: Option<Arc<Spread>>,
    /// Usable backends of this node.
    pub local: Option<Arc<Spread>>,
    /// Every backend that exists, sorted.
    pub known: Arc<[Known]>,
}

impl Frontend {
    /// The backend as it exists still; `None` once it is gone.
    #[must_use]
    pub fn known(&self, backend: Backend) -> Option<Known> {
        let at = self.known.binary_search_by_key(&backend, |k| k.backend).ok()?;
        self.known.get(at).copied()
    }

    /// Whether the frontend admits this client.
    #[must_use]
    pub fn admits(&self, client: Ip) -> bool {
        self.source_ranges.as_ref().is_none_or(|ranges| ranges.lookup(client).is_some())
    }

    /// Whether a client is held to the backends of this node.
    #[must_use]
    pub fn is_local_for(&self, from_outside: bool) -> bool {
        self.local_only && (!self.external || from_outside)
    }

    /// The backends for a client; `None` when there are none.
    #[must_use]
    pub fn spread(&self, from_outside: bool) -> Option<&Arc<Spread>> {
        if self.is_local_for(from_outside) { self.local.as_ref() } else { self.all.as_ref() }
    }
}

/// Every frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// Frontends with an address of their own, by (address, protocol number, port).
    pub frontends: HashMap<(Ip, u8, u16), Arc<Frontend>>,
    /// Frontends on every node's address, by (whether IPv4, protocol number, port).
    pub node_ports: HashMap<(bool, u8, u16), Arc<Frontend>>,
    /// Addresses that nobody but services has (`clusterIPs`), whatever the port. External and load balancer addresses
    /// may be those of machines, which serve other ports.
    pub addresses: HashSet<Ip>,
    /// Addresses of all nodes.
    pub nodes: HashSet<Ip>,
}

/// Most connections of one [`ServiceTable::fetch`].
pub const AT_ONCE: usize = 32;
/// With fewer frontends than this nothing is worth fetching: all is in the caches.
const MANY: usize = 2048;

/// What a destination is to the services.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// A frontend.
    Frontend(&'a Arc<Frontend>),
    /// A service's cluster address, but no port of it.
    NoPort,
    /// None of theirs.
    Nothing,
}

impl ServiceTable {
    /// Bytes of memory it holds, shared ones too, each table of backends once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let frontends = || self.frontends.values().chain(self.node_ports.values());
        let mut spreads: Vec<&Arc<Spread>> = frontends().flat_map(|f| [&f.all, &f.local]).flatten().collect();
        spreads.sort_unstable_by_key(|s| Arc::as_ptr(s));
        spreads.dedup_by_key(|s| Arc::as_ptr(s));
        let of_spread =
            |s: &Arc<Spread>| size_of::<Spread>() + size_of_val(s.maglev.slots()) + size_of_val(&*s.backends);
        let of_frontend = |f: &Arc<Frontend>| size_of::<Frontend>() + size_of_val(&*f.known);
        self.frontends.allocation_size()
            + self.node_ports.allocation_size()
            + self.addresses.allocation_size()
            + self.nodes.allocation_size()
            + frontends().map(of_frontend).sum::<usize>()
            + spreads.into_iter().map(of_spread).sum::<usize>()
    }

    /// Starts to bring into the cache what [`ServiceTable::find`] and the choice among all backends will read for these
    /// connections, [`AT_ONCE`] of them at most: what one waits for from memory, all do at once.
    pub fn fetch<'k>(&self, keys: impl Iterator<Item = &'k FlowKey>) {
        if self.frontends.len() < MANY {
            return;
        }
        let mut ahead: [Option<(&Frontend, u64)>; AT_ONCE] = [None; AT_ONCE];
        for (place, key) in ahead.iter_mut().zip(keys) {
            let frontend = self.frontends.get(&(key.dst, key.proto, key.dport));
            *place = frontend.map(|f| (&**f, key.hash(CHOICE)));
            frontend.into_iter().for_each(|f| prefetch(&**f));
        }
        let spreads = || ahead.iter().flatten().filter_map(|(f, hash)| Some((f.all.as_deref()?, *hash)));
        spreads().for_each(|(spread, _)| prefetch(spread));
        spreads().for_each(|(spread, hash)| spread.maglev.slot(hash).into_iter().for_each(prefetch));
        spreads().for_each(|(spread, hash)| spread.backend(hash).into_iter().for_each(prefetch));
    }

    /// Looks a connection's destination up.
    #[inline]
    #[must_use]
    pub fn find(&self, dst: Ip, proto: u8, dport: u16) -> Found<'_> {
        if let Some(frontend) = self.frontends.get(&(dst, proto, dport)) {
            return Found::Frontend(frontend);
        }
        if self.nodes.contains(&dst) {
            // What is no node port on a node's address is the node's own.
            let port = self.node_ports.get(&(dst.is_v4(), proto, dport));
            return port.map_or(Found::Nothing, Found::Frontend);
        }
        if self.addresses.contains(&dst) { Found::NoPort } else { Found::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::proto;

    fn backend(n: u8) -> Backend {
        Backend { addr: Ip::v4([10, 0, 0, n]), port: 8080 }
    }

    fn frontend(external: bool, local_only: bool) -> Frontend {
        Frontend {
            id: 1,
            external,
            local_only,
            source_ranges: None,
            affinity_ms: 0,
            all: Spread::new(vec![backend(1), backend(2)]).map(Arc::new),
            local: None,
            known: [Known { backend: backend(1), serves: true }].into(),
        }
    }

    #[test]
    fn local_policies_hold_their_own_clients() {
        // (external, local_only, from outside) -> held to this node's backends
        let cases = [
            (false, true, false, true),
            (true, true, false, false),
            (true, true, true, true),
            (true, false, true, false),
        ];
        for (external, local, outside, held) in cases {
            let f = frontend(external, local);
            assert_eq!(f.is_local_for(outside), held);
            assert_eq!(f.spread(outside).is_none(), held);
        }
    }

    #[test]
    fn finds_frontends_node_ports_and_unknown_ports() {
        let node = Ip::v4([192, 168, 0, 1]);
        let vip = Ip::v4([10, 96, 0, 1]);
        let mut table = ServiceTable::default();
        table.frontends.insert((vip, proto::TCP, 80), Arc::new(frontend(false, false)));
        table.node_ports.insert((true, proto::UDP, 30_000), Arc::new(frontend(true, false)));
        table.addresses.insert(vip);
        table.nodes.insert(node);
        assert!(matches!(table.find(vip, proto::TCP, 80), Found::Frontend(_)));
        assert!(matches!(table.find(vip, proto::UDP, 80), Found::NoPort));
        assert!(matches!(table.find(node, proto::UDP, 30_000), Found::Frontend(f) if f.external));
        assert!(matches!(table.find(node, proto::TCP, 30_000), Found::Nothing));
        assert!(matches!(table.find(backend(1).addr, proto::TCP, 8080), Found::Nothing));
    }

    #[test]
    fn choice_does_not_depend_on_order() {
        let (a, b) = (vec![backend(1), backend(2), backend(3)], vec![backend(3), backend(1), backend(2)]);
        let (a, b) = (Spread::new(a).unwrap(), Spread::new(b).unwrap());
        for sport in 0..500 {
            let key =
                FlowKey { src: Ip::v4([1, 2, 3, 4]), dst: Ip::v4([5, 6, 7, 8]), sport, dport: 80, proto: 6 };
            assert_eq!(a.choose(&key), b.choose(&key));
        }
        assert!(a.contains(backend(2)) && !a.contains(backend(4)));
        assert_eq!(Spread::new(vec![]), None);
    }
}
