//! What only a server can do to a store: be away, forget, be full, fall silent, ask for a password.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use taskyard_shared::lifecycle::State;
use taskyard_shared::load::LoadReport;
use taskyard_shared::outcome::{TaskResult, Timings};
use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::store::{
    Accept, Accepted, Beside, Claim, Claimed, Filter, Guard, Release, Released, Renew, Renewed, Retention, Settle,
    Settled, Store, StoreError, contract,
};
use taskyard_shared::{Kind, Priority, TaskId, Timestamp};
use tokio::net::{TcpListener, TcpStream};

use super::server::{self, Server, eventually, topology};
use super::settings;

fn open(server: &Server, timeout_ms: u64) -> RedisStore {
    RedisStore::connect(&settings(&server.url(), timeout_ms), &topology(), contract::LASTING).expect("a store")
}

pub fn task(id: TaskId) -> Accept {
    let record = TaskResult {
        id,
        state: State::Queued,
        kind: Kind::Prediction,
        model: Some("sentiment".to_owned()),
        tenant: "default".to_owned(),
        priority: Priority::default(),
        attempt: 0,
        output: None,
        error: None,
        timings: Timings { accepted: Some(Timestamp::now()), ..Timings::default() },
        worker: None,
        metadata: Default::default(),
        choice: None,
        workflow: None,
        usage: None,
    };
    Accept { id, fingerprint: 0xf, alias: None, record, follower: None }
}

pub fn tasks(count: usize) -> Vec<Accept> {
    (0..count).map(|_| task(TaskId::new())).collect()
}

pub fn claim(id: TaskId, nonce: u128) -> Claim {
    Claim {
        id,
        worker: "worker-1".to_owned(),
        nonce,
        lease_ms: 60_000,
        max_attempts: 3,
        attempts: 0,
        beside: Beside::OthersAnyway,
    }
}

pub fn settle(task: &Accept, nonce: u128) -> Settle {
    let result = TaskResult { state: State::Succeeded, attempt: 1, ..task.record.clone() };
    Settle::new(Guard::Fence { attempt: 1, nonce }, result)
}

/// Accepts one task; the error, if any.
async fn probe(store: &RedisStore) -> Option<StoreError> {
    store.accept(tasks(1)).await.err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_fast_while_the_server_is_away_and_work_again_when_it_is_back() {
    let Some(mut server) = Server::planned(&[]) else { return };
    let store = &open(&server, 30_000);
    for _ in 0..2 {
        let began = Instant::now();
        for _ in 0..20 {
            assert!(matches!(probe(store).await, Some(StoreError::Unreachable(_))));
            assert!(matches!(store.ping().await, Err(StoreError::Unreachable(_))));
            let renewal = Renew { id: TaskId::new(), nonce: 1, lease_ms: 1 };
            assert!(matches!(store.renew(vec![renewal]).await, Err(StoreError::Unreachable(_))));
        }
        assert!(began.elapsed() < Duration::from_secs(15), "60 calls took {:?}", began.elapsed());

        server.start().await;
        let began = Instant::now();
        eventually("the store works again", || async { probe(store).await.is_none().then_some(()) }).await;
        assert!(began.elapsed() < Duration::from_secs(15), "back after {:?}", began.elapsed());
        let answers = store.accept(tasks(600)).await.expect("accept");
        assert!(answers.iter().all(|answer| matches!(answer, Accepted::New)));
        server.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_between_two_calls_is_not_noticed() {
    let Some(mut server) = Server::started(&[]).await else { return };
    let store = open(&server, 30_000);
    let first = task(TaskId::new());
    store.accept(vec![first.clone()]).await.expect("accept");
    server.kill();
    server.start().await;
    // The record is gone and so are the scripts: the task is taken in again and claimed.
    assert!(matches!(store.claim(vec![claim(first.id, 1)]).await.expect("claim")[..], [Claimed::Unknown]));
    assert!(matches!(store.accept(vec![first.clone()]).await.expect("accept")[..], [Accepted::New]));
    assert!(matches!(store.claim(vec![claim(first.id, 1)]).await.expect("claim")[..], [Claimed::Run { attempt: 1 }]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_the_server_forgot_are_loaded_again() {
    let Some(server) = Server::started(&[]).await else { return };
    let store = open(&server, 30_000);
    let tasks = tasks(600);
    let forget = async || drop(server.command(&["SCRIPT", "FLUSH"]).await);
    // Three calls to a batch: each takes effect exactly once.
    for _ in 0..2 {
        let again = store.accept(tasks.clone()).await.expect("accept");
        assert_eq!(again.len(), 600);
        forget().await;
    }
    let again = store.accept(tasks.clone()).await.expect("accept");
    assert!(again.iter().all(|answer| matches!(answer, Accepted::Known(_))));
    forget().await;
    let claims = tasks.iter().map(|task| claim(task.id, 7)).collect();
    let runs = store.claim(claims).await.expect("claim");
    assert!(runs.iter().all(|answer| matches!(answer, Claimed::Run { attempt: 1 })));
    forget().await;
    let renewal = Renew { id: tasks[0].id, nonce: 7, lease_ms: 60_000 };
    assert_eq!(store.renew(vec![renewal]).await, Ok(vec![Renewed::Renewed]));
    let release = Release { id: tasks[0].id, nonce: 7, counts: true };
    assert_eq!(store.release(vec![release]).await, Ok(vec![Released::Released]));
    forget().await;
    let settlements = tasks[1..].iter().map(|task| settle(task, 7)).collect();
    let settled = store.settle(settlements).await.expect("settle");
    assert!(settled.iter().all(|answer| matches!(answer, Settled::Done { .. })));
    forget().await;
    assert_eq!(store.list(&Filter::default(), None, 1_000).await.expect("list").tasks.len(), 600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_flush_a_stale_attempt_cannot_settle() {
    let Some(server) = Server::started(&[]).await else { return };
    let store = open(&server, 30_000);
    let first = task(TaskId::new());
    store.accept(vec![first.clone()]).await.expect("accept");
    assert!(matches!(store.claim(vec![claim(first.id, 1)]).await.expect("claim")[..], [Claimed::Run { attempt: 1 }]));
    server.command(&["FLUSHALL"]).await;

    // The delivery comes again: the count of attempts begins at 1 again, which the old attempt has too.
    assert!(matches!(store.claim(vec![claim(first.id, 2)]).await.expect("claim")[..], [Claimed::Unknown]));
    assert!(matches!(store.accept(vec![first.clone()]).await.expect("accept")[..], [Accepted::New]));
    let stale = settle(&first, 1);
    assert!(matches!(store.settle(vec![stale.clone()]).await.expect("settle")[..], [Settled::Stale]));
    assert!(matches!(store.claim(vec![claim(first.id, 2)]).await.expect("claim")[..], [Claimed::Run { attempt: 1 }]));
    let renewal = Renew { id: first.id, nonce: 1, lease_ms: 60_000 };
    assert_eq!(store.renew(vec![renewal]).await, Ok(vec![Renewed::Lost]));
    assert!(matches!(store.settle(vec![stale.clone()]).await.expect("settle")[..], [Settled::Stale]));
    assert!(matches!(store.settle(vec![settle(&first, 2)]).await.expect("settle")[..], [Settled::Done { .. }]));
    assert!(matches!(store.settle(vec![stale]).await.expect("settle")[..], [Settled::Already(_)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_is_said_to_be_full_and_takes_work_again_when_there_is_room() {
    let Some(server) = Server::started(&["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]).await else {
        return;
    };
    let store = &open(&server, 30_000);
    let mut taken: Vec<TaskId> = Vec::new();
    let (error, refused) = eventually("the server is full", || async {
        let batch = tasks(500);
        let ids: Vec<_> = batch.iter().map(|task| task.id).collect();
        store.accept(batch).await.err().map(|error| (error, ids))
    })
    .await;
    assert!(matches!(error, StoreError::Full(_)) && error.is_transient(), "{error:?}");
    let list = store.list(&Filter::default(), None, 10).await.expect("reading goes on");
    taken.extend(list.tasks.iter().map(|task| task.id));
    assert!(!taken.is_empty());
    server.command(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    assert!(matches!(store.claim(vec![claim(taken[0], 1)]).await, Err(StoreError::Full(_))));
    // A call is all or nothing: of the batch's two calls each took effect or did not.
    let there = store.get(refused).await.expect("get").iter().flatten().count();
    assert!([0, 244, 256].contains(&there), "{there} of a refused batch");

    server.command(&["CONFIG", "SET", "maxmemory", "100mb"]).await;
    let answer = store.claim(vec![claim(taken[0], 1)]).await.expect("claim");
    assert!(matches!(answer[..], [Claimed::Run { attempt: 1 }]), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_a_server_that_is_held_up_times_out() {
    let Some(server) = Server::started(&[]).await else { return };
    let store = &open(&server, 200);
    let first = task(TaskId::new());
    let renew = || store.renew(vec![Renew { id: first.id, nonce: 1, lease_ms: 60_000 }]);
    // Both connections stand before the server is held up.
    eventually("the task is taken in", || async { store.accept(vec![first.clone()]).await.ok() }).await;
    eventually("the task is claimed", || async { store.claim(vec![claim(first.id, 1)]).await.ok() }).await;
    assert_eq!(eventually("leases are renewed", || async { renew().await.ok() }).await, [Renewed::Renewed]);
    server.signal("STOP");
    let began = Instant::now();
    assert_eq!(probe(store).await, Some(StoreError::TimedOut(200)));
    assert_eq!(renew().await, Err(StoreError::TimedOut(200)));
    assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
    server.signal("CONT");
    eventually("the store works again", || async { probe(store).await.is_none().then_some(()) }).await;
    eventually("leases are renewed again", || async { renew().await.ok() }).await;
}

/// Passes connections on, and can let go of the first ones: nothing comes through them any more, and nobody is told.
async fn relay(to: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let silenced = Arc::new(AtomicUsize::new(0));
    let first = silenced.clone();
    tokio::spawn(async move {
        for number in 1.. {
            let Ok((near, _)) = listener.accept().await else { return };
            let far = TcpStream::connect(("127.0.0.1", to)).await.expect("the server");
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            for (mut from, mut to) in [(near_in, far_out), (far_in, near_out)] {
                let first = first.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    loop {
                        let read = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await.unwrap_or(0);
                        if first.load(Ordering::SeqCst) >= number {
                            // Keeps both ends open, and silent.
                            std::future::pending::<()>().await;
                        }
                        if read == 0 || tokio::io::AsyncWriteExt::write_all(&mut to, &buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (port, silenced)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_fell_silent_is_given_up_and_does_not_hold_up_leases() {
    let Some(server) = Server::started(&[]).await else { return };
    let (port, silenced) = relay(server.port).await;
    let store =
        RedisStore::connect(&settings(&format!("redis://127.0.0.1:{port}/0"), 1_000), &topology(), contract::LASTING)
            .expect("a store");
    let first = task(TaskId::new());
    store.accept(vec![first.clone()]).await.expect("accept");
    store.claim(vec![claim(first.id, 1)]).await.expect("claim");
    let renew = || store.renew(vec![Renew { id: first.id, nonce: 1, lease_ms: 60_000 }]);
    assert_eq!(renew().await, Ok(vec![Renewed::Renewed]));

    silenced.store(1, Ordering::SeqCst);
    let (accepted, renewed) = tokio::join!(store.accept(tasks(1)), renew());
    assert_eq!(renewed, Ok(vec![Renewed::Renewed]), "a connection of its own");
    assert!(matches!(accepted, Err(StoreError::TimedOut(1_000))), "{accepted:?}");
    let answer = store.accept(tasks(1)).await.expect("the next call connects anew");
    assert!(matches!(answer[..], [Accepted::New]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_used_and_never_shown() {
    let Some(server) = Server::started(&["--requirepass", "right-s3cret"]).await else { return };
    let connect = |url: &str| RedisStore::connect(&settings(url, 30_000), &topology(), contract::LASTING);
    let at = format!("127.0.0.1:{}", server.port);
    let right = connect(&format!("redis://:right-s3cret@{at}/0")).expect("a store");
    assert_eq!(probe(&right).await, None);
    let mut errors = Vec::new();
    // As one that is away: it may take the password again, and what it was to be told is not given up.
    for (url, said) in [
        (format!("redis://:wrong-s3cret@{at}/0"), "WRONGPASS"),
        (format!("redis://{at}/0"), "NOAUTH"),
        (format!("redis://:right-s3cret@{at}/999"), "out of range"),
    ] {
        let error = probe(&connect(&url).expect("a store")).await.expect("an error");
        assert!(matches!(&error, StoreError::Unreachable(text) if text.contains(said)), "{error:?}");
        errors.push(error);
    }
    let nobody = connect("redis://:wrong-s3cret@127.0.0.1:1/0").expect("a store");
    let error = probe(&nobody).await.expect("an error");
    assert!(matches!(&error, StoreError::Unreachable(text) if text.contains("127.0.0.1:1:")), "{error:?}");
    errors.push(error);
    for url in ["http://:wrong-s3cret@host/0", "redis://:wrong-s3cret@host:port/0", "wrong-s3cret", ""] {
        let error = connect(url).err().unwrap_or_else(|| panic!("{url:?} was taken"));
        assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
        errors.push(error);
    }
    for error in errors {
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_rights_and_one_slot_of_a_cluster_are_enough() {
    let Some(server) = Server::node(0, 16_383).await else { return };
    let rights =
        ["+@read", "+@write", "+@scripting", "+time", "-@dangerous", "~yard:*", "on", ">pass", "resetchannels"];
    let mut words = vec!["ACL", "SETUSER", "yard"];
    words.extend(rights);
    server.command(&words).await;
    let url = format!("redis://yard:pass@127.0.0.1:{}/0", server.port);
    let topology = taskyard_shared::Topology::new("yard");
    let store = RedisStore::connect(&settings(&url, 30_000), &topology, contract::LASTING).expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    let ready = || async { store.accept(tasks(1)).await.ok() };
    eventually("the cluster has formed", ready).await;
    contract::answers_are_those_of_a_simple_model(store.clone()).await;
    contract::an_idempotency_key_leads_to_the_first_task(store.clone()).await;
    contract::lists_page_newest_first(store.clone()).await;
    contract::workflows_are_listed_newest_first_and_keep_their_places(store.clone()).await;
    contract::load_reports_expire(store.clone()).await;
    contract::the_newest_announcement_of_a_model_counts(store.clone()).await;
    contract::small_values_are_kept(store.clone()).await;
    contract::it_says_what_it_is(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_of_a_cluster_leads_to_the_one_that_has_the_tasks() {
    let (Some(near), Some(far)) = (Server::node(0, 8_191).await, Server::node(8_192, 16_383).await) else { return };
    let bus: String = redis::from_redis_value(far.command(&["CLUSTER", "NODES"]).await).expect("a text");
    let bus = bus.split(['@', ' ', ',']).nth(2).expect("the port of its bus");
    near.command(&["CLUSTER", "MEET", "127.0.0.1", &far.port.to_string(), bus]).await;
    for server in [&near, &far] {
        let store = &open(server, 30_000);
        let first = eventually("the cluster has formed", || async {
            let first = task(TaskId::new());
            store.accept(vec![first.clone()]).await.ok().map(|_| first)
        })
        .await;
        let answer = store.claim(vec![claim(first.id, 1)]).await.expect("claim");
        assert!(matches!(answer[..], [Claimed::Run { attempt: 1 }]), "{answer:?}");
        let renewal = Renew { id: first.id, nonce: 1, lease_ms: 60_000 };
        assert_eq!(store.renew(vec![renewal]).await, Ok(vec![Renewed::Renewed]));
        assert!(store.get(vec![first.id]).await.expect("get")[0].is_some());
    }
    // The hash tag's slot is 13,907.
    let [near, far] = [near.command(&["DBSIZE"]).await, far.command(&["DBSIZE"]).await];
    assert!(near == redis::Value::Int(0) && far != near, "{near:?}, {far:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_goes_back_no_further_than_it_may_and_passes_over_what_is_forgotten() {
    server::in_a_namespace(async |url, topology| {
        let retention = Retention { listed: 10, ..contract::LASTING };
        let store = RedisStore::connect(&settings(url, 30_000), topology, retention).expect("a store");
        let tasks = tasks(25);
        for batch in tasks.chunks(4) {
            store.accept(batch.to_vec()).await.expect("accept");
        }
        let newest = |count: usize| -> Vec<TaskId> { tasks.iter().rev().take(count).map(|task| task.id).collect() };
        let page = store.list(&Filter::default(), None, 100).await.expect("list");
        assert_eq!(page.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), newest(10));
        assert_eq!(page.cursor, None);
        assert!(store.get(vec![tasks[0].id]).await.expect("get")[0].is_some(), "it is only not listed");

        // The task that a page ended with is forgotten before the next page is asked for.
        let page = store.list(&Filter::default(), None, 4).await.expect("list");
        let cursor = page.cursor.expect("a cursor");
        let anchor = tasks[21].id.0.simple().to_string();
        server::command(url, &["DEL", &topology.key(&format!("record:{anchor}"))]).await.expect("DEL");
        let page = store.list(&Filter::default(), None, 100).await.expect("list");
        assert_eq!(page.tasks.len(), 9);
        let page = store.list(&Filter::default(), Some(&cursor), 100).await.expect("list");
        assert_eq!(page.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), newest(10)[4..]);

        // One that comes again is listed once: where it is now.
        store.accept(vec![tasks[21].clone()]).await.expect("accept");
        let page = store.list(&Filter::default(), None, 100).await.expect("list");
        let mut expected = vec![tasks[21].id];
        expected.extend(newest(9).into_iter().filter(|id| *id != tasks[21].id));
        assert_eq!(page.tasks.iter().map(|task| task.id).collect::<Vec<_>>(), expected);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_the_same_microsecond_are_each_listed_once() {
    server::in_a_namespace(async |url, topology| {
        let store = RedisStore::connect(&settings(url, 30_000), topology, contract::LASTING).expect("a store");
        let mut tasks = tasks(1_500);
        let (first, label) = (tasks[0].record.timings.accepted, "one of many");
        for (number, task) in tasks.iter_mut().enumerate() {
            task.record.timings.accepted = first;
            if number % 100 == 0 {
                task.record.tenant = label.to_owned();
            }
        }
        store.accept(tasks).await.expect("accept");
        for (tenant, expected) in [(None, 1_500), (Some(label.to_owned()), 15)] {
            let filter = Filter { tenant, ..Filter::default() };
            let (mut seen, mut cursor, mut calls) = (std::collections::HashSet::new(), None, 0);
            loop {
                let page = store.list(&filter, cursor.as_deref(), 100).await.expect("list");
                let before = seen.len();
                seen.extend(page.tasks.iter().map(|task| task.id));
                assert_eq!(seen.len(), before + page.tasks.len(), "a task was listed twice");
                calls += 1;
                cursor = page.cursor;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(seen.len(), expected);
            assert!(calls <= 17, "{calls} calls");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_expired_leaves_nothing_behind() {
    server::in_a_namespace(async |url, topology| {
        let store = RedisStore::connect(&settings(url, 30_000), topology, contract::LASTING).expect("a store");
        let report = LoadReport {
            worker: "worker-1".to_owned(),
            host: "host-1".to_owned(),
            pid: 1,
            started: Timestamp::now(),
            at: Timestamp::now(),
            draining: false,
            memory_mb: 1,
            budget_mb: 0,
            budget_gpus: 0,
            slots: 0,
            models: Default::default(),
        };
        store.report_load(&report, 50).await.expect("report");
        eventually("the report expires", || async { store.loads().await.expect("loads").is_empty().then_some(()) })
            .await;
        eventually("its key expires", || async { server::keys(url, topology).await.is_empty().then_some(()) }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_kept_of_a_task_is_forgotten_some_day() {
    server::in_a_namespace(async |url, topology| {
        let store = RedisStore::connect(&settings(url, 30_000), topology, contract::LASTING).expect("a store");
        let mut tasks = tasks(8);
        for (number, task) in tasks.iter_mut().enumerate() {
            task.alias = Some(format!("key {number}"));
        }
        let ids: Vec<_> = tasks.iter().map(|task| task.id).collect();
        let orphan = self::task(TaskId::new());
        store.accept(tasks.clone()).await.expect("accept");
        store
            .dispatched(ids[1..].iter().map(|id| (*id, "sentiment@1".to_owned())).collect())
            .await
            .expect("dispatched");
        store.claim(ids[2..].iter().map(|id| claim(*id, 1)).collect()).await.expect("claim");
        store.renew(vec![Renew { id: ids[3], nonce: 1, lease_ms: 1_000 }]).await.expect("renew");
        store.release(vec![Release { id: ids[4], nonce: 1, counts: true }]).await.expect("release");
        store.settle(vec![settle(&tasks[5], 1), settle(&orphan, 1)]).await.expect("settle");
        store.accept(tasks).await.expect("accept");

        let keys = server::keys(url, topology).await;
        let of_tasks: Vec<_> = keys.iter().filter(|key| key.contains(":record:") || key.contains(":alias:")).collect();
        assert_eq!(of_tasks.len(), 8 + 8 + 1, "{keys:?}");
        for key in of_tasks {
            let ms = server::command(url, &["PTTL", key]).await.expect("PTTL");
            assert!(matches!(ms, redis::Value::Int(1..)), "{key}: {ms:?}");
        }
    })
    .await;
}
