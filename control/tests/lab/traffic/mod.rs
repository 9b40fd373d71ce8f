//! Traffic between namespaces: real sockets, and frames made by hand.
//!
//! Sockets are opened on a thread inside the namespace and then used from anywhere. Every wait has a
//! deadline; a helper that meets it returns an error, never hangs.

pub(crate) mod capture;
pub(crate) mod frame;
pub(crate) mod icmp;
pub(crate) mod tagged;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

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
