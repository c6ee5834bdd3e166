//! The right to run: one attempt at a time, and never more of them than a task may have.

use super::*;

pub async fn a_claim_runs_the_first_attempt(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    desk.open(id).await;
    desk.run(id, nonce(), LONG_MS, 1).await;
    let task = desk.show(id).await;
    assert_eq!((task.state, task.attempt, task.worker.as_deref()), (State::Running, 1, Some("worker-1")));
    assert!(task.timings.started.is_some());
    assert_eq!(task.metadata, queued(id).metadata);
}

pub async fn one_claim_wins_and_the_others_are_busy(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    desk.open(id).await;
    desk.run(id, nonce(), LONG_MS, 1).await;
    for _ in 0..3 {
        let answer = desk.claim(claim_of(id, nonce(), LONG_MS)).await;
        assert!(matches!(answer, Claimed::Busy { for_ms } if (1..=LONG_MS).contains(&for_ms)), "{answer:?}");
    }
    assert_eq!(desk.show(id).await.attempt, 1, "a claim that is refused does not count");
}

pub async fn of_many_claimants_at_once_exactly_one_wins(store: Arc<dyn Store>) {
    for _ in 0..10 {
        let ids: Vec<_> = (0..8).map(|_| TaskId::new()).collect();
        store.accept(ids.iter().copied().map(acceptance).collect()).await.expect("accept");
        let claimants = (0..8).map(|_| {
            let (store, mut ids) = (store.clone(), ids.clone());
            fastrand::shuffle(&mut ids);
            tokio::spawn(async move {
                let claims = ids.iter().map(|id| claim_of(*id, nonce(), LONG_MS)).collect();
                ids.into_iter().zip(store.claim(claims).await.expect("claim")).collect::<Vec<_>>()
            })
        });
        let mut wins = BTreeMap::new();
        for claimant in claimants.collect::<Vec<_>>() {
            for (id, answer) in claimant.await.expect("claim") {
                match answer {
                    Claimed::Run { attempt: 1 } => *wins.entry(id).or_insert(0) += 1,
                    Claimed::Busy { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(wins, ids.iter().map(|id| (*id, 1)).collect());
    }
}

pub async fn the_same_claim_again_is_the_same_attempt(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, nonce) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, nonce, LONG_MS, 1).await;
    desk.run(id, nonce, LONG_MS, 1).await;
    assert_eq!(desk.show(id).await.attempt, 1);
    assert!(matches!(desk.settle(1, nonce, &succeeded(id, 1, "1")).await, Settled::Done { .. }));
}

pub async fn a_claim_without_a_record_is_unknown(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    assert!(matches!(desk.claim(claim_of(id, nonce(), LONG_MS)).await, Claimed::Unknown));
    assert!(desk.get(id).await.is_none(), "claiming creates nothing");
    desk.open(id).await;
    desk.run(id, nonce(), LONG_MS, 1).await;
}

pub async fn a_dead_lease_is_taken_over_with_the_next_attempt(store: Arc<dyn Store>) {
    let desk = &Desk(store);
    let (id, second) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, nonce(), 60, 1).await;
    let attempt = eventually("the lease ends", || async {
        let claim = Claim { worker: "worker-2".to_owned(), ..claim_of(id, second, LONG_MS) };
        match desk.claim(claim).await {
            Claimed::Run { attempt } => Some(attempt),
            Claimed::Busy { for_ms } if (1..=60).contains(&for_ms) => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(attempt, 2);
    let task = desk.show(id).await;
    assert_eq!((task.state, task.attempt, task.worker.as_deref()), (State::Running, 2, Some("worker-2")));
}

pub async fn a_renewed_lease_lives_on(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, nonce) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, nonce, 1_000, 1).await;
    assert_eq!(desk.renew(id, nonce, LONG_MS).await, Renewed::Renewed);
    let answer = desk.claim(claim_of(id, super::nonce(), LONG_MS)).await;
    assert!(matches!(answer, Claimed::Busy { for_ms } if for_ms > 1_000), "{answer:?}");
    // One that was late, but before anybody else came, still holds the task.
    desk.run(id, nonce, 0, 1).await;
    assert_eq!(desk.renew(id, nonce, LONG_MS).await, Renewed::Renewed);
    assert!(matches!(desk.claim(claim_of(id, super::nonce(), LONG_MS)).await, Claimed::Busy { .. }));
}

pub async fn whether_somebody_runs_a_task_can_be_asked(store: Arc<dyn Store>) {
    const NEXT: u128 = 77;
    let desk = Desk(store);
    let leased = async |id| desk.0.leased(vec![id]).await.expect("leased");
    let (id, nonce) = (TaskId::new(), nonce());
    assert_eq!(leased(id).await, [Leased::Unknown]);
    desk.open(id).await;
    assert_eq!(leased(id).await, [Leased::Over], "nobody has begun it");
    desk.run(id, nonce, LONG_MS, 1).await;
    assert_eq!(desk.0.leased(vec![id, TaskId::new()]).await.expect("leased"), [Leased::Live, Leased::Unknown]);
    // A lease that ends.
    desk.0.renew(vec![Renew { id, nonce, lease_ms: 1 }]).await.expect("renew");
    eventually("the lease ends", || async { (leased(id).await == [Leased::Over]).then_some(()) }).await;
    desk.0.renew(vec![Renew { id, nonce, lease_ms: LONG_MS }]).await.expect("renew");
    assert_eq!(leased(id).await, [Leased::Live]);
    desk.0.release(vec![Release { id, nonce, counts: true }]).await.expect("release");
    assert_eq!(leased(id).await, [Leased::Over]);
    desk.run(id, NEXT, LONG_MS, 2).await;
    desk.settle(2, NEXT, &TaskResult { state: State::Succeeded, attempt: 2, ..queued(id) }).await;
    assert_eq!(leased(id).await, [Leased::Ended]);
}

pub async fn only_the_attempt_that_holds_it_renews_a_lease(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, first, second) = (TaskId::new(), nonce(), nonce());
    assert_eq!(desk.renew(id, first, LONG_MS).await, Renewed::Unknown, "no record");
    assert!(desk.get(id).await.is_none(), "renewing creates nothing");
    desk.open(id).await;
    assert_eq!(desk.renew(id, first, LONG_MS).await, Renewed::Lost, "no claim");
    desk.run(id, first, 0, 1).await;
    desk.run(id, second, LONG_MS, 2).await;
    assert_eq!(desk.renew(id, first, LONG_MS).await, Renewed::Lost, "taken over");
    assert_eq!(desk.renew(id, second, LONG_MS).await, Renewed::Renewed);
    assert!(matches!(desk.settle(2, second, &succeeded(id, 2, "1")).await, Settled::Done { .. }));
    assert_eq!(desk.renew(id, second, LONG_MS).await, Renewed::Lost, "finished");
}

pub async fn exhausted_after_max_attempts(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, last) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, nonce(), 0, 1).await;
    desk.run(id, nonce(), 0, 2).await;
    desk.run(id, last, LONG_MS, 3).await;
    assert!(matches!(desk.claim(claim_of(id, nonce(), LONG_MS)).await, Claimed::Busy { .. }), "the third still runs");
    desk.run(id, last, 0, 3).await;
    for _ in 0..2 {
        let answer = desk.claim(claim_of(id, nonce(), LONG_MS)).await;
        assert!(matches!(answer, Claimed::Exhausted { attempts: 3 }), "{answer:?}");
    }
    assert!(matches!(desk.settle_unclaimed(&expired(id)).await, Settled::Done { .. }));
    assert!(matches!(desk.claim(claim_of(id, nonce(), LONG_MS)).await, Claimed::Terminal { .. }));
}

pub async fn attempts_that_only_the_envelope_knows_of_count(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (early, late, over) = (TaskId::new(), TaskId::new(), TaskId::new());
    for id in [early, late, over] {
        desk.open(id).await;
    }
    let answer = desk.claim(Claim { attempts: 1, ..claim_of(early, nonce(), 0) }).await;
    assert!(matches!(answer, Claimed::Run { attempt: 2 }), "{answer:?}");
    let answer = desk.claim(Claim { attempts: 1, ..claim_of(early, nonce(), 0) }).await;
    assert!(matches!(answer, Claimed::Run { attempt: 3 }), "the record knows of more: {answer:?}");
    let answer = desk.claim(Claim { attempts: 2, ..claim_of(late, nonce(), 0) }).await;
    assert!(matches!(answer, Claimed::Run { attempt: 3 }), "{answer:?}");
    let answer = desk.claim(Claim { attempts: 3, ..claim_of(over, nonce(), 0) }).await;
    assert!(matches!(answer, Claimed::Exhausted { attempts: 3 }), "{answer:?}");
    // A record made anew from an envelope.
    let again = TaskId::new();
    let record = TaskResult { attempt: 2, ..queued(again) };
    assert!(matches!(desk.accept(Accept { record, ..acceptance(again) }).await, Accepted::New));
    desk.run(again, nonce(), LONG_MS, 3).await;
}

pub async fn a_finished_task_is_not_claimed(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    let (_, result) = desk.finished(id).await;
    match desk.claim(claim_of(id, nonce(), LONG_MS)).await {
        Claimed::Terminal { result: shown, followers } => {
            assert_eq!(text(&shown), text(&result));
            assert!(followers.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

pub async fn a_dispatched_task_says_so_and_on_which_model(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    desk.open(id).await;
    desk.dispatched(id, "sentiment@2").await;
    let task = desk.show(id).await;
    assert_eq!((task.state, task.model.as_deref()), (State::Dispatched, Some("sentiment@2")));
    desk.run(id, nonce(), LONG_MS, 1).await;
    let task = desk.show(id).await;
    assert_eq!((task.state, task.model.as_deref()), (State::Running, Some("sentiment@2")));
}

pub async fn dispatching_never_creates_and_never_touches_what_runs_or_has_ended(store: Arc<dyn Store>) {
    let desk = Desk(store.clone());
    let [absent, running, finished] = [TaskId::new(), TaskId::new(), TaskId::new()];
    desk.open(running).await;
    desk.run(running, nonce(), LONG_MS, 1).await;
    desk.finished(finished).await;
    let before = (desk.show(running).await, desk.show(finished).await);
    let all = [absent, running, finished].map(|id| (id, "other@1".to_owned()));
    store.dispatched(all.to_vec()).await.expect("dispatched");
    assert!(desk.get(absent).await.is_none());
    assert_eq!(text(&desk.show(running).await), text(&before.0));
    assert_eq!(text(&desk.show(finished).await), text(&before.1));
}
