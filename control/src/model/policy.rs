//! NetworkPolicy (`networking.k8s.io/v1`), validated and with its defaults filled in.
#![forbid(unsafe_code)]

use std::fmt;

use fastpath::packet::proto;
use fastpath::tables::policy::Direction;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ObjectName, Origin, Selector};

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: ObjectName,
    /// Pods of its namespace that it isolates.
    pub pod_selector: Selector,
    /// `policyTypes` has Ingress (always so by default).
    pub isolates_ingress: bool,
    /// `policyTypes` has Egress (by default: when there are egress rules).
    pub isolates_egress: bool,
    /// Ingress rules in the order written; without effect when `isolates_ingress` is false.
    pub ingress: Vec<Rule>,
    /// Egress rules in the order written; without effect when `isolates_egress` is false.
    pub egress: Vec<Rule>,
    /// Some of it cannot be honoured and is left out: it isolates, and allows no more than the rest of it says.
    #[serde(default)]
    pub closed: bool,
    /// Where it was read.
    #[serde(skip, default = "Origin::api")]
    pub origin: Origin,
}

impl NetworkPolicy {
    /// The rules that allow traffic in this direction, `None` when the policy does not isolate for it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.isolates_ingress.then_some(&self.ingress[..]),
            Direction::Egress => self.isolates_egress.then_some(&self.egress[..]),
        }
    }
}

/// One ingress or egress rule: allows what matches one of its peers and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `from` or `to`; empty means every peer.
    pub peers: Vec<Peer>,
    /// `ports`; empty means every port of every protocol.
    pub ports: Vec<PortMatch>,
    /// Where the rule was read.
    #[serde(skip, default = "Origin::api")]
    pub origin: Origin,
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Peer {
    /// Pods by labels; never pods on the host network.
    Pods {
        /// Their namespaces.
        namespaces: NamespaceScope,
        /// Their labels.
        pods: Selector,
    },
    /// Addresses, whoever owns them.
    Block(IpBlock),
}

/// In which namespaces a peer's pods are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NamespaceScope {
    /// The policy's own (no `namespaceSelector`).
    Own,
    /// Those the `namespaceSelector` selects.
    Matching(Selector),
}

/// `ipBlock`: a network without some of its subnets. Host bits are zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IpBlock {
    /// The network.
    pub cidr: IpNet,
    /// Its subnets that do not match.
    pub except: Vec<IpNet>,
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMatch {
    /// Protocol (TCP by default).
    pub protocol: Protocol,
    /// Destination ports of it.
    pub port: PortSpec,
}

/// The ports of a [`PortMatch`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PortSpec {
    /// Every port of the protocol.
    Any,
    /// `port` to `endPort`, both included.
    Range(u16, u16),
    /// What the name means on the destination pod.
    Named(String),
}

/// The protocols that policies and services name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => proto::TCP,
            Protocol::Udp => proto::UDP,
            Protocol::Sctp => proto::SCTP,
        }
    }

    /// From an IP protocol number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == number)
    }

    /// From the API's name: `TCP`, `UDP` or `SCTP`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.name() == name)
    }

    /// The API's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ipBlock {}", self.cidr)?;
        for (i, e) in self.except.iter().enumerate() {
            write!(f, "{}{e}", if i == 0 { " except " } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Pods { namespaces: NamespaceScope::Own, pods } => write!(f, "pods {pods}"),
            Peer::Pods { namespaces: NamespaceScope::Matching(ns), pods } => {
                write!(f, "pods {pods} in namespaces {ns}")
            }
            Peer::Block(block) => block.fmt(f),
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol;
        match &self.port {
            PortSpec::Any => write!(f, "{protocol}"),
            PortSpec::Range(a, b) if a == b => write!(f, "{protocol} {a}"),
            PortSpec::Range(a, b) => write!(f, "{protocol} {a}-{b}"),
            PortSpec::Named(name) => write!(f, "{protocol} {name:?}"),
        }
    }
}
