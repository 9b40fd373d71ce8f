//! What the kernel counts for devices.
//!
//! Layout: `linux/if_link.h` (`struct if_stats_msg`, `struct rtnl_link_stats64`). Since Linux 4.7.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::wire::{NLM_F_DUMP, Request, attrs_after, u32_at};
use super::{Error, Netlink};

const RTM_GETSTATS: u16 = 94;
/// Length of `struct if_stats_msg`: family and padding, index, mask of what is asked for.
const HEADER: usize = 12;
const A_LINK_64: u16 = 1;
/// The bit of [`A_LINK_64`] in that mask.
const FILTER_LINK_64: u32 = 1;
/// Where `tx_dropped` is in `struct rtnl_link_stats64`.
const TX_DROPPED: core::ops::Range<usize> = 7 * 8..8 * 8;

/// Asks how many packets each device did not send, of all at once.
#[derive(Debug)]
pub struct TxDropped {
    netlink: Netlink,
}

impl TxDropped {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::route()? })
    }

    /// Packets, since the device was made, by its index. On a veth: those that its other end did not take, by its full
    /// ring, be they redirected or from a socket.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn read(&mut self) -> Result<BTreeMap<u32, u64>, Error> {
        let mut header = [0; HEADER];
        if let Some(mask) = header.get_mut(8..) {
            mask.copy_from_slice(&FILTER_LINK_64.to_ne_bytes());
        }
        let found = self.netlink.dump(
            "read the statistics of all devices",
            || Request::new(RTM_GETSTATS, NLM_F_DUMP, &header),
            |m| {
                let stats = attrs_after(m.payload, HEADER).find(|a| a.kind == A_LINK_64)?;
                let dropped = stats.value.get(TX_DROPPED)?.try_into().ok()?;
                Some((u32_at(m.payload, 4)?, u64::from_ne_bytes(dropped)))
            },
        )?;
        Ok(found.into_iter().collect())
    }
}
