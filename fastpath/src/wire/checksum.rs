//! The Internet checksum: RFC 1071 in full, RFC 1624 by difference.
#![forbid(unsafe_code)]

use crate::packet::{FlowKey, Ip, proto};

/// A one's complement sum in progress.
///
/// The sum is kept in the machine's byte order (RFC 1071 section 2 (B)), so no word is swapped on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Sum = Sum(0);

    /// Adds one 16-bit word in host order.
    #[inline]
    #[must_use]
    pub fn word(self, v: u16) -> Self {
        Sum(self.0 + u64::from(v.to_be()))
    }

    /// Adds four bytes in network order.
    #[inline]
    #[must_use]
    pub fn four(self, v: [u8; 4]) -> Self {
        Sum(self.0 + u64::from(u32::from_ne_bytes(v)))
    }

    /// Adds an address: 4 bytes of IPv4 or 16 of IPv6.
    #[inline]
    #[must_use]
    pub fn ip(self, ip: Ip) -> Self {
        if ip.is_v4() {
            self.four(ip.v4_bytes())
        } else {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.bytes();
            self.four([a, b, c, d]).four([e, f, g, h]).four([i, j, k, l]).four([m, n, o, p])
        }
    }

    /// Adds bytes that start at an even offset of what is summed; an odd last byte is padded with zero.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        // Two 32-bit halves a word cannot overflow 64 bits below 2^32 words, and the compiler makes vectors of them.
        let mut acc = self.0;
        let (words, rest) = bytes.as_chunks::<8>();
        for w in words {
            let v = u64::from_ne_bytes(*w);
            acc += (v & 0xffff_ffff) + (v >> 32);
        }
        let (words, rest) = rest.as_chunks::<2>();
        for w in words {
            acc += u64::from(u16::from_ne_bytes(*w));
        }
        if let [last] = rest {
            acc += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Sum(acc)
    }

    /// Adds another sum.
    #[inline]
    #[must_use]
    pub fn plus(self, other: Sum) -> Self {
        self.word(other.fold())
    }

    /// The sum in 16 bits, host order, not complemented. Zero only when all that was added is zero.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "every carry has been folded in")]
    pub fn fold(self) -> u16 {
        let v = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let v = (v & 0xffff) + (v >> 16 & 0xffff) + (v >> 32);
        let v = (v & 0xffff) + (v >> 16);
        let v = (v & 0xffff) + (v >> 16);
        u16::from_be(v as u16)
    }

    /// The checksum field's value: the folded sum, complemented.
    #[inline]
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether the sum over data and its checksum field says "intact".
    #[inline]
    #[must_use]
    pub fn verifies(self) -> bool {
        self.0 != 0 && is_multiple(self.0)
    }

    /// Whether [`fold`](Sum::fold) is `word`.
    #[inline]
    #[must_use]
    pub fn folds_to(self, word: u16) -> bool {
        // Only a sum of nothing but zeros folds to zero.
        if word == 0 {
            self.0 == 0
        } else {
            self.0 != 0 && is_multiple(add64(self.0, (!word).to_be().into()))
        }
    }

    /// Adds eight bytes. Nothing else than eight bytes may be added to the sum afterwards.
    #[inline(always)]
    #[must_use]
    pub(crate) fn eight(self, bytes: [u8; 8]) -> Self {
        Sum(add64(self.0, u64::from_ne_bytes(bytes)))
    }
}

/// The one's complement sum of 64 bits, of which that of 16 bits is a part: 0xffff divides 2^64 - 1.
#[inline]
fn add64(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// Whether 0xffff divides `v`: whether its 16-bit words add up to zero or 0xffff.
#[inline]
fn is_multiple(v: u64) -> bool {
    // Granlund and Montgomery, "Division by invariant integers using multiplication" (1994) section 9: 0xffff is odd, and
    // this is its inverse modulo 2^64.
    const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
    v.wrapping_mul(INVERSE) <= u64::MAX / 0xffff
}

/// The checksum of `bytes`: what belongs into a field that is zero now.
#[inline]
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::ZERO.bytes(bytes).finish()
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1).
///
/// `len` is the upper layer's length in bytes, header included.
#[inline]
#[must_use]
pub fn pseudo_header(src: Ip, dst: Ip, proto: u8, len: u32) -> Sum {
    Sum::ZERO.ip(src).ip(dst).four(len.to_be_bytes()).word(u16::from(proto))
}

/// What replacing `old` by `new` adds to the sum: `~m + m'` of RFC 1624 equation 3.
///
/// Both start at an even offset of the checksummed data, and have the same length.
#[inline]
#[must_use]
pub fn delta(old: &[u8], new: &[u8]) -> u16 {
    Sum::ZERO.bytes(new).word(!Sum::ZERO.bytes(old).fold()).fold()
}

/// [`delta`] of an address that is replaced by one of the same family.
#[inline]
#[must_use]
pub fn delta_ip(old: Ip, new: Ip) -> u16 {
    Sum::ZERO.ip(new).word(!Sum::ZERO.ip(old).fold()).fold()
}

/// [`delta`] of one 16-bit field.
#[inline]
#[must_use]
pub fn delta16(old: u16, new: u16) -> u16 {
    add(!old, new)
}

/// Both changes together: the one's complement sum of two deltas.
#[inline]
#[must_use]
pub fn add(a: u16, b: u16) -> u16 {
    let (v, carry) = a.overflowing_add(b);
    v + u16::from(carry)
}

/// The checksum field after a change: `HC' = ~(~HC + ~m + m')`, RFC 1624 equation 3.
#[inline]
#[must_use]
pub fn apply(check: u16, delta: u16) -> u16 {
    !add(!check, delta)
}

/// [`apply`] for UDP: zero is "no checksum" and stays, a computed zero is sent as `0xffff` (RFC 768).
#[inline]
#[must_use]
pub fn apply_udp(check: u16, delta: u16) -> u16 {
    if check == 0 { 0 } else { udp(apply(check, delta)) }
}

/// A computed checksum as UDP sends it: zero as `0xffff`.
#[inline]
#[must_use]
pub fn udp(check: u16) -> u16 {
    if check == 0 { 0xffff } else { check }
}

/// What turning `from` into `to` adds to the IPv4 header checksum and to the transport checksum.
///
/// ICMP has no pseudo-header, and of its two ports (both the identifier) one in the packet.
#[must_use]
pub fn rewrite_deltas(from: &FlowKey, to: &FlowKey) -> (u16, u16) {
    let addresses = add(delta_ip(from.src, to.src), delta_ip(from.dst, to.dst));
    let ports = delta16(from.sport, to.sport);
    match from.proto {
        proto::ICMP => (addresses, ports),
        proto::ICMPV6 => (addresses, add(addresses, ports)),
        _ => (addresses, add(addresses, add(ports, delta16(from.dport, to.dport)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for w in bytes.chunks(2) {
            sum += u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn sum_is_rfc_1071(bytes in prop::collection::vec(any::<u8>(), 0..if cfg!(miri) { 200 } else { 3000 })) {
            prop_assert_eq!(checksum(&bytes), slow(&bytes));
        }

        #[test]
        fn questions_are_answered_as_by_folding(words in prop::collection::vec(any::<u16>(), 0..20), other: u16, a: [u8; 8], b: [u8; 8]) {
            let mut sum = words.iter().fold(Sum::ZERO, |s, w| s.word(*w));
            for sum in [sum, sum.word(!sum.fold()), sum.eight(a).eight(b)] {
                prop_assert_eq!(sum.verifies(), sum.fold() == 0xffff);
                for word in [other, sum.fold(), !sum.fold(), 0, 0xffff] {
                    prop_assert_eq!(sum.folds_to(word), sum.fold() == word);
                }
            }
            prop_assert_eq!(Sum::ZERO.eight(a).eight(b).fold(), Sum::ZERO.bytes(&a).bytes(&b).fold());
            sum = Sum::ZERO.eight([0xff; 8]);
            prop_assert_eq!(sum.fold(), 0xffff);
        }

        #[test]
        fn sum_splits_at_even_offsets(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..100) {
            let (a, b) = bytes.split_at((2 * at).min(bytes.len()));
            prop_assert_eq!(Sum::ZERO.bytes(a).bytes(b).finish(), slow(&bytes));
            prop_assert_eq!(Sum::ZERO.bytes(a).plus(Sum::ZERO.bytes(b)).finish(), slow(&bytes));
        }

        #[test]
        fn pseudo_header_is_its_bytes(src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), proto: u8, len in 0u32..70_000) {
            let mut v6 = Vec::new();
            v6.extend_from_slice(&src);
            v6.extend_from_slice(&dst);
            v6.extend_from_slice(&len.to_be_bytes());
            v6.extend_from_slice(&[0, 0, 0, proto]);
            // A mapped address would be taken for IPv4's; the parser lets none through.
            prop_assume!(!Ip::v6(src).is_v4() && !Ip::v6(dst).is_v4());
            prop_assert_eq!(pseudo_header(Ip::v6(src), Ip::v6(dst), proto, len).finish(), slow(&v6));
            let (s, d) = ([src[0], src[1], src[2], src[3]], [dst[0], dst[1], dst[2], dst[3]]);
            let len = len & 0xffff;
            let mut v4 = [s, d].concat();
            v4.extend_from_slice(&[0, proto]);
            v4.extend_from_slice(&len.to_be_bytes()[2..]);
            prop_assert_eq!(pseudo_header(Ip::v4(s), Ip::v4(d), proto, len).finish(), slow(&v4));
        }

        #[test]
        fn update_is_recomputation(
            mut data in prop::collection::vec(any::<u8>(), 24..100),
            new in prop::collection::vec(any::<u8>(), 1..20),
            at in any::<prop::sample::Index>(),
        ) {
            // A checksummed packet is never all zero (its version or protocol is not), see RFC 1624 section 3.
            data[0] |= 1;
            // An even offset; an odd length is only right at the very end.
            let at = 2 + at.index(data.len() - 2 - new.len() + 1) / 2 * 2;
            let mut new = new;
            if at + new.len() != data.len() {
                new.truncate(new.len() & !1);
            }
            let check = checksum(&data);
            let old = data[at..at + new.len()].to_vec();
            data[at..at + new.len()].copy_from_slice(&new);
            let d = delta(&old, &new);
            prop_assert_eq!(apply(check, d), checksum(&data));
            // And back.
            prop_assert_eq!(apply(apply(check, d), delta(&new, &old)), check);
        }

        #[test]
        fn deltas_add(a: u16, b: u16, c: u16, d: u16, check in 0u16..0xffff) {
            let one = apply(apply(check, delta16(a, b)), delta16(c, d));
            let both = apply(check, add(delta16(a, b), delta16(c, d)));
            prop_assert_eq!(one, both);
            prop_assert_eq!(delta16(a, b), delta(&a.to_be_bytes(), &b.to_be_bytes()));
        }

        #[test]
        fn address_delta(a in any::<[u8; 4]>(), b in any::<[u8; 4]>(), c in any::<[u8; 16]>(), d in any::<[u8; 16]>()) {
            prop_assert_eq!(delta_ip(Ip::v4(a), Ip::v4(b)), delta(&a, &b));
            prop_assume!(!Ip::v6(c).is_v4() && !Ip::v6(d).is_v4());
            prop_assert_eq!(delta_ip(Ip::v6(c), Ip::v6(d)), delta(&c, &d));
        }
    }

    #[test]
    fn rfc_1624_section_4_example() {
        // The case equation 2 gets wrong: HC = 0xDD2F, m = 0x5555 -> m' = 0x3285 gives 0x0000.
        assert_eq!(apply(0xdd2f, delta16(0x5555, 0x3285)), 0x0000);
    }

    #[test]
    fn udp_zero() {
        assert_eq!(apply_udp(0, delta16(1, 2)), 0);
        assert_eq!(apply_udp(0xdd2f, delta16(0x5555, 0x3285)), 0xffff);
        assert_eq!(udp(0), 0xffff);
        assert_eq!(udp(0x1234), 0x1234);
    }

    #[test]
    fn rfc_1071_section_3_example() {
        assert_eq!(Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    }

    #[test]
    fn longest_input_does_not_overflow() {
        assert_eq!(checksum(&vec![0xff; 65_536]), 0);
        assert!(Sum::ZERO.bytes(&vec![0xff; 65_536]).verifies());
    }
}
