//! The checks of who else does the dataplane's work on this node: network plugins, kube-proxy.
#![forbid(unsafe_code)]

use super::{Facts, Findings};
use crate::config::Config;

/// Our configuration for container runtimes.
const OURS: &str = "10-fastpath.conflist";

/// Devices by which a network plugin is known: the beginning of their names, and whose they are.
const DEVICES: &[(&str, &str)] = &[
    ("cali", "Calico"),
    ("vxlan.calico", "Calico"),
    ("vxlan-v6.calico", "Calico"),
    ("tunl0", "Calico (IP in IP)"),
    ("cilium_", "Cilium"),
    ("lxc", "Cilium"),
    ("flannel", "flannel"),
    ("cni0", "flannel or the bridge plugin"),
    ("weave", "Weave Net"),
    ("antrea-", "Antrea"),
    ("kube-bridge", "kube-router"),
    ("ovn-k8s", "OVN-Kubernetes"),
    ("eni", "the AWS VPC CNI"),
];

pub(super) fn plugins(facts: &Facts, _: &Config, out: &mut Findings) {
    match &facts.conflists {
        Ok(names) => in_force(names, out),
        Err(e) => out.warning(
            format!("/etc/cni/net.d cannot be seen from here: {e}"),
            format!("look on the node itself, or mount the folder: {OURS} must come first by name"),
        ),
    }
    devices(facts, out);
}

fn in_force(names: &[String], out: &mut Findings) {
    match names.first().map(String::as_str) {
        None => out.ok("/etc/cni/net.d is empty"),
        Some(OURS) => out.ok(format!("{OURS} is in force")),
        Some(other) if names.iter().any(|c| c == OURS) => out.error(
            format!("/etc/cni/net.d/{other} comes before {OURS}: runtimes take the first by name"),
            format!("move {other} away once no pod of its plugin runs here (kubectl drain)"),
        ),
        Some(other) => out.warning(
            format!("/etc/cni/net.d/{other} is in force"),
            format!("{OURS} must come first by name: move {other} away when switching over"),
        ),
    }
}

fn devices(facts: &Facts, out: &mut Findings) {
    let Ok(net) = &facts.net else { return };
    // A VXLAN device of flannel's is told by its name and kind; "lxc" and "eni" are names others use as well.
    for (prefix, whose) in DEVICES {
        let theirs = net.links.values().filter(|l| l.name.starts_with(prefix));
        let theirs = theirs.filter(|l| !matches!(*prefix, "lxc" | "eni" | "cali") || is_pod_side(l));
        let names: Vec<&str> = theirs.map(|l| l.name.as_str()).collect();
        let Some(one) = names.first() else { continue };
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        out.warning(
            format!("devices of {whose}: {one}{more}"),
            "drain the node and restart its pods on fastpath; remove what the other plugin left (its uninstall, or a reboot)",
        );
    }
}

/// Whether it is the host's side of a pod's veth.
fn is_pod_side(link: &crate::netdev::Link) -> bool {
    link.kind == crate::netdev::LinkKind::Veth
}

pub(super) fn kube_proxy(facts: &Facts, _: &Config, out: &mut Findings) {
    const REMEDY: &str =
        "stop kube-proxy on this node and have it clean up (kube-proxy --cleanup): services are fastpath's";
    let mut found = false;
    match &facts.chains {
        None => out.warning(
            "the packet filter's chains cannot be read",
            "run as root; or look for KUBE-SERVICES with nft list ruleset",
        ),
        Some(chains) => {
            let own = chains.iter().filter(|c| c.table == "kube-proxy").count();
            let iptables = chains.iter().filter(|c| c.name == "KUBE-SERVICES").count();
            if own > 0 {
                found = true;
                out.warning(format!("nftables rules of kube-proxy: table kube-proxy, {own} chains"), REMEDY);
            }
            if iptables > 0 {
                found = true;
                out.warning("iptables rules of kube-proxy: chain KUBE-SERVICES", REMEDY);
            }
        }
    }
    if facts.ipvs_services > 0 {
        found = true;
        out.warning(format!("{} virtual services in IPVS", facts.ipvs_services), REMEDY);
    }
    let ipvs_device = facts.net.as_ref().is_ok_and(|n| n.link_by_name("kube-ipvs0").is_some());
    if ipvs_device {
        found = true;
        out.error(
            "device kube-ipvs0 holds the services' addresses: the node would answer for them itself",
            "stop kube-proxy, then ip link del kube-ipvs0",
        );
    }
    if !facts.legacy_tables.is_empty() && !found {
        found = true;
        out.warning(
            format!(
                "iptables-legacy is in use (tables {}): whose rules they are cannot be told",
                facts.legacy_tables.join(", ")
            ),
            "iptables-legacy-save | grep KUBE- tells whether kube-proxy's are among them",
        );
    }
    if !found && facts.chains.is_some() {
        out.ok("no rules of it");
    }
}
