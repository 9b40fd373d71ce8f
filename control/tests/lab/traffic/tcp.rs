//! TCP: transfers whose every byte is compared, many at once, and streams that run in the background.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{PATIENCE, is_timeout, unspecified};
use crate::harness::ns::NetNs;

/// A prime, so that no loss or repetition of whole segments leaves the pattern in step.
const PATTERN_PERIOD: usize = 1_048_573;
const CHUNK: usize = 65_536;

/// Two periods of pseudo-random bytes, so that a chunk may start anywhere in the first.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(PATTERN_PERIOD)
    .collect();
    bytes.extend_from_within(..);
    bytes
});

/// The bytes of the stream from `offset` on, at most [`CHUNK`].
fn pattern(offset: u64, len: usize) -> &'static [u8] {
    let start = usize::try_from(offset % PATTERN_PERIOD as u64).expect("below the period");
    &PATTERN[start..start + len.min(CHUNK)]
}

/// A listening socket inside `ns`, on any port of every address of the family of `address`.
pub(crate) fn listen(ns: &NetNs, address: IpAddr) -> io::Result<TcpListener> {
    listen_on(ns, (unspecified(address), 0).into())
}

/// A listening socket inside `ns`.
pub(crate) fn listen_on(ns: &NetNs, own: SocketAddr) -> io::Result<TcpListener> {
    let listener = ns.run(|| TcpListener::bind(own))?;
    // Linux lets accept(2) honour the receive timeout: no accept waits for ever.
    setsockopt(
        &listener,
        sockopt::ReceiveTimeout,
        &TimeVal::new(PATIENCE.as_secs().try_into().expect("small"), 0),
    )?;
    Ok(listener)
}

/// Connects from inside `ns`.
pub(crate) fn connect(ns: &NetNs, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = ns.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One connection from `from` to `address` in `to`: `up` bytes that way and `down` bytes back, at the
/// same time, every byte compared. Returns how long it took.
///
/// # Errors
/// No connection, no progress for [`PATIENCE`], a wrong byte, a wrong length.
pub(crate) fn transfer(
    from: &NetNs,
    to: &NetNs,
    address: IpAddr,
    up: u64,
    down: u64,
) -> io::Result<Duration> {
    let listener = listen(to, address)?;
    let target = (address, listener.local_addr()?.port()).into();
    transfer_by(from, &listener, target, up, down)
}

/// The same to `target`, which leads to `listener`.
pub(crate) fn transfer_by(
    from: &NetNs,
    listener: &TcpListener,
    target: SocketAddr,
    up: u64,
    down: u64,
) -> io::Result<Duration> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            duplex(stream, down, up)
        });
        let client = connect(from, target).and_then(|stream| duplex(stream, up, down));
        let server = server.join().expect("server thread does not panic");
        client?;
        server
    })?;
    Ok(start.elapsed())
}

/// Sends `out` bytes of the pattern and expects `into` bytes of it, then the end of the stream.
fn duplex(stream: TcpStream, out: u64, into: u64) -> io::Result<()> {
    let reader = stream.try_clone()?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || receive(reader, into));
        let sent = send(stream, out);
        receiving.join().expect("reader does not panic")?;
        sent
    })
}

fn send(mut stream: TcpStream, bytes: u64) -> io::Result<()> {
    let mut offset = 0;
    while offset < bytes {
        let left = usize::try_from(bytes - offset).unwrap_or(CHUNK);
        let written = stream.write(pattern(offset, left))?;
        offset += written as u64;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: TcpStream, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        let count = match stream.read(&mut buffer)? {
            0 => break,
            count => count,
        };
        if buffer[..count] != *pattern(offset, count) {
            return Err(io::Error::other(format!(
                "a byte differs between {offset} and {}",
                offset + count as u64
            )));
        }
        offset += count as u64;
    }
    if offset == bytes {
        Ok(())
    } else {
        Err(io::Error::other(format!("{offset} bytes came, {bytes} were sent")))
    }
}

/// `connections` transfers at the same time; the first error if any fails.
pub(crate) fn transfer_many(
    from: &NetNs,
    to: &NetNs,
    address: IpAddr,
    connections: usize,
    bytes: u64,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..connections).map(|_| scope.spawn(|| transfer(from, to, address, bytes, bytes))).collect();
        running.into_iter().try_for_each(|t| t.join().expect("transfer does not panic").map(drop))
    })
}

/// A TCP stream that runs until stopped, paced, with its progress open to see.
#[derive(Debug)]
pub(crate) struct Stream {
    delivered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Stream {
    /// Starts one connection from `from` to `address` in `to`, about 8 kB a millisecond.
    pub(crate) fn start(from: &NetNs, to: &NetNs, address: IpAddr) -> io::Result<Self> {
        let listener = listen(to, address)?;
        let target = (address, listener.local_addr()?.port()).into();
        Stream::start_by(from, &listener, target)
    }

    /// The same to `target`, which leads to `listener`.
    pub(crate) fn start_by(from: &NetNs, listener: &TcpListener, target: SocketAddr) -> io::Result<Self> {
        let out = connect(from, target)?;
        let (into, _) = listener.accept()?;
        let delivered = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let sender = {
            let stop = stop.clone();
            std::thread::spawn(move || stream_out(out, &stop))
        };
        let receiver = {
            let (stop, delivered) = (stop.clone(), delivered.clone());
            std::thread::spawn(move || stream_in(into, &stop, &delivered))
        };
        Ok(Stream { delivered, stop, threads: vec![sender, receiver] })
    }

    /// Bytes that arrived so far, all compared.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Panics unless more bytes arrive within `limit`.
    pub(crate) fn must_progress(&self, what: &str, limit: Duration) {
        let before = self.delivered();
        super::eventually(&format!("{what}: the stream goes on"), limit, || {
            (self.delivered() > before + CHUNK as u64).then_some(())
        });
    }

    /// Whether any byte arrives within `time`.
    pub(crate) fn progresses_within(&self, time: Duration) -> bool {
        let before = self.delivered();
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.delivered() > before {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Ends the stream and returns what arrived, or the error that ended it before.
    pub(crate) fn stop(mut self) -> io::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("stream thread does not panic")?;
        }
        Ok(self.delivered())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn stream_out(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let mut offset = 0;
    while !stop.load(Ordering::Relaxed) {
        match stream.write(pattern(offset, 8192)) {
            Ok(count) => offset += count as u64,
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn stream_in(mut stream: TcpStream, stop: &AtomicBool, delivered: &AtomicU64) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while !stop.load(Ordering::Relaxed) {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if is_timeout(&e) => continue,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && stop.load(Ordering::Relaxed) => break,
            Err(e) => return Err(e),
        };
        if buffer[..count] != *pattern(offset, count) {
            return Err(io::Error::other(format!("a byte differs after {offset}")));
        }
        offset += count as u64;
        delivered.store(offset, Ordering::Relaxed);
    }
    Ok(())
}
