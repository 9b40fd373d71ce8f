//! Netlink's wire format: messages, attributes, and the constants of the messages we speak.
//!
//! Reading is by offset and lenient: an attribute that a newer kernel added, or one of a length not expected, is
//! skipped, because it must not cost us the link it came with. Layouts: `linux/netlink.h`, `linux/rtnetlink.h`.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use fastpath::packet::Mac;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// `nlmsg_type` below `NLMSG_MIN_TYPE`.
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;

/// `nlmsg_flags`.
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_CAPPED: u16 = 0x100;
pub(super) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// For requests that make something: instead of what is there, or only if nothing is.
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
pub(super) const RTM_GETNEIGH: u16 = 30;
pub(super) const RTM_NEWRULE: u16 = 32;
pub(super) const RTM_DELRULE: u16 = 33;
pub(super) const RTM_GETRULE: u16 = 34;

pub(super) const AF_UNSPEC: u8 = 0;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// The address family number of `ip`.
pub(super) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The bytes of `ip` in network order.
pub(super) fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Reads an integer or byte of host order at `at`.
pub(super) fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(at..)?.first_chunk().copied()?))
}

/// Reads a 32-bit integer of host order at `at`.
pub(super) fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..)?.first_chunk().copied()?))
}

/// Reads a signed 32-bit integer of host order at `at`.
pub(super) fn i32_at(b: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(b.get(at..)?.first_chunk().copied()?))
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

/// The messages of one datagram; ends at the first that does not fit.
pub(super) fn messages(mut buf: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(buf, 0)?).ok()?;
        let payload = buf.get(HEADER..len)?;
        let message =
            Message { kind: u16_at(buf, 4)?, flags: u16_at(buf, 6)?, seq: u32_at(buf, 8)?, payload };
        buf = buf.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// One attribute, its type without the nested and byte-order bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attr<'a> {
    pub(super) kind: u16,
    pub(super) value: &'a [u8],
}

/// The attributes in `buf`; ends at the first that does not fit.
pub(super) fn attrs(mut buf: &[u8]) -> impl Iterator<Item = Attr<'_>> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(buf, 0)?);
        let attr = Attr { kind: u16_at(buf, 2)? & 0x3fff, value: buf.get(4..len)? };
        buf = buf.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attr)
    })
}

/// The attributes after a fixed header of `skip` bytes.
pub(super) fn attrs_after(buf: &[u8], skip: usize) -> impl Iterator<Item = Attr<'_>> {
    attrs(buf.get(skip..).unwrap_or_default())
}

impl<'a> Attr<'a> {
    pub(super) fn u8(self) -> Option<u8> {
        self.value.first().copied()
    }

    pub(super) fn u16(self) -> Option<u16> {
        u16_at(self.value, 0)
    }

    pub(super) fn u32(self) -> Option<u32> {
        u32_at(self.value, 0)
    }

    pub(super) fn i32(self) -> Option<i32> {
        i32_at(self.value, 0)
    }

    /// A zero-terminated string; other than UTF-8 is replaced.
    pub(super) fn string(self) -> String {
        let end = self.value.iter().position(|b| *b == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(self.value.get(..end).unwrap_or_default()).into_owned()
    }

    /// An Ethernet address; `None` for a link layer of other length.
    pub(super) fn mac(self) -> Option<Mac> {
        self.value.try_into().ok().map(Mac)
    }

    /// An address of either family, told by its length.
    pub(super) fn ip(self) -> Option<IpAddr> {
        ip(self.value)
    }

    pub(super) fn nested(self) -> impl Iterator<Item = Attr<'a>> {
        attrs(self.value)
    }
}

/// An address of either family from exactly its bytes.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// A request under construction.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// A request of type `kind` with `flags` (`NLM_F_REQUEST` is implied) and the fixed header `body`.
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut buf = vec![0; HEADER];
        put(&mut buf, 4, &kind.to_ne_bytes());
        put(&mut buf, 6, &(flags | NLM_F_REQUEST).to_ne_bytes());
        buf.extend_from_slice(body);
        Self(buf)
    }

    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start)
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A nested attribute, filled by `fill`.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.open(kind | 0x8000);
        fill(self);
        self.close(start)
    }

    /// Bytes of a fixed header inside a nested attribute; a multiple of four.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A zero-terminated string.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut zero_terminated = value.as_bytes().to_vec();
        zero_terminated.push(0);
        self.attr(kind, &zero_terminated)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) -> &mut Self {
        // Our requests are a few hundred bytes: the length always fits.
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        put(&mut self.0, start, &len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Whether all of `flags` are set.
    pub(super) fn has(&self, flags: u16) -> bool {
        u16_at(&self.0, 6).unwrap_or(0) & flags == flags
    }

    /// The bytes to send, with the sequence number in place.
    pub(super) fn finish(&mut self, seq: u32) -> &[u8] {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        put(&mut self.0, 0, &len.to_ne_bytes());
        put(&mut self.0, 8, &seq.to_ne_bytes());
        &self.0
    }
}

fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = buf.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_reads_back() {
        let mut r = Request::new(RTM_GETLINK, NLM_F_ACK, &[7; 16]);
        r.u32(3, 9).attr(4, b"odd").nest(5, |r| {
            r.u32(1, 2);
        });
        let bytes = r.finish(42).to_vec();
        assert_eq!(bytes.len() % 4, 0);
        let [m] = messages(&bytes).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((m.kind, m.flags, m.seq), (RTM_GETLINK, NLM_F_ACK | NLM_F_REQUEST, 42));
        let a: Vec<_> = attrs_after(m.payload, 16).collect();
        assert_eq!(a.iter().map(|a| a.kind).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(a[0].u32(), Some(9));
        assert_eq!(a[1].value, b"odd");
        assert_eq!(a[2].nested().next().unwrap().u32(), Some(2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for m in messages(&bytes) {
                for a in attrs(m.payload) {
                    let _ = (a.string(), a.mac(), a.ip(), a.u32(), a.nested().count());
                }
            }
            let _ = attrs(&bytes).count();
        }

        /// A length of zero must end the iteration, not stall it.
        #[test]
        fn iteration_ends(bytes in proptest::collection::vec(0u8..6, 0..512)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attrs(&bytes).count() <= bytes.len());
        }
    }
}
