//! UDP datagrams in Ethernet frames, without a UDP checksum.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::topology::GATEWAY_MAC;

/// A datagram of a pod; its MAC addresses follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Udp {
    /// The pod that sends.
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    /// Source and destination.
    pub(crate) ports: (u16, u16),
    /// Bytes of the frame, from 60 (64 on a wire) to 65,000.
    pub(crate) size: usize,
}

/// The frame.
pub(crate) fn udp(d: &Udp) -> Vec<u8> {
    let word = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    let (total, length) = (word(d.size.max(60) - 14), word(d.size.max(60) - 34));
    let mut ip = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&d.from.octets());
    ip[16..].copy_from_slice(&d.to.octets());
    let sum: u32 = ip.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let [_, carry, high, low] = sum.to_be_bytes();
    let folded = u32::from(u16::from_be_bytes([high, low])) + u32::from(carry);
    let [.., high, low] = (folded % 0xffff).to_be_bytes();
    ip[10..12].copy_from_slice(&[!high, !low]);
    let [.., c, e] = d.from.octets();
    let mut frame = Vec::with_capacity(d.size);
    frame.extend_from_slice(&GATEWAY_MAC);
    frame.extend_from_slice(&[2, 0, 0, 0, c, e, 0x08, 0x00]);
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&d.ports.0.to_be_bytes());
    frame.extend_from_slice(&d.ports.1.to_be_bytes());
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&[0, 0]);
    frame.resize(d.size.max(60), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_sums_to_zero() {
        for to in [[10, 77, 1, 12], [255, 255, 255, 255], [0, 0, 0, 0]] {
            for size in [60, 590, 1464] {
                let from = Ipv4Addr::new(10, 77, 0, 10);
                let frame = udp(&Udp { from, to: to.into(), ports: (1024, 9000), size });
                let words = frame[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
                let sum: u32 = words.sum();
                assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{to:?}");
                assert_eq!(frame.len(), size);
                assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), size - 14);
                assert_eq!(usize::from(u16::from_be_bytes([frame[38], frame[39]])), size - 34);
            }
        }
    }
}
