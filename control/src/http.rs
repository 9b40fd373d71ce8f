//! A small HTTP/1.1 server: `GET` and `HEAD` of a few paths, one request a connection.
//!
//! It runs on the control thread, so nobody may hold it up: a head is read for 3 s at most, a connection ends after
//! 10 s, and of more than 64 at a time the oldest gives way. Request bodies are not read.
//!
//! | Module | Holds |
//! |---|---|
//! | [`health`] | `/livez` and `/readyz`: named checks, as the components of Kubernetes show them |
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;

pub mod health;
#[cfg(test)]
mod tests;

/// How long a client may take for the head of its request.
const HEAD_WITHIN: Duration = Duration::from_secs(3);
/// How long a connection may last.
const CONNECTION_WITHIN: Duration = Duration::from_secs(10);
/// Connections at a time.
const MOST: usize = 64;
/// Longest head of a request, in bytes (the least hyper allows).
const HEAD: usize = 8192;
/// Connections the kernel keeps for us until they are accepted.
const BACKLOG: u32 = 128;
/// Pause after a connection could not be accepted, as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Get<'a> {
    /// Path, with its leading slash.
    pub path: &'a str,
    /// What follows the question mark; empty without one.
    pub query: &'a str,
    /// The header `Accept`; empty without one.
    pub accept: &'a str,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: StatusCode,
    /// Content type.
    pub content_type: &'static str,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: String,
}

impl Reply {
    /// Plain text.
    #[must_use]
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", headers: Vec::new(), body: body.into() }
    }

    /// There is nothing at this path.
    #[must_use]
    pub fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }
}

/// A [`Reply`] to come.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Reply> + Send + 'a>>;

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one.
    fn get<'a>(&'a self, get: Get<'a>) -> Answer<'a>;
}

/// A socket that listens on `addr`. On an IPv6 address it is for IPv6 alone.
///
/// # Errors
/// What the kernel says: the address is taken, not this node's, or the family is off.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        socket
    };
    // Connections of a daemon of before may still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Serves connections until it is dropped.
pub async fn serve(listener: TcpListener, handler: Arc<dyn Handler>) {
    let mut open = Open::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => open.add(connection(stream, Arc::clone(&handler))),
            Err(e) => {
                tracing::debug!("http: accept: {e}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Connections, oldest first.
#[derive(Default)]
struct Open(VecDeque<AbortHandle>);

impl Open {
    fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.0.retain(|task| !task.is_finished());
        while self.0.len() >= MOST
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(tokio::spawn(connection).abort_handle());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn connection(stream: TcpStream, handler: Arc<dyn Handler>) {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(respond(&*handler, &request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD).keep_alive(false);
    let served =
        tokio::time::timeout(CONNECTION_WITHIN, server.serve_connection(TokioIo::new(stream), service));
    match served.await {
        Ok(Ok(())) => {}
        // Clients that send something else, or go away, are no concern of ours.
        Ok(Err(e)) => tracing::trace!("http: {e}"),
        Err(_) => tracing::trace!("http: a client was too slow"),
    }
}

async fn respond(handler: &dyn Handler, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut reply = Reply::text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed\n");
        reply.headers.push((ALLOW.as_str(), "GET, HEAD".to_owned()));
        return response(reply);
    }
    let accept = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let uri = request.uri();
    response(handler.get(Get { path: uri.path(), query: uri.query().unwrap_or_default(), accept }).await)
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    // To HEAD hyper sends the head alone.
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    for (name, value) in reply.headers {
        // Names are lower case, values text of ours: they are always good.
        if let Ok(value) = HeaderValue::try_from(value)
            && let Ok(name) = HeaderName::try_from(name)
        {
            headers.insert(name, value);
        }
    }
    response
}
