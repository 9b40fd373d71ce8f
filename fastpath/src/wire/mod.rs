//! Packet formats: one file per protocol, all of one shape.
//!
//! | Module | Format |
//! |---|---|
//! | [`parse`](mod@parse) | a whole frame into metadata and flow key, in one pass |
//! | [`address`] | addresses that may not be on the wire |
//! | [`eth`], [`arp`] | Ethernet II, ARP (RFC 826) |
//! | [`ipv4`], [`ipv6`] | RFC 791, RFC 8200 with its extension headers |
//! | [`fragment`] | what reassembly needs to know of a fragment of either family |
//! | [`tcp`], [`udp`], [`sctp`] | RFC 9293, RFC 768, RFC 9260 |
//! | [`icmp`], [`ndp`] | RFC 792 and RFC 4443, RFC 4861 |
//! | [`vxlan`], [`ecn`] | RFC 7348 with the outer headers, RFC 6040 |
//! | [`translate`] | a flow's transform applied to a packet in place |
//! | [`checksum`], [`partial`] | RFC 1071 and RFC 1624, checksums a kernel left unfinished |
//!
//! # The contract
//!
//! - `Packet<T>` is a view of bytes that start with the protocol's header. `new_checked` makes one only when the
//!   header is whole and its length fields stay inside the bytes; it checks nothing else unless it says so.
//! - Getters and setters never panic. What a view made by `new_checked` reads is always there; on a view made by
//!   `new_unchecked` over too few bytes a getter gives zeros and a setter does nothing.
//! - Setters change their field only: checksums are the caller's, unless the name says so (`fill_checksum`,
//!   `rewrite_tos`, ...).
//! - `Repr` is the header in host order, for headers the dataplane builds itself: `parse` reads it off a view,
//!   `buffer_len` is its size in bytes, `emit` writes every byte of it, checksums included.
//! - Ports, lengths and identifiers are in host order outside the buffer; addresses are [`Ip`](crate::packet::Ip).
//! - Nothing allocates.
#![forbid(unsafe_code)]

use core::ops::Range;

pub mod address;
pub mod arp;
pub mod checksum;
pub mod ecn;
pub mod eth;
pub mod fragment;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod parse;
pub mod partial;
pub mod sctp;
pub mod tcp;
#[cfg(any(test, feature = "testgen"))]
pub mod testgen;
pub mod translate;
pub mod udp;
pub mod vxlan;

pub use parse::{Parsed, Punt, parse};

/// A field's place in its header, in bytes.
pub(crate) type Field = Range<usize>;

/// Why bytes are not what their header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than the fixed header.
    #[error("{0}: fewer bytes than its header")]
    Truncated(&'static str),
    /// A length field is below its minimum or points behind the end.
    #[error("{0}: length field out of bounds")]
    Length(&'static str),
    /// A field has a value its RFC does not allow.
    #[error("{0}: {1} has a value that is not allowed")]
    Value(&'static str, &'static str),
    /// The checksum does not match.
    #[error("{0}: wrong checksum")]
    Checksum(&'static str),
}

/// The `N` bytes at `at`; zeros when they are not there (see the contract).
#[inline(always)]
pub(crate) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|b| b.first_chunk::<N>()).copied().unwrap_or([0; N])
}

/// The byte at `at`.
#[inline(always)]
pub(crate) fn get8(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// The big-endian 16 bits at `at`.
#[inline(always)]
pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(get(bytes, at))
}

/// The big-endian 32 bits at `at`.
#[inline(always)]
pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(get(bytes, at))
}

/// Writes `value` at `at`; does nothing when it does not fit (see the contract).
#[inline(always)]
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = at.checked_add(value.len()).and_then(|end| bytes.get_mut(at..end)) {
        to.copy_from_slice(value);
    }
}

/// `usize` to the 16 bits of a length field, saturating: no packet is longer.
#[inline(always)]
pub(crate) fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
