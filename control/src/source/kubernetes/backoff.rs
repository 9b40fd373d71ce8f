//! How long to wait after failures: twice as long each time, half of it at random.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// The waits of one follower after failures of one sort.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Nothing has failed yet.
    pub(super) fn new() -> Self {
        Self::up_to(LONGEST)
    }

    /// The same, for failures after which it waits no longer than this.
    pub(super) fn up_to(longest: Duration) -> Self {
        Self { next: FIRST, longest }
    }

    /// Nothing fails any more.
    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// How long to wait now.
    pub(super) fn delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        // Nodes that lost their API server together do not come back together.
        whole / 2 + (whole / 2).mul_f64(fraction())
    }
}

/// A number from 0 to 1, another one each time; not for secrets.
pub(super) fn fraction() -> f64 {
    let bits = RandomState::new().hash_one(0u8) >> 32;
    u32::try_from(bits).map_or(0.5, f64::from) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_limit_and_is_never_the_same() {
        let mut backoff = Backoff::new();
        let mut whole = FIRST;
        for _ in 0..20 {
            let delay = backoff.delay();
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
            whole = (whole * 2).min(LONGEST);
        }
        assert_eq!(whole, LONGEST);
        backoff.reset();
        assert!(backoff.delay() <= FIRST);
        let mut many: Vec<_> = (0..100).map(|_| fraction().to_bits()).collect();
        many.sort_unstable();
        many.dedup();
        assert!(many.len() > 90, "{} of 100 differ", many.len());
    }
}
