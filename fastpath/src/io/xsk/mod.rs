//! AF_XDP ports: one socket per (device, queue).
//!
//! | File | Holds |
//! |---|---|
//! | `umem` | [`Umem`]: the memory shared with the kernel; opening ports on it |
//! | `port` | [`XskPort`]: rings, kicks, accounting of frames |
//! | `outbox` | [`Outbox`]: sends to many devices at once, not by sockets |
//! | `desc` | makes ring descriptors whose packet begins anywhere in a frame |
//! | `sys` | the socket options xsk-rs has no call for |
//!
//! Copy-mode ports share UMEMs, *arenas* in the words of this module: a frame goes from any port to any other of its
//! arena without a copy; each (device, queue) has its own fill and completion ring. A zero-copy port has a UMEM of its own
//! (the kernel gives all sockets on a UMEM the mode of the first), *private* memory. Packets are copied where they cross
//! into another port's memory, and frames return to their port or arena from any pool.
//!
//! A frame is a power-of-two chunk; the kernel writes packets at offset 256 (XDP_PACKET_HEADROOM) and sends from
//! any offset, as long as the packet does not leave its chunk (aligned mode). So outer headers are written into
//! those 256 bytes.
//!
//! No XDP program is loaded here: the caller puts [`XskPort::fd`] into the XSKMAP of its own, and takes it out
//! again before the port is closed.

use core::time::Duration;
use std::io;

mod desc;
mod outbox;
mod port;
mod sys;
mod umem;

pub use outbox::Outbox;
pub use port::XskPort;
pub use umem::Umem;

/// Memory and ring sizes of a [`Umem`]. Ring sizes are powers of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UmemConfig {
    /// Number of frames, of all groups together.
    pub frames: u32,
    /// Most frames of one arena, a UMEM that a part of the ports share: 0 for one arena a group. See [`Umem`].
    pub arena_frames: u32,
    /// Groups of arenas, one for each worker; the frames are divided evenly.
    pub groups: u32,
    /// Bytes of a frame, headroom included: 2048 or 4096 (the kernel wants a power of two up to the page size).
    pub frame_size: u16,
    /// Entries of each port's fill ring; at least [`OpenConfig::fill_target`] of any port.
    pub fill_ring: u32,
    /// Entries of each port's completion ring: frames that may be on their way out at the same time.
    pub completion_ring: u32,
    /// Try huge pages (2 MiB); normal pages when there are none, see [`Umem::huge_pages`].
    pub huge_pages: bool,
}

impl Default for UmemConfig {
    fn default() -> Self {
        Self {
            frames: 16384,
            arena_frames: 0,
            groups: 1,
            frame_size: 2048,
            fill_ring: 512,
            completion_ring: 1024,
            huge_pages: false,
        }
    }
}

/// How packets get between the device and the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Zero copy where the driver can, else copy. For NICs: it costs an attempt on private memory.
    Auto,
    /// The kernel copies. What veths do.
    #[default]
    Copy,
    /// The device reads and writes the frames itself; an error when its driver cannot.
    ZeroCopy,
}

/// Busy polling of a device from the worker that owns the port (`SO_PREFER_BUSY_POLL` and friends).
///
/// Useful with `napi_defer_hard_irqs` and `gro_flush_timeout` set on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// Microseconds one system call polls when nothing is there (`SO_BUSY_POLL`).
    pub microseconds: u32,
    /// Packets handled per poll (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
}

/// What to open, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenConfig {
    /// Device name, in the network namespace of the calling thread.
    pub ifname: String,
    /// Receive (and transmit) queue of the device, from 0.
    pub queue: u32,
    /// Copy or zero copy.
    pub mode: Mode,
    /// Entries of the rx ring, a power of two.
    pub rx_ring: u32,
    /// Entries of the tx ring, a power of two.
    pub tx_ring: u32,
    /// Most frames the kernel gets for receiving, read or not; 0 for the default.
    ///
    /// Default: the whole fill ring, so that a burst is kept while the worker is with others or its core is taken.
    pub fill_target: u32,
    /// Frames the kernel gets to begin with in copy mode, at least 64 (one NAPI budget).
    ///
    /// Bursts that take more than half raise it to `fill_target`. It begins at 64, as hundreds of quiet pods would
    /// otherwise lock up all frames, which nothing but traffic brings back. For the few ports that are sure to be
    /// busy, more saves the first burst.
    pub fill_start: u32,
    /// The group whose arenas it is to be on: that of the worker that gets the port.
    pub group: u32,
    /// Busy polling; `None` leaves reception to the kernel's own scheduling.
    pub busy_poll: Option<BusyPoll>,
    /// Frames of private memory: the size of that of a zero-copy port (0: 4096), and when not 0 a copy-mode port
    /// gets private memory too, which isolates it from the frame use of all others.
    pub private_frames: u32,
    /// How long to wait for the kernel to finish the release of a socket that had the queue before: its pool is freed
    /// by deferred work, after the last packet in flight.
    pub wait: Duration,
}

impl Default for OpenConfig {
    fn default() -> Self {
        Self {
            ifname: String::new(),
            queue: 0,
            mode: Mode::Copy,
            rx_ring: 512,
            tx_ring: 512,
            fill_target: 0,
            fill_start: 0,
            group: 0,
            busy_poll: None,
            private_frames: 0,
            wait: Duration::from_secs(1),
        }
    }
}

impl OpenConfig {
    /// Copy mode on (`ifname`, `queue`), everything else at its default.
    #[must_use]
    pub fn new(ifname: impl Into<String>, queue: u32) -> Self {
        Self { ifname: ifname.into(), queue, ..Self::default() }
    }
}

/// Why memory or a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// A setting that the kernel would refuse.
    #[error("AF_XDP: {what} is {value}: {want}")]
    Config {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: u32,
        /// What is allowed.
        want: &'static str,
    },
    /// The memory could not be mapped or registered.
    #[error(
        "AF_XDP: no UMEM of {bytes} bytes: {reason} (needs CAP_NET_RAW, and CAP_IPC_LOCK or `ulimit -l` of that size)"
    )]
    Umem {
        /// Bytes asked for.
        bytes: u64,
        /// What failed.
        reason: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No device to keep the shared memory registered with.
    #[error("AF_XDP: cannot bind the shared UMEM to `lo` ({lo}), nor to a tap device of its own")]
    Anchor {
        /// Why not to the loopback device.
        lo: io::Error,
        /// Why not to a tap device.
        #[source]
        source: io::Error,
    },
    /// The device's name holds a zero byte.
    #[error("AF_XDP: device name {0:?} is not one")]
    Name(String),
    /// The socket could not be opened or bound.
    #[error("AF_XDP: cannot open {ifname} queue {queue} ({mode:?}){}", hint(.source))]
    Open {
        /// Device.
        ifname: String,
        /// Queue.
        queue: u32,
        /// Mode asked for.
        mode: Mode,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A `FrameDesc` of xsk-rs does not look like the one this code was written for.
    #[error("AF_XDP: unknown layout of xsk_rs::FrameDesc; this build's xsk-rs is not the supported 0.11")]
    DescLayout,
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::BUSY) => ": another AF_XDP socket holds this queue",
        Some(rustix::io::Errno::NODEV) => ": no such device in this network namespace",
        Some(rustix::io::Errno::INVAL) => ": no such queue, or this process has a port there already",
        Some(rustix::io::Errno::OPNOTSUPP) => ": its driver cannot do that",
        Some(rustix::io::Errno::PERM) => ": needs CAP_NET_RAW and CAP_NET_ADMIN",
        _ => "",
    }
}
