//! That a task's webhook is put into its queue when the task has ended, whoever ended it.

use serde_json::{Value, json};

use super::*;

/// The webhooks of so many tasks, each of which is put there once.
pub(super) async fn hooks(yard: &Yard, count: usize) -> HashMap<String, Value> {
    let mut consumer = yard.broker.consume(&yard.topology.webhooks(), 100).await.unwrap();
    let mut hooks = HashMap::new();
    while hooks.len() < count {
        let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(100)).await.expect("webhooks").unwrap();
        consumer.acker().settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        for delivery in batch {
            let hook: Value = serde_json::from_slice(&delivery.body).unwrap();
            let id = hook["id"].as_str().unwrap().to_owned();
            assert!(hooks.insert(id.clone(), hook).is_none(), "{id} twice");
        }
    }
    hooks
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ends_has_its_webhook_put_in_the_queue() {
    let mut yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(spec("m"), Arc::new(Obedient::default()))]);
    yard.scheduler(&[spec("m"), spec("absent")]);
    let hook = |events: Value| json!({"url": "https://example.org/hook", "events": events});
    let ids = yard
        .publish(vec![
            json!({"model": "m", "input": {"a": 1}, "webhook": hook(json!([]))}),
            json!({"model": "m", "input": {"do": "fail"}, "webhook": hook(json!(["task.failed"]))}),
            json!({"model": "m", "input": {}, "webhook": hook(json!(["failed"]))}),
            json!({"model": "absent", "input": {}, "deadline_ms": 1, "webhook": hook(json!(["expired", "rejected"]))}),
            json!({"model": "m", "input": {}, "webhook": hook(json!(["asleep"]))}),
        ])
        .await;
    yard.collect(&ids).await;
    assert_eq!(yard.code(&ids[4]), "invalid_field", "an event that there is not");
    let hooks = hooks(&yard, 3).await;
    let ended = yard.result(&ids[3]).state.as_str();
    for (id, state) in [(ids[0], "succeeded"), (ids[1], "failed"), (ids[3], ended)] {
        let hook = &hooks[&format!("{id}.{state}")];
        assert_eq!(hook["url"], "https://example.org/hook");
        let payload = &hook["payload"];
        assert_eq!((&payload["type"], &payload["data"]["id"]), (&json!(format!("task.{state}")), &json!(id)));
    }
    assert_eq!(hooks[&format!("{}.succeeded", ids[0])]["payload"]["data"]["output"], json!({"a": 1}));
    assert_eq!(
        yard.broker.queue_state(&yard.topology.webhooks()).await.unwrap().unwrap().ready,
        0,
        "no more than these"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cancelled_while_nobody_reads_has_its_webhook_once_it_is_read() {
    let yard = Yard::new(|_| {}).await;
    let body = json!({"model": "m", "input": {}, "webhook": {"url": "https://example.org/hook"}});
    let id = yard.publish(vec![body]).await[0];
    yard.store.cancel(vec![TaskId(id)]).await.unwrap();
    yard.scheduler(&[spec("m")]);
    assert!(hooks(&yard, 1).await.contains_key(&format!("{id}.cancelled")));
}
