//! A node of Linux alone as Calico's or flannel's VXLAN sets it up: device, tunnel address, routes, neighbours, FDB, and
//! what each writes into its Node's annotations.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::ns::NetNs;
use super::spec::{Family, LabSpec, UPLINK, mac_text, pod_cidr, underlay, vtep_mac};

/// Whose VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlay {
    /// Calico's: a tunnel address of its own, a route for each block of a node.
    Calico,
    /// Flannel's: the first address of each node's subnet is its tunnel address.
    Flannel,
}

impl Overlay {
    /// VNI and UDP port, as each has them by default.
    pub(crate) fn vni_and_port(self) -> (u32, u16) {
        match self {
            Overlay::Calico => (4096, 4789),
            Overlay::Flannel => (1, 8472),
        }
    }

    /// Name of the device.
    pub(crate) fn device(self, family: Family) -> &'static str {
        match (self, family) {
            (Overlay::Calico, Family::V4) => "vxlan.calico",
            (Overlay::Calico, Family::V6) => "vxlan-v6.calico",
            (Overlay::Flannel, Family::V4) => "flannel.1",
            (Overlay::Flannel, Family::V6) => "flannel-v6.1",
        }
    }

    /// Address of the device on node `number`. Calico's is in no pod CIDR here: its IPAM does not go by them.
    pub(crate) fn tunnel_address(self, number: u16, family: Family) -> IpAddr {
        let text = match (self, family) {
            (Overlay::Calico, Family::V4) => format!("10.99.{number}.64"),
            (Overlay::Calico, Family::V6) => format!("fd00:99:{number}::40"),
            (Overlay::Flannel, Family::V4) => format!("10.77.{number}.0"),
            (Overlay::Flannel, Family::V6) => format!("fd00:77:{number}::"),
        };
        text.parse().expect("an address")
    }

    /// What the routes of the other nodes lead to node `number` by.
    fn prefix(self, number: u16, family: Family) -> String {
        match (self, family) {
            // One block of the node's addresses; the pods of a lab have the first ones.
            (Overlay::Calico, Family::V4) => format!("10.77.{number}.0/26"),
            (Overlay::Calico, Family::V6) => format!("fd00:77:{number}::/122"),
            (Overlay::Flannel, family) => pod_cidr(number, family),
        }
    }

    /// Where packets of the tunnel to a node of Linux alone go: not to its InternalIP, so that the annotation counts.
    pub(crate) fn outer_address(subnet: u8, number: u16, family: Family) -> IpAddr {
        underlay(subnet, 100 + number, family)
    }

    /// Sets up node `number`; both ends of its tunnels are of `lab.outer`, and so are the pods it can reach.
    pub(crate) fn join(self, lab: &LabSpec, number: u16, ns: &NetNs) {
        let (family, device, (vni, port)) = (lab.outer, self.device(lab.outer), self.vni_and_port());
        let (len, overhead, nodad) = if family == Family::V4 { (32, 50, "") } else { (128, 70, " nodad") };
        let subnet = |n: u16| lab.nodes[usize::from(n) - 1].subnet;
        let local = Self::outer_address(subnet(number), number, family);
        ns.sysctl("ipv4/ip_forward", "1");
        ns.sysctl("ipv6/conf/all/forwarding", "1");
        ns.ip([
            format!("addr add {local}/{len} dev {UPLINK}{nodad}"),
            format!(
                "link add {device} address {mac} mtu {mtu} type vxlan id {vni} local {local} dev {UPLINK} \
                 dstport {port} nolearning",
                mac = mac_text(vtep_mac(number, family)),
                mtu = lab.mtu - overhead,
            ),
            format!("addr add {}/{len} dev {device}{nodad}", self.tunnel_address(number, family)),
            format!("link set {device} up"),
        ]);
        for peer in (1..).take(lab.nodes.len()).filter(|n| *n != number) {
            let (via, mac) = (self.tunnel_address(peer, family), mac_text(vtep_mac(peer, family)));
            let remote = underlay(subnet(peer), peer, family);
            ns.ip([
                format!("neigh add {via} lladdr {mac} dev {device} nud permanent"),
                format!("route add {} via {via} dev {device} onlink", self.prefix(peer, family)),
            ]);
            ns.exec("bridge", &["fdb", "append", &mac, "dev", device, "dst", &remote.to_string()]);
        }
    }

    /// Lines of annotations of node `number`'s Node, as its agent writes them; `linux` is a node of Linux alone.
    pub(crate) fn annotations(self, lab: &LabSpec, number: u16, linux: bool) -> String {
        let subnet = lab.nodes[usize::from(number) - 1].subnet;
        let mut out = String::new();
        let mut line = |key: &str, value: &str| writeln!(out, "    {key}: '{value}'").expect("to memory");
        let family = lab.outer;
        let six = family == Family::V6;
        let mac = mac_text(vtep_mac(number, family));
        let outer = match linux {
            true => Self::outer_address(subnet, number, family),
            false => underlay(subnet, number, family),
        };
        let tunnel = self.tunnel_address(number, family).to_string();
        match self {
            Overlay::Calico => {
                let (f, len) = if six { ("IPv6", 64) } else { ("IPv4", 24) };
                line(&format!("projectcalico.org/{f}Address"), &format!("{outer}/{len}"));
                line(&format!("projectcalico.org/{f}VXLANTunnelAddr"), &tunnel);
                let key = if six { "VXLANTunnelMACAddrV6" } else { "VXLANTunnelMACAddr" };
                line(&format!("projectcalico.org/{key}"), &mac);
            }
            Overlay::Flannel => {
                let (data, ip) =
                    if six { ("backend-v6-data", "public-ipv6") } else { ("backend-data", "public-ip") };
                line(
                    &format!("flannel.alpha.coreos.com/{data}"),
                    &format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"),
                );
                line("flannel.alpha.coreos.com/backend-type", "vxlan");
                line(&format!("flannel.alpha.coreos.com/{ip}"), &outer.to_string());
                line("flannel.alpha.coreos.com/kube-subnet-manager", "true");
            }
        }
        out
    }
}
