//! Path MTU through the tunnel: what a router between the nodes says about a VXLAN packet reaches the pod, as if it
//! had been said about what the pod sent.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

#[allow(unreachable_pub, dead_code, reason = "shared by test programs, each of which uses a part")]
mod world;

use std::collections::BTreeMap;

use fastpath::graph::DropReason;
use fastpath::packet::{FlowKey, Ip, Mac, PortId};
use fastpath::tables::service::Backend;
use fastpath::testbed::{Bed, UPLINK, Underlay, from_pod, mac, pod, pod_port, settle, snapshot, underlay};
use fastpath::wire::testgen::Spec;
use fastpath::wire::{eth, icmp, tcp};
use proptest::prelude::*;
use world::{client, node_port, service, set_services, vip};

/// A router on the underlay.
fn router(v6: bool) -> Ip {
    underlay(v6, 77)
}

/// What the router says about a frame it cannot pass on, with as much of it as `quote` bytes of IP packet.
fn too_big(frame: &[u8], mtu: u16, quote: usize) -> Vec<u8> {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (header, ethertype) = if v6 { (40, eth::ethertype::IPV6) } else { (20, eth::ethertype::IPV4) };
    let quote = &frame[14..frame.len().min(14 + quote)];
    let mut packet = vec![0; header + 8];
    packet.extend(quote);
    let to = if v6 {
        Ip::v6(*frame[22..].first_chunk().unwrap())
    } else {
        Ip::v4(*frame[26..].first_chunk().unwrap())
    };
    icmp::head_error(&mut packet, icmp::ErrorKind::FragNeeded { mtu }, router(v6), to);
    [&frame[6..12], &[2, 0, 0, 0, 9, 9], &ethertype.to_be_bytes()[..], &packet].concat()
}

/// A large datagram of pod 1 on node 1, and how it leaves the node.
fn sent(a: &mut Bed, spec: &Spec) -> Vec<u8> {
    assert!(a.send(pod_port(1), &from_pod(1, 1, spec.clone())));
    let got = a.run();
    let [(UPLINK, outer)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
    outer.clone()
}

fn large(dst: Ip) -> Spec {
    Spec::udp(pod(!dst.is_v4(), 1, 1), dst, 4000, 53).with_payload(vec![5u8; 1350])
}

/// The MTU that an error tells.
fn told(frame: &[u8]) -> u16 {
    let at = if frame[12..14] == [0x86, 0xdd] { 60 } else { 40 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn key(src: Ip, sport: u16, dst: Ip, dport: u16) -> FlowKey {
    FlowKey { src, dst, sport, dport, proto: 17 }
}

const ALL: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[test]
fn the_pod_is_told_what_is_left_inside() {
    for (outer_v6, v6) in ALL {
        let mut a = Bed::new(snapshot(1, Underlay { encap: true, outer_v6 }));
        let spec = large(pod(v6, 2, 3));
        let outer = sent(&mut a, &spec);
        let overhead = if outer_v6 { 70 } else { 50 };
        let min = if v6 { 1280 } else { 576 };
        for (mtu, quote) in [(1400u16, 1500usize), (1400, 548), (1350, 128), (1000, 548), (68, 548), (0, 548)]
        {
            assert!(a.send(UPLINK, &too_big(&outer, mtu, quote)));
            let got = a.run();
            let [(port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
            assert_eq!(*port, pod_port(1));
            assert_eq!(
                frame[..14],
                [&mac(1, 1).0[..], &[0xee; 6], &from_pod(1, 1, spec.clone())[12..14]].concat()
            );
            // Its checksums are verified.
            let (src, dst, quoted) = world::error(frame);
            assert_eq!((src, dst), (underlay(v6, 1), pod(v6, 1, 1)));
            assert_eq!(quoted, key(pod(v6, 1, 1), 4000, pod(v6, 2, 3), 53));
            assert_eq!(told(frame), mtu.saturating_sub(overhead).max(min), "{mtu}");
            // The quote is what the router quoted of the packet inside, as far as an error may be long.
            let len = frame.len() - 14;
            let inside = quote.min(outer.len() - 14) - usize::from(overhead);
            let (headers, most) = if v6 { (48, 1280) } else { (28, 576) };
            assert_eq!(len, (inside + headers).min(most));
        }
        assert_eq!(a.drops(), BTreeMap::new());
    }
}

#[test]
fn a_service_answers_as_itself() {
    for v6 in [false, true] {
        let mut a = world::bed(1);
        set_services(&a, &[service(vip(v6, 1), 53, vec![Backend { addr: pod(v6, 2, 3), port: 5353 }])]);
        let outer = sent(&mut a, &large(vip(v6, 1)));
        a.send(UPLINK, &too_big(&outer, 1400, 548));
        let got = a.run();
        let [(port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
        assert_eq!(*port, pod_port(1));
        let (src, dst, quoted) = world::error(frame);
        assert_eq!((src, dst), (underlay(v6, 1), pod(v6, 1, 1)));
        assert_eq!(quoted, key(pod(v6, 1, 1), 4000, vip(v6, 1), 53), "as the pod sent it");
        assert_eq!(told(frame), 1350);
    }
}

#[test]
fn a_client_outside_is_told_too() {
    for v6 in [false, true] {
        let mut a = world::bed(1);
        set_services(&a, &[node_port(v6, 30053, vec![Backend { addr: pod(v6, 2, 3), port: 5353 }])]);
        let ask = Spec::udp(client(v6, 1), underlay(v6, 1), 4000, 30053).with_payload(vec![5; 1350]);
        a.send(UPLINK, &world::from_outside(1, ask));
        let outer = a.run();
        let [(UPLINK, outer)] = outer.as_slice() else { panic!("{outer:?} {:?}", a.drops()) };
        a.send(UPLINK, &too_big(outer, 1400, 548));
        let got = a.run();
        let [(UPLINK, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
        assert_eq!(frame[..6], world::ROUTER.0);
        let (src, dst, quoted) = world::error(frame);
        assert_eq!((src, dst), (underlay(v6, 1), client(v6, 1)));
        assert_eq!(quoted, key(client(v6, 1), 4000, underlay(v6, 1), 30053));
    }
}

/// A node without an address of the pods' family is their gateway still.
#[test]
fn a_node_without_an_address_speaks_as_the_gateway() {
    let mut a = Bed::new(snapshot(1, Underlay { encap: true, outer_v6: false }));
    a.publish(|s| s.node.icmp_v6 = None);
    let outer = sent(&mut a, &large(pod(true, 2, 3)));
    a.send(UPLINK, &too_big(&outer, 1400, 548));
    let got = a.run();
    let [(port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
    assert_eq!((*port, told(frame)), (pod_port(1), 1350));
    assert_eq!(frame[22..38], fastpath::snapshot::GATEWAY_V6.bytes());
}

/// What must not reach a pod, and what it is called.
#[test]
fn errors_that_tell_nothing_true() {
    for (outer_v6, v6) in ALL {
        let mut a = Bed::new(snapshot(1, Underlay { encap: true, outer_v6 }));
        let outer = sent(&mut a, &large(pod(v6, 2, 3)));
        let (ip, udp) = if outer_v6 { (40, 54) } else { (20, 34) };
        let overhead = if outer_v6 { 70 } else { 50 };
        let header = if v6 { 40 } else { 20 };
        let mut want = BTreeMap::new();
        let mut refuse = |a: &mut Bed, frame: Vec<u8>, reason: DropReason| {
            *want.entry(reason).or_insert(0) += 1;
            assert!(a.send(UPLINK, &frame));
            assert_eq!(a.run(), []);
            assert_eq!(a.drops(), want, "{reason}");
        };
        // Too little of the packet inside: as RFC 792 asks for at least, and one byte short of its ports and sums.
        for quote in [ip + 8, ip + 16, overhead, overhead + header + 7] {
            refuse(&mut a, too_big(&outer, 1400, quote), DropReason::TunnelErrorShort);
        }
        // An MTU that the packet fits.
        let fits = u16::try_from(outer.len() - 14).unwrap();
        refuse(&mut a, too_big(&outer, fits, 548), DropReason::IcmpUnrelated);
        // A packet that this node did not send: another flow, another VNI, to another node, to another port.
        let mut other = outer.clone();
        let inner_l4 = 14 + overhead + header;
        other[inner_l4 + 1] ^= 1;
        refuse(&mut a, too_big(&other, 1400, 548), DropReason::IcmpUnrelated);
        let mut other = outer.clone();
        other[udp + 8 + 6] ^= 1;
        refuse(&mut a, too_big(&other, 1400, 548), DropReason::WrongVni);
        let mut other = outer.clone();
        other[if outer_v6 { 53 } else { 33 }] = 99;
        refuse(&mut a, too_big(&other, 1400, 548), DropReason::IcmpUnrelated);
        let mut other = outer.clone();
        other[udp + 3] ^= 1;
        refuse(&mut a, too_big(&other, 1400, 548), DropReason::IcmpUnrelated);
        // With a wrong checksum.
        let mut wrong = too_big(&outer, 1400, 548);
        *wrong.last_mut().unwrap() ^= 1;
        refuse(&mut a, wrong, DropReason::MalformedTransport);
        // Another error about the tunnel.
        let mut other = too_big(&outer, 1400, 548);
        let at = 14 + ip;
        let (src, dst) = (router(outer_v6), underlay(outer_v6, 1));
        other[at + 1] = if outer_v6 { 0 } else { 1 };
        other[at] = if outer_v6 { 1 } else { 3 };
        icmp::Packet::new_unchecked(&mut other[at..]).fill_checksum(src, dst);
        refuse(&mut a, other, DropReason::IcmpUnrelated);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// However the quote is cut and changed: what reaches a pod is an error with right checksums about a flow of its
    /// own, and no frame is lost.
    #[test]
    fn whatever_a_router_quotes(
        (outer_v6, v6) in prop::sample::select(&ALL[..]),
        mtu: u16,
        quote in 28usize..700,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        tcp_flow: bool,
    ) {
        let mut a = Bed::new(snapshot(1, Underlay { encap: true, outer_v6 }));
        let free = a.free_frames();
        let spec = if tcp_flow {
            Spec::tcp(pod(v6, 1, 1), pod(v6, 2, 3), 4000, 80, tcp::control::SYN).with_payload(vec![9u8; 1300])
        } else {
            large(pod(v6, 2, 3))
        };
        let mut outer = sent(&mut a, &spec);
        let key = world::key(&spec);
        for (at, value) in changes {
            let at = 14 + at.index(quote.min(outer.len() - 14));
            outer[at] = value;
        }
        let v6_outer = outer[12..14] == [0x86, 0xdd];
        prop_assert_eq!(v6_outer, outer_v6);
        prop_assert!(a.send(UPLINK, &too_big(&outer, mtu, quote)));
        let got: Vec<(PortId, Vec<u8>)> = a.run();
        let dropped: u64 = a.drops().values().sum();
        prop_assert_eq!(u64::try_from(got.len()).unwrap() + dropped, 1);
        for (port, frame) in got {
            prop_assert_eq!(port, pod_port(1));
            prop_assert_eq!(Mac(*frame.first_chunk().unwrap()), mac(1, 1));
            let (src, dst, quoted) = world::error(&frame);
            prop_assert_eq!((src, dst, quoted), (underlay(v6, 1), pod(v6, 1, 1), key));
            let min = if v6 { 1280 } else { 576 };
            prop_assert!(told(&frame) >= min);
        }
        prop_assert_eq!(a.free_frames(), free);
    }
}

/// The whole way: the pod is told, sends less, and that arrives.
#[test]
fn what_is_told_fits() {
    for (outer_v6, v6) in ALL {
        let of = |n| Bed::new(snapshot(n, Underlay { encap: true, outer_v6 }));
        let (mut a, mut b) = (of(1), of(2));
        let outer = sent(&mut a, &large(pod(v6, 2, 3)));
        a.send(UPLINK, &too_big(&outer, 1380, 548));
        let mtu = told(&a.run()[0].1);
        let less = usize::from(mtu) - if v6 { 48 } else { 28 };
        let spec = large(pod(v6, 2, 3)).with_payload(vec![1u8; less]);
        assert_eq!(sent(&mut a, &spec).len(), 14 + 1380);
        a.send(pod_port(1), &from_pod(1, 1, spec));
        assert_eq!(settle(&mut a, &mut b).len(), 1);
    }
}
