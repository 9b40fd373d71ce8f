//! SCTP made by hand over raw IP sockets (RFC 9260 §3): INIT and its answer. Not every kernel has SCTP.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use nix::sys::socket::SockProtocol;

use crate::harness::ns::NetNs;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Common header and an INIT chunk without parameters.
const LENGTH: usize = 12 + 20;

/// An INIT or INIT ACK, as it arrived or to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Init {
    /// INIT ACK, not INIT.
    pub(crate) ack: bool,
    /// Source port.
    pub(crate) sport: u16,
    /// Destination port.
    pub(crate) dport: u16,
    /// Tag the sender of the chunk wants to see.
    pub(crate) tag: u32,
}

/// The checksum of RFC 9260 appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

impl Init {
    /// What is sent.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LENGTH);
        out.extend(self.sport.to_be_bytes());
        out.extend(self.dport.to_be_bytes());
        // The verification tag of an INIT is zero.
        out.extend((if self.ack { self.tag } else { 0 }).to_be_bytes());
        out.extend([0; 4]);
        out.extend([if self.ack { INIT_ACK } else { INIT }, 0, 0, 20]);
        out.extend(self.tag.to_be_bytes());
        out.extend(65_536_u32.to_be_bytes());
        out.extend([0, 1, 0, 1]);
        out.extend(self.tag.to_be_bytes());
        let sum = crc32c(&out);
        out[8..12].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// From what arrived: `None` when it is no whole INIT or INIT ACK with a right checksum.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut copy: [u8; LENGTH] = bytes.try_into().ok()?;
        copy[8..12].fill(0);
        let ack = match copy[12] {
            INIT => false,
            INIT_ACK => true,
            _ => return None,
        };
        (crc32c(&copy).to_le_bytes() == bytes[8..12]).then(|| Init {
            ack,
            sport: u16::from_be_bytes([copy[0], copy[1]]),
            dport: u16::from_be_bytes([copy[2], copy[3]]),
            tag: u32::from_be_bytes([copy[16], copy[17], copy[18], copy[19]]),
        })
    }

    /// The INIT ACK to this INIT.
    pub(crate) fn answer(self) -> Self {
        Init { ack: true, sport: self.dport, dport: self.sport, tag: self.tag }
    }
}

/// A raw SCTP socket: every SCTP packet to one address of a namespace.
#[derive(Debug)]
pub(crate) struct Raw(pub(crate) UdpSocket);

impl Raw {
    /// Opens one bound to `address` on the current thread's namespace.
    pub(crate) fn open_here(address: IpAddr) -> io::Result<Self> {
        let socket = super::raw_here(address, SockProtocol::Sctp)?;
        socket.set_nonblocking(true)?;
        Ok(Raw(socket))
    }

    /// Opens one inside `ns`.
    pub(crate) fn open(ns: &NetNs, address: IpAddr) -> io::Result<Self> {
        ns.run(|| Raw::open_here(address))
    }

    /// Sends one.
    pub(crate) fn send(&self, to: IpAddr, init: Init) -> io::Result<()> {
        self.0.send_to(&init.bytes(), SocketAddr::new(to, 0)).map(drop)
    }

    /// The next one that is there and whole, without waiting.
    pub(crate) fn receive(&self) -> Option<(IpAddr, Init)> {
        let mut buffer = [0; 2048];
        loop {
            let (len, from) = self.0.recv_from(&mut buffer).ok()?;
            let skip = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            if let Some(init) = buffer.get(skip..len).and_then(Init::parse) {
                return Some((from.ip(), init));
            }
        }
    }
}
