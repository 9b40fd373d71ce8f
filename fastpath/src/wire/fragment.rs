//! What reassembly needs to know of a fragment: its datagram's identification and the part it covers.
#![forbid(unsafe_code)]

use super::{ipv4, ipv6};
use crate::packet::{Meta, flags};

/// A fragment, with places in the part of the datagram that was cut: behind IPv4's header, or behind IPv6's headers up
/// to the fragment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits of IPv4 (RFC 791 3.1), 32 of IPv6 (RFC 8200 4.5).
    pub ident: u32,
    /// Place of its first byte.
    pub start: u16,
    /// Place behind its last byte.
    pub end: u16,
    /// Whether the datagram ends with it.
    pub last: bool,
}

/// Reads a fragment that `parse` accepted; `None` for a packet that is none, and for a fragment without data.
#[must_use]
pub fn read(frame: &[u8], meta: &Meta) -> Option<Fragment> {
    let l3 = usize::from(meta.l3);
    let len = usize::from(meta.l3_len);
    let packet = frame.get(l3..l3 + len)?;
    let (ident, header) = if meta.has(flags::V6) {
        let chain = ipv6::walk(packet).ok()?;
        (chain.ident, chain.fragment_data)
    } else {
        let ip = ipv4::Packet::new_unchecked(packet);
        (u32::from(ip.ident()), ip.header_len())
    };
    let start = (meta.frag & ipv4::OFFSET_MASK) * 8;
    let end = u16::try_from(usize::from(start) + len.checked_sub(header)?).ok()?;
    (meta.frag != 0 && end > start).then_some(Fragment { ident, start, end, last: meta.frag & 0x8000 == 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::FlowKey;
    use crate::wire::testgen::{Spec, packet_spec};
    use crate::wire::{Parsed, parse};

    /// The fragment as etherparse sees it: identification, offset, payload length, more fragments.
    fn oracle(spec: &Spec) -> Option<(u32, u16, usize, bool)> {
        let packet = spec.build_packet();
        if spec.src.is_v4() {
            let (ip, _) = etherparse::Ipv4Header::from_slice(&packet).ok()?;
            let len = usize::from(ip.total_len) - ip.header_len();
            return Some((ip.identification.into(), ip.fragment_offset.value() * 8, len, ip.more_fragments));
        }
        let ip = etherparse::Ipv6Slice::from_slice(&packet).ok()?;
        let mut at = 40;
        for header in ip.extensions().clone() {
            at += match header {
                etherparse::Ipv6ExtensionSlice::Fragment(f) => {
                    let rest = packet.len() - at - 8;
                    return Some((
                        f.identification(),
                        f.fragment_offset().value() * 8,
                        rest,
                        f.more_fragments(),
                    ));
                }
                etherparse::Ipv6ExtensionSlice::HopByHop(h)
                | etherparse::Ipv6ExtensionSlice::Routing(h)
                | etherparse::Ipv6ExtensionSlice::DestinationOptions(h) => h.slice().len(),
                etherparse::Ipv6ExtensionSlice::Authentication(h) => h.slice().len(),
            };
        }
        None
    }

    proptest! {
        #[test]
        fn reads_what_etherparse_reads(spec in prop_oneof![packet_spec(false), packet_spec(true)], place in prop::option::of((0u16..9, any::<bool>()))) {
            let spec = Spec { fragment: spec.fragment.and(place), ..spec };
            let frame = spec.build();
            let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
            if parse(&frame, 0, &mut meta, &mut key) != Parsed::Ip {
                return Ok(());
            }
            let want = oracle(&spec).filter(|(_, start, len, more)| *len > 0 && (*start > 0 || *more));
            let got = read(&frame, &meta);
            prop_assert_eq!(got.map(|f| (f.ident, f.start, usize::from(f.end - f.start), !f.last)), want);
            prop_assert_eq!(got.is_some(), meta.frag != 0 && want.is_some());
        }
    }
}
