//! A policy of many rules, replaced again and again while a generator forwards at a rate below the worker's limit: how long
//! each version takes to be in force, and whether a packet is lost.
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fastpath_xdp::attach::ModeRequest;
use fastpath_xdp::generator::{Flows, Generator, Sink};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

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
/// Passes with and without swaps of each kind, in turn.
const ROUNDS: u32 = 2;
/// What is under way has arrived by then.
const UNDER_WAY: Duration = Duration::from_millis(300);
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

impl Changed {
    fn name(self) -> &'static str {
        match self {
            Changed::Ports => "every port",
            Changed::All => "every port and peer",
        }
    }
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

/// Replaces the policy `options.swaps` times in each of two ways while packets flow, and in turn lets as many packets flow
/// while nothing is replaced: what this machine loses anyhow.
pub(super) fn run(options: &Options, daemon: &Daemon, pods: &NetNs, manifests: &Path) -> Result<Vec<Row>> {
    let sink = pods.run(|| Ok(Sink::attach(DEVICES[1].1, ModeRequest::Native)?))?;
    let mac = super::parse_mac(&pods.mac(DEVICES[0].1)?)?;
    let load = Load { daemon, pods, sink, frame: frame(mac) };
    let mut swaps = Swaps { options, daemon, file: manifests.join("swapped.json"), version: 0 };
    let (mut took, mut losses) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        for (changed, took) in [Changed::Ports, Changed::All].into_iter().zip(&mut took) {
            for swapped in [false, true] {
                let passed = load.pass(|| {
                    // The first rounds make up for what the division leaves.
                    for _ in (round..options.swaps).step_by(ROUNDS as usize) {
                        match swapped {
                            true => took.push(swaps.swap(changed)?),
                            false => swaps.rest()?,
                        }
                    }
                    Ok(())
                })?;
                let what = if swapped { changed.name() } else { "nothing swapped" };
                println!("{what}: {passed}");
                losses[usize::from(swapped)].push(passed);
            }
        }
    }
    let mut rows = Vec::new();
    for (changed, took) in [Changed::Ports, Changed::All].into_iter().zip(took) {
        let name = format!("{} rules swapped, {} another", options.rules, changed.name());
        rows.push(Row::of(format!("{name}: p50"), "ms", percentile(&took, 50), Vec::new()));
        rows.push(Row::of(format!("{name}: p99"), "ms", percentile(&took, 99), took).at_most(6, 5.0));
    }
    println!("dropped by name: {}", daemon.drops()?);
    let [quiet, swapped] = losses.map(|passed| per_million(&passed));
    rows.push(
        Row::of("packets lost of a million while policies were swapped", "packets", swapped.0, swapped.1)
            .at_most(6, 0.0),
    );
    rows.push(Row::of("the same in turn while none was", "packets", quiet.0, quiet.1));
    Ok(rows)
}

/// Packets lost of a million sent, in all and pass by pass.
fn per_million(passes: &[Passed]) -> (f64, Vec<f64>) {
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let of = |lost: u64, sent: u64| lost as f64 * 1e6 / (sent.max(1)) as f64;
    let sum = |f: fn(&Passed) -> u64| passes.iter().map(f).sum::<u64>();
    (of(sum(Passed::lost), sum(|p| p.sent)), passes.iter().map(|p| of(p.lost(), p.sent)).collect())
}

/// The policy that is replaced.
struct Swaps<'a> {
    options: &'a Options,
    daemon: &'a Daemon,
    file: PathBuf,
    version: u32,
}

impl Swaps<'_> {
    /// Puts the next version into force; milliseconds.
    fn swap(&mut self, changed: Changed) -> Result<f64> {
        self.version += 1;
        let text = policy(self.options.rules, self.version, changed == Changed::All);
        self.daemon.applied(QUIET, || self.daemon.replace(&self.file, &text))
    }

    /// Lasts as long and asks as much.
    fn rest(&self) -> Result<()> {
        std::thread::sleep(QUIET);
        for _ in 0..2 {
            self.daemon.wait(|s| s.acked >= s.generation)?;
        }
        Ok(())
    }
}

/// What is forwarded meanwhile.
struct Load<'a> {
    daemon: &'a Daemon,
    pods: &'a NetNs,
    sink: Sink,
    frame: Vec<u8>,
}

/// What became of the packets of one pass.
#[derive(Clone, Copy, Debug)]
struct Passed {
    sent: u64,
    delivered: u64,
    /// What the daemon's two ports say: received, sent, and dropped by the kernel at the first one's socket.
    received: u64,
    transmitted: u64,
    no_room: u64,
}

impl Passed {
    fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.delivered)
    }
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent {}, received by the daemon {} (no room at its socket {}), transmitted {}, delivered {}",
            self.sent, self.received, self.no_room, self.transmitted, self.delivered
        )
    }
}

impl Load<'_> {
    /// Sends during `during`, and waits for what is under way to arrive.
    fn pass(&self, during: impl FnOnce() -> Result<()>) -> Result<Passed> {
        let before = self.now(0)?;
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| self.pods.run(|| send(&self.frame, &stop, &sent)));
            let done = during();
            stop.store(true, Relaxed);
            let joined = sending.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?;
            done.and(joined)
        })?;
        std::thread::sleep(UNDER_WAY);
        let sent = sent.load(Relaxed);
        ensure!(sent > 0, "nothing was sent");
        let after = self.now(sent)?;
        Ok(Passed {
            sent,
            delivered: after.delivered - before.delivered,
            received: after.received - before.received,
            transmitted: after.transmitted - before.transmitted,
            no_room: after.no_room - before.no_room,
        })
    }

    /// The counters as they are.
    fn now(&self, sent: u64) -> Result<Passed> {
        let [from, to] = DEVICES.map(|(port, _)| self.daemon.port(port));
        let (from, to) = (from?, to?);
        let of = |port: &Value, key: &str| port.get(key).and_then(Value::as_u64).unwrap_or(0);
        Ok(Passed {
            sent,
            delivered: self.sink.count()?.frames,
            received: of(&from, "rx_packets"),
            transmitted: of(&to, "tx_packets"),
            no_room: of(&from, "kernel_rx_dropped") + of(&from, "kernel_rx_ring_full"),
        })
    }
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
