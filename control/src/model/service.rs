//! Services (`v1`) and EndpointSlices (`discovery.k8s.io/v1`).
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ObjectName, Origin, Protocol};

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// What kind of frontends it has.
    pub kind: ServiceKind,
    /// `clusterIPs` (or `clusterIP`), at most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer.ingress` with `ipMode` VIP (the default), and `loadBalancerIP`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; empty means every client.
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`: its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// `trafficDistribution`.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Where it was read.
    #[serde(skip, default = "Origin::api")]
    pub origin: Origin,
}

impl Service {
    /// Every address of its own: `clusterIPs`, `externalIPs`, load balancers'.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cluster_ips.iter().chain(&self.external_ips).chain(&self.load_balancer_ips).copied()
    }
}

/// What kind of frontends a Service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceKind {
    /// `type: ClusterIP` with an address.
    ClusterIp,
    /// `clusterIP: None`: names only, no frontend.
    Headless,
    /// `type: NodePort`.
    NodePort,
    /// `type: LoadBalancer`.
    LoadBalancer,
    /// `type: ExternalName`: a DNS alias, no frontend.
    ExternalName,
}

/// `trafficDistribution` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TrafficDistribution {
    /// `PreferClose` or `PreferSameZone`: endpoints hinted for the client's zone.
    PreferSameZone,
    /// `PreferSameNode`: endpoints hinted for the client's node.
    PreferSameNode,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name; empty when the Service has one unnamed port. Endpoint slices are matched by it.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of its addresses.
    pub port: u16,
    /// Port on every node address.
    pub node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// The Service it belongs to: label `kubernetes.io/service-name`.
    pub service: Option<ObjectName>,
    /// `addressType`: `true` for IPv4, `false` for IPv6, `None` for FQDN (which carries no backends).
    pub ipv4: Option<bool>,
    /// Ports, already resolved to numbers. A port without a number is left out.
    pub ports: Vec<EndpointPort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Where it was read.
    #[serde(skip, default = "Origin::api")]
    pub origin: Origin,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Name: that of the Service's port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number on the endpoint.
    pub port: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address (the first of `addresses`: the others are to be ignored, by the API's text).
    pub address: IpAddr,
    /// `conditions.ready`; unknown counts as ready.
    pub ready: bool,
    /// `conditions.serving`; unknown counts as `ready` does.
    pub serving: bool,
    /// `conditions.terminating`; unknown counts as not.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<String>,
    /// `zone`.
    pub zone: Option<String>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
    /// The Pod behind it: `targetRef` of kind Pod.
    pub pod: Option<ObjectName>,
}
