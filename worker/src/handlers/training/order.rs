//! What a training task asks for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use taskyard_shared::artifacts::Reference;

use crate::handlers::rows;

/// The input of a training task.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// Of what is made: its files are named after it.
    pub name: String,
    /// Texts with their labels; those it is tested on are set apart unless there are `test_rows`.
    pub rows: Rows,
    #[serde(default)]
    pub test_rows: Option<Rows>,
    /// The part of `rows` that it is tested on and does not learn from.
    #[serde(default = "a_fifth")]
    pub held_out: f64,
    /// How much large weights cost: the sum of their squares, halved and times this, is added to the sum of the losses.
    #[serde(default = "a_tenth")]
    pub l2: f64,
    #[serde(default = "two_hundred")]
    pub max_iterations: u64,
    /// It goes on from the weights of a run on the same labels: what that named as its `weights`.
    #[serde(default)]
    pub warm_start: Option<Reference>,
    /// Given back with the result: what a search tried, for instance.
    #[serde(default)]
    pub note: Option<Box<RawValue>>,
}

fn a_fifth() -> f64 {
    0.2
}
fn a_tenth() -> f64 {
    0.1
}
fn two_hundred() -> u64 {
    200
}

/// In the task itself; or an artifact, or several after another: a JSON array, or one row a line.
#[derive(Deserialize, Debug)]
#[serde(untagged)]
pub(super) enum Rows {
    Here(Vec<Row>),
    There(Reference),
    Parts(Vec<Reference>),
}

/// A row may say more than this, which is passed over.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub text: String,
    pub label: String,
}

/// Longest name, with which a file's name begins; bytes.
const NAME_BYTES: usize = 100;
const ITERATIONS_MOST: u64 = 10_000;

impl Order {
    /// # Errors
    /// What is wrong with it, for whoever sent it.
    pub fn read(input: &RawValue) -> Result<Self, String> {
        let order: Self = serde_json::from_str(input.get()).map_err(|bad| bad.to_string())?;
        let name = order.name.as_bytes();
        let is_name = name.first().is_some_and(u8::is_ascii_alphanumeric)
            && name.len() <= NAME_BYTES
            && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
        if !is_name {
            return Err(format!("name must match [A-Za-z0-9][A-Za-z0-9._-]{{0,{}}}", NAME_BYTES - 1));
        }
        if !(order.held_out > 0.0 && order.held_out < 1.0) {
            return Err(format!("held_out must be above 0 and under 1, not {}", order.held_out));
        }
        if !(order.l2 >= 0.0 && order.l2 <= 1e9) {
            return Err(format!("l2 must be from 0 to 1e9, not {}", order.l2));
        }
        if !(1..=ITERATIONS_MOST).contains(&order.max_iterations) {
            return Err(format!("max_iterations must be from 1 to {ITERATIONS_MOST}, not {}", order.max_iterations));
        }
        Ok(order)
    }
}

/// Rows as an artifact has them, no more than `most`.
///
/// # Errors
/// Where it is not what it should be.
pub(super) fn read_rows(content: &[u8], most: usize) -> Result<Vec<Row>, String> {
    let mut found = Vec::new();
    rows::each(content, |row| {
        if found.len() >= most {
            return Err("there are more rows than training.max_rows allows, with those to test on".to_owned());
        }
        found.push(serde_json::from_slice(row).map_err(|bad| bad.to_string())?);
        Ok(())
    })?;
    Ok(found)
}

/// The rows with their labels as numbers, in the order of the labels.
pub(super) struct Labelled {
    /// In the order of their bytes.
    pub labels: Vec<String>,
    pub texts: Vec<String>,
    pub of: Vec<usize>,
}

impl Labelled {
    /// # Errors
    /// When there is nothing to be told apart.
    pub fn new(rows: Vec<Row>) -> Result<Self, String> {
        let mut numbers: BTreeMap<String, usize> = rows.iter().map(|row| (row.label.clone(), 0)).collect();
        if numbers.len() < 2 {
            return Err(format!("the rows to learn from have {} label(s), and two are the least", numbers.len()));
        }
        numbers.values_mut().enumerate().for_each(|(at, number)| *number = at);
        let (mut texts, mut of) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for Row { text, label } in rows {
            of.push(numbers.get(&label).copied().unwrap_or_default());
            texts.push(text);
        }
        Ok(Self { labels: numbers.into_keys().collect(), texts, of })
    }

    /// Those of the rows whose labels were learnt, and how many were not.
    pub fn to_test(&self, rows: Vec<Row>) -> (Self, usize) {
        let (mut texts, mut of, mut strange) = (Vec::new(), Vec::new(), 0);
        for Row { text, label } in rows {
            match self.labels.binary_search(&label) {
                Ok(number) => {
                    of.push(number);
                    texts.push(text);
                }
                Err(_) => strange += 1,
            }
        }
        (Self { labels: self.labels.clone(), texts, of }, strange)
    }
}

/// Sets rows apart to test on. The same text always goes the same way, wherever it stands and however often, so that nothing
/// that was learnt is asked.
pub(super) fn split(rows: Vec<Row>, held_out: f64) -> (Vec<Row>, Vec<Row>) {
    use sha2::{Digest, Sha256};

    let part = |row: &Row| {
        let digest: [u8; 32] = Sha256::digest(&row.text).into();
        let (first, _) = digest.split_at(8);
        first.iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte)) as f64 / u64::MAX as f64
    };
    rows.into_iter().partition(|row| part(row) >= held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> Result<Order, String> {
        Order::read(&RawValue::from_string(text.to_owned()).unwrap())
    }

    fn row(text: impl Into<String>, label: &str) -> Row {
        Row { text: text.into(), label: label.into() }
    }

    #[test]
    fn orders_that_make_no_sense_are_refused_with_what_is_wrong() {
        assert!(order(r#"{"name": "intents", "rows": [{"text": "a", "label": "b", "split": "train"}]}"#).is_ok());
        for (text, said) in [
            ("[]", "expected"),
            (r#"{"rows": []}"#, "name"),
            (r#"{"name": "a"}"#, "rows"),
            (r#"{"name": "a", "rows": [], "rate": 1}"#, "rate"),
            (r#"{"name": "../a", "rows": []}"#, "name must match"),
            (r#"{"name": "", "rows": []}"#, "name must match"),
            (r#"{"name": "a", "rows": "artifact:1"}"#, "Rows"),
            (r#"{"name": "a", "rows": [], "held_out": 0}"#, "held_out"),
            (r#"{"name": "a", "rows": [], "held_out": 1}"#, "held_out"),
            (r#"{"name": "a", "rows": [], "l2": -1}"#, "l2"),
            (r#"{"name": "a", "rows": [], "max_iterations": 0}"#, "max_iterations"),
        ] {
            let problem = order(text).unwrap_err();
            assert!(problem.contains(said), "{text}: {problem}");
        }
    }

    #[test]
    fn rows_are_an_array_or_lines() {
        let expected = [row("a", "x"), row("b", "y")];
        let lines = b"{\"text\":\"a\",\"label\":\"x\"}\n\n  {\"text\":\"b\",\"label\":\"y\",\"n\":1}\r\n";
        assert_eq!(read_rows(lines, 9).unwrap(), expected);
        let array = br#" [{"text":"a","label":"x"}, {"text":"b","label":"y"}]"#;
        assert_eq!(read_rows(array, 9).unwrap(), expected);
        assert_eq!(read_rows(b"", 0).unwrap(), []);
        assert!(read_rows(b"{\"text\":\"a\",\"label\":\"x\"}\n{}", 9).unwrap_err().starts_with("line 2: "));
        assert!(read_rows(array, 1).unwrap_err().contains("training.max_rows"));
    }

    #[test]
    fn labels_are_numbered_in_their_order_and_strange_ones_are_not_tested() {
        let learnt = Labelled::new(vec![row("a", "z"), row("b", "y"), row("c", "z")]).unwrap();
        assert_eq!((learnt.labels.join(""), &learnt.of[..]), ("yz".into(), &[1, 0, 1][..]));
        let (tested, strange) = learnt.to_test(vec![row("d", "z"), row("e", "other"), row("f", "y")]);
        assert_eq!((tested.texts.join(""), &tested.of[..], strange), ("df".into(), &[1, 0][..], 1));
        assert!(Labelled::new(vec![row("a", "z")]).is_err());
        assert!(Labelled::new(Vec::new()).is_err());
    }

    #[test]
    fn about_the_part_asked_for_is_set_apart_and_equal_texts_stay_together() {
        let rows: Vec<Row> = (0..4000).map(|at| row((at % 2000).to_string(), "x")).collect();
        let (learnt, tested) = split(rows, 0.2);
        assert!((700..900).contains(&tested.len()), "{}", tested.len());
        assert!(tested.iter().all(|row| !learnt.contains(row)));
    }
}
