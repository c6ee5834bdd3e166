//! What taskyard is measured against, as processes of this binary: one hop of the plain relay, and the slots behind a
//! priority queue.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use taskyard_shared::broker::rabbitmq::relay::{Hop, relay};
use taskyard_shared::broker::rabbitmq::slots::{Slots, Work, work_on};
use taskyard_shared::broker::{BrokerError, Operations};
use taskyard_shared::process::admin::{self, Readiness};
use taskyard_shared::process::config;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::{BrokerSettings, Settings};
use taskyard_shared::process::shutdown::Shutdown;
use taskyard_shared::process::telemetry;
use taskyard_shared::{TaskId, Timestamp};
use taskyard_worker::handlers::{self, ModelCache};
use taskyard_worker::{Handler, handler::Job};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::Failure;

#[derive(Args, Clone, Debug)]
pub struct HopArgs {
    /// The queue to take from.
    #[arg(long)]
    from: String,
    /// So many of them, with `-0` and so on behind the name.
    #[arg(long)]
    from_many: Option<u32>,
    /// The queue to publish to; without it, to whichever the message names for its reply.
    #[arg(long)]
    to: Option<String>,
    /// So many of them, in turns.
    #[arg(long)]
    to_many: Option<u32>,
    /// Deliveries and confirms under way.
    #[arg(long)]
    in_flight: u16,
}

#[derive(Args, Clone, Debug)]
pub struct SlotsArgs {
    /// The queue to take from.
    #[arg(long)]
    from: String,
    /// Consumers, each with a prefetch of 1.
    #[arg(long)]
    slots: u16,
    /// Confirm results before acking.
    #[arg(long)]
    confirmed: bool,
}

pub async fn hop(args: HopArgs, file: Option<&Path>) -> Result<(), Failure> {
    let HopArgs { from, from_many, to, to_many, in_flight } = args;
    let to = to.map_or_else(Vec::new, |to| numbered(&to, to_many));
    let hop = Hop { from: numbered(&from, from_many), to, in_flight };
    serve(file, async |Serving { broker, operations, stop, .. }| relay(&broker, hop, operations, stop).await).await
}

pub async fn slots(args: SlotsArgs, file: Option<&Path>) -> Result<(), Failure> {
    let SlotsArgs { from, slots, confirmed } = args;
    let slots = Slots { queue: from, count: slots, confirmed };
    serve(file, async |Serving { broker, model, operations, stop }| {
        work_on(&broker, &slots, work(model), operations, stop).await
    })
    .await
}

/// So many names, or the one.
pub fn numbered(name: &str, many: Option<u32>) -> Vec<String> {
    match many {
        Some(many) => (0..many).map(|number| format!("{name}-{number}")).collect(),
        None => vec![name.to_owned()],
    }
}

/// What a baseline's process works with.
struct Serving {
    broker: BrokerSettings,
    model: Option<Arc<dyn Handler>>,
    operations: Arc<Operations>,
    stop: CancellationToken,
}

/// As every role: settings, logs, signals, metrics, then the work.
async fn serve(file: Option<&Path>, run: impl AsyncFnOnce(Serving) -> Result<(), BrokerError>) -> Result<(), Failure> {
    let Settings { broker, models, admin, log, .. } = config::load(file)?.settings;
    telemetry::init(&log)?;
    let shutdown = Shutdown::on_signals()?;
    let model = match models.first_key_value() {
        Some((name, model)) => Some(handlers::build(name, model, Path::new("."), &ModelCache::default()).await?),
        None => None,
    };
    let registry = Registry::new()?;
    let operations = Arc::new(Operations::default());
    let counted = operations.clone();
    registry.broker_operations(move || Some(counted.clone()))?;
    let listener = admin::listen(&admin).await?;
    let address = listener.address()?;
    let done = CancellationToken::new();
    tokio::spawn(admin::serve(listener, registry, Readiness::default(), done.clone()));
    info!(%address, "listening: metrics");
    let ended = run(Serving { broker, model, operations, stop: shutdown.drain.clone() }).await;
    done.cancel();
    Ok(ended?)
}

/// Has the model work on a task, and answers a result with what `bench` reads of one.
fn work(model: Option<Arc<dyn Handler>>) -> Work {
    #[derive(Deserialize)]
    struct Task {
        id: TaskId,
        input: Box<RawValue>,
    }
    Arc::new(move |body: Bytes| {
        let model = model.clone();
        async move {
            let started = Timestamp::now();
            let Ok(Task { id, input }) = serde_json::from_slice(&body) else { return b"{}".to_vec() };
            if let Some(model) = &model {
                // What it answers is not looked at: it only takes time.
                let _answers = model.execute(vec![Job::new(id, 1, input)]).await;
            }
            let finished = Timestamp::now();
            let timings = json!({"started": started, "finished": finished, "ran_ms": finished.ms_since(started)});
            json!({"id": id, "state": "succeeded", "timings": timings}).to_string().into_bytes()
        }
        .boxed()
    })
}
