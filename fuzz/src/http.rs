//! Requests to the gateway, as far as it needs no network: every call, its query, headers and body.
//!
//! An input is a request as it is written down: `METHOD PATH`, then headers, an empty line, and the body.

use std::cell::RefCell;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use taskyard_producer::{Gateway, GatewayParts};
use taskyard_shared::Topology;
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::broker::Broker;
use taskyard_shared::broker::embedded::EmbeddedBroker;
use taskyard_shared::messages::work_queues;
use taskyard_shared::process::keys::Keys;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{GatewaySettings, Settings};
use taskyard_shared::store::Retention;
use taskyard_shared::store::embedded::EmbeddedStore;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

/// Requests to one yard: it keeps what it accepts.
const REQUESTS: usize = 1_000;

/// A yard in memory, whose tasks nobody takes.
struct Door {
    router: Router,
    broker: Arc<EmbeddedBroker>,
    intake: String,
    requests: usize,
    // What the rest was made on goes last.
    runtime: Runtime,
}

thread_local! {
    static DOOR: RefCell<Option<Door>> = const { RefCell::new(None) };
}

impl Door {
    fn open() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let topology = Topology::new("yard");
        let _entered = runtime.enter();
        let broker = Arc::new(EmbeddedBroker::in_memory());
        // Nobody is waited for.
        let settings = GatewaySettings { max_wait_s: 0, ..Settings::default().gateway };
        let parts = GatewayParts {
            broker: broker.clone(),
            store: Arc::new(EmbeddedStore::in_memory(Retention::default())),
            topology: topology.clone(),
            settings,
            registry: Registry::new().expect("a registry"),
            keys: Keys::default(),
            artifacts: Some(Artifacts::in_memory()),
        };
        let gateway = Gateway::new(parts).expect("a gateway");
        let router = gateway.router();
        // Its connections are not used; what asks schedulers and follows results runs beside them.
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        runtime.spawn(gateway.run(listener, CancellationToken::new()));
        runtime.block_on(broker.declare(&work_queues(&topology))).expect("queues");
        Self { router, broker, intake: topology.intake(), requests: 0, runtime }
    }

    fn accepted(&self) -> u64 {
        self.runtime.block_on(self.broker.queue_state(&self.intake)).expect("a broker").map_or(0, |state| state.ready)
    }
}

pub fn check(bytes: &[u8]) {
    let Some(request) = read(bytes) else { return };
    DOOR.with_borrow_mut(|door| {
        if door.as_ref().is_none_or(|door| door.requests >= REQUESTS) {
            *door = None;
        }
        let door = door.get_or_insert_with(Door::open);
        door.requests += 1;
        check_answer(door, request);
    });
}

fn read(bytes: &[u8]) -> Option<Request<Body>> {
    let mut rest = bytes;
    let mut line = || {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        line
    };
    let first = std::str::from_utf8(line()).ok()?;
    let (method, path) = first.split_once(' ')?;
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method.parse::<Method>().ok()?;
    *request.uri_mut() = path.parse::<Uri>().ok()?;
    loop {
        let line = line();
        let Some(at) = line.iter().position(|byte| *byte == b':') else { break };
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    *request.body_mut() = Body::from(rest.to_vec());
    Some(request)
}

/// Every answer is one that is documented; what is refused is not accepted as well, and is a problem that says why.
fn check_answer(door: &Door, request: Request<Body>) {
    let before = door.accepted();
    let what = format!("{} {}", request.method(), request.uri());
    let answer = door.runtime.block_on(TowerToHyperService::new(door.router.clone()).call(request));
    let answer = answer.expect("an answer");
    let status = answer.status().as_u16();
    assert!(status < 500 || status == 503, "{what}: {answer:?}");
    let content_type = answer.headers().get("content-type").map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(answer.headers().get("x-content-type-options").map(HeaderValue::as_bytes), Some(&b"nosniff"[..]));
    if content_type.as_deref() == Some("text/event-stream") {
        return;
    }
    let body = door.runtime.block_on(to_bytes(answer.into_body(), 64 << 20)).expect("a body");
    if status < 400 || content_type.is_none_or(|name| name != "application/problem+json") {
        // Of a batch each member is answered by itself, whatever the status.
        assert!(status < 400 || what.contains("/v1/batches"), "{what}: {status}");
        return;
    }
    if what.starts_with("HEAD ") {
        return;
    }
    let problem: serde_json::Value = serde_json::from_slice(&body).expect("a problem");
    assert_eq!(problem["status"], status, "{what}: {problem}");
    for (name, most) in [("code", 64), ("title", 128), ("detail", 600)] {
        assert!(problem[name].as_str().is_some_and(|text| !text.is_empty() && text.len() < most), "{what}: {problem}");
    }
    if (400..500).contains(&status) && problem["code"] != "conflict" {
        assert_eq!(door.accepted(), before, "{what}: refused and accepted: {problem}");
    }
}
