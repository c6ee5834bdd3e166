//! How good the estimates were that tasks were admitted with.

use serde::{Deserialize, Serialize};

use super::Estimate;

/// Sums over the tasks that succeeded. Shares and errors are made of them.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Calibration {
    pub tasks: u64,
    /// Those that ran no longer than the 95 % quantile stated when they were admitted.
    pub covered: u64,
    /// Σ run time.
    pub ran_seconds: f64,
    /// Σ mean stated.
    pub expected_seconds: f64,
    /// Σ |run time − mean stated|.
    pub error_seconds: f64,
}

impl Calibration {
    pub(super) fn count(&mut self, said: Estimate, seconds: f64) {
        self.tasks += 1;
        self.covered += u64::from(seconds <= said.q95_seconds);
        self.ran_seconds += seconds;
        self.expected_seconds += said.mean_seconds;
        self.error_seconds += (seconds - said.mean_seconds).abs();
    }

    /// Share of the tasks that ran no longer than the stated 95 % quantile; `None` before the first.
    pub fn coverage(&self) -> Option<f64> {
        (self.tasks > 0).then(|| self.covered as f64 / self.tasks as f64)
    }

    /// Σ |run time − expected| ÷ Σ run time; `None` before the first.
    pub fn relative_error(&self) -> Option<f64> {
        (self.tasks > 0).then(|| self.error_seconds / self.ran_seconds)
    }

    /// Σ expected ÷ Σ run time; `None` before the first.
    pub fn bias(&self) -> Option<f64> {
        (self.tasks > 0).then(|| self.expected_seconds / self.ran_seconds)
    }

    /// This and another together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            tasks: self.tasks + other.tasks,
            covered: self.covered + other.covered,
            ran_seconds: self.ran_seconds + other.ran_seconds,
            expected_seconds: self.expected_seconds + other.expected_seconds,
            error_seconds: self.error_seconds + other.error_seconds,
        }
    }
}
