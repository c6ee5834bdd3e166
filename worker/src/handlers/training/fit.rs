//! Multinomial logistic regression on sentence vectors, a few iterations at a time, so that it can report, be stopped and go on
//! from where it was.

use linfa::Dataset;
use linfa::prelude::Fit;
use linfa_logistic::MultiLogisticRegression;
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// Iterations between two looks around.
pub(super) const ROUND: u64 = 10;
/// It has ended when a round takes less than this part off the loss.
const TOLERANCE: f64 = 1e-4;

/// Weights and biases: a row for each number of the vectors and one for the biases, a column for each label.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Weights(pub Array2<f32>);

impl Weights {
    /// As heads have them: the weights label by label, then the biases; little-endian f32.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (weights, biases) = self.parts();
        weights.t().iter().chain(biases).flat_map(|number| number.to_le_bytes()).collect()
    }

    /// # Errors
    /// When it is not so many numbers, or they are none.
    pub fn from_bytes(bytes: &[u8], dimensions: usize, labels: usize) -> Result<Self, String> {
        let (numbers, rest) = bytes.as_chunks::<4>();
        let numbers: Vec<f32> = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
        if !rest.is_empty() || numbers.len() != (dimensions + 1) * labels {
            return Err(format!("has {} bytes, and {labels} labels of {dimensions} numbers take others", bytes.len()));
        }
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err("holds what is no number".to_owned());
        }
        let at = |row: usize, column: usize| match row == dimensions {
            true => dimensions * labels + column,
            false => column * dimensions + row,
        };
        Ok(Self(Array2::from_shape_fn((dimensions + 1, labels), |(row, column)| numbers[at(row, column)])))
    }

    fn parts(&self) -> (ArrayView2<'_, f32>, ndarray::ArrayView1<'_, f32>) {
        let last = self.0.nrows() - 1;
        (self.0.view().split_at(Axis(0), last).0, self.0.row(last))
    }

    /// The logarithms of the labels' probabilities, a row for each vector.
    fn log_probabilities(&self, vectors: &Array2<f32>) -> Array2<f32> {
        let (weights, biases) = self.parts();
        let mut logits = vectors.dot(&weights) + biases;
        for mut row in logits.axis_iter_mut(Axis(0)) {
            let most = row.fold(f32::NEG_INFINITY, |most, logit| most.max(*logit));
            let sum: f32 = row.iter().map(|logit| (logit - most).exp()).sum();
            row -= most + sum.ln();
        }
        logits
    }
}

/// Vectors, a row each, and the numbers of their labels.
pub(super) struct Examples {
    data: Dataset<f32, usize, ndarray::Ix1>,
    labels: usize,
}

impl Examples {
    pub fn new(vectors: Array2<f32>, of: Vec<usize>, labels: usize) -> Self {
        Self { data: Dataset::new(vectors, Array1::from_vec(of)), labels }
    }

    fn dimensions(&self) -> usize {
        self.data.records.ncols()
    }

    /// The mean loss of a label, in nats, without what the weights cost.
    pub fn loss(&self, weights: &Weights) -> f64 {
        let logs = weights.log_probabilities(&self.data.records);
        let of = self.data.targets.iter();
        let sum: f64 = logs.axis_iter(Axis(0)).zip(of).map(|(row, label)| -f64::from(row[*label])).sum();
        sum / (self.data.targets.len() as f64).max(1.0)
    }

    /// Up to [`ROUND`] iterations of L-BFGS from some weights on, or from nothing.
    ///
    /// # Errors
    /// When the numbers get out of hand.
    pub fn improve(&self, from: Option<&Weights>, iterations: u64, l2: f64) -> Result<Weights, String> {
        let from = from.cloned().unwrap_or_else(|| Weights(Array2::zeros((self.dimensions() + 1, self.labels))));
        let fit = MultiLogisticRegression::default()
            .alpha(l2 as f32)
            .max_iterations(iterations.min(ROUND))
            .gradient_tolerance(1e-4)
            .initial_params(from.0)
            .fit(&self.data)
            .map_err(|failure| failure.to_string())?;
        let mut weights = Array2::zeros((self.dimensions() + 1, self.labels));
        weights.view_mut().split_at(Axis(0), self.dimensions()).0.assign(fit.params());
        weights.row_mut(self.dimensions()).assign(fit.intercept());
        match weights.iter().all(|weight: &f32| weight.is_finite()) {
            true => Ok(Weights(weights)),
            false => Err("the weights grew beyond all numbers".to_owned()),
        }
    }

    /// How well the likeliest label is the right one.
    pub fn measure(&self, weights: &Weights) -> Measured {
        let logs = weights.log_probabilities(&self.data.records);
        let (mut right, mut said, mut there) =
            (vec![0u32; self.labels], vec![0u32; self.labels], vec![0u32; self.labels]);
        for (row, label) in logs.axis_iter(Axis(0)).zip(self.data.targets.iter()) {
            // The first of equals, as whoever serves it has it.
            let best = row.iter().enumerate().fold(0, |best, (at, log)| if *log > row[best] { at } else { best });
            said[best] += 1;
            there[*label] += 1;
            right[*label] += u32::from(best == *label);
        }
        let rows = self.data.targets.len();
        let f1: Vec<f64> = (0..self.labels)
            .filter(|label| there[*label] + said[*label] > 0)
            .map(|label| 2.0 * f64::from(right[label]) / f64::from(there[label] + said[label]))
            .collect();
        let share = |part: f64, of: usize| if of == 0 { 0.0 } else { part / of as f64 };
        Measured {
            accuracy: share(f64::from(right.iter().sum::<u32>()), rows),
            macro_f1: share(f1.iter().sum(), f1.len()),
            loss: self.loss(weights),
        }
    }
}

/// On rows that were not learnt from.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub(super) struct Measured {
    /// The part of the rows whose likeliest label is the right one.
    pub accuracy: f64,
    /// The mean over labels of the harmonic mean of precision and recall.
    pub macro_f1: f64,
    /// Mean, in nats.
    pub loss: f64,
}

/// Whether a round is worth another, by the loss before and after it.
pub(super) fn goes_on(before: f64, after: f64) -> bool {
    before - after > TOLERANCE * before.abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points around as many centres, which can be told apart but for some.
    fn examples(seed: u64, rows: usize, labels: usize, noise: f32) -> Examples {
        let mut centres = fastrand::Rng::with_seed(7);
        let centres = Array2::from_shape_fn((labels, 8), |_| centres.f32() - 0.5);
        let mut random = fastrand::Rng::with_seed(seed);
        let of: Vec<usize> = (0..rows).map(|at| at % labels).collect();
        let vectors =
            Array2::from_shape_fn((rows, 8), |(row, at)| centres[[of[row], at]] + (random.f32() - 0.5) * noise);
        Examples::new(vectors, of, labels)
    }

    #[test]
    fn it_learns_what_can_be_learnt_and_no_more_from_the_end_on() {
        let learnt = examples(1, 600, 3, 1.0);
        let (mut weights, mut losses) = (None, vec![(3.0f64).ln()]);
        for _ in 0..30 {
            let next = learnt.improve(weights.as_ref(), ROUND, 0.1).unwrap();
            losses.push(learnt.loss(&next));
            weights = Some(next);
            if !goes_on(losses[losses.len() - 2], losses[losses.len() - 1]) {
                break;
            }
        }
        assert!(losses.len() < 30, "it ends: {losses:?}");
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0] + 1e-3), "{losses:?}");
        let tested = examples(2, 300, 3, 1.0).measure(weights.as_ref().unwrap());
        assert!(tested.accuracy > 0.9 && tested.macro_f1 > 0.9, "{tested:?}");
        let noise = examples(3, 300, 3, 1000.0).measure(weights.as_ref().unwrap());
        assert!(noise.accuracy < 0.5, "{noise:?}");
    }

    #[test]
    fn two_halves_of_a_run_come_to_where_the_whole_does() {
        let learnt = examples(1, 300, 4, 1.5);
        let run = |mut weights: Option<Weights>, rounds: usize| {
            for _ in 0..rounds {
                weights = Some(learnt.improve(weights.as_ref(), ROUND, 1.0).unwrap());
            }
            weights.unwrap()
        };
        let half = run(None, 2);
        let kept = Weights::from_bytes(&half.to_bytes(), 8, 4).unwrap();
        assert_eq!(kept, half, "what is kept is what there was");
        assert_eq!(run(Some(kept), 2), run(None, 4));
    }

    #[test]
    fn weights_that_are_none_are_refused() {
        assert!(Weights::from_bytes(&[0; 24], 2, 2).is_ok());
        for bytes in [&[0u8; 23][..], &[0; 20], &[]] {
            assert!(Weights::from_bytes(bytes, 2, 2).is_err());
        }
        assert!(Weights::from_bytes(&f32::NAN.to_le_bytes().repeat(6), 2, 2).is_err());
    }

    #[test]
    fn figures_are_those_of_the_textbook() {
        // Weights that say label 0 for a positive number and 1 for a negative one.
        let weights = Weights(ndarray::array![[1.0, -1.0], [0.0, 0.0]]);
        let vectors = ndarray::array![[1.0f32], [2.0], [-1.0], [3.0]];
        let measured = Examples::new(vectors, vec![0, 0, 1, 1], 2).measure(&weights);
        assert!((measured.accuracy - 0.75).abs() < 1e-9);
        // Label 0: precision 2/3, recall 1. Label 1: precision 1, recall 1/2.
        assert!((measured.macro_f1 - (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-9, "{measured:?}");
        let loss = [-2.0f64, -4.0, -2.0, 6.0].map(|margin| margin.exp().ln_1p()).iter().sum::<f64>() / 4.0;
        assert!((measured.loss - loss).abs() < 1e-5, "{measured:?}");
    }
}
