//! What a broker is asked and answers is counted; and what Taskyard is measured against does its work.
//!
//! `TASKYARD_TEST_AMQP` names a RabbitMQ. Without it what needs one is skipped, which is a failure when
//! `TASKYARD_TEST_REQUIRE_SERVERS` is 1.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::broker::rabbitmq::RabbitMq;
use taskyard_shared::broker::rabbitmq::relay::{Hop, relay};
use taskyard_shared::broker::rabbitmq::slots::{Slots, declare_priority_queue, work_on};
use taskyard_shared::broker::{Broker, Delivery, Message, Operations, PublishError, QueueSpec, Verdict};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{BrokerSettings, Settings};
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);
const BODY: &str = "a body of 23 characters";

fn settings() -> Option<BrokerSettings> {
    let Ok(url) = std::env::var("TASKYARD_TEST_AMQP") else {
        let required = std::env::var("TASKYARD_TEST_REQUIRE_SERVERS").is_ok_and(|value| value == "1");
        assert!(!required, "TASKYARD_TEST_AMQP is not set");
        println!("skipped: TASKYARD_TEST_AMQP is not set");
        return None;
    };
    Some(BrokerSettings { url, ..Settings::default().broker })
}

fn unique(name: &str) -> String {
    format!("taskyard-test.{name}.{}", uuid::Uuid::new_v4().simple())
}

fn counted(operations: &Operations, operation: &str) -> u64 {
    operations.counts().iter().find(|(name, _)| *name == operation).expect("it is counted").1
}

/// Takes so many of a queue, and acks them.
async fn take(broker: &dyn Broker, queue: &str, count: usize) -> Vec<Delivery> {
    let mut consumer = broker.consume(queue, 100).await.expect("consuming");
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = tokio::time::timeout(LIMIT, consumer.next_batch(100)).await;
        taken.extend(next.expect("in time").expect("deliveries"));
    }
    let tags = taken.iter().map(|delivery| delivery.tag).collect();
    assert_eq!(consumer.acker().settle(tags, Verdict::Ack).await, 0);
    taken
}

/// Ten messages, one of which no queue takes; the others are delivered and acked.
async fn exercise(broker: &dyn Broker, queue: &str) {
    broker.declare(&[QueueSpec::durable(queue)]).await.expect("declaring");
    let mut messages: Vec<Message> = (0..9).map(|_| Message::to_queue(queue, BODY)).collect();
    messages.push(Message::to_queue(unique("nowhere"), BODY));
    let mut answers = broker.publish(messages).await;
    assert_eq!(answers.pop(), Some(Err(PublishError::Unroutable)));
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    take(broker, queue, 9).await;
}

#[tokio::test]
async fn rabbitmq_counts_what_goes_over_its_connections() {
    let Some(settings) = settings() else { return };
    let broker = RabbitMq::connect(&settings).await.expect("connecting");
    let queue = unique("counts");
    exercise(&broker, &queue).await;
    let operations = broker.operations().expect("it counts");
    for (operation, count) in [("publish", 10), ("return", 1), ("deliver", 9), ("ack", 1), ("requeue", 0)] {
        assert_eq!(counted(&operations, operation), count, "{operation}");
    }
    let confirms = counted(&operations, "confirm");
    assert!((1..=10).contains(&confirms), "{confirms}");
    let [(_, sent), (_, received)] = operations.bytes();
    assert!(sent > 10 * BODY.len() as u64 && received > 10 * BODY.len() as u64, "{sent} {received}");
    broker.delete_queue(&queue).await.expect("deleting");
    broker.close().await;
}

#[tokio::test]
async fn the_embedded_broker_counts_and_metrics_add_brokers_up() {
    let registry = Registry::new().expect("a registry");
    let folder = tempfile::tempdir().expect("a folder");
    let durable = EmbeddedBroker::open(folder.path()).expect("a broker");
    let brokers: [Arc<dyn Broker>; 2] = [Arc::new(durable), Arc::new(EmbeddedBroker::in_memory())];
    for broker in &brokers {
        registry.broker(broker).expect("the same metrics again");
    }
    exercise(&*brokers[0], "queue").await;
    let metric = |line: &str| {
        let text = registry.render().expect("metrics");
        let value = text.lines().find_map(|known| known.strip_prefix(line)).unwrap_or_else(|| panic!("{line}: {text}"));
        value.trim().parse::<f64>().expect("a number")
    };
    let operation = |name: &str| metric(&format!("taskyard_broker_operations_total{{operation=\"{name}\"}}"));
    assert_eq!((operation("publish"), operation("deliver"), operation("ack")), (10.0, 9.0, 1.0));
    assert!(operation("commit") >= 1.0);
    exercise(&*brokers[1], "queue").await;
    assert_eq!((operation("publish"), operation("deliver"), operation("ack")), (20.0, 18.0, 2.0));
    // Looking at it again counts nothing again.
    assert_eq!(operation("publish"), 20.0);
    assert_eq!(metric("taskyard_broker_bytes_total{direction=\"received\"}"), 18.0 * BODY.len() as f64);
}

#[tokio::test]
async fn a_hop_hands_every_message_on_and_acks_it_when_it_is_confirmed() {
    let Some(settings) = settings() else { return };
    let broker = RabbitMq::connect(&settings).await.expect("connecting");
    let (first, second) = (unique("first"), unique("second"));
    broker.declare(&[QueueSpec::durable(&first), QueueSpec::durable(&second)]).await.expect("declaring");
    let operations = Arc::new(Operations::default());
    let stop = CancellationToken::new();
    let hop = Hop { from: vec![first.clone()], to: Vec::new(), in_flight: 3 };
    let hopping = {
        let (settings, operations, stop) = (settings.clone(), operations.clone(), stop.clone());
        tokio::spawn(async move { relay(&settings, hop, operations, stop).await })
    };
    let message = |number: usize| {
        let mut message = Message::to_queue(&first, format!("{number}"));
        message.properties.reply_to = Some(second.clone());
        message
    };
    let published = broker.publish((0..50).map(message).collect()).await;
    assert!(published.iter().all(Result::is_ok), "{published:?}");
    let taken = take(&broker, &second, 50).await;
    let bodies: Vec<&[u8]> = taken.iter().map(|delivery| &*delivery.body).collect();
    let expected: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    assert_eq!(bodies, expected.iter().map(String::as_bytes).collect::<Vec<_>>(), "in order, once");
    stop.cancel();
    assert_eq!(hopping.await.expect("no panic"), Ok(()));
    for operation in ["publish", "deliver", "ack"] {
        assert_eq!(counted(&operations, operation), 50, "{operation}");
    }
    assert_eq!(broker.queue_state(&first).await.expect("a state").expect("a queue").ready, 0);

    // What cannot be handed on ends the hop, and stays.
    let hop = Hop { from: vec![second.clone()], to: vec![unique("nowhere")], in_flight: 3 };
    let left = broker.publish(vec![Message::to_queue(&second, "left")]).await;
    assert_eq!(left, [Ok(())]);
    let ended = relay(&settings, hop, operations, CancellationToken::new());
    let refused = tokio::time::timeout(LIMIT, ended).await.expect("it ends").expect_err("no queue takes it");
    assert!(!refused.is_transient(), "{refused}");
    assert_eq!(take(&broker, &second, 1).await[0].body, "left");
    for queue in [first, second] {
        broker.delete_queue(&queue).await.expect("deleting");
    }
    broker.close().await;
}

#[tokio::test]
async fn slots_behind_a_priority_queue_take_the_urgent_first_one_at_a_time() {
    let Some(settings) = settings() else { return };
    let broker = RabbitMq::connect(&settings).await.expect("connecting");
    for confirmed in [true, false] {
        let (queue, replies) = (unique("priority"), unique("replies"));
        declare_priority_queue(&settings, &queue, 9).await.expect("declaring");
        broker.declare(&[QueueSpec::durable(&replies)]).await.expect("declaring");
        let message = |priority: u8| {
            let mut message = Message::to_queue(&queue, vec![priority]);
            message.properties.priority = Some(priority);
            message.properties.reply_to = Some(replies.clone());
            message
        };
        let published = broker.publish([0, 5, 0, 9, 3].map(message).into()).await;
        assert!(published.iter().all(Result::is_ok), "{published:?}");
        let stop = CancellationToken::new();
        let slots = Slots { queue: queue.clone(), count: 1, confirmed };
        let working = {
            let (settings, stop) = (settings.clone(), stop.clone());
            let work = Arc::new(|body: bytes::Bytes| async move { body.to_vec() }.boxed());
            tokio::spawn(async move { work_on(&settings, &slots, work, Arc::default(), stop).await })
        };
        let taken = take(&broker, &replies, 5).await;
        let order: Vec<u8> = taken.iter().map(|delivery| delivery.body[0]).collect();
        assert_eq!(order, [9, 5, 3, 0, 0], "confirmed: {confirmed}");
        stop.cancel();
        assert_eq!(working.await.expect("no panic"), Ok(()));
        for queue in [queue, replies] {
            broker.delete_queue(&queue).await.expect("deleting");
        }
    }
    broker.close().await;
}
