//! What goes into the flow table and what comes out of it.
#![forbid(unsafe_code)]

use core::fmt;
use core::time::Duration;

use crate::packet::{FlowKey, Ip, NO_INDEX, PortId};
use crate::tables::policy::Rules;

/// Size, timeouts and hash seed of a [`super::FlowTable`].
#[derive(Clone, Debug)]
pub struct FlowConfig {
    /// IPv4 entries; a flow takes two, one for each direction.
    pub entries_v4: usize,
    /// IPv6 entries; a flow takes two, one for each direction.
    pub entries_v6: usize,
    /// How long an idle flow is kept.
    pub timeouts: Timeouts,
    /// Seed of [`FlowKey::hash`]; random, so that nobody outside can fill one bucket.
    pub seed: u64,
}

/// How long a flow is kept after its last packet, in either direction, by state.
///
/// Whole milliseconds, at most [`Timeouts::MAX`]; what is longer counts as that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before both directions were seen and one acknowledged.
    pub tcp_syn: Duration,
    /// TCP established, also with one direction closed.
    pub tcp_established: Duration,
    /// TCP after a FIN in both directions.
    pub tcp_fin: Duration,
    /// TCP after a RST.
    pub tcp_rst: Duration,
    /// UDP.
    pub udp: Duration,
    /// ICMP and ICMPv6 queries.
    pub icmp: Duration,
    /// Every other protocol.
    pub other: Duration,
}

impl Timeouts {
    /// The longest timeout, about twelve days: half of what a wrapping clock of 32 bits can tell apart.
    pub const MAX: Duration = Duration::from_millis(1 << 30);
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn: Duration::from_secs(20),
            tcp_established: Duration::from_secs(3600),
            tcp_fin: Duration::from_secs(30),
            tcp_rst: Duration::from_secs(40),
            udp: Duration::from_secs(60),
            icmp: Duration::from_secs(5),
            other: Duration::from_secs(600),
        }
    }
}

/// Milliseconds of a monotonic clock, wrapping after 49 days.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Millis(pub u32);

impl Millis {
    /// Milliseconds since `earlier`; 0 when `earlier` is the later one (another worker's clock is ahead).
    #[inline]
    #[must_use]
    pub fn since(self, earlier: Millis) -> u32 {
        let age = self.0.wrapping_sub(earlier.0);
        if age >> 31 == 0 { age } else { 0 }
    }

    /// This moment `ms` milliseconds later.
    #[inline]
    #[must_use]
    pub fn after(self, ms: u32) -> Millis {
        Millis(self.0.wrapping_add(ms))
    }
}

/// What is done to every packet of one direction of a flow: addresses, ports, checksums, the way out.
///
/// Plain data without pointers; the indices mean something only within the generation stored with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Transform {
    /// Source address to write, if [`Transform::REWRITE_SRC`].
    pub src: Ip,
    /// Destination address to write, if [`Transform::REWRITE_DST`].
    pub dst: Ip,
    /// Source port (or ICMP identifier) to write, host order.
    pub sport: u16,
    /// Destination port to write, host order.
    pub dport: u16,
    /// What the rewrite adds to the IPv4 header checksum (RFC 1624).
    pub l3_delta: u16,
    /// What the rewrite adds to the transport checksum (RFC 1624).
    pub l4_delta: u16,
    /// Port the packet leaves by.
    pub egress: PortId,
    /// Index of the tunnel, [`NO_INDEX`] if none.
    pub tunnel: u16,
    /// Index of the next hop, [`NO_INDEX`] if none.
    pub next_hop: u16,
    /// MTU of the IP packet on its way out, bytes.
    pub mtu: u16,
    /// The policy rules that decided, for counters and traces.
    pub rules: Rules,
    /// [`Transform::REWRITE_SRC`], [`Transform::REWRITE_DST`], [`Transform::DENY`]; the other bits are the caller's.
    pub bits: u8,
}

impl Transform {
    /// The source address and port are rewritten.
    pub const REWRITE_SRC: u8 = 1;
    /// The destination address and port are rewritten.
    pub const REWRITE_DST: u8 = 1 << 1;
    /// A policy took the flow's permission away: its packets are dropped.
    pub const DENY: u8 = 1 << 2;

    /// Whether both addresses are of the family; an entry cannot hold others.
    pub(super) fn is_v6(&self) -> Option<bool> {
        (self.src.is_v4() == self.dst.is_v4()).then(|| !self.src.is_v4())
    }

    /// A transform that leaves the packet as it is, and sends it nowhere yet.
    #[must_use]
    pub fn identity(key: &FlowKey) -> Self {
        Self {
            src: key.src,
            dst: key.dst,
            sport: key.sport,
            dport: key.dport,
            l3_delta: 0,
            l4_delta: 0,
            egress: PortId::NONE,
            tunnel: NO_INDEX,
            next_hop: NO_INDEX,
            mtu: 0,
            rules: Rules::NONE,
            bits: 0,
        }
    }
}

/// Names one direction of one flow; stays harmless when the flow is gone or its entry was reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowRef {
    pub(super) slot: u32,
    pub(super) id: u32,
    pub(super) v6: bool,
}

impl fmt::Display for FlowRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.{}", if self.v6 { 6 } else { 4 }, self.slot, self.id)
    }
}

/// Where a flow is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowState {
    /// One direction seen; for TCP, until a segment that acknowledges follows one of the other direction.
    New,
    /// Both directions seen.
    Established,
    /// TCP: one direction has sent a FIN.
    HalfClosed,
    /// TCP: both directions have sent a FIN.
    Closing,
    /// TCP: a RST was seen.
    Reset,
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::New => "new",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::Closing => "closing",
            Self::Reset => "reset",
        })
    }
}

/// A live entry that a key was found in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hit {
    /// The entry.
    pub at: FlowRef,
    /// What is done to packets of this direction.
    pub transform: Transform,
    /// Snapshot generation the transform was compiled from.
    pub generation: u32,
    /// Whether this is the direction of the answers.
    pub reply: bool,
    /// The flow's state before this packet.
    pub state: FlowState,
}

/// A flow to install, made by its first packet.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// Key of the first packet, as received.
    pub original: FlowKey,
    /// What is done to packets with that key.
    pub original_transform: Transform,
    /// Key of the answers, as received; the same as `original` for a flow to itself.
    pub reply: FlowKey,
    /// What is done to the answers.
    pub reply_transform: Transform,
    /// Snapshot generation the transforms were compiled from.
    pub generation: u32,
    /// TCP flags byte of the first packet, 0 for other protocols.
    pub tcp_flags: u8,
}

/// A flow about to be installed, by its keys; see [`super::FlowTable::plan`].
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub(super) hashes: [u64; 2],
    /// Slots in use that its entries will most likely take.
    pub(super) victims: [u32; 2],
    pub(super) v6: bool,
}

/// What a new flow may take the key of its answers from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Nobody, or a flow that only waits for its timeout.
    Free,
    /// Also a flow that is half open and idle for [`super::HALF_OPEN_IDLE_MS`].
    HalfOpen,
}

/// What [`super::FlowTable::insert`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// Installed. Each direction may have pushed out a flow that had not timed out.
    New(FlowRef, [Option<EvictClass>; 2]),
    /// Another worker installed a flow with this key first: use that one.
    Exists(Hit),
    /// The key of the answers belongs to another live flow: translate to another port, or drop.
    Conflict(FlowRef),
    /// No room, and nothing that may be evicted. Forward without a flow.
    Full,
    /// Other workers are writing the same buckets. Forward without a flow, the next packet installs it.
    Busy,
    /// The keys or transforms are of two address families, which one table cannot hold.
    MixedFamilies,
}

/// Why a flow could be evicted or how it expired, in the order in which eviction takes them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EvictClass {
    /// TCP after both FINs or a RST.
    Closing,
    /// Not established.
    HalfOpen,
    /// Established, idle.
    Idle,
}

impl EvictClass {
    /// All of them, in order.
    pub const ALL: [EvictClass; 3] = [Self::Closing, Self::HalfOpen, Self::Idle];

    /// The label in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closing => "closing",
            Self::HalfOpen => "half_open",
            Self::Idle => "idle",
        }
    }
}

/// A whole flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The entry of the original direction.
    pub at: FlowRef,
    /// Key of the original direction, as received.
    pub original: FlowKey,
    /// What is done to packets of the original direction.
    pub original_transform: Transform,
    /// Key of the answers, as received.
    pub reply: FlowKey,
    /// What is done to the answers.
    pub reply_transform: Transform,
    /// Snapshot generation the transforms were compiled from.
    pub generation: u32,
    /// State.
    pub state: FlowState,
    /// When the later packet of both directions was seen, to [`super::LAST_SEEN_GRAIN`] milliseconds.
    pub last_seen: Millis,
}

/// What one call of [`super::FlowTable::sweep`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Buckets looked at.
    pub buckets: usize,
    /// Flows removed that were in [`EvictClass::Closing`].
    pub closing: usize,
    /// Flows removed that were in [`EvictClass::HalfOpen`].
    pub half_open: usize,
    /// Flows removed that were established.
    pub idle: usize,
}

impl Swept {
    /// Flows removed.
    #[must_use]
    pub fn expired(&self) -> usize {
        self.closing + self.half_open + self.idle
    }

    pub(super) fn count(&mut self, class: EvictClass) {
        match class {
            EvictClass::Closing => self.closing += 1,
            EvictClass::HalfOpen => self.half_open += 1,
            EvictClass::Idle => self.idle += 1,
        }
    }
}
