//! The routes into the pair: one for each prefix, through the pods' gateway.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use fastpath::snapshot::{GATEWAY_V4, GATEWAY_V6};
use ipnet::IpNet;

use super::{HostPair, HostPlan, TABLE_PODS, TABLE_PORTS, ignoring_no_v6};
use crate::netdev::decode::{ROUTE_HEADER, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTA_TABLE};
use crate::netdev::neighbor::PROTOCOL;
use crate::netdev::wire::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, RTM_DELROUTE, RTM_NEWROUTE, Request, family, ip_bytes,
};
use crate::netdev::{Error, NetView};

// linux/rtnetlink.h
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTNH_F_ONLINK: u32 = 4;

/// How a prefix is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    mtu: Option<u32>,
}

/// The gateway of a family.
fn gateway(ipv4: bool) -> IpAddr {
    if ipv4 { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

/// The routes that a plan needs, by table and prefix.
pub(super) fn wanted(plan: &HostPlan) -> BTreeMap<(u32, IpNet), Spec> {
    let spec = |ipv4: bool, gateway| Spec { gateway, source: plan.source(ipv4), mtu: plan.path_mtu };
    let through = |ipv4: bool| spec(ipv4, Some(gateway(ipv4)));
    let mut out = BTreeMap::new();
    for ipv4 in [true, false].into_iter().filter(|v4| plan.source(*v4).is_some()) {
        // Answers to what comes from the gateway.
        out.insert((TABLE_PODS, IpNet::from(gateway(ipv4))), spec(ipv4, None));
        let nets = plan.nets.iter().filter(|n| n.addr().is_ipv4() == ipv4);
        out.extend(nets.map(|n| ((TABLE_PODS, n.trunc()), through(ipv4))));
        let shared = plan.shared.keys().filter(|a| a.is_ipv4() == ipv4);
        out.extend(shared.map(|a| ((TABLE_PORTS, IpNet::from(*a)), through(ipv4))));
    }
    out
}

impl HostPair {
    pub(super) fn sync_routes(&mut self, plan: &HostPlan, view: &NetView) -> Vec<Error> {
        let mut errors = Vec::new();
        let wanted = wanted(plan);
        let ours = |table| matches!(table, TABLE_PODS | TABLE_PORTS);
        let there: Vec<(u32, IpNet)> = view
            .routes
            .iter()
            .filter(|r| ours(r.table) && r.hops.iter().all(|h| h.link == self.index))
            .map(|r| (r.table, r.dst))
            .collect();
        for (key, spec) in &wanted {
            // The kernel takes routes away with a device's or an address's state, without asking.
            if self.routes.get(key) == Some(spec) && there.contains(key) {
                continue;
            }
            match self.put(*key, spec) {
                Ok(()) => drop(self.routes.insert(*key, spec.clone())),
                Err(e) => errors.push(e),
            }
        }
        let old =
            there.into_iter().chain(self.routes.keys().copied()).filter(|key| !wanted.contains_key(key));
        let mut old: Vec<(u32, IpNet)> = old.collect();
        old.sort_unstable();
        old.dedup();
        for key in old {
            match self.take(key) {
                Ok(()) => drop(self.routes.remove(&key)),
                Err(e) => errors.push(e),
            }
        }
        errors
    }

    fn put(&mut self, (table, net): (u32, IpNet), spec: &Spec) -> Result<(), Error> {
        let flags = if spec.gateway.is_some() { RTNH_F_ONLINK } else { 0 };
        let scope = if spec.gateway.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        let mut request =
            self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, (table, net), scope, flags);
        if let Some(gateway) = spec.gateway {
            request.attr(RTA_GATEWAY, &ip_bytes(gateway));
        }
        if let Some(source) = spec.source {
            request.attr(RTA_PREFSRC, &ip_bytes(source));
        }
        if let Some(mtu) = spec.mtu {
            request.nest(RTA_METRICS, |m| {
                m.u32(RTAX_MTU, mtu);
            });
        }
        let what = || format!("route {net} into '{}'", self.name);
        ignoring_no_v6(net.addr().is_ipv4(), self.netlink.call(what, request, |_| {}))
    }

    fn take(&mut self, (table, net): (u32, IpNet)) -> Result<(), Error> {
        // RT_SCOPE_NOWHERE: of any scope.
        let request = self.request(RTM_DELROUTE, 0, (table, net), u8::MAX, 0);
        let what = || format!("remove the route of {net} into '{}'", self.name);
        match self.netlink.call(what, request, |_| {}) {
            Err(e) if e.errno() == Some(nix::libc::ESRCH) => Ok(()),
            done => ignoring_no_v6(net.addr().is_ipv4(), done),
        }
    }

    fn request(&self, kind: u16, flags: u16, (table, net): (u32, IpNet), scope: u8, hop: u32) -> Request {
        let mut header = [0; ROUTE_HEADER];
        let [a, b, c, d] = hop.to_ne_bytes();
        let fields =
            [family(net.addr()), net.prefix_len(), 0, 0, 0, PROTOCOL, scope, RTN_UNICAST, a, b, c, d];
        header.copy_from_slice(&fields);
        let mut request = Request::new(kind, flags | NLM_F_ACK, &header);
        request.attr(RTA_DST, &ip_bytes(net.addr())).u32(RTA_TABLE, table).u32(RTA_OIF, self.index);
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_without_a_source_has_no_routes() {
        let plan = HostPlan {
            path_mtu: Some(1450),
            sources: vec!["192.0.2.1".parse().unwrap()],
            nets: ["10.0.0.9/24", "fd00::/64"].map(|n| n.parse().unwrap()).into(),
            shared: [("192.0.2.1".parse().unwrap(), true)].into(),
            ..HostPlan::default()
        };
        let wanted = wanted(&plan);
        let keys: Vec<String> = wanted.keys().map(|(table, net)| format!("{table} {net}")).collect();
        assert_eq!(keys, ["64250 10.0.0.0/24", "64250 169.254.1.1/32", "64251 192.0.2.1/32"]);
        assert!(
            wanted.values().all(|s| s.source == Some("192.0.2.1".parse().unwrap()) && s.mtu == Some(1450))
        );
    }
}
