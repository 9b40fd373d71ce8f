//! A policy of many rules, replaced again and again while a generator forwards at a rate below the worker's limit: how long
//! each version takes to be in force, and whether a packet is lost.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fastpath_xdp::attach::ModeRequest;
use fastpath_xdp::generator::{Flows, Generator, Sink};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::rows::{Row, percentile};
use super::{Daemon, Options};
use crate::lab::netns::NetNs;

/// Devices of the two pods: here and in the pods' namespace.
pub(super) const DEVICES: [(&str, &str); 2] = [("fwd1", "from"), ("fwd2", "to")];
const ADDRESSES: [[u8; 4]; 2] = [[10, 1, 200, 1], [10, 1, 200, 2]];
/// Frames sent at a time, and the pause after them: some 50,000 a second.
const BURST: u32 = 64;
const PAUSE: Duration = Duration::from_millis(1);
const PORT: u16 = 9000;
/// Longer than a change takes.
const QUIET: Duration = Duration::from_millis(150);
/// What pods send to.
const GATEWAY: [u8; 6] = [0xee; 6];

/// What of the rules is another in each version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changed {
    /// Every rule's port.
    Ports,
    /// Every rule's port and peer.
    All,
}

/// The two pods between which is forwarded.
pub(super) fn pods() -> String {
    let one = |n: usize| {
        let ([a, b, c, d], device) = (ADDRESSES[n], DEVICES[n].0);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {device}, namespace: fwd, labels: {{app: {device}}}, annotations: \
             {{fastpath.io/interface: {device}}}}}\nspec: {{nodeName: node-1, containers: [{{name: c}}]}}\nstatus: {{phase: \
             Running, podIP: {a}.{b}.{c}.{d}}}\n"
        )
    };
    format!("{}---\n{}", one(0), one(1))
}

/// A version of the policy of the receiving pod: every rule for another address, and one that lets the sender in.
pub(super) fn policy(rules: u32, version: u32, all: bool) -> String {
    let [a, b, c, d] = ADDRESSES[0];
    let mut text = format!(
        "{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{{\"name\":\"swapped\",\
         \"namespace\":\"fwd\"}},\"spec\":{{\"podSelector\":{{\"matchLabels\":{{\"app\":\"fwd2\"}}}},\"ingress\":[{{\"from\":\
         [{{\"ipBlock\":{{\"cidr\":\"{a}.{b}.{c}.{d}/32\"}}}}],\"ports\":[{{\"protocol\":\"UDP\",\"port\":{PORT}}}]}}"
    );
    for n in 1..rules {
        let peer = if all { n + version * rules } else { n };
        let [_, x, y, z] = peer.to_be_bytes();
        let port = 1 + (n + version) % 60_000;
        let _ = write!(
            text,
            ",{{\"from\":[{{\"ipBlock\":{{\"cidr\":\"100.{x}.{y}.{z}/32\"}}}}],\"ports\":[{{\"port\":{port}}}]}}"
        );
    }
    text + "]}}\n"
}

/// Replaces the policy `options.swaps` times in each of two ways while packets flow.
pub(super) fn run(options: &Options, daemon: &Daemon, pods: &NetNs, manifests: &Path) -> Result<Vec<Row>> {
    let sink = pods.run(|| Ok(Sink::attach(DEVICES[1].1, ModeRequest::Native)?))?;
    let mac = super::parse_mac(&pods.mac(DEVICES[0].1)?)?;
    let frame = frame(mac);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut rows = Vec::new();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| pods.run(|| send(&frame, &stop, &sent)));
        let measured = measure(options, daemon, manifests, &mut rows);
        stop.store(true, Relaxed);
        let joined = sending.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?;
        measured.and(joined)
    })?;
    // What is under way arrives.
    std::thread::sleep(Duration::from_millis(300));
    let (sent, delivered) = (sent.load(Relaxed), sink.count()?.frames);
    ensure!(sent > 0, "nothing was sent");
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let lost = sent.saturating_sub(delivered) as f64;
    println!("sent {sent}, delivered {delivered}; dropped by name: {}", daemon.drops()?);
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let runs = vec![sent as f64, delivered as f64];
    rows.push(Row::of("packets lost while policies were swapped", "packets", lost, runs).at_most(6, 0.0));
    Ok(rows)
}

fn measure(options: &Options, daemon: &Daemon, manifests: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let mut version = 0;
    for changed in [Changed::Ports, Changed::All] {
        let mut runs = Vec::new();
        for _ in 0..options.swaps {
            version += 1;
            let text = policy(options.rules, version, changed == Changed::All);
            let took = daemon.applied(QUIET, || daemon.replace(&manifests.join("swapped.json"), &text))?;
            runs.push(took);
        }
        let what = if changed == Changed::Ports { "every port" } else { "every port and peer" };
        let name = format!("{} rules swapped, {what} another", options.rules);
        rows.push(Row::of(format!("{name}: p50"), "ms", percentile(&runs, 50), Vec::new()));
        rows.push(Row::of(format!("{name}: p99"), "ms", percentile(&runs, 99), runs).at_most(6, 5.0));
    }
    Ok(())
}

fn send(frame: &[u8], stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("pin the generator to core 0")?;
    let mut generator = Generator::new(DEVICES[0].1)?;
    generator.set_flows(Flows { flows: 64, ports: 64, ..Flows::default() });
    while !stop.load(Relaxed) {
        let start = Instant::now();
        generator.send(frame, BURST)?;
        sent.fetch_add(u64::from(BURST), Relaxed);
        std::thread::sleep(PAUSE.saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// A UDP datagram without checksum in 60 bytes.
fn frame(source: [u8; 6]) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&ADDRESSES[0]);
    ip[16..].copy_from_slice(&ADDRESSES[1]);
    let sum: u32 = ip.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (folded % 0xffff).to_be_bytes();
    ip[10..12].copy_from_slice(&[!high, !low]);
    let mut frame = Vec::with_capacity(60);
    frame.extend_from_slice(&GATEWAY);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&1024u16.to_be_bytes());
    frame.extend_from_slice(&PORT.to_be_bytes());
    frame.extend_from_slice(&[0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}
