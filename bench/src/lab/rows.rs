//! From what was measured to rows: who is compared with whom, against which goal, and what speaks against it.
#![forbid(unsafe_code)]

use serde_json::json;

use super::latency::{Trips, Way};
use super::peers::Peer;
use super::topology::MOST_PODS;
use super::traffic::{Run, Workload};
use super::{Measured, SPREADS, WORKLOADS};
use crate::results::{Better, Row};

/// The generator may sleep this part of the time: timer ticks, the sink's counters.
const ASLEEP: f64 = 0.1;
/// From this part of what was sent on, what was delivered does not show the forwarder's limit.
const ALL: f64 = 0.98;
/// From this part of what generator and sink do alone, a rate may be theirs.
const NEAR: f64 = 0.9;
const RATE: &str = "Mpps delivered";

/// All rows.
pub(super) fn of(all: &Measured) -> Vec<Row> {
    let mut rows = Vec::new();
    for workload in WORKLOADS {
        for peer in Peer::ALL.into_iter().skip(1).filter(|peer| peer.takes(workload)) {
            // At least the peer's rate, where the goals say no other factor.
            let factor = if (peer, workload) == (Peer::KernelRules(50), Workload::SMALL) { 3.3 } else { 1.0 };
            rows.extend(rate(all, (Peer::Fastpath, workload), (peer, workload), (7, factor)));
        }
    }
    let one = SPREADS[0];
    for workload in SPREADS.into_iter().skip(1) {
        rows.extend(rate(all, (Peer::Fastpath, workload), (Peer::Fastpath, one), (8, 0.8)));
    }
    let many = Workload::Spread(MOST_PODS);
    rows.extend(rate(all, (Peer::Fastpath, many), (Peer::KernelRules(50), many), (8, 1.0)));
    for us in [Peer::Fastpath, Peer::FastpathLatency] {
        for peer in Peer::ASKED.into_iter().filter(|peer| !peer.is_ours()) {
            for way in Way::ALL {
                rows.extend(trips(all, (us, peer), way, "p50", 1.2, |t| t.p50));
                rows.extend(trips(all, (us, peer), way, "p99.9", 2.0, |t| t.p999));
            }
        }
    }
    if !all.idle.is_empty() {
        let rounds = all.idle.iter().map(|idle| (*idle, 100.0, json!({}))).collect();
        let name = format!("idle, {MOST_PODS} idle pods");
        let goal = (10, 0.01, Better::Lower);
        rows.push(Row::new(goal, (name, "% of a core"), "a core".to_owned(), rounds, Vec::new()));
    }
    rows
}

/// Our rate with one thing against another's, or our own, with another.
fn rate(
    all: &Measured,
    us: (Peer, Workload),
    them: (Peer, Workload),
    (goal, factor): (u8, f64),
) -> Option<Row> {
    let goal = (goal, factor, Better::Higher);
    let peer = if them.0 == us.0 { format!("itself, {}", them.1.name()) } else { them.0.name() };
    if let Some(why) = all.skipped.get(&them.0) {
        return Some(Row::skipped(goal, (us.1.name(), RATE), peer, why.clone()));
    }
    let (ours, theirs) = (all.runs.get(&us)?, all.runs.get(&them)?);
    let rounds = ours.iter().zip(theirs).map(|(a, b)| {
        let more = json!({
            "ours_sent": a.sent, "ours_asleep": a.asleep, "theirs_sent": b.sent, "theirs_asleep": b.asleep,
        });
        (a.delivered, b.delivered, more)
    });
    let doubts = [(us, ours), (them, theirs)]
        .into_iter()
        .flat_map(|((who, what), runs)| doubts(who, what, runs, all.ceiling))
        .collect();
    Some(Row::new(goal, (us.1.name(), RATE), peer, rounds.collect(), doubts))
}

fn trips(
    all: &Measured,
    (us, peer): (Peer, Peer),
    way: Way,
    which: &str,
    factor: f64,
    of: fn(&Trips) -> f64,
) -> Option<Row> {
    let (ours, theirs) = (all.trips.get(&(us, way))?, all.trips.get(&(peer, way))?);
    let rounds = ours.iter().zip(theirs).map(|(a, b)| {
        let more = json!({
            "ours_per_second": a.rate, "theirs_per_second": b.rate, "ours_lost_ppm": a.lost, "theirs_lost_ppm": b.lost,
        });
        (of(a), of(b), more)
    });
    let profile = if us == Peer::FastpathLatency { ", profile latency" } else { "" };
    let name = format!("round trip, {which}, {}{profile}", way.name());
    let goal = (10, factor, Better::Lower);
    Some(Row::new(goal, (name, "µs"), peer.name(), rounds.collect(), Vec::new()))
}

/// What speaks against taking the runs of a peer as what it can forward.
fn doubts(who: Peer, what: Workload, runs: &[Run], ceiling: f64) -> Vec<String> {
    // A socket's sender shares its core with the forwarding and is slower than any: its rate is the result.
    let limited = what == Workload::Sockets;
    // On one core with the generator, what is sent is what is forwarded: nothing to see in it.
    let own_core = who.has_own_core() && !limited;
    let count = |is: &dyn Fn(&Run) -> bool| runs.iter().filter(|r| is(r)).count();
    [
        (
            count(&|r| r.asleep > ASLEEP && !limited),
            format!("the generator slept over {:.0} % of the time", ASLEEP * 100.0),
        ),
        (
            count(&|r| own_core && r.delivered >= ALL * r.sent),
            "nothing was lost: the generator was the limit, the rate is a lower bound".to_owned(),
        ),
        (
            count(&|r| ceiling > 0.0 && r.delivered >= NEAR * ceiling),
            format!("near the {ceiling:.3} Mpps of generator and sink alone"),
        ),
    ]
    .into_iter()
    .filter(|(rounds, _)| *rounds > 0)
    .map(|(rounds, why)| format!("{}, {rounds} of {} rounds: {why}", who.name(), runs.len()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_runs_are_named() {
        let run = |delivered, sent, asleep| Run { delivered, sent, asleep };
        let of = |who, runs: &[Run]| doubts(who, Workload::SMALL, runs, 4.0);
        let steered = Peer::KernelSteered;
        let sound = [run(1.0, 3.0, 0.01), run(3.5, 4.0, 0.09)];
        assert!(of(Peer::Fastpath, &sound).is_empty());
        // The generator's own core forwards: all that is sent arrives.
        assert!(of(Peer::Kernel, &[run(1.0, 1.0, 0.0)]).is_empty());
        for (runs, want) in [
            (
                &[sound[0], run(0.13, 0.13, 0.95)][..],
                &["1 of 2 rounds: the generator slept", "1 of 2 rounds: nothing was lost"][..],
            ),
            (&[run(1.0, 1.5, 0.5)], &["1 of 1 rounds: the generator slept over 10 %"]),
            (&[run(2.0, 2.01, 0.0)], &["1 of 1 rounds: nothing was lost"]),
            (&[run(3.7, 4.0, 0.0)], &["1 of 1 rounds: near the 4.000 Mpps"]),
        ] {
            for who in [Peer::Fastpath, steered] {
                let found = of(who, runs);
                assert_eq!(found.len(), want.len(), "{found:?}");
                for (found, want) in found.iter().zip(want) {
                    assert!(found.starts_with(&who.name()) && found.contains(want), "{found}");
                }
            }
        }
    }

    #[test]
    fn a_peer_that_was_not_there_is_named() {
        let mut all = Measured::default();
        let run = Run { delivered: 1.0, sent: 2.0, asleep: 0.0 };
        all.runs.insert((Peer::Fastpath, Workload::SMALL), vec![run]);
        all.runs.insert((Peer::Kernel, Workload::SMALL), vec![run]);
        all.skipped.insert(Peer::Testpmd, "not installed".to_owned());
        let rows = of(&all);
        let small: Vec<&Row> = rows.iter().filter(|r| r.name == Workload::SMALL.name()).collect();
        assert_eq!(small.len(), 2);
        let testpmd = small.iter().find(|r| r.peer == Peer::Testpmd.name()).unwrap();
        assert_eq!((testpmd.skipped.as_deref(), testpmd.met), (Some("not installed"), false));
        assert!(small.iter().find(|r| r.peer == Peer::Kernel.name()).unwrap().met);
    }
}
