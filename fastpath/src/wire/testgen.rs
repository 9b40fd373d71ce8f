//! Frames for tests and benches: one by one from a [`Spec`], or by the thousand from a proptest strategy.
//!
//! Compiled for this crate's tests, and for others with the feature `testgen`.
#![forbid(unsafe_code)]

use proptest::prelude::*;
use proptest::sample::Index;

use super::{eth, icmp, ipv4, ipv6, len16, sctp, tcp, udp};
use crate::packet::{FlowKey, Ip, Mac, proto};

/// What is behind the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Sequence and acknowledgment number.
        numbers: (u32, u32),
        /// Bits of [`tcp::control`].
        flags: u8,
        /// Options in words of 4 bytes, at most 10.
        options: u8,
    },
    /// A UDP datagram.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Leave the checksum zero.
        no_checksum: bool,
    },
    /// An SCTP packet.
    Sctp {
        /// Source and destination port.
        ports: (u16, u16),
        /// Verification tag.
        tag: u32,
    },
    /// An ICMP or ICMPv6 message, by the family of the addresses; the payload follows its 8 bytes.
    Icmp(icmp::Repr),
    /// Another protocol, nothing but payload.
    Other(u8),
}

/// A frame to build: Ethernet, IP, transport, payload, padding, with right lengths and checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Source MAC address.
    pub src_mac: Mac,
    /// Destination MAC address.
    pub dst_mac: Mac,
    /// Source address; its family is the packet's.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// IPv4 don't-fragment.
    pub df: bool,
    /// IPv4 options in words of 4 bytes, at most 10.
    pub ip_options: u8,
    /// IPv6 extension headers, of 8 bytes each but AH's 16: next-header values of [`ipv6::ext`] without the fragment's.
    pub extensions: Vec<u8>,
    /// Offset in units of 8 bytes and more-fragments: the transport header is only there when the offset is 0.
    pub fragment: Option<(u16, bool)>,
    /// Transport header.
    pub upper: Upper,
    /// Payload.
    pub payload: Vec<u8>,
    /// Bytes of Ethernet padding.
    pub padding: usize,
}

impl Spec {
    /// A packet with 64 hops and no payload between fixed MAC addresses.
    #[must_use]
    pub fn new(src: Ip, dst: Ip, upper: Upper) -> Self {
        Self {
            src_mac: Mac([2, 0, 0, 0, 0, 1]),
            dst_mac: Mac([0xee; 6]),
            src,
            dst,
            ttl: 64,
            tos: 0,
            df: true,
            ip_options: 0,
            extensions: Vec::new(),
            fragment: None,
            upper,
            payload: Vec::new(),
            padding: 0,
        }
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(src: Ip, dst: Ip, sport: u16, dport: u16) -> Self {
        Self::new(src, dst, Upper::Udp { ports: (sport, dport), no_checksum: false })
    }

    /// A TCP segment with `flags` of [`tcp::control`].
    #[must_use]
    pub fn tcp(src: Ip, dst: Ip, sport: u16, dport: u16, flags: u8) -> Self {
        Self::new(src, dst, Upper::Tcp { ports: (sport, dport), numbers: (1000, 2000), flags, options: 0 })
    }

    /// An SCTP packet.
    #[must_use]
    pub fn sctp(src: Ip, dst: Ip, sport: u16, dport: u16) -> Self {
        Self::new(src, dst, Upper::Sctp { ports: (sport, dport), tag: 1 })
    }

    /// An echo request of either family.
    #[must_use]
    pub fn echo(src: Ip, dst: Ip, ident: u16, seq: u16) -> Self {
        let kind = if src.is_v4() { icmp::v4::ECHO_REQUEST } else { icmp::v6::ECHO_REQUEST };
        let rest = u32::from(ident) << 16 | u32::from(seq);
        Self::new(src, dst, Upper::Icmp(icmp::Repr { kind, code: 0, rest }))
    }

    /// The same with `payload`.
    #[must_use]
    pub fn with_payload(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// The IP protocol number.
    #[must_use]
    pub fn proto(&self) -> u8 {
        match self.upper {
            Upper::Tcp { .. } => proto::TCP,
            Upper::Udp { .. } => proto::UDP,
            Upper::Sctp { .. } => proto::SCTP,
            Upper::Icmp(_) if self.src.is_v4() => proto::ICMP,
            Upper::Icmp(_) => proto::ICMPV6,
            Upper::Other(p) => p,
        }
    }

    /// Whether it is a fragment without transport header.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|(offset, _)| offset != 0)
    }

    /// The flow key `parse` should find, but for an ICMP error, whose key its payload tells.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        let (sport, dport) = match self.upper {
            _ if self.is_later_fragment() => (0, 0),
            Upper::Tcp { ports, .. } | Upper::Udp { ports, .. } | Upper::Sctp { ports, .. } => ports,
            Upper::Icmp(icmp::Repr { kind, rest, .. }) if icmp::has_ident(!self.src.is_v4(), kind) => {
                (len16((rest >> 16) as usize), len16((rest >> 16) as usize))
            }
            Upper::Icmp(_) | Upper::Other(_) => (0, 0),
        };
        FlowKey { src: self.src, dst: self.dst, sport, dport, proto: self.proto() }
    }

    /// The frame's bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let upper = self.build_upper();
        let ethertype = if self.src.is_v4() { eth::ethertype::IPV4 } else { eth::ethertype::IPV6 };
        let mut frame = vec![0; eth::HEADER_LEN];
        eth::Repr { src: self.src_mac, dst: self.dst_mac, ethertype }.emit(&mut frame);
        if self.src.is_v4() {
            self.build_v4(&mut frame, &upper)
        } else {
            self.build_v6(&mut frame, &upper)
        }
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    /// The IP packet's bytes, without Ethernet and padding.
    #[must_use]
    pub fn build_packet(&self) -> Vec<u8> {
        let mut frame = Self { padding: 0, ..self.clone() }.build();
        frame.split_off(eth::HEADER_LEN)
    }

    fn build_v4(&self, frame: &mut Vec<u8>, upper: &[u8]) {
        let options = 4 * usize::from(self.ip_options.min(10));
        let mut header = vec![1u8; ipv4::HEADER_LEN + options];
        ipv4::Repr {
            src: self.src,
            dst: self.dst,
            proto: self.proto(),
            tos: self.tos,
            ttl: self.ttl,
            df: self.df,
            ident: 0x4242,
            payload_len: len16(upper.len() + options),
        }
        .emit(&mut header);
        if let Some(first) = header.first_mut() {
            *first += self.ip_options.min(10);
        }
        let mut p = ipv4::Packet::new_unchecked(&mut header[..]);
        if let Some((offset, more)) = self.fragment {
            let word = p.flags_offset() | offset & ipv4::OFFSET_MASK | if more { ipv4::MF } else { 0 };
            p.set_flags_offset(word);
        }
        p.fill_checksum();
        frame.extend_from_slice(&header);
        frame.extend_from_slice(upper);
    }

    fn build_v6(&self, frame: &mut Vec<u8>, upper: &[u8]) {
        let mut chain = self.extensions.clone();
        if self.fragment.is_some() {
            chain.push(ipv6::ext::FRAGMENT);
        }
        let mut headers = Vec::new();
        for (i, kind) in chain.iter().enumerate() {
            let next = chain.get(i + 1).copied().unwrap_or(self.proto());
            match *kind {
                ipv6::ext::AUTH => {
                    headers.extend_from_slice(&[next, 2, 0, 0, 1, 2, 3, 4, 0, 0, 0, 1, 9, 9, 9, 9])
                }
                ipv6::ext::FRAGMENT => {
                    let (offset, more) = self.fragment.unwrap_or_default();
                    let [a, b] = ((offset & ipv4::OFFSET_MASK) << 3 | u16::from(more)).to_be_bytes();
                    headers.extend_from_slice(&[next, 0, a, b, 1, 2, 3, 4]);
                }
                _ => headers.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        let mut header = [0; ipv6::HEADER_LEN];
        ipv6::Repr {
            src: self.src,
            dst: self.dst,
            proto: chain.first().copied().unwrap_or(self.proto()),
            traffic_class: self.tos,
            flow_label: 0x12345,
            hop_limit: self.ttl,
            payload_len: len16(headers.len() + upper.len()),
        }
        .emit(&mut header);
        frame.extend_from_slice(&header);
        frame.extend_from_slice(&headers);
        frame.extend_from_slice(upper);
    }

    fn build_upper(&self) -> Vec<u8> {
        if self.is_later_fragment() {
            return self.payload.clone();
        }
        let mut out = Vec::new();
        match self.upper {
            Upper::Tcp { ports: (src_port, dst_port), numbers: (seq, ack), flags, options } => {
                let options = options.min(10);
                out.resize(tcp::HEADER_LEN + 4 * usize::from(options), 1);
                tcp::Repr { src_port, dst_port, seq, ack, flags, window: 0xffff }.emit(&mut out);
                if let Some(byte) = out.get_mut(12) {
                    *byte += options << 4;
                }
                out.extend_from_slice(&self.payload);
                tcp::Packet::new_unchecked(&mut out[..]).fill_checksum(self.src, self.dst);
            }
            Upper::Udp { ports: (src_port, dst_port), no_checksum } => {
                out.resize(udp::HEADER_LEN, 0);
                udp::Repr { src_port, dst_port, payload_len: len16(self.payload.len()) }.emit(&mut out);
                out.extend_from_slice(&self.payload);
                if !no_checksum {
                    udp::Packet::new_unchecked(&mut out[..]).fill_checksum(self.src, self.dst);
                }
            }
            Upper::Sctp { ports: (src_port, dst_port), tag } => {
                out.extend_from_slice(&src_port.to_be_bytes());
                out.extend_from_slice(&dst_port.to_be_bytes());
                out.extend_from_slice(&tag.to_be_bytes());
                out.resize(sctp::HEADER_LEN, 0);
                out.extend_from_slice(&self.payload);
                sctp::Packet::new_unchecked(&mut out[..]).fill_checksum();
            }
            Upper::Icmp(repr) => {
                out.resize(icmp::HEADER_LEN, 0);
                repr.emit(&mut out);
                out.extend_from_slice(&self.payload);
                icmp::Packet::new_unchecked(&mut out[..]).fill_checksum(self.src, self.dst);
            }
            Upper::Other(_) => out.extend_from_slice(&self.payload),
        }
        out
    }
}

/// Addresses: mostly of pods and nodes, now and then one of the special ranges.
pub fn address(v6: bool) -> BoxedStrategy<Ip> {
    let special = |texts: &'static [&'static str]| {
        prop::sample::select(texts)
            .prop_map(|t| t.parse().map_or(Ip::v4([0; 4]), |a: std::net::IpAddr| a.into()))
    };
    if v6 {
        prop_oneof![
            8 => any::<[u8; 4]>().prop_map(|[a, b, c, d]| {
                Ip::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d])
            }),
            2 => any::<[u8; 16]>().prop_map(Ip::v6),
            // A mapped address cannot be said here: mutation makes some.
            1 => special(&["::", "::1", "::2", "fe80::1", "febf::1", "fec0::1", "ff02::1", "2001:db8::7", "64:ff9b::1"]),
        ]
        .prop_filter("an IPv6 address", |ip| !ip.is_v4())
        .boxed()
    } else {
        prop_oneof![
            8 => any::<[u8; 3]>().prop_map(|[a, b, c]| Ip::v4([10, a, b, c])),
            2 => any::<[u8; 4]>().prop_map(Ip::v4),
            1 => special(&["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.169.254", "240.0.0.1"]),
        ]
        .boxed()
    }
}

/// Unicast addresses of one family that may be forwarded.
pub fn unicast(v6: bool) -> BoxedStrategy<Ip> {
    use super::address::{Scope, scope};
    address(v6)
        .prop_map(move |ip| match (scope(ip), v6) {
            (Scope::Unicast, _) => ip,
            (_, true) => Ip::v6([0xfd; 16]),
            (_, false) => Ip::v4([10; 4]),
        })
        .boxed()
}

fn ports() -> impl Strategy<Value = (u16, u16)> {
    (any::<u16>(), any::<u16>())
}

/// Transport headers of all kinds, ICMP errors apart.
pub fn upper() -> impl Strategy<Value = Upper> {
    let icmp_kind =
        prop_oneof![prop::sample::select(&[0u8, 8, 128, 129, 133, 135, 136, 143, 5, 13][..]), any::<u8>()];
    prop_oneof![
        4 => (ports(), any::<(u32, u32)>(), any::<u8>(), 0u8..=10).prop_map(|(ports, numbers, flags, options)| {
            Upper::Tcp { ports, numbers, flags, options }
        }),
        4 => (ports(), any::<bool>()).prop_map(|(ports, no_checksum)| Upper::Udp { ports, no_checksum }),
        1 => (ports(), any::<u32>()).prop_map(|(ports, tag)| Upper::Sctp { ports, tag }),
        2 => (icmp_kind, any::<u8>(), any::<u32>()).prop_map(|(kind, code, rest)| {
            Upper::Icmp(icmp::Repr { kind, code, rest })
        }),
        1 => prop_oneof![Just(2u8), Just(47), Just(50), Just(59), any::<u8>()].prop_map(Upper::Other),
    ]
}

/// Packets of one family between `address`es, no ICMP errors: whole ones and fragments.
pub fn packet_spec(v6: bool) -> impl Strategy<Value = Spec> {
    let ends = prop_oneof![4 => (unicast(v6), unicast(v6)), 1 => (address(v6), address(v6))];
    let ext = prop::sample::select(&[ipv6::ext::DEST_OPTIONS, ipv6::ext::ROUTING, ipv6::ext::AUTH][..]);
    let extensions = prop_oneof![
        3 => Just(Vec::new()),
        1 => (any::<bool>(), prop::collection::vec(ext, 0..5)).prop_map(|(hop, mut chain)| {
            if hop {
                chain.insert(0, ipv6::ext::HOP_BY_HOP);
            }
            chain
        }),
    ];
    let fragment = prop_oneof![
        6 => Just(None),
        1 => (0u16..8, any::<bool>()).prop_map(Some),
        1 => (any::<u16>(), any::<bool>()).prop_map(|(o, more)| Some((o & ipv4::OFFSET_MASK, more))),
    ];
    let shape = (any::<[u8; 3]>(), extensions, fragment, prop_oneof![3 => Just(0usize), 1 => 0usize..20]);
    let options = prop_oneof![3 => Just(0u8), 1 => 0u8..=10];
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    (ends, upper(), shape, options, payload).prop_map(
        move |(
            (src, dst),
            upper,
            ([ttl, tos, bits], extensions, fragment, padding),
            ip_options,
            mut payload,
        )| {
            if fragment.is_some_and(|(_, more)| more) {
                // Usually right: a middle fragment is a multiple of 8 bytes when the transport header is.
                payload.truncate(payload.len() & !7);
            }
            Spec {
                ttl,
                tos,
                df: bits & 1 != 0,
                ip_options,
                extensions,
                fragment,
                payload,
                padding,
                ..Spec::new(src, dst, upper)
            }
        },
    )
}

/// An ICMP error that quotes a packet of [`packet_spec`], cut somewhere, and the packet.
///
/// Usually it goes to the quoted packet's source.
pub fn error_spec(v6: bool) -> impl Strategy<Value = (Spec, Spec)> {
    let kind = if v6 {
        prop::sample::select(&[1u8, 2, 3, 4][..])
    } else {
        prop::sample::select(&[3u8, 4, 11, 12][..])
    };
    let cut = prop_oneof![3 => Just(usize::MAX), 1 => 0usize..120];
    (packet_spec(v6), unicast(v6), kind, any::<(u8, u32)>(), cut, 0u8..8, unicast(v6)).prop_map(
        move |(about, src, kind, (code, rest), cut, misdirect, other)| {
            let mut quote = about.build_packet();
            quote.truncate(cut);
            let dst = if misdirect == 0 { other } else { about.src };
            let upper = Upper::Icmp(icmp::Repr { kind, code, rest });
            (Spec::new(src, dst, upper).with_payload(quote), about)
        },
    )
}

/// Well-formed frames of both families and all protocols, ICMP errors too.
pub fn spec() -> impl Strategy<Value = Spec> {
    prop_oneof![
        4 => packet_spec(false),
        4 => packet_spec(true),
        1 => error_spec(false).prop_map(|(e, _)| e),
        1 => error_spec(true).prop_map(|(e, _)| e),
    ]
}

/// Frames that are nearly well-formed: bytes changed, cut short or grown, mostly with the IPv4 header checksum of the
/// changed header, so that the checks behind it are reached.
pub fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<Index>(), any::<u8>(), 0u8..3);
    let resize = prop_oneof![4 => Just(None), 1 => any::<Index>().prop_map(Some)];
    (spec(), prop::collection::vec(change, 0..4), resize, 0u8..8).prop_map(|(spec, changes, resize, keep)| {
        let mut frame = spec.build();
        for (at, value, how) in changes {
            // Mostly within the headers.
            let bound = if how == 0 { frame.len() } else { frame.len().min(64) };
            if let Some(byte) = frame.get_mut(at.index(bound)) {
                *byte = if how == 2 { *byte ^ 1 << (value & 7) } else { value };
            }
        }
        if let Some(at) = resize {
            let len = at.index(frame.len() + 8);
            frame.resize(len, 0x5a);
        }
        if keep != 0 && spec.src.is_v4() {
            refresh_ipv4_checksum(&mut frame);
        }
        frame
    })
}

/// Gives the frame's IPv4 header the checksum it should have, whatever else is wrong with it.
pub fn refresh_ipv4_checksum(frame: &mut [u8]) {
    if let Some(bytes) = frame.get_mut(eth::HEADER_LEN..).filter(|b| b.len() >= ipv4::HEADER_LEN) {
        ipv4::Packet::new_unchecked(bytes).fill_checksum();
    }
}
