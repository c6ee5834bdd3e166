//! Taking in: once for each id and for each idempotency key.

use super::*;

pub async fn a_new_task_is_shown_as_it_was_accepted(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let task = acceptance(TaskId::new());
    assert!(matches!(desk.accept(task.clone()).await, Accepted::New));
    assert_eq!(text(&desk.show(task.id).await), text(&task.record));
}

pub async fn an_id_never_accepted_has_no_record(store: Arc<dyn Store>) {
    assert!(Desk(store).get(TaskId::new()).await.is_none());
}

pub async fn a_second_accept_is_known(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let task = acceptance(TaskId::new());
    assert!(matches!(desk.accept(task.clone()).await, Accepted::New));
    let mut again = task.clone();
    again.record.metadata.clear();
    let answer = desk.accept(again).await;
    assert!(matches!(&answer, Accepted::Known(known) if text(known) == text(&task.record)), "{answer:?}");
    assert_eq!(text(&desk.show(task.id).await), text(&task.record), "the first one stays");
}

pub async fn a_second_accept_shows_how_far_the_task_has_come(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (running, finished) = (TaskId::new(), TaskId::new());
    desk.open(running).await;
    desk.run(running, nonce(), LONG_MS, 1).await;
    let answer = desk.accept(acceptance(running)).await;
    assert!(matches!(&answer, Accepted::Known(known) if known.state == State::Running), "{answer:?}");
    let (_, result) = desk.finished(finished).await;
    let answer = desk.accept(acceptance(finished)).await;
    assert!(matches!(&answer, Accepted::Known(known) if text(known) == text(&result)), "{answer:?}");
}

pub async fn another_content_is_a_conflict(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let task = acceptance(TaskId::new());
    assert!(matches!(desk.accept(task.clone()).await, Accepted::New));
    let other = Accept { fingerprint: 0xe, follower: Some(follower("other")), ..task.clone() };
    let answer = desk.accept(other).await;
    assert!(matches!(&answer, Accepted::Conflict(known) if text(known) == text(&task.record)), "{answer:?}");
    assert_eq!(text(&desk.show(task.id).await), text(&task.record));
    let answer = desk.settle_unclaimed(&expired(task.id)).await;
    assert!(matches!(&answer, Settled::Done { followers } if followers.is_empty()), "nothing was changed: {answer:?}");
}

pub async fn an_idempotency_key_leads_to_the_first_task(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let alias = Some(format!("{}:key", tenant()));
    let first = Accept { alias: alias.clone(), ..acceptance(TaskId::new()) };
    assert!(matches!(desk.accept(first.clone()).await, Accepted::New));

    let second = Accept { alias, follower: Some(follower("second")), ..acceptance(TaskId::new()) };
    let answer = desk.accept(second.clone()).await;
    assert!(matches!(&answer, Accepted::Known(known) if text(known) == text(&first.record)), "{answer:?}");
    assert!(desk.get(second.id).await.is_none(), "the other id is not taken in");
    let answer = desk.settle_unclaimed(&expired(first.id)).await;
    assert!(matches!(&answer, Settled::Done { followers } if *followers == [follower("second")]), "{answer:?}");

    let answer = desk.accept(second).await;
    assert!(matches!(&answer, Accepted::Known(known) if known.state == State::Expired), "{answer:?}");
}

pub async fn an_idempotency_key_with_another_content_is_a_conflict(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let alias = Some(format!("{}:key", tenant()));
    let first = Accept { alias: alias.clone(), ..acceptance(TaskId::new()) };
    assert!(matches!(desk.accept(first.clone()).await, Accepted::New));
    let second = Accept { alias, fingerprint: 0xe, ..acceptance(TaskId::new()) };
    let answer = desk.accept(second.clone()).await;
    assert!(matches!(&answer, Accepted::Conflict(known) if known.id == first.id), "{answer:?}");
    assert!(desk.get(second.id).await.is_none());
}

pub async fn idempotency_keys_of_other_tasks_do_not_meet(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let tenant = tenant();
    for key in ["a", "b", "b ", "{b}", "b:b"] {
        let task = Accept { alias: Some(format!("{tenant}:{key}")), ..acceptance(TaskId::new()) };
        assert!(matches!(desk.accept(task).await, Accepted::New), "{key:?}");
    }
}

pub async fn a_batch_sees_what_it_has_itself_taken_in(store: Arc<dyn Store>) {
    let tenant = tenant();
    let keyed = || Accept { alias: Some(format!("{tenant}:key")), ..acceptance(TaskId::new()) };
    let (first, plain) = (keyed(), acceptance(TaskId::new()));
    let batch = vec![
        first.clone(),
        plain.clone(),
        plain.clone(),
        keyed(),
        first.clone(),
        Accept { fingerprint: 0xe, ..plain.clone() },
    ];
    let answers = store.accept(batch).await.expect("accept");
    let short: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            Accepted::New => "new".to_owned(),
            Accepted::Known(known) if known.id == first.id => "known first".to_owned(),
            Accepted::Known(known) if known.id == plain.id => "known plain".to_owned(),
            Accepted::Conflict(known) if known.id == plain.id => "conflict plain".to_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(short, ["new", "new", "known plain", "known first", "known first", "conflict plain"]);
}

pub async fn of_many_accepts_at_once_exactly_one_is_new(store: Arc<dyn Store>) {
    let alias = format!("{}:key", tenant());
    let tasks = (0..16).map(|_| {
        let (store, alias) = (store.clone(), Some(alias.clone()));
        tokio::spawn(async move { Desk(store).accept(Accept { alias, ..acceptance(TaskId::new()) }).await })
    });
    let mut new = 0;
    for task in tasks.collect::<Vec<_>>() {
        match task.await.expect("accept") {
            Accepted::New => new += 1,
            Accepted::Known(_) => {}
            Accepted::Unwanted(known) | Accepted::Conflict(known) => panic!("not as known: {known:?}"),
        }
    }
    assert_eq!(new, 1);
}

pub async fn of_what_is_not_known_asking_leaves_nothing(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let task = Accept { alias: Some(format!("{}:key", tenant())), ..acceptance(TaskId::new()) };
    for task in [task.clone(), Accept { alias: None, ..task.clone() }] {
        let answer = desk.accept_known(task.clone()).await;
        assert!(matches!(answer, Accepted::New), "{answer:?}");
        assert!(desk.get(task.id).await.is_none());
    }
    let other = Accept { id: TaskId::new(), ..task };
    assert!(matches!(desk.accept(other).await, Accepted::New), "nor of its key");

    let unwanted = acceptance(TaskId::new());
    assert!(desk.cancel(unwanted.id).await.is_none());
    let answer = desk.accept_known(unwanted.clone()).await;
    assert!(matches!(answer, Accepted::New), "{answer:?}");
    let answer = desk.accept(unwanted).await;
    assert!(matches!(answer, Accepted::Unwanted(_)), "that it is to be cancelled stays: {answer:?}");
}

pub async fn what_is_known_is_asked_for_and_followed(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let alias = Some(format!("{}:key", tenant()));
    let first = Accept { alias: alias.clone(), ..acceptance(TaskId::new()) };
    let mut blocked = acceptance(TaskId::new());
    blocked.record.state = State::Blocked;
    for task in [&first, &blocked] {
        assert!(matches!(desk.accept(task.clone()).await, Accepted::New));
    }
    let conflict = Accept { fingerprint: 0xe, follower: Some(follower("conflict")), ..first.clone() };
    let by_key = Accept { follower: Some(follower("by key")), ..acceptance(TaskId::new()) };
    let asked = vec![
        conflict,
        Accept { follower: Some(follower("by id")), ..first.clone() },
        acceptance(TaskId::new()),
        Accept { alias, ..by_key.clone() },
        acceptance(blocked.id),
    ];
    let answers = desk.0.accept_known(asked).await.expect("accept_known");
    assert!(matches!(&answers[0], Accepted::Conflict(known) if known.id == first.id), "{answers:?}");
    assert!(matches!(&answers[1], Accepted::Known(known) if text(known) == text(&first.record)), "{answers:?}");
    assert!(matches!(&answers[2], Accepted::New), "{answers:?}");
    assert!(matches!(&answers[3], Accepted::Known(known) if known.id == first.id), "{answers:?}");
    assert!(matches!(&answers[4], Accepted::Known(known) if known.state == State::Blocked), "{answers:?}");
    assert_eq!(desk.show(blocked.id).await.state, State::Blocked, "who asks does not say that it may run");
    assert!(desk.get(by_key.id).await.is_none());

    assert!(desk.cancel(first.id).await.is_some());
    let answer = desk.accept_known(first.clone()).await;
    assert!(matches!(&answer, Accepted::Unwanted(known) if known.id == first.id), "{answer:?}");
    let Settled::Done { followers } = desk.settle_unclaimed(&expired(first.id)).await else { panic!("it is settled") };
    let told: Vec<_> = followers.iter().map(|follower| &*follower.to).collect();
    assert_eq!(told, ["replies.by id", "replies.by key"]);
}

pub async fn followers_are_told_once_and_capped(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, nonce) = (TaskId::new(), nonce());
    let first = Accept { follower: Some(follower("0")), ..acceptance(id) };
    assert!(matches!(desk.accept(first.clone()).await, Accepted::New));
    assert!(matches!(desk.accept(first).await, Accepted::Known(_)), "the same one again");
    for number in 0..crate::store::FOLLOWERS + 4 {
        assert!(desk.follow(id, follower(&number.to_string())).await.is_some());
    }
    desk.run(id, nonce, LONG_MS, 1).await;
    let expected: Vec<_> = (0..crate::store::FOLLOWERS).map(|number| follower(&number.to_string())).collect();
    match desk.settle(1, nonce, &succeeded(id, 1, "1")).await {
        Settled::Done { followers } => assert_eq!(followers, expected, "each once, the first of them, in order"),
        other => panic!("{other:?}"),
    }
    match desk.settle(1, nonce, &succeeded(id, 1, "1")).await {
        Settled::Again { followers } => assert_eq!(followers, expected),
        other => panic!("{other:?}"),
    }
    match desk.claim(claim_of(id, nonce, LONG_MS)).await {
        Claimed::Terminal { followers, .. } => assert_eq!(followers, expected),
        other => panic!("{other:?}"),
    }
}

pub async fn following_answers_the_record(store: Arc<dyn Store>) {
    let ids = [TaskId::new(), TaskId::new(), TaskId::new()];
    let desk = Desk(store.clone());
    desk.open(ids[0]).await;
    let (_, result) = desk.finished(ids[2]).await;
    let odd = Reply { to: "a \"queue\"\nof two lines, ünïcode".into(), correlation_id: None, array: true };
    let answers = store.follow(ids.to_vec(), odd.clone()).await.expect("follow");
    let states: Vec<_> = answers.iter().map(|task| task.as_ref().map(|task| (task.id, task.state))).collect();
    assert_eq!(states, [Some((ids[0], State::Queued)), None, Some((ids[2], State::Succeeded))]);
    assert_eq!(answers[2].as_ref().map(text), Some(text(&result)));
    assert!(desk.get(ids[1]).await.is_none(), "following creates nothing");
    let answer = desk.settle_unclaimed(&expired(ids[0])).await;
    assert!(matches!(&answer, Settled::Done { followers } if *followers == [odd]), "{answer:?}");
}

pub async fn a_finished_task_gets_no_more_followers(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let id = TaskId::new();
    let (nonce, result) = desk.finished(id).await;
    assert!(desk.follow(id, follower("late")).await.is_some());
    let late = Accept { follower: Some(follower("late")), ..acceptance(id) };
    assert!(matches!(desk.accept(late).await, Accepted::Known(_)));
    let answer = desk.settle(1, nonce, &result).await;
    assert!(matches!(&answer, Settled::Again { followers } if followers.is_empty()), "{answer:?}");
}
