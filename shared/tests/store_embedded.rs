//! The embedded store against the contract of every store, in memory and on disk, and what is its own: that records
//! outlive the process, however it ends.

mod child;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::value::RawValue;
use taskyard_shared::envelope::Reply;
use taskyard_shared::load::ModelSpec;
use taskyard_shared::store::contract::Check;
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{
    Accept, Accepted, Beside, Claim, Claimed, Filter, Guard, RECORD_BYTES, Release, Released, Renew, Renewed,
    Retention, Settle, Settled, Store, StoreError, WorkflowFilter, WorkflowWrite,
};
use taskyard_shared::workflow::{WorkflowId, WorkflowOrder, WorkflowRecord, WorkflowState};
use taskyard_shared::{Carried, Kind, Priority, State, TaskId, TaskResult, Timestamp, Timings};
use uuid::Uuid;

use self::child::{Child, within};

mod in_memory {
    taskyard_shared::store_contract!(super::in_memory);
}

mod on_disk {
    taskyard_shared::store_contract!(super::on_disk);
}

async fn in_memory(retention: Retention, check: Check) {
    check(Arc::new(EmbeddedStore::in_memory(retention))).await;
}

async fn on_disk(retention: Retention, check: Check) {
    let dir = tempfile::tempdir().unwrap();
    check(Arc::new(EmbeddedStore::open(dir.path(), retention).unwrap())).await;
}

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, Retention::default()).unwrap()
}

fn task(number: usize) -> TaskId {
    TaskId(Uuid::from_u128(0x7a5c << 96 | number as u128))
}

fn queued(id: TaskId) -> TaskResult {
    TaskResult {
        id,
        state: State::Queued,
        kind: Kind::Training,
        model: None,
        tenant: "tenant".into(),
        priority: Priority::HIGHEST,
        attempt: 0,
        output: None,
        error: None,
        timings: Timings { accepted: Some(Timestamp::from_micros(1_700_000_000_000_000)), ..Timings::default() },
        worker: None,
        metadata: BTreeMap::from([("label".into(), "value".into())]),
        choice: None,
        workflow: None,
        usage: None,
    }
}

fn succeeded(id: TaskId, output: &str) -> TaskResult {
    let output = Some(RawValue::from_string(output.to_owned()).unwrap());
    TaskResult { state: State::Succeeded, attempt: 1, model: Some("model@1".into()), output, ..queued(id) }
}

fn acceptance(id: TaskId) -> Accept {
    Accept { id, fingerprint: id.0.as_u128(), alias: None, record: queued(id), follower: None }
}

fn claim_of(id: TaskId, nonce: u128) -> Claim {
    Claim {
        id,
        worker: "worker".into(),
        nonce,
        lease_ms: 60_000,
        max_attempts: 3,
        attempts: 0,
        beside: Beside::OthersAnyway,
    }
}

fn text(task: &TaskResult) -> String {
    serde_json::to_string(task).unwrap()
}

async fn accept(store: &EmbeddedStore, task: Accept) -> Accepted {
    store.accept(vec![task]).await.unwrap().remove(0)
}

async fn open_task(store: &EmbeddedStore, id: TaskId) {
    assert!(matches!(accept(store, acceptance(id)).await, Accepted::New));
}

async fn claim(store: &EmbeddedStore, claim: Claim) -> Claimed {
    store.claim(vec![claim]).await.unwrap().remove(0)
}

async fn settle(store: &EmbeddedStore, attempt: u32, nonce: u128, result: TaskResult) -> Settled {
    let guard = Guard::Fence { attempt, nonce };
    store.settle(vec![Settle::new(guard, result)]).await.unwrap().remove(0)
}

async fn show(store: &EmbeddedStore, id: TaskId) -> TaskResult {
    store.get(vec![id]).await.unwrap().remove(0).unwrap()
}

async fn listed(store: &EmbeddedStore) -> Vec<TaskId> {
    let page = store.list(&Filter::default(), None, 1_000).await.unwrap();
    assert_eq!(page.cursor, None);
    page.tasks.iter().map(|task| task.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [waiting, sent, running, released, done, expired] = [1, 2, 3, 4, 5, 6].map(task);
    let follower = |name: &str| Reply { to: name.into(), correlation_id: Some("c".into()), array: true };
    let alias = Some("6:tenant:key".to_owned());
    for id in [waiting, sent, running, released, done] {
        open_task(&store, id).await;
    }
    let keyed = Accept { alias: alias.clone(), follower: Some(follower("first")), ..acceptance(expired) };
    assert!(matches!(accept(&store, keyed).await, Accepted::New));
    store.dispatched(vec![(sent, "model@2".into()), (running, "model@2".into())]).await.unwrap();
    for (id, nonce) in [(running, 1), (released, 2), (done, 3)] {
        assert!(matches!(claim(&store, claim_of(id, nonce)).await, Claimed::Run { attempt: 1 }));
    }
    let release = Release { id: released, nonce: 2, counts: true };
    assert_eq!(store.release(vec![release]).await.unwrap(), [Released::Released]);
    store.follow(vec![running, expired], follower("second")).await.unwrap();
    let output = r#"{"b": 1.0e5,  "a": "ü\u0000"}"#;
    assert!(matches!(settle(&store, 1, 3, succeeded(done, output)).await, Settled::Done { .. }));
    let late = TaskResult { state: State::Expired, ..queued(expired) };
    let unclaimed = Settle::new(Guard::Unclaimed, late);
    assert!(matches!(store.settle(vec![unclaimed]).await.unwrap()[..], [Settled::Done { .. }]));
    let all = vec![waiting, sent, running, released, done, expired];
    let before: Vec<_> = store.get(all.clone()).await.unwrap().iter().flatten().map(text).collect();
    let order = listed(&store).await;
    let first_page = store.list(&Filter::default(), None, 2).await.unwrap();
    drop(store);

    let store = open(dir.path());
    let after: Vec<_> = store.get(all).await.unwrap().iter().flatten().map(text).collect();
    assert_eq!(after, before);
    assert_eq!(after.len(), 6);
    assert_eq!(listed(&store).await, order);
    assert_eq!(order, [expired, done, released, running, sent, waiting]);
    let rest = store.list(&Filter::default(), first_page.cursor.as_deref(), 10).await.unwrap();
    assert_eq!(rest.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), order[2..]);
    assert_eq!(show(&store, done).await.output.unwrap().get(), output);

    // What had settled knows who settled it and whom to tell.
    assert!(matches!(settle(&store, 1, 3, succeeded(done, "1")).await, Settled::Again { .. }));
    assert!(matches!(settle(&store, 1, 4, succeeded(done, "1")).await, Settled::Already(_)));
    match claim(&store, claim_of(expired, 9)).await {
        Claimed::Terminal { followers, .. } => assert_eq!(followers, [follower("first"), follower("second")]),
        other => panic!("{other:?}"),
    }
    // The idempotency key still leads to its task, and the fingerprint still tells tasks apart.
    let same = Accept { alias: alias.clone(), fingerprint: expired.0.as_u128(), ..acceptance(task(7)) };
    assert!(matches!(accept(&store, same).await, Accepted::Known(known) if known.id == expired));
    assert!(matches!(accept(&store, Accept { alias, ..acceptance(task(7)) }).await, Accepted::Conflict(_)));
    // A lease does not outlive the process, an attempt does; its nonce holds until somebody else claims.
    assert!(matches!(claim(&store, claim_of(running, 5)).await, Claimed::Run { attempt: 2 }));
    assert!(matches!(claim(&store, claim_of(released, 6)).await, Claimed::Run { attempt: 2 }));
    assert!(matches!(settle(&store, 1, 1, succeeded(running, "1")).await, Settled::Stale));
    match settle(&store, 2, 5, succeeded(running, "2")).await {
        Settled::Done { followers } => assert_eq!(followers, [follower("second")]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_outlived_the_store_may_settle_when_nobody_took_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    open_task(&store, task(1)).await;
    assert!(matches!(claim(&store, claim_of(task(1), 1)).await, Claimed::Run { attempt: 1 }));
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.renew(vec![Renew { id: task(1), nonce: 1, lease_ms: 60_000 }]).await.unwrap(), [Renewed::Renewed]);
    assert!(matches!(claim(&store, claim_of(task(1), 2)).await, Claimed::Busy { .. }));
    assert!(matches!(settle(&store, 1, 1, succeeded(task(1), "1")).await, Settled::Done { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_and_values_outlive_the_process_and_replace_older_ones() {
    let spec = |name: &str, slots| ModelSpec {
        name: name.into(),
        version: "1".into(),
        handler: "simulated".into(),
        capabilities: vec!["echo".into()],
        slots,
        timeout_ms: 1,
        max_attempts: 1,
        max_batch: 1,
        max_delay_ms: 0,
        memory_mb: 0,
        gpus: 0,
        expected_ms: Some(0.1),
        quality: None,
    };
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.announce(&[spec("a", 1), spec("b", 1)]).await.unwrap();
    store.put("key", Bytes::from_static(b"old")).await.unwrap();
    drop(store);
    let store = open(dir.path());
    let commits = store.commits();
    store.announce(&[spec("a", 1), spec("b", 1)]).await.unwrap();
    assert_eq!(store.commits(), commits, "what is known is not written again");
    store.announce(&[spec("b", 2)]).await.unwrap();
    store.put("key", Bytes::from_static(b"new")).await.unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.models().await.unwrap(), [spec("a", 1), spec("b", 2)]);
    assert_eq!(store.fetch("key").await.unwrap(), Some(Bytes::from_static(b"new")));
}

#[test]
#[ignore = "run by a test that kills it"]
fn child_runs_tasks_for_ever() {
    let dir = child::dir();
    child::runtime().block_on(async {
        let store = open(&dir);
        let first = listed(&store).await.len();
        for number in (first..).step_by(10) {
            let ids: Vec<_> = (number..number + 10).map(task).collect();
            let accepted = store.accept(ids.iter().copied().map(acceptance).collect()).await.unwrap();
            assert!(accepted.iter().all(|answer| matches!(answer, Accepted::New)));
            println!("accepted {number}");
            store.dispatched(ids.iter().map(|id| (*id, "model@1".into())).collect()).await.unwrap();
            let claims = ids.iter().map(|id| claim_of(*id, id.0.as_u128())).collect();
            assert_eq!(store.claim(claims).await.unwrap().len(), 10);
            // Half of them end.
            for id in ids.into_iter().step_by(2) {
                let nonce = id.0.as_u128();
                assert!(matches!(settle(&store, 1, nonce, succeeded(id, "1")).await, Settled::Done { .. }));
            }
            println!("settled {number}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = 0;
    for round in 0..5 {
        let mut child = Child::start("child_runs_tasks_for_ever", dir.path());
        let settled = child.until(&format!("settled {}", before + 100 + round * 20), "settled");
        child.kill();
        let store = open(dir.path());
        let found = listed(&store).await;
        assert!(found.len() >= settled + 10, "{} of at least {}", found.len(), settled + 10);
        assert_eq!(
            found.iter().collect::<BTreeSet<_>>(),
            (0..found.len()).map(task).collect::<Vec<_>>().iter().collect()
        );
        for number in before..settled + 10 {
            let shown = show(&store, task(number)).await;
            if number.is_multiple_of(2) {
                assert_eq!(text(&shown), text(&succeeded(task(number), "1")), "number {number}");
                let again = settle(&store, 1, task(number).0.as_u128(), succeeded(task(number), "2")).await;
                assert!(matches!(again, Settled::Again { .. }), "{again:?}");
            } else {
                // Its claim was written before the settlements that were answered after it.
                assert_eq!((shown.state, shown.attempt), (State::Running, 1), "number {number}");
            }
        }
        before = found.len().next_multiple_of(10);
        // A batch that was cut off in the middle of its life is completed, so that the next round begins anew.
        let rest: Vec<_> = (found.len()..before).map(task).map(acceptance).collect();
        store.accept(rest).await.unwrap();
    }
}

#[test]
#[ignore = "run by a test that expects its crash"]
fn child_crashes_right_after_a_settlement() {
    let dir = child::dir();
    child::runtime().block_on(async {
        let store = open(&dir);
        // Large, so that writing them takes a while.
        let output = format!("\"{}\"", "x".repeat(100 << 10));
        let ending = |number| Settle::new(Guard::Unclaimed, succeeded(task(number), &output));
        let settled = store.settle((0..100).map(ending).collect()).await.unwrap();
        assert!(settled.iter().all(|answer| matches!(answer, Settled::Done { .. })));
        println!("settled 0");
        std::process::abort();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_is_answered_after_the_disk_has_it() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Child::start("child_crashes_right_after_a_settlement", dir.path());
        child.until("settled", "settled");
        child.end();
        assert_eq!(listed(&open(dir.path())).await.len(), 100);
    }
}

#[test]
#[ignore = "run by a test that limits its files"]
fn child_fills_the_disk_and_goes_on() {
    let dir = child::dir();
    child::runtime().block_on(async {
        let store = open(&dir);
        open_task(&store, task(0)).await;
        assert!(matches!(claim(&store, claim_of(task(0), 1)).await, Claimed::Run { attempt: 1 }));
        let output = format!("\"{}\"", "x".repeat(20_000));
        let mut number = 1;
        let full = loop {
            let settlement = Settle::new(Guard::Unclaimed, succeeded(task(number), &output));
            match store.settle(vec![settlement]).await {
                Ok(_) => number += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, StoreError::Full(_)), "{full}");
        assert!(matches!(store.ping().await, Err(StoreError::Full(_))));
        assert!(matches!(store.accept(vec![acceptance(task(number + 1))]).await, Err(StoreError::Full(_))));
        assert!(store.get(vec![task(number + 1)]).await.unwrap()[0].is_none(), "what was refused changed something");
        // Whoever runs goes on running.
        let renew = Renew { id: task(0), nonce: 1, lease_ms: 60_000 };
        assert_eq!(store.renew(vec![renew]).await.unwrap(), [Renewed::Renewed]);
        println!("full {number}");
        within("room again", async {
            while store.ping().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert!(matches!(settle(&store, 1, 1, succeeded(task(0), "0")).await, Settled::Done { .. }));
        println!("healed {number}");
        std::future::pending::<()>().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut child) = Child::start_with_small_files("child_fills_the_disk_and_goes_on", dir.path(), 8 << 10) else {
        println!("skipped: prlimit is needed to raise a limit again");
        return;
    };
    let number = child.until("full", "full");
    assert!(number > 50);
    child.allow_large_files();
    child.until("healed", "healed");
    child.kill();
    let store = open(dir.path());
    let ids: Vec<_> = (0..number).map(task).collect();
    let found = store.get(ids).await.unwrap();
    assert!(found.iter().all(|task| task.as_ref().is_some_and(|task| task.state == State::Succeeded)));
    // The one that was refused when the disk became full was in memory already, so it is written when there is room.
    assert_eq!(show(&store, task(number)).await.state, State::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    let before = store.commits();
    let callers = (0..200).map(|number| {
        let store = store.clone();
        tokio::spawn(async move { open_task(&store, task(number)).await })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    let commits = store.commits() - before;
    assert!((1..100).contains(&commits), "{commits} commits for 200 calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_records_leave_memory_and_disk() {
    let retention = Retention { finished_ms: 1, unfinished_ms: 1, listed: 1_000 };
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), retention).unwrap();
    let output = format!("\"{}\"", "x".repeat(100_000));
    for number in 0..150 {
        let id = task(number);
        store.accept(vec![acceptance(task(1_000 + number))]).await.unwrap();
        store.settle(vec![Settle::new(Guard::Unclaimed, succeeded(id, &output))]).await.unwrap();
    }
    // 15 MB were written; what is kept at any time is a few records.
    let file = dir.path().join("store.redb");
    assert!(std::fs::metadata(&file).unwrap().len() < 8 << 20, "{} bytes", std::fs::metadata(&file).unwrap().len());
    drop(store);
    let store =
        EmbeddedStore::open(dir.path(), Retention { finished_ms: 60_000, unfinished_ms: 60_000, listed: 1_000 });
    assert!(listed(&store.unwrap()).await.len() < 100, "forgotten records came back");
}

#[tokio::test]
async fn memory_is_bounded_and_what_was_let_in_can_end() {
    let retention = Retention { finished_ms: 60_000, ..Retention::default() };
    let store = EmbeddedStore::in_memory(retention).with_memory(100_000);
    let mut number = 0;
    let full = loop {
        match store.accept(vec![acceptance(task(number))]).await {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full(_)), "{full}");
    assert!((100..500).contains(&number), "{number}");
    let id = task(0);
    assert!(matches!(claim(&store, claim_of(id, 1)).await, Claimed::Run { attempt: 1 }));
    assert!(matches!(settle(&store, 1, 1, succeeded(id, "\"a short answer\"")).await, Settled::Done { .. }));
}

#[tokio::test]
async fn what_is_too_large_or_not_terminal_is_refused_and_changes_nothing() {
    let store = EmbeddedStore::in_memory(Retention::default());
    open_task(&store, task(1)).await;
    open_task(&store, task(2)).await;
    assert!(matches!(claim(&store, claim_of(task(1), 1)).await, Claimed::Run { attempt: 1 }));
    let guard = Guard::Fence { attempt: 1, nonce: 1 };
    let large = succeeded(task(1), &format!("\"{}\"", "x".repeat(RECORD_BYTES)));
    for refused in [large, TaskResult { state: State::Queued, ..queued(task(1)) }] {
        let fine = Settle::new(Guard::Unclaimed, succeeded(task(2), "1"));
        let answer = store.settle(vec![fine, Settle::new(guard, refused)]).await;
        assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    }
    assert_eq!(show(&store, task(1)).await.state, State::Running);
    assert_eq!(show(&store, task(2)).await.state, State::Queued);
    let value = store.put("key", Bytes::from(vec![0; RECORD_BYTES + 1])).await;
    assert!(matches!(value, Err(StoreError::Refused(_))));
}

#[tokio::test]
async fn lists_go_back_only_so_far() {
    let store = EmbeddedStore::in_memory(Retention { listed: 5, ..Retention::default() });
    for number in 0..20 {
        open_task(&store, task(number)).await;
    }
    assert_eq!(listed(&store).await, [19, 18, 17, 16, 15].map(task));
    assert!(store.get(vec![task(0)]).await.unwrap()[0].is_some(), "it is looked up all the same");
    assert!(matches!(
        store.list(&Filter::default(), Some("ffffffffffffffff0000"), 5).await,
        Err(StoreError::BadCursor)
    ));
}

fn workflow(number: u128) -> WorkflowRecord {
    let order = br#"{"tasks": [{"name": "a", "model": "m", "input": 1}, {"name": "b", "model": "m", "input": 1}]}"#;
    let (order, plan) = WorkflowOrder::read(order, &Carried::default(), Timestamp::now()).unwrap();
    WorkflowRecord { id: WorkflowId(Uuid::from_u128(number)), ..order.queued(plan) }
}

#[tokio::test]
async fn the_list_of_workflows_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let everything = WorkflowFilter::default();
    // Ids that are not in the order of their acceptance.
    let mut expected = Vec::new();
    for round in 0..3 {
        let store = open(dir.path());
        for number in [5, 1, 9].map(|number| 10 * number + round) {
            let queued = workflow(number);
            store.accept_workflow(WorkflowWrite::new(&queued, 7).unwrap()).await.unwrap();
            expected.insert(0, queued.summary());
        }
        // The oldest but one goes on, and is cancelled: it stays where it is.
        let at = expected.len() - 2;
        let state = if round == 2 { WorkflowState::Cancelled } else { WorkflowState::Running };
        let record = WorkflowRecord { accepted: expected[at].accepted, state, ..workflow(10) };
        store.write_workflow(WorkflowWrite::new(&record, 7).unwrap()).await.unwrap();
        store.cancel_workflow(record.id).await.unwrap();
        expected[at] = record.summary();
        drop(store);

        let store = open(dir.path());
        let first = store.list_workflows(&everything, None, 2).await.unwrap();
        let rest = store.list_workflows(&everything, first.cursor.as_deref(), 100).await.unwrap();
        assert_eq!([first.workflows, rest.workflows].concat(), expected, "in round {round}");
        assert_eq!(rest.cursor, None);
    }
}

#[tokio::test]
async fn the_list_of_workflows_goes_back_only_so_far() {
    let store = EmbeddedStore::in_memory(Retention { listed: 5, ..Retention::default() });
    for number in 0..1_200 {
        store.accept_workflow(WorkflowWrite::new(&workflow(number), 7).unwrap()).await.unwrap();
    }
    let listed = async |filter: &WorkflowFilter| {
        let page = store.list_workflows(filter, None, 1_000).await.unwrap();
        page.workflows.iter().map(|workflow| workflow.id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&WorkflowFilter::default()).await, [1_199, 1_198, 1_197, 1_196, 1_195]);
    let none = WorkflowFilter { state: Some(WorkflowState::Failed), ..WorkflowFilter::default() };
    assert_eq!(listed(&none).await, [0; 0]);
    assert!(store.workflow(workflow(0).id).await.unwrap().is_some(), "it is looked up all the same");
}
