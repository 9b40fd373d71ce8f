//! What runtime and plugin say to each other: network configuration, results, errors (CNI spec 1.1.0, sections 2 to 5).
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;

use fastpath::packet::Mac;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::netdev::veth::{gateway, host_length};

/// Versions of the spec that are spoken, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest of them.
pub const NEWEST: &str = "1.1.0";

/// Folder of what outlives a restart, where the configuration names none; as the daemon's `daemon.data_dir`.
const DATA_DIR: &str = "/var/lib/fastpath";
/// Folder of the daemon's socket, where the configuration names none; as the daemon's `daemon.state_dir`.
const STATE_DIR: &str = "/run/fastpath";
/// How long an ADD waits for its pod to be known and under policy, in milliseconds, where the configuration says nothing.
const WAIT_MS: u64 = 5000;
/// Longest such wait accepted, in milliseconds: runtimes give up on a plugin after minutes.
const MAX_WAIT_MS: u64 = 60_000;

/// Codes of errors: the spec's, and from 100 our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version of the configuration is not spoken.
    IncompatibleVersion = 1,
    /// A key of the configuration has a value that is not supported.
    UnsupportedField = 2,
    /// The container does not exist; nothing is to be cleaned up.
    UnknownContainer = 3,
    /// An environment variable is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The configuration is no JSON, or not of the right shape.
    Decode = 6,
    /// The configuration is wrong.
    InvalidConfig = 7,
    /// The same may succeed later.
    TryAgainLater = 11,
    /// STATUS: no ADD can be served.
    NotAvailable = 50,
    /// STATUS: no ADD can be served, and containers there are may have limited connectivity.
    LimitedConnectivity = 51,
    /// No address is free.
    Exhausted = 100,
    /// The pod's device could not be made or set up.
    Device = 101,
    /// CHECK: something is not as ADD left it.
    Broken = 102,
}

/// What ends a call without its result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Error {
    /// Kind of error.
    pub code: u32,
    /// What is wrong, in one line.
    pub msg: String,
    /// More of it; may be empty.
    pub details: String,
}

impl Error {
    /// An error of kind `code`.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code: code as u32, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// As it is printed, for a configuration of this version.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let mut out = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if let (Some(map), false) = (out.as_object_mut(), self.details.is_empty()) {
            map.insert("details".to_owned(), json!(self.details));
        }
        out
    }
}

impl From<crate::netdev::Error> for Error {
    fn from(e: crate::netdev::Error) -> Self {
        Error::new(Code::Device, e.to_string())
    }
}

/// An attachment, as GC names those that are to stay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// Container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// Interface in it.
    pub ifname: String,
}

/// A network configuration. Keys that are not ours (`args`, `runtimeConfig`, `capabilities`, …) are left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Conf {
    /// Version of the spec that it is written in.
    pub version: String,
    /// Name of the network.
    pub name: String,
    /// Folder of the daemon's socket.
    pub state_dir: PathBuf,
    /// Folder of endpoint records and addresses given out; the daemon's `daemon.data_dir`.
    pub data_dir: PathBuf,
    /// MTU of pods in bytes, where it is not to be what fits the tunnel.
    pub mtu: Option<u32>,
    /// How long an ADD waits for its pod to be known and under policy, in milliseconds.
    pub wait_ms: u64,
    /// IPAM plugin to delegate to; `None` is our own.
    pub ipam: Option<String>,
    /// GC: attachments that are to stay.
    pub valid: Option<Vec<Attachment>>,
    /// Result of the ADD before.
    pub prev: Option<PrevResult>,
    /// All of it, for the delegated plugin.
    pub raw: Value,
}

#[derive(Deserialize)]
struct RawConf {
    #[serde(rename = "cniVersion", default)]
    version: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    state_dir: Option<PathBuf>,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    wait_ms: Option<u64>,
    #[serde(default)]
    ipam: Option<RawIpam>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid: Option<Vec<Attachment>>,
    #[serde(rename = "prevResult", default)]
    prev: Option<PrevResult>,
}

#[derive(Deserialize)]
struct RawIpam {
    #[serde(rename = "type", default)]
    kind: Option<String>,
}

/// What we need of an earlier ADD's result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PrevResult {
    /// Its devices.
    #[serde(default)]
    pub interfaces: Vec<PrevInterface>,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<PrevIp>,
}

/// A device of an earlier result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PrevInterface {
    /// Name.
    pub name: String,
    /// Ethernet address.
    #[serde(default)]
    pub mac: String,
    /// Network namespace; empty for one of the host's.
    #[serde(default)]
    pub sandbox: String,
}

/// An address of an earlier result, or of a delegated plugin's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PrevIp {
    /// Address and prefix length.
    pub address: ipnet::IpNet,
    /// Index into the interfaces.
    #[serde(default)]
    pub interface: Option<i64>,
}

impl Conf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Code::Decode`], [`Code::IncompatibleVersion`], [`Code::InvalidConfig`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let decode = |e: serde_json::Error| {
            Error::new(Code::Decode, format!("the network configuration cannot be read: {e}"))
        };
        let raw: Value = serde_json::from_slice(text).map_err(decode)?;
        // First, so that a newer configuration learns the right reason.
        let version = match raw.get("cniVersion") {
            Some(Value::String(v)) => v.clone(),
            // The spec's default for what names none.
            _ => "0.1.0".to_owned(),
        };
        if !VERSIONS.contains(&version.as_str()) {
            let msg = format!("cniVersion {version:?} is not supported");
            let known = VERSIONS.join(", ");
            return Err(Error::new(Code::IncompatibleVersion, msg).with(format!("supported: {known}")));
        }
        let conf: RawConf = serde_json::from_value(raw.clone()).map_err(decode)?;
        debug_assert_eq!(conf.version.as_deref(), Some(version.as_str()));
        let invalid = |msg: &str| Error::new(Code::InvalidConfig, msg);
        let name = conf.name.filter(|n| !n.is_empty()).ok_or_else(|| invalid("name: is missing"))?;
        let folder = |key: &str, given: Option<PathBuf>, default: &str| match given {
            Some(path) if !path.is_absolute() => {
                Err(invalid(&format!("{key}: {} is not an absolute path", path.display())))
            }
            given => Ok(given.unwrap_or_else(|| PathBuf::from(default))),
        };
        if conf.mtu.is_some_and(|mtu| !(1280..=65_535).contains(&mtu)) {
            return Err(invalid("mtu: want 1280 (the least IPv6 allows) to 65535"));
        }
        let wait_ms = conf.wait_ms.unwrap_or(WAIT_MS);
        if wait_ms > MAX_WAIT_MS {
            return Err(invalid(&format!("wait_ms: want 0 to {MAX_WAIT_MS}")));
        }
        let ipam = conf.ipam.and_then(|i| i.kind).filter(|kind| !kind.is_empty() && kind != "fastpath");
        if let Some(kind) = ipam.as_deref().filter(|k| k.contains('/') || *k == "." || *k == "..") {
            return Err(invalid(&format!("ipam.type: {kind:?} is not the name of a plugin")));
        }
        Ok(Self {
            version,
            name,
            state_dir: folder("state_dir", conf.state_dir, STATE_DIR)?,
            data_dir: folder("data_dir", conf.data_dir, DATA_DIR)?,
            mtu: conf.mtu,
            wait_ms,
            ipam,
            valid: conf.valid,
            prev: conf.prev,
            raw,
        })
    }
}

/// What ADD made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Host's end of the veth.
    pub host: String,
    /// Its Ethernet address.
    pub host_mac: Mac,
    /// Pod's end.
    pub ifname: String,
    /// Its Ethernet address.
    pub pod_mac: Mac,
    /// The pod's namespace, as the runtime named it.
    pub netns: String,
    /// MTU of both ends.
    pub mtu: u32,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a str>,
}

#[derive(Serialize)]
struct IpRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    interface: u32,
    address: String,
    gateway: IpAddr,
}

impl Made {
    /// The result in the words of a version; `dns` is what the delegated plugin said of it.
    #[must_use]
    pub fn to_json(&self, version: &str, dns: Option<&Value>) -> Value {
        // Since 1.0.0 an address names no family; since 1.1.0 a device has its MTU.
        let (names_family, names_mtu) = (version.starts_with("0."), version == NEWEST);
        let mtu = names_mtu.then_some(self.mtu);
        let ips = self.addresses.iter().map(|ip| IpRow {
            version: names_family.then_some(if ip.is_ipv4() { "4" } else { "6" }),
            interface: 1,
            address: format!("{ip}/{}", host_length(*ip)),
            gateway: gateway(*ip),
        });
        let route = |v4: bool| {
            let ip = self.addresses.iter().find(|ip| ip.is_ipv4() == v4)?;
            let everything = if v4 { "0.0.0.0/0" } else { "::/0" };
            Some(json!({ "dst": everything, "gw": gateway(*ip) }))
        };
        let routes: Vec<Value> = [true, false].into_iter().filter_map(route).collect();
        json!({
            "cniVersion": version,
            "interfaces": [
                Interface { name: &self.host, mac: self.host_mac.to_string(), mtu, sandbox: None },
                Interface {
                    name: &self.ifname,
                    mac: self.pod_mac.to_string(),
                    mtu,
                    sandbox: Some(&self.netns),
                },
            ],
            "ips": ips.collect::<Vec<_>>(),
            "routes": routes,
            "dns": dns.cloned().unwrap_or_else(|| json!({})),
        })
    }
}

#[cfg(test)]
mod tests;
