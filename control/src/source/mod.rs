//! Sources: where the [`Model`] comes from.
//!
//! | Module | Holds |
//! |---|---|
//! | [`kubernetes`] | the Kubernetes API, followed |
//! | [`directory`] | a folder of manifests: read once ([`load_dir`]) or followed ([`DirectorySource`]) |
//! | `yaml`, `json`, `scalar` | text to values, with the line of every part |
//! | `document` | values to objects, with lines in every error |
//! | [`convert`] | Kubernetes objects to model, validated as the API server does |
//! | `kinds` | the kinds we know, and each one's way into the model |
//! | `assemble` | objects of all files to one model: duplicates, conflicts, what stays in force |
//! | `watch` | inotify: when to read again |
#![forbid(unsafe_code)]

mod assemble;
pub mod convert;
pub mod directory;
mod document;
mod json;
mod kinds;
pub mod kubernetes;
pub(crate) mod names;
mod scalar;
mod watch;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch::{Receiver, channel};

pub use directory::{DirectorySource, load_dir};
pub use kubernetes::{KubernetesSettings, KubernetesSource};

use crate::config::{Config, SourceKind};
use crate::model::{Model, Origin};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something in the source is not in force; its last good state is, if there was one.
    Error,
    /// In force, but probably not as meant.
    Warning,
    /// An object of a kind that the dataplane has no use for.
    Ignored,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Ignored => "ignored",
        })
    }
}

/// Something in the source that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// File and line, or the object.
    pub origin: Origin,
    /// How bad.
    pub severity: Severity,
    /// What is wrong.
    pub reason: String,
}

impl Problem {
    fn in_file(severity: Severity, path: &Arc<str>, line: u32, reason: String) -> Self {
        Self { origin: Origin::File { path: path.clone(), line, parts: None }, severity, reason }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.reason)
    }
}

/// The documents of a YAML text, whatever they are.
///
/// # Errors
/// `line N: what is wrong` of the first that cannot be read.
pub fn documents(text: &str) -> Result<Vec<serde_json::Value>, String> {
    let all = yaml::documents(text).into_iter();
    all.map(|d| d.map(|d| d.value).map_err(|e| format!("line {}: {}", e.line, e.reason))).collect()
}

/// What a source says at one moment.
#[derive(Clone, Debug)]
pub struct Update {
    /// The world. The same `Arc` as before when nothing in it changed, and so is each object in it.
    pub model: Arc<Model>,
    /// What is wrong in the source, in the order of files and lines.
    pub problems: Vec<Problem>,
    /// When the source was last read in full; when a saved state was saved.
    pub loaded_at: SystemTime,
    /// Whether the source has been read in full, now or before the state was saved. What has not is not to be acted on.
    pub synced: bool,
}

impl Update {
    /// What is said before anything is known.
    #[must_use]
    pub fn nothing() -> Self {
        Self { model: Arc::default(), problems: Vec::new(), loaded_at: SystemTime::UNIX_EPOCH, synced: false }
    }
}

/// How a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// Which source.
    pub kind: SourceKind,
    /// Whether changes are seen as they happen: for the API, whether every kind is watched.
    pub connected: bool,
    /// Since when `connected` is what it is.
    pub since: SystemTime,
    /// When something was last heard: an object, a bookmark.
    pub last_contact: Option<SystemTime>,
    /// Whether the source has been read in full since the start.
    pub synced: bool,
    /// When the state that is in force was saved, if it is a saved one.
    pub saved_at: Option<SystemTime>,
    /// Complete lists read, of single kinds.
    pub lists: u64,
    /// Those of them that were not the first of their kind.
    pub relists: u64,
    /// Lists and watches that failed.
    pub errors: u64,
    /// Updates published.
    pub updates: u64,
    /// Kubernetes Events written on objects.
    pub reported: u64,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Newest `resourceVersion` that the model holds, by kind (`pods`).
    pub versions: BTreeMap<&'static str, String>,
}

impl SourceState {
    /// At the start.
    #[must_use]
    pub fn new(kind: SourceKind) -> Self {
        Self {
            kind,
            connected: false,
            since: SystemTime::now(),
            last_contact: None,
            synced: false,
            saved_at: None,
            lists: 0,
            relists: 0,
            errors: 0,
            updates: 0,
            reported: 0,
            error: None,
            versions: BTreeMap::new(),
        }
    }
}

impl SourceState {
    /// What of it keeps the daemon from doing all it should, one sentence each.
    #[must_use]
    pub fn trouble(&self) -> Vec<String> {
        let time = |at: SystemTime| format!("{:.0}", jiff::Timestamp::try_from(at).unwrap_or_default());
        let mut out = Vec::new();
        if !self.connected {
            let why = self.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
            out.push(format!("source: no connection to the Kubernetes API since {}{why}", time(self.since)));
        }
        if let Some(at) = self.saved_at {
            out.push(format!("source: in force is the state saved at {}", time(at)));
        } else if !self.synced {
            out.push("source: nothing is in force before every kind of object is known".to_owned());
        }
        out
    }
}

/// The source that the configuration names.
#[derive(Debug)]
pub enum Source {
    /// A folder of manifests.
    Directory(DirectorySource),
    /// The Kubernetes API.
    Kubernetes(KubernetesSource),
}

impl Source {
    /// Starts to follow it; `node` is the name of this node.
    ///
    /// # Errors
    /// It cannot be followed as configured.
    pub fn start(config: &Config, node: &str) -> Result<Self, SourceError> {
        match config.source.kind {
            SourceKind::Directory => Ok(Self::Directory(DirectorySource::start(&config.source.path)?)),
            SourceKind::Kubernetes => {
                Ok(Self::Kubernetes(KubernetesSource::start(KubernetesSettings::of(config, node))?))
            }
        }
    }

    /// The updates: the current one at once, later ones as the source changes (the newest only, none twice).
    #[must_use]
    pub fn updates(&self) -> Receiver<Arc<Update>> {
        match self {
            Source::Directory(source) => source.updates(),
            Source::Kubernetes(source) => source.updates(),
        }
    }

    /// Tells whether this node forwards; a folder of manifests is told nothing.
    pub fn tell(&self, readiness: kubernetes::NodeReadiness) {
        if let Source::Kubernetes(source) = self {
            source.tell(readiness);
        }
    }

    /// How it is.
    #[must_use]
    pub fn state(&self) -> Receiver<SourceState> {
        match self {
            Source::Directory(_) => {
                let state =
                    SourceState { connected: true, synced: true, ..SourceState::new(SourceKind::Directory) };
                channel(state).1
            }
            Source::Kubernetes(source) => source.state(),
        }
    }
}

/// A source cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// inotify, or a thread.
    #[error(transparent)]
    Directory(#[from] std::io::Error),
    /// The API, as configured.
    #[error(transparent)]
    Kubernetes(#[from] kubernetes::ConnectError),
}
