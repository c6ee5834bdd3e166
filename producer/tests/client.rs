//! The Rust client on the embedded broker.

mod yard;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use taskyard_producer::client::task;
use taskyard_producer::{Client, Limits, SubmitError, WaitError};
use taskyard_shared::broker::{Broker, Message, PublishError};
use taskyard_shared::messages::{self, RESULTS_HEADER};
use taskyard_shared::{
    Carried, Envelope, Priority, Reply, State, Task, TaskError, TaskId, TaskResult, Timestamp, decode_tasks,
};
use yard::{Yard, eventually, within};

const LONG: Duration = Duration::from_secs(20);

fn echo(input: &Value) -> Task {
    task("echo", input).unwrap()
}

fn output(result: &TaskResult) -> Value {
    serde_json::from_str(result.output.as_ref().unwrap().get()).unwrap()
}

#[tokio::test]
async fn a_submitted_task_is_in_intake_with_everything_filled_in() {
    let yard = Yard::new();
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    client.declare().await.unwrap();
    let mut asked = echo(&json!({"text": "good"}));
    asked.priority = Some(Priority::HIGHEST);
    asked.deadline_ms = Some(60_000);
    let submitted = client.submit(asked).await.unwrap();

    let deliveries = yard.drain(&yard.topology.intake()).await;
    assert_eq!(deliveries.len(), 1);
    let properties = &deliveries[0].properties;
    assert_eq!(properties.message_id, Some(submitted.id.0.to_string()));
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.reply_to, None);
    assert_eq!(deliveries[0].routing_key, "echo");
    let task = decode_tasks(&deliveries[0].body).unwrap().remove(0).unwrap();
    assert_eq!(task.id, Some(submitted.id));
    assert_eq!(task.priority, Some(Priority::HIGHEST));
    assert_eq!(task.deadline, Some(submitted.accepted.plus_ms(60_000)));
    assert_eq!(task.input.get(), r#"{"text":"good"}"#);
}

#[tokio::test]
async fn a_batch_travels_in_few_messages_and_bad_tasks_stay_behind() {
    let yard = Yard::new();
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    client.declare().await.unwrap();
    let mut tasks: Vec<Task> = (0..1000).map(|number| echo(&json!(number))).collect();
    tasks[500] = task("No Such Name", &json!(1)).unwrap();
    let answers = client.submit_batch(tasks).await;
    assert_eq!(answers.len(), 1000);
    let bad: Vec<usize> = (0..1000).filter(|index| answers[*index].is_err()).collect();
    assert_eq!(bad, [500]);
    assert!(matches!(&answers[500], Err(SubmitError::Invalid(invalid)) if invalid.field == "model"));

    let deliveries = yard.drain(&yard.topology.intake()).await;
    assert!(deliveries.len() <= 4, "{} messages", deliveries.len());
    let published: Vec<TaskId> = deliveries
        .iter()
        .flat_map(|delivery| decode_tasks(&delivery.body).unwrap())
        .map(|task| task.unwrap().id.unwrap())
        .collect();
    let accepted: Vec<TaskId> = answers.iter().filter_map(|answer| Some(answer.as_ref().ok()?.id)).collect();
    assert_eq!(published, accepted);
}

#[tokio::test]
async fn nobody_to_take_it_is_an_error_and_not_accepted() {
    let yard = Yard::new();
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let error = client.submit(echo(&json!(1))).await.unwrap_err();
    assert!(matches!(error, SubmitError::Publish { error: PublishError::Unroutable, .. }), "{error}");
    assert!(error.is_transient());

    client.declare().await.unwrap();
    yard.broker.refuse_with(Some(PublishError::Full));
    let error = client.submit(echo(&json!(1))).await.unwrap_err();
    assert!(matches!(error, SubmitError::Publish { error: PublishError::Full, .. }), "{error}");
    let answers = client.submit_batch(vec![echo(&json!(1)), echo(&json!(2))]).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(SubmitError::Publish { error: PublishError::Full, .. }))));
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_given_up_on() {
    let yard = Yard::new();
    let limits = Limits { timeout: Duration::from_millis(50), ..Limits::default() };
    let client = Client::with_limits(yard.broker.clone(), yard.topology.clone(), limits);
    client.declare().await.unwrap();
    yard.broker.hang(true);
    let error = within(client.submit(echo(&json!(1)))).await.unwrap_err();
    assert!(matches!(error, SubmitError::Publish { error: PublishError::Unknown(_), .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_confirmed_is_published_again_under_the_same_id() {
    let yard = Yard::new();
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    client.declare().await.unwrap();
    yard.broker.refuse_with(Some(PublishError::Unknown("as asked".into())));
    let healing = async {
        eventually("it was tried twice", || async { yard.broker.refused.load(Ordering::SeqCst) >= 2 }).await;
        yard.broker.refuse_with(None);
    };
    let (submitted, ()) = tokio::join!(client.submit(echo(&json!(1))), healing);
    let deliveries = yard.drain(&yard.topology.intake()).await;
    assert_eq!(deliveries.len(), 1);
    assert_eq!(deliveries[0].properties.message_id, Some(submitted.unwrap().id.0.to_string()));
}

#[tokio::test]
async fn a_result_is_awaited() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let result = client.submit_and_wait(echo(&json!({"a": [1, 2]})), LONG).await.unwrap().unwrap();
    assert_eq!(result.state, State::Succeeded);
    assert_eq!(output(&result), json!({"a": [1, 2]}));

    let result = client.submit_and_wait(echo(&json!({"fail": true})), LONG).await.unwrap().unwrap();
    assert_eq!(result.state, State::Failed);
    assert_eq!(result.error.as_ref().unwrap().code, "handler");
}

#[tokio::test]
async fn a_result_can_be_asked_for_again() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let mut pending = client.request(echo(&json!({"hold_ms": 50}))).await.unwrap();
    let early = pending.result(Duration::from_millis(1)).await;
    assert_eq!(early.unwrap_err(), WaitError::TimedOut { id: pending.id(), after_ms: 1 });
    let first = pending.result(LONG).await.unwrap();
    let again = pending.result(LONG).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again));
}

#[tokio::test]
async fn each_result_of_a_batch_finds_its_task() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let tasks = (0..1000).map(|number| echo(&json!({"number": number}))).collect();
    let pending = client.request_batch(tasks).await.unwrap();
    for (number, pending) in pending.into_iter().enumerate() {
        let mut pending = pending.unwrap();
        let result = pending.result(LONG).await.unwrap();
        assert_eq!(result.id, pending.id());
        assert_eq!(output(&result)["number"], number);
    }
    assert_eq!(yard.runs.load(Ordering::Relaxed), 1000);
}

#[tokio::test]
async fn the_same_id_again_is_answered_and_not_run_again() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let id = TaskId::new();
    let asked = || Task { id: Some(id), ..echo(&json!(7)) };
    let first = client.submit_and_wait(asked(), LONG).await.unwrap().unwrap();
    let again = client.submit_and_wait(asked(), LONG).await.unwrap().unwrap();
    assert_eq!((first.id, again.id), (id, id));
    assert_eq!(output(&again), json!(7));
    assert_eq!(yard.runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_idempotency_key_of_another_id_is_answered_with_that_ones_result() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let asked = |id| Task { id: Some(id), idempotency_key: Some("key".into()), ..echo(&json!(7)) };
    let (one, two) = (TaskId::new(), TaskId::new());
    let first = client.submit_and_wait(asked(one), LONG).await.unwrap().unwrap();
    let second = client.submit_and_wait(asked(two), LONG).await.unwrap().unwrap();
    assert_eq!((first.id, second.id), (one, one));
    assert_eq!(yard.runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_conflict_is_told_to_who_made_it_and_to_nobody_else() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let asked = |id, input| Task { id: Some(id), ..echo(&input) };
    let is_refused = |result: &TaskResult| {
        result.state == State::Rejected && result.error.as_ref().is_some_and(|error| error.code == "conflict")
    };
    // All three are in intake before the first is run: the worker is busy.
    let held = TaskId::new();
    client.submit(echo(&json!({"hold_ms": 300}))).await.unwrap();
    let mut first = client.request(asked(held, json!(1))).await.unwrap();
    let mut others = client.request_batch(vec![asked(held, json!(2)), asked(held, json!(3))]).await.unwrap();
    let result = first.result(LONG).await.unwrap();
    assert_eq!((result.state, output(&result)), (State::Succeeded, json!(1)));
    others.clear();

    // Finished: who comes with something else under its id hears so, alone or in a batch.
    let late = client.submit_and_wait(asked(held, json!(2)), LONG).await.unwrap().unwrap();
    assert!(is_refused(&late), "{late:?}");
    let mut batch = client.request_batch(vec![asked(held, json!(2))]).await.unwrap();
    let late = batch[0].as_mut().unwrap().result(LONG).await.unwrap();
    assert!(is_refused(&late), "{late:?}");
}

#[tokio::test]
async fn a_refusal_of_a_second_task_does_not_reach_who_waits_for_the_first() {
    let yard = Yard::new();
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    client.declare().await.unwrap();
    let asked = |input| Task { id: Some(TaskId(uuid::Uuid::from_u128(7))), ..echo(&input) };
    let mut first = client.request(asked(json!(1))).await.unwrap();
    let mut second = client.request(asked(json!(2))).await.unwrap();
    let taken = yard.drain(&yard.topology.intake()).await;
    let answer = async |asked: usize, state: State| {
        let task = decode_tasks(&taken[asked].body).unwrap().remove(0).unwrap();
        let mut result = Envelope::new(task, &Carried::default(), Timestamp::now()).unwrap().result(state);
        if state == State::Rejected {
            result.error = Some(TaskError { code: "conflict".into(), message: String::new(), retryable: false });
        }
        let reply = Reply { array: false, ..messages::reply_of(&taken[asked].properties).unwrap() };
        assert_eq!(yard.broker.inner().publish(vec![messages::result(&reply, &result).unwrap()]).await, [Ok(())]);
    };
    answer(1, State::Rejected).await;
    assert_eq!(second.result(LONG).await.unwrap().state, State::Rejected);
    answer(1, State::Rejected).await;
    eventually("the second copy is read too", || async { yard.depth(&client.reply_queue()).await == 0 }).await;
    answer(0, State::Succeeded).await;
    assert_eq!(first.result(LONG).await.unwrap().state, State::Succeeded);
}

#[tokio::test]
async fn so_many_results_are_awaited_and_no_more() {
    let yard = Yard::new();
    let limits = Limits { waiting: 3, ..Limits::default() };
    let client = Client::with_limits(yard.broker.clone(), yard.topology.clone(), limits);
    client.declare().await.unwrap();
    let mut held = Vec::new();
    for number in 0..3 {
        held.push(client.request(echo(&json!(number))).await.unwrap());
    }
    let published = yard.broker.published.load(Ordering::SeqCst);
    assert!(matches!(client.request(echo(&json!(3))).await, Err(SubmitError::TooManyWaiting(_))));
    assert_eq!(yard.broker.published.load(Ordering::SeqCst), published, "it was published all the same");
    held.pop();
    assert!(client.request(echo(&json!(4))).await.is_ok());
}

#[tokio::test]
async fn a_result_that_was_lost_with_the_reply_queue_is_asked_for_again() {
    let yard = Yard::new();
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    client.declare().await.unwrap();
    let mut pending = client.request(echo(&json!("single"))).await.unwrap();
    let mut batch = client.request_batch(vec![echo(&json!("one")), echo(&json!("two"))]).await.unwrap();
    // Their tasks are taken, and their results never come.
    assert_eq!(yard.drain(&yard.topology.intake()).await.len(), 2);
    assert!(pending.result(Duration::from_millis(20)).await.is_err());

    yard.broker.cut();
    yard.work().await;
    assert_eq!(output(&pending.result(LONG).await.unwrap()), json!("single"));
    for (pending, expected) in batch.iter_mut().zip(["one", "two"]) {
        assert_eq!(output(&pending.as_mut().unwrap().result(LONG).await.unwrap()), json!(expected));
    }
}

#[tokio::test]
async fn a_client_outlives_a_broker_that_was_away() {
    let yard = Yard::working().await;
    let limits = Limits { timeout: Duration::from_millis(200), ..Limits::default() };
    let client = Client::with_limits(yard.broker.clone(), yard.topology.clone(), limits);
    assert!(client.submit_and_wait(echo(&json!(1)), LONG).await.unwrap().is_ok());
    yard.broker.go_away(true);
    eventually("the client notices", || async {
        matches!(client.request(echo(&json!(2))).await, Err(SubmitError::NoReplyQueue(_)))
    })
    .await;
    yard.broker.go_away(false);
    eventually("the client is back", || async { client.request(echo(&json!(3))).await.is_ok() }).await;
    assert_eq!(output(&client.submit_and_wait(echo(&json!(4)), LONG).await.unwrap().unwrap()), json!(4));
}

#[tokio::test]
async fn the_reply_queue_is_let_go_with_the_last_client() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    let other = client.clone();
    let mut pending = other.request(echo(&json!(1))).await.unwrap();
    pending.result(LONG).await.unwrap();
    let queue = client.reply_queue();
    assert_eq!(yard.consumers(&queue).await, 1);
    drop((client, other, pending));
    eventually("nobody consumes the reply queue", || async { yard.consumers(&queue).await == 0 }).await;
}

#[tokio::test]
async fn what_is_no_result_does_not_stop_the_reply_queue() {
    let yard = Yard::working().await;
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    client.submit_and_wait(echo(&json!(1)), LONG).await.unwrap().unwrap();
    let broker = yard.broker.inner();
    for body in ["", "null", "[", "{}", "[{}]", "\u{0}"] {
        let junk = Message::to_queue(client.reply_queue(), body.to_owned());
        assert_eq!(broker.publish(vec![junk]).await, [Ok(())]);
    }
    assert_eq!(output(&client.submit_and_wait(echo(&json!(2)), LONG).await.unwrap().unwrap()), json!(2));
}

#[tokio::test]
async fn results_may_come_as_arrays_unless_the_task_may_be_another() {
    let yard = Yard::new();
    let client = Client::new(yard.broker.clone(), yard.topology.clone());
    client.declare().await.unwrap();
    let plain = client.request(echo(&json!(1))).await.unwrap();
    let named = Task { id: Some(TaskId::new()), idempotency_key: Some("key".into()), ..echo(&json!(2)) };
    let named = client.request(named).await.unwrap();
    let deliveries = yard.drain(&yard.topology.intake()).await;
    let header = |index: usize| deliveries[index].properties.headers.get(RESULTS_HEADER).map(String::as_str);
    assert_eq!((header(0), header(1)), (Some("array"), None));
    let correlation = |index: usize| deliveries[index].properties.correlation_id.clone().unwrap();
    assert_ne!(correlation(0), correlation(1));
    drop((plain, named));
    assert_eq!(deliveries[0].properties.reply_to, Some(client.reply_queue()));
    assert!(client.reply_queue().starts_with("yard.replies.client-"));
}
