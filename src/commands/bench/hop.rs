//! One hop of the plain relay, as a process: what `--baseline relay` starts two of.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use taskyard_shared::broker::Operations;
use taskyard_shared::broker::rabbitmq::relay::{Hop, relay};
use taskyard_shared::process::admin::{self, Readiness};
use taskyard_shared::process::config;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::shutdown::Shutdown;
use taskyard_shared::process::telemetry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::Failure;

#[derive(Args, Clone, Debug)]
pub struct HopArgs {
    /// The queue to take from.
    #[arg(long)]
    from: String,
    /// The queue to publish to; without it, to whichever the message names for its reply.
    #[arg(long)]
    to: Option<String>,
    /// Deliveries and confirms under way.
    #[arg(long)]
    in_flight: u16,
}

pub async fn hop(args: HopArgs, file: Option<&Path>) -> Result<(), Failure> {
    let loaded = config::load(file)?;
    telemetry::init(&loaded.settings.log)?;
    loaded.settings.require_shared("bench-hop")?;
    let shutdown = Shutdown::on_signals()?;
    let registry = Registry::new()?;
    let operations = Arc::new(Operations::default());
    let counted = operations.clone();
    registry.broker_operations(move || Some(counted.clone()))?;
    let listener = admin::listen(&loaded.settings.admin).await?;
    let address = listener.address()?;
    let done = CancellationToken::new();
    tokio::spawn(admin::serve(listener, registry, Readiness::default(), done.clone()));
    info!(%address, "listening: metrics");
    let HopArgs { from, to, in_flight } = args;
    let ended = relay(&loaded.settings.broker, Hop { from, to, in_flight }, operations, shutdown.drain.clone()).await;
    done.cancel();
    Ok(ended?)
}
