//! Installing a flow, and making room for it.
#![forbid(unsafe_code)]

use super::bucket::{Both, Claims, LANES, Lanes};
use super::slot::{Family, Fill, Packed};
use super::state::{Due, Limits, Mark, State, Tick};
use super::table::{NOWHERE, Place, Table, lane_of, slot_of};
use super::types::{Claim, EvictClass, FlowRef, Inserted, Millis, NewFlow};

/// Entries looked at, at most, to find one that may be evicted.
const LOOKS: usize = 4;
/// Up to this many used entries the first bucket is preferred, so that most lookups end there.
const FIRST_CHOICE: u32 = 1;

/// A slot for a new entry.
#[derive(Clone, Copy, Debug)]
struct Spot {
    slot: u32,
    victim: Option<Victim>,
}

/// The flow that is in the slot now.
#[derive(Clone, Copy, Debug)]
struct Victim {
    partner: u32,
    /// `None` when its timeout has passed: that is no eviction.
    class: Option<EvictClass>,
}

/// What a key that is to be installed meets.
enum Way {
    Clear,
    Live(FlowRef),
    Busy,
}

/// What the other direction of the new flow has laid hands on already.
#[derive(Clone, Copy, Debug)]
struct Taken {
    slot: u32,
    freed: u32,
}

/// The clock and what follows from it.
#[derive(Clone, Copy)]
pub(super) struct Time<'a> {
    pub(super) now: Millis,
    pub(super) limits: &'a Limits,
}

impl<F: Family> Table<F> {
    /// First stage before an insert: fetches what is known of the four buckets of its two keys.
    #[inline]
    pub(super) fn fetch_buckets(&self, hashes: [u64; 2]) {
        for place in hashes.map(|h| self.place(h)) {
            self.buckets.prefetch_to_change(place.first);
            self.buckets.prefetch_to_change(place.second);
        }
    }

    /// Second stage: fetches the entries that will be compared, and the two that most likely will be written. Gives
    /// those of them that are in use: their flows have to go.
    #[inline]
    pub(super) fn fetch_slots(&self, hashes: [u64; 2], time: Time<'_>) -> [u32; 2] {
        hashes.map(|hash| {
            let place = self.place(hash);
            let [first, second] = [place.first, place.second].map(|b| self.buckets.tags(b));
            let same = Both::with(first, second, place.tag);
            if !same.is_empty() {
                for (other, lane) in [same.first(), same.last()] {
                    self.prefetch(slot_of(if other { place.second } else { place.first }, lane));
                }
            }
            if let Some(slot) = choose(place, first.free(), second.free()) {
                self.prefetch(slot);
                return NOWHERE;
            }
            let slot = self.first_to_go(place, time, |_| true).unwrap_or(NOWHERE);
            self.prefetch(slot);
            slot
        })
    }

    /// Third stage, only where flows have to go: fetches the other half of each.
    #[inline]
    pub(super) fn fetch_partners(&self, slots: [u32; 2]) {
        for slot in slots {
            let Some(partner) = self.slot(slot).map(|s| s.partner()) else { continue };
            self.prefetch(partner);
            self.buckets.prefetch(lane_of(partner).0);
        }
    }

    /// See [`super::FlowTable::insert`]. The hashes are those of the original and the reply key.
    pub(super) fn insert(
        &self,
        new: &NewFlow,
        claim: Claim,
        hashes: [u64; 2],
        now: Millis,
        limits: &Limits,
    ) -> Inserted {
        let time = Time { now, limits };
        let [original, reply] = hashes.map(|h| self.place(h));
        let to_itself = new.original == new.reply;
        let buckets = [original.first, original.second, reply.first, reply.second];
        // Their misses overlap; the claims below would wait for one after the other.
        buckets.into_iter().for_each(|b| self.buckets.prefetch_to_change(b));
        let mut claims = Claims::new(&self.buckets);
        // Whoever installs a key holds both of its buckets: no key is ever there twice.
        if !claims.take_all(buckets) {
            return Inserted::Busy;
        }
        match self.way(&mut claims, &Packed::new(&new.original), original, time) {
            Way::Clear => {}
            Way::Busy => return Inserted::Busy,
            Way::Live(at) => return self.exists(at, &new.original),
        }
        if to_itself {
            let Some(spot) = self.spot(&mut claims, original, None, time) else { return Inserted::Full };
            let evicted = self.vacate(&claims, spot);
            let at = self.write(&claims, new, [(spot.slot, original.tag); 2], now);
            return Inserted::New(at, [evicted, None]);
        }
        // The reply first: it may have to take one certain slot.
        let for_reply = match self.way(&mut claims, &Packed::new(&new.reply), reply, time) {
            Way::Clear => self.spot(&mut claims, reply, None, time),
            Way::Live(at) if !self.gives_way(at, claim, now) => return Inserted::Conflict(at),
            Way::Live(at) => match self.ask(&mut claims, at.slot, time) {
                Some(victim) => Some(Spot { slot: at.slot, victim: Some(victim) }),
                None => return Inserted::Busy,
            },
            Way::Busy => return Inserted::Busy,
        };
        let Some(for_reply) = for_reply else { return Inserted::Full };
        let freed = for_reply.victim.map_or(NOWHERE, |v| v.partner);
        let taken = Taken { slot: for_reply.slot, freed };
        let Some(for_original) = self.spot(&mut claims, original, Some(taken), time) else {
            return Inserted::Full;
        };
        let evicted = [self.vacate(&claims, for_original), self.vacate(&claims, for_reply)];
        let slots = [(for_original.slot, original.tag), (for_reply.slot, reply.tag)];
        Inserted::New(self.write(&claims, new, slots, now), evicted)
    }

    fn exists(&self, at: FlowRef, key: &crate::packet::FlowKey) -> Inserted {
        let found = self.slot(at.slot).and_then(|s| s.find(&Packed::new(key), at.slot));
        found.map_or(Inserted::Busy, |(hit, _)| Inserted::Exists(hit))
    }

    /// Looks for a key in its buckets, which are claimed; removes what is past its timeout.
    fn way(&self, claims: &mut Claims<'_>, key: &Packed<F>, place: Place, time: Time<'_>) -> Way {
        let Some(at) = self.find(key, place) else { return Way::Clear };
        let Some(life) = self.life(at) else { return Way::Busy };
        if !life.is_over(time.now, time.limits) {
            return Way::Live(at);
        }
        if !claims.take(lane_of(life.partner).0) {
            return Way::Busy;
        }
        self.unlink(claims, at.slot, life.partner);
        Way::Clear
    }

    /// Whether a flow gives way to a new one that needs its key: it only waits for its timeout, or the claim says so.
    fn gives_way(&self, at: FlowRef, claim: Claim, now: Millis) -> bool {
        self.life(at).is_some_and(|life| match life.state.class().evict() {
            EvictClass::Closing => true,
            EvictClass::HalfOpen => {
                claim == Claim::HalfOpen && now.since(life.last_seen) >= super::HALF_OPEN_IDLE_MS
            }
            EvictClass::Idle => false,
        })
    }

    /// A slot in one of the two buckets: a free one, or one whose flow may go.
    fn spot(
        &self,
        claims: &mut Claims<'_>,
        place: Place,
        taken: Option<Taken>,
        time: Time<'_>,
    ) -> Option<Spot> {
        let free = |bucket| {
            let mut lanes = self.buckets.tags(bucket).free();
            if let Some(t) = taken {
                for (slot, free) in [(t.freed, true), (t.slot, false)] {
                    let (b, lane) = lane_of(slot);
                    if b == bucket {
                        lanes = if free { lanes.and(lane) } else { lanes.without(lane) };
                    }
                }
            }
            lanes
        };
        match choose(place, free(place.first), free(place.second)) {
            Some(slot) => {
                self.prefetch(slot);
                Some(Spot { slot, victim: None })
            }
            None => self.victim(claims, place, taken.map_or(NOWHERE, |t| t.slot), time),
        }
    }

    /// The entry that may go, and goes first, by the marks of both buckets. Marks may be stale: the entry is
    /// asked before it is chosen.
    fn victim(&self, claims: &mut Claims<'_>, place: Place, taken: u32, time: Time<'_>) -> Option<Spot> {
        let mut refused = [NOWHERE; LOOKS];
        for turn in 0..LOOKS {
            let slot = self.first_to_go(place, time, |slot| slot != taken && !refused.contains(&slot))?;
            if let Some(victim) = self.ask(claims, slot, time) {
                return Some(Spot { slot, victim: Some(victim) });
            }
            *refused.get_mut(turn)? = slot;
        }
        None
    }

    /// The entry of both buckets that goes first by their marks, of those that `may`.
    fn first_to_go(&self, place: Place, time: Time<'_>, may: impl Fn(u32) -> bool) -> Option<u32> {
        let (due, tick) = (time.limits.due(), Tick::of(time.now));
        let candidates = [place.first, place.second].into_iter().flat_map(|bucket| {
            let marks = self.buckets.marks(bucket);
            self.buckets.tags(bucket).used().map(move |lane| (slot_of(bucket, lane), marks.of(lane)))
        });
        let best = candidates
            .filter(|(slot, _)| may(*slot))
            .filter_map(|(slot, mark)| rank(mark, &due, tick).map(|rank| (rank, slot)))
            .max_by_key(|(rank, _)| *rank);
        best.map(|(_, slot)| slot)
    }

    /// Whether the flow in a slot may go; corrects its mark if not.
    fn ask(&self, claims: &mut Claims<'_>, slot: u32, time: Time<'_>) -> Option<Victim> {
        let id = self.slot(slot)?.head().id();
        let life = self.life(FlowRef { slot, id, v6: F::V6 })?;
        let (idle, class) = (time.now.since(life.last_seen), life.state.class());
        let over = life.is_over(time.now, time.limits);
        if !over && idle < class.protected_ms() {
            self.mark(slot, life.state, Tick::of(life.last_seen));
            return None;
        }
        let class = (!over).then(|| class.evict());
        claims.take(lane_of(life.partner).0).then_some(Victim { partner: life.partner, class })
    }

    fn vacate(&self, claims: &Claims<'_>, spot: Spot) -> Option<EvictClass> {
        let victim = spot.victim?;
        self.unlink(claims, spot.slot, victim.partner);
        victim.class
    }

    /// Writes both entries, then their tags. Original and reply are one slot for a flow to itself.
    fn write(&self, claims: &Claims<'_>, new: &NewFlow, slots: [(u32, u8); 2], now: Millis) -> FlowRef {
        let [(original, _), (reply, _)] = slots;
        let last = |slot| self.slot(slot).map_or(0, |s| s.head().id());
        // Larger than any id either slot has had, so that no old reference fits.
        let id = last(original).max(last(reply)).wrapping_add(1);
        let state = State::first(new.original.proto, new.tcp_flags, original == reply);
        let entries = [
            (original, reply, &new.original, &new.original_transform),
            (reply, original, &new.reply, &new.reply_transform),
        ];
        let count = if original == reply { 1 } else { 2 };
        for (n, (slot, partner, key, transform)) in entries.into_iter().enumerate().take(count) {
            let fill =
                Fill { id, reply: n == 1, partner, key, transform, generation: new.generation, state, now };
            if let Some(slot) = self.slot(slot) {
                slot.write(&fill);
            }
            self.mark(slot, state, Tick::of(now));
        }
        for (slot, tag) in slots {
            let (bucket, lane) = lane_of(slot);
            claims.set_tag(bucket, lane, tag);
        }
        FlowRef { slot: original, id, v6: F::V6 }
    }
}

/// A slot among the free lanes of the two buckets.
#[inline]
fn choose(place: Place, first: Lanes, second: Lanes) -> Option<u32> {
    let near = first.len() >= second.len() || LANES - first.len() <= FIRST_CHOICE;
    match (first.first(), second.first()) {
        (Some(lane), other) if near || other.is_none() => Some(slot_of(place.first, lane)),
        (_, Some(lane)) => Some(slot_of(place.second, lane)),
        (_, None) => None,
    }
}

/// What goes first: timed out, closing, half open, idle; among equals the one longest idle. `None`: stays.
fn rank(mark: Mark, due: &Due, now: Tick) -> Option<(u8, u8)> {
    let age = mark.age(now);
    if due.has_passed(mark, now) {
        return Some((4, age));
    }
    match mark.class().evict() {
        EvictClass::Closing => Some((3, age)),
        EvictClass::HalfOpen => Some((2, age)),
        EvictClass::Idle => (age >= super::state::ticks(mark.class().protected_ms())).then_some((1, age)),
    }
}
