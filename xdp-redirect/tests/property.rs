//! The uplink program against a plain model of the pinhole, on random and mutated frames, under random
//! pinholes. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use fastpath_xdp::pinhole::Protocol;
use fastpath_xdp::{Endpoint, OnFailure, Pinhole, Prefix, SnatPorts, Tunnel};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use lab::frames::{self, ICMP, ICMPV6, SCTP, TCP, UDP};
use lab::model::Model;
use lab::{Bench, verdict};

const V4: [&str; 4] = ["192.0.2.1", "192.0.2.2", "203.0.113.9", "10.1.0.7"];
const V6: [&str; 4] = ["2001:db8::1", "2001:db8::2", "fd00:1::7", "::ffff:192.0.2.1"];
/// Few, so that frames and pinholes meet; with their byte-swapped and neighbouring values.
const PORTS: [u16; 6] = [4789, 0xb512, 80, 0x5000, 40000, 40001];

fn addr(v6: bool) -> BoxedStrategy<IpAddr> {
    let pool = if v6 { V6 } else { V4 };
    select(pool.to_vec()).prop_map(|text| text.parse().unwrap()).boxed()
}

fn either() -> impl Strategy<Value = IpAddr> {
    any::<bool>().prop_flat_map(addr).prop_filter("refused by the loader", |addr| match addr {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none(),
        IpAddr::V4(_) => true,
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![9 => select(&PORTS[..]), 1 => any::<u16>()]
}

fn pinhole() -> impl Strategy<Value = Pinhole> {
    let prefix = (either(), 0u8..=128).prop_map(|(addr, len)| {
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        // Long prefixes mostly, or every frame is a pod's.
        Prefix::new(addr, bits - len % 24).unwrap()
    });
    let endpoints = || {
        let protocols = vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let some = (either(), subsequence(protocols, 1..=3), port()).prop_map(|(addr, protos, port)| {
            protos.into_iter().map(move |proto| Endpoint { addr, proto, port })
        });
        proptest::collection::vec(some, 0..6).prop_map(|all| all.into_iter().flatten().collect())
    };
    let range = (port(), port()).prop_map(|(a, b)| SnatPorts { lo: a.min(b), hi: a.max(b) });
    (
        proptest::collection::btree_set(prefix, 0..3),
        proptest::collection::btree_set(
            (either(), port()).prop_map(|(addr, port)| Tunnel { addr, port }),
            0..3,
        ),
        endpoints(),
        endpoints(),
        proptest::collection::btree_map(either(), range, 0..3),
        proptest::collection::btree_set(either(), 0..3),
    )
        .prop_map(|(local, tunnels, frontends, node_ports, snat, node)| Pinhole {
            local,
            node,
            tunnels,
            frontends,
            node_ports,
            snat,
        })
}

/// A transport header or an ICMP message; ICMP errors quote a packet when `depth` allows.
fn upper(v6: bool, dst: IpAddr, depth: u32) -> BoxedStrategy<(u8, Vec<u8>)> {
    let icmp_number = if v6 { ICMPV6 } else { ICMP };
    let ports = (prop_oneof![Just(TCP), Just(UDP), Just(SCTP), Just(47)], port(), port())
        .prop_map(|(proto, sport, dport)| (proto, frames::transport(proto, sport, dport)));
    let echo = (select(&[0u8, 8, 128, 129, 13][..]), port())
        .prop_map(move |(kind, id)| (icmp_number, frames::icmp(kind, id, b"ping")));
    if depth == 0 {
        return prop_oneof![3 => ports, 1 => echo].boxed();
    }
    let error = (
        select(&[1u8, 2, 3, 4, 5, 11, 12][..]),
        ip(v6, Some(dst), depth - 1),
        any::<proptest::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(move |(kind, quoted, cut, whole)| {
            let length = if whole { quoted.len() } else { cut.index(quoted.len() + 1) };
            (icmp_number, frames::icmp(kind, 0, &quoted[..length]))
        });
    prop_oneof![4 => ports, 2 => echo, 4 => error].boxed()
}

/// An IP packet, mostly from `src` when one is given: a quoted packet's source is where the error goes.
fn ip(v6: bool, src: Option<IpAddr>, depth: u32) -> BoxedStrategy<Vec<u8>> {
    let src = match src {
        Some(src) => prop_oneof![6 => Just(src), 1 => addr(v6)].boxed(),
        None => addr(v6),
    };
    let ends = (src, addr(v6)).prop_flat_map(move |(src, dst)| (Just(src), Just(dst), upper(v6, dst, depth)));
    if v6 {
        let kinds =
            proptest::collection::vec((select(&[0u8, 43, 44, 51, 60][..]), 0u8..3, any::<bool>()), 0..10);
        let kinds = prop_oneof![2 => Just(Vec::new()), 1 => kinds];
        (ends, kinds)
            .prop_map(|((src, dst, (mut next, mut payload)), kinds)| {
                for (kind, extra, odd) in kinds {
                    payload = match kind {
                        44 => frames::fragment(next, u16::from(extra == 2), odd, &payload),
                        _ => frames::extension(kind, next, extra, &payload),
                    };
                    next = kind;
                }
                frames::ipv6(src, dst, next, &payload)
            })
            .boxed()
    } else {
        let fragment =
            prop_oneof![4 => Just(0u16), 1 => select(&[0x4000u16, 0x2000, 0x2001, 1, 0x1000, 0x1fff][..])];
        (ends, 0usize..11, any::<bool>(), fragment)
            .prop_map(|((src, dst, (proto, payload)), words, options, fragment)| {
                let options = vec![1; if options { words * 4 } else { 0 }];
                frames::ipv4(src, dst, proto, &options, fragment, &payload)
            })
            .boxed()
    }
}

/// What may happen to a frame.
#[derive(Clone, Debug)]
enum Mutation {
    Nothing,
    Cut(proptest::sample::Index),
    Pad(u8),
    Set(proptest::sample::Index, u8),
    Tag(bool, u16),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => Just(Mutation::Nothing),
        2 => any::<proptest::sample::Index>().prop_map(Mutation::Cut),
        2 => (1u8..60).prop_map(Mutation::Pad),
        5 => (any::<proptest::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => (any::<bool>(), prop_oneof![Just(0), Just(0xe000), any::<u16>()])
            .prop_map(|(ad, vlan)| Mutation::Tag(ad, vlan)),
    ]
}

fn mutated(mut frame: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        match mutation {
            Mutation::Nothing => {}
            Mutation::Cut(at) => frame.truncate(at.index(frame.len()).max(14)),
            Mutation::Pad(count) => frame.extend(std::iter::repeat_n(0xaa, usize::from(*count))),
            Mutation::Set(at, byte) => {
                let at = at.index(frame.len());
                frame[at] = *byte;
            }
            Mutation::Tag(ad, vlan) => {
                frame = frames::tagged(&frame, if *ad { 0x88a8 } else { 0x8100 }, *vlan);
            }
        }
    }
    frame
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let packet = prop_oneof![ip(false, None, 1), ip(true, None, 1)];
    (packet, proptest::collection::vec(mutation(), 0..3))
        .prop_map(|(packet, mutations)| mutated(frames::ip_frame(&packet), &mutations))
}

/// Fragments between two addresses, mostly of one datagram, mostly the first one first.
fn datagram() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let ends = any::<bool>().prop_flat_map(|v6| (addr(v6), addr(v6), Just(v6)));
    ends.prop_flat_map(|(src, dst, v6)| {
        // Whose bytes differ in one place, and are the others' swapped.
        let id = prop_oneof![6 => Just(7u32), 1 => select(&[0x0700u32, 0x0001_0007, 0x0700_0000][..])];
        let offset = prop_oneof![2 => Just(0u16), 3 => select(&[1u16, 2, 0x1000, 0x1fff][..])];
        let mutations = prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(mutation(), 1)];
        let other = prop_oneof![4 => Just(None), 1 => upper(v6, dst, 1).prop_map(Some)];
        let piece = (id, offset, any::<bool>(), other, mutations);
        let lost = prop_oneof![4 => Just(false), 1 => Just(true)];
        let all = (upper(v6, dst, 1), proptest::collection::vec(piece, 1..5), lost);
        all.prop_map(move |(first, pieces, lost)| {
            let mut all = vec![frames::piece((src, dst), first.0, 7, 0, true, &first.1)];
            all.extend(pieces.into_iter().map(|(id, offset, more, other, mutations)| {
                let (proto, payload) = other.as_ref().unwrap_or(&first);
                mutated(frames::piece((src, dst), *proto, id, offset, more, payload), &mutations)
            }));
            if lost {
                all.remove(0);
            }
            all
        })
    })
}

#[test]
fn the_program_is_the_model() {
    let bench = RefCell::new(Bench::new(OnFailure::Pass));
    let seen = RefCell::new(BTreeMap::<String, u32>::new());
    let config = ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() };
    let some = prop_oneof![frame().prop_map(|frame| vec![frame]), datagram()];
    proptest!(config, |(pinhole in pinhole(), frames in proptest::collection::vec(some, 12))| {
        let mut bench = bench.borrow_mut();
        let mut seen = seen.borrow_mut();
        bench.redirect.set_pinhole(&pinhole).unwrap();
        bench.forget_fragments();
        let mut model = Model::new(&pinhole);
        for frame in frames.iter().flatten() {
            let expected = model.classify(frame);
            prop_assert_eq!(bench.uplink(frame), verdict(expected), "{:02x?} of {:02x?}", frame, frames);
            let (Ok(name) | Err(name)) = expected;
            *seen.entry(name.to_owned()).or_default() += 1;
        }
        for (hole, count) in model.followed {
            *seen.entry(format!("followed {hole}")).or_default() += count;
        }
        *seen.entry("forgotten".to_owned()).or_default() += model.forgotten;
    });
    // The generators reach every outcome, or the comparison would mean little.
    let seen = seen.into_inner();
    for name in [
        "pinhole_vxlan",
        "pinhole_pod",
        "pinhole_frontend",
        "pinhole_node_port",
        "pinhole_snat",
        "pinhole_icmp_error",
        "followed pinhole_vxlan",
        "followed pinhole_frontend",
        "followed pinhole_node_port",
        "followed pinhole_snat",
        "followed pinhole_icmp_error",
        "forgotten",
        "passed_not_ours",
        "passed_vlan",
        "dropped_vlan0",
        "malformed",
    ] {
        assert!(seen.get(name).copied().unwrap_or(0) >= 5, "{name} was hardly met: {seen:?}");
    }
    println!("{seen:?}");
}

#[test]
fn random_bytes_are_the_model_too() {
    let bench = RefCell::new(Bench::new(OnFailure::Pass));
    let mut everything = Pinhole::default();
    everything.local.insert(Prefix::new("128.0.0.0".parse().unwrap(), 1).unwrap());
    everything.local.insert(Prefix::new("8000::".parse().unwrap(), 1).unwrap());
    bench.borrow_mut().redirect.set_pinhole(&everything).unwrap();
    let ethertype = select(&[0x0800u16, 0x86dd, 0x8100, 0x0806][..]);
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ethertype in ethertype, version in any::<bool>(), mut bytes in proptest::collection::vec(any::<u8>(), 0..200))| {
        if version && let Some(first) = bytes.first_mut() {
            *first = if ethertype == 0x0800 { 0x45 } else { 0x60 };
        }
        let frame = frames::ethernet(ethertype, &bytes);
        bench.borrow_mut().forget_fragments();
        let expected = verdict(Model::new(&everything).classify(&frame));
        prop_assert_eq!(bench.borrow_mut().uplink(&frame), expected, "{:02x?}", frame);
    });
}
