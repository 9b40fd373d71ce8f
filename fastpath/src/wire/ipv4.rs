//! IPv4 header (RFC 791).
#![forbid(unsafe_code)]

use core::fmt;

use super::checksum::{self, Sum};
use super::{Error, get, get8, get16, put};
use crate::packet::{Ip, flags};

mod field {
    use crate::wire::Field;
    pub(super) const VER_IHL: Field = 0..1;
    pub(super) const TOS: Field = 1..2;
    pub(super) const TOTAL_LEN: Field = 2..4;
    pub(super) const IDENT: Field = 4..6;
    pub(super) const FLAGS_OFFSET: Field = 6..8;
    pub(super) const TTL: Field = 8..9;
    pub(super) const PROTOCOL: Field = 9..10;
    pub(super) const CHECKSUM: Field = 10..12;
    pub(super) const SRC: Field = 12..16;
    pub(super) const DST: Field = 16..20;
}

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Don't-fragment bit of the flags and offset word.
pub const DF: u16 = 0x4000;
/// More-fragments bit of the flags and offset word.
pub const MF: u16 = 0x2000;
/// Fragment offset bits of the flags and offset word, in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// A view of an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole packet; bytes behind its total length are padding.
    ///
    /// # Errors
    /// [`Error::Value`] for another version, [`Error::Truncated`] or [`Error::Length`] when header or total length
    /// do not fit. The checksum is not looked at: [`Packet::verify_checksum`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        let b = bytes.as_ref();
        if b.len() < HEADER_LEN {
            return Err(Error::Truncated("IPv4"));
        }
        let p = Packet(b);
        if p.version() != 4 {
            return Err(Error::Value("IPv4", "version"));
        }
        let (header, total) = (p.header_len(), usize::from(p.total_len()));
        if header < HEADER_LEN || total < header || total > b.len() {
            return Err(Error::Length("IPv4"));
        }
        Ok(Self(bytes))
    }

    /// Version, 4.
    #[inline]
    pub fn version(&self) -> u8 {
        get8(self.0.as_ref(), field::VER_IHL.start) >> 4
    }

    /// Header length in bytes, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(get8(self.0.as_ref(), field::VER_IHL.start) & 0xf) * 4
    }

    /// DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        get8(self.0.as_ref(), field::TOS.start)
    }

    /// Length of header and payload in bytes.
    #[inline]
    pub fn total_len(&self) -> u16 {
        get16(self.0.as_ref(), field::TOTAL_LEN.start)
    }

    /// Identification, for reassembly.
    #[inline]
    pub fn ident(&self) -> u16 {
        get16(self.0.as_ref(), field::IDENT.start)
    }

    /// [`DF`], [`MF`] and the fragment offset.
    #[inline]
    pub fn flags_offset(&self) -> u16 {
        get16(self.0.as_ref(), field::FLAGS_OFFSET.start)
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        get8(self.0.as_ref(), field::TTL.start)
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        get8(self.0.as_ref(), field::PROTOCOL.start)
    }

    /// Header checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get16(self.0.as_ref(), field::CHECKSUM.start)
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> Ip {
        Ip::v4(get(self.0.as_ref(), field::SRC.start))
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> Ip {
        Ip::v4(get(self.0.as_ref(), field::DST.start))
    }

    /// Whether the header checksum is right.
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        Sum::ZERO.bytes(self.header()).verifies()
    }

    /// The header's bytes, options included.
    #[inline]
    pub fn header(&self) -> &[u8] {
        self.0.as_ref().get(..self.header_len()).unwrap_or_default()
    }

    /// What follows the header, up to the total length.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.0.as_ref().get(self.header_len()..usize::from(self.total_len())).unwrap_or_default()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the total length.
    #[inline]
    pub fn set_total_len(&mut self, v: u16) {
        put(self.0.as_mut(), field::TOTAL_LEN.start, &v.to_be_bytes());
    }

    /// Sets the identification.
    #[inline]
    pub fn set_ident(&mut self, v: u16) {
        put(self.0.as_mut(), field::IDENT.start, &v.to_be_bytes());
    }

    /// Sets flags and fragment offset.
    #[inline]
    pub fn set_flags_offset(&mut self, v: u16) {
        put(self.0.as_mut(), field::FLAGS_OFFSET.start, &v.to_be_bytes());
    }

    /// Sets the header checksum.
    #[inline]
    pub fn set_checksum(&mut self, v: u16) {
        put(self.0.as_mut(), field::CHECKSUM.start, &v.to_be_bytes());
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, ip: Ip) {
        put(self.0.as_mut(), field::SRC.start, &ip.v4_bytes());
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, ip: Ip) {
        put(self.0.as_mut(), field::DST.start, &ip.v4_bytes());
    }

    /// Computes the header checksum afresh.
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let check = Sum::ZERO.bytes(self.header()).finish();
        self.set_checksum(check);
    }

    /// Applies a [`checksum::delta`] to the header checksum.
    #[inline]
    pub fn apply_delta(&mut self, delta: u16) {
        let check = checksum::apply(self.checksum(), delta);
        self.set_checksum(check);
    }

    /// Counts the time to live down and updates the checksum; `false`, and nothing changed, when it is 0 or 1.
    #[inline]
    #[must_use]
    pub fn decrement_ttl(&mut self) -> bool {
        let ttl = self.ttl();
        if ttl <= 1 {
            return false;
        }
        put(self.0.as_mut(), field::TTL.start, &[ttl - 1]);
        // The word of TTL and protocol goes down by 0x0100, whatever the protocol is.
        self.apply_delta(checksum::delta16(0x0100, 0));
        true
    }

    /// Sets DSCP and ECN and updates the checksum.
    #[inline]
    pub fn rewrite_tos(&mut self, tos: u8) {
        let old = self.tos();
        put(self.0.as_mut(), field::TOS.start, &[tos]);
        self.apply_delta(checksum::delta16(u16::from(old), u16::from(tos)));
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IPv4 {} -> {} proto {} ttl {} len {}",
            self.src(),
            self.dst(),
            self.protocol(),
            self.ttl(),
            self.total_len()
        )
    }
}

/// The header in host order; it has no options, and the packet is no fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Protocol of the payload.
    pub proto: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Don't fragment.
    pub df: bool,
    /// Identification; RFC 6864 lets it be anything when `df` is set.
    pub ident: u16,
    /// Length of the payload in bytes.
    pub payload_len: u16,
}

impl Repr {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::Checksum`]; [`Error::Value`] for a fragment, which this form cannot say.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Self, Error> {
        if !packet.verify_checksum() {
            return Err(Error::Checksum("IPv4"));
        }
        if packet.flags_offset() & (MF | OFFSET_MASK) != 0 {
            return Err(Error::Value("IPv4", "fragment offset"));
        }
        Ok(Self {
            src: packet.src(),
            dst: packet.dst(),
            proto: packet.protocol(),
            tos: packet.tos(),
            ttl: packet.ttl(),
            df: packet.flags_offset() & DF != 0,
            ident: packet.ident(),
            payload_len: super::len16(packet.payload().len()),
        })
    }

    /// Size of the emitted header in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header with its checksum. The total length saturates at 65535.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) {
        let first = 0x4500 | u16::from(self.tos);
        let total_len = super::len16(HEADER_LEN + usize::from(self.payload_len));
        let flags_offset = if self.df { DF } else { 0 };
        let hops = u16::from_be_bytes([self.ttl, self.proto]);
        // From the values: reading back what was just written would wait for the stores.
        let sum = Sum::ZERO.word(first).word(total_len).word(self.ident).word(flags_offset).word(hops);
        let check = sum.four(self.src.v4_bytes()).four(self.dst.v4_bytes()).finish();
        put(out, field::VER_IHL.start, &first.to_be_bytes());
        put(out, field::TTL.start, &hops.to_be_bytes());
        let mut p = Packet::new_unchecked(out);
        p.set_total_len(total_len);
        p.set_ident(self.ident);
        p.set_flags_offset(flags_offset);
        p.set_checksum(check);
        p.set_src(self.src);
        p.set_dst(self.dst);
    }
}

/// The bits of [`flags`] and the fragment word of `Meta` from the header's flags and offset.
#[inline]
pub(crate) fn meta_fragment(flags_offset: u16) -> (u8, u16) {
    let df = if flags_offset & DF != 0 { flags::DF } else { 0 };
    (df, flags_offset & OFFSET_MASK | (flags_offset & MF) << 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A UDP packet of 8 bytes payload, 10.0.0.1 -> 10.0.0.2, with the checksum Linux gave it.
    const PACKET: [u8; 30] = [
        0x45, 0x00, 0x00, 0x1c, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x11, 0x0a, 0x89, 10, 0, 0, 1, 10, 0, 0, 2,
        0x30, 0x39, 0x00, 0x35, 0x00, 0x08, 0x00, 0x00, 0xff, 0xff,
    ];

    #[test]
    fn reads_literal_bytes() {
        let p = Packet::new_checked(&PACKET[..]).unwrap();
        assert_eq!(p.header_len(), 20);
        assert_eq!(p.total_len(), 28);
        assert_eq!(p.ident(), 0x1c46);
        assert_eq!(p.flags_offset(), DF);
        assert_eq!((p.ttl(), p.protocol(), p.tos()), (64, 17, 0));
        assert_eq!(p.payload().len(), 8, "two bytes are padding");
        assert!(p.verify_checksum(), "{:#06x}", p.checksum());
        assert_eq!(p.to_string(), "IPv4 10.0.0.1 -> 10.0.0.2 proto 17 ttl 64 len 28");
    }

    #[test]
    fn emits_what_it_parsed() {
        let repr = Repr::parse(&Packet::new_checked(&PACKET[..]).unwrap()).unwrap();
        let mut out = [0u8; 20];
        repr.emit(&mut out[..repr.buffer_len()]);
        assert_eq!(out, PACKET[..20]);
    }

    #[test]
    fn refuses_malformed() {
        assert_eq!(Packet::new_checked(&PACKET[..19]).unwrap_err(), Error::Truncated("IPv4"));
        for (at, value, want) in [
            (0, 0x65, Error::Value("IPv4", "version")),
            (0, 0x44, Error::Length("IPv4")),
            (0, 0x4f, Error::Length("IPv4")),
            (3, 19, Error::Length("IPv4")),
            (3, 31, Error::Length("IPv4")),
        ] {
            let mut b = PACKET;
            b[at] = value;
            assert_eq!(Packet::new_checked(&b[..]).unwrap_err(), want, "byte {at} = {value}");
        }
        let mut b = PACKET;
        b[8] = 63;
        assert_eq!(Repr::parse(&Packet::new_checked(&b[..]).unwrap()).unwrap_err(), Error::Checksum("IPv4"));
    }

    #[test]
    fn ttl_stops_at_one() {
        for (ttl, want) in [(0u8, false), (1, false), (2, true)] {
            let mut b = PACKET;
            b[8] = ttl;
            let mut p = Packet::new_unchecked(&mut b[..]);
            p.fill_checksum();
            assert_eq!(p.decrement_ttl(), want);
            assert_eq!(p.ttl(), if want { ttl - 1 } else { ttl });
            assert!(p.verify_checksum());
        }
    }

    proptest! {
        #[test]
        fn updates_are_recomputation(header in any::<[u8; 20]>(), tos: u8) {
            let mut b = header;
            b[0] = 0x45;
            let mut p = Packet::new_unchecked(&mut b[..]);
            p.fill_checksum();
            p.rewrite_tos(tos);
            prop_assert_eq!(p.tos(), tos);
            let updated = p.checksum();
            p.fill_checksum();
            prop_assert_eq!(p.checksum(), updated);
            if p.decrement_ttl() {
                let updated = p.checksum();
                p.fill_checksum();
                prop_assert_eq!(p.checksum(), updated);
            }
        }

        #[test]
        fn round_trip(src: [u8; 4], dst: [u8; 4], proto: u8, tos: u8, ttl: u8, df: bool, ident: u16, len in 0u16..200) {
            let repr = Repr { src: Ip::v4(src), dst: Ip::v4(dst), proto, tos, ttl, df, ident, payload_len: len };
            let mut out = vec![0u8; 20 + usize::from(len)];
            repr.emit(&mut out);
            prop_assert_eq!(Repr::parse(&Packet::new_checked(&out[..]).unwrap()).unwrap(), repr);
        }
    }
}
