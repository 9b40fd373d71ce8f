//! A hash table whose buckets are cache lines, so that it is known before the lookup which line will be read.
//!
//! Open addressing by whole lines: a key lies in its home line, or in the next one that has room. A line counts the keys
//! that went past it for want of room, so nearly every lookup, a miss too, reads one line. Which keys a line holds
//! depends on the order they came in: two tables are the same when they say the same.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::tables::flow::prefetch;

/// One line: some keys, a number for each.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line<K, const N: usize> {
    keys: [K; N],
    values: [u32; N],
    used: u8,
    /// Keys whose home is here or before, and that lie after it. [`STUCK`] is not counted down.
    passed: u8,
}

const STUCK: u8 = u8::MAX;

impl<K: Copy + Eq, const N: usize> Line<K, N> {
    /// Place of a key, without a branch a key.
    #[inline]
    fn find(&self, key: K) -> Option<usize> {
        let same = self.keys.iter().rev().fold(0u32, |bits, k| bits << 1 | u32::from(*k == key));
        let mask = same & ((1 << self.used) - 1);
        (mask != 0).then(|| mask.trailing_zeros() as usize)
    }
}

/// The table. A copy shares its lines until one of the two changes.
#[derive(Clone, Debug)]
pub(super) struct Lines<K, const N: usize> {
    lines: Arc<[Line<K, N>]>,
    len: usize,
}

impl<K, const N: usize> Default for Lines<K, N> {
    fn default() -> Self {
        const { assert!(size_of::<Line<K, N>>() == 64, "a bucket is a cache line") };
        Self { lines: Arc::new([]), len: 0 }
    }
}

impl<K: Copy + Eq + Default, const N: usize> Lines<K, N> {
    /// Number of the line in which a key of this hash lies, if anywhere and there was room.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        let scaled = (hash & u64::from(u32::MAX)).wrapping_mul(self.lines.len() as u64) >> 32;
        usize::try_from(scaled).unwrap_or(0)
    }

    /// Starts to bring the line into the cache that a lookup of this hash reads.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if let Some(line) = self.lines.get(self.home(hash)) {
            prefetch(line);
        }
    }

    /// The number of a key.
    #[inline]
    pub(super) fn get(&self, hash: u64, key: K) -> Option<u32> {
        let home = self.home(hash);
        let line = self.lines.get(home)?;
        match line.find(key) {
            Some(at) => line.values.get(at).copied(),
            None if line.passed == 0 => None,
            None => self.get_after(home, key),
        }
    }

    #[cold]
    fn get_after(&self, home: usize, key: K) -> Option<u32> {
        let (at, slot) = self.place(home, key)?;
        self.lines.get(at)?.values.get(slot).copied()
    }

    /// Line and slot of a key.
    fn place(&self, home: usize, key: K) -> Option<(usize, usize)> {
        for at in (home..self.lines.len()).chain(0..home) {
            let line = self.lines.get(at)?;
            if let Some(slot) = line.find(key) {
                return Some((at, slot));
            }
            if line.passed == 0 {
                return None;
            }
        }
        None
    }

    /// Adds or replaces a key, whose hash is `of(key)`; copies the lines when another table shares them.
    pub(super) fn insert(&mut self, of: impl Fn(K) -> u64 + Copy, key: K, value: u32) {
        let home = self.home(of(key));
        if let Some((at, slot)) = self.place(home, key) {
            if let Some(known) = self.change().get_mut(at).and_then(|line| line.values.get_mut(slot)) {
                *known = value;
            }
            return;
        }
        if (self.len + 1) * 4 > self.lines.len() * N * 3 {
            self.resize(of, (self.len + 1) * 2);
        }
        let home = self.home(of(key));
        Self::put(self.change(), home, key, value);
        self.len += 1;
    }

    /// Puts a key that is not there into the first line with room.
    fn put(lines: &mut [Line<K, N>], home: usize, key: K, value: u32) {
        for at in (home..lines.len()).chain(0..home) {
            let Some(line) = lines.get_mut(at) else { return };
            let slot = usize::from(line.used);
            if let (Some(k), Some(v)) = (line.keys.get_mut(slot), line.values.get_mut(slot)) {
                (*k, *v) = (key, value);
                line.used += 1;
                return;
            }
            line.passed = line.passed.saturating_add(1);
        }
    }

    /// Removes a key; copies the lines when another table shares them.
    pub(super) fn remove(&mut self, of: impl Fn(K) -> u64 + Copy, key: K) {
        let home = self.home(of(key));
        let Some((found, slot)) = self.place(home, key) else { return };
        let lines = self.change();
        let count = lines.len();
        let mut at = home;
        while at != found {
            if let Some(line) = lines.get_mut(at)
                && line.passed != STUCK
            {
                line.passed -= 1;
            }
            at = if at + 1 == count { 0 } else { at + 1 };
        }
        if let Some(line) = lines.get_mut(found) {
            line.used -= 1;
            let last = usize::from(line.used);
            line.keys.swap(slot, last);
            line.values.swap(slot, last);
        }
        self.len -= 1;
        if self.len * 8 < count * N {
            self.resize(of, self.len * 2);
        }
    }

    fn change(&mut self) -> &mut [Line<K, N>] {
        Arc::make_mut(&mut self.lines)
    }

    /// Makes room for so many keys.
    fn resize(&mut self, of: impl Fn(K) -> u64 + Copy, room: usize) {
        let line = Line { keys: [K::default(); N], values: [0; N], used: 0, passed: 0 };
        let fresh: Arc<[Line<K, N>]> = vec![line; room.div_ceil(N)].into();
        let old = std::mem::replace(&mut self.lines, fresh);
        for (key, value) in each(&old) {
            let home = self.home(of(key));
            Self::put(self.change(), home, key, value);
        }
    }

    /// Every key and its number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, u32)> {
        each(&self.lines)
    }

    /// Whether it is the very same table.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lines, &other.lines)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory it holds, shared ones too.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }
}

fn each<K: Copy, const N: usize>(lines: &[Line<K, N>]) -> impl Iterator<Item = (K, u32)> {
    lines.iter().flat_map(|line| {
        line.keys.iter().copied().zip(line.values.iter().copied()).take(usize::from(line.used))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is a map, whatever lines run over, and a copy stays as it was.
        #[test]
        fn is_a_map(ops in prop::collection::vec((0u32..80, any::<bool>(), any::<u32>()), 0..400), copy_at in 0usize..400) {
            // A hash of few values: lines run over.
            let of = |key: u32| u64::from(key % 5) << 30;
            let wide_of = |key: u128| of(u32::try_from(key >> 60).unwrap());
            let (mut v4, mut v6) = (Lines::<u32, 7>::default(), Lines::<u128, 3>::default());
            let mut naive = BTreeMap::new();
            let mut copy = None;
            for (n, (key, add, value)) in ops.into_iter().enumerate() {
                if n == copy_at {
                    copy = Some((v4.clone(), v6.clone(), naive.clone()));
                }
                if add {
                    v4.insert(of, key, value);
                    v6.insert(wide_of, u128::from(key) << 60, value);
                    naive.insert(key, value);
                } else {
                    v4.remove(of, key);
                    v6.remove(wide_of, u128::from(key) << 60);
                    naive.remove(&key);
                }
            }
            for (v4, v6, naive) in copy.iter().chain([&(v4, v6, naive)]) {
                for key in 0..90u32 {
                    let wide = u128::from(key) << 60;
                    prop_assert_eq!(v4.get(of(key), key), naive.get(&key).copied());
                    prop_assert_eq!(v6.get(wide_of(wide), wide), naive.get(&key).copied());
                }
                prop_assert_eq!((v4.len(), v6.len()), (naive.len(), naive.len()));
                prop_assert_eq!(&v4.iter().collect::<BTreeMap<_, _>>(), naive);
            }
        }
    }
}
