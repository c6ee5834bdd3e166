//! The RabbitMQ adapter against a real RabbitMQ: the contract on classic and on quorum queues, and what only a network
//! and a server can do to it.
//!
//! `TASKYARD_TEST_AMQP` names the server. Without it everything here is skipped, which is a failure when
//! `TASKYARD_TEST_REQUIRE_SERVERS` is 1.

#[path = "support/relay.rs"]
mod relay;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use taskyard_shared::broker::contract::Subject;
use taskyard_shared::broker::rabbitmq::RabbitMq;
use taskyard_shared::broker::{Broker, BrokerError, Consumer, Delivery, Message, PublishError, QueueSpec, Verdict};
use taskyard_shared::process::settings::{BrokerSettings, QueueType, TlsSettings};

use self::relay::Relay;

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

fn settings(queue_type: QueueType) -> Option<BrokerSettings> {
    let Ok(url) = std::env::var("TASKYARD_TEST_AMQP") else {
        let required = std::env::var("TASKYARD_TEST_REQUIRE_SERVERS").is_ok_and(|value| value == "1");
        assert!(!required, "TASKYARD_TEST_AMQP is not set");
        println!("skipped: TASKYARD_TEST_AMQP is not set");
        return None;
    };
    Some(BrokerSettings {
        url,
        namespace: "taskyard-test".to_owned(),
        queue_type,
        heartbeat_s: 10,
        connect_timeout_ms: 10_000,
        publish_timeout_ms: 10_000,
        in_flight: 2048,
        tls: TlsSettings::default(),
    })
}

async fn subject(check: &str, queue_type: QueueType) -> Option<Subject> {
    let settings = settings(queue_type)?;
    let connect = async || Arc::new(RabbitMq::connect(&settings).await.expect("connecting"));
    let (broker, other) = tokio::join!(connect(), connect());
    let prefix = format!("taskyard-test.{check}.{}", uuid::Uuid::new_v4().simple());
    Some(Subject { broker, other, prefix })
}

async fn finish(subject: Subject) {
    subject.broker.close().await;
    subject.other.close().await;
    let settings = settings(QueueType::Auto).expect("the server was there");
    let broker = RabbitMq::connect(&settings).await.expect("connecting");
    for queue in subject.queues() {
        broker.delete_queue(&queue).await.expect("deleting a queue");
    }
    broker.delete_exchange(&subject.exchange()).await.expect("deleting an exchange");
    broker.close().await;
}

mod classic {
    use super::*;

    async fn start(check: &str) -> Option<Subject> {
        subject(check, QueueType::Classic).await
    }

    taskyard_shared::broker_contract!(start, finish);
}

mod quorum {
    use super::*;

    async fn start(check: &str) -> Option<Subject> {
        subject(check, QueueType::Quorum).await
    }

    taskyard_shared::broker_contract!(start, finish);
}

/// A broker behind a relay, and one past it.
struct Behind {
    relay: Relay,
    broker: RabbitMq,
    direct: Subject,
    queue: String,
}

impl Behind {
    async fn start(check: &str, adjust: impl FnOnce(&mut BrokerSettings)) -> Option<Self> {
        let mut settings = settings(QueueType::Classic)?;
        let (credentials, host) = split(&settings.url);
        let relay = Relay::to(&host).await;
        settings.url = format!("amqp://{credentials}@{}", relay.address);
        adjust(&mut settings);
        let broker = RabbitMq::connect(&settings).await.expect("connecting through the relay");
        let direct = subject(check, QueueType::Classic).await?;
        let queue = format!("{}.a", direct.prefix);
        direct.broker.declare(&[QueueSpec::durable(&queue)]).await.expect("declaring");
        Some(Self { relay, broker, direct, queue })
    }

    fn message(&self, body: &str) -> Message {
        Message::to_queue(&self.queue, body.to_owned())
    }

    async fn publish(&self, body: &str) -> Result<(), PublishError> {
        self.broker.publish(vec![self.message(body)]).await.pop().expect("one answer")
    }

    async fn finish(self) {
        self.broker.close().await;
        finish(self.direct).await;
    }
}

/// Credentials, and host with port, of a URL for the default virtual host.
fn split(url: &str) -> (String, String) {
    let rest = url.strip_prefix("amqp://").expect("an amqp URL").trim_end_matches('/').trim_end_matches("/%2f");
    let (credentials, host) = rest.rsplit_once('@').unwrap_or(("guest:guest", rest));
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:5672") };
    (credentials.to_owned(), host)
}

async fn next(consumer: &mut dyn Consumer, most: usize) -> Result<Vec<Delivery>, BrokerError> {
    tokio::time::timeout(LIMIT, consumer.next_batch(most)).await.expect("nothing came")
}

async fn eventually<T>(what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let finding = async {
        loop {
            if let Some(found) = find().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, finding).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

fn bodies(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| std::str::from_utf8(&delivery.body).expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_cut_a_consumer_errs_once_and_consumes_again_with_its_prefetch() {
    let Some(yard) = Behind::start("cut-consumer", |_| {}).await else { return };
    for body in ["1", "2", "3", "4", "5"] {
        assert_eq!(yard.publish(body).await, Ok(()));
    }
    let mut consumer = yard.broker.consume(&yard.queue, 2).await.expect("consuming");
    let mut held = Vec::new();
    while held.len() < 2 {
        held.extend(next(&mut *consumer, 10).await.expect("deliveries"));
    }
    assert_eq!(consumer.acker().settle(vec![held[0].tag], Verdict::Ack).await, 0);
    let mut third = next(&mut *consumer, 10).await.expect("a third");
    held.append(&mut third);

    yard.relay.cut();
    let error = next(&mut *consumer, 10).await.expect_err("it was cut");
    assert!(matches!(error, BrokerError::Cut(_)) && error.is_transient(), "{error:?}");
    let void: Vec<_> = held[1..].iter().map(|delivery| delivery.tag).collect();
    assert_eq!(consumer.acker().settle(void.clone(), Verdict::Ack).await, 2);

    // It waits for the next session by itself. The old one is not even dropped.
    let mut again = yard.broker.consume(&yard.queue, 2).await.expect("consuming again");
    assert_eq!(again.acker().settle(void, Verdict::Ack).await, 2);
    let mut back = Vec::new();
    while back.len() < 2 {
        back.extend(next(&mut *again, 10).await.expect("deliveries"));
    }
    assert_eq!(bodies(&back), ["2", "3"]);
    assert!(back.iter().all(|delivery| delivery.redelivered));
    let ready = async || yard.direct.other.queue_state(&yard.queue).await.ok()??.ready.eq(&2).then_some(());
    eventually("two ready beyond the prefetch", ready).await;
    assert!(tokio::time::timeout(Duration::ZERO, again.next_batch(10)).await.is_err(), "more than the prefetch");
    drop((consumer, again));
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_who_closes_the_connections_is_told_of_and_survived() {
    let Some(yard) = Behind::start("closed", |_| {}).await else { return };
    assert_eq!(yard.publish("1").await, Ok(()));
    let mut consumer = yard.broker.consume(&yard.queue, 1).await.expect("consuming");
    let held = next(&mut *consumer, 1).await.expect("a delivery");
    yard.relay.say_closed();
    let error = next(&mut *consumer, 1).await.expect_err("it was closed");
    assert!(matches!(&error, BrokerError::Cut(text) if text.contains("CONNECTION_FORCED")), "{error:?}");
    assert_eq!(consumer.acker().settle(vec![held[0].tag], Verdict::Ack).await, 1);
    let mut consumer = yard.broker.consume(&yard.queue, 2).await.expect("consuming again");
    eventually("publishing", async || yard.publish("2").await.ok()).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(next(&mut *consumer, 2).await.expect("deliveries"));
    }
    assert_eq!(bodies(&seen), ["1", "2"]);
    drop(consumer);
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_while_publishing_loses_nothing_that_was_confirmed() {
    let Some(yard) = Behind::start("cut-publisher", |_| {}).await else { return };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let unknown = AtomicUsize::new(0);
    let publishing = async {
        let mut confirmed = Vec::new();
        let mut number = 0_u32;
        while !*stopped.borrow() {
            let numbers: Vec<String> = (number..number + 50).map(|number| number.to_string()).collect();
            number += 50;
            let messages = numbers.iter().map(|body| yard.message(body)).collect();
            for (body, answer) in numbers.into_iter().zip(yard.broker.publish(messages).await) {
                match answer {
                    Ok(()) => confirmed.push(body),
                    Err(PublishError::Unknown(_)) => {
                        unknown.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        confirmed
    };
    let cutting = async {
        // Each time after some came through. A cut may fall between two calls, which then notice nothing of it: one of them has
        // to fall into traffic.
        for cuts in 1.. {
            if cuts > 5 && unknown.load(Ordering::Relaxed) > 0 {
                break;
            }
            assert!(cuts < 200, "no cut was noticed");
            let before = ready(&yard).await;
            eventually("more messages", async || (ready(&yard).await > before + 200).then_some(())).await;
            yard.relay.cut();
        }
        let before = ready(&yard).await;
        eventually("messages after the cuts", async || (ready(&yard).await > before + 50).then_some(())).await;
        stop.send(true).expect("somebody listens");
    };
    let (confirmed, ()) = tokio::join!(publishing, cutting);
    let unknown = unknown.into_inner();
    println!("{} confirmed, {unknown} unknown", confirmed.len());

    let total = ready(&yard).await;
    let mut consumer = yard.direct.other.consume(&yard.queue, 5000).await.expect("consuming");
    let mut landed = std::collections::BTreeSet::new();
    let mut count = 0;
    while count < total {
        let batch = next(&mut *consumer, 5000).await.expect("deliveries");
        count += batch.len() as u64;
        landed.extend(bodies(&batch).into_iter().map(str::to_owned));
        consumer.acker().settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
    }
    let lost: Vec<&String> = confirmed.iter().filter(|body| !landed.contains(*body)).collect();
    assert!(lost.is_empty(), "confirmed and lost: {lost:?}");
    drop(consumer);
    yard.finish().await;
}

async fn ready(yard: &Behind) -> u64 {
    yard.direct.other.queue_state(&yard.queue).await.expect("asking").expect("it is there").ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_waits_for_the_broker_to_come_back() {
    let Some(yard) = Behind::start("wait", |_| {}).await else { return };
    let tries = yard.relay.accepted();
    yard.relay.take_down();
    // What is written before the cut is noticed goes down with it.
    eventually("the cut to be noticed", async || (!yard.broker.is_ready()).then_some(())).await;
    let publishing = yard.publish("late");
    let healing = async {
        // After some tries that failed.
        eventually("tries", async || (yard.relay.accepted() >= tries + 3).then_some(())).await;
        assert!(!yard.broker.is_ready());
        yard.relay.pass();
    };
    let (answer, ()) = tokio::join!(publishing, healing);
    assert_eq!(answer, Ok(()));
    eventually("readiness", async || yard.broker.is_ready().then_some(())).await;
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_away_calls_err_in_their_time() {
    let Some(yard) = Behind::start("away", |settings| {
        settings.publish_timeout_ms = 1_000;
        settings.connect_timeout_ms = 2_000;
    })
    .await
    else {
        return;
    };
    yard.relay.take_down();
    let started = Instant::now();
    let answer = yard.publish("nowhere to go").await;
    assert!(matches!(answer, Err(PublishError::Unknown(_))), "{answer:?}");
    assert!(yard.broker.consume(&yard.queue, 1).await.err().expect("no broker").is_transient());
    assert!(yard.broker.queue_state(&yard.queue).await.expect_err("no broker").is_transient());
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    yard.relay.pass();
    eventually("publishing", async || yard.publish("back").await.ok()).await;
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_bounds_publishing_and_is_left_behind() {
    let Some(yard) = Behind::start("black-hole", |settings| {
        settings.publish_timeout_ms = 1_000;
        settings.connect_timeout_ms = 2_000;
        settings.heartbeat_s = 1;
    })
    .await
    else {
        return;
    };
    assert_eq!(yard.publish("before").await, Ok(()));
    let mut consumer = yard.broker.consume(&yard.queue, 1).await.expect("consuming");
    let held = next(&mut *consumer, 1).await.expect("a delivery");
    assert_eq!(bodies(&held), ["before"]);

    yard.relay.black_hole();
    // Small ones fit into the kernel's buffers, large ones do not.
    let small = yard.broker.publish(vec![yard.message("small")]);
    let large = yard.broker.publish(vec![yard.message(&"x".repeat(8 << 20)), yard.message("behind it")]);
    let started = Instant::now();
    let (small, large) = tokio::join!(small, large);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for answer in small.into_iter().chain(large) {
        assert!(matches!(answer, Err(PublishError::Unknown(_))), "{answer:?}");
    }
    // The consumer's connection is silent too, and its heartbeats say so.
    let error = next(&mut *consumer, 1).await.expect_err("it is a black hole");
    assert!(error.is_transient(), "{error:?}");
    assert!(!yard.broker.is_ready());

    // Trying goes on and leaves nothing behind: no more than a try each of the two links is open.
    let tries = yard.relay.accepted();
    eventually("more tries", async || (yard.relay.accepted() >= tries + 6).then_some(())).await;
    assert!(yard.relay.open() <= 2, "{} connections are kept open in a black hole", yard.relay.open());

    yard.relay.pass();
    eventually("publishing", async || yard.publish("after").await.ok()).await;
    let mut consumer = eventually("consuming", async || yard.broker.consume(&yard.queue, 10).await.ok()).await;
    let mut seen = Vec::new();
    while !seen.contains(&"after".to_owned()) {
        let batch = next(&mut *consumer, 10).await.expect("deliveries");
        seen.extend(bodies(&batch).into_iter().map(str::to_owned));
        consumer.acker().settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
    }
    assert!(seen.contains(&"before".to_owned()), "it was not acked");
    drop(consumer);
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_an_alarm_publishing_errs_in_its_time_and_goes_on_after_it() {
    let Some(yard) = Behind::start("alarm", |settings| settings.publish_timeout_ms = 2_000).await else { return };
    assert_eq!(yard.publish("before").await, Ok(()));
    assert!(yard.broker.is_ready());
    yard.relay.say_blocked();
    eventually("the alarm", async || yard.publish("just before").await.err()).await;
    assert!(!yard.broker.is_ready());

    let (landed, started) = (ready(&yard).await, Instant::now());
    let answer = yard.publish("held back").await;
    let Err(PublishError::Unknown(reason)) = answer else { panic!("{answer:?}") };
    assert!(reason.contains("alarm"), "{reason}");
    assert!(started.elapsed() >= Duration::from_secs(2) && started.elapsed() < Duration::from_secs(10));

    let (publishing, ending) = (yard.publish("after"), async { yard.relay.say_unblocked() });
    let (answer, ()) = tokio::join!(publishing, ending);
    assert_eq!(answer, Ok(()));
    eventually("readiness", async || yard.broker.is_ready().then_some(())).await;
    assert_eq!(ready(&yard).await, landed + 1, "what was held back was written after all");
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_queue_and_a_lock_go_with_their_connection() {
    let Some(yard) = Behind::start("exclusive", |_| {}).await else { return };
    let (queue, lock) = (format!("{}.replies", yard.direct.prefix), format!("{}.lock", yard.direct.prefix));
    yard.broker.declare(&[QueueSpec::exclusive(&queue)]).await.expect("declaring");
    let held = yard.broker.try_lock(&lock).await.expect("asking").expect("it is free");
    let error = yard.direct.other.consume(&queue, 1).await.err().expect("it is another's");
    assert!(matches!(&error, BrokerError::Refused(text) if text.contains("RESOURCE_LOCKED")), "{error:?}");
    assert!(held.is_held());

    yard.relay.take_down();
    eventually("the lock is lost", async || (!held.is_held()).then_some(())).await;
    let taken = eventually("another takes it", async || yard.direct.other.try_lock(&lock).await.expect("asking")).await;
    yard.relay.pass();
    eventually("the queue is declared again", async || {
        match yard.broker.declare(&[QueueSpec::exclusive(&queue)]).await {
            Ok(()) => Some(()),
            Err(error) if error.is_transient() => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    assert!(yard.broker.consume(&queue, 1).await.is_ok());
    assert!(yard.broker.try_lock(&lock).await.expect("asking").is_none());
    // The old one is not taken for the new.
    assert!(!held.is_held() && taken.is_held());
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_ends_its_consumer_and_nothing_else() {
    let Some(yard) = Behind::start("deleted", |_| {}).await else { return };
    let other = format!("{}.b", yard.direct.prefix);
    yard.broker.declare(&[QueueSpec::durable(&other)]).await.expect("declaring");
    let mut doomed = yard.broker.consume(&yard.queue, 1).await.expect("consuming");
    let mut unharmed = yard.broker.consume(&other, 1).await.expect("consuming");
    yard.broker.delete_queue(&yard.queue).await.expect("deleting");
    assert!(matches!(next(&mut *doomed, 1).await, Err(BrokerError::Cut(_))));
    let missing = yard.broker.consume(&yard.queue, 1).await.err().expect("it is gone");
    assert!(matches!(&missing, BrokerError::Refused(text) if text.contains("NOT_FOUND")), "{missing:?}");
    assert_eq!(yard.broker.publish(vec![Message::to_queue(&other, "1")]).await, [Ok(())]);
    assert_eq!(bodies(&next(&mut *unharmed, 1).await.expect("deliveries")), ["1"]);
    drop((doomed, unharmed));
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_named() {
    let Some(yard) = Behind::start("mismatch", |_| {}).await else { return };
    let spec = QueueSpec { max_length: Some(5), ..QueueSpec::durable(&yard.queue) };
    let error = yard.broker.declare(&[spec]).await.expect_err("it has no limit");
    assert!(!error.is_transient());
    let BrokerError::Mismatch { queue, detail } = error else { panic!("{error:?}") };
    assert_eq!(queue, yard.queue);
    assert!(detail.contains("PRECONDITION_FAILED") && detail.contains("x-max-length"), "{detail}");
    // The channel that died of it was its own.
    assert_eq!(yard.publish("fine").await, Ok(()));
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_a_message_is_told_apart() {
    let Some(yard) = Behind::start("large", |settings| settings.publish_timeout_ms = 60_000).await else { return };
    // Over the most that any RabbitMQ takes by default: 128 MiB before 4.0, 16 MiB since.
    let large = Message::to_queue(&yard.queue, vec![b'x'; (128 << 20) + 1]);
    let mut answers = yard.broker.publish(vec![large, yard.message("small")]).await;
    assert!(matches!(answers.pop(), Some(Err(PublishError::Unknown(_)) | Ok(()))));
    assert_eq!(answers.pop(), Some(Err(PublishError::TooLarge)));
    assert_eq!(yard.publish("small").await, Ok(()));
    yard.finish().await;
}

/// Headers travel in one frame. Outsiders have larger frames than a connection of ours asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_fill_a_publishers_frame_are_read_and_larger_ones_end_its_session_alone() {
    let Some(yard) = Behind::start("headers", |settings| settings.url.push_str("?frame_max=131072")).await else {
        return;
    };
    let with = |bytes: usize| {
        let mut message = yard.message("1");
        message.properties.headers.insert("x-large".into(), "x".repeat(bytes));
        message
    };
    let mut consumer = yard.direct.broker.consume(&yard.queue, 10).await.expect("consuming");
    assert_eq!(yard.broker.publish(vec![with(130_000)]).await, [Ok(())]);
    let came = next(&mut *consumer, 1).await.expect("no session ends by it").pop().expect("a delivery");
    assert_eq!(came.properties.headers["x-large"].len(), 130_000);
    consumer.acker().settle(vec![came.tag], Verdict::Ack).await;

    let answer = yard.broker.publish(vec![with(140_000)]).await.pop().expect("one answer");
    assert!(matches!(answer, Err(PublishError::Unknown(_))), "{answer:?}");
    eventually("the publisher to be back", async || yard.publish("2").await.ok()).await;
    let came = next(&mut *consumer, 1).await.expect("its session is not theirs").pop().expect("a delivery");
    assert_eq!((&*came.body, came.redelivered), (&b"2"[..], false));
    consumer.acker().settle(vec![came.tag], Verdict::Ack).await;
    drop(consumer);
    yard.finish().await;
}

/// To what lies in a quorum queue RabbitMQ adds what it has counted, also where the headers filled their publisher's frame.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_fill_a_frame_are_read_though_a_quorum_queue_adds_to_them() {
    let Some(yard) = subject("counted", QueueType::Quorum).await else { return };
    let mut settings = settings(QueueType::Quorum).expect("the server was there");
    settings.url = format!("{}?frame_max=131072", settings.url.trim_end_matches('/'));
    let publisher = RabbitMq::connect(&settings).await.expect("connecting");
    let queue = format!("{}.a", yard.prefix);
    yard.broker.declare(&[QueueSpec::durable(&queue)]).await.expect("declaring");
    let mut message = Message::to_queue(&queue, "1");
    // With what else there is it is 131,072 bytes.
    message.properties.headers.insert("x-large".into(), "x".repeat(131_015));
    assert_eq!(publisher.publish(vec![message]).await, [Ok(())]);
    let mut consumer = yard.broker.consume(&queue, 10).await.expect("consuming");
    for verdict in [Verdict::Requeue, Verdict::Requeue, Verdict::Ack] {
        let came = next(&mut *consumer, 1).await.expect("no session ends by it").pop().expect("a delivery");
        assert_eq!(came.properties.headers["x-large"].len(), 131_015);
        consumer.acker().settle(vec![came.tag], verdict).await;
    }
    drop(consumer);
    publisher.close().await;
    finish(yard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_everything_with_one_answer() {
    let Some(yard) = Behind::start("close", |_| {}).await else { return };
    assert_eq!(yard.publish("1").await, Ok(()));
    let mut consumer = yard.broker.consume(&yard.queue, 1).await.expect("consuming");
    assert_eq!(next(&mut *consumer, 1).await.expect("a delivery").len(), 1);
    // One that waits for deliveries meanwhile is told the same as one that asks afterwards.
    let (waiting, ()) = tokio::join!(next(&mut *consumer, 1), yard.broker.close());
    assert_eq!(waiting.expect_err("closed"), BrokerError::Closed);
    yard.broker.close().await;
    assert!(!yard.broker.is_ready());
    assert_eq!(next(&mut *consumer, 1).await.expect_err("closed"), BrokerError::Closed);
    assert_eq!(yard.broker.consume(&yard.queue, 1).await.err(), Some(BrokerError::Closed));
    assert_eq!(yard.broker.info().await, Err(BrokerError::Closed));
    assert!(matches!(yard.publish("2").await, Err(PublishError::Unknown(_))));
    eventually("both connections are gone", async || (yard.relay.open() == 0).then_some(())).await;
    eventually("the delivery went back", async || (ready(&yard).await == 1).then_some(())).await;
    drop(consumer);
    yard.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_connect_is_told_why_and_never_the_password() {
    let Some(settings) = settings(QueueType::Auto) else { return };
    let (credentials, host) = split(&settings.url);
    let attempt = async |url: String| {
        let error = RabbitMq::connect(&BrokerSettings { url, ..settings.clone() }).await.err().expect("no connection");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        error
    };
    let error = attempt(format!("amqp://nobody:hunter2@{host}")).await;
    assert!(matches!(&error, BrokerError::Refused(text) if text.contains("\"nobody\"")), "{error}");
    let error = attempt(format!("amqp://{credentials}@{host}/hunter1")).await;
    assert!(matches!(&error, BrokerError::Refused(text) if text.contains("\"hunter1\"")), "{error}");

    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let error = attempt(format!("amqp://guest:hunter2@127.0.0.1:{port}")).await;
    assert!(matches!(&error, BrokerError::Unreachable(text) if text.contains("refused")), "{error}");
    assert!(error.is_transient());
    assert!(!attempt("amqp:hunter2".to_owned()).await.is_transient());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let Some(settings) = settings(QueueType::Auto) else { return };
    let (credentials, host) = split(&settings.url);
    let relay = Relay::to(&host).await;
    relay.black_hole();
    let url = format!("amqp://{credentials}@{}", relay.address);
    let started = Instant::now();
    let silent = BrokerSettings { url, connect_timeout_ms: 300, ..settings };
    assert_eq!(RabbitMq::connect(&silent).await.err(), Some(BrokerError::TimedOut(300)));
    assert!(started.elapsed() < Duration::from_secs(3));
    eventually("its connection is ended", async || (relay.open() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_decides_the_queue_type() {
    let Some(settings) = settings(QueueType::Auto) else { return };
    let broker = RabbitMq::connect(&settings).await.expect("connecting");
    let info = broker.info().await.expect("information");
    assert_eq!(info.product, "RabbitMQ");
    let major: u32 = info.version.split('.').next().expect("a version").parse().expect("a number");
    assert_eq!(info.queue_type, if major >= 4 { "quorum" } else { "classic" });
    broker.close().await;
}
