//! Giving an attempt back.

use super::*;

pub async fn a_released_task_is_claimed_again_at_once(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, first) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, first, LONG_MS, 1).await;
    assert_eq!(desk.release(id, nonce(), true).await, Released::Stale, "somebody else's");
    assert_eq!(desk.show(id).await.state, State::Running);
    assert_eq!(desk.release(id, first, true).await, Released::Released);
    let task = desk.show(id).await;
    assert_eq!((task.state, task.attempt, task.worker), (State::Queued, 1, None));
    desk.run(id, nonce(), LONG_MS, 2).await;
}

pub async fn a_released_attempt_need_not_count(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    desk.open(id).await;
    for _ in 0..5 {
        let nonce = nonce();
        desk.run(id, nonce, LONG_MS, 1).await;
        assert_eq!(desk.release(id, nonce, false).await, Released::Released);
        assert_eq!(desk.show(id).await.attempt, 0);
    }
    for attempt in 1..=3 {
        let nonce = nonce();
        desk.run(id, nonce, LONG_MS, attempt).await;
        assert_eq!(desk.release(id, nonce, true).await, Released::Released);
    }
    assert!(matches!(desk.claim(claim_of(id, nonce(), LONG_MS)).await, Claimed::Exhausted { attempts: 3 }));
}

pub async fn a_released_attempt_holds_nothing(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, first) = (TaskId::new(), nonce());
    assert_eq!(desk.release(id, first, true).await, Released::Released, "no record");
    assert!(desk.get(id).await.is_none(), "releasing creates nothing");
    desk.open(id).await;
    desk.run(id, first, LONG_MS, 1).await;
    assert_eq!(desk.release(id, first, false).await, Released::Released);
    assert_eq!(desk.release(id, first, false).await, Released::Released, "twice, since an answer may be lost");
    assert_eq!(desk.show(id).await.attempt, 0, "and counted once");
    assert_eq!(desk.renew(id, first, LONG_MS).await, Renewed::Lost);
    assert!(matches!(desk.settle(1, first, &succeeded(id, 1, "1")).await, Settled::Stale));
    // The number of an attempt that did not count is given again: only the nonce tells the two apart.
    let second = nonce();
    desk.run(id, second, LONG_MS, 1).await;
    assert!(matches!(desk.settle(1, first, &succeeded(id, 1, "1")).await, Settled::Stale));
    assert!(matches!(desk.settle(1, second, &succeeded(id, 1, "2")).await, Settled::Done { .. }));
}

/// A first attempt that need not claim may claim late, and come to its end before that is carried out.
pub async fn a_claim_that_comes_after_its_attempt_was_given_back_is_refused(store: Arc<dyn Store>) {
    let desk = Desk(store);
    for counts in [true, false] {
        let (id, first) = (TaskId::new(), nonce());
        desk.open(id).await;
        assert_eq!(desk.release(id, first, counts).await, Released::Released, "nobody holds it");
        let late = desk.claim(claim_of(id, first, LONG_MS)).await;
        assert!(matches!(late, Claimed::Busy { .. }), "{late:?}");
        let task = desk.show(id).await;
        assert_eq!((task.state, task.attempt, task.worker), (State::Queued, 0, None), "nothing holds it back");
        desk.run(id, nonce(), LONG_MS, 1).await;
        let late = desk.claim(claim_of(id, first, LONG_MS)).await;
        assert!(matches!(late, Claimed::Busy { .. }), "{late:?}");
        assert_eq!(desk.release(id, first, counts).await, Released::Stale, "another holds it");
    }
}
