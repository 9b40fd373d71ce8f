//! Services and source translation over memory ports: what each end sees, and that every reply finds its way back.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says so by panicking")]

mod errors;
mod property;
mod services;
mod sources;
#[path = "../world/mod.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared by test programs, each of which uses a part")]
mod world;

use fastpath::packet::Ip;
use fastpath::wire::tcp;
use fastpath::wire::testgen::Spec;

const SYN: u8 = tcp::control::SYN;
const ACK: u8 = tcp::control::ACK;

/// A first packet of each protocol with ports.
fn openings(src: Ip, dst: Ip, sport: u16, dport: u16) -> Vec<Spec> {
    vec![
        Spec::tcp(src, dst, sport, dport, SYN),
        Spec::udp(src, dst, sport, dport).with_payload(*b"query"),
        Spec::sctp(src, dst, sport, dport),
    ]
}
