//! Makes candidates, and the plan of their rungs.
//!
//! Values come from a Latin hypercube: each parameter's range is cut into as many pieces as there are candidates, and each piece has one
//! of them, so that even few reach everywhere. What stands for chance is a hash of the seed, the parameter's name and the candidate's
//! number: the same on every machine and in every version, and another parameter changes none of the others.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::order::{BUDGET, Candidate, Candidates, Plan, Range, Rung, Sample, Work};

/// # Errors
/// When the rungs would spend beyond all numbers.
pub(super) fn plan(order: Sample) -> Result<Plan, String> {
    let Sample { space, candidates, seed, keep_one_of, rungs, budget } = order;
    let parameters: Vec<Map<String, Value>> = match candidates {
        Candidates::These(these) => these,
        Candidates::Many(count) => {
            let columns: Vec<(&String, Vec<Value>)> =
                space.iter().map(|(name, range)| (name, column(range, name, seed, count))).collect();
            let value = |at: usize| {
                columns.iter().filter_map(move |(name, column)| Some(((*name).clone(), column.get(at)?.clone())))
            };
            (0..count).map(|at| value(at).collect()).collect()
        }
    };
    let candidates: Vec<Candidate> =
        (0..).zip(parameters).map(|(number, parameters)| Candidate { number, parameters }).collect();
    let rungs = self::rungs(candidates.len(), keep_one_of, rungs, budget)?;
    let done = rungs.iter().map(|rung| rung.more.saturating_mul(rung.candidates as u64)).sum();
    let whole = rungs.last().map_or(0, |rung| rung.total);
    let work = Work::new(done, whole.saturating_mul(candidates.len() as u64));
    Ok(Plan { seed, candidates, rungs, work })
}

fn rungs(candidates: usize, keep_one_of: u64, rungs: Option<usize>, budget: u64) -> Result<Vec<Rung>, String> {
    let (mut left, mut total, mut before) = (candidates as u64, budget, 0);
    let mut made: Vec<Rung> = Vec::new();
    loop {
        made.push(Rung { candidates: left as usize, more: total - before, total });
        if rungs.map_or(left == 1, |rungs| made.len() == rungs) {
            return Ok(made);
        }
        before = total;
        left = (left / keep_one_of).max(1);
        total = total.saturating_mul(keep_one_of);
        if total > BUDGET {
            return Err(format!("the last rung would spend more than {BUDGET} on a candidate: fewer rungs"));
        }
    }
}

/// The values of one parameter, for each candidate.
fn column(range: &Range, name: &str, seed: u64, count: usize) -> Vec<Value> {
    // Which candidate has which piece.
    let mut pieces: Vec<usize> = (0..count).collect();
    pieces.sort_by_cached_key(|at| (hash(seed, name, "piece", *at), *at));
    let within = |at: usize| hash(seed, name, "within", at) as f64 / (u64::MAX as f64 + 1.0);
    pieces.into_iter().enumerate().map(|(at, piece)| value(range, (piece as f64 + within(at)) / count as f64)).collect()
}

/// The value at a part of the range, from 0 to under 1.
fn value(range: &Range, part: f64) -> Value {
    match range {
        Range::Uniform(from, to) => rounded(from + part * (to - from), *from, *to),
        Range::Log(from, to) => rounded((from.ln() + part * (to.ln() - from.ln())).exp(), *from, *to),
        Range::Integer(from, to) => {
            let steps = (to - from) as f64 + 1.0;
            json!(from.saturating_add((part * steps) as i64).min(*to))
        }
        Range::Choice(values) => {
            let at = ((part * values.len() as f64) as usize).min(values.len().saturating_sub(1));
            values.get(at).cloned().unwrap_or(Value::Null)
        }
    }
}

/// To six digits, which libraries of mathematics agree on.
fn rounded(value: f64, from: f64, to: f64) -> Value {
    json!(format!("{value:.5e}").parse::<f64>().unwrap_or(value).clamp(from, to))
}

fn hash(seed: u64, name: &str, of: &str, at: usize) -> u64 {
    let mut digest = Sha256::new();
    digest.update(seed.to_le_bytes());
    digest.update((at as u64).to_le_bytes());
    digest.update(of);
    digest.update([0]);
    digest.update(name);
    let digest: [u8; 32] = digest.finalize().into();
    digest.iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn sample(space: Value, count: usize, seed: u64) -> Plan {
        let space: BTreeMap<String, Range> = serde_json::from_value(space).unwrap();
        let candidates = Candidates::Many(count);
        plan(Sample { space, candidates, seed, keep_one_of: 3, rungs: None, budget: 10 }).unwrap()
    }

    #[test]
    fn a_seed_makes_the_same_candidates_whatever_else_is_searched() {
        let space = json!({"l2": {"log": [0.001, 1000]}, "depth": {"integer": [1, 4]}});
        let (one, again, other) =
            (sample(space.clone(), 9, 7), sample(space, 9, 7), sample(json!({"l2": {"log": [0.001, 1000]}}), 9, 7));
        assert_eq!(one, again);
        let l2 = |plan: &Plan| plan.candidates.iter().map(|one| one.parameters["l2"].clone()).collect::<Vec<_>>();
        assert_eq!(l2(&one), l2(&other));
        assert_ne!(l2(&one), l2(&sample(json!({"l2": {"log": [0.001, 1000]}}), 9, 8)));
        // As it was when it was made first: what was searched once can be searched again.
        assert_eq!(other.candidates[0].parameters["l2"], json!(0.016466));
    }

    #[test]
    fn every_piece_of_every_range_has_a_candidate() {
        let space = json!({
            "a": {"uniform": [-1, 1]}, "b": {"log": [1e-4, 1e4]}, "c": {"integer": [1, 8]}, "d": {"choice": ["x", "y"]},
        });
        for seed in 0..20 {
            let plan = sample(space.clone(), 8, seed);
            let number = |name: &str| {
                plan.candidates.iter().map(|one| one.parameters[name].as_f64().unwrap()).collect::<Vec<_>>()
            };
            let pieces = |parts: Vec<f64>| parts.iter().map(|part| (part * 8.0) as i64).collect::<BTreeSet<_>>();
            let all: BTreeSet<i64> = (0..8).collect();
            assert_eq!(pieces(number("a").iter().map(|a| (a + 1.0) / 2.0).collect()), all);
            assert_eq!(pieces(number("b").iter().map(|b| (b.log10() + 4.0) / 8.0).collect()), all);
            assert_eq!(pieces(number("c").iter().map(|c| (c - 1.0) / 8.0).collect()), all);
            let of = plan.candidates.iter().filter(|one| one.parameters["d"] == "x").count();
            assert_eq!(of, 4);
        }
        let one = sample(json!({"a": {"uniform": [2, 2]}, "b": {"integer": [i64::MAX - 1, i64::MAX]}}), 1, 0);
        assert_eq!(one.candidates[0].parameters["a"], json!(2.0));
        assert!(one.candidates[0].parameters["b"].as_i64().unwrap() >= i64::MAX - 1);
    }

    #[test]
    fn rungs_go_down_to_one_and_their_budgets_up() {
        let rung = |candidates, more, total| Rung { candidates, more, total };
        let nine = sample(json!({"a": {"uniform": [0, 1]}}), 9, 0);
        assert_eq!(nine.rungs, [rung(9, 10, 10), rung(3, 20, 30), rung(1, 60, 90)]);
        assert_eq!(nine.work, Work { done: 210, full_grid_at_most: 810, part: 0.2593 });
        assert_eq!(rungs(8, 2, None, 5).unwrap().len(), 4);
        assert_eq!(rungs(10, 3, None, 1).unwrap(), [rung(10, 1, 1), rung(3, 2, 3), rung(1, 6, 9)]);
        assert_eq!(rungs(9, 3, Some(2), 10).unwrap(), [rung(9, 10, 10), rung(3, 20, 30)]);
        assert_eq!(rungs(1, 3, Some(3), 10).unwrap(), [rung(1, 10, 10), rung(1, 20, 30), rung(1, 60, 90)]);
        assert!(rungs(2, u64::MAX, None, 10).unwrap_err().contains("fewer rungs"));
    }
}
