//! The whole chain in memory, and each node of it: the real worker and graph over memory ports.
//!
//! Only [`Worker::pass`] is timed: one call takes a vector of packets from receive to transmit. Frames are put on
//! the wires just before and taken off just after, untimed. Criterion reports time a packet; the table after it
//! gives each node's own counters in time stamp cycles a packet: median and quartiles over vectors, so that what
//! another process on the core spoils is left out. `chain` is the whole pass: all nodes, and the loop around
//! them. A pod sends at most 64 frames a pass: four pods make vectors of 256, the uplink alone one of 64. The last
//! table, in Markdown, has the medians of all cases.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot go on says so by panicking")]

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastpath::graph::NodeId;
use fastpath::io::mem::{MemHandle, MemPort};
use fastpath::io::{Frame, Pool};
use fastpath::packet::{Mac, PortId};
use fastpath::snapshot::{GATEWAY_MAC, GATEWAY_V4};
use fastpath::tables::flow::{FlowConfig, Timeouts};
use fastpath::testbed::{PODS, UPLINK, Underlay, from_pod, mac, pod, pod_port, snapshot};
use fastpath::wire::testgen::Spec;
use fastpath::wire::{arp, eth};
use fastpath::worker::Worker;
use quanta::Clock;

/// Frames a port gives in one pass.
const BURST: usize = 64;
/// Flows of the cases in which packets find theirs; 32 Ki of them make 64 Ki entries.
const FLOWS: u32 = 1 << 15;
/// New flows before a table is replaced by an empty one; each takes two of its 256 Ki entries.
const FRESH: u32 = 1 << 16;
/// Vectors that quartiles are taken from.
const SAMPLES: usize = 1 << 16;

const VXLAN: Underlay = Underlay { encap: true, outer_v6: false };
const VXLAN6: Underlay = Underlay { encap: true, outer_v6: true };

/// Medians of a case, by node after the chain; `None` for a node that saw no packet.
type Medians = Vec<Option<f64>>;

/// One node in memory by the real clock.
struct Rig {
    worker: Worker,
    wires: Vec<MemHandle>,
    spare: Vec<Frame>,
}

impl Rig {
    fn new(node: u8, underlay: Underlay) -> Self {
        let flow =
            FlowConfig { entries_v4: 1 << 18, entries_v6: 1 << 18, timeouts: Timeouts::default(), seed: 7 };
        let mut tables = snapshot(node, underlay);
        // Every packet is answered: the limit is not what is measured.
        tables.settings.icmp_rate = u32::MAX;
        let tables = Arc::new(ArcSwap::from_pointee(tables));
        let mut worker = Worker::alone(Pool::in_memory(4096, 2048), &flow, tables, Clock::new()).unwrap();
        let wires = (0..=u16::from(PODS))
            .map(|id| {
                let (port, wire) = MemPort::new(1024);
                worker.add_port(PortId(id), 0, Box::new(port));
                wire
            })
            .collect();
        let mut pool = Pool::in_memory(1024, 2048);
        let spare = std::iter::from_fn(|| pool.get()).collect();
        Self { worker, wires, spare }
    }

    fn inject(&mut self, (port, bytes): &(PortId, Vec<u8>)) {
        let mut frame = self.spare.pop().unwrap();
        assert!(frame.fill(bytes));
        assert!(self.wires[usize::from(port.0)].inject(frame).is_ok());
    }

    /// Takes what was sent off the wires; returns how many.
    fn collect(&mut self, mut each: impl FnMut(usize, &[u8])) -> usize {
        let mut sent = 0;
        for (port, wire) in self.wires.iter().enumerate() {
            while let Some(frame) = wire.collect() {
                each(port, frame.data());
                self.spare.push(frame);
                sent += 1;
            }
        }
        sent
    }

    /// Cycles and packets of each node so far.
    fn nodes(&self) -> Vec<(u64, u64)> {
        let stats = self.worker.stats().unwrap();
        stats.nodes.iter().map(|n| (n.clocks.get(), n.packets.get())).collect()
    }
}

/// Packet `n` of flow `n`: from a pod of `node` to pod `to` of `there`, 60 bytes (IPv6: 62, its least).
fn packet(v6: bool, node: u8, there: u8, ttl: u8, n: u32) -> (PortId, Vec<u8>) {
    let from = 1 + u8::try_from(n % u32::from(PODS)).unwrap();
    let to = from % PODS + 1;
    let n = n / u32::from(PODS);
    let sport = 1024 + u16::try_from(n % 32768).unwrap();
    let dport = u16::try_from(n / 32768).unwrap();
    let payload = if v6 { 0 } else { 18 };
    let spec =
        Spec::udp(pod(v6, node, from), pod(v6, there, to), sport, dport).with_payload(vec![0; payload]);
    (pod_port(from), from_pod(node, from, Spec { ttl, ..spec }))
}

/// A pod's question for its gateway.
fn arp_request(from: u8) -> (PortId, Vec<u8>) {
    let request = arp::Repr {
        operation: arp::Operation::Request,
        sender_mac: mac(1, from),
        sender_ip: pod(false, 1, from),
        target_mac: Mac::default(),
        target_ip: GATEWAY_V4,
    };
    let mut frame = vec![0; 60];
    request.emit_frame(&mut frame).unwrap();
    eth::Packet::new_unchecked(&mut frame[..]).set_dst(GATEWAY_MAC);
    (pod_port(from), frame)
}

/// What node 1 receives by its uplink from the pods of node 2.
fn encapsulated() -> Vec<(PortId, Vec<u8>)> {
    let mut far = Rig::new(2, VXLAN);
    let mut frames = Vec::new();
    for n in 0..FLOWS {
        far.inject(&packet(false, 2, 1, 64, n));
        while far.worker.pass() {}
        far.collect(|port, bytes| {
            assert_eq!(port, usize::from(UPLINK.0));
            frames.push((UPLINK, bytes.to_vec()));
        });
    }
    assert_eq!(frames.len(), FLOWS as usize);
    frames
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Frames in a random order, so that their flows are not in the cache by neighbourhood.
    Random,
    /// Frames one after the other, each a flow that the table does not have.
    New,
}

/// Times passes over vectors of `frames`; in an [`Order::Random`] case every flow is installed before.
fn case(
    c: &mut Criterion,
    name: &str,
    underlay: Underlay,
    frames: &[(PortId, Vec<u8>)],
    order: Order,
) -> Option<Medians> {
    let clock = Clock::new();
    let ports = if frames[0].0 == UPLINK { 1 } else { usize::from(PODS) };
    let vector = BURST * ports;
    let mut rig = Rig::new(1, underlay);
    let mut warm = false;
    let (mut at, mut random) = (0, 0x5bd1_e995_0f0e_1d2c_u64);
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); NodeId::ALL.len() + 1];
    let mut group = c.benchmark_group("graph");
    group.throughput(Throughput::Elements(vector as u64));
    group.bench_function(name, |b| {
        if !warm && order == Order::Random {
            for some in frames.chunks(vector) {
                some.iter().for_each(|frame| rig.inject(frame));
                while rig.worker.pass() {}
                assert_eq!(rig.collect(|_, _| ()), some.len());
            }
            warm = true;
        }
        b.iter_custom(|iterations| {
            let mut total = 0;
            for _ in 0..iterations {
                if order == Order::New && at + vector > frames.len() {
                    (rig, at) = (Rig::new(1, underlay), 0);
                }
                for n in 0..vector {
                    let pick = if order == Order::New {
                        at + n
                    } else {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        // Frame `i` is of port `i % ports`: each port gets its burst.
                        let row = usize::try_from(random >> 32).unwrap() % (frames.len() / ports);
                        row * ports + n % ports
                    };
                    rig.inject(&frames[pick]);
                }
                at += vector;
                let installed = rig.worker.stats().unwrap().flows_installed.get();
                let before = rig.nodes();
                let start = clock.raw();
                rig.worker.pass();
                let took = clock.raw() - start;
                total += took;
                let after = rig.nodes();
                assert_eq!(rig.collect(|_, _| ()), vector, "every packet goes through, in one pass");
                let installed = rig.worker.stats().unwrap().flows_installed.get() - installed;
                assert_eq!(installed, if order == Order::New { vector as u64 } else { 0 });
                if samples[0].len() < SAMPLES {
                    samples[0].push(took as f64 / vector as f64);
                    for (node, (a, b)) in samples[1..].iter_mut().zip(after.iter().zip(&before)) {
                        if a.1 > b.1 {
                            node.push((a.0 - b.0) as f64 / (a.1 - b.1) as f64);
                        }
                    }
                }
            }
            Duration::from_nanos(clock.delta_as_nanos(0, total))
        });
    });
    group.finish();
    if samples[0].is_empty() {
        return None; // not selected
    }
    let ns = clock.delta_as_nanos(0, 1_000_000) as f64 / 1e6;
    println!("{name}, {vector} packets a vector: TSC cycles a packet, median (quartiles), ns");
    let mut medians = Vec::new();
    for (node, samples) in names().zip(&mut samples) {
        if samples.is_empty() {
            medians.push(None);
            continue;
        }
        samples.sort_unstable_by(f64::total_cmp);
        let quartile = |part: usize| samples[(samples.len() - 1) * part / 4];
        let (low, median, high) = (quartile(1), quartile(2), quartile(3));
        println!("  {node:<10} {median:8.1} ({low:.1} - {high:.1}) {:8.1} ns", median * ns);
        medians.push(Some(median));
    }
    println!();
    Some(medians)
}

/// The rows of a result.
fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once("chain").chain(NodeId::ALL.iter().map(|n| n.name()))
}

fn graph(c: &mut Criterion) {
    let frames = |v6, there, count| (0..count).map(|n| packet(v6, 1, there, 64, n)).collect::<Vec<_>>();
    let expiring: Vec<_> = (0..FLOWS).map(|n| packet(false, 1, 1, 1, n)).collect();
    let questions: Vec<_> = (1..=PODS).map(arp_request).collect();
    let mut table = Vec::new();
    let mut run = |name: &'static str, underlay, frames: &[_], order| {
        table.extend(case(c, name, underlay, frames, order).map(|medians| (name, medians)));
    };
    run("same-node-v4/1k-entries", VXLAN, &frames(false, 1, 512), Order::Random);
    run("same-node-v4/64k-entries", VXLAN, &frames(false, 1, FLOWS), Order::Random);
    run("same-node-v6/64k-entries", VXLAN, &frames(true, 1, FLOWS), Order::Random);
    run("vxlan-encap-v4/64k-entries", VXLAN, &frames(false, 2, FLOWS), Order::Random);
    run("vxlan-encap-v6/64k-entries", VXLAN, &frames(true, 2, FLOWS), Order::Random);
    run("vxlan6-encap-v4/64k-entries", VXLAN6, &frames(false, 2, FLOWS), Order::Random);
    run("vxlan-decap-v4/64k-entries", VXLAN, &encapsulated(), Order::Random);
    run("same-node-v4/new-flows", VXLAN, &frames(false, 1, FRESH), Order::New);
    run("vxlan-encap-v4/new-flows", VXLAN, &frames(false, 2, FRESH), Order::New);
    run("ttl-exceeded-v4/64k-entries", VXLAN, &expiring, Order::Random);
    run("arp", VXLAN, &questions, Order::Random);

    println!("| Case | {} |", names().collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(names().count()));
    for (case, medians) in table {
        let cells: Vec<_> =
            medians.iter().map(|m| m.map_or_else(String::new, |m| format!("{m:.0}"))).collect();
        println!("| {case} | {} |", cells.join(" | "));
    }
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
