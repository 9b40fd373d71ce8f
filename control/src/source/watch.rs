//! Follows a folder by inotify: reads it again once writers have finished, changes close together at once.
//!
//! A file under the hands of a writer (created or changed, not yet closed) keeps its last state, so that a
//! half-written manifest is never read; a writer that holds a file open for long is read all the same.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Config, Event, EventKind, INotifyWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::directory::{Loader, is_manifest};
use super::{Severity, Update};

/// Changes are gathered until none came for this long.
const QUIET: Duration = Duration::from_millis(10);
/// Changes are gathered for this long at most.
const GATHER: Duration = Duration::from_millis(50);
/// A file held open by its writer is read after this long.
const WRITER: Duration = Duration::from_secs(3);
/// How often is looked for what inotify does not tell (a replaced folder, files behind links).
const LOOK: Duration = Duration::from_millis(1000);

enum Message {
    Event(notify::Result<Event>),
    Stop,
}

/// The thread that follows a folder.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.stop.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Watcher {
    /// Reads the folder of `loader` and starts to follow it.
    pub(super) fn start(mut loader: Loader) -> std::io::Result<(Self, watch::Receiver<Arc<Update>>)> {
        let (sender, messages) = channel();
        let events = sender.clone();
        let inotify = INotifyWatcher::new(
            move |event| drop(events.send(Message::Event(event))),
            // Links are followed by reading, not by watching.
            Config::default().with_follow_symlinks(false),
        )
        .map_err(std::io::Error::other)?;
        let path = std::path::absolute(loader.path())?;
        let mut watched = Watched { inotify, path, folder: None, paths: BTreeSet::new(), unwatched: false };
        // Watching before reading: a change between the two is seen.
        watched.follow();
        loader.reload(&BTreeSet::new());
        report(&loader.update());
        let (publish, updates) = watch::channel(Arc::new(loader.update()));
        let follow = Follow { loader, watched, messages, publish, writing: BTreeMap::new() };
        let thread = std::thread::Builder::new().name("source".to_owned()).spawn(move || follow.run())?;
        Ok((Self { stop: sender, thread: Some(thread) }, updates))
    }
}

/// The inotify watches: the folder, and the folder it is in.
struct Watched {
    inotify: INotifyWatcher,
    /// The folder of manifests, absolute.
    path: PathBuf,
    /// Device and inode of the folder that is watched.
    folder: Option<(u64, u64)>,
    paths: BTreeSet<PathBuf>,
    /// Whether the folder is there but cannot be watched.
    unwatched: bool,
}

impl Watched {
    fn folder_now(&self) -> Option<(u64, u64)> {
        std::fs::metadata(&self.path).ok().map(|m| (m.dev(), m.ino()))
    }

    /// Watches the folder and what tells that it appears or is replaced. Watches are bound to the inode, so
    /// they are made anew when the path leads elsewhere.
    fn follow(&mut self) {
        let now = self.folder_now();
        if now == self.folder && !self.paths.is_empty() {
            return;
        }
        self.folder = now;
        for old in std::mem::take(&mut self.paths) {
            let _ = self.inotify.unwatch(&old);
        }
        for path in [Some(self.path.as_path()), self.path.parent()].into_iter().flatten() {
            match self.inotify.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.paths.insert(path.to_path_buf())),
                // A folder that is there but cannot be watched (fs.inotify.max_user_watches) is read at every
                // look; one that is not there yet is found by it.
                Err(e) if path == self.path && self.folder.is_some() => {
                    if !self.unwatched {
                        warn!("{} cannot be watched, it is read every {LOOK:?} instead: {e}", path.display());
                    }
                    self.folder = None;
                    self.unwatched = true;
                    return;
                }
                Err(_) => {}
            }
        }
        self.unwatched = false;
    }

    /// Whether an event on `path` can matter: the folder itself, or something in it.
    fn concerns(&self, path: &Path) -> bool {
        path == self.path || path.parent() == Some(&self.path)
    }
}

struct Follow {
    loader: Loader,
    watched: Watched,
    messages: Receiver<Message>,
    publish: watch::Sender<Arc<Update>>,
    /// Names of files under the hands of a writer, since when.
    writing: BTreeMap<OsString, Instant>,
}

impl Follow {
    fn run(mut self) {
        let mut look = Instant::now() + LOOK;
        loop {
            let overdue = self.writing.values().map(|since| *since + WRITER).min();
            let until = overdue.map_or(look, |o| o.min(look));
            let mut changed =
                match self.messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Message::Event(event)) => self.note(event),
                    Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => false,
                };
            if changed {
                let deadline = Instant::now() + GATHER;
                loop {
                    let wait = QUIET.min(deadline.saturating_duration_since(Instant::now()));
                    match self.messages.recv_timeout(wait) {
                        Ok(Message::Event(event)) => drop(self.note(event)),
                        Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                        Err(RecvTimeoutError::Timeout) => break,
                    }
                    if Instant::now() >= deadline {
                        break;
                    }
                }
            }
            let now = Instant::now();
            let before = self.writing.len();
            self.writing.retain(|_, since| now.duration_since(*since) < WRITER);
            changed |= self.writing.len() < before;
            if now >= look {
                look = now + LOOK;
                changed |= self.watched.folder_now() != self.watched.folder || self.loader.links_changed();
            }
            if changed {
                self.reload();
            }
        }
    }

    fn reload(&mut self) {
        self.watched.follow();
        let busy = self.writing.keys().cloned().collect();
        let started = Instant::now();
        let changed = self.loader.reload(&busy);
        debug!(changed, took_ms = started.elapsed().as_millis(), "manifests read");
        let update = self.loader.update();
        if changed {
            report(&update);
        }
        // Readers are woken only by a change, but "last read" is always true.
        let update = Arc::new(update);
        self.publish.send_if_modified(|current| {
            *current = update;
            changed
        });
    }

    /// Whether `event` asks for reading again; notes who is writing.
    fn note(&mut self, event: notify::Result<Event>) -> bool {
        let event = match event {
            Ok(event) => event,
            Err(e) => {
                warn!("watching {}: {e}", self.loader.path().display());
                return true;
            }
        };
        if event.need_rescan() {
            // Events were lost: also who has finished writing.
            self.writing.clear();
            return true;
        }
        let mut changed = false;
        for path in event.paths.iter().filter(|p| self.watched.concerns(p)) {
            let name = path.file_name().unwrap_or_default();
            changed |= match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                    self.writing.remove(name);
                    true
                }
                // Our own reading, too.
                EventKind::Access(_) => false,
                EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_))
                    if is_written(path, event.kind) =>
                {
                    if is_manifest(path) {
                        self.writing.entry(name.to_owned()).or_insert_with(Instant::now);
                    }
                    false
                }
                EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                    self.writing.remove(name);
                    true
                }
                _ => true,
            };
        }
        changed
    }
}

/// Whether an event on `path` means that a writer has it open: not so for a new link.
fn is_written(path: &Path, kind: EventKind) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(m) => m.is_file() && (m.nlink() == 1 || !matches!(kind, EventKind::Create(_))),
        Err(_) => false,
    }
}

/// Logs what the source says now.
fn report(update: &Update) {
    let m = &update.model;
    info!(nodes = m.nodes.len(), namespaces = m.namespaces.len(), pods = m.pods.len(), "manifests in force");
    for problem in &update.problems {
        match problem.severity {
            Severity::Error | Severity::Warning => warn!("{problem}"),
            Severity::Ignored => debug!("{problem}"),
        }
    }
}
