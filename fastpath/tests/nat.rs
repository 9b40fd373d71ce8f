//! Services and source translation over memory ports: what each end sees, and that every reply finds its way back.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

#[allow(unreachable_pub, dead_code, reason = "shared by test programs, each of which uses a part")]
mod world;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::packet::{FlowKey, Ip, proto};
use fastpath::snapshot::GATEWAY_V4;
use fastpath::tables::service::Backend;
use fastpath::testbed::{Bed, UPLINK, from_pod, pod, pod_port, settle, underlay};
use fastpath::wire::testgen::{Spec, Upper};
use fastpath::wire::{icmp, tcp};
use proptest::prelude::*;
use world::{Service, answer, bed, client, from_outside, node_port, seen, service, set_services, vip};

const SYN: u8 = tcp::control::SYN;
const ACK: u8 = tcp::control::ACK;

/// A first packet of each protocol with ports.
fn openings(src: Ip, dst: Ip, sport: u16, dport: u16) -> Vec<Spec> {
    vec![
        Spec::tcp(src, dst, sport, dport, SYN),
        Spec::udp(src, dst, sport, dport).with_payload(*b"query"),
        Spec::sctp(src, dst, sport, dport),
    ]
}

#[test]
fn a_cluster_ip_is_its_backend_both_ways() {
    for v6 in [false, true] {
        for (node, n) in [(1, 2), (2, 3)] {
            let backend = Backend { addr: pod(v6, node, n), port: 8080 };
            let (mut a, mut b) = (bed(1), bed(2));
            set_services(&a, &[service(vip(v6, 1), 80, vec![backend])]);
            for open in openings(pod(v6, 1, 1), vip(v6, 1), 4000, 80) {
                a.send(pod_port(1), &from_pod(1, 1, open.clone()));
                let got = settle(&mut a, &mut b);
                let [(at, port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
                assert_eq!((*at, *port), (node, pod_port(n)));
                let key = seen(frame);
                let want = FlowKey { dst: backend.addr, dport: 8080, ..world::key(&open) };
                assert_eq!(key, want, "the source is kept");
                let back = answer(frame);
                if node == 1 {
                    a.send(*port, &back)
                } else {
                    b.send(*port, &back)
                };
                let got = settle(&mut a, &mut b);
                let [(1, port, frame)] = got.as_slice() else { panic!("{got:?}") };
                assert_eq!(*port, pod_port(1));
                assert_eq!(seen(frame), world::key(&open).reversed(), "as if the service had answered");
            }
            assert_eq!((a.drops(), b.drops()), (BTreeMap::new(), BTreeMap::new()));
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for v6 in [false, true] {
        let mut a = bed(1);
        set_services(&a, &[service(vip(v6, 1), 80, vec![Backend { addr: pod(v6, 1, 1), port: 8080 }])]);
        let open = Spec::tcp(pod(v6, 1, 1), vip(v6, 1), 4000, 80, SYN);
        a.send(pod_port(1), &from_pod(1, 1, open.clone()));
        let got = a.run();
        let [(port, frame)] = got.as_slice() else { panic!("{got:?}") };
        assert_eq!(*port, pod_port(1));
        let got = seen(frame);
        // The gateway's address of IPv6 is link-local, which not every socket can answer.
        let (src, sport) = if v6 { (underlay(true, 1), got.sport) } else { (GATEWAY_V4, 4000) };
        let want = FlowKey { src, sport, dst: pod(v6, 1, 1), dport: 8080, ..world::key(&open) };
        assert_eq!(got, want);
        a.send(pod_port(1), &answer(frame));
        let got = a.run();
        assert_eq!(seen(&got[0].1), world::key(&open).reversed());
    }
}

#[test]
fn refusals_are_told() {
    for v6 in [false, true] {
        let mut a = bed(1);
        set_services(&a, &[service(vip(v6, 1), 80, vec![])]);
        let cases = [(80, DropReason::NoBackend), (81, DropReason::ServicePortUnknown)];
        for (n, (dport, reason)) in (0u16..).zip(cases) {
            let open = Spec::tcp(pod(v6, 1, 1), vip(v6, 1), 4000 + n, dport, SYN);
            a.send(pod_port(1), &from_pod(1, 1, open.clone()));
            let got = a.run();
            let [(port, frame)] = got.as_slice() else { panic!("{got:?}") };
            assert_eq!((*port, seen(frame)), (pod_port(1), world::key(&open).reversed()));
            assert_eq!(world::tcp_flags(frame) & tcp::control::RST, tcp::control::RST);
            assert_eq!(a.drops()[&reason], 1);
            a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(v6, 1, 1), vip(v6, 1), 4000 + n, dport)));
            let got = a.run();
            let (kind, code) = world::icmp_kind(&got[0].1);
            assert_eq!((kind, code), if v6 { (1, 4) } else { (3, 3) }, "port unreachable");
            assert_eq!(a.drops()[&reason], 2);
        }
    }
}

#[test]
fn an_outside_client_uses_node_ports() {
    for v6 in [false, true] {
        for (local_only, node, n) in [(false, 1, 1), (false, 2, 1), (true, 1, 1)] {
            let (mut a, mut b) = (bed(1), bed(2));
            let backend = Backend { addr: pod(v6, node, n), port: 8080 };
            let local = if node == 1 { vec![backend] } else { vec![] };
            set_services(&a, &[Service { local_only, local, ..node_port(v6, 30_080, vec![backend]) }]);
            let open = Spec::tcp(client(v6, 7), underlay(v6, 1), 5555, 30_080, SYN);
            assert!(a.send(UPLINK, &from_outside(1, open.clone())));
            let got = settle(&mut a, &mut b);
            let [(at, port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
            assert_eq!((*at, *port), (node, pod_port(n)));
            let key = seen(frame);
            assert_eq!((key.dst, key.dport), (backend.addr, 8080));
            if local_only {
                assert_eq!((key.src, key.sport), (client(v6, 7), 5555), "the source is kept");
            } else {
                assert_eq!(key.src, underlay(v6, 1));
                assert!((40_000..=56_383).contains(&key.sport));
            }
            let bed = if node == 1 { &mut a } else { &mut b };
            bed.send(*port, &answer(frame));
            let out = world::cross(&mut a, &mut b);
            let [frame] = out.as_slice() else { panic!("{out:?} {:?} {:?}", a.drops(), b.drops()) };
            assert_eq!(seen(frame), world::key(&open).reversed(), "the node port answers");
        }
    }
}

#[test]
fn another_node_uses_node_ports_without_its_tunnel() {
    for v6 in [false, true] {
        for node in [1, 2] {
            let (mut a, mut b) = (bed(1), bed(2));
            let backend = Backend { addr: pod(v6, node, 1), port: 8080 };
            set_services(&a, &[node_port(v6, 30_080, vec![backend])]);
            // As its host sends it: from the address that pods are reached at by the tunnel.
            let open = Spec::tcp(underlay(v6, 2), underlay(v6, 1), 5555, 30_080, SYN);
            a.send(UPLINK, &from_outside(1, open.clone()));
            let got = settle(&mut a, &mut b);
            let [(at, port, frame)] = got.as_slice() else {
                panic!("{got:?} {:?} {:?}", a.drops(), b.drops())
            };
            assert_eq!((*at, *port, seen(frame).src), (node, pod_port(1), underlay(v6, 1)));
            let bed = if node == 1 { &mut a } else { &mut b };
            bed.send(*port, &answer(frame));
            let out = loop {
                let sent = b.run();
                assert!(sent.iter().all(|(_, frame)| a.send(UPLINK, frame)));
                let out = a.run();
                if sent.is_empty() || !out.is_empty() {
                    break out;
                }
            };
            let [(UPLINK, frame)] = out.as_slice() else { panic!("{out:?} {:?} {:?}", a.drops(), b.drops()) };
            assert_eq!(seen(frame), world::key(&open).reversed(), "past the tunnel, as it came");
            // To a pod it has to come by the tunnel.
            a.send(UPLINK, &from_outside(1, Spec::tcp(underlay(v6, 2), pod(v6, 1, 2), 5555, 80, SYN)));
            assert_eq!(a.run(), []);
            assert_eq!(a.drops(), [(DropReason::SourceWrongWay, 1)].into());
        }
    }
}

#[test]
fn local_only_without_a_local_backend_drops_what_comes_from_outside() {
    let backend = Backend { addr: pod(false, 2, 1), port: 8080 };
    let (mut a, mut b) = (bed(1), bed(2));
    set_services(&a, &[Service { local_only: true, ..node_port(false, 30_080, vec![backend]) }]);
    a.send(UPLINK, &from_outside(1, Spec::tcp(client(false, 7), underlay(false, 1), 5555, 30_080, SYN)));
    assert_eq!(settle(&mut a, &mut b), []);
    assert_eq!(a.drops(), [(DropReason::NoLocalBackend, 1)].into());
    // A client of the cluster is not held to it.
    a.send(pod_port(1), &from_pod(1, 1, Spec::tcp(pod(false, 1, 1), underlay(false, 1), 1, 30_080, SYN)));
    assert_eq!(settle(&mut a, &mut b).len(), 1);
}

#[test]
fn only_admitted_clients_use_a_load_balancer() {
    let backend = Backend { addr: pod(false, 1, 1), port: 8080 };
    let mut a = bed(1);
    let lb = Service {
        external: true,
        ranges: vec![(client(false, 0).into(), 24)],
        ..service(vip(false, 9), 80, vec![backend])
    };
    set_services(&a, &[lb]);
    for (src, sent) in [(client(false, 3), 1), (Ip::v4([8, 8, 8, 8]), 0)] {
        a.send(UPLINK, &from_outside(1, Spec::tcp(src, vip(false, 9), 5555, 80, SYN)));
        assert_eq!(a.run().len(), sent);
    }
    assert_eq!(a.drops(), [(DropReason::SourceRangeDenied, 1)].into());
}

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
fn a_client_keeps_its_backend_until_it_was_idle_too_long() {
    let backends: Vec<Backend> = (1..=3).map(|n| Backend { addr: pod(false, 1, n), port: 80 }).collect();
    let mut a = bed(1);
    let sticky = Service { affinity_ms: 60_000, ..service(vip(false, 1), 80, backends.clone()) };
    set_services(&a, std::slice::from_ref(&sticky));
    let backend_of = |a: &mut Bed, sport: u16| {
        a.send(pod_port(4), &from_pod(1, 4, Spec::udp(pod(false, 1, 4), vip(false, 1), sport, 80)));
        seen(&a.run()[0].1).dst
    };
    let first = backend_of(&mut a, 1);
    for sport in 2..40 {
        assert_eq!(backend_of(&mut a, sport), first);
    }
    // Backends come: it stays, although its hash may say another by now.
    let more = (1..=4).map(|n| Backend { addr: pod(false, 2, n), port: 80 });
    let grown = Service { all: backends.iter().copied().chain(more).collect(), ..sticky.clone() };
    set_services(&a, &[grown]);
    for sport in 40..60 {
        assert_eq!(backend_of(&mut a, sport), first);
    }
    // Its backend goes: another one, and that one stays.
    let rest: Vec<Backend> = backends.into_iter().filter(|b| b.addr != first).collect();
    set_services(&a, &[Service { all: rest, ..sticky }]);
    let second = backend_of(&mut a, 60);
    assert_ne!(second, first);
    assert_eq!(backend_of(&mut a, 61), second);
}

#[test]
fn a_service_that_comes_late_gets_its_datagrams() {
    let mut a = bed(1);
    a.advance(Duration::from_secs(1));
    let query = from_pod(1, 1, Spec::udp(pod(false, 1, 1), vip(false, 1), 4000, 53));
    a.send(pod_port(1), &query);
    assert_eq!(a.run()[0].0, UPLINK, "nobody knows the address yet");
    set_services(&a, &[service(vip(false, 1), 53, vec![Backend { addr: pod(false, 1, 2), port: 53 }])]);
    a.send(pod_port(1), &query);
    assert_eq!(a.run()[0].0, pod_port(2));
}

#[test]
fn flows_end_with_their_backend() {
    for v6 in [false, true] {
        let one = Backend { addr: pod(v6, 1, 2), port: 80 };
        let two = Backend { addr: pod(v6, 1, 3), port: 80 };
        let mut a = bed(1);
        a.advance(Duration::from_secs(1));
        set_services(&a, &[service(vip(v6, 1), 80, vec![one])]);
        let segment = |flags| from_pod(1, 1, Spec::tcp(pod(v6, 1, 1), vip(v6, 1), 4000, 80, flags));
        let datagram = from_pod(1, 1, Spec::udp(pod(v6, 1, 1), vip(v6, 1), 4000, 80));
        for frame in [segment(SYN), datagram.clone()] {
            a.send(pod_port(1), &frame);
            assert_eq!(a.run()[0].0, pod_port(2));
        }
        // It terminates: its flows go on, new ones go elsewhere.
        set_services(&a, &[Service { terminating: vec![one], ..service(vip(v6, 1), 80, vec![two]) }]);
        for frame in [segment(ACK), datagram.clone()] {
            a.send(pod_port(1), &frame);
            assert_eq!(a.run()[0].0, pod_port(2));
        }
        a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(v6, 1, 1), vip(v6, 1), 4001, 80)));
        assert_eq!(a.run()[0].0, pod_port(3));
        // It is not ready any more: connections go on, datagrams move.
        set_services(&a, &[Service { unready: vec![one], ..service(vip(v6, 1), 80, vec![two]) }]);
        for (frame, to) in [(segment(ACK), 2), (datagram.clone(), 3)] {
            a.send(pod_port(1), &frame);
            assert_eq!(a.run()[0].0, pod_port(to));
        }
        // It is gone: the connection is reset.
        set_services(&a, &[service(vip(v6, 1), 80, vec![two])]);
        a.send(pod_port(1), &segment(ACK));
        let got = a.run();
        let [(port, frame)] = got.as_slice() else { panic!("{got:?}") };
        assert_eq!((*port, world::tcp_flags(frame) & tcp::control::RST), (pod_port(1), tcp::control::RST));
        assert_eq!(seen(frame).src, vip(v6, 1));
        assert_eq!(a.drops(), [(DropReason::BackendGone, 1)].into());
    }
}

#[test]
fn a_connection_after_the_end_of_one_takes_a_current_backend() {
    for v6 in [false, true] {
        for reset in [false, true] {
            let one = Backend { addr: pod(v6, 1, 2), port: 80 };
            let two = Backend { addr: pod(v6, 1, 3), port: 80 };
            let mut a = bed(1);
            set_services(&a, &[service(vip(v6, 1), 80, vec![one])]);
            let segment = |flags| from_pod(1, 1, Spec::tcp(pod(v6, 1, 1), vip(v6, 1), 4000, 80, flags));
            let from_backend =
                |n, flags| from_pod(1, n, Spec::tcp(pod(v6, 1, n), pod(v6, 1, 1), 80, 4000, flags));
            let fin = tcp::control::FIN | ACK;
            let mut frames = vec![(1, segment(SYN)), (2, from_backend(2, SYN | ACK)), (1, segment(ACK))];
            if reset {
                frames.push((1, segment(tcp::control::RST)));
            } else {
                frames.extend([(1, segment(fin)), (2, from_backend(2, fin)), (1, segment(ACK))]);
            }
            for (n, frame) in frames {
                a.send(pod_port(n), &frame);
                assert_eq!(a.run().len(), 1);
            }
            // The backend is there still, but takes no new connections.
            set_services(&a, &[Service { unready: vec![one], ..service(vip(v6, 1), 80, vec![two]) }]);
            a.send(pod_port(1), &segment(SYN));
            let got = a.run();
            let [(port, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
            assert_eq!((*port, seen(frame).dst), (pod_port(3), two.addr), "reset={reset}");
            a.send(pod_port(3), &from_backend(3, SYN | ACK));
            let got = a.run();
            assert_eq!(seen(&got[0].1).src, vip(v6, 1));
            // And what is narrowed meanwhile holds for it.
            a.send(pod_port(1), &segment(tcp::control::RST));
            assert_eq!(a.run().len(), 1);
            let narrowed =
                Service { ranges: vec![(client(v6, 0).into(), 24)], ..service(vip(v6, 1), 80, vec![two]) };
            set_services(&a, &[narrowed]);
            a.send(pod_port(1), &segment(SYN));
            assert_eq!(a.run(), []);
            assert_eq!(a.drops(), [(DropReason::SourceRangeDenied, 1)].into());
        }
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

#[test]
fn only_cluster_addresses_are_nobody_elses() {
    // A machine outside that has an external address: what is no port of the service's is its own.
    let mut a = bed(1);
    let (own, external) = (vip(false, 1), client(false, 50));
    let backend = Backend { addr: pod(false, 1, 2), port: 80 };
    let outer = Service { external: true, ..service(external, 80, vec![backend]) };
    set_services(&a, &[service(own, 80, vec![backend]), outer]);
    for (to, dport, port) in
        [(own, 80, Some(pod_port(2))), (external, 80, Some(pod_port(2))), (external, 22, Some(UPLINK))]
    {
        a.send(pod_port(1), &from_pod(1, 1, Spec::tcp(pod(false, 1, 1), to, 4000 + dport, dport, SYN)));
        assert_eq!(a.run().first().map(|(p, _)| *p), port, "{to:?} {dport}");
    }
    assert_eq!(a.drops(), BTreeMap::new());
    a.send(pod_port(1), &from_pod(1, 1, Spec::tcp(pod(false, 1, 1), own, 4000, 22, SYN)));
    assert_eq!(a.run().len(), 1, "a reset");
    assert_eq!(a.drops(), [(DropReason::ServicePortUnknown, 1)].into());
}

#[test]
fn an_outside_client_that_is_the_backend_is_masked() {
    for v6 in [false, true] {
        let mut a = bed(1);
        set_services(&a, &[node_port(v6, 30_080, vec![Backend { addr: client(v6, 7), port: 8080 }])]);
        let open = Spec::tcp(client(v6, 7), underlay(v6, 1), 5555, 30_080, SYN);
        a.send(UPLINK, &from_outside(1, open.clone()));
        let got = a.run();
        let [(UPLINK, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
        assert_eq!((seen(frame).src, seen(frame).dst), (underlay(v6, 1), client(v6, 7)));
        a.send(UPLINK, &world::to_uplink(1, answer(frame)));
        assert_eq!(seen(&a.run()[0].1), world::key(&open).reversed());
    }
}

#[test]
fn local_only_without_any_backend_is_refused() {
    let mut a = bed(1);
    set_services(&a, &[Service { local_only: true, ..node_port(false, 30_080, vec![]) }]);
    a.send(UPLINK, &from_outside(1, Spec::tcp(client(false, 7), underlay(false, 1), 5555, 30_080, SYN)));
    let got = a.run();
    let [(UPLINK, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
    assert_eq!(world::tcp_flags(frame) & tcp::control::RST, tcp::control::RST);
    assert_eq!(a.drops(), [(DropReason::NoBackend, 1)].into());
}

#[test]
fn a_wrong_sctp_checksum_is_not_mended() {
    let mut a = bed(1);
    let same = service(vip(false, 1), 80, vec![Backend { addr: pod(false, 1, 2), port: 80 }]);
    let other = service(vip(false, 2), 80, vec![Backend { addr: pod(false, 1, 2), port: 8080 }]);
    set_services(&a, &[same, other]);
    let sctp = |n: u8, sport| from_pod(1, 1, Spec::sctp(pod(false, 1, 1), vip(false, n), sport, 80));
    let damaged = |n, sport| {
        let mut frame = sctp(n, sport);
        // The verification tag.
        frame[40] ^= 1;
        frame
    };
    // Its ports change: it would have to be computed anew.
    a.send(pod_port(1), &damaged(2, 1000));
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::MalformedTransport, 1)].into());
    // They do not: the receiver sees what was sent.
    a.send(pod_port(1), &damaged(1, 1001));
    let got = a.run();
    assert_eq!(got[0].1[34..], damaged(1, 1001)[34..]);
    // One that the pod's kernel left to hardware.
    let mut unfinished = sctp(2, 1002);
    unfinished[42..46].fill(0);
    a.send(pod_port(1), &unfinished);
    assert_eq!(seen(&a.run()[0].1).dport, 8080);
}

#[test]
fn icmp_errors_are_translated_inside_and_out() {
    for v6 in [false, true] {
        let backend = Backend { addr: pod(v6, 1, 2), port: 8080 };
        let mut a = bed(1);
        set_services(&a, &[service(vip(v6, 1), 80, vec![backend])]);
        for open in openings(pod(v6, 1, 1), vip(v6, 1), 4000, 80) {
            a.send(pod_port(1), &from_pod(1, 1, open.clone()));
            let got = a.run();
            // The backend says that nothing listens; a router says the packet is too big.
            let cases = [(icmp::ErrorKind::PortUnreachable, backend.addr, vip(v6, 1))];
            for (kind, from, want) in cases {
                a.send(pod_port(2), &world::error_about(&got[0].1, kind, from));
                let out = a.run();
                let [(port, frame)] = out.as_slice() else { panic!("{out:?} {:?}", a.drops()) };
                assert_eq!(*port, pod_port(1));
                let (src, dst, quoted) = world::error(frame);
                assert_eq!((src, dst), (want, pod(v6, 1, 1)));
                assert_eq!(quoted, world::key(&open), "as it was sent");
            }
        }
        // Behind source NAT: from a router on the way, which keeps its address.
        let mut opens = openings(pod(v6, 1, 1), client(v6, 9), 4000, 53);
        opens.push(Spec::echo(pod(v6, 1, 1), client(v6, 9), 77, 1));
        for open in opens {
            a.send(pod_port(1), &from_pod(1, 1, open.clone()));
            let got = a.run();
            let router = client(v6, 200);
            let error = world::error_about(&got[0].1, icmp::ErrorKind::FragNeeded { mtu: 1300 }, router);
            a.send(UPLINK, &world::to_uplink(1, error));
            let out = a.run();
            let [(port, frame)] = out.as_slice() else { panic!("{out:?} {:?}", a.drops()) };
            assert_eq!(*port, pod_port(1));
            let (src, dst, quoted) = world::error(frame);
            assert_eq!((src, dst, quoted), (router, pod(v6, 1, 1), world::key(&open)));
        }
        assert_eq!(a.drops(), BTreeMap::new());
    }
}

#[test]
fn an_error_with_a_wrong_checksum_is_not_mended() {
    let mut a = bed(1);
    a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), client(false, 9), 1, 2)));
    let got = a.run();
    let error = world::error_about(&got[0].1, icmp::ErrorKind::PortUnreachable, client(false, 9));
    let mut frame = world::to_uplink(1, error);
    frame[36] ^= 1;
    a.send(UPLINK, &frame);
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::MalformedTransport, 1)].into());
}

/// A first packet of some flow.
#[derive(Clone, Debug)]
struct Open {
    v6: bool,
    from: u8,
    /// 0: outside; 1..=2: a service; 3: from outside to a node port.
    to: u8,
    proto: u8,
    sport: u16,
    dport: u8,
}

fn opens() -> impl Strategy<Value = Vec<Open>> {
    let open = (any::<bool>(), 1u8..=4, 0u8..4, 0u8..4, 0u16..6, 0u8..3)
        .prop_map(|(v6, from, to, proto, sport, dport)| Open { v6, from, to, proto, sport, dport });
    prop::collection::vec(open, 1..120)
}

impl Open {
    fn spec(&self) -> Spec {
        let (src, dst, dport) = match self.to {
            0 => (pod(self.v6, 1, self.from), client(self.v6, self.dport), 53),
            3 => (client(self.v6, self.from), underlay(self.v6, 1), 30_000),
            n => (pod(self.v6, 1, self.from), vip(self.v6, n), 80),
        };
        let sport = 1000 + self.sport;
        match self.proto {
            0 => Spec::tcp(src, dst, sport, dport, SYN),
            1 => Spec::udp(src, dst, sport, dport),
            2 => Spec::sctp(src, dst, sport, dport),
            _ if self.to == 0 => Spec::echo(src, dst, sport, 1),
            _ => Spec::udp(src, dst, sport, dport),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever flows there are: checksums are right (`seen` verifies them), no two live flows look the same to
    /// the other side, every answer comes back as if the one who was asked had answered; and with too few
    /// ports the rest is dropped by name.
    #[test]
    fn every_translation_is_undone(opens in opens(), ports in 1u16..40) {
        let mut a = bed(1);
        a.publish(|s| {
            let mut snat = (*s.snat).clone();
            (snat.first, snat.last) = (50_000, 50_000 + ports - 1);
            s.snat = snat.into();
        });
        let mut services = Vec::new();
        for v6 in [false, true] {
            let backends: Vec<Backend> = (1..=2).map(|n| Backend { addr: pod(v6, 1, n), port: 8080 }).collect();
            // Two services with the same backends: their flows collide behind the translation.
            services.push(service(vip(v6, 1), 80, backends.clone()));
            services.push(service(vip(v6, 2), 80, backends.clone()));
            services.push(node_port(v6, 30_000, backends));
        }
        set_services(&a, &services);
        let mut live: HashMap<FlowKey, FlowKey> = HashMap::new();
        for open in &opens {
            let spec = open.spec();
            let original = world::key(&spec);
            if open.to == 3 {
                a.send(UPLINK, &from_outside(1, spec));
            } else {
                a.send(pod_port(open.from), &from_pod(1, open.from, spec));
            }
            let got = a.run();
            let [(port, frame)] = got.as_slice() else {
                let drops = a.drops();
                prop_assert!(drops.keys().all(|r| *r == DropReason::SnatExhausted), "{:?}", drops);
                continue;
            };
            let translated = seen(frame);
            if let Some(before) = live.get(&translated) {
                prop_assert_eq!(*before, original, "two flows with one tuple");
            }
            live.insert(translated, original);
            let back = answer(frame);
            a.send(*port, &back);
            let got = a.run();
            prop_assert_eq!(got.len(), 1, "{:?} {:?}", original, a.drops());
            prop_assert_eq!(seen(&got[0].1), original.reversed());
        }
        // Each live flow answers still, after all the others came.
        for (translated, original) in &live {
            if translated.proto == proto::UDP {
                let frame = world::reply_frame(translated);
                let port = world::port_of(translated.dst);
                a.send(port, &frame);
                let got = a.run();
                prop_assert_eq!(got.len(), 1);
                prop_assert_eq!(seen(&got[0].1), original.reversed());
            }
        }
    }
}
