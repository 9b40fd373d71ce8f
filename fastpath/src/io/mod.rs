//! The only seam between the graph and the world: [`Port`].
//!
//! | Module | Port |
//! |---|---|
//! | [`xsk`] | an AF_XDP socket on one (device, queue) |
//! | [`mem`] | frames in memory: tests, Miri, benches |
//! | [`pcap`] | pcap files: replay and record |
//! | [`frame`] | the owned packet buffer and the pools it lives in |
#![deny(unsafe_code)]

use std::os::fd::BorrowedFd;

pub mod frame;
pub mod mem;
pub mod pcap;
pub mod xsk;

pub use frame::{Exchange, Frame, Pool};

/// One source and sink of frames: a (device, queue) pair, or its stand-in.
///
/// A port belongs to one worker. `rx`, `tx` and `refill` never block and never allocate once warm.
pub trait Port: Send {
    /// Appends up to `max` received frames to `out`; returns how many.
    fn rx(&mut self, out: &mut Vec<Frame>, max: usize) -> usize;

    /// Sends from the front of `frames`, one kick for all; returns how many were taken (and removed).
    ///
    /// What stays did not fit, or the port is not [`up`](Port::up): the caller tries again after `refill`, or counts
    /// a drop.
    fn tx(&mut self, frames: &mut Vec<Frame>) -> usize;

    /// Takes back sent frames into `pool` and gives the receive side empty ones from it.
    ///
    /// Returns whether frames that `tx` took still wait for the device to take more: call again soon.
    fn refill(&mut self, pool: &mut Pool) -> bool;

    /// Whether nothing that `tx` took waits to be sent: what is sent to the device by another way now is in order.
    fn settled(&self) -> bool {
        false
    }

    /// Counts frames that were sent to the device by another way: an [`Outbox`](xsk::Outbox).
    fn redirected(&mut self, packets: u64, bytes: u64) {
        let _ = (packets, bytes);
    }

    /// Whether the device is there and up, as far as sending has shown: while it is not, `tx` takes nothing.
    fn up(&self) -> bool {
        true
    }

    /// What becomes readable when there is something to receive; `None` if only polling tells.
    fn wake(&self) -> Option<BorrowedFd<'_>>;

    /// Counters since the port was opened.
    fn stats(&self) -> PortStats;

    /// Ends receiving and gives every frame the port still holds back to `pool`. May block and allocate.
    ///
    /// Returns how many it cannot give back, ever: a device may be reading them still.
    fn close(self: Box<Self>, pool: &mut Pool) -> usize;
}

/// Counters of one port since it was opened, in frames unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received, with the Ethernet header.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent, with the Ethernet header.
    pub tx_bytes: u64,
    /// Frames sent other than by the tx ring, by a worker's [`Outbox`](xsk::Outbox); they are in `tx_packets` too.
    pub tx_redirected: u64,
    /// System calls to start transmission.
    pub tx_kicks: u64,
    /// Kicks answered by EAGAIN and repeated.
    pub tx_retries: u64,
    /// Frames the tx ring had no room for, counted at each attempt.
    pub tx_ring_full: u64,
    /// Frames refused before the tx ring: shorter than an Ethernet header, or too long to be copied.
    pub tx_invalid: u64,
    /// Frames copied because they lie in another port's memory (between zero-copy and copy-mode ports).
    pub tx_copied: u64,
    /// System calls to send that failed for another reason than want of room, as when the device is down or gone.
    pub tx_errors: u64,
    /// Frames the kernel has given back after sending (the completion ring).
    pub tx_completed: u64,
    /// Empty frames given to the kernel for receiving (the fill ring).
    pub rx_filled: u64,
    /// System calls to start reception.
    pub rx_kicks: u64,
    /// Ring entries that named no frame of this port; always 0 unless the kernel or another process errs.
    pub ring_errors: u64,
    /// Frames the kernel holds for receiving now (fill and rx ring); a level, not a counter.
    pub rx_held: u64,
    /// Frames the kernel holds for sending now (tx and completion ring, in flight); a level, not a counter.
    pub tx_held: u64,
    /// Dropped by the kernel before the socket (`xdp_statistics.rx_dropped`).
    pub kernel_rx_dropped: u64,
    /// Dropped because the rx ring was full (`xdp_statistics.rx_ring_full`).
    pub kernel_rx_ring_full: u64,
    /// Times the fill ring was empty (`xdp_statistics.rx_fill_ring_empty_descs`).
    pub kernel_fill_empty: u64,
    /// Invalid tx descriptors (`xdp_statistics.tx_invalid_descs`).
    pub kernel_tx_invalid: u64,
}
