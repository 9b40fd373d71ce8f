//! The whole graph over memory ports: two nodes, what each pod receives, what is dropped and how it is named.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

mod delivery;
mod icmp_errors;
mod lifetimes;
mod neighbours;

use std::time::Duration;

use fastpath::graph::DropReason;
use fastpath::packet::{Ip, Mac, PortId};
use fastpath::snapshot::GATEWAY_MAC;
use fastpath::testbed::{Bed, PODS, Underlay, snapshot};
use fastpath::wire::testgen::{Spec, Upper, mutated};
use fastpath::wire::{icmp, ipv4, tcp};
use proptest::prelude::*;

const VXLAN4: Underlay = Underlay { encap: true, outer_v6: false };
const VXLAN6: Underlay = Underlay { encap: true, outer_v6: true };
const NATIVE: Underlay = Underlay { encap: false, outer_v6: false };

fn nodes(underlay: Underlay) -> (Bed, Bed) {
    (Bed::new(snapshot(1, underlay)), Bed::new(snapshot(2, underlay)))
}

/// Flows in the table, each of two entries.
fn flows(bed: &Bed) -> usize {
    bed.worker.flows().len() / 2
}

/// The protocols of a conversation between two pods: (name, packet there, packet back).
fn conversations(a: Ip, b: Ip) -> Vec<(&'static str, Spec, Spec)> {
    let (syn, syn_ack) = (tcp::control::SYN, tcp::control::SYN | tcp::control::ACK);
    let reply = |mut s: Spec| {
        if let Upper::Icmp(m) = &mut s.upper {
            m.kind = if a.is_v4() { icmp::v4::ECHO_REPLY } else { icmp::v6::ECHO_REPLY };
        }
        s
    };
    vec![
        ("udp", Spec::udp(a, b, 4000, 53), Spec::udp(b, a, 53, 4000)),
        ("tcp", Spec::tcp(a, b, 4001, 80, syn), Spec::tcp(b, a, 80, 4001, syn_ack)),
        ("sctp", Spec::sctp(a, b, 4002, 3868), Spec::sctp(b, a, 3868, 4002)),
        ("echo", Spec::echo(a, b, 77, 1), reply(Spec::echo(b, a, 77, 1))),
    ]
}

/// What a pod must receive of `sent`: the same IP packet with its TTL counted down `hops` times, from the gateway.
fn delivered(sent: &Spec, to: Mac, hops: u8) -> Vec<u8> {
    let mut want = sent.clone();
    want.ttl -= hops;
    want.src_mac = GATEWAY_MAC;
    want.dst_mac = to;
    want.build()
}

/// The IP packet without Ethernet padding.
fn ip(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

/// The ICMP error in `frame`: source, destination, type, code.
fn error(frame: &[u8]) -> (Ip, Ip, u8, u8) {
    let p = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let at = |range: std::ops::Range<usize>| frame[range].to_vec();
    match p.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(_) => {
            let (src, dst) = (at(26..30).try_into().unwrap(), at(30..34).try_into().unwrap());
            (Ip::v4(src), Ip::v4(dst), frame[34], frame[35])
        }
        _ => {
            let (src, dst) = (at(22..38).try_into().unwrap(), at(38..54).try_into().unwrap());
            (Ip::v6(src), Ip::v6(dst), frame[54], frame[55])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes in by whatever port: nothing panics, no frame is lost, and each is sent or dropped by name.
    #[test]
    fn every_frame_is_accounted_for(frames in prop::collection::vec((0u16..=u16::from(PODS), mutated()), 1..64)) {
        let mut bed = Bed::new(snapshot(1, VXLAN4));
        let free = bed.free_frames();
        let mut sent = 0u64;
        for (port, frame) in &frames {
            sent += u64::from(bed.send(PortId(*port), frame));
        }
        let mut got = bed.run();
        // Fragments are held until it is clear that their first one does not come.
        bed.advance(Duration::from_secs(2));
        got.extend(bed.run());
        for (_, frame) in &got {
            prop_assert!(frame.len() >= 14);
            if frame[12..14] == [8, 0] {
                prop_assert!(ipv4::Packet::new_checked(&frame[14..]).is_ok());
            }
        }
        let dropped: u64 = bed.drops().values().sum();
        let errors = bed.worker.stats().unwrap().icmp_errors.get();
        let limited = bed.drops().get(&DropReason::IcmpRateLimited).copied().unwrap_or(0);
        // A dropped packet that was answered left as its answer.
        prop_assert_eq!(sent, got.len() as u64 + dropped - errors - limited);
        prop_assert_eq!(bed.free_frames(), free);
    }
}
