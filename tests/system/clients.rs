//! Publishers in other languages, as the examples have them, against real processes.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::harness::ports::free_port;
use crate::harness::{root, servers};
use crate::yard::Yard;

const PAUSE: &str = r#"
[models.pause]
handler = "simulated"
slots = 4
max_attempts = 5
[models.pause.simulated]
service_ms = 20.0
"#;

/// The interpreter with pika, or nothing, said aloud.
fn python() -> Option<String> {
    let python = std::env::var("TASKYARD_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_pika = Command::new(&python).args(["-c", "import pika"]).output();
    if has_pika.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_none(), "{python} has no pika, and it is required");
    eprintln!("skipped: {python} has no pika (TASKYARD_TEST_PYTHON names another)");
    None
}

/// Publishes from Python; the results are read line by line.
fn publish_from_python(python: &str, yard: &Yard, count: usize) -> std::process::Child {
    Command::new(python)
        .arg(root().join("examples/publish/publish.py"))
        .args(["--url", &yard.place.amqp, "--namespace", &yard.place.namespace])
        .args(["--model", "pause", "--count", &count.to_string(), r#"{"number": {n}, "text": "näher"}"#])
        .env("PYTHONUNBUFFERED", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn results(output: &Output) -> Vec<serde_json::Value> {
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_python_client_gets_1000_right_results_though_a_worker_is_killed_half_way() {
    let Some(servers) = servers("a_python_client") else { return };
    let Some(python) = python() else { return };
    let yard = Yard::new(&servers, PAUSE);
    let _scheduler = yard.scheduler();
    let victim = yard.worker();
    let _worker = yard.worker();
    let mut child = publish_from_python(&python, &yard, 1000);
    let mut results = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        results.push(serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
        if results.len() == 200 {
            victim.signal("-KILL");
        }
    }
    assert!(child.wait().unwrap().success(), "the publisher says what it missed");
    assert_eq!(results.len(), 1000);
    let mut numbers: Vec<u64> = results
        .iter()
        .map(|result| {
            assert_eq!(result["state"], "succeeded", "{result}");
            assert_eq!(result["output"]["text"], "näher");
            result["output"]["number"].as_u64().unwrap()
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).collect::<Vec<u64>>());
}

#[test]
fn a_node_client_gets_its_results() {
    let Some(servers) = servers("a_node_client") else { return };
    let modules = std::env::var("TASKYARD_TEST_NODE_MODULES")
        .map(PathBuf::from)
        .unwrap_or_else(|_| root().join("examples/publish/node_modules"));
    if !modules.join("amqplib").is_dir() {
        assert!(std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_none(), "amqplib is required in {modules:?}");
        eprintln!("skipped: no amqplib in {modules:?} (TASKYARD_TEST_NODE_MODULES names another folder)");
        return;
    }
    let yard = Yard::new(&servers, PAUSE);
    let _scheduler = yard.scheduler();
    let _worker = yard.worker();
    // Modules are looked up beside the script.
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("publish.mjs");
    std::fs::copy(root().join("examples/publish/publish.mjs"), &script).unwrap();
    std::os::unix::fs::symlink(&modules, folder.path().join("node_modules")).unwrap();
    let output = Command::new("node")
        .arg(&script)
        .args(["pause", r#"{"text": "from node"}"#, "50"])
        .env("AMQP_URL", &yard.place.amqp)
        .env("TASKYARD_NAMESPACE", &yard.place.namespace)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results = results(&output);
    assert_eq!(results.len(), 50);
    assert!(results.iter().all(|result| result["output"]["text"] == "from node"));
}

#[test]
fn curl_gets_a_result_and_the_command_line_finds_it() {
    let Some(servers) = servers("curl") else { return };
    let mut yard = Yard::new(&servers, PAUSE);
    let api = format!("127.0.0.1:{}", free_port());
    yard.environment.push(("TASKYARD__GATEWAY__LISTEN".into(), api.clone()));
    let _scheduler = yard.scheduler();
    let _worker = yard.worker();
    let gateway = yard.role(&["gateway"]);
    gateway.wait_for_line("listening");
    let output = Command::new(root().join("examples/publish/publish.sh"))
        .args(["pause", r#"{"text": "from curl"}"#])
        .env("TASKYARD_API", format!("http://{api}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result = &results(&output)[0];
    assert_eq!((&result["state"], &result["output"]["text"]), (&"succeeded".into(), &"from curl".into()));

    let api = format!("http://{api}");
    let taskyard = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_taskyard"))
            .args(arguments)
            .args(["--api", &api, "-o", "json"])
            .output()
            .unwrap()
    };
    let id = result["id"].as_str().unwrap();
    let got = taskyard(&["task", "get", id]);
    assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    let got: serde_json::Value = serde_json::from_slice(&got.stdout).unwrap();
    assert_eq!(got["output"], result["output"]);
    let missing = taskyard(&["task", "get", "00000000-0000-4000-8000-000000000000"]);
    assert_eq!(missing.status.code(), Some(4), "an id never accepted is not found");
    for command in ["models", "workers", "queues"] {
        let output = taskyard(&[command]);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("pause"), "{command}");
    }
}
