//! What of the uplink's traffic is ours: the tunnel, local pods, services for the outside, translated sources.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use fastpath::packet::proto;
use fastpath::snapshot::Snapshot;
use fastpath_xdp::pinhole::Protocol;
use fastpath_xdp::{Endpoint, LoadConfig, Pinhole, Prefix, SnatPorts, Tunnel};
use ipnet::IpNet;

use super::Daemon;
use crate::compile::service::{FrontendKind, Services};

impl Daemon {
    /// Has the uplink's program let through what is ours now; what it cannot goes to `kernel_problems`.
    pub(super) fn open_pinhole(&mut self) {
        let this = self.update.model.nodes.get(&self.node);
        let cidrs = this.map(|n| n.pod_cidrs.as_slice()).unwrap_or_default();
        let most = usize::try_from(LoadConfig::default().max_frontends).unwrap_or(usize::MAX);
        let (pinhole, left_out) = pinhole(&self.snapshot, cidrs, self.tables.services(), most);
        if left_out > 0 {
            self.kernel_problems.push(format!(
                "{left_out} service addresses and node ports are not reachable from outside: the uplink's program \
                 takes {most} (ports times addresses, tunnels included)"
            ));
        }
        self.kernel_problems.extend(overlaps(&pinhole));
        if let Err(e) = self.attacher.redirect.set_pinhole(&pinhole) {
            self.kernel_problems.push(e.to_string());
        }
    }
}

/// The pinhole, with at most `most` tunnels, frontends and node ports, and how many of the latter two are left out.
fn pinhole(snapshot: &Snapshot, cidrs: &[IpNet], services: &Services, most: usize) -> (Pinhole, usize) {
    let pods = snapshot.local.keys().map(|ip| Prefix::host(IpAddr::from(*ip)));
    let port = snapshot.settings.vxlan_port;
    let vteps = snapshot.node.vteps.iter().map(|ip| Tunnel { addr: IpAddr::from(*ip), port });
    let mut pinhole = Pinhole {
        local: cidrs.iter().flat_map(|c| Prefix::new(c.network(), c.prefix_len())).chain(pods).collect(),
        node: snapshot.node.addresses.iter().map(|ip| IpAddr::from(*ip)).collect(),
        tunnels: vteps.collect(),
        frontends: frontends(snapshot, services),
        node_ports: node_ports(snapshot, services),
        ..Pinhole::default()
    };
    let snat = &snapshot.snat;
    for ip in [snat.v4, snat.v6].into_iter().flatten() {
        pinhole.snat.insert(IpAddr::from(ip), SnatPorts { lo: snat.first, hi: snat.last });
    }
    // Better some than none: one entry too many would be refused with all the others.
    let room = most.saturating_sub(pinhole.tunnels.len());
    let first = [snapshot.node.icmp_v4, snapshot.node.icmp_v6].map(|ip| ip.map(IpAddr::from));
    let mut left_out = cut(&mut pinhole.frontends, room, &first);
    left_out += cut(&mut pinhole.node_ports, room - pinhole.frontends.len(), &first);
    (pinhole, left_out)
}

/// What is wrong with pod prefixes that hold addresses of the node: one line for each address.
fn overlaps(pinhole: &Pinhole) -> Vec<String> {
    let all = pinhole.node_addresses_of_pods().into_iter();
    all.map(|(addr, prefix)| {
        format!(
            "{addr} is an address of this node and lies in the pod prefix {prefix}: it stays the node's, and no pod \
             can have it; take it from the node, or give the node another pod CIDR"
        )
    })
    .collect()
}

/// External and load balancer addresses, and host ports of this node. Cluster addresses are for the cluster alone.
fn frontends(snapshot: &Snapshot, services: &Services) -> BTreeSet<Endpoint> {
    let compiled = &snapshot.services.frontends;
    let all = services.frontends.iter().filter(|((addr, ..), f)| match f.kind {
        FrontendKind::ClusterIp => false,
        FrontendKind::HostPort => snapshot.is_own((*addr).into()),
        _ => true,
    });
    let ours = all.filter(|((addr, proto, port), _)| compiled.contains_key(&((*addr).into(), *proto, *port)));
    ours.filter_map(|((addr, proto, port), _)| endpoint(addr.to_canonical(), *proto, *port)).collect()
}

/// Every node port on every address of this node.
fn node_ports(snapshot: &Snapshot, services: &Services) -> BTreeSet<Endpoint> {
    let addresses = snapshot.node.addresses.iter();
    addresses
        .flat_map(|ip| {
            let ports = services.node_ports.keys().filter(|(v4, ..)| *v4 == ip.is_v4());
            ports.filter_map(|(_, proto, port)| endpoint(IpAddr::from(*ip), *proto, *port))
        })
        .collect()
}

fn endpoint(addr: IpAddr, proto: u8, port: u16) -> Option<Endpoint> {
    let proto = match proto {
        proto::TCP => Protocol::Tcp,
        proto::UDP => Protocol::Udp,
        proto::SCTP => Protocol::Sctp,
        _ => return None,
    };
    Some(Endpoint { addr, proto, port })
}

/// Leaves `most`, those of the addresses in `first` before others; returns how many it took out.
fn cut(set: &mut BTreeSet<Endpoint>, most: usize, first: &[Option<IpAddr>]) -> usize {
    let over = set.len().saturating_sub(most);
    let of = |wanted: bool| set.iter().rev().filter(move |e| first.contains(&Some(e.addr)) == wanted);
    let out: BTreeSet<Endpoint> = of(false).chain(of(true)).take(over).copied().collect();
    set.retain(|e| !out.contains(e));
    over
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fastpath::packet::{Ip, PortId};
    use fastpath::snapshot::NodeInfo;

    use super::*;
    use crate::compile::tables::Tables;
    use crate::daemon::fixtures::{cluster, ip, tables};
    use crate::model::Model;

    const PORTS: &str =
        "[{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP, nodePort: 30053}]";
    const MORE: &str = "
apiVersion: v1
kind: Service
metadata: {name: pods}
spec: {clusterIP: 10.96.0.2, externalIPs: [10.0.0.5], ports: [{port: 443, protocol: SCTP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {nodeName: a, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.5}]}
";

    fn manifests() -> String {
        cluster("[10.0.0.0/24]", "[198.51.100.9]", PORTS, MORE)
    }

    fn texts(set: &BTreeSet<Endpoint>) -> Vec<String> {
        set.iter().map(|e| format!("{} {:?} {}", e.addr, e.proto, e.port)).collect()
    }

    fn world(manifests: &str, own: &[&str]) -> (Snapshot, Arc<Model>, Tables) {
        let mut own: Vec<Ip> = own.iter().map(|a| Ip::from(ip(a))).collect();
        own.sort_unstable();
        let mut snapshot = Snapshot {
            node: NodeInfo { addresses: own, vteps: vec![Ip::from(ip("192.0.2.1"))], ..NodeInfo::default() },
            local: [(Ip::from(ip("10.9.0.7")), PortId(1))].into_iter().collect(),
            ..Snapshot::default()
        };
        let (model, tables) = tables(manifests, &mut snapshot);
        (snapshot, model, tables)
    }

    const OWN: [&str; 3] = ["192.0.2.1", "172.17.0.1", "2001:db8::1"];

    #[test]
    fn what_is_ours_and_nothing_else() {
        let (snapshot, model, tables) = world(&manifests(), &OWN);
        let (pinhole, left_out) = pinhole(&snapshot, &model.nodes["a"].pod_cidrs, tables.services(), 1000);
        assert_eq!(left_out, 0);
        let local: Vec<_> = pinhole.local.iter().map(ToString::to_string).collect();
        assert_eq!(local, ["10.0.0.0/24", "10.9.0.7/32"]);
        assert_eq!(pinhole.tunnels.len(), 1);
        // No cluster address, and none that a pod has.
        assert_eq!(
            texts(&pinhole.frontends),
            ["198.51.100.9 Tcp 80", "198.51.100.9 Udp 53", "2001:db8:1::9 Tcp 80", "2001:db8:1::9 Udp 53"]
        );
        assert_eq!(
            texts(&pinhole.node_ports),
            [
                "172.17.0.1 Tcp 30080",
                "172.17.0.1 Udp 30053",
                "192.0.2.1 Tcp 30080",
                "192.0.2.1 Udp 30053",
                "2001:db8::1 Tcp 30080",
                "2001:db8::1 Udp 30053"
            ]
        );
        let range = SnatPorts { lo: 40_000, hi: 41_000 };
        assert_eq!(pinhole.snat, [(ip("192.0.2.1"), range), (ip("2001:db8::1"), range)].into());
    }

    #[test]
    fn node_addresses_are_no_pods() {
        let (mut snapshot, model, tables) = world(&manifests(), &OWN);
        let cidrs = &model.nodes["a"].pod_cidrs;
        let own: BTreeSet<IpAddr> = OWN.map(ip).into();
        let (none, _) = pinhole(&snapshot, cidrs, tables.services(), 1000);
        assert_eq!(none.node, own);
        assert_eq!(overlaps(&none), [""; 0]);

        // A bridge of another network plugin, and a pod that says it has the node's address.
        snapshot.node.addresses.push(Ip::from(ip("10.0.0.1")));
        snapshot.local.insert(Ip::from(ip("192.0.2.1")), PortId(2));
        let (two, _) = pinhole(&snapshot, cidrs, tables.services(), 1000);
        assert!(two.node.contains(&ip("10.0.0.1")));
        let said = overlaps(&two);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].starts_with("10.0.0.1 is an address of this node and lies in the pod prefix 10.0.0.0/24")
        );
        assert!(
            said[1]
                .starts_with("192.0.2.1 is an address of this node and lies in the pod prefix 192.0.2.1/32")
        );
    }

    #[test]
    fn too_many_are_left_out_and_counted() {
        let (snapshot, model, tables) = world(&manifests(), &OWN);
        let cidrs = &model.nodes["a"].pod_cidrs;
        // One tunnel, four frontends, six node ports.
        for (most, frontends, node_ports) in
            [(11, 4, 6), (10, 4, 5), (5, 4, 0), (3, 2, 0), (1, 0, 0), (0, 0, 0)]
        {
            let (pinhole, left_out) = pinhole(&snapshot, cidrs, tables.services(), most);
            assert_eq!(
                (pinhole.frontends.len(), pinhole.node_ports.len()),
                (frontends, node_ports),
                "{most}"
            );
            assert_eq!(left_out, 10 - frontends - node_ports, "{most}");
            assert_eq!((pinhole.tunnels.len(), pinhole.local.len(), pinhole.snat.len()), (1, 2, 2));
        }
    }

    #[test]
    fn the_nodes_own_address_keeps_its_node_ports() {
        // A bridge and the like come first by number.
        let (mut snapshot, model, tables) =
            world(&manifests(), &["10.96.5.5", "172.17.0.1", "192.0.2.1", "2001:db8::1"]);
        snapshot.node.icmp_v4 = Some(Ip::from(ip("192.0.2.1")));
        let (pinhole, left_out) = pinhole(&snapshot, &model.nodes["a"].pod_cidrs, tables.services(), 8);
        assert_eq!(left_out, 5);
        assert_eq!(
            texts(&pinhole.node_ports),
            ["10.96.5.5 Tcp 30080", "192.0.2.1 Tcp 30080", "192.0.2.1 Udp 30053"]
        );
    }

    #[test]
    fn an_unknown_node_has_no_holes_but_its_own_pods() {
        let (snapshot, _, tables) = world("", &[]);
        let (pinhole, _) = pinhole(&snapshot, &[], tables.services(), 10);
        assert_eq!((pinhole.snat.len(), pinhole.frontends.len(), pinhole.node_ports.len()), (0, 0, 0));
    }
}
