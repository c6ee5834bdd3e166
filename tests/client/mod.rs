//! A client command as a user types it, run to its end.
#![allow(dead_code)] // Each test target uses a part of it.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::yard::{RunningGateway, within};

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    pub fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub async fn taskyard(gateway: &RunningGateway, arguments: &[&str]) -> Ran {
    taskyard_reading(gateway, arguments, "").await
}

pub async fn taskyard_reading(gateway: &RunningGateway, arguments: &[&str], input: &str) -> Ran {
    let api = gateway.url("");
    run(&[arguments, &["--api", &api]].concat(), input).await
}

pub async fn run(arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskyard"));
    command.args(arguments);
    ended(command, input).await
}

pub async fn ended(mut command: Command, input: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not read its input closes it early.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = within(child.wait_with_output()).await.unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
