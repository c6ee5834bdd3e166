//! The client commands when something goes wrong around them: an API that is lost in the middle, inputs that end badly, results
//! that are long, and places for files that are none.

#[path = "../producer/tests/yard/mod.rs"]
mod yard;

mod client;

use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use client::{ended, run, taskyard, taskyard_reading};
use serde_json::{Value, json};
use yard::{RunningGateway, Yard};

#[tokio::test(flavor = "multi_thread")]
async fn a_result_may_be_longer_than_a_formats_width() {
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let text = "x".repeat(70_000);
    let input = format!("{{\"text\":\"{text}\"}}");
    let ran =
        taskyard_reading(&gateway, &["task", "submit", "--model", "echo", "--input", "-", "--wait", "20s"], &input)
            .await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(&text), "{} bytes", ran.out.len());
    let id = ran.out.lines().find_map(|line| line.strip_prefix("id ")).unwrap().trim().to_owned();
    for command in ["get", "wait"] {
        let ran = taskyard(&gateway, &["task", command, &id]).await;
        assert_eq!((ran.code, ran.out.contains(&text)), (0, true), "{}", ran.err);
    }
}

/// An API that answers as a test says, and keeps what it was asked.
#[derive(Clone, Default)]
struct Scripted {
    /// A task, and a workflow, as the API has them.
    task: Value,
    workflow: Value,
    /// Batches that are answered; further ones are not, nor are waits when it is 0.
    batches: usize,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    async fn of(yard: &Yard, batches: usize) -> Self {
        let gateway = yard.gateway().await;
        let mut task = gateway.post("/v1/tasks", &json!({"model": "echo", "input": 1})).await.json;
        task["state"] = "queued".into();
        let steps = json!({"tasks": [{"name": "a", "model": "echo", "input": 1}]});
        let workflow = gateway.post("/v1/workflows", &steps).await.json;
        Self { task, workflow, batches, seen: Arc::default() }
    }

    async fn serve(&self) -> String {
        let routes = Router::new()
            .route("/v1/tasks", post(Self::submit))
            .route("/v1/tasks/{id}", get(Self::wait))
            .route("/v1/workflows", post(Self::submit_workflow))
            .route("/v1/workflows/{id}", get(Self::wait_for_workflow))
            .route("/v1/batches", post(Self::batch))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        url
    }

    fn saw(&self, what: String) -> usize {
        let mut seen = self.seen.lock().unwrap();
        seen.push(what);
        seen.len()
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    async fn submit(State(this): State<Self>, headers: HeaderMap) -> Response {
        this.saw(format!("{:?}", headers.get("prefer")));
        axum::Json(&this.task).into_response()
    }

    async fn submit_workflow(State(this): State<Self>, headers: HeaderMap) -> Response {
        this.saw(format!("{:?}", headers.get("prefer")));
        axum::Json(&this.workflow).into_response()
    }

    async fn wait(State(this): State<Self>, RawQuery(query): RawQuery) -> Response {
        if this.batches > 0 {
            return away();
        }
        this.saw(query.unwrap_or_default());
        let mut task = this.task.clone();
        task["state"] = "succeeded".into();
        axum::Json(task).into_response()
    }

    async fn wait_for_workflow(State(this): State<Self>, RawQuery(query): RawQuery) -> Response {
        this.saw(query.unwrap_or_default());
        let mut workflow = this.workflow.clone();
        workflow["state"] = "succeeded".into();
        axum::Json(workflow).into_response()
    }

    async fn batch(State(this): State<Self>, body: String) -> Response {
        if this.saw("a batch".to_owned()) > this.batches {
            return away();
        }
        let answers: String = body.lines().map(|_| json!({"task": this.task}).to_string() + "\n").collect();
        ([(header::CONTENT_TYPE, "application/x-ndjson")], answers).into_response()
    }
}

fn away() -> Response {
    let problem = json!({"code": "broker_unavailable", "detail": "the broker is away"});
    let media = [(header::CONTENT_TYPE, "application/problem+json")];
    (StatusCode::SERVICE_UNAVAILABLE, media, problem.to_string()).into_response()
}

/// How many tasks it printed, in any format.
fn printed(out: &str, format: &str) -> usize {
    match format {
        "table" => out.lines().count().saturating_sub(1),
        "json" => serde_json::from_str::<Vec<Value>>(out).unwrap().len(),
        _ => out.lines().count(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_is_printed_whatever_comes_after_it() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let line = "{\"model\": \"echo\", \"input\": 1}\n";
    let submit = ["task", "submit", "--tasks", "-", "-o"];
    for format in ["table", "json", "jsonl"] {
        let ran =
            taskyard_reading(&gateway, &[&submit[..], &[format]].concat(), &(line.repeat(1100) + "{\"model")).await;
        assert_eq!((ran.code, printed(&ran.out, format)), (1, 1000), "{format}: {}", ran.err);
        let said = "1000 tasks of the first 1000 inputs were accepted, and no more: standard input is not JSON";
        assert!(ran.err.contains(said) && ran.err.lines().count() == 1, "{format}: {}", ran.err);
        // Of nothing that was accepted there is nothing to print.
        let ran = taskyard_reading(&gateway, &[&submit[..], &[format]].concat(), &(line.repeat(2) + "{\"model")).await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{format}: {}", ran.err);

        let scripted = Scripted::of(&yard, 1).await;
        let api = scripted.serve().await;
        let ran = run(&[&submit[..], &[format, "--api", &api]].concat(), &line.repeat(1200)).await;
        assert_eq!((ran.code, printed(&ran.out, format)), (1, 1000), "{format}: {}", ran.err);
        assert!(ran.err.contains("1000 tasks") && ran.err.contains("the broker is away"), "{format}: {}", ran.err);
        // Accepted, and then not to be waited for.
        let scripted = Scripted::of(&yard, 1).await;
        let api = scripted.serve().await;
        let ran = run(&[&submit[..], &[format, "--wait", "5s", "--api", &api]].concat(), &line.repeat(3)).await;
        assert_eq!((ran.code, printed(&ran.out, format)), (1, 3), "{format}: {}", ran.err);
        assert!(ran.err.contains("3 tasks") && ran.err.contains("the broker is away"), "{format}: {}", ran.err);
    }
}

/// Reads one request and closes the connection, as a process does that dies over it.
fn dying() -> (String, std::thread::JoinHandle<Value>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let reading = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut request, mut byte) = (Vec::new(), [0]);
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        let head = String::from_utf8(request).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).unwrap().trim();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    });
    (url, reading)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_gateway_dies_over_it_can_be_asked_for() {
    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    let whole = r#"{"model": "echo", "input": 1}"#;
    let plain: &[&str] = &["--model", "echo", "--input", "1"];
    for (arguments, input, own) in [
        (plain, "", None),
        (&["--tasks", "-"], whole, None),
        (&["--model", "echo", "--input", "1", "--id", ID], "", Some(ID)),
        (&["--model", "echo", "--input", "1", "--wait", "2s"], "", None),
        (&["--model", "echo", "--input", "1", "--follow"], "", None),
    ] {
        let (api, reading) = dying();
        let ran = run(&[&["task", "submit", "--api", &api], arguments].concat(), input).await;
        let sent = reading.join().unwrap();
        let id = sent["id"].as_str().unwrap_or_else(|| panic!("{arguments:?}: no id in {sent}"));
        assert!(own.is_none_or(|own| own == id), "{arguments:?}: {id}");
        assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 7);
        assert_eq!((sent["model"].as_str(), &sent["input"]), (Some("echo"), &json!(1)));
        assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{}", ran.err);
        let said = format!("task {id} may have been accepted: taskyard task get {id}");
        assert!(ran.err.contains(&said) && ran.err.lines().count() == 1, "{arguments:?}: {}", ran.err);
    }
    let (api, reading) = dying();
    let ran = run(&[&["task", "submit", "--api", &api, "--idempotency-key", "k1"], plain].concat(), "").await;
    assert_eq!(reading.join().unwrap().get("id"), None, "a key is a name");
    assert!(ran.code == 3 && ran.err.contains("may have been accepted") && ran.err.contains("k1"), "{}", ran.err);
    // Nobody was there to accept it.
    let ran = run(&[&["task", "submit", "--api", "http://127.0.0.1:1"], plain].concat(), "").await;
    assert!(ran.code == 3 && !ran.err.contains("accepted"), "{}", ran.err);
    // And what is said of it holds.
    let yard = Yard::working().await;
    let gateway = yard.gateway().await;
    let ran =
        taskyard_reading(&gateway, &["task", "submit", "--tasks", "-", "--wait", "20s", "-o", "json"], whole).await;
    assert_eq!((ran.code, ran.json()["state"].as_str()), (0, Some("succeeded")), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_waited_for_is_what_was_asked() {
    let scripted = Scripted::of(&Yard::new(), 0).await;
    let api = scripted.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let workflow = folder.path().join("workflow.json");
    std::fs::write(&workflow, "{}").unwrap();
    let task: &[&str] = &["task", "submit", "--model", "echo", "--input", "1"];
    for command in [task, &["workflow", "submit", workflow.to_str().unwrap()]] {
        for (wait, prefer, most_ms) in [("500ms", "None", 500), ("2500ms", "Some(\"wait=2\")", 2500)] {
            let ran = run(&[command, &["--wait", wait, "--api", &api]].concat(), "").await;
            assert_eq!(ran.code, 0, "{command:?} {wait}: {}", ran.err);
            let seen = scripted.seen();
            assert_eq!(seen[0], prefer, "{command:?} {wait}");
            let left: u64 = seen[1].strip_prefix("wait=").unwrap().strip_suffix("ms").unwrap().parse().unwrap();
            assert!(left <= most_ms, "{command:?} {wait}: {seen:?}");
        }
    }
}

/// What an artifact is called that a gateway keeps.
async fn put(gateway: &RunningGateway, folder: &Path, content: &str) -> String {
    let from = folder.join("from");
    std::fs::write(&from, content).unwrap();
    let ran = taskyard(gateway, &["artifact", "put", from.to_str().unwrap(), "-o", "json"]).await;
    ran.json()[0]["$ref"].as_str().unwrap().to_owned()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_comes_has_the_mode_that_files_have_here() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let folder = tempfile::tempdir().unwrap();
    let name = put(&gateway, folder.path(), "content").await;
    let (new, old) = (folder.path().join("new"), folder.path().join("old"));
    std::fs::write(&old, "what stood there").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o604)).unwrap();
    for (umask, place, expected) in [("027", &new, 0o640), ("077", &old, 0o604)] {
        let mut command = tokio::process::Command::new("sh");
        command.args([
            "-c",
            &format!("umask {umask}; exec \"$0\" \"$@\""),
            env!("CARGO_BIN_EXE_taskyard"),
            "artifact",
            "get",
        ]);
        command.args([&name, "--out", place.to_str().unwrap(), "--api", &gateway.url("")]);
        let ran = ended(command, "").await;
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_eq!((std::fs::read_to_string(place).unwrap().as_str(), mode(place)), ("content", expected), "{place:?}");
    }
    let left: Vec<PathBuf> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 3, "nothing else is left: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_written_to_and_stays_what_it_is() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let folder = tempfile::tempdir().unwrap();
    let name = put(&gateway, folder.path(), "content").await;
    let get = async |place: &Path| {
        let ran = taskyard(&gateway, &["artifact", "get", &name, "--out", place.to_str().unwrap()]).await;
        assert_eq!(ran.code, 0, "{place:?}: {}", ran.err);
        ran.out
    };
    let is_link = |path: &Path| path.symlink_metadata().unwrap().is_symlink();
    let at = |name: &str| folder.path().join(name);

    std::fs::create_dir(at("below")).unwrap();
    std::fs::write(at("below/file"), "what stood there").unwrap();
    symlink("below/file", at("link")).unwrap();
    symlink("below/not-yet", at("dangling")).unwrap();
    symlink(at("dangling"), at("twice")).unwrap();
    for (link, file) in [("link", "below/file"), ("twice", "below/not-yet")] {
        get(&at(link)).await;
        assert!(is_link(&at(link)) && !is_link(&at(file)), "{link}");
        assert_eq!(std::fs::read_to_string(at(file)).unwrap(), "content", "{link}");
    }
    assert!(is_link(&at("dangling")));
    symlink("circle", at("circle")).unwrap();
    let ran = taskyard(&gateway, &["artifact", "get", &name, "--out", at("circle").to_str().unwrap()]).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(is_link(&at("circle")));

    // As /dev/stdout is one.
    symlink("/proc/self/fd/1", at("stdout")).unwrap();
    assert_eq!(get(&at("stdout")).await, "content");
    assert!(is_link(&at("stdout")));

    let pipe = at("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reading = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).unwrap()
    });
    get(&pipe).await;
    assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo(), "the pipe was replaced");
    assert_eq!(reading.join().unwrap(), "content");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_kept_are_named_when_the_next_cannot_be() {
    let yard = Yard::new();
    let gateway = yard.gateway().await;
    let folder = tempfile::tempdir().unwrap();
    let name = put(&gateway, folder.path(), "content").await;
    let from = folder.path().join("from");
    let ran = taskyard(&gateway, &["artifact", "put", from.to_str().unwrap(), "/no/such/file", "-o", "jsonl"]).await;
    assert_eq!((ran.code, ran.lines().len(), &ran.lines()[0]["$ref"]), (2, 1, &json!(name)), "{}", ran.err);
    assert!(ran.err.contains("/no/such/file cannot be read"), "{}", ran.err);
}

#[test]
fn a_file_that_is_longer_than_the_api_takes_is_not_read_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, start: &str, bytes: u64| {
        let path = folder.path().join(name);
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(start.as_bytes()).unwrap();
        // Holes take no room.
        file.set_len(bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (long, key) = (file("long", "{}", (8 << 20) + 1), file("key", "tyk_", (64 << 10) + 1));
    let add = ["schedule", "add", "n", "--cron", "@daily"];
    let cases: [&[&str]; 4] = [
        &["workflow", "submit", &long],
        &[&add[..], &["--task", &long]].concat(),
        &[&add[..], &["--workflow", &long]].concat(),
        &["models", "--api-key-file", &key],
    ];
    for arguments in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_taskyard"))
            .args(arguments)
            .args(["--api", "http://127.0.0.1:1"])
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains("is longer than") && err.contains("bytes") && err.lines().count() == 1, "{err}");
    }
}
