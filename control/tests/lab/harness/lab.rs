//! A whole lab: made from a spec, taken down on drop whatever happened.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::kernel;
use super::manifest::{self, Manifests, PodManifest};
use super::mirror::Mirror;
use super::node::{Node, default_routes, plug};
use super::ns::{self, NetNs};
use super::pod::{Pod, Wiring};
use super::spec::{Encap, Family, Kind, LabSpec, NodeSpec, OUTSIDE, ROUTER, UPLINK, underlay};
use crate::traffic::eventually;

/// Every namespace and folder of a lab is named `fplab-<pid>-<number>-…`.
const PREFIX: &str = "fplab-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running lab. The order of the fields is the order in which they are taken down.
#[derive(Debug)]
pub(crate) struct Lab {
    /// Nodes in the order of the spec.
    pub(crate) nodes: Vec<Node>,
    /// Pods, in the order in which they were added.
    pub(crate) pods: Vec<Pod>,
    /// A machine on the underlay that is no node.
    pub(crate) outside: NetNs,
    /// The underlay: a bridge per subnet (`br0`, `br1`) and the router between them.
    pub(crate) fabric: NetNs,
    /// The folder of manifests all daemons watch.
    pub(crate) manifests: Manifests,
    /// What it was made from.
    pub(crate) spec: LabSpec,
    prefix: String,
    root: Root,
}

/// The lab's folder, removed on drop.
#[derive(Debug)]
struct Root(PathBuf);

impl Lab {
    /// Makes everything, starts the daemons and waits until each is ready and has its pods.
    pub(crate) fn start(spec: LabSpec) -> Self {
        let mut lab = Lab::wire(spec);
        lab.start_daemons();
        lab
    }

    /// Makes everything but starts no daemon.
    pub(crate) fn wire(spec: LabSpec) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "lab tests make network namespaces and need root");
        sweep();
        let prefix = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = Root(std::env::temp_dir().join(&prefix));
        std::fs::create_dir_all(&root.0).expect("make the lab's folder");
        let mut manifests = Manifests::create(&root.0);
        let fabric = NetNs::create(&format!("{prefix}-fabric"));
        for subnet in [0, 1] {
            fabric.ip([
                format!(
                    "link add br{subnet} mtu {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                    spec.mtu
                ),
                format!("addr add {}/24 dev br{subnet}", underlay(subnet, ROUTER, Family::V4)),
                format!("addr add {}/64 dev br{subnet} nodad", underlay(subnet, ROUTER, Family::V6)),
                format!("link set br{subnet} up"),
            ]);
            fabric.exec("ethtool", &["-K", &format!("br{subnet}"), "tx", "off"]);
        }
        fabric.sysctl("ipv4/ip_forward", "1");
        fabric.sysctl("ipv6/conf/all/forwarding", "1");
        if spec.by_api {
            manifests.mirror_to(Mirror::start(&fabric, underlay(0, ROUTER, Family::V4)));
        }
        let outside = NetNs::create(&format!("{prefix}-outside"));
        plug(&spec, &outside, UPLINK, &fabric, "to-outside", 0, OUTSIDE);
        default_routes(&outside, 0);

        let mut lab =
            Lab { nodes: Vec::new(), pods: Vec::new(), outside, fabric, manifests, spec, prefix, root };
        lab.manifests.write("namespaces.yaml", &manifest::namespace());
        for number in (1..).take(lab.spec.nodes.len()) {
            lab.add_node(number);
        }
        for index in 0..lab.nodes.len() {
            for pod in 1..=lab.nodes[index].spec.pods {
                lab.create_pod(index, pod);
            }
        }
        lab
    }

    /// Starts the daemon of every node of ours that has none, and waits for its pods.
    pub(crate) fn start_daemons(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].spec.kind == Kind::Fastpath && self.nodes[index].daemon.is_none() {
                self.nodes[index].start_daemon();
                self.wait_pods(index);
            }
        }
    }

    /// Waits until the daemon of a node has all the node's pods attached.
    pub(crate) fn wait_pods(&self, node: usize) {
        if self.nodes[node].spec.kind == Kind::Fastpath {
            for pod in self.pods.iter().filter(|p| p.node == node) {
                self.wait_endpoint(pod);
            }
        }
    }

    /// The lab's own folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root.0
    }

    /// A node by its short name.
    pub(crate) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.spec.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// A node by its short name.
    pub(crate) fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.spec.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// A pod by its name.
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// Namespaces of two pods, and the address of the second: what traffic helpers ask for.
    pub(crate) fn between(&self, from: &str, to: &str, family: Family) -> (&NetNs, &NetNs, IpAddr) {
        let to = self.pod(to);
        (&self.pod(from).ns, &to.ns, to.ip(family))
    }

    /// Adds a pod to a node while everything runs, and waits until it is attached. Returns its name.
    pub(crate) fn add_pod(&mut self, node: &str) -> String {
        let index = self.nodes.iter().position(|n| n.spec.name == node).expect("a node of the lab");
        let number = self.pods.iter().filter(|p| p.node == index).map(|p| p.number).max().unwrap_or(0) + 1;
        let name = self.create_pod(index, number);
        if self.nodes[index].spec.kind == Kind::Fastpath {
            self.wait_endpoint(self.pod(&name));
        }
        name
    }

    /// Removes a pod while everything runs: its object first, or its veth first.
    pub(crate) fn remove_pod(&mut self, name: &str, device_first: bool) {
        let index = self.pods.iter().position(|p| p.name == name).expect("a pod of the lab");
        let pod = self.pods.remove(index);
        let node = &self.nodes[pod.node];
        let delete = || node.ns.ip([format!("link del {}", pod.interface)]);
        if device_first {
            delete();
        }
        self.manifests.remove(&format!("pod-{name}.yaml"));
        if node.spec.kind == Kind::Fastpath {
            let address = pod.ip(Family::V4).to_string();
            eventually(&format!("{name} is forgotten"), Duration::from_secs(10), || {
                (!node.cli().endpoint_listed(&address)).then_some(())
            });
        }
        if !device_first {
            delete();
        }
    }

    /// The Pod object of a pod, as written to the folder.
    pub(crate) fn pod_manifest(&self, pod: &Pod) -> String {
        manifest::pod(&PodManifest {
            name: &pod.name,
            node: self.nodes[pod.node].spec.name,
            addresses: Family::BOTH.map(|f| pod.ip(f).to_string()),
            interface: &pod.interface,
            mac: self.spec.announce_pod_macs.then(|| pod.mac()),
        })
    }

    /// MTU the pods get.
    pub(crate) fn pod_mtu(&self) -> u32 {
        let overhead = match (self.spec.encap, self.spec.outer) {
            (Encap::None, _) => 0,
            (_, Family::V4) => 50,
            (_, Family::V6) => 70,
        };
        self.spec.pod_mtu.unwrap_or(self.spec.mtu - overhead)
    }

    fn add_node(&mut self, number: u16) {
        let node = Node::create(&self.prefix, &self.root.0, &self.spec, number, &self.fabric);
        node.write_config(&self.spec, &self.manifests);
        self.manifests.write(&format!("node-{}.yaml", node.spec.name), &manifest::node(&self.spec, number));
        match node.spec.kind {
            Kind::Kernel => match self.spec.overlay {
                Some(overlay) => overlay.join(&self.spec, number, &node.ns),
                None => kernel::join(&self.spec, number, &node.ns),
            },
            Kind::Fastpath => self.native_routes(&node),
        }
        if self.spec.encap == Encap::None {
            // The underlay knows where pods are.
            self.fabric.ip(kernel::direct_routes(node.spec.subnet, number));
        }
        self.nodes.push(node);
    }

    /// Without a tunnel the nodes of one subnet know the way to each other's pods from a routing daemon.
    fn native_routes(&self, node: &Node) {
        if self.spec.encap != Encap::None {
            return;
        }
        let peers: Vec<(u16, &NodeSpec)> = (1..).zip(&self.spec.nodes).collect();
        for (peer, spec) in peers {
            if peer != node.number && spec.subnet == node.spec.subnet {
                node.ns.ip(kernel::direct_routes(spec.subnet, peer));
            }
        }
    }

    fn create_pod(&mut self, node: usize, number: u16) -> String {
        let host = &self.nodes[node];
        let name = format!("{}{number}", host.spec.name);
        let wiring = Wiring {
            kind: host.spec.kind,
            mtu: self.pod_mtu(),
            partial_checksums: self.spec.partial_checksums,
        };
        let pod = Pod::create(&self.prefix, &name, (node, number), &host.ns, wiring);
        self.manifests.write(&format!("pod-{name}.yaml"), &self.pod_manifest(&pod));
        self.pods.push(pod);
        name
    }

    fn wait_endpoint(&self, pod: &Pod) {
        let cli = self.nodes[pod.node].cli();
        let address = pod.ip(Family::V4).to_string();
        eventually(&format!("endpoint {} is attached", pod.name), Duration::from_secs(15), || {
            cli.endpoint_ready(&address).then_some(())
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                if let Some(daemon) = &node.daemon {
                    eprintln!("{}", daemon.log_text());
                    for topic in ["drops", "ports", "endpoints"] {
                        eprintln!(
                            "{}: {topic}:\n{}",
                            node.spec.name,
                            node.cli().run(&["show", topic]).stdout
                        );
                    }
                }
            }
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.0) {
            eprintln!("lab: {}: {e}", self.0.display());
        }
    }
}

/// Removes what labs of killed test processes left.
fn sweep() {
    let abandoned = |name: &str| {
        name.strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
    };
    let names = |dir: &Path| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).filter(|n| abandoned(n)).collect()
    };
    for name in names(Path::new("/run/netns")) {
        ns::remove(&name);
    }
    for dir in [std::env::temp_dir(), PathBuf::from("/sys/fs/bpf")] {
        for name in names(&dir) {
            drop(std::fs::remove_dir_all(dir.join(name)));
        }
    }
}
