//! A list that is mostly of one element, which then needs no memory of its own.
#![forbid(unsafe_code)]

use std::ops::Deref;

/// Elements in the order they were added.
#[derive(Clone, Debug)]
pub(super) enum Few<T> {
    One([T; 1]),
    Any(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few::Any(Vec::new())
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Few::One(one) => one,
            Few::Any(any) => any,
        }
    }
}

impl<T> Few<T> {
    pub(super) fn push(&mut self, more: T) {
        *self = match std::mem::take(self) {
            Few::One([first]) => Few::Any(vec![first, more]),
            Few::Any(any) if any.is_empty() => Few::One([more]),
            Few::Any(mut any) => {
                any.push(more);
                Few::Any(any)
            }
        };
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        match self {
            Few::One([one]) if keep(one) => {}
            Few::One(_) => *self = Self::default(),
            Few::Any(any) => any.retain(keep),
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(iter: I) -> Self {
        let mut iter = iter.into_iter();
        match (iter.next(), iter.next()) {
            (Some(one), None) => Few::One([one]),
            (first, second) => Few::Any(first.into_iter().chain(second).chain(iter).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_list(given in prop::collection::vec(0u8..6, 0..4), more in prop::collection::vec(0u8..6, 0..4), not in 0u8..6) {
            let mut few: Few<u8> = given.iter().copied().collect();
            let mut list = given;
            prop_assert_eq!(&few[..], &list[..]);
            few.retain(|x| *x != not);
            list.retain(|x| *x != not);
            prop_assert_eq!(&few[..], &list[..]);
            for x in more {
                few.push(x);
                list.push(x);
                prop_assert_eq!(&few[..], &list[..]);
            }
        }
    }
}
