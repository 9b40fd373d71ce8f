//! AF_XDP ports on real veths. Needs root; every test has a network namespace of its own.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "constants and lengths of tests")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use fastpath::io::xsk::{Mode, OpenConfig, Umem, UmemConfig, XskError, XskPort};
use fastpath::io::{Frame, Pool, Port};
use support::{Raw, Redirect, frame, in_namespace, ip, number, veth};

const FRAMES: u32 = 2048;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn umem() -> (Umem, Pool) {
    umem_of(UmemConfig { frames: FRAMES, ..UmemConfig::default() })
}

fn umem_of(config: UmemConfig) -> (Umem, Pool) {
    let (umem, frames) = Umem::new(config).unwrap();
    let exchange = Arc::new(ArrayQueue::new(frames.len()));
    (umem, Pool::new(frames, exchange))
}

/// A port that is in the map of its device's program, stocked with frames.
fn open(umem: &Umem, config: &OpenConfig, redirect: &Redirect, pool: &mut Pool) -> XskPort {
    let mut port = umem.open(config).unwrap();
    port.refill(pool);
    redirect.insert(config.queue, port.fd());
    port
}

/// Every frame is back in the pool, each once.
fn assert_all_back(umem: &Umem, pool: &mut Pool) {
    assert_eq!(umem.lent(), 0);
    let frames: Vec<Frame> = std::iter::from_fn(|| pool.get()).collect();
    assert_eq!(frames.len(), umem.config().frames as usize, "frames were lost");
    let numbers: HashSet<u32> = frames.iter().map(Frame::index).collect();
    assert_eq!(numbers.len(), frames.len(), "frames were doubled");
    frames.into_iter().for_each(|f| pool.put(f));
}

/// Calls `step` until it says `true`; fails after ten seconds without.
fn until(what: &str, mut step: impl FnMut() -> bool) {
    let start = Instant::now();
    while !step() {
        assert!(start.elapsed() < Duration::from_secs(10), "gave up waiting: {what}");
    }
}

/// Moves up to a batch from one port to another, and refills both. Frames that do not fit go to the pool.
fn forward(from: &mut dyn Port, to: &mut dyn Port, pool: &mut Pool, batch: &mut Vec<Frame>) -> usize {
    batch.reserve(256);
    let before = ALLOCATIONS.get();
    let n = from.rx(batch, 256);
    to.tx(batch);
    to.refill(pool);
    if !batch.is_empty() {
        to.tx(batch);
    }
    batch.drain(..).for_each(|f| pool.put(f));
    from.refill(pool);
    assert_eq!(ALLOCATIONS.get(), before, "the packet path allocates nothing");
    n
}

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
                generators.iter_mut().for_each(|g| g.refill(&mut pool));
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

/// Sends numbered frames by `ifname` until told to stop, in the namespace of the calling thread.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<()>,
}

impl Traffic {
    fn start(ifname: &str) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let socket = Raw::open(ifname);
        let (stop2, sent2) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let packet = frame(1, 300);
            while !stop2.load(Ordering::Relaxed) {
                for _ in 0..32 {
                    sent2.fetch_add(u32::from(socket.try_send(&packet)), Ordering::Relaxed);
                }
                // Other tests run on the same few cores.
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        Self { stop, sent, thread }
    }

    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

#[test]
fn no_frame_is_lost_by_opening_and_closing_under_traffic() {
    in_namespace(|| {
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        let (umem, frames) = Umem::new(UmemConfig { frames: FRAMES, ..UmemConfig::default() }).unwrap();
        let exchange = Arc::new(ArrayQueue::new(frames.len()));
        let mut closer = Pool::new(Vec::new(), exchange.clone());
        let mut pool = Pool::new(frames, exchange);
        let r0 = Redirect::attach("h0");
        let r1 = Redirect::attach("h1");
        let traffic = [Traffic::start("p0"), Traffic::start("p1")];
        let mut batch = Vec::with_capacity(256);
        let mut forwarded = 0;
        for round in 0..100 {
            let mut h0 = open(&umem, &OpenConfig::new("h0", 0), &r0, &mut pool);
            let mut h1 = open(&umem, &OpenConfig::new("h1", 0), &r1, &mut pool);
            let before = forwarded;
            until("traffic both ways", || {
                let there = forward(&mut h0, &mut h1, &mut pool, &mut batch);
                let back = forward(&mut h1, &mut h0, &mut pool, &mut batch);
                forwarded += there + back;
                forwarded >= before + 64 && h0.stats().rx_packets > 0 && h1.stats().rx_packets > 0
            });
            // Closed with packets unread, in flight and coming in; every third time while still in the map, and
            // once in a while with packets just handed over for sending.
            h0.rx(&mut batch, 64);
            h1.tx(&mut batch);
            if round % 3 != 0 {
                r0.remove(0);
                r1.remove(0);
            }
            let errors = h0.stats().ring_errors + h1.stats().ring_errors;
            assert_eq!(errors, 0);
            Box::new(h0).close(&mut closer);
            Box::new(h1).close(&mut pool);
            batch.drain(..).for_each(|f| pool.put(f));
            assert_all_back(&umem, &mut pool);
        }
        for t in traffic {
            assert!(t.stop() > 0);
        }
    });
}

#[test]
fn survives_the_deletion_of_its_device_and_of_the_first_one_opened() {
    in_namespace(|| {
        let (umem, mut pool) = umem();
        let mut batch = Vec::with_capacity(256);
        for _ in 0..5 {
            veth("p0", "h0", 1);
            veth("p1", "h1", 1);
            let r0 = Redirect::attach("h0");
            let r1 = Redirect::attach("h1");
            let mut h0 = open(&umem, &OpenConfig::new("h0", 0), &r0, &mut pool);
            let mut h1 = open(&umem, &OpenConfig::new("h1", 0), &r1, &mut pool);
            let traffic = [Traffic::start("p0"), Traffic::start("p1")];
            until("traffic", || {
                forward(&mut h0, &mut h1, &mut pool, &mut batch);
                forward(&mut h1, &mut h0, &mut pool, &mut batch);
                h0.stats().tx_packets > 100 && h1.stats().tx_packets > 100
            });
            ip("link del h0");
            until("the port notices", || {
                forward(&mut h0, &mut h1, &mut pool, &mut batch);
                forward(&mut h1, &mut h0, &mut pool, &mut batch);
                h0.gone()
            });
            assert!(!h1.gone());
            // The other device goes on, and what is sent to the gone one comes back.
            let before = h1.stats().rx_packets;
            until("traffic on the other", || {
                forward(&mut h1, &mut h0, &mut pool, &mut batch);
                h1.stats().rx_packets > before + 100
            });
            assert!(h0.stats().tx_errors > 0);
            Box::new(h0).close(&mut pool);
            ip("link del h1");
            Box::new(h1).close(&mut pool);
            for t in traffic {
                t.stop();
            }
            assert_all_back(&umem, &mut pool);
        }
    });
}

#[test]
fn device_that_is_down_takes_nothing_and_recovers() {
    in_namespace(|| {
        veth("p1", "h1", 1);
        let (umem, mut pool) = umem();
        let mut h1 = umem.open(&OpenConfig::new("h1", 0)).unwrap();
        let receiver = Raw::open("p1");
        let send = |h1: &mut XskPort, pool: &mut Pool, n: u32| {
            let mut f = pool.get().unwrap();
            assert!(f.fill(&frame(n, 60)));
            let mut batch = vec![f];
            h1.tx(&mut batch);
            batch.drain(..).for_each(|f| pool.put(f));
            h1.refill(pool);
        };
        ip("link set h1 down");
        for n in 0..2000 {
            send(&mut h1, &mut pool, n);
        }
        let stats = h1.stats();
        assert!(stats.tx_errors >= 1900 && stats.tx_kicks < 500, "{stats:?}");
        assert!(!h1.gone());
        ip("link set h1 up");
        until("a frame gets through", || {
            send(&mut h1, &mut pool, 5000);
            receiver.recv().is_some_and(|f| number(&f) == Some(5000))
        });
        Box::new(h1).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

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
        assert_eq!(h0.stats().rx_held, (2048 - 256) / 16, "a part of what is left");
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
        hoard.into_iter().for_each(|f| pool.put(f));
        Box::new(h0).close(&mut pool);
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
