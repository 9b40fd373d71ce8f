//! The daemon's HTTP server: `/livez`, `/readyz`, `/metrics`. Questions come by a queue, as the API's do.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Daemon;
use crate::http::health::{Check, reply};
use crate::http::{Answer, Get, Handler, Reply, listen, serve};
use crate::metrics::{Family, exposition};

/// How long a question may wait for the control thread; probes wait for a second or so.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A question to the daemon.
pub(super) enum Question {
    /// Is it alive?
    Livez(oneshot::Sender<Vec<Check>>),
    /// Does it forward?
    Readyz(oneshot::Sender<Vec<Check>>),
    /// What has it counted?
    Metrics(oneshot::Sender<Vec<Family>>),
}

/// The server's end of the queue.
pub(super) struct Web(mpsc::Sender<Question>);

impl Web {
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Question>) {
        let (tx, rx) = mpsc::channel(16);
        (Arc::new(Self(tx)), rx)
    }

    async fn ask<T>(&self, question: fn(oneshot::Sender<T>) -> Question) -> Result<T, Reply> {
        let asked = async {
            let (tx, rx) = oneshot::channel();
            self.0.send(question(tx)).await.ok()?;
            rx.await.ok()
        };
        let unavailable = |why: &str| Reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(unavailable("the daemon is stopping")),
            Err(_) => Err(unavailable("the control thread does not answer")),
        }
    }

    async fn answer(&self, get: Get<'_>) -> Result<Reply, Reply> {
        let (first, rest) = match get.path.get(1..).and_then(|p| p.split_once('/')) {
            Some((first, rest)) => (first, rest),
            None => (get.path.get(1..).unwrap_or_default(), ""),
        };
        Ok(match (first, rest) {
            ("livez" | "healthz", _) => reply(first, &self.ask(Question::Livez).await?, rest, get.query),
            ("readyz", _) => reply(first, &self.ask(Question::Readyz).await?, rest, get.query),
            ("metrics", "") => {
                let (content_type, body) = exposition(self.ask(Question::Metrics).await?, get.accept);
                Reply { content_type, ..Reply::text(StatusCode::OK, body) }
            }
            _ => Reply::not_found(),
        })
    }
}

impl Handler for Web {
    fn get<'a>(&'a self, get: Get<'a>) -> Answer<'a> {
        Box::pin(async move { self.answer(get).await.unwrap_or_else(|refused| refused) })
    }
}

/// The server, or what keeps it from listening.
pub(super) struct Server {
    addr: SocketAddr,
    web: Arc<Web>,
    task: Option<JoinHandle<()>>,
    pub(super) problem: Option<String>,
}

impl Server {
    pub(super) fn new(addr: SocketAddr, web: Arc<Web>) -> Self {
        Self { addr, web, task: None, problem: None }
    }

    /// Listens, if it does not yet. Returns whether it came to do so, or what keeps it from it changed.
    pub(super) fn start(&mut self) -> bool {
        if self.task.is_some() {
            return false;
        }
        let before = self.problem.take();
        match listen(self.addr) {
            Ok(listener) => {
                tracing::info!(address = %self.addr, "http");
                self.task = Some(tokio::spawn(serve(listener, Arc::clone(&self.web) as Arc<dyn Handler>)));
                true
            }
            Err(e) => {
                self.problem = Some(format!("http.listen {}: {e}", self.addr));
                before != self.problem
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Daemon {
    /// Starts the HTTP server if it does not run.
    pub(super) fn start_web(&mut self) {
        if let Some(server) = &mut self.web
            && server.start()
            && let Some(problem) = &server.problem
        {
            tracing::warn!("{problem}");
        }
    }

    /// Answers one question. A client that is gone by then loses nothing.
    pub(super) fn answer_web(&self, question: Question) {
        let _ = match question {
            Question::Livez(reply) => reply.send(self.livez()).map_err(drop),
            Question::Readyz(reply) => reply.send(self.readyz()).map_err(drop),
            // The dear one: not for a client that is gone.
            Question::Metrics(reply) if reply.is_closed() => Ok(()),
            Question::Metrics(reply) => reply.send(self.measure()).map_err(drop),
        };
    }
}
