//! A yard in miniature: the embedded broker and store, and one loop that is scheduler and worker at once. It reads
//! intake, records, claims, runs and settles as the services do, one task after another.

#![allow(dead_code)]

pub mod faults;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use taskyard_producer::{Gateway, GatewayParts};
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::broker::{Broker, Delivery, Message, Verdict};
use taskyard_shared::messages::{reply_of, work_queues};
use taskyard_shared::process::keys::Keys;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{Anonymous, GatewaySettings, WebhookSettings};
use taskyard_shared::store::embedded::EmbeddedStore;
use taskyard_shared::store::{Accept, Accepted, Beside, Claim, Claimed, Guard, Retention, Settle, Settled, Store};
use taskyard_shared::{Carried, Envelope, Reply, State, TaskError, TaskResult, Timestamp, Topology, decode_tasks};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::faults::{FaultyBroker, FaultyStore};

pub fn topology() -> Topology {
    Topology::new("yard")
}

pub fn settings() -> GatewaySettings {
    GatewaySettings {
        listen: ([127, 0, 0, 1], 0).into(),
        anonymous: Anonymous::Loopback,
        max_wait_s: 60,
        max_waiters: 1000,
        max_streams: 100,
        max_connections: 256,
        max_batch_tasks: 10_000,
        max_body_bytes: 8 << 20,
        inline_bytes: 256 << 10,
        max_artifact_bytes: 16 << 20,
        request_timeout_ms: 5_000,
        webhooks: WebhookSettings { max_attempts: 1, concurrency: 4, timeout_ms: 1_000, ..WebhookSettings::default() },
    }
}

/// Broker, store, and the loop that does all the work.
pub struct Yard {
    pub broker: Arc<FaultyBroker>,
    pub store: Arc<FaultyStore>,
    pub topology: Topology,
    pub artifacts: Artifacts,
    /// Attempts that were run.
    pub runs: Arc<AtomicUsize>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Yard {
    pub fn new() -> Self {
        let stop = CancellationToken::new();
        Self {
            broker: Arc::new(FaultyBroker::new(EmbeddedBroker::in_memory())),
            store: Arc::new(FaultyStore::new(EmbeddedStore::in_memory(Retention::default()))),
            topology: topology(),
            artifacts: Artifacts::in_memory(),
            runs: Arc::default(),
            _guard: stop.clone().drop_guard(),
            stop,
        }
    }

    /// A yard whose tasks are run as they come.
    pub async fn working() -> Self {
        let yard = Self::new();
        yard.work().await;
        yard
    }

    /// Starts to run tasks. Their output is their input; `{"fail": true}` fails, `{"hold_ms": n}` takes so long.
    pub async fn work(&self) {
        self.start(true).await;
    }

    /// Runs tasks, and tells nobody.
    pub async fn work_in_silence(&self) {
        self.start(false).await;
    }

    async fn start(&self, tells: bool) {
        let worker = Worker {
            broker: self.broker.inner(),
            store: self.store.inner(),
            topology: self.topology.clone(),
            runs: self.runs.clone(),
            tells,
        };
        worker.start(self.stop.clone()).await;
    }

    pub async fn gateway(&self) -> RunningGateway {
        self.gateway_with(settings()).await
    }

    pub async fn gateway_with(&self, settings: GatewaySettings) -> RunningGateway {
        let running = self.gateway_unready(settings).await;
        running.ready().await;
        running
    }

    pub async fn gateway_unready(&self, settings: GatewaySettings) -> RunningGateway {
        self.gateway_with_keys(settings, Keys::default()).await
    }

    pub async fn gateway_with_keys(&self, settings: GatewaySettings, keys: Keys) -> RunningGateway {
        RunningGateway::start(GatewayParts {
            broker: self.broker.clone(),
            store: self.store.clone(),
            topology: self.topology.clone(),
            settings,
            registry: Registry::new().unwrap(),
            keys,
            artifacts: Some(self.artifacts.clone()),
        })
        .await
    }

    pub async fn depth(&self, queue: &str) -> u64 {
        self.broker.inner().queue_state(queue).await.unwrap().map_or(0, |state| state.ready)
    }

    pub async fn consumers(&self, queue: &str) -> u32 {
        self.broker.inner().queue_state(queue).await.unwrap().map_or(0, |state| state.consumers)
    }

    /// What waits in a queue, taken out of it.
    pub async fn drain(&self, queue: &str) -> Vec<Delivery> {
        let depth = self.depth(queue).await as usize;
        let mut consumer = self.broker.inner().consume(queue, 10_000).await.unwrap();
        let mut drained = Vec::new();
        while drained.len() < depth {
            drained.extend(within(consumer.next_batch(10_000)).await.unwrap());
        }
        let tags = drained.iter().map(|delivery| delivery.tag).collect();
        consumer.acker().settle(tags, Verdict::Ack).await;
        drained
    }
}

pub struct RunningGateway {
    pub address: String,
    pub http: reqwest::Client,
    pub stop: CancellationToken,
    pub task: tokio::task::JoinHandle<()>,
    _stopping: DropGuard,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    /// `null` when the body is not JSON.
    pub json: Value,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The problem's code, of an answer that is one in every respect.
    #[track_caller]
    pub fn problem(&self) -> &str {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.header("x-content-type-options"), "nosniff", "{self:?}");
        assert_eq!(self.json["status"], self.status, "{self:?}");
        let code = self.json["code"].as_str().unwrap();
        assert_eq!(self.json["type"], format!("urn:taskyard:problem:{code}"));
        assert!(!self.json["title"].as_str().unwrap().is_empty());
        code
    }
}

impl RunningGateway {
    pub async fn start(parts: GatewayParts) -> Self {
        let listener = TcpListener::bind(parts.settings.listen).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gateway = Gateway::new(parts).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(gateway.run(listener, stop.clone()));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, http, _stopping: stop.clone().drop_guard(), stop, task }
    }

    pub async fn ready(&self) {
        eventually("the gateway is ready", || async {
            let ready = self.get("/readyz").await;
            ready.status == 200 && ready.json["status"] == "ready"
        })
        .await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Got {
        let response = within(request.send()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = within(response.text()).await.unwrap();
        Got { status, headers, json: serde_json::from_str(&text).unwrap_or_default(), text }
    }

    pub async fn get(&self, path: &str) -> Got {
        self.send(self.http.get(self.url(path))).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Got {
        self.send(self.http.post(self.url(path)).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Got {
        self.send(self.http.put(self.url(path)).json(body)).await
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.get("/metrics").await.text;
        let line = metrics.lines().find(|line| line.split(' ').next() == Some(name))?;
        line.split(' ').nth(1)?.parse().ok()
    }

    pub async fn post_waiting(&self, body: &Value, prefer: &str) -> Got {
        self.send(self.http.post(self.url("/v1/tasks")).header("prefer", prefer).json(body)).await
    }
}

/// Bounds what should be quick.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it took over 20 s")
}

/// Asks until it is so.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let asking = async {
        while !holds().await {
            ticks.tick().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), asking).await.is_ok(), "not within 20 s: {what}");
}

/// Scheduler and worker at once.
pub struct Worker {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub runs: Arc<AtomicUsize>,
    /// Whether it sends results.
    pub tells: bool,
}

impl Worker {
    pub async fn start(self, stop: CancellationToken) {
        self.broker.declare(&work_queues(&self.topology)).await.unwrap();
        let mut consumer = self.broker.consume(&self.topology.intake(), 1000).await.unwrap();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let acker = consumer.acker();
            while let Ok(deliveries) = consumer.next_batch(1000).await {
                for delivery in deliveries {
                    self.handle(&delivery).await;
                    acker.settle(vec![delivery.tag], Verdict::Ack).await;
                }
            }
        }));
    }

    async fn handle(&self, delivery: &Delivery) {
        let properties = &delivery.properties;
        let reply = reply_of(properties);
        let carried = Carried {
            message_id: properties.message_id.clone(),
            priority: properties.priority,
            app_id: properties.app_id.clone(),
            expiration: properties.expiration.clone(),
            reply,
            traceparent: properties.headers.get("traceparent").cloned(),
            tracestate: properties.headers.get("tracestate").cloned(),
        };
        // A gateway and a client publish nothing that cannot be read.
        for task in decode_tasks(&delivery.body).unwrap() {
            self.run(Envelope::new(task.unwrap(), &carried, Timestamp::now()).unwrap()).await;
        }
    }

    async fn run(&self, mut envelope: Envelope) {
        let accept = Accept {
            id: envelope.id,
            fingerprint: envelope.fingerprint(),
            alias: envelope.alias(),
            record: envelope.result(State::Queued),
            follower: None,
        };
        match self.store.accept(vec![accept]).await.unwrap().remove(0) {
            Accepted::Conflict(_) => {
                let mut refused = envelope.result(State::Rejected);
                let error = TaskError { code: "conflict".into(), message: "as it is".into(), retryable: false };
                refused.error = Some(error);
                return self
                    .tell(envelope.reply.map(|reply| Reply { array: false, ..reply }).into_iter().collect(), &refused)
                    .await;
            }
            Accepted::Known(record) if record.state.is_terminal() => {
                return self.tell(envelope.reply.into_iter().collect(), &record).await;
            }
            Accepted::Known(record) if record.id != envelope.id => {
                if let Some(reply) = envelope.reply {
                    self.store.follow(vec![record.id], reply).await.unwrap();
                }
                return;
            }
            Accepted::Unwanted(_) => return,
            Accepted::Known(_) | Accepted::New => {}
        }
        let nonce = envelope.id.0.as_u128();
        let claim = Claim {
            id: envelope.id,
            worker: "worker-1".into(),
            nonce,
            lease_ms: 10_000,
            max_attempts: 3,
            attempts: 0,
            beside: Beside::OthersAnyway,
        };
        let Claimed::Run { attempt } = self.store.claim(vec![claim]).await.unwrap().remove(0) else { return };
        self.runs.fetch_add(1, Ordering::Relaxed);

        let input: Value = serde_json::from_str(envelope.input.get()).unwrap();
        if let Some(ms) = input["hold_ms"].as_u64() {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        envelope.attempts = attempt;
        let failed = input["fail"] == true;
        let mut result = envelope.result(if failed { State::Failed } else { State::Succeeded });
        result.worker = Some("worker-1".into());
        result.timings.finished = Some(Timestamp::now());
        if failed {
            let error = TaskError { code: "handler".into(), message: "as asked".into(), retryable: false };
            result.error = Some(error);
        } else {
            result.output = Some(envelope.input.clone());
        }
        let settle = Settle::new(Guard::Fence { attempt, nonce }, result.clone());
        let settled = self.store.settle(vec![settle]).await.unwrap().remove(0);
        let Settled::Done { followers } = settled else { panic!("not settled: {settled:?}") };
        self.tell(envelope.reply.into_iter().chain(followers).collect(), &result).await;
    }

    /// A reply queue that is gone is no error.
    async fn tell(&self, replies: Vec<Reply>, result: &TaskResult) {
        for reply in replies.into_iter().filter(|_| self.tells) {
            let body = match reply.array {
                true => serde_json::to_vec(&[result]),
                false => serde_json::to_vec(result),
            };
            let mut message = Message::to_queue(&*reply.to, body.unwrap());
            message.properties.correlation_id = reply.correlation();
            message.persistent = false;
            let _ = self.broker.publish(vec![message]).await;
        }
    }
}
