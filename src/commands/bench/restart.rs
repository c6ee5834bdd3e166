//! How a yard gets over the loss of its schedulers: what its results tell of it.

use std::time::Duration;

use serde::Serialize;

/// Results are counted by the tenth of a second.
const TENTHS: usize = 10;
/// The rate before is that of so many tenths.
const BEFORE: usize = 5 * TENTHS;
/// A yard is back once it is as fast as before for so many tenths together, but for this part.
const AFTER: usize = 2 * TENTHS;
const AS_FAST: f64 = 0.9;

/// New results in each tenth of a second since a load began.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Pulse(Vec<u32>);

impl Pulse {
    pub fn count(&mut self, at: Duration, results: u64) {
        let tenth = usize::try_from(at.as_millis() / 100).unwrap_or(usize::MAX);
        if tenth >= self.0.len() {
            self.0.resize(tenth + 1, 0);
        }
        self.0[tenth] = self.0[tenth].saturating_add(u32::try_from(results).unwrap_or(u32::MAX));
    }
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Restart {
    /// From when the schedulers were killed until the new ones listen.
    pub listens_after_s: f64,
    /// Results a second in the five seconds before.
    pub tasks_per_second_before: f64,
    /// The longest time without a result since.
    pub stood_still_s: f64,
    /// Until results come for two seconds at nine tenths of the rate before at least. `None`: until the end they did not.
    pub back_after_s: Option<f64>,
}

impl Restart {
    /// `killed` and `listening` are times since the load began.
    pub fn of(pulse: &Pulse, killed: Duration, listening: Duration) -> Self {
        let tenth = usize::try_from(killed.as_millis() / 100).unwrap_or(usize::MAX).min(pulse.0.len());
        let (before, after) = pulse.0.split_at(tenth);
        let rate = |tenths: &[u32]| {
            let results: u64 = tenths.iter().map(|results| u64::from(*results)).sum();
            results as f64 * TENTHS as f64 / tenths.len().max(1) as f64
        };
        // Before the first result nothing stood still.
        let first = before.iter().position(|results| *results > 0).unwrap_or(tenth);
        let tasks_per_second_before = rate(&before[first.max(tenth.saturating_sub(BEFORE))..]);
        let is_back = |some: &[u32]| some[0] > 0 && rate(some) >= AS_FAST * tasks_per_second_before;
        let back = after.windows(AFTER).position(is_back);
        let still = after.split(|results| *results > 0).map(<[u32]>::len).max().unwrap_or(0);
        Self {
            listens_after_s: listening.saturating_sub(killed).as_secs_f64(),
            tasks_per_second_before,
            stood_still_s: still as f64 / TENTHS as f64,
            back_after_s: back.map(|tenths| tenths as f64 / TENTHS as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(stretches: &[(usize, u64)]) -> Pulse {
        let mut pulse = Pulse::default();
        let tenths = stretches.iter().flat_map(|(tenths, results)| std::iter::repeat_n(*results, *tenths));
        for (tenth, results) in tenths.enumerate() {
            pulse.count(Duration::from_millis(tenth as u64 * 100 + 50), results);
        }
        pulse
    }

    #[test]
    fn a_yard_is_back_when_it_is_as_fast_as_before_and_stays_so() {
        // A second of nothing, eight at 1,000 a second, three of nothing, a spurt of 0.3 s, one slow second, and well again.
        let pulse = pulse(&[(10, 0), (80, 100), (30, 0), (3, 300), (10, 50), (40, 95)]);
        let restart = Restart::of(&pulse, Duration::from_secs(9), Duration::from_millis(9_700));
        assert_eq!((restart.tasks_per_second_before, restart.stood_still_s), (1_000.0, 3.0));
        assert!((restart.listens_after_s - 0.7).abs() < 1e-9);
        // The spurt makes up for what was slow after it.
        assert_eq!(restart.back_after_s, Some(3.0));
    }

    #[test]
    fn a_yard_that_stays_slow_is_not_back() {
        let restart = Restart::of(&pulse(&[(50, 100), (100, 80)]), Duration::from_secs(5), Duration::from_secs(6));
        assert_eq!((restart.back_after_s, restart.stood_still_s), (None, 0.0));
    }

    #[test]
    fn a_kill_after_the_last_result_is_no_panic() {
        let restart = Restart::of(&Pulse::default(), Duration::from_secs(5), Duration::from_secs(6));
        assert_eq!((restart.back_after_s, restart.tasks_per_second_before), (None, 0.0));
    }
}
