//! What is simulated: a TOML file, or the defaults around a trace. `examples/scenarios/` has commented ones.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::arrivals::Arrivals;
use super::distribution::Service;
use super::hosts::Hosts;

/// Bounds on what one scenario may ask for.
const TASKS_MOST: usize = 20_000_000;
const MODELS_MOST: usize = 10_000;
const SEEDS_MOST: u32 = 1000;

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// One sentence for the report.
    pub description: String,
    /// How many tasks come. Without it, as many as the trace has rows, or 20,000.
    pub tasks: Option<usize>,
    /// Runs, each with random numbers of its own; the same for every policy.
    pub seeds: u32,
    /// Offered work over what the slots can do. One set of runs for each.
    pub load: Vec<f64>,
    pub load_by: LoadBy,
    /// See [`super::policies`]. Without it, all that the scenario has a use for.
    pub policies: Vec<String>,
    /// The first tasks of a run, as a share of all, count in no figure but the weighted cost.
    pub warm_up: f64,
    pub trace: Option<TraceUse>,
    /// `trace` when the trace has arrivals, `poisson` otherwise.
    pub arrivals: Option<Arrivals>,
    /// Kinds of tasks, when there is no trace.
    pub classes: Vec<Class>,
    pub models: Models,
    pub cost: Cost,
    /// How many of the tasks have priority 0, 1, … 9, relative to one another. All the same without it.
    pub priorities: Vec<f64>,
    /// Without it, those of the trace, or one.
    pub tenants: Vec<Tenant>,
    pub deadlines: Option<Deadlines>,
    pub workers: Workers,
    /// Workers that hold some of the models at a time, instead of each model's own slots.
    pub hosts: Option<Hosts>,
    pub jump: Option<Jump>,
    pub planner: PlannerSettings,
}

/// How the load is reached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBy {
    /// The gaps between arrivals are stretched; service times stay.
    #[default]
    Arrivals,
    /// Workers are made faster or slower, and service times with them; arrivals stay.
    Speed,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceUse {
    /// From the scenario's own folder.
    pub file: PathBuf,
    /// Seconds of work in a token read and a token written.
    #[serde(default = "TraceUse::input_ms_per_token")]
    pub input_ms_per_token: f64,
    #[serde(default = "TraceUse::output_ms_per_token")]
    pub output_ms_per_token: f64,
    /// Service times are multiplied with it.
    #[serde(default = "TraceUse::scale")]
    pub service_scale: f64,
    /// Each task is a row drawn at random, rather than the rows in their order. Always so without arrivals.
    #[serde(default)]
    pub draw: bool,
    /// Models with fewer rows share the workers of one model `other`.
    #[serde(default = "TraceUse::rows_least")]
    pub rows_least: usize,
}

impl TraceUse {
    fn input_ms_per_token() -> f64 {
        0.2
    }

    fn output_ms_per_token() -> f64 {
        1.0
    }

    fn scale() -> f64 {
        1.0
    }

    fn rows_least() -> usize {
        100
    }

    pub fn of(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            input_ms_per_token: Self::input_ms_per_token(),
            output_ms_per_token: Self::output_ms_per_token(),
            service_scale: Self::scale(),
            draw: false,
            rows_least: Self::rows_least(),
        }
    }
}

/// The scheduler is told a class as the task's kind: the first five each have one, the others share the last.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    pub name: String,
    /// How many of the tasks, relative to the other classes.
    pub share: f64,
    pub service: Service,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Models {
    /// Without a trace.
    pub count: usize,
    /// The k-th model gets 1/k to this power of the tasks: 0 is even.
    pub zipf: f64,
    /// Slots of each model, on all its workers together.
    pub slots: usize,
}

/// What the scheduler is told of a task's size before it runs.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cost {
    /// Without it: `input` for tokens, `true` otherwise.
    pub declared: Option<Declared>,
    /// Declared costs are off by a factor whose logarithm has this standard deviation.
    pub sigma: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Declared {
    /// The cost is proportional to the time that the task will take.
    True,
    /// The input's tokens.
    Input,
    /// The mean time of the task's class.
    Class,
    /// No cost.
    None,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub name: String,
    /// How many of the tasks, relative to the other tenants.
    pub traffic: f64,
    /// Its share of the capacity, relative to the other tenants.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// A deadline is so many times the task's own service time, drawn evenly between two bounds, and a constant, after
/// its arrival.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// How many of the tasks have one.
    pub share: f64,
    pub slack_least: f64,
    pub slack_most: f64,
    pub constant_ms: f64,
}

#[derive(Clone, PartialEq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// Tasks of a model sent ahead of its slots.
    pub ahead: usize,
    /// From a task's end to the scheduler's hearing of it.
    pub feedback_ms: f64,
    /// From a change of the slots to the scheduler's hearing of it.
    pub report_ms: f64,
    /// Half of a model's slots, rounded down, go away and come back, each after an exponential time with this mean.
    pub away_every_s: f64,
    pub away_for_s: f64,
}

/// From some moment on tasks take longer.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jump {
    pub factor: f64,
    /// As a share of the time in which tasks come.
    pub at: f64,
    /// Which class or model. All without it.
    pub class: Option<String>,
    pub model: Option<String>,
}

#[derive(Default, Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerSettings {
    pub ageing_s: Option<f64>,
    /// How long the slots of a model may take for what waits for it, in seconds. Without it nothing gives way.
    pub overload_s: Option<f64>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            description: String::new(),
            tasks: None,
            seeds: 5,
            load: vec![0.95],
            load_by: LoadBy::default(),
            policies: Vec::new(),
            warm_up: 0.0,
            trace: None,
            arrivals: None,
            classes: Vec::new(),
            models: Models::default(),
            cost: Cost::default(),
            priorities: vec![1.0; 10],
            tenants: Vec::new(),
            deadlines: None,
            workers: Workers::default(),
            hosts: None,
            jump: None,
            planner: PlannerSettings::default(),
        }
    }
}

impl Default for Models {
    fn default() -> Self {
        Self { count: 1, zipf: 0.0, slots: 1 }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { share: 1.0, slack_least: 2.0, slack_most: 10.0, constant_ms: 0.0 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{}: {fault}", path.display())]
    Unusable { path: PathBuf, fault: String },
}

impl Scenario {
    /// Reads a file. The trace's path in it is from the file's own folder.
    ///
    /// # Errors
    /// One sentence that names the file and the key.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ScenarioError::Unreadable { path: path.to_owned(), error })?;
        let mut scenario = Self::parse(&text, path)?;
        if let Some(trace) = &mut scenario.trace
            && let Some(folder) = path.parent()
        {
            trace.file = folder.join(&trace.file);
        }
        Ok(scenario)
    }

    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ScenarioError> {
        let unusable = |fault: String| ScenarioError::Unusable { path: path.to_owned(), fault };
        let scenario: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text.get(..span.start).unwrap_or("").matches('\n').count());
            unusable(match line {
                Some(line) => format!("line {line}: {}", error.message()),
                None => error.message().to_owned(),
            })
        })?;
        match scenario.fault() {
            Some(fault) => Err(unusable(fault)),
            None => Ok(scenario),
        }
    }

    /// The scenario around a trace when there is no other: each model on one slot, made as fast as the load asks for.
    pub fn of_trace(file: &Path) -> Self {
        Self { trace: Some(TraceUse::of(file)), load_by: LoadBy::Speed, ..Self::default() }
    }

    /// The same with another trace.
    pub fn use_trace(&mut self, file: &Path) {
        match &mut self.trace {
            Some(trace) => file.clone_into(&mut trace.file),
            None => self.trace = Some(TraceUse::of(file)),
        }
    }

    /// What is wrong with it, beginning with the key.
    pub fn fault(&self) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let natural = |value: f64| value.is_finite() && value >= 0.0;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let mut checks: Vec<(bool, String)> = vec![
            (
                self.tasks.is_none_or(|tasks| (1..=TASKS_MOST).contains(&tasks)),
                format!("tasks: from 1 to {TASKS_MOST}"),
            ),
            ((1..=SEEDS_MOST).contains(&self.seeds), format!("seeds: from 1 to {SEEDS_MOST}")),
            (!self.load.is_empty(), "load: at least one is needed".to_owned()),
            (
                self.load.iter().all(|&load| positive(load) && load <= 1000.0),
                "load: numbers over 0, at most 1000".to_owned(),
            ),
            ((0.0..1.0).contains(&self.warm_up), "warm_up: from 0 to below 1".to_owned()),
            ((1..=MODELS_MOST).contains(&self.models.count), format!("models.count: from 1 to {MODELS_MOST}")),
            (natural(self.models.zipf), "models.zipf: a number of at least 0".to_owned()),
            ((1..=MODELS_MOST).contains(&self.models.slots), format!("models.slots: from 1 to {MODELS_MOST}")),
            (natural(self.cost.sigma) && self.cost.sigma <= 10.0, "cost.sigma: from 0 to 10".to_owned()),
            (self.planner.ageing_s.is_none_or(positive), "planner.ageing_s: a number over 0".to_owned()),
            (self.planner.overload_s.is_none_or(positive), "planner.overload_s: a number over 0".to_owned()),
            (
                self.priorities.len() <= 10
                    && self.priorities.iter().all(|&part| natural(part))
                    && self.priorities.iter().any(|&part| part > 0.0),
                "priorities: up to 10 numbers of at least 0, not all of them 0".to_owned(),
            ),
            (
                self.trace.is_some() || !self.classes.is_empty(),
                "classes or trace: what the tasks are is missing".to_owned(),
            ),
            (self.trace.is_none() || self.classes.is_empty(), "classes: not together with a trace".to_owned()),
            (
                self.trace.is_some() || !matches!(self.arrivals, Some(Arrivals::Trace {})),
                "arrivals.process: there is no trace".to_owned(),
            ),
            (
                self.trace.is_some() || self.cost.declared != Some(Declared::Input),
                "cost.declared: without a trace no input is known".to_owned(),
            ),
        ];
        if let Some(trace) = &self.trace {
            checks.push((
                natural(trace.input_ms_per_token)
                    && natural(trace.output_ms_per_token)
                    && trace.input_ms_per_token + trace.output_ms_per_token > 0.0,
                "trace.input_ms_per_token, trace.output_ms_per_token: numbers of at least 0, not both 0".to_owned(),
            ));
            checks.push((positive(trace.service_scale), "trace.service_scale: a number over 0".to_owned()));
        }
        for class in &self.classes {
            let name = &class.name;
            checks.push((positive(class.share), format!("classes: the share of {name:?} must be over 0")));
            if let Some(fault) = class.service.fault() {
                checks.push((false, format!("classes: the service of {name:?}: {fault}")));
            }
        }
        for tenant in &self.tenants {
            let good = positive(tenant.traffic) && positive(tenant.weight);
            checks.push((good, format!("tenants: traffic and weight of {:?} must be over 0", tenant.name)));
        }
        if let Some(fault) = self.arrivals.as_ref().and_then(Arrivals::fault) {
            checks.push((false, format!("arrivals: {fault}")));
        }
        if let Some(deadlines) = &self.deadlines {
            checks.push((share(deadlines.share), "deadlines.share: from 0 to 1".to_owned()));
            checks.push((
                natural(deadlines.slack_least)
                    && deadlines.slack_most >= deadlines.slack_least
                    && deadlines.slack_most <= 1e6,
                "deadlines: slack_least and slack_most from 0 to 1000000, the least first".to_owned(),
            ));
            checks.push((natural(deadlines.constant_ms), "deadlines.constant_ms: a number of at least 0".to_owned()));
        }
        let workers = &self.workers;
        checks.push((
            [workers.feedback_ms, workers.report_ms, workers.away_every_s, workers.away_for_s].into_iter().all(natural),
            "workers: times of at least 0".to_owned(),
        ));
        checks.push((
            (workers.away_every_s > 0.0) == (workers.away_for_s > 0.0),
            "workers: away_every_s and away_for_s go together".to_owned(),
        ));
        checks.push((workers.ahead <= MODELS_MOST, format!("workers.ahead: at most {MODELS_MOST}")));
        if let Some(hosts) = &self.hosts {
            checks.push((hosts.fault().is_none(), hosts.fault().unwrap_or_default().to_owned()));
            let alone = self.deadlines.is_none() && *workers == Workers::default();
            checks.push((alone, "hosts: not together with deadlines or workers".to_owned()));
        }
        if let Some(jump) = &self.jump {
            checks.push((positive(jump.factor), "jump.factor: a number over 0".to_owned()));
            checks.push((share(jump.at), "jump.at: from 0 to 1".to_owned()));
        }
        checks.into_iter().find(|(good, _)| !good).map(|(_, fault)| fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        [[classes]]
        name = "short"
        share = 1
        service = { distribution = "exponential", mean_ms = 100 }
    "#;

    fn parse(text: &str) -> Result<Scenario, String> {
        Scenario::parse(text, Path::new("s.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_fill_what_is_left_out() {
        let scenario = parse(SMALL).unwrap();
        assert_eq!((scenario.seeds, scenario.load.as_slice(), scenario.models.slots), (5, &[0.95][..], 1));
        assert_eq!(Scenario::of_trace(Path::new("t.csv")).fault(), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        for (more, words) in [
            ("sedes = 5", "unknown field `sedes`"),
            ("[models]\ncuont = 2", "unknown field `cuont`"),
            ("load = []", "load"),
            ("load = [nan]", "load"),
            ("seeds = 0", "seeds"),
            ("priorities = [0, 0]", "priorities"),
            ("[arrivals]\nprocess = \"gamma\"", "missing field `cv`"),
            ("[arrivals]\nprocess = \"gamma\"\ncv = -1", "arrivals: cv"),
            ("[arrivals]\nprocess = \"poisson\"\ncv = 1", "unknown field `cv`"),
            ("[arrivals]\nprocess = \"trace\"", "there is no trace"),
            ("[cost]\ndeclared = \"input\"", "cost.declared"),
            ("[deadlines]\nslack_least = 9\nslack_most = 2", "slack_least"),
            ("[workers]\naway_for_s = 1", "away_every_s"),
            ("[hosts]\ncount = 0\nslots = 1\nmemory_mb = 1000", "hosts: count"),
            ("[hosts]\ncount = 1\nslots = 1\nmemory_mb = 999", "hosts: memory_mb"),
            ("[hosts]\ncount = 1\nslots = 1\nmemory_mb = 1000\nswap_cost = -1", "hosts.swap_cost"),
            ("[hosts]\ncount = 1\nslots = 1\nmemory_mb = 1000\n[deadlines]", "hosts: not together"),
            ("[trace]\nfile = \"t.csv\"", "not together with a trace"),
        ] {
            let error = parse(&format!("{more}\n{SMALL}")).unwrap_err();
            assert!(error.starts_with("s.toml: ") && error.contains(words), "{more}: {error}");
        }
        assert!(parse("").unwrap_err().contains("what the tasks are is missing"));
        assert!(parse("seeds = \"x\"").unwrap_err().contains("line 1"), "{}", parse("seeds = \"x\"").unwrap_err());
    }
}
