//! Socket options and a tap device, for which neither xsk-rs nor rustix has a call.
#![allow(unsafe_code, reason = "setsockopt and ioctl by number")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::BusyPoll;

/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (since Linux 6.17), newer than libc's constants.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// TX_BATCH_SIZE of net/xdp/xsk.c: descriptors per sendto where the option above does not exist.
const DEFAULT_TX_BUDGET: u32 = 32;

fn set(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: u32) -> io::Result<()> {
    const LEN: libc::socklen_t = 4;
    // SAFETY: the fd is open for the borrow, and the kernel reads LEN bytes of `value`, which is that long.
    let rc = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), LEN) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets one sendto send up to `wanted` descriptors; what one sends now.
pub(super) fn raise_tx_budget(fd: BorrowedFd<'_>, wanted: u32) -> u32 {
    match set(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, wanted) {
        Ok(()) => wanted,
        Err(_) => DEFAULT_TX_BUDGET,
    }
}

/// Turns busy polling on.
pub(super) fn busy_poll(fd: BorrowedFd<'_>, config: BusyPoll) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)?;
    set(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, config.microseconds)?;
    set(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, config.budget)
}

/// A tap device with as many queues as were added; it lives as long as this value.
#[derive(Debug)]
pub(super) struct Tap {
    name: String,
    queues: Vec<File>,
}

impl Tap {
    /// Without a queue yet, and so not there yet.
    pub(super) fn new() -> Self {
        Self { name: "fp-umem%d".to_owned(), queues: Vec::new() }
    }

    /// Its name, once it has a queue.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Adds a queue; its number.
    pub(super) fn add_queue(&mut self) -> io::Result<u32> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: an ifreq of zeros is a valid one (an empty name, an empty union).
        let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
        // The last byte stays zero.
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name.iter_mut().take(room).zip(self.name.as_bytes()) {
            *to = libc::c_char::from_ne_bytes([*from]);
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| c.to_ne_bytes());
        self.name = name.map(|[b]| char::from(b)).collect();
        self.queues.push(file);
        u32::try_from(self.queues.len() - 1).map_err(io::Error::other)
    }
}
