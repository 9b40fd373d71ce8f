//! The memory of the table: large zeroed arrays on huge pages, and prefetching from them.
//!
//! The one file of the flow table with `unsafe`, for two hints to the machine that safe code cannot give, and for
//! comparing sixteen tags in one instruction.
//! Measured with `bench/benches/flow`, 1M IPv4 entries, batches of 256, TSC cycles a lookup, each pair in one
//! run: fetching entries by plain loads 86, by prefetch instructions 56, because a load that misses keeps its
//! place in the reorder buffer until the line is there; 4 KiB pages 55, huge pages 46, because nearly every entry
//! is a TLB miss; tags word by word 43, sixteen at once 38.
#![allow(unsafe_code, reason = "prefetch, madvise and SSE2; see the file's header")]

use core::ops::Deref;

/// A boxed slice, on 2 MiB pages as far as the kernel has them.
#[derive(Debug)]
pub(super) struct Array<T>(Box<[T]>);

impl<T: Default> Array<T> {
    /// `len` default values. Their memory is present afterwards: no packet meets a page fault.
    pub(super) fn new(len: usize) -> Self {
        let mut values: Vec<T> = Vec::with_capacity(len);
        advise(values.spare_capacity_mut());
        values.extend((0..len).map(|_| T::default()));
        Self(values.into_boxed_slice())
    }
}

impl<T> Array<T> {
    /// Starts to bring an element into the cache: all lines of it.
    #[inline]
    pub(super) fn prefetch(&self, index: usize) {
        if let Some(element) = self.0.get(index) {
            prefetch(element);
        }
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// Asks for huge pages, before the memory is first written. Refusal (kernel built or set without them) is fine.
fn advise<T>(memory: &mut [T]) {
    const PAGE: usize = 4096;
    let range = memory.as_mut_ptr_range();
    let start = range.start.map_addr(|a| a.next_multiple_of(PAGE));
    let len = (range.end.addr() & !(PAGE - 1)).saturating_sub(start.addr());
    if len == 0 || cfg!(miri) {
        return;
    }
    // SAFETY: the pages lie inside `memory`, which is exclusively ours during the call, and this advice changes
    // neither what they hold nor whether they may be accessed.
    let done = unsafe { rustix::mm::madvise(start.cast(), len, rustix::mm::Advice::LinuxHugepage) };
    // Without them the table works the same, slower.
    let _ = done;
}

/// Starts to bring a value into the cache: all lines of it.
#[inline]
pub(in crate::tables) fn prefetch<T>(element: &T) {
    const LINE: usize = 64;
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for line in 0..size_of::<T>().div_ceil(LINE) {
        let first = core::ptr::from_ref(element).cast::<i8>();
        // SAFETY: SSE is part of x86-64; the instruction is a hint that accesses nothing, and the address is inside
        // the element.
        unsafe {
            core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(first.add(line * LINE));
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (element, LINE);
}

/// Which of sixteen bytes, from the lowest of the first word on, are `byte`: one bit each.
#[inline]
#[cfg(target_arch = "x86_64")]
pub(super) fn equal_bytes([low, high]: [u64; 2], byte: u8) -> u32 {
    use core::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};
    // SAFETY: SSE2 is part of x86-64; these work on values alone.
    let mask = unsafe {
        let bytes = _mm_set_epi64x(high.cast_signed(), low.cast_signed());
        _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte.cast_signed())))
    };
    mask.cast_unsigned()
}

/// Which of sixteen bytes, from the lowest of the first word on, are `byte`: one bit each.
#[inline]
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn equal_bytes(words: [u64; 2], byte: u8) -> u32 {
    equal_bytes_portable(words, byte)
}

#[inline]
#[cfg(any(test, not(target_arch = "x86_64")))]
fn equal_bytes_portable([low, high]: [u64; 2], byte: u8) -> u32 {
    const LOW7: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let same = |word: u64| {
        let x = word ^ u64::from_le_bytes([byte; 8]);
        // The high bit of each byte that is zero; no carry between bytes.
        let zero = !(((x & LOW7) + LOW7) | x | LOW7);
        // Gathers the eight bits: each lands at a place of its own in the highest byte.
        let [.., bits] = (zero >> 7).wrapping_mul(0x0102_0408_1020_4080).to_le_bytes();
        u32::from(bits)
    };
    same(low) | same(high) << 8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equal_bytes_are_found(bytes: [u8; 16], pick in 0usize..16, other: u8, same: bool) {
            let byte = if same { bytes[pick] } else { other };
            let want = (0..16).filter(|i| bytes[*i] == byte).fold(0, |bits, i| bits | 1 << i);
            let (low, high) = bytes.split_at(8);
            let words = [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
            prop_assert_eq!(equal_bytes(words, byte), want);
            prop_assert_eq!(equal_bytes_portable(words, byte), want);
        }
    }
}
