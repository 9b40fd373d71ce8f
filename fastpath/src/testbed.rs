//! Nodes in memory for tests and benches: the real worker and graph over [`MemPort`]s.
//!
//! Compiled for this crate's tests, and for others with the feature `testgen`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::graph::DropReason;
use crate::io::mem::{MemHandle, MemPort};
use crate::io::{Frame, Pool};
use crate::packet::{Ip, Mac, NO_INDEX, PortId};
use crate::snapshot::{
    GATEWAY_MAC, NextHop, NodeInfo, PortInfo, PortRole, Route, Settings, Snapshot, Snat, Tunnel,
};
use crate::tables::Prefix;
use crate::tables::flow::{FlowConfig, Timeouts};
use crate::wire::testgen::Spec;
use crate::worker::Worker;

/// The uplink's port.
pub const UPLINK: PortId = PortId(0);
/// Pods on each node.
pub const PODS: u8 = 4;

/// The host port, where [`add_host`] adds one.
pub const HOST: PortId = PortId(PODS as u16 + 1);
/// MAC address of the host's end of its pair.
pub const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0xfe, 0xed]);

/// Frames and flow entries of a bed; Miri takes its time for each byte of them.
const FRAMES: usize = if cfg!(miri) { 512 } else { 4096 };
const ENTRIES: usize = if cfg!(miri) { 256 } else { 4096 };

/// Port of pod `n` (from 1).
#[must_use]
pub fn pod_port(n: u8) -> PortId {
    PortId(u16::from(n))
}

/// IPv4 or IPv6 address of pod `n` (from 1) on `node`.
#[must_use]
pub fn pod(v6: bool, node: u8, n: u8) -> Ip {
    if v6 {
        Ip::v6([0xfd, 0, 0, 0x77, 0, node, 0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    } else {
        Ip::v4([10, 77, node, n])
    }
}

/// IPv4 or IPv6 address of `node` on the underlay.
#[must_use]
pub fn underlay(v6: bool, node: u8) -> Ip {
    if v6 {
        Ip::v6([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, node])
    } else {
        Ip::v4([192, 168, 77, node])
    }
}

/// MAC address of pod `n` on `node`; `n` = 0 is the node's uplink.
#[must_use]
pub fn mac(node: u8, n: u8) -> Mac {
    Mac([2, 0, 0, 0, node, n])
}

/// How the nodes of a bed reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// VXLAN, or plain routing when `false`.
    pub encap: bool,
    /// The outer headers are IPv6.
    pub outer_v6: bool,
}

/// The tables of node `this` (1 or 2) of two.
#[must_use]
pub fn snapshot(this: u8, underlay_is: Underlay) -> Snapshot {
    let other = 3 - this;
    let v6 = underlay_is.outer_v6;
    let overhead = if v6 { 70 } else { 50 };
    let port = |name: &str, role, n, addrs, mtu| PortInfo {
        name: name.into(),
        role,
        mac: if role == PortRole::Pod { Mac([6, 0, 0, 0, this, n]) } else { mac(this, 0) },
        peer_mac: (role == PortRole::Pod).then(|| mac(this, n)),
        mtu,
        addrs,
        group: None,
        queues: vec![0],
        redirect: None,
    };
    let mut ports = vec![Some(port("uplink", PortRole::Uplink, 0, vec![], 1500))];
    let mut snap = Snapshot { generation: 1, ..Snapshot::default() };
    for n in 1..=PODS {
        let addrs = vec![pod(false, this, n), pod(true, this, n)];
        snap.local.extend(addrs.iter().map(|a| (*a, pod_port(n))));
        ports.push(Some(port(&format!("pod{n}"), PortRole::Pod, n, addrs, 1500)));
    }
    snap.ports = ports;
    snap.next_hops = [false, true]
        .map(|family| NextHop {
            addr: Some(underlay(family, other)),
            port: UPLINK,
            src_mac: mac(this, 0),
            dst_mac: Some(mac(other, 0)),
        })
        .to_vec();
    let hop = |family: bool| u16::from(family);
    if underlay_is.encap {
        snap.tunnels = vec![
            Tunnel {
                node: format!("node{other}").as_str().into(),
                local: underlay(v6, this),
                remote: underlay(v6, other),
                vni: 4096,
                port: 4789,
                src_mac: Mac([2, 0xfb, 0, 0, 0, this]),
                dst_mac: Mac([2, 0xfb, 0, 0, 0, other]),
                next_hop: hop(v6),
                mtu: 1500 - overhead,
                headers: None,
            }
            .prepared(),
        ];
        snap.vteps.insert(underlay(v6, other), 0);
        snap.node_tunnels.extend([false, true].map(|family| (underlay(family, other), 0)));
    }
    for family in [false, true] {
        let bits = if family { 64 } else { 24 };
        let cidr = |node| Prefix::new(pod(family, node, 0).into(), bits);
        let there = if underlay_is.encap { Route::Tunnel(0) } else { Route::NextHop(hop(family)) };
        snap.routes.extend(
            [(cidr(other), there), (cidr(this), Route::NoEndpoint)]
                .map(|(p, r)| p.map(|p| (p, r)))
                .into_iter()
                .flatten(),
        );
        snap.routes.insert(Prefix::host(underlay(family, this)), Route::Host);
    }
    let own = |family| Some(underlay(family, this));
    snap.node = NodeInfo {
        icmp_v4: own(false),
        icmp_v6: own(true),
        addresses: own(false).into_iter().chain(own(true)).collect(),
        vteps: vec![underlay(v6, this)],
    };
    let mut snat = Snat { outgoing: true, v4: own(false), v6: own(true), ..Snat::default() };
    for family in [false, true] {
        let bits = if family { 64 } else { 24 };
        let nets = [1, 2].map(|node| Prefix::new(pod(family, node, 0).into(), bits));
        let nodes = [1, 2].map(|node| Some(Prefix::host(underlay(family, node))));
        snat.inside.extend(nets.into_iter().chain(nodes).flatten().map(|p| (p, ())));
    }
    snap.snat = Arc::new(snat);
    snap.settings = Settings::default();
    debug_assert!(snap.next_hops.len() < usize::from(NO_INDEX));
    snap
}

/// Adds a port into the node's own stack.
pub fn add_host(snap: &mut Snapshot) {
    let at = usize::from(HOST.0);
    if snap.ports.len() <= at {
        snap.ports.resize(at + 1, None);
    }
    let port = PortInfo {
        name: "fp-host".into(),
        role: PortRole::Host,
        mac: Mac([6, 0, 0, 0, 0xfe, 0xed]),
        peer_mac: Some(HOST_MAC),
        mtu: 1500,
        addrs: Vec::new(),
        group: None,
        queues: vec![0],
        redirect: None,
    };
    if let Some(slot) = snap.ports.get_mut(at) {
        *slot = Some(port);
    }
}

/// A frame as the host's stack sends it.
#[must_use]
pub fn from_host(mut spec: Spec) -> Vec<u8> {
    spec.src_mac = HOST_MAC;
    spec.dst_mac = GATEWAY_MAC;
    spec.build()
}

/// One node in memory.
#[derive(Debug)]
pub struct Bed {
    /// The worker, alone.
    pub worker: Worker,
    /// The tables in force.
    pub tables: Arc<ArcSwap<Snapshot>>,
    /// The clock, moved by hand.
    pub clock: Arc<quanta::Mock>,
    wires: BTreeMap<PortId, MemHandle>,
    injector: Pool,
}

impl Bed {
    /// A node with a [`MemPort`] for each port of `snapshot`.
    ///
    /// # Panics
    /// When the system refuses an epoll descriptor.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test without its descriptor cannot go on")]
    pub fn new(snapshot: Snapshot) -> Self {
        let (clock, mock) = quanta::Clock::mock();
        let ids: Vec<PortId> =
            (0u16..).zip(&snapshot.ports).filter(|(_, p)| p.is_some()).map(|(i, _)| PortId(i)).collect();
        let tables = Arc::new(ArcSwap::from_pointee(snapshot));
        let flow =
            FlowConfig { entries_v4: ENTRIES, entries_v6: ENTRIES, timeouts: Timeouts::default(), seed: 7 };
        let worker = Worker::alone(Pool::in_memory(FRAMES, 2048), &flow, Arc::clone(&tables), clock);
        let mut bed = Self {
            worker: worker.expect("epoll descriptor"),
            tables,
            clock: mock,
            wires: BTreeMap::new(),
            injector: Pool::in_memory(FRAMES / 4, 2048),
        };
        for id in ids {
            let (port, wire) = MemPort::new(FRAMES / 4);
            bed.worker.add_port(id, 0, Box::new(port));
            bed.wires.insert(id, wire);
        }
        bed
    }

    /// Puts a frame on a port's wire; `false` when there is no such port or no room.
    pub fn send(&mut self, port: PortId, frame: &[u8]) -> bool {
        self.wires.get(&port).is_some_and(|w| w.inject_bytes(&mut self.injector, frame))
    }

    /// Lets the worker pass until there is nothing to do, then collects what each port sent.
    pub fn run(&mut self) -> Vec<(PortId, Vec<u8>)> {
        while self.worker.pass() {}
        self.collect()
    }

    /// Collects what each port has sent so far.
    pub fn collect(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut out = Vec::new();
        for (port, wire) in &self.wires {
            while let Some(frame) = wire.collect() {
                out.push((*port, frame.data().to_vec()));
                self.injector.put(frame);
            }
        }
        out
    }

    /// Frames that are free: all of them, when no packet is under way or held.
    pub fn free_frames(&mut self) -> usize {
        [self.worker.pool(), &mut self.injector].into_iter().map(count).sum()
    }

    /// Moves the clock.
    pub fn advance(&self, time: Duration) {
        self.clock.increment(time);
    }

    /// Publishes `change`d tables as the next generation.
    pub fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = Snapshot::clone(&self.tables.load());
        change(&mut next);
        next.generation += 1;
        self.tables.store(Arc::new(next));
    }

    /// Drops so far, by reason.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<DropReason, u64> {
        let count = |r: &DropReason| {
            self.worker.stats().and_then(|s| s.drops.get(*r as usize)).map_or(0, |c| c.get())
        };
        DropReason::ALL.iter().map(|r| (*r, count(r))).filter(|(_, n)| *n > 0).collect()
    }
}

fn count(pool: &mut Pool) -> usize {
    let all: Vec<Frame> = core::iter::from_fn(|| pool.get()).collect();
    let len = all.len();
    all.into_iter().for_each(|frame| pool.put(frame));
    len
}

/// A frame as pod `n` of `node` sends it.
#[must_use]
pub fn from_pod(node: u8, n: u8, mut spec: Spec) -> Vec<u8> {
    spec.src_mac = mac(node, n);
    spec.dst_mac = GATEWAY_MAC;
    spec.build()
}

/// Carries frames between the uplinks of two nodes until all is quiet; returns what other ports sent.
pub fn settle(a: &mut Bed, b: &mut Bed) -> Vec<(u8, PortId, Vec<u8>)> {
    let mut out = Vec::new();
    loop {
        let mut crossed = false;
        for node in [1u8, 2] {
            let sent = if node == 1 { a.run() } else { b.run() };
            for (port, frame) in sent {
                if port == UPLINK {
                    crossed |= if node == 1 { b.send(UPLINK, &frame) } else { a.send(UPLINK, &frame) };
                } else {
                    out.push((node, port, frame));
                }
            }
        }
        if !crossed {
            return out;
        }
    }
}

/// A worker alone with a memory port for each of the [`PODS`] and the uplink, and spare frames to send by.
///
/// # Panics
/// When the worker gets no descriptors.
#[must_use]
#[expect(clippy::unwrap_used, reason = "for tests and benches")]
pub fn bench_worker(tables: Snapshot, flow: &FlowConfig) -> (Worker, Vec<MemHandle>, Vec<Frame>) {
    let tables = Arc::new(ArcSwap::from_pointee(tables));
    let mut worker = Worker::alone(Pool::in_memory(4096, 2048), flow, tables, quanta::Clock::new()).unwrap();
    let wires = (0..=u16::from(PODS))
        .map(|id| {
            let (port, wire) = MemPort::new(1024);
            worker.add_port(PortId(id), 0, Box::new(port));
            wire
        })
        .collect();
    let mut pool = Pool::in_memory(1024, 2048);
    (worker, wires, std::iter::from_fn(|| pool.get()).collect())
}
