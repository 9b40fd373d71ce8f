//! Memory of several UMEMs: which port is on which, packets between them, what is left where only one can be had.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use fastpath::io::xsk::{OpenConfig, Umem, UmemConfig, XskPort};
use fastpath::io::{Frame, Pool, Port};

use crate::support::{Raw, Redirect, frame, in_namespace, number, run, veth};
use crate::{forward, open, until};

/// A UMEM, and a pool for each group.
fn divided(config: UmemConfig) -> (Umem, Vec<Pool>) {
    let groups = config.groups as usize;
    let (umem, mut frames) = Umem::new(config).unwrap();
    let exchange = Arc::new(ArrayQueue::new(frames.len()));
    let share = frames.len() / groups;
    let pools = (0..groups).map(|_| Pool::new(frames.drain(..share).collect(), Arc::clone(&exchange)));
    (umem, pools.collect())
}

fn count(pool: &mut Pool) -> usize {
    let all: Vec<Frame> = std::iter::from_fn(|| pool.get()).collect();
    all.into_iter().map(|f| pool.put(f)).count()
}

/// Sends a packet from one port's memory by another port, and says whether it was copied.
fn crosses(from: &mut XskPort, to: &mut XskPort, pool: &mut Pool, sender: &Raw, receiver: &Raw) -> bool {
    let before = to.stats().tx_copied;
    sender.send(&frame(7, 300));
    let mut batch = Vec::new();
    until("a frame", || from.rx(&mut batch, 1) == 1);
    until("it is taken", || {
        let taken = to.tx(&mut batch) == 1;
        to.refill(pool);
        taken
    });
    until("it arrives", || receiver.recv().is_some_and(|f| number(&f) == Some(7)));
    to.stats().tx_copied > before
}

/// Workers' memories are apart: packets are copied, and every frame ends in its own worker's pool.
#[test]
fn packets_cross_between_workers_and_frames_go_home() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        let config = UmemConfig { frames: 4096, arena_frames: 1024, groups: 2, ..UmemConfig::default() };
        let (umem, mut pools) = divided(config);
        assert_eq!(umem.arenas(), 4);
        let [a, b] = pools.as_mut_slice() else { panic!("two pools") };
        let (r0, r1) = (Redirect::attach("h0"), Redirect::attach("h1"));
        let mut h0 = open(&umem, &OpenConfig { group: 0, ..OpenConfig::new("h0", 0) }, &r0, a);
        let mut h1 = open(&umem, &OpenConfig { group: 1, ..OpenConfig::new("h1", 0) }, &r1, b);
        let (p0, p1) = (Raw::open("p0"), Raw::open("p1"));
        let mut batch = Vec::with_capacity(256);
        let (mut sent, mut there, mut back) = (0, 0, 0);
        // Many times what either memory has: any frame that did not come home would be missed.
        until("frames both ways", || {
            if sent < 20_000 && sent < there + 128 && sent < back + 128 {
                (0..32).for_each(|n| p0.send(&frame(sent + n, 200)));
                (0..32).for_each(|n| p1.send(&frame(sent + n, 200)));
                sent += 32;
            }
            // As two workers do: each refills its own port from its own pool, and puts what it sent back there.
            let got = h0.rx(&mut batch, 256);
            h1.tx(&mut batch);
            h1.refill(b);
            h1.tx(&mut batch);
            batch.drain(..).for_each(|f| b.put(f));
            assert!(got <= 256);
            h1.rx(&mut batch, 256);
            h0.tx(&mut batch);
            h0.refill(a);
            h0.tx(&mut batch);
            batch.drain(..).for_each(|f| a.put(f));
            there += std::iter::from_fn(|| p1.recv()).count() as u32;
            back += std::iter::from_fn(|| p0.recv()).count() as u32;
            sent >= 20_000 && there == sent && back == sent
        });
        for port in [&h0, &h1] {
            assert_eq!(port.stats().tx_copied, u64::from(sent));
            assert_eq!(port.stats().ring_errors, 0);
        }
        Box::new(h0).close(a);
        Box::new(h1).close(b);
        assert_eq!(umem.lent(), 0);
        assert_eq!((count(a), count(b)), (2048, 2048), "each its own");
    });
}

/// Few ports are on one UMEM, and copy nothing between them; more are spread evenly.
#[test]
fn ports_stay_together_while_they_are_few() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        for n in 1..9 {
            veth(&format!("p{n}"), &format!("h{n}"), 1);
        }
        let config = UmemConfig { frames: 8192, arena_frames: 2048, ..UmemConfig::default() };
        let (umem, mut pools) = divided(config);
        assert_eq!(umem.arenas(), 4);
        let pool = &mut pools[0];
        let r0 = Redirect::attach("h0");
        let mut first = open(&umem, &OpenConfig::new("h0", 0), &r0, pool);
        let sender = Raw::open("p0");
        let mut copied = Vec::new();
        let mut others = Vec::new();
        for n in 1..9 {
            let mut port = umem.open(&OpenConfig::new(format!("h{n}"), 0)).unwrap();
            port.refill(pool);
            copied.push(crosses(&mut first, &mut port, pool, &sender, &Raw::open(&format!("p{n}"))));
            first.refill(pool);
            others.push(port);
        }
        // Eight of 64 frames to begin with, and as many on their way, are half of an arena.
        assert_eq!(copied, [false, false, false, false, false, false, false, true]);
        // What leaves makes room.
        Box::new(others.remove(0)).close(pool);
        Box::new(others.remove(6)).close(pool);
        let mut port = umem.open(&OpenConfig::new("h1", 0)).unwrap();
        port.refill(pool);
        assert!(!crosses(&mut first, &mut port, pool, &sender, &Raw::open("p1")));
        Box::new(port).close(pool);
        for port in others {
            assert_eq!(Box::new(port).close(pool), 0);
        }
        Box::new(first).close(pool);
        assert_eq!((umem.lent(), count(pool)), (0, 8192));
    });
}

/// Where no tap device can be made (a container without /dev/net/tun), the loopback device bears one UMEM for all.
#[test]
fn without_a_tap_device_there_is_one_umem() {
    in_namespace(|| {
        // SAFETY: only this thread's mounts change.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        run("mount", "--make-rprivate /");
        run("mount", "--bind /dev/null /dev/net/tun");
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        let config = UmemConfig { frames: 4096, arena_frames: 1024, groups: 2, ..UmemConfig::default() };
        let (umem, mut frames) = Umem::new(config).unwrap();
        assert_eq!((umem.arenas(), frames.len()), (1, 4096));
        let exchange = Arc::new(ArrayQueue::new(frames.len()));
        let mut b = Pool::new(frames.split_off(2048), Arc::clone(&exchange));
        let mut a = Pool::new(frames, exchange);
        let (r0, r1) = (Redirect::attach("h0"), Redirect::attach("h1"));
        let mut h0 = open(&umem, &OpenConfig { group: 0, ..OpenConfig::new("h0", 0) }, &r0, &mut a);
        let mut h1 = open(&umem, &OpenConfig { group: 1, ..OpenConfig::new("h1", 0) }, &r1, &mut b);
        let (p0, p1) = (Raw::open("p0"), Raw::open("p1"));
        let mut batch = Vec::with_capacity(256);
        let (mut sent, mut there) = (0, 0);
        until("frames", || {
            if sent < 8000 && sent < there + 128 {
                (0..32).for_each(|n| p0.send(&frame(sent + n, 200)));
                sent += 32;
            }
            forward(&mut h0, &mut h1, &mut b, &mut batch);
            h0.refill(&mut a);
            there += std::iter::from_fn(|| p1.recv()).count() as u32;
            sent >= 8000 && there == sent
        });
        assert_eq!(h1.stats().tx_copied, 0);
        Box::new(h0).close(&mut a);
        Box::new(h1).close(&mut b);
        assert_eq!(umem.lent(), 0);
        let all: Vec<Frame> = std::iter::from_fn(|| a.get().or_else(|| b.get())).collect();
        assert_eq!(all.len(), 4096);
    });
}
