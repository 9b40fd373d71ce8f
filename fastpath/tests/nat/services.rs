//! Cluster IPs, node ports, load balancers, affinity, and what becomes of flows whose service or backend changes.

use std::collections::BTreeMap;
use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::packet::{FlowKey, Ip};
use fastpath::snapshot::GATEWAY_V4;
use fastpath::tables::service::Backend;
use fastpath::testbed::{Bed, UPLINK, from_pod, pod, pod_port, settle, underlay};
use fastpath::wire::tcp;
use fastpath::wire::testgen::Spec;

use crate::world::{
    self, Service, answer, bed, client, from_outside, node_port, seen, service, set_services, vip,
};
use crate::{ACK, SYN, openings};

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
