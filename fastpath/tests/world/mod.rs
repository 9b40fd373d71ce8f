//! Nodes with services and an outside, and what the frames they send say.

pub mod cut;

use std::net::IpAddr;
use std::sync::Arc;

use fastpath::packet::{FlowKey, Ip, Mac, Meta, PortId, flags, proto};
use fastpath::snapshot::{NextHop, Route};
use fastpath::tables::service::{Backend, Frontend, Known, ServiceTable, Spread};
use fastpath::tables::{Lpm, Prefix};
use fastpath::testbed::{Bed, PODS, UPLINK, Underlay, mac, pod, pod_port, snapshot, underlay};
use fastpath::wire::checksum::pseudo_header;
use fastpath::wire::parse::{Parsed, parse};
use fastpath::wire::testgen::{Spec, Upper};
use fastpath::wire::{eth, icmp, sctp, vxlan};

/// MAC address of the router to the outside.
pub const ROUTER: Mac = Mac([2, 0, 0, 0, 9, 9]);

/// Node `this` of two joined by VXLAN, with a way to the outside.
pub fn bed(this: u8) -> Bed {
    let mut snap = snapshot(this, Underlay { encap: true, outer_v6: false });
    for v6 in [false, true] {
        let hop = u16::try_from(snap.next_hops.len()).unwrap();
        snap.next_hops.push(NextHop {
            addr: Some(client(v6, 254)),
            port: UPLINK,
            src_mac: mac(this, 0),
            dst_mac: Some(ROUTER),
        });
        let any: IpAddr = if v6 { "::".parse().unwrap() } else { "0.0.0.0".parse().unwrap() };
        snap.routes.insert(Prefix::new(any, 0).unwrap(), Route::NextHop(hop));
    }
    Bed::new(snap)
}

/// An address outside the cluster.
pub fn client(v6: bool, n: u8) -> Ip {
    if v6 {
        Ip::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, n])
    } else {
        Ip::v4([198, 51, 100, n])
    }
}

/// An address of a service.
pub fn vip(v6: bool, n: u8) -> Ip {
    if v6 { Ip::v6([0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]) } else { Ip::v4([10, 96, 0, n]) }
}

/// One frontend, to be made for every protocol with ports.
#[derive(Clone)]
pub struct Service {
    pub addr: Option<Ip>,
    pub v4: bool,
    pub port: u16,
    pub external: bool,
    pub local_only: bool,
    pub ranges: Vec<(IpAddr, u8)>,
    pub affinity_ms: u32,
    pub all: Vec<Backend>,
    pub local: Vec<Backend>,
    pub terminating: Vec<Backend>,
    pub unready: Vec<Backend>,
}

pub fn service(addr: Ip, port: u16, all: Vec<Backend>) -> Service {
    Service {
        addr: Some(addr),
        v4: addr.is_v4(),
        port,
        external: false,
        local_only: false,
        ranges: vec![],
        affinity_ms: 0,
        all,
        local: vec![],
        terminating: vec![],
        unready: vec![],
    }
}

pub fn node_port(v6: bool, port: u16, all: Vec<Backend>) -> Service {
    Service { addr: None, v4: !v6, external: true, ..service(vip(v6, 0), port, all) }
}

/// Publishes these services and no other.
pub fn set_services(bed: &Bed, services: &[Service]) {
    let mut table = ServiceTable::default();
    for (id, s) in (1u64..).zip(services) {
        let mut known: Vec<Known> = s.all.iter().map(|b| Known { backend: *b, serves: true }).collect();
        known.extend(s.terminating.iter().map(|b| Known { backend: *b, serves: true }));
        known.extend(s.unready.iter().map(|b| Known { backend: *b, serves: false }));
        known.sort_unstable();
        let mut ranges = Lpm::default();
        ranges.extend(s.ranges.iter().map(|(a, l)| (Prefix::new(*a, *l).unwrap(), ())));
        let frontend = Arc::new(Frontend {
            id,
            external: s.external,
            local_only: s.local_only,
            source_ranges: (!s.ranges.is_empty()).then(|| Arc::new(ranges)),
            affinity_ms: s.affinity_ms,
            all: Spread::new(s.all.clone()).map(Arc::new),
            local: Spread::new(s.local.clone()).map(Arc::new),
            known: known.into(),
        });
        for p in [proto::TCP, proto::UDP, proto::SCTP] {
            match s.addr {
                Some(addr) => drop(table.frontends.insert((addr, p, s.port), frontend.clone())),
                None => drop(table.node_ports.insert((s.v4, p, s.port), frontend.clone())),
            }
        }
        table.addresses.extend(s.addr.filter(|_| !s.external));
    }
    table.nodes.extend([(false, 1), (false, 2), (true, 1), (true, 2)].map(|(v6, n)| underlay(v6, n)));
    bed.publish(|s| s.services = Arc::new(table));
}

/// A frame as the router sends it to the node.
pub fn from_outside(node: u8, mut spec: Spec) -> Vec<u8> {
    spec.src_mac = ROUTER;
    spec.dst_mac = mac(node, 0);
    spec.build()
}

/// A packet as node `from` sends it to node `to` through the tunnel.
pub fn through_tunnel(from: u8, to: u8, mut inner: Spec) -> Vec<u8> {
    let vtep = |node| Mac([2, 0xfb, 0, 0, 0, node]);
    (inner.src_mac, inner.dst_mac) = (vtep(from), vtep(to));
    let mut payload = vec![0; vxlan::HEADER_LEN];
    vxlan::Repr { vni: 4096 }.emit(&mut payload);
    payload.extend(inner.build());
    let mut outer = Spec::udp(underlay(false, from), underlay(false, to), 50_000, 4789).with_payload(payload);
    (outer.src_mac, outer.dst_mac) = (mac(from, 0), mac(to, 0));
    outer.build()
}

/// The same frame from the router to the node.
pub fn to_uplink(node: u8, mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac(node, 0).0);
    frame[6..12].copy_from_slice(&ROUTER.0);
    frame
}

/// The flow key of a packet to be built.
pub fn key(spec: &Spec) -> FlowKey {
    seen(&spec.build())
}

fn parsed(frame: &[u8]) -> (Meta, FlowKey) {
    let (mut meta, mut key) = (Meta::default(), FlowKey::EMPTY);
    assert_eq!(parse(frame, 0, &mut meta, &mut key), Parsed::Ip, "{frame:02x?}");
    (meta, key)
}

/// The flow key of a frame, after its checksums were verified.
pub fn seen(frame: &[u8]) -> FlowKey {
    let (meta, key) = parsed(frame);
    assert!(!meta.has(flags::ICMP_ERROR), "an ICMP error: {frame:02x?}");
    verify(frame, &meta, key.src, key.dst);
    key
}

fn verify(frame: &[u8], meta: &Meta, src: Ip, dst: Ip) {
    let upper = &frame[usize::from(meta.l4)..usize::from(meta.l3 + meta.l3_len)];
    let pseudo = pseudo_header(src, dst, meta.proto, u32::try_from(upper.len()).unwrap());
    let right = match meta.proto {
        proto::SCTP => sctp::Packet::new_unchecked(upper).verify_checksum(),
        proto::ICMP => icmp::Packet::new_unchecked(upper).verify_checksum_v4(),
        proto::TCP | proto::UDP | proto::ICMPV6 => pseudo.bytes(upper).verifies(),
        _ => true,
    };
    assert!(right, "transport checksum: {frame:02x?}");
}

pub fn tcp_flags(frame: &[u8]) -> u8 {
    parsed(frame).0.tcp_flags
}

pub fn icmp_kind(frame: &[u8]) -> (u8, u8) {
    let (meta, _) = parsed(frame);
    (meta.icmp_type, meta.icmp_code)
}

/// What the receiver of a frame answers, sent back the way it came.
pub fn answer(frame: &[u8]) -> Vec<u8> {
    let (meta, key) = parsed(frame);
    let back = key.reversed();
    let mut spec = match meta.proto {
        proto::TCP => Spec::tcp(back.src, back.dst, back.sport, back.dport, 0x12),
        proto::UDP => Spec::udp(back.src, back.dst, back.sport, back.dport).with_payload(*b"answer"),
        proto::SCTP => Spec::sctp(back.src, back.dst, back.sport, back.dport),
        _ => {
            let mut echo = Spec::echo(back.src, back.dst, back.sport, 1);
            if let Upper::Icmp(m) = &mut echo.upper {
                m.kind = if back.src.is_v4() { icmp::v4::ECHO_REPLY } else { icmp::v6::ECHO_REPLY };
            }
            echo
        }
    };
    spec.dst_mac = Mac(*frame[6..].first_chunk().unwrap());
    spec.src_mac = Mac(*frame.first_chunk().unwrap());
    spec.build()
}

/// The UDP answer to a flow that looks like `translated` to the one who answers on node 1.
pub fn reply_frame(translated: &FlowKey) -> Vec<u8> {
    let back = translated.reversed();
    let spec = Spec::udp(back.src, back.dst, back.sport, back.dport);
    for v6 in [false, true] {
        for n in 1..=PODS {
            if pod(v6, 1, n) == back.src {
                return fastpath::testbed::from_pod(1, n, spec);
            }
        }
    }
    from_outside(1, spec)
}

/// The port of node 1 that an address is behind.
pub fn port_of(addr: Ip) -> PortId {
    let pods = (1..=PODS).find(|n| [false, true].iter().any(|v6| pod(*v6, 1, *n) == addr));
    pods.map_or(UPLINK, pod_port)
}

/// The ICMP error that `from` sends about a frame it received, to where the frame came from.
pub fn error_about(frame: &[u8], kind: icmp::ErrorKind, from: Ip) -> Vec<u8> {
    let mut message = vec![0; 1280];
    let len = icmp::build_error(&frame[14..], kind, from, &mut message).unwrap();
    let ethertype = if from.is_v4() { eth::ethertype::IPV4 } else { eth::ethertype::IPV6 };
    let mut out = [&frame[6..12], &frame[..6]].concat();
    out.extend(ethertype.to_be_bytes());
    out.extend(&message[..len]);
    out
}

/// Source, destination and quoted key of an ICMP error, after its checksum was verified.
pub fn error(frame: &[u8]) -> (Ip, Ip, FlowKey) {
    let (meta, key) = parsed(frame);
    assert!(meta.has(flags::ICMP_ERROR), "no ICMP error: {frame:02x?}");
    let ip = &frame[usize::from(meta.l3)..];
    let (src, dst) = if meta.has(flags::V6) {
        (Ip::v6(*ip[8..].first_chunk().unwrap()), Ip::v6(*ip[24..].first_chunk().unwrap()))
    } else {
        (Ip::v4(*ip[12..].first_chunk().unwrap()), Ip::v4(*ip[16..].first_chunk().unwrap()))
    };
    verify(frame, &meta, src, dst);
    (src, dst, key.reversed())
}

/// Carries frames between two nodes until all is quiet; returns what they sent to the router.
pub fn cross(a: &mut Bed, b: &mut Bed) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let mut crossed = false;
        for node in [1u8, 2] {
            let sent = if node == 1 { a.run() } else { b.run() };
            for (port, frame) in sent {
                assert_eq!(port, UPLINK);
                if frame[..6] == ROUTER.0 {
                    out.push(frame);
                } else {
                    crossed |= if node == 1 { b.send(UPLINK, &frame) } else { a.send(UPLINK, &frame) };
                }
            }
        }
        if !crossed {
            return out;
        }
    }
}
