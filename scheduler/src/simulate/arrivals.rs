//! When tasks come: times with a mean of one task a unit, to be stretched to the load that is wanted.

use fastrand::Rng;
use serde::Deserialize;

use super::distribution::{exponential, gamma};

/// An arrival process.
// The empty braces make serde refuse keys that a process does not have.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(tag = "process", rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// Times as the trace has them.
    Trace {},
    /// Exponential gaps.
    Poisson {},
    /// Gaps from a Gamma distribution; `cv` is their standard deviation over their mean.
    Gamma { cv: f64 },
    /// Poisson while on, nothing while off. Both last an exponential time with these means, counted in tasks that come
    /// at the mean rate meanwhile.
    OnOff { on_tasks: f64, off_tasks: f64 },
}

impl Default for Arrivals {
    fn default() -> Self {
        Self::Poisson {}
    }
}

impl Arrivals {
    /// Times of so many arrivals, in order, one a unit of time on average.
    pub fn draw(&self, count: usize, rng: &mut Rng) -> Vec<f64> {
        let mut now = 0.0;
        match *self {
            Self::Trace {} | Self::Poisson {} => times(count, || {
                now += exponential(rng);
                now
            }),
            Self::Gamma { cv } => times(count, || {
                now += gamma(rng, cv);
                now
            }),
            Self::OnOff { on_tasks, off_tasks } => {
                let rate = (on_tasks + off_tasks) / on_tasks;
                let mut ends = on_tasks * exponential(rng);
                times(count, || {
                    let mut gap = exponential(rng) / rate;
                    // What is left of the gap goes on after the pause.
                    while now + gap > ends {
                        gap -= ends - now;
                        now = ends + off_tasks * exponential(rng);
                        ends = now + on_tasks * exponential(rng);
                    }
                    now += gap;
                    now
                })
            }
        }
    }

    /// What is wrong with the parameters.
    pub fn fault(&self) -> Option<&'static str> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match *self {
            Self::Gamma { cv } if !positive(cv) => Some("cv must be a number over 0"),
            Self::OnOff { on_tasks, off_tasks } if !positive(on_tasks) || !positive(off_tasks) => {
                Some("on_tasks and off_tasks must be numbers over 0")
            }
            _ => None,
        }
    }
}

fn times(count: usize, mut next: impl FnMut() -> f64) -> Vec<f64> {
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_has_one_task_a_unit_and_its_own_bursts() {
        for (process, cv, tolerance) in [
            (Arrivals::Poisson {}, 1.0, 0.02),
            (Arrivals::Gamma { cv: 4.0 }, 4.0, 0.4),
            (Arrivals::OnOff { on_tasks: 50.0, off_tasks: 50.0 }, 7.0, 1.5),
        ] {
            let times = process.draw(400_000, &mut Rng::with_seed(3));
            assert!(times.is_sorted());
            let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((mean - 1.0).abs() < 0.05, "{process:?}: {mean}");
            let spread = variance.sqrt() / mean;
            assert!((spread - cv).abs() < tolerance, "{process:?}: {spread}");
        }
    }
}
