//! `taskyard simulate --live`: the same tasks on a yard of the run's own, as they are due, and what both came to.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use taskyard_scheduler::simulate::{Drawn, LiveEnd, LiveTask, PolicySpec, Scenario, Trace};
use taskyard_shared::broker::{
    Broker, Consumer, Destination, Message, Properties, PublishError, QueueSpec, Tag, Verdict,
};
use taskyard_shared::process::config;
use taskyard_shared::process::settings::{Settings, TenantSettings};
use taskyard_shared::process::shutdown::Shutdown;
use taskyard_shared::process::telemetry;
use taskyard_shared::{Kind, State, TaskResult, Timestamp};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::number;
use crate::commands::bench::stage::{Made, Stage};
use crate::failure::Failure;
use crate::output::{Format, Output, colour};

/// Calls of the broker at once, and messages in one.
const CALLS: usize = 64;
const CALL_MESSAGES: usize = 256;
const PREFETCH: u16 = 5_000;
/// How long the last result may take once all are published and what is waiting should be done.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tasks of each model before the run, which open connections and are not measured.
const FIRST: usize = 4;
/// A little after now, so that nothing is late at the start.
const BEGINS_IN: Duration = Duration::from_millis(200);

/// A figure of both runs.
const SHOWN: [(&str, &str); 9] = [
    ("in time", "attainment"),
    ("cost", "cost_ratio"),
    ("wait", "wait_mean_s"),
    ("p50", "wait_p50_s"),
    ("p99", "wait_p99_s"),
    ("p99.9", "wait_p999_s"),
    ("longest", "wait_longest_s"),
    ("slowdown", "slowdown_mean"),
    ("busy", "utilisation"),
];

/// One of both runs, or the one over the other.
#[derive(Serialize)]
struct LiveRow {
    policy: String,
    load: f64,
    seed: u32,
    /// `simulated`, `live`, or `ratio`: live over simulated.
    run: &'static str,
    figures: BTreeMap<&'static str, f64>,
}

/// Runs every policy, load and seed, one after the other.
pub(super) async fn run(
    scenario: &Scenario,
    trace: Option<&Trace>,
    policies: &[PolicySpec],
    file: Option<&Path>,
    format: Format,
) -> Result<(), Failure> {
    let loaded = config::load(file)?;
    let mut log = loaded.settings.log.clone();
    "warn".clone_into(&mut log.level);
    telemetry::init(&log)?;
    let shutdown = Shutdown::on_signals()?;
    let mut rows = Vec::new();
    for &load in &scenario.load {
        for seed in 1..=scenario.seeds {
            let drawn = Drawn::new(scenario, trace, seed, load);
            for policy in policies {
                let ends = live(&drawn, policy, &loaded.settings, &shutdown.drain).await?;
                let live = drawn.measured(&ends);
                let simulated = drawn.simulated(policy).map_err(Failure::Failed)?;
                let over = |(name, live): (&&'static str, &f64)| {
                    let simulated = simulated.get(name).filter(|simulated| **simulated > 0.0)?;
                    Some((*name, live / simulated))
                };
                let ratio = live.iter().filter_map(over).collect();
                let runs = [("simulated", simulated.clone()), ("live", live.clone()), ("ratio", ratio)];
                rows.extend(runs.map(|(run, figures)| LiveRow {
                    policy: policy.to_string(),
                    load,
                    seed,
                    run,
                    figures,
                }));
            }
        }
    }
    let mut out = std::io::stdout().lock();
    let mut output = Output { format, colour: colour(), out: &mut out };
    let used: Vec<_> = SHOWN.iter().filter(|(_, name)| rows.iter().any(|row| row.figures.contains_key(name))).collect();
    let headers: Vec<&str> =
        ["policy", "load", "seed", "run"].into_iter().chain(used.iter().map(|(head, _)| *head)).collect();
    let cells = |row: &LiveRow| {
        let mut cells = vec![row.policy.clone(), row.load.to_string(), row.seed.to_string(), row.run.to_owned()];
        cells.extend(used.iter().map(|(_, name)| row.figures.get(name).map_or("-".to_owned(), |value| number(*value))));
        cells
    };
    Ok(output.rows(&headers, &rows, cells)?)
}

/// What became of each task on a yard that is started for them.
async fn live(
    drawn: &Drawn<'_>,
    policy: &PolicySpec,
    settings: &Settings,
    stop: &CancellationToken,
) -> Result<Vec<LiveEnd>, Failure> {
    let mut settings = settings.clone();
    settings.scheduler.policy.clone_from(&policy.name);
    settings.scheduler.ageing_s = policy.ageing_s.unwrap_or(settings.scheduler.ageing_s);
    for (name, weight) in drawn.tenants() {
        settings.tenants.insert(name.to_owned(), TenantSettings { weight, ..TenantSettings::default() });
    }
    let models: Vec<String> = drawn.models().map(|(name, _)| name.to_owned()).collect();
    let slots = drawn.models().map(|(_, slots)| slots).max().unwrap_or(1);
    if drawn.models().any(|(_, other)| other != slots) {
        return Err(Failure::Usage("--live needs as many slots for each model".to_owned()));
    }
    let slots = u32::try_from(slots).unwrap_or(u32::MAX);
    let made = Made { schedulers: 1, workers: 1, slots, max_batch: 1, service_ms: 1.0, data: None };
    let mut stage = Stage::own(&settings, &models, &made).await?;
    let ended = async {
        stage.serve().await?;
        let mut player = Player::new(&stage).await?;
        player.warm_up(&models, stop).await?;
        player.play(drawn, stop).await
    }
    .await;
    let erased = stage.end().await;
    let ends = ended?;
    erased.map(|()| ends)
}

/// Publishes tasks and takes their results.
struct Player {
    broker: Arc<dyn Broker>,
    to: Destination,
    replies: String,
    results: Box<dyn Consumer>,
}

impl Player {
    async fn new(stage: &Stage) -> Result<Self, Failure> {
        let target = &stage.target;
        let replies = target.topology.replies(&format!("simulate-{}", Uuid::new_v4().simple()));
        target.broker.declare(&[QueueSpec::exclusive(&replies)]).await?;
        let results = target.broker.consume(&replies, PREFETCH).await?;
        Ok(Self { broker: target.broker.clone(), to: target.to.clone(), replies, results })
    }

    fn message(&self, id: Uuid, task: &LiveTask<'_>, began: Timestamp) -> Message {
        let mut body = json!({
            "id": id,
            "model": task.model,
            "tenant": task.tenant,
            "kind": task.kind,
            "priority": task.priority,
            "input": {"service_ms": task.service_us as f64 / 1e3},
        });
        if let Some(fields) = body.as_object_mut() {
            fields.extend(task.cost.map(|cost| ("cost".to_owned(), json!(cost))));
            let deadline =
                task.deadline_us.map(|at_us| Timestamp::from_micros(began.as_micros().saturating_add_unsigned(at_us)));
            fields.extend(deadline.map(|at| ("deadline".to_owned(), json!(at))));
        }
        let properties = Properties {
            content_type: Some("application/json".into()),
            reply_to: Some(self.replies.clone()),
            ..Properties::default()
        };
        Message { to: self.to.clone(), body: body.to_string().into(), properties, persistent: true, mandatory: true }
    }

    /// Has every model run something.
    async fn warm_up(&mut self, models: &[String], stop: &CancellationToken) -> Result<(), Failure> {
        let began = Timestamp::now();
        let tasks = models.iter().flat_map(|model| std::iter::repeat_n(model, FIRST)).map(|model| LiveTask {
            arrival_us: 0,
            service_us: 1_000,
            deadline_us: None,
            model,
            tenant: "default",
            kind: Kind::Prediction,
            priority: 4,
            cost: None,
        });
        let messages: Vec<Message> = tasks.map(|task| self.message(Uuid::new_v4(), &task, began)).collect();
        let mut left = messages.len();
        for answer in self.broker.publish(messages).await {
            answer.map_err(not_taken)?;
        }
        while left > 0 {
            let (results, receipts) = self.next(PATIENCE, stop).await?;
            left = left.saturating_sub(results.len());
            self.results.acker().settle(receipts, Verdict::Ack).await;
        }
        Ok(())
    }

    async fn next(
        &mut self,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<(Vec<TaskResult>, Vec<Tag>), Failure> {
        let batch = tokio::select! {
            batch = self.results.next_batch(CALL_MESSAGES) => batch?,
            () = tokio::time::sleep(patience) => {
                return Err(Failure::Failed(format!("no result came for {} s", patience.as_secs())));
            }
            () = stop.cancelled() => return Err(Failure::Failed("interrupted".to_owned())),
        };
        let mut results = Vec::with_capacity(batch.len());
        for delivery in &batch {
            let result = serde_json::from_slice(&delivery.body);
            results.push(result.map_err(|failure| Failure::Failed(format!("a result cannot be read: {failure}")))?);
        }
        Ok((results, batch.iter().map(|delivery| delivery.tag).collect()))
    }

    /// Publishes every task when it is due, and answers what became of each.
    async fn play(&mut self, drawn: &Drawn<'_>, stop: &CancellationToken) -> Result<Vec<LiveEnd>, Failure> {
        let began = Instant::now() + BEGINS_IN;
        let began_at = Timestamp::now().plus_ms(BEGINS_IN.as_millis() as u64);
        let tasks: Vec<LiveTask<'_>> = drawn.tasks().collect();
        let ids: Vec<Uuid> = tasks.iter().map(|_| Uuid::new_v4()).collect();
        let numbers: HashMap<Uuid, usize> = ids.iter().copied().zip(0..).collect();
        let mut ends: Vec<Option<LiveEnd>> = vec![None; tasks.len()];
        let (mut next, mut ended) = (0, 0);
        let mut publishing = JoinSet::new();
        while ended < tasks.len() {
            let due = |task: &LiveTask<'_>| began + Duration::from_micros(task.arrival_us);
            let next_at = tasks.get(next).map(due).filter(|_| publishing.len() < CALLS);
            let sleeps = async {
                match next_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleeps => {
                    let now = Instant::now();
                    let count = tasks.iter().skip(next).take(CALL_MESSAGES).take_while(|task| due(task) <= now).count();
                    let chosen = ids.iter().zip(&tasks).skip(next).take(count);
                    let messages: Vec<Message> = chosen.map(|(id, task)| self.message(*id, task, began_at)).collect();
                    next += count;
                    let broker = self.broker.clone();
                    publishing.spawn(async move { broker.publish(messages).await });
                }
                Some(answers) = publishing.join_next(), if !publishing.is_empty() => {
                    let broke_off = |failure| Failure::Internal(format!("publishing broke off: {failure}"));
                    for answer in answers.map_err(broke_off)? {
                        answer.map_err(not_taken)?;
                    }
                }
                next = self.next(PATIENCE, stop) => {
                    let (results, receipts) = next?;
                    for result in results {
                        let Some(end) = numbers.get(&result.id.0).and_then(|number| ends.get_mut(*number)) else { continue };
                        if end.is_none() {
                            *end = Some(fate(&result, began_at)?);
                            ended += 1;
                        }
                    }
                    self.results.acker().settle(receipts, Verdict::Ack).await;
                }
            }
        }
        Ok(ends.into_iter().flatten().collect())
    }
}

fn not_taken(failure: PublishError) -> Failure {
    Failure::Failed(format!("a task was not taken: {failure}"))
}

fn fate(result: &TaskResult, began: Timestamp) -> Result<LiveEnd, Failure> {
    let since_us = |at: Option<Timestamp>| {
        u64::try_from(at.unwrap_or(began).as_micros().saturating_sub(began.as_micros())).unwrap_or(0)
    };
    let ended_us = since_us(result.timings.finished);
    let code = result.error.as_ref().map_or("", |error| error.code.as_str());
    match (result.state, code) {
        (State::Succeeded, _) => Ok(LiveEnd::Ran { started_us: since_us(result.timings.started), ended_us }),
        (State::Expired, _) => Ok(LiveEnd::Expired { ended_us }),
        (State::Rejected, "deadline_unreachable") => Ok(LiveEnd::Refused),
        (State::Rejected, "deadline_shed") => Ok(LiveEnd::Shed { ended_us }),
        (state, code) => Err(Failure::Failed(format!("a task ended as {} {code}", state.as_str()))),
    }
}
