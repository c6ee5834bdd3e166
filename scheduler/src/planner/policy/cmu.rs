use super::{Moment, PASSING, Policy, Stage, Waiting};

/// Generalised cµ: the expected service rate of a task's class times the slope of its delay cost.
///
/// The slope is `w·(1 + (age/T)ⁿ)`: with nothing waiting for long it is Smith's rule, and in the end waiting wins over any
/// weight. Near a deadline the slope gets steeper in steps, [`STEPS`]; between two steps the order of two tasks of one class stays
/// as it is, which a smooth curve would not give.
#[derive(Clone, Copy, Debug)]
pub struct Cmu {
    ageing: Ageing,
}

#[derive(Clone, Copy, Debug)]
enum Ageing {
    /// T in microseconds, and a slope that is straight: `n` is 1.
    Fixed(f64),
    /// T is so many mean waits, so that the same rule suits tasks of milliseconds and of hours, and a backlog that grows. `n` is 4:
    /// ages below T hardly count, which keeps to Smith's rule, and those beyond it soon count for all.
    MeanWaits(f64),
}

/// T in mean waits: see `docs/scheduling.md` for what others would give.
const MEAN_WAITS: f64 = 24.0;

/// From how many expected run times of slack on the slope is how much steeper.
pub(crate) const STEPS: [(f64, f64); 2] = [(8.0, 2.0), (2.0, 4.0)];

impl Cmu {
    /// After `ageing_seconds` (T) the slope has doubled. Taken as a millisecond at least.
    pub fn new(ageing_seconds: f64) -> Self {
        Self { ageing: Ageing::Fixed(ageing_seconds.max(1e-3) * 1e6) }
    }
}

impl Default for Cmu {
    /// T follows the mean wait of the model.
    fn default() -> Self {
        Self { ageing: Ageing::MeanWaits(MEAN_WAITS) }
    }
}

impl Policy for Cmu {
    fn name(&self) -> &'static str {
        "cmu"
    }

    fn score(&self, task: &Waiting, at: Moment) -> f64 {
        let age_us = at.now_us.saturating_sub(task.arrival_us) as f64;
        let aged = match self.ageing {
            Ageing::Fixed(ageing_us) => age_us / ageing_us,
            Ageing::MeanWaits(waits) => {
                // A wait of nothing would make of an age a quarrel of rounding.
                let part = age_us / (waits * at.mean_wait_us).max(1e3);
                (part * part) * (part * part)
            }
        };
        let slope = task.weight() * (1.0 + aged);
        let steeper = match self.stage(task, at.now_us).number {
            0 => 1.0,
            step => STEPS[usize::from(step) - 1].1,
        };
        steeper * slope * at.rate(task.cost)
    }

    fn stage(&self, task: &Waiting, now_us: u64) -> Stage {
        let Some(deadline_us) = task.wanted_us() else { return Stage::default() };
        for (number, (slack, _)) in (0u8..).zip(STEPS) {
            // The slack is what is left to the deadline after one run.
            let begins_us = deadline_us.saturating_sub((task.expected_seconds * (1.0 + slack) * 1e6) as u64);
            if now_us < begins_us {
                return Stage { number, until_us: Some(begins_us) };
            }
        }
        Stage { number: STEPS.len() as u8, until_us: None }
    }

    fn passes(&self, score: f64, dispatched: f64) -> bool {
        score > dispatched * PASSING
    }

    fn keeps_deadlines(&self) -> bool {
        true
    }
}
