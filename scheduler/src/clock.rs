//! The planner's clock: microseconds since the Unix epoch that never go back, whatever is done to the wall clock.

use std::time::{Duration, Instant};

use taskyard_shared::Timestamp;

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
