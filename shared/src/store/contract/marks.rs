//! What is asked of a task while it lives: to be cancelled, to have another priority. And models that are paused.

use super::*;
use crate::store::Filter;

fn priority(number: u8) -> Priority {
    Priority::try_from(number).expect("a priority")
}

pub async fn a_task_to_be_cancelled_is_not_claimed(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (waiting, dispatched) = (TaskId::new(), TaskId::new());
    desk.open(waiting).await;
    desk.open(dispatched).await;
    desk.dispatched(dispatched, "sentiment@2").await;
    for (id, state) in [(waiting, State::Queued), (dispatched, State::Dispatched)] {
        for time in ["once", "twice"] {
            let record = desk.cancel(id).await.expect("a record");
            assert_eq!(record.state, state, "asking {time} ends nothing");
        }
        let answer = desk.claim(claim_of(id, nonce(), LONG_MS)).await;
        assert!(matches!(answer, Claimed::Unwanted { attempts: 0 }), "{answer:?}");
        let answer = desk.accept(acceptance(id)).await;
        assert!(matches!(&answer, Accepted::Unwanted(record) if record.id == id), "{answer:?}");
        let answer = desk.settle_unclaimed(&cancelled(id)).await;
        assert!(matches!(answer, Settled::Done { .. }), "nobody holds it: {answer:?}");
        assert_eq!(text(&desk.show(id).await), text(&cancelled_as(&desk.show(id).await)));
        assert_eq!(desk.cancel(id).await.map(|record| record.state), Some(State::Cancelled));
        assert!(matches!(desk.accept(acceptance(id)).await, Accepted::Known(_)), "it has ended");
    }
}

pub async fn a_running_attempt_is_told_that_it_is_to_be_cancelled(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, own) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, own, LONG_MS, 1).await;
    assert_eq!(desk.cancel(id).await.map(|record| record.state), Some(State::Running));
    assert_eq!(desk.renew(id, own, LONG_MS).await, Renewed::CancelRequested);
    assert_eq!(desk.renew(id, nonce(), LONG_MS).await, Renewed::Lost);
    let answer = desk.claim(claim_of(id, nonce(), LONG_MS)).await;
    assert!(matches!(answer, Claimed::Busy { .. }), "it still runs: {answer:?}");
    assert!(matches!(desk.settle_unclaimed(&cancelled(id)).await, Settled::Stale));
    assert_eq!(desk.release(id, own, true).await, Released::Released);
    let answer = desk.claim(claim_of(id, nonce(), LONG_MS)).await;
    assert!(matches!(answer, Claimed::Unwanted { attempts: 1 }), "not tried again: {answer:?}");
}

pub async fn an_attempt_that_ends_before_it_is_told_counts(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, own) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, own, LONG_MS, 1).await;
    desk.cancel(id).await;
    let result = succeeded(id, 1, "1");
    assert!(matches!(desk.settle(1, own, &result).await, Settled::Done { .. }));
    assert_eq!(text(&desk.show(id).await), text(&result));
    assert_eq!(desk.cancel(id).await.map(|record| record.state), Some(State::Succeeded), "a terminal state stays");
    assert_eq!(text(&desk.show(id).await), text(&result));
    assert!(matches!(desk.settle_unclaimed(&cancelled(id)).await, Settled::Already(_)));
}

pub async fn a_task_that_is_cancelled_before_it_comes_is_unwanted(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (plain, keyed, settled) = (TaskId::new(), TaskId::new(), TaskId::new());
    let alias = Some(format!("7:default:{}", TaskId::new().0.simple()));
    let keyed_task = || Accept { alias: alias.clone(), follower: Some(follower("f")), ..acceptance(keyed) };
    for id in [plain, keyed, settled] {
        assert!(desk.cancel(id).await.is_none());
        assert!(desk.cancel(id).await.is_none());
        assert!(desk.get(id).await.is_none(), "it was never accepted");
        assert!(desk.follow(id, follower("nobody")).await.is_none());
        assert!(desk.reprioritize(id, Some(9)).await.is_none());
        assert_eq!(desk.renew(id, nonce(), LONG_MS).await, Renewed::Unknown);
        let answer = desk.claim(claim_of(id, nonce(), LONG_MS)).await;
        assert!(matches!(answer, Claimed::Unknown), "{answer:?}");
        desk.dispatched(id, "sentiment@2").await;
        assert!(desk.get(id).await.is_none());
    }
    for task in [acceptance(plain), keyed_task()] {
        let id = task.id;
        for _ in 0..2 {
            let answer = desk.accept(task.clone()).await;
            assert!(matches!(&answer, Accepted::Unwanted(record) if record.id == id), "{answer:?}");
        }
        assert_eq!(desk.show(id).await.state, State::Queued);
        let answer = desk.claim(claim_of(id, nonce(), LONG_MS)).await;
        assert!(matches!(answer, Claimed::Unwanted { .. }), "{answer:?}");
    }
    let other = Accept { id: TaskId::new(), ..keyed_task() };
    let answer = desk.accept(other).await;
    assert!(matches!(&answer, Accepted::Unwanted(record) if record.id == keyed), "its key leads to it: {answer:?}");
    let listed = desk.0.list(&Filter::default(), None, 1_000).await.expect("a list");
    let of = |id| listed.tasks.iter().filter(|task| task.id == id).count();
    assert_eq!([of(plain), of(keyed), of(settled)], [1, 1, 0]);
    match desk.settle_unclaimed(&cancelled(keyed)).await {
        Settled::Done { followers } => assert_eq!(followers, [follower("f")]),
        other => panic!("{other:?}"),
    }
    // One that ran before anybody could ask.
    let result = succeeded(settled, 1, "1");
    assert!(matches!(desk.settle_first(nonce(), &result).await, Settled::Done { .. }));
    assert_eq!(text(&desk.show(settled).await), text(&result));
}

pub async fn a_batch_sees_which_of_its_tasks_are_unwanted(store: Arc<dyn Store>) {
    let ids: Vec<TaskId> = (0..600).map(|_| TaskId::new()).collect();
    let every_third = ids.iter().copied().step_by(3).collect::<Vec<_>>();
    assert!(store.cancel(every_third.clone()).await.expect("cancel").iter().all(Option::is_none));
    let accepted = store.accept(ids.iter().map(|id| acceptance(*id)).collect()).await.expect("accept");
    for (at, accepted) in accepted.iter().enumerate() {
        assert_eq!(matches!(accepted, Accepted::Unwanted(_)), at % 3 == 0, "{at}: {accepted:?}");
        assert_eq!(matches!(accepted, Accepted::New), at % 3 != 0, "{at}: {accepted:?}");
    }
    let records = store.cancel(ids.clone()).await.expect("cancel");
    assert_eq!(records.iter().map(|record| record.as_ref().map(|record| record.id)).collect::<Vec<_>>(), {
        ids.iter().map(|id| Some(*id)).collect::<Vec<_>>()
    });
}

pub async fn a_waiting_task_is_given_another_priority(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    desk.open(id).await;
    let first = desk.show(id).await.priority;
    for given in [9, 0, 7] {
        assert_eq!(desk.reprioritize(id, Some(given)).await.map(|record| record.priority), Some(priority(given)));
        match desk.accept(acceptance(id)).await {
            Accepted::Known(record) => {
                assert_eq!(record.priority, priority(given), "whoever takes it in again is told")
            }
            other => panic!("{other:?}"),
        }
    }
    let page = desk.0.list(&Filter::default(), None, 1_000).await.expect("a list");
    let listed = page.tasks.iter().find(|task| task.id == id).map(|task| task.priority);
    assert_eq!(listed, Some(priority(7)));
    assert_eq!(desk.reprioritize(id, None).await.map(|record| record.priority), Some(first));
    desk.reprioritize(id, Some(8)).await;
    // Beside the other mark, and through an attempt.
    desk.cancel(id).await;
    assert_eq!(desk.show(id).await.priority, priority(8));
    let (other, own) = (TaskId::new(), nonce());
    desk.open(other).await;
    desk.reprioritize(other, Some(8)).await;
    desk.dispatched(other, "sentiment@2").await;
    assert_eq!(desk.reprioritize(other, Some(1)).await.map(|record| record.priority), Some(priority(8)), "too late");
    desk.run(other, own, LONG_MS, 1).await;
    assert_eq!(desk.reprioritize(other, Some(1)).await.map(|record| record.priority), Some(priority(8)));
    desk.follow(other, follower("f")).await;
    assert_eq!(desk.renew(other, own, LONG_MS).await, Renewed::Renewed);
    assert_eq!(desk.release(other, own, true).await, Released::Released);
    assert_eq!(desk.show(other).await.priority, priority(8));
    let next = nonce();
    desk.run(other, next, LONG_MS, 2).await;
    let result = succeeded(other, 2, "1");
    assert!(matches!(desk.settle(2, next, &result).await, Settled::Done { .. }));
    assert_eq!(text(&desk.reprioritize(other, Some(1)).await.expect("a record")), text(&result), "it has ended");
}

pub async fn of_a_cancellation_and_a_claim_at_once_one_is_first(store: Arc<dyn Store>) {
    let desk = Desk(store.clone());
    for _ in 0..50 {
        let (id, own) = (TaskId::new(), nonce());
        desk.open(id).await;
        let (one, two) = (Desk(store.clone()), Desk(store.clone()));
        let claiming = tokio::spawn(async move { one.claim(claim_of(id, own, LONG_MS)).await });
        let cancelling = tokio::spawn(async move { two.cancel(id).await.expect("a record").state });
        match (claiming.await.expect("claimed"), cancelling.await.expect("cancelled")) {
            (Claimed::Unwanted { .. }, State::Queued) => {}
            (Claimed::Run { attempt: 1 }, State::Running) => {
                assert_eq!(desk.renew(id, own, LONG_MS).await, Renewed::CancelRequested);
            }
            other => panic!("{other:?}"),
        }
    }
}

pub async fn a_paused_model_stays_paused(store: Arc<dyn Store>) {
    let [one, two] = [(), ()].map(|()| format!("paused-{}", TaskId::new().0.simple()));
    let paused = async || {
        let mut models = store.paused().await.expect("paused");
        models.retain(|model| [&one, &two].contains(&model));
        models
    };
    assert!(paused().await.is_empty());
    store.pause(&one, false).await.expect("one that is not paused goes on");
    for _ in 0..2 {
        store.pause(&one, true).await.expect("pause");
    }
    assert_eq!(paused().await, [&*one]);
    store.pause(&two, true).await.expect("pause");
    assert_eq!(paused().await.len(), 2);
    store.pause(&one, false).await.expect("resume");
    assert_eq!(paused().await, [&*two]);
    store.pause(&two, false).await.expect("resume");
    assert!(paused().await.is_empty());
}

fn cancelled(id: TaskId) -> TaskResult {
    let error = TaskError { code: "cancelled".to_owned(), message: "as asked".to_owned(), retryable: false };
    TaskResult { state: State::Cancelled, error: Some(error), ..queued(id) }
}

/// That very record, if it is of a cancelled task.
fn cancelled_as(record: &TaskResult) -> TaskResult {
    TaskResult { timings: record.timings.clone(), ..cancelled(record.id) }
}
