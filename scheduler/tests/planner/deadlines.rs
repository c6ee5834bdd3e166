//! Deadlines under load, on a virtual clock: the planner against earliest-deadline-first, and against Moore–Hodgson that
//! is run anew at each arrival and knows the true run times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use proptest::prelude::*;
use taskyard_scheduler::planner::policy::by_name;
use taskyard_scheduler::planner::{Arrival, Decision, DispatchReason, Late, Planner, Refusal, ShedReason};

use super::{SECOND, arrival, dispatched, id, planner};

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.next()).ln()
    }

    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.next()).cos()
    }
}

#[derive(Clone, Copy, Debug)]
enum Times {
    Fixed,
    Exponential,
    /// Lognormal of this deviation of its logarithm.
    Lognormal(f64),
}

/// How long after its arrival a task's deadline is.
#[derive(Clone, Copy, Debug)]
enum Slack {
    /// Times its run time, evenly between the two.
    OfOwn(f64, f64),
    /// Times the mean run time, after its own.
    OfMean(f64, f64),
}

#[derive(Clone, Copy, Debug)]
struct Scenario {
    times: Times,
    slack: Slack,
    slots: usize,
    load: f64,
    error: f64,
    /// The part of the tasks that have a deadline.
    with_deadline: f64,
    priorities: bool,
    tasks: usize,
}

const PLAIN: Scenario = Scenario {
    times: Times::Exponential,
    slack: Slack::OfMean(1.0, 10.0),
    slots: 1,
    load: 1.2,
    error: 0.0,
    with_deadline: 1.0,
    priorities: false,
    tasks: 1500,
};

#[derive(Clone, Copy, Debug)]
struct Task {
    at_us: u64,
    run_us: u64,
    expected_us: u64,
    deadline_us: Option<u64>,
    priority: u8,
}

impl Scenario {
    /// Mean run time 100 ms.
    fn tasks(&self, seed: u64) -> Vec<Task> {
        let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
        let mean_us = 1e5;
        let mut at_us = 0.0;
        (0..self.tasks)
            .map(|_| {
                at_us += random.exponential() * mean_us / (self.load * self.slots as f64);
                let run_us = mean_us
                    * match self.times {
                        Times::Fixed => 1.0,
                        Times::Exponential => random.exponential(),
                        Times::Lognormal(deviation) => {
                            (deviation * random.normal() - deviation * deviation / 2.0).exp()
                        }
                    };
                let expected_us = run_us * (self.error * random.normal()).exp();
                let slack = random.next();
                let slack_us = match self.slack {
                    Slack::OfOwn(least, most) => run_us * (least + slack * (most - least)),
                    Slack::OfMean(least, most) => run_us + mean_us * (least + slack * (most - least)),
                };
                let has_deadline = random.next() < self.with_deadline;
                let priority = if self.priorities { (random.next() * 10.0) as u8 } else { 4 };
                Task {
                    at_us: at_us as u64,
                    run_us: run_us.max(1.0) as u64,
                    expected_us: expected_us.max(1.0) as u64,
                    deadline_us: has_deadline.then_some((at_us + slack_us) as u64),
                    priority,
                }
            })
            .collect()
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct Outcome {
    /// Of the tasks with deadlines.
    offered: usize,
    refused: usize,
    shed: usize,
    met: usize,
    /// Weight of those that were met, and of all.
    met_weight: f64,
    offered_weight: f64,
    late: usize,
    expired: usize,
    others_done: usize,
    others_wait_s: f64,
}

impl Outcome {
    fn attainment(&self) -> f64 {
        self.met as f64 / self.offered.max(1) as f64
    }

    fn silently_late(&self) -> f64 {
        let accepted = self.offered - self.refused - self.shed;
        (self.late + self.expired) as f64 / accepted.max(1) as f64
    }
}

fn run(tasks: &[Task], policy: &str, late: Option<Late>, slots: usize) -> Outcome {
    let mut planner = Planner::new(by_name(policy, Some(10.0)).unwrap());
    if let Some(late) = late {
        planner.set_late(late);
    }
    planner.handle_load("m", slots);
    let mut outcome = Outcome::default();
    let mut ends: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut next = 0;
    let mut numbers = BTreeMap::new();
    loop {
        let arrives = tasks.get(next).map(|task| task.at_us);
        let ended = ends.peek().map(|Reverse((at_us, _))| *at_us);
        let timeout = planner.poll_timeout();
        let Some(now_us) = [arrives, ended, timeout].into_iter().flatten().min() else { break };
        if ended == Some(now_us) {
            let Reverse((_, number)) = ends.pop().unwrap();
            assert!(planner.handle_completion(id(number as u128), None));
            match tasks[number].deadline_us {
                Some(at_us) if at_us < now_us => outcome.late += 1,
                Some(_) => {
                    outcome.met += 1;
                    outcome.met_weight += f64::from(tasks[number].priority) + 1.0;
                }
                None => outcome.others_done += 1,
            }
        } else if arrives == Some(now_us) {
            let task = tasks[next];
            outcome.offered += usize::from(task.deadline_us.is_some());
            if task.deadline_us.is_some() {
                outcome.offered_weight += f64::from(task.priority) + 1.0;
            }
            numbers.insert(id(next as u128), next);
            let new = Arrival {
                deadline_us: task.deadline_us,
                ..arrival(next as u128, task.priority, task.expected_us as f64 / 1e6)
            };
            outcome.refused += usize::from(planner.handle_arrival(new, now_us).is_err());
            next += 1;
        }
        while let Some(decision) = planner.poll_decision(now_us) {
            match decision {
                Decision::Dispatch { id, .. } => {
                    let number = numbers[&id];
                    if tasks[number].deadline_us.is_none() {
                        outcome.others_wait_s += (now_us - tasks[number].at_us) as f64 / 1e6;
                    }
                    ends.push(Reverse((now_us + tasks[number].run_us, number)));
                }
                Decision::Expire { .. } => outcome.expired += 1,
                Decision::Shed { .. } => outcome.shed += 1,
            }
        }
    }
    assert_eq!(planner.waiting(), 0);
    let of_deadline = outcome.refused + outcome.shed + outcome.met + outcome.late + outcome.expired;
    assert_eq!(of_deadline, outcome.offered, "each task ends once");
    assert_eq!(outcome.others_done, tasks.len() - outcome.offered);
    outcome
}

/// Moore–Hodgson over what waits, run at each arrival, with true times; served by earliest deadline. Tasks without
/// deadlines go when none with one waits.
fn moore_hodgson(tasks: &[Task], slots: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let mut waiting: Vec<Task> = Vec::new();
    let mut others: VecDeque<Task> = VecDeque::new();
    let mut free: Vec<u64> = vec![0; slots];
    let mut next = 0;
    let first_late = |waiting: &[Task], free: &[u64], now_us: u64| {
        let mut free: BinaryHeap<Reverse<u64>> = free.iter().map(|at_us| Reverse(*at_us.max(&now_us))).collect();
        waiting.iter().position(|task| {
            let Reverse(at_us) = free.pop().unwrap();
            free.push(Reverse(at_us + task.run_us));
            at_us + task.run_us > task.deadline_us.unwrap()
        })
    };
    let mut now_us = 0;
    loop {
        while let Some(task) = tasks.get(next).filter(|task| task.at_us <= now_us) {
            next += 1;
            let Some(deadline_us) = task.deadline_us else {
                others.push_back(*task);
                continue;
            };
            outcome.offered += 1;
            outcome.offered_weight += f64::from(task.priority) + 1.0;
            let at = waiting.partition_point(|other| other.deadline_us.unwrap() <= deadline_us);
            waiting.insert(at, *task);
            while let Some(late) = first_late(&waiting, &free, now_us) {
                let longest = (0..=late).max_by_key(|&at| waiting[at].run_us).unwrap();
                waiting.remove(longest);
            }
        }
        for at_us in &mut free {
            if *at_us <= now_us {
                if !waiting.is_empty() {
                    let task = waiting.remove(0);
                    *at_us = now_us + task.run_us;
                    if *at_us <= task.deadline_us.unwrap() {
                        outcome.met += 1;
                        outcome.met_weight += f64::from(task.priority) + 1.0;
                    } else {
                        outcome.late += 1;
                    }
                } else if let Some(task) = others.pop_front() {
                    *at_us = now_us + task.run_us;
                }
            }
        }
        let arrives = tasks.get(next).map(|task| task.at_us);
        let frees = free.iter().copied().filter(|at_us| *at_us > now_us).min();
        let Some(at_us) = arrives.into_iter().chain(frees).min() else { break };
        now_us = at_us;
    }
    outcome
}

/// Over five seeds: what the planner attains, earliest-deadline-first, Moore–Hodgson, and the part silently late.
fn compare(scenario: Scenario) -> [f64; 4] {
    let mut means = [0.0; 4];
    for seed in 0..5 {
        let tasks = scenario.tasks(seed);
        let ours = run(&tasks, "cmu", None, scenario.slots);
        let edf = run(&tasks, "edf", None, scenario.slots);
        let best = moore_hodgson(&tasks, scenario.slots);
        let row = [ours.attainment(), edf.attainment(), best.attainment(), ours.silently_late()];
        means.iter_mut().zip(row).for_each(|(mean, value)| *mean += value / 5.0);
    }
    means
}

#[test]
fn nearly_as_many_deadlines_are_met_as_when_all_is_known() {
    for (error, least) in [(0.0, 0.9), (0.5, 0.8)] {
        for times in [Times::Exponential, Times::Lognormal(1.2)] {
            for slack in [Slack::OfMean(1.0, 10.0), Slack::OfOwn(1.5, 6.0)] {
                for (slots, load) in [(1, 0.5), (1, 0.95), (1, 1.2), (4, 0.8), (4, 1.2)] {
                    let scenario = Scenario { error, times, slack, slots, load, ..PLAIN };
                    let [ours, edf, best, late] = compare(scenario);
                    assert!(ours >= edf - 0.01, "{scenario:?}: {ours}, by earliest deadline {edf}");
                    assert!(late < 0.05, "{scenario:?}: {late} are silently late");
                    if load > 1.0 {
                        assert!(ours >= least * best, "{scenario:?}: {ours} of {best}");
                    }
                }
            }
        }
    }
}

#[test]
fn estimates_that_are_far_off_make_few_late_and_still_beat_the_earliest_deadline() {
    for times in [Times::Fixed, Times::Exponential] {
        let [ours, edf, _, late] = compare(Scenario { times, error: 1.0, ..PLAIN });
        assert!(ours > edf && late < 0.05, "{times:?}: {ours}, by earliest deadline {edf}, {late} silently late");
    }
}

#[test]
fn among_others_and_with_priorities_few_accepted_tasks_are_late() {
    for slots in [1, 4] {
        let scenario = Scenario { with_deadline: 0.5, priorities: true, load: 1.1, slots, ..PLAIN };
        for seed in 0..3 {
            let tasks = scenario.tasks(seed);
            let ours = run(&tasks, "cmu", None, slots);
            let edf = run(&tasks, "edf", None, slots);
            assert!(ours.silently_late() < 0.05, "{ours:?}");
            let worth = |outcome: &Outcome| outcome.met_weight / outcome.offered_weight;
            assert!(worth(&ours) >= worth(&edf) - 0.02, "{ours:?} {edf:?}");
            assert_eq!(format!("{ours:?}"), format!("{:?}", run(&tasks, "cmu", None, slots)), "the same each time");
        }
    }
}

fn due(number: u128, seconds: f64, deadline_us: u64) -> Arrival {
    Arrival { deadline_us: Some(deadline_us), ..arrival(number, 4, seconds) }
}

#[test]
fn what_cannot_be_met_is_refused_unless_nobody_knows_when_it_would_run() {
    let mut planner = planner("cmu");
    assert_eq!(planner.handle_arrival(due(0, 10.0, SECOND), 0), Ok(()), "no worker: it may only expire");
    assert_eq!(planner.poll_decision(0), None);
    let expired = planner.poll_decision(SECOND);
    assert!(matches!(expired, Some(Decision::Expire { .. })), "{expired:?}");
    planner.handle_load("m", 1);
    let refused = planner.handle_arrival(due(1, 10.0, 2 * SECOND), SECOND);
    assert!(
        matches!(refused, Err(Refusal::DeadlineUnreachable { finish_us }) if finish_us > 2 * SECOND),
        "{refused:?}"
    );
    assert_eq!((planner.waiting(), planner.backlog("m")), (0, 0));
    // One that may only start when it is too late, too.
    let delayed = Arrival { not_before_us: Some(5 * SECOND), ..due(2, 10.0, 6 * SECOND) };
    assert!(planner.handle_arrival(delayed, SECOND).is_err());
    assert_eq!(planner.poll_timeout(), None);
}

#[test]
fn the_longest_gives_way_and_is_told_before_its_deadline() {
    let mut planner = planner("cmu");
    planner.handle_load("m", 1);
    planner.handle_arrival(due(0, 1.0, 2 * SECOND), 0).unwrap();
    assert_eq!(dispatched(&mut planner, 0), id(0));
    planner.handle_arrival(due(1, 8.0, 10 * SECOND), 0).unwrap();
    for number in 2..6 {
        planner.handle_arrival(due(number, 1.0, 9 * SECOND), 0).unwrap();
    }
    let shed = Decision::Shed { id: id(1), model: "m".into(), reason: ShedReason::Deadline };
    assert_eq!(planner.poll_decision(0), Some(shed));
    assert_eq!((planner.poll_decision(0), planner.waiting()), (None, 4));
}

#[test]
fn a_demoted_task_runs_when_there_is_time_and_expires_otherwise() {
    for (deadline_us, runs) in [(12 * SECOND, true), (9 * SECOND, false)] {
        let mut planner = planner("cmu");
        planner.set_late(Late::Demote);
        planner.handle_load("m", 1);
        planner.handle_arrival(arrival(0, 4, 10.0), 0).unwrap();
        assert_eq!(dispatched(&mut planner, 0), id(0));
        assert_eq!(planner.handle_arrival(due(1, 8.0, deadline_us), 0), Ok(()));
        assert_eq!(planner.poll_decision(8 * SECOND), None);
        planner.handle_completion(id(0), None);
        match planner.poll_decision(10 * SECOND) {
            Some(Decision::Dispatch { id: task, .. }) => assert!(runs && task == id(1)),
            Some(Decision::Expire { id: task, .. }) => assert!(!runs && task == id(1)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_policys_choice_waits_when_it_would_make_a_deadline_late() {
    let mut planner = planner("cmu");
    planner.handle_load("m", 1);
    planner.handle_arrival(arrival(0, 9, 1.0), 0).unwrap();
    planner.handle_arrival(due(1, 4.0, 5 * SECOND), 0).unwrap();
    assert_eq!(dispatched(&mut planner, 0), id(0), "there is time for it");
    planner.handle_arrival(arrival(2, 9, 0.5), 0).unwrap();
    planner.handle_completion(id(0), None);
    let next = planner.poll_decision(SECOND);
    let first = Decision::Dispatch { id: id(1), model: "m".into(), reason: DispatchReason::Deadline };
    assert_eq!(next, Some(first));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever happens: each task that was taken in ends once, by a completion, a cancellation, an expiry or being shed.
    #[test]
    fn nothing_is_lost_or_doubled(
        events in prop::collection::vec((0..8u8, any::<u16>(), 1..4000u64, 1..1500u64), 1..400),
        late in prop::sample::select(&[Late::Refuse, Late::Demote][..]),
    ) {
        let mut planner = planner("cmu");
        planner.set_late(late);
        let (mut now_us, mut waiting, mut out) = (0, BTreeSet::new(), BTreeSet::new());
        let nth = |of: &BTreeSet<u128>, which: u16| of.iter().nth(usize::from(which) % of.len().max(1)).copied();
        for (number, (kind, which, deadline_ms, run_ms)) in (0u128..).zip(events) {
            match kind {
                0..=3 => {
                    let deadline_us = (which % 4 > 0).then_some(now_us + deadline_ms * 1000);
                    let not_before_us = (which % 5 == 0).then_some(now_us + run_ms * 500);
                    let task = arrival(number, (which % 10) as u8, run_ms as f64 / 1e3);
                    if planner.handle_arrival(Arrival { deadline_us, not_before_us, ..task }, now_us).is_ok() {
                        waiting.insert(number);
                    }
                }
                4 => planner.handle_load("m", usize::from(which % 4)),
                5 => {
                    if let Some(task) = nth(&out, which) {
                        out.remove(&task);
                        if which % 3 == 0 {
                            prop_assert!(planner.handle_dispatch_failed(id(task)));
                            waiting.insert(task);
                        } else {
                            prop_assert!(planner.handle_completion(id(task), None));
                        }
                    }
                }
                6 => {
                    if let Some(task) = nth(&waiting, which)
                        && planner.handle_cancel(id(task))
                    {
                        waiting.remove(&task);
                    }
                }
                _ => now_us += run_ms * 300,
            }
            while which % 2 == 0 && let Some(decision) = planner.poll_decision(now_us) {
                let (Decision::Dispatch { id, .. } | Decision::Expire { id, .. } | Decision::Shed { id, .. }) = &decision;
                let task = id.0.as_u128() & 0xffff_ffff_ffff;
                prop_assert!(waiting.remove(&task), "{decision:?} of a task that does not wait");
                if matches!(decision, Decision::Dispatch { .. }) {
                    out.insert(task);
                }
            }
        }
        planner.handle_load("m", usize::MAX);
        now_us += 100 * SECOND;
        while let Some(decision) = planner.poll_decision(now_us) {
            let (Decision::Dispatch { id, .. } | Decision::Expire { id, .. } | Decision::Shed { id, .. }) = decision;
            prop_assert!(waiting.remove(&(id.0.as_u128() & 0xffff_ffff_ffff)));
            planner.handle_completion(id, None);
        }
        prop_assert!(waiting.is_empty(), "lost: {waiting:?}");
        prop_assert_eq!(planner.waiting(), 0);
    }
}
