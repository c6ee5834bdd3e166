//! `taskyard dev`: gateway, scheduler and one worker in one process, embedded, until it is told to stop.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;
use taskyard_producer::gateway::{Gateway, GatewayParts};
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::process::config;
use taskyard_shared::process::keys::Keys;
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::shutdown::Shutdown;
use taskyard_shared::process::telemetry;
use tracing::{info, warn};

use crate::demo::find_root;
use crate::failure::Failure;
use crate::output::tell;
use crate::roles::{bind_gateway, load_models, open_artifacts};
use crate::yard::Yard;

#[derive(Args)]
pub struct DevArgs {
    /// Keeps tasks and results in this folder; without it they are in memory and gone at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Makes a folder for this user alone: tasks, their inputs and their outputs lie in it.
fn private_folder(folder: &Path) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Failure::Usage(format!("--data: {} cannot be made: {error}", folder.display())))
}

pub async fn run(args: DevArgs, file: Option<&Path>) -> Result<(), Failure> {
    // Without settings of one's own, the models that come with the project.
    let shipped = match file {
        Some(_) => None,
        None => Some(find_root()?.join("models/models.toml")),
    };
    let loaded = config::load(file.or(shipped.as_deref()))?;
    telemetry::init(&loaded.settings.log)?;
    for (key, url) in [("broker.url", &loaded.settings.broker.url), ("store.url", &loaded.settings.store.url)] {
        if url != "embedded:" {
            warn!("{key} is not used: dev has a broker and a store of its own, which --data DIR keeps");
        }
    }
    let shutdown = Shutdown::on_signals()?;
    let listener = bind_gateway(&loaded.settings).await?;
    let address = listener.local_addr()?;
    let registry = Registry::new()?;
    let artifacts = match (open_artifacts(&loaded.settings)?, &args.data) {
        (Some(artifacts), _) => artifacts,
        (None, Some(folder)) => {
            let folder = folder.join("artifacts");
            private_folder(&folder)?;
            Artifacts::in_folder(&folder).map_err(|failure| Failure::Usage(failure.to_string()))?
        }
        (None, None) => Artifacts::in_memory(),
    };
    let (models, foundry) = load_models(&loaded, &[], Some(artifacts.clone())).await?;
    let first = models.first().map_or_else(String::new, |model| model.spec.name.clone());
    let names: Vec<String> = models.iter().map(|model| model.spec.full_name()).collect();
    let settings = loaded.settings;
    let yard = Yard::start(settings.clone(), models, args.data.as_deref(), registry.clone()).await?;
    let yard = yard.foundry(foundry).artifacts(artifacts.clone());
    let worker = yard.worker("dev")?;
    let gateway = Gateway::new(GatewayParts {
        broker: yard.broker.clone(),
        store: yard.store.clone(),
        topology: yard.topology.clone(),
        settings: settings.gateway.clone(),
        registry,
        keys: Keys::new(&settings.keys).map_err(Failure::Usage)?,
        artifacts: Some(artifacts),
    })?;
    tell!("Taskyard runs at http://{address} with the models {}.", names.join(", "));
    match &args.data {
        Some(folder) => tell!("Tasks and results are kept in {}.", folder.display()),
        None => tell!("Tasks and results are in memory; --data DIR keeps them."),
    }
    tell!("  metrics  http://{address}/metrics");
    tell!("  API      http://{address}/openapi.json");
    tell!("Try, in another terminal:");
    tell!("  taskyard task submit --model {first} --input '{{\"text\": \"my card was stolen\"}}' --wait");
    tell!("Ctrl-C ends it.");

    gateway.run(listener, shutdown.drain.clone()).await;
    info!("the gateway has stopped");
    tokio::select! {
        () = worker.stop() => {}
        () = shutdown.now.cancelled() => {}
    }
    yard.stop().await
}
