//! The kernel's network configuration, read and changed in network namespaces made for the test. Needs root.
#![expect(
    clippy::unwrap_used,
    reason = "a test may panic; clippy exempts only the test functions themselves"
)]

mod follow;
mod lab;
mod neighbors;
mod peers;
mod prepared;
mod reserved;
mod routes;
