//! The table against a list of flows.
//!
//! The model knows nothing of buckets: of a table that may be full it asks that what is gone was reported as
//! evicted, was allowed to be, and that everything else is there, with the values last given.

use super::*;
use proptest::prelude::*;

/// TCP as booleans, written from services.md's text rather than from the table's phases.
#[derive(Clone, Debug, Default)]
struct Tracking {
    seen: [bool; 2],
    acknowledged: bool,
    fin: [bool; 2],
    rst: bool,
}

impl Tracking {
    fn packet(&mut self, tcp: bool, reply: bool, flags: u8) {
        let has = |bit| flags & bit != 0;
        let ended = self.rst || self.fin == [true; 2];
        if tcp && has(RST) {
            self.rst = true;
        } else if tcp && ended {
            if has(SYN) && !has(ACK) {
                *self = Self::default();
                self.seen[usize::from(reply)] = true;
            }
        } else {
            self.seen[usize::from(reply)] = true;
            self.acknowledged |= self.seen == [true; 2] && (!tcp || has(ACK) && !has(SYN));
            self.fin[usize::from(reply)] |= tcp && self.acknowledged && has(FIN);
        }
    }

    fn state(&self) -> FlowState {
        match (self.rst, self.fin, self.acknowledged) {
            (true, ..) => FlowState::Reset,
            (_, [true, true], _) => FlowState::Closing,
            (_, [true, _] | [_, true], _) => FlowState::HalfClosed,
            (.., true) => FlowState::Established,
            _ => FlowState::New,
        }
    }
}

#[derive(Clone, Debug)]
struct Flow {
    at: FlowRef,
    keys: [FlowKey; 2],
    generation: u32,
    tracking: Tracking,
    seen: [u64; 2],
}

impl Flow {
    fn timeout(&self) -> u64 {
        match (self.keys[0].proto, self.tracking.state()) {
            (proto::TCP, FlowState::New) => 20_000,
            (proto::TCP, FlowState::Established | FlowState::HalfClosed) => 3_600_000,
            (proto::TCP, FlowState::Closing) => 30_000,
            (proto::TCP, FlowState::Reset) => 40_000,
            (proto::UDP, _) => 60_000,
            (proto::ICMP | proto::ICMPV6, _) => 5_000,
            _ => 600_000,
        }
    }

    fn idle(&self, now: u64) -> u64 {
        now - self.seen[0].max(self.seen[1])
    }

    fn alive(&self, now: u64) -> bool {
        self.idle(now) < self.timeout()
    }

    fn may_be_evicted(&self, now: u64) -> EvictClass {
        let established = match self.tracking.state() {
            FlowState::Closing | FlowState::Reset => return EvictClass::Closing,
            FlowState::New => false,
            _ => self.keys[0].proto != proto::ICMP && self.keys[0].proto != proto::ICMPV6,
        };
        if !established {
            return EvictClass::HalfOpen;
        }
        let protected = if self.keys[0].proto == proto::TCP { 32_000 } else { 8_000 };
        assert!(self.idle(now) >= protected, "established and not idle: {self:?}");
        EvictClass::Idle
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert { flow: usize, flags: u8 },
    Packet { flow: usize, reply: bool, flags: u8 },
    Look { flow: usize, reply: bool },
    Stale { hit: usize, flags: u8 },
    Refresh { flow: usize, reply: bool },
    Remove { flow: usize, reply: bool },
    Advance { ms: u32 },
    Sweep { share: usize, buckets: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let flow = || 0usize..40;
    let flags = || prop_oneof![4 => Just(ACK), 3 => Just(SYN), 3 => Just(SYN | ACK), 1 => Just(FIN | ACK), 1 => Just(RST), 1 => any::<u8>()];
    prop_oneof![
        6 => (flow(), flags()).prop_map(|(flow, flags)| Op::Insert { flow, flags }),
        8 => (flow(), any::<bool>(), flags()).prop_map(|(flow, reply, flags)| Op::Packet { flow, reply, flags }),
        2 => (flow(), any::<bool>()).prop_map(|(flow, reply)| Op::Look { flow, reply }),
        1 => (any::<usize>(), flags()).prop_map(|(hit, flags)| Op::Stale { hit, flags }),
        1 => (flow(), any::<bool>()).prop_map(|(flow, reply)| Op::Refresh { flow, reply }),
        1 => (flow(), any::<bool>()).prop_map(|(flow, reply)| Op::Remove { flow, reply }),
        2 => prop_oneof![0u32..300, 0u32..10_000, 0u32..70_000].prop_map(|ms| Op::Advance { ms }),
        1 => (0usize..3, 0usize..8).prop_map(|(share, buckets)| Op::Sweep { share, buckets }),
    ]
}

/// Flows that differ in family, protocol and kind of translation; some share the key of their answers.
fn keys_of(n: usize, v6: bool) -> [FlowKey; 2] {
    let proto = [proto::TCP, proto::TCP, proto::UDP, proto::ICMP, proto::SCTP][n % 5];
    let n = u32::try_from(n).unwrap();
    let k = key(v6, proto, n);
    match n % 8 {
        // A service in front of the flow before it (or a backend of its own).
        6 => [FlowKey { dst: ip(v6, 0x60_0000), ..k }, k.reversed()],
        7 => {
            let before = key(
                v6,
                [proto::TCP, proto::TCP, proto::UDP, proto::ICMP, proto::SCTP][(n as usize - 1) % 5],
                n - 1,
            );
            [before, before.reversed()]
        }
        // To itself.
        5 if n > 20 => {
            let k = FlowKey { dst: k.src, dport: k.sport, ..k };
            [k, k]
        }
        _ => [k, k.reversed()],
    }
}

struct World {
    table: FlowTable,
    flows: Vec<Flow>,
    hits: Vec<(Hit, FlowRef)>,
    now: u64,
    generation: u32,
    v6: bool,
    evicted: usize,
}

impl World {
    fn clock(&self) -> Millis {
        // Wraps early in every run.
        Millis(u32::try_from((self.now + u64::from(u32::MAX) - 30_000) & 0xffff_ffff).unwrap())
    }

    fn find(&self, key: &FlowKey) -> Option<(usize, bool)> {
        let alive = |f: &&(usize, &Flow)| f.1.alive(self.now) && f.1.keys.contains(key);
        self.flows.iter().enumerate().find(|f| alive(&f)).map(|(n, f)| (n, f.keys[0] != *key))
    }

    /// What a lookup must give.
    fn expected(&self, key: &FlowKey) -> Option<Hit> {
        let (n, reply) = self.find(key)?;
        let flow = &self.flows[n];
        let pair = self.table.pair(flow.at).expect("the flow is there");
        assert_eq!((pair.at, [pair.original, pair.reply]), (flow.at, flow.keys));
        Some(Hit {
            at: flow.at,
            transform: transform(key, flow.generation),
            generation: flow.generation,
            reply,
            state: flow.tracking.state(),
        })
    }

    fn look(&mut self, key: &FlowKey) -> Option<Hit> {
        let want = self.expected(key);
        let got = get(&self.table, key, self.clock());
        // The model does not know in which slot the answers are.
        assert_eq!(
            got.map(|h| Hit { at: want.map_or(h.at, |w| if w.reply { w.at } else { h.at }), ..h }),
            want
        );
        if let (Some(got), Some(want)) = (got, want) {
            assert!(want.reply || got.at == want.at);
            self.hits.push((got, want.at));
        }
        got
    }

    fn observe(&mut self, hit: &Hit, at: FlowRef, flags: u8) {
        let (clock, now) = (self.clock(), self.now);
        let got = self.table.observe(hit, flags, clock);
        let Some(flow) = self.flows.iter_mut().find(|f| f.at == at) else {
            assert_eq!(got, hit.state, "of a flow that is gone, nothing is known");
            return;
        };
        flow.tracking.packet(flow.keys[0].proto == proto::TCP, hit.reply, flags);
        if flow.keys[0] == flow.keys[1] {
            flow.tracking.seen = [true; 2];
        }
        let grain = (flow.timeout() / u64::from(LAST_SEEN_PART)).min(u64::from(LAST_SEEN_GRAIN));
        let seen = &mut flow.seen[usize::from(hit.reply)];
        if now - *seen >= grain {
            *seen = now;
        }
        assert_eq!(got, flow.tracking.state());
    }

    fn insert(&mut self, keys: [FlowKey; 2], flags: u8) {
        let clock = self.clock();
        self.generation += 1;
        let exists = self.expected(&keys[0]);
        let conflict = self.find(&keys[1]).map(|(n, _)| self.flows[n].clone());
        let new = new_flow(keys[0], keys[1], self.generation, flags);
        let in_stages = self.generation.is_multiple_of(2);
        let inserted = if in_stages {
            insert_in_stages(&self.table, &new, clock)
        } else {
            self.table.insert(&new, clock)
        };
        match inserted {
            Inserted::New(at, evicted) => {
                assert!(exists.is_none());
                let mut evicted: Vec<_> = evicted.into_iter().flatten().collect();
                if let Some(other) = conflict {
                    assert_eq!(other.may_be_evicted(self.now), EvictClass::Closing, "it had to give way");
                    assert!(self.table.pair(other.at).is_none());
                }
                // What is gone was alive and reported, or over.
                let (now, table) = (self.now, &self.table);
                let mut gone = Vec::new();
                self.flows.retain(|f| {
                    let there = table.pair(f.at).is_some();
                    if !there && f.alive(now) {
                        gone.push(f.may_be_evicted(now));
                    }
                    there
                });
                gone.sort_unstable();
                evicted.sort_unstable();
                assert_eq!(gone, evicted);
                self.evicted += gone.len();
                let mut tracking = Tracking::default();
                let to_itself = keys[0] == keys[1];
                tracking.seen[1] = to_itself;
                tracking.packet(keys[0].proto == proto::TCP, false, flags);
                if to_itself {
                    tracking.seen = [true; 2];
                }
                self.flows.push(Flow {
                    at,
                    keys,
                    generation: self.generation,
                    tracking,
                    seen: [self.now; 2],
                });
            }
            Inserted::Exists(hit) => {
                let want = exists.expect("nothing with that key was there");
                assert_eq!(Hit { at: want.at, ..hit }, want);
            }
            Inserted::Conflict(at) => {
                let other = conflict.expect("nobody has these answers");
                assert!(exists.is_none());
                assert_eq!(self.table.pair(at).map(|p| p.at), Some(other.at));
                assert!(!matches!(other.tracking.state(), FlowState::Closing | FlowState::Reset));
            }
            Inserted::Full => {
                assert!(exists.is_none());
                assert!(self.table.len() >= 13, "full with {}", self.table.len());
            }
            other => panic!("{other:?} with one thread"),
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Insert { flow, flags } => self.insert(keys_of(*flow, self.v6), *flags),
            Op::Packet { flow, reply, flags } => {
                let key = keys_of(*flow, self.v6)[usize::from(*reply)];
                if let Some(hit) = self.look(&key) {
                    let (_, at) = *self.hits.last().expect("just pushed");
                    self.observe(&hit, at, *flags);
                }
            }
            Op::Look { flow, reply } => {
                self.look(&keys_of(*flow, self.v6)[usize::from(*reply)]);
            }
            Op::Stale { hit, flags } => {
                let Some((hit, at)) = self.hits.get(hit % self.hits.len().max(1)).copied() else { return };
                let over = self.flows.iter().any(|f| f.at == at && !f.alive(self.now));
                // A lookup comes shortly before, so that a flow seen over is not observed.
                if !over {
                    self.observe(&hit, at, *flags);
                }
            }
            Op::Refresh { flow, reply } => {
                let keys = keys_of(*flow, self.v6);
                let Some(hit) = self.look(&keys[usize::from(*reply)]) else { return };
                self.generation += 1;
                let (_, at) = *self.hits.last().expect("just pushed");
                let generation = self.generation;
                let flow = self.flows.iter_mut().find(|f| f.at == at).expect("hit");
                let [o, r] = flow.keys.map(|k| transform(&k, generation));
                assert!(self.table.refresh(hit.at, o, r, generation));
                flow.generation = generation;
            }
            Op::Remove { flow, reply } => {
                let Some(hit) = self.look(&keys_of(*flow, self.v6)[usize::from(*reply)]) else { return };
                let (_, at) = *self.hits.last().expect("just pushed");
                assert!(self.table.remove(hit.at));
                self.flows.retain(|f| f.at != at);
            }
            Op::Advance { ms } => self.now += u64::from(*ms),
            Op::Sweep { share, buckets } => {
                let before = self.table.len();
                let swept = self.table.sweep(*share, 3, self.clock(), *buckets);
                assert!(before - self.table.len() <= 2 * swept.expired());
                assert!(before - self.table.len() >= swept.expired());
            }
        }
        // Whatever happened: all that lives is there, whole, and nothing else.
        let alive = self.flows.iter().filter(|f| f.alive(self.now)).count();
        assert_eq!(check(&self.table, self.clock()), alive);
        for flow in self.flows.iter().filter(|f| f.alive(self.now)) {
            let pair = self.table.pair(flow.at).expect("alive");
            assert_eq!([pair.original, pair.reply], flow.keys);
            assert_eq!((pair.generation, pair.state), (flow.generation, flow.tracking.state()));
        }
        let (now, table) = (self.now, &self.table);
        self.flows.retain(|f| f.alive(now) || table.pair(f.at).is_some());
    }
}

fn run(entries: usize, v6: bool, ops: &[Op]) -> usize {
    let table = table(if v6 { 0 } else { entries }, if v6 { entries } else { 0 });
    let (flows, hits) = (Vec::new(), Vec::new());
    let mut world = World { table, flows, hits, now: 0, generation: 0, v6, evicted: 0 };
    for op in ops {
        world.step(op);
    }
    world.evicted
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 1000 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn is_a_list_of_flows(v6 in any::<bool>(), ops in prop::collection::vec(op(), 1..if cfg!(miri) { 40 } else { 250 })) {
        run(256, v6, &ops);
    }

    #[test]
    fn is_a_list_of_flows_when_full(v6 in any::<bool>(), ops in prop::collection::vec(op(), 1..if cfg!(miri) { 40 } else { 250 })) {
        run(0, v6, &ops);
    }
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn the_model_sees_evictions() {
    let inserts: Vec<_> = (0..40).map(|flow| Op::Insert { flow, flags: SYN }).collect();
    assert_eq!(run(256, false, &inserts), 0);
    assert!(run(0, false, &inserts) > 10);
}
