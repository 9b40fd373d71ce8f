//! Addresses and ports that are translated on the way: sources of pods that talk to the outside, ICMP errors
//! about translated packets, fragments of them.

mod errors;
mod fragments;
mod pmtu;
mod snat;

use std::net::IpAddr;

use crate::harness::lab::Lab;
use crate::harness::ns::NetNs;
use crate::harness::spec::Family;

/// A host behind the underlay's router, by a link of this MTU. It announces a larger one all the same, so
/// that whoever sends to it must learn.
const FAR_MTU: u32 = 1300;

/// See [`FAR_MTU`].
struct Far {
    ns: NetNs,
}

impl Far {
    fn create(lab: &Lab) -> Self {
        let ns = NetNs::create(&format!("{}-far", lab.fabric.name()));
        lab.fabric.ip([
            format!("link add to-far mtu {FAR_MTU} type veth peer name up0 mtu 1500 netns {}", ns.name()),
            "addr add 192.168.90.1/24 dev to-far".to_owned(),
            "addr add fd90::1/64 dev to-far nodad".to_owned(),
            "link set to-far up".to_owned(),
        ]);
        ns.ip([
            "addr add 192.168.90.2/24 dev up0".to_owned(),
            "addr add fd90::2/64 dev up0 nodad".to_owned(),
            "link set up0 up".to_owned(),
            // What it sends fits; what it says of itself does not.
            format!("route add default via 192.168.90.1 mtu lock {FAR_MTU} advmss 1460"),
            format!("route add default via fd90::1 mtu lock {FAR_MTU} advmss 1440"),
        ]);
        for (ns, device) in [(&lab.fabric, "to-far"), (&ns, "up0")] {
            ns.exec("ethtool", &["-K", device, "tx", "off"]);
        }
        Far { ns }
    }

    fn ip(&self, family: Family) -> IpAddr {
        let text = if family == Family::V4 { "192.168.90.2" } else { "fd90::2" };
        text.parse().unwrap()
    }
}

/// Address of the underlay's router on the side of the nodes.
fn router(family: Family) -> IpAddr {
    crate::harness::spec::underlay(0, crate::harness::spec::ROUTER, family)
}
