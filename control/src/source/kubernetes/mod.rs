//! The Kubernetes API as source: six kinds of objects, followed by watch from a thread of its own.
//!
//! | Module | Holds |
//! |---|---|
//! | `connect` | the way to the API: in a pod, by kubeconfig, by an endpoint of its own |
//! | `follow` | one kind: listed by pages, then watched; resumed, or listed again |
//! | `backoff` | how long to wait after failures |
//! | `decode` | an object of the API to one of ours; what is not needed is dropped at once |
//! | `store` | objects to model, one change at a time |
//! | `gather` | many changes to few updates; which of stored and saved state is in force |
//! | `saved` | the model in a file, for a start without the API |
//! | `events` | what is wrong with an object, as a Kubernetes Event on it |
//! | `condition` | whether this node forwards, as a condition of its Node |
//! | `rights` | what of the API is used, as an account must be allowed it |
//!
//! Nothing is published before every kind has been listed: pods without their policies would be a hole. Until then the
//! state that was saved last is in force, if there is one.
#![forbid(unsafe_code)]

mod backoff;
mod condition;
mod connect;
mod decode;
mod events;
mod follow;
mod gather;
mod rights;
mod saved;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

pub use condition::{CONDITION, NodeReadiness};
pub use connect::{ConnectError, connect};
pub(crate) use connect::{client, configuration};
pub(crate) use follow::reason;
pub use rights::{Right, rights};

use super::kinds::KINDS;
use super::{SourceState, Update};
use crate::config::{Config, SourceKind};
use gather::Gather;
use saved::SavedState;

/// How the API is reached, and what is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// A kubeconfig; `None` is the service account of the pod this process runs in.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, instead of the one that the kubeconfig or the pod's environment names.
    pub api_server: Option<String>,
    /// Name of this node: who reports what is wrong with objects.
    pub node: String,
    /// Folder of the saved state; `None` saves nothing.
    pub data_dir: Option<PathBuf>,
    /// Whether pods' annotations about devices are honoured, which whoever may create pods writes.
    pub annotations: bool,
    /// Whether a condition on this node's Node says whether it is ready.
    pub node_condition: bool,
}

/// How long the condition may take at the end.
const LAST_WORD: Duration = Duration::from_secs(2);

impl KubernetesSettings {
    /// What the configuration says; `node` is the name of this node.
    #[must_use]
    pub fn of(config: &Config, node: &str) -> Self {
        Self {
            kubeconfig: config.source.kubeconfig.clone(),
            api_server: config.source.api_server.clone(),
            node: node.to_owned(),
            data_dir: Some(config.daemon.data_dir.clone()),
            annotations: config.pods.annotations,
            node_condition: config.source.node_condition,
        }
    }
}

/// Follows the API from a thread of its own until dropped.
#[derive(Debug)]
pub struct KubernetesSource {
    updates: watch::Receiver<Arc<Update>>,
    state: watch::Receiver<SourceState>,
    readiness: Option<watch::Sender<Option<NodeReadiness>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KubernetesSource {
    /// Starts to follow. An API that cannot be reached is no error: it is tried until it can be.
    ///
    /// # Errors
    /// The settings are wrong (no such kubeconfig, not in a pod, no URL), or no thread can be started.
    pub fn start(settings: KubernetesSettings) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ConnectError::Thread)?;
        let state = SourceState::new(SourceKind::Kubernetes);
        let (publish_state, state) = watch::channel(state);
        let (publish, updates) = watch::channel(Arc::new(Update::nothing()));
        let (stop, stopped) = oneshot::channel();
        let (tell, readiness) = watch::channel(None);
        let tell = settings.node_condition.then_some(tell);
        let (begun, connected) = std::sync::mpsc::channel();
        let follow = async move {
            let client = match connect(&settings).await {
                Ok(client) => client,
                Err(e) => return drop(begun.send(Err(e))),
            };
            drop(begun.send(Ok(())));
            let (report, problems) = watch::channel(Vec::new());
            let (sender, messages) = mpsc::channel(256);
            let mut tasks = tokio::task::JoinSet::new();
            for kind in KINDS {
                tasks.spawn(follow::follow(client.clone(), kind, settings.annotations, sender.clone()));
            }
            drop(sender);
            let condition = settings
                .node_condition
                .then(|| tokio::spawn(condition::report(client.clone(), settings.node.clone(), readiness)));
            let events = events::Reporter {
                client,
                node: settings.node.clone(),
                state: publish_state.clone(),
                updates: publish.subscribe(),
            };
            tasks.spawn(events.run(problems));
            let saved = settings.data_dir.as_deref().map(|dir| SavedState::new(dir, settings.annotations));
            let mut gather = Gather::new(saved, publish, publish_state, report);
            tokio::select! {
                () = gather.run(messages) => {}
                _ = stopped => {}
            }
            if let Some(condition) = condition {
                let _ = tokio::time::timeout(LAST_WORD, condition).await;
            }
            gather.end();
        };
        let thread = std::thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || runtime.block_on(follow))
            .map_err(ConnectError::Thread)?;
        // At once: nothing has been sent to the API yet.
        let ended = || ConnectError::Thread(std::io::Error::other("it ended at its start"));
        connected.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Self { updates, state, readiness: tell, stop: Some(stop), thread: Some(thread) })
    }

    /// The updates: the current one at once, later ones as objects change (the newest only, none twice).
    ///
    /// The first one is [`Update::nothing`], until there is something to say.
    #[must_use]
    pub fn updates(&self) -> watch::Receiver<Arc<Update>> {
        self.updates.clone()
    }

    /// Tells whether this node forwards, for the condition on its Node; nothing where that is not asked for.
    pub fn tell(&self, readiness: NodeReadiness) {
        if let Some(tell) = &self.readiness {
            let news = Some(readiness);
            tell.send_if_modified(|told| {
                let changed = *told != news;
                if changed {
                    *told = news;
                }
                changed
            });
        }
    }

    /// How the connection is.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SourceState> {
        self.state.clone()
    }
}

impl Drop for KubernetesSource {
    fn drop(&mut self) {
        // First: the last word is written before the thread ends.
        drop(self.readiness.take());
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
