//! Sources: where the [`Model`] comes from.
//!
//! | Module | Holds |
//! |---|---|
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
pub(crate) mod names;
mod scalar;
mod watch;
mod yaml;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

pub use directory::{DirectorySource, load_dir};

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
    /// File and line.
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
    /// When the source was last read in full.
    pub loaded_at: SystemTime,
}
