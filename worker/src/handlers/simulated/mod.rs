//! A model that only takes time, for benchmarks and for trying out a yard.
//!
//! A task takes a time drawn with the mean `service_ms`; `{"service_ms": 20}` in its input sets another mean for this
//! task. `fixed` takes exactly the mean; `exponential` has a coefficient of variation of 1, `lognormal` (of shape 1) one
//! of 1.3 and a heavier tail. The output is the input. A batch takes as long as the longest of its tasks, as on a
//! processor that works on all of them at once. A task whose time is 0 does not wait at all.

mod timer;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use fastrand::Rng;
use serde::Deserialize;
use serde_json::value::RawValue;
use taskyard_shared::TaskError;
use taskyard_shared::process::settings::{Distribution, SimulatedSettings};

use crate::handler::{Answer, Handler, Job, codes, error};
use crate::handlers::LoadError;
use crate::handlers::answer::{bad_input, clean};

/// The longest mean; a week.
const MOST_MS: f64 = 7.0 * 24.0 * 3600.0 * 1000.0;

/// A model that waits.
pub struct SimulatedHandler {
    settings: SimulatedSettings,
    random: Mutex<Rng>,
}

impl SimulatedHandler {
    /// # Errors
    /// When a number is out of its range.
    pub fn new(name: &str, settings: &SimulatedSettings) -> Result<Self, LoadError> {
        Self::with_random(name, settings, Rng::new())
    }

    /// The same with given random numbers: the same seed gives the same times.
    ///
    /// # Errors
    /// When a number is out of its range.
    pub fn with_random(name: &str, settings: &SimulatedSettings, random: Rng) -> Result<Self, LoadError> {
        if !(0.0..=MOST_MS).contains(&settings.service_ms) {
            let reason = format!("simulated.service_ms must be from 0 to {MOST_MS}, not {}", settings.service_ms);
            return Err(LoadError::settings(name, reason));
        }
        if !(0.0..=1.0).contains(&settings.failure_ratio) {
            let reason = format!("simulated.failure_ratio must be from 0 to 1, not {}", settings.failure_ratio);
            return Err(LoadError::settings(name, reason));
        }
        Ok(Self { settings: settings.clone(), random: Mutex::new(random) })
    }

    /// What one task takes, in milliseconds, and whether it fails.
    fn draw(&self, mean_ms: f64) -> (f64, bool) {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let ms = match self.settings.distribution {
            Distribution::Fixed => mean_ms,
            // 1 - u is never 0, whose logarithm would be no time.
            Distribution::Exponential => -(1.0 - random.f64()).ln() * mean_ms,
            Distribution::Lognormal => {
                let (radius, angle) = ((-2.0 * (1.0 - random.f64()).ln()).sqrt(), std::f64::consts::TAU * random.f64());
                // The mean of exp(normal) is exp(1/2).
                mean_ms * (radius * angle.cos() - 0.5).exp()
            }
        };
        (ms, self.settings.failure_ratio > 0.0 && random.f64() < self.settings.failure_ratio)
    }
}

#[async_trait]
impl Handler for SimulatedHandler {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let start = Instant::now();
        let mut longest_ms = 0.0f64;
        let answers = batch
            .into_iter()
            .map(|job| {
                let mean_ms = mean_ms(&job.input)?.unwrap_or(self.settings.service_ms);
                let (ms, fails) = self.draw(mean_ms);
                longest_ms = longest_ms.max(ms);
                if fails { Err(error(codes::HANDLER_FAILED, "a simulated failure", true)) } else { Ok(job.input) }
            })
            .collect();
        // A lognormal time may be beyond every mean.
        timer::wait_until(start + Duration::from_secs_f64(longest_ms.min(MOST_MS) / 1000.0)).await;
        answers
    }
}

#[derive(Deserialize)]
struct Overrides {
    service_ms: Option<f64>,
}

/// The mean that the input asks for, if it does. Whatever else is in it is only echoed.
fn mean_ms(input: &RawValue) -> Result<Option<f64>, TaskError> {
    if !input.get().trim_start().starts_with('{') {
        return Ok(None);
    }
    let asked: Overrides =
        serde_json::from_str(input.get()).map_err(|error| bad_input(clean(error.to_string().as_bytes(), 300)))?;
    match asked.service_ms {
        Some(ms) if !(0.0..=MOST_MS).contains(&ms) => {
            Err(bad_input(format!("service_ms must be from 0 to {MOST_MS} milliseconds")))
        }
        ms => Ok(ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(distribution: Distribution, failure_ratio: f64) -> SimulatedHandler {
        let settings = SimulatedSettings { service_ms: 5.0, distribution, failure_ratio };
        SimulatedHandler::with_random("pause", &settings, Rng::with_seed(7)).unwrap()
    }

    #[test]
    fn every_distribution_has_the_mean_and_spread_it_says() {
        for (distribution, variation) in
            [(Distribution::Fixed, 0.0), (Distribution::Exponential, 1.0), (Distribution::Lognormal, 1.31)]
        {
            let handler = handler(distribution, 0.25);
            let drawn: Vec<(f64, bool)> = (0..200_000).map(|_| handler.draw(3.0)).collect();
            let count = drawn.len() as f64;
            let mean = drawn.iter().map(|(ms, _)| ms).sum::<f64>() / count;
            let variance = drawn.iter().map(|(ms, _)| (ms - mean).powi(2)).sum::<f64>() / count;
            let failed = drawn.iter().filter(|(_, fails)| *fails).count() as f64 / count;
            assert!((mean - 3.0).abs() < 0.05, "{distribution:?}: a mean of {mean}");
            assert!((variance.sqrt() / mean - variation).abs() < 0.1, "{distribution:?}: {}", variance.sqrt() / mean);
            assert!((failed - 0.25).abs() < 0.01, "{failed}");
            assert!(drawn.iter().all(|(ms, _)| ms.is_finite() && *ms >= 0.0));
        }
    }

    #[test]
    fn the_input_may_set_its_own_mean() {
        let read = |text: &str| mean_ms(&RawValue::from_string(text.to_owned()).unwrap());
        assert_eq!(read(r#"{"service_ms": 20, "more": [1]}"#).unwrap(), Some(20.0));
        for text in ["null", "[1]", "\"service_ms\"", "{}", r#"{"service_ms": null}"#] {
            assert_eq!(read(text).unwrap(), None, "{text}");
        }
        for text in [r#"{"service_ms": "2"}"#, r#"{"service_ms": -1}"#, r#"{"service_ms": 1e300}"#] {
            assert_eq!(read(text).unwrap_err().code, codes::BAD_INPUT, "{text}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        for (service_ms, failure_ratio, key) in
            [(-1.0, 0.0, "service_ms"), (f64::NAN, 0.0, "service_ms"), (1.0, 1.5, "failure_ratio")]
        {
            let settings = SimulatedSettings { service_ms, distribution: Distribution::Fixed, failure_ratio };
            let refused = SimulatedHandler::new("pause", &settings).err().unwrap().to_string();
            assert!(refused.contains("model pause") && refused.contains(key), "{refused}");
        }
    }
}
