//! Client and gateway on a real RabbitMQ and a real Redis, and what only a network between can do to them.
//!
//! `TASKYARD_TEST_AMQP` and `TASKYARD_TEST_REDIS` name the servers. Without them everything here is skipped, which is a
//! failure when `TASKYARD_TEST_REQUIRE_SERVERS` is 1.

#[path = "../../shared/tests/support/relay.rs"]
#[allow(dead_code)]
mod relay;
mod yard;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskyard_producer::client::task;
use taskyard_producer::{Client, GatewayParts};
use taskyard_shared::broker::Broker;
use taskyard_shared::broker::rabbitmq::RabbitMq;
use taskyard_shared::messages::work_queues;
use taskyard_shared::process::keys::Keys;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{BrokerSettings, QueueType, StoreSettings, TlsSettings};
use taskyard_shared::store::Retention;
use taskyard_shared::store::redis::RedisStore;
use taskyard_shared::{State, TaskId, Topology};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use yard::{Got, RunningGateway, Worker, eventually, settings};

use self::relay::Relay;

const LONG: Duration = Duration::from_secs(60);

/// A yard on real servers under a name of its own, with relays in front of what is tested.
struct Servers {
    topology: Topology,
    amqp: Relay,
    redis: Relay,
    direct_amqp: String,
    direct_redis: String,
    /// Through the relays.
    broker: Arc<RabbitMq>,
    store: Arc<RedisStore>,
    stop: CancellationToken,
}

fn url(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    let required = std::env::var("TASKYARD_TEST_REQUIRE_SERVERS").is_ok_and(|value| value == "1");
    assert!(url.is_some() || !required, "{variable} is not set");
    if url.is_none() {
        println!("skipped: {variable} is not set");
    }
    url
}

/// The URL's host and port, and the URL with others.
fn redirected(url: &str, default_port: u16) -> (String, impl Fn(&Relay) -> String + use<>) {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (format!("{login}@"), host),
        None => (String::new(), authority),
    };
    let server = if host.contains(':') { host.to_owned() } else { format!("{host}:{default_port}") };
    let (scheme, path) = (scheme.to_owned(), path.to_owned());
    (server, move |relay: &Relay| format!("{scheme}://{login}{}/{path}", relay.address))
}

fn broker_settings(url: &str, topology: &Topology) -> BrokerSettings {
    BrokerSettings {
        url: url.to_owned(),
        namespace: topology.namespace().to_owned(),
        queue_type: QueueType::Auto,
        heartbeat_s: 10,
        connect_timeout_ms: 10_000,
        publish_timeout_ms: 10_000,
        in_flight: 2048,
        tls: TlsSettings::default(),
    }
}

fn store(url: &str, topology: &Topology) -> Arc<RedisStore> {
    let settings = StoreSettings {
        url: url.to_owned(),
        timeout_ms: 2000,
        finished_hours: 1,
        unfinished_hours: 1,
        listed_tasks: 10_000,
        tls: TlsSettings::default(),
    };
    Arc::new(RedisStore::connect(&settings, topology, Retention::default()).unwrap())
}

impl Servers {
    async fn new() -> Option<Self> {
        let (direct_amqp, direct_redis) = (url("TASKYARD_TEST_AMQP")?, url("TASKYARD_TEST_REDIS")?);
        let topology = Topology::new(format!("taskyard-test-{}", Uuid::new_v4().simple()));
        let (amqp_server, amqp_url) = redirected(&direct_amqp, 5672);
        let (redis_server, redis_url) = redirected(&direct_redis, 6379);
        let (amqp, redis) = (Relay::to(&amqp_server).await, Relay::to(&redis_server).await);
        let broker = RabbitMq::connect(&broker_settings(&amqp_url(&amqp), &topology)).await.unwrap();
        let store = store(&redis_url(&redis), &topology);
        Some(Self {
            topology,
            amqp,
            redis,
            direct_amqp,
            direct_redis,
            broker: Arc::new(broker),
            store,
            stop: CancellationToken::new(),
        })
    }

    /// Runs tasks over connections that nothing happens to.
    async fn work(&self) {
        let broker = RabbitMq::connect(&broker_settings(&self.direct_amqp, &self.topology)).await.unwrap();
        let worker = Worker {
            broker: Arc::new(broker),
            store: store(&self.direct_redis, &self.topology),
            topology: self.topology.clone(),
            runs: Arc::new(AtomicUsize::new(0)),
            tells: true,
        };
        worker.start(self.stop.clone()).await;
    }

    async fn gateway(&self) -> RunningGateway {
        let gateway = RunningGateway::start(GatewayParts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            settings: settings(),
            registry: Registry::new().unwrap(),
            keys: Keys::default(),
            artifacts: None,
        })
        .await;
        gateway.ready().await;
        gateway
    }

    /// Leaves nothing behind.
    async fn clean(self) {
        self.stop.cancel();
        self.broker.close().await;
        let broker = RabbitMq::connect(&broker_settings(&self.direct_amqp, &self.topology)).await.unwrap();
        for queue in work_queues(&self.topology) {
            broker.delete_queue(&queue.name).await.unwrap();
        }
        broker.delete_exchange(&self.topology.tasks_exchange()).await.unwrap();
        broker.close().await;
        let client = redis::Client::open(self.direct_redis).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let pattern = format!("{}*", self.topology.key("").trim_end_matches(':'));
        let mut cursor = 0u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) = scan.query_async(&mut connection).await.unwrap();
            if !keys.is_empty() {
                redis::cmd("UNLINK").arg(keys).query_async::<()>(&mut connection).await.unwrap();
            }
            cursor = next;
            if cursor == 0 {
                return;
            }
        }
    }
}

/// What the broker did not confirm in time, on a machine that does much else, is sent again.
async fn confirmed<F: Future<Output = Got>>(mut send: impl FnMut() -> F) -> Got {
    let sending = async {
        loop {
            let got = send().await;
            if got.status != 503 || got.problem() != "broker_unavailable" {
                return got;
            }
        }
    };
    tokio::time::timeout(LONG, sending).await.expect("the broker confirms in the end")
}

fn echo(input: Value) -> Value {
    json!({"model": "echo", "input": input})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_on_real_servers() {
    let Some(servers) = Servers::new().await else { return };
    servers.work().await;
    let gateway = servers.gateway().await;

    let body = echo(json!({"text": "good"}));
    let got = confirmed(|| gateway.post_waiting(&body, "wait=20")).await;
    assert_eq!((got.status, &got.json["output"]), (200, &json!({"text": "good"})), "{got:?}");
    assert_eq!(gateway.get(got.header("location")).await.json, got.json);

    let path = format!("/v1/tasks/{}", TaskId::new().0);
    let body = echo(json!(1));
    let first = confirmed(|| gateway.put(&path, &body)).await;
    assert!(matches!(first.status, 200 | 202), "{first:?}");
    assert_eq!(gateway.put(&path, &echo(json!(2))).await.problem(), "conflict");
    assert_eq!(gateway.get(&format!("{path}?wait=20s")).await.json["output"], 1);

    let batch: Value = (0..500).map(|number| echo(json!(number))).collect();
    let answers = gateway.post("/v1/batches", &batch).await;
    assert_eq!(answers.status, 202);
    let last = answers.json[499]["task"]["id"].as_str().unwrap();
    assert_eq!(gateway.get(&format!("/v1/tasks/{last}?wait=20s")).await.json["output"], 499);
    let listed = gateway.get("/v1/tasks?limit=500&state=succeeded").await;
    assert_eq!(listed.json["tasks"].as_array().unwrap().len(), 500);
    let queues = gateway.get("/v1/queues").await.json;
    assert_eq!(queues["queues"][0], json!({"name": "intake", "ready": 0, "consumers": 1}));
    assert_eq!(gateway.metric("taskyard_gateway_results_rechecked_total").await, Some(0.0));
    drop(gateway);
    servers.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_cut_off_from_the_broker_says_so_and_comes_back() {
    let Some(servers) = Servers::new().await else { return };
    servers.work().await;
    let gateway = servers.gateway().await;
    let body = echo(json!({"hold_ms": 1500}));
    let waiting = confirmed(|| gateway.post("/v1/tasks", &body)).await;
    let path = format!("{}?wait=30s", waiting.header("location"));
    let cutting = async {
        eventually("it waits", || async { gateway.metric("taskyard_http_waiters").await == Some(1.0) }).await;
        servers.amqp.take_down();
        eventually("not ready", || async { gateway.get("/readyz").await.status == 503 }).await;
        let began = Instant::now();
        let got = gateway.post("/v1/tasks", &echo(json!(1))).await;
        assert_eq!((got.status, got.problem()), (503, "broker_unavailable"));
        assert!(began.elapsed() < Duration::from_secs(2));
        servers.amqp.pass();
        gateway.ready().await;
    };
    let (got, ()) = tokio::join!(gateway.get(&path), cutting);
    assert_eq!((got.status, &got.json["state"]), (200, &json!("succeeded")));
    let body = echo(json!("after"));
    let got = confirmed(|| gateway.post_waiting(&body, "wait=20")).await;
    assert_eq!((got.status, &got.json["output"]), (200, &json!("after")));
    drop(gateway);
    servers.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_under_an_alarm_or_silent_is_503_within_two_seconds() {
    let Some(servers) = Servers::new().await else { return };
    servers.work().await;
    let gateway = servers.gateway().await;
    let refused = async |what: &str| {
        let began = Instant::now();
        let got = gateway.post("/v1/tasks", &echo(json!(what))).await;
        assert_eq!((got.status, got.problem()), (503, "broker_unavailable"), "{what}");
        assert!(began.elapsed() < Duration::from_secs(2), "{what}: {:?}", began.elapsed());
    };
    servers.amqp.say_blocked();
    eventually("not ready", || async { gateway.get("/readyz").await.status == 503 }).await;
    refused("blocked").await;
    servers.amqp.say_unblocked();
    gateway.ready().await;
    servers.amqp.black_hole();
    refused("silent").await;
    servers.amqp.pass();
    eventually("accepted again", || async { gateway.post("/v1/tasks", &echo(json!(1))).await.status == 202 }).await;
    drop(gateway);
    servers.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_or_silent_does_not_stop_tasks() {
    let Some(servers) = Servers::new().await else { return };
    servers.work().await;
    let gateway = servers.gateway().await;
    for silent in [false, true] {
        match silent {
            true => servers.redis.black_hole(),
            false => servers.redis.take_down(),
        }
        let body = echo(json!("a"));
        let got = confirmed(|| gateway.post_waiting(&body, "wait=20")).await;
        assert_eq!((got.status, &got.json["output"]), (200, &json!("a")), "silent: {silent}: {got:?}");
        assert_eq!(gateway.get("/v1/tasks").await.problem(), "store_unavailable");
        servers.redis.pass();
        eventually("looked up again", || async { gateway.get("/v1/tasks").await.status == 200 }).await;
    }
    drop(gateway);
    servers.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_result_reaches_a_client_whose_connection_is_cut_again_and_again() {
    let Some(servers) = Servers::new().await else { return };
    servers.work().await;
    let client = Client::new(servers.broker.clone(), servers.topology.clone());
    let mut pending = Vec::new();
    for number in 0..60 {
        pending.push(client.request(task("echo", &json!({"hold_ms": 5, "number": number})).unwrap()).await.unwrap());
        if number % 20 == 19 {
            servers.amqp.cut();
        }
    }
    for (number, pending) in pending.iter_mut().enumerate() {
        let result = pending.result(LONG).await.unwrap();
        assert_eq!(result.state, State::Succeeded);
        let output: Value = serde_json::from_str(result.output.as_ref().unwrap().get()).unwrap();
        assert_eq!(output["number"], number);
    }
    drop((pending, client));
    servers.clean().await;
}
