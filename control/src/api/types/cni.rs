//! What the CNI plugin and the daemon say to each other.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Answer to `cni-node`: what the plugin needs to know of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniNode {
    /// Why no pod can be attached now; `None` when it can.
    pub not_ready: Option<String>,
    /// `spec.podCIDRs` of this node.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of the node itself in them: no pod's.
    pub reserved: Vec<IpAddr>,
    /// MTU of pods, in bytes: what the uplinks take, without what the tunnel adds.
    pub mtu: u32,
    /// Largest MTU that the daemon's packet buffers take, in bytes.
    pub max_mtu: u32,
    /// Number of workers: a veth has as many queues.
    pub workers: u32,
    /// The daemon's `daemon.data_dir`.
    pub data_dir: PathBuf,
}

/// Answer to `cni-attach`: the pod is attached, and every worker has its policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniAttached {
    /// The program is in generic mode: the pod must not send segments merged.
    pub generic: bool,
}

/// Answer to `cni-detach`: no worker knows the attachment any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniDetached {
    /// Whether the daemon had it.
    pub known: bool,
}

/// Answer to `cni-check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniChecked {
    /// What is wrong with the attachment; `None` when it is attached and under its policies.
    pub wrong: Option<String>,
}
