//! One file per graph node, all of one shape: what and where, counters, state, `one`, tests.
#![forbid(unsafe_code)]

mod decap;
mod encap;
mod flow;
mod fragment;
mod icmp;
mod neighbor;
mod parse;
mod policy;
mod punt;
mod rewrite;
mod route;
mod service;
mod snat;
mod source;
mod too_big;

pub use decap::Decap;
pub use encap::Encap;
pub use flow::Flow;
pub use fragment::Fragment;
pub use icmp::Icmp;
pub use neighbor::Neighbor;
pub use parse::Parse;
pub use policy::Policy;
pub use punt::Punt;
pub use rewrite::Rewrite;
pub use route::Route;
pub use service::Service;
pub use snat::Snat;
pub use source::Source;
