//! Neighbour discovery (RFC 4861): the solicitations a pod sends for its gateway, and the answers.
#![forbid(unsafe_code)]

use core::fmt;

use super::icmp::{self, v6};
use super::{Error, eth, get, get8, ipv6, len16, put};
use crate::packet::{Ip, Mac, proto};

mod field {
    use crate::wire::Field;
    pub(super) const FLAGS: Field = 4..5;
    pub(super) const TARGET: Field = 8..24;
    pub(super) const OPTIONS: Field = 24..32;
}

/// Length of a solicitation or advertisement without options, in bytes.
pub const HEADER_LEN: usize = 24;
/// Length in bytes of the link-layer address option for Ethernet.
pub const OPTION_LEN: usize = 8;
/// Length in bytes of an advertisement's frame, Ethernet header included.
pub const FRAME_LEN: usize = eth::HEADER_LEN + ipv6::HEADER_LEN + HEADER_LEN + OPTION_LEN;

const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// "Router", "solicited" and "override" of an advertisement's flags.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// A router's hop limit could only have been counted down on the way (RFC 4861 7.1).
const HOP_LIMIT: u8 = 255;

/// A view of a neighbour solicitation or advertisement: the ICMPv6 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole message; it ends with the bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer than 24 bytes, [`Error::Value`] for another type or a code that is
    /// not 0, [`Error::Length`] when an option has length 0 or does not fit.
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        let b = bytes.as_ref();
        if b.len() < HEADER_LEN {
            return Err(Error::Truncated("NDP"));
        }
        let message = icmp::Packet::new_unchecked(b);
        if !matches!(message.kind(), v6::NEIGHBOR_SOLICIT | v6::NEIGHBOR_ADVERT) || message.code() != 0 {
            return Err(Error::Value("NDP", "type or code"));
        }
        let mut rest = b.get(HEADER_LEN..).unwrap_or_default();
        while !rest.is_empty() {
            let len = usize::from(get8(rest, 1)) * 8;
            rest = rest.get(len..).filter(|_| len > 0).ok_or(Error::Length("NDP option"))?;
        }
        Ok(Self(bytes))
    }

    /// Message type.
    pub fn kind(&self) -> u8 {
        get8(self.0.as_ref(), 0)
    }

    /// Flags of an advertisement: router 0x80, solicited 0x40, override 0x20.
    pub fn flags(&self) -> u8 {
        get8(self.0.as_ref(), field::FLAGS.start)
    }

    /// The address asked for or advertised.
    pub fn target(&self) -> Ip {
        Ip::v6(get(self.0.as_ref(), field::TARGET.start))
    }

    /// The source (of a solicitation) or target (of an advertisement) link-layer address option.
    pub fn link_layer(&self) -> Option<Mac> {
        let want = if self.kind() == v6::NEIGHBOR_SOLICIT { SOURCE_MAC } else { TARGET_MAC };
        let mut rest = self.0.as_ref().get(HEADER_LEN..).unwrap_or_default();
        while let Some(&[kind, len, a, b, c, d, e, f]) = rest.first_chunk::<OPTION_LEN>() {
            if kind == want && len == 1 {
                return Some(Mac([a, b, c, d, e, f]));
            }
            rest = rest.get(usize::from(len).max(1) * 8..).unwrap_or_default();
        }
        None
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NDP type {} target {}", self.kind(), self.target())
    }
}

/// A neighbour solicitation, checked as RFC 4861 7.1.1 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicit {
    /// Who asks; unspecified in duplicate address detection.
    pub src: Ip,
    /// Where the question went: the target itself, or its solicited-node group.
    pub dst: Ip,
    /// The address asked for.
    pub target: Ip,
    /// The asker's MAC address: from its option, else from the Ethernet header.
    pub mac: Mac,
}

impl Solicit {
    /// Reads a frame that `parse` called [`Punt::Ndp`](super::Punt::Ndp): `l3`, `l4` and `l3_len` are its metadata.
    ///
    /// `Ok(None)` is another message of neighbour discovery.
    ///
    /// # Errors
    /// What RFC 4861 7.1.1 refuses: a hop limit below 255, a wrong checksum, code or length, a multicast target, and
    /// of an unspecified source another destination than a solicited-node group or a link-layer address option.
    pub fn parse(frame: &[u8], l3: u16, l4: u16, l3_len: u16) -> Result<Option<Self>, Error> {
        let start = usize::from(l3);
        let packet = frame.get(start..start + usize::from(l3_len)).ok_or(Error::Truncated("NDP"))?;
        let ip = ipv6::Packet::new_checked(packet)?;
        let message =
            frame.get(usize::from(l4)..start + usize::from(l3_len)).ok_or(Error::Truncated("NDP"))?;
        if get8(message, 0) != v6::NEIGHBOR_SOLICIT {
            return Ok(None);
        }
        let (src, dst) = (ip.src(), ip.dst());
        if ip.hop_limit() != HOP_LIMIT {
            return Err(Error::Value("NDP", "hop limit"));
        }
        let ndp = Packet::new_checked(message)?;
        if !icmp::Packet::new_unchecked(message).verify_checksum_v6(src, dst) {
            return Err(Error::Checksum("NDP"));
        }
        let target = ndp.target();
        if is_multicast(target) {
            return Err(Error::Value("NDP", "target"));
        }
        let option = ndp.link_layer();
        if src == UNSPECIFIED && (option.is_some() || !is_solicited_node(dst)) {
            return Err(Error::Value("NDP", "source"));
        }
        let before = start.checked_sub(eth::HEADER_LEN).and_then(|at| frame.get(at..)).unwrap_or_default();
        let mac = option.unwrap_or(eth::Packet::new_unchecked(before).src());
        if mac.is_multicast() {
            return Err(Error::Value("NDP", "link-layer address"));
        }
        Ok(Some(Self { src, dst, target, mac }))
    }

    /// The answer of a router that has the target at `mac`.
    ///
    /// `None` for duplicate address detection: who asks is choosing an address, and an answer would say "taken".
    #[must_use]
    pub fn advert(&self, mac: Mac) -> Option<Advert> {
        (self.src != UNSPECIFIED).then_some(Advert {
            src: self.target,
            dst: self.src,
            target: self.target,
            mac,
            dst_mac: self.mac,
        })
    }
}

/// A solicited neighbour advertisement with its target link-layer address option (RFC 4861 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Source address.
    pub src: Ip,
    /// Destination address: who asked.
    pub dst: Ip,
    /// The address advertised.
    pub target: Ip,
    /// Where it is.
    pub mac: Mac,
    /// Destination of the Ethernet header.
    pub dst_mac: Mac,
}

impl Advert {
    /// Writes the whole frame; its length in bytes (86). `None`, and nothing written, when `out` is shorter.
    #[must_use]
    pub fn emit_frame(&self, out: &mut [u8]) -> Option<usize> {
        let (ethernet, packet) = out.get_mut(..FRAME_LEN)?.split_at_mut(eth::HEADER_LEN);
        eth::Repr { src: self.mac, dst: self.dst_mac, ethertype: eth::ethertype::IPV6 }.emit(ethernet);
        let (ip, message) = packet.split_at_mut(ipv6::HEADER_LEN);
        ipv6::Repr {
            src: self.src,
            dst: self.dst,
            proto: proto::ICMPV6,
            traffic_class: 0,
            flow_label: 0,
            hop_limit: HOP_LIMIT,
            payload_len: len16(message.len()),
        }
        .emit(ip);
        let flags = u32::from(ROUTER | SOLICITED | OVERRIDE) << 24;
        icmp::Repr { kind: v6::NEIGHBOR_ADVERT, code: 0, rest: flags }.emit(message);
        put(message, field::TARGET.start, &self.target.bytes());
        put(message, field::OPTIONS.start, &[TARGET_MAC, 1]);
        put(message, field::OPTIONS.start + 2, &self.mac.0);
        icmp::Packet::new_unchecked(message).fill_checksum(self.src, self.dst);
        Some(FRAME_LEN)
    }
}

const UNSPECIFIED: Ip = Ip::from_bits(0);

fn is_multicast(ip: Ip) -> bool {
    ip.bits() >> 120 == 0xff
}

/// Whether `ip` is in ff02::1:ff00:0/104 (RFC 4291 2.7.1).
fn is_solicited_node(ip: Ip) -> bool {
    ip.bits() >> 24 == 0xff02_0000_0000_0000_0000_0001_ff00_0000 >> 24
}

#[cfg(test)]
mod tests;
