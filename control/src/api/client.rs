//! The CLI's side of the API: a plain socket with timeouts.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::de::DeserializeOwned;

use super::{ApiError, Envelope, PROTOCOL, Reply, Request};

/// Longest wait for the daemon.
const WAIT: Duration = Duration::from_secs(15);
/// Largest answer read, in bytes.
const MAX_REPLY: u64 = 256 << 20;

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens there, or it went away, or it does not answer in time.
    #[error("no daemon answers at {}: {source}; is `fastpath run` running with this state folder?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The socket is there, and its owner's only.
    #[error("permission denied at {}: only root may ask the daemon (sudo fastpath …)", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(#[from] ApiError),
    /// The daemon's answer makes no sense to this client.
    #[error("cannot read the daemon's answer: {0}; are client and daemon of the same version?")]
    Answer(String),
}

impl Client {
    /// Connects to the daemon's socket, at once or not at all: a daemon that takes no connections is no daemon.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Denied`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: path.to_path_buf(), source };
        let stream = open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::Denied { path: path.to_path_buf() },
            _ => unreachable(source),
        })?;
        stream.set_read_timeout(Some(WAIT)).map_err(unreachable)?;
        stream.set_write_timeout(Some(WAIT)).map_err(unreachable)?;
        Ok(Self { path: path.to_path_buf(), stream: BufReader::new(stream) })
    }

    /// Asks, and waits for the answer; `T` is what [`Request`]'s variant names (or `serde_json::Value`).
    ///
    /// # Errors
    /// The daemon went away or refused, or its answer cannot be read.
    pub fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        self.wait(WAIT + request.patience())?;
        self.exchange(request)
    }

    /// As [`Client::ask`], but gives up after `limit`.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn ask_within<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        request: Request,
    ) -> Result<T, ClientError> {
        self.wait(limit)?;
        self.exchange(request)
    }

    fn wait(&self, limit: Duration) -> Result<(), ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: self.path.clone(), source };
        self.stream.get_ref().set_read_timeout(Some(limit)).map_err(unreachable)
    }

    fn exchange<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(&Envelope { version: PROTOCOL, request })
            .map_err(|e| ClientError::Answer(e.to_string()))?;
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        let mut reply = Vec::new();
        let got = (&mut self.stream).take(MAX_REPLY).read_until(b'\n', &mut reply).map_err(unreachable)?;
        if got == 0 {
            // A daemon that refused at once has closed before our request was sent: its words count more.
            sent.map_err(unreachable)?;
            return Err(unreachable(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let reply: Reply<T> =
            serde_json::from_slice(&reply).map_err(|e| ClientError::Answer(e.to_string()))?;
        match reply {
            Reply { error: Some(e), .. } => Err(ClientError::Refused(e)),
            Reply { result: Some(result), .. } => Ok(result),
            Reply { .. } => Err(ClientError::Answer("neither result nor error".to_owned())),
        }
    }
}

/// A blocking connection, made without waiting: `connect` would, for good, where the listener's queue is full.
fn open(path: &Path) -> std::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?).map_err(|e| match e {
        Errno::AGAIN => std::io::Error::new(std::io::ErrorKind::WouldBlock, "it takes no connections now"),
        e => e.into(),
    })?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rustix::net::{bind, listen, socket};

    use super::*;

    /// A daemon that stands still, and so many calls that no more fit its queue.
    #[test]
    fn a_full_queue_is_not_waited_for() {
        let path = std::env::temp_dir().join(format!("fp-client-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 1).unwrap();
        let (sender, receiver) = mpsc::channel();
        let to = path.clone();
        let asker = std::thread::spawn(move || {
            let mut waiting = Vec::new();
            let refused = loop {
                match Client::connect(&to) {
                    Ok(client) if waiting.len() < 16 => waiting.push(client),
                    other => break other.map(drop),
                }
            };
            sender.send(()).unwrap();
            (waiting.len(), refused)
        });
        receiver.recv_timeout(Duration::from_secs(30)).expect("it does not wait");
        let (connected, refused) = asker.join().unwrap();
        assert!(connected > 0);
        assert!(matches!(refused, Err(ClientError::Unreachable { .. })), "{refused:?}");
        assert!(refused.unwrap_err().to_string().contains("takes no connections"));
        std::fs::remove_file(&path).unwrap();
    }
}
