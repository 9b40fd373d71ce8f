//! The kernel forwards: routes are there, what differs is the packet filter and on which core.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use anyhow::Result;

use super::super::manifests::{BACKEND_PORT, SERVICE_PORT, SERVICES, backend, service_address};
use super::super::topology::{Topology, VTEP_LOCAL, VTEP_REMOTE};
use super::Peer;
use crate::command;

/// The kernel's own forwarding, until dropped.
#[derive(Debug)]
pub(crate) struct Forwarding<'a> {
    topology: &'a Topology,
}

impl<'a> Forwarding<'a> {
    pub(super) fn start(topology: &'a Topology, peer: Peer) -> Result<Self> {
        let this = Self { topology };
        let node = &topology.node;
        // Frames of the generator reach a veth only by NAPI, which GRO turns on in the absence of XDP.
        for device in ["fp-a", "fp0"] {
            node.exec(&format!("ethtool -K {device} gro on"))?;
        }
        node.ip(&format!(
            "link add vx0 address {VTEP_LOCAL} mtu 1450 type vxlan id 4096 dstport 4789 local 192.168.77.1 \
             dev up0 nolearning"
        ))?;
        node.ip("link set vx0 up")?;
        node.ip(&format!("neigh add 169.254.64.2 lladdr {VTEP_REMOTE} dev vx0 nud permanent"))?;
        node.ip("route add 10.77.4.0/22 via 169.254.64.2 dev vx0 onlink")?;
        node.exec(&format!("bridge fdb append {VTEP_REMOTE} dev vx0 dst 192.168.77.2"))?;
        this.steer(if peer == Peer::KernelSteered { "2" } else { "0" })?;
        if let Some(rules) = rules(peer) {
            let file = topology.dir.join("rules.nft");
            std::fs::write(&file, rules)?;
            node.exec(&format!("nft -f {}", file.display()))?;
        }
        Ok(this)
    }

    /// Receive packet steering, of the devices of the pods that send and ask, to a mask of cores. sysfs shows the
    /// namespace it was mounted in.
    fn steer(&self, cores: &str) -> Result<()> {
        let script = format!(
            "mount -t sysfs s /sys && for i in a c d; do echo {cores} >/sys/class/net/fp-$i/queues/rx-0/rps_cpus || exit; done"
        );
        let net = format!("--net={}", self.topology.node.path());
        command("nsenter", &[&net, "--", "unshare", "--mount", "sh", "-c", &script]).map(|_| ())
    }
}

impl Drop for Forwarding<'_> {
    fn drop(&mut self) {
        let node = &self.topology.node;
        let undo = [
            node.exec("nft flush ruleset"),
            node.ip("link del vx0"),
            self.steer("0").map(|()| String::new()),
        ];
        for error in undo.into_iter().filter_map(Result::err) {
            eprintln!("{error:#}");
        }
    }
}

/// Rules that do not match, each in the manner of a policy: an address block and a port.
fn misses(text: &mut String, count: u16) {
    for n in 0..count {
        let [high, low] = n.to_be_bytes();
        let _ = writeln!(text, "    ip saddr 10.{}.{low}.0/24 udp dport {} accept", 200 + high, 2000 + n);
    }
}

/// What the packet filter is given.
fn rules(peer: Peer) -> Option<String> {
    let mut text = String::from(
        "table ip bench {\n  chain forward {\n    type filter hook forward priority 0; policy drop;\n",
    );
    match peer {
        Peer::KernelRules(count) => {
            // The state is asked for, so that connections are tracked; a one-way flow stays `new`.
            text += "    ct state invalid drop\n";
            misses(&mut text, count);
            text += "    ip saddr 10.77.0.0/16 accept\n  }\n}\n";
        }
        Peer::KernelEstablished => {
            text += "    ct state established,related accept\n";
            misses(&mut text, 50);
            text += "    ip saddr 10.77.0.0/16 accept\n  }\n}\n";
        }
        Peer::KernelServices => {
            text += "    ip saddr 10.77.0.0/16 accept\n  }\n";
            for n in 0..SERVICES {
                let _ = writeln!(
                    text,
                    "  chain endpoint-{n} {{ meta l4proto udp dnat to {}:{BACKEND_PORT}; }}\n  chain service-{n} {{ \
                     numgen random mod 1 vmap {{ 0 : goto endpoint-{n} }}; }}",
                    backend(n)
                );
            }
            text += "  map services {\n    type ipv4_addr . inet_proto . inet_service : verdict\n    elements = {\n";
            for n in 0..SERVICES {
                let _ =
                    writeln!(text, "      {} . udp . {SERVICE_PORT} : goto service-{n},", service_address(n));
            }
            text += "    }\n  }\n  chain prerouting {\n    type nat hook prerouting priority dstnat;\n    ip daddr . meta \
                     l4proto . th dport vmap @services\n  }\n}\n";
        }
        _ => return None,
    }
    Some(text)
}
