//! Traffic for tests and benches: `generate` sends live frames, `count` counts and drops them.
#![no_std]
#![no_main]

#[expect(unreachable_pub, reason = "the file is the loader's too")]
#[path = "../../src/abi_traffic.rs"]
mod abi_traffic;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::XdpContext;

use abi_traffic::{SinkCount, TEMPLATE_BYTES, Template};

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
#[map]
static SEQUENCE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SINK: PerCpuArray<SinkCount> = PerCpuArray::with_max_entries(1, 0);

/// Run by the loader on live frames only: writes the template over the frame's start, makes it the
/// next flow's, and sends it from the device.
///
/// Frames are recycled with what their receivers left in them, hence the rewriting.
#[xdp]
pub(crate) fn generate(ctx: XdpContext) -> u32 {
    let Some(template) = TEMPLATE.get(0) else { return XDP_ABORTED };
    let (start, end) = (ctx.data(), ctx.data_end());
    for i in 0..TEMPLATE_BYTES / 8 {
        let at = start + i * 8;
        if i >= template.count as usize || at + 8 > end {
            break;
        }
        // SAFETY: inside the frame by the check above; a live frame starts at a multiple of 8.
        unsafe { *(at as *mut u64) = template.words[i] };
    }
    if template.flows > 1 {
        vary(template, start, end);
    }
    XDP_TX
}

#[inline(always)]
fn vary(template: &Template, start: usize, end: usize) {
    let Some(sequence) = SEQUENCE.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's value, and bottom halves are off.
    let flow = unsafe {
        let n = *sequence;
        *sequence = n.wrapping_add(1);
        (n % u64::from(template.flows)) as u32
    };
    let ports = if template.ports == 0 { 1 } else { template.ports };
    let mut addr_delta = 0;
    if template.addr_offset != 0 {
        let old = template.addr;
        let new = old.wrapping_add(flow / ports);
        put(start, end, template.addr_offset, (new >> 16) as u16);
        put(start, end, template.addr_offset + 2, new as u16);
        addr_delta = delta((old >> 16) as u16, (new >> 16) as u16) + delta(old as u16, new as u16);
    }
    let mut port_delta = 0;
    if template.port_offset != 0 {
        let new = template.port.wrapping_add((flow % ports) as u16);
        put(start, end, template.port_offset, new);
        port_delta = delta(template.port, new);
    }
    if template.ip_sum_offset != 0 {
        put(start, end, template.ip_sum_offset, fold(template.ip_sum, addr_delta));
    }
    if template.l4_sum_offset != 0 {
        let sum = fold(template.l4_sum, addr_delta + port_delta);
        // UDP sends a sum of zero as its other form (RFC 768); the others do not mind.
        put(start, end, template.l4_sum_offset, if sum == 0 { 0xffff } else { sum });
    }
}

/// Adds `~old + new` (RFC 1624 eqn. 3) to the running sum.
#[inline(always)]
fn delta(old: u16, new: u16) -> u32 {
    u32::from(!old) + u32::from(new)
}

#[inline(always)]
fn fold(sum: u16, delta: u32) -> u16 {
    let mut total = u32::from(!sum) + delta;
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

/// Writes `value` in network order at `offset`.
#[inline(always)]
fn put(start: usize, end: usize, offset: u16, value: u16) {
    // The mask is for the verifier: templates have less than 1024 bytes of headers.
    let at = start + (usize::from(offset) & 0x3ff);
    if at + 2 <= end {
        // SAFETY: inside the frame by the check above; the loader gives even offsets.
        unsafe { *(at as *mut u16) = value.to_be() };
    }
}

/// Counts the frame and drops it.
#[xdp]
pub(crate) fn count(ctx: XdpContext) -> u32 {
    if let Some(sink) = SINK.get_ptr_mut(0) {
        // SAFETY: this CPU's value, and bottom halves are off.
        unsafe {
            (*sink).frames += 1;
            (*sink).bytes += (ctx.data_end() - ctx.data()) as u64;
        }
    }
    XDP_DROP
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
