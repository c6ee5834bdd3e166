//! Tasks that outlast the broker's patience with consumers, which is looked at once a minute: no delivery is ever held for so long.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use taskyard_shared::process::settings::QueueType;
use taskyard_shared::{State, TaskResult};
use tokio::time::Instant;

use crate::ledger::{EXECUTED, Executed, Files, What};
use crate::load::http;
use crate::verdict;
use crate::yard::{Servers, Yard};

/// RabbitMQ closes the channel of who holds a delivery for longer: half an hour by default.
const BROKER_PATIENCE_MS: u32 = 10_000;
/// Long enough that RabbitMQ looks at least twice meanwhile.
const LONG_MS: u32 = 150_000;
const SHORT_MS: u32 = 500;
/// One on each worker's slot, and as many short ones that wait for these.
const LONG: usize = 3;
const PATIENCE: Duration = Duration::from_secs(400);

pub async fn run(programs: PathBuf, queue_type: QueueType, most_held_s: u64) {
    let files = Arc::new(Files::new(&verdict::folder(0)));
    let mut servers = Servers::start(programs, queue_type, &files.folder).await;
    let set = format!("application:set_env(rabbit, consumer_timeout, {BROKER_PATIENCE_MS}).");
    servers.rabbit.get_mut().control(&["eval", &set]).await;
    for role in ["WORKER", "SCHEDULER"] {
        servers.set(&format!("{role}__MAX_HELD_S"), most_held_s.to_string());
    }
    let yard = Yard::start(servers, 1_000, &files).await;

    let tasks = |ms: u32| (0..LONG).map(move |n| json!({"model": "patient", "input": {"n": n, "ms": ms}}));
    let mut ids = Vec::new();
    for task in tasks(LONG_MS).chain(tasks(SHORT_MS)) {
        let accepted = http().post(format!("{}/v1/tasks", yard.api)).json(&task).send().await.unwrap();
        let accepted: Value = accepted.error_for_status().unwrap().json().await.unwrap();
        ids.push(accepted["id"].as_str().unwrap().to_owned());
    }
    let begun = Instant::now();
    for id in &ids {
        let ended = loop {
            let url = format!("{}/v1/tasks/{id}?wait=5s", yard.api);
            let answer: TaskResult = http().get(url).send().await.unwrap().json().await.unwrap();
            if answer.state.is_terminal() {
                break answer;
            }
            assert!(begun.elapsed() < PATIENCE, "{id} does not end: {answer:?}");
        };
        assert_eq!((ended.state, ended.attempt), (State::Succeeded, 1), "{ended:?}");
    }
    let started = files.read::<Executed>(EXECUTED).into_iter().filter(|line| line.what == What::Started).count();
    assert_eq!(started, ids.len(), "each ran once");
    let log = yard.servers().rabbit.lock().await.log();
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("delivery acknowledgement")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    yard.end().await;
    std::fs::remove_dir_all(&files.folder).unwrap();
}
