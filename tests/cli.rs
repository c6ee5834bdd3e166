//! The binary as a user types it.

use std::process::{Command, Output};

fn taskyard(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_taskyard")).args(arguments).output().unwrap()
}

#[test]
fn schema_export_prints_the_schema_of_every_message() {
    let output = taskyard(&["schema", "export"]);
    assert!(output.status.success());
    let schemas: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schemas["task"]["properties"]["deadline_ms"]["minimum"], 0);
    assert!(schemas["result"]["required"].as_array().unwrap().contains(&"state".into()));
}

#[test]
fn a_wrong_command_is_a_usage_error_on_stderr() {
    let output = taskyard(&["dance"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("dance"));
}
