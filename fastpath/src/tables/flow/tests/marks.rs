//! Marks and last-seen times that are written late, lost or undone: what they must never do.

use super::threads::Random;
use super::*;
use crate::tables::flow::state::{Mark, OLD};
use crate::tables::flow::table::lane_of;
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;

const T: Millis = Millis(7_000);
/// A tick of marks.
const TICK_MS: u32 = 4096;

/// Follows packets as a vector does, those too whose tag another entry has; whether all found their flow, with the values
/// of generation 1.
fn follow(table: &FlowTable, keys: &[FlowKey], now: Millis) -> bool {
    let hashes: Vec<_> = keys.iter().map(|k| k.hash(table.seed())).collect();
    let is_whole = |n: usize, hit: &Hit| hit.transform == transform(&keys[n], 1);
    let (mut followed, mut others) = (0, 0);
    table.follow_each(
        keys,
        &hashes,
        now,
        |n, hit| {
            followed += usize::from(is_whole(n, hit));
            Some(0)
        },
        |n, hit| {
            if let Some(hit) = hit {
                others += usize::from(is_whole(n, &hit));
                table.observe(&hit, 0, now);
            }
        },
    );
    followed + others == keys.len()
}

/// Sweeps the whole table, once in each tick from `from` on in which a mark, whatever it says, gets old.
fn sweep_all(table: &FlowTable, from: Millis) {
    for n in 0..=u32::from(OLD) + 1 {
        table.sweep(0, 1, from.after(n * TICK_MS), usize::MAX);
    }
}

/// A worker read the entry of a flow and is held up before it writes when that was seen; meanwhile the flow goes and
/// another one takes its slots: all orders of the steps of both.
#[test]
fn a_late_last_seen_time_touches_no_other_flow() {
    for v6 in [false, true] {
        for step in 0..4 {
            let table = table(0, 0);
            let (old, new) = (key(v6, proto::UDP, 1), key(v6, proto::UDP, 2));
            let at = put(&table, &plain(old, 1, 0), T);
            let later = T.after(2000);
            let hot = || {
                if v6 { table.v6.slot(at.slot).unwrap().hot() } else { table.v4.slot(at.slot).unwrap().hot() }
            };
            let see = |read| {
                let now = T.after(1500);
                if v6 {
                    table.v6.slot(at.slot).unwrap().see(read, now, false)
                } else {
                    table.v4.slot(at.slot).unwrap().see(read, now, false)
                }
            };
            let read = hot();
            // What the other worker has done when this one goes on.
            if step == 1 {
                assert!(follow(&table, &[old], later));
            }
            if step >= 2 {
                assert!(table.remove(at));
            }
            if step == 3 {
                for n in 0.. {
                    // Until it lies in the very slot.
                    let k = if n == 0 { new } else { key(v6, proto::UDP, 2 + n) };
                    let now = put(&table, &plain(k, 2, 0), later);
                    if now.slot == at.slot {
                        assert_eq!(table.pair(now).unwrap().original, k);
                        break;
                    }
                    assert!(n < 1000);
                    assert!(table.remove(now));
                }
            }
            let before = hot();
            assert_eq!(see(read), step == 0 || step == 2, "step {step}");
            if step == 1 || step == 3 {
                assert_eq!(hot(), before, "step {step}");
                assert_eq!(hot().last_seen(), later);
            }
            if step == 2 {
                // Written into an entry that is not in use: it stays so.
                assert_eq!((table.pair(at), get(&table, &old, T)), (None, None));
                assert!(table.is_empty());
            }
        }
    }
}

/// Whatever a mark says, and however often it is made wrong again until the flow ends: a live flow is found, stays, and
/// is not evicted while it is protected; one that has ended is freed by the sweep.
#[test]
fn no_mark_decides_anything() {
    for bits in (0..512).step_by(if cfg!(miri) { 73 } else { 1 }) {
        let mark = Mark::from_bits(bits);
        let table = table(0, 0);
        // Both buckets, full of established flows.
        let keys: Vec<_> = (0..7).map(|n| key(false, proto::UDP, n)).collect();
        let flows: Vec<_> = keys.iter().map(|k| put(&table, &plain(*k, 1, 0), T)).collect();
        let spoil = || {
            for at in &flows {
                for slot in [at.slot, table.v4.slot(at.slot).unwrap().partner()] {
                    let (bucket, lane) = lane_of(slot);
                    table.v4.buckets.hint_mark(bucket, lane, mark);
                }
            }
        };
        for k in &keys {
            assert!(follow(&table, &[k.reversed()], T));
        }
        // New flows want their slots while they are protected.
        for n in 0..20 {
            spoil();
            let new = plain(key(false, proto::UDP, 1000 + n), 1, 0);
            assert_eq!(table.insert(&new, T.after(8000)), Inserted::Full, "mark {bits}");
            spoil();
            table.sweep(0, 1, T.after(8000), usize::MAX);
        }
        assert_eq!(check(&table, T.after(8000)), flows.len(), "mark {bits}");
        for k in &keys {
            assert!(follow(&table, &[*k], T.after(8100)), "mark {bits}");
        }
        spoil();
        // Past the timeout no packet makes a mark any more.
        let over = T.after(8100 + 60_000);
        assert_eq!(check(&table, over), 0);
        sweep_all(&table, over);
        assert_eq!(table.len(), 0, "mark {bits}");
    }
}

/// Workers follow flows that share buckets, others install, remove, evict and sweep there. What is followed all the time
/// stays, as do its values, and in the end every slot is freed.
#[test]
fn workers_that_mark_one_bucket_lose_no_flow_and_no_slot() {
    for v6 in [false, true] {
        let table = if cfg!(miri) { table(8, 8) } else { table(48, 48) };
        let flows: Vec<_> = (0..if cfg!(miri) { 2 } else { 12 }).map(|n| key(v6, proto::UDP, n)).collect();
        for k in &flows {
            put(&table, &plain(*k, 1, 0), T);
            assert!(packet(&table, &k.reversed(), 0, T).is_some());
        }
        let (clock, installed, lost) = (AtomicU32::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let rounds = if cfg!(miri) { 12 } else { 1_000 };
        // All are in the same round, 3 s after the one before: past the grain, mostly in another tick, and never as long
        // as an established flow is protected.
        let step = Barrier::new(4);
        std::thread::scope(|s| {
            let (table, flows, clock, installed, lost, step) =
                (&table, &flows, &clock, &installed, &lost, &step);
            for answers in [false, true] {
                s.spawn(move || {
                    let keys: Vec<_> =
                        flows.iter().map(|k| if answers { k.reversed() } else { *k }).collect();
                    for round in 0..rounds {
                        if !follow(table, &keys, T.after(round * 3000)) {
                            lost.fetch_add(1, Ordering::Relaxed);
                        }
                        clock.fetch_max(round, Ordering::Relaxed);
                        step.wait();
                    }
                });
            }
            for thread in 1..=2u64 {
                s.spawn(move || {
                    let mut random = Random(thread * 0x9e37_79b9);
                    for _ in 0..rounds {
                        for _ in 0..8 {
                            let now = T.after(clock.load(Ordering::Relaxed) * 3000);
                            let k = key(v6, proto::UDP, 1000 + random.below(200));
                            match random.below(4) {
                                0 => {
                                    table.sweep(0, 1, now, usize::MAX);
                                }
                                1 => {
                                    if let Some(hit) = get(table, &k, now) {
                                        let _ = table.remove(hit.at);
                                    }
                                }
                                _ => {
                                    if let Inserted::New(..) = table.insert(&plain(k, 1, 0), now) {
                                        installed.fetch_add(1, Ordering::Relaxed);
                                    }
                                }
                            }
                        }
                        step.wait();
                    }
                });
            }
        });
        assert_eq!(lost.into_inner(), 0, "vectors in which a flow was lost");
        assert!(installed.into_inner() > 0);
        let end = T.after(rounds * 3000);
        assert!(check(&table, end) >= flows.len());
        sweep_all(&table, end.after(120_000));
        assert_eq!(table.len(), 0, "every slot is free again");
    }
}
