//! What each rule id means, the same from one compilation to the next.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use fastpath::tables::policy::{Direction, RuleId};
use hashbrown::HashMap;

use crate::model::{ObjectName, Origin};

/// What decides on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decider {
    /// A rule of a NetworkPolicy, which allows.
    Rule {
        /// The policy.
        policy: ObjectName,
        /// Of its ingress or egress rules.
        direction: Direction,
        /// Which, from 0.
        index: usize,
    },
    /// Policies isolate the endpoint and no rule of theirs allows.
    Isolated {
        /// In this direction.
        direction: Direction,
        /// All policies that isolate it, by name.
        policies: Vec<ObjectName>,
    },
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decider::Rule { policy, direction, index } => write!(f, "{policy} {direction} rule {index}"),
            Decider::Isolated { direction, policies } => {
                write!(f, "isolated: no policy allows ({direction}: ")?;
                for (i, p) in policies.iter().enumerate() {
                    write!(f, "{}{p}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(")")
            }
        }
    }
}

/// What one rule id means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// What decides.
    pub decider: Decider,
    /// Where the rule was read, or the first of the isolating policies.
    pub origin: Origin,
}

/// Ids of one chunk of [`RuleNames`].
const CHUNK: usize = 256;

type Infos = Vec<Option<Arc<RuleInfo>>>;

/// Rule ids in force, and what each means. A copy shares what neither changes after.
#[derive(Clone, Debug, Default)]
pub struct RuleNames {
    chunks: Vec<Arc<Infos>>,
    len: usize,
    changed: Arc<[RuleId]>,
}

impl RuleNames {
    /// What an id means; `None` for one not in force and for those below [`RuleId::FIRST`], which
    /// `fastpath` names itself.
    #[must_use]
    pub fn get(&self, id: RuleId) -> Option<&Arc<RuleInfo>> {
        let at = usize::try_from(id.0).ok()?;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)?.as_ref()
    }

    /// Every id in force.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Arc<RuleInfo>)> {
        let infos = self.chunks.iter().flat_map(|c| c.iter());
        (0u32..).map(RuleId).zip(infos).filter_map(|(id, info)| Some((id, info.as_ref()?)))
    }

    /// The ids that mean something else than at the compilation before, or stand elsewhere.
    #[must_use]
    pub fn changed(&self) -> &[RuleId] {
        &self.changed
    }

    /// One more than the largest id ever given out: how many counters a worker needs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn set(&mut self, id: RuleId, info: Option<Arc<RuleInfo>>) {
        let Ok(at) = usize::try_from(id.0) else { return };
        while self.chunks.len() <= at / CHUNK {
            self.chunks.push(Arc::new(vec![None; CHUNK]));
        }
        self.len = self.len.max(at + 1);
        if let Some(place) =
            self.chunks.get_mut(at / CHUNK).and_then(|c| Arc::make_mut(c).get_mut(at % CHUNK))
        {
            *place = info;
        }
    }
}

/// Gives out rule ids. An id that is no longer in force rests for two compilations before it means something
/// else, so that no flow of the generation before counts on it.
#[derive(Debug, Default)]
pub(super) struct RuleIds {
    isolations: HashMap<Decider, (RuleId, u64)>,
    resting: VecDeque<(u64, RuleId)>,
    retired: Vec<RuleId>,
    changed: Vec<RuleId>,
    names: RuleNames,
    round: u64,
}

const REST: u64 = 2;

impl RuleIds {
    /// Begins a compilation.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// An id for a rule that comes into force.
    pub(super) fn give(&mut self, decider: Decider, origin: &Origin) -> RuleId {
        let rested = self.resting.front().is_some_and(|(since, _)| since + REST <= self.round);
        let id = match self.resting.pop_front_if(|_| rested) {
            Some((_, id)) => id,
            None => {
                let first = usize::try_from(RuleId::FIRST.0).unwrap_or(0);
                let next = self.names.len.max(first);
                self.names.len = next + 1;
                RuleId(u32::try_from(next).unwrap_or(RuleId::MAX.0))
            }
        };
        self.names.set(id, Some(Arc::new(RuleInfo { decider, origin: origin.clone() })));
        self.changed.push(id);
        id
    }

    /// A rule in force may stand elsewhere now.
    pub(super) fn keep(&mut self, id: RuleId, origin: &Origin) {
        if let Some(known) = self.names.get(id).filter(|info| info.origin != *origin) {
            let info = RuleInfo { decider: known.decider.clone(), origin: origin.clone() };
            self.names.set(id, Some(Arc::new(info)));
            self.changed.push(id);
        }
    }

    /// A rule is no longer in force.
    pub(super) fn retire(&mut self, id: RuleId) {
        self.names.set(id, None);
        self.changed.push(id);
        self.retired.push(id);
    }

    /// Begins to ask for all isolations.
    pub(super) fn begin_isolations(&mut self) {
        self.isolations.values_mut().for_each(|(_, used)| *used = 0);
    }

    /// The id of an isolation.
    pub(super) fn isolation(&mut self, decider: Decider, origin: &Origin) -> RuleId {
        let round = self.round;
        if let Some((id, used)) = self.isolations.get_mut(&decider) {
            *used = round;
            let id = *id;
            self.keep(id, origin);
            return id;
        }
        let id = self.give(decider.clone(), origin);
        self.isolations.insert(decider, (id, round));
        id
    }

    /// Retires the isolations not asked for since [`RuleIds::begin_isolations`].
    pub(super) fn end_isolations(&mut self) {
        let dead: Vec<RuleId> =
            self.isolations.values().filter(|(_, used)| *used == 0).map(|(id, _)| *id).collect();
        self.isolations.retain(|_, (_, used)| *used != 0);
        dead.into_iter().for_each(|id| self.retire(id));
    }

    /// What is in force after this compilation.
    pub(super) fn end(&mut self) -> RuleNames {
        self.retired.sort_unstable();
        self.resting.extend(self.retired.drain(..).map(|id| (self.round, id)));
        self.changed.sort_unstable();
        self.changed.dedup();
        self.names.changed = std::mem::take(&mut self.changed).into();
        self.names.clone()
    }
}
