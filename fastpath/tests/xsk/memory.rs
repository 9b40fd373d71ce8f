//! Memory: how many frames a port has, private memory, what can be opened and what cannot.

use std::collections::HashSet;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use fastpath::io::xsk::{Mode, OpenConfig, Umem, UmemConfig, XskError, XskPort};
use fastpath::io::{Frame, Pool, Port};

use crate::support::{Raw, Redirect, frame, in_namespace, number, veth};
use crate::{FRAMES, assert_all_back, forward, open, umem, until};

/// Private memory (what a zero-copy port has): packets are copied at the border, and every frame goes home.
#[test]
fn private_memory_exchanges_packets_with_the_shared() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        let (umem, mut pool) = umem();
        for _ in 0..10 {
            let r0 = Redirect::attach("h0");
            let r1 = Redirect::attach("h1");
            let private = OpenConfig { private_frames: 1024, ..OpenConfig::new("h0", 0) };
            let mut h0 = open(&umem, &private, &r0, &mut pool);
            let mut h1 = open(&umem, &OpenConfig::new("h1", 0), &r1, &mut pool);
            assert_eq!(h0.stats().rx_held, 64);
            let (p0, p1) = (Raw::open("p0"), Raw::open("p1"));
            let mut batch = Vec::with_capacity(256);
            let (mut sent, mut there, mut back) = (0, HashSet::new(), HashSet::new());
            until("frames both ways", || {
                if sent < 1000 {
                    for _ in 0..20 {
                        p0.send(&frame(sent, 500));
                        p1.send(&frame(10_000 + sent, 500));
                        sent += 1;
                    }
                }
                forward(&mut h0, &mut h1, &mut pool, &mut batch);
                forward(&mut h1, &mut h0, &mut pool, &mut batch);
                there.extend(std::iter::from_fn(|| p1.recv()).map(|f| number(&f).unwrap()));
                back.extend(std::iter::from_fn(|| p0.recv()).map(|f| number(&f).unwrap()));
                // The first batch into the shared memory finds no frame to copy to.
                sent == 1000 && there.len() >= 900 && back.len() == 1000
            });
            let (s0, s1) = (h0.stats(), h1.stats());
            assert!(s0.tx_copied >= 1000 && s1.tx_copied >= 900);
            assert_eq!((s0.ring_errors, s1.ring_errors), (0, 0));
            Box::new(h0).close(&mut pool);
            Box::new(h1).close(&mut pool);
            assert_all_back(&umem, &mut pool);
        }
        // Closing the private port with its frames still out: they stay valid, and go to their own home.
        let r0 = Redirect::attach("h0");
        let private = OpenConfig { private_frames: 256, ..OpenConfig::new("h0", 0) };
        let mut h0 = open(&umem, &private, &r0, &mut pool);
        Raw::open("p0").send(&frame(77, 900));
        let mut held = Vec::new();
        until("a frame", || h0.rx(&mut held, 1) == 1);
        r0.remove(0);
        Box::new(h0).close(&mut pool);
        assert_eq!(number(held[0].data()), Some(77));
        held.drain(..).for_each(|f| pool.put(f));
        assert_all_back(&umem, &mut pool);
        // And the queue is free again although that memory stays mapped.
        drop(umem.open(&OpenConfig::new("h0", 0)).unwrap());
    });
}

#[test]
fn fill_level_follows_the_load_and_spares_a_scarce_pool() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        let (umem, mut pool) = umem();
        let r0 = Redirect::attach("h0");
        let limited = OpenConfig { fill_target: 320, ..OpenConfig::new("h0", 0) };
        let mut h0 = open(&umem, &limited, &r0, &mut pool);
        let sender = Raw::open("p0");
        assert_eq!(h0.stats().rx_held, 64, "one NAPI budget to begin with");
        let mut batch = Vec::new();
        let mut burst = |h0: &mut XskPort, pool: &mut Pool| {
            (0..200).for_each(|n| sender.send(&frame(n, 60)));
            let mut n = 0;
            until("the burst", || {
                n += h0.rx(&mut batch, 256);
                n >= 60
            });
            batch.drain(..).for_each(|f| pool.put(f));
            h0.refill(pool);
        };
        for _ in 0..5 {
            burst(&mut h0, &mut pool);
        }
        assert!(h0.stats().rx_held > 256, "{:?}", h0.stats());
        // The same with hardly a frame left for others.
        let hoard: Vec<Frame> = (0..1700).map(|_| pool.get().unwrap()).collect();
        for _ in 0..10 {
            burst(&mut h0, &mut pool);
        }
        assert!(h0.stats().rx_held <= 2048 - 1700 - 256, "{:?}", h0.stats());
        // Calm for a while, with frames scarce: it does not want so many any more.
        (0..1000).for_each(|_| assert!(!h0.refill(&mut pool)));
        hoard.into_iter().for_each(|f| pool.put(f));
        h0.refill(&mut pool);
        assert!(h0.stats().rx_held <= 2048 - 1700 - 256, "{:?}", h0.stats());
        burst(&mut h0, &mut pool);
        assert!(h0.stats().rx_held > 128, "{:?}", h0.stats());
        Box::new(h0).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        let (umem, mut pool) = self::umem();
        let fails = |config: &OpenConfig| umem.open(config).unwrap_err().to_string();
        let ok = OpenConfig::new("h0", 0);
        let no_device = fails(&OpenConfig::new("nope", 0));
        assert!(no_device.contains("nope queue 0") && no_device.contains("no such device"), "{no_device}");
        let no_queue = fails(&OpenConfig::new("h0", 9));
        assert!(no_queue.contains("h0 queue 9") && no_queue.contains("no such queue"), "{no_queue}");
        let ring = fails(&OpenConfig { rx_ring: 500, ..ok.clone() });
        assert!(ring.contains("rx_ring is 500: a power of two"), "{ring}");
        assert!(fails(&OpenConfig::new("h\x00", 0)).contains("is not one"));
        // A veth has no zero copy: refused when demanded, done without when not.
        assert!(matches!(
            umem.open(&OpenConfig { mode: Mode::ZeroCopy, ..ok.clone() }),
            Err(XskError::Open { mode: Mode::ZeroCopy, .. })
        ));
        for private_frames in [0, 512] {
            let port = umem.open(&OpenConfig { mode: Mode::Auto, private_frames, ..ok.clone() }).unwrap();
            assert!(!port.zero_copy());
            Box::new(port).close(&mut pool);
        }
        let held = umem.open(&ok).unwrap();
        let twice = fails(&ok);
        assert!(twice.contains("this process has a port there"), "{twice}");
        let (other, _frames) = self::umem();
        let taken = other.open(&ok).unwrap_err().to_string();
        assert!(taken.contains("another AF_XDP socket holds this queue"), "{taken}");
        drop(held);
        Box::new(umem.open(&ok).unwrap()).close(&mut pool);
        assert_all_back(&umem, &mut pool);

        for (config, want) in [
            (UmemConfig { frames: 0, ..UmemConfig::default() }, "frames is 0"),
            (UmemConfig { frame_size: 3000, ..UmemConfig::default() }, "frame_size is 3000"),
            (UmemConfig { frame_size: 1024, ..UmemConfig::default() }, "frame_size is 1024"),
            (UmemConfig { fill_ring: 3, ..UmemConfig::default() }, "fill_ring is 3"),
            (UmemConfig { completion_ring: 0, ..UmemConfig::default() }, "completion_ring is 0"),
        ] {
            let error = Umem::new(config).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    });
}

/// A second UMEM in the same namespace cannot have the loopback device as its anchor.
#[test]
fn two_umems_live_side_by_side() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        let (first, mut pool1) = umem();
        let (second, mut pool2) = umem();
        let taps =
            || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().matches("fp-umem").count();
        assert_eq!(taps(), 1);
        let r0 = Redirect::attach("h0");
        let mut h0 = open(&first, &OpenConfig::new("h0", 0), &r0, &mut pool1);
        let mut h1 = umem_port(&second, "h1", &mut pool2);
        let (sender, receiver) = (Raw::open("p0"), Raw::open("p1"));
        sender.send(&frame(1, 80));
        let mut batch = Vec::new();
        until("a frame into the first", || h0.rx(&mut batch, 256) == 1);
        // Copied into the second's memory, once it has frames for that.
        until("the copy", || {
            h1.refill(&mut pool2);
            h1.tx(&mut batch) == 1
        });
        until("a frame out of the second", || receiver.recv().is_some_and(|f| number(&f) == Some(1)));
        assert_eq!((h1.stats().tx_copied, h1.stats().tx_packets), (1, 1));
        drop(h1);
        drop(second);
        assert_eq!(taps(), 0, "its anchor is gone with it");
        drop(h0);
        drop(first);
        // The loopback device is free again.
        let (_third, _) = umem();
        assert_eq!(taps(), 0);
    });
}

fn umem_port(umem: &Umem, name: &str, pool: &mut Pool) -> XskPort {
    let mut port = umem.open(&OpenConfig::new(name, 0)).unwrap();
    port.refill(pool);
    port
}

#[test]
fn huge_pages_are_used_or_done_without() {
    in_namespace(|| {
        veth("p1", "h1", 1);
        let config = UmemConfig { frames: 1000, frame_size: 4096, huge_pages: true, ..UmemConfig::default() };
        let (umem, frames) = Umem::new(config).unwrap();
        assert_eq!(frames.len(), 1024, "full pages");
        assert_eq!(frames[0].tailroom(), 4096 - 256);
        let free = std::fs::read_to_string("/proc/meminfo").unwrap();
        if free.lines().any(|l| l.starts_with("HugePages_Total") && l.ends_with(" 0")) {
            assert!(!umem.huge_pages());
        }
        let mut pool = Pool::new(frames, Arc::new(ArrayQueue::new(1024)));
        let mut h1 = umem_port(&umem, "h1", &mut pool);
        let mut f = pool.get().unwrap();
        assert!(f.fill(&frame(3, 1500)));
        assert_eq!(h1.tx(&mut vec![f]), 1);
        let receiver = Raw::open("p1");
        let mut f = pool.get().unwrap();
        assert!(f.fill(&frame(4, 1500)));
        assert_eq!(h1.tx(&mut vec![f]), 1);
        until("the frame", || receiver.recv().is_some_and(|f| number(&f) == Some(4)));
        Box::new(h1).close(&mut pool);
    });
}

/// Idle ports hold few frames, so that there are some for each of many; nothing but packets would bring them back.
#[test]
fn quiet_ports_leave_frames_for_others() {
    in_namespace(|| {
        veth("p0", "h0", 16);
        veth("p1", "h1", 16);
        let (umem, mut pool) = umem();
        let mut ports = Vec::new();
        for (name, queue) in ["h0", "h1"].iter().flat_map(|name| (0..15).map(move |queue| (*name, queue))) {
            let mut port = umem.open(&OpenConfig::new(name, queue)).unwrap();
            (0..100).for_each(|_| assert!(!port.refill(&mut pool)));
            assert_eq!(port.stats().rx_held, 64, "{name} {queue}");
            ports.push(port);
        }
        for port in ports {
            Box::new(port).close(&mut pool);
        }
        // One that is told to begins with more.
        let mut port = umem.open(&OpenConfig { fill_start: 512, ..OpenConfig::new("h0", 0) }).unwrap();
        port.refill(&mut pool);
        assert_eq!(port.stats().rx_held, 512);
        Box::new(port).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

/// From other memory, and longer than a frame of the port's: dropped, and the frame it was to be copied into is kept.
#[test]
fn what_does_not_fit_the_ports_memory_costs_no_frame() {
    in_namespace(|| {
        veth("p1", "h1", 1);
        let (umem, mut pool) = umem();
        let mut h1 = umem_port(&umem, "h1", &mut pool);
        let mut large = Pool::in_memory(100, 4096);
        while let Some(mut f) = large.get() {
            assert!(f.fill(&frame(1, 3000)));
            let mut batch = vec![f];
            until("a frame to copy into", || {
                let taken = h1.tx(&mut batch) == 1;
                h1.refill(&mut pool);
                taken
            });
        }
        assert_eq!((h1.stats().tx_invalid, h1.stats().tx_copied), (100, 0));
        Box::new(h1).close(&mut pool);
        assert_eq!(umem.lent(), 0);
        let own = std::iter::from_fn(|| pool.get()).filter(|f| f.tailroom() < 2048).count();
        assert_eq!(own, FRAMES as usize);
    });
}
