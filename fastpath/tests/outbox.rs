//! An outbox whose every call fails: its packets are dropped by name, it is given up, and the ports' sockets send.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;

use fastpath::graph::DropReason;
use fastpath::io::mem::{MemHandle, MemPort};
use fastpath::io::xsk::Outbox;
use fastpath::io::{Frame, Pool, Port, PortStats};
use fastpath::tables::flow::{FlowConfig, Timeouts};
use fastpath::testbed::{Underlay, from_pod, pod, pod_port, snapshot};
use fastpath::wire::testgen::Spec;
use fastpath::worker::Worker;

/// A port in memory whose device would take redirected frames.
struct Settled(MemPort);

impl Port for Settled {
    fn rx(&mut self, out: &mut Vec<Frame>, max: usize) -> usize {
        self.0.rx(out, max)
    }

    fn tx(&mut self, frames: &mut Vec<Frame>) -> usize {
        self.0.tx(frames)
    }

    fn refill(&mut self, pool: &mut Pool) -> bool {
        self.0.refill(pool)
    }

    fn settled(&self) -> bool {
        true
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn stats(&self) -> PortStats {
        self.0.stats()
    }

    fn close(self: Box<Self>, pool: &mut Pool) -> usize {
        Box::new(self.0).close(pool)
    }
}

/// Memory as a map's, and a program that is none.
fn broken() -> Outbox {
    let path = std::env::temp_dir().join(format!("fastpath-outbox-{}", std::process::id()));
    let memory =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    memory.set_len(Outbox::STRIDE as u64 * u64::from(Outbox::SLOTS + 1)).unwrap();
    Outbox::new(std::fs::File::open("/dev/null").unwrap().into(), memory.as_fd()).unwrap()
}

#[test]
fn failures_are_dropped_by_name_and_then_sockets_send() {
    const VECTOR: u64 = 32;
    let mut snap = snapshot(1, Underlay { encap: false, outer_v6: false });
    let to = usize::from(pod_port(2).0);
    snap.ports[to].as_mut().unwrap().redirect = std::num::NonZeroU32::new(1 << 30);
    let tables = std::sync::Arc::new(arc_swap::ArcSwap::from_pointee(snap));
    let flow = FlowConfig { entries_v4: 1024, entries_v6: 1024, timeouts: Timeouts::default(), seed: 7 };
    let (clock, _time) = quanta::Clock::mock();
    let mut worker = Worker::alone(Pool::in_memory(2048, 2048), &flow, tables, clock).unwrap();
    let mut wires: Vec<MemHandle> = Vec::new();
    for n in [1, 2] {
        let (port, wire) = MemPort::new(1024);
        worker.add_port(pod_port(n), 0, Box::new(Settled(port)));
        wires.push(wire);
    }
    let mut spare = Pool::in_memory(512, 2048);
    let mut vector = |worker: &mut Worker, count: u64| {
        for n in 0..count {
            let spec = Spec::udp(pod(false, 1, 1), pod(false, 1, 2), 1000 + u16::try_from(n).unwrap(), 9);
            assert!(wires[0].inject_bytes(&mut spare, &from_pod(1, 1, spec)));
        }
        while worker.pass() {}
        core::iter::from_fn(|| wires[1].collect()).map(|frame| spare.put(frame)).count() as u64
    };
    let dropped = |worker: &Worker| worker.stats().unwrap().drops[DropReason::CallFailed as usize].get();
    let given_up = |worker: &Worker| {
        let stats = worker.stats().unwrap();
        (!stats.sends_together.load(Relaxed)).then(|| stats.outbox_given_up.load(Relaxed))
    };
    assert_eq!(given_up(&worker), Some(0), "it never had one");
    worker.set_outbox(Box::new(broken()));
    assert_eq!(given_up(&worker), None);
    assert_eq!((vector(&mut worker, 8), dropped(&worker)), (8, 0), "too few for a call");
    for failures in 1..=8 {
        assert_eq!(given_up(&worker), None);
        assert_eq!((vector(&mut worker, VECTOR), dropped(&worker)), (0, failures * VECTOR));
        assert_eq!(worker.stats().unwrap().outbox_errors.get(), failures);
    }
    assert_eq!(given_up(&worker), Some(libc::EINVAL));
    for _ in 0..4 {
        assert_eq!((vector(&mut worker, VECTOR), dropped(&worker)), (VECTOR, 8 * VECTOR));
    }
    // Another one is a new beginning.
    worker.set_outbox(Box::new(broken()));
    assert_eq!(given_up(&worker), None);
    assert_eq!((vector(&mut worker, VECTOR), dropped(&worker)), (0, 9 * VECTOR));
}
