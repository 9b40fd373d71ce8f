//! XDP programs that hand frames to AF_XDP sockets, and their loader.
//!
//! - [`abi`], [`abi_outbox`], [`abi_traffic`]: map layouts, the contract between loader and programs.
//! - `object`: the compiled programs, and their maps made with the configured sizes.
//! - [`redirect`]: [`Redirect`], what the daemon holds: load, attach, beat, counters, shut down.
//! - [`attach`]: native mode with fallback to generic, links pinned, taken over, detached.
//! - `pins`: the folder on a BPF file system that keeps links beyond the process.
//! - [`device`]: what the kernel says of a device: name, MTU, attached program and its mode.
//! - [`pinhole`]: which of the uplink's frames are ours, as desired state, kept in step with the maps.
//! - `sockets`: slots of the socket map by (device, queue).
//! - [`outbox`]: the program by which a worker sends to many devices at once.
//! - [`generator`]: live-frame packet generator and counting sink for tests and benches.
//! - [`error`]: what can go wrong, and what to do then.
//!
//! The programs are in `ebpf/`, a workspace of its own; `scripts/build-xdp.sh` compiles them into
//! `obj/`, which is committed.

pub mod abi;
pub mod abi_outbox;
pub mod abi_traffic;
pub mod attach;
pub mod device;
pub mod error;
pub mod generator;
mod object;
pub mod outbox;
pub mod pinhole;
mod pins;
pub mod redirect;
mod sockets;

pub use attach::{Mode, ModeRequest, Role};
pub use error::XdpError;
pub use pinhole::{Endpoint, Pinhole, Prefix, SnatPorts, Tunnel};
pub use redirect::{Counter, Heartbeat, LoadConfig, OnFailure, Redirect};
