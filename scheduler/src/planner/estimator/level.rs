//! Where the logarithms of a class's run times lie: their mean and variance, with forgetting, and quick after a jump.
//!
//! Page's test (CUSUM) looks for a jump: it adds up by how much the values lie above the mean, less an allowance, in standard
//! deviations, and the same below. A sum that grows beyond a bound is a jump, and began when the sum last was nothing; what
//! came since then is all that is believed from then on.

use serde::{Deserialize, Serialize};

/// Of so many values at most the mean is made, so that slow change is followed.
const WINDOW: f64 = 1000.0;
/// Standard deviations that each value may lie off without counting towards a jump.
const ALLOWANCE: f64 = 0.5;
/// A sum of so many standard deviations is a jump. By chance alone it comes once in some 70,000 values.
const BOUND: f64 = 10.0;
/// No value counts for more standard deviations.
const FURTHEST: f64 = 3.0;
/// Fewer values are no jump, however far off.
const FEWEST: f64 = 4.0;
/// The variance before a jump counts as so many values after it.
const KEPT: f64 = 4.0;
/// Least variance: smaller differences are not worth a jump.
const LEAST_VARIANCE: f64 = 0.0025;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Level {
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) variance: f64,
    above: Run,
    below: Run,
}

/// Values that lie off to one side, since the sum last was nothing.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
struct Run {
    sum: f64,
    count: f64,
    total: f64,
    squares: f64,
}

impl Run {
    fn add(&mut self, off: f64, value: f64, weight: f64) {
        self.sum += weight * (off - ALLOWANCE);
        if self.sum <= 0.0 {
            *self = Self::default();
            return;
        }
        self.count += weight;
        self.total += weight * value;
        self.squares += weight * value * value;
    }
}

impl Level {
    /// Known only from hearsay that counts as so many values.
    pub(super) fn new(mean: f64, variance: f64, count: f64) -> Self {
        Self { count, mean, variance, above: Run::default(), below: Run::default() }
    }

    pub(super) fn deviation(&self) -> f64 {
        self.variance.sqrt()
    }

    /// One side's sum is so large that it may become a jump.
    pub(super) fn is_doubtful(&self) -> bool {
        self.above.sum.max(self.below.sum) > BOUND / 2.0
    }

    /// Takes in a value that counts for so much, at most 1. Answers whether it completed a jump.
    pub(super) fn observe(&mut self, value: f64, weight: f64) -> bool {
        let deviation = self.deviation();
        let off = (value - self.mean).clamp(-FURTHEST * deviation, FURTHEST * deviation);
        // Before the variance is known there is nothing to measure a jump with, and the mean is quick by itself.
        if self.count >= 8.0 {
            let value = value - self.mean;
            self.above.add(off / deviation, value, weight);
            self.below.add(-off / deviation, value, weight);
            for run in [self.above, self.below] {
                if run.sum > BOUND && run.count >= FEWEST {
                    self.jump(run);
                    return true;
                }
            }
        }
        let before = self.count;
        self.count = (self.count + weight).min(WINDOW);
        if before < 8.0 {
            // Nothing is an outlier yet.
            let off = value - self.mean;
            self.mean += off * weight / self.count;
            let beside = off * (value - self.mean);
            self.variance += (beside - self.variance) * weight / self.count;
        } else {
            let share = weight / self.count;
            self.mean += off * share;
            self.variance += (off * off - self.variance) * share;
            self.shift_runs(off * share);
        }
        self.variance = self.variance.max(LEAST_VARIANCE);
        false
    }

    fn jump(&mut self, run: Run) {
        let off = run.total / run.count;
        let variance = (run.squares / run.count - off * off).max(0.0);
        self.mean += off;
        self.variance = ((run.count * variance + KEPT * self.variance) / (run.count + KEPT)).max(LEAST_VARIANCE);
        self.count = run.count;
        (self.above, self.below) = (Run::default(), Run::default());
    }

    /// The values in the runs are relative to the mean, which moved by so much.
    fn shift_runs(&mut self, by: f64) {
        for run in [&mut self.above, &mut self.below] {
            run.squares += run.count * by * by - 2.0 * by * run.total;
            run.total -= run.count * by;
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        let Self { count, mean, variance, above, below } = self;
        let of_run = |run: &Run| [run.sum, run.count, run.total, run.squares].iter().all(|number| number.is_finite());
        mean.is_finite()
            && variance.is_finite()
            && *variance >= LEAST_VARIANCE
            && (0.0..=WINDOW).contains(count)
            && of_run(above)
            && of_run(below)
    }
}
