//! `taskyard doctor`: is everything there that a yard needs, and what to do when it is not.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use taskyard_shared::broker::{Broker, BrokerError, QueueSpec};
use taskyard_shared::process::connect::{open_broker, open_store};
use taskyard_shared::process::exit::Exit;
use taskyard_shared::process::{config, settings::Settings};
use taskyard_shared::store::Store;
use taskyard_shared::{Topology, messages};

use crate::failure::Failure;
use crate::output::{Format, Output, colour};

#[derive(Args)]
pub struct DoctorArgs {
    /// Declare the exchange and the queues that are missing.
    #[arg(long)]
    declare: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Ok,
    Warn,
    Fail,
}

impl Health {
    fn as_str(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Warn => "warn",
            Health::Fail => "FAIL",
        }
    }
}

#[derive(Serialize)]
struct Finding {
    check: String,
    health: Health,
    found: String,
    /// What to do; empty when nothing is.
    advice: String,
}

#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    unreachable: bool,
    unusable: bool,
}

impl Findings {
    fn add(&mut self, check: &str, health: Health, found: impl Into<String>, advice: &str) {
        self.all.push(Finding { check: check.to_owned(), health, found: found.into(), advice: advice.to_owned() });
    }
}

pub async fn run(args: DoctorArgs, file: Option<&Path>, format: Format) -> ExitCode {
    let mut findings = Findings::default();
    match config::load(file) {
        Ok(loaded) => {
            findings.add("settings", Health::Ok, "valid", "");
            examine(&loaded.settings, args.declare, &mut findings).await;
        }
        Err(failure) => {
            findings.unusable = true;
            findings.add(
                "settings",
                Health::Fail,
                failure.to_string(),
                "mend it; `taskyard config show` shows the layers",
            );
        }
    }
    let mut out = std::io::stdout().lock();
    let printed = Output { format, colour: colour(), out: &mut out }.rows(
        &["check", "health", "found", "what to do"],
        &findings.all,
        |Finding { check, health, found, advice }| {
            vec![check.clone(), health.as_str().to_owned(), found.clone(), advice.clone()]
        },
    );
    if let Err(failure) = printed {
        return Failure::System(failure).report();
    }
    let failed = findings.all.iter().any(|finding| finding.health == Health::Fail);
    match failed {
        _ if findings.unusable => Exit::Usage.into(),
        _ if findings.unreachable => Exit::NotReachable.into(),
        true => Exit::Failed.into(),
        false => ExitCode::SUCCESS,
    }
}

async fn examine(settings: &Settings, declare: bool, findings: &mut Findings) {
    let topology = Topology::new(&settings.broker.namespace);
    match open_broker(settings).await {
        Ok(broker) => {
            examine_broker(&*broker, &topology, settings.scheduler.shards, declare, findings).await;
            broker.close().await;
        }
        Err(failure) => {
            findings.unreachable |= failure.is_transient();
            findings.add("broker", Health::Fail, failure.to_string(), "check broker.url, and that RabbitMQ runs");
        }
    }
    match open_store(settings).await {
        Ok(store) => examine_store(&*store, findings).await,
        Err(failure) => {
            findings.unreachable |= failure.is_transient();
            findings.add("store", Health::Fail, failure.to_string(), "check store.url, and that Redis runs");
        }
    }
}

async fn examine_broker(broker: &dyn Broker, topology: &Topology, shards: u32, declare: bool, findings: &mut Findings) {
    match broker.info().await {
        Ok(info) => {
            findings.add("broker", Health::Ok, format!("{} {}", info.product, info.version), "");
            match info.queue_type.as_str() {
                "quorum" => findings.add(
                    "queue type",
                    Health::Ok,
                    "quorum",
                    "on fewer than three nodes it gives no fault tolerance, only durability",
                ),
                other => findings.add("queue type", Health::Ok, other, ""),
            }
            if info.product == "RabbitMQ" {
                findings.add(
                    "consumer time-out",
                    Health::Ok,
                    "not visible over AMQP; 30 minutes unless changed",
                    "scheduler.max_held_s and worker.max_held_s must stay below it; tasks may run for longer",
                );
            }
        }
        Err(failure) => {
            findings.unreachable |= failure.is_transient();
            findings.add("broker", Health::Fail, failure.to_string(), "check broker.url, and that RabbitMQ runs");
            return;
        }
    }
    let mut queues = messages::work_queues(topology);
    queues.extend(messages::shard_queues(topology, shards));
    let own: Vec<String> = (0..shards).map(|shard| topology.round(shard)).collect();
    if declare {
        match broker.declare(&queues).await {
            Ok(()) => findings.add("declare", Health::Ok, format!("{} queues stand", queues.len()), ""),
            Err(failure) => findings.add("declare", Health::Fail, failure.to_string(), advice(&failure)),
        }
    }
    for QueueSpec { name, .. } in &queues {
        match broker.queue_state(name).await {
            Ok(Some(state)) => {
                let found = format!("{} ready, {} consumers", state.ready, state.consumers);
                let unread = state.consumers == 0;
                if name == &topology.dead() && state.ready > 0 {
                    findings.add(
                        name,
                        Health::Warn,
                        found,
                        "tasks that failed for good wait there: `taskyard dead list` shows them",
                    );
                } else if name == &topology.intake() && unread {
                    findings.add(name, Health::Warn, found, "no scheduler reads it: start one");
                } else if own.contains(name) && unread {
                    findings.add(
                        name,
                        Health::Warn,
                        found,
                        "no scheduler has this shard: start one, or lower scheduler.shards",
                    );
                } else {
                    findings.add(name, Health::Ok, found, "");
                }
            }
            Ok(None) => findings.add(
                name,
                Health::Warn,
                "does not exist",
                "start a scheduler or worker, or run `taskyard doctor --declare`",
            ),
            Err(failure) => findings.add(name, Health::Fail, failure.to_string(), advice(&failure)),
        }
    }
}

fn advice(failure: &BrokerError) -> &'static str {
    match failure {
        BrokerError::Mismatch { .. } => {
            "the queue was made with other settings: drain it, delete it, and run `taskyard doctor --declare`"
        }
        _ => "",
    }
}

async fn examine_store(store: &dyn Store, findings: &mut Findings) {
    match store.ping().await {
        Ok(product) => findings.add("store", Health::Ok, product, ""),
        Err(failure) => {
            findings.unreachable |= failure.is_transient();
            findings.add("store", Health::Fail, failure.to_string(), "check store.url, and that Redis runs");
            return;
        }
    }
    match (store.models().await, store.loads().await) {
        (Ok(models), Ok(loads)) => {
            let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            match names.is_empty() {
                true => findings.add("models", Health::Warn, "none announced", "start a worker with a [models] table"),
                false => findings.add("models", Health::Ok, names.join(", "), ""),
            }
            let alive = loads.len();
            let idle: Vec<&str> = names
                .iter()
                .filter(|name| !loads.iter().any(|load| load.models.contains_key(**name)))
                .copied()
                .collect();
            match (alive, idle.is_empty()) {
                (0, _) => findings.add("workers", Health::Warn, "none alive", "start one: `taskyard worker`"),
                (_, true) => findings.add("workers", Health::Ok, format!("{alive} alive"), ""),
                (_, false) => findings.add(
                    "workers",
                    Health::Warn,
                    format!("{alive} alive; none serves {}", idle.join(", ")),
                    "tasks for these models wait until a worker serves them",
                ),
            }
        }
        (Err(failure), _) | (_, Err(failure)) => findings.add("models", Health::Fail, failure.to_string(), ""),
    }
}
