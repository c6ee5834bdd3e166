//! What cannot be done is answered with a code, and kept where it can be looked at.

use serde_json::json;
use taskyard_shared::State;
use taskyard_shared::broker::QueueSpec;
use uuid::Uuid;

use crate::harness::servers;
use crate::yard::Yard;

const MODELS: &str = r#"
[models.pause]
handler = "simulated"
capabilities = ["waiting"]
[models.pause.simulated]
service_ms = 1.0

[models.broken]
handler = "simulated"
max_attempts = 3
[models.broken.simulated]
service_ms = 1.0
failure_ratio = 1.0
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_a_code_and_a_dead_letter_where_due() {
    let Some(servers) = servers("refusals") else { return };
    let yard = Yard::new(&servers, MODELS);
    let _worker = yard.worker();
    let _scheduler = yard.scheduler();
    let mut publisher = yard.publisher().await;
    let ids = publisher
        .publish(vec![
            json!({"model": "nowhere", "input": 1}),
            json!({"capability": "flying", "input": 1}),
            json!({"model": "pause@7", "input": 1}),
            json!({"model": "pause", "input": 1, "deadline": "2001-01-01T00:00:00Z"}),
            json!({"model": "pause", "input": 1, "priority": 12}),
            json!({"capability": "waiting", "input": {"kept": true}}),
            json!({"model": "broken", "input": {"doomed": true}}),
        ])
        .await;
    let unreadable = Uuid::new_v4();
    publisher.broker.publish(vec![publisher.message(unreadable, "{\"model\":")]).await.remove(0).unwrap();
    let all: Vec<Uuid> = ids.iter().copied().chain([unreadable]).collect();
    publisher.collect(&all).await;

    let came = |at: usize| {
        let result = &publisher.results[&all[at]];
        (result.state, result.error.as_ref().map_or("", |error| error.code.as_str()))
    };
    assert_eq!(came(0), (State::Rejected, "unknown_model"));
    assert_eq!(came(1), (State::Rejected, "unknown_capability"));
    assert_eq!(came(2), (State::Rejected, "unknown_model"));
    assert_eq!(came(3), (State::Expired, "expired"));
    assert_eq!(came(4), (State::Rejected, "invalid_field"));
    assert_eq!(came(5), (State::Succeeded, ""));
    assert_eq!(came(6), (State::Failed, "handler_failed"));
    assert_eq!(came(7), (State::Rejected, "json"));
    assert_eq!(publisher.results[&all[6]].attempt, 3, "it was tried as often as it may");
    assert_eq!(publisher.results[&all[5]].model.as_deref(), Some("pause@1"));

    let mut reasons: Vec<String> = publisher
        .dead_letters(6)
        .await
        .into_iter()
        .map(|(reason, detail, _)| {
            assert!(!detail.is_empty());
            reason
        })
        .collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        ["handler_failed", "invalid_field", "json", "unknown_capability", "unknown_model", "unknown_model"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_settled_task_by_task_and_a_repeated_publish_runs_once() {
    let Some(servers) = servers("batches") else { return };
    let yard = Yard::new(&servers, MODELS);
    let _worker = yard.worker();
    let _scheduler = yard.scheduler();
    let mut publisher = yard.publisher().await;
    let members: Vec<Uuid> = (0..20).map(|_| Uuid::new_v4()).collect();
    let mut batch: Vec<serde_json::Value> =
        members.iter().map(|id| json!({"id": id, "model": "pause", "input": {"n": id.to_string()}})).collect();
    let bad = Uuid::new_v4();
    batch.insert(7, json!({"id": bad, "model": "pause"}));
    let message = publisher.message(Uuid::new_v4(), serde_json::to_vec(&batch).unwrap());
    // The same message twice, as a publisher does that saw no confirm.
    for answer in publisher.broker.publish(vec![message.clone(), message]).await {
        answer.unwrap();
    }
    let all: Vec<Uuid> = members.iter().copied().chain([bad]).collect();
    publisher.collect(&all).await;
    for id in &members {
        let result = &publisher.results[id];
        assert_eq!((result.state, result.attempt), (State::Succeeded, 1));
        assert!(result.output.as_ref().unwrap().get().contains(&id.to_string()));
    }
    assert_eq!(publisher.results[&bad].state, State::Rejected);
    assert_eq!(publisher.results[&bad].error.as_ref().unwrap().message.split(':').next(), Some("input"));
    let differing = publisher.results.values().filter(|result| result.attempt > 1).count();
    assert_eq!(differing, 0, "nothing ran twice");
}

/// As after a change of `broker.queue_type`, or an operator's own hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_made_otherwise_is_named_and_tried_no_more() {
    let Some(servers) = servers("mismatch") else { return };
    let yard = Yard::new(&servers, MODELS);
    let publisher = yard.publisher().await;
    let intake = publisher.topology.intake();
    let other = QueueSpec { max_length: Some(5), ..QueueSpec::durable(&intake) };
    publisher.broker.declare(&[other]).await.unwrap();
    let mut scheduler = yard.role(&["scheduler"]);
    assert_eq!(scheduler.wait(), Some(2), "{:#?}", scheduler.lines());
    let said = scheduler.lines().join("\n");
    assert!(said.contains(&intake) && said.contains("x-max-length"), "{said}");
}
