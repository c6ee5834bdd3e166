//! A worker that holds some of its models, and is told which.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use taskyard_shared::load::{LoadReport, LoadState, Placement};
use taskyard_shared::process::config;
use taskyard_worker::handlers::{ModelCache, Recipe};
use taskyard_worker::{BuildError, Builder};
use tokio::task::JoinHandle;

use super::*;

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// A model of the repository and what loads it. Each counts for 100 MB.
fn shipped(folder: &str, name: &str, cache: &ModelCache) -> (ModelSpec, Arc<dyn Builder>) {
    let loaded = config::load(Some(&root().join(folder).join("models.toml"))).unwrap();
    let settings = &loaded.settings.models[name];
    let spec = ModelSpec { memory_mb: 100, ..settings.spec(name) };
    (spec, Arc::new(Recipe::new(name, settings, &loaded.base_dir, cache).unwrap()))
}

/// Room for so much, and a test that says what is held.
fn by_hand(settings: &mut Settings, memory_mb: u64) {
    settings.worker.memory_mb = memory_mb;
    settings.scheduler.placement = "none".to_owned();
}

pub(super) struct Placed {
    stop: CancellationToken,
    running: JoinHandle<Result<(), taskyard_shared::broker::BrokerError>>,
}

impl Placed {
    pub(super) fn start(yard: &Yard, id: &str, models: &[(ModelSpec, Arc<dyn Builder>)]) -> Self {
        let mut settings = yard.settings.worker.clone();
        settings.id = id.to_owned();
        let (broker, store) = (yard.broker.clone(), yard.store.clone());
        let mut worker = Worker::new(broker, store, yard.topology.clone(), settings, &yard.registry).unwrap();
        for (spec, builder) in models {
            worker = worker.candidate(spec.clone(), builder.clone());
        }
        let stop = CancellationToken::new();
        let running = tokio::spawn(worker.run(stop.clone(), CancellationToken::new()));
        Self { stop, running }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it stops").unwrap().unwrap();
    }
}

async fn place(yard: &Yard, worker: &str, models: &[&str]) {
    let placement = Placement::new(models.iter().map(|name| (*name).to_owned()).collect());
    let written = serde_json::to_vec(&placement).unwrap();
    yard.store.put(&Placement::key(worker), written.into()).await.unwrap();
}

/// Waits for a report of the worker's of which this is so.
pub(super) async fn reported(yard: &Yard, worker: &str, what: &str, so: impl Fn(&LoadReport) -> bool) -> LoadReport {
    let until = Instant::now() + PATIENCE;
    loop {
        let report = yard.store.loads().await.unwrap().into_iter().find(|report| report.worker == worker);
        match report {
            Some(report) if so(&report) => return report,
            report => assert!(Instant::now() < until, "waited in vain for {what}: {report:?}"),
        }
        tokio::task::yield_now().await;
    }
}

pub(super) fn states(report: &LoadReport, state: LoadState) -> Vec<&str> {
    let of = report.models.iter().filter(|(_, model)| model.state == state);
    of.map(|(name, _)| name.as_str()).collect()
}

pub(super) async fn holds(yard: &Yard, worker: &str, models: &[&str]) -> LoadReport {
    reported(yard, worker, &format!("{models:?}"), |report| states(report, LoadState::Loaded) == models).await
}

fn metric(yard: &Yard, name: &str) -> u64 {
    let text = yard.registry.render().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

/// The lines of a file of known answers, each as a task for the model.
fn known(model: &str, file: &str) -> Vec<(serde_json::Value, serde_json::Value)> {
    let lines = std::fs::read_to_string(root().join("demo").join(file)).unwrap();
    let line = |line: &str| {
        let item: serde_json::Value = serde_json::from_str(line).unwrap();
        let input = match item["file"].as_str() {
            Some(file) => json!({"base64": STANDARD.encode(std::fs::read(root().join("demo").join(file)).unwrap())}),
            None => json!({"text": item["text"]}),
        };
        (json!({"model": model, "input": input}), item["expected"].clone())
    };
    lines.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_room_for_two_of_four_models_serves_all_their_tasks_as_it_is_told() {
    let mut yard = Yard::new(|settings| by_hand(settings, 200)).await;
    let cache = ModelCache::default();
    let models = [("models", "intents"), ("models", "file-type"), ("models", "pause"), ("examples", "shout")]
        .map(|(folder, name)| shipped(folder, name, &cache));
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    place(&yard, "w", &["intents", "shout"]).await;
    let worker = Placed::start(&yard, "w", &models);
    yard.scheduler(&specs);
    let report = holds(&yard, "w", &["intents", "shout"]).await;
    assert_eq!((report.budget_mb, report.models.len()), (200, 4));
    assert!(report.models["intents"].load_ms.is_some_and(|load_ms| load_ms > 0.0));
    let slots: Vec<u32> = report.models.values().map(|model| model.slots).collect();
    assert_eq!(slots, [0, specs[0].slots, 0, specs[3].slots], "{report:?}");
    let announced = yard.store.models().await.unwrap();
    assert_eq!(
        announced.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(),
        ["file-type", "intents", "pause", "shout"]
    );

    let mut tasks = known("intents", "intents.jsonl");
    tasks.extend(known("file-type", "files.jsonl"));
    tasks.extend((0..100).map(|n| {
        let input = json!({"text": format!("number {n} says hello")});
        (json!({"model": "shout", "input": input}), json!({"text": format!("NUMBER {n} SAYS HELLO")}))
    }));
    tasks.extend((0..100).map(|n| (json!({"model": "pause", "input": {"n": n}}), json!({"n": n}))));
    let ids = yard.publish(tasks.iter().map(|(body, _)| body.clone()).collect()).await;
    let first = |model: &str, count: usize| -> Vec<Uuid> {
        let of = ids.iter().zip(&tasks).filter(|(_, (body, _))| body["model"] == model);
        of.map(|(id, _)| *id).take(count).collect()
    };
    // Each change comes while tasks of both models run.
    let rounds = [(["intents", "shout"], 5), (["file-type", "pause"], 5), (["intents", "pause"], 20)];
    for (held, count) in rounds.into_iter().chain([(["file-type", "shout"], 20), (["intents", "shout"], 40)]) {
        place(&yard, "w", &held).await;
        let few: Vec<Uuid> = held.iter().flat_map(|model| first(model, count)).collect();
        yard.collect(&few).await;
    }
    for held in [["file-type", "pause"], ["shout", "intents"]] {
        place(&yard, "w", &held).await;
        let all: Vec<Uuid> = held.iter().flat_map(|model| first(model, 1_000)).collect();
        yard.collect(&all).await;
    }
    for (id, (body, expected)) in ids.iter().zip(&tasks) {
        // A result may be told again, and is the same.
        let told = &yard.told[id];
        assert!(told.iter().all(|result| (result.state, result.attempt) == (State::Succeeded, 1)), "{body}: {told:?}");
        let result = &told[0];
        let output: serde_json::Value = serde_json::from_str(result.output.as_ref().unwrap().get()).unwrap();
        let answer = if expected.is_string() { &output["label"] } else { &output };
        assert_eq!(answer, expected, "{body}");
    }
    holds(&yard, "w", &["intents", "shout"]).await;
    for model in ["intents", "file-type", "pause", "shout"] {
        assert!(metric(&yard, &format!("taskyard_worker_model_unloads_total{{model=\"{model}\"}}")) >= 1, "{model}");
    }
    assert_eq!(cache.files_loaded(), 1, "of the model files, the one of intents");
    worker.stop().await;
    assert_eq!(cache.files_loaded(), 0);
    assert!(yard.store.loads().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_has_models_loaded_that_tasks_wait_for() {
    let mut yard = Yard::new(|settings| settings.worker.memory_mb = 200).await;
    let cache = ModelCache::default();
    let models = [("models", "intents"), ("models", "file-type"), ("models", "pause"), ("examples", "shout")]
        .map(|(folder, name)| shipped(folder, name, &cache));
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    let worker = Placed::start(&yard, "w", &models);
    // Without a word it holds the first two.
    holds(&yard, "w", &["file-type", "intents"]).await;
    yard.scheduler(&specs);
    let mut tasks = known("intents", "intents.jsonl");
    tasks.extend(known("file-type", "files.jsonl"));
    tasks
        .extend((0..50).map(|n| {
            (json!({"model": "shout", "input": {"text": format!("a{n}")}}), json!({"text": format!("A{n}")}))
        }));
    tasks.extend((0..50).map(|n| (json!({"model": "pause", "input": {"n": n}}), json!({"n": n}))));
    let ids = yard.publish(tasks.iter().map(|(body, _)| body.clone()).collect()).await;
    yard.collect(&ids).await;
    for (id, (body, expected)) in ids.iter().zip(&tasks) {
        let result = yard.result(id);
        assert_eq!((result.state, result.attempt), (State::Succeeded, 1), "{body}: {result:?}");
        let output: serde_json::Value = serde_json::from_str(result.output.as_ref().unwrap().get()).unwrap();
        let answer = if expected.is_string() { &output["label"] } else { &output };
        assert_eq!(answer, expected, "{body}");
    }
    // Each of the two that were not there was loaded, and nothing was loaded again and again.
    let loads = |model: &str| {
        metric(&yard, &format!("taskyard_worker_model_loads_total{{model=\"{model}\",outcome=\"loaded\"}}"))
    };
    let counts = ["intents", "file-type", "pause", "shout"].map(loads);
    assert!(counts[2] >= 1 && counts[3] >= 1 && counts.iter().sum::<u64>() <= 12, "{counts:?}");
    worker.stop().await;
}

/// Makes handlers that do as they are told, and knows what became of them.
pub(super) struct Makes {
    pub gate: Arc<Semaphore>,
    made: AtomicUsize,
    closed: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    /// Loading it takes until somebody gives up.
    pub hangs: AtomicBool,
    panics: AtomicBool,
}

struct Made {
    obeys: Obedient,
    closed: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

#[async_trait]
impl Builder for Makes {
    async fn build(&self) -> Result<Arc<dyn Handler>, BuildError> {
        self.made.fetch_add(1, Ordering::SeqCst);
        if self.panics.swap(false, Ordering::SeqCst) {
            panic!("as told");
        }
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let obeys = Obedient { gate: Some(self.gate.clone()), ..Obedient::default() };
        Ok(Arc::new(Made { obeys, closed: self.closed.clone(), dropped: self.dropped.clone() }))
    }
}

#[async_trait]
impl Handler for Made {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        self.obeys.execute(batch).await
    }

    async fn close(&self) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

pub(super) fn makes(name: &str, memory_mb: u64) -> (ModelSpec, Arc<Makes>) {
    let makes = Makes {
        gate: Arc::new(Semaphore::new(0)),
        made: AtomicUsize::default(),
        closed: Arc::default(),
        dropped: Arc::default(),
        hangs: AtomicBool::default(),
        panics: AtomicBool::default(),
    };
    (ModelSpec { memory_mb, ..spec(name) }, Arc::new(makes))
}

pub(super) fn candidates(models: &[(ModelSpec, Arc<Makes>)]) -> Vec<(ModelSpec, Arc<dyn Builder>)> {
    models.iter().map(|(spec, makes)| (spec.clone(), makes.clone() as Arc<dyn Builder>)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_finished_before_its_model_goes_and_what_was_not_begun_is_run_elsewhere() {
    let mut yard = Yard::new(|settings| by_hand(settings, 100)).await;
    let models = [makes("a", 60), makes("b", 60)];
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    place(&yard, "w", &["a"]).await;
    let worker = Placed::start(&yard, "w", &candidates(&models));
    holds(&yard, "w", &["a"]).await;
    yard.scheduler(&specs);
    let body = json!({"model": "a", "input": {"do": "wait"}});
    let ids = yard.publish(vec![body.clone(), body.clone(), body]).await;
    let (a, b) = (&models[0].1, &models[1].1);
    reported(&yard, "w", "one to run and one to wait", |report| {
        report.models["a"].busy == 1 && report.models["a"].held >= 2
    })
    .await;

    place(&yard, "w", &["b"]).await;
    // It takes nothing new, and gives back what it has not begun; the other's memory is not free.
    let report = reported(&yard, "w", "it to leave", |report| {
        let leaving = &report.models["a"];
        leaving.state == LoadState::Unloaded && leaving.held == 1
    })
    .await;
    assert_eq!((report.models["a"].busy, report.models["a"].slots), (1, 0));
    assert_eq!(report.models["b"].state, LoadState::Unloaded);
    let elsewhere = [makes("a", 60)];
    elsewhere[0].1.gate.add_permits(10);
    place(&yard, "other", &["a"]).await;
    let other = Placed::start(&yard, "other", &candidates(&elsewhere));
    yard.collect(&ids[1..]).await;
    assert!(ids[1..].iter().all(|id| yard.result(id).worker.as_deref() == Some("other")));
    assert_eq!((a.closed.load(Ordering::SeqCst), b.made.load(Ordering::SeqCst)), (0, 0), "the first still runs");

    a.gate.add_permits(1);
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).worker.as_deref(), Some("w"));
    holds(&yard, "w", &["b"]).await;
    assert_eq!((a.closed.load(Ordering::SeqCst), a.dropped.load(Ordering::SeqCst)), (1, 1));
    assert!(ids.iter().all(|id| yard.result(id).state == State::Succeeded));
    worker.stop().await;
    other.stop().await;
    assert_eq!((b.made.load(Ordering::SeqCst), b.closed.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(b.dropped.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_stops_no_other_and_is_tried_again() {
    let mut yard = Yard::new(|settings| {
        by_hand(settings, 300);
        settings.worker.retry_most_ms = 50;
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let loaded = config::load(Some(&root().join("models/models.toml"))).unwrap();
    let mut settings = loaded.settings.models["file-type"].clone();
    settings.onnx.as_mut().unwrap().file = "model.onnx".into();
    settings.onnx.as_mut().unwrap().config = Some(root().join("models/magika/config.min.json"));
    let recipe = Recipe::new("absent", &settings, folder.path(), &ModelCache::default()).unwrap();
    let absent = ModelSpec { memory_mb: 100, ..settings.spec("absent") };
    let (large, works, panics) = (makes("large", 301), makes("works", 100), makes("panics", 100));
    panics.1.panics.store(true, Ordering::SeqCst);
    let mut models: Vec<(ModelSpec, Arc<dyn Builder>)> = vec![(absent, Arc::new(recipe))];
    models.extend(candidates(&[large, panics, works]));
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    let worker = Placed::start(&yard, "w", &models);
    yard.scheduler(&specs);
    // One that panicked is there at its second try.
    let report = holds(&yard, "w", &["panics", "works"]).await;
    let reason = |name: &str| report.models[name].reason.as_deref().unwrap_or_default();
    assert_eq!(report.models["large"].state, LoadState::Failed);
    assert_eq!(reason("large"), "it takes 301 MB, and there is room for 300");
    let report = reported(&yard, "w", "failure", |report| report.models["absent"].reason.is_some()).await;
    let reason = report.models["absent"].reason.clone().unwrap();
    assert!(reason.starts_with("model absent: ") && reason.ends_with("no such file"), "{reason}");
    let ids = yard.publish(vec![json!({"model": "works", "input": 1}), json!({"model": "panics", "input": 1})]).await;
    yard.collect(&ids).await;
    let failures = "taskyard_worker_model_loads_total{model=\"absent\",outcome=\"failed\"}";
    eventually("another try", || metric(&yard, failures) >= 3).await;

    let file = folder.path().join("model.onnx");
    std::fs::copy(root().join("models/magika/model.onnx"), folder.path().join("copied")).unwrap();
    std::fs::rename(folder.path().join("copied"), file).unwrap();
    holds(&yard, "w", &["absent", "panics", "works"]).await;
    let ids = yard.publish(vec![json!({"model": "absent", "input": {"text": "#!/bin/sh\necho hello\n"}})]).await;
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).state, State::Succeeded);
    assert_eq!(metric(&yard, "taskyard_worker_model_loads_total{model=\"absent\",outcome=\"loaded\"}"), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_placement_it_holds_what_fits_and_what_it_was_told_last_stands() {
    let yard = Yard::new(|settings| by_hand(settings, 100)).await;
    let models = [makes("a", 60), makes("b", 60), makes("c", 40)];
    let worker = Placed::start(&yard, "w", &candidates(&models));
    holds(&yard, "w", &["a", "c"]).await;
    place(&yard, "w", &["b", "never-heard-of"]).await;
    holds(&yard, "w", &["b"]).await;
    // What cannot be read changes nothing, and what comes after it is followed.
    yard.store.put(&Placement::key("w"), "{\"v\":9}".into()).await.unwrap();
    let seen = yard.store.loads().await.unwrap().pop().unwrap().at;
    let report = reported(&yard, "w", "some reports", |report| report.at.ms_since(seen) > 100.0).await;
    assert_eq!(states(&report, LoadState::Loaded), ["b"]);
    place(&yard, "w", &["c", "b"]).await;
    holds(&yard, "w", &["b", "c"]).await;
    place(&yard, "w", &[]).await;
    holds(&yard, "w", &[]).await;
    let counts = |count: fn(&Makes) -> &AtomicUsize| models.each_ref().map(|(_, m)| count(m).load(Ordering::SeqCst));
    assert_eq!(counts(|makes| &makes.made), [1, 1, 2]);
    // What is being unloaded counts as held no longer.
    eventually("the last to be dropped", || counts(|makes| &makes.dropped) == [1, 1, 2]).await;
    worker.stop().await;
    assert_eq!(counts(|makes| &makes.closed), [1, 1, 2], "each is closed once");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_while_a_model_is_being_loaded_and_finishes_what_runs() {
    let mut yard = Yard::new(|settings| by_hand(settings, 100)).await;
    let models = [makes("a", 50), makes("b", 50)];
    models[1].1.hangs.store(true, Ordering::SeqCst);
    let worker = Placed::start(&yard, "w", &candidates(&models));
    yard.scheduler(std::slice::from_ref(&models[0].0));
    let ids = yard.publish(vec![json!({"model": "a", "input": {"do": "wait"}})]).await;
    reported(&yard, "w", "a task beside a load", |report| {
        report.models["a"].busy == 1 && report.models["b"].state == LoadState::Loading
    })
    .await;
    worker.stop.cancel();
    reported(&yard, "w", "draining", |report| report.draining).await;
    assert!(!worker.running.is_finished());
    models[0].1.gate.add_permits(1);
    worker.stop().await;
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).state, State::Succeeded);
    assert_eq!((models[0].1.closed.load(Ordering::SeqCst), models[0].1.dropped.load(Ordering::SeqCst)), (1, 1));
    assert!(yard.store.loads().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_budget_candidates_are_loaded_once_and_no_placement_is_followed() {
    let yard = Yard::new(|_| {}).await;
    let models = [makes("a", 60), makes("b", 0)];
    place(&yard, "w", &["a"]).await;
    let worker = Placed::start(&yard, "w", &candidates(&models));
    let report = holds(&yard, "w", &["a", "b"]).await;
    assert_eq!((report.budget_mb, report.models["a"].memory_mb), (0, 0));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tasks_of_a_model_that_is_not_loaded_are_told_so() {
    let mut yard = Yard::new(|settings| by_hand(settings, 100)).await;
    let models = [makes("a", 60), makes("b", 60)];
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    place(&yard, "w", &["a"]).await;
    let worker = Placed::start(&yard, "w", &candidates(&models));
    holds(&yard, "w", &["a"]).await;
    yard.scheduler(&specs);
    let api = control::Api::new(&yard).await;
    let ids = yard.publish(vec![json!({"model": "b", "input": {}})]).await;
    api.explained(&ids[0], "not_loaded").await;
    place(&yard, "w", &["b"]).await;
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).state, State::Succeeded);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_that_share_slots_run_no_more_together() {
    let mut yard = Yard::new(|settings| settings.worker.slots = 2).await;
    let models = ["a", "b"].map(|name| {
        let (_, makes) = makes(name, 0);
        (ModelSpec { slots: 2, ..spec(name) }, makes)
    });
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    let worker = Placed::start(&yard, "w", &candidates(&models));
    yard.scheduler(&specs);
    let bodies =
        (0..8).map(|n| json!({"model": if n % 2 == 0 { "a" } else { "b" }, "input": {"do": "wait"}})).collect();
    let ids = yard.publish(bodies).await;
    let report = reported(&yard, "w", "both models to have work", |report| {
        let (a, b) = (&report.models["a"], &report.models["b"]);
        a.busy + b.busy == 2 && a.held > a.busy && b.held > b.busy
    })
    .await;
    assert_eq!((report.slots, report.models["a"].slots, report.models["b"].slots), (2, 2, 2));
    // Whoever gets free, never more than two run; and both get their turns.
    for (_, makes) in &models {
        makes.gate.add_permits(10);
    }
    yard.collect(&ids).await;
    assert!(ids.iter().all(|id| yard.result(id).state == State::Succeeded));
    worker.stop().await;
}

/// A model is unloaded while tasks of it are in its queue: no scheduler holds them, and the next one has never heard of them.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_behind_in_the_queue_of_an_unloaded_model_has_it_loaded_again() {
    let mut yard = Yard::new(|settings| by_hand(settings, 100)).await;
    let models = [makes("a", 60), makes("b", 60)];
    let specs: Vec<ModelSpec> = models.iter().map(|(spec, _)| spec.clone()).collect();
    place(&yard, "w", &["a"]).await;
    let worker = Placed::start(&yard, "w", &candidates(&models));
    holds(&yard, "w", &["a"]).await;
    let stop = yard.scheduler(&specs);
    let body = json!({"model": "a", "input": {"do": "wait"}});
    let ids = yard.publish(vec![body.clone(), body]).await;
    reported(&yard, "w", "one to run and one to wait", |report| {
        report.models["a"].busy == 1 && report.models["a"].held == 2
    })
    .await;
    place(&yard, "w", &["b"]).await;
    reported(&yard, "w", "what was not begun to be given back", |report| report.models["a"].held == 1).await;
    stop.cancel();
    models[0].1.gate.add_permits(2);
    holds(&yard, "w", &["b"]).await;

    yard.settings.scheduler.placement = "demand".to_owned();
    yard.scheduler(&specs);
    yard.collect(&ids).await;
    assert!(ids.iter().all(|id| yard.told[id].iter().all(|result| result.state == State::Succeeded)));
    worker.stop().await;
}
