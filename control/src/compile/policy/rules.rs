//! What each rule id means, the same from one compilation to the next.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use fastpath::tables::policy::{Direction, RuleId};

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

/// Rule ids in force, and what each means.
#[derive(Clone, Debug, Default)]
pub struct RuleNames {
    infos: Vec<Option<Arc<RuleInfo>>>,
}

impl RuleNames {
    /// What an id means; `None` for one not in force and for those below [`RuleId::FIRST`], which
    /// `fastpath` names itself.
    #[must_use]
    pub fn get(&self, id: RuleId) -> Option<&Arc<RuleInfo>> {
        self.infos.get(usize::try_from(id.0).ok()?)?.as_ref()
    }

    /// Every id in force.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Arc<RuleInfo>)> {
        (0u32..).map(RuleId).zip(&self.infos).filter_map(|(id, info)| Some((id, info.as_ref()?)))
    }

    /// One more than the largest id ever given out: how many counters a worker needs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.infos.len()
    }

    /// Whether there is no id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }
}

/// Gives out rule ids. An id that is no longer in force rests for two compilations before it means something
/// else, so that no flow of the generation before counts on it.
#[derive(Debug, Default)]
pub(super) struct RuleIds {
    ids: HashMap<Decider, (RuleId, u64)>,
    resting: VecDeque<(u64, RuleId)>,
    names: RuleNames,
    round: u64,
}

const REST: u64 = 2;

impl RuleIds {
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    pub(super) fn id(&mut self, decider: Decider, origin: &Origin) -> RuleId {
        let round = self.round;
        let id = match self.ids.get_mut(&decider) {
            Some((id, used)) => {
                *used = round;
                *id
            }
            None => {
                let rested = self.resting.front().is_some_and(|(since, _)| since + REST <= round);
                let id = match self.resting.pop_front_if(|_| rested) {
                    Some((_, id)) => id,
                    None => {
                        let first = usize::try_from(RuleId::FIRST.0).unwrap_or(0);
                        let next = self.names.infos.len().max(first);
                        self.names.infos.resize(next + 1, None);
                        RuleId(u32::try_from(next).unwrap_or(RuleId::MAX.0))
                    }
                };
                self.ids.insert(decider.clone(), (id, round));
                id
            }
        };
        if let Some(place) = usize::try_from(id.0).ok().and_then(|i| self.names.infos.get_mut(i))
            && place.as_ref().is_none_or(|i| i.origin != *origin || i.decider != decider)
        {
            *place = Some(Arc::new(RuleInfo { decider, origin: origin.clone() }));
        }
        id
    }

    /// Retires the ids not asked for since [`RuleIds::begin`].
    pub(super) fn end(&mut self) -> RuleNames {
        let round = self.round;
        let mut retired: Vec<_> =
            self.ids.values().filter(|(_, used)| *used != round).map(|(id, _)| *id).collect();
        retired.sort_unstable();
        self.ids.retain(|_, (_, used)| *used == round);
        for id in retired {
            if let Some(place) = usize::try_from(id.0).ok().and_then(|i| self.names.infos.get_mut(i)) {
                *place = None;
            }
            self.resting.push_back((round, id));
        }
        self.names.clone()
    }
}
