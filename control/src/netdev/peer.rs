//! The other end of a veth, seen without entering its network namespace.
//!
//! A veth names its other end by index (`IFLA_LINK`) and by the id that our namespace knows the other by
//! (`IFLA_LINK_NETNSID`); the kernel then answers `RTM_GETLINK` for that namespace (`IFLA_TARGET_NETNSID`, since
//! Linux 4.20), if we may administer it.
#![forbid(unsafe_code)]

use fastpath::packet::Mac;

use super::decode::{self, IFLA_IFNAME, IFLA_TARGET_NETNSID, LINK_HEADER};
use super::view::{Link, LinkKind, LinkRef};
use super::wire::{NLM_F_ACK, RTM_GETLINK, RTM_NEWLINK, Request};
use super::{Error, Netlink};

/// The other end of a veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub at: LinkRef,
    /// Name in its namespace (`eth0`).
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Receive queues allocated.
    pub rx_queues: u32,
    /// Transmit queues allocated.
    pub tx_queues: u32,
}

impl Netlink {
    /// The link with this index, asked of the kernel now.
    ///
    /// # Errors
    /// [`Error::NoDevice`], or what the kernel says.
    pub fn link(&mut self, index: u32) -> Result<Link, Error> {
        self.get_link(index, None).map_err(|e| e.or_no_device(&format!("#{index}")))
    }

    /// The link of this name, asked of the kernel now.
    ///
    /// # Errors
    /// [`Error::NoDevice`], or what the kernel says.
    pub fn link_named(&mut self, name: &str) -> Result<Link, Error> {
        let mut request = Request::new(RTM_GETLINK, NLM_F_ACK, &[0; LINK_HEADER]);
        let mut zero_terminated = name.as_bytes().to_vec();
        zero_terminated.push(0);
        request.attr(IFLA_IFNAME, &zero_terminated);
        self.one_link(request, name).map_err(|e| e.or_no_device(name))
    }

    /// The other end of the veth with this index, asked of the kernel now.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NotVeth`], [`Error::PeerHidden`] when its namespace has no id here or may not be
    /// read, [`Error::PeerGone`].
    pub fn peer_of(&mut self, index: u32) -> Result<Peer, Error> {
        let link = self.link(index)?;
        self.peer_of_link(&link)
    }

    pub(super) fn peer_of_link(&mut self, link: &Link) -> Result<Peer, Error> {
        if link.kind != LinkKind::Veth {
            return Err(Error::NotVeth { device: link.name.clone(), kind: link.kind.to_string() });
        }
        let gone = || Error::PeerGone { device: link.name.clone() };
        let at = link.lower.ok_or_else(gone)?;
        let hidden = |source| Error::PeerHidden { device: link.name.clone(), source };
        // NETNSA_NSID_NOT_ASSIGNED: the kernel could not give the namespace an id.
        if at.netns.is_some_and(|id| id < 0) {
            return Err(hidden(std::io::ErrorKind::NotFound.into()));
        }
        let peer = match self.get_link(at.index, at.netns) {
            Ok(peer) => peer,
            Err(Error::Kernel { source, .. }) => {
                return Err(match source.raw_os_error() {
                    Some(nix::libc::ENODEV) => gone(),
                    _ => hidden(source),
                });
            }
            Err(e) => return Err(e),
        };
        // The id and the index are read in two steps: what answered must point back at us.
        if peer.lower.map(|l| l.index) != Some(link.index) {
            return Err(gone());
        }
        let mac = peer.mac.ok_or_else(gone)?;
        let Link { name, mtu, up, rx_queues, tx_queues, .. } = peer;
        Ok(Peer { at, name, mac, mtu, up, rx_queues, tx_queues })
    }

    fn get_link(&mut self, index: u32, netns: Option<i32>) -> Result<Link, Error> {
        let mut header = [0; LINK_HEADER];
        if let Some(place) = header.get_mut(4..8) {
            place.copy_from_slice(&index.to_ne_bytes());
        }
        let mut request = Request::new(RTM_GETLINK, NLM_F_ACK, &header);
        if let Some(id) = netns {
            request.attr(IFLA_TARGET_NETNSID, &id.to_ne_bytes());
        }
        self.one_link(request, &format!("#{index}"))
    }

    fn one_link(&mut self, request: Request, name: &str) -> Result<Link, Error> {
        let mut found = None;
        let what = || format!("read the device {name}");
        self.call(what, request, |m| {
            if m.kind == RTM_NEWLINK {
                found = decode::link(m.payload).or(found.take());
            }
        })?;
        found.ok_or_else(|| Error::NoDevice { device: name.to_owned() })
    }
}
