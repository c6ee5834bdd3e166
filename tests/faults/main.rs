//! Nothing accepted is lost, and nothing takes effect twice, whatever is killed, stopped, cut or filled up.
//!
//! A real yard, on a RabbitMQ and a Redis of its own, has tasks from several clients while faults are done to it that a seed
//! chooses; everything that can be seen of it from outside goes into a ledger, and at the end the ledger is checked.
//! `docs/reliability.md` says what is promised and how to run the long form.

#[path = "../harness/mod.rs"]
mod harness;

mod check;
mod ledger;
mod load;
mod nemesis;
mod observe;
mod plan;
mod relay;
mod roles;
mod run;
mod schedule;
mod servers;
mod workflows;
mod yard;

use taskyard_shared::process::settings::QueueType;

use crate::run::{Plan, run};

/// The folder of RabbitMQ's programs, or nothing, said aloud.
fn programs(test: &str) -> Option<std::path::PathBuf> {
    let programs = servers::rabbitmq_programs();
    let all = ["redis-server", "redis-cli", "python3"];
    if let Some(programs) = programs.filter(|_| all.iter().all(|name| servers::has_program(name))) {
        return Some(programs);
    }
    let what = format!("{test} needs rabbitmq-server, redis-server and python3");
    assert!(std::env::var_os("TASKYARD_TEST_REQUIRE_SERVERS").is_none(), "{what}, and servers are required");
    eprintln!("skipped: {what}");
    None
}

fn number(name: &str, otherwise: u64) -> u64 {
    let Ok(value) = std::env::var(name) else { return otherwise };
    value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}"))
}

fn planned(seed: u64, tasks: u64, faults: u64, every_ms: u64, window_tasks: u64) -> Plan {
    let queue_type = match std::env::var("TASKYARD_FAULTS_QUEUE_TYPE").as_deref() {
        Err(_) | Ok("auto") => QueueType::Auto,
        Ok("classic") => QueueType::Classic,
        Ok("quorum") => QueueType::Quorum,
        Ok(other) => panic!("TASKYARD_FAULTS_QUEUE_TYPE={other}: auto, classic or quorum"),
    };
    let without = std::env::var("TASKYARD_FAULTS_WITHOUT").unwrap_or_default();
    let without: Vec<String> = without.split(',').filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
    for kind in &without {
        assert!(plan::is_kind(kind), "TASKYARD_FAULTS_WITHOUT: there is no fault {kind}");
    }
    let tasks = number("TASKYARD_FAULTS_TASKS", tasks);
    Plan {
        seed: number("TASKYARD_FAULTS_SEED", seed),
        tasks: usize::try_from(tasks).unwrap(),
        workflows: usize::try_from(number("TASKYARD_FAULTS_WORKFLOWS", tasks / 100)).unwrap(),
        faults: usize::try_from(number("TASKYARD_FAULTS_FAULTS", faults)).unwrap(),
        every_ms: number("TASKYARD_FAULTS_EVERY_MS", every_ms),
        queue_type,
        window_tasks: number("TASKYARD_FAULTS_WINDOW", window_tasks),
        without,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_tasks_survive_every_kind_of_fault() {
    let Some(programs) = programs("the short run of faults") else { return };
    run(planned(1, 3_000, 15, 1_500, 100), programs).await;
}

/// `cargo test --release --test faults -- --ignored --nocapture long`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn a_long_run_of_half_a_million_tasks_and_two_hundred_faults() {
    let Some(programs) = programs("the long run of faults") else { return };
    run(planned(now_seed(), 500_000, 200, 5_000, 1_000), programs).await;
}

/// Another one each time; it is printed.
fn now_seed() -> u64 {
    ledger::now_ms()
}
