//! Buckets: seven one-byte tags and a claim in one word, and a word of marks beside it.
//!
//! ```text
//!  tag word   byte 7: CLAIMED      bytes 6..0: tag of each lane, 0 = free
//!  mark word  bit 63: not used     9 bits a lane: class and coarse time of the last packet
//! ```
//!
//! Whoever holds the claim alone changes the tags, and the entries of the bucket. Marks are hints: any worker
//! changes them, and a wrong one costs a needless look at the entry, nothing more.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::memory::{Array, equal_bytes};
use super::state::Mark;

/// Entries in a bucket.
pub(super) const LANES: u32 = 7;
const ONES: u64 = 0x0001_0101_0101_0101;
const LOW7: u64 = 0x007f_7f7f_7f7f_7f7f;
const HIGH: u64 = 0x0080_8080_8080_8080;
const CLAIMED: u64 = 1 << 56;
/// Attempts to claim a bucket, some hundred nanoseconds: more than a running thread holds one, far less than
/// a preempted one.
const CLAIM_TRIES: usize = 64;
/// Buckets one operation claims at most: two for each of two keys, and the other half of up to four flows
/// that make room.
const CLAIMS: usize = 8;

/// Lanes of a bucket as a set: bit 7 of byte `n` stands for lane `n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lanes(u64);

impl Lanes {
    /// The first one.
    #[inline]
    pub(super) fn first(self) -> Option<u32> {
        (self.0 != 0).then(|| self.0.trailing_zeros() / 8)
    }

    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(super) fn and(self, lane: u32) -> Self {
        Self(self.0 | 0x80 << (8 * lane))
    }

    pub(super) fn without(self, lane: u32) -> Self {
        Self(self.0 & !(0x80 << (8 * lane)))
    }
}

impl Iterator for Lanes {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let lane = self.first()?;
        self.0 &= self.0 - 1;
        Some(lane)
    }
}

/// Lanes of two buckets as one set: bit `n` stands for lane `n` of the first, bit `8 + n` for that of the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Both(u32);

impl Both {
    const MASK: u32 = 0x7f7f;

    /// The lanes of two buckets that hold `tag`.
    #[inline]
    pub(super) fn with(first: Tags, second: Tags, tag: u8) -> Self {
        Self(equal_bytes([first.0, second.0], tag) & Self::MASK)
    }

    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first one: whether it is of the second bucket, and its lane. Means nothing when there is none.
    #[inline]
    pub(super) fn first(self) -> (bool, u32) {
        let bit = self.0.trailing_zeros();
        (bit & 8 != 0, bit & 7)
    }

    /// The last one, likewise.
    #[inline]
    pub(super) fn last(self) -> (bool, u32) {
        let bit = 31 - (self.0 | 1).leading_zeros();
        (bit & 8 != 0, bit & 7)
    }
}

/// The tags of a bucket at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tags(u64);

impl Tags {
    /// Lanes that hold `tag`; exact, so that free lanes are found by tag 0.
    #[inline]
    pub(super) fn with(self, tag: u8) -> Lanes {
        let x = self.0 ^ ONES.wrapping_mul(u64::from(tag));
        // A byte is zero when neither its low seven bits nor its high bit are set; no carry between bytes.
        Lanes(!(((x & LOW7) + LOW7) | x) & HIGH)
    }

    #[inline]
    pub(super) fn free(self) -> Lanes {
        self.with(0)
    }

    #[inline]
    pub(super) fn used(self) -> Lanes {
        Lanes(self.free().0 ^ HIGH)
    }
}

/// The marks of a bucket at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks(u64);

impl Marks {
    #[inline]
    pub(super) fn of(self, lane: u32) -> Mark {
        let [.., high, low] = (self.0 >> (lane * Mark::BITS)).to_be_bytes();
        Mark::from_bits(u16::from_be_bytes([high, low]))
    }
}

/// All buckets of a table.
#[derive(Debug)]
pub(super) struct Buckets {
    tags: Array<AtomicU64>,
    marks: Array<AtomicU64>,
}

impl Buckets {
    pub(super) fn new(count: u32) -> Self {
        Self { tags: Array::new(index(count)), marks: Array::new(index(count)) }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.tags.len()
    }

    /// Starts to bring the tags of a bucket into the cache.
    #[inline]
    pub(super) fn prefetch(&self, bucket: u32) {
        self.tags.prefetch(index(bucket));
    }

    /// The same for all that a change of the bucket needs.
    #[inline]
    pub(super) fn prefetch_to_change(&self, bucket: u32) {
        self.tags.prefetch(index(bucket));
        self.marks.prefetch(index(bucket));
    }

    /// A bucket that is not there is empty.
    #[inline]
    pub(super) fn tags(&self, bucket: u32) -> Tags {
        Tags(self.tags.get(index(bucket)).map_or(0, |w| w.load(Ordering::Acquire)))
    }

    #[inline]
    pub(super) fn marks(&self, bucket: u32) -> Marks {
        Marks(self.marks.get(index(bucket)).map_or(0, |w| w.load(Ordering::Relaxed)))
    }

    pub(super) fn set_mark(&self, bucket: u32, lane: u32, mark: Mark) {
        let Some(word) = self.marks.get(index(bucket)) else { return };
        let shift = lane * Mark::BITS;
        let change = |w: u64| Some(w & !(0x1ff << shift) | u64::from(mark.bits()) << shift);
        // Lock-free: a failed exchange means that another worker's went through.
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Starts to bring the marks of a bucket into the cache.
    #[inline]
    pub(super) fn prefetch_mark(&self, bucket: u32) {
        self.marks.prefetch(index(bucket));
    }

    /// As [`Buckets::set_mark`], without an atomic exchange: of marks of one bucket that are made at once one may be lost,
    /// which the [table](super) can bear.
    #[inline]
    pub(super) fn hint_mark(&self, bucket: u32, lane: u32, mark: Mark) {
        let Some(word) = self.marks.get(index(bucket)) else { return };
        let shift = lane * Mark::BITS;
        let others = word.load(Ordering::Relaxed) & !(0x1ff << shift);
        word.store(others | u64::from(mark.bits()) << shift, Ordering::Relaxed);
    }

    /// Entries in use; reads all tags.
    pub(super) fn used(&self) -> usize {
        let used = |w: &AtomicU64| Tags(w.load(Ordering::Relaxed)).used().len();
        self.tags.iter().map(|w| usize::try_from(used(w)).unwrap_or(0)).sum()
    }
}

/// The buckets one operation has claimed; given back when dropped.
#[derive(Debug)]
pub(super) struct Claims<'a> {
    buckets: &'a Buckets,
    held: [u32; CLAIMS],
    count: usize,
}

impl<'a> Claims<'a> {
    pub(super) fn new(buckets: &'a Buckets) -> Self {
        Self { buckets, held: [0; CLAIMS], count: 0 }
    }

    /// Claims a bucket, if not held already. False when another worker keeps it: never waits for a preempted one.
    pub(super) fn take(&mut self, bucket: u32) -> bool {
        if self.held.iter().take(self.count).any(|b| *b == bucket) {
            return true;
        }
        let (Some(place), Some(word)) = (self.held.get_mut(self.count), self.buckets.tags.get(index(bucket)))
        else {
            return false;
        };
        for _ in 0..CLAIM_TRIES {
            let now = word.load(Ordering::Relaxed);
            let free = now & CLAIMED == 0;
            let claim = || word.compare_exchange(now, now | CLAIMED, Ordering::Acquire, Ordering::Relaxed);
            if free && claim().is_ok() {
                *place = bucket;
                self.count += 1;
                return true;
            }
            core::hint::spin_loop();
        }
        false
    }

    /// Claims several, in ascending order so that two workers do not hold what the other one wants.
    pub(super) fn take_all<const N: usize>(&mut self, mut buckets: [u32; N]) -> bool {
        buckets.sort_unstable();
        buckets.into_iter().all(|b| self.take(b))
    }

    /// Sets the tag of a lane in a bucket that is held; 0 frees it.
    pub(super) fn set_tag(&self, bucket: u32, lane: u32, tag: u8) {
        debug_assert!(self.held.iter().take(self.count).any(|b| *b == bucket), "bucket {bucket} not claimed");
        let Some(word) = self.buckets.tags.get(index(bucket)) else { return };
        let shift = 8 * lane;
        let now = word.load(Ordering::Relaxed);
        word.store(now & !(0xff << shift) | u64::from(tag) << shift, Ordering::Release);
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        for bucket in self.held.iter().take(self.count) {
            if let Some(word) = self.buckets.tags.get(index(*bucket)) {
                word.store(word.load(Ordering::Relaxed) & !CLAIMED, Ordering::Release);
            }
        }
    }
}

#[inline]
pub(super) fn index(n: u32) -> usize {
    // Lossless where fastpath runs (64 bits); elsewhere an index out of range is no entry.
    usize::try_from(n).unwrap_or(usize::MAX)
}
