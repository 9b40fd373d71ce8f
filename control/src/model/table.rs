//! Objects by name, in order: a map that is cheap to copy, to change after, and to compare with what it was.
//!
//! Entries lie in sorted chunks that copies share. A copy costs a reference a chunk, a change copies one chunk, and
//! [`Table::diff`] passes over the chunks that both still share: what did not change costs nothing further on.
#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// Most entries of a chunk.
const MOST: usize = 64;
/// A chunk of fewer entries joins the next, if both fit.
const FEW: usize = 16;

type Entry<K, V> = (Arc<K>, Arc<V>);
type Chunk<K, V> = Vec<Entry<K, V>>;

/// A sorted map to shared objects; see the module.
pub struct Table<K, V> {
    /// None is empty; every key of one is below every key of the next.
    chunks: Vec<Arc<Chunk<K, V>>>,
    len: usize,
}

/// An entry that differs: its key, what it was and what it is now. At least one of the two is there, and they are not the
/// same object, though they may be equal.
pub type Difference<'a, K, V> = (&'a K, Option<&'a Arc<V>>, Option<&'a Arc<V>>);

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.chunks.iter().flat_map(|c| c.iter()).map(|(k, v)| (k, v))).finish()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.diff(other).iter().all(|(_, a, b)| a == b)
    }
}

impl<K: Ord, V: Eq> Eq for Table<K, V> {}

impl<K, V> Table<K, V> {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { chunks: self.chunks.iter(), now: [].iter() }
    }

    /// Keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(k, _)| k)
    }

    /// Objects in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &Arc<V>> + Clone {
        self.iter().map(|(_, v)| v)
    }

    /// Entries in order, their objects to be replaced. Copies every chunk that is shared.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut Arc<V>)> {
        self.chunks.iter_mut().flat_map(Arc::make_mut).map(|(k, v)| (&**k, v))
    }

    /// As [`Table::iter_mut`], without the keys.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Arc<V>> {
        self.iter_mut().map(|(_, v)| v)
    }

    /// Forgets all entries.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether both hold the same entries because neither was changed since one was copied from the other: costs a
    /// comparison a chunk. `false` says nothing.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.chunks.len() == other.chunks.len()
            && self.chunks.iter().zip(&other.chunks).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl<K: Ord, V> Table<K, V> {
    /// The chunk that holds `key`, or would.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.chunks.partition_point(|c| c.last().is_some_and(|(last, _)| (**last).borrow() < key))
    }

    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(usize, usize)>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        let within = self.chunks.get(at)?.binary_search_by(|(k, _)| (**k).borrow().cmp(key)).ok()?;
        Some((at, within))
    }

    fn entry_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Entry<K, V>>
    where
        K: Borrow<Q>,
    {
        let (at, within) = self.find(key)?;
        self.chunks.get(at)?.get(within)
    }

    /// The object of a key.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.entry_of(key).map(|(_, v)| v)
    }

    /// The entry of a key, with the key as it lies in the table.
    #[must_use]
    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &Arc<V>)>
    where
        K: Borrow<Q>,
    {
        self.entry_of(key).map(|(k, v)| (&**k, v))
    }

    /// The object of a key, to be replaced.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut Arc<V>>
    where
        K: Borrow<Q>,
    {
        let (at, within) = self.find(key)?;
        Arc::make_mut(self.chunks.get_mut(at)?).get_mut(within).map(|(_, v)| v)
    }

    /// Whether a key is there.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).is_some()
    }

    /// Adds or replaces an entry; returns the object that was there.
    pub fn insert(&mut self, key: K, value: Arc<V>) -> Option<Arc<V>> {
        // What is above all others goes into the last chunk.
        let at = self.chunk_of(&key).min(self.chunks.len().saturating_sub(1));
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(vec![(Arc::new(key), value)]));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(k, _)| (**k).cmp(&key)) {
            Ok(within) => chunk.get_mut(within).map(|(_, old)| std::mem::replace(old, value)),
            Err(within) => {
                chunk.insert(within, (Arc::new(key), value));
                self.len += 1;
                if chunk.len() > MOST {
                    // What comes in order fills its chunks.
                    let cut = if within == MOST { MOST } else { MOST / 2 };
                    let upper = chunk.split_off(cut);
                    self.chunks.insert(at + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    /// Removes an entry; returns its object.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        let (at, within) = self.find(key)?;
        let chunk = Arc::make_mut(self.chunks.get_mut(at)?);
        let (_, value) = chunk.remove(within);
        self.len -= 1;
        let left = chunk.len();
        if left == 0 {
            self.chunks.remove(at);
        } else if left < FEW && self.chunks.get(at + 1).is_some_and(|next| next.len() + left <= MOST) {
            let next = self.chunks.remove(at + 1);
            if let Some(chunk) = self.chunks.get_mut(at) {
                Arc::make_mut(chunk).extend(next.iter().cloned());
            }
        }
        Some(value)
    }

    /// Keeps the entries that `keep` says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut Arc<V>) -> bool) {
        for chunk in &mut self.chunks {
            Arc::make_mut(chunk).retain_mut(|(k, v)| keep(k, v));
        }
        self.chunks.retain(|c| !c.is_empty());
        self.len = self.chunks.iter().map(|c| c.len()).sum();
    }

    /// What is different in `new`, in order. Costs a step a chunk that both share, and one an entry of the others.
    #[must_use]
    pub fn diff<'a>(&'a self, new: &'a Self) -> Vec<Difference<'a, K, V>> {
        let mut out = Vec::new();
        let (mut a, mut b) = (Cursor::new(&self.chunks), Cursor::new(&new.chunks));
        loop {
            while let (0, 0, Some(x), Some(y)) = (a.within, b.within, a.chunk(), b.chunk())
                && Arc::ptr_eq(x, y)
            {
                (a.at, b.at) = (a.at + 1, b.at + 1);
            }
            match (a.entry(), b.entry()) {
                (None, None) => return out,
                (Some((k, v)), None) => {
                    out.push((&**k, Some(v), None));
                    a.step();
                }
                (None, Some((k, v))) => {
                    out.push((&**k, None, Some(v)));
                    b.step();
                }
                (Some((k, v)), Some((l, w))) => match k.cmp(l) {
                    Ordering::Less => {
                        out.push((&**k, Some(v), None));
                        a.step();
                    }
                    Ordering::Greater => {
                        out.push((&**l, None, Some(w)));
                        b.step();
                    }
                    Ordering::Equal => {
                        if !Arc::ptr_eq(v, w) {
                            out.push((&**k, Some(v), Some(w)));
                        }
                        a.step();
                        b.step();
                    }
                },
            }
        }
    }
}

/// A place in a table.
struct Cursor<'a, K, V> {
    chunks: &'a [Arc<Chunk<K, V>>],
    at: usize,
    within: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(chunks: &'a [Arc<Chunk<K, V>>]) -> Self {
        Self { chunks, at: 0, within: 0 }
    }

    fn chunk(&self) -> Option<&'a Arc<Chunk<K, V>>> {
        self.chunks.get(self.at)
    }

    fn entry(&self) -> Option<&'a Entry<K, V>> {
        self.chunk()?.get(self.within)
    }

    fn step(&mut self) {
        self.within += 1;
        if self.chunk().is_some_and(|c| self.within >= c.len()) {
            (self.at, self.within) = (self.at + 1, 0);
        }
    }
}

/// Entries of a [`Table`] in order.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    chunks: std::slice::Iter<'a, Arc<Chunk<K, V>>>,
    now: std::slice::Iter<'a, Entry<K, V>>,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), now: self.now.clone() }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a Arc<V>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((k, v)) = self.now.next() {
                return Some((k, v));
            }
            self.now = self.chunks.next()?.iter();
        }
    }
}

impl<'a, K, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a Arc<V>);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for Table<K, V> {
    type Output = Arc<V>;

    /// The object of a key that is there.
    #[expect(clippy::panic, reason = "as in every map: `get` is for keys that may not be there")]
    fn index(&self, key: &Q) -> &Arc<V> {
        self.get(key).unwrap_or_else(|| panic!("no such key in the table"))
    }
}

impl<K: Ord, V> Extend<(K, Arc<V>)> for Table<K, V> {
    fn extend<I: IntoIterator<Item = (K, Arc<V>)>>(&mut self, iter: I) {
        for (k, v) in iter {
            self.insert(k, v);
        }
    }
}

impl<K: Ord, V> FromIterator<(K, Arc<V>)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, Arc<V>)>>(iter: I) -> Self {
        // In order, so that the chunks are full.
        let sorted: BTreeMap<K, Arc<V>> = iter.into_iter().collect();
        let mut table = Self::default();
        table.extend(sorted);
        table
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Naive = BTreeMap<u16, Arc<u16>>;

    fn check(table: &Table<u16, u16>, naive: &Naive) {
        assert!(table.iter().eq(naive.iter()));
        assert_eq!(table.len(), naive.len());
        assert!(table.chunks.iter().all(|c| (1..=MOST).contains(&c.len())));
        for key in 0..600 {
            assert_eq!(table.get(&key), naive.get(&key));
            assert_eq!(table.contains_key(&key), naive.contains_key(&key));
        }
    }

    proptest! {
        /// It is a `BTreeMap`, copies are not changed, and the difference from one to any other is found.
        #[test]
        fn is_a_sorted_map(
            ops in prop::collection::vec((0u16..600, 0u16..40, 0u8..10), 0..500),
            filled in 0u16..600,
            copy_at in any::<prop::sample::Index>(),
        ) {
            let mut naive: Naive = (0..filled).map(|k| (k, Arc::new(k))).collect();
            let mut table: Table<u16, u16> = naive.iter().map(|(k, v)| (*k, v.clone())).collect();
            let at = copy_at.index(ops.len().max(1));
            let mut copies = (table.clone(), naive.clone());
            for (n, (key, value, op)) in ops.into_iter().enumerate() {
                if n == at {
                    copies = (table.clone(), naive.clone());
                }
                match op {
                    0..4 => {
                        let value = Arc::new(value);
                        prop_assert_eq!(table.insert(key, value.clone()), naive.insert(key, value));
                    }
                    4 => {
                        if let Some(v) = table.get_mut(&key) {
                            *v = Arc::new(value);
                        }
                        let v = table.get(&key).cloned();
                        naive.get_mut(&key).into_iter().zip(v).for_each(|(old, new)| *old = new);
                    }
                    5 => {
                        table.retain(|k, _| k % 50 != value);
                        naive.retain(|k, _| k % 50 != value);
                    }
                    _ => prop_assert_eq!(table.remove(&key), naive.remove(&key)),
                }
            }
            check(&table, &naive);
            check(&copies.0, &copies.1);
            let found = copies.0.diff(&table);
            let differs = |k: &u16| match (copies.1.get(k), naive.get(k)) {
                (Some(a), Some(b)) => !Arc::ptr_eq(a, b),
                (a, b) => a.is_some() || b.is_some(),
            };
            let want: Vec<_> = (0..600u16).filter(differs).collect();
            prop_assert_eq!(found.iter().map(|(k, ..)| **k).collect::<Vec<_>>(), want);
            for (k, before, after) in found {
                prop_assert_eq!((before, after), (copies.1.get(k), naive.get(k)));
            }
            prop_assert_eq!(table == copies.0, naive == copies.1);
            prop_assert!(table.is_same(&table.clone()));
        }
    }

    #[test]
    fn what_comes_in_order_fills_chunks_and_a_change_copies_one() {
        let table: Table<u16, ()> = (0..6400u16).map(|k| (k, Arc::new(()))).collect();
        assert_eq!(table.chunks.len(), 100);
        let mut other = table.clone();
        other.insert(777, Arc::new(()));
        let shared = table.chunks.iter().zip(&other.chunks).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, 99);
        assert!(!table.is_same(&other));
    }
}
