//! The last compilation, used again while nothing that it looked at has changed.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Mac, PortId};

use super::routes::Outsiders;
use super::{Compiled, Inputs, Overlay, Port, compile_with};
use crate::model::{Model, ObjectName};
use crate::netdev::NetView;

/// [`compile`](super::compile) that keeps what it made: a change of policies, of endpoints or of other nodes' pods, which
/// are reached by their nodes' prefixes, costs a copy.
#[derive(Debug, Default)]
pub struct Kept {
    outsiders: Outsiders,
    seen: Model,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    node: String,
    net: Arc<NetView>,
    ports: BTreeMap<PortId, Port>,
    remembered: BTreeMap<(u32, IpAddr), Mac>,
    overlay: Overlay,
    /// The pods behind the ports.
    here: BTreeSet<ObjectName>,
    compiled: Compiled,
}

impl Kept {
    /// The same as [`compile`](super::compile) makes of `inputs`; `net` is what `inputs` has.
    pub fn compile(&mut self, inputs: &Inputs<'_>, net: &Arc<NetView>) -> Compiled {
        let before = std::mem::replace(&mut self.seen, inputs.model.clone());
        let outsiders = self.outsiders.update(&before, inputs.model);
        let last = self.last.take().filter(|last| !outsiders && last.holds(&before, inputs, net));
        let last = last.unwrap_or_else(|| Last {
            node: inputs.node.to_owned(),
            net: Arc::clone(net),
            ports: inputs.ports.clone(),
            remembered: inputs.remembered.clone(),
            overlay: inputs.overlay.clone(),
            here: inputs.ports.values().filter_map(|p| p.pod.clone()).collect(),
            compiled: compile_with(inputs, &self.outsiders),
        });
        let mut compiled = last.compiled.clone();
        compiled.snapshot.generation = inputs.generation;
        self.last = Some(last);
        compiled
    }
}

impl Last {
    /// Whether nothing has changed that the compilation looked at, but for pods outside their nodes' prefixes.
    fn holds(&self, before: &Model, inputs: &Inputs<'_>, net: &Arc<NetView>) -> bool {
        let model = inputs.model;
        Arc::ptr_eq(&self.net, net)
            && before.nodes.is_same(&model.nodes)
            && before.services.is_same(&model.services)
            && self.node == inputs.node
            && self.ports == *inputs.ports
            && self.remembered == *inputs.remembered
            && self.overlay == *inputs.overlay
            && !before.pods.diff(&model.pods).iter().any(|(name, ..)| self.here.contains(*name))
    }
}
