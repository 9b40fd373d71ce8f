//! The routing half of `compile`: other nodes' pods, this node, and what the kernel's routes say of the rest.
//!
//! Pod CIDRs are the model's: inside them a route of the kernel counts only where pods go unencapsulated, by an uplink. Elsewhere
//! the kernel's choice holds: what it sends by a device that is no uplink is the host's to forward, what it
//! refuses has no route here either.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Ip, Mac, NO_INDEX, PortId};
use fastpath::snapshot::{NextHop, PortRole, Route, Snapshot, Tunnel};
use fastpath::tables::Prefix;
use ipnet::IpNet;

use super::{Inputs, Port, vtep, vtep_mac};
use crate::config::Encap;
use crate::model::{Model, Node, ObjectName, Pod};
use crate::netdev::route::Lookup;

/// Bytes that VXLAN puts in front of an inner IP packet, without the outer Ethernet header.
const OVERHEAD_V4: u16 = 20 + 8 + 8 + 14;
const OVERHEAD_V6: u16 = 40 + 8 + 8 + 14;
/// Bytes that a tunnel puts in front of a packet.
#[must_use]
pub fn tunnel_overhead(outer_v6: bool) -> u16 {
    if outer_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 }
}

/// No such tunnel: packets are answered by "no route" and leave by no shorter prefix.
const NO_ROUTE: Route = Route::Tunnel(NO_INDEX);

/// Fills routes, tunnels and next hops; returns the neighbours the kernel is to resolve.
pub(super) fn fill(
    inputs: &Inputs<'_>,
    this: Option<&Node>,
    outsiders: &Outsiders,
    snapshot: &mut Snapshot,
    problems: &mut Vec<String>,
) -> Vec<(u32, IpAddr)> {
    let uplinks = inputs.ports.values().filter(|p| p.role == PortRole::Uplink);
    let mut hops = Hops {
        inputs,
        uplinks: uplinks.map(|p| (p.ifindex, p)).collect(),
        known: BTreeMap::new(),
        list: Vec::new(),
        wanted: BTreeSet::new(),
    };

    kernel_routes(&mut hops, snapshot);
    let mut owners = Owners::default();
    if let Some(this) = this {
        for cidr in &this.pod_cidrs {
            owners.claim(*cidr, &this.name, problems);
            add(snapshot, *cidr, Route::NoEndpoint);
        }
    }
    for node in inputs.model.nodes.values().filter(|n| n.name != inputs.node) {
        remote_node(&mut hops, (this, outsiders), node, &mut owners, snapshot, problems);
    }
    for addr in snapshot.node.addresses.clone() {
        snapshot.routes.insert(Prefix::host(addr), Route::Host);
    }
    snapshot.next_hops = hops.list;
    hops.wanted.into_iter().collect()
}

fn add(snapshot: &mut Snapshot, net: IpNet, route: Route) {
    if let Some(prefix) = Prefix::new(net.addr(), net.prefix_len()) {
        snapshot.routes.insert(prefix, route);
    }
}

/// Next hops by (device, address), each once.
struct Hops<'a> {
    inputs: &'a Inputs<'a>,
    uplinks: BTreeMap<u32, &'a Port>,
    known: BTreeMap<(u32, Option<IpAddr>), u16>,
    list: Vec<NextHop>,
    wanted: BTreeSet<(u32, IpAddr)>,
}

impl Hops<'_> {
    /// The next hop by `oif` to `addr` (`None`: whoever has the destination address); `None` if `oif` is no uplink.
    fn get(&mut self, oif: u32, addr: Option<IpAddr>) -> Option<u16> {
        let port = *self.uplinks.get(&oif)?;
        if let Some(index) = self.known.get(&(oif, addr)) {
            return Some(*index);
        }
        let index = u16::try_from(self.list.len()).ok().filter(|i| *i != NO_INDEX)?;
        self.known.insert((oif, addr), index);
        if let Some(addr) = addr {
            self.wanted.insert((oif, addr));
        }
        self.list.push(NextHop {
            addr: addr.map(Ip::from),
            port: port.id,
            src_mac: port.mac,
            dst_mac: addr.and_then(|a| self.mac(oif, a)),
        });
        Some(index)
    }

    /// The next hop towards `dst` by the kernel's routes; `None` when it is not by an uplink.
    fn towards(&mut self, dst: IpAddr) -> Option<u16> {
        let (link, addr) = self.inputs.net.route_to(dst)?.neighbor(dst);
        self.get(link, Some(addr))
    }

    /// Where the neighbour is, as the kernel says, or said until its entry was dropped.
    fn mac(&self, oif: u32, addr: IpAddr) -> Option<Mac> {
        let remembered = || self.inputs.remembered.get(&(oif, addr)).copied();
        self.inputs.net.mac_of(oif, addr).or_else(remembered)
    }

    fn port(&self, hop: u16) -> Option<&Port> {
        let id: PortId = self.list.get(usize::from(hop))?.port;
        self.inputs.ports.get(&id)
    }
}

/// Which node's pods have a prefix or an address: the first that says so.
#[derive(Debug, Default)]
struct Owners<'a>(BTreeMap<IpNet, &'a str>);

impl<'a> Owners<'a> {
    /// Whether `net` is `node`'s; when it is another's, that is a problem.
    fn claim(&mut self, net: IpNet, node: &'a str, problems: &mut Vec<String>) -> bool {
        let owner = *self.0.entry(net.trunc()).or_insert(node);
        if owner != node {
            problems.push(format!("node {node}: {net} is already that of node {owner}"));
        }
        owner == node
    }
}

/// What the kernel's routes say, and the neighbours it knows on the uplinks' links.
fn kernel_routes(hops: &mut Hops<'_>, snapshot: &mut Snapshot) {
    let (net, overlay) = (hops.inputs.net, hops.inputs.overlay);
    let cidrs: Vec<IpNet> = hops.inputs.model.nodes.values().flat_map(|n| n.pod_cidrs.clone()).collect();
    let is_pods = |net: IpNet| cidrs.iter().any(|c| c.contains(&net));
    let is_hidden = |net: IpNet| overlay.encap == Encap::Vxlan && is_pods(net);
    for (dst, choice) in net.choices() {
        if is_hidden(dst) || is_link_local(dst) {
            continue;
        }
        let pods = is_pods(dst);
        match choice {
            Lookup::Forward(way) => match hops.get(way.link, way.gateway) {
                Some(index) => add(snapshot, dst, Route::NextHop(index)),
                None if pods => {}
                None => add(snapshot, dst, Route::Host),
            },
            Lookup::Refused(_) if !pods => add(snapshot, dst, NO_ROUTE),
            Lookup::Refused(_) | Lookup::Local | Lookup::Nothing => {}
        }
    }
    for ((link, addr), _) in net.neighbors.iter().filter(|(_, n)| n.usable_mac().is_some()) {
        let on_link = net.route_to(*addr).is_some_and(|r| r.link == *link && r.gateway.is_none());
        if on_link
            && !is_hidden((*addr).into())
            && let Some(hop) = hops.get(*link, Some(*addr))
        {
            snapshot.routes.insert(Prefix::host((*addr).into()), Route::NextHop(hop));
        }
    }
}

/// IPv6 link-local: every device has a route for it, and nobody forwards there.
fn is_link_local(net: IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}

/// Another node: its tunnel, its pod CIDRs, and its pods outside them.
fn remote_node<'a>(
    hops: &mut Hops<'_>,
    (this, outsiders): (Option<&Node>, &Outsiders),
    node: &'a Node,
    owners: &mut Owners<'a>,
    snapshot: &mut Snapshot,
    problems: &mut Vec<String>,
) {
    let encap = hops.inputs.overlay.encap;
    let tunnel =
        (encap != Encap::None).then(|| match make_tunnel(hops, this, snapshot.node.vteps.first(), node) {
            Ok(made) => add_tunnel(made, snapshot, problems),
            Err(why) => {
                problems.push(format!("node {}: {why}", node.name));
                NO_ROUTE
            }
        });
    let addresses = outsiders.of(&node.name).flat_map(|p| p.addresses.iter().copied().map(IpNet::from));
    let nets: Vec<IpNet> = node.pod_cidrs.iter().copied().chain(addresses).collect();
    if let Some(Route::Tunnel(index)) = tunnel {
        // As its pods are reached.
        let direct = |a: &IpAddr| encap == Encap::CrossSubnet && is_on_link(hops, node, (*a).into());
        let tunnelled = node.addresses.iter().filter(|a| !direct(a)).chain(&node.tunnel_addresses);
        snapshot.node_tunnels.extend(tunnelled.map(|a| (Ip::from(*a), index)));
        for addr in &node.tunnel_addresses {
            if owners.claim((*addr).into(), &node.name, problems) {
                add(snapshot, (*addr).into(), Route::Tunnel(index));
            }
        }
    }
    for net in nets {
        if !owners.claim(net, &node.name, problems) {
            continue;
        }
        let route = match (encap, tunnel) {
            (Encap::CrossSubnet, Some(tunnel)) if !is_on_link(hops, node, net) => Some(tunnel),
            (Encap::CrossSubnet, tunnel) => direct(hops, node, net).or(tunnel),
            (_, Some(tunnel)) => Some(tunnel),
            (_, None) => direct(hops, node, net),
        };
        match route {
            Some(route) => add(snapshot, net, route),
            None => problems.push(format!("node {}: no route to {net} by an uplink", node.name)),
        }
    }
}

fn add_tunnel(made: Tunnel, snapshot: &mut Snapshot, problems: &mut Vec<String>) -> Route {
    let Some(index) = u16::try_from(snapshot.tunnels.len()).ok().filter(|i| *i != NO_INDEX) else {
        problems.push(format!("node {}: more than {NO_INDEX} tunnels", made.node));
        return NO_ROUTE;
    };
    if made.next_hop == NO_INDEX {
        problems.push(format!("node {}: no route to its address {} by an uplink", made.node, made.remote));
    }
    let first = *snapshot.vteps.entry(made.remote).or_insert(index);
    if let Some(other) = snapshot.tunnels.get(usize::from(first)) {
        let (node, remote, other) = (&made.node, made.remote, &other.node);
        problems.push(format!("node {node}: address {remote} is already that of node {other}"));
    }
    snapshot.tunnels.push(made);
    Route::Tunnel(index)
}

/// Pods with addresses that their nodes' pod CIDRs do not hold: each needs a route of its own.
#[derive(Debug, Default)]
pub(super) struct Outsiders {
    by_node: BTreeMap<String, BTreeMap<ObjectName, Arc<Pod>>>,
}

impl Outsiders {
    /// Takes over what differs between two models, of which `before` is the one taken over last. Returns whether
    /// anything is different now.
    pub(super) fn update(&mut self, before: &Model, model: &Model) -> bool {
        if before.nodes.is_same(&model.nodes) {
            let mut changed = false;
            for (name, was, now) in before.pods.diff(&model.pods) {
                changed |= was.is_some_and(|pod| self.remove(name, pod));
                changed |= now.is_some_and(|pod| self.add(model, pod));
            }
            return changed;
        }
        self.by_node.clear();
        for pod in model.pods.values() {
            self.add(model, pod);
        }
        true
    }

    fn add(&mut self, model: &Model, pod: &Arc<Pod>) -> bool {
        let node = pod.node.as_ref().and_then(|n| model.nodes.get(n)).filter(|n| is_outside(pod, n));
        if let Some(node) = node {
            self.by_node.entry(node.name.clone()).or_default().insert(pod.name.clone(), Arc::clone(pod));
        }
        node.is_some()
    }

    fn remove(&mut self, name: &ObjectName, pod: &Pod) -> bool {
        let of_node = pod.node.as_ref().and_then(|n| self.by_node.get_mut(n));
        of_node.is_some_and(|pods| pods.remove(name).is_some())
    }

    /// Those of one node, by name.
    fn of(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_node.get(node).into_iter().flat_map(BTreeMap::values)
    }
}

fn is_outside(pod: &Pod, node: &Node) -> bool {
    !pod.host_network
        && !pod.finished
        && pod.addresses.iter().any(|a| !node.pod_cidrs.iter().any(|c| c.contains(a)))
}

/// The node's address that packets for `net` would be sent to.
fn address_for(node: &Node, net: IpNet) -> Option<IpAddr> {
    node.addresses.iter().find(|a| a.is_ipv4() == net.addr().is_ipv4()).copied()
}

/// Whether the node is on the link of an uplink, by its address of `net`'s family.
fn is_on_link(hops: &Hops<'_>, node: &Node, net: IpNet) -> bool {
    let route = address_for(node, net).and_then(|a| hops.inputs.net.route_to(a));
    route.is_some_and(|r| r.gateway.is_none() && hops.uplinks.contains_key(&r.link))
}

/// Unencapsulated: by the kernel's own route to the pods where it has one, else by the node's address.
fn direct(hops: &mut Hops<'_>, node: &Node, net: IpNet) -> Option<Route> {
    let own = hops.inputs.net.route_to_net(net).filter(|(len, _)| *len > 0);
    if let Some((_, way)) = own
        && let Some(gateway) = way.gateway
        && let Some(index) = hops.get(way.link, Some(gateway))
    {
        return Some(Route::NextHop(index));
    }
    hops.towards(address_for(node, net)?).map(Route::NextHop)
}

fn make_tunnel(
    hops: &mut Hops<'_>,
    this: Option<&Node>,
    local: Option<&Ip>,
    node: &Node,
) -> Result<Tunnel, String> {
    let outer_v6 = hops.inputs.overlay.outer_v6;
    let family = if outer_v6 { "IPv6" } else { "IPv4" };
    let mac = |n: &Node, addr| {
        let named: Option<Mac> = if outer_v6 { n.vtep_mac_v6 } else { n.vtep_mac_v4 };
        named.unwrap_or_else(|| vtep_mac(addr))
    };
    let remote = vtep(node, outer_v6)
        .ok_or_else(|| format!("no {family} InternalIP: its pods cannot be reached by tunnel"))?;
    let this = this.ok_or("this node is not known yet")?;
    let local = local.ok_or_else(|| format!("this node has no {family} InternalIP to tunnel from"))?;
    let local = IpAddr::from(*local);
    let next_hop = hops.towards(remote).unwrap_or(NO_INDEX);
    let mtu = hops.port(next_hop).map_or(0, |p| p.mtu);
    let settings = &hops.inputs.overlay.settings;
    Ok(Tunnel {
        node: Arc::from(node.name.as_str()),
        local: local.into(),
        remote: remote.into(),
        vni: settings.vni,
        port: settings.vxlan_port,
        src_mac: mac(this, local),
        dst_mac: mac(node, remote),
        next_hop,
        mtu: mtu.saturating_sub(tunnel_overhead(outer_v6)),
        headers: None,
    }
    .prepared())
}
