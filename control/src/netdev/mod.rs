//! The kernel's network configuration: read, followed, and prepared for the dataplane.
//!
//! | Module | Does |
//! |---|---|
//! | [`view`] | [`NetView`]: links, addresses, routes and neighbours as plain data |
//! | [`route`] | routes, and the kernel's choice among them |
//! | [`watch`] | [`Watcher`]: publishes a new view when the kernel's configuration changes |
//! | [`neighbor`] | [`Resolver`]: has the kernel resolve next hops and keep them so |
//! | [`peer`] | the pod's end of a veth, seen from the host's |
//! | [`uplink`] | which devices lead to other nodes |
//! | [`ethtool`] | queues and offloads of a device |
//! | [`features`] | what a driver can do for XDP |
//! | [`stats`] | what the kernel counts for devices |
//! | [`nft`] | whose packet filter rules there are |
//! | [`prepare`] | [`Preparer`]: changes devices for the dataplane, and changes them back |
//! | [`host`] | [`HostPair`]: the pair into the host's stack, with its routes and rules |
//! | [`rule`] | routing rules |
//! | [`bound`] | UDP ports of the node's sockets |
//! | [`reserved`] | [`ReservedPorts`]: keeps ports from the kernel |
//! | [`veth`] | a pod's veth: made, its pod's end set up, looked at again |
//! | [`netns`] | work in another network namespace |
//!
//! Everything is netlink: rtnetlink and the generic netlink family of ethtool, in a codec of our own (`wire`),
//! since an attribute unknown to it must never cost a link. A netlink socket belongs to the namespace of the thread
//! that opens it.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

pub mod bound;
mod decode;
pub mod ethtool;
pub mod features;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod host;
pub mod neighbor;
pub mod netns;
pub mod nft;
pub mod peer;
pub mod prepare;
pub mod reserved;
pub mod route;
pub mod rule;
pub(crate) mod saved;
mod socket;
pub mod stats;
pub(crate) mod sysctl;
pub mod uplink;
pub mod veth;
pub mod view;
pub mod watch;
mod wire;

pub use ethtool::{Channels, Ethtool, Offload, Queues};
pub use host::{HostPair, HostPlan};
pub use neighbor::Resolver;
pub use peer::Peer;
pub use prepare::{Plan, Prepared, Preparer};
pub use reserved::ReservedPorts;
pub use route::{Lookup, ResolvedRoute, Route};
pub use rule::Rule;
pub use socket::Netlink;
pub use uplink::{Uplink, UplinkError, select_uplinks};
pub use view::{Link, LinkKind, Neighbor, NeighborKey, NetView, NudState};
pub use watch::Watcher;

/// What goes wrong with the kernel's network configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket cannot be opened or set up.
    #[error("cannot {what}: {source}; the daemon needs CAP_NET_ADMIN and a kernel with netlink")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {what}: {source}{detail}")]
    Kernel {
        /// What was asked.
        what: String,
        /// The kernel's error.
        source: io::Error,
        /// The kernel's words for it, in parentheses, or nothing.
        detail: String,
    },
    /// There is no such device.
    #[error("no network device '{device}' in this network namespace: see `ip link` for those there are")]
    NoDevice {
        /// Name, or `#index`.
        device: String,
    },
    /// Only a veth has another end.
    #[error("'{device}' is a {kind}, not a veth: a pod's interface must be the host's end of a veth pair")]
    NotVeth {
        /// Name.
        device: String,
        /// What it is.
        kind: String,
    },
    /// The rule for the node's own addresses would come behind somebody else's.
    #[error(
        "the routing rule '{rule}' has one of the first preferences: node ports and host ports are not reachable from \
         this node's own processes; give it preference {least} or more, or set host.node_ports = false"
    )]
    RuleInTheWay {
        /// That rule.
        rule: String,
        /// Least preference that would be behind ours.
        least: u32,
    },
    /// The other end of a veth is gone, or moved while it was looked at.
    #[error("the other end of veth '{device}' is gone")]
    PeerGone {
        /// Name of this end.
        device: String,
    },
    /// The other end of a veth cannot be read.
    #[error(
        "cannot read the other end of veth '{device}' in its network namespace: {source}; \
         the daemon needs CAP_NET_ADMIN in the user namespace that owns it"
    )]
    PeerHidden {
        /// Name of this end.
        device: String,
        /// Why not.
        source: io::Error,
    },
    /// The namespace given for a pod is not where its interface leads.
    #[error(
        "the other end of '{device}' is not in the network namespace {netns}: correct the pod's fastpath.io/netns"
    )]
    NotInNetns {
        /// Name of the host's end.
        device: String,
        /// Path given.
        netns: PathBuf,
    },
    /// A network namespace cannot be entered.
    #[error("cannot enter the network namespace {}: {source}", path.display())]
    Netns {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A record of what was changed, or a setting of the kernel's, cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Record {
        /// "read" or "write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// `ENODEV` as [`Error::NoDevice`].
    fn or_no_device(self, device: &str) -> Self {
        if self.errno() == Some(nix::libc::ENODEV) {
            Self::NoDevice { device: device.to_owned() }
        } else {
            self
        }
    }

    /// The kernel's error number, if it is one of the kernel's.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket { source, .. }
            | Self::Kernel { source, .. }
            | Self::PeerHidden { source, .. }
            | Self::Netns { source, .. }
            | Self::Record { source, .. } => source.raw_os_error(),
            Self::NoDevice { .. }
            | Self::NotVeth { .. }
            | Self::RuleInTheWay { .. }
            | Self::PeerGone { .. }
            | Self::NotInNetns { .. } => None,
        }
    }

    /// Whether it says that a device is not there (any more), so that trying again is no use.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NoDevice { .. } | Self::PeerGone { .. })
            || matches!(self.errno(), Some(nix::libc::ENODEV | nix::libc::ENXIO))
    }
}
