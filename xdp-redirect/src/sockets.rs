//! Slots of the socket map by (device, queue).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::abi::SocketKey;

/// Which slot serves which (device, queue); the lowest free slot is given out first.
#[derive(Debug)]
pub(crate) struct Slots {
    taken: BTreeMap<(u32, u32), u32>,
    free: Vec<u32>,
}

impl Slots {
    pub(crate) fn new(max: u32) -> Self {
        Self { taken: BTreeMap::new(), free: (0..max).rev().collect() }
    }

    /// The slot of `key`, a new one when it has none; `None` when all are taken.
    pub(crate) fn take(&mut self, key: SocketKey) -> Option<u32> {
        if let Some(slot) = self.taken.get(&(key.ifindex, key.queue)) {
            return Some(*slot);
        }
        let slot = self.free.pop()?;
        self.taken.insert((key.ifindex, key.queue), slot);
        Some(slot)
    }

    /// The slot of `key`.
    pub(crate) fn get(&self, key: SocketKey) -> Option<u32> {
        self.taken.get(&(key.ifindex, key.queue)).copied()
    }

    /// Gives the slot of `key` back.
    pub(crate) fn release(&mut self, key: SocketKey) {
        if let Some(slot) = self.taken.remove(&(key.ifindex, key.queue)) {
            self.free.push(slot);
        }
    }

    /// The queues of a device that have a slot.
    pub(crate) fn queues(&self, ifindex: u32) -> Vec<u32> {
        self.taken.range((ifindex, 0)..=(ifindex, u32::MAX)).map(|((_, queue), _)| *queue).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ifindex: u32, queue: u32) -> SocketKey {
        SocketKey { ifindex, queue }
    }

    #[test]
    fn slots_are_distinct_stable_and_reused() {
        let mut slots = Slots::new(3);
        assert_eq!(slots.take(key(7, 0)), Some(0));
        assert_eq!(slots.take(key(7, 1)), Some(1));
        assert_eq!(slots.take(key(7, 0)), Some(0), "same key, same slot");
        assert_eq!(slots.take(key(8, 0)), Some(2));
        assert_eq!(slots.take(key(9, 0)), None, "full");
        assert_eq!(slots.queues(7), [0, 1]);
        slots.release(key(7, 0));
        slots.release(key(7, 0));
        assert_eq!(slots.get(key(7, 0)), None);
        assert_eq!(slots.take(key(9, 0)), Some(0));
        assert_eq!(slots.take(key(9, 1)), None, "a double release frees one slot");
    }
}
