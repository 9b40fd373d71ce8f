//! The kinds of objects we know, and each one's way into the model.
//!
//! To add a kind: a function from [`Document`] to [`Object`], a row in [`KINDS`], a variant of [`Object`]
//! with its map in the model.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{Mac, proto};
use k8s_openapi::api::core::v1 as core;
use serde::de::DeserializeOwned;

use super::convert::{self, FieldError};
use super::document::{Document, Fault, Faults};
use super::{Problem, names};
use crate::model::{
    EndpointSlice, HostPort, Model, Namespace, NetworkPolicy, Node, ObjectName, Origin, Pod, Protocol,
    Service,
};

/// A kind of object.
#[derive(Debug)]
pub(super) struct Kind {
    /// API group; empty for the core group.
    pub(super) group: &'static str,
    /// API version we decode.
    pub(super) version: &'static str,
    /// Kind.
    pub(super) kind: &'static str,
    /// What the API's paths call it.
    pub(super) plural: &'static str,
    /// Whether objects of it live in a namespace.
    pub(super) namespaced: bool,
    /// Decodes one; warnings go to the second argument.
    pub(super) load: fn(&Document, &mut Vec<Problem>) -> Result<Object, Vec<Fault>>,
}

impl Kind {
    /// `apiVersion` of its objects.
    pub(super) fn api(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Every kind that is read; others are reported as ignored.
pub(super) const KINDS: &[Kind] = &[
    Kind { group: "", version: "v1", kind: "Node", plural: "nodes", namespaced: false, load: node },
    Kind {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        namespaced: false,
        load: namespace,
    },
    Kind { group: "", version: "v1", kind: "Pod", plural: "pods", namespaced: true, load: pod },
    Kind {
        group: "networking.k8s.io",
        version: "v1",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        namespaced: true,
        load: network_policy,
    },
    Kind { group: "", version: "v1", kind: "Service", plural: "services", namespaced: true, load: service },
    Kind {
        group: "discovery.k8s.io",
        version: "v1",
        kind: "EndpointSlice",
        plural: "endpointslices",
        namespaced: true,
        load: endpoint_slice,
    },
];

/// What identifies an object: kind, then namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: &'static str,
    pub(super) name: ObjectName,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name.name)
        } else {
            write!(f, "{} {}", self.kind, self.name)
        }
    }
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Node(Arc<Node>),
    Namespace(Arc<Namespace>),
    Pod(Arc<Pod>),
    NetworkPolicy(Arc<NetworkPolicy>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
}

impl Object {
    /// Where it was read.
    pub(super) fn origin(&self) -> &Origin {
        match self {
            Object::Node(o) => &o.origin,
            Object::Namespace(o) => &o.origin,
            Object::Pod(o) => &o.origin,
            Object::NetworkPolicy(o) => &o.origin,
            Object::Service(o) => &o.origin,
            Object::EndpointSlice(o) => &o.origin,
        }
    }

    /// The namespace it lives in.
    pub(super) fn namespace(&self) -> Option<&str> {
        match self {
            Object::Node(_) | Object::Namespace(_) => None,
            Object::Pod(o) => Some(&o.name.namespace),
            Object::NetworkPolicy(o) => Some(&o.name.namespace),
            Object::Service(o) => Some(&o.name.namespace),
            Object::EndpointSlice(o) => Some(&o.name.namespace),
        }
    }

    /// Puts it into the model.
    pub(super) fn insert(&self, model: &mut Model) {
        match self {
            Object::Node(o) => drop(model.nodes.insert(o.name.clone(), o.clone())),
            Object::Namespace(o) => drop(model.namespaces.insert(o.name.clone(), o.clone())),
            Object::Pod(o) => drop(model.pods.insert(o.name.clone(), o.clone())),
            Object::NetworkPolicy(o) => drop(model.policies.insert(o.name.clone(), o.clone())),
            Object::Service(o) => drop(model.services.insert(o.name.clone(), o.clone())),
            Object::EndpointSlice(o) => drop(model.slices.insert(o.name.clone(), o.clone())),
        }
    }
}

/// Host side of a pod's veth.
const INTERFACE: &str = "fastpath.io/interface";
/// Path of a pod's network namespace.
const NETNS: &str = "fastpath.io/netns";
/// Uid of the static pod that a Pod object stands for, set by the kubelet.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// MAC address of a pod's side of its veth.
const POD_MAC: &str = "fastpath.io/mac";
/// MAC address of a node's VTEP, whatever the outer family.
const VTEP_MAC: &str = "fastpath.io/vtep-mac";
/// The same by Calico and flannel, by outer family.
const CALICO_MAC_V4: &str = "projectcalico.org/VXLANTunnelMACAddr";
const CALICO_MAC_V6: &str = "projectcalico.org/VXLANTunnelMACAddrV6";
const FLANNEL_V4: &str = "flannel.alpha.coreos.com/backend-data";
const FLANNEL_V6: &str = "flannel.alpha.coreos.com/backend-v6-data";

/// Address of a node's VTEP, as Calico writes it (a CIDR) and as flannel does (`-overwrite` is the administrator's).
const CALICO_ADDRESS: [&str; 2] = ["projectcalico.org/IPv4Address", "projectcalico.org/IPv6Address"];
const FLANNEL_ADDRESS: [[&str; 2]; 2] = [
    ["flannel.alpha.coreos.com/public-ip-overwrite", "flannel.alpha.coreos.com/public-ip"],
    ["flannel.alpha.coreos.com/public-ipv6-overwrite", "flannel.alpha.coreos.com/public-ipv6"],
];
/// Addresses of Calico's VXLAN devices: what the node's own processes speak to pods of other nodes from.
const CALICO_TUNNEL: [&str; 2] =
    ["projectcalico.org/IPv4VXLANTunnelAddr", "projectcalico.org/IPv6VXLANTunnelAddr"];

const ADDRESS: &str = "an IPv4 or IPv6 address";

fn node(doc: &Document, notes: &mut Vec<Problem>) -> Result<Object, Vec<Fault>> {
    let object: core::Node = doc.decode(notes).map_err(|f| vec![f])?;
    let mut faults = doc.faults();
    let name = faults.name(false).name;
    let status = object.status.unwrap_or_default();
    let mut addresses = Vec::new();
    for (i, a) in status.addresses.into_iter().flatten().enumerate() {
        if a.type_ == "InternalIP" {
            let part = format!("status.addresses[{i}].address");
            addresses.extend(unicast(&mut faults, &part, &a.address).filter(|a| !addresses.contains(a)));
        }
    }
    let spec = object.spec.unwrap_or_default();
    let mut pod_cidrs = Vec::new();
    match spec.pod_cidrs.filter(|c| !c.is_empty()) {
        Some(cidrs) => {
            for (i, text) in cidrs.iter().enumerate() {
                pod_cidrs.extend(cidr(&mut faults, &format!("spec.podCIDRs[{i}]"), text));
            }
        }
        None => pod_cidrs.extend(spec.pod_cidr.and_then(|text| cidr(&mut faults, "spec.podCIDR", &text))),
    }
    let annotations = object.metadata.annotations.unwrap_or_default();
    let [vtep_v4, vtep_v6] = [true, false].map(|ipv4| vtep_address(&mut faults, &annotations, ipv4));
    let tunnel_addresses = tunnel_addresses(&mut faults, &annotations, &pod_cidrs);
    let text = |key: &str| annotations.get(key).map(String::as_str).filter(|t| !t.is_empty());
    let ours = text(VTEP_MAC).and_then(|t| mac(&mut faults, VTEP_MAC, t));
    let mut vtep = |calico: &str, flannel: &str| {
        // Each is checked also when another wins: a wrong one is never silent.
        let calico = text(calico).and_then(|t| mac(&mut faults, calico, t));
        let flannel = text(flannel).and_then(|t| flannel_mac(&mut faults, flannel, t));
        ours.or(calico).or(flannel)
    };
    let (vtep_mac_v4, vtep_mac_v6) = (vtep(CALICO_MAC_V4, FLANNEL_V4), vtep(CALICO_MAC_V6, FLANNEL_V6));
    let labels = object.metadata.labels.unwrap_or_default();
    let origin = doc.origin();
    let node = Node {
        name,
        labels,
        addresses,
        pod_cidrs,
        vtep_v4,
        vtep_v6,
        tunnel_addresses,
        vtep_mac_v4,
        vtep_mac_v6,
        origin,
    };
    faults.finish(Object::Node(Arc::new(node)))
}

/// The address of a node's VTEP that an annotation names, Calico's before flannel's. Each is checked also when another
/// wins: a wrong one is never silent.
fn vtep_address(
    faults: &mut Faults<'_>,
    annotations: &BTreeMap<String, String>,
    ipv4: bool,
) -> Option<IpAddr> {
    let index = usize::from(!ipv4);
    let calico = CALICO_ADDRESS.get(index).copied();
    let mut named = None;
    for key in calico.into_iter().chain(FLANNEL_ADDRESS.get(index).copied().into_iter().flatten()) {
        let Some(text) = annotations.get(key).filter(|t| !t.is_empty()) else { continue };
        // Calico's has the length of the node's subnet behind it.
        let address =
            if Some(key) == calico { text.split_once('/').map_or(&**text, |(a, _)| a) } else { text };
        let found = family_address(faults, key, address, ipv4);
        named = named.or(found);
    }
    named
}

/// The addresses that a node has inside the overlay: those of Calico's VXLAN devices, and of flannel's, which has the first
/// address of the node's subnet.
fn tunnel_addresses(
    faults: &mut Faults<'_>,
    annotations: &BTreeMap<String, String>,
    pod_cidrs: &[ipnet::IpNet],
) -> Vec<IpAddr> {
    let mut out = Vec::new();
    for (key, ipv4) in CALICO_TUNNEL.into_iter().zip([true, false]) {
        if let Some(text) = annotations.get(key).filter(|t| !t.is_empty()) {
            out.extend(family_address(faults, key, text, ipv4));
        }
    }
    for (key, ipv4) in [(FLANNEL_V4, true), (FLANNEL_V6, false)] {
        // Backends without a device of their own write "null".
        if annotations.get(key).is_some_and(|t| !t.is_empty() && t != "null") {
            let own = pod_cidrs.iter().filter(|net| net.addr().is_ipv4() == ipv4);
            out.extend(own.map(ipnet::IpNet::network).find(|a| !out.contains(a)));
        }
    }
    out
}

/// The address of an annotation, which is to be of a family.
fn family_address(faults: &mut Faults<'_>, key: &str, text: &str, ipv4: bool) -> Option<IpAddr> {
    let found = unicast(faults, &annotation(key), text)?;
    if found.is_ipv4() != ipv4 {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        faults.add(&annotation(key), format_args!("{text} is not an {family} address"));
        return None;
    }
    Some(found)
}

fn namespace(doc: &Document, notes: &mut Vec<Problem>) -> Result<Object, Vec<Fault>> {
    let object: core::Namespace = doc.decode(notes).map_err(|f| vec![f])?;
    let mut faults = doc.faults();
    let name = faults.name(false).name;
    if let Err(reason) = names::label(&name) {
        faults.add("metadata.name", reason);
    }
    let mut labels = object.metadata.labels.unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
    faults.finish(Object::Namespace(Arc::new(Namespace { name, labels, origin: doc.origin() })))
}

fn pod(doc: &Document, notes: &mut Vec<Problem>) -> Result<Object, Vec<Fault>> {
    let object: core::Pod = doc.decode(notes).map_err(|f| vec![f])?;
    let mut faults = doc.faults();
    let name = faults.name(true);
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let mut addresses = Vec::new();
    match status.pod_ips.filter(|ips| !ips.is_empty()) {
        Some(ips) => {
            for (i, ip) in ips.iter().enumerate() {
                let found = unicast(&mut faults, &format!("status.podIPs[{i}].ip"), &ip.ip);
                addresses.extend(found.filter(|a| !addresses.contains(a)));
            }
        }
        None => {
            let text = status.pod_ip.filter(|t| !t.is_empty());
            addresses.extend(text.and_then(|t| unicast(&mut faults, "status.podIP", &t)));
        }
    }
    let host_network = spec.host_network.unwrap_or(false);
    let (mut ports, mut host_ports) = (BTreeSet::new(), BTreeSet::new());
    for (i, container) in spec.containers.iter().enumerate() {
        for (j, port) in container.ports.iter().flatten().enumerate() {
            let part = format!("spec.containers[{i}].ports[{j}]");
            let protocol = protocol(&mut faults, &format!("{part}.protocol"), port.protocol.as_deref());
            let number = u16::try_from(port.container_port).ok().filter(|p| *p != 0);
            if number.is_none() {
                let reason = format_args!("{} is not a port from 1 to 65535", port.container_port);
                faults.add(&format!("{part}.containerPort"), reason);
            }
            let host = (!host_network).then(|| host_port(&mut faults, &part, port)).flatten();
            if let (Some((address, port)), Some(protocol), Some(target)) =
                (host, protocol.and_then(Protocol::from_number), number)
            {
                host_ports.insert(HostPort { address, protocol, port, target });
            }
            if let (Some(name), Some(protocol), Some(number)) = (&port.name, protocol, number) {
                ports.insert((name.clone(), protocol, number));
            }
        }
    }
    let annotations = object.metadata.annotations.unwrap_or_default();
    let interface = annotations.get(INTERFACE).cloned();
    let netns = annotations.get(NETNS).map(std::path::PathBuf::from);
    if netns.as_ref().is_some_and(|p| !p.is_absolute()) {
        faults.add(&annotation(NETNS), "must be an absolute path, as /run/netns/NAME");
    }
    if let Some(Err(reason)) = interface.as_deref().map(names::device) {
        faults.add(&annotation(INTERFACE), reason);
    }
    let mac = annotations.get(POD_MAC).and_then(|t| mac(&mut faults, POD_MAC, t));
    let pod = Pod {
        name,
        // A static pod's object only mirrors it: the runtime knows the pod by the kubelet's uid of it.
        uid: annotations.get(MIRROR).cloned().or(object.metadata.uid).filter(|uid| !uid.is_empty()),
        labels: object.metadata.labels.unwrap_or_default(),
        node: spec.node_name.filter(|n| !n.is_empty()),
        addresses,
        host_network,
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        ports,
        host_ports,
        interface,
        netns,
        mac,
        origin: doc.origin(),
    };
    faults.finish(Object::Pod(Arc::new(pod)))
}

/// Address and port of the node that a container's port has, if it names one.
fn host_port(
    faults: &mut Faults<'_>,
    part: &str,
    port: &core::ContainerPort,
) -> Option<(Option<IpAddr>, u16)> {
    // The API server writes 0 for none.
    let number = port.host_port.filter(|p| *p != 0)?;
    let wanted = u16::try_from(number).ok();
    if wanted.is_none() {
        faults.add(&format!("{part}.hostPort"), format_args!("{number} is not a port from 1 to 65535"));
    }
    let address = match port.host_ip.as_deref().filter(|t| !t.is_empty()) {
        Some(text) => Some(faults.parse::<IpAddr>(&format!("{part}.hostIP"), text, ADDRESS)?.to_canonical()),
        None => None,
    };
    Some((address, wanted?))
}

fn network_policy(doc: &Document, notes: &mut Vec<Problem>) -> Result<Object, Vec<Fault>> {
    let lines = doc.origin_with_parts();
    // The policy keeps the lines of its parts; a rule keeps its own.
    let line_of = |part: &str| if part.is_empty() { lines.clone() } else { lines.part(part) };
    converted(doc, notes, |o| convert::network_policy(o, line_of)).map(|o| Object::NetworkPolicy(Arc::new(o)))
}

fn service(doc: &Document, notes: &mut Vec<Problem>) -> Result<Object, Vec<Fault>> {
    converted(doc, notes, |o| convert::service(o, |_| doc.origin())).map(|o| Object::Service(Arc::new(o)))
}

fn endpoint_slice(doc: &Document, notes: &mut Vec<Problem>) -> Result<Object, Vec<Fault>> {
    let convert = |o: &_| convert::endpoint_slice(o, |_| doc.origin());
    converted(doc, notes, convert).map(|o| Object::EndpointSlice(Arc::new(o)))
}

/// Decodes an object and converts it by the functions of [`convert`].
fn converted<K: DeserializeOwned, T>(
    doc: &Document,
    notes: &mut Vec<Problem>,
    convert: impl FnOnce(&K) -> Result<T, FieldError>,
) -> Result<T, Vec<Fault>> {
    let object: K = doc.decode(notes).map_err(|f| vec![f])?;
    let mut faults = doc.faults();
    faults.name(true);
    // `convert` looks at the name too: what is wrong with it is said once.
    faults.finish(())?;
    convert(&object).map_err(|e| {
        let mut faults = doc.faults();
        faults.add(&e.path, &e.reason);
        faults.into_found()
    })
}

fn annotation(key: &str) -> String {
    format!("metadata.annotations.{key}")
}

/// An address that a pod or node can have.
fn unicast(faults: &mut Faults<'_>, part: &str, text: &str) -> Option<IpAddr> {
    let address: IpAddr = faults.parse(part, text, ADDRESS)?;
    let usable = match address {
        IpAddr::V4(a) => !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_broadcast()),
        IpAddr::V6(a) => {
            let link_local = a.segments()[0] & 0xffc0 == 0xfe80;
            let mapped = a.to_ipv4_mapped().is_some();
            !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || link_local || mapped)
        }
    };
    if !usable {
        faults.add(part, format_args!("{text} is not an address a packet can be routed to"));
    }
    usable.then_some(address)
}

/// A prefix; host bits are cleared, as the API server does.
fn cidr(faults: &mut Faults<'_>, part: &str, text: &str) -> Option<ipnet::IpNet> {
    faults.parse(part, text, "a CIDR, as 10.0.0.0/24 or fd00::/64").map(|net: ipnet::IpNet| net.trunc())
}

/// A MAC address a station can have.
fn mac(faults: &mut Faults<'_>, key: &str, text: &str) -> Option<Mac> {
    let part = annotation(key);
    let mac: Mac = match text.parse() {
        Ok(mac) => mac,
        Err(e) => {
            faults.add(&part, format_args!("{text:?} is {e}"));
            return None;
        }
    };
    if mac.0[0] & 1 != 0 || mac == Mac::default() {
        faults.add(&part, format_args!("{text} is not a unicast MAC address"));
        return None;
    }
    Some(mac)
}

/// The MAC address in flannel's `{"VNI":1,"VtepMAC":"..."}`; `null` when its backend has none.
fn flannel_mac(faults: &mut Faults<'_>, key: &str, text: &str) -> Option<Mac> {
    #[derive(serde::Deserialize)]
    struct BackendData {
        #[serde(rename = "VtepMAC")]
        vtep_mac: Option<String>,
    }
    match serde_json::from_str::<Option<BackendData>>(text) {
        Ok(data) => mac(faults, key, &data?.vtep_mac?),
        Err(_) => {
            faults.add(&annotation(key), format_args!("{text:?} is not JSON like {{\"VtepMAC\":\"...\"}}"));
            None
        }
    }
}

/// A transport protocol by its Kubernetes name; TCP when missing.
fn protocol(faults: &mut Faults<'_>, part: &str, text: Option<&str>) -> Option<u8> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(proto::TCP),
        "UDP" => Some(proto::UDP),
        "SCTP" => Some(proto::SCTP),
        other => {
            faults.add(part, format_args!("{other:?} is not one of TCP, UDP, SCTP"));
            None
        }
    }
}
