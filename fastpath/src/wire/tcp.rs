//! TCP header (RFC 9293 section 3.1), and the reset that answers a refused segment.
#![forbid(unsafe_code)]

use core::fmt;

use super::checksum::pseudo_header;
use super::{Error, get8, get16, get32, icmp, ipv4, ipv6, len16, put};
use crate::packet::{Ip, proto};

mod field {
    use crate::wire::Field;
    pub(super) const SRC_PORT: Field = 0..2;
    pub(super) const DST_PORT: Field = 2..4;
    pub(super) const SEQ: Field = 4..8;
    pub(super) const ACK: Field = 8..12;
    pub(super) const DATA_OFFSET: Field = 12..13;
    pub(super) const FLAGS: Field = 13..14;
    pub(super) const WINDOW: Field = 14..16;
    pub(super) const CHECKSUM: Field = 16..18;
    pub(super) const URGENT: Field = 18..20;
}

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Offset of the checksum in the header.
pub const CHECKSUM_AT: usize = field::CHECKSUM.start;

/// Bits of the flags byte.
pub mod control {
    /// No more data from sender.
    pub const FIN: u8 = 1;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset the connection.
    pub const RST: u8 = 1 << 2;
    /// Push.
    pub const PSH: u8 = 1 << 3;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 1 << 4;
    /// The urgent pointer counts.
    pub const URG: u8 = 1 << 5;
    /// ECN echo (RFC 3168).
    pub const ECE: u8 = 1 << 6;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 1 << 7;
}

/// A view of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole header, options included; the segment ends with the bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] or [`Error::Length`] when header or data offset do not fit.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        let b = bytes.as_ref();
        if b.len() < HEADER_LEN {
            return Err(Error::Truncated("TCP"));
        }
        let len = Packet(b).header_len();
        if len < HEADER_LEN || len > b.len() { Err(Error::Length("TCP")) } else { Ok(Self(bytes)) }
    }

    /// Source port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        get16(self.0.as_ref(), field::SRC_PORT.start)
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        get16(self.0.as_ref(), field::DST_PORT.start)
    }

    /// Sequence number.
    #[inline]
    pub fn seq(&self) -> u32 {
        get32(self.0.as_ref(), field::SEQ.start)
    }

    /// Acknowledgment number.
    #[inline]
    pub fn ack(&self) -> u32 {
        get32(self.0.as_ref(), field::ACK.start)
    }

    /// Header length in bytes, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(get8(self.0.as_ref(), field::DATA_OFFSET.start) >> 4) * 4
    }

    /// Flags byte, bits of [`control`].
    #[inline]
    pub fn flags(&self) -> u8 {
        get8(self.0.as_ref(), field::FLAGS.start)
    }

    /// Window, unscaled.
    #[inline]
    pub fn window(&self) -> u16 {
        get16(self.0.as_ref(), field::WINDOW.start)
    }

    /// Checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get16(self.0.as_ref(), field::CHECKSUM.start)
    }

    /// What follows the header.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.0.as_ref().get(self.header_len()..).unwrap_or_default()
    }

    /// Whether the checksum is right.
    pub fn verify_checksum(&self, src: Ip, dst: Ip) -> bool {
        let b = self.0.as_ref();
        pseudo_header(src, dst, proto::TCP, u32::from(len16(b.len()))).bytes(b).verifies()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the source port.
    #[inline]
    pub fn set_src_port(&mut self, v: u16) {
        put(self.0.as_mut(), field::SRC_PORT.start, &v.to_be_bytes());
    }

    /// Sets the destination port.
    #[inline]
    pub fn set_dst_port(&mut self, v: u16) {
        put(self.0.as_mut(), field::DST_PORT.start, &v.to_be_bytes());
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, v: u16) {
        put(self.0.as_mut(), field::CHECKSUM.start, &v.to_be_bytes());
    }

    /// Computes the checksum afresh over the segment's bytes.
    pub fn fill_checksum(&mut self, src: Ip, dst: Ip) {
        self.set_checksum(0);
        let b = self.0.as_ref();
        let check = pseudo_header(src, dst, proto::TCP, u32::from(len16(b.len()))).bytes(b).finish();
        self.set_checksum(check);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TCP {} -> {} flags {:#04x} seq {}",
            self.src_port(),
            self.dst_port(),
            self.flags(),
            self.seq()
        )
    }
}

/// The header in host order, without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Bits of [`control`].
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
}

impl Repr {
    /// Reads the header; options are passed over.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Self {
        Self {
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            seq: packet.seq(),
            ack: packet.ack(),
            flags: packet.flags(),
            window: packet.window(),
        }
    }

    /// Size of the emitted header in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header without a checksum (zero): [`Packet::fill_checksum`] computes it once the payload is there.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, field::SRC_PORT.start, &self.src_port.to_be_bytes());
        put(out, field::DST_PORT.start, &self.dst_port.to_be_bytes());
        put(out, field::SEQ.start, &self.seq.to_be_bytes());
        put(out, field::ACK.start, &self.ack.to_be_bytes());
        put(out, field::DATA_OFFSET.start, &[5 << 4, self.flags]);
        put(out, field::WINDOW.start, &self.window.to_be_bytes());
        put(out, field::CHECKSUM.start, &[0; 2]);
        put(out, field::URGENT.start, &[0; 2]);
    }
}

/// Writes the reset that answers the TCP segment in the IP packet `reply_to` as a closed port would
/// (RFC 9293 3.10.7.1): a whole IP packet from the segment's destination to its source; its length in bytes.
///
/// `None`, and nothing written, when there is nothing to answer: not TCP or malformed, a reset itself, a later
/// fragment, an address that is not a single host's; or when `out` is too short (60 bytes always do).
#[must_use]
pub fn build_reset(reply_to: &[u8], out: &mut [u8]) -> Option<usize> {
    let offender = icmp::Offender::new(reply_to)?;
    if offender.proto != proto::TCP {
        return None;
    }
    let segment = Packet::new_checked(offender.upper).ok()?;
    let flags = segment.flags();
    if flags & control::RST != 0 {
        return None;
    }
    let (seq, ack, reset) = if flags & control::ACK != 0 {
        (segment.ack(), 0, control::RST)
    } else {
        // SYN and FIN take one sequence number each (RFC 9293 3.4).
        let len = u32::from(len16(segment.payload().len()))
            + u32::from(flags & control::SYN != 0)
            + u32::from(flags & control::FIN != 0);
        (0, segment.seq().wrapping_add(len), control::RST | control::ACK)
    };
    let repr = Repr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        seq,
        ack,
        flags: reset,
        window: 0,
    };
    let (src, dst) = (offender.dst, offender.src);
    let header = if src.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let (ip, tcp) = out.get_mut(..header + HEADER_LEN)?.split_at_mut(header);
    icmp::emit_ip(ip, src, dst, proto::TCP, 0, len16(HEADER_LEN));
    repr.emit(tcp);
    Packet::new_unchecked(tcp).fill_checksum(src, dst);
    Some(header + HEADER_LEN)
}

#[cfg(test)]
mod tests;
