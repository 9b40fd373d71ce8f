//! Address block → peer class: a trie of 16 address bits a level, its nodes sorted intervals.
//!
//! The longest prefix has won already when the table is painted, so a lookup is one search in each node it passes (two
//! levels at most for IPv4), whatever the number of prefixes and of their lengths. Nodes are shared between copies of
//! the table: a change copies those on its way.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::ClassId;
use crate::packet::Ip;
use crate::tables::Prefix;

/// Address bits a level.
const STRIDE: u8 = 16;
/// A node with more intervals than this is searched by way of its guide.
const FEW: usize = 32;

/// Classes of address blocks, [`ClassId::OTHER`] where nothing was painted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTable {
    v4: Arc<Node>,
    v6: Arc<Node>,
}

impl Default for BlockTable {
    fn default() -> Self {
        let node = Arc::new(Node::uniform(ClassId::OTHER));
        Self { v4: Arc::clone(&node), v6: node }
    }
}

/// What an interval of a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// All of it is of one class.
    Class(ClassId),
    /// A single value of this level's bits, told apart by the next.
    Node(Arc<Node>),
}

/// Intervals of one level: each lasts to the start of the next. Neighbours are never of the same class.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    starts: Vec<u16>,
    targets: Vec<Target>,
    /// How many starts lie below each high byte, and all; empty while there are few.
    guide: Vec<u32>,
}

impl BlockTable {
    /// The class of an address.
    #[inline]
    #[must_use]
    pub fn lookup(&self, ip: Ip) -> ClassId {
        let (mut node, mut shift) = if ip.is_v4() { (&self.v4, 16) } else { (&self.v6, 112) };
        loop {
            match node.target(part(ip.bits(), shift)) {
                Some(Target::Node(next)) if shift >= u32::from(STRIDE) => {
                    node = next;
                    shift -= u32::from(STRIDE);
                }
                Some(Target::Class(class)) => return *class,
                _ => return ClassId::OTHER,
            }
        }
    }

    /// Gives every address of `prefix` a class, whatever it had. Blocks are painted shorter prefixes first.
    pub fn paint(&mut self, prefix: Prefix, class: ClassId) {
        let (root, shift) = if prefix.is_v4() { (&mut self.v4, 16) } else { (&mut self.v6, 112) };
        Arc::make_mut(root).paint(prefix.addr().bits(), prefix.len(), shift, class);
    }

    /// Bytes of memory it holds, shared ones too.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }
}

/// The 16 bits above `shift`.
#[inline]
fn part(bits: u128, shift: u32) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "the low 16 bits are what is asked for")]
    let part = (bits >> shift) as u16;
    part
}

impl Node {
    fn uniform(class: ClassId) -> Self {
        Self { starts: vec![0], targets: vec![Target::Class(class)], guide: Vec::new() }
    }

    /// Number of the interval that holds `key`.
    #[inline]
    fn find(&self, key: u16) -> usize {
        let high = usize::from(key >> 8);
        let bounds = match (self.guide.get(high), self.guide.get(high + 1)) {
            (Some(from), Some(to)) => (*from as usize, *to as usize),
            _ => (0, self.starts.len()),
        };
        let among = self.starts.get(bounds.0..bounds.1).unwrap_or_default();
        (bounds.0 + among.partition_point(|start| *start <= key)).saturating_sub(1)
    }

    #[inline]
    fn target(&self, key: u16) -> Option<&Target> {
        self.targets.get(self.find(key))
    }

    fn paint(&mut self, bits: u128, len: u8, shift: u32, class: ClassId) {
        let key = part(bits, shift);
        if len <= STRIDE {
            let last = key | u16::MAX.checked_shr(u32::from(len)).unwrap_or(0);
            return self.fill(key, last, Target::Class(class));
        }
        let next = shift.saturating_sub(u32::from(STRIDE));
        let at = self.find(key);
        let new = match self.targets.get_mut(at) {
            Some(Target::Class(had)) if *had == class => return,
            Some(Target::Class(had)) => {
                let mut child = Node::uniform(*had);
                child.paint(bits, len - STRIDE, next, class);
                Target::Node(Arc::new(child))
            }
            Some(Target::Node(child)) => {
                let child = Arc::make_mut(child);
                child.paint(bits, len - STRIDE, next, class);
                match &child.targets[..] {
                    [Target::Class(only)] => Target::Class(*only),
                    _ => return,
                }
            }
            None => return,
        };
        self.fill(key, key, new);
    }

    /// Makes one interval of `first` to `last`, and of its neighbours that are of the same class. Both ends are ends of
    /// the intervals below a [`Target::Node`], which is never split.
    fn fill(&mut self, first: u16, last: u16, target: Target) {
        let (mut from, to) = (self.find(first), self.find(last));
        let mut new: Vec<(u16, Target)> = Vec::with_capacity(3);
        if let (Some(start), Some(before)) = (self.starts.get(from), self.targets.get(from))
            && *start < first
        {
            new.push((*start, before.clone()));
        } else if let Some(left) = from.checked_sub(1)
            && self.targets.get(left).is_some_and(|t| is_same(t, &target))
            && let Some(start) = self.starts.get(left)
        {
            from = left;
            new.push((*start, target.clone()));
        }
        if new.last().is_none_or(|(_, left)| !is_same(left, &target)) {
            new.push((first, target.clone()));
        }
        let end = self.starts.get(to + 1).map_or(u16::MAX, |next| next - 1);
        let mut to = to + 1;
        if let (Some(after), Some(right)) = (last.checked_add(1), self.targets.get(to - 1))
            && end > last
        {
            if !is_same(right, &target) {
                new.push((after, right.clone()));
            }
        } else if self.targets.get(to).is_some_and(|right| is_same(right, &target)) {
            to += 1;
        }
        for start in self.starts.get(from..to).unwrap_or_default() {
            count(&mut self.guide, *start, u32::MAX);
        }
        for (start, _) in &new {
            count(&mut self.guide, *start, 1);
        }
        self.starts.splice(from..to, new.iter().map(|(start, _)| *start));
        self.targets.splice(from..to, new.into_iter().map(|(_, target)| target));
        if self.starts.len() <= FEW {
            self.guide = Vec::new();
        } else if self.guide.is_empty() {
            self.guide = vec![0; 257];
            for start in &self.starts {
                count(&mut self.guide, *start, 1);
            }
        }
    }

    fn bytes(&self) -> usize {
        let own = size_of::<Self>()
            + self.starts.capacity() * size_of::<u16>()
            + self.targets.capacity() * size_of::<Target>()
            + self.guide.capacity() * size_of::<u32>();
        let of_child = |t: &Target| match t {
            Target::Node(node) => node.bytes(),
            Target::Class(_) => 0,
        };
        own + self.targets.iter().map(of_child).sum::<usize>()
    }
}

fn is_same(a: &Target, b: &Target) -> bool {
    matches!((a, b), (Target::Class(a), Target::Class(b)) if a == b)
}

/// Adds (wrapping) to what the guide counts of a start.
fn count(guide: &mut [u32], start: u16, by: u32) {
    for below in guide.iter_mut().skip(usize::from(start >> 8) + 1) {
        *below = below.wrapping_add(by);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::tables::Lpm;

    fn prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (0u8..3, any::<u8>(), any::<u8>(), any::<u8>(), 0u8..=32)
            .prop_map(|(a, b, c, d, len)| (IpAddr::from([10 + a, b & 0x83, c, d]), len));
        let v6 = (0u16..3, 0u16..3, any::<u16>(), any::<u16>(), 0u8..=128)
            .prop_map(|(a, b, c, d, len)| (IpAddr::from([0xfd00 + a, b, 0, c & 3, 0, 0, d, a]), len));
        prop_oneof![v4, v6].prop_map(|(addr, len)| Prefix::new(addr, len).unwrap())
    }

    fn check(table: &BlockTable, lpm: &Lpm<ClassId>, probes: &[Prefix]) {
        let ends = lpm.iter().map(|(p, _)| p).chain(probes.iter().copied()).flat_map(|p| {
            let size =
                u128::MAX.checked_shr(u32::from(p.len()) + if p.is_v4() { 96 } else { 0 }).unwrap_or(0);
            let first = p.addr().bits();
            [first, first + size, first.wrapping_sub(1), first.wrapping_add(size).wrapping_add(1)]
        });
        for ip in ends.map(Ip::from_bits) {
            assert_eq!(table.lookup(ip), lpm.lookup(ip).copied().unwrap_or_default(), "{ip}");
        }
    }

    proptest! {
        /// Painted shorter prefixes first it is longest-prefix match; painted over with what a removed prefix was in, and
        /// what it held painted anew, it is the table without it, to the last interval.
        #[test]
        fn is_longest_prefix_match(
            mut prefixes in prop::collection::vec((prefix(), 1u32..5), 0..120),
            probes in prop::collection::vec(prefix(), 10),
            gone in any::<prop::sample::Index>(),
        ) {
            prefixes.sort_by_key(|(p, _)| p.len());
            let mut lpm = Lpm::default();
            let mut table = BlockTable::default();
            for (p, c) in &prefixes {
                lpm.insert(*p, ClassId(*c));
                table.paint(*p, ClassId(*c));
            }
            check(&table, &lpm, &probes);
            if prefixes.is_empty() {
                return Ok(());
            }
            let gone = prefixes[gone.index(prefixes.len())].0;
            let without: Lpm<ClassId> = lpm.iter().filter(|(p, _)| *p != gone).map(|(p, c)| (p, *c)).collect();
            let copy = table.clone();
            let shorter: Lpm<ClassId> =
                without.iter().filter(|(p, _)| p.len() < gone.len()).map(|(p, c)| (p, *c)).collect();
            table.paint(gone, shorter.lookup(gone.addr()).copied().unwrap_or_default());
            let mut inside: Vec<_> = without.iter().filter(|(p, _)| p.len() > gone.len() && gone.contains(p.addr())).collect();
            inside.sort_by_key(|(p, _)| p.len());
            inside.into_iter().for_each(|(p, c)| table.paint(p, *c));
            check(&table, &without, &probes);
            check(&copy, &lpm, &probes);
            let mut fresh = BlockTable::default();
            let mut all: Vec<_> = without.iter().collect();
            all.sort_by_key(|(p, _)| p.len());
            all.into_iter().for_each(|(p, c)| fresh.paint(p, *c));
            prop_assert_eq!(table, fresh);
        }
    }

    #[test]
    fn many_in_one_node() {
        let mut table = BlockTable::default();
        let p =
            |n: u16| Prefix::new(IpAddr::from([n.to_be_bytes()[0], n.to_be_bytes()[1], 0, 0]), 16).unwrap();
        (0..=u16::MAX).for_each(|n| table.paint(p(n), ClassId(1 + u32::from(n) % 7)));
        for n in 0..=u16::MAX {
            let [a, b] = n.to_be_bytes();
            assert_eq!(table.lookup(Ip::v4([a, b, 9, 9])), ClassId(1 + u32::from(n) % 7));
        }
        table.paint(Prefix::new(IpAddr::from([0, 0, 0, 0]), 0).unwrap(), ClassId::OTHER);
        assert_eq!(table, BlockTable::default());
    }
}
