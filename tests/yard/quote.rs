//! When a task that waits is expected to start, and when one would that nobody has sent.

use serde_json::Value;

use super::control::Api;
use super::*;

fn at(value: &Value) -> taskyard_shared::Timestamp {
    serde_json::from_value(value.clone()).unwrap_or_else(|failure| panic!("{value}: {failure}"))
}

/// A slot that is taken by a task that never ends by itself, and one more sent ahead of it.
async fn busy(yard: &Yard) -> (Arc<Semaphore>, Vec<Uuid>) {
    let gate = Arc::new(Semaphore::new(0));
    let handler = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    let model = ModelSpec { expected_ms: Some(200.0), ..spec("m") };
    yard.worker("w", vec![(model.clone(), handler.clone())]);
    yard.scheduler(&[model, spec("absent")]);
    let holding = yard.publish(vec![json!({"model": "m", "input": {"do": "wait"}}); 2]).await;
    eventually("the slot is taken", || handler.runs.load(Ordering::SeqCst) == 1).await;
    (gate, holding)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_task_is_told_when_it_is_expected_to_start() {
    let mut yard = Yard::new(|_| {}).await;
    let (gate, holding) = busy(&yard).await;
    let api = Api::new(&yard).await;
    let ids = yard.publish((0..20).map(|_| json!({"model": "m", "input": {"do": "wait"}})).collect()).await;
    let urgent = yard.publish(vec![json!({"model": "m", "input": {"do": "wait"}, "priority": 9})]).await;
    let absent = yard.publish(vec![json!({"model": "absent", "input": 1})]).await;
    let all_read = format!("taskyard_backlog_tasks{{model=\"m\"}} {}", ids.len() + urgent.len());
    let passed = format!("taskyard_backlog_tasks{{model=\"m\"}} {}", ids.len());
    eventually("all are read", || {
        yard.registry.render().is_ok_and(|text| text.contains(&all_read) || text.contains(&passed))
    })
    .await;
    let (first, last) = (api.explain(&ids[0]).await, api.explain(&ids[19]).await);
    for told in [&first["waiting"], &last["waiting"]] {
        let (start, finish) = (&told["expected_start"], &told["expected_finish"]);
        assert!(at(&start["q50"]) <= at(&start["q95"]), "{told}");
        assert!(at(&start["q50"]) < at(&finish["q50"]) && at(&start["q95"]) < at(&finish["q95"]), "{told}");
    }
    let wait_ms = |told: &Value| at(&told["waiting"]["expected_start"]["q50"]).ms_since(at(&told["waiting"]["since"]));
    // 19 of 200 ms are between them.
    let between_ms = wait_ms(&last) - wait_ms(&first);
    assert!((2_500.0..=6_000.0).contains(&between_ms), "{first} {last}");
    let nobody = api.explain(&absent[0]).await;
    assert_eq!((nobody["reason"].as_str(), nobody["waiting"].get("expected_start")), (Some("no_worker"), None));
    gate.add_permits(23);
    yard.collect(&holding).await;
    yard.collect(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_says_when_and_where_and_takes_nothing_in() {
    let mut yard = Yard::new(|_| {}).await;
    let (gate, holding) = busy(&yard).await;
    let api = Api::new(&yard).await;
    let ids = yard.publish((0..20).map(|_| json!({"model": "m", "input": {"do": "wait"}})).collect()).await;
    let all_read = "taskyard_backlog_tasks{model=\"m\"} 20";
    eventually("all are read", || yard.registry.render().is_ok_and(|text| text.contains(all_read))).await;
    let now = taskyard_shared::Timestamp::now();
    let quote = async |body: Value| {
        let (status, told) = api.post("/v1/quote", body).await;
        assert_eq!(status, 200, "{told}");
        told
    };
    let id = Uuid::new_v4();
    let behind = quote(json!({"id": id, "model": "m", "input": 1, "priority": 4, "deadline_ms": 60_000})).await;
    assert_eq!(behind["model"], "m@1");
    assert!(behind["problem"].is_null() && behind["choice"].is_null(), "{behind}");
    // Behind twenty of 200 ms; what comes with more weight goes first.
    let wait_ms = at(&behind["expected_start"]["q50"]).ms_since(now);
    assert!((3_000.0..=30_000.0).contains(&wait_ms), "{behind}");
    let urgent = quote(json!({"model": "m", "input": 1, "priority": 9})).await;
    assert!(at(&urgent["expected_start"]["q50"]).ms_since(now) < wait_ms / 2.0, "{urgent} {behind}");
    assert!(urgent["deadline_probability"].is_null(), "{urgent}");
    // The later the deadline, the more probable.
    let mut last = 0.0;
    for deadline_ms in [1_000, 5_000, 600_000] {
        let told = quote(json!({"model": "m", "input": 1, "deadline_ms": deadline_ms})).await;
        let probability = told["deadline_probability"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&probability) && probability >= last, "{told}");
        last = probability;
    }
    assert!(last > 0.9, "{last}");

    let free = quote(json!({"capability": "obeying", "input": 1})).await;
    assert_eq!((free["model"].as_str(), free["choice"]["candidates"].as_u64()), (Some("m@1"), Some(2)), "{free}");
    let nobody = quote(json!({"model": "absent", "input": 1, "deadline_ms": 100})).await;
    assert_eq!((nobody["problem"]["code"].as_str(), nobody["model"].as_str()), (Some("no_worker"), Some("absent@1")));
    assert!(nobody["expected_start"].is_null() && nobody["deadline_probability"].is_null(), "{nobody}");
    let unknown = quote(json!({"model": "unheard-of", "input": 1})).await;
    assert_eq!((unknown["problem"]["code"].as_str(), unknown["model"].as_str()), (Some("unknown_model"), None));
    let (status, refused) = api.post("/v1/quote", json!({"model": "m", "input": 1, "priority": 10})).await;
    assert_eq!((status, refused["code"].as_str()), (422, Some("invalid_field")));
    let (status, refused) = api.post("/v1/quote", json!([{"model": "m", "input": 1}])).await;
    assert_eq!((status, refused["code"].as_str()), (400, Some("shape")));

    assert_eq!(api.get(&format!("/v1/tasks/{id}")).await.0, 404, "nothing was taken in");
    assert!(yard.registry.render().is_ok_and(|text| text.contains(all_read)));
    gate.add_permits(22);
    yard.collect(&holding).await;
    yard.collect(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_scheduler_there_is_no_quote() {
    let yard = Yard::new(|_| {}).await;
    let api = Api::new(&yard).await;
    let (status, told) = api.post("/v1/quote", json!({"model": "m", "input": 1})).await;
    assert_eq!((status, told["code"].as_str()), (503, Some("scheduler_unavailable")));
}
