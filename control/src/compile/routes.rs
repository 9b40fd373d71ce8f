//! The routing half of `compile`: other nodes' pods, this node, and what the kernel's routes say of the rest.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Ip, Mac, NO_INDEX, PortId};
use fastpath::snapshot::{NextHop, PortRole, Route, Snapshot, Tunnel};
use fastpath::tables::Prefix;
use ipnet::IpNet;

use super::{Inputs, Port, vtep_mac};
use crate::config::Encap;
use crate::model::{Node, Pod};
use crate::netdev::route::{Hop, RouteKind, Selector};

/// Bytes that VXLAN puts in front of an inner IP packet, without the outer Ethernet header.
const OVERHEAD_V4: u16 = 20 + 8 + 8 + 14;
const OVERHEAD_V6: u16 = 40 + 8 + 8 + 14;

/// Fills routes, tunnels and next hops; returns the neighbours the kernel is to resolve.
pub(super) fn fill(
    inputs: &Inputs<'_>,
    this: Option<&Node>,
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
    for node in inputs.model.nodes.values().filter(|n| n.name != inputs.node) {
        remote_node(&mut hops, this, node, snapshot, problems);
    }
    if let Some(this) = this {
        for cidr in &this.pod_cidrs {
            add(snapshot, *cidr, Route::NoEndpoint);
        }
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

    /// The next hop towards `dst` by the kernel's routes, and whether it is on our link.
    fn towards(&mut self, dst: IpAddr) -> Option<(u16, bool)> {
        let route = self.inputs.net.route_to(dst)?;
        let (link, addr) = route.neighbor(dst);
        let index = self.get(link, Some(addr))?;
        Some((index, route.gateway.is_none()))
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

/// Routes of the kernel that leave by an uplink, and the neighbours it knows on their links.
fn kernel_routes(hops: &mut Hops<'_>, snapshot: &mut Snapshot) {
    let net = hops.inputs.net;
    let mut best: BTreeMap<IpNet, (u32, &Hop)> = BTreeMap::new();
    for route in
        net.routes.iter().filter(|r| r.kind == RouteKind::Unicast && r.selector == Selector::default())
    {
        let Some(hop) = route.hops.iter().find(|h| !h.dead) else { continue };
        let entry = best.entry(route.dst).or_insert((route.metric, hop));
        if route.metric < entry.0 {
            *entry = (route.metric, hop);
        }
    }
    for (dst, (_, hop)) in best {
        if let Some(index) = hops.get(hop.link, hop.gateway) {
            add(snapshot, dst, Route::NextHop(index));
        }
    }
    for ((link, addr), _) in net.neighbors.iter().filter(|(_, n)| n.usable_mac().is_some()) {
        let on_link = net.route_to(*addr).is_some_and(|r| r.link == *link && r.gateway.is_none());
        if on_link && let Some(hop) = hops.get(*link, Some(*addr)) {
            snapshot.routes.insert(Prefix::host((*addr).into()), Route::NextHop(hop));
        }
    }
}

/// Another node: its tunnel, its pod CIDRs, and its pods outside them.
fn remote_node(
    hops: &mut Hops<'_>,
    this: Option<&Node>,
    node: &Node,
    snapshot: &mut Snapshot,
    problems: &mut Vec<String>,
) {
    let overlay = hops.inputs.overlay;
    let mut tunnel = None;
    if overlay.encap != Encap::None {
        match make_tunnel(hops, this, node) {
            Ok((made, on_link)) => {
                let index = u16::try_from(snapshot.tunnels.len()).unwrap_or(NO_INDEX);
                snapshot.vteps.insert(made.remote, index);
                snapshot.tunnels.push(made);
                tunnel =
                    Some(Route::Tunnel(index)).filter(|_| !(overlay.encap == Encap::CrossSubnet && on_link));
            }
            Err(why) => problems.push(format!("node {}: {why}", node.name)),
        }
    }
    let pods = hops.inputs.model.pods.values().filter(|p| is_outside(p, node));
    let addresses = pods.flat_map(|p| p.addresses.iter().copied().map(IpNet::from));
    let nets: Vec<IpNet> = node.pod_cidrs.iter().copied().chain(addresses).collect();
    if let Some(Route::Tunnel(index)) = tunnel {
        snapshot.node_tunnels.extend(node.addresses.iter().map(|a| (Ip::from(*a), index)));
    }
    for net in nets {
        match tunnel.or_else(|| direct(hops, node, net)) {
            Some(route) => add(snapshot, net, route),
            None if overlay.encap == Encap::None => {
                problems.push(format!("node {}: no route to {net} by an uplink", node.name));
            }
            None => {}
        }
    }
}

/// A pod on `node` with an address that the node's pod CIDRs do not hold.
fn is_outside(pod: &Arc<Pod>, node: &Node) -> bool {
    pod.node.as_deref() == Some(node.name.as_str())
        && !pod.host_network
        && !pod.finished
        && pod.addresses.iter().any(|a| !node.pod_cidrs.iter().any(|c| c.contains(a)))
}

/// Unencapsulated: by the kernel's own route to the pods where it has one, else by the node's address.
fn direct(hops: &mut Hops<'_>, node: &Node, net: IpNet) -> Option<Route> {
    let routes = hops.inputs.net.routes.iter();
    let own =
        routes.filter(|r| r.kind == RouteKind::Unicast && r.dst.prefix_len() > 0 && r.dst.contains(&net));
    let hop = own.max_by_key(|r| r.dst.prefix_len()).and_then(|r| r.hops.iter().find(|h| !h.dead));
    if let Some(hop) = hop
        && let Some(gateway) = hop.gateway
        && let Some(index) = hops.get(hop.link, Some(gateway))
    {
        return Some(Route::NextHop(index));
    }
    let address = node.addresses.iter().find(|a| a.is_ipv4() == net.addr().is_ipv4())?;
    hops.towards(*address).map(|(hop, _)| Route::NextHop(hop))
}

fn make_tunnel(hops: &mut Hops<'_>, this: Option<&Node>, node: &Node) -> Result<(Tunnel, bool), String> {
    let outer_v6 = hops.inputs.overlay.outer_v6;
    let family = if outer_v6 { "IPv6" } else { "IPv4" };
    let vtep = |n: &Node| n.addresses.iter().find(|a| a.is_ipv6() == outer_v6).copied();
    let mac = |n: &Node, addr| {
        let named: Option<Mac> = if outer_v6 { n.vtep_mac_v6 } else { n.vtep_mac_v4 };
        named.unwrap_or_else(|| vtep_mac(addr))
    };
    let remote =
        vtep(node).ok_or_else(|| format!("no {family} InternalIP: its pods cannot be reached by tunnel"))?;
    let this = this.ok_or("this node is not known yet")?;
    let local = vtep(this).ok_or_else(|| format!("this node has no {family} InternalIP to tunnel from"))?;
    let (next_hop, on_link) =
        hops.towards(remote).ok_or_else(|| format!("no route to its address {remote} by an uplink"))?;
    let mtu = hops.port(next_hop).map_or(0, |p| p.mtu);
    let settings = &hops.inputs.overlay.settings;
    let tunnel = Tunnel {
        node: Arc::from(node.name.as_str()),
        local: local.into(),
        remote: remote.into(),
        vni: settings.vni,
        port: settings.vxlan_port,
        src_mac: mac(this, local),
        dst_mac: mac(node, remote),
        next_hop,
        mtu: mtu.saturating_sub(if outer_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 }),
    };
    Ok((tunnel, on_link))
}
