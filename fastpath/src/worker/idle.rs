//! What a worker does when there is nothing to do: spin, then wait in the kernel.
#![forbid(unsafe_code)]

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Release, SeqCst};
use core::time::Duration;
use std::sync::Arc;

use rustix::event::epoll;

use super::{ABSENT, EVENT, Polling, Worker};

impl Worker {
    /// Waits for packets when the polling mode and the lack of work say so.
    pub(super) fn rest(&mut self, busy: bool) {
        let Polling::Adaptive { spin, sleep } = self.polling else {
            if !busy {
                core::hint::spin_loop();
            }
            return;
        };
        if busy {
            self.idle_since = None;
            return;
        }
        let now = self.clock.raw();
        let since = *self.idle_since.get_or_insert(now);
        if self.clock.delta(since, now) < spin {
            core::hint::spin_loop();
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
