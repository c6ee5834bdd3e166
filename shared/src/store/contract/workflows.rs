//! Workflows' records.

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::store::{WorkflowAccepted, WorkflowWrite};
use crate::workflow::WorkflowId;

fn record(id: WorkflowId, text: &str, has_ended: bool) -> WorkflowWrite {
    WorkflowWrite { id, fingerprint: 7, has_ended, record: Bytes::copy_from_slice(text.as_bytes()) }
}

fn new() -> WorkflowId {
    WorkflowId(Uuid::new_v4())
}

pub async fn a_workflow_is_taken_in_once(store: Arc<dyn Store>) {
    let id = new();
    assert!(store.workflow(id).await.unwrap().is_none());
    let first = store.accept_workflow(record(id, "one", false)).await.unwrap();
    assert!(matches!(first, WorkflowAccepted::New { is_unwanted: false }), "{first:?}");
    let again = store.accept_workflow(record(id, "two", false)).await.unwrap();
    assert!(
        matches!(&again, WorkflowAccepted::Known(seen) if &seen.record[..] == b"one" && !seen.has_ended),
        "{again:?}"
    );
    let other = WorkflowWrite { fingerprint: 8, ..record(id, "three", false) };
    let other = store.accept_workflow(other).await.unwrap();
    assert!(matches!(&other, WorkflowAccepted::Conflict(seen) if &seen.record[..] == b"one"), "{other:?}");
    let third = store.accept_workflow(record(new(), "", false)).await.unwrap();
    assert!(matches!(third, WorkflowAccepted::New { is_unwanted: false }), "another has nothing to do with it");
}

pub async fn a_workflow_that_has_ended_stays_as_it_is(store: Arc<dyn Store>) {
    let id = new();
    // The store may have lost it: it is written all the same.
    assert!(store.write_workflow(record(id, "begun", false)).await.unwrap().is_none());
    assert!(store.write_workflow(record(id, "further", false)).await.unwrap().is_none());
    assert_eq!(&store.workflow(id).await.unwrap().unwrap().record[..], b"further");
    assert!(store.write_workflow(record(id, "ended", true)).await.unwrap().is_none());
    for late in [record(id, "late", false), record(id, "late", true)] {
        let seen = store.write_workflow(late).await.unwrap().expect("it had ended");
        assert!(seen.has_ended && &seen.record[..] == b"ended");
    }
    let again = store.accept_workflow(record(id, "again", false)).await.unwrap();
    assert!(matches!(again, WorkflowAccepted::Known(seen) if seen.has_ended && &seen.record[..] == b"ended"));
    let seen = store.cancel_workflow(id).await.unwrap().unwrap();
    assert!(seen.has_ended && !seen.is_unwanted, "it is too late to cancel it");
}

pub async fn a_workflow_to_be_cancelled_is_marked_until_it_ends(store: Arc<dyn Store>) {
    let id = new();
    store.accept_workflow(record(id, "one", false)).await.unwrap();
    assert!(!store.workflow(id).await.unwrap().unwrap().is_unwanted);
    assert!(store.cancel_workflow(id).await.unwrap().unwrap().is_unwanted);
    store.write_workflow(record(id, "two", false)).await.unwrap();
    let seen = store.workflow(id).await.unwrap().unwrap();
    assert!(seen.is_unwanted && &seen.record[..] == b"two", "writing does not forget it");

    // One that is cancelled before it comes.
    let early = new();
    assert!(store.cancel_workflow(early).await.unwrap().is_none());
    assert!(store.workflow(early).await.unwrap().is_none(), "it is none yet");
    let accepted = store.accept_workflow(record(early, "one", false)).await.unwrap();
    assert!(matches!(accepted, WorkflowAccepted::New { is_unwanted: true }), "{accepted:?}");
    assert!(store.workflow(early).await.unwrap().unwrap().is_unwanted);
}

pub async fn a_workflow_that_has_ended_is_forgotten_after_its_time(store: Arc<dyn Store>) {
    let id = new();
    store.write_workflow(record(id, "ended", true)).await.unwrap();
    eventually("its record to be forgotten", || async { store.workflow(id).await.unwrap().is_none().then_some(()) })
        .await;
    let again = store.accept_workflow(record(id, "again", false)).await.unwrap();
    assert!(matches!(again, WorkflowAccepted::New { .. }));
}

pub async fn a_blocked_task_is_queued_once_it_comes_again_to_be_run(store: Arc<dyn Store>) {
    let id = TaskId::new();
    let entrant = |state: State| Accept {
        id,
        fingerprint: 9,
        alias: None,
        record: TaskResult { state, ..queued(id) },
        follower: None,
    };
    assert!(matches!(store.accept(vec![entrant(State::Blocked)]).await.unwrap()[0], Accepted::New));
    let shown = async || store.get(vec![id]).await.unwrap().remove(0).unwrap().state;
    assert_eq!(shown().await, State::Blocked);
    store.accept(vec![entrant(State::Blocked)]).await.unwrap();
    assert_eq!(shown().await, State::Blocked);
    let known = store.accept(vec![entrant(State::Queued)]).await.unwrap().remove(0);
    assert!(matches!(known, Accepted::Known(record) if record.state == State::Queued));
    assert_eq!(shown().await, State::Queued);
    store.accept(vec![entrant(State::Blocked)]).await.unwrap();
    assert_eq!(shown().await, State::Queued, "and does not go back");
    store.dispatched(vec![(id, "m".to_owned())]).await.unwrap();
    store.accept(vec![entrant(State::Queued)]).await.unwrap();
    assert_eq!(shown().await, State::Dispatched);
}
