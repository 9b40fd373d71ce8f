//! Kubernetes objects → model: pure functions that refuse what the API server would refuse.
//!
//! Every function takes `line_of`, which says where a field was read. Paths are written as the API server
//! writes them: `spec.ingress[0].from[1].ipBlock.cidr`. A path that is not in the manifest asks for the nearest
//! one that is.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::names;
use crate::model::{ObjectName, Operator, Protocol, Requirement, Selector};

pub mod policy;
pub mod service;
#[cfg(test)]
mod tests;

pub use policy::network_policy;
pub use service::{endpoint_slice, service};

/// A field that the API server would not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct FieldError {
    /// Path of the field: `spec.ingress[0].ports[1].endPort`.
    pub path: String,
    /// What is wrong with it and what is allowed.
    pub reason: String,
}

impl FieldError {
    /// `reason` should quote the value and say what is allowed.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}

/// `metadata.name` and `metadata.namespace` (`default` when missing or empty).
pub(super) fn object_name(meta: &ObjectMeta) -> Result<ObjectName, FieldError> {
    let text = |v: &Option<String>| v.clone().filter(|s| !s.is_empty());
    let name = text(&meta.name).ok_or_else(|| FieldError::new("metadata.name", "is missing"))?;
    let namespace = text(&meta.namespace).unwrap_or_else(|| "default".into());
    names::subdomain(&name).map_err(|reason| FieldError::new("metadata.name", reason))?;
    names::label(&namespace).map_err(|reason| FieldError::new("metadata.namespace", reason))?;
    Ok(ObjectName { namespace, name })
}

/// A `metav1.LabelSelector`; a missing one is the caller's business.
pub(super) fn selector(selector: &LabelSelector, path: &str) -> Result<Selector, FieldError> {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        let at = format!("{path}.matchLabels");
        label_key(key, &at)?;
        label_value(value, &at)?;
        let operator = Operator::In(BTreeSet::from([value.clone()]));
        requirements.push(Requirement { key: key.clone(), operator });
    }
    for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let at = format!("{path}.matchExpressions[{i}]");
        label_key(&expression.key, &format!("{at}.key"))?;
        let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
        let at_values = format!("{at}.values");
        let set = matches!(&expression.operator[..], "In" | "NotIn");
        if set && values.is_empty() {
            return Err(FieldError::new(at_values, "must have a value when the operator is In or NotIn"));
        }
        if !set && !values.is_empty() {
            let reason = "must be empty when the operator is Exists or DoesNotExist";
            return Err(FieldError::new(at_values, reason));
        }
        for value in &values {
            label_value(value, &at_values)?;
        }
        let operator = match &expression.operator[..] {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => {
                let reason = format!("{other:?} is not one of In, NotIn, Exists, DoesNotExist");
                return Err(FieldError::new(format!("{at}.operator"), reason));
            }
        };
        requirements.push(Requirement { key: expression.key.clone(), operator });
    }
    Ok(Selector::new(requirements))
}

/// A protocol name, TCP when missing.
pub(super) fn protocol(name: Option<&str>, path: &str) -> Result<Protocol, FieldError> {
    let Some(name) = name else { return Ok(Protocol::Tcp) };
    Protocol::from_name(name)
        .ok_or_else(|| FieldError::new(path, format!("{name:?} is not one of TCP, UDP, SCTP")))
}

/// A port number, 1 to 65535.
pub(super) fn port(number: i32, path: &str) -> Result<u16, FieldError> {
    u16::try_from(number)
        .ok()
        .filter(|p| *p != 0)
        .ok_or_else(|| FieldError::new(path, format!("{number} is not a port: want 1 to 65535")))
}

/// An address; leading zeros in IPv4 are read as decimal, as the API server reads objects of old.
pub(super) fn address(text: &str, path: &str) -> Result<IpAddr, FieldError> {
    parse_address(text).ok_or_else(|| {
        FieldError::new(path, format!("{text:?} is not an IP address, as 10.0.0.1 or fd00::1"))
    })
}

/// A network with its host bits cleared.
pub(super) fn cidr(text: &str, path: &str) -> Result<IpNet, FieldError> {
    let parse = || {
        let (addr, len) = text.split_once('/')?;
        let len: u8 = len.parse().ok().filter(|_| len.bytes().all(|b| b.is_ascii_digit()))?;
        match addr.parse::<Ipv6Addr>().ok().filter(|a| len >= 96 && a.to_ipv4_mapped().is_some()) {
            // A mapped network is the IPv4 network, in Go's library as here.
            Some(mapped) => IpNet::new(mapped.to_ipv4_mapped()?.into(), len - 96).ok(),
            None => match addr.parse::<Ipv6Addr>() {
                Ok(v6) => Ipv6Net::new(v6, len).ok().map(IpNet::V6),
                Err(_) => Ipv4Net::new(sloppy_v4(addr)?, len).ok().map(IpNet::V4),
            },
        }
    };
    parse().map(|net| net.trunc()).ok_or_else(|| {
        FieldError::new(path, format!("{text:?} is not a network, as 10.0.0.0/8 or fd00::/64"))
    })
}

fn parse_address(text: &str) -> Option<IpAddr> {
    match text.parse::<Ipv6Addr>() {
        Ok(v6) => Some(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)),
        Err(_) => sloppy_v4(text).map(IpAddr::V4),
    }
}

fn sloppy_v4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.');
    let mut bytes = [0u8; 4];
    for byte in &mut bytes {
        let part = parts.next().filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))?;
        *byte = part.parse().ok()?;
    }
    parts.next().is_none().then(|| bytes.into())
}

fn label_key(key: &str, path: &str) -> Result<(), FieldError> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    if prefix.is_none_or(|p| names::subdomain(p).is_ok()) && !name.is_empty() && is_label_text(name) {
        return Ok(());
    }
    let reason =
        format!("{key:?} is not a label key: want [DNS name/]name, name of 1 to 63 of [A-Za-z0-9-_.]");
    Err(FieldError::new(path, reason))
}

fn label_value(value: &str, path: &str) -> Result<(), FieldError> {
    if is_label_text(value) {
        return Ok(());
    }
    let reason =
        format!("{value:?} is not a label value: want at most 63 of [A-Za-z0-9-_.], ends alphanumeric");
    Err(FieldError::new(path, reason))
}

fn is_label_text(text: &str) -> bool {
    let alphanumeric = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = alphanumeric(text.bytes().next()) && alphanumeric(text.bytes().last());
    text.len() <= 63 && ends && text.bytes().all(inner)
}

/// A port's name (IANA service name): 1 to 15 lower case letters, digits and single dashes, with a letter.
pub(super) fn is_port_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=15).contains(&name.len())
        && name.bytes().all(inner)
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}
