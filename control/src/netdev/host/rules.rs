//! The rules that ask our tables.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Error, HostPair, HostPlan, Netlink, PREF_LOCAL, PREF_PODS, PREF_PORTS, PROTOCOL, Rule, TABLE_LOCAL,
    TABLE_MAIN, TABLE_PODS, TABLE_PORTS, ignoring_no_v6,
};

/// A port that is a service's: whether IPv4, IP protocol number, port.
pub type Port = (bool, u8, u16);

/// Most ranges of ports for a family and protocol: the kernel looks at rules one by one, for every packet's route.
const MOST_RANGES: usize = 32;
/// The device of what is made here.
const HERE: &str = "lo";

/// Ranges that hold all `ports`, at most [`MOST_RANGES`]: then the smallest gaps are closed. What comes through a closed
/// gap is sent back to the node by the packet path.
fn ranges(ports: impl IntoIterator<Item = u16>) -> Vec<(u16, u16)> {
    let mut out: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match out.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => out.push((port, port)),
        }
    }
    while out.len() > MOST_RANGES {
        let gap = |pair: &[(u16, u16)]| match pair {
            [(_, last), (first, _)] => first - last,
            _ => u16::MAX,
        };
        let Some(at) = (1..out.len()).min_by_key(|at| out.get(at - 1..=*at).map_or(u16::MAX, gap)) else {
            break;
        };
        let (_, last) = out.remove(at);
        if let Some(range) = out.get_mut(at - 1) {
            range.1 = last;
        }
    }
    out
}

/// The rules that a plan needs, but for that of the node's own addresses.
fn wanted(plan: &HostPlan) -> BTreeSet<Rule> {
    let mut by_protocol: BTreeMap<(bool, u8), BTreeSet<u16>> = BTreeMap::new();
    for (ipv4, proto, port) in &plan.ports {
        if plan.source(*ipv4).is_some() && plan.shared.keys().any(|a| a.is_ipv4() == *ipv4) {
            by_protocol.entry((*ipv4, *proto)).or_default().insert(*port);
        }
    }
    let families = [true, false].into_iter().filter(|v4| plan.source(*v4).is_some());
    let mut out: BTreeSet<Rule> = families.map(|v4| Rule::all(v4, PREF_PODS, TABLE_PODS, PROTOCOL)).collect();
    for ((ipv4, proto), ports) in by_protocol {
        out.extend(ranges(ports).into_iter().map(|(first, last)| Rule {
            iif: Some(HERE.to_owned()),
            ports: Some((proto, first, last)),
            ..Rule::all(ipv4, PREF_PORTS, TABLE_PORTS, PROTOCOL)
        }));
    }
    out
}

/// The rule for the node's own addresses, where we move it.
fn moved(ipv4: bool) -> Rule {
    Rule::all(ipv4, PREF_LOCAL, TABLE_LOCAL, PROTOCOL)
}

/// The same where the kernel has it, by anybody (0) or as the kernel's own (`RTPROT_KERNEL`).
fn first(ipv4: bool, protocol: u8) -> Rule {
    Rule::all(ipv4, 0, TABLE_LOCAL, protocol)
}
const RTPROT_KERNEL: u8 = 2;

/// Whether the rule for the node's own addresses is the kernel's first.
fn is_first(there: &[Rule], ipv4: bool) -> bool {
    there.iter().any(|r| r.ipv4 == ipv4 && r.pref == 0 && r.is_all_to(TABLE_LOCAL))
}

impl HostPair {
    pub(super) fn sync_rules(&mut self, plan: &HostPlan) -> Vec<Error> {
        let wanted = wanted(plan);
        let moves = |v4: bool| {
            let ports = wanted.iter().any(|r| r.ipv4 == v4 && r.table == TABLE_PORTS);
            ports && plan.shared.iter().any(|(a, own)| *own && a.is_ipv4() == v4)
        };
        let mut expected = wanted.clone();
        expected.extend([true, false].into_iter().filter(|v4| moves(*v4)).map(moved));
        if expected == self.rules {
            return Vec::new();
        }
        let there = match self.netlink.rules() {
            Ok(there) => there,
            Err(e) => return vec![e],
        };
        let mut errors = Vec::new();
        for ipv4 in [true, false] {
            if moves(ipv4) {
                errors.extend(self.move_local(&there, ipv4).err());
            } else {
                errors.extend(restore_local(&mut self.netlink, &there, ipv4).err());
            }
        }
        for rule in wanted.iter().filter(|r| !there.contains(r)) {
            errors.extend(ignoring_no_v6(rule.ipv4, self.netlink.add_rule(rule)).err());
        }
        let ours =
            there.iter().filter(|r| r.protocol == PROTOCOL && matches!(r.table, TABLE_PODS | TABLE_PORTS));
        for rule in ours.filter(|r| !wanted.contains(r)) {
            errors.extend(self.netlink.remove_rule(rule).err());
        }
        if errors.is_empty() {
            self.rules = expected;
        }
        errors
    }

    /// Puts the rule for the node's own addresses behind ours. One that somebody else has moved stays where it is.
    fn move_local(&mut self, there: &[Rule], ipv4: bool) -> Result<(), Error> {
        if !is_first(there, ipv4) {
            return Ok(());
        }
        self.netlink.add_rule(&moved(ipv4))?;
        self.netlink.remove_rule(&first(ipv4, 0))
    }
}

/// Makes the rule for the node's own addresses the first again, if we moved it.
fn restore_local(netlink: &mut Netlink, there: &[Rule], ipv4: bool) -> Result<(), Error> {
    let moved = moved(ipv4);
    if !there.contains(&moved) {
        return Ok(());
    }
    if !is_first(there, ipv4) {
        netlink.add_rule(&first(ipv4, RTPROT_KERNEL))?;
    }
    netlink.remove_rule(&moved)
}

/// Removes every rule of ours, those of a daemon that was killed too.
pub(super) fn remove_all(netlink: &mut Netlink) -> Vec<Error> {
    let there = match netlink.rules() {
        Ok(there) => there,
        Err(e) => return vec![e],
    };
    let mut errors = Vec::new();
    for ipv4 in [true, false] {
        errors.extend(restore_local(netlink, &there, ipv4).err());
    }
    // The main table's is never ours, whatever it bears.
    let ours =
        there.iter().filter(|r| r.protocol == PROTOCOL && !matches!(r.table, TABLE_LOCAL | TABLE_MAIN));
    errors.extend(ours.filter_map(|rule| netlink.remove_rule(rule).err()));
    errors
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every port is in a range, there are few ranges, and none is wider than need be when there are few anyway.
        #[test]
        fn ranges_hold_their_ports(ports in proptest::collection::btree_set(any::<u16>(), 0..120)) {
            let got = ranges(ports.iter().copied());
            prop_assert!(got.len() <= MOST_RANGES);
            prop_assert!(ports.iter().all(|p| got.iter().any(|(a, b)| (*a..=*b).contains(p))));
            prop_assert!(got.is_sorted() && got.iter().all(|(a, b)| a <= b));
            prop_assert!(got.iter().all(|(a, b)| ports.contains(a) && ports.contains(b)));
            let width: usize = got.iter().map(|(a, b)| usize::from(b - a) + 1).sum();
            prop_assert!(got.len() == MOST_RANGES || width == ports.len());
        }
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
                "90: iif lo ipproto 6 dport 30080-30081 lookup 64251",
                "90: iif lo ipproto 17 dport 53-53 lookup 64251",
                "2000: lookup 64250",
            ]
        );
    }
}
