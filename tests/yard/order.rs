//! The order in which the queues of models get their tasks, however many are on their way there at once.

use taskyard_shared::Timestamp;
use taskyard_shared::load::{LoadReport, ModelLoad};

use super::*;

const TASKS: u64 = 6_000;

/// A worker that has all these slots and is not there.
async fn report(yard: &Yard, models: &[&str]) {
    let load = ModelLoad { slots: 10_000, max_batch: 1, ..ModelLoad::default() };
    let report = LoadReport {
        worker: "w".into(),
        host: "host".into(),
        pid: 1,
        started: Timestamp::now(),
        at: Timestamp::now(),
        draining: false,
        memory_mb: 10,
        budget_mb: 0,
        budget_gpus: 0,
        slots: 0,
        models: models.iter().map(|model| ((*model).to_owned(), load.clone())).collect(),
    };
    yard.store.report_load(&report, 60_000).await.unwrap();
}

/// What comes by a model's queue.
async fn sent(yard: &Yard, model: &str, count: usize) -> Vec<u64> {
    let queue = yard.topology.ready(model);
    yard.broker.declare(&[QueueSpec::durable(&queue)]).await.unwrap();
    let mut consumer = yard.broker.consume(&queue, u16::MAX).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(100)).await.expect("tasks come").unwrap();
        for delivery in batch {
            let body: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
            let tasks = body.as_array().cloned().unwrap_or_else(|| vec![body]);
            seen.extend(tasks.iter().map(|task| task["input"]["n"].as_u64().unwrap()));
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_come_to_the_queue_of_their_model_in_the_order_in_which_they_were_chosen() {
    let yard = Yard::new(|settings| settings.scheduler.policy = "fifo".to_owned()).await;
    let models = ["a", "b", "c"];
    yard.scheduler(&models.map(spec));
    let body = |n: u64| json!({"model": models[n as usize % 3], "input": {"n": n}});
    // Before there are any slots and after.
    yard.publish((0..TASKS / 2).map(body).collect()).await;
    report(&yard, &models).await;
    yard.publish((TASKS / 2..TASKS).map(body).collect()).await;
    for (at, model) in (0..).zip(models) {
        let seen = sent(&yard, model, TASKS as usize / 3).await;
        let early = seen.windows(2).filter(|two| two[0] > two[1]).count();
        assert_eq!(early, 0, "of {model}, so many came after a later one");
        assert_eq!(seen, (0..TASKS).filter(|n| n % 3 == at).collect::<Vec<u64>>());
    }
}

/// Those of one message came at the same time, and are in the order in which they stand there.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_one_message_keep_their_order() {
    let yard = Yard::new(|settings| {
        settings.scheduler.policy = "fifo".to_owned();
        settings.scheduler.window_tasks = 100;
    })
    .await;
    yard.scheduler(&[spec("a")]);
    for part in 0..5 {
        let tasks: Vec<_> = (0..400).map(|n| json!({"model": "a", "input": {"n": part * 400 + n}})).collect();
        let ids = yard.publish_with(vec![json!(tasks)], |properties| properties.message_id = None).await;
        assert_eq!(ids.len(), 1);
    }
    report(&yard, &["a"]).await;
    assert_eq!(sent(&yard, "a", 2_000).await, (0..2_000).collect::<Vec<u64>>());
}
