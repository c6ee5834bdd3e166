//! The figures of one run.

use std::collections::BTreeMap;

use super::engine::{Course, End, Fate};
use super::fairness;
use super::summary::quantile;
use super::workload::{NO_DEADLINE, Task, Workload};

/// By name; `docs/scheduling.md` says what each is.
pub type Figures = BTreeMap<&'static str, f64>;

/// Waits in steps of a twelfth of a decade from 10 µs on.
pub const STEPS_PER_DECADE: f64 = 12.0;
const LEAST_S: f64 = 1e-5;
pub const STEPS: usize = 150;
/// Points of the backlog over the run.
pub const POINTS: usize = 200;
/// Tenants and models with figures of their own: those with the most tasks.
const GROUPS_MOST: usize = 20;
/// After a jump, tasks count from so many seconds on.
const AFTER_JUMP_S: f64 = 60.0;

#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    pub overall: Figures,
    pub by_priority: BTreeMap<u8, Figures>,
    pub by_tenant: BTreeMap<String, Figures>,
    pub by_model: BTreeMap<String, Figures>,
    /// How many tasks of a priority waited up to each step.
    pub waits: BTreeMap<u8, Vec<u64>>,
    /// Tasks waiting, over the time in which tasks come and as long again as the rest takes.
    pub backlog: Vec<f64>,
    pub backlog_span_s: f64,
}

/// The step's upper end, in seconds.
pub fn step_seconds(step: usize) -> f64 {
    LEAST_S * 10f64.powf(step as f64 / STEPS_PER_DECADE)
}

fn step(seconds: f64) -> usize {
    if seconds <= LEAST_S { 0 } else { ((seconds / LEAST_S).log10() * STEPS_PER_DECADE).ceil() as usize }.min(STEPS - 1)
}

/// `least_cost` is the bound on the weighted cost of the workload.
pub fn measure(workload: &Workload, course: &Course, warm_up: f64, least_cost: f64) -> Measured {
    let pairs = || workload.tasks.iter().zip(&course.ends);
    let skipped = (warm_up * workload.tasks.len() as f64) as usize;
    let counted = || pairs().skip(skipped);
    let last_arrival_us = workload.tasks.last().map_or(0, |task| task.arrival_us);
    let first_us = workload.tasks.get(skipped).map_or(0, |task| task.arrival_us);
    let span_s = (last_arrival_us.saturating_sub(first_us) as f64 / 1e6).max(1e-6);

    let mut overall = group(counted());
    let mut by_priority = groups(counted(), |task| task.priority);
    overall.extend([("goodput_per_s", overall.get("in_time").copied().unwrap_or(0.0) / span_s)]);
    if let (Some((_, lowest)), Some(&mean)) = (by_priority.first_key_value(), overall.get("wait_mean_s"))
        && let Some(&longest) = lowest.get("wait_longest_s")
        && mean > 0.0
    {
        overall.insert("starvation", longest / mean);
    }
    if pairs().all(|(_, end)| end.fate == Fate::Done) {
        let cost: f64 = pairs().map(|(task, end)| task.weight() * seconds(task.arrival_us, end.ended_us)).sum();
        overall.insert("cost_s", cost / workload.tasks.len().max(1) as f64);
        if least_cost > 0.0 {
            overall.insert("cost_ratio", cost / least_cost);
        }
    }
    if let Some(jump_us) = workload.jump_us {
        let from_us = jump_us + (AFTER_JUMP_S * 1e6) as u64;
        let late = pairs().filter(|(task, end)| task.arrival_us >= from_us && end.fate == Fate::Done);
        let (sum, count) = late.fold((0.0, 0.0), |(sum, count), (task, end)| {
            (sum + task.weight() * seconds(task.arrival_us, end.ended_us), count + 1.0)
        });
        if count > 0.0 {
            overall.insert("cost_after_jump_s", sum / count);
        }
    }
    // What was done by then; what is left over is done when nothing comes any more, or was given up.
    let kept =
        pairs().filter(|(_, end)| end.fate == Fate::Done && (first_us..=last_arrival_us).contains(&end.ended_us));
    overall.insert("value_per_s", kept.map(|(task, _)| task.weight()).sum::<f64>() / span_s);
    let slots: f64 = workload.models.iter().map(|model| model.slots as f64).sum();
    let within = |end: &End, from_us: u64, to_us: u64| match end.fate {
        Fate::Done => seconds(end.started_us.max(from_us), end.ended_us.min(to_us).max(end.started_us.max(from_us))),
        _ => 0.0,
    };
    let busy: f64 = pairs().map(|(_, end)| within(end, first_us, last_arrival_us)).sum();
    overall.insert("utilisation", busy / (slots * span_s));
    if workload.tenants.len() > 1 {
        overall.insert("jain", fairness::shares(workload, course));
        if let Some(index) = fairness::while_backlogged(workload, course) {
            overall.insert("jain_backlogged", index);
        }
    }

    let mut waits: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
    for (task, end) in counted().filter(|(_, end)| end.fate == Fate::Done) {
        let steps = waits.entry(task.priority).or_insert_with(|| vec![0; STEPS]);
        if let Some(count) = steps.get_mut(step(seconds(task.arrival_us, end.started_us))) {
            *count += 1;
        }
    }
    let tenant = |task: &Task| task.tenant;
    let model = |task: &Task| task.model;
    let tenant_name = |number: u32| workload.tenants.get(number as usize).map_or("", |tenant| &tenant.name).to_owned();
    let model_name = |number: u32| workload.models.get(number as usize).map_or("", |model| &model.name).to_owned();
    by_priority.retain(|_, figures| figures.get("tasks").is_some_and(|&tasks| tasks > 0.0));
    Measured {
        overall,
        by_priority,
        by_tenant: largest(groups(counted(), tenant), tenant_name),
        by_model: largest(groups(counted(), model), model_name),
        waits,
        backlog: backlog(workload, course),
        backlog_span_s: course.ended_us as f64 / 1e6,
    }
}

fn seconds(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
}

type Pair<'a> = (&'a Task, &'a End);

fn groups<'a, K: Ord>(pairs: impl Iterator<Item = Pair<'a>>, key: impl Fn(&Task) -> K) -> BTreeMap<K, Figures> {
    let mut of_key: BTreeMap<K, Vec<Pair<'a>>> = BTreeMap::new();
    for pair in pairs {
        of_key.entry(key(pair.0)).or_default().push(pair);
    }
    of_key.into_iter().map(|(key, pairs)| (key, group(pairs.into_iter()))).collect()
}

fn largest(groups: BTreeMap<u32, Figures>, name: impl Fn(u32) -> String) -> BTreeMap<String, Figures> {
    let tasks = |figures: &Figures| figures.get("tasks").copied().unwrap_or(0.0);
    let mut groups: Vec<(u32, Figures)> = groups.into_iter().collect();
    groups.sort_by(|(a, one), (b, other)| tasks(other).total_cmp(&tasks(one)).then(a.cmp(b)));
    groups.truncate(GROUPS_MOST);
    groups.into_iter().map(|(number, figures)| (name(number), figures)).collect()
}

fn group<'a>(pairs: impl Iterator<Item = Pair<'a>>) -> Figures {
    let mut waits_us: Vec<u64> = Vec::new();
    let (mut tasks, mut wait_sum_s, mut slowdown_sum) = (0.0, 0.0, 0.0);
    let (mut with_deadline, mut accepted, mut met, mut in_time, mut not_run, mut shed) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    let mut slowdowns: Vec<u64> = Vec::new();
    for (task, end) in pairs {
        tasks += 1.0;
        let done = end.fate == Fate::Done;
        let good = done && end.ended_us <= task.deadline_us;
        in_time += f64::from(u8::from(good));
        if task.deadline_us != NO_DEADLINE {
            with_deadline += 1.0;
            met += f64::from(u8::from(good));
            // What was told in time that it will not run is not accepted, and neither late.
            accepted += f64::from(u8::from(matches!(end.fate, Fate::Done | Fate::Expired)));
        }
        if !done {
            not_run += 1.0;
            shed += f64::from(u8::from(end.fate == Fate::Shed));
            continue;
        }
        let wait_us = end.started_us.saturating_sub(task.arrival_us);
        waits_us.push(wait_us);
        wait_sum_s += wait_us as f64 / 1e6;
        let slowdown = 1.0 + wait_us as f64 / task.service_us.max(1) as f64;
        slowdown_sum += slowdown;
        // In thousandths, so that they sort as whole numbers.
        slowdowns.push((slowdown * 1e3) as u64);
    }
    waits_us.sort_unstable();
    slowdowns.sort_unstable();
    let wait_s = |share: f64| quantile(&waits_us, share) as f64 / 1e6;
    let ran = waits_us.len() as f64;
    let mut figures = Figures::from([("tasks", tasks), ("in_time", in_time), ("not_run", not_run), ("shed", shed)]);
    if ran > 0.0 {
        figures.extend([
            ("wait_mean_s", wait_sum_s / ran),
            ("wait_p50_s", wait_s(0.5)),
            ("wait_p99_s", wait_s(0.99)),
            ("wait_p999_s", wait_s(0.999)),
            ("wait_longest_s", wait_s(1.0)),
            ("slowdown_mean", slowdown_sum / ran),
            ("slowdown_p99", quantile(&slowdowns, 0.99) as f64 / 1e3),
        ]);
    }
    if with_deadline > 0.0 {
        figures.insert("attainment", met / with_deadline);
        if accepted > 0.0 {
            figures.insert("attainment_accepted", met / accepted);
        }
    }
    figures
}

/// Tasks waiting at each point, the mean over its stretch.
fn backlog(workload: &Workload, course: &Course) -> Vec<f64> {
    let stretch_us = (course.ended_us / POINTS as u64).max(1);
    // What each stretch begins with, and how much of it each change adds or takes.
    let mut change = vec![0.0; POINTS + 1];
    let mut part = vec![0.0; POINTS + 1];
    let mut step = |at_us: u64, sign: f64| {
        let point = ((at_us / stretch_us) as usize).min(POINTS - 1);
        let rest = 1.0 - (at_us - point as u64 * stretch_us).min(stretch_us) as f64 / stretch_us as f64;
        if let (Some(part), Some(change)) = (part.get_mut(point), change.get_mut(point + 1)) {
            *part += sign * rest;
            *change += sign;
        }
    };
    for (task, end) in workload.tasks.iter().zip(&course.ends) {
        let left_us = if end.fate == Fate::Done { end.started_us } else { end.ended_us };
        step(task.arrival_us, 1.0);
        step(left_us, -1.0);
    }
    let mut waiting = 0.0;
    let points = change.iter().zip(&part).take(POINTS).map(|(change, part)| {
        waiting += change;
        waiting + part
    });
    points.map(|waiting: f64| waiting.max(0.0)).collect()
}
