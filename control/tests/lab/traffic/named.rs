//! Servers that say who they are and whom they see, and the clients that ask them: which backend of a
//! service answered, and from which address it saw the client.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::sctp::{Init, Raw};
use super::{PATIENCE, is_timeout, tcp, unspecified};
use crate::harness::ns::NetNs;

const TICK: Duration = Duration::from_millis(50);

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    /// Its name.
    pub(crate) name: String,
    /// The client as it sees it.
    pub(crate) client: SocketAddr,
}

impl Answer {
    fn text(name: &str, client: SocketAddr) -> String {
        format!("{name} {}\n", SocketAddr::new(client.ip().to_canonical(), client.port()))
    }

    fn parse(text: &str) -> io::Result<Self> {
        let bad = || io::Error::other(format!("answer {text:?}"));
        let (name, client) = text.trim_end().split_once(' ').ok_or_else(bad)?;
        Ok(Answer { name: name.to_owned(), client: client.parse().map_err(|_| bad())? })
    }
}

/// A server on one port, TCP and UDP, both families: each line and each datagram is answered.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts inside `ns`, on every address.
    pub(crate) fn start(ns: &NetNs, name: &str, port: u16) -> io::Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let (tcp, udp) = ns.run(|| io::Result::Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let (own_name, stopping) = (name.to_owned(), stop.clone());
        threads.push(std::thread::spawn(move || accept(&tcp, &own_name, &stopping)));
        let (own_name, stopping) = (name.to_owned(), stop.clone());
        threads.push(std::thread::spawn(move || datagrams(&udp, &own_name, &stopping)));
        Ok(Server { stop, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn accept(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    let mut open = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, client)) => {
                let (name, stop) = (name.to_owned(), stop.clone());
                // What goes wrong here the client sees.
                open.push(std::thread::spawn(move || drop(converse(&stream, &name, client, &stop))));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
        open.retain(|thread| !thread.is_finished());
    }
    for thread in open {
        drop(thread.join());
    }
}

fn converse(stream: &TcpStream, name: &str, client: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) => {
                (&mut &*stream).write_all(Answer::text(name, client).as_bytes())?;
                line.clear();
            }
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(Answer::text(name, client).as_bytes(), client));
        }
    }
}

/// A TCP connection that stays open.
#[derive(Debug)]
pub(crate) struct Conversation(BufReader<TcpStream>);

impl Conversation {
    /// Connects from inside `ns`.
    pub(crate) fn open(ns: &NetNs, to: SocketAddr) -> io::Result<Self> {
        Ok(Conversation(BufReader::new(tcp::connect(ns, to)?)))
    }

    /// Asks once more over the same connection.
    pub(crate) fn ask(&mut self) -> io::Result<Answer> {
        self.0.get_mut().write_all(b"who?\n")?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Answer::parse(&line),
        }
    }
}

/// One question by a new TCP connection.
pub(crate) fn ask_tcp(ns: &NetNs, to: SocketAddr) -> io::Result<Answer> {
    Conversation::open(ns, to)?.ask()
}

/// A UDP socket that keeps its port. It hears only the address it asks.
#[derive(Debug)]
pub(crate) struct Asker(UdpSocket);

impl Asker {
    /// Opens one inside `ns`.
    pub(crate) fn open(ns: &NetNs, to: SocketAddr) -> io::Result<Self> {
        Self::open_at(ns, fresh_port(), to)
    }

    /// Opens one at a port of its own.
    pub(crate) fn open_at(ns: &NetNs, port: u16, to: SocketAddr) -> io::Result<Self> {
        let socket = ns.run(|| UdpSocket::bind((unspecified(to.ip()), port)))?;
        socket.connect(to)?;
        Ok(Asker(socket))
    }

    /// Asks once; an ICMP error is an error of its kind, silence one of kind `WouldBlock`.
    pub(crate) fn ask(&self, limit: Duration) -> io::Result<Answer> {
        self.0.set_read_timeout(Some(limit))?;
        self.0.send(b"who?")?;
        let mut buffer = [0; 256];
        let len = self.0.recv(&mut buffer)?;
        Answer::parse(std::str::from_utf8(&buffer[..len]).map_err(io::Error::other)?)
    }
}

/// A port that no socket of this process had before. The kernel's choice comes back now and then, and is then the flow
/// that went to another backend half a minute ago.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000
}

/// One question by a new UDP socket.
pub(crate) fn ask_udp(ns: &NetNs, to: SocketAddr) -> io::Result<Answer> {
    Asker::open(ns, to)?.ask(PATIENCE)
}

/// Answers INITs to one port of an address; the tag of its INIT ACK is its number.
#[derive(Debug)]
pub(crate) struct SctpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SctpServer {
    /// Starts inside `ns`.
    pub(crate) fn start(ns: &NetNs, own: IpAddr, port: u16, number: u32) -> io::Result<Self> {
        let raw = Raw::open(ns, own)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                match raw.receive() {
                    Some((from, init)) if !init.ack && init.dport == port => {
                        drop(raw.send(from, Init { tag: number, ..init.answer() }));
                    }
                    Some(_) => {}
                    None => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Ok(SctpServer { stop, thread: Some(thread) })
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Sends an INIT from `own` and port `sport`; the number of the server that answers from the address asked,
/// `None` when nobody does.
pub(crate) fn ask_sctp(
    ns: &NetNs,
    own: IpAddr,
    sport: u16,
    to: SocketAddr,
    limit: Duration,
) -> io::Result<Option<u32>> {
    let raw = Raw::open(ns, own)?;
    raw.send(to.ip(), Init { ack: false, sport, dport: to.port(), tag: 7 })?;
    let end = Instant::now() + limit;
    while Instant::now() < end {
        match raw.receive() {
            Some((from, init))
                if init.ack && from == to.ip() && (init.sport, init.dport) == (to.port(), sport) =>
            {
                return Ok(Some(init.tag));
            }
            Some(_) => {}
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    Ok(None)
}
