//! ICMP and ICMPv6: echo, errors as a host sees them, traceroute by rising TTL.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};

use super::{PATIENCE, is_timeout, unspecified};
use crate::harness::ns::NetNs;

static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// An ICMP message as it arrived: without IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Who sent it.
    pub(crate) from: IpAddr,
    /// The ICMP message from its type on.
    pub(crate) bytes: Vec<u8>,
}

/// What an ICMP or ICMPv6 error says, whichever of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Time exceeded in transit.
    TimeExceeded,
    /// Fragmentation needed, or packet too big, with the MTU it allows.
    TooBig(u32),
    /// No such port.
    PortUnreachable,
    /// No route, no host or not allowed; with the code.
    Unreachable(u8),
    /// Anything that is no error.
    Other(u8),
}

impl Message {
    /// What it says.
    pub(crate) fn kind(&self) -> Kind {
        let (kind, code) = (self.bytes[0], self.bytes[1]);
        match (self.from, kind, code) {
            (IpAddr::V4(_), 11, 0) | (IpAddr::V6(_), 3, 0) => Kind::TimeExceeded,
            (IpAddr::V4(_), 3, 4) => Kind::TooBig(u16::from_be_bytes([self.bytes[6], self.bytes[7]]).into()),
            (IpAddr::V6(_), 2, 0) => Kind::TooBig(u32::from_be_bytes(self.field())),
            (IpAddr::V4(_), 3, 3) | (IpAddr::V6(_), 1, 4) => Kind::PortUnreachable,
            (IpAddr::V4(_), 3, code) | (IpAddr::V6(_), 1, code) => Kind::Unreachable(code),
            _ => Kind::Other(kind),
        }
    }

    fn field(&self) -> [u8; 4] {
        *self.bytes[4..].first_chunk().expect("an ICMP message has eight bytes of header")
    }

    /// Whether it quotes a UDP datagram to `port`.
    fn quotes_udp_to(&self, port: u16) -> bool {
        let header = match self.from {
            IpAddr::V4(_) => usize::from(self.bytes.get(8).map_or(0, |b| b & 15)) * 4,
            IpAddr::V6(_) => 40,
        };
        self.bytes.get(8 + header + 2..8 + header + 4) == Some(&port.to_be_bytes())
    }
}

/// A raw ICMP socket inside a namespace.
#[derive(Debug)]
pub(crate) struct Icmp {
    socket: UdpSocket,
}

impl Icmp {
    /// Opens one for the family of `address`.
    pub(crate) fn open(ns: &NetNs, address: IpAddr) -> io::Result<Self> {
        let (family, protocol) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let fd = ns.run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol))?;
        // std's UdpSocket is nothing more than sendto and recvfrom over the descriptor.
        Ok(Icmp { socket: UdpSocket::from(fd) })
    }

    /// First message that `wanted` accepts, within `limit`.
    pub(crate) fn receive(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&Message) -> bool,
    ) -> io::Result<Option<Message>> {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let (len, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(e) if is_timeout(&e) => continue,
                Err(e) => return Err(e),
            };
            let skip = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            if len < skip + 8 {
                continue;
            }
            let message = Message { from: from.ip(), bytes: buffer[skip..len].to_vec() };
            if wanted(&message) {
                return Ok(Some(message));
            }
        }
    }

    /// First ICMP error within `limit`, other than about neighbours and multicast.
    pub(crate) fn error(&self, limit: Duration) -> io::Result<Option<Message>> {
        self.receive(limit, |m| !matches!(m.kind(), Kind::Other(_)))
    }
}

/// An echo request, with its checksum for IPv4; for ICMPv6 the kernel computes it.
pub(crate) fn echo_request(v4: bool, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![if v4 { 8 } else { 128 }, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    if v4 {
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&message).ones_complement();
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
    }
    message
}

/// The next echo reply a raw socket has (see [`super::raw_here`]): who sent it, and its id.
pub(crate) fn echo_reply(socket: &UdpSocket) -> Option<(IpAddr, u16)> {
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).ok()?;
        let skip = if from.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        if let Some([0 | 129, 0, _, _, high, low, ..]) = buffer.get(skip..len) {
            return Some((from.ip(), u16::from_be_bytes([*high, *low])));
        }
    }
}

/// Sends `count` echo requests of `size` bytes of payload, one after the other, each given `limit`.
/// Returns how many were answered with the same bytes.
pub(crate) fn echo(ns: &NetNs, to: IpAddr, count: u16, size: usize, limit: Duration) -> io::Result<u16> {
    let icmp = Icmp::open(ns, to)?;
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let reply = if to.is_ipv4() { 0 } else { 129 };
    let payload: Vec<u8> = (0..size).map(|i| (i * 13).to_le_bytes()[0]).collect();
    let mut answered = 0;
    for sequence in 0..count {
        let message = echo_request(to.is_ipv4(), id, sequence, &payload);
        if let Err(e) = icmp.socket.send_to(&message, SocketAddr::new(to, 0)) {
            // An ICMP error for an earlier request is reported here.
            if e.kind() == io::ErrorKind::NetworkUnreachable {
                return Err(e);
            }
            continue;
        }
        let same =
            icmp.receive(limit, |m| m.from == to && m.bytes[0] == reply && m.bytes[4..] == message[4..])?;
        answered += u16::from(same.is_some());
    }
    Ok(answered)
}

/// Whether `to` answers at least one of three echo requests, each given [`PATIENCE`].
pub(crate) fn reachable(ns: &NetNs, to: IpAddr) -> bool {
    (0..3).any(|_| echo(ns, to, 1, 56, PATIENCE / 4).unwrap_or(0) == 1)
}

/// Whether `to` leaves three echo requests without answer.
pub(crate) fn unreachable(ns: &NetNs, to: IpAddr) -> bool {
    echo(ns, to, 3, 56, super::SILENCE).unwrap_or(0) == 0
}

/// A hop of a [`traceroute`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Who answered.
    pub(crate) address: IpAddr,
    /// What it said.
    pub(crate) kind: Kind,
}

/// Sends UDP with TTL (hop limit) 1, 2, … until the destination answers or `max` hops are asked.
/// A hop that keeps silent is `None`.
pub(crate) fn traceroute(ns: &NetNs, to: IpAddr, max: u8) -> io::Result<Vec<Option<Hop>>> {
    let icmp = Icmp::open(ns, to)?;
    let mut hops = Vec::new();
    for ttl in 1..=max {
        let probe = ns.run(|| UdpSocket::bind((unspecified(to), 0)))?;
        match to {
            IpAddr::V4(_) => probe.set_ttl(ttl.into())?,
            IpAddr::V6(_) => setsockopt(&probe, sockopt::Ipv6Ttl, &ttl.into())?,
        }
        let port = 33_433 + u16::from(ttl);
        let mut hop = None;
        for _ in 0..2 {
            probe.send_to(b"traceroute probe", (to, port))?;
            hop = icmp
                .receive(PATIENCE / 4, |m| m.quotes_udp_to(port))?
                .map(|m| Hop { address: m.from, kind: m.kind() });
            if hop.is_some() {
                break;
            }
        }
        hops.push(hop);
        if hop.is_some_and(|h| h.address == to) {
            break;
        }
    }
    Ok(hops)
}

/// Whether `to` answers an echo request from `own` with this identifier, of three, each given [`PATIENCE`].
pub(crate) fn ping_as(ns: &NetNs, own: IpAddr, to: IpAddr, id: u16, size: usize) -> io::Result<bool> {
    let protocol = if to.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let socket = ns.run(|| super::raw_here(own, protocol))?;
    socket.set_read_timeout(Some(PATIENCE / 4))?;
    for sequence in 0..3 {
        socket.send_to(&echo_request(to.is_ipv4(), id, sequence, &vec![7; size]), SocketAddr::new(to, 0))?;
        let end = Instant::now() + PATIENCE / 4;
        while Instant::now() < end {
            match echo_reply(&socket) {
                Some(answer) if answer == (to, id) => return Ok(true),
                Some(_) => {}
                None => break,
            }
        }
    }
    Ok(false)
}
