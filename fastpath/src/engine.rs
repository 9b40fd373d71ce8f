//! Starts the workers, publishes snapshots to them, moves ports between them and the control thread.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Acquire, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;

pub use crate::graph::Event;
use crate::io::xsk::Outbox;
use crate::io::{Exchange, Frame, Pool, Port};
use crate::packet::PortId;
use crate::snapshot::Snapshot;
use crate::stats::WorkerStats;
use crate::tables::flow::{FlowConfig, FlowTable, Millis};
use crate::worker::{Answer, Command, Mailbox, Setup, Ticket, Worker};
pub use crate::worker::{Polling, PortReport};

/// Events that may wait for the control thread; more are lost, and asked for again by the next packet.
const EVENTS: usize = 1024;
/// How long a worker may take to answer a command before the engine gives up on it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// One worker to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Core to pin it to; `None` leaves it to the scheduler (tests).
    pub core: Option<usize>,
    /// What it does when idle.
    pub polling: Polling,
}

/// What the engine is made of.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The workers.
    pub workers: Vec<WorkerConfig>,
    /// The flow table all of them share.
    pub flow: FlowConfig,
}

/// Why the engine did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No worker was asked for.
    #[error("no worker configured: the dataplane needs at least one")]
    NoWorkers,
    /// The kernel refused an event or epoll descriptor.
    #[error("worker {worker}: cannot create its event descriptors: {errno}")]
    Events {
        /// Number of the worker.
        worker: usize,
        /// What the kernel said.
        errno: rustix::io::Errno,
    },
    /// The thread could not be started.
    #[error("worker {worker}: cannot start its thread: {source}")]
    Thread {
        /// Number of the worker.
        worker: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread could not be pinned.
    #[error(
        "worker {worker}: cannot pin its thread to core {core}: the core does not exist or this process may not use it (taskset, cpuset)"
    )]
    Pin {
        /// Number of the worker.
        worker: usize,
        /// The core asked for.
        core: usize,
    },
    /// The worker did not answer.
    #[error("worker {worker} does not answer")]
    Silent {
        /// Number of the worker.
        worker: usize,
    },
    /// There is no such worker.
    #[error("there is no worker {worker}")]
    NoSuchWorker {
        /// Number asked for.
        worker: usize,
    },
}

/// The running workers. Used by the control thread alone.
#[derive(Debug)]
pub struct Engine {
    peers: Arc<[Mailbox]>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that a worker may still hold: freed here, so that no worker frees a table.
    retired: Vec<Arc<Snapshot>>,
    flows: Arc<FlowTable>,
    exchange: Exchange,
    events: Arc<ArrayQueue<Event>>,
    next_ticket: AtomicU32,
    clock: quanta::Clock,
    epoch: quanta::Instant,
}

impl core::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mailbox").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the workers. `frames` are shared out evenly among them.
    ///
    /// # Errors
    /// When there is no worker, or one cannot be started or pinned; those already started are stopped.
    pub fn start(config: &EngineConfig, frames: Vec<Frame>) -> Result<Self, EngineError> {
        let count = config.workers.len();
        if count == 0 {
            return Err(EngineError::NoWorkers);
        }
        let mut mailboxes = Vec::with_capacity(count);
        for worker in 0..count {
            mailboxes.push(Mailbox::new().map_err(|errno| EngineError::Events { worker, errno })?);
        }
        let clock = quanta::Clock::new();
        let flows = FlowTable::new(&config.flow);
        let flows = if count == 1 { flows.for_one_worker() } else { flows };
        let mut engine = Self {
            peers: mailboxes.into(),
            threads: Vec::with_capacity(count),
            stop: Arc::new(AtomicBool::new(false)),
            snapshots: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            retired: Vec::new(),
            flows: Arc::new(flows),
            exchange: Arc::new(ArrayQueue::new(frames.len().max(1))),
            events: Arc::new(ArrayQueue::new(EVENTS)),
            next_ticket: AtomicU32::new(0),
            epoch: clock.now(),
            clock,
        };
        let share = frames.len() / count;
        let mut frames = frames.into_iter();
        for (number, worker) in config.workers.iter().enumerate() {
            let pool = Pool::new(frames.by_ref().take(share).collect(), Arc::clone(&engine.exchange));
            engine.start_worker(number, *worker, pool)?;
        }
        for frame in frames {
            // The queue has room for every frame there is.
            let _ = engine.exchange.push(frame);
        }
        Ok(engine)
    }

    fn start_worker(&mut self, number: usize, config: WorkerConfig, pool: Pool) -> Result<(), EngineError> {
        let setup = Setup {
            number: u16::try_from(number).map_err(|_| EngineError::NoSuchWorker { worker: number })?,
            peers: Arc::clone(&self.peers),
            pool,
            flows: Arc::clone(&self.flows),
            snapshots: Arc::clone(&self.snapshots),
            events: Arc::clone(&self.events),
            polling: config.polling,
            clock: self.clock.clone(),
            epoch: self.epoch,
        };
        let worker = Worker::new(setup).map_err(|errno| EngineError::Events { worker: number, errno })?;
        let stop = Arc::clone(&self.stop);
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("fp-worker-{number}"))
            .spawn(move || {
                let pinned =
                    config.core.is_none_or(|id| core_affinity::set_for_current(core_affinity::CoreId { id }));
                let _ = tell.send(pinned);
                if pinned {
                    worker.run(&stop);
                }
            })
            .map_err(|source| EngineError::Thread { worker: number, source })?;
        self.threads.push(thread);
        match (told.recv(), config.core) {
            (Ok(true), _) => Ok(()),
            (_, core) => Err(EngineError::Pin { worker: number, core: core.unwrap_or_default() }),
        }
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.peers.len()
    }

    /// Makes `snapshot` the one that workers read from their next vector on.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>) {
        self.tidy();
        let old = self.snapshots.swap(snapshot);
        self.retired.push(old);
        for peer in self.peers.iter() {
            peer.ring();
        }
    }

    /// Frees the snapshots that no worker holds any more: work that no packet waits for, so it is not done by
    /// [`Engine::publish`] when there is time for it here.
    pub fn tidy(&mut self) {
        // The one reference left is this one, and stays so: workers take only what is published.
        self.retired.retain(|s| Arc::strong_count(s) > 1);
    }

    /// The generation every worker forwards by (the oldest among them).
    #[must_use]
    pub fn acked(&self) -> u32 {
        self.peers.iter().map(|p| p.stats.acked.load(Acquire)).min().unwrap_or(0)
    }

    /// Gives a port's queue to a worker; once this returns, the port has frames to receive into.
    ///
    /// # Errors
    /// When there is no such worker or it does not answer. In the latter case it may take the port yet: call
    /// [`Engine::remove_port`]. A port that no worker has taken is closed.
    pub fn add_port(
        &self,
        worker: usize,
        id: PortId,
        queue: u16,
        port: Box<dyn Port>,
    ) -> Result<(), EngineError> {
        if self.mailbox(worker).is_err() {
            self.close_port(port);
            return Err(EngineError::NoSuchWorker { worker });
        }
        self.ask(worker, Command::Add { id, queue, port }).map(drop)
    }

    /// Has a worker send full vectors by `outbox`.
    ///
    /// # Errors
    /// When there is no such worker or it does not answer.
    pub fn give_outbox(&self, worker: usize, outbox: Outbox) -> Result<(), EngineError> {
        self.ask(worker, Command::Outbox(Box::new(outbox))).map(drop)
    }

    /// Closes a port that no worker has; its frames go to the workers, but for those that its device may be reading
    /// still ([`Port::close`]): their number. Closing a socket can wait for the kernel, so no worker does it.
    pub fn close_port(&self, port: Box<dyn Port>) -> usize {
        port.close(&mut Pool::new(Vec::new(), Arc::clone(&self.exchange)))
    }

    /// Takes a port's queue from a worker and closes it; `None` when the worker did not have it, else what
    /// [`Engine::close_port`] says.
    ///
    /// # Errors
    /// When there is no such worker or it does not answer.
    pub fn remove_port(&self, worker: usize, id: PortId, queue: u16) -> Result<Option<usize>, EngineError> {
        match self.ask(worker, Command::Remove { id, queue })? {
            Answer::Removed(port) => Ok(Some(self.close_port(port))),
            Answer::NotHere | Answer::Added | Answer::Report(_) => Ok(None),
        }
    }

    /// Counters of every port's queue.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub fn port_reports(&self, ports: usize) -> Result<Vec<PortReport>, EngineError> {
        let mut all = Vec::new();
        for worker in 0..self.workers() {
            if let Answer::Report(report) = self.ask(worker, Command::Report(Vec::with_capacity(ports)))? {
                all.extend(report);
            }
        }
        Ok(all)
    }

    fn mailbox(&self, worker: usize) -> Result<&Mailbox, EngineError> {
        self.peers.get(worker).ok_or(EngineError::NoSuchWorker { worker })
    }

    fn ask(&self, worker: usize, command: Command) -> Result<Answer, EngineError> {
        let mailbox = self.mailbox(worker)?;
        let ticket: Ticket = self.next_ticket.fetch_add(1, Relaxed);
        if let Err((_, refused)) = mailbox.commands.push((ticket, command)) {
            if let Command::Add { port, .. } = refused {
                self.close_port(port);
            }
            return Err(EngineError::Silent { worker });
        }
        mailbox.ring();
        let asked = self.clock.now();
        loop {
            match mailbox.answers.pop() {
                Some((of, answer)) if of == ticket => return Ok(answer),
                // To a question that was given up: nobody else has the port now.
                Some((_, Answer::Removed(port))) => {
                    self.close_port(port);
                }
                Some(_) => {}
                None if self.clock.now().duration_since(asked) > ANSWER_WITHIN => {
                    return Err(EngineError::Silent { worker });
                }
                None => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    /// Counters of each worker.
    pub fn stats(&self) -> impl Iterator<Item = &WorkerStats> {
        self.peers.iter().map(|p| &p.stats)
    }

    /// A view of the workers' beats, for another thread.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse { peers: Arc::clone(&self.peers), clock: self.clock.clone(), epoch: self.epoch }
    }

    /// How long ago each worker last passed its loop.
    #[must_use]
    pub fn beat_ages(&self) -> Vec<Duration> {
        self.pulse().ages()
    }

    /// The clock that flow times are in.
    #[must_use]
    pub fn now(&self) -> Millis {
        millis(&self.clock, self.epoch)
    }

    /// What workers asked for since the last call.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        core::iter::from_fn(|| self.events.pop())
    }

    /// The flow table.
    #[must_use]
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// Stops the workers; every port is closed by its worker.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.stop.store(true, Relaxed);
        for peer in self.peers.iter() {
            peer.ring();
        }
        for thread in self.threads.drain(..) {
            // A worker that panicked has nothing to hand back.
            let _ = thread.join();
        }
    }
}

/// How recently the workers passed their loops.
#[derive(Clone, Debug)]
pub struct Pulse {
    peers: Arc<[Mailbox]>,
    clock: quanta::Clock,
    epoch: quanta::Instant,
}

impl Pulse {
    /// How long ago each worker last passed its loop.
    #[must_use]
    pub fn ages(&self) -> Vec<Duration> {
        let now = millis(&self.clock, self.epoch).0;
        // A worker may beat after `now` was read: that is an age of zero, not of seven weeks.
        let age =
            |w: &WorkerStats| now.wrapping_sub(w.beat.load(Relaxed)).cast_signed().max(0).cast_unsigned();
        self.peers.iter().map(|p| Duration::from_millis(u64::from(age(&p.stats)))).collect()
    }
}

fn millis(clock: &quanta::Clock, epoch: quanta::Instant) -> Millis {
    let ms = clock.now().duration_since(epoch).as_millis();
    #[expect(clippy::cast_possible_truncation, reason = "the clock wraps by design")]
    Millis(ms as u32)
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DropReason;
    use crate::io::frame::region;
    use crate::io::mem::MemPort;
    use crate::tables::flow::Timeouts;
    use crate::wire::testgen::Spec;

    const FRAMES: u32 = 64;

    /// An engine whose idle workers sleep until they are woken.
    fn sleeper(workers: usize) -> Engine {
        let polling = Polling::Adaptive {
            spin: Duration::ZERO,
            spin_longest: Duration::ZERO,
            sleep: Duration::from_secs(3600),
        };
        let config = EngineConfig {
            workers: vec![WorkerConfig { core: None, polling }; workers],
            flow: FlowConfig { entries_v4: 64, entries_v6: 64, timeouts: Timeouts::default(), seed: 1 },
        };
        Engine::start(&config, region::in_memory(FRAMES, 2048).1).unwrap()
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "gave up waiting: {what}");
            std::thread::yield_now();
        }
    }

    /// However close to its falling asleep: a worker sees a snapshot, a command and the stop at once.
    #[test]
    fn nothing_waits_for_a_sleeping_worker() {
        let mut engine = sleeper(2);
        for generation in 1..=500 {
            engine.publish(Arc::new(Snapshot { generation, ..Snapshot::default() }));
            until("the snapshot", || engine.acked() == generation);
            if generation % 50 == 0 {
                assert_eq!(engine.port_reports(0).unwrap().len(), 0);
            }
        }
        assert!(engine.retired.len() <= 2, "{}", engine.retired.len());
        engine.stop();
    }

    /// No packet comes that would wake it: a worker that holds a fragment gives it up when its time is over.
    #[test]
    fn a_worker_does_not_oversleep_what_it_holds() {
        use crate::testbed::{Underlay, from_pod, pod, pod_port, snapshot};
        let mut engine = sleeper(1);
        let (port, wire) = MemPort::new(4);
        engine.add_port(0, pod_port(1), 0, Box::new(port)).unwrap();
        let mut later = Spec::udp(pod(true, 1, 1), pod(true, 1, 2), 1, 2).with_payload(vec![0; 64]);
        later.fragment = Some((8, false));
        assert!(wire.inject_bytes(&mut Pool::in_memory(1, 2048), &from_pod(1, 1, later)));
        engine.publish(Arc::new(snapshot(1, Underlay { encap: true, outer_v6: false })));
        let drops = |reason: DropReason| engine.stats().map(|s| s.drops[reason as usize].get()).sum::<u64>();
        until("the fragment is given up", || drops(DropReason::FragmentUnmatched) == 1);
    }

    #[test]
    fn ports_go_to_a_worker_and_come_back() {
        let engine = sleeper(2);
        let (port, _) = MemPort::new(4);
        engine.add_port(1, PortId(7), 0, Box::new(port)).unwrap();
        let reports = engine.port_reports(8).unwrap();
        assert_eq!(reports.iter().map(|r| (r.id, r.worker)).collect::<Vec<_>>(), [(PortId(7), 1)]);
        assert_eq!(engine.remove_port(0, PortId(7), 0).unwrap(), None);
        assert_eq!(engine.remove_port(1, PortId(7), 0).unwrap(), Some(0));
        assert_eq!(engine.remove_port(1, PortId(7), 0).unwrap(), None);
        assert!(matches!(engine.remove_port(2, PortId(7), 0), Err(EngineError::NoSuchWorker { worker: 2 })));
    }

    /// A worker gives a port back after the engine has stopped waiting for it.
    #[test]
    fn late_answers_are_no_ones_answers_and_their_ports_are_closed() {
        let engine = sleeper(1);
        let (port, wire) = MemPort::new(4);
        let mut pool = Pool::in_memory(3, 2048);
        (0..3).for_each(|_| assert!(wire.inject_bytes(&mut pool, b"unread")));
        assert!(engine.peers[0].answers.push((u32::MAX, Answer::Removed(Box::new(port)))).is_ok());
        assert!(engine.peers[0].answers.push((u32::MAX, Answer::NotHere)).is_ok());
        let (port, _) = MemPort::new(4);
        engine.add_port(0, PortId(1), 0, Box::new(port)).unwrap();
        assert_eq!(engine.port_reports(8).unwrap().len(), 1);
        assert_eq!(engine.remove_port(0, PortId(1), 0).unwrap(), Some(0));
        assert_eq!(engine.exchange.len(), 3, "the frames of the port that came late");
    }
}
