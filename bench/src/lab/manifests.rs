//! The objects that the daemon works from: pods, 51 policies on each of them, 1,000 services.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::topology::{
    CLIENT, SENDER, SERVER, SERVICE, Topology, VTEP_LOCAL, VTEP_REMOTE, mac_of, pod_address,
};

/// Services, for us as for the kernel.
pub(crate) const SERVICES: u16 = 1000;
/// Policies that name other peers, besides the one that allows.
const POLICIES: u16 = 50;
/// Port of services, and of their backends.
pub(crate) const SERVICE_PORT: u16 = 80;
pub(crate) const BACKEND_PORT: u16 = 9000;

/// Address of the n-th service: the first is [`SERVICE`].
pub(crate) fn service_address(n: u16) -> Ipv4Addr {
    let [a, b, ..] = SERVICE.octets();
    let [high, low] = (n + 1).to_be_bytes();
    Ipv4Addr::new(a, b, high, low)
}

/// Where the n-th service's backend is.
pub(crate) fn backend(n: u16) -> Ipv4Addr {
    if n == 0 { pod_address(0) } else { Ipv4Addr::new(10, 77, 4 + n.to_be_bytes()[0], n.to_be_bytes()[1]) }
}

/// Writes them for a topology.
pub(super) fn write(topology: &Topology) -> Result<()> {
    let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n");
    for (n, vtep, cidr) in [(1, VTEP_LOCAL, "10.77.0.0/22"), (2, VTEP_REMOTE, "10.77.4.0/22")] {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-{n}\n  annotations:\n    \
             projectcalico.org/VXLANTunnelMACAddr: \"{vtep}\"\nspec:\n  podCIDR: {cidr}\n  podCIDRs:\n  - {cidr}\n\
             status:\n  addresses:\n  - type: InternalIP\n    address: \"192.168.77.{n}\"\n"
        );
    }
    let netns = |ns: &super::netns::NetNs| format!("\n    fastpath.io/netns: {}", ns.path());
    pod(&mut text, "a", "fp-a", SENDER, "sender", &netns(&topology.sender));
    pod(&mut text, "c", "fp-c", CLIENT, "socket", &netns(&topology.client));
    pod(&mut text, "d", "fp-d", SERVER, "socket", &netns(&topology.server));
    for n in 0..topology.pods {
        pod(&mut text, &format!("b{n}"), &format!("fp{n}"), pod_address(n), "sink", "");
    }
    for n in 0..POLICIES {
        let _ = write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{n}, namespace: default}}\n\
             spec:\n  podSelector: {{matchLabels: {{role: sink}}}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: \
             [{{ipBlock: {{cidr: 10.200.{n}.0/24}}}}]\n    ports: [{{protocol: UDP, port: {}}}]\n",
            2000 + n
        );
    }
    text += "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: allow, namespace: default}\n\
             spec:\n  podSelector: {matchLabels: {role: sink}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: \
             [{podSelector: {matchLabels: {role: sender}}}, {podSelector: {matchLabels: {role: socket}}}]\n";
    for n in 0..SERVICES {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: default}}\nspec:\n  clusterIP: {}\n  \
             ports: [{{name: p, port: {SERVICE_PORT}, protocol: UDP}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: \
             EndpointSlice\nmetadata: {{name: s{n}-x, namespace: default, labels: {{kubernetes.io/service-name: \
             s{n}}}}}\naddressType: IPv4\nports: [{{name: p, port: {BACKEND_PORT}, protocol: UDP}}]\nendpoints:\n- \
             {{addresses: [{}], conditions: {{ready: true}}}}\n",
            service_address(n),
            backend(n)
        );
    }
    Ok(std::fs::write(topology.dir.join("manifests/all.yaml"), text)?)
}

fn pod(text: &mut String, name: &str, interface: &str, address: Ipv4Addr, role: &str, more: &str) {
    let _ = write!(
        text,
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  labels: {{role: {role}}}\n  \
         annotations:\n    fastpath.io/interface: {interface}\n    fastpath.io/mac: \"{}\"{more}\nspec:\n  nodeName: \
         node-1\n  containers:\n  - name: main\n    image: none\nstatus:\n  phase: Running\n  podIP: {address}\n  \
         podIPs:\n  - ip: {address}\n",
        mac_of(address)
    );
}
