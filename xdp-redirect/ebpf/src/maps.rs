//! The maps (layouts: `abi.rs`), and the one way to read each.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, XskMap};

use crate::abi::{CLASS_MASK, Config, Counters, ExactKey, Outcome, PROGRAMS, SnatRange, SocketKey};
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
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(PROGRAMS, 0);

/// Counts `outcome` for `program` on this CPU.
#[inline(always)]
pub(crate) fn count(program: u32, outcome: Outcome) {
    if let Some(counters) = COUNTERS.get_ptr_mut(program) {
        // SAFETY: the pointer is to this CPU's value, and no other program run uses it meanwhile: XDP
        // runs with bottom halves off, so runs on one CPU follow each other. `outcome` is below 16.
        unsafe {
            let cell = counters.cast::<u64>().add(outcome as usize);
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

/// Whether a local prefix holds `addr`.
#[inline(always)]
pub(crate) fn is_local(addr: &Address, v4: bool) -> bool {
    let value = if v4 {
        LOCAL4.get(Key::new(32, v4_bytes(addr)))
    } else {
        LOCAL6.get(Key::new(128, bytes(addr)))
    };
    value.is_some()
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

#[inline(always)]
fn bytes(addr: &Address) -> [u8; 16] {
    // SAFETY: same size, and both are plain integers; the words hold the address' bytes in memory order.
    unsafe { core::mem::transmute::<[u16; 8], [u8; 16]>(*addr) }
}

#[inline(always)]
fn v4_bytes(addr: &Address) -> [u8; 4] {
    // SAFETY: as for `bytes`.
    unsafe { core::mem::transmute::<[u16; 2], [u8; 4]>([addr[6], addr[7]]) }
}
