//! The state of a flow: how packets move it, how long it lasts, how it ranks when room is needed.
//!
//! TCP is followed by flags alone (no windows), as RFC 9293 3.3.2 names the states:
//!
//! ```text
//!            other direction         ACK without SYN,
//!            seen                    both directions seen
//!   Opening ─────────► OpeningBoth ─────────► Established ─FIN─► FinOriginal/FinReply ─FIN back─► Closed
//!      ▲  └──────── ACK from the other direction ──▲
//!      └── SYN: the ports are used again ── Closed, Reset ◄── RST in any state
//! ```
//!
//! A connection picked up in the middle is `Opening` until the other direction acknowledges. Other
//! protocols are established by an answer. The original direction's entry holds the state; the entry of
//! the answers has a copy.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use super::types::{EvictClass, FlowState, Millis, Timeouts};
use super::{LAST_SEEN_GRAIN, LAST_SEEN_PART};
use crate::packet::proto;

/// TCP flags, RFC 9293 3.1.
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// Milliseconds in a tick of the marks that sweep and eviction go by, as a shift.
const TICK_SHIFT: u32 = 12;
/// Ticks wrap after this many (4.4 minutes).
const TICKS: u8 = 64;
/// The sweep looks at an entry at this age at the latest, and marks it younger, before its tick wraps.
pub(super) const OLD: u8 = 48;
/// The age such an entry is marked with.
pub(super) const AGED: u8 = 32;
/// An established TCP flow idle for less is never evicted.
pub(super) const IDLE_TCP_MS: u32 = 32_768;
/// Any other established flow idle for less is never evicted.
pub(super) const IDLE_OTHER_MS: u32 = 8_192;

/// State and kind of protocol in six bits, as they are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State(u8);

impl State {
    const OPENING: u8 = 0;
    const OPENING_BOTH: u8 = 1;
    const ESTABLISHED: u8 = 2;
    const FIN_ORIGINAL: u8 = 3;
    const FIN_REPLY: u8 = 4;
    const CLOSED: u8 = 5;
    const RESET: u8 = 6;
    /// Opened again by the other end.
    const OPENING_REPLY: u8 = 7;

    const TCP: u8 = 0;
    const UDP: u8 = 1 << 3;
    const ICMP: u8 = 2 << 3;
    const OTHER: u8 = 3 << 3;

    /// Both ends have one address and port: each packet is of both directions.
    const TO_ITSELF: u8 = 1 << 5;

    /// The six bits.
    #[inline]
    pub(super) fn bits(self) -> u8 {
        self.0
    }

    #[inline]
    pub(super) fn from_bits(bits: u8) -> Self {
        Self(bits & 63)
    }

    #[inline]
    fn kind(self) -> u8 {
        self.0 & 24
    }

    #[inline]
    fn phase(self) -> u8 {
        self.0 & 7
    }

    fn with(self, phase: u8) -> Self {
        Self(self.0 & !7 | phase)
    }

    /// After the first packet. A flow to itself has seen both directions with it.
    pub(super) fn first(protocol: u8, tcp_flags: u8, to_itself: bool) -> Self {
        let kind = match protocol {
            proto::TCP => Self::TCP,
            proto::UDP => Self::UDP,
            proto::ICMP | proto::ICMPV6 => Self::ICMP,
            _ => Self::OTHER,
        };
        let start = if to_itself { Self::TO_ITSELF | Self::OPENING_BOTH } else { Self::OPENING };
        Self(kind | start).step(false, tcp_flags)
    }

    /// After a packet with these TCP flags (ignored for other protocols) in the given direction.
    #[inline]
    pub(super) fn step(self, reply: bool, flags: u8) -> Self {
        // What nearly all packets are: neither SYN, FIN nor RST, in an established flow.
        if self.phase() == Self::ESTABLISHED && (flags & (SYN | FIN | RST) == 0 || self.kind() != Self::TCP) {
            return self;
        }
        if self.kind() == Self::TCP { self.with(self.step_tcp(reply, flags)) } else { self.step_other(reply) }
    }

    fn step_other(self, reply: bool) -> Self {
        let answered = match self.phase() {
            Self::OPENING => reply,
            Self::OPENING_REPLY => !reply,
            _ => true,
        };
        if answered { self.with(Self::ESTABLISHED) } else { self }
    }

    fn step_tcp(self, reply: bool, flags: u8) -> u8 {
        if flags & RST != 0 {
            return Self::RESET;
        }
        let mut phase = self.phase();
        if matches!(phase, Self::CLOSED | Self::RESET) {
            let again = flags & (SYN | ACK) == SYN;
            return match (again, self.0 & Self::TO_ITSELF != 0, reply) {
                (false, ..) => phase,
                (true, true, _) => Self::OPENING_BOTH,
                (true, false, false) => Self::OPENING,
                (true, false, true) => Self::OPENING_REPLY,
            };
        }
        if matches!((phase, reply), (Self::OPENING, true) | (Self::OPENING_REPLY, false)) {
            phase = Self::OPENING_BOTH;
        }
        if phase == Self::OPENING_BOTH && flags & (SYN | ACK) == ACK {
            phase = Self::ESTABLISHED;
        }
        if flags & FIN == 0 {
            return phase;
        }
        match (phase, reply) {
            (Self::ESTABLISHED, false) => Self::FIN_ORIGINAL,
            (Self::ESTABLISHED, true) => Self::FIN_REPLY,
            (Self::FIN_ORIGINAL, true) | (Self::FIN_REPLY, false) => Self::CLOSED,
            // A FIN before the connection is established must not lengthen its life.
            _ => phase,
        }
    }

    /// The state as callers see it.
    #[inline]
    pub(super) fn public(self) -> FlowState {
        match self.phase() {
            Self::ESTABLISHED => FlowState::Established,
            Self::FIN_ORIGINAL | Self::FIN_REPLY => FlowState::HalfClosed,
            Self::CLOSED => FlowState::Closing,
            Self::RESET => FlowState::Reset,
            _ => FlowState::New,
        }
    }

    pub(super) fn class(self) -> Class {
        let open = matches!(self.public(), FlowState::New);
        match self.kind() {
            Self::TCP => match self.public() {
                FlowState::New => Class::TcpNew,
                FlowState::Established | FlowState::HalfClosed => Class::TcpEstablished,
                FlowState::Closing | FlowState::Reset => Class::TcpClosing,
            },
            Self::UDP if open => Class::UdpNew,
            Self::UDP => Class::UdpAnswered,
            Self::ICMP => Class::Icmp,
            _ if open => Class::OtherNew,
            _ => Class::OtherAnswered,
        }
    }
}

/// What the mark of an entry says of its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Class {
    TcpClosing,
    TcpNew,
    TcpEstablished,
    UdpNew,
    UdpAnswered,
    Icmp,
    OtherNew,
    OtherAnswered,
}

impl Class {
    const ALL: [Class; 8] = [
        Class::TcpClosing,
        Class::TcpNew,
        Class::TcpEstablished,
        Class::UdpNew,
        Class::UdpAnswered,
        Class::Icmp,
        Class::OtherNew,
        Class::OtherAnswered,
    ];

    /// The class that eviction and counters know it by. ICMP queries never outrank what has a handshake.
    pub(super) fn evict(self) -> EvictClass {
        match self {
            Self::TcpClosing => EvictClass::Closing,
            Self::TcpNew | Self::UdpNew | Self::Icmp | Self::OtherNew => EvictClass::HalfOpen,
            Self::TcpEstablished | Self::UdpAnswered | Self::OtherAnswered => EvictClass::Idle,
        }
    }

    /// How long a flow of this class must have been idle, in milliseconds, before a new one may take its place.
    pub(super) fn protected_ms(self) -> u32 {
        match self {
            Self::TcpEstablished => IDLE_TCP_MS,
            Self::UdpAnswered | Self::OtherAnswered => IDLE_OTHER_MS,
            _ => 0,
        }
    }
}

/// Class and coarse time of the last packet of an entry, nine bits: what is known without touching the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark(u16);

impl Mark {
    pub(super) const BITS: u32 = 9;
    /// Of no entry.
    pub(super) const NONE: Mark = Mark(0);

    pub(super) fn new(class: Class, seen: Tick) -> Self {
        Self(u16::from(class as u8) << 6 | u16::from(seen.0))
    }

    pub(super) fn from_bits(bits: u16) -> Self {
        Self(bits & 0x1ff)
    }

    pub(super) fn bits(self) -> u16 {
        self.0
    }

    pub(super) fn class(self) -> Class {
        Class::ALL.get(usize::from(self.0 >> 6)).copied().unwrap_or(Class::TcpClosing)
    }

    /// Ticks since the last packet known of.
    pub(super) fn age(self, now: Tick) -> u8 {
        let [_, low] = self.0.to_be_bytes();
        now.0.wrapping_sub(low) % TICKS
    }
}

/// Coarse time, of 4.096 s, wrapping after 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tick(u8);

impl Tick {
    #[inline]
    pub(super) fn of(t: Millis) -> Self {
        let [.., low] = (t.0 >> TICK_SHIFT).to_be_bytes();
        Self(low % TICKS)
    }

    pub(super) fn before(self, ticks: u8) -> Self {
        Self(self.0.wrapping_sub(ticks) % TICKS)
    }
}

/// Age in ticks that an entry certainly has when it is idle for so long.
pub(super) fn ticks(ms: u32) -> u8 {
    u8::try_from(ms >> TICK_SHIFT).unwrap_or(u8::MAX)
}

/// Timeouts by state, in milliseconds; changed by the control thread while workers read.
#[derive(Debug, Default)]
pub(super) struct Limits {
    by_state: [AtomicU32; 32],
    due: AtomicU64,
}

impl Limits {
    pub(super) fn new(t: &Timeouts) -> Self {
        let limits = Self::default();
        limits.set(t);
        limits
    }

    pub(super) fn set(&self, t: &Timeouts) {
        for (bits, limit) in (0u8..).zip(&self.by_state) {
            let state = State(bits);
            let timeout = match (state.kind(), state.public()) {
                (State::UDP, _) => t.udp,
                (State::ICMP, _) => t.icmp,
                (State::OTHER, _) => t.other,
                (_, FlowState::New) => t.tcp_syn,
                (_, FlowState::Established | FlowState::HalfClosed) => t.tcp_established,
                (_, FlowState::Closing) => t.tcp_fin,
                (_, FlowState::Reset) => t.tcp_rst,
            };
            limit.store(millis(timeout), Ordering::Relaxed);
        }
        self.due.store(u64::from_le_bytes(self.ages()), Ordering::Relaxed);
    }

    /// By class: the age in ticks from which an entry may have timed out.
    fn ages(&self) -> [u8; 8] {
        let mut ages = [u8::MAX; 8];
        for (bits, limit) in (0u8..).zip(&self.by_state) {
            let class = State(bits).class();
            if let Some(age) = ages.get_mut(usize::from(class as u8)) {
                // Both ends of an age in ticks are rounded down: one tick more makes sure.
                *age = (*age).min(ticks(limit.load(Ordering::Relaxed)).saturating_add(1));
            }
        }
        ages
    }

    #[inline]
    pub(super) fn of(&self, state: State) -> u32 {
        self.by_state.get(usize::from(state.bits() & 31)).map_or(0, |l| l.load(Ordering::Relaxed))
    }

    /// How old a last-seen time is, in milliseconds, before a packet writes it again.
    #[inline]
    pub(super) fn grain(&self, state: State) -> u32 {
        grain(self.of(state))
    }

    /// From which age on entries may have timed out.
    #[inline]
    pub(super) fn due(&self) -> Due {
        Due(self.due.load(Ordering::Relaxed).to_le_bytes())
    }
}

/// By class: the age in ticks from which an entry may have timed out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due([u8; 8]);

impl Due {
    /// Whether the entry may have timed out. Ages wrap: of what lasts longer, no mark says so.
    #[inline]
    pub(super) fn has_passed(&self, mark: Mark, now: Tick) -> bool {
        self.0.get(usize::from(mark.class() as u8)).is_none_or(|due| mark.age(now) >= *due)
    }

    /// Whether the sweep should look at the entry: it may have timed out, or its mark is about to wrap.
    #[inline]
    pub(super) fn is(&self, mark: Mark, now: Tick) -> bool {
        mark.age(now) >= OLD || self.has_passed(mark, now)
    }
}

/// [`Limits::grain`] of a timeout.
#[inline]
pub(super) fn grain(timeout: u32) -> u32 {
    (timeout / LAST_SEEN_PART).clamp(1, LAST_SEEN_GRAIN)
}

fn millis(d: Duration) -> u32 {
    u32::try_from(d.min(Timeouts::MAX).as_millis()).unwrap_or(u32::MAX >> 2)
}
