//! A condition on this node's Node object that says whether the dataplane forwards (`source.node_condition`).
//!
//! Written by a strategic merge patch of `nodes/status`, which leaves the conditions of others alone. A change of status
//! is written at once, what is unchanged is repeated seldom; an API that is away is tried again.
//!
//! Nobody speaks for a daemon that was killed: its last word stays, with a `lastHeartbeatTime` that gets older. The message
//! of a `True` says up to what age it holds, and the next daemon begins with `Unknown` where it finds one. What a controller
//! sees at once is the DaemonSet's pod, whose `Ready` the kubelet keeps.
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
/// Age of `lastHeartbeatTime` from which a condition says nothing: two repetitions have not come.
const HOLDS: Duration = Duration::from_secs(12 * 60);
/// Longest time between two attempts while the API refuses, or has no such Node; one that has just started may do so too.
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

/// What the condition has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    status: &'static str,
    reason: &'static str,
    message: String,
}

const TRUE: &str = "True";
const FALSE: &str = "False";
const UNKNOWN: &str = "Unknown";

impl Words {
    fn of(told: &NodeReadiness) -> Self {
        let NodeReadiness { ready, reason, message } = told;
        let mut message = message.clone();
        if *ready {
            let minutes = HOLDS.as_secs() / 60;
            message.push_str(&format!(
                " (said again every 5 to 6 minutes; older than {minutes}, it is of a daemon that is gone)"
            ));
        }
        Self { status: if *ready { TRUE } else { FALSE }, reason, message }
    }

    /// A daemon begins and finds that one that was killed was ready.
    fn doubt() -> Self {
        let message = "the daemon before this one ended without a word; this one is starting".to_owned();
        Self { status: UNKNOWN, reason: "Restarted", message }
    }
}

/// Writes the condition whenever it is due, until the sender of `readiness` is gone; what was sent last is written then.
pub(super) async fn report(
    client: Client,
    node: String,
    mut readiness: watch::Receiver<Option<NodeReadiness>>,
) {
    let mut said = doubt(&client, &node, &mut readiness).await;
    let (mut backoff, mut refused) = (Backoff::new(), Backoff::up_to(REFUSED));
    let mut warned = false;
    let mut open = true;
    while open {
        let wanted = readiness.borrow_and_update().as_ref().map(Words::of);
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
                    Err(Failure::Wrong(why)) => {
                        tracing::warn!(
                            "the condition {CONDITION} of this node is not written before the next start: {why}"
                        );
                        return;
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
    let last = readiness.borrow().as_ref().map(Words::of);
    if let (Some(last), Some(said)) = (last, said)
        && last != said.what
    {
        // What fails now is not tried again: who reads the condition sees by its heartbeat that it is old.
        let _ = write(&client, &node, &last, Some(&said)).await;
    }
}

/// Takes back what a daemon that was killed left as `True`, unless something is told before.
async fn doubt(
    client: &Client,
    node: &str,
    readiness: &mut watch::Receiver<Option<NodeReadiness>>,
) -> Option<Said> {
    let mut backoff = Backoff::up_to(REFUSED);
    while readiness.borrow().is_none() {
        let written = match found(client, node).await {
            // Not if something was told while the answer was on its way.
            Ok(Some(before)) if before.0 == TRUE && readiness.borrow().is_none() => {
                put(client, node, &Words::doubt(), Some(before)).await
            }
            Ok(_) => return None,
            Err(e) => Err(e),
        };
        if let Ok(said) = written {
            return Some(said);
        }
        tokio::select! {
            _ = readiness.changed() => return None,
            () = tokio::time::sleep(backoff.delay()) => {}
        }
    }
    None
}

/// What the API has.
#[derive(Clone, Debug)]
struct Said {
    what: Words,
    at: Instant,
    /// When it is to be repeated.
    again: Instant,
    /// `lastTransitionTime`.
    since: String,
}

/// When `wanted` is to be written.
fn due(said: Option<&Said>, wanted: &Words) -> Instant {
    match said {
        None => Instant::now(),
        Some(said) if said.what.status == UNKNOWN => said.at,
        Some(said) if said.what.status != wanted.status => said.at + FLAPPING,
        Some(said) if said.what != *wanted => said.at + REWORDED,
        Some(said) => said.again,
    }
}

/// Why it was not written.
#[derive(Debug)]
enum Failure {
    /// This account may not, or there is no such Node; and why.
    Refused(String),
    /// The API takes no such thing, now or later; and why.
    Wrong(String),
    /// No answer, or one that may be another later.
    Away,
}

async fn ask(client: &Client, request: hyper::Request<Vec<u8>>) -> Result<Value, Failure> {
    match timeout(ANSWER, client.request::<Value>(request)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Error::Api(status))) if status.code < 500 && status.code != 429 => {
            Err(refusal(status.code, status.message))
        }
        Ok(Err(e)) => {
            tracing::debug!("the condition {CONDITION} of this node is not written: {}", reason(&e));
            Err(Failure::Away)
        }
        Err(_) => Err(Failure::Away),
    }
}

/// What an answer of the API means that is neither success nor a fault of the server.
fn refusal(code: u16, message: String) -> Failure {
    match code {
        // Not allowed; no such Node; another wrote at the same time: the API may be of another mind later.
        401 | 403 | 404 | 409 => Failure::Refused(message),
        _ => Failure::Wrong(format!("{message} ({code})")),
    }
}

/// Status and `lastTransitionTime` as a run before left them. By a list, for that is what the daemon may do.
async fn found(client: &Client, node: &str) -> Result<Option<(String, String)>, Failure> {
    let params = ListParams::default().fields(&format!("metadata.name={node}"));
    let Ok(request) = Request::new("/api/v1/nodes").list(&params) else { return Ok(None) };
    let list = ask(client, request).await?;
    let conditions = list["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(conditions
        .iter()
        .find(|c| c["type"] == CONDITION)
        .and_then(|c| Some((c["status"].as_str()?.to_owned(), c["lastTransitionTime"].as_str()?.to_owned()))))
}

async fn write(client: &Client, node: &str, wanted: &Words, said: Option<&Said>) -> Result<Said, Failure> {
    let before = match said {
        Some(said) => Some((said.what.status.to_owned(), said.since.clone())),
        None => found(client, node).await?,
    };
    put(client, node, wanted, before).await
}

/// Writes it; `before` is what stands there: status and `lastTransitionTime`.
async fn put(
    client: &Client,
    node: &str,
    wanted: &Words,
    before: Option<(String, String)>,
) -> Result<Said, Failure> {
    let now = format!("{:.0}", jiff::Timestamp::now());
    let since =
        before.filter(|(status, _)| status == wanted.status).map_or_else(|| now.clone(), |(_, since)| since);
    let patch = Patch::Strategic(body(wanted, &now, &since));
    let request =
        Request::new("/api/v1/nodes").patch_subresource("status", node, &PatchParams::default(), &patch);
    let request = request.map_err(|e| Failure::Wrong(e.to_string()))?;
    ask(client, request).await?;
    let at = Instant::now();
    Ok(Said { what: wanted.clone(), at, again: at + REPEAT.mul_f64(1.0 + fraction() / 10.0), since })
}

fn body(wanted: &Words, now: &str, since: &str) -> Value {
    json!({"status": {"conditions": [{
        "type": CONDITION,
        "status": wanted.status,
        "reason": wanted.reason,
        "message": wanted.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": since,
    }]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(ready: bool, message: &str) -> Words {
        Words::of(&NodeReadiness { ready, reason: "Forwarding", message: message.to_owned() })
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_is_due_soon_and_what_did_not_seldom() {
        let at = Instant::now();
        let what = words(true, "a");
        assert_eq!(due(None, &what), at, "the first at once");
        let said = Said { what: what.clone(), at, again: at + REPEAT, since: String::new() };
        assert_eq!(due(Some(&said), &what), at + REPEAT);
        assert_eq!(due(Some(&said), &words(true, "b")), at + REWORDED);
        assert_eq!(due(Some(&said), &words(false, "a")), at + FLAPPING);
        let doubted = Said { what: Words::doubt(), ..said };
        assert_eq!(due(Some(&doubted), &what), at, "what is known now is said at once");
        assert!(REPEAT >= REWORDED && REWORDED >= Duration::from_secs(60));
    }

    #[test]
    fn what_is_true_says_for_how_long() {
        assert!(words(true, "all is well").message.contains("older than 12, it is of a daemon that is gone"));
        assert_eq!(words(false, "why").message, "why");
        assert!(HOLDS >= REPEAT.mul_f64(2.2), "two repetitions have not come");
    }

    #[test]
    fn what_is_tried_again_and_what_is_not() {
        for (code, again) in [(401, true), (403, true), (404, true), (409, true), (400, false), (422, false)]
        {
            let failure = refusal(code, "why".to_owned());
            assert_eq!(matches!(failure, Failure::Refused(_)), again, "{code}: {failure:?}");
            assert!(again || matches!(failure, Failure::Wrong(_)), "{code}: {failure:?}");
        }
    }

    #[test]
    fn the_patch_names_one_condition_and_its_times() {
        let body = body(&words(false, "why"), "2026-01-02T03:04:05Z", "2026-01-01T00:00:00Z");
        let [condition] = body["status"]["conditions"].as_array().unwrap().as_slice() else {
            panic!("{body}")
        };
        assert_eq!(condition["type"], CONDITION);
        assert_eq!((&condition["status"], &condition["message"]), (&json!("False"), &json!("why")));
        assert_eq!(condition["lastHeartbeatTime"], "2026-01-02T03:04:05Z");
        assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
    }
}
