//! Who has to go when the table is full.

use super::*;

const T: Millis = Millis(50_000);

/// An established TCP flow.
fn connect(table: &FlowTable, n: u32, now: Millis) -> NewFlow {
    let new = plain(tcp(n), 1, SYN);
    let _ = put(table, &new, now);
    packet(table, &new.reply, SYN | ACK, now).unwrap();
    assert_eq!(packet(table, &new.original, ACK, now), Some(FlowState::Established));
    new
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn a_syn_flood_leaves_established_flows_in_place() {
    let (entries, sources): (u32, u32) = (1 << 12, 1_000_000);
    let table = table(entries as usize, 0);
    let connections: Vec<_> = (0..entries / 4).map(|n| connect(&table, n, T)).collect();
    let answered: Vec<_> = (0..entries / 16).map(|n| plain(key(false, proto::UDP, n), 1, 0)).collect();
    for new in &answered {
        let _ = put(&table, new, T);
        packet(&table, &new.reply, 0, T).unwrap();
    }
    let (mut evicted, mut full) = (0, 0);
    let mut now = T;
    for n in 0..sources {
        // 100,000 a second: ten seconds, in which the connections are silent for less than what protects them.
        now = T.after(n / 100);
        let syn = plain(FlowKey { dport: 443, ..tcp(1_000_000 + n) }, 1, SYN);
        match table.insert(&syn, now) {
            Inserted::New(at, classes) => {
                assert!(classes.iter().flatten().all(|c| *c == EvictClass::HalfOpen), "{classes:?}");
                evicted += classes.iter().flatten().count();
                assert!(table.pair(at).is_some());
            }
            Inserted::Full => full += 1,
            other => panic!("{other:?}"),
        }
        if n.is_multiple_of(1000) {
            for new in &answered {
                packet(&table, &new.original, 0, now).unwrap();
            }
            table.sweep(0, 1, now, usize::MAX);
        }
    }
    assert!(
        evicted > (sources / 2) as usize,
        "the flood was larger than the table: {evicted}, {full} turned away"
    );
    for new in connections.iter().chain(&answered) {
        for k in [new.original, new.reply] {
            assert_eq!(get(&table, &k, now).unwrap().state, FlowState::Established);
        }
    }
    check(&table, now);
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn a_new_connection_finds_room_in_a_flood() {
    let table = table(64, 0);
    for n in 0..1000 {
        let _ = table.insert(&plain(tcp(n), 1, SYN), T.after(n));
    }
    let now = T.after(1000);
    let new = connect(&table, 5000, now);
    for n in 1000..1100 {
        let _ = table.insert(&plain(tcp(n), 1, SYN), now.after(n - 1000));
    }
    assert!(get(&table, &new.original, now.after(100)).is_some());
}

/// Fills a table of two buckets with flows made by `make` until one finds no free slot.
fn fill(table: &FlowTable, now: Millis, make: impl Fn(&FlowTable, u32, Millis) -> NewFlow) -> Vec<NewFlow> {
    let mut flows = Vec::new();
    while table.len() < 14 {
        flows.push(make(table, u32::try_from(flows.len()).unwrap(), now));
    }
    flows
}

#[test]
fn closing_goes_first_then_half_open_then_idle() {
    let table = table(0, 0);
    let flows = fill(&table, T, connect);
    let now = T.after(10_000);
    let new = |n: u32| plain(tcp(100 + n), 1, SYN);
    // All seven established and not idle for long enough.
    assert_eq!(table.insert(&new(0), now), Inserted::Full);
    assert_eq!(check(&table, now), 7);
    // One closes: it makes room, and the new one, half open, is next.
    packet(&table, &flows[3].original, RST, now).unwrap();
    let gone = |n: usize, now| get(&table, &flows[n].original, now).is_none();
    assert!(matches!(
        table.insert(&new(0), now),
        Inserted::New(_, [Some(EvictClass::Closing), None] | [None, Some(EvictClass::Closing)])
    ));
    assert!(gone(3, now));
    assert!(matches!(
        table.insert(&new(1), now),
        Inserted::New(_, [Some(EvictClass::HalfOpen), None] | [None, Some(EvictClass::HalfOpen)])
    ));
    assert!(get(&table, &new(0).original, now).is_none());
    // It gets established. With all idle for long but one, the longest idle goes.
    packet(&table, &new(1).reply, SYN | ACK, now).unwrap();
    packet(&table, &new(1).original, ACK, now).unwrap();
    for (n, flow) in flows.iter().enumerate().filter(|(n, _)| *n != 3 && *n != 5) {
        packet(&table, &flow.reply, ACK, now.after(5_000 * u32::try_from(n).unwrap())).unwrap();
    }
    let later = now.after(60_000);
    assert!(matches!(
        table.insert(&new(2), later),
        Inserted::New(_, [Some(EvictClass::Idle), None] | [None, Some(EvictClass::Idle)])
    ));
    assert!(gone(5, later), "silent since the start");
    assert_eq!(flows.iter().filter(|f| get(&table, &f.original, later).is_none()).count(), 2);
}

#[test]
fn what_timed_out_makes_room_without_being_evicted() {
    let table = table(0, 0);
    let half_open = |table: &FlowTable, n, now| {
        let new = plain(tcp(n), 1, SYN);
        let _ = put(table, &new, now);
        new
    };
    let flows = fill(&table, T, half_open);
    let now = T.after(30_000);
    assert!(matches!(table.insert(&plain(tcp(100), 1, SYN), now), Inserted::New(_, [None, None])));
    assert!(flows.iter().all(|f| get(&table, &f.original, now).is_none()));
}

#[test]
fn a_busy_direction_protects_the_silent_one() {
    let table = table(0, 0);
    let flows = fill(&table, T, connect);
    let mut now = T;
    for _ in 0..30 {
        now = now.after(5_000);
        for flow in &flows {
            packet(&table, &flow.original, ACK, now).unwrap();
        }
    }
    assert_eq!(table.insert(&plain(tcp(100), 1, SYN), now), Inserted::Full);
    assert!(flows.iter().all(|f| get(&table, &f.reply, now).is_some()));
}
