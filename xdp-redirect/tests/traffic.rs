//! The generator and the sink, and the endpoint program on live frames. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fastpath_xdp::generator::{Flows, Generator, Sink};
use fastpath_xdp::{Mode, ModeRequest, OnFailure, Role, XdpError};

use lab::{Namespace, frames, sh};

/// Waits until `done` says so.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_leaves_one_end_arrives_at_the_other() {
    let ns = Namespace::enter_new();
    // No router solicitations of the stack's own among the counted frames.
    sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    ns.veth("va", "vb");
    let sink = Sink::attach("vb", ModeRequest::Native).unwrap();
    let own = Sink::attach("va", ModeRequest::Native).unwrap();
    assert_eq!(sink.mode(), Mode::Native);
    let mut generator = Generator::new("va").unwrap();
    let mut expected = (0, 0);
    // One frame, a batch, more than a call takes; shortest, odd, largest for an MTU of 1500.
    for (size, repeat) in [(14, 1), (60, 64), (61, 5000), (777, 100), (1514, 65), (60, 0)] {
        generator.send(&vec![0x5a; size], repeat).unwrap();
        expected.0 += u64::from(repeat);
        expected.1 += u64::from(repeat) * size as u64;
        eventually("frames are missing", || sink.count().unwrap().frames == expected.0);
    }
    let count = sink.count().unwrap();
    assert_eq!((count.frames, count.bytes), expected);
    assert_eq!(own.count().unwrap().frames, 0, "the wrong end received");
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let ns = Namespace::enter_new();
    ns.veth("va", "vb");
    assert!(matches!(Generator::new("nope").unwrap_err(), XdpError::NoDevice { .. }));
    let mut generator = Generator::new("va").unwrap();
    for size in [0, 13, 5000, 100_000] {
        let error = generator.send(&vec![0; size], 1).unwrap_err();
        assert!(matches!(error, XdpError::Generate { .. }), "{size}: {error}");
    }
    generator.set_flows(Flows { flows: 2, ports: 2, to_many: false });
    let arp = frames::ethernet(0x0806, &[0; 46]);
    assert!(matches!(generator.send(&arp, 1).unwrap_err(), XdpError::Generate { .. }));
    sh("ip link del va");
    assert!(generator.send(&[0; 60], 1).is_err());
}

/// A UDP frame with a right checksum, from `src` to `dst`.
fn udp(src: SocketAddr, dst: SocketAddr, mac: [u8; 6], checksum: bool) -> Vec<u8> {
    let data = b"flow";
    let mut header = Vec::new();
    header.extend(src.port().to_be_bytes());
    header.extend(dst.port().to_be_bytes());
    header.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
    header.extend([0, 0]);
    header.extend(data);
    if checksum {
        let octets = |addr: IpAddr| match addr {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let mut pseudo = [octets(src.ip()), octets(dst.ip())].concat();
        pseudo.extend([0, 17, 0, u8::try_from(header.len()).unwrap()]);
        let sum = internet_checksum(&[pseudo, header.clone()].concat());
        header[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    let mut packet = frames::ip(src.ip(), dst.ip(), 17, &header);
    if src.is_ipv4() {
        let sum = internet_checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = frames::ip_frame(&packet);
    frame[..6].copy_from_slice(&mac);
    frame
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// The kernel's UDP receives what the generator sends: every flow equally often, checksums right (it
/// drops what is wrong).
#[test]
fn flows_vary_ports_and_addresses_with_right_checksums() {
    let ns = Namespace::enter_new();
    ns.veth("va", "vb");
    // The peer of a device that sends XDP frames has to poll: with GRO it does.
    sh("ip addr add 10.9.0.1/16 dev vb; ip addr add fd09::1/64 dev vb nodad
        ethtool -K vb gro on >/dev/null
        sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.vb.rp_filter=0");
    let text = sh("ip -o link show vb");
    let text = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let mac: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let mac: [u8; 6] = mac.try_into().unwrap();
    let mut generator = Generator::new("va").unwrap();
    for (src, dst, checksum) in [
        ("10.9.0.250:65534", "10.9.0.1:7000", true),
        ("10.9.0.250:65534", "10.9.0.1:7000", false),
        ("[fd09::fffe]:65534", "[fd09::1]:7000", true),
    ] {
        let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let socket = UdpSocket::bind(dst).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let frame = udp(src, dst, mac, checksum);
        // Ten addresses with five ports each; both counts run over a byte or word boundary.
        generator.set_flows(Flows { flows: 50, ports: 5, to_many: false });
        let mut seen = BTreeMap::<SocketAddr, u32>::new();
        for _ in 0..8 {
            generator.send(&frame, 25).unwrap();
            for _ in 0..25 {
                let mut buffer = [0; 16];
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], b"flow");
                *seen.entry(from).or_default() += 1;
            }
        }
        assert_eq!(seen.len(), 50, "{seen:?}");
        // The sequence is kept by CPU: a thread that moves starts another one.
        assert_eq!(seen.values().sum::<u32>(), 200);
        let mut expected: Vec<SocketAddr> = Vec::new();
        for host in 0..10u32 {
            let ip = match src.ip() {
                IpAddr::V4(v4) => IpAddr::from(std::net::Ipv4Addr::from_bits(v4.to_bits() + host)),
                IpAddr::V6(v6) => {
                    IpAddr::from(std::net::Ipv6Addr::from_bits(v6.to_bits() + u128::from(host)))
                }
            };
            expected.extend((0..5).map(|port| SocketAddr::new(ip, src.port().wrapping_add(port))));
        }
        expected.sort_unstable();
        assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected);

        // Without flows every frame is the frame given.
        generator.set_flows(Flows::default());
        generator.send(&frame, 3).unwrap();
        for _ in 0..3 {
            assert_eq!(socket.recv_from(&mut [0; 16]).unwrap().1, src);
        }
    }
}

/// Native and generic: live frames find the socket of their device and queue, and are counted.
#[test]
fn live_frames_go_by_device_and_queue() {
    for request in [ModeRequest::Native, ModeRequest::Generic] {
        let ns = Namespace::enter_new();
        let (a, b) = ns.veth("va", "vb");
        // Under generic mode the peer needs polling of its own.
        sh("ethtool -K vb gro on >/dev/null");
        let mut redirect =
            fastpath_xdp::Redirect::load(&lab::config(lab::pin_dir(), OnFailure::Drop)).unwrap();
        redirect.attach(b, "vb", Role::Endpoint, request).unwrap();
        let mut heart = redirect.take_heartbeat().unwrap();
        heart.beat().unwrap();
        let mut generator = Generator::new("va").unwrap();
        let frame = frames::ethernet(0x0800, &[0; 46]);
        let mut total = 0;
        let mut check = |redirect: &fastpath_xdp::Redirect, name: &str| {
            let value = |name: &str| {
                let all = redirect.counters().unwrap();
                all.iter().find(|c| c.program == "endpoint" && c.name == name).unwrap().value
            };
            let before = value(name);
            generator.send(&frame, 100).unwrap();
            total += 100;
            eventually(name, || value(name) >= before + 100);
            let all = redirect.counters().unwrap();
            let sum: u64 = all.iter().filter(|c| !c.name.starts_with("pinhole")).map(|c| c.value).sum();
            let others: u64 = all.iter().filter(|c| c.program == "uplink").map(|c| c.value).sum();
            // IPv6 of the stack's own may come along.
            assert!(sum >= total, "{all:?}");
            assert_eq!(others, 0);
        };
        // Sockets of the other end, and of another queue, are not meant.
        let socket = lab::xsk();
        redirect.register_socket(a, 0, socket.as_fd()).unwrap();
        redirect.register_socket(b, 1, socket.as_fd()).unwrap();
        check(&redirect, "no_socket_dropped");
        redirect.register_socket(b, 0, socket.as_fd()).unwrap();
        check(&redirect, "redirected");
        heart.stop().unwrap();
        check(&redirect, "stale_dropped");
        redirect.shutdown().unwrap();
    }
}
