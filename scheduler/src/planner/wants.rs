//! What a model's waiting tasks ask for: for the placement of models, and for slots that models share.

use super::Planner;
use super::models::Model;

/// What waits for a model, and what came to it.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Wants {
    /// What the tasks that may start are expected to take.
    pub waiting_seconds: f64,
    /// Their mean weight, each as it is long; 1 without any.
    pub value: f64,
    /// Since when the oldest of them waits, in microseconds on the caller's clock.
    pub oldest_us: Option<u64>,
    /// When the first of those with a deadline has to begin.
    pub latest_start_us: Option<u64>,
    /// What all tasks that ever came were expected to take. It begins anew when the model was forgotten.
    pub came_seconds: f64,
}

impl Planner {
    /// Nothing for a model without tasks and workers.
    pub fn wants(&self, model: &str) -> Wants {
        let Some(number) = self.models.find(model) else { return Wants { value: 1.0, ..Wants::default() } };
        let Model { backlog, overload, deadlines, .. } = self.models.get(number);
        let seconds = overload.queued_seconds(self.expected_guess_seconds(model));
        // Those that may not start yet have a part in the weight, and none in the time.
        let value = if seconds > 0.0 { 1.0 + backlog.weighted_seconds() / seconds } else { 1.0 };
        Wants {
            waiting_seconds: seconds,
            value: value.clamp(1.0, 10.0),
            oldest_us: backlog.oldest_arrival_us(&self.tasks),
            latest_start_us: deadlines.soonest_us(),
            came_seconds: overload.offered_seconds(),
        }
    }

    /// What the policy makes of the task of a model that would go next, whether or not there is a credit for it: so that
    /// models which share slots can be compared. `None` when none may go.
    pub fn best_score(&mut self, model: &str, now_us: u64) -> Option<f64> {
        let number = self.models.find(model)?;
        let model = self.models.get_mut(number);
        if model.is_paused || !model.backlog.shares.has_candidates() {
            return None;
        }
        let backlog = &mut model.backlog;
        backlog.advance_stages(&mut self.tasks, &*self.policy, now_us);
        Some(backlog.choose(&*self.policy, backlog.moment(now_us), None)?.score)
    }
}
