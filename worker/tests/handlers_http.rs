//! The handler `http` against real servers: those that behave, and those that do not.

mod handlers_kit;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use futures_util::future::join3;
use futures_util::stream;
use handlers_kit::{failure, in_time, job, load_error, message, output};
use serde_json::{Value, json};
use taskyard_worker::{Answer, Handler};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Barrier, Notify, oneshot};
use tokio::task::JoinHandle;

/// What a server was sent.
struct Request {
    path: String,
    headers: HeaderMap,
    body: String,
    port: u16,
}

type Requests = Arc<Mutex<Vec<Request>>>;

/// Serves every path with `answer`; gives the address and what comes in.
async fn serve<F>(answer: F) -> (String, Requests)
where
    F: Fn(&Request) -> Response + Clone + Send + Sync + 'static,
{
    let requests = Requests::default();
    let on_request =
        move |State(requests): State<Requests>, peer: ConnectInfo<SocketAddr>, uri: Uri, headers, body: Bytes| {
            let body = String::from_utf8(body.into()).unwrap();
            let request = Request { path: uri.path().to_owned(), headers, body, port: peer.0.port() };
            let response = answer(&request);
            requests.lock().unwrap().push(request);
            async move { response }
        };
    let app = Router::new().fallback(post(on_request)).with_state(Arc::clone(&requests));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await });
    (url, requests)
}

/// A server of one connection: it reads the head of the request and writes `response`.
struct Raw {
    url: String,
    /// The response is on its way.
    answered: oneshot::Receiver<()>,
    /// Ends when the client has gone.
    served: JoinHandle<()>,
}

async fn serve_raw(response: impl Into<Vec<u8>>, closes: bool) -> Raw {
    let (listener, response) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), response.into());
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, answered) = oneshot::channel();
    let served = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        assert!(connection.read(&mut buffer).await.unwrap() > 0);
        connection.write_all(&response).await.unwrap();
        // Not every test listens.
        let _ = tell.send(());
        while !closes && connection.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
    });
    Raw { url, answered, served }
}

async fn handler(url: &str, more: &str) -> Arc<dyn Handler> {
    let (model, http) = more.split_once("---").unwrap_or(("", more));
    let toml = format!("[models.remote]\nhandler = \"http\"\n{model}\n[models.remote.http]\nurl = \"{url}\"\n{http}");
    handlers_kit::load(&toml, Path::new(".")).await.unwrap()
}

async fn one(handler: &dyn Handler, input: impl ToString) -> Answer {
    in_time("an answer", handler.execute(vec![job(input)])).await.pop().unwrap()
}

const BATCHES: &str = "max_batch = 8\n---";

fn echo(request: &Request) -> Response {
    request.body.clone().into_response()
}

#[tokio::test]
async fn the_input_is_the_body_and_the_body_is_the_output() {
    let (url, requests) = serve(echo).await;
    let handler = handler(&format!("{url}/predict?v=1"), "headers = { Authorization = \"Bearer canary\" }").await;
    let mut task = job("{ \"text\" :\n \"a\", \"n\": 1.50 }");
    task.attempt = 3;
    let id = task.id.0.to_string();
    let answers = handler.execute(vec![task]).await;
    assert_eq!(answers[0].as_ref().unwrap().get(), "{ \"text\" :\n \"a\", \"n\": 1.50 }");

    let requests = requests.lock().unwrap();
    let Request { path, headers, body, .. } = &requests[0];
    assert_eq!((path.as_str(), body.as_str()), ("/predict", "{ \"text\" :\n \"a\", \"n\": 1.50 }"));
    for (name, value) in [
        ("idempotency-key", id.as_str()),
        ("x-taskyard-attempt", "3"),
        ("content-type", "application/json"),
        ("authorization", "Bearer canary"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
}

#[tokio::test]
async fn calls_one_after_the_other_share_a_connection() {
    let (url, requests) = serve(echo).await;
    let handler = handler(&url, "").await;
    for n in 0..5 {
        assert_eq!(output(&one(handler.as_ref(), n).await), json!(n));
    }
    assert_eq!(requests.lock().unwrap().iter().map(|request| request.port).collect::<BTreeSet<_>>().len(), 1);
}

#[tokio::test]
async fn a_batch_is_an_array_each_way_even_a_batch_of_one() {
    let (url, requests) = serve(|request| {
        let inputs: Vec<i64> = serde_json::from_str(&request.body).unwrap();
        json!(inputs.iter().map(|n| n * n).collect::<Vec<_>>()).to_string().into_response()
    })
    .await;
    let handler = handler(&url, BATCHES).await;
    let jobs: Vec<_> = (1..=4).map(job).collect();
    let ids = jobs.iter().map(|job| job.id.0.to_string()).collect::<Vec<_>>().join(",");
    let answers = handler.execute(jobs).await;
    assert_eq!(answers.iter().map(output).collect::<Vec<_>>(), [1, 4, 9, 16].map(Value::from));
    assert_eq!(output(&one(handler.as_ref(), 5).await), json!(25));
    assert!(handler.execute(Vec::new()).await.is_empty());
    let requests = requests.lock().unwrap();
    assert_eq!(requests.iter().map(|request| request.body.as_str()).collect::<Vec<_>>(), ["[1,2,3,4]", "[5]"]);
    assert_eq!(requests[0].headers["idempotency-key"], ids);
    assert_eq!(requests[0].headers["x-taskyard-attempt"], "1,1,1,1");
}

#[tokio::test]
async fn a_bad_input_in_a_batch_fails_its_own_task_only() {
    let (url, requests) = serve(|request| {
        if request.body.contains("poison") {
            (StatusCode::UNPROCESSABLE_ENTITY, "no poison, please").into_response()
        } else {
            echo(request)
        }
    })
    .await;
    let handler = handler(&url, BATCHES).await;
    let answers = handler.execute(vec![job(1), job("\"poison\""), job(3)]).await;
    assert_eq!((output(&answers[0]), output(&answers[2])), (json!(1), json!(3)));
    assert_eq!(failure(&answers[1]), ("bad_input", false));
    assert!(message(&answers[1]).contains("422") && message(&answers[1]).contains("no poison, please"));
    assert_eq!(requests.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn an_output_that_is_too_large_does_not_fail_the_tasks_beside_it() {
    let (url, _) = serve(|request| request.body.replace("big", &"big".repeat(1000)).into_response()).await;
    let handler = handler(&url, &format!("{BATCHES}max_response_bytes = 100")).await;
    let answers = handler.execute(vec![job(1), job("\"big\"")]).await;
    assert_eq!(output(&answers[0]), json!(1));
    assert_eq!(failure(&answers[1]), ("output_too_large", false));
}

#[tokio::test]
async fn what_is_no_array_of_as_many_outputs_is_a_bad_answer() {
    for answer in ["[1]", "[1,2,3]", "{\"outputs\": [1, 2]}", "", "[1,2", "[1,2] []", "<html>"] {
        let (url, _) = serve(move |_| answer.into_response()).await;
        let answers = handler(&url, BATCHES).await.execute(vec![job(1), job(2)]).await;
        assert_eq!(answers.iter().map(failure).collect::<Vec<_>>(), [("bad_answer", true); 2], "{answer}");
    }
}

#[tokio::test]
async fn every_status_has_its_code_and_says_whether_to_try_again() {
    let with = |status: u16, body: &'static str| (StatusCode::from_u16(status).unwrap(), body).into_response();
    type Case = (fn() -> Response, (&'static str, bool), &'static str);
    let cases: [Case; 9] = [
        (
            || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "77")], "slowly").into_response(),
            ("unavailable", true),
            "after 77 s",
        ),
        (|| StatusCode::SERVICE_UNAVAILABLE.into_response(), ("unavailable", true), "503"),
        (|| StatusCode::INTERNAL_SERVER_ERROR.into_response(), ("handler_failed", true), "500"),
        (|| StatusCode::BAD_REQUEST.into_response(), ("bad_input", false), "400"),
        (|| StatusCode::UNAUTHORIZED.into_response(), ("handler_failed", false), "401"),
        (|| StatusCode::NOT_FOUND.into_response(), ("handler_failed", false), "404"),
        (|| Redirect::temporary("/elsewhere").into_response(), ("bad_answer", false), "redirects are not followed"),
        (|| StatusCode::NO_CONTENT.into_response(), ("bad_answer", true), "not JSON"),
        (|| "<html>Sign in</html>".into_response(), ("bad_answer", true), "not JSON"),
    ];
    for (answer, expected, told) in cases {
        let (url, requests) = serve(move |_| answer()).await;
        let answer = one(handler(&url, "").await.as_ref(), 1).await;
        assert_eq!(failure(&answer), expected, "{}", message(&answer));
        assert!(message(&answer).contains(told), "{}", message(&answer));
        assert_eq!(requests.lock().unwrap().len(), 1, "sent once, and nowhere else");
    }
    let (url, _) = serve(move |_| with(500, "a\u{1b}[31m\r\nforged: line")).await;
    let answer = one(handler(&url, "").await.as_ref(), 1).await;
    assert!(message(&answer).contains("a [31m  forged: line"), "{}", message(&answer));
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let (url, _) = serve(move |_| deep.clone().into_response()).await;
    assert_eq!(failure(&one(handler(&url, "").await.as_ref(), 1).await), ("bad_answer", false));
}

/// A body without an end, and a flag that is raised when nobody reads it any more.
fn endless(status: StatusCode, gone: &Arc<Notify>) -> Response {
    struct Gone(Arc<Notify>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let gone = Gone(Arc::clone(gone));
    let chunks = stream::repeat_with(move || {
        let _held = &gone;
        Ok::<_, Infallible>(Bytes::from_static(&[b' '; 16 * 1024]))
    });
    (status, Body::from_stream(chunks)).into_response()
}

#[tokio::test]
async fn a_body_without_an_end_is_read_up_to_its_limit() {
    for (status, expected) in
        [(StatusCode::OK, ("output_too_large", false)), (StatusCode::INTERNAL_SERVER_ERROR, ("handler_failed", true))]
    {
        let gone = Arc::new(Notify::new());
        let served = Arc::clone(&gone);
        let (url, _) = serve(move |_| endless(status, &served)).await;
        let answer = one(handler(&url, "").await.as_ref(), 1).await;
        assert_eq!(failure(&answer), expected);
        assert!(message(&answer).len() < 500);
        in_time("the connection is closed", gone.notified()).await;
    }
    let Raw { url, served, .. } = serve_raw("HTTP/1.1 200 OK\r\ncontent-length: 5368709120\r\n\r\n[", false).await;
    assert_eq!(failure(&one(handler(&url, "").await.as_ref(), 1).await), ("output_too_large", false));
    in_time("the connection is closed", served).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_dropped_closes_its_connection() {
    // It hangs before its head, and within its body.
    for response in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n[1,"] {
        let Raw { url, answered, served } = serve_raw(response, false).await;
        let handler = handler(&url, "").await;
        let call = tokio::spawn(async move { handler.execute(vec![job(1)]).await });
        in_time("the server answers", answered).await.unwrap();
        assert!(!call.is_finished());
        call.abort();
        in_time("the server sees it", served).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_away_or_goes_away_is_worth_another_attempt() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let answer = one(handler(&format!("http://ann:canary@{closed}/"), "").await.as_ref(), 1).await;
    assert_eq!(failure(&answer), ("unavailable", true));
    assert!(message(&answer).contains("refused") && !message(&answer).contains("canary"), "{}", message(&answer));

    for response in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n[1,",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let Raw { url, .. } = serve_raw(response, true).await;
        let answer = one(handler(&url, "").await.as_ref(), 1).await;
        assert_eq!(failure(&answer), ("crashed", true), "{}", message(&answer));
    }
    let Raw { url, .. } = serve_raw("SSH-2.0-OpenSSH_9.2\r\n", true).await;
    assert_eq!(failure(&one(handler(&url, "").await.as_ref(), 1).await), ("crashed", true));
}

#[tokio::test]
async fn a_server_that_takes_no_connection_is_given_up_in_time() {
    // A queue for one connection, which is filled and never emptied: further ones are not even refused.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connection) =
        tokio::time::timeout(std::time::Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        waiting.push(connection.unwrap());
    }
    let handler = handler(&format!("http://{address}"), "connect_timeout_ms = 100").await;
    let answer = one(handler.as_ref(), 1).await;
    assert_eq!(failure(&answer), ("unavailable", true), "{}", message(&answer));
}

#[tokio::test]
async fn open_inference_requests_go_to_the_model_with_the_tasks_id() {
    let (url, requests) = serve(|request| {
        let asked: Value = serde_json::from_str(&request.body).unwrap();
        let sum: f64 = asked["inputs"][0]["data"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).sum();
        let tensor = json!({"name": "sum", "shape": [1], "datatype": "FP32", "data": [sum]});
        json!({"model_name": "remote", "id": asked["id"], "outputs": [tensor]}).to_string().into_response()
    })
    .await;
    let handler = handler(&url, "protocol = \"open-inference\"").await;
    let input = json!({"inputs": [{"name": "x", "shape": [3], "datatype": "FP32", "data": [1.5, 2.0, 3.0]}]});
    let task = job(input);
    let id = task.id.0.to_string();
    let answers = handler.execute(vec![task, job("[1]")]).await;
    let response = output(&answers[0]);
    assert_eq!((&response["id"], &response["outputs"][0]["data"][0]), (&json!(id), &json!(6.5)));
    assert_eq!(failure(&answers[1]), ("bad_input", false));
    assert_eq!(requests.lock().unwrap()[0].path, "/v2/models/remote/infer");

    for (status, body, expected) in [
        (200, "{}", ("bad_answer", true)),
        (200, "[[]]", ("bad_answer", true)),
        (400, "{\"error\": \"no such input x\"}", ("bad_input", false)),
    ] {
        let (url, _) = serve(move |_| (StatusCode::from_u16(status).unwrap(), body).into_response()).await;
        let handler = self::handler(&url, "protocol = \"open-inference\"").await;
        assert_eq!(failure(&one(handler.as_ref(), "{\"inputs\": [{}]}").await), expected, "{body}");
    }
}

#[tokio::test]
async fn open_inference_tasks_are_on_their_way_together() {
    // Nobody is answered before all three are there.
    let all = Arc::new(Barrier::new(3));
    let app = Router::new().fallback(post(move || {
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            "{\"outputs\": []}"
        }
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let handler = handler(&url, &format!("slots = 3\n{BATCHES}protocol = \"open-inference\"")).await;
    let jobs = (0..3).map(|_| job("{\"inputs\": [{}]}")).collect();
    let answers = in_time("three answers", handler.execute(jobs)).await;
    assert!(answers.iter().all(Result::is_ok));

    // So are those of several calls.
    let calls = join3(
        one(handler.as_ref(), "{\"inputs\": [1]}"),
        one(handler.as_ref(), "{\"inputs\": [2]}"),
        one(handler.as_ref(), "{\"inputs\": [3]}"),
    );
    let answers = in_time("three answers", calls).await;
    assert!(answers.0.is_ok() && answers.1.is_ok() && answers.2.is_ok());
    server.abort();
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named_and_secrets_are_not() {
    let cases = [
        ("url = \"not a url\"", "http.url"),
        ("url = \"ftp://host/\"", "http.url"),
        ("url = \"file:///etc/passwd\"", "http.url"),
        ("url = \"http://h/\"\nconnect_timeout_ms = 0", "http.connect_timeout_ms"),
        ("url = \"http://h/\"\nheaders = { \"a b\" = \"canary\" }", "\"a b\""),
        ("url = \"http://h/\"\nheaders = { Host = \"canary\" }", "\"Host\""),
        ("url = \"http://h/\"\nheaders = { X-Key = \"canary\\r\\nx\" }", "X-Key"),
    ];
    for (http, expected) in cases {
        let toml = format!("[models.remote]\nhandler = \"http\"\n[models.remote.http]\n{http}");
        let error = load_error(&toml, Path::new(".")).await;
        assert!(error.starts_with("model remote: ") && error.contains(expected), "{error}");
        assert!(!error.contains("canary"), "{error}");
    }
    let many = "[models.remote]\nhandler = \"http\"\nmax_batch = 129\n[models.remote.http]\nurl = \"http://h/\"";
    assert!(load_error(many, Path::new(".")).await.contains("at most 128"));
}

/// The environment cannot be changed in a running test, so this one runs itself again in another.
#[tokio::test]
async fn proxies_in_the_environment_are_not_used() {
    const TARGET: &str = "TASKYARD_TEST_HTTP_TARGET";
    if let Ok(url) = std::env::var(TARGET) {
        assert_eq!(output(&one(handler(&url, "").await.as_ref(), 7).await), json!(7));
        return;
    }
    let ((target, requests), (proxy, proxied)) = (serve(echo).await, serve(echo).await);
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "proxies_in_the_environment_are_not_used"])
        .envs([(TARGET, &target), ("HTTP_PROXY", &proxy), ("http_proxy", &proxy), ("ALL_PROXY", &proxy)])
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .stdout(std::process::Stdio::null())
        .status()
        .await
        .unwrap();
    assert!(status.success());
    assert_eq!((requests.lock().unwrap().len(), proxied.lock().unwrap().len()), (1, 0));
}

#[tokio::test]
async fn openai_requests_get_the_model_of_the_settings_and_go_to_their_call() {
    let (url, requests) = serve(|request| {
        match request.path.as_str() {
            "/v1/embeddings" => json!({"data": [{"embedding": [0.5]}], "usage": {"total_tokens": 2}}).to_string(),
            _ => json!({"choices": [{"message": {"content": "Hi"}}], "usage": {"total_tokens": 7}}).to_string(),
        }
        .into_response()
    })
    .await;
    let settings = "protocol = \"openai\"\nmodel = \"qwen\"\nheaders = { authorization = \"Bearer x\" }";
    let handler = handler(&url, settings).await;
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5});
    assert_eq!(output(&one(&*handler, &chat).await)["usage"]["total_tokens"], 7);
    assert_eq!(output(&one(&*handler, json!({"input": "Hello"})).await)["data"][0]["embedding"], json!([0.5]));
    assert_eq!(failure(&one(&*handler, json!({"text": "Hello"})).await), ("bad_input", false));
    let seen = requests.lock().unwrap();
    assert_eq!(seen.len(), 2);
    let body: Value = serde_json::from_str(&seen[0].body).unwrap();
    assert_eq!(
        (seen[0].path.as_str(), &body["model"], &body["max_tokens"]),
        ("/v1/chat/completions", &json!("qwen"), &json!(5))
    );
    assert_eq!(seen[0].headers["authorization"], "Bearer x");
    assert_eq!(seen[1].path, "/v1/embeddings");
}

/// Where a model is stands in the settings. What an input says of that is data, and is passed on as such, or refused.
#[tokio::test]
async fn an_input_that_names_a_model_or_an_address_goes_where_the_settings_say() {
    let (elsewhere, fetched) = serve(echo).await;
    let named = json!({
        "url": elsewhere, "base_url": elsewhere, "api_base": elsewhere, "host": elsewhere, "proxy": elsewhere,
        "http": {"url": elsewhere}, "webhook": {"url": elsewhere},
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": elsewhere}}]}],
        "inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [elsewhere]}],
    });
    let mut other_model = named.clone();
    other_model["model"] = json!("other");
    for (settings, path, model) in [
        ("protocol = \"json\"", "/", "other"),
        ("protocol = \"open-inference\"", "/v2/models/remote/infer", "other"),
        ("protocol = \"openai\"\nmodel = \"qwen\"", "/v1/chat/completions", "qwen"),
    ] {
        let (url, requests) = serve(|_| json!({"outputs": [], "choices": []}).to_string().into_response()).await;
        let handler = handler(&url, settings).await;
        let input = match model {
            "qwen" => {
                assert_eq!(failure(&one(&*handler, &other_model).await), ("bad_input", false), "{settings}");
                &named
            }
            _ => &other_model,
        };
        assert_eq!(output(&one(&*handler, input).await)["choices"], json!([]), "{settings}");
        let seen = requests.lock().unwrap();
        assert_eq!(seen.iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), [path], "{settings}");
        let body: Value = serde_json::from_str(&seen[0].body).unwrap();
        assert_eq!((&body["url"], &body["model"]), (&json!(elsewhere), &json!(model)), "{settings}");
    }
    assert_eq!(fetched.lock().unwrap().len(), 0, "nobody was asked");
}

#[tokio::test]
async fn a_streamed_completion_is_put_together_and_one_that_breaks_off_is_tried_again() {
    let (url, _) = serve(|request| {
        let body: Value = serde_json::from_str(&request.body).unwrap();
        assert_eq!((&body["stream"], &body["stream_options"]["include_usage"]), (&json!(true), &json!(true)));
        let mut events: Vec<String> = ["Hel", "lo"]
            .map(|text| json!({"object": "text_completion", "choices": [{"index": 0, "text": text}]}).to_string())
            .into();
        events.push(json!({"choices": [], "usage": {"total_tokens": 2}}).to_string());
        if body["prompt"] == "whole" {
            events.push("[DONE]".into())
        }
        let events = events.into_iter().map(|event| Ok::<_, Infallible>(format!("data: {event}\n\n")));
        Body::from_stream(stream::iter(events)).into_response()
    })
    .await;
    let handler = handler(&url, "protocol = \"openai\"").await;
    let whole = output(&one(&*handler, json!({"prompt": "whole", "stream": true})).await);
    assert_eq!((&whole["choices"][0]["text"], &whole["usage"]["total_tokens"]), (&json!("Hello"), &json!(2)));
    assert_eq!(failure(&one(&*handler, json!({"prompt": "cut", "stream": true})).await), ("crashed", true));
}

#[tokio::test]
async fn a_server_that_asks_for_time_is_asked_again_within_the_attempt() {
    let asked = Arc::new(std::sync::atomic::AtomicU32::default());
    let count = Arc::clone(&asked);
    let (url, requests) = serve(move |request| {
        match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")], "later").into_response(),
            1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")], "later").into_response(),
            2 => echo(request),
            // More than anybody waits for.
            _ => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3600")], "much later").into_response(),
        }
    })
    .await;
    let handler = handler(&url, "").await;
    assert_eq!(output(&one(&*handler, 7).await), 7);
    assert_eq!(requests.lock().unwrap().len(), 3);
    let answer = one(&*handler, 8).await;
    assert_eq!(failure(&answer), ("unavailable", true));
    assert!(message(&answer).contains("after 3600 s"), "{}", message(&answer));
    assert_eq!(requests.lock().unwrap().len(), 4);
}
