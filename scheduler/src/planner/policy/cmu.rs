use super::{PASSING, Policy, Stage, Waiting};

/// Generalised cµ: the expected service rate of a task's class times the slope of its delay cost.
///
/// The cost of a task's delay is convex in its age, `w·(age + age²/2T)`, so its slope `w·(1 + age/T)` grows without
/// bound: with nothing waiting it is Smith's rule, and in the end waiting wins over any weight. Near a deadline the
/// slope gets steeper in steps, [`STEPS`]; between two steps the order of two tasks of one class stays as it is, which
/// a smooth curve would not give.
#[derive(Clone, Copy, Debug)]
pub struct Cmu {
    ageing_us: f64,
}

/// From how many expected run times of slack on the slope is how much steeper.
pub(crate) const STEPS: [(f64, f64); 2] = [(8.0, 2.0), (2.0, 4.0)];

impl Cmu {
    /// After `ageing_seconds` (T) the slope has doubled. Taken as a millisecond at least.
    pub fn new(ageing_seconds: f64) -> Self {
        Self { ageing_us: ageing_seconds.max(1e-3) * 1e6 }
    }
}

impl Default for Cmu {
    fn default() -> Self {
        Self::new(10.0)
    }
}

impl Policy for Cmu {
    fn name(&self) -> &'static str {
        "cmu"
    }

    fn score(&self, task: &Waiting, now_us: u64) -> f64 {
        let age_us = now_us.saturating_sub(task.arrival_us) as f64;
        let slope = task.weight() * (1.0 + age_us / self.ageing_us);
        let steeper = match self.stage(task, now_us).number {
            0 => 1.0,
            step => STEPS[usize::from(step) - 1].1,
        };
        steeper * slope * task.cost.rate()
    }

    fn stage(&self, task: &Waiting, now_us: u64) -> Stage {
        let Some(deadline_us) = task.deadline_us else { return Stage::default() };
        for (number, (slack, _)) in (0u8..).zip(STEPS) {
            // The slack is what is left to the deadline after one run.
            let begins_us = deadline_us.saturating_sub((task.expected_seconds * (1.0 + slack) * 1e6) as u64);
            if now_us < begins_us {
                return Stage { number, until_us: Some(begins_us) };
            }
        }
        Stage { number: STEPS.len() as u8, until_us: None }
    }

    fn keeps_deadlines(&self) -> bool {
        true
    }

    fn passes(&self, score: f64, dispatched: f64) -> bool {
        score > dispatched * PASSING
    }
}
