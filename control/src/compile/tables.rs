//! The tables that outlive a snapshot: policy, services, source translation, rule counters.
//!
//! They are costly to make and seldom change, so they are kept, and made anew only from what changed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Ip, PortId};
use fastpath::snapshot::{PortRole, Snapshot, Snat};
use fastpath::tables::policy::GroupId;

use super::Port;
use super::policy::{self, Compiler, Counters, Scope};
use super::service::{ServiceTables, Services};
use super::snat::SnatTable;
use crate::model::{Model, ObjectName};

pub use super::snat::SnatSettings;

/// The group of a pod that the policies do not know: it is in no table, and what is in none is denied.
const UNKNOWN: GroupId = GroupId(u32::MAX);

/// The tables of one node.
#[derive(Debug)]
pub struct Tables {
    node: String,
    /// What the tables were made from.
    seen: Option<(Arc<Model>, Vec<Ip>)>,
    compiler: Compiler,
    policy: policy::Compiled,
    counters: Counters,
    services: ServiceTables,
    snat_table: SnatTable,
    snat: Arc<Snat>,
    /// See [`Snat::bound_udp`].
    bound_udp: Vec<u16>,
    /// The model before, with objects that are gone: letting go of them is work that no packet waits for.
    before: Option<Arc<Model>>,
}

impl Tables {
    /// Empty ones.
    #[must_use]
    pub fn new(node: &str, workers: usize, settings: SnatSettings) -> Self {
        Self {
            node: node.to_owned(),
            seen: None,
            compiler: Compiler::new(Scope::Node(node.to_owned())),
            policy: policy::Compiled::default(),
            counters: Counters::new(workers),
            services: ServiceTables::new(node),
            snat_table: SnatTable::new(settings),
            snat: Arc::default(),
            bound_udp: Vec::new(),
            before: None,
        }
    }

    /// Takes over which UDP ports sockets of the node are bound to, in order. Returns whether there is a new one.
    ///
    /// Only then anything changes, and flows are decided again: those with such a port get another. A port that was let go
    /// is left out until then: the others suffice, and a socket that comes and goes makes no work.
    pub fn set_bound_udp(&mut self, ports: &[u16]) -> bool {
        let (first, last) = self.snat_table.settings().ports;
        let ports: Vec<u16> = ports.iter().copied().filter(|p| (first..=last).contains(p)).collect();
        if ports.iter().all(|port| self.bound_udp.binary_search(port).is_ok()) {
            return false;
        }
        self.snat = Arc::new(Snat { bound_udp: ports.clone(), ..(*self.snat).clone() });
        self.bound_udp = ports;
        true
    }

    /// Fills in the tables of `snapshot`, whose ports and node addresses are there already, and whose generation is
    /// that of the last one published. Returns what could not be honoured, one line each.
    pub fn fill(
        &mut self,
        model: &Arc<Model>,
        ports: &BTreeMap<PortId, Port>,
        snapshot: &mut Snapshot,
    ) -> Vec<String> {
        let own = &snapshot.node.addresses;
        let current = self.seen.as_ref().is_some_and(|(m, o)| Arc::ptr_eq(m, model) && o == own);
        if !current {
            self.compiler.set_own_addresses(own.iter().map(|ip| IpAddr::from(*ip)).collect());
            self.policy = self.compiler.update(model);
            // What changes rules is published under the next generation.
            self.counters.follow(&self.policy.rules, snapshot.generation.wrapping_add(1));
            self.services.update(model, own);
            if self.snat_table.update(model, &self.node, own) {
                let bound_udp = self.bound_udp.clone();
                let snat = Snat { bound_udp, ..self.snat_table.table().clone() };
                // What looks the same is the same: snapshots compare it by address.
                if *self.snat != snat {
                    self.snat = Arc::new(snat);
                }
            }
            self.before = self.seen.replace((Arc::clone(model), own.clone())).map(|(before, _)| before);
        }
        snapshot.policy = self.policy.table.clone();
        snapshot.services = Arc::clone(self.services.table());
        snapshot.snat = Arc::clone(&self.snat);
        snapshot.rule_counters = self.counters.current();
        let mut problems = self.services.problems().to_vec();
        for (id, port) in ports.iter().filter(|(_, p)| p.role == PortRole::Pod) {
            let group = port.pod.as_ref().and_then(|pod| self.policy.endpoints.get(pod)).copied();
            if group.is_none() {
                let pod = port.pod.as_ref().map_or_else(|| "its pod".to_owned(), |p| format!("pod {p}"));
                problems.push(format!(
                    "{}: {pod} is not known to the policies: its connections are denied",
                    port.name
                ));
            }
            if let Some(Some(info)) = snapshot.ports.get_mut(usize::from(id.0)) {
                info.group = Some(group.unwrap_or(UNKNOWN));
            }
        }
        problems
    }

    /// Work that no packet waits for: forgets what has been out of use for a while.
    pub fn tidy(&mut self) {
        self.before = None;
        self.compiler.tidy();
        self.services.tidy();
    }

    /// Whether the policies know a pod of this node.
    #[must_use]
    pub fn knows(&self, pod: &ObjectName) -> bool {
        self.policy.endpoints.contains_key(pod)
    }

    /// What rules have counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Every frontend by name.
    #[must_use]
    pub fn services(&self) -> &Services {
        self.services.services()
    }
}

#[cfg(test)]
mod tests;
