//! The node's own sockets: what one of them waits for is never ours.
//!
//! The kernel gives no port of the SNAT range to a new connection, but those opened before the daemon keep
//! theirs, and a program may ask for one by number.

use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::bindings::{bpf_sock_tuple, xdp_md};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};

use crate::parse::{Address, TCP, UDP};

/// The network namespace of the receiving device (`BPF_F_CURRENT_NETNS`).
const HERE: u64 = u64::MAX;
/// `TCP_LISTEN` of `enum tcp_state`.
const LISTEN: u32 = 10;

/// One end of a connection; the port in network order, as read.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) addr: Address,
    pub(crate) port: u16,
}

/// The first 12 (IPv4) or all 36 (IPv6) bytes of the kernel's `bpf_sock_tuple`, as words.
#[repr(C, align(4))]
struct Tuple([u16; 18]);

const _: () = assert!(size_of::<Tuple>() == size_of::<bpf_sock_tuple>());

/// Whether the node has a socket that takes what `remote` sends to `local`. A listening one takes only what
/// `opens` a connection.
#[inline(always)]
pub(crate) fn taken(ctx: *mut xdp_md, v4: bool, proto: u8, remote: End, local: End, opens: bool) -> bool {
    let (mut tuple, len) = tuple(v4, remote, local);
    let (ctx, at) = (ctx.cast::<c_void>(), (&raw mut tuple).cast::<bpf_sock_tuple>());
    match proto {
        TCP => {
            // SAFETY: `at` is `len` initialised bytes that live through the call.
            let socket = unsafe { bpf_skc_lookup_tcp(ctx, at, len, HERE, 0) };
            if socket.is_null() {
                return false;
            }
            // SAFETY: not null, and referenced until it is released: once, on the next line.
            unsafe {
                let state = (*socket).state;
                bpf_sk_release(socket.cast());
                state != LISTEN || opens
            }
        }
        UDP => {
            // SAFETY: as above.
            let socket = unsafe { bpf_sk_lookup_udp(ctx, at, len, HERE, 0) };
            if socket.is_null() {
                return false;
            }
            // SAFETY: not null, and released once.
            unsafe { bpf_sk_release(socket.cast()) };
            true
        }
        // There is no way to ask.
        _ => false,
    }
}

#[inline(always)]
fn tuple(v4: bool, from: End, to: End) -> (Tuple, u32) {
    let mut words = [0u16; 18];
    if v4 {
        words[..2].copy_from_slice(&[from.addr[6], from.addr[7]]);
        words[2..4].copy_from_slice(&[to.addr[6], to.addr[7]]);
        (words[4], words[5]) = (from.port, to.port);
        (Tuple(words), 12)
    } else {
        words[..8].copy_from_slice(&from.addr);
        words[8..16].copy_from_slice(&to.addr);
        (words[16], words[17]) = (from.port, to.port);
        (Tuple(words), 36)
    }
}
