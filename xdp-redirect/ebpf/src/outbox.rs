//! Sends what user space put into the outbox: `send`, run on live frames, one packet a run.
#![no_std]
#![no_main]

#[expect(unreachable_pub, reason = "the file is the loader's too")]
#[path = "../../src/abi_outbox.rs"]
mod abi_outbox;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_xdp_adjust_tail, bpf_xdp_store_bytes};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;

use abi_outbox::{LONGEST, SHORTEST, SLOTS, Slot};

/// BPF_F_MMAPABLE
const MAPPED: u32 = 1 << 10;

#[map]
static OUTBOX: Array<Slot> = Array::with_max_entries(SLOTS + 1, MAPPED);

/// Makes the frame the outbox's next packet and sends it from that packet's device.
///
/// One thread runs it (`BPF_PROG_TEST_RUN`), on an object of its own: nothing here is shared. A device that is
/// not there, is down or takes no redirected frames loses the packet.
#[xdp]
pub(crate) fn send(ctx: XdpContext) -> u32 {
    let Some(order) = OUTBOX.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: a map's value is there for as long as the program runs; user space writes it between runs. The entry's
    // data has room for as many numbers as there are slots, and is at an even address.
    let next = unsafe {
        let sent = (*order).ifindex;
        (*order).ifindex = sent.wrapping_add(1);
        let numbers = (&raw const (*order).data).cast::<u16>();
        u32::from(*numbers.add((sent & (SLOTS - 1)) as usize))
    };
    if next == 0 {
        return XDP_DROP;
    }
    let Some(slot) = OUTBOX.get_ptr(next) else { return XDP_DROP };
    // SAFETY: as above.
    let (ifindex, len) = unsafe { ((*slot).ifindex, (*slot).len & LONGEST as u32) };
    if len < SHORTEST as u32 {
        return XDP_DROP;
    }
    let had = (ctx.data_end() - ctx.data()) as i32;
    let delta = len as i32 - had;
    // SAFETY: (both calls) the context is the one that the kernel gave; the slot's data has more than `len` bytes.
    unsafe {
        if delta != 0 && bpf_xdp_adjust_tail(ctx.ctx, delta) != 0 {
            return XDP_DROP;
        }
        if bpf_xdp_store_bytes(ctx.ctx, 0, (&raw const (*slot).data).cast_mut().cast(), len) != 0 {
            return XDP_DROP;
        }
        bpf_redirect(ifindex, 0) as u32
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
