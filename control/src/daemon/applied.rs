//! How long changes of the source take to be in force: from the source's new model to the last worker's acknowledgement.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use super::Daemon;
use crate::api::types::Applied as Row;

/// So many of the last changes are told of.
const KEPT: usize = 1024;
/// Workers acknowledge a snapshot within a vector, and a sleeping one when it has woken: so long they are waited for.
const WAIT: Duration = Duration::from_millis(2);
/// They are asked this often.
const ASK: Duration = Duration::from_micros(20);

/// The times of the last changes.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// When the source said what is not published yet.
    changed: Option<SystemTime>,
    /// A generation that some worker has not acknowledged, and when the source said what is in it.
    waiting: Option<(u32, SystemTime)>,
    last: VecDeque<Duration>,
    count: u64,
}

impl Applied {
    /// The source says something else since `at`.
    pub(super) fn changed(&mut self, at: SystemTime) {
        self.changed.get_or_insert(at);
    }

    /// All that the source said so far is in force once this generation is; `None` when it makes no difference.
    fn published(&mut self, generation: Option<u32>) {
        if let (Some(at), Some(generation)) = (self.changed.take(), generation) {
            // One that is still waited for is in force no later than this one.
            let at = self.waiting.map_or(at, |(_, before)| before.min(at));
            self.waiting = Some((generation, at));
        }
    }

    /// Every worker has this generation.
    pub(super) fn acked(&mut self, acked: u32) {
        let Some((_, at)) = self.waiting.take_if(|(generation, _)| acked >= *generation) else { return };
        // The clock may have been set back.
        let Ok(took) = at.elapsed() else { return };
        self.count += 1;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(took);
    }

    /// Numbers and times, microseconds.
    pub(super) fn row(&self) -> Row {
        let mut sorted: Vec<u64> =
            self.last.iter().map(|t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX)).collect();
        let last_us = sorted.last().copied().unwrap_or(0);
        sorted.sort_unstable();
        let at =
            |share: usize| sorted.get(sorted.len().saturating_sub(1) * share / 100).copied().unwrap_or(0);
        Row { count: self.count, last_us, p50_us: at(50), p99_us: at(99), max_us: at(100) }
    }
}

impl Daemon {
    /// Notes what was published, and waits a moment for the workers to take it.
    pub(super) fn await_workers(&mut self, generation: Option<u32>) {
        self.applied.published(generation);
        let Some(generation) = generation else { return };
        let start = Instant::now();
        while self.attacher.engine.acked() < generation && start.elapsed() < WAIT {
            std::thread::sleep(ASK);
        }
        self.applied.acked(self.attacher.engine.acked());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_from_its_first_word_to_the_last_ack() {
        let mut applied = Applied::default();
        let ago = |ms| SystemTime::now() - Duration::from_millis(ms);
        applied.changed(ago(500));
        applied.changed(ago(100));
        applied.published(Some(7));
        applied.acked(6);
        assert_eq!(applied.row().count, 0);
        applied.acked(7);
        let row = applied.row();
        assert_eq!(row.count, 1);
        assert!(row.last_us >= 500_000 && row.p50_us == row.last_us && row.max_us == row.last_us);
        // What makes no difference is not counted, nor is what the kernel brought.
        applied.changed(ago(100));
        applied.published(None);
        applied.published(Some(8));
        applied.acked(8);
        assert_eq!(applied.row().count, 1);
        // Not acknowledged before the next came.
        applied.changed(ago(300));
        applied.published(Some(9));
        applied.changed(ago(10));
        applied.published(Some(10));
        applied.acked(10);
        let row = applied.row();
        assert!(row.count == 2 && row.last_us >= 300_000, "{row:?}");
        for _ in 0..2 * KEPT {
            applied.changed(SystemTime::now());
            applied.published(Some(11));
            applied.acked(11);
        }
        assert_eq!((applied.last.len(), applied.row().count), (KEPT, 2 + 2 * KEPT as u64));
    }
}
