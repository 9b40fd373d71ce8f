//! Fragments of UDP datagrams, cut by hand.

use std::net::IpAddr;
use std::ops::Range;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header};

use super::frame::{self, Addresses};

/// Where the IP header of a frame begins.
const ETHERNET: usize = 14;

/// Pieces of one UDP datagram as frames: each range is of bytes of the datagram with its UDP header, and
/// begins at a multiple of 8. The last byte of the datagram is in the piece that says that no more come.
pub(crate) fn pieces(
    a: Addresses,
    ports: (u16, u16),
    payload: &[u8],
    id: u32,
    ranges: &[Range<usize>],
) -> Vec<Vec<u8>> {
    let whole = frame::udp(a, ports, payload);
    let header = if a.from.is_ipv4() { 20 } else { 40 };
    let datagram = &whole[ETHERNET + header..];
    ranges
        .iter()
        .map(|range| {
            assert_eq!(range.start % 8, 0, "a fragment begins at a multiple of 8");
            let mut out = whole[..ETHERNET].to_vec();
            let units = u16::try_from(range.start / 8).expect("within a datagram");
            let more = range.end < datagram.len();
            let part = &datagram[range.clone()];
            match (a.from, a.to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let length = u16::try_from(part.len()).expect("within a frame");
                    let mut ip = Ipv4Header::new(length, 64, IpNumber::UDP, from.octets(), to.octets())
                        .expect("it fits");
                    ip.identification =
                        id.to_le_bytes()[..2].try_into().map(u16::from_le_bytes).expect("two bytes");
                    ip.dont_fragment = false;
                    ip.more_fragments = more;
                    ip.fragment_offset = IpFragOffset::try_new(units).expect("13 bits");
                    ip.header_checksum = ip.calc_header_checksum();
                    out.extend(ip.to_bytes());
                }
                _ => {
                    // RFC 8200 §4.5.
                    let mut ip = whole[ETHERNET..ETHERNET + header].to_vec();
                    let length = u16::try_from(part.len() + 8).expect("within a frame");
                    ip[4..6].copy_from_slice(&length.to_be_bytes());
                    ip[6] = 44;
                    out.extend(ip);
                    out.extend([17, 0]);
                    out.extend((units << 3 | u16::from(more)).to_be_bytes());
                    out.extend(id.to_be_bytes());
                }
            }
            out.extend(part);
            out
        })
        .collect()
}
