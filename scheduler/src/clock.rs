//! The planner's clock: microseconds since the Unix epoch that never go back, whatever is done to the wall clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use taskyard_shared::Timestamp;
use tokio::time::Instant;

#[derive(Clone, Copy)]
pub(crate) struct Clock {
    wall_us: u64,
    instant: Instant,
}

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Self {
        Self { wall_us: u64::try_from(Timestamp::now().as_micros()).unwrap_or(0), instant: Instant::now() }
    }

    pub fn now_us(&self) -> u64 {
        self.wall_us + self.instant.elapsed().as_micros() as u64
    }

    /// An instant as others wrote it; before the epoch is at the epoch.
    pub fn micros(&self, at: Timestamp) -> u64 {
        u64::try_from(at.as_micros()).unwrap_or(0)
    }

    /// When that will be, at most a day ahead.
    pub fn instant(&self, at_us: u64) -> Instant {
        let ahead = Duration::from_micros(at_us.saturating_sub(self.wall_us));
        self.instant + ahead.min(self.instant.elapsed() + Duration::from_secs(86_400))
    }
}

/// Times of which each is later than the one before, by a microsecond if need be. Tasks have them that are read one after the other,
/// so that they are in the same order wherever they are sorted by them, also when they were in one message.
#[derive(Default)]
pub(crate) struct Distinct(AtomicI64);

impl Distinct {
    pub fn now(&self) -> Timestamp {
        let now_us = Timestamp::now().as_micros();
        let later = |last_us: i64| now_us.max(last_us.saturating_add(1));
        let before = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last_us| Some(later(last_us)));
        Timestamp::from_micros(before.map_or(now_us, later))
    }
}

#[cfg(test)]
mod tests {
    use super::Distinct;

    #[test]
    fn no_two_times_are_the_same() {
        let times = Distinct::default();
        let all: Vec<_> = (0..10_000).map(|_| times.now()).collect();
        assert!(all.is_sorted_by(|one, other| one < other));
    }
}
