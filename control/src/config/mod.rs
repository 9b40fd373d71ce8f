//! The daemon's configuration: one TOML file, every key optional, nothing unknown accepted.
//!
//! | Module | Holds |
//! |---|---|
//! | `keys` | every section and key: type, default, meaning |
//! | `value` | what a key accepts, and how a value is read and shown |
//! | `networks` | the same for networks and port ranges |
//! | `read` | TOML text to [`Config`], with all mistakes and their lines |
//! | `reference` | the documented file, `configs/fastpath.toml` |
#![forbid(unsafe_code)]

mod keys;
mod networks;
mod read;
mod reference;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use fastpath::io::xsk::UmemConfig;

use crate::model::Pod;
pub use keys::{
    Daemon, Deny, Encap, Family, Flow, Host, Http, Icmp, LogLevel, Memory, NodeSection, OnFailure, Overlay,
    Pods, Policy, Polling, Services, Snat, Source, SourceKind, TcpPickup, Timeouts, Transmit, Uplink,
    Workers, Xdp, XdpMode, ZeroCopy,
};
pub use networks::SnatPorts;
pub use reference::reference;

/// Largest configuration file read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The whole configuration; `Config::default()` is what an empty file gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[node]`.
    pub node: NodeSection,
    /// `[daemon]`.
    pub daemon: Daemon,
    /// `[http]`.
    pub http: Http,
    /// `[source]`.
    pub source: Source,
    /// `[pods]`.
    pub pods: Pods,
    /// `[xdp]`.
    pub xdp: Xdp,
    /// `[uplink]`.
    pub uplink: Uplink,
    /// `[host]`.
    pub host: Host,
    /// `[overlay]`.
    pub overlay: Overlay,
    /// `[workers]`.
    pub workers: Workers,
    /// `[memory]`.
    pub memory: Memory,
    /// `[flow]`.
    pub flow: Flow,
    /// `[flow.timeouts]`.
    pub timeouts: Timeouts,
    /// `[icmp]`.
    pub icmp: Icmp,
    /// `[policy]`.
    pub policy: Policy,
    /// `[services]`.
    pub services: Services,
    /// `[snat]`.
    pub snat: Snat,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or some of it is wrong: every mistake is in the error, by line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let fail = |message: String| ConfigError {
            path: path.to_path_buf(),
            wrong: vec![Wrong { line: None, message }],
        };
        let meta = std::fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        if !meta.is_file() {
            return Err(fail("is not a regular file".to_owned()));
        }
        if meta.len() > MAX_FILE {
            return Err(fail(format!("is larger than {MAX_FILE} bytes: not a configuration file")));
        }
        let bytes = std::fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        let text = String::from_utf8(bytes).map_err(|_| fail("is not UTF-8 text".to_owned()))?;
        Self::parse(&text).map_err(|wrong| ConfigError { path: path.to_path_buf(), wrong })
    }

    /// Reads and checks configuration text.
    ///
    /// # Errors
    /// Every mistake, in the order of the lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Wrong>> {
        read::read(text)
    }

    /// The name of this node: `node.name`, else `$NODE_NAME`, else the host name.
    ///
    /// # Errors
    /// None of them gives a usable name.
    pub fn node_name(&self) -> Result<String, NodeNameError> {
        if let Some(name) = &self.node.name {
            return Ok(name.clone());
        }
        if let Some(name) = std::env::var("NODE_NAME").ok().filter(|n| !n.is_empty()) {
            return value::node_name(&name).map_err(|reason| NodeNameError { from: "$NODE_NAME", reason });
        }
        let host = nix::unistd::gethostname()
            .map_err(|e| NodeNameError { from: "the host name", reason: e.to_string() })?;
        value::node_name(&host.to_string_lossy().to_lowercase())
            .map_err(|reason| NodeNameError { from: "the host name", reason })
    }

    /// The API socket: `state_dir/fastpath.sock`.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.daemon.state_dir.join(crate::api::SOCKET_NAME)
    }

    /// Host side of a pod's veth: as the configuration says, else as the pod's annotation says.
    #[must_use]
    pub fn interface_of<'a>(&'a self, pod: &'a Pod) -> Option<&'a str> {
        self.pods.interfaces.get(&pod.name).or(pod.interface.as_ref()).map(String::as_str)
    }

    /// Cores of `workers.cores` this process may not run on (they do not exist, or its cpuset lacks them).
    ///
    /// # Errors
    /// The affinity mask cannot be read.
    pub fn missing_cores(&self) -> Result<Vec<usize>, std::io::Error> {
        let possible = possible_cores()?;
        Ok(self.workers.cores.iter().copied().filter(|c| !possible.contains(c)).collect())
    }
}

/// Cores that this process may be pinned to: all of its cpuset's. The mask it inherited lacks those that the kernel keeps
/// from everybody who does not ask for them (`isolcpus=`), which are there to be asked for.
///
/// # Errors
/// The affinity mask cannot be read or put back.
pub(crate) fn possible_cores() -> Result<BTreeSet<usize>, std::io::Error> {
    // This thread's alone, and only for the question.
    let this = nix::unistd::Pid::from_raw(0);
    let inherited = nix::sched::sched_getaffinity(this)?;
    let mut all = nix::sched::CpuSet::new();
    for core in 0..nix::sched::CpuSet::count() {
        all.set(core)?;
    }
    // The kernel takes what the cpuset has of it.
    nix::sched::sched_setaffinity(this, &all)?;
    let possible = nix::sched::sched_getaffinity(this);
    nix::sched::sched_setaffinity(this, &inherited)?;
    let possible = possible?;
    Ok((0..nix::sched::CpuSet::count()).filter(|c| possible.is_set(*c).unwrap_or(false)).collect())
}

impl Memory {
    /// Most buffers of one UMEM: `umem_frames`, and enough for some ports' full rings.
    #[must_use]
    pub fn arena_frames(&self) -> u32 {
        self.umem_frames.max(self.rx_ring.saturating_mul(4))
    }

    /// The packet buffers of so many workers.
    #[must_use]
    pub fn umem(&self, workers: u32) -> UmemConfig {
        UmemConfig {
            frames: self.frames_per_worker.saturating_mul(workers),
            arena_frames: self.arena_frames(),
            groups: workers,
            // One of two sizes.
            frame_size: u16::try_from(self.frame_size).unwrap_or(4096),
            fill_ring: self.rx_ring,
            completion_ring: self.tx_ring,
            huge_pages: self.huge_pages,
        }
    }
}

/// One mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wrong {
    /// Line, from 1; `None` when the file as a whole is meant.
    pub line: Option<usize>,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// The configuration file cannot be used. Displays one `path:line: message` a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Every mistake found, in the order of the lines.
    pub wrong: Vec<Wrong>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, wrong) in self.wrong.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match wrong.line {
                Some(line) => write!(f, "{}:{line}: {}", self.path.display(), wrong.message)?,
                None => write!(f, "{}: {}", self.path.display(), wrong.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// No usable node name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node name from {from}: {reason}; set node.name in the configuration file")]
pub struct NodeNameError {
    /// Where the name came from.
    pub from: &'static str,
    /// Why it cannot be used.
    pub reason: String,
}
