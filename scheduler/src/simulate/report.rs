//! All runs of a scenario, put together: one row per load and policy.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use super::bound::{least_cost, least_cost_on};
use super::chooser::Chooser;
use super::engine::{self, Course, Fate};
use super::hosts::{self, Hosts};
use super::measure::{Figures, Measured, measure};
use super::moore_hodgson::MooreHodgson;
use super::planned::Planned;
use super::policies::{MOORE_HODGSON, PolicySpec, usual};
use super::scenario::Scenario;
use super::summary::Interval;
use super::trace::Trace;
use super::workload::Workload;

/// Figures over all seeds, by name.
pub type Intervals = BTreeMap<&'static str, Interval>;

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    pub policy: PolicySpec,
    pub load: f64,
    pub seeds: u32,
    pub figures: Intervals,
    pub by_priority: BTreeMap<u8, Intervals>,
    pub by_tenant: BTreeMap<String, Intervals>,
    pub by_model: BTreeMap<String, Intervals>,
    /// The runs themselves, for plots.
    #[serde(skip)]
    pub runs: Vec<Measured>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    pub description: String,
    /// Tasks of one run.
    pub tasks: usize,
    pub rows: Vec<Row>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SimulationError {
    #[error("policies: {0}")]
    Policy(String),
    #[error("{policy} at load {load}: {fault}")]
    Inconsistent { policy: String, load: String, fault: String },
}

/// Runs every load, seed and policy, on so many threads at once.
///
/// # Errors
/// A policy that is none, or a run that did not come to an end for every task.
pub fn simulate(scenario: &Scenario, trace: Option<&Trace>, threads: usize) -> Result<Report, SimulationError> {
    let names = match scenario.policies.as_slice() {
        [] => usual(scenario.deadlines.is_some(), scenario.hosts.is_some()),
        names => names.to_vec(),
    };
    let specs: Result<Vec<PolicySpec>, String> = names.iter().map(|name| name.parse()).collect();
    let specs = specs.map_err(SimulationError::Policy)?;
    if let Some(spec) = specs.iter().find(|spec| spec.is_blind && scenario.hosts.is_none()) {
        return Err(SimulationError::Policy(format!("{spec} is for scenarios with hosts")));
    }
    let jobs: Vec<(usize, u32)> =
        (0..scenario.load.len()).flat_map(|load| (1..=scenario.seeds).map(move |seed| (load, seed))).collect();
    let next = AtomicUsize::new(0);
    // By load, seed and policy.
    let done: Mutex<BTreeMap<(usize, u32, usize), Measured>> = Mutex::default();
    let failed: Mutex<Option<SimulationError>> = Mutex::default();
    let tasks = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some(&(load, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let workload =
                        Workload::draw(scenario, trace, seed, scenario.load.get(load).copied().unwrap_or(1.0));
                    tasks.store(workload.tasks.len(), Ordering::Relaxed);
                    let least = match &scenario.hosts {
                        Some(hosts) => least_cost_on(&workload, hosts.count * hosts.slots),
                        None => least_cost(&workload),
                    };
                    for (policy, spec) in specs.iter().enumerate() {
                        match run_one(spec, scenario, &workload, seed, least) {
                            Ok(measured) => {
                                lock(&done).insert((load, seed, policy), measured);
                            }
                            Err(fault) => {
                                let load = scenario.load.get(load).map_or(String::new(), f64::to_string);
                                let policy = spec.to_string();
                                *lock(&failed) = Some(SimulationError::Inconsistent { policy, load, fault });
                                // The others stop at their next job.
                                next.store(jobs.len(), Ordering::Relaxed);
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    compare(&mut done, &names);
    let mut rows = Vec::new();
    for (number, &load) in scenario.load.iter().enumerate() {
        for (policy, spec) in specs.iter().enumerate() {
            let runs: Vec<Measured> =
                (1..=scenario.seeds).filter_map(|seed| done.remove(&(number, seed, policy))).collect();
            rows.push(Row::of(spec.clone(), load, runs));
        }
    }
    Ok(Report { description: scenario.description.clone(), tasks: tasks.into_inner(), rows })
}

/// What the live scheduler shows of itself: the weighted cost of a run over that of other orders on the same tasks, when
/// those are simulated, too.
fn compare(done: &mut BTreeMap<(usize, u32, usize), Measured>, policies: &[String]) {
    for (figure, other) in [("over_fifo", "fifo"), ("over_oracle", "wspt@true")] {
        let Some(other) = policies.iter().position(|policy| policy.trim() == other) else { continue };
        let cost = |measured: &Measured| measured.overall.get("cost_s").copied().filter(|&cost| cost > 0.0);
        let costs: BTreeMap<(usize, u32), f64> = done
            .iter()
            .filter(|((_, _, policy), _)| *policy == other)
            .filter_map(|(&(load, seed, _), measured)| Some(((load, seed), cost(measured)?)))
            .collect();
        for (&(load, seed, _), measured) in done.iter_mut() {
            if let (Some(own), Some(other)) = (cost(measured), costs.get(&(load, seed))) {
                measured.overall.insert(figure, own / other);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub(super) fn run_one(
    spec: &PolicySpec,
    scenario: &Scenario,
    workload: &Workload,
    seed: u32,
    least: f64,
) -> Result<Measured, String> {
    if let Some(hosts) = &scenario.hosts {
        return run_on_hosts(spec, scenario, hosts, workload, least);
    }
    let mut chooser = chooser(spec, scenario, workload).ok_or("the planner has no such policy")?;
    let course = engine::run(workload, scenario, seed, &mut *chooser);
    check(&course)?;
    let mut measured = measure(workload, &course, scenario.warm_up, least);
    measured.overall.extend(chooser.figures());
    Ok(measured)
}

fn run_on_hosts(
    spec: &PolicySpec,
    scenario: &Scenario,
    hosts: &Hosts,
    workload: &Workload,
    least: f64,
) -> Result<Measured, String> {
    let mut planned = Planned::new(spec, scenario, workload).ok_or("no planner has hosts and such a policy")?;
    let (course, loads) = hosts::run(workload, hosts, &mut planned, spec.is_blind);
    check(&course)?;
    let mut measured = measure(workload, &course, scenario.warm_up, least);
    measured.overall.extend(planned.figures());
    // What was reckoned by slots of each model.
    for name in ["jain", "start_by_q50", "start_by_q95"] {
        measured.overall.remove(name);
    }
    measured.overall.extend(hosts::figures(workload, hosts, &course, loads));
    Ok(measured)
}

/// Whether every task came to an end.
fn check(course: &Course) -> Result<(), String> {
    let open = course.ends.iter().filter(|end| end.fate == Fate::Open).count();
    if open > 0 || course.faults > 0 {
        return Err(format!("{open} tasks came to no end, and {} decisions made no sense", course.faults));
    }
    Ok(())
}

impl Report {
    /// In the order of the rows.
    pub fn loads(&self) -> Vec<f64> {
        let mut loads: Vec<f64> = self.rows.iter().map(|row| row.load).collect();
        loads.dedup();
        loads
    }

    /// In the order of the rows.
    pub fn policies(&self) -> Vec<String> {
        let load = self.rows.first().map(|row| row.load);
        self.rows.iter().filter(|row| Some(row.load) == load).map(|row| row.policy.to_string()).collect()
    }

    /// The place of a row's policy among them.
    pub(super) fn colour(&self, row: &Row) -> usize {
        let name = row.policy.to_string();
        self.policies().iter().position(|policy| *policy == name).unwrap_or(0)
    }
}

pub(super) fn chooser(spec: &PolicySpec, scenario: &Scenario, workload: &Workload) -> Option<Box<dyn Chooser>> {
    Some(match spec.name.as_str() {
        MOORE_HODGSON => Box::new(MooreHodgson::new(workload)),
        _ => Box::new(Planned::new(spec, scenario, workload)?),
    })
}

impl Row {
    fn of(policy: PolicySpec, load: f64, runs: Vec<Measured>) -> Self {
        Self {
            policy,
            load,
            seeds: runs.len() as u32,
            figures: over_runs(runs.iter().map(|run| &run.overall)),
            by_priority: over_groups(&runs, |run| &run.by_priority),
            by_tenant: over_groups(&runs, |run| &run.by_tenant),
            by_model: over_groups(&runs, |run| &run.by_model),
            runs,
        }
    }

    /// The mean over the seeds.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.figures.get(name).map(|interval| interval.mean)
    }
}

fn over_runs<'a>(runs: impl Iterator<Item = &'a Figures>) -> Intervals {
    let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for (&name, &value) in runs.flatten() {
        values.entry(name).or_default().push(value);
    }
    values.into_iter().filter_map(|(name, values)| Some((name, Interval::of(&values)?))).collect()
}

fn over_groups<K: Ord + Clone>(
    runs: &[Measured],
    groups: impl Fn(&Measured) -> &BTreeMap<K, Figures>,
) -> BTreeMap<K, Intervals> {
    let mut of_key: BTreeMap<K, Vec<&Figures>> = BTreeMap::new();
    for (key, figures) in runs.iter().flat_map(&groups) {
        of_key.entry(key.clone()).or_default().push(figures);
    }
    of_key.into_iter().map(|(key, runs)| (key, over_runs(runs.into_iter()))).collect()
}
