//! A real Kubernetes API server for tests: etcd and kube-apiserver as processes of their own, and a client.
//!
//! The programs are those of `KUBEBUILDER_ASSETS` when it is set, else those that `scripts/lib/kube.sh` built into
//! `target/kube/bin`. Everything a server writes is in a folder of its own, everything it listens on is in the network
//! namespace it is started in, and what it started ends with it.
//!
//! | Module | Holds |
//! |---|---|
//! | `server` | the processes: started, killed, restarted, ended on drop |
//! | `client` | objects applied and deleted, from a thread inside the server's namespace |
//! | `load` | a cluster of thousands of objects |
#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod client;
pub(crate) mod load;
pub(crate) mod server;

pub(crate) use server::{INSTALL, Options, Server};
