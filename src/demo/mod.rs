//! `taskyard demo`: the production code in one process, on real models and real input, with a worker killed half way.
//!
//! The same tasks run twice, under first come, first served and under the chosen policy. It succeeds when every task came
//! to exactly one result and every known answer is right, and when the workflow after them serves a model that is good enough.

mod inputs;
mod pipeline;
mod report;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use taskyard_producer::publish::{Publisher, encode};
use taskyard_shared::broker::{Broker, QueueSpec, Verdict};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{ModelSettings, Settings};
use taskyard_shared::{Carried, Envelope, Reply, State, Target, Task, TaskId, TaskResult, Timestamp, Topology};
use taskyard_worker::Handler;

use crate::failure::Failure;
use crate::output::tell;
use crate::yard::{Served, Yard};
use inputs::Item;
pub use inputs::find_root;
use report::{Run, Sample};

/// Results that have not come after so long are counted as lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Short, since the demonstration kills a worker and somebody watches.
const LEASE_MS: u64 = 1_000;

#[derive(Args)]
pub struct DemoArgs {
    /// The policy to be shown beside first come, first served.
    #[arg(long, default_value = "cmu", value_parser = ["cmu", "fair", "wspt", "edf", "strict", "fifo"])]
    policy: String,
}

/// A model of the demonstration, kept loaded for both runs.
struct Loaded {
    spec: ModelSpec,
    handler: Arc<dyn Handler>,
}

pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let root = inputs::find_root()?;
    let items = inputs::load(&root)?;
    let started = Instant::now();
    tell!("Taskyard demo: {} tasks on real models, embedded broker and store, nothing to install.", items.len());
    let models = load_models(&root.join("models/models.toml")).await?;
    tell!(
        "Loaded {} in {:.1} s.",
        models.iter().map(|model| model.spec.full_name()).collect::<Vec<_>>().join(", "),
        started.elapsed().as_secs_f64()
    );
    let first_come = serve(&items, &models, "fifo", None).await?;
    let chosen = serve(&items, &models, &args.policy, Some("worker-1")).await?;
    report::print(&items, &first_come, &chosen);
    report::judge(&[&first_come, &chosen])?;
    drop(models);
    pipeline::run(&root).await?;
    tell!("Done in {:.1} s.", started.elapsed().as_secs_f64());
    Ok(())
}

async fn load_models(file: &Path) -> Result<Vec<Loaded>, Failure> {
    #[derive(serde::Deserialize)]
    struct File {
        models: BTreeMap<String, ModelSettings>,
    }
    let text =
        std::fs::read_to_string(file).map_err(|failure| Failure::NotFound(format!("{}: {failure}", file.display())))?;
    let File { models } =
        toml::from_str(&text).map_err(|failure| Failure::Usage(format!("{}: {failure}", file.display())))?;
    let cache = taskyard_worker::handlers::ModelCache::default();
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut loaded = Vec::new();
    for (name, settings) in models.iter().filter(|(_, settings)| settings.handler == "onnx") {
        let handler = taskyard_worker::handlers::build(name, settings, folder, &cache)
            .await
            .map_err(|failure| Failure::Usage(failure.to_string()))?;
        loaded.push(Loaded { spec: settings.spec(name), handler });
    }
    Ok(loaded)
}

/// Runs every item under a policy with two workers. When one is to be killed, that happens once half of the results are
/// in, and another takes its place.
async fn serve(items: &[Item], models: &[Loaded], policy: &str, kill: Option<&str>) -> Result<Run, Failure> {
    let mut settings = Settings::default();
    settings.scheduler.policy = policy.to_owned();
    settings.worker.lease_ms = LEASE_MS;
    settings.worker.report_every_ms = 100;
    settings.scheduler.report_every_ms = 100;
    let served = models
        .iter()
        .map(|model| Served::loaded(ModelSpec { slots: 1, ..model.spec.clone() }, model.handler.clone()))
        .collect();
    let yard = Yard::start(settings, served, None, Registry::new()?).await?;
    let replies = yard.topology.replies("demo");
    yard.broker.declare(&[QueueSpec::exclusive(&replies)]).await?;
    yard.broker.declare(&taskyard_shared::messages::work_queues(&yard.topology)).await?;
    let ids = publish(yard.broker.clone(), &yard.topology, items, &replies).await?;
    // Only now, so that all of them wait and the policy has a choice.
    let mut victim = None;
    let mut others = Vec::new();
    for name in ["worker-1", "worker-2"] {
        let worker = yard.worker(name)?;
        if Some(name) == kill { victim = Some(worker) } else { others.push(worker) }
    }
    let bar = progress(policy, items.len());
    let mut run = Run::new(policy, items.len());
    let mut consumer = yard.broker.consume(&replies, 256).await?;
    let acker = consumer.acker();
    let mut last = Instant::now();
    while run.answered() < items.len() {
        let batch = tokio::select! {
            batch = consumer.next_batch(256) => batch?,
            () = tokio::time::sleep_until((last + PATIENCE).into()) => break,
        };
        last = Instant::now();
        for delivery in &batch {
            let result: TaskResult = serde_json::from_slice(&delivery.body)
                .map_err(|failure| Failure::Internal(format!("a result cannot be read: {failure}")))?;
            if let Some(&at) = ids.get(&result.id) {
                run.take(at, sample(&items[at], result));
            }
        }
        acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        bar.set_position(run.answered() as u64);
        if run.answered() * 2 >= items.len()
            && let Some(victim) = victim.take()
        {
            bar.suspend(|| {
                tell!("Half way: {} is killed with tasks in hand; worker-3 takes its place.", victim.id);
            });
            run.killed = Some(victim.id.clone());
            victim.kill().await;
            others.push(yard.worker("worker-3")?);
        }
    }
    bar.finish_and_clear();
    for worker in others {
        worker.stop().await;
    }
    yard.stop().await?;
    Ok(run)
}

async fn publish(
    broker: Arc<dyn Broker>,
    topology: &Topology,
    items: &[Item],
    replies: &str,
) -> Result<BTreeMap<TaskId, usize>, Failure> {
    let publisher = Publisher::new(broker, topology);
    let mut ids = BTreeMap::new();
    let mut messages = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let input =
            serde_json::value::to_raw_value(&item.input).map_err(|failure| Failure::Internal(failure.to_string()))?;
        let task = Task {
            kind: item.kind,
            priority: Some(item.priority),
            tenant: Some(item.tenant.to_owned()),
            ..Task::new(Target::Model(item.model.into()), input)
        };
        let envelope = Envelope::new(task, &Carried::default(), Timestamp::now())
            .map_err(|failure| Failure::Internal(failure.to_string()))?;
        ids.insert(envelope.id, at);
        let body = encode(&envelope).map_err(|failure| Failure::Internal(failure.to_string()))?;
        let reply = Reply { to: replies.into(), correlation_id: Some(at.to_string().into()), array: false };
        messages.push(publisher.single(&envelope, body.into(), Some(&reply)));
    }
    for answer in publisher.publish(messages, Duration::from_secs(10)).await {
        answer.map_err(|failure| Failure::Failed(format!("a task was not accepted: {failure}")))?;
    }
    Ok(ids)
}

fn sample(item: &Item, result: TaskResult) -> Sample {
    #[derive(serde::Deserialize)]
    struct Output {
        label: String,
        score: f64,
    }
    let output = result.output.as_ref().and_then(|output| serde_json::from_str::<Output>(output.get()).ok());
    let turnaround_seconds = match (result.timings.accepted, result.timings.finished) {
        (Some(accepted), Some(finished)) => finished.ms_since(accepted) / 1e3,
        _ => 0.0,
    };
    Sample {
        right: result.state == State::Succeeded && output.as_ref().is_some_and(|output| output.label == item.expected),
        answer: output.as_ref().map(|output| (output.label.clone(), output.score)),
        state: result.state,
        error: result.error,
        worker: result.worker.unwrap_or_default(),
        attempt: result.attempt,
        model: result.model.unwrap_or_default(),
        waited_seconds: result.timings.waited_ms.unwrap_or(0.0) / 1e3,
        ran_seconds: result.timings.ran_ms.unwrap_or(0.0) / 1e3,
        turnaround_seconds,
    }
}

fn progress(policy: &str, tasks: usize) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(tasks as u64), target);
    if let Ok(style) = ProgressStyle::with_template("{msg:>6} [{bar:40}] {pos}/{len} results  {per_sec}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(policy.to_owned());
    bar
}
