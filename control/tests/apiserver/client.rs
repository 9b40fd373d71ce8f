//! Objects in and out of an API server, from a thread inside its network namespace.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fastpath_control::source::KubernetesSettings;
use fastpath_control::source::kubernetes::connect;
use futures_util::StreamExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

/// Requests at the same time in a batch.
const PARALLEL: usize = 16;
/// Who applies.
const MANAGER: &str = "test";

/// What the server said instead.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// HTTP status; 0 when there was no answer.
    pub(crate) code: u16,
    /// In words.
    pub(crate) message: String,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// GET of a path, answered as text.
    Text(String),
    /// Creates; fails when it is there. The path is that of the collection.
    Create(String, Value),
    /// Creates or changes, by server-side apply: path of the collection, name, object.
    Apply(String, String, Value),
    /// Merges into what is there: path of the collection, name, subresource, patch.
    Merge(String, String, Option<&'static str>, Value),
    /// Deletes at once.
    Delete(String, String),
    /// Lets a namespace go without a controller.
    Finalize(String),
}

type Answer = Result<Value, Refused>;
type Job = (Vec<Call>, mpsc::Sender<Vec<Answer>>);

/// The thread that asks.
#[derive(Debug)]
pub(crate) struct Client {
    jobs: mpsc::Sender<Job>,
}

/// Path of a kind's collection; `namespace` is empty for kinds without.
fn collection(api_version: &str, kind: &str, namespace: &str) -> String {
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    let plural = plural(kind);
    if namespace.is_empty() {
        format!("{root}/{api_version}/{plural}")
    } else {
        format!("{root}/{api_version}/namespaces/{namespace}/{plural}")
    }
}

/// What the API's paths call a kind.
pub(crate) fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    match lower.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{lower}s"),
    }
}

/// Whether objects of a kind live in a namespace.
fn is_namespaced(kind: &str) -> bool {
    !matches!(kind, "Node" | "Namespace" | "ClusterRole" | "ClusterRoleBinding")
}

/// Kind, namespace (empty for kinds without) and name of an object.
pub(crate) fn identity(object: &Value) -> (String, String, String) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]);
    let mut namespace = text(&object["metadata"]["namespace"]);
    if is_namespaced(&kind) && namespace.is_empty() {
        "default".clone_into(&mut namespace);
    } else if !is_namespaced(&kind) {
        namespace.clear();
    }
    (kind, namespace, text(&object["metadata"]["name"]))
}

impl Client {
    /// Asks by this kubeconfig, from this network namespace.
    pub(crate) fn start(kubeconfig: &Path, netns: Option<&Path>) -> Self {
        let (jobs, todo) = mpsc::channel::<Job>();
        let settings =
            KubernetesSettings { kubeconfig: Some(kubeconfig.to_owned()), ..KubernetesSettings::default() };
        let netns = netns.map(Path::to_owned);
        std::thread::spawn(move || {
            if let Some(path) = netns {
                let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                setns(&file, CloneFlags::CLONE_NEWNET).expect("enter the server's namespace");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
            let client = runtime.block_on(connect(&settings)).expect("a kubeconfig of the fixture");
            while let Ok((calls, reply)) = todo.recv() {
                let answers = runtime.block_on(async {
                    let asked = calls.into_iter().map(|call| ask(&client, call));
                    futures_util::stream::iter(asked).buffered(PARALLEL).collect::<Vec<_>>().await
                });
                drop(reply.send(answers));
            }
        });
        Client { jobs }
    }

    /// Asks all at the same time, or nearly so; answers are in the order of the calls.
    pub(crate) fn batch(&self, calls: Vec<Call>) -> Vec<Answer> {
        let (reply, answers) = mpsc::channel();
        self.jobs.send((calls, reply)).expect("the client's thread runs");
        answers.recv().expect("the client's thread answers")
    }

    fn one(&self, call: Call) -> Answer {
        self.batch(vec![call]).pop().expect("one answer")
    }

    /// GET of a path.
    pub(crate) fn get_text(&self, path: &str) -> Result<String, Refused> {
        self.one(Call::Text(path.to_owned())).map(|v| v.as_str().unwrap_or_default().to_owned())
    }

    /// An object.
    pub(crate) fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Answer {
        let text = self.get_text(&format!("{}/{name}", collection(api_version, kind, namespace)))?;
        Ok(serde_json::from_str(&text).expect("the API answers in JSON"))
    }

    /// All objects of a kind, in one namespace or (empty) in all.
    pub(crate) fn list(&self, api_version: &str, kind: &str, namespace: &str) -> Vec<Value> {
        let text = self.get_text(&collection(api_version, kind, namespace)).expect("a list");
        let list: Value = serde_json::from_str(&text).expect("the API answers in JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Creates or changes objects with their status; panics when one is refused. Returns each as it is then.
    pub(crate) fn apply(&self, objects: &[Value]) -> Vec<Value> {
        let mut out: Vec<Value> = Vec::new();
        // Namespaces first: what lives in them needs them.
        let mut order: Vec<&Value> = objects.iter().collect();
        order.sort_by_key(|o| o["kind"] != "Namespace");
        let (first, rest) = order.split_at(order.iter().take_while(|o| o["kind"] == "Namespace").count());
        for part in [first, rest] {
            let answers = self.batch(part.iter().map(|o| apply_call(o)).collect());
            let mut after: Vec<Value> = answers
                .into_iter()
                .zip(part)
                .map(|(answer, object)| answer.unwrap_or_else(|e| self.replace(object, &e)))
                .collect();
            let with_status: Vec<usize> = (0..part.len()).filter(|i| has_status(part[*i])).collect();
            let calls = with_status.iter().map(|i| status_call(part[*i])).collect();
            for (i, answer) in with_status.iter().zip(self.batch(calls)) {
                after[*i] = answer.unwrap_or_else(|e| panic!("status of {}: {e:?}", part[*i]));
            }
            out.append(&mut after);
        }
        out
    }

    /// What cannot be changed is deleted and made anew.
    fn replace(&self, object: &Value, why: &Refused) -> Value {
        assert!(why.code == 422, "{object}: {why:?}");
        self.delete(object);
        self.one(apply_call(object)).unwrap_or_else(|e| panic!("{object}: {e:?}"))
    }

    /// Creates objects without their status, many at a time; panics when one is refused.
    pub(crate) fn create_all(&self, objects: &[Value]) {
        let calls = objects.iter().map(|o| {
            let (kind, namespace, _) = identity(o);
            Call::Create(
                collection(o["apiVersion"].as_str().expect("apiVersion"), &kind, &namespace),
                o.clone(),
            )
        });
        for (answer, object) in self.batch(calls.collect()).into_iter().zip(objects) {
            answer.unwrap_or_else(|e| panic!("{object}: {e:?}"));
        }
    }

    /// Merges `patch` into many objects (`kind` of `v1`, namespace, name), or into their status.
    pub(crate) fn merge_all(&self, kind: &str, status: bool, patches: Vec<(String, String, Value)>) {
        let sub = status.then_some("status");
        let calls = patches.into_iter().map(|(namespace, name, patch)| {
            Call::Merge(collection("v1", kind, &namespace), name, sub, patch)
        });
        for answer in self.batch(calls.collect()) {
            answer.unwrap_or_else(|e| panic!("merge: {e:?}"));
        }
    }

    /// Merges `patch` into one object; returns it.
    pub(crate) fn merge(
        &self,
        api_version: &str,
        (kind, namespace, name): (&str, &str, &str),
        patch: Value,
    ) -> Value {
        let call = Call::Merge(collection(api_version, kind, namespace), name.to_owned(), None, patch);
        self.one(call).unwrap_or_else(|e| panic!("{kind} {namespace}/{name}: {e:?}"))
    }

    /// A token of a service account (namespace, name), for an hour.
    pub(crate) fn token(&self, (namespace, name): (&str, &str)) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
        let answer = self.one(Call::Create(path, body)).expect("a token");
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// Deletes an object and waits until it is gone.
    pub(crate) fn delete(&self, object: &Value) {
        let (kind, namespace, name) = identity(object);
        let api_version = object["apiVersion"].as_str().expect("apiVersion").to_owned();
        let path = collection(&api_version, &kind, &namespace);
        match self.one(Call::Delete(path, name.clone())) {
            Ok(_) => {}
            Err(e) => assert!(e.code == 404, "delete {kind} {namespace}/{name}: {e:?}"),
        }
        if kind == "Namespace" {
            drop(self.one(Call::Finalize(name.clone())));
        }
        let end = Instant::now() + Duration::from_secs(30);
        while self.get(&api_version, &kind, &namespace, &name).is_ok() {
            assert!(Instant::now() < end, "{kind} {namespace}/{name} does not go");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether there is a status to apply: that of an EndpointSlice or policy would be none.
fn has_status(object: &Value) -> bool {
    object.get("status").is_some_and(|s| s.as_object().is_some_and(|s| !s.is_empty()))
}

fn apply_call(object: &Value) -> Call {
    let (kind, namespace, name) = identity(object);
    let api_version = object["apiVersion"].as_str().expect("apiVersion");
    let mut body = object.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.remove("status");
    }
    Call::Apply(collection(api_version, &kind, &namespace), name, body)
}

/// By merge: server-side apply refuses two addresses of one type in a Node's status.
fn status_call(object: &Value) -> Call {
    let (kind, namespace, name) = identity(object);
    let api_version = object["apiVersion"].as_str().expect("apiVersion");
    let status = json!({"status": object["status"]});
    Call::Merge(collection(api_version, &kind, &namespace), name, Some("status"), status)
}

async fn ask(client: &kube::Client, call: Call) -> Answer {
    let apply = || PatchParams::apply(MANAGER).force();
    let at = |path: &str| Request::new(path.to_owned());
    let request = match &call {
        Call::Text(path) => {
            let (path, name) = path.rsplit_once('/').unwrap_or(("", path));
            at(path).get(name, &kube::api::GetParams::default())
        }
        Call::Create(path, object) => {
            at(path).create(&PostParams::default(), object.to_string().into_bytes())
        }
        Call::Apply(path, name, object) => at(path).patch(name, &apply(), &Patch::Apply(object)),
        Call::Merge(path, name, None, patch) => {
            at(path).patch(name, &PatchParams::default(), &Patch::Merge(patch))
        }
        Call::Merge(path, name, Some(sub), patch) => {
            at(path).patch_subresource(sub, name, &PatchParams::default(), &Patch::Merge(patch))
        }
        Call::Delete(path, name) => at(path).delete(name, &DeleteParams::default().grace_period(0)),
        Call::Finalize(name) => {
            let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"finalizers": []}});
            at("/api/v1/namespaces").replace_subresource(
                "finalize",
                name,
                &PostParams::default(),
                body.to_string().into_bytes(),
            )
        }
    };
    let request = request.map_err(|e| Refused { code: 0, message: e.to_string() })?;
    match client.request_text(request).await {
        Ok(text) if matches!(call, Call::Text(_)) => Ok(Value::String(text)),
        Ok(text) => Ok(serde_json::from_str(&text).expect("the API answers in JSON")),
        Err(kube::Error::Api(status)) => Err(Refused { code: status.code, message: status.message }),
        Err(e) => Err(Refused { code: 0, message: e.to_string() }),
    }
}
