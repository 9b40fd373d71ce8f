//! Map layouts shared by the traffic programs (`ebpf/src/traffic.rs`) and [`crate::generator`].
//!
//! | Map | Type | Value |
//! |---|---|---|
//! | `TEMPLATE` | array, 1 entry | [`Template`] |
//! | `SEQUENCE` | per-CPU array, 1 entry | `u64`: frames generated on this CPU |
//! | `SINK` | per-CPU array, 1 entry | [`SinkCount`] |

/// Bytes of a frame's start that are rewritten before each transmission.
pub const TEMPLATE_BYTES: usize = 192;

/// Value of `TEMPLATE`: the frame's start and how one frame differs from the next. Host order.
///
/// The n-th frame of a CPU belongs to flow `n % flows`: its source port is `port + flow % ports`, its
/// source address' last 32 bits are `addr + flow / ports`, and the checksums follow (RFC 1624).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// The frame's first bytes, as 64-bit words in memory order.
    pub words: [u64; TEMPLATE_BYTES / 8],
    /// How many of `words` are used.
    pub count: u32,
    /// Number of flows; 0 or 1 leaves every frame as the template is.
    pub flows: u32,
    /// Distinct source ports, at least 1.
    pub ports: u32,
    /// First value of the last 32 bits of the source address.
    pub addr: u32,
    /// Offset of the source port; 0 for none.
    pub port_offset: u16,
    /// Offset of the last 32 bits of the source address; 0 for none.
    pub addr_offset: u16,
    /// Offset of the IPv4 header checksum; 0 for none.
    pub ip_sum_offset: u16,
    /// Offset of the transport checksum, which covers address and port; 0 for none.
    pub l4_sum_offset: u16,
    /// First source port.
    pub port: u16,
    /// The template's IPv4 header checksum.
    pub ip_sum: u16,
    /// The template's transport checksum.
    pub l4_sum: u16,
    /// Always zero.
    pub zero: u16,
}

/// Value of `SINK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkCount {
    /// Frames seen.
    pub frames: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Template>() == TEMPLATE_BYTES + 32 && align_of::<Template>() == 8);
const _: () = assert!(size_of::<SinkCount>() == 16);
