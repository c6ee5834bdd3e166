use super::{Moment, Policy, Waiting};

/// Earliest deadline first; tasks without one come last. Optimal when every deadline can be met.
#[derive(Clone, Copy, Default, Debug)]
pub struct Edf;

impl Policy for Edf {
    fn name(&self) -> &'static str {
        "edf"
    }

    fn score(&self, task: &Waiting, _: Moment) -> f64 {
        -(task.wanted_us().unwrap_or(u64::MAX) as f64)
    }

    fn lane_key(&self, task: &Waiting) -> Option<u64> {
        Some(task.wanted_us().unwrap_or(u64::MAX))
    }

    fn passes(&self, score: f64, dispatched: f64) -> bool {
        score > dispatched
    }
}
