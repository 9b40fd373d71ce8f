//! Several workers at once. Also run under Miri and the thread sanitizer.

use super::*;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

const T: Millis = Millis(7_000);

/// xorshift: each thread its own order.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 32) % u64::from(n)).unwrap()
    }
}

fn rounds(many: u32) -> u32 {
    if cfg!(miri) { 30 } else { many }
}

/// A hit's values must be those of one generation of its key.
fn assert_whole(key: &FlowKey, hit: &Hit) {
    assert_eq!(hit.transform, transform(key, hit.generation), "torn: {hit:?}");
}

#[test]
fn the_same_flows_inserted_at_once_are_there_once() {
    let flows = rounds(2_000);
    for v6 in [false, true] {
        let table = if cfg!(miri) { table(80, 80) } else { table(1 << 13, 1 << 13) };
        let (start, installed) = (Barrier::new(3), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for thread in 0..3u32 {
                let (table, start, installed) = (&table, &start, &installed);
                s.spawn(move || {
                    start.wait();
                    for n in 0..flows {
                        let k = key(v6, proto::TCP, n);
                        // One thread sees the answers first.
                        let new = plain(if thread == 1 { k.reversed() } else { k }, thread, ACK);
                        loop {
                            let inserted = if thread == 2 {
                                insert_in_stages(table, &new, T)
                            } else {
                                table.insert(&new, T)
                            };
                            match inserted {
                                Inserted::New(_, evicted) => {
                                    assert_eq!(evicted, [None, None]);
                                    installed.fetch_add(1, Ordering::Relaxed);
                                }
                                Inserted::Exists(hit) => assert_whole(&new.original, &hit),
                                Inserted::Busy => {
                                    std::thread::yield_now();
                                    continue;
                                }
                                other => panic!("{other:?}"),
                            }
                            break;
                        }
                    }
                });
            }
        });
        assert_eq!(installed.load(Ordering::Relaxed), flows as usize);
        assert_eq!(table.len(), 2 * flows as usize);
        assert_eq!(check(&table, T), flows as usize);
    }
}

#[test]
fn no_reader_sees_a_torn_entry() {
    for v6 in [false, true] {
        // Fewer slots than keys: entries are reused all the time.
        let table = table(16, 16);
        let keys: Vec<_> =
            (0..24).map(|n| key(v6, if n % 2 == 0 { proto::UDP } else { proto::TCP }, n)).collect();
        let (stop, hits) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|s| {
            let writers: Vec<_> = (1..=2u64)
                .map(|thread| {
                    let (table, keys) = (&table, &keys);
                    s.spawn(move || {
                        let mut random = Random(thread * 0x9e37_79b9);
                        for generation in 0..rounds(60_000) {
                            let k = keys[random.below(24) as usize];
                            let now = T.after(generation / 64);
                            match random.below(8) {
                                0..4 => {
                                    if let Inserted::Exists(hit) =
                                        table.insert(&plain(k, generation, SYN), now)
                                    {
                                        assert_whole(&k, &hit);
                                        let [o, r] = [k, k.reversed()].map(|k| transform(&k, generation));
                                        let _ = table.refresh(hit.at, o, r, generation);
                                    }
                                }
                                4 => {
                                    if let Some(hit) = get(table, &k, now) {
                                        let _ = table.remove(hit.at);
                                    }
                                }
                                5 => {
                                    table.sweep(usize::try_from(thread).unwrap(), 2, now, 4);
                                }
                                n => {
                                    let k = if n == 6 { k } else { k.reversed() };
                                    if let Some(hit) = get(table, &k, now) {
                                        assert_whole(&k, &hit);
                                        table.observe(
                                            &hit,
                                            [ACK, SYN, FIN | ACK, RST][random.below(4) as usize],
                                            now,
                                        );
                                    }
                                }
                            }
                        }
                    })
                })
                .collect();
            let readers = [false, true].map(|batched| {
                let (table, keys, stop, hits) = (&table, &keys, &stop, &hits);
                s.spawn(move || {
                    let hashes: Vec<_> = keys.iter().map(|k| k.hash(table.seed())).collect();
                    let (mut out, mut n) = (Vec::new(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        if batched {
                            table.lookup_batch(keys, &hashes, T, &mut out);
                        } else {
                            out.clear();
                            out.extend(keys.iter().map(|k| get(table, k, T)));
                            table.for_each(T, |pair| {
                                assert_eq!(
                                    pair.original_transform,
                                    transform(&pair.original, pair.generation)
                                );
                                assert_eq!(pair.reply_transform, transform(&pair.reply, pair.generation));
                                assert_eq!(pair.reply, pair.original.reversed());
                            });
                        }
                        for (k, hit) in keys.iter().zip(&out) {
                            if let Some(hit) = hit {
                                assert_whole(k, hit);
                                n += 1;
                            }
                        }
                        std::thread::yield_now();
                    }
                    hits.fetch_add(n, Ordering::Relaxed);
                })
            });
            for writer in writers {
                writer.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().unwrap();
            }
        });
        assert!(hits.load(Ordering::Relaxed) > 0);
        check(&table, T);
        // Nothing is left claimed: all of it can be removed.
        let mut all = Vec::new();
        table.for_each(T, |pair| all.push(pair.at));
        assert!(all.into_iter().all(|at| table.remove(at)));
        let later = T.after(10_000_000);
        table.sweep(0, 1, later, usize::MAX);
        assert_eq!(table.len(), 0, "both halves of every flow are gone");
    }
}

#[test]
fn one_entry_rewritten_all_the_time_is_read_whole() {
    for v6 in [false, true] {
        let table = table(0, 0);
        let (k, other) = (key(v6, proto::UDP, 1), key(v6, proto::UDP, 2));
        // Made beforehand, so that both sides do nothing but write and read.
        let flows: Vec<_> = (0..32).map(|generation| plain(k, generation, 0)).collect();
        let others: Vec<_> = (0..32).map(|generation| plain(other, generation, 0)).collect();
        let (stop, ready, reads) = (AtomicBool::new(false), Barrier::new(2), AtomicU32::new(0));
        let hits = std::thread::scope(|s| {
            let (table, flows, stop, ready, reads) = (&table, &flows, &stop, &ready, &reads);
            let reader = s.spawn(move || {
                ready.wait();
                let (mut hits, mut generations) = (0u32, 0u32);
                while !stop.load(Ordering::Relaxed) {
                    reads.store(hits, Ordering::Relaxed);
                    for (key, reply) in [(&k, false), (&flows[0].reply, true)] {
                        if let Some(hit) = get(table, key, T) {
                            let new = &flows[(hit.generation % 32) as usize];
                            let want = if reply { &new.reply_transform } else { &new.original_transform };
                            assert_eq!((hit.transform, hit.reply), (*want, reply));
                            hits += 1;
                            generations |= 1 << hit.generation;
                        }
                    }
                }
                (hits, generations)
            });
            ready.wait();
            let mut at = put(table, &flows[0], T);
            // Until the reader has had its turns, however late they come.
            let (least, wanted) = (rounds(200_000) as usize, if cfg!(miri) { 0 } else { 1000 });
            let mut written = 0..;
            while let Some(round) = written.next()
                && (round < least || reads.load(Ordering::Relaxed) < wanted && !reader.is_finished())
            {
                let new = &flows[round % 32];
                if round % 8 == 7 {
                    // The slots hold another flow in between.
                    assert!(table.remove(at));
                    let between = put(table, &others[round % 32], T);
                    assert!(table.remove(between));
                    at = put(table, new, T);
                } else {
                    assert!(table.refresh(at, new.original_transform, new.reply_transform, new.generation));
                }
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert!(cfg!(miri) || hits.0 >= 1000 && hits.1 != 0, "{hits:?}");
    }
}

#[test]
fn both_directions_move_one_state() {
    // Two workers close each direction; whatever the interleaving, both entries end with the same state.
    let table = table(64, 0);
    for n in 0..rounds(3_000) {
        let new = plain(tcp(n % 100), n, SYN);
        let at = put(&table, &new, T);
        packet(&table, &new.reply, SYN | ACK, T).unwrap();
        packet(&table, &new.original, ACK, T).unwrap();
        let start = Barrier::new(2);
        std::thread::scope(|s| {
            for k in [new.original, new.reply] {
                let (table, start) = (&table, &start);
                s.spawn(move || {
                    start.wait();
                    for flags in [ACK, FIN | ACK, ACK] {
                        packet(table, &k, flags, T.after(200)).unwrap();
                    }
                });
            }
        });
        for k in [new.original, new.reply] {
            assert_eq!(get(&table, &k, T).unwrap().state, FlowState::Closing);
        }
        assert!(table.remove(at));
    }
}
