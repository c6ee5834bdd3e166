//! `taskyard dev` and `taskyard demo` as a user runs them: real processes, real models, and a kill -9 in between.

mod harness;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use harness::{eventually, models_file, root};
use serde_json::{Value, json};

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TASKYARD_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied()).env("NO_COLOR", "1").current_dir(root());
    command.stdin(Stdio::null());
    command
}

/// A running `taskyard dev` on a port of its own; killed when dropped.
struct Dev {
    child: Child,
    printed: Arc<Mutex<Vec<String>>>,
    /// What it logs, told when its test fails.
    logged: Arc<Mutex<Vec<String>>>,
    url: String,
}

impl Dev {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let arguments = [&["dev"], arguments].concat();
        let environment = [environment, &[("TASKYARD__GATEWAY__LISTEN", "127.0.0.1:0")]].concat();
        let mut command = command(&arguments, &environment);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let printed = kept(child.stdout.take().unwrap());
        let logged = kept(child.stderr.take().unwrap());
        let mut dev = Self { child, printed, logged, url: String::new() };
        dev.wait_for("Ctrl-C ends it.");
        let first = dev.printed()[0].clone();
        dev.url = first.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
        dev
    }

    fn printed(&self) -> Vec<String> {
        self.printed.lock().unwrap().clone()
    }

    fn wait_for(&mut self, part: &str) {
        eventually(&format!("{part:?} to be printed"), || {
            assert_eq!(self.child.try_wait().unwrap(), None, "it ended: {:?}", self.printed());
            self.printed().iter().any(|line| line.contains(part)).then_some(())
        });
    }

    fn signal(&self, signal: &str) {
        let killed = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    fn wait(&mut self) -> ExitStatus {
        eventually("dev to end", || self.child.try_wait().unwrap())
    }

    /// A client command against it: exit code, what it printed, and what it said.
    fn client(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = command(&[arguments, &["--api", &self.url]].concat(), &[]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// The tasks that a client command prints; it exits with `code`.
    #[track_caller]
    fn tasks(&self, code: i32, arguments: &[&str]) -> Vec<Value> {
        let (exit, out, err) = self.client(&[arguments, &["-o", "jsonl"]].concat());
        assert_eq!(exit, Some(code), "{arguments:?}: {err}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The body that a path answers with.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        // Of HTTP 1.0, so that the answer is whole and ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{path}: {head}");
        body.to_owned()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            for line in self.logged.lock().unwrap().iter().rev().take(40).rev() {
                eprintln!("[{}] {line}", self.child.id());
            }
        }
    }
}

/// The lines of a pipe, as they come.
fn kept(pipe: impl Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            kept.lock().unwrap().push(line);
        }
    });
    lines
}

const MODELS: &str = r#"
[models.slow]
handler = "simulated"
slots = 2
[models.slow.simulated]
service_ms = 150.0

[models.broken]
handler = "simulated"
capabilities = ["breaking"]
max_attempts = 2
max_batch = 4
[models.broken.simulated]
failure_ratio = 1.0
"#;

#[test]
fn dev_serves_the_shipped_models_until_it_is_told_to_stop() {
    let mut dev = Dev::start(&[], &[]);
    let printed = dev.printed().join("\n");
    for part in ["intents@1", "sentiment@1", "file-type@1", "in memory", "/metrics", "/openapi.json", "task submit"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let text = r#"{"text": "my card was stolen, block it"}"#;
    let tasks = dev.tasks(0, &["task", "submit", "--model", "intents", "--input", text, "--wait", "60s"]);
    assert_eq!(tasks[0]["output"]["label"], "lost_or_stolen_card", "{tasks:?}");
    assert_eq!((&tasks[0]["model"], &tasks[0]["worker"]), (&json!("intents@1"), &json!("dev")));
    let description: Value = serde_json::from_str(&dev.get("/openapi.json")).unwrap();
    assert!(description["paths"]["/v1/tasks"].is_object());

    dev.signal("-TERM");
    assert_eq!(dev.wait().code(), Some(0));
}

#[test]
fn dev_goes_on_when_nobody_reads_what_it_prints() {
    let folder = tempfile::tempdir().unwrap();
    let file = models_file(folder.path(), MODELS);
    let port = harness::ports::free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut child = command(&["dev", "--config", file.to_str().unwrap()], &[("TASKYARD__GATEWAY__LISTEN", &listen)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let url = format!("http://{listen}/readyz");
    let ready = || command(&["health", &url], &[]).stderr(Stdio::null()).status().unwrap().success().then_some(());
    eventually("dev to be ready", || {
        assert_eq!(child.try_wait().unwrap(), None, "it ended");
        ready()
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Broker and store of the settings are not used, so that the file of a yard with servers can be tried out as it is.
#[test]
fn dev_with_a_folder_finishes_after_a_kill_what_it_had_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let file = models_file(folder.path(), MODELS);
    let data = folder.path().join("data");
    let arguments = ["--config", file.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let environment = [
        ("TASKYARD__BROKER__URL", "amqp://operator:s3cret-word@127.0.0.1:1"),
        ("TASKYARD__WORKER__LEASE_MS", "500"),
        ("TASKYARD__WORKER__REPORT_EVERY_MS", "100"),
        ("TASKYARD__SCHEDULER__REPORT_EVERY_MS", "100"),
    ];
    let mut dev = Dev::start(&arguments, &environment);
    assert!(dev.printed().join("\n").contains(data.to_str().unwrap()), "{:?}", dev.printed());
    for (name, expected) in [
        ("", 0o700),
        ("artifacts", 0o700),
        ("broker", 0o700),
        ("store", 0o700),
        ("broker/broker.redb", 0o600),
        ("store/store.redb", 0o600),
    ] {
        let mode = data.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, expected, "others can read {name:?}: {mode:o}");
    }

    let inputs = written(folder.path(), (0..60).map(|number| json!({"number": number})));
    let from = format!("@{inputs}");
    let accepted = dev.tasks(0, &["task", "submit", "--model", "slow", "--input", &from]);
    assert_eq!(accepted.len(), 60);
    let ids: Vec<&str> = accepted.iter().map(|task| task["id"].as_str().unwrap()).collect();
    let of_state = |dev: &Dev, state| dev.tasks(0, &["task", "list", "--state", state, "--limit", "100"]);
    let before = eventually("some to be finished", || Some(of_state(&dev, "succeeded")).filter(|done| done.len() >= 4));

    // One folder, one process.
    let (code, err) = refused(&arguments, &environment);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("is open in another process"), "{err}");

    dev.signal("-KILL");
    assert_eq!(dev.wait().code(), None);
    assert!(before.len() < 60, "the kill came with tasks left");

    let mut dev = Dev::start(&arguments, &environment);
    let finished = dev.tasks(0, &[&["task", "wait", "--timeout", "90s"], ids.as_slice()].concat());
    let by_id: BTreeMap<&str, &Value> = finished.iter().map(|task| (task["id"].as_str().unwrap(), task)).collect();
    for (number, id) in ids.iter().enumerate() {
        assert_eq!((&by_id[id]["state"], &by_id[id]["output"]["number"]), (&json!("succeeded"), &json!(number)));
    }
    for task in &before {
        assert_eq!(by_id[task["id"].as_str().unwrap()], task, "what was finished is not run again");
    }
    dev.signal("-TERM");
    assert_eq!(dev.wait().code(), Some(0));
}

fn written(folder: &Path, lines: impl Iterator<Item = Value>) -> String {
    let path = folder.join("inputs.jsonl");
    std::fs::write(&path, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A second `dev` that must not come up: its exit code and the last that it says.
fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let environment = [environment, &[("TASKYARD__GATEWAY__LISTEN", "127.0.0.1:0")]].concat();
    let arguments = [&["dev"], arguments].concat();
    let output = command(&arguments, &environment).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), err.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn metrics_are_clean_and_as_the_reference_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = models_file(folder.path(), MODELS);
    let quick = [
        ("TASKYARD__WORKER__RETRY_FIRST_MS", "1"),
        ("TASKYARD__WORKER__REPORT_EVERY_MS", "100"),
        ("TASKYARD__SCHEDULER__UNKNOWN_MODEL_GRACE_MS", "0"),
    ];
    let mut dev = Dev::start(&["--config", file.to_str().unwrap()], &quick);
    // One of every kind of end.
    let submit = |code, arguments: &[&str]| {
        dev.tasks(code, &[&["task", "submit", "--input", r#"{"service_ms": 1}"#, "--wait", "60s"], arguments].concat())
    };
    submit(0, &["--model", "slow", "--priority", "9", "--deadline-ms", "60000"]);
    submit(1, &["--capability", "breaking", "--kind", "training"]);
    assert_eq!(submit(1, &["--model", "nowhere"])[0]["error"]["code"], "unknown_model");
    let hopeless = submit(1, &["--model", "slow", "--deadline-ms", "1", "--delay-ms", "5"]);
    assert_eq!(hopeless[0]["error"]["code"], "deadline_unreachable");
    // Some gauges are set once a second.
    let wanted = [
        "taskyard_worker_slots{",
        "taskyard_backlog_tasks{",
        "taskyard_yard_slots{",
        "taskyard_tasks_retried_total{",
        "taskyard_tasks_dead_lettered_total{",
        "taskyard_deadline_met_total{",
        "taskyard_deadline_missed_total{",
    ];
    let mut page = String::new();
    eventually(&format!("all of {wanted:?}"), || {
        page = dev.get("/metrics");
        wanted.iter().all(|name| page.contains(name)).then_some(())
    });
    dev.signal("-TERM");
    assert_eq!(dev.wait().code(), Some(0));

    let reference = std::fs::read_to_string(root().join("docs/reference.md")).unwrap();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(reference.contains(&format!("| `{name}` | {kind} |")), "{name}, a {kind}, is not in the reference");
    }
    check_with_promtool(&page);
}

/// Prometheus' own opinion of names, help texts and units.
fn check_with_promtool(page: &str) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(failure) if std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_none() => {
            eprintln!("skipped: promtool cannot be run: {failure}");
            return;
        }
        Err(failure) => panic!("promtool cannot be run, and servers are required: {failure}"),
    };
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{page}");
}

#[test]
fn demo_does_the_main_job_and_loses_nothing() {
    let output = command(&["demo"], &[]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    for name in ["lost", "repeated results", "wrong answers"] {
        let row = out.lines().find_map(|line| line.trim_start().strip_prefix(name)).unwrap_or_else(|| panic!("{out}"));
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["0", "0"], "{name}: {out}");
    }
    assert!(out.contains("worker-1 was killed half way"), "{out}");
}
