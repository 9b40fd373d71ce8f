//! [`World`]: what a compile is made from, as plain as it gets, and what it says of an address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Mac, NO_INDEX, PortId};
use fastpath::snapshot::{PortRole, Settings, Snapshot, Unroutable};
use ipnet::IpNet;

use crate::compile::{Compiled, Inputs, Overlay, Port, compile};
use crate::config::Encap;
use crate::model::{Labels, Model, Node, ObjectName, Origin, Pod};
use crate::netdev::route::{Hop, Route, RouteKind, Selector, TABLE_MAIN};
use crate::netdev::view::{Address, AddressState, Scope};
use crate::netdev::{Neighbor, NetView, NudState};

/// Index of the uplink's device.
pub(super) const ETH0: u32 = 2;
/// Id of the uplink's port.
pub(super) const UPLINK: PortId = PortId(0);

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// MAC address of a device or a neighbour.
pub(super) fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// The first address of a family.
pub(super) fn first(addresses: &[IpAddr], v4: bool) -> Option<IpAddr> {
    addresses.iter().find(|a| a.is_ipv4() == v4).copied()
}

/// Node `a`, its uplink `eth0` in 192.168.77.0/24 and fd77::/64, and whatever is added.
pub(super) struct World {
    pub(super) model: Model,
    pub(super) net: NetView,
    pub(super) routes: Vec<Route>,
    pub(super) ports: BTreeMap<PortId, Port>,
    pub(super) remembered: BTreeMap<(u32, IpAddr), Mac>,
    pub(super) overlay: Overlay,
}

impl World {
    /// Node `a` alone: 192.168.77.1 and fd77::1, pods in 10.77.1.0/24 and fd00:77:1::/64, gateways ….254 and fd77::fe.
    pub(super) fn new(encap: Encap, outer_v6: bool) -> Self {
        let mut world = Self {
            model: Model::default(),
            net: NetView::default(),
            routes: Vec::new(),
            ports: BTreeMap::new(),
            remembered: BTreeMap::new(),
            overlay: Overlay { encap, outer_v6, settings: Settings::default() },
        };
        world.node("a", &["192.168.77.1", "fd77::1"], &["10.77.1.0/24", "fd00:77:1::/64"]);
        world.port(UPLINK, ETH0, "eth0", PortRole::Uplink, None);
        for address in ["192.168.77.1/24", "fd77::1/64"] {
            world.net.addresses.insert(Address {
                link: ETH0,
                net: net(address),
                peer: None,
                scope: Scope::Global,
                state: AddressState::Usable,
                permanent: true,
            });
            world.route(&net(address).trunc().to_string(), ETH0, None);
        }
        world.route("0.0.0.0/0", ETH0, Some("192.168.77.254"));
        world.route("::/0", ETH0, Some("fd77::fe"));
        world
    }

    pub(super) fn node(&mut self, name: &str, addresses: &[&str], cidrs: &[&str]) -> &mut Node {
        let node = Node {
            name: name.to_owned(),
            labels: Labels::new(),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
            pod_cidrs: cidrs.iter().map(|c| net(c)).collect(),
            vtep_v4: None,
            vtep_v6: None,
            tunnel_addresses: Vec::new(),
            vtep_mac_v4: None,
            vtep_mac_v6: None,
            origin: Origin::Api,
        };
        self.model.nodes.insert(name.to_owned(), Arc::new(node));
        self.model.nodes.get_mut(name).map(Arc::make_mut).unwrap()
    }

    /// A second node on the link: 192.168.77.2 and fd77::2, pods in 10.77.2.0/24 and fd00:77:2::/64.
    pub(super) fn neighbor_node(&mut self) -> &mut Node {
        self.node("b", &["192.168.77.2", "fd77::2"], &["10.77.2.0/24", "fd00:77:2::/64"])
    }

    /// A third one behind the gateway: 192.168.88.3 and fd88::3, pods in 10.77.3.0/24 and fd00:77:3::/64.
    pub(super) fn distant_node(&mut self) -> &mut Node {
        self.node("c", &["192.168.88.3", "fd88::3"], &["10.77.3.0/24", "fd00:77:3::/64"])
    }

    pub(super) fn pod(&mut self, name: &str, node: Option<&str>, addresses: &[IpAddr]) -> &mut Pod {
        let name = ObjectName { namespace: "default".to_owned(), name: name.to_owned() };
        let pod = Pod {
            name: name.clone(),
            labels: Labels::new(),
            node: node.map(str::to_owned),
            addresses: addresses.to_vec(),
            host_network: false,
            finished: false,
            ports: Default::default(),
            host_ports: std::collections::BTreeSet::new(),
            interface: None,
            mac: None,
            netns: None,
            uid: None,
            origin: Origin::Api,
        };
        self.model.pods.insert(name.clone(), Arc::new(pod));
        self.model.pods.get_mut(&name).map(Arc::make_mut).unwrap()
    }

    pub(super) fn port(&mut self, id: PortId, ifindex: u32, name: &str, role: PortRole, pod: Option<&str>) {
        let port = Port {
            id,
            ifindex,
            name: name.into(),
            role,
            pod: pod.map(|name| ObjectName { namespace: "default".to_owned(), name: name.to_owned() }),
            mac: mac(id.0.to_be_bytes()[1]),
            peer_mac: None,
            mtu: 1500,
            queues: vec![0],
            redirect: false,
        };
        self.ports.insert(id, port);
    }

    /// A pod of this node, and the port it is attached by.
    pub(super) fn attached(&mut self, id: PortId, name: &str, addresses: &[IpAddr]) {
        self.pod(name, Some("a"), addresses);
        self.port(id, 100 + u32::from(id.0), &format!("fp-{name}"), PortRole::Pod, Some(name));
    }

    /// A route of the main table; the one added last can still be changed.
    pub(super) fn route(&mut self, dst: &str, link: u32, gateway: Option<&str>) -> &mut Route {
        let hop = Hop { link, gateway: gateway.map(ip), weight: 1, dead: false, no_carrier: false };
        self.routes.push(Route {
            table: TABLE_MAIN,
            dst: net(dst),
            selector: Selector::default(),
            metric: 100,
            preference: 0,
            kind: RouteKind::Unicast,
            prefsrc: None,
            hops: vec![hop],
            protocol: 4,
        });
        self.routes.last_mut().unwrap()
    }

    pub(super) fn resolved(&mut self, link: u32, addr: &str, state: NudState, n: u8) {
        let neighbor = Neighbor { mac: Some(mac(n)), state, managed: false, protocol: 0 };
        self.net.neighbors.insert((link, ip(addr)), neighbor);
    }

    pub(super) fn compile(&mut self) -> Compiled {
        self.net.routes = self.routes.iter().cloned().collect();
        compile(&Inputs {
            node: "a",
            model: &self.model,
            net: &self.net,
            ports: &self.ports,
            remembered: &self.remembered,
            overlay: &self.overlay,
            generation: 7,
        })
    }
}

/// The way to an address, in words: `port fp-x`, `tunnel b via 192.168.77.2`, `via 192.168.77.254` (`via itself` where the
/// destination's own neighbour entry is missing), `no route`, `no endpoint`, `host`.
pub(super) fn way(snapshot: &Snapshot, addr: IpAddr) -> String {
    let egress = match snapshot.egress(addr.into()) {
        Ok(egress) => egress,
        Err(Unroutable::NoRoute) => return "no route".to_owned(),
        Err(Unroutable::NoEndpoint) => return "no endpoint".to_owned(),
        Err(Unroutable::NoHostPort) => return "host".to_owned(),
    };
    let via = || {
        let hop = &snapshot.next_hops[usize::from(egress.next_hop)];
        assert_eq!(hop.port, egress.port);
        hop.addr.map_or_else(|| "via itself".to_owned(), |a| format!("via {a}"))
    };
    if egress.tunnel != NO_INDEX {
        let tunnel = &snapshot.tunnels[usize::from(egress.tunnel)];
        assert_eq!((tunnel.next_hop, tunnel.mtu), (egress.next_hop, egress.mtu));
        format!("tunnel {} {}", tunnel.node, via())
    } else if egress.next_hop != NO_INDEX {
        via()
    } else {
        format!("port {}", snapshot.port(egress.port).unwrap().name)
    }
}
