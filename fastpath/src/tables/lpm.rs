//! Longest-prefix match over both families: one hash table per prefix length in use.
//!
//! Cost is one probe per distinct length present (at most 33 + 129), whatever the number of prefixes;
//! only the first packet of a flow pays it.
#![forbid(unsafe_code)]

use core::fmt;
use core::net::IpAddr;

use hashbrown::HashMap;

use crate::packet::Ip;

/// An address prefix; the length counts the bits of the mapped form, so IPv4 prefixes are 96 to 128 bits long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    /// `addr/len` with the length as usually written (0-32 for IPv4, 0-128 for IPv6); host bits are cleared.
    /// `None` when the length is too large for the family, and for a prefix of IPv4-mapped IPv6 addresses
    /// (`::ffff:0:0/96` and longer), which never are on the wire: it would be the IPv4 prefix here.
    #[must_use]
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let (max, extra) = if addr.is_ipv4() { (32, 96) } else { (128, 0) };
        if len > max {
            return None;
        }
        let len = len + extra;
        let prefix = Self { bits: Ip::from(addr).bits() & mask(len), len };
        (prefix.is_v4() == addr.is_ipv4()).then_some(prefix)
    }

    /// The prefix that holds only `ip`.
    #[must_use]
    pub fn host(ip: Ip) -> Self {
        Self { bits: ip.bits(), len: 128 }
    }

    /// The first address.
    #[must_use]
    pub fn addr(&self) -> Ip {
        Ip::from_bits(self.bits)
    }

    /// The last address.
    #[must_use]
    pub fn last(&self) -> Ip {
        Ip::from_bits(self.bits | !mask(self.len))
    }

    /// The length as usually written for the family.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a prefix always holds addresses")]
    pub fn len(&self) -> u8 {
        if self.is_v4() { self.len - 96 } else { self.len }
    }

    /// Whether this is the family's default route.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.len() == 0
    }

    /// Whether the prefix holds IPv4 addresses.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.len >= 96 && self.addr().is_v4()
    }

    /// Whether `ip` is inside. The IPv6 default route does not hold IPv4 addresses.
    #[must_use]
    pub fn contains(&self, ip: Ip) -> bool {
        self.is_v4() == ip.is_v4() && ip.bits() & mask(self.len) == self.bits
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// A longest-prefix-match table from [`Prefix`] to `V`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lpm<V> {
    v4: Vec<Level<V>>,
    v6: Vec<Level<V>>,
}

/// All prefixes of one length; levels are kept longest first.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level<V> {
    len: u8,
    prefixes: HashMap<u128, V>,
}

impl<V> Default for Lpm<V> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<V> Lpm<V> {
    /// Adds or replaces a prefix; returns the value it had.
    pub fn insert(&mut self, prefix: Prefix, value: V) -> Option<V> {
        let levels = if prefix.is_v4() { &mut self.v4 } else { &mut self.v6 };
        let at = levels.partition_point(|l| l.len > prefix.len);
        if levels.get(at).is_none_or(|l| l.len != prefix.len) {
            levels.insert(at, Level { len: prefix.len, prefixes: HashMap::new() });
        }
        levels.get_mut(at)?.prefixes.insert(prefix.bits, value)
    }

    /// The value of the longest prefix that holds `ip`.
    #[must_use]
    pub fn lookup(&self, ip: Ip) -> Option<&V> {
        let levels = if ip.is_v4() { &self.v4 } else { &self.v6 };
        levels.iter().find_map(|l| l.prefixes.get(&(ip.bits() & mask(l.len))))
    }

    /// All prefixes, longest first within a family.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &V)> {
        let levels = self.v4.iter().chain(&self.v6);
        levels.flat_map(|l| l.prefixes.iter().map(|(bits, v)| (Prefix { bits: *bits, len: l.len }, v)))
    }

    /// Number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.iter().chain(&self.v6).map(|l| l.prefixes.len()).sum()
    }

    /// Whether there is no prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V> Extend<(Prefix, V)> for Lpm<V> {
    fn extend<I: IntoIterator<Item = (Prefix, V)>>(&mut self, iter: I) {
        for (p, v) in iter {
            self.insert(p, v);
        }
    }
}

impl<V> FromIterator<(Prefix, V)> for Lpm<V> {
    fn from_iter<I: IntoIterator<Item = (Prefix, V)>>(iter: I) -> Self {
        let mut lpm = Self::default();
        lpm.extend(iter);
        lpm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arb_ip() -> impl Strategy<Value = IpAddr> {
        // Few distinct high bits, so that prefixes nest and lookups hit.
        prop_oneof![
            (0u8..3, 0u8..3, any::<u8>()).prop_map(|(a, b, c)| IpAddr::from([10 + a, b, c, a])),
            (0u16..3, any::<u16>()).prop_map(|(a, b)| IpAddr::from([0xfd00, a, 0, 0, b, 0, 0, a])),
            (0u16..3).prop_map(|a| IpAddr::from([0, 0, 0, 0, 0, 0, a, a])),
        ]
    }

    proptest! {
        #[test]
        fn is_a_linear_scan(prefixes in prop::collection::vec((arb_ip(), 0u8..=128), 0..60), ips in prop::collection::vec(arb_ip(), 1..40)) {
            let mut naive: Vec<(Prefix, usize)> = Vec::new();
            let mut lpm = Lpm::default();
            for (i, (addr, len)) in prefixes.iter().enumerate() {
                let len = if addr.is_ipv4() { len % 33 } else { *len };
                let p = Prefix::new(*addr, len).unwrap();
                prop_assert!(p.contains(Ip::from(*addr)));
                naive.retain(|(q, _)| *q != p);
                naive.push((p, i));
                lpm.insert(p, i);
            }
            prop_assert_eq!(lpm.len(), naive.len());
            for ip in ips {
                let ip = Ip::from(ip);
                let want = naive.iter().filter(|(p, _)| p.contains(ip)).max_by_key(|(p, _)| p.len()).map(|(_, v)| v);
                prop_assert_eq!(lpm.lookup(ip), want);
            }
        }
    }

    #[test]
    fn families_do_not_mix() {
        let p = |s: &str, l| Prefix::new(s.parse().unwrap(), l).unwrap();
        let lpm: Lpm<u8> = [(p("::", 0), 6), (p("0.0.0.0", 0), 4)].into_iter().collect();
        assert_eq!(lpm.lookup(Ip::v4([1, 2, 3, 4])), Some(&4));
        assert_eq!(lpm.lookup("2001:db8::1".parse::<IpAddr>().unwrap().into()), Some(&6));
        assert_eq!(p("10.1.2.3", 8).to_string(), "10.0.0.0/8");
        assert_eq!(p("::", 0).to_string(), "::/0");
        assert!(p("::", 0).is_default() && p("0.0.0.0", 0).is_default() && !p("::", 96).is_default());
        let none = |s: &str, l| assert_eq!(Prefix::new(s.parse().unwrap(), l), None, "{s}/{l}");
        none("10.0.0.0", 33);
        none("fd00::", 129);
        none("::", 255);
        none("::ffff:0:0", 96);
        none("::ffff:10.0.0.0", 104);
        none("::ffff:10.0.0.1", 128);
        // That holds them, as others, and is one of IPv6.
        assert!(!p("::ffff:10.0.0.1", 95).is_v4());
    }
}
