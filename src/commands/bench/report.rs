//! What the turns came to, for people and for programs.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::latency::Latency;
use super::load::Outcome;
use super::roles::Usage;
use crate::failure::Failure;
use crate::output::{Format, Output, colour};

pub const TASKYARD: &str = "taskyard";
pub const RELAY: &str = "relay";

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
    pub roles: Vec<Usage>,
}

/// Medians of a system's turns, each number by itself.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Median {
    pub system: &'static str,
    pub turns: usize,
    pub tasks_per_second: f64,
    pub latency_ms: Option<Latency>,
    pub roles: Vec<Usage>,
}

/// Taskyard's medians by the relay's.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Ratios {
    pub throughput: f64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub scheduler_to_forwarder_cpu: Option<f64>,
    pub worker_to_relay_worker_cpu: Option<f64>,
    pub rabbitmq_cpu: Option<f64>,
}

#[derive(Default, Serialize)]
pub struct Report {
    turns: Vec<Turn>,
    medians: Vec<Median>,
    ratios: Option<Ratios>,
}

impl Turn {
    pub fn new(system: &'static str, turn: u32, outcome: Outcome, roles: Vec<Usage>, drain: bool) -> Self {
        let Outcome { published, unconfirmed, refusal, answered, states, duplicates, elapsed, answering, latency } =
            outcome;
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
            roles,
        }
    }

    fn not_succeeded(&self) -> u64 {
        self.states.iter().filter(|(state, _)| **state != "succeeded").map(|(_, count)| count).sum()
    }
}

impl Report {
    pub fn add(&mut self, turn: Turn) {
        self.turns.push(turn);
        self.medians = [TASKYARD, RELAY].into_iter().filter_map(|system| median_of(system, &self.turns)).collect();
        self.ratios = match &self.medians[..] {
            [taskyard, relay] => Some(ratios(taskyard, relay)),
            _ => None,
        };
    }

    /// # Errors
    /// When tasks were lost, did not succeed or were answered twice.
    pub fn judge(&self) -> Result<(), Failure> {
        let sum = |count: fn(&Turn) -> u64| self.turns.iter().map(count).sum::<u64>();
        let (missing, duplicates) = (sum(|turn| turn.missing), sum(|turn| turn.duplicates));
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
        let latency = |latency: Option<Latency>| {
            let Latency { p50, p95, p99, p99_9, max, .. } = latency.unwrap_or_default();
            [p50, p95, p99, p99_9, max].map(|ms| latency.map_or("-".to_owned(), |_| format!("{ms:.2}")))
        };
        let mut rows: Vec<Vec<String>> = self
            .turns
            .iter()
            .map(|turn| {
                let [p50, p95, p99, p99_9, max] = latency(turn.latency_ms);
                let counts = [turn.not_succeeded(), turn.missing, turn.duplicates].map(|count| count.to_string());
                let head = [turn.turn.to_string(), turn.system.to_owned(), turn.tasks.to_string()];
                let rate = format!("{:.0}", turn.tasks_per_second);
                head.into_iter().chain([rate, p50, p95, p99, p99_9, max]).chain(counts).collect()
            })
            .collect();
        for median in self.medians.iter().filter(|median| median.turns > 1) {
            let [p50, p95, p99, p99_9, max] = latency(median.latency_ms);
            let head = ["median".to_owned(), median.system.to_owned(), "-".to_owned()];
            let rate = format!("{:.0}", median.tasks_per_second);
            let none = ["-", "-", "-"].map(str::to_owned);
            rows.push(head.into_iter().chain([rate, p50, p95, p99, p99_9, max]).chain(none).collect());
        }
        output.rows(&headers, &rows, Clone::clone)?;
        writeln!(output.out)?;
        self.role_table(output)?;
        if let Some(ratios) = &self.ratios {
            writeln!(output.out)?;
            let text = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
            output.one(ratios, |ratios| {
                vec![
                    ("taskyard by relay: throughput", text(Some(ratios.throughput))),
                    ("  p50", text(ratios.p50)),
                    ("  p99", text(ratios.p99)),
                    ("  CPU a task, scheduler by forwarder", text(ratios.scheduler_to_forwarder_cpu)),
                    ("  CPU a task, worker by relay worker", text(ratios.worker_to_relay_worker_cpu)),
                    ("  CPU a task, rabbitmq", text(ratios.rabbitmq_cpu)),
                ]
            })?;
        }
        Ok(())
    }

    fn role_table(&self, output: &mut Output<'_>) -> io::Result<()> {
        let roles = || self.medians.iter().flat_map(|median| median.roles.iter().map(|role| (median.system, role)));
        let mut operations: Vec<&String> =
            roles().flat_map(|(_, role)| role.operations_per_1000_tasks.keys()).collect();
        operations.sort();
        operations.dedup();
        let mut headers = vec!["system", "role", "processes", "CPU s / 1000", "RSS MB"];
        headers.extend(operations.iter().map(|operation| operation.as_str()));
        let rows: Vec<Vec<String>> = roles()
            .map(|(system, role)| {
                let mut row = vec![
                    system.to_owned(),
                    role.role.clone(),
                    role.processes.to_string(),
                    format!("{:.4}", role.cpu_seconds_per_1000_tasks),
                    format!("{:.1}", role.resident_mb),
                ];
                row.extend(operations.iter().map(|operation| {
                    role.operations_per_1000_tasks
                        .get(*operation)
                        .map_or_else(|| "-".to_owned(), |count| format!("{count:.1}"))
                }));
                row
            })
            .collect();
        output.rows(&headers, &rows, Clone::clone)
    }
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
    Some(Median {
        system,
        turns: turns.len(),
        tasks_per_second: median(turns.iter().map(|turn| turn.tasks_per_second).collect()),
        latency_ms: (!latencies.is_empty()).then_some(latency),
        roles: first.roles.iter().map(role).collect(),
    })
}

fn ratios(taskyard: &Median, relay: &Median) -> Ratios {
    let by = |over: f64, under: f64| (under > 0.0).then(|| over / under);
    let latency = |number: fn(&Latency) -> f64| by(number(&taskyard.latency_ms?), number(&relay.latency_ms?));
    let cpu = |of: &Median, role: &str| {
        of.roles.iter().find(|usage| usage.role == role).map(|usage| usage.cpu_seconds_per_1000_tasks)
    };
    let cpu = |ours: &str, theirs: &str| by(cpu(taskyard, ours)?, cpu(relay, theirs)?);
    Ratios {
        throughput: by(taskyard.tasks_per_second, relay.tasks_per_second).unwrap_or(0.0),
        p50: latency(|latency| latency.p50),
        p99: latency(|latency| latency.p99),
        scheduler_to_forwarder_cpu: cpu("scheduler", "forwarder"),
        worker_to_relay_worker_cpu: cpu("worker", "relay worker"),
        rabbitmq_cpu: cpu("rabbitmq", "rabbitmq"),
    }
}
