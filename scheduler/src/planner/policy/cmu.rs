use super::{Policy, Waiting};

/// Generalised cµ: the expected service rate times the slope of the delay cost.
///
/// The cost of a task's delay is convex in its age, `w·(age + age²/2T)`, so its slope `w·(1 + age/T)` grows without
/// bound: with nothing waiting it is Smith's rule, and in the end waiting wins over any weight. Near a deadline the
/// slope turns up to `1 + URGENCY` times steeper.
#[derive(Clone, Copy, Debug)]
pub struct Cmu {
    /// T: after this long the slope has doubled. Seconds, above 0.
    pub ageing_seconds: f64,
}

/// How much steeper the cost is for a task that must start now.
const URGENCY: f64 = 3.0;
/// How many expected run times of slack count as near.
const NEAR: f64 = 4.0;

impl Default for Cmu {
    fn default() -> Self {
        Self { ageing_seconds: 10.0 }
    }
}

impl Policy for Cmu {
    fn name(&self) -> &'static str {
        "cmu"
    }

    fn score(&self, task: &Waiting, now_us: u64) -> f64 {
        let age_seconds = now_us.saturating_sub(task.arrival_us) as f64 / 1e6;
        let mut slope = task.weight() * (1.0 + age_seconds / self.ageing_seconds);
        if let Some(deadline_us) = task.deadline_us {
            let left_seconds = deadline_us.saturating_sub(now_us) as f64 / 1e6;
            let slack_seconds = (left_seconds - task.expected_seconds).max(0.0);
            slope *= 1.0 + URGENCY * (-slack_seconds / (NEAR * task.expected_seconds)).exp();
        }
        slope / task.expected_seconds
    }
}
