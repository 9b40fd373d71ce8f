//! One measurement: a generator on core 0 in pod a, a sink at the end of the path.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fastpath_xdp::attach::ModeRequest;
use fastpath_xdp::generator::{Flows, Generator, Sink};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::topology::{GATEWAY_MAC, Path, Topology};

/// Traffic before counting starts: flows are installed, caches warm.
const WARM_UP: Duration = Duration::from_millis(200);
/// Flows, by source port.
const FLOWS: u16 = 64;

/// Rates in millions of packets a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Counted at the sink.
    pub(crate) delivered: f64,
    /// Given to pod a's device; what is over the forwarder's rate is lost there.
    pub(crate) sent: f64,
    /// Part of the time that the generator slept, 0 to 1: it neither ran nor waited for its core.
    pub(crate) asleep: f64,
}

/// Sends over `path` for `time` and counts.
pub(crate) fn measure(topology: &Topology, path: Path, time: Duration, batch: u32) -> Result<Run> {
    send(topology, path.destination(), topology.sink(path), time, batch)
}

/// The same to a sink where the forwarder would receive: what generator and sink do without a forwarder.
///
/// The sink's part runs on the generator's core, as receiving does for every contender.
pub(crate) fn ceiling(topology: &Topology, time: Duration, batch: u32) -> Result<Run> {
    let sink = topology.node.run(|| Ok(Sink::attach("fp-a", ModeRequest::Native)?))?;
    send(topology, Path::SameNode.destination(), &sink, time, batch)
}

fn send(topology: &Topology, to: [u8; 4], sink: &Sink, time: Duration, batch: u32) -> Result<Run> {
    let mac = parse_mac(&topology.pod_a.mac("eth0")?)?;
    let frame = frame(mac, to);
    topology.pod_a.run(|| {
        let mut cores = CpuSet::new();
        cores.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cores).context("pin the generator to core 0")?;
        let mut generator = Generator::new("eth0")?;
        generator.set_flows(Flows { flows: u32::from(FLOWS), ports: FLOWS });
        let start = Instant::now();
        while start.elapsed() < WARM_UP {
            generator.send(&frame, batch)?;
        }
        let (start, before, scheduled) = (Instant::now(), sink.count()?.frames, scheduled()?);
        let mut sent = 0u64;
        while start.elapsed() < time {
            generator.send(&frame, batch)?;
            sent += u64::from(batch);
        }
        let awake = self::scheduled()?.saturating_sub(scheduled).as_secs_f64();
        let (after, seconds) = (sink.count()?.frames, start.elapsed().as_secs_f64());
        let mega = |frames: u64| frames as f64 / seconds / 1e6;
        let asleep = (1.0 - awake / seconds).clamp(0.0, 1.0);
        Ok(Run { delivered: mega(after - before), sent: mega(sent), asleep })
    })
}

/// How long the calling thread ran or was ready to run (`/proc/thread-self/schedstat`: nanoseconds of each).
fn scheduled() -> Result<Duration> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).context(path)?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(ran)), Some(Ok(waited))) => Ok(Duration::from_nanos(ran + waited)),
        _ => bail!("{path} is not as expected: {text}"),
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    for (byte, part) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).with_context(|| text.to_owned())?;
    }
    Ok(mac)
}

/// A UDP datagram without checksum in 60 bytes, which are 64 on a wire.
fn frame(source: [u8; 6], destination: [u8; 4]) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 77, 1, 11, 0, 0, 0, 0];
    ip[16..].copy_from_slice(&destination);
    let sum: u32 = ip.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let [_, carry, high, low] = sum.to_be_bytes();
    let folded = u32::from(u16::from_be_bytes([high, low])) + u32::from(carry);
    let [.., high, low] = (folded % 0xffff).to_be_bytes();
    ip[10..12].copy_from_slice(&[!high, !low]);
    let mut frame = Vec::with_capacity(60);
    frame.extend_from_slice(&GATEWAY_MAC);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&ip);
    // Ports 1024 and 9000, length 26, no checksum.
    frame.extend_from_slice(&[0x04, 0x00, 0x23, 0x28, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_told_from_work() {
        let (start, before) = (Instant::now(), scheduled().unwrap());
        std::thread::sleep(Duration::from_millis(50));
        // However long it waited for a core afterwards: that counts as awake.
        let asleep = start.elapsed().saturating_sub(scheduled().unwrap() - before);
        assert!(asleep >= Duration::from_millis(40), "{asleep:?}");
        let before = scheduled().unwrap();
        while start.elapsed() < Duration::from_secs(20) && scheduled().unwrap() == before {}
        assert!(scheduled().unwrap() > before);
    }

    #[test]
    fn the_header_sums_to_zero() {
        for destination in [[10, 77, 1, 12], [255, 255, 255, 255], [0, 0, 0, 0]] {
            let frame = frame([2; 6], destination);
            let words = frame[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
            let sum: u32 = words.sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{destination:?}");
            assert_eq!(frame.len(), 60);
        }
    }
}
