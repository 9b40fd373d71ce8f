//! Ports in memory: for tests, Miri and benches.
//!
//! | Made by | What is sent | What is received |
//! |---|---|---|
//! | [`MemPort::new`] | waits in a bounded queue for the [`MemHandle`] | what the handle injected |
//! | [`MemPort::pair`] | the other port receives | what the other port sent |
//! | [`MemPort::sink`] | counted and done with at once | what the handle injected |
//!
//! Queues are bounded (a full one is the full tx ring of a real port) and nothing is allocated once made.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::{Frame, Pool, Port, PortStats};

type Queue = Arc<ArrayQueue<Frame>>;

/// A port whose wire is a pair of queues.
#[derive(Debug)]
pub struct MemPort {
    rx: Queue,
    /// `None`: sent frames are done with at once.
    tx: Option<Queue>,
    /// Sent frames on their way back to the pool, as in a completion ring.
    done: Queue,
    stats: PortStats,
}

/// The test's side of a [`MemPort`].
#[derive(Clone, Debug)]
pub struct MemHandle {
    to_port: Queue,
    from_port: Option<Queue>,
    done: Queue,
}

fn queue(capacity: usize) -> Queue {
    Arc::new(ArrayQueue::new(capacity.max(1)))
}

impl MemPort {
    /// A port and the handle at the other end of its wire; each queue holds `capacity` frames.
    #[must_use]
    pub fn new(capacity: usize) -> (Self, MemHandle) {
        let (rx, tx, done) = (queue(capacity), queue(capacity), queue(capacity));
        let handle = MemHandle { to_port: rx.clone(), from_port: Some(tx.clone()), done: done.clone() };
        (Self { rx, tx: Some(tx), done, stats: PortStats::default() }, handle)
    }

    /// A port that accepts up to `capacity` frames between two `refill`s and drops them on the floor.
    #[must_use]
    pub fn sink(capacity: usize) -> (Self, MemHandle) {
        let (rx, done) = (queue(capacity), queue(capacity));
        let handle = MemHandle { to_port: rx.clone(), from_port: None, done: done.clone() };
        (Self { rx, tx: None, done, stats: PortStats::default() }, handle)
    }

    /// Two ports joined back to back: what one sends the other receives, the frame itself moving across.
    #[must_use]
    pub fn pair(capacity: usize) -> (Self, Self) {
        let (ab, ba) = (queue(capacity), queue(capacity));
        let port = |rx: &Queue, tx: &Queue| Self {
            rx: rx.clone(),
            tx: Some(tx.clone()),
            done: queue(1),
            stats: PortStats::default(),
        };
        (port(&ba, &ab), port(&ab, &ba))
    }
}

impl Port for MemPort {
    fn rx(&mut self, out: &mut Vec<Frame>, max: usize) -> usize {
        let mut n = 0;
        while n < max {
            let Some(frame) = self.rx.pop() else { break };
            self.stats.rx_bytes += frame.len() as u64;
            out.push(frame);
            n += 1;
        }
        self.stats.rx_packets += n as u64;
        n
    }

    fn tx(&mut self, frames: &mut Vec<Frame>) -> usize {
        let queue = self.tx.as_ref().unwrap_or(&self.done);
        // The only producer of this queue is this port, so the room can only grow until the pushes below.
        let n = frames.len().min(queue.capacity() - queue.len());
        let mut bytes = 0;
        for frame in frames.drain(..n) {
            bytes += frame.len() as u64;
            // Cannot fail, see above; a frame that did not fit would be lost to its pool.
            let pushed = queue.push(frame);
            debug_assert!(pushed.is_ok());
        }
        self.stats.tx_kicks += u64::from(n > 0);
        self.stats.tx_packets += n as u64;
        self.stats.tx_bytes += bytes;
        self.stats.tx_ring_full += frames.len() as u64;
        n
    }

    fn refill(&mut self, pool: &mut Pool) -> bool {
        while let Some(frame) = self.done.pop() {
            pool.put(frame);
        }
        false
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn close(mut self: Box<Self>, pool: &mut Pool) -> usize {
        self.refill(pool);
        while let Some(frame) = self.rx.pop() {
            pool.put(frame);
        }
        0
    }
}

impl MemHandle {
    /// Puts a frame on the wire towards the port.
    ///
    /// # Errors
    /// Gives the frame back when the port's receive queue is full.
    pub fn inject(&self, frame: Frame) -> Result<(), Frame> {
        self.to_port.push(frame)
    }

    /// Puts a copy of `bytes` on the wire, in a frame of `pool`; `false` when pool or queue are exhausted or the
    /// packet is too long.
    pub fn inject_bytes(&self, pool: &mut Pool, bytes: &[u8]) -> bool {
        let Some(mut frame) = pool.get() else {
            return false;
        };
        if !frame.fill(bytes) {
            pool.put(frame);
            return false;
        }
        match self.inject(frame) {
            Ok(()) => true,
            Err(frame) => {
                pool.put(frame);
                false
            }
        }
    }

    /// The next frame that the port sent; always `None` for a [sink](MemPort::sink).
    ///
    /// Return it with [`MemHandle::complete`] or to any pool.
    #[must_use]
    pub fn collect(&self) -> Option<Frame> {
        self.from_port.as_ref()?.pop()
    }

    /// Gives a collected frame back to the port, whose `refill` puts it into the worker's pool.
    ///
    /// # Errors
    /// Gives the frame back when too many wait already, or when the port is a [sink](MemPort::sink).
    pub fn complete(&self, frame: Frame) -> Result<(), Frame> {
        if self.from_port.is_none() {
            return Err(frame);
        }
        self.done.push(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(pool: &mut Pool, n: u8) -> Vec<Frame> {
        (0..n)
            .map(|i| {
                let mut frame = pool.get().unwrap();
                assert!(frame.fill(&[i; 60]));
                frame
            })
            .collect()
    }

    #[test]
    fn pair_delivers_in_order_and_bounds_the_queue() {
        let mut pool = Pool::in_memory(16, 2048);
        let (mut a, mut b) = MemPort::pair(4);
        let mut frames = batch(&mut pool, 6);
        assert_eq!(a.tx(&mut frames), 4);
        assert_eq!(frames.iter().map(|f| f.data()[0]).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(a.tx(&mut frames), 0);
        assert_eq!(a.stats().tx_ring_full, 4);

        let mut got = Vec::new();
        assert_eq!(b.rx(&mut got, 3), 3);
        assert_eq!(a.tx(&mut frames), 2);
        assert_eq!(b.rx(&mut got, 100), 3);
        assert_eq!(got.iter().map(|f| f.data()[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(b.stats().rx_bytes, 360);
        assert_eq!(a.stats().tx_packets, 6);
        assert_eq!(b.tx(&mut got), 4);
        for frame in got {
            pool.put(frame);
        }
        let mut back = Vec::new();
        assert_eq!(a.rx(&mut back, 1), 1);
        back.drain(..).for_each(|f| pool.put(f));
        Box::new(a).close(&mut pool);
        Box::new(b).close(&mut pool);
        assert_eq!(pool.available(), 16);
    }

    #[test]
    fn handle_injects_collects_and_completes() {
        let mut pool = Pool::in_memory(8, 2048);
        let (mut port, handle) = MemPort::new(2);
        assert!(handle.inject_bytes(&mut pool, b"one"));
        assert!(handle.inject_bytes(&mut pool, b"two"));
        assert!(!handle.inject_bytes(&mut pool, b"full"));
        assert!(!handle.inject_bytes(&mut pool, &[0; 3000]));
        assert_eq!(pool.available(), 6);

        let mut frames = Vec::new();
        assert_eq!(port.rx(&mut frames, 256), 2);
        assert_eq!(port.tx(&mut frames), 2);
        assert!(frames.is_empty());
        let sent = handle.collect().unwrap();
        assert_eq!(sent.data(), b"one");
        handle.complete(sent).unwrap();
        port.refill(&mut pool);
        assert_eq!(pool.available(), 7);
        pool.put(handle.collect().unwrap());
        assert!(handle.collect().is_none());
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn sink_is_done_with_frames_at_refill() {
        let mut pool = Pool::in_memory(8, 2048);
        let (mut port, handle) = MemPort::sink(4);
        let mut frames = batch(&mut pool, 5);
        assert_eq!(port.tx(&mut frames), 4);
        assert_eq!(port.tx(&mut frames), 0);
        port.refill(&mut pool);
        assert_eq!(port.tx(&mut frames), 1);
        assert!(handle.collect().is_none());
        assert!(handle.inject_bytes(&mut pool, b"left in the queue"));
        Box::new(port).close(&mut pool);
        assert_eq!(pool.available(), 8);
    }
}
