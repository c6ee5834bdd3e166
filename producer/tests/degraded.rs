//! The broker full, silent or gone, the store silent or gone: what is accepted stays accepted, and nobody waits long.

mod yard;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskyard_shared::TaskId;
use taskyard_shared::broker::{Broker, PublishError, Verdict};
use yard::{RunningGateway, Yard, eventually};

fn echo(input: Value) -> Value {
    json!({"model": "echo", "input": input})
}

#[tokio::test]
async fn a_full_queue_is_429_and_nothing_is_accepted() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    yard.broker.refuse_with(Some(PublishError::Full));
    let got = gateway.post("/v1/tasks", &echo(json!(1))).await;
    assert_eq!((got.status, got.problem(), got.header("retry-after")), (429, "over_capacity", "1"));
    let path = format!("/v1/tasks/{}", got.json["task_id"].as_str().unwrap());
    assert_eq!(gateway.get(&path).await.status, 404, "a record of a task that no queue holds");

    let got = gateway.post("/v1/batches", &json!([echo(json!(1)), {"model": "echo"}, echo(json!(2))])).await;
    assert_eq!((got.status, got.header("retry-after")), (429, "1"));
    let statuses: Vec<&Value> = got.json.as_array().unwrap().iter().map(|answer| &answer["status"]).collect();
    assert_eq!(statuses, [429, 422, 429]);

    yard.broker.refuse_with(None);
    assert_eq!(gateway.put(&path, &echo(json!(1))).await.status, 202);
}

/// Schedulers read, and record, what the broker has not written to its disk yet; a broker that is killed then has lost it.
#[tokio::test]
async fn a_record_of_what_waits_is_no_confirm() {
    let yard = Yard::new();
    let lost = async || {
        let mut intake = yard.broker.consume(&yard.topology.intake(), 10).await.unwrap();
        let deliveries = intake.next_batch(10).await.unwrap();
        intake.acker().settle(deliveries.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        deliveries.into_iter().filter_map(|delivery| delivery.properties.message_id).collect::<Vec<_>>()
    };
    let waiting = async || yard.broker.queue_state(&yard.topology.intake()).await.unwrap().unwrap().ready;
    let first = yard.gateway().await;
    let (path, body) = (format!("/v1/tasks/{}", TaskId::new().0), echo(json!(1)));
    let workflow = json!({"id": TaskId::new(), "tasks": [{"name": "a", "model": "echo", "input": 1}]});
    assert_eq!(first.put(&path, &body).await.status, 202);
    assert_eq!(first.post("/v1/workflows", &workflow).await.status, 202);
    let keyed = async |gateway: &RunningGateway| {
        gateway.send(gateway.http.post(gateway.url("/v1/tasks")).header("idempotency-key", "k").json(&body)).await
    };
    let first_keyed = keyed(&first).await;
    assert_eq!(first_keyed.status, 202);
    assert_eq!(lost().await.len(), 3);

    // Another gateway, which knows of them what the records say.
    let second = yard.gateway().await;
    yard.broker.go_away(true);
    for got in [second.put(&path, &body).await, second.post("/v1/workflows", &workflow).await] {
        assert_eq!((got.status, got.problem()), (503, "broker_unavailable"), "{:?}", got.json);
    }
    assert_eq!(second.get(&path).await.status, 200, "there is a record");
    yard.broker.go_away(false);
    eventually("ready again", || async { second.get("/readyz").await.json["status"] == "ready" }).await;
    assert_eq!(second.put(&path, &body).await.status, 202);
    assert_eq!(waiting().await, 1, "it was sent again");
    assert_eq!(second.post("/v1/workflows", &workflow).await.status, 202);
    assert_eq!(waiting().await, 2);
    assert_eq!(second.put(&path, &body).await.status, 202);
    assert_eq!(second.post("/v1/workflows", &workflow).await.status, 202);
    assert_eq!(waiting().await, 2, "this gateway has their confirms");
    for _ in 0..2 {
        assert_eq!(keyed(&second).await.json["id"], first_keyed.json["id"]);
        assert_eq!(waiting().await, 3);
    }
    assert_eq!(json!(lost().await[2]), first_keyed.json["id"], "under the id that its key has");
}

#[tokio::test]
async fn a_task_that_is_too_large_for_the_broker_is_413_for_good() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    yard.broker.refuse_with(Some(PublishError::TooLarge));
    let got = gateway.post("/v1/tasks", &echo(json!(1))).await;
    assert_eq!((got.status, got.problem(), got.header("retry-after")), (413, "too_large", ""));
}

#[tokio::test]
async fn a_broker_that_does_not_confirm_is_503_within_two_seconds() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    yard.broker.hang(true);
    let id = TaskId::new();
    let path = format!("/v1/tasks/{}", id.0);
    let began = Instant::now();
    let got = gateway.put(&path, &echo(json!(1))).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((got.status, got.problem(), got.header("retry-after")), (503, "broker_unavailable", "2"));
    assert_eq!(got.json["task_id"], id.0.to_string());
    assert_eq!(gateway.get(&path).await.status, 404);
    yard.broker.hang(false);
    assert_eq!(gateway.put(&path, &echo(json!(1))).await.status, 202);
}

#[tokio::test]
async fn a_broker_and_a_store_that_hang_together_are_503_within_two_seconds() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    yard.broker.hang(true);
    yard.store.hang(true);
    let began = Instant::now();
    let got = gateway.put(&format!("/v1/tasks/{}", TaskId::new().0), &echo(json!(1))).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((got.status, got.problem()), (503, "broker_unavailable"));
}

#[tokio::test]
async fn a_broker_that_is_away_is_503_at_once_and_the_gateway_comes_back() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    yard.broker.go_away(true);
    let began = Instant::now();
    let got = gateway.post("/v1/tasks", &echo(json!(1))).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!((got.status, got.problem()), (503, "broker_unavailable"));
    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, &ready.json["checks"]["broker"]["status"]), (503, &json!("failed")));
    assert_eq!(gateway.get("/healthz").await.status, 200);
    assert_eq!(gateway.get("/v1/queues").await.problem(), "broker_unavailable");
    assert_eq!(gateway.get("/v1/models").await.status, 200, "look-ups do not need the broker");

    yard.broker.go_away(false);
    eventually("ready again", || async { gateway.get("/readyz").await.json["status"] == "ready" }).await;
    assert_eq!(gateway.post_waiting(&echo(json!(1)), "wait=20").await.status, 200);
}

#[tokio::test]
async fn a_gateway_that_starts_before_its_broker_is_ready_once_it_is_there() {
    let yard = Yard::new();
    yard.broker.go_away(true);
    let gateway = yard.gateway_unready(yard::settings()).await;
    assert_eq!(gateway.get("/readyz").await.status, 503);
    assert_eq!(gateway.post("/v1/tasks", &echo(json!(1))).await.status, 503);
    yard.broker.go_away(false);
    eventually("ready", || async { gateway.get("/readyz").await.status == 200 }).await;
    assert_eq!(gateway.post("/v1/tasks", &echo(json!(1))).await.status, 202);
}

#[tokio::test]
async fn a_store_that_is_away_does_not_stop_tasks() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    yard.store.go_away(true);
    let got = gateway.post("/v1/tasks", &echo(json!("a"))).await;
    assert_eq!((got.status, &got.json["state"]), (202, &json!("queued")));
    assert_eq!(gateway.metric("taskyard_gateway_tasks_unrecorded_total").await, Some(1.0));
    // Its result travels with the message, so that even waiting works.
    let waited = gateway.post_waiting(&echo(json!("b")), "wait=20").await;
    assert_eq!((waited.status, &waited.json["output"]), (200, &json!("b")));
    let id = TaskId::new();
    let put = gateway.put(&format!("/v1/tasks/{}", id.0), &echo(json!("c"))).await;
    assert_eq!((put.status, &put.json["id"]), (202, &json!(id.0.to_string())));

    for path in [
        format!("/v1/tasks/{}", id.0),
        format!("/v1/tasks/{}?wait=5s", id.0),
        "/v1/tasks".into(),
        "/v1/models".into(),
        "/v1/workers".into(),
        "/v1/queues".into(),
    ] {
        let got = gateway.get(&path).await;
        assert_eq!((got.status, got.problem(), got.header("retry-after")), (503, "store_unavailable", "2"), "{path}");
    }
    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, &ready.json["status"]), (200, &json!("degraded")));

    yard.store.go_away(false);
    eventually("looked up again", || async {
        gateway.get(&format!("/v1/tasks/{}?wait=20s", id.0)).await.json["output"] == "c"
    })
    .await;
    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, &ready.json["status"]), (200, &json!("ready")));
}

#[tokio::test]
async fn a_store_that_hangs_costs_one_wait_and_not_one_each() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    yard.store.hang(true);
    let before = yard.store.calls.load(Ordering::SeqCst);
    let began = Instant::now();
    for number in 0..50 {
        assert_eq!(gateway.post("/v1/tasks", &echo(json!(number))).await.status, 202);
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let calls = yard.store.calls.load(Ordering::SeqCst) - before;
    assert!(calls < 10, "{calls} calls to a store that hangs");
    assert_eq!(yard.depth(&yard.topology.intake()).await, 50);
}

#[tokio::test]
async fn a_result_whose_message_is_lost_is_found_in_the_store() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let body = echo(json!("lost"));
    let waiting = gateway.post_waiting(&body, "wait=20");
    let losing = async {
        eventually("it waits", || async { gateway.metric("taskyard_http_waiters").await == Some(1.0) }).await;
        yard.work_in_silence().await;
    };
    let (got, ()) = tokio::join!(waiting, losing);
    assert_eq!((got.status, &got.json["output"]), (200, &json!("lost")));
    assert_eq!(gateway.metric("taskyard_gateway_results_rechecked_total").await, Some(1.0));
}

#[tokio::test]
async fn a_cut_of_the_reply_queue_loses_no_waiting_request() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let task = gateway.post("/v1/tasks", &echo(json!("cut"))).await;
    let path = format!("{}?wait=20s", task.header("location"));
    let waiting = gateway.get(&path);
    let cutting = async {
        eventually("it waits", || async { gateway.metric("taskyard_http_waiters").await == Some(1.0) }).await;
        yard.broker.cut();
        yard.work_in_silence().await;
    };
    let (got, ()) = tokio::join!(waiting, cutting);
    assert_eq!((got.status, &got.json["output"]), (200, &json!("cut")));
}
