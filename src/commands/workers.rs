//! `taskyard workers`: who reported lately, and how busy they are.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use taskyard_shared::Timestamp;
use taskyard_shared::load::{LoadReport, LoadState, ModelLoad};
use taskyard_shared::process::exit::Exit;

use super::{ClientArgs, ListCommand, finish};
use crate::client::Failure;

#[derive(Args, Clone, Debug)]
pub struct WorkersArgs {
    #[command(subcommand)]
    pub command: Option<ListCommand>,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Deserialize)]
struct Page {
    workers: Vec<LoadReport>,
}

pub async fn run(arguments: WorkersArgs) -> Exit {
    finish(list(&arguments.client).await)
}

async fn list(client: &ClientArgs) -> Result<Exit, Failure> {
    let page: Page = client.api()?.get("v1/workers", &[], Duration::ZERO).await?;
    let now = Timestamp::now();
    let headers = ["worker", "host", "state", "models", "slots", "busy", "held", "finished", "memory_mb", "report_s"];
    client.print(|output| {
        output.rows(&headers, &page.workers, |report| {
            let sum = |part: fn(&ModelLoad) -> u64| report.models.values().map(part).sum::<u64>().to_string();
            vec![
                report.worker.clone(),
                report.host.clone(),
                if report.draining { "draining" } else { "serving" }.to_owned(),
                loaded(report).join(","),
                sum(|load| load.slots.into()),
                sum(|load| load.busy.into()),
                sum(|load| load.held.into()),
                sum(|load| load.finished),
                report.memory_mb.to_string(),
                format!("{:.1}", (now.ms_since(report.at) / 1000.0).max(0.0)),
            ]
        })
    })?;
    Ok(Exit::Ok)
}

/// The models that it serves now.
fn loaded(report: &LoadReport) -> Vec<&str> {
    let loaded = report.models.iter().filter(|(_, load)| load.state == LoadState::Loaded);
    loaded.map(|(model, _)| model.as_str()).collect()
}
