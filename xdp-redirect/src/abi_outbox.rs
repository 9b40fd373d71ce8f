//! Map layout shared by the sending program (`ebpf/src/outbox.rs`) and [`crate::outbox`].
//!
//! | Map | Type | Value |
//! |---|---|---|
//! | `OUTBOX` | array, [`SLOTS`] + 1 entries, mapped into the sender's memory | [`Slot`] |
//!
//! Entry 0 is the order: its `ifindex` counts the packets sent, and its data are the numbers of the entries to send, 16
//! bits each. The others are packets. A stride of 33 cache lines spreads the packets' starts over the cache's sets.

/// Packets an outbox holds: a power of two, whose order fits into an entry.
pub const SLOTS: u32 = 1024;
/// Longest packet, Ethernet header included. One less than a power of two: the verifier understands a mask.
pub const LONGEST: usize = 2047;
/// Shortest: an Ethernet header.
pub const SHORTEST: usize = 14;

/// Value of `OUTBOX`: a packet and where it goes. Host order.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The device that sends it, by index in the network namespace of the caller.
    pub ifindex: u32,
    /// Its bytes in `data`, from [`SHORTEST`] to [`LONGEST`].
    pub len: u32,
    /// The packet, Ethernet header first.
    pub data: [u8; 33 * 64 - 8],
}

const _: () = assert!(size_of::<Slot>() == 33 * 64 && align_of::<Slot>() == 4);
const _: () = assert!(LONGEST <= 33 * 64 - 8 && 2 * SLOTS as usize <= 33 * 64 - 8 && SLOTS.is_power_of_two());
