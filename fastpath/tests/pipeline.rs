//! The whole graph over memory ports: two nodes, what each pod receives, what is dropped and how it is named.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use fastpath::graph::{DropReason, Event};
use fastpath::packet::{Ip, Mac, PortId, proto};
use fastpath::snapshot::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, Route};
use fastpath::tables::Prefix;
use fastpath::testbed::{
    Bed, PODS, UPLINK, Underlay, from_pod, mac, pod, pod_port, settle, snapshot, underlay,
};
use fastpath::wire::testgen::{Spec, Upper, mutated};
use fastpath::wire::{arp, eth, icmp, ipv4, tcp, vxlan};
use proptest::prelude::*;

const VXLAN4: Underlay = Underlay { encap: true, outer_v6: false };
const VXLAN6: Underlay = Underlay { encap: true, outer_v6: true };
const NATIVE: Underlay = Underlay { encap: false, outer_v6: false };

fn nodes(underlay: Underlay) -> (Bed, Bed) {
    (Bed::new(snapshot(1, underlay)), Bed::new(snapshot(2, underlay)))
}

/// Flows in the table, each of two entries.
fn flows(bed: &Bed) -> usize {
    bed.worker.flows().len() / 2
}

/// The protocols of a conversation between two pods: (name, packet there, packet back).
fn conversations(a: Ip, b: Ip) -> Vec<(&'static str, Spec, Spec)> {
    let (syn, syn_ack) = (tcp::control::SYN, tcp::control::SYN | tcp::control::ACK);
    let reply = |mut s: Spec| {
        if let Upper::Icmp(m) = &mut s.upper {
            m.kind = if a.is_v4() { icmp::v4::ECHO_REPLY } else { icmp::v6::ECHO_REPLY };
        }
        s
    };
    vec![
        ("udp", Spec::udp(a, b, 4000, 53), Spec::udp(b, a, 53, 4000)),
        ("tcp", Spec::tcp(a, b, 4001, 80, syn), Spec::tcp(b, a, 80, 4001, syn_ack)),
        ("sctp", Spec::sctp(a, b, 4002, 3868), Spec::sctp(b, a, 3868, 4002)),
        ("echo", Spec::echo(a, b, 77, 1), reply(Spec::echo(b, a, 77, 1))),
    ]
}

/// What a pod must receive of `sent`: the same IP packet with its TTL counted down `hops` times, from the gateway.
fn delivered(sent: &Spec, to: Mac, hops: u8) -> Vec<u8> {
    let mut want = sent.clone();
    want.ttl -= hops;
    want.src_mac = GATEWAY_MAC;
    want.dst_mac = to;
    want.build()
}

/// The IP packet without Ethernet padding.
fn ip(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

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
fn only_the_gateway_is_answered() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    let request = |target| {
        let r = arp::Repr {
            operation: arp::Operation::Request,
            sender_mac: mac(1, 1),
            sender_ip: pod(false, 1, 1),
            target_mac: Mac::default(),
            target_ip: target,
        };
        let mut out = vec![0; 42];
        assert_eq!(r.emit_frame(&mut out), Some(42));
        out
    };
    bed.send(pod_port(1), &request(GATEWAY_V4));
    let answers = bed.run();
    let [(port, answer)] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(*port, pod_port(1));
    let reply = arp::Repr::parse(&arp::Packet::new_checked(&answer[14..]).unwrap()).unwrap();
    assert_eq!((reply.sender_mac, reply.sender_ip), (GATEWAY_MAC, GATEWAY_V4));
    for other in [pod(false, 1, 2), pod(false, 2, 1), underlay(false, 1)] {
        bed.send(pod_port(1), &request(other));
        assert_eq!(bed.run(), [], "{other}");
    }
    assert_eq!(bed.drops(), [(DropReason::NotGateway, 3)].into());

    let solicit = |target: Ip| {
        let repr = smoltcp::wire::Icmpv6Repr::Ndisc(smoltcp::wire::NdiscRepr::NeighborSolicit {
            target_addr: std::net::Ipv6Addr::from(target.bits()),
            lladdr: Some(smoltcp::wire::RawHardwareAddress::from_bytes(&mac(1, 1).0)),
        });
        let (src, dst) =
            (std::net::Ipv6Addr::from(pod(true, 1, 1).bits()), std::net::Ipv6Addr::from(target.bits()));
        let mut frame = vec![0; 14 + 40 + repr.buffer_len()];
        frame[..6].copy_from_slice(&GATEWAY_MAC.0);
        frame[6..12].copy_from_slice(&mac(1, 1).0);
        frame[12..14].copy_from_slice(&eth::ethertype::IPV6.to_be_bytes());
        let mut ip = smoltcp::wire::Ipv6Packet::new_unchecked(&mut frame[14..]);
        smoltcp::wire::Ipv6Repr {
            src_addr: src,
            dst_addr: dst,
            next_header: smoltcp::wire::IpProtocol::Icmpv6,
            payload_len: repr.buffer_len(),
            hop_limit: 255,
        }
        .emit(&mut ip);
        let mut message = smoltcp::wire::Icmpv6Packet::new_unchecked(ip.payload_mut());
        repr.emit(&src, &dst, &mut message, &smoltcp::phy::ChecksumCapabilities::default());
        frame
    };
    bed.send(pod_port(1), &solicit(GATEWAY_V6));
    let answers = bed.run();
    let [(port, answer)] = answers.as_slice() else { panic!("{answers:?} {:?}", bed.drops()) };
    assert_eq!((*port, answer[..6].to_vec(), answer[54]), (pod_port(1), mac(1, 1).0.to_vec(), 136));
    bed.send(pod_port(1), &solicit(pod(true, 1, 2)));
    assert_eq!(bed.run(), []);
    assert_eq!(bed.drops(), [(DropReason::NotGateway, 4)].into());
}

/// The ICMP error in `frame`: source, destination, type, code.
fn error(frame: &[u8]) -> (Ip, Ip, u8, u8) {
    let p = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let at = |range: std::ops::Range<usize>| frame[range].to_vec();
    match p.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(_) => {
            let (src, dst) = (at(26..30).try_into().unwrap(), at(30..34).try_into().unwrap());
            (Ip::v4(src), Ip::v4(dst), frame[34], frame[35])
        }
        _ => {
            let (src, dst) = (at(22..38).try_into().unwrap(), at(38..54).try_into().unwrap());
            (Ip::v6(src), Ip::v6(dst), frame[54], frame[55])
        }
    }
}

#[test]
fn every_hop_of_a_traceroute_answers() {
    for v6 in [false, true] {
        let (mut a, mut b) = nodes(VXLAN4);
        let (exceeded, unreachable) = if v6 { (3, 1) } else { (11, 3) };
        for (ttl, hop) in [(1, underlay(v6, 1)), (2, underlay(v6, 2))] {
            a.advance(Duration::from_secs(1));
            b.advance(Duration::from_secs(1));
            let mut probe = Spec::udp(pod(v6, 1, 1), pod(v6, 2, 2), 40000, 33434 + u16::from(ttl));
            probe.ttl = ttl;
            a.send(pod_port(1), &from_pod(1, 1, probe));
            let got = settle(&mut a, &mut b);
            let [(1, port, frame)] = got.as_slice() else { panic!("ttl {ttl}: {got:?} {:?}", b.drops()) };
            assert_eq!(*port, pod_port(1));
            assert_eq!(error(frame), (hop, pod(v6, 1, 1), exceeded, 0));
            assert_eq!(frame[..6], mac(1, 1).0);
        }
        // And where nobody lives, the node says so.
        a.advance(Duration::from_secs(1));
        a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(v6, 1, 1), pod(v6, 1, 99), 1, 2)));
        let got = a.run();
        let [(_, frame)] = got.as_slice() else { panic!("{got:?}") };
        let (src, _, kind, _) = error(frame);
        assert_eq!((src, kind), (underlay(v6, 1), unreachable));
        assert_eq!(a.drops(), [(DropReason::TtlExceeded, 1), (DropReason::NoEndpoint, 1)].into());
    }
}

#[test]
fn what_does_not_fit_the_tunnel_is_told_its_mtu() {
    for (v6, underlay_is, mtu) in
        [(false, VXLAN4, 1450u16), (true, VXLAN4, 1450), (false, VXLAN6, 1430), (true, VXLAN6, 1430)]
    {
        let mut a = Bed::new(snapshot(1, underlay_is));
        a.advance(Duration::from_secs(1));
        let headers = if v6 { 48 } else { 28 };
        let big = |n: u16| {
            let mut s = Spec::udp(pod(v6, 1, 1), pod(v6, 2, 1), 1, 2);
            s = s.with_payload(vec![0u8; usize::from(n - headers)]);
            from_pod(1, 1, s)
        };
        a.send(pod_port(1), &big(mtu));
        assert!(matches!(a.run().as_slice(), [(UPLINK, _)]));
        a.send(pod_port(1), &big(mtu + 1));
        let got = a.run();
        let [(port, frame)] = got.as_slice() else { panic!("{got:?}") };
        assert_eq!(*port, pod_port(1));
        let told = if v6 {
            assert_eq!(error(frame).2, 2);
            u16::from_be_bytes([frame[60], frame[61]])
        } else {
            assert_eq!((error(frame).2, error(frame).3), (3, 4));
            u16::from_be_bytes([frame[40], frame[41]])
        };
        assert_eq!(told, mtu);
        assert_eq!(a.drops(), [(DropReason::MtuExceeded, 1)].into());
    }
}

#[test]
fn icmp_errors_are_limited_in_rate() {
    let mut a = Bed::new(snapshot(1, VXLAN4));
    a.publish(|s| s.settings.icmp_rate = 10);
    a.advance(Duration::from_secs(5));
    for n in 0..30 {
        a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 1, 99), 1, n)));
    }
    assert_eq!(a.run().len(), 10, "one second's worth, whatever time has passed");
    assert_eq!(a.drops(), [(DropReason::NoEndpoint, 30), (DropReason::IcmpRateLimited, 20)].into());
}

#[test]
#[cfg_attr(miri, ignore = "needs more frames than an interpreter is given")]
fn one_receiver_of_errors_does_not_take_them_from_others() {
    let mut a = Bed::new(snapshot(1, VXLAN4));
    a.advance(Duration::from_secs(5));
    let nowhere = |n, sport| from_pod(1, n, Spec::udp(pod(false, 1, n), pod(false, 1, 99), sport, 9));
    let big = |n| {
        let spec = Spec::udp(pod(false, 1, n), pod(false, 2, 1), 1, 2).with_payload(vec![0; 1440]);
        from_pod(1, n, spec)
    };
    let errors = |a: &mut Bed, n: u8| a.run().iter().filter(|(port, _)| *port == pod_port(n)).count();
    // Pod 1 has more than it may of both kinds.
    a.publish(|s| s.settings.icmp_rate = 800);
    for sport in 0..150 {
        assert!(a.send(pod_port(1), &nowhere(1, sport)) && a.send(pod_port(1), &big(1)));
    }
    assert_eq!(errors(&mut a, 1), 200);
    assert_eq!(a.drops()[&DropReason::IcmpRateLimited], 100);
    for n in 2..=4 {
        a.send(pod_port(n), &nowhere(n, 1));
        assert_eq!(errors(&mut a, n), 1);
        a.send(pod_port(n), &big(n));
        assert_eq!(errors(&mut a, n), 1);
    }
    // When refusals have used up all there are, "too big" is told still.
    a.publish(|s| s.settings.icmp_rate = 20);
    for sport in 0..100 {
        a.send(pod_port(2), &nowhere(2, sport));
    }
    assert_eq!(errors(&mut a, 2), 20);
    a.send(pod_port(3), &nowhere(3, 1));
    assert_eq!(errors(&mut a, 3), 0);
    a.send(pod_port(3), &big(3));
    assert_eq!(errors(&mut a, 3), 1);
}

#[test]
fn an_error_asks_for_the_neighbour_it_is_for() {
    let mut a = Bed::new(snapshot(1, NATIVE));
    a.publish(|s| {
        for hop in &mut s.next_hops {
            (hop.dst_mac, hop.addr) = (None, None);
        }
    });
    let mut spec = Spec::udp(pod(false, 2, 1), pod(false, 1, 99), 1, 2);
    (spec.src_mac, spec.dst_mac) = (mac(2, 0), mac(1, 0));
    a.send(UPLINK, &spec.build());
    assert_eq!(a.run(), []);
    let want = Event::Resolve { port: UPLINK, addr: pod(false, 2, 1) };
    assert_eq!(a.worker.events().collect::<Vec<_>>(), [want]);
}

#[test]
#[cfg_attr(miri, ignore = "needs more frames than an interpreter is given")]
fn a_scan_of_the_link_leaves_room_for_others_to_ask() {
    let mut a = Bed::new(snapshot(1, NATIVE));
    a.publish(|s| {
        for hop in &mut s.next_hops {
            (hop.dst_mac, hop.addr) = (None, None);
        }
    });
    let to = |n: u8, dst: u8| from_pod(1, n, Spec::udp(pod(false, 1, n), pod(false, 2, dst), 1, 2));
    for _ in 0..3 {
        for dst in 1..200 {
            a.send(pod_port(1), &to(1, dst));
        }
        for _ in 0..3 {
            a.send(pod_port(2), &to(2, 201));
        }
        a.run();
        let asked: Vec<Event> = a.worker.events().collect();
        let wanted = Event::Resolve { port: UPLINK, addr: pod(false, 2, 201) };
        assert_eq!(asked.iter().filter(|e| **e == wanted).count(), 1, "{}", asked.len());
        assert_eq!(asked.len(), 33);
        a.advance(Duration::from_millis(100));
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
fn a_new_generation_decides_flows_again() {
    for v6 in [false, true] {
        let mut bed = Bed::new(snapshot(1, VXLAN4));
        bed.advance(Duration::from_secs(1));
        let there = Spec::udp(pod(v6, 1, 1), pod(v6, 1, 2), 1, 2);
        let back = Spec::udp(pod(v6, 1, 2), pod(v6, 1, 1), 2, 1);
        bed.send(pod_port(1), &from_pod(1, 1, there.clone()));
        assert!(matches!(bed.run().as_slice(), [(p, _)] if *p == pod_port(2)));
        // The address moves to another pod: the established flow follows at once, in both directions.
        bed.publish(|s| {
            s.local.insert(pod(v6, 1, 2), pod_port(3));
            s.ports[3].as_mut().unwrap().addrs.push(pod(v6, 1, 2));
        });
        bed.send(pod_port(1), &from_pod(1, 1, there.clone()));
        assert!(matches!(bed.run().as_slice(), [(p, _)] if *p == pod_port(3)));
        bed.send(pod_port(3), &from_pod(1, 3, back));
        assert!(matches!(bed.run().as_slice(), [(p, _)] if *p == pod_port(1)));
        assert_eq!(flows(&bed), 1);
        // Then it goes away.
        bed.publish(|s| s.local.retain(|ip, _| *ip != pod(v6, 1, 2)));
        bed.send(pod_port(1), &from_pod(1, 1, there));
        let got = bed.run();
        assert!(matches!(got.as_slice(), [(p, _)] if *p == pod_port(1)), "an ICMP error: {got:?}");
        assert_eq!(bed.drops(), [(DropReason::NoEndpoint, 1)].into());
        assert_eq!(flows(&bed), 0);
    }
}

#[test]
fn icmp_errors_follow_the_flow_they_quote() {
    for v6 in [false, true] {
        let (mut a, mut b) = nodes(VXLAN4);
        let there = Spec::udp(pod(v6, 1, 1), pod(v6, 2, 1), 1000, 2000);
        a.send(pod_port(1), &from_pod(1, 1, there));
        let got = settle(&mut a, &mut b);
        let [(2, _, frame)] = got.as_slice() else { panic!("{got:?}") };
        // Pod 2/1 says "port unreachable" about what it got.
        let mut message = vec![0; 1280];
        let len = icmp::build_error(ip(frame), icmp::ErrorKind::PortUnreachable, pod(v6, 2, 1), &mut message)
            .unwrap();
        let as_frame = |packet: &[u8]| {
            let ethertype = if v6 { eth::ethertype::IPV6 } else { eth::ethertype::IPV4 };
            let mut f = [GATEWAY_MAC.0, mac(2, 1).0].concat();
            f.extend(ethertype.to_be_bytes());
            f.extend(packet);
            f
        };
        b.send(pod_port(1), &as_frame(&message[..len]));
        let got = settle(&mut a, &mut b);
        let [(1, port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", b.drops()) };
        assert_eq!(*port, pod_port(1));
        assert_eq!((error(frame).0, error(frame).1), (pod(v6, 2, 1), pod(v6, 1, 1)));
        // About a flow nobody has: dropped by name.
        let other = Spec::udp(pod(v6, 1, 1), pod(v6, 2, 1), 1, 2).build();
        let len =
            icmp::build_error(ip(&other), icmp::ErrorKind::PortUnreachable, pod(v6, 2, 1), &mut message)
                .unwrap();
        b.send(pod_port(1), &as_frame(&message[..len]));
        assert_eq!(settle(&mut a, &mut b), []);
        assert_eq!(b.drops(), [(DropReason::IcmpUnrelated, 1)].into());
    }
}

#[test]
fn mid_stream_segments_by_setting() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    bed.publish(|s| s.settings.tcp_pickup = false);
    let segment = |flags| from_pod(1, 1, Spec::tcp(pod(false, 1, 1), pod(false, 1, 2), 9, 80, flags));
    bed.send(pod_port(1), &segment(tcp::control::ACK));
    assert_eq!(bed.run(), []);
    assert_eq!(bed.drops(), [(DropReason::TcpNoFlow, 1)].into());
    for flags in [tcp::control::SYN, tcp::control::ACK] {
        bed.send(pod_port(1), &segment(flags));
        assert_eq!(bed.run().len(), 1);
    }
    let mut open = Bed::new(snapshot(1, VXLAN4));
    open.send(pod_port(1), &segment(tcp::control::ACK));
    assert_eq!(open.run().len(), 1);
}

#[test]
fn flows_time_out() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    bed.send(pod_port(1), &from_pod(1, 1, Spec::echo(pod(false, 1, 1), pod(false, 1, 2), 1, 1)));
    bed.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 1, 2), 1, 1)));
    bed.run();
    assert_eq!(flows(&bed), 2);
    // The sweep passes over the whole table within the time allowed for it.
    let (passes, apart) = if cfg!(miri) { (75, 1000) } else { (3000, 25) };
    for _ in 0..passes {
        bed.advance(Duration::from_millis(apart));
        bed.run();
    }
    assert_eq!(flows(&bed), 0);
    assert_eq!(bed.worker.stats().unwrap().flows_expired.get(), 2);
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

#[test]
fn only_a_destination_on_the_link_is_asked_for() {
    let to_b = || from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 2, 1), 1, 2));
    for (underlay, on_link, asked) in [
        (NATIVE, true, Some(pod(false, 2, 1))),
        (NATIVE, false, None),
        (VXLAN4, true, None),
        (VXLAN4, false, None),
    ] {
        let mut a = Bed::new(snapshot(1, underlay));
        a.publish(|s| {
            for hop in &mut s.next_hops {
                hop.dst_mac = None;
                hop.addr = hop.addr.filter(|_| !on_link);
            }
        });
        a.send(pod_port(1), &to_b());
        assert_eq!(a.run(), []);
        assert_eq!(a.drops(), [(DropReason::NeighborUnresolved, 1)].into());
        let want = asked.map(|addr| Event::Resolve { port: UPLINK, addr });
        assert_eq!(a.worker.events().collect::<Vec<_>>(), want.into_iter().collect::<Vec<_>>());
        a.publish(|s| s.next_hops.iter_mut().for_each(|h| h.dst_mac = Some(mac(2, 0))));
        a.send(pod_port(1), &to_b());
        assert_eq!(a.run().len(), 1);
        assert_eq!(a.worker.events().count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes in by whatever port: nothing panics, no frame is lost, and each is sent or dropped by name.
    #[test]
    fn every_frame_is_accounted_for(frames in prop::collection::vec((0u16..=u16::from(PODS), mutated()), 1..64)) {
        let mut bed = Bed::new(snapshot(1, VXLAN4));
        let free = bed.free_frames();
        let mut sent = 0u64;
        for (port, frame) in &frames {
            sent += u64::from(bed.send(PortId(*port), frame));
        }
        let mut got = bed.run();
        // Fragments are held until it is clear that their first one does not come.
        bed.advance(Duration::from_secs(2));
        got.extend(bed.run());
        for (_, frame) in &got {
            prop_assert!(frame.len() >= 14);
            if frame[12..14] == [8, 0] {
                prop_assert!(ipv4::Packet::new_checked(&frame[14..]).is_ok());
            }
        }
        let dropped: u64 = bed.drops().values().sum();
        let errors = bed.worker.stats().unwrap().icmp_errors.get();
        let limited = bed.drops().get(&DropReason::IcmpRateLimited).copied().unwrap_or(0);
        // A dropped packet that was answered left as its answer.
        prop_assert_eq!(sent, got.len() as u64 + dropped - errors - limited);
        prop_assert_eq!(bed.free_frames(), free);
    }
}
