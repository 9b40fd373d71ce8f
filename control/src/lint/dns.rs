//! Whether pods under restricted egress may still ask the cluster's DNS.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Ip, proto};
use fastpath::tables::policy::Direction;

use crate::compile::policy::{Compiled, Scope, compile};
use crate::model::{Model, NetworkPolicy, ObjectName, Pod, PortSpec, Protocol, Rule};

const NAMESPACE: &str = "kube-system";
const PORT: u16 = 53;

/// The cluster's DNS servers, as far as the model shows them.
pub(super) struct Dns<'a> {
    model: &'a Model,
    servers: Vec<(IpAddr, u16)>,
    compiled: Option<Compiled>,
}

impl<'a> Dns<'a> {
    pub(super) fn new(model: &'a Model) -> Self {
        let service = ObjectName { namespace: NAMESPACE.to_owned(), name: "kube-dns".to_owned() };
        let slices = model.slices.values().filter(|s| s.service.as_ref() == Some(&service));
        let mut servers: Vec<_> = slices
            .flat_map(|s| {
                let ports = s.ports.iter().filter(|p| p.protocol == Protocol::Udp);
                ports.flat_map(|p| s.endpoints.iter().map(|e| (e.address, p.port)))
            })
            .collect();
        if servers.is_empty() {
            let is_dns = |p: &&Arc<Pod>| {
                let label = p.labels.get("k8s-app").map(String::as_str);
                p.name.namespace == NAMESPACE && matches!(label, Some("kube-dns" | "coredns")) && !p.finished
            };
            servers = model
                .pods
                .values()
                .filter(is_dns)
                .flat_map(|p| {
                    let named = p.ports.iter().find(|(n, proto, _)| n == "dns" && *proto == proto::UDP);
                    let port = named.map_or(PORT, |(_, _, port)| *port);
                    p.addresses.iter().map(move |a| (*a, port))
                })
                .collect();
        }
        Self { model, servers, compiled: None }
    }

    /// What to say of a policy when pods it selects may not ask DNS.
    pub(super) fn missing(&mut self, policy: &NetworkPolicy, selected: &[&Arc<Pod>]) -> Option<String> {
        if !policy.isolates_egress {
            return None;
        }
        let without: Vec<_> = selected.iter().filter(|p| !self.may_ask(p)).collect();
        let first = without.first()?;
        let whom = match without.len() {
            1 => format!("pod {} has", first.name),
            n => format!("{n} pods, {} among them, have", first.name),
        };
        let to = if self.servers.is_empty() { "to port 53" } else { "to the pods of kube-system/kube-dns" };
        Some(format!("{whom} restricted egress, and no policy allows UDP {to}: names cannot be resolved"))
    }

    fn may_ask(&mut self, pod: &Pod) -> bool {
        if self.servers.is_empty() {
            let policies =
                self.model.policies.values().filter(|p| {
                    p.name.namespace == pod.name.namespace && p.pod_selector.matches(&pod.labels)
                });
            return policies
                .filter_map(|p| p.rules(Direction::Egress))
                .flatten()
                .any(|r| self.allows_port(r));
        }
        let compiled = self.compiled.get_or_insert_with(|| compile(self.model, Scope::Cluster));
        let Some(group) = compiled.endpoints.get(&pod.name) else { return true };
        // A pod without an address yet has no traffic to judge.
        let mut judged = false;
        for own in &pod.addresses {
            for (server, port) in self.servers.iter().filter(|s| s.0.is_ipv4() == own.is_ipv4()) {
                let (own, server) = (Ip::from(*own), Ip::from(*server));
                judged = true;
                if compiled.table.evaluate(*group, Direction::Egress, own, server, proto::UDP, *port).allow {
                    return true;
                }
            }
        }
        !judged
    }

    fn allows_port(&self, rule: &Rule) -> bool {
        let named = |name: &str| {
            let is = |(n, p, port): &(String, u8, u16)| n == name && *p == proto::UDP && *port == PORT;
            self.model.pods.values().any(|p| p.ports.iter().any(is))
        };
        rule.ports.is_empty()
            || rule.ports.iter().filter(|p| p.protocol == Protocol::Udp).any(|p| match &p.port {
                PortSpec::Any => true,
                PortSpec::Range(first, last) => (*first..=*last).contains(&PORT),
                PortSpec::Named(name) => named(name),
            })
    }
}
