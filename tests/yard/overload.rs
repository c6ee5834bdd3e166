//! More comes than can be done, or than a tenant may send: over AMQP and HTTP, with scheduler and workers.

use std::collections::BTreeMap;

use serde_json::Value;
use taskyard_shared::process::settings::TenantSettings;
use taskyard_shared::signal::Signal;
use taskyard_shared::store::TakeTokens;

use super::control::Api;
use super::*;

/// Said to take 100 ms; it takes until it is let go.
fn slow() -> ModelSpec {
    ModelSpec { expected_ms: Some(100.0), ..spec("m") }
}

fn task(priority: u8) -> Value {
    json!({"model": "m", "input": {"do": "wait"}, "priority": priority})
}

/// Half as much again as can be done comes from two publishers.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_pushed_back_every_task_ends_once_and_it_recovers() {
    let mut yard = Yard::new(|settings| {
        settings.scheduler.overload_s = 1.0;
        settings.scheduler.ready_extra_most = 1;
    })
    .await;
    let gate = Arc::new(Semaphore::new(0));
    let handler = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    yard.worker("w", vec![(slow(), handler.clone())]);
    yard.scheduler(&[slow()]);
    let api = Api::new(&yard).await;
    let first = yard.publish(vec![task(4)]).await;
    eventually("the slot to be busy", || handler.runs.load(Ordering::SeqCst) == 1).await;

    // Ten of them are a second's work, and a few are with the worker.
    let flood = yard.publish((0..40).map(|_| task(4)).collect()).await;
    let metric = |yard: &Yard, name: &str| {
        let row = yard.registry.render().unwrap();
        row.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or(0.0)
    };
    let refused = |yard: &Yard| metric(yard, "taskyard_tasks_turned_away_total{model=\"m\",reason=\"overloaded\"}");
    eventually("most of them to be refused", || refused(&yard) >= 25.0).await;

    // The gateway hears of it within a second or two.
    let mut accepted = Vec::new();
    let pushing = async {
        loop {
            let (status, body) = api.post("/v1/tasks", task(4)).await;
            match status {
                202 => accepted.push(body["id"].as_str().unwrap().parse::<Uuid>().unwrap()),
                429 => return body,
                other => panic!("{other}: {body}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let pushed_back = tokio::time::timeout(PATIENCE, pushing).await.expect("a 429");
    assert_eq!(pushed_back["code"], "overloaded");
    assert!((1..=60).contains(&pushed_back["retry_after_s"].as_u64().unwrap()), "{pushed_back}");
    let (_, queues) = api.get("/v1/queues").await;
    assert!(queues["models"][0]["overloaded"] == true && queues["models"][0]["drain_seconds"].as_f64() >= Some(0.8));

    // What is worth more comes in all the same, and takes the place of what was accepted.
    let mut urgent = Vec::new();
    let before = refused(&yard);
    let displacing = async {
        while refused(&yard) < before + 3.0 {
            let (status, body) = api.post("/v1/tasks", task(9)).await;
            assert_eq!(status, 202, "{body}");
            urgent.push(body["id"].as_str().unwrap().parse::<Uuid>().unwrap());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, displacing).await.expect("some to give way");

    gate.add_permits(1000);
    let published = [first, flood].concat();
    yard.collect(&published).await;
    let mut done = 0;
    for id in &published {
        let result = yard.result(id);
        match (result.state, &result.error) {
            (State::Succeeded, None) => done += 1,
            (State::Rejected, Some(error)) => assert!(error.code == "overloaded" && error.retryable, "{error:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert!((5..=16).contains(&done), "{done} of 41 ran");
    for id in accepted.iter().chain(&urgent) {
        let (_, task) = api.get(&format!("/v1/tasks/{id}?wait=20s")).await;
        let is_told = task["state"] == "succeeded" || task["error"]["code"] == "overloaded";
        assert!(is_told, "accepted, and never heard of: {task}");
        done += usize::from(task["state"] == "succeeded");
    }
    assert_eq!(handler.runs.load(Ordering::SeqCst), done, "each that was done was run once");
    let (_, last) = api.get(&format!("/v1/tasks/{}", urgent.last().unwrap())).await;
    assert_eq!(last["state"], "succeeded", "the urgent ones stayed");

    let recovering = async {
        while api.post("/v1/tasks", task(0)).await.0 != 202 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recovering).await.expect("that it recovers");
    let after = yard.publish((0..3).map(|_| task(0)).collect()).await;
    yard.collect(&after).await;
    assert!(after.iter().all(|id| yard.result(id).state == State::Succeeded));
    let dead = yard.broker.queue_state(&yard.topology.dead()).await.unwrap().map_or(0, |state| state.ready);
    assert_eq!(dead, 0, "what was refused is not kept");
}

fn tenant() -> TenantSettings {
    TenantSettings { weight: 1.0, max_running: None, max_waiting: None, max_per_second: None, burst: None }
}

fn of(tenant: &str) -> Value {
    json!({"model": "m", "input": 1, "tenant": tenant})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_gets_no_more_in_than_its_quotas() {
    let mut yard = Yard::new(|_| {}).await;
    let tenants = BTreeMap::from([
        ("shop".to_owned(), TenantSettings { max_waiting: Some(3), ..tenant() }),
        ("bank".to_owned(), TenantSettings { max_per_second: Some(0.01), burst: Some(4), ..tenant() }),
    ]);
    // Nobody serves the model yet.
    let scheduler = yard.new_scheduler(&[spec("m")], &yard.registry).tenants(tenants);
    tokio::spawn(scheduler.run(CancellationToken::new()));
    let mut ids = HashMap::new();
    for name in ["shop", "bank", "else"] {
        ids.insert(name, yard.publish((0..10).map(|_| of(name)).collect()).await);
    }
    let told = |yard: &Yard, ids: &[Uuid], code: &str| {
        let is_told = |id: &&Uuid| yard.told.get(*id).is_some_and(|_| yard.code(id) == code);
        ids.iter().filter(is_told).count()
    };
    yard.collect(&ids["shop"][9..]).await;
    yard.collect(&ids["bank"][9..]).await;
    let waits = async {
        while yard.store.fetch(&Signal::key(0)).await.unwrap().is_none_or(|bytes| {
            serde_json::from_slice::<Signal>(&bytes).is_ok_and(|signal| signal.tenants["shop"].waiting != 3)
        }) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("the signal to say what waits");

    // Over HTTP the same quotas, as soon as the gateway has heard of them.
    let api = Api::new(&yard).await;
    for (name, code) in [("shop", "quota_waiting"), ("bank", "quota_rate")] {
        let refusing = async {
            loop {
                let (status, body) = api.post("/v1/tasks", of(name)).await;
                if status == 429 {
                    assert_eq!(body["code"], code);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, refusing).await.expect("a 429");
    }
    assert_eq!(api.post("/v1/tasks", of("else")).await.0, 202);

    yard.worker("w", vec![(spec("m"), Arc::new(Obedient::default()))]);
    for name in ["shop", "bank", "else"] {
        yard.collect(&ids[name]).await;
    }
    assert_eq!((told(&yard, &ids["shop"], "quota_waiting"), told(&yard, &ids["shop"], "")), (7, 3));
    assert_eq!((told(&yard, &ids["bank"], "quota_rate"), told(&yard, &ids["bank"], "")), (6, 4));
    assert_eq!(told(&yard, &ids["else"], ""), 10);
    // There is room again, but for the one whose rate is used up.
    let again = yard.publish(vec![of("shop"), of("bank")]).await;
    yard.collect(&again).await;
    assert_eq!((yard.code(&again[0]), yard.code(&again[1])), ("", "quota_rate"));
    assert!(yard.result(&again[1]).error.as_ref().unwrap().retryable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_across_schedulers_and_a_retry_is_not_counted() {
    let mut yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    let limits = TenantSettings { max_waiting: Some(3), max_per_second: Some(0.01), burst: Some(5), ..tenant() };
    let tenants = BTreeMap::from([("shop".to_owned(), limits)]);
    let models = [spec("m"), spec("other")];
    let start = |registry: &Registry| {
        let scheduler = yard.new_scheduler(&models, registry).tenants(tenants.clone());
        tokio::spawn(scheduler.run(CancellationToken::new()));
    };
    yard.worker("v", vec![(spec("other"), Arc::new(Obedient::default()))]);
    let (first, second) = (Registry::new().unwrap(), Registry::new().unwrap());
    start(&first);
    let fails_once = json!({"model": "m", "input": {"do": "fail once"}, "tenant": "shop"});
    let ids = yard.publish(vec![fails_once; 3]).await;
    let waits = async {
        while yard.store.fetch(&Signal::key(0)).await.unwrap().is_none_or(|bytes| {
            serde_json::from_slice::<Signal>(&bytes).is_ok_and(|signal| signal.tenants["shop"].waiting != 3)
        }) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("the first to say what waits");
    start(&second);
    // With the loads it has read what the other says.
    let has_read = || second.render().unwrap().contains("taskyard_model_workers{model=\"other\"} 1");
    eventually("the second to hear of it", has_read).await;
    let more = yard.publish((0..20).map(|_| of("shop")).collect()).await;
    yard.collect(&more).await;
    let codes: Vec<&str> = more.iter().map(|id| yard.code(id)).collect();
    assert!(codes.iter().all(|code| ["quota_waiting", "quota_rate"].contains(code)), "{codes:?}");
    assert!(codes.contains(&"quota_waiting"), "{codes:?}");

    let take = |tokens| TakeTokens { bucket: "shop".into(), tokens, per_second: 0.01, burst: 5.0 };
    let left = yard.store.take_tokens(vec![take(9)]).await.unwrap().remove(0);
    assert_eq!(left.taken, 0, "three that came in and two that did not have used them up");
    // Each fails once and comes again, with nothing left of the rate.
    yard.worker("w", vec![(spec("m"), Arc::new(Obedient::default()))]);
    yard.collect(&ids).await;
    assert!(ids.iter().all(|id| yard.result(id).state == State::Succeeded && yard.result(id).attempt == 2));
}
