//! Several schedulers active on one yard.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::json;
use taskyard_shared::broker::{BrokerError, Verdict};
use taskyard_shared::load::{Completion, ModelSpec};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::{Carried, Envelope, State, TaskId, Timestamp, decode_tasks, messages};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Obedient, PATIENCE, Yard, eventually, spec};

/// A scheduler with metrics of its own.
struct Active {
    registry: Registry,
    running: JoinHandle<Result<(), BrokerError>>,
}

impl Active {
    fn start(yard: &Yard, models: &[ModelSpec]) -> Self {
        let registry = Registry::new().unwrap();
        let running = tokio::spawn(yard.new_scheduler(models, &registry).run(CancellationToken::new()));
        Self { registry, running }
    }

    /// The value of a metric, by its name and labels.
    fn metric(&self, name: &str) -> u64 {
        let text = self.registry.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    async fn has(&self, shard: u32) {
        let name = format!("taskyard_scheduler_shard{{shard=\"{shard}\"}}");
        eventually(&format!("the shard {shard} to be taken"), || self.metric(&name) == 1).await;
    }

    fn dispatched(&self) -> u64 {
        self.metric("taskyard_tasks_dispatched_total{model=\"m\"}")
    }
}

fn tasks(count: usize) -> Vec<serde_json::Value> {
    let what = |n: usize| if n.is_multiple_of(4) { "fail once" } else { "as you like" };
    (0..count).map(|n| json!({"model": "m", "input": {"do": what(n), "n": n}, "priority": n % 10})).collect()
}

fn served() -> ModelSpec {
    ModelSpec { slots: 2, max_attempts: 5, ..spec("m") }
}

/// A task as a scheduler hands it on.
fn envelope(body: serde_json::Value, yard: &Yard) -> Envelope {
    let task = decode_tasks(body.to_string().as_bytes()).unwrap().pop().unwrap().unwrap();
    let id = Uuid::new_v4();
    let reply = taskyard_shared::Reply { to: yard.replies.clone().into(), correlation_id: None, array: false };
    let carried = Carried { message_id: Some(id.to_string()), reply: Some(reply), ..Carried::default() };
    Envelope::new(task, &carried, Timestamp::now()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_schedulers_share_the_tasks_and_each_has_one_result() {
    let mut yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    let handler = Arc::new(Obedient::default());
    for id in ["v", "w", "x", "y"] {
        yard.worker(id, vec![(served(), handler.clone())]);
    }
    let first = Active::start(&yard, &[served()]);
    first.has(0).await;
    let second = Active::start(&yard, &[served()]);
    second.has(1).await;
    let ids = yard.publish(tasks(600)).await;
    yard.collect(&ids).await;
    for (n, id) in ids.iter().enumerate() {
        let result = yard.result(id);
        assert_eq!((result.state, result.attempt), (State::Succeeded, if n.is_multiple_of(4) { 2 } else { 1 }));
    }
    assert_eq!(handler.runs.load(Ordering::SeqCst), 750);
    assert_eq!(first.dispatched() + second.dispatched(), 750);
    assert!(first.dispatched() > 0 && second.dispatched() > 0, "one did it all");
    // Every completion found the scheduler that waited for it: no credit is out.
    for scheduler in [&first, &second] {
        eventually("all credits to be back", || scheduler.metric("taskyard_outstanding_tasks{model=\"m\"}") == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_the_shard_of_one_that_dies_and_nothing_is_lost() {
    let mut yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    let handler = Arc::new(Obedient::default());
    for id in ["v", "w", "x", "y"] {
        yard.worker(id, vec![(served(), handler.clone())]);
    }
    let first = Active::start(&yard, &[served()]);
    first.has(0).await;
    let second = Active::start(&yard, &[served()]);
    second.has(1).await;
    let third = Active::start(&yard, &[served()]);
    let ids = yard.publish(tasks(600)).await;
    yard.collect(&ids[..1]).await;
    assert_eq!(third.metric("taskyard_scheduler_active"), 0);
    second.running.abort();
    third.has(1).await;
    let more = yard.publish(tasks(200)).await;
    let all = [ids, more].concat();
    yard.collect(&all).await;
    for id in &all {
        // What was dispatched and not acked came again: such a task may be told of twice, never of two ends.
        let told = &yard.told[id];
        assert!(told.iter().all(|result| result.state == State::Succeeded && result.attempt == told[0].attempt));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_scheduler_holds_for_long_comes_back_to_it() {
    let mut yard = Yard::new(|settings| {
        settings.scheduler.shards = 2;
        settings.scheduler.max_held_s = 0;
    })
    .await;
    let (first, second) = (Active::start(&yard, &[spec("m")]), Active::start(&yard, &[spec("m")]));
    let ids = yard.publish((0..100).map(|n| json!({"model": "m", "input": n})).collect()).await;
    let held = |of: &Active| of.metric("taskyard_backlog_tasks{model=\"m\"}");
    eventually("all to be held", || held(&first) + held(&second) == 100).await;
    let before = (held(&first), held(&second));
    // Everything goes round once a second, and is acked where it came from.
    let operations = yard.broker.operations().unwrap();
    let published = || operations.published.load(Ordering::Relaxed);
    let rounds = published() + 300;
    eventually("three rounds", || published() >= rounds).await;
    eventually("all to be held still", || (held(&first), held(&second)) == before).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    yard.collect(&ids).await;
    assert_eq!(handler.runs.load(Ordering::SeqCst), 100);
    assert!(ids.iter().all(|id| yard.result(id).attempt == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shard_left_is_not_stranded_when_there_are_fewer() {
    let mut yard = Yard::new(|_| {}).await;
    yard.broker.declare(&messages::shard_queues(&yard.topology, 3)).await.unwrap();
    let left: Vec<Envelope> =
        (0..3).map(|n| Envelope { shard: 2, ..envelope(json!({"model": "m", "input": n}), &yard) }).collect();
    let ids: Vec<Uuid> = left.iter().map(|envelope| envelope.id.0).collect();
    let completion = Completion {
        id: TaskId(Uuid::new_v4()),
        model: "m".into(),
        state: State::Succeeded,
        ran_ms: 1.0,
        idle_ms: 0.0,
        worker: "w".into(),
    };
    let outgoing = vec![
        messages::round(&yard.topology, 0, &left[0]).unwrap(),
        messages::round(&yard.topology, 1, &left[1]).unwrap(),
        messages::round(&yard.topology, 2, &left[2]).unwrap(),
        messages::completions(&yard.topology, 2, &[completion]).unwrap(),
    ];
    for answer in yard.broker.publish(outgoing).await {
        answer.unwrap();
    }
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler)]);
    yard.scheduler(&[spec("m")]);
    yard.collect(&ids).await;
    assert!(ids.iter().all(|id| yard.result(id).state == State::Succeeded));
    let hints = yard.topology.completions(2);
    let drained = async {
        while yard.broker.queue_state(&hints).await.unwrap().unwrap().ready > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, drained).await.expect("completions of a shard that is no more are read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credit_whose_completion_was_lost_comes_back_however_busy_others_are() {
    let mut yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    // Somebody else has the first shard, and keeps one of the two slots.
    let _first = yard.broker.try_lock(&yard.topology.scheduler_lock(0)).await.unwrap().unwrap();
    let handler = Arc::new(Obedient { gate: Some(Arc::new(Semaphore::new(0))), ..Obedient::default() });
    yard.worker("w", vec![(served(), handler.clone())]);
    let second = Active::start(&yard, &[served()]);
    second.has(1).await;
    let other = envelope(json!({"model": "m", "input": {"do": "wait"}}), &yard);
    let ready = messages::ready(&yard.topology, "m", &other).unwrap();
    yard.broker.publish(vec![ready]).await.remove(0).unwrap();
    eventually("one slot to be busy", || handler.runs.load(Ordering::SeqCst) == 1).await;

    let mut thief = yard.broker.consume(&yard.topology.completions(1), 1).await.unwrap();
    let stealing = tokio::spawn(async move {
        let stolen = thief.next_batch(1).await.unwrap();
        thief.acker().settle(stolen.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
    });
    for n in 0..4 {
        let ids = yard.publish(vec![json!({"model": "m", "input": n})]).await;
        yard.collect(&ids).await;
    }
    assert!(stealing.is_finished(), "no completion was lost");
    assert_eq!(second.metric("taskyard_credits_reclaimed_total"), 1);
}
