//! Nothing accepted is lost, and nothing takes effect twice, whatever is killed, stopped, cut or filled up.
//!
//! A real yard, on a RabbitMQ and a Redis of its own, has tasks from several clients while faults are done to it that a seed
//! chooses; everything that can be seen of it from outside goes into a ledger, and at the end the ledger is checked.
//! `docs/reliability.md` says what is promised and how to run the long form.

#[path = "../harness/mod.rs"]
mod harness;

mod ask;
mod check;
mod disk;
mod embedded;
mod full_disk;
mod ledger;
mod load;
mod mutants;
mod nemesis;
mod observe;
mod overtake;
mod patience;
mod plan;
mod relay;
mod roles;
mod run;
mod schedule;
mod servers;
mod tweaks;
mod verdict;
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

/// What of these kinds is not left out by the settings, and can be done here.
fn menu(kinds: &[(&'static str, u32)]) -> plan::Menu {
    let without = std::env::var("TASKYARD_FAULTS_WITHOUT").unwrap_or_default();
    let mut without: Vec<&str> = without.split(',').filter(|kind| !kind.is_empty()).collect();
    for kind in &without {
        assert!(plan::is_kind(kind), "TASKYARD_FAULTS_WITHOUT: there is no fault {kind}");
    }
    if !servers::has_program("cc") {
        eprintln!("no slow disks and no wrong clocks: there is no C compiler");
        without.extend(plan::NEED_A_COMPILER);
    }
    kinds.iter().copied().filter(|(kind, _)| !without.contains(kind)).collect()
}

fn queue_type() -> QueueType {
    match std::env::var("TASKYARD_FAULTS_QUEUE_TYPE").as_deref() {
        Err(_) | Ok("auto") => QueueType::Auto,
        Ok("classic") => QueueType::Classic,
        Ok("quorum") => QueueType::Quorum,
        Ok(other) => panic!("TASKYARD_FAULTS_QUEUE_TYPE={other}: auto, classic or quorum"),
    }
}

fn planned(seed: u64, tasks: u64, faults: u64, every_ms: u64, window_tasks: u64) -> Plan {
    let tasks = number("TASKYARD_FAULTS_TASKS", tasks);
    Plan {
        seed: number("TASKYARD_FAULTS_SEED", seed),
        tasks: usize::try_from(tasks).unwrap(),
        workflows: usize::try_from(number("TASKYARD_FAULTS_WORKFLOWS", tasks / 100)).unwrap(),
        faults: usize::try_from(number("TASKYARD_FAULTS_FAULTS", faults)).unwrap(),
        every_ms: number("TASKYARD_FAULTS_EVERY_MS", every_ms),
        queue_type: queue_type(),
        window_tasks: number("TASKYARD_FAULTS_WINDOW", window_tasks),
        menu: menu(&plan::UPON_SERVERS),
    }
}

fn planned_in_one_process(seed: u64, tasks: u64, faults: u64, every_ms: u64) -> Plan {
    Plan { menu: menu(&plan::UPON_ONE_PROCESS), ..planned(seed, tasks, faults, every_ms, 100) }
}

/// Runs take the machine to themselves.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_tasks_survive_every_kind_of_fault() {
    let Some(programs) = programs("the short run of faults") else { return };
    let _alone = ALONE.lock().await;
    run(planned(1, 3_000, 20, 1_500, 100), programs).await;
}

/// `cargo test --release --test faults -- --ignored --nocapture long`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour"]
async fn a_long_run_of_half_a_million_tasks_and_two_hundred_faults() {
    let Some(programs) = programs("the long run of faults") else { return };
    run(planned(now_seed(), 500_000, 200, 5_000, 1_000), programs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_tasks_of_one_process_survive_its_kills_and_a_full_disk() {
    let _alone = ALONE.lock().await;
    embedded::run(planned_in_one_process(1, 500, 10, 700), 64).await;
}

/// `cargo test --release --test faults -- --ignored --nocapture one_process`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes"]
async fn fifty_thousand_tasks_of_one_process_survive_a_hundred_faults() {
    embedded::run(planned_in_one_process(now_seed(), 50_000, 100, 5_000), 512).await;
}

/// `cargo test --test faults -- --ignored --nocapture patience`; `TASKYARD_FAULTS_HELD_S=600` shows what it would be without.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes"]
async fn tasks_outlast_the_patience_of_the_broker() {
    let Some(programs) = programs("the run of long tasks") else { return };
    patience::run(programs, queue_type(), number("TASKYARD_FAULTS_HELD_S", 4)).await;
}

/// Another one each time; it is printed.
fn now_seed() -> u64 {
    ledger::now_ms()
}
