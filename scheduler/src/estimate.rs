//! How long a task is expected to run: learnt from completions, from the model's announcement before there were any.

use std::collections::HashMap;

use taskyard_shared::load::ModelSpec;

/// Weight of the newest completion in the running mean.
const NEWEST: f64 = 0.05;
/// Seconds, for a model of which nothing is known.
const UNKNOWN_SECONDS: f64 = 0.05;

#[derive(Default)]
struct Learnt {
    seconds: Option<f64>,
    /// Of the tasks that declare a cost.
    seconds_per_cost: Option<f64>,
    /// Between two completions.
    gap_seconds: Option<f64>,
    last_completion_us: Option<u64>,
    /// From a completion to the next dispatched task being in a worker's hands.
    feedback_seconds: Option<f64>,
}

/// Running means per model.
#[derive(Default)]
pub(crate) struct Estimator {
    models: HashMap<String, Learnt>,
}

fn blend(mean: &mut Option<f64>, value: f64) {
    if value.is_finite() && value >= 0.0 {
        *mean = Some(mean.map_or(value, |mean| mean + NEWEST * (value - mean)));
    }
}

impl Estimator {
    /// Seconds.
    pub fn expected_seconds(&self, spec: &ModelSpec, cost: Option<f64>) -> f64 {
        let learnt = self.models.get(&spec.name);
        let by_cost = cost.zip(learnt.and_then(|learnt| learnt.seconds_per_cost)).map(|(cost, each)| cost * each);
        by_cost
            .or_else(|| learnt.and_then(|learnt| learnt.seconds))
            .or(spec.expected_ms.map(|ms| ms / 1e3))
            .unwrap_or(UNKNOWN_SECONDS)
    }

    /// An attempt of so many seconds ended.
    pub fn ran(&mut self, model: &str, seconds: f64, cost: Option<f64>) {
        let learnt = self.learnt(model);
        blend(&mut learnt.seconds, seconds);
        if let Some(cost) = cost.filter(|cost| *cost > 0.0) {
            blend(&mut learnt.seconds_per_cost, seconds / cost);
        }
    }

    /// A task came back from the workers at this time; `feedback_seconds` of its round trip it was neither running nor
    /// waiting at the worker.
    pub fn came_back(&mut self, model: &str, now_us: u64, feedback_seconds: f64) {
        let learnt = self.learnt(model);
        blend(&mut learnt.feedback_seconds, feedback_seconds.max(0.0));
        if let Some(last_us) = learnt.last_completion_us.replace(now_us) {
            blend(&mut learnt.gap_seconds, now_us.saturating_sub(last_us) as f64 / 1e6);
        }
    }

    /// How many tasks pass while a completion travels and its successor comes: what a ready queue must hold beyond the
    /// slots so that they do not idle (Little's law).
    pub fn in_transit(&self, model: &str) -> f64 {
        let Some(learnt) = self.models.get(model) else { return 0.0 };
        match (learnt.gap_seconds, learnt.feedback_seconds) {
            (Some(gap), Some(feedback)) => feedback / gap.max(1e-6),
            _ => 0.0,
        }
    }

    fn learnt(&mut self, model: &str) -> &mut Learnt {
        if !self.models.contains_key(model) {
            self.models.insert(model.to_owned(), Learnt::default());
        }
        self.models.entry(model.to_owned()).or_default()
    }
}
