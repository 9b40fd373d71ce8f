//! The table of one address family: where a key's entries are, and what is done to a flow found there.
#![forbid(unsafe_code)]

use super::bucket::{Both, Buckets, Claims, LANES, index};
use super::memory::Array;
use super::slot::{Entry, Family, Packed, Slot};
use super::state::{Limits, Mark, State, Tick, grain};
use super::types::{FlowRef, FlowState, Hit, Millis, Pair, Transform};
use crate::packet::FlowKey;

/// No slot has this index.
pub(super) const NOWHERE: u32 = u32::MAX;
/// Attempts at a compare-and-swap or a consistent read of two entries while other workers change them.
const TRIES: usize = 64;

/// Packets between one that makes a mark and when it is made, among those that make one.
const LATE: usize = 16;

/// Buckets and entries of one family.
#[derive(Debug)]
pub(super) struct Table<F: Family> {
    pub(super) buckets: Buckets,
    slots: Array<Slot<F>>,
    entries: usize,
}

/// Where entries of a key may be: its two buckets and its tag.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) first: u32,
    pub(super) second: u32,
    pub(super) tag: u8,
}

/// Marks that packets of a vector make, each some packets later, when its word has come into the cache. None is kept longer
/// than the vector.
#[derive(Debug)]
pub(super) struct Late {
    marks: [(u32, Mark); LATE],
    added: usize,
    /// See [`Slot::see`].
    alone: bool,
}

impl Late {
    pub(super) fn new(alone: bool) -> Self {
        Self { marks: [(NOWHERE, Mark::NONE); LATE], added: 0, alone }
    }

    #[inline]
    fn add(&mut self, buckets: &Buckets, at: u32, mark: Mark) {
        buckets.prefetch_mark(lane_of(at).0);
        if let Some(place) = self.marks.get_mut(self.added % LATE) {
            let (before, mark) = core::mem::replace(place, (at, mark));
            let (bucket, lane) = lane_of(before);
            buckets.hint_mark(bucket, lane, mark);
        }
        self.added += 1;
    }

    /// Makes those that are left.
    #[inline]
    pub(super) fn finish(self, buckets: &Buckets) {
        for (at, mark) in self.marks.into_iter().take(self.added) {
            let (bucket, lane) = lane_of(at);
            buckets.hint_mark(bucket, lane, mark);
        }
    }
}

/// What is looked for, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) key: &'a FlowKey,
    pub(super) hash: u64,
    pub(super) now: Millis,
    pub(super) limits: &'a Limits,
}

/// A flow as both of its entries tell it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) state: State,
    pub(super) last_seen: Millis,
    pub(super) partner: u32,
}

impl Life {
    pub(super) fn is_over(&self, now: Millis, limits: &Limits) -> bool {
        now.since(self.last_seen) >= limits.of(self.state)
    }
}

/// The slot of a lane.
#[inline]
pub(super) fn slot_of(bucket: u32, lane: u32) -> u32 {
    bucket * LANES + lane
}

/// Bucket and lane of a slot.
#[inline]
pub(super) fn lane_of(slot: u32) -> (u32, u32) {
    (slot / LANES, slot % LANES)
}

impl<F: Family> Table<F> {
    /// Room for `entries`: one slot in three stays free, so that a key hardly ever finds both buckets full.
    pub(super) fn new(entries: usize) -> Self {
        // Slots are numbered in 32 bits; `NOWHERE` is not one of them.
        let entries = entries.min(1 << 31);
        let slots = entries.saturating_add(entries / 2);
        let count = u32::try_from(slots.div_ceil(index(LANES))).unwrap_or(u32::MAX).max(2);
        Self { buckets: Buckets::new(count), slots: Array::new(index(count * LANES)), entries }
    }

    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    #[inline]
    pub(super) fn place(&self, hash: u64) -> Place {
        let [a, b, c, d, e, f, g, tag] = hash.to_be_bytes();
        let count = self.buckets.len() as u64;
        // Lemire, "Fast random integer generation in an interval" (2019): a range without division.
        let reduce = |bytes, n| (u64::from(u32::from_be_bytes(bytes)) * n) >> 32;
        let first = reduce([a, b, c, d], count);
        let beyond = first + 1 + reduce([e, f, g, tag], count - 1);
        let second = if beyond >= count { beyond - count } else { beyond };
        Place { first: low32(first), second: low32(second), tag: tag.max(1) }
    }

    #[inline]
    pub(super) fn slot(&self, at: u32) -> Option<&Slot<F>> {
        self.slots.get(index(at))
    }

    #[inline]
    pub(super) fn prefetch(&self, at: u32) {
        self.slots.prefetch(index(at));
    }

    /// First stage of a lookup: fetches the tags of both buckets.
    #[inline]
    pub(super) fn fetch_tags(&self, hash: u64) -> Place {
        let place = self.place(hash);
        self.buckets.prefetch(place.first);
        self.buckets.prefetch(place.second);
        place
    }

    /// Second stage: a slot whose tag is that of the key, [`NOWHERE`] if none is. Fetches its entry, and the last one
    /// of that tag: in one lookup of forty a tag is another entry's too, and to compare with that one first is not to
    /// cost a cache miss. Mostly it is the same line again, which costs less than to ask.
    #[inline]
    pub(super) fn fetch_entry(&self, place: Place) -> u32 {
        let both = Both::with(self.buckets.tags(place.first), self.buckets.tags(place.second), place.tag);
        let slot = |(second, lane): (bool, u32)| {
            let bucket = if second { place.second } else { place.first };
            if both.is_empty() { NOWHERE } else { slot_of(bucket, lane) }
        };
        let at = slot(both.first());
        self.prefetch(at);
        self.prefetch(slot(both.last()));
        at
    }

    /// Third stage: compares the entry.
    #[inline]
    pub(super) fn finish(
        &self,
        limits: &Limits,
        key: &FlowKey,
        hash: u64,
        now: Millis,
        at: u32,
    ) -> Option<Hit> {
        let slot = self.slot(at)?;
        match slot.read_hit(slot.head(), &Packed::new(key), at) {
            Some((hit, hot)) if now.since(hot.last_seen()) < limits.of(hot.state()) => Some(hit),
            _ => self.find_live(&Ask { key, hash, now, limits }),
        }
    }

    /// The same for a packet that mostly just follows its flow; see [`super::FlowTable::follow_each`].
    #[inline(always)]
    pub(super) fn follow(
        &self,
        ask: &Ask<'_>,
        at: u32,
        late: &mut Late,
        follow: impl FnOnce(&Hit) -> Option<u8>,
        other: impl FnOnce(Option<Hit>),
    ) {
        let Ask { key, now, limits, .. } = *ask;
        let Some(slot) = self.slot(at) else { return other(None) };
        if let Some((hit, hot)) = slot.read_hit(slot.head(), &Packed::new(key), at) {
            let (age, limit) = (now.since(hot.last_seen()), limits.of(hot.state()));
            if age < limit {
                let Some(flags) = follow(&hit) else { return other(Some(hit)) };
                // What nearly every packet finds: a flow seen a moment ago, in a state that it does not change.
                if hot.state().step(hit.reply, flags) != hot.state() {
                    self.observe(&hit, flags, now, limits);
                } else if age >= grain(limit) {
                    let tick = Tick::of(now);
                    // A failed swap means that another worker has just seen the flow, or that it is gone.
                    if slot.see(hot, now, late.alone) && tick != Tick::of(hot.last_seen()) {
                        late.add(&self.buckets, at, Mark::new(hot.state().class(), tick));
                    }
                }
                return;
            }
        }
        other(self.find_live(ask));
    }

    /// The live entry of a key. An entry past its timeout is removed.
    #[cold]
    #[inline(never)]
    fn find_live(&self, ask: &Ask<'_>) -> Option<Hit> {
        let Ask { now, limits, .. } = *ask;
        let key = Packed::new(ask.key);
        let at = self.find(&key, self.place(ask.hash))?;
        let (hit, hot) = self.slot(at.slot)?.find(&key, at.slot)?;
        if now.since(hot.last_seen()) < limits.of(hot.state()) {
            return Some(hit);
        }
        let life = self.life(hit.at)?;
        if life.is_over(now, limits) {
            self.remove_if(hit.at, |life| life.is_over(now, limits));
            return None;
        }
        Some(Hit { state: life.state.public(), ..hit })
    }

    /// The entry that holds a key, alive or past its timeout.
    pub(super) fn find(&self, key: &Packed<F>, place: Place) -> Option<FlowRef> {
        [place.first, place.second].into_iter().find_map(|bucket| {
            self.buckets.tags(bucket).with(place.tag).find_map(|lane| {
                let at = slot_of(bucket, lane);
                self.slot(at)?.find(key, at).map(|(hit, _)| hit.at)
            })
        })
    }

    /// State and last packet of the flow an entry belongs to; `None` once it is gone.
    pub(super) fn life(&self, at: FlowRef) -> Option<Life> {
        let slot = self.slot(at.slot)?;
        let partner = slot.partner();
        let other = self.slot(partner)?;
        // The state before the times: see `advance`.
        let state = if slot.head().is_reply() { other.hot().state() } else { slot.hot().state() };
        let (a, b) = (slot.hot().last_seen(), other.hot().last_seen());
        if !slot.is(at.id) || !other.is(at.id) {
            return None;
        }
        let last_seen = if a.0.wrapping_sub(b.0) >> 31 == 0 { a } else { b };
        Some(Life { state, last_seen, partner })
    }

    /// Removes a flow if `condition` holds once nobody else can change its entries. `None` when it is gone, in
    /// use by another worker, or the condition does not hold.
    pub(super) fn remove_if(&self, at: FlowRef, condition: impl Fn(&Life) -> bool) -> Option<Life> {
        let (_, claims) = self.claim(at)?;
        let life = self.life(at).filter(condition)?;
        self.unlink(&claims, at.slot, life.partner);
        Some(life)
    }

    /// Claims the buckets of both entries of a flow; `None` when it is gone or another worker has them.
    fn claim(&self, at: FlowRef) -> Option<(u32, Claims<'_>)> {
        let slot = self.slot(at.slot).filter(|s| s.is(at.id))?;
        let partner = slot.partner();
        self.prefetch(partner);
        let buckets = [lane_of(at.slot).0, lane_of(partner).0];
        buckets.into_iter().for_each(|b| self.buckets.prefetch(b));
        let mut claims = Claims::new(&self.buckets);
        let taken = claims.take_all(buckets);
        (taken && slot.is(at.id) && slot.partner() == partner).then_some((partner, claims))
    }

    /// Takes both entries out of use, under the claims of their buckets.
    pub(super) fn unlink(&self, claims: &Claims<'_>, at: u32, partner: u32) {
        for slot in [at, partner] {
            let (bucket, lane) = lane_of(slot);
            claims.set_tag(bucket, lane, 0);
            if let Some(slot) = self.slot(slot) {
                slot.kill();
            }
        }
    }

    /// Marks an entry for sweep and eviction.
    pub(super) fn mark(&self, at: u32, state: State, seen: Tick) {
        let (bucket, lane) = lane_of(at);
        self.buckets.set_mark(bucket, lane, Mark::new(state.class(), seen));
    }

    /// See [`super::FlowTable::observe`].
    #[inline]
    pub(super) fn observe(&self, hit: &Hit, tcp_flags: u8, now: Millis, limits: &Limits) -> FlowState {
        let Some(slot) = self.slot(hit.at.slot) else { return hit.state };
        let hot = slot.hot();
        if !slot.is(hit.at.id) {
            return hit.state;
        }
        let next = hot.state().step(hit.reply, tcp_flags);
        let grain = limits.grain(next);
        if next != hot.state() {
            return self.advance(slot, hit, tcp_flags, now, grain);
        }
        let stale = now.since(hot.last_seen()) >= grain;
        // A failed swap means that another worker has just seen the flow, or that it is gone.
        if stale && slot.swap_hot(hot, hot.with_last_seen(now)) {
            let tick = Tick::of(now);
            if tick != Tick::of(hot.last_seen()) {
                self.mark(hit.at.slot, next, tick);
            }
        }
        next.public()
    }

    /// Moves a flow to its next state, in both entries.
    #[cold]
    fn advance(&self, slot: &Slot<F>, hit: &Hit, tcp_flags: u8, now: Millis, grain: u32) -> FlowState {
        let id = hit.at.id;
        let partner = slot.partner();
        let (Some(other), true) = (self.slot(partner), slot.is(id)) else { return hit.state };
        let (original, copy) = if hit.reply { (other, slot) } else { (slot, other) };

        // Before the state: with a shorter timeout, the flow must not look idle for longer than it is.
        for _ in 0..TRIES {
            let hot = slot.hot();
            let fresh = now.since(hot.last_seen()) < grain;
            if fresh || !slot.is(id) || slot.swap_hot(hot, hot.with_last_seen(now)) {
                break;
            }
        }
        let Some((before, state)) = step(original, id, hit.reply, tcp_flags) else { return hit.state };
        // The copy is read before what it is a copy of: who comes later sees the later state.
        for _ in 0..TRIES {
            let hot = copy.hot();
            let current = original.hot().state();
            let same = hot.state() == current;
            if same || !copy.is(id) || !original.is(id) || copy.swap_hot(hot, hot.with_state(current)) {
                break;
            }
        }
        for at in [partner, hit.at.slot] {
            if before.class() != state.class() || at == hit.at.slot {
                self.mark(at, state, Tick::of(now));
            }
        }
        state.public()
    }

    /// See [`super::FlowTable::pair`].
    pub(super) fn pair(&self, at: FlowRef) -> Option<Pair> {
        let slot = self.slot(at.slot)?;
        for _ in 0..TRIES {
            let own = slot.read().filter(|e| e.head.id() == at.id)?;
            let other = self.slot(own.partner)?.read().filter(|e| e.head.id() == at.id)?;
            if slot.head() == own.head && own.generation == other.generation {
                return Some(join::<F>(at, &own, &other));
            }
        }
        None
    }

    /// See [`super::FlowTable::refresh`].
    pub(super) fn refresh(
        &self,
        at: FlowRef,
        original: &Transform,
        reply: &Transform,
        generation: u32,
    ) -> bool {
        let Some((partner, _claims)) = self.claim(at) else { return false };
        let (Some(own), Some(other)) = (self.slot(at.slot), self.slot(partner)) else { return false };
        let (first, second) = if own.head().is_reply() { (other, own) } else { (own, other) };
        first.begin_rewrite();
        if partner != at.slot {
            second.begin_rewrite();
            second.rewrite(reply, generation);
        }
        first.rewrite(original, generation);
        true
    }
}

/// Moves the state kept in the original direction's entry; gives it as it was and as it is.
fn step<F: Family>(original: &Slot<F>, id: u32, reply: bool, tcp_flags: u8) -> Option<(State, State)> {
    for _ in 0..TRIES {
        let hot = original.hot();
        if !original.is(id) {
            return None;
        }
        let next = hot.state().step(reply, tcp_flags);
        if next == hot.state() || original.swap_hot(hot, hot.with_state(next)) {
            return Some((hot.state(), next));
        }
    }
    None
}

fn join<F: Family>(at: FlowRef, own: &Entry, other: &Entry) -> Pair {
    let (a, b) = (own.hot.last_seen(), other.hot.last_seen());
    let (original, reply, slot) =
        if own.head.is_reply() { (other, own, own.partner) } else { (own, other, at.slot) };
    Pair {
        at: FlowRef { slot, id: at.id, v6: F::V6 },
        original: original.key,
        original_transform: original.transform,
        reply: reply.key,
        reply_transform: reply.transform,
        generation: original.generation,
        state: original.hot.state().public(),
        last_seen: if a.0.wrapping_sub(b.0) >> 31 == 0 { a } else { b },
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "bucket numbers are less than 2^32")]
fn low32(bucket: u64) -> u32 {
    bucket as u32
}
