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
const SAID: f64 = 0.5;
const GUESSED: f64 = 0.1;

/// The first completions say where the middle is, and nothing yet about how times lie about it.
const UNSURE: u64 = 2;
/// Most tasks that wait while it is in doubt from which level they are to be seen.
const PENDING: usize = 16;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Class {
    kind: Kind,
    has_cost: bool,
    completions: u64,
    /// What level and curve are relative to: where the level was believed to be at first, and all its jumps.
    origin: f64,
    level: Level,
    curve: Curve,
    tail: Tail,
    /// Logarithms of cost and time of tasks that ran while the level was in doubt: not in the curve yet.
    pending: Vec<(f64, f64)>,
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
            origin: prior_origin(prior_seconds),
            level: prior_level(is_said),
            curve: Curve::new(VARIANCE),
            tail: Tail::default(),
            pending: Vec::new(),
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
        (self.origin, self.level) = (prior_origin(prior_seconds), prior_level(is_said));
        if let Some(cost) = cost {
            self.curve.handle_arrival(log_cost(cost));
        }
    }

    /// As [`Self::estimate`] after an arrival that has not come: while none has run, what the model's tasks take by now.
    pub(super) fn estimate_by(&self, cost: Option<f64>, (prior_seconds, is_said): (f64, bool)) -> Estimate {
        if self.completions > 0 {
            return self.estimate(cost);
        }
        let (origin, level) = (prior_origin(prior_seconds), prior_level(is_said));
        Self { origin, level, ..self.clone() }.estimate(cost)
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

    /// Of a task of whatever cost is typical.
    pub(super) fn estimate_typical(&self) -> Estimate {
        self.estimate(self.has_cost.then(|| self.curve.typical_cost()))
    }

    pub(super) fn observe(&mut self, cost: Option<f64>, seconds: f64) {
        self.completions += 1;
        let log_cost = cost.map(log_cost);
        let value = seconds.ln();
        let (middle, variance) = self.expected(log_cost);
        let off = value - middle;
        let jump = match log_cost {
            Some(cost) if !self.level.is_measured() => {
                // The first ones make the curve, and the level is what is left of them.
                self.curve.observe(cost, value - self.origin);
                self.level.observe(value - self.origin - self.curve.shape(cost), 1.0)
            }
            Some(cost) => {
                self.pending.push((cost, value));
                let weight = self.curve.confidence(cost);
                self.level.observe(value - self.origin - self.curve.shape(cost), weight)
            }
            None => self.level.observe(value - self.origin, 1.0),
        };
        let is_doubtful = self.level.is_doubtful();
        match jump {
            Some(by) => {
                // Level and curve stay what they are, relative to the new origin.
                self.origin += by;
                self.tail.handle_jump();
            }
            // The first ones are measured against hearsay.
            None if self.completions <= UNSURE => {}
            None => self.tail.observe(off, variance, is_doubtful),
        }
        if !is_doubtful || self.pending.len() > PENDING {
            for (cost, value) in std::mem::take(&mut self.pending) {
                self.curve.observe(cost, value - self.origin);
            }
        }
    }

    /// The middle of the run times at this cost, and their variance, of logarithms.
    fn expected(&self, log_cost: Option<f64>) -> (f64, f64) {
        let level = self.origin + self.level.mean;
        match log_cost {
            Some(cost) => (level + self.curve.shape(cost), self.curve.variance(cost)),
            None => (level, self.level.variance),
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        self.origin.is_finite()
            && self.pending.len() <= PENDING + 1
            && self.level.is_sound()
            && self.curve.is_sound()
            && self.tail.is_sound()
    }
}

fn prior_origin(prior_seconds: f64) -> f64 {
    prior_seconds.ln() - VARIANCE / 2.0
}

fn prior_level(is_said: bool) -> Level {
    Level::new(0.0, VARIANCE, if is_said { SAID } else { GUESSED })
}
