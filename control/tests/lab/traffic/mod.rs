//! Traffic between namespaces: real sockets, and frames made by hand.
//!
//! Sockets are opened on a thread inside the namespace and then used from anywhere. Every wait has a
//! deadline; a helper that meets it returns an error, never hangs.

pub(crate) mod capture;
pub(crate) mod fragment;
pub(crate) mod frame;
pub(crate) mod icmp;
pub(crate) mod matrix;
pub(crate) mod named;
pub(crate) mod sctp;
pub(crate) mod tagged;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, socket};

/// The longest a healthy lab may need to answer one packet, on a busy machine of two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// How long silence must last before it counts as "nothing came".
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// `0.0.0.0` or `::`, of the family of `address`.
pub(crate) fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A raw socket of `protocol` bound to `own`, in the current thread's namespace.
pub(crate) fn raw_here(own: IpAddr, protocol: SockProtocol) -> io::Result<UdpSocket> {
    let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))?;
    // std's UdpSocket is nothing more than sendto and recvfrom over the descriptor.
    Ok(UdpSocket::from(fd))
}

/// Whether the error only says that nothing came in time.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Asks again until `check` returns a value; panics with `what` when `limit` has passed.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
