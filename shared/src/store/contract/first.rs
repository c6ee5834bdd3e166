//! Settling a first attempt that never claimed: what a short task saves a call by.

use super::*;

pub async fn a_first_attempt_settles_without_a_claim(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (waiting, dispatched) = (TaskId::new(), TaskId::new());
    desk.accept(Accept { follower: Some(follower("waiting")), ..acceptance(waiting) }).await;
    desk.accept(Accept { follower: Some(follower("waiting")), ..acceptance(dispatched) }).await;
    desk.dispatched(dispatched, "sentiment@2").await;
    for id in [waiting, dispatched] {
        let (own, result) = (nonce(), succeeded(id, 1, "1"));
        let answer = desk.settle_first(own, &result).await;
        assert!(matches!(&answer, Settled::Done { followers } if *followers == [follower("waiting")]), "{answer:?}");
        assert_eq!(text(&desk.show(id).await), text(&result));
        let answer = desk.settle_first(own, &succeeded(id, 1, "2")).await;
        assert!(
            matches!(&answer, Settled::Again { followers } if *followers == [follower("waiting")]),
            "its answer was lost: {answer:?}"
        );
        let answer = desk.settle(1, own, &result).await;
        assert!(matches!(answer, Settled::Again { .. }), "the record holds attempt 1 and the nonce: {answer:?}");
        assert!(matches!(desk.settle(2, own, &result).await, Settled::Already(_)));
        assert_eq!(text(&desk.show(id).await), text(&result), "what was written first stays");
    }
}

pub async fn a_first_attempt_without_a_record_creates_it(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, own) = (TaskId::new(), nonce());
    let result = succeeded(id, 1, "1");
    let answer = desk.settle_first(own, &result).await;
    assert!(matches!(&answer, Settled::Done { followers } if followers.is_empty()), "{answer:?}");
    assert_eq!(text(&desk.show(id).await), text(&result));
    assert!(matches!(desk.settle_first(own, &result).await, Settled::Again { .. }));
    assert!(matches!(desk.settle(1, own, &result).await, Settled::Again { .. }));
    assert!(matches!(desk.settle_first(nonce(), &result).await, Settled::Already(_)));
    let answer = desk.accept(acceptance(id)).await;
    assert!(matches!(answer, Accepted::Known(_)), "its task was accepted once: {answer:?}");
}

pub async fn a_first_attempt_is_told_when_another_had_settled_it(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (claimed, unclaimed, first) = (TaskId::new(), TaskId::new(), TaskId::new());
    let (_, result) = desk.finished(claimed).await;
    desk.open(unclaimed).await;
    assert!(matches!(desk.settle_unclaimed(&expired(unclaimed)).await, Settled::Done { .. }));
    desk.open(first).await;
    assert!(matches!(desk.settle_first(nonce(), &succeeded(first, 1, "1")).await, Settled::Done { .. }));
    for (id, state) in [(claimed, result.state), (unclaimed, State::Expired), (first, State::Succeeded)] {
        match desk.settle_first(nonce(), &succeeded(id, 1, "2")).await {
            Settled::Already(shown) => {
                assert_eq!(shown.state, state);
                assert_eq!(text(&shown), text(&desk.show(id).await));
            }
            other => panic!("{other:?}"),
        }
    }
}

pub async fn a_first_attempt_loses_against_the_live_lease_of_another(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, holder) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, holder, LONG_MS, 1).await;
    assert!(matches!(desk.settle_first(nonce(), &succeeded(id, 1, "1")).await, Settled::Stale));
    assert_eq!(desk.show(id).await.state, State::Running);
    assert!(matches!(desk.settle(1, holder, &succeeded(id, 1, "2")).await, Settled::Done { .. }));
}

pub async fn a_first_attempt_that_did_claim_settles_all_the_same(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, own) = (TaskId::new(), nonce());
    let result = succeeded(id, 1, "1");
    desk.open(id).await;
    desk.run(id, own, LONG_MS, 1).await;
    assert!(matches!(desk.settle_first(own, &result).await, Settled::Done { .. }));
    assert!(matches!(desk.settle_first(own, &result).await, Settled::Again { .. }));
    assert!(matches!(desk.settle(1, own, &result).await, Settled::Again { .. }));
    assert_eq!(text(&desk.show(id).await), text(&result));
}

pub async fn a_first_attempt_settles_behind_attempts_that_are_over(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (dead, released) = (TaskId::new(), TaskId::new());
    let (second, given_back) = (nonce(), nonce());
    desk.open(dead).await;
    desk.run(dead, nonce(), 0, 1).await;
    desk.run(dead, second, 0, 2).await;
    desk.open(released).await;
    desk.run(released, given_back, LONG_MS, 1).await;
    assert_eq!(desk.release(released, given_back, false).await, Released::Released);
    for (id, other, attempts) in [(dead, second, 2), (released, given_back, 1)] {
        let (own, result) = (nonce(), succeeded(id, 1, "1"));
        assert!(matches!(desk.settle_first(own, &result).await, Settled::Done { .. }));
        assert_eq!(text(&desk.show(id).await), text(&result));
        assert!(matches!(desk.settle_first(own, &result).await, Settled::Again { .. }));
        let answer = desk.settle(attempts, own, &result).await;
        assert!(matches!(answer, Settled::Again { .. }), "the count of attempts never falls: {answer:?}");
        let answer = desk.settle(attempts, other, &result).await;
        assert!(matches!(answer, Settled::Already(_)), "it was overtaken: {answer:?}");
        assert_eq!(desk.renew(id, other, LONG_MS).await, Renewed::Lost);
    }
}

pub async fn of_a_first_attempt_and_claimants_at_once_exactly_one_is_done(store: Arc<dyn Store>) {
    let desk = Desk(store.clone());
    for _ in 0..20 {
        let id = TaskId::new();
        desk.open(id).await;
        let racing = (0..4).map(|number| {
            let desk = Desk(store.clone());
            tokio::spawn(async move {
                let (own, result) = (nonce(), succeeded(id, 1, &number.to_string()));
                let answer = if number % 2 == 0 {
                    desk.settle_first(own, &result).await
                } else {
                    match desk.claim(claim_of(id, own, LONG_MS)).await {
                        Claimed::Run { attempt: 1 } => desk.settle(1, own, &result).await,
                        Claimed::Busy { .. } | Claimed::Terminal { .. } => return None,
                        other => panic!("{other:?}"),
                    }
                };
                match answer {
                    Settled::Done { .. } => Some(text(&result)),
                    Settled::Stale | Settled::Already(_) => None,
                    Settled::Again { .. } => panic!("nobody settles twice"),
                }
            })
        });
        let mut done = Vec::new();
        for racer in racing.collect::<Vec<_>>() {
            done.extend(racer.await.expect("a racer"));
        }
        assert_eq!(done, [text(&desk.show(id).await)]);
    }
}
