//! Sends packets to any number of devices in one system call.
//!
//! An AF_XDP socket in copy mode costs an skb, and a turn of the receiver's NAPI, for each packet, and a system call
//! for each device. Here the packets are copied into memory that is a BPF map's, and one `BPF_PROG_TEST_RUN` with live
//! frames (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18) runs a program on them that redirects each to its device: no
//! skb, and the receivers' NAPIs run once for a batch of them. The call costs about as much as 16 packets by a socket,
//! so it is for full vectors. Packets leave device by device, those of a device in the order they were put in.
//!
//! Limits: the device must take redirected frames (`NETDEV_XDP_ACT_NDO_XMIT`: on a veth when its other end has GRO
//! or a native program), one that does not loses them without a word; a packet is at most [`Outbox::LONGEST`] bytes.
//! Program and map are made elsewhere: `fastpath_xdp::outbox`.
#![allow(unsafe_code, reason = "memory shared with the kernel, and a system call without a wrapper")]

use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// `bpf(2)`'s command.
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
/// Frames the kernel redirects before it flushes to the devices. A call allocates pages for so many, and uses them again
/// when their receivers are done with them; a veth's ring takes 256.
const BATCH: u32 = 64;
/// Bytes before a packet in its slot: device and length.
const HEAD: usize = 8;

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    zero: u32,
}

/// The packets for one device: a list of so many, by the numbers of their slots.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    first: u16,
    last: u16,
    count: u16,
}

/// Packets on their way to any devices. Belongs to one worker.
#[derive(Debug)]
pub struct Outbox {
    program: OwnedFd,
    base: NonNull<u8>,
    queued: u32,
    lanes: Vec<Lane>,
    /// Lanes that have packets, in the order of their first ones.
    used: Vec<u16>,
    /// The slot after each slot in its lane.
    following: Box<[u16]>,
    /// Bytes of the longest packet queued: the kernel's frames begin that long, as shortening one costs less.
    longest: u32,
}

// SAFETY: the mapping is this value's alone.
unsafe impl Send for Outbox {}

impl Outbox {
    /// Packets it holds.
    pub const SLOTS: u32 = 1024;
    /// Bytes from one slot of the map to the next; the first holds the order in which the others are sent.
    pub const STRIDE: usize = 33 * 64;
    /// Longest packet, Ethernet header included.
    pub const LONGEST: usize = 2047;
    /// Shortest packet: an Ethernet header.
    pub const SHORTEST: usize = 14;
    const BYTES: usize = Self::STRIDE * (Self::SLOTS as usize + 1);

    /// Takes the sending program and maps the memory of its map.
    ///
    /// # Errors
    /// What the kernel says to `mmap`.
    pub fn new(program: OwnedFd, map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new shared mapping of the map's values at an address the kernel chooses.
        let base = unsafe {
            mmap(
                core::ptr::null_mut(),
                Self::BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        let following = vec![0; Self::SLOTS as usize + 1].into();
        Ok(Self { program, base, queued: 0, lanes: Vec::new(), used: Vec::new(), following, longest: 0 })
    }

    /// Makes room for so many lanes; what is queued is forgotten. Allocates.
    pub fn set_lanes(&mut self, count: u16) {
        self.clear();
        self.lanes.clear();
        self.lanes.resize(usize::from(count), Lane::default());
        self.used.reserve(usize::from(count));
    }

    /// Whether it holds packets of a lane.
    #[must_use]
    pub fn holds(&self, lane: u16) -> bool {
        self.lanes.get(usize::from(lane)).is_some_and(|l| l.count > 0)
    }

    /// Packets queued.
    #[must_use]
    pub fn queued(&self) -> u32 {
        self.queued
    }

    fn clear(&mut self) {
        for lane in self.used.drain(..) {
            if let Some(lane) = self.lanes.get_mut(usize::from(lane)) {
                *lane = Lane::default();
            }
        }
        (self.queued, self.longest) = (0, 0);
    }

    /// `LEN` bytes at the start of slot `slot`, which is at most [`Self::SLOTS`].
    fn slot<const LEN: usize>(&mut self, slot: u32) -> &mut [u8; LEN] {
        const { assert!(LEN <= Self::STRIDE) }
        debug_assert!(slot <= Self::SLOTS);
        // SAFETY: within the mapping, which only this value refers to, and the kernel only during `send`.
        unsafe { self.base.add(slot as usize * Self::STRIDE).cast::<[u8; LEN]>().as_mut() }
    }

    /// Queues a copy of `packet` for the device `ifindex`, whose packets all have the same lane; `false`, and nothing
    /// queued, when there is no room or no such lane, or its length is not possible.
    #[inline]
    pub fn put(&mut self, lane: u16, ifindex: u32, packet: &[u8]) -> bool {
        let len = packet.len();
        if self.queued == Self::SLOTS || !(Self::SHORTEST..=Self::LONGEST).contains(&len) {
            return false;
        }
        let number = lane;
        let (Ok(bytes), Ok(place), Some(lane)) =
            (u32::try_from(len), u16::try_from(self.queued + 1), self.lanes.get_mut(usize::from(number)))
        else {
            return false;
        };
        if lane.count == 0 {
            lane.first = place;
            self.used.push(number);
        } else if let Some(before) = self.following.get_mut(usize::from(lane.last)) {
            *before = place;
        }
        lane.last = place;
        lane.count += 1;
        self.queued += 1;
        self.longest = self.longest.max(bytes);
        let slot = self.slot::<{ Self::STRIDE }>(self.queued);
        let (head, data) = slot.split_at_mut(HEAD);
        let (to, long) = head.split_at_mut(HEAD / 2);
        to.copy_from_slice(&ifindex.to_ne_bytes());
        long.copy_from_slice(&bytes.to_ne_bytes());
        if let Some(data) = data.get_mut(..len) {
            data.copy_from_slice(packet);
        }
        true
    }

    /// Sends what is queued and forgets it; how many packets were given to their devices, and why not all.
    pub fn send(&mut self) -> (u32, io::Result<()>) {
        let (queued, longest) = (self.queued, self.longest);
        self.order();
        self.clear();
        let mut done = 0;
        while done < queued {
            let result = self.run(queued - done, longest);
            // Counted by the program, also when a signal ended the call.
            let before = done;
            done = u32::from_ne_bytes(*self.slot::<4>(0)).min(queued);
            match result {
                Ok(()) if done == before => return (done, Err(io::ErrorKind::WriteZero.into())),
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (done, Err(e)),
            }
        }
        (done, Ok(()))
    }

    /// Writes the order to send in.
    fn order(&mut self) {
        let mut place = HEAD;
        for at in 0..self.used.len() {
            let number = self.used.get(at).copied().unwrap_or_default();
            let lane = self.lanes.get(usize::from(number)).copied().unwrap_or_default();
            let mut next = lane.first;
            for _ in 0..lane.count {
                if let Some(to) = self.slot::<{ Self::STRIDE }>(0).get_mut(place..place + 2) {
                    to.copy_from_slice(&next.to_ne_bytes());
                }
                place += 2;
                next = self.following.get(usize::from(next)).copied().unwrap_or_default();
            }
        }
        *self.slot::<4>(0) = [0; 4];
    }

    /// One call: the program runs `repeat` times, on frames of `length` bytes.
    fn run(&mut self, repeat: u32, length: u32) -> io::Result<()> {
        let mut attr = TestRun {
            prog_fd: u32::try_from(self.program.as_raw_fd()).unwrap_or(u32::MAX),
            data_size_in: length,
            // What the frames hold at first does not matter: the program overwrites all of it.
            data_in: self.base.as_ptr().expose_provenance() as u64,
            repeat,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size: BATCH,
            ..TestRun::default()
        };
        // SAFETY: the kernel reads and writes `attr`, whose size it is told, and reads `length` bytes (at most a
        // slot's) of the mapping; the program reads the slots and writes the first, to which no reference is live.
        let rc =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), Self::BYTES) };
    }
}
