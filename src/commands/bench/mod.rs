//! `taskyard bench`: publishes tasks to a yard, takes their results, and says what that cost whom.
//!
//! The yard runs already, or is one of the run's own (`--own`): child processes of this binary on the broker and store of
//! the settings, or everything in this process when those are embedded. `--baseline relay` measures a plain relay on the
//! same broker in turns with it.

mod baseline;
mod children;
mod latency;
mod load;
mod report;
mod restart;
mod roles;
pub(in crate::commands) mod stage;
mod tasks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use taskyard_shared::process::config::{self, Origin, is_embedded};
use taskyard_shared::process::settings::Settings;
use taskyard_shared::process::shutdown::Shutdown;
use taskyard_shared::process::telemetry;
use tokio_util::sync::CancellationToken;

pub use self::baseline::{HopArgs, SlotsArgs, hop, slots};
use self::load::{Plan, Running};
use self::report::{Overtaking, Report, Turn};
use self::restart::Restart;
use self::stage::{Made, Stage};
use self::tasks::Shape;
use super::numbers::whole;
use crate::failure::Failure;
use crate::output::Format;

/// How long what is under way behind the last result may take to end, and between two looks at a queue.
const SETTLING: Duration = Duration::from_millis(300);
/// For the first tasks of a yard, which may only just have started.
const WARM_UP_PATIENCE: Duration = Duration::from_secs(60);
const NO_OP: &str = "bench";
const URGENT: u8 = 9;

#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The model that the tasks ask for; with --own, what its no-op model is called.
    #[arg(long, default_value = NO_OP, value_name = "NAME")]
    model: String,
    /// Spread the tasks over so many models, NAME-0 and so on.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    models: u32,
    /// Tasks to publish. With neither this nor a duration, for 10 seconds, or 20,000 in drain mode.
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<1, 100_000_000>, value_name = "N")]
    tasks: Option<u64>,
    /// Publish for so long, in seconds.
    #[arg(long, conflicts_with = "tasks", allow_negative_numbers = true, value_parser = positive, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Tasks a second, due at their times whether or not earlier ones are answered; else as fast as they are answered.
    #[arg(long, allow_negative_numbers = true, value_parser = positive, value_name = "TASKS")]
    rate: Option<f64>,
    /// Most tasks that are not answered, when no rate is given.
    #[arg(long, default_value_t = 20_000, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000_000), value_name = "N")]
    in_flight: u32,
    /// Size of a task's input as JSON.
    #[arg(long, default_value_t = 256, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(2..=1_000_000), value_name = "BYTES")]
    size: u32,
    /// Spread the tasks over the N lowest priorities.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = whole::<1, 10>, value_name = "N")]
    priorities: u64,
    /// Spread the tasks over N tenants.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = whole::<1, 1_000_000>, value_name = "N")]
    tenants: u64,
    /// One task to a message, or many.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    publish: Publish,
    /// Tasks to a message with --publish batch.
    #[arg(long, default_value_t = 100, allow_negative_numbers = true, value_parser = whole::<1, 10_000>, value_name = "N")]
    batch: u64,
    /// One result to a message, or as many as the worker likes.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    results: Results,
    /// steady: tasks are worked on as they come. drain: only once all of them wait; measured from the first result.
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    mode: Mode,
    /// Measure so many times; what is printed is each turn, and the median.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1_000), value_name = "N")]
    turns: u32,
    /// Tasks before each turn that are not measured.
    #[arg(long, default_value_t = 2_000, allow_negative_numbers = true, value_parser = whole::<0, 1_000_000_000>, value_name = "N")]
    warm_up: u64,
    /// How long a result may take, in seconds; then it counts as missing.
    #[arg(long, default_value = "30", allow_negative_numbers = true, value_parser = positive, value_name = "SECONDS")]
    patience: f64,
    /// Start a yard for each turn, under a namespace of its own on the broker and store of the settings.
    #[arg(long)]
    own: bool,
    /// Schedulers of the yard of one's own, each a process.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N", requires = "own")]
    schedulers: u32,
    /// Its workers, each a process.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N", requires = "own")]
    workers: u32,
    /// Slots of each of its models on each worker.
    #[arg(long, default_value_t = 64, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N", requires = "own")]
    slots: u32,
    /// Most tasks in one call of its models.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N", requires = "own")]
    max_batch: u32,
    /// What a call of its models takes, in milliseconds.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_parser = not_negative, value_name = "MS", requires = "own")]
    service_ms: f64,
    /// Keep it on disk when it is embedded, in a folder of its own in DIR that is deleted at the end.
    #[arg(long, value_name = "DIR", requires = "own")]
    data: Option<PathBuf>,
    /// In drain mode: publish so many tasks of priority 9 while the others wait, which have priority 0, and tell how long
    /// they waited and how busy the slots were.
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<1, 100_000>, value_name = "N")]
    overtake: Option<u64>,
    /// Seconds between two of those.
    #[arg(long, default_value = "0.3", allow_negative_numbers = true, value_parser = positive, value_name = "SECONDS", requires = "overtake")]
    overtake_every: f64,
    /// In drain mode: kill the schedulers so many seconds after the first result, start others, and tell when results come as fast as
    /// before.
    #[arg(long, allow_negative_numbers = true, value_parser = positive, value_name = "SECONDS", requires = "own")]
    restart_after: Option<f64>,
    /// Measure something else on the same broker too, in turns.
    #[arg(long, value_enum, value_name = "WHAT")]
    baseline: Option<Baseline>,
    /// Deliveries and confirms that a hop of the relay has under way.
    #[arg(long, default_value_t = 1_000, allow_negative_numbers = true, value_name = "N")]
    relay_in_flight: u16,
    /// Metrics of a role that runs, http://HOST:PORT/metrics; may be given several times.
    #[arg(long, value_name = "URL", conflicts_with = "own")]
    metrics: Vec<String>,
    /// How data is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Publish {
    #[default]
    Single,
    Batch,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Results {
    #[default]
    Single,
    Array,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Mode {
    #[default]
    Steady,
    Drain,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Baseline {
    /// Two queues and a reply, each message by itself.
    Relay,
    /// RabbitMQ's own priority queue, and a consumer with a prefetch of 1 for each slot.
    Priority,
    /// The same, where a result is not confirmed before its task is acked.
    PriorityUnconfirmed,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1e9).contains(&number) => Ok(number),
        _ => Err("must be a number, 0 or above".to_owned()),
    }
}

impl BenchArgs {
    fn names(&self) -> Vec<String> {
        baseline::numbered(&self.model, (self.models > 1).then_some(self.models))
    }

    fn made(&self, settings: &Settings) -> Made {
        let Self { schedulers, workers, slots, max_batch, service_ms, .. } = *self;
        let folder = settings.broker.url.strip_prefix("embedded:").filter(|folder| !folder.is_empty());
        let data = self.data.clone().or_else(|| folder.map(PathBuf::from));
        Made { schedulers, workers, slots, max_batch, service_ms, data }
    }

    fn plan(&self) -> Plan {
        let duration = self.duration.map(Duration::from_secs_f64);
        let (tasks, duration) = match (self.tasks, duration, self.mode) {
            (None, None, Mode::Drain) => (Some(20_000), None),
            (None, None, Mode::Steady) => (None, Some(Duration::from_secs(10))),
            (tasks, duration, _) => (tasks, duration),
        };
        // With a rate the number of tasks is known.
        let tasks = tasks.or_else(|| Some((self.rate? * duration?.as_secs_f64()).round().max(1.0) as u64));
        Plan {
            shape: Shape {
                models: self.names(),
                size_bytes: self.size as usize,
                priorities: self.priorities,
                priority: self.overtake.map(|_| 0),
                tenants: self.tenants,
            },
            tasks,
            duration,
            rate: self.rate,
            in_flight: match self.mode {
                Mode::Steady => self.in_flight,
                // None is answered before all are published.
                Mode::Drain => tasks.and_then(|tasks| u32::try_from(tasks).ok()).unwrap_or(u32::MAX),
            },
            batch: match self.publish {
                Publish::Single => 1,
                Publish::Batch => self.batch,
            },
            arrays: self.results == Results::Array,
            patience: Duration::from_secs_f64(self.patience),
            runs: self.overtake.is_some(),
        }
    }

    /// The tasks that overtake.
    fn urgent(&self, plan: &Plan) -> Option<Plan> {
        let shape = Shape { priority: Some(URGENT), ..plan.shape.clone() };
        let (rate, duration) = (Some(1.0 / self.overtake_every), None);
        Some(Plan { shape, tasks: Some(self.overtake?), duration, rate, batch: 1, arrays: false, ..plan.clone() })
    }

    /// What cannot be done together.
    fn check(&self, settings: &Settings) -> Result<(), Failure> {
        let refuse = |sentence: &str| Err(Failure::Usage(sentence.to_owned()));
        let embedded = is_embedded(&settings.broker.url);
        if embedded && !self.own {
            return refuse("an embedded broker has no other process in it: add --own, or set broker.url");
        }
        if self.own && embedded != is_embedded(&settings.store.url) {
            return refuse("with --own, broker.url and store.url are both embedded or both not");
        }
        if self.baseline.is_some() && embedded {
            return refuse("a baseline needs RabbitMQ: set broker.url");
        }
        if self.data.is_some() && !embedded {
            return refuse("--data is for an embedded broker");
        }
        if self.mode == Mode::Drain && !self.own {
            return refuse("drain mode needs --own: it starts the workers once all tasks wait");
        }
        if self.mode == Mode::Drain && self.duration.is_some() {
            return refuse("drain mode takes --tasks, not --duration");
        }
        if self.overtake.is_some() && self.mode != Mode::Drain {
            return refuse("--overtake needs --mode drain: something to overtake");
        }
        if self.restart_after.is_some() && (self.mode != Mode::Drain || embedded || self.baseline.is_some()) {
            return refuse("--restart-after needs --mode drain and schedulers of their own: RabbitMQ, and no baseline");
        }
        if matches!(self.baseline, Some(Baseline::Priority | Baseline::PriorityUnconfirmed)) && !self.own {
            return refuse("--baseline priority needs --own: both have the same slots");
        }
        let model = taskyard_shared::task::limits::MODEL_BYTES;
        if self.names().iter().any(|name| !is_model(name, model)) {
            return refuse("--model must be a model's name: [a-z0-9][a-z0-9._-]*, and not too long");
        }
        Ok(())
    }
}

fn is_model(name: &str, most: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= most
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
}

pub async fn run(args: BenchArgs, file: Option<&Path>) -> Result<(), Failure> {
    let loaded = config::load(file)?;
    let mut log = loaded.settings.log.clone();
    if loaded.origin("log.level") == Origin::Default {
        // Standard error is for what matters to the measurement.
        "warn".clone_into(&mut log.level);
    }
    telemetry::init(&log)?;
    args.check(&loaded.settings)?;
    let shutdown = Shutdown::on_signals()?;
    let bench = Bench { plan: args.plan(), args, settings: loaded.settings, stop: shutdown.drain.clone() };
    let mut report = Report::default();
    let ended = tokio::select! {
        ended = bench.turns(&mut report) => ended,
        () = shutdown.now.cancelled() => return Err(interrupted()),
    };
    report.print(bench.args.output)?;
    ended?;
    report.judge()
}

fn interrupted() -> Failure {
    Failure::Failed("interrupted".to_owned())
}

/// What takes turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum System {
    Taskyard,
    Relay,
    Priority,
}

struct Bench {
    args: BenchArgs,
    plan: Plan,
    settings: Settings,
    stop: CancellationToken,
}

impl Bench {
    async fn turns(&self, report: &mut Report) -> Result<(), Failure> {
        let others = match self.args.baseline {
            None => &[System::Taskyard][..],
            Some(Baseline::Relay) => &[System::Taskyard, System::Relay][..],
            Some(Baseline::Priority | Baseline::PriorityUnconfirmed) => &[System::Taskyard, System::Priority][..],
        };
        for number in 1..=self.args.turns {
            for system in others {
                let mut stage = self.stage(*system).await?;
                let turn = self.turn(number, *system, &mut stage).await;
                let ended = stage.end().await;
                report.add(turn?);
                ended?;
            }
        }
        Ok(())
    }

    async fn stage(&self, system: System) -> Result<Stage, Failure> {
        match system {
            System::Relay => Stage::relay(&self.settings, self.args.relay_in_flight, self.args.models).await,
            System::Priority => {
                let confirmed = self.args.baseline == Some(Baseline::Priority);
                Stage::priority(&self.settings, &self.args.made(&self.settings), confirmed).await
            }
            System::Taskyard if self.args.own => {
                Stage::own(&self.settings, &self.plan.shape.models, &self.args.made(&self.settings)).await
            }
            System::Taskyard => Stage::running(&self.settings, &self.args.metrics).await,
        }
    }

    async fn turn(&self, number: u32, system: System, stage: &mut Stage) -> Result<Turn, Failure> {
        let drain = self.args.mode == Mode::Drain;
        let plan = match system {
            System::Taskyard => self.plan.clone(),
            System::Relay | System::Priority => Plan { batch: 1, arrays: false, ..self.plan.clone() },
        };
        if !drain {
            stage.serve().await?;
            self.warm_up(stage, &plan).await?;
        }
        let before_sources = stage.sources();
        let before = roles::read(&before_sources, &*stage.target.broker).await?;
        let running = Running::start(stage.target.clone(), &plan, self.stop.child_token()).await?;
        if drain {
            tokio::select! {
                () = running.published() => {}
                () = self.stop.cancelled() => {}
            }
            stage.settled().await?;
            stage.serve().await?;
        }
        let urgent = match self.args.urgent(&plan) {
            None => None,
            Some(urgent) => {
                tokio::select! {
                    () = running.answered() => {}
                    () = self.stop.cancelled() => {}
                }
                Some(Running::start(stage.target.clone(), &urgent, self.stop.child_token()).await?)
            }
        };
        let restarted = match self.args.restart_after {
            None => None,
            Some(seconds) => {
                let served = async {
                    running.answered().await;
                    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                };
                tokio::select! {
                    () = served => {}
                    () = self.stop.cancelled() => return Err(interrupted()),
                }
                let killed = running.elapsed();
                stage.restart_schedulers().await?;
                Some((killed, running.elapsed()))
            }
        };
        let outcome = running.finish().await?;
        let restart = restarted.map(|(killed, listening)| Restart::of(&outcome.pulse, killed, listening));
        let overtaking = match urgent {
            None => None,
            Some(urgent) => Some(Overtaking::of(&outcome, urgent.finish().await?, self.slots())),
        };
        if self.stop.is_cancelled() {
            return Err(interrupted());
        }
        // Completions and acks may still be on their way.
        tokio::time::sleep(SETTLING).await;
        let sources = stage.sources();
        let after = roles::read(&sources, &*stage.target.broker).await?;
        let before = roles::by_source(&sources, &before_sources, before);
        let usage = roles::usage(&sources, &before, &after, outcome.answered);
        let name = match system {
            System::Taskyard => report::TASKYARD,
            System::Relay => report::RELAY,
            System::Priority => report::PRIORITY,
        };
        Ok(Turn { overtaking, restart, ..Turn::new(name, number, outcome, usage, drain) })
    }

    fn slots(&self) -> f64 {
        let BenchArgs { slots, workers, models, .. } = self.args;
        f64::from(slots) * f64::from(workers) * f64::from(models)
    }

    async fn warm_up(&self, stage: &Stage, plan: &Plan) -> Result<(), Failure> {
        let most = plan.tasks.unwrap_or(u64::MAX).max(u64::from(self.args.models));
        let tasks = self.args.warm_up.max(u64::from(self.args.models)).min(most);
        let plan = Plan { tasks: Some(tasks), duration: None, rate: None, patience: WARM_UP_PATIENCE, ..plan.clone() };
        let running = Running::start(stage.target.clone(), &plan, self.stop.child_token()).await?;
        let outcome = running.finish().await?;
        if self.stop.is_cancelled() {
            return Err(interrupted());
        }
        if let Some(refusal) = outcome.refusal {
            return Err(Failure::Failed(format!("the first tasks were not taken: {refusal}")));
        }
        if outcome.answered < tasks {
            return Err(Failure::Failed(format!(
                "of the first {tasks} tasks {} were answered: do a scheduler and a worker run?",
                outcome.answered
            )));
        }
        if outcome.states.keys().any(|state| *state != "succeeded") {
            return Err(Failure::Failed(format!("the first tasks ended so: {:?}", outcome.states)));
        }
        Ok(())
    }
}
