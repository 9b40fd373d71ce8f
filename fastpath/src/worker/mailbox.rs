//! How the control thread and the other workers reach a worker: commands, answers, packets to send, a bell.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering::SeqCst;
use std::os::fd::OwnedFd;

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::graph::DropReason;
use crate::io::xsk::Outbox;
use crate::io::{Frame, Port, PortStats};
use crate::packet::{Meta, PortId};
use crate::snapshot::Snapshot;
use crate::stats::WorkerStats;

/// Packets that may wait in the queue to one worker.
const HANDOFFS: usize = if cfg!(miri) { 64 } else { 4096 };

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
    /// Send full vectors by this.
    Outbox(Box<Outbox>),
}

/// What a worker answers.
pub(crate) enum Answer {
    /// The port is the worker's, and has frames to receive into; or the outbox is.
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

/// Gives a frame to the worker that owns the port, a queue chosen by hash so that one flow stays in order; returns
/// its number, for it to be woken.
#[inline]
pub(super) fn hand_over(
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
