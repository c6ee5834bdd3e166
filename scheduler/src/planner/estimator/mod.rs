//! How long tasks run: for each model, kind and size a mean, a deviation and a high quantile, learnt from completions.
//!
//! A run time is taken apart, in logarithms, into three factors that are learnt one by one. The **level** of a class (a
//! model, a kind, with or without a declared cost) adapts within tens of completions when it jumps, [`level`]. The **curve**
//! says how the time depends on the declared cost, [`curve`]. The **tail** is what is left: how the mean and the high quantile
//! lie to the middle, [`tail`]. So a model that gets ten times slower is believed soon, in all sizes at once, while what takes
//! many completions to know, such as the mean of a heavy tail, is kept. Logarithms also bound what one outlier can do.

mod calibration;
mod class;
mod curve;
mod level;
mod snapshot;
mod tail;
#[cfg(test)]
mod tests;

pub use calibration::Calibration;
pub use snapshot::Learnt;

use taskyard_shared::Kind;

use super::names::Names;
use class::Class;

/// Seconds, for a model of which nothing is known.
const UNKNOWN_SECONDS: f64 = 0.05;
/// Weight of the newest completion in a model's own mean.
const NEWEST: f64 = 0.05;
/// Most models that are remembered. Beyond it those go that ran least recently, an eighth at a time.
const MODELS_MOST: usize = 10_000;
/// The range of times, in seconds.
const LEAST_SECONDS: f64 = 1e-6;
const MOST_SECONDS: f64 = 1e9;

/// What is expected of a task's run time. Seconds, from a microsecond to a thousand million.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    pub mean_seconds: f64,
    /// The standard deviation about the mean.
    pub deviation_seconds: f64,
    /// 95 of 100 such tasks run no longer.
    pub q95_seconds: f64,
}

impl Estimate {
    /// For a time that is known: from an oracle, or in a test.
    pub fn exact(seconds: f64) -> Self {
        Self { mean_seconds: seconds, deviation_seconds: 0.0, q95_seconds: seconds }.bounded()
    }

    /// Each of its times in its range; what is not a number becomes the least.
    pub(super) fn bounded(self) -> Self {
        let bounded = |seconds: f64| if seconds > LEAST_SECONDS { seconds.min(MOST_SECONDS) } else { LEAST_SECONDS };
        Self {
            mean_seconds: bounded(self.mean_seconds),
            deviation_seconds: if self.deviation_seconds > 0.0 {
                self.deviation_seconds.min(MOST_SECONDS)
            } else {
                0.0
            },
            q95_seconds: bounded(self.q95_seconds),
        }
    }
}

/// What a model's settings say before anything was measured.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Prior {
    /// What one task is believed to take, whatever its size.
    pub expected_seconds: Option<f64>,
}

/// A measured attempt.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ran {
    pub seconds: f64,
    /// The task succeeded. One that failed or was cut short only tells that it takes at least so long.
    pub whole: bool,
}

struct Model {
    prior: Prior,
    /// Of recent completions of every kind.
    mean_seconds: Option<f64>,
    /// Few: one for each kind, with and without a declared cost.
    classes: Vec<Class>,
    calibration: Calibration,
    /// The completion, in order of all models', that used it last.
    used: u64,
}

pub(super) struct Estimator {
    names: Names,
    /// By number.
    models: Vec<Model>,
    completions: u64,
}

impl Estimator {
    pub(super) fn new(seed: u64) -> Self {
        Self { names: Names::new(seed), models: Vec::new(), completions: 0 }
    }

    pub(super) fn set_prior(&mut self, model: &str, prior: Prior) {
        self.model(model).prior = prior;
    }

    /// What a task is expected to take.
    pub(super) fn estimate(&self, model: &str, kind: Kind, cost: Option<f64>) -> Estimate {
        let model = self.find(model);
        let class = model.and_then(|model| model.classes.iter().find(|class| class.is_of(kind, cost.is_some())));
        match class {
            Some(class) => class.estimate_by(cost, model.map_or((UNKNOWN_SECONDS, false), Model::prior_seconds)),
            None => {
                let (seconds, is_said) = model.map_or((UNKNOWN_SECONDS, false), Model::prior_seconds);
                Class::new(kind, cost.is_some(), seconds, is_said).estimate_typical()
            }
        }
    }

    /// Whether anything was measured or said of a model's run times.
    pub(super) fn knows(&self, model: &str) -> bool {
        self.find(model).is_some_and(|model| model.mean_seconds.is_some() || model.prior_seconds().1)
    }

    /// A task is about to wait; as [`Self::estimate`]. While none of its class has run, those that come tell which cost is
    /// typical.
    pub(super) fn handle_arrival(&mut self, model: &str, kind: Kind, cost: Option<f64>) -> Estimate {
        if let Some(model) = self.names.find(model).and_then(|number| self.models.get_mut(number as usize)) {
            let prior = model.prior_seconds();
            let class = model.class(kind, cost.is_some(), prior);
            class.handle_arrival(cost, prior);
            return class.estimate(cost);
        }
        self.estimate(model, kind, cost)
    }

    /// An attempt ended, of a task of which this was expected when it was admitted.
    pub(super) fn handle_ran(&mut self, model: &str, kind: Kind, cost: Option<f64>, said: Estimate, ran: Ran) {
        let seconds = ran.seconds.clamp(LEAST_SECONDS, MOST_SECONDS);
        if !ran.seconds.is_finite() || !ran.whole && seconds <= said.mean_seconds {
            return;
        }
        self.completions += 1;
        let used = self.completions;
        let model = self.model(model);
        model.used = used;
        if ran.whole {
            model.calibration.count(said, seconds);
        }
        let prior = model.prior_seconds();
        model.class(kind, cost.is_some(), prior).observe(cost, seconds);
        model.mean_seconds = Some(model.mean_seconds.map_or(seconds, |mean| mean + NEWEST * (seconds - mean)));
    }

    /// What a task of this model takes, over all of them as they came of late.
    pub(super) fn mean_seconds(&self, model: &str) -> Option<f64> {
        self.find(model)?.mean_seconds
    }

    pub(super) fn calibration(&self, model: &str) -> Calibration {
        self.find(model).map(|model| model.calibration).unwrap_or_default()
    }

    fn find(&self, model: &str) -> Option<&Model> {
        self.models.get(self.names.find(model)? as usize)
    }

    fn model(&mut self, name: &str) -> &mut Model {
        let number = match self.names.find(name) {
            Some(number) => number,
            None => {
                if self.names.iter().count() >= MODELS_MOST {
                    self.forget_some();
                }
                let used = self.completions;
                let number = self.names.acquire(name);
                let model = Model {
                    prior: Prior::default(),
                    mean_seconds: None,
                    classes: Vec::new(),
                    calibration: Calibration::default(),
                    used,
                };
                match self.models.get_mut(number as usize) {
                    Some(forgotten) => *forgotten = model,
                    None => self.models.push(model),
                }
                number
            }
        };
        &mut self.models[number as usize]
    }

    fn forget_some(&mut self) {
        let mut by_use: Vec<(u64, u32)> =
            self.names.iter().map(|(number, _)| (self.models[number as usize].used, number)).collect();
        by_use.sort_unstable();
        for &(_, number) in by_use.iter().take(by_use.len().div_ceil(8)) {
            self.names.release(number);
            self.models[number as usize].classes = Vec::new();
        }
    }
}

impl Model {
    /// What a class of which nothing is known takes, and whether somebody said so of this model.
    fn prior_seconds(&self) -> (f64, bool) {
        let said = self.prior.expected_seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0);
        match (self.mean_seconds, said) {
            (Some(measured), _) => (measured, false),
            (None, Some(said)) => (said, true),
            (None, None) => (UNKNOWN_SECONDS, false),
        }
    }

    fn class(&mut self, kind: Kind, has_cost: bool, (prior_seconds, is_said): (f64, bool)) -> &mut Class {
        let index = match self.classes.iter().position(|class| class.is_of(kind, has_cost)) {
            Some(index) => index,
            None => {
                self.classes.push(Class::new(kind, has_cost, prior_seconds, is_said));
                self.classes.len() - 1
            }
        };
        &mut self.classes[index]
    }
}
