//! AF_XDP ports on real veths. Needs root; every test has a network namespace of its own.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "tests")]
#![allow(clippy::cast_possible_truncation, reason = "constants and lengths of tests")]

mod arenas;
mod forwarding;
mod life;
mod memory;
#[path = "../support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use fastpath::io::xsk::{OpenConfig, Umem, UmemConfig, XskPort};
use fastpath::io::{Frame, Pool, Port};
use support::Redirect;

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
