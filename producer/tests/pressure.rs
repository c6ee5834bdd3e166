//! Push-back over HTTP: what the schedulers say that they would refuse comes back as 429, and nothing is accepted.

mod yard;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use taskyard_shared::messages::COUNTED_HEADER;
use taskyard_shared::signal::{ModelSignal, Overload, Rate, Signal, TenantSignal, Times, VERSION};
use taskyard_shared::store::Store;
use taskyard_shared::{Kind, TaskId, Timestamp};
use yard::{RunningGateway, Yard, eventually};

fn signal(shard: u32, shards: u32) -> Signal {
    Signal { v: VERSION, shard, shards, at: Timestamp::now(), models: BTreeMap::new(), tenants: BTreeMap::new() }
}

fn model(capabilities: &[&str]) -> ModelSignal {
    let capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
    ModelSignal { capabilities, waiting: 7, drain_seconds: Some(3.0), workers_wanted: 1.25, overload: None }
}

/// Tasks take as many seconds as their cost says, and one without; what waits is worth 5 a second.
fn overloaded(capabilities: &[&str], retry_after_s: u32) -> ModelSignal {
    let times = BTreeMap::from([(Kind::Prediction, Times::of(|cost| cost.unwrap_or(1.0)))]);
    let overload = Some(Overload { least_worth: 5.0, retry_after_s, tenants: None, times });
    ModelSignal { drain_seconds: Some(99.0), overload, ..model(capabilities) }
}

async fn say(yard: &Yard, signal: Signal) {
    let bytes = serde_json::to_vec(&signal).unwrap();
    yard.store.put(&Signal::key(signal.shard), bytes.into()).await.unwrap();
}

/// Says it again and again, until the gateway has heard: the model `heard` is shown as the last signal has it.
async fn heard(yard: &Yard, gateway: &RunningGateway, mut signals: Vec<Signal>, workers: f64) {
    let marker = ModelSignal { workers_wanted: workers, ..ModelSignal::default() };
    yard.store
        .announce(&[serde_json::from_value(
            json!({"name": "heard", "version": "1", "handler": "simulated", "slots": 1,
            "timeout_ms": 1, "max_attempts": 1, "max_batch": 1, "max_delay_ms": 0, "memory_mb": 0}),
        )
        .unwrap()])
        .await
        .unwrap();
    signals.last_mut().unwrap().models.insert("heard".into(), marker);
    for signal in signals {
        say(yard, signal).await;
    }
    eventually("the gateway hears it", || async {
        queue(gateway, "heard").await.is_some_and(|queue| queue["workers_wanted"] == workers)
    })
    .await;
}

async fn queue(gateway: &RunningGateway, model: &str) -> Option<Value> {
    let page = gateway.get("/v1/queues").await.json;
    page["models"].as_array()?.iter().find(|queue| queue["model"] == model).cloned()
}

#[tokio::test]
async fn what_is_worth_too_little_is_refused_before_it_is_accepted() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let task = |priority: u8| json!({"model": "slow@1", "input": 1, "priority": priority});
    assert_eq!(gateway.post("/v1/tasks", &task(0)).await.status, 202, "nobody has said anything");

    let mut one = signal(0, 1);
    one.models.insert("slow".into(), overloaded(&[], 17));
    heard(&yard, &gateway, vec![one], 3.0).await;
    let before = yard.depth(&yard.topology.intake()).await;
    let refused = gateway.post("/v1/tasks", &task(4)).await;
    assert_eq!((refused.status, &refused.json["code"]), (429, &json!("overloaded")), "{refused:?}");
    assert_eq!(refused.header("content-type"), "application/problem+json");
    assert_eq!((refused.header("retry-after"), &refused.json["retry_after_s"]), ("17", &json!(17)));
    let id = TaskId::new();
    let path = format!("/v1/tasks/{}", id.0);
    assert_eq!(gateway.put(&path, &task(4)).await.status, 429);
    assert_eq!(gateway.get(&path).await.status, 404, "it left no record");
    assert_eq!(yard.depth(&yard.topology.intake()).await, before, "nor a message");

    assert_eq!(gateway.post("/v1/tasks", &task(9)).await.status, 202, "urgent work comes in");
    let brief = json!({"model": "slow", "input": 1, "priority": 0, "cost": 0.01});
    assert_eq!(gateway.post("/v1/tasks", &brief).await.status, 202, "and what is done in no time");
    assert_eq!(gateway.post("/v1/tasks", &json!({"model": "other", "input": 1})).await.status, 202);
    assert_eq!(gateway.metric("taskyard_gateway_tasks_pushed_back_total{code=\"overloaded\"}").await, Some(2.0));

    // The same id, once it is over.
    heard(&yard, &gateway, vec![signal(0, 1)], 4.0).await;
    assert_eq!(gateway.put(&path, &task(4)).await.status, 202);
}

#[tokio::test]
async fn those_that_do_not_crowd_the_model_come_in() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut one = signal(0, 1);
    let mut crowded = overloaded(&[], 17);
    crowded.overload.as_mut().unwrap().tenants = Some(vec!["flood".into()]);
    one.models.insert("slow".into(), crowded);
    heard(&yard, &gateway, vec![one], 3.0).await;
    let task = |tenant: &str| json!({"model": "slow", "input": 1, "priority": 0, "tenant": tenant});
    assert_eq!(gateway.post("/v1/tasks", &task("flood")).await.status, 429);
    assert_eq!(gateway.post("/v1/tasks", &task("quiet")).await.status, 202);
}

#[tokio::test]
async fn a_task_that_was_accepted_is_known_however_much_waits() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let path = format!("/v1/tasks/{}", TaskId::new().0);
    let body = json!({"model": "slow", "input": 1});
    assert_eq!(gateway.put(&path, &body).await.status, 202);
    let mut one = signal(0, 1);
    one.models.insert("slow".into(), overloaded(&[], 17));
    heard(&yard, &gateway, vec![one], 3.0).await;
    assert_eq!(gateway.put(&path, &body).await.status, 202, "it is not accepted again, and not refused");
}

#[tokio::test]
async fn each_line_of_a_batch_is_answered_by_itself() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut one = signal(0, 1);
    one.models.insert("slow".into(), overloaded(&[], 5));
    heard(&yard, &gateway, vec![one], 3.0).await;
    let task = |model: &str, priority: u8| json!({"model": model, "input": 1, "priority": priority});
    let batch = json!([task("slow", 0), task("quick", 0), task("slow", 9)]);
    let got = gateway.post("/v1/batches", &batch).await;
    let statuses: Vec<u64> = got.json.as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!((got.status, statuses), (202, vec![429, 202, 202]), "{got:?}");
    assert_eq!(got.json[0]["problem"]["retry_after_s"], 5);
    let got = gateway.post("/v1/batches", &json!([task("slow", 0), task("slow", 1)])).await;
    assert_eq!((got.status, got.header("retry-after")), (429, "5"));
}

#[tokio::test]
async fn a_capability_is_refused_when_all_that_run_it_are_overloaded() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let task = json!({"capability": "text", "input": 1, "priority": 0});
    let mut one = signal(0, 1);
    one.models.insert("first".into(), overloaded(&["text"], 9));
    one.models.insert("second".into(), model(&["text", "more"]));
    one.models.insert("nobody-runs-it".into(), ModelSignal { drain_seconds: None, ..model(&["text"]) });
    heard(&yard, &gateway, vec![one.clone()], 3.0).await;
    assert_eq!(gateway.post("/v1/tasks", &task).await.status, 202);

    one.at = Timestamp::now();
    one.models.insert("second".into(), overloaded(&["text", "more"], 4));
    heard(&yard, &gateway, vec![one], 4.0).await;
    let refused = gateway.post("/v1/tasks", &task).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "4"), "when the first of them is free");
}

#[tokio::test]
async fn the_worst_of_the_shards_counts_and_workers_add_up() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let (mut one, mut other) = (signal(0, 2), signal(1, 2));
    yard.store
        .announce(&[serde_json::from_value(json!({"name": "slow", "version": "1", "handler": "simulated", "slots": 1,
            "timeout_ms": 1, "max_attempts": 1, "max_batch": 1, "max_delay_ms": 0, "memory_mb": 0}))
        .unwrap()])
        .await
        .unwrap();
    one.models.insert("slow".into(), model(&[]));
    other.models.insert("slow".into(), overloaded(&[], 8));
    heard(&yard, &gateway, vec![one, other], 3.0).await;
    let refused = gateway.post("/v1/tasks", &json!({"model": "slow", "input": 1, "priority": 0})).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "8"));
    let shown = queue(&gateway, "slow").await.unwrap();
    assert_eq!((&shown["workers_wanted"], &shown["drain_seconds"]), (&json!(3.0), &json!(99.0)), "1.25 twice: {shown}");
    assert_eq!(shown["overloaded"], true);
}

#[tokio::test]
async fn a_signal_that_is_too_old_refuses_nothing() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut old = signal(0, 2);
    old.at = "2026-01-01T00:00:00Z".parse().unwrap();
    old.models.insert("slow".into(), overloaded(&[], 8));
    heard(&yard, &gateway, vec![old, signal(1, 2)], 3.0).await;
    assert_eq!(gateway.post("/v1/tasks", &json!({"model": "slow", "input": 1})).await.status, 202);
    let shown = queue(&gateway, "slow").await;
    assert!(shown.is_none_or(|queue| queue["workers_wanted"].is_null()));
}

#[tokio::test]
async fn a_tenant_that_has_too_many_waiting_is_refused() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let tenant = |waiting| TenantSignal { waiting, max_waiting: Some(10), rate: None };
    let (mut one, mut other) = (signal(0, 2), signal(1, 2));
    one.tenants.insert("shop".into(), tenant(4));
    other.tenants.insert("shop".into(), tenant(3));
    heard(&yard, &gateway, vec![one, other], 3.0).await;
    let task = |tenant: &str| json!({"model": "m", "input": 1, "tenant": tenant});
    let got = gateway.post("/v1/batches", &json!([task("shop"), task("bank"), task("shop")])).await;
    assert!(got.json.as_array().unwrap().iter().all(|one| one["status"] == 202), "{got:?}");
    assert_eq!(gateway.post("/v1/tasks", &task("shop")).await.status, 202, "three have come since");
    let refused = gateway.post("/v1/tasks", &task("shop")).await;
    assert_eq!((refused.status, &refused.json["code"]), (429, &json!("quota_waiting")));
    assert!(refused.header("retry-after").parse::<u32>().unwrap() >= 1);
    assert_eq!(gateway.post("/v1/tasks", &task("bank")).await.status, 202);
    let header =
        |delivery: &taskyard_shared::broker::Delivery| delivery.properties.headers.contains_key(COUNTED_HEADER);
    assert!(!yard.drain(&yard.topology.intake()).await.iter().any(header), "nobody has a rate");
}

#[tokio::test]
async fn rates_are_kept_to_by_all_gateways_together() {
    let yard = Yard::new();
    let (gateway, second) = (yard.gateway().await, yard.gateway().await);
    let mut one = signal(0, 1);
    let rate = Some(Rate { per_second: 0.02, burst: 5.0 });
    one.tenants.insert("shop".into(), TenantSignal { waiting: 0, max_waiting: None, rate });
    heard(&yard, &gateway, vec![one.clone()], 3.0).await;
    heard(&yard, &second, vec![one], 3.0).await;
    let task = |tenant: &str| json!({"model": "m", "input": 1, "tenant": tenant});
    for _ in 0..2 {
        assert_eq!(gateway.post("/v1/tasks", &task("shop")).await.status, 202);
        assert_eq!(second.post("/v1/tasks", &task("shop")).await.status, 202);
    }
    let got = gateway.post("/v1/batches", &json!([task("shop"), task("shop"), task("bank")])).await;
    let statuses: Vec<u64> = got.json.as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 429, 202], "{got:?}");
    assert_eq!(got.json[1]["problem"]["code"], "quota_rate");
    let refused = second.post("/v1/tasks", &task("shop")).await;
    let seconds: u32 = refused.header("retry-after").parse().unwrap();
    assert!(refused.status == 429 && (40..=60).contains(&seconds), "{refused:?}");
    let deliveries = yard.drain(&yard.topology.intake()).await;
    let counted =
        |delivery: &&taskyard_shared::broker::Delivery| delivery.properties.headers.contains_key(COUNTED_HEADER);
    assert_eq!(deliveries.iter().filter(counted).count(), deliveries.len(), "the scheduler counts none of them again");

    let calls = yard.store.calls.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(second.post("/v1/tasks", &task("shop")).await.status, 429);
    }
    // The signals are read on, and nothing else: the bucket is known to be empty.
    assert!(yard.store.calls.load(Ordering::SeqCst) - calls < 15, "a call for each refusal");
}

#[tokio::test]
async fn while_the_store_is_away_tasks_are_let_in_once_the_last_word_is_old() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut one = signal(0, 1);
    one.models.insert("slow".into(), overloaded(&[], 17));
    heard(&yard, &gateway, vec![one], 3.0).await;
    yard.store.go_away(true);
    let task = json!({"model": "slow", "input": 1});
    assert_eq!(gateway.post("/v1/tasks", &task).await.status, 429, "the last word still counts");
    eventually("it is too old", || async { gateway.post("/v1/tasks", &task).await.status == 202 }).await;
}
