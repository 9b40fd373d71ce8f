//! Peer class → row: what the rules of one group and direction say to the peers of one class.
#![forbid(unsafe_code)]

use hashbrown::HashMap;

use super::{Cell, ClassId, PortFn, UNKNOWN, Verdict};
use crate::tables::flow::prefetch;

/// A row in twelve bytes: all ports, one range of ports of one protocol, or the number of a function for all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    cell: Cell,
    first: u16,
    last: u16,
    /// A protocol number, [`ALL`] or [`FUNCTION`].
    kind: u16,
}

const ALL: u16 = 0x100;
const FUNCTION: u16 = 0x101;
/// Stands in [`Rows`] for a class that has no row.
const ABSENT: u16 = 0x102;

impl Row {
    /// The same for every protocol and port.
    #[must_use]
    pub const fn all(cell: Cell) -> Self {
        Self { cell, first: 0, last: 0, kind: ALL }
    }

    /// `cell` for the destination ports `first` to `last` of one protocol, the matrix's closed cell for all else.
    #[must_use]
    pub fn ports(proto: u8, first: u16, last: u16, cell: Cell) -> Self {
        Self { cell, first, last, kind: u16::from(proto) }
    }

    /// What the function of this number says. One beyond the matrix's functions denies with
    /// [`RuleId::UNKNOWN_GROUP`](super::RuleId::UNKNOWN_GROUP).
    #[must_use]
    pub const fn function(number: u32) -> Self {
        Self { cell: Cell(number), first: 0, last: 0, kind: FUNCTION }
    }
}

/// Row of each peer class that has one of its own. Made from any order; of two for one class the last counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows(Kept);

/// Classes are numbered one after the other as they come, so those that one matrix tells apart mostly lie together: their
/// rows are then found without a search.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    /// Of each class from this one on.
    Dense(u32, Box<[Row]>),
    Sparse(HashMap<ClassId, Row>),
}

/// So many places a row are given away for a search less.
const GAPS: usize = 4;

impl Default for Rows {
    fn default() -> Self {
        Self(Kept::Dense(0, Box::default()))
    }
}

impl FromIterator<(ClassId, Row)> for Rows {
    fn from_iter<I: IntoIterator<Item = (ClassId, Row)>>(iter: I) -> Self {
        let given: Vec<(ClassId, Row)> = iter.into_iter().collect();
        let ids = || given.iter().map(|(class, _)| class.0);
        let (Some(first), Some(last)) = (ids().min(), ids().max()) else { return Self::default() };
        let span = usize::try_from(last - first).unwrap_or(usize::MAX).saturating_add(1);
        if span > given.len().saturating_mul(GAPS) {
            return Self(Kept::Sparse(given.into_iter().collect()));
        }
        let mut rows = vec![Row { cell: Cell(0), first: 0, last: 0, kind: ABSENT }; span];
        for (class, row) in given {
            let place = usize::try_from(class.0 - first).ok().and_then(|at| rows.get_mut(at));
            if let Some(place) = place {
                *place = row;
            }
        }
        Self(Kept::Dense(first, rows.into()))
    }
}

impl Rows {
    #[inline]
    fn place(first: u32, rows: &[Row], class: ClassId) -> Option<&Row> {
        rows.get(usize::try_from(class.0.wrapping_sub(first)).ok()?)
    }

    #[inline]
    fn get(&self, class: ClassId) -> Option<&Row> {
        match &self.0 {
            Kept::Dense(first, rows) => Self::place(*first, rows, class).filter(|row| row.kind != ABSENT),
            Kept::Sparse(rows) => rows.get(&class),
        }
    }

    /// Number of classes that have a row.
    fn len(&self) -> usize {
        match &self.0 {
            Kept::Dense(_, rows) => rows.iter().filter(|row| row.kind != ABSENT).count(),
            Kept::Sparse(rows) => rows.len(),
        }
    }

    fn bytes(&self) -> usize {
        match &self.0 {
            Kept::Dense(_, rows) => size_of_val(&**rows),
            Kept::Sparse(rows) => rows.allocation_size(),
        }
    }
}

/// All rules of one group and direction, by peer class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    closed: Cell,
    default: Row,
    rows: Rows,
    functions: Vec<PortFn>,
}

impl Matrix {
    /// `default` is the row of every class that `rows` does not name; `closed` is what a row of [`Row::ports`] says to
    /// other ports.
    #[must_use]
    pub fn new(closed: Cell, default: Row, rows: Rows, functions: Vec<PortFn>) -> Self {
        Self { closed, default, rows, functions }
    }

    /// Starts to bring the row of a class into the cache.
    #[inline]
    pub fn prefetch(&self, class: ClassId) {
        if let Kept::Dense(first, rows) = &self.rows.0
            && let Some(row) = Rows::place(*first, rows, class)
        {
            prefetch(row);
        }
    }

    /// The verdict on a peer of class `class`.
    #[inline]
    #[must_use]
    pub fn evaluate(&self, class: ClassId, proto: u8, dport: u16) -> Verdict {
        let row = self.rows.get(class).unwrap_or(&self.default);
        match row.kind {
            ALL => row.cell.verdict(),
            FUNCTION => {
                let function = usize::try_from(row.cell.0).ok().and_then(|n| self.functions.get(n));
                function.map_or(UNKNOWN, |f| f.lookup(proto, dport).verdict())
            }
            kind => {
                let holds = kind == u16::from(proto) && (row.first..=row.last).contains(&dport);
                if holds { row.cell.verdict() } else { self.closed.verdict() }
            }
        }
    }

    /// Number of classes that have a row of their own, and of functions.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.rows.len(), self.functions.len())
    }

    /// Bytes of memory it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let functions = self.functions.iter().map(PortFn::bytes).sum::<usize>();
        size_of::<Self>() + self.rows.bytes() + functions
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::proto;
    use crate::tables::policy::{PortMap, RuleId};

    proptest! {
        /// A row of one range says what the function made of that range says.
        #[test]
        fn a_range_is_its_function(first: u16, more in 0u16..300, of in 0usize..3, probes in prop::collection::vec(any::<u16>(), 20)) {
            let last = first.saturating_add(more);
            let (closed, cell) = (Cell::deny(RuleId(9)), Cell::allow(RuleId(12)));
            let protos = [proto::TCP, proto::UDP, proto::SCTP];
            let mut function = PortFn::constant(closed);
            let mut changes = vec![(first, cell)];
            changes.extend(last.checked_add(1).map(|after| (after, closed)));
            let map = PortMap::new(closed, &changes);
            *[&mut function.tcp, &mut function.udp, &mut function.sctp][of] = map;
            let rows = [(ClassId(1), Row::ports(protos[of], first, last, cell)), (ClassId(2), Row::function(0)), (ClassId(3), Row::all(cell))];
            let matrix = Matrix::new(closed, Row::all(closed), rows.into_iter().collect(), vec![function]);
            let edges = [first, last, first.wrapping_sub(1), last.wrapping_add(1), 0, u16::MAX];
            for port in probes.into_iter().chain(edges) {
                for proto in protos.into_iter().chain([proto::ICMP]) {
                    let of = |class| matrix.evaluate(ClassId(class), proto, port);
                    prop_assert_eq!(of(1), of(2));
                    prop_assert_eq!((of(3), of(4)), (cell.verdict(), closed.verdict()));
                }
            }
        }
    }

    proptest! {
        /// Rows are a map, whether they lie together or far apart.
        #[test]
        fn rows_are_a_map(rows in prop::collection::vec((prop_oneof![0u32..40, any::<u32>()], 0u32..9), 0..30), far: u32) {
            for near in [true, false] {
                let some = rows.iter().filter(|(class, _)| !near || *class < 40);
                let given: Vec<_> = some.map(|(class, rule)| (ClassId(*class), Row::all(Cell::allow(RuleId(*rule))))).collect();
                let map: HashMap<ClassId, Row> = given.iter().copied().collect();
                let rows: Rows = given.iter().copied().collect();
                let probes = given.iter().map(|(class, _)| class.0).chain(0..50).chain([far, u32::MAX]);
                for class in probes.map(ClassId) {
                    prop_assert_eq!(rows.get(class), map.get(&class));
                }
                prop_assert_eq!(rows.len(), map.len());
            }
        }
    }

    #[test]
    fn a_function_that_is_not_there_denies() {
        let matrix = Matrix::new(Cell::deny(RuleId(9)), Row::function(7), Rows::default(), Vec::new());
        assert_eq!(matrix.evaluate(ClassId(1), proto::TCP, 80), UNKNOWN);
        assert_eq!(size_of::<(ClassId, Row)>(), 16);
    }
}
