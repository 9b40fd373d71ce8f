//! Checksums a kernel left for hardware to finish (`CHECKSUM_PARTIAL`), which AF_XDP hands over as they are.
//!
//! Linux leaves in the checksum field of TCP and UDP the folded sum of the pseudo-header, not complemented; in that
//! of SCTP zero. The state itself (`skb->ip_summed`) is lost on the way to the socket, so it is read off the field.
#![forbid(unsafe_code)]

use super::checksum::{self, pseudo_header};
use super::{get16, get32, put, sctp, tcp, udp};
use crate::packet::{FlowKey, Meta, proto};

/// Fills in the transport checksum when the field says that the kernel left it; whether it did.
///
/// `meta` and `key` are what `parse` made of the frame: of an encapsulated frame call it for the inner packet, whose
/// sum a kernel VTEP leaves too. Fragments are never left unfinished (Linux finishes them before it cuts). Costs one
/// pseudo-header's sum when there is nothing to do, one pass over the payload when there is.
#[inline]
pub fn finish(frame: &mut [u8], meta: &Meta, key: &FlowKey) -> bool {
    if meta.frag != 0 {
        return false;
    }
    let (l4, end) = (usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.l3_len));
    let Some(upper) = frame.get_mut(l4..end) else {
        return false;
    };
    match meta.proto {
        proto::TCP => finish_internet(upper, tcp::CHECKSUM_AT, key),
        proto::UDP => {
            // The datagram may be shorter than the packet.
            let len = usize::from(get16(upper, 4));
            upper.get_mut(..len).is_some_and(|datagram| finish_internet(datagram, udp::CHECKSUM_AT, key))
        }
        proto::SCTP => finish_sctp(upper),
        _ => false,
    }
}

#[inline]
fn finish_internet(upper: &mut [u8], at: usize, key: &FlowKey) -> bool {
    let Ok(len) = u32::try_from(upper.len()) else {
        return false;
    };
    let pseudo = pseudo_header(key.src, key.dst, key.proto, len);
    let found = get16(upper, at);
    if upper.len() < at + 2 || found != pseudo.fold() {
        return false;
    }
    fill(upper, at, pseudo, found, key.proto)
}

/// The rare arm, out of the way of packets that are complete.
#[cold]
fn fill(upper: &mut [u8], at: usize, pseudo: checksum::Sum, found: u16, protocol: u8) -> bool {
    let all = pseudo.bytes(upper);
    if all.verifies() {
        // The right checksum happens to be that value.
        return false;
    }
    let check = all.word(!found).finish();
    let check = if protocol == proto::UDP { checksum::udp(check) } else { check };
    put(upper, at, &check.to_be_bytes());
    true
}

/// RFC 9260 allows zero as a CRC's value, and then filling it in changes nothing.
fn finish_sctp(packet: &mut [u8]) -> bool {
    if packet.len() < sctp::HEADER_LEN || get32(packet, 8) != 0 {
        return false;
    }
    sctp::Packet::new_unchecked(packet).fill_checksum();
    true
}

#[cfg(test)]
mod tests;
