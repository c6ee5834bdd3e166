//! What is learnt of one kind of task of one model.

use serde::{Deserialize, Serialize};
use taskyard_shared::Kind;

use super::Estimate;
use super::curve::{Curve, log_cost};
use super::level::Level;
use super::tail::Tail;

/// What run times vary by before any was measured: log-normal with a coefficient of variation of about 1.
const VARIANCE: f64 = 0.7;
/// What somebody said of a model counts as so many completions, and what is merely guessed.
const SAID: f64 = 2.0;
const GUESSED: f64 = 0.2;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Class {
    kind: Kind,
    has_cost: bool,
    completions: u64,
    level: Level,
    curve: Curve,
    tail: Tail,
}

impl Class {
    /// One for each kind, with and without a cost.
    pub(super) const MOST: usize = 2 * Kind::ALL.len();

    /// One of which nothing is known but what its model's tasks take, measured or `is_said` by somebody.
    pub(super) fn new(kind: Kind, has_cost: bool, prior_seconds: f64, is_said: bool) -> Self {
        Self {
            kind,
            has_cost,
            completions: 0,
            level: prior_level(prior_seconds, is_said),
            curve: Curve::default(),
            tail: Tail::default(),
        }
    }

    pub(super) fn is_of(&self, kind: Kind, has_cost: bool) -> bool {
        self.kind == kind && self.has_cost == has_cost
    }

    /// A task arrived, and this is what its model's tasks are taken to need.
    pub(super) fn handle_arrival(&mut self, cost: Option<f64>, (prior_seconds, is_said): (f64, bool)) {
        if self.completions > 0 {
            return;
        }
        self.level = prior_level(prior_seconds, is_said);
        if let Some(cost) = cost {
            self.curve.handle_arrival(log_cost(cost));
        }
    }

    pub(super) fn estimate(&self, cost: Option<f64>) -> Estimate {
        let (middle, variance) = self.expected(cost.map(log_cost));
        let shares = self.tail.shares(variance);
        let middle_seconds = middle.exp();
        Estimate {
            mean_seconds: middle_seconds * shares.mean,
            deviation_seconds: middle_seconds * shares.deviation,
            q95_seconds: middle_seconds * shares.q95,
        }
        .bounded()
    }

    pub(super) fn observe(&mut self, cost: Option<f64>, seconds: f64) {
        self.completions += 1;
        let log_cost = cost.map(log_cost);
        let value = seconds.ln();
        let (middle, variance) = self.expected(log_cost);
        let off = value - middle;
        let noise = self.level.variance;
        let (shape, weight) = match log_cost {
            // A size that is new says more of itself than of the level.
            Some(cost) if self.level.count >= 8.0 => (self.curve.shape(cost, noise), self.curve.confidence(cost)),
            Some(cost) => (self.curve.shape(cost, noise), 1.0),
            None => (0.0, 1.0),
        };
        let jumped = self.level.observe(value - shape, weight);
        let is_doubtful = jumped || self.level.is_doubtful();
        if jumped {
            self.tail.handle_jump();
        } else {
            self.tail.observe(off, variance, is_doubtful);
        }
        if let Some(cost) = log_cost {
            let deviation = variance.sqrt();
            let error = (!is_doubtful).then(|| off.clamp(-3.0 * deviation, 3.0 * deviation));
            self.curve.observe(cost, value - self.level.mean, error, noise);
        }
    }

    /// The middle of the run times at this cost, and their variance, of logarithms.
    fn expected(&self, log_cost: Option<f64>) -> (f64, f64) {
        let (mean, variance) = (self.level.mean, self.level.variance);
        match log_cost {
            Some(cost) => (mean + self.curve.shape(cost, variance), self.curve.variance(cost, variance)),
            None => (mean, variance),
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        self.level.is_sound() && self.curve.is_sound() && self.tail.is_sound()
    }
}

fn prior_level(prior_seconds: f64, is_said: bool) -> Level {
    Level::new(prior_seconds.ln() - VARIANCE / 2.0, VARIANCE, if is_said { SAID } else { GUESSED })
}
