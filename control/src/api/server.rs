//! The daemon's side of the API: bounded clients, bounded requests, nobody waits for a slow client.
#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{ApiError, Envelope, ErrorCode, MAX_REQUEST, PROTOCOL, Reply, Request};

/// Most clients at one time: a node that starts has its runtime add a hundred pods at once, each of them waiting.
pub const MAX_CLIENTS: usize = 256;
/// A client that asks nothing is disconnected after this long.
const IDLE: Duration = Duration::from_secs(60);
/// A client that does not take its answer is disconnected after this long.
const SLOW: Duration = Duration::from_secs(10);
/// The daemon gives up on a request after this long.
const ANSWER: Duration = Duration::from_secs(10);

/// An answer in the making.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send + 'a>>;

/// What the server asks: the daemon's state.
pub trait StateView: Send + Sync + 'static {
    /// Answers `request` with the JSON of the type its variant names (see [`to_value`]).
    ///
    /// Runs on the control thread: it must not block.
    fn answer(&self, request: Request) -> Answer<'_>;
}

/// An answer as JSON.
///
/// # Errors
/// The value has no JSON form (a map with keys that are no strings).
pub fn to_value(answer: &impl serde::Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(answer).map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))
}

/// Serves `view` on `listener` until dropped. Runs inside a tokio runtime.
pub async fn serve(listener: UnixListener, view: Arc<dyn StateView>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of file descriptors: wait for some to be closed instead of spinning.
                    warn!("API: cannot accept a client: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = clients.join_next() => continue,
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let view = view.clone();
                clients.spawn(async move {
                    if let Err(e) = client(stream, view).await {
                        debug!("API client: {e}");
                    }
                    drop(place);
                });
            }
            Err(_) => refuse(&stream),
        }
    }
}

/// Tells a client too many so, as far as it can be told without waiting.
fn refuse(stream: &UnixStream) {
    let error = ApiError::new(ErrorCode::Busy, format!("more than {MAX_CLIENTS} clients"));
    let line = reply_line(Err(error));
    // A socket just accepted has room for one line; if not, closing it says enough.
    let _ = stream.try_write(&line);
}

async fn client(stream: UnixStream, view: Arc<dyn StateView>) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_REQUEST as u64 + 1;
        let got = timeout(IDLE, (&mut read).take(limit).read_until(b'\n', &mut line)).await??;
        if got == 0 {
            return Ok(());
        }
        let too_large = line.len() > MAX_REQUEST;
        let result = if too_large {
            Err(ApiError::new(ErrorCode::TooLarge, format!("a request has at most {MAX_REQUEST} bytes")))
        } else {
            match parse(&line) {
                Ok(request) => match timeout(ANSWER + request.patience(), view.answer(request)).await {
                    Ok(result) => result,
                    Err(_) => Err(ApiError::new(ErrorCode::Internal, "the daemon took too long to answer")),
                },
                Err(e) => Err(e),
            }
        };
        timeout(SLOW, write.write_all(&reply_line(result))).await??;
        if too_large {
            // The rest of the line cannot be told from a request.
            return Ok(());
        }
    }
}

/// Reads a request line; the version is looked at first, so that a newer client learns the right reason.
fn parse(line: &[u8]) -> Result<Request, ApiError> {
    let bad = |e: serde_json::Error| ApiError::new(ErrorCode::BadRequest, format!("not a request: {e}"));
    let value: Value = serde_json::from_slice(line).map_err(bad)?;
    match value.get("version").and_then(Value::as_u64) {
        Some(v) if v == u64::from(PROTOCOL) => {}
        Some(v) => {
            let message = format!("the daemon speaks protocol version {PROTOCOL}, not {v}");
            return Err(ApiError::new(ErrorCode::WrongVersion, message));
        }
        None => return Err(ApiError::new(ErrorCode::BadRequest, "not a request: \"version\" is missing")),
    }
    serde_json::from_value::<Envelope>(value).map(|e| e.request).map_err(bad)
}

fn reply_line(result: Result<Value, ApiError>) -> Vec<u8> {
    let (result, error) = match result {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    };
    let mut line = serde_json::to_vec(&Reply { version: PROTOCOL, result, error }).unwrap_or_default();
    line.push(b'\n');
    line
}
