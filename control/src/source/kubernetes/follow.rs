//! One kind of the API: listed by pages, then watched from the list's version on.
//!
//! A watch that ends is taken up again where it ended. One whose version the server no longer has (410 Gone, as an
//! answer or as an event in the stream) is followed by a new list; so is one that cannot be taken up several times.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::super::kinds::{Key, Kind};
use super::backoff::{Backoff, fraction};
use super::decode::{Seen, decode, key};

/// Objects of a page.
const PAGE: u32 = 500;
/// Longest wait for a page, or for a watch to open.
const ANSWER: Duration = Duration::from_secs(30);
/// A watch that says nothing for so long is taken up on a new connection. The server sends a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(75);
/// Shortest life of a watch that is not a failure.
const SHORT: Duration = Duration::from_secs(1);
/// A watch of this age is not that of a version which the server gives and does not have.
const CALM: Duration = Duration::from_secs(30);
/// Longest wait between lists after versions that are gone one after the other.
const RELIST: Duration = Duration::from_secs(5);
/// Times that taking up a watch may fail by the server's word before its version is given up.
const TRIES: u32 = 3;

/// What a follower tells. Versions are `metadata.resourceVersion`.
#[derive(Debug)]
pub(super) enum Message {
    /// An object is there, or is otherwise than before.
    Seen(Box<Seen>, String),
    /// An object is gone.
    Gone(Key, String),
    /// A page of a list.
    Page(Vec<Seen>),
    /// A list is complete: what is not in it is gone. `again` unless it was the first.
    Listed { kind: &'static Kind, names: HashSet<Key>, version: String, again: bool },
    /// What was watched from is gone: the kind is known again, and seen as it changes, once it has been listed and
    /// a watch is open.
    Stale(&'static Kind, String),
    /// A watch is open.
    Open(&'static Kind),
    /// A bookmark.
    Bookmark(&'static Kind, String),
    /// The API does not answer, or refuses.
    Lost(&'static Kind, String),
}

/// The receiver is gone: the source ends.
struct Ended;

/// Why a list failed.
enum Failure {
    Ended,
    Lost(String),
    /// As long as the server asks for.
    Busy(String, Duration),
}

impl From<Ended> for Failure {
    fn from(_: Ended) -> Self {
        Failure::Ended
    }
}

/// A list, each item still as text.
#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    #[serde(default)]
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

/// Follows `kind` until the receiver is gone.
pub(super) async fn follow(
    client: Client,
    kind: &'static Kind,
    annotations: bool,
    to: mpsc::Sender<Message>,
) {
    let path = if kind.group.is_empty() {
        format!("/api/{}/{}", kind.version, kind.plural)
    } else {
        format!("/apis/{}/{}/{}", kind.group, kind.version, kind.plural)
    };
    let request = Request::new(path);
    let (backoff, relists) = (Backoff::new(), Backoff::up_to(RELIST));
    let mut follower = Follower { client, kind, annotations, request, to, backoff, relists, listed: false };
    // Ends with the receiver.
    let _ = follower.run().await;
}

struct Follower {
    client: Client,
    kind: &'static Kind,
    /// Whether pods' annotations about devices are honoured.
    annotations: bool,
    request: Request,
    to: mpsc::Sender<Message>,
    /// After failures.
    backoff: Backoff,
    /// After versions that are gone: the server answers, so the waits of an outage before are over.
    relists: Backoff,
    /// Whether a list was complete before.
    listed: bool,
}

impl Follower {
    async fn run(&mut self) -> Result<(), Ended> {
        loop {
            match self.list().await {
                Ok(version) => self.watch(version).await?,
                Err(Failure::Ended) => return Err(Ended),
                Err(Failure::Lost(reason)) => self.lost(reason, Duration::ZERO).await?,
                Err(Failure::Busy(reason, at_least)) => self.lost(reason, at_least).await?,
            }
        }
    }

    async fn tell(&self, message: Message) -> Result<(), Ended> {
        self.to.send(message).await.map_err(|_| Ended)
    }

    async fn lost(&mut self, reason: String, at_least: Duration) -> Result<(), Ended> {
        tracing::debug!(kind = self.kind.kind, reason, "Kubernetes API");
        self.tell(Message::Lost(self.kind, reason)).await?;
        sleep(self.backoff.delay().max(at_least)).await;
        Ok(())
    }

    /// Lists everything by pages; returns the version to watch from.
    async fn list(&mut self) -> Result<String, Failure> {
        let mut names = HashSet::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let request = self.request.list(&params).map_err(|e| Failure::Lost(e.to_string()))?;
            let text = match timeout(ANSWER, self.client.request_text(request)).await {
                Ok(Ok(text)) => text,
                // The continuation of a list that took too long: begun anew.
                Ok(Err(e)) if is_gone(&e) && params.continue_token.is_some() => {
                    names.clear();
                    params.continue_token = None;
                    sleep(self.backoff.delay()).await;
                    continue;
                }
                Ok(Err(e)) => return Err(Failure::Busy(reason(&e), retry_after(&e))),
                Err(_) => return Err(Failure::Lost(format!("no answer within {} s", ANSWER.as_secs()))),
            };
            let page: Page =
                serde_json::from_str(&text).map_err(|e| Failure::Lost(format!("a list is not one: {e}")))?;
            let mut seen = Vec::new();
            for item in page.items.iter().flatten() {
                let value: Value = serde_json::from_str(item.get())
                    .map_err(|e| Failure::Lost(format!("an object of a list is none: {e}")))?;
                seen.extend(decode(self.kind, value, self.annotations));
                // Other kinds, and the gatherer, have their turn between objects of a large list.
                tokio::task::consume_budget().await;
            }
            names.extend(seen.iter().map(|s| s.key.clone()));
            self.tell(Message::Page(seen)).await?;
            match page.metadata.next.filter(|n| !n.is_empty()) {
                Some(next) => params.continue_token = Some(next),
                None => {
                    let (version, again) = (page.metadata.resource_version, self.listed);
                    self.listed = true;
                    let listed = Message::Listed { kind: self.kind, names, version: version.clone(), again };
                    self.tell(listed).await?;
                    return Ok(version);
                }
            }
        }
    }

    /// Watches from `version` on, again and again; returns when a new list is needed.
    async fn watch(&mut self, mut version: String) -> Result<(), Ended> {
        let mut refused = 0;
        loop {
            // Nodes do not take up their watches all in the same moment.
            let limit = 240.0 + 60.0 * fraction();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "240 to 300")]
            let params = WatchParams::default().timeout(limit as u32);
            let request = match self.request.watch(&params, &version) {
                Ok(request) => request,
                Err(e) => return self.lost(e.to_string(), Duration::ZERO).await,
            };
            let opened = Instant::now();
            let stream = match timeout(ANSWER, self.client.request_events::<Value>(request)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(e)) if is_gone(&e) => return self.relist(&e).await,
                Ok(Err(e)) => {
                    refused += u32::from(matches!(e, Error::Api(_)));
                    self.lost(reason(&e), retry_after(&e)).await?;
                    if refused >= TRIES {
                        return Ok(());
                    }
                    continue;
                }
                Err(_) => {
                    self.lost(format!("no answer within {} s", ANSWER.as_secs()), Duration::ZERO).await?;
                    continue;
                }
            };
            self.tell(Message::Open(self.kind)).await?;
            let mut stream = pin!(stream);
            let end = loop {
                match timeout(SILENCE, stream.try_next()).await {
                    Ok(Ok(Some(event))) => match self.event(event, &mut version).await? {
                        Next::Go => {
                            refused = 0;
                            self.backoff.reset();
                            self.relists.reset();
                        }
                        Next::List(e) => return self.relist(&e).await,
                        Next::Stop(reason) => {
                            refused += 1;
                            break Some(reason);
                        }
                    },
                    Ok(Ok(None)) => break None,
                    Ok(Err(e @ Error::SerdeError(_))) => return self.relist(&e).await,
                    Ok(Err(e)) if is_gone(&e) => return self.relist(&e).await,
                    Ok(Err(e)) => break Some(reason(&e)),
                    // No failure yet: some servers have nothing to say. If it is one, the next watch does not open.
                    Err(_) => break None,
                }
            };
            if opened.elapsed() >= SHORT {
                self.backoff.reset();
            }
            if opened.elapsed() >= CALM {
                self.relists.reset();
            }
            match end {
                None if opened.elapsed() >= SHORT => {}
                None => sleep(self.backoff.delay()).await,
                Some(reason) => self.lost(reason, Duration::ZERO).await?,
            }
            if refused >= TRIES {
                return Ok(());
            }
        }
    }

    async fn event(&mut self, event: WatchEvent<Value>, version: &mut String) -> Result<Next, Ended> {
        match event {
            WatchEvent::Added(value) | WatchEvent::Modified(value) => {
                note_version(&value, version);
                if let Some(seen) = decode(self.kind, value, self.annotations) {
                    self.tell(Message::Seen(Box::new(seen), version.clone())).await?;
                }
            }
            WatchEvent::Deleted(value) => {
                note_version(&value, version);
                if let Some(key) = key(self.kind, &value) {
                    self.tell(Message::Gone(key, version.clone())).await?;
                }
            }
            WatchEvent::Bookmark(bookmark) => {
                version.clone_from(&bookmark.metadata.resource_version);
                self.tell(Message::Bookmark(self.kind, version.clone())).await?;
            }
            WatchEvent::Error(status) if status.code == GONE => return Ok(Next::List(Error::Api(status))),
            WatchEvent::Error(status) => return Ok(Next::Stop(status.message)),
        }
        Ok(Next::Go)
    }

    /// What is known stays in force while the new list comes.
    async fn relist(&mut self, why: &Error) -> Result<(), Ended> {
        let why = reason(why);
        tracing::info!(kind = self.kind.kind, "listed again: {why}");
        self.tell(Message::Stale(self.kind, why)).await?;
        self.backoff.reset();
        // At once the first time, as after every watch that brought something.
        sleep(self.relists.delay().saturating_sub(Duration::from_millis(200))).await;
        Ok(())
    }
}

/// How a watch goes on after an event.
enum Next {
    Go,
    /// With a new list.
    List(Error),
    /// On a new connection.
    Stop(String),
}

const GONE: u16 = 410;

fn is_gone(e: &Error) -> bool {
    matches!(e, Error::Api(status) if status.code == GONE)
}

/// How long a busy server asks to be left alone.
fn retry_after(e: &Error) -> Duration {
    let Error::Api(status) = e else { return Duration::ZERO };
    let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    Duration::from_secs(seconds.min(30).into())
}

/// An error in one line, with what is behind it.
pub(crate) fn reason(e: &Error) -> String {
    if let Error::Api(status) = e {
        return format!("{} ({})", status.message.trim(), status.code);
    }
    let mut text = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(e) = source {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = e.source();
    }
    text
}

fn note_version(value: &Value, version: &mut String) {
    if let Some(new) = value.get("metadata").and_then(|m| m.get("resourceVersion")?.as_str()) {
        new.clone_into(version);
    }
}

#[cfg(test)]
mod tests;
