//! How run times depend on the declared cost, up to a common factor, which is the class's level.
//!
//! A line, seconds = intercept + slope × cost with neither below nothing, fitted for small relative errors to the means of
//! buckets of cost, each a factor of √2 wide. Where a bucket's own tasks say otherwise it corrects the line, the more the more
//! tasks it has seen; between the middles of buckets the correction is interpolated. Until the first tasks have run, and beyond
//! what was seen, times are taken as proportional to the cost.

use serde::{Deserialize, Serialize};

/// A bucket's mean is made of so many tasks at most, so that a change of shape is followed.
const WINDOW: f32 = 200.0;
/// Tasks that the variance over all buckets is the mean of, at most.
const SPREAD_WINDOW: f64 = 500.0;
/// Standard deviations that one task counts for at most.
const FURTHEST: f64 = 3.0;
/// As for the level.
const LEAST_VARIANCE: f64 = 0.0025;
/// Tasks that the variance over all buckets counts for against a bucket's own variance.
const VARIANCE_SHRINKAGE: f64 = 10.0;
/// The line is fitted anew with each task up to so many, and then with every so manieth.
const FIT_EVERY: u32 = 16;
const ITERATIONS: usize = 3;
/// Least and most logarithm of a cost: what lies beyond counts as that.
const LEAST: f64 = -60.0;
const MOST: f64 = 60.0;
/// Buckets in a cost's doubling.
const PER_DOUBLING: f64 = 2.0;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Curve {
    /// Logarithm of the cost that everything is relative to: the typical one at the time of the first completion.
    reference: f64,
    /// Tasks that it is the mean of.
    arrived: u32,
    /// Of the line, with the cost in units of the reference.
    intercept: f64,
    slope: f64,
    /// Of the logarithms about the mean of their bucket, over all buckets.
    variance: f64,
    /// Tasks that this is the mean of.
    spread: f64,
    /// By cost.
    buckets: Vec<Bucket>,
    seen: u32,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
struct Bucket {
    number: i16,
    count: f32,
    /// Mean logarithm of its costs, relative to the reference.
    middle: f32,
    /// Mean logarithm of the run times, relative to the level.
    value: f32,
    /// Of the logarithms about their mean.
    variance: f32,
}

/// The logarithm of a declared cost.
pub(super) fn log_cost(cost: f64) -> f64 {
    // What is not a number, or not positive, was refused long before; here it must do no harm.
    let log = cost.ln();
    if log > LEAST { log.min(MOST) } else { LEAST }
}

fn bucket_number(log_cost: f64) -> i16 {
    (log_cost * (PER_DOUBLING / std::f64::consts::LN_2)).floor() as i16
}

impl Curve {
    /// Of which nothing is known but about how much times vary.
    pub(super) fn new(variance: f64) -> Self {
        Self {
            reference: 0.0,
            arrived: 0,
            intercept: 0.0,
            slope: 1.0,
            variance,
            spread: 1.0,
            buckets: Vec::new(),
            seen: 0,
        }
    }

    /// A task of this cost arrived. Before any has run, those that arrive say what is typical.
    pub(super) fn handle_arrival(&mut self, log_cost: f64) {
        if self.seen == 0 {
            self.arrived = self.arrived.saturating_add(1);
            self.reference += (log_cost - self.reference) / f64::from(self.arrived);
        }
    }

    /// The cost that everything is relative to.
    pub(super) fn typical_cost(&self) -> f64 {
        self.reference.exp()
    }

    /// The logarithm of the time at this cost, relative to the level.
    pub(super) fn shape(&self, log_cost: f64) -> f64 {
        let cost = log_cost - self.reference;
        self.line(cost) + self.correction(cost)
    }

    /// How far the tasks seen at about this cost can be trusted to say what it takes there, from 0 to 1.
    pub(super) fn confidence(&self, log_cost: f64) -> f64 {
        let number = bucket_number(log_cost);
        let from = self.buckets.partition_point(|bucket| bucket.number < number - 2);
        let near = self.buckets.iter().skip(from).take_while(|bucket| bucket.number <= number + 2);
        let count: f64 = near.map(|bucket| f64::from(bucket.count)).sum();
        (count + 1.0) / (count + 4.0)
    }

    /// The variance of the logarithms at this cost.
    pub(super) fn variance(&self, log_cost: f64) -> f64 {
        let own = self.buckets.binary_search_by_key(&bucket_number(log_cost), |bucket| bucket.number);
        own.ok().and_then(|index| self.buckets.get(index)).map_or(self.variance, |bucket| {
            let (count, variance) = (f64::from(bucket.count), f64::from(bucket.variance));
            (count * variance + VARIANCE_SHRINKAGE * self.variance) / (count + VARIANCE_SHRINKAGE)
        })
    }

    /// A task ran: the logarithm of its time relative to the level.
    pub(super) fn observe(&mut self, log_cost: f64, value: f64) {
        if self.seen == 0 && self.arrived == 0 {
            self.reference = log_cost;
        }
        self.seen = self.seen.saturating_add(1);
        let cost = log_cost - self.reference;
        let number = bucket_number(log_cost);
        match self.buckets.binary_search_by_key(&number, |bucket| bucket.number) {
            Ok(index) => {
                let bucket = &mut self.buckets[index];
                let before = f64::from(bucket.count);
                let furthest = FURTHEST * self.variance.sqrt();
                let off = (value - f64::from(bucket.value)).clamp(-furthest, furthest);
                // The mean that it is measured against has its own error.
                let square = off * off * before / (before + 1.0);
                bucket.variance += (square as f32 - bucket.variance) / bucket.count.min(WINDOW);
                self.spread = (self.spread + 1.0).min(SPREAD_WINDOW);
                self.variance = (self.variance + (square - self.variance) / self.spread).max(LEAST_VARIANCE);
                bucket.count = (bucket.count + 1.0).min(WINDOW);
                bucket.middle += (cost as f32 - bucket.middle) / bucket.count;
                bucket.value += (value as f32 - bucket.value) / bucket.count;
            }
            Err(index) => {
                let variance = self.variance as f32;
                let bucket = Bucket { number, count: 1.0, middle: cost as f32, value: value as f32, variance };
                self.buckets.insert(index, bucket);
            }
        }
        if self.seen < 4 * FIT_EVERY || self.seen.is_multiple_of(FIT_EVERY) {
            self.fit();
        }
    }

    fn line(&self, cost: f64) -> f64 {
        (self.intercept + self.slope * cost.exp()).max(1e-30).ln()
    }

    fn correction(&self, cost: f64) -> f64 {
        // A line is wrong by some half where it is wrong; with much noise it takes more tasks to tell.
        let shrinkage = (4.0 * self.variance).clamp(0.2, 50.0);
        let of = |bucket: &Bucket| {
            let count = f64::from(bucket.count);
            count / (count + shrinkage) * (f64::from(bucket.value) - self.line(bucket.middle.into()))
        };
        let after = self.buckets.partition_point(|bucket| f64::from(bucket.middle) < cost);
        match (after.checked_sub(1).and_then(|before| self.buckets.get(before)), self.buckets.get(after)) {
            (Some(before), Some(after)) => {
                let (from, to) = (f64::from(before.middle), f64::from(after.middle));
                let part = if to > from { (cost - from) / (to - from) } else { 0.5 };
                of(before) * (1.0 - part) + of(after) * part
            }
            (Some(end), None) | (None, Some(end)) => of(end),
            (None, None) => 0.0,
        }
    }

    /// Least squares of relative errors: the weights are those of the line before, a few times over. That there is an intercept
    /// takes more than one task to say.
    fn fit(&mut self) {
        for _ in 0..ITERATIONS {
            let at_reference = (self.intercept + self.slope).max(1e-30);
            let (mut one, mut cost, mut squares) = (0.0, 0.0, 0.0);
            let (mut time, mut product) = (0.0, 0.0);
            for bucket in &self.buckets {
                let (x, y) = (f64::from(bucket.middle).exp(), f64::from(bucket.value).exp());
                let expected = (self.intercept + self.slope * x).max(1e-30);
                let weight = f64::from(bucket.count) / (expected * expected);
                one += weight;
                cost += weight * x;
                squares += weight * x * x;
                time += weight * y;
                product += weight * x * y;
            }
            let with_doubt = one + 1.0 / (at_reference * at_reference);
            let determinant = with_doubt * squares - cost * cost;
            let (mut intercept, mut slope) = (0.0, product / squares);
            if determinant > 1e-9 * with_doubt * squares {
                slope = (with_doubt * product - cost * time) / determinant;
                intercept = (time - slope * cost) / with_doubt;
                if slope < 0.0 {
                    (intercept, slope) = (time / one, 0.0);
                } else if intercept < 0.0 {
                    (intercept, slope) = (0.0, product / squares);
                }
            }
            if !(intercept.is_finite() && slope.is_finite() && intercept + slope > 0.0) {
                return;
            }
            (self.intercept, self.slope) = (intercept, slope);
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        let is_sound = |bucket: &Bucket| {
            let Bucket { number: _, count, middle, value, variance } = *bucket;
            (0.0..=WINDOW).contains(&count) && middle.is_finite() && value.is_finite() && variance >= 0.0
        };
        self.reference.is_finite()
            && (LEAST_VARIANCE..1e6).contains(&self.variance)
            && (1.0..=SPREAD_WINDOW).contains(&self.spread)
            && self.intercept.is_finite()
            && self.slope.is_finite()
            && self.intercept >= 0.0
            && self.slope >= 0.0
            && self.intercept + self.slope > 0.0
            && self.buckets.iter().all(is_sound)
            && self.buckets.is_sorted_by(|one, other| one.number < other.number)
    }
}
