//! Service and EndpointSlice.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::{FieldError, address, cidr, object_name, port, protocol};
use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, ObjectName, Origin, Service, ServiceKind, ServicePort,
    TrafficDistribution,
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` when missing, and its largest value.
const AFFINITY_SECONDS: (u32, u32) = (10_800, 86_400);

/// A `v1` Service with its defaults filled in.
///
/// # Errors
/// The first field that the API server's validation would refuse.
pub fn service(object: &core::Service, line_of: impl Fn(&str) -> Origin) -> Result<Service, FieldError> {
    let name = object_name(&object.metadata)?;
    let spec = object.spec.as_ref().ok_or_else(|| FieldError::new("spec", "is missing"))?;
    let headless = spec.cluster_ip.as_deref() == Some("None")
        || spec.cluster_ips.as_ref().is_some_and(|ips| ips.iter().any(|ip| ip == "None"));
    let kind = match spec.type_.as_deref() {
        None | Some("ClusterIP") if headless => ServiceKind::Headless,
        None | Some("ClusterIP") => ServiceKind::ClusterIp,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => ServiceKind::ExternalName,
        Some(other) => {
            let reason = format!("{other:?} is not one of ClusterIP, NodePort, LoadBalancer, ExternalName");
            return Err(FieldError::new("spec.type", reason));
        }
    };
    if headless && matches!(kind, ServiceKind::NodePort | ServiceKind::LoadBalancer) {
        return Err(FieldError::new("spec.clusterIP", "may not be None for this type"));
    }
    let ports = ports(spec.ports.as_deref().unwrap_or_default(), kind)?;
    let named = matches!(kind, ServiceKind::Headless | ServiceKind::ExternalName);
    let balanced = kind == ServiceKind::LoadBalancer;
    let source_ranges = spec.load_balancer_source_ranges.iter().flatten().enumerate();
    Ok(Service {
        name,
        kind,
        cluster_ips: if named { Vec::new() } else { cluster_ips(spec)? },
        external_ips: if named { Vec::new() } else { addresses(&spec.external_ips, "spec.externalIPs")? },
        load_balancer_ips: if balanced {
            load_balancer_ips(spec, object.status.as_ref())?
        } else {
            Vec::new()
        },
        load_balancer_source_ranges: source_ranges
            .map(|(i, text)| cidr(text.trim(), &format!("spec.loadBalancerSourceRanges[{i}]")))
            .collect::<Result<_, _>>()?,
        ports,
        affinity_seconds: affinity(spec)?,
        external_local: local(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy")?,
        internal_local: local(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy")?,
        health_check_node_port: spec
            .health_check_node_port
            .filter(|p| *p != 0)
            .map(|p| port(p, "spec.healthCheckNodePort"))
            .transpose()?,
        traffic_distribution: match spec.traffic_distribution.as_deref() {
            None => None,
            Some("PreferClose" | "PreferSameZone") => Some(TrafficDistribution::PreferSameZone),
            Some("PreferSameNode") => Some(TrafficDistribution::PreferSameNode),
            Some(other) => {
                let reason = format!("{other:?} is not one of PreferClose, PreferSameZone, PreferSameNode");
                return Err(FieldError::new("spec.trafficDistribution", reason));
            }
        },
        origin: line_of(""),
    })
}

fn ports(entries: &[core::ServicePort], kind: ServiceKind) -> Result<Vec<ServicePort>, FieldError> {
    let mut out = Vec::<ServicePort>::new();
    for (i, entry) in entries.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = entry.name.clone().unwrap_or_default();
        if name.is_empty() && entries.len() > 1 {
            return Err(FieldError::new(
                format!("{path}.name"),
                "is missing: with several ports each has a name",
            ));
        }
        if out.iter().any(|p| p.name == name) {
            return Err(FieldError::new(format!("{path}.name"), format!("{name:?} is there twice")));
        }
        let protocol = protocol(entry.protocol.as_deref(), &format!("{path}.protocol"))?;
        let number = port(entry.port, &format!("{path}.port"))?;
        if out.iter().any(|p| (p.protocol, p.port) == (protocol, number)) {
            return Err(FieldError::new(
                format!("{path}.port"),
                format!("{protocol} {number} is there twice"),
            ));
        }
        let exposed = matches!(kind, ServiceKind::NodePort | ServiceKind::LoadBalancer);
        let node_port = entry.node_port.filter(|p| *p != 0 && exposed);
        let node_port = node_port.map(|p| port(p, &format!("{path}.nodePort"))).transpose()?;
        out.push(ServicePort { name, protocol, port: number, node_port });
    }
    Ok(out)
}

fn cluster_ips(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, FieldError> {
    let mut out = addresses(&spec.cluster_ips, "spec.clusterIPs")?;
    if let Some(first) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()) {
        let first = address(first, "spec.clusterIP")?;
        match out.first() {
            Some(other) if *other != first => {
                return Err(FieldError::new("spec.clusterIPs", format!("must begin with clusterIP {first}")));
            }
            Some(_) => {}
            None => out.push(first),
        }
    }
    if out.len() > 2 || matches!(&out[..], [a, b] if a.is_ipv4() == b.is_ipv4()) {
        return Err(FieldError::new("spec.clusterIPs", "may have one address of each family"));
    }
    Ok(out)
}

fn addresses(list: &Option<Vec<String>>, path: &str) -> Result<Vec<IpAddr>, FieldError> {
    let list = list.iter().flatten().enumerate().filter(|(_, text)| !text.is_empty());
    list.map(|(i, text)| address(text, &format!("{path}[{i}]"))).collect()
}

fn load_balancer_ips(
    spec: &core::ServiceSpec,
    status: Option<&core::ServiceStatus>,
) -> Result<Vec<IpAddr>, FieldError> {
    let mut out = Vec::new();
    let ingress = status.and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_deref());
    for (i, entry) in ingress.unwrap_or_default().iter().enumerate() {
        // With `ipMode: Proxy` the balancer hands packets on to a node port, so its address never reaches us.
        let proxied = entry.ip_mode.as_deref() == Some("Proxy");
        if let Some(ip) = entry.ip.as_deref().filter(|ip| !ip.is_empty() && !proxied) {
            out.push(address(ip, &format!("status.loadBalancer.ingress[{i}].ip"))?);
        }
    }
    if let Some(ip) = spec.load_balancer_ip.as_deref().filter(|ip| !ip.is_empty() && ingress.is_none()) {
        out.push(address(ip, "spec.loadBalancerIP")?);
    }
    out.dedup();
    Ok(out)
}

fn affinity(spec: &core::ServiceSpec) -> Result<Option<u32>, FieldError> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => Ok(None),
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            let (default, max) = AFFINITY_SECONDS;
            let Some(seconds) = config.and_then(|c| c.timeout_seconds) else { return Ok(Some(default)) };
            u32::try_from(seconds).ok().filter(|s| (1..=max).contains(s)).map(Some).ok_or_else(|| {
                let reason = format!("{seconds} is not a number of seconds from 1 to {max}");
                FieldError::new("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason)
            })
        }
        Some(other) => {
            Err(FieldError::new("spec.sessionAffinity", format!("{other:?} is not one of ClientIP, None")))
        }
    }
}

fn local(policy: Option<&str>, path: &str) -> Result<bool, FieldError> {
    match policy {
        None | Some("Cluster" | "") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(FieldError::new(path, format!("{other:?} is not one of Cluster, Local"))),
    }
}

/// A `discovery.k8s.io/v1` EndpointSlice.
///
/// # Errors
/// The first field that the API server's validation would refuse.
pub fn endpoint_slice(
    object: &discovery::EndpointSlice,
    line_of: impl Fn(&str) -> Origin,
) -> Result<EndpointSlice, FieldError> {
    let name = object_name(&object.metadata)?;
    let label = object.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)).filter(|s| !s.is_empty());
    let service = label.map(|s| ObjectName { namespace: name.namespace.clone(), name: s.clone() });
    let ipv4 = match &object.address_type[..] {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        "FQDN" => None,
        other => {
            let reason = format!("{other:?} is not one of IPv4, IPv6, FQDN");
            return Err(FieldError::new("addressType", reason));
        }
    };
    let mut ports = Vec::<EndpointPort>::new();
    for (i, entry) in object.ports.iter().flatten().enumerate() {
        let path = format!("ports[{i}]");
        let name = entry.name.clone().unwrap_or_default();
        if ports.iter().any(|p| p.name == name) {
            return Err(FieldError::new(format!("{path}.name"), format!("{name:?} is there twice")));
        }
        let protocol = protocol(entry.protocol.as_deref(), &format!("{path}.protocol"))?;
        if let Some(number) = entry.port {
            ports.push(EndpointPort { name, protocol, port: port(number, &format!("{path}.port"))? });
        }
    }
    let mut endpoints = Vec::new();
    for (i, entry) in object.endpoints.iter().flatten().enumerate() {
        if let Some(ipv4) = ipv4 {
            endpoints.push(endpoint(entry, ipv4, &name.namespace, &format!("endpoints[{i}]"))?);
        }
    }
    Ok(EndpointSlice { name, service, ipv4, ports, endpoints, origin: line_of("") })
}

fn endpoint(
    entry: &discovery::Endpoint,
    ipv4: bool,
    namespace: &str,
    path: &str,
) -> Result<Endpoint, FieldError> {
    let at = format!("{path}.addresses");
    let first = entry.addresses.first().ok_or_else(|| FieldError::new(&at, "must have an address"))?;
    let address = address(first, &format!("{at}[0]"))?;
    if address.is_ipv4() != ipv4 {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        return Err(FieldError::new(
            format!("{at}[0]"),
            format!("{first} is not {family}, the slice's addressType"),
        ));
    }
    let conditions = entry.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let target = entry.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
    let pod = target.and_then(|t| {
        let namespace = t.namespace.clone().unwrap_or_else(|| namespace.to_owned());
        Some(ObjectName { namespace, name: t.name.clone()? })
    });
    let hints = entry.hints.as_ref();
    let zones = hints.and_then(|h| h.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|h| h.for_nodes.as_deref()).unwrap_or_default();
    Ok(Endpoint {
        address,
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: entry.node_name.clone(),
        zone: entry.zone.clone(),
        for_zones: zones.iter().map(|z| z.name.clone()).collect(),
        for_nodes: nodes.iter().map(|n| n.name.clone()).collect(),
        pod,
    })
}
