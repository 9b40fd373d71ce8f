//! What a device's driver can do for XDP, by the generic netlink family `netdev` (since Linux 6.3).
//!
//! Layout: `linux/netdev.h`, Documentation/netlink/specs/netdev.yaml.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::wire::{NLM_F_ACK, NLM_F_DUMP, Request, attrs_after};
use super::{Error, Netlink, ethtool};

/// Length of `struct genlmsghdr`.
const HEADER: usize = 4;
const DEV_GET: u8 = 1;
const A_IFINDEX: u16 = 1;
const A_XDP_FEATURES: u16 = 3;

/// `enum netdev_xdp_act`.
const BASIC: u64 = 1;
const REDIRECT: u64 = 2;
const NDO_XMIT: u64 = 4;
const XSK_ZEROCOPY: u64 = 8;

/// What a driver can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Runs programs, and redirects frames: native mode.
    pub native: bool,
    /// Sends frames that are redirected to it; a veth, while its other end has GRO on or a native program.
    pub redirect_target: bool,
    /// Shares its memory with AF_XDP sockets.
    pub zero_copy: bool,
}

/// What the driver of the device with this index can do.
///
/// # Errors
/// [`Error::Kernel`]: also when the kernel does not tell (before Linux 6.3).
pub fn xdp_features(link: u32) -> Result<XdpFeatures, Error> {
    let mut netlink = Netlink::generic()?;
    let family = ethtool::family(&mut netlink, "netdev", "6.3")?;
    let mut request = Request::new(family, NLM_F_ACK, &[DEV_GET, 1, 0, 0]);
    request.u32(A_IFINDEX, link);
    let mut bits = 0;
    netlink.call(
        || format!("read the XDP features of device #{link}"),
        request,
        |m| {
            let found = attrs_after(m.payload, HEADER).find(|a| a.kind == A_XDP_FEATURES);
            bits = found.and_then(|a| a.value.try_into().ok()).map_or(bits, u64::from_ne_bytes);
        },
    )?;
    Ok(XdpFeatures {
        native: bits & (BASIC | REDIRECT) == BASIC | REDIRECT,
        redirect_target: bits & NDO_XMIT != 0,
        zero_copy: bits & XSK_ZEROCOPY != 0,
    })
}

/// Asks which devices send frames that are redirected to them ([`XdpFeatures::redirect_target`]), of all at once.
#[derive(Debug)]
pub struct RedirectTargets {
    netlink: Netlink,
    family: u16,
}

impl RedirectTargets {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`]; [`Error::Kernel`] when the kernel does not tell (before Linux 6.3).
    pub fn open() -> Result<Self, Error> {
        let mut netlink = Netlink::generic()?;
        let family = ethtool::family(&mut netlink, "netdev", "6.3")?;
        Ok(Self { netlink, family })
    }

    /// Their indexes, now.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn read(&mut self) -> Result<BTreeSet<u32>, Error> {
        let family = self.family;
        let found = self.netlink.dump(
            "read the XDP features of all devices",
            || Request::new(family, NLM_F_DUMP, &[DEV_GET, 1, 0, 0]),
            |m| {
                let attrs = || attrs_after(m.payload, HEADER);
                let index = attrs().find(|a| a.kind == A_IFINDEX)?.u32()?;
                let bits = attrs().find(|a| a.kind == A_XDP_FEATURES)?.value;
                (u64::from_ne_bytes(bits.try_into().ok()?) & NDO_XMIT != 0).then_some(index)
            },
        )?;
        Ok(found.into_iter().collect())
    }
}
