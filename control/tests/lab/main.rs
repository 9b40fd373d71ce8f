//! Lab tests: real veths, real sockets, real daemons, in network namespaces. They need root.
//!
//! `scripts/test.sh --lab NAME` runs one of them. A lab (`harness`) is made from a spec: nodes and pods are
//! namespaces, an underlay joins the nodes, each node of ours runs the daemon this workspace builds, the
//! others are Linux alone. `traffic` talks between them. Labs name everything by the process that made
//! them, so that several can run side by side; whatever happens, they leave nothing behind.
//!
//! With `FASTPATH_LAB_SOURCE=kubernetes` (`scripts/test.sh --lab-by-api`) the daemons follow a real API server that runs
//! in the underlay, and what tests write to the folder is applied to it.
//!
//! | Module | Shows |
//! |---|---|
//! | `selftest` | the helpers themselves, over the kernel's own forwarding |
//! | `forwarding` | everybody reaches everybody: encapsulations, families, sizes, 1 GB, checksums, workers |
//! | `interop` | a node of ours and a node of Linux alone in one overlay |
//! | `errors` | TTL, unreachable, too big, path MTU, ARP and NDP |
//! | `security` | what may not pass is dropped by name |
//! | `pinhole` | the node's own traffic, whatever becomes of the daemon |
//! | `lifecycle` | restart, graceful stop, several daemons |
//! | `churn` | pods, routes and neighbours that come and go under traffic; 100 pods |
//! | `by_api` | a real API server as the source: away, killed, back |
//! | `manifests` | the folder of YAML: changes, mistakes |
//! | `cli` | exit codes, JSON, help |
//! | `conformance` | NetworkPolicy: everybody asks everybody under many sets of policies |
//! | `policy` | NetworkPolicy on flows that exist: revocation, refusal, counters |
//! | `counters` | what `show` and `explain` tell of policies and services |
//! | `service` | ClusterIP, node ports, external addresses; backends that come and go |
//! | `host` | the node's own processes: pods, services, node ports and host ports, both ways |
//! | `nat` | SNAT, ICMP errors and path MTU through translation, fragments |
//! | `mistakes` | what other dataplanes got wrong |
//! | `outbox` | full vectors, sent to many veths in one call |
//! | `cni` | the CNI plugin, as a runtime calls it |
//! | `operation` | health, metrics, health checks of services, uplinks by network, capabilities, doctor |
//! | `flood` | a SYN flood beside what is established |
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must say so and fail")]

#[path = "../apiserver/mod.rs"]
mod apiserver;
mod by_api;
mod churn;
mod cli;
mod cni;
mod conformance;
mod counters;
mod errors;
mod flood;
mod forwarding;
mod harness;
mod host;
mod interop;
mod lifecycle;
mod manifests;
#[path = "../../src/metrics/checker.rs"]
mod metrics_checker;
mod mistakes;
mod nat;
mod operation;
#[path = "../oracle/mod.rs"]
mod oracle;
mod outbox;
mod pinhole;
mod policy;
mod security;
mod selftest;
mod service;
mod traffic;
