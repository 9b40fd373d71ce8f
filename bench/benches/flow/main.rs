//! The flow table: lookup in batches, one by one, missed, observed; install, evict, sweep. Then, in turn within one
//! run, against hashbrown, DashMap and DPDK's `rte_hash` ([`peers`]).
//!
//! Only the calls under test are timed, batch by batch, by the time stamp counter: keys and hashes are made
//! just before, as `parse` would have left them in the cache. Criterion reports time a batch; the line
//! after it gives time stamp cycles and nanoseconds a key (median and quartiles over
//! batches: another process on the core spoils few of them).
//!
//! `FLOW_BENCH_LARGE=1` adds 10 and 16 million entries (8 GB of memory).
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench that cannot go on says so by panicking; figures are small"
)]

mod load;
mod peers;
mod results;
mod rte;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use fastpath::tables::flow::{Claim, FlowTable, Hit, Inserted, Millis, NewFlow, Plan};
use quanta::Clock;

use load::{ACK, BATCH, Batch, Family, filled, new_flow, table};

/// Batches that quartiles are taken from.
const SAMPLES: usize = 1 << 20;
/// The same as `BATCH`, to number flows with.
const BATCH_FLOWS: u32 = 256;

/// Runs `timed` once per iteration, after `prepare` untimed; prints cycles and time for each of `per` items.
fn bench<P, T>(
    c: &mut Criterion,
    (group, title, size): (&str, &str, &str),
    per: usize,
    mut prepare: P,
    mut timed: T,
) where
    P: FnMut(),
    T: FnMut(),
{
    let clock = Clock::new();
    let mut samples = Vec::with_capacity(SAMPLES);
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(per as u64));
    group.bench_function(BenchmarkId::new(title, size), |b| {
        b.iter_custom(|iterations| {
            let mut cycles = 0;
            for _ in 0..iterations {
                prepare();
                let start = clock.raw();
                timed();
                let took = clock.raw() - start;
                cycles += took;
                if samples.len() < SAMPLES {
                    samples.push(took);
                }
            }
            Duration::from_nanos(clock.delta_as_nanos(0, cycles))
        });
    });
    group.finish();
    if samples.is_empty() {
        return; // not selected
    }
    samples.sort_unstable();
    let at = |part: usize| samples[samples.len() * part / 4] as f64 / per as f64;
    let ns = clock.delta_as_nanos(0, 1_000_000) as f64 / 1e6;
    println!(
        "{title}/{size}: {:.1} TSC cycles ({:.1} - {:.1}), {:.1} ns, {:.1} M/s a key\n",
        at(2),
        at(1),
        at(3),
        at(2) * ns,
        1e3 / (at(2) * ns)
    );
}

fn sizes() -> Vec<(&'static str, u32)> {
    let mut sizes = vec![("1k", 1 << 10), ("64k", 1 << 16), ("1M", 1 << 20)];
    if std::env::var_os("FLOW_BENCH_LARGE").is_some() {
        sizes.push(("10M", 10 << 20));
    }
    sizes
}

fn lookup(c: &mut Criterion) {
    let now = Millis(1);
    for (name, entries) in sizes() {
        for (family, title) in [(Family::V4, "fastpath"), (Family::V6, "fastpath-v6")] {
            if family == Family::V6 && entries > 1 << 20 {
                continue;
            }
            let table = filled(family, entries);
            let batch = std::cell::RefCell::new(Batch::new(family, entries, false));
            let mut out: Vec<Option<Hit>> = Vec::with_capacity(BATCH);
            let fill = || batch.borrow_mut().fill(0);
            fill();
            table.lookup_batch(&batch.borrow().keys, &batch.borrow().hashes, now, &mut out);
            assert!(out.iter().flatten().count() + 1 >= BATCH, "the keys are there");
            bench(c, ("lookup", title, name), BATCH, fill, || {
                let b = batch.borrow();
                table.lookup_batch(black_box(&b.keys), &b.hashes, now, &mut out);
                black_box(&out);
            });
            if family == Family::V6 {
                continue;
            }
            bench(c, ("lookup", "fastpath-one-by-one", name), BATCH, fill, || {
                let b = batch.borrow();
                out.clear();
                out.extend(b.keys.iter().zip(&b.hashes).map(|(k, h)| table.lookup(k, *h, now)));
                black_box(&out);
            });
            let miss = || batch.borrow_mut().fill(1 << 28);
            bench(c, ("lookup", "fastpath-miss", name), BATCH, miss, || {
                let b = batch.borrow();
                table.lookup_batch(black_box(&b.keys), &b.hashes, now, &mut out);
                black_box(&out);
            });
            let clock = std::cell::Cell::new(0u32);
            bench(c, ("lookup", "fastpath-observe", name), BATCH, fill, || {
                let b = batch.borrow();
                // One batch in 16 µs, as at 16 M packets a second.
                clock.set(clock.get() + 1);
                let now = Millis(clock.get() / 64);
                table.lookup_batch(black_box(&b.keys), &b.hashes, now, &mut out);
                for hit in out.iter().flatten() {
                    table.observe(hit, ACK, now);
                }
                black_box(&out);
            });
        }
    }
}

/// Installs flows as `route` does, each planned and fetched some flows before.
fn install(table: &FlowTable, flows: &[NewFlow], mut each: impl FnMut(Inserted)) {
    const AHEAD: usize = 4;
    let mut plans: Vec<Plan> = Vec::with_capacity(flows.len());
    for turn in 0..flows.len() + 3 * AHEAD {
        if let Some(flow) = flows.get(turn) {
            plans.push(table.plan(&flow.original, &flow.reply));
        }
        if let Some(plan) = turn.checked_sub(AHEAD).and_then(|n| plans.get_mut(n)) {
            table.fetch_slots(plan, Millis(0));
        }
        if let Some(plan) = turn.checked_sub(2 * AHEAD).and_then(|n| plans.get(n)) {
            table.fetch_partners(plan);
        }
        if let Some(n) = turn.checked_sub(3 * AHEAD) {
            each(table.insert_planned(&flows[n], Claim::Free, &plans[n], Millis(0)));
        }
    }
}

fn churn(c: &mut Criterion) {
    for (name, entries) in sizes() {
        // Half full: a flow is installed, and the one installed longest ago removed.
        let table = table(Family::V4, entries as usize);
        let flows = entries / 4;
        let mut alive: std::collections::VecDeque<_> = (0..flows)
            .map(|n| match table.insert(&new_flow(Family::V4, n), Millis(0)) {
                Inserted::New(at, _) => at,
                other => panic!("flow {n}: {other:?}"),
            })
            .collect();
        let next = std::cell::RefCell::new((flows, Vec::new()));
        let prepare = || {
            let (at, batch) = &mut *next.borrow_mut();
            batch.clear();
            batch.extend((0..BATCH_FLOWS).map(|i| new_flow(Family::V4, *at + i)));
            *at = (*at + BATCH_FLOWS) % (1 << 27);
        };
        bench(c, ("insert", "install-and-remove", name), BATCH, prepare, || {
            install(&table, &next.borrow().1, |inserted| {
                if let Inserted::New(at, _) = inserted {
                    alive.push_back(at);
                }
                if let Some(at) = alive.pop_front() {
                    black_box(table.remove(at));
                }
            });
        });
        // Full of half-open flows: each new one evicts.
        let flood = |n| NewFlow { tcp_flags: 2, ..new_flow(Family::V4, n) };
        for n in 0..entries {
            black_box(table.insert(&flood((1 << 28) + n), Millis(0)));
        }
        let prepare = || {
            let (at, batch) = &mut *next.borrow_mut();
            batch.clear();
            batch.extend((0..BATCH_FLOWS).map(|i| flood((1 << 29) + *at + i)));
            *at = (*at + BATCH_FLOWS) % (1 << 27);
        };
        bench(c, ("insert", "evict", name), BATCH, prepare, || {
            install(&table, &next.borrow().1, |inserted| {
                black_box(inserted);
            });
        });
    }
}

fn sweep(c: &mut Criterion) {
    for (name, entries) in sizes() {
        let table = filled(Family::V4, entries);
        bench(
            c,
            ("sweep", "nothing-due", name),
            BATCH,
            || {},
            || {
                black_box(table.sweep(0, 1, Millis(1), BATCH));
            },
        );
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    // "peers" alone needs none of these tables.
    if std::env::args().all(|a| a != "peers") {
        lookup(&mut criterion);
        churn(&mut criterion);
        sweep(&mut criterion);
        criterion.final_summary();
    }
    peers::run();
}
