//! Tasks that run for longer than a delivery may be kept.

use taskyard_shared::broker::Need;

use super::*;

/// Deliveries are kept for a second, here and at the scheduler.
fn impatient(settings: &mut Settings) {
    settings.worker.max_held_s = 1;
    settings.scheduler.max_held_s = 1;
}

fn gated() -> (Arc<Semaphore>, Arc<Obedient>) {
    let gate = Arc::new(Semaphore::new(0));
    (gate.clone(), Arc::new(Obedient { gate: Some(gate), ..Obedient::default() }))
}

impl Yard {
    /// Waits until the scheduler watches over so many tasks.
    async fn watches(&self, count: f64) {
        eventually("they are watched over", || self.gauge("taskyard_scheduler_watched_tasks") == count).await;
    }

    /// What a metric without labels shows; 0 while it is not there.
    fn gauge(&self, name: &str) -> f64 {
        let text = self.registry.render().unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
    }

    async fn ready(&self, queue: &str) -> u64 {
        self.broker.queue_state(queue).await.unwrap().unwrap().ready
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_runs_once_and_is_watched_over_until_it_ends() {
    let mut yard = Yard::new(impatient).await;
    let (gate, handler) = gated();
    let long = ModelSpec { expected_ms: Some(60_000.0), ..spec("m") };
    yard.worker("w", vec![(long.clone(), handler.clone())]);
    let stop = yard.scheduler(&[long]);
    let body = json!({"model": "m", "input": {"do": "wait"}});
    let ids = yard.publish(vec![body.clone()]).await;
    yard.watches(1.0).await;
    // One that waits behind it at the worker, or here, goes round and is run in its turn.
    let behind = yard.publish(vec![body]).await;
    eventually("the way round is gone several times", || yard.gauge("taskyard_tasks_handed_back_total") >= 4.0).await;
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1);
    let record = yard.store.get(vec![TaskId(ids[0])]).await.unwrap().pop().flatten().unwrap();
    assert_eq!((record.state, record.attempt), (State::Running, 1));
    gate.add_permits(2);
    yard.collect(&[ids[0], behind[0]]).await;
    for id in [ids[0], behind[0]] {
        assert_eq!((yard.result(&id).state, yard.result(&id).attempt), (State::Succeeded, 1));
    }
    yard.watches(0.0).await;
    stop.cancel();
    for queue in [yard.topology.round(0), yard.topology.retry(), yard.topology.ready("m")] {
        let gone = async { while yard.ready(&queue).await > 0 {} };
        tokio::time::timeout(PATIENCE, gone).await.expect("nothing is left");
    }
    assert_eq!(handler.runs.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_of_a_worker_that_dies_is_run_by_another() {
    let mut yard = Yard::new(impatient).await;
    let (_never, stuck) = gated();
    let long = ModelSpec { expected_ms: Some(60_000.0), ..spec("m") };
    let (_, kill) = yard.worker("first", vec![(long.clone(), stuck)]);
    let stop = yard.scheduler(std::slice::from_ref(&long));
    let ids = yard.publish(vec![json!({"model": "m", "input": {"do": "wait"}})]).await;
    yard.watches(1.0).await;
    // The next scheduler finds it, too.
    stop.cancel();
    yard.scheduler(std::slice::from_ref(&long));
    kill.cancel();
    let (gate, free) = gated();
    gate.add_permits(1);
    yard.worker("second", vec![(long, free)]);
    yard.collect(&ids).await;
    let result = yard.result(&ids[0]);
    assert_eq!((result.state, result.attempt, result.worker.as_deref()), (State::Succeeded, 2, Some("second")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_settled_and_never_told_is_told_by_the_watch() {
    let mut yard = Yard::new(impatient).await;
    let (_, handler) = gated();
    yard.worker("w", vec![(spec("m"), handler)]);
    // A task that ended while nobody told its scheduler: only the watch is left of it.
    let ids = yard.publish(vec![json!({"model": "m", "input": {}})]).await;
    let mut intake = yard.broker.consume(&yard.topology.intake(), 1).await.unwrap();
    let delivery = intake.next_batch(1).await.unwrap().pop().unwrap();
    let task = taskyard_shared::decode_tasks(&delivery.body).unwrap().pop().unwrap().unwrap();
    let carried = taskyard_shared::Carried {
        message_id: Some(ids[0].to_string()),
        reply: Some(taskyard_shared::Reply {
            to: yard.replies.clone().into(),
            correlation_id: Some(ids[0].to_string().into()),
            array: false,
        }),
        ..taskyard_shared::Carried::default()
    };
    let envelope = taskyard_shared::Envelope::new(task, &carried, taskyard_shared::Timestamp::now()).unwrap();
    let mut result = envelope.result(State::Succeeded);
    result.attempt = 1;
    let settle = taskyard_shared::store::Settle::new(taskyard_shared::store::Guard::Unclaimed, result);
    yard.store.settle(vec![settle]).await.unwrap();
    let watched = messages::watch(&yard.topology, 0, &envelope).unwrap();
    yard.broker.declare(&messages::shard_queues(&yard.topology, 1)).await.unwrap();
    let closing = CancellationToken::new();
    taskyard_shared::broker::publish_surely(&*yard.broker, vec![(watched, Need::Work)], &closing).await.unwrap();
    intake.acker().settle(vec![delivery.tag], Verdict::Ack).await;
    yard.scheduler(&[spec("m")]);
    yard.collect(&ids).await;
    assert_eq!(yard.result(&ids[0]).state, State::Succeeded);
}
