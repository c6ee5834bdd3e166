//! The roles that run by themselves: gateway, scheduler, worker. Each reads straight down, from settings to drain.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use taskyard_producer::gateway::{Gateway, GatewayParts};
use taskyard_scheduler::Scheduler;
use taskyard_shared::Topology;
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::broker::Broker;
use taskyard_shared::process::admin::{self, Health, Readiness};
use taskyard_shared::process::config::{self, Loaded};
use taskyard_shared::process::connect::{open_broker, open_store};
use taskyard_shared::process::keys::Keys;
use taskyard_shared::process::listen::{ListenError, Listener};
use taskyard_shared::process::metrics::Registry;
use taskyard_shared::process::settings::Settings;
use taskyard_shared::process::shutdown::Shutdown;
use taskyard_shared::process::telemetry;
use taskyard_shared::store::Store;
use taskyard_worker::handlers::{self, ModelCache, Recipe, RecipeBook};
use taskyard_worker::{Foundry, Worker};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::Failure;
use crate::yard::{Served, Source};

/// How often broker and store are asked how they are.
const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// Asking may take so long.
const HEALTH_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct WorkerArgs {
    /// Serve only these models of the settings, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    models: Vec<String>,
}

/// What every role starts from.
struct Role {
    loaded: Loaded,
    shutdown: Shutdown,
    registry: Registry,
    readiness: Readiness,
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    topology: Topology,
}

impl Role {
    /// Settings, logs, signals, then the connections: in this order, so that each can say what is wrong with it.
    async fn start(name: &str, file: Option<&Path>) -> Result<Self, Failure> {
        let loaded = config::load(file)?;
        telemetry::init(&loaded.settings.log)?;
        let settings = &loaded.settings;
        settings.require_shared(name)?;
        let shutdown = Shutdown::on_signals()?;
        let registry = Registry::new()?;
        let readiness = Readiness::starting(&["broker", "store"]);
        let broker = open_broker(settings).await?;
        registry.broker(&broker)?;
        let store = open_store(settings).await?;
        let topology = Topology::new(&settings.broker.namespace);
        Ok(Self { loaded, shutdown, registry, readiness, broker, store, topology })
    }

    fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    /// Metrics and health, until `done`.
    async fn admin(&self, done: &CancellationToken) -> Result<(), Failure> {
        let listener = admin::listen(&self.settings().admin).await?;
        announce(&listener, "metrics and health");
        let serving = admin::serve(listener, self.registry.clone(), self.readiness.clone(), done.clone());
        tokio::spawn(serving);
        tokio::spawn(watch_health(self.broker.clone(), self.store.clone(), self.readiness.clone(), done.clone()));
        Ok(())
    }
}

/// The listener of `gateway.listen`; the gateway holds its connections to its own limits.
pub async fn bind_gateway(settings: &Settings) -> Result<TcpListener, Failure> {
    settings.require_keys()?;
    let address = settings.gateway.listen;
    let refused = |source| ListenError { address, setting: "gateway.listen", source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    info!(%address, "listening: the HTTP API");
    Ok(listener)
}

fn announce(listener: &Listener, what: &str) {
    if let Ok(address) = listener.address() {
        info!(%address, "listening: {what}");
    }
}

async fn watch_health(broker: Arc<dyn Broker>, store: Arc<dyn Store>, readiness: Readiness, done: CancellationToken) {
    let mut ticks = tokio::time::interval(HEALTH_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = done.cancelled() => return,
        }
        readiness.set(
            "broker",
            match broker.is_ready() {
                true => Health::Ok,
                false => Health::Failed("not connected, or the broker has raised an alarm".to_owned()),
            },
        );
        let health = match tokio::time::timeout(HEALTH_PATIENCE, store.ping()).await {
            Ok(Ok(_)) => Health::Ok,
            Ok(Err(failure)) => Health::Degraded(failure.to_string()),
            Err(_) => Health::Degraded("the store does not answer".to_owned()),
        };
        readiness.set("store", health);
    }
}

pub async fn scheduler(file: Option<&Path>) -> Result<(), Failure> {
    let role = Role::start("scheduler", file).await?;
    let done = CancellationToken::new();
    role.admin(&done).await?;
    let configured = role.settings().models.iter().map(|(name, model)| model.spec(name)).collect();
    let scheduler = Scheduler::new(
        role.broker.clone(),
        role.store.clone(),
        role.topology.clone(),
        role.settings().scheduler.clone(),
        configured,
        &role.registry,
    )?
    .tenants(role.settings().tenants.clone());
    let answer = scheduler.run(role.shutdown.drain.clone()).await;
    role.broker.close().await;
    done.cancel();
    Ok(answer?)
}

pub async fn worker(args: WorkerArgs, file: Option<&Path>) -> Result<(), Failure> {
    let role = Role::start("worker", file).await?;
    let artifacts = open_artifacts(role.settings())?;
    let (models, foundry) = load_models(&role.loaded, &args.models, artifacts.clone()).await?;
    let done = CancellationToken::new();
    role.admin(&done).await?;
    let mut worker = Worker::new(
        role.broker.clone(),
        role.store.clone(),
        role.topology.clone(),
        role.settings().worker.clone(),
        &role.registry,
    )?;
    worker = worker.foundry(foundry).tenants(role.settings().tenants.keys().cloned());
    if let Some(artifacts) = artifacts {
        worker = worker.artifacts(artifacts, role.settings().artifacts.keep());
    }
    for served in models {
        worker = served.offer(worker);
    }
    let answer = worker.run(role.shutdown.drain.clone(), role.shutdown.now.clone()).await;
    role.broker.close().await;
    done.cancel();
    Ok(answer?)
}

pub async fn gateway(file: Option<&Path>) -> Result<(), Failure> {
    let role = Role::start("gateway", file).await?;
    let listener = bind_gateway(role.settings()).await?;
    let gateway = Gateway::new(GatewayParts {
        broker: role.broker.clone(),
        store: role.store.clone(),
        topology: role.topology.clone(),
        settings: role.settings().gateway.clone(),
        registry: role.registry.clone(),
        keys: Keys::new(&role.settings().keys).map_err(Failure::Usage)?,
        artifacts: open_artifacts(role.settings())?,
    })?;
    gateway.run(listener, role.shutdown.drain.clone()).await;
    role.broker.close().await;
    Ok(())
}

/// Where artifacts are kept, if that was said.
pub fn open_artifacts(settings: &Settings) -> Result<Option<Artifacts>, Failure> {
    let url = settings.artifacts.url.trim();
    let artifacts = (!url.is_empty()).then(|| Artifacts::open(url)).transpose();
    artifacts.map_err(|failure| Failure::Usage(failure.to_string()))
}

/// The models of the settings, or those of them that are asked for: loaded, unless the worker has a memory budget and loads
/// them as it is told.
pub async fn load_models(
    loaded: &Loaded,
    only: &[String],
    artifacts: Option<Artifacts>,
) -> Result<(Vec<Served>, Arc<dyn Foundry>), Failure> {
    let all = &loaded.settings.models;
    if let Some(unknown) = only.iter().find(|name| !all.contains_key(*name)) {
        let known: Vec<&str> = all.keys().map(String::as_str).collect();
        return Err(Failure::Usage(format!(
            "there is no model {unknown} in the settings; there are: {}",
            known.join(", ")
        )));
    }
    if all.is_empty() {
        return Err(Failure::Usage("the settings have no [models.NAME] table: give a file with --config".to_owned()));
    }
    let cache = ModelCache::with_artifacts(artifacts);
    let mut models = Vec::new();
    for (name, model) in all.iter().filter(|(name, _)| only.is_empty() || only.contains(name)) {
        let source = if loaded.settings.worker.has_budget() {
            Source::Wanted(Arc::new(Recipe::new(name, model, &loaded.base_dir, &cache)?))
        } else {
            let handler = handlers::build(name, model, &loaded.base_dir, &cache).await?;
            info!(task.model = %name, handler = %model.handler, "loaded");
            Source::Loaded(handler)
        };
        models.push(Served { spec: model.spec(name), source });
    }
    let served = all.iter().filter(|(name, _)| only.is_empty() || only.contains(name));
    let served = served.map(|(name, model)| (name.clone(), model.clone())).collect();
    Ok((models, Arc::new(RecipeBook::new(served, &loaded.base_dir, &cache))))
}
