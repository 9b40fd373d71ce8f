//! Tables the nodes look things up in.
#![deny(unsafe_code)]

pub mod flow;
pub mod lpm;

pub use lpm::{Lpm, Prefix};
