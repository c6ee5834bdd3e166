use super::{Moment, PASSING, Policy, Waiting};

/// Smith's rule: the most weight per expected second first. Minimises the weighted sum of completion times.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wspt;

impl Policy for Wspt {
    fn name(&self) -> &'static str {
        "wspt"
    }

    fn score(&self, task: &Waiting, _: Moment) -> f64 {
        task.weight() / task.expected_seconds
    }

    /// In a lane all weigh the same, so the shortest is first. Bits of positive numbers order as the numbers do.
    fn lane_key(&self, task: &Waiting) -> Option<u64> {
        Some(task.expected_seconds.to_bits())
    }

    fn passes(&self, score: f64, dispatched: f64) -> bool {
        score > dispatched * PASSING
    }
}
