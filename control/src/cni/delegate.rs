//! Delegation to a named IPAM plugin (CNI spec 1.1.0, section 4).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use super::env::Env;
use super::types::{Code, Conf, Error, NEWEST, PrevIp};

/// What we hand to a plugin at the newest: its results are ours since 1.0.0, and few plugins speak more.
const SPOKEN: &str = "1.0.0";

/// An IPAM plugin of another's.
#[derive(Debug)]
pub struct Delegate<'a> {
    binary: PathBuf,
    name: &'a str,
    env: &'a Env,
    conf: &'a Conf,
}

/// What an IPAM plugin gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// Addresses, in its order.
    pub addresses: Vec<IpAddr>,
    /// What it says of name servers, as it is.
    pub dns: Option<Value>,
}

#[derive(Deserialize)]
struct Success {
    #[serde(default)]
    ips: Vec<PrevIp>,
    #[serde(default)]
    dns: Option<Value>,
}

#[derive(Deserialize)]
struct Failure {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

#[derive(Deserialize)]
struct Versions {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

impl<'a> Delegate<'a> {
    /// The plugin `name`, found in `CNI_PATH`.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`]: there is none.
    pub fn find(name: &'a str, env: &'a Env, conf: &'a Conf) -> Result<Self, Error> {
        let path = env.path();
        let found = path.iter().map(|dir| dir.join(name)).find(|file| is_program(file));
        let Some(binary) = found else {
            let msg = format!("ipam.type: no plugin {name:?} in CNI_PATH");
            return Err(Error::new(Code::InvalidConfig, msg));
        };
        Ok(Self { binary, name, env, conf })
    }

    /// ADD.
    ///
    /// # Errors
    /// What the plugin says, or that it gives nothing to use.
    pub fn add(&self) -> Result<Given, Error> {
        let out = self.call("ADD", self.env, self.version())?;
        let success: Success = serde_json::from_slice(&out).map_err(|e| self.unreadable(&e))?;
        let mut seen = BTreeSet::new();
        let addresses: Vec<IpAddr> =
            success.ips.iter().map(|row| row.address.addr()).filter(|ip| seen.insert(*ip)).collect();
        if addresses.is_empty() {
            return Err(Error::new(Code::Decode, format!("IPAM plugin {}: gives no address", self.name)));
        }
        Ok(Given { addresses, dns: success.dns })
    }

    /// DEL of one attachment, which need not be the call's own.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn del(&self, container: &str, ifname: &str) -> Result<(), Error> {
        let env = self.env.clone().with("CNI_CONTAINERID", container).with("CNI_IFNAME", ifname);
        self.call("DEL", &env, self.version()).map(drop)
    }

    /// CHECK.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn check(&self) -> Result<(), Error> {
        self.call("CHECK", self.env, self.version()).map(drop)
    }

    /// STATUS or GC: what came with 1.1.0 is asked only of plugins that know it.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn newer(&self, verb: &str) -> Result<(), Error> {
        let out = self.call("VERSION", self.env, NEWEST)?;
        let versions: Versions = serde_json::from_slice(&out).map_err(|e| self.unreadable(&e))?;
        if !versions.supported.iter().any(|v| v == NEWEST) {
            return Ok(());
        }
        self.call(verb, self.env, NEWEST).map(drop)
    }

    fn version(&self) -> &str {
        if self.conf.version == NEWEST { SPOKEN } else { &self.conf.version }
    }

    fn unreadable(&self, e: &serde_json::Error) -> Error {
        Error::new(Code::Decode, format!("IPAM plugin {}: its answer cannot be read: {e}", self.name))
    }

    fn call(&self, verb: &str, env: &Env, version: &str) -> Result<Vec<u8>, Error> {
        let failed = |e: std::io::Error| Error::new(Code::Io, format!("{}: {e}", self.binary.display()));
        let mut conf = self.conf.raw.clone();
        if let Some(map) = conf.as_object_mut() {
            map.insert("cniVersion".to_owned(), json!(version));
            if let Some(prev) = map.get_mut("prevResult").and_then(Value::as_object_mut) {
                prev.insert("cniVersion".to_owned(), json!(version));
            }
        }
        let mut child = Command::new(&self.binary)
            .envs(env.iter())
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that ends without having read it says why itself.
            let _ = stdin.write_all(conf.to_string().as_bytes());
        }
        let out = child.wait_with_output().map_err(failed)?;
        if out.status.success() {
            return Ok(out.stdout);
        }
        Err(match serde_json::from_slice::<Failure>(&out.stdout) {
            Ok(Failure { code, msg, details }) => {
                Error { code, msg: format!("IPAM plugin {}: {msg}", self.name), details }
            }
            Err(_) => {
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                Error::new(Code::Io, format!("IPAM plugin {}: {}", self.name, out.status)).with(text)
            }
        })
    }
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
