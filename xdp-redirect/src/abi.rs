//! Map layouts shared by the XDP programs (`ebpf/`) and their loader: the one place where bytes are agreed.
//!
//! `no_std`: the eBPF crate includes this very file. The maps, by the names they have in the object:
//!
//! | Map | Type | Key | Value |
//! |---|---|---|---|
//! | `CONFIG` | array, 1 entry | 0 | [`Config`] |
//! | `HEARTBEAT` | array, 1 entry | 0 | `u64`: `CLOCK_MONOTONIC` nanoseconds of the last beat, 0 before the first |
//! | `SLOTS` | hash | [`SocketKey`] | `u32`: index into `SOCKETS` |
//! | `SOCKETS` | XSKMAP | slot | AF_XDP socket |
//! | `LOCAL4`, `LOCAL6` | LPM trie | prefix length, address in network order (4 or 16 bytes) | `u32`: class |
//! | `EXACT` | hash | [`ExactKey`] | `u32`: class |
//! | `SNAT` | hash | address, 16 bytes | [`SnatRange`] |
//! | `FRAGMENTS` | LRU hash, [`MAX_FRAGMENTS`] entries | [`FragmentKey`] | [`Fragment`] |
//! | `COUNTERS` | per-CPU array, [`PROGRAMS`] entries | program | [`Counters`] |
//!
//! Addresses of 16 bytes are in network order, IPv4 in its mapped form `::ffff:a.b.c.d` (RFC 4291
//! 2.5.5.2). An IPv6 packet that carries a mapped address on the wire is never ours.
//!
//! A class takes the low byte of its `u32`; the other bits are zero and free for per-entry flags.
//!
//! A later fragment has no ports to look up in `EXACT` and `SNAT`: it goes where `FRAGMENTS` says that its
//! datagram's first one went. The programs alone write that map, and nobody has to empty it.

/// Key of `SLOTS`: which socket serves a receive queue. Both in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Index of the receiving device in the network namespace of the program.
    pub ifindex: u32,
    /// Receive queue, from 0.
    pub queue: u32,
}

/// Key of `EXACT`: one transport endpoint that is ours.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExactKey {
    /// Destination address, 16 bytes.
    pub addr: [u8; 16],
    /// Destination port in network order.
    pub port: [u8; 2],
    /// IP protocol number: 6, 17 or 132.
    pub proto: u8,
    /// Always zero: keys are compared as bytes.
    pub zero: u8,
}

/// Value of `SNAT`: the ports (ICMP: echo identifiers) of an address that are ours, in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnatRange {
    /// First port of the range.
    pub lo: u16,
    /// Last port of the range, inclusive.
    pub hi: u16,
}

/// Key of `FRAGMENTS`: one datagram in fragments (RFC 791 3.2, RFC 8200 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address, 16 bytes.
    pub source: [u8; 16],
    /// Destination address, 16 bytes.
    pub destination: [u8; 16],
    /// Identification as on the wire; that of IPv4 in the first two bytes, zero behind.
    pub id: [u8; 4],
    /// Index of the receiving device, in host order: fragments from elsewhere join no datagram.
    pub ifindex: u32,
    /// IP protocol number; IPv6: always zero, its fragments need not agree on it.
    pub proto: u32,
}

/// Value of `FRAGMENTS`: what the first fragment was.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// When it came, in nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    pub seen_ns: u64,
    /// The hole it matched: an [`Outcome`] from [`Outcome::Vxlan`] on, but never [`Outcome::Pod`], whose
    /// later fragments are known by their address.
    pub hole: u32,
    /// Always zero.
    pub zero: u32,
}

/// Entries of `FRAGMENTS`, and so the datagrams whose fragments are on their way at a time.
///
/// Each takes 112 bytes (header 48, key 44 rounded up to 48, value 16) and 16 for its bucket: 512 KiB of
/// kernel memory, plus some hundred bytes for each CPU.
pub const MAX_FRAGMENTS: u32 = 4096;

/// How long after the first fragment later ones are still of its datagram, in nanoseconds. As Linux keeps
/// fragments by default, and less than the 60 s of RFC 8200 4.5: identifications come round (RFC 6864 3.2).
pub const FRAGMENT_LIFE_NS: u64 = 30_000_000_000;

/// Value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Age of the last beat, in nanoseconds, past which the daemon counts as gone.
    pub stale_after_ns: u64,
    /// [`ON_FAILURE_DROP`] or [`ON_FAILURE_PASS`]; anything else means drop.
    pub on_failure: u32,
    /// Always zero.
    pub zero: u32,
}

/// [`Config::on_failure`]: frames meant for the socket are dropped.
pub const ON_FAILURE_DROP: u32 = 1;
/// [`Config::on_failure`]: frames meant for the socket pass to the kernel.
pub const ON_FAILURE_PASS: u32 = 2;

/// Class in `EXACT`: VXLAN to a tunnel address of this node.
pub const CLASS_VXLAN: u32 = 1;
/// Class in `LOCAL4` and `LOCAL6`: an address or prefix of local pods.
pub const CLASS_POD: u32 = 2;
/// Class in `LOCAL4` and `LOCAL6`: not a pod's though a shorter prefix is. For the node's own addresses.
pub const CLASS_NODE: u32 = 5;
/// Class in `EXACT`: a service frontend.
pub const CLASS_FRONTEND: u32 = 3;
/// Class in `EXACT`: a NodePort on a node address.
pub const CLASS_NODE_PORT: u32 = 4;
/// The bits of a map value that hold the class.
pub const CLASS_MASK: u32 = 0xff;

/// How many IPv6 extension headers are walked to find the ports. Behind more of them there are no
/// ports, and the packet is ours only by a local prefix.
pub const MAX_EXTENSIONS: usize = 8;

/// `COUNTERS` index of the program on pod and host ports.
pub const PROGRAM_ENDPOINT: u32 = 0;
/// `COUNTERS` index of the program on the uplink.
pub const PROGRAM_UPLINK: u32 = 1;
/// Entries of `COUNTERS`.
pub const PROGRAMS: u32 = 2;

/// Value of `COUNTERS`: frames by [`Outcome`] on one CPU since the program was loaded.
pub type Counters = [u64; 16];

/// What became of a frame (the first ten), and which hole of the pinhole it matched (the rest).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Handed to the socket of its queue.
    Redirected = 0,
    /// Not ours: left to the kernel.
    PassedNotOurs = 1,
    /// VLAN-tagged: left to the kernel. On the uplink also with VLAN 0 when what is inside is not ours.
    PassedVlan = 2,
    /// Tagged with VLAN 0, which the kernel would take as untagged past every policy, and else ours.
    DroppedVlan0 = 3,
    /// Ours, heartbeat stale, dropped.
    StaleDropped = 4,
    /// Ours, heartbeat stale, left to the kernel.
    StalePassed = 5,
    /// Ours, no socket on the queue, dropped.
    NoSocketDropped = 6,
    /// Ours, no socket on the queue, left to the kernel.
    NoSocketPassed = 7,
    /// Headers cut short or contradictory: left to the kernel to judge (endpoint: dropped).
    Malformed = 8,
    /// Uplink: VXLAN to a tunnel address.
    Vxlan = 9,
    /// Uplink: a local pod prefix.
    Pod = 10,
    /// Uplink: a service frontend.
    Frontend = 11,
    /// Uplink: a NodePort.
    NodePort = 12,
    /// Uplink: the SNAT range of a node address.
    Snat = 13,
    /// Uplink: an ICMP error that quotes a packet of ours.
    IcmpError = 14,
}

const _: () = assert!(size_of::<SocketKey>() == 8 && align_of::<SocketKey>() == 4);
const _: () = assert!(size_of::<ExactKey>() == 20 && align_of::<ExactKey>() == 1);
const _: () = assert!(size_of::<SnatRange>() == 4 && align_of::<SnatRange>() == 2);
const _: () = assert!(size_of::<FragmentKey>() == 44 && align_of::<FragmentKey>() == 4);
const _: () = assert!(size_of::<Fragment>() == 16 && align_of::<Fragment>() == 8);
const _: () = assert!(size_of::<Config>() == 16 && align_of::<Config>() == 8);
const _: () = assert!(size_of::<Counters>() == 128);
const _: () = assert!((Outcome::IcmpError as usize) < size_of::<Counters>() / size_of::<u64>());
