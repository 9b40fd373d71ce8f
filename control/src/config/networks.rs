//! Networks and port ranges: what such keys accept.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use ipnet::IpNet;
use toml::de::DeValue;

use super::value::{Check, quoted, wrong_type};

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatPorts {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

impl std::fmt::Display for SnatPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Ports below are for services of the node (RFC 6335, system ports).
const LOWEST: u16 = 1024;

/// A range of ports as `"first-last"`.
pub(super) struct PortRange;

impl Check<SnatPorts> for PortRange {
    fn read(&self, value: &DeValue<'_>) -> Result<SnatPorts, String> {
        let DeValue::String(text) = value else { return Err(wrong_type(self, value)) };
        // Digits only: `parse` alone would take a sign.
        let port = |part: &str| part.parse().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
        let range = text.split_once('-').and_then(|(first, last)| {
            Some(SnatPorts { first: port(first.trim())?, last: port(last.trim())? })
        });
        let range = range.filter(|r| LOWEST <= r.first && r.first <= r.last);
        range.ok_or_else(|| format!("{} is not {}", quoted(text), self.allowed()))
    }

    fn allowed(&self) -> String {
        format!("a range of ports \"first-last\", both from {LOWEST} to 65535")
    }

    fn show(&self, value: &SnatPorts) -> Option<String> {
        Some(quoted(&value.to_string()))
    }
}

/// An address and port to listen on; "" is none.
pub(super) struct Listen;

impl Check<Option<SocketAddr>> for Listen {
    fn read(&self, value: &DeValue<'_>) -> Result<Option<SocketAddr>, String> {
        let DeValue::String(text) = value else { return Err(wrong_type(self, value)) };
        if text.is_empty() {
            return Ok(None);
        }
        let addr = text.parse().ok().filter(|a: &SocketAddr| a.port() != 0);
        addr.map(Some).ok_or_else(|| format!("{} is not {}", quoted(text), self.allowed()))
    }

    fn allowed(&self) -> String {
        "an address and port, as \"127.0.0.1:9990\" or \"[::1]:9990\", or \"\"".to_owned()
    }

    fn show(&self, value: &Option<SocketAddr>) -> Option<String> {
        Some(quoted(&value.map(|a| a.to_string()).unwrap_or_default()))
    }
}

/// A list of distinct networks; host bits are cleared.
pub(super) struct Networks;

impl Check<Vec<IpNet>> for Networks {
    fn read(&self, value: &DeValue<'_>) -> Result<Vec<IpNet>, String> {
        let DeValue::Array(items) = value else { return Err(wrong_type(self, value)) };
        let mut out: Vec<IpNet> = Vec::new();
        for item in items {
            let DeValue::String(text) = item.get_ref() else { return Err(wrong_type(self, item.get_ref())) };
            let net = text.parse::<IpNet>().map(|net| net.trunc());
            let net = net.map_err(|_| format!("{} is not a network like \"10.0.0.0/8\"", quoted(text)))?;
            if out.contains(&net) {
                return Err(format!("{net} is there twice"));
            }
            out.push(net);
        }
        Ok(out)
    }

    fn allowed(&self) -> String {
        "a list of networks like \"10.0.0.0/8\"".to_owned()
    }

    fn show(&self, value: &Vec<IpNet>) -> Option<String> {
        Some(format!("[{}]", value.iter().map(|n| quoted(&n.to_string())).collect::<Vec<_>>().join(", ")))
    }
}
