//! Load reports, models, small values, and batches.

use bytes::Bytes;

use super::*;
use crate::load::{LoadReport, ModelLoad, ModelSpec};

fn report(worker: &str, finished: u64) -> LoadReport {
    LoadReport {
        worker: worker.to_owned(),
        host: "host-1".to_owned(),
        pid: 42,
        started: Timestamp::now(),
        at: Timestamp::now(),
        draining: false,
        memory_mb: 120,
        budget_mb: 0,
        budget_gpus: 0,
        slots: 0,
        models: BTreeMap::from([(
            "sentiment@1".to_owned(),
            ModelLoad { slots: 2, busy: 1, max_batch: 8, held: 3, finished, ..ModelLoad::default() },
        )]),
    }
}

/// A worker that no other check uses.
fn worker() -> String {
    format!("worker-{}", TaskId::new().0.simple())
}

async fn reports_of(store: &dyn Store, worker: &str) -> Vec<LoadReport> {
    let mut reports = store.loads().await.expect("loads");
    reports.retain(|report| report.worker == worker);
    reports
}

pub async fn load_reports_expire(store: Arc<dyn Store>) {
    let (brief, lasting) = (&worker(), &worker());
    let store = &*store;
    store.report_load(&report(lasting, 1), LONG_MS).await.expect("report");
    store.report_load(&report(brief, 1), 80).await.expect("report");
    eventually("the report expires", || async { reports_of(store, brief).await.is_empty().then_some(()) }).await;
    assert_eq!(reports_of(store, lasting).await.len(), 1);
    store.report_load(&report(brief, 2), LONG_MS).await.expect("report");
    assert_eq!(reports_of(store, brief).await.len(), 1, "it is back");
    for worker in [brief, lasting] {
        store.remove_load(worker).await.expect("remove");
    }
}

pub async fn the_newest_load_report_of_a_worker_counts(store: Arc<dyn Store>) {
    let worker = worker();
    let newest = report(&worker, 3);
    for report in [report(&worker, 1), report(&worker, 2), newest.clone()] {
        store.report_load(&report, LONG_MS).await.expect("report");
    }
    assert_eq!(reports_of(&*store, &worker).await, [newest]);
    store.remove_load(&worker).await.expect("remove");
}

pub async fn a_worker_that_leaves_is_no_longer_counted(store: Arc<dyn Store>) {
    let worker = worker();
    store.report_load(&report(&worker, 1), LONG_MS).await.expect("report");
    store.remove_load(&worker).await.expect("remove");
    assert!(reports_of(&*store, &worker).await.is_empty());
    store.remove_load(&worker).await.expect("removing nobody is no error");
}

pub async fn the_newest_announcement_of_a_model_counts(store: Arc<dyn Store>) {
    let spec = |name: &str, slots| ModelSpec {
        version: "1".to_owned(),
        name: name.to_owned(),
        handler: "onnx".to_owned(),
        capabilities: vec!["text-sentiment".to_owned()],
        slots,
        timeout_ms: 30_000,
        max_attempts: 3,
        max_batch: 8,
        max_delay_ms: 2,
        memory_mb: 120,
        gpus: 0,
        expected_ms: Some(4.5),
        quality: None,
    };
    let [one, two] = [(), ()].map(|()| format!("model-{}@1", TaskId::new().0.simple()));
    store.announce(&[]).await.expect("announcing nothing");
    store.announce(&[spec(&one, 1), spec(&two, 1)]).await.expect("announce");
    store.announce(&[spec(&one, 4)]).await.expect("announce");
    let mut models = store.models().await.expect("models");
    models.retain(|model| [&one, &two].contains(&&model.name));
    models.sort_by_key(|model| model.slots);
    assert_eq!(models, [spec(&two, 1), spec(&one, 4)]);
}

pub async fn small_values_are_kept(store: Arc<dyn Store>) {
    let [one, two] = [(), ()].map(|()| format!("value-{}", TaskId::new().0.simple()));
    assert_eq!(store.fetch(&one).await.expect("fetch"), None);
    let binary = Bytes::from((0..=255).collect::<Vec<u8>>());
    store.put(&one, binary.clone()).await.expect("put");
    store.put(&two, Bytes::new()).await.expect("put");
    assert_eq!(store.fetch(&one).await.expect("fetch"), Some(binary));
    assert_eq!(store.fetch(&two).await.expect("fetch"), Some(Bytes::new()));
    store.put(&one, Bytes::from_static(b"newer")).await.expect("put");
    assert_eq!(store.fetch(&one).await.expect("fetch"), Some(Bytes::from_static(b"newer")));
}

pub async fn batches_of_a_thousand_answer_in_order(store: Arc<dyn Store>) {
    let tasks: Vec<_> = (0..1_000).map(|_| (TaskId::new(), nonce())).collect();
    let ids: Vec<_> = tasks.iter().map(|(id, _)| *id).collect();
    let answers = store.accept(ids.iter().copied().map(acceptance).collect()).await.expect("accept");
    assert!(answers.len() == 1_000 && answers.iter().all(|answer| matches!(answer, Accepted::New)));

    let models = ids.iter().enumerate().map(|(number, id)| (*id, format!("model-{number}"))).collect();
    store.dispatched(models).await.expect("dispatched");

    // Every third is claimed twice, and so is busy the second time.
    let claims = tasks.iter().enumerate().flat_map(|(number, (id, nonce))| {
        let twice = (number % 3 == 0).then(|| claim_of(*id, super::nonce(), LONG_MS));
        std::iter::once(claim_of(*id, *nonce, LONG_MS)).chain(twice)
    });
    let claims: Vec<_> = claims.collect();
    let answers = store.claim(claims.clone()).await.expect("claim");
    assert_eq!(answers.len(), claims.len());
    let own: std::collections::HashSet<_> = tasks.iter().map(|(_, nonce)| *nonce).collect();
    for (claim, answer) in claims.iter().zip(&answers) {
        match answer {
            Claimed::Run { attempt: 1 } => assert!(own.contains(&claim.nonce)),
            Claimed::Busy { .. } => assert!(!own.contains(&claim.nonce)),
            other => panic!("{other:?}"),
        }
    }

    let renewals = tasks.iter().enumerate().map(|(number, (id, nonce))| Renew {
        id: *id,
        nonce: if number % 2 == 0 { *nonce } else { super::nonce() },
        lease_ms: LONG_MS,
    });
    for (number, answer) in store.renew(renewals.collect()).await.expect("renew").into_iter().enumerate() {
        assert_eq!(answer, if number % 2 == 0 { Renewed::Renewed } else { Renewed::Lost }, "number {number}");
    }

    let settlements = tasks.iter().enumerate().map(|(number, (id, nonce))| {
        Settle::new(
            Guard::Fence { attempt: 1, nonce: if number % 5 == 0 { super::nonce() } else { *nonce } },
            succeeded(*id, 1, &number.to_string()),
        )
    });
    for (number, answer) in store.settle(settlements.collect()).await.expect("settle").into_iter().enumerate() {
        let stale = matches!(answer, Settled::Stale);
        assert!(
            stale == (number % 5 == 0) && (stale || matches!(answer, Settled::Done { .. })),
            "{number}: {answer:?}"
        );
    }

    let releases = tasks.iter().map(|(id, nonce)| Release { id: *id, nonce: *nonce, counts: true });
    for (number, answer) in store.release(releases.collect()).await.expect("release").into_iter().enumerate() {
        assert_eq!(answer, if number % 5 == 0 { Released::Released } else { Released::Stale }, "number {number}");
    }

    let absent = [TaskId::new()];
    let shown = store.get(absent.iter().chain(&ids).copied().collect()).await.expect("get");
    assert!(shown[0].is_none());
    for (number, (id, task)) in ids.iter().zip(&shown[1..]).enumerate() {
        let task = task.as_ref().expect("a record");
        let expected = if number % 5 == 0 { None } else { Some(number.to_string()) };
        assert_eq!(task.id, *id);
        assert_eq!(task.output.as_ref().map(|output| output.get().to_owned()), expected);
        assert_eq!(
            task.model,
            Some(if number % 5 == 0 { format!("model-{number}") } else { "sentiment@1".to_owned() })
        );
    }
    let followed = store.follow(ids.clone(), follower("all")).await.expect("follow");
    assert_eq!(followed.iter().flatten().map(|task| task.id).collect::<Vec<_>>(), ids);
}

pub async fn an_empty_batch_answers_nothing(store: Arc<dyn Store>) {
    assert!(store.accept(Vec::new()).await.expect("accept").is_empty());
    assert!(store.claim(Vec::new()).await.expect("claim").is_empty());
    assert!(store.renew(Vec::new()).await.expect("renew").is_empty());
    assert!(store.settle(Vec::new()).await.expect("settle").is_empty());
    assert!(store.release(Vec::new()).await.expect("release").is_empty());
    assert!(store.get(Vec::new()).await.expect("get").is_empty());
    assert!(store.follow(Vec::new(), follower("nobody")).await.expect("follow").is_empty());
    store.dispatched(Vec::new()).await.expect("dispatched");
}

pub async fn it_says_what_it_is(store: Arc<dyn Store>) {
    let product = store.ping().await.expect("ping");
    assert!(product.chars().any(|character| character.is_ascii_alphabetic()), "{product:?}");
}
