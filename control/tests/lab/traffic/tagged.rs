//! Frames of a VLAN, tagged in the frame as on a wire.
//!
//! No VLAN device is needed for them, so they flow also where the kernel was built without 802.1Q.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::PATIENCE;
use super::capture::{Capture, Injector};
use super::frame::{self, Addresses};
use crate::harness::ns::NetNs;

/// What every payload ends with.
const MARK: &[u8] = b"a frame of another VLAN";

/// UDP in a VLAN from one device to another, a frame every few milliseconds, until dropped.
#[derive(Debug)]
pub(crate) struct Flow {
    capture: Capture,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<io::Result<()>>>,
}

impl Flow {
    /// Starts sending by `device` of `from`; whatever the kernel of `to` receives by `device` counts.
    pub(crate) fn start(
        (from, to): (&NetNs, &NetNs),
        device: &str,
        vlan: u16,
        addresses: Addresses,
    ) -> io::Result<Self> {
        let capture =
            Capture::start_matching(to, device, |seen| !seen.outgoing && seen.bytes.ends_with(MARK))?;
        let injector = Injector::open(from, device)?;
        let frame = frame::tagged(&frame::udp(addresses, (707, 707), MARK), vlan);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let sender = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                injector.send(&frame)?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        Ok(Flow { capture, stop, sender: Some(sender) })
    }

    /// Panics unless `count` more frames arrive within [`PATIENCE`].
    pub(crate) fn must_progress(&self, what: &str, count: u64) {
        let before = self.capture.count();
        super::eventually(&format!("{what}: tagged frames arrive"), PATIENCE, || {
            (self.capture.count() >= before + count).then_some(())
        });
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            drop(sender.join());
        }
    }
}
