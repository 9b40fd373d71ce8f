//! The contract of the module, held for every protocol at once.

use super::*;
use crate::packet::{Ip, Mac};
use proptest::prelude::*;

proptest! {
    /// Getters and setters over any bytes, checked or not, panic never.
    #[test]
    fn views_never_panic(mut b in prop::collection::vec(any::<u8>(), 0..70), ip in any::<[u8; 16]>()) {
        let ip = Ip::v6(ip);
        let text = [
            eth::Packet::new_unchecked(&b).to_string(),
            arp::Packet::new_unchecked(&b).to_string(),
            ipv4::Packet::new_unchecked(&b).to_string(),
            ipv6::Packet::new_unchecked(&b).to_string(),
            tcp::Packet::new_unchecked(&b).to_string(),
            udp::Packet::new_unchecked(&b).to_string(),
            sctp::Packet::new_unchecked(&b).to_string(),
            icmp::Packet::new_unchecked(&b).to_string(),
            ndp::Packet::new_unchecked(&b).to_string(),
            vxlan::Packet::new_unchecked(&b).to_string(),
        ];
        prop_assert!(text.iter().all(|t| !t.is_empty()));
        let p = ipv4::Packet::new_unchecked(&b);
        let _ = (p.payload(), p.header(), p.verify_checksum(), ipv4::Repr::parse(&p));
        let _ = (ipv6::Packet::new_unchecked(&b).payload(), ipv6::walk(&b));
        let p = tcp::Packet::new_unchecked(&b);
        let _ = (p.payload(), p.verify_checksum(ip, ip));
        let p = udp::Packet::new_unchecked(&b);
        let _ = (p.payload(), p.verify_checksum(ip, ip));
        let _ = sctp::Packet::new_unchecked(&b).verify_checksum();
        let p = icmp::Packet::new_unchecked(&b);
        let _ = (p.body(), p.verify_checksum_v4(), p.verify_checksum_v6(ip, ip));

        let len = b.len();
        let mut p = eth::Packet::new_unchecked(&mut b);
        p.set_dst(Mac([1; 6]));
        p.set_ethertype(1);
        let mut p = ipv4::Packet::new_unchecked(&mut b);
        p.set_dst(ip);
        p.rewrite_tos(9);
        let _ = p.decrement_ttl();
        p.fill_checksum();
        let mut p = ipv6::Packet::new_unchecked(&mut b);
        p.set_src(ip);
        p.set_traffic_class(9);
        let _ = p.decrement_hop_limit();
        tcp::Packet::new_unchecked(&mut b).fill_checksum(ip, ip);
        udp::Packet::new_unchecked(&mut b).fill_checksum(ip, ip);
        sctp::Packet::new_unchecked(&mut b).fill_checksum();
        icmp::Packet::new_unchecked(&mut b).fill_checksum(ip, ip);
        prop_assert_eq!(b.len(), len);
    }

    /// A view that `new_checked` makes has every byte its getters promise.
    #[test]
    fn checked_views_are_whole(b in prop::collection::vec(any::<u8>(), 0..70)) {
        if let Ok(p) = ipv4::Packet::new_checked(&b) {
            prop_assert_eq!(p.header().len() + p.payload().len(), usize::from(p.total_len()));
        }
        if let Ok(p) = ipv6::Packet::new_checked(&b) {
            prop_assert_eq!(p.payload().len(), usize::from(p.payload_len()));
        }
        if let Ok(p) = tcp::Packet::new_checked(&b) {
            prop_assert_eq!(p.header_len() + p.payload().len(), b.len());
        }
        if let Ok(p) = udp::Packet::new_checked(&b) {
            prop_assert_eq!(p.payload().len() + udp::HEADER_LEN, usize::from(p.length()));
        }
    }
}

#[test]
fn fields_beyond_the_end() {
    let b = [1u8, 2, 3];
    assert_eq!(get::<2>(&b, 1), [2, 3]);
    assert_eq!(get::<2>(&b, 2), [0, 0]);
    assert_eq!((get16(&b, usize::MAX), get32(&b, 0), get8(&b, 2)), (0, 0, 3));
    let mut b = [0u8; 3];
    put(&mut b, 2, &[9, 9]);
    put(&mut b, usize::MAX, &[9, 9]);
    assert_eq!(b, [0; 3]);
    put(&mut b, 1, &[9, 9]);
    assert_eq!(b, [0, 9, 9]);
    assert_eq!((len16(70_000), len16(7)), (u16::MAX, 7));
}

#[test]
fn errors_say_what_was_wrong() {
    assert_eq!(Error::Truncated("UDP").to_string(), "UDP: fewer bytes than its header");
    assert_eq!(
        Error::Value("NDP", "hop limit").to_string(),
        "NDP: hop limit has a value that is not allowed"
    );
}
