//! A SYN flood: what is established does not notice it, and when it is over all is as before.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use serde_json::json;

use crate::harness::lab::Lab;
use crate::harness::spec::{Family, LabSpec, NodeSpec, UPLINK};
use crate::service::{self, TARGET, serve_ready};
use crate::traffic::capture::Injector;
use crate::traffic::frame::Mac;
use crate::traffic::named::{self, Conversation, Server};
use crate::traffic::{PATIENCE, tcp};

/// Sources of a flood; each sends one SYN.
const SOURCES: u32 = 1_000_000;

/// Sends one SYN of each of [`SOURCES`] addresses to `to`, as fast as it can, unless told to stop.
fn flood(injector: &Injector, macs: (Mac, Mac), to: SocketAddr, sent: &AtomicU64, stop: &AtomicBool) {
    let mut frame = Vec::with_capacity(128);
    for n in 0..SOURCES {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Addresses and ports that have nothing in common; the number makes each address its own.
        let mixed = n.wrapping_mul(0x9e37_79b1);
        let sport =
            1024 + (mixed >> 17).to_le_bytes()[0..2].iter().fold(0_u16, |p, b| p << 7 ^ u16::from(*b));
        let ether = PacketBuilder::ethernet2(macs.0, macs.1);
        let builder = match to.ip() {
            IpAddr::V4(to) => ether.ipv4((0x6440_0000 | n).to_be_bytes(), to.octets(), 60),
            IpAddr::V6(to) => {
                let mut from = [0x20, 1, 0x0d, 0xb8, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                from[8..12].copy_from_slice(&mixed.to_be_bytes());
                from[12..].copy_from_slice(&n.to_be_bytes());
                ether.ipv6(from, to.octets(), 60)
            }
        };
        frame.clear();
        builder.tcp(sport, to.port(), mixed, 64_240).syn().write(&mut frame, &[]).expect("writing to memory");
        // A full queue of the device is the flood's own loss.
        if injector.send(&frame).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A million SYNs to `to`, sent from outside through node a; meanwhile `established` moves, every second.
fn survives(lab: &Lab, to: SocketAddr, established: &[(&str, tcp::Stream)]) {
    let injector = Injector::open(&lab.outside, UPLINK).unwrap();
    let macs = (lab.outside.mac(UPLINK), lab.node("a").ns.mac(UPLINK));
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| flood(&injector, macs, to, &sent, &stop));
        while !sender.is_finished() {
            let before: Vec<u64> = established.iter().map(|(_, s)| s.delivered()).collect();
            let second = Instant::now() + Duration::from_secs(1);
            while Instant::now() < second && !sender.is_finished() {
                std::thread::sleep(Duration::from_millis(20));
            }
            for ((what, stream), before) in established.iter().zip(before) {
                let moved = stream.delivered() - before;
                eprintln!("{what}: {moved} bytes, {} SYNs sent", sent.load(Ordering::Relaxed));
                if Instant::now() >= second && moved < 50_000 {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{what}: {moved} bytes in a second of the flood");
                }
            }
        }
    });
    let sent = sent.into_inner();
    eprintln!("{sent} SYNs in {:?}", start.elapsed());
    assert!(sent > u64::from(SOURCES) * 9 / 10, "only {sent} were sent");
}

/// A table much smaller than the flood.
const SMALL: &str = "[flow]\nentries_v4 = 65536\nentries_v6 = 16384\n";

/// To a node port, which translates: each SYN would take a flow and a port.
#[test]
fn of_a_node_port() {
    let nodes = vec![NodeSpec::fastpath("a", 3), NodeSpec::fastpath("b", 2)];
    let more_config = format!("{SMALL}{}", service::CONFIG);
    let lab = Lab::start(LabSpec { nodes, more_config, ..LabSpec::default() });
    serve_ready(&lab, &["a2", "b2"], &service::external::spec(&json!({})));
    for family in Family::BOTH {
        let to = service::external::node_port(&lab, "a", family);
        // Through the node port itself, beside it within the node, and beside it through the tunnel.
        let (a, b, ip) = lab.between("a1", "a3", family);
        let inside = tcp::Stream::start(a, b, ip).unwrap();
        let (a, b, ip) = lab.between("b1", "a1", family);
        let across = tcp::Stream::start(a, b, ip).unwrap();
        let through = ["a2", "b2"].map(|pod| {
            serve_ready(&lab, &[pod], &service::external::spec(&json!({})));
            let server = tcp::listen_on(&lab.pod(pod).ns, (lab.pod(pod).ip(family), TARGET).into()).unwrap();
            tcp::Stream::start_by(&lab.outside, &server, to).unwrap()
        });
        serve_ready(&lab, &["a2", "b2"], &service::external::spec(&json!({})));
        let _named = ["a2", "b2"].map(|pod| Server::start(&lab.pod(pod).ns, pod, TARGET).unwrap());
        let mut long = Conversation::open(&lab.outside, to).unwrap();
        let first = long.ask().unwrap();

        let [near, far] = through;
        let established =
            [("inside", inside), ("across", across), ("node port", near), ("node port, other node", far)];
        survives(&lab, to, &established);
        assert_eq!(long.ask().unwrap(), first, "a conversation from before");
        for (what, stream) in established {
            stream.must_progress(what, PATIENCE);
            stream.stop().unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        crate::traffic::eventually("new connections are taken again", PATIENCE * 6, || {
            named::ask_tcp(&lab.outside, to).ok()
        });
        assert!(lab.node("a").cli().status().ready() && lab.node("b").cli().status().ready());
    }
}
