//! `taskyard models`: what the workers announced, and who serves it now.

use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use taskyard_shared::load::ModelSpec;
use taskyard_shared::process::exit::Exit;

use super::{ClientArgs, ListCommand, finish};
use crate::client::Failure;

#[derive(Args, Clone, Debug)]
pub struct ModelsArgs {
    #[command(subcommand)]
    pub command: Option<ListCommand>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Deserialize)]
struct Page {
    models: Vec<Model>,
}

#[derive(Serialize, Deserialize)]
struct Model {
    #[serde(flatten)]
    spec: ModelSpec,
    now: Capacity,
    /// Not in the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shadow: Option<serde_json::Value>,
}

/// Slots of a model on all workers together.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Capacity {
    pub workers: u32,
    pub slots: u32,
    pub busy: u32,
    pub held: u32,
}

pub async fn run(arguments: ModelsArgs) -> Exit {
    finish(list(&arguments.client).await)
}

async fn list(client: &ClientArgs) -> Result<Exit, Failure> {
    let page: Page = client.api()?.get("v1/models", &[], Duration::ZERO).await?;
    let headers = ["model", "handler", "capabilities", "workers", "slots", "busy", "held", "batch", "timeout_ms"];
    client.print(|output| {
        output.rows(&headers, &page.models, |Model { spec, now, .. }| {
            let capabilities = if spec.capabilities.is_empty() { "-".to_owned() } else { spec.capabilities.join(",") };
            let numbers = [now.workers, now.slots, now.busy, now.held, spec.max_batch].map(|number| number.to_string());
            let mut cells = vec![spec.name.clone(), spec.handler.clone(), capabilities];
            cells.extend(numbers);
            cells.push(spec.timeout_ms.to_string());
            cells
        })
    })?;
    Ok(Exit::Ok)
}
