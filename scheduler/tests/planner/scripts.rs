//! What the planner does, told step by step.

use taskyard_scheduler::planner::policy::{Cmu, by_name};
use taskyard_scheduler::planner::{
    Arrival, Decision, DispatchReason, Late, Planner, Prior, Ran, Refusal, Room, WaitReason,
};
use taskyard_shared::TaskId;

use super::{POLICIES, SECOND, arrival, dispatched, drain, id, planner};

#[test]
fn each_policy_has_its_own_order() {
    let order = |policy| {
        let mut planner = planner(policy);
        planner.set_late(Late::Keep);
        for (number, priority, seconds, deadline) in [(1, 1, 8.0, 30), (2, 2, 1.0, 20), (3, 9, 60.0, 90)] {
            let deadline_us = Some(deadline * SECOND);
            planner.handle_arrival(Arrival { deadline_us, ..arrival(number, priority, seconds) }, 0).unwrap();
        }
        drain(&mut planner, 0)
    };
    assert_eq!(order("fifo"), [id(1), id(2), id(3)]);
    assert_eq!(order("strict"), [id(3), id(2), id(1)]);
    assert_eq!(order("edf"), [id(2), id(1), id(3)]);
    assert_eq!(order("wspt"), [id(2), id(1), id(3)]);
    assert_eq!(order("cmu"), [id(2), id(3), id(1)]);
}

#[test]
fn policies_are_found_by_name() {
    for name in POLICIES {
        assert_eq!(planner(name).policy(), name);
    }
    assert!(by_name("lottery", Some(10.0)).is_none());
    assert_eq!(Planner::new(Cmu::default()).policy(), "cmu");
}

#[test]
fn edf_orders_by_deadline_and_wspt_by_expected_time_inside_one_lane_too() {
    for (policy, order) in [("edf", [2, 3, 1]), ("wspt", [3, 1, 2]), ("fifo", [1, 2, 3])] {
        let mut planner = planner(policy);
        for (number, deadline, seconds) in [(1, 30, 1.2), (2, 10, 1.3), (3, 20, 1.1)] {
            let deadline_us = Some(deadline * SECOND);
            planner.handle_arrival(Arrival { deadline_us, ..arrival(number, 4, seconds) }, 0).unwrap();
        }
        assert_eq!(drain(&mut planner, 0), order.map(id), "{policy}");
    }
}

#[test]
fn an_urgent_late_comer_overtakes_the_whole_backlog() {
    let mut planner = planner("cmu");
    for number in 0..20_000 {
        planner.handle_arrival(arrival(number, 0, 0.002), number as u64).unwrap();
    }
    planner.handle_load("m", 1);
    let running = dispatched(&mut planner, SECOND);
    planner.handle_arrival(arrival(99_999, 9, 0.002), SECOND).unwrap();
    assert_eq!(planner.poll_decision(SECOND), None, "beyond credit");
    assert_eq!(planner.explain(id(99_999)).unwrap().reason, WaitReason::NoCredit);
    planner.handle_completion(running, None);
    assert_eq!(dispatched(&mut planner, SECOND), id(99_999));
}

#[test]
fn equal_tasks_leave_as_they_came_though_the_estimate_moved() {
    let mut planner = planner("cmu");
    planner.handle_load("m", 1);
    planner.handle_model("m", Prior { expected_seconds: Some(1.0) });
    let like = |number: u128, priority: u8| Arrival { expected: None, ..arrival(number, priority, 0.0) };
    // Each run is half as long as the one before, so of each that comes less is expected than of those that wait.
    for number in 0..20 {
        planner.handle_arrival(like(2 * number, 4), number as u64).unwrap();
        planner.handle_arrival(like(2 * number + 1, 4), number as u64).unwrap();
        assert_eq!(dispatched(&mut planner, number as u64), id(number));
        let ran = Ran { seconds: 0.5_f64.powi(number as i32), whole: true };
        assert!(planner.handle_completion(id(number), Some(ran)));
    }
}

#[test]
fn a_backlog_that_was_taken_for_short_does_not_go_before_an_urgent_task() {
    let mut planner = planner("cmu");
    planner.handle_load("m", 1);
    planner.handle_model("m", Prior { expected_seconds: Some(0.001) });
    let like = |number: u128, priority: u8| Arrival { expected: None, ..arrival(number, priority, 0.0) };
    for number in 0..1000 {
        planner.handle_arrival(like(number, 0), number as u64).unwrap();
    }
    for _ in 0..50 {
        let ran = dispatched(&mut planner, SECOND);
        assert!(planner.handle_completion(ran, Some(Ran { seconds: 0.1, whole: true })));
    }
    planner.handle_arrival(like(1000, 9), SECOND).unwrap();
    assert_eq!(dispatched(&mut planner, SECOND), id(1000));
}

#[test]
fn under_cmu_a_near_deadline_makes_a_task_up_to_four_times_as_heavy() {
    let mut planner = planner("cmu");
    planner.handle_load("m", 1);
    // Weight 2 with a deadline against weights 3 and 5 without; all take a second.
    let deadline_us = Some(20 * SECOND);
    let now = |seconds: u64| seconds * SECOND;
    planner.handle_arrival(Arrival { deadline_us, ..arrival(1, 1, 1.0) }, now(0)).unwrap();
    for (at, other, priority, first) in [(10, 2, 2, 2), (11, 3, 2, 1), (16, 4, 4, 4), (17, 5, 4, 1)] {
        let arrived_us = Some(0);
        planner.handle_arrival(Arrival { arrived_us, ..arrival(other, priority, 1.0) }, now(at)).unwrap();
        let next = dispatched(&mut planner, now(at));
        assert_eq!(next, id(first), "at {at} s");
        assert!(planner.handle_dispatch_failed(next));
        assert!(planner.handle_cancel(id(other)));
    }
}

#[test]
fn strict_starves_where_cmu_does_not() {
    let served = |policy| {
        let mut planner = planner(policy);
        planner.handle_load("m", 1);
        planner.handle_arrival(arrival(0, 0, 8.0), 0).unwrap();
        (1..2_000u64).find(|&tick| {
            planner.handle_arrival(arrival(u128::from(tick), 9, 1.0), tick * SECOND).unwrap();
            let next = dispatched(&mut planner, tick * SECOND);
            planner.handle_completion(next, None);
            next == id(0)
        })
    };
    // (1/8)·(1 + age/10) reaches 10/1 at an age of 790 s, and the older one wins the tie.
    assert_eq!(served("cmu"), Some(790));
    assert_eq!(served("strict"), None);
}

#[test]
fn a_delayed_task_waits_for_its_start() {
    let mut planner = planner("cmu");
    planner.handle_load("m", 4);
    let later = Arrival { not_before_us: Some(5 * SECOND), ..arrival(1, 4, 1.0) };
    planner.handle_arrival(later.clone(), 0).unwrap();
    assert_eq!(planner.handle_arrival(later, 0), Err(Refusal::Duplicate));
    assert_eq!((planner.poll_decision(4 * SECOND), planner.poll_timeout()), (None, Some(5 * SECOND)));
    let explanation = planner.explain(id(1)).unwrap();
    assert_eq!((explanation.reason, explanation.starts_us), (WaitReason::NotBefore, Some(5 * SECOND)));
    assert_eq!(dispatched(&mut planner, 5 * SECOND), id(1));
    assert_eq!(planner.poll_timeout(), None);
    let at_once = Arrival { not_before_us: Some(6 * SECOND), ..arrival(2, 4, 1.0) };
    planner.handle_arrival(at_once, 6 * SECOND).unwrap();
    assert_eq!(planner.explain(id(2)).unwrap().reason, WaitReason::NextDecision);
}

#[test]
fn an_expired_task_is_told_whether_it_could_start_or_not() {
    let mut planner = planner("cmu");
    planner.handle_arrival(Arrival { deadline_us: Some(9 * SECOND), ..arrival(2, 4, 1.0) }, 5 * SECOND).unwrap();
    assert_eq!(planner.explain(id(2)).unwrap().reason, WaitReason::NoWorker);
    assert_eq!(planner.poll_timeout(), Some(8 * SECOND + 1), "when it is too late to begin");
    assert_eq!(planner.poll_decision(8 * SECOND + 1), None);
    assert_eq!(planner.poll_timeout(), Some(9 * SECOND));
    assert_eq!(planner.poll_decision(9 * SECOND), Some(Decision::Expire { id: id(2), model: "m".into() }));
    assert_eq!(planner.waiting(), 0);

    let never = Arrival { deadline_us: Some(10 * SECOND), not_before_us: Some(60 * SECOND), ..arrival(3, 4, 1.0) };
    planner.handle_arrival(never, 9 * SECOND).unwrap();
    assert_eq!(planner.poll_timeout(), Some(10 * SECOND));
    assert_eq!(planner.poll_decision(10 * SECOND), Some(Decision::Expire { id: id(3), model: "m".into() }));

    let late = Arrival { deadline_us: Some(10 * SECOND), ..arrival(4, 4, 1.0) };
    planner.set_late(Late::Keep);
    planner.handle_load("m", 1);
    planner.handle_arrival(late, 11 * SECOND).unwrap();
    assert_eq!(planner.poll_decision(11 * SECOND), Some(Decision::Expire { id: id(4), model: "m".into() }));
}

#[test]
fn a_dispatched_task_no_longer_expires() {
    let mut planner = planner("edf");
    planner.handle_load("m", 1);
    planner.handle_arrival(Arrival { deadline_us: Some(SECOND), ..arrival(1, 4, 1.0) }, 0).unwrap();
    assert_eq!(dispatched(&mut planner, 0), id(1));
    assert_eq!((planner.poll_timeout(), planner.poll_decision(2 * SECOND)), (None, None));
    // Given back, its deadline holds again.
    assert!(planner.handle_dispatch_failed(id(1)));
    assert_eq!(planner.poll_decision(2 * SECOND), Some(Decision::Expire { id: id(1), model: "m".into() }));
}

#[test]
fn a_flood_of_expiries_does_not_hold_up_dispatches() {
    let mut planner = planner("strict");
    for number in 0..1000 {
        planner.handle_arrival(Arrival { deadline_us: Some(SECOND), ..arrival(number, 9, 1.0) }, 0).unwrap();
    }
    for number in 1000..1010 {
        planner.handle_arrival(arrival(number, 0, 1.0), 0).unwrap();
    }
    planner.handle_load("m", 10);
    let first_20: Vec<_> = (0..20).map_while(|_| planner.poll_decision(SECOND)).collect();
    let dispatches = first_20.iter().filter(|decision| matches!(decision, Decision::Dispatch { .. })).count();
    assert_eq!((first_20.len(), dispatches), (20, 10), "they take turns");
    let rest: Vec<_> = std::iter::from_fn(|| planner.poll_decision(SECOND)).collect();
    assert_eq!(rest.len(), 990, "and every expiry is told");
    assert_eq!((planner.waiting(), planner.outstanding("m")), (0, 10));
}

#[test]
fn dispatches_without_end_do_not_hold_up_an_expiry() {
    let mut planner = planner("strict");
    planner.handle_load("m", 1);
    for number in 0..10 {
        planner.handle_arrival(arrival(number, 9, 1.0), 0).unwrap();
    }
    planner.handle_arrival(Arrival { deadline_us: Some(SECOND), ..arrival(10, 0, 1.0) }, 0).unwrap();
    let told = (0..10).position(|_| match planner.poll_decision(SECOND) {
        Some(Decision::Dispatch { id, .. }) => !planner.handle_completion(id, None),
        Some(Decision::Expire { id: expired, .. }) => expired == id(10),
        Some(Decision::Shed { .. }) => panic!("nothing is late"),
        None => panic!("idle"),
    });
    assert!(told.is_some_and(|turn| turn < 2), "told at turn {told:?}");
}

#[test]
fn models_take_turns() {
    let mut planner = planner("cmu");
    for number in 0..12 {
        let model = ["a", "b", "c"][number as usize % 3].into();
        planner.handle_arrival(Arrival { model, ..arrival(number, 4, 1.0) }, 0).unwrap();
    }
    for model in ["a", "b", "c"] {
        planner.handle_load(model, 3);
    }
    let turns: Vec<_> = std::iter::from_fn(|| planner.poll_decision(0))
        .map(|decision| match decision {
            Decision::Dispatch { model, .. } => model.to_string(),
            other => panic!("nothing has a deadline: {other:?}"),
        })
        .collect();
    assert_eq!(turns.concat(), "abcabcabc");
}

#[test]
fn a_failed_dispatch_gives_back_credit_and_place() {
    let mut planner = planner("fifo");
    for number in 0..3 {
        planner.handle_arrival(arrival(number, 4, 1.0), number as u64).unwrap();
    }
    planner.handle_load("m", 1);
    assert_eq!(dispatched(&mut planner, 10), id(0));
    assert!(!planner.handle_cancel(id(0)), "a dispatched task stays");
    assert!(planner.handle_dispatch_failed(id(0)));
    assert!(!planner.handle_dispatch_failed(id(0)), "it counts once");
    assert!(!planner.handle_completion(id(0), None));
    assert_eq!((planner.waiting(), planner.outstanding("m")), (3, 0));
    assert_eq!(drain(&mut planner, 20), [id(0), id(1), id(2)]);
}

#[test]
fn a_retry_keeps_its_age() {
    let mut planner = planner("fifo");
    planner.handle_load("m", 1);
    planner.handle_arrival(arrival(1, 4, 1.0), 0).unwrap();
    planner.handle_arrival(arrival(2, 4, 1.0), 10).unwrap();
    assert_eq!(dispatched(&mut planner, 20), id(1));
    assert!(planner.handle_completion(id(1), None));
    let again = Arrival { arrived_us: Some(0), not_before_us: Some(50), ..arrival(1, 4, 1.0) };
    planner.handle_arrival(again, 30).unwrap();
    assert_eq!(planner.explain(id(1)).unwrap().arrival_us, 0);
    assert_eq!(drain(&mut planner, 60), [id(1), id(2)]);
}

#[test]
fn a_decision_names_its_reason() {
    let reason = |policy, tasks: &[(u8, f64, &str)]| {
        let mut planner = planner(policy);
        for (number, &(priority, seconds, tenant)) in (0..).zip(tasks) {
            planner.handle_arrival(Arrival { tenant: tenant.into(), ..arrival(number, priority, seconds) }, 0).unwrap();
        }
        planner.handle_load("m", 1);
        match planner.poll_decision(SECOND) {
            Some(Decision::Dispatch { reason, .. }) => reason,
            other => panic!("instead of a dispatch: {other:?}"),
        }
    };
    assert_eq!(reason("cmu", &[(4, 1.0, "a"), (4, 1.0, "a")]), DispatchReason::OnlyLane);
    assert_eq!(reason("cmu", &[(4, 1.0, "a"), (5, 1.0, "a")]), DispatchReason::BestScore);
    assert_eq!(reason("strict", &[(4, 1.0, "a"), (4, 9.0, "a"), (1, 1.0, "a")]), DispatchReason::Oldest);
    assert_eq!(reason("strict", &[(1, 1.0, "a"), (1, 9.0, "a"), (4, 1.0, "a")]), DispatchReason::BestScore);
    assert_eq!(reason("cmu", &[(4, 1.0, "a"), (4, 1.0, "b")]), DispatchReason::Oldest);
    assert_eq!(reason("wspt", &[(4, 1.0, "a"), (4, 1.1, "b")]), DispatchReason::BestScore);
}

#[test]
fn reasons_have_distinct_labels() {
    let mut labels: Vec<_> = WaitReason::ALL.map(WaitReason::as_str).into();
    labels.extend(DispatchReason::ALL.map(DispatchReason::as_str));
    labels.sort_unstable();
    let all = labels.len();
    labels.dedup();
    assert_eq!((labels.len(), all), (15, 15));
    assert!(labels.iter().all(|label| label.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
}

#[test]
fn a_pressing_task_goes_past_what_was_sent_ahead_and_no_more_do_than_that() {
    for (policy, passes) in [("cmu", true), ("wspt", true), ("strict", true), ("fifo", false)] {
        let mut planner = planner(policy);
        planner.handle_load("m", Room { slots: 1, ahead: 1, grain: 1 });
        for number in 0..4 {
            planner.handle_arrival(arrival(number, 1, 0.002), 0).unwrap();
        }
        let (running, ahead) = (dispatched(&mut planner, 0), dispatched(&mut planner, 0));
        assert_eq!(planner.poll_decision(0), None);
        // The same again is not pressing.
        planner.handle_arrival(arrival(4, 1, 0.002), 0).unwrap();
        assert_eq!(planner.poll_decision(0), None, "{policy}");
        for number in [5, 6] {
            planner.handle_arrival(arrival(number, 9, 0.002), 0).unwrap();
        }
        let expected = Decision::Dispatch { id: id(5), model: "m".into(), reason: DispatchReason::Passes };
        assert_eq!(planner.poll_decision(0), passes.then_some(expected), "{policy}");
        assert_eq!(planner.poll_decision(0), None, "one was sent ahead, and one may go past it");
        if passes {
            // It took no credit of others, and gives none back; the passage is free again.
            assert!(planner.handle_completion(id(5), None));
            assert_eq!(planner.poll_decision(0), None, "{policy}: the credits of the two are taken still");
            planner.handle_arrival(arrival(7, 9, 0.002), 0).unwrap();
            assert_eq!(dispatched(&mut planner, 0), id(6));
        }
        assert!(planner.handle_completion(running, None) && planner.handle_completion(ahead, None));
    }
}

#[test]
fn what_was_sent_ahead_is_not_passed_by_its_like_once_such_tasks_turn_out_to_be_short() {
    for policy in ["cmu", "wspt"] {
        let mut planner = planner(policy);
        planner.handle_load("m", Room { slots: 1, ahead: 2, grain: 1 });
        for number in 0..8 {
            planner.handle_arrival(Arrival { cost: None, expected: None, ..arrival(number, 4, 0.0) }, 0).unwrap();
        }
        for number in 0..3 {
            assert_eq!(dispatched(&mut planner, 0), id(number));
        }
        for number in 0..5 {
            assert!(planner.handle_completion(id(number), Some(Ran { seconds: 1e-5, whole: true })));
            match planner.poll_decision(0) {
                Some(Decision::Dispatch { id: next, reason, .. }) => {
                    assert_eq!((next, reason == DispatchReason::Passes), (id(number + 3), false), "{policy}");
                }
                other => panic!("instead of a dispatch: {other:?}"),
            }
            assert_eq!(planner.poll_decision(0), None, "{policy}: nobody is in a hurry");
        }
    }
}

#[test]
fn without_a_worker_nothing_goes_past() {
    let mut planner = planner("cmu");
    planner.handle_load("m", Room { slots: 1, ahead: 2, grain: 1 });
    planner.handle_arrival(arrival(1, 1, 1.0), 0).unwrap();
    dispatched(&mut planner, 0);
    planner.handle_load("m", 0);
    planner.handle_arrival(arrival(2, 9, 1.0), 0).unwrap();
    assert_eq!(planner.poll_decision(0), None);
}

#[test]
fn credits_are_given_out_by_the_grain_once_all_were_taken() {
    let mut planner = planner("cmu");
    planner.handle_load("m", Room { slots: 6, ahead: 2, grain: 3 });
    for number in 0..20 {
        planner.handle_arrival(arrival(number, 4, 0.001), 0).unwrap();
    }
    let mut out: Vec<TaskId> = (0..8).map(|_| dispatched(&mut planner, 0)).collect();
    for _ in 0..2 {
        planner.handle_completion(out.remove(0), None);
        assert_eq!(planner.poll_decision(0), None, "fewer than a grain");
        assert_eq!(planner.explain(id(15)).unwrap().reason, WaitReason::NextDecision);
    }
    planner.handle_completion(out.remove(0), None);
    out.extend((0..3).map(|_| dispatched(&mut planner, 0)));
    assert_eq!(planner.poll_decision(0), None);
    // Everything out comes back in whatever order, and everything that waits goes.
    let mut served = 11;
    while let Some(id) = out.pop() {
        planner.handle_completion(id, None);
        while let Some(Decision::Dispatch { id, .. }) = planner.poll_decision(0) {
            out.push(id);
            served += 1;
            assert!(out.len() <= 8);
        }
    }
    assert_eq!((served, planner.waiting()), (20, 0));
}

#[test]
fn a_turn_is_as_many_tasks_as_travel_together() {
    let mut planner = planner("cmu");
    for (at, model) in ["a", "b"].into_iter().enumerate() {
        for number in 0..8 {
            let task = arrival(number + 100 * at as u128, 4, 1.0);
            planner.handle_arrival(Arrival { model: model.into(), ..task }, 0).unwrap();
        }
        planner.handle_load(model, Room { slots: 6, ahead: 0, grain: 3 });
    }
    let mut served = String::new();
    while let Some(Decision::Dispatch { model, .. }) = planner.poll_decision(0) {
        served.push_str(&model);
    }
    assert_eq!(served, "aaabbbaaabbb");
}

#[test]
fn an_explanation_counts_what_is_ahead() {
    let mut planner = planner("cmu");
    for number in 0..5 {
        let tenant = if number == 1 { "other" } else { "t" }.into();
        planner.handle_arrival(Arrival { tenant, ..arrival(number, 4, 1.0) }, number as u64).unwrap();
    }
    let explanation = planner.explain(id(3)).unwrap();
    assert_eq!((explanation.ahead_in_lane, explanation.queued_in_model), (Some(2), 5));
    planner.handle_load("m", 1);
    assert_eq!(planner.explain(id(0)).unwrap().reason, WaitReason::NextDecision);
    assert_eq!(dispatched(&mut planner, 9), id(0));
    assert_eq!((planner.explain(id(0)), planner.explain(id(77))), (None, None));
    assert_eq!(planner.explain(id(3)).unwrap().ahead_in_lane, Some(1));
}

#[test]
fn an_unknown_model_without_workers_is_not_remembered() {
    let mut planner = planner("cmu");
    planner.handle_load("ghost", 0);
    assert!(planner.stats().models.is_empty());
    planner.handle_load("m", 2);
    assert_eq!(planner.stats().models.len(), 1);
    planner.handle_load("m", 0);
    assert!(planner.stats().models.is_empty());
}

#[test]
fn a_task_that_others_wait_for_is_pressing_by_when_it_is_due_and_outlives_that() {
    for policy in ["cmu", "edf"] {
        let mut planner = planner(policy);
        // It has until 1000 s, and what comes after it takes 990 s of that.
        let step = Arrival { deadline_us: Some(1000 * SECOND), due_us: Some(10 * SECOND), ..arrival(2, 4, 1.0) };
        planner.handle_arrival(Arrival { deadline_us: Some(900 * SECOND), ..arrival(1, 4, 1.0) }, 0).unwrap();
        planner.handle_arrival(step, 1).unwrap();
        planner.handle_arrival(Arrival { deadline_us: Some(800 * SECOND), ..arrival(3, 4, 1.0) }, 2).unwrap();
        let now_us = 8 * SECOND + SECOND / 2;
        planner.handle_load("m", 1);
        assert_eq!(dispatched(&mut planner, now_us), id(2), "{policy}");
        assert!(planner.handle_completion(id(2), None));
        // Behind its time it is as pressing as ever, and waits until its deadline.
        let late = Arrival { deadline_us: Some(1000 * SECOND), due_us: Some(10 * SECOND), ..arrival(4, 4, 1.0) };
        planner.handle_arrival(late, 20 * SECOND).unwrap();
        assert_eq!(dispatched(&mut planner, 500 * SECOND), id(4), "{policy}");
        assert!(planner.handle_completion(id(4), None));
        let never = Arrival { deadline_us: Some(1000 * SECOND), due_us: Some(10 * SECOND), ..arrival(5, 4, 1.0) };
        planner.handle_pause("m", true);
        planner.handle_arrival(never, 501 * SECOND).unwrap();
        let mut expired = Vec::new();
        while let Some(decision) = planner.poll_decision(999 * SECOND) {
            expired.push(format!("{decision:?}"));
        }
        assert!(expired.iter().all(|told| !told.contains(&id(5).0.to_string())), "{policy}: {expired:?}");
    }
}
