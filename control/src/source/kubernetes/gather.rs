//! Many changes to few updates.
//!
//! A change that comes alone is published after [`QUIET`]; those that follow are gathered for [`GATHER`] at most, and
//! become one update: a burst of thousands is a dozen updates a second, and none waits for 100 ms.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::super::kinds::{KINDS, Kind};
use super::super::{Problem, Severity, SourceState, Update};
use super::follow::Message;
use super::saved::SavedState;
use super::store::{Store, Wrong};
use crate::model::Origin;

#[cfg(test)]
mod tests;

/// Changes are gathered until none came for this long, if the last update is not newer than [`GATHER`].
const QUIET: Duration = Duration::from_millis(10);
/// Changes are gathered for this long at most.
const GATHER: Duration = Duration::from_millis(80);
/// How long the API may take for its first answers before the saved state is taken.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gathers what the followers tell, and publishes.
pub(super) struct Gather {
    store: Store,
    saved: Option<SavedState>,
    publish: watch::Sender<Arc<Update>>,
    state: watch::Sender<SourceState>,
    report: watch::Sender<Vec<Wrong>>,
    /// Kinds whose first list is not complete.
    missing: HashSet<&'static str>,
    /// Kinds without an open watch, and why.
    away: BTreeMap<&'static str, Option<String>>,
    /// Newest version seen, by kind.
    versions: BTreeMap<&'static str, String>,
    /// When the oldest and the newest change that is not published came.
    changed: Option<(Instant, Instant)>,
    /// When something was published last.
    published: Option<Instant>,
    /// What the saved state could not be used for.
    start_problems: Vec<Problem>,
}

impl Gather {
    /// `saved`: where the state is saved.
    pub(super) fn new(
        saved: Option<SavedState>,
        publish: watch::Sender<Arc<Update>>,
        state: watch::Sender<SourceState>,
        report: watch::Sender<Vec<Wrong>>,
    ) -> Self {
        Self {
            store: Store::default(),
            saved,
            publish,
            state,
            report,
            missing: KINDS.iter().map(|k| k.plural).collect(),
            away: KINDS.iter().map(|k| (k.plural, None)).collect(),
            versions: BTreeMap::new(),
            changed: None,
            published: None,
            start_problems: Vec::new(),
        }
    }

    /// Takes messages until no follower is left.
    pub(super) async fn run(&mut self, mut messages: mpsc::Receiver<Message>) {
        let mut patience = Some(Instant::now() + PATIENCE);
        loop {
            let due = self.due();
            let save = self.saved.as_ref().and_then(SavedState::due);
            let next = [due, save, patience].into_iter().flatten().min();
            tokio::select! {
                message = messages.recv() => {
                    let Some(message) = message else { return };
                    self.take(message);
                    // As many as have come: a burst wakes this task once.
                    for _ in 0..64 {
                        let Ok(message) = messages.try_recv() else { break };
                        self.take(message);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            let now = Instant::now();
            if self.missing.is_empty() {
                patience = None;
            } else if patience.is_some_and(|p| now >= p || self.away.values().any(Option::is_some)) {
                patience = None;
                self.fall_back();
            }
            if self.due().is_some_and(|due| now >= due) {
                self.publish();
            }
            if save.is_some_and(|s| now >= s) {
                self.save();
            }
        }
    }

    /// When to publish; `None` when there is nothing to publish, or a kind is not known.
    fn due(&self) -> Option<Instant> {
        let (oldest, newest) = self.changed.filter(|_| self.missing.is_empty())?;
        let quiet = newest + QUIET;
        let alone = self.published.map_or(quiet, |last| quiet.max(last + GATHER));
        Some(alone.min(oldest + GATHER))
    }

    /// Begins to write the saved state, if there is something new to write.
    fn save(&mut self) {
        if let Some(saved) = &mut self.saved {
            saved.write();
        }
    }

    /// Writes what is not written yet.
    pub(super) fn end(&mut self) {
        if let Some(saved) = &mut self.saved {
            saved.end();
        }
    }

    fn take(&mut self, message: Message) {
        let mut changed = false;
        match message {
            Message::Seen(seen, version) => {
                self.contact(kind_of(seen.key.kind), version);
                changed = self.store.put(*seen);
            }
            Message::Gone(key, version) => {
                self.contact(kind_of(key.kind), version);
                changed = self.store.remove(&key);
            }
            Message::Page(seen) => {
                for seen in seen {
                    changed |= self.store.put(seen);
                }
            }
            Message::Listed { kind, names, version, again } => {
                for name in self.store.names(kind.kind) {
                    let key = super::super::kinds::Key { kind: kind.kind, name };
                    if !names.contains(&key) {
                        changed |= self.store.remove(&key);
                    }
                }
                // The first complete state is news even when it is empty.
                changed |= self.missing.remove(kind.plural) && self.missing.is_empty();
                self.state.send_if_modified(|s| {
                    s.lists += 1;
                    s.relists += u64::from(again);
                    false
                });
                self.contact(Some(kind), version);
            }
            Message::Open(kind) => {
                self.away.remove(kind.plural);
                self.connection();
            }
            Message::Stale(kind, reason) => {
                self.away.insert(kind.plural, Some(format!("{}: to be listed again: {reason}", kind.plural)));
                self.connection();
            }
            Message::Bookmark(kind, version) => self.contact(Some(kind), version),
            Message::Lost(kind, reason) => {
                self.state.send_if_modified(|s| {
                    s.errors += 1;
                    false
                });
                self.away.insert(kind.plural, Some(format!("{}: {reason}", kind.plural)));
                self.connection();
            }
        }
        if changed {
            let now = Instant::now();
            let oldest = self.changed.map_or(now, |(oldest, _)| oldest);
            self.changed = Some((oldest, now));
        } else if self.changed.is_none() {
            self.show_versions();
        }
    }

    fn contact(&mut self, kind: Option<&'static Kind>, version: String) {
        if let Some(kind) = kind {
            self.versions.insert(kind.plural, version);
        }
        self.state.send_if_modified(|s| {
            s.last_contact = Some(SystemTime::now());
            false
        });
    }

    /// Only what is published is said to be seen.
    fn show_versions(&mut self) {
        if self.missing.is_empty() {
            let versions = &self.versions;
            self.state.send_if_modified(|s| {
                s.versions.clone_from(versions);
                false
            });
        }
    }

    fn connection(&mut self) {
        let connected = self.away.is_empty();
        let error = self.away.values().flatten().next().cloned();
        let news = self.state.send_if_modified(|s| {
            let news = s.connected != connected;
            if news {
                s.since = SystemTime::now();
            }
            s.connected = connected;
            if connected {
                s.last_contact = Some(SystemTime::now());
            }
            s.error = if connected { None } else { error.clone().or(s.error.take()) };
            news
        });
        match (news, connected, error) {
            (true, true, _) => tracing::info!("connected to the Kubernetes API"),
            (true, false, Some(e)) => tracing::warn!("the Kubernetes API is away: {e}"),
            _ => {}
        }
    }

    fn publish(&mut self) {
        self.changed = None;
        self.published = Some(Instant::now());
        // What was wrong with the saved state is over: it will be written anew.
        self.start_problems.clear();
        let wrong = self.store.wrong();
        let mut problems: Vec<Problem> = wrong.iter().map(|w| w.problem.clone()).collect();
        problems.sort();
        problems.dedup();
        let before = self.publish.borrow().clone();
        let model = if before.synced && *before.model == *self.store.model() {
            before.model.clone()
        } else {
            Arc::new(self.store.model().clone())
        };
        if problems != before.problems {
            for problem in problems.iter().filter(|p| !before.problems.contains(p)) {
                tracing::warn!("{problem}");
            }
        }
        if let Some(saved) = &mut self.saved {
            saved.changed(model.clone());
        }
        let update = Update { model, problems, loaded_at: SystemTime::now(), synced: true };
        let m = &update.model;
        tracing::debug!(
            nodes = m.nodes.len(),
            pods = m.pods.len(),
            policies = m.policies.len(),
            services = m.services.len(),
            "published"
        );
        self.publish.send_replace(Arc::new(update));
        self.report.send_if_modified(|reported| {
            let news = *reported != wrong;
            *reported = wrong;
            news
        });
        self.state.send_if_modified(|s| {
            s.updates += 1;
            s.synced = true;
            s.saved_at = None;
            false
        });
        self.show_versions();
    }

    /// Puts the saved state in force, if there is one, while the API does not answer.
    fn fall_back(&mut self) {
        let Some(saved) = &mut self.saved else { return };
        match saved.read() {
            Ok(Some((model, at))) => {
                tracing::warn!(
                    pods = model.pods.len(),
                    "the saved state is in force until the Kubernetes API answers"
                );
                let update =
                    Update { model: Arc::new(model), problems: Vec::new(), loaded_at: at, synced: true };
                self.state.send_if_modified(|s| {
                    s.saved_at = Some(at);
                    true
                });
                self.publish.send_replace(Arc::new(update));
            }
            Ok(None) => tracing::warn!("no saved state: waiting for the Kubernetes API"),
            Err(e) => {
                tracing::warn!("{e}");
                let origin = Origin::File { path: e.path.to_string_lossy().into(), line: 0, parts: None };
                let reason = format!("the saved state cannot be used: {}", e.reason);
                self.start_problems.push(Problem { origin, severity: Severity::Warning, reason });
                let update = Update { problems: self.start_problems.clone(), ..Update::nothing() };
                self.publish.send_replace(Arc::new(update));
            }
        }
    }
}

fn kind_of(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.kind == name)
}
