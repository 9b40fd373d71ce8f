//! `parse` on the special cases, by hand.

use super::*;
use crate::packet::NO_INDEX;
use crate::wire::checksum;

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn v4_ends() -> (Ip, Ip) {
    (ip("10.0.0.1"), ip("10.0.1.2"))
}

fn v6_ends() -> (Ip, Ip) {
    (ip("fd00::1"), ip("fd00:1::2"))
}

fn verdict(spec: &Spec) -> Parsed {
    run(&spec.build(), 0).0
}

#[test]
fn literal_ipv4_tcp_syn() {
    #[rustfmt::skip]
    const SYN: [u8; 60] = [
        0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0x02, 0, 0, 0, 0, 5, 0x08, 0x00,
        0x45, 0xb8, 0x00, 0x2c, 0x12, 0x34, 0x40, 0x00, 0x40, 0x06, 0x12, 0xd6, 10, 0, 0, 5, 10, 0, 1, 6,
        0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4,
        0, 0, // Ethernet padding
    ];
    let (parsed, meta, key) = run(&SYN, 0);
    assert_eq!(parsed, Parsed::Ip);
    assert_eq!((meta.l3, meta.l4, meta.l3_len), (14, 34, 44));
    assert_eq!((meta.proto, meta.flags, meta.tcp_flags), (6, flags::DF, 0x02));
    assert_eq!((meta.ttl, meta.tos, meta.frag), (64, 0xb8, 0));
    assert_eq!(key.to_string(), "6 10.0.0.5:40000 -> 10.0.1.6:443");
    assert_eq!((meta.icmp_type, meta.icmp_code), (0, 0));
    assert!(takes(&SYN), "the fast arm takes it");
}

#[test]
fn common_frames_take_the_fast_arm() {
    for (src, dst) in [v4_ends(), v6_ends()] {
        for spec in [Spec::udp(src, dst, 1, 2), Spec::tcp(src, dst, 1, 2, 0x10).with_payload([1, 2, 3])] {
            let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
            assert!(common(&spec.build(), 5, &mut meta, &mut key), "{spec:?}");
            assert_eq!((key, meta.hash), (spec.key(), spec.key().hash(5)));
        }
        for spec in [Spec::sctp(src, dst, 1, 2), Spec::echo(src, dst, 1, 2)] {
            assert!(!takes(&spec.build()));
            assert_eq!(verdict(&spec), Parsed::Ip);
        }
    }
}

#[test]
fn flags_of_a_previous_packet_are_cleared_but_not_others() {
    let (src, dst) = v4_ends();
    let mut meta = Meta { flags: flags::DECAPPED | flags::ICMP_ERROR | flags::V6, ..Meta::default() };
    let frame = Spec { df: false, ..Spec::udp(src, dst, 1, 2) }.build();
    assert_eq!(parse(&frame, 0, &mut meta, &mut FlowKey::EMPTY.clone()), Parsed::Ip);
    assert_eq!(meta.flags, flags::DECAPPED);
    assert_eq!((meta.tunnel, meta.egress), (NO_INDEX, PortId::NONE));
}

#[test]
fn every_cut_of_a_frame_is_malformed() {
    for (src, dst, layer) in [
        (v4_ends().0, v4_ends().1, DropReason::MalformedIpv4),
        (v6_ends().0, v6_ends().1, DropReason::MalformedIpv6),
    ] {
        let frame = Spec::tcp(src, dst, 1, 2, 2).with_payload([9; 10]).build();
        for len in 0..frame.len() {
            let want = if len < 14 { DropReason::MalformedEthernet } else { layer };
            assert_eq!(run(&frame[..len], 0).0, Parsed::Drop(want), "{len} of {}", frame.len());
        }
        assert_eq!(run(&frame, 0).0, Parsed::Ip);
        assert_eq!(run(&frame, u16::MAX).0, Parsed::Drop(DropReason::MalformedEthernet));
    }
}

#[test]
fn longest_frames() {
    let (src, dst) = v4_ends();
    let mut frame = Spec::udp(src, dst, 1, 2).with_payload(vec![0; 65_535 - 14 - 28]).build();
    assert_eq!(frame.len(), 65_535);
    assert_eq!(run(&frame, 0).0, Parsed::Ip);
    frame.push(0);
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedEthernet), "offsets would not fit");
}

#[test]
fn other_ethertypes() {
    let mut frame = vec![0u8; 60];
    for (value, want) in [
        (0x0806u16, Punt::Arp),
        (0x8100, Punt::Vlan),
        (0x88a8, Punt::Vlan),
        (0x9100, Punt::Vlan),
        (0x88cc, Punt::EtherType(0x88cc)),
        (0x0026, Punt::EtherType(0x0026)),
    ] {
        frame[12..14].copy_from_slice(&value.to_be_bytes());
        assert_eq!(run(&frame, 0).0, Parsed::Punt(want));
    }
}

#[test]
fn neighbour_discovery_and_listeners() {
    let from = [ip("fe80::1"), ip("::"), ip("fd00::1")];
    for src in from {
        for kind in 130..=143u8 {
            let upper = Upper::Icmp(icmp::Repr { kind, code: 0, rest: 0 });
            let spec = Spec { ttl: 255, ..Spec::new(src, ip("ff02::1:ff00:1"), upper) }.with_payload([0; 16]);
            let want = match kind {
                130..=132 | 143 => Parsed::Punt(Punt::Mld),
                133..=137 => Parsed::Punt(Punt::Ndp),
                _ => Parsed::Drop(DropReason::Multicast),
            };
            let (parsed, meta, _) = run(&spec.build(), 0);
            assert_eq!(parsed, want, "{src} {kind}");
            if want == Parsed::Punt(Punt::Ndp) {
                assert_eq!((meta.l3, meta.l4, meta.l3_len, meta.ttl), (14, 54, 64, 255));
            }
        }
    }
    // With a router alert, as listeners send it; and in a fragment, as RFC 6980 forbids.
    let upper = Upper::Icmp(icmp::Repr { kind: 143, code: 0, rest: 0 });
    let mut spec = Spec { extensions: vec![0], ..Spec::new(ip("::"), ip("ff02::16"), upper) };
    assert_eq!(verdict(&spec), Parsed::Punt(Punt::Mld));
    spec.fragment = Some((0, true));
    assert_eq!(verdict(&spec), Parsed::Drop(DropReason::MalformedTransport));
    spec.fragment = Some((0, false));
    assert_eq!(verdict(&spec), Parsed::Punt(Punt::Mld), "an atomic fragment is a whole packet (RFC 6946)");
}

#[test]
fn igmp_from_a_host_without_address() {
    let spec = Spec { ip_options: 1, ..Spec::new(ip("0.0.0.0"), ip("224.0.0.22"), Upper::Other(2)) };
    assert_eq!(verdict(&spec), Parsed::Punt(Punt::Igmp));
}

#[test]
fn what_pods_send_is_no_martian() {
    let (src, dst) = v4_ends();
    for to in ["169.254.169.254", "169.254.20.10", "240.1.2.3", "100.64.0.1", "192.0.2.1"] {
        assert_eq!(verdict(&Spec::udp(src, ip(to), 1, 53)), Parsed::Ip, "{to}");
        assert_eq!(verdict(&Spec::udp(ip(to), src, 53, 1)), Parsed::Ip, "{to}");
    }
    for to in ["127.0.0.1", "0.0.0.0"] {
        assert_eq!(verdict(&Spec::udp(src, ip(to), 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
        assert_eq!(verdict(&Spec::udp(ip(to), dst, 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
    }
    // DHCP, mDNS.
    assert_eq!(
        verdict(&Spec::udp(ip("0.0.0.0"), ip("255.255.255.255"), 68, 67)),
        Parsed::Drop(DropReason::Multicast)
    );
    assert_eq!(verdict(&Spec::udp(src, ip("224.0.0.251"), 5353, 5353)), Parsed::Drop(DropReason::Multicast));
    let (src, dst) = v6_ends();
    for to in ["::", "::1", "fe80::1"] {
        assert_eq!(verdict(&Spec::udp(src, ip(to), 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
        assert_eq!(verdict(&Spec::udp(ip(to), dst, 1, 2)), Parsed::Drop(DropReason::MartianAddress), "{to}");
    }
    // IPv4-mapped on the wire would be taken for IPv4's by every table.
    let mut frame = Spec::udp(src, dst, 1, 2).build();
    frame[22..38].copy_from_slice(&ip("10.0.0.1").bytes());
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MartianAddress));
}

#[test]
fn fragments() {
    for (src, dst) in [v4_ends(), v6_ends()] {
        let malformed = if src.is_v4() { DropReason::MalformedIpv4 } else { DropReason::MalformedIpv6 };
        let whole = Spec { df: false, ..Spec::udp(src, dst, 5, 6).with_payload([7; 64]) };
        let with = |offset, more, len| {
            let spec = Spec { fragment: Some((offset, more)), ..whole.clone() }.with_payload(vec![7; len]);
            run(&spec.build(), 0)
        };
        let (parsed, meta, key) = with(0, true, 64);
        assert_eq!((parsed, meta.frag), (Parsed::Ip, 0x8000));
        assert_eq!((key.sport, key.dport), (5, 6), "the first fragment has the ports");
        assert!(!meta.has(flags::LATER_FRAGMENT));
        for (offset, more, len) in [(9, true, 64), (9, false, 3), (1, false, 8)] {
            let (parsed, meta, key) = with(offset, more, len);
            assert_eq!(parsed, Parsed::Ip);
            assert_eq!(meta.frag, offset | u16::from(more) << 15);
            assert_eq!((key.sport, key.dport, key.proto), (0, 0, 17));
            assert!(meta.has(flags::LATER_FRAGMENT));
        }
        assert_eq!(with(0, true, 63).0, Parsed::Drop(malformed), "a middle fragment is a multiple of 8");
        assert_eq!(with(9, true, 63).0, Parsed::Drop(malformed));
        assert_eq!(with(0x1fff, false, 64).0, Parsed::Drop(malformed), "ping of death");
        assert_eq!(with(0x1ff0, false, 64).0, Parsed::Ip);
        // A first fragment without the whole transport header, and one that would overwrite it.
        let tcp = Spec { df: false, ..Spec::tcp(src, dst, 1, 2, 2) };
        for (offset, want) in [
            (1, Parsed::Drop(DropReason::MalformedTransport)),
            (2, Parsed::Drop(DropReason::MalformedTransport)),
            (3, Parsed::Ip),
        ] {
            let spec = Spec { fragment: Some((offset, false)), ..tcp.clone() }.with_payload([0; 24]);
            assert_eq!(verdict(&spec), want, "offset {offset}");
        }
        let mut tiny = Spec { fragment: Some((0, true)), ..tcp.with_payload([0; 4]) }.build();
        assert_eq!(run(&tiny, 0).0, Parsed::Ip);
        tiny.truncate(tiny.len() - 8);
        if src.is_v4() {
            tiny[17] -= 8;
            testgen::refresh_ipv4_checksum(&mut tiny);
        } else {
            tiny[19] -= 8;
        }
        assert_eq!(run(&tiny, 0).0, Parsed::Drop(DropReason::MalformedTransport), "tiny first fragment");
    }
}

#[test]
fn transport_lengths() {
    for (src, dst) in [v4_ends(), v6_ends()] {
        let l4 = if src.is_v4() { 34 } else { 54 };
        let tcp = Spec::tcp(src, dst, 1, 2, 2).build();
        for (words, want) in [(4u8, false), (5, true), (6, false)] {
            let mut frame = tcp.clone();
            frame[l4 + 12] = words << 4;
            assert_eq!(run(&frame, 0).0 == Parsed::Ip, want, "TCP data offset {words}");
        }
        let udp = Spec::udp(src, dst, 1, 2).with_payload([0; 4]).build();
        for (len, want) in [(0u8, false), (7, false), (8, true), (12, true), (13, false)] {
            let mut frame = udp.clone();
            frame[l4 + 5] = len;
            assert_eq!(run(&frame, 0).0 == Parsed::Ip, want, "UDP length {len}");
        }
        for (proto, len) in [(6u8, 20usize), (17, 8), (132, 12), (if src.is_v4() { 1 } else { 58 }, 8)] {
            let spec = Spec::new(src, dst, Upper::Other(proto)).with_payload(vec![0; len - 1]);
            assert_eq!(verdict(&spec), Parsed::Drop(DropReason::MalformedTransport), "protocol {proto}");
        }
        // The other family's ICMP, and a protocol without ports, have no header to look at.
        for proto in [if src.is_v4() { 58 } else { 1 }, 47, 50, 59] {
            let (parsed, meta, key) = run(&Spec::new(src, dst, Upper::Other(proto)).build(), 0);
            assert_eq!((parsed, key.sport, key.dport), (Parsed::Ip, 0, 0), "protocol {proto}");
            assert_eq!((meta.proto, meta.icmp_type), (proto, 0));
        }
    }
}

#[test]
fn ipv4_header_checks() {
    let (src, dst) = v4_ends();
    let good = Spec::udp(src, dst, 1, 2).build();
    for (at, value) in [(14, 0x55), (14, 0x44), (14, 0x4f), (17, 19), (17, 29), (24, 0xff), (22, 1)] {
        let mut frame = good.clone();
        frame[at] = value;
        assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedIpv4), "byte {at} = {value:#x}");
    }
    // A total length below the header's, with a right checksum: neither arm may take the wrapped difference.
    for len in 0..20 {
        let mut frame = good.clone();
        frame[17] = len;
        testgen::refresh_ipv4_checksum(&mut frame);
        assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedIpv4), "total length {len}");
    }
}

#[test]
fn jumbograms_are_refused() {
    let (src, dst) = v6_ends();
    let mut frame = Spec { extensions: vec![0], ..Spec::udp(src, dst, 1, 2) }.build();
    frame[18..20].fill(0);
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedIpv6));
    let mut frame = Spec::udp(src, dst, 1, 2).build();
    frame[18..20].fill(0);
    assert_eq!(run(&frame, 0).0, Parsed::Drop(DropReason::MalformedTransport));
}

#[test]
fn icmp_errors() {
    for ((src, dst), router) in [(v4_ends(), ip("192.0.2.1")), (v6_ends(), ip("2001:db8::1"))] {
        let v6 = !src.is_v4();
        let about = Spec::tcp(src, dst, 40_000, 443, 2).with_payload([0; 100]);
        let error = |kind, quote: &[u8]| {
            let upper = Upper::Icmp(icmp::Repr { kind, code: 1, rest: 0 });
            run(&Spec::new(router, src, upper).with_payload(quote).build(), 0)
        };
        let quote = about.build_packet();
        let header = if v6 { 40 } else { 20 };
        let kind = if v6 { 1 } else { 3 };
        let (parsed, meta, key) = error(kind, &quote[..header + 8]);
        assert_eq!(parsed, Parsed::Ip);
        assert_eq!((key.src, key.dst, key.sport, key.dport, key.proto), (dst, src, 443, 40_000, 6));
        assert_eq!((meta.icmp_type, meta.icmp_code), (kind, 1));
        assert_eq!(meta.proto, if v6 { 58 } else { 1 });
        assert!(meta.has(flags::ICMP_ERROR));
        assert_eq!(error(kind, &quote[..header + 7]).0, Parsed::Drop(DropReason::MalformedTransport));
        assert_eq!(error(kind, &[]).0, Parsed::Drop(DropReason::MalformedTransport));
        // About a later fragment: no ports to know.
        let later = Spec { fragment: Some((8, false)), ..about.clone() }.build_packet();
        let (parsed, _, key) = error(kind, &later);
        assert_eq!((parsed, key.sport, key.dport, key.proto), (Parsed::Ip, 0, 0, 6));
        // About an echo: its identifier; about an error, or not to the sender: nobody's.
        let (parsed, _, key) = error(kind, &Spec::echo(src, dst, 77, 1).build_packet());
        assert_eq!((parsed, key.sport, key.dport), (Parsed::Ip, 77, 77));
        let nested =
            Spec::new(src, dst, Upper::Icmp(icmp::Repr { kind, code: 0, rest: 0 })).with_payload([0; 60]);
        assert_eq!(error(kind, &nested.build_packet()).0, Parsed::Drop(DropReason::IcmpUnrelated));
        let foreign = Spec::udp(router, dst, 1, 2).build_packet();
        assert_eq!(error(kind, &foreign).0, Parsed::Drop(DropReason::IcmpUnrelated));
    }
    let (src, dst) = v4_ends();
    let redirect = Upper::Icmp(icmp::Repr { kind: 5, code: 1, rest: 0x0a00_0001 });
    let spec = Spec::new(dst, src, redirect).with_payload(Spec::udp(src, dst, 1, 2).build_packet());
    assert_eq!(verdict(&spec), Parsed::Drop(DropReason::IcmpUnrelated));
}

#[test]
fn checksum_with_both_zeros() {
    // A header whose sum is 0xffff without its checksum: 0x0000 and 0xffff both verify.
    let (src, dst) = v4_ends();
    let mut frame = Spec { df: false, ..Spec::udp(src, dst, 1, 2) }.build();
    let mut p = ipv4::Packet::new_unchecked(&mut frame[14..34]);
    p.set_ident(0);
    p.set_checksum(0);
    let rest = checksum::checksum(p.header());
    p.set_ident(rest);
    for check in [0x0000, 0xffff] {
        let mut p = ipv4::Packet::new_unchecked(&mut frame[14..34]);
        p.set_checksum(check);
        assert_eq!(run(&frame, 0).0, Parsed::Ip, "{check:#06x}");
    }
}
