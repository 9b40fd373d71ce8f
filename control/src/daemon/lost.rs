//! What pods' ends of veths did not take: the kernel counts it, by device, and nobody else can.
//!
//! A veth's receiver has a ring of 256 packets. What comes while it is full is gone after the worker has sent it: a
//! socket is told nothing of it, and a redirected frame is lost after the program that redirected it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use crate::netdev::stats::TxDropped;

/// Losses of the devices that are ports, and of those that were.
#[derive(Debug, Default)]
pub(super) struct Lost {
    kernel: Option<TxDropped>,
    /// Devices that are ports now.
    wanted: BTreeSet<u32>,
    /// Those whose counters have been read.
    ports: BTreeMap<u32, Seen>,
    /// Of devices that are ports no more.
    gone: u64,
}

/// The kernel's counter when the device became a port, and when it was read last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: u64,
    last: u64,
}

impl Seen {
    fn lost(self) -> u64 {
        self.last.wrapping_sub(self.first)
    }
}

impl Lost {
    /// In the calling thread's network namespace. Nothing is counted where the kernel does not tell.
    pub(super) fn open() -> Self {
        Self { kernel: TxDropped::open().ok(), ..Self::default() }
    }

    /// Takes note of which devices are ports now; reads nothing when they are the same.
    pub(super) fn follow(&mut self, ports: impl Iterator<Item = u32>) {
        let ports: BTreeSet<u32> = ports.collect();
        if ports != self.wanted {
            self.wanted = ports;
            let now = self.kernel.as_mut().and_then(|k| k.read().ok()).unwrap_or_default();
            self.take(&now);
        }
    }

    /// Reads the counters.
    pub(super) fn look(&mut self) {
        // Not knowing, they stay as they are.
        if let Some(now) = self.kernel.as_mut().and_then(|k| k.read().ok()) {
            self.take(&now);
        }
    }

    fn take(&mut self, now: &BTreeMap<u32, u64>) {
        for (&port, &count) in now {
            // What left is read once more.
            if !self.wanted.contains(&port) && !self.ports.contains_key(&port) {
                continue;
            }
            // A counter that went back is another device's.
            let seen = self.ports.entry(port).or_insert(Seen { first: count, last: count });
            if count < seen.last {
                self.gone += seen.lost();
                *seen = Seen { first: 0, last: 0 };
            }
            seen.last = count;
        }
        let (gone, wanted) = (&mut self.gone, &self.wanted);
        self.ports.retain(|port, seen| {
            let stays = wanted.contains(port);
            *gone += if stays { 0 } else { seen.lost() };
            stays
        });
    }

    /// Packets that one port's device lost since it is a port.
    pub(super) fn of(&self, ifindex: u32) -> u64 {
        self.ports.get(&ifindex).map_or(0, |seen| seen.lost())
    }

    /// Packets lost at all ports since the start.
    pub(super) fn total(&self) -> u64 {
        self.gone + self.ports.values().map(|seen| seen.lost()).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_lost_as_a_port_counts() {
        let mut lost = Lost::default();
        let ports = |list: &[u32]| list.iter().copied().collect::<BTreeSet<u32>>();
        let mut read = |on: &[u32], now: &[(u32, u64)]| {
            lost.wanted = ports(on);
            lost.take(&now.iter().copied().collect());
            (lost.total(), lost.of(1), lost.of(2))
        };
        assert_eq!(read(&[1], &[(1, 100), (2, 7)]), (0, 0, 0), "before it was a port");
        assert_eq!(read(&[1, 2], &[(1, 105), (2, 9)]), (5, 5, 0));
        assert_eq!(read(&[1, 2], &[(1, 106), (2, 19)]), (16, 6, 10));
        assert_eq!(read(&[1, 2], &[(2, 20)]), (17, 6, 11), "not told: as it was");
        assert_eq!(
            read(&[2], &[(1, 200), (2, 20)]),
            (111, 0, 11),
            "a port no more: what was lost until then stays"
        );
        assert_eq!(read(&[2, 1], &[(1, 300), (2, 20)]), (111, 0, 11), "a port again: from now on");
        assert_eq!(read(&[2, 1], &[(1, 301), (2, 4)]), (116, 1, 4), "another device of that number");
    }
}
