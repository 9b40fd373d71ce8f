//! The owned packet buffer, and the pools it lives in.
//!
//! A region of memory is cut into frames once; from then on every frame has exactly one owner:
//! a pool, the graph, a port's queue, or the kernel (through the rings of an AF_XDP socket).
//! Moving the first byte (`push`, `pull`) moves no payload: encapsulation writes into headroom.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

/// One packet buffer, owned. Not `Clone`, not `Copy`: who holds it may read and write it.
#[derive(Debug)]
pub struct Frame {
    buf: &'static mut [u8],
    index: u32,
    head: u16,
    len: u16,
}

/// Bytes in front of a received packet: XDP_PACKET_HEADROOM of the kernel's AF_XDP frame layout.
pub const HEADROOM: u16 = 256;

impl Frame {
    /// Wraps one chunk of a region. `index` is the chunk's number within its region.
    #[must_use]
    pub fn new(buf: &'static mut [u8], index: u32) -> Self {
        assert!(buf.len() > usize::from(HEADROOM) && buf.len() <= usize::from(u16::MAX));
        Self { buf, index, head: HEADROOM, len: 0 }
    }

    /// The chunk's number within its region.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Offset of the first byte within the chunk.
    #[inline]
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Length of the packet in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether the packet has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The packet.
    #[inline]
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.buf
            .get(usize::from(self.head)..usize::from(self.head) + usize::from(self.len))
            .unwrap_or_default()
    }

    /// The packet, writable.
    #[inline]
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.buf
            .get_mut(usize::from(self.head)..usize::from(self.head) + usize::from(self.len))
            .unwrap_or_default()
    }

    /// Room in front of the packet, in bytes.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.head)
    }

    /// Room behind the packet, in bytes.
    #[inline]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        self.buf.len() - usize::from(self.head) - usize::from(self.len)
    }

    /// Grows the packet by `n` bytes at its front; `false`, and nothing changed, when the headroom is too small.
    #[inline]
    #[must_use]
    pub fn push(&mut self, n: u16) -> bool {
        let Some(head) = self.head.checked_sub(n) else {
            return false;
        };
        self.head = head;
        self.len += n;
        true
    }

    /// Cuts `n` bytes off the packet's front; `false`, and nothing changed, when it is shorter.
    #[inline]
    #[must_use]
    pub fn pull(&mut self, n: u16) -> bool {
        let Some(len) = self.len.checked_sub(n) else {
            return false;
        };
        self.len = len;
        self.head += n;
        true
    }

    /// Sets the packet's length; `false`, and nothing changed, when it does not fit behind the first byte.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: u16) -> bool {
        let fits = usize::from(self.head) + usize::from(len) <= self.buf.len();
        if fits {
            self.len = len;
        }
        fits
    }

    /// Back to an empty packet with the standard headroom.
    #[inline]
    pub fn reset(&mut self) {
        self.head = HEADROOM;
        self.len = 0;
    }

    /// Replaces the packet by `bytes`, with the standard headroom; `false`, and empty, when they do not fit.
    #[must_use]
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        self.reset();
        let Ok(len) = u16::try_from(bytes.len()) else {
            return false;
        };
        let fits = self.set_len(len);
        if fits {
            self.data_mut().copy_from_slice(bytes);
        }
        fits
    }
}

/// Surplus frames of all workers: a handed-over frame ends in the pool of the worker that sent it,
/// and comes back by this queue.
pub type Exchange = Arc<ArrayQueue<Frame>>;

/// The free frames of one worker.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Frame>,
    share: usize,
    exchange: Exchange,
}

impl Pool {
    /// Takes the worker's share of the region's frames.
    #[must_use]
    pub fn new(mut frames: Vec<Frame>, exchange: Exchange) -> Self {
        let share = frames.len();
        // Twice the share: the surplus goes to the exchange before the list could grow.
        frames.reserve_exact(share + 1);
        Self { free: frames, share, exchange }
    }

    /// A pool of `count` frames of `size` bytes in fresh memory, kept for the life of the process.
    #[must_use]
    pub fn in_memory(count: usize, size: usize) -> Self {
        let region: &'static mut [u8] = Vec::leak(vec![0u8; count * size]);
        let frames = (0u32..).zip(region.chunks_exact_mut(size)).map(|(i, buf)| Frame::new(buf, i)).collect();
        Self::new(frames, Arc::new(ArrayQueue::new(count.max(1))))
    }

    /// An empty frame, or `None` when all are in use.
    #[inline]
    pub fn get(&mut self) -> Option<Frame> {
        self.free.pop().or_else(|| self.exchange.pop())
    }

    /// Takes a frame back.
    #[inline]
    pub fn put(&mut self, mut frame: Frame) {
        frame.reset();
        if self.free.len() < self.share {
            self.free.push(frame);
        } else if let Err(frame) = self.exchange.push(frame) {
            self.free.push(frame);
        }
    }

    /// Free frames in this pool.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len()
    }
}
