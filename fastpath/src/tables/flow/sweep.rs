//! Freeing entries that have timed out, and walking over all flows.
#![forbid(unsafe_code)]

use super::slot::Family;
use super::state::{AGED, Due, Limits, Tick, ticks};
use super::table::{Table, slot_of};
use super::types::{FlowRef, Millis, Pair, Swept};

impl<F: Family> Table<F> {
    /// Removes what has timed out in one bucket. Entries are read only when their mark says they may be due.
    pub(super) fn sweep(&self, bucket: u32, now: Millis, limits: &Limits, due: &Due, swept: &mut Swept) {
        let used = self.buckets.tags(bucket).used();
        if used.is_empty() {
            return;
        }
        let (marks, tick) = (self.buckets.marks(bucket), Tick::of(now));
        for lane in used.filter(|lane| due.is(marks.of(*lane), tick)) {
            let slot = slot_of(bucket, lane);
            let Some(head) = self.slot(slot).map(|s| s.head()).filter(|h| h.is_live()) else { continue };
            let at = FlowRef { slot, id: head.id(), v6: F::V6 };
            let Some(life) = self.life(at) else { continue };
            if !life.is_over(now, limits) {
                let idle = ticks(now.since(life.last_seen));
                let seen = if idle < AGED { Tick::of(life.last_seen) } else { tick.before(AGED) };
                self.mark(slot, life.state, seen);
            } else if let Some(life) = self.remove_if(at, |life| life.is_over(now, limits)) {
                swept.count(life.state.class().evict());
            }
        }
    }

    /// Calls `f` with every flow of a bucket whose original direction's entry is there.
    pub(super) fn for_each(&self, bucket: u32, now: Millis, limits: &Limits, f: &mut impl FnMut(&Pair)) {
        for lane in self.buckets.tags(bucket).used() {
            let slot = slot_of(bucket, lane);
            let head = self.slot(slot).map(|s| s.head()).filter(|h| h.is_live() && !h.is_reply());
            let at = head.map(|h| FlowRef { slot, id: h.id(), v6: F::V6 });
            let alive = |at: &FlowRef| self.life(*at).is_some_and(|l| !l.is_over(now, limits));
            if let Some(pair) = at.filter(alive).and_then(|at| self.pair(at)) {
                f(&pair);
            }
        }
    }
}
