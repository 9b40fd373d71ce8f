use std::collections::HashSet;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use proptest::prelude::*;

use super::*;

/// What a frame must be: a vector of bytes inside a chunk.
#[derive(Debug, Clone)]
struct Model {
    chunk: Vec<u8>,
    head: usize,
    len: usize,
}

#[derive(Debug, Clone)]
enum Op {
    Push(u16),
    Pull(u16),
    SetLen(u16),
    Fill(Vec<u8>),
    Write(u8),
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        prop_oneof![0u16..400, any::<u16>()].prop_map(Op::Push),
        prop_oneof![0u16..400, any::<u16>()].prop_map(Op::Pull),
        prop_oneof![0u16..2100, any::<u16>()].prop_map(Op::SetLen),
        prop::collection::vec(any::<u8>(), 0..2100).prop_map(Op::Fill),
        any::<u8>().prop_map(Op::Write),
        Just(Op::Reset),
    ]
}

impl Model {
    fn apply(&mut self, op: &Op) -> bool {
        let size = self.chunk.len();
        match op {
            Op::Push(n) => {
                let n = usize::from(*n);
                let ok = n <= self.head;
                if ok {
                    self.head -= n;
                    self.len += n;
                }
                ok
            }
            Op::Pull(n) => {
                let n = usize::from(*n);
                let ok = n <= self.len;
                if ok {
                    self.head += n;
                    self.len -= n;
                }
                ok
            }
            Op::SetLen(n) => {
                let ok = self.head + usize::from(*n) <= size;
                if ok {
                    self.len = usize::from(*n);
                }
                ok
            }
            Op::Fill(bytes) => {
                self.head = usize::from(HEADROOM);
                self.len = 0;
                let ok = self.head + bytes.len() <= size;
                if ok {
                    self.len = bytes.len();
                    self.chunk[self.head..self.head + self.len].copy_from_slice(bytes);
                }
                ok
            }
            Op::Write(byte) => {
                self.chunk[self.head..self.head + self.len].fill(*byte);
                true
            }
            Op::Reset => {
                self.head = usize::from(HEADROOM);
                self.len = 0;
                true
            }
        }
    }
}

fn apply(frame: &mut Frame, op: &Op) -> bool {
    match op {
        Op::Push(n) => frame.push(*n),
        Op::Pull(n) => frame.pull(*n),
        Op::SetLen(n) => frame.set_len(*n),
        Op::Fill(bytes) => frame.fill(bytes),
        Op::Write(byte) => {
            frame.data_mut().fill(*byte);
            true
        }
        Op::Reset => {
            frame.reset();
            true
        }
    }
}

/// Small under Miri, which runs each case some thousand times slower.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn frame_is_a_window_on_its_chunk(ops in prop::collection::vec(op(), 0..40)) {
        let mut pool = Pool::in_memory(2, 2048);
        let (mut frame, neighbour) = (pool.get().unwrap(), pool.get().unwrap());
        let mut model = Model { chunk: vec![0; 2048], head: usize::from(HEADROOM), len: 0 };
        for op in &ops {
            prop_assert_eq!(apply(&mut frame, op), model.apply(op), "{:?}", op);
            prop_assert_eq!(frame.data(), &model.chunk[model.head..model.head + model.len]);
            prop_assert_eq!(usize::from(frame.head()), model.head);
            prop_assert_eq!(frame.headroom(), model.head);
            prop_assert_eq!(frame.len(), model.len);
            prop_assert_eq!(frame.is_empty(), model.len == 0);
            prop_assert_eq!(frame.tailroom(), 2048 - model.head - model.len);
        }
        let mut neighbour = neighbour;
        prop_assert!(neighbour.set_len(2048 - HEADROOM) && neighbour.push(HEADROOM));
        prop_assert!(neighbour.data().iter().all(|&b| b == 0), "wrote outside the chunk");
    }

    /// Frames that go round between pools, an exchange and a lender are never lost nor doubled.
    #[test]
    fn pools_and_holders_keep_count(steps in prop::collection::vec((0u8..6, 0usize..64), 0..200)) {
        const N: u32 = 24;
        let (region, mut frames) = region::in_memory(N, 2048);
        let exchange: Exchange = Arc::new(ArrayQueue::new(N as usize));
        let second = frames.split_off(N as usize / 2);
        let mut pools = [Pool::new(frames, exchange.clone()), Pool::new(second, exchange.clone())];
        let mut holders = [region.holder(), region.holder()];
        let mut out: Vec<Frame> = Vec::new();
        let mut lent: [Vec<usize>; 2] = [vec![], vec![]];
        for (what, n) in steps {
            let side = n % 2;
            match what {
                0 | 1 => out.extend(pools[side].get()),
                2 if !out.is_empty() => pools[side].put(out.swap_remove(n % out.len())),
                3 if !out.is_empty() => {
                    let mut frame = out.swap_remove(n % out.len());
                    frame.reset();
                    prop_assert!(frame.set_len(100) && frame.push(u16::try_from(n).unwrap()));
                    lent[side].push(holders[side].lend(frame).unwrap());
                }
                4 if !lent[side].is_empty() => {
                    let addr = lent[side].swap_remove(n % lent[side].len());
                    // SAFETY: no kernel in this test.
                    unsafe {
                        prop_assert!(holders[1 - side].take(addr, 0).is_none(), "not lent to that one");
                        out.push(holders[side].take(addr, 60).unwrap());
                        prop_assert!(holders[side].take(addr, 60).is_none(), "twice");
                    }
                    let frame = out.last().unwrap();
                    prop_assert_eq!((frame.index() as usize) * 2048 + frame.headroom(), addr);
                    prop_assert_eq!(frame.len(), 60);
                }
                5 if n == 0 => {
                    // SAFETY: no kernel in this test.
                    unsafe { holders[side].take_all(|frame| out.push(frame)) };
                    lent[side].clear();
                }
                _ => {}
            }
            let pooled = pools[0].available() + pools[1].available() + exchange.len();
            let held = lent[0].len() + lent[1].len();
            prop_assert_eq!(held, region.lent());
            prop_assert_eq!(pooled + out.len() + held, N as usize);
        }
        let [mut a, mut b] = holders;
        // SAFETY: no kernel in this test.
        unsafe {
            a.take_all(|frame| out.push(frame));
            b.take_all(|frame| out.push(frame));
        }
        for pool in &mut pools {
            while let Some(frame) = pool.get() {
                out.push(frame);
            }
        }
        prop_assert_eq!(out.iter().map(Frame::index).collect::<HashSet<_>>().len(), N as usize);
        prop_assert_eq!(out.len(), N as usize);
    }

    /// Workers with two regions each, whoever puts what where: a region gives its own frames only, and in the end each
    /// worker has all of its own.
    #[test]
    fn regions_keep_their_frames(steps in prop::collection::vec((0u8..5, 0usize..64), 0..200)) {
        const N: u32 = 6;
        let mut regions = Vec::new();
        let mut parts: Vec<Vec<Frame>> = Vec::new();
        for n in 0..4u8 {
            let home: &'static ArrayQueue<Frame> = Box::leak(Box::new(ArrayQueue::new(N as usize)));
            let (region, frames) = region::in_memory_of(N, 2048, Some(home));
            regions.push(region);
            parts.push(frames);
            if n % 2 == 0 {
                // Their numbers need not follow one another.
                let _between = region::in_memory(1, 2048);
            }
        }
        let exchange: Exchange = Arc::new(ArrayQueue::new(1));
        let second = parts.split_off(2);
        let mut pools = [parts, second].map(|p| Pool::new(p.into_iter().flatten().collect(), exchange.clone()));
        let mut out: Vec<Frame> = Vec::new();
        for (what, n) in steps {
            let (side, region) = (n % 2, &regions[n % 4]);
            match what {
                0 => out.extend(pools[side].get()),
                1 | 2 => {
                    let own = n % 4 / 2;
                    let reachable = pools[own].reachable(region);
                    let got = pools[own].get_of(region);
                    prop_assert!(got.is_some() || reachable == 0);
                    prop_assert!(got.as_ref().is_none_or(|f| region.contains(f)));
                    out.extend(got);
                    prop_assert!(pools[1 - own].get_of(region).is_none(), "another worker's");
                }
                _ if !out.is_empty() => pools[side].put(out.swap_remove(n % out.len())),
                _ => {}
            }
        }
        for (n, frame) in out.into_iter().enumerate() {
            pools[n % 2].put(frame);
        }
        prop_assert!(exchange.is_empty());
        for (pool, own) in pools.iter_mut().zip(regions.chunks(2)) {
            let all: Vec<Frame> = std::iter::from_fn(|| pool.get()).collect();
            prop_assert_eq!(all.len(), 2 * N as usize);
            for region in own {
                let numbers: HashSet<u32> = all.iter().filter(|f| region.contains(f)).map(Frame::index).collect();
                prop_assert_eq!(numbers.len(), N as usize);
                prop_assert_eq!(pool.share(region), N as usize);
            }
        }
    }
}

#[test]
fn pool_sends_its_surplus_to_the_exchange_without_growing() {
    let (region, mut frames) = region::in_memory(8, 2048);
    let exchange: Exchange = Arc::new(ArrayQueue::new(8));
    let other = frames.split_off(4);
    let mut pool = Pool::new(frames, exchange.clone());
    let capacity = pool.lists[0].free.capacity();
    other.into_iter().for_each(|frame| pool.put(frame));
    assert_eq!((pool.available(), exchange.len()), (4, 4));
    assert_eq!(pool.lists[0].free.capacity(), capacity);
    let mut all: Vec<_> = std::iter::from_fn(|| pool.get()).collect();
    assert_eq!(all.len(), 8);
    assert!(pool.get().is_none());
    let mut closer = Pool::new(Vec::new(), exchange.clone());
    all.drain(..5).for_each(|frame| closer.put(frame));
    assert_eq!((closer.available(), exchange.len(), pool.reachable(&region)), (0, 5, 5));
    all.drain(..).for_each(|frame| pool.put(frame));
    // Numbers 4 to 7 and the closer's are nobody's here.
    assert_eq!((pool.available(), exchange.len(), pool.reachable(&region)), (0, 8, 8));
    assert!(closer.get().is_some());
}

/// One worker receives and hands everything to another, whose own frames are all in its ports: what was sent
/// comes back to the first.
#[test]
fn handed_over_frames_come_back_to_a_pool_that_runs_low() {
    const SHARE: usize = 64;
    let (_, mut frames) = region::in_memory(128, 2048);
    let exchange: Exchange = Arc::new(ArrayQueue::new(2 * SHARE));
    let second = frames.split_off(SHARE);
    let (mut from, mut to) = (Pool::new(frames, exchange.clone()), Pool::new(second, exchange));
    let _fill_rings: Vec<Frame> =
        (0..SHARE / 2).map(|_| from.get()).chain((0..SHARE / 2 + 10).map(|_| to.get())).flatten().collect();
    for n in 0..10 * SHARE {
        let frame = from.get().unwrap_or_else(|| panic!("no frame to receive packet {n} into"));
        to.put(frame);
    }
}

#[test]
fn frame_with_a_home_goes_there_from_any_pool() {
    let home: &'static ArrayQueue<Frame> = Box::leak(Box::new(ArrayQueue::new(2)));
    let bytes = vec![0u8; 4096].leak();
    let base = NonNull::new(bytes.as_mut_ptr()).unwrap();
    // SAFETY: leaked memory that only these frames refer to.
    let (region, frames) = unsafe { region::Region::new(base, 2, 2048, Some(home)) }.unwrap();
    let mut pool = Pool::in_memory(1, 2048);
    for mut frame in frames {
        assert!(frame.fill(b"x"));
        pool.put(frame);
    }
    assert_eq!((pool.available(), home.len()), (1, 2));
    let frame = home.pop().unwrap();
    assert!(region.contains(&frame) && frame.is_empty());
    assert!(!region.contains(&pool.get().unwrap()));
}

#[test]
fn holder_refuses_what_is_not_its_own() {
    let (_region, mut frames) = region::in_memory(2, 2048);
    let (other, _frames) = region::in_memory(2, 2048);
    let mut holder = other.holder();
    let frame = holder.lend(frames.pop().unwrap()).unwrap_err();
    assert_eq!(frame.index(), 1);

    let (region, mut frames) = region::in_memory(2, 2048);
    let mut holder = region.holder();
    let addr = holder.lend(frames.pop().unwrap()).unwrap();
    assert_eq!(addr, 2048 + 256);
    // SAFETY: no kernel in this test.
    unsafe {
        assert!(holder.take(256, 0).is_none(), "never lent");
        assert!(holder.take(4096, 0).is_none(), "outside the region");
        assert!(holder.take(usize::MAX, 0).is_none());
        assert!(holder.take(addr, 2048 - 255).is_none(), "crosses the chunk's end");
        let frame = holder.take(addr, 2048 - 256).unwrap();
        assert_eq!((frame.index(), frame.tailroom()), (1, 0));
    }
}

#[test]
fn region_wants_a_power_of_two() {
    let base = NonNull::new(vec![0u8; 4096].leak().as_mut_ptr()).unwrap();
    for size in [0, 256, 1000, 3000] {
        // SAFETY: refused before the memory is used.
        assert!(unsafe { region::Region::new(base, 1, size, None) }.is_none(), "{size}");
    }
}
