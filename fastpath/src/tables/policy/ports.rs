//! (protocol, destination port) → verdict, the last step of the classifier.
#![forbid(unsafe_code)]

use super::Cell;
use crate::packet::proto;

/// Verdicts by destination port of one protocol. Lookup cost is bounded: no more than one scan of
/// eight ports, or two loads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMap {
    /// The same for all ports.
    One(Cell),
    /// Up to eight ranges.
    Few(Few),
    /// Any number of ranges.
    Many(Box<Many>),
}

const FEW: usize = 8;

/// Up to eight ranges, by their first ports; the rest repeats the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Few {
    starts: [u16; FEW],
    cells: [Cell; FEW],
}

/// Two levels: high byte of the port to a page, low byte to the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Many {
    index: [u16; 256],
    pages: Vec<[Cell; 256]>,
}

impl PortMap {
    /// From the verdict on port 0 and the ports from which another one holds, in rising order.
    ///
    /// A change at a port that is not above the one before replaces it.
    #[must_use]
    pub fn new(first: Cell, changes: &[(u16, Cell)]) -> Self {
        let mut ranges: Vec<(u16, Cell)> = vec![(0, first)];
        for &(port, cell) in changes {
            while ranges.len() > 1 && ranges.last().is_some_and(|r| r.0 >= port) {
                ranges.pop();
            }
            if let [only] = &mut ranges[..]
                && port == 0
            {
                only.1 = cell;
            } else if ranges.last().is_none_or(|r| r.1 != cell) {
                ranges.push((port, cell));
            }
        }
        match &ranges[..] {
            [only] => PortMap::One(only.1),
            few if few.len() <= FEW => PortMap::Few(Few::new(few, first)),
            many => PortMap::Many(Box::new(Many::new(many, first))),
        }
    }

    /// The verdict on a port.
    #[inline]
    #[must_use]
    pub fn lookup(&self, port: u16) -> Cell {
        match self {
            PortMap::One(cell) => *cell,
            PortMap::Few(few) => few.lookup(port),
            PortMap::Many(many) => many.lookup(port),
        }
    }
}

impl Few {
    fn new(ranges: &[(u16, Cell)], first: Cell) -> Self {
        let last = ranges.last().copied().unwrap_or((0, first));
        // Padding starts at the last port but repeats the last verdict, so it never changes an answer.
        let mut few = Few { starts: [u16::MAX; FEW], cells: [last.1; FEW] };
        for ((start, cell), range) in few.starts.iter_mut().zip(&mut few.cells).zip(ranges) {
            (*start, *cell) = *range;
        }
        few
    }

    #[inline]
    fn lookup(&self, port: u16) -> Cell {
        let [first, ..] = self.cells;
        // No early exit: eight compares without a branch are cheaper than a mispredicted one.
        let at = self.starts.iter().map(|s| usize::from(*s <= port)).sum::<usize>();
        self.cells.get(at.wrapping_sub(1)).copied().unwrap_or(first)
    }
}

impl Many {
    fn new(ranges: &[(u16, Cell)], first: Cell) -> Self {
        let mut many = Many { index: [0; 256], pages: Vec::new() };
        let mut known = hashbrown::HashMap::<[Cell; 256], u16>::new();
        let mut rest = ranges.iter().peekable();
        let mut now = first;
        for (high, index) in (0u16..).zip(&mut many.index) {
            let mut page = [now; 256];
            for (low, cell) in (0u16..).zip(&mut page) {
                while let Some((_, next)) = rest.next_if(|r| r.0 <= high << 8 | low) {
                    now = *next;
                }
                *cell = now;
            }
            *index = *known.entry(page).or_insert_with(|| {
                many.pages.push(page);
                // There are 256 pages at most.
                u16::try_from(many.pages.len() - 1).unwrap_or(0)
            });
        }
        many
    }

    #[inline]
    fn lookup(&self, port: u16) -> Cell {
        let [high, low] = port.to_be_bytes();
        let page = self.pages.get(usize::from(self.index[usize::from(high)]));
        page.map_or(Cell::deny(super::RuleId::UNKNOWN_GROUP), |p| p[usize::from(low)])
    }
}

/// What one row says: a map for each protocol with ports, one verdict for all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortFn {
    /// TCP.
    pub tcp: PortMap,
    /// UDP.
    pub udp: PortMap,
    /// SCTP.
    pub sctp: PortMap,
    /// ICMP, ICMPv6 and every other protocol: policies cannot name them, only rules without ports allow them.
    pub other: Cell,
}

impl PortFn {
    /// The same verdict on everything.
    #[must_use]
    pub fn constant(cell: Cell) -> Self {
        let one = PortMap::One(cell);
        Self { tcp: one.clone(), udp: one.clone(), sctp: one, other: cell }
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |map: &PortMap| match map {
            PortMap::Many(many) => size_of::<Many>() + many.pages.capacity() * size_of::<[Cell; 256]>(),
            PortMap::One(_) | PortMap::Few(_) => 0,
        };
        size_of::<Self>() + of(&self.tcp) + of(&self.udp) + of(&self.sctp)
    }

    /// The verdict on a destination port.
    #[inline]
    #[must_use]
    pub fn lookup(&self, proto: u8, dport: u16) -> Cell {
        match proto {
            proto::TCP => self.tcp.lookup(dport),
            proto::UDP => self.udp.lookup(dport),
            proto::SCTP => self.sctp.lookup(dport),
            _ => self.other,
        }
    }
}
