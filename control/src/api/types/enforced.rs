//! What policies and services do, as the API tells it.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::explain::Outcome;

/// A rule in force for a pod of this node, or an isolation, and what it has counted since it came into force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// `ns/name`: the rule's policy; of an isolation the first, by name, of the policies that isolate.
    pub policy: String,
    /// The rule's policy, or all that isolate the same pods.
    pub policies: Vec<String>,
    /// `ingress` or `egress`.
    pub direction: String,
    /// Its index in the policy's list for this direction, from 0; `None` for an isolation.
    pub rule: Option<usize>,
    /// `allow` for a rule, `deny` for an isolation.
    pub verdict: Outcome,
    /// In words what decides: `rule 0`, or `isolated: no policy allows`.
    pub decides: String,
    /// Packets of the flows it allowed, both directions; of an isolation the packets it denied.
    pub packets: u64,
    /// Their bytes, as IP packets.
    pub bytes: u64,
    /// Flows it allowed; of an isolation the packets that would have opened one.
    pub flows: u64,
    /// `FILE:LINE` of the rule, or of the first of the policies that isolate.
    pub origin: String,
}

/// One port of a service in one family, by one kind of address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// `ns/name`.
    pub service: String,
    /// Name of its port; empty when it has none.
    pub port_name: String,
    /// `ClusterIP`, `externalIP`, `LoadBalancer` or `NodePort`.
    pub kind: String,
    /// Where it is reached; for node ports the addresses of this node.
    pub addresses: Vec<IpAddr>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port it is reached at.
    pub port: u16,
    /// Number of its backends that are ready.
    pub ready: usize,
    /// Its backends.
    pub backends: Vec<BackendRow>,
    /// Seconds that a client stays with its backend (`sessionAffinity: ClientIP`).
    pub affinity_s: Option<u32>,
    /// Only backends of this node: `internalTrafficPolicy: Local` of a cluster IP; for the others
    /// `externalTrafficPolicy: Local`, which is for clients from outside.
    pub local: bool,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRow {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Node it is on, if known.
    pub node: Option<String>,
    /// `ready`, `terminating` or `not-ready`.
    pub state: String,
    /// Takes new connections now.
    pub used: bool,
}

/// What denied the packets of a drop reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropDetail {
    /// In words: `isolated: no policy allows (ns/a, ns/b)`.
    pub detail: String,
    /// Packets it denied.
    pub packets: u64,
    /// `FILE:LINE` of the first of the policies.
    pub origin: String,
}
