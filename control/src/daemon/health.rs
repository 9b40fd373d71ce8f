//! What `/livez` and `/readyz` say of the running daemon.
#![forbid(unsafe_code)]

use fastpath::snapshot::PortRole;

use super::Daemon;
use crate::config::{SourceKind, XdpMode};
use crate::http::health::Check;
use crate::source::Source;
use crate::source::kubernetes::NodeReadiness;

/// What is told of a node whose daemon ends.
pub(super) fn stopped() -> NodeReadiness {
    let message = "the daemon was stopped".to_owned();
    NodeReadiness { ready: false, reason: "Stopped", message }
}

impl Daemon {
    /// Tells the source what `/readyz` says.
    pub(super) fn tell(&self, source: &Source) {
        if !self.config.source.node_condition {
            return;
        }
        let failed: Vec<String> = self
            .readyz()
            .into_iter()
            .filter_map(|check| Some(format!("{}: {}", check.name, check.failed?)))
            .collect();
        source.tell(if failed.is_empty() {
            NodeReadiness {
                ready: true,
                reason: "Forwarding",
                message: "all checks of /readyz pass".to_owned(),
            }
        } else {
            NodeReadiness { ready: false, reason: "NotForwarding", message: failed.join("; ") }
        });
    }

    /// Whether the process had better be started again. That this is asked at all shows that the control thread runs.
    pub(super) fn livez(&self) -> Vec<Check> {
        vec![Check::new("control", true, String::new), self.source_followed(), self.workers_pass()]
    }

    /// Whether this node forwards what it is to forward. What is wrong with single pods or objects is no part of it: the
    /// others are served all the same (`status` and the metrics tell).
    pub(super) fn readyz(&self) -> Vec<Check> {
        let node = self.update.model.nodes.contains_key(&self.node);
        let engine = &self.attacher.engine;
        vec![
            Check::new("node", node, || format!("no Node object {} in the source", self.node)),
            self.source_known(),
            self.uplink_attached(),
            Check::new("snapshot", self.snapshot.generation > 0 && engine.acked() > 0, || {
                let all = engine.workers();
                let have =
                    engine.stats().filter(|s| s.acked.load(std::sync::atomic::Ordering::Relaxed) > 0).count();
                format!("{have} of {all} workers forward by a snapshot")
            }),
            self.workers_pass(),
        ]
    }

    /// Whether the source is known, if only from before: without the API, forwarding goes on by its last state.
    fn source_known(&self) -> Check {
        if self.update.synced {
            return self.source_followed();
        }
        let state = self.source_state.borrow();
        Check::new("source", false, || match &state.error {
            Some(e) => format!("not read in full yet: {e}"),
            None => "not read in full yet".to_owned(),
        })
    }

    /// Whether the source's thread runs; a folder is followed by the control thread's own means.
    fn source_followed(&self) -> Check {
        Check::new("source", !self.source_ended(), || "its thread has ended: no change is seen".to_owned())
    }

    /// Whether nobody follows the API any more.
    pub(super) fn source_ended(&self) -> bool {
        let kubernetes = self.config.source.kind == SourceKind::Kubernetes;
        kubernetes && self.source_state.has_changed().is_err()
    }

    fn uplink_attached(&self) -> Check {
        let mut uplinks = self.attacher.attached().filter(|a| a.port.role == PortRole::Uplink).peekable();
        let problems = || match self.attach_problems.as_slice() {
            [] => "no uplink attached".to_owned(),
            problems => format!("no uplink attached: {}", problems.join("; ")),
        };
        if uplinks.peek().is_none() {
            return Check::new("uplink", false, problems);
        }
        let requested = self.config.xdp.mode;
        let other = uplinks.find(|a| requested != XdpMode::Auto && a.mode.as_str() != requested.name());
        Check::new("uplink", other.is_none(), || {
            let (device, mode) = other.map_or(("", ""), |a| (&*a.port.name, a.mode.as_str()));
            format!("{device} has XDP mode {mode}, not {requested}")
        })
    }

    fn workers_pass(&self) -> Check {
        let stalled: Vec<String> = self.stalled().map(|w| w.to_string()).collect();
        Check::new("workers", stalled.is_empty(), || {
            format!("not passing their loop: {}", stalled.join(", "))
        })
    }
}
