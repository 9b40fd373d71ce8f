//! A folder of manifests, read once or followed.
//!
//! Files `*.yaml`, `*.yml`, `*.json` directly in the folder; names starting with '.' are left out, as in a
//! mounted ConfigMap. Symbolic links are followed. A file that did not change is not read into objects again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::assemble::{FileObjects, assemble, reuse};
use super::kinds::{Key, Object};
use super::watch::Watcher;
use super::{Problem, Severity, Update};
use crate::model::Model;

/// Largest manifest read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// The folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot be read: {source}", path.display())]
pub struct DirectoryError {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// Reads the manifests in the folder `path` (or the one file `path`) once.
///
/// What is wrong in single documents is in [`Update::problems`]; the rest is in the model.
///
/// # Errors
/// The folder itself cannot be read.
pub fn load_dir(path: &Path) -> Result<Update, DirectoryError> {
    let mut loader = Loader::new(path.to_path_buf());
    loader.read(&BTreeSet::new()).map_err(|source| DirectoryError { path: path.to_path_buf(), source })?;
    Ok(loader.update())
}

/// Follows a folder from a thread of its own until dropped.
#[derive(Debug)]
pub struct DirectorySource {
    updates: watch::Receiver<Arc<Update>>,
    _watcher: Watcher,
}

impl DirectorySource {
    /// Reads the folder, and goes on reading it when it changes.
    ///
    /// A folder that does not exist yet is a problem in the first update, not an error.
    ///
    /// # Errors
    /// inotify cannot be used (`fs.inotify.max_user_instances`), or no thread can be started.
    pub fn start(path: &Path) -> std::io::Result<Self> {
        let (watcher, updates) = Watcher::start(Loader::new(path.to_path_buf()))?;
        Ok(Self { updates, _watcher: watcher })
    }

    /// The updates: the current one at once, later ones as the folder changes (the newest only, none twice).
    #[must_use]
    pub fn updates(&self) -> watch::Receiver<Arc<Update>> {
        self.updates.clone()
    }
}

/// Which inode a path leads to, and in which state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    mtime: (i64, i64),
    size: u64,
}

impl Stamp {
    fn of(m: &Metadata) -> Self {
        Self { device: m.dev(), inode: m.ino(), mtime: (m.mtime(), m.mtime_nsec()), size: m.size() }
    }
}

/// What a file was when it was read.
#[derive(Debug)]
struct Known {
    /// `None` when it could not be read.
    text: Option<Vec<u8>>,
    /// For a file behind a link.
    stamp: Option<Stamp>,
    objects: Arc<FileObjects>,
}

/// Reads a folder again and again, keeping what did not change.
#[derive(Debug)]
pub(super) struct Loader {
    path: PathBuf,
    files: BTreeMap<Arc<str>, Known>,
    objects: BTreeMap<Key, Object>,
    model: Arc<Model>,
    problems: Vec<Problem>,
    loaded_at: SystemTime,
}

impl Loader {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            objects: BTreeMap::new(),
            model: Arc::default(),
            problems: Vec::new(),
            loaded_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// The folder as given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the last reading gave.
    pub(super) fn update(&self) -> Update {
        Update {
            model: self.model.clone(),
            problems: self.problems.clone(),
            loaded_at: self.loaded_at,
            synced: true,
        }
    }

    /// Reads the folder again; without it, all stays in force and the problem says so. Whether anything changed.
    pub(super) fn reload(&mut self, busy: &BTreeSet<OsString>) -> bool {
        self.read(busy).unwrap_or_else(|e| {
            let reason = if self.loaded_at == SystemTime::UNIX_EPOCH {
                format!("cannot be read: {e}")
            } else {
                format!("cannot be read: {e}; what it held last stays in force")
            };
            let path: Arc<str> = self.path.to_string_lossy().into();
            let problems = vec![Problem::in_file(Severity::Error, &path, 0, reason)];
            let changed = problems != self.problems;
            self.problems = problems;
            changed
        })
    }

    /// Reads the folder; files named in `busy` are being written and are left as they were.
    fn read(&mut self, busy: &BTreeSet<OsString>) -> std::io::Result<bool> {
        let mut files = BTreeMap::new();
        for path in manifests(&self.path)? {
            let name: Arc<str> = path.to_string_lossy().into();
            let known = self.files.remove(&name);
            if path.file_name().is_some_and(|n| busy.contains(n)) {
                files.extend(known.map(|k| (name, k)));
                continue;
            }
            let read = match read_manifest(&path) {
                Ok(Some((text, meta))) => {
                    let stamp = path.is_symlink().then(|| Stamp::of(&meta));
                    match known {
                        Some(known) if known.text.as_ref() == Some(&text) => Known { stamp, ..known },
                        _ => {
                            let objects = Arc::new(decode(&name, &text));
                            Known { text: Some(text), stamp, objects }
                        }
                    }
                }
                Ok(None) => continue,
                Err(reason) => {
                    let stamp =
                        std::fs::metadata(&path).ok().filter(|_| path.is_symlink()).map(|m| Stamp::of(&m));
                    let objects = Arc::new(FileObjects::unreadable(&name, reason));
                    Known { text: None, stamp, objects }
                }
            };
            files.insert(name, read);
        }
        self.files = files;
        let objects = self.files.iter().map(|(name, k)| (name.clone(), k.objects.clone())).collect();
        let mut new = assemble(&objects, &self.objects);
        let mut problems: Vec<Problem> = objects.values().flat_map(|f| f.problems.iter().cloned()).collect();
        problems.append(&mut new.problems);
        problems.sort();
        problems.dedup();
        reuse(&self.model, &mut new.model);
        let same =
            *self.model == new.model && self.problems == problems && self.loaded_at != SystemTime::UNIX_EPOCH;
        if *self.model != new.model {
            self.model = Arc::new(new.model);
        }
        self.objects = new.objects;
        self.problems = problems;
        self.loaded_at = SystemTime::now();
        Ok(!same)
    }

    /// Whether a file behind a link is not what it was when read: inotify does not tell.
    pub(super) fn links_changed(&self) -> bool {
        self.files.iter().any(|(name, known)| {
            let path = Path::new(name.as_ref());
            path.is_symlink() && std::fs::metadata(path).ok().map(|m| Stamp::of(&m)) != known.stamp
        })
    }
}

/// The manifests in folder `path`, in the order of their names; `path` itself if it is a file.
fn manifests(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut out = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        if is_manifest(Path::new(&name)) {
            out.push(path.join(name));
        }
    }
    out.sort();
    Ok(out)
}

/// Whether a file of this name is read.
pub(super) fn is_manifest(name: &Path) -> bool {
    let hidden = name.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
    !hidden && name.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// A file's bytes and state; `None` if it is gone or no file.
fn read_manifest(path: &Path) -> Result<Option<(Vec<u8>, Metadata)>, String> {
    let fail = |e: std::io::Error| format!("cannot be read: {e}");
    // Without blocking: a named pipe must not hold up everything else.
    let nonblock = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file: File = match OpenOptions::new().read(true).custom_flags(nonblock).open(path) {
        Ok(file) => file,
        // Deleted since it was listed; a link to nothing is a mistake to report.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !path.is_symlink() => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    let meta = file.metadata().map_err(fail)?;
    if meta.is_dir() {
        return Ok(None);
    }
    if !meta.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(fail)?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {} MiB", MAX_FILE >> 20));
    }
    Ok(Some((text, meta)))
}

/// A file's objects.
fn decode(name: &Arc<str>, text: &[u8]) -> FileObjects {
    match std::str::from_utf8(text) {
        Ok(text) => FileObjects::read(name, text),
        Err(e) => {
            let good = text.get(..e.valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|b| **b == b'\n').count();
            FileObjects::unreadable(name, format!("line {line} is not UTF-8 text"))
        }
    }
}
