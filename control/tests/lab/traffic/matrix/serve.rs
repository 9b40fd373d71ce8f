//! The servers of all stations, on one thread.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Station;
use crate::traffic::sctp::Raw;

/// Runs until dropped.
pub(super) struct Servers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum Server {
    Tcp(TcpListener),
    Udp(UdpSocket),
    Sctp(Raw, Vec<u16>),
}

impl Servers {
    /// TCP, UDP and SCTP on `ports` of both addresses of every station. The kernel answers echo requests.
    pub(super) fn start(stations: &[Station], ports: &[u16]) -> io::Result<Self> {
        let mut servers = Vec::new();
        for station in stations {
            servers.extend(station.ns.run(|| open(station, ports))?);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                turn(&servers);
            }
        });
        Ok(Servers { stop, thread: Some(thread) })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn open(station: &Station, ports: &[u16]) -> io::Result<Vec<Server>> {
    let mut servers = Vec::new();
    for address in station.addresses {
        for port in ports {
            let tcp = TcpListener::bind((address, *port))?;
            tcp.set_nonblocking(true)?;
            let udp = UdpSocket::bind((address, *port))?;
            udp.set_nonblocking(true)?;
            servers.extend([Server::Tcp(tcp), Server::Udp(udp)]);
        }
        servers.push(Server::Sctp(Raw::open_here(address)?, ports.to_vec()));
    }
    Ok(servers)
}

fn turn(servers: &[Server]) {
    let mut polled: Vec<PollFd> = servers
        .iter()
        .map(|s| match s {
            Server::Tcp(s) => s.as_fd(),
            Server::Udp(s) => s.as_fd(),
            Server::Sctp(s, _) => s.0.as_fd(),
        })
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
    let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
    for (server, _) in servers.iter().zip(ready).filter(|(_, ready)| *ready) {
        // What fails here is missing at the client.
        match server {
            Server::Tcp(listener) => {
                // The client ends it by a reset when its round is over.
                while let Ok((stream, _)) = listener.accept() {
                    drop(stream);
                }
            }
            Server::Udp(socket) => {
                let mut buffer = [0; 64];
                while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(&buffer[..len], from));
                }
            }
            Server::Sctp(raw, ports) => {
                while let Some((from, init)) = raw.receive() {
                    if !init.ack && ports.contains(&init.dport) {
                        drop(raw.send(from, init.answer()));
                    }
                }
            }
        }
    }
}
