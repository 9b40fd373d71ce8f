//! Packets through ports: content, order, batches, queues, waking.

use std::collections::HashSet;

use fastpath::io::xsk::{OpenConfig, UmemConfig, XskPort};
use fastpath::io::{Frame, Port};

use crate::assert_all_back;
use crate::support::{self, Raw, Redirect, frame, in_namespace, ip, number, veth};
use crate::{forward, open, umem, umem_of, until};

#[test]
fn forwards_between_veths_on_one_umem() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        let (mut umem, mut pool) = umem();
        let r0 = Redirect::attach("h0");
        let mut h0 = open(&umem, &OpenConfig::new("h0", 0), &r0, &mut pool);
        let mut h1 = umem.open(&OpenConfig::new("h1", 0)).unwrap();
        assert!(!h0.zero_copy());
        let (sender, receiver) = (Raw::open("p0"), Raw::open("p1"));

        let mut batch = Vec::with_capacity(256);
        let (mut sent, mut got, mut bytes) = (0u32, 0u32, 0u64);
        until("2000 frames", || {
            for _ in 0..40.min(2000 - sent) {
                let len = 60 + (sent as usize * 37) % 1455;
                sender.send(&frame(sent, len));
                bytes += len as u64;
                sent += 1;
            }
            forward(&mut h0, &mut h1, &mut pool, &mut batch);
            while let Some(f) = receiver.recv() {
                assert_eq!(number(&f), Some(got), "in order and unchanged");
                got += 1;
            }
            got == 2000
        });
        let (s0, s1) = (h0.stats(), h1.stats());
        assert_eq!((s0.rx_packets, s0.rx_bytes, s1.tx_packets, s1.tx_bytes), (2000, bytes, 2000, bytes));
        assert_eq!(
            (s0.ring_errors, s1.ring_errors, s1.kernel_tx_invalid, s0.kernel_rx_dropped),
            (0, 0, 0, 0)
        );
        assert!(s0.rx_held >= 60 && s0.rx_held <= 320, "{s0:?}");
        Box::new(h0).close(&mut pool);
        Box::new(h1).close(&mut pool);
        assert_all_back(&umem, &mut pool);
        // A clone keeps the memory usable.
        umem = umem.clone();
        umem.open(&OpenConfig::new("h1", 0)).unwrap();
    });
}

#[test]
fn sends_from_a_moved_start() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        ip("link set h1 mtu 2000");
        ip("link set p1 mtu 2000");
        let (umem, mut pool) = umem();
        let r0 = Redirect::attach("h0");
        let mut h0 = open(&umem, &OpenConfig::new("h0", 0), &r0, &mut pool);
        let mut h1 = umem.open(&OpenConfig::new("h1", 0)).unwrap();
        let (sender, receiver) = (Raw::open("p0"), Raw::open("p1"));

        // (bytes cut off the front, bytes put in front, length): up to the whole headroom, up to the whole chunk.
        let cases =
            [(0, 50, 60), (0, 70, 1514), (0, 256, 1000), (14, 50, 1514), (14, 0, 700), (0, 256, 1514)];
        for (case, (pull, push, len)) in (0u32..).zip(cases) {
            let original = frame(case, len);
            sender.send(&original);
            let mut batch = Vec::new();
            until("the frame", || h0.rx(&mut batch, 1) == 1);
            assert_eq!((batch[0].head(), batch[0].data()), (256, &original[..]));
            assert!(batch[0].pull(pull) && batch[0].push(push));
            let mut want = if push > 0 { frame(900 + case, usize::from(push)) } else { Vec::new() };
            batch[0].data_mut()[..want.len()].copy_from_slice(&want);
            want.extend(&original[usize::from(pull)..]);
            if push == 0 {
                want[12..14].copy_from_slice(&support::ETHERTYPE);
                batch[0].data_mut()[12..14].copy_from_slice(&support::ETHERTYPE);
            }
            assert_eq!(h1.tx(&mut batch), 1);
            let mut got = None;
            until("the moved frame", || {
                got = receiver.recv();
                got.is_some()
            });
            assert_eq!(got.unwrap(), want, "case {case}");
            until("its completion", || {
                h0.refill(&mut pool);
                h1.refill(&mut pool);
                h1.stats().tx_held == 0
            });
        }
        assert_eq!(h1.stats().kernel_tx_invalid, 0);
        Box::new(h0).close(&mut pool);
        Box::new(h1).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

/// One call takes a whole vector, however many descriptors the kernel sends per system call.
#[test]
fn one_tx_sends_all_of_a_large_batch() {
    in_namespace(|| {
        veth("p1", "h1", 1);
        let (umem, mut pool) = umem();
        let mut h1 = umem.open(&OpenConfig::new("h1", 0)).unwrap();
        let receiver = Raw::open("p1");
        for round in 0..20 {
            let mut batch: Vec<Frame> = (0..256).map(|_| pool.get().unwrap()).collect();
            for (i, f) in (0u32..).zip(&mut batch) {
                assert!(f.fill(&frame(round * 256 + i, 60)));
            }
            assert_eq!(h1.tx(&mut batch), 256);
            let mut got = 0;
            until("256 frames", || {
                while let Some(f) = receiver.recv() {
                    assert_eq!(number(&f), Some(round * 256 + got));
                    got += 1;
                }
                h1.refill(&mut pool);
                got == 256 && h1.stats().tx_held == 0
            });
        }
        let stats = h1.stats();
        let per_kick = u64::from(h1.tx_budget()).min(256);
        assert_eq!((stats.tx_packets, stats.tx_completed), (5120, 5120));
        assert!(stats.tx_kicks >= 20 && stats.tx_kicks <= 20 * (256 / per_kick + 4), "{stats:?}");
        Box::new(h1).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

/// More than the tx ring holds: the rest stays with the caller and goes out after a refill, each once, in order.
#[test]
fn full_tx_ring_leaves_the_rest_with_the_caller() {
    in_namespace(|| {
        veth("p1", "h1", 1);
        let (umem, mut pool) =
            umem_of(UmemConfig { frames: 1024, completion_ring: 64, ..UmemConfig::default() });
        let mut h1 = umem.open(&OpenConfig { tx_ring: 128, ..OpenConfig::new("h1", 0) }).unwrap();
        let receiver = Raw::open("p1");
        let mut batch: Vec<Frame> = (0..300).map(|_| pool.get().unwrap()).collect();
        for (i, f) in (0u32..).zip(&mut batch) {
            assert!(f.fill(&frame(i, 100)));
        }
        assert_eq!(h1.tx(&mut batch), 64, "as many as the completion ring can take back");
        assert_eq!((batch.len(), h1.stats().tx_ring_full), (236, 236));
        assert_eq!(h1.tx(&mut batch), 0);
        let mut got = 0;
        until("300 frames", || {
            h1.refill(&mut pool);
            h1.tx(&mut batch);
            while let Some(f) = receiver.recv() {
                assert_eq!(number(&f), Some(got));
                got += 1;
            }
            got == 300
        });
        // Too short for an Ethernet header: taken and counted, never given to the kernel.
        let mut short: Vec<Frame> = (0..3).map(|_| pool.get().unwrap()).collect();
        assert!(short[1].set_len(13));
        assert!(short[2].fill(&frame(7, 60)));
        until("room", || {
            h1.refill(&mut pool);
            h1.tx(&mut short) > 0
        });
        until("the taken ones", || {
            h1.refill(&mut pool);
            h1.tx(&mut short);
            receiver.recv().is_some_and(|f| number(&f) == Some(7))
        });
        assert_eq!((h1.stats().tx_invalid, h1.stats().kernel_tx_invalid), (2, 0));
        Box::new(h1).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

#[test]
fn queues_of_one_device_are_ports_of_their_own() {
    in_namespace(|| {
        veth("p0", "h0", 2);
        veth("p1", "h1", 2);
        let (umem, mut pool) = umem();
        let r0 = Redirect::attach("h0");
        let port = |name: &str, queue| umem.open(&OpenConfig::new(name, queue)).unwrap();
        // A socket sends on its own queue, and a veth delivers on the queue of the same number.
        let mut generators = [port("p0", 0), port("p0", 1)];
        let mut inputs = [0, 1].map(|q| open(&umem, &OpenConfig::new("h0", q), &r0, &mut pool));
        let mut outputs = [port("h1", 1), port("h1", 0)];
        let receiver = Raw::open("p1");
        let mut batch = Vec::new();
        let mut seen = HashSet::new();
        for round in 0..50u32 {
            for (queue, generator) in (0u32..).zip(&mut generators) {
                for i in 0..20 {
                    let mut f = pool.get().unwrap();
                    assert!(f.fill(&frame(round * 100 + queue * 50 + i, 200)));
                    batch.push(f);
                }
                assert_eq!(generator.tx(&mut batch), 20);
            }
            until("both queues", || {
                for (input, output) in inputs.iter_mut().zip(&mut outputs) {
                    forward(input, output, &mut pool, &mut batch);
                }
                generators.iter_mut().for_each(|g| _ = g.refill(&mut pool));
                seen.extend(std::iter::from_fn(|| receiver.recv()).map(|f| number(&f).unwrap()));
                seen.len() == (round as usize + 1) * 40
            });
        }
        for port in inputs.iter().chain(&outputs) {
            let stats = port.stats();
            assert_eq!(stats.rx_packets + stats.tx_packets, 1000, "{stats:?}");
        }
        for port in generators.into_iter().chain(inputs).chain(outputs) {
            Box::new(port).close(&mut pool);
        }
        assert_all_back(&umem, &mut pool);
    });
}

#[test]
fn wake_becomes_readable_when_a_packet_is_there() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        let (umem, mut pool) = umem();
        let r0 = Redirect::attach("h0");
        let mut h0 = open(&umem, &OpenConfig::new("h0", 0), &r0, &mut pool);
        let readable = |port: &XskPort, seconds| {
            let fd = port.wake().unwrap();
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: seconds, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
        };
        assert!(!readable(&h0, 0));
        Raw::open("p0").send(&frame(1, 60));
        assert!(readable(&h0, 10));
        let mut batch = Vec::new();
        assert_eq!(h0.rx(&mut batch, 256), 1);
        assert!(!readable(&h0, 0));
        batch.drain(..).for_each(|f| pool.put(f));
        Box::new(h0).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

#[test]
fn busy_polling_receives() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        let (umem, mut pool) = umem();
        let r0 = Redirect::attach("h0");
        let busy_poll = Some(fastpath::io::xsk::BusyPoll { microseconds: 20, budget: 64 });
        let config = OpenConfig { busy_poll, ..OpenConfig::new("h0", 0) };
        let mut h0 = open(&umem, &config, &r0, &mut pool);
        let sender = Raw::open("p0");
        let mut batch = Vec::new();
        for n in 0..100 {
            sender.send(&frame(n, 60));
            until("the frame", || h0.rx(&mut batch, 256) == 1);
            assert_eq!(number(batch[0].data()), Some(n));
            batch.drain(..).for_each(|f| pool.put(f));
            h0.refill(&mut pool);
        }
        let kicks = h0.stats().rx_kicks;
        assert_eq!(h0.rx(&mut batch, 256), 0);
        assert_eq!(h0.stats().rx_kicks, kicks + 1, "an empty ring is a reason to poll the device");
        Box::new(h0).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}
