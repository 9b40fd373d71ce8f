//! One entry: one direction of one flow, in one cache line (IPv4) or two (IPv6).
//!
//! ```text
//!  word      bits 63..32              31..16            15..8      7..0
//!  head      flow id                  sequence          bits       LIVE, REPLY
//!  hot       last seen (ms)           id, low half      protocol   state
//!  link      sport, dport             index of the other direction's entry
//!  rewrite   l4_delta, l3_delta       dport             sport
//!  out       mtu, next_hop            tunnel            egress
//!  verdict   ingress rule, egress rule           generation
//!  key, to   both addresses of the key, both addresses written: one word each (IPv4) or four (IPv6)
//! ```
//!
//! `rewrite` and `out` are as [`Transform`] has them in memory of a little-endian machine: one store each.
//!
//! A sequence lock out of atomics (Boehm, "Can seqlocks get along with programming language memory
//! models?", MSPC 2012): whoever writes all but `hot` holds the claim of the bucket, makes the sequence
//! odd, writes, makes it even again. A reader that finds the head changed has read nothing. `hot` is
//! changed by compare-and-swap from any worker; the half id in it makes the swap fail once the entry
//! belongs to another flow.
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::state::State;
use super::types::{FlowRef, Hit, Millis, Transform};
use crate::packet::{FlowKey, Ip, PortId};
use crate::tables::policy::Rules;

/// Reads of an entry that another worker is writing, before it counts as not there.
const READ_TRIES: usize = 64;

/// How addresses of a family are held.
pub(super) trait Family: fmt::Debug + 'static {
    const V6: bool;
    /// A pair of addresses.
    type Addrs: Copy + fmt::Debug;
    /// Where a pair is stored.
    type Cells: Default + fmt::Debug + Send + Sync;

    fn pack(src: Ip, dst: Ip) -> Self::Addrs;
    fn unpack(addrs: Self::Addrs) -> (Ip, Ip);
    fn load(cells: &Self::Cells) -> Self::Addrs;
    fn store(cells: &Self::Cells, addrs: Self::Addrs);
    fn same(a: Self::Addrs, b: Self::Addrs) -> bool;
}

/// IPv4: two addresses in a word.
#[derive(Debug)]
pub(super) struct V4;

/// IPv6: two addresses in four words.
#[derive(Debug)]
pub(super) struct V6;

const MAPPED: u128 = 0xffff_0000_0000;

impl Family for V4 {
    const V6: bool = false;
    type Addrs = u64;
    type Cells = AtomicU64;

    #[inline]
    fn pack(src: Ip, dst: Ip) -> u64 {
        low(src.bits()) << 32 | low(dst.bits()) & 0xffff_ffff
    }

    #[inline]
    fn unpack(addrs: u64) -> (Ip, Ip) {
        (
            Ip::from_bits(MAPPED | u128::from(addrs >> 32)),
            Ip::from_bits(MAPPED | u128::from(addrs & 0xffff_ffff)),
        )
    }

    #[inline]
    fn load(cells: &AtomicU64) -> u64 {
        cells.load(Ordering::Relaxed)
    }

    #[inline]
    fn store(cells: &AtomicU64, addrs: u64) {
        cells.store(addrs, Ordering::Relaxed);
    }

    #[inline]
    fn same(a: u64, b: u64) -> bool {
        a == b
    }
}

impl Family for V6 {
    const V6: bool = true;
    type Addrs = [u64; 4];
    type Cells = [AtomicU64; 4];

    #[inline]
    fn pack(src: Ip, dst: Ip) -> [u64; 4] {
        [low(src.bits() >> 64), low(src.bits()), low(dst.bits() >> 64), low(dst.bits())]
    }

    #[inline]
    fn unpack([a, b, c, d]: [u64; 4]) -> (Ip, Ip) {
        let ip = |high, low| Ip::from_bits(u128::from(high) << 64 | u128::from(low));
        (ip(a, b), ip(c, d))
    }

    #[inline]
    fn load([a, b, c, d]: &[AtomicU64; 4]) -> [u64; 4] {
        [a, b, c, d].map(|w| w.load(Ordering::Relaxed))
    }

    #[inline]
    fn store(cells: &[AtomicU64; 4], addrs: [u64; 4]) {
        for (cell, word) in cells.iter().zip(addrs) {
            cell.store(word, Ordering::Relaxed);
        }
    }

    #[inline]
    fn same(a: [u64; 4], b: [u64; 4]) -> bool {
        // Word by word: `==` on the arrays goes through memory.
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }
}

/// A key as it is stored, to compare without unpacking.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed<F: Family> {
    addrs: F::Addrs,
    ports: u32,
    protocol: u8,
}

impl<F: Family> Packed<F> {
    #[inline]
    pub(super) fn new(key: &FlowKey) -> Self {
        Self {
            addrs: F::pack(key.src, key.dst),
            ports: u32::from(key.sport) << 16 | u32::from(key.dport),
            protocol: key.proto,
        }
    }
}

/// The word that says whether and whose an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head(u64);

impl Head {
    const LIVE: u64 = 1;
    const REPLY: u64 = 2;
    const BITS_SHIFT: u32 = 8;
    const SEQ: u64 = 1 << 16;
    const SEQ_MASK: u64 = 0xffff << 16;

    #[inline]
    pub(super) fn id(self) -> u32 {
        high32(self.0)
    }

    #[inline]
    pub(super) fn is_live(self) -> bool {
        self.0 & Self::LIVE != 0
    }

    #[inline]
    pub(super) fn is_reply(self) -> bool {
        self.0 & Self::REPLY != 0
    }

    /// Live and not being written.
    #[inline]
    fn is_steady(self) -> bool {
        self.0 & (Self::SEQ | Self::LIVE) == Self::LIVE
    }

    #[inline]
    fn transform_bits(self) -> u8 {
        byte(self.0, Self::BITS_SHIFT)
    }

    /// With the sequence `n` further; the wrap stays inside its field.
    fn advanced(self, n: u64) -> u64 {
        self.0 & !Self::SEQ_MASK | self.0.wrapping_add(Self::SEQ * n) & Self::SEQ_MASK
    }
}

/// The word that packets change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hot(u64);

impl Hot {
    fn new(id: u32, protocol: u8, state: State, seen: Millis) -> Self {
        let id = u64::from(id & 0xffff) << 16;
        Self(u64::from(seen.0) << 32 | id | u64::from(protocol) << 8 | u64::from(state.bits()))
    }

    #[inline]
    pub(super) fn last_seen(self) -> Millis {
        Millis(high32(self.0))
    }

    #[inline]
    pub(super) fn state(self) -> State {
        State::from_bits(byte(self.0, 0))
    }

    #[inline]
    fn protocol(self) -> u8 {
        byte(self.0, 8)
    }

    pub(super) fn with_state(self, state: State) -> Self {
        Self(self.0 & !0xff | u64::from(state.bits()))
    }

    pub(super) fn with_last_seen(self, seen: Millis) -> Self {
        Self(self.0 & 0xffff_ffff | u64::from(seen.0) << 32)
    }
}

/// One direction of one flow; see the module for the layout.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Slot<F: Family> {
    head: AtomicU64,
    hot: AtomicU64,
    link: AtomicU64,
    rewrite: AtomicU64,
    out: AtomicU64,
    verdict: AtomicU64,
    key: F::Cells,
    to: F::Cells,
}

const _: () = assert!(size_of::<Slot<V4>>() == 64, "an IPv4 entry is one cache line");
const _: () = assert!(size_of::<Slot<V6>>() == 128, "an IPv6 entry is two cache lines");

impl<F: Family> Default for Slot<F> {
    fn default() -> Self {
        Self {
            head: AtomicU64::default(),
            hot: AtomicU64::default(),
            link: AtomicU64::default(),
            rewrite: AtomicU64::default(),
            out: AtomicU64::default(),
            verdict: AtomicU64::default(),
            key: F::Cells::default(),
            to: F::Cells::default(),
        }
    }
}

/// All of an entry, read at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) head: Head,
    pub(super) hot: Hot,
    pub(super) partner: u32,
    pub(super) key: FlowKey,
    pub(super) transform: Transform,
    pub(super) generation: u32,
}

/// What [`Slot::write`] fills an entry with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill<'a> {
    pub(super) id: u32,
    pub(super) reply: bool,
    pub(super) partner: u32,
    pub(super) key: &'a FlowKey,
    pub(super) transform: &'a Transform,
    pub(super) generation: u32,
    pub(super) state: State,
    pub(super) now: Millis,
}

impl<F: Family> Slot<F> {
    #[inline]
    pub(super) fn head(&self) -> Head {
        Head(self.head.load(Ordering::Acquire))
    }

    #[inline]
    pub(super) fn hot(&self) -> Hot {
        Hot(self.hot.load(Ordering::Acquire))
    }

    /// Index of the other direction's entry. Means something only while the head stays the same.
    #[inline]
    pub(super) fn partner(&self) -> u32 {
        low32(self.link.load(Ordering::Acquire))
    }

    /// Whether the entry belongs to flow `id`, and is in use.
    #[inline]
    pub(super) fn is(&self, id: u32) -> bool {
        let head = self.head();
        head.is_live() && head.id() == id
    }

    /// Changes the hot word if it is still `from`.
    pub(super) fn swap_hot(&self, from: Hot, to: Hot) -> bool {
        self.hot.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Writes when the last packet was seen, if the hot word is still `from`. `alone`: the caller is the only thread that
    /// writes hot words, so that it is.
    #[inline]
    pub(super) fn see(&self, from: Hot, now: Millis, alone: bool) -> bool {
        let to = from.with_last_seen(now);
        if alone {
            self.hot.store(to.0, Ordering::Relaxed);
            return true;
        }
        self.swap_hot(from, to)
    }

    /// The hit for `key`, if the entry is steady under `head` and holds that key. `index` is the entry's own.
    #[inline]
    pub(super) fn read_hit(&self, head: Head, key: &Packed<F>, index: u32) -> Option<(Hit, Hot)> {
        let hot = Hot(self.hot.load(Ordering::Relaxed));
        let link = self.link.load(Ordering::Relaxed);
        let same = (high32(link) == key.ports)
            & (hot.protocol() == key.protocol)
            & F::same(F::load(&self.key), key.addrs)
            & head.is_steady();
        if !same {
            return None;
        }
        let (transform, generation) = self.load_transform(head);
        fence(Ordering::Acquire);
        if self.head.load(Ordering::Relaxed) != head.0 {
            return None;
        }
        let at = FlowRef { slot: index, id: head.id(), v6: F::V6 };
        Some((Hit { at, transform, generation, reply: head.is_reply(), state: hot.state().public() }, hot))
    }

    /// As [`Slot::read_hit`], trying again while another worker writes the entry.
    pub(super) fn find(&self, key: &Packed<F>, index: u32) -> Option<(Hit, Hot)> {
        for _ in 0..READ_TRIES {
            let head = self.head();
            if let Some(hit) = self.read_hit(head, key, index) {
                return Some(hit);
            }
            if head.is_steady() && self.head() == head || !head.is_live() {
                return None;
            }
            core::hint::spin_loop();
        }
        None
    }

    /// The whole entry, if in use.
    pub(super) fn read(&self) -> Option<Entry> {
        for _ in 0..READ_TRIES {
            let head = self.head();
            if !head.is_live() {
                return None;
            }
            if head.is_steady() {
                let hot = Hot(self.hot.load(Ordering::Relaxed));
                let link = self.link.load(Ordering::Relaxed);
                let (src, dst) = F::unpack(F::load(&self.key));
                let (transform, generation) = self.load_transform(head);
                fence(Ordering::Acquire);
                if self.head.load(Ordering::Relaxed) == head.0 {
                    let [.., dport, sport] = quarters(link);
                    let key = FlowKey { src, dst, sport, dport, proto: hot.protocol() };
                    return Some(Entry { head, hot, partner: low32(link), key, transform, generation });
                }
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Transform and generation.
    #[inline]
    fn load_transform(&self, head: Head) -> (Transform, u32) {
        let (src, dst) = F::unpack(F::load(&self.to));
        let [sport, dport, l3_delta, l4_delta] = quarters(self.rewrite.load(Ordering::Relaxed));
        let [egress, tunnel, next_hop, mtu] = quarters(self.out.load(Ordering::Relaxed));
        let verdict = self.verdict.load(Ordering::Relaxed);
        let [.., egress_rule, ingress_rule] = quarters(verdict);
        let rules = Rules { egress: egress_rule, ingress: ingress_rule };
        let bits = head.transform_bits();
        let egress = PortId(egress);
        let transform = Transform {
            src,
            dst,
            sport,
            dport,
            l3_delta,
            l4_delta,
            egress,
            tunnel,
            next_hop,
            mtu,
            rules,
            bits,
        };
        (transform, low32(verdict))
    }

    fn store_transform(&self, t: &Transform, generation: u32) {
        F::store(&self.to, F::pack(t.src, t.dst));
        self.rewrite.store(join16([t.sport, t.dport, t.l3_delta, t.l4_delta]), Ordering::Relaxed);
        self.out.store(join16([t.egress.0, t.tunnel, t.next_hop, t.mtu]), Ordering::Relaxed);
        let rules = u32::from(t.rules.ingress) << 16 | u32::from(t.rules.egress);
        self.verdict.store(join(rules, generation), Ordering::Relaxed);
    }

    /// Fills the entry. The caller holds the claim of its bucket, and makes the tag afterwards.
    pub(super) fn write(&self, fill: &Fill<'_>) {
        let old = Head(self.head.load(Ordering::Relaxed));
        self.head.store(old.advanced(1) & !Head::LIVE | Head::SEQ, Ordering::Relaxed);
        fence(Ordering::Release);
        let key = Packed::<F>::new(fill.key);
        F::store(&self.key, key.addrs);
        self.link.store(join(key.ports, fill.partner), Ordering::Relaxed);
        self.store_transform(fill.transform, fill.generation);
        let hot = Hot::new(fill.id, fill.key.proto, fill.state, fill.now);
        self.hot.store(hot.0, Ordering::Release);
        let flags = Head::LIVE | if fill.reply { Head::REPLY } else { 0 };
        let bits = u64::from(fill.transform.bits) << Head::BITS_SHIFT;
        let new = u64::from(fill.id) << 32 | old.advanced(2) & Head::SEQ_MASK | bits | flags;
        self.head.store(new, Ordering::Release);
    }

    /// Makes readers wait for [`Slot::rewrite`]. The caller holds the claim of the bucket.
    pub(super) fn begin_rewrite(&self) {
        let head = Head(self.head.load(Ordering::Relaxed));
        self.head.store(head.advanced(1), Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Replaces transform and generation after [`Slot::begin_rewrite`].
    pub(super) fn rewrite(&self, t: &Transform, generation: u32) {
        self.store_transform(t, generation);
        let head = Head(self.head.load(Ordering::Relaxed));
        let bits = 0xff << Head::BITS_SHIFT;
        self.head.store(head.advanced(1) & !bits | u64::from(t.bits) << Head::BITS_SHIFT, Ordering::Release);
    }

    /// Takes the entry out of use. The caller holds the claim of its bucket, and clears the tag.
    pub(super) fn kill(&self) {
        let head = Head(self.head.load(Ordering::Relaxed));
        self.head.store(head.advanced(2) & !(Head::LIVE | Head::REPLY), Ordering::Release);
    }
}

#[inline]
fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// Four halfwords in a word, the first one lowest.
#[inline]
fn join16([a, b, c, d]: [u16; 4]) -> u64 {
    u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the parts of the word are what is wanted")]
fn quarters(word: u64) -> [u16; 4] {
    [word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16]
}

#[inline]
fn high32(word: u64) -> u32 {
    (word >> 32) as u32
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low32(word: u64) -> u32 {
    word as u32
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low(word: u128) -> u64 {
    word as u64
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "one byte of the word is what is wanted")]
fn byte(word: u64, shift: u32) -> u8 {
    (word >> shift) as u8
}
