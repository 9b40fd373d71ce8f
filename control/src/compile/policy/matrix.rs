//! The rules of one group and direction → a [`Matrix`].
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use fastpath::tables::policy::{Cell, ClassId, Matrix, PortFn, PortMap, Row, Rows, RuleId};
use hashbrown::HashMap;

use super::classes::{Classes, NameId, PeerSetId};
use super::few::Few;
use crate::model::Protocol;

/// A rule with its peers and port names numbered.
#[derive(Clone, Debug)]
pub(super) struct CompiledRule {
    pub(super) id: RuleId,
    /// `None`: every peer.
    pub(super) peers: Option<PeerSetId>,
    /// Empty: every port of every protocol.
    pub(super) ports: Few<(Protocol, CompiledPort)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum CompiledPort {
    Any,
    Range(u16, u16),
    Named(NameId),
}

impl CompiledRule {
    pub(super) fn names(&self) -> impl Iterator<Item = NameId> + '_ {
        self.ports.iter().filter_map(|(_, p)| match p {
            CompiledPort::Named(name) => Some(*name),
            _ => None,
        })
    }

    /// Whether one of its ports matches, names standing for what `resolution` says.
    pub(super) fn allows_port(&self, resolution: &[(NameId, u16)], proto: u8, dport: u16) -> bool {
        self.ports.is_empty()
            || self.ports.iter().any(|(protocol, port)| {
                protocol.number() == proto
                    && match port {
                        CompiledPort::Any => true,
                        CompiledPort::Range(a, b) => (*a..=*b).contains(&dport),
                        CompiledPort::Named(name) => resolution.contains(&(*name, dport)),
                    }
            })
    }
}

/// A class, and a rule by its number that has it among its peers; [`NO_RULE`] for a class that has to have a row all the
/// same. Sorted.
pub(super) type Met = Vec<(ClassId, u32)>;

const NO_RULE: u32 = u32::MAX;

/// The classes that some of `rules` tell apart; `own` as in [`build`].
pub(super) fn meet(rules: &[&CompiledRule], own: bool, classes: &Classes) -> Met {
    let mut met = Vec::with_capacity(rules.len());
    for (i, rule) in (0u32..).zip(rules) {
        match rule.peers {
            Some(set) => met.extend(classes.with_set(set).map(|c| (c, i))),
            // For a named port even a rule for every peer depends on the peer.
            None if !own => met.extend(rule.names().flat_map(|n| classes.with_name(n)).map(|c| (c, NO_RULE))),
            None => {}
        }
    }
    met.sort_unstable();
    met
}

/// Builds the matrix of `rules`, in their order: the first that allows gives its id. `met` is what [`meet`] says of them.
///
/// `own` is what port names stand for on the group's own endpoints, for ingress; `None` for egress, where
/// they stand for what they do on the peer.
pub(super) fn build(
    rules: &[&CompiledRule],
    isolated: RuleId,
    own: Option<&[(NameId, u16)]>,
    classes: &Classes,
    met: &Met,
) -> Matrix {
    let every_peer: Vec<usize> =
        rules.iter().enumerate().filter(|(_, rule)| rule.peers.is_none()).map(|(i, _)| i).collect();
    let number = |rule: u32| usize::try_from(rule).ok().filter(|_| rule != NO_RULE);
    let names: BTreeSet<NameId> = rules.iter().flat_map(|r| r.names()).collect();
    let mut functions = Vec::new();
    let default = make_row(rules, &every_peer, own.unwrap_or_default(), isolated, &mut functions);
    let mut known = HashMap::<(Vec<usize>, Vec<(NameId, u16)>), Row>::new();
    let mut rows: Vec<(ClassId, Row)> = Vec::with_capacity(met.len());
    for of_class in met.chunk_by(|a, b| a.0 == b.0) {
        let Some((class, first)) = of_class.first() else { continue };
        if let ([_], [], Some(rule)) = (of_class, &every_peer[..], number(*first).and_then(|i| rules.get(i)))
            && let Some(row) = simple(rule)
        {
            rows.push((*class, row));
            continue;
        }
        let mut matched: Vec<usize> =
            of_class.iter().filter_map(|m| number(m.1)).chain(every_peer.iter().copied()).collect();
        matched.sort_unstable();
        matched.dedup();
        let resolution: Vec<_> = match (own, classes.signature(*class)) {
            (None, Some(s)) if !names.is_empty() => {
                s.ports.iter().filter(|(n, _)| names.contains(n)).copied().collect()
            }
            _ => Vec::new(),
        };
        let row = *known.entry((matched, resolution)).or_insert_with_key(|(matched, resolution)| {
            make_row(rules, matched, own.unwrap_or(resolution), isolated, &mut functions)
        });
        rows.push((*class, row));
    }
    Matrix::new(Cell::deny(isolated), default, rows.into_iter().collect::<Rows>(), functions)
}

/// The row of one rule alone, if it needs no function.
fn simple(rule: &CompiledRule) -> Option<Row> {
    let cell = Cell::allow(rule.id);
    match rule.ports[..] {
        [] => Some(Row::all(cell)),
        [(protocol, CompiledPort::Any)] => Some(Row::ports(protocol.number(), 0, u16::MAX, cell)),
        [(protocol, CompiledPort::Range(first, last))] => {
            Some(Row::ports(protocol.number(), first, last, cell))
        }
        _ => None,
    }
}

/// The row of the rules numbered by `which`; adds its function, if it needs one.
fn make_row(
    rules: &[&CompiledRule],
    which: &[usize],
    resolution: &[(NameId, u16)],
    isolated: RuleId,
    functions: &mut Vec<PortFn>,
) -> Row {
    let row = match which {
        [] => Some(Row::all(Cell::deny(isolated))),
        [only] => rules.get(*only).and_then(|rule| simple(rule)),
        _ => None,
    };
    row.unwrap_or_else(|| {
        functions.push(port_fn(rules, which, resolution, isolated));
        Row::function(u32::try_from(functions.len() - 1).unwrap_or(u32::MAX))
    })
}

/// The union of the rules numbered by `which`: on each port the first of them that allows it.
fn port_fn(
    rules: &[&CompiledRule],
    which: &[usize],
    resolution: &[(NameId, u16)],
    isolated: RuleId,
) -> PortFn {
    let mut spans: [Vec<Span>; 3] = Default::default();
    let mut other = Cell::deny(isolated);
    for &i in which {
        let Some(rule) = rules.get(i) else { continue };
        let cell = Cell::allow(rule.id);
        if rule.ports.is_empty() {
            spans.iter_mut().for_each(|s| s.push(Span { first: 0, last: u16::MAX, order: i, cell }));
            other = cell;
            // Nothing after it can matter.
            break;
        }
        for (protocol, port) in rule.ports.iter() {
            let [tcp, udp, sctp] = &mut spans;
            let spans = match protocol {
                Protocol::Tcp => tcp,
                Protocol::Udp => udp,
                Protocol::Sctp => sctp,
            };
            let mut push = |first, last| spans.push(Span { first, last, order: i, cell });
            match port {
                CompiledPort::Any => push(0, u16::MAX),
                CompiledPort::Range(first, last) => push(*first, *last),
                CompiledPort::Named(name) => {
                    resolution.iter().filter(|(n, _)| n == name).for_each(|(_, p)| push(*p, *p));
                }
            }
        }
    }
    let [tcp, udp, sctp] = spans.map(|s| port_map(s, isolated));
    PortFn { tcp, udp, sctp, other }
}

struct Span {
    first: u16,
    last: u16,
    order: usize,
    cell: Cell,
}

fn port_map(mut spans: Vec<Span>, isolated: RuleId) -> PortMap {
    if spans.is_empty() {
        return PortMap::One(Cell::deny(isolated));
    }
    let mut edges: Vec<u16> = spans.iter().map(|s| s.first).collect();
    edges.extend(spans.iter().filter_map(|s| s.last.checked_add(1)));
    edges.sort_unstable();
    edges.dedup();
    spans.sort_unstable_by_key(|s| s.first);
    let mut next = spans.iter().peekable();
    let mut open = BinaryHeap::new();
    let mut changes = Vec::with_capacity(edges.len());
    for port in edges {
        while let Some(span) = next.next_if(|s| s.first == port) {
            open.push(Reverse((span.order, span.last, span.cell)));
        }
        while open.peek().is_some_and(|Reverse((_, last, _))| *last < port) {
            open.pop();
        }
        let cell = open.peek().map_or(Cell::deny(isolated), |Reverse((_, _, cell))| *cell);
        changes.push((port, cell));
    }
    PortMap::new(Cell::deny(isolated), &changes)
}
