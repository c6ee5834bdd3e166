//! What choosing one by one costs, against the best assignment of a few tasks at once.

use std::sync::Arc;

use super::Bid;

/// Tasks that are assigned at once in the comparison, and models that are looked at for each: all their combinations are,
/// as far as they may be better.
const TASKS: usize = 8;
const MODELS: usize = 4;

/// A candidate of one task.
#[derive(Clone, Debug)]
struct Possible {
    /// Its place among the models of the window.
    model: usize,
    /// Priority × run time, and load time.
    charge: f64,
    adds: f64,
}

#[derive(Clone, Debug)]
struct Turn {
    /// Since the turn before it.
    after_seconds: f64,
    /// The first was chosen.
    options: Vec<Possible>,
    /// Models that are met for the first time, and how long their queues were then.
    first_met: Vec<(usize, f64)>,
}

/// Cost in expected seconds, Σ priority × run time + wait + load time, of as many tasks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Compared {
    pub chosen_seconds: f64,
    /// Of the best assignment of the same tasks, knowing all of them.
    pub exact_seconds: f64,
}

/// Collects choices until there are a few, and compares them with the best assignment: the queues as they were when each
/// model was first met, getting shorter as time goes by and longer by what is assigned to them.
#[derive(Default, Debug)]
pub struct Regret {
    models: Vec<Arc<str>>,
    turns: Vec<Turn>,
    last_us: u64,
}

impl Regret {
    /// One more choice: the bids with their models, the first of which was taken. Answers what came of the last few, once
    /// there are enough.
    pub fn handle_choice(&mut self, bids: &[(Arc<str>, Bid)], now_us: u64) -> Option<Compared> {
        let bids: Vec<_> = bids.iter().filter(|(_, bid)| bid.cost().is_finite()).take(MODELS).collect();
        if bids.len() < 2 {
            return None;
        }
        let mut first_met = Vec::new();
        let mut options = Vec::with_capacity(bids.len());
        for (name, bid) in bids {
            let known = self.models.iter().position(|model| model == name);
            let model = known.unwrap_or_else(|| {
                first_met.push((self.models.len(), bid.queue_seconds));
                self.models.push(name.clone());
                self.models.len() - 1
            });
            options.push(Possible { model, charge: bid.weighted_seconds + bid.load_seconds, adds: bid.adds_seconds });
        }
        let after_seconds = if self.turns.is_empty() { 0.0 } else { now_us.saturating_sub(self.last_us) as f64 / 1e6 };
        self.last_us = now_us;
        self.turns.push(Turn { after_seconds, options, first_met });
        if self.turns.len() < TASKS {
            return None;
        }
        let queues = vec![0.0; self.models.len()];
        let chosen_seconds = chosen(&self.turns, queues.clone());
        let exact_seconds = best(&self.turns, &queues, 0.0, chosen_seconds);
        *self = Self::default();
        Some(Compared { chosen_seconds, exact_seconds })
    }
}

/// The queues when it is this turn's time.
fn at_turn(turn: &Turn, queues: &[f64]) -> Vec<f64> {
    let mut queues: Vec<f64> = queues.iter().map(|seconds| (seconds - turn.after_seconds).max(0.0)).collect();
    for &(model, seconds) in &turn.first_met {
        if let Some(queue) = queues.get_mut(model) {
            *queue = seconds;
        }
    }
    queues
}

/// What an option costs, and what it leaves of the queues.
fn take(option: &Possible, queues: &mut [f64]) -> f64 {
    let Some(queue) = queues.get_mut(option.model) else { return option.charge };
    let cost = option.charge + *queue;
    *queue += option.adds;
    cost
}

fn chosen(turns: &[Turn], mut queues: Vec<f64>) -> f64 {
    let mut total = 0.0;
    for turn in turns {
        queues = at_turn(turn, &queues);
        total += turn.options.first().map_or(0.0, |option| take(option, &mut queues));
    }
    total
}

/// The least that these turns can cost beside what was spent, if that is below `known`: branch and bound, exact.
fn best(turns: &[Turn], queues: &[f64], spent: f64, known: f64) -> f64 {
    let Some((turn, rest)) = turns.split_first() else { return spent.min(known) };
    let at_least: f64 =
        turns.iter().map(|turn| turn.options.iter().map(|option| option.charge).fold(f64::MAX, f64::min)).sum();
    if spent + at_least >= known {
        return known;
    }
    let queues = at_turn(turn, queues);
    let mut known = known;
    for option in &turn.options {
        let mut left = queues.clone();
        let cost = take(option, &mut left);
        known = best(rest, &left, spent + cost, known);
    }
    known
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bid(run: f64, queue: f64, weight: f64) -> Bid {
        Bid {
            candidate: 0,
            run_seconds: run,
            queue_seconds: queue,
            load_seconds: 0.0,
            weighted_seconds: weight * run,
            adds_seconds: run,
        }
    }

    /// Every assignment there is, one after the other.
    fn by_hand(turns: &[Turn], models: usize) -> f64 {
        let all: usize = turns.iter().map(|turn| turn.options.len()).product();
        let cost_of = |mut number: usize| {
            let (mut queues, mut total) = (vec![0.0; models], 0.0);
            for turn in turns {
                queues = at_turn(turn, &queues);
                total += take(&turn.options[number % turn.options.len()], &mut queues);
                number /= turn.options.len();
            }
            total
        };
        (0..all).map(cost_of).fold(f64::MAX, f64::min)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn the_best_is_the_best_of_all_assignments(
            rows in proptest::collection::vec((0.0..2.0, proptest::collection::vec((0.1..5.0, 0.0..4.0), 3)), 6),
        ) {
            let turns: Vec<Turn> = (0..).zip(rows).map(|(at, (after_seconds, bids)): (usize, (f64, Vec<(f64, f64)>))| Turn {
                after_seconds,
                options: (0..).zip(&bids).map(|(model, (charge, _))| Possible { model, charge: *charge, adds: *charge }).collect(),
                first_met: if at == 0 { (0..).zip(bids).map(|(model, (_, queue))| (model, queue)).collect() } else { vec![] },
            }).collect();
            let known = chosen(&turns, vec![0.0; 3]);
            let found = best(&turns, &[0.0; 3], 0.0, known);
            prop_assert!((found - by_hand(&turns, 3).min(known)).abs() < 1e-9);
        }
    }

    #[test]
    fn a_choice_that_looks_no_further_than_its_task_is_told_its_regret() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut regret = Regret::default();
        // Each goes to `a`, where it saves itself a tenth of a second and costs the next one a second.
        let mut told = None;
        for _ in 0..TASKS {
            told = regret.handle_choice(&[(a.clone(), bid(1.0, 0.0, 1.0)), (b.clone(), bid(1.1, 0.0, 1.0))], 0);
        }
        let compared = told.unwrap();
        assert!((compared.chosen_seconds - (8.0 + 28.0)).abs() < 1e-9, "{compared:?}");
        // Four on each, or five and three: 4 + 6 on `a`, 4.4 + 6.6 on `b`.
        assert!((compared.exact_seconds - 21.0).abs() < 1e-9, "{compared:?}");
        assert!(regret.turns.is_empty() && regret.models.is_empty());
    }
}
