//! `compile`: model, kernel network state and ports in, one immutable [`Snapshot`] out. Pure and deterministic.
#![forbid(unsafe_code)]

mod kept;
pub mod policy;
mod routes;
pub mod service;
mod snat;
pub mod tables;

pub use kept::Kept;
pub use routes::tunnel_overhead;

use core::num::NonZeroU32;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Ip, Mac, PortId};
use fastpath::snapshot::{NodeInfo, PortInfo, PortRole, Settings, Snapshot};

use crate::config::Encap;
use crate::model::{Model, Node, ObjectName};
use crate::netdev::NetView;
use routes::Outsiders;

/// The settings that shape a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// How other nodes are reached.
    pub encap: Encap,
    /// Outer headers are IPv6.
    pub outer_v6: bool,
    /// What workers follow as is.
    pub settings: Settings,
}

/// A port that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its id.
    pub id: PortId,
    /// Kernel index of its device.
    pub ifindex: u32,
    /// Device name.
    pub name: Arc<str>,
    /// Role.
    pub role: PortRole,
    /// The pod behind it, for role `Pod`.
    pub pod: Option<ObjectName>,
    /// The device's MAC address.
    pub mac: Mac,
    /// MAC address of the other end, if known.
    pub peer_mac: Option<Mac>,
    /// MTU towards it.
    pub mtu: u16,
    /// Worker number by queue.
    pub queues: Vec<u16>,
    /// Whether frames may be redirected to the device.
    pub redirect: bool,
}

/// Everything a snapshot is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Name of this node.
    pub node: &'a str,
    /// What the source knows.
    pub model: &'a Model,
    /// What the kernel knows.
    pub net: &'a NetView,
    /// Attached ports by id.
    pub ports: &'a BTreeMap<PortId, Port>,
    /// Ethernet addresses of neighbours whose entry the kernel dropped, by device index and address.
    pub remembered: &'a BTreeMap<(u32, IpAddr), Mac>,
    /// Overlay settings.
    pub overlay: &'a Overlay,
    /// Generation to give the snapshot.
    pub generation: u32,
}

/// A snapshot and what the control thread learnt by making it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For the workers.
    pub snapshot: Snapshot,
    /// Neighbours the kernel is to resolve: device index and address.
    pub neighbors: Vec<(u32, IpAddr)>,
    /// What could not be honoured, one line each, for `status`.
    pub problems: Vec<String>,
}

/// Makes the snapshot.
#[must_use]
pub fn compile(inputs: &Inputs<'_>) -> Compiled {
    let mut outsiders = Outsiders::default();
    outsiders.update(&Model::default(), inputs.model);
    compile_with(inputs, &outsiders)
}

fn compile_with(inputs: &Inputs<'_>, outsiders: &Outsiders) -> Compiled {
    let mut problems = Vec::new();
    let this = inputs.model.nodes.get(inputs.node);
    if this.is_none() {
        problems.push(format!(
            "node {}: no Node object of this name; add its manifest or set node.name",
            inputs.node
        ));
    }
    let mut snapshot = Snapshot {
        generation: inputs.generation,
        node: node_info(this.map(AsRef::as_ref), inputs),
        settings: inputs.overlay.settings.clone(),
        ..Snapshot::default()
    };
    ports(inputs, &mut snapshot, &mut problems);
    let neighbors = routes::fill(inputs, this.map(AsRef::as_ref), outsiders, &mut snapshot, &mut problems);
    Compiled { snapshot, neighbors, problems }
}

fn node_info(this: Option<&Node>, inputs: &Inputs<'_>) -> NodeInfo {
    let addresses = this.map(|n| n.addresses.as_slice()).unwrap_or_default();
    let first = |v4: bool| addresses.iter().find(|a| a.is_ipv4() == v4).copied().map(Ip::from);
    let mut all: Vec<Ip> = addresses.iter().copied().map(Ip::from).collect();
    // kube-proxy's IPVS mode leaves every service's address on a device of the node: they are not the node's for that.
    let services = inputs.model.services.values().flat_map(|s| &s.cluster_ips);
    let services: HashSet<IpAddr> = services.copied().collect();
    let kernels = inputs.net.node_addresses().into_iter().filter(|a| !services.contains(a));
    all.extend(kernels.map(Ip::from));
    all.sort_unstable();
    all.dedup();
    let vtep = this.and_then(|n| own_vtep(n, inputs.overlay.outer_v6, &all)).map(Ip::from);
    let tunnels = inputs.overlay.encap != Encap::None;
    NodeInfo {
        icmp_v4: first(true),
        icmp_v6: first(false),
        addresses: all,
        vteps: vtep.filter(|_| tunnels).into_iter().collect(),
    }
}

/// Where tunnel packets to a node are sent.
fn vtep(node: &Node, v6: bool) -> Option<IpAddr> {
    let named = if v6 { node.vtep_v6 } else { node.vtep_v4 };
    named.or_else(|| node.addresses.iter().find(|a| a.is_ipv6() == v6).copied())
}

/// The same of this node: what others send to may be translated on its way, and then it is no address of ours.
fn own_vtep(node: &Node, v6: bool, own: &[Ip]) -> Option<IpAddr> {
    let internal = || node.addresses.iter().find(|a| a.is_ipv6() == v6).copied();
    vtep(node, v6).filter(|a| own.contains(&Ip::from(*a))).or_else(internal)
}

/// Ports, and the addresses of the pods behind them.
fn ports(inputs: &Inputs<'_>, snapshot: &mut Snapshot, problems: &mut Vec<String>) {
    for (id, port) in inputs.ports {
        let pod = port.pod.as_ref().and_then(|name| inputs.model.pods.get(name));
        let addrs: Vec<Ip> =
            pod.map(|p| p.addresses.iter().copied().map(Ip::from).collect()).unwrap_or_default();
        for addr in &addrs {
            if let Some(other) = snapshot.local.get(addr).copied() {
                problems.push(format!("{}: address {addr} is already that of port {other}", port.name));
            } else {
                snapshot.local.insert(*addr, *id);
            }
        }
        let at = usize::from(id.0);
        if snapshot.ports.len() <= at {
            snapshot.ports.resize(at + 1, None);
        }
        if let Some(slot) = snapshot.ports.get_mut(at) {
            *slot = Some(PortInfo {
                name: Arc::clone(&port.name),
                role: port.role,
                mac: port.mac,
                peer_mac: port.peer_mac,
                mtu: port.mtu,
                addrs,
                group: None,
                queues: port.queues.clone(),
                redirect: NonZeroU32::new(port.ifindex).filter(|_| port.redirect),
            });
        }
    }
}

/// The MAC address of a VTEP that no annotation names: locally administered, from its address.
#[must_use]
pub fn vtep_mac(addr: IpAddr) -> Mac {
    match addr {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            Mac([0x02, 0xfb, a, b, c, d])
        }
        IpAddr::V6(a) => {
            // FNV-1a over the address: the same on every node.
            let hash = a
                .octets()
                .iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
            let [.., a, b, c, d] = hash.to_be_bytes();
            Mac([0x02, 0xf6, a, b, c, d])
        }
    }
}

#[cfg(test)]
mod tests;
