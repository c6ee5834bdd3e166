//! How far predictions are off, learnt from what happened.
//!
//! A quantile of the ratio of what happened to what was predicted is followed step by step: up by much when it was exceeded,
//! down by a little when not, so that in the long run it is exceeded as seldom as it should be, whatever the predictions are
//! worth (conformal inference under change: Gibbs and Candès 2021).

/// Steps, in the logarithm of the ratio, that a quantile goes up and down together; the first ones are larger.
const STEP: f64 = 0.15;
const FIRST_STEP: f64 = 1.0;
/// No prediction is off by more than e to this.
const MOST: f64 = 8.0;

/// Of one model.
#[derive(Clone, Debug)]
pub(super) struct Correction {
    middle: Quantile,
    upper: Quantile,
}

impl Default for Correction {
    fn default() -> Self {
        Self { middle: Quantile::new(0.5, 0.0), upper: Quantile::new(UPPER, 1.0) }
    }
}

/// A little more than what is said, which is what seldom steps and a change of the load take.
const UPPER: f64 = 0.955;

#[derive(Clone, Debug)]
struct Quantile {
    part: f64,
    log_ratio: f64,
    seen: u32,
}

impl Quantile {
    fn new(part: f64, log_ratio: f64) -> Self {
        Self { part, log_ratio, seen: 0 }
    }

    fn learn(&mut self, log_ratio: f64) {
        self.seen = self.seen.saturating_add(1);
        let step = STEP.max(FIRST_STEP / f64::from(self.seen).sqrt());
        let change = if log_ratio > self.log_ratio { self.part } else { self.part - 1.0 };
        self.log_ratio = (self.log_ratio + step * change).clamp(-MOST, MOST);
    }
}

impl Correction {
    /// A wait was predicted to be so long, and was so long. `scale_us` is what does not matter.
    pub(super) fn learn(&mut self, predicted_us: f64, waited_us: f64, scale_us: f64) {
        let log_ratio = ((waited_us + scale_us) / (predicted_us + scale_us)).ln();
        self.middle.learn(log_ratio);
        self.upper.learn(log_ratio);
    }

    /// The middle of how long a task waits that is predicted to wait so long, and what 95 of 100 wait at most.
    pub(super) fn of(&self, predicted_us: f64, scale_us: f64) -> (f64, f64) {
        let at = |quantile: &Quantile| ((predicted_us + scale_us) * quantile.log_ratio.exp() - scale_us).max(0.0);
        let middle = at(&self.middle);
        (middle, at(&self.upper).max(middle))
    }
}

#[cfg(test)]
mod tests {
    use super::Correction;

    #[test]
    fn quantiles_are_held_also_after_everything_changed() {
        let mut correction = Correction::default();
        let mut state = 7_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        };
        let mut covered = [0, 0, 0];
        for turn in 0..6_000 {
            let predicted = 1_000.0 + 9_000.0 * draw();
            // Off by a factor, and by chance; later by another factor.
            let factor = if turn < 3_000 { 0.5 } else { 6.0 };
            let waited = predicted * factor * (-draw().ln());
            let (middle, upper) = correction.of(predicted, 1.0);
            if turn >= 5_000 || (2_000..3_000).contains(&turn) {
                covered[0] += 1;
                covered[1] += usize::from(waited <= middle);
                covered[2] += usize::from(waited <= upper);
            }
            correction.learn(predicted, waited, 1.0);
        }
        let part = |count: usize| count as f64 / covered[0] as f64;
        assert!((0.45..=0.55).contains(&part(covered[1])), "{}", part(covered[1]));
        assert!((0.93..=0.975).contains(&part(covered[2])), "{}", part(covered[2]));
    }
}
