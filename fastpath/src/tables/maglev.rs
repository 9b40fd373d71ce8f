//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4): flow hash → backend.
//!
//! Every node builds the same table from the same set of backends, in whatever order it learned them. Backends
//! get shares that differ by at most one slot, and a backend more or less moves few flows of the others.
//!
//! The number of slots is a prime of at least 100 times the backends, taken from a short list: within one
//! step of the list backends come and go without disturbing others; on a step to the next size most
//! flows without an entry in the flow table are spread anew.
#![forbid(unsafe_code)]

use core::fmt;

/// Table sizes: primes, far enough apart that growing services seldom meet a step.
const SIZES: [u32; 4] = [1021, 8191, 65_521, 1_048_573];

/// Slots to each backend, at the least.
const PER_BACKEND: usize = 100;

/// A Maglev lookup table over backends numbered as they were given.
#[derive(Clone, PartialEq, Eq)]
pub struct Maglev {
    slots: Box<[u16]>,
}

impl Maglev {
    /// From the identity of each backend (address and port as bytes). A key given twice counts once,
    /// and only the first 65,536 count. `None` without backends.
    #[must_use]
    pub fn new<K: AsRef<[u8]>>(backends: &[K]) -> Option<Self> {
        let mut order: Vec<(u16, &[u8])> = (0..=u16::MAX).zip(backends.iter().map(AsRef::as_ref)).collect();
        order.sort_unstable_by_key(|(i, key)| (*key, *i));
        order.dedup_by_key(|(_, key)| *key);
        let wanted = order.len() * PER_BACKEND;
        let [.., largest] = SIZES;
        let size =
            SIZES.into_iter().find(|s| usize::try_from(*s).is_ok_and(|s| s >= wanted)).unwrap_or(largest);
        if order.is_empty() {
            return None;
        }
        let mut walks: Vec<Walk> =
            order.iter().map(|(backend, key)| Walk::new(*backend, key, size)).collect();
        let mut slots: Box<[Option<u16>]> = vec![None; usize::try_from(size).ok()?].into_boxed_slice();
        let mut left = slots.len();
        'fill: loop {
            for walk in &mut walks {
                if left == 0 {
                    break 'fill;
                }
                // A walk visits every slot before it comes back, so it finds a free one while there is one.
                loop {
                    let at = walk.step(size);
                    if let Some(slot @ None) = usize::try_from(at).ok().and_then(|at| slots.get_mut(at)) {
                        *slot = Some(walk.backend);
                        left -= 1;
                        break;
                    }
                }
            }
        }
        Some(Self { slots: slots.iter().map(|s| s.unwrap_or(0)).collect() })
    }

    /// The backend for a flow hash, as its index in the list the table was made from.
    #[inline]
    #[must_use]
    pub fn lookup(&self, hash: u64) -> u16 {
        self.slot(hash).copied().unwrap_or(0)
    }

    /// The slot of a flow hash.
    #[inline]
    pub(super) fn slot(&self, hash: u64) -> Option<&u16> {
        let size = u64::try_from(self.slots.len()).unwrap_or(1).max(1);
        usize::try_from(hash % size).ok().and_then(|at| self.slots.get(at))
    }

    /// The table: the backend of each slot.
    #[must_use]
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }
}

impl fmt::Debug for Maglev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Maglev({} slots)", self.slots.len())
    }
}

/// One backend's permutation of the slots: `offset + i * skip` modulo a prime.
struct Walk {
    backend: u16,
    at: u32,
    skip: u32,
}

impl Walk {
    fn new(backend: u16, key: &[u8], size: u32) -> Self {
        let below = |hash: u64, n: u32| u32::try_from(hash % u64::from(n)).unwrap_or(0);
        let at = below(hash(key, 0x6f66_6673_6574), size);
        let skip = below(hash(key, 0x736b_6970), size - 1) + 1;
        Self { backend, at, skip }
    }

    /// The slot it is at; moves on to the next.
    fn step(&mut self, size: u32) -> u32 {
        let at = self.at;
        self.at = (self.at + self.skip) % size;
        at
    }
}

/// FNV-1a with a finishing mix (splitmix64): the same on every node and in every version, which a keyed or
/// library hash would not promise.
fn hash(key: &[u8], seed: u64) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in key {
        h = (h ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ h >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ h >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ h >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn keys(set: &BTreeSet<u32>) -> Vec<[u8; 4]> {
        set.iter().map(|k| k.to_be_bytes()).collect()
    }

    /// Backend of each slot, by key.
    fn owners(keys: &[[u8; 4]]) -> Vec<[u8; 4]> {
        Maglev::new(keys).unwrap().slots().iter().map(|i| keys[usize::from(*i)]).collect()
    }

    proptest! {
        /// Shares differ by one slot at most, and there are 100 slots for each backend.
        #[test]
        fn is_balanced(set in prop::collection::btree_set(any::<u32>(), 1..300)) {
            let owners = owners(&keys(&set));
            let mut shares = BTreeMap::<_, usize>::new();
            owners.iter().for_each(|o| *shares.entry(*o).or_default() += 1);
            prop_assert_eq!(shares.len(), set.len());
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            prop_assert!(most - least <= 1 && *least >= PER_BACKEND, "{} to {}", least, most);
        }

        /// The same set gives the same table, whatever the order.
        #[test]
        fn order_is_of_no_account(set in prop::collection::btree_set(any::<u32>(), 1..40), by in 0usize..40) {
            let mut turned = keys(&set);
            let len = turned.len();
            turned.rotate_left(by % len);
            prop_assert_eq!(owners(&keys(&set)), owners(&turned));
        }

        /// One backend gone: its slots move, and few others with them. One come: the same in reverse.
        #[test]
        fn disruption_is_bounded(set in prop::collection::btree_set(any::<u32>(), 11..80), which in any::<prop::sample::Index>()) {
            let gone = *which.get(&set.iter().copied().collect::<Vec<_>>());
            let mut less = set.clone();
            less.remove(&gone);
            let (before, after) = (owners(&keys(&set)), owners(&keys(&less)));
            // Ten backends are one table size below.
            prop_assume!(before.len() == after.len());
            let moved = before.iter().zip(&after).filter(|(b, a)| b != a && **b != gone.to_be_bytes()).count();
            let share = before.len() / set.len();
            // The paper finds a few percent beyond the share that must move; never more than another share and a twentieth.
            prop_assert!(moved <= share + before.len() / 20, "{} of {} moved besides {}", moved, before.len(), share);
        }
    }

    #[test]
    fn sizes_are_primes() {
        for size in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
    }

    #[test]
    fn special_cases() {
        assert_eq!(Maglev::new::<[u8; 4]>(&[]), None);
        let one = Maglev::new(&[[1u8; 4]]).unwrap();
        assert!((0..5000).all(|h| one.lookup(h) == 0));
        let twice = Maglev::new(&[[1u8; 4], [1; 4], [2; 4]]).unwrap();
        assert_eq!(twice.slots().iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([0, 2]));
        for (n, size) in [(10, 1021), (11, 8191), (81, 8191), (82, 65_521), (656, 1_048_573)] {
            let keys: Vec<_> = (0u32..n).map(u32::to_be_bytes).collect();
            assert_eq!(Maglev::new(&keys).unwrap().slots().len(), size, "{n}");
        }
    }

    /// A table of another version of the program on another node must be this one.
    #[test]
    fn the_table_never_changes() {
        let table = Maglev::new(&[b"10.0.0.1:80", b"10.0.0.2:80", b"10.0.0.3:80"]).unwrap();
        let sum =
            table.slots().iter().fold(0u64, |h, s| (h ^ u64::from(*s)).wrapping_mul(0x0000_0100_0000_01b3));
        assert_eq!(
            (table.slots()[..12].to_vec(), sum),
            (vec![2, 0, 1, 1, 0, 2, 0, 0, 1, 2, 1, 1], 4_667_153_967_548_353_636)
        );
    }
}
