//! Memory shared with the kernel, and opening ports on it.
#![allow(unsafe_code, reason = "memory that the kernel writes; see `Memory`")]

use core::mem::ManuallyDrop;
use core::num::NonZeroU32;
use core::ptr::{self, NonNull};
use core::time::Duration;
use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig as XskUmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem as XskUmem};

use super::desc::DescLayout;
use super::sys::Tap;
use super::{Mode, OpenConfig, UmemConfig, XskError, XskPort};
use crate::io::frame::Frame;
use crate::io::frame::region::Region;

/// Frames of a zero-copy port's private memory, when the caller leaves it open.
const PRIVATE_FRAMES: u32 = 4096;
/// Bytes of a huge page.
const HUGE_PAGE: u32 = 2 << 20;
/// How long the anchor waits ([`OpenConfig::wait`]): it has somewhere else to go.
const ANCHOR_WAIT: Duration = Duration::from_millis(100);
/// Time between two attempts.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Frames that a port needs besides those it begins to receive into: for what is on its way out.
const PORT_FRAMES: u32 = 64;
/// Most arenas of one [`Umem`]: a tap device has 256 queues.
const MOST_ARENAS: u32 = 128;

/// The memory that the copy-mode ports of the process share: one UMEM, or several, the *arenas*, each shared by some ports.
///
/// The kernel makes a table of all frames of a UMEM, 128 bytes each, for every socket on it. So what a socket takes of the
/// kernel's memory, and the time it takes to open one, goes by the size of an arena. A packet that goes from one arena's
/// port to another's is copied; ports are kept together while they are few.
///
/// The kernel ties a UMEM to the socket it was registered with: once the device of that socket is gone, no other
/// can join (EBADF). So that one socket, the anchor, is bound to a device that stays: the loopback device, or a queue of
/// a tap device of our own for the second and when somebody else has a socket on loopback. It gets no frames and
/// carries no packets.
///
/// Cloning gives another handle. Frames live until the process ends, also when all handles are dropped.
#[derive(Clone, Debug)]
pub struct Umem {
    /// As many for each group, those of one group one after the other.
    arenas: Arc<[Arc<Shared>]>,
    config: UmemConfig,
}

#[derive(Debug)]
pub(super) struct Shared {
    // Dropped in this order: the anchor's rings before the memory they are registered with, both before the device.
    _anchor: Anchor,
    memory: Memory,
    /// Frames that its ports need at the least, together.
    claimed: AtomicU32,
    _tap: Option<Arc<Tap>>,
}

/// One port's part in an arena.
#[derive(Debug)]
pub(super) struct Share {
    arena: Arc<Shared>,
    claim: u32,
}

impl Share {
    fn of(arena: &Arc<Shared>, claim: u32) -> Self {
        arena.claimed.fetch_add(claim, Ordering::Relaxed);
        Self { arena: Arc::clone(arena), claim }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.arena.claimed.fetch_sub(self.claim, Ordering::Relaxed);
    }
}

/// The rings of the anchor: only kept.
#[derive(Debug)]
struct Anchor(#[expect(dead_code, reason = "kept for its drop")] Rings);

// SAFETY: nothing reads or writes these rings until they are dropped, which one thread does.
unsafe impl Sync for Anchor {}

/// The rings of one socket. The socket is closed when all of them are dropped.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) tx: TxQueue,
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) comp: CompQueue,
}

impl Rings {
    pub(super) fn raw_fd(&self) -> RawFd {
        self.tx.fd().as_raw_fd()
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open for as long as any of its rings lives.
        unsafe { BorrowedFd::borrow_raw(self.raw_fd()) }
    }
}

/// One mapped and registered piece of memory.
///
/// Dropping it closes the socket that it is registered with and leaves the mapping in place for good, because
/// frames may be anywhere; [`Memory::free`] is for when none is.
#[derive(Debug)]
pub(super) struct Memory {
    umem: ManuallyDrop<XskUmem>,
    pub(super) region: Arc<Region>,
    pub(super) layout: DescLayout,
    huge_pages: bool,
    /// The socket the memory is registered with, once it is bound: libxdp uses it for the first rings.
    registered: Option<RawFd>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(fd) = self.registered {
            // SAFETY: libxdp's own close of this fd is in the deletion of `umem`, which never happens now, and
            // the rings that use it are dropped before.
            unsafe { rustix::io::close(fd) };
        }
    }
}

impl Memory {
    fn new(
        config: &UmemConfig,
        home: Option<&'static ArrayQueue<Frame>>,
    ) -> Result<(Self, Vec<Frame>), XskError> {
        let size = u32::from(config.frame_size);
        let bad = |what, value, want| XskError::Config { what, value, want };
        let bad_size = || bad("frame_size", size, "2048 or 4096");
        if size != 2048 && size != 4096 {
            return Err(bad_size());
        }
        let round_to = if config.huge_pages { HUGE_PAGE / size } else { 1 };
        let count = config.frames.checked_next_multiple_of(round_to).and_then(NonZeroU32::new);
        let count = count.ok_or(bad("frames", config.frames, "at least 1"))?;
        let umem_config = XskUmemConfig::builder()
            .frame_size(FrameSize::new(size).map_err(|_| bad_size())?)
            .frame_headroom(0)
            .fill_queue_size(ring_size("fill_ring", config.fill_ring)?)
            .comp_queue_size(ring_size("completion_ring", config.completion_ring)?)
            .build()
            .map_err(|_| bad_size())?;

        let mut huge_pages = config.huge_pages;
        let mut made = XskUmem::new(umem_config, count, huge_pages);
        if made.is_err() && huge_pages {
            huge_pages = false;
            made = XskUmem::new(umem_config, count, false);
        }
        let (umem, descs) = made.map_err(|e| XskError::Umem {
            bytes: u64::from(count.get()) * u64::from(size),
            reason: e.to_string(),
            source: os_error(&e),
        })?;
        let layout = DescLayout::find(&descs).ok_or(XskError::DescLayout)?;
        let base = base(&umem, layout, &descs, usize::from(config.frame_size)).ok_or(XskError::DescLayout)?;
        let umem = ManuallyDrop::new(umem);
        // SAFETY: the mapping has `count` frames of zeroes, is never unmapped but by `free`, and besides the frames
        // only the kernel knows it, which writes what is in the fill rings and reads what is in the tx rings.
        let region = unsafe { Region::new(base, count.get(), config.frame_size, home) };
        let (region, frames) = region.ok_or_else(bad_size)?;
        Ok((Self { umem, region, layout, huge_pages, registered: None }, frames))
    }

    /// Opens the first socket on this memory: the one that it is registered with.
    fn register(&mut self, config: &OpenConfig, bind: BindFlags) -> Result<Rings, XskError> {
        let rings = open_rings(&self.umem, config, bind)?;
        self.registered = Some(rings.raw_fd());
        Ok(rings)
    }

    /// Unmaps the memory and closes its socket.
    ///
    /// # Safety
    /// No frame of the region exists or will be made, and all rings on it are dropped.
    pub(super) unsafe fn free(mut self) {
        self.registered = None;
        // SAFETY: not used again: `Drop for Memory` does not touch it.
        unsafe { ManuallyDrop::drop(&mut self.umem) };
    }
}

/// The region's first byte.
fn base(umem: &XskUmem, layout: DescLayout, descs: &[FrameDesc], frame_size: usize) -> Option<NonNull<u8>> {
    let mut base = None;
    for index in 0..descs.len() {
        let mut desc = layout.desc(index * frame_size, 0);
        // SAFETY: `desc` is the start of a frame of this UMEM, no other reference to it exists, and no ring yet.
        let mut data = unsafe { umem.data_mut(&mut desc) };
        data.cursor().set_pos(frame_size);
        let whole = data.contents_mut();
        if whole.len() != frame_size {
            return None;
        }
        // Each chunk's pointer is exposed, so that one pointer to the first may reach all of them.
        let addr = whole.as_mut_ptr().expose_provenance();
        base.get_or_insert(addr);
    }
    NonNull::new(ptr::with_exposed_provenance_mut(base?))
}

fn ring_size(what: &'static str, value: u32) -> Result<QueueSize, XskError> {
    QueueSize::new(value).map_err(|_| XskError::Config { what, value, want: "a power of two" })
}

/// The errno behind an error of xsk-rs.
fn os_error(error: &dyn Error) -> io::Error {
    let code = error.source().and_then(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

fn open_rings(umem: &XskUmem, config: &OpenConfig, bind: BindFlags) -> Result<Rings, XskError> {
    let socket_config = SocketConfig::builder()
        .rx_queue_size(ring_size("rx_ring", config.rx_ring)?)
        .tx_queue_size(ring_size("tx_ring", config.tx_ring)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(bind | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let name: Interface = config.ifname.parse().map_err(|_| XskError::Name(config.ifname.clone()))?;
    let failed = |source| XskError::Open {
        ifname: config.ifname.clone(),
        queue: config.queue,
        mode: config.mode,
        source,
    };
    let started = Instant::now();
    let (tx, rx, own) = loop {
        // SAFETY: INHIBIT_PROG_LOAD is set, which is what the call asks for.
        match unsafe { Socket::new(socket_config, umem, &name, config.queue) } {
            Ok(rings) => break rings,
            Err(e) => {
                let error = os_error(&e);
                if error.raw_os_error() != Some(libc::EBUSY) || started.elapsed() >= config.wait {
                    return Err(failed(error));
                }
            }
        }
        std::thread::sleep(BUSY_PAUSE);
    };
    // None: this UMEM already has a socket on that queue.
    let (fill, comp) = own.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EBUSY)))?;
    let rings = Rings { tx, rx, fill, comp };
    // libxdp opens it without; a child process must not keep the queue bound.
    rustix::io::fcntl_setfd(rings.fd(), rustix::io::FdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    Ok(rings)
}

/// What anchors are bound to.
#[derive(Debug)]
struct Moorings {
    /// Why there is none on the loopback device, once there was an attempt.
    lo: Option<io::Error>,
    lo_taken: bool,
    tap: Tap,
}

/// An arena that has its anchor.
#[derive(Debug)]
struct Moored {
    anchor: Anchor,
    memory: Memory,
    /// Whether that is bound to the tap device.
    by_tap: bool,
}

impl Moorings {
    /// Makes an arena.
    fn arena(&mut self, config: &UmemConfig) -> Result<(Moored, Vec<Frame>), XskError> {
        let home = Box::leak(Box::new(ArrayQueue::new(home_size(config))));
        let (mut memory, frames) = Memory::new(config, Some(home))?;
        match self.anchor(&mut memory) {
            Ok((rings, by_tap)) => Ok((Moored { anchor: Anchor(rings), memory, by_tap }, frames)),
            Err(e) => {
                drop(frames);
                // SAFETY: all frames were in `frames`, and no rings came to be.
                unsafe { memory.free() };
                Err(e)
            }
        }
    }

    /// Binds the socket that shared memory is registered with, see [`Umem`]; says whether to the tap device.
    fn anchor(&mut self, memory: &mut Memory) -> Result<(Rings, bool), XskError> {
        let config = OpenConfig { rx_ring: 2, tx_ring: 2, wait: ANCHOR_WAIT, ..OpenConfig::new("lo", 0) };
        if !self.lo_taken {
            self.lo_taken = true;
            match memory.register(&config, BindFlags::XDP_COPY) {
                Ok(rings) => return Ok((rings, false)),
                Err(XskError::Open { source, .. }) => self.lo = Some(source),
                Err(other) => return Err(other),
            }
        }
        let mut lo = || self.lo.take().unwrap_or_else(|| io::Error::from_raw_os_error(libc::EBUSY));
        let queue = match self.tap.add_queue() {
            Ok(queue) => queue,
            Err(source) => return Err(XskError::Anchor { lo: lo(), source }),
        };
        let ifname = self.tap.name().to_owned();
        match memory
            .register(&OpenConfig { ifname, queue, wait: Duration::ZERO, ..config }, BindFlags::XDP_COPY)
        {
            Ok(rings) => Ok((rings, true)),
            Err(XskError::Open { source, .. }) => Err(XskError::Anchor { lo: lo(), source }),
            Err(other) => Err(other),
        }
    }
}

/// Room for all frames of a memory, also those that huge pages round up to.
fn home_size(config: &UmemConfig) -> usize {
    config.frames as usize + (HUGE_PAGE / u32::from(config.frame_size).max(1)) as usize
}

/// Where a port's frames live.
#[derive(Debug)]
pub(super) enum Source {
    Shared(Share),
    Private(Box<Private>),
}

impl Source {
    pub(super) fn memory(&self) -> &Memory {
        match self {
            Self::Shared(share) => &share.arena.memory,
            Self::Private(private) => &private.memory,
        }
    }
}

/// The memory of one port, with the frames of it that are free.
#[derive(Debug)]
pub(super) struct Private {
    memory: Memory,
    pub(super) free: Vec<Frame>,
    home: NonNull<ArrayQueue<Frame>>,
}

// SAFETY: `home` is a queue that any thread may use, and is freed only by `close`.
unsafe impl Send for Private {}

impl Private {
    fn new(config: &UmemConfig) -> Result<Self, XskError> {
        let home = NonNull::from(Box::leak(Box::new(ArrayQueue::new(home_size(config)))));
        // SAFETY: leaked just now; freed only in `close`, when no frame refers to it any more, or below.
        match Memory::new(config, Some(unsafe { home.as_ref() })) {
            Ok((memory, free)) => Ok(Self { memory, free, home }),
            Err(e) => {
                // SAFETY: no frame was made.
                drop(unsafe { Box::from_raw(home.as_ptr()) });
                Err(e)
            }
        }
    }

    /// Where frames come that other ports or the graph are done with.
    pub(super) fn home(&self) -> &ArrayQueue<Frame> {
        // SAFETY: freed only by `close`, which takes `self`.
        unsafe { self.home.as_ref() }
    }

    /// Unmaps the memory if all its frames are here or in the kernel's hands, else leaves it mapped for good.
    /// The rings must have been dropped.
    ///
    /// Frames in the kernel's hands are not made again: a zero-copy driver may go on writing to them until deferred
    /// work has detached it. The kernel keeps the pages for itself until then; here they are gone.
    pub(super) fn close(mut self) {
        while let Some(frame) = self.home().pop() {
            self.free.push(frame);
        }
        let region = &self.memory.region;
        if self.free.len() + region.lent() == region.count() {
            let Self { memory, free, home } = self;
            drop(free);
            // SAFETY: every frame was free or lent, so none exists; the only holder was this port's, which is
            // done with its rings.
            unsafe { memory.free() };
            // SAFETY: only the frames referred to it.
            drop(unsafe { Box::from_raw(home.as_ptr()) });
        }
    }
}

impl UmemConfig {
    /// How the frames are divided: arenas of each group, frames of each arena.
    #[must_use]
    pub fn division(&self) -> (u32, u32) {
        let groups = self.groups.max(1);
        let group = self.frames / groups;
        let wanted = if self.arena_frames == 0 { 1 } else { group.div_ceil(self.arena_frames) };
        let arenas = wanted.clamp(1, (MOST_ARENAS / groups).max(1));
        (arenas, group.div_ceil(arenas))
    }
}

impl Umem {
    /// Maps and registers the memory, and cuts it into frames, those of one group after those of the other: share them
    /// out to the workers' pools.
    ///
    /// Call it in the network namespace of the devices, as all `open`s. The number of frames is rounded up to full
    /// arenas, with huge pages to full pages too. Where only one anchor can be had, there is one arena.
    ///
    /// # Errors
    /// [`XskError`] when a size is not possible, or the memory or its anchor cannot be had.
    pub fn new(config: UmemConfig) -> Result<(Self, Vec<Frame>), XskError> {
        match Self::divided(&config, config.division()) {
            Err(XskError::Anchor { .. }) if config.division().0 * config.groups.max(1) > 1 => {
                let groups = config.groups.max(1);
                Self::divided(&UmemConfig { groups: 1, ..config }, (1, config.frames / groups * groups))
            }
            made => made,
        }
    }

    fn divided(config: &UmemConfig, (arenas, frames): (u32, u32)) -> Result<(Self, Vec<Frame>), XskError> {
        let mut moorings = Moorings { lo: None, lo_taken: false, tap: Tap::new() };
        let arena = UmemConfig { frames, ..config.clone() };
        let (mut made, mut all) = (Vec::new(), Vec::new());
        for _ in 0..arenas * config.groups.max(1) {
            match moorings.arena(&arena) {
                Ok((moored, frames)) => {
                    made.push(moored);
                    all.extend(frames);
                }
                Err(e) => {
                    drop(all);
                    for Moored { anchor, memory, .. } in made {
                        drop(anchor);
                        // SAFETY: its frames were in `all`, and its only rings were the anchor's.
                        unsafe { memory.free() };
                    }
                    return Err(e);
                }
            }
        }
        let tap = Arc::new(moorings.tap);
        let shared = made.into_iter().map(|Moored { anchor, memory, by_tap }| {
            let tap = by_tap.then(|| Arc::clone(&tap));
            Arc::new(Shared { _anchor: anchor, memory, claimed: AtomicU32::new(0), _tap: tap })
        });
        Ok((Self { arenas: shared.collect(), config: config.clone() }, all))
    }

    /// The arena for one port more of a group: the first whose ports need less than half of it, else the one whose ports
    /// need least.
    fn arena(&self, group: u32, claim: u32) -> Option<&Arc<Shared>> {
        let groups = self.config.groups.max(1);
        let each = self.arenas.len() / groups as usize;
        let from = if each == 0 { 0 } else { (group % groups) as usize * each };
        let arenas = self.arenas.get(from..)?.get(..each.max(1))?;
        let claimed = |arena: &&Arc<Shared>| arena.claimed.load(Ordering::Relaxed);
        let few = |arena: &&Arc<Shared>| (claimed(arena) + claim) as usize * 2 <= arena.memory.region.count();
        arenas.iter().find(few).or_else(|| arenas.iter().min_by_key(claimed))
    }

    /// Opens a socket on (device, queue). May wait ([`OpenConfig::wait`], with [`Mode::Auto`] twice) for the kernel to
    /// release one that was just closed there. The device's XDP program must be told of it: [`XskPort::fd`].
    ///
    /// # Errors
    /// [`XskError::Open`] when the kernel refuses, [`XskError::Config`] for a ring size that is not possible.
    pub fn open(&self, config: &OpenConfig) -> Result<XskPort, XskError> {
        match config.mode {
            Mode::Copy if config.private_frames == 0 => {}
            Mode::Copy => return self.open_private(config, BindFlags::XDP_COPY),
            Mode::ZeroCopy => return self.open_private(config, BindFlags::XDP_ZEROCOPY),
            Mode::Auto => match self.open_private(config, BindFlags::XDP_ZEROCOPY) {
                // Whatever the reason was: if it was not about zero copy, the attempt below says it again.
                Err(XskError::Open { .. }) if config.private_frames == 0 => {}
                Err(XskError::Open { .. }) => return self.open_private(config, BindFlags::XDP_COPY),
                other => return other,
            },
        }
        let claim = config.fill_start.max(PORT_FRAMES).min(self.config.fill_ring) + PORT_FRAMES;
        let bad = || XskError::Config { what: "group", value: config.group, want: "one of the memory's" };
        let share = Share::of(self.arena(config.group, claim).ok_or_else(bad)?, claim);
        // The mode is the anchor's.
        let rings = open_rings(&share.arena.memory.umem, config, BindFlags::XDP_COPY)?;
        XskPort::new(Source::Shared(share), rings, config, self.config())
    }

    fn open_private(&self, config: &OpenConfig, bind: BindFlags) -> Result<XskPort, XskError> {
        let frames = if config.private_frames == 0 { PRIVATE_FRAMES } else { config.private_frames };
        let umem_config = UmemConfig { frames, ..self.config.clone() };
        let mut private = Private::new(&umem_config)?;
        match private.memory.register(config, bind) {
            Ok(rings) => XskPort::new(Source::Private(Box::new(private)), rings, config, &umem_config),
            Err(e) => {
                private.close();
                Err(e)
            }
        }
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &UmemConfig {
        &self.config
    }

    /// UMEMs that it consists of.
    #[must_use]
    pub fn arenas(&self) -> usize {
        self.arenas.len()
    }

    /// Frames of each of them.
    #[must_use]
    pub fn arena_frames(&self) -> usize {
        self.arenas.first().map_or(0, |arena| arena.memory.region.count())
    }

    /// Whether huge pages were asked for and had.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.arenas.iter().all(|arena| arena.memory.huge_pages)
    }

    /// Frames that the kernel holds, over all ports; walks a table of all frames, so not for the packet path.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.arenas.iter().map(|arena| arena.memory.region.lent()).sum()
    }
}
