//! How a class's run times lie about their middle: what makes a mean and a high quantile of the middle and the spread.
//!
//! Log-normal times would have a mean of exp(σ²/2) times the median, a deviation by the known formula, and a 95 % quantile 1.645
//! σ above in logarithms. What the times really have is learnt as a factor to each, and for the quantile by going up after each
//! time that was above it and down after each below, 19 times as far, so that it comes out right whatever they are.

use serde::{Deserialize, Serialize};

/// Times that the factors are the means of, at most.
const WINDOW: f64 = 1000.0;
/// Tasks that the log-normal formulas count for.
const PRIOR: f64 = 4.0;
/// What was learnt before a jump counts as so many tasks after it.
const KEPT: f64 = 10.0;
/// One task moves a mean by this share at most.
const MOVES_BY: f64 = 0.25;
/// The quantile's largest and least step, in σ.
const STEP_MOST: f64 = 0.4;
const STEP_LEAST: f64 = 0.04;
/// More spread than this is not believed: log-normal with a coefficient of variation of 20.
const VARIANCE_MOST: f64 = 6.0;
const MISSES: f64 = 0.05;

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Tail {
    count: f64,
    now: Factors,
    /// As they were when there last was no doubt that the level holds.
    sure: Factors,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
struct Factors {
    /// To the log-normal mean.
    mean: f64,
    /// To the log-normal squared coefficient of variation.
    spread: f64,
    /// Where the 95 % quantile lies, in σ.
    q95: f64,
}

impl Default for Tail {
    fn default() -> Self {
        let factors = Factors { mean: 1.0, spread: 1.0, q95: 1.645 };
        Self { count: 0.0, now: factors, sure: factors }
    }
}

/// Mean, deviation and 95 % quantile, relative to the middle.
pub(super) struct Shares {
    pub(super) mean: f64,
    pub(super) deviation: f64,
    pub(super) q95: f64,
}

fn log_normal_mean(variance: f64) -> f64 {
    (variance.min(VARIANCE_MOST) / 2.0).exp()
}

fn log_normal_spread(variance: f64) -> f64 {
    variance.min(VARIANCE_MOST).exp_m1()
}

impl Tail {
    pub(super) fn shares(&self, variance: f64) -> Shares {
        let mean = log_normal_mean(variance) * self.now.mean;
        Shares {
            mean,
            deviation: mean * (log_normal_spread(variance) * self.now.spread).sqrt(),
            q95: (self.now.q95 * variance.sqrt()).exp(),
        }
    }

    /// A time so far off the expected middle, in logarithms, where the variance was this.
    pub(super) fn observe(&mut self, off: f64, variance: f64, is_doubtful: bool) {
        if !is_doubtful {
            self.sure = self.now;
        }
        self.count = (self.count + 1.0).min(WINDOW);
        let among = self.count + PRIOR;
        let ratio = off.min(30.0).exp() / log_normal_mean(variance);
        let away = ratio / self.now.mean - 1.0;
        self.now.mean += move_by(ratio, self.now.mean, among);
        self.now.spread += move_by(away * away / log_normal_spread(variance), self.now.spread, among);
        let step = (8.0 / (self.count + 8.0) * STEP_MOST).max(STEP_LEAST);
        let is_above = off > self.now.q95 * variance.sqrt();
        self.now.q95 = (self.now.q95 + if is_above { step * (1.0 - MISSES) } else { -step * MISSES }).clamp(-4.0, 8.0);
    }

    /// The level had jumped: what came meanwhile was seen from the wrong one.
    pub(super) fn handle_jump(&mut self) {
        self.now = self.sure;
        self.count = self.count.min(KEPT);
    }

    pub(super) fn is_sound(&self) -> bool {
        let of = |factors: &Factors| {
            let Factors { mean, spread, q95 } = *factors;
            mean > 0.0 && mean.is_finite() && spread >= 0.0 && spread.is_finite() && (-4.0..=8.0).contains(&q95)
        };
        (0.0..=WINDOW).contains(&self.count) && of(&self.now) && of(&self.sure)
    }
}

/// By how much a mean of so many moves towards the newest of them.
fn move_by(newest: f64, mean: f64, among: f64) -> f64 {
    let newest = newest.min(mean.max(0.01) * (1.0 + MOVES_BY * among));
    (newest - mean) / among
}
