use super::*;
use crate::packet::{FlowKey, Meta, flags};
use crate::wire::parse::{Parsed, parse};
use crate::wire::testgen::{self, Spec, Upper};
use proptest::prelude::*;

const KINDS: [ErrorKind; 6] = [
    ErrorKind::TtlExceeded,
    ErrorKind::NoRoute,
    ErrorKind::HostUnreachable,
    ErrorKind::PortUnreachable,
    ErrorKind::AdminProhibited,
    ErrorKind::FragNeeded { mtu: 1450 },
];

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn build(reply_to: &[u8], kind: ErrorKind, src: Ip) -> Option<Vec<u8>> {
    let mut out = vec![0xa5; 1300];
    let len = build_error(reply_to, kind, src, &mut out)?;
    assert!(out[len..].iter().all(|b| *b == 0xa5), "wrote behind its length");
    out.truncate(len);
    Some(out)
}

#[test]
fn literal_time_exceeded() {
    // A UDP packet of traceroute: 10.0.0.1:33434 -> 10.0.1.2:33435, TTL 1.
    let probe = Spec { ttl: 1, ..Spec::udp(ip("10.0.0.1"), ip("10.0.1.2"), 33434, 33435) }.build_packet();
    let out = build(&probe, ErrorKind::TtlExceeded, ip("192.0.2.9")).unwrap();
    #[rustfmt::skip]
    let want = [
        0x45, 0xc0, 0, 56, 0, 0, 0x40, 0, 64, 1, 0x6d, 0xfb, 192, 0, 2, 9, 10, 0, 0, 1,
        11, 0, 0x0a, 0x1c, 0, 0, 0, 0,
    ];
    assert_eq!(out[..28], want);
    assert_eq!(out[28..], probe);
}

#[test]
fn types_and_codes() {
    let v4 = Spec::udp(ip("10.0.0.1"), ip("10.0.1.2"), 1, 2).build_packet();
    let v6 = Spec::udp(ip("fd00::1"), ip("fd00::2"), 1, 2).build_packet();
    // RFC 792, RFC 1191, RFC 1812 5.2.7.1; RFC 4443 3.1 to 3.3.
    let want4 = [(11, 0, 0), (3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 13, 0), (3, 4, 1450)];
    let want6 = [(3, 0, 0), (1, 0, 0), (1, 3, 0), (1, 4, 0), (1, 1, 0), (2, 0, 1450)];
    for (kind, (want4, want6)) in KINDS.into_iter().zip(want4.into_iter().zip(want6)) {
        for (packet, src, header, (t, c, rest)) in
            [(&v4, ip("192.0.2.1"), 20, want4), (&v6, ip("2001:db8::1"), 40, want6)]
        {
            let out = build(packet, kind, src).unwrap();
            let message = Packet::new_checked(&out[header..]).unwrap();
            assert_eq!(Repr::parse(&message), Repr { kind: t, code: c, rest }, "{kind:?}");
            assert_eq!(message.body(), packet);
        }
    }
    let out = build(&v4, ErrorKind::FragNeeded { mtu: 1450 }, ip("192.0.2.1")).unwrap();
    assert_eq!(Packet::new_checked(&out[20..]).unwrap().mtu_v4(), 1450);
}

#[test]
fn quotes_as_much_as_allowed() {
    for (src, dst, from, max) in
        [("10.0.0.1", "10.0.1.2", "192.0.2.1", 576), ("fd00::1", "fd00::2", "2001:db8::1", 1280)]
    {
        let long = Spec::udp(ip(src), ip(dst), 1, 2).with_payload(vec![7; 1400]).build_packet();
        let out = build(&long, ErrorKind::NoRoute, ip(from)).unwrap();
        assert_eq!(out.len(), max);
        let mut short = vec![0u8; max - 1];
        assert_eq!(build_error(&long, ErrorKind::NoRoute, ip(from), &mut short), None);
        assert!(short.iter().all(|b| *b == 0), "nothing written");
    }
}

#[test]
fn padding_is_not_quoted() {
    let mut packet = Spec::udp(ip("10.0.0.1"), ip("10.0.1.2"), 1, 2).build_packet();
    let len = packet.len();
    packet.resize(len + 18, 0);
    let out = build(&packet, ErrorKind::NoRoute, ip("192.0.2.1")).unwrap();
    assert_eq!(out.len(), 28 + len);
}

#[test]
fn what_must_not_be_answered() {
    let us4 = ip("192.0.2.1");
    let us6 = ip("2001:db8::1");
    let (a4, b4, a6, b6) = (ip("10.0.0.1"), ip("10.0.1.2"), ip("fd00::1"), ip("fd00::2"));
    let message = |src, dst, kind| Spec::new(src, dst, Upper::Icmp(Repr { kind, code: 0, rest: 0 }));
    let answered = |spec: Spec, us| build(&spec.build_packet(), ErrorKind::TtlExceeded, us).is_some();
    for kind in (0..=255u8).step_by(if cfg!(miri) { 16 } else { 1 }) {
        // RFC 1122 3.2.2: no error about an error; redirects count as such.
        assert_eq!(answered(message(a4, b4, kind), us4), !matches!(kind, 3 | 4 | 5 | 11 | 12), "ICMP {kind}");
        // RFC 4443 2.4 (e.1), (e.2).
        assert_eq!(answered(message(a6, b6, kind), us6), kind >= 128 && kind != 137, "ICMPv6 {kind}");
    }
    for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        assert!(!answered(Spec::udp(ip(bad), b4, 1, 2), us4), "from {bad}");
        assert!(!answered(Spec::udp(a4, ip(bad), 1, 2), us4), "to {bad}");
    }
    for bad in ["::", "::1", "ff02::1"] {
        assert!(!answered(Spec::udp(ip(bad), b6, 1, 2), us6), "from {bad}");
        assert!(!answered(Spec::udp(a6, ip(bad), 1, 2), us6), "to {bad}");
    }
    for (a, b, us) in [(a4, b4, us4), (a6, b6, us6)] {
        let first = Spec { fragment: Some((0, true)), ..Spec::udp(a, b, 1, 2) };
        assert!(answered(first.clone(), us));
        assert!(!answered(Spec { fragment: Some((4, true)), ..first }.with_payload([0; 8]), us));
        let other = if a.is_v4() { us6 } else { us4 };
        assert!(!answered(Spec::udp(a, b, 1, 2), other), "source of the other family");
        // An ICMP packet without even a type.
        let empty = Upper::Other(if a.is_v4() { 1 } else { 58 });
        assert!(!answered(Spec::new(a, b, empty), us));
    }
    assert_eq!(build(&[], ErrorKind::NoRoute, us4), None);
}

#[test]
fn reads_literal_echo() {
    let b = [8u8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    let p = Packet::new_checked(&b[..]).unwrap();
    assert_eq!((p.kind(), p.code(), p.ident(), p.seq()), (8, 0, 1, 1));
    assert!(p.verify_checksum_v4());
    assert_eq!(p.to_string(), "ICMP type 8 code 0 rest 0x00010001");
    assert_eq!(Packet::new_checked(&b[..7]).unwrap_err(), Error::Truncated("ICMP"));
}

proptest! {
    /// The sender of the offending packet gets an error that `parse` reads back as being about its flow.
    #[test]
    fn errors_are_well_formed(spec in testgen::spec(), kind in prop::sample::select(&KINDS[..]), v4 in testgen::unicast(false), v6 in testgen::unicast(true)) {
        let us = if spec.src.is_v4() { v4 } else { v6 };
        let packet = spec.build_packet();
        if let Some(out) = build(&packet, kind, us) {
            let header = if us.is_v4() { 20 } else { 40 };
            let message = Packet::new_checked(&out[header..]).unwrap();
            if us.is_v4() {
                prop_assert!(ipv4::Packet::new_checked(&out[..]).unwrap().verify_checksum());
                prop_assert!(message.verify_checksum_v4());
                prop_assert!(out.len() <= MAX_ERROR_V4);
            } else {
                prop_assert!(message.verify_checksum_v6(us, spec.src));
                prop_assert!(out.len() <= MAX_ERROR_V6);
            }
            prop_assert!(packet.starts_with(message.body()));
            let mut frame = vec![0u8; 14];
            frame[12..].copy_from_slice(if us.is_v4() { &[8, 0] } else { &[0x86, 0xdd] });
            frame.extend_from_slice(&out);
            let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
            let parsed = parse(&frame, 0, &mut meta, &mut key);
            // A malformed transport header is answered, but its quote cannot be related to a flow.
            let readable = matches!(parse_key(&packet, us.is_v4()), Some((Parsed::Ip, _)));
            if readable {
                prop_assert_eq!(parsed, Parsed::Ip);
                prop_assert!(meta.has(flags::ICMP_ERROR));
                let about = parse_key(&packet, us.is_v4()).unwrap().1;
                prop_assert_eq!(key, about.reversed());
            }
        } else {
            // Not answered: what `parse` would not forward either, an error, or a later fragment.
            let mut frame = vec![0u8; 14];
            frame[12..].copy_from_slice(if us.is_v4() { &[8, 0] } else { &[0x86, 0xdd] });
            frame.extend_from_slice(&packet);
            let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
            let parsed = parse(&frame, 0, &mut meta, &mut key);
            let unknown_v6_error = spec.proto() == proto::ICMPV6 && meta.icmp_type < 128;
            prop_assert!(parsed != Parsed::Ip || meta.flags & (flags::ICMP_ERROR | flags::LATER_FRAGMENT) != 0 || unknown_v6_error);
        }
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), room in 0usize..200, v6: bool) {
        let us = if v6 { ip("fd00::1") } else { ip("10.0.0.1") };
        let mut out = vec![0; room];
        let _ = build_error(&bytes, ErrorKind::NoRoute, us, &mut out);
        let _ = crate::wire::tcp::build_reset(&bytes, &mut out);
    }

    #[test]
    fn round_trip(kind: u8, code: u8, rest: u32, body in prop::collection::vec(any::<u8>(), 0..20), v6: bool) {
        let (src, dst) = if v6 { (ip("fd00::1"), ip("fd00::2")) } else { (ip("10.0.0.1"), ip("10.0.0.2")) };
        let repr = Repr { kind, code, rest };
        let mut out = vec![0xa5; repr.buffer_len()];
        repr.emit(&mut out);
        out.extend_from_slice(&body);
        let mut p = Packet::new_checked(&mut out[..]).unwrap();
        p.fill_checksum(src, dst);
        prop_assert_eq!(Repr::parse(&p), repr);
        let right = if v6 { p.verify_checksum_v6(src, dst) } else { p.verify_checksum_v4() };
        prop_assert!(right);
        prop_assert_eq!(p.body(), &body[..]);
    }
}

fn parse_key(packet: &[u8], v4: bool) -> Option<(Parsed, FlowKey)> {
    let mut frame = vec![0u8; 14];
    frame[12..].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
    frame.extend_from_slice(packet);
    let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
    let parsed = parse(&frame, 0, &mut meta, &mut key);
    // What quotes cannot say: an ICMP message that is no query has no flow of its own.
    let icmp = meta.proto == proto::ICMP && v4 || meta.proto == proto::ICMPV6 && !v4;
    (!icmp || has_ident(!v4, meta.icmp_type)).then_some((parsed, key))
}
