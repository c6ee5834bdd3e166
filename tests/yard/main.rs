//! Scheduler and workers on the embedded broker and store: what a task goes through, with models written for the test.

mod alone;
mod bad_input;
mod choice;
mod control;
mod dead;
mod deployment;
mod events;
mod holding;
mod long;
mod meanwhile;
mod mirror;
mod mirror_lost;
mod order;
mod overload;
mod paging;
mod payloads;
mod properties;
mod quote;
mod registry;
mod retries;
mod schedule;
mod search;
mod shadow;
mod shards;
mod sweep;
mod untold;
mod usage;
mod webhooks;
mod workflow;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use taskyard_scheduler::Scheduler;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::broker::{Broker, Destination, Message, Properties, QueueSpec, Verdict};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::messages;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::Settings;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{Retention, Store};
use taskyard_shared::{State, TaskError, TaskId, TaskResult, Topology};
use taskyard_worker::{Answer, Handler, Job, Worker};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

/// Does what the input says, and remembers what it was given.
#[derive(Default)]
struct Obedient {
    batches: Mutex<Vec<usize>>,
    runs: AtomicUsize,
    /// `{"do": "fail until mended"}` fails, for good, until this is so.
    mended: AtomicBool,
    /// `{"do": "wait"}` goes on when a permit is added.
    gate: Option<Arc<Semaphore>>,
}

#[async_trait]
impl Handler for Obedient {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        self.batches.lock().unwrap().push(batch.len());
        self.runs.fetch_add(batch.len(), Ordering::SeqCst);
        let mut answers = Vec::new();
        for job in batch {
            let input: serde_json::Value = serde_json::from_str(job.input.get()).unwrap();
            let failed = |retryable| Err(TaskError { code: "own_code".into(), message: "as told".into(), retryable });
            answers.push(match input["do"].as_str() {
                Some("panic") => panic!("as told"),
                Some("hang") => std::future::pending().await,
                Some("wait") => {
                    self.gate.as_ref().unwrap().acquire().await.unwrap().forget();
                    Ok(job.input)
                }
                Some("fail") => failed(false),
                Some("fail until mended") if !self.mended.load(Ordering::SeqCst) => failed(false),
                Some("fail each time") => failed(true),
                Some("fail once") if job.attempt == 1 => failed(true),
                Some("flood") => Ok(serde_json::value::to_raw_value(&"x".repeat(5_000_000)).unwrap()),
                _ => Ok(job.input),
            });
        }
        answers
    }
}

fn spec(name: &str) -> ModelSpec {
    ModelSpec {
        name: name.into(),
        version: "1".into(),
        handler: "obedient".into(),
        capabilities: vec!["obeying".into()],
        slots: 1,
        timeout_ms: 60_000,
        max_attempts: 2,
        max_batch: 1,
        max_delay_ms: 0,
        memory_mb: 0,
        gpus: 0,
        expected_ms: Some(1.0),
        quality: None,
    }
}

struct Yard {
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    topology: Topology,
    settings: Settings,
    registry: Registry,
    replies: String,
    told: HashMap<Uuid, Vec<TaskResult>>,
    /// Messages that results came in.
    messages: usize,
}

impl Yard {
    async fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        settings.worker.retry_first_ms = 5;
        settings.worker.lease_ms = 300;
        settings.worker.report_every_ms = 20;
        settings.scheduler.report_every_ms = 20;
        change(&mut settings);
        let broker: Arc<dyn Broker> = Arc::new(EmbeddedBroker::in_memory());
        let topology = Topology::new("yard");
        broker.declare(&messages::work_queues(&topology)).await.unwrap();
        let replies = topology.replies("test");
        broker.declare(&[QueueSpec::exclusive(&replies)]).await.unwrap();
        Self {
            broker,
            store: Arc::new(EmbeddedStore::in_memory(Retention::default())),
            topology,
            settings,
            registry: Registry::new().unwrap(),
            replies,
            told: HashMap::new(),
            messages: 0,
        }
    }

    fn scheduler(&self, models: &[ModelSpec]) -> CancellationToken {
        let stop = CancellationToken::new();
        tokio::spawn(self.new_scheduler(models, &self.registry).run(stop.clone()));
        stop
    }

    fn new_scheduler(&self, models: &[ModelSpec], registry: &Registry) -> Scheduler {
        let (broker, store, topology) = (self.broker.clone(), self.store.clone(), self.topology.clone());
        Scheduler::new(broker, store, topology, self.settings.scheduler.clone(), models.to_vec(), registry).unwrap()
    }

    /// Tokens to stop and to kill it.
    fn worker(&self, id: &str, models: Vec<(ModelSpec, Arc<Obedient>)>) -> (CancellationToken, CancellationToken) {
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let mut settings = self.settings.worker.clone();
        settings.id = id.to_owned();
        let (broker, store) = (self.broker.clone(), self.store.clone());
        let mut worker = Worker::new(broker, store, self.topology.clone(), settings, &self.registry).unwrap();
        for (spec, handler) in models {
            worker = worker.model(spec, handler);
        }
        tokio::spawn(worker.run(stop.clone(), kill.clone()));
        (stop, kill)
    }

    async fn publish(&self, bodies: Vec<serde_json::Value>) -> Vec<Uuid> {
        self.publish_with(bodies, |_| {}).await
    }

    async fn publish_with(&self, bodies: Vec<serde_json::Value>, change: impl Fn(&mut Properties)) -> Vec<Uuid> {
        let ids: Vec<Uuid> = bodies.iter().map(|_| Uuid::new_v4()).collect();
        let message = |(id, body): (&Uuid, serde_json::Value)| {
            let mut properties = Properties {
                message_id: Some(id.to_string()),
                correlation_id: Some(id.to_string()),
                reply_to: Some(self.replies.clone()),
                ..Properties::default()
            };
            change(&mut properties);
            Message {
                to: Destination::Exchange { name: self.topology.tasks_exchange(), key: "any".into() },
                body: body.to_string().into(),
                properties,
                persistent: true,
                mandatory: true,
            }
        };
        for answer in self.broker.publish(ids.iter().zip(bodies).map(message).collect()).await {
            answer.unwrap();
        }
        ids
    }

    /// Collects until each of these was told of.
    async fn collect(&mut self, ids: &[Uuid]) {
        let mut consumer = self.broker.consume(&self.replies, 500).await.unwrap();
        let acker = consumer.acker();
        while ids.iter().any(|id| !self.told.contains_key(id)) {
            let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(100)).await.expect("results come").unwrap();
            for delivery in &batch {
                self.messages += 1;
                let results: Vec<TaskResult> = match delivery.body.first() {
                    Some(b'[') => serde_json::from_slice(&delivery.body).unwrap(),
                    _ => vec![serde_json::from_slice(&delivery.body).unwrap()],
                };
                for result in results {
                    self.told.entry(result.id.0).or_default().push(result);
                }
            }
            acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
    }

    fn result(&self, id: &Uuid) -> &TaskResult {
        let told = &self.told[id];
        assert_eq!(told.len(), 1, "{id} was told {} times", told.len());
        &told[0]
    }

    fn code(&self, id: &Uuid) -> &str {
        self.result(id).error.as_ref().map_or("", |error| &error.code)
    }

    async fn dead(&self, count: usize) -> Vec<String> {
        let mut consumer = self.broker.consume(&self.topology.dead(), 100).await.unwrap();
        let mut reasons = Vec::new();
        while reasons.len() < count {
            let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(100)).await.expect("dead letters").unwrap();
            reasons.extend(batch.iter().map(|dead| dead.properties.headers[messages::REASON_HEADER].clone()));
        }
        reasons.sort_unstable();
        reasons
    }
}

/// Polls until it is so.
async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_does_to_its_task_is_that_tasks_affair() {
    let mut yard = Yard::new(|settings| settings.worker.max_output_bytes = 100_000).await;
    let handler = Arc::new(Obedient::default());
    let limited = ModelSpec { timeout_ms: 100, ..spec("limited") };
    yard.worker("w", vec![(spec("m"), handler.clone()), (limited, handler.clone())]);
    yard.scheduler(&[spec("m"), ModelSpec { timeout_ms: 100, ..spec("limited") }]);
    let ids = yard
        .publish(vec![
            json!({"model": "m", "input": {"do": "panic"}}),
            json!({"model": "m", "input": {"do": "fail"}}),
            json!({"model": "m", "input": {"do": "fail once"}}),
            json!({"model": "m", "input": {"do": "flood"}}),
            json!({"model": "limited", "input": {"do": "hang"}}),
            json!({"model": "m", "input": {"do": "hang"}, "timeout_ms": 50, "max_attempts": 1}),
            json!({"model": "m", "input": {"fine": [1, 2.50, null]}}),
        ])
        .await;
    yard.collect(&ids).await;
    let came = |at: usize| (yard.result(&ids[at]).state, yard.code(&ids[at]), yard.result(&ids[at]).attempt);
    assert_eq!(came(0), (State::Failed, "handler_failed", 2));
    assert_eq!(came(1), (State::Failed, "own_code", 1));
    assert_eq!(came(2), (State::Succeeded, "", 2));
    assert_eq!(came(3), (State::Failed, "output_too_large", 1));
    assert_eq!(came(4), (State::Failed, "timed_out", 2));
    assert_eq!(came(5), (State::Failed, "timed_out", 1));
    assert_eq!(came(6), (State::Succeeded, "", 1));
    let output = yard.result(&ids[6]).output.as_ref().unwrap().get();
    assert_eq!(output, r#"{"fine":[1,2.5,null]}"#, "the bytes that were published");
    assert_eq!(yard.dead(5).await, ["handler_failed", "output_too_large", "own_code", "timed_out", "timed_out"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_fill_up_to_their_limit_and_results_travel_as_arrays_when_asked() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    let batching = ModelSpec { max_batch: 8, max_delay_ms: 20, ..spec("m") };
    yard.scheduler(std::slice::from_ref(&batching));
    let bodies = (0..64).map(|n| json!({"model": "m", "input": {"n": n}})).collect();
    let ids = yard
        .publish_with(bodies, |properties| {
            properties.headers.insert(messages::RESULTS_HEADER.into(), "array".into());
        })
        .await;
    yard.worker("w", vec![(batching, handler.clone())]);
    yard.collect(&ids).await;
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(yard.result(id).output.as_ref().unwrap().get(), format!(r#"{{"n":{n}}}"#), "each got its own");
    }
    let batches = handler.batches.lock().unwrap().clone();
    assert!(batches.iter().all(|size| *size <= 8), "{batches:?}");
    assert!(batches.contains(&8), "{batches:?}");
    assert_eq!(batches.iter().sum::<usize>(), 64);
    assert!(yard.messages < 64, "{} messages for 64 results", yard.messages);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_task_is_taken_over_with_the_next_attempt() {
    // The first attempt at a short task is not claimed, so that nobody knows of one that did not end.
    for (expected_ms, attempt) in [(1_000.0, 2), (1.0, 1)] {
        let mut yard = Yard::new(|_| {}).await;
        let spec = ModelSpec { expected_ms: Some(expected_ms), ..spec("m") };
        let gate = Arc::new(Semaphore::new(0));
        let first = Arc::new(Obedient { gate: Some(gate), ..Obedient::default() });
        let (_, kill) = yard.worker("first", vec![(spec.clone(), first.clone())]);
        yard.scheduler(std::slice::from_ref(&spec));
        let ids = yard.publish(vec![json!({"model": "m", "input": {"do": "wait"}})]).await;
        eventually("the task to run", || first.runs.load(Ordering::SeqCst) == 1).await;
        kill.cancel();
        let open = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(10))), ..Obedient::default() });
        yard.worker("second", vec![(spec, open.clone())]);
        yard.collect(&ids).await;
        let result = yard.result(&ids[0]);
        let expected = (State::Succeeded, attempt, Some("second"));
        assert_eq!((result.state, result.attempt, result.worker.as_deref()), expected);
    }
}

/// A short task that turns out long is claimed after all, so that its attempt counts when its worker dies.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_turns_out_long_is_claimed_late() {
    let mut yard = Yard::new(|_| {}).await;
    let spec = ModelSpec { expected_ms: Some(1.0), ..spec("m") };
    let first = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(0))), ..Obedient::default() });
    let (_, kill) = yard.worker("first", vec![(spec.clone(), first.clone())]);
    yard.scheduler(std::slice::from_ref(&spec));
    let ids = yard.publish(vec![json!({"model": "m", "input": {"do": "wait"}})]).await;
    eventually("the task to run", || first.runs.load(Ordering::SeqCst) == 1).await;
    let is_claimed = async || {
        let record = yard.store.get(vec![TaskId(ids[0])]).await.unwrap().pop().flatten();
        record.is_some_and(|record| record.state == State::Running && record.attempt == 1)
    };
    let claimed = async {
        while !is_claimed().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, claimed).await.expect("its record to say that it runs");
    kill.cancel();
    let open = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(10))), ..Obedient::default() });
    yard.worker("second", vec![(spec, open)]);
    yard.collect(&ids).await;
    assert_eq!((yard.result(&ids[0]).state, yard.result(&ids[0]).attempt), (State::Succeeded, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_finishes_what_runs_and_the_rest_is_not_begun_by_it() {
    let mut yard = Yard::new(|_| {}).await;
    let gate = Arc::new(Semaphore::new(0));
    let first = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    let (stop, _) = yard.worker("first", vec![(spec("m"), first.clone())]);
    yard.scheduler(&[spec("m")]);
    let ids = yard.publish((0..5).map(|_| json!({"model": "m", "input": {"do": "wait"}})).collect()).await;
    eventually("a task to run", || first.runs.load(Ordering::SeqCst) == 1).await;
    stop.cancel();
    gate.add_permits(1);
    let open = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(10))), ..Obedient::default() });
    yard.worker("second", vec![(spec("m"), open.clone())]);
    yard.collect(&ids).await;
    assert_eq!(first.runs.load(Ordering::SeqCst), 1);
    assert!(ids.iter().all(|id| yard.result(id).attempt == 1), "nothing was begun twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_wait_for_long_go_round_and_keep_their_place() {
    // Held for less than a second: every second everything goes round.
    let mut yard = Yard::new(|settings| settings.scheduler.max_held_s = 0).await;
    let scheduler = yard.scheduler(&[spec("m")]);
    let bodies = (0..40).map(|n| json!({"model": "m", "input": {"n": n}, "priority": n % 10})).collect();
    let ids = yard.publish(bodies).await;
    // Nobody serves the model: they wait. What came by the intake is acked once a copy went round.
    let handler = Arc::new(Obedient::default());
    let operations = yard.broker.operations().unwrap();
    let published = || operations.published.load(Ordering::Relaxed);
    let rounds = published() + 3 * 40;
    eventually("three rounds", || published() >= rounds).await;
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    yard.collect(&ids).await;
    assert_eq!(handler.runs.load(Ordering::SeqCst), 40, "each ran once");
    let mut order: Vec<&TaskResult> = ids.iter().map(|id| yard.result(id)).collect();
    order.sort_by_key(|result| result.timings.started);
    let priorities: Vec<u8> = order.iter().map(|result| result.priority.get()).collect();
    assert!(priorities[..8].iter().all(|priority| *priority >= 7), "{priorities:?}");
    scheduler.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_goes_where_it_is_done_first_and_a_delayed_task_waits_for_its_time() {
    let mut yard = Yard::new(|_| {}).await;
    let (slow, quick) = (Arc::new(Obedient::default()), Arc::new(Obedient::default()));
    let of = |name: &str, ms: f64| ModelSpec { expected_ms: Some(ms), ..spec(name) };
    yard.worker("w", vec![(of("slow", 900.0), slow.clone()), (of("quick", 5.0), quick.clone())]);
    yard.scheduler(&[of("slow", 900.0), of("quick", 5.0)]);
    let ids = yard
        .publish(vec![
            json!({"capability": "obeying", "input": 1}),
            json!({"model": "quick@1", "input": 2, "delay_ms": 400}),
        ])
        .await;
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).model.as_deref(), Some("quick@1"));
    let delayed = &yard.result(&ids[1]).timings;
    assert!(delayed.started.unwrap().ms_since(delayed.accepted.unwrap()) >= 400.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_and_nothing_runs_twice() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    let first = yard.scheduler(&[spec("m")]);
    let _second = yard.scheduler(&[spec("m")]);
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    let ids = yard.publish((0..300).map(|n| json!({"model": "m", "input": n})).collect()).await;
    yard.collect(&ids[..1]).await;
    first.cancel();
    yard.collect(&ids).await;
    for id in &ids {
        assert_eq!(yard.result(id).attempt, 1);
    }
    assert_eq!(handler.runs.load(Ordering::SeqCst), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_learnt_of_run_times_outlives_a_restart() {
    let mut yard = Yard::new(|_| {}).await;
    // Said to take long, and does not.
    let said = ModelSpec { expected_ms: Some(60_000.0), ..spec("m") };
    let first = Registry::new().unwrap();
    let stop = CancellationToken::new();
    let scheduler = tokio::spawn(yard.new_scheduler(std::slice::from_ref(&said), &first).run(stop.clone()));
    let (draining, _) = yard.worker("w", vec![(said.clone(), Arc::new(Obedient::default()))]);
    let ids = yard.publish((0..100).map(|n| json!({"model": "m", "input": n})).collect()).await;
    yard.collect(&ids).await;
    let shown = |registry: &Registry, name: &str| {
        let row = format!("{name}{{model=\"m\"}} ");
        registry.render().unwrap().lines().find_map(|line| line.strip_prefix(&row)?.parse::<f64>().ok())
    };
    eventually("the calibration", || shown(&first, "taskyard_estimate_coverage_ratio").is_some()).await;
    draining.cancel();
    stop.cancel();
    scheduler.await.unwrap().unwrap();

    let second = Registry::new().unwrap();
    tokio::spawn(yard.new_scheduler(&[said], &second).run(CancellationToken::new()));
    let waits = json!({"model": "m", "priority": 1, "delay_ms": 600_000, "input": {}});
    yard.publish(vec![waits]).await;
    eventually("the backlog", || shown(&second, "taskyard_backlog_tasks") == Some(1.0)).await;
    let expected = shown(&second, "taskyard_backlog_weighted_seconds").unwrap();
    assert!(expected < 6.0, "{expected} s, of which a minute was said and nearly nothing learnt");
}
