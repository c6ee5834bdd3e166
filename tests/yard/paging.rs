//! A backlog that is much larger than the window: it waits in queues of the broker, and keeps its order.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use taskyard_shared::process::metrics::Registry;
use tokio::task::JoinHandle;

use super::control::Api;
use super::*;

/// Tells what ran, in the order in which it did, and stops when it has no permit.
struct Recorder {
    seen: Mutex<Vec<Value>>,
    gate: Semaphore,
    /// What a task takes: where that counts, more than a busy machine may add to it.
    takes: Duration,
}

impl Recorder {
    fn new(permits: usize) -> Arc<Self> {
        Self::of_tasks_that_take(permits, Duration::ZERO)
    }

    fn of_tasks_that_take(permits: usize, takes: Duration) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), gate: Semaphore::new(permits), takes })
    }

    fn seen(&self) -> Vec<Value> {
        self.seen.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

#[async_trait]
impl Handler for Recorder {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let mut answers = Vec::new();
        for job in batch {
            self.gate.acquire().await.unwrap().forget();
            self.seen.lock().unwrap().push(serde_json::from_str(job.input.get()).unwrap());
            if !self.takes.is_zero() {
                tokio::time::sleep(self.takes).await;
            }
            answers.push(Ok(job.input));
        }
        answers
    }
}

fn start_worker(yard: &Yard, spec: ModelSpec, handler: Arc<Recorder>) -> CancellationToken {
    let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
    let mut settings = yard.settings.worker.clone();
    settings.id = format!("worker-of-{}", spec.name);
    let (broker, store) = (yard.broker.clone(), yard.store.clone());
    let worker = Worker::new(broker, store, yard.topology.clone(), settings, &Registry::new().unwrap()).unwrap();
    tokio::spawn(worker.model(spec, handler).run(stop.clone(), kill));
    stop
}

/// A scheduler with metrics of its own.
struct Scheduling {
    registry: Registry,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Scheduling {
    fn start(yard: &Yard, models: &[ModelSpec]) -> Self {
        let (registry, stop) = (Registry::new().unwrap(), CancellationToken::new());
        let running = yard.new_scheduler(models, &registry).run(stop.clone());
        let running = tokio::spawn(async move { running.await.unwrap() });
        Self { registry, stop, running }
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.registry.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// Waits until so many tasks of a model wait.
    async fn has(&self, model: &str, tasks: u64) {
        let name = format!("taskyard_backlog_tasks{{model=\"{model}\"}}");
        let what = format!("{tasks} of {model}");
        let so = eventually(&what, || self.metric(&name) == tasks);
        if tokio::time::timeout(PATIENCE / 2, so).await.is_err() {
            let text = self.registry.render().unwrap();
            let shown = ["taskyard_backlog", "taskyard_tasks_", "taskyard_scheduler_", "taskyard_outstanding"];
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| shown.iter().any(|name| line.starts_with(name)) && !line.contains("_bucket"))
                .collect();
            panic!("waited in vain for {tasks} of {model}: {lines:#?}");
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it stops").unwrap();
    }
}

fn small(settings: &mut Settings, policy: &str) {
    settings.scheduler.window_tasks = 100;
    settings.scheduler.policy = policy.to_owned();
}

/// No more is with the worker than what it runs and the next one.
fn in_turn(settings: &mut Settings) {
    settings.scheduler.ready_extra_most = 1;
}

/// Messages in all page queues, and how many queues there are.
async fn pages(yard: &Yard) -> (u64, u32) {
    let (mut sum, mut queues) = (0, 0);
    for shard in 0..3 {
        for number in 0.. {
            let Some(state) = yard.broker.queue_state(&yard.topology.page(shard, number)).await.unwrap() else { break };
            (sum, queues) = (sum + state.ready, queues + 1);
        }
    }
    (sum, queues)
}

/// Until the broker has been told of all that is done.
async fn nothing_is_left(yard: &Yard) {
    let empty = async { while pages(yard).await.0 > 0 {} };
    tokio::time::timeout(PATIENCE, empty).await.expect("nothing is left in the page queues");
}

fn shuffled(count: usize, body: impl Fn(usize) -> Value) -> Vec<Value> {
    let mut numbers: Vec<usize> = (0..count).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut numbers);
    numbers.into_iter().map(body).collect()
}

fn priority_of(task: &Value) -> u64 {
    task["p"].as_u64().unwrap()
}

/// By priority, and then as they were published.
fn in_order(tasks: &[Value]) -> Vec<Value> {
    let mut inputs: Vec<Value> = tasks.iter().map(|task| task["input"].clone()).collect();
    inputs.sort_by_key(|input| std::cmp::Reverse(priority_of(input)));
    inputs
}

fn assert_order<T: Ord + std::fmt::Debug>(seen: &[T], expected: &[T]) {
    assert_eq!(seen.len(), expected.len());
    let places: BTreeMap<&T, usize> = expected.iter().zip(0..).collect();
    let astray: Vec<String> = (seen.iter().enumerate())
        .filter(|(at, one)| places[one] != *at)
        .map(|(at, one)| format!("{one:?} ran as number {at}, not {}", places[one]))
        .collect();
    assert!(
        astray.is_empty(),
        "{} of {} out of order: {:?}",
        astray.len(),
        seen.len(),
        &astray[..astray.len().min(40)]
    );
}

fn numbers(seen: &[Value]) -> Vec<u64> {
    seen.iter().map(|input| input["n"].as_u64().unwrap()).collect()
}

fn prioritised(count: usize) -> Vec<Value> {
    shuffled(count, |n| json!({"model": "m", "priority": n % 10, "input": {"n": n, "p": n % 10}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities_and_arrival_hold_over_a_backlog_of_thirty_windows() {
    let mut yard = Yard::new(|settings| small(settings, "strict")).await;
    let scheduler = Scheduling::start(&yard, &[spec("m")]);
    let tasks = prioritised(3_000);
    let ids = yard.publish(tasks.clone()).await;
    scheduler.has("m", 3_000).await;
    let (messages, queues) = pages(&yard).await;
    assert!(messages > 1_000 && queues >= 10, "{messages} pages in {queues} queues");
    let recorder = Recorder::new(3_000);
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&ids).await;
    assert!(ids.iter().all(|id| yard.result(id).state == State::Succeeded));
    let (seen, expected) = (recorder.seen(), in_order(&tasks));
    assert_order(&numbers(&seen), &numbers(&expected));
    nothing_is_left(&yard).await;
    scheduler.has("m", 0).await;
    let (out, back) =
        ["out", "in"].map(|way| scheduler.metric(&format!("taskyard_tasks_paged_total{{direction=\"{way}\"}}"))).into();
    assert!(out >= 2_900 && out == back, "{out} went out and {back} came in");
    assert_eq!(scheduler.metric("taskyard_tasks_accepted_total{kind=\"prediction\",model=\"m\"}"), 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_task_overtakes_a_backlog_in_the_broker() {
    let mut yard = Yard::new(|settings| {
        small(settings, "cmu");
        in_turn(settings);
    })
    .await;
    // Known for what it is: what the backlog was taken for when it came is what an urgent task is compared with.
    let spec = ModelSpec { expected_ms: Some(5.0), ..spec("m") };
    let scheduler = Scheduling::start(&yard, std::slice::from_ref(&spec));
    let ids = yard.publish((0..1_000).map(|n| json!({"model": "m", "input": {"n": n}})).collect()).await;
    scheduler.has("m", 1_000).await;
    let recorder = Recorder::of_tasks_that_take(100, Duration::from_millis(5));
    start_worker(&yard, spec, recorder.clone());
    eventually("a hundred to run", || recorder.count() == 100).await;
    let urgent = yard.publish(vec![json!({"model": "m", "priority": 9, "input": {"urgent": true}})]).await;
    let accepted = "taskyard_tasks_accepted_total{kind=\"prediction\",model=\"m\"}";
    eventually("it to be taken in", || scheduler.metric(accepted) == 1_001).await;
    recorder.gate.add_permits(1_000);
    yard.collect(&urgent).await;
    let at = recorder.seen().iter().position(|input| input["urgent"] == true).unwrap();
    assert!(at <= 120, "it ran as number {at}");
    yard.collect(&ids).await;
    nothing_is_left(&yard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_tenant_has_its_share_beside_a_flood_in_the_broker() {
    let mut yard = Yard::new(|settings| {
        small(settings, "cmu");
        in_turn(settings);
    })
    .await;
    let scheduler = Scheduling::start(&yard, &[spec("m")]);
    let body = |tenant: &str, n: usize| json!({"model": "m", "tenant": tenant, "input": {"tenant": tenant, "n": n}});
    let flood = yard.publish((0..2_000).map(|n| body("flood", n)).collect()).await;
    scheduler.has("m", 2_000).await;
    let few = yard.publish((0..40).map(|n| body("few", n)).collect()).await;
    scheduler.has("m", 2_040).await;
    // Shares are of the time that it took.
    let recorder = Recorder::of_tasks_that_take(3_000, Duration::from_millis(2));
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&few).await;
    let seen = recorder.seen();
    let last = seen.iter().rposition(|input| input["tenant"] == "few").unwrap();
    assert!(last < 200, "the last of 40 ran as number {last}");
    yard.collect(&flood).await;
    for (tenant, count) in [("flood", 2_000), ("few", 40)] {
        let of_tenant: Vec<Value> = recorder.seen().into_iter().filter(|input| input["tenant"] == tenant).collect();
        assert_order(&numbers(&of_tenant), &(0..count).collect::<Vec<u64>>());
    }
    nothing_is_left(&yard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_serves_holds_up_no_other() {
    let mut yard = Yard::new(|settings| small(settings, "cmu")).await;
    let scheduler = Scheduling::start(&yard, &[spec("dead"), spec("live")]);
    let dead = yard.publish((0..3_000).map(|n| json!({"model": "dead", "input": {"n": n}})).collect()).await;
    let recorder = Recorder::new(1_000);
    start_worker(&yard, spec("live"), recorder.clone());
    let live = yard.publish((0..1_000).map(|n| json!({"model": "live", "input": {"n": n}})).collect()).await;
    yard.collect(&live).await;
    scheduler.has("dead", 3_000).await;
    let recorder = Recorder::new(3_000);
    start_worker(&yard, spec("dead"), recorder.clone());
    yard.collect(&dead).await;
    assert_order(&numbers(&recorder.seen()), &(0..3_000).collect::<Vec<u64>>());
    nothing_is_left(&yard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_the_backlog_where_it_was() {
    let mut yard = Yard::new(|settings| small(settings, "strict")).await;
    let first = Scheduling::start(&yard, &[spec("m")]);
    let ids = yard.publish(prioritised(3_000)).await;
    first.has("m", 3_000).await;
    let recorder = Recorder::new(1_000);
    start_worker(&yard, spec("m"), recorder.clone());
    eventually("a third to run", || recorder.count() == 1_000).await;
    first.stop().await;
    let second = Scheduling::start(&yard, &[spec("m")]);
    eventually("the second to be active", || second.metric("taskyard_scheduler_active") == 1).await;
    recorder.gate.add_permits(10_000);
    yard.collect(&ids).await;
    assert!(ids.iter().all(|id| yard.told[id].iter().all(|result| result.state == State::Succeeded)));
    // What was sent ahead of the slot may come twice, and is then told twice.
    let seen = recorder.seen();
    assert!((3_000..3_050).contains(&seen.len()), "{} runs", seen.len());
    let mut once: Vec<&Value> = Vec::new();
    let mut known = std::collections::HashSet::new();
    once.extend(seen.iter().filter(|input| known.insert(input["n"].as_u64().unwrap())));
    // Whatever was read first at the start may go first.
    let (mut highest_after, mut early) = (0, 0);
    for input in once.iter().rev() {
        early += usize::from(priority_of(input) < highest_after);
        highest_after = highest_after.max(priority_of(input));
    }
    assert!(early < 100, "{early} ran before one of a higher priority");
    nothing_is_left(&yard).await;
    second.has("m", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_shards_read_what_more_have_left() {
    let mut yard = Yard::new(|settings| {
        small(settings, "strict");
        settings.scheduler.shards = 2;
    })
    .await;
    let first = Scheduling::start(&yard, &[spec("m")]);
    eventually("the first to be active", || first.metric("taskyard_scheduler_shard{shard=\"0\"}") == 1).await;
    let second = Scheduling::start(&yard, &[spec("m")]);
    eventually("the second to be active", || second.metric("taskyard_scheduler_shard{shard=\"1\"}") == 1).await;
    // What is published now is the second's alone.
    first.stop().await;
    let ids = yard.publish(prioritised(3_000)).await;
    second.has("m", 3_000).await;
    second.stop().await;
    assert!(yard.broker.queue_state(&yard.topology.page(1, 0)).await.unwrap().is_some_and(|state| state.ready > 0));
    yard.settings.scheduler.shards = 1;
    let one = Scheduling::start(&yard, &[spec("m")]);
    let recorder = Recorder::new(10_000);
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&ids).await;
    assert_eq!(recorder.count(), 3_000);
    nothing_is_left(&yard).await;
    one.has("m", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_in_the_broker_are_explained_cancelled_and_given_another_priority() {
    let mut yard = Yard::new(|settings| small(settings, "strict")).await;
    let scheduler = Scheduling::start(&yard, &[spec("m")]);
    let api = Api::new(&yard).await;
    let tasks: Vec<Value> = (0..1_000).map(|n| json!({"model": "m", "input": {"n": n, "p": 4}})).collect();
    let ids = yard.publish(tasks).await;
    scheduler.has("m", 1_000).await;

    let explained = api.explained(&ids[900], "paged").await;
    assert_eq!((&explained["state"], &explained["model"]), (&json!("queued"), &json!("m")));
    let waiting = &explained["waiting"];
    assert_eq!(waiting["queued_in_model"], 1_000);
    assert!(waiting["ahead_in_lane"].as_u64().is_some_and(|ahead| (800..=1_000).contains(&ahead)), "{explained}");
    assert!(explained["message"].as_str().unwrap().contains("kept in the broker"), "{explained}");

    assert_eq!(api.cancel(&ids[900]).await, (200, "cancelled".to_owned()));
    yard.collect(&ids[900..901]).await;
    assert_eq!(yard.told[&ids[900]][0].state, State::Cancelled);
    let (status, outcome) = api.post(&format!("/v1/tasks/{}/reprioritize", ids[500]), json!({"priority": 1})).await;
    assert!(status / 100 == 2, "{outcome}");

    let recorder = Recorder::new(10_000);
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&ids).await;
    let expected: Vec<u64> = (0..1_000).filter(|n| ![500, 900].contains(n)).chain([500]).collect();
    assert_order(&numbers(&recorder.seen()), &expected);
    nothing_is_left(&yard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_and_deadlines_hold_for_what_is_in_the_broker() {
    let mut yard = Yard::new(|settings| small(settings, "cmu")).await;
    let mut limits: BTreeMap<String, taskyard_shared::process::settings::TenantSettings> = BTreeMap::new();
    let limited = taskyard_shared::process::settings::TenantSettings { max_waiting: Some(600), ..Default::default() };
    limits.insert("limited".to_owned(), limited);
    let registry = Registry::new().unwrap();
    let scheduler = yard.new_scheduler(&[spec("m")], &registry).tenants(limits);
    tokio::spawn(scheduler.run(CancellationToken::new()));
    let bodies = (0..1_000).map(|n| json!({"model": "m", "tenant": "limited", "input": {"n": n}})).collect();
    let ids = yard.publish(bodies).await;
    // Of what is away it is known with a moment's delay.
    let refused = async {
        loop {
            let records = yard.store.get(ids.iter().map(|id| TaskId(*id)).collect()).await.unwrap();
            let states: Vec<State> = records.into_iter().flatten().map(|record| record.state).collect();
            if states.len() == 1_000 && states.contains(&State::Rejected) {
                return states.iter().filter(|state| **state == State::Queued).count();
            }
        }
    };
    let queued = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert!((600..1_000).contains(&queued), "{queued} were taken in");

    let late = yard.publish(vec![json!({"model": "m", "tenant": "other", "input": {}, "deadline_ms": 200}); 10]).await;
    yard.collect(&late).await;
    assert!(late.iter().all(|id| yard.result(id).state == State::Expired));
    let recorder = Recorder::new(10_000);
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&ids).await;
    let ran = ids.iter().filter(|id| yard.result(id).state == State::Succeeded).count();
    assert_eq!(ran, recorder.count());
    nothing_is_left(&yard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_inputs_go_out_before_the_window_has_its_number_of_tasks() {
    let mut yard = Yard::new(|settings| {
        settings.scheduler.window_mb = 1;
        settings.scheduler.policy = "fifo".to_owned();
    })
    .await;
    let scheduler = Scheduling::start(&yard, &[spec("m")]);
    let large = "x".repeat(60_000);
    let ids = yard.publish((0..200).map(|n| json!({"model": "m", "input": {"n": n, "large": large}})).collect()).await;
    scheduler.has("m", 200).await;
    let out = || scheduler.metric("taskyard_tasks_paged_total{direction=\"out\"}");
    eventually("most of 12 MB to go out", || out() > 150).await;
    let recorder = Recorder::new(200);
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&ids).await;
    assert_order(&numbers(&recorder.seen()), &(0..200).collect::<Vec<u64>>());
    nothing_is_left(&yard).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_order_of_a_line() {
    let mut yard = Yard::new(|settings| small(settings, "cmu")).await;
    let tasks =
        |from: u64| -> Vec<Value> { (from..from + 500).map(|n| json!({"model": "m", "input": {"n": n}})).collect() };
    let mut ids = Vec::new();
    // The head of the line comes again with each session, and is older than what waits in the broker.
    for part in 0..3 {
        let scheduler = Scheduling::start(&yard, &[spec("m")]);
        ids.extend(yard.publish(tasks(part * 500)).await);
        scheduler.has("m", part * 500 + 500).await;
        scheduler.stop().await;
    }
    let scheduler = Scheduling::start(&yard, &[spec("m")]);
    // What was written to a page just then comes from intake as well, and is counted twice: all is read once the last is.
    let last = yard.publish(vec![json!({"model": "m", "input": {"n": 1_500}})]).await;
    let read = async { while yard.store.get(vec![TaskId(last[0])]).await.unwrap()[0].is_none() {} };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    ids.extend(last);
    let recorder = Recorder::new(10_000);
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&ids).await;
    assert_order(&numbers(&recorder.seen()), &(0..=1_500).collect::<Vec<u64>>());
    nothing_is_left(&yard).await;
    scheduler.has("m", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_were_given_another_priority_hold_up_no_others() {
    let mut yard = Yard::new(|settings| small(settings, "strict")).await;
    let scheduler = Scheduling::start(&yard, &[spec("m")]);
    let api = Api::new(&yard).await;
    let ids = yard.publish((0..1_000).map(|n| json!({"model": "m", "input": {"n": n, "p": 4}})).collect()).await;
    scheduler.has("m", 1_000).await;
    // More than may be read of a queue at once, in a row.
    for id in &ids[400..420] {
        let (status, outcome) = api.post(&format!("/v1/tasks/{id}/reprioritize"), json!({"priority": 1})).await;
        assert!(status / 100 == 2, "{outcome}");
    }
    let recorder = Recorder::new(10_000);
    start_worker(&yard, spec("m"), recorder.clone());
    yard.collect(&ids).await;
    let expected: Vec<u64> = (0..400).chain(420..1_000).chain(400..420).collect();
    assert_order(&numbers(&recorder.seen()), &expected);
    nothing_is_left(&yard).await;
}
