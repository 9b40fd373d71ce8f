//! The host port: what of the node's own traffic goes through the dataplane.
//!
//! Pods, cluster addresses and `services.cidrs` are routed into the pair whole; external and load balancer addresses, and
//! this node's own, by the ports that are a service's there. Nothing is routed that would take an address of a node,
//! or of a machine on the link of a device, away from the kernel.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fastpath::packet::Ip;
use fastpath::snapshot::{PortRole, Snapshot};
use ipnet::IpNet;

use super::Daemon;
use crate::attach::max_mtu;
use crate::compile::service::{FrontendKind, Services, kept_ports};
use crate::compile::tunnel_overhead;
use crate::config::{Config, Encap};
use crate::model::Model;
use crate::netdev::{HostPair, HostPlan, NetView};

/// Makes the pair as the configuration says, or removes what an earlier run left of it; and what went wrong.
pub(super) fn open(config: &Config) -> (Option<HostPair>, Vec<String>) {
    let name = &config.host.interface;
    if !config.host.enabled {
        let left = HostPair::remove_leftovers(name);
        return (None, left.iter().map(|e| format!("{name}: {e}")).collect());
    }
    // A worker each, as for the default of one core.
    let queues = u32::try_from(config.workers.cores.len().max(1)).unwrap_or(1);
    match HostPair::open(name, queues) {
        Ok(pair) => (Some(pair), Vec::new()),
        Err(e) => {
            let problem =
                format!("no host port: {e}; pods and the node's own processes do not reach each other");
            tracing::warn!("{problem}");
            // Rules that lead nowhere help nobody.
            let left = HostPair::remove_leftovers(name);
            let left = left.iter().map(|e| format!("{name}: {e}"));
            (None, [problem].into_iter().chain(left).collect())
        }
    }
}

impl Daemon {
    /// Sees to it that the node's own addresses are reached, whatever somebody did to the routing rules.
    pub(super) fn keep_local(&mut self) {
        for e in self.host.as_mut().map(HostPair::keep_local).unwrap_or_default() {
            tracing::warn!("{e}");
        }
    }

    /// Brings the pair, its routes and its rules in line with what is published; what cannot be had goes to
    /// `kernel_problems`.
    pub(super) fn sync_host(&mut self) {
        let Some(pair) = &mut self.host else { return };
        let uplinks = self.attacher.attached().filter(|a| a.port.role == PortRole::Uplink);
        let mtu = uplinks.filter_map(|a| self.net.links.get(&a.port.ifindex)).map(|l| l.mtu).min();
        let inputs = Inputs {
            config: &self.config,
            node: &self.node,
            model: &self.update.model,
            net: &self.net,
            snapshot: &self.snapshot,
            services: self.tables.services(),
            pair: [pair.name(), pair.ours()],
            mtu: mtu.map(|mtu| mtu.min(max_mtu(self.config.memory.frame_size))),
        };
        let (plan, problems) = plan(&inputs);
        self.kernel_problems.extend(problems);
        self.kernel_problems.extend(pair.sync(&plan, &self.net).iter().map(ToString::to_string));
    }
}

/// What a plan is made from.
struct Inputs<'a> {
    config: &'a Config,
    node: &'a str,
    model: &'a Model,
    net: &'a NetView,
    snapshot: &'a Snapshot,
    services: &'a Services,
    /// Names of the pair's ends.
    pair: [&'a str; 2],
    /// Least MTU of the uplinks.
    mtu: Option<u32>,
}

/// What the pair is to lead to, and what it cannot, one line each.
fn plan(inputs: &Inputs<'_>) -> (HostPlan, Vec<String>) {
    let Inputs { config, model, net, snapshot, services, .. } = inputs;
    let Some(this) = model.nodes.get(inputs.node) else { return (HostPlan::default(), Vec::new()) };
    let mut problems = Vec::new();
    let here: BTreeSet<IpAddr> = net.addresses.iter().map(|a| a.net.addr()).collect();
    let sources = [true, false].into_iter().filter_map(|v4| {
        let own = this.addresses.iter().copied().find(|a| a.is_ipv4() == v4)?;
        if !here.contains(&own) {
            problems.push(format!(
                "host port: InternalIP {own} of this node is on none of its devices: its own processes reach no pods \
                 and services by that family"
            ));
        }
        here.contains(&own).then_some(own)
    });
    let sources: Vec<IpAddr> = sources.collect();
    let (nets, taken) = nets(inputs);
    problems.extend(taken);
    let overhead = match config.overlay.encap {
        Encap::None => 0,
        Encap::Vxlan | Encap::CrossSubnet => {
            tunnel_overhead(config.overlay.family == crate::config::Family::Ipv6)
        }
    };
    let mut plan = HostPlan {
        mtu: inputs.mtu,
        path_mtu: inputs.mtu.map(|mtu| mtu.saturating_sub(u32::from(overhead))),
        sources,
        nets,
        ..HostPlan::default()
    };
    if config.host.node_ports {
        shared(services, snapshot, net, &mut plan);
        plan.kept = kept_ports().collect();
    }
    (plan, problems)
}

/// Prefixes that are routed whole, and why others are not.
fn nets(inputs: &Inputs<'_>) -> (BTreeSet<IpNet>, Vec<String>) {
    let Inputs { model, services, config, .. } = inputs;
    let cidrs: Vec<IpNet> = model.nodes.values().flat_map(|n| n.pod_cidrs.iter().copied()).collect();
    let known = || cidrs.iter().chain(&config.services.cidrs);
    let is_held = |a: IpAddr| known().any(|c| c.contains(&a));
    let pods = model.pods.values().filter(|p| !p.host_network && !p.finished);
    let pods = pods.flat_map(|p| p.addresses.iter().copied()).filter(|a| !is_held(*a));
    let cluster = services.frontends.iter().filter(|(_, f)| f.kind == FrontendKind::ClusterIp);
    let cluster = cluster.map(|((address, ..), _)| *address).filter(|a| !is_held(*a));
    let all: BTreeSet<IpNet> =
        known().map(IpNet::trunc).chain(pods.chain(cluster).map(IpNet::from)).collect();
    let guard = Guard::new(inputs);
    let (mut out, mut problems) = (BTreeSet::new(), Vec::new());
    for net in all {
        match guard.objection(net) {
            None => drop(out.insert(net)),
            Some(why) => problems.push(format!("host port: {net} is not routed to it: {why}")),
        }
    }
    (out, problems)
}

/// What must stay the kernel's.
struct Guard<'a> {
    nodes: BTreeMap<IpAddr, &'a str>,
    /// Networks on the links of devices, by device.
    links: Vec<(IpNet, &'a str)>,
    gateways: BTreeSet<IpAddr>,
}

impl<'a> Guard<'a> {
    fn new(inputs: &Inputs<'a>) -> Self {
        let Inputs { model, net, snapshot, node, pair, .. } = inputs;
        let own = snapshot.node.addresses.iter().map(|ip| (IpAddr::from(*ip), *node));
        let nodes = model.nodes.values().flat_map(|n| n.addresses.iter().map(|a| (*a, n.name.as_str())));
        let on_link = net.addresses.iter().filter_map(|a| {
            let link = net.links.get(&a.link).filter(|l| !pair.contains(&l.name.as_str()))?;
            let host = a.net.prefix_len() == a.net.max_prefix_len();
            (!host && !a.net.addr().is_loopback()).then(|| (a.net.trunc(), link.name.as_str()))
        });
        let gateways = net.routes.iter().flat_map(|r| &r.hops).filter_map(|h| h.gateway);
        Self { nodes: nodes.chain(own).collect(), links: on_link.collect(), gateways: gateways.collect() }
    }

    /// Why a prefix must not be routed to the pair.
    fn objection(&self, net: IpNet) -> Option<String> {
        if let Some((address, node)) = self.nodes.iter().find(|(a, _)| net.contains(*a)) {
            return Some(format!("{address} in it is an address of node {node}"));
        }
        let single = net.prefix_len() == net.max_prefix_len();
        // A pod may have an address of the node's own network, which then is its alone.
        if single {
            return self.gateways.contains(&net.addr()).then(|| "it is the gateway of a route".to_owned());
        }
        let (link, device) = self.links.iter().find(|(l, _)| l.contains(&net) || net.contains(l))?;
        Some(format!("it overlaps {link}, which is on the link of {device}"))
    }
}

/// Addresses of which only some ports are a service's, and those ports.
fn shared(services: &Services, snapshot: &Snapshot, net: &NetView, plan: &mut HostPlan) {
    let gateways: BTreeSet<IpAddr> =
        net.routes.iter().flat_map(|r| &r.hops).filter_map(|h| h.gateway).collect();
    let compiled = &snapshot.services;
    for ((address, proto, port), frontend) in &services.frontends {
        let ip = Ip::from(*address);
        let in_force = compiled.frontends.contains_key(&(ip, *proto, *port));
        // Another node's host ports are reached there, as any server on it is.
        let other_node = compiled.nodes.contains(&ip) && !snapshot.is_own(ip);
        let whole = frontend.kind == FrontendKind::ClusterIp && !snapshot.is_own(ip);
        if in_force && !other_node && !whole && !gateways.contains(address) {
            plan.shared.insert(*address, snapshot.is_own(ip));
            plan.ports.insert((address.is_ipv4(), *proto, *port));
        }
    }
    plan.ports.extend(services.node_ports.keys());
    let has = |v4: bool| plan.ports.iter().any(|(family, ..)| *family == v4);
    let own = snapshot.node.addresses.iter().map(|ip| IpAddr::from(*ip)).filter(|a| has(a.is_ipv4()));
    plan.shared.extend(own.map(|a| (a, true)).collect::<Vec<_>>());
}

#[cfg(test)]
mod tests;
