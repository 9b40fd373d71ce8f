//! Per-packet metadata, addresses and flow keys.
#![forbid(unsafe_code)]

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address of either family, IPv4 held in its mapped form (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
///
/// One type for every table key; the family is part of the value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ip(u128);

impl Ip {
    const MAPPED: u128 = 0xffff_0000_0000;

    /// From four bytes in network order.
    #[inline]
    #[must_use]
    pub fn v4(bytes: [u8; 4]) -> Self {
        Self(Self::MAPPED | u128::from(u32::from_be_bytes(bytes)))
    }

    /// From sixteen bytes in network order. A mapped address on the wire stays IPv6's: `parse` drops it.
    #[inline]
    #[must_use]
    pub fn v6(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Whether this is an IPv4 address.
    #[inline]
    #[must_use]
    pub fn is_v4(self) -> bool {
        self.0 >> 32 == 0xffff
    }

    /// The last four bytes, which for IPv4 are the address.
    #[inline]
    #[must_use]
    pub fn v4_bytes(self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0.to_be_bytes();
        [a, b, c, d]
    }

    /// Sixteen bytes in network order, the mapped form for IPv4.
    #[inline]
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The value as an integer, the mapped form for IPv4.
    #[inline]
    #[must_use]
    pub fn bits(self) -> u128 {
        self.0
    }

    /// From the integer that [`Ip::bits`] gives.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }
}

impl From<IpAddr> for Ip {
    fn from(a: IpAddr) -> Self {
        match a {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(a) => Self(a.into()),
        }
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(a: Ipv4Addr) -> Self {
        Self::v4(a.octets())
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(a: Ipv6Addr) -> Self {
        Self(a.into())
    }
}

impl From<Ip> for IpAddr {
    fn from(a: Ip) -> Self {
        if a.is_v4() { IpAddr::V4(a.v4_bytes().into()) } else { IpAddr::V6(a.0.into()) }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet (MAC-48) address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::str::FromStr for Mac {
    type Err = MacParseError;

    fn from_str(s: &str) -> Result<Self, MacParseError> {
        let mut out = [0u8; 6];
        let mut parts = s.split(':');
        for byte in &mut out {
            // from_str_radix alone would take "+1".
            let digits = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or(MacParseError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacParseError)?;
        }
        if parts.next().is_some() {
            return Err(MacParseError);
        }
        Ok(Self(out))
    }
}

/// The text is not six hexadecimal bytes joined by colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address: want six hexadecimal bytes joined by ':', as 02:00:00:00:00:01")]
pub struct MacParseError;

/// Identifies a port (a network device the dataplane holds) on this node; an index into `Snapshot::ports`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortId(pub u16);

impl PortId {
    /// No port.
    pub const NONE: PortId = PortId(u16::MAX);
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers") the dataplane treats by name.
pub mod proto {
    /// ICMP, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// SCTP, RFC 9260.
    pub const SCTP: u8 = 132;
}

/// The five-tuple of one direction of a flow.
///
/// ICMP echo has its identifier in both ports; a protocol without ports has zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FlowKey {
    /// Source address.
    pub src: Ip,
    /// Destination address, of the same family.
    pub dst: Ip,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
}

impl FlowKey {
    /// The all-zero key, to fill arrays with.
    pub const EMPTY: FlowKey = FlowKey { src: Ip(0), dst: Ip(0), sport: 0, dport: 0, proto: 0 };

    /// The key of the answers.
    #[inline]
    #[must_use]
    pub fn reversed(&self) -> Self {
        FlowKey { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto }
    }

    /// A hash over all fields, for tables and for the VXLAN source port. `seed` keeps it unpredictable from outside.
    #[inline]
    #[must_use]
    pub fn hash(&self, seed: u64) -> u64 {
        // Multiply-fold (wyhash's mixing step): two 64x64->128 multiplications for IPv4, four for IPv6.
        const K0: u64 = 0xa076_1d64_78bd_642f;
        const K1: u64 = 0xe703_7ed1_a0b4_28db;
        let ports = u64::from(self.sport) << 48 | u64::from(self.dport) << 32 | u64::from(self.proto);
        let (s, d) = (self.src.0, self.dst.0);
        let mut h = fold((low(s) << 32 | low(d) & 0xffff_ffff) ^ seed, ports ^ K0);
        if !self.src.is_v4() {
            h ^= fold(low(s) ^ K1 ^ seed, high(s) ^ K0);
            h = fold(h ^ low(d), high(d) ^ K1 ^ seed);
        }
        fold(h ^ K1, seed ^ K0)
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |ip: Ip, port: u16| std::net::SocketAddr::new(ip.into(), port);
        write!(f, "{} {} -> {}", self.proto, end(self.src, self.sport), end(self.dst, self.dport))
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low(v: u128) -> u64 {
    v as u64
}

#[inline]
fn high(v: u128) -> u64 {
    (v >> 64) as u64
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let m = u128::from(a) * u128::from(b);
    low(m) ^ high(m)
}

/// What `parse` found and later nodes decided about one packet. Half a cache line: the vector's stay in the first-level cache.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct Meta {
    /// Hash of the flow key ([`FlowKey::hash`]).
    pub hash: u64,
    /// Port the frame came in by.
    pub ingress: PortId,
    /// Port the frame leaves by.
    pub egress: PortId,
    /// Offset of the IP header from the frame's first byte.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Length of the IP packet in bytes (header and payload, without Ethernet padding).
    pub l3_len: u16,
    /// Index of the tunnel the packet came through or leaves by, `NO_INDEX` if none.
    pub tunnel: u16,
    /// Index of the next hop the frame leaves by, `NO_INDEX` if none.
    pub next_hop: u16,
    /// IP protocol after extension headers.
    pub proto: u8,
    /// Bits of [`flags`].
    pub flags: u8,
    /// TCP flags byte, 0 for other protocols.
    pub tcp_flags: u8,
    /// ICMP or ICMPv6 type, 0 for other protocols.
    pub icmp_type: u8,
    /// ICMP or ICMPv6 code, 0 for other protocols.
    pub icmp_code: u8,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// DSCP and ECN byte as received.
    pub tos: u8,
    /// Fragment offset in units of 8 bytes (bits 0-12) and more-fragments (bit 15); 0 when not a fragment.
    pub frag: u16,
}

const _: () = assert!(core::mem::size_of::<Meta>() == 32, "Meta is half a cache line");

/// "No index" in [`Meta::tunnel`] and [`Meta::next_hop`].
pub const NO_INDEX: u16 = u16::MAX;

/// Bits of [`Meta::flags`].
pub mod flags {
    /// IPv6 (IPv4 when clear).
    pub const V6: u8 = 1;
    /// The packet arrived inside a tunnel (set by `decap`).
    pub const DECAPPED: u8 = 1 << 1;
    /// IPv4 don't-fragment.
    pub const DF: u8 = 1 << 2;
    /// ICMP error: the flow key is that of the quoted packet, reversed.
    pub const ICMP_ERROR: u8 = 1 << 3;
    /// Later fragment (offset above zero): no transport header.
    pub const LATER_FRAGMENT: u8 = 1 << 4;
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            hash: 0,
            ingress: PortId::NONE,
            egress: PortId::NONE,
            l3: 0,
            l4: 0,
            l3_len: 0,
            tunnel: NO_INDEX,
            next_hop: NO_INDEX,
            proto: 0,
            flags: 0,
            tcp_flags: 0,
            icmp_type: 0,
            icmp_code: 0,
            ttl: 0,
            tos: 0,
            frag: 0,
        }
    }
}

impl Meta {
    /// Whether all of `bits` (see [`flags`]) are set.
    #[inline]
    #[must_use]
    pub fn has(&self, bits: u8) -> bool {
        self.flags & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_the_key_reaches_the_hash() {
        let (v4, v6) = (Ip::v4([10, 0, 0, 1]), Ip::from_bits(0xfd00 << 112 | 1));
        for (base, bits) in [(v4, 32u32), (v6, 128)] {
            let key = FlowKey { src: base, dst: base, sport: 1, dport: 2, proto: proto::TCP };
            for seed in [0xfdb5_21a1_ffbd_2c93, 0x5bd1_e995_0f0e_1d2c, 0x9216_d5d9_8979_fb1b] {
                let mut seen = std::collections::HashSet::from([key.hash(seed)]);
                let flipped = |bit: u32| Ip::from_bits(base.bits() ^ 1u128 << bit);
                for bit in 0..bits {
                    assert!(seen.insert(FlowKey { src: flipped(bit), ..key }.hash(seed)), "src bit {bit}");
                    assert!(seen.insert(FlowKey { dst: flipped(bit), ..key }.hash(seed)), "dst bit {bit}");
                }
                for bit in 0..16 {
                    assert!(
                        seen.insert(FlowKey { sport: 1u16 ^ 1u16 << bit, ..key }.hash(seed)),
                        "sport bit {bit}"
                    );
                    assert!(
                        seen.insert(FlowKey { dport: 2u16 ^ 1u16 << bit, ..key }.hash(seed)),
                        "dport bit {bit}"
                    );
                }
                for bit in 0..8 {
                    assert!(seen.insert(FlowKey { proto: proto::TCP ^ 1u8 << bit, ..key }.hash(seed)));
                }
                assert!(seen.insert(key.hash(seed ^ 1)));
            }
        }
    }
}
