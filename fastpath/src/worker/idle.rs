//! What a worker does when there is nothing to do: spin, then wait in the kernel.
#![forbid(unsafe_code)]

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Release, SeqCst};
use core::time::Duration;
use std::sync::Arc;

use rustix::event::epoll;

use super::{ABSENT, EVENT, Polling, Worker, raw_ticks};

/// How long a worker spins before it sleeps, in raw ticks of the clock: longer while that spares it wake-ups.
///
/// A wake-up costs whoever sends the packet an interrupt to another core, and the packet the time until that core is
/// awake: tens of microseconds in a virtual machine. So after a pause that a longer spin would have covered it spins
/// for that long, and after each pause that it would not have, for half as long again.
#[derive(Debug)]
pub(super) struct Spin {
    shortest: u64,
    longest: u64,
    ticks: u64,
}

impl Spin {
    pub(super) fn new(polling: Polling, clock: &quanta::Clock) -> Self {
        let (shortest, longest) = match polling {
            Polling::Adaptive { spin, spin_longest, .. } => {
                (raw_ticks(clock, spin), raw_ticks(clock, spin_longest))
            }
            Polling::Busy => (0, 0),
        };
        // Who wants no spinning at all, wants none.
        let longest = if shortest == 0 { 0 } else { longest.max(shortest) };
        Self { shortest, longest, ticks: shortest }
    }

    /// Takes note of a time without work that is over.
    fn learn(&mut self, pause: u64) {
        self.ticks = if pause < self.longest { self.longest } else { (self.ticks / 2).max(self.shortest) };
    }
}

impl Worker {
    /// Waits for packets when the polling mode and the lack of work say so.
    pub(super) fn rest(&mut self, busy: bool) {
        let Polling::Adaptive { sleep, .. } = self.polling else {
            if !busy {
                core::hint::spin_loop();
            }
            return;
        };
        if busy {
            if let Some(since) = self.idle_since.take() {
                self.spin.learn(self.clock.raw().wrapping_sub(since));
            }
            return;
        }
        let now = self.clock.raw();
        let since = *self.idle_since.get_or_insert(now);
        if now.wrapping_sub(since) < self.spin.ticks {
            core::hint::spin_loop();
            return;
        }
        // Nobody gives frames to the ports while it sleeps.
        if self.refill(usize::MAX) {
            return;
        }
        let peers = Arc::clone(&self.peers);
        let Some(mailbox) = peers.get(usize::from(self.number)) else { return };
        mailbox.stats.sleeping.swap(true, SeqCst);
        // Looked at again after `sleeping` is seen by everybody: what came before needs no wake-up.
        if mailbox.commands.is_empty() && mailbox.handoffs.is_empty() {
            mailbox.stats.sleeps.add(1);
            let due = self.graph.due(self.now()).map(|ms| Duration::from_millis(ms.into()));
            let sleep = due.map_or(sleep, |due| due.min(sleep));
            let timeout = rustix::time::Timespec {
                tv_sec: sleep.as_secs().cast_signed(),
                tv_nsec: i64::from(sleep.subsec_nanos()),
            };
            let mut woken = [const { MaybeUninit::<epoll::Event>::uninit() }; 16];
            let ready = epoll::wait(&self.epoll, &mut woken, Some(&timeout));
            for event in ready.iter().flat_map(|(events, _)| events.iter()) {
                if event.data.u64() == EVENT {
                    let mut count = [0u8; 8];
                    let _ = rustix::io::read(&mailbox.event, &mut count);
                    continue;
                }
                // The ports that have packets: the next pass need not look at the others.
                let at = usize::try_from(event.data.u64()).ok().and_then(|id| self.index.get(id)).copied();
                self.wake_port(usize::from(at.unwrap_or(ABSENT)));
            }
        }
        mailbox.stats.sleeping.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it spins for after these pauses, with a shortest of 50 and a longest of 200.
    fn after(pauses: &[u64]) -> u64 {
        let mut spin = Spin { shortest: 50, longest: 200, ticks: 50 };
        for pause in pauses {
            spin.learn(*pause);
        }
        spin.ticks
    }

    #[test]
    fn spins_longer_only_where_that_spares_wake_ups() {
        for (pauses, ticks) in [
            (&[][..], 50),
            (&[10], 200),
            (&[199, 150, 3], 200),
            (&[200], 50),
            (&[10, 200], 100),
            (&[10, 1_000_000, 1_000_000, 1_000_000], 50),
            (&[10, 1_000_000, 60], 200),
        ] {
            assert_eq!(after(pauses), ticks, "{pauses:?}");
        }
    }

    #[test]
    fn times_are_those_of_the_configuration() {
        let (us, clock) = (Duration::from_micros, quanta::Clock::new());
        let of = |spin, spin_longest| {
            let spin = Spin::new(Polling::Adaptive { spin, spin_longest, sleep: us(1) }, &clock);
            (clock.delta(0, spin.ticks), clock.delta(0, spin.longest))
        };
        let near = |a: Duration, b: Duration| a.abs_diff(b) <= us(1);
        let (shortest, longest) = of(us(50), us(200));
        assert!(near(shortest, us(50)) && near(longest, us(200)), "{shortest:?} {longest:?}");
        // A longest below the shortest has no say.
        let (shortest, longest) = of(us(50), us(0));
        assert!(shortest == longest && near(longest, us(50)));
        assert_eq!(of(us(0), us(0)), (us(0), us(0)));
    }
}
