//! A condition on this node's Node object that says whether the dataplane forwards (`source.node_condition`).
//!
//! Written by a strategic merge patch of `nodes/status`, which leaves the conditions of others alone. A change of status
//! is written at once, what is unchanged is repeated seldom; an API that is away is tried again.
#![forbid(unsafe_code)]

use std::time::Duration;

use kube::api::{ListParams, Patch, PatchParams};
use kube::core::Request;
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::backoff::{Backoff, fraction};
use super::follow::reason;

/// Type of the condition.
pub const CONDITION: &str = "FastpathReady";
/// How often what is unchanged is said again, as the kubelet does (plus a tenth at most, at random).
const REPEAT: Duration = Duration::from_secs(5 * 60);
/// Shortest time between two writes when only reason or message changed.
const REWORDED: Duration = Duration::from_secs(60);
/// Shortest time between two writes when the status changed.
const FLAPPING: Duration = Duration::from_secs(5);
/// Longest time between two attempts while the API refuses for lack of rights; a server that has just started may do so too.
const REFUSED: Duration = Duration::from_secs(5 * 60);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Whether this node forwards, as it is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReadiness {
    /// Status of the condition.
    pub ready: bool,
    /// Its reason, one word in CamelCase.
    pub reason: &'static str,
    /// Its message, for people.
    pub message: String,
}

/// Writes the condition whenever it is due, until the sender of `readiness` is gone; what was sent last is written then.
pub(super) async fn report(
    client: Client,
    node: String,
    mut readiness: watch::Receiver<Option<NodeReadiness>>,
) {
    let mut said: Option<Said> = None;
    let (mut backoff, mut refused) = (Backoff::new(), Backoff::up_to(REFUSED));
    let mut warned = false;
    let mut open = true;
    while open {
        let wanted = readiness.borrow_and_update().clone();
        let due = wanted.as_ref().map(|wanted| due(said.as_ref(), wanted));
        let wait = match (due, &wanted) {
            (Some(due), Some(wanted)) if due <= Instant::now() => {
                match write(&client, &node, wanted, said.as_ref()).await {
                    Ok(now) => {
                        backoff.reset();
                        refused.reset();
                        warned = false;
                        said = Some(now);
                        continue;
                    }
                    Err(Failure::Refused(why)) => {
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!("the condition {CONDITION} of this node is not written: {why}");
                        }
                        Some(Instant::now() + refused.delay())
                    }
                    Err(Failure::Away) => Some(Instant::now() + backoff.delay()),
                }
            }
            (due, _) => due,
        };
        // After a failure nothing is sent earlier, whatever changes meanwhile.
        let failed = due.is_some_and(|due| due <= Instant::now());
        let pause = tokio::time::sleep_until(wait.unwrap_or_else(Instant::now));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                changed = readiness.changed() => {
                    open = changed.is_ok();
                    if !failed || !open { break }
                }
                () = &mut pause, if wait.is_some() => break,
            }
        }
    }
    let last = readiness.borrow().clone();
    if let (Some(last), Some(said)) = (last, said)
        && last != said.what
    {
        // What fails now is not tried again: who reads the condition sees by its heartbeat that it is old.
        let _ = write(&client, &node, &last, Some(&said)).await;
    }
}

/// What the API has.
#[derive(Clone, Debug)]
struct Said {
    what: NodeReadiness,
    at: Instant,
    /// When it is to be repeated.
    again: Instant,
    /// `lastTransitionTime`.
    since: String,
}

/// When `wanted` is to be written.
fn due(said: Option<&Said>, wanted: &NodeReadiness) -> Instant {
    match said {
        None => Instant::now(),
        Some(said) if said.what.ready != wanted.ready => said.at + FLAPPING,
        Some(said) if said.what != *wanted => said.at + REWORDED,
        Some(said) => said.again,
    }
}

/// Why it was not written.
#[derive(Debug)]
enum Failure {
    /// This account may not, and why.
    Refused(String),
    /// No answer, or one that may be another later.
    Away,
}

async fn ask(client: &Client, request: hyper::Request<Vec<u8>>) -> Result<Value, Failure> {
    match timeout(ANSWER, client.request::<Value>(request)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Error::Api(status))) if status.code == 401 || status.code == 403 => {
            Err(Failure::Refused(status.message))
        }
        Ok(Err(e)) => {
            tracing::debug!("the condition {CONDITION} of this node is not written: {}", reason(&e));
            Err(Failure::Away)
        }
        Err(_) => Err(Failure::Away),
    }
}

/// Status and `lastTransitionTime` as a run before left them. By a list, for that is what the daemon may do.
async fn found(client: &Client, node: &str) -> Result<Option<(bool, String)>, Failure> {
    let params = ListParams::default().fields(&format!("metadata.name={node}"));
    let Ok(request) = Request::new("/api/v1/nodes").list(&params) else { return Ok(None) };
    let list = ask(client, request).await?;
    let conditions = list["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(conditions.iter().find(|c| c["type"] == CONDITION).and_then(|c| {
        let since = c["lastTransitionTime"].as_str()?;
        Some((c["status"] == "True", since.to_owned()))
    }))
}

async fn write(
    client: &Client,
    node: &str,
    wanted: &NodeReadiness,
    said: Option<&Said>,
) -> Result<Said, Failure> {
    let before = match said {
        Some(said) => Some((said.what.ready, said.since.clone())),
        None => found(client, node).await?,
    };
    let now = format!("{:.0}", jiff::Timestamp::now());
    let since =
        before.filter(|(ready, _)| *ready == wanted.ready).map_or_else(|| now.clone(), |(_, since)| since);
    let patch = Patch::Strategic(body(wanted, &now, &since));
    let request =
        Request::new("/api/v1/nodes").patch_subresource("status", node, &PatchParams::default(), &patch);
    let request = request.map_err(|e| Failure::Refused(e.to_string()))?;
    ask(client, request).await?;
    let at = Instant::now();
    Ok(Said { what: wanted.clone(), at, again: at + REPEAT.mul_f64(1.0 + fraction() / 10.0), since })
}

fn body(wanted: &NodeReadiness, now: &str, since: &str) -> Value {
    json!({"status": {"conditions": [{
        "type": CONDITION,
        "status": if wanted.ready { "True" } else { "False" },
        "reason": wanted.reason,
        "message": wanted.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": since,
    }]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(ready: bool, message: &str) -> NodeReadiness {
        NodeReadiness { ready, reason: "Forwarding", message: message.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_is_due_soon_and_what_did_not_seldom() {
        let at = Instant::now();
        let what = readiness(true, "a");
        assert_eq!(due(None, &what), at, "the first at once");
        let said = Said { what: what.clone(), at, again: at + REPEAT, since: String::new() };
        assert_eq!(due(Some(&said), &what), at + REPEAT);
        assert_eq!(due(Some(&said), &readiness(true, "b")), at + REWORDED);
        assert_eq!(due(Some(&said), &readiness(false, "a")), at + FLAPPING);
        assert!(REPEAT >= REWORDED && REWORDED >= Duration::from_secs(60));
    }

    #[test]
    fn the_patch_names_one_condition_and_its_times() {
        let body = body(&readiness(false, "why"), "2026-01-02T03:04:05Z", "2026-01-01T00:00:00Z");
        let [condition] = body["status"]["conditions"].as_array().unwrap().as_slice() else {
            panic!("{body}")
        };
        assert_eq!(condition["type"], CONDITION);
        assert_eq!((&condition["status"], &condition["message"]), (&json!("False"), &json!("why")));
        assert_eq!(condition["lastHeartbeatTime"], "2026-01-02T03:04:05Z");
        assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
    }
}
