//! Source translation: which destinations see a pod's own address, and what it becomes elsewhere.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use fastpath::packet::Ip;
use fastpath::snapshot::Snat;
use fastpath::tables::{Lpm, Prefix};
use ipnet::IpNet;

use crate::model::{Model, ObjectName, Pod};

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

/// The table of one node, made from one model after the other.
#[derive(Debug)]
pub(super) struct SnatTable {
    settings: SnatSettings,
    seen: Model,
    own: Vec<Ip>,
    /// Without what single pods add.
    base: Snat,
    /// Addresses of pods that nothing else has inside.
    strays: BTreeMap<ObjectName, Vec<Ip>>,
    table: Snat,
}

impl SnatTable {
    pub(super) fn new(settings: SnatSettings) -> Self {
        Self {
            settings,
            seen: Model::default(),
            own: Vec::new(),
            base: Snat::default(),
            strays: BTreeMap::new(),
            table: Snat::default(),
        }
    }

    pub(super) fn settings(&self) -> &SnatSettings {
        &self.settings
    }

    /// Brings the table in line with the model; `own` are all addresses of the node.
    ///
    /// Returns whether it may be another now.
    pub(super) fn update(&mut self, model: &Model, node: &str, own: &[Ip]) -> bool {
        let before = std::mem::replace(&mut self.seen, model.clone());
        let mut changed = false;
        if !before.nodes.is_same(&model.nodes) || self.own != own || self.base == Snat::default() {
            self.own = own.to_vec();
            self.base = without_pods(&self.settings, model, node, own);
            self.strays.clear();
            for (name, pod) in &model.pods {
                self.add(name, pod);
            }
            changed = true;
        } else {
            for (name, _, now) in before.pods.diff(&model.pods) {
                changed |= self.strays.remove(name).is_some();
                changed |= now.is_some_and(|pod| self.add(name, pod));
            }
        }
        if changed {
            self.table = self.base.clone();
            for ip in self.strays.values().flatten() {
                self.table.inside.insert(Prefix::host(*ip), ());
            }
        }
        changed
    }

    /// The table.
    pub(super) fn table(&self) -> &Snat {
        &self.table
    }

    /// Whether the pod has addresses that are not inside without it.
    fn add(&mut self, name: &ObjectName, pod: &Pod) -> bool {
        let addresses = pod.addresses.iter().copied().map(Ip::from).filter(|_| !pod.finished);
        let strays: Vec<Ip> = addresses.filter(|ip| self.base.inside.lookup(*ip).is_none()).collect();
        let some = !strays.is_empty();
        if some {
            self.strays.insert(name.clone(), strays);
        }
        some
    }
}

/// The table of one node, without what single pods add; `own` are all its addresses.
fn without_pods(settings: &SnatSettings, model: &Model, node: &str, own: &[Ip]) -> Snat {
    let first = |v4: bool| {
        let addresses = model.nodes.get(node).map(|n| n.addresses.as_slice()).unwrap_or_default();
        addresses.iter().find(|a| a.is_ipv4() == v4).copied().map(Ip::from)
    };
    let mut inside = Lpm::default();
    for net in settings.inside.iter().chain(model.nodes.values().flat_map(|n| &n.pod_cidrs)) {
        inside.extend(Prefix::new(net.addr(), net.prefix_len()).map(|prefix| (prefix, ())));
    }
    let addresses = model.nodes.values().flat_map(|n| n.addresses.iter().chain(&n.tunnel_addresses));
    let addresses = addresses.copied().map(Ip::from).chain(own.iter().copied());
    inside.extend(addresses.map(|ip| (Prefix::host(ip), ())));
    let (first_port, last) = settings.ports;
    let (v4, v6) = (first(true), first(false));
    Snat { outgoing: settings.outgoing, v4, v6, first: first_port, last, inside, ..Snat::default() }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

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
        let mut table = SnatTable::new(settings.clone());
        assert!(table.update(&model, "a", &[ip("198.51.100.7")]));
        assert!(!table.update(&model, "a", &[ip("198.51.100.7")]));
        let snat = table.table().clone();
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
        let mut nobody = SnatTable::new(settings.clone());
        nobody.update(&model, "c", &[]);
        let nobody = nobody.table();
        assert_eq!((nobody.v4, nobody.v6), (None, None));

        // What comes and goes leaves the same as all at once.
        let mut less = (*model).clone();
        less.pods.retain(|name, _| name.name != "stray");
        let own = [ip("198.51.100.7")];
        table.update(&less, "a", &own);
        let without = table.table().clone();
        assert!(without.inside.lookup(ip("10.9.0.1")).is_none());
        let mut fresh = SnatTable::new(settings);
        fresh.update(&less, "a", &own);
        assert_eq!(without, *fresh.table());
        table.update(&model, "a", &own);
        assert_eq!(*table.table(), snat);
    }
}
