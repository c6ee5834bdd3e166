//! `taskyard queues`: what waits in the broker, and the slots of each model; pauses models.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use taskyard_shared::process::exit::Exit;

use super::models::Capacity;
use super::{ClientArgs, finish, say};
use crate::client::Failure;

#[derive(Args, Clone, Debug)]
pub struct QueuesArgs {
    #[command(subcommand)]
    pub command: Option<QueuesCommand>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Subcommand, Clone, Debug)]
pub enum QueuesCommand {
    /// Prints all of them
    List,
    /// Dispatches nothing of a model until it is resumed; what runs goes on
    Pause(ModelArgs),
    /// Dispatches tasks of a model again
    Resume(ModelArgs),
}

#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// The model's name
    #[arg(value_name = "MODEL", value_parser = parse_model)]
    model: String,
}

fn parse_model(text: &str) -> Result<String, String> {
    let known = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    match !text.is_empty() && text.chars().all(known) {
        true => Ok(text.to_owned()),
        false => Err("must be a model's name".to_owned()),
    }
}

#[derive(Serialize, Deserialize)]
struct Pause {
    model: String,
    paused: bool,
    in_force: bool,
}

#[derive(Deserialize)]
struct Page {
    models: Vec<ModelQueue>,
    queues: Vec<YardQueue>,
}

#[derive(Deserialize)]
struct ModelQueue {
    model: String,
    paused: bool,
    ready: u64,
    #[serde(flatten)]
    now: Capacity,
    #[serde(default)]
    drain_seconds: Option<f64>,
    #[serde(default)]
    workers_wanted: Option<f64>,
}

#[derive(Deserialize)]
struct YardQueue {
    name: String,
    ready: u64,
    consumers: u32,
}

/// A queue of either sort.
#[derive(Serialize)]
struct Row {
    queue: String,
    /// Of whom it is, when it is a model's.
    model: Option<String>,
    /// Whether its model is.
    paused: Option<bool>,
    ready: u64,
    /// Who takes from it: consumers, or the workers of the model.
    takers: u32,
    slots: Option<u32>,
    busy: Option<u32>,
    held: Option<u32>,
    /// How long its slots take for what waits.
    drain_seconds: Option<f64>,
    workers_wanted: Option<f64>,
}

impl From<YardQueue> for Row {
    fn from(YardQueue { name, ready, consumers }: YardQueue) -> Self {
        Self {
            queue: name,
            model: None,
            paused: None,
            ready,
            takers: consumers,
            slots: None,
            busy: None,
            held: None,
            drain_seconds: None,
            workers_wanted: None,
        }
    }
}

impl From<ModelQueue> for Row {
    fn from(ModelQueue { model, paused, ready, now, drain_seconds, workers_wanted }: ModelQueue) -> Self {
        Self {
            queue: format!("ready.{model}"),
            model: Some(model),
            paused: Some(paused),
            ready,
            takers: now.workers,
            slots: Some(now.slots),
            busy: Some(now.busy),
            held: Some(now.held),
            drain_seconds,
            workers_wanted,
        }
    }
}

pub async fn run(arguments: QueuesArgs) -> Exit {
    let client = &arguments.client;
    finish(match arguments.command {
        None | Some(QueuesCommand::List) => list(client).await,
        Some(QueuesCommand::Pause(ModelArgs { model })) => pause(client, &model, "pause").await,
        Some(QueuesCommand::Resume(ModelArgs { model })) => pause(client, &model, "resume").await,
    })
}

async fn pause(client: &ClientArgs, model: &str, call: &str) -> Result<Exit, Failure> {
    let api = client.api()?;
    let (_, answer) = api.change(&format!("v1/queues/{model}/{call}"), &serde_json::json!({})).await?;
    let pause: Pause = api.decode(&answer)?;
    client.print(|output| {
        output.one(&pause, |pause| {
            vec![
                ("model", pause.model.clone()),
                ("paused", pause.paused.to_string()),
                ("in_force", pause.in_force.to_string()),
            ]
        })
    })?;
    if !pause.in_force {
        say("it is kept, and not every scheduler has confirmed it yet");
    }
    Ok(Exit::Ok)
}

async fn list(client: &ClientArgs) -> Result<Exit, Failure> {
    let page: Page = client.api()?.get("v1/queues", &[], Duration::ZERO).await?;
    let rows: Vec<Row> = page.queues.into_iter().map(Row::from).chain(page.models.into_iter().map(Row::from)).collect();
    client.print(|output| {
        output.rows(&["queue", "ready", "takers", "slots", "busy", "held", "drain", "wanted", "paused"], &rows, |row| {
            let maybe = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
            vec![
                row.queue.clone(),
                row.ready.to_string(),
                row.takers.to_string(),
                maybe(row.slots),
                maybe(row.busy),
                maybe(row.held),
                row.drain_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s")),
                row.workers_wanted.map_or_else(|| "-".to_owned(), |workers| format!("{workers:.0}")),
                row.paused.map_or("-", |paused| if paused { "yes" } else { "no" }).to_owned(),
            ]
        })
    })?;
    Ok(Exit::Ok)
}
