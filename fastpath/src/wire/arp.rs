//! ARP for IPv4 over Ethernet (RFC 826), as the gateway of a pod's view answers it.
#![forbid(unsafe_code)]

use core::fmt;

use super::{Error, eth, get, get8, get16, put};
use crate::packet::{Ip, Mac};

mod field {
    use crate::wire::Field;
    pub(super) const HTYPE: Field = 0..2;
    pub(super) const PTYPE: Field = 2..4;
    pub(super) const HLEN: Field = 4..5;
    pub(super) const PLEN: Field = 5..6;
    pub(super) const OPER: Field = 6..8;
    pub(super) const SHA: Field = 8..14;
    pub(super) const SPA: Field = 14..18;
    pub(super) const THA: Field = 18..24;
    pub(super) const TPA: Field = 24..28;
}

/// Length of the packet in bytes.
pub const PACKET_LEN: usize = 28;
/// Length of an ARP frame in bytes, Ethernet header included, padding not.
pub const FRAME_LEN: usize = eth::HEADER_LEN + PACKET_LEN;

const HTYPE_ETHERNET: u16 = 1;

/// What an ARP packet wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
}

/// A view of an ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> Packet<T> {
    /// A view without any check.
    #[inline]
    pub fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a whole packet.
    ///
    /// # Errors
    /// [`Error::Truncated`] when there are fewer than 28 bytes; [`Error::Value`] when it is not IPv4 over Ethernet.
    pub fn new_checked(bytes: T) -> Result<Self, Error> {
        let b = bytes.as_ref();
        if b.len() < PACKET_LEN {
            return Err(Error::Truncated("ARP"));
        }
        if get16(b, field::HTYPE.start) != HTYPE_ETHERNET || get8(b, field::HLEN.start) != 6 {
            return Err(Error::Value("ARP", "hardware type"));
        }
        if get16(b, field::PTYPE.start) != eth::ethertype::IPV4 || get8(b, field::PLEN.start) != 4 {
            return Err(Error::Value("ARP", "protocol type"));
        }
        Ok(Self(bytes))
    }

    /// Operation: 1 request, 2 reply.
    pub fn oper(&self) -> u16 {
        get16(self.0.as_ref(), field::OPER.start)
    }

    /// Sender's Ethernet address.
    pub fn sender_mac(&self) -> Mac {
        Mac(get(self.0.as_ref(), field::SHA.start))
    }

    /// Sender's IPv4 address.
    pub fn sender_ip(&self) -> Ip {
        Ip::v4(get(self.0.as_ref(), field::SPA.start))
    }

    /// Target's Ethernet address: meaningless in a request.
    pub fn target_mac(&self) -> Mac {
        Mac(get(self.0.as_ref(), field::THA.start))
    }

    /// Target's IPv4 address.
    pub fn target_ip(&self) -> Ip {
        Ip::v4(get(self.0.as_ref(), field::TPA.start))
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ARP oper {} sender {} {} target {} {}",
            self.oper(),
            self.sender_ip(),
            self.sender_mac(),
            self.target_ip(),
            self.target_mac()
        )
    }
}

/// The packet in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Request or reply.
    pub operation: Operation,
    /// Sender's Ethernet address.
    pub sender_mac: Mac,
    /// Sender's IPv4 address.
    pub sender_ip: Ip,
    /// Target's Ethernet address: zero in a request.
    pub target_mac: Mac,
    /// Target's IPv4 address.
    pub target_ip: Ip,
}

impl Repr {
    /// Reads the packet.
    ///
    /// # Errors
    /// [`Error::Value`] for another operation than request and reply, and for a group address as the sender's.
    pub fn parse<T: AsRef<[u8]>>(packet: &Packet<T>) -> Result<Self, Error> {
        let operation = match packet.oper() {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Error::Value("ARP", "operation")),
        };
        if packet.sender_mac().is_multicast() {
            return Err(Error::Value("ARP", "sender hardware address"));
        }
        Ok(Self {
            operation,
            sender_mac: packet.sender_mac(),
            sender_ip: packet.sender_ip(),
            target_mac: packet.target_mac(),
            target_ip: packet.target_ip(),
        })
    }

    /// The reply to a request for an address that is at `mac`.
    ///
    /// `None` for a reply, and for a probe (sender 0.0.0.0, RFC 5227 1.1): who probes is choosing an address for
    /// itself, and an answer would say "taken".
    #[must_use]
    pub fn reply(&self, mac: Mac) -> Option<Self> {
        (self.operation == Operation::Request && self.sender_ip != Ip::v4([0; 4])).then_some(Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        })
    }

    /// Size of the emitted packet in bytes, without Ethernet.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        PACKET_LEN
    }

    /// Writes the packet, without Ethernet.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, field::HTYPE.start, &HTYPE_ETHERNET.to_be_bytes());
        put(out, field::PTYPE.start, &eth::ethertype::IPV4.to_be_bytes());
        put(out, field::HLEN.start, &[6]);
        put(out, field::PLEN.start, &[4]);
        let oper: u16 = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        put(out, field::OPER.start, &oper.to_be_bytes());
        put(out, field::SHA.start, &self.sender_mac.0);
        put(out, field::SPA.start, &self.sender_ip.v4_bytes());
        put(out, field::THA.start, &self.target_mac.0);
        put(out, field::TPA.start, &self.target_ip.v4_bytes());
    }

    /// Writes the whole frame, a request to broadcast and a reply to its target; its length in bytes (42).
    /// `None`, and nothing written, when `out` is shorter.
    #[must_use]
    pub fn emit_frame(&self, out: &mut [u8]) -> Option<usize> {
        let (header, packet) = out.get_mut(..FRAME_LEN)?.split_at_mut(eth::HEADER_LEN);
        let dst = match self.operation {
            Operation::Request => Mac::BROADCAST,
            Operation::Reply => self.target_mac,
        };
        eth::Repr { src: self.sender_mac, dst, ethertype: eth::ethertype::ARP }.emit(header);
        self.emit(packet);
        Some(FRAME_LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `arping 169.254.1.1` from a pod 10.0.0.5.
    const REQUEST: [u8; 28] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 5, 10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 169, 254, 1, 1];

    #[test]
    fn answers_a_request() {
        let request = Repr::parse(&Packet::new_checked(&REQUEST[..]).unwrap()).unwrap();
        assert_eq!(request.operation, Operation::Request);
        assert_eq!(request.target_ip, crate::snapshot::GATEWAY_V4);
        let reply = request.reply(crate::snapshot::GATEWAY_MAC).unwrap();
        let mut out = [0u8; 60];
        assert_eq!(reply.emit_frame(&mut out), Some(42));
        let want: [u8; 42] = [
            2, 0, 0, 0, 0, 5, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 8, 6, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 2, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 169, 254, 1, 1, 2, 0, 0, 0, 0, 5, 10,
            0, 0, 5,
        ];
        assert_eq!(out[..42], want);
        assert_eq!(reply.emit_frame(&mut out[..41]), None);
        assert!(reply.reply(Mac([1; 6])).is_none(), "a reply is not answered");
        assert_eq!(
            Packet::new_unchecked(&REQUEST[..]).to_string(),
            "ARP oper 1 sender 10.0.0.5 02:00:00:00:00:05 target 169.254.1.1 00:00:00:00:00:00"
        );
    }

    #[test]
    fn probe_is_not_answered() {
        let mut probe = REQUEST;
        probe[14..18].fill(0);
        let probe = Repr::parse(&Packet::new_checked(&probe[..]).unwrap()).unwrap();
        assert!(probe.reply(Mac([2; 6])).is_none());
    }

    #[test]
    fn refuses_malformed() {
        assert_eq!(Packet::new_checked(&REQUEST[..27]).unwrap_err(), Error::Truncated("ARP"));
        for (at, value) in [(1, 6), (2, 9), (3, 6), (4, 8), (5, 16)] {
            let mut b = REQUEST;
            b[at] = value;
            assert!(Packet::new_checked(&b[..]).is_err(), "byte {at}");
        }
        for (at, value) in [(7, 0), (7, 3), (6, 1), (8, 0xff)] {
            let mut b = REQUEST;
            b[at] = value;
            assert!(Repr::parse(&Packet::new_checked(&b[..]).unwrap()).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(reply: bool, mac in any::<[u8; 6]>(), spa in any::<[u8; 4]>(), tha in any::<[u8; 6]>(), tpa in any::<[u8; 4]>()) {
            let mut sha = mac;
            sha[0] &= 0xfe;
            let repr = Repr {
                operation: if reply { Operation::Reply } else { Operation::Request },
                sender_mac: Mac(sha), sender_ip: Ip::v4(spa), target_mac: Mac(tha), target_ip: Ip::v4(tpa),
            };
            let mut out = [0u8; 28];
            repr.emit(&mut out[..repr.buffer_len()]);
            prop_assert_eq!(Repr::parse(&Packet::new_checked(&out[..]).unwrap()).unwrap(), repr);
        }
    }
}
