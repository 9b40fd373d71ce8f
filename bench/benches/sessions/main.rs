//! New sessions: packets that each open a flow to a service, through the real worker and graph over memory ports.
//!
//! Every packet is the first of a UDP flow from a pod to one of 100 services with 10 backends: found in no table,
//! translated to its backend (DNAT), allowed by an egress rule and, for a backend of this node, by an ingress rule,
//! given its ways and installed in both directions. Only [`Worker::pass`] is timed, and its nodes by their own
//! counters: time stamp cycles a packet, median over vectors. `session` is what a known flow does not pay:
//! `service`, `policy`, `snat` and `route`; `flow` is the lookup that found nothing.
//!
//! By number of entries that the flow table is made for, between a quarter and three quarters full; and `full`: every
//! flow evicts two others, or one. `SESSIONS_LARGE=1` adds 10 Mi entries. Writes the rows of goal 5 into
//! `bench/results/flow.json`.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a bench that cannot go on says so by panicking; figures are small"
)]

#[path = "../flow/results.rs"]
mod results;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastpath::graph::NodeId;
use fastpath::io::Frame;
use fastpath::io::mem::MemHandle;
use fastpath::packet::{Ip, proto};
use fastpath::snapshot::Snapshot;
use fastpath::stats::RuleCounters;
use fastpath::tables::flow::{FlowConfig, Timeouts};
use fastpath::tables::policy::{
    Cell, ClassId, Group, GroupId, Matrix, NodeIndex, PeerInfo, PolicyTable, Row, Rows, RuleId,
};
use fastpath::tables::service::{Backend, Frontend, Known, ServiceTable, Spread};
use fastpath::testbed::{PODS, Underlay, bench_worker, from_pod, pod, pod_port, snapshot};
use fastpath::wire::testgen::Spec;
use fastpath::worker::Worker;
use quanta::Clock;
use serde_json::json;

/// Frames a port gives in one pass.
const BURST: usize = 64;
const SERVICES: u16 = 100;
const BACKENDS: u16 = 10;
/// Cycles a session may take at 2.6 GHz for two million a second.
const GOAL: f64 = 2.0;
const ISOLATED: RuleId = RuleId(4);
const ALLOWED: RuleId = RuleId(5);
/// Measured by case; the rest is preparation.
const SPAN: Duration = Duration::from_millis(700);
const ROUNDS: usize = 3;

fn vip(service: u16) -> Ip {
    let [high, low] = service.to_be_bytes();
    Ip::v4([10, 96, high, low])
}

/// Where the backends are.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Pods 3 and 4 of this node; pods 1 and 2 are the clients.
    Here,
    /// The other node's pods, through VXLAN; all pods are clients.
    There,
}

/// The tables of node 1.
fn tables(place: Place) -> Snapshot {
    let mut snap = snapshot(1, Underlay { encap: true, outer_v6: false });
    let mut services = ServiceTable::default();
    for service in 0..SERVICES {
        let backend = |n: u16| {
            let low = (n % u16::from(PODS)) as u8;
            let addr = if place == Place::Here { pod(false, 1, 3 + low % 2) } else { pod(false, 2, 1 + low) };
            Backend { addr, port: 8000 + service * BACKENDS + n }
        };
        let backends: Vec<_> = (0..BACKENDS).map(backend).collect();
        let mut known: Vec<_> = backends.iter().map(|b| Known { backend: *b, serves: true }).collect();
        known.sort_unstable();
        let frontend = Frontend {
            id: u64::from(service),
            external: false,
            local_only: false,
            source_ranges: None,
            affinity_ms: 0,
            all: Spread::new(backends).map(Arc::new),
            local: None,
            known: known.into(),
        };
        services.frontends.insert((vip(service), proto::UDP, 80), Arc::new(frontend));
        services.addresses.insert(vip(service));
    }
    snap.services = Arc::new(services);
    // All pods are isolated both ways, and all pods of both nodes are allowed.
    let mut policy = PolicyTable::default();
    for (node, n) in [1, 2].into_iter().flat_map(|node| (1..=PODS).map(move |n| (node, n))) {
        let info = PeerInfo { class: ClassId(1), node: NodeIndex::NONE };
        policy.peers.insert(pod(false, node, n), info);
    }
    let closed = Cell::deny(ISOLATED);
    let rows = Rows::from_iter([(ClassId(1), Row::all(Cell::allow(ALLOWED)))]);
    let matrix = Arc::new(Matrix::new(closed, Row::all(closed), rows, Vec::new()));
    let group = Group { node: NodeIndex::NONE, ingress: Some(matrix.clone()), egress: Some(matrix) };
    policy.groups = vec![group];
    snap.policy = policy;
    snap.rule_counters = Arc::new(RuleCounters::new(1, 8));
    for port in snap.ports.iter_mut().skip(1).flatten() {
        port.group = Some(GroupId(0));
    }
    snap
}

/// One node in memory, by the real clock.
struct Rig {
    worker: Worker,
    wires: Vec<MemHandle>,
    spare: Vec<Frame>,
    clients: u8,
    next: u32,
}

impl Rig {
    fn new(place: Place, entries: usize) -> Self {
        let flow = FlowConfig { entries_v4: entries, entries_v6: 16, timeouts: Timeouts::default(), seed: 7 };
        let (worker, wires, spare) = bench_worker(tables(place), &flow);
        let clients = if place == Place::Here { 2 } else { PODS };
        Self { worker, wires, spare, clients, next: 0 }
    }

    /// Puts a vector of packets on the wires, each of the next flow.
    fn inject(&mut self) -> usize {
        let vector = BURST * usize::from(self.clients);
        for _ in 0..vector {
            let (client, n) =
                (1 + (self.next % u32::from(self.clients)) as u8, self.next / u32::from(self.clients));
            self.next += 1;
            // Ports first: a client's flows to one service follow each other, as in a burst.
            let (sport, service) = (1024 + (n % 64_000) as u16, (n / 64_000 % u32::from(SERVICES)) as u16);
            let spec = Spec::udp(pod(false, 1, client), vip(service), sport, 80).with_payload(vec![0; 18]);
            let mut frame = self.spare.pop().unwrap();
            assert!(frame.fill(&from_pod(1, client, spec)));
            assert!(self.wires[usize::from(pod_port(client).0)].inject(frame).is_ok());
        }
        vector
    }

    fn collect(&mut self) -> usize {
        let before = self.spare.len();
        for wire in &self.wires {
            while let Some(frame) = wire.collect() {
                self.spare.push(frame);
            }
        }
        self.spare.len() - before
    }

    /// One vector; cycles a packet of the pass, then of each node.
    fn vector(&mut self, clock: &Clock) -> Vec<f64> {
        let vector = self.inject();
        let nodes =
            |w: &Worker| -> Vec<u64> { w.stats().unwrap().nodes.iter().map(|n| n.clocks.get()).collect() };
        let installed = self.worker.stats().unwrap().flows_installed.get();
        let before = nodes(&self.worker);
        let start = clock.raw();
        self.worker.pass();
        let took = clock.raw() - start;
        assert_eq!(self.collect(), vector, "every packet goes through, in one pass");
        let installed = self.worker.stats().unwrap().flows_installed.get() - installed;
        assert_eq!(installed, vector as u64, "each of them opens a flow");
        let each = nodes(&self.worker).into_iter().zip(before).map(|(after, before)| after - before);
        std::iter::once(took).chain(each).map(|cycles| cycles as f64 / vector as f64).collect()
    }

    fn evicted(&self) -> u64 {
        self.worker.stats().unwrap().flows_evicted.iter().map(|c| c.get()).sum()
    }
}

struct Case {
    name: String,
    place: Place,
    entries: u32,
    full: bool,
}

impl Case {
    /// Median by row over the vectors of [`SPAN`]: the pass, then each node.
    fn measure(&self, rig: &mut Option<Rig>, clock: &Clock, span: Duration) -> Vec<f64> {
        let mut samples: Vec<Vec<f64>> = vec![Vec::new(); NodeId::ALL.len() + 1];
        let (mut measured, mut vectors) = (Duration::ZERO, 0);
        while measured < span || vectors < 16 {
            let rig = match rig {
                Some(r) if self.full || r.next < self.entries / 8 * 3 => r,
                _ => {
                    let mut fresh = Rig::new(self.place, self.entries as usize);
                    // A quarter; or more than there is room for.
                    let flows = if self.full { self.entries / 4 * 5 } else { self.entries / 8 };
                    while fresh.next < flows {
                        fresh.vector(clock);
                    }
                    rig.insert(fresh)
                }
            };
            let (start, evicted) = (Instant::now(), rig.evicted());
            for (all, one) in samples.iter_mut().zip(rig.vector(clock)) {
                all.push(one);
            }
            measured += start.elapsed();
            vectors += 1;
            // A key may find one of its two buckets free by chance, not many do.
            assert_eq!(rig.evicted() > evicted, self.full, "evictions are measured where they are meant");
        }
        let median = |mut all: Vec<f64>| {
            all.sort_unstable_by(f64::total_cmp);
            all[all.len() / 2]
        };
        samples.into_iter().map(median).collect()
    }
}

fn of(row: &[f64], nodes: &[NodeId]) -> f64 {
    nodes.iter().map(|n| row[1 + *n as usize]).sum()
}

fn main() {
    let measured = std::env::args().any(|a| a == "--bench");
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let clock = Clock::new();
    let ns = clock.delta_as_nanos(0, 1_000_000) as f64 / 1e6;
    let mut sizes = vec![("64Ki", 1 << 16), ("1Mi", 1 << 20)];
    if std::env::var_os("SESSIONS_LARGE").is_some() {
        sizes.push(("10Mi", 10 << 20));
    }
    let mut cases = Vec::new();
    for (size, entries) in sizes {
        for (place, to) in [(Place::Here, "here"), (Place::There, "vxlan")] {
            for full in [false, true] {
                let name = format!("{to}/{size}{}", if full { "/full" } else { "" });
                cases.push(Case { name, place, entries, full });
            }
        }
    }
    cases.retain(|c| filter.is_empty() || filter.iter().any(|f| c.name.contains(f)));
    if !measured {
        // As a test: once, on the smallest.
        cases.retain(|c| c.entries == 1 << 16);
    }
    let session = [NodeId::Service, NodeId::Policy, NodeId::Snat, NodeId::Route];
    let mut rows = Vec::new();
    println!("| Case | M sessions/s | session | flow | service | policy | snat | route | chain |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for case in &cases {
        let mut rig = None;
        let rounds: Vec<Vec<f64>> = (0..if measured { ROUNDS } else { 1 })
            .map(|_| case.measure(&mut rig, &clock, if measured { SPAN } else { Duration::ZERO }))
            .collect();
        let mut order: Vec<_> = rounds.iter().collect();
        order.sort_unstable_by(|a, b| of(a, &session).total_cmp(&of(b, &session)));
        let row = order[order.len() / 2];
        let rate = |row: &[f64]| (1e5 / (of(row, &session) * ns)).round() / 100.0;
        let columns = [NodeId::Flow, NodeId::Service, NodeId::Policy, NodeId::Snat, NodeId::Route];
        let cells: Vec<_> = columns.iter().map(|n| format!("{:.0}", of(row, &[*n]))).collect();
        let name = &case.name;
        println!(
            "| {name} | {} | {:.0} | {} | {:.0} |",
            rate(row),
            of(row, &session),
            cells.join(" | "),
            row[0]
        );
        let ours = rate(row);
        rows.push(json!({
            "goal": 5, "name": format!("new sessions: policy, DNAT, install; {name} entries"),
            "unit": "M sessions/s a core", "ours": ours, "peer": null, "theirs": null, "ratio": null,
            "goal_value": GOAL, "met": ours >= GOAL, "runs": rounds.iter().map(|r| rate(r)).collect::<Vec<_>>(),
        }));
    }
    if measured && filter.is_empty() {
        results::write(5, rows);
    }
}
