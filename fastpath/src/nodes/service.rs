//! `service`: after `flow`, for packets without a current flow entry. Chooses the backend of a connection to a
//! service, and sees whether a flow's backend still exists.
//!
//! - New connections: exact match on the destination, then affinity or Maglev among the usable backends.
//! - A flow of an older generation keeps its backend while that exists. Once it is gone a TCP sender gets a reset
//!   and other protocols choose anew.
//! - A service without a usable backend refuses; one held to this node's backends drops what comes from outside.
//!
//! Limit: each worker remembers the affinity of 16,384 clients; see [`Affinity`].
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Lists, Next, Node, NodeId, Setup, Source};
use crate::packet::{Ip, flags, proto};
use crate::snapshot::PortRole;
use crate::tables::affinity::Affinity;
use crate::tables::service::{AT_ONCE, Backend, Found, Frontend};
use crate::wire::icmp::ErrorKind;

/// Sets of the affinity table.
const AFFINITY_SETS: usize = if cfg!(miri) { 8 } else { 2048 };

/// The node, with what its worker knows of affinities.
#[derive(Debug)]
pub struct Service {
    affinity: Affinity,
}

impl Default for Service {
    fn default() -> Self {
        Self { affinity: Affinity::new(AFFINITY_SETS) }
    }
}

impl Node for Service {
    const ID: NodeId = NodeId::Service;

    /// Some at a time, what they will read fetched for all of them before.
    fn run(&mut self, cx: &mut Context<'_>, input: &[u16], lists: &mut Lists) {
        for some in input.chunks(AT_ONCE) {
            cx.snap.services.fetch(some.iter().map(|i| &cx.packets.setup(*i).original));
            for &i in some {
                let next = self.one(cx, i);
                lists.push(cx, i, next);
            }
        }
    }

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let setup = *cx.packets.setup(i);
        if setup.stale.is_some() {
            match kept(cx, &setup) {
                Kept::Yes => return Next::Policy,
                Kept::Refuse => return Next::Refuse(DropReason::BackendGone, ErrorKind::PortUnreachable),
                Kept::Drop => return Next::Drop(DropReason::BackendGone),
                // The datagram's beginning went to the backend that is gone.
                Kept::Anew if cx.packets.meta(i).has(flags::LATER_FRAGMENT) => {
                    return Next::Drop(DropReason::BackendGone);
                }
                Kept::Anew => *cx.packets.setup_mut(i) = Setup::first(setup.original),
            }
        }
        let meta = cx.packets.meta(i);
        let key = setup.original;
        // The node it came from has translated it, or it is not for a service of ours; what only this node knows are
        // ports of its own addresses.
        let decapped = meta.has(flags::DECAPPED);
        if decapped && !cx.snap.is_own(key.dst) {
            return Next::Policy;
        }
        let from_outside =
            !decapped && cx.snap.port(meta.ingress).is_some_and(|p| p.role == PortRole::Uplink);
        let frontend = match cx.snap.services.find(key.dst, key.proto, key.dport) {
            Found::Nothing => return Next::Policy,
            Found::NoPort => {
                return Next::Refuse(DropReason::ServicePortUnknown, ErrorKind::PortUnreachable);
            }
            Found::Frontend(frontend) => frontend,
        };
        if !frontend.admits(key.src) {
            return Next::Drop(DropReason::SourceRangeDenied);
        }
        let Some(backend) = self.choose(cx, frontend, &setup, from_outside) else {
            // Nobody serves it, or only other nodes do, to which the client is to be sent.
            return if from_outside && frontend.is_local_for(true) && frontend.all.is_some() {
                Next::Drop(DropReason::NoLocalBackend)
            } else {
                Next::Refuse(DropReason::NoBackend, ErrorKind::PortUnreachable)
            };
        };
        let masked = from_outside && !frontend.is_local_for(true);
        let setup = cx.packets.setup_mut(i);
        setup.translated.dst = backend.addr;
        setup.translated.dport = backend.port;
        if masked {
            setup.source = Source::Node;
        } else if backend.addr == key.src {
            setup.source = Source::Gateway;
        }
        Next::Policy
    }
}

impl Service {
    fn choose(
        &mut self,
        cx: &Context<'_>,
        frontend: &Frontend,
        setup: &Setup,
        from_outside: bool,
    ) -> Option<Backend> {
        let spread = frontend.spread(from_outside)?;
        if frontend.affinity_ms == 0 {
            return spread.choose(&setup.original);
        }
        let client: Ip = setup.original.src;
        let last = self.affinity.get(frontend.id, client, cx.now, frontend.affinity_ms);
        let backend = match last.filter(|b| spread.contains(*b)) {
            Some(backend) => backend,
            None => spread.choose_for_client(client)?,
        };
        self.affinity.put(frontend.id, client, backend, cx.now);
        Some(backend)
    }
}

/// What becomes of a flow's backend.
enum Kept {
    /// It exists, or the flow has none.
    Yes,
    /// The flow has ended: tell the sender.
    Refuse,
    /// The flow has ended.
    Drop,
    /// The flow has ended, and its packet begins another.
    Anew,
}

fn kept(cx: &Context<'_>, setup: &Setup) -> Kept {
    let (original, translated) = (setup.original, setup.translated);
    let backend = Backend { addr: translated.dst, port: translated.dport };
    let tcp = original.proto == proto::TCP;
    let found = cx.snap.services.find(original.dst, original.proto, original.dport);
    if (original.dst, original.dport) == (backend.addr, backend.port) {
        // Opened before its service was known, datagrams would miss it for as long as they keep coming.
        let late = matches!(found, Found::Frontend(_)) && !tcp && !setup.reply;
        let removed = || setup.stale.is_some_and(|at| cx.flows.remove(at));
        return if late && removed() { Kept::Anew } else { Kept::Yes };
    }
    let known = match found {
        Found::Frontend(frontend) => frontend.known(backend),
        Found::NoPort | Found::Nothing => None,
    };
    if known.is_some_and(|k| k.serves || tcp) {
        return Kept::Yes;
    }
    // Busy with another worker's packet: this one is lost, the next one tries again. A packet before it in the vector may
    // have removed the flow.
    let removed = setup.stale.is_some_and(|at| cx.flows.remove(at) || cx.flows.pair(at).is_none());
    match (tcp, removed, setup.reply) {
        (true, ..) => Kept::Refuse,
        (false, true, false) => Kept::Anew,
        (false, ..) => Kept::Drop,
    }
}
