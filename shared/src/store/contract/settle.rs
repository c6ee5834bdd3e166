//! Settling: once, by the attempt that holds the task.

use super::*;

pub async fn a_settled_task_shows_its_result(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    let (_, result) = desk.finished(id).await;
    assert_eq!(text(&desk.show(id).await), text(&result));
}

pub async fn a_stale_attempt_cannot_settle(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, first, second) = (TaskId::new(), nonce(), nonce());
    desk.open(id).await;
    assert!(matches!(desk.settle(1, first, &succeeded(id, 1, "1")).await, Settled::Stale), "it never claimed");
    desk.run(id, first, 0, 1).await;
    desk.run(id, second, LONG_MS, 2).await;
    assert!(matches!(desk.settle(1, first, &succeeded(id, 1, "1")).await, Settled::Stale));
    assert!(matches!(desk.settle(2, first, &succeeded(id, 2, "1")).await, Settled::Stale));
    assert_eq!(desk.show(id).await.state, State::Running);
    assert!(matches!(desk.settle(2, second, &succeeded(id, 2, "2")).await, Settled::Done { .. }));
    match desk.settle(1, first, &succeeded(id, 1, "1")).await {
        Settled::Already(result) => assert_eq!(text(&result), text(&desk.show(id).await)),
        other => panic!("{other:?}"),
    }
}

pub async fn the_right_nonce_of_another_attempt_number_is_stale(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, nonce) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, nonce, LONG_MS, 1).await;
    assert!(matches!(desk.settle(2, nonce, &succeeded(id, 2, "1")).await, Settled::Stale));
    assert!(matches!(desk.settle(1, nonce, &succeeded(id, 1, "1")).await, Settled::Done { .. }));
}

pub async fn settling_twice_by_the_same_attempt_is_told_apart(store: Arc<dyn Store>) {
    let desk = Desk(store.clone());
    let (id, nonce) = (TaskId::new(), nonce());
    let result = succeeded(id, 1, "1");
    desk.open(id).await;
    desk.run(id, nonce, LONG_MS, 1).await;
    let guard = Guard::Fence { attempt: 1, nonce };
    let twice = vec![Settle::new(guard, result.clone()), Settle::new(guard, result.clone())];
    let answers = store.settle(twice).await.expect("settle");
    assert!(matches!(answers[..], [Settled::Done { .. }, Settled::Again { .. }]), "{answers:?}");
    assert!(matches!(desk.settle(1, nonce, &succeeded(id, 1, "2")).await, Settled::Again { .. }));
    assert_eq!(text(&desk.show(id).await), text(&result), "what was written first stays");
}

pub async fn of_many_settlements_at_once_exactly_one_is_done(store: Arc<dyn Store>) {
    let desk = Desk(store.clone());
    for _ in 0..10 {
        let (id, nonce) = (TaskId::new(), nonce());
        desk.open(id).await;
        desk.run(id, nonce, LONG_MS, 1).await;
        let settling = (0..8).map(|number| {
            let desk = Desk(store.clone());
            let result = succeeded(id, 1, &number.to_string());
            tokio::spawn(async move { (result.clone(), desk.settle(1, nonce, &result).await) })
        });
        let mut done = Vec::new();
        for settled in settling.collect::<Vec<_>>() {
            match settled.await.expect("settle") {
                (result, Settled::Done { .. }) => done.push(text(&result)),
                (_, Settled::Again { .. }) => {}
                (_, other) => panic!("{other:?}"),
            }
        }
        assert_eq!(done, [text(&desk.show(id).await)]);
    }
}

pub async fn a_terminal_record_never_changes(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    let (first, result) = desk.finished(id).await;
    let other = nonce();
    for _ in 0..2 {
        assert!(matches!(desk.settle(2, other, &succeeded(id, 2, "2")).await, Settled::Already(_)));
        assert!(matches!(desk.settle_unclaimed(&expired(id)).await, Settled::Already(_)));
        assert!(matches!(desk.claim(claim_of(id, other, 0)).await, Claimed::Terminal { .. }));
        assert!(matches!(desk.claim(claim_of(id, first, 0)).await, Claimed::Terminal { .. }));
        assert_eq!(desk.release(id, first, true).await, Released::Stale);
        assert_eq!(desk.renew(id, first, LONG_MS).await, Renewed::Lost);
        desk.dispatched(id, "other@1").await;
        assert!(matches!(desk.accept(acceptance(id)).await, Accepted::Known(_)));
        assert_eq!(text(&desk.show(id).await), text(&result));
    }
}

pub async fn a_settle_without_a_record_creates_it(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (fenced, unclaimed, nonce) = (TaskId::new(), TaskId::new(), nonce());
    let result = succeeded(fenced, 1, "1");
    let answer = desk.settle(1, nonce, &result).await;
    assert!(matches!(&answer, Settled::Done { followers } if followers.is_empty()), "{answer:?}");
    assert_eq!(text(&desk.show(fenced).await), text(&result));
    assert!(matches!(desk.settle(1, nonce, &result).await, Settled::Again { .. }));
    assert!(matches!(desk.settle_unclaimed(&expired(unclaimed)).await, Settled::Done { .. }));
    for id in [fenced, unclaimed] {
        assert!(matches!(desk.claim(claim_of(id, super::nonce(), LONG_MS)).await, Claimed::Terminal { .. }));
        let answer = desk.accept(acceptance(id)).await;
        assert!(matches!(answer, Accepted::Known(_)), "its task was accepted once: {answer:?}");
    }
}

pub async fn an_unclaimed_task_can_be_settled_by_anybody(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (waiting, dispatched) = (TaskId::new(), TaskId::new());
    desk.open(waiting).await;
    desk.open(dispatched).await;
    desk.dispatched(dispatched, "sentiment@2").await;
    for id in [waiting, dispatched] {
        let result = expired(id);
        assert!(matches!(desk.settle_unclaimed(&result).await, Settled::Done { .. }));
        assert_eq!(text(&desk.show(id).await), text(&result));
        match desk.settle_unclaimed(&result).await {
            Settled::Already(shown) => assert_eq!(text(&shown), text(&result)),
            other => panic!("{other:?}"),
        }
    }
}

pub async fn unclaimed_settle_loses_against_a_live_lease(store: Arc<dyn Store>) {
    let desk = &Desk(store);
    let (id, nonce) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, nonce, LONG_MS, 1).await;
    assert!(matches!(desk.settle_unclaimed(&expired(id)).await, Settled::Stale));
    assert_eq!(desk.show(id).await.state, State::Running);
    desk.run(id, nonce, 60, 1).await;
    eventually("the lease ends", || async {
        match desk.settle_unclaimed(&expired(id)).await {
            Settled::Done { .. } => Some(()),
            Settled::Stale => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
}

pub async fn an_attempt_that_an_unclaimed_settle_overtook_is_told_so(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, nonce) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, nonce, 0, 1).await;
    assert!(matches!(desk.settle_unclaimed(&expired(id)).await, Settled::Done { .. }));
    match desk.settle(1, nonce, &succeeded(id, 1, "1")).await {
        Settled::Already(result) => assert_eq!(result.state, State::Expired),
        other => panic!("{other:?}"),
    }
    assert_eq!(desk.renew(id, nonce, LONG_MS).await, Renewed::Lost);
}

pub async fn outputs_come_back_byte_for_byte(store: Arc<dyn Store>) {
    let large = format!(r#"{{"text":"{}"}}"#, "0123456789abcdef".repeat(64 << 10));
    let outputs = [
        r#"{"b": 1,  "a":[1.0, 1e400, 123456789012345678901234567890, -0.0],"a":2}"#,
        r#""\u0000\ud83d\ude00 😀 \/""#,
        r#""Größe\n\t\u0007""#,
        "[ [ ], { } ,\n\ttrue ]",
        &large,
    ];
    let desk = Desk(store);
    for output in outputs {
        let (id, nonce) = (TaskId::new(), nonce());
        desk.open(id).await;
        desk.run(id, nonce, LONG_MS, 1).await;
        assert!(matches!(desk.settle(1, nonce, &succeeded(id, 1, output)).await, Settled::Done { .. }));
        let shown = desk.show(id).await.output.expect("an output");
        assert!(shown.get() == output, "{} bytes went in, {} came back", output.len(), shown.get().len());
    }
}

pub async fn a_finished_record_is_forgotten_after_its_time(store: Arc<dyn Store>) {
    let desk = &Desk(store);
    let (id, waiting) = (TaskId::new(), TaskId::new());
    desk.open(waiting).await;
    desk.open(id).await;
    assert!(desk.get(id).await.is_some());
    assert!(matches!(desk.settle_unclaimed(&expired(id)).await, Settled::Done { .. }));
    eventually("the record is forgotten", || async { desk.get(id).await.is_none().then_some(()) }).await;
    assert!(desk.get(waiting).await.is_some(), "one that has not finished is kept");
    assert!(matches!(desk.accept(acceptance(id)).await, Accepted::New));
}

pub async fn an_idempotency_key_is_forgotten_with_its_task(store: Arc<dyn Store>) {
    let desk = &Desk(store);
    let alias = &Some(format!("{}:key", tenant()));
    let first = Accept { alias: alias.clone(), ..acceptance(TaskId::new()) };
    assert!(matches!(desk.accept(first.clone()).await, Accepted::New));
    desk.run(first.id, nonce(), 0, 1).await;
    assert!(matches!(desk.settle_unclaimed(&expired(first.id)).await, Settled::Done { .. }));
    let second = &TaskId::new();
    eventually("the key is free", || async {
        match desk.accept(Accept { alias: alias.clone(), ..acceptance(*second) }).await {
            Accepted::New => Some(()),
            Accepted::Known(known) if known.id == first.id => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    let third = desk.accept(Accept { alias: alias.clone(), ..acceptance(TaskId::new()) }).await;
    assert!(matches!(&third, Accepted::Known(known) if known.id == *second), "{third:?}");
}
