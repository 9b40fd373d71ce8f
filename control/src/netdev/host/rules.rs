//! The rules that ask our tables.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Error, HostPair, HostPlan, Netlink, PREF_LOCAL, PREF_PODS, PREF_PORTS, PROTOCOL, Rule, TABLE_LOCAL,
    TABLE_PODS, TABLE_PORTS, ignoring_no_v6,
};

/// A port that is a service's: whether IPv4, IP protocol number, port.
pub type Port = (bool, u8, u16);

/// Most ranges of ports for a family and protocol, but for those that kept ports make: the kernel looks at rules one
/// by one, for every packet's route.
const MOST_RANGES: usize = 32;
/// The device of what is made here.
const HERE: &str = "lo";

/// Ranges that hold all `ports`, at most [`MOST_RANGES`]: then the smallest gaps are closed, but none with a port of
/// `kept` in it. What comes through a closed gap is sent back to the node by the packet path.
fn ranges(ports: impl IntoIterator<Item = u16>, kept: &BTreeSet<u16>) -> Vec<(u16, u16)> {
    let mut out: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match out.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => out.push((port, port)),
        }
    }
    while out.len() > MOST_RANGES {
        // The ports of a gap, and that behind it, which is none of the node's.
        let gap = |pair: &[(u16, u16)]| match pair {
            [(_, last), (first, _)] if kept.range(*last..*first).next().is_none() => Some(first - last),
            _ => None,
        };
        let gaps = out.windows(2).enumerate().filter_map(|(at, pair)| Some((gap(pair)?, at)));
        let Some((_, at)) = gaps.min() else { break };
        let (_, last) = out.remove(at + 1);
        if let Some(range) = out.get_mut(at) {
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
    let families = FAMILIES.into_iter().filter(|v4| plan.source(*v4).is_some());
    let mut out: BTreeSet<Rule> = families.map(|v4| Rule::all(v4, PREF_PODS, TABLE_PODS, PROTOCOL)).collect();
    for ((ipv4, proto), ports) in by_protocol {
        let kept = plan.kept.iter().filter(|(p, _)| *p == proto).map(|(_, port)| *port).collect();
        out.extend(ranges(ports, &kept).into_iter().map(|(first, last)| Rule {
            iif: Some(HERE.to_owned()),
            ports: Some((proto, first, last)),
            ..Rule::all(ipv4, PREF_PORTS, TABLE_PORTS, PROTOCOL)
        }));
    }
    out
}

/// IPv4, IPv6.
const FAMILIES: [bool; 2] = [true, false];
/// systemd-networkd removes rules that it did not make, but none of the kernel's own.
const RTPROT_KERNEL: u8 = 2;

/// The rule for the node's own addresses, where we move it.
fn moved(ipv4: bool) -> Rule {
    Rule::all(ipv4, PREF_LOCAL, TABLE_LOCAL, RTPROT_KERNEL)
}

/// The same where the kernel has it, by anybody (0) or as the kernel's own.
fn first(ipv4: bool, protocol: u8) -> Rule {
    Rule::all(ipv4, 0, TABLE_LOCAL, protocol)
}

/// Whether it is a rule for a family's own addresses, all of them.
fn is_local(rule: &Rule, ipv4: bool) -> bool {
    rule.ipv4 == ipv4 && rule.is_all_to(TABLE_LOCAL)
}

/// Whether it is one that asks a table of ours.
fn is_ours(rule: &Rule) -> bool {
    rule.protocol == PROTOCOL && matches!(rule.table, TABLE_PODS | TABLE_PORTS)
}

/// Somebody's rule that would come before the node's own addresses if we moved their rule, and does not now.
fn in_the_way(there: &[Rule], ipv4: bool) -> Option<&Rule> {
    let is_moved = |r: &Rule| *r == moved(ipv4);
    // Where somebody else has moved it, it stays.
    let theirs = |r: &Rule| is_local(r, ipv4) && r.pref != 0 && !is_moved(r);
    if there.iter().any(theirs) && !there.iter().any(|r| is_local(r, ipv4) && !theirs(r)) {
        return None;
    }
    let known = |r: &Rule| is_local(r, ipv4) && r.pref == 0 || is_moved(r) || is_ours(r);
    there.iter().find(|r| r.ipv4 == ipv4 && r.pref <= PREF_LOCAL && !known(r))
}

/// One change of the kernel's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Add(Rule),
    Remove(Rule),
}

impl Step {
    fn take(self, netlink: &mut Netlink) -> Result<(), Error> {
        match self {
            Step::Add(rule) => ignoring_no_v6(rule.ipv4, netlink.add_rule(&rule)),
            Step::Remove(rule) => netlink.remove_rule(&rule),
        }
    }
}

/// How a family's rule for the node's own addresses comes to where it is to be: behind ours, or first. At no step is
/// there none; where there is none to begin with, one is added.
fn local_steps(there: &[Rule], ipv4: bool, moves: bool) -> Vec<Step> {
    let (moved, is_first) = (moved(ipv4), there.iter().any(|r| is_local(r, ipv4) && r.pref == 0));
    let is_moved = there.contains(&moved);
    let none = !there.iter().any(|r| is_local(r, ipv4));
    match (moves, is_first, is_moved) {
        (true, true, _) => vec![Step::Add(moved), Step::Remove(first(ipv4, 0))],
        (true, false, _) if none => vec![Step::Add(moved)],
        (false, false, _) if none => vec![Step::Add(first(ipv4, RTPROT_KERNEL))],
        (false, true, true) => vec![Step::Remove(moved)],
        (false, false, true) => vec![Step::Add(first(ipv4, RTPROT_KERNEL)), Step::Remove(moved)],
        // One that somebody else has moved stays where it is.
        _ => Vec::new(),
    }
}

/// What else is to be done so that the kernel has the rules `wanted` of ours.
fn steps(there: &[Rule], wanted: &BTreeSet<Rule>) -> Vec<Step> {
    let mut out: Vec<Step> = wanted.iter().filter(|r| !there.contains(r)).cloned().map(Step::Add).collect();
    let old = there.iter().filter(|r| is_ours(r) && !wanted.contains(r));
    out.extend(old.cloned().map(Step::Remove));
    out
}

/// Brings the kernel from the rules `there` to those `wanted`.
fn bring(
    netlink: &mut Netlink,
    there: &[Rule],
    wanted: &BTreeSet<Rule>,
    moves: impl Fn(bool) -> bool,
) -> Vec<Error> {
    let mut errors = Vec::new();
    for ipv4 in FAMILIES {
        // Where the new rule cannot be had, the old one stays.
        let mut local = local_steps(there, ipv4, moves(ipv4)).into_iter();
        errors.extend(local.try_for_each(|s| s.take(netlink)).err());
    }
    errors.extend(steps(there, wanted).into_iter().filter_map(|s| s.take(netlink).err()));
    errors
}

impl HostPair {
    pub(super) fn sync_rules(&mut self, plan: &HostPlan) -> Vec<Error> {
        // Read each time: they are anybody's to remove.
        let there = match self.netlink.rules() {
            Ok(there) => there,
            Err(e) => return vec![e],
        };
        let wanted = wanted(plan);
        let needs = |v4: bool| {
            let ports = wanted.iter().any(|r| r.ipv4 == v4 && r.table == TABLE_PORTS);
            ports && plan.shared.iter().any(|(a, own)| *own && a.is_ipv4() == v4)
        };
        let obstacle = |v4: bool| in_the_way(&there, v4).filter(|_| needs(v4));
        let moves = |v4: bool| needs(v4) && obstacle(v4).is_none();
        let mut errors = bring(&mut self.netlink, &there, &wanted, moves);
        errors.extend(
            FAMILIES
                .into_iter()
                .filter_map(obstacle)
                .map(|rule| Error::RuleInTheWay { rule: rule.to_string(), least: PREF_LOCAL + 1 }),
        );
        errors
    }
}

/// Adds the rule for the node's own addresses where a family has none.
pub(super) fn keep_local(netlink: &mut Netlink) -> Vec<Error> {
    let there = match netlink.rules() {
        Ok(there) => there,
        Err(e) => return vec![e],
    };
    let lost = FAMILIES.into_iter().filter(|v4| !there.iter().any(|r| is_local(r, *v4)));
    let steps = lost.flat_map(|v4| local_steps(&there, v4, false));
    steps.filter_map(|s| s.take(netlink).err()).collect()
}

/// Removes every rule of ours, those of a daemon that was killed too.
pub(super) fn remove_all(netlink: &mut Netlink) -> Vec<Error> {
    match netlink.rules() {
        Ok(there) => bring(netlink, &there, &BTreeSet::new(), |_| false),
        Err(e) => vec![e],
    }
}

#[cfg(test)]
mod tests;
