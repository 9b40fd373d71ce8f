//! Fragments over memory ports: in every order, through tunnel and translation, they arrive as the datagram they were
//! cut from, and no frame is lost over those that do not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

#[allow(unreachable_pub, dead_code, reason = "shared by test programs, each of which uses a part")]
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::packet::{FlowKey, Ip, PortId, proto};
use fastpath::tables::flow::{Millis, Transform};
use fastpath::tables::service::Backend;
use fastpath::testbed::{Bed, UPLINK, from_pod, mac, pod, pod_port, settle, underlay};
use fastpath::wire::tcp;
use fastpath::wire::testgen::{Spec, refresh_ipv4_checksum};
use proptest::prelude::*;
use world::cut::{body, cut, fragment, join};
use world::{ROUTER, bed, client, seen, service, set_services, to_uplink, vip};

/// All frames of a bed.
const FRAMES: usize = 4096 + 1024;

/// A UDP datagram from pod 1 of node 1, as that sends it.
fn datagram(dst: Ip, sport: u16, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0u8..251).cycle().take(len).collect();
    from_pod(1, 1, Spec::udp(pod(!dst.is_v4(), 1, 1), dst, sport, 53).with_payload(payload))
}

fn send(bed: &mut Bed, frames: &[Vec<u8>]) {
    frames.iter().for_each(|f| assert!(bed.send(pod_port(1), f)));
}

/// What a port sent.
fn by(got: Vec<(PortId, Vec<u8>)>, port: PortId) -> Vec<Vec<u8>> {
    got.into_iter().map(|(p, frame)| (assert_eq!(p, port), frame).1).collect()
}

/// What a pod, or the router, received.
fn at(got: Vec<(u8, PortId, Vec<u8>)>, node: u8, n: u8) -> Vec<Vec<u8>> {
    got.into_iter().map(|(at, p, frame)| (assert_eq!((at, p), (node, pod_port(n))), frame).1).collect()
}

fn quiet(bed: &mut Bed) {
    assert_eq!(bed.drops(), BTreeMap::new());
    assert_eq!(bed.free_frames(), FRAMES);
}

#[test]
fn in_order_reversed_and_interleaved() {
    for v6 in [false, true] {
        for (node, n) in [(1, 2), (2, 3)] {
            let (mut a, mut b) = (bed(1), bed(2));
            let wholes = [datagram(pod(v6, node, n), 1000, 4000), datagram(pod(v6, node, n), 1001, 3000)];
            let [one, two] = [cut(&wholes[0], 1, 800), cut(&wholes[1], 2, 640)];
            let reversed = |f: &[Vec<u8>]| f.iter().rev().cloned().collect::<Vec<_>>();
            let mixed: Vec<Vec<u8>> =
                one.iter().zip(&two).flat_map(|(x, y)| [y.clone(), x.clone()]).collect();
            assert_eq!((one.len(), two.len()), (6, 5));
            let orders = [
                [&one[..], &two].concat(),
                reversed(&[&one[..], &two].concat()),
                [&mixed[..], &one[5..]].concat(),
            ];
            for order in orders {
                for at_once in [true, false] {
                    let mut got = Vec::new();
                    for f in &order {
                        send(&mut a, std::slice::from_ref(f));
                        if !at_once {
                            got.extend(settle(&mut a, &mut b));
                        }
                    }
                    got.extend(settle(&mut a, &mut b));
                    let joined = join(at(got, node, n));
                    for (ident, whole) in (1..).zip(&wholes) {
                        assert_eq!(body(&joined[&ident]), body(whole));
                        assert_eq!(seen(&joined[&ident]), seen(whole));
                    }
                }
            }
            quiet(&mut a);
            quiet(&mut b);
        }
    }
}

#[test]
fn nothing_goes_before_the_first_one() {
    let mut a = bed(1);
    let parts = cut(&datagram(pod(false, 1, 2), 7, 400), 9, 104);
    send(&mut a, &parts[1..]);
    assert_eq!(a.run(), []);
    assert_eq!(a.free_frames(), FRAMES - 3);
    send(&mut a, &parts[..1]);
    assert_eq!(by(a.run(), pod_port(2)).len(), 4);
    quiet(&mut a);
}

#[test]
fn bursts_larger_than_a_vector_arrive() {
    for v6 in [false, true] {
        let mut a = bed(1);
        // Six datagrams of 60 fragments: most of a vector has to wait for the next one.
        let wholes: Vec<Vec<u8>> = (0..6).map(|n| datagram(pod(v6, 1, 2), 100 + n, 60_000)).collect();
        let parts = (1..).zip(&wholes).flat_map(|(ident, whole)| cut(whole, ident, 1008)).collect::<Vec<_>>();
        assert_eq!(parts.len(), 360);
        send(&mut a, &parts);
        let joined = join(by(a.run(), pod_port(2)));
        for (ident, whole) in (1..).zip(&wholes) {
            assert_eq!(body(&joined[&ident]), body(whole));
        }
        quiet(&mut a);
    }
}

#[test]
fn held_fragments_find_room_under_load() {
    let mut a = bed(1);
    let parts = cut(&datagram(pod(false, 1, 4), 7, 400), 9, 208);
    let busy = |n: u8| from_pod(1, n, Spec::udp(pod(false, 1, n), pod(false, 2, 1), 1, 1));
    a.send(pod_port(1), &parts[1]);
    a.send(pod_port(1), &parts[0]);
    for n in 1..=4 {
        (0..200).for_each(|_| assert!(a.send(pod_port(n), &busy(n))));
    }
    // Every pass receives a full vector.
    for want in [1, 2] {
        assert!(a.worker.pass());
        assert_eq!(a.worker.stats().unwrap().nodes[0].packets.get(), 256 * want - (want - 1));
    }
    let got = a.collect().into_iter().filter(|(port, _)| *port == pod_port(4));
    assert_eq!(body(&join(got.map(|(_, frame)| frame).collect())[&9]).len(), 408);
}

#[test]
fn overlaps_end_a_datagram() {
    // Parts of a datagram of 96 bytes in units of 8, and how many go on before the overlap shows.
    type Parts = &'static [(usize, usize)];
    let cases: [(Parts, usize); 7] = [
        (&[(0, 4), (3, 8), (8, 12)], 1),
        (&[(0, 4), (4, 8), (4, 12)], 2),
        (&[(0, 4), (8, 12), (6, 9)], 2),
        (&[(0, 4), (6, 8), (5, 9)], 2),
        (&[(4, 8), (4, 7), (0, 4)], 0),
        (&[(8, 12), (2, 8), (0, 4)], 0),
        (&[(0, 4), (0, 3), (4, 12)], 1),
    ];
    for v6 in [false, true] {
        for (parts, passed) in cases {
            let (mut a, whole) = (bed(1), datagram(pod(v6, 1, 2), 7, 88));
            let mut got = 0;
            for (start, end) in parts {
                send(&mut a, &[fragment(&whole, 5, start * 8, end * 8)]);
                got += by(a.run(), pod_port(2)).len();
            }
            let dropped = u64::try_from(parts.len() - passed).unwrap();
            assert_eq!(
                (got, a.drops()),
                (passed, [(DropReason::FragmentOverlap, dropped)].into()),
                "{parts:?}"
            );
            assert_eq!(a.free_frames(), FRAMES);
            // Also what comes later; and another datagram is not concerned.
            send(&mut a, &[fragment(&whole, 5, 88, 96), fragment(&whole, 6, 0, 32)]);
            assert_eq!(a.run().len(), 1);
            assert_eq!(a.drops(), [(DropReason::FragmentOverlap, dropped + 1)].into());
            // Half a minute later the identification is free again.
            a.advance(Duration::from_secs(31));
            send(&mut a, &cut(&whole, 5, 32));
            assert_eq!(body(&join(by(a.run(), pod_port(2)))[&5]), body(&whole));
        }
    }
}

#[test]
fn the_first_one_with_other_ports_is_an_overlap() {
    let mut a = bed(1);
    let (one, other) = (datagram(pod(false, 1, 2), 7, 88), datagram(pod(false, 1, 2), 8, 88));
    send(&mut a, &[fragment(&one, 5, 0, 32), fragment(&other, 5, 0, 32), fragment(&one, 5, 32, 96)]);
    assert_eq!(a.run().len(), 1);
    assert_eq!(a.drops(), [(DropReason::FragmentOverlap, 2)].into());
}

#[test]
fn duplicates_are_dropped_alone() {
    for v6 in [false, true] {
        let mut a = bed(1);
        let whole = datagram(pod(v6, 1, 2), 7, 400);
        let parts = cut(&whole, 9, 104);
        let order = [1, 1, 0, 0, 2, 1].map(|i| parts[i].clone());
        send(&mut a, &order);
        let mut got = a.run();
        send(&mut a, &parts[3..]);
        got.extend(a.run());
        assert_eq!(body(&join(by(got, pod_port(2)))[&9]), body(&whole));
        assert_eq!(a.drops(), [(DropReason::FragmentDuplicate, 3)].into());
        assert_eq!(a.free_frames(), FRAMES);
    }
}

#[test]
fn what_is_held_is_bounded_and_times_out() {
    let mut a = bed(1);
    let whole = datagram(pod(false, 1, 2), 7, 4000);
    let later: Vec<Vec<u8>> = (0..600).map(|ident| fragment(&whole, ident, 8, 1000)).collect();
    send(&mut a, &later);
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::FragmentLimit, 88)].into());
    assert_eq!(a.free_frames(), FRAMES - 512);
    a.advance(Duration::from_millis(999));
    assert_eq!(a.run(), []);
    assert_eq!(a.free_frames(), FRAMES - 512);
    a.advance(Duration::from_millis(1));
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::FragmentLimit, 88), (DropReason::FragmentUnmatched, 512)].into());
    assert_eq!(a.free_frames(), FRAMES);
    // Of one datagram there are fewer.
    let many: Vec<Vec<u8>> = (1..100).map(|n| fragment(&whole, 1000, n * 8, n * 8 + 8)).collect();
    send(&mut a, &many);
    a.run();
    assert_eq!(a.free_frames(), FRAMES - 64);
    send(&mut a, &[fragment(&whole, 1000, 0, 8)]);
    assert_eq!(a.run().len(), 65);
    assert_eq!(a.free_frames(), FRAMES);
}

#[test]
fn a_datagram_is_remembered_for_half_a_minute() {
    for (seconds, passes) in [(29, true), (31, false)] {
        let mut a = bed(1);
        let parts = cut(&datagram(pod(false, 1, 2), 7, 400), 9, 208);
        send(&mut a, &parts[..1]);
        assert_eq!(a.run().len(), 1);
        a.advance(Duration::from_secs(seconds));
        send(&mut a, &parts[1..]);
        assert_eq!(a.run().len(), usize::from(passes));
        a.advance(Duration::from_secs(2));
        assert_eq!(a.run(), []);
        let unmatched = u64::from(!passes);
        assert_eq!(a.drops().get(&DropReason::FragmentUnmatched).copied().unwrap_or(0), unmatched);
        assert_eq!(a.free_frames(), FRAMES);
    }
}

#[test]
fn a_later_fragment_opens_no_flow() {
    let mut a = bed(1);
    // Nobody has the address: the sender is told once, about the first one.
    let parts = cut(&datagram(pod(false, 1, 99), 7, 400), 9, 104);
    send(&mut a, &parts);
    assert_eq!(by(a.run(), pod_port(1)).len(), 1);
    assert_eq!(a.drops(), [(DropReason::NoEndpoint, 1), (DropReason::FragmentUnmatched, 3)].into());
    assert_eq!((a.worker.flows().len(), a.free_frames()), (0, FRAMES));
    // The flow went while its datagram was under way.
    let mut a = bed(1);
    let whole = datagram(pod(false, 1, 2), 7, 400);
    let parts = cut(&whole, 9, 104);
    send(&mut a, &parts[..1]);
    assert_eq!(a.run().len(), 1);
    let flows = a.worker.flows();
    let hit = flows.lookup(&seen(&whole), seen(&whole).hash(flows.seed()), Millis(0)).unwrap();
    assert!(flows.remove(hit.at));
    send(&mut a, &parts[1..]);
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::FragmentUnmatched, 3)].into());
    assert_eq!(a.worker.flows().len(), 0);
}

#[test]
fn later_fragments_share_what_becomes_of_their_flow() {
    // Denied after the first one.
    let mut a = bed(1);
    let whole = datagram(pod(true, 1, 2), 7, 400);
    let parts = cut(&whole, 9, 104);
    send(&mut a, &parts[..1]);
    assert_eq!(a.run().len(), 1);
    let (flows, key) = (a.worker.flows(), seen(&whole));
    let hit = flows.lookup(&key, key.hash(flows.seed()), Millis(0)).unwrap();
    let deny = |key: &FlowKey| Transform { bits: Transform::DENY, ..Transform::identity(key) };
    assert!(flows.refresh(hit.at, deny(&key), deny(&key.reversed()), 1));
    send(&mut a, &parts[1..2]);
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::PolicyDeniedIngress, 1)].into());
    // Decided again by tables in which the pod is elsewhere.
    let mut a = bed(1);
    send(&mut a, &parts[..1]);
    assert_eq!(by(a.run(), pod_port(2)).len(), 1);
    a.publish(|s| s.local.extend([(pod(true, 1, 2), pod_port(3))]));
    send(&mut a, &parts[1..]);
    assert_eq!(by(a.run(), pod_port(3)).len(), 3);
    quiet(&mut a);
    // The sender lost its address while they were held back for a moment.
    let mut a = bed(1);
    send(&mut a, &parts);
    assert!(a.worker.pass());
    a.publish(|s| s.ports[1].as_mut().unwrap().addrs.clear());
    assert_eq!(by(a.run(), pod_port(2)).len(), 1);
    assert_eq!(a.drops(), [(DropReason::SourceNotOwn, 3)].into());
    assert_eq!(a.free_frames(), FRAMES);
}

#[test]
fn a_backend_that_is_gone_gets_no_half_datagram() {
    let mut a = bed(1);
    let backend = |n| Backend { addr: pod(false, 1, n), port: 53 };
    set_services(&a, &[service(vip(false, 1), 53, vec![backend(2)])]);
    let parts = cut(&datagram(vip(false, 1), 7, 400), 9, 104);
    send(&mut a, &parts[..2]);
    assert_eq!(by(a.run(), pod_port(2)).len(), 2);
    set_services(&a, &[service(vip(false, 1), 53, vec![backend(3)])]);
    send(&mut a, &parts[2..]);
    assert_eq!(a.run(), []);
    assert_eq!(a.drops().values().sum::<u64>(), 2);
    assert!(a.drops().contains_key(&DropReason::BackendGone));
    assert_eq!(a.free_frames(), FRAMES);
}

#[test]
fn sctp_goes_through_while_its_ports_stay() {
    for v6 in [false, true] {
        for (port, arrives) in [(3868, true), (9000, false)] {
            let mut a = bed(1);
            set_services(&a, &[service(vip(v6, 1), 3868, vec![Backend { addr: pod(v6, 1, 2), port }])]);
            let spec = Spec::sctp(pod(v6, 1, 1), vip(v6, 1), 4000, 3868).with_payload(vec![7; 400]);
            let whole = from_pod(1, 1, spec);
            send(&mut a, &cut(&whole, 1, 104));
            let got = by(a.run(), pod_port(2));
            if arrives {
                // Its checksum is verified.
                assert_eq!(seen(&join(got)[&1]).dst, pod(v6, 1, 2));
                quiet(&mut a);
            } else {
                assert_eq!(got.len(), 0);
                assert_eq!(a.drops(), [(DropReason::SctpFragment, 4)].into());
                assert_eq!(a.free_frames(), FRAMES);
            }
        }
    }
}

#[test]
fn too_big_is_said_about_the_first_one_only() {
    for v6 in [false, true] {
        let mut a = bed(1);
        send(&mut a, &cut(&datagram(pod(v6, 2, 3), 7, 4000), 1, 1448));
        let got = a.run();
        // The last one fits the tunnel, but its datagram has no flow to follow that it could not.
        let errors = got.iter().filter(|(port, _)| *port == pod_port(1)).count();
        assert_eq!((errors, got.len()), (1, 2), "{:?}", a.drops());
        assert_eq!(a.drops(), [(DropReason::MtuExceeded, 2)].into());
        assert_eq!(a.free_frames(), FRAMES);
    }
}

#[test]
fn fragments_that_no_sender_makes() {
    let mut a = bed(1);
    // Without data.
    let whole = datagram(pod(false, 1, 2), 7, 392);
    let mut empty = fragment(&whole, 1, 104, 400);
    empty.truncate(34);
    empty[16..18].copy_from_slice(&20u16.to_be_bytes());
    refresh_ipv4_checksum(&mut empty);
    send(&mut a, &[empty]);
    assert_eq!(a.run(), []);
    assert_eq!(a.drops(), [(DropReason::MalformedIpv4, 1)].into());
    // An ICMP error.
    send(&mut a, std::slice::from_ref(&whole));
    let got = by(a.run(), pod_port(2));
    let error =
        world::error_about(&got[0], fastpath::wire::icmp::ErrorKind::PortUnreachable, pod(false, 1, 2));
    for f in cut(&error, 2, 104) {
        a.send(pod_port(2), &f);
    }
    assert_eq!(a.run(), []);
    a.advance(Duration::from_secs(1));
    assert_eq!(a.run(), []);
    assert_eq!(a.drops()[&DropReason::MalformedTransport], 1);
    assert_eq!(a.free_frames(), FRAMES);
}

#[test]
fn a_fragmented_tunnel_packet_has_its_own_name() {
    let (mut a, mut b) = (bed(1), bed(2));
    send(&mut a, &[datagram(pod(false, 2, 3), 7, 1000)]);
    let outer = by(a.run(), UPLINK);
    b.send(UPLINK, &fragment(&outer[0], 1, 0, 512));
    assert_eq!(b.run(), []);
    assert_eq!(b.drops(), [(DropReason::TunnelFragment, 1)].into());
}

#[test]
fn answers_come_back_through_both_translations() {
    for v6 in [false, true] {
        let (mut a, mut b) = (bed(1), bed(2));
        // A pod asks outside: the answer in fragments finds it.
        send(&mut a, &cut(&datagram(client(v6, 1), 7, 3000), 1, 1000));
        let asked = &join(by(a.run(), UPLINK))[&1];
        let key = seen(asked);
        assert_eq!((key.src, key.dst), (underlay(v6, 1), client(v6, 1)));
        let back = key.reversed();
        let spec = Spec::udp(back.src, back.dst, back.sport, back.dport).with_payload(vec![3; 2500]);
        let whole = to_uplink(1, spec.build());
        for f in cut(&whole, 77, 1000).into_iter().rev() {
            a.send(UPLINK, &f);
        }
        let got = &join(by(a.run(), pod_port(1)))[&77];
        assert_eq!((seen(got).dst, seen(got).dport), (pod(v6, 1, 1), 7));
        assert_eq!(got[got.len() - 2500..], [3; 2500]);
        quiet(&mut a);
        // And a service on the other node answers as itself.
        set_services(&a, &[service(vip(v6, 1), 53, vec![Backend { addr: pod(v6, 2, 3), port: 5353 }])]);
        send(&mut a, &cut(&datagram(vip(v6, 1), 8, 3000), 2, 1000));
        let asked = &join(at(settle(&mut a, &mut b), 2, 3))[&2];
        let back = seen(asked).reversed();
        assert_eq!((back.src, back.sport), (pod(v6, 2, 3), 5353));
        let spec = Spec::udp(back.src, back.dst, back.sport, back.dport).with_payload(vec![4; 2500]);
        for f in cut(&from_pod(2, 3, spec), 78, 1000).into_iter().rev() {
            b.send(pod_port(3), &f);
        }
        let got = &join(at(settle(&mut a, &mut b), 1, 1))[&78];
        assert_eq!((seen(got).src, seen(got).sport), (vip(v6, 1), 53));
        quiet(&mut a);
        quiet(&mut b);
    }
}

/// Where a datagram of the property test goes.
#[derive(Clone, Copy, Debug)]
enum To {
    Here,
    There,
    ServiceHere,
    ServiceThere,
    Outside,
}

impl To {
    fn address(self, v6: bool) -> Ip {
        match self {
            To::Here => pod(v6, 1, 2),
            To::There => pod(v6, 2, 3),
            To::ServiceHere => vip(v6, 1),
            To::ServiceThere => vip(v6, 2),
            To::Outside => client(v6, 1),
        }
    }
}

/// A datagram, the places where it is cut, and what is delivered of it: source, destination, destination port.
fn datagrams() -> impl Strategy<Value = Vec<(To, bool, Vec<u8>, Vec<usize>)>> {
    let to = prop::sample::select(&[To::Here, To::There, To::ServiceHere, To::ServiceThere, To::Outside][..]);
    let payload = prop::collection::vec(any::<u8>(), 64..3000);
    let places = prop::collection::btree_set(3usize..380, 2..12);
    let one = (to, any::<bool>(), 0u8..4, 1u16..4, payload, places).prop_map(
        |(to, v6, kind, port, payload, places)| {
            let (src, dst) = (pod(v6, 1, 1), to.address(v6));
            let spec = match (kind, to) {
                (0, _) => Spec::tcp(src, dst, port, 80, tcp::control::SYN),
                (1, To::Here | To::There) => Spec::sctp(src, dst, port, 80),
                (2, To::Here | To::There | To::Outside) => Spec::echo(src, dst, port, 1),
                _ => Spec::udp(src, dst, port, 80),
            };
            // Pieces that fit the tunnel.
            let len = payload.len();
            let every = (0..=len / 8 + 2).step_by(150);
            let places = every.chain(places).filter(|p| *p >= 3 && p * 8 < len).map(|p| p * 8).collect();
            (to, v6, from_pod(1, 1, spec.with_payload(payload)), places)
        },
    );
    prop::collection::vec(one, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Random datagrams cut at random places and sent in random order, with pauses in random places, arrive whole:
    /// translated as the datagram itself would be, with right checksums.
    #[test]
    fn fragments_arrive_as_the_datagram_they_were(datagrams in datagrams(), order in any::<prop::sample::Index>(), seed: u64, pauses: u64) {
        let (mut a, mut b) = (bed(1), bed(2));
        let services = [false, true].map(|v6| {
            let backend = |node, n| vec![Backend { addr: pod(v6, node, n), port: 8080 }];
            [service(vip(v6, 1), 80, backend(1, 2)), service(vip(v6, 2), 80, backend(2, 3))]
        });
        set_services(&a, &services.concat());
        let mut parts = Vec::new();
        for (ident, (_, _, whole, places)) in (1u16..).zip(&datagrams) {
            let ends: Vec<usize> = places.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            let all: Vec<usize> = [&[0][..], &ends, &[body(whole).len()]].concat();
            parts.extend(all.windows(2).map(|w| fragment(whole, ident, w[0], w[1])));
        }
        // A shuffle by hashes.
        let mut numbered: Vec<(u64, Vec<u8>)> = (0u64..).zip(parts).map(|(n, f)| {
            ((n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(seed | 1), f)
        }).collect();
        numbered.sort_by_key(|(n, _)| *n);
        let turn = order.index(numbered.len());
        numbered.rotate_left(turn);
        let mut got = Vec::new();
        for (n, (_, f)) in numbered.iter().enumerate() {
            prop_assert!(a.send(pod_port(1), f));
            if pauses >> (n % 64) & 1 != 0 {
                got.extend(collect(&mut a, &mut b));
            }
        }
        got.extend(collect(&mut a, &mut b));
        let joined = join(got);
        prop_assert_eq!(joined.len(), datagrams.len());
        for (ident, (to, v6, whole, _)) in (1u16..).zip(&datagrams) {
            let (sent, came) = (seen(whole), seen(&joined[&ident]));
            let (dst, dport) = match to {
                To::ServiceHere => (pod(*v6, 1, 2), 8080),
                To::ServiceThere => (pod(*v6, 2, 3), 8080),
                // The two ports of an echo are its identifier, which is translated.
                To::Outside if came.proto == proto::ICMP || came.proto == proto::ICMPV6 => (sent.dst, came.sport),
                To::Here | To::There | To::Outside => (sent.dst, sent.dport),
            };
            prop_assert_eq!((came.dst, came.dport), (dst, dport));
            let outside = matches!(to, To::Outside);
            prop_assert_eq!(came.src, if outside { underlay(*v6, 1) } else { sent.src });
            prop_assert!(outside || came.sport == sent.sport);
            // All of it but the transport header, which was verified.
            let (sent, came) = (body(whole), body(&joined[&ident]));
            prop_assert_eq!(&sent[20..], &came[20..]);
            prop_assert_eq!(sent.len(), came.len());
        }
        prop_assert_eq!((a.drops(), b.drops()), (BTreeMap::new(), BTreeMap::new()));
        prop_assert_eq!((a.free_frames(), b.free_frames()), (FRAMES, FRAMES));
    }
}

/// What pods and the router receive.
fn collect(a: &mut Bed, b: &mut Bed) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (port, frame) in a.run() {
        if port == UPLINK && frame[..6] == mac(2, 0).0 {
            assert!(b.send(UPLINK, &frame));
        } else {
            assert!(port != UPLINK || frame[..6] == ROUTER.0);
            out.push(frame);
        }
    }
    out.extend(by(b.run(), pod_port(3)));
    out
}
