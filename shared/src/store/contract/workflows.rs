//! Workflows' records.

use bytes::Bytes;
use uuid::Uuid;

use super::*;
use crate::store::{WorkflowAccepted, WorkflowFilter, WorkflowWrite};
use crate::workflow::{StepState, WorkflowId, WorkflowState, WorkflowSummary};

fn summary(id: WorkflowId, tenant: &str, state: WorkflowState) -> WorkflowSummary {
    WorkflowSummary {
        id,
        state,
        tenant: tenant.to_owned(),
        priority: Priority::default(),
        deadline: None,
        accepted: Timestamp::now(),
        finished: state.is_terminal().then(Timestamp::now),
        counts: BTreeMap::from([(StepState::Succeeded, 2), (StepState::Skipped, 1)]),
        metadata: BTreeMap::new(),
    }
}

fn written(summary: WorkflowSummary) -> WorkflowWrite {
    let has_ended = summary.state.is_terminal();
    WorkflowWrite { id: summary.id, fingerprint: 7, has_ended, summary, record: Bytes::from_static(b"{}") }
}

fn record(id: WorkflowId, text: &str, has_ended: bool) -> WorkflowWrite {
    let state = if has_ended { WorkflowState::Failed } else { WorkflowState::Running };
    let write = written(summary(id, "contract", state));
    WorkflowWrite { record: Bytes::copy_from_slice(text.as_bytes()), ..write }
}

/// All that a list has, page by page, each of at most `limit`; panics when it does not end.
async fn listed(store: &dyn Store, filter: &WorkflowFilter, limit: usize) -> Vec<WorkflowSummary> {
    let (mut all, mut cursor) = (Vec::new(), None);
    for _ in 0..10_000 {
        let page = store.list_workflows(filter, cursor.as_deref(), limit).await.expect("list");
        assert!(page.workflows.len() <= limit, "{} on a page of {limit}", page.workflows.len());
        all.extend(page.workflows);
        cursor = page.cursor;
        if cursor.is_none() {
            return all;
        }
    }
    panic!("the list does not end");
}

fn ids(workflows: &[WorkflowSummary]) -> Vec<WorkflowId> {
    workflows.iter().map(|one| one.id).collect()
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

pub async fn workflows_are_listed_newest_first_and_keep_their_places(store: Arc<dyn Store>) {
    let tenant = tenant();
    let of = |id| summary(id, &tenant, WorkflowState::Queued);
    let take_in = async |count: usize| {
        let mut taken_in = Vec::new();
        for _ in 0..count {
            // Ids that are not in the order of their acceptance.
            let id = new();
            store.accept_workflow(written(of(id))).await.unwrap();
            taken_in.push(id);
        }
        taken_in
    };
    let mut expected = take_in(9).await;
    // The store may have lost it: it is listed when it is written.
    let lost = new();
    store.write_workflow(written(of(lost))).await.unwrap();
    expected.push(lost);
    expected.reverse();
    let filter = WorkflowFilter { tenant: Some(tenant.clone()), ..WorkflowFilter::default() };
    // What is written again, and what is asked for once more, stays where it is.
    for id in [expected[4], expected[9]] {
        store.write_workflow(written(summary(id, &tenant, WorkflowState::Running))).await.unwrap();
    }
    store.write_workflow(written(summary(expected[4], &tenant, WorkflowState::Failed))).await.unwrap();
    store.accept_workflow(written(of(expected[6]))).await.unwrap();
    store.cancel_workflow(expected[7]).await.unwrap();
    for limit in [1, 3, 10, 1_000] {
        assert_eq!(ids(&listed(&*store, &filter, limit).await), expected, "by {limit}");
    }
    // What comes in between two pages is newer than both: nothing is shown twice, nothing is left out.
    let page = store.list_workflows(&filter, None, 4).await.unwrap();
    take_in(3).await;
    let mut seen = ids(&page.workflows);
    let mut cursor = page.cursor;
    while let Some(from) = cursor {
        let page = store.list_workflows(&filter, Some(&from), 4).await.unwrap();
        seen.extend(ids(&page.workflows));
        cursor = page.cursor;
    }
    assert_eq!(seen, expected);
    for forged in ["", "0", "-", "(a", "+inf", &"0".repeat(10_000)] {
        let answer = store.list_workflows(&filter, Some(forged), 10).await;
        assert!(matches!(answer, Err(StoreError::BadCursor)), "{forged:?} gave {answer:?}");
    }
}

pub async fn a_list_of_workflows_holds_what_matches_as_it_was_last_written(store: Arc<dyn Store>) {
    let (one, other) = (tenant(), tenant());
    let label = BTreeMap::from([("source".to_owned(), "contract".to_owned())]);
    let all = [
        summary(new(), &one, WorkflowState::Queued),
        WorkflowSummary { metadata: label.clone(), ..summary(new(), &one, WorkflowState::Running) },
        WorkflowSummary { deadline: Some(Timestamp::now()), ..summary(new(), &one, WorkflowState::Succeeded) },
        WorkflowSummary { metadata: label.clone(), ..summary(new(), &other, WorkflowState::Running) },
    ];
    for summary in &all {
        let taken_in = WorkflowSummary { state: WorkflowState::Queued, finished: None, ..summary.clone() };
        store.accept_workflow(written(taken_in)).await.unwrap();
        if summary.state != WorkflowState::Queued {
            store.write_workflow(written(summary.clone())).await.unwrap();
        }
    }
    // It has ended: it is shown as it did.
    store.write_workflow(written(summary(all[2].id, &one, WorkflowState::Failed))).await.unwrap();
    let of = |tenant: &String| WorkflowFilter { tenant: Some(tenant.clone()), ..WorkflowFilter::default() };
    let in_state = |state| WorkflowFilter { state: Some(state), ..of(&one) };
    let cases = [
        (of(&one), vec![2, 1, 0]),
        (of(&other), vec![3]),
        (of(&tenant()), vec![]),
        (in_state(WorkflowState::Queued), vec![0]),
        (in_state(WorkflowState::Running), vec![1]),
        (in_state(WorkflowState::Succeeded), vec![2]),
        (in_state(WorkflowState::Failed), vec![]),
        (WorkflowFilter { metadata: label.clone(), ..of(&one) }, vec![1]),
        (WorkflowFilter { metadata: label, ..in_state(WorkflowState::Queued) }, vec![]),
    ];
    for (filter, numbers) in cases {
        let expected: Vec<_> = numbers.into_iter().map(|number: usize| all[number].clone()).collect();
        for limit in [1, 100] {
            assert_eq!(listed(&*store, &filter, limit).await, expected, "{filter:?} by {limit}");
        }
    }
}

pub async fn a_workflow_is_listed_until_it_is_forgotten(store: Arc<dyn Store>) {
    let tenant = tenant();
    let filter = WorkflowFilter { tenant: Some(tenant.clone()), ..WorkflowFilter::default() };
    let lives = new();
    store.accept_workflow(written(summary(lives, &tenant, WorkflowState::Queued))).await.unwrap();
    let ended = new();
    store.write_workflow(written(summary(ended, &tenant, WorkflowState::Succeeded))).await.unwrap();
    eventually("it to leave the list", || async {
        (ids(&listed(&*store, &filter, 10).await) == [lives]).then_some(())
    })
    .await;
    assert!(store.workflow(ended).await.unwrap().is_none(), "its record goes with it");
    // One of the same id is another.
    store.accept_workflow(written(summary(ended, &tenant, WorkflowState::Queued))).await.unwrap();
    assert_eq!(ids(&listed(&*store, &filter, 10).await), [ended, lives]);
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
