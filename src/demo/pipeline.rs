//! The second half of the demonstration: a workflow that cleans rows, trains three candidates, serves the best of them and rolls it
//! out, while the worker that trains is killed; and then questions that the new version answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use taskyard_shared::artifacts::{ARTIFACT_BYTES, Artifacts, Reference};
use taskyard_shared::broker::{Destination, Message, Properties, QueueSpec, Verdict};
use taskyard_shared::process::config;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::workflow::{WorkflowId, WorkflowRecord, WorkflowState};
use taskyard_shared::{State, TaskId, TaskResult};

use crate::failure::Failure;
use crate::output::tell;
use crate::roles::load_models;
use crate::yard::{Yard, YardWorker};

/// The models that the workflow needs, of those that come with the project.
const MODELS: [&str; 3] = ["intents", "learn-text", "tables"];
/// How much large weights cost each candidate.
const CANDIDATES: [f64; 3] = [30.0, 1.0, 0.03];
/// What the new model is called, and how well it must do on rows that it has not seen.
const MODEL: &str = "card-questions";
const VERSION: &str = "card-questions@1";
const LEAST_ACCURACY: f64 = 0.9;
/// For all of it, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(300);
const LEASE_MS: u64 = 1_000;

#[derive(Deserialize)]
struct Trained {
    metrics: Metrics,
    iterations: u64,
    resumed_from: Option<u64>,
    l2: f64,
}

#[derive(Deserialize)]
struct Metrics {
    accuracy: f64,
    macro_f1: f64,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    label: String,
}

pub async fn run(root: &Path) -> Result<(), Failure> {
    let started = Instant::now();
    let csv = std::fs::read_to_string(root.join("demo/card-questions.csv"))
        .map_err(|failure| Failure::NotFound(format!("demo/card-questions.csv: {failure}")))?;
    let rows = csv.lines().count().saturating_sub(1);
    tell!(
        "\nThen a workflow: {rows} questions about bank cards are cleaned, three candidates trained, the best served."
    );

    let loaded = config::load(Some(&root.join("models/models.toml")))?;
    let artifacts = Artifacts::in_memory();
    let only = MODELS.map(str::to_owned);
    let (models, foundry) = load_models(&loaded, &only, Some(artifacts.clone())).await?;
    let mut settings = loaded.settings;
    settings.worker.lease_ms = LEASE_MS;
    settings.worker.report_every_ms = 100;
    settings.scheduler.report_every_ms = 100;
    let yard = Yard::start(settings, models, None, Registry::new()?).await?.foundry(foundry);
    let replies = yard.topology.replies("demo-workflow");
    yard.broker.declare(&[QueueSpec::exclusive(&replies)]).await?;
    yard.broker.declare(&taskyard_shared::messages::work_queues(&yard.topology)).await?;

    let id = WorkflowId(uuid::Uuid::now_v7());
    let ended = workflow(&yard, &replies, id, &csv).await;
    let (record, others) = match ended {
        Ok(ended) => ended,
        Err(failure) => {
            yard.stop().await?;
            return Err(failure);
        }
    };
    let told = report(&yard, id, &record).await;
    let served = match told {
        Ok(()) => predict(&yard, &replies, id, &artifacts).await,
        Err(failure) => Err(failure),
    };
    for worker in others {
        worker.stop().await;
    }
    yard.stop().await?;
    served?;
    tell!("The workflow and its {MODEL} took {:.1} s.", started.elapsed().as_secs_f64());
    Ok(())
}

fn body(csv: &str) -> Value {
    json!({
        "priority": 6,
        "on_failure": "fail_fast",
        "tasks": [
            {"name": "split", "kind": "data_processing", "model": "tables",
             "input": {"do": "split", "from": {"csv": csv}, "part_rows": 300}},
            {"name": "clean", "kind": "data_processing", "model": "tables",
             "for_each": {"$from": "split", "path": "/output/parts"},
             "input": {"do": "clean", "from": {"$item": ""}, "rename": {"intent": "label"},
                       "required": ["text", "label"], "unique": "text"}},
            {"name": "join", "kind": "data_processing", "model": "tables",
             "input": {"do": "join", "parts": {"$from": "clean"}, "by": "split", "unique": "text", "apart": "test"}},
            {"name": "train", "kind": "training", "model": "learn-text", "for_each": CANDIDATES,
             "input": {"name": MODEL, "l2": {"$item": ""},
                       "rows": {"$from": "join", "path": "/output/tables/train"},
                       "test_rows": {"$from": "join", "path": "/output/tables/test"}}},
            {"name": "evaluate", "kind": "data_processing", "model": "tables",
             "input": {"do": "top", "of": {"$from": "train"}, "by": "/metrics/accuracy"}},
            {"name": "register", "kind": "deployment", "model": "intents",
             "input": {"action": "register", "name": VERSION, "head": format!("{MODEL}.head.json"),
                       "files": {"$from": "evaluate", "path": "/output/best/files"}}},
            {"name": "roll-out", "kind": "deployment", "model": VERSION, "depends_on": ["register"],
             "input": {"action": "roll_out"}},
        ],
    })
}

/// Runs it, and kills the worker that trains first.
async fn workflow(
    yard: &Yard,
    replies: &str,
    id: WorkflowId,
    csv: &str,
) -> Result<(WorkflowRecord, Vec<YardWorker>), Failure> {
    let victim = yard.worker("trainer-1")?;
    let properties = Properties {
        kind: Some("workflow".into()),
        message_id: Some(id.0.to_string()),
        reply_to: Some(replies.to_owned()),
        correlation_id: Some(id.0.to_string()),
        content_type: Some("application/json".into()),
        ..Properties::default()
    };
    let to = Destination::Exchange { name: yard.topology.tasks_exchange(), key: "workflow".into() };
    let message = Message { to, body: body(csv).to_string().into(), properties, persistent: true, mandatory: true };
    for accepted in yard.broker.publish(vec![message]).await {
        accepted.map_err(|failure| Failure::Failed(format!("it was not accepted: {failure}")))?;
    }
    let mut consumer = yard.broker.consume(replies, 1).await?;
    let first = id.task("train", Some(0));
    let mut victim = Some(victim);
    let mut others = Vec::new();
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            batch = consumer.next_batch(1) => {
                let batch = batch?;
                let Some(delivery) = batch.first() else { continue };
                let record: WorkflowRecord = serde_json::from_slice(&delivery.body)
                    .map_err(|failure| Failure::Internal(format!("the workflow's end cannot be read: {failure}")))?;
                consumer.acker().settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
                others.extend(victim);
                return Ok((record, others));
            }
            _ = looks.tick(), if victim.is_some() => {
                let trains = yard.store.get(vec![first]).await?.pop().flatten().is_some_and(|task| task.state == State::Running);
                if trains && let Some(worker) = victim.take() {
                    tell!("  {} is killed while it trains; trainer-2 takes its place.", worker.id);
                    worker.kill().await;
                    others.push(yard.worker("trainer-2")?);
                }
            }
            () = tokio::time::sleep_until(until) => {
                return Err(Failure::Failed(format!("the workflow has not ended after {} s", PATIENCE.as_secs())));
            }
        }
    }
}

async fn report(yard: &Yard, id: WorkflowId, record: &WorkflowRecord) -> Result<(), Failure> {
    for step in &record.steps {
        let items = step.items.map_or(String::new(), |items| format!(" ({} of {})", items.succeeded, items.total));
        tell!("  {:<10} {}{items}", step.name, step.state.as_str());
    }
    if record.state != WorkflowState::Succeeded {
        let why = record.error.as_ref().map_or(String::new(), |error| format!(": {} ({})", error.message, error.code));
        return Err(Failure::Failed(format!("the workflow is {}{why}", record.state.as_str())));
    }
    let candidates = (0..CANDIDATES.len() as u32).map(|item| id.task("train", Some(item))).collect();
    for task in yard.store.get(candidates).await?.into_iter().flatten() {
        let trained: Trained = read(&task)?;
        let resumed = match trained.resumed_from {
            Some(iterations) => format!(", went on from iteration {iterations}"),
            None => String::new(),
        };
        tell!(
            "  candidate l2 = {:<5} accuracy {:.3}, macro-F1 {:.3}, {} iterations, attempt {} on {}{resumed}",
            trained.l2,
            trained.metrics.accuracy,
            trained.metrics.macro_f1,
            trained.iterations,
            task.attempt,
            task.worker.as_deref().unwrap_or("nobody"),
        );
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(task: &TaskResult) -> Result<T, Failure> {
    let output = task.output.as_ref().map_or("null", |output| output.get());
    serde_json::from_str(output).map_err(|failure| Failure::Internal(format!("an output cannot be read: {failure}")))
}

/// Asks the new model what it has not learnt from.
async fn predict(yard: &Yard, replies: &str, id: WorkflowId, artifacts: &Artifacts) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Joined {
        tables: BTreeMap<String, Reference>,
    }
    #[derive(Deserialize)]
    struct Answer {
        label: String,
    }
    let joined = yard.store.get(vec![id.task("join", None)]).await?.pop().flatten();
    let joined: Joined = joined.as_ref().map(read).transpose()?.ok_or_else(|| Failure::Internal("no tables".into()))?;
    let table = joined.tables.get("test").ok_or_else(|| Failure::Internal("no rows to test on".into()))?;
    let content =
        artifacts.get(table.to, ARTIFACT_BYTES).await.map_err(|failure| Failure::Failed(failure.to_string()))?;
    let rows = serde_json::Deserializer::from_slice(&content).into_iter::<Row>();
    let rows: Vec<Row> = rows.collect::<Result<_, _>>().map_err(|failure| Failure::Internal(failure.to_string()))?;
    let mut labels: BTreeMap<TaskId, &Row> = BTreeMap::new();
    let mut messages = Vec::new();
    for row in &rows {
        let task = TaskId(uuid::Uuid::now_v7());
        labels.insert(task, row);
        let body = json!({"id": task, "model": MODEL, "input": {"text": row.text}});
        let properties = Properties { reply_to: Some(replies.to_owned()), ..Properties::default() };
        let to = Destination::Exchange { name: yard.topology.tasks_exchange(), key: MODEL.into() };
        messages.push(Message { to, body: body.to_string().into(), properties, persistent: true, mandatory: true });
    }
    for accepted in yard.broker.publish(messages).await {
        accepted.map_err(|failure| Failure::Failed(format!("it was not accepted: {failure}")))?;
    }
    let mut consumer = yard.broker.consume(replies, 256).await?;
    let acker = consumer.acker();
    let mut answers: BTreeMap<TaskId, (bool, String)> = BTreeMap::new();
    while answers.len() < rows.len() {
        let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(256)).await;
        let batch =
            batch.map_err(|_| Failure::Failed(format!("{} of {} answers came", answers.len(), rows.len())))??;
        for delivery in &batch {
            let result: TaskResult = serde_json::from_slice(&delivery.body)
                .map_err(|failure| Failure::Internal(format!("a result cannot be read: {failure}")))?;
            if let Some(row) = labels.get(&result.id) {
                let is_right = result.state == State::Succeeded && read::<Answer>(&result)?.label == row.label;
                answers.insert(result.id, (is_right, result.model.unwrap_or_default()));
            }
        }
        acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
    }
    let right = answers.values().filter(|(is_right, _)| *is_right).count();
    let accuracy = right as f64 / rows.len().max(1) as f64;
    let mut served: BTreeMap<&str, usize> = BTreeMap::new();
    answers.values().for_each(|(_, model)| *served.entry(model).or_default() += 1);
    let served: Vec<String> = served.iter().map(|(model, tasks)| format!("{tasks} by {model}")).collect();
    tell!(
        "  {} questions that it had not seen: {right} right ({accuracy:.3}); served {}.",
        rows.len(),
        served.join(", ")
    );
    match accuracy >= LEAST_ACCURACY && answers.values().all(|(_, model)| model == VERSION) {
        true => Ok(()),
        false => Err(Failure::Failed(format!("at least {LEAST_ACCURACY} should be right, all of it by {VERSION}"))),
    }
}
