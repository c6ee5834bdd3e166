//! What the turns came to, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::Serialize;

use super::latency::Latency;
use super::load::Outcome;
use super::restart::Restart;
use super::roles::Usage;
use crate::failure::Failure;
use crate::output::{Format, Output, colour};

pub const TASKYARD: &str = "taskyard";
pub const RELAY: &str = "relay";
pub const PRIORITY: &str = "priority queue";

/// One measurement.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Turn {
    pub turn: u32,
    pub system: &'static str,
    pub tasks: u64,
    /// How many ended in each state.
    pub states: BTreeMap<&'static str, u64>,
    pub missing: u64,
    pub duplicates: u64,
    /// In messages that the broker did not confirm.
    pub unconfirmed: u64,
    pub refusal: Option<String>,
    pub seconds: f64,
    /// From the first publish to the last result; in drain mode, from the first result.
    pub tasks_per_second: f64,
    /// From when a task was due to its result. Not in drain mode.
    pub latency_ms: Option<Latency>,
    pub overtaking: Option<Overtaking>,
    pub restart: Option<Restart>,
    pub roles: Vec<Usage>,
}

/// How tasks of priority 9 fared among many that waited.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Overtaking {
    pub tasks: u64,
    /// From when they were due to their start, milliseconds.
    pub wait_p50_ms: f64,
    pub wait_p90_ms: f64,
    pub wait_max_ms: f64,
    /// Of the time from the first start to the last end, the share in which a slot was working.
    pub slots_busy: f64,
}

/// Medians of a system's turns, each number by itself.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Median {
    pub system: &'static str,
    pub turns: usize,
    pub tasks_per_second: f64,
    pub latency_ms: Option<Latency>,
    pub overtaking: Option<Overtaking>,
    pub roles: Vec<Usage>,
}

/// Taskyard's medians by the baseline's.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Ratios {
    pub baseline: &'static str,
    pub throughput: f64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub scheduler_to_forwarder_cpu: Option<f64>,
    /// By the baseline's own worker.
    pub worker_cpu: Option<f64>,
    pub rabbitmq_cpu: Option<f64>,
    pub overtaking_wait: Option<f64>,
}

#[derive(Default, Serialize)]
pub struct Report {
    turns: Vec<Turn>,
    medians: Vec<Median>,
    ratios: Option<Ratios>,
}

impl Turn {
    pub fn new(system: &'static str, turn: u32, outcome: Outcome, roles: Vec<Usage>, drain: bool) -> Self {
        let Outcome {
            published, unconfirmed, refusal, answered, states, duplicates, elapsed, answering, latency, ..
        } = outcome;
        let (tasks, seconds) = match drain {
            false => (answered, elapsed.as_secs_f64()),
            true => (answered.saturating_sub(1), answering.as_secs_f64()),
        };
        Self {
            turn,
            system,
            tasks: published,
            states,
            missing: published.saturating_sub(answered).saturating_sub(unconfirmed),
            duplicates,
            unconfirmed,
            refusal,
            seconds,
            tasks_per_second: if seconds > 0.0 { tasks as f64 / seconds } else { 0.0 },
            latency_ms: latency.filter(|_| !drain),
            overtaking: None,
            restart: None,
            roles,
        }
    }

    fn not_succeeded(&self) -> u64 {
        self.states.iter().filter(|(state, _)| **state != "succeeded").map(|(_, count)| count).sum()
    }
}

impl Overtaking {
    /// `waiting` are the tasks that were overtaken.
    pub fn of(waiting: &Outcome, urgent: Outcome, slots: f64) -> Self {
        let mut waits = urgent.runs.waits_ms;
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| waits.get((waits.len() as f64 * share) as usize).or(waits.last()).copied().unwrap_or(0.0);
        let (wait_p50_ms, wait_p90_ms, wait_max_ms) = (at(0.5), at(0.9), at(1.0));
        let span = waiting.runs.first_started.zip(waiting.runs.last_finished);
        let span_ms = span.map_or(0.0, |(first, last)| last.ms_since(first));
        let ran_ms = waiting.runs.ran_ms + urgent.runs.ran_ms;
        let slots_busy = if span_ms > 0.0 { ran_ms / span_ms / slots.max(1.0) } else { 0.0 };
        Self { tasks: urgent.answered, wait_p50_ms, wait_p90_ms, wait_max_ms, slots_busy }
    }
}

impl Report {
    pub fn add(&mut self, turn: Turn) {
        self.turns.push(turn);
        self.medians =
            [TASKYARD, RELAY, PRIORITY].into_iter().filter_map(|system| median_of(system, &self.turns)).collect();
        self.ratios = match &self.medians[..] {
            [taskyard, baseline] => Some(ratios(taskyard, baseline)),
            _ => None,
        };
    }

    /// # Errors
    /// When tasks were lost, did not succeed or were answered twice.
    pub fn judge(&self) -> Result<(), Failure> {
        let sum = |count: fn(&Turn) -> u64| self.turns.iter().map(count).sum::<u64>();
        // Results are told at least once: again when a scheduler was killed before it knew that they were.
        let twice = |turn: &Turn| if turn.restart.is_some() { 0 } else { turn.duplicates };
        let (missing, duplicates) = (sum(|turn| turn.missing), sum(twice));
        let (unconfirmed, failed) = (sum(|turn| turn.unconfirmed), sum(Turn::not_succeeded));
        if missing + duplicates + unconfirmed + failed == 0 {
            return Ok(());
        }
        let refusal = self.turns.iter().find_map(|turn| turn.refusal.as_ref());
        let refusal = refusal.map_or_else(String::new, |refusal| format!(" ({refusal})"));
        Err(Failure::Failed(format!(
            "{missing} results missing, {duplicates} twice, {failed} tasks did not succeed, {unconfirmed} not confirmed{refusal}"
        )))
    }

    pub fn print(&self, format: Format) -> Result<(), Failure> {
        if self.turns.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let mut output = Output { format, colour: colour(), out: &mut out };
        let printed = match format {
            Format::Json | Format::Jsonl => output.one(self, |_| Vec::new()),
            Format::Table => self.tables(&mut output),
        };
        Ok(printed?)
    }

    fn tables(&self, output: &mut Output<'_>) -> io::Result<()> {
        let headers = [
            "turn", "system", "tasks", "tasks/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms", "failed",
            "missing", "twice",
        ];
        let rows: Vec<Vec<String>> =
            self.turns.iter().map(turn_row).chain(self.shown_medians().map(median_row)).collect();
        output.rows(&headers, &rows, Clone::clone)?;
        self.overtaking_table(output)?;
        self.restart_table(output)?;
        writeln!(output.out)?;
        self.role_table(output)?;
        let Some(ratios) = &self.ratios else { return Ok(()) };
        writeln!(output.out)?;
        output.one(ratios, |ratios| {
            let all = [
                ("taskyard by the baseline: throughput", Some(ratios.throughput)),
                ("  p50", ratios.p50),
                ("  p99", ratios.p99),
                ("  wait of what overtakes", ratios.overtaking_wait),
                ("  CPU a task, scheduler by forwarder", ratios.scheduler_to_forwarder_cpu),
                ("  CPU a task, worker by worker", ratios.worker_cpu),
                ("  CPU a task, rabbitmq", ratios.rabbitmq_cpu),
            ];
            all.into_iter().filter_map(|(name, ratio)| Some((name, format!("{:.2}", ratio?)))).collect()
        })
    }

    /// Of one turn the median says nothing more.
    fn shown_medians(&self) -> impl Iterator<Item = &Median> {
        self.medians.iter().filter(|median| median.turns > 1)
    }

    fn overtaking_table(&self, output: &mut Output<'_>) -> io::Result<()> {
        let row = |turn: String, system: &str, overtaking: Overtaking| {
            let Overtaking { tasks, wait_p50_ms, wait_p90_ms, wait_max_ms, slots_busy } = overtaking;
            let waits = [wait_p50_ms, wait_p90_ms, wait_max_ms].map(|ms| format!("{ms:.2}"));
            let head = [turn, system.to_owned(), tasks.to_string()];
            head.into_iter().chain(waits).chain([format!("{:.1} %", slots_busy * 100.0)]).collect::<Vec<String>>()
        };
        let turns =
            self.turns.iter().filter_map(|turn| Some(row(turn.turn.to_string(), turn.system, turn.overtaking?)));
        let medians =
            self.shown_medians().filter_map(|median| Some(row("median".to_owned(), median.system, median.overtaking?)));
        let rows: Vec<Vec<String>> = turns.chain(medians).collect();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(output.out)?;
        let headers = ["turn", "system", "urgent", "wait p50 ms", "wait p90 ms", "wait max ms", "slots busy"];
        output.rows(&headers, &rows, Clone::clone)
    }

    fn restart_table(&self, output: &mut Output<'_>) -> io::Result<()> {
        let row = |turn: &Turn| {
            let Restart { listens_after_s, tasks_per_second_before, stood_still_s, back_after_s } = turn.restart?;
            let back = back_after_s.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1}"));
            let numbers = [format!("{tasks_per_second_before:.0}"), format!("{listens_after_s:.1}")];
            Some([vec![turn.turn.to_string()], numbers.to_vec(), vec![format!("{stood_still_s:.1}"), back]].concat())
        };
        let rows: Vec<Vec<String>> = self.turns.iter().filter_map(row).collect();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(output.out)?;
        let headers = ["turn", "tasks/s before the kill", "listens after s", "stood still s", "as fast after s"];
        output.rows(&headers, &rows, Clone::clone)
    }

    /// For 1,000 tasks.
    fn role_table(&self, output: &mut Output<'_>) -> io::Result<()> {
        let roles = || self.medians.iter().flat_map(|median| median.roles.iter().map(|role| (median.system, role)));
        let done = roles().flat_map(|(_, role)| &role.operations_per_1000_tasks);
        let operations: BTreeSet<&String> =
            done.filter(|(_, count)| **count > 0.0).map(|(operation, _)| operation).collect();
        let mut headers = vec!["for 1,000 tasks", "role", "processes", "CPU s", "RSS MB"];
        headers.extend(operations.iter().map(|operation| operation.as_str()));
        let rows: Vec<Vec<String>> = roles()
            .map(|(system, role)| {
                let head = [system.to_owned(), role.role.clone(), role.processes.to_string()];
                let cost = [format!("{:.4}", role.cpu_seconds_per_1000_tasks), format!("{:.1}", role.resident_mb)];
                let counts = operations.iter().map(|operation| {
                    let count = role.operations_per_1000_tasks.get(*operation);
                    count.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}"))
                });
                head.into_iter().chain(cost).chain(counts).collect()
            })
            .collect();
        output.rows(&headers, &rows, Clone::clone)
    }
}

fn turn_row(turn: &Turn) -> Vec<String> {
    let head = [turn.turn.to_string(), turn.system.to_owned(), turn.tasks.to_string()];
    let counts = [turn.not_succeeded(), turn.missing, turn.duplicates].map(|count| count.to_string());
    row(head, turn.tasks_per_second, turn.latency_ms, counts)
}

fn median_row(median: &Median) -> Vec<String> {
    let head = ["median".to_owned(), median.system.to_owned(), "-".to_owned()];
    row(head, median.tasks_per_second, median.latency_ms, ["-", "-", "-"].map(str::to_owned))
}

fn row(head: [String; 3], rate: f64, latency: Option<Latency>, counts: [String; 3]) -> Vec<String> {
    let Latency { p50, p95, p99, p99_9, max, .. } = latency.unwrap_or_default();
    let latencies = [p50, p95, p99, p99_9, max].map(|ms| latency.map_or("-".to_owned(), |_| format!("{ms:.2}")));
    head.into_iter().chain([format!("{rate:.0}")]).chain(latencies).chain(counts).collect()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => 0.0,
        length if length % 2 == 1 => numbers[length / 2],
        length => f64::midpoint(numbers[length / 2 - 1], numbers[length / 2]),
    }
}

fn median_of(system: &'static str, turns: &[Turn]) -> Option<Median> {
    let turns: Vec<&Turn> = turns.iter().filter(|turn| turn.system == system).collect();
    let first = turns.first()?;
    let latencies: Vec<Latency> = turns.iter().filter_map(|turn| turn.latency_ms).collect();
    let of = |number: fn(&Latency) -> f64| median(latencies.iter().map(number).collect());
    let latency = Latency {
        p50: of(|latency| latency.p50),
        p95: of(|latency| latency.p95),
        p99: of(|latency| latency.p99),
        p99_9: of(|latency| latency.p99_9),
        max: of(|latency| latency.max),
        mean: of(|latency| latency.mean),
    };
    let role = |usage: &Usage| {
        let all: Vec<&Usage> =
            turns.iter().filter_map(|turn| turn.roles.iter().find(|other| other.role == usage.role)).collect();
        let of = |number: &dyn Fn(&Usage) -> f64| median(all.iter().map(|usage| number(usage)).collect());
        let operations = usage.operations_per_1000_tasks.keys().map(|operation| {
            let count = |usage: &Usage| usage.operations_per_1000_tasks.get(operation).copied().unwrap_or(0.0);
            (operation.clone(), of(&count))
        });
        Usage {
            role: usage.role.clone(),
            processes: usage.processes,
            cpu_seconds_per_1000_tasks: of(&|usage| usage.cpu_seconds_per_1000_tasks),
            resident_mb: of(&|usage| usage.resident_mb),
            operations_per_1000_tasks: operations.collect(),
        }
    };
    let overtakings: Vec<Overtaking> = turns.iter().filter_map(|turn| turn.overtaking).collect();
    let of = |number: fn(&Overtaking) -> f64| median(overtakings.iter().map(number).collect());
    let overtaking = overtakings.first().map(|first| Overtaking {
        tasks: first.tasks,
        wait_p50_ms: of(|overtaking| overtaking.wait_p50_ms),
        wait_p90_ms: of(|overtaking| overtaking.wait_p90_ms),
        wait_max_ms: of(|overtaking| overtaking.wait_max_ms),
        slots_busy: of(|overtaking| overtaking.slots_busy),
    });
    Some(Median {
        system,
        overtaking,
        turns: turns.len(),
        tasks_per_second: median(turns.iter().map(|turn| turn.tasks_per_second).collect()),
        latency_ms: (!latencies.is_empty()).then_some(latency),
        roles: first.roles.iter().map(role).collect(),
    })
}

fn ratios(taskyard: &Median, baseline: &Median) -> Ratios {
    let by = |over: f64, under: f64| (under > 0.0).then(|| over / under);
    let latency = |number: fn(&Latency) -> f64| by(number(&taskyard.latency_ms?), number(&baseline.latency_ms?));
    let cpu = |of: &Median, role: &str| {
        of.roles.iter().find(|usage| usage.role == role).map(|usage| usage.cpu_seconds_per_1000_tasks)
    };
    let cpu = |ours: &str, theirs: &str| by(cpu(taskyard, ours)?, cpu(baseline, theirs)?);
    Ratios {
        baseline: baseline.system,
        throughput: by(taskyard.tasks_per_second, baseline.tasks_per_second).unwrap_or(0.0),
        p50: latency(|latency| latency.p50),
        p99: latency(|latency| latency.p99),
        scheduler_to_forwarder_cpu: cpu("scheduler", "forwarder"),
        worker_cpu: cpu("worker", if baseline.system == RELAY { "relay worker" } else { "priority worker" }),
        rabbitmq_cpu: cpu("rabbitmq", "rabbitmq"),
        overtaking_wait: taskyard
            .overtaking
            .zip(baseline.overtaking)
            .and_then(|(ours, theirs)| by(ours.wait_p50_ms, theirs.wait_p50_ms)),
    }
}
