//! The binary as a user types it: what goes wrong is one clear sentence and a documented exit code.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

fn taskyard(arguments: &[&str], environment: &[(&str, &str)], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_taskyard"))
        .args(arguments)
        .envs(environment.iter().copied())
        .env("TASKYARD__LOG__LEVEL", "error")
        .current_dir(folder)
        .output()
        .unwrap()
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// It ended with this code, said one sentence with all of these in it, and printed no data.
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{words}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(words.trim_end().lines().count(), 1, "{words}");
    for part in parts {
        assert!(words.contains(part), "{part:?} is not in {words:?}");
    }
}

const AWAY: [(&str, &str); 2] = [
    ("TASKYARD__BROKER__URL", "amqp://somebody:hunter2@127.0.0.1:1/"),
    ("TASKYARD__STORE__URL", "redis://:hunter3@127.0.0.1:1/"),
];

#[test]
fn schema_export_prints_the_schema_of_every_message() {
    let output = taskyard(&["schema", "export"], &[], here());
    assert!(output.status.success());
    let schemas: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schemas["task"]["properties"]["deadline_ms"]["minimum"], 0);
    assert!(schemas["result"]["required"].as_array().unwrap().contains(&"state".into()));
    for message in ["envelope", "completion", "load_report", "model"] {
        assert!(schemas[message]["properties"].is_object(), "{message}");
    }
}

#[test]
fn a_wrong_command_is_a_usage_error_on_stderr() {
    let output = taskyard(&["dance"], &[], here());
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("dance"));
}

#[test]
fn bad_settings_are_named_with_where_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("yard.toml");
    let with = |text: &str, parts: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        for command in [&["config", "check"][..], &["scheduler"], &["worker"], &["gateway"]] {
            let arguments: Vec<&str> = ["--config", path].iter().chain(command).copied().collect();
            refused(&taskyard(&arguments, &AWAY, here()), 2, parts);
        }
    };
    with("[broker\n", &["yard.toml:1"]);
    with("[broker]\nulr = 'amqp://x'\n", &["broker.ulr", "yard.toml"]);
    with("[worker]\nlease_ms = 'long'\n", &["worker.lease_ms"]);
    with("[models.m]\nhandler = 'magic'\n", &["models.m", "magic"]);
    refused(
        &taskyard(&["scheduler"], &[("TASKYARD__SCHEDULER__POLICI", "cmu")], here()),
        2,
        &["TASKYARD__SCHEDULER__POLICI"],
    );
}

#[test]
fn a_broker_that_is_away_is_told_without_its_password() {
    for role in ["scheduler", "worker", "gateway"] {
        let output = taskyard(&["--config", "models/models.toml", role], &AWAY, here());
        refused(&output, 3, &["127.0.0.1:1"]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter"), "a password is told");
    }
    let output = taskyard(&["doctor", "-o", "json"], &AWAY, here());
    assert_eq!(output.status.code(), Some(3));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(findings.as_array().unwrap().iter().any(|finding| finding["health"] == "fail"));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("hunter"), "a password is told");
}

#[test]
fn a_role_by_itself_refuses_the_embedded_broker() {
    for role in ["scheduler", "worker", "gateway"] {
        refused(&taskyard(&[role], &[], here()), 2, &["broker.url", role]);
    }
}

#[test]
fn a_missing_model_file_and_a_taken_port_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("yard.toml");
    let config = here().join("models/magika/config.min.json");
    let onnx = format!("task = 'file-type'\nfile = 'gone.onnx'\nconfig = '{}'", config.display());
    std::fs::write(&file, format!("[models.lost]\nhandler = 'onnx'\n[models.lost.onnx]\n{onnx}\n")).unwrap();
    let free = [("TASKYARD__GATEWAY__LISTEN", "127.0.0.1:0")];
    let output = taskyard(&["--config", file.to_str().unwrap(), "dev"], &free, here());
    refused(&output, 2, &["lost", "gone.onnx"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = taskyard(&["dev"], &[("TASKYARD__GATEWAY__LISTEN", &address)], here());
    refused(&output, 2, &[&address, "gateway.listen"]);
}

#[test]
fn away_from_the_project_the_demonstration_says_what_it_needs() {
    // The program looks above itself too, so it runs from a copy elsewhere.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("taskyard");
    // Copied by another process: while this one has it open for writing, no thread of it can run it.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_taskyard")).arg(&copy).status().unwrap().success());
    let output = Command::new(&copy).arg("demo").current_dir(folder.path()).output().unwrap();
    refused(&output, 4, &["models", "demo"]);
}

#[test]
fn the_demonstration_loses_nothing_and_answers_right() {
    let output = taskyard(&["demo"], &[], here());
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    for row in ["lost", "repeated results", "wrong answers"] {
        let line =
            told.lines().find(|line| line.trim_start().starts_with(row)).unwrap_or_else(|| panic!("no {row}: {told}"));
        let figures: Vec<&str> = line.trim_start()[row.len()..].split_whitespace().collect();
        assert_eq!(figures, ["0", "0"], "{line}");
    }
    assert!(told.contains("worker-1 was killed half way"), "{told}");
}
