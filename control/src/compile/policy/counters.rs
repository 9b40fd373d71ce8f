//! What rules have counted: packets, bytes and flows of each rule in force, over all workers.
#![forbid(unsafe_code)]

use std::sync::Arc;

use fastpath::stats::RuleCounters;
use fastpath::tables::policy::RuleId;
use hashbrown::HashMap;

use super::{Decider, RuleInfo, RuleNames};

/// Counters are made for so many rules at first.
const FIRST: usize = 256;
/// Rules beyond share the last counter: see [`RuleId::counter`].
const MOST: usize = 1 << 16;

/// Counts of one rule, or of an isolation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets of the flows it allowed, both directions; for an isolation the packets it denied.
    pub packets: u64,
    /// Their bytes, as IP packets.
    pub bytes: u64,
    /// Flows it allowed, or first packets it denied.
    pub flows: u64,
}

/// The counters that workers write, and what the control thread knows of them.
///
/// More rules get larger counters; those before are kept, so that nothing counted is lost. An id that comes to mean
/// another rule begins at zero.
#[derive(Debug)]
pub struct Counters {
    workers: usize,
    /// Newest last.
    tables: Vec<Arc<RuleCounters>>,
    known: HashMap<RuleId, Known>,
}

/// An id in force.
#[derive(Debug)]
struct Known {
    info: Arc<RuleInfo>,
    /// The totals it began at.
    from: [u64; 3],
    /// The first snapshot in which it means this.
    since: u32,
}

impl Counters {
    /// For so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let first = Arc::new(RuleCounters::new(workers, FIRST));
        Self { workers, tables: vec![first], known: HashMap::new() }
    }

    /// The counters for the next snapshot: the same until there are more rules than they are for.
    #[must_use]
    pub fn current(&self) -> Arc<RuleCounters> {
        self.tables.last().cloned().unwrap_or_default()
    }

    /// Takes over which rules are in force from the snapshot of `generation` on. To be told of every compilation: what
    /// is looked at is what changed since the one before.
    pub fn follow(&mut self, names: &RuleNames, generation: u32) {
        let size = names.len().next_power_of_two().clamp(FIRST, MOST);
        if self.current().rules() < size {
            self.tables.push(Arc::new(RuleCounters::new(self.workers, size)));
        }
        for id in names.changed() {
            let Some(info) = names.get(*id) else {
                self.known.remove(id);
                continue;
            };
            let same = self.known.get(id).filter(|known| known.info.decider == info.decider);
            let (from, since) =
                same.map_or_else(|| (self.total(*id), generation), |known| (known.from, known.since));
            self.known.insert(*id, Known { info: Arc::clone(info), from, since });
        }
    }

    /// What a rule in force has counted since it came; nothing for one that is not in force.
    #[must_use]
    pub fn count(&self, id: RuleId) -> Count {
        let Some(known) = self.known.get(&id) else { return Count::default() };
        let [packets, bytes, flows] = self.total(id);
        let [p, b, f] = known.from;
        Count { packets: packets.wrapping_sub(p), bytes: bytes.wrapping_sub(b), flows: flows.wrapping_sub(f) }
    }

    /// Every rule in force, by policy, and every isolation, and what each has counted.
    #[must_use]
    pub fn rows(&self) -> Vec<(Arc<RuleInfo>, Count)> {
        let mut rows: Vec<_> =
            self.known.iter().map(|(id, known)| (Arc::clone(&known.info), self.count(*id))).collect();
        rows.sort_by(|(a, _), (b, _)| order(&a.decider).cmp(&order(&b.decider)));
        rows
    }

    /// What decided on a flow of the snapshot of `generation` that has this index of the counters; `None` for an
    /// index that several rules share, and when it has come to mean something else since.
    #[must_use]
    pub fn decider(&self, counter: u16, generation: u32) -> Option<&Decider> {
        let known = self.known.get(&RuleId(u32::from(counter))).filter(|_| counter != u16::MAX)?;
        // Generations wrap.
        (generation.wrapping_sub(known.since) <= u32::MAX / 2).then_some(&known.info.decider)
    }

    fn total(&self, id: RuleId) -> [u64; 3] {
        let add = |[a, b, c]: [u64; 3], [x, y, z]: [u64; 3]| {
            [a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z)]
        };
        self.tables.iter().map(|t| t.total(id.counter())).fold([0; 3], add)
    }
}

/// Rules before isolations, each by its policies.
fn order(decider: &Decider) -> (bool, &Decider) {
    (matches!(decider, Decider::Isolated { .. }), decider)
}

#[cfg(test)]
mod tests {
    use fastpath::tables::policy::Direction;

    use super::super::rules::RuleIds;
    use super::*;
    use crate::model::{ObjectName, Origin};

    fn rule(index: usize) -> Decider {
        let policy = ObjectName { namespace: "n".into(), name: "p".into() };
        Decider::Rule { policy, direction: Direction::Ingress, index }
    }

    /// Compiles rules of these numbers; gives the id of each.
    fn compile(ids: &mut RuleIds, indices: impl IntoIterator<Item = usize>) -> (RuleNames, Vec<RuleId>) {
        ids.begin();
        ids.begin_isolations();
        let out = indices.into_iter().map(|i| ids.isolation(rule(i), &Origin::Api)).collect();
        ids.end_isolations();
        (ids.end(), out)
    }

    fn hit(counters: &Counters, worker: usize, id: RuleId, bytes: u64) {
        let table = counters.current();
        let counter = &table.of(worker)[usize::from(id.counter())];
        counter.packets.add(1);
        counter.bytes.add(bytes);
        counter.flows.add(1);
    }

    #[test]
    fn counts_are_the_sum_of_all_workers_and_of_all_tables() {
        let (mut ids, mut counters) = (RuleIds::default(), Counters::new(2));
        let (names, of) = compile(&mut ids, 0..2);
        counters.follow(&names, 7);
        let small = counters.current();
        hit(&counters, 0, of[0], 10);
        hit(&counters, 1, of[0], 20);
        hit(&counters, 1, of[1], 5);
        assert_eq!(counters.count(of[0]), Count { packets: 2, bytes: 30, flows: 2 });

        counters.follow(&names, 7);
        assert!(Arc::ptr_eq(&small, &counters.current()), "nothing changed: the same counters");
        let (names, more) = compile(&mut ids, 0..FIRST);
        counters.follow(&names, 7);
        assert!(counters.current().rules() >= names.len() && counters.current().rules() == 2 * FIRST);
        assert_eq!(more[..2], of[..]);
        hit(&counters, 0, of[0], 1);
        // A worker that has not seen the new snapshot yet.
        small.of(1)[usize::from(of[0].counter())].packets.add(1);
        assert_eq!(counters.count(of[0]), Count { packets: 4, bytes: 31, flows: 3 });
        assert_eq!(counters.count(of[1]), Count { packets: 1, bytes: 5, flows: 1 });
        assert_eq!(counters.rows().len(), FIRST);
    }

    #[test]
    fn an_id_with_another_meaning_begins_at_zero() {
        let (mut ids, mut counters) = (RuleIds::default(), Counters::new(1));
        let (names, of) = compile(&mut ids, [0]);
        counters.follow(&names, 7);
        hit(&counters, 0, of[0], 10);
        for _ in 0..3 {
            let (names, _) = compile(&mut ids, []);
            counters.follow(&names, 7);
        }
        assert_eq!(counters.count(of[0]), Count::default(), "not in force");
        let (names, again) = compile(&mut ids, [7]);
        counters.follow(&names, 10);
        assert_eq!(again, of, "the id is used again");
        assert_eq!(counters.count(of[0]), Count::default());
        hit(&counters, 0, of[0], 3);
        assert_eq!(counters.count(of[0]), Count { packets: 1, bytes: 3, flows: 1 });
        for (generation, decider) in [(9, None), (10, Some(&rule(7))), (11, Some(&rule(7))), (u32::MAX, None)]
        {
            assert_eq!(counters.decider(of[0].counter(), generation), decider, "{generation}");
        }
        assert_eq!(counters.decider(u16::MAX, 10), None);
    }

    #[test]
    fn rules_come_before_isolations() {
        let (mut ids, mut counters) = (RuleIds::default(), Counters::new(1));
        ids.begin();
        let isolated = Decider::Isolated { direction: Direction::Egress, policies: Vec::new() };
        ids.isolation(isolated.clone(), &Origin::Api);
        ids.give(rule(1), &Origin::Api);
        ids.give(rule(0), &Origin::Api);
        counters.follow(&ids.end(), 7);
        let order: Vec<_> = counters.rows().into_iter().map(|(info, _)| info.decider.clone()).collect();
        assert_eq!(order, [rule(0), rule(1), isolated]);
    }
}
