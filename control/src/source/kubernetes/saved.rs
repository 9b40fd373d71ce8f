//! The model in a file: what a daemon that starts without the API goes by.
//!
//! One line of header (format, version, time, length and hash of the rest), then JSON. Written to a file beside and
//! renamed, so that a crash leaves the old one; at most every [`PAUSE`] by a thread of its own, for the source's waits for no
//! disk, and at a graceful end.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::model::{EndpointSlice, Model, Namespace, NetworkPolicy, Node, Pod, Service};

#[cfg(test)]
mod tests;

/// Name of the file.
const NAME: &str = "source-state";
/// First word of the file.
const MAGIC: &str = "fastpath-source-state";
/// What the JSON holds: to be raised with every change of the model's types.
const VERSION: u32 = 1;
/// Shortest time between two writes.
const PAUSE: Duration = Duration::from_secs(5);
/// Largest file read, in bytes.
const MAX: u64 = 1 << 30;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub(super) struct SavedError {
    /// The file.
    pub(super) path: PathBuf,
    /// Why.
    pub(super) reason: String,
}

/// The file, and what is to be written to it.
#[derive(Debug)]
pub(super) struct SavedState {
    path: PathBuf,
    /// Whether pods' annotations about devices are honoured: a run that did may have saved what they said.
    annotations: bool,
    /// Newer than what the file holds.
    pending: Option<Arc<Model>>,
    /// When the last write began, or was put off.
    written: Option<Instant>,
    writing: Option<JoinHandle<()>>,
    /// Whether the last write failed: said once.
    failing: Arc<AtomicBool>,
}

/// References when written, values when read.
#[derive(Serialize, Deserialize)]
struct Contents<N, S, P, O, V, E> {
    nodes: Vec<N>,
    namespaces: Vec<S>,
    pods: Vec<P>,
    policies: Vec<O>,
    services: Vec<V>,
    slices: Vec<E>,
}

type Owned = Contents<Node, Namespace, Pod, NetworkPolicy, Service, EndpointSlice>;

impl SavedState {
    /// In the folder `data_dir`, which need not exist. `annotations`: whether pods' annotations about devices are honoured.
    pub(super) fn new(data_dir: &Path, annotations: bool) -> Self {
        Self {
            path: data_dir.join(NAME),
            annotations,
            pending: None,
            written: None,
            writing: None,
            failing: Arc::default(),
        }
    }

    /// There is a newer model.
    pub(super) fn changed(&mut self, model: Arc<Model>) {
        self.pending = Some(model);
    }

    /// When to write; `None` when there is nothing to write.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.as_ref()?;
        Some(self.written.map_or_else(Instant::now, |w| w + PAUSE))
    }

    /// Begins to write what is to be written. What fails is logged, and tried again with the next change.
    pub(super) fn write(&mut self) {
        self.written = Some(Instant::now());
        if self.writing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            // A slow disk: put off.
            return;
        }
        let Some(model) = self.pending.take() else { return };
        let (path, failing) = (self.path.clone(), Arc::clone(&self.failing));
        let spare = Arc::clone(&model);
        let thread = std::thread::Builder::new().name("saved-state".to_owned());
        match thread.spawn(move || write(&path, &model, &failing)) {
            Ok(thread) => self.writing = Some(thread),
            Err(_) => write(&self.path, &spare, &self.failing),
        }
    }

    /// Writes what is not written yet, and waits for it.
    pub(super) fn end(&mut self) {
        if let Some(thread) = self.writing.take() {
            let _ = thread.join();
        }
        if let Some(model) = self.pending.take() {
            write(&self.path, &model, &self.failing);
        }
    }

    /// The saved model and when it was saved; `None` if there is no file.
    ///
    /// # Errors
    /// The file is broken, of another version, or cannot be read.
    pub(super) fn read(&self) -> Result<Option<(Model, SystemTime)>, SavedError> {
        let fail = |reason: String| SavedError { path: self.path.clone(), reason };
        match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(format!("cannot be read: {e}"))),
            Ok(m) if !m.is_file() || m.len() > MAX => return Err(fail("is not a saved state".to_owned())),
            Ok(_) => {}
        }
        let bytes = std::fs::read(&self.path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        let (mut model, at) = load(&bytes).map_err(fail)?;
        if !self.annotations {
            for pod in model
                .pods
                .values_mut()
                .filter(|p| p.interface.is_some() || p.netns.is_some() || p.mac.is_some())
            {
                let pod = Arc::make_mut(pod);
                (pod.interface, pod.netns, pod.mac) = (None, None, None);
            }
        }
        Ok(Some((model, at)))
    }
}

fn write(path: &Path, model: &Model, failing: &AtomicBool) {
    let result = store(path, model, SystemTime::now());
    let failed_before = failing.swap(result.is_err(), Ordering::Relaxed);
    match result {
        Ok(()) => {}
        Err(e) if failed_before => tracing::debug!("{}: {e}", path.display()),
        Err(e) => tracing::warn!("{}: the state is not saved: {e}", path.display()),
    }
}

fn store(path: &Path, model: &Model, at: SystemTime) -> std::io::Result<()> {
    fn all<T>(map: impl Iterator<Item = T>) -> Vec<T> {
        map.collect()
    }
    let contents = Contents {
        nodes: all(model.nodes.values().map(Arc::as_ref)),
        namespaces: all(model.namespaces.values().map(Arc::as_ref)),
        pods: all(model.pods.values().map(Arc::as_ref)),
        policies: all(model.policies.values().map(Arc::as_ref)),
        services: all(model.services.values().map(Arc::as_ref)),
        slices: all(model.slices.values().map(Arc::as_ref)),
    };
    let body = serde_json::to_vec(&contents)?;
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let head = format!("{MAGIC} {VERSION} {seconds} {} {:016x}\n", body.len(), hash(&body));
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder)?;
    let beside = path.with_extension("new");
    // Names and addresses of the whole cluster: for the daemon alone.
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(head.as_bytes())?;
    file.write_all(&body)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

fn load(bytes: &[u8]) -> Result<(Model, SystemTime), String> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("has no header")?;
    let (head, body) = (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default());
    let head = std::str::from_utf8(head).map_err(|_| "has no header")?;
    let words: Vec<&str> = head.split(' ').collect();
    let [MAGIC, version, seconds, length, sum] = words[..] else { return Err("has no header".to_owned()) };
    if version != VERSION.to_string() {
        return Err(format!("has version {version}; this program reads {VERSION}"));
    }
    let seconds: u64 = seconds.parse().map_err(|_| "has a broken header")?;
    if length != body.len().to_string() {
        return Err(format!("is {} bytes long where its header says {length}", body.len()));
    }
    if sum != format!("{:016x}", hash(body)) {
        return Err("is damaged: its hash is another".to_owned());
    }
    let contents: Owned = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or("has a broken header")?;
    let model = Model {
        nodes: contents.nodes.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
        namespaces: contents.namespaces.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
        pods: contents.pods.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
        policies: contents.policies.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
        services: contents.services.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
        slices: contents.slices.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
    };
    Ok((model, at))
}

/// FNV-1a: against torn and rotten files, not against people.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
