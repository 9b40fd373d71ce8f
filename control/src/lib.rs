//! The control side of the fastpath dataplane: sources, model, compile, publish, attach, CLI.

pub mod model;
pub mod netdev;
