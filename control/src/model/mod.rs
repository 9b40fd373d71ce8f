//! The world as the dataplane sees it: plain types, the same from every source.
//!
//! A source (folder of YAML, Kubernetes API) turns its objects into these; nothing behind the source
//! knows k8s-openapi.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::Mac;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::lines::Lines;
pub mod policy;
pub mod selector;
pub mod service;
pub mod table;

pub use policy::{IpBlock, NamespaceScope, NetworkPolicy, Peer, PortMatch, PortSpec, Protocol, Rule};
pub use selector::{Operator, Requirement, Selector};
pub use service::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServiceKind, ServicePort, TrafficDistribution,
};
pub use table::Table;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace (`default` when the manifest has none).
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where an object was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A line of a manifest.
    File {
        /// Path as given.
        path: Arc<str>,
        /// Line of the object's first key, from 1; 0 when the file as a whole is meant.
        line: u32,
        /// Lines of the object's parts, kept for kinds whose rules are cited one by one.
        parts: Option<Arc<Lines>>,
    },
    /// The Kubernetes API.
    Api,
    /// A certain object of the Kubernetes API: where something about it is wrong.
    ApiObject {
        /// Its kind, as `NetworkPolicy`.
        kind: &'static str,
        /// Its name; the namespace is empty for kinds that live in none.
        name: ObjectName,
    },
    /// No object: other objects imply it (a namespace by what lives in it).
    Implied,
}

impl Origin {
    /// The API: what objects that are read back from saved state come from.
    pub(crate) fn api() -> Self {
        Origin::Api
    }

    /// The same, naming the object where the place alone does not tell it.
    pub(crate) fn of(&self, kind: &'static str, name: &ObjectName) -> Self {
        match self {
            Origin::Api => Origin::ApiObject { kind, name: name.clone() },
            other => other.clone(),
        }
    }

    /// Kind of the object, as `NetworkPolicy`, where that is told.
    #[must_use]
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            Origin::ApiObject { kind, .. } => Some(kind),
            Origin::File { .. } | Origin::Api | Origin::Implied => None,
        }
    }

    /// Where a part of the object is, as `spec.ingress[1]`: the same file with the part's line, if lines are kept.
    #[must_use]
    pub fn part(&self, path: &str) -> Origin {
        match self {
            Origin::File { path: file, line, parts } => {
                let line = parts.as_ref().map_or(*line, |p| p.at(path));
                Origin::File { path: file.clone(), line, parts: None }
            }
            other => other.clone(),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::File { path, line: 0, .. } => f.write_str(path),
            Origin::File { path, line, .. } => write!(f, "{path}:{line}"),
            Origin::Api => f.write_str("api"),
            Origin::ApiObject { kind, name } if name.namespace.is_empty() => {
                write!(f, "{kind} {}", name.name)
            }
            Origin::ApiObject { kind, name } => write!(f, "{kind} {name}"),
            Origin::Implied => f.write_str("implied"),
        }
    }
}

/// Everything a source knows. A copy shares all that neither changes after: see [`Table`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Nodes by name.
    pub nodes: Table<String, Node>,
    /// Namespaces by name; `kubernetes.io/metadata.name` is always among the labels.
    pub namespaces: Table<String, Namespace>,
    /// Pods.
    pub pods: Table<ObjectName, Pod>,
    /// NetworkPolicies.
    pub policies: Table<ObjectName, NetworkPolicy>,
    /// Services.
    pub services: Table<ObjectName, Service>,
    /// EndpointSlices.
    pub slices: Table<ObjectName, EndpointSlice>,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` of type InternalIP, in order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` (or `podCIDR`).
    pub pod_cidrs: Vec<IpNet>,
    /// IPv4 address of its VTEP, if an annotation names another than its InternalIP.
    pub vtep_v4: Option<IpAddr>,
    /// IPv6 address of its VTEP, if an annotation names another than its InternalIP.
    pub vtep_v6: Option<IpAddr>,
    /// Addresses that it has inside the overlay, by annotations: its processes speak to pods from them.
    pub tunnel_addresses: Vec<IpAddr>,
    /// MAC address of its VTEP for IPv4 outer headers, if an annotation names one.
    #[serde(with = "mac")]
    pub vtep_mac_v4: Option<Mac>,
    /// MAC address of its VTEP for IPv6 outer headers, if an annotation names one.
    #[serde(with = "mac")]
    pub vtep_mac_v6: Option<Mac>,
    /// Where it was read.
    #[serde(skip, default = "Origin::api")]
    pub origin: Origin,
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Where it was read.
    #[serde(skip, default = "Origin::api")]
    pub origin: Origin,
}

/// A port of a node that is a pod's (`hostPort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// Address of the node that has it; `None` is every one.
    pub address: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the node.
    pub port: u16,
    /// Port of the container.
    pub target: u16,
}

impl HostPort {
    /// Whether an address of the node has it: an unspecified one stands for all of its family.
    #[must_use]
    pub fn is_on(&self, address: IpAddr) -> bool {
        self.address
            .is_none_or(|own| own == address || own.is_unspecified() && own.is_ipv4() == address.is_ipv4())
    }
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`: tells a pod from an older one of the same name; manifests need not have it.
    pub uid: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `status.podIPs` (or `podIP`).
    pub addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Phase Succeeded or Failed: it no longer owns its addresses.
    pub finished: bool,
    /// Named ports of its containers: (name, protocol number, port).
    pub ports: BTreeSet<(String, u8, u16)>,
    /// Ports of its containers that the node's addresses have too; none for one on the host network.
    pub host_ports: BTreeSet<HostPort>,
    /// Host side of its veth, by annotation `fastpath.io/interface`.
    pub interface: Option<String>,
    /// MAC address of its side of the veth, by annotation `fastpath.io/mac`.
    #[serde(with = "mac")]
    pub mac: Option<Mac>,
    /// Path of its network namespace, by annotation `fastpath.io/netns`.
    pub netns: Option<std::path::PathBuf>,
    /// Where it was read.
    #[serde(skip, default = "Origin::api")]
    pub origin: Origin,
}

/// MAC addresses as text: the dataplane's own type knows nothing of serde.
mod mac {
    use fastpath::packet::Mac;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(mac: &Option<Mac>, to: S) -> Result<S::Ok, S::Error> {
        mac.map(|m| m.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mac>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|t| t.parse().map_err(D::Error::custom)).transpose()
    }
}
