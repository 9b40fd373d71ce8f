//! Which cores get a worker.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::{Core, Machine, Profile};

/// The cores for workers.
pub(super) struct Chosen {
    pub(super) cores: Vec<usize>,
    pub(super) isolated: bool,
    pub(super) reason: String,
}

impl Chosen {
    /// One thread of each physical core, near the uplink, the first core left to the system.
    pub(super) fn of(machine: &Machine, profile: Option<Profile>) -> Self {
        let nothing = |reason: &str| Self { cores: Vec::new(), isolated: false, reason: reason.to_owned() };
        let Some(first) = machine.cores.first() else {
            return nothing("Which cores there are could not be read: one worker on the last one.");
        };
        if machine.cores.len() == 1 {
            return nothing("There is one core, which the worker shares with everything else.");
        }
        let mut reason = Vec::new();
        let nodes: BTreeSet<usize> = machine.cores.iter().filter_map(|c| c.node).collect();
        let near =
            machine.uplinks.iter().find_map(|n| n.node).filter(|n| nodes.contains(n) && nodes.len() > 1);
        let near_enough = |c: &&Core| near.is_none() || c.node == near;
        let isolated = machine.cores.iter().any(|c| c.isolated && near_enough(&c));
        let eligible = machine.cores.iter().filter(near_enough).filter(|c| c.isolated || !isolated);
        // One of each physical core; the one with the system's first processor is the system's.
        let mut taken: BTreeSet<usize> = if isolated { BTreeSet::new() } else { first.siblings.clone() };
        let mut physical = Vec::new();
        for core in eligible {
            if !core.siblings.iter().any(|id| taken.contains(id)) {
                taken.extend(&core.siblings);
                physical.push(core);
            }
        }
        if physical.is_empty() {
            // The only physical core has two threads: better the second than the first.
            physical.extend(machine.cores.last());
        }
        // With the one left out.
        let all = physical.len() + usize::from(!isolated);
        let wanted = match profile {
            _ if isolated => physical.len(),
            None | Some(Profile::Dense) => (all / 4).clamp(1, 4),
            Some(Profile::Throughput) => (all / 2).clamp(1, 8),
            Some(Profile::Latency) => (all / 4).clamp(1, 2),
            Some(Profile::Small) => 1,
        };
        let queues = machine.uplinks.iter().map(|n| n.queues).max();
        // A second one has pods to serve also where the uplink has one queue.
        let most = queues.map_or(usize::MAX, |q| q.max(2));
        let count = wanted.min(most).min(physical.len()).max(1);
        let chosen = physical.split_at(physical.len() - count).1;
        reason.push(format!("{count} of {} cores.", machine.cores.len()));
        if isolated {
            reason.push("They are isolated from the scheduler.".to_owned());
        } else {
            reason.push(
                "The first is left to the system; isolate these (isolcpus=, or a cpuset) for steady latency."
                    .to_owned(),
            );
        }
        if let Some(node) = near {
            reason.push(format!("On NUMA node {node}, where the uplink is."));
        }
        if wanted > most {
            reason.push(format!("No more than the uplink has queues ({most})."));
        }
        let siblings: Vec<String> = chosen
            .iter()
            .flat_map(|c| c.siblings.iter().filter(|s| **s != c.id))
            .map(ToString::to_string)
            .collect();
        if !siblings.is_empty() {
            reason.push(format!(
                "Their siblings {} share the same physical cores: keep others off them.",
                siblings.join(" ")
            ));
        }
        if let Some(q) = queues.filter(|q| *q > count) {
            reason.push(format!(
                "The uplink has {q} queues, so a worker has several: `ethtool -L` can lower them to {count}."
            ));
        }
        Self { cores: chosen.iter().map(|c| c.id).collect(), isolated, reason: reason.join(" ") }
    }
}
