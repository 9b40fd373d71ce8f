//! Source translation: which destinations see a pod's own address, and what it becomes elsewhere.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use fastpath::packet::Ip;
use fastpath::snapshot::Snat;
use fastpath::tables::{Lpm, Prefix};
use ipnet::IpNet;

use crate::model::Model;

/// The settings of source translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatSettings {
    /// Pods reach the outside by the node's address.
    pub outgoing: bool,
    /// First and last port that sources become.
    pub ports: (u16, u16),
    /// Destinations beyond pods and nodes that see a pod's own address: those of services, and exempt ones.
    pub inside: Vec<IpNet>,
}

/// The table of one node; `own` are all its addresses.
pub(super) fn compile(settings: &SnatSettings, model: &Model, node: &str, own: &[Ip]) -> Snat {
    let first = |v4: bool| {
        let addresses = model.nodes.get(node).map(|n| n.addresses.as_slice()).unwrap_or_default();
        addresses.iter().find(|a| a.is_ipv4() == v4).copied().map(Ip::from)
    };
    let mut inside = Lpm::default();
    let mut add = |addr: IpAddr, len: u8| {
        if let Some(prefix) = Prefix::new(addr, len) {
            inside.insert(prefix, ());
        }
    };
    for net in settings.inside.iter().chain(model.nodes.values().flat_map(|n| &n.pod_cidrs)) {
        add(net.addr(), net.prefix_len());
    }
    let addresses = model.nodes.values().flat_map(|n| n.addresses.iter().chain(&n.tunnel_addresses));
    for ip in addresses.copied().map(Ip::from) {
        inside.insert(Prefix::host(ip), ());
    }
    for ip in own {
        inside.insert(Prefix::host(*ip), ());
    }
    for pod in model.pods.values().filter(|p| !p.finished) {
        for ip in pod.addresses.iter().copied().map(Ip::from) {
            if inside.lookup(ip).is_none() {
                inside.insert(Prefix::host(ip), ());
            }
        }
    }
    let (first_port, last) = settings.ports;
    let (v4, v6) = (first(true), first(false));
    Snat { outgoing: settings.outgoing, v4, v6, first: first_port, last, inside, ..Snat::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::Folder;
    use crate::source::load_dir;

    const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: a}
spec: {podCIDRs: [10.1.0.0/24, "fd01::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}
---
apiVersion: v1
kind: Node
metadata: {name: b}
spec: {podCIDRs: [10.1.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stray, namespace: n}
spec: {nodeName: b, containers: [{name: c}]}
status: {podIPs: [{ip: 10.9.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ended, namespace: n}
spec: {nodeName: b, containers: [{name: c}]}
status: {phase: Failed, podIPs: [{ip: 10.9.0.2}]}
"#;

    #[test]
    fn inside_is_pods_services_nodes_and_exempt_ones() {
        let model = load_dir(&Folder::new(CLUSTER).0).unwrap().model;
        let settings = SnatSettings {
            outgoing: true,
            ports: (40_000, 41_000),
            inside: ["10.96.0.0/12", "203.0.113.0/24"].map(|n| n.parse().unwrap()).to_vec(),
        };
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap());
        let snat = compile(&settings, &model, "a", &[ip("198.51.100.7")]);
        assert_eq!((snat.v4, snat.v6), (Some(ip("192.0.2.1")), Some(ip("2001:db8::1"))));
        assert_eq!((snat.first, snat.last, snat.outgoing), (40_000, 41_000, true));
        for (addr, inside) in [
            ("10.1.0.9", true),
            ("10.1.1.9", true),
            ("fd01::9", true),
            ("10.9.0.1", true),
            ("10.9.0.2", false),
            ("192.0.2.2", true),
            ("192.0.2.3", false),
            ("198.51.100.7", true),
            ("10.96.3.4", true),
            ("203.0.113.9", true),
            ("2001:db8::1", true),
            ("2001:db8::2", false),
        ] {
            assert_eq!(snat.inside.lookup(ip(addr)).is_some(), inside, "{addr}");
        }
        let nobody = compile(&settings, &model, "c", &[]);
        assert_eq!((nobody.v4, nobody.v6), (None, None));
    }
}
