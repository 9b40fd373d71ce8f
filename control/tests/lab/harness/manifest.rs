//! The Kubernetes objects of a lab as YAML files in the folder its daemons watch.
//!
//! With `FASTPATH_LAB_SOURCE=kubernetes` the daemons follow an API server, which gets what the files say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::mirror::Mirror;
use super::spec::{Family, Kind, LabSpec, mac_text, pod_cidr, underlay, vtep_mac};
use crate::apiserver::Server;

/// The folder and what is written to it.
#[derive(Debug)]
pub(crate) struct Manifests {
    dir: PathBuf,
    staging: PathBuf,
    /// Where the daemons' objects come from, if not from the folder.
    mirror: Option<Mirror>,
}

impl Manifests {
    /// An empty folder inside `root`.
    pub(crate) fn create(root: &Path) -> Self {
        let (dir, staging) = (root.join("manifests"), root.join("staging"));
        std::fs::create_dir_all(&dir).expect("make the manifests folder");
        std::fs::create_dir_all(&staging).expect("make the staging folder");
        Manifests { dir, staging, mirror: None }
    }

    /// Gives the daemons an API server instead of the folder.
    pub(crate) fn mirror_to(&mut self, mirror: Mirror) {
        self.mirror = Some(mirror);
    }

    /// The API server, of a lab that has one.
    pub(crate) fn server(&mut self) -> &mut Server {
        self.mirror.as_mut().expect("the lab is by_api").server()
    }

    /// Keys of section `[source]` for the daemons, and those that go with them.
    pub(crate) fn source_keys(&self) -> String {
        match &self.mirror {
            Some(mirror) => {
                // The lab's pods name their devices by annotations, also where they come by the API.
                format!(
                    "kind = \"kubernetes\"\nkubeconfig = \"{}\"\n\n[pods]\nannotations = true",
                    mirror.kubeconfig().display()
                )
            }
            None => format!("kind = \"directory\"\npath = \"{}\"", self.dir.display()),
        }
    }

    /// What a daemon has seen of the API once it has seen all that is written now: version by kind. `None` without an API.
    pub(crate) fn versions(&self) -> Option<BTreeMap<String, u64>> {
        self.mirror.as_ref().map(Mirror::versions)
    }

    /// The folder to watch.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file of the folder at once: a watcher never sees half of it.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let staged = self.staging.join(file);
        std::fs::write(&staged, text).expect("write a manifest");
        std::fs::rename(&staged, self.dir.join(file)).expect("move a manifest into the folder");
        if let Some(mirror) = &self.mirror {
            mirror.put(file, text);
        }
    }

    /// Removes all files of the folder and returns them, by name and text.
    pub(crate) fn take_all(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(&self.dir).expect("list the manifests");
        let all: Vec<(String, String)> = entries
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let text = std::fs::read_to_string(&path).expect("read a manifest");
                std::fs::remove_file(&path).expect("remove a manifest");
                (path.file_name().and_then(|n| n.to_str()).expect("a name").to_owned(), text)
            })
            .collect();
        if let Some(mirror) = &self.mirror {
            all.iter().for_each(|(file, _)| mirror.put(file, ""));
        }
        all
    }

    /// Removes a file of the folder.
    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.dir.join(file)).expect("remove a manifest");
        if let Some(mirror) = &self.mirror {
            mirror.put(file, "");
        }
    }
}

/// Name of a node as an object.
pub(crate) fn node_name(short: &str) -> String {
    format!("node-{short}")
}

/// The Namespace all pods are in.
pub(crate) fn namespace() -> String {
    "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n".to_owned()
}

/// The Node object of node `number` of the lab.
pub(crate) fn node(lab: &LabSpec, number: u16) -> String {
    let spec = &lab.nodes[usize::from(number) - 1];
    let mut families = Family::BOTH;
    // The first InternalIP is the node's; the family of the tunnel picks among them.
    if lab.outer == Family::V6 {
        families.reverse();
    }
    let addresses: String = families
        .iter()
        .map(|&f| format!("  - type: InternalIP\n    address: \"{}\"\n", underlay(spec.subnet, number, f)))
        .collect();
    let annotations = if let Some(overlay) = lab.overlay {
        format!("  annotations:\n{}", overlay.annotations(lab, number, spec.kind == Kind::Kernel))
    } else if lab.announce_vtep_macs {
        format!(
            "  annotations:
    projectcalico.org/VXLANTunnelMACAddr: \"{}\"
    projectcalico.org/VXLANTunnelMACAddrV6: \"{}\"
",
            mac_text(vtep_mac(number, Family::V4)),
            mac_text(vtep_mac(number, Family::V6)),
        )
    } else {
        String::new()
    };
    format!(
        "apiVersion: v1
kind: Node
metadata:
  name: {name}
{annotations}spec:
  podCIDR: {cidr4}
  podCIDRs:
  - {cidr4}
  - {cidr6}
status:
  addresses:
{addresses}",
        name = node_name(spec.name),
        cidr4 = pod_cidr(number, Family::V4),
        cidr6 = pod_cidr(number, Family::V6),
    )
}

/// What a Pod manifest says.
#[derive(Debug)]
pub(crate) struct PodManifest<'a> {
    /// Name.
    pub(crate) name: &'a str,
    /// Short name of its node.
    pub(crate) node: &'a str,
    /// Addresses, first the primary one.
    pub(crate) addresses: [String; 2],
    /// Host side of its veth.
    pub(crate) interface: &'a str,
    /// `fastpath.io/mac`.
    pub(crate) mac: Option<[u8; 6]>,
}

/// The Pod object.
pub(crate) fn pod(p: &PodManifest<'_>) -> String {
    let mac = p.mac.map(|m| format!("\n    fastpath.io/mac: \"{}\"", mac_text(m))).unwrap_or_default();
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: default
  labels:
    app: {name}
  annotations:
    fastpath.io/interface: {interface}{mac}
spec:
  nodeName: {node}
  containers:
  - name: main
    image: none
status:
  phase: Running
  podIP: \"{first}\"
  podIPs:
  - ip: \"{first}\"
  - ip: \"{second}\"
",
        name = p.name,
        interface = p.interface,
        node = node_name(p.node),
        first = p.addresses[0],
        second = p.addresses[1],
    )
}
