//! The flow table against hashbrown, DashMap and `rte_hash`: all tables in memory at once, and asked in turn.
//!
//! Each round asks every contender for some milliseconds, A B C A B C; a ratio is taken round by round. Rows go into
//! `bench/results/flow.json`, in place of those of goal 3.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::hint::black_box;

use fastpath::packet::FlowKey;
use fastpath::tables::flow::{Hit, Millis, Transform};
use quanta::Clock;
use serde_json::json;

use crate::load::{ACK, BATCH, Batch, Family, SEED, filled, key, transform};
use crate::results;
use crate::rte::{Mode, Program, RteHash};

const ROUNDS: usize = 5;
/// Entries of IPv6 at most: they take twice the memory.
const IPV6: u32 = 1 << 20;
const MILLIS: u32 = 60;

/// One contender: median of time stamp cycles a key, uniform or Zipf, over some milliseconds.
type Contender<'a> = (&'static str, Box<dyn FnMut(bool, u32) -> f64 + 'a>);

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

/// What the others hold for a flow: as much as our entries do. Every contender uses what `rewrite` needs
/// of it, in place ([`used`]).
#[derive(Clone, Copy)]
#[expect(dead_code, reason = "as much memory as a user would take")]
struct Value {
    transform: Transform,
    generation: u32,
    seen: u32,
    reply: bool,
}

/// Uses all that a packet's rewriting needs.
fn used(t: &Transform) -> u128 {
    let ports = u128::from(t.sport) << 48 | u128::from(t.dport) << 32 | u128::from(t.egress.0) << 16;
    let way = u128::from(t.tunnel) << 48 | u128::from(t.next_hop) << 32 | u128::from(t.mtu) << 16;
    let deltas = u128::from(t.l3_delta) << 16 | u128::from(t.l4_delta) | u128::from(t.bits) << 32;
    t.src.bits() ^ t.dst.bits() ^ ports ^ way << 64 ^ deltas << 64
}

fn value(k: &FlowKey) -> Value {
    Value { transform: transform(k), generation: 1, seen: 0, reply: false }
}

/// Runs `timed` on batches of keys for `millis` milliseconds; median of cycles a key.
fn median(clock: &Clock, batch: &mut Batch, millis: u32, mut timed: impl FnMut(&Batch)) -> f64 {
    let mut samples = Vec::with_capacity(1 << 16);
    let start = clock.now();
    while start.elapsed().as_millis() < u128::from(millis) {
        batch.fill(0);
        let start = clock.raw();
        timed(batch);
        samples.push(clock.raw() - start);
    }
    samples.sort_unstable();
    samples[samples.len() / 2] as f64 / BATCH as f64
}

/// Cycles a key by contender and round.
type Figures = Vec<(&'static str, Vec<f64>)>;

/// Everything of one size in turn, uniform and Zipf.
fn compare(clock: &Clock, rte: Option<&Program>, entries: u32) -> [Figures; 2] {
    let now = Millis(1);
    let (v4, v6) = (filled(Family::V4, entries), filled(Family::V6, entries.min(IPV6)));
    let (mut out, mut observed): (Vec<Option<Hit>>, Vec<Option<Hit>>) = (Vec::new(), Vec::new());
    let batch = |family, entries| [false, true].map(|zipf| Batch::new(family, entries, zipf));
    let (mut b4, mut b6) = (batch(Family::V4, entries), batch(Family::V6, entries.min(IPV6)));
    let mut tick = 0u32;
    let mut reading = batch(Family::V4, entries);
    let mut observing = batch(Family::V4, entries);
    let cells: Vec<_> = rte.map_or_else(Vec::new, |program| {
        let make = |(key_len, lock_free)| {
            let entries = if key_len == 16 { entries } else { entries.min(IPV6) };
            RteHash::new(program, entries, key_len, lock_free)
        };
        [(16, false), (16, true), (40, false)].into_iter().map(make).map(RefCell::new).collect()
    });
    let mut contenders: Vec<Contender<'_>> = vec![(
        "fastpath, copied out",
        Box::new(|zipf, millis| {
            median(clock, &mut b4[usize::from(zipf)], millis, |b| {
                v4.lookup_batch(black_box(&b.keys), &b.hashes, now, &mut out);
                black_box(&out);
            })
        }),
    )];
    contenders.push((
        "fastpath",
        Box::new(|zipf, millis| {
            median(clock, &mut reading[usize::from(zipf)], millis, |b| {
                let mut sum = 0;
                v4.lookup_each(black_box(&b.keys), &b.hashes, now, |_, hit| {
                    sum ^= hit.map_or(0, |hit| used(&hit.transform));
                });
                black_box(sum);
            })
        }),
    ));
    contenders.push((
        "fastpath, copied out, with observe",
        Box::new(|zipf, millis| {
            median(clock, &mut observing[usize::from(zipf)], millis, |b| {
                // One batch in 16 µs, as at 16 M packets a second.
                tick += 1;
                let now = Millis(tick / 64);
                v4.lookup_batch(black_box(&b.keys), &b.hashes, now, &mut observed);
                for hit in observed.iter().flatten() {
                    v4.observe(hit, ACK, now);
                }
                black_box(&observed);
            })
        }),
    ));
    contenders.push((
        "fastpath IPv6",
        Box::new(|zipf, millis| {
            median(clock, &mut b6[usize::from(zipf)], millis, |b| {
                let mut sum = 0;
                v6.lookup_each(black_box(&b.keys), &b.hashes, now, |_, hit| {
                    sum ^= hit.map_or(0, |hit| used(&hit.transform));
                });
                black_box(sum);
            })
        }),
    ));
    let mut for_map = batch(Family::V4, entries);
    let mut map = hashbrown::HashTable::with_capacity(entries as usize);
    for k in (0..entries).map(|n| key(Family::V4, n)) {
        map.insert_unique(k.hash(SEED), (k, value(&k)), |(k, _): &(FlowKey, Value)| k.hash(SEED));
    }
    contenders.push((
        "hashbrown",
        Box::new(move |zipf, millis| {
            median(clock, &mut for_map[usize::from(zipf)], millis, |b| {
                let mut sum = 0;
                for (k, h) in b.keys.iter().zip(&b.hashes) {
                    sum +=
                        map.find(*h, |(other, _)| other == k).map_or(0, |(_, v)| u32::from(v.transform.mtu));
                }
                black_box(sum);
            })
        }),
    ));
    let mut for_dash = batch(Family::V4, entries);
    let hasher = BuildHasherDefault::<Given>::default();
    let dash = dashmap::DashMap::with_capacity_and_hasher(entries as usize, hasher);
    for k in (0..entries).map(|n| key(Family::V4, n)) {
        dash.insert(Hashed(k, k.hash(SEED)), value(&k));
    }
    contenders.push((
        "DashMap",
        Box::new(move |zipf, millis| {
            median(clock, &mut for_dash[usize::from(zipf)], millis, |b| {
                let mut sum = 0;
                for (k, h) in b.keys.iter().zip(&b.hashes) {
                    sum ^= dash.get(&Hashed(*k, *h)).map_or(0, |v| used(&v.transform));
                }
                black_box(sum);
            })
        }),
    ));
    let names = [
        ["rte_hash, hashing", "rte_hash, key alone", "rte_hash"],
        ["rte_hash LF, hashing", "rte_hash LF, key alone", "rte_hash LF"],
        ["rte_hash IPv6, hashing", "rte_hash IPv6, key alone", "rte_hash IPv6"],
    ];
    for (cell, names) in cells.iter().zip(names) {
        if let Err(why) = &*cell.borrow() {
            println!("skipped: {}: {why}", names[2]);
            continue;
        }
        for (mode, name) in [Mode::Hashing, Mode::Hashed, Mode::WithValue].into_iter().zip(names) {
            let run = move |zipf, millis| {
                cell.borrow_mut().as_mut().map_or(f64::NAN, |t| t.run(zipf, mode, millis))
            };
            contenders.push((name, Box::new(run)));
        }
        if let Ok(table) = &*cell.borrow()
            && !table.huge
        {
            println!("{}: on pages of 4 KiB, huge ones could not be had", names[2]);
        }
    }
    [false, true].map(|zipf| {
        let mut figures: Figures = contenders.iter().map(|(name, _)| (*name, Vec::new())).collect();
        for round in 0..=ROUNDS {
            for ((_, run), (_, figures)) in contenders.iter_mut().zip(&mut figures) {
                let cycles = run(zipf, MILLIS);
                // The first round warms up.
                if round > 0 {
                    figures.push(cycles);
                }
            }
        }
        figures
    })
}

fn middle(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Rows of the result: our rate against the goal's, and ratios to each peer.
fn rows(size: &str, ns: f64, figures: &Figures) -> Vec<serde_json::Value> {
    let rate = |cycles: f64| (1e4 / (cycles * ns)).round() / 10.0;
    let ours = |name: &str| {
        let own = if name.contains("IPv6") { "fastpath IPv6" } else { "fastpath" };
        figures.iter().find(|(n, _)| *n == own).map(|(_, f)| f)
    };
    let mut rows = Vec::new();
    for (name, theirs) in figures {
        let Some(own) = ours(name) else { continue };
        let (unit, title) = ("M lookups/s a core", format!("lookup in batches, {size}"));
        if *name == "fastpath" {
            let goal = match size {
                "1M uniform" => Some(60.0),
                "10M uniform" => Some(40.0),
                _ => None,
            };
            let Some(goal) = goal else { continue };
            let ours = rate(middle(own));
            rows.push(json!({
                "goal": 3, "name": title, "unit": unit, "ours": ours, "peer": null, "theirs": null, "ratio": null,
                "goal_value": goal, "met": ours >= goal, "runs": own.iter().map(|c| rate(*c)).collect::<Vec<_>>(),
            }));
        } else if !name.starts_with("fastpath") {
            let ratios: Vec<f64> = own.iter().zip(theirs).map(|(o, t)| t / o).collect();
            let ratio = (middle(&ratios) * 100.0).round() / 100.0;
            let goal = if name.starts_with("rte_hash") { 1.5 } else { 3.0 };
            let runs: Vec<_> = own
                .iter()
                .zip(theirs)
                .map(|(o, t)| json!({ "ours": rate(*o), "theirs": rate(*t) }))
                .collect();
            rows.push(json!({
                "goal": 3, "name": title, "unit": unit, "ours": rate(middle(own)), "peer": name,
                "theirs": rate(middle(theirs)), "ratio": ratio, "goal_value": goal, "met": ratio >= goal, "runs": runs,
            }));
        }
    }
    rows
}

/// The comparison; nothing when the command line asks for another bench.
pub(crate) fn run() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let other = args.iter().any(|a| !a.starts_with('-') && a != "peers" && a.parse::<f64>().is_err());
    if other || !args.iter().any(|a| a == "--bench") {
        return;
    }
    let clock = Clock::new();
    let ns = clock.delta_as_nanos(0, 1_000_000) as f64 / 1e6;
    let rte = Program::compile();
    if let Err(why) = &rte {
        println!("skipped: rte_hash: {why}");
    }
    let large = std::env::var("FLOW_BENCH_LARGE");
    let mut sizes = vec![("1k", 1 << 10), ("64k", 1 << 16), ("1M", 1 << 20)];
    match large.as_deref() {
        Ok("only") => sizes = vec![("10M", 10 << 20)],
        Ok(_) => sizes.push(("10M", 10 << 20)),
        Err(_) => {}
    }
    let (mut table, mut all): (Figures, Vec<serde_json::Value>) = Default::default();
    let mut head = Vec::new();
    for (size, entries) in sizes {
        for (figures, kind) in
            compare(&clock, rte.as_ref().ok(), entries).into_iter().zip(["uniform", "Zipf"])
        {
            let case = format!("{size} {kind}");
            all.extend(rows(&case, ns, &figures));
            head.push(case);
            for (name, cycles) in figures {
                match table.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, row)) => row.push(middle(&cycles)),
                    None => table.push((name, vec![middle(&cycles)])),
                }
            }
        }
    }
    println!("\nTime stamp cycles a key ({:.2} GHz), medians of {ROUNDS} rounds in turn", 1.0 / ns);
    println!("| Lookup | {} |", head.join(" | "));
    println!("|---|{}", "---|".repeat(head.len()));
    for (name, cycles) in table {
        let cells: Vec<_> = cycles.iter().map(|c| format!("{c:.0}")).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
    results::write(3, all);
}
