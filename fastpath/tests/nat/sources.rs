//! Sources that become the node's: who is given which port, and who gives way.

use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::packet::FlowKey;
use fastpath::tables::service::Backend;
use fastpath::testbed::{Bed, UPLINK, from_pod, pod, pod_port, underlay};
use fastpath::wire::testgen::{Spec, Upper};

use crate::world::{self, answer, bed, client, from_outside, node_port, seen, service, set_services, vip};
use crate::{ACK, SYN, openings};

#[test]
fn pods_reach_the_outside_by_the_nodes_address() {
    for v6 in [false, true] {
        let mut a = bed(1);
        let mut opens = openings(pod(v6, 1, 1), client(v6, 9), 4000, 53);
        opens.push(Spec::echo(pod(v6, 1, 1), client(v6, 9), 77, 1));
        for open in opens {
            a.send(pod_port(1), &from_pod(1, 1, open.clone()));
            let got = a.run();
            let [(UPLINK, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
            let key = seen(frame);
            assert_eq!((key.src, key.dst), (underlay(v6, 1), client(v6, 9)));
            assert!((40_000..=56_383).contains(&key.sport), "{key}");
            a.send(UPLINK, &answer(frame));
            let got = a.run();
            let [(port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
            assert_eq!(*port, pod_port(1));
            assert_eq!(seen(frame), world::key(&open).reversed());
        }
        // What nobody asked for is nobody's.
        a.send(UPLINK, &from_outside(1, Spec::udp(client(v6, 9), underlay(v6, 1), 53, 40_001)));
        assert_eq!(a.run(), []);
        assert_eq!(a.drops(), [(DropReason::NatNoFlow, 1)].into());
        a.send(pod_port(1), &from_pod(1, 1, Spec::new(pod(v6, 1, 1), client(v6, 9), Upper::Other(47))));
        assert_eq!(a.run(), []);
        assert_eq!(a.drops()[&DropReason::SnatProtocol], 1);
    }
}

#[test]
fn a_syn_from_outside_ends_no_masked_connection() {
    let mut a = bed(1);
    a.send(pod_port(1), &from_pod(1, 1, Spec::tcp(pod(false, 1, 1), client(false, 9), 4000, 443, SYN)));
    let masked = seen(&a.run()[0].1);
    let back = masked.reversed();
    let segment = |flags| from_outside(1, Spec::tcp(back.src, back.dst, back.sport, back.dport, flags));
    a.send(UPLINK, &segment(SYN | ACK));
    assert_eq!(a.run().len(), 1);
    a.send(UPLINK, &segment(SYN));
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::NatNoFlow, 1)].into());
    a.send(UPLINK, &segment(ACK));
    assert_eq!(a.run().len(), 1);
}

#[test]
fn a_search_without_end_is_not_begun_by_each_packet() {
    let backend = Backend { addr: pod(false, 1, 2), port: 8080 };
    let mut a = bed(1);
    a.publish(|s| {
        let mut snat = (*s.snat).clone();
        (snat.first, snat.last) = (50_000, 50_299);
        s.snat = snat.into();
    });
    set_services(&a, &[service(vip(false, 1), 80, vec![backend])]);
    // Every port that a flow to the backend could have is taken by one of the pod's own.
    let direct = |sport| from_pod(1, 1, Spec::udp(pod(false, 1, 1), backend.addr, sport, 8080));
    for sport in (50_000..50_300).chain([4000]) {
        a.send(pod_port(1), &direct(sport));
        assert_eq!(a.run().len(), 1);
    }
    let through = |sport| from_pod(1, 1, Spec::udp(pod(false, 1, 1), vip(false, 1), sport, 80));
    a.send(pod_port(1), &through(4000));
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::SnatExhausted, 1)].into());
    // One becomes free (the pod's flow ends with its pod's route), but for a moment nobody looks.
    let free = FlowKey { sport: 50_007, ..seen(&direct(0)) };
    let seed = a.worker.flows().seed();
    let hit = a.worker.flows().lookup(&free, free.hash(seed), fastpath::tables::flow::Millis(0)).unwrap();
    assert!(a.worker.flows().remove(hit.at));
    a.send(pod_port(1), &through(4000));
    assert_eq!(a.run(), [], "the range is not searched again at once");
    // A port of its own that is free is taken even then.
    a.send(pod_port(1), &through(4001));
    assert_eq!(a.run().len(), 1);
    a.advance(Duration::from_millis(20));
    a.send(pod_port(1), &through(4000));
    let got = a.run();
    assert_eq!(seen(&got[0].1).sport, 50_007);
}

#[test]
fn what_a_socket_of_the_node_is_bound_to_is_given_to_nobody() {
    let bind = |a: &Bed, port| {
        a.publish(|s| {
            let mut snat = (*s.snat).clone();
            snat.bound_udp = vec![port];
            s.snat = snat.into();
        });
    };
    for v6 in [false, true] {
        let query = |n, sport| from_pod(1, 1, Spec::udp(pod(v6, 1, 1), client(v6, n), sport, 53));
        let syn = from_pod(1, 1, Spec::tcp(pod(v6, 1, 1), client(v6, 9), 4000, 80, SYN));
        let mut a = bed(1);
        a.send(pod_port(1), &query(9, 4000));
        let port = seen(&a.run()[0].1).sport;
        bind(&a, port);
        // The flow there was ends, its next packet begins another: those are answered.
        a.send(pod_port(1), &query(9, 4000));
        assert_eq!(a.run(), []);
        assert_eq!(a.drops(), [(DropReason::NatNoFlow, 1)].into());
        for n in [9, 10] {
            a.send(pod_port(1), &query(n, 4000));
            let (_, frame) = a.run().remove(0);
            assert_ne!(seen(&frame).sport, port);
            a.send(UPLINK, &answer(&frame));
            assert_eq!(a.run()[0].0, pod_port(1));
        }
        // TCP's ports are others.
        a.send(pod_port(1), &syn);
        let port = seen(&a.run()[0].1).sport;
        bind(&a, port);
        a.send(pod_port(1), &syn);
        assert_eq!(seen(&a.run()[0].1).sport, port);
    }
}

#[test]
fn what_nobody_answers_gives_way_when_no_port_is_left() {
    for v6 in [false, true] {
        let mut a = bed(1);
        a.publish(|s| {
            let mut snat = (*s.snat).clone();
            (snat.first, snat.last) = (50_000, 50_007);
            s.snat = snat.into();
        });
        let query = |n, sport| from_pod(1, n, Spec::udp(pod(v6, 1, n), client(v6, 9), sport, 53));
        // One is answered; the others fill the range.
        a.send(pod_port(2), &query(2, 7));
        let answered = a.run().remove(0).1;
        a.send(UPLINK, &answer(&answered));
        assert_eq!(a.run().len(), 1);
        for sport in 1..=7 {
            a.send(pod_port(1), &query(1, sport));
            assert_eq!(a.run().len(), 1);
        }
        a.advance(Duration::from_millis(1900));
        a.send(pod_port(3), &query(3, 1));
        assert_eq!(a.run(), [], "they may be answered yet");
        assert_eq!(a.drops(), [(DropReason::SnatExhausted, 1)].into());
        a.advance(Duration::from_millis(200));
        let mut ports = Vec::new();
        for sport in 1..=7 {
            a.send(pod_port(3), &query(3, sport));
            let got = a.run();
            assert_eq!(got.len(), 1, "{sport} {:?}", a.drops());
            ports.push(seen(&got[0].1).sport);
        }
        ports.push(seen(&answered).sport);
        ports.sort_unstable();
        assert_eq!(
            ports,
            (50_000..=50_007).collect::<Vec<_>>(),
            "each one's own, and none of the answered one"
        );
        a.send(UPLINK, &answer(&answered));
        assert_eq!(a.run()[0].0, pod_port(2));
    }
}

#[test]
fn without_a_way_back_nothing_is_translated() {
    let mut a = bed(1);
    set_services(&a, &[node_port(true, 30_080, vec![Backend { addr: pod(true, 1, 1), port: 80 }])]);
    a.publish(|s| {
        let default = fastpath::tables::Prefix::new("::".parse().unwrap(), 0).unwrap();
        let kept: Vec<_> = s.routes.iter().filter(|(p, _)| *p != default).map(|(p, r)| (p, *r)).collect();
        s.routes = kept.into_iter().collect();
    });
    a.send(UPLINK, &from_outside(1, Spec::udp(client(true, 7), underlay(true, 1), 5555, 30_080)));
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::NoRoute, 1)].into());
}
