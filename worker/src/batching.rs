//! How large a batch is to become, and how long it waits for more, by what calls and arrivals were measured to take.
//!
//! A call of n tasks is taken to cost a + b·n. While n tasks wait for their call and the next comes in a time g, waiting for it
//! delays each of the n by g + b and spares the next a - g, which it would otherwise lose to a call of its own behind this one.
//! So it is waited for while (n + 1)·g + n·b is less than a: never for long when tasks come seldom, nor at all when calls
//! have little to share. Within `max_delay_ms`, and not while another slot is free.

use std::time::Duration;

use tokio::time::Instant;

/// Weight of what was measured before, after each call.
const KEPT: f64 = 0.98;
/// Calls before anything is believed.
const CALLS_LEAST: f64 = 8.0;
/// Sizes must have differed by this (their variance) to tell fixed cost from cost per task.
const SPREAD_LEAST: f64 = 0.05;
/// Weight of the newest gap between arrivals.
const NEWEST: f64 = 0.1;
/// A next task that is late by so many gaps is not waited for any longer.
const LATE_GAPS: f64 = 3.0;

/// Of one model on this worker.
#[derive(Debug, Default)]
pub(crate) struct Batching {
    /// Sums over calls, the older ones counting less: of 1, n, time, n², n × time. Times in milliseconds.
    calls: f64,
    sizes: f64,
    times: f64,
    squares: f64,
    products: f64,
    last_came: Option<Instant>,
    gap_ms: Option<f64>,
}

/// What a call costs in milliseconds: `fixed`, and `each` for a task.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct CallCost {
    pub fixed_ms: f64,
    pub each_ms: f64,
}

impl CallCost {
    pub fn of(self, tasks: usize) -> f64 {
        self.fixed_ms + self.each_ms * tasks as f64
    }
}

impl Batching {
    /// A call of so many tasks took so long.
    pub fn ran(&mut self, tasks: usize, time: Duration) {
        let (n, ms) = (tasks as f64, time.as_secs_f64() * 1e3);
        for sum in [&mut self.calls, &mut self.sizes, &mut self.times, &mut self.squares, &mut self.products] {
            *sum *= KEPT;
        }
        self.calls += 1.0;
        self.sizes += n;
        self.times += ms;
        self.squares += n * n;
        self.products += n * ms;
    }

    /// So many tasks came together.
    pub fn came(&mut self, tasks: usize, now: Instant) {
        if let Some(last) = self.last_came {
            let gap_ms = now.saturating_duration_since(last).as_secs_f64() * 1e3 / tasks.max(1) as f64;
            self.gap_ms = Some(self.gap_ms.map_or(gap_ms, |old| old + NEWEST * (gap_ms - old)));
        }
        self.last_came = Some(now);
    }

    /// By least squares. `None` until calls of different sizes were measured.
    pub fn cost(&self) -> Option<CallCost> {
        let (mean_size, mean_ms) = (self.sizes / self.calls, self.times / self.calls);
        let spread = self.squares / self.calls - mean_size * mean_size;
        if self.calls < CALLS_LEAST || spread < SPREAD_LEAST {
            return None;
        }
        let slope = (self.products / self.calls - mean_size * mean_ms) / spread;
        let each_ms = slope.clamp(0.0, mean_ms / mean_size);
        Some(CallCost { fixed_ms: mean_ms - each_ms * mean_size, each_ms })
    }

    /// Until when a batch of so many tasks waits for more, at most until `latest`. While nothing is known of what calls cost, until
    /// then: so that calls of different sizes are measured.
    pub fn closes(&self, tasks: usize, other_slots_free: bool, latest: Instant, now: Instant) -> Instant {
        let (Some(cost), Some(gap_ms), Some(last)) = (self.cost(), self.gap_ms, self.last_came) else { return latest };
        let n = tasks as f64;
        if other_slots_free || (n + 1.0) * gap_ms + n * cost.each_ms >= cost.fixed_ms {
            return now;
        }
        (last + Duration::from_secs_f64(LATE_GAPS * gap_ms.min(1e6) / 1e3)).min(latest)
    }

    /// How many of `tasks` go in one call, so that it ends within `left_ms` for the most pressing of them; one at least.
    pub fn fits(&self, tasks: usize, left_ms: f64) -> usize {
        let Some(cost) = self.cost().filter(|cost| cost.each_ms > 0.0 && cost.of(tasks) > left_ms) else {
            return tasks;
        };
        (((left_ms - cost.fixed_ms) / cost.each_ms).max(1.0) as usize).min(tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: f64) -> Duration {
        Duration::from_secs_f64(value / 1e3)
    }

    /// Calls of 8 + 1·n milliseconds, and arrivals so far apart.
    fn known(fixed_ms: f64, each_ms: f64, gap_ms: f64) -> (Batching, Instant) {
        let mut batching = Batching::default();
        let mut now = Instant::now();
        for turn in 0..40 {
            let tasks = 1 + turn % 4;
            batching.ran(tasks, ms(fixed_ms + each_ms * tasks as f64));
            now += ms(gap_ms);
            batching.came(1, now);
        }
        (batching, now)
    }

    #[test]
    fn what_a_call_costs_is_told_from_calls_of_different_sizes() {
        let (batching, _) = known(8.0, 1.0, 1.0);
        let cost = batching.cost().unwrap();
        assert!((cost.fixed_ms - 8.0).abs() < 1e-6 && (cost.each_ms - 1.0).abs() < 1e-6, "{cost:?}");
        let mut alike = Batching::default();
        (0..100).for_each(|_| alike.ran(1, ms(5.0)));
        assert_eq!(alike.cost(), None, "calls of one size tell nothing");
        // It gets ten times as fast.
        let mut batching = batching;
        for turn in 0..400 {
            batching.ran(1 + turn % 4, ms(0.8 + 0.1 * (1 + turn % 4) as f64));
        }
        let cost = batching.cost().unwrap();
        assert!((cost.fixed_ms - 0.8).abs() < 0.05, "{cost:?}");
    }

    #[test]
    fn more_is_waited_for_while_that_costs_less_than_a_call() {
        let latest = |now: Instant| now + ms(50.0);
        // One that comes within a millisecond, against eight of a call.
        let (batching, now) = known(8.0, 1.0, 1.0);
        assert_eq!(batching.closes(1, false, latest(now), now), now + ms(3.0));
        // Four of a millisecond each have more to lose than it has to win.
        assert_eq!(batching.closes(4, false, latest(now), now), now);
        assert_eq!(batching.closes(1, true, latest(now), now), now, "it would find a slot of its own");
        assert_eq!(batching.closes(1, false, now + ms(2.0), now), now + ms(2.0), "never beyond the setting");
        let (seldom, now) = known(8.0, 1.0, 20.0);
        assert_eq!(seldom.closes(1, false, latest(now), now), now);
        let (nothing_shared, now) = known(0.0, 3.0, 0.5);
        assert_eq!(nothing_shared.closes(1, false, latest(now), now), now);
        let (fresh, now) = (Batching::default(), Instant::now());
        assert_eq!(fresh.closes(1, false, latest(now), now), latest(now), "what is not known yet is tried");
    }

    #[test]
    fn a_batch_is_no_larger_than_its_most_pressing_task_bears() {
        let (batching, _) = known(8.0, 1.0, 1.0);
        assert_eq!(batching.fits(32, 1_000.0), 32);
        assert_eq!(batching.fits(32, 18.5), 10);
        assert_eq!(batching.fits(32, 2.0), 1, "it goes though it will be late");
        assert_eq!(Batching::default().fits(32, 1.0), 32);
    }
}
