//! From the IP header to the ports. Three outcomes: parsed, not ours, malformed.

use core::hint::black_box;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;

use crate::abi::{MAX_EXTENSIONS, Outcome};
use crate::frame::{Extension, Frame, Ipv4, Ipv6, Transport};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// An address of either family in network order, IPv4 mapped, as words.
pub(crate) type Address = [u16; 8];

#[inline(always)]
pub(crate) fn mapped(v4: [u16; 2]) -> Address {
    [0, 0, 0, 0, 0, 0xffff, v4[0], v4[1]]
}

/// Whether an IPv6 header carries an IPv4-mapped address, which has no place on a wire.
#[inline(always)]
fn is_mapped(a: &Address) -> bool {
    (a[0] | a[1] | a[2] | a[3] | a[4]) == 0 && a[5] == 0xffff
}

/// An IP header and where what it carries begins.
pub(crate) struct Ip {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) v4: bool,
    pub(crate) payload: Payload,
    /// Where the packet ends, as its header says (quoted packets: where the frame's packet ends).
    pub(crate) end: usize,
}

/// What the IP header carries. All fields are always set: the verifier refuses to copy a register that
/// the compiler knows will not be looked at.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    pub(crate) seen: Seen,
    /// Protocol of the transport header, when it is seen.
    pub(crate) proto: u8,
    /// Its offset.
    pub(crate) offset: usize,
    /// Identification of a [`Seen::First`] or [`Seen::Later`] fragment, as on the wire.
    pub(crate) id: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Seen {
    /// A transport header.
    Transport = 0,
    /// A transport header, in the first of several fragments.
    First = 1,
    /// A later fragment: no transport header to see.
    Later = 2,
    /// More extension headers than are walked, or a later fragment in a first one: nothing to see.
    Hidden = 3,
    /// An extension header is cut short.
    Cut = 4,
}

impl Payload {
    /// The transport header's protocol and offset.
    #[inline(always)]
    pub(crate) fn transport(&self) -> Result<(u8, usize), Outcome> {
        match self.seen {
            Seen::Transport | Seen::First => Ok((self.proto, self.offset)),
            Seen::Later | Seen::Hidden => Err(Outcome::PassedNotOurs),
            Seen::Cut => Err(Outcome::Malformed),
        }
    }
}

/// The IPv4 packet at `offset`. `quoted` is the end of the error message that quotes it: then its own
/// length does not count, because the quotation is cut (RFC 792, RFC 4443 3.1).
#[inline(always)]
pub(crate) fn ipv4(frame: &Frame, offset: usize, quoted: Option<usize>) -> Result<Ip, Outcome> {
    let header: &Ipv4 = frame.at(offset).ok_or(Outcome::Malformed)?;
    let length = usize::from(header.version_ihl & 0x0f) * 4;
    if header.version_ihl >> 4 != 4 || length < 20 {
        return Err(Outcome::Malformed);
    }
    let end = match quoted {
        Some(end) => end,
        None => {
            let total = usize::from(u16::from_be(header.total_length));
            if total < length || offset + total > frame.len() {
                return Err(Outcome::Malformed);
            }
            offset + total
        }
    };
    if offset + length > end {
        return Err(Outcome::Malformed);
    }
    let seen = match u16::from_be(header.flags_fragment) & 0x3fff {
        0 => Seen::Transport,
        MORE_FRAGMENTS => Seen::First,
        _ => Seen::Later,
    };
    let id = words([header.identification, 0]);
    let payload = Payload { seen, proto: header.protocol, offset: offset + length, id };
    Ok(Ip { source: mapped(header.source), destination: mapped(header.destination), v4: true, payload, end })
}

/// The IPv6 packet at `offset`; `quoted` as in [`ipv4`].
#[inline(always)]
pub(crate) fn ipv6(frame: &Frame, offset: usize, quoted: Option<usize>) -> Result<Ip, Outcome> {
    let header: &Ipv6 = frame.at(offset).ok_or(Outcome::Malformed)?;
    if header.version_class >> 4 != 6 {
        return Err(Outcome::Malformed);
    }
    let end = match quoted {
        Some(end) => end,
        None => {
            let end = offset + 40 + usize::from(u16::from_be(header.payload_length));
            if end > frame.len() {
                return Err(Outcome::Malformed);
            }
            end
        }
    };
    if offset + 40 > end {
        return Err(Outcome::Malformed);
    }
    if is_mapped(&header.source) || is_mapped(&header.destination) {
        return Err(Outcome::PassedNotOurs);
    }
    let payload = extensions(frame, header.next_header, offset + 40, end);
    Ok(Ip { source: header.source, destination: header.destination, v4: false, payload, end })
}

/// The flag of RFC 791 3.1, with an offset of zero.
const MORE_FRAGMENTS: u16 = 0x2000;

#[inline(always)]
fn extensions(frame: &Frame, first: u8, start: usize, end: usize) -> Payload {
    if !is_extension(first) {
        return Payload { seen: Seen::Transport, proto: first, offset: start, id: 0 };
    }
    let walked = walk_extensions(frame.ctx, u32::from(first), start as u32, end as u32);
    let seen = match walked as u32 >> 24 {
        0 => Seen::Transport,
        1 => Seen::First,
        2 => Seen::Later,
        3 => Seen::Hidden,
        _ => Seen::Cut,
    };
    let (proto, offset) = ((walked >> 16) as u8, (walked & 0xffff) as usize);
    Payload { seen, proto, offset, id: (walked >> 32) as u32 }
}

const FIRST: u64 = (Seen::First as u64) << 24;
const LATER: u64 = (Seen::Later as u64) << 24;
const HIDDEN: u64 = (Seen::Hidden as u64) << 24;
const CUT: u64 = (Seen::Cut as u64) << 24;

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// Walks the extension headers (RFC 8200 4; authentication header RFC 4302 2.2) from the one of type
/// `first` at offset `start`. Returns, from the top: the identification of a fragment (32 bits), [`Seen`]
/// (8 bits), the transport header's protocol (8 bits) and its offset (16 bits).
///
/// A fragment in a fragment belongs to the outer one's datagram. A whole packet behind a fragment header
/// (RFC 6946) is no fragment.
///
/// A global function to the verifier: checked once, apart from the programs, because the many ways
/// through the loop would multiply with the many ways through what follows.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn walk_extensions(ctx: *mut xdp_md, first: u32, start: u32, end: u32) -> u64 {
    let frame = Frame::new(&XdpContext::new(ctx));
    let end = end as usize;
    let mut next = first as u8;
    // `FIRST` and the identification, once the first of several fragments is met.
    let mut fragment = 0;
    // Here and below: the compiler must not keep a second copy of the offset, or the verifier would see
    // one checked and the other one used.
    let mut offset = black_box(start as usize & 0x3fff);
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(next) {
            break;
        }
        if offset + 8 > end {
            return CUT;
        }
        let Some(header) = frame.at::<Extension>(offset) else { return CUT };
        let length = match next {
            FRAGMENT => {
                let id = u64::from(words(header.rest)) << 32;
                let word = u16::from_be(header.word);
                if word & 0xfff8 != 0 {
                    return if fragment == 0 { id | LATER } else { HIDDEN };
                }
                if word & 1 != 0 && fragment == 0 {
                    fragment = id | FIRST;
                }
                8
            }
            AUTHENTICATION => (usize::from(header.length) + 2) * 4,
            _ => (usize::from(header.length) + 1) * 8,
        };
        next = header.next_header;
        offset = black_box(offset + length);
        if offset > end {
            return CUT;
        }
    }
    if is_extension(next) {
        return HIDDEN;
    }
    // Without a fragment `Seen::Transport`, which is 0.
    fragment | u64::from(next) << 16 | (offset & 0xffff) as u64
}

/// Two words as the four bytes that they are.
#[inline(always)]
fn words(words: [u16; 2]) -> u32 {
    // SAFETY: same size, and both are plain integers.
    unsafe { core::mem::transmute::<[u16; 2], u32>(words) }
}

/// The first eight bytes of a transport header of at least `need` bytes, all before `end`.
#[inline(always)]
pub(crate) fn transport(frame: &Frame, offset: usize, need: usize, end: usize) -> Option<&Transport> {
    if offset + need > end { None } else { frame.at(offset) }
}
