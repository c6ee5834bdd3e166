//! A task whose worker was lost has the next one to itself, within bounds.

use serde_json::{Value, json};
use taskyard_shared::store::{Beside, Claim, Claimed};

use self::faults::{FaultyBroker, FaultyStore};
use super::*;

#[path = "../../producer/tests/yard/faults.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod faults;

/// Calls that last: an attempt claims its task before it begins.
fn long() -> ModelSpec {
    ModelSpec { expected_ms: Some(1_000.0), slots: 3, max_attempts: 10, ..spec("m") }
}

fn gated() -> (Arc<Semaphore>, Arc<Obedient>) {
    let gate = Arc::new(Semaphore::new(0));
    (gate.clone(), Arc::new(Obedient { gate: Some(gate), ..Obedient::default() }))
}

fn opened() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(100))
}

fn waiting() -> Value {
    json!({"model": "m", "input": {"do": "wait"}})
}

async fn runs(handler: &Obedient, count: usize) {
    eventually("runs", || handler.runs.load(Ordering::SeqCst) >= count).await;
}

impl Yard {
    /// A task that a worker took and was lost with.
    async fn lost(&self) -> Uuid {
        // It is taken before any of the test's own workers can have it.
        let task = json!({"model": "m", "input": {"do": "wait"}, "delay_ms": 300});
        let ids = self.publish(vec![task]).await;
        let id = TaskId(ids[0]);
        let lost = async {
            loop {
                let claim = Claim {
                    id,
                    worker: "gone".into(),
                    nonce: 7,
                    lease_ms: 0,
                    max_attempts: 10,
                    attempts: 0,
                    beside: Beside::Others,
                };
                if let Claimed::Run { .. } = self.store.claim(vec![claim]).await.unwrap().remove(0) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, lost).await.expect("the task to be known");
        ids[0]
    }

    async fn held(&self, worker: &str, count: u32) {
        let waiting = async {
            loop {
                let loads = self.store.loads().await.unwrap();
                let load = loads.iter().find(|load| load.worker == worker).and_then(|load| load.models.get("m"));
                if load.is_some_and(|load| load.held >= count) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the worker to have them");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_beside_a_task_whose_worker_was_lost() {
    let mut yard = Yard::new(|_| {}).await;
    let (gate, handler) = gated();
    yard.scheduler(&[long()]);
    let lost = yard.lost().await;
    yard.worker("w", vec![(long(), handler.clone())]);
    runs(&handler, 1).await;
    let others = yard.publish(vec![waiting(), waiting()]).await;
    yard.held("w", 3).await;
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1, "slots are free, and nothing is begun in them");
    gate.add_permits(3);
    yard.collect(&[vec![lost], others.clone()].concat()).await;
    assert_eq!((yard.result(&lost).state, yard.result(&lost).attempt), (State::Succeeded, 2));
    assert!(others.iter().all(|id| yard.result(id).attempt == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_lost_with_a_worker_of_its_own_is_a_dead_letter() {
    let mut yard = Yard::new(|_| {}).await;
    let (gate, handler) = gated();
    yard.scheduler(&[long()]);
    let lost = yard.lost().await;
    let (_, kill) = yard.worker("first", vec![(long(), handler.clone())]);
    runs(&handler, 1).await;
    kill.cancel();
    yard.worker("second", vec![(long(), handler.clone())]);
    yard.collect(&[lost]).await;
    let result = yard.result(&lost);
    assert_eq!((result.state, result.attempt, result.worker.as_deref()), (State::Failed, 2, Some("first")));
    assert_eq!(yard.code(&lost), "worker_lost");
    assert_eq!(yard.dead(1).await, ["worker_lost"]);
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1, "it is not run a third time");
    let counted = yard.registry.render().unwrap();
    assert!(counted.contains(r#"taskyard_tasks_dead_lettered_total{reason="worker_lost"} 1"#), "{counted}");
    drop(gate);
}

#[tokio::test(flavor = "multi_thread")]
async fn others_are_let_in_after_a_while_and_what_happens_then_is_not_held_against_it() {
    let mut yard = Yard::new(|settings| settings.worker.alone_s = 1).await;
    let (gate, handler) = gated();
    yard.scheduler(&[long()]);
    let lost = yard.lost().await;
    let (_, kill) = yard.worker("first", vec![(long(), handler.clone())]);
    runs(&handler, 1).await;
    let others = yard.publish(vec![waiting(), waiting()]).await;
    runs(&handler, 3).await;
    kill.cancel();
    // The first one's gate stays shut.
    yard.worker("second", vec![(long(), Arc::new(Obedient { gate: Some(opened()), ..Obedient::default() }))]);
    let all = [vec![lost], others].concat();
    yard.collect(&all).await;
    assert!(all.iter().all(|id| yard.result(id).state == State::Succeeded));
    assert_eq!(yard.result(&lost).attempt, 3);
    drop(gate);
}

/// The broker takes nothing from their worker, so that most of their ends are not even written when it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_whose_ends_wait_to_be_told_are_not_held_to_be_by_themselves() {
    let mut yard = Yard::new(|_| {}).await;
    let broker = Arc::new(FaultyBroker::new(EmbeddedBroker::in_memory()));
    let store = Arc::new(FaultyStore::new(EmbeddedStore::in_memory(Retention::default())));
    (yard.broker, yard.store) = (broker.inner(), store.inner());
    yard.broker.declare(&messages::work_queues(&yard.topology)).await.unwrap();
    yard.broker.declare(&[QueueSpec::exclusive(&yard.replies)]).await.unwrap();
    let many = || ModelSpec { slots: 20, ..long() };
    yard.scheduler(&[many()]);
    let mut all = Vec::new();
    for _ in 0..10 {
        all.push(yard.lost().await);
    }
    let open = || Arc::new(Obedient { gate: Some(opened()), ..Obedient::default() });
    let handler = open();
    broker.hang(true);
    (yard.broker, yard.store) = (broker.clone(), store.clone());
    let (_, kill) = yard.worker("first", vec![(many(), handler.clone())]);
    (yard.broker, yard.store) = (broker.inner(), store.inner());
    runs(&handler, all.len()).await;
    // It runs beside others: none of them is by itself any more.
    all.extend(yard.publish(vec![waiting()]).await);
    runs(&handler, all.len()).await;
    // With it goes what it has not written.
    store.hang(true);
    kill.cancel();
    yard.worker("second", vec![(many(), open())]);
    yard.collect(&all).await;
    for id in &all {
        assert_eq!(yard.result(id).state, State::Succeeded, "{:?}", yard.result(id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_worker_was_lost_runs_beside_what_takes_too_long() {
    let mut yard = Yard::new(|settings| settings.worker.alone_s = 1).await;
    let (gate, handler) = gated();
    yard.scheduler(&[long()]);
    yard.worker("w", vec![(long(), handler.clone())]);
    let others = yard.publish(vec![waiting()]).await;
    runs(&handler, 1).await;
    let lost = yard.lost().await;
    runs(&handler, 2).await;
    gate.add_permits(2);
    let all = [vec![lost], others].concat();
    yard.collect(&all).await;
    assert!(all.iter().all(|id| yard.result(id).state == State::Succeeded));
}
