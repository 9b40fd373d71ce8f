//! One measurement: a generator on core 0 in pod a, a sink at the end of the path.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fastpath_xdp::attach::ModeRequest;
use fastpath_xdp::generator::{Flows, Generator, Sink};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::frame::{self, Udp};
use super::manifests::{BACKEND_PORT, SERVICE_PORT};
use super::topology::{POD_MTU, REMOTE, SENDER, SERVICE, Topology, pod_address};

/// Traffic before counting starts: flows are installed, caches warm.
const WARM_UP: Duration = Duration::from_millis(200);
/// Flows, by source port, unless the workload says otherwise.
const FLOWS: u32 = 64;
/// Source ports of many flows to many pods.
const PORTS: u16 = 4096;

/// What is sent, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// Frames of so many bytes to a pod of the node.
    Pods(u16),
    /// Frames of 60, 590 and 1464 bytes (the MTU), 7 : 4 : 1, to a pod of the node.
    Imix,
    /// 60 bytes of one flow that has been answered.
    Known,
    /// 60 bytes to the cluster address of a service whose backend is a pod of the node.
    Service,
    /// Datagrams of 18 bytes by a socket (`send`), to a pod of the node.
    Sockets,
    /// 60 bytes to a pod of another node.
    Vxlan,
    /// 60 bytes to so many pods of the node, each packet to the next.
    Spread(u16),
    /// 60 bytes of so many flows to all pods of the node.
    Flows(u32),
}

impl Workload {
    /// The one that most is compared by.
    pub(crate) const SMALL: Self = Self::Pods(60);

    /// For reports.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Pods(size) => format!("pod to pod on one node, {size} B"),
            Self::Imix => "pod to pod on one node, IMIX".to_owned(),
            Self::Known => "pod to pod on one node, 60 B, one answered flow".to_owned(),
            Self::Service => "pod to a service on one node, 1,000 services, 60 B".to_owned(),
            Self::Sockets => "pod to pod on one node, from a socket, 60 B".to_owned(),
            Self::Vxlan => "pod to uplink in VXLAN, 60 B inside".to_owned(),
            Self::Spread(pods) => format!("pod to {pods} pods in turn, 60 B"),
            Self::Flows(flows) => format!("pod to all pods, {flows} flows, 60 B"),
        }
    }

    fn destination(self) -> Ipv4Addr {
        match self {
            Self::Vxlan => REMOTE,
            Self::Service => SERVICE,
            _ => pod_address(0),
        }
    }

    fn flows(self, topology: &Topology) -> Flows {
        match self {
            Self::Known => Flows::default(),
            Self::Spread(pods) => Flows { flows: u32::from(pods), ports: 1, to_many: true },
            Self::Flows(flows) => {
                let ports = u16::try_from(flows.div_ceil(u32::from(topology.pods))).unwrap_or(PORTS).max(1);
                Flows { flows, ports, to_many: true }
            }
            _ => Flows { flows: FLOWS, ports: u16::try_from(FLOWS).unwrap_or(1), to_many: false },
        }
    }

    /// Frames of a round, with how many of each.
    fn frames(self, batch: u32) -> Vec<(Vec<u8>, u32)> {
        let port = if self == Self::Service { SERVICE_PORT } else { BACKEND_PORT };
        let of = |size| frame::udp(&Udp { from: SENDER, to: self.destination(), ports: (1024, port), size });
        match self {
            Self::Pods(size) => vec![(of(usize::from(size)), batch)],
            Self::Imix => {
                [(60, 7), (590, 4), (POD_MTU + 14, 1)].map(|(size, share)| (of(size), share * 64)).into()
            }
            _ => vec![(of(60), batch)],
        }
    }
}

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

/// Sends for `time` and counts.
pub(crate) fn measure(topology: &Topology, workload: Workload, time: Duration, batch: u32) -> Result<Run> {
    let sink = if workload == Workload::Vxlan { &topology.wire_sink } else { &topology.pod_sink };
    if workload == Workload::Known {
        answer(topology)?;
    }
    if workload == Workload::Sockets {
        return from_socket(topology, sink, time);
    }
    send(topology, workload, sink, time, batch)
}

/// The same to a sink where the forwarder would receive: what generator and sink do without a forwarder.
///
/// The sink's part runs on the generator's core, as receiving does for every contender.
pub(crate) fn ceiling(topology: &Topology, time: Duration, batch: u32) -> Result<Run> {
    let sink = topology.node.run(|| Ok(Sink::attach("fp-a", ModeRequest::Native)?))?;
    send(topology, Workload::SMALL, &sink, time, batch)
}

fn send(topology: &Topology, workload: Workload, sink: &Sink, time: Duration, batch: u32) -> Result<Run> {
    let frames = workload.frames(batch);
    let flows = workload.flows(topology);
    topology.sender.run(|| {
        pin(0)?;
        let mut generator = Generator::new("eth0")?;
        generator.set_flows(flows);
        let mut round = || -> Result<u64> {
            let mut sent = 0;
            for (frame, count) in &frames {
                generator.send(frame, *count)?;
                sent += u64::from(*count);
            }
            Ok(sent)
        };
        let warm_up = WARM_UP + Duration::from_micros(3 * u64::from(flows.flows));
        count(sink, warm_up, time, &mut round)
    })
}

/// Repeats `round` for the time of warming up, then for `time`, and counts.
fn count(
    sink: &Sink,
    warm_up: Duration,
    time: Duration,
    round: &mut dyn FnMut() -> Result<u64>,
) -> Result<Run> {
    let start = Instant::now();
    while start.elapsed() < warm_up {
        round()?;
    }
    let (start, before, scheduled) = (Instant::now(), sink.count()?.frames, scheduled()?);
    let mut sent = 0u64;
    while start.elapsed() < time {
        sent += round()?;
    }
    let awake = self::scheduled()?.saturating_sub(scheduled).as_secs_f64();
    let (after, seconds) = (sink.count()?.frames, start.elapsed().as_secs_f64());
    let mega = |frames: u64| frames as f64 / seconds / 1e6;
    let asleep = (1.0 - awake / seconds).clamp(0.0, 1.0);
    Ok(Run { delivered: mega(after - before), sent: mega(sent), asleep })
}

/// The same by the system calls that applications make.
fn from_socket(topology: &Topology, sink: &Sink, time: Duration) -> Result<Run> {
    topology.sender.run(|| {
        pin(0)?;
        let socket = UdpSocket::bind((SENDER, 0))?;
        socket.connect((pod_address(0), BACKEND_PORT))?;
        count(sink, WARM_UP, time, &mut || {
            for _ in 0..64 {
                // Refused while the device's queue is full: not sent then, and not counted at the sink.
                let _ = socket.send(&[0; 18]);
            }
            Ok(64)
        })
    })
}

/// Has the flow of [`Workload::Known`] been seen in both directions by whoever forwards.
fn answer(topology: &Topology) -> Result<()> {
    let (there, back) = ((1024, BACKEND_PORT), (BACKEND_PORT, 1024));
    let question = frame::udp(&Udp { from: SENDER, to: pod_address(0), ports: there, size: 60 });
    let answer = frame::udp(&Udp { from: pod_address(0), to: SENDER, ports: back, size: 60 });
    topology.sender.run(|| Ok(Generator::new("eth0")?.send(&question, 64)?))?;
    std::thread::sleep(Duration::from_millis(20));
    topology.sinks().run(|| Ok(Generator::new("e0")?.send(&answer, 64)?))?;
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}

/// Sends `mega` million packets of 60 bytes a second to the first pod until `stop`; how many it really was.
pub(crate) fn pace(topology: &Topology, mega: f64, stop: &std::sync::atomic::AtomicBool) -> Result<f64> {
    const BURST: u32 = 64;
    let frames = Workload::SMALL.frames(BURST);
    topology.sender.run(|| {
        pin(0)?;
        let mut generator = Generator::new("eth0")?;
        generator.set_flows(Workload::SMALL.flows(topology));
        let start = Instant::now();
        let mut sent = 0u64;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let due = start.elapsed().as_secs_f64() * mega * 1e6;
            // Behind by more than some bursts: the core was taken, and what was missed is not made up for.
            if (sent as f64) < due {
                for (frame, count) in &frames {
                    generator.send(frame, *count)?;
                    sent += u64::from(*count);
                }
            } else {
                std::thread::sleep(Duration::from_secs_f64(f64::from(BURST) / 1e6 / mega));
            }
        }
        Ok(sent as f64 / start.elapsed().as_secs_f64() / 1e6)
    })
}

/// Sends bursts of `size` packets of 60 bytes to the first pod, one every `every`; which part was lost, in per cent.
pub(crate) fn bursts(topology: &Topology, time: Duration, size: u32, every: Duration) -> Result<f64> {
    let frames = Workload::SMALL.frames(size);
    topology.sender.run(|| {
        pin(0)?;
        let mut generator = Generator::new("eth0")?;
        generator.set_flows(Workload::SMALL.flows(topology));
        let mut burst = || -> Result<()> {
            for (frame, count) in &frames {
                generator.send(frame, *count)?;
            }
            std::thread::sleep(every);
            Ok(())
        };
        burst()?;
        let (start, before, mut sent) = (Instant::now(), topology.pod_sink.count()?.frames, 0u64);
        while start.elapsed() < time {
            burst()?;
            sent += u64::from(size);
        }
        std::thread::sleep(Duration::from_millis(50));
        let arrived = topology.pod_sink.count()?.frames - before;
        Ok((1.0 - arrived as f64 / sent as f64) * 100.0)
    })
}

/// Pins the calling thread to a core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores).with_context(|| format!("pin a thread to core {core}"))
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
}
