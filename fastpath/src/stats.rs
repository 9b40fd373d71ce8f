//! Single-writer counters: a worker writes its own, the control thread reads them.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::graph::{DropReason, NodeId};
use crate::tables::flow::EvictClass;

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker calls this, so a plain load and store do.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Runtime counters of one graph node on one worker.
#[derive(Debug, Default)]
pub struct NodeCounters {
    /// Times the node ran with at least one packet (vectors).
    pub vectors: Counter,
    /// Packets it was given.
    pub packets: Counter,
    /// TSC ticks it took.
    pub clocks: Counter,
}

/// Counters of one policy rule on one worker, or of the isolation that denied.
#[derive(Debug, Default)]
pub struct RuleCounter {
    /// Packets of the flows it allowed, both directions; for an isolation the packets it denied.
    pub packets: Counter,
    /// Their bytes, as IP packets.
    pub bytes: Counter,
    /// Flows it allowed, or denied.
    pub flows: Counter,
}

/// Counters of all rules, a row for each worker. Made by the control thread, as the packet path allocates nothing.
#[derive(Debug, Default)]
pub struct RuleCounters {
    workers: Vec<Box<[RuleCounter]>>,
}

impl RuleCounters {
    /// `rules` counters, at most 65,536, for each of `workers`.
    #[must_use]
    pub fn new(workers: usize, rules: usize) -> Self {
        let rules = rules.min(1 << 16);
        let row = || (0..rules).map(|_| RuleCounter::default()).collect();
        Self { workers: (0..workers).map(|_| row()).collect() }
    }

    /// The counters that one worker writes; none for a worker beyond those it was made for.
    #[inline]
    #[must_use]
    pub fn of(&self, worker: usize) -> &[RuleCounter] {
        self.workers.get(worker).map_or(&[], AsRef::as_ref)
    }

    /// Rules there are counters for.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.workers.first().map_or(0, |row| row.len())
    }

    /// Packets, bytes and flows of one rule on all workers.
    #[must_use]
    pub fn total(&self, rule: u16) -> [u64; 3] {
        let rows = self.workers.iter().filter_map(|row| row.get(usize::from(rule)));
        rows.fold([0; 3], |[p, b, f], c| {
            [p.wrapping_add(c.packets.get()), b.wrapping_add(c.bytes.get()), f.wrapping_add(c.flows.get())]
        })
    }
}

/// Snapshots are compared by what they make of packets: counters are the same only if they are one, or none.
impl PartialEq for RuleCounters {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self, other) || self.rules() == 0 && other.rules() == 0
    }
}

impl Eq for RuleCounters {}

/// Counters of one worker.
#[derive(Debug)]
pub struct WorkerStats {
    /// Drops by [`DropReason`].
    pub drops: [Counter; DropReason::ALL.len()],
    /// Runtime by [`NodeId`].
    pub nodes: [NodeCounters; NodeId::ALL.len()],
    /// Passes of the loop, with or without packets.
    pub loops: Counter,
    /// Times the worker slept for want of packets.
    pub sleeps: Counter,
    /// Packets handed to another worker for transmission.
    pub handoffs: Counter,
    /// Calls by which packets for many ports were sent at once.
    pub outbox_calls: Counter,
    /// Packets sent by such calls.
    pub outbox_packets: Counter,
    /// Such calls that failed.
    pub outbox_errors: Counter,
    /// Whether the worker sends by such calls.
    pub sends_together: AtomicBool,
    /// Why it does not any more: the kernel's error number, or 0.
    pub outbox_given_up: AtomicI32,
    /// ICMP errors sent.
    pub icmp_errors: Counter,
    /// ARP replies and neighbour advertisements sent.
    pub neighbor_replies: Counter,
    /// Flows installed.
    pub flows_installed: Counter,
    /// Flows re-evaluated because of a new generation.
    pub flows_reevaluated: Counter,
    /// Flows that timed out.
    pub flows_expired: Counter,
    /// Flows evicted from a full table, by [`EvictClass`].
    pub flows_evicted: [Counter; EvictClass::ALL.len()],
    /// Packets forwarded without a flow entry because its bucket was busy or full.
    pub flows_bypassed: Counter,
    /// Transport checksums finished for senders that left them to the device.
    pub checksums_finished: Counter,
    /// Free frames in the worker's pool, at the last loop.
    pub frames_free: AtomicU64,
    /// Generation of the snapshot the worker forwards by.
    pub acked: AtomicU32,
    /// The engine's clock in milliseconds at the last loop; wraps.
    pub beat: AtomicU32,
    /// Whether the worker waits for packets in the kernel.
    pub sleeping: AtomicBool,
}

impl Default for WorkerStats {
    fn default() -> Self {
        Self {
            drops: core::array::from_fn(|_| Counter::default()),
            nodes: core::array::from_fn(|_| NodeCounters::default()),
            loops: Counter::default(),
            sleeps: Counter::default(),
            handoffs: Counter::default(),
            outbox_calls: Counter::default(),
            outbox_packets: Counter::default(),
            outbox_errors: Counter::default(),
            sends_together: AtomicBool::new(false),
            outbox_given_up: AtomicI32::new(0),
            icmp_errors: Counter::default(),
            neighbor_replies: Counter::default(),
            flows_installed: Counter::default(),
            flows_reevaluated: Counter::default(),
            flows_expired: Counter::default(),
            flows_evicted: core::array::from_fn(|_| Counter::default()),
            flows_bypassed: Counter::default(),
            checksums_finished: Counter::default(),
            frames_free: AtomicU64::new(0),
            acked: AtomicU32::new(0),
            beat: AtomicU32::new(0),
            sleeping: AtomicBool::new(false),
        }
    }
}
