//! Frames as they are on a device: captured and injected by AF_PACKET.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::frame::{View, view};
use crate::harness::ns::NetNs;

/// `PACKET_OUTGOING` of linux/if_packet.h: this host sent it by that device.
pub(super) const OUTGOING: u8 = 4;

/// A frame seen on a device.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Sent by the host by this device, not received by it.
    pub(crate) outgoing: bool,
    /// From the destination MAC on; an offloaded VLAN tag is not in it.
    pub(crate) bytes: Vec<u8>,
}

/// Records the frames of one device in the background until dropped.
#[derive(Debug)]
pub(crate) struct Capture {
    frames: Receiver<Seen>,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts; when it returns, no later frame is missed.
    ///
    /// What an XDP program takes never reaches it: a frame
    /// seen here as received is one the program passed to the kernel.
    pub(crate) fn start(ns: &NetNs, device: &str) -> io::Result<Self> {
        Capture::start_matching(ns, device, |_| true)
    }

    /// The same, of the frames `matching` accepts only.
    pub(crate) fn start_matching(ns: &NetNs, device: &str, matching: fn(&Seen) -> bool) -> io::Result<Self> {
        let (fd, address) = ns.run(|| open(device))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
        setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20))?;
        let (sender, frames) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (stopping, counting) = (stop.clone(), count.clone());
        let wanted = move |seen: &Seen| {
            let wanted = matching(seen);
            counting.fetch_add(wanted.into(), Ordering::Relaxed);
            wanted
        };
        let thread = std::thread::spawn(move || record(&fd, address.ifindex(), &stopping, &sender, wanted));
        Ok(Capture { frames, count, stop, thread: Some(thread) })
    }

    /// Frames recorded so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// First frame from now on (or not yet looked at) that `wanted` accepts, within `limit`.
    pub(crate) fn wait(&self, limit: Duration, mut wanted: impl FnMut(&Seen, &View) -> bool) -> Option<View> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let seen = self.frames.recv_timeout(left).ok()?;
            if let Some(parsed) = view(&seen.bytes)
                && wanted(&seen, &parsed)
            {
                return Some(parsed);
            }
        }
    }

    /// Ends the recording and returns all frames not yet looked at.
    pub(crate) fn stop(mut self) -> Vec<Seen> {
        self.finish();
        self.frames.try_iter().collect()
    }

    fn finish(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Frames in `seen` that parse, with whether they were outgoing.
pub(crate) fn views(seen: &[Seen]) -> impl Iterator<Item = (bool, View)> + '_ {
    seen.iter().filter_map(|s| view(&s.bytes).map(|v| (s.outgoing, v)))
}

/// Sends frames by a device as they are.
#[derive(Debug)]
pub(crate) struct Injector {
    fd: OwnedFd,
    address: LinkAddr,
}

impl Injector {
    /// Opens one on `device` inside `ns`.
    pub(crate) fn open(ns: &NetNs, device: &str) -> io::Result<Self> {
        let (fd, address) = ns.run(|| open(device))?;
        Ok(Injector { fd, address })
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = sendto(self.fd.as_raw_fd(), frame, &self.address, MsgFlags::empty())?;
        if sent == frame.len() { Ok(()) } else { Err(io::Error::other("frame sent in part")) }
    }
}

/// A packet socket of every protocol, and the device's address, in the current thread's namespace.
pub(super) fn open(device: &str) -> io::Result<(OwnedFd, LinkAddr)> {
    // The link-layer address of getifaddrs(3) is the one safe way to a sockaddr_ll.
    let address = getifaddrs()?
        .filter(|i| i.interface_name == device)
        .find_map(|i| i.address.and_then(|a| a.as_link_addr().copied()))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no device {device}")))?;
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    Ok((fd, address))
}

fn record(
    fd: &OwnedFd,
    ifindex: usize,
    stop: &AtomicBool,
    frames: &Sender<Seen>,
    wanted: impl Fn(&Seen) -> bool,
) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, Some(from))) = recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) else { continue };
        if from.ifindex() == ifindex {
            let seen = Seen { outgoing: from.pkttype() == OUTGOING, bytes: buffer[..len].to_vec() };
            if wanted(&seen) && frames.send(seen).is_err() {
                return;
            }
        }
    }
}
