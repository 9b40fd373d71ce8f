//! The packet path allocates nothing: counted by the allocator while a warm worker passes packets of every kind.
//!
//! Nor does it take a lock: `clippy.toml` bans the blocking primitives in this crate.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

#[path = "support/counting.rs"]
mod counting;

use fastpath::graph::DropReason;
use fastpath::io::mem::MemPort;
use fastpath::io::{Frame, Pool};
use fastpath::packet::PortId;
use fastpath::tables::flow::{FlowConfig, Timeouts};
use fastpath::testbed::{PODS, Underlay, from_pod, pod, pod_port, snapshot};
use fastpath::wire::tcp;
use fastpath::wire::testgen::{Spec, refresh_ipv4_checksum};
use fastpath::worker::Worker;

#[test]
fn a_warm_worker_allocates_nothing() {
    let snap = snapshot(1, Underlay { encap: true, outer_v6: false });
    let (clock, time) = quanta::Clock::mock();
    let flow = FlowConfig { entries_v4: 4096, entries_v6: 4096, timeouts: Timeouts::default(), seed: 7 };
    let tables = std::sync::Arc::new(arc_swap::ArcSwap::from_pointee(snap));
    let mut worker = Worker::alone(Pool::in_memory(2048, 2048), &flow, tables, clock).unwrap();
    let mut wires = Vec::new();
    for id in 0..=u16::from(PODS) {
        let (port, wire) = MemPort::new(1024);
        worker.add_port(PortId(id), 0, Box::new(port));
        wires.push(wire);
    }
    // Hits and misses, both families, same node and tunnel, TTL and MTU errors, spoofed, no endpoint, malformed.
    let mut frames: Vec<(usize, Vec<u8>)> = Vec::new();
    for n in 0..24u16 {
        let v6 = n % 2 == 1;
        let here = pod(v6, 1, 1);
        let mut expired = Spec::udp(here, pod(v6, 1, 2), n, 9);
        expired.ttl = 1;
        let kinds = [
            Spec::tcp(here, pod(v6, 1, 2), 1000 + n, 80, tcp::control::SYN),
            Spec::udp(here, pod(v6, 2, 1), 1000 + n, 53),
            Spec::udp(here, pod(v6, 2, 1), 1000 + n, 54).with_payload(vec![0u8; 1440]),
            Spec::udp(here, pod(v6, 1, 99), n, 1),
            Spec::udp(pod(v6, 1, 3), pod(v6, 1, 2), n, 1),
            expired,
        ];
        frames.extend(kinds.into_iter().map(|s| (usize::from(pod_port(1).0), from_pod(1, 1, s))));
        // Fragments: in order, before their first one, overlapping, and without it.
        for (dport, places) in [
            (60u16, &[(0u16, true), (4, true), (8, false)][..]),
            (61, &[(8, false), (0, true), (4, true)]),
            (62, &[(4, true), (0, true), (3, false)]),
            (63, &[(4, false)]),
        ] {
            for (offset, more) in places {
                let payload = vec![0u8; if *offset == 0 { 24 } else { 32 }];
                let mut spec = Spec::udp(here, pod(v6, 2, 1), 1000, dport).with_payload(payload);
                spec.fragment = Some((*offset, *more));
                let mut frame = from_pod(1, 1, spec);
                frame[if v6 { 61 } else { 19 }] = u8::try_from(dport + 4 * n).unwrap();
                if !v6 {
                    refresh_ipv4_checksum(&mut frame);
                }
                frames.push((usize::from(pod_port(1).0), frame));
            }
        }
        frames.push((usize::from(pod_port(2).0), vec![0xff; 20]));
    }
    let mut injector: Vec<Frame> = Vec::with_capacity(1024);
    let mut spare = Pool::in_memory(1024, 2048);
    while let Some(frame) = spare.get() {
        injector.push(frame);
    }
    let mut round = |worker: &mut Worker| {
        for (port, bytes) in &frames {
            let mut frame = injector.pop().unwrap();
            assert!(frame.fill(bytes));
            assert!(wires[*port].inject(frame).is_ok());
        }
        // What was held in the last round is given up in this one.
        time.increment(std::time::Duration::from_secs(2));
        let before = counting::calls();
        while worker.pass() {}
        let during = counting::calls() - before;
        let mut sent = 0;
        for wire in &wires {
            while let Some(frame) = wire.collect() {
                injector.push(frame);
                sent += 1;
            }
        }
        while injector.len() < 600 {
            injector.push(worker.pool().get().unwrap());
        }
        (during, sent)
    };
    round(&mut worker);
    for _ in 0..20 {
        let (allocations, sent) = round(&mut worker);
        assert!(sent >= 24 * 2, "the packets must have gone through: {sent}");
        assert_eq!(allocations, 0);
    }
    let drops = |reason: DropReason| worker.stats().unwrap().drops[reason as usize].get();
    assert!(drops(DropReason::FragmentUnmatched) >= 24 && drops(DropReason::FragmentOverlap) >= 24);
}
