//! A linear classifier on sentence vectors: softmax(weights . vector + bias).

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::OnnxError;

/// Labels and weights of one classifier. Share it behind an `Arc`; many heads can use one encoder.
#[derive(Debug)]
pub struct Head {
    name: String,
    labels: Vec<String>,
    dimensions: usize,
    /// One row of `dimensions` numbers per label.
    weights: Vec<f32>,
    bias: Vec<f32>,
    path: PathBuf,
}

/// The `.head.json` file; what else it says about the training is for its readers.
#[derive(Deserialize)]
struct Description {
    name: String,
    labels: Vec<String>,
    dimensions: usize,
    weights: String,
}

impl Head {
    /// Loads `<name>.head.json` and the file of numbers it names, which lies beside it: little-endian f32, the
    /// weights row by row, then the bias.
    pub fn load(path: &Path) -> Result<Self, OnnxError> {
        let text = std::fs::read(path).map_err(|source| OnnxError::from_io(path, source))?;
        let description: Description = serde_json::from_slice(&text)
            .map_err(|error| OnnxError::invalid_file(path, format!("not a valid head: {error}")))?;
        description.check().map_err(|reason| OnnxError::invalid_file(path, reason))?;

        let weights_path = path.with_file_name(&description.weights);
        let mut weights = description.read_numbers(&weights_path)?;
        let bias = weights.split_off(weights.len() - description.labels.len());
        let Description { name, labels, dimensions, .. } = description;
        Ok(Self { name, labels, dimensions, weights, bias, path: path.to_path_buf() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Length of the vectors it takes: the encoder's.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The probability of every label, in the order of the labels.
    pub fn scores(&self, vector: &[f32]) -> Result<Vec<f32>, OnnxError> {
        if vector.len() != self.dimensions {
            let reason = format!("takes vectors of {} numbers, not of {}", self.dimensions, vector.len());
            return Err(OnnxError::wrong_shape(&self.path, reason));
        }
        let rows = self.weights.chunks_exact(self.dimensions);
        let logits: Vec<f32> = rows.zip(&self.bias).map(|(row, bias)| dot(row, vector) + bias).collect();
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(OnnxError::run_failed(&self.path, "the scores are not finite"));
        }
        Ok(softmax(logits))
    }

    /// The `top` likeliest labels with their probabilities, best first; equals in the order of the labels.
    pub fn classify(&self, vector: &[f32], top: usize) -> Result<Vec<(&str, f32)>, OnnxError> {
        let scores = self.scores(vector)?;
        let mut ranked: Vec<(&str, f32)> = self.labels.iter().map(String::as_str).zip(scores).collect();
        ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
        ranked.truncate(top);
        Ok(ranked)
    }
}

impl Description {
    fn check(&self) -> Result<(), String> {
        if self.labels.len() < 2 {
            return Err(format!("a head needs at least two labels, not {}", self.labels.len()));
        }
        if self.dimensions == 0 {
            return Err("dimensions must be greater than 0".to_owned());
        }
        let mut seen = HashSet::new();
        if let Some(twice) = self.labels.iter().find(|label| !seen.insert(label.as_str())) {
            return Err(format!("the label {twice:?} is there twice"));
        }
        let mut parts = Path::new(&self.weights).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(_)), None) => Ok(()),
            _ => Err(format!("weights must name a file beside this one, not {:?}", self.weights)),
        }
    }

    fn read_numbers(&self, path: &Path) -> Result<Vec<f32>, OnnxError> {
        let labels = self.labels.len();
        let expected = self
            .dimensions
            .checked_add(1)
            .and_then(|row| row.checked_mul(labels))
            .and_then(|count| count.checked_mul(size_of::<f32>()));
        let length = std::fs::metadata(path).map_err(|source| OnnxError::from_io(path, source))?.len();
        if expected.and_then(|expected| u64::try_from(expected).ok()) != Some(length) {
            let dimensions = self.dimensions;
            let reason = format!(
                "has {length} bytes; {labels} labels of {dimensions} dimensions and a bias take {}",
                expected.map_or_else(|| "more than there can be".to_owned(), |expected| expected.to_string()),
            );
            return Err(OnnxError::wrong_shape(path, reason));
        }
        let bytes = std::fs::read(path).map_err(|source| OnnxError::from_io(path, source))?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        let numbers: Vec<f32> = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
        if !rest.is_empty() || numbers.len() < labels {
            return Err(OnnxError::invalid_file(path, "changed while it was read"));
        }
        match numbers.iter().position(|number| !number.is_finite()) {
            Some(place) => Err(OnnxError::invalid_file(path, format!("number {place} is not finite"))),
            None => Ok(numbers),
        }
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// Exponentials over their sum; taking the greatest logit off first keeps them from overflowing.
fn softmax(mut logits: Vec<f32>) -> Vec<f32> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|logit| *logit = (*logit - greatest).exp());
    let sum: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|logit| *logit /= sum);
    logits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head in a folder of its own, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, description: &str, numbers: &[f32]) -> Self {
            let folder = std::env::temp_dir().join(format!("taskyard-head-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("a.head.json"), description).unwrap();
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            std::fs::write(folder.join("a.head.f32"), bytes).unwrap();
            Self(folder)
        }

        fn load(&self) -> Result<Head, OnnxError> {
            Head::load(&self.0.join("a.head.json"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const TWO: &str = r#"{"name": "a", "labels": ["x", "y"], "dimensions": 2, "weights": "a.head.f32"}"#;

    #[test]
    fn the_heads_of_the_project_load() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/heads");
        for (name, labels) in [("banking77", 77), ("finance-sentiment", 3)] {
            let head = Head::load(&folder.join(format!("{name}.head.json"))).unwrap();
            assert_eq!((head.name(), head.labels().len(), head.dimensions()), (name, labels, 384));
        }
    }

    #[test]
    fn scores_are_a_softmax_best_first_and_survive_great_logits() {
        let scratch = Scratch::new("softmax", TWO, &[1.0, 0.0, 0.0, 1e3, 0.0, 1.0]);
        let head = scratch.load().unwrap();
        assert_eq!(head.classify(&[0.0, 1.0], 5).unwrap(), [("y", 1.0), ("x", 0.0)]);
        let ranked = head.classify(&[1.0, 0.0], 1).unwrap();
        assert_eq!(ranked, [("x", 0.5)]);
        assert!(matches!(head.classify(&[1.0], 1), Err(OnnxError::WrongShape { .. })));
        assert!(matches!(head.classify(&[f32::NAN, 0.0], 1), Err(OnnxError::RunFailed { .. })));
    }

    #[test]
    fn broken_heads_are_refused_by_name() {
        let good = [0.0; 6];
        let cases: [(&str, String, &[f32], &str); 8] = [
            ("json", "{".to_owned(), &good, "a.head.json: not a valid head"),
            ("short", TWO.to_owned(), &good[..5], "a.head.f32: has 20 bytes"),
            ("nan", TWO.to_owned(), &[0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0], "a.head.f32: number 1 is not finite"),
            ("twice", TWO.replace("\"y\"", "\"x\""), &good, "the label \"x\" is there twice"),
            ("one", TWO.replace(", \"y\"", ""), &good, "at least two labels"),
            ("zero", TWO.replace(": 2", ": 0"), &good, "dimensions must be greater than 0"),
            ("huge", TWO.replace(": 2", ": 18446744073709551615"), &good, "more than there can be"),
            ("outside", TWO.replace("a.head.f32", "../a.head.f32"), &good, "must name a file beside this one"),
        ];
        for (name, description, numbers, expected) in cases {
            let error = Scratch::new(name, &description, numbers).load().unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let missing = Scratch::new("missing", &TWO.replace("a.head.f32", "b.head.f32"), &good).load();
        assert!(matches!(missing, Err(OnnxError::FileMissing { .. })));
    }
}
