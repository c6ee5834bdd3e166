//! What is asked of tasks that were accepted: to be cancelled, to have another priority, to be explained; and of models: to be
//! paused. Over HTTP, with scheduler and workers.

use std::collections::HashMap;

use serde_json::{Value, json};
use taskyard_producer::{Gateway, GatewayParts};
use taskyard_shared::process::keys::Keys;
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;

use super::*;

pub struct Api {
    http: reqwest::Client,
    pub base: String,
    _stop: DropGuard,
}

impl Api {
    pub async fn new(yard: &Yard) -> Self {
        Self::with_keys(yard, Keys::default()).await
    }

    pub async fn with_keys(yard: &Yard, keys: Keys) -> Self {
        let parts = GatewayParts {
            broker: yard.broker.clone(),
            store: yard.store.clone(),
            topology: yard.topology.clone(),
            settings: yard.settings.gateway.clone(),
            registry: yard.registry.clone(),
            keys,
            artifacts: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(Gateway::new(parts).unwrap().run(listener, stop.clone()));
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { http: reqwest::Client::builder().no_proxy().build().unwrap(), base, _stop: stop.drop_guard() }
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.http.post(format!("{}{path}", self.base)).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    pub async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.http.put(format!("{}{path}", self.base)).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// A call with a key.
    pub async fn call(&self, method: &str, path: &str, key: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.base)).bearer_auth(key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        let answer = self.http.delete(format!("{}{path}", self.base)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// A stream of events, behind the last that was seen.
    pub async fn events(&self, id: &Uuid, last: Option<&str>) -> reqwest::Response {
        let mut request = self.http.get(format!("{}/v1/tasks/{id}/events", self.base));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        request.send().await.unwrap()
    }

    /// Status and outcome.
    pub async fn cancel(&self, id: &Uuid) -> (u16, String) {
        let (status, body) = self.post(&format!("/v1/tasks/{id}/cancel"), json!({})).await;
        (status, body["outcome"].as_str().unwrap_or_default().to_owned())
    }

    async fn reprioritize(&self, id: &Uuid, priority: u8) -> (u16, String) {
        let (status, body) = self.post(&format!("/v1/tasks/{id}/reprioritize"), json!({"priority": priority})).await;
        (status, body["outcome"].as_str().unwrap_or_default().to_owned())
    }

    pub async fn explain(&self, id: &Uuid) -> Value {
        let (status, body) = self.get(&format!("/v1/tasks/{id}/explain")).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Asks until the reason is this one.
    pub async fn explained(&self, id: &Uuid, reason: &str) -> Value {
        let asking = async {
            loop {
                // Not found until it was read.
                let (_, body) = self.get(&format!("/v1/tasks/{id}/explain")).await;
                if body["reason"] == reason {
                    return body;
                }
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{id} never waits for {reason}"))
    }
}

fn is(status: u16, outcome: &str) -> (u16, String) {
    (status, outcome.to_owned())
}

/// A model with one slot, whose tasks run until they are let go.
fn gated() -> (Arc<Semaphore>, Arc<Obedient>) {
    let gate = Arc::new(Semaphore::new(0));
    (gate.clone(), Arc::new(Obedient { gate: Some(gate), ..Obedient::default() }))
}

/// Calls that last: an attempt claims its task before it begins.
fn long(name: &str) -> ModelSpec {
    ModelSpec { expected_ms: Some(1_000.0), ..spec(name) }
}

fn task(do_what: &str) -> Value {
    json!({"model": "m", "input": {"do": do_what}})
}

async fn runs(handler: &Obedient, count: usize) {
    eventually("runs", || handler.runs.load(Ordering::SeqCst) >= count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_says_what_came_of_it_in_every_state() {
    let mut yard = Yard::new(|_| {}).await;
    let (gate, handler) = gated();
    yard.worker("w", vec![(long("m"), handler.clone())]);
    yard.scheduler(&[long("m"), long("absent")]);
    let api = Api::new(&yard).await;

    let running = yard.publish(vec![task("wait")]).await;
    runs(&handler, 1).await;
    let waiting = yard
        .publish(vec![
            json!({"model": "absent", "input": {}}),
            json!({"model": "m", "input": {}, "delay_ms": 3_600_000}),
            json!({"model": "absent", "input": {}, "priority": 9}),
        ])
        .await;
    for (at, id) in waiting.iter().enumerate() {
        api.explained(id, if at == 1 { "not_before" } else { "no_worker" }).await;
        assert_eq!(api.cancel(id).await, is(200, "cancelled"), "task {at}");
        assert_eq!(api.cancel(id).await, is(200, "cancelled"), "again, task {at}");
        assert_eq!(api.get(&format!("/v1/tasks/{id}")).await.1["state"], "cancelled");
    }
    let done = yard.publish(vec![json!({"model": "absent", "input": {}, "deadline_ms": 1})]).await;
    yard.collect(&done).await;
    yard.collect(&waiting).await;
    for id in &waiting {
        assert_eq!((yard.result(id).state, yard.code(id)), (State::Cancelled, "cancelled"), "who published it is told");
    }
    assert_eq!(api.cancel(&done[0]).await, is(409, "already_finished"));
    assert_eq!(api.cancel(&Uuid::new_v4()).await, is(404, "not_found"));
    assert_eq!(api.post("/v1/tasks/none/cancel", json!({})).await.0, 404);

    // What runs is stopped at the next renewal of its lease.
    assert_eq!(api.cancel(&running[0]).await, is(202, "requested"));
    assert_eq!(api.cancel(&running[0]).await.0 / 100, 2, "asked again, it is on its way or done");
    yard.collect(&running).await;
    assert_eq!((yard.result(&running[0]).state, yard.code(&running[0])), (State::Cancelled, "cancelled"));
    assert_eq!(api.cancel(&running[0]).await, is(200, "cancelled"));
    // Its slot is free again.
    let next = yard.publish(vec![task("echo")]).await;
    yard.collect(&next).await;
    assert_eq!(yard.result(&next[0]).state, State::Succeeded);
    assert_eq!(handler.runs.load(Ordering::SeqCst), 2, "nothing that was cancelled while it waited ran");
    assert_eq!(gate.available_permits(), 0);
    let metrics = yard.registry.render().unwrap();
    for (model, count) in [("m", 2), ("absent", 2)] {
        let line = format!(r#"taskyard_tasks_finished_total{{model="{model}",outcome="cancelled"}} {count}"#);
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatched_task_that_has_not_begun_is_not_begun() {
    let mut yard = Yard::new(|_| {}).await;
    let (gate, handler) = gated();
    // Two slots by its word, of which the scheduler fills both, and a worker that is busy with the first.
    yard.worker("w", vec![(long("m"), handler.clone())]);
    yard.scheduler(&[long("m")]);
    let api = Api::new(&yard).await;
    let ids = yard.publish(vec![task("wait"), task("wait"), task("wait")]).await;
    runs(&handler, 1).await;
    // One more than there are slots is sent ahead of them, at least until it is known that calls last long.
    let mut states = HashMap::new();
    for id in &ids {
        states.insert(*id, api.cancel(id).await);
    }
    gate.add_permits(3);
    yard.collect(&ids).await;
    for id in &ids {
        let (_, outcome) = &states[id];
        let state = yard.result(id).state;
        match outcome.as_str() {
            "cancelled" => assert_eq!(state, State::Cancelled),
            "requested" => assert!(matches!(state, State::Cancelled | State::Succeeded)),
            other => panic!("{other}"),
        }
    }
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1, "of what waited and what was sent ahead nothing ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_scheduler_has_read_is_cancelled_too() {
    let mut yard = Yard::new(|settings| settings.scheduler.window_tasks = 2).await;
    let (gate, handler) = gated();
    yard.worker("w", vec![(long("m"), handler.clone())]);
    let api = Api::new(&yard).await;
    // Nobody is active: over HTTP they have records, over AMQP not yet.
    let mut recorded = Vec::new();
    for _ in 0..12 {
        let (status, body) = api.post("/v1/tasks", task("wait")).await;
        assert_eq!(status, 202, "{body}");
        recorded.push(body["id"].as_str().unwrap().parse::<Uuid>().unwrap());
    }
    let unrecorded = yard.publish(vec![task("wait"), task("wait")]).await;
    assert_eq!(api.explain(&recorded[0]).await["reason"], "no_scheduler");
    assert_eq!(api.cancel(&recorded[0]).await, is(202, "requested"), "nobody can say that it is done");
    assert_eq!(api.cancel(&unrecorded[0]).await, is(404, "not_found"), "nobody has read it");

    let scheduler = yard.scheduler(&[long("m")]);
    runs(&handler, 1).await;
    // The window is full: the last ones are in the broker, which has them back.
    let last = &recorded[11];
    let explained = api.explained(last, "paged").await;
    assert_eq!(explained["state"], "queued");
    assert_eq!(api.cancel(last).await, is(200, "cancelled"));
    assert_eq!(api.cancel(last).await, is(200, "cancelled"));
    // Where that made room, intake may have read another meanwhile.
    let answer = api.cancel(&unrecorded[1]).await;
    assert!([is(404, "not_found"), is(200, "cancelled")].contains(&answer), "{answer:?}");
    gate.add_permits(100);
    yard.collect(&unrecorded).await;
    for id in &unrecorded {
        assert_eq!(yard.result(id).state, State::Cancelled, "asked before it was read");
    }
    for (at, id) in recorded.iter().enumerate() {
        let (_, body) = api.get(&format!("/v1/tasks/{id}?wait=30s")).await;
        assert_eq!(body["state"], if at == 0 || at == 11 { "cancelled" } else { "succeeded" }, "{at}: {body}");
    }
    assert_eq!(handler.runs.load(Ordering::SeqCst), 10);
    scheduler.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_priority_overtakes_a_backlog_and_survives_the_scheduler() {
    let mut yard = Yard::new(|_| {}).await;
    let (gate, handler) = gated();
    yard.worker("w", vec![(long("m"), handler.clone())]);
    let first = yard.scheduler(&[long("m")]);
    let api = Api::new(&yard).await;
    let running = yard.publish(vec![task("wait")]).await;
    runs(&handler, 1).await;
    api.post("/v1/queues/m/pause", json!({})).await;
    let ids = yard.publish((0..40).map(|_| task("echo")).collect()).await;
    let delayed = yard.publish(vec![json!({"model": "m", "input": {}, "delay_ms": 3_600_000})]).await;
    let (early, late) = (&ids[38], &ids[39]);
    assert_eq!(api.explained(early, "paused").await["waiting"]["ahead_in_lane"], 38);
    api.explained(&delayed[0], "not_before").await;
    assert_eq!(api.reprioritize(early, 9).await, is(200, "reprioritized"));
    assert_eq!(api.reprioritize(&delayed[0], 9).await, is(200, "reprioritized"));
    assert_eq!(api.get(&format!("/v1/tasks/{early}")).await.1["priority"], 9, "the record says so");
    let explained = api.explain(early).await;
    assert_eq!((&explained["priority"], &explained["waiting"]["ahead_in_lane"]), (&json!(9), &json!(0)));

    assert_eq!(api.reprioritize(&running[0], 9).await, is(409, "already_dispatched"));
    assert_eq!(api.get(&format!("/v1/tasks/{}", running[0])).await.1["priority"], 4, "it stays");
    assert_eq!(api.reprioritize(&Uuid::new_v4(), 9).await, is(404, "not_found"));
    for (body, status) in [(json!({"priority": 10}), 422), (json!({}), 422), (json!({"priority": 1, "x": 2}), 422)] {
        assert_eq!(api.post(&format!("/v1/tasks/{late}/reprioritize"), body).await.0, status);
    }

    // A new scheduler reads the tasks again, as they were published.
    first.cancel();
    yard.scheduler(&[long("m")]);
    api.explained(late, "paused").await;
    assert_eq!(api.explained(early, "paused").await["priority"], 9);
    assert_eq!(api.explained(&delayed[0], "not_before").await["priority"], 9);
    assert_eq!(api.reprioritize(late, 8).await, is(200, "reprioritized"));
    api.post("/v1/queues/m/resume", json!({})).await;
    gate.add_permits(1);
    yard.collect(&ids).await;
    let mut order: Vec<(Option<taskyard_shared::Timestamp>, Uuid)> =
        ids.iter().map(|id| (yard.result(id).timings.started, *id)).collect();
    order.sort();
    let place = |id: &Uuid| order.iter().position(|(_, other)| other == id).unwrap();
    assert!(place(early) < place(late), "{} {}", place(early), place(late));
    // On a machine that is short of time one of the others has been seen to begin before it, and never more.
    assert!(place(late) <= 2, "the last that came is begun as number {}", place(late));
    assert_eq!(yard.result(early).priority.get(), 9);
    assert_eq!(api.reprioritize(early, 1).await, is(409, "already_finished"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_model_waits_across_a_restart() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone()), (spec("other"), handler.clone())]);
    let first = yard.scheduler(&[spec("m"), spec("other")]);
    let api = Api::new(&yard).await;
    let warm = yard.publish(vec![task("echo")]).await;
    yard.collect(&warm).await;

    let paused = json!({"model": "m", "paused": true, "in_force": true});
    for _ in 0..2 {
        assert_eq!(api.post("/v1/queues/m/pause", json!({})).await, (200, paused.clone()));
    }
    assert_eq!(api.post("/v1/queues/nobody/pause", json!({})).await.0, 404);
    let ids = yard.publish(vec![task("echo"), task("echo"), task("echo")]).await;
    let other = yard.publish(vec![json!({"model": "other", "input": {}})]).await;
    yard.collect(&other).await;
    for id in &ids {
        let explained = api.explained(id, "paused").await;
        assert!(explained["message"].as_str().unwrap().contains("m is paused"), "{explained}");
    }
    let (_, queues) = api.get("/v1/queues").await;
    let shown: Vec<_> =
        queues["models"].as_array().unwrap().iter().map(|row| (&row["model"], &row["paused"])).collect();
    assert_eq!(shown, [(&json!("m"), &json!(true)), (&json!("other"), &json!(false))]);

    first.cancel();
    yard.scheduler(&[spec("m"), spec("other")]);
    let other = yard.publish(vec![json!({"model": "other", "input": {}})]).await;
    yard.collect(&other).await;
    api.explained(&ids[0], "paused").await;
    assert_eq!(api.cancel(&ids[0]).await, is(200, "cancelled"), "what is paused can be cancelled");
    assert_eq!(handler.runs.load(Ordering::SeqCst), 3);
    let resumed = json!({"model": "m", "paused": false, "in_force": true});
    assert_eq!(api.post("/v1/queues/m/resume", json!({})).await, (200, resumed));
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[1]).state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_cancelled_and_reprioritized_by_what_they_have_in_common() {
    let yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    let registries = [Registry::new().unwrap(), Registry::new().unwrap()];
    for registry in &registries {
        tokio::spawn(yard.new_scheduler(&[spec("m")], registry).run(CancellationToken::new()));
    }
    let api = Api::new(&yard).await;
    let of =
        |tenant: &str, label: &str| json!({"model": "m", "input": {}, "tenant": tenant, "metadata": {"run": label}});
    let mut bodies: Vec<Value> = (0..60).map(|_| of("a", "1")).collect();
    bodies.extend((0..30).map(|_| of("a", "2")));
    bodies.extend((0..10).map(|_| of("b", "2")));
    let ids = yard.publish(bodies).await;
    for id in &ids {
        api.explained(id, "no_worker").await;
    }
    assert_eq!(api.post("/v1/tasks/cancel", json!({})).await.0, 422, "not everything by mistake");
    assert_eq!(api.post("/v1/tasks/cancel", json!({"state": "failed"})).await.0, 422);
    assert_eq!(api.post("/v1/tasks/cancel", json!({"model": "m", "cursor": "no"})).await.0, 400);
    assert_eq!(api.post("/v1/tasks/cancel", json!({"model": "m", "wrong": 1})).await.0, 422);
    let (status, body) = api.post("/v1/tasks/reprioritize", json!({"tenant": "b", "priority": 9})).await;
    assert_eq!((status, &body["outcomes"]), (200, &json!({"reprioritized": 10})), "{body}");
    assert_eq!(api.explain(&ids[99]).await["priority"], 9);
    // In pieces.
    let (mut cursor, mut cancelled, mut calls) = (Value::Null, 0, 0);
    loop {
        let mut body = json!({"tenant": "a", "metadata": {"run": "1"}, "limit": 25});
        if !cursor.is_null() {
            body["cursor"] = cursor;
        }
        let (status, body) = api.post("/v1/tasks/cancel", body).await;
        assert_eq!(status, 200, "{body}");
        cancelled += body["outcomes"]["cancelled"].as_u64().unwrap_or(0);
        assert!(body["matched"].as_u64().unwrap() <= 25);
        (cursor, calls) = (body["cursor"].clone(), calls + 1);
        if cursor.is_null() || calls > 20 {
            break;
        }
    }
    assert_eq!(cancelled, 60, "in {calls} calls");
    for (at, id) in ids.iter().enumerate() {
        let state = api.get(&format!("/v1/tasks/{id}")).await.1["state"].clone();
        assert_eq!(state, if at < 60 { "cancelled" } else { "queued" }, "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_each_task_ends_once_and_every_answer_is_true() {
    const TASKS: usize = 3_000;
    let mut yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    let handler = Arc::new(Obedient::default());
    let model = ModelSpec { slots: 4, ..spec("m") };
    yard.worker("w1", vec![(model.clone(), handler.clone())]);
    yard.worker("w2", vec![(model.clone(), handler.clone())]);
    let registries = [Registry::new().unwrap(), Registry::new().unwrap()];
    for registry in &registries {
        tokio::spawn(yard.new_scheduler(std::slice::from_ref(&model), registry).run(CancellationToken::new()));
    }
    let api = Arc::new(Api::new(&yard).await);
    let ids = yard.publish((0..TASKS).map(|_| task("echo")).collect()).await;
    // Every third is cancelled, by eight callers at once, while all of them run.
    let wanted: Vec<Uuid> = ids.iter().copied().step_by(3).collect();
    let callers = wanted.chunks(wanted.len().div_ceil(8)).map(|part| {
        let (api, part) = (api.clone(), part.to_vec());
        tokio::spawn(async move {
            let mut answers = Vec::new();
            for id in part.into_iter().rev() {
                answers.push((id, api.cancel(&id).await.1));
            }
            answers
        })
    });
    let callers: Vec<_> = callers.collect();
    yard.collect(&ids).await;
    let mut counts: HashMap<String, usize> = HashMap::new();
    for caller in callers {
        for (id, outcome) in caller.await.unwrap() {
            let record = api.get(&format!("/v1/tasks/{id}")).await.1;
            let state = record["state"].as_str().unwrap();
            match outcome.as_str() {
                "cancelled" => assert_eq!(state, "cancelled", "{record}"),
                "already_finished" => assert_eq!(state, "succeeded", "{record}"),
                "requested" | "not_found" => assert!(matches!(state, "cancelled" | "succeeded"), "{record}"),
                other => panic!("{other}"),
            }
            *counts.entry(outcome).or_default() += 1;
        }
    }
    let mut cancelled = 0;
    for id in &ids {
        let told = &yard.told[id];
        assert!(told.iter().all(|result| result.state == told[0].state), "{told:?}");
        let record = api.get(&format!("/v1/tasks/{id}")).await.1;
        assert_eq!(record["state"], told[0].state.as_str());
        cancelled += usize::from(told[0].state == State::Cancelled);
    }
    println!("{counts:?}, {cancelled} cancelled, {} runs", handler.runs.load(Ordering::SeqCst));
    assert!(counts.get("cancelled").is_some_and(|count| *count > 0), "{counts:?}");
    assert!(cancelled >= counts["cancelled"]);
    assert!(handler.runs.load(Ordering::SeqCst) >= TASKS - cancelled);
}
