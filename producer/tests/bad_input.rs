//! What nobody should send: each is refused with its own code, and blocks nobody.

mod yard;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use taskyard_shared::TaskId;
use taskyard_shared::process::settings::GatewaySettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use yard::{RunningGateway, Yard, eventually, settings, within};

const GOOD: &str = r#"{"model": "echo", "input": 1}"#;

/// Sends bytes, and reads whatever comes until the other end closes.
async fn raw(gateway: &RunningGateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
    // The gateway may have answered and closed before all was sent.
    let _ = stream.write_all(bytes).await;
    read(&mut stream).await
}

async fn read(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

async fn still_well(gateway: &RunningGateway) {
    assert_eq!(gateway.post("/v1/tasks", &json!({"model": "echo", "input": 1})).await.status, 202);
}

#[tokio::test]
async fn bodies() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let deep = format!(r#"{{"model": "echo", "input": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let large = format!(r#"{{"model": "echo", "input": "{}"}}"#, "x".repeat(2 << 20));
    let cases: &[(&[u8], u16, &str, &str)] = &[
        (b"", 400, "empty", "body"),
        (b"  \n ", 400, "empty", "body"),
        (b"not json", 400, "json", "body"),
        (br#"{"model": "echo", "input": 1"#, 400, "json", "body"),
        (br#"{"model": "echo", "input": 1}{"#, 400, "json", "body"),
        (b"\xef\xbb\xbf{}", 400, "json", "body"),
        (b"{\"model\": \"\xff\"}", 400, "utf8", "body"),
        (b"null", 400, "shape", "body"),
        (b"42", 400, "shape", "body"),
        (br#""x""#, 400, "shape", "body"),
        (b"[]", 400, "empty", "body"),
        (br#"[{"model": "echo", "input": 1}]"#, 400, "shape", "body"),
        (br#"[{"model": "echo", "input": 1}, {"model": "echo", "input": 1}]"#, 400, "shape", "body"),
        (deep.as_bytes(), 400, "depth", "body"),
        (large.as_bytes(), 413, "too_large", "body"),
        (br#"{"model": "echo", "model": "echo", "input": 1}"#, 400, "json", "body"),
        (br#"{"input": 1}"#, 422, "invalid_field", "model"),
        (br#"{"model": "echo", "capability": "echoes", "input": 1}"#, 422, "invalid_field", "model"),
        (br#"{"model": "../../etc", "input": 1}"#, 422, "invalid_field", "model"),
        (br#"{"model": "echo\u0000", "input": 1}"#, 422, "invalid_field", "model"),
        (br#"{"model": "\ud800", "input": 1}"#, 422, "invalid_field", "model"),
        (br#"{"model": "echo"}"#, 422, "invalid_field", "input"),
        (br#"{"model": "echo", "input": 1, "id": "42"}"#, 422, "invalid_field", "id"),
        (br#"{"model": "echo", "input": 1, "priority": 10}"#, 422, "invalid_field", "priority"),
        (br#"{"model": "echo", "input": 1, "priority": "high"}"#, 422, "invalid_field", "priority"),
        (br#"{"model": "echo", "input": 1, "deadline": "tomorrow"}"#, 422, "invalid_field", "deadline"),
        (br#"{"model": "echo", "input": 1, "deadline_ms": -1}"#, 422, "invalid_field", "deadline_ms"),
        (br#"{"model": "echo", "input": 1, "cost": 1e400}"#, 422, "invalid_field", "cost"),
        (br#"{"model": "echo", "input": 1, "timeout_ms": 0}"#, 422, "invalid_field", "timeout_ms"),
        (br#"{"model": "echo", "input": 1, "max_attempts": 0}"#, 422, "invalid_field", "max_attempts"),
        (br#"{"model": "echo", "input": 1, "tenant": "a\r\nb"}"#, 422, "invalid_field", "tenant"),
        (br#"{"model": "echo", "input": 1, "kind": "party"}"#, 422, "invalid_field", "kind"),
    ];
    for (body, status, code, field) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        for path in ["/v1/tasks", "/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057"] {
            let method = if path == "/v1/tasks" { reqwest::Method::POST } else { reqwest::Method::PUT };
            let request = gateway.http.request(method, gateway.url(path)).header("content-type", "application/json");
            let got = gateway.send(request.body(body.to_vec())).await;
            assert_eq!((got.status, got.problem()), (*status, *code), "{path}: {shown}");
            assert_eq!(got.json["field"], *field, "{path}: {shown}");
            assert!(got.json["detail"].as_str().unwrap().len() < 400, "{shown}");
        }
    }
    assert_eq!(yard.depth(&yard.topology.intake()).await, 0, "something bad was published");
    still_well(&gateway).await;
}

/// Of the calls that read something else than tasks.
#[tokio::test]
async fn bodies_of_the_other_calls() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let task = gateway.post("/v1/tasks", &json!({"model": "echo", "input": 1})).await;
    assert_eq!(yard.drain(&yard.topology.intake()).await.len(), 1);
    let reprioritize = format!("/v1/tasks/{}/reprioritize", task.json["id"].as_str().unwrap());
    let deep = "[".repeat(100_000);
    let long = format!(r#"{{"{}": 1}}"#, "x".repeat(1 << 20));
    let step = |more: &str| format!(r#"{{"tasks": [{{"name": "a", "model": "echo", "input": 1{more}}}]}}"#);
    let scheduled = |more: &str| format!(r#"{{"cron": "0 * * * *", "task": {{"model": "echo", "input": 1}}{more}}}"#);
    let workflow = "/v1/workflows";
    let schedule = "PUT /v1/schedules/nightly";
    let cases: Vec<(&str, String, u16, &str, &str)> = vec![
        ("/v1/quote", "[]".into(), 400, "empty", "body"),
        ("/v1/quote", r#"[{"model": "echo", "input": 1}]"#.into(), 400, "shape", "body"),
        ("/v1/quote", r#"{"model": "echo"}"#.into(), 422, "invalid_field", "input"),
        (&reprioritize, "{}".into(), 422, "invalid_field", "body"),
        (&reprioritize, "[9]".into(), 400, "shape", "body"),
        (&reprioritize, r#"{"priority": 10}"#.into(), 422, "invalid_field", "body"),
        (&reprioritize, r#"{"priority": -1}"#.into(), 422, "invalid_field", "body"),
        (&reprioritize, r#"{"priority": "high"}"#.into(), 422, "invalid_field", "body"),
        (&reprioritize, r#"{"priority": 5, "priority": 6}"#.into(), 422, "invalid_field", "body"),
        (&reprioritize, r#"{"priority": 5, "now": true}"#.into(), 422, "invalid_field", "body"),
        ("/v1/tasks/cancel", "{}".into(), 422, "invalid_field", "body"),
        ("/v1/tasks/cancel", r#"["echo"]"#.into(), 400, "shape", "body"),
        ("/v1/tasks/cancel", r#"{"modle": "echo"}"#.into(), 422, "invalid_field", "body"),
        ("/v1/tasks/cancel", r#"{"model": "echo", "stat": "queued"}"#.into(), 422, "invalid_field", "body"),
        ("/v1/tasks/cancel", r#"{"model": "echo", "state": "succeeded"}"#.into(), 422, "invalid_field", "state"),
        ("/v1/tasks/cancel", r#"{"model": "echo", "limit": 0}"#.into(), 422, "invalid_field", "limit"),
        ("/v1/tasks/cancel", r#"{"model": "echo", "limit": -1}"#.into(), 422, "invalid_field", "body"),
        ("/v1/tasks/cancel", r#"{"model": "echo", "cursor": "x"}"#.into(), 400, "invalid_parameter", "cursor"),
        ("/v1/tasks/reprioritize", r#"{"model": "echo"}"#.into(), 422, "invalid_field", "body"),
        ("/v1/tasks/reprioritize", r#"{"priority": 5}"#.into(), 422, "invalid_field", "body"),
        ("/v1/tasks/reprioritize", r#"[5, "echo"]"#.into(), 400, "shape", "body"),
        (
            "/v1/tasks/reprioritize",
            r#"{"priority": 5, "model": "echo", "stat": "queued"}"#.into(),
            422,
            "invalid_field",
            "body",
        ),
        ("/v1/dead/discard", "{}".into(), 422, "invalid_field", "body"),
        ("/v1/dead/discard", r#"[null, null, null, true]"#.into(), 400, "shape", "body"),
        ("/v1/dead/discard", r#"{"all": false}"#.into(), 422, "invalid_field", "body"),
        ("/v1/dead/discard", r#"{"all": true, "reason": "json"}"#.into(), 422, "invalid_field", "body"),
        ("/v1/dead/discard", r#"{"all": 1}"#.into(), 422, "invalid_field", "body"),
        ("/v1/dead/discard", r#"{"raeson": "json"}"#.into(), 422, "invalid_field", "body"),
        ("/v1/dead/replay", "{}".into(), 422, "invalid_field", "body"),
        (workflow, "[]".into(), 400, "shape", "body"),
        (workflow, "{}".into(), 422, "invalid_field", "tasks"),
        (workflow, r#"{"tasks": []}"#.into(), 422, "invalid_field", "tasks"),
        (workflow, r#"{"tasks": {"a": {}}}"#.into(), 422, "invalid_field", "tasks"),
        (workflow, step(r#", "depends_on": ["a"]"#), 422, "invalid_field", "tasks[0].depends_on[0]"),
        (workflow, step(r#", "priority": 10"#), 422, "invalid_field", "tasks[0].priority"),
        (workflow, step(r#", "when": 3"#), 422, "invalid_field", "tasks[0].when"),
        (workflow, step(r#", "for_each": "abc""#), 422, "invalid_field", "tasks[0].for_each"),
        (schedule, "[]".into(), 400, "shape", "body"),
        (schedule, "{}".into(), 422, "invalid_field", "cron"),
        (schedule, scheduled(r#", "cron": "0 * * * *""#), 422, "invalid_field", "cron"),
        (schedule, r#"{"cron": "* *", "task": {"model": "echo", "input": 1}}"#.into(), 422, "invalid_field", "cron"),
        (
            schedule,
            r#"{"cron": "61 * * * *", "task": {"model": "echo", "input": 1}}"#.into(),
            422,
            "invalid_field",
            "cron",
        ),
        (schedule, r#"{"cron": "0 * * * *"}"#.into(), 422, "invalid_field", "task"),
        (schedule, scheduled(r#", "time_zone": "Mars/Base""#), 422, "invalid_field", "time_zone"),
        (schedule, scheduled(r#", "time_zone": "../../etc/passwd""#), 422, "invalid_field", "time_zone"),
        (schedule, scheduled(r#", "corn": 1"#), 422, "invalid_field", "corn"),
        (schedule, scheduled(r#", "name": "other""#), 422, "invalid_field", "name"),
        (schedule, scheduled(r#", "tenant": "a\nb""#), 422, "invalid_field", "tenant"),
        (schedule, scheduled(r#", "until": "soon""#), 422, "invalid_field", "until"),
        (schedule, r#"{"cron": "0 * * * *", "task": {"model": "echo"}}"#.into(), 422, "invalid_field", "task.input"),
        (
            schedule,
            r#"{"cron": "0 * * * *", "task": {"model": "echo", "input": 1, "colour": 1}}"#.into(),
            422,
            "invalid_field",
            "task.colour",
        ),
        ("PUT /v1/schedules/Nightly", scheduled(""), 422, "invalid_field", "name"),
        ("PUT /v1/schedules/..%2f..", scheduled(""), 422, "invalid_field", "name"),
    ];
    let every = ["/v1/quote", &reprioritize, "/v1/tasks/cancel", "/v1/tasks/reprioritize", "/v1/dead/discard"];
    let every = every.into_iter().chain(["/v1/dead/replay", workflow, schedule, "/v1/batches"]);
    // What nobody can read is refused alike by all that read anything.
    let unreadable = every.clone().flat_map(|call| {
        [
            (call, b"".to_vec(), 400, &["empty"][..]),
            (call, b" \r\n".to_vec(), 400, &["empty"]),
            (call, b"not json".to_vec(), 400, &["json"]),
            (call, b"{".to_vec(), 400, &["json"]),
            (call, b"{\"a\": \"\xff\"}".to_vec(), 400, &["utf8"]),
            (call, b"\xef\xbb\xbf{}".to_vec(), 400, &["json"]),
            (call, b"null".to_vec(), 400, &["shape"]),
            (call, b"42".to_vec(), 400, &["shape"]),
        ]
    });
    let named = cases.iter().map(|(call, body, status, code, field)| {
        (*call, body.clone().into_bytes(), *status, vec![*code], Some(*field))
    });
    let unreadable = unreadable.map(|(call, body, status, codes)| (call, body, status, codes.to_vec(), None));
    let long = [("/v1/tasks/cancel", 422), ("/v1/dead/discard", 422), (schedule, 413), (&reprioritize, 422)]
        .map(|(call, status)| (call, long.clone().into_bytes(), status, vec!["invalid_field", "too_large"], None));
    let mut wrong = Vec::new();
    for (call, body, status, codes, field) in named.chain(unreadable).chain(long) {
        let shown = format!("{call}: {}", String::from_utf8_lossy(&body[..body.len().min(80)]));
        let (method, path) = call.split_once(' ').unwrap_or(("POST", call));
        let request = gateway.http.request(method.parse().unwrap(), gateway.url(path));
        let got = gateway.send(request.header("content-type", "application/json").body(body)).await;
        let is_field = field.is_none_or(|field| got.json["field"] == field);
        // The body is not told back.
        if got.status != status || !codes.contains(&got.problem()) || !is_field || got.text.len() >= 1200 {
            wrong.push(format!("{shown}, not {status} {codes:?} {field:?}: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Where an object is wanted an array is refused at its first byte, and elsewhere for its depth.
    for call in every {
        let (method, path) = call.split_once(' ').unwrap_or(("POST", call));
        let request = gateway.http.request(method.parse().unwrap(), gateway.url(path));
        let got = gateway.send(request.header("content-type", "application/json").body(deep.clone())).await;
        assert!(
            matches!(
                (got.status, got.problem()),
                (400, "depth" | "json" | "shape") | (422, "invalid_field") | (413, "too_large")
            ),
            "{call}: {got:?}"
        );
    }
    assert_eq!(yard.depth(&yard.topology.intake()).await, 0, "something bad was published");
    still_well(&gateway).await;
}

#[tokio::test]
async fn content_types() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let cases: &[(&str, Option<&str>, u16)] = &[
        ("/v1/tasks", None, 415),
        ("/v1/tasks", Some("text/plain"), 415),
        ("/v1/tasks", Some("application/x-ndjson"), 415),
        ("/v1/tasks", Some("application/x-www-form-urlencoded"), 415),
        ("/v1/tasks", Some("multipart/form-data; boundary=x"), 415),
        ("/v1/tasks", Some("application/jsonx"), 415),
        ("/v1/tasks", Some("\u{e9}"), 415),
        ("/v1/tasks", Some("application/json"), 202),
        ("/v1/tasks", Some("Application/JSON; charset=utf-8"), 202),
        ("/v1/batches", None, 415),
        ("/v1/batches", Some("text/csv"), 415),
        ("/v1/batches", Some("application/x-ndjson"), 202),
    ];
    for (path, content_type, status) in cases {
        let mut request = gateway.http.post(gateway.url(path)).body(GOOD);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type.as_bytes());
        }
        let got = gateway.send(request).await;
        assert_eq!(got.status, *status, "{path} {content_type:?}: {got:?}");
        if *status == 415 {
            assert_eq!(got.problem(), "unsupported_media_type");
        }
    }
    let request = gateway.http.post(gateway.url("/v1/tasks")).header("content-type", "application/json");
    let got = gateway.send(request.header("content-encoding", "gzip").body(GOOD)).await;
    assert_eq!((got.status, got.problem()), (415, "unsupported_media_type"));
    assert_eq!(got.json["field"], "content-encoding");
}

#[tokio::test]
async fn queries() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    for (path, code, field) in [
        ("/v1/tasks?prioritys=high", "unknown_parameter", "prioritys"),
        ("/v1/tasks?state=queued&state=failed", "unknown_parameter", "state"),
        ("/v1/tasks?metadata.=1", "unknown_parameter", "metadata."),
        ("/v1/tasks?metadata.a=1&metadata.a=2", "unknown_parameter", "metadata.a"),
        ("/v1/tasks?state=done", "invalid_parameter", "state"),
        ("/v1/tasks?limit=0", "invalid_parameter", "limit"),
        ("/v1/tasks?limit=-1", "invalid_parameter", "limit"),
        ("/v1/tasks?limit=1e9", "invalid_parameter", "limit"),
        ("/v1/tasks?limit=", "invalid_parameter", "limit"),
        ("/v1/tasks?limit=99999999999999999999", "invalid_parameter", "limit"),
        ("/v1/tasks?cursor=forged", "invalid_parameter", "cursor"),
        ("/v1/tasks?cursor=%00%ff", "invalid_parameter", "cursor"),
        ("/v1/tasks?cursor=", "invalid_parameter", "cursor"),
        ("/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057?wait=soon", "invalid_parameter", "wait"),
        ("/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057?wait=-5s", "invalid_parameter", "wait"),
        ("/v1/models?all=1", "unknown_parameter", "all"),
        ("/healthz?verbose", "unknown_parameter", "verbose"),
    ] {
        let got = gateway.get(path).await;
        assert_eq!((got.status, got.problem()), (400, code), "{path}");
        assert_eq!(got.json["field"], field, "{path}");
    }
    let got = gateway.post("/v1/tasks?priority=high&priority=low", &json!({"model": "echo", "input": 1})).await;
    assert_eq!((got.status, got.problem()), (400, "unknown_parameter"));
    assert_eq!(yard.depth(&yard.topology.intake()).await, 0);

    // More than a page may hold is as much as it may.
    let batch: Vec<Value> = (0..510).map(|number| json!({"model": "echo", "input": number})).collect();
    assert_eq!(gateway.post("/v1/batches", &json!(batch)).await.status, 202);
    for limit in ["1000000000", "501", "500"] {
        let got = gateway.get(&format!("/v1/tasks?limit={limit}")).await;
        assert_eq!((got.status, got.json["tasks"].as_array().map(Vec::len)), (200, Some(500)), "{limit}");
        assert!(got.json["cursor"].is_string(), "{limit}");
    }
}

#[tokio::test]
async fn headers() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let long = "k".repeat(256);
    let longest = "k".repeat(255);
    for (name, value, refused) in [
        ("prefer", "wait=soon", true),
        ("prefer", "wait", true),
        ("prefer", "wait=-1", true),
        ("prefer", "return=minimal", false),
        ("prefer", "WAIT = 0", false),
        ("idempotency-key", "", true),
        ("idempotency-key", "\"\"", true),
        ("idempotency-key", "\u{e9}", true),
        ("idempotency-key", &long, true),
        ("idempotency-key", &longest, false),
    ] {
        let request = gateway.http.post(gateway.url("/v1/tasks")).header(name, value.as_bytes());
        let got = gateway.send(request.header("content-type", "application/json").body(GOOD)).await;
        if refused {
            assert_eq!((got.status, got.problem()), (400, "invalid_header"), "{name}: {value}");
            assert_eq!(got.json["field"], name);
        } else {
            assert_eq!(got.status, 202, "{name}: {value}: {got:?}");
        }
    }
    let body = json!({"model": "echo", "input": 1, "idempotency_key": "one"});
    let got =
        gateway.send(gateway.http.post(gateway.url("/v1/tasks")).header("idempotency-key", "two").json(&body)).await;
    assert_eq!((got.status, got.problem(), &got.json["field"]), (422, "invalid_field", &json!("idempotency_key")));
    let got =
        gateway.send(gateway.http.post(gateway.url("/v1/batches")).header("idempotency-key", "two").json(&body)).await;
    assert_eq!((got.status, got.problem()), (400, "invalid_header"));
}

#[tokio::test]
async fn ids_in_paths_and_bodies_must_agree() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let body = json!({"model": "echo", "input": 1, "id": "01890a5d-ac96-774b-bcce-b302099a8057"});
    let got = gateway.put("/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8058", &body).await;
    assert_eq!((got.status, got.problem(), &got.json["field"]), (422, "invalid_field", &json!("id")));
    for id in ["42", "%00", "%ff", "..%2f..", "%E2%80%AE", "'--"] {
        let got = gateway.put(&format!("/v1/tasks/{id}"), &json!({"model": "echo", "input": 1})).await;
        assert_eq!((got.status, got.problem(), &got.json["field"]), (422, "invalid_field", &json!("id")), "{id}");
    }
}

#[tokio::test]
async fn paths_and_methods() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let long = format!("/{}", "a".repeat(8000));
    for path in [
        "/v2/tasks",
        "/v1",
        "/v1/",
        "/v1/tasks/",
        "/v1/tasks/a/b",
        "//v1/tasks",
        "/..%2f..",
        "/%00",
        "/%ff",
        "/%zz",
        &long,
    ] {
        let answer =
            raw(&gateway, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
                .await;
        assert_eq!(status(&answer), 404, "{path}: {answer}");
        assert!(
            answer.contains("application/problem+json") && answer.contains(r#""code":"no_route""#),
            "{path}: {answer}"
        );
    }
    for request in ["DELETE /v1/tasks", "FOO /v1/tasks", "PUT /v1/batches", "POST /healthz", "TRACE /"] {
        let answer =
            raw(&gateway, format!("{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes())
                .await;
        assert_eq!(status(&answer), 405, "{request}: {answer}");
        assert!(answer.contains(r#""code":"method_not_allowed""#), "{request}: {answer}");
    }
    let answer = raw(&gateway, b"HEAD /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(status(&answer) == 200 && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn what_is_no_http_ends_the_connection() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let many_headers: String = (0..1000).map(|number| format!("x-{number}: 1\r\n")).collect();
    let large_header = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx-large: {}\r\n\r\n", "x".repeat(1 << 20));
    let cases: &[(Vec<u8>, &[u16])] = &[
        (b"\r\n\r\n\r\n\r\nnonsense\r\n\r\n".to_vec(), &[400]),
        (b"GET /".repeat(1000), &[0, 400, 414, 431]),
        (vec![0; 4096], &[400]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[0, 400, 505]),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many_headers}\r\n").into_bytes(), &[431]),
        (large_header.into_bytes(), &[0, 431]),
        (
            b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n".to_vec(),
            &[400],
        ),
        (b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".to_vec(), &[400]),
        (b"POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, gzip\r\n\r\n".to_vec(), &[400]),
    ];
    for (bytes, expected) in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let answer = read(&mut stream).await;
        assert!(expected.contains(&status(&answer)), "{shown:?}: {answer}");
        // Told by the server itself, where it has heard enough: without a body.
        assert!(answer.is_empty() || answer.ends_with("\r\n\r\n"), "{shown:?}: {answer}");
    }
    still_well(&gateway).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let head = "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 10737418240\r\n\r\n";
    let answer = raw(&gateway, head.as_bytes()).await;
    assert_eq!(status(&answer), 413, "{answer}");
    assert!(answer.contains(r#""code":"too_large""#), "{answer}");

    // Whoever sends it all the same hears why: the answer survives.
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        9 << 20
    );
    let answer = raw(&gateway, &[head.as_bytes(), &vec![b' '; 9 << 20]].concat()).await;
    assert_eq!(status(&answer), 413, "{answer}");
    for path in ["/v1/tasks", "/v1/batches"] {
        let request = gateway.http.post(gateway.url(path)).header("content-type", "application/json");
        let got = gateway.send(request.body(vec![b' '; (8 << 20) + 1])).await;
        assert_eq!((got.status, got.problem()), (413, "too_large"));
    }
}

#[tokio::test]
async fn what_a_refused_caller_still_sends_is_read_for_a_moment() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    // A reset in place of that can take the answer away again on its way to the caller.
    eventually("the rest can be sent after the answer", || async {
        let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
        let head =
            "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9999999\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(status(&read(&mut stream).await), 413);
        stream.write_all(&vec![b' '; 9_999_999]).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
    let head = "POST /v1/batches HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let sending = async {
        let mut sent = 0usize;
        while writer.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        sent
    };
    let reading = async {
        let _ = reader.read_to_end(&mut answer).await;
    };
    let (sent, ()) = within(async { tokio::join!(sending, reading) }).await;
    assert!(sent > 8 << 20, "{sent}");
    let answer = String::from_utf8_lossy(&answer);
    assert_eq!(status(&answer), 413, "{answer}");
}

#[tokio::test]
async fn a_body_that_ends_early_or_never_comes() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { request_timeout_ms: 300, ..settings() }).await;
    let head = "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"mo";
    let answer = raw(&gateway, head.as_bytes()).await;
    assert_eq!(status(&answer), 408, "{answer}");
    assert!(answer.contains(r#""code":"body_timeout""#), "{answer}");

    let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = read(&mut stream).await;
    assert!([0, 400].contains(&status(&answer)), "{answer}");

    let bad_chunk = "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
    let answer = raw(&gateway, bad_chunk.as_bytes()).await;
    assert!(status(&answer) == 400 && answer.contains(r#""code":"body_incomplete""#), "{answer}");
    assert_eq!(yard.depth(&yard.topology.intake()).await, 0);
    still_well(&gateway).await;
}

/// Sends a beginning, and then a drop every 20 ms for as long as the other end takes it.
async fn drip(gateway: &RunningGateway, begins: &str, drop: &str) -> String {
    let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
    stream.write_all(begins.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let dripping = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while writer.write_all(drop.as_bytes()).await.is_ok() {
            ticks.tick().await;
        }
    };
    let reading = async {
        let _ = reader.read_to_end(&mut answer).await;
    };
    within(async { tokio::join!(dripping, reading) }).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { request_timeout_ms: 300, ..settings() }).await;
    let began = Instant::now();
    for bytes in ["", "GET /healthz HTTP/1.1\r\nhost:", "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let answer = raw(&gateway, bytes.as_bytes()).await;
        assert!([0, 200, 408].contains(&status(&answer)), "{answer}");
    }
    // A little at a time, for ever: the head as a whole has its time, and so has the body.
    let post = "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    for (begins, drop, statuses) in [
        ("GET /healthz HTTP/1.1\r\nx-slow: ".to_owned(), "a", &[0, 408][..]),
        (format!("{post}content-length: 1000000\r\n\r\n"), " ", &[408]),
        (format!("{post}transfer-encoding: chunked\r\n\r\n"), "1\r\n \r\n", &[408]),
    ] {
        let answer = drip(&gateway, &begins, drop).await;
        assert!(statuses.contains(&status(&answer)), "{begins}: {answer}");
        assert!(!begins.starts_with("POST") || answer.contains(r#""code":"body_timeout""#), "{begins}: {answer}");
    }
    assert!(began.elapsed() < Duration::from_secs(15));
    eventually("their places are free", || async {
        // One for the client that asks.
        gateway.metric("taskyard_http_connections").await.is_some_and(|open| open <= 1.0)
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_does_not_hold_its_connection() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { request_timeout_ms: 300, ..settings() }).await;
    // Requests whose answers fill every buffer between.
    let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(2000);
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(requests.as_bytes())).await;
    eventually("its place is free", || async {
        gateway.metric("taskyard_http_connections").await.is_some_and(|open| open <= 1.0)
    })
    .await;
    drop(stream);
}

#[tokio::test]
async fn a_thousand_requests_in_one_go_are_answered_in_order() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let paths = (0..1000).map(|number| if number % 3 == 0 { "/healthz" } else { "/no/such/place" });
    let mut requests: String = paths.map(|path| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).collect();
    requests.truncate(requests.len() - 2);
    requests.push_str("connection: close\r\n\r\n");
    let answers = raw(&gateway, requests.as_bytes()).await;
    let came: Vec<u16> = answers.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect();
    let asked: Vec<u16> = (0..1000).map(|number| if number % 3 == 0 { 200 } else { 404 }).collect();
    assert_eq!(came, asked);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { max_connections: 3, ..settings() }).await;
    // The client that asked for readiness holds one.
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(&gateway.address).await.unwrap());
    }
    eventually("all places are taken", || async { gateway.metric("taskyard_http_connections").await == Some(3.0) })
        .await;
    let answer = raw(&gateway, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("retry-after: 1\r\n") && answer.contains(r#""code":"too_many_connections""#), "{answer}");
    assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
    assert_eq!(gateway.metric("taskyard_http_connections_refused_total").await, Some(1.0));
    drop(held);
    eventually("there is room again", || async {
        status(&raw(&gateway, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await) == 200
    })
    .await;
}

#[tokio::test]
async fn so_many_wait_and_no_more_and_who_leaves_frees_a_place() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { max_waiters: 2, ..settings() }).await;
    let body = json!({"model": "echo", "input": 1});
    let request = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nprefer: wait=60\r\ncontent-length: {}\r\n\r\n{body}",
        body.to_string().len()
    );
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        held.push(stream);
    }
    eventually("both wait", || async { gateway.metric("taskyard_http_waiters").await == Some(2.0) }).await;
    let got = gateway.post_waiting(&body, "wait=5").await;
    assert_eq!((got.status, got.problem(), got.header("retry-after")), (429, "too_many_waiters", "1"));
    assert_eq!(yard.depth(&yard.topology.intake()).await, 2, "it was accepted all the same");
    assert_eq!(gateway.post("/v1/tasks", &body).await.status, 202, "who does not wait needs no place");

    held.pop();
    eventually("a place is free", || async { gateway.metric("taskyard_http_waiters").await == Some(1.0) }).await;
    let got = gateway.post_waiting(&body, "wait=1").await;
    assert_eq!(got.status, 202);
}

#[tokio::test]
async fn who_leaves_after_sending_may_send_it_again() {
    let body = json!({"model": "echo", "input": "once"});
    for leaves in ["at once", "while it waits"] {
        let yard = Yard::new();
        let gateway = yard.gateway().await;
        let path = format!("/v1/tasks/{}", TaskId::new().0);
        let request = format!(
            "PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nprefer: wait=60\r\ncontent-length: {}\r\n\r\n{body}",
            body.to_string().len()
        );
        let mut stream = TcpStream::connect(&gateway.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        if leaves == "while it waits" {
            eventually("it waits", || async { gateway.metric("taskyard_http_waiters").await == Some(1.0) }).await;
        }
        drop(stream);
        eventually("nobody waits", || async { gateway.metric("taskyard_http_waiters").await == Some(0.0) }).await;
        if leaves == "while it waits" {
            let known = gateway.get(&path).await;
            assert_eq!((known.status, &known.json["state"]), (200, &json!("queued")), "{known:?}");
        }
        let queued = yard.depth(&yard.topology.intake()).await;
        let again = gateway.put(&path, &body).await;
        assert_eq!((again.status, again.header("location")), (202, path.as_str()), "{leaves}: {again:?}");
        if leaves == "while it waits" {
            assert_eq!(yard.depth(&yard.topology.intake()).await, queued, "it is known, and not published again");
        }
        let other = gateway.put(&path, &json!({"model": "echo", "input": "another"})).await;
        assert_eq!((other.status, other.problem()), (409, "conflict"), "{leaves}");
        yard.work().await;
        let done = gateway.get(&format!("{path}?wait=20s")).await;
        assert_eq!((done.status, &done.json["output"]), (200, &json!("once")), "{leaves}: {done:?}");
        assert_eq!(yard.runs.load(Ordering::Relaxed), 1, "{leaves}: it ran once");
    }
}

#[tokio::test]
async fn batches_that_are_too_large() {
    let yard = Yard::new();
    let gateway = yard.gateway_with(GatewaySettings { max_batch_tasks: 10, ..settings() }).await;
    let batch: Vec<Value> = (0..11).map(|number| json!({"model": "echo", "input": number})).collect();
    let got = gateway.post("/v1/batches", &json!(batch)).await;
    assert_eq!((got.status, got.problem()), (413, "too_large"));
    let lines: String = batch.iter().map(|task| format!("{task}\n")).collect();
    let request = gateway.http.post(gateway.url("/v1/batches")).header("content-type", "application/x-ndjson");
    let got = gateway.send(request.body(lines)).await;
    assert_eq!((got.status, got.problem()), (413, "too_large"));
    assert_eq!(yard.depth(&yard.topology.intake()).await, 0, "part of it was taken");
    assert_eq!(gateway.post("/v1/batches", &json!(batch[..10])).await.status, 202);

    for (body, code) in [("", "empty"), ("\n \n\r\n", "empty")] {
        let request = gateway.http.post(gateway.url("/v1/batches")).header("content-type", "application/x-ndjson");
        let got = gateway.send(request.body(body)).await;
        assert_eq!((got.status, got.problem()), (400, code), "{body:?}");
    }
    for (body, code) in [("[]", "empty"), ("[", "json"), ("1", "shape"), ("", "empty")] {
        let request = gateway.http.post(gateway.url("/v1/batches")).header("content-type", "application/json");
        let got = gateway.send(request.body(body)).await;
        assert_eq!((got.status, got.problem()), (400, code), "{body:?}");
    }
}
