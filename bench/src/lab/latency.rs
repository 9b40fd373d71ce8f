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

/// Asks for `time`, one question after the other, while `load` million packets a second go between other pods.
pub(crate) fn measure(topology: &Topology, time: Duration, load: Option<f64>) -> Result<Trips> {
    measure_after(topology, time, load, Duration::ZERO)
}

/// The same with a pause before each question.
pub(crate) fn measure_after(
    topology: &Topology,
    time: Duration,
    load: Option<f64>,
    pause: Duration,
) -> Result<Trips> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| answer(topology, &stop));
        let traffic = load.map(|mega| {
            scope.spawn({
                let stop = &stop;
                move || pace(topology, mega, stop)
            })
        });
        let asked = ask(topology, time, pause);
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

fn answer(topology: &Topology, stop: &AtomicBool) -> Result<()> {
    topology.server.run(|| {
        pin(0)?;
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

fn ask(topology: &Topology, time: Duration, pause: Duration) -> Result<Trips> {
    topology.client.run(|| {
        pin(0)?;
        let socket = UdpSocket::bind((CLIENT, 0))?;
        socket.connect((SERVER, PORT))?;
        socket.set_read_timeout(Some(LOST))?;
        let mut times: Vec<Duration> = Vec::with_capacity(1 << 20);
        let (mut number, mut lost) = (0u64, 0u64);
        let warm_up = Instant::now() + Duration::from_millis(200);
        let mut end = None;
        loop {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            let sent = Instant::now();
            if end.is_none() && sent >= warm_up {
                times.clear();
                lost = 0;
                end = Some(sent + time);
            }
            if end.is_some_and(|end| sent >= end) {
                break;
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
        ensure!(!times.is_empty(), "no question was answered");
        times.sort_unstable();
        let at = |part: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "a part of a count")]
            let place = (times.len() as f64 * part) as usize;
            times.get(place.min(times.len() - 1)).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6)
        };
        let count = times.len() as f64;
        let lost = lost as f64 / (count + lost as f64) * 1e6;
        Ok(Trips { p50: at(0.5), p99: at(0.99), p999: at(0.999), rate: count / time.as_secs_f64(), lost })
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
