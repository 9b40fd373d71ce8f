//! Who forwards, one at a time, all on the same devices.
#![forbid(unsafe_code)]

mod kernel;
mod ovs;
mod process;
mod testpmd;

use std::path::Path;

use anyhow::Result;

use super::daemon::Daemon;
use super::topology::Topology;
use super::traffic::Workload;

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// The daemon, its worker on core 1: policies, services and overlay on.
    Fastpath,
    /// The same, sending by its sockets only.
    FastpathSockets,
    /// The daemon with the profile `latency`.
    FastpathLatency,
    /// The kernel's routing, where packets arrive: on the generator's core.
    Kernel,
    /// The kernel's routing, with receive packet steering to core 1.
    KernelSteered,
    /// Routing with connection tracking, and so many nftables rules on every packet.
    KernelRules(u16),
    /// Routing with connection tracking, packets of known connections accepted before 50 nftables rules.
    KernelEstablished,
    /// kube-proxy's way by nftables: a map of services, and a chain for each.
    KernelServices,
    /// DPDK testpmd: swaps the MAC addresses and nothing else.
    Testpmd,
    /// Open vSwitch, one flow from port to port.
    Ovs,
    /// Open vSwitch with connection tracking.
    OvsConntrack,
}

/// Somebody forwards until this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "kept for their drops")]
pub(crate) enum Running<'a> {
    Fastpath(Daemon),
    Kernel(kernel::Forwarding<'a>),
    Processes(process::Processes),
}

impl Peer {
    /// In the order of their turns.
    pub(crate) const ALL: [Self; 11] = [
        Self::Fastpath,
        Self::Testpmd,
        Self::KernelRules(50),
        Self::Kernel,
        Self::KernelSteered,
        Self::KernelEstablished,
        Self::KernelRules(1000),
        Self::KernelServices,
        Self::Ovs,
        Self::OvsConntrack,
        Self::FastpathSockets,
    ];

    /// Those that round trips go through.
    pub(crate) const ASKED: [Self; 5] =
        [Self::Fastpath, Self::FastpathLatency, Self::Kernel, Self::KernelSteered, Self::KernelRules(50)];

    /// Whether it is the daemon, however configured.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Fastpath | Self::FastpathSockets | Self::FastpathLatency)
    }

    /// For reports.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Fastpath => "fastpath".to_owned(),
            Self::FastpathSockets => "fastpath, sockets only".to_owned(),
            Self::FastpathLatency => "fastpath, profile latency".to_owned(),
            Self::Kernel => "kernel".to_owned(),
            Self::KernelSteered => "kernel, steered to core 1".to_owned(),
            Self::KernelRules(n) => format!("kernel, conntrack, {n} nft rules"),
            Self::KernelEstablished => "kernel, conntrack, established before 50 nft rules".to_owned(),
            Self::KernelServices => "kernel, nft service map".to_owned(),
            Self::Testpmd => "DPDK testpmd macswap".to_owned(),
            Self::Ovs => "OVS afxdp".to_owned(),
            Self::OvsConntrack => "OVS afxdp, conntrack".to_owned(),
        }
    }

    /// Whether it can forward this, and is measured with it.
    pub(crate) fn takes(self, workload: Workload) -> bool {
        use Workload::{Imix, Known, Pods, Service, Sockets, Vxlan};
        match self {
            Self::Fastpath => true,
            Self::FastpathSockets => workload == Workload::SMALL,
            Self::FastpathLatency => false,
            Self::Kernel => matches!(workload, Pods(_) | Imix | Sockets | Vxlan),
            Self::KernelSteered => workload == Workload::SMALL || workload == Vxlan,
            Self::KernelRules(50) => matches!(workload, Pods(_) | Imix | Vxlan | Sockets),
            Self::KernelRules(_) => workload == Workload::SMALL,
            Self::KernelEstablished => workload == Known,
            Self::KernelServices => workload == Service,
            Self::Testpmd => matches!(workload, Pods(_) | Imix),
            Self::Ovs | Self::OvsConntrack => workload == Workload::SMALL,
        }
    }

    /// Whether its forwarding runs on a core of its own.
    pub(crate) fn has_own_core(self) -> bool {
        !matches!(self, Self::Kernel | Self::KernelRules(_) | Self::KernelEstablished | Self::KernelServices)
    }

    /// Has it forward.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub(crate) fn start<'a>(self, topology: &'a Topology, daemon: &Path) -> Result<Running<'a>> {
        Ok(match self {
            Self::Fastpath => Running::Fastpath(Daemon::start(topology, daemon, super::daemon::TOGETHER)?),
            Self::FastpathSockets => {
                Running::Fastpath(Daemon::start(topology, daemon, "transmit = \"sockets\"\n")?)
            }
            Self::FastpathLatency => {
                Running::Fastpath(Daemon::start(topology, daemon, super::daemon::latency()?)?)
            }
            Self::Testpmd => Running::Processes(testpmd::start(topology)?),
            Self::Ovs => Running::Processes(ovs::start(topology, false)?),
            Self::OvsConntrack => Running::Processes(ovs::start(topology, true)?),
            _ => Running::Kernel(kernel::Forwarding::start(topology, self)?),
        })
    }
}
