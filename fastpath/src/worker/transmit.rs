//! The end of a pass: what the graph sends leaves, one kick for a port or, from so many packets on, one call for all.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering::Relaxed;

use super::Worker;
use super::receive::touch;
use crate::graph::{DropReason, NodeId, VECTOR, count_drop, record};
use crate::io::xsk::Outbox;
use crate::stats::WorkerStats;

/// Tries to place a port's frames in its tx ring before they are dropped.
const TX_TRIES: usize = 4;
/// Packets from which one call of the outbox costs less than the ports' sockets: measured, see bench/README.md.
const OUTBOX_FROM: usize = 24;
/// Full vectors that one call of the outbox may hold: those of a flood hold few packets each that go on.
const OUTBOX_PASSES: u8 = 4;
/// Calls of the outbox that may fail in a row before it is given up.
const OUTBOX_FAILURES: u8 = 8;

impl Worker {
    /// Sends what the ports have been given; what does not fit after a few tries is dropped.
    pub(super) fn transmit(&mut self, stats: &WorkerStats) {
        if self.sending.is_empty() && self.outbox.as_ref().is_none_or(|o| o.queued() == 0) {
            return;
        }
        let start = self.clock.raw();
        let mut sent = self.transmit_together(stats);
        for at in self.sending.drain(..) {
            let Some(local) = self.ports.get_mut(usize::from(at)) else { continue };
            if local.out.is_empty() {
                continue;
            }
            // It has frames to give back at the end of the pass.
            touch(&mut self.touched, local, at);
            for _ in 0..TX_TRIES {
                if local.out.is_empty() {
                    break;
                }
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

    /// Puts into the outbox what may go that way, if it is enough, and sends it; returns how many packets that were.
    ///
    /// While vectors are full, up to [`OUTBOX_PASSES`] of them go in one call: with many ports, the fewer calls the more
    /// packets each receiver has at once. The order within a port stays: a port whose socket has packets waiting is left
    /// out, and before a socket sends what does not go into the outbox, an outbox that holds packets of its port is emptied.
    fn transmit_together(&mut self, stats: &WorkerStats) -> u64 {
        let Some(outbox) = &mut self.outbox else { return 0 };
        let snap = self.snapshots.load();
        let mut together = 0;
        for at in &self.sending {
            let Some(local) = self.ports.get_mut(usize::from(*at)) else { continue };
            local.redirect = snap.port(local.id).and_then(|p| p.redirect).filter(|_| local.port.settled());
            together += if local.redirect.is_some() { local.out.len() } else { 0 };
        }
        let mut count = 0;
        if together >= OUTBOX_FROM || outbox.queued() > 0 {
            for at in &self.sending {
                let Some(local) = self.ports.get_mut(usize::from(*at)) else { continue };
                let Some(device) = local.redirect else { continue };
                let fits = local.out.iter().take_while(|f| outbox.put(*at, device.get(), f.data())).count();
                let mut bytes = 0;
                for frame in local.out.drain(..fits) {
                    bytes += frame.len() as u64;
                    self.pool.put(frame);
                }
                local.port.redirected(fits as u64, bytes);
                count += fits as u64;
            }
        }
        let ports = &self.ports;
        let waits =
            |at: &u16| outbox.holds(*at) && ports.get(usize::from(*at)).is_some_and(|l| !l.out.is_empty());
        let overtaken = self.sending.iter().any(waits);
        let queued = outbox.queued();
        if queued == 0 {
            return count;
        }
        let room = Outbox::SLOTS - queued;
        self.held += 1;
        if self.full && !overtaken && self.held < OUTBOX_PASSES && room as usize >= VECTOR {
            return count;
        }
        self.flush_outbox(stats);
        count
    }

    /// Sends what the outbox holds; a port's packets count as sent since they are in it, those it then does not send as
    /// dropped too.
    pub(super) fn flush_outbox(&mut self, stats: &WorkerStats) {
        self.held = 0;
        let Some(outbox) = &mut self.outbox else { return };
        let queued = outbox.queued();
        if queued == 0 {
            return;
        }
        let (sent, result) = outbox.send();
        stats.outbox_calls.add(1);
        stats.outbox_packets.add(u64::from(sent));
        let Err(error) = result else {
            self.outbox_failures = 0;
            return;
        };
        stats.outbox_errors.add(1);
        for _ in sent..queued {
            count_drop(stats, DropReason::CallFailed);
        }
        self.outbox_failures += 1;
        if self.outbox_failures >= OUTBOX_FAILURES {
            self.outbox = None;
            stats.outbox_given_up.store(error.raw_os_error().unwrap_or(libc::EIO), Relaxed);
            stats.sends_together.store(false, Relaxed);
        }
    }
}
