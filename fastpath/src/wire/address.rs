//! Addresses that may not be on the wire, or not be forwarded.
//!
//! What pods and nodes do send stays allowed: IPv4 link-local addresses (node-local DNS and metadata services sit
//! there) and 240.0.0.0/4, which some clusters number their pods from and Linux routes. Of IPv6's link-local ones only
//! the gateway's is: the node's own processes see and answer it.
#![forbid(unsafe_code)]

use crate::graph::DropReason;
use crate::packet::Ip;
use crate::snapshot::GATEWAY_V6;

/// What an address is, as far as forwarding cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A single interface's address that may be forwarded to and from.
    Unicast,
    /// Multicast, or IPv4's limited broadcast.
    Multicast,
    /// Never on the wire (unspecified, loopback, "this network", IPv4-mapped), or never forwarded (IPv6 link-local,
    /// RFC 4291 2.5.6).
    Martian,
}

/// The scope of an IPv4 address in host order (RFC 6890).
#[must_use]
pub fn scope_v4(addr: u32) -> Scope {
    match addr >> 24 {
        0 | 127 => Scope::Martian,
        224..=239 => Scope::Multicast,
        _ if addr == u32::MAX => Scope::Multicast,
        _ => Scope::Unicast,
    }
}

/// The scope of an IPv6 address as an integer.
#[must_use]
pub fn scope_v6(addr: u128) -> Scope {
    const LINK_LOCAL: u128 = 0xfe80 >> 6;
    const MAPPED: u128 = 0xffff;
    if addr >> 120 == 0xff {
        Scope::Multicast
    } else if addr == GATEWAY_V6.bits() {
        Scope::Unicast
    } else if addr <= 1 || addr >> 118 == LINK_LOCAL || addr >> 32 == MAPPED {
        Scope::Martian
    } else {
        Scope::Unicast
    }
}

/// The scope of an address of either family.
#[must_use]
pub fn scope(ip: Ip) -> Scope {
    if ip.is_v4() { scope_v4(u32::from_be_bytes(ip.v4_bytes())) } else { scope_v6(ip.bits()) }
}

/// Whether a packet between the two may be forwarded.
///
/// # Errors
/// [`DropReason::MartianAddress`] for a martian on either side or a multicast source, [`DropReason::Multicast`] for a
/// multicast or broadcast destination.
pub fn check(src: Scope, dst: Scope) -> Result<(), DropReason> {
    match (src, dst) {
        (Scope::Unicast, Scope::Unicast) => Ok(()),
        (Scope::Unicast, Scope::Multicast) => Err(DropReason::Multicast),
        // A host without an address yet asks everybody (DHCP): the destination is the better name.
        (Scope::Martian, Scope::Multicast) => Err(DropReason::Multicast),
        _ => Err(DropReason::MartianAddress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn table() {
        use Scope::{Martian, Multicast, Unicast};
        for (text, want) in [
            ("0.0.0.0", Martian),
            ("0.255.255.255", Martian),
            ("1.0.0.0", Unicast),
            ("10.0.0.1", Unicast),
            ("126.255.255.255", Unicast),
            ("127.0.0.1", Martian),
            ("128.0.0.0", Unicast),
            ("169.254.20.10", Unicast),
            ("223.255.255.255", Unicast),
            ("224.0.0.251", Multicast),
            ("239.255.255.255", Multicast),
            ("240.0.0.1", Unicast),
            ("255.255.255.254", Unicast),
            ("255.255.255.255", Multicast),
            ("::", Martian),
            ("::1", Martian),
            ("::2", Unicast),
            ("64:ff9b::1", Unicast),
            ("2001:db8::1", Unicast),
            ("fd00::1", Unicast),
            ("fe7f::1", Unicast),
            ("fe80::1", Martian),
            ("febf:ffff::1", Martian),
            ("fec0::1", Unicast),
            ("ff02::1", Multicast),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(scope(ip.into()), want, "{text}");
        }
        assert_eq!(scope_v6(Ip::v4([10, 0, 0, 1]).bits()), Martian, "IPv4-mapped on the wire");
    }

    #[test]
    fn sources_and_destinations() {
        use Scope::{Martian, Multicast, Unicast};
        assert_eq!(check(Unicast, Unicast), Ok(()));
        assert_eq!(check(Unicast, Multicast), Err(DropReason::Multicast));
        assert_eq!(check(Martian, Multicast), Err(DropReason::Multicast));
        for (s, d) in [(Martian, Unicast), (Multicast, Unicast), (Multicast, Multicast), (Unicast, Martian)] {
            assert_eq!(check(s, d), Err(DropReason::MartianAddress));
        }
    }
}
