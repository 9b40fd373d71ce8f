//! Address block → peer class: the intervals between the ends of all blocks, sorted, in pages.
//!
//! The longest prefix has won already when the table is painted, so a lookup is one search, whatever the number of prefixes
//! and of their lengths. It goes by cache lines, not by halves: of the starts in a line those at or below the address are
//! counted, without a branch, and the count says which line is next. Pages are shared between copies of the table: a change copies those it
//! touches.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::ClassId;
use super::peers::low;
use crate::packet::Ip;
use crate::tables::Prefix;

/// Classes of address blocks, [`ClassId::OTHER`] where nothing was painted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    v4: Arc<Intervals<u32, 16, 256>>,
    v6: Arc<Intervals<u128, 8, 64>>,
}

impl BlockTable {
    /// The class of an address.
    #[inline]
    #[must_use]
    pub fn lookup(&self, ip: Ip) -> ClassId {
        if ip.is_v4() { self.v4.lookup(low(ip)) } else { self.v6.lookup(ip.bits()) }
    }

    /// Gives every address of `prefix` a class, whatever it had. Blocks are painted shorter prefixes first.
    pub fn paint(&mut self, prefix: Prefix, class: ClassId) {
        let (first, last) = (prefix.addr(), prefix.last());
        if prefix.is_v4() {
            Arc::make_mut(&mut self.v4).fill(low(first), low(last), class);
        } else {
            Arc::make_mut(&mut self.v6).fill(first.bits(), last.bits(), class);
        }
    }

    /// Bytes of memory it holds, shared ones too.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }
}

/// An address as a number.
trait Key: Copy + Ord + Default {
    const MAX: Self;
    fn next(self) -> Option<Self>;
    fn before(self) -> Option<Self>;
}

impl Key for u32 {
    const MAX: Self = u32::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Key for u128 {
    const MAX: Self = u128::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// Number of the last of sorted keys that is not above `key`, which the first is not; what is not used is [`Key::MAX`].
#[inline]
fn last_at<K: Key>(keys: &[K], key: K) -> usize {
    keys.iter().map(|k| usize::from(*k <= key)).sum::<usize>().saturating_sub(1)
}

/// Some intervals, each to the start of the next: `FAN` lines of `FAN` starts, and the first of each line.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Page<K, const FAN: usize, const ALL: usize> {
    guide: [K; FAN],
    starts: [K; ALL],
    classes: [ClassId; ALL],
    len: usize,
}

impl<K: Key, const FAN: usize, const ALL: usize> Page<K, FAN, ALL> {
    fn of(intervals: &[(K, ClassId)]) -> Self {
        const { assert!(ALL == FAN * FAN, "a line of guides for the lines of starts") };
        let mut page = Self {
            guide: [K::MAX; FAN],
            starts: [K::MAX; ALL],
            classes: [ClassId::OTHER; ALL],
            len: intervals.len().min(ALL),
        };
        for ((start, class), of) in page.starts.iter_mut().zip(&mut page.classes).zip(intervals) {
            (*start, *class) = *of;
        }
        for (guide, line) in page.guide.iter_mut().zip(page.starts.chunks(FAN)) {
            *guide = line.first().copied().unwrap_or(K::MAX);
        }
        page
    }

    /// Number of the interval of an address that is not below the first.
    #[inline]
    fn find(&self, key: K) -> usize {
        let line = last_at(&self.guide, key);
        let starts = self.starts.get(line * FAN..(line + 1) * FAN).unwrap_or_default();
        (line * FAN + last_at(starts, key)).min(self.len.saturating_sub(1))
    }

    fn intervals(&self) -> impl Iterator<Item = (K, ClassId)> + '_ {
        self.starts.iter().copied().zip(self.classes.iter().copied()).take(self.len)
    }

    fn first(&self) -> K {
        self.starts.first().copied().unwrap_or(K::MAX)
    }
}

/// Every address of a family to its class. Neighbours are never of the same class, and no page is empty.
#[derive(Clone, Debug)]
struct Intervals<K, const FAN: usize, const ALL: usize> {
    /// First starts of all pages; of each line of those the first; and so on, up to one line. The other way round, and
    /// each filled up to whole lines.
    tiers: Vec<Box<[K]>>,
    pages: Vec<Arc<Page<K, FAN, ALL>>>,
}

impl<K: Key, const FAN: usize, const ALL: usize> Default for Intervals<K, FAN, ALL> {
    fn default() -> Self {
        let page = Page::of(&[(K::default(), ClassId::OTHER)]);
        Self { tiers: Vec::new(), pages: vec![Arc::new(page)] }
    }
}

/// The same intervals, however they lie in pages.
impl<K: Key, const FAN: usize, const ALL: usize> PartialEq for Intervals<K, FAN, ALL> {
    fn eq(&self, other: &Self) -> bool {
        self.pages.iter().flat_map(|p| p.intervals()).eq(other.pages.iter().flat_map(|p| p.intervals()))
    }
}

impl<K: Key, const FAN: usize, const ALL: usize> Eq for Intervals<K, FAN, ALL> {}

impl<K: Key, const FAN: usize, const ALL: usize> Intervals<K, FAN, ALL> {
    #[inline]
    fn lookup(&self, key: K) -> ClassId {
        let Some(page) = self.pages.get(self.page(key)) else { return ClassId::OTHER };
        page.classes.get(page.find(key)).copied().unwrap_or_default()
    }

    /// Number of the page that holds an address.
    #[inline]
    fn page(&self, key: K) -> usize {
        let mut line = 0;
        for tier in &self.tiers {
            let keys = tier.get(line * FAN..(line + 1) * FAN).unwrap_or_default();
            line = line * FAN + last_at(keys, key);
        }
        // Beyond the end only what is not used lies, which only the highest address meets.
        line.min(self.pages.len().saturating_sub(1))
    }

    /// Gives all addresses from `first` to `last` one class.
    fn fill(&mut self, first: K, last: K, class: ClassId) {
        let left = first.before().map(|before| self.lookup(before));
        let right = last.next().map(|after| (after, self.lookup(after)));
        let (from, to) = (self.page(first), self.page(right.map_or(last, |(after, _)| after)));
        let mut new: Vec<(K, ClassId)> = Vec::with_capacity(2 * ALL + 2);
        let of_page = |page: usize| self.pages.get(page).into_iter().flat_map(|p| p.intervals());
        new.extend(of_page(from).filter(|(start, _)| *start < first));
        if left != Some(class) {
            new.push((first, class));
        }
        if let Some((after, other)) = right {
            if other != class {
                new.push((after, other));
            }
            new.extend(of_page(to).filter(|(start, _)| *start > after));
        }
        self.replace(from, to, &new);
    }

    /// Makes other intervals of the pages `from` to `to`.
    fn replace(&mut self, from: usize, mut to: usize, new: &[(K, ClassId)]) {
        let mut all = None;
        if new.len() < ALL / 4
            && let Some(next) = self.pages.get(to + 1)
            && next.len < ALL / 2
        {
            // Few are left: one page with the next.
            to += 1;
            all = Some(new.iter().copied().chain(next.intervals()).collect::<Vec<_>>());
        }
        let new = all.as_deref().unwrap_or(new);
        if new.is_empty() && self.pages.len() == to + 1 - from {
            return;
        }
        if let ([_, ..], true, Some(page)) = (new, from == to && new.len() <= ALL, self.pages.get_mut(from)) {
            let first = page.first();
            match Arc::get_mut(page) {
                Some(page) => *page = Page::of(new),
                None => *page = Arc::new(Page::of(new)),
            }
            if page.first() == first {
                return;
            }
        } else {
            // Not full, so that there is room for what comes.
            let pages = new
                .chunks(if new.len() <= ALL { ALL } else { ALL / 2 + 1 })
                .map(|some| Arc::new(Page::of(some)));
            self.pages.splice(from..=to, pages);
        }
        self.tiers.clear();
        let mut keys: Vec<K> = self.pages.iter().map(|page| page.first()).collect();
        while keys.len() > 1 {
            let above: Vec<K> = keys.chunks(FAN).filter_map(|line| line.first().copied()).collect();
            keys.resize(keys.len().next_multiple_of(FAN), K::MAX);
            self.tiers.push(keys.into());
            keys = above;
        }
        self.tiers.reverse();
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.pages.len() * (size_of::<Arc<Page<K, FAN, ALL>>>() + size_of::<Page<K, FAN, ALL>>())
            + self.tiers.iter().map(|tier| size_of_val(&**tier)).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::tables::Lpm;

    fn prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (0u8..3, any::<u8>(), any::<u8>(), any::<u8>(), 0u8..=32)
            .prop_map(|(a, b, c, d, len)| (IpAddr::from([10 + a, b & 0x83, c, d]), len));
        let v6 = (0u16..3, 0u16..3, any::<u16>(), any::<u16>(), 0u8..=128)
            .prop_map(|(a, b, c, d, len)| (IpAddr::from([0xfd00 + a, b, 0, c & 3, 0, 0, d, a]), len));
        prop_oneof![v4, v6].prop_map(|(addr, len)| Prefix::new(addr, len).unwrap())
    }

    fn check(table: &BlockTable, lpm: &Lpm<ClassId>, probes: &[Prefix]) {
        let ends = lpm.iter().map(|(p, _)| p).chain(probes.iter().copied()).flat_map(|p| {
            let size =
                u128::MAX.checked_shr(u32::from(p.len()) + if p.is_v4() { 96 } else { 0 }).unwrap_or(0);
            let first = p.addr().bits();
            [first, first + size, first.wrapping_sub(1), first.wrapping_add(size).wrapping_add(1)]
        });
        for ip in ends.map(Ip::from_bits) {
            assert_eq!(table.lookup(ip), lpm.lookup(ip).copied().unwrap_or_default(), "{ip}");
        }
    }

    proptest! {
        /// Painted shorter prefixes first it is longest-prefix match; painted over with what a removed prefix was in, and
        /// what it held painted anew, it is the table without it, to the last interval.
        #[test]
        fn is_longest_prefix_match(
            mut prefixes in prop::collection::vec((prefix(), 1u32..5), 0..120),
            probes in prop::collection::vec(prefix(), 10),
            gone in any::<prop::sample::Index>(),
        ) {
            prefixes.sort_by_key(|(p, _)| p.len());
            let mut lpm = Lpm::default();
            let mut table = BlockTable::default();
            for (p, c) in &prefixes {
                lpm.insert(*p, ClassId(*c));
                table.paint(*p, ClassId(*c));
            }
            check(&table, &lpm, &probes);
            if prefixes.is_empty() {
                return Ok(());
            }
            let gone = prefixes[gone.index(prefixes.len())].0;
            let without: Lpm<ClassId> = lpm.iter().filter(|(p, _)| *p != gone).map(|(p, c)| (p, *c)).collect();
            let copy = table.clone();
            let shorter: Lpm<ClassId> =
                without.iter().filter(|(p, _)| p.len() < gone.len()).map(|(p, c)| (p, *c)).collect();
            table.paint(gone, shorter.lookup(gone.addr()).copied().unwrap_or_default());
            let mut inside: Vec<_> = without.iter().filter(|(p, _)| p.len() > gone.len() && gone.contains(p.addr())).collect();
            inside.sort_by_key(|(p, _)| p.len());
            inside.into_iter().for_each(|(p, c)| table.paint(p, *c));
            check(&table, &without, &probes);
            check(&copy, &lpm, &probes);
            let mut fresh = BlockTable::default();
            let mut all: Vec<_> = without.iter().collect();
            all.sort_by_key(|(p, _)| p.len());
            all.into_iter().for_each(|(p, c)| fresh.paint(p, *c));
            prop_assert_eq!(table, fresh);
        }
    }

    #[test]
    fn many_in_one_node() {
        let mut table = BlockTable::default();
        let p =
            |n: u16| Prefix::new(IpAddr::from([n.to_be_bytes()[0], n.to_be_bytes()[1], 0, 0]), 16).unwrap();
        (0..=u16::MAX).for_each(|n| table.paint(p(n), ClassId(1 + u32::from(n) % 7)));
        for n in 0..=u16::MAX {
            let [a, b] = n.to_be_bytes();
            assert_eq!(table.lookup(Ip::v4([a, b, 9, 9])), ClassId(1 + u32::from(n) % 7));
        }
        table.paint(Prefix::new(IpAddr::from([0, 0, 0, 0]), 0).unwrap(), ClassId::OTHER);
        assert_eq!(table, BlockTable::default());
    }
}
