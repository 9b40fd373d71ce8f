//! Ports that come and go, on devices that do: no frame is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use fastpath::io::xsk::{OpenConfig, Umem, UmemConfig, XskPort};
use fastpath::io::{Frame, Pool, Port};

use crate::support::{Raw, Redirect, frame, in_namespace, ip, number, run, veth};
use crate::{FRAMES, assert_all_back, forward, open, umem, until};

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
            assert!(!h1.gone() && !h0.up());
            // The other device goes on, and what is for the gone one stays with the caller.
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
            let taken = h1.tx(&mut batch);
            batch.drain(..).for_each(|f| pool.put(f));
            assert!(!h1.refill(pool) || h1.up(), "nothing to hurry for while it is down");
            taken
        };
        ip("link set h1 down");
        let taken: usize = (0..2000).map(|n| send(&mut h1, &mut pool, n)).sum();
        let stats = h1.stats();
        assert!(taken < 100 && stats.tx_errors > 0 && stats.tx_kicks < 500, "{taken} {stats:?}");
        assert!(!h1.gone() && !h1.up());
        ip("link set h1 up");
        until("a frame gets through", || {
            send(&mut h1, &mut pool, 5000);
            receiver.recv().is_some_and(|f| number(&f) == Some(5000))
        });
        Box::new(h1).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

/// A device that holds on to packets: a bridge whose only member lets one byte a second through.
fn slow_bridge() {
    veth("p1", "h1", 1);
    ip("link add br0 type bridge");
    ip("link set h1 master br0");
    ip("link set br0 up");
    run("tc", "qdisc add dev h1 root tbf rate 8bit burst 1600 limit 1mb");
}

fn send(port: &mut XskPort, pool: &mut Pool, count: u32) {
    let mut batch: Vec<_> = (0..count).map(|_| pool.get().unwrap()).collect();
    for (n, f) in (0..).zip(&mut batch) {
        assert!(f.fill(&frame(n, 1000)));
    }
    assert_eq!(port.tx(&mut batch), count as usize);
}

/// What the device did not take yet makes `refill` ask for another call, for as long as there is hope.
#[test]
fn refill_says_that_packets_wait() {
    in_namespace(|| {
        slow_bridge();
        let (umem, mut pool) = umem();
        let mut port = umem.open(&OpenConfig::new("br0", 0)).unwrap();
        assert!(!port.refill(&mut pool));
        // Room for a few packets in flight.
        rustix::net::sockopt::set_socket_send_buffer_size(port.fd(), 4096).unwrap();
        send(&mut port, &mut pool, 32);
        assert!(port.refill(&mut pool), "{:?}", port.stats());
        assert!(port.up());
        until("it gives up hurrying", || !port.refill(&mut pool));
        assert!(port.stats().tx_held > 0);
        run("tc", "qdisc del dev h1 root");
        until("all sent", || {
            port.refill(&mut pool);
            port.stats().tx_completed == 32
        });
        assert!(!port.refill(&mut pool));
        Box::new(port).close(&mut pool);
        assert_all_back(&umem, &mut pool);
    });
}

/// A packet the device has not let go of may be read from the frame: that frame is not used again.
#[test]
fn close_leaves_what_is_still_in_flight_to_the_kernel() {
    in_namespace(|| {
        slow_bridge();
        let (umem, mut pool) = umem();
        let mut port = umem.open(&OpenConfig::new("br0", 0)).unwrap();
        port.refill(&mut pool);
        send(&mut port, &mut pool, 5);
        assert!(port.stats().rx_held > 0);
        let lost = Box::new(port).close(&mut pool);
        assert!((1..=5).contains(&lost), "{lost}");
        assert_eq!(umem.lent(), lost);
        let free: Vec<Frame> = std::iter::from_fn(|| pool.get()).collect();
        assert_eq!(free.len() + lost, FRAMES as usize, "the others are back, those lent for receiving too");
        // With nothing in flight none is lost.
        run("tc", "qdisc del dev h1 root");
        free.into_iter().for_each(|f| pool.put(f));
        let mut port = umem.open(&OpenConfig::new("br0", 0)).unwrap();
        send(&mut port, &mut pool, 5);
        assert_eq!(Box::new(port).close(&mut pool), 0);
        assert_eq!(umem.lent(), lost);
    });
}
