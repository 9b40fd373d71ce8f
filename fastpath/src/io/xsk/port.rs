//! One AF_XDP socket as a [`Port`].
//!
//! Accounting: a frame is in user space (a [`Frame`] exists), or lent to this port's socket for receiving
//! (`rx_held`: fill ring, rx ring, or in the kernel between them) or for sending (`tx_held`: tx ring, in flight,
//! completion ring). An idle port costs one load of the rx ring's producer index per loop.
#![allow(unsafe_code, reason = "rings shared with the kernel")]

use core::time::Duration;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::{io::Errno, net::RecvFlags, net::SendFlags};
use xsk_rs::FrameDesc;

use super::desc::DescLayout;
use super::umem::{Rings, Source};
use super::{OpenConfig, UmemConfig, XskError, sys};
use crate::io::frame::region::Holder;
use crate::io::{Frame, Pool, Port, PortStats};

/// Descriptors moved per ring access.
const BATCH: usize = 256;
/// Frames lent for receiving to a quiet copy-mode port: one NAPI budget.
const FILL_FLOOR: usize = 64;
/// By this much the fill level grows when a burst took more than half.
const FILL_GROWTH: usize = 4;
/// Refills in a row of a calm port before its fill level is halved, while frames are scarce.
const FILL_CALM: u32 = 64;
/// Frames that a port on shared memory keeps to copy packets of other memory into: as many as came at once, between these
/// (few, for the sake of hundreds of ports), and none after so many refills without one, or so many while frames are scarce.
const SPARE: (usize, usize) = (8, BATCH);
const SPARE_REFILLS: (u32, u32) = (1 << 10, 8);
/// Shortest frame the kernel can send: an Ethernet header.
const SHORTEST: usize = 14;
/// Kicks in a row that may send nothing before the rest is left to the next `tx` or `refill`.
const STALLED_KICKS: u32 = 4;
/// Refills in a row that may send nothing before the worker need not hurry to the next: some milliseconds.
const STALLED_REFILLS: u32 = 1 << 10;
/// Time between two attempts to send on a device that is down.
const DOWN_PAUSE: Duration = Duration::from_millis(100);
/// How often, and with which pauses, `close` looks whether the kernel has let go of packets in flight.
const CLOSE: (u32, Duration) = (200, Duration::from_micros(100));

/// Whether the device can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    /// ENETDOWN; when that was.
    Down(Instant),
    /// ENXIO: the device is gone, for good.
    Gone,
}

/// An AF_XDP socket on one (device, queue).
#[derive(Debug)]
pub struct XskPort {
    rings: Rings,
    /// What the kernel holds, apart for each direction: `close` can be sure of the one before the other.
    rx_holder: Holder,
    tx_holder: Holder,
    source: Source,
    layout: DescLayout,
    zero_copy: bool,
    busy_poll: bool,
    tx_budget: u32,
    /// Entries of the tx ring, and of the completion ring.
    tx_ring: u32,
    comp_ring: usize,
    fill_ring: usize,
    rx_held: usize,
    tx_held: usize,
    fill_target: usize,
    fill_floor: usize,
    fill_max: usize,
    /// Frames in the fill ring after the last refill.
    fill_level: usize,
    /// Refills in a row that found the fill ring at three quarters or more.
    fill_calm: u32,
    /// Descriptors were left in the tx ring by the last kick.
    tx_pending: bool,
    /// Refills in a row whose kicks sent nothing of it.
    stalled: u32,
    link: Link,
    rx_descs: Box<[FrameDesc]>,
    tx_descs: Vec<FrameDesc>,
    /// Frames of this port's memory to copy packets of other memory into; all free frames when it is private.
    spare: Vec<Frame>,
    spare_target: usize,
    spare_unused: u32,
    /// Frames done with in `tx`, which has no pool.
    returns: Vec<Frame>,
    stats: PortStats,
}

impl XskPort {
    pub(super) fn new(
        // Parameters drop last to first: on an error the rings go before the memory they are on.
        mut source: Source,
        rings: Rings,
        config: &OpenConfig,
        umem: &UmemConfig,
    ) -> Result<Self, XskError> {
        let failed = |source: io::Error| XskError::Open {
            ifname: config.ifname.clone(),
            queue: config.queue,
            mode: config.mode,
            source,
        };
        let fd = rings.fd();
        let options = rustix::net::sockopt::xdp_options(fd).map_err(|e| failed(e.into()))?;
        let zero_copy = options.contains(rustix::net::xdp::XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
        if let Some(busy_poll) = config.busy_poll {
            sys::busy_poll(fd, busy_poll).map_err(failed)?;
        }
        let tx_budget = sys::raise_tx_budget(fd, config.tx_ring);
        // In copy mode each packet in flight is an skb charged to the socket: its data and some 800 bytes more.
        let sndbuf = config.tx_ring as usize * (usize::from(umem.frame_size) + 1024);
        if rustix::net::sockopt::set_socket_send_buffer_size_force(fd, sndbuf).is_err() {
            // Without CAP_NET_ADMIN, up to net.core.wmem_max: less in flight, and more retries.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(fd, sndbuf);
        }
        let fill_ring = umem.fill_ring as usize;
        let fill_max =
            if config.fill_target == 0 { fill_ring } else { config.fill_target as usize }.min(fill_ring);
        let fill_floor = if zero_copy { fill_ring } else { FILL_FLOOR }.min(fill_max).max(1);
        let spare = match &mut source {
            Source::Shared(_) => Vec::with_capacity(SPARE.1),
            Source::Private(private) => core::mem::take(&mut private.free),
        };
        Ok(Self {
            rx_holder: source.memory().region.holder(),
            tx_holder: source.memory().region.holder(),
            layout: source.memory().layout,
            zero_copy,
            busy_poll: config.busy_poll.is_some(),
            tx_budget,
            tx_ring: config.tx_ring,
            comp_ring: umem.completion_ring as usize,
            fill_ring,
            rx_held: 0,
            tx_held: 0,
            fill_target: (config.fill_start as usize).min(fill_max).max(fill_floor),
            fill_floor,
            fill_max,
            fill_level: 0,
            fill_calm: 0,
            tx_pending: false,
            stalled: 0,
            link: Link::Up,
            rx_descs: vec![FrameDesc::default(); BATCH].into(),
            tx_descs: Vec::with_capacity((config.tx_ring as usize).max(BATCH)),
            spare,
            spare_target: 0,
            spare_unused: 0,
            returns: Vec::with_capacity(2 * BATCH),
            stats: PortStats::default(),
            rings,
            source,
        })
    }

    /// The socket, for the XSKMAP.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.rings.fd()
    }

    /// Whether the device itself reads and writes the frames.
    #[must_use]
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Descriptors that one system call sends at most (copy mode): 32 before Linux 6.17.
    #[must_use]
    pub fn tx_budget(&self) -> u32 {
        self.tx_budget
    }

    /// Whether the device has gone away (seen when sending): the port should be closed.
    #[must_use]
    pub fn gone(&self) -> bool {
        self.link == Link::Gone
    }

    /// Frames in the tx ring that the kernel has not taken yet.
    #[inline]
    fn unsent(&mut self) -> u32 {
        self.tx_ring.saturating_sub(self.rings.tx.nb_free_exact())
    }

    /// Makes the kernel send what is in the tx ring.
    fn kick(&mut self) {
        let (mut before, mut stalled) = (u32::MAX, 0);
        while self.rings.tx.needs_wakeup() {
            self.stats.tx_kicks += 1;
            match rustix::net::send(self.rings.fd(), &[], SendFlags::DONTWAIT) {
                Ok(_) => {
                    self.link = Link::Up;
                    // The driver of a zero-copy device sends in its own time.
                    if self.zero_copy {
                        break;
                    }
                }
                // AGAIN: budget used up, or the device's queue or the completion ring is full; NOBUFS: send buffer
                // full; BUSY: the device dropped one packet, and the rest is still to be sent.
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::BUSY | Errno::INTR) => self.stats.tx_retries += 1,
                Err(e) => {
                    self.stats.tx_errors += 1;
                    self.link = match e {
                        Errno::NXIO | Errno::NODEV => Link::Gone,
                        Errno::NETDOWN => Link::Down(Instant::now()),
                        _ => Link::Up,
                    };
                    break;
                }
            }
            let unsent = self.unsent();
            if unsent == 0 {
                break;
            }
            stalled = if unsent < before { 0 } else { stalled + 1 };
            if stalled == STALLED_KICKS {
                break;
            }
            before = unsent;
        }
        self.tx_pending = self.unsent() > 0;
    }

    /// How many of the first `max` of `frames` can be taken now: those of other memory need a frame to copy into.
    fn acceptable(&mut self, frames: &[Frame], max: usize) -> usize {
        let mut copies = self.spare.len();
        let mut returns = self.returns.capacity() - self.returns.len();
        let mut n = 0;
        for frame in frames.iter().take(max) {
            let short = frame.len() < SHORTEST;
            if short || !self.tx_holder.region().contains(frame) {
                if !short && copies == 0 {
                    let come = frames.iter().filter(|f| !self.tx_holder.region().contains(f)).count();
                    self.spare_target = come.max(self.spare_target).clamp(SPARE.0, SPARE.1);
                }
                if returns == 0 || (!short && copies == 0) {
                    break;
                }
                returns -= 1;
                copies -= usize::from(!short);
            }
            n += 1;
        }
        n
    }

    /// Lends `frame` for sending, or a copy of it when it lies in other memory.
    fn stage(&mut self, frame: Frame) {
        let len = frame.len();
        if len < SHORTEST {
            self.stats.tx_invalid += 1;
            self.returns.push(frame);
            return;
        }
        let lent = match self.tx_holder.lend(frame) {
            Ok(addr) => Some(addr),
            Err(foreign) => {
                self.spare_unused = 0;
                let copy = self.copy_of(&foreign);
                self.returns.push(foreign);
                copy.and_then(|copy| self.tx_holder.lend(copy).ok())
            }
        };
        let Some(addr) = lent else {
            self.stats.tx_invalid += 1;
            return;
        };
        self.stats.tx_packets += 1;
        self.stats.tx_bytes += len as u64;
        self.tx_descs.push(self.layout.desc(addr, len));
    }

    /// A copy in this port's memory, if it fits there.
    fn copy_of(&mut self, foreign: &Frame) -> Option<Frame> {
        let mut copy = self.spare.pop()?;
        if copy.fill(foreign.data()) {
            self.stats.tx_copied += 1;
            return Some(copy);
        }
        self.spare.push(copy);
        None
    }

    /// Takes sent frames back.
    fn reap(&mut self, pool: &mut Pool) {
        while self.tx_held > 0 {
            // SAFETY: xsk-rs asks that the frames are this UMEM's: what is read is checked by `take`.
            let n = unsafe { self.rings.comp.consume(&mut self.rx_descs) };
            for desc in self.rx_descs.iter().take(n) {
                // SAFETY: the kernel puts a frame into the completion ring when it is done with it.
                match unsafe { self.tx_holder.take(desc.addr(), 0) } {
                    Some(frame) => give(&mut self.source, &mut self.spare, frame, pool),
                    None => self.stats.ring_errors += 1,
                }
            }
            self.tx_held = self.tx_held.saturating_sub(n);
            self.stats.tx_completed += n as u64;
            if n < self.rx_descs.len() {
                break;
            }
        }
    }

    /// Lends empty frames for receiving, up to the target.
    fn fill(&mut self, pool: &mut Pool) {
        let missing = self.fill_target.saturating_sub(self.rx_held);
        // A few at a time: fewer writes to the ring that the kernel reads on another core.
        if missing < self.fill_target / 8 || missing == 0 {
            return;
        }
        let surplus = self.surplus(pool);
        // What the kernel has left, not what is missing: of a burst that waits in the rx ring a worker reads only a
        // part before it refills.
        let left = self.fill_ring.saturating_sub(self.rings.fill.nb_free_exact() as usize);
        let shared = matches!(self.source, Source::Shared(_));
        self.follow_load(left, shared && surplus * 4 < pool.share(self.rx_holder.region()));
        let missing = self.fill_target.saturating_sub(self.rx_held);
        let missing = missing.min(surplus.max(FILL_FLOOR.saturating_sub(self.rx_held)));
        let room = self.fill_ring - left.min(self.fill_ring);
        self.tx_descs.clear();
        for _ in 0..missing.min(room).min(self.tx_descs.capacity()) {
            let frame = match self.source {
                Source::Shared(_) => pool.get_of(self.rx_holder.region()),
                Source::Private(_) => self.spare.pop(),
            };
            let Some(frame) = frame else { break };
            match self.rx_holder.lend(frame) {
                Ok(addr) => self.tx_descs.push(self.layout.desc(addr, 0)),
                Err(foreign) => {
                    // A pool of other memory: nothing in it helps.
                    self.stats.ring_errors += 1;
                    self.returns.push(foreign);
                    break;
                }
            }
        }
        // SAFETY: `lend` gave the addresses: frames of this UMEM that nothing else refers to until `take`.
        let filled = unsafe { self.rings.fill.produce(&self.tx_descs) };
        debug_assert_eq!(filled, self.tx_descs.len());
        self.rx_held += filled;
        self.fill_level = left + filled;
        self.stats.rx_filled += filled as u64;
    }

    /// Sets the fill level by what a refill found `left` of it in the fill ring.
    fn follow_load(&mut self, left: usize, scarce: bool) {
        // Less than the target is there to begin with when frames are scarce, and none before the first refill.
        let had = self.fill_level.min(self.fill_target);
        if left * 2 < had {
            self.fill_target = (self.fill_target * FILL_GROWTH).min(self.fill_max);
        }
        self.fill_calm = if left * 4 < had * 3 { 0 } else { self.fill_calm + 1 };
        if self.fill_calm >= FILL_CALM {
            self.fill_calm = 0;
            if scarce {
                // Nothing comes back by that: the ring is not filled up again, and drains with what is received.
                self.fill_target = (self.fill_target / 2).max(self.fill_floor);
            }
        }
    }

    /// Keeps frames to copy into, for as long as they are used.
    fn keep_spare(&mut self, pool: &mut Pool) {
        self.spare_unused += 1;
        let most = if self.surplus(pool) == 0 { SPARE_REFILLS.1 } else { SPARE_REFILLS.0 };
        if self.spare_unused > most {
            (self.spare_target, self.spare_unused) = (0, 0);
        }
        while self.spare.len() < self.spare_target {
            let Some(frame) = pool.get_of(self.tx_holder.region()) else { break };
            self.spare.push(frame);
        }
        for frame in self.spare.drain(self.spare_target.min(self.spare.len())..) {
            pool.put(frame);
        }
    }

    /// Frames to be had for more than the minimum: the last eighth of a pool is for the minimum of every port.
    fn surplus(&self, pool: &Pool) -> usize {
        match self.source {
            Source::Private(_) => self.spare.len(),
            Source::Shared(_) => {
                let region = self.rx_holder.region();
                pool.reachable(region).saturating_sub(pool.share(region) / 8)
            }
        }
    }

    /// Makes the kernel look at the fill ring, and poll the device when busy polling.
    fn kick_rx(&mut self) {
        self.stats.rx_kicks += 1;
        // Errors are those of a device that is down or gone: nothing to receive then.
        let _ = rustix::net::recv(self.rings.fd(), &mut [0u8; 0], RecvFlags::DONTWAIT);
    }

    fn consume(&mut self, out: &mut Vec<Frame>, max: usize) -> usize {
        let mut total = 0;
        while total < max {
            let want = (max - total).min(self.rx_descs.len());
            let Some(descs) = self.rx_descs.get_mut(..want) else { break };
            // SAFETY: xsk-rs asks that the frames are this UMEM's: what is read is checked by `take`.
            let n = unsafe { self.rings.rx.consume(descs) };
            for desc in descs.iter().take(n) {
                // SAFETY: the kernel puts a frame into the rx ring when the packet is complete, and forgets it.
                match unsafe { self.rx_holder.take(desc.addr(), desc.lengths().data()) } {
                    Some(frame) => {
                        frame.prefetch(); // The kernel wrote it on another core.
                        self.stats.rx_bytes += frame.len() as u64;
                        out.push(frame);
                        total += 1;
                    }
                    None => self.stats.ring_errors += 1,
                }
            }
            self.rx_held = self.rx_held.saturating_sub(n);
            if n < want {
                break;
            }
        }
        self.stats.rx_packets += total as u64;
        total
    }
}

/// A frame of the port's own memory that is free again.
fn give(source: &mut Source, spare: &mut Vec<Frame>, mut frame: Frame, pool: &mut Pool) {
    match source {
        Source::Shared(_) => pool.put(frame),
        Source::Private(_) => {
            frame.reset();
            spare.push(frame);
        }
    }
}

impl Port for XskPort {
    fn rx(&mut self, out: &mut Vec<Frame>, max: usize) -> usize {
        let n = self.consume(out, max);
        if n == 0 && self.busy_poll {
            self.kick_rx();
            return self.consume(out, max);
        }
        n
    }

    fn tx(&mut self, frames: &mut Vec<Frame>) -> usize {
        if frames.is_empty() {
            return 0;
        }
        if self.link != Link::Up {
            // Not queued for when the device is up again: packets would be stale by then.
            return 0;
        }
        // No more on the way than the completion ring can take back, or the kernel stops sending.
        let room = self.rings.tx.nb_free(u32::try_from(frames.len()).unwrap_or(u32::MAX)) as usize;
        let room = room.min(self.comp_ring.saturating_sub(self.tx_held)).min(self.tx_descs.capacity());
        let n = self.acceptable(frames, room);
        self.stats.tx_ring_full += (frames.len() - n) as u64;
        self.tx_descs.clear();
        for frame in frames.drain(..n) {
            self.stage(frame);
        }
        // SAFETY: `lend` gave the addresses: packets within frames of this UMEM, no longer than them, that nothing
        // else refers to until `take`.
        let sent = unsafe { self.rings.tx.produce(&self.tx_descs) };
        debug_assert_eq!(sent, self.tx_descs.len());
        self.tx_held += sent;
        if sent > 0 || self.tx_pending {
            self.kick();
        }
        n
    }

    fn refill(&mut self, pool: &mut Pool) -> bool {
        self.reap(pool);
        if self.tx_pending {
            let before = self.unsent();
            match self.link {
                Link::Up => self.kick(),
                Link::Down(since) if since.elapsed() >= DOWN_PAUSE => self.kick(),
                Link::Down(_) | Link::Gone => {}
            }
            self.stalled = if self.unsent() < before { 0 } else { self.stalled.saturating_add(1) };
        } else if self.link != Link::Gone {
            self.link = Link::Up;
        }
        for frame in self.returns.drain(..) {
            pool.put(frame);
        }
        match &self.source {
            Source::Private(private) => {
                while let Some(frame) = private.home().pop() {
                    self.spare.push(frame);
                }
            }
            Source::Shared(_) if self.spare_target > 0 => self.keep_spare(pool),
            Source::Shared(_) => {}
        }
        let filled = self.stats.rx_filled;
        self.fill(pool);
        // In copy mode the flag is never set; it is not looked at while nothing changes.
        if (self.zero_copy || filled != self.stats.rx_filled) && self.rings.fill.needs_wakeup() {
            self.kick_rx();
        }
        self.tx_pending && self.link == Link::Up && self.stalled < STALLED_REFILLS
    }

    fn settled(&self) -> bool {
        self.link == Link::Up && !self.tx_pending && !self.zero_copy
    }

    fn redirected(&mut self, packets: u64, bytes: u64) {
        self.stats.tx_packets += packets;
        self.stats.tx_redirected += packets;
        self.stats.tx_bytes += bytes;
    }

    fn up(&self) -> bool {
        self.link == Link::Up
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.rings.fd())
    }

    /// One system call, for the kernel's counters.
    fn stats(&self) -> PortStats {
        let mut stats = self.stats;
        stats.rx_held = self.rx_held as u64;
        stats.tx_held = self.tx_held as u64;
        if let Ok(kernel) = rustix::net::sockopt::xdp_statistics(self.rings.fd()) {
            stats.kernel_rx_dropped = kernel.rx_dropped;
            stats.kernel_tx_invalid = kernel.tx_invalid_descs;
            stats.kernel_rx_ring_full = kernel.rx_ring_full.unwrap_or(0);
            stats.kernel_fill_empty = kernel.rx_fill_ring_empty_descs.unwrap_or(0);
        }
        stats
    }

    /// Take the socket out of the XSKMAP first: no packet is on its way to it then.
    ///
    /// Not for a worker's loop: it waits up to 20 ms for packets in flight, and then for the kernel to unbind the
    /// socket (an RCU grace period). Let the control thread do it, with an empty pool on the workers' exchange.
    ///
    /// Packets that are still in flight after that stay with the kernel for good.
    fn close(mut self: Box<Self>, pool: &mut Pool) -> usize {
        // A driver may send a packet from the frame itself (IFF_TX_SKB_NO_LINEAR, as virtio_net does): only the
        // completion says that it is done. On a veth it is a copy, and the wait is over at once.
        let mut sent = false;
        for _ in 0..CLOSE.0 {
            self.reap(pool);
            if self.link == Link::Up && self.tx_pending {
                self.kick();
            }
            // Descriptors left in the tx ring will never be read: they need no waiting for.
            sent = self.tx_held <= self.unsent() as usize;
            if sent {
                break;
            }
            std::thread::sleep(CLOSE.1);
        }
        let Self { rings, mut rx_holder, mut tx_holder, tx_held, source, spare, returns, .. } = *self;
        // Unmaps the rings and closes the socket. The kernel unbinds it (no packet is received into a frame from then
        // on, `synchronize_net` in xsk_unbind_dev) before the call returns, for nobody else has the fd.
        drop(rings);
        for frame in returns {
            pool.put(frame);
        }
        match source {
            Source::Shared(_shared) => {
                for frame in spare {
                    pool.put(frame);
                }
                // SAFETY: see above: in copy mode only the socket's receive path writes to these frames.
                unsafe { rx_holder.take_all(|frame| pool.put(frame)) };
                if !sent {
                    return tx_held;
                }
                // SAFETY: the kernel has said of each packet it took from the tx ring that it is done with it, and
                // takes no more.
                unsafe { tx_holder.take_all(|frame| pool.put(frame)) };
                0
            }
            Source::Private(mut private) => {
                drop((rx_holder, tx_holder));
                private.free = spare;
                private.close();
                0
            }
        }
    }
}
