//! The whole chain in memory, and each node of it: the real worker and graph over memory ports.
//!
//! Only [`Worker::pass`](fastpath::worker::Worker::pass) is timed: one call takes a vector of packets from receive to transmit. Frames are put on
//! the wires just before and taken off just after, untimed. Criterion reports time a packet; the table after it
//! gives each node's own counters in time stamp cycles a packet: median and quartiles over vectors, so that what
//! another process on the core spoils is left out. `chain` is the whole pass: all nodes, and the loop around
//! them; `graph` the nodes without `rx` and `tx`, which are a memory port's here. A pod sends at most 64 frames a pass: four pods make vectors of 256, the uplink alone one of 64. The last
//! table, in Markdown, has the medians of all cases.
//!
//! `FASTPATH_BENCH=full` measures all axes instead of the quick selection. The goals of the design are written to
//! `bench/results/graph.json`. A pass that calls the allocator fails the run.
#![deny(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on says so by panicking")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts of a bench fit"
)]

#[path = "../../../fastpath/tests/support/counting.rs"]
mod counting;
mod goals;
mod load;
mod rig;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastpath::graph::NodeId;
use quanta::Clock;

use load::{Load, Order, Size, To, VXLAN6};
use rig::{FRESH_ENTRIES, Features, Rig};

/// Frames a port gives in one pass.
const BURST: u32 = 64;
/// Vectors that quartiles are taken from.
const SAMPLES: usize = 1 << 16;
/// Parts of a run whose medians show how steady it was.
const PARTS: usize = 5;

/// What was measured of a case.
struct Measured {
    name: &'static str,
    load: Load,
    /// Median cycles a packet of the whole pass.
    chain: f64,
    /// The same of the nodes without `rx` and `tx`; of the whole run, and of each of its [`PARTS`].
    graph: f64,
    parts: Vec<f64>,
    /// By node; `None` for one that saw no packet.
    nodes: Vec<Option<f64>>,
}

/// Cycles a packet of each vector.
#[derive(Default)]
struct Samples {
    chain: Vec<f64>,
    graph: Vec<f64>,
    nodes: Vec<Vec<f64>>,
}

impl Samples {
    fn add(&mut self, took: u64, vector: f64, before: &[(u64, u64)], after: &[(u64, u64)]) {
        if self.chain.len() >= SAMPLES {
            return;
        }
        self.nodes.resize(NodeId::ALL.len(), vec![]);
        self.chain.push(took as f64 / vector);
        let mut graph = 0;
        for ((node, id), (a, b)) in self.nodes.iter_mut().zip(NodeId::ALL).zip(after.iter().zip(before)) {
            if a.1 > b.1 {
                node.push((a.0 - b.0) as f64 / (a.1 - b.1) as f64);
                graph += if matches!(id, NodeId::Rx | NodeId::Tx) { 0 } else { a.0 - b.0 };
            }
        }
        self.graph.push(graph as f64 / vector);
    }
}

/// First quartile, median and third quartile.
fn quartiles(samples: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some([1, 2, 3].map(|part| sorted[last * part / 4]))
}

fn median(samples: &[f64]) -> Option<f64> {
    quartiles(samples).map(|q| q[1])
}

/// Times passes over vectors of a load; its flows are installed before.
fn case(c: &mut Criterion, name: &'static str, load: Load) -> Option<Measured> {
    let clock = Clock::new();
    let ports = load.ports();
    let vector = BURST * ports;
    let mut state: Option<(Rig, load::Frames, u32)> = None;
    let (mut samples, mut bytes) = (Samples::default(), Vec::with_capacity(2048));
    let mut group = c.benchmark_group("graph");
    group.throughput(Throughput::Elements(vector.into()));
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let mut total = 0;
            for _ in 0..iterations {
                // Before half of the room for new flows is taken.
                let full =
                    |s: &(Rig, _, u32)| load.new > 0 && s.2 as usize * 4 * ports as usize > FRESH_ENTRIES;
                if state.as_ref().is_none_or(full) {
                    state = Some(installed(&load));
                }
                let Some((rig, frames, fresh)) = &mut state else { return Duration::ZERO };
                let before_fresh = *fresh;
                for n in 0..vector {
                    // The lanes in turn, so that each port gets its burst.
                    let flow = frames.pick(n % ports, fresh);
                    let port = frames.write(flow, &mut bytes);
                    rig.inject(port, &bytes);
                }
                let new = u64::from(*fresh - before_fresh);
                let installed = rig.worker.stats().unwrap().flows_installed.get();
                let before = rig.nodes();
                let calls = counting::calls();
                let start = clock.raw();
                rig.worker.pass();
                let took = clock.raw() - start;
                assert_eq!(counting::calls(), calls, "a pass allocates nothing");
                total += took;
                let after = rig.nodes();
                assert_eq!(rig.collect(|_, _| ()), vector as usize, "every packet goes through, in one pass");
                let installed = rig.worker.stats().unwrap().flows_installed.get() - installed;
                assert_eq!(installed, new);
                samples.add(took, vector.into(), &before, &after);
            }
            Duration::from_nanos(clock.delta_as_nanos(0, total))
        });
    });
    group.finish();
    let chain = median(&samples.chain)?; // not selected: none
    let ns = clock.delta_as_nanos(0, 1_000_000) as f64 / 1e6;
    println!("{name}, {vector} packets a vector: TSC cycles a packet, median (quartiles), ns; 0 allocations");
    let rows = [("chain", &samples.chain), ("graph", &samples.graph)];
    for (node, samples) in rows.into_iter().chain(NodeId::ALL.iter().map(|n| n.name()).zip(&samples.nodes)) {
        if let Some([low, median, high]) = quartiles(samples) {
            println!("  {node:<10} {median:8.1} ({low:.1} - {high:.1}) {:8.1} ns", median * ns);
        }
    }
    println!();
    let part = samples.graph.len().div_ceil(PARTS);
    Some(Measured {
        name,
        load,
        chain,
        graph: median(&samples.graph)?,
        parts: samples.graph.chunks(part).filter_map(median).collect(),
        nodes: samples.nodes.iter().map(|s| median(s)).collect(),
    })
}

/// A node with every flow of a load in its table.
fn installed(load: &Load) -> (Rig, load::Frames, u32) {
    let (mut rig, mut frames) = (Rig::new(1, load), load.frames());
    let mut bytes = Vec::with_capacity(2048);
    let vector = BURST * load.ports();
    for first in (0..load.flows).step_by(vector as usize) {
        let last = load.flows.min(first + vector);
        for n in first..last {
            let port = frames.write(n, &mut bytes);
            rig.inject(port, &bytes);
        }
        while rig.worker.pass() {}
        assert_eq!(rig.collect(|_, _| ()), (last - first) as usize);
    }
    (rig, frames, 0)
}

/// Measured at every change: a minute.
fn quick() -> Vec<(&'static str, Load)> {
    let v6 = |load: Load| Load { v6: true, ..load };
    let here = Load::to(To::Node(1), 1 << 15);
    let there = Load::to(To::Node(2), 1 << 15);
    vec![
        ("same-node-v4/512-flows", Load::to(To::Node(1), 512)),
        ("same-node-v4/32k-flows", here),
        ("same-node-v6/32k-flows", v6(here)),
        ("vxlan-encap-v4/32k-flows", there),
        ("vxlan-encap-v6/32k-flows", v6(there)),
        ("vxlan6-encap-v4/32k-flows", Load { underlay: VXLAN6, ..there }),
        ("vxlan-decap-v4/32k-flows", Load::to(To::Decap, 1 << 15)),
        ("same-node-v4/new-flows", Load { new: 1000, ..Load::to(To::Node(1), 4) }),
        ("service-vxlan/new-flows", Load { new: 1000, ..Load::goal(4) }),
        ("ttl-exceeded-v4/32k-flows", Load { ttl: 1, ..here }),
        ("arp", Load::to(To::Gateway, 4)),
        ("service-vxlan/32k-flows", Load::goal(1 << 15)),
        ("service-vxlan/64k-flows", Load::goal(1 << 16)),
        ("service-vxlan/512k-flows", Load::goal(1 << 19)),
        ("service-vxlan/1M-flows", Load::goal(1 << 20)),
        ("service-vxlan/10M-flows", Load::goal(10_000_000)),
    ]
}

/// The axes of the design one by one, from the case of its goals.
fn full() -> Vec<(&'static str, Load)> {
    let goal = Load::goal(1 << 16);
    let zipf = |flows| Load { order: Order::Zipf, ..Load::goal(flows) };
    vec![
        ("service-vxlan/1-flow-a-pod", Load::goal(4)),
        ("service-vxlan/1k-flows", Load::goal(1 << 10)),
        ("service-vxlan-v6/64k-flows", Load { v6: true, ..goal }),
        ("service-vxlan/no-policy", Load { features: Features { policy: false }, ..goal }),
        ("service-vxlan/1k-flows-zipf", zipf(1 << 10)),
        ("service-vxlan/64k-flows-zipf", zipf(1 << 16)),
        ("service-vxlan/1M-flows-zipf", zipf(1 << 20)),
        ("service-vxlan/10M-flows-zipf", zipf(10_000_000)),
        ("service-vxlan/1-percent-new", Load { new: 10, ..goal }),
        ("service-vxlan/10-percent-new", Load { new: 100, ..goal }),
        ("service-vxlan/512-bytes", Load { size: Size::Of(512), ..goal }),
        ("service-vxlan/1518-bytes", Load { size: Size::Of(1518), ..goal }),
        ("service-vxlan/imix", Load { size: Size::Imix, ..goal }),
    ]
}

fn graph(c: &mut Criterion) {
    let mut cases = quick();
    if std::env::var("FASTPATH_BENCH").is_ok_and(|v| v == "full") {
        cases.extend(full());
    }
    let measured: Vec<_> = cases.into_iter().filter_map(|(name, load)| case(c, name, load)).collect();
    // A run of `cargo test --benches`, or one whose filter matches nothing.
    if measured.is_empty() {
        return;
    }
    let columns: Vec<_> = NodeId::ALL
        .iter()
        .enumerate()
        .filter(|(n, _)| measured.iter().any(|m| m.nodes.get(*n).is_some_and(Option::is_some)))
        .collect();
    let names: Vec<_> = columns.iter().map(|(_, id)| id.name()).collect();
    println!("| Case | chain | graph | {} |", names.join(" | "));
    println!("|---|---|---|{}", "---|".repeat(names.len()));
    for m in &measured {
        let cell =
            |n: usize| m.nodes.get(n).copied().flatten().map_or_else(String::new, |m| format!("{m:.0}"));
        let cells: Vec<_> = columns.iter().map(|(n, _)| cell(*n)).collect();
        println!("| {} | {:.0} | {:.0} | {} |", m.name, m.chain, m.graph, cells.join(" | "));
    }
    println!();
    goals::report(&measured);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000));
    targets = graph
}
criterion_main!(benches);
