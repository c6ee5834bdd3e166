//! Where the logarithms of a class's run times lie: their mean and variance, with forgetting, and quick after a jump.
//!
//! Page's test (CUSUM) looks for a jump: it adds up by how much the values lie above the middle, less an allowance, and the same
//! below. A sum that grows beyond a bound is a jump, and only what came since is believed from then on. How far a value lies off
//! is told by its rank among those before, as a normal variable of that rank would lie. So times in two far clusters, or with
//! any tail, make no more false alarms than normal ones: what is common is never far off.

use serde::{Deserialize, Serialize};

/// Of so many values at most the mean is made, so that slow change is followed, and of so many the variance.
const WINDOW: f64 = 1000.0;
const VARIANCE_WINDOW: f64 = 300.0;
/// Standard deviations that each value may lie off without counting towards a jump.
const ALLOWANCE: f64 = 0.5;
/// A sum of so many standard deviations is a jump. By chance alone it comes once in tens of thousands of values.
const BOUND: f64 = 12.0;
/// No value counts for more standard deviations.
const FURTHEST: f64 = 3.0;
/// With fewer values there is nothing to measure a jump with, and the mean is quick by itself.
const MEASURED: f64 = 8.0;
/// Fewer values are no jump, however far off; and as many of the latest are kept to find where it began.
const FEWEST: usize = 4;
const RECENT: usize = 16;
/// The variance before a jump counts as so many values after it.
const KEPT: f64 = 16.0;
/// Least variance: smaller differences are not worth a jump.
const LEAST_VARIANCE: f64 = 0.0025;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Level {
    pub(super) count: f64,
    pub(super) mean: f64,
    pub(super) variance: f64,
    above: f64,
    below: f64,
    /// The newest last.
    recent: Vec<f64>,
    ranks: Ranks,
}

impl Level {
    /// Known only from hearsay that counts as so many values.
    pub(super) fn new(mean: f64, variance: f64, count: f64) -> Self {
        Self { count, mean, variance, above: 0.0, below: 0.0, recent: Vec::new(), ranks: Ranks::default() }
    }

    pub(super) fn is_measured(&self) -> bool {
        self.count >= MEASURED
    }

    /// One side's sum is so large that it may become a jump.
    pub(super) fn is_doubtful(&self) -> bool {
        self.above.max(self.below) > BOUND / 2.0
    }

    /// Takes in a value that counts for so much, at most 1. If this completed a jump, answers by how
    /// much the level jumped: values are to be given relative to the new level from then on.
    pub(super) fn observe(&mut self, value: f64, weight: f64) -> Option<f64> {
        let before = self.count;
        let off = value - self.mean;
        if before < MEASURED {
            self.count += weight;
            self.mean += off * weight / self.count;
            // The first one is measured against hearsay, which says nothing of how values vary.
            if before >= 1.0 {
                self.variance += (off * (value - self.mean) - self.variance) * weight / self.count;
            }
        } else {
            let deviation = self.variance.sqrt();
            if weight >= 0.5 {
                self.recent.push(value);
                if self.recent.len() > RECENT {
                    self.recent.remove(0);
                }
            }
            let score = self.ranks.score(value, self.mean, deviation).clamp(-FURTHEST, FURTHEST);
            self.above = (self.above + weight * (score - ALLOWANCE)).max(0.0);
            self.below = (self.below - weight * (score + ALLOWANCE)).max(0.0);
            if self.above.max(self.below) > BOUND
                && let Some(by) = self.jump()
            {
                return Some(by);
            }
            self.ranks.add(value, self.mean, deviation, weight);
            let off = off.clamp(-FURTHEST * deviation, FURTHEST * deviation);
            self.count = (before + weight).min(WINDOW);
            self.mean += off * weight / self.count;
            self.variance += (off * off - self.variance) * weight / self.count.min(VARIANCE_WINDOW);
        }
        self.variance = self.variance.max(LEAST_VARIANCE);
        None
    }

    /// Begins anew with the latest values that lie on the far side of the middle between the old level and the new one.
    fn jump(&mut self) -> Option<f64> {
        let is_above = self.above > self.below;
        let side = |value: f64| if is_above { value - self.mean } else { self.mean - value };
        let mut far: Vec<f64> = self.recent.iter().rev().take(FEWEST).copied().map(side).collect();
        far.sort_by(f64::total_cmp);
        let half = far.iter().sum::<f64>() / far.len().max(1) as f64 / 2.0;
        let (mut sum, mut best, mut since) = (0.0, 0.0, 0);
        for (count, &value) in (1..).zip(self.recent.iter().rev()) {
            sum += side(value) - half;
            if sum >= best {
                (best, since) = (sum, count);
            }
        }
        if since < FEWEST {
            return None;
        }
        let values = self.recent.get(self.recent.len() - since..)?;
        let mean = values.iter().sum::<f64>() / since as f64;
        let variance = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / since as f64;
        let count = since as f64;
        let by = mean - self.mean;
        self.variance = ((count * variance + KEPT * self.variance) / (count + KEPT)).max(LEAST_VARIANCE);
        self.count = count.max(MEASURED);
        (self.above, self.below) = (0.0, 0.0);
        self.recent.clear();
        self.ranks.fade(0.5);
        Some(by)
    }

    pub(super) fn is_sound(&self) -> bool {
        let Self { count, mean, variance, above, below, recent, ranks } = self;
        mean.is_finite()
            && (LEAST_VARIANCE..1e6).contains(variance)
            && (0.0..=WINDOW).contains(count)
            && (0.0..=2.0 * BOUND).contains(above)
            && (0.0..=2.0 * BOUND).contains(below)
            && recent.len() <= RECENT
            && recent.iter().all(|value| value.is_finite())
            && ranks.is_sound()
    }
}

/// Bins of so many to a deviation, half of them below the middle; the outermost hold all that lies beyond.
const BINS: usize = 32;
const BINS_A_DEVIATION: f64 = 4.0;
/// Values that the ranks are made of, at most.
const RANKED: f32 = 500.0;
/// A normal distribution counts as so many of them.
const NORMAL: f32 = 8.0;

/// How values lay. The bins stay where they are while mean and deviation move a little, so that a value keeps its rank.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
struct Ranks {
    middle: f64,
    deviation: f64,
    bins: [f32; BINS],
    count: f32,
}

impl Ranks {
    fn bin(&self, value: f64) -> usize {
        let bin = (value - self.middle) / self.deviation * BINS_A_DEVIATION + BINS as f64 / 2.0;
        // What is below the first, or no number, becomes the first.
        (bin as usize).min(BINS - 1)
    }

    /// Where a normal variable of this value's rank lies, by the logistic distribution, which is close to the normal one. The
    /// values have this mean and deviation now.
    fn score(&self, value: f64, mean: f64, deviation: f64) -> f64 {
        const STEEPNESS: f64 = 1.702;
        let normal = 1.0 / (1.0 + (-STEEPNESS * (value - mean) / deviation).exp());
        let bin = self.bin(value);
        let below: f32 = self.bins.iter().take(bin).sum();
        let own = self.bins.get(bin).copied().unwrap_or_default();
        let rank = (f64::from(below + own / 2.0) + f64::from(NORMAL) * normal) / f64::from(self.count + NORMAL);
        (rank / (1.0 - rank)).ln() / STEEPNESS
    }

    fn add(&mut self, value: f64, mean: f64, deviation: f64, weight: f64) {
        let (shift, stretch) = ((mean - self.middle).abs(), deviation / self.deviation);
        if !(shift < deviation / 2.0 && (0.6..1.7).contains(&stretch)) {
            self.move_to(mean, deviation);
        }
        if self.count >= RANKED {
            self.fade(1.0 - weight as f32 / RANKED);
        }
        let bin = self.bin(value);
        self.bins[bin] += weight as f32;
        self.count += weight as f32;
    }

    /// The bins lie elsewhere from now on.
    fn move_to(&mut self, middle: f64, deviation: f64) {
        let before = std::mem::replace(self, Self { middle, deviation, bins: [0.0; BINS], count: self.count });
        for (number, values) in before.bins.into_iter().enumerate() {
            let value = (number as f64 + 0.5 - BINS as f64 / 2.0) / BINS_A_DEVIATION * before.deviation + before.middle;
            let bin = self.bin(value);
            self.bins[bin] += values;
        }
    }

    fn fade(&mut self, to: f32) {
        self.bins.iter_mut().for_each(|bin| *bin *= to);
        self.count *= to;
    }

    fn is_sound(&self) -> bool {
        let sum: f32 = self.bins.iter().sum();
        self.bins.iter().all(|&bin| bin >= 0.0)
            && (sum - self.count).abs() < 1.0
            && self.count <= RANKED + 2.0
            && self.middle.is_finite()
            && self.deviation.is_finite()
            && (self.deviation > 0.0 || self.count == 0.0)
    }
}
