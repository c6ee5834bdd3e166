//! What becomes of tasks when more waits than is done in a bearable time.

use proptest::prelude::*;
use taskyard_scheduler::planner::policy::by_name;
use taskyard_scheduler::planner::{
    Arrival, Decision, Planner, Prior, Ran, Refusal, ShedReason, TenantLimits, WaitReason,
};
use taskyard_shared::TaskId;

use super::{SECOND, arrival, id, planner};

/// `slots` slots of the model `m`, known for long, and a mark of 10 s.
fn yard(slots: usize) -> Planner {
    let mut planner = planner("cmu");
    planner.set_overload(Some(10.0));
    planner.handle_load("m", slots);
    // The first task that comes finds that the slots are new.
    planner.handle_arrival(arrival(1 << 40, 9, 1.0), 0).unwrap();
    assert!(planner.handle_cancel(id(1 << 40)));
    planner
}

/// When nothing is new any more.
const LATER: u64 = 100 * SECOND;

fn is_overloaded(refused: Result<(), Refusal>) -> bool {
    matches!(refused, Err(Refusal::Overloaded { .. }))
}

fn drain_seconds(planner: &Planner) -> f64 {
    planner.stats().models[0].drain_seconds.unwrap()
}

fn shed(planner: &mut Planner, now_us: u64) -> Vec<TaskId> {
    let mut shed = Vec::new();
    while let Some(decision) = planner.poll_decision(now_us) {
        if let Decision::Shed { id, reason, .. } = decision {
            assert_eq!(reason, ShedReason::Overload);
            shed.push(id);
        }
    }
    shed
}

#[test]
fn equal_tasks_are_refused_from_the_mark_on_and_come_in_again_below_the_low_mark() {
    let mut planner = yard(2);
    for number in 0..20 {
        assert_eq!(planner.handle_arrival(arrival(number, 4, 1.0), LATER), Ok(()), "{number}");
    }
    assert_eq!(drain_seconds(&planner), 10.0);
    assert_eq!(planner.handle_arrival(arrival(20, 4, 1.0), LATER), Err(Refusal::Overloaded { seconds: 2.0 }));
    assert!(planner.stats().models[0].is_overloaded);
    // 19, then 18, then 17 wait: still over the low mark of 16.
    for number in 0..3 {
        assert!(planner.handle_cancel(id(number)));
        assert!(is_overloaded(planner.handle_arrival(arrival(21, 4, 1.0), LATER)), "{number}");
    }
    assert!(planner.handle_cancel(id(3)));
    for number in 22..26 {
        assert_eq!(planner.handle_arrival(arrival(number, 4, 1.0), LATER), Ok(()), "{number}");
    }
    assert!(is_overloaded(planner.handle_arrival(arrival(26, 4, 1.0), LATER)));
    assert_eq!(shed(&mut planner, LATER), [], "who was refused takes nobody's place");
}

#[test]
fn a_task_of_more_worth_takes_the_place_of_the_newest_of_the_least() {
    let mut planner = yard(1);
    for number in 0..10 {
        planner.handle_arrival(arrival(number, if number == 5 { 0 } else { 1 }, 1.0), LATER + number as u64).unwrap();
    }
    // Less weight per second, though it has the larger priority.
    assert!(is_overloaded(planner.handle_arrival(arrival(20, 9, 100.0), LATER)));
    for number in 21..23 {
        planner.handle_arrival(arrival(number, 9, 1.0), 2 * LATER).unwrap();
    }
    planner.handle_load("m", 1);
    assert_eq!(shed(&mut planner, 2 * LATER), [id(5), id(9)]);
}

#[test]
fn who_was_taken_in_before_is_not_refused_and_gives_way_like_others() {
    let mut planner = yard(1);
    for number in 0..10 {
        planner.handle_arrival(arrival(number, 4, 1.0), LATER).unwrap();
    }
    let again = Arrival { is_known: true, arrived_us: Some(0), ..arrival(20, 4, 1.0) };
    assert_eq!(planner.handle_arrival(again, LATER), Ok(()));
    assert_eq!(shed(&mut planner, LATER), [id(9)], "it is the oldest");
    let again = Arrival { is_known: true, ..arrival(21, 0, 1.0) };
    assert_eq!(planner.handle_arrival(again, LATER), Ok(()));
    // One of the ten went to the slot meanwhile.
    assert_eq!(shed(&mut planner, LATER), []);
    let again = Arrival { is_known: true, ..arrival(22, 0, 1.0) };
    assert_eq!(planner.handle_arrival(again, LATER), Ok(()));
    assert_eq!(shed(&mut planner, LATER), [id(22)], "it is worth the least, and told so");
}

#[test]
fn a_task_longer_than_the_mark_is_taken_in_where_nothing_waits() {
    let mut planner = yard(1);
    assert_eq!(planner.handle_arrival(arrival(1, 0, 3600.0), LATER), Ok(()));
    assert!(is_overloaded(planner.handle_arrival(arrival(2, 0, 3600.0), LATER)));
    assert_eq!(planner.handle_arrival(arrival(3, 0, 1.0), LATER), Ok(()), "it goes before the long one");
    assert_eq!(shed(&mut planner, LATER), []);
}

#[test]
fn nothing_gives_way_where_nothing_runs() {
    for has_workers in [false, true] {
        let mut planner = yard(usize::from(has_workers));
        planner.handle_pause("m", true);
        for number in 0..100 {
            assert_eq!(planner.handle_arrival(arrival(number, 0, 1.0), LATER), Ok(()));
        }
        assert_eq!(shed(&mut planner, LATER), []);
        assert_eq!(planner.backlog("m"), 100);
    }
}

#[test]
fn workers_that_are_restarted_cost_nobody_a_task_that_was_taken_in() {
    let mut planner = yard(400);
    planner.handle_arrival(arrival(1 << 41, 9, 1.0), LATER).unwrap();
    for number in 0..3990 {
        planner.handle_arrival(arrival(number, 4, 1.0), LATER).unwrap();
    }
    planner.handle_load("m", 100);
    assert_eq!(planner.handle_arrival(arrival(10_000, 9, 1.0), LATER), Ok(()));
    assert!(is_overloaded(planner.handle_arrival(arrival(10_001, 4, 1.0), LATER)), "but nothing more comes in");
    planner.handle_load("m", 0);
    planner.handle_load("m", 50);
    assert_eq!(planner.handle_arrival(arrival(10_002, 9, 1.0), LATER + 9 * SECOND), Ok(()));
    planner.handle_load("m", 400);
    assert_eq!(planner.handle_arrival(arrival(10_003, 9, 1.0), LATER + 60 * SECOND), Ok(()));
    planner.handle_load("m", 0);
    let stats = planner.stats();
    assert_eq!(stats.waiting(WaitReason::NoWorker), 3994, "all of them wait");
}

#[test]
fn slots_that_stay_away_are_believed_after_a_while_and_not_all_at_once() {
    let mut planner = yard(400);
    for number in 0..3990 {
        planner.handle_arrival(arrival(number, 4, 1.0), LATER).unwrap();
    }
    planner.handle_load("m", 100);
    planner.handle_arrival(arrival(10_000, 9, 1.0), LATER).unwrap();
    planner.handle_arrival(arrival(10_001, 9, 1.0), LATER + 20 * SECOND).unwrap();
    assert_eq!(planner.backlog("m"), 3992 - 256);
    for number in 10_002..10_050 {
        planner.handle_arrival(arrival(number, 9, 1.0), LATER + 20 * SECOND).unwrap();
    }
    assert_eq!(planner.backlog("m"), 1000);
    assert!(planner.stats().models[0].is_overloaded);
}

#[test]
fn tasks_of_which_nothing_is_known_are_not_judged() {
    let mut planner = yard(1);
    let new = |number| Arrival { expected: None, ..arrival(number, 0, 1.0) };
    for number in 0..10_000 {
        assert_eq!(planner.handle_arrival(new(number), LATER), Ok(()));
    }
    let Some(Decision::Dispatch { id, .. }) = planner.poll_decision(LATER) else { panic!("nothing goes") };
    assert_eq!(shed(&mut planner, LATER), []);
    planner.handle_completion(id, Some(Ran { seconds: 0.001, whole: true }));
    // What they take is known now, by the ones that follow.
    assert!((drain_seconds(&planner) - 10.0).abs() < 0.1, "{}", drain_seconds(&planner));
    assert_eq!(planner.handle_arrival(new(10_000), LATER), Ok(()));

    let mut planner = yard(1);
    planner.handle_model("m", Prior { expected_seconds: Some(2.0) });
    let came = (0..10).filter(|&number| planner.handle_arrival(new(number), LATER).is_ok()).count();
    assert!((5..=6).contains(&came), "what the settings say is believed: {came}");
}

#[test]
fn one_that_floods_takes_nobody_elses_place() {
    let mut planner = Planner::new(by_name("cmu", None).unwrap());
    planner.set_overload(Some(10.0));
    planner.handle_tenant("twice", TenantLimits { weight: 2.0, ..TenantLimits::default() });
    planner.handle_load("m", 1);
    let of =
        |tenant: &str, number: u128, priority: u8| Arrival { tenant: tenant.into(), ..arrival(number, priority, 1.0) };
    let flood = (0..30).filter(|&number| planner.handle_arrival(of("flood", number, 9), LATER).is_ok()).count();
    assert_eq!(flood, 10);
    // Worth less, and yet it comes in while its tenant has less than four fifths of what the other has.
    for number in 100..103 {
        assert_eq!(planner.handle_arrival(of("quiet", number, 0), 2 * LATER), Ok(()), "{number}");
    }
    let told = shed(&mut planner, 2 * LATER);
    assert!(
        told.len() == 3 && told.iter().all(|&told| told > id(4) && told < id(30)),
        "the newest of the flood: {told:?}"
    );
    assert!(is_overloaded(planner.handle_arrival(of("flood", 50, 9), 2 * LATER)));
    assert_eq!(planner.crowding("m", 9), Some(vec!["flood".into()]));
    assert_eq!(planner.crowding("m", 0), None, "more than are asked for");
    // Now it has as much, and is judged by what it is worth.
    let more = (103..120).filter(|&number| planner.handle_arrival(of("quiet", number, 0), 2 * LATER).is_ok()).count();
    assert!((1..=2).contains(&more), "{more}");
    for number in 200..204 {
        assert_eq!(planner.handle_arrival(of("twice", number, 0), 2 * LATER), Ok(()), "{number}");
    }
}

#[test]
fn where_tenants_do_not_matter_worth_alone_counts() {
    let mut planner = yard(1);
    for number in 0..10 {
        planner.handle_arrival(Arrival { tenant: "flood".into(), ..arrival(number, 4, 1.0) }, LATER).unwrap();
    }
    assert!(is_overloaded(planner.handle_arrival(arrival(20, 4, 1.0), LATER)));
    assert_eq!(planner.crowding("m", 9), None);
}

#[test]
fn a_task_that_is_made_urgent_is_no_longer_the_first_to_give_way() {
    let mut planner = yard(1);
    for number in 0..10 {
        planner.handle_arrival(arrival(number, u8::from(number != 3), 1.0), LATER).unwrap();
    }
    assert!(planner.handle_reprioritize(id(3), 9.try_into().unwrap()));
    assert!(planner.handle_reprioritize(id(4), 0.try_into().unwrap()));
    planner.handle_arrival(arrival(20, 5, 1.0), LATER).unwrap();
    assert_eq!(shed(&mut planner, LATER), [id(4)]);
}

#[test]
fn what_was_not_read_yet_keeps_new_tasks_out_and_sheds_none() {
    let mut planner = yard(1);
    for number in 0..5 {
        planner.handle_arrival(arrival(number, 4, 1.0), LATER).unwrap();
    }
    planner.handle_unread(20);
    assert_eq!(drain_seconds(&planner), 25.0, "twenty more of the same");
    assert!(is_overloaded(planner.handle_arrival(arrival(5, 4, 1.0), LATER)));
    assert_eq!(planner.handle_arrival(arrival(6, 9, 1.0), LATER), Ok(()));
    assert_eq!(shed(&mut planner, LATER), []);
    planner.handle_unread(0);
    assert_eq!(planner.handle_arrival(arrival(7, 0, 1.0), LATER), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// With deadlines, starts and retries: each task ends once, what waits stays about the mark, and no refusal or shedding
    /// happens while less waits than the low mark.
    #[test]
    fn every_task_ends_once_beside_deadlines(
        late in prop::sample::select(&["refuse", "demote", "keep"][..]),
        tasks in prop::collection::vec(
            (0..10u8, 1..400u64, prop::option::weighted(0.4, 1..4000u64), prop::option::weighted(0.2, 1..3000u64), 0..80u64, any::<bool>()),
            1..300,
        ),
        slots in 1..4usize,
    ) {
        let mut planner = Planner::new(by_name("cmu", None).unwrap());
        planner.set_late(taskyard_scheduler::planner::Late::by_name(late).unwrap());
        planner.set_overload(Some(1.0));
        planner.handle_load("m", slots);
        let (mut now_us, mut ended, mut running) = (0, vec![0; tasks.len()], Vec::<(u64, usize)>::new());
        let number = |id: TaskId| (id.0.as_u128() & 0xffff_ffff_ffff) as usize;
        for (at, &(priority, run_ms, deadline_ms, delay_ms, gap_ms, is_known)) in tasks.iter().enumerate() {
            now_us += gap_ms * 1000;
            running.sort_unstable();
            while let Some(&(end_us, task)) = running.first().filter(|(end_us, _)| *end_us <= now_us) {
                running.remove(0);
                ended[task] += 1;
                planner.handle_completion(id(task as u128), Some(Ran { seconds: tasks[task].1 as f64 / 1e3, whole: true }));
                let _ = end_us;
            }
            let after = |ms: u64| now_us + ms * 1000;
            let task = Arrival {
                deadline_us: deadline_ms.map(after),
                due_us: None,
                not_before_us: delay_ms.map(after),
                is_known,
                ..arrival(at as u128, priority, run_ms as f64 / 1e3)
            };
            let before = planner.stats().models[0].drain_seconds.unwrap_or(0.0);
            match planner.handle_arrival(task, now_us) {
                Ok(()) => {}
                Err(Refusal::Overloaded { .. }) => {
                    prop_assert!(!is_known && before > 0.8, "at {before} s");
                    ended[at] += 1;
                }
                Err(Refusal::DeadlineUnreachable { .. }) => ended[at] += 1,
                Err(refusal) => prop_assert!(false, "{refusal:?}"),
            }
            while let Some(decision) = planner.poll_decision(now_us) {
                match decision {
                    Decision::Dispatch { id, .. } => running.push((now_us + tasks[number(id)].1 * 1000, number(id))),
                    Decision::Expire { id, .. } | Decision::Shed { id, .. } => ended[number(id)] += 1,
                }
            }
            // Nobody has looked at the slots for their first second; from then on one task at most is beyond the mark.
            let after = planner.stats().models[0].drain_seconds.unwrap_or(0.0);
            prop_assert!(now_us < 3 * SECOND || after < 1.0 + 0.4 || after <= before, "{after} s wait");
        }
        while planner.waiting() > 0 || !running.is_empty() {
            running.sort_unstable();
            let end_us = running.first().map_or(u64::MAX, |&(end_us, _)| end_us);
            now_us = end_us.min(planner.poll_timeout().unwrap_or(u64::MAX)).max(now_us);
            if let Some(&(_, task)) = running.first().filter(|(end_us, _)| *end_us <= now_us) {
                running.remove(0);
                ended[task] += 1;
                planner.handle_completion(id(task as u128), None);
            }
            while let Some(decision) = planner.poll_decision(now_us) {
                match decision {
                    Decision::Dispatch { id, .. } => running.push((now_us + tasks[number(id)].1 * 1000, number(id))),
                    Decision::Expire { id, .. } | Decision::Shed { id, .. } => ended[number(id)] += 1,
                }
            }
        }
        prop_assert!(ended.iter().all(|&times| times == 1), "{ended:?}");
    }
}
