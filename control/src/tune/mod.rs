//! `fastpath tune`: a configuration for this machine, with the reason for each value.
//!
//! | Module | Holds |
//! |---|---|
//! | `machine` | what is looked at: cores, memory, uplinks; and where it is read |
//! | `advise` | facts to settings: pure |
//! | `cores` | which cores get a worker |
//! | `profile` | the ready profiles of `configs/profiles` |
//! | `print` | settings as a configuration file |
//!
//! Nothing is written and nothing is changed. What cannot be read is said, and left at its default.
#![forbid(unsafe_code)]

mod advise;
mod cores;
mod machine;
mod print;
mod profile;

#[cfg(test)]
mod tests;

pub use advise::advise;
pub use machine::{Core, Machine, Nic};
pub use print::toml;
pub use profile::Profile;

/// One key of the configuration, and why it has its value.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// Section, as `memory`.
    pub section: String,
    /// Key, as `rx_ring`.
    pub key: String,
    /// Value, as TOML writes it.
    pub value: String,
    /// Why, one or more sentences.
    pub reason: String,
}
