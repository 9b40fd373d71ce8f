//! Special cases.

use super::threads::Random;
use super::*;
use core::cell::RefCell;
use core::time::Duration;

const T: Millis = Millis(1_000_000);
const UNREACHED: u32 = u32::MAX;

#[test]
fn both_directions_are_found_with_their_own_transforms() {
    for v6 in [false, true] {
        let table = table(64, 64);
        let new = plain(key(v6, proto::TCP, 5), 9, SYN);
        let at = put(&table, &new, T);
        let original = get(&table, &new.original, T).unwrap();
        assert_eq!(original.at, at);
        assert_eq!((original.transform, original.reply), (new.original_transform, false));
        let reply = get(&table, &new.reply, T).unwrap();
        assert_eq!((reply.transform, reply.reply), (new.reply_transform, true));
        assert_eq!((reply.generation, reply.state), (9, FlowState::New));
        assert_eq!(table.len(), 2);
        let pair = table.pair(reply.at).unwrap();
        assert_eq!(Some(pair), table.pair(at), "the same from either entry");
        assert_eq!((pair.at, pair.original, pair.reply), (at, new.original, new.reply));
        assert!(table.remove(reply.at));
        assert_eq!((get(&table, &new.original, T), get(&table, &new.reply, T)), (None, None));
        assert!(table.is_empty() && table.pair(at).is_none() && !table.remove(at));
    }
}

#[test]
fn keys_that_differ_in_one_field_are_different() {
    let table = table(64, 64);
    for v6 in [false, true] {
        let k = key(v6, proto::UDP, 5);
        let _ = put(&table, &plain(k, 1, 0), T);
        let others = [
            FlowKey { src: ip(v6, 6), ..k },
            FlowKey { dst: ip(v6, 6), ..k },
            FlowKey { sport: k.sport + 1, ..k },
            FlowKey { dport: k.dport + 1, ..k },
            FlowKey { proto: proto::TCP, ..k },
        ];
        for other in others {
            // Given the hash of the key that is there, only the comparison can tell them apart.
            assert_eq!(table.lookup(&other, k.hash(table.seed()), T), None);
        }
        assert!(get(&table, &k, T).is_some());
    }
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn batch_is_one_by_one() {
    let table = table(1 << 10, 1 << 10);
    let mut keys = Vec::new();
    for n in 0..300 {
        let k = key(n % 3 == 0, proto::UDP, n);
        keys.push(if n % 2 == 0 { k } else { k.reversed() });
        if n % 5 != 0 {
            let _ = put(&table, &plain(k, n, 0), T);
        }
    }
    let mut out = vec![None; 3];
    for len in [0, 1, 63, 64, 65, 300] {
        let keys = &keys[..len];
        let hashes: Vec<_> = keys.iter().map(|k| k.hash(table.seed())).collect();
        table.lookup_batch(keys, &hashes, T, &mut out);
        assert_eq!(out, keys.iter().map(|k| get(&table, k, T)).collect::<Vec<_>>());
        assert_eq!(out.iter().flatten().count(), (0..len).filter(|n| n % 5 != 0).count());
        // Of one family too, and without copies.
        for v6 in [None, Some(false), Some(true)] {
            let of = |k: &&FlowKey| v6.is_none_or(|v6| k.src.is_v4() != v6);
            let keys: Vec<_> = keys.iter().filter(of).copied().collect();
            let hashes: Vec<_> = keys.iter().map(|k| k.hash(table.seed())).collect();
            table.lookup_batch(&keys, &hashes, T, &mut out);
            let mut each = Vec::new();
            table.lookup_each(&keys, &hashes, T, |n, hit| each.push((n, hit.copied())));
            assert_eq!(each, out.iter().copied().enumerate().collect::<Vec<_>>());
            assert_eq!(out, keys.iter().map(|k| get(&table, k, T)).collect::<Vec<_>>());
        }
    }
}

/// A vector that follows its flows does what lookup and `observe` do packet by packet.
#[test]
fn following_is_lookup_and_observe() {
    for family in [None, Some(false), Some(true)] {
        let tables = [table(1 << 10, 1 << 10), table(1 << 10, 1 << 10)];
        let keys: Vec<_> = (0..200)
            .map(|n| key(family.unwrap_or(n % 3 == 0), [proto::TCP, proto::UDP][usize::from(n % 4 == 0)], n))
            .collect();
        for (n, k) in (0..).zip(&keys).filter(|(n, _)| n % 5 != 0) {
            for table in &tables {
                put(table, &plain(*k, n, SYN), T);
            }
        }
        let mut random = Random(7);
        let mut clock = T;
        for round in 0..200 {
            clock = clock.after([0, 1, 40, 900, 5000, 21_000][random.below(6) as usize]);
            let length = random.below(100);
            let vector: Vec<_> = (0..length)
                .map(|_| (keys[random.below(200) as usize], random.below(2) == 0))
                .map(|(k, original)| if original { k } else { k.reversed() })
                .collect();
            let flags: Vec<_> = vector
                .iter()
                .map(|_| [ACK, ACK, ACK, SYN, FIN | ACK, RST][random.below(6) as usize])
                .collect();
            let follows: Vec<_> = vector.iter().map(|_| random.below(8) > 0).collect();
            let [batch, single] = &tables;
            let hashes: Vec<_> = vector.iter().map(|k| k.hash(batch.seed())).collect();
            let (got, others) = (RefCell::new(vec![None; vector.len()]), RefCell::new(vec![]));
            batch.follow_each(
                &vector,
                &hashes,
                clock,
                |n, hit| {
                    got.borrow_mut()[n] = Some((hit.transform, hit.generation, hit.reply, hit.state));
                    follows[n].then_some(flags[n])
                },
                |n, hit| {
                    others.borrow_mut().push(n);
                    got.borrow_mut()[n] = hit.map(|h| (h.transform, h.generation, h.reply, h.state));
                    if let Some(hit) = hit.filter(|_| follows[n]) {
                        batch.observe(&hit, flags[n], clock);
                    }
                },
            );
            for (n, k) in vector.iter().enumerate() {
                let want = get(single, k, clock);
                let as_got = want.map(|h| (h.transform, h.generation, h.reply, h.state));
                assert_eq!(got.borrow()[n], as_got, "round {round}, packet {n}");
                assert!(want.is_some_and(|_| follows[n]) || others.borrow().contains(&n));
                if let Some(hit) = want.filter(|_| follows[n]) {
                    single.observe(&hit, flags[n], clock);
                }
            }
            let all = |t: &FlowTable| {
                let mut all = vec![];
                t.for_each(clock, |p| all.push((p.original, p.state, p.last_seen)));
                all.sort_by_key(|(k, ..)| k.hash(1));
                all
            };
            assert_eq!(all(batch), all(single), "round {round}");
            // Flows that have timed out come back.
            let new = plain(keys[round % 200], 1, SYN);
            assert_eq!(
                matches!(batch.insert(&new, clock), Inserted::New(..)),
                matches!(single.insert(&new, clock), Inserted::New(..))
            );
        }
    }
}

#[test]
fn tcp_walk() {
    use FlowState::{Closing, Established, HalfClosed, New, Reset};
    // Original direction false, reply true; flags; state after.
    let walks: &[&[(bool, u8, FlowState)]] = &[
        // Handshake, close from the client, then from the server, and the ports used again.
        &[
            (false, SYN, New),
            (true, SYN | ACK, New),
            (false, ACK, Established),
            (true, ACK, Established),
            (false, FIN | ACK, HalfClosed),
            (true, ACK, HalfClosed),
            (false, ACK, HalfClosed),
            (true, FIN | ACK, Closing),
            (false, ACK, Closing),
            (false, SYN, New),
            (true, SYN | ACK, New),
            (false, ACK, Established),
        ],
        // Close from the server, FIN sent twice, RST at last.
        &[
            (false, SYN, New),
            (true, SYN | ACK, New),
            (false, ACK, Established),
            (true, FIN | ACK, HalfClosed),
            (true, FIN | ACK, HalfClosed),
            (false, FIN | ACK, Closing),
            (true, RST, Reset),
            (false, ACK, Reset),
        ],
        // Refused.
        &[(false, SYN, New), (false, SYN, New), (true, RST | ACK, Reset), (false, SYN, New)],
        // Data with the handshake's last segment; data and FIN in it.
        &[(false, SYN, New), (true, SYN | ACK, New), (false, ACK | FIN, HalfClosed)],
        // Picked up in the middle: the other direction acknowledges.
        &[(false, ACK, New), (false, ACK, New), (true, ACK, Established)],
        // A SYN does not disturb an established connection (RFC 9293 3.10.7.4: challenge ACK).
        &[(false, ACK, New), (true, ACK, Established), (false, SYN, Established)],
        // Simultaneous open.
        &[
            (false, SYN, New),
            (true, SYN, New),
            (false, SYN | ACK, New),
            (true, SYN | ACK, New),
            (true, ACK, Established),
        ],
        // A spoofed FIN or ACK alone never makes it last.
        &[(false, FIN | ACK, New), (false, ACK, New), (false, FIN, New)],
        // Opened again by the other end.
        &[
            (false, SYN, New),
            (true, RST, Reset),
            (true, SYN, New),
            (true, ACK, New),
            (false, SYN | ACK, New),
            (true, ACK, Established),
        ],
    ];
    for (n, walk) in (0u32..).zip(walks) {
        let table = table(64, 0);
        let new = plain(tcp(n), 1, walk[0].1);
        let _ = put(&table, &new, T);
        assert_eq!(get(&table, &new.original, T).unwrap().state, walk[0].2, "walk {n}");
        for (step, (reply, flags, want)) in walk.iter().enumerate().skip(1) {
            let k = if *reply { new.reply } else { new.original };
            assert_eq!(packet(&table, &k, *flags, T), Some(*want), "walk {n} step {step}");
            for k in [new.original, new.reply] {
                assert_eq!(get(&table, &k, T).unwrap().state, *want, "walk {n} step {step}: both know");
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn timeouts_are_exact() {
    let t = |n, proto, flags: &[(bool, u8)], ms| (n, proto, flags.to_vec(), ms);
    let established = [(false, SYN), (true, SYN | ACK), (false, ACK)];
    let with = |more: &[(bool, u8)]| [&established[..], more].concat();
    let cases = [
        t(1, proto::TCP, &[(false, SYN)], 20_000),
        t(2, proto::TCP, &established, 3_600_000),
        t(3, proto::TCP, &with(&[(false, FIN | ACK)]), 3_600_000),
        t(4, proto::TCP, &with(&[(false, FIN | ACK), (true, FIN | ACK)]), 30_000),
        t(5, proto::TCP, &with(&[(true, RST)]), 40_000),
        t(6, proto::UDP, &[(false, 0)], 60_000),
        t(7, proto::UDP, &[(false, 0), (true, 0)], 60_000),
        t(8, proto::ICMP, &[(false, 0), (true, 0)], 5_000),
        t(9, proto::ICMPV6, &[(false, 0)], 5_000),
        t(10, proto::SCTP, &[(false, 0), (true, 0)], 600_000),
    ];
    // Also where the clock wraps in between.
    for start in [T, Millis(u32::MAX - 2_000)] {
        for (n, proto, packets, ms) in &cases {
            let table = table(64, 0);
            let new = plain(key(false, *proto, *n), 1, packets[0].1);
            let _ = put(&table, &new, start);
            for (reply, flags) in &packets[1..] {
                let k = if *reply { new.reply } else { new.original };
                packet(&table, &k, *flags, start).unwrap();
            }
            for k in [new.original, new.reply] {
                assert!(get(&table, &k, start.after(ms - 1)).is_some(), "case {n} lives {ms} ms");
            }
            assert_eq!(table.len(), 2);
            assert_eq!(get(&table, &new.reply, start.after(*ms)), None, "case {n} is over after {ms} ms");
            assert_eq!(table.len(), 0, "and removed");
        }
    }
}

#[test]
fn either_direction_keeps_both_alive() {
    let table = table(64, 0);
    let new = plain(key(false, proto::UDP, 1), 1, 0);
    let at = put(&table, &new, T);
    for s in 1..=50 {
        packet(&table, &new.original, 0, T.after(s * 10_000)).unwrap();
        table.sweep(0, 1, T.after(s * 10_000), usize::MAX);
    }
    // The answers' entry was never touched since, and is alive with its partner.
    let now = T.after(500_000 + 59_999);
    assert_eq!(table.pair(at).unwrap().last_seen, T.after(500_000));
    assert!(get(&table, &new.reply, now).is_some());
    packet(&table, &new.reply, 0, now).unwrap();
    assert!(get(&table, &new.original, now.after(59_999)).is_some());
    assert_eq!(get(&table, &new.original, now.after(60_000)), None);
    assert!(table.is_empty());
}

#[test]
fn last_seen_is_written_when_it_is_older_than_its_grain() {
    let table = table(64, 0);
    let new = plain(key(false, proto::UDP, 1), 1, 0);
    let at = put(&table, &new, T);
    let grain = LAST_SEEN_GRAIN;
    for (after, seen) in [(grain - 1, 0), (grain, grain), (2 * grain - 1, grain)] {
        packet(&table, &new.original, 0, T.after(after)).unwrap();
        assert_eq!(table.pair(at).unwrap().last_seen, T.after(seen));
    }
    // A worker whose clock is behind neither expires a flow nor sets it back.
    packet(&table, &new.original, 0, Millis(T.0 - 5_000)).unwrap();
    assert_eq!(table.pair(at).unwrap().last_seen, T.after(grain));
    // What lasts for less is written sooner.
    let new = plain(key(false, proto::ICMP, 1), 1, 0);
    let at = put(&table, &new, T);
    let part = 5_000 / LAST_SEEN_PART;
    for (after, seen) in [(part - 1, 0), (part, part)] {
        packet(&table, &new.original, 0, T.after(after)).unwrap();
        assert_eq!(table.pair(at).unwrap().last_seen, T.after(seen));
    }
}

#[test]
fn timeouts_change_for_flows_that_exist() {
    let table = table(64, 0);
    let new = plain(key(false, proto::UDP, 1), 1, 0);
    let _ = put(&table, &new, T);
    let longer = Duration::from_secs(1 << 40);
    table.set_timeouts(&Timeouts { udp: longer, ..Timeouts::default() });
    assert!(get(&table, &new.original, T.after((1 << 30) - 1)).is_some(), "as long as can be");
    table.set_timeouts(&Timeouts { udp: Duration::from_millis(7), ..Timeouts::default() });
    assert!(get(&table, &new.original, T.after(6)).is_some());
    assert_eq!(get(&table, &new.original, T.after(7)), None);
}

#[test]
fn refresh_replaces_both_transforms() {
    let table = table(64, 0);
    let new = plain(tcp(1), 1, SYN);
    let at = put(&table, &new, T);
    let reply_at = get(&table, &new.reply, T).unwrap().at;
    for (generation, at) in [(2, at), (3, reply_at)] {
        let (o, r) = (transform(&new.original, generation), transform(&new.reply, generation));
        assert!(table.refresh(at, o, r, generation));
        let hits = [new.original, new.reply].map(|k| get(&table, &k, T).unwrap());
        assert_eq!(hits.map(|h| h.generation), [generation; 2]);
        assert_eq!(hits.map(|h| h.transform), [o, r]);
        assert_eq!(hits.map(|h| h.at), [at_of(&table, &new.original), at_of(&table, &new.reply)]);
    }
    let v6 = transform(&key(true, proto::TCP, 1), 4);
    assert!(!table.refresh(at, v6, v6, 4), "an IPv4 entry has no room for it");
    assert!(table.remove(at));
    let t = transform(&new.original, 5);
    assert!(!table.refresh(at, t, t, 5), "gone");
}

fn at_of(table: &FlowTable, key: &FlowKey) -> FlowRef {
    get(table, key, T).unwrap().at
}

#[test]
fn an_old_reference_does_not_reach_the_next_flow() {
    let table = table(0, 0);
    let old = plain(tcp(1), 1, SYN);
    let at = put(&table, &old, T);
    let hit = get(&table, &old.original, T).unwrap();
    assert!(table.remove(at));
    // All slots used and freed once more: one of these was in the same place.
    let mut reused = false;
    for n in 2..40 {
        let new = plain(tcp(n), 1, SYN);
        let other = put(&table, &new, T);
        reused |= other.slot == at.slot;
        assert_ne!(other, at);
        assert!(table.pair(at).is_none() && !table.remove(at));
        assert!(!table.refresh(at, old.original_transform, old.reply_transform, 7));
        assert_eq!(table.observe(&hit, RST, T.after(1000)), FlowState::New, "what the hit said");
        let pair = table.pair(other).unwrap();
        assert_eq!((pair.state, pair.last_seen, pair.generation), (FlowState::New, T, 1));
        assert!(table.remove(other));
    }
    assert!(reused);
}

#[test]
fn a_flow_to_itself_has_one_entry() {
    let table = table(64, 64);
    for v6 in [false, true] {
        let k = FlowKey { dst: ip(v6, 1), src: ip(v6, 1), sport: 80, dport: 80, proto: proto::TCP };
        let new = plain(k, 1, SYN);
        let at = put(&table, &new, T);
        assert_eq!(table.len(), 1);
        assert!(matches!(table.insert(&new, T), Inserted::Exists(hit) if hit.at == at && !hit.reply));
        assert_eq!(packet(&table, &k, SYN | ACK, T), Some(FlowState::New));
        assert_eq!(packet(&table, &k, ACK, T), Some(FlowState::Established));
        for (flags, want) in [(RST, FlowState::Reset), (SYN, FlowState::New), (ACK, FlowState::Established)] {
            assert_eq!(packet(&table, &k, flags, T), Some(want));
        }
        let t = transform(&k, 2);
        assert!(table.refresh(at, t, t, 2));
        assert_eq!(get(&table, &k, T).unwrap().transform, t);
        assert_eq!(check(&table, T), 1);
        assert_eq!(get(&table, &k, T.after(3_600_000)), None);
        assert!(table.is_empty());
    }
}

#[test]
fn the_same_flow_from_both_ends_is_one() {
    let table = table(64, 0);
    let new = plain(tcp(1), 1, SYN);
    let _ = put(&table, &new, T);
    let again = table.insert(&plain(new.reply, 1, SYN), T);
    assert!(matches!(again, Inserted::Exists(hit) if hit.reply && hit.transform == new.reply_transform));
    assert_eq!(table.len(), 2);
}

#[test]
fn answers_belong_to_one_flow() {
    let table = table(64, 0);
    // By a service address, and directly, from the same port: the backend's answers look the same.
    let by_service = FlowKey { dst: ip(false, 0x60_0000), ..tcp(1) };
    let new = new_flow(by_service, tcp(1).reversed(), 1, SYN);
    let at = put(&table, &new, T);
    let direct = plain(tcp(1), 1, SYN);
    let reply_at = at_of(&table, &new.reply);
    assert_eq!(table.insert(&direct, T), Inserted::Conflict(reply_at));
    assert_eq!(table.pair(reply_at).map(|p| p.at), Some(at));
    assert_eq!(get(&table, &direct.original, T), None, "nothing of it was installed");
    // A flow that only waits for its timeout gives way.
    packet(&table, &new.reply, RST, T).unwrap();
    assert!(matches!(table.insert(&direct, T), Inserted::New(_, [None, Some(EvictClass::Closing)])));
    assert_eq!(get(&table, &new.original, T), None);
    // And one past its timeout does not count.
    let later = T.after(20_000);
    assert!(matches!(table.insert(&new, later), Inserted::New(_, [None, None])));
    assert_eq!(get(&table, &direct.original, later), None);
    assert_eq!(table.len(), 2);
}

#[test]
fn half_open_gives_way_as_a_last_resort() {
    for v6 in [false, true] {
        for answered in [false, true] {
            let table = table(64, 64);
            let first = plain(key(v6, proto::UDP, 1), 1, 0);
            let at = put(&table, &first, T);
            if answered {
                assert_eq!(packet(&table, &first.reply, 0, T), Some(FlowState::Established));
            }
            let second = new_flow(key(v6, proto::UDP, 2), first.reply, 1, 0);
            let early = T.after(HALF_OPEN_IDLE_MS - 1);
            let late = T.after(HALF_OPEN_IDLE_MS);
            for (claim, now) in [(Claim::Free, late), (Claim::HalfOpen, early)] {
                assert!(matches!(table.insert_by(&second, claim, now), Inserted::Conflict(_)), "{claim:?}");
            }
            let got = table.insert_by(&second, Claim::HalfOpen, late);
            if answered {
                assert!(matches!(got, Inserted::Conflict(_)));
                assert_eq!(get(&table, &first.original, late).unwrap().at, at);
            } else {
                assert!(matches!(got, Inserted::New(_, [None, Some(EvictClass::HalfOpen)])), "{got:?}");
                assert_eq!(get(&table, &first.original, late), None);
                assert!(get(&table, &first.reply, late).is_some_and(|hit| hit.reply));
            }
        }
    }
}

#[test]
fn families_do_not_mix() {
    let table = table(64, 64);
    let (k4, k6) = (tcp(1), key(true, proto::TCP, 1));
    assert_eq!(table.insert(&new_flow(k4, k6, 1, 0), T), Inserted::MixedFamilies);
    let half = FlowKey { dst: k6.dst, ..k4 };
    assert_eq!(table.insert(&plain(half, 1, 0), T), Inserted::MixedFamilies);
    let nat64 = NewFlow { original_transform: transform(&k4, 1), ..plain(k6, 1, 0) };
    assert_eq!(table.insert(&nat64, T), Inserted::MixedFamilies);
    assert!(table.is_empty());
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn sweep_frees_what_nobody_asks_for() {
    let table = table(512, 512);
    type Life = (u8, &'static [(bool, u8)], u32, EvictClass);
    let flows: [Life; 6] = [
        (proto::TCP, &[(false, SYN)], 20, EvictClass::HalfOpen),
        (proto::TCP, &[(false, SYN), (true, RST)], 40, EvictClass::Closing),
        (proto::TCP, &[(false, ACK), (true, ACK)], 3600, EvictClass::Idle),
        (proto::UDP, &[(false, 0), (true, 0)], 60, EvictClass::Idle),
        (proto::ICMP, &[(false, 0)], 5, EvictClass::HalfOpen),
        (proto::SCTP, &[(false, 0)], 600, EvictClass::HalfOpen),
    ];
    let mut ends = Vec::new();
    for n in 0..120 {
        let (proto, packets, seconds, class) = flows[n as usize % flows.len()];
        let new = plain(key(n % 4 < 2, proto, n), 1, packets[0].1);
        let at = put(&table, &new, T);
        for (reply, flags) in &packets[1..] {
            packet(&table, if *reply { &new.reply } else { &new.original }, *flags, T).unwrap();
        }
        ends.push((at, seconds, class));
    }
    let mut counts = Swept::default();
    for s in 1..=3700 {
        let now = T.after(s * 1000);
        // Three workers, each a third, a fifth of its share at a time.
        for share in 0..3 {
            let swept = table.sweep(share, 3, now, table.buckets() / 15 + 1);
            counts.closing += swept.closing;
            counts.half_open += swept.half_open;
            counts.idle += swept.idle;
        }
        for (at, seconds, _) in &ends {
            let there = table.pair(*at).is_some();
            assert!(there || s >= *seconds, "never early");
            // A round takes five seconds; marks are coarse by two ticks of 4 s; long ones are looked at each minute.
            let late = if *seconds > 100 { 80 } else { 15 };
            assert!(!there || s < seconds + late, "{seconds} s flow there after {s} s");
        }
    }
    assert!(table.is_empty());
    let of = |class| ends.iter().filter(|e| e.2 == class).count();
    assert_eq!(counts.closing, of(EvictClass::Closing));
    assert_eq!(counts.half_open, of(EvictClass::HalfOpen));
    assert_eq!(counts.idle, of(EvictClass::Idle));
    assert_eq!(counts.expired(), ends.len());
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn sweep_shares_cover_the_table() {
    let table = table(1000, 300);
    for shares in [1, 2, 3, 7, 64] {
        let n: usize = (0..shares).map(|s| table.sweep(s, shares, T, usize::MAX).buckets).sum();
        assert_eq!(n, table.buckets());
    }
    assert_eq!(table.sweep(0, 0, T, 5).buckets, 5);
    assert_eq!(table.sweep(9, 2, T, 5).buckets, 5);
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn walks_over_every_live_flow_once() {
    let table = table(512, 512);
    for n in 0..150 {
        let _ = put(&table, &plain(key(n % 2 == 0, proto::UDP, n), n, 0), T.after(n));
    }
    assert_eq!(check(&table, T.after(150)), 150);
    assert_eq!(check(&table, T.after(60_000 + 49)), 100, "those past their timeout are not shown");
    let mut generations = Vec::new();
    table.for_each(T, |p| generations.push(p.generation));
    generations.sort_unstable();
    assert_eq!(generations, (0..150).collect::<Vec<_>>());
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn holds_what_it_was_made_for() {
    for entries in [1 << 10, 1 << 15] {
        let table = table(entries, entries / 8);
        assert_eq!(table.capacity(), entries + entries / 8);
        let mut displaced = 0;
        for n in 0..u32::try_from(entries / 2).unwrap() {
            match table.insert(&plain(tcp(n), 1, SYN), T) {
                Inserted::New(_, evicted) => displaced += evicted.iter().flatten().count(),
                other => panic!("{other:?}"),
            }
        }
        assert!(displaced <= 1, "{displaced} displaced of {entries}");
    }
}

#[test]
fn a_table_of_nothing_works() {
    let table = table(0, 0);
    assert_eq!(table.capacity(), 0);
    assert_eq!(get(&table, &tcp(1), T), None);
    let at = put(&table, &plain(tcp(1), 1, SYN), T);
    let wild = FlowRef { slot: UNREACHED, ..at };
    assert!(table.pair(wild).is_none() && !table.remove(wild));
    let hit = Hit { at: wild, ..get(&table, &tcp(1), T).unwrap() };
    assert_eq!(table.observe(&hit, ACK, T), FlowState::New);
}
