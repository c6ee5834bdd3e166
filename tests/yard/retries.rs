//! That what fails each time is tried ever further apart, so often and no more: by what its message says when it goes back, so
//! that nobody waits here.

use serde_json::json;
use taskyard_shared::broker::QueueSpec;
use taskyard_shared::{Carried, Envelope, Reply, Timestamp, decode_tasks, wire};

use super::*;

const HOUR_MS: u64 = 3_600_000;
const ATTEMPTS: u32 = 6;

fn envelope(yard: &Yard, body: serde_json::Value) -> Envelope {
    let task = decode_tasks(body.to_string().as_bytes()).unwrap().pop().unwrap().unwrap();
    let reply = Reply { to: yard.replies.clone().into(), correlation_id: None, array: false };
    let carried = Carried { reply: Some(reply), ..Carried::default() };
    let mut envelope = Envelope::new(task, &carried, Timestamp::now()).unwrap();
    envelope.chosen = Some("m".into());
    envelope
}

async fn send(yard: &Yard, message: Message) {
    yard.broker.publish(vec![message]).await.remove(0).unwrap();
}

/// There is no scheduler: what goes back is sent on at once, whatever its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_each_time_goes_back_for_ever_longer_and_then_is_a_dead_letter() {
    let mut yard = Yard::new(|settings| {
        settings.worker.retry_first_ms = HOUR_MS;
        settings.worker.retry_most_ms = 8 * HOUR_MS;
    })
    .await;
    yard.broker.declare(&[QueueSpec::durable(yard.topology.ready("m"))]).await.unwrap();
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(ModelSpec { max_attempts: ATTEMPTS, ..spec("m") }, handler.clone())]);
    let mut returned = yard.broker.consume(&yard.topology.retry(), 10).await.unwrap();
    let mut envelope = envelope(&yard, json!({"model": "m", "input": {"do": "fail each time"}}));
    for attempt in 1..ATTEMPTS {
        let before = Timestamp::now();
        send(&yard, messages::ready(&yard.topology, "m", &envelope).unwrap()).await;
        let batch = tokio::time::timeout(PATIENCE, returned.next_batch(10)).await.expect("it goes back").unwrap();
        returned.acker().settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        let [back] = &wire::read_envelopes(&batch[0].body).unwrap()[..] else { panic!("one task") };
        // Between half and all of each step, so that no wait is as short as one before it.
        let step_ms = HOUR_MS << (attempt - 1).min(3);
        let until = back.extras.not_before.expect("a time");
        let allowed = before.plus_ms(step_ms / 2)..=Timestamp::now().plus_ms(step_ms);
        assert!(allowed.contains(&until), "attempt {attempt}: {until} is not within {allowed:?}");
        assert_eq!(back.attempts, attempt);
        envelope = back.clone();
    }
    send(&yard, messages::ready(&yard.topology, "m", &envelope).unwrap()).await;
    let id = envelope.id.0;
    yard.collect(&[id]).await;
    assert_eq!(
        (yard.result(&id).state, yard.code(&id), yard.result(&id).attempt),
        (State::Failed, "own_code", ATTEMPTS)
    );
    assert_eq!(handler.runs.load(Ordering::SeqCst), ATTEMPTS as usize);
    assert_eq!(yard.dead(1).await, ["own_code"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_back_is_begun_no_sooner_than_its_message_says() {
    let mut yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(spec("m"), Arc::new(Obedient::default()))]);
    yard.scheduler(&[spec("m")]);
    let mut envelope = envelope(&yard, json!({"model": "m", "input": {}}));
    let until = Timestamp::now().plus_ms(400);
    (envelope.attempts, envelope.extras.not_before) = (1, Some(until));
    send(&yard, messages::retry(&yard.topology, &envelope).unwrap()).await;
    yard.collect(&[envelope.id.0]).await;
    let result = yard.result(&envelope.id.0);
    assert_eq!((result.state, result.attempt), (State::Succeeded, 2));
    assert!(result.timings.started.unwrap() >= until, "{:?} is before {until}", result.timings);
}
