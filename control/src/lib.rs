//! The control side of the fastpath dataplane: sources, model, compile, publish, attach, CLI.
//!
//! | Module | Holds |
//! |---|---|
//! | [`config`] | the configuration file |
//! | [`source`] | where the model comes from: the Kubernetes API, or a folder of manifests |
//! | [`model`] | the world as the dataplane sees it |
//! | [`lines`] | the line each part of a manifest stands on |
//! | [`explain`] | what becomes of a connection, and why |
//! | [`lint`] | what policies say that cannot be meant |
//! | [`netdev`] | the kernel's links, routes and neighbours; preparing devices |
//! | [`compile`] | model and kernel view in, snapshot out: pure |
//! | [`attach`] | devices become ports |
//! | [`daemon`] | `fastpath run` |
//! | [`http`] | the HTTP server: health, metrics, health checks of services |
//! | [`metrics`] | what is counted, in the formats Prometheus reads |
//! | [`doctor`] | `fastpath doctor`: may this node be switched over? |
//! | [`tune`] | `fastpath tune`: a configuration for this machine |
//! | [`install`] | `fastpath install-cni` |
//! | [`api`] | the daemon's unix socket: server, client, types |
//! | [`cli`] | the command line |
//! | [`cni`] | the CNI plugin |
//! | [`logging`] | the daemon's log |

pub mod api;
pub mod attach;
pub mod cli;
pub mod cni;
pub mod compile;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod explain;
pub mod http;
pub mod install;
pub mod lines;
pub mod lint;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod netdev;
pub mod source;
pub mod tune;
