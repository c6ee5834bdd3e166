//! `taskyard queues`: what waits in the broker, and the slots of each model.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use taskyard_shared::process::exit::Exit;

use super::models::Capacity;
use super::{ClientArgs, ListCommand, finish};
use crate::client::Failure;

#[derive(Args, Clone, Debug)]
pub struct QueuesArgs {
    #[command(subcommand)]
    pub command: Option<ListCommand>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Deserialize)]
struct Page {
    models: Vec<ModelQueue>,
    queues: Vec<YardQueue>,
}

#[derive(Deserialize)]
struct ModelQueue {
    model: String,
    ready: u64,
    #[serde(flatten)]
    now: Capacity,
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
    ready: u64,
    /// Who takes from it: consumers, or the workers of the model.
    takers: u32,
    slots: Option<u32>,
    busy: Option<u32>,
    held: Option<u32>,
}

impl From<YardQueue> for Row {
    fn from(YardQueue { name, ready, consumers }: YardQueue) -> Self {
        Self { queue: name, model: None, ready, takers: consumers, slots: None, busy: None, held: None }
    }
}

impl From<ModelQueue> for Row {
    fn from(ModelQueue { model, ready, now }: ModelQueue) -> Self {
        Self {
            queue: format!("ready.{model}"),
            model: Some(model),
            ready,
            takers: now.workers,
            slots: Some(now.slots),
            busy: Some(now.busy),
            held: Some(now.held),
        }
    }
}

pub async fn run(arguments: QueuesArgs) -> Exit {
    finish(list(&arguments.client).await)
}

async fn list(client: &ClientArgs) -> Result<Exit, Failure> {
    let page: Page = client.api()?.get("v1/queues", &[], Duration::ZERO).await?;
    let rows: Vec<Row> = page.queues.into_iter().map(Row::from).chain(page.models.into_iter().map(Row::from)).collect();
    client.print(|output| {
        output.rows(&["queue", "ready", "takers", "slots", "busy", "held"], &rows, |row| {
            let maybe = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
            vec![
                row.queue.clone(),
                row.ready.to_string(),
                row.takers.to_string(),
                maybe(row.slots),
                maybe(row.busy),
                maybe(row.held),
            ]
        })
    })?;
    Ok(Exit::Ok)
}
