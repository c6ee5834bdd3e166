use super::{Moment, Policy, Waiting};

/// Higher priority always first. Starves low priorities under load.
#[derive(Clone, Copy, Default, Debug)]
pub struct Strict;

impl Policy for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn score(&self, task: &Waiting, _: Moment) -> f64 {
        f64::from(task.priority.get())
    }

    fn passes(&self, score: f64, dispatched: f64) -> bool {
        score > dispatched
    }
}
