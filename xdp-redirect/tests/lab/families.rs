//! A pinhole with every hole in both families, and the addresses that go with it.

use std::net::IpAddr;

use fastpath_xdp::pinhole::Protocol;
use fastpath_xdp::{Endpoint, OnFailure, Pinhole, Prefix, SnatPorts, Tunnel};

use super::Bench;
use super::frames::{ICMP, ICMPV6};

pub(crate) fn a(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One family's addresses.
pub(crate) struct Family {
    pub(crate) node: IpAddr,
    pub(crate) pod: IpAddr,
    pub(crate) vip: IpAddr,
    pub(crate) far: IpAddr,
    /// On the node, of nobody's.
    pub(crate) other: IpAddr,
    pub(crate) icmp: u8,
    pub(crate) echo: u8,
    pub(crate) reply: u8,
    pub(crate) errors: &'static [u8],
    /// Messages that are neither errors nor echo replies.
    pub(crate) others: &'static [u8],
}

pub(crate) fn families() -> [Family; 2] {
    [
        Family {
            node: a("192.0.2.1"),
            pod: a("10.1.0.7"),
            vip: a("203.0.113.9"),
            far: a("198.51.100.5"),
            other: a("192.0.2.2"),
            icmp: ICMP,
            echo: 8,
            reply: 0,
            errors: &[3, 11, 12],
            others: &[4, 5, 8, 9, 10, 13, 14, 40],
        },
        Family {
            node: a("2001:db8::1"),
            pod: a("fd00:1::7"),
            vip: a("2001:db8:f::9"),
            far: a("2001:db8:ffff::5"),
            other: a("2001:db8::2"),
            icmp: ICMPV6,
            echo: 128,
            reply: 129,
            errors: &[1, 2, 3, 4],
            others: &[0, 5, 100, 127, 128, 133, 134, 135, 136, 137],
        },
    ]
}

pub(crate) const LO: u16 = 40000;
pub(crate) const HI: u16 = 41000;

pub(crate) fn pinhole() -> Pinhole {
    let mut pinhole = Pinhole::default();
    pinhole.local.insert(Prefix::new(a("10.1.0.0"), 24).unwrap());
    pinhole.local.insert(Prefix::host(a("fd00:1::7")));
    for family in families() {
        pinhole.tunnels.insert(Tunnel { addr: family.node, port: 4789 });
        for (proto, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 3868)] {
            pinhole.frontends.insert(Endpoint { addr: family.vip, proto, port });
        }
        for proto in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            pinhole.node_ports.insert(Endpoint { addr: family.node, proto, port: 30080 });
        }
        pinhole.snat.insert(family.node, SnatPorts { lo: LO, hi: HI });
    }
    pinhole
}

pub(crate) fn bench() -> Bench {
    let mut bench = Bench::new(OnFailure::Pass);
    bench.redirect.set_pinhole(&pinhole()).unwrap();
    bench
}

pub(crate) const NOT_OURS: &str = "passed_not_ours";
