//! UDP header (RFC 768).
#![forbid(unsafe_code)]

use core::fmt;

use super::checksum::{self, pseudo_header};
use super::{Error, get16, put};
use crate::packet::{Ip, proto};

mod field {
    use crate::wire::Field;
    pub(super) const SRC_PORT: Field = 0..2;
    pub(super) const DST_PORT: Field = 2..4;
    pub(super) const LENGTH: Field = 4..6;
    pub(super) const CHECKSUM: Field = 6..8;
}

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header.
pub const CHECKSUM_AT: usize = field::CHECKSUM.start;

/// A view of a UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole datagram; bytes behind its length are not part of it.
    ///
    /// # Errors
    /// [`Error::Truncated`] or [`Error::Length`] when header or length do not fit.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        let b = bytes.as_ref();
        if b.len() < HEADER_LEN {
            return Err(Error::Truncated("UDP"));
        }
        let len = usize::from(Packet(b).length());
        if len < HEADER_LEN || len > b.len() { Err(Error::Length("UDP")) } else { Ok(Self(bytes)) }
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

    /// Length of header and payload in bytes.
    #[inline]
    pub fn length(&self) -> u16 {
        get16(self.0.as_ref(), field::LENGTH.start)
    }

    /// Checksum; 0 says there is none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get16(self.0.as_ref(), field::CHECKSUM.start)
    }

    /// What follows the header, up to the length.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.0.as_ref().get(HEADER_LEN..usize::from(self.length())).unwrap_or_default()
    }

    /// Whether the checksum is right, or zero: the caller says whether zero is allowed (RFC 8200 8.1, RFC 6935).
    #[inline]
    pub fn verify_checksum(&self, src: Ip, dst: Ip) -> bool {
        let datagram = self.0.as_ref().get(..usize::from(self.length())).unwrap_or_default();
        self.checksum() == 0
            || pseudo_header(src, dst, proto::UDP, u32::from(self.length())).bytes(datagram).verifies()
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

    /// Sets the length.
    #[inline]
    pub fn set_length(&mut self, v: u16) {
        put(self.0.as_mut(), field::LENGTH.start, &v.to_be_bytes());
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, v: u16) {
        put(self.0.as_mut(), field::CHECKSUM.start, &v.to_be_bytes());
    }

    /// Computes the checksum afresh over the datagram's bytes.
    pub fn fill_checksum(&mut self, src: Ip, dst: Ip) {
        self.set_checksum(0);
        let len = self.length();
        let datagram = self.0.as_ref().get(..usize::from(len)).unwrap_or_default();
        let check = pseudo_header(src, dst, proto::UDP, u32::from(len)).bytes(datagram).finish();
        self.set_checksum(checksum::udp(check));
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UDP {} -> {} len {}", self.src_port(), self.dst_port(), self.length())
    }
}

/// The header in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Length of the payload in bytes.
    pub payload_len: u16,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Self {
        Self {
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            payload_len: super::len16(packet.payload().len()),
        }
    }

    /// Size of the emitted header in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header without a checksum (zero): [`Packet::fill_checksum`] computes it once the payload is there.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) {
        let mut p = Packet::new_unchecked(out);
        p.set_src_port(self.src_port);
        p.set_dst_port(self.dst_port);
        p.set_length(super::len16(HEADER_LEN + usize::from(self.payload_len)));
        p.set_checksum(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 10.0.0.1:12345 -> 10.0.0.2:53, "hello", with its checksum, and one byte that is not part of it.
    const DATAGRAM: [u8; 14] =
        [0x30, 0x39, 0x00, 0x35, 0x00, 0x0d, 0x77, 0x91, b'h', b'e', b'l', b'l', b'o', 0xff];

    fn ends() -> (Ip, Ip) {
        (Ip::v4([10, 0, 0, 1]), Ip::v4([10, 0, 0, 2]))
    }

    #[test]
    fn reads_literal_bytes() {
        let (src, dst) = ends();
        let p = Packet::new_checked(&DATAGRAM[..]).unwrap();
        assert_eq!((p.src_port(), p.dst_port(), p.length()), (12345, 53, 13));
        assert_eq!(p.payload(), b"hello");
        assert!(p.verify_checksum(src, dst));
        assert_eq!(p.to_string(), "UDP 12345 -> 53 len 13");
        let mut b = DATAGRAM;
        b[8] ^= 1;
        assert!(!Packet::new_checked(&b[..]).unwrap().verify_checksum(src, dst));
        let mut p = Packet::new_checked(&mut b[..]).unwrap();
        p.set_checksum(0);
        assert!(p.verify_checksum(src, dst), "no checksum");
        p.fill_checksum(src, dst);
        assert_eq!(p.checksum(), 0x7691);
    }

    #[test]
    fn computed_zero_is_sent_as_ones() {
        // A payload word that brings the sum to 0xffff.
        let (src, dst) = ends();
        let mut b = [0u8; 10];
        Repr { src_port: 1, dst_port: 2, payload_len: 2 }.emit(&mut b);
        let sum = pseudo_header(src, dst, proto::UDP, 10).bytes(&b).finish();
        b[8..].copy_from_slice(&sum.to_be_bytes());
        let mut p = Packet::new_checked(&mut b[..]).unwrap();
        p.fill_checksum(src, dst);
        assert_eq!(p.checksum(), 0xffff);
        assert!(p.verify_checksum(src, dst));
    }

    #[test]
    fn refuses_malformed() {
        assert_eq!(Packet::new_checked(&DATAGRAM[..7]).unwrap_err(), Error::Truncated("UDP"));
        assert_eq!(Packet::new_checked(&DATAGRAM[..12]).unwrap_err(), Error::Length("UDP"));
        let mut b = DATAGRAM;
        b[5] = 7;
        assert_eq!(Packet::new_checked(&b[..]).unwrap_err(), Error::Length("UDP"));
    }

    proptest! {
        #[test]
        fn round_trip(src_port: u16, dst_port: u16, payload in prop::collection::vec(any::<u8>(), 0..50), v6: bool) {
            let (src, dst) = if v6 { (Ip::v6([7; 16]), Ip::v6([9; 16])) } else { ends() };
            let repr = Repr { src_port, dst_port, payload_len: u16::try_from(payload.len()).unwrap() };
            let mut out = vec![0x5au8; repr.buffer_len()];
            repr.emit(&mut out);
            out.extend_from_slice(&payload);
            let mut p = Packet::new_checked(&mut out[..]).unwrap();
            p.fill_checksum(src, dst);
            prop_assert!(p.checksum() != 0 && p.verify_checksum(src, dst));
            prop_assert_eq!(p.payload(), &payload[..]);
            prop_assert_eq!(Repr::parse(&p), repr);
        }
    }
}
