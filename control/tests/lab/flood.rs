//! A SYN flood: what is established does not notice it, and when it is over all is as before.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use serde_json::{Value, json};

use crate::harness::lab::Lab;
use crate::harness::object::Condition::{Ready, Terminating};
use crate::harness::spec::{Family, LabSpec, NodeSpec, UPLINK};
use crate::service::{self, TARGET, serve, serve_ready};
use crate::traffic::capture::Injector;
use crate::traffic::frame::Mac;
use crate::traffic::named::{self, Conversation, Server};
use crate::traffic::{PATIENCE, eventually, tcp};

/// Sources of a flood, each of which sends one SYN: a million of IPv4, fewer of IPv6 to save time.
fn sources(family: Family) -> u32 {
    if family == Family::V4 { 1_000_000 } else { 250_000 }
}

/// SYNs a second at most: so many that they are most of what a node receives, not so many that the kernel's
/// queues before it lose the established packets among them.
const RATE: f64 = 25_000.0;
/// SYNs sent at once.
const BURST: u32 = 32;
/// How often the established streams are looked at.
const WINDOW: Duration = Duration::from_secs(3);

/// Sends one SYN of each of `sources` addresses to `to`, unless told to stop.
fn flood(
    injector: &Injector,
    macs: (Mac, Mac),
    (sources, to): (u32, SocketAddr),
    sent: &AtomicU64,
    stop: &AtomicBool,
) {
    let mut frame = Vec::with_capacity(128);
    let start = Instant::now();
    for n in 0..sources {
        if n % BURST == 0 {
            let due = start + Duration::from_secs_f64(f64::from(n) / RATE);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Addresses and ports that have nothing in common; the number makes each address its own.
        let mixed = n.wrapping_mul(0x9e37_79b1);
        let sport = 1024 + u16::try_from(mixed >> 17).expect("15 bits");
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

/// A flood of `to` from outside through node a; meanwhile `established` moves all the time.
fn survives(lab: &Lab, sources: u32, to: SocketAddr, established: &[(String, tcp::Stream)]) {
    let injector = Injector::open(&lab.outside, UPLINK).unwrap();
    let macs = (lab.outside.mac(UPLINK), lab.node("a").ns.mac(UPLINK));
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| flood(&injector, macs, (sources, to), &sent, &stop));
        while !sender.is_finished() {
            let before: Vec<u64> = established.iter().map(|(_, s)| s.delivered()).collect();
            let end = Instant::now() + WINDOW;
            while Instant::now() < end && !sender.is_finished() {
                std::thread::sleep(Duration::from_millis(20));
            }
            for ((what, stream), before) in established.iter().zip(before) {
                let moved = stream.delivered() - before;
                eprintln!("{what}: {moved} bytes, {} SYNs sent", sent.load(Ordering::Relaxed));
                if Instant::now() >= end && moved < 50_000 {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{what}: {moved} bytes in {WINDOW:?} of the flood");
                }
            }
        }
    });
    let sent = sent.into_inner();
    eprintln!("{sent} SYNs in {:?}", start.elapsed());
    assert!(sent > u64::from(sources) * 9 / 10, "only {sent} were sent");
}

/// A lab with `web` on node ports, its flow table much smaller than the flood.
fn lab() -> Lab {
    let nodes = vec![NodeSpec::fastpath("a", 3), NodeSpec::fastpath("b", 2)];
    // Rings that hold what comes while a busy machine lets the worker wait.
    let tables = "[flow]\nentries_v4 = 65536\nentries_v6 = 16384\n[memory]\nframes_per_worker = 65536\nrx_ring = 8192\n";
    let more_config = format!("{tables}{}", service::CONFIG);
    Lab::start(LabSpec { nodes, more_config, ..LabSpec::default() })
}

/// Floods the node port of node a, served by `backends`. Established meanwhile: a stream from outside to each
/// of them, one beside it within the node, one through the tunnel, and a conversation.
fn flooded(lab: &Lab, family: Family, backends: &[&str], more: &Value) {
    let spec = service::external::spec(more);
    let to = service::external::node_port(lab, "a", family);
    let stream = |from: &str, to: &str| {
        let (a, b, ip) = lab.between(from, to, family);
        tcp::Stream::start(a, b, ip).unwrap()
    };
    let mut established =
        vec![("inside".to_owned(), stream("a1", "a3")), ("across".to_owned(), stream("b1", "a1"))];
    for pod in backends {
        // The choice of a backend is chance; one that terminates keeps its connections.
        let only: Vec<_> =
            backends.iter().map(|b| (*b, if b == pod { Ready } else { Terminating })).collect();
        serve(lab, &only, &spec);
        let server = tcp::listen_on(&lab.pod(pod).ns, (lab.pod(pod).ip(family), TARGET).into()).unwrap();
        let stream = tcp::Stream::start_by(&lab.outside, &server, to).unwrap();
        established.push((format!("node port, {pod}"), stream));
    }
    serve_ready(lab, backends, &spec);
    let _servers: Vec<_> =
        backends.iter().map(|pod| Server::start(&lab.pod(pod).ns, pod, TARGET).unwrap()).collect();
    let mut long = Conversation::open(&lab.outside, to).unwrap();
    let first = long.ask().unwrap();

    survives(lab, sources(family), to, &established);
    assert_eq!(long.ask().unwrap(), first, "a conversation from before");
    for (what, stream) in established {
        stream.must_progress(&what, PATIENCE);
        stream.stop().unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    eventually("new connections are taken again", PATIENCE * 6, || named::ask_tcp(&lab.outside, to).ok());
    assert!(lab.node("a").cli().status().ready() && lab.node("b").cli().status().ready());
}

/// Each SYN would take a flow and a port of the node: the ports run out.
#[test]
fn of_translated_connections() {
    let lab = lab();
    for family in Family::BOTH {
        flooded(&lab, family, &["a2", "b2"], &json!({}));
    }
    assert!(lab.node("a").cli().drop_count("snat_exhausted") > 0, "the flood was more than the ports");
}

/// Each SYN takes a flow and nothing else: the table runs full, and what is half open gives way.
#[test]
fn of_a_small_flow_table() {
    let lab = lab();
    for family in Family::BOTH {
        flooded(&lab, family, &["a2"], &json!({"externalTrafficPolicy": "Local"}));
        // IPv4's come first, so that they alone are counted then.
        let flows = lab.node("a").cli().flow_count();
        eprintln!("{family:?}: {flows} flows");
        assert!(flows > 32_768, "the flood filled half of the table and more: {flows}");
    }
}
