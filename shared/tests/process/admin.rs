//! The admin listener as a probe sees it, over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use taskyard_shared::process::admin::{self, Health, Readiness};
use taskyard_shared::process::listen::{self, Limits, Listener};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::AdminSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest that anything here is waited for.
const LONG: Duration = Duration::from_secs(10);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

async fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

/// Status and body.
async fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
    let answer =
        read(send(address, &format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")).await).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn fetch_json(address: SocketAddr, path: &str) -> (u16, Value) {
    let (status, body) = fetch(address, path).await;
    (status, serde_json::from_str(&body).unwrap())
}

struct Admin {
    address: SocketAddr,
    readiness: Readiness,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

async fn admin(checks: &[&'static str]) -> Admin {
    let listener = admin::listen(&AdminSettings { listen: "127.0.0.1:0".parse().unwrap() }).await.unwrap();
    let address = listener.address().unwrap();
    let (readiness, stop) = (Readiness::starting(checks), CancellationToken::new());
    let serving = tokio::spawn(admin::serve(listener, Registry::new().unwrap(), readiness.clone(), stop.clone()));
    Admin { address, readiness, stop, serving }
}

#[tokio::test]
async fn readiness_says_what_is_degraded_and_what_has_failed() {
    let Admin { address, readiness, stop, serving } = admin(&["broker", "store"]).await;
    let starting = json!({"status": "failed", "reason": "starting"});
    assert_eq!(
        fetch_json(address, "/readyz").await,
        (503, json!({"status": "not_ready", "checks": {"broker": starting, "store": starting}}))
    );
    assert!(!readiness.is_ready());
    readiness.set("broker", Health::Ok);
    readiness.set("store", Health::Degraded("redis://u:s3cret@h is slow".to_owned()));
    let store = json!({"status": "degraded", "reason": "redis://u:***@h is slow"});
    assert_eq!(
        fetch_json(address, "/readyz").await,
        (200, json!({"status": "degraded", "checks": {"broker": {"status": "ok"}, "store": store}}))
    );
    assert!(readiness.is_ready());
    readiness.set("store", Health::Ok);
    assert_eq!(fetch_json(address, "/readyz").await.1["status"], "ready");
    readiness.set("broker", Health::Failed("draining".to_owned()));
    assert_eq!(fetch_json(address, "/readyz").await.0, 503);
    // Alive it is all the while.
    assert_eq!(fetch_json(address, "/healthz").await, (200, json!({"status": "ok"})));
    stop.cancel();
    soon("the end", serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn metrics_are_served_as_prometheus_reads_them() {
    let Admin { address, .. } = admin(&[]).await;
    let answer = read(send(address, "GET /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4\r\n"), "{answer}");
    assert!(answer.contains("\ntaskyard_build_info{"), "{answer}");
    assert_eq!(fetch(address, "/").await.0, 404);
    let answer = read(send(address, "POST /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[tokio::test]
async fn a_taken_port_is_one_clear_sentence() {
    let taken = admin(&[]).await.address;
    let error = admin::listen(&AdminSettings { listen: taken }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {taken}: another process listens there; set admin.listen to another")
    );
}

#[tokio::test]
async fn the_routes_fit_into_a_router_with_a_state() {
    let routes: Router<u8> = admin::routes(Registry::new().unwrap(), Readiness::default());
    let routes: Router = Router::new().route("/own", get(async || "own")).merge(routes).with_state(7);
    let limits = Limits { connections: 4, idle: LONG };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "gateway.listen", limits).await.unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(listen::serve(listener, routes, CancellationToken::new(), LONG));
    assert_eq!(fetch(address, "/own").await, (200, "own".to_owned()));
    assert_eq!(fetch(address, "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_until_a_silent_one_is_dropped() {
    let limits = Limits { connections: 1, idle: Duration::from_millis(500) };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "gateway.listen", limits).await.unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(listen::serve(
        listener,
        admin::routes(Registry::new().unwrap(), Readiness::default()),
        CancellationToken::new(),
        LONG,
    ));
    let asked = tokio::time::Instant::now();
    let silent = send(address, "GET /healthz HTTP/1.1\r\n").await;
    assert_eq!(fetch(address, "/healthz").await.0, 200);
    assert!(asked.elapsed() >= limits.idle, "the limit did not hold");
    assert!(!read(silent).await.contains("200"), "half a request was answered");
}

#[tokio::test]
async fn a_request_that_does_not_end_does_not_hold_up_the_stop() {
    let limits = Limits { connections: 4, idle: LONG };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "gateway.listen", limits).await.unwrap();
    let address = listener.address().unwrap();
    let begun = CancellationToken::new();
    let telling = begun.clone();
    let endless = get(async move || {
        telling.cancel();
        std::future::pending::<()>().await
    });
    let stop = CancellationToken::new();
    let routes = Router::new().route("/endless", endless);
    let serving = tokio::spawn(listen::serve(listener, routes, stop.clone(), Duration::from_millis(50)));
    let _request = send(address, "GET /endless HTTP/1.1\r\nhost: h\r\n\r\n").await;
    soon("the request", begun.cancelled()).await;
    stop.cancel();
    soon("the end", serving).await.unwrap().unwrap();
}
