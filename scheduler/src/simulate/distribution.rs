//! Random times with a stated mean and spread.

use std::f64::consts::TAU;

use fastrand::Rng;
use serde::Deserialize;

/// How service times are spread around their mean.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(tag = "distribution", rename_all = "snake_case", deny_unknown_fields)]
pub enum Service {
    Fixed {
        mean_ms: f64,
    },
    Exponential {
        mean_ms: f64,
    },
    /// `cv` is the standard deviation over the mean.
    Lognormal {
        mean_ms: f64,
        cv: f64,
    },
    /// Two exponentials with balanced means; `cv` is at least 1.
    HyperExponential {
        mean_ms: f64,
        cv: f64,
    },
    /// The heavy tail: P(T > t) falls as t^−alpha. `alpha` is over 1; the variance is finite over 2 only.
    Pareto {
        mean_ms: f64,
        alpha: f64,
    },
}

impl Service {
    pub fn mean_seconds(&self) -> f64 {
        let (Self::Fixed { mean_ms }
        | Self::Exponential { mean_ms }
        | Self::Lognormal { mean_ms, .. }
        | Self::HyperExponential { mean_ms, .. }
        | Self::Pareto { mean_ms, .. }) = *self;
        mean_ms / 1e3
    }

    /// Seconds.
    pub fn draw(&self, rng: &mut Rng) -> f64 {
        let mean = self.mean_seconds();
        match *self {
            Self::Fixed { .. } => mean,
            Self::Exponential { .. } => mean * exponential(rng),
            Self::Lognormal { cv, .. } => mean * lognormal(rng, cv),
            Self::HyperExponential { cv, .. } => {
                let often = 0.5 * (1.0 + ((cv * cv - 1.0) / (cv * cv + 1.0)).max(0.0).sqrt());
                let share = if rng.f64() < often { often } else { 1.0 - often };
                mean * exponential(rng) / (2.0 * share)
            }
            Self::Pareto { alpha, .. } => mean * (1.0 - 1.0 / alpha) * (1.0 - rng.f64()).powf(-1.0 / alpha),
        }
    }

    /// What is wrong with the parameters.
    pub fn fault(&self) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.mean_seconds()) {
            return Some("mean_ms must be a number over 0".to_owned());
        }
        match *self {
            Self::Lognormal { cv, .. } if !positive(cv) => Some("cv must be a number over 0".to_owned()),
            Self::HyperExponential { cv, .. } if !(cv.is_finite() && cv >= 1.0) => {
                Some("cv of a hyper-exponential must be at least 1".to_owned())
            }
            Self::Pareto { alpha, .. } if !(alpha.is_finite() && alpha > 1.0) => {
                Some("alpha must be over 1, or there is no mean".to_owned())
            }
            _ => None,
        }
    }
}

/// Mean 1.
pub fn exponential(rng: &mut Rng) -> f64 {
    // 1 − u is never zero.
    -(1.0 - rng.f64()).ln()
}

/// Mean 0, variance 1 (Box and Muller).
pub fn normal(rng: &mut Rng) -> f64 {
    (2.0 * exponential(rng)).sqrt() * (TAU * rng.f64()).cos()
}

/// Mean 1.
pub fn lognormal(rng: &mut Rng, cv: f64) -> f64 {
    let variance = (1.0 + cv * cv).ln();
    (variance.sqrt() * normal(rng) - variance / 2.0).exp()
}

/// Mean 1 (Marsaglia and Tsang; below a shape of 1 by the usual power of a uniform number).
pub fn gamma(rng: &mut Rng, cv: f64) -> f64 {
    let shape = 1.0 / (cv * cv);
    let boost = if shape < 1.0 { (1.0 - rng.f64()).powf(1.0 / shape) } else { 1.0 };
    let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.f64()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return boost * d * v / shape;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(draw: impl Fn(&mut Rng) -> f64) -> (f64, f64) {
        let mut rng = Rng::with_seed(7);
        let draws: Vec<f64> = (0..400_000).map(|_| draw(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn each_has_the_mean_and_the_spread_it_states() {
        let mean_ms = 200.0;
        for (service, cv) in [
            (Service::Fixed { mean_ms }, 0.0),
            (Service::Exponential { mean_ms }, 1.0),
            (Service::Lognormal { mean_ms, cv: 1.5 }, 1.5),
            (Service::HyperExponential { mean_ms, cv: 2.0 }, 2.0),
            // alpha/(alpha − 2) − … : the squared spread is 1/(alpha·(alpha − 2)).
            (Service::Pareto { mean_ms, alpha: 5.0 }, (1.0f64 / 15.0).sqrt()),
        ] {
            let (mean, spread) = moments(|rng| service.draw(rng));
            assert!((mean / 0.2 - 1.0).abs() < 0.02, "{service:?}: mean {mean}");
            assert!((spread - cv).abs() < 0.05 * cv + 1e-9, "{service:?}: {spread}");
        }
        for cv in [0.25, 1.0, 4.0] {
            let (mean, spread) = moments(|rng| gamma(rng, cv));
            assert!((mean - 1.0).abs() < 0.03 && (spread / cv - 1.0).abs() < 0.05, "gamma {cv}: {mean}, {spread}");
        }
    }

    #[test]
    fn parameters_that_mean_nothing_are_named() {
        let mean_ms = 1.0;
        assert!(Service::Fixed { mean_ms: f64::NAN }.fault().is_some());
        assert!(Service::Exponential { mean_ms: -1.0 }.fault().is_some());
        assert!(Service::Pareto { mean_ms, alpha: 1.0 }.fault().is_some_and(|fault| fault.contains("alpha")));
        assert!(Service::HyperExponential { mean_ms, cv: 0.5 }.fault().is_some());
        assert!(Service::Lognormal { mean_ms, cv: 1.0 }.fault().is_none());
    }
}
