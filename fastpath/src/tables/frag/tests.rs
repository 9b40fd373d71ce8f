use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::packet::{NO_INDEX, proto};

const HOLD: u32 = 100;
const LIFE: u32 = 1000;
const WIDE: Limits =
    Limits { datagrams: 64, held: 512, held_per_datagram: 512, hold_ms: HOLD, life_ms: LIFE };

fn id(n: u8) -> DatagramId {
    DatagramId {
        src: Ip::v4([10, 0, 0, 1]),
        dst: Ip::v4([10, 0, 0, 2]),
        ident: u32::from(n & 1),
        proto: proto::UDP,
        ingress: PortId(u16::from(n >> 1)),
        tunnel: NO_INDEX,
    }
}

fn key(sport: u16) -> FlowKey {
    FlowKey { src: id(0).src, dst: id(0).dst, sport, dport: 53, proto: proto::UDP }
}

/// Bytes `start..end`, in units of 8, of datagram `n`; the first one has port 7.
fn piece(n: u8, start: u16, end: u16, last: bool) -> Fragment {
    Fragment { id: id(n), start: start * 8, end: end * 8, last, key: (start == 0).then(|| key(7)) }
}

/// What is known of a datagram, kept the simplest way.
#[derive(Default)]
struct Known {
    pieces: Vec<(u16, u16, bool)>,
    first: Option<(FlowKey, u32)>,
    spoiled: bool,
    held: Vec<u32>,
    since: u32,
}

/// The table without bounds, kept the simplest way.
#[derive(Default)]
struct Model {
    datagrams: BTreeMap<DatagramId, Known>,
    ready: VecDeque<(u32, Option<FlowKey>)>,
    round: u32,
}

impl Model {
    fn begin(&mut self, now: u32) {
        self.round += 1;
        self.datagrams.retain(|_, d| now - d.since < LIFE || d.first.is_none() && !d.spoiled);
    }

    fn add(&mut self, f: &Fragment, now: u32, item: u32) -> Added<u32> {
        let d = self.datagrams.entry(f.id).or_insert_with(|| Known { since: now, ..Known::default() });
        if d.spoiled {
            return Added::Overlap;
        }
        let other_ports = d.first.is_some_and(|(known, _)| f.key.is_some_and(|key| key != known));
        if d.pieces.contains(&(f.start, f.end, f.last)) && !other_ports {
            return Added::Duplicate;
        }
        let total = |(_, end, last): (u16, u16, bool)| if last { end } else { u16::MAX };
        let clash = d
            .pieces
            .iter()
            .any(|p| p.0 < f.end && f.start < p.1 || f.end > total(*p) || p.1 > total((0, f.end, f.last)));
        // Two last ones end at two places, or overlap.
        if clash {
            d.spoiled = true;
            d.since = now;
            self.ready.extend(d.held.drain(..).map(|item| (item, None)));
            return Added::Overlap;
        }
        d.pieces.push((f.start, f.end, f.last));
        let added = match (d.first, f.key) {
            (_, Some(key)) => {
                d.first = Some((key, self.round));
                d.since = now;
                self.ready.extend(d.held.drain(..).map(|item| (item, Some(key))));
                Added::Pass(key)
            }
            (None, None) => {
                d.held.push(item);
                Added::Held(None)
            }
            (Some((key, round)), None) if round == self.round => {
                self.ready.push_back((item, Some(key)));
                Added::Held(None)
            }
            (Some((key, _)), None) => Added::Pass(key),
        };
        let covered: u16 = d.pieces.iter().map(|(start, end, _)| end - start).sum();
        if d.pieces.iter().any(|p| p.2 && p.1 == covered) && d.first.is_some() {
            self.datagrams.remove(&f.id);
        }
        added
    }

    /// All that are overdue, in any order.
    fn expired(&mut self, now: u32) -> Vec<u32> {
        let over = |d: &Known| !d.held.is_empty() && now - d.since >= HOLD;
        let gone = self.datagrams.values_mut().filter(|d| over(d)).flat_map(|d| d.held.clone()).collect();
        self.datagrams.retain(|_, d| !over(d));
        gone
    }

    fn due(&self, now: u32) -> Option<u32> {
        let left = |d: &Known| {
            let time = if d.first.is_some() || d.spoiled { LIFE } else { HOLD };
            time.saturating_sub(now - d.since)
        };
        if self.ready.is_empty() { self.datagrams.values().map(left).min() } else { Some(0) }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(Fragment),
    Begin(u32),
    Ready,
    Expired,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Mostly cuts of a datagram of 8 units at multiples of 2, so that many are completed; some that overlap.
    let even = (0u8..4, 0u16..4).prop_map(|(n, at)| piece(n, at * 2, at * 2 + 2, at == 3));
    let odd =
        (0u8..4, 0u16..9, 1u16..4, any::<bool>()).prop_map(|(n, at, len, last)| piece(n, at, at + len, last));
    let ports =
        (0u8..4, 0u16..3).prop_map(|(n, port)| Fragment { key: Some(key(port)), ..piece(n, 0, 2, false) });
    let step = prop_oneof![
        20 => even.prop_map(Step::Add),
        1 => odd.prop_map(Step::Add),
        1 => ports.prop_map(Step::Add),
        6 => prop_oneof![5 => Just(0u32), 3 => 1u32..80, 1 => 500u32..1500].prop_map(Step::Begin),
        3 => Just(Step::Ready),
        2 => Just(Step::Expired),
    ];
    prop::collection::vec(step, 0..if cfg!(miri) { 40 } else { 150 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// With room for all, the table does what the model does.
    #[test]
    fn behaves_like_the_model(steps in steps(), start: u32) {
        let (mut table, mut model) = (Fragments::new(WIDE, 1), Model::default());
        let mut elapsed = 0;
        for (n, step) in (0u32..).zip(steps) {
            let now = Millis(start).after(elapsed);
            match step {
                Step::Add(f) => prop_assert_eq!(table.add(&f, now, || n), model.add(&f, elapsed, n), "{:?}", f),
                Step::Begin(ms) => {
                    elapsed += ms;
                    table.begin(now.after(ms));
                    model.begin(elapsed);
                }
                Step::Ready => prop_assert_eq!(table.ready(), model.ready.pop_front()),
                Step::Expired => {
                    let mut got: Vec<u32> = core::iter::from_fn(|| table.expired(now)).collect();
                    let mut want = model.expired(elapsed);
                    got.sort_unstable();
                    want.sort_unstable();
                    prop_assert_eq!(got, want);
                }
            }
            let now = Millis(start).after(elapsed);
            prop_assert_eq!(table.due(now), model.due(elapsed));
            prop_assert!(table.backlog(now) >= model.ready.len());
        }
    }

    /// However little room there is: what was taken comes out once, and never more is held than allowed.
    #[test]
    fn nothing_held_is_lost(steps in steps(), datagrams in 1usize..5, held in 1usize..9, held_per_datagram in 1usize..5) {
        let limits = Limits { datagrams, held, held_per_datagram, ..WIDE };
        let mut table = Fragments::new(limits, 1);
        let (mut now, mut inside) = (Millis(0), Vec::new());
        let leave = |inside: &mut Vec<(u32, DatagramId)>, item: u32| {
            let at = inside.iter().position(|(n, _)| *n == item);
            inside.remove(at.expect("it was held"));
        };
        for (n, step) in (0u32..).zip(steps) {
            match step {
                Step::Add(f) => {
                    let mut taken = false;
                    let added = table.add(&f, now, || {
                        taken = true;
                        n
                    });
                    prop_assert_eq!(taken, matches!(added, Added::Held(_)));
                    if let Added::Held(evicted) = added {
                        evicted.into_iter().for_each(|item| leave(&mut inside, item));
                        inside.push((n, f.id));
                    }
                    // A first fragment needs no room but its datagram's.
                    prop_assert!(f.key.is_none() || !matches!(added, Added::Held(_)));
                }
                Step::Begin(ms) => {
                    now = now.after(ms);
                    table.begin(now);
                }
                Step::Ready => table.ready().into_iter().for_each(|(item, _)| leave(&mut inside, item)),
                Step::Expired => table.expired(now).into_iter().for_each(|item| leave(&mut inside, item)),
            }
            prop_assert!(inside.len() <= held);
            prop_assert!(inside.is_empty() || table.due(now).is_some());
        }
        core::iter::from_fn(|| table.any()).for_each(|item| leave(&mut inside, item));
        prop_assert_eq!(inside, []);
        // Nothing is left that would keep a worker awake.
        table.begin(now.after(LIFE));
        prop_assert_eq!(table.due(now.after(LIFE)), None);
    }
}

fn add(table: &mut Fragments<u32>, f: &Fragment, now: u32) -> Added<u32> {
    let item = now;
    table.add(f, Millis(now), || item)
}

#[test]
fn a_datagram_in_order_passes_from_the_next_round_on() {
    let mut table = Fragments::new(WIDE, 1);
    table.begin(Millis(0));
    assert_eq!(add(&mut table, &piece(0, 0, 2, false), 0), Added::Pass(key(7)));
    assert_eq!(
        add(&mut table, &piece(0, 2, 4, false), 1),
        Added::Held(None),
        "its flow is not installed yet"
    );
    table.begin(Millis(2));
    assert_eq!(table.ready(), Some((1, Some(key(7)))));
    assert_eq!(add(&mut table, &piece(0, 4, 5, true), 2), Added::Pass(key(7)));
    assert_eq!(table.due(Millis(2)), None, "complete: forgotten");
}

#[test]
fn elsewhere_is_another_datagram() {
    let mut table = Fragments::new(WIDE, 1);
    table.begin(Millis(0));
    assert_eq!(add(&mut table, &piece(0, 0, 2, false), 0), Added::Pass(key(7)));
    table.begin(Millis(0));
    let stranger = |id: DatagramId| Fragment { id, ..piece(0, 2, 4, true) };
    let mine = id(0);
    for other in [
        DatagramId { ingress: PortId(9), ..mine },
        DatagramId { tunnel: 0, ..mine },
        DatagramId { proto: proto::TCP, ..mine },
        DatagramId { ident: 1 << 16, ..mine },
        DatagramId { src: mine.dst, ..mine },
        DatagramId { dst: mine.src, ..mine },
    ] {
        assert_eq!(add(&mut table, &stranger(other), 0), Added::Held(None), "{other:?}");
    }
    assert_eq!(add(&mut table, &stranger(mine), 0), Added::Pass(key(7)));
}

#[test]
fn more_fragments_than_a_datagram_may_have() {
    let mut table = Fragments::new(WIDE, 1);
    table.begin(Millis(0));
    assert_eq!(add(&mut table, &piece(0, 0, 1, false), 0), Added::Pass(key(7)));
    table.begin(Millis(0));
    for n in 1..128 {
        assert_eq!(add(&mut table, &piece(0, n, n + 1, false), 0), Added::Pass(key(7)));
    }
    assert_eq!(add(&mut table, &piece(0, 128, 129, true), 0), Added::Limit);
}

#[test]
fn the_one_held_longest_gives_way() {
    let mut table = Fragments::new(Limits { held: 2, ..WIDE }, 1);
    table.begin(Millis(0));
    for n in 0..4u8 {
        let evicted = if n < 2 { None } else { Some(u32::from(n) - 2) };
        assert_eq!(add(&mut table, &piece(n, 2, 4, false), n.into()), Added::Held(evicted));
    }
    // The first one of a datagram that had to go passes all the same.
    assert_eq!(add(&mut table, &piece(0, 0, 2, false), 4), Added::Pass(key(7)));
    assert_eq!(table.ready(), None);
    assert_eq!(add(&mut table, &piece(3, 0, 2, false), 4), Added::Pass(key(7)));
    assert_eq!(table.ready(), Some((3, Some(key(7)))));
}

#[test]
fn a_flood_of_first_fragments_keeps_what_is_held() {
    let mut table = Fragments::new(Limits { datagrams: 8, ..WIDE }, 1);
    table.begin(Millis(0));
    assert_eq!(add(&mut table, &piece(0, 2, 4, true), 0), Added::Held(None));
    for ident in 100..200 {
        let first = Fragment { id: DatagramId { ident, ..id(0) }, ..piece(0, 0, 2, false) };
        assert_eq!(add(&mut table, &first, 1), Added::Pass(key(7)));
    }
    assert_eq!(add(&mut table, &piece(0, 0, 2, false), 2), Added::Pass(key(7)));
    assert_eq!(table.ready(), Some((0, Some(key(7)))));
}
