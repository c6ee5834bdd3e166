//! What holds whatever happens.

use proptest::prelude::*;
use taskyard_scheduler::planner::{Arrival, Decision, Fairness};

use super::naive::{Naive, any_fairness, any_overload, any_policy, events};
use super::{SECOND, arrival, dispatched, drain, id, planner};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// No task is lost, none is dispatched twice or beyond credit, and each choice is the best of all tasks there are.
    #[test]
    fn every_decision_is_what_a_scan_of_all_tasks_gives(policy in any_policy(), fairness in any_fairness(), overload in any_overload(), events in events(150)) {
        let mut yard = Naive::new(policy, fairness, 0).with_overload(overload);
        for event in &events {
            yard.handle(event)?;
        }
        yard.decide_all()?;
        yard.let_all_out()?;
        prop_assert_eq!(yard.planner.describe(), format!("policy {policy}, 0 waiting, 0 outstanding\n"));
    }

    #[test]
    fn the_seed_changes_no_decision(policy in any_policy(), fairness in any_fairness(), seed in any::<u64>(), events in events(100)) {
        let (yard, other) = (Naive::new(policy, fairness, 0), Naive::new(policy, fairness, seed));
        let (mut yard, mut other) = (yard.with_overload(Some(300)), other.with_overload(Some(300)));
        for event in &events {
            yard.handle(event)?;
            other.handle(event)?;
            prop_assert_eq!(yard.decide()?, other.decide()?);
        }
        prop_assert_eq!(yard.planner.describe(), other.planner.describe());
    }

    /// A dispatch that fails leaves the state as it was before, to the last detail.
    #[test]
    fn a_failed_dispatch_undoes_the_dispatch(policy in any_policy(), fairness in any_fairness(), events in events(100)) {
        let mut yard = Naive::new(policy, fairness, 0);
        for event in &events {
            yard.handle(event)?;
        }
        yard.decide_all()?;
        yard.planner.handle_load("m0", usize::MAX);
        yard.planner.handle_load("m1", usize::MAX);
        let before = yard.planner.describe();
        if let Some(Decision::Dispatch { id, .. }) = yard.planner.poll_decision(yard.now_us) {
            prop_assert_ne!(&yard.planner.describe(), &before);
            prop_assert!(yard.planner.handle_dispatch_failed(id));
            // Stages may have moved on, as they do at any decision for a model; then only the rest is the same.
            let lines = |text: &str| {
                let mut lines: Vec<String> = text.lines().filter(|line| line.starts_with("    ")).map(task_of).collect();
                lines.sort();
                lines
            };
            prop_assert_eq!(lines(&yard.planner.describe()), lines(&before));
        }
    }

    /// Numbers from outside that make no sense are harmless: everything still comes out.
    #[test]
    fn no_number_is_too_strange(
        policy in any_policy(),
        tasks in prop::collection::vec((prop::num::f64::ANY, strange(), strange(), strange(), any_time()), 1..20),
        end_us in any_time(),
    ) {
        let mut planner = planner(policy);
        planner.handle_load("m", usize::MAX);
        let count = tasks.len();
        let mut out = 0;
        for (number, (expected_seconds, deadline_us, not_before_us, arrived_us, now_us)) in (0..).zip(tasks) {
            let task = Arrival { deadline_us, not_before_us, arrived_us, ..arrival(number, 9, expected_seconds) };
            out += usize::from(planner.handle_arrival(task, now_us).is_err());
            out += usize::from(planner.poll_decision(end_us).is_some());
            prop_assert!(planner.describe().contains("policy") && planner.stats().models.len() == 1);
        }
        out += std::iter::from_fn(|| planner.poll_decision(u64::MAX)).count();
        prop_assert_eq!(out, count);
    }

    /// Cost buckets are the one thing that `cmu` rounds: by a task's own expected time its choice is within √2.
    #[test]
    fn cmu_rounds_by_no_more_than_the_root_of_two(events in events(150)) {
        let mut yard = Naive::new("cmu", Fairness::default(), 0);
        for event in &events {
            yard.handle(event)?;
            if let Some(Decision::Dispatch { id, model, .. }) = yard.decide()? {
                let regret = yard.regret_by_own_time(id, &model);
                prop_assert!((1.0..=std::f64::consts::SQRT_2 + 1e-9).contains(&regret), "{regret}");
            }
        }
    }

    /// Tasks of one class and tenant leave in the order they came, also when some came again with their old age.
    #[test]
    fn order_holds_inside_a_lane(
        policy in any_policy(),
        ages in prop::collection::vec(prop::option::weighted(0.3, 0..1000u64), 1..200),
    ) {
        let mut planner = planner(policy);
        let mut order = Vec::new();
        for (number, arrived_us) in (0u64..).zip(ages) {
            let task = Arrival { arrived_us, ..arrival(number.into(), 4, 1.0) };
            order.push((arrived_us.unwrap_or(1000 + number), number));
            planner.handle_arrival(task, 1000 + number).unwrap();
        }
        order.sort_unstable();
        let expected: Vec<_> = order.into_iter().map(|(_, number)| id(number.into())).collect();
        prop_assert_eq!(drain(&mut planner, SECOND), expected);
    }

    /// Cancelling from anywhere in a long lane leaves the others in order, and leaves no room taken.
    #[test]
    fn a_lane_survives_any_cancelling(cancelled in prop::collection::btree_set(0..300u128, 0..300)) {
        let mut planner = planner("cmu");
        for number in 0..300 {
            planner.handle_arrival(arrival(number, 4, 1.0), number as u64).unwrap();
        }
        for &number in &cancelled {
            prop_assert!(planner.handle_cancel(id(number)));
            prop_assert!(!planner.handle_cancel(id(number)));
        }
        let left = (0..300).filter(|number| !cancelled.contains(number)).map(id);
        prop_assert_eq!(drain(&mut planner, SECOND), left.collect::<Vec<_>>());
    }

    /// A model is served at most one turn after every other model that could be.
    #[test]
    fn models_that_can_be_served_are_served_in_turn(backlogs in prop::collection::vec(1..20u128, 1..8)) {
        let mut planner = planner("cmu");
        for (model, &tasks) in backlogs.iter().enumerate() {
            for number in 0..tasks {
                let model = format!("m{model}");
                let task = Arrival { id: id(number * 100 + planner.waiting() as u128 * 10_000), model, ..arrival(0, 4, 1.0) };
                planner.handle_arrival(task, 0).unwrap();
            }
            planner.handle_load(&format!("m{model}"), 100);
        }
        let mut served = vec![0; backlogs.len()];
        while let Some(Decision::Dispatch { model, .. }) = planner.poll_decision(0) {
            let model: usize = model[1..].parse().unwrap();
            served[model] += 1;
            for (&other, &tasks) in served.iter().zip(&backlogs) {
                prop_assert!(other == tasks || served[model] <= other + 1, "{served:?} of {backlogs:?}");
            }
        }
        prop_assert_eq!(served, backlogs);
    }
}

fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), Just(u64::MAX - 1), any::<u64>(), 0..SECOND]
}

fn strange() -> impl Strategy<Value = Option<u64>> {
    prop::option::of(any_time())
}

/// A task's line of a description without its stage, which moves on when a decision looks at it.
fn task_of(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    if let Some(at) = words.iter().position(|word| *word == "stage") {
        words.drain(at - 1..=at + 1);
    }
    words.join(" ")
}

#[test]
fn what_arrives_at_one_time_leaves_in_order_of_arrival() {
    let mut planner = planner("strict");
    planner.handle_load("m", 1);
    for number in [5, 3, 9, 1] {
        planner.handle_arrival(Arrival { tenant: format!("t{number}"), ..arrival(number, 4, 1.0) }, 0).unwrap();
    }
    for number in [5, 3, 9, 1] {
        assert_eq!(dispatched(&mut planner, 0), id(number));
        planner.handle_completion(id(number), None);
    }
}
