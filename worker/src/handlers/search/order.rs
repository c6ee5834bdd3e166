//! What a search task asks for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// The input of a search task.
#[derive(Deserialize, Debug)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Order {
    /// Makes candidates, and says what each rung may spend on how many.
    Sample(Sample),
    /// Keeps the best of a rung.
    Halve(Halve),
    /// Tells what came of all rungs.
    Report(Report),
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Sample {
    /// Parameters by their names, and where their values may lie.
    #[serde(default)]
    pub space: BTreeMap<String, Range>,
    /// How many, or which.
    pub candidates: Candidates,
    #[serde(default)]
    pub seed: u64,
    /// One in so many goes on to the next rung, which may spend so many times as much on each.
    #[serde(default = "three")]
    pub keep_one_of: u64,
    /// As many as it takes until one candidate is left, unless it is said.
    #[serde(default)]
    pub rungs: Option<usize>,
    /// Of the first rung, for each candidate, in whatever the training counts.
    #[serde(default = "ten")]
    pub budget: u64,
}

fn three() -> u64 {
    3
}
fn ten() -> u64 {
    10
}

#[derive(Deserialize, Debug)]
#[serde(untagged)]
pub(super) enum Candidates {
    Many(usize),
    These(Vec<Map<String, Value>>),
}

/// Where a parameter's values lie, both ends included.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "snake_case")]
pub(super) enum Range {
    Uniform(f64, f64),
    /// Evenly by their logarithms.
    Log(f64, f64),
    Integer(i64, i64),
    Choice(Vec<Value>),
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Halve {
    /// Those of this rung, in the order in which they were trained.
    pub candidates: Vec<Candidate>,
    /// What their trainings gave; `null` of those that failed.
    pub results: Vec<Value>,
    /// A JSON pointer to the number that they are compared by.
    pub by: String,
    /// The smallest number is the best.
    #[serde(default)]
    pub least: bool,
    /// How many go on.
    #[serde(default = "one")]
    pub keep: usize,
    /// A JSON pointer to what a training has spent.
    #[serde(default)]
    pub work: Option<String>,
}

fn one() -> usize {
    1
}

/// What else is said of one, as `halve` does of those that it keeps, is passed over.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Candidate {
    /// Its place among all that were sampled, from 0.
    pub number: u32,
    pub parameters: Map<String, Value>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    /// What `sample` gave.
    pub plan: Plan,
    /// The `scores` of each `halve`.
    pub rungs: Vec<Vec<Score>>,
}

/// The output of `sample`.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
pub(super) struct Plan {
    pub seed: u64,
    pub candidates: Vec<Candidate>,
    pub rungs: Vec<Rung>,
    pub work: Work,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rung {
    /// How many are trained.
    pub candidates: usize,
    /// What each may spend in this rung, beyond what it has spent in those before.
    pub more: u64,
    /// What it has spent at most at the end of it.
    pub total: u64,
}

/// What was spent, or may be, beside what training every candidate to the end takes.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug)]
pub(super) struct Work {
    pub done: u64,
    pub full_grid_at_most: u64,
    /// The one over the other.
    pub part: f64,
}

impl Work {
    pub fn new(done: u64, full_grid_at_most: u64) -> Self {
        let part = if full_grid_at_most == 0 { 0.0 } else { done as f64 / full_grid_at_most as f64 };
        Self { done, full_grid_at_most, part: (part * 1e4).round() / 1e4 }
    }
}

/// How a candidate did in a rung.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Score {
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Nothing when its training failed.
    pub score: Option<f64>,
    /// What its training spent, if it said so.
    pub work: Option<u64>,
    pub kept: bool,
}

/// Longest name of a parameter.
const NAME_BYTES: usize = 100;
/// Most rungs, and most that one candidate may be given in all.
const RUNGS: usize = 20;
pub(super) const BUDGET: u64 = 1 << 40;

impl Order {
    /// # Errors
    /// What is wrong with it, for whoever sent it.
    pub fn read(input: &RawValue, max_candidates: usize) -> Result<Self, String> {
        let order: Self = serde_json::from_str(input.get()).map_err(|bad| bad.to_string())?;
        let count = match &order {
            Self::Sample(sample) => sample.check()?,
            Self::Halve(halve) => halve.check()?,
            Self::Report(report) => report.plan.candidates.len().max(report.rungs.len()),
        };
        match count > max_candidates {
            true => Err(format!("there are more than {max_candidates} candidates (search.max_candidates)")),
            false => Ok(order),
        }
    }
}

impl Sample {
    fn check(&self) -> Result<usize, String> {
        let count = match &self.candidates {
            Candidates::Many(count) => {
                if self.space.is_empty() {
                    return Err("space must be given, or the candidates themselves".into());
                }
                *count
            }
            Candidates::These(these) => {
                if !self.space.is_empty() {
                    return Err("space is of no use to candidates that are given".into());
                }
                these.len()
            }
        };
        if count == 0 {
            return Err("there must be at least one candidate".into());
        }
        if self.keep_one_of < 2 {
            return Err("keep_one_of must be at least 2".into());
        }
        if !(1..=BUDGET).contains(&self.budget) {
            return Err(format!("budget must be from 1 to {BUDGET}"));
        }
        if self.rungs.is_some_and(|rungs| !(1..=RUNGS).contains(&rungs)) {
            return Err(format!("rungs must be from 1 to {RUNGS}"));
        }
        for (name, range) in &self.space {
            if name.is_empty() || name.len() > NAME_BYTES {
                return Err(format!("space: a name has 1 to {NAME_BYTES} bytes"));
            }
            range.check().map_err(|problem| format!("space.{name}: {problem}"))?;
        }
        Ok(count)
    }
}

impl Range {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Uniform(from, to) if !(from <= to && (to - from).is_finite()) => {
                Err("uniform takes two numbers, the smaller first")
            }
            Self::Log(from, to) if !(0.0 < *from && from <= to && to.is_finite()) => {
                Err("log takes two numbers above 0, the smaller first")
            }
            Self::Integer(from, to) if from > to || to.checked_sub(*from).is_none() => {
                Err("integer takes two whole numbers, the smaller first")
            }
            Self::Choice(values) if values.is_empty() => Err("choice takes at least one value"),
            _ => Ok(()),
        }
    }
}

impl Halve {
    fn check(&self) -> Result<usize, String> {
        if self.candidates.len() != self.results.len() {
            let (candidates, results) = (self.candidates.len(), self.results.len());
            return Err(format!("there are {candidates} candidates and {results} results: each must have one"));
        }
        match self.keep {
            0 => Err("keep must be at least 1".into()),
            _ => Ok(self.candidates.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn orders_that_make_no_sense_are_refused_with_what_is_wrong() {
        let read = |value: Value| Order::read(&RawValue::from_string(value.to_string()).unwrap(), 10);
        let candidate = json!({"number": 0, "parameters": {}});
        assert!(read(json!({"do": "sample", "space": {"l2": {"log": [0.1, 1]}}, "candidates": 10})).is_ok());
        assert!(read(json!({"do": "sample", "candidates": [{"l2": 1}]})).is_ok());
        let mut kept = candidate.clone();
        kept["result"] = json!({"weights": "artifact:…"});
        assert!(read(json!({"do": "halve", "candidates": [kept], "results": [null], "by": "/a"})).is_ok());
        for (order, said) in [
            (json!({}), "do"),
            (json!({"do": "guess"}), "guess"),
            (json!({"do": "sample", "space": {"a": {"log": [0.1, 1]}}}), "candidates"),
            (json!({"do": "sample", "space": {"a": {"log": [0.1, 1]}}, "candidates": 11}), "more than 10"),
            (json!({"do": "sample", "space": {"a": {"log": [0.1, 1]}}, "candidates": 0}), "at least one"),
            (json!({"do": "sample", "space": {"a": {"log": [0.1, 1]}}, "candidates": [{"a": 1}]}), "of no use"),
            (json!({"do": "sample", "candidates": 3}), "space"),
            (json!({"do": "sample", "candidates": [{}], "keep_one_of": 1}), "keep_one_of"),
            (json!({"do": "sample", "candidates": [{}], "budget": 0}), "budget"),
            (json!({"do": "sample", "candidates": [{}], "rungs": 0}), "rungs"),
            (json!({"do": "sample", "candidates": [{}], "rate": 0}), "rate"),
            (json!({"do": "sample", "candidates": 1, "space": {"a": {"log": [0, 1]}}}), "space.a"),
            (json!({"do": "sample", "candidates": 1, "space": {"a": {"uniform": [2, 1]}}}), "space.a"),
            (json!({"do": "sample", "candidates": 1, "space": {"a": {"uniform": [-1e308, 1e308]}}}), "space.a"),
            (json!({"do": "sample", "candidates": 1, "space": {"a": {"integer": [i64::MIN, 1]}}}), "space.a"),
            (json!({"do": "sample", "candidates": 1, "space": {"a": {"choice": []}}}), "space.a"),
            (json!({"do": "sample", "candidates": 1, "space": {"a": {"normal": [0, 1]}}}), "normal"),
            (json!({"do": "halve", "candidates": [candidate], "results": [], "by": "/a"}), "1 candidates and 0"),
            (json!({"do": "halve", "candidates": [], "results": [], "by": "/a", "keep": 0}), "keep"),
            (json!({"do": "halve", "candidates": [{"number": -1, "parameters": {}}], "results": [1], "by": ""}), "-1"),
            (json!({"do": "report", "rungs": []}), "plan"),
        ] {
            let problem = read(order.clone()).expect_err(&order.to_string());
            assert!(problem.contains(said), "{order}: {problem}");
        }
    }
}
