//! `snat`: after `policy`. Decides what the source of a new flow becomes.
//!
//! - A pod that talks to the outside takes this node's address and a port of the reserved range
//!   (`nat_outgoing`; RFC 4787, RFC 5508 for identifiers of ICMP echo).
//! - A client from outside that uses a service takes it too, unless only backends of this node serve it.
//! - A pod that reaches itself through a service takes the gateway's address, or over IPv6 this node's.
//! - What the node itself sends through us takes its address and a port of the range too where the answer would else
//!   come to the kernel and not to us: to a service's backend by an uplink without a tunnel, or from an address that
//!   other nodes do not know.
//! - Its TCP connections through a service take a port of the range in any case, unless they come from a privileged one.
//!   After a restart without flows nothing else keeps one apart from a connection straight to the same backend: the kernel
//!   gives one port to both, as their destinations differ, and does so often, since it goes on from the range it leaves out
//!   to the next free port.
//! - What is sent to the node itself comes from the gateway where the kernel would else answer past us: from the node's
//!   own addresses, and from outside to a process of the node behind a service.
//! - Everything else keeps its source; so does a flow that exists.
//!
//! The ports are those of [`Candidates`]; which of them is free is the flow table's to say, when `route` installs. None is
//! a UDP port that a socket of the node is bound to, and a flow whose port is by now is begun anew with another.
#![forbid(unsafe_code)]

use crate::graph::{Context, DropReason, Next, Node, NodeId, Setup, Source};
use crate::packet::{FlowKey, Ip, Meta, NO_INDEX, flags, proto};
use crate::snapshot::{GATEWAY_V4, GATEWAY_V6, PortRole, Route, Snapshot, Snat as Settings, is_gateway};
use crate::wire::icmp;

/// Ports from here on are anybody's; servers may trust those below (NFS does).
const PRIVILEGED: u16 = 1024;
/// Ports that are tried for one flow.
const TRIES: u32 = 1024;
/// Seed of the hash a port is chosen by: the same after a restart, so that connections keep their port.
const CHOICE: u64 = 0x5a;

/// The node.
#[derive(Debug, Default)]
pub struct Snat;

impl Node for Snat {
    const ID: NodeId = NodeId::Snat;

    fn one(&mut self, cx: &mut Context<'_>, i: u16) -> Next {
        let setup = *cx.packets.setup(i);
        let meta = *cx.packets.meta(i);
        let (original, translated) = (setup.original, setup.translated);
        let snat = &cx.snap.snat;
        if let Some(at) = setup.stale {
            let lost = is_of_node(translated, snat) && snat.is_bound(translated.proto, translated.sport);
            let kept = (original.src, original.sport) == (translated.src, translated.sport);
            if kept || !lost && (original.src == translated.src || is_own(translated.src, snat)) {
                return Next::Route;
            }
            // The node has another address now, or a socket at that port: no answer comes back.
            let _ = cx.flows.remove(at);
            return Next::Drop(DropReason::NatNoFlow);
        }
        let key = cx.packets.key(i);
        if original == translated && snat.holds(key.dst, key.dport) && is_outside(cx.snap, &meta) {
            // What comes from outside to a translated source belongs to a flow, or to nobody: to hand it to the
            // kernel would have it refuse connections that a restart left without a flow. What a socket of the
            // node waits for has been looked up by the XDP program, but echo replies have no port to look up.
            let pinged = is_echo_reply(&meta) && cx.snap.is_for_host(key.dst);
            return if pinged { Next::Route } else { Next::Drop(DropReason::NatNoFlow) };
        }
        if setup.reply {
            return Next::Route;
        }
        let source = wanted(cx.snap, &meta, &setup);
        let addr = match source {
            Source::Keep => return Next::Route,
            Source::Port => original.src,
            Source::Gateway if original.src.is_v4() => GATEWAY_V4,
            Source::Gateway => GATEWAY_V6,
            Source::Node => match snat.address(original.src.is_v4()) {
                Some(addr) => addr,
                None => return Next::Drop(DropReason::SnatNoAddress),
            },
        };
        let has_ports = match meta.proto {
            proto::TCP | proto::UDP | proto::SCTP => true,
            proto::ICMP | proto::ICMPV6 => icmp::has_ident(meta.has(flags::V6), meta.icmp_type),
            _ => false,
        };
        if !has_ports {
            return Next::Drop(DropReason::SnatProtocol);
        }
        let setup = cx.packets.setup_mut(i);
        setup.source = source;
        setup.translated.src = addr;
        Next::Route
    }
}

/// What becomes of the source of a new flow.
fn wanted(snap: &Snapshot, meta: &Meta, setup: &Setup) -> Source {
    let (src, dst) = (setup.original.src, setup.translated.dst);
    if snap.is_for_host(dst) {
        let translated = (setup.original.dst, setup.original.dport) != (dst, setup.translated.dport);
        let past_us = snap.is_own(src) || translated && is_outside(snap, meta);
        return if past_us { Source::Gateway } else { Source::Keep };
    }
    match setup.source {
        Source::Keep if leaves(snap, src, dst) || is_lost_by_host(snap, meta, setup) => Source::Node,
        // The gateway is link-local there: a UDP socket bound to no address would answer it from the pod's own
        // link-local address (RFC 6724 5, rule 2), which is no address of the flow. Nor is it one that another node
        // answers to: a process there may reach itself through a service here.
        Source::Gateway if !src.is_v4() || !snap.local.contains_key(&dst) => Source::Node,
        Source::Keep if is_host_connection(snap, meta, setup) => Source::Port,
        source => source,
    }
}

/// Whether the packet came by an uplink, and through no tunnel.
fn is_outside(snap: &Snapshot, meta: &Meta) -> bool {
    !meta.has(flags::DECAPPED) && snap.port(meta.ingress).is_some_and(|p| p.role == PortRole::Uplink)
}

fn is_echo_reply(meta: &Meta) -> bool {
    match meta.proto {
        proto::ICMP => meta.icmp_type == icmp::v4::ECHO_REPLY,
        proto::ICMPV6 => meta.icmp_type == icmp::v6::ECHO_REPLY,
        _ => false,
    }
}

/// Whether the answer to a packet of the host's that must be translated back would pass us by, or find nobody.
///
/// Towards another node's pod without a tunnel it may itself be an answer, to what came to the kernel straight from
/// the link: it stays what it is, and so does what is answered to it.
fn is_lost_by_host(snap: &Snapshot, meta: &Meta, setup: &Setup) -> bool {
    let (src, dst) = (setup.original.src, setup.translated.dst);
    let translated = setup.original.dst != dst;
    snap.port(meta.ingress).is_some_and(|p| p.role == PortRole::Host)
        && !snap.local.contains_key(&dst)
        && (snap.snat.address(src.is_v4()) != Some(src)
            || translated && snap.egress(dst).is_ok_and(|e| e.tunnel == NO_INDEX))
}

/// Whether the host itself opens a TCP connection through a service, from a port that the kernel may have chosen.
fn is_host_connection(snap: &Snapshot, meta: &Meta, setup: &Setup) -> bool {
    meta.proto == proto::TCP
        && setup.original.sport >= PRIVILEGED
        && snap.is_own(setup.original.src)
        && (setup.original.dst, setup.original.dport) != (setup.translated.dst, setup.translated.dport)
        && snap.port(meta.ingress).is_some_and(|p| p.role == PortRole::Host)
}

/// Whether a connection is one of a pod of this node to the outside. What the host forwards by other devices keeps
/// the pod's address: the kernel knows the way back to it, and not to a port of ours.
pub(super) fn leaves(snap: &Snapshot, src: Ip, dst: Ip) -> bool {
    snap.snat.outgoing
        && !is_gateway(dst)
        && snap.local.contains_key(&src)
        && snap.snat.inside.lookup(dst).is_none()
        && !matches!(snap.routes.lookup(dst), Some(Route::Host))
}

/// Whether an address is one that sources of connections from this node are translated to.
fn is_own(addr: Ip, snat: &Settings) -> bool {
    is_gateway(addr) || snat.address(addr.is_v4()) == Some(addr)
}

/// Whether answers to a flow's source come to the node itself, where a socket may be bound.
fn is_of_node(translated: FlowKey, snat: &Settings) -> bool {
    snat.address(translated.src.is_v4()) == Some(translated.src)
}

/// What a flow may look like after translation, best first. Ends when all of the port range was seen, or
/// [`TRIES`] of it.
///
/// A source that keeps its address keeps its port where that is free. Behind the node's address a source has one
/// preferred port, whatever its destination (endpoint-independent mapping, RFC 4787 4.1), and others where
/// another source has that port towards the same destination.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    snat: &'a Settings,
    translated: FlowKey,
    inside: FlowKey,
    size: u32,
    /// By which steps it goes through the range; worked out when the first port is not enough.
    step: Option<u32>,
    /// The next one; `None` is the flow with its own port.
    at: Option<u32>,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(original: &FlowKey, translated: &FlowKey, source: Source, snat: &'a Settings) -> Self {
        Self {
            snat,
            translated: *translated,
            inside: FlowKey { dst: original.src, dport: 0, ..*original },
            size: u32::from(snat.last.saturating_sub(snat.first)) + 1,
            step: None,
            at: matches!(source, Source::Node | Source::Port).then_some(0),
        }
    }

    /// The port at a place of the order.
    fn port(&mut self, n: u32) -> u16 {
        let size = self.size;
        let hash = self.inside.hash(CHOICE);
        let part = |h: u64| u32::try_from(h & 0xffff_ffff).unwrap_or(0);
        let start = part(hash) % size;
        let step = match n {
            0 => 0,
            _ => *self.step.get_or_insert_with(|| coprime(part(hash >> 32), size)),
        };
        let offset = (u64::from(start) + u64::from(n) * u64::from(step)) % u64::from(size);
        self.snat.first.saturating_add(u16::try_from(offset).unwrap_or(0))
    }
}

impl Iterator for Candidates<'_> {
    type Item = FlowKey;

    fn next(&mut self) -> Option<FlowKey> {
        let Some(from) = self.at else {
            self.at = Some(0);
            return Some(self.translated);
        };
        let (translated, snat) = (self.translated, self.snat);
        let (n, port) = (from..self.size.min(TRIES))
            .map(|n| (n, self.port(n)))
            .find(|(_, port)| !snat.is_bound(translated.proto, *port))?;
        self.at = Some(n + 1);
        let icmp = matches!(self.translated.proto, proto::ICMP | proto::ICMPV6);
        // An identifier stands in both ports.
        let dport = if icmp { port } else { translated.dport };
        Some(FlowKey { sport: port, dport, ..translated })
    }
}

/// A step that visits every one of `size` ports: one near `from` that shares no divisor with it.
fn coprime(from: u32, size: u32) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (from % size..size).chain(1..size).find(|s| *s > 0 && gcd(*s, size) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn key(sport: u16) -> FlowKey {
        let (src, dst) = (Ip::v4([10, 0, 0, 1]), Ip::v4([1, 1, 1, 1]));
        FlowKey { src, dst, sport, dport: 53, proto: proto::UDP }
    }

    proptest! {
        /// Every port of the range once, and no other.
        #[test]
        fn candidates_are_the_range(first in 1u16..=65_000, len in 0u16..500, sport: u16) {
            let snat = Settings { first, last: first.saturating_add(len), ..Settings::default() };
            let all: Vec<u16> = Candidates::new(&key(sport), &key(sport), Source::Node, &snat).map(|k| k.sport).collect();
            let set: BTreeSet<u16> = all.iter().copied().collect();
            prop_assert_eq!(set.len(), all.len());
            prop_assert_eq!(set, (snat.first..=snat.last).collect::<BTreeSet<_>>());
        }

        /// What sockets of the node are bound to is left out for UDP, in the same order otherwise, and for nothing else.
        #[test]
        fn bound_ports_are_left_out(
            bound in proptest::collection::btree_set(40_000u16..40_300, 0..300), sport: u16, tcp: bool, keep: bool,
        ) {
            let none = Settings { last: 40_299, ..Settings::default() };
            let some = Settings { bound_udp: bound.iter().copied().collect(), ..none.clone() };
            let source = if keep { Source::Keep } else { Source::Node };
            let key = FlowKey { proto: if tcp { proto::TCP } else { proto::UDP }, ..key(sport) };
            let all = |snat: &Settings| -> Vec<u16> {
                Candidates::new(&key, &key, source, snat).map(|k| k.sport).collect()
            };
            // A kept port is the sender's own business: it may be the very socket.
            let own = usize::from(keep);
            let left = |(i, port): &(usize, u16)| tcp || *i < own || !bound.contains(port);
            let want: Vec<u16> = all(&none).into_iter().enumerate().filter(left).map(|(_, port)| port).collect();
            prop_assert_eq!(all(&some), want);
        }

        /// The preferred port does not depend on the destination.
        #[test]
        fn mapping_is_endpoint_independent(sport: u16, dst: [u8; 4], dport: u16) {
            let snat = Settings::default();
            let other = FlowKey { dst: Ip::v4(dst), dport, ..key(sport) };
            let first = |k: &FlowKey| Candidates::new(k, k, Source::Node, &snat).next().map(|k| k.sport);
            prop_assert_eq!(first(&key(sport)), first(&other));
        }
    }

    #[test]
    fn a_kept_source_keeps_its_port_first() {
        let snat = Settings::default();
        let mut all = Candidates::new(&key(7), &key(7), Source::Keep, &snat);
        assert_eq!(all.next(), Some(key(7)));
        assert!(all.next().is_some_and(|k| (snat.first..=snat.last).contains(&k.sport)));
        assert_eq!(all.count(), TRIES as usize - 1);
    }

    #[test]
    fn identifiers_stand_in_both_ports() {
        let echo = FlowKey { proto: proto::ICMP, ..key(9) };
        let first = Candidates::new(&echo, &echo, Source::Node, &Settings::default()).next();
        assert!(first.is_some_and(|k| k.sport == k.dport && k.sport >= 40_000));
    }
}
