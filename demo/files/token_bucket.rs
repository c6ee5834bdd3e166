//! A token bucket: so many permits a second, so many at once.

use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct TokenBucket {
    permits: f64,
    capacity: f64,
    per_second: f64,
    updated: Instant,
}

impl TokenBucket {
    pub fn new(capacity: u32, per_second: f64, now: Instant) -> Self {
        let capacity = f64::from(capacity);
        Self { permits: capacity, capacity, per_second, updated: now }
    }

    /// Takes a permit, or says how long to wait for one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.permits = (self.permits + elapsed * self.per_second).min(self.capacity);
        self.updated = now;
        if self.permits >= 1.0 {
            self.permits -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((1.0 - self.permits) / self.per_second))
        }
    }
}
