//! [`Watcher`]: follows the kernel's network configuration and publishes a new [`NetView`] when it changed.
//!
//! Links, addresses and neighbours are followed message by message. Rules, of which there are few, are read again, and
//! routes too: IPv4 routes vanish with their
//! device or address without a word, and a multipath route changes in pieces; so whatever may have touched a route
//! has them read again. When the kernel had to drop messages (`ENOBUFS`), everything is read again.
//!
//! The pods' ends of veths change in namespaces we do not listen in; a second socket (`NETLINK_LISTEN_ALL_NSID`)
//! hears of links there, and is used only as a hint which to ask about.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::libc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::decode;
use super::view::{LinkKind, NetView};
use super::wire::{
    AF_INET, AF_INET6, Message, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_DELRULE,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTM_NEWRULE, messages,
};
use super::{Error, Netlink};

// linux/rtnetlink.h, enum rtnetlink_groups.
const GROUP_LINK: u32 = 1;
const GROUP_NEIGH: u32 = 3;
const GROUP_IPV4_ADDR: u32 = 5;
const GROUP_IPV4_ROUTE: u32 = 7;
const GROUP_IPV4_RULE: u32 = 8;
const GROUP_IPV6_ADDR: u32 = 9;
const GROUP_IPV6_ROUTE: u32 = 11;
const GROUP_IPV6_RULE: u32 = 19;

/// Changes come in bursts (a device with its addresses and routes): wait this long for the rest.
const SETTLE: Duration = Duration::from_millis(5);
/// At most 50 views a second.
const PERIOD: Duration = Duration::from_millis(20);
/// After reading routes, rest for this many times what it took: at most a tenth of the thread's time.
const REST: u32 = 10;
/// Datagrams read in one turn, so that other work of the thread goes on.
const TURN: usize = 256;
/// Room for one datagram.
const DATAGRAM: usize = 256 * 1024;
/// Room for a burst of messages; beyond it everything is read again.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A task that keeps a [`NetView`] current.
#[derive(Debug)]
pub struct Watcher {
    views: watch::Receiver<Arc<NetView>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Reads the configuration of the calling thread's network namespace, and follows it from then on.
    ///
    /// Must be called within a tokio runtime; a task is started on it.
    ///
    /// # Errors
    /// [`Error::Socket`], [`Error::Kernel`].
    pub fn start() -> Result<Self, Error> {
        let failed = |source| Error::Socket { what: "listen for network changes", source };
        let groups = [
            GROUP_LINK,
            GROUP_NEIGH,
            GROUP_IPV4_ADDR,
            GROUP_IPV4_ROUTE,
            GROUP_IPV4_RULE,
            GROUP_IPV6_ADDR,
            GROUP_IPV6_ROUTE,
            GROUP_IPV6_RULE,
        ];
        let events = listen(&groups, false).map_err(failed)?;
        let elsewhere = match listen(&[GROUP_LINK], true) {
            Ok(socket) => Some(socket),
            Err(e) => {
                tracing::warn!(
                    "cannot listen for link changes in pods ({e}): their MAC and MTU are read once"
                );
                None
            }
        };
        let mut state = State::new()?;
        state.refresh()?;
        let (sender, views) = watch::channel(Arc::new(state.view.clone()));
        let task = tokio::spawn(follow(state, events, elsewhere, sender));
        Ok(Self { views, task })
    }

    /// The current view.
    #[must_use]
    pub fn view(&self) -> Arc<NetView> {
        self.views.borrow().clone()
    }

    /// To await changes with. The channel closes when the watcher is dropped.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<NetView>> {
        self.views.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn listen(groups: &[u32], all_namespaces: bool) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    inner.bind(&SocketAddr::new(0, 0))?;
    if all_namespaces {
        inner.set_listen_all_namespaces(true)?;
    }
    // Beyond net.core.rmem_max the kernel caps it silently; an overrun is recovered from.
    inner.set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX))?;
    for group in groups {
        inner.add_membership(*group)?;
    }
    Ok(socket)
}

async fn follow(
    mut state: State,
    events: TokioSocket,
    elsewhere: Option<TokioSocket>,
    sender: watch::Sender<Arc<NetView>>,
) {
    let mut buf = Vec::with_capacity(DATAGRAM);
    let mut buf_elsewhere = Vec::with_capacity(DATAGRAM);
    let mut due: Option<Instant> = None;
    let mut not_before = Instant::now();
    loop {
        buf.clear();
        buf_elsewhere.clear();
        let from_elsewhere = async {
            match &elsewhere {
                Some(socket) => (socket.recv(&mut buf_elsewhere).await, socket),
                None => std::future::pending().await,
            }
        };
        let received = tokio::select! {
            first = events.recv(&mut buf) => {
                receive(first, &mut buf, |buf| again(&events, buf), |m| state.apply(&m))
            }
            (first, socket) = from_elsewhere => {
                match receive(first, &mut buf_elsewhere, |buf| again(socket, buf), |m| state.hint(&m)) {
                    Received::Overrun => {
                        // Whichever was lost: ask about all.
                        state.all_peers();
                        Received::Fine
                    }
                    received => received,
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let started = Instant::now();
                due = None;
                match state.refresh() {
                    Ok(()) => {
                        let changed = sender.send_if_modified(|view| {
                            let changed = **view != state.view;
                            if changed {
                                *view = Arc::new(state.view.clone());
                            }
                            changed
                        });
                        tracing::trace!(changed, "network configuration read");
                        not_before = Instant::now() + PERIOD.max(started.elapsed() * REST);
                    }
                    Err(e) => {
                        tracing::warn!("{e}; will try again");
                        state.everything = true;
                        not_before = Instant::now() + Duration::from_secs(1);
                        due = Some(not_before);
                    }
                }
                continue;
            }
        };
        match received {
            Received::Fine => {}
            Received::Overrun => {
                tracing::debug!("the kernel dropped network messages: reading everything again");
                state.everything = true;
            }
            Received::Failed(e) => {
                tracing::warn!("cannot receive network changes: {e}; reading everything again");
                state.everything = true;
                sleep(Duration::from_secs(1)).await;
            }
        }
        if state.pending() && due.is_none() {
            due = Some(not_before.max(Instant::now() + SETTLE));
        }
    }
}

#[derive(Debug)]
enum Received {
    /// What there was, or enough for one turn.
    Fine,
    /// The kernel dropped messages.
    Overrun,
    /// The socket does not work.
    Failed(io::Error),
}

/// Reads a datagram if there is one.
fn again(socket: &TokioSocket, buf: &mut Vec<u8>) -> io::Result<()> {
    socket.socket_ref().recv(buf, libc::MSG_DONTWAIT).map(|_| ())
}

/// Hands on the messages of the datagram in `buf` and of those that wait behind it, which `again` reads.
///
/// After an overrun what waits is read and thrown away: it is older than what is read anew then, and must not be
/// applied over it. What comes after that is as new or newer.
fn receive(
    first: io::Result<()>,
    buf: &mut Vec<u8>,
    mut again: impl FnMut(&mut Vec<u8>) -> io::Result<()>,
    mut each: impl FnMut(Message<'_>),
) -> Received {
    let mut result = first;
    let mut overrun = false;
    let mut left = TURN;
    loop {
        match result {
            // The kernel's datagrams are a tenth of the buffer: one that fills it was cut.
            Ok(()) if buf.len() >= DATAGRAM => overrun = true,
            Ok(()) if overrun => {}
            Ok(()) => messages(buf).for_each(&mut each),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => break,
                Some(libc::EINTR) => {}
                Some(libc::ENOBUFS) => overrun = true,
                _ => return Received::Failed(e),
            },
        }
        left = left.saturating_sub(1);
        if left == 0 && !overrun {
            break;
        }
        buf.clear();
        result = again(buf);
    }
    if overrun { Received::Overrun } else { Received::Fine }
}

/// The view, and what of it must be read again.
#[derive(Debug)]
struct State {
    netlink: Netlink,
    view: NetView,
    everything: bool,
    routes: bool,
    rules: bool,
    peers: BTreeSet<u32>,
    changed: bool,
}

impl State {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::route()?,
            view: NetView::default(),
            everything: true,
            routes: false,
            rules: false,
            peers: BTreeSet::new(),
            changed: false,
        })
    }

    fn pending(&self) -> bool {
        self.everything || self.routes || self.rules || self.changed || !self.peers.is_empty()
    }

    fn all_peers(&mut self) {
        self.peers.extend(self.view.links.values().filter(|l| l.kind == LinkKind::Veth).map(|l| l.index));
    }

    /// Reads again what must be.
    fn refresh(&mut self) -> Result<(), Error> {
        if self.everything {
            self.view.links = self.netlink.links()?.into_iter().map(|l| (l.index, l)).collect();
            self.view.addresses = self.netlink.addresses()?.into_iter().collect();
            self.view.neighbors = self.netlink.neighbors()?.into_iter().collect();
            self.view.peers.retain(|index, _| self.view.links.contains_key(index));
            self.all_peers();
            (self.routes, self.rules) = (true, true);
            self.everything = false;
        }
        if self.routes {
            self.view.routes = self.netlink.routes()?.into_iter().collect();
            self.routes = false;
        }
        if self.rules {
            self.view.rules = self.netlink.rules()?;
            self.rules = false;
        }
        while let Some(index) = self.peers.pop_first() {
            match self.netlink.peer_of(index) {
                Ok(peer) => {
                    self.view.peers.insert(index, peer);
                }
                Err(e) => {
                    if !e.is_gone() {
                        tracing::debug!("{e}");
                    }
                    self.view.peers.remove(&index);
                }
            }
        }
        self.changed = false;
        Ok(())
    }

    /// Takes in one message of our own namespace.
    fn apply(&mut self, m: &Message<'_>) {
        match m.kind {
            RTM_NEWLINK => {
                if let Some(link) = decode::link(m.payload) {
                    if link.kind == LinkKind::Veth {
                        self.peers.insert(link.index);
                    }
                    let old = self.view.links.get(&link.index);
                    if old != Some(&link) {
                        self.routes |= old.is_none_or(|old| (old.up, old.running) != (link.up, link.running));
                        self.changed = true;
                        self.view.links.insert(link.index, link);
                    }
                }
            }
            RTM_DELLINK => {
                if let Some(index) = decode::link_index(m.payload) {
                    self.forget(index);
                }
            }
            RTM_NEWADDR => {
                if let Some(address) = decode::address(m.payload) {
                    // Flags change under the same address: replace, do not add.
                    self.view.addresses.retain(|a| !same_address(a, &address));
                    self.view.addresses.insert(address);
                    self.changed = true;
                }
            }
            RTM_DELADDR => {
                if let Some(address) = decode::address(m.payload) {
                    self.view.addresses.retain(|a| !same_address(a, &address));
                    (self.changed, self.routes) = (true, true);
                }
            }
            RTM_NEWROUTE | RTM_DELROUTE => {
                self.routes |= matches!(m.payload.first(), Some(&(AF_INET | AF_INET6)));
            }
            RTM_NEWRULE | RTM_DELRULE => {
                self.rules |= matches!(m.payload.first(), Some(&(AF_INET | AF_INET6)));
            }
            RTM_NEWNEIGH => {
                if let Some((key, neighbor)) = decode::neighbor(m.payload) {
                    self.changed |= self.view.neighbors.insert(key, neighbor) != Some(neighbor);
                }
            }
            RTM_DELNEIGH => {
                if let Some((key, _)) = decode::neighbor(m.payload) {
                    self.changed |= self.view.neighbors.remove(&key).is_some();
                }
            }
            _ => {}
        }
    }

    fn forget(&mut self, index: u32) {
        self.view.links.remove(&index);
        self.view.peers.remove(&index);
        self.view.addresses.retain(|a| a.link != index);
        self.view.neighbors.retain(|(link, _), _| *link != index);
        (self.changed, self.routes) = (true, true);
    }

    /// A link somewhere changed; if it may be the other end of one of ours, ask.
    fn hint(&mut self, m: &Message<'_>) {
        if !matches!(m.kind, RTM_NEWLINK | RTM_DELLINK) {
            return;
        }
        if let Some(ours) = decode::link_lower(m.payload)
            && self.view.links.get(&ours).is_some_and(|l| l.kind == LinkKind::Veth)
        {
            self.peers.insert(ours);
        }
    }
}

fn same_address(a: &super::view::Address, b: &super::view::Address) -> bool {
    (a.link, a.net, a.peer) == (b.link, b.net, b.peer)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A datagram of one message of kind `kind`, without payload.
    fn datagram(kind: u16) -> Vec<u8> {
        let mut out = 16u32.to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out
    }

    fn error(errno: i32) -> io::Result<Vec<u8>> {
        Err(io::Error::from_raw_os_error(errno))
    }

    /// What comes of reading `queue`: the result, the kinds of messages handed on, and what is left in the queue.
    fn read(queue: Vec<io::Result<Vec<u8>>>) -> (Received, Vec<u16>, usize) {
        let mut queue = VecDeque::from(queue);
        let mut next = |buf: &mut Vec<u8>| {
            buf.extend(queue.pop_front().unwrap_or_else(|| error(libc::EAGAIN))?);
            Ok(())
        };
        let (mut buf, mut seen) = (Vec::new(), Vec::new());
        let first = next(&mut buf);
        let received = receive(first, &mut buf, next, |m| seen.push(m.kind));
        (received, seen, queue.len())
    }

    #[test]
    fn what_waits_behind_an_overrun_is_thrown_away() {
        let (received, seen, left) = read(vec![
            Ok(datagram(20)),
            error(libc::EINTR),
            error(libc::ENOBUFS),
            Ok(datagram(21)),
            error(libc::ENOBUFS),
            Ok(datagram(22)),
            error(libc::EAGAIN),
            Ok(datagram(23)),
        ]);
        assert!(matches!(received, Received::Overrun), "{received:?}");
        assert_eq!((seen, left), (vec![20], 1));
        // However much it is.
        let mut many: Vec<_> = (0..3 * TURN).map(|_| Ok(datagram(21))).collect();
        many.insert(0, error(libc::ENOBUFS));
        let (received, seen, left) = read(many);
        assert!(matches!(received, Received::Overrun), "{received:?}");
        assert_eq!((seen, left), (vec![], 0));
        let (received, seen, _) = read(vec![Ok(vec![0; DATAGRAM]), Ok(datagram(21))]);
        assert!(matches!(received, Received::Overrun), "{received:?}");
        assert_eq!(seen, [0; 0]);
    }

    #[test]
    fn a_turn_ends() {
        let many = |n: usize| (0..n).map(|_| Ok(datagram(21))).collect::<Vec<_>>();
        let (received, seen, left) = read(many(TURN + 5));
        assert!(matches!(received, Received::Fine), "{received:?}");
        assert_eq!((seen.len(), left), (TURN, 5));
        let (received, seen, left) = read(many(5));
        assert!(matches!(received, Received::Fine), "{received:?}");
        assert_eq!((seen.len(), left), (5, 0));
        let (received, ..) = read(vec![error(libc::EBADF)]);
        assert!(matches!(received, Received::Failed(_)), "{received:?}");
    }
}
