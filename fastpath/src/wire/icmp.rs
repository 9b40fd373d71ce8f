//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the messages' header, and the errors the dataplane sends.
//!
//! Both families share the layout: type, code, checksum, four bytes that depend on the type, body.
#![forbid(unsafe_code)]

use core::fmt;

use super::address;
use super::checksum::{Sum, pseudo_header};
use super::{Error, get8, get16, get32, ipv4, ipv6, len16, put};
use crate::packet::{Ip, proto};

mod field {
    use crate::wire::Field;
    pub(super) const TYPE: Field = 0..1;
    pub(super) const CODE: Field = 1..2;
    pub(super) const CHECKSUM: Field = 2..4;
    pub(super) const IDENT: Field = 4..6;
    pub(super) const SEQ: Field = 6..8;
    pub(super) const REST: Field = 4..8;
}

/// Length of the header in bytes, the four bytes that depend on the type included.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header.
pub const CHECKSUM_AT: usize = field::CHECKSUM.start;
/// Longest IPv4 packet that carries an error (RFC 1812 4.3.2.3), in bytes.
pub const MAX_ERROR_V4: usize = 576;
/// Longest IPv6 packet that carries an error (RFC 4443 2.4 (c)), in bytes.
pub const MAX_ERROR_V6: usize = 1280;

/// Type of service of ICMP errors over IPv4: precedence 6, internetwork control (RFC 1812 4.3.2.5).
pub const INTERNETWORK_CONTROL: u8 = 0xc0;

/// Message types of ICMP.
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code of destination unreachable: fragmentation needed (RFC 1191).
    pub const FRAG_NEEDED: u8 = 4;
    /// Source quench (deprecated by RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect: for the link it is sent on, never forwarded.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Timestamp request, with its reply 14, information request and reply, address mask request and reply.
    pub const TIMESTAMP: u8 = 13;
    /// Address mask reply, the last of the queries with an identifier.
    pub const MASK_REPLY: u8 = 18;
}

/// Message types of ICMPv6.
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query (RFC 2710), with report 131 and done 132.
    pub const MLD_QUERY: u8 = 130;
    /// Multicast listener done.
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation (RFC 4861), with 134 to 136.
    pub const ROUTER_SOLICIT: u8 = 133;
    /// Neighbour solicitation.
    pub const NEIGHBOR_SOLICIT: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOR_ADVERT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Version 2 multicast listener report (RFC 3810).
    pub const MLD2_REPORT: u8 = 143;
}

/// Whether a message of this type quotes the packet it is about.
#[inline]
#[must_use]
pub fn is_error(ipv6: bool, kind: u8) -> bool {
    if ipv6 {
        matches!(kind, v6::UNREACHABLE..=v6::PARAMETER_PROBLEM)
    } else {
        matches!(kind, v4::UNREACHABLE | v4::SOURCE_QUENCH | v4::TIME_EXCEEDED | v4::PARAMETER_PROBLEM)
    }
}

/// Whether a message of this type is a query or reply with an identifier in its fifth and sixth byte.
#[inline]
#[must_use]
pub fn has_ident(ipv6: bool, kind: u8) -> bool {
    if ipv6 {
        matches!(kind, v6::ECHO_REQUEST | v6::ECHO_REPLY)
    } else {
        matches!(kind, v4::ECHO_REPLY | v4::ECHO_REQUEST | v4::TIMESTAMP..=v4::MASK_REPLY)
    }
}

/// A view of an ICMP or ICMPv6 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole header; the message ends with the bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer than 8 bytes.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        if bytes.as_ref().len() < HEADER_LEN { Err(Error::Truncated("ICMP")) } else { Ok(Self(bytes)) }
    }

    /// Message type.
    #[inline]
    pub fn kind(&self) -> u8 {
        get8(self.0.as_ref(), field::TYPE.start)
    }

    /// Code.
    #[inline]
    pub fn code(&self) -> u8 {
        get8(self.0.as_ref(), field::CODE.start)
    }

    /// Checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get16(self.0.as_ref(), field::CHECKSUM.start)
    }

    /// Identifier of echo and the other queries.
    #[inline]
    pub fn ident(&self) -> u16 {
        get16(self.0.as_ref(), field::IDENT.start)
    }

    /// Sequence number of echo.
    #[inline]
    pub fn seq(&self) -> u16 {
        get16(self.0.as_ref(), field::SEQ.start)
    }

    /// The four bytes that depend on the type. ICMPv6 packet too big has the MTU here.
    #[inline]
    pub fn rest(&self) -> u32 {
        get32(self.0.as_ref(), field::REST.start)
    }

    /// Next-hop MTU of ICMP fragmentation needed (RFC 1191), 0 from an old router.
    #[inline]
    pub fn mtu_v4(&self) -> u16 {
        get16(self.0.as_ref(), field::SEQ.start)
    }

    /// What follows the header: of an error, the quoted packet.
    #[inline]
    pub fn body(&self) -> &[u8] {
        self.0.as_ref().get(HEADER_LEN..).unwrap_or_default()
    }

    /// Whether the checksum of an ICMP message is right.
    pub fn verify_checksum_v4(&self) -> bool {
        Sum::ZERO.bytes(self.0.as_ref()).verifies()
    }

    /// Whether the checksum of an ICMPv6 message is right.
    pub fn verify_checksum_v6(&self, src: Ip, dst: Ip) -> bool {
        let b = self.0.as_ref();
        pseudo_header(src, dst, proto::ICMPV6, u32::from(len16(b.len()))).bytes(b).verifies()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the identifier.
    #[inline]
    pub fn set_ident(&mut self, v: u16) {
        put(self.0.as_mut(), field::IDENT.start, &v.to_be_bytes());
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, v: u16) {
        put(self.0.as_mut(), field::CHECKSUM.start, &v.to_be_bytes());
    }

    /// Computes the checksum afresh over the message's bytes: ICMP's for IPv4 addresses, ICMPv6's for IPv6.
    pub fn fill_checksum(&mut self, src: Ip, dst: Ip) {
        self.set_checksum(0);
        let b = self.0.as_ref();
        let pseudo = if src.is_v4() {
            Sum::ZERO
        } else {
            pseudo_header(src, dst, proto::ICMPV6, u32::from(len16(b.len())))
        };
        let check = pseudo.bytes(b).finish();
        self.set_checksum(check);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ICMP type {} code {} rest {:#010x}", self.kind(), self.code(), self.rest())
    }
}

/// The header in host order, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Message type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four bytes that depend on the type.
    pub rest: u32,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Self {
        Self { kind: packet.kind(), code: packet.code(), rest: packet.rest() }
    }

    /// Size of the emitted header in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header without a checksum (zero): [`Packet::fill_checksum`] computes it once the body is there.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, field::TYPE.start, &[self.kind, self.code, 0, 0]);
        put(out, field::REST.start, &self.rest.to_be_bytes());
    }
}

/// Which error to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Time to live or hop limit exceeded in transit.
    TtlExceeded,
    /// No route to the destination.
    NoRoute,
    /// No such host.
    HostUnreachable,
    /// Nothing listens there.
    PortUnreachable,
    /// A policy forbids it.
    AdminProhibited,
    /// Larger than the way out: IPv4 fragmentation needed, IPv6 packet too big.
    FragNeeded {
        /// MTU of the way out, in bytes of IP packet.
        mtu: u16,
    },
}

impl ErrorKind {
    fn repr(self, ipv6: bool) -> Repr {
        let (v4, v6, rest) = match self {
            Self::TtlExceeded => ((v4::TIME_EXCEEDED, 0), (v6::TIME_EXCEEDED, 0), 0),
            Self::NoRoute => ((v4::UNREACHABLE, 0), (v6::UNREACHABLE, 0), 0),
            Self::HostUnreachable => ((v4::UNREACHABLE, 1), (v6::UNREACHABLE, 3), 0),
            Self::PortUnreachable => ((v4::UNREACHABLE, 3), (v6::UNREACHABLE, 4), 0),
            Self::AdminProhibited => ((v4::UNREACHABLE, 13), (v6::UNREACHABLE, 1), 0),
            Self::FragNeeded { mtu } => {
                ((v4::UNREACHABLE, v4::FRAG_NEEDED), (v6::TOO_BIG, 0), u32::from(mtu))
            }
        };
        let (kind, code) = if ipv6 { v6 } else { v4 };
        Repr { kind, code, rest }
    }
}

/// A packet that may be answered by an ICMP error or a TCP reset.
pub(crate) struct Offender<'a> {
    /// The packet, without what is behind its length.
    packet: &'a [u8],
    pub(crate) src: Ip,
    pub(crate) dst: Ip,
    pub(crate) proto: u8,
    /// From the upper layer's header on.
    pub(crate) upper: &'a [u8],
}

impl<'a> Offender<'a> {
    /// `None` for a malformed packet, a later fragment, and addresses that are not a single host's
    /// (RFC 1122 3.2.2, RFC 4443 2.4 (e)).
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        let offender = if get8(bytes, 0) >> 4 == 4 {
            let ip = ipv4::Packet::new_checked(bytes).ok()?;
            if ip.flags_offset() & ipv4::OFFSET_MASK != 0 {
                return None;
            }
            let packet = bytes.get(..usize::from(ip.total_len()))?;
            let upper = packet.get(ip.header_len()..)?;
            Self { packet, src: ip.src(), dst: ip.dst(), proto: ip.protocol(), upper }
        } else {
            let ip = ipv6::Packet::new_checked(bytes).ok()?;
            let packet = bytes.get(..ip.total_len())?;
            let chain = ipv6::walk(packet).ok()?;
            if chain.fragment_offset() != 0 || ip.src().is_v4() || ip.dst().is_v4() {
                return None;
            }
            Self {
                packet,
                src: ip.src(),
                dst: ip.dst(),
                proto: chain.proto,
                upper: packet.get(chain.offset..)?,
            }
        };
        address::check(address::scope(offender.src), address::scope(offender.dst)).ok()?;
        Some(offender)
    }

    /// Whether it is itself an ICMP error, or may be one: a redirect, an ICMPv6 type below 128 that is not known.
    fn is_icmp_error(&self) -> bool {
        let Some(&kind) = self.upper.first() else {
            return matches!(self.proto, proto::ICMP | proto::ICMPV6);
        };
        match (self.proto, self.src.is_v4()) {
            (proto::ICMP, true) => is_error(false, kind) || kind == v4::REDIRECT,
            (proto::ICMPV6, false) => kind < 128 || kind == v6::REDIRECT,
            _ => false,
        }
    }
}

/// Hops that packets made on this node may take.
pub const HOPS: u8 = 64;

/// Writes the header of an IP packet made on this node, which is not to be fragmented.
pub(crate) fn emit_ip(out: &mut [u8], src: Ip, dst: Ip, proto: u8, tos: u8, payload_len: u16) {
    if src.is_v4() {
        ipv4::Repr { src, dst, proto, tos, ttl: HOPS, df: true, ident: 0, payload_len }.emit(out);
    } else {
        ipv6::Repr { src, dst, proto, traffic_class: tos, flow_label: 0, hop_limit: HOPS, payload_len }
            .emit(out);
    }
}

/// Writes the ICMP or ICMPv6 error about the IP packet `reply_to`: a whole IP packet from `src`; its length in bytes.
///
/// It quotes as much as 576 (IPv4) or 1280 bytes (IPv6) allow: `out` of 1280 bytes always does. `None`, and nothing
/// written, when the packet must not be answered (malformed, an ICMP error, a later fragment, addresses that are not
/// a single host's), when `src` is of the other family, or when `out` is too short.
#[must_use]
pub fn build_error(reply_to: &[u8], kind: ErrorKind, src: Ip, out: &mut [u8]) -> Option<usize> {
    let offender = Offender::new(reply_to)?;
    if offender.is_icmp_error() || src.is_v4() != offender.src.is_v4() {
        return None;
    }
    let (header, max) =
        if src.is_v4() { (ipv4::HEADER_LEN, MAX_ERROR_V4) } else { (ipv6::HEADER_LEN, MAX_ERROR_V6) };
    let quote = offender.packet.get(..max - header - HEADER_LEN).unwrap_or(offender.packet);
    let total = header + HEADER_LEN + quote.len();
    let packet = out.get_mut(..total)?;
    put(packet, header + HEADER_LEN, quote);
    head_error(packet, kind, src, offender.src);
    Some(total)
}

/// Writes the headers of an ICMP or ICMPv6 error in front of what it quotes, which is in its place in `packet` already.
///
/// `packet` is the whole IP packet, from `src` to `dst`, addresses of the same family; one that is too short for the
/// headers stays as it is. The quote is not looked at: it may be cut short.
pub fn head_error(packet: &mut [u8], kind: ErrorKind, src: Ip, dst: Ip) {
    let (header, proto, tos) = if src.is_v4() {
        (ipv4::HEADER_LEN, proto::ICMP, INTERNETWORK_CONTROL)
    } else {
        (ipv6::HEADER_LEN, proto::ICMPV6, 0)
    };
    let Some((ip, message)) = packet.split_at_mut_checked(header).filter(|(_, m)| m.len() >= HEADER_LEN)
    else {
        return;
    };
    emit_ip(ip, src, dst, proto, tos, len16(message.len()));
    kind.repr(!src.is_v4()).emit(message);
    Packet::new_unchecked(message).fill_checksum(src, dst);
}

#[cfg(test)]
mod tests;
