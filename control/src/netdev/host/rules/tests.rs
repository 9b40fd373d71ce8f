//! Ranges of ports, and the way from any rules to those wanted.

use proptest::prelude::*;

use super::*;
use crate::netdev::route::TABLE_MAIN;

proptest! {
    /// Every port is in a range, no kept one is, there are few ranges, and none is wider than need be when there are
    /// few anyway.
    #[test]
    fn ranges_hold_their_ports(
        ports in proptest::collection::btree_set(any::<u16>(), 0..120),
        kept in proptest::collection::btree_set(any::<u16>(), 0..6),
    ) {
        let kept: BTreeSet<u16> = kept.difference(&ports).copied().collect();
        let got = ranges(ports.iter().copied(), &kept);
        let holds = |p: &u16| got.iter().any(|(a, b)| (*a..=*b).contains(p));
        prop_assert!(got.len() <= MOST_RANGES + kept.len());
        prop_assert!(ports.iter().all(holds) && !kept.iter().any(holds));
        prop_assert!(got.is_sorted() && got.iter().all(|(a, b)| a <= b));
        prop_assert!(got.iter().all(|(a, b)| ports.contains(a) && ports.contains(b)));
        let width: usize = got.iter().map(|(a, b)| usize::from(b - a) + 1).sum();
        prop_assert!(got.len() >= MOST_RANGES || width == ports.len());
    }

    /// From whatever rules there are: the node is never without its own addresses, at the end it has them behind our
    /// rules or first, what is nobody's business stays in its order, and then there is nothing left to do.
    #[test]
    fn the_rules_come_to_what_is_wanted(
        picked in proptest::collection::vec(any::<bool>(), 14),
        needs in any::<bool>(),
        few in any::<bool>(),
    ) {
        let there: Vec<Rule> = pool().into_iter().zip(&picked).filter(|(_, p)| **p).map(|(r, _)| r).collect();
        let mut wanted = BTreeSet::from([Rule::all(true, PREF_PODS, TABLE_PODS, PROTOCOL)]);
        if needs {
            wanted.insert(port_rule(if few { 30_080 } else { 30_090 }));
        }
        let moves = needs && in_the_way(&there, true).is_none();
        let mut kernel = Kernel(there.clone());
        for step in local_steps(&there, true, moves).into_iter().chain(steps(&there, &wanted)) {
            let had = kernel.has_local();
            kernel.take(&step);
            prop_assert!(kernel.has_local() || !had, "{step:?} of {there:?}");
        }
        let now = kernel.0.clone();
        prop_assert!(kernel.has_local());
        prop_assert!(wanted.iter().all(|r| now.contains(r)));
        let foreign = |rules: &[Rule]| -> Vec<Rule> {
            let known = |r: &&Rule| !is_ours(r) && **r != moved(true) && !(r.pref == 0 && is_local(r, true));
            rules.iter().filter(known).cloned().collect()
        };
        prop_assert_eq!(foreign(&now), foreign(&there));
        let is_first = now.iter().any(|r| r.pref == 0 && is_local(r, true));
        prop_assert!(!(moves && is_first));
        prop_assert!(moves || !now.contains(&moved(true)));
        let moves = needs && in_the_way(&now, true).is_none();
        let more: Vec<Step> = local_steps(&now, true, moves).into_iter().chain(steps(&now, &wanted)).collect();
        prop_assert_eq!(more, []);
    }
}

/// Rules that may be there, in the kernel's order.
fn pool() -> Vec<Rule> {
    const THEIRS: u8 = 4;
    let other = |pref, table| Rule::all(true, pref, table, THEIRS);
    vec![
        first(true, RTPROT_KERNEL),
        Rule { more: true, ..other(0, 100) },
        port_rule(30_080),
        port_rule(30_081),
        other(1, 100),
        moved(true),
        Rule { iif: Some("eth0".into()), ..other(2, 101) },
        other(2, TABLE_LOCAL),
        other(3, 100),
        Rule { more: true, ..other(50, TABLE_LOCAL) },
        Rule::all(true, PREF_PODS, TABLE_PODS, PROTOCOL),
        Rule::all(true, PREF_PODS, TABLE_PORTS, PROTOCOL),
        other(32_765, TABLE_LOCAL),
        Rule::all(true, 32_766, TABLE_MAIN, RTPROT_KERNEL),
    ]
}

fn port_rule(port: u16) -> Rule {
    let rule = Rule::all(true, PREF_PORTS, TABLE_PORTS, PROTOCOL);
    Rule { iif: Some(HERE.into()), ports: Some((6, port, port)), ..rule }
}

/// Does with rules what Linux does.
struct Kernel(Vec<Rule>);

impl Kernel {
    fn has_local(&self) -> bool {
        self.0.iter().any(|r| is_local(r, true))
    }

    fn take(&mut self, step: &Step) {
        match step {
            // Who made it does not count.
            Step::Add(new) if self.0.iter().any(|r| Rule { protocol: new.protocol, ..r.clone() } == *new) => {
            }
            Step::Add(new) => {
                let at = self.0.partition_point(|r| r.pref <= new.pref);
                self.0.insert(at, new.clone());
            }
            Step::Remove(old) => {
                let is_it = |r: &Rule| {
                    r.table == old.table
                        && (old.pref == 0 || r.pref == old.pref)
                        && (old.protocol == 0 || r.protocol == old.protocol)
                        && (old.iif.is_none() || r.iif == old.iif)
                        && (old.ports.is_none() || r.ports == old.ports)
                };
                if let Some(at) = self.0.iter().position(is_it) {
                    self.0.remove(at);
                }
            }
        }
    }
}

#[test]
fn who_is_in_the_way() {
    let said = |rules: &[Rule]| in_the_way(rules, true).map(ToString::to_string);
    let kernels = first(true, RTPROT_KERNEL);
    let theirs = |pref| Rule::all(true, pref, 100, 4);
    assert_eq!(said(std::slice::from_ref(&kernels)), None);
    for pref in 0..=PREF_LOCAL {
        assert_eq!(said(&[kernels.clone(), theirs(pref)]), Some(format!("{pref}: lookup 100")));
        assert_eq!(said(&[theirs(pref), moved(true)]), Some(format!("{pref}: lookup 100")));
        // All is lost, but this one.
        assert_eq!(said(&[theirs(pref)]), Some(format!("{pref}: lookup 100")));
    }
    assert_eq!(said(&[kernels.clone(), theirs(PREF_LOCAL + 1)]), None);
    assert_eq!(said(&[kernels, port_rule(80), Rule::all(false, 1, 100, 4)]), None);
    // They have moved it themselves: nothing moves by us.
    assert_eq!(said(&[theirs(1), Rule::all(true, 100, TABLE_LOCAL, 4)]), None);
    let goto = Rule { more: true, ..Rule::all(true, 1, 0, 4) };
    assert_eq!(said(&[goto, moved(true)]), Some("1: ...".to_owned()));
}

#[test]
fn rules_of_a_plan() {
    let plan = HostPlan {
        sources: vec!["192.0.2.1".parse().unwrap()],
        shared: [("192.0.2.1".parse().unwrap(), true)].into(),
        ports: [(true, 6, 30_080), (true, 6, 30_081), (true, 17, 53), (false, 6, 30_080)].into(),
        ..HostPlan::default()
    };
    let texts: Vec<String> = wanted(&plan).iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "1: iif lo ipproto 6 dport 30080-30081 lookup 64251",
            "1: iif lo ipproto 17 dport 53-53 lookup 64251",
            "2000: lookup 64250",
        ]
    );
}

/// SSH does not become a service's because many services have ports around it.
#[test]
fn gaps_with_kept_ports_stay_open() {
    let plan = HostPlan {
        sources: vec!["192.0.2.1".parse().unwrap()],
        shared: [("192.0.2.1".parse().unwrap(), true)].into(),
        ports: (1..=60).map(|n| (true, 6, 2 * n + 1)).collect(),
        kept: [(6, 22), (17, 68)].into(),
        ..HostPlan::default()
    };
    let ranges: Vec<(u16, u16)> =
        wanted(&plan).iter().filter_map(|r| r.ports.map(|(_, a, b)| (a, b))).collect();
    assert_eq!(ranges.len(), MOST_RANGES);
    let holds = |port: u16| ranges.iter().any(|(a, b)| (*a..=*b).contains(&port));
    assert!(!holds(22) && holds(21) && holds(23) && ranges.iter().any(|(a, b)| a < b));
}
