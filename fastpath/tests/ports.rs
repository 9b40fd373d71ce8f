//! Ports under load and in trouble, over memory ports: turns, sending, what a device does not take.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;

use fastpath::graph::DropReason;
use fastpath::io::{Frame, Pool, Port, PortStats};
use fastpath::packet::{Ip, PortId};
use fastpath::testbed::{Bed, PODS, UPLINK, Underlay, from_pod, mac, pod, pod_port, snapshot};
use fastpath::wire::testgen::Spec;

const VXLAN4: Underlay = Underlay { encap: true, outer_v6: false };
const NATIVE: Underlay = Underlay { encap: false, outer_v6: false };

/// The source of an IPv4 packet.
fn source(frame: &[u8]) -> Ip {
    Ip::v4(*frame[26..].first_chunk().unwrap())
}

/// More ports than one vector has room for, all with more than their turn: none waits for the others to finish.
#[test]
fn saturated_ports_are_served_evenly() {
    const EACH: u16 = 192;
    let mut bed = Bed::new(snapshot(1, NATIVE));
    let mut from = |port: PortId, spec: Spec, frame: Vec<u8>| {
        let src = spec.src;
        (0..EACH).for_each(|_| assert!(bed.send(port, &frame)));
        src
    };
    let mut sources: Vec<Ip> = (1..=PODS)
        .map(|n| {
            let spec = Spec::udp(pod(false, 1, n), pod(false, 1, n % PODS + 1), 1, 2);
            from(pod_port(n), spec.clone(), from_pod(1, n, spec))
        })
        .collect();
    let mut spec = Spec::udp(pod(false, 2, 1), pod(false, 1, 1), 1, 2);
    spec.dst_mac = mac(1, 0);
    sources.push(from(UPLINK, spec.clone(), spec.build()));

    let mut got: BTreeMap<Ip, usize> = BTreeMap::new();
    for pass in 0..6 {
        bed.worker.pass();
        for (_, frame) in bed.collect() {
            *got.entry(source(&frame)).or_default() += 1;
        }
        let counts = sources.iter().map(|s| got.get(s).copied().unwrap_or(0));
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(most - least <= 64, "pass {pass}: {got:?}");
    }
    assert_eq!(got.values().copied().collect::<Vec<_>>(), [usize::from(EACH); 5]);
}

/// A port whose device takes nothing: down, or with `waiting` calls until it has sent what it has.
struct Stuck {
    up: bool,
    waiting: u32,
}

impl Port for Stuck {
    fn rx(&mut self, _: &mut Vec<Frame>, _: usize) -> usize {
        0
    }

    fn tx(&mut self, _: &mut Vec<Frame>) -> usize {
        0
    }

    fn refill(&mut self, _: &mut Pool) -> bool {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting > 0
    }

    fn up(&self) -> bool {
        self.up
    }

    fn wake(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }

    fn stats(&self) -> PortStats {
        PortStats::default()
    }

    fn close(self: Box<Self>, _: &mut Pool) -> usize {
        0
    }
}

#[test]
fn what_a_device_does_not_take_is_dropped_by_name() {
    for (up, reason) in [(true, DropReason::TxRingFull), (false, DropReason::LinkDown)] {
        let mut bed = Bed::new(snapshot(1, VXLAN4));
        let free = bed.worker.pool().available();
        // The last queue given to a worker is the one it sends by.
        bed.worker.add_port(pod_port(2), 1, Box::new(Stuck { up, waiting: 0 }));
        bed.send(pod_port(1), &from_pod(1, 1, Spec::udp(pod(false, 1, 1), pod(false, 1, 2), 1, 2)));
        assert_eq!(bed.run(), []);
        assert_eq!(bed.drops(), [(reason, 1)].into());
        assert!(bed.worker.pool().available() >= free);
    }
}

#[test]
fn a_worker_stays_awake_for_what_is_not_sent_yet() {
    let mut bed = Bed::new(snapshot(1, VXLAN4));
    assert!(!bed.worker.pass());
    bed.worker.add_port(pod_port(2), 1, Box::new(Stuck { up: true, waiting: 5 }));
    assert_eq!((0..10).map(|_| bed.worker.pass()).filter(|busy| *busy).count(), 4);
}
