//! The embedded broker against the contract of every broker, in memory and on disk, and what is its own: that messages
//! outlive the process, however it ends, and how consumers share a queue.

mod child;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use taskyard_shared::broker::contract::Subject;
use taskyard_shared::broker::embedded::{EmbeddedBroker, Limits, MESSAGE_BYTES};
use taskyard_shared::broker::{
    Broker, BrokerError, Consumer, Delivery, Destination, Message, PublishError, QueueSpec, Verdict,
};

use self::child::{Child, within};

mod in_memory {
    taskyard_shared::broker_contract!(super::in_memory, super::finish);
}

mod on_disk {
    taskyard_shared::broker_contract!(super::on_disk, super::finish);
}

async fn in_memory(check: &str) -> Option<Subject> {
    Some(subject(Arc::new(EmbeddedBroker::in_memory()), check))
}

async fn on_disk(check: &str) -> Option<Subject> {
    // Unlinked while it is open: nothing is left behind.
    let dir = tempfile::tempdir().unwrap();
    Some(subject(Arc::new(open(dir.path())), check))
}

fn subject(broker: Arc<EmbeddedBroker>, check: &str) -> Subject {
    Subject { broker: broker.clone(), other: broker, prefix: check.to_owned() }
}

async fn finish(subject: Subject) {
    subject.broker.close().await;
}

fn open(dir: &Path) -> EmbeddedBroker {
    EmbeddedBroker::open(dir).unwrap()
}

fn numbered(queue: &str, numbers: impl IntoIterator<Item = usize>) -> Vec<Message> {
    numbers.into_iter().map(|number| Message::to_queue(queue, number.to_string())).collect()
}

fn number(delivery: &Delivery) -> usize {
    std::str::from_utf8(&delivery.body).unwrap().parse().unwrap()
}

async fn declare(broker: &EmbeddedBroker, queue: &str) {
    broker.declare(&[QueueSpec::durable(queue)]).await.unwrap();
}

async fn publish(broker: &EmbeddedBroker, messages: Vec<Message>) {
    let answers = broker.publish(messages).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
}

async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(within("a delivery", consumer.next_batch(count - all.len())).await.unwrap());
    }
    all
}

async fn settle(consumer: &dyn Consumer, deliveries: &[Delivery], verdict: Verdict) {
    assert_eq!(consumer.acker().settle(deliveries.iter().map(|delivery| delivery.tag).collect(), verdict).await, 0);
}

/// All that is ready, in order; the queue is empty afterwards.
async fn drain(broker: &EmbeddedBroker, queue: &str) -> Vec<Delivery> {
    let ready = broker.queue_state(queue).await.unwrap().unwrap().ready;
    let mut consumer = broker.consume(queue, u16::MAX).await.unwrap();
    let all = receive(&mut *consumer, usize::try_from(ready).unwrap()).await;
    settle(&*consumer, &all, Verdict::Ack).await;
    assert!(consumer.next_batch(1).now_or_never().is_none());
    all
}

fn numbers(deliveries: &[Delivery]) -> Vec<usize> {
    deliveries.iter().map(number).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acked_outlives_the_process_in_order_and_redelivered() {
    let dir = tempfile::tempdir().unwrap();
    let broker = open(dir.path());
    declare(&broker, "work").await;
    for start in (0..1_000).step_by(125) {
        publish(&broker, numbered("work", start..start + 125)).await;
    }
    let mut consumer = broker.consume("work", 1_000).await.unwrap();
    let deliveries = receive(&mut *consumer, 400).await;
    // Every third is done with; of the others some were requeued, some were still held.
    let acked: Vec<_> = deliveries.iter().filter(|delivery| number(delivery).is_multiple_of(3)).cloned().collect();
    settle(&*consumer, &acked, Verdict::Ack).await;
    let requeued: Vec<_> = deliveries.iter().filter(|delivery| number(delivery) % 3 == 1).cloned().collect();
    settle(&*consumer, &requeued, Verdict::Requeue).await;
    broker.close().await;

    let broker = open(dir.path());
    let expected: Vec<usize> =
        (0..1_000).filter(|number: &usize| *number >= 400 || !number.is_multiple_of(3)).collect();
    let found = drain(&broker, "work").await;
    assert_eq!(numbers(&found), expected);
    assert!(found.iter().all(|delivery| delivery.redelivered && delivery.routing_key == "work"));
    drop(broker);

    let broker = open(dir.path());
    assert_eq!(drain(&broker, "work").await.len(), 0, "what was acked came again");
    publish(&broker, numbered("work", [7])).await;
    assert!(!drain(&broker, "work").await[0].redelivered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_bindings_and_properties_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let broker = open(dir.path());
    let intake = QueueSpec { max_length: Some(2), ..QueueSpec::durable("intake") }.bound("tasks", "#");
    broker.declare(&[intake.clone(), QueueSpec::durable("failures").bound("events", "task.failed.*")]).await.unwrap();
    broker.declare(&[QueueSpec::exclusive("replies").bound("events", "#")]).await.unwrap();
    broker.declare_exchanges(&["lonely".to_owned()]).await.unwrap();
    let mut message = Message::to_queue("", "body");
    message.to = Destination::Exchange { name: "events".into(), key: "task.failed.echo".into() };
    message.properties.message_id = Some("id".into());
    message.properties.priority = Some(7);
    message.properties.headers.insert("traceparent".into(), "00-1-2-01".into());
    publish(&broker, vec![message.clone()]).await;
    let transient = Message { persistent: false, ..Message::to_queue("intake", "gone") };
    publish(&broker, vec![transient]).await;
    drop(broker);

    let broker = open(dir.path());
    assert_eq!(broker.queue_state("replies").await.unwrap(), None, "an exclusive queue is gone");
    assert_eq!(broker.queue_state("intake").await.unwrap().unwrap().ready, 0, "what was not persistent is gone");
    broker.declare(&[intake]).await.unwrap();
    let mismatch = broker.declare(&[QueueSpec::durable("intake")]).await;
    assert!(matches!(&mismatch, Err(BrokerError::Mismatch { queue, .. }) if queue == "intake"), "{mismatch:?}");
    let to = |name: &str, key: &str| Message {
        to: Destination::Exchange { name: name.into(), key: key.into() },
        ..Message::to_queue("", "new")
    };
    let answers =
        broker.publish(vec![to("tasks", "any"), to("tasks", "any"), to("tasks", "any"), to("lonely", "a")]).await;
    assert_eq!(answers, [Ok(()), Ok(()), Err(PublishError::Full), Err(PublishError::Unroutable)]);
    publish(&broker, vec![to("events", "task.failed.sentiment")]).await;
    let found = drain(&broker, "failures").await;
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].properties.clone(), &found[0].body), (message.properties, &Bytes::from("body")));
    assert_eq!((found[0].routing_key.as_str(), found[0].redelivered), ("task.failed.echo", true));
    assert_eq!((found[1].routing_key.as_str(), found[1].redelivered), ("task.failed.sentiment", false));
}

#[test]
#[ignore = "run by a test that kills it"]
fn child_publishes_and_acks_for_ever() {
    let dir = child::dir();
    child::runtime().block_on(async {
        let broker = Arc::new(open(&dir));
        broker.declare(&[QueueSpec::durable("kept"), QueueSpec::durable("acked")]).await.unwrap();
        let consumer = broker.clone();
        tokio::spawn(async move {
            let mut consumer = consumer.consume("acked", 100).await.unwrap();
            loop {
                let batch = consumer.next_batch(100).await.unwrap();
                let tags = batch.iter().map(|delivery| delivery.tag).collect();
                assert_eq!(consumer.acker().settle(tags, Verdict::Ack).await, 0);
            }
        });
        for batch in 0.. {
            let range = batch * 100..(batch + 1) * 100;
            publish(&broker, numbered("kept", range.clone())).await;
            publish(&broker, numbered("acked", range)).await;
            println!("confirmed {batch}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut confirmed = 0;
    for round in 0..5 {
        let mut child = Child::start("child_publishes_and_acks_for_ever", dir.path());
        confirmed = child.until(&format!("confirmed {}", 10 + round * 7), "confirmed");
        child.kill();
        let broker = open(dir.path());
        let kept = drain(&broker, "kept").await;
        assert!(kept.iter().all(|delivery| delivery.redelivered));
        let kept = numbers(&kept);
        assert!(kept.len() >= confirmed * 100, "{} of at least {}", kept.len(), confirmed * 100);
        // A batch is there as a whole or not at all, so there is no gap even in what was not confirmed.
        assert_eq!(kept.len() % 100, 0);
        assert_eq!(kept, (0..kept.len()).collect::<Vec<_>>());
        let acked = numbers(&drain(&broker, "acked").await);
        assert!(acked.windows(2).all(|pair| pair[0] < pair[1]), "out of order: {acked:?}");
    }
    assert!(confirmed >= 38);
}

#[test]
#[ignore = "run by a test that expects its crash"]
fn child_crashes_right_after_a_confirm() {
    let dir = child::dir();
    child::runtime().block_on(async {
        let broker = open(&dir);
        declare(&broker, "work").await;
        // Large, so that writing them takes a while.
        publish(&broker, (0..100).map(|_| Message::to_queue("work", vec![b'x'; 100 << 10])).collect()).await;
        println!("confirmed 0");
        std::process::abort();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirm_comes_after_the_disk_has_it() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Child::start("child_crashes_right_after_a_confirm", dir.path());
        child.until("confirmed", "confirmed");
        child.end();
        assert_eq!(drain(&open(dir.path()), "work").await.len(), 100);
    }
}

#[test]
#[ignore = "run by a test that limits its files"]
fn child_publishes_until_the_disk_is_full_and_again() {
    let dir = child::dir();
    child::runtime().block_on(async {
        let broker = open(&dir);
        declare(&broker, "work").await;
        let body = |number: usize| format!("{number} {}", "x".repeat(20_000));
        let mut number = 0;
        loop {
            let answer = broker.publish(vec![Message::to_queue("work", body(number))]).await.remove(0);
            match answer {
                Ok(()) => number += 1,
                Err(PublishError::Unknown(why)) => {
                    assert!(why.contains("the disk is full"), "{why}");
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(!broker.is_ready());
        assert_eq!(broker.queue_state("work").await.unwrap().unwrap().ready, number as u64, "a refused one is ready");
        // Acks go on meanwhile, and are written later.
        let mut consumer = broker.consume("work", 2).await.unwrap();
        let deliveries = receive(&mut *consumer, 2).await;
        settle(&*consumer, &deliveries, Verdict::Ack).await;
        let refused = broker.declare(&[QueueSpec::durable("other")]).await;
        assert!(refused.as_ref().is_err_and(BrokerError::is_transient), "{refused:?}");
        println!("full {number}");
        within("room again", async {
            while !broker.is_ready() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        publish(&broker, vec![Message::to_queue("work", "after")]).await;
        println!("healed {number}");
        // To be killed: what was owed is on disk without a close.
        std::future::pending::<()>().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_then_heals() {
    let dir = tempfile::tempdir().unwrap();
    let test = "child_publishes_until_the_disk_is_full_and_again";
    let Some(mut child) = Child::start_with_small_files(test, dir.path(), 8 << 10) else {
        println!("skipped: prlimit is needed to raise a limit again");
        return;
    };
    let published = child.until("full", "full");
    assert!(published > 50);
    child.allow_large_files();
    child.until("healed", "healed");
    child.kill();
    let broker = open(dir.path());
    let found = drain(&broker, "work").await;
    let bodies: Vec<_> = found.iter().map(|delivery| String::from_utf8_lossy(&delivery.body).into_owned()).collect();
    let expected: Vec<_> = (2..published).map(|number| number.to_string()).chain(["after".to_owned()]).collect();
    let first: Vec<_> = bodies.iter().map(|body| body.split(' ').next().unwrap()).collect();
    assert_eq!(first, expected, "the two acked are gone, the refused one has left no trace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Arc::new(open(dir.path()));
    declare(&broker, "work").await;
    let before = broker.commits();
    let publishers = (0..200).map(|number| {
        let broker = broker.clone();
        tokio::spawn(async move { publish(&broker, numbered("work", [number])).await })
    });
    for publisher in join_all(publishers).await {
        publisher.unwrap();
    }
    let commits = broker.commits() - before;
    assert!((1..100).contains(&commits), "{commits} commits for 200 publishes");
    assert_eq!(drain(&broker, "work").await.len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_nobody_waits_for_any_more_still_lands_in_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let broker = open(dir.path());
    declare(&broker, "work").await;
    let mut consumer = broker.consume("work", 10).await.unwrap();
    // Polled once: handed over to the disk, then dropped.
    let answer = broker.publish(numbered("work", [1])).now_or_never();
    assert!(answer.is_none(), "a durable publish is not confirmed before it is on disk");
    assert_eq!(numbers(&receive(&mut *consumer, 1).await), [1]);
}

#[tokio::test]
async fn a_folder_belongs_to_one_broker_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let broker = open(dir.path());
    match EmbeddedBroker::open(dir.path()) {
        Err(BrokerError::Refused(why)) => assert!(why.contains("open in another process"), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two brokers have one folder"),
    }
    broker.close().await;
    drop(EmbeddedBroker::open(dir.path()).unwrap());
    // Closed for good: it says so, and does not hang.
    assert!(matches!(broker.consume("work", 1).await, Err(BrokerError::Closed)));
    assert!(matches!(broker.publish(numbered("work", [1])).await[..], [Err(PublishError::Unknown(_))]));
    assert!(!broker.is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_whole_is_said_to_be_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let broker = open(dir.path());
    declare(&broker, "work").await;
    let marked = || Message::to_queue("work", "MARKED".repeat(1_000));
    publish(&broker, (0..100).map(|_| marked()).collect()).await;
    drop(broker);
    let file = dir.path().join("broker.redb");
    let whole = std::fs::read(&file).unwrap();

    let mut damaged = whole.clone();
    let at = damaged.windows(6).rposition(|window| window == b"MARKED").unwrap();
    damaged[at] ^= 1;
    let mut cases = vec![("one bit", damaged)];
    cases.push(("no database", b"this is no database".repeat(1_000)));
    cases.push(("cut short", whole[..whole.len() / 3].to_vec()));
    for (what, bytes) in cases {
        std::fs::write(&file, bytes).unwrap();
        match EmbeddedBroker::open(dir.path()) {
            Err(BrokerError::Corrupt(why)) => assert!(why.contains("broker.redb"), "{what}: {why}"),
            Err(other) => panic!("{what}: {other}"),
            Ok(_) => panic!("{what}: it was opened"),
        }
    }
    std::fs::write(&file, whole).unwrap();
    assert_eq!(drain(&open(dir.path()), "work").await.len(), 100);
    // Ours, but not a broker's.
    std::fs::rename(&file, dir.path().join("store.redb")).unwrap();
    let retention = taskyard_shared::store::Retention::default();
    let opened = taskyard_shared::store::embedded::EmbeddedStore::open(dir.path(), retention);
    assert!(matches!(opened.err(), Some(taskyard_shared::store::StoreError::Corrupt(_))));
}

#[tokio::test]
async fn an_idle_consumer_gets_its_share() {
    let broker = EmbeddedBroker::in_memory();
    declare(&broker, "work").await;
    let mut first = broker.consume("work", 1_000).await.unwrap();
    let mut second = broker.consume("work", 1_000).await.unwrap();
    publish(&broker, numbered("work", 0..100)).await;
    assert_eq!(numbers(&first.next_batch(1_000).await.unwrap()), (0..50).collect::<Vec<_>>());
    // With nobody else asking, one consumer gets all in the end.
    assert_eq!(receive(&mut *first, 49).await.len(), 49);
    assert_eq!(numbers(&second.next_batch(1_000).await.unwrap()), [99]);
}

#[tokio::test]
async fn a_consumer_without_room_leaves_all_to_the_others() {
    let broker = EmbeddedBroker::in_memory();
    declare(&broker, "work").await;
    let mut busy = broker.consume("work", 2).await.unwrap();
    let mut free = broker.consume("work", 100).await.unwrap();
    publish(&broker, numbered("work", 0..4)).await;
    let held = busy.next_batch(10).await.unwrap();
    assert_eq!(numbers(&held), [0, 1]);
    publish(&broker, numbered("work", 4..24)).await;
    assert_eq!(free.next_batch(100).await.unwrap().len(), 22, "nothing is kept for who has no room");
    assert!(busy.next_batch(10).now_or_never().is_none());
    // Settling makes room, and who waits for room is woken by it.
    publish(&broker, numbered("work", 24..25)).await;
    let acker = busy.acker();
    let waiting = async { busy.next_batch(10).await.unwrap() };
    let settling = async { acker.settle(vec![held[0].tag], Verdict::Ack).await };
    let (got, void) = within("room", async { tokio::join!(waiting, settling) }).await;
    assert_eq!((numbers(&got), void), (vec![24], 0));
}

#[tokio::test]
async fn waiting_consumers_wake_each_other() {
    let broker = Arc::new(EmbeddedBroker::in_memory());
    declare(&broker, "work").await;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut consumer = broker.consume("work", 1).await.unwrap();
        waiting.push(tokio::spawn(async move {
            let batch = consumer.next_batch(10).await.unwrap();
            (consumer, numbers(&batch))
        }));
    }
    tokio::task::yield_now().await;
    // One publish wakes one of them, who wakes the next.
    publish(&broker, numbered("work", 0..8)).await;
    let mut got = Vec::new();
    for consumer in waiting {
        got.extend(within("its message", consumer).await.unwrap().1);
    }
    got.sort_unstable();
    assert_eq!(got, (0..8).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_comes_back_goes_to_the_front_in_its_old_order() {
    let broker = EmbeddedBroker::in_memory();
    declare(&broker, "work").await;
    publish(&broker, numbered("work", 0..10)).await;
    let mut first = broker.consume("work", 10).await.unwrap();
    let held = receive(&mut *first, 4).await;
    let mut second = broker.consume("work", 10).await.unwrap();
    let others = receive(&mut *second, 2).await;
    assert_eq!(numbers(&others), [4, 5]);
    // In whatever order they come back.
    settle(&*first, &held[2..], Verdict::Requeue).await;
    drop(second);
    settle(&*first, &held[..1], Verdict::Requeue).await;
    drop(first);
    let all = drain(&broker, "work").await;
    assert_eq!(numbers(&all), (0..10).collect::<Vec<_>>());
    assert_eq!(all.iter().filter(|delivery| delivery.redelivered).count(), 6);
}

#[tokio::test]
async fn what_is_held_in_all_is_bounded() {
    let limits = Limits { messages: 10, bytes: 64 << 10, ..Limits::default() };
    let broker = EmbeddedBroker::in_memory_with(limits);
    declare(&broker, "a").await;
    declare(&broker, "b").await;
    publish(&broker, numbered("a", 0..6)).await;
    let answers = broker.publish(numbered("b", 0..6)).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
    assert_eq!(answers[4..], [Err(PublishError::Full), Err(PublishError::Full)]);
    // What is delivered and not settled counts too.
    let mut consumer = broker.consume("a", 10).await.unwrap();
    let held = receive(&mut *consumer, 6).await;
    assert_eq!(broker.publish(numbered("b", [6])).await, [Err(PublishError::Full)]);
    settle(&*consumer, &held, Verdict::Ack).await;
    publish(&broker, numbered("b", 0..6)).await;
    drain(&broker, "b").await;
    let large = || Message::to_queue("a", vec![0; 40 << 10]);
    assert_eq!(broker.publish(vec![large(), large()]).await, [Ok(()), Err(PublishError::Full)]);
    let too_large = Message::to_queue("a", vec![0; MESSAGE_BYTES + 1]);
    assert_eq!(broker.publish(vec![too_large]).await, [Err(PublishError::TooLarge)]);
}

#[tokio::test]
async fn closing_wakes_consumers_and_frees_locks() {
    let broker = Arc::new(EmbeddedBroker::in_memory());
    declare(&broker, "work").await;
    publish(&broker, numbered("work", 0..2)).await;
    let mut full = broker.consume("work", 2).await.unwrap();
    let held = receive(&mut *full, 2).await;
    let mut idle = broker.consume("work", 2).await.unwrap();
    let lock = broker.try_lock("active").await.unwrap().unwrap();
    let acker = full.acker();
    let waiting = async { (full.next_batch(1).await.err(), idle.next_batch(1).await.err()) };
    let closing = async {
        tokio::task::yield_now().await;
        broker.close().await;
    };
    let ends = within("the end", async { tokio::join!(waiting, closing).0 }).await;
    assert_eq!(ends, (Some(BrokerError::Closed), Some(BrokerError::Closed)));
    assert!(!lock.is_held());
    assert_eq!(acker.settle(held.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await, 2);
}
