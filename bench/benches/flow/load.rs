//! What the tables of this bench hold, and the keys they are asked for.
#![forbid(unsafe_code)]

use fastpath::packet::{FlowKey, Ip, PortId, proto};
use fastpath::tables::flow::{FlowConfig, FlowTable, Inserted, Millis, NewFlow, Timeouts, Transform};
use fastpath::tables::policy::Rules;

/// Keys in a batch: a vector of the graph.
pub(crate) const BATCH: usize = 256;
/// Keys of a Zipf distribution that are drawn beforehand.
const DRAWN: usize = 1 << 18;
/// Seed of hashes and of the order in which keys come.
pub(crate) const SEED: u64 = 0x5bd1_e995_0f0e_1d2c;
/// TCP's ACK bit.
pub(crate) const ACK: u8 = 0x10;

/// xorshift64*: the order in which keys come.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        u32::try_from(((self.next() >> 32) * u64::from(n)) >> 32).unwrap_or(0)
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Entry `n`: even numbers are original directions, odd ones their answers.
pub(crate) fn key(family: Family, n: u32) -> FlowKey {
    let flow = n / 2;
    let ip = |net: u8, host: u32| {
        let [a, b, c, d] = host.to_be_bytes();
        match family {
            Family::V4 => Ip::v4([net ^ a, b, c, d]),
            Family::V6 => Ip::v6([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]),
        }
    };
    let [.., low] = flow.to_be_bytes();
    let key = FlowKey {
        src: ip(10, flow >> 3),
        dst: ip(172, flow & 0xfff),
        sport: 32768 + u16::from(low & 7),
        dport: 443,
        proto: proto::TCP,
    };
    if n.is_multiple_of(2) { key } else { key.reversed() }
}

pub(crate) fn transform(key: &FlowKey) -> Transform {
    Transform {
        egress: PortId(key.sport),
        tunnel: 3,
        mtu: 1450,
        rules: Rules::from_bits(7),
        ..Transform::identity(key)
    }
}

pub(crate) fn new_flow(family: Family, flow: u32) -> NewFlow {
    let (original, reply) = (key(family, flow * 2), key(family, flow * 2 + 1));
    NewFlow {
        original,
        original_transform: transform(&original),
        reply,
        reply_transform: transform(&reply),
        generation: 1,
        tcp_flags: ACK,
    }
}

pub(crate) fn table(family: Family, entries: usize) -> FlowTable {
    let (v4, v6) = if family == Family::V4 { (entries, 0) } else { (0, entries) };
    FlowTable::new(&FlowConfig { entries_v4: v4, entries_v6: v6, timeouts: Timeouts::default(), seed: SEED })
}

pub(crate) fn filled(family: Family, entries: u32) -> FlowTable {
    let table = table(family, entries as usize);
    let mut displaced = 0;
    for flow in 0..entries / 2 {
        match table.insert(&new_flow(family, flow), Millis(0)) {
            Inserted::New(_, evicted) => displaced += evicted.iter().flatten().count(),
            other => panic!("flow {flow}: {other:?}"),
        }
    }
    assert!(displaced <= 10, "{displaced} of {entries} entries found no room");
    table
}

/// The keys of a batch, and their hashes, in arrays that stay in the cache.
pub(crate) struct Batch {
    family: Family,
    entries: u32,
    random: Random,
    drawn: Vec<u32>,
    at: usize,
    pub(crate) keys: Vec<FlowKey>,
    pub(crate) hashes: Vec<u64>,
}

impl Batch {
    /// Of keys drawn uniformly from `entries`, or by Zipf 1.0.
    pub(crate) fn new(family: Family, entries: u32, zipf: bool) -> Self {
        let mut random = Random(SEED);
        // Rank r with a probability of nearly 1/r, ranks spread over the table; beforehand, for it takes long.
        let rank = |_| {
            let part = (random.next() >> 32) as f64 / (1u64 << 32) as f64;
            let rank = (part * f64::from(entries).ln()).exp() as u64 - 1;
            u32::try_from(rank * 2_654_435_761 % u64::from(entries)).unwrap_or(0)
        };
        let drawn = if zipf { (0..DRAWN).map(rank).collect() } else { Vec::new() };
        Self { family, entries, random, drawn, at: 0, keys: Vec::new(), hashes: Vec::new() }
    }

    fn draw(&mut self) -> u32 {
        if self.drawn.is_empty() {
            return self.random.below(self.entries);
        }
        self.at = (self.at + 1) % self.drawn.len();
        self.drawn[self.at]
    }

    /// Fills the batch with keys of entries `offset..offset + entries`.
    pub(crate) fn fill(&mut self, offset: u32) {
        self.keys.clear();
        for _ in 0..BATCH {
            let n = self.draw();
            self.keys.push(key(self.family, offset + n));
        }
        self.hashes.clear();
        self.hashes.extend(self.keys.iter().map(|k| k.hash(SEED)));
    }
}
