//! The pinned loop: drain rx rings into a vector, run the graph, flush each tx ring once, refill, sleep when idle.
#![forbid(unsafe_code)]

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use core::time::Duration;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use crate::graph::{Context, DropReason, Event, Graph, NodeId, Packets, VECTOR, count_drop, record};
use crate::io::{Frame, Pool, Port, PortStats};
use crate::packet::{Meta, PortId};
use crate::snapshot::Snapshot;
use crate::stats::WorkerStats;
use crate::tables::flow::{FlowConfig, FlowTable, Millis};

/// Most frames taken from one port before the next has its turn.
const RX_BURST: usize = 64;
/// Fewest flow-table buckets swept in one pass of the loop.
const SWEEP_BUCKETS: usize = 64;
/// A worker sees all buckets of its share in this time, well before a coarse deadline could wrap (128 s).
const SWEEP_ROUND_MS: u32 = 20_000;
/// Passes of the sweep each second at most; keeps an idle worker from sweeping without end.
const SWEEP_EVERY_MS: u32 = 20;
/// Packets that may wait in the queue to one worker.
const HANDOFFS: usize = if cfg!(miri) { 64 } else { 4096 };
/// Tries to place a port's frames in its tx ring before they are dropped.
const TX_TRIES: usize = 4;

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
    /// Asks for `spin` without a packet, then waits in the kernel, at most `sleep` at a time.
    Adaptive {
        /// How long to ask before waiting.
        spin: Duration,
        /// Longest wait: timeouts and the heartbeat go on.
        sleep: Duration,
    },
}

/// Tells which command an answer is to: one can come after its question was given up.
pub(crate) type Ticket = u32;

/// What the control thread tells a worker. Each command gets one answer.
pub(crate) enum Command {
    /// Take over a port's queue.
    Add { id: PortId, queue: u16, port: Box<dyn Port> },
    /// Give a port's queue back.
    Remove { id: PortId, queue: u16 },
    /// Report the counters of all ports.
    Report(Vec<PortReport>),
}

/// What a worker answers.
pub(crate) enum Answer {
    /// The port is the worker's, and has frames to receive into.
    Added,
    /// The port given back; to be closed by the control thread, as that can block.
    Removed(Box<dyn Port>),
    /// No such port here.
    NotHere,
    /// Counters of all ports.
    Report(Vec<PortReport>),
}

/// Counters of one port's queue.
#[derive(Clone, Copy, Debug)]
pub struct PortReport {
    /// The port.
    pub id: PortId,
    /// The device's queue.
    pub queue: u16,
    /// The worker that owns it.
    pub worker: u16,
    /// Its counters.
    pub stats: PortStats,
}

/// A packet that another worker must transmit, with everything decided.
pub(crate) struct Handoff {
    pub(crate) frame: Frame,
    pub(crate) egress: PortId,
    pub(crate) queue: u16,
}

/// How a worker is reached by others.
pub(crate) struct Mailbox {
    pub(crate) commands: ArrayQueue<(Ticket, Command)>,
    pub(crate) answers: ArrayQueue<(Ticket, Answer)>,
    pub(crate) handoffs: ArrayQueue<Handoff>,
    pub(crate) event: OwnedFd,
    pub(crate) stats: WorkerStats,
}

impl Mailbox {
    /// Empty queues.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            commands: ArrayQueue::new(64),
            answers: ArrayQueue::new(64),
            handoffs: ArrayQueue::new(HANDOFFS),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stats: WorkerStats::default(),
        })
    }

    /// Wakes the worker if it sleeps, for what was put into one of the queues. One system call per sleep.
    pub(crate) fn wake(&self) {
        // Both sides swap: either this one sees that the worker sleeps, or the worker sees what is in the queue.
        if self.stats.sleeping.swap(false, SeqCst) {
            self.ring();
        }
    }

    /// Ends the worker's wait, or its next one: for what it does not look at again before it sleeps.
    pub(crate) fn ring(&self) {
        // Only fails when the counter is full, and then the worker is woken anyway.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

struct LocalPort {
    id: PortId,
    queue: u16,
    port: Box<dyn Port>,
    /// Frames to transmit at the end of this pass.
    out: Vec<Frame>,
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
    turn: usize,
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

impl Worker {
    pub(crate) fn new(setup: Setup) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
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
            clock: setup.clock,
            epoch: setup.epoch,
            epoll,
            ports: Vec::with_capacity(64),
            index: Vec::new(),
            graph: Graph::default(),
            packets: Packets::default(),
            received: Vec::with_capacity(VECTOR),
            turn: 0,
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
            flows: Arc::new(FlowTable::new(flow)),
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
        self.ports.push(LocalPort { id, queue, port, out: Vec::with_capacity(2 * VECTOR) });
        self.reindex();
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
        for local in &mut self.ports {
            // No event tells when a device takes more: the worker stays awake for what is not sent yet.
            busy |= local.port.refill(&mut self.pool);
        }
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

    /// Rebuilds `index` after a change of `ports`. Allocates, as only a command may.
    fn reindex(&mut self) {
        let len = self.ports.iter().map(|l| usize::from(l.id.0) + 1).max().unwrap_or(0);
        self.index.clear();
        self.index.resize(len, ABSENT);
        for (at, local) in (0u16..).zip(&self.ports) {
            if let Some(slot) = self.index.get_mut(usize::from(local.id.0)) {
                *slot = at;
            }
        }
    }

    fn position(&self, id: PortId, queue: Option<u16>) -> Option<usize> {
        self.ports.iter().position(|l| l.id == id && queue.is_none_or(|q| q == l.queue))
    }

    /// Fills the vector from the ports in turn, up to what the graph needs for packets it has held back.
    fn receive(&mut self, stats: &WorkerStats, now: Millis) -> bool {
        let start = self.clock.raw();
        let count = self.ports.len();
        // Without room for all, the ones that had no turn come first in the next pass.
        let mut served = 1;
        let most = VECTOR - self.graph.backlog(now).min(VECTOR / 2);
        for n in 0..count {
            let room = most.saturating_sub(self.packets.len());
            if room == 0 {
                served = n;
                break;
            }
            let Some(local) = self.ports.get_mut((self.turn + n) % count) else { continue };
            if local.port.rx(&mut self.received, room.min(RX_BURST)) == 0 {
                continue;
            }
            for frame in self.received.drain(..) {
                if let Some(frame) = self.packets.push(frame, local.id) {
                    self.pool.put(frame);
                }
            }
        }
        if count > 0 {
            self.turn = (self.turn + served) % count;
        }
        let received = self.packets.len() as u64;
        if received > 0 {
            record(stats, NodeId::Rx, received, self.clock.raw().wrapping_sub(start));
        }
        received > 0
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
            if let Some(local) =
                self.index.get(usize::from(meta.egress.0)).and_then(|at| self.ports.get_mut(usize::from(*at)))
            {
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
            match self.position(handoff.egress, Some(handoff.queue)).and_then(|at| self.ports.get_mut(at)) {
                Some(local) => local.out.push(handoff.frame),
                None => {
                    count_drop(&mailbox.stats, DropReason::PortGone);
                    self.pool.put(handoff.frame);
                }
            }
        }
        any
    }

    /// One kick per port with something to send; what does not fit after a few tries is dropped.
    fn transmit(&mut self, stats: &WorkerStats) {
        let start = self.clock.raw();
        let mut sent = 0;
        for local in self.ports.iter_mut().filter(|l| !l.out.is_empty()) {
            for _ in 0..TX_TRIES {
                sent += local.port.tx(&mut local.out) as u64;
                if local.out.is_empty() || !local.port.up() {
                    break;
                }
                local.port.refill(&mut self.pool);
            }
            let reason = if local.port.up() { DropReason::TxRingFull } else { DropReason::LinkDown };
            for frame in local.out.drain(..) {
                count_drop(stats, reason);
                self.pool.put(frame);
            }
        }
        if sent > 0 {
            record(stats, NodeId::Tx, sent, self.clock.raw().wrapping_sub(start));
        }
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

    /// Waits for packets when the polling mode and the lack of work say so.
    fn rest(&mut self, busy: bool) {
        let Polling::Adaptive { spin, sleep } = self.polling else {
            if !busy {
                core::hint::spin_loop();
            }
            return;
        };
        if busy {
            self.idle_since = None;
            return;
        }
        let now = self.clock.raw();
        let since = *self.idle_since.get_or_insert(now);
        if self.clock.delta(since, now) < spin {
            core::hint::spin_loop();
            return;
        }
        let peers = Arc::clone(&self.peers);
        let Some(mailbox) = peers.get(usize::from(self.number)) else { return };
        mailbox.stats.sleeping.swap(true, SeqCst);
        // Looked at again after `sleeping` is seen by everybody: what came before needs no wake-up.
        if mailbox.commands.is_empty() && mailbox.handoffs.is_empty() {
            mailbox.stats.sleeps.add(1);
            let due = self.graph.due(self.now()).map(|ms| Duration::from_millis(ms.into()));
            let sleep = due.map_or(sleep, |due| due.min(sleep));
            let timeout = rustix::time::Timespec {
                tv_sec: sleep.as_secs().cast_signed(),
                tv_nsec: i64::from(sleep.subsec_nanos()),
            };
            let mut woken = [const { MaybeUninit::<epoll::Event>::uninit() }; 16];
            let ready = epoll::wait(&self.epoll, &mut woken, Some(&timeout)).map(|(ready, _)| ready);
            let rung = ready.is_ok_and(|events| events.iter().any(|e| e.data.u64() == EVENT));
            if rung {
                let mut count = [0u8; 8];
                let _ = rustix::io::read(&mailbox.event, &mut count);
            }
        }
        mailbox.stats.sleeping.store(false, Release);
    }
}

/// Gives a frame to the worker that owns the port, a queue chosen by hash so that one flow stays in order; returns
/// its number, for it to be woken.
#[inline]
fn hand_over(
    frame: Frame,
    meta: &Meta,
    number: u16,
    snap: &Snapshot,
    peers: &[Mailbox],
) -> Result<usize, (Frame, DropReason)> {
    let queues = snap.port(meta.egress).map_or(&[][..], |p| p.queues.as_slice());
    let queue = usize::try_from(meta.hash % (queues.len().max(1) as u64)).unwrap_or(0);
    let owner = queues.get(queue).filter(|w| **w != number).map(|w| usize::from(*w));
    let (Some((owner, peer)), Ok(queue)) =
        (owner.and_then(|w| peers.get(w).map(|p| (w, p))), u16::try_from(queue))
    else {
        return Err((frame, DropReason::PortGone));
    };
    let handoff = Handoff { frame, egress: meta.egress, queue };
    peer.handoffs.push(handoff).map_err(|h| (h.frame, DropReason::HandoffFull))?;
    Ok(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the event's counter says; reading it sets it back.
    fn rung(mailbox: &Mailbox) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&mailbox.event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    #[test]
    fn only_a_sleeping_worker_is_rung_and_once() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.wake();
        assert_eq!(rung(&mailbox), 0);
        mailbox.stats.sleeping.store(true, SeqCst);
        for _ in 0..5 {
            mailbox.wake();
        }
        assert_eq!(rung(&mailbox), 1);
        mailbox.ring();
        assert_eq!(rung(&mailbox), 1, "whether it sleeps or not");
    }
}
