//! Webhooks against a real HTTP server that takes them, fails, hangs, redirects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use taskyard_producer::webhooks::Webhooks;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::broker::{Broker, Message, Verdict};
use taskyard_shared::messages::{REASON_HEADER, work_queues};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::WebhookSettings;
use taskyard_shared::webhook::{Hook, Secret, VERSION};
use taskyard_shared::{TaskId, Topology};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

struct Request {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A server that answers by path: `/ok`, `/fail-twice`, `/hang`, `/redirect`, `/gone`.
struct Server {
    base: String,
    requests: mpsc::Receiver<Request>,
}

type Shared = Arc<(mpsc::Sender<Request>, Mutex<HashMap<String, usize>>)>;

async fn answer(State(shared): State<Shared>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().to_owned();
    let count = {
        let mut counts = shared.1.lock().unwrap();
        let count = counts.entry(path.clone()).or_default();
        *count += 1;
        *count
    };
    shared.0.send(Request { path: path.clone(), headers, body }).await.unwrap();
    match path.as_str() {
        "/fail-twice" if count <= 2 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "/hang" => std::future::pending().await,
        "/redirect" => (StatusCode::FOUND, [("location", "/target")]).into_response(),
        "/gone" => StatusCode::GONE.into_response(),
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

impl Server {
    async fn start() -> Self {
        let (sender, requests) = mpsc::channel(64);
        let shared: Shared = Arc::new((sender, Mutex::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://localhost:{}", listener.local_addr().unwrap().port());
        let app = Router::new().fallback(answer).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { base, requests }
    }

    async fn next(&mut self) -> Request {
        tokio::time::timeout(PATIENCE, self.requests.recv()).await.expect("a request").unwrap()
    }
}

struct Yard {
    broker: Arc<dyn Broker>,
    topology: Topology,
    settings: WebhookSettings,
}

impl Yard {
    async fn new(change: impl FnOnce(&mut WebhookSettings)) -> Self {
        let broker: Arc<dyn Broker> = Arc::new(EmbeddedBroker::in_memory());
        let topology = Topology::new("hooks");
        broker.declare(&work_queues(&topology)).await.unwrap();
        let mut settings = WebhookSettings {
            secret: SECRET.into(),
            old_secret: String::new(),
            allow: vec!["127.0.0.0/8".into(), "::1".into()],
            timeout_ms: 10_000,
            max_attempts: 5,
            retry_first_ms: 1,
            retry_most_ms: 5,
            concurrency: 8,
        };
        change(&mut settings);
        Self { broker, topology, settings }
    }

    fn deliver(&self) -> DropGuard {
        let hooks =
            Webhooks::new(self.broker.clone(), self.topology.clone(), self.settings.clone(), &Registry::new().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(hooks.unwrap().run(stop.clone()));
        stop.drop_guard()
    }

    async fn put(&self, url: &str) -> Hook {
        let task = TaskId::new();
        let payload = json!({"type": "task.succeeded", "data": {"id": task, "output": "\u{e9}"}}).to_string();
        let hook = Hook {
            v: VERSION,
            id: format!("{}.succeeded", task.0),
            task,
            tenant: "default".into(),
            url: url.to_owned(),
            attempts: 0,
            not_before: None,
            payload: RawValue::from_string(payload).unwrap(),
        };
        let message = Message::to_queue(self.topology.webhooks(), serde_json::to_vec(&hook).unwrap());
        self.broker.publish(vec![message]).await.pop().unwrap().unwrap();
        hook
    }

    /// The next dead letter: its reason and body.
    async fn dead(&self) -> (String, Value) {
        let mut consumer = self.broker.consume(&self.topology.dead(), 1).await.unwrap();
        let batch = tokio::time::timeout(PATIENCE, consumer.next_batch(1)).await.expect("a dead letter").unwrap();
        let dead = &batch[0];
        consumer.acker().settle(vec![dead.tag], Verdict::Ack).await;
        (dead.properties.headers[REASON_HEADER].clone(), serde_json::from_slice(&dead.body).unwrap())
    }

    /// Waits until all that is left is in somebody's hands.
    async fn settled(&self) {
        let settled = async {
            loop {
                let mut left = 0;
                for queue in [self.topology.webhooks(), self.topology.webhooks_again()] {
                    left += self.broker.queue_state(&queue).await.unwrap().map_or(0, |state| state.ready);
                }
                if left == 0 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("all is delivered");
    }
}

fn header<'a>(request: &'a Request, name: &str) -> &'a str {
    request.headers[name].to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_signed_with_both_secrets_and_made_once() {
    let mut server = Server::start().await;
    let yard = Yard::new(|settings| settings.old_secret = OLD_SECRET.into()).await;
    let hook = yard.put(&format!("{}/ok", server.base)).await;
    let stop = yard.deliver();
    let request = server.next().await;
    assert_eq!(request.body, hook.payload.get().as_bytes(), "to the byte");
    assert_eq!(header(&request, "webhook-id"), hook.id);
    assert_eq!(header(&request, "content-type"), "application/json");
    let seconds: i64 = header(&request, "webhook-timestamp").parse().unwrap();
    let signed =
        [SECRET, OLD_SECRET].map(|secret| Secret::read(secret).unwrap().sign(&hook.id, seconds, &request.body));
    assert_eq!(header(&request, "webhook-signature"), signed.join(" "));
    yard.settled().await;
    // What is under way is brought to its end, and whoever comes next finds nothing to do.
    drop(stop);
    let other = yard.put(&format!("{}/other", server.base)).await;
    let _stop = yard.deliver();
    assert_eq!(header(&server.next().await, "webhook-id"), other.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_fails_is_tried_again_with_the_same_delivery() {
    let mut server = Server::start().await;
    let yard = Yard::new(|_| {}).await;
    let hook = yard.put(&format!("{}/fail-twice", server.base)).await;
    let _stop = yard.deliver();
    for _ in 0..3 {
        let request = server.next().await;
        assert_eq!((header(&request, "webhook-id"), &request.body[..]), (&*hook.id, hook.payload.get().as_bytes()));
    }
    yard.settled().await;
    assert_eq!(yard.broker.queue_state(&yard.topology.dead()).await.unwrap().unwrap().ready, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_hangs_keeps_no_other_waiting() {
    let mut server = Server::start().await;
    // Longer than the test: its deliveries never come back.
    let yard = Yard::new(|settings| settings.timeout_ms = 120_000).await;
    let other = Server::start().await;
    let (mut other, hanging) = (other, format!("{}/hang", server.base));
    for _ in 0..20 {
        yard.put(&hanging).await;
    }
    let hook = yard.put(&format!("{}/ok", other.base)).await;
    let _stop = yard.deliver();
    assert_eq!(header(&other.next().await, "webhook-id"), hook.id);
    assert_eq!(server.next().await.path, "/hang");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_a_dead_letter_that_says_why() {
    let mut server = Server::start().await;
    let yard = Yard::new(|settings| (settings.timeout_ms, settings.max_attempts) = (50, 2)).await;
    let _stop = yard.deliver();
    let expect = async |path: &str, reason: &str| {
        let hook = yard.put(&format!("{}{path}", server.base)).await;
        let (why, body) = yard.dead().await;
        assert_eq!(why, reason, "{path}");
        assert_eq!((&body["id"], &body["attempts"]), (&json!(hook.id), &json!(0)), "as it was at first");
    };
    expect("/hang", "webhook_failed").await;
    expect("/redirect", "webhook_failed").await;
    expect("/gone", "webhook_gone").await;
    let mut paths = Vec::new();
    while let Ok(request) = server.requests.try_recv() {
        paths.push(request.path);
    }
    assert_eq!(paths, ["/hang", "/hang", "/redirect", "/redirect", "/gone"], "no redirect is followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inside_is_not_reached_and_nothing_is_sent_unsigned() {
    for (change, reason) in [
        ((|settings| settings.allow = Vec::new()) as fn(&mut WebhookSettings), "webhook_failed"),
        (|settings| settings.secret = String::new(), "webhook_unsigned"),
    ] {
        let mut server = Server::start().await;
        let yard = Yard::new(|settings| {
            settings.max_attempts = 1;
            change(settings);
        })
        .await;
        yard.put(&format!("{}/ok", server.base)).await;
        let _stop = yard.deliver();
        assert_eq!(yard.dead().await.0, reason);
        assert!(server.requests.try_recv().is_err());
    }
    let yard = Yard::new(|settings| settings.allow = Vec::new()).await;
    let _stop = yard.deliver();
    for address in ["http://127.0.0.1:1/", "http://[::1]/", "http://169.254.169.254/latest", "http://10.0.0.1/"] {
        yard.put(address).await;
        assert_eq!(yard.dead().await.0, "webhook_refused", "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_had_under_way_is_delivered_by_the_next() {
    let mut server = Server::start().await;
    let yard = Yard::new(|settings| settings.timeout_ms = 120_000).await;
    let hook = yard.put(&format!("{}/hang", server.base)).await;
    let stop = yard.deliver();
    assert_eq!(header(&server.next().await, "webhook-id"), hook.id);
    drop(stop);
    let _stop = yard.deliver();
    assert_eq!(header(&server.next().await, "webhook-id"), hook.id);
}
