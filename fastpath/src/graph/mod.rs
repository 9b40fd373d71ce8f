//! The vector of packets, the order of the nodes, drop reasons, runtime counters.
#![forbid(unsafe_code)]

pub mod drop;

pub use drop::DropReason;
