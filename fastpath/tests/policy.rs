//! Policies over memory ports: who may open a connection, what becomes of those that exist when policies change.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

#[allow(unreachable_pub, dead_code, reason = "shared by test programs, each of which uses a part")]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::packet::Ip;
use fastpath::stats::RuleCounters;
use fastpath::tables::policy::{
    Cell, ClassId, Direction, Group, GroupId, Matrix, NodeIndex, PeerInfo, PolicyTable, Row, Rows, RuleId,
};
use fastpath::tables::service::Backend;
use fastpath::testbed::{Bed, UPLINK, from_pod, pod, pod_port, settle, underlay};
use fastpath::wire::tcp;
use fastpath::wire::testgen::Spec;
use world::{answer, bed, client, key, seen, service, set_services, vip};

const SYN: u8 = tcp::control::SYN;
const ACK: u8 = tcp::control::ACK;

/// The isolation's rule, and the one that allows.
const ISOLATED: RuleId = RuleId(4);
const ALLOWED: RuleId = RuleId(5);

/// Isolates pod `n` of the node in one direction but for the addresses of `peers`.
fn isolate(bed: &Bed, n: u8, direction: Direction, peers: &[Ip]) {
    let group = |matrix: Option<Matrix>| {
        let matrix = matrix.map(Arc::new);
        let (ingress, egress) = match direction {
            Direction::Ingress => (matrix, None),
            Direction::Egress => (None, matrix),
        };
        Group { node: NodeIndex::NONE, ingress, egress }
    };
    let mut table = PolicyTable::default();
    for peer in peers {
        table.peers.insert(*peer, PeerInfo { class: ClassId(1), node: NodeIndex::NONE });
    }
    let closed = Cell::deny(ISOLATED);
    let rows = Rows::from_iter([(ClassId(1), Row::all(Cell::allow(ALLOWED)))]);
    let matrix = Matrix::new(closed, Row::all(closed), rows, Vec::new());
    table.groups = vec![group(None), group(Some(matrix))];
    bed.publish(|s| {
        s.policy = table;
        if s.rule_counters.rules() == 0 {
            s.rule_counters = Arc::new(RuleCounters::new(1, 8));
        }
        for (id, port) in (0u8..).zip(s.ports.iter_mut()).skip(1) {
            port.as_mut().unwrap().group = Some(GroupId(u32::from(id == n)));
        }
    });
}

fn free(bed: &Bed) {
    isolate(bed, 99, Direction::Ingress, &[]);
}

fn counters(bed: &Bed, rule: RuleId) -> [u64; 3] {
    bed.tables.load().rule_counters.total(rule.counter())
}

fn udp(v6: bool, from: u8, to: u8) -> Vec<u8> {
    from_pod(1, from, Spec::udp(pod(v6, 1, from), pod(v6, 1, to), 1000, 53))
}

#[test]
fn each_direction_is_asked() {
    for v6 in [false, true] {
        for (direction, n, reason) in [
            (Direction::Ingress, 2, DropReason::PolicyDeniedIngress),
            (Direction::Egress, 1, DropReason::PolicyDeniedEgress),
        ] {
            let mut a = bed(1);
            isolate(&a, n, direction, &[pod(v6, 1, 3)]);
            a.send(pod_port(1), &udp(v6, 1, 2));
            assert_eq!(a.run(), []);
            assert_eq!(a.drops(), [(reason, 1)].into());
            assert_eq!(counters(&a, ISOLATED)[0], 1);
            // The one that is allowed, and its answer.
            let (from, to) = if direction == Direction::Ingress { (3, 2) } else { (1, 3) };
            a.send(pod_port(from), &udp(v6, from, to));
            let got = a.run();
            a.send(pod_port(to), &answer(&got[0].1));
            assert_eq!(a.run().len(), 1);
            let [packets, bytes, flows] = counters(&a, ALLOWED);
            assert_eq!((packets, flows), (2, 1));
            assert!(bytes > 2 * 28);
        }
    }
}

#[test]
fn policies_see_the_backend_and_the_clients_own_address() {
    let mut a = bed(1);
    set_services(&a, &[service(vip(false, 1), 80, vec![Backend { addr: pod(false, 1, 2), port: 8080 }])]);
    isolate(&a, 2, Direction::Ingress, &[pod(false, 1, 1)]);
    for (from, sent) in [(1, 1), (3, 0)] {
        a.send(pod_port(from), &from_pod(1, from, Spec::udp(pod(false, 1, from), vip(false, 1), 1, 80)));
        assert_eq!(a.run().len(), sent);
    }
    isolate(&a, 1, Direction::Egress, &[pod(false, 1, 2)]);
    a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), vip(false, 1), 2, 80)));
    assert_eq!(a.run().len(), 1, "the backend is allowed, and it is what counts");
    isolate(&a, 1, Direction::Egress, &[vip(false, 1)]);
    a.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), vip(false, 1), 3, 80)));
    assert_eq!(a.run(), [], "the service's address is nothing to a policy");
}

#[test]
fn a_pod_reaches_itself_whatever_its_policies() {
    let mut a = bed(1);
    set_services(&a, &[service(vip(false, 1), 80, vec![Backend { addr: pod(false, 1, 2), port: 8080 }])]);
    isolate(&a, 2, Direction::Ingress, &[]);
    a.send(pod_port(2), &from_pod(1, 2, Spec::udp(pod(false, 1, 2), vip(false, 1), 1, 80)));
    let got = a.run();
    assert_eq!(got.len(), 1);
    a.send(pod_port(2), &answer(&got[0].1));
    assert_eq!(a.run().len(), 1);
}

#[test]
fn revocation_cuts_both_directions_and_is_undone() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            let mut a = bed(1);
            a.advance(Duration::from_secs(1));
            free(&a);
            let packet = |flags| {
                let (src, dst) = (pod(v6, 1, 1), pod(v6, 1, 2));
                let spec =
                    if tcp { Spec::tcp(src, dst, 1000, 53, flags) } else { Spec::udp(src, dst, 1000, 53) };
                from_pod(1, 1, spec)
            };
            a.send(pod_port(1), &packet(SYN));
            let got = a.run();
            let back = answer(&got[0].1);
            a.send(pod_port(2), &back);
            assert_eq!(a.run().len(), 1);
            a.send(pod_port(3), &udp(v6, 3, 4));
            assert_eq!(a.run().len(), 1);
            isolate(&a, 2, Direction::Ingress, &[]);
            for _ in 0..3 {
                // The answer first: it must not open the connection from the other side.
                a.send(pod_port(2), &back);
                a.send(pod_port(1), &packet(ACK));
                assert_eq!(a.run(), [], "cut");
                a.send(pod_port(3), &udp(v6, 3, 4));
                assert_eq!(a.run().len(), 1, "the other pair is not disturbed");
            }
            assert_eq!(a.drops(), [(DropReason::PolicyDeniedIngress, 6)].into());
            assert_eq!(counters(&a, ISOLATED)[0], 6);
            free(&a);
            a.send(pod_port(1), &packet(ACK));
            a.send(pod_port(2), &back);
            assert_eq!(a.run().len(), 2, "goes on");
        }
    }
}

#[test]
fn a_denied_sender_is_told_if_so_configured() {
    for v6 in [false, true] {
        let mut a = bed(1);
        isolate(&a, 2, Direction::Ingress, &[]);
        a.publish(|s| s.settings.reject_denied = true);
        let open = Spec::tcp(pod(v6, 1, 1), pod(v6, 1, 2), 1000, 80, SYN);
        a.send(pod_port(1), &from_pod(1, 1, open.clone()));
        let got = a.run();
        let [(port, frame)] = got.as_slice() else { panic!("{got:?}") };
        assert_eq!((*port, seen(frame)), (pod_port(1), key(&open).reversed()));
        assert_eq!(world::tcp_flags(frame), tcp::control::RST | ACK);
        a.send(pod_port(1), &udp(v6, 1, 2));
        let got = a.run();
        assert_eq!(world::icmp_kind(&got[0].1), if v6 { (1, 1) } else { (3, 13) });
        assert_eq!(a.drops(), [(DropReason::PolicyDeniedIngress, 2)].into());
    }
}

#[test]
fn another_nodes_host_is_refused_through_its_tunnel() {
    for v6 in [false, true] {
        let mut a = bed(1);
        isolate(&a, 2, Direction::Ingress, &[]);
        a.publish(|s| s.settings.reject_denied = true);
        let inner = Spec::tcp(underlay(v6, 2), pod(v6, 1, 2), 5555, 80, SYN);
        a.send(UPLINK, &world::through_tunnel(2, 1, inner.clone()));
        let got = a.run();
        let [(UPLINK, frame)] = got.as_slice() else { panic!("{got:?} {:?}", a.drops()) };
        // To that node's VTEP, by VXLAN.
        assert_eq!(frame[30..34], underlay(false, 2).v4_bytes());
        assert_eq!(frame[36..38], 4789u16.to_be_bytes());
        let inside = &frame[14 + 20 + 8 + 8..];
        assert_eq!(seen(inside), key(&inner).reversed());
        assert_eq!(world::tcp_flags(inside), tcp::control::RST | ACK);
        assert_eq!(a.drops(), [(DropReason::PolicyDeniedIngress, 1)].into());
    }
}

#[test]
fn the_outside_is_held_to_policies_too() {
    let (mut a, mut b) = (bed(1), bed(2));
    isolate(&a, 2, Direction::Ingress, &[client(false, 1)]);
    for (n, sent) in [(1, 1), (2, 0)] {
        a.send(UPLINK, &world::from_outside(1, Spec::udp(client(false, n), pod(false, 1, 2), 1000, 53)));
        assert_eq!(a.run().len(), sent);
    }
    // A pod of another node, by its tunnel; and one that pretends to be one.
    isolate(&a, 2, Direction::Ingress, &[pod(false, 2, 1)]);
    let spec = Spec::udp(pod(false, 2, 1), pod(false, 1, 2), 1000, 53);
    b.send(pod_port(1), &from_pod(2, 1, spec.clone()));
    assert_eq!(settle(&mut a, &mut b).len(), 1);
    let pretended = Spec::udp(pod(false, 2, 1), pod(false, 1, 2), 1001, 53);
    a.send(UPLINK, &world::from_outside(1, pretended));
    assert_eq!(a.run(), []);
    // And one that pretends to be this node, which policies always let in.
    let node = Spec::udp(underlay(false, 1), pod(false, 1, 2), 1002, 53);
    a.send(UPLINK, &world::from_outside(1, node));
    assert_eq!(a.run(), []);
    let want = [
        (DropReason::SourceIsLocal, 1),
        (DropReason::SourceWrongWay, 1),
        (DropReason::PolicyDeniedIngress, 1),
    ];
    assert_eq!(a.drops(), BTreeMap::from(want));
}

#[test]
fn a_connection_is_picked_up_the_way_policies_allow_it() {
    // Pod 1 is a client whose ingress is closed; pod 2 serves it. After a restart without flows, either may be heard
    // first, and both go on.
    for from_server in [false, true] {
        let mut a = bed(1);
        isolate(&a, 1, Direction::Ingress, &[]);
        let client = from_pod(1, 1, Spec::tcp(pod(false, 1, 1), pod(false, 1, 2), 40_000, 80, ACK));
        let server = from_pod(1, 2, Spec::tcp(pod(false, 1, 2), pod(false, 1, 1), 80, 40_000, ACK));
        let frames = if from_server { [(2, &server), (1, &client)] } else { [(1, &client), (2, &server)] };
        for (n, frame) in frames {
            a.send(pod_port(n), frame);
            assert_eq!(a.run().len(), 1, "from_server={from_server} {:?}", a.drops());
        }
        // A connection that none of the two may open stays closed.
        isolate(&a, 1, Direction::Egress, &[]);
        a.send(pod_port(1), &client);
        a.send(pod_port(2), &server);
        assert_eq!(a.run(), []);
    }
}

/// A segment of pod 1 to pod 2, or back.
fn segment(v6: bool, from: u8, (sport, dport): (u16, u16), flags: u8) -> Vec<u8> {
    from_pod(1, from, Spec::tcp(pod(v6, 1, from), pod(v6, 1, 3 - from), sport, dport, flags))
}

/// Past the time in which a restart may be what a segment's connection is older than.
const SETTLED: Duration = Duration::from_secs(601);

#[test]
fn a_segment_out_of_nothing_opens_no_way_around_isolation() {
    for v6 in [false, true] {
        for (direction, n) in [(Direction::Ingress, 2), (Direction::Egress, 1)] {
            for pickup in [true, false] {
                for settled in [true, false] {
                    let mut a = bed(1);
                    isolate(&a, n, direction, &[]);
                    a.publish(|s| s.settings.tcp_pickup = pickup);
                    if settled {
                        a.advance(SETTLED);
                    }
                    let what = format!("v6={v6} {direction:?} pickup={pickup} settled={settled}");
                    // As the one who answers, by either sign of it.
                    for (ports, flags) in [((50_000, 80), ACK), ((79, 80), ACK), ((50_001, 80), SYN | ACK)] {
                        a.send(pod_port(1), &segment(v6, 1, ports, flags));
                        assert_eq!(a.run().len(), usize::from(pickup && !settled), "{what} {:?}", a.drops());
                        // What it answers, if that much came through.
                        let reset = segment(v6, 2, (ports.1, ports.0), tcp::control::RST);
                        for after in [None, Some(reset)] {
                            if let Some(reset) = after {
                                a.send(pod_port(2), &reset);
                                a.run();
                            }
                            a.send(pod_port(1), &segment(v6, 1, ports, SYN));
                            assert_eq!(a.run(), [], "{what} {ports:?}");
                        }
                    }
                    assert!(a.drops().keys().any(|r| matches!(
                        r,
                        DropReason::PolicyDeniedIngress | DropReason::PolicyDeniedEgress
                    )));
                }
            }
        }
    }
}

#[test]
fn the_end_that_answers_opens_nothing_by_the_flow_it_answers_in() {
    for v6 in [false, true] {
        for end in [None, Some(tcp::control::RST), Some(tcp::control::FIN | ACK)] {
            let mut a = bed(1);
            // Pod 2 opens connections to pod 1, and not the other way.
            isolate(&a, 2, Direction::Ingress, &[]);
            let there = |flags| segment(v6, 2, (80, 50_000), flags);
            let back = |flags| segment(v6, 1, (50_000, 80), flags);
            let mut frames = vec![(2, there(SYN)), (1, back(SYN | ACK)), (2, there(ACK))];
            frames.extend(end.into_iter().flat_map(|flags| [(1, back(flags)), (2, there(flags))]));
            for (n, frame) in frames {
                a.send(pod_port(n), &frame);
                assert_eq!(a.run().len(), 1);
            }
            a.send(pod_port(1), &back(SYN));
            assert_eq!(a.run(), [], "{end:?}");
            assert_eq!(a.drops(), [(DropReason::PolicyDeniedIngress, 1)].into());
            // It did not hurt the connection there is.
            a.send(pod_port(1), &back(ACK));
            a.send(pod_port(2), &there(ACK));
            assert_eq!(a.run().len(), 2);
            // Where it may open one, it does: a flow of its own direction takes the place.
            free(&a);
            a.send(pod_port(1), &back(SYN));
            assert_eq!(a.run().len(), 1);
            isolate(&a, 1, Direction::Ingress, &[]);
            a.send(pod_port(2), &there(SYN | ACK));
            assert_eq!(a.run().len(), 1, "an answer now, which isolation lets in");
        }
    }
}

#[test]
fn masked_destinations_are_no_way_around_isolation() {
    for v6 in [false, true] {
        for (sport, dport, flags) in [(443, 40_000, ACK), (40_000, 443, ACK), (443, 40_000, SYN | ACK)] {
            // As one that answers a client outside, though the pod may open nothing to there.
            let mut a = bed(1);
            isolate(&a, 1, Direction::Egress, &[]);
            let out = Spec::tcp(pod(v6, 1, 1), client(v6, 9), sport, dport, flags).with_payload(*b"secret");
            a.send(pod_port(1), &from_pod(1, 1, out));
            assert_eq!(a.run(), [], "right after the start, too");
            assert_eq!(a.drops(), [(DropReason::PolicyDeniedEgress, 1)].into());
            // The other way round: as if the pod had opened it, though nobody may to the pod.
            let mut a = bed(1);
            isolate(&a, 1, Direction::Ingress, &[]);
            let into = Spec::tcp(client(v6, 9), pod(v6, 1, 1), sport, dport, flags);
            a.send(UPLINK, &world::from_outside(1, into));
            assert_eq!(a.run(), []);
            assert_eq!(a.drops(), [(DropReason::PolicyDeniedIngress, 1)].into());
        }
    }
}

#[test]
fn what_is_picked_up_in_time_goes_on_when_the_time_is_over() {
    for from_server in [false, true] {
        let mut a = bed(1);
        isolate(&a, 1, Direction::Ingress, &[]);
        let (client, server) = (segment(false, 1, (40_000, 80), ACK), segment(false, 2, (80, 40_000), ACK));
        let mut frames = vec![(pod_port(1), client), (pod_port(2), server)];
        if from_server {
            frames.reverse();
        }
        for _ in 0..5 {
            for (port, frame) in frames.iter().chain(&frames) {
                a.send(*port, frame);
                assert_eq!(a.run().len(), 1, "from_server={from_server} {:?}", a.drops());
            }
            a.advance(Duration::from_secs(300));
        }
        // An unknown one of the server's is not taken up any more.
        a.send(pod_port(2), &segment(false, 2, (80, 40_001), ACK));
        assert_eq!(a.run(), []);
    }
}
