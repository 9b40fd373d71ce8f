//! Descriptors whose packet begins anywhere in a frame.
//!
//! xsk-rs 0.11 hands out a `FrameDesc` per frame and has no call to move its address, which is what sending
//! from a moved start (an outer header pushed into the headroom) takes. The type is `Copy` and all integers
//! (an address, options, two lengths); its fields are readable by methods but private. So the places of the
//! address and the length are found once, by writing a number at each place of a copy and asking the methods
//! which value became that number, and descriptors are then made by writing there. A fork of xsk-rs for
//! one constructor is the alternative; when upstream grows one, this file goes.
#![allow(unsafe_code, reason = "see the module's text")]

use xsk_rs::FrameDesc;

/// Byte offsets of the fields of a `FrameDesc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DescLayout {
    addr: usize,
    len: usize,
}

/// What the methods of a descriptor say: address, data length, headroom length, options.
fn fields(desc: &FrameDesc) -> [usize; 4] {
    [desc.addr(), desc.lengths().data(), desc.lengths().headroom(), desc.options() as usize]
}

/// Writes a `usize` at `offset` of a descriptor. Offsets that are unaligned or out of bounds write nothing.
#[inline]
fn write(desc: &mut FrameDesc, offset: usize, value: usize) {
    if offset.is_multiple_of(align_of::<usize>()) && offset <= size_of::<FrameDesc>() - size_of::<usize>() {
        // SAFETY: in bounds and aligned by the check. xsk-rs is pinned to 0.11, whose FrameDesc has three usize
        // and one u32 and so is valid whatever its bytes are; nothing is read here, padding least of all.
        unsafe { core::ptr::from_mut(desc).byte_add(offset).cast::<usize>().write(value) };
    }
}

impl DescLayout {
    /// Finds the layout, and verifies it on `samples`, descriptors made by xsk-rs itself.
    ///
    /// `None` when address or length are not in exactly one place each, and then nothing may be sent.
    pub(super) fn find(samples: &[FrameDesc]) -> Option<Self> {
        if size_of::<FrameDesc>() != 32 || align_of::<FrameDesc>() != align_of::<usize>() {
            return None;
        }
        let layout = Self { addr: Self::place(0)?, len: Self::place(1)? };
        let verified = samples.iter().all(|sample| {
            let [addr, len, headroom, options] = fields(sample);
            let moved = addr ^ 0x5_a5a5;
            let made = layout.desc(moved, len + 77);
            fields(&made) == [moved, len + 77, headroom, options]
                && fields(&layout.desc(addr, len)) == fields(sample)
        });
        verified.then_some(layout)
    }

    /// The one offset where writing a number changes field `which` to it, and no other field.
    fn place(which: usize) -> Option<usize> {
        let mut found = None;
        for offset in (0..size_of::<FrameDesc>()).step_by(align_of::<usize>()) {
            let hit = [0x1234_5678, 0x0fed_cba9].into_iter().filter(|&probe| {
                let mut desc = FrameDesc::default();
                write(&mut desc, offset, probe);
                let mut want = fields(&FrameDesc::default());
                if let Some(field) = want.get_mut(which) {
                    *field = probe;
                }
                fields(&desc) == want
            });
            match hit.count() {
                0 => {}
                2 if found.is_none() => found = Some(offset),
                _ => return None,
            }
        }
        found
    }

    /// A descriptor for `len` bytes at `addr` from the region's start.
    #[inline]
    pub(super) fn desc(self, addr: usize, len: usize) -> FrameDesc {
        let mut desc = FrameDesc::default();
        write(&mut desc, self.addr, addr);
        write(&mut desc, self.len, len);
        desc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_found_and_writes_what_is_read() {
        let layout = DescLayout::find(&[FrameDesc::default()]).unwrap();
        assert_ne!(layout.addr, layout.len);
        for (addr, len) in [(0, 0), (256, 60), (usize::MAX, usize::MAX), (4096 + 206, 1550)] {
            assert_eq!(fields(&layout.desc(addr, len)), [addr, len, 0, 0]);
        }
    }

    #[test]
    fn wrong_samples_are_refused() {
        let mut odd = FrameDesc::default();
        odd.set_options(1);
        assert_eq!(DescLayout::find(&[odd]), None);
    }

    #[test]
    fn writes_outside_the_descriptor_do_nothing() {
        let mut desc = FrameDesc::default();
        for offset in [1, 4, 25, 32, 40, usize::MAX - 7, usize::MAX] {
            write(&mut desc, offset, 7);
        }
        assert_eq!(fields(&desc), [0; 4]);
    }
}
