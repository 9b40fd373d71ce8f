//! A netlink socket for requests: one question, its answers, in order.
//!
//! The kernel answers within the call, so these block no longer than the kernel's own lock. The socket belongs to the
//! network namespace of the thread that opens it, for as long as it lives.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::Error;
use super::wire::{
    HEADER, Message, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE,
    NLMSG_ERROR, Request, attrs, i32_at, messages, u32_at,
};

/// `NLMSGERR_ATTR_MSG`: the kernel's words for an error.
const ERROR_TEXT: u16 = 1;

/// Datagrams of a dump are at most 32 KiB; a single message with many virtual functions may be longer.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// How often a dump is repeated that the kernel says changed meanwhile.
const DUMP_TRIES: usize = 8;

/// A socket for netlink requests in the network namespace it was opened in.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    seq: u32,
    buf: Vec<u8>,
}

impl Netlink {
    /// Opens a socket for routing requests (`NETLINK_ROUTE`) in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn route() -> Result<Self, Error> {
        Self::open(NETLINK_ROUTE)
    }

    /// Opens a socket for generic netlink (`NETLINK_GENERIC`), which ethtool speaks.
    pub(super) fn generic() -> Result<Self, Error> {
        Self::open(NETLINK_GENERIC)
    }

    /// Opens a socket for the packet filter (`NETLINK_NETFILTER`).
    pub(super) fn netfilter() -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            if protocol == NETLINK_ROUTE {
                // Without it the kernel ignores what a dump asks to be filtered by.
                socket.set_netlink_get_strict_chk(true)?;
            }
            // An answer always comes; this only keeps a kernel bug from hanging the control thread.
            set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(10)))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| Error::Socket { what: "open a request socket", source })?;
        Ok(Self { socket, seq: 0, buf: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends `request` (acknowledged) and hands each answer to `each`.
    ///
    /// `what` names the request in an error: "read the link 'eth0'".
    pub(super) fn call(
        &mut self,
        what: impl Fn() -> String,
        mut request: Request,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), Error> {
        debug_assert!(request.has(NLM_F_ACK));
        self.exchange(&mut request, &mut each).map(|_| ()).map_err(|(source, detail)| Error::Kernel {
            what: what(),
            source,
            detail,
        })
    }

    /// Sends the dump request that `make` builds until its answer is consistent, and collects what `each` makes of it.
    pub(super) fn dump<T>(
        &mut self,
        what: &'static str,
        make: impl Fn() -> Request,
        each: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            let mut request = make();
            debug_assert!(request.has(NLM_F_DUMP));
            let mut out = Vec::new();
            let consistent = self
                .exchange(&mut request, &mut |m| out.extend(each(m)))
                .map_err(|(source, detail)| Error::Kernel { what: what.to_owned(), source, detail })?;
            if consistent {
                return Ok(out);
            }
        }
        Err(Error::Kernel {
            what: what.to_owned(),
            source: io::ErrorKind::Interrupted.into(),
            detail: format!("; it changed during each of {DUMP_TRIES} reads"),
        })
    }

    /// One request and its answers; says whether a dump was consistent.
    fn exchange(
        &mut self,
        request: &mut Request,
        each: &mut dyn FnMut(Message<'_>),
    ) -> Result<bool, (io::Error, String)> {
        let plain = |e: io::Error| (e, String::new());
        self.seq = self.seq.wrapping_add(1);
        self.socket.send(request.finish(self.seq), 0).map_err(plain)?;
        let mut consistent = true;
        loop {
            self.buf.clear();
            let len = match self.socket.recv(&mut self.buf, libc::MSG_TRUNC) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(plain)?,
            };
            if len > self.buf.len() {
                return Err((
                    io::ErrorKind::InvalidData.into(),
                    format!("; an answer of {len} bytes is longer than the buffer"),
                ));
            }
            for m in messages(&self.buf).filter(|m| m.seq == self.seq) {
                consistent &= m.flags & NLM_F_DUMP_INTR == 0;
                match m.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let code = i32_at(m.payload, 0).unwrap_or(0);
                        if code == 0 {
                            return Ok(consistent);
                        }
                        let error = io::Error::from_raw_os_error(code.wrapping_neg());
                        return Err((error, error_text(&m)));
                    }
                    _ => each(m),
                }
            }
        }
    }
}

/// The kernel's words for an error (extended acknowledgement), ready to append to a message.
fn error_text(m: &Message<'_>) -> String {
    if m.flags & NLM_F_ACK_TLVS == 0 {
        return String::new();
    }
    let skip = match m.kind {
        NLMSG_DONE => 4,
        // The request is quoted: its header only, if capped.
        _ if m.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        _ => {
            4 + u32_at(m.payload, 4)
                .map_or(HEADER, |n| usize::try_from(n).unwrap_or(HEADER).next_multiple_of(4))
        }
    };
    attrs(m.payload.get(skip..).unwrap_or_default())
        .find(|a| a.kind == ERROR_TEXT)
        .map_or_else(String::new, |a| format!(" ({})", a.string()))
}
