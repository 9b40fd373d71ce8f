//! One node in memory by the real clock: tables, worker, wires.
#![forbid(unsafe_code)]

use std::sync::Arc;

use fastpath::io::Frame;
use fastpath::io::mem::MemHandle;
use fastpath::packet::{PortId, proto};
use fastpath::snapshot::Snapshot;
use fastpath::stats::RuleCounters;
use fastpath::tables::flow::{FlowConfig, Timeouts};
use fastpath::tables::policy::{Cell, Group, GroupId, Matrix, NodeIndex, PolicyTable, Row, Rows, RuleId};
use fastpath::tables::service::{Backend, Frontend, Known, ServiceTable, Spread};
use fastpath::testbed::{PODS, bench_worker, pod, snapshot};
use fastpath::worker::Worker;

use crate::load::{BACKENDS, Load, SERVICE_PORT, SERVICES, To, vip};

/// Entries of the tables of cases in which every packet is of a new flow.
pub(super) const FRESH_ENTRIES: usize = 1 << 18;

/// What is switched on besides what a packet needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    /// Every pod is isolated in the direction it sends, and a rule allows what it sends.
    pub(super) policy: bool,
}

/// The rule that allows.
const ALLOWED: RuleId = RuleId(4);

pub(super) struct Rig {
    pub(super) worker: Worker,
    wires: Vec<MemHandle>,
    spare: Vec<Frame>,
}

impl Rig {
    /// A node with the tables of a load, and room for its flows and as many new ones as `new` says.
    pub(super) fn new(node: u8, load: &Load) -> Self {
        let entries =
            (load.flows as usize * 2).max(FRESH_ENTRIES) + if load.new > 0 { FRESH_ENTRIES } else { 0 };
        let (entries_v4, entries_v6) = if load.v6 { (1024, entries) } else { (entries, 1024) };
        let flow = FlowConfig { entries_v4, entries_v6, timeouts: Timeouts::default(), seed: 7 };
        let (worker, wires, spare) = bench_worker(tables(node, load), &flow);
        Self { worker, wires, spare }
    }

    pub(super) fn inject(&mut self, port: PortId, bytes: &[u8]) {
        let mut frame = self.spare.pop().unwrap();
        assert!(frame.fill(bytes));
        assert!(self.wires[usize::from(port.0)].inject(frame).is_ok());
    }

    /// Takes what was sent off the wires; returns how many.
    pub(super) fn collect(&mut self, mut each: impl FnMut(usize, &[u8])) -> usize {
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
    pub(super) fn nodes(&self) -> Vec<(u64, u64)> {
        let stats = self.worker.stats().unwrap();
        stats.nodes.iter().map(|n| (n.clocks.get(), n.packets.get())).collect()
    }
}

fn tables(node: u8, load: &Load) -> Snapshot {
    let mut snap = snapshot(node, load.underlay);
    // Every packet is answered: the limit is not what is measured.
    snap.settings.icmp_rate = u32::MAX;
    // The longest frames go through the tunnel whole.
    snap.tunnels.iter_mut().for_each(|t| t.mtu = 1500);
    if load.to == To::Service {
        snap.services = Arc::new(services(load.v6));
    }
    if load.features.policy {
        let allow =
            Matrix::new(Cell::allow(ALLOWED), Row::all(Cell::allow(ALLOWED)), Rows::default(), Vec::new());
        let group = Group { node: NodeIndex::NONE, ingress: None, egress: Some(Arc::new(allow)) };
        snap.policy = PolicyTable { groups: vec![group], ..PolicyTable::default() };
        snap.rule_counters = Arc::new(RuleCounters::new(1, 8));
        snap.ports.iter_mut().flatten().skip(1).for_each(|port| port.group = Some(GroupId(0)));
    }
    snap
}

/// [`SERVICES`] services with [`BACKENDS`] backends each, all pods of node 2.
fn services(v6: bool) -> ServiceTable {
    let mut table = ServiceTable::default();
    for n in 1..=SERVICES {
        let port = |k| 1000 + u16::try_from(n).unwrap() * BACKENDS + k;
        let backend = |k| Backend { addr: pod(v6, 2, 1 + u8::try_from(k).unwrap() % PODS), port: port(k) };
        let mut backends: Vec<_> = (0..BACKENDS).map(backend).collect();
        backends.sort_unstable();
        let frontend = Frontend {
            id: n.into(),
            external: false,
            local_only: false,
            source_ranges: None,
            affinity_ms: 0,
            all: Spread::new(backends.clone()).map(Arc::new),
            local: None,
            known: backends.iter().map(|b| Known { backend: *b, serves: true }).collect(),
        };
        let _ = table.frontends.insert((vip(v6, n), proto::UDP, SERVICE_PORT), Arc::new(frontend));
        table.addresses.extend([vip(v6, n)]);
    }
    table
}
