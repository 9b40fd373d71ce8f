//! The packet path of the fastpath dataplane: bytes in, bytes out.
//!
//! ```text
//!  rx ─► parse ─► decap ─► source ─┬──────────────► flow ──hit───────────────► rewrite ─► encap ─► neighbor ─► tx
//!                                  └─► fragment ──┘ └─miss─► service ─► policy ─► snat ─► route ─(install flow)─┘
//!        punt (ARP, NDP, not ours)        icmp (TTL, too big, unreachable)        drop(reason)
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | [`io`] | the [`io::Port`] seam and its implementations: AF_XDP, memory, pcap |
//! | [`wire`] | packet formats: one file per protocol, checksums |
//! | [`packet`] | per-packet metadata, addresses, flow keys |
//! | [`graph`] | the vector of packets, the order of the nodes, drop reasons, runtime counters |
//! | [`nodes`] | one file per graph node |
//! | [`tables`] | flow table, services, policies, fragments, longest-prefix match |
//! | [`snapshot`] | what the control thread publishes: immutable tables of one generation |
//! | [`worker`] | the pinned loop: rx, graph, tx, sleep |
//! | [`engine`] | starts workers, publishes snapshots, moves ports |
//! | [`stats`] | single-writer counters read by the control thread |

pub mod engine;
pub mod graph;
pub mod io;
pub mod nodes;
pub mod packet;
pub mod snapshot;
pub mod stats;
pub mod tables;
#[cfg(any(test, feature = "testgen"))]
pub mod testbed;
pub mod wire;
pub mod worker;
