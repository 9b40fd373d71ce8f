//! The host port over memory ports: the nodes' own processes among pods, services and the outside.
//!
//! Two nodes with a host port each, and around them what is not ours: each node's kernel, which delivers what comes to
//! its addresses and sends by its own routes, and the outside.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

#[allow(unreachable_pub, dead_code, reason = "shared by test programs, each of which uses a part")]
mod world;

use std::collections::BTreeMap;

use fastpath::graph::DropReason;
use fastpath::packet::{FlowKey, Ip, Meta, PortId, proto};
use fastpath::snapshot::{GATEWAY_V4, GATEWAY_V6, NextHop, Route};
use fastpath::tables::Prefix;
use fastpath::tables::service::Backend;
use fastpath::testbed::{
    Bed, HOST, HOST_MAC, PODS, UPLINK, Underlay, add_host, from_host, from_pod, mac, pod, pod_port, snapshot,
    underlay,
};
use fastpath::wire::parse::{Parsed, parse};
use fastpath::wire::testgen::{Spec, Upper};
use fastpath::wire::{icmp, tcp};
use proptest::prelude::*;
use world::{ROUTER, Service, answer, client, from_outside, node_port, seen, service, set_services, vip};

const SYN: u8 = tcp::control::SYN;
const RANGE: std::ops::RangeInclusive<u16> = 40_000..=56_383;

fn gateway(v6: bool) -> Ip {
    if v6 { GATEWAY_V6 } else { GATEWAY_V4 }
}

/// A node with a host port and a way to the outside.
fn node(this: u8, encap: bool) -> Bed {
    let mut snap = snapshot(this, Underlay { encap, outer_v6: false });
    add_host(&mut snap);
    for v6 in [false, true] {
        let hop = u16::try_from(snap.next_hops.len()).unwrap();
        let addr = Some(client(v6, 254));
        snap.next_hops.push(NextHop { addr, port: UPLINK, src_mac: mac(this, 0), dst_mac: Some(ROUTER) });
        let any = if v6 { "::" } else { "0.0.0.0" };
        snap.routes.insert(Prefix::new(any.parse().unwrap(), 0).unwrap(), Route::NextHop(hop));
        // The other node is on the link, whatever else there is.
        snap.routes.insert(Prefix::host(underlay(v6, 3 - this)), Route::NextHop(u16::from(v6)));
    }
    Bed::new(snap)
}

/// Who has a frame that left the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Pod(u8, u8),
    /// A node's kernel, by its host port.
    Host(u8),
    /// A node's kernel, straight from the link.
    Kernel(u8),
    Outside,
}

struct Net {
    beds: [Bed; 2],
}

impl Net {
    fn new(encap: bool, services: &[Service]) -> Self {
        let beds = [1, 2].map(|n| node(n, encap));
        beds.iter().for_each(|b| set_services(b, services));
        Net { beds }
    }

    fn bed(&mut self, node: u8) -> &mut Bed {
        &mut self.beds[usize::from(node) - 1]
    }

    fn drops(&self) -> Vec<BTreeMap<DropReason, u64>> {
        self.beds.iter().map(Bed::drops).collect()
    }

    /// A frame that comes to a node by the link, as its XDP program decides.
    fn by_link(&mut self, node: u8, frame: &[u8], delivered: &mut Vec<(At, Vec<u8>)>) {
        let own = [false, true].map(|v6| underlay(v6, node));
        let key = key_of(frame);
        let tunnel = key.proto == proto::UDP && key.dport == 4789;
        let ours = tunnel || RANGE.contains(&key.dport) || key.dport >= 30_000 && key.dport < 32_768;
        if own.contains(&key.dst) && !ours {
            delivered.push((At::Kernel(node), frame.to_vec()));
        } else {
            assert!(self.bed(node).send(UPLINK, frame));
        }
    }

    /// Carries frames until all is quiet; who has which in the end.
    fn settle(&mut self) -> Vec<(At, Vec<u8>)> {
        let mut delivered = Vec::new();
        loop {
            let before = delivered.len();
            let mut crossed = false;
            for n in [1, 2] {
                for (port, frame) in self.bed(n).run() {
                    match port {
                        HOST => delivered.push((At::Host(n), frame)),
                        UPLINK if frame[..6] == ROUTER.0 => delivered.push((At::Outside, frame)),
                        UPLINK => {
                            crossed = true;
                            self.by_link(3 - n, &frame, &mut delivered);
                        }
                        PortId(p) => delivered.push((At::Pod(n, u8::try_from(p).unwrap()), frame)),
                    }
                }
            }
            if !crossed && delivered.len() == before {
                return delivered;
            }
        }
    }

    /// The one who has the frame answers it, the way it would.
    fn reply(&mut self, at: At, frame: &[u8]) -> Vec<(At, Vec<u8>)> {
        let back = answer(frame);
        let key = key_of(&back);
        let mut delivered = Vec::new();
        let cross_link = |net: &mut Self, to: u8, out: &mut Vec<(At, Vec<u8>)>| {
            let mut back = back.clone();
            back[..6].copy_from_slice(&mac(to, 0).0);
            net.by_link(to, &back, out);
        };
        match at {
            At::Pod(n, p) => assert!(self.bed(n).send(pod_port(p), &back)),
            At::Host(n) | At::Kernel(n) => {
                let v6 = !key.dst.is_v4();
                assert_ne!(key.dst, underlay(v6, n), "the kernel would answer itself: {key}");
                let pods = (1..=2).any(|m| (1..=PODS).any(|p| pod(v6, m, p) == key.dst));
                if pods || key.dst == gateway(v6) {
                    let mut back = back.clone();
                    back[..6].copy_from_slice(&[0xee; 6]);
                    back[6..12].copy_from_slice(&HOST_MAC.0);
                    assert!(self.bed(n).send(HOST, &back));
                } else if key.dst == underlay(v6, 3 - n) {
                    cross_link(self, 3 - n, &mut delivered);
                } else {
                    delivered.push((At::Outside, back.clone()));
                }
            }
            At::Outside => cross_link(self, 1, &mut delivered),
        }
        delivered.extend(self.settle());
        delivered
    }
}

/// The flow key of a frame, without a look at what a tunnel carries.
fn key_of(frame: &[u8]) -> FlowKey {
    let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
    assert_eq!(parse(frame, 0, &mut meta, &mut key), Parsed::Ip, "{frame:02x?}");
    key
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Client {
    Pod,
    Host,
    /// A process of node 2, by its kernel's own route.
    OtherNode,
    Outside,
}

/// Who is asked, by the address of a service.
#[derive(Clone, Copy, Debug)]
enum Process {
    Pod(u8, u8),
    Node(u8),
}

#[derive(Clone, Copy, Debug)]
enum By {
    /// Its own address.
    Itself,
    ClusterIp,
    /// Node 1's.
    NodePort,
}

fn opening(kind: u8, src: Ip, dst: Ip, dport: u16) -> Spec {
    match kind {
        0 => Spec::tcp(src, dst, 4000, dport, SYN),
        1 => Spec::udp(src, dst, 4000, dport).with_payload(*b"query"),
        _ => Spec::sctp(src, dst, 4000, dport),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 400 }, ..ProptestConfig::default() })]

    /// Whoever asks whomever by whatever address hears the answer as if that address had given it.
    #[test]
    fn every_answer_comes_back(
        v6: bool, encap: bool, kind in 0u8..3,
        client_is in prop_oneof![Just(Client::Pod), Just(Client::Host), Just(Client::OtherNode), Just(Client::Outside)],
        process in prop_oneof![
            (1u8..=2, 1u8..=PODS).prop_map(|(n, p)| Process::Pod(n, p)),
            (1u8..=2).prop_map(Process::Node),
        ],
        by in prop_oneof![Just(By::Itself), Just(By::ClusterIp), Just(By::NodePort)],
        local_only: bool,
    ) {
        let (addr, at_node) = match process {
            Process::Pod(n, p) => (pod(v6, n, p), n),
            Process::Node(n) => (underlay(v6, n), n),
        };
        let backend = Backend { addr, port: 8080 };
        let local = if at_node == 1 { vec![backend] } else { vec![] };
        let services = [
            service(vip(v6, 1), 80, vec![backend]),
            Service { local_only, local, ..node_port(v6, 30_080, vec![backend]) },
        ];
        let mut net = Net::new(encap, &services);
        let (dst, dport) = match by {
            By::Itself => (addr, 8080),
            By::ClusterIp => (vip(v6, 1), 80),
            By::NodePort => (underlay(v6, 1), 30_080),
        };
        // What never comes to the packet path, or is not for it.
        let outside = matches!(client_is, Client::Outside | Client::OtherNode);
        prop_assume!(!outside || matches!(by, By::NodePort));
        prop_assume!(!(local_only && at_node == 2 && outside));
        let own = matches!(process, Process::Node(1));
        prop_assume!(!(matches!((client_is, by), (Client::Host, By::Itself)) && matches!(process, Process::Node(_))));
        let src = match client_is {
            Client::Pod => pod(v6, 1, 1),
            Client::Host => underlay(v6, 1),
            Client::OtherNode => underlay(v6, 2),
            Client::Outside => client(v6, 7),
        };
        let open = opening(kind, src, dst, dport);
        let question = world::key(&open);
        let sent = match client_is {
            Client::Pod => net.bed(1).send(pod_port(1), &from_pod(1, 1, open)),
            Client::Host => net.bed(1).send(HOST, &from_host(open)),
            Client::OtherNode => {
                let mut frame = from_outside(1, open);
                frame[6..12].copy_from_slice(&mac(2, 0).0);
                net.bed(1).send(UPLINK, &frame)
            }
            Client::Outside => net.bed(1).send(UPLINK, &from_outside(1, open)),
        };
        prop_assert!(sent);
        let got = net.settle();
        let [(at, frame)] = got.as_slice() else { panic!("{question}: {got:?} {:?}", net.drops()) };
        let right = match process {
            Process::Pod(n, p) => *at == At::Pod(n, p),
            Process::Node(1) => *at == At::Host(1),
            // From a pod through the tunnel, from everybody else by the link.
            Process::Node(n) => matches!(at, At::Host(_) | At::Kernel(_)) && (*at == At::Host(n) || *at == At::Kernel(n)),
        };
        prop_assert!(right, "{question}: {at:?}");
        let arrived = seen(frame);
        prop_assert_eq!((arrived.dst, arrived.dport), (addr, 8080));
        if own && !matches!(client_is, Client::Pod) {
            prop_assert_eq!(arrived.src, gateway(v6));
        } else if matches!(client_is, Client::Pod) && addr != src {
            prop_assert_eq!(arrived.src, src, "inside the cluster the source is kept");
        }
        let got = net.reply(*at, frame);
        let [(at, frame)] = got.as_slice() else { panic!("answer to {question}: {got:?} {:?}", net.drops()) };
        let right = match client_is {
            Client::Pod => *at == At::Pod(1, 1),
            // Without a tunnel a pod answers the node as it was asked, and nothing is to be translated back.
            Client::Host if !encap && at_node == 2 && matches!(by, By::Itself) => *at == At::Kernel(1),
            Client::Host => *at == At::Host(1),
            Client::OtherNode => *at == At::Kernel(2),
            Client::Outside => *at == At::Outside,
        };
        prop_assert!(right, "answer to {question}: {at:?}");
        prop_assert_eq!(seen(frame), question.reversed());
        prop_assert_eq!(net.drops(), vec![BTreeMap::new(), BTreeMap::new()]);
    }
}

fn echo(src: Ip, dst: Ip, id: u16, reply: bool) -> Spec {
    let mut spec = Spec::echo(src, dst, id, 1);
    if let (Upper::Icmp(m), true) = (&mut spec.upper, reply) {
        m.kind = if src.is_v4() { icmp::v4::ECHO_REPLY } else { icmp::v6::ECHO_REPLY };
    }
    spec
}

#[test]
fn in_the_range_only_echo_replies_are_the_hosts() {
    for v6 in [false, true] {
        let mut net = Net::new(true, &[]);
        let (own, out) = (underlay(v6, 1), client(v6, 9));
        let pings = echo(out, own, 47_000, true);
        net.bed(1).send(UPLINK, &from_outside(1, pings.clone()));
        let got = net.settle();
        let [(At::Host(1), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        assert_eq!(seen(frame), world::key(&pings));
        // The kernel would refuse what a restart left without a flow.
        for lost in [
            Spec::tcp(out, own, 443, 47_000, tcp::control::ACK),
            Spec::tcp(out, own, 443, 47_001, SYN),
            Spec::udp(out, own, 53, 47_000),
            Spec::sctp(out, own, 53, 47_000),
        ] {
            net.bed(1).send(UPLINK, &from_outside(1, lost));
        }
        assert_eq!(net.settle(), []);
        assert_eq!(net.bed(1).drops(), [(DropReason::NatNoFlow, 4)].into());

        // Without a host port there is nobody to hand them to.
        let mut alone = world::bed(1);
        alone.send(UPLINK, &from_outside(1, pings));
        assert_eq!(alone.run(), []);
        assert_eq!(alone.drops(), [(DropReason::NatNoFlow, 1)].into());
    }
}

#[test]
fn errors_about_the_hosts_own_packets_are_the_hosts() {
    for v6 in [false, true] {
        let mut net = Net::new(true, &[]);
        let (own, out) = (underlay(v6, 1), client(v6, 9));
        let asked = from_outside(1, Spec::udp(own, out, 47_002, 9));
        let told = world::error_about(&asked, icmp::ErrorKind::PortUnreachable, out);
        net.bed(1).send(UPLINK, &world::to_uplink(1, told.clone()));
        let got = net.settle();
        let [(At::Host(1), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        assert_eq!(
            world::error(frame),
            (out, own, FlowKey { src: own, dst: out, sport: 47_002, dport: 9, proto: proto::UDP })
        );
        // Not by a tunnel, and not about somebody else's.
        let other = world::error_about(
            &from_outside(1, Spec::udp(pod(v6, 1, 1), out, 1, 9)),
            icmp::ErrorKind::PortUnreachable,
            out,
        );
        net.bed(1).send(UPLINK, &world::to_uplink(1, other));
        assert_eq!(net.settle(), []);
        assert_eq!(net.bed(1).drops(), [(DropReason::IcmpUnrelated, 1)].into());
        // Without a tunnel another node's pod asks the kernel past us; its refusal goes out by us all the same.
        let mut net = Net::new(false, &[]);
        let asked = from_host(Spec::udp(pod(v6, 2, 1), own, 4000, 9));
        let mut told = world::error_about(&asked, icmp::ErrorKind::PortUnreachable, own);
        told[..6].copy_from_slice(&[0xee; 6]);
        told[6..12].copy_from_slice(&HOST_MAC.0);
        net.bed(1).send(HOST, &told);
        let sent = net.bed(1).run();
        let [(UPLINK, frame)] = sent.as_slice() else { panic!("{sent:?} {:?}", net.drops()) };
        assert_eq!(world::error(frame).1, pod(v6, 2, 1));
    }
}

#[test]
fn nobody_outside_is_the_node_or_the_gateway() {
    for v6 in [false, true] {
        let backend = Backend { addr: underlay(v6, 1), port: 8080 };
        let mut net = Net::new(true, &[node_port(v6, 30_080, vec![backend])]);
        for src in [underlay(v6, 1), gateway(v6), pod(v6, 1, 1)] {
            net.bed(1).send(UPLINK, &from_outside(1, Spec::udp(src, underlay(v6, 1), 7, 30_080)));
        }
        // A pod's packet that the kernel forwards back to us.
        net.bed(1).send(HOST, &from_host(Spec::udp(pod(v6, 1, 1), pod(v6, 1, 2), 7, 8)));
        assert_eq!(net.settle(), []);
        assert_eq!(net.bed(1).drops(), [(DropReason::SourceIsLocal, 4)].into());
        // Another node speaks to pods through its tunnel, and by the link to nobody but services.
        net.bed(1).send(UPLINK, &from_outside(1, Spec::udp(underlay(v6, 2), pod(v6, 1, 1), 7, 8)));
        assert_eq!(net.settle(), []);
        assert_eq!(net.bed(1).drops()[&DropReason::SourceWrongWay], 1);
    }
}

#[test]
fn the_host_is_told_by_the_gateway() {
    for v6 in [false, true] {
        let mut net = Net::new(true, &[service(vip(v6, 1), 80, vec![])]);
        let own = underlay(v6, 1);
        let mut short = Spec::udp(own, pod(v6, 2, 1), 4000, 9);
        short.ttl = 1;
        net.bed(1).send(HOST, &from_host(short));
        let got = net.settle();
        let [(At::Host(1), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        let (from, to, _) = world::error(frame);
        assert_eq!((from, to), (gateway(v6), own));
        // Services refuse by their own address.
        let open = Spec::tcp(own, vip(v6, 1), 4000, 80, SYN);
        net.bed(1).send(HOST, &from_host(open.clone()));
        let got = net.settle();
        let [(At::Host(1), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        assert_eq!(seen(frame), world::key(&open).reversed());
        assert!(world::tcp_flags(frame) & tcp::control::RST != 0);
    }
}

/// What the host forwards for others, as for containers of another kind: by the node's address where other nodes do not
/// know the source, and back to it.
#[test]
fn sources_that_other_nodes_do_not_know() {
    let mut net = Net::new(true, &[]);
    let container = Ip::v4([172, 17, 0, 9]);
    for bed in &net.beds {
        let docker = Prefix::new("172.17.0.0".parse().unwrap(), 16).unwrap();
        bed.publish(|s| {
            s.routes.insert(docker, Route::Host);
        });
    }
    for (to, seen_as) in [(pod(false, 1, 2), container), (pod(false, 2, 1), underlay(false, 1))] {
        let open = Spec::udp(container, to, 4000, 53);
        net.bed(1).send(HOST, &from_host(open.clone()));
        let got = net.settle();
        let [(at @ At::Pod(..), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        assert_eq!(seen(frame).src, seen_as);
        let got = net.reply(*at, frame);
        let [(At::Host(1), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        assert_eq!(seen(frame), world::key(&open).reversed());
    }
    // A pod that talks to the container keeps its address: the kernel knows the way back to it.
    let open = Spec::udp(pod(false, 1, 1), container, 4000, 53);
    net.bed(1).send(pod_port(1), &from_pod(1, 1, open.clone()));
    let got = net.settle();
    let [(At::Host(1), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
    assert_eq!(seen(frame), world::key(&open));
}

/// The kernel gives one port to a connection of the host's to a pod and to one through a service. Neither ends the
/// other, also when a restart has forgotten the first.
#[test]
fn connections_through_services_have_ports_of_their_own() {
    for (v6, at_node, encap) in [(false, 1, true), (true, 1, true), (false, 2, true), (true, 2, false)] {
        let backend = Backend { addr: pod(v6, at_node, 2), port: 8080 };
        let services = [service(vip(v6, 1), 80, vec![backend]), node_port(v6, 30_080, vec![backend])];
        let host = underlay(v6, 1);
        for (dst, dport) in [(vip(v6, 1), 80), (host, 30_080)] {
            let mut net = Net::new(encap, &services);
            net.bed(1).send(HOST, &from_host(Spec::tcp(host, dst, 4000, dport, SYN)));
            let got = net.settle();
            let [(At::Pod(n, 2), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
            assert_eq!((*n, seen(frame).src), (at_node, host));
            assert!(RANGE.contains(&seen(frame).sport), "{}", seen(frame));
            // What a server may trust, and what the kernel forwards for others, stays.
            for (src, sport) in [(host, 700), (client(v6, 9), 4000)] {
                let mut net = Net::new(true, &services);
                net.bed(1).send(HOST, &from_host(Spec::tcp(src, dst, sport, dport, SYN)));
                let got = net.settle();
                let [(At::Pod(..), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
                if src == host || at_node == 1 {
                    assert_eq!((seen(frame).src, seen(frame).sport), (src, sport));
                }
            }
        }
    }
}

/// A host port: everybody's source is kept, and another node's process is answered by the link it came by.
#[test]
fn host_ports_keep_the_source() {
    for v6 in [false, true] {
        let backend = Backend { addr: pod(v6, 1, 2), port: 8080 };
        let port = Service {
            external: true,
            local_only: true,
            local: vec![backend],
            ..service(underlay(v6, 1), 8443, vec![backend])
        };
        let clients = [
            (UPLINK, client(v6, 7)),
            (UPLINK, underlay(v6, 2)),
            (HOST, underlay(v6, 1)),
            (pod_port(1), pod(v6, 1, 1)),
        ];
        for (by, src) in clients {
            let mut net = Net::new(true, std::slice::from_ref(&port));
            let open = Spec::tcp(src, underlay(v6, 1), 4000, 8443, SYN);
            let frame = match by {
                UPLINK => from_outside(1, open.clone()),
                HOST => from_host(open.clone()),
                _ => from_pod(1, 1, open.clone()),
            };
            net.bed(1).send(by, &frame);
            let got = net.settle();
            let [(at @ At::Pod(1, 2), frame)] = got.as_slice() else {
                panic!("{src}: {got:?} {:?}", net.drops())
            };
            assert_eq!((seen(frame).src, seen(frame).dport), (src, 8080));
            let got = net.reply(*at, frame);
            let [(_, frame)] = got.as_slice() else { panic!("{src}: {got:?} {:?}", net.drops()) };
            assert_eq!(seen(frame), world::key(&open).reversed());
        }
        // A pod of another node, whose node knows nothing of the port.
        let mut net = Net::new(true, &[]);
        set_services(net.bed(1), std::slice::from_ref(&port));
        let open = Spec::tcp(pod(v6, 2, 1), underlay(v6, 1), 4000, 8443, SYN);
        net.bed(2).send(pod_port(1), &from_pod(2, 1, open.clone()));
        let got = net.settle();
        let [(at @ At::Pod(1, 2), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        assert_eq!(seen(frame).src, pod(v6, 2, 1));
        let got = net.reply(*at, frame);
        let [(At::Pod(2, 1), frame)] = got.as_slice() else { panic!("{got:?} {:?}", net.drops()) };
        assert_eq!(seen(frame), world::key(&open).reversed());
    }
}
