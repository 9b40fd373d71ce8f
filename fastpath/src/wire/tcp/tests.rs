use super::*;
use crate::wire::testgen::{self, Spec, Upper};
use proptest::prelude::*;

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// A SYN with one option (MSS 1460), 10.0.0.5:40000 -> 10.0.1.6:443.
const SYN: [u8; 24] =
    [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0xe5, 0x1f, 0, 0, 2, 4, 5, 0xb4];

#[test]
fn reads_literal_bytes() {
    let (src, dst) = (ip("10.0.0.5"), ip("10.0.1.6"));
    let p = Packet::new_checked(&SYN[..]).unwrap();
    assert_eq!((p.src_port(), p.dst_port(), p.seq(), p.ack()), (40000, 443, 1, 0));
    assert_eq!((p.header_len(), p.flags(), p.window()), (24, control::SYN, 0xffff));
    assert!(p.payload().is_empty());
    assert!(p.verify_checksum(src, dst), "{:#06x}", p.checksum());
    assert_eq!(p.to_string(), "TCP 40000 -> 443 flags 0x02 seq 1");
    let mut b = SYN;
    b[7] = 2;
    let mut p = Packet::new_checked(&mut b[..]).unwrap();
    assert!(!p.verify_checksum(src, dst));
    p.fill_checksum(src, dst);
    assert!(p.verify_checksum(src, dst));
}

#[test]
fn refuses_malformed() {
    assert_eq!(Packet::new_checked(&SYN[..19]).unwrap_err(), Error::Truncated("TCP"));
    assert_eq!(Packet::new_checked(&SYN[..23]).unwrap_err(), Error::Length("TCP"));
    let mut b = SYN;
    b[12] = 0x40;
    assert_eq!(Packet::new_checked(&b[..]).unwrap_err(), Error::Length("TCP"));
}

fn segment(src: Ip, dst: Ip, flags: u8, numbers: (u32, u32), payload: usize) -> Spec {
    Spec::new(src, dst, Upper::Tcp { ports: (1000, 80), numbers, flags, options: 2 })
        .with_payload(vec![1; payload])
}

/// RFC 9293 3.10.7.1, CLOSED state.
#[test]
fn resets() {
    use control::{ACK, FIN, RST, SYN};
    for (src, dst) in [(ip("10.0.0.1"), ip("10.0.1.2")), (ip("fd00::1"), ip("fd00::2"))] {
        let header = if src.is_v4() { 20 } else { 40 };
        for (flags, numbers, payload, want) in [
            // "If the ACK bit is off": sequence 0, acknowledge all of the segment.
            (SYN, (100, 9), 0, Some((0, 101, RST | ACK))),
            (SYN, (u32::MAX, 9), 0, Some((0, 0, RST | ACK))),
            (0, (100, 9), 7, Some((0, 107, RST | ACK))),
            (FIN, (100, 9), 7, Some((0, 108, RST | ACK))),
            // "If the ACK bit is on": the sequence number it expects.
            (ACK, (100, 9), 7, Some((9, 0, RST))),
            (SYN | ACK, (100, 9), 0, Some((9, 0, RST))),
            (RST, (100, 9), 0, None),
            (RST | ACK, (100, 9), 0, None),
        ] {
            let mut out = [0xa5; 100];
            let len = build_reset(&segment(src, dst, flags, numbers, payload).build_packet(), &mut out);
            let Some((seq, ack, flags)) = want else {
                assert_eq!(len, None);
                continue;
            };
            assert_eq!(len, Some(header + 20));
            let p = Packet::new_checked(&out[header..header + 20]).unwrap();
            let repr = Repr { src_port: 80, dst_port: 1000, seq, ack, flags, window: 0 };
            assert_eq!(Repr::parse(&p), repr);
            assert!(p.verify_checksum(dst, src));
            if src.is_v4() {
                let ip = ipv4::Packet::new_checked(&out[..40]).unwrap();
                assert!(ip.verify_checksum());
                assert_eq!((ip.src(), ip.dst(), ip.ttl(), ip.protocol()), (dst, src, 64, 6));
            } else {
                let ip = ipv6::Packet::new_checked(&out[..60]).unwrap();
                assert_eq!((ip.src(), ip.dst(), ip.hop_limit(), ip.next_header()), (dst, src, 64, 6));
            }
        }
    }
}

#[test]
fn what_gets_no_reset() {
    let (src, dst) = (ip("10.0.0.1"), ip("10.0.1.2"));
    let mut out = [0; 100];
    let syn = segment(src, dst, control::SYN, (1, 0), 0);
    assert!(build_reset(&syn.build_packet(), &mut out[..40]).is_some());
    assert_eq!(build_reset(&syn.build_packet(), &mut out[..39]), None);
    assert_eq!(build_reset(&Spec::udp(src, dst, 1, 2).build_packet(), &mut out), None);
    let later = Spec { fragment: Some((5, false)), ..syn.clone() }.with_payload([0; 30]);
    assert_eq!(build_reset(&later.build_packet(), &mut out), None);
    assert_eq!(build_reset(&segment(src, ip("224.0.0.1"), 2, (1, 0), 0).build_packet(), &mut out), None);
    let mut cut = syn.build_packet();
    cut.truncate(30);
    assert_eq!(build_reset(&cut, &mut out), None);
}

proptest! {
    #[test]
    fn round_trip(src_port: u16, dst_port: u16, seq: u32, ack: u32, flags: u8, window: u16, payload in prop::collection::vec(any::<u8>(), 0..30)) {
        let (src, dst) = (ip("fd00::1"), ip("fd00::2"));
        let repr = Repr { src_port, dst_port, seq, ack, flags, window };
        let mut out = vec![0xa5; repr.buffer_len()];
        repr.emit(&mut out);
        out.extend_from_slice(&payload);
        let mut p = Packet::new_checked(&mut out[..]).unwrap();
        p.fill_checksum(src, dst);
        prop_assert!(p.verify_checksum(src, dst));
        prop_assert_eq!(Repr::parse(&p), repr);
        prop_assert_eq!(p.payload(), &payload[..]);
    }

    /// A reset of a reset never happens, whatever comes in.
    #[test]
    fn resets_end_there(spec in testgen::spec()) {
        let mut out = [0; 100];
        if let Some(len) = build_reset(&spec.build_packet(), &mut out) {
            let mut again = [0; 100];
            prop_assert_eq!(build_reset(&out[..len], &mut again), None);
        }
    }
}
