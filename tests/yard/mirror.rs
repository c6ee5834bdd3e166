//! Shadow traffic: a version that runs its model's tasks a second time, with nobody told.

use serde_json::{Value, json};
use taskyard_shared::deployment::Deployed;
use taskyard_shared::mirror::Tallies;
use taskyard_shared::process::keys::{Keys, NewKey};
use taskyard_shared::process::settings::KeySettings;

use super::control::Api;
use super::deployment::{code, deployment, output};
use super::*;

/// Gives the input back, but for the tenth of the inputs that it answers differently, and another that it fails on.
#[derive(Default)]
pub(super) struct Odd {
    pub begun: AtomicUsize,
    pub runs: AtomicUsize,
    pub gate: Option<Arc<Semaphore>>,
}

#[async_trait]
impl Handler for Odd {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let mut answers = Vec::new();
        for job in batch {
            self.begun.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            let input: Value = serde_json::from_str(job.input.get()).unwrap();
            answers.push(match input["n"].as_u64().map(|n| n % 10) {
                Some(3) => Ok(serde_json::value::to_raw_value(&json!({"n": "odd"})).unwrap()),
                Some(7) => Err(TaskError { code: "own_code".into(), message: "as told".into(), retryable: true }),
                _ => Ok(job.input),
            });
            self.runs.fetch_add(1, Ordering::SeqCst);
        }
        answers
    }
}

pub(super) fn versions() -> [ModelSpec; 2] {
    let plain = ModelSpec { quality: Some(0.5), ..spec("m") };
    [plain.clone(), ModelSpec { name: "m@2".into(), version: "2".into(), ..plain }]
}

impl Yard {
    /// A worker that has both versions.
    fn both(&self, handler: Arc<Obedient>, odd: Arc<Odd>) -> CancellationToken {
        let [plain, other] = versions();
        let mut settings = self.settings.worker.clone();
        settings.id = "w".to_owned();
        let (broker, store) = (self.broker.clone(), self.store.clone());
        let worker = Worker::new(broker, store, self.topology.clone(), settings, &self.registry).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(worker.model(plain, handler).model(other, odd).run(stop.clone(), CancellationToken::new()));
        stop
    }

    async fn mirrors(&self) -> Vec<String> {
        let written = self.store.fetch(Deployed::KEY).await.unwrap();
        let deployed = written.map(|bytes| Deployed::read(&bytes).unwrap()).unwrap_or_default();
        deployed.mirrors.into_keys().collect()
    }

    /// Tasks for `m` with these numbers, which get their inputs back from version 1.
    pub(super) async fn served(&mut self, numbers: std::ops::Range<u64>) -> Vec<Uuid> {
        let inputs: Vec<Value> = numbers.map(|n| json!({"n": n})).collect();
        let ids = self.publish(inputs.iter().map(|input| json!({"model": "m", "input": input})).collect()).await;
        self.collect(&ids).await;
        for (id, input) in ids.iter().zip(inputs) {
            let result = self.result(id);
            assert_eq!((result.state, result.model.as_deref()), (State::Succeeded, Some("m@1")), "{result:?}");
            assert_eq!(output(result), input);
        }
        ids
    }
}

/// What `GET /v1/models` says of the shadow of version 2.
pub(super) async fn shown(api: &Api) -> Value {
    let (status, body) = api.get("/v1/models").await;
    assert_eq!(status, 200, "{body}");
    let models = body["models"].as_array().unwrap();
    let version = models.iter().find(|model| model["name"] == "m@2");
    version.map_or(Value::Null, |version| version["shadow"].clone())
}

const OUTCOMES: [&str; 5] = ["same", "different", "failed", "skipped", "unknown"];

pub(super) fn counts(shadow: &Value) -> [u64; 5] {
    OUTCOMES.map(|outcome| shadow[outcome].as_u64().unwrap_or_default())
}

/// Asks until so many tasks were counted.
pub(super) async fn counted(api: &Api, tasks: u64) -> Value {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let shadow = shown(api).await;
        if counts(&shadow).iter().sum::<u64>() >= tasks {
            return shadow;
        }
        assert!(std::time::Instant::now() < until, "not {tasks} tasks: {shadow}");
        tokio::task::yield_now().await;
    }
}

pub(super) async fn shadows(yard: &mut Yard, share: f64) {
    let done = yard.one(deployment("m@2", json!({"action": "shadow", "share": share}))).await;
    assert_eq!(done.state, State::Succeeded, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_in_the_shadow_is_compared_and_nobody_gets_its_answers() {
    let mut yard = Yard::new(|_| {}).await;
    let queue = yard.topology.replies("listener");
    let heard = QueueSpec::exclusive(&queue).bound(yard.topology.events_exchange(), "task.#");
    yard.broker.declare(&[heard]).await.unwrap();
    let odd = Arc::new(Odd::default());
    let _worker = yard.both(Arc::default(), odd.clone());
    let stop = yard.scheduler(&versions());
    let api = Api::new(&yard).await;
    assert_eq!(shown(&api).await, Value::Null);
    let begun = yard.one(deployment("m@2", json!({"action": "shadow"}))).await;
    let expected = json!({"action": "shadow", "model": "m@2", "workers": ["w"], "share": 1.0});
    assert_eq!((begun.state, output(&begun)), (State::Succeeded, expected), "{begun:?}");

    let mut ids = yard.served(0..20).await;
    counted(&api, 20).await;
    ids.extend(yard.served(20..40).await);
    let shadow = counted(&api, 40).await;
    assert_eq!(counts(&shadow), [32, 4, 4, 0, 0], "{shadow}");
    assert_eq!(shadow["share"], 1.0);
    assert!(
        shadow["task_ms"].as_f64().is_some_and(|ms| ms > 0.0) && shadow["copy_ms"].as_f64().is_some_and(|ms| ms > 0.0)
    );
    let differing = shadow["differing"].as_array().unwrap();
    assert_eq!(differing.len(), 2, "{shadow}");
    for pair in differing {
        let (task, copy) = (pair["task"].as_str().unwrap(), pair["copy"].as_str().unwrap());
        let number = ids.iter().position(|id| id.to_string() == task).unwrap();
        assert_eq!(number % 10, 3, "{pair}");
        let (_, copy) = api.get(&format!("/v1/tasks/{copy}")).await;
        assert_eq!((&copy["metadata"]["shadow_of"], &copy["output"]), (&json!(task), &json!({"n": "odd"})), "{copy}");
        assert_eq!(
            (&copy["tenant"], &copy["priority"], &copy["model"]),
            (&json!("taskyard.shadow"), &json!(0), &json!("m@2"))
        );
    }
    let metric = |labels: &str| {
        let text = yard.registry.render().unwrap();
        let name = format!("taskyard_mirrored_tasks_total{{model=\"m@2\",outcome=\"{labels}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map(|count| count.parse::<u64>().unwrap())
    };
    assert_eq!(OUTCOMES.map(metric), [Some(32), Some(4), Some(4), None, None]);

    // These are not copied: they name a version, leave a choice, or are not to run twice. And nobody else makes a copy.
    let fake = json!({"shadow_of": ids[0].to_string()});
    let others = vec![
        json!({"model": "m@1", "input": {"n": 1}}),
        json!({"model": "m", "min_quality": 0.1, "input": {"n": 1}}),
        json!({"model": "m", "alternatives": [{"model": "m@2", "wait_ms": 60_000}], "input": {"n": 1}}),
        json!({"capability": "obeying", "input": {"n": 1}}),
        json!({"model": "m", "kind": "training", "input": {"n": 1}}),
        json!({"model": "m@2", "tenant": "taskyard.shadow", "metadata": fake, "input": {"n": 3}}),
        json!({"model": "m@2", "mirrors": ids[0].to_string(), "input": {"n": 1}}),
    ];
    let runs = odd.runs.load(Ordering::SeqCst);
    let others = yard.publish(others).await;
    yard.collect(&others).await;
    assert!(others.iter().all(|id| yard.result(id).state == State::Succeeded));
    assert_eq!(output(yard.result(&others[5])), json!({"n": "odd"}), "its own answer");
    assert_eq!(output(yard.result(&others[6])), json!({"n": 1}), "the field is not looked at");
    // A scheduler that starts goes on where the last one stopped.
    stop.cancel();
    yard.scheduler(&versions());
    let last = yard.served(40..41).await[0];
    let shadow = counted(&api, 41).await;
    assert_eq!(counts(&shadow), [33, 4, 4, 0, 0], "{shadow}");
    assert_eq!(odd.runs.load(Ordering::SeqCst), runs + 3, "two that name it, and a copy");

    // Of all that nobody else heard.
    assert_eq!(yard.messages, yard.told.len(), "a result for each that was asked for");
    let state = yard.broker.queue_state(&yard.topology.dead()).await.unwrap().unwrap();
    assert_eq!(state.ready, 0, "dead letters");
    let mut consumer = yard.broker.consume(&queue, 1000).await.unwrap();
    let mut events: Vec<Value> = Vec::new();
    let is_last = |event: &Value| {
        let ended = event["type"].as_str().is_some_and(|kind| kind.ends_with("succeeded"));
        ended && event["subject"] == json!(last.to_string())
    };
    while !events.iter().any(is_last) {
        let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(1000)).await.expect("events").unwrap();
        events.extend(batch.iter().map(|delivery| serde_json::from_slice(&delivery.body).unwrap()));
    }
    let is_anothers = |event: &&Value| !yard.told.keys().any(|id| event["subject"] == json!(id.to_string()));
    assert_eq!(events.iter().filter(is_anothers).collect::<Vec<_>>(), Vec::<&Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_ends_with_a_share_of_nothing_a_roll_out_or_a_retirement() {
    let mut yard = Yard::new(|_| {}).await;
    let odd = Arc::new(Odd::default());
    let _worker = yard.both(Arc::default(), odd.clone());
    yard.scheduler(&versions());
    let api = Api::new(&yard).await;
    for share in [1.5, -1.0] {
        let refused = yard.one(deployment("m@2", json!({"action": "shadow", "share": share}))).await;
        assert_eq!((refused.state, code(&refused)), (State::Rejected, "invalid_deployment"));
    }
    let own = yard.one(deployment("m@1", json!({"action": "shadow"}))).await;
    assert_eq!((own.state, code(&own)), (State::Failed, "invalid_deployment"), "it gets the tasks itself");

    shadows(&mut yard, 1.0).await;
    yard.served(0..1).await;
    counted(&api, 1).await;
    shadows(&mut yard, 0.0).await;
    assert_eq!((yard.mirrors().await, shown(&api).await), (vec![], Value::Null));
    yard.served(1..21).await;
    // A copy would have come between them.
    for _ in 0..20 {
        let named = yard.one(json!({"model": "m@2", "input": {"n": 1}})).await;
        assert_eq!(named.model.as_deref(), Some("m@2"));
    }
    assert_eq!(odd.runs.load(Ordering::SeqCst), 21);

    shadows(&mut yard, 0.5).await;
    assert_eq!(
        (yard.mirrors().await, counts(&shown(&api).await)),
        (vec!["m@2".to_owned()], [0; 5]),
        "from the beginning"
    );
    let rolled = yard.one(deployment("m@2", json!({"action": "roll_out"}))).await;
    assert_eq!((rolled.state, yard.mirrors().await), (State::Succeeded, vec![]));
    // Now the other way round.
    let other = yard.one(deployment("m@1", json!({"action": "shadow"}))).await;
    assert_eq!((other.state, yard.mirrors().await), (State::Succeeded, vec!["m".to_owned()]), "{other:?}");
    let retired = yard.one(deployment("m@1", json!({"action": "retire"}))).await;
    assert_eq!((retired.state, yard.mirrors().await), (State::Succeeded, vec![]), "{retired:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_not_answer_harms_no_task_and_keeps_few_copies() {
    let mut yard = Yard::new(|_| {}).await;
    let gate = Arc::new(Semaphore::new(0));
    let odd = Arc::new(Odd { gate: Some(gate.clone()), ..Odd::default() });
    let _worker = yard.both(Arc::default(), odd.clone());
    yard.scheduler(&versions());
    let api = Api::new(&yard).await;
    shadows(&mut yard, 1.0).await;
    // One at a time is with the worker, and none of them is told of.
    yard.served(0..100).await;
    let shadow = counted(&api, 68).await;
    assert_eq!(counts(&shadow), [0, 0, 0, 68, 0], "32 wait: {shadow}");
    let (_, body) = api.get("/v1/queues").await;
    let queues = body["models"].as_array().unwrap();
    let queue = queues.iter().find(|queue| queue["model"] == "m@2").unwrap();
    assert!(queue["held"].as_u64().unwrap() + queue["ready"].as_u64().unwrap() <= 1, "{queue}");
    // Who names the version comes before the copies that wait, but for the one that runs.
    let named = yard.publish(vec![json!({"model": "m@2", "input": {"n": 1}})]).await;
    api.explained(&named[0], "dispatched").await;
    gate.add_permits(2);
    yard.collect(&named).await;
    assert_eq!(yard.result(&named[0]).state, State::Succeeded);
    gate.add_permits(100);
    let shadow = counted(&api, 100).await;
    let [same, different, failed, skipped, unknown] = counts(&shadow);
    assert_eq!((same + different + failed, skipped, unknown), (32, 68, 0), "{shadow}");
    // A task that fails itself leaves nothing to compare with.
    let failing = yard.one(json!({"model": "m", "input": {"do": "fail"}})).await;
    assert_eq!(failing.state, State::Failed);
    let retried = yard.one(json!({"model": "m", "input": {"do": "fail once"}})).await;
    assert_eq!((retried.state, retried.attempt), (State::Succeeded, 2));
    let shadow = counted(&api, 102).await;
    assert_eq!(counts(&shadow), [same + 1, different, failed, 68, 1], "{shadow}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_has_its_part_and_they_are_shown_together() {
    let mut yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    let _worker = yard.both(Arc::default(), Arc::default());
    for _ in 0..2 {
        yard.scheduler(&versions());
    }
    let api = Api::new(&yard).await;
    shadows(&mut yard, 1.0).await;
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        yard.served(0..20).await;
        let mut sums = [0; 2];
        for (shard, sum) in sums.iter_mut().enumerate() {
            let written = yard.store.fetch(&Tallies::key(shard as u32)).await.unwrap();
            let mut tallies = written.map(|bytes| Tallies::read(&bytes).unwrap().versions).unwrap_or_default();
            let tally = tallies.remove("m@2").map(|tally| tally.same + tally.different + tally.failed);
            *sum = tally.unwrap_or_default();
        }
        // The other shard reads it with its next look at the models.
        if sums.iter().all(|sum| *sum > 0) {
            counted(&api, sums.iter().sum()).await;
            return;
        }
        assert!(std::time::Instant::now() < until, "{sums:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_wait_for_tasks_that_share_their_slots() {
    let mut yard = Yard::new(|settings| settings.worker.slots = 1).await;
    let gate = Arc::new(Semaphore::new(0));
    let odd = Arc::new(Odd::default());
    let handler = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    let _worker = yard.both(handler, odd.clone());
    yard.scheduler(&versions());
    let api = Api::new(&yard).await;
    shadows(&mut yard, 1.0).await;
    let ids = yard.publish(vec![json!({"model": "m", "input": {"do": "wait"}}); 6]).await;
    gate.add_permits(4);
    let until = std::time::Instant::now() + PATIENCE;
    let ended = |state: State| state == State::Succeeded;
    // Four have ended, and of the others one waits.
    let mut reports = 0;
    let mut last = None;
    while reports < 5 {
        let records = yard.store.get(ids.iter().copied().map(TaskId).collect()).await.unwrap();
        let count = records.iter().flatten().filter(|record| ended(record.state)).count();
        let report = yard.store.loads().await.unwrap().remove(0);
        if count == 4 && last != Some(report.at) {
            (reports, last) = (reports + 1, Some(report.at));
            assert_eq!(report.models["m@2"].held, 0, "{report:?}");
        }
        assert!(std::time::Instant::now() < until, "{count} ended");
        tokio::task::yield_now().await;
    }
    assert_eq!(odd.runs.load(Ordering::SeqCst), 0);
    gate.add_permits(2);
    yard.collect(&ids).await;
    assert_eq!(counts(&counted(&api, 6).await), [6, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_a_step_is_no_step() {
    let mut yard = Yard::new(|_| {}).await;
    let _worker = yard.both(Arc::default(), Arc::default());
    yard.scheduler(&versions());
    let api = Api::new(&yard).await;
    shadows(&mut yard, 1.0).await;
    let steps = json!([
        {"name": "one", "model": "m", "input": {"n": 3}},
        {"name": "two", "model": "m@1", "input": {"$from": "one"}},
    ]);
    let end = yard.run_workflow(json!({"tasks": steps})).await;
    assert_eq!((&end["state"], &end["outputs"]["two"]), (&json!("succeeded"), &json!({"n": 3})), "{end}");
    let shadow = counted(&api, 1).await;
    assert_eq!(counts(&shadow), [0, 1, 0, 0, 0], "{shadow}");
    let copy = shadow["differing"][0]["copy"].as_str().unwrap();
    let (_, copy) = api.get(&format!("/v1/tasks/{copy}")).await;
    assert_eq!((&copy["workflow"], &copy["state"]), (&Value::Null, &json!("succeeded")), "{copy}");

    // Whose tasks differ is not for everybody to know.
    let keys = ["blue", "*"].map(|tenant| {
        let (key, scopes) = (NewKey::generate().unwrap(), vec!["read".to_owned()]);
        (KeySettings { sha256: key.sha256(), tenant: tenant.to_owned(), scopes, expires: None }, key)
    });
    let settings = keys.iter().map(|(settings, _)| (settings.tenant.replace('*', "all"), settings.clone())).collect();
    let api = Api::with_keys(&yard, Keys::new(&settings).unwrap()).await;
    for ((_, key), differing) in keys.iter().zip([0, 1]) {
        let (status, body) = api.call("GET", "/v1/models", key.text(), None).await;
        assert_eq!(status, 200, "{body}");
        let model = body["models"].as_array().unwrap().iter().find(|model| model["name"] == "m@2").unwrap();
        assert_eq!(model["shadow"]["different"], 1, "{model}");
        assert_eq!(model["shadow"]["differing"].as_array().unwrap().len(), differing, "{model}");
    }
}
