//! ICMP errors: of every hop, of what does not fit, limited in rate, and of flows they quote.

use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::snapshot::GATEWAY_MAC;
use fastpath::testbed::{Bed, UPLINK, from_pod, mac, pod, pod_port, settle, snapshot, underlay};
use fastpath::wire::testgen::Spec;
use fastpath::wire::{eth, icmp};

use crate::{VXLAN4, VXLAN6, error, ip, nodes};

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
