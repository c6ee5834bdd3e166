//! Schedules: kept by the broker, fired once a tick by whichever scheduler is there; over HTTP and from the command line.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use taskyard_shared::process::keys::{Keys, NewKey};
use taskyard_shared::process::settings::KeySettings;
use taskyard_shared::schedule::ScheduleOrder;
use taskyard_shared::store::Filter;
use taskyard_shared::{Timestamp, messages as built};

use super::control::Api;
use super::*;

pub(super) const EVERY_SECOND: &str = "* * * * * *";
const MINUTE_MS: i64 = 60_000;

fn quick() -> ModelSpec {
    ModelSpec { slots: 4, ..spec("m") }
}

fn task(cron: &str) -> Value {
    json!({"cron": cron, "task": {"model": "m", "input": {"of": "schedule"}}})
}

impl Yard {
    /// What the ticks of a schedule made, by tick.
    async fn ticked(&self, schedule: &str) -> BTreeMap<String, TaskResult> {
        let metadata = BTreeMap::from([("schedule".to_owned(), schedule.to_owned())]);
        let filter = Filter { metadata, ..Filter::default() };
        let tasks = self.store.list(&filter, None, 500).await.unwrap().tasks;
        let count = tasks.len();
        let by_tick: BTreeMap<_, _> = tasks.into_iter().map(|task| (task.metadata["tick"].clone(), task)).collect();
        assert_eq!(by_tick.len(), count, "one task a tick");
        by_tick
    }

    /// Waits until so many of them have succeeded.
    pub(super) async fn ticks(&self, schedule: &str, count: usize) -> BTreeMap<String, TaskResult> {
        let waiting = async {
            loop {
                let ticked = self.ticked(schedule).await;
                if ticked.values().filter(|task| task.state == State::Succeeded).count() >= count {
                    return ticked;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{schedule} has no {count} ticks"))
    }

    /// Puts a schedule into the queue as a scheduler would have left it.
    async fn leave(&self, name: &str, body: Value, seen: Timestamp, revision: u64) {
        let raw = RawValue::from_string(body.to_string()).unwrap();
        let mut order = ScheduleOrder::new("default".into(), name.into(), false, raw, seen);
        order.revision = revision;
        self.broker.declare(&built::shard_queues(&self.topology, 1)).await.unwrap();
        for answer in self.broker.publish(vec![built::schedule(&self.topology, &order).unwrap()]).await {
            answer.unwrap();
        }
    }

    /// What lies in the queue of schedules while no scheduler holds it.
    async fn left(&self) -> Vec<ScheduleOrder> {
        let queue = self.topology.schedules();
        let waiting = async {
            while self.broker.queue_state(&queue).await.unwrap().is_none_or(|state| state.consumers > 0) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("nobody to hold them");
        let count = self.broker.queue_state(&queue).await.unwrap().unwrap().ready as usize;
        let mut consumer = self.broker.consume(&queue, 1_000).await.unwrap();
        let mut orders = Vec::new();
        while orders.len() < count {
            let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(1_000)).await.unwrap().unwrap();
            orders.extend(batch.iter().map(|delivery| ScheduleOrder::read(&delivery.body).unwrap()));
        }
        orders
    }

    fn shows(&self, line: &str) -> bool {
        self.registry.render().unwrap().lines().any(|known| known == line)
    }

    async fn put(&self, api: &Api, name: &str, body: Value) -> Value {
        let (status, shown) = api.put(&format!("/v1/schedules/{name}"), body).await;
        assert!(status == 200 || status == 201, "{status}: {shown}");
        shown
    }
}

fn before(now: Timestamp, ms: i64) -> Timestamp {
    Timestamp::from_micros(now.as_micros() - ms * 1_000)
}

/// A cron expression of one minute of the day, in UTC.
fn minute_of(at: Timestamp) -> String {
    let minutes = at.as_micros() / 60_000_000;
    format!("{} {} * * *", minutes % 60, minutes / 60 % 24)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_schedulers_one_fires_each_tick_and_the_other_goes_on_where_it_ended() {
    let yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(quick(), handler.clone())]);
    let first = yard.scheduler(&[quick()]);
    let api = Api::new(&yard).await;
    kept(&api).await;
    let second = Registry::new().unwrap();
    tokio::spawn(yard.new_scheduler(&[quick()], &second).run(CancellationToken::new()));
    let body = json!({"catch_up": "all", "tenant": "blue", "cron": EVERY_SECOND, "task": {
        "model": "m", "input": {"n": 1.50}, "priority": 7, "metadata": {"of": "test"}, "delay_ms": 1,
    }});
    let shown = yard.put(&api, "often", body).await;
    assert_eq!((&shown["name"], &shown["tenant"], &shown["last"]), (&json!("often"), &json!("blue"), &Value::Null));
    yard.ticks("often", 2).await;
    first.cancel();
    let before = yard.ticks("often", 2).await.len();
    let ticked = yard.ticks("often", before + 2).await;

    let (status, shown) = api.get("/v1/schedules/often?tenant=blue").await;
    assert_eq!((status, &shown["task"]["input"]["n"]), (200, &json!(1.50)));
    assert_eq!(shown["next"].as_array().unwrap().len(), 5, "{shown}");
    let (status, _) = api.delete("/v1/schedules/often?tenant=blue").await;
    assert_eq!(status, 200);
    let ticked = yard.ticks("often", ticked.len()).await;
    let ticks: Vec<Timestamp> = ticked.keys().map(|tick| tick.parse().unwrap()).collect();
    for pair in ticks.windows(2) {
        assert_eq!(pair[1].ms_since(pair[0]), 1_000.0, "no tick is left out: {ticks:?}");
    }
    let one = ticked.values().next().unwrap();
    let told = (one.tenant.as_str(), one.priority.get(), one.metadata["of"].as_str());
    assert_eq!((told, one.output.as_ref().unwrap().get()), (("blue", 7, "test"), r#"{"n":1.5}"#));
    eventually("all to have run", || handler.runs.load(Ordering::SeqCst) >= ticked.len()).await;
    assert_eq!(handler.runs.load(Ordering::SeqCst), ticked.len(), "each once");
    let fired: u64 = [&yard.registry, &second].iter().map(|registry| fired(registry)).sum();
    assert_eq!(fired, ticked.len() as u64, "neither fired one that the other had");
}

/// Waits until a scheduler keeps the schedules.
async fn kept(api: &Api) {
    let ready = async { while api.get("/v1/schedules").await.0 != 200 {} };
    tokio::time::timeout(PATIENCE, ready).await.expect("a scheduler");
}

fn fired(registry: &Registry) -> u64 {
    let text = registry.render().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("taskyard_schedule_ticks_total{outcome=\"fired\"} "));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passed_while_nobody_ran_is_caught_up_with_as_each_schedule_says() {
    let yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(quick(), handler.clone())]);
    let now = Timestamp::now();
    let ago = |ms| before(now, ms);
    let seen = ago(10 * MINUTE_MS);
    let minutes: Vec<String> =
        [8, 6, 4].map(|minutes| (ago(minutes * MINUTE_MS).as_micros() / 60_000_000 % 60).to_string()).into();
    let three = format!("{} * * * *", minutes.join(","));
    let with = |cron: &str, more: Value| {
        let mut body = task(cron);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    yard.leave("all", with(&three, json!({"catch_up": "all"})), seen, 1).await;
    let window = json!({"catch_up": "all", "catch_up_window_ms": 15 * MINUTE_MS / 2});
    yard.leave("all-of-late", with(&three, window), seen, 1).await;
    yard.leave("latest", task(&three), seen, 1).await;
    yard.leave("skip", with(&three, json!({"catch_up": "skip"})), seen, 1).await;
    yard.leave("none", task(&minute_of(ago(20 * MINUTE_MS))), seen, 1).await;
    // A moment late is not missed.
    yard.leave("moment", with(EVERY_SECOND, json!({"catch_up": "skip", "until": now})), ago(3_000), 1).await;
    let first = yard.scheduler(&[quick()]);
    assert_eq!(yard.ticks("all", 3).await.len(), 3);
    assert_eq!(yard.ticks("all-of-late", 2).await.len(), 2);
    let latest = yard.ticks("latest", 1).await;
    assert_eq!(latest.len(), 1);
    let due = ago(4 * MINUTE_MS).as_micros() / 60_000_000 * 60_000_000;
    assert!(latest.contains_key(&Timestamp::from_micros(due).to_string()), "{latest:?}");
    assert_eq!(yard.ticks("moment", 1).await.len(), 1);
    assert!(yard.ticked("skip").await.is_empty() && yard.ticked("none").await.is_empty());
    eventually("all to have run", || handler.runs.load(Ordering::SeqCst) == 7).await;
    assert!(yard.shows("taskyard_schedule_ticks_total{outcome=\"fired\"} 7"), "{}", yard.registry.render().unwrap());

    // A scheduler that ended after it had fired, and before that was written down.
    first.cancel();
    let left = yard.left().await;
    assert_eq!(left.len(), 6, "{left:?}");
    assert!(left.iter().all(|order| order.seen > seen || order.name == "none"), "{left:?}");
    yard.leave("all", with(&three, json!({"catch_up": "all"})), seen, 99).await;
    let again = Registry::new().unwrap();
    tokio::spawn(yard.new_scheduler(&[quick()], &again).run(CancellationToken::new()));
    eventually("them to be fired again", || fired(&again) == 3).await;
    let ids = yard.publish(vec![json!({"model": "m", "input": "behind them"})]).await;
    let mut yard = yard;
    yard.collect(&ids).await;
    assert_eq!(yard.ticks("all", 3).await.len(), 3);
    assert_eq!(handler.runs.load(Ordering::SeqCst), 7 + 1, "known by their ids, they do not run again");
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_outlive_a_store_that_lost_everything() {
    let mut yard = Yard::new(|_| {}).await;
    let first = yard.scheduler(&[quick()]);
    let api = Api::new(&yard).await;
    kept(&api).await;
    yard.put(&api, "often", task(EVERY_SECOND)).await;
    yard.put(&api, "paused", json!({"cron": EVERY_SECOND, "paused": true, "task": {"model": "m", "input": 1}})).await;
    eventually("a tick", || fired(&yard.registry) > 0).await;
    first.cancel();
    drop(api);
    yard.store = Arc::new(EmbeddedStore::in_memory(Retention::default()));
    yard.registry = Registry::new().unwrap();
    yard.worker("w", vec![(quick(), Arc::new(Obedient::default()))]);
    yard.scheduler(&[quick()]);
    yard.ticks("often", 2).await;
    let api = Api::new(&yard).await;
    let (_, shown) = api.get("/v1/schedules/often").await;
    let last = shown["last"]["task"].as_str().unwrap();
    let (_, task) = api.get(&format!("/v1/tasks/{last}")).await;
    assert_eq!((&task["metadata"]["schedule"], &task["metadata"]["tick"]), (&json!("often"), &shown["last"]["tick"]));
    let (_, shown) = api.get("/v1/schedules/paused").await;
    assert_eq!((&shown["paused"], &shown["next"]), (&json!(true), &json!([])), "{shown}");
    assert!(yard.ticked("paused").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_stays_so_whoever_takes_over() {
    let yard = Yard::new(|settings| settings.scheduler.max_held_s = 1).await;
    yard.worker("w", vec![(quick(), Arc::new(Obedient::default()))]);
    let first = yard.scheduler(&[quick()]);
    let api = Api::new(&yard).await;
    kept(&api).await;
    for name in ["kept", "changed", "resumed", "removed", "again"] {
        yard.put(&api, name, task("0 0 1 1 *")).await;
    }
    let (status, shown) = api.put("/v1/schedules/kept", task("0 0 1 1 *")).await;
    assert_eq!((status, &shown["changed"]), (200, &shown["created"]), "the same again changes nothing");
    for (name, call) in [("changed", "pause"), ("resumed", "pause"), ("resumed", "resume")] {
        let (status, shown) = api.post(&format!("/v1/schedules/{name}/{call}"), json!({})).await;
        assert_eq!((status, &shown["paused"]), (200, &json!(call == "pause")));
    }
    for name in ["removed", "again"] {
        assert_eq!(api.delete(&format!("/v1/schedules/{name}")).await.0, 200);
        assert_eq!(api.delete(&format!("/v1/schedules/{name}")).await.0, 404);
    }
    yard.put(&api, "again", task("0 0 2 2 *")).await;
    // What it was paused by stays when it is put again.
    let shown = yard.put(&api, "changed", task("0 0 3 3 *")).await;
    assert_eq!((&shown["paused"], &shown["cron"]), (&json!(true), &json!("0 0 3 3 *")));
    // They go round meanwhile, again and again, and a removed one does not come back.
    let operations = yard.broker.operations().unwrap();
    let published = || operations.published.load(Ordering::Relaxed);
    let rounds = published() + 10;
    eventually("some rounds", || published() >= rounds).await;
    first.cancel();
    let mut left: Vec<String> =
        yard.left().await.into_iter().filter(|order| !order.removed).map(|order| order.name).collect();
    left.sort();
    left.dedup();
    assert_eq!(left, ["again", "changed", "kept", "resumed"]);
    yard.scheduler(&[quick()]);
    let list = async || {
        let (_, page) = api.get("/v1/schedules").await;
        let rows = page["schedules"].as_array().cloned().unwrap_or_default();
        let row = |row: &Value| {
            (row["name"].as_str().unwrap().to_owned(), row["cron"].as_str().unwrap().to_owned(), row["paused"] == true)
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    let expected = [
        ("again", "0 0 2 2 *", false),
        ("changed", "0 0 3 3 *", true),
        ("kept", "0 0 1 1 *", false),
        ("resumed", "0 0 1 1 *", false),
    ]
    .map(|(name, cron, paused)| (name.to_owned(), cron.to_owned(), paused));
    let waiting = async {
        while list().await != expected {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("them to be as they were");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_is_left_out_while_the_one_before_runs_where_that_is_said() {
    let yard = Yard::new(|_| {}).await;
    let gate = Arc::new(Semaphore::new(0));
    let handler = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    yard.worker("w", vec![(quick(), handler.clone())]);
    yard.scheduler(&[quick()]);
    let api = Api::new(&yard).await;
    kept(&api).await;
    let body = json!({"cron": EVERY_SECOND, "overlap": "forbid", "task": {"model": "m", "input": {"do": "wait"}}});
    yard.put(&api, "alone", body).await;
    let overlapped = || {
        let text = yard.registry.render().unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix("taskyard_schedule_ticks_total{outcome=\"overlapped\"} "));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    eventually("ticks that are left out", || overlapped() >= 2).await;
    assert_eq!((handler.runs.load(Ordering::SeqCst), yard.ticked("alone").await.len()), (1, 1));
    gate.add_permits(1);
    eventually("the next one", || handler.runs.load(Ordering::SeqCst) == 2).await;
    gate.add_permits(100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_is_started_at_each_tick() {
    let yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(quick(), Arc::new(Obedient::default()))]);
    yard.scheduler(&[quick()]);
    let api = Api::new(&yard).await;
    kept(&api).await;
    let body = json!({"cron": EVERY_SECOND, "workflow": {"priority": 6, "metadata": {"of": "test"}, "tasks": [
        {"name": "a", "model": "m", "input": {"n": 1.5}},
        {"name": "b", "model": "m", "input": {"$from": "a", "path": "/output/n"}},
    ]}});
    yard.put(&api, "nightly", body).await;
    let waiting = async {
        loop {
            let (_, shown) = api.get("/v1/schedules/nightly").await;
            if let Some(id) = shown["last"]["workflow"].as_str() {
                let (status, end) = api.get(&format!("/v1/workflows/{id}?wait=30s")).await;
                assert_eq!(status, 200);
                return (end, shown);
            }
        }
    };
    let (end, shown) = tokio::time::timeout(PATIENCE, waiting).await.expect("a tick");
    assert_eq!(
        (&end["state"], &end["outputs"], &end["priority"]),
        (&json!("succeeded"), &json!({"b": 1.5}), &json!(6))
    );
    let metadata = json!({"of": "test", "schedule": "nightly", "tick": shown["last"]["tick"]});
    assert_eq!(end["metadata"], metadata);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_schedule_is_refused_with_the_field() {
    let yard = Yard::new(|settings| settings.scheduler.schedules = 2).await;
    let api = Api::new(&yard).await;
    let (status, refused) = api.put("/v1/schedules/a", task("@daily")).await;
    assert_eq!((status, &refused["code"]), (503, &json!("scheduler_unavailable")), "nobody is there to keep it");
    yard.scheduler(&[quick()]);
    kept(&api).await;
    let workflow = |more: Value| json!({"cron": "@daily", "workflow": more});
    let task_with = |more: Value| {
        let mut body = task("@daily");
        body["task"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let with = |more: Value| {
        let mut body = task("@daily");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, field) in [
        (json!({"task": {"model": "m", "input": 1}}), "cron"),
        (task("* * *"), "cron"),
        (task("0 0 30 2 *"), "cron"),
        (with(json!({"crom": 1})), "crom"),
        (with(json!({"time_zone": "Europe/Nowhere"})), "time_zone"),
        (with(json!({"time_zone": "../../etc/passwd"})), "time_zone"),
        (with(json!({"name": "b"})), "name"),
        (with(json!({"name": "B"})), "name"),
        (with(json!({"tenant": ""})), "tenant"),
        (with(json!({"workflow": {"tasks": []}})), "task"),
        (json!({"cron": "@daily"}), "task"),
        (with(json!({"catch_up": "some"})), "catch_up"),
        (with(json!({"catch_up_window_ms": 0})), "catch_up_window_ms"),
        (with(json!({"catch_up": "skip", "catch_up_window_ms": 1})), "catch_up_window_ms"),
        (with(json!({"overlap": "replace"})), "overlap"),
        (with(json!({"overlap": "forbid", "catch_up": "all"})), "overlap"),
        (with(json!({"paused": "yes"})), "paused"),
        (with(json!({"until": "2020-01-01T00:00:00Z"})), "until"),
        (task_with(json!({"modle": 1})), "task.modle"),
        (task_with(json!({"priority": 10})), "task.priority"),
        (task_with(json!({"id": Uuid::new_v4()})), "task.id"),
        (task_with(json!({"tenant": "blue"})), "task.tenant"),
        (task_with(json!({"idempotency_key": "k"})), "task.idempotency_key"),
        (task_with(json!({"deadline": "2030-01-01T00:00:00Z"})), "task.deadline"),
        (task_with(json!({"not_before": "2030-01-01T00:00:00Z"})), "task.not_before"),
        (task_with(json!({"metadata": {"tick": "1"}})), "task.metadata"),
        (workflow(json!({"tasks": [{"name": "a", "model": "m", "input": {"$from": "b"}}]})), "workflow.tasks[0].input"),
        (workflow(json!({"tasks": [], "steps": 1})), "workflow.steps"),
        (
            workflow(json!({"deadline": "2030-01-01T00:00:00Z", "tasks": [{"name": "a", "model": "m", "input": 1}]})),
            "workflow.deadline",
        ),
    ] {
        let (status, refused) = api.put("/v1/schedules/a", body.clone()).await;
        let told = (status, refused["code"].as_str(), refused["field"].as_str());
        assert_eq!(told, (422, Some("invalid_field"), Some(field)), "{body}: {refused}");
    }
    let large = json!({"cron": "@daily", "task": {"model": "m", "input": "x".repeat(70_000)}});
    let (status, refused) = api.put("/v1/schedules/a", large).await;
    assert_eq!((status, &refused["code"]), (413, &json!("too_large")));
    let (status, refused) = api.put("/v1/schedules/A%2Fb", task("@daily")).await;
    assert_eq!((status, &refused["field"]), (422, &json!("name")));

    yard.put(&api, "a", task("@daily")).await;
    yard.put(&api, "b", task("@daily")).await;
    let (status, refused) = api.put("/v1/schedules/c", task("@daily")).await;
    assert_eq!((status, &refused["code"]), (409, &json!("too_many_schedules")));
    yard.put(&api, "b", task("@hourly")).await;
    yard.put(&api, "c", with(json!({"tenant": "blue"}))).await;
    let names = async |query: &str| {
        let (status, page) = api.get(&format!("/v1/schedules{query}")).await;
        assert_eq!(status, 200, "{page}");
        let rows = page["schedules"].as_array().unwrap().iter();
        let names: Vec<String> =
            rows.map(|row| format!("{}/{}", row["tenant"].as_str().unwrap(), row["name"].as_str().unwrap())).collect();
        (names.join(" "), page["cursor"].as_str().map(str::to_owned))
    };
    assert_eq!(names("").await, ("blue/c default/a default/b".to_owned(), None));
    assert_eq!(names("?tenant=blue").await.0, "blue/c");
    assert_eq!(names("?limit=2").await, ("blue/c default/a".to_owned(), Some("default/a".to_owned())));
    assert_eq!(names("?limit=2&cursor=default%2Fa").await, ("default/b".to_owned(), None));
    for (path, status, code) in [
        ("?limit=0", 400, "invalid_parameter"),
        ("?cursor=a", 400, "invalid_parameter"),
        ("?tenant=", 400, "invalid_parameter"),
        ("?state=a", 400, "unknown_parameter"),
        ("/c", 404, "not_found"),
        ("/c?tenant=red", 404, "not_found"),
        ("/C", 404, "not_found"),
    ] {
        let (got, problem) = api.get(&format!("/v1/schedules{path}")).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_the_queue_that_is_no_schedule_is_a_dead_letter() {
    let yard = Yard::new(|_| {}).await;
    yard.broker.declare(&built::shard_queues(&yard.topology, 1)).await.unwrap();
    let bad = [r#"{"v": 2}"#, "no JSON"].map(|body| Message::to_queue(yard.topology.schedules(), body));
    for answer in yard.broker.publish(bad.into()).await {
        answer.unwrap();
    }
    // One of a field that this scheduler does not know is kept, and told of.
    yard.leave(
        "later",
        json!({"cron": EVERY_SECOND, "of_later": 1, "task": {"model": "m", "input": 1}}),
        Timestamp::now(),
        1,
    )
    .await;
    let first = yard.scheduler(&[quick()]);
    assert_eq!(yard.dead(2).await, ["unreadable", "unsupported_version"]);
    let api = Api::new(&yard).await;
    let (_, shown) = api.get("/v1/schedules/later").await;
    assert_eq!(
        (&shown["problem"], &shown["next"]),
        (&json!("of_later: is no field of a schedule"), &json!([])),
        "{shown}"
    );
    first.cancel();
    assert_eq!(yard.left().await.len(), 1);
}

/// A scheduler may end between the two: the new one is confirmed, and the old one is not acked.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_messages_of_a_schedule_the_later_revision_holds() {
    let yard = Yard::new(|_| {}).await;
    let (seen, rare) = (before(Timestamp::now(), 5_000), "0 0 1 1 *");
    yard.leave("a", task(EVERY_SECOND), seen, 1).await;
    yard.leave("a", task(rare), seen, 2).await;
    yard.leave("b", task(rare), seen, 2).await;
    yard.leave("b", task(EVERY_SECOND), seen, 1).await;
    let first = yard.scheduler(&[quick()]);
    let api = Api::new(&yard).await;
    kept(&api).await;
    for name in ["a", "b"] {
        let (_, shown) = api.get(&format!("/v1/schedules/{name}")).await;
        assert_eq!((&shown["cron"], &shown["last"]), (&json!(rare), &Value::Null), "{shown}");
    }
    first.cancel();
    let left: Vec<(String, u64)> = yard.left().await.into_iter().map(|order| (order.name, order.revision)).collect();
    assert_eq!(left, [("a".to_owned(), 2), ("b".to_owned(), 2)], "the others are let go");
    assert_eq!(fired(&yard.registry), 0);
}

/// A command as a user types it: exit code, standard output and error.
async fn command(api: &Api, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_taskyard"))
        .args(arguments)
        .args(["--api", &api.base])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_added_and_changed_from_the_command_line() {
    let yard = Yard::new(|_| {}).await;
    yard.scheduler(&[quick()]);
    let api = Api::new(&yard).await;
    kept(&api).await;
    let add = [
        "schedule",
        "add",
        "nightly",
        "--cron",
        "30 2 * * *",
        "--time-zone",
        "Europe/Berlin",
        "--model",
        "m",
        "--input",
        r#"{"n": 1}"#,
        "--catch-up",
        "all",
        "--catch-up-window",
        "90m",
        "-o",
        "json",
    ];
    let (code, out, err) = command(&api, &add, "").await;
    assert_eq!(code, 0, "{err}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&shown["task"], &shown["catch_up_window_ms"]),
        (&json!({"model": "m", "input": {"n": 1}}), &json!(5_400_000))
    );
    assert_eq!((&shown["catch_up"], &shown["time_zone"]), (&json!("all"), &json!("Europe/Berlin")));
    let workflow = r#"{"tasks": [{"name": "a", "model": "m", "input": 1}]}"#;
    let add = ["schedule", "add", "weekly", "--cron", "@weekly", "--workflow", "-", "--overlap", "forbid", "--paused"];
    let (code, out, err) = command(&api, &add, workflow).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("weekly") && out.contains("forbid") && out.contains(workflow), "{out}");
    let (_, out, _) = command(&api, &["schedule", "list"], "").await;
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows.len(), rows[1][0], rows[2][0]), (3, "nightly", "weekly"), "{out}");
    for (call, paused) in [("pause", true), ("resume", false)] {
        let (code, out, _) = command(&api, &["schedule", call, "nightly", "weekly", "-o", "jsonl"], "").await;
        let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((code, rows.len(), rows.iter().all(|row| row["paused"] == paused)), (0, 2, true), "{out}");
    }
    let (code, out, err) = command(&api, &["schedule", "remove", "absent", "nightly"], "").await;
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("absent") && out.contains("nightly"), "{out}{err}");
    assert_eq!(command(&api, &["schedule", "show", "nightly"], "").await.0, 4);
    let (code, out, _) = command(&api, &["schedule", "show", "weekly"], "").await;
    assert_eq!(code, 0);
    assert!(out.contains("2") && out.contains("next"), "{out}");
    let (code, _, err) =
        command(&api, &["schedule", "add", "a", "--cron", "61 * * * *", "--model", "m", "--input", "1"], "").await;
    assert_eq!(code, 2);
    assert!(err.contains("minute") && err.contains("invalid_field"), "{err}");
    assert_eq!(command(&api, &["schedule", "add", "a", "--cron", "@daily"], "").await.0, 2, "nothing to publish");
    assert_eq!(
        command(&api, &["schedule", "add", "A b", "--cron", "@daily", "--model", "m", "--input", "1"], "").await.0,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_its_keys_tenants_and_deployments_are_not_everybodys() {
    let yard = Yard::new(|_| {}).await;
    yard.scheduler(&[quick()]);
    let keys = [("blue", "blue", false), ("red", "red", false), ("all", "*", true)].map(|(name, tenant, is_admin)| {
        let key = NewKey::generate().unwrap();
        let mut scopes = ["submit", "read", "control"].map(str::to_owned).to_vec();
        scopes.extend(is_admin.then(|| "admin".to_owned()));
        let settings = KeySettings { sha256: key.sha256(), tenant: tenant.to_owned(), scopes, expires: None };
        (name, key, settings)
    });
    let settings = keys.iter().map(|(name, _, settings)| ((*name).to_owned(), settings.clone())).collect();
    let api = Api::with_keys(&yard, Keys::new(&settings).unwrap()).await;
    let text =
        |who: &str| keys.iter().find(|(name, ..)| *name == who).map(|(_, key, _)| key.text().to_owned()).unwrap();
    let call = async |who: &str, method: &str, path: &str, body: Option<Value>| {
        let (status, answer) = api.call(method, &format!("/v1/schedules{path}"), &text(who), body).await;
        let code = answer["code"].as_str().or(answer["tenant"].as_str()).unwrap_or_default().to_owned();
        (status, code)
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    let ready = async { while call("all", "GET", "", None).await.0 != 200 {} };
    tokio::time::timeout(PATIENCE, ready).await.expect("a scheduler");
    let of = |tenant: &str| {
        let mut body = task("@daily");
        body["tenant"] = json!(tenant);
        Some(body)
    };
    assert_eq!(call("blue", "PUT", "/a", Some(task("@daily"))).await, is(201, "blue"));
    assert_eq!(call("blue", "PUT", "/b", of("red")).await, is(403, "forbidden"));
    assert_eq!(call("all", "PUT", "/a", Some(task("@daily"))).await, is(201, "default"));
    assert_eq!(call("all", "PUT", "/a", of("red")).await, is(201, "red"));
    // One of another tenant is as one that is not there.
    assert_eq!(call("blue", "DELETE", "/a?tenant=red", None).await, is(403, "forbidden"));
    assert_eq!(call("blue", "POST", "/a/pause", None).await, is(200, "blue"));
    assert_eq!(call("red", "DELETE", "/a", None).await, is(200, "red"));
    assert_eq!(call("red", "GET", "/a", None).await, is(404, "not_found"));
    assert_eq!(call("all", "GET", "/a?tenant=blue", None).await, is(200, "blue"));
    let (_, page) = api.call("GET", "/v1/schedules", &text("blue"), None).await;
    assert_eq!((page["schedules"].as_array().unwrap().len(), &page["schedules"][0]["tenant"]), (1, &json!("blue")));
    assert_eq!(call("blue", "GET", "?tenant=default", None).await, is(403, "forbidden"));
    for body in [
        json!({"cron": "@daily", "task": {"model": "m", "kind": "deployment", "input": {"action": "unpin"}}}),
        json!({"cron": "@daily", "workflow": {"tasks": [
            {"name": "a", "model": "m", "input": 1},
            {"name": "b", "model": "m", "kind": "deployment", "input": {"action": "unpin"}},
        ]}}),
    ] {
        assert_eq!(call("blue", "PUT", "/deploy", Some(body.clone())).await, is(403, "forbidden"));
        assert_eq!(call("all", "PUT", "/deploy", Some(body)).await.1, "default");
    }
}
