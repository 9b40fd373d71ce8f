//! The owned packet buffer, and the pools it lives in.
//!
//! A region of memory is cut into frames once; from then on every frame has exactly one owner:
//! a pool, the graph, a port's queue, or the kernel (through the rings of an AF_XDP socket, see [`region`]).
//! Moving the first byte (`push`, `pull`) moves no payload: encapsulation writes into headroom.
#![allow(unsafe_code, reason = "a frame is a pointer into memory shared with the kernel; see `Frame`")]

use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::slice;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use region::Region;

pub mod region;

#[cfg(test)]
mod tests;

/// One packet buffer, owned. Not `Clone`, not `Copy`: who holds it may read and write it.
///
/// A chunk of memory that lives as long as the process (or until all its frames are back, for the memory of
/// a [private](crate::io::xsk) AF_XDP port). While the kernel has the chunk no `Frame` for it exists: it is
/// taken apart into its number on the way into a ring and made again on the way back ([`region::Holder`]).
pub struct Frame {
    ptr: NonNull<u8>,
    home: Option<&'static ArrayQueue<Frame>>,
    index: u32,
    region: u32,
    cap: u16,
    head: u16,
    len: u16,
}

const _: () = assert!(size_of::<Frame>() == 32, "two frames per cache line in a batch");

// SAFETY: a `Frame` is the only way to its chunk, like a `&'static mut [u8]`, which is Send too.
unsafe impl Send for Frame {}
// SAFETY: a shared `Frame` gives only `&[u8]`.
unsafe impl Sync for Frame {}

/// Bytes in front of a received packet: XDP_PACKET_HEADROOM of the kernel's AF_XDP frame layout.
pub const HEADROOM: u16 = 256;

impl Frame {
    /// Wraps one chunk of memory. `index` is the chunk's number, for the caller's own use.
    ///
    /// # Panics
    /// When `buf` is not longer than [`HEADROOM`], or longer than 65535 bytes.
    #[must_use]
    pub fn new(buf: &'static mut [u8], index: u32) -> Self {
        let cap = u16::try_from(buf.len()).ok().filter(|&cap| cap > HEADROOM);
        assert!(cap.is_some(), "a frame has 257 to 65535 bytes, not {}", buf.len());
        let ptr = NonNull::from(buf).cast();
        Self { ptr, home: None, index, region: 0, cap: cap.unwrap_or(0), head: HEADROOM, len: 0 }
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
        // SAFETY: every method keeps head + len <= cap, the chunk has `cap` initialised bytes, and this frame
        // is its only owner, so a shared borrow of the frame excludes writers.
        unsafe { slice::from_raw_parts(self.ptr.as_ptr().add(usize::from(self.head)), self.len()) }
    }

    /// The packet, writable.
    #[inline]
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; the exclusive borrow of the only owner excludes every other access.
        unsafe { slice::from_raw_parts_mut(self.ptr.as_ptr().add(usize::from(self.head)), self.len()) }
    }

    /// Starts to bring the packet's first cache line into the cache. Frames lie 2 or 4 KiB apart, so that the headers of
    /// a few dozen are all that the first-level cache can hold.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self.ptr.as_ptr().wrapping_add(usize::from(self.head)));
    }

    /// The same for the cache line in front of the packet, where encapsulation writes.
    #[inline]
    pub fn prefetch_headroom(&self) {
        prefetch(self.ptr.as_ptr().wrapping_add(usize::from(self.head)).wrapping_sub(64));
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
        usize::from(self.cap - self.head - self.len)
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
        let fits = len <= self.cap - self.head;
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

#[inline]
fn prefetch(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: SSE is part of x86-64; the instruction is a hint that neither faults nor accesses anything, whatever the
    // address is.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast::<i8>());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, region, head, len, .. } = self;
        write!(f, "Frame(region {region} index {index} head {head} len {len})")
    }
}

/// The way home of frames whose region has no queue for that: a handed-over frame ends in the pool of the worker that sent
/// it, and comes back to its own worker by this queue.
pub type Exchange = Arc<ArrayQueue<Frame>>;

/// The free frames of one worker, apart by region: an AF_XDP port takes only frames of its own memory.
#[derive(Debug)]
pub struct Pool {
    /// By region number, from `first` on; those of numbers between that are not this pool's are empty.
    lists: Vec<List>,
    first: u32,
    exchange: Exchange,
}

/// The free frames of one region, or of a worker's part of it.
#[derive(Debug, Default)]
struct List {
    free: Vec<Frame>,
    /// Numbers of the frames it was made with.
    own: Range<u32>,
    share: usize,
    /// Where other workers put them.
    home: Option<&'static ArrayQueue<Frame>>,
}

impl List {
    fn add(&mut self, frame: Frame) {
        let (from, to) = (frame.index, frame.index + 1);
        self.own = if self.share == 0 { from..to } else { self.own.start.min(from)..self.own.end.max(to) };
        self.share += 1;
        self.home = frame.home;
        self.free.push(frame);
    }

    #[inline]
    fn get(&mut self, exchange: &ArrayQueue<Frame>) -> Option<Frame> {
        self.free.pop().or_else(|| self.home.unwrap_or(exchange).pop())
    }
}

impl Pool {
    /// Takes the worker's share: whole regions that have a home, or successive frames of one that has none.
    ///
    /// `exchange` is common to all workers; it must have room for all frames that have no home. A pool of no frames
    /// passes all it is given on: for a thread that only closes ports.
    #[must_use]
    pub fn new(frames: Vec<Frame>, exchange: Exchange) -> Self {
        let first = frames.iter().map(|f| f.region).min().unwrap_or(0);
        let mut lists: Vec<List> = Vec::new();
        for frame in frames {
            let at = (frame.region - first) as usize;
            if at >= lists.len() {
                lists.resize_with(at + 1, List::default);
            }
            if let Some(list) = lists.get_mut(at) {
                list.add(frame);
            }
        }
        for list in &mut lists {
            // The surplus goes away before the list could grow.
            list.free.reserve_exact(1);
        }
        Self { lists, first, exchange }
    }

    /// A pool of `count` frames of `size` bytes in fresh memory, kept for the life of the process.
    #[must_use]
    pub fn in_memory(count: usize, size: usize) -> Self {
        let region: &'static mut [u8] = Vec::leak(vec![0u8; count * size]);
        let frames = (0u32..).zip(region.chunks_exact_mut(size)).map(|(i, buf)| Frame::new(buf, i)).collect();
        Self::new(frames, Arc::new(ArrayQueue::new(count.max(1))))
    }

    #[inline]
    fn list(&self, region: u32) -> Option<&List> {
        self.lists.get(region.wrapping_sub(self.first) as usize)
    }

    /// An empty frame of whatever region, or `None` when all are in use.
    #[inline]
    pub fn get(&mut self) -> Option<Frame> {
        let exchange = &*self.exchange;
        self.lists.iter_mut().find_map(|list| list.get(exchange)).or_else(|| exchange.pop())
    }

    /// An empty frame of `region`, or `None` when all of them are in use.
    #[inline]
    pub fn get_of(&mut self, region: &Region) -> Option<Frame> {
        self.lists.get_mut(region.id.wrapping_sub(self.first) as usize)?.get(&self.exchange)
    }

    /// Takes a frame back. Another worker's goes to where that one finds it, as this worker's ports may hold so many
    /// of its own that it would swallow them all; one of a port's private memory goes home to that port.
    #[inline]
    pub fn put(&mut self, mut frame: Frame) {
        frame.reset();
        let own = self.lists.get_mut(frame.region.wrapping_sub(self.first) as usize);
        let frame = match own {
            Some(list) if list.own.contains(&frame.index) && list.free.len() < list.share => {
                return list.free.push(frame);
            }
            _ => frame,
        };
        let Err(frame) = frame.home.unwrap_or(&self.exchange).push(frame) else { return };
        // No queue was made large enough: kept rather than lost.
        if self.lists.is_empty() {
            self.lists.push(List::default());
            self.first = frame.region;
        }
        if let Some(list) = self.lists.first_mut() {
            list.free.push(frame);
        }
    }

    /// Free frames in this pool, without those that other workers have put where it finds them.
    #[must_use]
    pub fn available(&self) -> usize {
        self.lists.iter().map(|list| list.free.len()).sum()
    }

    /// Frames that [`Pool::get_of`] can give: those other workers gave back too, looked at only when this pool runs low.
    #[must_use]
    pub fn reachable(&self, region: &Region) -> usize {
        let Some(list) = self.list(region.id) else { return 0 };
        let free = list.free.len();
        if free * 2 > list.share { free } else { free + list.home.unwrap_or(&self.exchange).len() }
    }

    /// Frames of `region` this pool was made with; it never holds more.
    #[must_use]
    pub fn share(&self, region: &Region) -> usize {
        self.list(region.id).map_or(0, |list| list.share)
    }
}
