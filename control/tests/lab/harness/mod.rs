//! The lab: nodes and pods as network namespaces, an underlay between them, one daemon per node.

pub(crate) mod apply;
pub(crate) mod cli;
pub(crate) mod daemon;
pub(crate) mod kernel;
pub(crate) mod lab;
pub(crate) mod manifest;
pub(crate) mod mirror;
pub(crate) mod node;
pub(crate) mod ns;
pub(crate) mod object;
pub(crate) mod overlay;
pub(crate) mod pod;
pub(crate) mod spec;
