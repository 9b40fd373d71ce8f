//! The flow table: lookup in batches against hashbrown and DashMap, one by one, missed, observed; insert; sweep.
//!
//! Only the calls under test are timed, batch by batch, by the time stamp counter: keys and hashes are made
//! just before, as `parse` would have left them in the cache. Criterion reports time a batch; the line
//! after it gives time stamp cycles and nanoseconds a key (median and quartiles over
//! batches: another process on the core spoils few of them). The other
//! tables are given the same hashes and values.
//!
//! `FLOW_BENCH_LARGE=1` adds 10 million entries (2 GB of memory).
#![forbid(unsafe_code)]

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fastpath::packet::{FlowKey, Ip, PortId, proto};
use fastpath::tables::flow::{FlowConfig, FlowTable, Hit, Inserted, Millis, NewFlow, Timeouts, Transform};
use fastpath::tables::policy::Rules;
use quanta::Clock;

const BATCH: usize = 256;
/// Batches that quartiles are taken from.
const SAMPLES: usize = 1 << 20;
/// The same as `BATCH`, to number flows with.
const BATCH_FLOWS: u32 = 256;
const SEED: u64 = 0x5bd1_e995_0f0e_1d2c;
const ACK: u8 = 0x10;

/// xorshift64*: the order in which keys come.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u32) -> u32 {
        u32::try_from(((self.next() >> 32) * u64::from(n)) >> 32).unwrap_or(0)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

/// Entry `n`: even numbers are original directions, odd ones their answers.
fn key(family: Family, n: u32) -> FlowKey {
    let flow = n / 2;
    let ip = |net: u8, host: u32| {
        let [a, b, c, d] = host.to_be_bytes();
        match family {
            Family::V4 => Ip::v4([net ^ a, b, c, d]),
            Family::V6 => Ip::v6([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]),
        }
    };
    let [.., low] = flow.to_be_bytes();
    let key = FlowKey {
        src: ip(10, flow >> 3),
        dst: ip(172, flow & 0xfff),
        sport: 32768 + u16::from(low & 7),
        dport: 443,
        proto: proto::TCP,
    };
    if n.is_multiple_of(2) { key } else { key.reversed() }
}

fn transform(key: &FlowKey) -> Transform {
    Transform {
        egress: PortId(key.sport),
        tunnel: 3,
        mtu: 1450,
        rules: Rules::from_bits(7),
        ..Transform::identity(key)
    }
}

fn new_flow(family: Family, flow: u32) -> NewFlow {
    let (original, reply) = (key(family, flow * 2), key(family, flow * 2 + 1));
    NewFlow {
        original,
        original_transform: transform(&original),
        reply,
        reply_transform: transform(&reply),
        generation: 1,
        tcp_flags: ACK,
    }
}

fn table(family: Family, entries: usize) -> FlowTable {
    let (v4, v6) = if family == Family::V4 { (entries, 0) } else { (0, entries) };
    FlowTable::new(&FlowConfig { entries_v4: v4, entries_v6: v6, timeouts: Timeouts::default(), seed: SEED })
}

fn filled(family: Family, entries: u32) -> FlowTable {
    let table = table(family, entries as usize);
    let mut displaced = 0;
    for flow in 0..entries / 2 {
        match table.insert(&new_flow(family, flow), Millis(0)) {
            Inserted::New(_, evicted) => displaced += evicted.iter().flatten().count(),
            other => panic!("flow {flow}: {other:?}"),
        }
    }
    assert!(displaced <= 10, "{displaced} of {entries} entries found no room");
    table
}

/// The keys of a batch, and their hashes, in arrays that stay in the cache.
struct Batch {
    family: Family,
    entries: u32,
    random: Random,
    keys: Vec<FlowKey>,
    hashes: Vec<u64>,
}

impl Batch {
    fn new(family: Family, entries: u32) -> Self {
        Self { family, entries, random: Random(SEED), keys: Vec::new(), hashes: Vec::new() }
    }

    /// Fills the batch with keys of entries `offset..offset + entries`, uniformly.
    fn fill(&mut self, offset: u32) {
        self.keys.clear();
        for _ in 0..BATCH {
            self.keys.push(key(self.family, offset + self.random.below(self.entries)));
        }
        self.hashes.clear();
        self.hashes.extend(self.keys.iter().map(|k| k.hash(SEED)));
    }
}

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
        sizes.push(("10M", 10_000_000));
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
            let batch = std::cell::RefCell::new(Batch::new(family, entries));
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

/// A key with its hash, for tables that want to hash it themselves.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hashed(FlowKey, u64);

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.1);
    }
}

#[derive(Default)]
struct Given(u64);

impl Hasher for Given {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// What the others hold for a flow, so that they deliver what our lookup does.
#[derive(Clone, Copy)]
struct Value {
    transform: Transform,
    generation: u32,
    seen: u32,
    reply: bool,
}

fn others(c: &mut Criterion) {
    for (name, entries) in sizes() {
        let value = |k: &FlowKey| Value { transform: transform(k), generation: 1, seen: 0, reply: false };
        let batch = std::cell::RefCell::new(Batch::new(Family::V4, entries));
        let fill = || batch.borrow_mut().fill(0);
        let mut out: Vec<Option<Value>> = Vec::with_capacity(BATCH);
        {
            let mut map = hashbrown::HashTable::with_capacity(entries as usize);
            for k in (0..entries).map(|n| key(Family::V4, n)) {
                map.insert_unique(k.hash(SEED), (k, value(&k)), |(k, _): &(FlowKey, Value)| k.hash(SEED));
            }
            bench(c, ("lookup", "hashbrown", name), BATCH, fill, || {
                let b = batch.borrow();
                out.clear();
                let keys = b.keys.iter().zip(&b.hashes);
                out.extend(keys.map(|(k, h)| map.find(*h, |(other, _)| other == k).map(|(_, v)| *v)));
                black_box(&out);
            });
        }
        let map = dashmap::DashMap::with_capacity_and_hasher(
            entries as usize,
            BuildHasherDefault::<Given>::default(),
        );
        for k in (0..entries).map(|n| key(Family::V4, n)) {
            map.insert(Hashed(k, k.hash(SEED)), value(&k));
        }
        bench(c, ("lookup", "dashmap", name), BATCH, fill, || {
            let b = batch.borrow();
            out.clear();
            out.extend(b.keys.iter().zip(&b.hashes).map(|(k, h)| map.get(&Hashed(*k, *h)).map(|v| *v)));
            black_box(&out);
        });
        let used = out
            .iter()
            .flatten()
            .map(|v| v.generation + v.seen + u32::from(v.reply) + v.transform.rules.bits());
        black_box(used.sum::<u32>());
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
            for flow in &next.borrow().1 {
                if let Inserted::New(at, _) = table.insert(flow, Millis(0)) {
                    alive.push_back(at);
                }
                if let Some(at) = alive.pop_front() {
                    black_box(table.remove(at));
                }
            }
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
            for flow in &next.borrow().1 {
                black_box(table.insert(flow, Millis(0)));
            }
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000));
    targets = lookup, others, churn, sweep
}
criterion_main!(benches);
