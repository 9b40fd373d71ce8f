//! SCTP common header (RFC 9260 section 3.1) and its CRC32c.
#![forbid(unsafe_code)]

use core::fmt;

use super::{Error, get, get16, get32, put};

mod field {
    use crate::wire::Field;
    pub(super) const SRC_PORT: Field = 0..2;
    pub(super) const DST_PORT: Field = 2..4;
    pub(super) const TAG: Field = 4..8;
    pub(super) const CHECKSUM: Field = 8..12;
}

/// Length of the common header in bytes.
pub const HEADER_LEN: usize = 12;

/// A view of an SCTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole common header; the packet ends with the bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer than 12 bytes.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        if bytes.as_ref().len() < HEADER_LEN { Err(Error::Truncated("SCTP")) } else { Ok(Self(bytes)) }
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

    /// Verification tag.
    #[inline]
    pub fn tag(&self) -> u32 {
        get32(self.0.as_ref(), field::TAG.start)
    }

    /// The CRC32c field, least significant byte first on the wire (RFC 9260 appendix A).
    #[inline]
    pub fn checksum(&self) -> u32 {
        u32::from_le_bytes(get(self.0.as_ref(), field::CHECKSUM.start))
    }

    /// The checksum the packet should have.
    #[must_use]
    pub fn compute_checksum(&self) -> u32 {
        let b = self.0.as_ref();
        let head = b.get(..field::CHECKSUM.start).unwrap_or_default();
        let tail = b.get(field::CHECKSUM.end..).unwrap_or_default();
        !crc32c(crc32c(crc32c(!0, head), &[0; 4]), tail)
    }

    /// Whether the checksum is right.
    pub fn verify_checksum(&self) -> bool {
        self.checksum() == self.compute_checksum()
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

    /// Computes the CRC32c afresh: needed after a change of ports, which have no incremental update here.
    pub fn fill_checksum(&mut self) {
        let crc = self.compute_checksum();
        put(self.0.as_mut(), field::CHECKSUM.start, &crc.to_le_bytes());
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SCTP {} -> {} tag {:#010x}", self.src_port(), self.dst_port(), self.tag())
    }
}

/// Tables for eight bytes at a time: `TABLES[k][b]` is the CRC of byte `b` with `k` zero bytes behind it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    /// The Castagnoli polynomial, bits reversed.
    const POLY: u32 = 0x82f6_3b78;
    let mut t = [[0u32; 256]; 8];
    let mut byte = 0u32;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ POLY } else { crc >> 1 };
            bit += 1;
        }
        t[0][byte as usize] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = t[k - 1][byte];
            t[k][byte] = before >> 8 ^ t[0][(before & 0xff) as usize];
            byte += 1;
        }
        k += 1;
    }
    t
}

/// Continues a CRC32c over `bytes`: start with `!0`, complement at the end (RFC 9260 appendix A).
#[must_use]
pub fn crc32c(state: u32, bytes: &[u8]) -> u32 {
    let mut crc = state;
    let (words, rest) = bytes.as_chunks::<8>();
    for w in words {
        let x = (u64::from_le_bytes(*w) ^ u64::from(crc)).to_le_bytes();
        crc = 0;
        for (table, byte) in TABLES.iter().rev().zip(x) {
            crc ^= table[usize::from(byte)];
        }
    }
    for byte in rest {
        let [low, ..] = crc.to_le_bytes();
        crc = crc >> 8 ^ TABLES[0][usize::from(low ^ byte)];
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 3720 B.4, the test vectors of CRC32c.
    #[test]
    fn rfc_3720_vectors() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(!0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(!crc32c(!0, &ascending), 0x46dd_794e);
        assert_eq!(!crc32c(!0, &descending), 0x113f_db5c);
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    /// RFC 3309 appendix, bit by bit.
    fn slow(state: u32, bytes: &[u8]) -> u32 {
        let mut crc = state;
        for b in bytes {
            crc ^= u32::from(*b);
            for _ in 0..8 {
                crc = if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        crc
    }

    proptest! {
        #[test]
        fn crc_is_bit_by_bit(state: u32, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(crc32c(state, &bytes), slow(state, &bytes));
        }

        #[test]
        fn filled_checksum_verifies(mut bytes in prop::collection::vec(any::<u8>(), 12..80), port: u16, flip in any::<prop::sample::Index>()) {
            let mut p = Packet::new_checked(&mut bytes[..]).unwrap();
            p.set_dst_port(port);
            p.set_src_port(!port);
            p.fill_checksum();
            prop_assert!(p.verify_checksum());
            prop_assert_eq!((p.src_port(), p.dst_port()), (!port, port));
            let at = flip.index(bytes.len());
            bytes[at] ^= 1;
            prop_assert!(!Packet::new_checked(&bytes[..]).unwrap().verify_checksum());
        }
    }

    #[test]
    fn reads_literal_bytes() {
        // Ports 36412 and 38412, tag 1, a checksum that shows its byte order.
        let b: [u8; 12] = [0x8e, 0x3c, 0x96, 0x0c, 0, 0, 0, 1, 0x78, 0x56, 0x34, 0x12];
        let p = Packet::new_checked(&b[..]).unwrap();
        assert_eq!((p.src_port(), p.dst_port(), p.tag(), p.checksum()), (36412, 38412, 1, 0x1234_5678));
        assert_eq!(p.to_string(), "SCTP 36412 -> 38412 tag 0x00000001");
        assert_eq!(Packet::new_checked(&b[..11]).unwrap_err(), Error::Truncated("SCTP"));
    }
}
