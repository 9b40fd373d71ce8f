//! Memory allocated once, whose items are named by number and stand in lists without owners.
#![forbid(unsafe_code)]

use core::ops::{Index, IndexMut};

/// No item has this number.
pub(super) const NONE: u16 = u16::MAX;
/// Most items of one arena.
const MOST: usize = 1 << 15;

/// A fixed number of items. Numbers come from the arena's own lists; one that does not is taken modulo the length.
#[derive(Debug)]
pub(super) struct Arena<T>(Box<[T]>);

impl<T> Arena<T> {
    /// `count` items, rounded up to a power of two.
    pub(super) fn new(count: usize, make: impl FnMut() -> T) -> Self {
        let count = count.clamp(1, MOST).next_power_of_two();
        Self(core::iter::repeat_with(make).take(count).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<T> Index<u16> for Arena<T> {
    type Output = T;

    fn index(&self, i: u16) -> &T {
        &self.0[usize::from(i) & (self.0.len() - 1)]
    }
}

impl<T> IndexMut<u16> for Arena<T> {
    fn index_mut(&mut self, i: u16) -> &mut T {
        let mask = self.0.len() - 1;
        &mut self.0[usize::from(i) & mask]
    }
}

/// The ends of a list; its middle is in the [`Links`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct List {
    head: u16,
    tail: u16,
    len: u16,
}

impl List {
    pub(super) const EMPTY: List = List { head: NONE, tail: NONE, len: 0 };

    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item at the front.
    pub(super) fn head(&self) -> Option<u16> {
        (self.len > 0).then_some(self.head)
    }
}

/// The links of all lists that the items of one arena stand in; each item is in one list at a time.
#[derive(Debug)]
pub(super) struct Links {
    /// The item before and the one behind.
    links: Arena<(u16, u16)>,
}

impl Links {
    /// Links for `count` items, at most 32,768, and the list of them all.
    pub(super) fn new(count: usize) -> (Self, List) {
        let mut links = Self { links: Arena::new(count, || (NONE, NONE)) };
        let mut all = List::EMPTY;
        for i in (0..NONE).take(count.min(MOST)) {
            links.push(&mut all, i);
        }
        (links, all)
    }

    /// The item behind `i`.
    pub(super) fn next(&self, i: u16) -> Option<u16> {
        let (_, next) = self.links[i];
        (next != NONE).then_some(next)
    }

    /// Puts an item that is in no list at the back.
    pub(super) fn push(&mut self, list: &mut List, i: u16) {
        self.links[i] = (list.tail, NONE);
        match list.len {
            0 => list.head = i,
            _ => self.links[list.tail].1 = i,
        }
        list.tail = i;
        list.len += 1;
    }

    /// Takes the item at the front.
    pub(super) fn pop(&mut self, list: &mut List) -> Option<u16> {
        let head = list.head()?;
        self.remove(list, head);
        Some(head)
    }

    /// Takes an item of the list out of it.
    pub(super) fn remove(&mut self, list: &mut List, i: u16) {
        let (before, behind) = self.links[i];
        match before {
            NONE => list.head = behind,
            _ => self.links[before].1 = behind,
        }
        match behind {
            NONE => list.tail = before,
            _ => self.links[behind].0 = before,
        }
        self.links[i] = (NONE, NONE);
        list.len -= 1;
    }

    /// Puts all of `other` at the back.
    pub(super) fn append(&mut self, list: &mut List, other: List) {
        if other.is_empty() {
            return;
        }
        if list.is_empty() {
            *list = other;
            return;
        }
        self.links[list.tail].1 = other.head;
        self.links[other.head].0 = list.tail;
        list.tail = other.tail;
        list.len += other.len;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Three lists over the same items behave like three deques.
        #[test]
        fn lists_are_deques(steps in prop::collection::vec((0u8..4, 0usize..3, 0usize..3, any::<prop::sample::Index>()), 0..200)) {
            const COUNT: usize = 13;
            let (mut links, all) = Links::new(COUNT);
            let mut lists = [all, List::EMPTY, List::EMPTY];
            let mut want = [(0..13u16).collect::<VecDeque<_>>(), VecDeque::new(), VecDeque::new()];
            for (step, a, b, which) in steps {
                match step {
                    0 | 1 => {
                        let got = links.pop(&mut lists[a]);
                        prop_assert_eq!(got, want[a].pop_front());
                        if let Some(i) = got {
                            links.push(&mut lists[b], i);
                            want[b].push_back(i);
                        }
                    }
                    2 if !want[a].is_empty() => {
                        let i = want[a].remove(which.index(want[a].len())).unwrap();
                        links.remove(&mut lists[a], i);
                        links.push(&mut lists[b], i);
                        want[b].push_back(i);
                    }
                    3 if a != b => {
                        let other = core::mem::replace(&mut lists[b], List::EMPTY);
                        links.append(&mut lists[a], other);
                        let other = core::mem::take(&mut want[b]);
                        want[a].extend(other);
                    }
                    _ => {}
                }
                for (list, want) in lists.iter().zip(&want) {
                    let walk: Vec<u16> = core::iter::successors(list.head(), |i| links.next(*i)).collect();
                    prop_assert_eq!(&walk, &want.iter().copied().collect::<Vec<_>>());
                    prop_assert_eq!(list.len(), want.len());
                }
            }
        }
    }
}
