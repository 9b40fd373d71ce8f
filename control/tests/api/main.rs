//! The source `kubernetes` against a real kube-apiserver and etcd.
//!
//! Run by `scripts/test.sh --api [NAME]`, which builds the programs. Each test starts a server of its own on loopback;
//! the source may do there what `configs/k8s` grants the daemon and no more.
//!
//! | Module | Shows |
//! |---|---|
//! | `follow` | create, change, delete of every kind; labels; what cannot be honoured, and the Event on it |
//! | `install` | `configs/k8s/install.yaml` is accepted; its account may do what the daemon does, and nothing else |
//! | `equivalence` | the API gives the model that the same objects in a folder give |
//! | `outage` | connections cut, etcd compacted, the API away, the saved state |
//! | `condition` | the condition on the own Node |
//! | `burst` | thousands of objects: time, memory, number of updates |
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must say so and fail")]

#[path = "../apiserver/mod.rs"]
mod apiserver;
mod burst;
mod condition;
mod equivalence;
mod follow;
mod install;
#[path = "../oracle/mod.rs"]
#[allow(dead_code, reason = "of the evaluator only its types are used here")]
mod oracle;
mod outage;
#[path = "../worlds/mod.rs"]
#[allow(dead_code, reason = "of the random clusters only their policies are used here")]
mod worlds;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{Options, Server};
use fastpath_control::model::ObjectName;
use fastpath_control::source::{KubernetesSettings, KubernetesSource, SourceState, Update};
use serde_json::{Value, json};

/// How long a change may take to be seen.
const LIMIT: Duration = Duration::from_secs(30);

/// A server, and user `fastpath` granted what the daemon needs.
fn server(options: Options) -> Server {
    let server = Server::start(options);
    let text = std::fs::read_to_string(apiserver::INSTALL).expect("configs/k8s/install.yaml");
    let installed = fastpath_control::source::documents(&text).expect("YAML");
    let role = installed.into_iter().find(|o| o["kind"] == "ClusterRole").expect("a ClusterRole");
    server.client().apply(&[
        role,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "fastpath"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "fastpath"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "fastpath"}],
        }),
    ]);
    server
}

fn settings(kubeconfig: &Path, data_dir: Option<&Path>) -> KubernetesSettings {
    KubernetesSettings {
        kubeconfig: Some(kubeconfig.to_owned()),
        api_server: None,
        node: "node-under-test".to_owned(),
        data_dir: data_dir.map(Path::to_owned),
        annotations: true,
        node_condition: false,
    }
}

/// The source, as the daemon starts it.
struct Source {
    source: KubernetesSource,
}

impl Source {
    /// By a kubeconfig; with a folder for the saved state, or none.
    fn start(kubeconfig: &Path, data_dir: Option<&Path>) -> Self {
        let settings = settings(kubeconfig, data_dir);
        Source { source: KubernetesSource::start(settings).expect("the kubeconfig is good") }
    }

    /// For a server, waiting for the first full state.
    fn synced(server: &Server) -> Self {
        let source = Source::start(&server.agent_config(), None);
        source.until("the first state", |u, _| u.synced.then_some(()));
        source
    }

    fn update(&self) -> Arc<Update> {
        self.source.updates().borrow().clone()
    }

    fn state(&self) -> SourceState {
        self.source.state().borrow().clone()
    }

    /// Waits until `found` finds something in what the source says.
    fn until<T>(&self, what: &str, found: impl Fn(&Update, &SourceState) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let (update, state) = (self.update(), self.state());
            if let Some(found) = found(&update, &state) {
                return found;
            }
            assert!(
                Instant::now() < end,
                "{what}: not within {LIMIT:?}; problems {:?}, state {state:?}",
                update.problems
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the model holds what the API server answered, a kind at a time by its version.
    fn has(&self, objects: &[Value]) -> Arc<Update> {
        self.until("the objects applied", |_, state| {
            objects.iter().all(|o| seen(state, o)).then(|| self.update())
        })
    }
}

/// Whether the source has seen this version of an object, or a later one of its kind.
fn seen(state: &SourceState, object: &Value) -> bool {
    let plural = apiserver::client::plural(object["kind"].as_str().expect("kind"));
    let wanted: u64 =
        object["metadata"]["resourceVersion"].as_str().expect("a version").parse().expect("a number");
    let have = state.versions.get(plural.as_str()).and_then(|v| v.parse::<u64>().ok());
    have.is_some_and(|have| have >= wanted)
}

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}
