//! The same workflow published again, or another under its id: while the first one runs, after it has ended, and when nobody knows of it any
//! more.

use taskyard_shared::workflow::WorkflowOrder;
use taskyard_shared::{Carried, Reply, Timestamp};

use super::*;

impl Yard {
    /// What a scheduler's intake makes of a workflow while the store is away: an order that nobody has compared with anything.
    async fn order_unseen(&self, body: Value, correlation: &str) {
        let reply = Reply { to: self.replies.as_str().into(), correlation_id: Some(correlation.into()), array: false };
        let carried = Carried { reply: Some(reply), ..Carried::default() };
        let (order, _) = WorkflowOrder::read(body.to_string().as_bytes(), &carried, Timestamp::now()).unwrap();
        let message = messages::workflow(&self.topology, 0, &order).unwrap();
        let publishing = async {
            // Until a scheduler has declared the queue.
            while self.broker.publish(vec![message.clone()]).await.remove(0).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, publishing).await.expect("a queue");
    }

    /// Ends a scheduler: so many workflows that it had not acked go back to the queue.
    async fn left_by(&self, scheduler: CancellationToken) -> u64 {
        scheduler.cancel();
        let queue = self.topology.workflows(0);
        let leaving = async {
            loop {
                let state = self.broker.queue_state(&queue).await.unwrap().unwrap();
                if state.consumers == 0 {
                    return state.ready;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, leaving).await.expect("it to end")
    }

    /// The correlation ids under which so many ends were told, and in which states.
    async fn told_to(&self, count: usize) -> BTreeMap<String, String> {
        let mut consumer = self.broker.consume(&self.replies, 100).await.unwrap();
        let mut told = BTreeMap::new();
        while told.len() < count {
            let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(1)).await.expect("an end").unwrap();
            for delivery in &batch {
                let end: Value = serde_json::from_slice(&delivery.body).unwrap();
                let state = end["state"].as_str().unwrap().to_owned();
                told.insert(delivery.properties.correlation_id.clone().unwrap(), state);
            }
            consumer.acker().settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
        told
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_that_ended_and_was_forgotten_the_same_id_is_a_new_workflow() {
    let mut yard = Yard::new(|_| {}).await;
    yard.store = Arc::new(EmbeddedStore::in_memory(Retention { finished_ms: 1, ..Retention::default() }));
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(wide(), handler.clone())]);
    let _scheduler = yard.scheduler(&[wide()]);
    let body = json!({"id": Uuid::new_v4(), "tasks": [step("a", json!({}))]});
    for runs in 1..=3 {
        assert_eq!(yard.run_workflow(body.clone()).await["state"], "succeeded");
        assert_eq!(handler.runs.load(Ordering::SeqCst), runs, "no scheduler's memory answers for it");
        let id = WorkflowId(body["id"].as_str().unwrap().parse().unwrap());
        let forgetting = async {
            while yard.store.workflow(id).await.unwrap().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, forgetting).await.expect("its record to expire");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_workflow_under_the_id_of_one_that_runs_is_refused_also_where_intake_could_not_compare() {
    let (yard, handler, _scheduler) = running(|_| {}).await;
    let id = Uuid::new_v4();
    yard.order_unseen(json!({"id": id, "tasks": [step("a", json!({"input": {"do": "wait"}}))]}), "first").await;
    eventually("it to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
    yard.order_unseen(json!({"id": id, "tasks": [step("b", json!({}))]}), "other").await;
    assert_eq!(yard.told_to(1).await, BTreeMap::from([("other".into(), "rejected".into())]));
    handler.gate.as_ref().unwrap().add_permits(1);
    assert_eq!(yard.told_to(1).await, BTreeMap::from([("first".into(), "succeeded".into())]));
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_publishes_it_again_is_told_though_its_scheduler_dies() {
    let model = ModelSpec { expected_ms: Some(10_000.0), ..wide() };
    let yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(0))), ..Obedient::default() });
    yard.worker("w", vec![(model.clone(), handler.clone())]);
    let scheduler = yard.scheduler(std::slice::from_ref(&model));
    let body = json!({"id": Uuid::new_v4(), "tasks": [step("a", json!({"input": {"do": "wait"}}))]});
    yard.order_unseen(body.clone(), "first").await;
    eventually("it to run", || handler.runs.load(Ordering::SeqCst) == 1).await;
    let published = || yard.broker.operations().unwrap().published.load(Ordering::Relaxed);
    let before = published();
    yard.order_unseen(body.clone(), "second").await;
    yard.order_unseen(body, "third").await;
    // Each makes a copy that says so.
    eventually("both to be taken in", || published() >= before + 4).await;
    let left = yard.left_by(scheduler).await;
    assert!(left >= 1, "it is held until it has ended");
    let _second = yard.scheduler(&[model]);
    handler.gate.as_ref().unwrap().add_permits(1);
    let told = yard.told_to(3).await;
    assert!(told.values().all(|state| state == "succeeded"), "{told:?}");
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1);
}
