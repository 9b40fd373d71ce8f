//! Ports that the kernel gives to none of the node's own connections: those of translated sources, and the node ports and
//! host ports of this node.
//!
//! A connection between two processes of one node that took a node port as its own would not get its answers: they go
//! to the service.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Daemon;
use crate::compile::service::{FrontendKind, Services};
use crate::config::{Config, SnatPorts};
use crate::netdev::{Error, ReservedPorts};

/// What is kept from the kernel.
#[derive(Debug)]
pub(super) struct Reserved {
    /// `None` when nothing can be kept from it.
    ports: Option<ReservedPorts>,
    /// Node ports and host ports that are kept; `None` before they were first known.
    services: Option<BTreeSet<u16>>,
    /// When the kernel's list was last looked at.
    looked: Instant,
}

/// The kernel's list is looked at so often: others may write it anew (`sysctl --system`).
const LOOK: Duration = Duration::from_secs(10);

impl Reserved {
    /// Keeps the ports of translated sources. Without that, the node's own connections may take one and hear nothing:
    /// reported, and no reason not to start.
    pub(super) fn open(config: &Config) -> (Self, Vec<String>) {
        let range = config.snat.port_range;
        let reserve = || {
            let mut ports = ReservedPorts::open(&config.daemon.state_dir)?;
            // Those of an earlier daemon's services too: which are still there is not known yet.
            let all: Vec<_> = ports.reserved().into_iter().chain([(range.first, range.last)]).collect();
            ports.reserve(&all).map(|()| ports)
        };
        match reserve() {
            Ok(ports) => (Self { ports: Some(ports), services: None, looked: Instant::now() }, Vec::new()),
            Err(e) => {
                let problem = format!(
                    "snat.port_range {range} is not kept from the kernel: {e}; set net.ipv4.ip_local_reserved_ports \
                     yourself"
                );
                tracing::warn!("{problem}");
                (Self { ports: None, services: None, looked: Instant::now() }, vec![problem])
            }
        }
    }

    /// Gives all of them back.
    pub(super) fn release(&mut self) -> Result<(), Error> {
        self.ports.as_mut().map_or(Ok(()), ReservedPorts::release)
    }
}

impl Daemon {
    /// Keeps the node ports and host ports from the kernel that are there now, and gives back those that are not.
    pub(super) fn sync_reserved(&mut self) {
        let Some(ports) = &mut self.reserved.ports else { return };
        let wanted = Some(of_services(self.tables.services()));
        if wanted == self.reserved.services && self.reserved.looked.elapsed() < LOOK {
            return;
        }
        self.reserved.looked = Instant::now();
        match ports.reserve(&ranges(self.config.snat.port_range, wanted.iter().flatten())) {
            Ok(()) => self.reserved.services = wanted,
            Err(e) => {
                self.kernel_problems
                    .push(format!("node ports and host ports are not kept from the kernel: {e}"));
            }
        }
    }
}

/// Ports that are a service's on addresses of this node.
fn of_services(services: &Services) -> BTreeSet<u16> {
    let host_ports = services.frontends.iter().filter(|(_, f)| f.kind == FrontendKind::HostPort);
    let host_ports = host_ports.map(|((_, _, port), _)| *port);
    services.node_ports.keys().map(|(_, _, port)| *port).chain(host_ports).collect()
}

fn ranges<'a>(snat: SnatPorts, ports: impl Iterator<Item = &'a u16>) -> Vec<(u16, u16)> {
    [(snat.first, snat.last)].into_iter().chain(ports.map(|p| (*p, *p))).collect()
}
