//! The flow table: what was decided for a flow's first packet, found by one lookup for all that follow.
//!
//! One table for all workers, of fixed size, so that a flow is right also when its two directions arrive on
//! different workers. Each direction has an entry, a compiled [`Transform`]; both live and die together.
//!
//! ```text
//!  hash ─┬─► bucket ─┐ tag word: 7 tags + claim      entries: 64 bytes (IPv4), 128 (IPv6)
//!        └─► bucket ─┴──────── tag matches ────────► [ key, transform, last seen, other direction ]
//!                      mark word: class and age of each entry, for sweep and eviction
//! ```
//!
//! - **Lookup** takes no lock and writes nothing. A batch goes through in stages (tags, entries, compare), each
//!   fetching what the next one needs, a group of keys ahead, so that the cache misses of its packets overlap. So does
//!   what installs a vector of flows ([`FlowTable::plan`]). Sequence numbers make sure that no torn entry is seen.
//! - **Insert and remove** claim the buckets concerned, by one compare-and-swap each, in ascending order and
//!   with a bounded number of attempts: nobody ever waits for a preempted thread. Who installs a key holds both
//!   of its buckets, so that a key is never there twice.
//! - **Expiry** is exact at lookup, by the timestamp in the entry: past its timeout a flow is a miss. The sweep
//!   only frees memory; each worker sweeps its share, and touches entries only when their mark says they may
//!   be due. This takes the place of a timer wheel: there are no nodes that churn could use up, none to move for
//!   each packet, and none to unlink when another worker removes the flow. The price, a pass over the
//!   mark words, is 16 bytes for seven entries, read in order.
//! - **Eviction**, when both buckets of a key are full, by class: closing, half open, idle; within a class the
//!   one longest idle. An established TCP flow that had a packet in the last 31 s, or another established
//!   flow in the last 7 s, is never evicted; a flood of new flows displaces its own kind.
//! - **Marks are hints.** Packets write them by plain stores some packets late, without a claim: of two that are made at once
//!   in one bucket one may be lost or undone, and a late one may fall on the next flow in the slot, or undo what a later
//!   packet of its own vector made. That is harmless:
//!   *(a)* they have a word of their own; tags, claims and heads, which say what is in use and whose it is, are changed under
//!   claims alone, so no mark frees a slot, brings a flow back or lets one be seen whole that is not. *(b)* Nothing is
//!   removed by a mark: sweep and eviction ask the entries for state and time, under the claims of both, and correct
//!   the mark. *(c)* An undone mark is one that was there before: none grows younger but by a packet. Whatever a mark says, it
//!   is "old" within 64 ticks (4.4 minutes), and then the sweep looks at the entry: no slot is lost. What a wrong mark does
//!   change is the order of eviction among flows that may be evicted, and how soon memory is freed.
//! - **The last-seen time** is no hint: it decides whether a flow lives. It is written by compare-and-swap of the word that
//!   has the state and half of the flow's id too, so that a worker that was held up between read and write changes
//!   neither the next flow in the slot nor a newer time; by a plain store only where no other thread writes such
//!   words ([`FlowTable::for_one_worker`]).
//! - **Generations** are stored and handed out; comparing them is the caller's.
#![deny(unsafe_code)]

mod bucket;
mod insert;
mod memory;
mod slot;
mod state;
mod sweep;
mod table;
mod types;

#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicU32, Ordering};

pub use types::{
    Claim, EvictClass, FlowConfig, FlowRef, FlowState, Hit, Inserted, Millis, NewFlow, Pair, Plan, Swept,
    Timeouts, Transform,
};

use crate::packet::FlowKey;
use insert::Time;
pub(super) use memory::prefetch;
use slot::{V4, V6};
use state::Limits;
use table::{Ask, Late, NOWHERE, Place, Table};

/// Last-seen times are written when they are older than this, in milliseconds, so that a busy flow does not
/// dirty its line with every packet: or sooner, at one part in [`LAST_SEEN_PART`] of the flow's timeout. A flow may
/// time out earlier by as much.
pub const LAST_SEEN_GRAIN: u32 = 1000;

/// See [`LAST_SEEN_GRAIN`].
pub const LAST_SEEN_PART: u32 = 32;

/// How long a half-open flow keeps the key of its answers from a new flow that asks for it as a last resort, in
/// milliseconds: longer than answers take, and than TCP waits before it repeats its SYN.
pub const HALF_OPEN_IDLE_MS: u32 = 2000;

/// Keys that go through the stages of a lookup together.
const GROUP: usize = 16;
/// Shares that keep their own place in the sweep; more share places.
const CURSORS: usize = 64;

/// The flow table of a node. See the [module](self).
#[derive(Debug)]
pub struct FlowTable {
    v4: Table<V4>,
    v6: Table<V6>,
    limits: Limits,
    seed: u64,
    cursors: [AtomicU32; CURSORS],
    /// See [`FlowTable::for_one_worker`].
    alone: bool,
}

impl FlowTable {
    /// Allocates all memory the table will ever use: 100 bytes for each IPv4 entry, 196 for IPv6.
    ///
    /// A third of the slots is beyond the entries asked for, so that a key finds one of its two buckets free.
    #[must_use]
    pub fn new(config: &FlowConfig) -> Self {
        Self {
            v4: Table::new(config.entries_v4),
            v6: Table::new(config.entries_v6),
            limits: Limits::new(&config.timeouts),
            seed: config.seed,
            cursors: [const { AtomicU32::new(0) }; CURSORS],
            alone: false,
        }
    }

    /// For a table in which one thread at a time installs and observes, however many others look up, sweep or remove:
    /// a flow that was not seen for a while then costs a plain store and not an atomic exchange.
    #[must_use]
    pub fn for_one_worker(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Seed for [`FlowKey::hash`].
    #[inline]
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Changes the timeouts, of flows that exist too.
    pub fn set_timeouts(&self, timeouts: &Timeouts) {
        self.limits.set(timeouts);
    }

    /// Looks up a batch: `out` gets one entry for each key, whatever it held before.
    ///
    /// `hashes` are the keys' [`FlowKey::hash`] with [`FlowTable::seed`], as many as keys; a key without one is
    /// a miss. Allocates only if `out` has no room for as many entries.
    pub fn lookup_batch(&self, keys: &[FlowKey], hashes: &[u64], now: Millis, out: &mut Vec<Option<Hit>>) {
        debug_assert_eq!(keys.len(), hashes.len());
        out.resize(keys.len(), None);
        if let Some(rest) = out.get_mut(hashes.len()..) {
            rest.fill(None);
        }
        self.lookup_each(keys, hashes, now, |n, hit| {
            if let Some(out) = out.get_mut(n) {
                *out = hit.copied();
            }
        });
    }

    /// Looks up a batch, and calls `each` for every key in turn, with its number and what was found.
    ///
    /// As [`FlowTable::lookup_batch`], without its copies: what `each` does not look at is not read.
    #[inline]
    pub fn lookup_each(
        &self,
        keys: &[FlowKey],
        hashes: &[u64],
        now: Millis,
        mut each: impl FnMut(usize, Option<&Hit>),
    ) {
        let limits = &self.limits;
        match family(keys) {
            Some(true) => self.stages(
                keys,
                hashes,
                |_| true,
                |n, key, hash, at| {
                    each(n, self.v4.finish(limits, key, hash, now, at).as_ref());
                },
            ),
            Some(false) => self.stages(
                keys,
                hashes,
                |_| false,
                |n, key, hash, at| {
                    each(n, self.v6.finish(limits, key, hash, now, at).as_ref());
                },
            ),
            None => self.stages(
                keys,
                hashes,
                |key| key.src.is_v4(),
                |n, key, hash, at| {
                    let hit = if key.src.is_v4() {
                        self.v4.finish(limits, key, hash, now, at)
                    } else {
                        self.v6.finish(limits, key, hash, now, at)
                    };
                    each(n, hit.as_ref());
                },
            ),
        }
    }

    /// Looks up a batch for packets that mostly just follow their flows: [`FlowTable::lookup_each`] and
    /// [`FlowTable::observe`] in one.
    ///
    /// `follow` is called for every key in turn whose entry was found, with its number; if it answers with the TCP flags
    /// byte of the packet (0 for other protocols), that packet is observed, and done with. All other keys go to `other`,
    /// in turn too, with the hit if there is one.
    #[inline]
    pub fn follow_each(
        &self,
        keys: &[FlowKey],
        hashes: &[u64],
        now: Millis,
        mut follow: impl FnMut(usize, &Hit) -> Option<u8>,
        mut other: impl FnMut(usize, Option<Hit>),
    ) {
        let limits = &self.limits;
        match family(keys) {
            Some(true) => {
                let (table, mut late) = (&self.v4, Late::new(self.alone));
                let each = |n, key: &FlowKey, hash, at| {
                    let (follow, other) = (|hit: &Hit| follow(n, hit), |hit| other(n, hit));
                    table.follow(&Ask { key, hash, now, limits }, at, &mut late, follow, other);
                };
                self.stages(keys, hashes, |_| true, each);
                late.finish(&table.buckets);
            }
            Some(false) => {
                let (table, mut late) = (&self.v6, Late::new(self.alone));
                let each = |n, key: &FlowKey, hash, at| {
                    let (follow, other) = (|hit: &Hit| follow(n, hit), |hit| other(n, hit));
                    table.follow(&Ask { key, hash, now, limits }, at, &mut late, follow, other);
                };
                self.stages(keys, hashes, |_| false, each);
                late.finish(&table.buckets);
            }
            None => self.lookup_each(keys, hashes, now, |n, hit| {
                match hit.and_then(|hit| Some((hit, follow(n, hit)?))) {
                    Some((hit, flags)) => {
                        self.observe(hit, flags, now);
                    }
                    None => other(n, hit.copied()),
                }
            }),
        }
    }

    /// The stages of a lookup, for groups of keys: while a group is compared, the next one's entries and the tags of
    /// the one after that are on their way. `compare` is called for each key with its number, its hash and the slot.
    #[inline]
    fn stages(
        &self,
        keys: &[FlowKey],
        hashes: &[u64],
        is_v4: impl Fn(&FlowKey) -> bool,
        mut compare: impl FnMut(usize, &FlowKey, u64, u32),
    ) {
        let groups = || keys.chunks(GROUP).zip(hashes.chunks(GROUP));
        let (mut for_tags, mut for_entries) = (groups(), groups());
        let mut places = [Place::default(); GROUP];
        let mut fetch_tags = |places: &mut [Place; GROUP]| {
            let (keys, hashes) = for_tags.next().unwrap_or_default();
            for ((key, hash), place) in keys.iter().zip(hashes).zip(places) {
                *place = if is_v4(key) { self.v4.fetch_tags(*hash) } else { self.v6.fetch_tags(*hash) };
            }
        };
        let mut fetch_entries = |places: &[Place; GROUP], slots: &mut [u32; GROUP]| {
            let (keys, _) = for_entries.next().unwrap_or_default();
            for ((key, place), at) in keys.iter().zip(places).zip(slots) {
                *at = if is_v4(key) { self.v4.fetch_entry(*place) } else { self.v6.fetch_entry(*place) };
            }
        };
        let mut slots = [NOWHERE; GROUP];
        fetch_tags(&mut places);
        fetch_entries(&places, &mut slots);
        fetch_tags(&mut places);
        let mut number = 0;
        for (keys, hashes) in groups() {
            let mut next = [NOWHERE; GROUP];
            fetch_entries(&places, &mut next);
            fetch_tags(&mut places);
            for ((key, hash), at) in keys.iter().zip(hashes).zip(slots) {
                compare(number, key, *hash, at);
                number += 1;
            }
            slots = next;
        }
    }

    /// Looks up one key; `hash` is its [`FlowKey::hash`] with [`FlowTable::seed`].
    ///
    /// Changes nothing but that a flow past its timeout is removed: also for the packet an ICMP error quotes.
    #[must_use]
    pub fn lookup(&self, key: &FlowKey, hash: u64, now: Millis) -> Option<Hit> {
        if key.src.is_v4() {
            self.v4.finish(&self.limits, key, hash, now, self.v4.fetch_entry(self.v4.place(hash)))
        } else {
            self.v6.finish(&self.limits, key, hash, now, self.v6.fetch_entry(self.v6.place(hash)))
        }
    }

    /// Records a packet of a flow that was hit, with its TCP flags byte (0 for other protocols): last seen, state.
    ///
    /// Returns the state after it. When nothing changes, and for a flow that is gone, nothing is written.
    #[inline]
    pub fn observe(&self, hit: &Hit, tcp_flags: u8, now: Millis) -> FlowState {
        if hit.at.v6 {
            self.v6.observe(hit, tcp_flags, now, &self.limits)
        } else {
            self.v4.observe(hit, tcp_flags, now, &self.limits)
        }
    }

    /// Begins to install a flow with these keys: fetches its buckets. Nothing has to follow, and nothing changes.
    ///
    /// With many flows to install, each of them should go through [`FlowTable::fetch_slots`] and
    /// [`FlowTable::fetch_partners`] some packets later, and through [`FlowTable::insert_planned`] some more packets
    /// later: then their cache misses overlap.
    #[inline]
    #[must_use]
    pub fn plan(&self, original: &FlowKey, reply: &FlowKey) -> Plan {
        let hashes = [original.hash(self.seed), reply.hash(self.seed)];
        let v6 = !original.src.is_v4();
        if v6 {
            self.v6.fetch_buckets(hashes)
        } else {
            self.v4.fetch_buckets(hashes)
        }
        Plan { hashes, victims: [NOWHERE; 2], v6 }
    }

    /// Fetches the entries that a planned flow will be compared with and written to.
    #[inline]
    pub fn fetch_slots(&self, plan: &mut Plan, now: Millis) {
        let time = Time { now, limits: &self.limits };
        let hashes = plan.hashes;
        plan.victims =
            if plan.v6 { self.v6.fetch_slots(hashes, time) } else { self.v4.fetch_slots(hashes, time) };
    }

    /// Fetches the other halves of flows that will have to go, if there are any.
    #[inline]
    pub fn fetch_partners(&self, plan: &Plan) {
        if plan.victims != [NOWHERE; 2] {
            if plan.v6 { self.v6.fetch_partners(plan.victims) } else { self.v4.fetch_partners(plan.victims) }
        }
    }

    /// Installs a flow, both directions, seen `now`.
    #[must_use]
    pub fn insert(&self, new: &NewFlow, now: Millis) -> Inserted {
        self.insert_by(new, Claim::Free, now)
    }

    /// The same; `claim` says what other flow gives way that has the key of its answers.
    #[must_use]
    pub fn insert_by(&self, new: &NewFlow, claim: Claim, now: Millis) -> Inserted {
        self.install(new, claim, [new.original.hash(self.seed), new.reply.hash(self.seed)], now)
    }

    /// The same, after [`FlowTable::plan`] with the keys of this flow.
    #[must_use]
    pub fn insert_planned(&self, new: &NewFlow, claim: Claim, plan: &Plan, now: Millis) -> Inserted {
        debug_assert_eq!(plan.hashes, [new.original.hash(self.seed), new.reply.hash(self.seed)]);
        self.install(new, claim, plan.hashes, now)
    }

    fn install(&self, new: &NewFlow, claim: Claim, hashes: [u64; 2], now: Millis) -> Inserted {
        let v6 = !new.original.src.is_v4();
        let ends = [new.original.src, new.original.dst, new.reply.src, new.reply.dst];
        let transforms = [&new.original_transform, &new.reply_transform];
        if ends.iter().any(|ip| ip.is_v4() == v6) || transforms.iter().any(|t| t.is_v6() != Some(v6)) {
            return Inserted::MixedFamilies;
        }
        if v6 {
            self.v6.insert(new, claim, hashes, now, &self.limits)
        } else {
            self.v4.insert(new, claim, hashes, now, &self.limits)
        }
    }

    /// The whole flow that an entry belongs to, for re-evaluation; `None` once it is gone.
    #[must_use]
    pub fn pair(&self, at: FlowRef) -> Option<Pair> {
        if at.v6 { self.v6.pair(at) } else { self.v4.pair(at) }
    }

    /// Replaces both transforms of a flow after re-evaluation, given either of its entries.
    ///
    /// False if the flow is gone, another worker holds its buckets, or a transform is of the other family.
    #[must_use]
    pub fn refresh(&self, at: FlowRef, original: Transform, reply: Transform, generation: u32) -> bool {
        if original.is_v6() != Some(at.v6) || reply.is_v6() != Some(at.v6) {
            return false;
        }
        if at.v6 {
            self.v6.refresh(at, &original, &reply, generation)
        } else {
            self.v4.refresh(at, &original, &reply, generation)
        }
    }

    /// Removes a flow, given either of its entries. False if it is gone, or another worker holds its buckets:
    /// then [`FlowTable::pair`] still finds it.
    #[must_use]
    pub fn remove(&self, at: FlowRef) -> bool {
        if at.v6 {
            self.v6.remove_if(at, |_| true).is_some()
        } else {
            self.v4.remove_if(at, |_| true).is_some()
        }
    }

    /// Removes flows past their timeout from the next `max_buckets` buckets of a share of the table.
    ///
    /// Worker `share` of `shares` calls this now and then; it goes on where the share's last call ended. A whole
    /// round (see [`FlowTable::buckets`]) should take less than a minute, so that eviction knows old from new.
    pub fn sweep(&self, share: usize, shares: usize, now: Millis, max_buckets: usize) -> Swept {
        let mut swept = Swept::default();
        let Some(cursor) = self.cursors.get(share % CURSORS) else { return swept };
        let shares = shares.max(1);
        let bound = |n: usize| self.buckets() / shares * n + self.buckets() % shares * n / shares;
        let (from, to) = (bound(share % shares), bound(share % shares + 1));
        let length = to - from;
        let due = self.limits.due();
        let mut next = usize::try_from(cursor.load(Ordering::Relaxed)).unwrap_or(0);
        for _ in 0..max_buckets.min(length) {
            next = if next < length { next } else { 0 };
            match self.locate(from + next) {
                (bucket, false) => self.v4.sweep(bucket, now, &self.limits, &due, &mut swept),
                (bucket, true) => self.v6.sweep(bucket, now, &self.limits, &due, &mut swept),
            }
            next += 1;
            swept.buckets += 1;
        }
        cursor.store(u32::try_from(next).unwrap_or(0), Ordering::Relaxed);
        swept
    }

    /// Buckets of both families: what all shares of [`FlowTable::sweep`] together go through.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.v4.buckets.len() + self.v6.buckets.len()
    }

    /// Bucket number within its family, and whether that is IPv6.
    fn locate(&self, bucket: usize) -> (u32, bool) {
        let v4 = self.v4.buckets.len();
        let (n, v6) = if bucket < v4 { (bucket, false) } else { (bucket - v4, true) };
        (u32::try_from(n).unwrap_or(NOWHERE), v6)
    }

    /// Calls `f` once for each flow that has not timed out. Flows that come and go meanwhile may be missed; no
    /// flow is seen torn.
    pub fn for_each(&self, now: Millis, mut f: impl FnMut(&Pair)) {
        for bucket in 0..self.buckets() {
            match self.locate(bucket) {
                (bucket, false) => self.v4.for_each(bucket, now, &self.limits, &mut f),
                (bucket, true) => self.v6.for_each(bucket, now, &self.limits, &mut f),
            }
        }
    }

    /// Entries in use, two for each flow, with those timed out and not yet swept. Reads all tags: not for the
    /// packet path.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.buckets.used() + self.v6.buckets.used()
    }

    /// Whether no entry is in use; costs as much as [`FlowTable::len`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries the table was made for, two for each flow.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.v4.entries() + self.v6.entries()
    }
}

/// Whether all keys are of IPv4, or of IPv6; `None` for both. Nearly always a vector is of one family, and then no
/// stage needs to ask for each key.
#[inline]
fn family(keys: &[FlowKey]) -> Option<bool> {
    let v4 = keys.first()?.src.is_v4();
    keys.iter().all(|k| k.src.is_v4() == v4).then_some(v4)
}
