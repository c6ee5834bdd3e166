//! The simulator against what is known without it: closed forms, exhaustive search, and conservation.

use std::path::Path;
use std::time::Duration;

use taskyard_shared::Kind;

use crate::shadow::{Attempt, Shadow};

use super::bound::least_cost;
use super::engine::{self, Course, Fate};
use super::policies::{PolicySpec, usual};
use super::report::{Report, chooser, simulate};
use super::scenario::Scenario;
use super::summary::Interval;
use super::workload::{Model, NO_DEADLINE, Task, TenantShare, Workload};

fn scenario(text: &str) -> Scenario {
    Scenario::parse(text, Path::new("test.toml")).unwrap()
}

fn report(text: &str) -> Report {
    simulate(&scenario(text), None, 2).unwrap()
}

/// The theory's value is within four standard errors, and these are small.
#[track_caller]
fn agrees(measured: Interval, theory: f64, what: &str) {
    let half_width = measured.ci95.unwrap();
    // The interval is some 2.3 standard errors to each side, with ten seeds.
    assert!((measured.mean - theory).abs() < half_width * 4.0 / 2.262, "{what}: {measured:?}, in theory {theory}");
    assert!(half_width < 0.1 * theory, "{what}: {measured:?} is too wide to tell anything");
}

#[test]
fn one_slot_waits_as_long_as_theory_says() {
    let report = report(
        r#"
        tasks = 40000
        seeds = 10
        load = [0.5, 0.8]
        policies = ["fifo"]
        [[classes]]
        name = "all"
        share = 1
        service = { distribution = "exponential", mean_ms = 100 }
        "#,
    );
    for (row, theory) in report.rows.iter().zip([0.1, 0.4]) {
        agrees(row.figures["wait_mean_s"], theory, "M/M/1");
        agrees(row.figures["utilisation"], row.load, "busy");
    }
}

#[test]
fn four_slots_wait_as_long_as_erlang_says() {
    let report = report(
        r#"
        tasks = 40000
        seeds = 10
        load = [0.8]
        policies = ["fifo"]
        [models]
        slots = 4
        [[classes]]
        name = "all"
        share = 1
        service = { distribution = "exponential", mean_ms = 100 }
        "#,
    );
    let offered: f64 = 3.2;
    let term = |k: i32| offered.powi(k) / (1..=k).map(f64::from).product::<f64>();
    let all_busy = term(4) / 0.2;
    let delayed = all_busy / ((0..4).map(term).sum::<f64>() + all_busy);
    agrees(report.rows[0].figures["wait_mean_s"], delayed * 0.1 / (4.0 * 0.2), "M/M/4");
}

/// What comes beyond what can be done does not add up to waits, and what is done is worth no less.
#[test]
fn in_overload_waits_stay_bounded_and_the_value_is_kept() {
    let overload = |tasks: usize| {
        report(&format!(
            r#"
            tasks = {tasks}
            seeds = 2
            load = [1.5]
            policies = ["cmu", "cmu/5", "fifo", "fifo/5"]
            [models]
            slots = 4
            [[classes]]
            name = "short"
            share = 0.7
            service = {{ distribution = "exponential", mean_ms = 20 }}
            [[classes]]
            name = "long"
            share = 0.3
            service = {{ distribution = "exponential", mean_ms = 200 }}
            "#
        ))
    };
    let (brief, long) = (overload(10_000), overload(40_000));
    let figure = |report: &Report, row: usize, name: &str| report.rows[row].figures[name].mean;
    for row in [1, 3] {
        assert!(figure(&long, row, "value_per_s") > 0.97 * figure(&long, row - 1, "value_per_s"), "row {row}");
        assert!(figure(&long, row, "not_run") > 1000.0);
        let (before, after) = (figure(&brief, row, "wait_p99_s"), figure(&long, row, "wait_p99_s"));
        assert!(after < 1.25 * before && after < 5.0 * 5.0, "row {row}: {before} s, then {after} s");
        assert!(figure(&long, row - 1, "wait_p99_s") > 3.0 * figure(&brief, row - 1, "wait_p99_s"));
    }
    assert!(figure(&long, 3, "value_per_s") > 1.3 * figure(&long, 2, "value_per_s"), "fifo itself wastes it");
}

#[test]
fn strict_priorities_wait_as_long_as_cobham_says() {
    let report = report(
        r#"
        tasks = 60000
        seeds = 10
        load = [0.8]
        policies = ["strict"]
        priorities = [0.3, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.2]
        [[classes]]
        name = "all"
        share = 1
        service = { distribution = "lognormal", mean_ms = 100, cv = 1.5 }
        "#,
    );
    // Half the second moment over the mean, times the load, is what is found running.
    let residual_s = 0.8 * 0.1 * (1.0 + 1.5f64.powi(2)) / 2.0;
    let mut before = 0.0;
    for (priority, share) in [(9, 0.2), (4, 0.5), (0, 0.3)] {
        let with = before + 0.8 * share;
        let theory = residual_s / ((1.0 - before) * (1.0 - with));
        agrees(report.rows[0].by_priority[&priority]["wait_mean_s"], theory, &format!("priority {priority}"));
        before = with;
    }
}

/// Tasks of one model, as (arrival, service, priority, deadline) in milliseconds.
fn workload(tasks: &[(u64, u64, u8, Option<u64>)], slots: usize) -> Workload {
    let task = |&(arrival_ms, service_ms, priority, deadline_ms): &(u64, u64, u8, Option<u64>)| Task {
        arrival_us: arrival_ms * 1000,
        service_us: service_ms * 1000,
        deadline_us: deadline_ms.map_or(NO_DEADLINE, |ms| ms * 1000),
        model: 0,
        tenant: 0,
        class: 0,
        kind: Kind::Prediction,
        priority,
        cost: 0.0,
        noise: 1.0,
    };
    Workload {
        tasks: tasks.iter().map(task).collect(),
        models: vec![Model { name: "m".to_owned(), slots }],
        tenants: vec![TenantShare { name: "t".to_owned(), weight: 1.0 }],
        class_mean_s: vec![0.01],
        jump_us: None,
    }
}

fn run(workload: &Workload, policy: &str) -> Course {
    let scenario = Scenario::of_trace(Path::new("none"));
    let spec: PolicySpec = policy.parse().unwrap();
    let course = engine::run(workload, &scenario, 1, &mut *chooser(&spec, &scenario, workload).unwrap());
    assert_eq!(course.faults, 0);
    course
}

fn cost(workload: &Workload, course: &Course) -> f64 {
    let cost = |(task, end): (&Task, &engine::End)| task.weight() * (end.ended_us - task.arrival_us) as f64 / 1e6;
    workload.tasks.iter().zip(&course.ends).map(cost).sum()
}

fn permutations(of: Vec<usize>) -> Vec<Vec<usize>> {
    if of.len() <= 1 {
        return vec![of];
    }
    let mut all = Vec::new();
    for at in 0..of.len() {
        let mut rest = of.clone();
        let first = rest.remove(at);
        all.extend(permutations(rest).into_iter().map(|mut order| {
            order.insert(0, first);
            order
        }));
    }
    all
}

/// Ends of the tasks on one slot in this order, each begun as soon as it has come.
fn ends_in(workload: &Workload, order: &[usize]) -> Vec<(usize, u64)> {
    let mut free_us = 0;
    let end = |&at: &usize| {
        let task = &workload.tasks[at];
        free_us = task.arrival_us.max(free_us) + task.service_us;
        (at, free_us)
    };
    order.iter().map(end).collect()
}

fn drawn(seed: u64, count: usize, spread_ms: u64) -> Vec<(u64, u64, u8, Option<u64>)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut tasks: Vec<_> = (0..count)
        .map(|_| {
            let (at, service, priority) = (rng.u64(0..=spread_ms), rng.u64(1..50), rng.u8(0..10));
            (at, service, priority, Some(at + service + rng.u64(0..100)))
        })
        .collect();
    tasks.sort_unstable();
    tasks
}

#[test]
fn smiths_rule_with_true_times_is_optimal_when_all_are_there_and_nothing_beats_the_bound() {
    for seed in 0..40 {
        for spread_ms in [0, 80] {
            let mut tasks = drawn(seed, 6, spread_ms);
            tasks.iter_mut().for_each(|task| task.3 = None);
            let workload = workload(&tasks, 1);
            let in_order = |order: &Vec<usize>| {
                let cost = |(at, end_us): (usize, u64)| {
                    let task: &Task = &workload.tasks[at];
                    task.weight() * (end_us - task.arrival_us) as f64 / 1e6
                };
                ends_in(&workload, order).into_iter().map(cost).sum::<f64>()
            };
            let optimum = permutations((0..6).collect()).iter().map(in_order).fold(f64::INFINITY, f64::min);
            let bound = least_cost(&workload);
            assert!(bound <= optimum + 1e-9, "seed {seed}: {bound} is no bound of {optimum}");
            let wspt = cost(&workload, &run(&workload, "wspt@true"));
            if spread_ms == 0 {
                assert!(
                    (wspt - optimum).abs() < 1e-9 && (bound - optimum).abs() < 1e-9,
                    "seed {seed}: {wspt} {optimum}"
                );
            } else {
                assert!(wspt >= optimum - 1e-9 && bound > 0.4 * optimum, "seed {seed}: {bound} {optimum} {wspt}");
            }
        }
    }
}

#[test]
fn the_bound_holds_on_several_slots() {
    for seed in 0..40 {
        let mut tasks = drawn(seed, 60, 400);
        tasks.iter_mut().for_each(|task| task.3 = None);
        let workload = workload(&tasks, 3);
        let bound = least_cost(&workload);
        for policy in ["wspt@true", "fifo", "strict"] {
            let cost = cost(&workload, &run(&workload, policy));
            assert!(bound <= cost && (policy != "wspt@true" || cost < 1.6 * bound), "{policy}: {bound} {cost}");
        }
    }
}

#[test]
fn the_oracle_for_deadlines_is_late_as_seldom_as_any_order() {
    for seed in 0..60 {
        let workload = workload(&drawn(seed, 6, 0), 1);
        let in_time = |order: &Vec<usize>| {
            let good = |&(at, end_us): &(usize, u64)| end_us <= workload.tasks[at].deadline_us;
            // The late ones run last, or not at all.
            let mut left = order.clone();
            loop {
                let ends = ends_in(&workload, &left);
                match ends.iter().position(|end| !good(end)) {
                    Some(late) => left.remove(late),
                    None => return left.len(),
                };
            }
        };
        let best = permutations((0..6).collect()).iter().map(in_time).max().unwrap();
        let course = run(&workload, "moore-hodgson");
        let met = |(task, end): &(&Task, &engine::End)| end.fate == Fate::Done && end.ended_us <= task.deadline_us;
        let met = workload.tasks.iter().zip(&course.ends).filter(met).count();
        assert_eq!(met, best, "seed {seed}");
    }
}

const HARD: &str = r#"
    tasks = 3000
    seeds = 2
    load = [0.7, 1.3]
    [models]
    count = 3
    zipf = 1.0
    slots = 2
    [deadlines]
    share = 0.5
    [workers]
    ahead = 1
    feedback_ms = 3
    report_ms = 500
    away_every_s = 20
    away_for_s = 10
    [jump]
    factor = 3
    at = 0.5
    class = "long"
    [[tenants]]
    name = "loud"
    traffic = 10
    [[tenants]]
    name = "quiet"
    traffic = 1
    [[classes]]
    name = "short"
    share = 3
    service = { distribution = "lognormal", mean_ms = 20, cv = 1 }
    [[classes]]
    name = "long"
    share = 1
    service = { distribution = "pareto", mean_ms = 200, alpha = 2.5 }
"#;

#[test]
fn every_task_ends_once_whatever_the_policy_and_the_disturbance() {
    let scenario = scenario(HARD);
    for load in [0.7, 1.3] {
        let workload = Workload::draw(&scenario, None, 1, load);
        for name in usual(true, false) {
            let spec: PolicySpec = name.parse().unwrap();
            let course = engine::run(&workload, &scenario, 1, &mut *chooser(&spec, &scenario, &workload).unwrap());
            assert_eq!(course.faults, 0, "{name}");
            assert!(course.ends.iter().all(|end| end.fate != Fate::Open), "{name}: a task is nowhere");
            for (task, end) in workload.tasks.iter().zip(&course.ends) {
                assert!(end.ended_us >= task.arrival_us);
                if end.fate == Fate::Done {
                    assert!(end.started_us >= task.arrival_us && end.ended_us == end.started_us + task.service_us);
                }
            }
            // Never more at once than there are slots.
            for model in 0..3 {
                let of_model = workload.tasks.iter().zip(&course.ends);
                let ran = of_model.filter(|(task, end)| task.model == model && end.fate == Fate::Done);
                let mut changes: Vec<(u64, i32)> =
                    ran.flat_map(|(_, end)| [(end.started_us, 1), (end.ended_us, -1)]).collect();
                changes.sort_unstable();
                let most = changes.iter().scan(0, |busy, change| {
                    *busy += change.1;
                    Some(*busy)
                });
                assert!(most.max().unwrap_or(0) <= 2, "{name}");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_one_another() {
    let once = report(HARD);
    assert_eq!(once, simulate(&scenario(HARD), None, 1).unwrap(), "however many threads there are");
    let (one, other) = (&once.rows[0].runs[0], &once.rows[0].runs[1]);
    assert_ne!(one.overall, other.overall);
}

#[test]
fn load_is_what_it_says_for_every_model() {
    let text = HARD.replace("[jump]\n    factor = 3\n    at = 0.5\n    class = \"long\"", "");
    let scenario = scenario(&text);
    let workload = Workload::draw(&scenario, None, 3, 0.7);
    let span_s = workload.tasks.last().unwrap().arrival_us as f64 / 1e6;
    for model in 0..3 {
        let work: f64 = workload.tasks.iter().filter(|task| task.model == model).map(Task::service_s).sum();
        let load = work / span_s / 2.0;
        assert!((load / 0.7 - 1.0).abs() < 0.12, "model {model}: {load}");
    }
}

#[test]
fn a_row_is_compared_with_other_orders_as_the_live_scheduler_compares_itself() {
    let text = r#"
        tasks = 2000
        seeds = 1
        load = [0.95]
        policies = ["cmu", "fifo", "wspt@true"]
        models = { slots = 2 }
        classes = [{ name = "any", share = 1, service = { distribution = "exponential", mean_ms = 100 } }]
    "#;
    let scenario = scenario(text);
    let report = simulate(&scenario, None, 1).unwrap();
    let figure = |row: usize, name| report.rows[row].mean(name).unwrap();
    assert!((figure(1, "over_fifo") - 1.0).abs() < 1e-9 && (figure(2, "over_oracle") - 1.0).abs() < 1e-9);
    assert!(figure(0, "over_fifo") < 0.9 && figure(0, "over_oracle") > 1.0, "{:?}", report.rows[0].figures);

    let workload = Workload::draw(&scenario, None, 1, 0.95);
    let course = run(&workload, "cmu");
    let mut attempts: Vec<Attempt> = workload
        .tasks
        .iter()
        .zip(&course.ends)
        .map(|(task, end)| Attempt {
            arrived_us: task.arrival_us,
            started_us: end.started_us,
            ended_us: end.ended_us,
            priority: task.priority,
        })
        .collect();
    attempts.sort_by_key(|attempt| attempt.ended_us);
    let mut shadow = Shadow::new(Duration::from_secs(60), 0).unwrap();
    for attempt in attempts {
        shadow.handle_ended("m", attempt, false);
    }
    let regret = shadow.take(course.ended_us, |_| 2).remove(0).replay().unwrap();
    for ((label, live), name) in regret.ratios.into_iter().zip(["over_fifo", "over_oracle"]) {
        let simulated = figure(0, name);
        assert!((live / simulated - 1.0).abs() < 1e-3, "{label}: {live} and {simulated}");
    }

    let alone = simulate(&Scenario { policies: vec!["cmu".to_owned()], ..scenario }, None, 1).unwrap();
    assert_eq!(alone.rows[0].mean("over_fifo"), None, "there is nothing to compare with");
}

#[test]
fn nineteen_of_twenty_start_by_the_time_that_was_predicted_for_them() {
    let report = report(
        r#"
        tasks = 20000
        seeds = 2
        load = [0.8, 0.95]
        policies = ["cmu", "wspt", "fifo", "strict"]
        [[classes]]
        name = "short"
        share = 0.7
        service = { distribution = "exponential", mean_ms = 20 }
        [[classes]]
        name = "long"
        share = 0.3
        service = { distribution = "exponential", mean_ms = 200 }
        "#,
    );
    for row in report.rows {
        let (middle, upper) = (row.figures["start_by_q50"].mean, row.figures["start_by_q95"].mean);
        assert!((0.9..=0.99).contains(&upper), "{} at {}: {upper}", row.policy, row.load);
        assert!((0.4..=0.6).contains(&middle), "{} at {}: {middle}", row.policy, row.load);
    }
}

/// Twenty models on workers that hold four.
fn on_hosts(zipf: f64, swap_cost: f64, load: f64, seeds: u32) -> Report {
    report(&format!(
        r#"
        tasks = 6000
        seeds = {seeds}
        load = [{load}]
        policies = ["cmu", "cmu-blind"]
        [models]
        count = 20
        zipf = {zipf}
        [hosts]
        count = 4
        slots = 4
        memory_mb = 4000
        swap_cost = {swap_cost}
        [[classes]]
        name = "all"
        share = 1
        service = {{ distribution = "exponential", mean_ms = 100 }}
        "#
    ))
}

#[test]
fn placement_does_twice_the_work_where_loading_costs_and_as_much_where_it_is_free() {
    for (swap_cost, least) in [(0.0, 0.97), (1.0, 0.97), (10.0, 2.0), (100.0, 4.0)] {
        let report = on_hosts(1.0, swap_cost, 0.95, 2);
        for figure in ["goodput", "goodput_tasks"] {
            let goodput = |row: usize| report.rows[row].mean(figure).unwrap();
            let (placed, blind) = (goodput(0), goodput(1));
            assert!(placed >= least * blind, "{figure}, swap cost {swap_cost}: {placed} against {blind}");
        }
    }
}
