//! The two XDP programs of the dataplane: `endpoint` for pod and host ports, `uplink` for the pinhole.
//!
//! Both end the same way (`deliver`): a frame of ours goes to the AF_XDP socket of its (device, queue);
//! when the daemon's heartbeat is stale or the queue has no socket, `on_failure` decides.
#![no_std]
#![no_main]

#[expect(dead_code, unreachable_pub, reason = "the file is the loader's too")]
#[path = "../../src/abi.rs"]
mod abi;
mod frame;
mod maps;
mod parse;
mod pinhole;
mod sockets;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use abi::{ON_FAILURE_PASS, Outcome, PROGRAM_ENDPOINT, PROGRAM_UPLINK, SocketKey};
use frame::{Ethernet, Frame, Vlan};

const ETH_IPV4: u16 = 0x0800;
const ETH_ARP: u16 = 0x0806;
const ETH_8021Q: u16 = 0x8100;
const ETH_IPV6: u16 = 0x86dd;
const ETH_8021AD: u16 = 0x88a8;

/// Pod and host ports: every IPv4, IPv6 and ARP frame is ours.
#[xdp]
pub(crate) fn endpoint(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let Some(ethernet) = frame.at::<Ethernet>(0) else {
        maps::count(PROGRAM_ENDPOINT, Outcome::Malformed);
        return XDP_DROP;
    };
    match u16::from_be(ethernet.ethertype) {
        ETH_IPV4 | ETH_IPV6 | ETH_ARP => deliver(&ctx, PROGRAM_ENDPOINT),
        ETH_8021Q | ETH_8021AD => {
            // The kernel strips VLAN 0 (a priority tag) and takes the rest as untagged: a pod could
            // reach the host's stack, past its policies. Other VLANs end there, for want of a device.
            let (outcome, action) = match frame.at::<Vlan>(14) {
                Some(tag) if u16::from_be(tag.control) & 0x0fff != 0 => (Outcome::PassedVlan, XDP_PASS),
                Some(_) => (Outcome::DroppedVlan0, XDP_DROP),
                None => (Outcome::Malformed, XDP_DROP),
            };
            maps::count(PROGRAM_ENDPOINT, outcome);
            action
        }
        _ => {
            maps::count(PROGRAM_ENDPOINT, Outcome::PassedNotOurs);
            XDP_PASS
        }
    }
}

/// Uplink: only what the pinhole names is ours, everything else is the kernel's, but for what the kernel
/// would take for ours and forward past us.
#[xdp]
pub(crate) fn uplink(ctx: XdpContext) -> u32 {
    match pinhole::classify(&Frame::new(&ctx)) {
        Ok(class) => {
            maps::count(PROGRAM_UPLINK, class);
            deliver(&ctx, PROGRAM_UPLINK)
        }
        Err(why) => {
            maps::count(PROGRAM_UPLINK, why);
            if why == Outcome::DroppedVlan0 { XDP_DROP } else { XDP_PASS }
        }
    }
}

/// A frame of ours: to its socket, or where `on_failure` says.
#[inline(always)]
fn deliver(ctx: &XdpContext, program: u32) -> u32 {
    let Some(config) = maps::config() else { return XDP_DROP };
    let pass = config.on_failure == ON_FAILURE_PASS;
    let fallback = if pass { XDP_PASS } else { XDP_DROP };

    let beat = maps::heartbeat();
    if beat == 0 || maps::now().saturating_sub(beat) > config.stale_after_ns {
        maps::count(program, if pass { Outcome::StalePassed } else { Outcome::StaleDropped });
        return fallback;
    }

    // SAFETY: the context is the kernel's and valid for the whole run.
    let key = unsafe { SocketKey { ifindex: (*ctx.ctx).ingress_ifindex, queue: (*ctx.ctx).rx_queue_index } };
    let action = match maps::slot(key) {
        Some(slot) => maps::SOCKETS.redirect(slot, u64::from(fallback)).unwrap_or(fallback),
        None => fallback,
    };
    maps::count(
        program,
        match action {
            XDP_REDIRECT => Outcome::Redirected,
            XDP_PASS => Outcome::NoSocketPassed,
            _ => Outcome::NoSocketDropped,
        },
    );
    action
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
