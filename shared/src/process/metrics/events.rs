//! What became of lifecycle events.

use super::{IntCounter, IntCounterVec, MetricsError, Registry};

impl Registry {
    /// Those published, and those left out by reason.
    pub(crate) fn event_counts(&self) -> Result<(IntCounter, IntCounterVec), MetricsError> {
        let published = self.counter("events_published_total", "Lifecycle events that reached a queue.")?;
        let left_out = self.counters(
            "events_left_out_total",
            "Lifecycle events that somebody may have wanted: too many waited (full), or the broker did not take them (not_taken).",
            &["reason"],
        )?;
        Ok((published, left_out))
    }
}
