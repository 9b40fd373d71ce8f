//! What is wrong with an object, as a Kubernetes Event on it (`events.k8s.io/v1`).
//!
//! An Event's name is made of the object and what is said, so that a cluster of many nodes writes each once: the API
//! refuses the second of a name. Events expire after an hour; what is still wrong then is said again.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::PostParams;
use kube::core::Request;
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::super::{Severity, SourceState, Update};
use super::backoff::fraction;
use super::decode::api_version;
use super::follow::reason;
use super::saved::hash;
use super::store::Wrong;
use crate::model::{ObjectName, Origin};

/// How often what is still wrong is said again: when the Event of before has expired.
const AGAIN: Duration = Duration::from_secs(61 * 60);
/// Time between two Events, once the first [`BURST`] are written.
const PACE: Duration = Duration::from_secs(1);
/// Events that may be written one right after the other.
const BURST: u32 = 25;
/// After the API refused: how long nothing is tried.
const REFUSED: Duration = Duration::from_secs(10 * 60);
/// After it did not answer.
const FAILED: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest note that the API takes, in bytes.
const NOTE: usize = 1024;

/// Of every node of the cluster, one in this time tries to write the Event on what all of them see at once.
const NODE_SHARE: Duration = Duration::from_millis(20);
/// Longest wait before a new Event.
const SPREAD: Duration = Duration::from_secs(60);

/// Who writes Events on what is wrong.
pub(super) struct Reporter {
    pub(super) client: Client,
    /// Name of this node.
    pub(super) node: String,
    /// Where it is counted.
    pub(super) state: watch::Sender<SourceState>,
    /// What is published.
    pub(super) updates: watch::Receiver<Arc<Update>>,
}

impl Reporter {
    /// Writes until no problem can come any more.
    pub(super) async fn run(self, mut problems: watch::Receiver<Vec<Wrong>>) {
        let Self { client, node, state, updates } = self;
        // Name of the Event, and when to say it again.
        let mut said: HashMap<String, Instant> = HashMap::new();
        let mut tokens = Tokens { left: BURST, at: Instant::now() };
        loop {
            let look = |wrong: &[Wrong]| wrong.iter().filter_map(|w| event(w, &node)).collect::<Vec<_>>();
            let is_new = |name: &String| said.get(name).is_none_or(|again| Instant::now() >= *again);
            if look(&problems.borrow()).iter().any(|(name, _, _)| is_new(name)) {
                // Nodes that see the same at once do not all ask for the same at once.
                let nodes = updates.borrow().model.nodes.len();
                sleep(spread(nodes, fraction())).await;
            }
            // What is well again by now is not told.
            let events: Vec<(String, String, Value)> = look(&problems.borrow_and_update());
            // What is well again may be wrong anew.
            said.retain(|name, _| events.iter().any(|(n, _, _)| n == name));
            let mut pause = None;
            for (name, namespace, body) in events {
                if said.get(&name).is_some_and(|again| Instant::now() < *again) {
                    continue;
                }
                tokens.take().await;
                match write(&client, &namespace, &body).await {
                    Ok(new) => {
                        said.insert(name, Instant::now() + AGAIN);
                        state.send_if_modified(|s| {
                            s.reported += u64::from(new);
                            false
                        });
                    }
                    Err(needed) => {
                        pause = Some(needed);
                        break;
                    }
                }
            }
            if let Some(pause) = pause {
                sleep(pause).await;
                continue;
            }
            tokio::select! {
                changed = problems.changed() => if changed.is_err() { return },
                () = sleep(AGAIN) => {}
            }
        }
    }
}

/// How long a node of so many waits before a new Event; `fraction` is from 0 to 1.
fn spread(nodes: usize, fraction: f64) -> Duration {
    let all = NODE_SHARE.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)).min(SPREAD);
    all.mul_f64(fraction)
}

/// Rate limit: a bucket of [`BURST`], one more each [`PACE`].
struct Tokens {
    left: u32,
    at: Instant,
}

impl Tokens {
    async fn take(&mut self) {
        let earned = self.at.elapsed().as_secs() / PACE.as_secs().max(1);
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
            self.at = Instant::now();
        }
        if self.left == 0 {
            sleep(PACE).await;
            self.at = Instant::now();
        } else {
            self.left -= 1;
        }
    }
}

/// Name, namespace and body of the Event on a problem; `None` if it is of no object.
fn event(wrong: &Wrong, node: &str) -> Option<(String, String, Value)> {
    let Origin::ApiObject { kind, name } = &wrong.problem.origin else { return None };
    let ObjectName { namespace, name: object } = name;
    let place = if namespace.is_empty() { "default" } else { namespace };
    let mut note = wrong.problem.reason.clone();
    while note.len() > NOTE {
        note.pop();
    }
    let said = format!("{kind}\n{}\n{note}", wrong.uid);
    // A name has at most 253 characters.
    let head: String = object.chars().take(200).collect();
    let event_name = format!("{}.{:016x}", head.trim_end_matches(['.', '-']), hash(said.as_bytes()));
    let reason = match wrong.problem.severity {
        Severity::Error => "NotInForce",
        Severity::Warning | Severity::Ignored => "NotAsWritten",
    };
    let mut regarding =
        json!({"apiVersion": api_version(kind), "kind": kind, "name": object, "uid": wrong.uid});
    if let (false, Some(fields)) = (namespace.is_empty(), regarding.as_object_mut()) {
        fields.insert("namespace".to_owned(), namespace.as_str().into());
    }
    let body = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": event_name, "namespace": place},
        "eventTime": format!("{:.6}", jiff::Timestamp::now()),
        "reportingController": "fastpath.io/dataplane",
        "reportingInstance": node,
        "action": "Apply",
        "reason": reason,
        "type": "Warning",
        "regarding": regarding,
        "note": note,
    });
    Some((format!("{place}/{event_name}"), place.to_owned(), body))
}

/// Whether it is new; or how long to wait before anything is tried again.
async fn write(client: &Client, namespace: &str, body: &Value) -> Result<bool, Duration> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let Ok(request) = Request::new(path).create(&PostParams::default(), body.to_string().into_bytes()) else {
        return Ok(false);
    };
    match timeout(ANSWER, client.request_text(request)).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(Error::Api(status))) => match status.code {
            // Another node said it, or this one before it was restarted; or the object's namespace is going.
            409 | 404 => Ok(false),
            403 if status.message.contains("being terminated") => Ok(false),
            401 | 403 => {
                tracing::warn!("Events on objects that are wrong are not written: {}", status.message);
                Err(REFUSED)
            }
            422 | 400 => {
                tracing::warn!("an Event was refused: {}", status.message);
                Ok(false)
            }
            _ => Err(FAILED),
        },
        Ok(Err(e)) => {
            tracing::debug!("an Event is not written: {}", reason(&e));
            Err(FAILED)
        }
        Err(_) => Err(FAILED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Problem;

    fn wrong(namespace: &str, uid: &str, reason: &str) -> Wrong {
        let name = ObjectName { namespace: namespace.to_owned(), name: "web".to_owned() };
        let kind = if namespace.is_empty() { "Node" } else { "NetworkPolicy" };
        let origin = Origin::ApiObject { kind, name };
        Wrong {
            uid: uid.into(),
            problem: Problem { origin, severity: Severity::Error, reason: reason.to_owned() },
        }
    }

    #[test]
    fn nodes_that_see_the_same_are_spread_by_their_number() {
        assert_eq!(spread(1, 1.0), NODE_SHARE);
        assert_eq!(spread(1000, 0.5), Duration::from_secs(10));
        assert_eq!(spread(usize::MAX, 1.0), SPREAD);
        assert_eq!(spread(0, 1.0), Duration::ZERO);
    }

    /// Every node makes the same name of the same problem, another one of another problem or object.
    #[test]
    fn names_tell_problems_apart() {
        let (name, place, body) = event(&wrong("shop", "1", "spec.x: no"), "a").unwrap();
        assert_eq!(event(&wrong("shop", "1", "spec.x: no"), "b").unwrap().0, name);
        for other in [wrong("shop", "1", "spec.y: no"), wrong("shop", "2", "spec.x: no")] {
            assert_ne!(event(&other, "a").unwrap().0, name);
        }
        assert_eq!(place, "shop");
        assert_eq!(body["regarding"]["apiVersion"], "networking.k8s.io/v1");
        let (_, place, body) = event(&wrong("", "1", &"ä".repeat(3000)), "a").unwrap();
        assert_eq!(place, "default");
        assert!(body["regarding"].get("namespace").is_none() && body["note"].as_str().unwrap().len() <= NOTE);
        let elsewhere = Origin::Api;
        let problem = Problem { origin: elsewhere, severity: Severity::Error, reason: String::new() };
        assert!(event(&Wrong { uid: "".into(), problem }, "a").is_none());
    }
}
