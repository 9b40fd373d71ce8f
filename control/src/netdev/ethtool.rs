//! Queues (channels) and offloads (features) of a device, by the generic netlink family of ethtool.
//!
//! Layout: `linux/ethtool_netlink.h`, Documentation/networking/ethtool-netlink.rst; features are bit sets sent by
//! name, so that no number of a feature is assumed. Since Linux 5.6 and 5.7.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::wire::{Attr, Message, NLM_F_ACK, Request, attrs_after};
use super::{Error, Netlink};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Length of `struct genlmsghdr`.
const GENL_HEADER: usize = 4;

const MSG_FEATURES_GET: u8 = 11;
const MSG_FEATURES_SET: u8 = 12;
const MSG_CHANNELS_GET: u8 = 17;
const MSG_CHANNELS_SET: u8 = 18;
/// The header nest is the first attribute of every message.
const A_HEADER: u16 = 1;
const A_HEADER_DEV_INDEX: u16 = 1;
const A_HEADER_FLAGS: u16 = 3;
const FLAG_OMIT_REPLY: u32 = 2;
const A_FEATURES_HW: u16 = 2;
const A_FEATURES_WANTED: u16 = 3;
const A_FEATURES_ACTIVE: u16 = 4;
const A_FEATURES_NOCHANGE: u16 = 5;
const A_BITSET_NOMASK: u16 = 1;
const A_BITSET_BITS: u16 = 3;
const A_BITSET_BITS_BIT: u16 = 1;
const A_BITSET_BIT_NAME: u16 = 2;
const A_BITSET_BIT_VALUE: u16 = 3;
const A_CHANNELS_RX_MAX: u16 = 2;
const A_CHANNELS_TX_MAX: u16 = 3;
const A_CHANNELS_COMBINED_MAX: u16 = 5;
const A_CHANNELS_RX_COUNT: u16 = 6;
const A_CHANNELS_TX_COUNT: u16 = 7;
const A_CHANNELS_COMBINED_COUNT: u16 = 9;

/// A group of offloads that the dataplane cares about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Transmit checksums left to the device.
    TxChecksum,
    /// Segmentation left to the device (TSO, GSO, and of tunnels).
    Segmentation,
    /// Received packets merged before anybody sees them (GRO, LRO).
    Merge,
    /// GRO alone: on a veth it has received packets taken by NAPI, without which none can be redirected to it.
    Gro,
}

impl Offload {
    /// Whether the kernel's offload of this name (`netdev_features_strings`) is of the group.
    ///
    /// By pattern where the names have one: each kernel brings new kinds of segmentation.
    #[must_use]
    pub fn includes(self, name: &str) -> bool {
        match self {
            Self::TxChecksum => name.starts_with("tx-checksum-"),
            Self::Segmentation => {
                (name.starts_with("tx-") && name.ends_with("-segmentation")) || name == "tx-gso-list"
            }
            Self::Gro => name == "rx-gro",
            Self::Merge => {
                matches!(name, "rx-gro" | "rx-gro-hw" | "rx-lro" | "rx-gro-list" | "rx-udp-gro-forwarding")
            }
        }
    }
}

/// Queues of a device: of each kind, how many are in use and how many there can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// Receive only, in use.
    pub rx: u32,
    /// Transmit only, in use.
    pub tx: u32,
    /// Receive and transmit, in use.
    pub combined: u32,
    /// Most receive-only ones.
    pub max_rx: u32,
    /// Most transmit-only ones.
    pub max_tx: u32,
    /// Most combined ones.
    pub max_combined: u32,
}

impl Channels {
    /// With at least `n` queues both ways, or as many as there can be; never fewer than now.
    #[must_use]
    pub fn at_least(self, n: u32) -> Self {
        let raise = |now: u32, max: u32, n: u32| now.max(n.min(max));
        if self.max_combined > 0 {
            Self { combined: raise(self.combined, self.max_combined, n), ..self }
        } else {
            Self { rx: raise(self.rx, self.max_rx, n), tx: raise(self.tx, self.max_tx, n), ..self }
        }
    }
}

/// Queues in use: an AF_XDP socket can be bound to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Receive queues: packets arrive on any of them, so each needs a socket.
    pub rx: u32,
    /// Transmit queues.
    pub tx: u32,
}

/// Offloads of a device by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// In effect.
    pub active: BTreeSet<String>,
    /// Asked for; in effect when what they depend on is.
    pub wanted: BTreeSet<String>,
    /// Can be switched.
    pub changeable: BTreeSet<String>,
}

/// Asks about and changes queues and offloads, in the network namespace it was opened in.
#[derive(Debug)]
pub struct Ethtool {
    netlink: Netlink,
    family: u16,
}

impl Ethtool {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`]; [`Error::Kernel`] when the kernel has no ethtool family (before Linux 5.6).
    pub fn open() -> Result<Self, Error> {
        let mut netlink = Netlink::generic()?;
        let family = family(&mut netlink, "ethtool", "5.6")?;
        Ok(Self { netlink, family })
    }

    /// The queues of the device with this index, or `None` when its driver tells nothing.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Kernel`].
    pub fn channels(&mut self, link: u32) -> Result<Option<Channels>, Error> {
        let mut out = Channels::default();
        let request = self.request(MSG_CHANNELS_GET, link, 0);
        let what = || format!("read the channels of device #{link}");
        let answer = self.netlink.call(what, request, |m| {
            for a in attrs_after(m.payload, GENL_HEADER) {
                let field = match a.kind {
                    A_CHANNELS_RX_MAX => &mut out.max_rx,
                    A_CHANNELS_TX_MAX => &mut out.max_tx,
                    A_CHANNELS_COMBINED_MAX => &mut out.max_combined,
                    A_CHANNELS_RX_COUNT => &mut out.rx,
                    A_CHANNELS_TX_COUNT => &mut out.tx,
                    A_CHANNELS_COMBINED_COUNT => &mut out.combined,
                    _ => continue,
                };
                *field = a.u32().unwrap_or(0);
            }
        });
        match answer {
            Ok(()) => Ok(Some(out)),
            Err(e) if e.errno() == Some(nix::libc::EOPNOTSUPP) => Ok(None),
            Err(e) => Err(e.or_no_device(&format!("#{link}"))),
        }
    }

    /// Sets the counts of the channels that the device has.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::Kernel`] also when the driver or an XDP program forbids the change.
    pub fn set_channels(&mut self, link: u32, channels: &Channels) -> Result<(), Error> {
        let mut request = self.request(MSG_CHANNELS_SET, link, 0);
        for (kind, count, max) in [
            (A_CHANNELS_RX_COUNT, channels.rx, channels.max_rx),
            (A_CHANNELS_TX_COUNT, channels.tx, channels.max_tx),
            (A_CHANNELS_COMBINED_COUNT, channels.combined, channels.max_combined),
        ] {
            if max > 0 {
                request.u32(kind, count);
            }
        }
        let what = || format!("set the channels of device #{link}");
        self.netlink.call(what, request, |_| {}).map_err(|e| e.or_no_device(&format!("#{link}")))
    }

    /// Queues in use. A driver that tells ethtool nothing has those rtnetlink tells.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Kernel`].
    pub fn queues(&mut self, link: &super::Link) -> Result<Queues, Error> {
        Ok(match self.channels(link.index)? {
            Some(c) => Queues { rx: (c.combined + c.rx).max(1), tx: (c.combined + c.tx).max(1) },
            None => Queues { rx: link.rx_queues, tx: link.tx_queues },
        })
    }

    /// The offloads of the device with this index.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Kernel`].
    pub fn features(&mut self, link: u32) -> Result<Features, Error> {
        let mut out = Features::default();
        let mut fixed = BTreeSet::new();
        let request = self.request(MSG_FEATURES_GET, link, 0);
        let what = || format!("read the offloads of device #{link}");
        let each = |m: Message<'_>| {
            for a in attrs_after(m.payload, GENL_HEADER) {
                match a.kind {
                    A_FEATURES_HW => out.changeable = names(a),
                    A_FEATURES_WANTED => out.wanted = names(a),
                    A_FEATURES_ACTIVE => out.active = names(a),
                    A_FEATURES_NOCHANGE => fixed = names(a),
                    _ => {}
                }
            }
        };
        self.netlink.call(what, request, each).map_err(|e| e.or_no_device(&format!("#{link}")))?;
        out.changeable.retain(|name| !fixed.contains(name));
        Ok(out)
    }

    /// Asks for the given offloads to be on or off; others stay as they are.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::Kernel`]. An offload the device cannot change is not an error: read back.
    pub fn set_features(&mut self, link: u32, wanted: &BTreeMap<String, bool>) -> Result<(), Error> {
        let mut request = self.request(MSG_FEATURES_SET, link, FLAG_OMIT_REPLY);
        request.nest(A_FEATURES_WANTED, |set| {
            set.nest(A_BITSET_BITS, |bits| {
                for (name, on) in wanted {
                    let mut zero_terminated = name.as_bytes().to_vec();
                    zero_terminated.push(0);
                    bits.nest(A_BITSET_BITS_BIT, |bit| {
                        bit.attr(A_BITSET_BIT_NAME, &zero_terminated);
                        if *on {
                            bit.attr(A_BITSET_BIT_VALUE, &[]);
                        }
                    });
                }
            });
        });
        let what = || format!("set offloads of device #{link}");
        self.netlink.call(what, request, |_| {}).map_err(|e| e.or_no_device(&format!("#{link}")))
    }

    fn request(&self, command: u8, link: u32, flags: u32) -> Request {
        let mut request = Request::new(self.family, NLM_F_ACK, &[command, 1, 0, 0]);
        request.nest(A_HEADER, |header| {
            header.u32(A_HEADER_DEV_INDEX, link);
            if flags != 0 {
                header.u32(A_HEADER_FLAGS, flags);
            }
        });
        request
    }
}

/// The number of a generic netlink family, which kernels have since the given version.
pub(super) fn family(netlink: &mut Netlink, name: &str, since: &str) -> Result<u16, Error> {
    let mut request = Request::new(GENL_ID_CTRL, NLM_F_ACK, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    let mut zero_terminated = name.as_bytes().to_vec();
    zero_terminated.push(0);
    request.attr(CTRL_ATTR_FAMILY_NAME, &zero_terminated);
    let mut family = None;
    let what = || format!("find the kernel's netlink family '{name}' (Linux {since} or later has it)");
    netlink.call(what, request, |m| {
        let id = attrs_after(m.payload, GENL_HEADER).find(|a| a.kind == CTRL_ATTR_FAMILY_ID);
        family = id.and_then(Attr::u16).or(family);
    })?;
    family.ok_or_else(|| Error::Kernel {
        what: what(),
        source: std::io::ErrorKind::NotFound.into(),
        detail: String::new(),
    })
}

/// Names of the bits that are set in a bit set in its verbose form.
fn names(set: Attr<'_>) -> BTreeSet<String> {
    // Without a mask only bits that are set are listed; with one, all of it, and those set are marked.
    let list = set.nested().any(|a| a.kind == A_BITSET_NOMASK);
    set.nested()
        .filter(|a| a.kind == A_BITSET_BITS)
        .flat_map(Attr::nested)
        .filter(|a| a.kind == A_BITSET_BITS_BIT)
        .filter(|bit| list || bit.nested().any(|a| a.kind == A_BITSET_BIT_VALUE))
        .filter_map(|bit| bit.nested().find(|a| a.kind == A_BITSET_BIT_NAME))
        .map(Attr::string)
        .collect()
}
