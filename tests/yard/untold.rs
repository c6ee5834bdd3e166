//! A task's end is written, then told, then its message is acked: whoever dies in between leaves a message that comes again.
//! Also when its deadline has passed by then.

use std::sync::Arc;

use serde_json::json;
use taskyard_shared::broker::Message;
use taskyard_shared::store::{Accept, Beside, Claim, Claimed, Guard, Settle, Settled};
use taskyard_shared::{Carried, Envelope, Reply, State, TaskId, TaskResult, Timestamp, decode_tasks, messages};
use uuid::Uuid;

use super::{Obedient, Yard, spec};

/// A task whose deadline has passed, with its record.
async fn too_late(yard: &Yard) -> Envelope {
    let body = json!([{"model": "m", "input": {}, "deadline_ms": 1}]).to_string();
    let task = decode_tasks(body.as_bytes()).unwrap().pop().unwrap().unwrap();
    let reply = Reply { to: yard.replies.clone().into(), correlation_id: None, array: false };
    let id = Uuid::new_v4().to_string();
    let carried = Carried { message_id: Some(id), reply: Some(reply), ..Carried::default() };
    let mut envelope = Envelope::new(task, &carried, Timestamp::now()).unwrap();
    envelope.deadline = Some(envelope.accepted);
    envelope.chosen = Some("m".into());
    let (fingerprint, record) = (envelope.fingerprint(), envelope.result(State::Queued));
    let accept = Accept { id: envelope.id, fingerprint, alias: None, record, follower: None };
    yard.store.accept(vec![accept]).await.unwrap();
    envelope
}

/// As a process does that comes no further.
async fn write_end(yard: &Yard, envelope: &Envelope, state: State) -> TaskResult {
    let mut result = envelope.result(state);
    result.timings.finished = Some(Timestamp::now());
    let settled = yard.store.settle(vec![Settle::new(Guard::Unclaimed, result.clone())]).await.unwrap();
    assert!(matches!(settled[..], [Settled::Done { .. }]));
    result
}

async fn send(yard: &Yard, message: Message) {
    for answer in yard.broker.publish(vec![message]).await {
        answer.unwrap();
    }
}

fn text(result: &TaskResult) -> String {
    serde_json::to_string(result).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_an_end_that_was_written_and_not_told_though_the_deadline_has_passed() {
    let mut yard = Yard::new(|_| {}).await;
    yard.broker.declare(&[taskyard_shared::broker::QueueSpec::durable(yard.topology.ready("m"))]).await.unwrap();
    for state in [State::Expired, State::Succeeded, State::Failed] {
        let envelope = too_late(&yard).await;
        let end = write_end(&yard, &envelope, state).await;
        send(&yard, messages::ready(&yard.topology, "m", &envelope).unwrap()).await;
        let (stop, _) = yard.worker("w", vec![(spec("m"), Arc::new(Obedient::default()))]);
        yard.collect(&[envelope.id.0]).await;
        assert_eq!(text(yard.result(&envelope.id.0)), text(&end), "told as it was written");
        stop.cancel();
    }
    assert_eq!(yard.dead(1).await.len(), 1, "of the one that failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_tells_an_end_that_was_written_and_not_told_though_the_deadline_has_passed() {
    let mut yard = Yard::new(|_| {}).await;
    yard.scheduler(&[spec("m")]);
    for state in [State::Expired, State::Succeeded, State::Failed] {
        let envelope = too_late(&yard).await;
        let end = write_end(&yard, &envelope, state).await;
        send(&yard, messages::retry(&yard.topology, &envelope).unwrap()).await;
        yard.collect(&[envelope.id.0]).await;
        assert_eq!(text(yard.result(&envelope.id.0)), text(&end), "told as it was written");
    }
    assert_eq!(yard.dead(1).await.len(), 1, "of the one that failed");
}

/// A worker was cut from a task that it runs, so the task's message came to another one, after the deadline; then the first
/// one dies. The message that came is the last.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_came_too_late_is_kept_while_somebody_runs_its_task() {
    let mut yard = Yard::new(|_| {}).await;
    yard.broker.declare(&[taskyard_shared::broker::QueueSpec::durable(yard.topology.ready("m"))]).await.unwrap();
    let envelope = too_late(&yard).await;
    let claim = Claim {
        id: envelope.id,
        worker: "cut".into(),
        nonce: 1,
        lease_ms: 3_000,
        max_attempts: 2,
        attempts: 0,
        beside: Beside::Others,
    };
    let claimed = yard.store.claim(vec![claim]).await.unwrap();
    assert!(matches!(claimed[..], [Claimed::Run { attempt: 1 }]));
    yard.scheduler(&[spec("m")]);
    yard.worker("other", vec![(spec("m"), Arc::new(Obedient::default()))]);
    send(&yard, messages::ready(&yard.topology, "m", &envelope).unwrap()).await;
    yard.collect(&[envelope.id.0]).await;
    assert_eq!(yard.result(&envelope.id.0).state, State::Expired);
    let record = yard.store.get(vec![TaskId(envelope.id.0)]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(record.state, State::Expired);
}
