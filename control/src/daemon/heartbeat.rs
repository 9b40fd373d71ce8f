//! The heartbeat: a thread that renews it while every worker passes its loop.
//!
//! A thread of its own, because the control thread waits for the kernel now and then (closing a socket takes
//! an RCU grace period), and workers forward all the while.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use fastpath::engine::Pulse;

use super::{BEAT, WORKER_STALLED};

/// The running thread; ends when dropped.
#[derive(Debug)]
pub(super) struct Heartbeat {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts beating.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(mut heart: fastpath_xdp::Heartbeat, pulse: Pulse) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("fp-heartbeat".to_owned()).spawn(move || {
            while !stopping.load(Relaxed) {
                let alive = pulse.ages().iter().all(|age| *age < WORKER_STALLED);
                if alive && let Err(e) = heart.beat() {
                    tracing::warn!("heartbeat: {e}");
                }
                std::thread::sleep(BEAT);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed; there is nothing else to learn.
            let _ = thread.join();
        }
    }
}
