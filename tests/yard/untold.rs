//! A task's end is written, then told, then its message is acked: whoever dies in between leaves a message that comes again.
//! Also when its deadline has passed by then.

use std::sync::Arc;

use serde_json::json;
use taskyard_shared::broker::Message;
use taskyard_shared::load::ModelSpec;
use taskyard_shared::store::{Accept, Beside, Claim, Claimed, Guard, Settle, Settled};
use taskyard_shared::{Carried, Envelope, Reply, State, TaskId, TaskResult, Timestamp, decode_tasks, messages};
use uuid::Uuid;

use super::webhooks::hooks;
use super::{Obedient, Yard, spec};

const HOOK: &str = "https://example.org/hook";

/// A task whose deadline has passed, with its record, which wants its address told as well.
async fn too_late(yard: &Yard) -> Envelope {
    let body = json!([{"model": "m", "input": {}, "deadline_ms": 1, "webhook": {"url": HOOK}}]).to_string();
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

/// Each of these ends has its webhook in the queue, once, as it was written.
async fn have_hooks(yard: &Yard, ends: &[TaskResult]) {
    let hooks = hooks(yard, ends.len()).await;
    for end in ends {
        let id = format!("{}.{}", end.id.0, end.state.as_str());
        let hook = hooks.get(&id).unwrap_or_else(|| panic!("no webhook {id}"));
        let end: serde_json::Value = serde_json::from_str(&text(end)).unwrap();
        assert_eq!((&hook["url"], &hook["payload"]["data"]), (&json!(HOOK), &end));
    }
    let state = yard.broker.queue_state(&yard.topology.webhooks()).await.unwrap().unwrap();
    assert_eq!(state.ready, 0, "no more than these");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_an_end_that_was_written_and_not_told_though_the_deadline_has_passed() {
    let mut yard = Yard::new(|_| {}).await;
    yard.broker.declare(&[taskyard_shared::broker::QueueSpec::durable(yard.topology.ready("m"))]).await.unwrap();
    let mut ends = Vec::new();
    // A task that is known to be long is claimed, whose answer is that it has ended.
    let model = ModelSpec { expected_ms: Some(10_000.0), ..spec("m") };
    for (state, is_late) in [State::Expired, State::Succeeded, State::Failed].into_iter().flat_map(both) {
        let mut envelope = too_late(&yard).await;
        envelope.deadline = envelope.deadline.filter(|_| is_late);
        let end = write_end(&yard, &envelope, state).await;
        send(&yard, messages::ready(&yard.topology, "m", &envelope).unwrap()).await;
        let (stop, _) = yard.worker("w", vec![(model.clone(), Arc::new(Obedient::default()))]);
        yard.collect(&[envelope.id.0]).await;
        assert_eq!(text(yard.result(&envelope.id.0)), text(&end), "told as it was written");
        stop.cancel();
        ends.push(end);
    }
    have_hooks(&yard, &ends).await;
    assert_eq!(yard.dead(2).await.len(), 2, "of those that failed");
}

fn both(state: State) -> [(State, bool); 2] {
    [(state, true), (state, false)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_tells_an_end_that_was_written_and_not_told_though_the_deadline_has_passed() {
    let mut yard = Yard::new(|_| {}).await;
    yard.scheduler(&[spec("m")]);
    let mut ends = Vec::new();
    for state in [State::Expired, State::Succeeded, State::Failed] {
        let envelope = too_late(&yard).await;
        let end = write_end(&yard, &envelope, state).await;
        send(&yard, messages::retry(&yard.topology, &envelope).unwrap()).await;
        yard.collect(&[envelope.id.0]).await;
        assert_eq!(text(yard.result(&envelope.id.0)), text(&end), "told as it was written");
        ends.push(end);
    }
    have_hooks(&yard, &ends).await;
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
