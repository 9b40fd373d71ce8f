//! `sessionAffinity: ClientIP`: the backend a client was sent to last, per service port.
//!
//! One table for each worker, of fixed size: a set-associative cache in which the pair idle longest gives way.
//! Clients that a worker has not seen are sent by a hash of their address alone, so that workers agree.
#![forbid(unsafe_code)]

use super::flow::Millis;
use super::service::Backend;
use crate::packet::{FlowKey, Ip};

/// Entries that share a hash, one of which gives way to a new one.
const WAYS: usize = 8;

/// The longest timeout there is, a day (`timeoutSeconds`, Service v1).
const LONGEST_MS: u32 = 86_400_000;

#[derive(Clone, Copy, Debug)]
struct Entry {
    service: u64,
    client: Ip,
    backend: Backend,
    used: Millis,
    live: bool,
}

/// Milliseconds since a pair was used. The table is one worker's, whose clock never goes back: all 32 bits count.
fn age(entry: &Entry, now: Millis) -> u32 {
    now.0.wrapping_sub(entry.used.0)
}

/// The table.
#[derive(Debug)]
pub struct Affinity {
    entries: Box<[Entry]>,
}

impl Affinity {
    /// Room for `sets * 8` pairs of client and service port; at least 8.
    #[must_use]
    pub fn new(sets: usize) -> Self {
        let none = Ip::from_bits(0);
        let empty = Entry {
            service: 0,
            client: none,
            backend: Backend { addr: none, port: 0 },
            used: Millis(0),
            live: false,
        };
        Self { entries: vec![empty; sets.max(1) * WAYS].into() }
    }

    fn set(&mut self, service: u64, client: Ip) -> &mut [Entry] {
        let key = FlowKey { src: client, dst: client, ..FlowKey::EMPTY };
        let sets = self.entries.len() / WAYS;
        let at = usize::try_from(key.hash(service) % sets.max(1) as u64).unwrap_or(0) * WAYS;
        self.entries.get_mut(at..at + WAYS).unwrap_or_default()
    }

    /// The backend of a client that used the service within `timeout_ms`.
    #[must_use]
    pub fn get(&mut self, service: u64, client: Ip, now: Millis, timeout_ms: u32) -> Option<Backend> {
        let set = self.set(service, client);
        // Before the clock wraps and makes them look young.
        set.iter_mut().filter(|e| age(e, now) > LONGEST_MS).for_each(|e| e.live = false);
        let mut set = set.iter();
        let entry = set.find(|e| e.live && e.service == service && e.client == client)?;
        (age(entry, now) < timeout_ms).then_some(entry.backend)
    }

    /// Remembers the backend of a client that uses the service now.
    pub fn put(&mut self, service: u64, client: Ip, backend: Backend, now: Millis) {
        let set = self.set(service, client);
        let same = |e: &Entry| e.live && e.service == service && e.client == client;
        let at = set.iter().position(same).or_else(|| {
            // One that is free, else the one idle longest.
            let age = |e: &Entry| if e.live { age(e, now) } else { u32::MAX };
            (0..set.len()).max_by_key(|i| set.get(*i).map_or(0, age))
        });
        if let Some(entry) = at.and_then(|at| set.get_mut(at)) {
            *entry = Entry { service, client, backend, used: now, live: true };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn client(n: u8) -> Ip {
        Ip::v4([10, 0, 0, n])
    }

    fn backend(n: u16) -> Backend {
        Backend { addr: Ip::v4([10, 1, 0, 1]), port: n }
    }

    proptest! {
        /// With room for all it is a map whose entries time out.
        #[test]
        fn is_a_map_with_timeouts(steps in prop::collection::vec((0u64..3, 0u8..4, 0u16..9, 0u32..50), 1..200)) {
            let (mut table, mut map) = (Affinity::new(64), HashMap::new());
            let mut now = Millis(u32::MAX - 300);
            for (service, c, b, later) in steps {
                now = now.after(later);
                let want = map.get(&(service, c)).filter(|(_, at)| now.since(*at) < 100).map(|(b, _)| *b);
                prop_assert_eq!(table.get(service, client(c), now, 100), want);
                if b < 3 {
                    table.put(service, client(c), backend(b), now);
                    map.insert((service, c), (backend(b), now));
                }
            }
        }
    }

    #[test]
    fn what_is_older_than_the_clock_can_tell_is_not_fresh() {
        let mut table = Affinity::new(1);
        for (day, kept) in [(0, true), (1, false), (25, false), (40, false), (49, false)] {
            let start = Millis(u32::MAX - 5);
            table.put(1, client(1), backend(1), start);
            let now = start.after(day * LONGEST_MS + 7_200_000);
            let want = kept.then_some(backend(1));
            assert_eq!(table.get(1, client(1), now, 10_800_000), want, "{day} days");
        }
        // Somebody else's question is enough for it to be forgotten before the clock comes round.
        table.put(1, client(1), backend(1), Millis(0));
        assert_eq!(table.get(1, client(2), Millis(2 * LONGEST_MS), 1000), None);
        assert_eq!(table.get(1, client(1), Millis(1), 1000), None);
    }

    #[test]
    fn the_one_idle_longest_gives_way() {
        let mut table = Affinity::new(1);
        for n in 0..9u8 {
            table.put(1, client(n), backend(n.into()), Millis(u32::from(n)));
        }
        assert_eq!(table.get(1, client(0), Millis(10), 1000), None);
        for n in 1..9u8 {
            assert_eq!(table.get(1, client(n), Millis(10), 1000), Some(backend(n.into())));
        }
    }
}
