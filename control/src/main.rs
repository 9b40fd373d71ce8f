//! The `fastpath` binary.
#![forbid(unsafe_code)]

fn main() {}
