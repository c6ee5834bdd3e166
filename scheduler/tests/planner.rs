//! The planner as scripts, and as properties over any sequence of events.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use taskyard_scheduler::planner::policy::{Cmu, Edf, Fifo, Strict, Wspt};
use taskyard_scheduler::planner::{Arrival, Decision, Planner, Refusal, WaitReason};
use taskyard_shared::{Priority, TaskId};

const SECOND: u64 = 1_000_000;

fn id(number: u128) -> TaskId {
    serde_json::from_value(serde_json::json!(format!("00000000-0000-7000-8000-{number:012x}"))).unwrap()
}

fn arrival(number: u128, priority: u8, expected_seconds: f64) -> Arrival {
    Arrival {
        id: id(number),
        model: "m".into(),
        tenant: "t".into(),
        priority: Priority::try_from(priority).unwrap(),
        expected_seconds,
        deadline_us: None,
        not_before_us: None,
    }
}

/// Serves everything on one slot and answers the order.
fn drain(planner: &mut Planner, now_us: u64) -> Vec<TaskId> {
    planner.handle_load("m", 1);
    let mut order = Vec::new();
    while let Some(Decision::Dispatch { id, .. }) = planner.poll_decision(now_us) {
        order.push(id);
        assert!(planner.handle_completion(id));
    }
    order
}

#[test]
fn each_policy_has_its_own_order() {
    let tasks = |planner: &mut Planner| {
        for (number, priority, seconds, deadline) in [(1, 1, 8.0, 30), (2, 2, 1.0, 20), (3, 9, 60.0, 90)] {
            let deadline_us = Some(deadline * SECOND);
            planner.handle_arrival(Arrival { deadline_us, ..arrival(number, priority, seconds) }, 0).unwrap();
        }
    };
    let order = |mut planner: Planner| {
        tasks(&mut planner);
        drain(&mut planner, 0)
    };
    assert_eq!(order(Planner::new(Fifo)), [id(1), id(2), id(3)]);
    assert_eq!(order(Planner::new(Strict)), [id(3), id(2), id(1)]);
    assert_eq!(order(Planner::new(Edf)), [id(2), id(1), id(3)]);
    assert_eq!(order(Planner::new(Wspt)), [id(2), id(1), id(3)]);
}

#[test]
fn edf_orders_by_deadline_inside_one_lane_too() {
    let mut planner = Planner::new(Edf);
    for (number, deadline) in [(1, 30), (2, 10), (3, 20)] {
        let deadline_us = Some(deadline * SECOND);
        planner.handle_arrival(Arrival { deadline_us, ..arrival(number, 4, 1.0) }, 0).unwrap();
    }
    assert_eq!(drain(&mut planner, 0), [id(2), id(3), id(1)]);
}

#[test]
fn an_urgent_late_comer_overtakes_the_whole_backlog() {
    let mut planner = Planner::new(Cmu::default());
    for number in 0..20_000 {
        planner.handle_arrival(arrival(number, 0, 0.002), number as u64).unwrap();
    }
    planner.handle_load("m", 1);
    let Some(Decision::Dispatch { id: running, .. }) = planner.poll_decision(SECOND) else { panic!("idle") };
    planner.handle_arrival(arrival(99_999, 9, 0.002), SECOND).unwrap();
    assert_eq!(planner.poll_decision(SECOND), None, "beyond credit");
    assert_eq!(planner.explain(id(99_999)), Some(WaitReason::NoCredit));
    planner.handle_completion(running);
    assert!(matches!(planner.poll_decision(SECOND), Some(Decision::Dispatch { id: next, .. }) if next == id(99_999)));
}

#[test]
fn under_cmu_the_least_task_is_served_while_better_ones_keep_coming() {
    let mut planner = Planner::new(Cmu::default());
    planner.handle_load("m", 1);
    planner.handle_arrival(arrival(0, 0, 10.0), 0).unwrap();
    let served = (1..10_000u64).find(|&tick| {
        let now_us = tick * SECOND;
        planner.handle_arrival(arrival(u128::from(tick), 9, 1.0), now_us).unwrap();
        let Some(Decision::Dispatch { id: next, .. }) = planner.poll_decision(now_us) else { panic!("idle") };
        planner.handle_completion(next);
        next == id(0)
    });
    // (1/10)·(1 + age/10) reaches 10/1 at an age of 990 s, and the older one wins the tie.
    assert_eq!(served, Some(990));
    // The same under strict priority never comes.
    let mut strict = Planner::new(Strict);
    strict.handle_load("m", 1);
    strict.handle_arrival(arrival(0, 0, 10.0), 0).unwrap();
    for tick in 1..2_000u64 {
        strict.handle_arrival(arrival(u128::from(tick), 9, 1.0), tick * SECOND).unwrap();
        let Some(Decision::Dispatch { id: next, .. }) = strict.poll_decision(tick * SECOND) else { panic!("idle") };
        assert_ne!(next, id(0));
        strict.handle_completion(next);
    }
}

#[test]
fn a_delayed_task_waits_for_its_start_and_an_expired_one_is_told() {
    let mut planner = Planner::new(Cmu::default());
    planner.handle_load("m", 4);
    let later = Arrival { not_before_us: Some(5 * SECOND), ..arrival(1, 4, 1.0) };
    planner.handle_arrival(later.clone(), 0).unwrap();
    assert_eq!(planner.handle_arrival(later, 0), Err(Refusal::Duplicate));
    assert_eq!((planner.poll_decision(4 * SECOND), planner.poll_timeout()), (None, Some(5 * SECOND)));
    assert_eq!(planner.explain(id(1)), Some(WaitReason::NotBefore));
    assert!(matches!(planner.poll_decision(5 * SECOND), Some(Decision::Dispatch { .. })));

    planner.handle_load("m", 0);
    planner.handle_arrival(Arrival { deadline_us: Some(9 * SECOND), ..arrival(2, 4, 1.0) }, 5 * SECOND).unwrap();
    assert_eq!(planner.explain(id(2)), Some(WaitReason::NoWorker));
    assert_eq!(planner.poll_timeout(), Some(9 * SECOND));
    assert_eq!(planner.poll_decision(9 * SECOND), Some(Decision::Expire { id: id(2), model: "m".into() }));
    assert_eq!(planner.waiting(), 0);

    let never = Arrival { deadline_us: Some(10 * SECOND), not_before_us: Some(60 * SECOND), ..arrival(3, 4, 1.0) };
    planner.handle_arrival(never, 9 * SECOND).unwrap();
    assert_eq!(planner.poll_timeout(), Some(10 * SECOND));
    assert_eq!(planner.poll_decision(10 * SECOND), Some(Decision::Expire { id: id(3), model: "m".into() }));
}

#[derive(Clone, Debug)]
enum Event {
    Arrive { model: u8, priority: u8, cost: u8, deadline: Option<u16>, delay: Option<u16> },
    Load { model: u8, capacity: u8 },
    CompleteOldest,
    CancelOldest,
    Pass { ms: u16 },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..3u8, 0..10u8, 0..12u8, prop::option::of(1..3000u16), prop::option::of(1..3000u16))
            .prop_map(|(model, priority, cost, deadline, delay)| Event::Arrive { model, priority, cost, deadline, delay }),
        2 => (0..3u8, 0..5u8).prop_map(|(model, capacity)| Event::Load { model, capacity }),
        4 => Just(Event::CompleteOldest),
        1 => Just(Event::CancelOldest),
        3 => (0..2000u16).prop_map(|ms| Event::Pass { ms }),
    ];
    prop::collection::vec(event, 1..200)
}

fn planner(policy: usize) -> Planner {
    match policy {
        0 => Planner::new(Cmu::default()),
        1 => Planner::new(Fifo),
        2 => Planner::new(Strict),
        3 => Planner::new(Edf),
        _ => Planner::new(Wspt),
    }
}

proptest! {
    #[test]
    fn no_task_is_lost_none_is_dispatched_twice_and_credit_holds(policy in 0..5usize, events in events()) {
        let mut planner = planner(policy);
        let (mut now_us, mut number) = (0u64, 0u128);
        let mut capacity: BTreeMap<String, usize> = BTreeMap::new();
        let mut waiting: BTreeSet<TaskId> = BTreeSet::new();
        let mut running: Vec<(TaskId, std::sync::Arc<str>)> = Vec::new();
        let mut seen: BTreeSet<TaskId> = BTreeSet::new();
        for event in events {
            match event {
                Event::Arrive { model, priority, cost, deadline, delay } => {
                    number += 1;
                    let task = Arrival {
                        model: format!("m{model}"),
                        deadline_us: deadline.map(|ms| now_us + u64::from(ms) * 1000),
                        not_before_us: delay.map(|ms| now_us + u64::from(ms) * 1000),
                        ..arrival(number, priority, f64::from(cost) / 4.0)
                    };
                    waiting.insert(task.id);
                    planner.handle_arrival(task, now_us).unwrap();
                }
                Event::Load { model, capacity: slots } => {
                    planner.handle_load(&format!("m{model}"), slots.into());
                    capacity.insert(format!("m{model}"), slots.into());
                }
                Event::CompleteOldest => if !running.is_empty() {
                    let (done, _) = running.remove(0);
                    prop_assert!(planner.handle_completion(done));
                    prop_assert!(!planner.handle_completion(done), "a completion counts once");
                },
                Event::CancelOldest => if let Some(first) = waiting.pop_first() {
                    prop_assert!(planner.handle_cancel(first));
                },
                Event::Pass { ms } => now_us += u64::from(ms) * 1000,
            }
            while let Some(decision) = planner.poll_decision(now_us) {
                match decision {
                    Decision::Dispatch { id, model, .. } => {
                        prop_assert!(waiting.remove(&id), "dispatched what did not wait");
                        prop_assert!(seen.insert(id), "dispatched twice");
                        running.push((id, model.clone()));
                        let held = running.iter().filter(|(_, of)| *of == model).count();
                        prop_assert!(held <= capacity.get(&*model).copied().unwrap_or(0), "beyond credit");
                        prop_assert_eq!(held, planner.outstanding(&model));
                    }
                    Decision::Expire { id, .. } => prop_assert!(waiting.remove(&id)),
                }
            }
            prop_assert_eq!(planner.waiting(), waiting.len(), "a task was lost or made up");
        }
        // With room for all and time enough, everything that waits comes out.
        for model in 0..3 {
            planner.handle_load(&format!("m{model}"), usize::MAX);
        }
        now_us += 10 * SECOND;
        while let Some(decision) = planner.poll_decision(now_us) {
            let (Decision::Dispatch { id, .. } | Decision::Expire { id, .. }) = decision;
            prop_assert!(waiting.remove(&id));
        }
        prop_assert!(waiting.is_empty());
    }

    #[test]
    fn order_holds_inside_a_lane(policy in 0..5usize, count in 1..200u128) {
        let mut planner = planner(policy);
        for number in 0..count {
            planner.handle_arrival(arrival(number, 4, 1.0), number as u64).unwrap();
        }
        prop_assert_eq!(drain(&mut planner, SECOND), (0..count).map(id).collect::<Vec<_>>());
    }
}
