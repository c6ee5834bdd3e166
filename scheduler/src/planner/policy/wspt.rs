use super::{Policy, Waiting};

/// Smith's rule: the most weight per expected second first. Minimises the weighted sum of completion times.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wspt;

impl Policy for Wspt {
    fn name(&self) -> &'static str {
        "wspt"
    }

    fn score(&self, task: &Waiting, _: u64) -> f64 {
        task.weight() / task.expected_seconds
    }
}
