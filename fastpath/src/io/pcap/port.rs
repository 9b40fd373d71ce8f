//! A port that receives the packets of one pcap file and records what is sent to another.

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use super::{PcapError, Reader, Timestamp, Writer};
use crate::io::{Frame, Pool, Port, PortStats};

/// Frames kept ready for `rx`, which has no pool to take them from: one full batch.
const READY: usize = 256;

/// Replays a capture and records the answer; the clock is that of the last packet replayed.
///
/// A packet longer than a frame's room is skipped and counted in `kernel_rx_dropped`, as a socket would; one that
/// was cut at capture is replayed as far as it is there. A read or write error ends that side and is kept
/// for [`PcapPort::error`].
#[derive(Debug)]
pub struct PcapPort<R, W> {
    input: Option<Reader<R>>,
    output: Option<Writer<W>>,
    now: Timestamp,
    ready: Vec<Frame>,
    done: Vec<Frame>,
    error: Option<PcapError>,
    stats: PortStats,
}

impl<R: Read + Send, W: Write + Send> PcapPort<R, W> {
    /// Receives from `input` and records to `output`; without an output, what is sent is only counted.
    #[must_use]
    pub fn new(input: Option<Reader<R>>, output: Option<Writer<W>>) -> Self {
        Self {
            input,
            output,
            now: Timestamp::default(),
            ready: Vec::with_capacity(READY),
            done: Vec::with_capacity(READY),
            error: None,
            stats: PortStats::default(),
        }
    }

    /// Whether everything there was to replay has been received.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.input.is_none()
    }

    /// What ended the replay or the recording early, once.
    pub fn error(&mut self) -> Option<PcapError> {
        self.error.take()
    }

    /// Writes out what of the recording is still buffered.
    ///
    /// # Errors
    /// [`PcapError::Io`].
    pub fn flush(&mut self) -> Result<(), PcapError> {
        self.output.as_mut().map_or(Ok(()), Writer::flush)
    }

    /// Reads the next packet that fits into `frame`; `false` at the end.
    fn read(&mut self, frame: &mut Frame) -> bool {
        let Some(input) = self.input.as_mut() else {
            return false;
        };
        frame.reset();
        let room = u16::try_from(frame.tailroom()).unwrap_or(u16::MAX);
        loop {
            // Always fits: it is the room behind the first byte.
            let sized = frame.set_len(room);
            debug_assert!(sized);
            match input.next(frame.data_mut()) {
                Ok(Some(record)) => {
                    self.now = record.time;
                    match u16::try_from(record.captured) {
                        Ok(len) if len <= room => return frame.set_len(len),
                        _ => self.stats.kernel_rx_dropped += 1,
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.error.get_or_insert(error);
                    break;
                }
            }
        }
        self.input = None;
        frame.reset();
        false
    }
}

impl<R: Read + Send, W: Write + Send> Port for PcapPort<R, W> {
    fn rx(&mut self, out: &mut Vec<Frame>, max: usize) -> usize {
        let mut n = 0;
        while n < max && self.input.is_some() {
            let Some(mut frame) = self.ready.pop() else { break };
            if !self.read(&mut frame) {
                self.ready.push(frame);
                break;
            }
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += frame.len() as u64;
            out.push(frame);
            n += 1;
        }
        n
    }

    fn tx(&mut self, frames: &mut Vec<Frame>) -> usize {
        let n = frames.len().min(READY - self.done.len());
        for frame in frames.drain(..n) {
            if let Some(Err(error)) = self.output.as_mut().map(|w| w.write(self.now, frame.data())) {
                self.error.get_or_insert(error);
                self.output = None;
            }
            self.stats.tx_bytes += frame.len() as u64;
            self.done.push(frame);
        }
        self.stats.tx_kicks += u64::from(n > 0);
        self.stats.tx_packets += n as u64;
        self.stats.tx_ring_full += frames.len() as u64;
        n
    }

    fn refill(&mut self, pool: &mut Pool) -> bool {
        for frame in self.done.drain(..) {
            pool.put(frame);
        }
        let wanted = if self.input.is_some() { READY } else { 0 };
        while self.ready.len() < wanted {
            let Some(frame) = pool.get() else { break };
            self.ready.push(frame);
        }
        while self.ready.len() > wanted {
            let Some(frame) = self.ready.pop() else { break };
            pool.put(frame);
        }
        false
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn stats(&self) -> PortStats {
        self.stats
    }

    fn close(mut self: Box<Self>, pool: &mut Pool) -> usize {
        self.input = None;
        self.refill(pool);
        // Nobody is left to tell: who must know calls `flush` first.
        let _ = self.flush();
        0
    }
}
