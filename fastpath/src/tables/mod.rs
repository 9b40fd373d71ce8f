//! Tables the nodes look things up in.
#![deny(unsafe_code)]

pub mod affinity;
pub mod flow;
pub mod frag;
pub mod lpm;
pub mod maglev;
pub mod policy;
pub mod service;

pub use lpm::{Lpm, Prefix};
