//! What receiving and sending by AF_XDP costs on a veth, by the size of the vector: shows how well the tx path batches.
//!
//! `cargo run --release -p fastpath --example forward -- [PACKETS] [BYTES]` as root. One thread in a namespace of its own
//! sends a vector into the first veth, receives it there and sends it out by the second. What is timed is the
//! thread's own CPU time, so that a busy machine does not show; the kernel's work for a packet is part of it.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, unreachable_pub, reason = "a measurement")]
#![allow(clippy::cast_possible_truncation, dead_code, reason = "a measurement that borrows from the tests")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use fastpath::io::xsk::{OpenConfig, Umem, UmemConfig, XskPort};
use fastpath::io::{Frame, Pool, Port};
use support::{Redirect, frame, in_namespace, veth};

fn main() {
    let mut args = std::env::args().skip(1);
    let packets = args.next().map_or(500_000, |s| s.parse().unwrap());
    let bytes = args.next().map_or(60, |s| s.parse().unwrap());
    in_namespace(move || {
        let mut lab = Lab::new(bytes);
        println!("{bytes} B packets, copy mode, one sendto sends up to {}", lab.output.tx_budget());
        println!("vector   rx ns/packet   tx ns/packet      Mpps   packets/kick   retries");
        for vector in [1, 8, 32, 64, 128, 256] {
            lab.measure(packets, vector);
        }
    });
}

/// CPU time of this thread so far.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

struct Lab {
    _redirects: [Redirect; 2],
    pool: Pool,
    packet: Vec<u8>,
    generator: XskPort,
    input: XskPort,
    output: XskPort,
}

impl Lab {
    fn new(bytes: usize) -> Self {
        veth("p0", "h0", 1);
        veth("p1", "h1", 1);
        let (umem, frames) = Umem::new(UmemConfig { frames: 4096, ..UmemConfig::default() }).unwrap();
        let exchange = Arc::new(ArrayQueue::new(frames.len()));
        let mut pool = Pool::new(frames, exchange);
        // At p1 the map is empty and the packets go to a stack that does not know the protocol.
        let redirects = [Redirect::attach("h0"), Redirect::attach("p1")];
        let config = |name| OpenConfig::new(name, 0);
        let mut input = umem.open(&config("h0")).unwrap();
        input.refill(&mut pool);
        redirects[0].insert(0, input.fd());
        let generator = umem.open(&config("p0")).unwrap();
        let output = umem.open(&config("h1")).unwrap();
        Self { _redirects: redirects, pool, packet: frame(1, bytes), generator, input, output }
    }

    fn measure(&mut self, packets: usize, vector: usize) {
        let before = self.output.stats();
        let mut batch: Vec<Frame> = Vec::with_capacity(256);
        let (mut rx, mut tx, mut done) = (Duration::ZERO, Duration::ZERO, 0);
        while done < packets {
            while batch.len() < vector {
                let mut f = self.pool.get().unwrap();
                assert!(f.fill(&self.packet));
                batch.push(f);
            }
            self.generator.tx(&mut batch);
            batch.drain(..).for_each(|f| self.pool.put(f));
            self.generator.refill(&mut self.pool);
            // A poll that finds nothing is not counted: the kernel may deliver a little later, in ksoftirqd.
            let mut waited = 0;
            while batch.len() < vector && waited < 10_000 {
                let start = cpu();
                let n = self.input.rx(&mut batch, vector);
                self.input.refill(&mut self.pool);
                if n > 0 {
                    rx += cpu() - start;
                } else {
                    waited += 1;
                }
            }
            done += batch.len();
            let start = cpu();
            self.output.tx(&mut batch);
            self.output.refill(&mut self.pool);
            tx += cpu() - start;
            batch.drain(..).for_each(|f| self.pool.put(f));
        }
        let after = self.output.stats();
        let ns = |t: Duration| t.as_nanos() as f64 / done as f64;
        println!(
            "{vector:>6} {:>14.0} {:>14.0} {:>9.2} {:>14.1} {:>9}",
            ns(rx),
            ns(tx),
            1e3 / (ns(rx) + ns(tx)),
            (after.tx_packets - before.tx_packets) as f64 / (after.tx_kicks - before.tx_kicks) as f64,
            after.tx_retries - before.tx_retries
        );
    }
}
