//! UDP: an echo service, exchanges with sequence and loss accounting, paced flows in the background.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{PATIENCE, is_timeout, unspecified};
use crate::harness::ns::NetNs;

/// Smallest payload: it holds the sequence number.
pub(crate) const MIN_SIZE: usize = 8;

const TICK: Duration = Duration::from_millis(50);

/// Sends every datagram back to where it came from, until dropped.
#[derive(Debug)]
pub(crate) struct Echo {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts inside `ns`; address `0.0.0.0` or `::` is every address, port 0 any port.
    pub(crate) fn start(ns: &NetNs, address: SocketAddr) -> io::Result<Self> {
        let socket = ns.run(|| UdpSocket::bind(address))?;
        socket.set_read_timeout(Some(TICK))?;
        let port = socket.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stopping.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    // An ICMP error about an earlier answer may surface here; the client counts the loss.
                    drop(socket.send_to(&buffer[..len], from));
                }
            }
        });
        Ok(Echo { port, stop, thread: Some(thread) })
    }

    /// Port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A datagram of `size` bytes: its number, then bytes that follow from it.
fn datagram(sequence: u64, size: usize) -> Vec<u8> {
    let mut bytes = sequence.to_be_bytes().to_vec();
    bytes.extend(
        (MIN_SIZE..size).map(|i| sequence.wrapping_mul(31).wrapping_add(i as u64 * 7).to_le_bytes()[0]),
    );
    bytes
}

/// One datagram of each size there and back, one after the other, each sent again up to three times.
///
/// # Errors
/// A size that was not answered, or was answered with other bytes.
pub(crate) fn exchange(from: &NetNs, to: &NetNs, address: IpAddr, sizes: &[usize]) -> io::Result<()> {
    let echo = Echo::start(to, (address, 0).into())?;
    exchange_with(from, (address, echo.port()).into(), sizes)
}

/// Like [`exchange`], with an echo service that runs already.
pub(crate) fn exchange_with(from: &NetNs, to: SocketAddr, sizes: &[usize]) -> io::Result<()> {
    let socket = from.run(|| UdpSocket::bind((unspecified(to.ip()), 0)))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE / 4))?;
    let mut buffer = vec![0; 65_536];
    for (sequence, &size) in sizes.iter().enumerate() {
        let message = datagram(sequence as u64, size);
        let mut answered = false;
        for _ in 0..3 {
            socket.send(&message)?;
            match socket.recv(&mut buffer) {
                Ok(len) if buffer[..len] == *message => {
                    answered = true;
                    break;
                }
                // A late answer to the datagram before.
                Ok(len) if len >= MIN_SIZE && buffer[..MIN_SIZE] < message[..MIN_SIZE] => {}
                Ok(len) => return Err(io::Error::other(format!("{size} B came back as {len} other bytes"))),
                Err(e) if is_timeout(&e) => {}
                Err(e) => return Err(e),
            }
        }
        if !answered {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{size} B to {to}: no answer")));
        }
    }
    Ok(())
}

/// What a [`Flow`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// Different datagrams that came back whole.
    pub(crate) received: u64,
    /// Datagrams that came back twice or with other bytes.
    pub(crate) wrong: u64,
}

impl Counts {
    /// Datagrams that did not come back.
    pub(crate) fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// A paced flow of numbered datagrams, echoed, each accounted for; runs until stopped.
#[derive(Debug)]
pub(crate) struct Flow {
    _echo: Echo,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<io::Result<u64>>,
    receiver: JoinHandle<io::Result<(u64, u64)>>,
}

impl Flow {
    /// Starts sending one datagram of `size` bytes every `interval` from `from` to `address` in `to`.
    pub(crate) fn start(
        from: &NetNs,
        to: &NetNs,
        address: IpAddr,
        size: usize,
        interval: Duration,
    ) -> io::Result<Self> {
        let echo = Echo::start(to, (address, 0).into())?;
        let socket = from.run(|| UdpSocket::bind((unspecified(address), 0)))?;
        socket.connect((address, echo.port()))?;
        socket.set_read_timeout(Some(TICK))?;
        let reading = socket.try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let sender = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let start = Instant::now();
                let mut sequence = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    socket.send(&datagram(sequence, size))?;
                    sequence += 1;
                    let due = start + interval.mul_f64(sequence as f64);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                Ok(sequence)
            })
        };
        let receiver = {
            let (stop, received) = (stop.clone(), received.clone());
            std::thread::spawn(move || count(&reading, size, &stop, &received))
        };
        Ok(Flow { _echo: echo, stop, received, sender, receiver })
    }

    /// Datagrams that came back so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Panics unless at least `count` more come back within [`PATIENCE`].
    pub(crate) fn must_progress(&self, what: &str, count: u64) {
        let before = self.received();
        super::eventually(&format!("{what}: the flow goes on"), PATIENCE, || {
            (self.received() >= before + count).then_some(())
        });
    }

    /// Stops sending, waits for the answers still under way, and returns the counts.
    pub(crate) fn stop(self) -> io::Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("sender does not panic")?;
        let (received, wrong) = self.receiver.join().expect("receiver does not panic")?;
        Ok(Counts { sent, received, wrong })
    }
}

/// Counts answers until `stop` and then until none comes for half a second.
fn count(socket: &UdpSocket, size: usize, stop: &AtomicBool, received: &AtomicU64) -> io::Result<(u64, u64)> {
    let mut seen = Vec::<bool>::new();
    let (mut good, mut wrong, mut quiet) = (0, 0, 0);
    let mut buffer = vec![0; 65_536];
    while quiet < 10 {
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(e) if is_timeout(&e) => {
                quiet += u32::from(stop.load(Ordering::Relaxed));
                continue;
            }
            // The other end was not there for a moment: counted as a loss by the missing answer.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused || e.raw_os_error() == Some(113) => {
                continue;
            }
            Err(e) => return Err(e),
        };
        quiet = 0;
        let Some(sequence) = buffer[..len].first_chunk().map(|b| u64::from_be_bytes(*b)) else {
            wrong += 1;
            continue;
        };
        let index = usize::try_from(sequence).unwrap_or(usize::MAX).min(1 << 24);
        if seen.len() <= index {
            seen.resize(index + 1, false);
        }
        if seen[index] || buffer[..len] != *datagram(sequence, size) {
            wrong += 1;
        } else {
            seen[index] = true;
            good += 1;
            received.store(good, Ordering::Relaxed);
        }
    }
    Ok((good, wrong))
}
