//! Tables the nodes look things up in.
#![forbid(unsafe_code)]

pub mod lpm;

pub use lpm::{Lpm, Prefix};
