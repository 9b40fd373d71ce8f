//! One node with two pods, and the far end of its uplink.
//!
//! ```text
//! pod a: eth0 ── fp-a │        │ up0 ── wire: eth0
//! pod b: eth0 ── fp-b │  node  │
//! ```
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use fastpath_xdp::attach::ModeRequest;
use fastpath_xdp::generator::Sink;

use super::netns::NetNs;

/// MAC address that pods send to, whoever forwards.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0xee; 6];
const GATEWAY_TEXT: &str = "ee:ee:ee:ee:ee:ee";
const VTEP_LOCAL: &str = "66:77:00:04:00:01";
const VTEP_REMOTE: &str = "66:77:00:04:00:02";

/// Which way the packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// From a pod to another on the node.
    SameNode,
    /// From a pod into VXLAN on the uplink.
    Vxlan,
}

impl Path {
    /// All.
    pub(crate) const ALL: [Self; 2] = [Self::SameNode, Self::Vxlan];

    /// For reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SameNode => "pod to pod on one node, 60 B",
            Self::Vxlan => "pod to uplink in VXLAN, 60 B inside",
        }
    }

    /// Destination address.
    pub(crate) fn destination(self) -> [u8; 4] {
        match self {
            Self::SameNode => [10, 77, 1, 12],
            Self::Vxlan => [10, 77, 2, 11],
        }
    }
}

/// The namespaces; everything goes on drop.
#[derive(Debug)]
pub(crate) struct Topology {
    /// Counts what pod b receives.
    pub(crate) pod_sink: Sink,
    /// Counts what leaves by the uplink.
    pub(crate) wire_sink: Sink,
    /// Sends.
    pub(crate) pod_a: NetNs,
    /// Forwards.
    pub(crate) node: NetNs,
    /// Configuration, manifests and log of the daemon.
    pub(crate) dir: PathBuf,
    _others: [NetNs; 2],
    _folder: Folder,
}

#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

impl Topology {
    /// Makes namespaces, devices, addresses, neighbours and sinks.
    pub(crate) fn create() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("{}{}", super::netns::PREFIX, std::process::id()));
        std::fs::create_dir_all(dir.join("manifests"))?;
        let folder = Folder(dir.clone());
        let (node, wire) = (NetNs::create("node")?, NetNs::create("wire")?);
        let (pod_a, pod_b) = (NetNs::create("a")?, NetNs::create("b")?);
        node.sysctl("ipv4/ip_forward", "1")?;
        node.ip(&format!("link add up0 mtu 1500 type veth peer name eth0 mtu 1500 netns {}", wire.name()))?;
        node.ip("addr add 192.168.77.1/24 dev up0")?;
        node.ip("link set up0 up")?;
        wire.ip("link set eth0 up")?;
        // A wire does not carry unfinished checksums.
        node.exec("ethtool -K up0 tx off")?;
        node.ip(&format!("neigh add 192.168.77.2 lladdr {} dev up0 nud permanent", wire.mac("eth0")?))?;
        for (pod, name, host) in [(&pod_a, "a", 11), (&pod_b, "b", 12)] {
            let ns = pod.name();
            node.ip(&format!("link add fp-{name} mtu 1450 type veth peer name eth0 mtu 1450 netns {ns}"))?;
            node.ip(&format!("link set fp-{name} address {GATEWAY_TEXT} up"))?;
            pod.ip(&format!("addr add 10.77.1.{host}/32 dev eth0"))?;
            pod.ip("link set eth0 up")?;
            pod.exec("ethtool -K eth0 tx off")?;
            node.ip(&format!("route add 10.77.1.{host} dev fp-{name}"))?;
            // The sinks answer nobody.
            node.ip(&format!(
                "neigh add 10.77.1.{host} lladdr {} dev fp-{name} nud permanent",
                pod.mac("eth0")?
            ))?;
        }
        let sink = |ns: &NetNs| ns.run(|| Ok(Sink::attach("eth0", ModeRequest::Native)?));
        let (pod_sink, wire_sink) = (sink(&pod_b)?, sink(&wire)?);
        write_manifests(&dir, &[("a", 11, pod_a.mac("eth0")?), ("b", 12, pod_b.mac("eth0")?)])?;
        Ok(Self { pod_sink, wire_sink, pod_a, node, dir, _others: [pod_b, wire], _folder: folder })
    }

    /// What counts at the end of a path.
    pub(crate) fn sink(&self, path: Path) -> &Sink {
        match path {
            Path::SameNode => &self.pod_sink,
            Path::Vxlan => &self.wire_sink,
        }
    }

    /// Lets the kernel forward both paths; `steered`: on core 1, else where packets arrive.
    pub(crate) fn forward_by_kernel(&self, steered: bool) -> Result<()> {
        self.leave_kernel()?;
        // Frames of the generator reach a veth only by NAPI, which GRO turns on in the absence of XDP.
        self.node.exec("ethtool -K fp-a gro on")?;
        self.node.ip(&format!(
            "link add vx0 address {VTEP_LOCAL} mtu 1450 type vxlan id 4096 dstport 4789 local 192.168.77.1 \
             dev up0 nolearning"
        ))?;
        self.node.ip("link set vx0 up")?;
        self.node.ip(&format!("neigh add 169.254.64.2 lladdr {VTEP_REMOTE} dev vx0 nud permanent"))?;
        self.node.ip("route add 10.77.2.0/24 via 169.254.64.2 dev vx0 onlink")?;
        self.node.exec(&format!("bridge fdb append {VTEP_REMOTE} dev vx0 dst 192.168.77.2"))?;
        self.steer(if steered { "2" } else { "0" })
    }

    /// Takes back what [`Topology::forward_by_kernel`] set up.
    pub(crate) fn leave_kernel(&self) -> Result<()> {
        if self.node.ip("link show dev vx0").is_ok() {
            self.node.ip("link del vx0")?;
        }
        self.steer("0")
    }

    /// Receive packet steering of pod a's device to a mask of cores. sysfs shows the namespace it was mounted in.
    fn steer(&self, cores: &str) -> Result<()> {
        let script =
            format!("mount -t sysfs s /sys && echo {cores} >/sys/class/net/fp-a/queues/rx-0/rps_cpus");
        let net = format!("--net={}", self.node.path());
        super::netns::command("nsenter", &[&net, "--", "unshare", "--mount", "sh", "-c", &script]).map(|_| ())
    }
}

/// The objects the daemon works from.
fn write_manifests(dir: &std::path::Path, pods: &[(&str, u8, String)]) -> Result<()> {
    let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n");
    for (n, vtep) in [(1, VTEP_LOCAL), (2, VTEP_REMOTE)] {
        text += &format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-{n}\n  annotations:\n    \
             projectcalico.org/VXLANTunnelMACAddr: \"{vtep}\"\nspec:\n  podCIDR: 10.77.{n}.0/24\n  podCIDRs:\n  \
             - 10.77.{n}.0/24\nstatus:\n  addresses:\n  - type: InternalIP\n    address: \"192.168.77.{n}\"\n"
        );
    }
    for (name, host, mac) in pods {
        text += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  annotations:\n    \
             fastpath.io/interface: fp-{name}\n    fastpath.io/mac: \"{mac}\"\nspec:\n  nodeName: node-1\n  \
             containers:\n  - name: main\n    image: none\nstatus:\n  phase: Running\n  podIP: 10.77.1.{host}\n  \
             podIPs:\n  - ip: 10.77.1.{host}\n"
        );
    }
    Ok(std::fs::write(dir.join("manifests/all.yaml"), text)?)
}
