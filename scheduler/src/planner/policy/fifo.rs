use super::{Moment, Policy, Waiting};

/// First come, first served: the baseline.
#[derive(Clone, Copy, Default, Debug)]
pub struct Fifo;

impl Policy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }

    fn score(&self, _: &Waiting, _: Moment) -> f64 {
        0.0
    }
}
