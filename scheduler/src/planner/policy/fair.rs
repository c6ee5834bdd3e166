use super::{Moment, Policy, Waiting};

/// Start-time fair queueing, as a baseline: the least served tenant's turn, and first come, first served among what it has.
/// Whose turn it is is no matter of scores, but of [`Fairness`](crate::planner::Fairness).
#[derive(Clone, Copy, Default, Debug)]
pub struct Fair;

impl Policy for Fair {
    fn name(&self) -> &'static str {
        "fair"
    }

    fn score(&self, _: &Waiting, _: Moment) -> f64 {
        0.0
    }
}
