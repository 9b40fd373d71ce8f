//! What a socket of the node waits for is the node's, also on a port of the SNAT range. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use fastpath_xdp::{OnFailure, Pinhole, SnatPorts};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use lab::frames::{self, ICMP, ICMPV6, SCTP, TCP, UDP};
use lab::{Bench, Namespace, passed, redirected, sh};

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const FAR: [&str; 2] = ["198.51.100.5", "2001:db8:ffff::5"];
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// A TCP segment with these flags.
fn segment(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut header = frames::transport(TCP, from.port(), to.port());
    header[13] = flags;
    frames::ip_frame(&frames::ip(from.ip(), to.ip(), TCP, &header))
}

fn datagram(proto: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    frames::packet(from.ip(), to.ip(), proto, from.port(), to.port())
}

/// An ICMP error to the sender of what it quotes.
fn error(proto: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let quoted = frames::ip(from.ip(), to.ip(), proto, &frames::transport(proto, from.port(), to.port()));
    let (icmp, kind) = if from.is_ipv4() { (ICMP, 3) } else { (ICMPV6, 1) };
    frames::ip_frame(&frames::ip(to.ip(), from.ip(), icmp, &frames::icmp(kind, 0, &quoted)))
}

/// A connection of the node from this very port.
fn connected(from: SocketAddr, to: SocketAddr) -> TcpStream {
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket(family, SocketType::STREAM, None).unwrap();
    bind(&fd, &from).unwrap();
    connect(&fd, &to).unwrap();
    TcpStream::from(fd)
}

#[test]
fn the_nodes_own_connections_stay_its_own() {
    let _ns = Namespace::enter_new();
    sh("ip addr add 192.0.2.1/32 dev lo; ip addr add 198.51.100.5/32 dev lo
        ip addr add 2001:db8::1/128 dev lo nodad; ip addr add 2001:db8:ffff::5/128 dev lo nodad");
    let mut bench = Bench::new(OnFailure::Pass);
    let mut pinhole = Pinhole::default();
    for node in NODE {
        pinhole.snat.insert(node.parse().unwrap(), SnatPorts { lo: 40_000, hi: 41_000 });
    }
    bench.redirect.set_pinhole(&pinhole).unwrap();
    let (ours, theirs) = (redirected("pinhole_snat"), passed("passed_not_ours"));
    let our_error = redirected("pinhole_icmp_error");

    for (node, far) in NODE.into_iter().zip(FAR) {
        let [node, far]: [IpAddr; 2] = [node, far].map(|a| a.parse().unwrap());
        let node = |port| SocketAddr::new(node, port);
        let far = |port| SocketAddr::new(far, port);
        for proto in [TCP, UDP, SCTP] {
            assert_eq!(bench.uplink(&datagram(proto, far(7), node(40_500))), ours, "nobody waits");
            assert_eq!(bench.uplink(&error(proto, node(40_500), far(7))), our_error);
        }

        let open = UdpSocket::bind(node(40_500)).unwrap();
        assert_eq!(bench.uplink(&datagram(UDP, far(7), node(40_500))), theirs);
        assert_eq!(bench.uplink(&error(UDP, node(40_500), far(7))), theirs);
        assert_eq!(bench.uplink(&datagram(UDP, far(7), node(40_501))), ours);
        // In fragments, and with a priority tag.
        let piece = |port, offset| {
            let payload = frames::transport(UDP, 7, port);
            frames::piece((far(7).ip(), node(0).ip()), UDP, 1, offset, offset == 0, &payload)
        };
        for (port, expected) in [(40_501, &ours), (40_500, &theirs)] {
            assert_eq!(bench.uplink(&piece(port, 0)), *expected);
            assert_eq!(bench.uplink(&piece(port, 2)), *expected);
        }
        let tagged = frames::tagged(&datagram(UDP, far(7), node(40_500)), 0x8100, 0);
        assert_eq!(bench.uplink(&tagged), passed("passed_vlan"));
        assert_eq!(bench.uplink(&segment(far(7), node(40_500), ACK)), ours, "another protocol");
        drop(open);
        assert_eq!(bench.uplink(&datagram(UDP, far(7), node(40_500))), ours);

        let peer = UdpSocket::bind(node(40_600)).unwrap();
        peer.connect(far(7)).unwrap();
        assert_eq!(bench.uplink(&datagram(UDP, far(7), node(40_600))), theirs);
        assert_eq!(bench.uplink(&datagram(UDP, far(8), node(40_600))), ours, "not whom it talks to");

        let listener = TcpListener::bind(node(40_700)).unwrap();
        assert_eq!(bench.uplink(&segment(far(7), node(40_700), SYN)), theirs);
        assert_eq!(bench.uplink(&segment(far(7), node(40_700), SYN_ACK)), ours, "an answer to a pod");
        assert_eq!(bench.uplink(&error(TCP, node(40_700), far(7))), our_error);
        // Whoever connects to it is known from then on.
        let client = connected(far(9), node(40_700));
        assert_eq!(bench.uplink(&segment(far(9), node(40_700), ACK)), theirs);
        drop((client, listener));

        let server = TcpListener::bind(far(443)).unwrap();
        let stream = connected(node(40_800), far(443));
        assert_eq!(bench.uplink(&segment(far(443), node(40_800), ACK)), theirs);
        assert_eq!(bench.uplink(&error(TCP, node(40_800), far(443))), theirs);
        assert_eq!(bench.uplink(&segment(far(444), node(40_800), ACK)), ours);
        assert_eq!(bench.uplink(&segment(far(443), node(40_801), ACK)), ours);
        assert_eq!(bench.uplink(&error(TCP, node(40_801), far(443))), our_error);
        drop((stream, server));
    }
}
