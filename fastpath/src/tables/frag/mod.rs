//! Which flow the fragments of a datagram follow: that of the first one, which has the ports.
//!
//! ```text
//!  first ──────────────► passes; the datagram is settled ──► later ones pass with its key
//!  later, none settled ► held ──(first comes)──► ready ────► taken out with its key
//!                          └────(time is over)─► expired     overlap: ready, without a key
//! ```
//!
//! - **Identity** is (source, destination, identification), the protocol for IPv4 (RFC 791 3.2; RFC 8200 4.5 leaves
//!   it out), and where it came in, so that no fragment from elsewhere joins a datagram.
//! - **Overlap** ends a datagram: what is held of it and what comes of it later is dropped (RFC 5722, RFC 8200 4.5;
//!   done for IPv4 as well). An exact duplicate is dropped alone.
//! - **Deferral**: a later fragment that comes in the same round as its first one waits for the next round, because
//!   the first one's flow is installed only when the round ends.
//! - **Bounds**: all memory is allocated at the start. A full table forgets the datagram settled longest; when no more
//!   can be held, the fragment gives way that is held longest. A flood of one kind does not touch the other kind.
//!
//! Limit: an IPv4 identification that comes round (RFC 6864, RFC 4963) while a datagram that lost a fragment is
//! remembered counts as a duplicate or an overlap of it.
#![forbid(unsafe_code)]

mod list;
mod pieces;

#[cfg(test)]
mod tests;

use crate::packet::{FlowKey, Ip, PortId};
use crate::tables::flow::Millis;
use list::{Arena, Links, List, NONE};
use pieces::{Pieces, Seen};

/// Bounds of a [`Fragments`]; counts are at most 32,768.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Datagrams remembered.
    pub datagrams: usize,
    /// Fragments held, of all datagrams.
    pub held: usize,
    /// Fragments held of one datagram before its first one is there.
    pub held_per_datagram: usize,
    /// How long a fragment may wait for its first one, in milliseconds.
    pub hold_ms: u32,
    /// How long a datagram is remembered after its first fragment, or its overlap, in milliseconds.
    pub life_ms: u32,
}

/// What fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatagramId {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Identification: 16 bits of IPv4, 32 of IPv6.
    pub ident: u32,
    /// Protocol for IPv4, 0 for IPv6.
    pub proto: u8,
    /// Port it came in by.
    pub ingress: PortId,
    /// Tunnel it came through, `NO_INDEX` if none.
    pub tunnel: u16,
}

impl DatagramId {
    fn hash(&self, seed: u64) -> u64 {
        let [a, b, c, d] = self.ident.to_be_bytes();
        let (sport, dport) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let key = FlowKey { src: self.src, dst: self.dst, sport, dport, proto: self.proto };
        key.hash(seed ^ (u64::from(self.ingress.0) << 16 | u64::from(self.tunnel)))
    }
}

/// One fragment as the table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Its datagram.
    pub id: DatagramId,
    /// Its first byte's place in the datagram.
    pub start: u16,
    /// The place behind its last byte; greater than `start`.
    pub end: u16,
    /// Whether the datagram ends with it.
    pub last: bool,
    /// The flow key, of a fragment that starts at 0: only that one has ports.
    pub key: Option<FlowKey>,
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added<T> {
    /// It goes on with this key.
    Pass(FlowKey),
    /// It was taken and is held; for want of room in the place of another one, which is dropped.
    Held(Option<T>),
    /// It was there already.
    Duplicate,
    /// It overlaps another one, or its datagram had an overlap.
    Overlap,
    /// There is no room for it.
    Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first fragment has not been seen. At least one fragment is held.
    Waiting,
    /// The first fragment was seen, in this round.
    Known { key: FlowKey, round: u32 },
    /// There was an overlap.
    Spoiled,
}

#[derive(Debug)]
struct Datagram {
    id: DatagramId,
    state: State,
    /// When its first piece came; once settled, when that was.
    since: Millis,
    pieces: Pieces,
    held: List,
    bucket: u16,
    /// The next one in its bucket.
    chain: u16,
}

#[derive(Debug)]
struct Slot<T> {
    item: Option<T>,
    /// Of a ready one: the key to follow, none if it is to be dropped.
    key: Option<FlowKey>,
}

/// Datagrams and held fragments of one worker; a held fragment is a `T`.
#[derive(Debug)]
pub struct Fragments<T> {
    limits: Limits,
    seed: u64,
    round: u32,
    /// The first datagram of each hash bucket.
    buckets: Arena<u16>,
    datagrams: Arena<Datagram>,
    /// Every datagram is in one of three lists, each in the order of `since`.
    order: Links,
    unused: List,
    waiting: List,
    settled: List,
    slots: Arena<Slot<T>>,
    /// Every slot is in one of these lists, or in its datagram's.
    queue: Links,
    empty: List,
    ready: List,
}

impl<T> Fragments<T> {
    /// An empty table; `seed` keeps its buckets unpredictable from outside.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        let none = DatagramId {
            src: Ip::from_bits(0),
            dst: Ip::from_bits(0),
            ident: 0,
            proto: 0,
            ingress: PortId::NONE,
            tunnel: 0,
        };
        let datagram = || Datagram {
            id: none,
            state: State::Waiting,
            since: Millis(0),
            pieces: Pieces::NONE,
            held: List::EMPTY,
            bucket: NONE,
            chain: NONE,
        };
        // A datagram of which nothing is known is remembered by what is held of it.
        let limits = Limits { held_per_datagram: limits.held_per_datagram.max(1), ..limits };
        let (order, unused) = Links::new(limits.datagrams);
        let (queue, empty) = Links::new(limits.held);
        Self {
            limits,
            seed,
            round: 0,
            buckets: Arena::new(limits.datagrams, || NONE),
            datagrams: Arena::new(limits.datagrams, datagram),
            order,
            unused,
            waiting: List::EMPTY,
            settled: List::EMPTY,
            slots: Arena::new(limits.held, || Slot { item: None, key: None }),
            queue,
            empty,
            ready: List::EMPTY,
        }
    }

    /// Begins a round: all fragments until the next call are judged together. Forgets datagrams whose time is over.
    pub fn begin(&mut self, now: Millis) {
        self.round = self.round.wrapping_add(1);
        while let Some(at) = self.settled.head()
            && now.since(self.datagrams[at].since) >= self.limits.life_ms
        {
            self.forget(at);
        }
    }

    /// Adds a fragment; `take` is called if it is to be held.
    pub fn add(&mut self, fragment: &Fragment, now: Millis, take: impl FnOnce() -> T) -> Added<T> {
        let Some(at) = self.find(&fragment.id).or_else(|| self.create(fragment.id, now)) else {
            return Added::Limit;
        };
        let datagram = &mut self.datagrams[at];
        let full = datagram.held.len() >= self.limits.held_per_datagram;
        if datagram.state == State::Spoiled {
            return Added::Overlap;
        }
        if datagram.state == State::Waiting && fragment.key.is_none() && full {
            return Added::Limit;
        }
        match datagram.pieces.add(fragment.start, fragment.end, fragment.last) {
            Seen::New => {}
            Seen::Again if fragment.key.is_none() || datagram.is_first(fragment.key) => {
                return Added::Duplicate;
            }
            // With the place of the first one, but other ports.
            Seen::Again | Seen::Overlap => {
                self.settle(at, State::Spoiled, now);
                return Added::Overlap;
            }
            Seen::TooMany => return Added::Limit,
        }
        let added = match (datagram.state, fragment.key) {
            (_, Some(key)) => {
                self.settle(at, State::Known { key, round: self.round }, now);
                Added::Pass(key)
            }
            (State::Known { key, round }, None) if round != self.round => Added::Pass(key),
            (_, None) => self.hold(at, take),
        };
        let datagram = &self.datagrams[at];
        let known = matches!(datagram.state, State::Known { .. });
        if known && datagram.pieces.is_complete() || !known && datagram.held.is_empty() {
            self.forget(at);
        }
        added
    }

    /// A held fragment whose wait is over, with the key to follow; without one its datagram had an overlap.
    pub fn ready(&mut self) -> Option<(T, Option<FlowKey>)> {
        let slot = self.queue.pop(&mut self.ready)?;
        self.queue.push(&mut self.empty, slot);
        let Slot { item, key } = &mut self.slots[slot];
        Some((item.take()?, *key))
    }

    /// A fragment that was held in vain for as long as is allowed.
    pub fn expired(&mut self, now: Millis) -> Option<T> {
        let at = self.overdue(now)?;
        let (slot, item) = self.unhold(at)?;
        self.queue.push(&mut self.empty, slot);
        if self.datagrams[at].held.is_empty() {
            self.forget(at);
        }
        item
    }

    /// Any fragment that is held: for emptying the table.
    pub fn any(&mut self) -> Option<T> {
        if let Some((item, _)) = self.ready() {
            return Some(item);
        }
        let at = self.waiting.head()?;
        let since = self.datagrams[at].since;
        self.expired(since.after(self.limits.hold_ms))
    }

    /// Fragments that wait to be taken out now; of those whose time is over, at least one datagram's.
    #[must_use]
    pub fn backlog(&self, now: Millis) -> usize {
        self.ready.len() + self.overdue(now).map_or(0, |at| self.datagrams[at].held.len())
    }

    /// Milliseconds until something is to be done without a packet that asks for it: 0 is now, `None` never.
    #[must_use]
    pub fn due(&self, now: Millis) -> Option<u32> {
        if !self.ready.is_empty() {
            return Some(0);
        }
        let left = |list: &List, time: u32| {
            let oldest = &self.datagrams[list.head()?];
            Some(time.saturating_sub(now.since(oldest.since)))
        };
        let (held, settled) =
            (left(&self.waiting, self.limits.hold_ms), left(&self.settled, self.limits.life_ms));
        held.into_iter().chain(settled).min()
    }

    /// The datagram that has waited longest, if that is too long.
    fn overdue(&self, now: Millis) -> Option<u16> {
        self.waiting.head().filter(|at| now.since(self.datagrams[*at].since) >= self.limits.hold_ms)
    }

    fn find(&self, id: &DatagramId) -> Option<u16> {
        let mut at = self.buckets[self.bucket(id)];
        while at != NONE {
            let datagram = &self.datagrams[at];
            if datagram.id == *id {
                return Some(at);
            }
            at = datagram.chain;
        }
        None
    }

    fn bucket(&self, id: &DatagramId) -> u16 {
        // The remainder is below 32,768.
        u16::try_from(id.hash(self.seed) % self.buckets.len() as u64).unwrap_or(0)
    }

    /// A datagram of which nothing is known, in the place of the one settled longest if need be.
    fn create(&mut self, id: DatagramId, now: Millis) -> Option<u16> {
        if self.unused.is_empty() {
            self.forget(self.settled.head()?);
        }
        let at = self.order.pop(&mut self.unused)?;
        self.order.push(&mut self.waiting, at);
        let bucket = self.bucket(&id);
        let datagram = &mut self.datagrams[at];
        datagram.pieces.clear();
        (datagram.id, datagram.state, datagram.since) = (id, State::Waiting, now);
        (datagram.bucket, datagram.chain) = (bucket, self.buckets[bucket]);
        self.buckets[bucket] = at;
        Some(at)
    }

    /// Forgets a datagram of which nothing is held.
    fn forget(&mut self, at: u16) {
        let datagram = &self.datagrams[at];
        let (bucket, chain) = (datagram.bucket, datagram.chain);
        let list = if datagram.state == State::Waiting { &mut self.waiting } else { &mut self.settled };
        self.order.remove(list, at);
        self.order.push(&mut self.unused, at);
        let mut before = self.buckets[bucket];
        if before == at {
            self.buckets[bucket] = chain;
            return;
        }
        while before != NONE {
            let datagram = &mut self.datagrams[before];
            if datagram.chain == at {
                datagram.chain = chain;
                return;
            }
            before = datagram.chain;
        }
    }

    /// Decides what becomes of a datagram, and of its fragments that are held.
    fn settle(&mut self, at: u16, state: State, now: Millis) {
        let datagram = &mut self.datagrams[at];
        let list = if datagram.state == State::Waiting { &mut self.waiting } else { &mut self.settled };
        self.order.remove(list, at);
        self.order.push(&mut self.settled, at);
        (datagram.state, datagram.since) = (state, now);
        let held = core::mem::replace(&mut datagram.held, List::EMPTY);
        let mut next = held.head();
        while let Some(slot) = next {
            self.slots[slot].key = datagram.key();
            next = self.queue.next(slot);
        }
        self.queue.append(&mut self.ready, held);
    }

    /// Holds a fragment of `at` until its first one is there; if that is so already, until the next round.
    fn hold(&mut self, at: u16, take: impl FnOnce() -> T) -> Added<T> {
        let (slot, evicted) = match self.queue.pop(&mut self.empty) {
            Some(slot) => (slot, None),
            None => match self.evict(at) {
                Some(evicted) => evicted,
                None => return Added::Limit,
            },
        };
        let datagram = &mut self.datagrams[at];
        self.slots[slot] = Slot { item: Some(take()), key: datagram.key() };
        let list = if datagram.state == State::Waiting { &mut datagram.held } else { &mut self.ready };
        self.queue.push(list, slot);
        Added::Held(evicted)
    }

    /// Makes room for a fragment of `at`: the one held longest of the datagram that has waited longest goes.
    fn evict(&mut self, at: u16) -> Option<(u16, Option<T>)> {
        let oldest = self.waiting.head()?;
        let evicted = self.unhold(oldest)?;
        if oldest != at && self.datagrams[oldest].held.is_empty() {
            self.forget(oldest);
        }
        Some(evicted)
    }

    /// Takes the fragment that is held longest of a datagram, and its slot.
    fn unhold(&mut self, at: u16) -> Option<(u16, Option<T>)> {
        let slot = self.queue.pop(&mut self.datagrams[at].held)?;
        Some((slot, self.slots[slot].item.take()))
    }
}

impl Datagram {
    /// The key to follow, if it is known.
    fn key(&self) -> Option<FlowKey> {
        match self.state {
            State::Known { key, .. } => Some(key),
            State::Waiting | State::Spoiled => None,
        }
    }

    /// Whether its first fragment had this key.
    fn is_first(&self, key: Option<FlowKey>) -> bool {
        self.key() == key
    }
}
