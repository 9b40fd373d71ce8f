use super::*;
use crate::packet::{FlowKey, flags};
use crate::wire::parse::{Parsed, parse};
use crate::wire::testgen::{self, Spec};
use crate::wire::{ecn, partial};
use proptest::prelude::*;

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn parsed(frame: &[u8], offset: u16) -> (Parsed, Meta, FlowKey) {
    let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
    let outcome = parse(frame, offset, &mut meta, &mut key);
    (outcome, meta, key)
}

fn outer(v6: bool, inner_v6: bool, inner_len: usize) -> OuterRepr {
    let (src, dst) =
        if v6 { (ip("2001:db8::1"), ip("2001:db8::2")) } else { (ip("192.0.2.1"), ip("192.0.2.2")) };
    OuterRepr {
        src_mac: Mac([2, 0, 0, 0, 1, 1]),
        dst_mac: Mac([2, 0, 0, 0, 1, 2]),
        src,
        dst,
        src_port: 50_000,
        dst_port: 4789,
        vni: 4096,
        tos: 0,
        ttl: 64,
        df: false,
        ident: 7,
        inner_src_mac: Mac([0x66, 0, 0, 0, 0, 1]),
        inner_dst_mac: Mac([0x66, 0, 0, 0, 0, 2]),
        inner_v6,
        inner_len: u16::try_from(inner_len).unwrap(),
        udp6_checksum: true,
    }
}

/// Headers and packet in one frame, as the packet path has them after `Frame::push`.
fn encap(repr: &OuterRepr, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xa5; repr.buffer_len()];
    frame.extend_from_slice(packet);
    assert!(repr.emit(&mut frame));
    frame
}

#[test]
fn literal_header() {
    let b = [0x08, 0, 0, 0, 0x00, 0x10, 0x00, 0x00, 0xaa];
    let p = Packet::new_checked(&b[..]).unwrap();
    assert_eq!(p.vni(), 4096);
    assert_eq!(p.payload(), [0xaa]);
    assert_eq!(p.to_string(), "VXLAN vni 4096");
    let mut out = [0xff; 8];
    Repr::parse(&p).emit(&mut out);
    assert_eq!(out, b[..8]);
    assert_eq!(Repr { vni: 1 }.buffer_len(), 8);
    assert_eq!(Packet::new_checked(&b[..7]).unwrap_err(), Error::Truncated("VXLAN"));
    assert_eq!(
        Packet::new_checked(&[0xf7u8, 0, 0, 0, 0, 0, 1, 0][..]).unwrap_err(),
        Error::Value("VXLAN", "I flag")
    );
    // Reserved fields "MUST be ignored on receipt".
    let reserved = [0xff, 1, 2, 3, 0xff, 0xff, 0xff, 9];
    assert_eq!(Packet::new_checked(&reserved[..]).unwrap().vni(), 0xff_ffff);
}

#[test]
fn literal_encapsulation() {
    let packet = Spec::udp(ip("10.0.0.1"), ip("10.0.1.2"), 1, 2).build_packet();
    let frame = encap(&outer(false, false, packet.len()), &packet);
    #[rustfmt::skip]
    let want = [
        2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 0x08, 0x00,
        0x45, 0, 0, 78, 0, 7, 0, 0, 64, 17, 0xf6, 0x94, 192, 0, 2, 1, 192, 0, 2, 2,
        0xc3, 0x50, 0x12, 0xb5, 0, 58, 0, 0,
        8, 0, 0, 0, 0, 0x10, 0, 0,
        0x66, 0, 0, 0, 0, 2, 0x66, 0, 0, 0, 0, 1, 0x08, 0x00,
    ];
    assert_eq!(frame[..64], want);
    assert_eq!(frame[64..], packet);
}

#[test]
fn sizes() {
    for (v6, overhead) in [(false, 50u16), (true, 70)] {
        let repr = outer(v6, false, 100);
        assert_eq!(repr.overhead(), overhead);
        assert_eq!(repr.buffer_len(), usize::from(overhead) + 14);
        let mut frame = vec![0xa5; repr.buffer_len() + 99];
        assert!(!repr.emit(&mut frame));
        assert!(frame.iter().all(|b| *b == 0xa5), "nothing written");
        frame.resize(repr.buffer_len() + 100 + 5, 0xa5);
        assert!(repr.emit(&mut frame));
        assert_eq!(frame[repr.buffer_len() + 100..], [0xa5; 5], "what is behind is not touched");
        // Outer packets end at 65535 bytes.
        let most = 65_535 - usize::from(overhead);
        let mut frame = vec![0; 70_000];
        assert!(outer(v6, false, most).emit(&mut frame));
        assert!(!outer(v6, false, most + 1).emit(&mut frame));
    }
}

#[test]
fn df_and_checksum_settings() {
    let packet = Spec::udp(ip("10.0.0.1"), ip("10.0.1.2"), 1, 2).build_packet();
    let repr = OuterRepr { df: true, tos: 0xb9, ttl: 9, ..outer(false, false, packet.len()) };
    let (_, meta, _) = parsed(&encap(&repr, &packet), 0);
    assert!(meta.has(flags::DF));
    assert_eq!((meta.tos, meta.ttl), (0xb9, 9));
    let repr = OuterRepr { udp6_checksum: false, ..outer(true, false, packet.len()) };
    assert_eq!(encap(&repr, &packet)[60..62], [0, 0]);
    let repr = OuterRepr { udp6_checksum: true, ..repr };
    assert_ne!(encap(&repr, &packet)[60..62], [0, 0]);
}

#[test]
fn source_ports_are_dynamic_ones() {
    assert_eq!(source_port(0), 0xc000);
    assert_eq!(source_port(u64::MAX), 0xffff);
    assert_eq!(source_port(0x1234_0000_0000_0000), 0xc000 | 0x1234);
}

#[test]
fn malformed_inner_headers() {
    let packet = Spec::udp(ip("10.0.0.1"), ip("10.0.1.2"), 1, 2).build_packet();
    let good = encap(&outer(false, false, packet.len()), &packet);
    let (_, meta, _) = parsed(&good, 0);
    let want = Inner { vni: 4096, start: 50, end: u16::try_from(good.len()).unwrap() };
    assert_eq!(inner(&good, &meta), Ok(want));
    let mut flagless = good.clone();
    flagless[42] = 0;
    assert_eq!(inner(&flagless, &meta), Err(Error::Value("VXLAN", "I flag")));
    // A UDP length that leaves no room for the header.
    let mut short = good.clone();
    short[39] = 15;
    assert_eq!(inner(&short, &meta), Err(Error::Truncated("VXLAN")));
    // Padding of the outer frame is not part of the inner one.
    let padded = [good.clone(), vec![0; 9]].concat();
    assert_eq!(inner(&padded, &parsed(&padded, 0).1), Ok(want));
}

/// Whether the outer UDP checksum is right, absent, or left by the sender's kernel for hardware.
///
/// Linux computes the outer sum as if the inner one were finished already (local checksum offload).
fn outer_checksum_ok(frame: &[u8], meta: &Meta, src: Ip, dst: Ip) -> bool {
    let datagram = frame.get(usize::from(meta.l4)..).unwrap_or_default();
    let p = udp::Packet::new_unchecked(datagram);
    p.verify_checksum(src, dst)
        || p.checksum() == pseudo_header(src, dst, proto::UDP, u32::from(p.length())).fold()
}

/// Linux fills the outer checksum in before the inner one (local checksum offload), or leaves the outer one too.
#[test]
fn outer_checksum_of_a_kernel() {
    let (src, dst) = (ip("10.0.0.1"), ip("10.0.1.2"));
    let packet = Spec::udp(src, dst, 5, 6).with_payload(*b"hello").build_packet();
    let repr = outer(true, false, packet.len());
    let good = encap(&repr, &packet);
    let (_, meta, key) = parsed(&good, 0);
    let ok = |frame: &[u8]| outer_checksum_ok(frame, &meta, key.src, key.dst);
    assert!(ok(&good));
    // The inner sum unfinished: right only once it is finished.
    let mut offloaded = good.clone();
    let at = 84 + 20 + 6;
    let pseudo = pseudo_header(src, dst, 17, 13).fold();
    offloaded[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    assert!(!ok(&offloaded));
    let (_, inner_meta, inner_key) = parsed(&offloaded, 70);
    assert!(partial::finish(&mut offloaded, &inner_meta, &inner_key));
    assert!(ok(&offloaded));
    assert_eq!(offloaded, good);
    // The outer sum unfinished, none at all, and a broken packet.
    let mut left = good.clone();
    let pseudo = pseudo_header(key.src, key.dst, 17, u32::try_from(good.len() - 54).unwrap()).fold();
    left[60..62].copy_from_slice(&pseudo.to_be_bytes());
    assert!(ok(&left));
    left[60..62].fill(0);
    assert!(ok(&left));
    let mut broken = good;
    broken[90] ^= 1;
    assert!(!ok(&broken));
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 16).unwrap())
        .collect()
}

/// Frames that a VTEP of Linux 6.18 put on a veth with its offloads on: `udpcsum`, over IPv4 and IPv6.
#[test]
fn frames_of_a_kernel() {
    let frames = [
        // UDP over IPv4 over IPv4, then TCP over IPv6 over IPv4.
        "7e0986f3269c9610835fe9fd0800450000523bd7000040112ab00a0900010a090002c91912b5003e3ba008000000001000000200\
         0000000236d095f71145080045000020e8e84000401135d20a0804010a080402e8160009000c1c3070696e67",
        "7e0986f3269c9610835fe9fd0800450000823bff000040112a580a0900010a090002c0ca12b5006eca2e08000000001000000200\
         0000000236d095f7114586dd6009780f00280640fd080004000000000000000000000001fd0800040000000000000000000000\
         02df1a0050c63c6d9a00000000a002fd20fa4a0000020405a00402080a5f245da1000000000103030a",
        // UDP over IPv4 over IPv6, then UDP over IPv6 over IPv6.
        "7e0986f3269c9610835fe9fd86dd60000000003e1140fd090000000000000000000000000001fd09000000000000000000000000\
         00029e6212b6003e6a120800000000100100020000000002b25afee14612080045000020e3f94000401136c10a0806010a0806\
         02c18f0009000c203070696e67",
        "7e0986f3269c9610835fe9fd86dd6000000000521140fd090000000000000000000000000001fd09000000000000000000000000\
         0002d22b12b6005262550800000000100100020000000002b25afee1461286dd6002c38c000c1140fd08000600000000000000\
         0000000001fd080006000000000000000000000002b7620009000cfa3d70696e67",
    ];
    for text in frames {
        let mut frame = hex(text);
        let (outcome, meta, key) = parsed(&frame, 0);
        assert_eq!(outcome, Parsed::Ip, "{text}");
        let found = inner(&frame, &meta).unwrap();
        assert_eq!(found.vni, if key.dport == 4789 { 4096 } else { 4097 });
        assert_eq!(usize::from(found.end), frame.len());
        let (outcome, inner_meta, inner_key) = parsed(&frame, found.start);
        assert_eq!(outcome, Parsed::Ip, "{text}");
        assert!(!outer_checksum_ok(&frame, &meta, key.src, key.dst), "the inner sum is missing");
        assert!(partial::finish(&mut frame, &inner_meta, &inner_key));
        assert!(outer_checksum_ok(&frame, &meta, key.src, key.dst), "{text}");
    }
    // A router solicitation has its sum, so the outer one is what is left to hardware.
    let frame = hex(
        "7e0986f3269c9610835fe9fd08004500006a3c7c0000401129f30a0900010a09000299c212b50056147c08000000001000003333\
         0000000236d095f7114586dd6000000000103afffe8000000000000034d095fffef71145ff02000000000000000000000000000\
         28500c31400000000010136d095f71145",
    );
    let (_, meta, key) = parsed(&frame, 0);
    assert!(outer_checksum_ok(&frame, &meta, key.src, key.dst));
}

proptest! {
    /// decap(encap(x)) = x, for all four combinations of families.
    #[test]
    fn decap_undoes_encap(v6: bool, spec in testgen::spec(), src_port: u16, vni in 0u32..1 << 24, tos: u8, checksum: bool) {
        let packet = spec.build_packet();
        let inner_v6 = !spec.src.is_v4();
        let repr = OuterRepr { src_port, vni, tos, udp6_checksum: checksum, ..outer(v6, inner_v6, packet.len()) };
        let mut frame = encap(&repr, &packet);
        frame.extend_from_slice(&[0x5a; 7]);

        let (outcome, meta, key) = parsed(&frame, 0);
        prop_assert_eq!(outcome, Parsed::Ip);
        prop_assert_eq!((key.src, key.dst, key.sport, key.dport), (repr.src, repr.dst, src_port, 4789));
        prop_assert_eq!((meta.tos, meta.has(flags::V6)), (tos, v6));
        prop_assert!(outer_checksum_ok(&frame, &meta, key.src, key.dst));
        if v6 {
            prop_assert_eq!(frame[60..62] == [0, 0], !checksum);
        }

        let found = inner(&frame, &meta).unwrap();
        prop_assert_eq!(found.vni, vni);
        let inside = &frame[usize::from(found.start)..usize::from(found.end)];
        prop_assert_eq!(&inside[14..], &packet[..]);
        let header = eth::Packet::new_checked(inside).unwrap();
        prop_assert_eq!((header.src(), header.dst()), (repr.inner_src_mac, repr.inner_dst_mac));

        // And `parse` says of the inner frame what it says of the packet by itself.
        let alone = Spec { padding: 0, ..spec }.build();
        let (outcome, inner_meta, inner_key) = parsed(&frame[..usize::from(found.end)], found.start);
        let (want, want_meta, want_key) = parsed(&alone, 0);
        prop_assert_eq!(outcome, want);
        if outcome == Parsed::Ip {
            prop_assert_eq!(inner_key, want_key);
            prop_assert_eq!(inner_meta.l4 - inner_meta.l3, want_meta.l4 - want_meta.l3);
            prop_assert_eq!(ecn::decap(ecn::encap(inner_meta.tos), inner_meta.tos), Some(inner_meta.tos));
        }
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), l4: u16, v6: bool, inner_len: u16) {
        for l4 in [l4, l4 % 80] {
            let meta = Meta { l4, ..Meta::default() };
            let _ = inner(&bytes, &meta);
            let _ = outer_checksum_ok(&bytes, &meta, ip("fd00::1"), ip("fd00::2"));
        }
        let mut out = bytes;
        let _ = outer(v6, false, usize::from(inner_len)).emit(&mut out);
    }
}

proptest! {
    /// Prepared headers are what each packet's own would be.
    #[test]
    fn prepared_is_emitted(
        ends in any::<([u8; 4], [u8; 4], [u8; 6], [u8; 6], [u8; 6], [u8; 6])>(),
        (src_port, dst_port, ident, vni, tos, ttl) in (any::<u16>(), any::<u16>(), any::<u16>(), 0u32..1 << 24, any::<u8>(), any::<u8>()),
        (df, inner_v6) in any::<(bool, bool)>(),
        len in 0usize..200,
    ) {
        let (src, dst, a, b, c, d) = ends;
        let repr = OuterRepr {
            src_mac: Mac(a),
            dst_mac: Mac(b),
            inner_src_mac: Mac(c),
            inner_dst_mac: Mac(d),
            src: Ip::v4(src),
            dst: Ip::v4(dst),
            src_port, dst_port, ident, vni, tos, ttl, df, inner_v6,
            ..outer(false, false, len)
        };
        // Whatever packet they were prepared from.
        let prepared = Prepared::new(&OuterRepr { src_mac: Mac(d), ..repr }).unwrap().with_link(Mac(b), Mac(a));
        let varying = Varying { src_port, tos, df, ident, inner_v6, inner_len: repr.inner_len };
        let (mut ours, mut theirs) = (vec![0xa5; 64 + len], vec![0xa5; 64 + len]);
        prop_assert!(prepared.emit(&mut ours, &varying) && repr.emit(&mut theirs));
        prop_assert_eq!(ours, theirs);
    }
}

#[test]
fn what_is_not_prepared() {
    assert_eq!(Prepared::new(&outer(true, false, 100)), None, "IPv6: its checksum is over the packet");
    let prepared = Prepared::new(&outer(false, false, 100)).unwrap();
    assert_eq!(usize::from(Prepared::OVERHEAD) + 14, outer(false, false, 0).buffer_len());
    let varying =
        |inner_len| Varying { src_port: 1, tos: 0, df: false, ident: 0, inner_v6: false, inner_len };
    let mut short = [0xa5; 63];
    assert!(!prepared.emit(&mut short, &varying(100)));
    assert_eq!(short, [0xa5; 63], "nothing written");
    let mut frame = vec![0; 70_000];
    assert!(prepared.emit(&mut frame, &varying(65_485)));
    assert!(!prepared.emit(&mut frame, &varying(65_486)), "outer packets end at 65535 bytes");
}
