use super::*;
use crate::packet::Ip;
use crate::wire::parse::{Parsed, parse};
use crate::wire::testgen::{self, Spec, Upper};
use proptest::prelude::*;

fn parsed(frame: &[u8]) -> Option<(Meta, FlowKey)> {
    let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
    (parse(frame, 0, &mut meta, &mut key) == Parsed::Ip).then_some((meta, key))
}

fn run(frame: &mut [u8]) -> bool {
    let (meta, key) = parsed(frame).unwrap();
    finish(frame, &meta, &key)
}

/// The frame as a kernel hands it to a device that fills checksums in.
fn unfinish(frame: &mut [u8]) {
    let (meta, key) = parsed(frame).unwrap();
    let l4 = usize::from(meta.l4);
    let len = usize::from(meta.l3) + usize::from(meta.l3_len) - l4;
    let pseudo = pseudo_header(key.src, key.dst, key.proto, u32::try_from(len).unwrap()).fold();
    match meta.proto {
        proto::TCP => frame[l4 + 16..l4 + 18].copy_from_slice(&pseudo.to_be_bytes()),
        proto::UDP => frame[l4 + 6..l4 + 8].copy_from_slice(&pseudo.to_be_bytes()),
        _ => frame[l4 + 8..l4 + 12].fill(0),
    }
}

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn with_checksum() -> impl Strategy<Value = Spec> {
    (any::<bool>(), testgen::packet_spec(false), testgen::packet_spec(true), testgen::upper())
        .prop_filter_map("a whole packet with a checksum, between unicast addresses", |(v6, a, b, upper)| {
            let upper = match upper {
                Upper::Udp { ports, .. } => Upper::Udp { ports, no_checksum: false },
                Upper::Tcp { .. } | Upper::Sctp { .. } => upper,
                _ => return None,
            };
            let mut spec = Spec { upper, fragment: None, ..if v6 { b } else { a } };
            if !v6 {
                spec.ip_options = 0;
            }
            parsed(&spec.build()).map(|_| spec)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { max_local_rejects: 1 << 20, ..ProptestConfig::default() })]

    #[test]
    fn finished_is_what_the_sender_would_have_sent(spec in with_checksum()) {
        let whole = spec.build();
        let mut frame = whole.clone();
        prop_assert!(!run(&mut frame), "complete: left alone");
        prop_assert_eq!(&frame, &whole);
        unfinish(&mut frame);
        // A packet whose right checksum is what a kernel leaves is the same in both states.
        prop_assert_eq!(run(&mut frame), frame_differs(&whole));
        prop_assert_eq!(&frame, &whole);
        prop_assert!(!run(&mut frame), "and once is enough");
    }

    #[test]
    fn a_wrong_checksum_is_not_repaired(spec in with_checksum(), flip in 1u16..) {
        let mut frame = spec.build();
        let (meta, key) = parsed(&frame).unwrap();
        let at = usize::from(meta.l4) + match meta.proto { proto::TCP => 16, proto::UDP => 6, _ => 8 };
        for (byte, bits) in frame[at..at + 2].iter_mut().zip(flip.to_be_bytes()) {
            *byte ^= bits;
        }
        let broken = frame.clone();
        let l4 = usize::from(meta.l4);
        let len = u32::try_from(usize::from(meta.l3) + usize::from(meta.l3_len) - l4).unwrap();
        let looks_partial = match meta.proto {
            proto::SCTP => frame[at..at + 4] == [0; 4],
            _ => get16(&frame, at) == pseudo_header(key.src, key.dst, key.proto, len).fold(),
        };
        prop_assert_eq!(run(&mut frame), looks_partial);
        prop_assert_eq!(frame == broken, !looks_partial);
    }

    #[test]
    fn nothing_else_is_touched(frame in testgen::mutated()) {
        let mut after = frame.clone();
        if let Some((meta, key)) = parsed(&frame) {
            let changed = finish(&mut after, &meta, &key);
            prop_assert_eq!(changed, after != frame || meta.proto == proto::SCTP && changed);
            if changed {
                prop_assert_eq!(meta.frag, 0);
                prop_assert!(matches!(meta.proto, proto::TCP | proto::UDP | proto::SCTP));
            }
        }
    }

    #[test]
    fn nothing_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..80), l3: u16, l4 in 0u16..90, l3_len in 0u16..90, proto in prop::sample::select(&[6u8, 17, 132][..])) {
        let meta = Meta { l3: l3 % 90, l4, l3_len, proto, ..Meta::default() };
        finish(&mut bytes, &meta, &FlowKey { proto, ..FlowKey::EMPTY });
    }
}

fn frame_differs(whole: &[u8]) -> bool {
    let mut unfinished = whole.to_vec();
    unfinish(&mut unfinished);
    let (meta, _) = parsed(whole).unwrap();
    // Of SCTP a zero is filled in whether or not it changes something.
    unfinished != whole || meta.proto == proto::SCTP
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 16).unwrap())
        .collect()
}

/// Frames that Linux 6.18 put on a veth with its offloads on (`TP_STATUS_CSUMNOTREADY` at the other end).
#[test]
fn frames_of_a_kernel() {
    let frames = [
        // UDP "ping", 10.9.0.1 -> 10.9.0.2.
        "7e0986f3269c9610835fe9fd0800450000203bd540004011eae30a0900010a090002e6800009000c143270696e67",
        // TCP SYN, IPv4 and IPv6, and the kernel's own RST.
        "7e0986f3269c9610835fe9fd08004500003c352340004006f1840a0900010a09000282cc00504337df2600000000a002faf01443\
         0000020405b40402080a8087a359000000000103030a",
        "7e0986f3269c9610835fe9fd86dd600b2a4b00280640fd090000000000000000000000000001fd09000000000000000000000000\
         0002919400505e97f5ce00000000a002fd20fa440000020405a00402080ab41480b5000000000103030a",
        "9610835fe9fd7e0986f3269c86dd600f31e300140640fd090000000000000000000000000002fd09000000000000000000000000\
         000100509194000000005e97f5cf50140000fa300000",
    ];
    for text in frames {
        let mut frame = hex(text);
        assert!(run(&mut frame), "{text}");
        let (meta, key) = parsed(&frame).unwrap();
        let upper = &frame[usize::from(meta.l4)..];
        let right = match meta.proto {
            proto::TCP => tcp::Packet::new_checked(upper).unwrap().verify_checksum(key.src, key.dst),
            _ => udp::Packet::new_checked(upper).unwrap().verify_checksum(key.src, key.dst),
        };
        assert!(right, "{text}");
        assert!(!run(&mut frame));
    }
    // An ICMPv6 message has its sum: kernels leave none of those.
    let mut frame = Spec::echo(ip("fd09::1"), ip("fd09::2"), 1, 1).build();
    assert!(!run(&mut frame));
}

#[test]
fn no_checksum_stays_none() {
    let mut frame =
        Spec::new(ip("10.9.0.1"), ip("10.9.0.2"), Upper::Udp { ports: (1, 2), no_checksum: true }).build();
    let before = frame.clone();
    assert!(!run(&mut frame));
    assert_eq!(frame, before);
}

/// The one packet in 65536 whose right checksum is the pseudo-header's sum.
#[test]
fn coincidence_is_left_alone() {
    let (src, dst) = (ip("10.9.0.1"), ip("10.9.0.2"));
    let with = |word: u16| Spec::udp(src, dst, 1, 2).with_payload(word.to_be_bytes()).build();
    let sum = pseudo_header(src, dst, proto::UDP, 10).fold();
    // The payload word that makes the finished checksum equal the sum of an unfinished one (RFC 1071, 2: sums add up).
    let word = u32::from(!sum) + u32::from(get16(&with(0), 40));
    let word = u16::try_from((word & 0xffff) + (word >> 16)).unwrap();
    let mut frame = with(word);
    assert_eq!(get16(&frame, 40), sum);
    let before = frame.clone();
    assert!(!run(&mut frame));
    assert_eq!(frame, before);
}
