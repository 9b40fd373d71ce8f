use super::*;
use crate::packet::{FlowKey, Meta};
use crate::snapshot::{GATEWAY_MAC, GATEWAY_V6};
use crate::wire::parse::{Parsed, Punt, parse};
use crate::wire::testgen::{Spec, Upper};
use proptest::prelude::*;

fn ip(text: &str) -> Ip {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

const POD: Mac = Mac([2, 0, 0, 0, 0, 5]);

/// A solicitation for `target`, with `options` behind it.
fn solicit(src: Ip, dst: Ip, target: Ip, options: &[u8]) -> Spec {
    let upper = Upper::Icmp(icmp::Repr { kind: 135, code: 0, rest: 0 });
    let body = [&target.bytes()[..], options].concat();
    Spec { ttl: 255, src_mac: POD, ..Spec::new(src, dst, upper) }.with_payload(body)
}

fn read(frame: &[u8]) -> Result<Option<Solicit>, Error> {
    let mut meta = Meta::default();
    assert_eq!(parse(frame, 0, &mut meta, &mut FlowKey::EMPTY.clone()), Parsed::Punt(Punt::Ndp));
    Solicit::parse(frame, meta.l3, meta.l4, meta.l3_len)
}

const SOURCE_OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 6];

#[test]
fn answers_a_pod() {
    let pod = ip("fd00::5");
    let frame = solicit(pod, ip("ff02::1:ffee:eeee"), GATEWAY_V6, &SOURCE_OPTION).build();
    let solicit = read(&frame).unwrap().unwrap();
    assert_eq!(solicit.target, GATEWAY_V6);
    assert_eq!(solicit.mac, Mac([2, 0, 0, 0, 0, 6]), "the option, not the Ethernet header");
    let mut out = [0xa5; 100];
    assert_eq!(solicit.advert(GATEWAY_MAC).unwrap().emit_frame(&mut out), Some(86));
    #[rustfmt::skip]
    let want = [
        2, 0, 0, 0, 0, 6, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0x86, 0xdd,
        0x60, 0, 0, 0, 0, 32, 58, 255,
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xec, 0xee, 0xee, 0xff, 0xfe, 0xee, 0xee, 0xee,
        0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5,
        136, 0, 0x3b, 0x35, 0xe0, 0, 0, 0,
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xec, 0xee, 0xee, 0xff, 0xfe, 0xee, 0xee, 0xee,
        2, 1, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee,
    ];
    assert_eq!(out[..86], want);
    assert!(out[86..].iter().all(|b| *b == 0xa5));
    assert_eq!(solicit.advert(GATEWAY_MAC).unwrap().emit_frame(&mut out[..85]), None);
}

#[test]
fn asks_again_in_unicast_without_option() {
    // Neighbour unreachability detection (RFC 4861 7.3).
    let frame = solicit(ip("fd00::5"), GATEWAY_V6, GATEWAY_V6, &[]).build();
    assert_eq!(read(&frame).unwrap().unwrap().mac, POD, "from the Ethernet header");
}

#[test]
fn duplicate_address_detection_is_not_answered() {
    let group = ip("ff02::1:ffee:eeee");
    let probe = read(&solicit(ip("::"), group, GATEWAY_V6, &[]).build()).unwrap().unwrap();
    assert_eq!(probe.advert(GATEWAY_MAC), None);
    // As Linux sends it since 6.x, with a nonce option (RFC 7527).
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    assert!(read(&solicit(ip("::"), group, GATEWAY_V6, &nonce).build()).unwrap().is_some());
}

#[test]
fn refuses_what_rfc_4861_7_1_1_refuses() {
    let (pod, group) = (ip("fd00::5"), ip("ff02::1:ffee:eeee"));
    let good = solicit(pod, group, GATEWAY_V6, &SOURCE_OPTION);
    let value = |what| Err(Error::Value("NDP", what));
    assert_eq!(read(&Spec { ttl: 254, ..good.clone() }.build()), value("hop limit"));
    let mut frame = good.build();
    frame[60] ^= 1;
    assert_eq!(read(&frame), Err(Error::Checksum("NDP")));
    let code = Upper::Icmp(icmp::Repr { kind: 135, code: 1, rest: 0 });
    assert_eq!(read(&Spec { upper: code, ..good.clone() }.build()), value("type or code"));
    let short = good.clone().with_payload([0; 15]);
    assert_eq!(read(&short.build()), Err(Error::Truncated("NDP")));
    for options in [&[1u8, 0, 2, 0, 0, 0, 0, 6][..], &[1, 2, 2, 0, 0, 0, 0, 6], &[1, 1, 0], &[1]] {
        assert_eq!(read(&solicit(pod, group, GATEWAY_V6, options).build()), Err(Error::Length("NDP option")));
    }
    assert_eq!(read(&solicit(pod, group, ip("ff02::1"), &[]).build()), value("target"));
    assert_eq!(read(&solicit(ip("::"), group, GATEWAY_V6, &SOURCE_OPTION).build()), value("source"));
    assert_eq!(read(&solicit(ip("::"), GATEWAY_V6, GATEWAY_V6, &[]).build()), value("source"));
    let group_mac = [1, 1, 0x33, 0x33, 0, 0, 0, 1];
    assert_eq!(read(&solicit(pod, group, GATEWAY_V6, &group_mac).build()), value("link-layer address"));
}

#[test]
fn other_messages_are_none_of_it() {
    for kind in [133u8, 134, 136, 137] {
        let upper = Upper::Icmp(icmp::Repr { kind, code: 0, rest: 0 });
        let spec = Spec { ttl: 255, ..Spec::new(ip("fe80::5"), ip("ff02::2"), upper) };
        assert_eq!(read(&spec.build()), Ok(None), "type {kind}");
    }
}

#[test]
fn reads_an_advertisement() {
    let advert =
        Advert { src: ip("fe80::1"), dst: ip("fd00::1"), target: ip("fe80::1"), mac: POD, dst_mac: POD };
    let mut out = [0; 86];
    assert_eq!(advert.emit_frame(&mut out), Some(86));
    let p = Packet::new_checked(&out[54..]).unwrap();
    assert_eq!((p.kind(), p.flags(), p.target(), p.link_layer()), (136, 0xe0, ip("fe80::1"), Some(POD)));
    assert_eq!(p.to_string(), "NDP type 136 target fe80::1");
}

proptest! {
    #[test]
    fn adverts_verify(src: [u8; 16], dst: [u8; 16], mac: [u8; 6]) {
        let (src, dst) = (Ip::v6(src), Ip::v6(dst));
        prop_assume!(!src.is_v4() && !dst.is_v4());
        let mut out = [0xa5; 86];
        let _ = Advert { src, dst, target: src, mac: Mac(mac), dst_mac: POD }.emit_frame(&mut out);
        prop_assert!(icmp::Packet::new_unchecked(&out[54..]).verify_checksum_v6(src, dst));
        prop_assert_eq!(ipv6::Packet::new_checked(&out[14..]).unwrap().hop_limit(), 255);
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), l3: u16, l4: u16, len: u16) {
        let _ = Solicit::parse(&bytes, l3, l4, len);
        let _ = Solicit::parse(&bytes, l3 % 100, l4 % 100, len % 100);
        let mut message = bytes;
        if let Some(head) = message.get_mut(..2) {
            head.copy_from_slice(&[135, 0]);
        }
        if let Ok(p) = Packet::new_checked(&message[..]) {
            let _ = p.link_layer();
        }
        let _ = Packet::new_unchecked(&message[..]).link_layer();
    }
}
