//! The beginning of a pass: fills the vector from the ports, without touching those that are quiet.
//!
//! Hundreds of ports are mostly quiet, and each one looked at in vain costs a few cache misses. Those that had packets
//! lately are asked on every pass, in turn; all others when a wake-up named them, or when [`SCAN_SHARE`] times as long
//! as it takes, or a millisecond, has gone by since they were asked last; and a few when those had nothing.
#![forbid(unsafe_code)]

use super::{LocalPort, Worker};
use crate::graph::{NodeId, VECTOR, record};
use crate::stats::WorkerStats;
use crate::tables::flow::Millis;

/// Most frames taken from one port before the next has its turn.
const RX_BURST: usize = 64;
/// Passes without a packet after which a port is quiet, at the earliest.
const QUIET: u8 = 32;
/// A look at the quiet ports takes at most one part of this many of a busy worker's time.
const SCAN_SHARE: u64 = 16;
/// Quiet ports that are asked on a pass in which the others had nothing: few, to be back soon at those.
const SCANNED: usize = 16;
/// Quiet ports that are refilled on a pass.
pub(super) const REFILLED: usize = 8;

impl Worker {
    /// Fills the vector from the ports in turn, up to what the graph needs for packets it has held back.
    pub(super) fn receive(&mut self, stats: &WorkerStats, now: Millis) -> bool {
        let start = self.clock.raw();
        let most = VECTOR - self.graph.backlog(now).min(VECTOR / 2);
        let some_quiet = self.active.len() < self.ports.len();
        // First, as active ports may fill every vector.
        let pause = self.scan_ticks.saturating_mul(SCAN_SHARE).min(self.scan_latest);
        let due = start.wrapping_sub(self.scanned) >= pause;
        if some_quiet && due {
            self.receive_quiet(most, usize::MAX);
        }
        self.receive_active(most, start);
        if some_quiet && !due && self.packets.is_empty() {
            self.receive_quiet(most, SCANNED);
        }
        self.full = self.packets.len() >= most;
        let received = self.packets.len() as u64;
        if received > 0 {
            record(stats, NodeId::Rx, received, self.clock.raw().wrapping_sub(start));
        }
        received > 0
    }

    /// Takes a burst of each active port in turn, and again of those that may have more, while there is room.
    fn receive_active(&mut self, most: usize, now: u64) {
        let count = self.active.len();
        if count == 0 {
            return;
        }
        // Without room for all, the ones that had no turn come first in the next pass.
        let mut served = 1;
        let mut first = true;
        let mut more = true;
        while more && self.packets.len() < most {
            more = false;
            for n in 0..count {
                let room = most.saturating_sub(self.packets.len());
                if room == 0 {
                    served = n;
                    break;
                }
                let at = self.active.get((self.turn + n) % count).copied().unwrap_or(u16::MAX);
                let Some(local) = self.ports.get_mut(usize::from(at)) else { continue };
                if !first && !local.more {
                    continue;
                }
                let burst = room.min(RX_BURST);
                let got = local.port.rx(&mut self.received, burst);
                local.more = got == burst;
                more |= local.more;
                if first {
                    local.quiet = if got == 0 { local.quiet.saturating_add(1) } else { 0 };
                }
                if got > 0 {
                    local.heard = now;
                    touch(&mut self.touched, local, at);
                    for frame in self.received.drain(..) {
                        if let Some(frame) = self.packets.push(frame, local.id) {
                            self.pool.put(frame);
                        }
                    }
                }
            }
            first = false;
        }
        self.turn = (self.turn + served) % count;
        let (ports, quiet_after) = (&mut self.ports, self.quiet_after);
        self.active.retain(|at| {
            let Some(local) = ports.get_mut(usize::from(*at)) else { return false };
            local.active = local.quiet < QUIET || now.wrapping_sub(local.heard) < quiet_after;
            local.active
        });
    }

    /// Asks so many ports, in turn, those that are not active; the ones with packets become so.
    fn receive_quiet(&mut self, most: usize, share: usize) {
        let start = self.clock.raw();
        let count = self.ports.len();
        let share = share.min(count);
        for n in 0..share {
            let room = most.saturating_sub(self.packets.len());
            if room == 0 {
                // The rest comes first the next time, which is the next pass.
                self.scan_from = (self.scan_from + n) % count;
                self.scanned = start.wrapping_sub(u64::MAX / 2);
                return;
            }
            let at = (self.scan_from + n) % count;
            let Some(local) = self.ports.get_mut(at) else { continue };
            if local.active || local.port.rx(&mut self.received, room.min(RX_BURST)) == 0 {
                continue;
            }
            for frame in self.received.drain(..) {
                if let Some(frame) = self.packets.push(frame, local.id) {
                    self.pool.put(frame);
                }
            }
            self.wake_port(at);
        }
        self.scan_from = (self.scan_from + share) % count.max(1);
        if share == count {
            self.scanned = self.clock.raw();
            self.scan_ticks = self.scanned.wrapping_sub(start);
        }
    }

    /// Makes a port one that is asked on every pass.
    pub(super) fn wake_port(&mut self, at: usize) {
        let (Some(local), Ok(number)) = (self.ports.get_mut(at), u16::try_from(at)) else { return };
        local.quiet = 0;
        local.heard = self.clock.raw();
        touch(&mut self.touched, local, number);
        if !core::mem::replace(&mut local.active, true) {
            self.active.push(number);
        }
    }

    /// Takes sent frames back and gives empty ones out: to the ports that had packets on this pass and those with
    /// packets still to send, and to `others` of the rest in turn.
    ///
    /// Returns whether a port has packets still to send: no event tells when a device takes more.
    pub(super) fn refill(&mut self, others: usize) -> bool {
        let mut pending = false;
        let count = self.ports.len();
        let some = others.min(count);
        for n in 0..some {
            let at = (self.refill_from + n) % count;
            if let (Some(local), Ok(number)) = (self.ports.get_mut(at), u16::try_from(at)) {
                touch(&mut self.touched, local, number);
            }
        }
        self.refill_from = (self.refill_from + some) % count.max(1);
        let (ports, pool) = (&mut self.ports, &mut self.pool);
        self.touched.retain(|at| {
            let Some(local) = ports.get_mut(usize::from(*at)) else { return false };
            local.touched = local.port.refill(pool);
            pending |= local.touched;
            local.touched
        });
        pending
    }
}

/// Has the port refilled at the end of the pass. Never allocates: each port is there once at most.
#[inline]
pub(super) fn touch(touched: &mut Vec<u16>, local: &mut LocalPort, at: u16) {
    if !core::mem::replace(&mut local.touched, true) {
        touched.push(at);
    }
}
