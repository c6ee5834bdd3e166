//! What is shown while the disk is slow.

use std::sync::mpsc;
use std::task::Poll;

use super::*;
use crate::envelope::{Carried, Envelope};
use crate::lifecycle::State;
use crate::store::Guard;
use crate::task::{Target, Task};
use crate::workflow::{WorkflowOrder, WorkflowRecord};

/// An end that a crash could still take back is shown to nobody who would rely on it.
#[tokio::test]
async fn an_end_is_shown_once_it_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { finished_ms: 60_000, unfinished_ms: 60_000, listed: 10 };
    let store = Arc::new(EmbeddedStore::open(dir.path(), retention).unwrap());
    let input = serde_json::value::RawValue::NULL.to_owned();
    let task = Task::new(Target::Model("model".into()), input);
    let envelope = Envelope::new(task, &Carried::default(), Timestamp::now()).unwrap();
    let id = envelope.id;

    // The journal's thread is kept busy, as by a slow disk.
    let (go_on, until) = mpsc::channel::<()>();
    let mut batch = store.journal.as_ref().unwrap().reserve(0).await.unwrap();
    batch.put(|out| entry::put_value(out, "key", b"value"));
    batch.submit(true, Some(Box::new(move |_| assert!(until.recv().is_err(), "nothing is ever sent"))));
    let settling = tokio::spawn({
        let (store, result) = (store.clone(), Arc::new(envelope.result(State::Succeeded)));
        async move { store.settle(vec![Settle::new(Guard::Unclaimed, result)]).await }
    });
    let everything = Filter::default();
    while store.list(&everything, None, 1).await.unwrap().tasks.is_empty() {
        tokio::task::yield_now().await;
    }

    let follower = Reply { to: "replies".into(), correlation_id: None, array: false };
    let claim = Claim {
        id,
        worker: "worker".into(),
        nonce: 1,
        lease_ms: 1_000,
        max_attempts: 1,
        attempts: 0,
        beside: crate::store::Beside::Others,
    };
    let mut got = store.get(vec![id]);
    let mut followed = store.follow(vec![id], follower);
    let mut claimed = store.claim(vec![claim]);
    std::future::poll_fn(|context| {
        assert!(got.as_mut().poll(context).is_pending(), "it was looked up");
        assert!(followed.as_mut().poll(context).is_pending(), "it was followed");
        assert!(claimed.as_mut().poll(context).is_pending(), "it was claimed");
        Poll::Ready(())
    })
    .await;

    drop(go_on);
    let state = |found: Vec<Option<TaskResult>>| found[0].as_ref().map(|task| task.state);
    assert_eq!(state(got.await.unwrap()), Some(State::Succeeded));
    assert_eq!(state(followed.await.unwrap()), Some(State::Succeeded));
    assert!(matches!(claimed.await.unwrap()[0], Claimed::Terminal { .. }));
    settling.await.unwrap().unwrap();
    // What lies on disk is shown without a turn of the journal.
    assert!(futures_util::FutureExt::now_or_never(store.get(vec![id])).is_some());
}

/// As an earlier version left it: it is looked up, and listed once it is written again.
#[tokio::test]
async fn a_workflow_of_before_there_was_a_list_is_listed_once_it_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let id = WorkflowId(uuid::Uuid::new_v4());
    let store = EmbeddedStore::open(dir.path(), Retention::default()).unwrap();
    let mut batch = store.journal.as_ref().unwrap().reserve(0).await.unwrap();
    let flow = Flow {
        fingerprint: 7,
        has_ended: false,
        is_unwanted: false,
        touched_ms: store.clock.now_ms(),
        json: Bytes::from_static(b"{}"),
        listed: None,
        address: None,
    };
    batch.put(|out| entry::put_workflow(out, id.0, &flow));
    batch.commit(true).await.unwrap();
    drop(store);

    let store = EmbeddedStore::open(dir.path(), Retention::default()).unwrap();
    let everything = WorkflowFilter::default();
    assert_eq!(store.workflow(id).await.unwrap().unwrap().record, "{}");
    assert!(store.list_workflows(&everything, None, 10).await.unwrap().workflows.is_empty());
    let order = br#"{"tasks": [{"name": "a", "model": "m", "input": 1}]}"#;
    let (order, plan) = WorkflowOrder::read(order, &Carried::default(), Timestamp::now()).unwrap();
    let record = WorkflowRecord { id, ..order.queued(plan) };
    store.write_workflow(WorkflowWrite::new(&record, 7).unwrap()).await.unwrap();
    let listed = store.list_workflows(&everything, None, 10).await.unwrap();
    assert_eq!(listed.workflows, [record.summary()]);
}
