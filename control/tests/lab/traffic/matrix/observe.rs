//! What arrives on the stations' devices, on one thread: an answer lost on its way back hides nothing.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{LinkAddr, recvfrom, setsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Station, Tuple};
use crate::traffic::capture;

/// Watches until dropped.
pub(super) struct Observers {
    tuples: Receiver<Tuple>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observers {
    /// Watches `eth0` of every station.
    pub(super) fn start(stations: &[Station]) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for station in stations {
            let (fd, address) = station.ns.run(|| capture::open("eth0"))?;
            fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20))?;
            sockets.push((fd, address.ifindex()));
        }
        let (sender, tuples) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread =
            std::thread::spawn(move || while !stopping.load(Ordering::Relaxed) && turn(&sockets, &sender) {});
        Ok(Observers { tuples, stop, thread: Some(thread) })
    }

    /// What arrived since the last call.
    pub(super) fn seen(&self) -> HashSet<Tuple> {
        self.tuples.try_iter().collect()
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn turn(sockets: &[(OwnedFd, usize)], tuples: &Sender<Tuple>) -> bool {
    let mut polled: Vec<PollFd> = sockets.iter().map(|(fd, _)| PollFd::new(fd, PollFlags::IN)).collect();
    let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
    let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
    let mut buffer = [0; 2048];
    for ((fd, ifindex), _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
        while let Ok((len, Some(from))) = recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
            if from.ifindex() == *ifindex
                && from.pkttype() != capture::OUTGOING
                && let Some(tuple) = first_packet(&buffer[..len])
                && tuples.send(tuple).is_err()
            {
                return false;
            }
        }
    }
    true
}

/// The tuple of a frame that may be the first packet of a probe: SYN, datagram, INIT, echo request.
fn first_packet(frame: &[u8]) -> Option<Tuple> {
    let ip = frame.get(14..)?;
    let (protocol, from, to, rest): (u8, IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let address = |at: usize| ip.get(at..at + 4)?.first_chunk().map(|b| Ipv4Addr::from(*b).into());
            (*ip.get(9)?, address(12)?, address(16)?, ip.get(usize::from(ip[0] & 15) * 4..)?)
        }
        [0x86, 0xdd] => {
            let address = |at: usize| ip.get(at..at + 16)?.first_chunk().map(|b| Ipv6Addr::from(*b).into());
            (*ip.get(6)?, address(8)?, address(24)?, ip.get(40..)?)
        }
        _ => return None,
    };
    let word = |at: usize| rest.get(at..at + 2)?.first_chunk().map(|b| u16::from_be_bytes(*b));
    match (protocol, rest.first()?) {
        // SYN without ACK.
        (6, _) if rest.get(13)? & 0x12 == 0x02 => Some((protocol, from, word(0)?, to, word(2)?)),
        (17, _) => Some((protocol, from, word(0)?, to, word(2)?)),
        (132, _) if *rest.get(12)? == 1 => Some((protocol, from, word(0)?, to, word(2)?)),
        (1, 8) | (58, 128) => Some((protocol, from, word(4)?, to, 0)),
        _ => None,
    }
}
