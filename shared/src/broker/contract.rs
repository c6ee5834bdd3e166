//! What every adapter of the broker port must do, as checks that panic when it does not.
//!
//! [`broker_contract!`](crate::broker_contract) makes a test of each. A check names its queues by its [`Subject`], so
//! that a test can delete what it made: [`Subject::queues`] and [`Subject::exchange`] are all there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::{Broker, Consumer, Delivery, Destination, Message, Properties, PublishError, QueueSpec, Tag, Verdict};

/// Far more than anything here takes: reached only when what is awaited never happens.
const LIMIT: Duration = Duration::from_secs(30);

/// One adapter under one check.
pub struct Subject {
    pub broker: Arc<dyn Broker>,
    /// Another connection to the same broker; the same value where there is but one.
    pub other: Arc<dyn Broker>,
    /// Nobody else's queues, exchanges and locks begin with it.
    pub prefix: String,
}

impl Subject {
    /// Every queue that a check may have made.
    pub fn queues(&self) -> [String; 3] {
        ["a", "b", "c"].map(|letter| self.queue(letter))
    }

    pub fn exchange(&self) -> String {
        format!("{}.x", self.prefix)
    }

    fn queue(&self, letter: &str) -> String {
        format!("{}.{letter}", self.prefix)
    }

    /// Declares queue `a`, durable and empty.
    async fn queue_a(&self) -> String {
        let name = self.queue("a");
        self.declare(QueueSpec::durable(&name)).await;
        name
    }

    async fn declare(&self, spec: QueueSpec) {
        self.broker.declare(&[spec]).await.expect("declaring");
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Box<dyn Consumer> {
        self.broker.consume(queue, prefetch).await.expect("consuming")
    }

    async fn publish(&self, messages: Vec<Message>) {
        let count = messages.len();
        let answers = self.broker.publish(messages).await;
        assert_eq!(answers, vec![Ok(()); count]);
    }

    async fn ready_is(&self, queue: &str, ready: u64) {
        self.eventually(&format!("{ready} ready messages in {queue}"), async || {
            self.broker.queue_state(queue).await.expect("asking for the state").map(|state| state.ready) == Some(ready)
        })
        .await;
    }

    async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, waiting).await.is_ok(), "never came: {what}");
    }
}

/// Makes a test of every check. `$start` is `async fn(&str) -> Option<Subject>`, given the check's name and answering
/// `None` to skip it; `$finish` is `async fn(Subject)` and deletes what the check made.
#[macro_export]
macro_rules! broker_contract {
    ($start:path, $finish:path) => {
        $crate::broker_contract! { $start, $finish;
            confirmed_messages_come_in_order
            a_batch_has_at_most_as_many_as_asked
            unroutable_mandatory_is_refused
            a_missing_exchange_is_an_error_and_publishing_goes_on
            not_acked_comes_again_redelivered
            requeued_comes_again
            prefetch_bounds_deliveries
            acks_of_many_at_once
            acks_from_many_places_at_once
            void_tags_are_harmless
            topic_bindings_route
            a_full_queue_refuses
            properties_survive
            bodies_of_any_size_survive
            an_exclusive_queue_takes_messages
            lock_excludes
            cancelled_consumer_keeps_its_deliveries
            queue_state_counts
            next_batch_is_cancel_safe
            a_big_batch_goes_through
            concurrent_publishers_keep_their_order
        }
    };
    ($start:path, $finish:path; $($check:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                if let Some(subject) = $start(stringify!($check)).await {
                    $crate::broker::contract::$check(&subject).await;
                    $finish(subject).await;
                }
            }
        )*
    };
}

fn numbered(queue: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<Message> {
    numbers.into_iter().map(|number| Message::to_queue(queue, number.to_string())).collect()
}

fn number(delivery: &Delivery) -> u32 {
    std::str::from_utf8(&delivery.body).expect("text").parse().expect("a number")
}

fn numbers<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> Vec<u32> {
    deliveries.into_iter().map(number).collect()
}

fn tags<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> Vec<Tag> {
    deliveries.into_iter().map(|delivery| delivery.tag).collect()
}

async fn next(consumer: &mut dyn Consumer, most: usize) -> Vec<Delivery> {
    let batch = tokio::time::timeout(LIMIT, consumer.next_batch(most)).await.expect("no delivery came");
    let batch = batch.expect("a batch");
    assert!(!batch.is_empty() && batch.len() <= most, "{} deliveries for at most {most}", batch.len());
    batch
}

async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(next(consumer, count - all.len()).await);
    }
    all
}

async fn settle<'a>(consumer: &dyn Consumer, deliveries: impl IntoIterator<Item = &'a Delivery>, verdict: Verdict) {
    assert_eq!(consumer.acker().settle(tags(deliveries), verdict).await, 0, "some tags were void");
}

pub async fn confirmed_messages_come_in_order(subject: &Subject) {
    let queue = subject.queue_a().await;
    // Declaring it again changes nothing.
    subject.declare(QueueSpec::durable(&queue)).await;
    assert_eq!(subject.broker.publish(Vec::new()).await, []);
    for start in [0, 100, 200] {
        subject.publish(numbered(&queue, start..start + 100)).await;
    }
    let mut consumer = subject.consume(&queue, 500).await;
    let deliveries = receive(&mut *consumer, 300).await;
    assert_eq!(numbers(&deliveries), (0..300).collect::<Vec<_>>());
    assert!(deliveries.iter().all(|delivery| !delivery.redelivered && delivery.routing_key == queue));
    settle(&*consumer, &deliveries, Verdict::Ack).await;
    drop(consumer);
    subject.ready_is(&queue, 0).await;
}

pub async fn a_batch_has_at_most_as_many_as_asked(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..10)).await;
    let mut consumer = subject.consume(&queue, 10).await;
    let mut seen = Vec::new();
    while seen.len() < 10 {
        seen.extend(numbers(&next(&mut *consumer, 3).await));
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

pub async fn unroutable_mandatory_is_refused(subject: &Subject) {
    let (queue, nowhere, exchange) = (subject.queue_a().await, subject.queue("b"), subject.exchange());
    subject.broker.declare_exchanges(std::slice::from_ref(&exchange)).await.expect("declaring");

    // Same bodies, so that only the place decides; many, so that one confirm stands for several.
    let mut messages = Vec::new();
    let mut expected = Vec::new();
    for number in 0..400_u32 {
        let lands = number % 3 == 0;
        let mut message = Message::to_queue(if lands { &queue } else { &nowhere }, (number / 4).to_string());
        if number % 5 == 1 {
            message.to = Destination::Exchange { name: exchange.clone(), key: queue.clone() };
        }
        expected.push(if lands && number % 5 != 1 { Ok(()) } else { Err(PublishError::Unroutable) });
        messages.push(message);
    }
    let landed: Vec<u32> = (0..400).filter(|number| expected[*number as usize].is_ok()).map(|n| n / 4).collect();
    assert_eq!(subject.broker.publish(messages).await, expected);

    let dropped = Message { mandatory: false, ..Message::to_queue(&nowhere, "dropped") };
    assert_eq!(subject.broker.publish(vec![dropped]).await, [Ok(())]);

    let mut consumer = subject.consume(&queue, 500).await;
    let deliveries = receive(&mut *consumer, landed.len()).await;
    assert_eq!(numbers(&deliveries), landed);
}

pub async fn a_missing_exchange_is_an_error_and_publishing_goes_on(subject: &Subject) {
    let queue = subject.queue_a().await;
    let lost = || Message {
        to: Destination::Exchange { name: subject.exchange(), key: "key".into() },
        ..Message::to_queue("", "lost")
    };
    for count in [1, 2, 1500] {
        let answers = subject.broker.publish((0..count).map(|_| lost()).collect()).await;
        assert!(answers.len() == count && answers.iter().all(Result::is_err), "{answers:?}");
        subject.publish(numbered(&queue, 0..2)).await;
    }
    subject.ready_is(&queue, 6).await;
}

pub async fn not_acked_comes_again_redelivered(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..5)).await;
    let mut consumer = subject.consume(&queue, 5).await;
    let deliveries = receive(&mut *consumer, 5).await;
    settle(&*consumer, &deliveries[1..3], Verdict::Ack).await;
    drop(consumer);

    let mut consumer = subject.consume(&queue, 5).await;
    let again = receive(&mut *consumer, 3).await;
    assert_eq!(numbers(&again).into_iter().collect::<BTreeSet<_>>(), [0, 3, 4].into());
    assert!(again.iter().all(|delivery| delivery.redelivered));
    settle(&*consumer, &again, Verdict::Ack).await;
    drop(consumer);
    subject.ready_is(&queue, 0).await;
}

pub async fn requeued_comes_again(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..6)).await;
    let mut consumer = subject.consume(&queue, 6).await;
    let deliveries = receive(&mut *consumer, 6).await;
    settle(&*consumer, &deliveries[..2], Verdict::Requeue).await;
    settle(&*consumer, &deliveries[3..4], Verdict::Requeue).await;
    let again = receive(&mut *consumer, 3).await;
    assert_eq!(numbers(&again).into_iter().collect::<BTreeSet<_>>(), [0, 1, 3].into());
    assert!(again.iter().all(|delivery| delivery.redelivered));
}

pub async fn prefetch_bounds_deliveries(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..20)).await;
    let mut consumer = subject.consume(&queue, 5).await;
    let first = receive(&mut *consumer, 5).await;
    subject.ready_is(&queue, 15).await;
    assert!(consumer.next_batch(5).now_or_never().is_none(), "more than the prefetch came");
    settle(&*consumer, &first[..2], Verdict::Ack).await;
    assert_eq!(numbers(&receive(&mut *consumer, 2).await), [5, 6]);
    subject.ready_is(&queue, 13).await;
    assert!(consumer.next_batch(5).now_or_never().is_none(), "more than the prefetch came");
}

pub async fn acks_of_many_at_once(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..1000)).await;
    let mut consumer = subject.consume(&queue, 1000).await;
    let deliveries = receive(&mut *consumer, 1000).await;
    // Two at once from two places, each with every fourth, last first; then a run from the front.
    let part = |rest: u32| deliveries.iter().rev().filter(move |delivery| number(delivery) % 4 == rest);
    tokio::join!(settle(&*consumer, part(1), Verdict::Ack), settle(&*consumer, part(3), Verdict::Ack));
    settle(&*consumer, deliveries[..500].iter().filter(|delivery| number(delivery).is_multiple_of(2)), Verdict::Ack)
        .await;
    // The prefetch lets these come only when all of those acks have been carried out.
    subject.publish(numbered(&queue, 1000..1750)).await;
    assert_eq!(numbers(&receive(&mut *consumer, 750).await), (1000..1750).collect::<Vec<_>>());
    drop(consumer);

    subject.ready_is(&queue, 1000).await;
    let mut consumer = subject.consume(&queue, 1000).await;
    let again: BTreeSet<u32> = numbers(&receive(&mut *consumer, 1000).await).into_iter().collect();
    assert_eq!(again, (500..1000).step_by(2).chain(1000..1750).collect());
}

pub async fn acks_from_many_places_at_once(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..2000)).await;
    let mut consumer = subject.consume(&queue, 2000).await;
    let deliveries = receive(&mut *consumer, 2000).await;
    let settling = (0..4).map(|place| {
        let acker = consumer.acker();
        let mine = tags(deliveries.iter().filter(|delivery| number(delivery) % 4 == place));
        tokio::spawn(async move {
            for some in mine.chunks(3) {
                assert_eq!(acker.settle(some.to_vec(), Verdict::Ack).await, 0, "some tags were void");
            }
        })
    });
    for done in join_all(settling).await {
        done.expect("a place failed");
    }
    // The consumer has survived it, and the prefetch lets these come only when everything was acked.
    subject.publish(numbered(&queue, 2000..4000)).await;
    let mut numbers = numbers(&receive(&mut *consumer, 2000).await);
    // With so many unacked they come roughly in order.
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(2000..4000));
}

pub async fn void_tags_are_harmless(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..3)).await;
    let mut consumer = subject.consume(&queue, 2).await;
    let first = receive(&mut *consumer, 2).await;
    let acker = consumer.acker();
    let session = first[0].tag.session;
    let foreign = Tag { session: session ^ 0x4000_0000, number: first[0].tag.number };
    assert_eq!(acker.settle(vec![foreign, foreign], Verdict::Ack).await, 2);
    assert_eq!(acker.settle(vec![Tag { session, number: 1 << 40 }], Verdict::Ack).await, 0, "unknown, not void");
    settle(&*consumer, &first[..1], Verdict::Ack).await;
    settle(&*consumer, &first[..1], Verdict::Ack).await;
    settle(&*consumer, &first[..1], Verdict::Requeue).await;
    // None of that harmed the consumer.
    assert_eq!(numbers(&receive(&mut *consumer, 1).await), [2]);

    drop(consumer);
    subject.ready_is(&queue, 2).await;
    assert_eq!(acker.settle(tags(&first[1..]), Verdict::Ack).await, 1, "its consumer is gone");
    let mut consumer = subject.consume(&queue, 2).await;
    let again = receive(&mut *consumer, 2).await;
    assert_eq!(numbers(&again).into_iter().collect::<BTreeSet<_>>(), [1, 2].into());
    assert!(again.iter().all(|delivery| delivery.tag.session != session), "two consumers share a session");
    // A tag of the first is none of the second.
    assert_eq!(consumer.acker().settle(tags(&first), Verdict::Ack).await, 2);
}

pub async fn topic_bindings_route(subject: &Subject) {
    let [a, b, c] = subject.queues();
    let exchange = subject.exchange();
    subject.declare(QueueSpec::durable(&a).bound(&exchange, "#")).await;
    subject.declare(QueueSpec::durable(&b).bound(&exchange, "task.*.echo").bound(&exchange, "task.#.echo")).await;
    subject.declare(QueueSpec::durable(&c).bound(&exchange, "task.failed.#")).await;
    let keys = ["task.failed.echo", "task.failed", "task.echo", "task.failed.a.b", "task.done.a.echo", "other", ""];
    let message = |key: &&str| Message {
        to: Destination::Exchange { name: exchange.clone(), key: (*key).to_owned() },
        ..Message::to_queue("", "")
    };
    subject.publish(keys.iter().map(message).collect()).await;

    let expected = [
        (&a, keys.to_vec()),
        // Once, though two of its bindings match.
        (&b, vec!["task.failed.echo", "task.echo", "task.done.a.echo"]),
        (&c, vec!["task.failed.echo", "task.failed", "task.failed.a.b"]),
    ];
    for (queue, expected) in expected {
        let mut consumer = subject.consume(queue, 50).await;
        let deliveries = receive(&mut *consumer, expected.len()).await;
        let keys: Vec<&str> = deliveries.iter().map(|delivery| delivery.routing_key.as_str()).collect();
        assert_eq!(keys, expected, "in {queue}");
        settle(&*consumer, &deliveries, Verdict::Ack).await;
        drop(consumer);
        subject.ready_is(queue, 0).await;
    }
}

pub async fn a_full_queue_refuses(subject: &Subject) {
    let queue = subject.queue("a");
    subject.declare(QueueSpec { max_length: Some(10), ..QueueSpec::durable(&queue) }).await;
    let mut accepted = 0;
    let refusal = loop {
        assert!(accepted < 100, "it never becomes full");
        match subject.broker.publish(numbered(&queue, [accepted])).await.pop() {
            Some(Ok(())) => accepted += 1,
            other => break other,
        }
    };
    assert_eq!(refusal, Some(Err(PublishError::Full)));
    assert!(accepted >= 10, "full at {accepted}");
    let mut consumer = subject.consume(&queue, 200).await;
    let deliveries = receive(&mut *consumer, accepted as usize).await;
    assert_eq!(numbers(&deliveries), (0..accepted).collect::<Vec<_>>(), "what was refused is not in it");
    settle(&*consumer, &deliveries, Verdict::Ack).await;
    subject.eventually("room again", async || subject.broker.publish(numbered(&queue, [99])).await == [Ok(())]).await;
}

pub async fn properties_survive(subject: &Subject) {
    let queue = subject.queue_a().await;
    let properties = Properties {
        message_id: Some("0198c0de-0000-7000-8000-000000000001".into()),
        correlation_id: Some("correlation ✓".into()),
        reply_to: Some("replies.somebody".into()),
        content_type: Some("application/json".into()),
        content_encoding: Some("identity".into()),
        kind: Some("workflow".into()),
        app_id: Some("tenant".into()),
        priority: Some(9),
        expiration: None,
        headers: BTreeMap::from([
            ("traceparent".to_owned(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            ("long".to_owned(), "ü".repeat(5000)),
            ("empty".to_owned(), String::new()),
        ]),
    };
    let full = Message { properties: properties.clone(), ..Message::to_queue(&queue, "{}") };
    let bare = Message { properties: Properties::default(), persistent: false, ..Message::to_queue(&queue, "{}") };
    subject.publish(vec![full, bare]).await;
    let mut consumer = subject.consume(&queue, 2).await;
    let deliveries = receive(&mut *consumer, 2).await;
    assert_eq!(deliveries[0].properties, properties);
    assert_eq!(deliveries[1].properties, Properties::default());
}

pub async fn bodies_of_any_size_survive(subject: &Subject) {
    let queue = subject.queue_a().await;
    let body = |bytes: usize| (0..bytes).map(|at| (at % 251) as u8).collect::<Vec<u8>>();
    let sizes = [0, 1, 131_064, 131_065, 1 << 20];
    subject.publish(sizes.iter().map(|bytes| Message::to_queue(&queue, body(*bytes))).collect()).await;
    let mut consumer = subject.consume(&queue, 10).await;
    let deliveries = receive(&mut *consumer, sizes.len()).await;
    for (delivery, bytes) in deliveries.iter().zip(sizes) {
        assert!(delivery.body == body(bytes), "a body of {bytes} bytes");
    }
}

pub async fn an_exclusive_queue_takes_messages(subject: &Subject) {
    let (queue, exchange) = (subject.queue("a"), subject.exchange());
    let spec = QueueSpec::exclusive(&queue).bound(&exchange, "event.#");
    subject.declare(spec.clone()).await;
    subject.declare(spec).await;
    let mut consumer = subject.consume(&queue, 10).await;
    let event = Message {
        to: Destination::Exchange { name: exchange, key: "event.done".into() },
        ..Message::to_queue("", "2")
    };
    let direct = Message { persistent: false, ..Message::to_queue(&queue, "1") };
    assert_eq!(subject.other.publish(vec![direct, event]).await, [Ok(()), Ok(())]);
    let deliveries = receive(&mut *consumer, 2).await;
    assert_eq!(numbers(&deliveries), [1, 2]);
    settle(&*consumer, &deliveries, Verdict::Ack).await;
}

pub async fn lock_excludes(subject: &Subject) {
    let name = format!("{}.lock", subject.prefix);
    let lock = subject.broker.try_lock(&name).await.expect("asking").expect("it is free");
    assert!(lock.is_held());
    assert!(subject.other.try_lock(&name).await.expect("asking").is_none(), "two hold it");
    assert!(subject.broker.try_lock(&name).await.expect("asking").is_none(), "one holds it twice");
    let another = format!("{}.another-lock", subject.prefix);
    assert!(subject.other.try_lock(&another).await.expect("asking").is_some(), "locks are apart");
    assert!(lock.is_held());
    drop(lock);
    let mut taken = None;
    subject
        .eventually("the lock is free again", async || {
            taken = subject.other.try_lock(&name).await.expect("asking");
            taken.is_some()
        })
        .await;
    assert!(subject.broker.try_lock(&name).await.expect("asking").is_none());
}

pub async fn cancelled_consumer_keeps_its_deliveries(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..10)).await;
    let mut first = subject.consume(&queue, 8).await;
    let held = receive(&mut *first, 3).await;
    first.cancel().await.expect("cancelling");
    // What the first never showed to its owner is there for others at once, and so is what comes later.
    subject.publish(numbered(&queue, [10])).await;
    let mut second = subject.consume(&queue, 50).await;
    let others = receive(&mut *second, 8).await;
    assert_eq!(numbers(&others).into_iter().collect::<BTreeSet<_>>(), (3..11).collect());
    assert!(!matches!(first.next_batch(10).now_or_never(), Some(Ok(_))), "deliveries after cancelling");
    settle(&*second, &others, Verdict::Ack).await;

    settle(&*first, &held[..2], Verdict::Ack).await;
    drop(first);
    let back = receive(&mut *second, 1).await;
    assert_eq!(numbers(&back), [2]);
    assert!(back[0].redelivered);
}

pub async fn queue_state_counts(subject: &Subject) {
    let queue = subject.queue("a");
    assert_eq!(subject.broker.queue_state(&queue).await, Ok(None));
    subject.declare(QueueSpec::durable(&queue)).await;
    subject.publish(numbered(&queue, 0..7)).await;
    subject.ready_is(&queue, 7).await;
    let consumers = async |expected: u32| {
        subject
            .eventually(&format!("{expected} consumers"), async || {
                let state = subject.other.queue_state(&queue).await.expect("asking");
                state.map(|state| state.consumers) == Some(expected)
            })
            .await;
    };
    consumers(0).await;
    let mut consumer = subject.consume(&queue, 3).await;
    consumers(1).await;
    receive(&mut *consumer, 3).await;
    subject.ready_is(&queue, 4).await;
    let second = subject.consume(&queue, 1).await;
    consumers(2).await;
    subject.ready_is(&queue, 3).await;
    drop((consumer, second));
    consumers(0).await;
    subject.ready_is(&queue, 7).await;
}

pub async fn next_batch_is_cancel_safe(subject: &Subject) {
    let queue = subject.queue_a().await;
    let mut consumer = subject.consume(&queue, 1000).await;
    let mut seen = Vec::new();
    for start in (0..200).step_by(10) {
        let (publishing, mut confirmed) = (subject.publish(numbered(&queue, start..start + 10)), false);
        let mut publishing = std::pin::pin!(publishing);
        while !confirmed {
            // Whichever is first: the other is dropped in the middle of waiting.
            tokio::select! {
                () = &mut publishing => confirmed = true,
                batch = consumer.next_batch(3) => seen.extend(batch.expect("a batch")),
            }
        }
        seen.extend(consumer.next_batch(1000).now_or_never().into_iter().flatten().flatten());
    }
    let rest = 200 - seen.len();
    if rest > 0 {
        seen.extend(receive(&mut *consumer, rest).await);
    }
    assert_eq!(numbers(&seen), (0..200).collect::<Vec<_>>());
    assert!(seen.iter().all(|delivery| !delivery.redelivered));
    settle(&*consumer, &seen, Verdict::Ack).await;
}

pub async fn a_big_batch_goes_through(subject: &Subject) {
    let queue = subject.queue_a().await;
    subject.publish(numbered(&queue, 0..5000)).await;
    let mut consumer = subject.consume(&queue, 700).await;
    let mut expected = 0..5000;
    while !expected.is_empty() {
        let batch = next(&mut *consumer, 5000).await;
        assert_eq!(numbers(&batch), expected.by_ref().take(batch.len()).collect::<Vec<_>>());
        settle(&*consumer, &batch, Verdict::Ack).await;
    }
    drop(consumer);
    subject.ready_is(&queue, 0).await;
}

pub async fn concurrent_publishers_keep_their_order(subject: &Subject) {
    let queue = subject.queue_a().await;
    let (publishers, calls, size) = (100_u32, 5_u32, 4_u32);
    let publishing = (0..publishers).map(|publisher| {
        let (broker, queue) = (subject.broker.clone(), queue.clone());
        tokio::spawn(async move {
            for call in 0..calls {
                let first = publisher * 1000 + call * size;
                let answers = broker.publish(numbered(&queue, first..first + size)).await;
                assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            }
        })
    });
    for done in join_all(publishing).await {
        done.expect("a publisher failed");
    }
    let mut consumer = subject.consume(&queue, 1000).await;
    let mut deliveries = Vec::new();
    for _ in 0..4 {
        let some = receive(&mut *consumer, (publishers * calls * size / 4) as usize).await;
        let tags = some.iter().map(|delivery| delivery.tag).collect();
        assert_eq!(consumer.acker().settle(tags, Verdict::Ack).await, 0);
        deliveries.extend(some);
    }
    let mut by_publisher: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for number in numbers(&deliveries) {
        by_publisher.entry(number / 1000).or_default().push(number % 1000);
    }
    assert_eq!(by_publisher.len(), publishers as usize);
    for (publisher, sequence) in by_publisher {
        assert_eq!(sequence, (0..calls * size).collect::<Vec<_>>(), "of publisher {publisher}");
    }
}
