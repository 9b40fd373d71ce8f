//! IPv6 header and extension headers (RFC 8200; AH of RFC 4302).
#![forbid(unsafe_code)]

use core::fmt;

use super::{Error, get, get8, get16, get32, put};
use crate::packet::Ip;

mod field {
    use crate::wire::Field;
    pub(super) const VER_TC_FLOW: Field = 0..4;
    pub(super) const PAYLOAD_LEN: Field = 4..6;
    pub(super) const NEXT_HEADER: Field = 6..7;
    pub(super) const HOP_LIMIT: Field = 7..8;
    pub(super) const SRC: Field = 8..24;
    pub(super) const DST: Field = 24..40;
}

/// Length of the fixed header in bytes.
pub const HEADER_LEN: usize = 40;

/// Extension headers walked at most; RFC 8200 4.1 names six, with destination options twice.
pub const MAX_EXTENSIONS: usize = 8;

/// Next-header values of extension headers.
pub mod ext {
    /// Hop-by-hop options, only right after the fixed header.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication (RFC 4302).
    pub const AUTH: u8 = 51;
    /// Destination options.
    pub const DEST_OPTIONS: u8 = 60;
}

/// A view of an IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole packet; bytes behind its payload length are padding. A jumbogram is refused.
    ///
    /// # Errors
    /// [`Error::Value`] for another version, [`Error::Truncated`] or [`Error::Length`] when header or payload do not
    /// fit.
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        let b = bytes.as_ref();
        if b.len() < HEADER_LEN {
            return Err(Error::Truncated("IPv6"));
        }
        let p = Packet(b);
        if p.version() != 6 {
            return Err(Error::Value("IPv6", "version"));
        }
        if p.total_len() > b.len() {
            return Err(Error::Length("IPv6"));
        }
        Ok(Self(bytes))
    }

    /// Version, 6.
    #[inline]
    pub fn version(&self) -> u8 {
        get8(self.0.as_ref(), field::VER_TC_FLOW.start) >> 4
    }

    /// Traffic class: DSCP and ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        let [a, b] = get(self.0.as_ref(), field::VER_TC_FLOW.start);
        a << 4 | b >> 4
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        get32(self.0.as_ref(), field::VER_TC_FLOW.start) & 0xf_ffff
    }

    /// Length of what follows the fixed header, in bytes.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        get16(self.0.as_ref(), field::PAYLOAD_LEN.start)
    }

    /// Length of header and payload in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        HEADER_LEN + usize::from(self.payload_len())
    }

    /// Type of the first header behind the fixed one.
    #[inline]
    pub fn next_header(&self) -> u8 {
        get8(self.0.as_ref(), field::NEXT_HEADER.start)
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        get8(self.0.as_ref(), field::HOP_LIMIT.start)
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> Ip {
        Ip::v6(get(self.0.as_ref(), field::SRC.start))
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> Ip {
        Ip::v6(get(self.0.as_ref(), field::DST.start))
    }

    /// What follows the fixed header, up to the payload length.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.0.as_ref().get(HEADER_LEN..self.total_len()).unwrap_or_default()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the payload length.
    #[inline]
    pub fn set_payload_len(&mut self, v: u16) {
        put(self.0.as_mut(), field::PAYLOAD_LEN.start, &v.to_be_bytes());
    }

    /// Sets the traffic class.
    #[inline]
    pub fn set_traffic_class(&mut self, v: u8) {
        let [a, b] = get(self.0.as_ref(), field::VER_TC_FLOW.start);
        put(self.0.as_mut(), field::VER_TC_FLOW.start, &[a & 0xf0 | v >> 4, v << 4 | b & 0x0f]);
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, ip: Ip) {
        put(self.0.as_mut(), field::SRC.start, &ip.bytes());
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, ip: Ip) {
        put(self.0.as_mut(), field::DST.start, &ip.bytes());
    }

    /// Counts the hop limit down; `false`, and nothing changed, when it is 0 or 1.
    #[inline]
    #[must_use]
    pub fn decrement_hop_limit(&mut self) -> bool {
        let limit = self.hop_limit();
        if limit <= 1 {
            return false;
        }
        put(self.0.as_mut(), field::HOP_LIMIT.start, &[limit - 1]);
        true
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IPv6 {} -> {} next {} hop limit {} len {}",
            self.src(),
            self.dst(),
            self.next_header(),
            self.hop_limit(),
            self.total_len()
        )
    }
}

/// The fixed header in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Next header.
    pub proto: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Length of the payload in bytes.
    pub payload_len: u16,
}

impl Repr {
    /// Reads the header.
    #[must_use]
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Self {
        Self {
            src: packet.src(),
            dst: packet.dst(),
            proto: packet.next_header(),
            traffic_class: packet.traffic_class(),
            flow_label: packet.flow_label(),
            hop_limit: packet.hop_limit(),
            payload_len: packet.payload_len(),
        }
    }

    /// Size of the emitted header in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) {
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        put(out, field::VER_TC_FLOW.start, &first.to_be_bytes());
        put(out, field::NEXT_HEADER.start, &[self.proto, self.hop_limit]);
        let mut p = Packet::new_unchecked(out);
        p.set_payload_len(self.payload_len);
        p.set_src(self.src);
        p.set_dst(self.dst);
    }
}

/// Where the extension headers end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Protocol of what follows: the upper layer's, or what a later fragment's header says.
    pub proto: u8,
    /// Offset of what follows from the fixed header's first byte.
    pub offset: usize,
    /// Offset and flags word of a fragment header: offset in bytes in bits 3 to 15, more-fragments in bit 0.
    pub fragment: Option<u16>,
    /// Identification of the fragment header, 0 when there is none.
    pub ident: u32,
    /// Offset of what is behind the fragment header, the part that reassembly joins; 0 when there is none.
    pub fragment_data: usize,
}

impl Chain {
    /// Offset of the fragment in bytes, 0 when there is none.
    #[must_use]
    pub fn fragment_offset(&self) -> u16 {
        self.fragment.unwrap_or(0) & 0xfff8
    }

    /// Whether more fragments follow.
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        self.fragment.unwrap_or(0) & 1 != 0
    }
}

/// Walks the extension headers of the packet that starts at `packet[0]` and ends with the slice.
///
/// Stops behind the fragment header of a later fragment: its payload has no headers to read (RFC 8200 4.5).
///
/// # Errors
/// [`Error::Truncated`] when one does not fit; [`Error::Value`] for a hop-by-hop header that is not the first, a
/// second fragment header, a forbidden AH length, and more than [`MAX_EXTENSIONS`].
pub fn walk(packet: &[u8]) -> Result<Chain, Error> {
    let mut proto = Packet::new_unchecked(packet).next_header();
    let mut offset = HEADER_LEN;
    let mut fragment = None;
    let (mut ident, mut fragment_data) = (0, 0);
    for n in 0..=MAX_EXTENSIONS {
        match proto {
            ext::HOP_BY_HOP if n > 0 => return Err(Error::Value("IPv6", "order of extension headers")),
            ext::FRAGMENT if fragment.is_some() => {
                return Err(Error::Value("IPv6", "number of fragment headers"));
            }
            ext::HOP_BY_HOP | ext::ROUTING | ext::DEST_OPTIONS | ext::FRAGMENT | ext::AUTH => {}
            _ => return Ok(Chain { proto, offset, fragment, ident, fragment_data }),
        }
        let rest = packet.get(offset..).unwrap_or_default();
        let Some(&[next, len, hi, lo]) = rest.first_chunk::<4>() else {
            return Err(Error::Truncated("IPv6 extension header"));
        };
        let size = match proto {
            // A length of zero would be shorter than AH's own fixed part (RFC 4302 2.2).
            ext::AUTH if len == 0 => return Err(Error::Value("IPv6", "length of the authentication header")),
            ext::AUTH => (usize::from(len) + 2) * 4,
            ext::FRAGMENT => 8,
            _ => (usize::from(len) + 1) * 8,
        };
        if size > rest.len() {
            return Err(Error::Truncated("IPv6 extension header"));
        }
        offset += size;
        if proto == ext::FRAGMENT {
            let word = u16::from_be_bytes([hi, lo]);
            (fragment, ident, fragment_data) = (Some(word), get32(rest, 4), offset);
            if word & 0xfff8 != 0 {
                return Ok(Chain { proto: next, offset, fragment, ident, fragment_data });
            }
        }
        proto = next;
    }
    Err(Error::Value("IPv6", "number of extension headers"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `ping6` header between two documentation addresses, traffic class 0xb9, flow label 0xbeef1, 2 bytes payload.
    const PACKET: [u8; 43] = [
        0x6b, 0x9b, 0xee, 0xf1, 0, 2, 58, 64, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x80, 0, 0xff,
    ];

    #[test]
    fn reads_literal_bytes() {
        let p = Packet::new_checked(&PACKET[..]).unwrap();
        assert_eq!((p.version(), p.traffic_class(), p.flow_label()), (6, 0xb9, 0xbeef1));
        assert_eq!((p.payload_len(), p.next_header(), p.hop_limit()), (2, 58, 64));
        assert_eq!(p.payload(), [0x80, 0], "one byte is padding");
        assert_eq!(p.to_string(), "IPv6 2001:db8::1 -> 2001:db8::2 next 58 hop limit 64 len 42");
        let mut out = [0u8; 40];
        Repr::parse(&p).emit(&mut out);
        assert_eq!(out, PACKET[..40]);
    }

    #[test]
    fn sets_in_place() {
        let mut b = PACKET;
        let mut p = Packet::new_unchecked(&mut b[..]);
        p.set_traffic_class(0x42);
        assert_eq!((p.version(), p.traffic_class(), p.flow_label()), (6, 0x42, 0xbeef1));
        assert!(p.decrement_hop_limit());
        assert_eq!(p.hop_limit(), 63);
        b[7] = 1;
        assert!(!Packet::new_unchecked(&mut b[..]).decrement_hop_limit());
        assert_eq!(b[7], 1);
    }

    #[test]
    fn refuses_malformed() {
        assert_eq!(Packet::new_checked(&PACKET[..39]).unwrap_err(), Error::Truncated("IPv6"));
        assert_eq!(Packet::new_checked(&PACKET[..41]).unwrap_err(), Error::Length("IPv6"));
        let mut b = PACKET;
        b[0] = 0x4b;
        assert_eq!(Packet::new_checked(&b[..]).unwrap_err(), Error::Value("IPv6", "version"));
    }

    /// A header followed by `chain`: (type, bytes behind the next-header byte).
    fn chained(chain: &[(u8, &[u8])], last: u8) -> Vec<u8> {
        let mut b = PACKET[..40].to_vec();
        b[6] = chain.first().map_or(last, |c| c.0);
        for (i, (_, body)) in chain.iter().enumerate() {
            b.push(chain.get(i + 1).map_or(last, |c| c.0));
            b.extend_from_slice(body);
        }
        b
    }

    #[test]
    fn walks_extension_headers() {
        const PAD: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
        let long = [[1u8].as_slice(), &[0; 14]].concat();
        let auth = [[4u8].as_slice(), &[0; 22]].concat();
        let b = chained(&[(0, PAD), (60, PAD), (43, &long), (51, &auth), (60, PAD)], 6);
        let whole = |proto, offset| Chain { proto, offset, fragment: None, ident: 0, fragment_data: 0 };
        assert_eq!(walk(&b), Ok(whole(6, 40 + 8 + 8 + 16 + 24 + 8)));
        // Each one cut short.
        for cut in 41..b.len() {
            assert_eq!(walk(&b[..cut]), Err(Error::Truncated("IPv6 extension header")), "cut at {cut}");
        }
        assert_eq!(walk(&chained(&[], 17)), Ok(whole(17, 40)));
        assert!(walk(&chained(&[(60, PAD), (0, PAD)], 6)).is_err(), "hop-by-hop is not first");
        assert!(walk(&chained(&[(51, &[0, 0, 0, 0, 0, 0, 0])], 6)).is_err(), "AH of length 0");
        assert!(walk(&chained(&[(60, PAD); 8], 6)).is_ok());
        assert!(walk(&chained(&[(60, PAD); 9], 6)).is_err());
    }

    #[test]
    fn walks_fragments() {
        let first = chained(&[(44, &[0, 0, 1, 1, 2, 3, 4]), (60, &[0; 7])], 6);
        let chain = walk(&first).unwrap();
        assert_eq!((chain.proto, chain.offset, chain.fragment), (6, 56, Some(1)));
        assert_eq!((chain.ident, chain.fragment_data), (0x0102_0304, 48));
        assert!(chain.more_fragments() && chain.fragment_offset() == 0);
        // What a later fragment carries is data: its "destination options" are not read.
        let later = chained(&[(44, &[0, 0x05, 0x98, 1, 2, 3, 4]), (60, &[99; 7])], 6);
        let chain = walk(&later).unwrap();
        assert_eq!((chain.proto, chain.offset, chain.fragment_offset()), (60, 48, 1432));
        assert!(!chain.more_fragments());
        assert!(walk(&chained(&[(44, &[0; 7]), (44, &[0; 7])], 6)).is_err(), "two fragment headers");
    }

    proptest! {
        #[test]
        fn round_trip(src: [u8; 16], dst: [u8; 16], proto: u8, traffic_class: u8, flow_label in 0u32..1 << 20, hop_limit: u8, len in 0u16..100) {
            let repr = Repr { src: Ip::v6(src), dst: Ip::v6(dst), proto, traffic_class, flow_label, hop_limit, payload_len: len };
            let mut out = vec![0xa5u8; 40 + usize::from(len)];
            repr.emit(&mut out);
            prop_assert_eq!(Repr::parse(&Packet::new_checked(&out[..]).unwrap()), repr);
        }
    }
}
