//! Changes of the folder, and the wait until every daemon forwards by them.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use super::lab::Lab;
use super::object::yaml;
use super::spec::Kind;
use crate::traffic::eventually;

/// How long a daemon may take from the change of a file to its workers' acknowledgement.
const LIMIT: Duration = Duration::from_secs(30);
/// A change that is nothing to a node gives it no new generation: it has had this long to make one.
const GRACE: Duration = Duration::from_millis(150);

/// A daemon that has seen a change of the folder has read it by then.
const SETTLED: Duration = Duration::from_secs(1);

impl Lab {
    /// Writes `objects` to one file of the folder and waits until every daemon acts on them.
    pub(crate) fn apply(&self, file: &str, objects: &[Value]) {
        let text = yaml(objects);
        // Nothing is read again when nothing has changed.
        if std::fs::read_to_string(self.manifests.dir().join(file)).ok().as_ref() != Some(&text) {
            self.change(|| self.manifests.write(file, &text));
        }
    }

    /// Removes a file of the folder and waits until every daemon acts on that.
    pub(crate) fn withdraw(&self, file: &str) {
        self.change(|| self.manifests.remove(file));
    }

    /// Changes the folder and waits until every daemon has read it and its workers forward by what it says.
    /// Panics when a daemon finds something wrong in it.
    pub(crate) fn change(&self, change: impl FnOnce()) {
        let ours = || self.nodes.iter().filter(|n| n.spec.kind == Kind::Fastpath && n.daemon.is_some());
        let before: Vec<u64> = ours().map(|n| n.cli().status().generation()).collect();
        let begun = Timestamp::now();
        change();
        let (written, since) = (Timestamp::now(), Instant::now());
        let versions = self.manifests.versions();
        for (node, before) in ours().zip(before) {
            let mut read = None;
            let status = eventually(&format!("{} has the change", node.spec.name), LIMIT, || {
                let status = node.cli().try_status()?;
                // This thread may have been kept waiting before it took the time, and the daemon been faster.
                let from = if since.elapsed() < SETTLED { written } else { begun };
                let seen = versions.as_ref().map_or_else(|| status.read_since(from), |v| status.has_seen(v));
                if !seen {
                    return None;
                }
                // What a folder was last read as is what is published; what was seen of the API may not be yet.
                let read = *read.get_or_insert_with(Instant::now);
                let published = versions.is_none() || status.generation() > before || read.elapsed() >= GRACE;
                (published && status.all_acknowledged()).then_some(status)
            });
            assert_eq!(status.0["problems"], serde_json::json!([]), "{}", node.spec.name);
        }
    }
}
