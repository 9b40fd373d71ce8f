//! Who reaches whom: every pair of stations, port, protocol and family at the same time, over real sockets.
//!
//! Servers (`serve`) and observers of the stations' devices (`observe`) live as long as the matrix; a
//! round opens new client sockets, so every probe is a flow that nobody has seen. A probe is *answered* when
//! the client hears from the server, and *delivered* when its first packet was seen on the server's device.

mod observe;
mod serve;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt,
    socket, sockopt,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::sctp::{Init, Raw};
use crate::harness::ns::NetNs;
use crate::harness::spec::Family;

/// The longest a round waits for what should come, on a machine that is busy with something else.
const LIMIT: Duration = Duration::from_secs(5);
/// Source port of the first probe: beyond those of the servers.
const FIRST_PORT: u16 = 10_000;
/// How long a round goes on listening once all that should come has come.
const QUIET: Duration = Duration::from_millis(120);

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Proto {
    /// A connection is opened.
    Tcp,
    /// A datagram is echoed.
    Udp,
    /// An INIT is answered by an INIT ACK.
    Sctp,
    /// An echo request; there is no port.
    Icmp,
}

impl Proto {
    /// IP protocol number.
    pub(crate) fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Proto::Tcp, _) => 6,
            (Proto::Udp, _) => 17,
            (Proto::Sctp, _) => 132,
            (Proto::Icmp, Family::V4) => 1,
            (Proto::Icmp, Family::V6) => 58,
        }
    }
}

/// One question: does `from` reach `to`?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Probe {
    /// Index of the client's station.
    pub(crate) from: usize,
    /// Index of the server's station.
    pub(crate) to: usize,
    /// Family.
    pub(crate) family: Family,
    /// Protocol.
    pub(crate) proto: Proto,
    /// Port of the server; 0 for ICMP.
    pub(crate) port: u16,
}

/// A probe on the wire: protocol number, source, source port or echo id, destination, port.
pub(super) type Tuple = (u8, IpAddr, u16, IpAddr, u16);

/// A namespace with an address of each family and a device `eth0`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Station<'a> {
    /// The namespace.
    pub(crate) ns: &'a NetNs,
    /// Its addresses: IPv4, IPv6.
    pub(crate) addresses: [IpAddr; 2],
}

impl Station<'_> {
    fn ip(&self, family: Family) -> IpAddr {
        self.addresses[usize::from(family == Family::V6)]
    }
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The probe.
    pub(crate) probe: Probe,
    /// The client heard from the server.
    pub(crate) answered: bool,
    /// The server's device saw the first packet. A station that asks itself counts what it hears.
    pub(crate) delivered: bool,
}

/// Stations with their servers and observers.
pub(crate) struct Matrix<'a> {
    stations: Vec<Station<'a>>,
    _servers: serve::Servers,
    observers: observe::Observers,
    /// Probes of earlier rounds that were not delivered in time, with the round's number.
    missing: HashMap<Tuple, (usize, Probe)>,
    rounds: usize,
    next_port: u16,
}

/// A client's socket and the probe it makes.
struct Client {
    fd: OwnedFd,
    probe: Probe,
}

/// The client sockets of one round. All others than TCP serve many probes, found again by what comes back.
#[derive(Default)]
struct Clients {
    tcp: Vec<Client>,
    udp: Vec<UdpSocket>,
    raw: Vec<Raw>,
    icmp: Vec<UdpSocket>,
    /// The probes sent.
    sent: HashMap<Tuple, Probe>,
}

impl<'a> Matrix<'a> {
    /// Starts servers for `ports` on every station, and the observers.
    pub(crate) fn start(stations: Vec<Station<'a>>, ports: &[u16]) -> io::Result<Self> {
        let servers = serve::Servers::start(&stations, ports)?;
        let observers = observe::Observers::start(&stations)?;
        Ok(Matrix {
            stations,
            _servers: servers,
            observers,
            missing: HashMap::new(),
            rounds: 0,
            next_port: FIRST_PORT,
        })
    }

    /// Makes all `probes` at once. `expected` only says what is worth waiting for.
    ///
    /// # Errors
    /// A socket cannot be opened; or a probe of an earlier round was delivered after its round had ended.
    pub(crate) fn round(
        &mut self,
        probes: &[Probe],
        expected: impl Fn(&Probe) -> bool,
    ) -> io::Result<Vec<Outcome>> {
        self.rounds += 1;
        let mut clients = Clients::default();
        // Never the same source port twice: what comes late is known for what it is.
        let first = self.next_port;
        for (index, station) in self.stations.iter().enumerate() {
            let mine: Vec<Probe> = probes.iter().filter(|p| p.from == index).copied().collect();
            let last = station.ns.run(|| clients.send(station, &self.stations, &mine, first))?;
            self.next_port = self.next_port.max(last);
        }
        let (answered, delivered) = self.listen(&clients, expected)?;
        self.check_late(&delivered)?;
        let mut outcomes = Vec::with_capacity(probes.len());
        for (tuple, probe) in &clients.sent {
            let answered = answered.contains(probe);
            let delivered = delivered.contains(tuple) || (probe.from == probe.to && answered);
            if !delivered {
                self.missing.insert(*tuple, (self.rounds, *probe));
            }
            outcomes.push(Outcome { probe: *probe, answered, delivered });
        }
        assert_eq!(outcomes.len(), probes.len(), "every probe has a tuple of its own");
        Ok(outcomes)
    }

    /// Whether nothing of earlier rounds has arrived since the last one.
    ///
    /// # Errors
    /// The probes that have.
    pub(crate) fn nothing_late(&mut self) -> io::Result<()> {
        let delivered = self.observers.seen();
        self.check_late(&delivered)
    }

    fn check_late(&mut self, delivered: &HashSet<Tuple>) -> io::Result<()> {
        let late: Vec<_> = delivered.iter().filter_map(|tuple| self.missing.remove(tuple)).collect();
        if late.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(format!("delivered after the end of their round: {late:?}")))
    }

    /// Waits for answers and deliveries: until the expected ones came and then for [`QUIET`], or for [`LIMIT`].
    fn listen(
        &self,
        clients: &Clients,
        expected: impl Fn(&Probe) -> bool,
    ) -> io::Result<(HashSet<Probe>, HashSet<Tuple>)> {
        let (mut answered, mut delivered) = (HashSet::new(), HashSet::new());
        let mut awaited: HashMap<Tuple, Probe> =
            clients.sent.iter().filter(|(_, p)| expected(p)).map(|(t, p)| (*t, *p)).collect();
        let mut end = Instant::now() + LIMIT;
        let mut complete = false;
        loop {
            clients.receive(&mut answered)?;
            delivered.extend(self.observers.seen());
            awaited.retain(|tuple, probe| {
                !answered.contains(probe) || (probe.from != probe.to && !delivered.contains(tuple))
            });
            let now = Instant::now();
            if awaited.is_empty() && !complete {
                complete = true;
                end = end.min(now + QUIET);
            }
            if now >= end {
                return Ok((answered, delivered));
            }
            clients.wait(&answered, (end - now).min(Duration::from_millis(20)))?;
        }
    }
}

impl Clients {
    /// Opens the sockets of one station, on its namespace's thread, and sends its probes from ports (and
    /// echo ids) from `port` on. Returns the first one that is still free.
    fn send(&mut self, from: &Station, all: &[Station], probes: &[Probe], mut port: u16) -> io::Result<u16> {
        for family in Family::BOTH {
            let own = from.ip(family);
            let udp = UdpSocket::bind((own, port))?;
            let udp_port = port;
            udp.set_nonblocking(true)?;
            let raw = Raw::open_here(own)?;
            let protocol = if own.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
            let icmp = super::raw_here(own, protocol)?;
            icmp.set_nonblocking(true)?;
            for probe in probes.iter().filter(|p| p.family == family) {
                let to = all[probe.to].ip(family);
                port = port.checked_add(1).ok_or_else(|| io::Error::other("no source port is left"))?;
                match probe.proto {
                    Proto::Tcp => {
                        let fd = start_tcp((own, port).into(), (to, probe.port).into())?;
                        self.tcp.push(Client { fd, probe: *probe });
                    }
                    Proto::Udp => drop(udp.send_to(b"probe", (to, probe.port))?),
                    Proto::Sctp => {
                        raw.send(to, Init { ack: false, sport: port, dport: probe.port, tag: 7 })?;
                    }
                    Proto::Icmp => {
                        let request = super::icmp::echo_request(to.is_ipv4(), port, 1, b"who reaches whom");
                        icmp.send_to(&request, SocketAddr::new(to, 0))?;
                    }
                }
                let sport = if probe.proto == Proto::Udp { udp_port } else { port };
                self.sent.insert((probe.proto.number(family), own, sport, to, probe.port), *probe);
            }
            port += 1;
            self.udp.push(udp);
            self.raw.push(raw);
            self.icmp.push(icmp);
        }
        Ok(port)
    }

    /// Takes all answers that are there.
    fn receive(&self, answered: &mut HashSet<Probe>) -> io::Result<()> {
        let mut found = |tuple: Tuple| answered.extend(self.sent.get(&tuple).copied());
        for socket in &self.udp {
            let own = socket.local_addr()?;
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                found((17, own.ip(), own.port(), from.ip(), from.port()));
            }
        }
        for raw in &self.raw {
            let own = raw.0.local_addr()?.ip();
            while let Some((from, init)) = raw.receive() {
                if init.ack {
                    found((132, own, init.dport, from, init.sport));
                }
            }
        }
        for icmp in &self.icmp {
            let own = icmp.local_addr()?.ip();
            while let Some((from, id)) = super::icmp::echo_reply(icmp) {
                found((if own.is_ipv4() { 1 } else { 58 }, own, id, from, 0));
            }
        }
        let open: Vec<&Client> = self.tcp.iter().filter(|c| !answered.contains(&c.probe)).collect();
        let mut polled: Vec<_> = open.iter().map(|c| PollFd::new(&c.fd, PollFlags::OUT)).collect();
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        for (client, _) in open.iter().zip(ready).filter(|(_, ready)| *ready) {
            if getsockopt(&client.fd, sockopt::SocketError)? == 0 {
                answered.insert(client.probe);
            }
        }
        Ok(())
    }

    /// Waits until something may have come.
    fn wait(&self, answered: &HashSet<Probe>, limit: Duration) -> io::Result<()> {
        let tcp = self.tcp.iter().filter(|c| !answered.contains(&c.probe));
        let mut polled: Vec<PollFd> = tcp.map(|c| PollFd::new(&c.fd, PollFlags::OUT)).collect();
        let rest = self.udp.iter().chain(&self.icmp).chain(self.raw.iter().map(|r| &r.0));
        polled.extend(rest.map(|s| PollFd::from_borrowed_fd(s.as_fd(), PollFlags::IN)));
        let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
        poll(&mut polled, Some(&timeout))?;
        // What is there now is mostly not alone.
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    }
}

/// Starts to connect. The socket is closed by a reset: nothing is left waiting.
fn start_tcp(own: SocketAddr, to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(own))?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(fd),
        Err(e) => Err(e.into()),
    }
}
