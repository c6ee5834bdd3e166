//! `taskyard simulate`: the production planner on a virtual clock, one row per policy.

mod live;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use taskyard_scheduler::simulate::{Declared, PolicySpec, Row, Scenario, Trace, TraceUse, page, simulate};

use crate::failure::Failure;
use crate::output::{Format, Output, colour};

#[derive(Args, Clone, Debug)]
pub struct SimulateArgs {
    /// What is simulated (TOML); see examples/scenarios
    #[arg(required_unless_present = "trace")]
    scenario: Option<PathBuf>,
    /// A trace (CSV, gzipped or not): instead of the scenario's, or alone with the defaults
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Policies, as NAME[:AGEING_SECONDS][@learnt|class|true|noisy]; all that the scenario has a use for without it
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    policy: Vec<PolicySpec>,
    /// Runs of each, with random numbers of their own; 5 unless the scenario says otherwise
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    seeds: Option<u32>,
    /// Offered work over capacity; 0.95 unless the scenario says otherwise
    #[arg(long, allow_negative_numbers = true, value_name = "LOADS", value_delimiter = ',')]
    load: Vec<f64>,
    /// How many tasks of it, at most as many as a trace with arrivals has
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    tasks: Option<usize>,
    /// What of a task's size its publisher declares
    #[arg(long, value_enum)]
    cost: Option<CostArg>,
    /// Figures of each policy as a whole, or of its parts
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// Also writes a report with plots, as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Runs at once; as many as there are cores
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    threads: Option<usize>,
    /// Has a yard run the same tasks, in real time and one run after the other: a yard of its own, on the broker and store of
    /// the settings. Prints both and their ratio
    #[arg(long, conflicts_with_all = ["html", "by", "threads"])]
    live: bool,
    /// How data is printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CostArg {
    /// The time it will take
    True,
    /// Its input tokens
    Input,
    /// The mean time of its class
    Class,
    /// Nothing
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, ValueEnum)]
enum By {
    #[default]
    Policy,
    Priority,
    Tenant,
    Model,
}

pub async fn run(arguments: SimulateArgs, file: Option<&Path>) -> Result<(), Failure> {
    let mut scenario = match (&arguments.scenario, &arguments.trace) {
        (Some(path), _) => Scenario::read(path).map_err(|error| Failure::Usage(error.to_string()))?,
        (None, Some(trace)) => Scenario::of_trace(trace),
        // Clap asks for one of the two.
        (None, None) => return Err(Failure::Usage("a scenario or a trace is needed".to_owned())),
    };
    if let Some(path) = &arguments.trace {
        scenario.use_trace(path);
    }
    if !arguments.policy.is_empty() {
        scenario.policies = arguments.policy.iter().map(PolicySpec::to_string).collect();
    }
    if !arguments.load.is_empty() {
        scenario.load.clone_from(&arguments.load);
    }
    scenario.seeds = arguments.seeds.unwrap_or(scenario.seeds);
    scenario.tasks = arguments.tasks.or(scenario.tasks);
    scenario.cost.declared = arguments.cost.map(Declared::from).or(scenario.cost.declared);
    if let Some(fault) = scenario.fault() {
        return Err(Failure::Usage(fault));
    }
    if arguments.live {
        return run_live(&arguments, scenario, file).await;
    }
    let threads = arguments.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let computed = tokio::task::spawn_blocking(move || {
        let trace = trace_of(&scenario)?;
        simulate(&scenario, trace.as_ref(), threads).map_err(|error| Failure::Failed(error.to_string()))
    });
    let report = computed.await.map_err(|error| Failure::Internal(format!("the simulation broke off: {error}")))??;
    if let Some(path) = &arguments.html {
        let simulated = arguments.scenario.as_ref().or(arguments.trace.as_ref());
        let name = simulated.and_then(|path| path.file_name()).map_or("", |name| name.to_str().unwrap_or(""));
        std::fs::write(path, page(&report, &format!("taskyard simulate: {name}")))
            .map_err(|error| Failure::Failed(format!("{} cannot be written: {error}", path.display())))?;
    }
    let mut out = std::io::stdout().lock();
    let mut output = Output { format: arguments.output, colour: colour(), out: &mut out };
    match (arguments.output, arguments.by) {
        (Format::Table, By::Policy) => print_policies(&mut output, &report.rows)?,
        (Format::Table, by) => print_parts(&mut output, &report.rows, by)?,
        _ => output.rows(&[], &report.rows, |_| Vec::new())?,
    }
    Ok(())
}

fn trace_of(scenario: &Scenario) -> Result<Option<Trace>, Failure> {
    let read = |used: &TraceUse| Trace::read(&used.file).map_err(|error| Failure::Usage(error.to_string()));
    scenario.trace.as_ref().map(read).transpose()
}

async fn run_live(arguments: &SimulateArgs, scenario: Scenario, file: Option<&Path>) -> Result<(), Failure> {
    if scenario.hosts.is_some() {
        return Err(Failure::Usage("--live has no hosts that hold some of the models".to_owned()));
    }
    let policies = match arguments.policy.as_slice() {
        [] => vec!["cmu".parse().map_err(Failure::Internal)?],
        given => given.to_vec(),
    };
    if let Some(policy) = policies.iter().find(|policy| !policy.can_be_live()) {
        return Err(Failure::Usage(format!(
            "--live has no {policy}: a scheduler knows what it learns and nothing else"
        )));
    }
    let trace = trace_of(&scenario)?;
    live::run(&scenario, trace.as_ref(), &policies, file, arguments.output).await
}

impl From<CostArg> for Declared {
    fn from(cost: CostArg) -> Self {
        match cost {
            CostArg::True => Self::True,
            CostArg::Input => Self::Input,
            CostArg::Class => Self::Class,
            CostArg::None => Self::None,
        }
    }
}

/// Shown where tasks were refused or given up: otherwise each policy does the same in the end.
const VALUE: &str = "value_per_s";

/// A column of the table: its head, and the figure's name.
const COLUMNS: [(&str, &str); 23] = [
    ("goodput", "goodput"),
    ("in tasks", "goodput_tasks"),
    ("swaps", "swaps_per_1000"),
    ("in time", "attainment"),
    ("of accepted", "attainment_accepted"),
    ("value", VALUE),
    ("cost", "cost_ratio"),
    ("over fifo", "over_fifo"),
    ("over oracle", "over_oracle"),
    ("wait", "wait_mean_s"),
    ("p50", "wait_p50_s"),
    ("p99", "wait_p99_s"),
    ("p99.9", "wait_p999_s"),
    ("longest", "wait_longest_s"),
    ("lowest", "starvation"),
    ("slowdown", "slowdown_mean"),
    ("busy", "utilisation"),
    ("jain", "jain"),
    ("backlogged", "jain_backlogged"),
    ("after jump", "cost_after_jump_s"),
    ("covered", "coverage"),
    ("starts by q50", "start_by_q50"),
    ("by q95", "start_by_q95"),
];

fn print_policies(output: &mut Output<'_>, rows: &[Row]) -> Result<(), Failure> {
    let is_told =
        |row: &Row, name: &str| name != VALUE || row.figures.get("not_run").is_some_and(|not_run| not_run.mean > 0.0);
    let used =
        COLUMNS.iter().filter(|(_, name)| rows.iter().any(|row| row.figures.contains_key(name) && is_told(row, name)));
    let used: Vec<_> = used.collect();
    let mut headers = vec!["policy", "load"];
    for (head, name) in &used {
        headers.push(head);
        if *name == "cost_ratio" {
            headers.push("±");
        }
    }
    let cells = |row: &Row| {
        let mut cells = vec![row.policy.to_string(), row.load.to_string()];
        for (_, name) in &used {
            let interval = row.figures.get(name);
            cells.push(interval.map_or("-".to_owned(), |interval| number(interval.mean)));
            if *name == "cost_ratio" {
                cells.push(interval.and_then(|interval| interval.ci95).map_or("-".to_owned(), number));
            }
        }
        cells
    };
    Ok(output.rows(&headers, rows, cells)?)
}

/// One row for each part of each policy.
#[derive(Serialize)]
struct Part<'a> {
    row: &'a Row,
    name: String,
    figures: &'a taskyard_scheduler::simulate::Intervals,
}

fn print_parts(output: &mut Output<'_>, rows: &[Row], by: By) -> Result<(), Failure> {
    let mut parts = Vec::new();
    for row in rows {
        let named = |name: String, figures| Part { row, name, figures };
        match by {
            By::Priority => parts.extend(row.by_priority.iter().map(|(name, part)| named(name.to_string(), part))),
            By::Tenant => parts.extend(row.by_tenant.iter().map(|(name, part)| named(name.clone(), part))),
            By::Model => parts.extend(row.by_model.iter().map(|(name, part)| named(name.clone(), part))),
            By::Policy => parts.push(named(String::new(), &row.figures)),
        }
    }
    let head = match by {
        By::Priority => "priority",
        By::Tenant => "tenant",
        By::Model => "model",
        By::Policy => "",
    };
    let names = ["tasks", "attainment", "wait_mean_s", "wait_p50_s", "wait_p99_s", "wait_p999_s", "wait_longest_s"];
    let headers = ["policy", "load", head, "tasks", "in time", "wait", "p50", "p99", "p99.9", "longest"];
    let cells = |part: &Part<'_>| {
        let mut cells = vec![part.row.policy.to_string(), part.row.load.to_string(), part.name.clone()];
        cells.extend(names.map(|name| part.figures.get(name).map_or("-".to_owned(), |figure| number(figure.mean))));
        cells
    };
    Ok(output.rows(&headers, &parts, cells)?)
}

/// Three digits that count.
fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "-".to_owned(),
        0.0 => "0".to_owned(),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 0.1 => format!("{value:.3}"),
        _ if size >= 0.001 => format!("{value:.5}"),
        _ => format!("{value:.1e}"),
    }
}
