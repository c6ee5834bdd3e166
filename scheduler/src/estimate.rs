//! What is learnt of a model from its completions: how long its tasks run, and how many must be on their way to a worker
//! so that its slots do not idle.

use std::collections::HashMap;

use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::settings::SchedulerSettings;

/// Weight of the newest completion in the running mean.
const NEWEST: f64 = 0.05;
/// Seconds, for a model of which nothing is known.
const UNKNOWN_SECONDS: f64 = 0.05;
/// Tasks that run longer are not sent ahead.
const LONG_SECONDS: f64 = 0.25;
/// So many completions are looked at together before the depth is changed.
const WINDOW: u32 = 20;
/// Slots may idle for this share of their time before more is sent ahead, and below the lesser share less is.
const IDLE_MOST: f64 = 0.05;
const IDLE_LEAST: f64 = 0.02;

#[derive(Default)]
struct Learnt {
    seconds: Option<f64>,
    /// Of the tasks that declare a cost.
    seconds_per_cost: Option<f64>,
    /// Tasks sent ahead of the slots.
    ahead: f64,
    idle_ms: f64,
    ran_ms: f64,
    seen: u32,
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

    /// A slot ran a task while others waited, after having had nothing to run for `idle_ms`. Sending more ahead costs an
    /// urgent task that comes later its turn, so it is as little as keeps the slots busy.
    pub fn kept_busy(&mut self, model: &str, idle_ms: f64, ran_ms: f64, slots: usize, settings: &SchedulerSettings) {
        let learnt = self.learnt(model);
        let each_ms = learnt.seconds.unwrap_or(UNKNOWN_SECONDS) * 1e3;
        let most = slots as f64 * settings.ready_latency_ms / each_ms.max(1e-3);
        let most = most.clamp(1.0, f64::from(settings.ready_extra_most.max(1)));
        learnt.idle_ms += idle_ms;
        learnt.ran_ms += ran_ms;
        learnt.seen += 1;
        if learnt.seen < WINDOW {
            return;
        }
        let idle = learnt.idle_ms / (learnt.idle_ms + learnt.ran_ms).max(1e-6);
        if idle > IDLE_MOST {
            learnt.ahead = learnt.ahead * 1.25 + 1.0;
        } else if idle < IDLE_LEAST {
            learnt.ahead = (learnt.ahead * 0.9 - 0.1).max(0.0);
        }
        // Slots may idle for reasons that sending more ahead does not mend.
        learnt.ahead = learnt.ahead.min(most);
        (learnt.idle_ms, learnt.ran_ms, learnt.seen) = (0.0, 0.0, 0);
    }

    /// How many tasks to send ahead of so many slots. At least one, but for a model whose tasks are long: its slots lose
    /// little by waiting for the next one, which would lose much if it were bound to a worker that is not free.
    pub fn ahead(&self, model: &str) -> usize {
        let learnt = self.models.get(model);
        if learnt.and_then(|learnt| learnt.seconds).is_some_and(|seconds| seconds > LONG_SECONDS) {
            return 0;
        }
        learnt.map_or(1, |learnt| learnt.ahead.ceil().max(1.0) as usize)
    }

    /// Milliseconds that a task is expected to run, whatever its cost.
    pub fn mean_ms(&self, model: &str) -> f64 {
        self.models.get(model).and_then(|learnt| learnt.seconds).unwrap_or(UNKNOWN_SECONDS) * 1e3
    }

    fn learnt(&mut self, model: &str) -> &mut Learnt {
        if !self.models.contains_key(model) {
            self.models.insert(model.to_owned(), Learnt::default());
        }
        self.models.entry(model.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use taskyard_shared::process::settings::Settings;

    use super::{Estimator, SchedulerSettings};

    #[test]
    fn as_much_is_sent_ahead_as_keeps_slots_busy_and_no_more() {
        let mut estimator = Estimator::default();
        let settings = SchedulerSettings { ready_latency_ms: 6.0, ..Settings::default().scheduler };
        estimator.ran("m", 0.002, None);
        assert_eq!(estimator.ahead("m"), 1);
        for _ in 0..2_000 {
            estimator.kept_busy("m", 5.0, 2.0, 1, &settings);
        }
        assert_eq!(estimator.ahead("m"), 3, "6 ms of tasks of 2 ms, however idle the slot is");
        for _ in 0..2_000 {
            estimator.kept_busy("m", 0.0, 2.0, 1, &settings);
        }
        assert_eq!(estimator.ahead("m"), 1);
        estimator.ran("long", 1.0, None);
        assert_eq!(estimator.ahead("long"), 0);
        estimator.ran("brief", 0.0, None);
        for _ in 0..20_000 {
            estimator.kept_busy("brief", 5.0, 0.0, 64, &settings);
        }
        assert_eq!(estimator.ahead("brief"), settings.ready_extra_most as usize, "never beyond the bound");
    }
}
