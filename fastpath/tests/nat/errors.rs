//! ICMP errors about translated packets, and wrong checksums, which no translation mends.

use std::collections::BTreeMap;

use fastpath::graph::DropReason;
use fastpath::tables::service::Backend;
use fastpath::testbed::{UPLINK, from_pod, pod, pod_port};
use fastpath::wire::icmp;
use fastpath::wire::testgen::Spec;

use crate::openings;
use crate::world::{self, bed, client, seen, service, set_services, vip};

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
