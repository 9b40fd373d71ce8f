//! What reaches whom: on one node, through the tunnel, and what does not get in or out.

use std::collections::BTreeMap;

use fastpath::graph::DropReason;
use fastpath::packet::{Mac, proto};
use fastpath::snapshot::Route;
use fastpath::tables::Prefix;
use fastpath::testbed::{Bed, UPLINK, from_pod, mac, pod, pod_port, settle, snapshot, underlay};
use fastpath::wire::testgen::Spec;
use fastpath::wire::vxlan;

use crate::{NATIVE, VXLAN4, VXLAN6, conversations, delivered, flows, nodes};

#[test]
fn pods_of_one_node_talk() {
    for v6 in [false, true] {
        let mut bed = Bed::new(snapshot(1, VXLAN4));
        for (name, there, back) in conversations(pod(v6, 1, 1), pod(v6, 1, 2)) {
            assert!(bed.send(pod_port(1), &from_pod(1, 1, there.clone())));
            assert_eq!(bed.run(), [(pod_port(2), delivered(&there, mac(1, 2), 1))], "{name} v6={v6}");
            assert!(bed.send(pod_port(2), &from_pod(1, 2, back.clone())));
            assert_eq!(bed.run(), [(pod_port(1), delivered(&back, mac(1, 1), 1))], "{name} v6={v6}");
        }
        assert_eq!(bed.drops(), BTreeMap::new());
        assert_eq!(flows(&bed), 4);
    }
}

#[test]
fn pods_of_two_nodes_talk() {
    for underlay in [VXLAN4, VXLAN6, NATIVE] {
        for v6 in [false, true] {
            let (mut a, mut b) = nodes(underlay);
            for (name, there, back) in conversations(pod(v6, 1, 1), pod(v6, 2, 3)) {
                let context = format!("{name} v6={v6} {underlay:?}");
                a.send(pod_port(1), &from_pod(1, 1, there.clone()));
                assert_eq!(
                    settle(&mut a, &mut b),
                    [(2, pod_port(3), delivered(&there, mac(2, 3), 2))],
                    "{context}"
                );
                b.send(pod_port(3), &from_pod(2, 3, back.clone()));
                assert_eq!(
                    settle(&mut a, &mut b),
                    [(1, pod_port(1), delivered(&back, mac(1, 1), 2))],
                    "{context}"
                );
            }
            assert_eq!((a.drops(), b.drops()), (BTreeMap::new(), BTreeMap::new()));
            assert_eq!((flows(&a), flows(&b)), (4, 4));
        }
    }
}

#[test]
fn the_outer_header_is_what_a_kernel_vtep_expects() {
    for (underlay_is, v6) in [(VXLAN4, false), (VXLAN4, true), (VXLAN6, false), (VXLAN6, true)] {
        let mut a = Bed::new(snapshot(1, underlay_is));
        let mut spec = Spec::udp(pod(v6, 1, 1), pod(v6, 2, 1), 1, 2).with_payload(vec![9u8; 100]);
        spec.tos = 0b1010_1010;
        a.send(pod_port(1), &from_pod(1, 1, spec.clone()));
        let sent = a.run();
        let [(UPLINK, frame)] = sent.as_slice() else { panic!("{sent:?}") };
        let outer = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
        let Some(etherparse::TransportSlice::Udp(udp)) = &outer.transport else { panic!("{outer:?}") };
        assert_eq!(udp.destination_port(), 4789);
        assert!(udp.source_port() >= 49152);
        match outer.net.as_ref().unwrap() {
            etherparse::NetSlice::Ipv4(ip) => {
                assert!(!underlay_is.outer_v6);
                assert_eq!(udp.checksum(), 0);
                assert_eq!(ip.header().source(), underlay(false, 1).v4_bytes());
                assert_eq!(ip.header().destination(), underlay(false, 2).v4_bytes());
                assert_eq!(frame[15], spec.tos);
            }
            etherparse::NetSlice::Ipv6(ip) => {
                assert!(underlay_is.outer_v6);
                let want =
                    udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap();
                assert_eq!(udp.checksum(), want);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(frame[..6], mac(2, 0).0);
        assert_eq!(frame[6..12], mac(1, 0).0);
        let header = vxlan::Packet::new_checked(udp.payload()).unwrap();
        assert_eq!(header.vni(), 4096);
        spec.ttl -= 1;
        spec.src_mac = Mac([2, 0xfb, 0, 0, 0, 1]);
        spec.dst_mac = Mac([2, 0xfb, 0, 0, 0, 2]);
        assert_eq!(header.payload(), spec.build());
    }
}

#[test]
fn a_pod_sends_only_from_its_own_addresses() {
    for v6 in [false, true] {
        let mut bed = Bed::new(snapshot(1, VXLAN4));
        // A flow of pod 1 exists: pod 3 cannot join it.
        bed.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(v6, 1, 1), pod(v6, 1, 2), 5, 6)));
        assert_eq!(bed.run().len(), 1);
        bed.send(pod_port(3), &from_pod(1, 3, Spec::udp(pod(v6, 1, 1), pod(v6, 1, 2), 5, 6)));
        assert_eq!(bed.run(), []);
        assert_eq!(bed.drops(), [(DropReason::SourceNotOwn, 1)].into());
        // Nor can the network.
        let mut frame = Spec::udp(pod(v6, 1, 1), pod(v6, 1, 2), 5, 6);
        frame.dst_mac = mac(1, 0);
        bed.send(UPLINK, &frame.build());
        assert_eq!(bed.run(), []);
        assert_eq!(bed.drops().get(&DropReason::SourceIsLocal), Some(&1));
    }
}

#[test]
fn only_known_vteps_with_the_right_vni_get_in() {
    let (mut a, mut b) = nodes(VXLAN4);
    a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 2, 1), 1, 2)));
    let sent = a.run();
    let [(UPLINK, frame)] = sent.as_slice() else { panic!("{sent:?}") };
    let mut stranger = frame.clone();
    stranger[29] = 77;
    fastpath::wire::testgen::refresh_ipv4_checksum(&mut stranger);
    let mut other_vni = frame.clone();
    other_vni[48] ^= 1;
    let mut no_flag = frame.clone();
    no_flag[42] = 0;
    let mut elsewhere = frame.clone();
    elsewhere[14 + 20 + 8 + 8 + 14 + 19] = 99;
    fastpath::wire::testgen::refresh_ipv4_checksum(&mut elsewhere[50..]);
    for bad in [&stranger, &other_vni, &no_flag] {
        b.send(UPLINK, bad);
        assert_eq!(b.run(), []);
    }
    // An address that no pod has: the sender is told, through the tunnel.
    b.send(UPLINK, &elsewhere);
    assert!(matches!(b.run().as_slice(), [(UPLINK, _)]));
    let want = [
        (DropReason::MalformedVxlan, 1),
        (DropReason::UnknownVtep, 1),
        (DropReason::WrongVni, 1),
        (DropReason::NoEndpoint, 1),
    ];
    assert_eq!(b.drops(), want.into());
    b.send(UPLINK, frame);
    assert!(matches!(b.run().as_slice(), [(p, _)] if *p == pod_port(1)));
}

#[test]
fn a_node_never_forwards_between_two_others() {
    let (mut a, mut b) = nodes(VXLAN4);
    // Node 1 believes that an address of its own pods' CIDR lives on node 2, which sends it back.
    let stray = Prefix::host(pod(false, 1, 50));
    a.publish(|s| s.routes.extend([(stray, Route::Tunnel(0))]));
    a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 1, 50), 1, 2)));
    assert_eq!(settle(&mut a, &mut b), []);
    assert_eq!(b.drops(), [(DropReason::TunnelNotLocal, 1)].into());
}

#[test]
fn unfinished_checksums_are_finished() {
    for v6 in [false, true] {
        for (name, spec, _) in conversations(pod(v6, 1, 1), pod(v6, 1, 2)) {
            let whole = from_pod(1, 1, spec.clone());
            let at = match spec.proto() {
                proto::TCP => 16,
                proto::UDP => 6,
                _ => continue,
            } + if v6 { 54 } else { 34 };
            let mut partial = whole.clone();
            let len = u32::try_from(whole.len() - if v6 { 54 } else { 34 }).unwrap();
            let sum = fastpath::wire::checksum::pseudo_header(spec.src, spec.dst, spec.proto(), len).fold();
            partial[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            let mut bed = Bed::new(snapshot(1, VXLAN4));
            bed.send(pod_port(1), &partial);
            assert_eq!(bed.run(), [(pod_port(2), delivered(&spec, mac(1, 2), 1))], "{name}");
            assert_eq!(bed.worker.stats().unwrap().checksums_finished.get(), 1);
        }
    }
}

#[test]
fn fragments_reach_their_pod() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    let mut whole =
        from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 1, 2), 5, 6).with_payload(vec![1u8; 64]));
    for (offset, more) in [(0u16, true), (9, false)] {
        let word = offset | if more { 0x2000 } else { 0 };
        whole[20..22].copy_from_slice(&word.to_be_bytes());
        fastpath::wire::testgen::refresh_ipv4_checksum(&mut whole);
        bed.send(pod_port(1), &whole);
        let got = bed.run();
        assert!(
            matches!(got.as_slice(), [(p, _)] if *p == pod_port(2)),
            "{offset}: {got:?} {:?}",
            bed.drops()
        );
    }
}
