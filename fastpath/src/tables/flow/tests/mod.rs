//! The table against a naive model, special cases, floods, and several threads at once.

mod cases;
mod flood;
mod marks;
mod model;
mod threads;

use super::*;
use crate::packet::{Ip, PortId, proto};
use crate::tables::policy::Rules;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

fn table(entries_v4: usize, entries_v6: usize) -> FlowTable {
    let timeouts = Timeouts::default();
    FlowTable::new(&FlowConfig { entries_v4, entries_v6, timeouts, seed: 0x1234_5678_9abc_def1 })
}

fn ip(v6: bool, host: u32) -> Ip {
    let [a, b, c, d] = host.to_be_bytes();
    if v6 { Ip::v6([0xfd, 0, 0, 0, 0, 0, a, 1, 2, 3, 4, 5, 6, b, c, d]) } else { Ip::v4([10 ^ a, b, c, d]) }
}

/// The original direction's key of flow `n`.
fn key(v6: bool, proto: u8, n: u32) -> FlowKey {
    let [.., high, low] = n.to_be_bytes();
    let sport = 1024 + u16::from_be_bytes([high, low]) % 60000;
    FlowKey { src: ip(v6, n), dst: ip(v6, 0x80_0000 + n % 7), sport, dport: 80, proto }
}

/// A transform whose every field depends on the key and the generation.
fn transform(key: &FlowKey, generation: u32) -> Transform {
    let [a, b, c, d] = (key.hash(u64::from(generation)) & 0xffff_ffff).to_be_bytes()[4..].try_into().unwrap();
    let word = |x: u8, y: u8| u16::from_be_bytes([x, y]);
    let v6 = !key.src.is_v4();
    Transform {
        src: ip(v6, u32::from_be_bytes([a, b, c, d])),
        dst: ip(v6, u32::from_be_bytes([d, c, b, a])),
        sport: word(a, b),
        dport: word(b, c),
        l3_delta: word(c, d),
        l4_delta: word(d, a),
        egress: PortId(word(a, c)),
        tunnel: word(b, d),
        next_hop: word(c, a),
        mtu: word(d, b),
        rules: Rules::from_bits(u32::from_be_bytes([b, d, a, c])),
        bits: a ^ b ^ c ^ d,
    }
}

fn new_flow(original: FlowKey, reply: FlowKey, generation: u32, tcp_flags: u8) -> NewFlow {
    NewFlow {
        original,
        original_transform: transform(&original, generation),
        reply,
        reply_transform: transform(&reply, generation),
        generation,
        tcp_flags,
    }
}

fn plain(key: FlowKey, generation: u32, tcp_flags: u8) -> NewFlow {
    new_flow(key, key.reversed(), generation, tcp_flags)
}

/// Inserts, where there must be room.
fn put(table: &FlowTable, new: &NewFlow, now: Millis) -> FlowRef {
    match table.insert(new, now) {
        Inserted::New(at, _) => at,
        other => panic!("{other:?}"),
    }
}

/// Inserts as a vector of packets does, in stages.
fn insert_in_stages(table: &FlowTable, new: &NewFlow, now: Millis) -> Inserted {
    let mut plan = table.plan(&new.original, &new.reply);
    table.fetch_slots(&mut plan, now);
    table.fetch_partners(&plan);
    table.insert_planned(new, Claim::Free, &plan, now)
}

fn get(table: &FlowTable, key: &FlowKey, now: Millis) -> Option<Hit> {
    table.lookup(key, key.hash(table.seed()), now)
}

/// Looks a key up and observes the packet; the state after it.
fn packet(table: &FlowTable, key: &FlowKey, flags: u8, now: Millis) -> Option<FlowState> {
    get(table, key, now).map(|hit| table.observe(&hit, flags, now))
}

fn tcp(n: u32) -> FlowKey {
    key(false, proto::TCP, n)
}

/// No key twice, no half of a flow, and nothing that another thread left claimed.
fn check(table: &FlowTable, now: Millis) -> usize {
    let mut keys = std::collections::HashMap::new();
    let (mut flows, mut entries) = (Vec::new(), 0);
    table.for_each(now, |pair| flows.push(*pair));
    for pair in &flows {
        assert_eq!(table.pair(pair.at).as_ref(), Some(pair));
        for key in [pair.original, pair.reply] {
            let other = keys.insert(key, pair.at);
            assert!(
                other.is_none() || pair.original == pair.reply,
                "{key} twice: {other:?} and {:?}",
                pair.at
            );
        }
        entries += if pair.original == pair.reply { 1 } else { 2 };
        assert_eq!(pair.original_transform, transform(&pair.original, pair.generation));
        assert_eq!(pair.reply_transform, transform(&pair.reply, pair.generation));
    }
    assert!(entries <= table.len(), "{entries} entries of live flows among {}", table.len());
    flows.len()
}
