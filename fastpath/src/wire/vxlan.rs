//! VXLAN (RFC 7348): the header, the outer headers in front of it, and where the inner frame is.
//!
//! ```text
//!  outer Ethernet 14 │ IPv4 20 or IPv6 40 │ UDP 8 │ VXLAN 8 │ inner Ethernet 14 │ inner IP packet
//!  └─────────────────────── what encapsulation writes ──────────────────────┘
//! ```
//! The frame's own Ethernet header gives way to the inner one, so encapsulation grows a frame by 50 bytes over IPv4
//! and 70 over IPv6 ([`OuterRepr::overhead`]).
#![forbid(unsafe_code)]

use core::fmt;

use super::checksum::{self, Sum, pseudo_header};
use super::{Error, eth, get, get8, get32, ipv4, ipv6, len16, put, udp};
use crate::packet::{Ip, Mac, Meta, proto};

mod field {
    use crate::wire::Field;
    pub(super) const FLAGS: Field = 0..1;
    pub(super) const VNI: Field = 4..8;
}

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;
/// The flag that says the VNI is valid.
const FLAG_I: u8 = 0x08;

/// A view of a VXLAN packet: the payload of a UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole header. Reserved bits are ignored (RFC 7348 5).
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer than 8 bytes, [`Error::Value`] without the I flag.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        let b = bytes.as_ref();
        if b.len() < HEADER_LEN {
            return Err(Error::Truncated("VXLAN"));
        }
        if get8(b, field::FLAGS.start) & FLAG_I == 0 {
            return Err(Error::Value("VXLAN", "I flag"));
        }
        Ok(Self(bytes))
    }

    /// Network identifier, 24 bits.
    #[inline]
    pub fn vni(&self) -> u32 {
        get32(self.0.as_ref(), field::VNI.start) >> 8
    }

    /// The inner Ethernet frame.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.0.as_ref().get(HEADER_LEN..).unwrap_or_default()
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VXLAN vni {}", self.vni())
    }
}

/// The header in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Network identifier, 24 bits.
    pub vni: u32,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Self {
        Self { vni: packet.vni() }
    }

    /// Size of the emitted header in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) {
        put(out, field::FLAGS.start, &[FLAG_I, 0, 0, 0]);
        put(out, field::VNI.start, &(self.vni << 8).to_be_bytes());
    }
}

/// A VXLAN packet's inner frame within the outer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Offset of the inner Ethernet header.
    pub start: u16,
    /// End of the inner frame: what is behind is padding of the outer one.
    pub end: u16,
}

/// Finds the inner frame of a UDP datagram that `parse` accepted. The outer UDP checksum is not looked at:
/// RFC 7348 4.3 lets a VTEP skip that whole pass over the packet, and the inner packet has sums of its own.
///
/// # Errors
/// [`Error`] when the VXLAN header is cut short or has no I flag.
#[inline]
pub fn inner(frame: &[u8], meta: &Meta) -> Result<Inner, Error> {
    let datagram = frame.get(usize::from(meta.l4)..).unwrap_or_default();
    let vni = Packet::new_checked(udp::Packet::new_unchecked(datagram).payload())?.vni();
    let length = udp::Packet::new_unchecked(datagram).length();
    let headers = len16(udp::HEADER_LEN + HEADER_LEN);
    Ok(Inner { vni, start: meta.l4.saturating_add(headers), end: meta.l4.saturating_add(length) })
}

/// Everything in front of the inner IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterRepr {
    /// Source of the outer Ethernet header.
    pub src_mac: Mac,
    /// Destination of the outer Ethernet header: the next hop.
    pub dst_mac: Mac,
    /// This VTEP.
    pub src: Ip,
    /// The remote VTEP, of the same family.
    pub dst: Ip,
    /// UDP source port: the flow's hash ([`source_port`]).
    pub src_port: u16,
    /// UDP destination port.
    pub dst_port: u16,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Outer DSCP and ECN: [`ecn::encap`](super::ecn::encap).
    pub tos: u8,
    /// Outer TTL or hop limit.
    pub ttl: u8,
    /// Outer IPv4 don't-fragment.
    pub df: bool,
    /// Outer IPv4 identification, which must differ from packet to packet when `df` is not set (RFC 6864).
    pub ident: u16,
    /// Source of the inner Ethernet header.
    pub inner_src_mac: Mac,
    /// Destination of the inner Ethernet header.
    pub inner_dst_mac: Mac,
    /// Whether the inner packet is IPv6.
    pub inner_v6: bool,
    /// Length of the inner IP packet in bytes.
    pub inner_len: u16,
    /// Fill in the UDP checksum over IPv6; otherwise, and always over IPv4, it is zero (RFC 7348 4.1, RFC 6935).
    pub udp6_checksum: bool,
}

impl OuterRepr {
    /// Length of what is written, in bytes: 64 over IPv4, 84 over IPv6.
    #[inline]
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        eth::HEADER_LEN + usize::from(self.overhead())
    }

    /// What encapsulation adds to a frame, in bytes: 50 over IPv4, 70 over IPv6.
    #[inline]
    #[must_use]
    pub fn overhead(&self) -> u16 {
        if self.src.is_v4() { 50 } else { 70 }
    }

    /// Writes the headers in front of the inner IP packet, which is in its place in `frame` already.
    ///
    /// `false`, and nothing written, when `frame` is shorter than the headers and the inner packet, or the outer
    /// packet would be longer than 65535 bytes. What is behind the inner packet (Ethernet padding) is not part of
    /// it: the caller cuts the frame to `buffer_len() + inner_len`.
    #[inline]
    #[must_use]
    pub fn emit(&self, frame: &mut [u8]) -> bool {
        let v4 = self.src.is_v4();
        let at_ip = eth::HEADER_LEN;
        let at_udp = at_ip + if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        let at_vxlan = at_udp + udp::HEADER_LEN;
        let at_inner = at_vxlan + HEADER_LEN;
        let end = at_inner + eth::HEADER_LEN + usize::from(self.inner_len);
        let (Some(frame), Ok(_)) = (frame.get_mut(..end), u16::try_from(end - at_ip)) else {
            return false;
        };
        let ethertype = |v6| if v6 { eth::ethertype::IPV6 } else { eth::ethertype::IPV4 };
        let datagram_len = len16(end - at_udp);
        eth::Repr { src: self.src_mac, dst: self.dst_mac, ethertype: ethertype(!v4) }.emit(frame);
        let (head, tail) = frame.split_at_mut(at_udp);
        let ip = head.get_mut(at_ip..).unwrap_or_default();
        if v4 {
            ipv4::Repr {
                src: self.src,
                dst: self.dst,
                proto: proto::UDP,
                tos: self.tos,
                ttl: self.ttl,
                df: self.df,
                ident: self.ident,
                payload_len: datagram_len,
            }
            .emit(ip);
        } else {
            ipv6::Repr {
                src: self.src,
                dst: self.dst,
                proto: proto::UDP,
                traffic_class: self.tos,
                flow_label: 0,
                hop_limit: self.ttl,
                payload_len: datagram_len,
            }
            .emit(ip);
        }
        udp::Repr { src_port: self.src_port, dst_port: self.dst_port, payload_len: len16(end - at_vxlan) }
            .emit(tail);
        let (_, rest) = tail.split_at_mut(udp::HEADER_LEN);
        Repr { vni: self.vni }.emit(rest);
        let (_, inner) = rest.split_at_mut(HEADER_LEN);
        eth::Repr { src: self.inner_src_mac, dst: self.inner_dst_mac, ethertype: ethertype(self.inner_v6) }
            .emit(inner);
        if !v4 && self.udp6_checksum {
            let sum = pseudo_header(self.src, self.dst, proto::UDP, u32::from(datagram_len)).bytes(tail);
            put(tail, udp::CHECKSUM_AT, &checksum::udp(sum.finish()).to_be_bytes());
        }
        true
    }
}

/// The headers of one tunnel over IPv4, made once for all packets that go into it: what differs from one to the next is
/// filled in.
///
/// Over IPv6 the checksum is a pass over the packet, which no preparation spares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    bytes: [u8; PREPARED],
    /// Of the outer IPv4 header without the fields that differ.
    sum: Sum,
}

/// Everything in front of the inner IP packet, over IPv4.
const PREPARED: usize = 64;

/// What of a tunnel's headers differs from packet to packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Varying {
    /// UDP source port.
    pub src_port: u16,
    /// Outer DSCP and ECN.
    pub tos: u8,
    /// Outer IPv4 don't-fragment.
    pub df: bool,
    /// Outer IPv4 identification.
    pub ident: u16,
    /// Whether the inner packet is IPv6.
    pub inner_v6: bool,
    /// Length of the inner IP packet in bytes.
    pub inner_len: u16,
}

impl Prepared {
    /// What encapsulation adds to a frame, in bytes.
    pub const OVERHEAD: u16 = 50;

    /// From a packet's headers, whose [`Varying`] part does not matter; `None` over IPv6.
    #[must_use]
    pub fn new(outer: &OuterRepr) -> Option<Self> {
        let zeros =
            OuterRepr { src_port: 0, tos: 0, df: false, ident: 0, inner_v6: false, inner_len: 0, ..*outer };
        let mut bytes = [0; PREPARED];
        if !outer.src.is_v4() || !zeros.emit(&mut bytes) {
            return None;
        }
        // These are of an empty packet.
        [bytes[16], bytes[17], bytes[24], bytes[25]] = [0; 4];
        let sum = Sum::ZERO.bytes(&get::<20>(&bytes, eth::HEADER_LEN));
        Some(Self { bytes, sum })
    }

    /// With the addresses of the outer Ethernet header.
    #[inline]
    #[must_use]
    pub fn with_link(mut self, dst: Mac, src: Mac) -> Self {
        put(&mut self.bytes, 0, &dst.0);
        put(&mut self.bytes, 6, &src.0);
        self
    }

    /// Writes what [`OuterRepr::emit`] writes, in front of the inner IP packet, which ends with the frame.
    ///
    /// `false`, and nothing written, when the frame is shorter than the headers, or the outer packet would be longer
    /// than 65535 bytes.
    #[inline(always)]
    #[must_use]
    pub fn emit(&self, frame: &mut [u8], v: &Varying) -> bool {
        let (Some(out), Some(total)) =
            (frame.first_chunk_mut::<PREPARED>(), v.inner_len.checked_add(Self::OVERHEAD))
        else {
            return false;
        };
        let fragment = if v.df { ipv4::DF } else { 0 };
        let sum = self.sum.word(v.tos.into()).word(total).word(v.ident).word(fragment);
        *out = self.bytes;
        out[15] = v.tos;
        [out[16], out[17]] = total.to_be_bytes();
        [out[18], out[19]] = v.ident.to_be_bytes();
        [out[20], out[21]] = fragment.to_be_bytes();
        [out[24], out[25]] = sum.finish().to_be_bytes();
        [out[34], out[35]] = v.src_port.to_be_bytes();
        [out[38], out[39]] = (total - len16(ipv4::HEADER_LEN)).to_be_bytes();
        if v.inner_v6 {
            [out[62], out[63]] = eth::ethertype::IPV6.to_be_bytes();
        }
        true
    }
}

/// The UDP source port of a flow (RFC 7348 5): within the dynamic range 49152 to 65535, by the flow's hash.
#[inline]
#[must_use]
pub fn source_port(hash: u64) -> u16 {
    // The hash's upper bits: tables index by the lower ones.
    let [high, low, ..] = hash.to_be_bytes();
    0xc000 | u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests;
