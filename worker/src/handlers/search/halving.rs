//! Keeps the best of a rung, and tells what came of all rungs.

use serde::Serialize;
use serde_json::Value;

use super::order::{Candidate, Halve, Plan, Report, Score, Work};

/// The output of `halve`.
#[derive(Serialize, Debug)]
pub(super) struct Halved {
    pub best: Kept,
    /// The best first: what the next rung goes over.
    pub kept: Vec<Kept>,
    /// All of the rung, the best first; those that failed last.
    pub scores: Vec<Score>,
    pub failed: usize,
}

/// One that goes on, with what its training gave.
#[derive(Serialize, Clone, Debug)]
pub(super) struct Kept {
    #[serde(flatten)]
    pub candidate: Candidate,
    pub score: f64,
    pub result: Value,
}

/// # Errors
/// When no candidate has the number that they are compared by.
pub(super) fn halve(order: Halve) -> Result<Halved, String> {
    let Halve { candidates, results, by, least, keep, work } = order;
    let count = candidates.len();
    let mut ranked: Vec<(Score, Value)> = candidates
        .into_iter()
        .zip(results)
        .map(|(candidate, result)| {
            let score = result.pointer(&by).and_then(Value::as_f64);
            let work = work.as_ref().and_then(|work| result.pointer(work)).and_then(Value::as_u64);
            (Score { candidate, score, work, kept: false }, result)
        })
        .collect();
    // The lower, the better; equals by their numbers, so that nothing depends on the order in which they come.
    let rank = |score: &Score| score.score.map_or(f64::INFINITY, |number| if least { number } else { -number });
    ranked.sort_by(|(left, _), (right, _)| {
        let failed = left.score.is_none().cmp(&right.score.is_none());
        failed.then(rank(left).total_cmp(&rank(right))).then(left.candidate.number.cmp(&right.candidate.number))
    });
    let mut kept = Vec::new();
    for (score, result) in &mut ranked {
        if let Some(number) = score.score.filter(|_| kept.len() < keep) {
            score.kept = true;
            kept.push(Kept { candidate: score.candidate.clone(), score: number, result: std::mem::take(result) });
        }
    }
    let Some(best) = kept.first().cloned() else {
        return Err(format!("none of the {count} candidates has a number at {by}"));
    };
    let scores: Vec<Score> = ranked.into_iter().map(|(score, _)| score).collect();
    let failed = scores.iter().filter(|score| score.score.is_none()).count();
    Ok(Halved { best, kept, scores, failed })
}

/// The output of `report`.
#[derive(Serialize, PartialEq, Debug)]
pub(super) struct Reported {
    pub seed: u64,
    pub best: Outcome,
    /// Those that came furthest first.
    pub candidates: Vec<Outcome>,
    pub rungs: Vec<Climbed>,
    pub work: Work,
}

/// What came of a candidate.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub(super) struct Outcome {
    #[serde(flatten)]
    pub candidate: Candidate,
    /// In each rung that it was in; nothing where its training failed.
    pub scores: Vec<Option<f64>>,
    pub work: u64,
    /// It ended by itself before it had spent what it might.
    pub ended_early: bool,
}

/// A rung as it went.
#[derive(Serialize, PartialEq, Debug)]
pub(super) struct Climbed {
    pub candidates: usize,
    pub kept: usize,
    pub failed: usize,
    /// What each might spend.
    pub more: u64,
    pub work: u64,
}

/// # Errors
/// When the rungs are not those of the plan.
pub(super) fn report(order: Report) -> Result<Reported, String> {
    let Report { plan, rungs } = order;
    let Plan { seed, candidates, rungs: planned, .. } = plan;
    if rungs.is_empty() || rungs.len() > planned.len() {
        return Err(format!("there are {} rungs, and the plan has {}", rungs.len(), planned.len()));
    }
    let whole = planned.get(rungs.len() - 1).map_or(0, |rung| rung.total);
    let mut outcomes: Vec<(Outcome, usize)> = candidates
        .into_iter()
        .map(|candidate| (Outcome { candidate, scores: Vec::new(), work: 0, ended_early: false }, usize::MAX))
        .collect();
    let mut climbed = Vec::new();
    for (scores, rung) in rungs.iter().zip(&planned) {
        let mut work = 0u64;
        for (rank, score) in scores.iter().enumerate() {
            let number = score.candidate.number;
            let Some((outcome, last_rank)) = outcomes.get_mut(number as usize) else {
                return Err(format!("a rung has a candidate {number} that is not the plan's"));
            };
            // One that failed has spent nobody knows what; one that does not say is taken to have spent what it might.
            let spent = score.work.unwrap_or(if score.score.is_some() { rung.more } else { 0 });
            outcome.scores.push(score.score);
            outcome.work = outcome.work.saturating_add(spent);
            outcome.ended_early |= score.score.is_some() && spent < rung.more;
            *last_rank = rank;
            work = work.saturating_add(spent);
        }
        let count = |is: fn(&Score) -> bool| scores.iter().filter(|score| is(score)).count();
        climbed.push(Climbed {
            candidates: scores.len(),
            kept: count(|score| score.kept),
            failed: count(|score| score.score.is_none()),
            more: rung.more,
            work,
        });
    }
    outcomes.sort_by_key(|(outcome, rank)| (std::cmp::Reverse(outcome.scores.len()), *rank));
    let candidates: Vec<Outcome> = outcomes.into_iter().map(|(outcome, _)| outcome).collect();
    let Some(best) = candidates.first().filter(|best| matches!(best.scores.last(), Some(Some(_)))).cloned() else {
        return Err("no candidate has a score in the last rung".into());
    };
    // Numbers are what trainings say: however large, they are no reason to fail.
    let sum = |all: &mut dyn Iterator<Item = u64>| all.fold(0, u64::saturating_add);
    let done = sum(&mut candidates.iter().map(|outcome| outcome.work));
    // What ended by itself, or failed, would have done so in a full grid, too.
    let is_through = |outcome: &Outcome| outcome.ended_early || outcome.scores.contains(&None);
    let full = |outcome: &Outcome| if is_through(outcome) { outcome.work } else { whole };
    let full_grid_at_most = sum(&mut candidates.iter().map(full));
    Ok(Reported { seed, best, candidates, rungs: climbed, work: Work::new(done, full_grid_at_most) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::order::Order;
    use super::*;

    fn halved(order: Value) -> Result<Value, String> {
        let input = serde_json::value::to_raw_value(&order).unwrap();
        let Order::Halve(order) = Order::read(&input, 100)? else { panic!("another order") };
        halve(order).map(|halved| serde_json::to_value(halved).unwrap())
    }

    fn reported(plan: &Value, rungs: Value) -> Result<Value, String> {
        let input = serde_json::value::to_raw_value(&json!({"do": "report", "plan": plan, "rungs": rungs})).unwrap();
        let Order::Report(order) = Order::read(&input, 100)? else { panic!("another order") };
        report(order).map(|reported| serde_json::to_value(reported).unwrap())
    }

    fn plan(candidates: usize) -> Value {
        let these: Vec<Value> = (0..candidates).map(|at| json!({"l2": at})).collect();
        let order = json!({"do": "sample", "candidates": these, "keep_one_of": 2, "rungs": 2, "budget": 10});
        let input = serde_json::value::to_raw_value(&order).unwrap();
        let Order::Sample(order) = Order::read(&input, 100).unwrap() else { panic!("another order") };
        serde_json::to_value(super::super::sample::plan(order).unwrap()).unwrap()
    }

    #[test]
    fn the_best_go_on_with_what_they_gave_and_equals_by_their_numbers() {
        let candidates = plan(4)["candidates"].clone();
        let results = json!([{"m": 0.5, "n": 10}, null, {"m": 0.2, "n": 10}, {"m": 0.5, "n": 7, "weights": "w"}]);
        let order = |more: Value| {
            let mut order =
                json!({"do": "halve", "candidates": candidates, "results": results, "by": "/m", "work": "/n"});
            order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            halved(order).unwrap()
        };
        let numbers =
            |of: &Value| of.as_array().unwrap().iter().map(|one| one["number"].as_u64().unwrap()).collect::<Vec<_>>();
        let most = order(json!({"keep": 2}));
        assert_eq!((numbers(&most["kept"]), numbers(&most["scores"])), (vec![0, 3], vec![0, 3, 2, 1]));
        assert_eq!(most["kept"][1], json!({"number": 3, "parameters": {"l2": 3}, "score": 0.5, "result": results[3]}));
        assert_eq!((&most["failed"], &most["best"]["number"]), (&json!(1), &json!(0)));
        let least = order(json!({"least": true}));
        assert_eq!((numbers(&least["kept"]), numbers(&least["scores"])), (vec![2], vec![2, 0, 3, 1]));
        // More than there are is all that there are.
        assert_eq!(numbers(&order(json!({"keep": 9}))["kept"]), [0, 3, 2]);
        let none = json!({"do": "halve", "candidates": candidates, "results": [1, null, {}, {"m": "x"}], "by": "/m"});
        assert_eq!(halved(none).unwrap_err(), "none of the 4 candidates has a number at /m");
    }

    #[test]
    fn a_report_has_each_candidates_scores_and_what_was_saved() {
        let plan = plan(4);
        let first = halved(json!({
            "do": "halve", "candidates": plan["candidates"], "keep": 2, "by": "/m", "work": "/n",
            "results": [{"m": 1, "n": 10}, {"m": 2, "n": 10}, null, {"m": 3, "n": 4}],
        }))
        .unwrap();
        let second = halved(json!({
            "do": "halve", "candidates": first["kept"], "by": "/m", "work": "/n",
            "results": [{"m": 3.5, "n": 0}, {"m": 4, "n": 10}],
        }))
        .unwrap();
        let told = reported(&plan, json!([first["scores"], second["scores"]])).unwrap();
        assert_eq!(
            told["candidates"],
            json!([
                {"number": 1, "parameters": {"l2": 1}, "scores": [2.0, 4.0], "work": 20, "ended_early": false},
                {"number": 3, "parameters": {"l2": 3}, "scores": [3.0, 3.5], "work": 4, "ended_early": true},
                {"number": 0, "parameters": {"l2": 0}, "scores": [1.0], "work": 10, "ended_early": false},
                {"number": 2, "parameters": {"l2": 2}, "scores": [null], "work": 0, "ended_early": false},
            ])
        );
        assert_eq!(told["best"], told["candidates"][0]);
        // 0 and 1 would have had 20 each; 3 ended by itself, and 2 failed.
        assert_eq!(told["work"], json!({"done": 34, "full_grid_at_most": 44, "part": 0.7727}));
        assert_eq!(
            told["rungs"],
            json!([
                {"candidates": 4, "kept": 2, "failed": 1, "more": 10, "work": 24},
                {"candidates": 2, "kept": 1, "failed": 0, "more": 10, "work": 10},
            ])
        );
        // Of those that came as far the last rung decides, and neither their numbers nor the rungs before.
        let turned = halved(json!({"do": "halve", "candidates": first["kept"], "by": "/m",
            "results": [{"m": 9}, {"m": 4}]}))
        .unwrap();
        let least = halved(json!({"do": "halve", "candidates": first["kept"], "by": "/m", "least": true,
            "results": [{"m": 9}, {"m": 4}]}))
        .unwrap();
        for (second, best) in [(turned, 3), (least, 1)] {
            let told = reported(&plan, json!([first["scores"], second["scores"]])).unwrap();
            assert_eq!((&told["best"]["number"], &told["candidates"][0]), (&json!(best), &told["best"]));
        }
        // Where nothing is said of work it is what might be spent.
        let silent = halved(json!({"do": "halve", "candidates": plan["candidates"], "keep": 2, "by": "/m",
            "results": [{"m": 1}, {"m": 2}, {"m": 3}, {"m": 4}]}))
        .unwrap();
        assert_eq!(
            reported(&plan, json!([silent["scores"]])).unwrap()["work"],
            json!({"done": 40, "full_grid_at_most": 40, "part": 1.0})
        );

        let vast = json!({"do": "halve", "candidates": plan["candidates"], "by": "/m", "work": "/n",
            "results": [{"m": 1, "n": u64::MAX}, {"m": 2, "n": u64::MAX}, null, null]});
        let told = reported(&plan, json!([halved(vast).unwrap()["scores"]])).unwrap();
        assert_eq!(told["work"]["done"], u64::MAX);

        let strange = json!([[{"number": 7, "parameters": {}, "score": 1, "work": 1, "kept": true}]]);
        assert!(reported(&plan, strange).unwrap_err().contains("not the plan's"));
        assert!(reported(&plan, json!([])).unwrap_err().contains("0 rungs"));
        assert!(reported(&plan, json!([[], [], []])).unwrap_err().contains("3 rungs"));
        assert!(reported(&plan, json!([[]])).unwrap_err().contains("no candidate"));
    }
}
