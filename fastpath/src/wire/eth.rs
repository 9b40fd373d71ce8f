//! Ethernet II frame header (IEEE 802.3 clause 3.2.6, no tag).
#![forbid(unsafe_code)]

use core::fmt;

use super::{Error, get, get16, put};
use crate::packet::Mac;

mod field {
    use crate::wire::Field;
    pub(super) const DST: Field = 0..6;
    pub(super) const SRC: Field = 6..12;
    pub(super) const ETHERTYPE: Field = 12..14;
}

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 14;

/// EtherType values the dataplane treats by name (IANA "IEEE 802 Numbers").
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100;
    /// IEEE 802.1ad service tag.
    pub const QINQ: u16 = 0x88a8;
    /// Pre-standard double tag.
    pub const QINQ_OLD: u16 = 0x9100;
}

/// A view of an Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole header.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer than 14 bytes.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        if bytes.as_ref().len() < HEADER_LEN { Err(Error::Truncated("Ethernet")) } else { Ok(Self(bytes)) }
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> Mac {
        Mac(get(self.0.as_ref(), field::DST.start))
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> Mac {
        Mac(get(self.0.as_ref(), field::SRC.start))
    }

    /// EtherType, or a length when below 0x0600.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        get16(self.0.as_ref(), field::ETHERTYPE.start)
    }

    /// What follows the header, padding included.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.0.as_ref().get(HEADER_LEN..).unwrap_or_default()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, mac: Mac) {
        put(self.0.as_mut(), field::DST.start, &mac.0);
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, mac: Mac) {
        put(self.0.as_mut(), field::SRC.start, &mac.0);
    }

    /// Sets the EtherType.
    #[inline]
    pub fn set_ethertype(&mut self, v: u16) {
        put(self.0.as_mut(), field::ETHERTYPE.start, &v.to_be_bytes());
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ethernet {} -> {} type {:#06x}", self.src(), self.dst(), self.ethertype())
    }
}

/// The header in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address.
    pub src: Mac,
    /// Destination address.
    pub dst: Mac,
    /// EtherType.
    pub ethertype: u16,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Self {
        Self { src: packet.src(), dst: packet.dst(), ethertype: packet.ethertype() }
    }

    /// Size of the emitted header in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) {
        let mut p = Packet::new_unchecked(out);
        p.set_dst(self.dst);
        p.set_src(self.src);
        p.set_ethertype(self.ethertype);
    }
}

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the group bit is set: multicast or broadcast.
    #[inline]
    #[must_use]
    pub fn is_multicast(&self) -> bool {
        self.0[0] & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [u8; 16] =
        [0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00, 0x45, 0x00];

    #[test]
    fn reads_literal_bytes() {
        let p = Packet::new_checked(&FRAME[..]).unwrap();
        assert_eq!(p.dst(), Mac([0xee; 6]));
        assert_eq!(p.src(), Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(p.ethertype(), ethertype::IPV4);
        assert_eq!(p.payload(), [0x45, 0x00]);
        assert_eq!(p.to_string(), "Ethernet 02:00:00:00:00:01 -> ee:ee:ee:ee:ee:ee type 0x0800");
    }

    #[test]
    fn emits_what_it_parsed() {
        let repr = Repr::parse(&Packet::new_checked(&FRAME[..]).unwrap());
        let mut out = [0u8; 14];
        repr.emit(&mut out);
        assert_eq!(out, FRAME[..14]);
        assert_eq!(repr.buffer_len(), 14);
    }

    #[test]
    fn refuses_thirteen_bytes() {
        assert_eq!(Packet::new_checked(&FRAME[..13]).unwrap_err(), Error::Truncated("Ethernet"));
        // The contract for a view that was not checked.
        let mut short = [0xaau8; 13];
        let mut p = Packet::new_unchecked(&mut short[..]);
        p.set_ethertype(0x0800);
        assert_eq!(p.ethertype(), 0);
        assert_eq!(short, [0xaa; 13]);
    }

    #[test]
    fn group_bit() {
        assert!(Mac::BROADCAST.is_multicast());
        assert!(Mac([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(!Mac([0xee; 6]).is_multicast());
    }
}
