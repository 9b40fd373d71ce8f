//! Request and response by UDP sockets between two pods, with and without other traffic; and what idling costs.
#![forbid(unsafe_code)]

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::topology::{CLIENT, SERVER, Topology};
use super::traffic::{pace, pin};

const PORT: u16 = 7000;
/// Longest wait for an answer: a lost packet, which other traffic causes.
const LOST: Duration = Duration::from_millis(200);

/// Most time that a measurement takes for the sake of enough round trips, in multiples of what was asked for.
const LONGEST: u32 = 4;

/// In which way questions are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// One after the other, both pods on core 0.
    Alone,
    /// The same beside other traffic.
    Loaded,
    /// A pause before each question, both pods on core 0: everybody sleeps meanwhile.
    Paused,
    /// One after the other, the pod that answers on core 1.
    Apart,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Alone, Self::Loaded, Self::Paused, Self::Apart];

    /// For reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Alone => "no other traffic",
            Self::Loaded => "half load",
            Self::Paused => "after a pause",
            Self::Apart => "pods on cores 0 and 1",
        }
    }

    /// Core of the pod that answers; the one that asks is on core 0.
    fn server_core(self) -> usize {
        usize::from(self == Self::Apart)
    }
}

/// How one measurement is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking {
    pub(crate) way: Way,
    /// At least so long, and at least so many round trips unless they take too long.
    pub(crate) time: Duration,
    pub(crate) trips: usize,
    /// Million packets a second that go between other pods, where the way has other traffic.
    pub(crate) load: f64,
    /// Before each question, where the way has pauses.
    pub(crate) pause: Duration,
}

/// Times of round trips, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trips {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Round trips a second.
    pub(crate) rate: f64,
    /// Questions that got no answer, of a million.
    pub(crate) lost: f64,
}

/// Asks, and has the other pod answer.
pub(crate) fn measure(topology: &Topology, asking: Asking) -> Result<Trips> {
    let stop = AtomicBool::new(false);
    let load = (asking.way == Way::Loaded).then_some(asking.load);
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| answer(topology, asking.way.server_core(), &stop));
        let traffic = load.map(|mega| {
            scope.spawn({
                let stop = &stop;
                move || pace(topology, mega, stop)
            })
        });
        let asked = ask(topology, asking);
        stop.store(true, Relaxed);
        answers.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        if let Some(traffic) = traffic {
            let real = traffic.join().map_err(|_| anyhow::anyhow!("the generator panicked"))??;
            let wanted = load.unwrap_or_default();
            if real < wanted * 0.9 {
                println!("  only {real:.3} of {wanted:.3} Mpps of other traffic could be sent");
            }
        }
        asked
    })
}

fn answer(topology: &Topology, core: usize, stop: &AtomicBool) -> Result<()> {
    topology.server.run(|| {
        pin(core)?;
        let socket = UdpSocket::bind((SERVER, PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut bytes = [0; 64];
        while !stop.load(Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                // As lost as one on the wire.
                let _ = socket.send_to(bytes.get(..len).unwrap_or_default(), from);
            }
        }
        Ok(())
    })
}

fn ask(topology: &Topology, asking: Asking) -> Result<Trips> {
    topology.client.run(|| {
        pin(0)?;
        let socket = UdpSocket::bind((CLIENT, 0))?;
        socket.connect((SERVER, PORT))?;
        socket.set_read_timeout(Some(LOST))?;
        let mut times: Vec<Duration> = Vec::with_capacity(1 << 20);
        let (mut number, mut lost) = (0u64, 0u64);
        let warm_up = Instant::now() + Duration::from_millis(200);
        let mut start: Option<Instant> = None;
        loop {
            if asking.way == Way::Paused {
                std::thread::sleep(asking.pause);
            }
            let sent = Instant::now();
            match start {
                None if sent >= warm_up => {
                    times.clear();
                    lost = 0;
                    start = Some(sent);
                }
                Some(start) => {
                    let ran = sent - start;
                    if ran >= asking.time && (times.len() >= asking.trips || ran >= asking.time * LONGEST) {
                        break;
                    }
                }
                None => {}
            }
            number += 1;
            // Not sent while its queue is full, and then not answered.
            let _ = socket.send(&number.to_ne_bytes());
            let mut bytes = [0; 8];
            loop {
                match socket.recv(&mut bytes) {
                    Ok(8) if u64::from_ne_bytes(bytes) == number => {
                        times.push(sent.elapsed());
                        break;
                    }
                    // An answer that was given up.
                    Ok(_) => {}
                    Err(_) => {
                        lost += 1;
                        break;
                    }
                }
            }
        }
        let took = start.map_or(asking.time, |start| start.elapsed()).as_secs_f64();
        ensure!(!times.is_empty(), "no question was answered");
        times.sort_unstable();
        let at = |part: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "a part of a count")]
            let place = (times.len() as f64 * part) as usize;
            times.get(place.min(times.len() - 1)).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6)
        };
        let count = times.len() as f64;
        let lost = lost as f64 / (count + lost as f64) * 1e6;
        Ok(Trips { p50: at(0.5), p99: at(0.99), p999: at(0.999), rate: count / took, lost })
    })
}

/// Part of a core, in per cent, that the workers of a daemon take in `time`.
pub(crate) fn idle(pid: u32, time: Duration) -> Result<f64> {
    let before = worker_time(pid)?;
    let start = Instant::now();
    std::thread::sleep(time);
    let took = worker_time(pid)?.saturating_sub(before);
    Ok(took.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}

/// Time that a daemon's workers have run.
pub(crate) fn worker_time(pid: u32) -> Result<Duration> {
    let mut total = None;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.starts_with("fp-worker") {
            let text = std::fs::read_to_string(task.join("schedstat"))?;
            let ran = text.split_whitespace().next().and_then(|n| n.parse().ok()).context("schedstat")?;
            *total.get_or_insert(Duration::ZERO) += Duration::from_nanos(ran);
        }
    }
    total.context("the daemon has no thread fp-worker-*")
}
