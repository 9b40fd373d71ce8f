//! The pinned loop: drain rx rings into a vector, run the graph, send, refill, sleep when idle.
//!
//! | File | Holds |
//! |---|---|
//! | `mailbox` | commands, answers, packets from other workers, the bell |
//! | `receive` | which ports are asked, in what turn; refilling them |
//! | `transmit` | sockets, or the outbox for full vectors |
//! | `idle` | spinning, for as long as it pays, and sleeping |
#![forbid(unsafe_code)]

use core::num::NonZeroU32;
use core::sync::atomic::Ordering::{Relaxed, Release};
use core::time::Duration;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;
use rustix::event::epoll;
use rustix::io::Errno;

mod idle;
mod mailbox;
mod receive;
mod transmit;

pub use mailbox::PortReport;
use mailbox::hand_over;
pub(crate) use mailbox::{Answer, Command, Mailbox, Ticket};
use receive::REFILLED;

use crate::graph::{Context, DropReason, Event, Graph, Packets, VECTOR, count_drop};
use crate::io::xsk::Outbox;
use crate::io::{Frame, Pool, Port};
use crate::packet::PortId;
use crate::snapshot::Snapshot;
use crate::stats::WorkerStats;
use crate::tables::flow::{FlowConfig, FlowTable, Millis};

/// Longest time for which the ports that were quiet are not asked while others have packets.
const SCAN_LATEST: Duration = Duration::from_millis(1);
/// A port is asked on every pass for at least this long after a packet: an answer, or the next question, often comes by then.
const QUIET_AFTER: Duration = Duration::from_micros(200);
/// Fewest flow-table buckets swept in one pass of the loop.
const SWEEP_BUCKETS: usize = 64;
/// A worker sees all buckets of its share in this time, well before a coarse deadline could wrap (128 s).
const SWEEP_ROUND_MS: u32 = 20_000;
/// Passes of the sweep each second at most; keeps an idle worker from sweeping without end.
const SWEEP_EVERY_MS: u32 = 20;

impl core::fmt::Debug for Worker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Worker")
            .field("number", &self.number)
            .field("ports", &self.ports.len())
            .finish_non_exhaustive()
    }
}

/// What a worker does when there is nothing to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// Asks the rings without end: lowest latency, one core always busy.
    Busy,
    /// Asks for a while without a packet, then waits in the kernel, at most `sleep` at a time.
    Adaptive {
        /// How long to ask before waiting, at least.
        spin: Duration,
        /// The same while packets come in pauses shorter than this; no less than `spin`.
        spin_longest: Duration,
        /// Longest wait: timeouts and the heartbeat go on.
        sleep: Duration,
    },
}

struct LocalPort {
    id: PortId,
    queue: u16,
    port: Box<dyn Port>,
    /// Frames to transmit at the end of this pass.
    out: Vec<Frame>,
    /// Passes in a row without a packet, while it is active.
    quiet: u8,
    /// When it was last known to have packets, by the clock's raw ticks.
    heard: u64,
    /// Asked on every pass.
    active: bool,
    /// Gave a full burst when it was asked last.
    more: bool,
    /// To be refilled at the end of this pass.
    touched: bool,
    /// Where the outbox may send its packets of this pass.
    redirect: Option<NonZeroU32>,
}

/// State of one worker: ports, frames, graph. Runs on a thread of the [`Engine`](crate::engine::Engine), or,
/// [alone](Worker::alone), pass by pass where it was made.
pub struct Worker {
    number: u16,
    peers: Arc<[Mailbox]>,
    pool: Pool,
    flows: Arc<FlowTable>,
    events: Arc<ArrayQueue<Event>>,
    snapshots: arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    polling: Polling,
    spin: idle::Spin,
    clock: quanta::Clock,
    epoch: quanta::Instant,
    epoll: OwnedFd,
    ports: Vec<LocalPort>,
    /// Place in `ports` by port id; `ABSENT` where this worker has no queue of the port.
    index: Vec<u16>,
    graph: Graph,
    packets: Packets,
    received: Vec<Frame>,
    /// Workers that were handed packets of this vector.
    handed: Vec<bool>,
    /// Places in `ports` of those that are asked on every pass, and whose turn it is.
    active: Vec<u16>,
    turn: usize,
    /// When the others were asked last, how long that took (both by the clock's raw ticks), where to go on.
    scanned: u64,
    scan_ticks: u64,
    /// Raw ticks after which they are asked at the latest: [`SCAN_LATEST`].
    scan_latest: u64,
    /// Raw ticks of [`QUIET_AFTER`].
    quiet_after: u64,
    scan_from: usize,
    /// Places in `ports` of those to refill at the end of the pass, and whose turn it is without a reason.
    touched: Vec<u16>,
    refill_from: usize,
    /// Places in `ports` of those with something to send.
    sending: Vec<u16>,
    outbox: Option<Box<Outbox>>,
    /// This pass's vector is full: the next one comes at once.
    full: bool,
    /// Passes whose packets the outbox holds.
    held: u8,
    outbox_failures: u8,
    swept: Millis,
    idle_since: Option<u64>,
}

/// How a worker's thread is to be set up.
pub(crate) struct Setup {
    pub(crate) number: u16,
    pub(crate) peers: Arc<[Mailbox]>,
    pub(crate) pool: Pool,
    pub(crate) flows: Arc<FlowTable>,
    pub(crate) events: Arc<ArrayQueue<Event>>,
    pub(crate) snapshots: Arc<ArcSwap<Snapshot>>,
    pub(crate) polling: Polling,
    pub(crate) clock: quanta::Clock,
    pub(crate) epoch: quanta::Instant,
}

/// "No queue of this port here" in `Worker::index`.
const ABSENT: u16 = u16::MAX;
/// Token of the mailbox's event in the epoll set.
const EVENT: u64 = u64::MAX;

/// How much the clock's raw counter grows in a time.
fn raw_ticks(clock: &quanta::Clock, time: Duration) -> u64 {
    const SAMPLE: u64 = 1 << 20;
    let nanos = u128::from(clock.delta_as_nanos(0, SAMPLE)).max(1);
    u64::try_from(time.as_nanos() * u128::from(SAMPLE) / nanos).unwrap_or(u64::MAX)
}

impl Worker {
    pub(crate) fn new(setup: Setup) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let scan_latest = raw_ticks(&setup.clock, SCAN_LATEST);
        let quiet_after = raw_ticks(&setup.clock, QUIET_AFTER);
        let spin = idle::Spin::new(setup.polling, &setup.clock);
        if let Some(mailbox) = setup.peers.get(usize::from(setup.number)) {
            epoll::add(&epoll, &mailbox.event, epoll::EventData::new_u64(EVENT), epoll::EventFlags::IN)?;
        }
        Ok(Self {
            number: setup.number,
            handed: vec![false; setup.peers.len()],
            peers: setup.peers,
            pool: setup.pool,
            flows: setup.flows,
            events: setup.events,
            snapshots: arc_swap::Cache::new(setup.snapshots),
            polling: setup.polling,
            spin,
            clock: setup.clock,
            epoch: setup.epoch,
            epoll,
            ports: Vec::with_capacity(64),
            index: Vec::new(),
            graph: Graph::default(),
            packets: Packets::default(),
            received: Vec::with_capacity(VECTOR),
            active: Vec::new(),
            turn: 0,
            scanned: 0,
            scan_ticks: 0,
            scan_latest,
            quiet_after,
            scan_from: 0,
            touched: Vec::new(),
            refill_from: 0,
            sending: Vec::new(),
            outbox: None,
            full: false,
            held: 0,
            outbox_failures: 0,
            swept: Millis(0),
            idle_since: None,
        })
    }

    /// A worker without thread and peers, for tests and benches: the caller calls [`Worker::pass`].
    ///
    /// # Errors
    /// When the kernel refuses an event or epoll descriptor.
    pub fn alone(
        pool: Pool,
        flow: &FlowConfig,
        snapshot: Arc<ArcSwap<Snapshot>>,
        clock: quanta::Clock,
    ) -> Result<Self, Errno> {
        let setup = Setup {
            number: 0,
            peers: [Mailbox::new()?].into(),
            pool,
            flows: Arc::new(FlowTable::new(flow).for_one_worker()),
            events: Arc::new(ArrayQueue::new(64)),
            snapshots: snapshot,
            polling: Polling::Busy,
            epoch: clock.now(),
            clock,
        };
        Self::new(setup)
    }

    /// Takes over a port's queue at once.
    pub fn add_port(&mut self, id: PortId, queue: u16, port: Box<dyn Port>) {
        if let Some(fd) = port.wake() {
            let token = epoll::EventData::new_u64(u64::from(id.0));
            // A port that cannot be waited for is still polled each time the worker wakes.
            let _ = epoll::add(&self.epoll, fd, token, epoll::EventFlags::IN);
        }
        self.ports.push(LocalPort {
            id,
            queue,
            port,
            out: Vec::with_capacity(2 * VECTOR),
            quiet: 0,
            heard: 0,
            active: false,
            more: false,
            touched: false,
            redirect: None,
        });
        self.reindex();
    }

    /// Sends full vectors by `outbox` from now on, where a port's [`PortInfo`](crate::snapshot::PortInfo) allows.
    pub fn set_outbox(&mut self, outbox: Box<Outbox>) {
        self.flush();
        self.outbox = Some(outbox);
        self.outbox_failures = 0;
        self.set_lanes();
        if let Some(stats) = self.stats() {
            stats.outbox_given_up.store(0, Relaxed);
            stats.sends_together.store(true, Relaxed);
        }
    }

    /// The worker's counters.
    #[must_use]
    pub fn stats(&self) -> Option<&WorkerStats> {
        self.peers.get(usize::from(self.number)).map(|m| &m.stats)
    }

    /// What the worker asked of the control thread since the last call.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        core::iter::from_fn(|| self.events.pop())
    }

    /// The worker's free frames.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// The flow table.
    #[must_use]
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// Runs until `stop` says so, then hands every port's frames back.
    pub(crate) fn run(mut self, stop: &core::sync::atomic::AtomicBool) {
        while !stop.load(Relaxed) {
            let busy = self.pass();
            self.rest(busy);
        }
        self.flush();
        let pool = &mut self.pool;
        self.graph.release(|frame| pool.put(frame));
        while let Some(local) = self.ports.pop() {
            local.port.close(&mut self.pool);
        }
    }

    /// One pass of the loop; returns whether there was anything to do.
    pub fn pass(&mut self) -> bool {
        let peers = Arc::clone(&self.peers);
        let Some(mailbox) = peers.get(usize::from(self.number)) else { return false };
        let now = self.now();
        mailbox.stats.loops.add(1);
        mailbox.stats.beat.store(now.0, Relaxed);

        let mut busy = self.obey(mailbox);
        busy |= self.receive(&mailbox.stats, now);
        busy |= self.forward(mailbox, now);
        busy |= self.adopt(mailbox);
        self.transmit(&mailbox.stats);
        busy |= self.refill(REFILLED);
        self.sweep(&mailbox.stats, now);
        mailbox.stats.frames_free.store(self.pool.available() as u64, Relaxed);
        busy
    }

    fn now(&self) -> Millis {
        let ms = self.clock.now().duration_since(self.epoch).as_millis();
        #[expect(clippy::cast_possible_truncation, reason = "the clock wraps by design")]
        Millis(ms as u32)
    }

    /// Carries out at most one command; ports change between vectors only.
    fn obey(&mut self, mailbox: &Mailbox) -> bool {
        let Some((ticket, command)) = mailbox.commands.pop() else { return false };
        let answer = match command {
            Command::Add { id, queue, mut port } => {
                // Packets may come as soon as the control thread has the answer.
                port.refill(&mut self.pool);
                self.add_port(id, queue, port);
                Answer::Added
            }
            Command::Remove { id, queue } => match self.position(id, Some(queue)) {
                Some(at) => {
                    let mut local = self.ports.swap_remove(at);
                    self.reindex();
                    for frame in local.out.drain(..) {
                        self.pool.put(frame);
                    }
                    if let Some(fd) = local.port.wake() {
                        let _ = epoll::delete(&self.epoll, fd);
                    }
                    Answer::Removed(local.port)
                }
                None => Answer::NotHere,
            },
            Command::Outbox(outbox) => {
                self.set_outbox(outbox);
                Answer::Added
            }
            Command::Report(mut out) => {
                let worker = self.number;
                let free = out.capacity() - out.len();
                out.extend(self.ports.iter().take(free).map(|l| PortReport {
                    id: l.id,
                    queue: l.queue,
                    worker,
                    stats: l.port.stats(),
                }));
                Answer::Report(out)
            }
        };
        // The control thread waits for each answer before its next command, so there is room.
        let _ = mailbox.answers.push((ticket, answer));
        true
    }

    /// Rebuilds what refers to places in `ports` after a change of them. Allocates, as only a command may.
    fn reindex(&mut self) {
        let count = self.ports.len();
        for list in [&mut self.active, &mut self.touched, &mut self.sending] {
            list.clear();
            list.reserve(count);
        }
        (self.turn, self.scan_from, self.refill_from) = (0, 0, 0);
        for local in &mut self.ports {
            (local.active, local.touched) = (false, false);
        }
        for at in 0..count {
            self.wake_port(at);
        }
        self.set_lanes();
        let len = self.ports.iter().map(|l| usize::from(l.id.0) + 1).max().unwrap_or(0);
        self.index.clear();
        self.index.resize(len, ABSENT);
        for (at, local) in (0u16..).zip(&self.ports) {
            if let Some(slot) = self.index.get_mut(usize::from(local.id.0)) {
                *slot = at;
            }
        }
    }

    /// Sends what the outbox holds from earlier passes.
    fn flush(&mut self) {
        let peers = Arc::clone(&self.peers);
        if let Some(mailbox) = peers.get(usize::from(self.number)) {
            self.flush_outbox(&mailbox.stats);
        }
    }

    /// Gives each port a lane of the outbox, by its place.
    fn set_lanes(&mut self) {
        self.flush();
        if let Some(outbox) = &mut self.outbox {
            outbox.set_lanes(u16::try_from(self.ports.len()).unwrap_or(u16::MAX));
        }
    }

    fn position(&self, id: PortId, queue: Option<u16>) -> Option<usize> {
        self.ports.iter().position(|l| l.id == id && queue.is_none_or(|q| q == l.queue))
    }

    /// Runs the graph and sorts what it sends by port.
    fn forward(&mut self, mailbox: &Mailbox, now: Millis) -> bool {
        let snap = self.snapshots.load();
        mailbox.stats.acked.store(snap.generation, Release);
        if self.packets.is_empty() && self.graph.due(now) != Some(0) {
            return false;
        }
        let mut cx = Context {
            snap,
            flows: &self.flows,
            now,
            restarted: self.clock.now().duration_since(self.epoch) < Graph::PICKUP_WINDOW,
            stats: &mailbox.stats,
            rules: snap.rule_counters.of(usize::from(self.number)),
            events: &self.events,
            packets: &mut self.packets,
        };
        self.graph.run(&self.clock, &mut cx);

        let pool = &mut self.pool;
        for &i in self.graph.sent() {
            let meta = *self.packets.meta(i);
            let Some(frame) = self.packets.take(i) else { continue };
            let at = self.index.get(usize::from(meta.egress.0)).copied().unwrap_or(ABSENT);
            if let Some(local) = self.ports.get_mut(usize::from(at)) {
                if local.out.is_empty() {
                    self.sending.push(at);
                }
                local.out.push(frame);
            } else {
                match hand_over(frame, &meta, self.number, snap, &self.peers) {
                    Ok(owner) => {
                        mailbox.stats.handoffs.add(1);
                        if let Some(handed) = self.handed.get_mut(owner) {
                            *handed = true;
                        }
                    }
                    Err((frame, reason)) => {
                        count_drop(&mailbox.stats, reason);
                        pool.put(frame);
                    }
                }
            }
        }
        for (peer, handed) in self.peers.iter().zip(&mut self.handed) {
            if core::mem::take(handed) {
                peer.wake();
            }
        }
        self.packets.drain(|frame| pool.put(frame));
        true
    }

    /// Takes over what other workers want sent by this worker's ports.
    fn adopt(&mut self, mailbox: &Mailbox) -> bool {
        let mut any = false;
        for _ in 0..VECTOR {
            let Some(handoff) = mailbox.handoffs.pop() else { break };
            any = true;
            let at = self.position(handoff.egress, Some(handoff.queue)).and_then(|at| u16::try_from(at).ok());
            match at.and_then(|at| self.ports.get_mut(usize::from(at)).map(|local| (at, local))) {
                Some((at, local)) => {
                    if local.out.is_empty() {
                        self.sending.push(at);
                    }
                    local.out.push(handoff.frame);
                }
                None => {
                    count_drop(&mailbox.stats, DropReason::PortGone);
                    self.pool.put(handoff.frame);
                }
            }
        }
        any
    }

    fn sweep(&mut self, stats: &WorkerStats, now: Millis) {
        if now.0.wrapping_sub(self.swept.0) < SWEEP_EVERY_MS {
            return;
        }
        let elapsed = usize::try_from(now.0.wrapping_sub(self.swept.0).min(SWEEP_ROUND_MS)).unwrap_or(0);
        self.swept = now;
        // By the time that passed, so that a large table, or a worker that sleeps, keeps the same round.
        let shares = self.peers.len();
        let due = self.flows.buckets() / shares.max(1) * elapsed / SWEEP_ROUND_MS as usize;
        let swept = self.flows.sweep(usize::from(self.number), shares, now, due.max(SWEEP_BUCKETS));
        stats.flows_expired.add(swept.expired() as u64);
    }
}
