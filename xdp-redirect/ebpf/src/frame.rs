//! Bounds-checked view of the frame, and the headers as they lie in it.
//!
//! Every header starts at an offset that is 2 modulo 4 behind an Ethernet header of 14 bytes, and every
//! driver places the frame at an even address: so fields of two bytes are read as such, and nothing
//! wider (`u16` words for addresses), which keeps each read aligned.

use core::hint::black_box;
use core::mem::size_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;

/// No header that matters starts further in: extension headers of 8 times 2 kB never get here.
const MAX_OFFSET: usize = 0x3fff;

/// The frame between `data` and `data_end`.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    start: usize,
    end: usize,
    /// The run's context, for functions that the verifier checks by themselves.
    pub(crate) ctx: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end(), ctx: ctx.ctx }
    }

    /// Length in bytes.
    ///
    /// Opaque to the compiler, which would else prove some of the checks in [`Frame::at`] needless and
    /// leave them out; the kernel's verifier wants to see them all.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        black_box(self.end - self.start)
    }

    /// The `T` at `offset`, when all of it lies in the frame.
    #[inline(always)]
    pub(crate) fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        if offset > MAX_OFFSET || self.start + offset + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the check above, which the kernel's verifier repeats on the compiled code, keeps the
        // read inside the frame; `Wire` types have no invalid bit patterns and an alignment of 2.
        Some(unsafe { &*((self.start + offset) as *const T) })
    }
}

/// A header that may be read from any bytes.
///
/// # Safety
/// `repr(C)`, integers only, alignment at most 2.
pub(crate) unsafe trait Wire {}

/// Ethernet II.
#[repr(C)]
pub(crate) struct Ethernet {
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
    pub(crate) ethertype: u16,
}

/// What follows the ethertype of an 802.1Q or 802.1ad tag.
#[repr(C)]
pub(crate) struct Vlan {
    pub(crate) control: u16,
    pub(crate) ethertype: u16,
}

/// IPv4 without options (RFC 791 3.1).
#[repr(C)]
pub(crate) struct Ipv4 {
    pub(crate) version_ihl: u8,
    pub(crate) tos: u8,
    pub(crate) total_length: u16,
    pub(crate) identification: u16,
    pub(crate) flags_fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: u16,
    pub(crate) source: [u16; 2],
    pub(crate) destination: [u16; 2],
}

/// IPv6 (RFC 8200 3).
#[repr(C)]
pub(crate) struct Ipv6 {
    pub(crate) version_class: u8,
    pub(crate) class_label: u8,
    pub(crate) label: u16,
    pub(crate) payload_length: u16,
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) source: [u16; 8],
    pub(crate) destination: [u16; 8],
}

/// The first eight bytes of any IPv6 extension header (RFC 8200 4); `word` is the offset and flags of
/// a fragment header.
#[repr(C)]
pub(crate) struct Extension {
    pub(crate) next_header: u8,
    pub(crate) length: u8,
    pub(crate) word: u16,
    pub(crate) rest: [u16; 2],
}

/// The first eight bytes of TCP, UDP, SCTP (ports first) and of ICMP (identifier at 4).
#[repr(C)]
pub(crate) struct Transport {
    pub(crate) words: [u16; 4],
}

// SAFETY: `repr(C)` structs of `u8` and `u16` only.
unsafe impl Wire for Ethernet {}
// SAFETY: as above.
unsafe impl Wire for Vlan {}
// SAFETY: as above.
unsafe impl Wire for Ipv4 {}
// SAFETY: as above.
unsafe impl Wire for Ipv6 {}
// SAFETY: as above.
unsafe impl Wire for Extension {}
// SAFETY: as above.
unsafe impl Wire for Transport {}
