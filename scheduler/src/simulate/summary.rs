//! Means over seeds, and how far to trust them.

use serde::Serialize;

/// A mean and half the width of its 95 % confidence interval, by Student's distribution; none for one seed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Interval {
    pub mean: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ci95: Option<f64>,
}

/// The 97.5 % quantile of Student's distribution, by degrees of freedom from 1 on; then the normal one, which is 2 %
/// less than the true one at the first.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
const NORMAL: f64 = 1.960;

impl Interval {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let ci95 = (values.len() > 1).then(|| {
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
            STUDENT.get(values.len() - 2).copied().unwrap_or(NORMAL) * (variance / count).sqrt()
        });
        Some(Self { mean, ci95 })
    }
}

/// The value below which so much of them lies; they are in order. 0 without any.
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or(0)
}

/// How evenly something is spread: 1 when all are the same, 1/n when one has it all.
pub fn jain(values: &[f64]) -> f64 {
    let (sum, squares) = values.iter().fold((0.0, 0.0), |(sum, squares), value| (sum + value, squares + value * value));
    if squares > 0.0 { sum * sum / (values.len() as f64 * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        let interval = Interval::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!(interval.mean, 3.0);
        // s = 1.5811, s/√5 = 0.7071, t(4) = 2.776.
        assert!((interval.ci95.unwrap() - 1.963).abs() < 1e-3);
        assert_eq!(Interval::of(&[7.0]), Some(Interval { mean: 7.0, ci95: None }));
        assert_eq!(Interval::of(&[]), None);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let sorted: Vec<u64> = (1..=1000).collect();
        assert_eq!([0.5, 0.99, 0.999, 1.0].map(|share| quantile(&sorted, share)), [500, 990, 999, 1000]);
        assert_eq!(quantile(&[], 0.5), 0);
        assert_eq!(quantile(&[9], 0.001), 9);
    }

    #[test]
    fn jains_index_is_one_for_the_same_and_a_part_for_all_to_one() {
        assert_eq!(jain(&[2.0, 2.0, 2.0]), 1.0);
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25);
    }
}
