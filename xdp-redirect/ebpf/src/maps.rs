//! The maps (layouts: `abi.rs`), and the one way to read each.

use core::hint::black_box;

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, XskMap};

use crate::abi::{
    CLASS_MASK, CLASS_POD, Config, Counters, ExactKey, FRAGMENT_LIFE_NS, Fragment, FragmentKey,
    MAX_FRAGMENTS, Outcome, PROGRAMS, SnatRange, SocketKey,
};
use crate::parse::Address;

// The loader sets the real sizes of the maps whose size is configured.
const BY_LOADER: u32 = 1024;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static SLOTS: HashMap<SocketKey, u32> = HashMap::with_max_entries(BY_LOADER, 0);
#[map]
pub(crate) static SOCKETS: XskMap = XskMap::with_max_entries(BY_LOADER, 0);
#[map]
static LOCAL4: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(BY_LOADER, 0);
#[map]
static LOCAL6: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(BY_LOADER, 0);
#[map]
static EXACT: HashMap<ExactKey, u32> = HashMap::with_max_entries(BY_LOADER, 0);
#[map]
static SNAT: HashMap<[u8; 16], SnatRange> = HashMap::with_max_entries(BY_LOADER, 0);
/// One for all CPUs, because fragments of a datagram may come by different queues. LRU: a flood of first
/// fragments takes room from older ones, and memory from nobody.
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(PROGRAMS, 0);

/// Counts `outcome` for `program` on this CPU.
#[inline(always)]
pub(crate) fn count(program: u32, outcome: Outcome) {
    if let Some(counters) = COUNTERS.get_ptr_mut(program) {
        // Changes nothing, but the compiler does not know: the verifier wants to see the bound.
        let index = black_box(outcome as usize) & 15;
        // SAFETY: the pointer is to this CPU's value, and no other program run uses it meanwhile: XDP
        // runs with bottom halves off, so runs on one CPU follow each other. There are 16 counters.
        unsafe {
            let cell = counters.cast::<u64>().add(index);
            *cell += 1;
        }
    }
}

/// The loader's settings.
#[inline(always)]
pub(crate) fn config() -> Option<Config> {
    CONFIG.get(0).copied()
}

/// Time of the daemon's last beat, 0 before the first.
#[inline(always)]
pub(crate) fn heartbeat() -> u64 {
    match HEARTBEAT.get_ptr(0) {
        // SAFETY: an aligned `u64` in an array map, which is never freed while the program is loaded;
        // volatile because the daemon writes it while we read.
        Some(beat) => unsafe { beat.read_volatile() },
        None => 0,
    }
}

/// Slot of the socket that serves `key`.
#[inline(always)]
pub(crate) fn slot(key: SocketKey) -> Option<u32> {
    // SAFETY: the value is copied at once. The aliasing that the kernel allows after a removal could
    // only show another slot, whose socket then refuses a frame of a foreign queue.
    unsafe { SLOTS.get(key).copied() }
}

/// Now, in nanoseconds. The coarse clock may lag a tick behind the beat's.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Whether the longest local prefix that holds `addr` is a pod's.
#[inline(always)]
pub(crate) fn is_local(addr: &Address, v4: bool) -> bool {
    let value = if v4 {
        LOCAL4.get(Key::new(32, v4_bytes(addr)))
    } else {
        LOCAL6.get(Key::new(128, bytes(addr)))
    };
    match value {
        Some(class) => *class & CLASS_MASK == CLASS_POD,
        None => false,
    }
}

/// Class of a transport endpoint, 0 when it is not ours. `port` in network order, as read.
#[inline(always)]
pub(crate) fn exact(addr: &Address, proto: u8, port: u16) -> u32 {
    let key = ExactKey { addr: bytes(addr), port: port.to_ne_bytes(), proto, zero: 0 };
    // SAFETY: the value is copied at once; a removed element that is reused meanwhile shows the class
    // of another endpoint of ours for this one packet.
    match unsafe { EXACT.get(key) } {
        Some(class) => *class & CLASS_MASK,
        None => 0,
    }
}

/// Whether `port` (network order, as read) of `addr` lies in its SNAT range.
#[inline(always)]
pub(crate) fn in_snat_range(addr: &Address, port: u16) -> bool {
    // SAFETY: as for `exact`.
    match unsafe { SNAT.get(bytes(addr)) } {
        Some(range) => {
            let port = u16::from_be(port);
            range.lo <= port && port <= range.hi
        }
        None => false,
    }
}

/// Remembers which hole the first fragment of a datagram went through. A failure only means that later ones
/// are not found.
#[inline(always)]
pub(crate) fn remember_fragment(key: &FragmentKey, hole: Outcome) {
    let _ = FRAGMENTS.insert(key, Fragment { seen_ns: now(), hole: hole as u32, zero: 0 }, 0);
}

/// Forgets a datagram: its identification has come round, and the new one is not ours.
#[inline(always)]
pub(crate) fn forget_fragment(key: &FragmentKey) {
    let _ = FRAGMENTS.remove(key);
}

/// The hole that the first fragment of the datagram went through, not long ago.
#[inline(always)]
pub(crate) fn fragment(key: &FragmentKey) -> Option<Outcome> {
    // SAFETY: the fields are copied at once; an element that is evicted and reused meanwhile shows the hole
    // of another datagram of ours for this one packet.
    let Fragment { seen_ns, hole, .. } = *unsafe { FRAGMENTS.get(key) }?;
    if now().saturating_sub(seen_ns) > FRAGMENT_LIFE_NS {
        return None;
    }
    const VXLAN: u32 = Outcome::Vxlan as u32;
    const FRONTEND: u32 = Outcome::Frontend as u32;
    const NODE_PORT: u32 = Outcome::NodePort as u32;
    const SNAT: u32 = Outcome::Snat as u32;
    const ICMP_ERROR: u32 = Outcome::IcmpError as u32;
    match hole {
        VXLAN => Some(Outcome::Vxlan),
        FRONTEND => Some(Outcome::Frontend),
        NODE_PORT => Some(Outcome::NodePort),
        SNAT => Some(Outcome::Snat),
        ICMP_ERROR => Some(Outcome::IcmpError),
        _ => None,
    }
}

#[inline(always)]
pub(crate) fn bytes(addr: &Address) -> [u8; 16] {
    // SAFETY: same size, and both are plain integers; the words hold the address' bytes in memory order.
    unsafe { core::mem::transmute::<[u16; 8], [u8; 16]>(*addr) }
}

#[inline(always)]
fn v4_bytes(addr: &Address) -> [u8; 4] {
    // SAFETY: as for `bytes`.
    unsafe { core::mem::transmute::<[u16; 2], [u8; 4]>([addr[6], addr[7]]) }
}
