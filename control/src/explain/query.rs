//! What is asked: from whom, to whom, which protocol and port.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use fastpath::packet::proto;
use serde_json::Value;

use crate::api::Request;
use crate::model::ObjectName;

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// `NS/POD`.
    Pod(ObjectName),
    /// `NS/svc/NAME`.
    Service(ObjectName),
    /// An IPv4 or IPv6 address.
    Address(IpAddr),
}

impl std::str::FromStr for Target {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let name = |namespace: &str, name: &str| {
            let ok = !namespace.is_empty() && !name.is_empty();
            ok.then(|| ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
        };
        let mut parts = text.split('/');
        let target = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(address), None, None, None) => {
                // An IPv4 address in IPv6's clothes is the IPv4 address.
                address.parse().ok().map(|a: IpAddr| Target::Address(a.to_canonical()))
            }
            (Some(namespace), Some(pod), None, None) => name(namespace, pod).map(Target::Pod),
            (Some(namespace), Some("svc"), Some(service), None) => {
                name(namespace, service).map(Target::Service)
            }
            _ => None,
        };
        target.ok_or_else(|| QueryError::Target(text.to_owned()))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Pod(name) => name.fmt(f),
            Target::Service(name) => write!(f, "{}/svc/{}", name.namespace, name.name),
            Target::Address(address) => address.fmt(f),
        }
    }
}

/// The protocols that can be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP, or ICMPv6 between IPv6 addresses.
    Icmp,
}

impl Proto {
    /// IP protocol number in a family.
    #[must_use]
    pub fn number(self, ipv4: bool) -> u8 {
        match self {
            Proto::Tcp => proto::TCP,
            Proto::Udp => proto::UDP,
            Proto::Sctp => proto::SCTP,
            Proto::Icmp if ipv4 => proto::ICMP,
            Proto::Icmp => proto::ICMPV6,
        }
    }

    /// Its name in upper case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
            Proto::Sctp => "SCTP",
            Proto::Icmp => "ICMP",
        }
    }
}

impl std::str::FromStr for Proto {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let all = [Proto::Tcp, Proto::Udp, Proto::Sctp, Proto::Icmp];
        let found = all.into_iter().find(|p| p.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| QueryError::Protocol(text.to_owned()))
    }
}

/// A connection asked about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// Who opens it: a pod or an address.
    pub from: Target,
    /// To whom.
    pub to: Target,
    /// Protocol.
    pub proto: Proto,
    /// Destination port as the client sees it (a service's port, not its backend's); 0 for ICMP.
    pub dport: u16,
}

/// Why a query cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Not a line of JSON.
    #[error("not a JSON object like {{\"from\":…,\"to\":…,\"proto\":…,\"dport\":…}}: {0}")]
    Json(String),
    /// A field is not there.
    #[error("{0:?} is missing")]
    Missing(&'static str),
    /// A field is no text.
    #[error("{0:?} is not a string")]
    NotText(&'static str),
    /// No target.
    #[error("{0:?} is neither NS/POD nor NS/svc/NAME nor an address")]
    Target(String),
    /// No protocol.
    #[error("unknown protocol {0:?}: want tcp, udp, sctp or icmp")]
    Protocol(String),
    /// No port.
    #[error("port {0} is not a number from 1 to 65535")]
    Port(String),
    /// A connection comes from no service.
    #[error("{0} is a service: a connection comes from a pod or an address")]
    FromService(ObjectName),
    /// No such pod.
    #[error("no pod {0}")]
    NoPod(ObjectName),
    /// The pod has ended.
    #[error("pod {0} has ended: it no longer has an address")]
    Finished(ObjectName),
    /// The pod has no address yet.
    #[error("pod {0} has no address")]
    NoAddress(ObjectName),
    /// No such service.
    #[error("no service {0}")]
    NoService(ObjectName),
    /// A service without frontends.
    #[error("service {0} has no address of its own (headless, ExternalName, or none given yet)")]
    NoFrontend(ObjectName),
    /// One end has IPv4 only, the other IPv6 only.
    #[error("{0} and {1} have no address of the same family")]
    NoCommonFamily(Target, Target),
}

impl From<&Query> for Request {
    fn from(q: &Query) -> Self {
        let dport = (q.proto != Proto::Icmp).then_some(q.dport);
        Request::Explain {
            from: q.from.to_string(),
            to: q.to.to_string(),
            proto: q.proto.name().to_owned(),
            dport,
        }
    }
}

impl Query {
    /// From the words of a command line. The port is of no account for ICMP.
    ///
    /// # Errors
    /// A word means nothing, or the port is missing.
    pub fn new(from: &str, to: &str, proto: &str, dport: Option<u16>) -> Result<Self, QueryError> {
        let (from, to) = (from.parse()?, to.parse()?);
        let proto = proto.parse()?;
        let dport = match (proto, dport) {
            (Proto::Icmp, _) => 0,
            (_, Some(0)) => return Err(QueryError::Port("0".to_owned())),
            (_, Some(port)) => port,
            (_, None) => return Err(QueryError::Missing("dport")),
        };
        Ok(Self { from, to, proto, dport })
    }

    /// From one line of a batch: `{"from":…,"to":…,"proto":…,"dport":…}`.
    ///
    /// # Errors
    /// The line is no such object, or a field of it means nothing.
    pub fn from_json(line: &[u8]) -> Result<Self, QueryError> {
        let value: Value = serde_json::from_slice(line).map_err(|e| QueryError::Json(e.to_string()))?;
        let Value::Object(fields) = value else { return Err(QueryError::Json("not an object".to_owned())) };
        let text = |name: &'static str| match fields.get(name) {
            None | Some(Value::Null) => Err(QueryError::Missing(name)),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(QueryError::NotText(name)),
        };
        let (from, to, proto) = (text("from")?, text("to")?, text("proto")?);
        let dport = match fields.get("dport") {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_u64().map(u16::try_from) {
                Some(Ok(port)) => Some(port),
                _ => return Err(QueryError::Port(value.to_string())),
            },
        };
        Self::new(from, to, proto, dport)
    }
}
