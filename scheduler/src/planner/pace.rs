//! How long tasks of a model wait, as it goes: by Little's law, the number that wait times the time between two dispatches.
//!
//! Counted over those that wait, not over those that went: under an order that lets some wait for long, these go last.

/// Dispatches over which the time between two, and the mean wait, are averaged.
const INTERVAL_OVER: f64 = 64.0;
const WAIT_OVER: f64 = 256.0;

#[derive(Default)]
pub(super) struct Pace {
    /// Of the last dispatch that left others waiting.
    last_us: Option<u64>,
    intervals: u32,
    interval_us: f64,
    waits: u32,
    wait_us: f64,
}

impl Pace {
    /// A task was dispatched, and so many wait on.
    pub(super) fn handle_dispatch(&mut self, now_us: u64, waiting: usize) {
        if let Some(last_us) = self.last_us {
            blend(&mut self.interval_us, &mut self.intervals, now_us.saturating_sub(last_us) as f64, INTERVAL_OVER);
        }
        // A gap in which nothing waited says nothing.
        self.last_us = (waiting > 0).then_some(now_us);
        let now = self.interval_us * waiting as f64;
        blend(&mut self.wait_us, &mut self.waits, now, WAIT_OVER);
    }

    /// Of late and just now, whichever is more. Zero before anything is known.
    pub(super) fn mean_wait_us(&self, waiting: usize) -> f64 {
        self.wait_us.max(self.interval_us * waiting as f64)
    }
}

/// A plain mean of the first values, and then a running one.
fn blend(mean: &mut f64, count: &mut u32, value: f64, over: f64) {
    *count = count.saturating_add(1);
    *mean += (value - *mean) / f64::from(*count).min(over);
}

#[cfg(test)]
mod tests {
    use super::Pace;

    #[test]
    fn it_is_the_number_that_waits_times_the_time_between_two() {
        let mut pace = Pace::default();
        assert_eq!(pace.mean_wait_us(100), 0.0);
        for turn in 0..1_000 {
            pace.handle_dispatch(turn * 10, 50);
        }
        assert_eq!(pace.mean_wait_us(50), 500.0);
        assert_eq!(pace.mean_wait_us(2_000), 20_000.0, "more came at once");
        // A day without work, and then as before.
        pace.handle_dispatch(10_000, 0);
        pace.handle_dispatch(86_400_000_000, 50);
        pace.handle_dispatch(86_400_000_010, 50);
        assert!((400.0..=500.0).contains(&pace.mean_wait_us(50)), "{}", pace.mean_wait_us(50));
    }
}
