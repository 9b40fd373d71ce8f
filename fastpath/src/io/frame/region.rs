//! Memory shared with the kernel, and the record of which of its frames the kernel holds.
//!
//! A frame goes into a ring as an address and comes back as an address. Between the two nobody may have a
//! reference to the memory, so [`Holder::lend`] takes the [`Frame`] apart and [`Holder::take`] makes it again,
//! and a table with one entry per frame says to whom each is lent: a ring entry that is wrong, foreign or
//! repeated yields no frame, and after a socket is gone the table tells which frames were still in its rings.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use super::{Frame, HEADROOM};

/// Entry of a frame that is not lent.
const FREE: u32 = 0;

/// A contiguous piece of memory cut into frames of one size.
#[derive(Debug)]
pub struct Region {
    base: *mut u8,
    frame_size: u16,
    shift: u32,
    pub(super) id: u32,
    home: Option<&'static ArrayQueue<Frame>>,
    lent_to: Box<[AtomicU32]>,
    next_holder: AtomicU32,
}

// SAFETY: `base` is only used to make frames, each at most once at a time (see `Holder`).
unsafe impl Send for Region {}
// SAFETY: as above; the table is atomic.
unsafe impl Sync for Region {}

impl Region {
    /// Cuts `count` frames of `frame_size` bytes from `base` on. With `home`, frames given to any pool go there.
    ///
    /// `None` when `frame_size` is not a power of two between 512 and 32768.
    ///
    /// # Safety
    /// `count * frame_size` initialised bytes from `base` on stay readable and writable for as long as any
    /// frame of them lives, and are reached only through those frames and, while lent, by the kernel.
    pub unsafe fn new(
        base: NonNull<u8>,
        count: u32,
        frame_size: u16,
        home: Option<&'static ArrayQueue<Frame>>,
    ) -> Option<(Arc<Self>, Vec<Frame>)> {
        // Zero is for frames outside any region.
        static NEXT_REGION: AtomicU32 = AtomicU32::new(1);
        if !frame_size.is_power_of_two() || frame_size <= HEADROOM {
            return None;
        }
        let region = Self {
            base: base.as_ptr(),
            frame_size,
            shift: frame_size.trailing_zeros(),
            id: NEXT_REGION.fetch_add(1, Ordering::Relaxed),
            home,
            lent_to: (0..count).map(|_| AtomicU32::new(FREE)).collect(),
            next_holder: AtomicU32::new(FREE + 1),
        };
        // SAFETY: each number below `count` once, and nothing is lent yet.
        let frames = (0..count).map(|i| unsafe { region.frame(i, HEADROOM, 0) }).collect();
        Some((Arc::new(region), frames))
    }

    /// Bytes of one frame.
    #[must_use]
    pub fn frame_size(&self) -> u16 {
        self.frame_size
    }

    /// Number of frames.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lent_to.len()
    }

    /// Whether `frame` is one of this region's.
    #[inline]
    #[must_use]
    pub fn contains(&self, frame: &Frame) -> bool {
        frame.region == self.id
    }

    /// Frames lent to any holder; counts by walking the table.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.lent_to.iter().filter(|e| e.load(Ordering::Relaxed) != FREE).count()
    }

    /// A new party that frames can be lent to.
    #[must_use]
    pub fn holder(self: &Arc<Self>) -> Holder {
        // Wraps after 2^32 ports opened in one process.
        let id = self.next_holder.fetch_add(1, Ordering::Relaxed);
        Holder { region: Arc::clone(self), id }
    }

    /// # Safety
    /// `index` is below the count, `head + len` at most the frame size, and no other frame `index` exists nor
    /// does the kernel use that memory.
    #[inline]
    unsafe fn frame(&self, index: u32, head: u16, len: u16) -> Frame {
        // SAFETY: within the region by this function's contract, hence not null either.
        let ptr = unsafe { NonNull::new_unchecked(self.base.add((index as usize) << self.shift)) };
        Frame { ptr, home: self.home, index, region: self.id, cap: self.frame_size, head, len }
    }
}

/// One party (a socket) that frames of a region are lent to. Not `Clone`: only it takes back what was lent to it.
#[derive(Debug)]
pub struct Holder {
    region: Arc<Region>,
    id: u32,
}

impl Holder {
    /// The region.
    #[inline]
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Takes `frame` apart for a ring; the address of its first byte, from the region's start.
    ///
    /// # Errors
    /// A frame of another region comes back unchanged.
    #[inline]
    pub fn lend(&mut self, frame: Frame) -> Result<usize, Frame> {
        if !self.region.contains(&frame) {
            return Err(frame);
        }
        // A frame of this region has a valid number, so the entry is always there.
        if let Some(entry) = self.region.lent_to.get(frame.index as usize) {
            entry.store(self.id, Ordering::Relaxed);
        }
        Ok(((frame.index as usize) << self.region.shift) + usize::from(frame.head))
    }

    /// Makes the frame again whose packet is at `addr`; `None` when it was not lent to this holder, or when
    /// the packet does not lie inside one frame.
    ///
    /// # Safety
    /// The kernel has given the frame back: it neither reads nor writes it from now on.
    #[inline]
    pub unsafe fn take(&mut self, addr: usize, len: usize) -> Option<Frame> {
        let index = u32::try_from(addr >> self.region.shift).ok()?;
        let head = u16::try_from(addr & (usize::from(self.region.frame_size) - 1)).ok()?;
        let len = u16::try_from(len).ok().filter(|&len| len <= self.region.frame_size - head)?;
        let entry = self.region.lent_to.get(index as usize)?;
        // Only this holder changes an entry with its own number, so load and store need not be one step.
        if entry.load(Ordering::Relaxed) != self.id {
            return None;
        }
        entry.store(FREE, Ordering::Relaxed);
        // SAFETY: the table has as many entries as the region frames; head and len were checked above; the
        // entry said that `lend` consumed the frame, and the caller that the kernel is done with it.
        Some(unsafe { self.region.frame(index, head, len) })
    }

    /// Makes every frame again that is still lent to this holder; for when its socket is gone.
    ///
    /// # Safety
    /// The kernel neither reads nor writes any of them from now on.
    pub unsafe fn take_all(&mut self, mut give: impl FnMut(Frame)) {
        for (index, entry) in (0u32..).zip(self.region.lent_to.iter()) {
            if entry.load(Ordering::Relaxed) == self.id {
                entry.store(FREE, Ordering::Relaxed);
                // SAFETY: as in `take`.
                give(unsafe { self.region.frame(index, HEADROOM, 0) });
            }
        }
    }
}

/// An all-in-memory region of `count` frames for tests: nothing but frames reaches it, and it is never freed.
#[cfg(test)]
pub(crate) fn in_memory(count: u32, frame_size: u16) -> (Arc<Region>, Vec<Frame>) {
    in_memory_of(count, frame_size, None)
}

/// The same, whose frames have a home.
#[cfg(test)]
pub(crate) fn in_memory_of(
    count: u32,
    frame_size: u16,
    home: Option<&'static ArrayQueue<Frame>>,
) -> (Arc<Region>, Vec<Frame>) {
    let bytes = vec![0u8; count as usize * usize::from(frame_size)].leak();
    let base = NonNull::from(bytes).cast();
    // SAFETY: leaked memory of the right size that only the frames refer to.
    unsafe { Region::new(base, count, frame_size, home) }.unwrap()
}
