//! Which devices lead to other nodes.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::view::{AddressState, Link, LinkKind, NetView, Scope};

/// A device that leads to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The device.
    pub link: Link,
    /// How it was chosen.
    pub by: ChosenBy,
}

/// Why a device is an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// Named in `uplink.interfaces`.
    Name,
    /// It has an address in a network of `uplink.cidrs`.
    Cidr,
    /// A default route leaves by it.
    DefaultRoute,
}

/// Why a device cannot be an uplink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UplinkError {
    /// No device of that name.
    #[error("uplink '{name}': no such network device; there are {present}: correct uplink.interfaces")]
    NotFound {
        /// Name as configured.
        name: String,
        /// The names there are, in a list.
        present: String,
    },
    /// No device has an address in a network.
    #[error("no uplink by uplink.cidrs: no device has an address in {cidr}")]
    NoAddressIn {
        /// The network.
        cidr: IpNet,
    },
    /// Nothing named, and no default route.
    #[error("no uplink: uplink.interfaces is empty and there is no default route: name the device there")]
    NoDefaultRoute,
    /// A device of a kind that does not do.
    #[error("uplink '{name}' is a {kind}: {why}")]
    Kind {
        /// Name.
        name: String,
        /// What it is.
        kind: String,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// A port of a bond or a bridge.
    #[error("uplink '{name}' is a port of '{master}', which takes its packets: not supported as an uplink")]
    Enslaved {
        /// Name.
        name: String,
        /// Name of the bond or bridge.
        master: String,
    },
    /// Administratively down.
    #[error("uplink '{name}' is down: `ip link set {name} up` first")]
    Down {
        /// Name.
        name: String,
    },
    /// Packets may be longer than a frame of ours.
    #[error(
        "uplink '{name}' has an MTU of {mtu}, frames hold {max}: lower the MTU or raise memory.frame_size"
    )]
    Mtu {
        /// Name.
        name: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// The longest IP packet a frame holds, in bytes.
        max: u32,
    },
}

/// The uplinks: the devices of these names and those with an address in one of these networks, or without both those of
/// the default routes; and what is wrong with those that cannot be one.
///
/// `max_mtu` is the longest IP packet a frame holds, in bytes. The order is that of `names`, then `cidrs`; duplicates once.
#[must_use]
pub fn select_uplinks<S: AsRef<str>>(
    view: &NetView,
    names: &[S],
    cidrs: &[IpNet],
    max_mtu: u32,
) -> (Vec<Uplink>, Vec<UplinkError>) {
    let mut uplinks: Vec<Uplink> = Vec::new();
    let mut errors = Vec::new();
    let mut add = |link: Result<&Link, UplinkError>, by| match link
        .and_then(|link| check(view, link, max_mtu).map(|()| link))
    {
        Ok(link) if uplinks.iter().any(|u| u.link.index == link.index) => {}
        Ok(link) => uplinks.push(Uplink { link: link.clone(), by }),
        Err(e) if errors.contains(&e) => {}
        Err(e) => errors.push(e),
    };
    for name in names.iter().map(AsRef::as_ref) {
        let missing = || UplinkError::NotFound { name: name.to_owned(), present: present(view) };
        add(view.link_by_name(name).ok_or_else(missing), ChosenBy::Name);
    }
    for cidr in cidrs {
        let mut found = with_address_in(view, cidr).peekable();
        if found.peek().is_none() {
            add(Err(UplinkError::NoAddressIn { cidr: *cidr }), ChosenBy::Cidr);
        }
        found.for_each(|link| add(Ok(link), ChosenBy::Cidr));
    }
    if names.is_empty() && cidrs.is_empty() {
        for link in view.default_route_devices().iter().filter_map(|index| view.links.get(index)) {
            add(Ok(link), ChosenBy::DefaultRoute);
        }
        if uplinks.is_empty() && errors.is_empty() {
            errors.push(UplinkError::NoDefaultRoute);
        }
    }
    (uplinks, errors)
}

impl UplinkError {
    /// Whether the device of that name, an uplink until now, had better stay one: what is wrong passes, or does not
    /// keep it from forwarding, and to detach it would cut off every other node.
    #[must_use]
    pub fn keeps(&self, device: &str) -> bool {
        match self {
            // An address may be away for a moment, and which device had it is not known any more.
            Self::NoDefaultRoute | Self::NoAddressIn { .. } => true,
            Self::Down { name } | Self::Mtu { name, .. } => name == device,
            Self::NotFound { .. } | Self::Kind { .. } | Self::Enslaved { .. } => false,
        }
    }
}

/// The devices that have an address in a network, by index. Loopback and dummy devices hold addresses that are nobody's
/// way out, and those of link scope are on any device, also on the host's end of our own pair.
fn with_address_in<'v>(view: &'v NetView, cidr: &'v IpNet) -> impl Iterator<Item = &'v Link> {
    let holds = |index: u32| {
        let usable = view
            .addresses_of(index)
            .filter(|a| a.state != AddressState::Duplicate && !matches!(a.scope, Scope::Link | Scope::Host));
        usable.map(|a| a.net.addr()).any(|addr| cidr.contains(&addr))
    };
    view.links.values().filter(move |link| {
        let way_out = match &link.kind {
            LinkKind::Loopback => false,
            LinkKind::Other(kind) => kind != "dummy",
            _ => true,
        };
        way_out && holds(link.index)
    })
}

fn present(view: &NetView) -> String {
    let names: Vec<&str> =
        view.links.values().filter(|l| l.kind != LinkKind::Loopback).map(|l| l.name.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn check(view: &NetView, link: &Link, max_mtu: u32) -> Result<(), UplinkError> {
    let name = || link.name.clone();
    let why = match &link.kind {
        LinkKind::Loopback => Some("it leads nowhere; name the device towards other nodes"),
        LinkKind::Bond | LinkKind::Team => {
            Some("AF_XDP sockets bind to its ports, not to it; not supported as an uplink")
        }
        LinkKind::Vlan(_) => {
            Some("tagged frames pass to the kernel on the device below; VLANs are not supported as an uplink")
        }
        LinkKind::Bridge => Some("its ports see the packets first; name the port, taken out of the bridge"),
        LinkKind::Vxlan => Some("the tunnel is the dataplane's own work; name the device below it"),
        LinkKind::Other(kind) if kind == "wireguard" => Some(
            "it carries IP packets without Ethernet, which AF_XDP cannot take; name the device below it \
             (pods' packets then cross it outside WireGuard)",
        ),
        LinkKind::Device | LinkKind::Veth | LinkKind::Other(_) => {
            link.mac.is_none().then_some("it has no Ethernet address; only Ethernet devices can be uplinks")
        }
    };
    if let Some(why) = why {
        return Err(UplinkError::Kind { name: name(), kind: link.kind.to_string(), why });
    }
    if let Some(master) = link.master {
        let master = view.links.get(&master).map_or_else(|| format!("#{master}"), |l| l.name.clone());
        return Err(UplinkError::Enslaved { name: name(), master });
    }
    if !link.up {
        return Err(UplinkError::Down { name: name() });
    }
    if link.mtu > max_mtu {
        return Err(UplinkError::Mtu { name: name(), mtu: link.mtu, max: max_mtu });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
