//! The lab benchmark.
#![forbid(unsafe_code)]

fn main() {}
