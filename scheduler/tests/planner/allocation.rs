//! The choice among models: what it weighs, and what it is worth on a virtual clock.

use std::collections::BTreeMap;

use proptest::prelude::*;
use taskyard_scheduler::planner::{Allocation, AllocationRegret, Candidate, Prior, Request};
use taskyard_shared::ChoiceReason;

use super::*;

fn request(priority: u8) -> Request {
    Request {
        priority: Priority::try_from(priority).unwrap(),
        kind: Kind::Prediction,
        cost: None,
        min_quality: None,
        deadline_us: None,
        waited_seconds: 0.0,
    }
}

fn candidate(model: &str) -> Candidate<'_> {
    Candidate { model, quality: None, load_seconds: 0.0, after_seconds: None }
}

/// A planner that knows these models: name, seconds a task takes, slots.
fn with_models(models: &[(&str, f64, usize)]) -> Planner {
    let mut planner = Planner::new(by_name("cmu", None).unwrap());
    for &(name, seconds, slots) in models {
        planner.handle_model(name, Prior { expected_seconds: Some(seconds) });
        planner.handle_load(name, slots);
    }
    planner
}

fn first(allocation: &Allocation) -> (usize, ChoiceReason) {
    (allocation.bids[0].candidate, allocation.reason)
}

#[test]
fn priority_times_run_time_and_wait_and_load_time_are_weighed() {
    let mut planner = with_models(&[("quick", 1.0, 1), ("slow", 2.0, 1)]);
    let both = [candidate("quick"), candidate("slow")];
    assert_eq!(first(&planner.allocate(&request(1), &both, 0).unwrap()), (0, ChoiceReason::LeastCost));
    // 5 seconds wait on the quick one.
    for number in 0..5 {
        planner.handle_arrival(Arrival { model: "quick".into(), ..arrival(number, 4, 1.0) }, 0).unwrap();
    }
    let allocation = planner.allocate(&request(1), &both, 0).unwrap();
    assert_eq!((allocation.bids[0].candidate, allocation.bids[1].queue_seconds), (1, 5.0));
    // 9 × 1 + 5 and 9 × 2 + 0: whoever matters more takes the quicker one still.
    assert_eq!(planner.allocate(&request(9), &both, 0).unwrap().bids[0].candidate, 0);
    let unloaded = [candidate("quick"), Candidate { load_seconds: 4.5, ..candidate("slow") }];
    assert_eq!(planner.allocate(&request(1), &unloaded, 0).unwrap().bids[0].candidate, 0);
    // One that nobody has, and that can be loaded: 1 × 2 + 0.5 against 1 × 1 + 5.
    let mut unheld = with_models(&[("quick", 1.0, 1), ("slow", 2.0, 0)]);
    for number in 0..5 {
        unheld.handle_arrival(Arrival { model: "quick".into(), ..arrival(number, 4, 1.0) }, 0).unwrap();
    }
    let loadable = [candidate("quick"), Candidate { load_seconds: 0.5, ..candidate("slow") }];
    assert_eq!(first(&unheld.allocate(&request(1), &loadable, 0).unwrap()), (1, ChoiceReason::LeastCost));
    assert_eq!(unheld.allocate(&request(1), &both, 0).unwrap().bids[0].candidate, 0, "nobody can load it");
    // A worker less, and one that does nothing.
    planner.handle_load("slow", 0);
    assert_eq!(planner.allocate(&request(1), &both, 0).unwrap().bids[0].candidate, 0);
    planner.handle_pause("quick", true);
    let allocation = planner.allocate(&request(1), &both, 0).unwrap();
    assert!(allocation.bids.iter().all(|bid| bid.queue_seconds.is_infinite()));
}

#[test]
fn quality_and_deadline_come_before_cost_and_say_so() {
    let mut planner = with_models(&[("quick", 1.0, 1), ("slow", 2.0, 1)]);
    let rated =
        [Candidate { quality: Some(0.7), ..candidate("quick") }, Candidate { quality: Some(0.9), ..candidate("slow") }];
    let asks = |min_quality| Request { min_quality: Some(min_quality), ..request(4) };
    assert_eq!(first(&planner.allocate(&asks(0.9), &rated, 0).unwrap()), (1, ChoiceReason::Quality));
    assert_eq!(planner.allocate(&asks(0.95), &rated, 0), None);
    for number in 0..3 {
        planner.handle_arrival(Arrival { model: "quick".into(), ..arrival(number, 4, 1.0) }, 0).unwrap();
    }
    let in_time = Request { deadline_us: Some(SECOND * 5 / 2), ..request(9) };
    assert_eq!(first(&planner.allocate(&in_time, &rated, 0).unwrap()), (1, ChoiceReason::Deadline));
    // Neither can: the cheaper, and the planner says the rest.
    let hopeless = Request { deadline_us: Some(SECOND / 2), ..request(9) };
    assert_eq!(first(&planner.allocate(&hopeless, &rated, 0).unwrap()), (0, ChoiceReason::LeastCost));
}

#[test]
fn an_alternative_stands_back_until_the_wait_is_long() {
    let mut planner = with_models(&[("named", 1.0, 1), ("other", 1.5, 1)]);
    let two = [candidate("named"), Candidate { after_seconds: Some(2.0), ..candidate("other") }];
    for number in 0..2 {
        planner.handle_arrival(Arrival { model: "named".into(), ..arrival(number, 4, 1.0) }, 0).unwrap();
    }
    assert_eq!(first(&planner.allocate(&request(1), &two, 0).unwrap()), (0, ChoiceReason::Named));
    let waited = Request { waited_seconds: 2.1, ..request(1) };
    assert_eq!(first(&planner.allocate(&waited, &two, 0).unwrap()), (1, ChoiceReason::Alternative));
    planner.handle_arrival(Arrival { model: "named".into(), ..arrival(9, 4, 1.0) }, 0).unwrap();
    assert_eq!(first(&planner.allocate(&request(1), &two, 0).unwrap()), (1, ChoiceReason::Alternative));
    assert_eq!(first(&planner.allocate(&request(1), &two[..1], 0).unwrap()), (0, ChoiceReason::OnlyCandidate));
}

const NAMES: [&str; 2] = ["quick", "slow"];
const RUN_US: [u64; 2] = [SECOND, 4 * SECOND];

/// Two models of one slot each, on a virtual clock.
struct Yard {
    planner: Planner,
    /// What runs, by when it ends: task and model.
    running: BTreeMap<(u64, u128), usize>,
    /// When each task came, and its priority.
    arrived: Vec<(u64, u8)>,
    /// Σ priority × run time + wait of what has begun; seconds.
    total: f64,
}

impl Yard {
    fn begin(&mut self, now_us: u64) {
        while let Some(Decision::Dispatch { id: began, model, .. }) = self.planner.poll_decision(now_us) {
            let number = began.0.as_u128() & 0xffff_ffff;
            let model = usize::from(&*model == NAMES[1]);
            let (came_us, priority) = self.arrived[number as usize];
            self.total += (u64::from(priority) * RUN_US[model] + now_us - came_us) as f64 / 1e6;
            self.running.insert((now_us + RUN_US[model], number), model);
        }
    }

    fn go_on(&mut self, until_us: u64) {
        while let Some((&(at_us, number), _)) = self.running.first_key_value()
            && at_us <= until_us
        {
            self.running.remove(&(at_us, number));
            self.planner.handle_completion(id(number), None);
            self.begin(at_us);
        }
    }
}

/// Poisson arrivals. Σ (priority × run time + wait) a task by a rule that picks among the models, which take 1 and 4 seconds.
fn run(seed: u64, load: f64, mut pick: impl FnMut(&Planner, &Request, u64) -> usize) -> f64 {
    const TASKS: u128 = 4_000;
    let planner = with_models(&[(NAMES[0], 1.0, 1), (NAMES[1], 4.0, 1)]);
    let mut yard = Yard { planner, running: BTreeMap::new(), arrived: Vec::new(), total: 0.0 };
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    // Together they do one and a quarter a second.
    let mean_gap_us = 1e6 / (1.25 * load);
    let mut now_us = 0;
    for number in 0..TASKS {
        now_us += (-mean_gap_us * (1.0 - draw()).ln()) as u64;
        yard.go_on(now_us);
        let priority = 1 + (draw() * 3.0) as u8;
        let model = NAMES[pick(&yard.planner, &request(priority), now_us)];
        yard.arrived.push((now_us, priority));
        let task = Arrival { model: model.into(), expected: None, ..arrival(number, priority, 1.0) };
        yard.planner.handle_arrival(task, now_us).unwrap();
        yard.begin(now_us);
    }
    yard.go_on(u64::MAX);
    yard.total / TASKS as f64
}

#[test]
fn it_costs_less_than_the_shortest_queue_and_than_the_quickest_model() {
    for (seed, load) in [(1, 0.4), (2, 0.5), (3, 0.6)] {
        let both = [candidate("quick"), candidate("slow")];
        let (mut chosen_seconds, mut exact_seconds, mut windows) = (0.0, 0.0, 0);
        let mut regret = AllocationRegret::default();
        let least_cost = run(seed, load, |planner, request, now_us| {
            let allocation = planner.allocate(request, &both, now_us).unwrap();
            let bids: Vec<_> = allocation.bids.iter().map(|bid| (both[bid.candidate].model.into(), *bid)).collect();
            if let Some(compared) = regret.handle_choice(&bids, now_us) {
                assert!(compared.exact_seconds <= compared.chosen_seconds + 1e-9);
                chosen_seconds += compared.chosen_seconds;
                exact_seconds += compared.exact_seconds;
                windows += 1;
            }
            allocation.bids[0].candidate
        });
        let shortest = run(seed, load, |planner, _, _| {
            let length = |model: &str| planner.backlog(model) + planner.outstanding(model);
            usize::from(length("slow") < length("quick"))
        });
        let turns = {
            let mut turn = 0usize;
            run(seed, load, move |_, _, _| {
                turn += 1;
                usize::from(turn.is_multiple_of(5))
            })
        };
        println!(
            "load {load}: {least_cost:.2} by least cost, {shortest:.2} by the shortest queue, {turns:.2} in turns by speed"
        );
        println!("  regret {:.3} over {windows} windows", chosen_seconds / exact_seconds);
        assert!(least_cost < 0.9 * shortest, "load {load}: {least_cost} {shortest}");
        assert!(least_cost < 0.9 * turns, "load {load}: {least_cost} {turns}");
        assert!(windows > 400 && chosen_seconds / exact_seconds < 1.1, "{chosen_seconds} {exact_seconds}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the models and the task: best first by the rule, as scored one by one.
    #[test]
    fn the_first_is_the_least_of_those_that_may(
        models in proptest::collection::vec((0.01..10.0, 0usize..4, proptest::option::of(0.0..1.0), 0usize..6), 1..6),
        (priority, min_quality, deadline_s) in (0u8..=9, proptest::option::of(0.0..1.0), proptest::option::of(0.1..30.0)),
    ) {
        let names: Vec<String> = (0..models.len()).map(|number| format!("m{number}")).collect();
        let mut planner = Planner::new(by_name("cmu", None).unwrap());
        let mut number = 0;
        for (name, (seconds, slots, _, waiting)) in names.iter().zip(&models) {
            planner.handle_model(name, Prior { expected_seconds: Some(*seconds) });
            planner.handle_load(name, *slots);
            for _ in 0..*waiting {
                number += 1;
                planner.handle_arrival(Arrival { model: name.clone(), ..arrival(number, 4, *seconds) }, 0).unwrap();
            }
        }
        let candidates: Vec<Candidate<'_>> = names.iter().zip(&models)
            .map(|(name, (_, _, quality, _))| Candidate { quality: *quality, ..candidate(name) })
            .collect();
        let deadline_us = deadline_s.map(|seconds: f64| (seconds * 1e6) as u64);
        let request = Request { min_quality, deadline_us, ..request(priority) };
        let cost = |(seconds, slots, _, waiting): &(f64, usize, Option<f64>, usize)| {
            // None runs yet, so one that has a free slot waits for its like, by all of the slots.
            let queue = if *slots == 0 { f64::INFINITY } else { *waiting as f64 * seconds / *slots as f64 };
            (f64::from(priority.max(1)) * seconds, queue)
        };
        let good = |quality: Option<f64>| min_quality.is_none_or(|least| quality.is_some_and(|quality| quality >= least));
        let best = models.iter().filter(|(_, _, quality, _)| good(*quality)).map(|model| {
            let (weighted, queue) = cost(model);
            let late = deadline_s.is_some_and(|deadline| queue + model.0 > deadline);
            (late, weighted + queue, weighted)
        });
        let best = best.min_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)).then(one.2.total_cmp(&other.2)));
        match (planner.allocate(&request, &candidates, 0), best) {
            (None, None) => {}
            (Some(allocation), Some((_, total, weighted))) => {
                let found = allocation.bids[0];
                let sum = found.weighted_seconds + found.queue_seconds;
                prop_assert!((found.weighted_seconds - weighted).abs() < 1e-3, "{found:?} {weighted}");
                prop_assert!(sum == total || (sum - total).abs() < 1e-3, "{found:?} {total}");
            }
            (found, best) => prop_assert!(false, "{found:?} {best:?}"),
        }
    }
}
